"""preprocess_mitbih.py on simulated records whose beats are known by construction."""

import hashlib
import json
import random
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import wfdb

import preprocess_mitbih as stage
import simulate
from conftest import MITBIH
from fuzz import damaged
from harness import Server, command, contents, files_up_to, write_sums

RECORDS = ("101", "102", "114", "118")


@pytest.fixture
def database(work):
    """Four records of 20 s -> dict of record -> (samples, symbols) of all annotations."""
    return simulate.write_mitbih(work / MITBIH, records=RECORDS, seconds=20)


def load(part):
    return np.load(f"mitbih_{part}.npy", allow_pickle=False)


def test_every_complete_beat_is_a_row_and_nothing_else(database):
    stage.main()
    metadata = load("metadata")
    expected = [(record, int(sample), symbol) for record, (samples, symbols) in database.items()
                for sample, symbol in zip(samples, symbols)
                if symbol in stage.BEATS and 180 <= sample <= 20 * 360 - 180]
    assert [(str(m["record"]), int(m["sample"]), str(m["symbol"])) for m in metadata] == expected
    assert load("signals").shape == (len(expected), 360) and load("signals").dtype == np.float32
    names = load("header")["class_names"][0].tolist()
    assert [names[label] for label in load("labels")] == [
        next(name for name, symbols in stage.CLASS_MAPS["aami"].items() if symbol in symbols) for _, _, symbol in expected]
    assert load("labels").dtype == np.int64


@pytest.mark.parametrize("record, lead", [("101", "MLII"), ("114", "MLII"), ("102", "V5")])
def test_signals_are_the_lead_by_name_in_millivolts(database, record, lead):
    stage.main()
    metadata, signals = load("metadata"), load("signals")
    rows = np.flatnonzero(metadata["record"] == record)
    physical, fields = wfdb.rdsamp(f"{MITBIH}/{record}")
    voltage = physical[:, fields["sig_name"].index(lead)].astype(np.float32)
    for row in rows:
        sample = metadata["sample"][row]
        np.testing.assert_array_equal(signals[row], voltage[sample - 180:sample + 180])
    assert set(metadata["leads"][rows]) == {lead}


def test_the_whole_leads_lie_end_to_end(database):
    stage.main()
    header, records = load("header")[0], load("records")
    assert header["record_names"].tolist() == list(RECORDS) and header["record_samples"].tolist() == [7200] * 4
    physical, _ = wfdb.rdsamp(f"{MITBIH}/114", channel_names=["MLII"])
    np.testing.assert_array_equal(records[2 * 7200:3 * 7200], physical[:, 0].astype(np.float32))


def test_rr_intervals_count_every_beat_of_the_record(database):
    stage.main()
    metadata = load("metadata")
    for record, (samples, symbols) in database.items():
        beats = [s for s, symbol in zip(samples, symbols) if symbol in stage.BEATS]
        for row in metadata[metadata["record"] == record]:
            k = beats.index(row["sample"])
            previous = (beats[k] - beats[k - 1]) / 360 if k else np.nan
            following = (beats[k + 1] - beats[k]) / 360 if k + 1 < len(beats) else np.nan
            np.testing.assert_allclose([row["rr_previous"], row["rr_next"]], [previous, following], rtol=1e-6)


def test_rr_window_is_nan_beyond_the_record():
    window = stage.rr_window(np.array([360, 720, 1440]), 360)
    assert window.shape == (3, 20) and np.isfinite(window).sum() == 6
    np.testing.assert_array_equal(window[:, 8:12], np.array(
        [[np.nan, np.nan, 1, 2], [np.nan, 1, 2, np.nan], [1, 2, np.nan, np.nan]], np.float32))


