"""preprocess_mitbih.py on simulated records whose beats are known by construction."""

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import simulate
import wfdb
from conftest import MITBIH
from harness import (
    contents,
    cut,
    damaged,
    files_up_to,
    outputs,
    put_invalid_sample,
    replace,
    run_stage,
)

import preprocess_mitbih as stage

RECORDS = ("101", "102", "114", "118")
BEATS = "NLRBejnAaJSVErF/fQ?"
ARRAYS = ("signals", "labels", "metadata", "records")


@pytest.fixture
def database(work):
    """Four records of 20 s -> dict of record -> (samples, symbols) of all annotations."""
    return simulate.write_mitbih(work / MITBIH, records=RECORDS, seconds=20)


def run(name="mitbih", **constants):
    """Runs the script -> the dataset that it wrote."""
    run_stage(stage, NAME=name, **constants)
    return stage.load_dataset(name)


def beat_positions(annotations):
    return [int(s) for s, symbol in zip(*annotations) if symbol in BEATS]


def lead_of(record, lead):
    """One lead of a record as wfdb reads it -> (samples,) float32 mV."""
    physical, _ = wfdb.rdsamp(f"{MITBIH}/{record}", channel_names=[lead])
    return physical[:, 0].astype(np.float32)


# ---- Beats ----

def test_every_complete_beat_is_a_row_and_nothing_else(database):
    data = run()
    expected = [(record, sample, symbol) for record, annotations in database.items()
                for sample, symbol in zip(*annotations)
                if symbol in BEATS and 180 <= sample <= 20 * 360 - 180]
    assert list(zip(data.record, data.metadata["sample"], data.metadata["symbol"])) == expected
    assert data.signals.shape == (len(expected), 1, 360)
    assert (data.signals.dtype, data.labels.dtype) == (np.float32, np.int64)
    class_of = {s: name for name, symbols in stage.CLASS_MAPS["aami"].items() for s in symbols}
    classes = [data.header.class_names[label] for label in data.labels]
    assert classes == [class_of[symbol] for _, _, symbol in expected]


@pytest.mark.parametrize("record, lead", [("101", "MLII"), ("114", "MLII"), ("102", "V5")])
def test_signals_are_the_lead_by_name_in_millivolts(database, record, lead):
    data = run()
    rows = data.record == record
    voltage = lead_of(record, lead)
    expected = [voltage[sample - 180:sample + 180] for sample in data.metadata["sample"][rows]]
    np.testing.assert_array_equal(data.signals[rows, 0], expected)
    entry = data.header.records[RECORDS.index(record)]
    assert (entry["name"], entry["leads"], entry["samples"]) == (record, [lead], 7200)
    start = 7200 * RECORDS.index(record)
    np.testing.assert_array_equal(data.records[start:start + 7200], voltage)


def test_rr_intervals_count_every_beat_of_the_record(database):
    data = run()
    for record, annotations in database.items():
        beats = beat_positions(annotations)
        padded = np.pad(np.diff(beats) / 360, 10, constant_values=np.nan)
        rows = data.metadata[data.record == record]
        for row in rows:
            k = beats.index(row["sample"])
            np.testing.assert_allclose(row["rr"], padded[k:k + 20], rtol=1e-6)
        assert len(np.unique(rows["rr_record"], axis=0)) == 1
        np.testing.assert_allclose(rows["rr_record"][0, 0], np.nanmedian(padded), rtol=0.05)


@pytest.mark.parametrize("sample, rr_record", [
    ([360, 720, 1440], [1.5, 1.1, 1.25, 1.75, 1.9]),   # before the beats: unknown = 1.5, 1, 2 s
    ([360, 720, 4320], [5.5, 1.8, 3, 5, 5]),           # a pause of 10 s counts as 5 s
    ([360], [1, 1, 1, 1, 1]),
])
def test_rr_fields_equal_a_computation_by_hand(sample, rr_record):
    table = stage.beat_table(np.array(sample), 360)
    np.testing.assert_allclose(table["rr_record"], [rr_record] * len(sample), rtol=1e-6)
    intervals = np.diff(sample) / 360
    assert np.isfinite(table["rr"]).sum() == len(sample) * len(intervals)
    for k, rr in enumerate(table["rr"]):
        np.testing.assert_allclose(rr[10 - k:10 - k + len(intervals)], intervals)


