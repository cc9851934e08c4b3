"""preprocess_mitbih.py on damaged records and files, wrong constants and a full disk."""

import random
import signal
from pathlib import Path

import numpy as np
import pytest
import simulate
from conftest import MITBIH
from harness import cut, damaged, files_up_to, outputs, preprocess, replace

import preprocess_mitbih as stage

# ---- Damaged records ----

ADVICE = 'Repair or replace it, or set BAD_RECORDS = "skip" to go on without it'
HEADER = "its header or signal file is missing or damaged"
CHECKSUMS = "the samples contradict the checksums in the header"
NOTES = "the annotation file has no end mark, an unknown first note or two .*: it is damaged"
DAMAGES = [   # regular expression of the reason, what is done to the folder
    (f"{HEADER} .*118.dat.*", lambda folder: (folder / "118.dat").unlink()),
    (f"{HEADER} .*118.hea.*", lambda folder: (folder / "118.hea").unlink()),
    (f"{HEADER} .*record line.*",
     lambda folder: (folder / "118.hea").write_bytes(b"\x00\xff nonsense")),
    (f"{HEADER} .*", lambda folder: (folder / "118.hea").write_text("118 0 360 7200\n")),
    (f"{HEADER} .*118a.hea.*", lambda folder: (folder / "118.hea").write_text(
        "118/2 2 360 7200\n118a 3600\n118b 3600\n")),
    ("sampled at 20 Hz: expected a rate from 50 to 10,000 Hz",
     lambda folder: replace(folder / "118.hea", b" 360 ", b" 20 ")),
    ("sampled at 0 Hz: expected a rate from 50 to 10,000 Hz",
     lambda folder: replace(folder / "118.hea", b" 360 ", b" 0 ")),
    ("units mmHg, mmHg: expected mV, uV or V",
     lambda folder: replace(folder / "118.hea", b"/mV", b"/mmHg", 2)),
    ("its signal file is damaged or does not fit .*",
     lambda folder: cut(folder / "118.dat", 5000)),
    ("its median QRS is 1,... mV high: expected about 1 mV. If the values are uV, write uV into "
     "the header, a factor of 1000",
     lambda folder: replace(folder / "118.hea", b" 200(", b" 0.2(")),
    (CHECKSUMS, lambda folder: replace(folder / "118.dat", b"", bytes(12))),
    (".*118.atr is missing .ANNOTATOR = None: there is no reference.",
     lambda folder: (folder / "118.atr").unlink()),
    (NOTES, lambda folder: cut(folder / "118.atr", 60)),
    (NOTES, lambda folder: replace(folder / "118.atr", b"time resolution", b"time revolution")),
    ("its annotations mark no beat",
     lambda folder: simulate.write_marks(folder, "118", [100], ["+"])),
    ("its annotations are not in time order within the record",   # 7560 is still a mark of it
     lambda folder: simulate.write_marks(folder, "118", [100, 7561], ["N", "N"])),
]


@pytest.fixture
def not_forever():
    """After 20 s, a TimeoutError: on some notes, wfdb loops."""
    def stop(*_):
        raise TimeoutError
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("not_forever")
@pytest.mark.parametrize("reason, damage", DAMAGES)
def test_bad_input_stops_with_one_sentence_and_keeps_earlier_outputs(
        database, work, reason, damage):
    preprocess()
    before = outputs(work)
    damage(work / MITBIH)
    with pytest.raises(SystemExit, match=f"^record 118: {reason}. {ADVICE}$"):
        preprocess()
    assert outputs(work) == before


def change_last_sample(path, lead):
    """Of the first (0) or second lead, within the valid range: only the checksum tells."""
    content = bytearray(path.read_bytes())
    content[-1 if lead else -3] ^= 3   # format 212
    path.write_bytes(content)


def test_the_checksums_of_the_chosen_leads_alone_are_compared(database, work):
    right = preprocess(RECORDS=["101"], LEADS=["MLII"])
    change_last_sample(work / MITBIH / "101.dat", 1)
    data = preprocess(RECORDS=["101"], LEADS=["MLII"])
    np.testing.assert_array_equal(data.records, right.records)
    with pytest.raises(SystemExit, match="101: the samples contradict the checksums"):
        preprocess(RECORDS=["101"], LEADS=["MLII", "V1"])


@pytest.mark.parametrize("kind", ["hea", "dat", "atr"])
def test_damaged_records_end_in_a_sentence_or_the_right_result(database, work, kind):
    path = work / MITBIH / f"101.{kind}"
    content = path.read_bytes()
    right = stage.cut_record(Path(MITBIH), "101")
    chance = random.Random(kind)
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(content, chance))
        try:
            cut_record = stage.cut_record(Path(MITBIH), "101")
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        if kind != "hea":   # a damaged header may be a valid one, with another gain
            np.testing.assert_array_equal(cut_record.voltage, right.voltage)
        if kind == "dat":   # an annotation file has no checksum
            np.testing.assert_array_equal(cut_record.peaks, right.peaks)
    assert refused > 10


# ---- Records that are skipped ----

def test_bad_records_can_be_skipped_and_are_counted(database, work, capsys):
    """In one line for each reason, in full but for the name of the record."""
    for name in ("101", "118"):
        (work / MITBIH / f"{name}.dat").unlink()
    replace(work / MITBIH / "114.hea", b"/mV", b"/mmHg", 2)
    assert set(preprocess(BAD_RECORDS="skip").record) == {"102"}
    printed = capsys.readouterr().out
    missing = f"([Errno 2] No such file or directory: '{work / MITBIH}/*.dat')"
    assert f"\n        2  records, 101 118 ...: {HEADER} {missing}\n" in printed
    assert "\n        1  records, 114 ...: units mmHg, mmHg: expected mV, uV or V\n" in printed
    with pytest.raises(SystemExit, match="none of 1 records could be used: its header .*missing"):
        preprocess(BAD_RECORDS="skip", RECORDS=["118"])