def test_rhythm_features_are_finite_and_see_a_premature_beat():
    rr = np.full((40, 20), .8, np.float32)
    rr[1, 9], rr[1, 10], rr[2, 10:] = .4, 1.2, np.nan
    features = stage.rhythm_features(rr)
    assert features.shape == (40, 25) and features.dtype == np.float32 and np.isfinite(features).all()
    np.testing.assert_allclose(features[1, 4:6], np.log([.5, 1.5]), rtol=1e-5)   # previous and next over the median
    np.testing.assert_allclose(features[1, 21:], np.log(.5), rtol=1e-5)          # and over the record's quantiles
    np.testing.assert_allclose(features[0, :14], 0, atol=1e-6)
    irregular = np.random.default_rng(0).uniform(.4, 1.4, (500, 20))             # as in atrial fibrillation
    spread = stage.rhythm_features(irregular)[0, 17:21]
    assert spread[0] < -.3 and spread[3] > .2 and np.all(np.diff(spread) > 0)
    assert np.isfinite(stage.rhythm_features(np.full((1, 20), np.nan))).all()    # a record of one beat
    assert stage.rhythm_features(stage.rr_window(np.array([], np.int64), 360)).shape == (0, 25)


def test_odd_segments_fill_up_to_the_last_sample():
    beats, complete = stage.cut_beats(np.arange(200.).reshape(2, 100), np.array([4, 5, 94, 95]), 11)
    assert complete.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(beats, [[np.arange(11), np.arange(100, 111)], [np.arange(89, 100), np.arange(189, 200)]])


def test_lead_absent_skip_leaves_the_record_out_and_says_so(database, monkeypatch, capsys):
    monkeypatch.setattr(stage, "LEAD_ABSENT", "skip")
    stage.main()
    assert "102" not in load("metadata")["record"]
    assert "102 has no lead MLII, only V5, V2" in capsys.readouterr().out


def test_several_leads_are_kept_together(database, monkeypatch):
    monkeypatch.setattr(stage, "LEADS", ["V1", "MLII"])
    monkeypatch.setattr(stage, "LEAD_ABSENT", "skip")
    stage.main()
    metadata, signals, records = load("metadata"), load("signals"), load("records")
    assert set(metadata["record"]) == {"101", "118"} and set(metadata["leads"]) == {"V1 MLII"}   # 102 and 114 have V5
    physical, _ = wfdb.rdsamp(f"{MITBIH}/118", channel_names=["MLII", "V1"])
    voltage = physical[:, ::-1].astype(np.float32)
    row = np.flatnonzero(metadata["record"] == "118")[3]
    sample = metadata["sample"][row]
    np.testing.assert_array_equal(signals[row], voltage[sample - 180:sample + 180].T)
    np.testing.assert_array_equal(records[7200:], voltage)
    assert load("header")["leads"][0].tolist() == ["V1", "MLII"]


@pytest.mark.parametrize("rate", [128, 257])
def test_another_database_is_resampled_with_its_annotations(work, monkeypatch, capsys, rate):
    truth = simulate.write_mitbih(work / MITBIH, records=["101"], seconds=20)["101"]
    simulate.write_at_rate(work / MITBIH, work / "svdb", {"101": "800"}, rate, ["ECG1", "ECG2"])
    for name, value in {"NAME": "svdb", "DATA_DIR": "svdb", "LEADS": ["ECG1"]}.items():
        monkeypatch.setattr(stage, name, value)
    stage.main()
    metadata, signals = np.load("svdb_metadata.npy"), np.load("svdb_signals.npy")
    samples = [s for s, symbol in zip(*truth) if symbol in stage.BEATS and 182 <= s <= 7200 - 182]
    kept = metadata["sample"][(metadata["sample"] >= 182) & (metadata["sample"] <= 7200 - 182)]
    np.testing.assert_allclose(kept, samples, atol=2)
    original, _ = wfdb.rdsamp(f"{MITBIH}/101", channel_names=["MLII"])
    row = int(np.flatnonzero(metadata["sample"] == kept[5])[0])
    assert np.corrcoef(signals[row], original[kept[5] - 180:kept[5] + 180, 0])[0, 1] > .95
    assert set(metadata["subset"]) == {"test"} and f"resampled from {rate} to 360 Hz" in capsys.readouterr().out


def test_leads_are_a_list(work, monkeypatch):
    monkeypatch.setattr(stage, "LEADS", "MLII")
    with pytest.raises(SystemExit, match="LEADS = 'MLII': expected a list"):
        stage.main()


