"""The download of both databases, from a server on the loopback address that may misbehave."""

import random
import shutil
import signal
import subprocess
import time

import pytest
import simulate
import urllib3
from conftest import MITBIH, PTBXL
from harness import Server, command, contents, files_up_to, run_stage, write_sums

import preprocess_mitbih
import preprocess_ptbxl

SERVED = "mitdb/1.0.0/"
NOT_INTACT = "could not be downloaded intact in five attempts. Run the script again to continue"


@pytest.fixture
def served(tmp_path_factory):
    """A folder with a small database in PhysioNet's layout, as a server has it."""
    folder = tmp_path_factory.mktemp("served")
    simulate.write_mitbih(folder / SERVED, records=("101", "102"), seconds=10)
    (folder / SERVED / "mitdbdir").mkdir()
    (folder / SERVED / "mitdbdir/a page #1.htm").write_text("MIT-BIH comes whole")
    write_sums(folder / SERVED)
    return folder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(urllib3.Retry, "get_backoff_time", lambda retry: 0)


def fetch(server, **constants):
    run_stage(preprocess_mitbih, DOWNLOAD=True, BASE_URL=server.url, **constants)


def came_whole(work, served):
    return contents(work / MITBIH) == contents(served / SERVED)


def test_a_missing_database_is_fetched_once_and_whole(work, served, capsys):
    with Server(served) as server:
        fetch(server)
        assert len(server.asked) == 9
        fetch(server)
        assert len(server.asked) == 9
    assert came_whole(work, served)
    assert "Fetching 8 files" in capsys.readouterr().out
    assert preprocess_mitbih.load_dataset("mitbih").header.simulated


def test_files_that_are_right_are_kept_and_damaged_ones_come_again(work, served):
    (work / MITBIH).mkdir()
    with Server(served) as server:
        fetch(server)
        server.asked.clear()
        (work / MITBIH / "101.hea").unlink()
        (work / MITBIH / "102.dat").write_bytes(b"damaged")
        fetch(server)
        assert sorted(server.asked) == [SERVED + "101.hea", SERVED + "102.dat"]
    assert came_whole(work, served)


@pytest.mark.parametrize("fill", [
    lambda folder, served: simulate.write_mitbih(folder, records=("118",), seconds=10),
    lambda folder, served: [(folder / path.name).symlink_to(path) for path in served.iterdir()],
    lambda folder, served: shutil.copytree(served, folder / "mitdb"),
    lambda folder, served: (folder / "mitdb").symlink_to(served),
    lambda folder, served: shutil.copytree(served, folder / "physionet.org/files/mitdb"),
    lambda folder, served: [shutil.copytree(served, folder / name) for name in ("a", "b")],
    lambda folder, served: [(folder / name).symlink_to(served) for name in ("a", "b")]])
def test_a_folder_filled_by_hand_stays_as_it_is(work, served, fill):
    """Also if the database lies in a folder below, or in two."""
    (work / MITBIH).mkdir()
    fill(work / MITBIH, served / SERVED)
    before = contents(work / MITBIH)
    with Server(served) as server:
        fetch(server)
        assert server.asked == [] and contents(work / MITBIH) == before


def test_only_the_tables_and_the_records_of_the_rate_are_fetched(work, tmp_path_factory):
    served = tmp_path_factory.mktemp("served")
    for rate in (100, 500):
        simulate.write_ptbxl(served / "ptb-xl/1.0.3", records=3, sampling_rate=rate)
    (served / "ptb-xl/1.0.3/RECORDS").write_text("many")
    write_sums(served / "ptb-xl/1.0.3")
    with Server(served) as server:
        for rate in (500, 100):
            run_stage(preprocess_ptbxl, DOWNLOAD=True, BASE_URL=server.url, SAMPLING_RATE=rate)
            signals = preprocess_mitbih.load_dataset("ptbxl").signals
            assert signals.shape == (3, 12, 10 * rate)
            assert {name.split("/")[0] for name in contents(work / PTBXL)} == {
                "ptbxl_database.csv", "scp_statements.csv", "SHA256SUMS.txt",
                "records500", f"records{rate}"}
        assert len(server.asked) == 1 + 2 + 6 + 6   # the list, two tables, three records twice


def test_a_list_without_files_of_the_database_stops_the_run(work, served):
    shutil.copytree(served / SERVED, served / "ptb-xl/1.0.3")
    with Server(served) as server, pytest.raises(SystemExit, match=f"SUMS.txt {NOT_INTACT}"):
        run_stage(preprocess_ptbxl, DOWNLOAD=True, BASE_URL=server.url)
    assert list(work.iterdir()) == []