def test_what_is_left_out_is_counted(database, capsys):
    rows = len(run().labels)
    printed = capsys.readouterr().out
    beats = sum(len(beat_positions(of_record)) for of_record in database.values())
    assert rows < beats
    assert f"{beats - rows}  beats too near to the ends of the record" in printed


def test_odd_segments_fill_up_to_the_last_sample():
    signals = np.arange(200.0).reshape(2, 100)
    beats, complete = stage.cut_beats(signals, np.array([4, 5, 94, 95]), 11)
    assert complete.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(beats, [signals[:, :11], signals[:, 89:]])


def test_a_record_shorter_than_a_segment_has_no_rows(database):
    assert run(SEGMENT=20_000).signals.shape == (0, 1, 20_000)


# ---- Leads and sampling rate ----

def test_lead_absent_skip_leaves_the_record_out_and_says_so(database, capsys):
    assert set(run(LEAD_ABSENT="skip").record) == {"101", "114", "118"}
    assert "record 102: no lead MLII, only V5, V2" in capsys.readouterr().out


def test_several_leads_are_kept_together(database):
    data = run(LEADS=["V1", "MLII"], LEAD_ABSENT="skip")
    assert set(data.record) == {"101", "118"}   # 102 and 114 have V5
    assert data.header.leads == ["V1", "MLII"]
    voltage = np.stack([lead_of("118", "V1"), lead_of("118", "MLII")], axis=1)
    row = np.flatnonzero(data.record == "118")[3]
    sample = data.metadata["sample"][row]
    np.testing.assert_array_equal(data.signals[row], voltage[sample - 180:sample + 180].T)
    np.testing.assert_array_equal(data.records[7200:], voltage)


def test_leads_without_a_name_stand_in_by_their_place(database, work):
    for name in (b" V5", b" V2"):
        replace(work / MITBIH / "102.hea", name, b"")
    data = run(LEADS=["MLII", "V1"], RECORDS=["102"])
    physical, _ = wfdb.rdsamp(f"{MITBIH}/102")
    np.testing.assert_array_equal(data.records, physical.astype(np.float32))


@pytest.mark.parametrize("rate", [128, 257])
def test_another_database_is_resampled_with_its_annotations(work, capsys, rate):
    truth = simulate.write_mitbih(work / MITBIH, records=["101"], seconds=20)["101"]
    leads = ["ECG1", "ECG2"]
    simulate.write_at_rate(work / MITBIH, work / "svdb", {"101": "800"}, rate, leads)
    data = run("svdb", DATA_DIR="svdb", LEADS=["ECG1"])
    sample = data.metadata["sample"]
    inner = (sample >= 182) & (sample <= 7200 - 182)
    expected = [s for s in beat_positions(truth) if 182 <= s <= 7200 - 182]
    np.testing.assert_allclose(sample[inner], expected, atol=2)
    row = np.flatnonzero(inner)[5]
    segment = lead_of("101", "MLII")[sample[row] - 180:sample[row] + 180]
    assert np.corrcoef(data.signals[row, 0], segment)[0, 1] > 0.95
    assert data.header.records[0]["subset"] == "test"
    assert f"resampled from {rate} to 360 Hz" in capsys.readouterr().out


# ---- Classes and split ----