def test_class_maps_are_the_published_ones():
    aami = {symbol: name for name, symbols in stage.CLASS_MAPS["aami"].items() for symbol in symbols}
    assert aami == {**dict.fromkeys("NLRejBn", "N"), **dict.fromkeys("AaJS", "S"), **dict.fromkeys("VEr", "V"), "F": "F",
                    **dict.fromkeys("/fQ?", "Q")}   # B n r ? do not occur in MIT-BIH
    assert set(aami) == set(stage.BEATS)
    clinical = {symbol for symbols in stage.CLASS_MAPS["clinical"].values() for symbol in symbols}
    assert clinical == set(stage.BEATS) - set("QB?")


def test_clinical_classes_leave_out_unclassifiable_beats(database, monkeypatch):
    path = f"{MITBIH}/101"
    annotation = wfdb.rdann(path, "atr")
    annotation.symbol[5] = "Q"
    wfdb.wrann("101", "atr", annotation.sample, annotation.symbol, write_dir=MITBIH)
    monkeypatch.setattr(stage, "CLASS_MAP", "clinical")
    stage.main()
    assert annotation.sample[5] not in load("metadata")["sample"][load("metadata")["record"] == "101"]
    assert load("header")["class_names"][0].tolist() == list(stage.CLASS_MAPS["clinical"])


def test_the_split_is_complete_and_disjoint():
    subsets = [set(names.split()) for names in stage.SUBSETS.values()]
    assert [len(s) for s in subsets] == [22, 22, 4] and len(set.union(*subsets)) == 48


def published_beats():
    """A table with as many beats of each class and subset as the real database has."""
    symbols = {"N": "N", "S": "A", "V": "V", "F": "F", "Q": "Q"}
    counts = {**stage.PUBLISHED, "paced": [a - b - c for a, b, c in zip(*(stage.PUBLISHED[k] for k in ("all", "DS1", "DS2")))]}
    rows = []
    for subset, records in stage.SUBSETS.items():
        names = records.split()
        rows += [(names[0], symbol) for symbol, n in zip(symbols.values(), counts[subset]) for _ in range(n)]
        rows += [(name, None) for name in names[1:]]
    table = np.zeros(len(rows), [("record", "U8"), ("symbol", "U1")])
    table["record"], table["symbol"] = [r for r, _ in rows], [s or "+" for _, s in rows]
    return table


