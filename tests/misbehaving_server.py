"""Downloads both databases from a server that misbehaves, killed ten times on the way each, and compares every byte.

    python tests/misbehaving_server.py

Serves simulated databases on the loopback address, slowly, cut, with wrong bytes, refusals and broken connections, in a
temporary folder; takes two minutes. Fails when a byte differs or a file is left over.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import simulate
from harness import Server, command, contents, write_sums

FAULTS = ["ok"] * 12 + ["slow", "cut", "cut without length", "wrong", "close", "whole", 429, 503, 500]
KILLS = 10
PTBXL_FILES = ("ptbxl_database.csv", "scp_statements.csv", "records100/", "SHA256SUMS.txt")


def download(script, work, served, wanted):
    """Runs a preprocess script until it is done, killing it at ten random moments -> sentence; stops where a byte is wrong."""
    chance, size = random.Random(1), sum(len(content) for content in wanted.values())
    killed, target = 0, work / "data"
    with Server(served, random_faults=FAULTS) as server:
        for attempt in range(KILLS + 40):
            process = subprocess.Popen(command(script, DATA_DIR="data", BASE_URL=server.url, CONNECTIONS=3), cwd=work,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if killed < KILLS:
                server.kill_after, server.victim = server.sent + chance.randrange(1, size // KILLS), process
            _, message = process.communicate()
            if process.returncode == 0:
                break
            killed += process.returncode < 0
            print(f"  {script}: {'killed' if process.returncode < 0 else message.strip()[-200:]} with "
                  f"{len(contents(target)) if target.exists() else 0} files there", flush=True)
        else:
            raise SystemExit(f"{script} did not end: {message}")
    if killed < KILLS:
        raise SystemExit(f"{script} was killed only {killed} times")
    if (found := contents(target)) != wanted:
        raise SystemExit(f"{script}: {sorted(set(found) ^ set(wanted))} are left over or missing, or a file differs")
    return f"{script}: killed {killed} times, {len(wanted)} files as served, faults met: {dict(server.met)}"


def main():
    with tempfile.TemporaryDirectory() as folder:
        served, work = Path(folder, "served"), Path(folder, "work")
        simulate.write_mitbih(served / "mitdb/1.0.0", seconds=20)
        (served / "mitdb/1.0.0/mitdbdir").mkdir()
        (served / "mitdb/1.0.0/mitdbdir/intro page.htm").write_text("MIT-BIH comes whole")
        simulate.write_ptbxl(served / "ptb-xl/1.0.3", records=100)
        simulate.write_ptbxl(served / "ptb-xl/1.0.3", records=100, sampling_rate=500)
        for name, script, part in (("mitdb/1.0.0", "preprocess_mitbih", ("",)),
                                   ("ptb-xl/1.0.3", "preprocess_ptbxl", PTBXL_FILES)):
            write_sums(served / name)
            (work / script).mkdir(parents=True)
            wanted = {path: content for path, content in contents(served / name).items() if path.startswith(part)}
            print(download(script, work / script, served, wanted))


if __name__ == "__main__":
    sys.exit(main())