# ---- Faults ----

@pytest.mark.parametrize("name, faults", [
    ("101.dat", ["cut", "cut"]), ("101.dat", ["cut without length"]), ("101.dat", ["wrong"]),
    ("101.dat", [503, 500]), ("101.dat", [429]), ("101.dat", ["close"]), ("101.dat", ["slow"]),
    ("101.dat", ["cut", 503, 503, "wrong", "close", "cut without length"]),
    ("SHA256SUMS.txt", [503, 429, "close", "cut", "wrong", "cut without length"])])
def test_a_server_that_misbehaves_gives_the_same_bytes_in_the_end(work, served, name, faults):
    with Server(served, faults={SERVED + name: faults}) as server:
        fetch(server)
        assert all(server.met[fault] for fault in faults)
    assert came_whole(work, served)


@pytest.mark.parametrize("listing", ["<html>please log in</html>\n", f"{'0' * 64} 101.dat", ""])
def test_what_is_no_list_of_sums_is_no_database(work, served, listing):
    (served / SERVED / "SHA256SUMS.txt").write_text(listing)
    with Server(served) as server, pytest.raises(SystemExit, match=f"SUMS.txt {NOT_INTACT}"):
        fetch(server)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("name", [
    "../outside.dat", "/outside.dat", "a/../../outside.dat", "..\\outside.dat", "C:\\outside.dat"])
def test_no_file_lands_outside_the_folder(work, served, name):
    listing = served / SERVED / "SHA256SUMS.txt"
    listing.write_text(f"{'0' * 64} {name}\n" + listing.read_text())
    with Server(served) as server, pytest.raises(SystemExit, match="is outside the folder"):
        fetch(server)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("name, faults, message", [
    ("102.atr", [404], "404 Not Found for http://.*/102.atr. Run"),
    ("102.dat", [503] * 6, "102.dat.*503"), ("102.dat", ["wrong"] * 5, f"102.dat {NOT_INTACT}")])
def test_a_file_that_is_not_to_be_had_is_named_and_the_next_run_goes_on(
        work, served, name, faults, message):
    with Server(served, faults={SERVED + name: faults}) as server:
        with pytest.raises(SystemExit, match=message) as error:
            fetch(server)
        assert "\n" not in str(error.value) and not list(work.glob("*.npy"))
        assert (work / MITBIH / "101.dat").is_file() and not list(work.rglob("*.tmp"))
        fetch(server)   # the fault is gone
        assert server.asked.count(SERVED + "101.dat") == 1
    assert came_whole(work, served)


# ---- Interruptions ----

def test_a_killed_download_goes_on_to_the_same_bytes(work, served):
    chance = random.Random(0)
    codes = []
    with Server(served) as server:
        for _ in range(2):
            process = subprocess.Popen(command("preprocess_mitbih", BASE_URL=server.url))
            server.kill_after = server.sent + chance.randrange(500, 8000)
            server.victim = process
            codes.append(process.wait())
        fetch(server)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert came_whole(work, served)


@pytest.fixture
def interruptible():
    """Child processes notice Ctrl-C even if the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupted_by_the_user_it_says_how_to_go_on(work, served, interruptible):
    faults = {SERVED + name: ["slow"] for name in contents(served / SERVED)}
    with Server(served, faults, pause=0.3) as server:
        process = subprocess.Popen(command("preprocess_mitbih", BASE_URL=server.url), text=True,
                                   stderr=subprocess.PIPE)
        while len(server.asked) < 2 and process.poll() is None:   # the list, and a file
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in message
    assert message.splitlines()[-1].startswith("The download stopped: KeyboardInterrupt. Run")


def test_a_full_disk_is_named(work, served):
    with Server(served) as server:
        with files_up_to(5000), pytest.raises(SystemExit, match="cannot write .*File too large"):
            fetch(server)
        fetch(server)
    assert came_whole(work, served)


def test_offline_one_sentence_names_url_reason_folder_and_demo(work):
    server = Server(work)
    server.server_close()
    with pytest.raises(SystemExit) as error:
        fetch(server)
    message = str(error.value)
    for part in (f"{SERVED}SHA256SUMS.txt", server.url.split("/")[2].split(":")[1],
                 "Connection refused", str(work / MITBIH), "python tests/demo.py"):
        assert part in message
    assert "\n" not in message and list(work.iterdir()) == []