def test_published_counts_are_compared_to_the_beat(monkeypatch):
    monkeypatch.setattr(stage, "count_classes", lambda symbols: tuple(int(np.sum(symbols == s)) for s in "NAVFQ"))
    table = published_beats()
    assert "Equal to the published counts" in stage.check_published(table, stage.PUBLISHED_SEGMENTS, False)
    assert "Not compared" in stage.check_published(table, stage.PUBLISHED_SEGMENTS, True)
    assert "Not compared" in stage.check_published(table[table["record"] == "101"], 1, False)
    table["symbol"][np.flatnonzero(table["symbol"] == "A")[0]] = "N"
    with pytest.raises(SystemExit, match="differ from the published counts"):
        stage.check_published(table, stage.PUBLISHED_SEGMENTS, False)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def replace(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def damage(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def put_invalid_sample(folder):
    record = wfdb.rdrecord(str(folder / "118"), physical=False)
    record.d_signal[100, 0] = -2048   # format 212's mark of an invalid sample
    wfdb.wrsamp("118", 360, record.units, record.sig_name, d_signal=record.d_signal, fmt=record.fmt,
                adc_gain=record.adc_gain, baseline=record.baseline, write_dir=str(folder))


DAMAGES = {
    "no such folder": lambda folder: folder.rename("elsewhere"),
    "RECORDS is missing": lambda folder: (folder / "RECORDS").unlink(),
    "118.dat is missing": lambda folder: (folder / "118.dat").unlink(),
    "118.hea is missing": lambda folder: (folder / "118.hea").unlink(),
    "118.atr is missing": lambda folder: (folder / "118.atr").unlink(),
    "118.*do not fit together": lambda folder: cut(folder / "118.dat", 5000),
    "118.*fs = 20, all of this database have 360": lambda folder: replace(folder / "118.hea", " 360 ", " 20 "),
    "118.*adc_gain = 200.0 300.0, all": lambda folder: replace(folder / "118.hea", " 200.0(", " 300.0("),
    "118.*21600 bytes.*7000 samples make 21000": lambda folder: replace(folder / "118.hea", " 7200", " 7000"),
    "118.*checksums": lambda folder: (folder / "118.dat").write_bytes(bytes(21600)),
    "118.*21610 bytes.*7200 samples make 21600": lambda folder: (folder / "118.dat").open("ab").write(bytes(10)),
    "118.*units uV": lambda folder: replace(folder / "118.hea", "/mV", "/uV", 2),
    "118.*1 samples of lead MLII are invalid": put_invalid_sample,
    "118.*header": lambda folder: (folder / "118.hea").write_bytes(b"\x00\xff nonsense"),
    "118.*annotation": lambda folder: (folder / "118.atr").write_bytes(b"\x07\xff\x13" * 9),
    "118.*no end mark": lambda folder: cut(folder / "118.atr", 60),
    "118.*a note that says nothing": lambda folder: (folder / "118.atr").write_bytes(
        (folder / "118.atr").read_bytes().replace(b"time resolution", b"time revolution")),
    "118.atr is not the published file": lambda folder: write_sums(folder) or damage(folder / "118.atr"),
    "SHA256SUMS.txt is no list": lambda folder: (folder / "SHA256SUMS.txt").write_text("<html>"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_bad_input_stops_with_one_sentence_and_keeps_earlier_outputs(database, work, monkeypatch, message):
    stage.main()
    before = {path.name: path.read_bytes() for path in work.glob("*.npy")}
    DAMAGES[message](work / MITBIH)
    with pytest.raises(SystemExit, match=f"(?s){message}") as error:
        stage.main()
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in work.glob("*.npy*")} == before


def test_bad_record_can_be_skipped_and_is_counted(database, work, monkeypatch, capsys):
    (work / MITBIH / "118.dat").unlink()
    monkeypatch.setattr(stage, "BAD_RECORDS", "skip")
    stage.main()
    assert set(load("metadata")["record"]) == {"101", "102", "114"}
    assert "record: 118" in capsys.readouterr().out


@pytest.mark.parametrize("records", ["101", [], ["101", "101"]])
def test_records_is_all_or_a_list_of_different_names(database, monkeypatch, records):
    monkeypatch.setattr(stage, "RECORDS", records)
    with pytest.raises(SystemExit, match="RECORDS"):
        stage.main()


def test_records_may_be_numbers(database, monkeypatch):
    monkeypatch.setattr(stage, "RECORDS", [101, 114])
    stage.main()
    assert set(load("metadata")["record"]) == {"101", "114"}


@pytest.mark.parametrize("name, value", [("CLASS_MAP", "amii"), ("LEAD_ABSENT", "no"), ("BAD_RECORDS", "?")])
def test_unknown_constants_are_named(work, monkeypatch, name, value):
    monkeypatch.setattr(stage, name, value)
    with pytest.raises(SystemExit, match=f"{name} = {value!r}: expected one of".replace("?", r"\?")):
        stage.main()


def test_row_writer_equals_numpy_save(work):
    rows = np.random.default_rng(0).normal(size=(1234, 3, 5)).astype(np.float32)
    writer = stage.RowWriter("rows.npy", (3, 5), "<f4")
    for part in np.array_split(rows, 7):
        writer.append(part)
    writer.close()
    np.testing.assert_array_equal(np.load("rows.npy", mmap_mode="r"), rows)


def test_new_files_vanish_after_an_error(work):
    (work / "a").write_text("old")
    with pytest.raises(RuntimeError), stage.new_files("a", "b") as (a, b):
        a.write_text("new")
        raise RuntimeError
    assert [(p.name, p.read_text()) for p in work.iterdir()] == [("a", "old")]


# ---- What outputs were made from ----

def test_the_header_says_what_the_files_were_made_from(database, work):
    stage.main()
    made_from, files = json.loads(str(load("header")["made_from"][0])), list((work / MITBIH).iterdir())
    assert made_from["files"] == len(files) == 13 and made_from["bytes"] == sum(p.stat().st_size for p in files)
    assert made_from["constants"]["CLASS_MAP"] == "aami" and made_from["versions"]["wfdb"] == wfdb.__version__
    assert dict(zip(load("header")["parts"][0], load("header")["part_sums"][0])) == {
        part: hashlib.sha256(Path(f"mitbih_{part}.npy").read_bytes()).hexdigest()
        for part in ("signals", "labels", "metadata", "records")}
    for header in (work / MITBIH).glob("*.hea"):   # git and unzip may change line ends
        header.write_bytes(header.read_bytes().replace(b"\n", b"\r\n"))
    stage.main()
    assert json.loads(str(load("header")["made_from"][0])) == made_from


@pytest.mark.parametrize("kind", ["hea", "dat", "atr"])
@pytest.mark.parametrize("published", [True, False])
def test_damaged_records_end_in_a_sentence_or_the_right_result(database, work, kind, published):
    path, chance = work / MITBIH / f"101.{kind}", random.Random(kind)
    if published:
        write_sums(MITBIH)
    content = path.read_bytes()

    def read():
        for end in ("hea", "dat", "atr"):
            stage.Source(MITBIH).read(f"101.{end}")
        return stage.read_record(MITBIH, "101", ["MLII"], "first", 360)
    right = read()
    for _ in range(40):
        path.write_bytes(damaged(content, chance))
        try:
            found = read()
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            if published or kind != "atr":   # an annotation file has no checksum of its own
                np.testing.assert_array_equal(found["signals"], right["signals"])
                np.testing.assert_array_equal(found["sample"], right["sample"])


# ---- Download ----

@pytest.fixture
def served(tmp_path_factory):
    """A folder with a small database in PhysioNet's layout, as a server has it."""
    folder = tmp_path_factory.mktemp("served")
    simulate.write_mitbih(folder / "mitdb/1.0.0", records=("101", "102"), seconds=10)
    (folder / "mitdb/1.0.0/mitdbdir").mkdir()
    (folder / "mitdb/1.0.0/mitdbdir/a page.htm").write_text("MIT-BIH comes whole")
    write_sums(folder / "mitdb/1.0.0")
    return folder


@pytest.fixture
def fetch(monkeypatch):
    """A function that runs the script against a server."""
    def run(server, **constants):
        for name, value in {"DOWNLOAD": True, "BASE_URL": server.url, **constants}.items():
            monkeypatch.setattr(stage, name, value)
        stage.main()
    return run


def test_a_missing_database_is_fetched_once_and_whole(work, served, fetch, capsys):
    with Server(served) as server:
        fetch(server)
        asked = len(server.asked)
        fetch(server)
        assert len(server.asked) == asked == 9
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")
    assert "Fetching 8 files" in capsys.readouterr().out and len(load("labels")) > 10


@pytest.fixture
def impatient(monkeypatch):
    """Waits a hundredth of a second at most."""
    wait = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda event, seconds=None: wait(event, seconds and min(seconds, .01)))


@pytest.mark.parametrize("faults", [["cut", "cut"], ["cut without length"], ["wrong"], [503, 500], [429], ["close"],
                                    ["slow", "cut", "whole"], ["cut", *[503] * 6, "cut", *[503] * 6]])
def test_a_server_that_misbehaves_gives_the_same_bytes_in_the_end(work, served, fetch, impatient, faults):
    with Server(served, faults={"mitdb/1.0.0/101.dat": faults, "mitdb/1.0.0/SHA256SUMS.txt": faults[:1]}) as server:
        fetch(server)
        assert all(server.met[fault] for fault in faults[:1])
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


def test_a_beginning_that_is_too_long_is_thrown_away(work, served, fetch, impatient):
    (work / MITBIH).mkdir()
    (work / MITBIH / "101.dat.part").write_bytes(bytes(20_000))
    with Server(served) as server:
        fetch(server)
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


def test_a_server_that_asks_for_an_hour_is_left(work, served, fetch):
    with Server(served, faults={"mitdb/1.0.0/101.dat": ["in an hour"]}) as server:
        with pytest.raises(SystemExit, match="cannot fetch .*/101.dat .429 .*asked again in 3600 s.*run on simulated data"):
            fetch(server)
        fetch(server)
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


def test_interrupted_by_the_user_it_says_that_it_goes_on(work, served):
    with Server(served, faults={"mitdb/1.0.0/101.dat": ["slow"] * 9}) as server:
        interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)   # which a job in the background is not
        process = subprocess.Popen(command("preprocess_mitbih", BASE_URL=server.url), cwd=work, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=interruptible)
        while not any(name.endswith("101.dat") for name, _ in server.asked):
            time.sleep(.01)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=20)
    assert (process.returncode == 1 and message.splitlines()[-1].startswith("The download was broken off")
            and "Traceback" not in message)