def test_class_maps_are_the_published_ones():
    published = {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"}
    assert {name: set(symbols) for name, symbols in stage.CLASS_MAPS["aami"].items()} == {
        name: set(symbols) for name, symbols in published.items()}
    assert sorted("".join(published.values())) == sorted(BEATS)
    clinical = "".join(stage.CLASS_MAPS["clinical"].values())
    assert sorted(clinical) == sorted(set(BEATS) - set("QB?"))


def test_clinical_classes_leave_out_unclassifiable_beats(database, capsys):
    annotation = wfdb.rdann(f"{MITBIH}/101", "atr")
    annotation.symbol[5] = "Q"
    wfdb.wrann("101", "atr", annotation.sample, annotation.symbol, write_dir=MITBIH)
    data = run(CLASS_MAP="clinical", RECORDS=["101"])
    samples = data.metadata["sample"]
    assert annotation.sample[4] in samples and annotation.sample[5] not in samples
    voltage = lead_of("101", "MLII")
    expected = [voltage[sample - 180:sample + 180] for sample in samples]
    np.testing.assert_array_equal(data.signals[:, 0], expected)
    assert data.header.class_names == list(stage.CLASS_MAPS["clinical"])
    outside = annotation.symbol[1:-1].count("Q")
    assert f"{outside}  beats outside the class map 'clinical'" in capsys.readouterr().out


def test_the_split_is_complete_and_disjoint_and_two_records_share_a_patient(prepared):
    data = stage.load_dataset("mitbih")
    subsets = [record["subset"] for record in data.header.records]
    assert {name: subsets.count(name) for name in subsets} == {"DS1": 22, "DS2": 22, "paced": 4}
    assert len(set(data.record)) == 48 and len(set(data.patient)) == 47
    assert set(data.patient[data.record == "202"]) == set(data.patient[data.record == "201"])


def published_beats():
    """Beats as many as published, all of a subset in its first record -> beats, records."""
    counts = {subset: np.array(published[1:]) for subset, published in stage.PUBLISHED.items()}
    counts["paced"] = counts["all"] - counts["DS1"] - counts["DS2"]
    records, record, symbol = [], [], []
    for subset, names in stage.SUBSETS.items():
        record += [len(records)] * counts[subset].sum()
        symbol += np.repeat(list("NAVF/"), counts[subset]).tolist()
        records += [{"name": name, "subset": subset, "simulated": False} for name in names.split()]
    beats = np.zeros(len(record), stage.BEAT_FIELDS)
    beats["record"] = record
    beats["symbol"] = symbol
    return beats, records


def test_published_counts_are_compared_to_the_beat():
    beats, records = published_beats()
    assert len(beats) == 109_494
    assert stage.check_published(beats, records).endswith(": DS1, DS2, all")
    ds1 = beats[beats["record"] < 22]
    assert stage.check_published(ds1, records[:22]).endswith(": DS1")
    for some_beats, some_records in (
            (ds1[ds1["record"] < 21], records[:21]),
            (beats, [record | {"simulated": True} for record in records])):
        assert "not compared" in stage.check_published(some_beats, some_records).lower()
    beats["symbol"][np.flatnonzero(beats["symbol"] == "A")[-1]] = "N"   # in a record of DS2
    with pytest.raises(SystemExit, match="DS2 has .44260, 1836, .* but .44259, 1837, "):
        stage.check_published(beats, records)


def test_the_report_counts_beats_by_class_and_subset(capsys):
    beats = np.zeros(5, stage.BEAT_FIELDS)
    beats["record"] = [0, 0, 0, 1, 2]
    records = [{"subset": "DS1"}, {"subset": "DS1"}, {"subset": "DS2"}]
    stage.print_report(beats, np.array([0, 0, 2, 2, 0]), records)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in ("DS1 DS2 all", "N 2 1 3", "S 0 0 0", "V 2 0 2", "all 4 1 5"):
        assert row.split() in lines


# ---- Damaged input ----

def annotate_beyond_the_end(folder):
    wfdb.wrann("118", "atr", np.array([100, 7200]), ["N", "N"], write_dir=str(folder))


DAMAGES = {   # regular expression for the message -> what is done to the folder
    "arrhythmia.*RECORDS is not in .*demo.py": lambda folder: folder.rename("elsewhere"),
    "RECORDS is not in": lambda folder: (folder / "RECORDS").unlink(),
    "record 118: .*missing.*118.dat": lambda folder: (folder / "118.dat").unlink(),
    "record 118: .*missing.*118.hea": lambda folder: (folder / "118.hea").unlink(),
    "118.atr is missing": lambda folder: (folder / "118.atr").unlink(),
    "118.*do not fit together": lambda folder: cut(folder / "118.dat", 5000),
    "118.*damaged.*record line":
        lambda folder: (folder / "118.hea").write_bytes(b"\x00\xff nonsense"),
    "118.*fs = 20, but all records of this database have 360":
        lambda folder: replace(folder / "118.hea", b" 360 ", b" 20 "),
    "118.*adc_gain = 200.0 300.0, but all":
        lambda folder: replace(folder / "118.hea", b" 200.0(", b" 300.0("),
    "118.*21600 bytes.*7000 samples make 21000":
        lambda folder: replace(folder / "118.hea", b" 7200", b" 7000"),
    "118.*21610 bytes.*7200 samples make 21600":
        lambda folder: replace(folder / "118.dat", b"", bytes(10)),
    "118.*checksums": lambda folder: (folder / "118.dat").write_bytes(bytes(21600)),
    "118.*units uV": lambda folder: replace(folder / "118.hea", b"/mV", b"/uV", 2),
    "118.*1 samples of lead MLII are invalid":
        lambda folder: put_invalid_sample(folder / "118", -2048),
    "118.*annotation file": lambda folder: (folder / "118.atr").write_bytes(b"\x07\xff\x13" * 9),
    "118.*no end mark": lambda folder: cut(folder / "118.atr", 60),
    "118.*unknown note":
        lambda folder: replace(folder / "118.atr", b"time resolution", b"time revolution"),
    "118.*not in time order within 7200 samples": annotate_beyond_the_end,
}


@pytest.mark.parametrize("message", DAMAGES)
def test_bad_input_stops_with_one_sentence_and_keeps_earlier_outputs(database, work, message):
    run()
    before = outputs(work)
    DAMAGES[message](work / MITBIH)
    with pytest.raises(SystemExit, match=message) as error:
        run()
    assert "\n" not in str(error.value)
    assert outputs(work) == before


def test_bad_records_can_be_skipped_and_are_counted(database, work, capsys):
    (work / MITBIH / "118.dat").unlink()
    assert set(run(BAD_RECORDS="skip").record) == {"101", "102", "114"}
    assert "1  record 118: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="none of 1 records .*118: .*missing"):
        run(BAD_RECORDS="skip", RECORDS=["118"])


@pytest.mark.parametrize("kind", ["hea", "dat", "atr"])
def test_damaged_records_end_in_a_sentence_or_the_right_result(database, work, kind):
    path = work / MITBIH / f"101.{kind}"
    content = path.read_bytes()
    right = stage.read_record("101")
    chance = random.Random(kind)
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(content, chance))
        try:
            record = stage.read_record("101")
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        np.testing.assert_array_equal(record.signals, right.signals)
        if kind != "atr":   # an annotation file has no checksum
            np.testing.assert_array_equal(record.sample, right.sample)
    assert refused > 10


