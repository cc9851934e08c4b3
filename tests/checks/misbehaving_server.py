"""Downloads both databases from a faulty server, killed ten times each, and compares every byte.

    python tests/checks/misbehaving_server.py

Serves simulated databases on the loopback address: slowly, cut off, with wrong bytes, refusals and
broken connections. Works in a temporary folder and takes a minute. Fails if a byte differs, or if
a file is left over.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import simulate
from harness import Server, command, contents, write_sums

FAULTS = ["ok"] * 12 + ["slow", "cut", "cut without length", "wrong", "close", 429, 503, 500]
KILLS = 10
SERVED = {   # stage -> folder on the server, beginnings of the names that it fetches
    "preprocess_mitbih": ("mitdb/1.0.0", ("",)),
    "preprocess_ptbxl": ("ptb-xl/1.0.3", ("ptbxl_database.csv", "scp_statements.csv",
                                          "records100/", "SHA256SUMS.txt")),
}


def download(stage, work, server, size):
    """Runs a stage until it ends, killed at ten random moments of `size` bytes -> runs it took."""
    chance = random.Random(1)
    constants = {"DATA_DIR": "data", "BASE_URL": server.url}
    killed = 0
    for attempt in range(1, KILLS + 40):
        process = subprocess.Popen(command(stage, **constants), cwd=work, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if killed < KILLS:
            server.kill_after = server.sent + chance.randrange(1, size // KILLS)
            server.victim = process
        _, message = process.communicate()
        if "Traceback" in message:
            raise SystemExit(f"{stage} failed: {message}")
        if process.returncode == 0:
            if killed < KILLS:
                raise SystemExit(f"{stage} ended after {killed} kills")
            return attempt
        killed += process.returncode < 0
        reason = "killed" if process.returncode < 0 else message.strip()[-200:]
        print(f"  {stage}: {reason}, {len(contents(work))} files are there", flush=True)
    raise SystemExit(f"{stage} did not end: {message}")


def check(stage, folder):
    """Serves one database and fetches it -> sentence. Stops if a file differs or is left over."""
    path, beginnings = SERVED[stage]
    write_sums(folder / "served" / path)
    right = {name: content for name, content in contents(folder / "served" / path).items()
             if name.startswith(beginnings)}
    work = folder / stage
    work.mkdir()
    with Server(folder / "served", random_faults=FAULTS) as server:
        attempts = download(stage, work, server, sum(map(len, right.values())))
    fetched = contents(work / "data")
    differ = [name for name in {*fetched, *right} if fetched.get(name) != right.get(name)]
    if differ:
        raise SystemExit(f"{stage}: {sorted(differ)} differ, are missing or are left over")
    return (f"{stage}: {KILLS} kills, {attempts} runs, {len(right)} files as served, "
            f"faults met: {dict(server.met)}")


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mitdb = folder / "served/mitdb/1.0.0"
        simulate.write_mitbih(mitdb, seconds=20)
        (mitdb / "mitdbdir").mkdir()
        (mitdb / "mitdbdir/intro page.htm").write_text("MIT-BIH comes whole")
        for rate in (100, 500):
            simulate.write_ptbxl(folder / "served/ptb-xl/1.0.3", records=100, sampling_rate=rate)
        for stage in SERVED:
            print(check(stage, folder), flush=True)


if __name__ == "__main__":
    main()