def test_a_disk_that_is_full_is_named(work, served, fetch):
    with Server(served) as server:
        with files_up_to(5000), pytest.raises(SystemExit, match="cannot write into .*File too large"):
            fetch(server)
        fetch(server)
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


def test_what_came_before_a_cut_is_not_fetched_again(work, served, fetch, impatient):
    with Server(served, faults={"mitdb/1.0.0/101.dat": ["cut"]}) as server:
        fetch(server)
        assert [wanted for name, wanted in server.asked if name.endswith("101.dat")] == [None, "bytes=5120-"]   # it has 10,800


def test_a_killed_download_goes_on_to_the_same_bytes(work, served):
    killed, chance = 0, random.Random(0)
    with Server(served) as server:
        for _ in range(10):
            process = subprocess.Popen(command("preprocess_mitbih", BASE_URL=server.url), cwd=work, stderr=subprocess.PIPE)
            if killed < 2:
                server.kill_after, server.victim = server.sent + chance.randrange(500, 8000), process
            process.communicate()
            killed += process.returncode < 0
            if process.returncode == 0:
                break
            assert (work / MITBIH / "records.unfinished").exists()
    assert killed == 2 and contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


@pytest.mark.parametrize("faults, message", [
    ({"102.atr": [404]}, "102.atr: 404 Not Found .1 of 8 files."),
    ({"102.dat": ["wrong", "wrong"]}, "102.dat: came twice with other bytes")])
