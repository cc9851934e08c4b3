"""preprocess_mitbih.py on simulated records whose beats are known by construction."""

import copy
import hashlib
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import simulate
import wfdb
from conftest import MITBIH
from harness import (
    changed,
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
ARRAYS = ("signals", "labels", "metadata", "annotations", "records")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with four records of 20 s, and dict of record -> (samples, symbols)."""
    folder = tmp_path_factory.mktemp("mitbih")
    return folder, simulate.write_mitbih(folder, records=RECORDS, seconds=20)


@pytest.fixture
def database(work, written):
    """A copy of the four records -> dict of record -> (samples, symbols) of all annotations."""
    folder, annotations = written
    shutil.copytree(folder, work / MITBIH)
    return copy.deepcopy(annotations)


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


RHYTHM = np.tile([300, 250, 310, 420, 280, 333], 20)   # RR intervals at 360 Hz


@pytest.fixture
def pulses(work):
    """A record p of pulses, 60 s at 360 Hz -> the positions of its R peaks; all are annotated."""
    Path(MITBIH).mkdir()
    peaks = np.cumsum(RHYTHM)
    peaks = peaks[peaks < 60 * 360 - 200]
    simulate.write_record(MITBIH, "p", simulate.pulse_ecg(peaks, 60 * 360, 360), 360)
    simulate.write_marks(MITBIH, "p", peaks, ["N"] * len(peaks))
    return peaks


def annotate(sample, symbols="", **more):
    """Writes other annotations of record p: N, unless symbols say other."""
    simulate.write_marks(MITBIH, "p", sample, symbols or "N" * len(sample), **more)


# ---- Beats ----

def test_every_complete_beat_is_a_row_and_nothing_else(database):
    data = run()
    rows = data.annotations["row"].to_numpy()
    symbols = data.annotations["symbol"].to_numpy(str)
    sample = data.annotations["sample"].to_numpy()
    expected = [(record, s, symbol) for record, annotations in database.items()
                for s, symbol in zip(*annotations)]
    assert list(zip(data.annotations["record"], sample, symbols)) == expected
    assert rows[rows >= 0].tolist() == list(range(len(data.labels)))   # in order, each one once
    is_row = (rows >= 0)
    assert np.isin(symbols[is_row], list(BEATS)).all()
    to_the_end = np.minimum(sample, 7200 - sample)
    assert is_row[np.isin(symbols, list(BEATS)) & (to_the_end > 200)].all()
    assert (to_the_end[is_row] > 160).all()
    assert (data.metadata["symbol"] == symbols[is_row]).all()
    assert (data.record == data.annotations["record"][is_row].to_numpy(str)).all()
    assert np.abs(data.metadata["sample"] - sample[is_row]).max() < 25   # R peaks: 70 ms
    assert data.signals.shape == (len(data.labels), 2, 360)
    assert (data.signals.dtype, data.labels.dtype) == (np.float32, np.int64)
    class_of = {s: name for name, symbols in stage.CLASSES.items() for s in symbols}
    classes = [data.header.class_names[label] for label in data.labels]
    assert classes == [class_of[symbol] for symbol in symbols[is_row]]
    of_annotation = data.annotations["label"].to_numpy()
    np.testing.assert_array_equal(of_annotation[is_row], data.labels)
    assert (of_annotation[~np.isin(symbols, list(BEATS))] == -1).all()


@pytest.mark.parametrize("record, leads", [
    ("101", {"MLII": "MLII", "V1": "V1"}), ("114", {"MLII": "MLII"}), ("102", {"MLII": "V5"})])
def test_signals_are_the_leads_by_name_in_millivolts_and_0_where_absent(database, record, leads):
    data = run()
    rows = data.record == record
    entry = data.header.records[RECORDS.index(record)]
    assert (entry["name"], entry["leads"], entry["samples"]) == (record, leads, 7200)
    start = 7200 * RECORDS.index(record)
    for place, lead in enumerate(["MLII", "V1"]):
        voltage = lead_of(record, leads[lead]) if lead in leads else np.zeros(7200)
        expected = [voltage[sample - 180:sample + 180] for sample in data.metadata["sample"][rows]]
        np.testing.assert_array_equal(data.signals[rows, place], expected)
        np.testing.assert_array_equal(data.records[start:start + 7200, place], voltage)


def test_a_beat_has_the_statements_of_its_symbol_and_of_its_rhythm(pulses):
    """Rhythms are told once, where they begin; NORM is about the beat alone."""
    symbols = [*"NNVN", *"NAN", *"LR/fEaS", *"NNN"]
    rhythms = {0: "(N", 4: "(AFIB", 7: "(P", 14: "(SVTA", 16: "(NOD"}
    marks = [(int(peak), symbol, "") for peak, symbol in zip(pulses, symbols)]
    marks += [(int(pulses[k]) - 5, "+", rhythm) for k, rhythm in rhythms.items()]
    sample, symbol, aux = zip(*sorted(marks))
    wfdb.wrann("p", "atr", np.array(sample), list(symbol), aux_note=list(aux), write_dir=MITBIH)
    data = run(RECORDS=["p"])
    assert set(np.unique(data.metadata["statements"])) == {-1, 100}
    names = np.array(data.header.statement_names)
    found = [" ".join(names[row >= 0]) for row in data.metadata["statements"]]
    assert found == ["NORM", "NORM", "PVC", "NORM", "NORM AFIB", "PAC AFIB", "NORM AFIB",
                     "CLBBB PACE", "CRBBB PACE", "PACE", "PACE", "PVC PACE", "PAC PACE",
                     "PAC PACE", "NORM SVTAC", "NORM SVTAC", "NORM"]
    assert data.metadata["rhythm"].tolist() == (
        ["(N"] * 4 + ["(AFIB"] * 3 + ["(P"] * 7 + ["(SVTA"] * 2 + ["(NOD"])
    assert list(names) == list(stage.STATEMENTS)
    marked = [mark for marks in stage.STATEMENTS.values() for mark in marks.split()]
    assert len(set(marked)) == len(marked)


def test_detected_beats_have_the_statements_of_their_partners(pulses):
    annotate(np.delete(pulses, 4), "V" + "N" * (len(pulses) - 2))
    data = run(RECORDS=["p"], R_PEAKS="detected")
    norm, pvc = data.metadata["statements"][:, :2].T
    assert pvc.tolist() == [100] + [-1] * (len(pulses) - 1)
    assert np.flatnonzero(norm < 0).tolist() == [0, 4]   # where there is no mark, there is none


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


def test_records_shorter_than_a_segment_stop_the_run(database, work):
    run()
    before = outputs(work)
    with pytest.raises(SystemExit, match="no beat of the 4 records .signals in mV.. fills a "
                       "segment of 20000 samples: beats too near to the ends of the record"):
        run(SEGMENT=20_000)
    assert outputs(work) == before


# ---- Where the beats are ----

@pytest.mark.parametrize("mode", ["annotated", "detected"])
def test_positions_of_pulses_are_their_peaks_to_the_sample(pulses, mode):
    data = run(RECORDS=["p"], R_PEAKS=mode)
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert (data.metadata["symbol"] == "N").all() and not data.labels.any()
    np.testing.assert_array_equal(data.annotations["row"], np.arange(len(pulses)))
    np.testing.assert_array_equal(data.signals[:, 0].argmax(axis=1), 180)


@pytest.mark.parametrize("shift", [-6, 6])
def test_marks_moved_by_up_to_19_ms_give_the_same_rows(database, shift):
    names = ["101", "114", "118"]   # not the paced one: two waves of its beats are nearly equal
    right = run(RECORDS=names)
    chance = np.random.default_rng(abs(shift) - shift)
    for record, (sample, symbols) in database.items():
        is_beat = np.isin(symbols, list(BEATS))
        moved = sample + np.where(is_beat, np.sign(shift) * chance.integers(0, 7, len(sample)), 0)
        simulate.write_marks(MITBIH, record, moved.clip(0, 7199), symbols)
    data = run(RECORDS=names)
    data.metadata["rhythm"] = right.metadata["rhythm"]   # the marks have no rhythms here
    assert not np.array_equal(data.annotations["sample"], right.annotations["sample"])
    for part in ("signals", "labels", "metadata", "records"):
        np.testing.assert_array_equal(getattr(data, part), getattr(right, part))


@pytest.mark.parametrize("sign", [1, -1])
def test_recentre_finds_the_largest_wave_from_anywhere_in_the_qrs_complex(sign):
    ecg = np.zeros((2, 3600))
    t = np.arange(-100, 101) / 360
    ecg[0, 900:1101] = sign * np.exp(-.5 * (t / .012) ** 2)
    ecg[1, 905:1106] = 2.5 * sign * np.exp(-.5 * (t / .012) ** 2)   # later, and larger
    ecg += [[.4], [-3]]                                             # on another baseline
    energy = stage.qrs_energy(ecg, 360)
    found = stage.recentre(ecg, energy, np.arange(970, 1036), 360)
    assert set(found) == {1000 + np.abs(ecg - [[.4], [-3]]).sum(axis=0)[1000:].argmax()} == {1004}
    assert len(stage.recentre(ecg, energy, np.zeros(0, int), 360)) == 0


def test_detected_beats_equal_the_annotated_ones_of_a_clean_record(database):
    annotated = run(RECORDS=["101", "114"])
    data = run(RECORDS=["101", "114"], R_PEAKS="detected")
    assert data.header.r_peaks == "detected"
    assert data.header.class_names == ["N", "S", "V", "F", "Q", "not a beat"]
    for part in ("signals", "labels", "metadata", "records"):
        np.testing.assert_array_equal(getattr(data, part), getattr(annotated, part))


def energy_of(heights, rate=100, seconds=60):
    """Beats {s: mV/s} -> (samples,) energy: a triangle of 0.12 s each."""
    values = np.zeros(seconds * rate)
    for second, height in heights.items():
        middle = round(second * rate)
        values[middle - 5:middle + 6] = height * (1 - np.abs(np.arange(-5, 6)) / 6)
    return values


def test_find_beats_leaves_out_t_waves_and_small_peaks():
    beats = {second: 10 for second in range(1, 59)}
    found = stage.find_beats(energy_of(beats), 100)
    np.testing.assert_array_equal(found, 100 * np.arange(1, 59))
    for extra, is_found in (
            ({20.34: 3.9}, False), ({20.34: 4.1}, True),   # a T wave has less than 0.4
            ({20.38: 3.9}, True),                          # and comes within 0.36 s
            ({20.5: 2.1}, False), ({20.5: 2.3}, True),     # less than 0.22 of the others
            ({20.2: 9}, False)):                           # within 0.25 s of a higher one
        (second,) = extra
        assert (round(second * 100) in stage.find_beats(energy_of(beats | extra), 100)) == is_found
    for height, count in ((.19, 0), (.21, 58)):            # mV/s: noise
        assert len(stage.find_beats(energy_of(dict.fromkeys(beats, height)), 100)) == count
    assert len(stage.find_beats(np.zeros(200), 100)) == 0


def test_find_beats_compares_a_peak_with_those_5_s_before_and_after():
    """20 s of large beats, 20 s of small ones, large ones again: of ten, at most five are large."""
    heights = {second: 2 if 20 < second <= 40 else 10 for second in range(1, 60)}
    found = stage.find_beats(energy_of(heights), 100)
    np.testing.assert_array_equal(found, 100 * np.arange(1, 60))


def test_find_beats_leaves_out_a_slow_rise_of_noise():
    """Over 4 s, up to 4 mV/s: within 1 s it rises by 2, which is less than 0.22 of the beats."""
    beats = [second for second in range(1, 60) if not 28 <= second <= 32]
    energy = energy_of(dict.fromkeys(beats, 10))
    energy[2800:3200] += 2 * (1 - np.cos(2 * np.pi * np.arange(400) / 400))
    np.testing.assert_array_equal(stage.find_beats(energy, 100), 100 * np.array(beats))


def test_a_detected_beat_without_a_mark_is_not_a_beat(pulses):
    annotate(np.delete(pulses, [4, 30]))
    data = run(RECORDS=["p"], R_PEAKS="detected")
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert data.header.class_names == [*stage.CLASSES, "not a beat"]
    assert np.flatnonzero(data.labels == 5).tolist() == [4, 30] == np.flatnonzero(
        data.metadata["symbol"] == "").tolist()
    assert np.delete(data.labels, [4, 30]).tolist() == [0] * (len(pulses) - 2)
    assert data.annotations["row"].tolist() == np.delete(np.arange(len(pulses)), [4, 30]).tolist()
    assert (data.annotations["label"] == 0).all()
    assert run(RECORDS=["p"]).header.class_names == ["N", "S", "V", "F", "Q"]


def test_a_mark_without_a_beat_is_missed_and_counted(pulses, capsys):
    marks = np.insert(pulses, 10, pulses[10] - 150)
    annotate(marks, "N" * 10 + "V" + "N" * (len(pulses) - 10))
    data = run(RECORDS=["p"], R_PEAKS="detected")
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert data.annotations["row"].tolist() == np.insert(np.arange(len(pulses)), 10, -1).tolist()
    missed = data.annotations.iloc[10]
    assert (missed["symbol"], missed["label"], missed["sample"]) == ("V", 2, marks[10])
    assert not data.labels.any()
    assert "1  annotated beats that were not detected" in capsys.readouterr().out


def test_detected_beats_too_near_the_ends_have_no_row(work, capsys):
    Path(MITBIH).mkdir()
    peaks = np.array([100, 500, 800, 1200, 3500])
    simulate.write_record(MITBIH, "p", simulate.pulse_ecg(peaks, 3600, 360), 360)
    annotate(peaks)
    for mode in ("annotated", "detected"):
        data = run(RECORDS=["p"], R_PEAKS=mode)
        np.testing.assert_array_equal(data.metadata["sample"], peaks[1:-1])
        assert data.annotations["row"].tolist() == [-1, 0, 1, 2, -1]
        printed = capsys.readouterr().out
        assert "2  beats too near to the ends of the record" in printed
        assert "not detected" not in printed


@pytest.mark.parametrize("end", ["]", None])
def test_in_flutter_a_detected_beat_without_a_mark_has_no_label(pulses, capsys, end):
    """Of the erased beats 5 6 7 and 20, those from [ on are in flutter, up to ] if there is one."""
    kept = np.delete(pulses, [5, 6, 7, 20])
    marks = [*kept, pulses[6], *([pulses[7]] if end else [])]
    annotate(marks, ["N"] * len(kept) + ["[", "]"][:len(marks) - len(kept)])
    data = run(RECORDS=["p"], R_PEAKS="detected")
    expected = np.zeros(len(pulses))
    expected[[5, 20]] = 5
    expected[[6, 7] if end else [6, 7, 20]] = -1
    np.testing.assert_array_equal(data.labels, expected)
    flutter = data.annotations[data.annotations["symbol"].isin(["[", "]"])]
    assert (flutter["row"] == -1).all() and (flutter["label"] == -1).all()
    assert f"{3 - bool(end)}  beats without a label" in capsys.readouterr().out


def test_without_a_reference_all_beats_are_detected_and_none_has_a_label(pulses, capsys):
    Path(MITBIH, "p.atr").unlink()
    data = run(RECORDS=["p"], ANNOTATOR=None)
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert (data.labels == -1).all() and (data.metadata["symbol"] == "").all()
    assert (data.header.annotator, data.header.r_peaks) == (None, "detected")
    assert data.header.class_names == ["N", "S", "V", "F", "Q"]
    assert len(data.annotations) == 0
    assert {"record", "rate", "sample", "row"} <= set(data.annotations)
    assert f"{len(pulses)}  beats without a label" in capsys.readouterr().out


def test_another_annotator_has_another_ending(pulses):
    annotate(pulses[5:9], "NVNV", annotator="qrs")
    data = run(RECORDS=["p"], ANNOTATOR="qrs")
    np.testing.assert_array_equal(data.metadata["sample"], pulses[5:9])
    assert data.metadata["symbol"].tolist() == list("NVNV")
    assert data.header.annotator == "qrs"
    with pytest.raises(SystemExit, match="p.ecg is missing .ANNOTATOR = None"):
        run(RECORDS=["p"], ANNOTATOR="ecg")


# ---- Pairs of annotators ----

@pytest.mark.parametrize("reference, test, pairs", [
    ([], [], []),
    ([100], [], [(0, -1)]),
    ([], [100], [(-1, 0)]),
    ([100, 400], [110, 390], [(0, 0), (1, 1)]),
    ([100], [154], [(0, 0)]), ([100], [155], [(0, -1), (-1, 0)]),      # the window: 54 samples
    ([154], [100], [(0, 0)]), ([155], [100], [(-1, 0), (0, -1)]),
    ([100], [90, 110], [(-1, 0), (0, 1)]),                             # a tie: the later one
    ([90, 110], [100], [(0, -1), (1, 0)]),
    ([100], [98, 103], [(0, 0), (-1, 1)]), ([100], [95, 102], [(-1, 0), (0, 1)]),   # double
    ([98, 103], [100], [(0, 0), (1, -1)]), ([95, 102], [100], [(0, -1), (1, 0)]),
    ([100, 150], [130, 155], [(0, 0), (1, 1)]),   # 130 is nearer to 150, but 155 more so
    ([100, 150], [130, 190], [(0, -1), (1, 0), (-1, 1)]),
    ([100, 400, 700], [100, 700], [(0, 0), (1, -1), (2, 1)]),
])
def test_pairs_by_hand(reference, test, pairs):
    assert stage.pair_beats(reference, test, 360).tolist() == [list(pair) for pair in pairs]


@pytest.mark.parametrize("reference, test, pairs", [
    ([300, 370, 700], [300, 370, 700], [(1, 1), (2, 2)]),    # those before 360 are not compared
    ([100, 370, 700], [340, 700], [(1, 0), (2, 1)]),         # but 340 is the partner of 370
    ([100, 370, 700], [340, 380, 700], [(1, 1), (2, 2)]),    # unless a later one is nearer
    ([370], [310], [(0, -1)]),                               # or it is too far away
    ([350, 700], [362, 710], [(1, 1)]),                      # 362 belongs to 350, before
    ([350, 700], [420, 710], [(-1, 0), (1, 1)]),             # 420 is too late for that
])
def test_pairs_from_a_start_by_hand(reference, test, pairs):
    assert stage.pair_beats(reference, test, 360, 1).tolist() == [list(pair) for pair in pairs]


# ---- A record longer than an hour ----

def write_long(folder, rate):
    """Record h of 2 h and 10 s with pulses on and about both hours -> positions of its R peaks."""
    hour = 3600 * rate
    samples = 2 * hour + 10 * rate
    peaks = np.cumsum(np.tile((RHYTHM * rate / 360).astype(int), 75))
    around = [hour - 4 * rate // 5, hour - 1, hour + rate, 2 * hour - rate, 2 * hour]
    far = np.abs(peaks[:, None] - around).min(axis=1) > rate // 2
    peaks = np.sort(np.append(peaks[far & (peaks < samples - rate)], around))
    Path(folder).mkdir()
    simulate.write_record(folder, "h", simulate.pulse_ecg(peaks, samples, rate), rate)
    return peaks


@pytest.mark.parametrize("mode", ["annotated", "detected"])
@pytest.mark.parametrize("shift", [-2, 0, 2])
def test_a_long_record_is_the_same_as_in_one_piece(work, mode, shift):
    """Marks beside the peaks: some are in another hour than their beat."""
    peaks = write_long("long", 100)
    symbols = np.resize(list("NNVNA"), len(peaks))
    simulate.write_marks("long", "h", peaks + shift, symbols.tolist())
    data = run("other", DATA_DIR="long", R_PEAKS=mode, SAMPLING_RATE=100, SEGMENT=100,
               LEADS="MLII")
    assert len(peaks) > 8000
    np.testing.assert_array_equal(data.metadata["sample"], peaks)
    np.testing.assert_array_equal(data.metadata["symbol"], symbols)
    np.testing.assert_array_equal(data.annotations["row"], np.arange(len(peaks)))
    physical, _ = wfdb.rdsamp("long/h")
    voltage = physical[:, 0].astype(np.float32)
    np.testing.assert_array_equal(data.records, voltage)
    np.testing.assert_array_equal(
        data.signals[:, 0], voltage[peaks[:, None] + np.arange(-50, 50)])


def test_a_long_record_is_resampled_as_in_one_piece(work):
    peaks = write_long("long", 64)
    data = run("other", DATA_DIR="long", ANNOTATOR=None, SAMPLING_RATE=100, SEGMENT=100,
               LEADS="MLII")
    physical, _ = wfdb.rdsamp("long/h")
    whole = stage.resample(physical[:, :1].T, 64, 100).astype(np.float32)
    np.testing.assert_allclose(data.records, whole[0], atol=1e-6)
    energy = stage.qrs_energy(whole, 100)
    sample = stage.recentre(whole, energy, stage.find_beats(energy, 100), 100)
    np.testing.assert_array_equal(data.metadata["sample"], sample)
    np.testing.assert_allclose(data.metadata["sample"], peaks * 100 / 64, atol=1)
    assert data.header.records[0]["rate"] == 64 and (data.annotations.empty)


# ---- Headers and annotations in other forms ----

REC_PEAKS = np.array([300, 900, 1450, 2100, 2800])


def rec_counts():
    """(3600, 2) samples of record rec; its second lead is half as large."""
    ecg = simulate.pulse_ecg(REC_PEAKS, 3600, 360)
    return np.round(1024 + 200 * ecg * [1, .5]).astype(np.int64)


def write_rec(folder, marks=REC_PEAKS, mark_rate=None, counts=None, **header):
    """Writes a record of pulses in format 16; header: other arguments of wfdb.wrsamp."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = rec_counts() if counts is None else counts
    wfdb.wrsamp(write_dir=str(folder), **{
        "record_name": "rec", "fs": 360, "units": ["mV", "mV"], "sig_name": ["MLII", "V5"],
        "d_signal": counts, "fmt": ["16", "16"], "adc_gain": [200, 200],
        "baseline": [1024, 1024]} | header)
    wfdb.wrann("rec", "atr", np.array(marks), ["N"] * len(marks), write_dir=str(folder),
               fs=mark_rate)


def edit_header(edit):
    path = Path("rec/rec.hea")
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def without_optional_fields():
    edit_header(lambda lines: [lines[0], *(" ".join(line.split()[:3]) for line in lines[1:])])


def in_two_files(wrong=0):
    lines = ["rec 2 360 3600"]
    for name, counts in zip("ab", rec_counts().T):
        counts.astype("<i2").tofile(f"rec/{name}.dat")
        lines.append(f"{name}.dat 16 200(1024)/mV 11 1024 {counts[0]} "
                     f"{(counts.sum() + wrong) % 65536} 0 {'MLII' if name == 'a' else 'V5'}")
    edit_header(lambda _: lines)


def in_two_segments():
    """The second one has twice the gain."""
    for name, part, times in (("s0", slice(0, 1500), 1), ("s1", slice(1500, None), 2)):
        write_rec("rec", counts=1024 + times * (rec_counts()[part] - 1024), record_name=name,
                  adc_gain=[200 * times] * 2)
    edit_header(lambda _: ["rec/2 2 360 3600", "s0 1500", "s1 2100"])
    Path("rec/RECORDS").write_text("rec\n")


def in_matlab():
    scipy.io.savemat("rec/rec.mat", {"val": rec_counts().T.astype(np.int16)}, format="4")
    edit_header(lambda lines: [line.replace("rec.dat 16", "rec.mat 16+24") for line in lines])


def with_invalid_pressure():
    counts = rec_counts()
    counts[5, 1] = -32768
    write_rec("rec", counts=counts, units=["mV", "mmHg"])


def in_a_variable_layout():
    """The first segment lacks V5."""
    in_two_segments()
    write_rec("rec", counts=rec_counts()[:1500, :1], record_name="s0", sig_name=["MLII"],
              units=["mV"], fmt=["16"], adc_gain=[200], baseline=[1024])
    Path("rec/all.hea").write_text(
        "all 2 360 0\n" + "".join(f"~ 0 200/mV 16 0 0 0 0 {name}\n" for name in ("MLII", "V5")))
    edit_header(lambda _: ["rec/3 2 360 3600", "all 0", "s0 1500", "s1 2100"])


FORMS = {
    "no checksums, no lead names": without_optional_fields,
    "no length": lambda: edit_header(lambda lines: ["rec 2 360", *lines[1:]]),
    "two files": in_two_files,
    "two segments": in_two_segments,
    "a variable layout": in_a_variable_layout,
    "MATLAB": in_matlab,
    "uV": lambda: write_rec("rec", units=["uV", "uV"], adc_gain=[.2, .2]),
    "V": lambda: write_rec("rec", units=["v", "mV"], adc_gain=[200_000, 1]),
    "MV": lambda: write_rec("rec", units=["MV", "mmHg"]),
    "an invalid sample of another lead": with_invalid_pressure,
    "annotations at 128 Hz":
        lambda: write_rec("rec", marks=np.round(REC_PEAKS * 128 / 360).astype(int), mark_rate=128),
}


@pytest.mark.parametrize("form", FORMS)
def test_records_in_other_forms_are_read_as_the_plain_one(work, form):
    write_rec("rec")
    right = run("other", DATA_DIR="rec")
    assert right.metadata["sample"].tolist() == REC_PEAKS.tolist()
    assert right.signals.max() == right.records.max() == ((rec_counts()[:, 0] - 1024) / 200).max(
        ).astype(np.float32)
    FORMS[form]()
    data = run("other", DATA_DIR="rec")
    for part in ("labels", "metadata"):
        np.testing.assert_array_equal(getattr(data, part), getattr(right, part))
    for part in ("signals", "records"):
        np.testing.assert_allclose(getattr(data, part), getattr(right, part), atol=1e-6)
    np.testing.assert_allclose(data.annotations["sample"], REC_PEAKS, atol=2)


@pytest.mark.parametrize("unit, encoding", [("\u00b5V", "utf8"), ("\u03bcV", "utf8"),
                                            ("\u00b5V", "latin1")])
def test_microvolts_that_wfdb_would_read_as_volts_are_refused(work, unit, encoding):
    write_rec("rec", units=["uV", "uV"])
    header = Path("rec/rec.hea")
    header.write_bytes(header.read_text().replace("uV", unit).encode(encoding))
    with pytest.raises(SystemExit, match="rec: .*it has µV, write uV"):
        run("other", DATA_DIR="rec")
    write_rec("rec")
    with header.open("ab") as file:   # in a comment it harms nothing
        file.write(f"# noise below 5 {unit}\n".encode(encoding))
    assert run("other", DATA_DIR="rec").metadata["sample"].tolist() == REC_PEAKS.tolist()


def test_the_checksums_of_several_files_are_compared(work):
    write_rec("rec")
    in_two_files(wrong=1)
    with pytest.raises(SystemExit, match="rec: the samples contradict the checksums"):
        run("other", DATA_DIR="rec")


def test_another_gain_is_read_as_it_is(work):
    write_rec("rec")
    right = run("other", DATA_DIR="rec")
    write_rec("rec", adc_gain=[100, 200])
    np.testing.assert_allclose(run("other", DATA_DIR="rec").records, 2 * right.records, atol=1e-6)


def test_a_skewed_lead_is_moved_to_its_place(work):
    write_rec("rec")
    right = run("other", DATA_DIR="rec")
    replace(Path("rec/rec.hea"), b"rec.dat 16 ", b"rec.dat 16:5 ")
    data = run("other", DATA_DIR="rec")
    np.testing.assert_array_equal(data.metadata["sample"], REC_PEAKS - 5)
    np.testing.assert_array_equal(data.records[:-5], right.records[5:])
    assert (data.records[-5:] == right.records[-1]).all()   # it ends too early


def test_several_samples_a_frame_become_their_mean(work):
    write_rec("rec", marks=REC_PEAKS // 2)
    frames = rec_counts().reshape(1800, 2, 2).transpose(0, 2, 1)   # frame, lead, sample
    frames.astype("<i2").tofile("rec/rec.dat")
    edit_header(lambda lines: ["rec 2 180 1800", *(
        line.replace("rec.dat 16 ", "rec.dat 16x2 ") for line in lines[1:])])
    data = run("other", DATA_DIR="rec", SAMPLING_RATE=180, SEGMENT=180, LEADS="MLII")
    mean = (frames[:, 0].mean(axis=1) - 1024) / 200
    np.testing.assert_allclose(data.records, mean, atol=.01)   # wfdb rounds it to whole counts
    np.testing.assert_allclose(data.metadata["sample"], REC_PEAKS // 2, atol=1)


@pytest.mark.parametrize("mark", [3599, 3600, 3960])
def test_a_mark_on_the_last_sample_or_right_after_it_is_too_near_to_the_end(work, capsys, mark):
    write_rec("rec", marks=[*REC_PEAKS, mark])
    data = run("other", DATA_DIR="rec")
    assert data.annotations["row"].tolist() == [0, 1, 2, 3, 4, -1]
    assert "1  beats too near to the ends of the record" in capsys.readouterr().out


@pytest.mark.parametrize("name, usual", [
    ("MLII", "II"), ("ECG II", "II"), ("ii", "II"), ("Lead_II", "II"), (" mlii ", "II"),
    ("ECG1", "II"), ("ECG2", "2"), ("V1", "V1"), ("ecg v5", "V5"), ("ML-I", "I"), ("aVR", "AVR")])
def test_lead_names_have_a_usual_form(name, usual):
    assert stage.lead_name(name) == usual


@pytest.mark.parametrize("header, leads", [
    ("ECG II", "MLII"), ("ii", ["MLII"]), ("MLII", "II"), ("ECG1", "II"), ("MLII", ("ECG1",))])
def test_leads_are_found_by_their_usual_name(work, capsys, header, leads):
    write_rec("rec", sig_name=["V5", header])
    data = run("other", DATA_DIR="rec", LEADS=leads)
    assert list(data.header.records[0]["leads"].values()) == [header]
    np.testing.assert_allclose(data.records.max(), (rec_counts()[:, 1].max() - 1024) / 200)
    assert "stands in" not in capsys.readouterr().out


def test_the_first_signal_stands_in_where_the_first_lead_alone_is_absent(work, capsys):
    write_rec("rec", sig_name=["V5", "V1"])
    data = run("other", DATA_DIR="rec", LEADS=["MLII", "V1"])
    expected = (rec_counts() - 1024) / 200
    np.testing.assert_allclose(data.records, expected, atol=1e-6)
    assert data.header.records[0]["leads"] == {"MLII": "V5", "V1": "V1"}
    printed = capsys.readouterr().out
    assert "1  record rec: the first signal stands in for lead MLII" in printed
    assert "lack one of the leads" not in printed


def test_a_record_without_a_beat_is_counted(work, capsys):
    write_rec("rec")
    write_rec("rec", record_name="flat", counts=np.full((3600, 2), 1024))
    data = run("other", DATA_DIR="rec", ANNOTATOR=None)
    assert set(data.record) == {"rec"}
    assert "1  records without a beat" in capsys.readouterr().out


def test_leads_may_be_one_text(database):
    data = run(RECORDS="118", LEADS="V1 MLII")
    assert data.header.leads == ["V1", "MLII"]
    np.testing.assert_array_equal(data.records[:, 1], lead_of("118", "MLII"))


@pytest.mark.parametrize("name, comment, patient", [
    ("rec", "patient 7", "patient 7"), ("rec", "Patient", "rec"), ("rec", "", "rec"),
    ("118e06", "", "118"), ("sel100", "", "100"), ("rec", "made of record 118", "118"),
    ("202x", "patient 7", "patient 7"), ("a/202", "", "201"), ("rec", "record 999", "rec"),
    ("1180", "", "1180"), ("300", "", "300"), ("I01", "patient: 12", "patient 12")])
def test_the_patient_is_that_of_the_comment_or_of_the_original(name, comment, patient):
    header = SimpleNamespace(comments=[comment], leads={"II": "II"}, fs=360, simulated=False)
    with changed(stage, NAME="other"):
        record = stage.describe(name, header, 3600)
    assert (record["name"], record["patient"], record["subset"]) == (name, patient, "test")


# ---- Leads and sampling rate ----

@pytest.mark.parametrize("rate", [100, 128, 250, 257, 1000])
def test_a_constant_baseline_stays_there_to_the_ends(rate):
    resampled = stage.resample(np.full((2, 10 * rate), -.3), rate, 360)
    assert resampled.shape == (2, 3600)
    np.testing.assert_allclose(resampled, -.3, rtol=1e-3)


def test_absent_leads_are_counted(database, capsys):
    run()
    printed = capsys.readouterr().out
    assert "2  records that lack one of the leads" in printed   # 102 and 114 have no V1
    assert "1  record 102: the first signal stands in for lead MLII" in printed


def test_several_leads_are_kept_together(database):
    data = run(RECORDS=["101", "118"], LEADS=["V1", "MLII"])
    assert data.header.leads == ["V1", "MLII"]
    voltage = np.stack([lead_of("118", "V1"), lead_of("118", "MLII")], axis=1)
    row = np.flatnonzero(data.record == "118")[3]
    sample = data.metadata["sample"][row]
    np.testing.assert_array_equal(data.signals[row], voltage[sample - 180:sample + 180].T)
    np.testing.assert_array_equal(data.records[7200:], voltage)


def test_a_first_lead_without_a_name_stands_in(database, work):
    for name in (b" V5", b" V2"):
        replace(work / MITBIH / "102.hea", name, b"")
    data = run(LEADS=["MLII", "V1"], RECORDS=["102"])
    physical, _ = wfdb.rdsamp(f"{MITBIH}/102")
    np.testing.assert_array_equal(data.records[:, 0], physical[:, 0].astype(np.float32))
    assert not data.records[:, 1].any()


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


@pytest.mark.parametrize("rate", [128, 250, 1000])
def test_detected_beats_find_their_partners_at_the_rate_of_the_record(work, rate):
    """Partners are paired at the rate of the record; positions are at SAMPLING_RATE."""
    peaks = np.cumsum(np.tile([300, 250, 310, 420, 280, 333], 10)) * rate // 360
    samples = peaks[-1] + 2 * rate
    Path("other").mkdir()
    simulate.write_record("other", "p", simulate.pulse_ecg(peaks, samples, rate), rate)
    simulate.write_marks("other", "p", np.delete(peaks, 7), ["N"] * (len(peaks) - 1))
    data = run("other", DATA_DIR="other", R_PEAKS="detected")
    np.testing.assert_allclose(data.metadata["sample"], peaks * 360 / rate, atol=2)
    assert np.flatnonzero(data.labels).tolist() == [7] and data.labels[7] == 5
    assert data.annotations["row"].tolist() == np.delete(np.arange(len(peaks)), 7).tolist()


# ---- Classes and split ----

def test_class_maps_are_the_published_ones():
    published = {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"}
    assert {name: set(symbols) for name, symbols in stage.CLASSES.items()} == {
        name: set(symbols) for name, symbols in published.items()}
    assert sorted("".join(published.values())) == sorted(BEATS)


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
    beats = np.zeros(len(record), stage.ANNOTATION_FIELDS)
    beats["record"] = record
    beats["label"] = stage.symbol_labels(np.array(symbol))
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
        assert stage.check_published(some_beats, some_records).endswith(": none is complete")
    for annotator in (None, "qrs"):   # nothing was published of other annotations
        with changed(stage, ANNOTATOR=annotator):
            assert "DS" not in stage.check_published(beats[:0], records)
    beats["label"][np.flatnonzero(beats["label"] == 1)[-1]] = 0   # in a record of DS2
    with pytest.raises(SystemExit, match="DS2 has .44260, 1836, .* but .44259, 1837, "):
        stage.check_published(beats, records)


def test_the_report_counts_beats_by_class_and_subset(capsys):
    beats = np.zeros(5, stage.BEAT_FIELDS)
    beats["record"] = [0, 0, 0, 1, 2]
    records = [{"subset": "DS1"}, {"subset": "DS1"}, {"subset": "DS2"}]
    stage.print_report(beats, np.array([0, 0, 2, 2, -1]), records)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in ("DS1 DS2 all", "N 2 0 2", "S 0 0 0", "V 2 0 2", "no label 0 1 1", "all 4 1 5"):
        assert row.split() in lines


# ---- Damaged input ----

def annotate_beyond_the_end(folder):
    """More than 1 s, which is still a mark of the record."""
    wfdb.wrann("118", "atr", np.array([100, 7561]), ["N", "N"], write_dir=str(folder))


DAMAGES = {   # regular expression for the message -> what is done to the folder
    "arrhythmia.*RECORDS is not in .*demo.py": lambda folder: folder.rename("elsewhere"),
    "RECORDS is not in .* nor any .hea file":
        lambda folder: [path.unlink() for path in [*folder.glob("*.hea"), folder / "RECORDS"]],
    "record 118: .*missing.*118.dat": lambda folder: (folder / "118.dat").unlink(),
    "record 118: .*missing.*118.hea": lambda folder: (folder / "118.hea").unlink(),
    "118.atr is missing": lambda folder: (folder / "118.atr").unlink(),
    "118: its signal file is damaged or does not fit": lambda folder: cut(folder / "118.dat", 5000),
    "118.*damaged.*record line":
        lambda folder: (folder / "118.hea").write_bytes(b"\x00\xff nonsense"),
    "118: sampled at 20 Hz: expected a rate from 50 to 10,000 Hz. Mend or replace it, or set":
        lambda folder: replace(folder / "118.hea", b" 360 ", b" 20 "),
    "118: sampled at 0 Hz": lambda folder: replace(folder / "118.hea", b" 360 ", b" 0 "),
    "118.*contradict the checksums":
        lambda folder: replace(folder / "118.hea", b" 7200", b" 7199"),
    "118: the samples contradict": lambda folder: replace(folder / "118.dat", b"", bytes(12)),
    "118.*checksums": lambda folder: (folder / "118.dat").write_bytes(bytes(21600)),
    "118: units mmhg, mmhg: expected mV, uV or V":
        lambda folder: replace(folder / "118.hea", b"/mV", b"/mmHg", 2),
    "118: samples of its chosen leads are invalid .1 NaN":
        lambda folder: put_invalid_sample(folder / "118", -2048),
    "118.*annotation file": lambda folder: (folder / "118.atr").write_bytes(b"\x07\xff\x13" * 9),
    "118.*no end mark": lambda folder: cut(folder / "118.atr", 60),
    "118.*unknown note":
        lambda folder: replace(folder / "118.atr", b"time resolution", b"time revolution"),
    "118.*not in time order within the record": annotate_beyond_the_end,
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
    """In one line for each reason, without what differs from record to record."""
    for name in ("101", "118"):
        (work / MITBIH / f"{name}.dat").unlink()
    replace(work / MITBIH / "114.hea", b"/mV", b"/mmHg", 2)
    assert set(run(BAD_RECORDS="skip").record) == {"102"}
    printed = capsys.readouterr().out
    assert ("2  records, 101 118 ...: its header or signal file is missing or damaged\n"
            in printed)
    assert "1  records, 114 ...: units mmhg: expected mV, uV or V\n" in printed
    with pytest.raises(SystemExit, match="none of 1 records .*118 ...: .*missing"):
        run(BAD_RECORDS="skip", RECORDS=["118"])


def read(name):
    """Record -> its leads (samples, 1), and the positions of its beats."""
    parts = []
    _, _, positions, _ = stage.cut_record(name, [], parts)
    return np.concatenate(parts), positions


def change_last_sample(path, lead):
    """Of the first (0) or second lead, within the valid range: only the checksum tells."""
    content = bytearray(path.read_bytes())
    content[-1 if lead else -3] ^= 3   # format 212
    path.write_bytes(content)


def test_the_checksums_of_the_chosen_leads_alone_are_compared(database, work):
    right = run(RECORDS=["101"], LEADS=["MLII"])
    change_last_sample(work / MITBIH / "101.dat", 1)
    np.testing.assert_array_equal(run(RECORDS=["101"], LEADS=["MLII"]).records, right.records)
    with pytest.raises(SystemExit, match="101: the samples contradict the checksums"):
        run(RECORDS=["101"], LEADS=["MLII", "V1"])


@pytest.mark.parametrize("lead, mode, column", [("MLII", "annotated", 1), ("V1", "detected", 0)])
def test_a_skipped_record_leaves_the_others_as_they_are_without_it(
        database, work, mode, lead, column):
    """Its beats are written before the checksum is known: they must go again."""
    kept = run(RECORDS=["101", "118"], R_PEAKS=mode, LEADS=[lead])
    before = outputs(work)
    change_last_sample(work / MITBIH / "114.dat", column)   # V5, MLII
    with pytest.raises(SystemExit, match="114: the samples contradict the checksums"):
        run(RECORDS=["101", "114", "118"], R_PEAKS=mode, LEADS=[lead])
    data = run(RECORDS=["101", "114", "118"], R_PEAKS=mode, LEADS=[lead], BAD_RECORDS="skip")
    assert outputs(work) == before and data.header == kept.header
    assert set(data.record) == set(data.annotations["record"]) == {"101", "118"}


def test_a_damaged_last_hour_takes_the_first_ones_back(work):
    for name in ("a", "h", "z"):
        peaks = write_long("long" + name, 64)
        for path in Path("long" + name).iterdir():
            Path("long").mkdir(exist_ok=True)
            content = path.read_bytes().replace(b"h.dat", f"{name}.dat".encode())
            Path("long", name + path.suffix).write_bytes(
                content.replace(b"h 2 64", f"{name} 2 64".encode()))
    change_last_sample(Path("long/h.dat"), 0)
    settings = {"DATA_DIR": "long", "ANNOTATOR": None, "SAMPLING_RATE": 64, "SEGMENT": 64}
    data = run("other", BAD_RECORDS="skip", **settings)
    assert [record["name"] for record in data.header.records] == ["a", "z"]
    half = len(data.labels) // 2
    np.testing.assert_array_equal(data.metadata["sample"], [*peaks, *peaks])
    np.testing.assert_array_equal(data.metadata["record"], np.repeat([0, 1], half))
    np.testing.assert_array_equal(data.signals[:half], data.signals[half:])
    np.testing.assert_array_equal(*data.records.reshape(2, -1))


@pytest.mark.parametrize("text", ["118 0 360 7200", "118/2 2 360 7200\n118a 3600\n118b 3600"],
                         ids=["no signals", "segments that are missing"])
def test_a_header_without_signals_is_named(database, work, text):
    (work / MITBIH / "118.hea").write_text(text + "\n")
    with pytest.raises(SystemExit, match="^record 118: .*") as error:
        run()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["hea", "dat", "atr"])
def test_damaged_records_end_in_a_sentence_or_the_right_result(database, work, kind):
    path = work / MITBIH / f"101.{kind}"
    content = path.read_bytes()
    leads, sample = read("101")
    chance = random.Random(kind)
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(content, chance))
        try:
            result = read("101")
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        if kind != "hea":   # a damaged header may be a valid one, with another gain
            np.testing.assert_array_equal(result[0], leads)
        if kind == "dat":   # an annotation file has no checksum
            np.testing.assert_array_equal(result[1], sample)
    assert refused > 10


# ---- Constants ----

def test_records_in_subfolders_keep_the_folder_in_their_name(work):
    write_rec("other/a")
    write_rec("other/b")
    Path("other/RECORDS").write_text("a/rec\nb/rec\n")
    data = run("other", DATA_DIR="other")
    names = ["a/rec", "b/rec"]
    assert [record["name"] for record in data.header.records] == names
    assert data.record.tolist() == data.patient.tolist() == np.repeat(names, 5).tolist()
    assert data.annotations["record"].tolist() == data.record.tolist()


def test_the_data_may_lie_below_the_home_folder(work, monkeypatch):
    monkeypatch.setenv("HOME", str(work / "home"))
    write_rec("home/ecg")
    assert run("other", DATA_DIR="~/ecg").metadata["sample"].tolist() == REC_PEAKS.tolist()


def test_without_a_list_all_headers_of_the_folder_are_records(database, work):
    (work / MITBIH / "RECORDS").unlink()
    assert [record["name"] for record in run().header.records] == list(RECORDS)


def test_the_list_names_the_records_and_their_order(database, work):
    (work / MITBIH / "RECORDS").write_text("118\n101\n118\n")
    assert [record["name"] for record in run().header.records] == ["118", "101"]


@pytest.mark.parametrize("records, read", [
    ([101, "114"], {"101", "114"}), (["114", "114"], {"114"}), ("118 101", {"101", "118"}),
    (("101", "114"), {"101", "114"}), (118, {"118"}), ("118", {"118"}),
    ("118, 101", {"101", "118"}), (np.array(["101", "114"]), {"101", "114"})])
def test_records_are_named_by_text_or_number_and_read_once(database, records, read):
    data = run(RECORDS=records)
    assert set(data.record) == read and len(data.header.records) == len(read)


@pytest.mark.parametrize("constants, message", [
    ({"R_PEAKS": "qrs"}, "R_PEAKS = 'qrs': expected one of annotated, detected"),
    ({"BAD_RECORDS": "?"}, "BAD_RECORDS = '?': expected one of stop, skip"),
    *(({name: value}, f"{value!r} has no names: expected a list of them, such as")
      for name in ("LEADS", "RECORDS") for value in (None, [], "", {"II"})),
    ({"name": "ptbxl"}, "NAME = 'ptbxl', SAMPLING_RATE = 360: expected another name than ptbxl"),
    ({"SAMPLING_RATE": 360.0}, "NAME = 'mitbih', SAMPLING_RATE = 360.0: expected another name"),
])
def test_unknown_constants_are_named(database, constants, message):
    with pytest.raises(SystemExit) as error:
        run(**constants)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_run_stage_merges_a_dict_and_restores_it(database):
    subsets = stage.SUBSETS
    data = run(SUBSETS={"DS1": "101 114"})
    assert [record["subset"] for record in data.header.records] == [
        "DS1", "paced", "DS1", "test"]   # 118 is in none
    assert stage.SUBSETS is subsets and "118" in subsets["DS1"]


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


@pytest.mark.parametrize("row_shape", [(), (3, 5)])
def test_rows_after_a_truncation_take_the_place_of_those_before(work, row_shape):
    rows = np.random.default_rng(0).normal(size=(20, *row_shape)).astype(np.float32)
    writer = stage.RowWriter("rows.npy", row_shape)
    writer.append(rows[:7])
    writer.append(rows[:9])
    writer.truncate(7)
    assert writer.rows == 7
    writer.append(rows[7:])
    writer.append(rows)
    writer.truncate(20)   # at the end of the file
    writer.close()
    np.save("numpy.npy", rows)
    assert Path("rows.npy").read_bytes() == Path("numpy.npy").read_bytes()


def test_annotations_have_their_record_and_rate(database):
    data = run()
    rows = data.annotations[data.annotations["row"] >= 0]
    np.testing.assert_array_equal(rows["record"].to_numpy(str), data.record[rows["row"]])
    assert set(data.annotations["rate"]) == {360}
    rhythm = data.annotations[data.annotations["symbol"] == "+"]
    assert rhythm["aux"].tolist() == ["(N", "(P", "(N", "(N"]


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
    header = run(RECORDS=["101", "114", "118"]).header
    assert header.simulated and header.statement_names == list(stage.STATEMENTS)
    assert (header.annotator, header.r_peaks, header.symbols) == (
        "atr", "annotated", ["N", "S", "V", "F", "Q"])
    assert header.class_names == ["N", "S", "V", "F", "Q"]
    assert {record["rate"] for record in header.records} == {360}
    assert header.leads == ["MLII", "V1"] and header.sampling_rate == 360
    assert header.versions["wfdb"] == wfdb.__version__
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
    (lambda path: cut(path, 100), "mitbih_.*.npy are damaged"),
    (flip_last_bit, "mitbih_{part}.npy has (another SHA-256|a wrong checksum)"),
    (take_from_other_run, "npy has another SHA-256 than the header says"),
])
def test_load_dataset_refuses_a_missing_damaged_or_mixed_file(
        database, work, part, damage, message):
    run()
    damage(work / f"mitbih_{part}.npy")
    with pytest.raises(SystemExit, match=message.format(part=part)) as error:
        stage.load_dataset("mitbih")
    assert str(error.value).endswith("with preprocess_mitbih.py or preprocess_ptbxl.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["annotated", "detected"])
def test_annotations_that_mark_no_beat_are_refused(pulses, mode):
    simulate.write_record(MITBIH, "flat", np.zeros((7200, 2)), 360)
    simulate.write_marks(MITBIH, "flat", [100], ["+"])
    with pytest.raises(SystemExit, match="^record flat: its annotations mark no beat. Mend or"):
        run("other", RECORDS=["flat", "p"], R_PEAKS=mode)
    data = run("other", RECORDS=["flat", "p"], R_PEAKS=mode, BAD_RECORDS="skip")
    assert set(data.record) == {"p"}


def test_a_record_in_which_no_beat_is_detected_has_no_rows_and_is_no_error(pulses):
    simulate.write_record(MITBIH, "flat", np.zeros((7200, 2)), 360)
    data = run("other", RECORDS=["flat", "p"], ANNOTATOR=None)
    assert [record["name"] for record in data.header.records] == ["flat", "p"]
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert (data.metadata["record"] == 1).all()


def test_a_mark_on_the_last_sample_of_a_resampled_record_has_no_row(work):
    peaks = np.arange(1000, 19_000, 1000)
    Path("other").mkdir()
    simulate.write_record("other", "p", simulate.pulse_ecg(peaks, 20_000, 1000), 1000)
    simulate.write_marks("other", "p", [*peaks, 19_999], ["N"] * (len(peaks) + 1))
    data = run("other", DATA_DIR="other")
    assert data.annotations["row"].tolist() == [*range(len(peaks)), -1]


def test_the_energy_of_a_long_flat_line_is_a_number():
    """After a beat, a running sum of squares may come out below 0."""
    ecg = simulate.pulse_ecg(np.array([100, 500, 800, 1200, 3500]), 3600, 360)
    energy = stage.qrs_energy(ecg.T[:1], 360)
    assert np.isfinite(energy).all()