def test_records_of_one_gain_in_doubt_are_counted_together(database, work, capsys):
    for name in ("101", "102", "114", "118"):
        replace(work / MITBIH / f"{name}.hea", b" 200(", b" 1000(" if name == "114" else b" 4880(")
    assert set(preprocess(BAD_RECORDS="skip").record) == {"114"}
    assert ("\n        3  records, 101 102 118 ...: its gain is 4880 per mV, where later releases "
            "of Georgia say 1000\n") in capsys.readouterr().out


@pytest.mark.parametrize("lead, mode, column", [("MLII", "annotated", 1), ("V1", "detected", 0)])
def test_a_skipped_record_leaves_the_others_as_they_are_without_it(
        database, work, mode, lead, column):
    kept = preprocess(RECORDS=["101", "118"], R_PEAKS=mode, LEADS=[lead])
    before = outputs(work)
    change_last_sample(work / MITBIH / "114.dat", column)   # V5, MLII
    with pytest.raises(SystemExit, match="114: the samples contradict the checksums"):
        preprocess(RECORDS=["101", "114", "118"], R_PEAKS=mode, LEADS=[lead])
    data = preprocess(RECORDS=["101", "114", "118"], R_PEAKS=mode, LEADS=[lead], BAD_RECORDS="skip")
    assert outputs(work) == before and data.header == kept.header
    assert set(data.record) == {"101", "118"} and set(data.annotations["record"]) == {0, 1}


# ---- Constants and the disk ----

@pytest.mark.parametrize("constants, message", [
    ({"R_PEAKS": "qrs"}, "R_PEAKS = 'qrs': expected one of annotated, detected"),
    ({"BAD_RECORDS": "?"}, "BAD_RECORDS = '?': expected one of stop, skip"),
    *(({name: value}, f'{name} = {value!r}: expected a list of names, such as ["II", "V1"]')
      for name in ("LEADS", "RECORDS") for value in (None, [], "", {"II"}, 1.5, True)),
    ({"name": "ptbxl"}, "NAME = 'ptbxl': expected another name"),
    *(({name: value}, f"{name} = {value!r}: expected a whole number from {least} to {largest}")
      for name, least, largest, values in (
          ("SEGMENT", 10, 100_000, ("360", 0, -5, None, 360.0, 9, 100_001, [360], True)),
          ("SAMPLING_RATE", 50, 10_000, ("360", 30, 0, None, 360.0, 49, 10_001)))
      for value in values),
    *(({"DATA_DIR": value}, f"DATA_DIR = {value!r}: expected the path of a folder")
      for value in (None, 1, ["records"], b"records")),
    *(({"CLASSES": {"V": value}}, "CLASSES = {'N': 'NLRBejn', 'S': 'SAaJ', 'V': " + repr(value))
      for value in ("", None, [])),
    ({"SEGMENT": 100_000}, "no beat of the 4 records (signals in mV?) fills a segment of 100000 "
     "samples: beats in unreadable signal, or too near to an end of a record"),
    ({"DATA_DIR": "elsewhere"}, "DATA_DIR: no elsewhere/RECORDS in FOLDER, nor any .hea file. Put "
     "the database there, set DOWNLOAD = True, or see the scripts run on simulated data: python "
     "tests/demo.py"),
])
def test_unknown_constants_are_named(database, work, constants, message):
    with pytest.raises(SystemExit) as error:
        preprocess(**constants)
    assert str(error.value).startswith(message.replace("FOLDER", str(work)))
    assert "\n" not in str(error.value) and outputs(work) == {}


@pytest.mark.parametrize("name", ["NORM", "PVC", "PAC"])
def test_the_statements_of_the_fifth_script_are_needed(database, work, monkeypatch, name):
    others = {key: symbols for key, symbols in stage.STATEMENTS.items() if key != name}
    monkeypatch.setattr(stage, "STATEMENTS", others)
    with pytest.raises(SystemExit, match="^[^\n]*STATEMENTS = [^\n]*NORM, PVC and PAC$"):
        preprocess()
    assert outputs(work) == {}


def test_earlier_outputs_stay_when_the_disk_is_full(database, work):
    preprocess()
    before = outputs(work)
    with files_up_to(20_000), pytest.raises(
            SystemExit, match="cannot write mitbih_signals.npy, .*File too large"):
        preprocess()
    assert outputs(work) == before


# ---- load_dataset ----

def flip_last_bit(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def take_from_other_run(path):
    content = path.read_bytes()
    preprocess(RECORDS=["101", "118"])
    path.write_bytes(content)


@pytest.mark.parametrize("part", "signals labels metadata annotations records header".split())
@pytest.mark.parametrize("damage, message", [
    (Path.unlink, "mitbih_{part}.npy is not in this folder"),
    (lambda path: cut(path, 100), "mitbih_.*.npy are damaged"),
    (flip_last_bit, "mitbih_{part}.npy has (another SHA-256|a wrong checksum)"),
    (take_from_other_run, "npy has another SHA-256 than the header says"),
])
def test_load_dataset_refuses_a_missing_damaged_or_mixed_file(
        database, work, part, damage, message):
    preprocess()
    damage(work / f"mitbih_{part}.npy")
    with pytest.raises(SystemExit, match=message.format(part=part)) as error:
        stage.load_dataset("mitbih")
    assert str(error.value).endswith("with preprocess_mitbih.py or preprocess_ptbxl.py")
    assert "\n" not in str(error.value)