def test_a_file_that_is_not_to_be_had_is_named_and_the_others_come(work, served, fetch, impatient, faults, message):
    with Server(served, faults={f"mitdb/1.0.0/{name}": of for name, of in faults.items()}) as server:
        with pytest.raises(SystemExit, match=message) as error:
            fetch(server)
        assert "\n" not in str(error.value) and (work / MITBIH / "101.dat").is_file() and not list(work.glob("*.npy"))
        fetch(server)   # the fault is gone
    assert contents(work / MITBIH) == contents(served / "mitdb/1.0.0")


def test_offline_one_sentence_names_url_reason_folder_and_demo(work, fetch, monkeypatch):
    server = Server(work)
    server.server_close()
    monkeypatch.setattr(threading.Event, "wait", lambda *_: False)
    with pytest.raises(SystemExit) as error:
        fetch(server)
    text = str(error.value)
    for part in (f"{server.url}mitdb/1.0.0/SHA256SUMS.txt", "Connection refused", str(work / MITBIH), "python tests/demo.py"):
        assert part in text
    assert "\n" not in text and list(work.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside.dat", "/outside.dat", "a/../../outside.dat"])
def test_no_file_lands_outside_the_folder(work, served, fetch, name):
    listing = served / "mitdb/1.0.0/SHA256SUMS.txt"
    listing.write_text(f"{'0' * 64} {name}\n" + listing.read_text())
    with Server(served) as server, pytest.raises(SystemExit, match="1 of them outside DATA_DIR"):
        fetch(server)
    assert list(work.iterdir()) == []


def test_what_is_no_list_of_sums_is_no_database(work, served, fetch):
    (served / "mitdb/1.0.0/SHA256SUMS.txt").write_text("<html>please log in</html>")
    with Server(served) as server, pytest.raises(SystemExit, match="cannot fetch .*SHA256SUMS.txt .came twice"):
        fetch(server)
    assert list(work.iterdir()) == []


def test_earlier_outputs_stay_when_the_disk_is_full(database, work):
    stage.main()
    before = {path.name: path.read_bytes() for path in work.glob("*.npy")}
    with files_up_to(20_000), pytest.raises(SystemExit, match="cannot write mitbih_signals.npy, .*File too large"):
        stage.main()
    assert {path.name: path.read_bytes() for path in work.glob("*.npy*")} == before