# ---- Constants ----

@pytest.mark.parametrize("records, read", [
    ([101, "114"], {"101", "114"}), (["114", "114"], {"114"})])
def test_records_are_named_by_text_or_number_and_read_once(database, records, read):
    data = run(RECORDS=records)
    assert set(data.record) == read and len(data.header.records) == len(read)


@pytest.mark.parametrize("constants, message", [
    ({"CLASS_MAP": "amii"}, "CLASS_MAP = 'amii': expected one of aami, clinical"),
    ({"LEAD_ABSENT": "no"}, "LEAD_ABSENT = 'no': expected one of first, skip"),
    ({"BAD_RECORDS": "?"}, "BAD_RECORDS = '?': expected one of stop, skip"),
    ({"LEADS": "MLII"}, "LEADS = 'MLII': expected a list of lead names"),
    ({"LEADS": []}, "LEADS = []: expected a list of lead names"),
    ({"RECORDS": []}, "none of 0 records"),
])
def test_unknown_constants_are_named(database, constants, message):
    with pytest.raises(SystemExit) as error:
        run(**constants)
    assert str(error.value).startswith(message)


def test_run_stage_merges_a_dict_and_restores_it(database):
    aami = stage.CLASS_MAPS["aami"]
    data = run(CLASS_MAPS={"aami": {"N": "N"}})
    assert set(data.metadata["symbol"]) & set("LR") == set() and "Q" in data.header.class_names
    assert stage.CLASS_MAPS["aami"] is aami and aami["N"] == "NLRBejn"


# ---- Files ----

@pytest.mark.parametrize("row_shape", [(), (3, 5)])
def test_row_writer_equals_numpy_save(work, row_shape):
    rows = np.random.default_rng(0).normal(size=(1234, *row_shape)).astype(np.float32)
    writer = stage.RowWriter("rows.npy", row_shape)
    for part in np.array_split(rows, 7):
        writer.append(part)
    writer.close()
    np.save("numpy.npy", rows)
    assert Path("rows.npy").read_bytes() == Path("numpy.npy").read_bytes()


def test_new_files_vanish_after_an_error(work):
    (work / "a").write_text("old")
    with pytest.raises(RuntimeError), stage.new_files("a", "b") as (a, b):
        a.write_text("new")
        b.write_text("new")
        raise RuntimeError
    assert contents(work) == {"a": b"old"}


def test_earlier_outputs_stay_when_the_disk_is_full(database, work):
    run()
    before = outputs(work)
    with files_up_to(20_000), pytest.raises(
            SystemExit, match="cannot write mitbih_signals.npy, .*File too large"):
        run()
    assert outputs(work) == before


def test_the_header_names_leads_versions_and_the_sha256_of_each_array(database):
    header = run(LEAD_ABSENT="skip").header
    assert (header.dataset, header.class_map, header.simulated) == ("mitbih", "aami", True)
    assert header.leads == ["MLII"] and header.sampling_rate == 360
    assert header.lead_absent == "skip" and header.versions["wfdb"] == wfdb.__version__
    assert header.sha256 == {
        part: hashlib.sha256(Path(f"mitbih_{part}.npy").read_bytes()).hexdigest()
        for part in ARRAYS}


def flip_last_bit(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def take_from_other_run(path):
    for other in path.parent.glob("*.npy"):
        shutil.copy(other, f"{other}.kept")
    run(RECORDS=["101", "118"])
    for kept in path.parent.glob("*.kept"):
        if kept.stem != path.name:
            kept.rename(kept.with_suffix(""))


@pytest.mark.parametrize("part", [*ARRAYS, "header"])
@pytest.mark.parametrize("damage, message", [
    (Path.unlink, "mitbih_{part}.npy is not in this folder"),
    (lambda path: cut(path, 100), "the mitbih_.*.npy files are damaged"),
    (flip_last_bit, "mitbih_{part}.npy has (another SHA-256|a wrong checksum)"),
    (take_from_other_run, "npy has another SHA-256 than the header says"),
])
def test_load_dataset_refuses_a_missing_damaged_or_mixed_file(
        database, work, part, damage, message):
    run()
    damage(work / f"mitbih_{part}.npy")
    with pytest.raises(SystemExit, match=message.format(part=part)) as error:
        stage.load_dataset("mitbih")
    assert str(error.value).endswith("with: python preprocess_mitbih.py")
    assert "\n" not in str(error.value)
