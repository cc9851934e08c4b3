"""preprocess_mitbih.py: positions, segments and labels of beats whose right answer is known."""

from pathlib import Path

import numpy as np
import pytest
import simulate
import wfdb
from conftest import MITBIH
from harness import preprocess, rows_of_marks

import preprocess_mitbih as stage

CLASSES = {"N": {*"NLRBejn"}, "S": {*"AaJS"}, "V": {*"VEr"}, "F": {"F"}, "Q": {*"/fQ?"}}   # EC57
BEATS = [symbol for symbols in CLASSES.values() for symbol in symbols]


def pulse_peaks(rate, seconds):
    """Positions of R peaks at intervals that change, up to 1 s before the end."""
    peaks = np.cumsum(np.tile([300, 250, 310, 420, 280, 333], seconds // 5)) * rate // 360
    return peaks[peaks < (seconds - 1) * rate]


def write_pulses(folder, peaks, rate, seconds):
    """Writes record p to a new folder: a pulse at each peak, marked N."""
    Path(folder).mkdir()
    simulate.write_record(folder, "p", simulate.pulse_ecg(peaks, seconds * rate, rate), rate)
    simulate.write_marks(folder, "p", peaks, ["N"] * len(peaks))


@pytest.fixture
def pulses(work):
    """Record p of 60 s at 360 Hz -> the positions of its R peaks; all are marked."""
    peaks = pulse_peaks(360, 60)
    write_pulses(MITBIH, peaks, 360, 60)
    return peaks


# ---- Rows ----

def test_every_complete_beat_is_a_row_and_nothing_else(database):
    data = preprocess()
    marks = data.annotations
    names = np.array([record["name"] for record in data.header.records])[marks["record"]]
    expected = [(record, s, symbol) for record, annotations in database.items()
                for s, symbol in zip(*annotations)]
    assert list(zip(names, marks["sample"], marks["symbol"])) == expected
    row = rows_of_marks(data)
    is_row = row >= 0
    rows = marks[is_row]
    assert row[is_row].tolist() == list(range(len(data.labels)))   # in order, each one once
    assert np.isin(rows["symbol"], BEATS).all()
    to_the_end = np.minimum(marks["sample"], 7200 - marks["sample"])
    assert is_row[np.isin(marks["symbol"], BEATS) & (to_the_end > 200)].all()
    assert (to_the_end[is_row] > 160).all()
    assert (data.metadata["symbol"] == rows["symbol"]).all()
    assert (data.record == names[is_row]).all()
    assert np.abs(data.metadata["sample"] - rows["sample"]).max() < 25   # R peaks: 70 ms
    assert data.signals.shape == (len(data.labels), 2, 360)
    assert (data.signals.dtype, data.labels.dtype) == (np.float32, np.int64)
    class_of = {s: name for name, symbols in CLASSES.items() for s in symbols}
    classes = [data.header.class_names[label] for label in data.labels]
    assert classes == [class_of[symbol] for symbol in rows["symbol"]]
    np.testing.assert_array_equal(rows["label"], data.labels)
    assert (marks["label"][~np.isin(marks["symbol"], BEATS)] == -1).all()
    assert {record["rate"] for record in data.header.records} == {360}
    subsets = [record["subset"] for record in data.header.records]
    assert subsets == ["DS1", "paced", "DS1", "DS1"]
    assert marks["aux"][marks["symbol"] == "+"].tolist() == ["(N", "(P", "(N", "(N"]


@pytest.mark.parametrize("record, leads", [
    ("101", ["MLII", "V1"]), ("114", ["MLII", None]), ("102", ["V5", None])])
def test_signals_are_the_leads_by_name_in_millivolts_and_0_if_missing(database, record, leads):
    data = preprocess()
    rows = data.record == record
    index = list(database).index(record)
    entry = data.header.records[index]
    assert (entry["name"], entry["leads"], entry["samples"]) == (record, leads, 7200)
    for place, lead in enumerate(leads):
        voltage = np.zeros(7200)
        if lead:
            physical, _ = wfdb.rdsamp(f"{MITBIH}/{record}", channel_names=[lead])
            voltage = physical[:, 0].astype(np.float32)
        expected = [voltage[sample - 180:sample + 180] for sample in data.metadata["sample"][rows]]
        np.testing.assert_array_equal(data.signals[rows, place], expected)
        np.testing.assert_array_equal(data.records.reshape(4, 7200, 2)[index, :, place], voltage)


def test_a_beat_has_the_statements_of_its_symbol_and_of_its_rhythm(pulses):
    """Rhythms are told once, where they begin. NORM is a beat N in sinus or an unknown rhythm."""
    symbols = [*"NNVN", *"NAN", *"LR/fEaS", *"NNN", *"NV", *"NA"]
    rhythms = {1: "(N", 4: "(AFIB", 7: "(P", 14: "(SVTA", 16: "(NOD", 17: "(B", 19: "(AB"}
    marks = [(int(peak), symbol, "") for peak, symbol in zip(pulses, symbols)]
    marks += [(int(pulses[k]) - 5, "+", rhythm) for k, rhythm in rhythms.items()]
    sample, symbol, aux = zip(*sorted(marks))
    wfdb.wrann("p", "atr", np.array(sample), list(symbol), aux_note=list(aux), write_dir=MITBIH)
    data = preprocess(RECORDS=["p"])
    assert set(np.unique(data.metadata["statements"])) == {-1, 100}
    names = np.array(data.header.statement_names)
    found = [" ".join(names[row >= 0]) for row in data.metadata["statements"]]
    assert found == ["NORM", "NORM", "PVC", "NORM", "AFIB", "PAC AFIB", "AFIB",
                     "CLBBB PACE", "CRBBB PACE", "PACE", "PACE", "PVC PACE", "PAC PACE",
                     "PAC PACE", "SVTAC", "SVTAC", "", "BIGU", "PVC BIGU", "BIGU", "PAC BIGU"]
    assert data.metadata["rhythm"].tolist() == (
        ["", *["(N"] * 3] + ["(AFIB"] * 3 + ["(P"] * 7 + ["(SVTA"] * 2 + ["(NOD"]
        + ["(B"] * 2 + ["(AB"] * 2)
    marked = [mark for marks in stage.STATEMENTS.values() for mark in marks.split()]
    assert len(set(marked)) == len(marked)


def test_odd_segments_fill_up_to_the_last_sample():
    signals = np.arange(200.0).reshape(2, 100)
    beats, complete = stage.cut_beats(signals, np.array([4, 5, 94, 95]), 11)
    assert complete.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(beats, [signals[:, :11], signals[:, 89:]])


def test_class_maps_are_the_published_ones():
    assert {name: set(symbols) for name, symbols in stage.CLASSES.items()} == CLASSES


# ---- Where the beats are ----

@pytest.mark.parametrize("shift", [-6, 6])
def test_marks_moved_by_up_to_19_ms_give_the_same_rows(database, shift):
    names = ["101", "114", "118"]   # not the paced one: two waves of its beats are nearly equal
    right = preprocess(RECORDS=names)
    chance = np.random.default_rng(abs(shift) - shift)
    for record, (sample, symbols) in database.items():
        is_beat = np.isin(symbols, BEATS)
        moved = sample + np.where(is_beat, np.sign(shift) * chance.integers(0, 7, len(sample)), 0)
        simulate.write_marks(MITBIH, record, moved.clip(0, 7199), symbols)
    data = preprocess(RECORDS=names)
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


@pytest.mark.parametrize("rate, steepest, highest, expected", [   # samples after the mark
    (360, 43, 64, 54), (360, -43, -64, -54), (360, 43, 54, 54), (360, 40, 60, 54),
    (360, -33, -54, -54), (360, 43, 30, 30), (250, 30, 45, 37), (100, -12, -18, -15),
    (1000, 120, 180, 150)])
def test_recentre_moves_a_mark_by_at_most_as_far_as_beats_may_match(
        rate, steepest, highest, expected):
    """At 0.15 s, 54 samples of 360 Hz, beats are still partners."""
    energy = np.zeros(3 * rate)
    ecg = np.zeros((1, 3 * rate))
    mark = 3 * rate // 2
    energy[mark + steepest] = 1
    ecg[0, mark + highest] = 1
    found = stage.recentre(ecg, energy, np.array([mark]), rate)
    assert found - mark == [expected]
    assert stage.pair_beats([mark], found, rate).tolist() == [[0, 0]]


def test_detected_beats_equal_the_annotated_ones_of_a_clean_record(database):
    annotated = preprocess(RECORDS=["101", "114"])
    data = preprocess(RECORDS=["101", "114"], R_PEAKS="detected")
    assert data.header.r_peaks == "detected"
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
    for second, height, is_found in (
            (20.34, 3.9, False), (20.34, 4.1, True),   # a T wave has less than 0.4
            (20.38, 3.9, True),                        # and comes within 0.36 s
            (20.5, 2.1, False), (20.5, 2.3, True),     # less than 0.22 of the others
            (20.2, 9, False)):                         # within 0.25 s of a higher one
        found = stage.find_beats(energy_of(beats | {second: height}), 100)
        assert (round(second * 100) in found) == is_found
    for height, count in ((.19, 0), (.21, 58)):        # mV/s: noise
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


def test_the_energy_of_a_long_flat_line_is_a_number():
    """After a beat, a running sum of squares may come out below 0."""
    ecg = simulate.pulse_ecg(np.array([100, 500, 800, 1200, 3500]), 3600, 360)
    energy = stage.qrs_energy(ecg.T[:1], 360)
    assert np.isfinite(energy).all()


# ---- Detected beats and their partners ----

def test_a_detected_beat_without_a_mark_is_not_a_beat(pulses):
    marked = np.delete(np.arange(len(pulses)), [4, 30])
    simulate.write_marks(MITBIH, "p", pulses[marked], "V" + "N" * (len(marked) - 1))
    data = preprocess(RECORDS=["p"], R_PEAKS="detected")
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert data.header.class_names == [*stage.CLASSES, "not a beat"]
    assert np.flatnonzero(data.labels == 5).tolist() == [4, 30] == np.flatnonzero(
        data.metadata["symbol"] == "").tolist()
    assert data.labels[marked].tolist() == [2] + [0] * (len(marked) - 1)
    assert rows_of_marks(data).tolist() == marked.tolist()
    np.testing.assert_array_equal(data.annotations["label"], data.labels[marked])
    norm, pvc = data.metadata["statements"][:, :2].T
    assert pvc.tolist() == [100] + [-1] * (len(pulses) - 1)
    assert np.flatnonzero(norm < 0).tolist() == [0, 4, 30]


def test_a_mark_without_a_beat_is_missed_and_counted(pulses, capsys):
    marks = np.insert(pulses, 10, pulses[10] - 150)
    simulate.write_marks(MITBIH, "p", marks, "N" * 10 + "V" + "N" * (len(pulses) - 10))
    data = preprocess(RECORDS=["p"], R_PEAKS="detected")
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert rows_of_marks(data).tolist() == np.insert(np.arange(len(pulses)), 10, -1).tolist()
    missed = data.annotations[10]
    assert (missed["symbol"], missed["label"], missed["sample"]) == ("V", 2, marks[10])
    assert not data.labels.any()
    assert "1  annotated beats that were not detected" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["annotated", "detected"])
def test_detected_beats_too_near_the_ends_have_no_row(work, capsys, mode):
    peaks = np.array([100, 500, 800, 1200, 3500])
    write_pulses(MITBIH, peaks, 360, 10)
    data = preprocess(RECORDS=["p"], R_PEAKS=mode)
    np.testing.assert_array_equal(data.metadata["sample"], peaks[1:-1])
    assert rows_of_marks(data).tolist() == [-1, 0, 1, 2, -1]
    printed = capsys.readouterr().out
    assert "2  beats in unreadable signal, or too near to an end of a record" in printed
    assert "not detected" not in printed


@pytest.mark.parametrize("end", ["]", None])
def test_in_flutter_a_detected_beat_without_a_mark_has_no_label(pulses, capsys, end):
    """Of the erased beats 5 6 7 and 20, those from [ on are in flutter, up to ] if there is one."""
    kept = np.delete(pulses, [5, 6, 7, 20])
    marks = [*kept, pulses[6], *([pulses[7]] if end else [])]
    simulate.write_marks(MITBIH, "p", marks, "N" * len(kept) + ("[]" if end else "["))
    data = preprocess(RECORDS=["p"], R_PEAKS="detected")
    expected = np.zeros(len(pulses))
    expected[[5, 20]] = 5
    expected[[6, 7] if end else [6, 7, 20]] = -1
    np.testing.assert_array_equal(data.labels, expected)
    flutter = data.annotations[np.isin(data.annotations["symbol"], ["[", "]"])]
    assert (flutter["label"] == -1).all()
    assert f"{3 - bool(end)}  beats without a label" in capsys.readouterr().out


def test_without_a_reference_all_beats_are_detected_and_none_has_a_label(pulses, capsys):
    Path(MITBIH, "p.atr").unlink()
    data = preprocess(RECORDS=["p"], ANNOTATOR=None)
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert (data.labels == -1).all() and (data.metadata["symbol"] == "").all()
    assert (data.header.annotator, data.header.r_peaks) == (None, "detected")
    assert data.header.class_names == ["N", "S", "V", "F", "Q"]
    assert data.header.records[0]["subset"] == "left out"   # p is on no side of the split
    assert len(data.annotations) == 0
    assert f"{len(pulses)}  beats without a label" in capsys.readouterr().out


def test_another_annotator_has_another_ending(pulses):
    simulate.write_marks(MITBIH, "p", pulses[5:9], "NVNV", annotator="qrs")
    data = preprocess(RECORDS=["p"], ANNOTATOR="qrs")
    np.testing.assert_array_equal(data.metadata["sample"], pulses[5:9])
    assert data.metadata["symbol"].tolist() == list("NVNV")
    assert data.header.annotator == "qrs"
    with pytest.raises(SystemExit, match="p.ecg is missing .ANNOTATOR = None"):
        preprocess(RECORDS=["p"], ANNOTATOR="ecg")


def test_a_record_in_which_no_beat_is_detected_has_no_rows_and_is_no_error(pulses, capsys):
    simulate.write_record(MITBIH, "flat", np.zeros((7200, 2)), 360)
    data = preprocess("other", RECORDS=["flat", "p"], ANNOTATOR=None)
    assert [record["name"] for record in data.header.records] == ["flat", "p"]
    np.testing.assert_array_equal(data.metadata["sample"], pulses)
    assert (data.metadata["record"] == 1).all()


# ---- Pairs of annotators ----

@pytest.mark.parametrize("start, reference, test, pairs", [
    (0, [], [], []), (0, [100], [], [(0, -1)]), (0, [], [100], [(-1, 0)]),
    (0, [100, 400], [110, 390], [(0, 0), (1, 1)]),
    (0, [100], [154], [(0, 0)]), (0, [100], [155], [(0, -1), (-1, 0)]),   # the window: 54 samples
    (0, [154], [100], [(0, 0)]), (0, [155], [100], [(-1, 0), (0, -1)]),
    (0, [100], [90, 110], [(-1, 0), (0, 1)]),                             # a tie: the later one
    (0, [90, 110], [100], [(0, -1), (1, 0)]),
    (0, [100], [98, 103], [(0, 0), (-1, 1)]), (0, [100], [95, 102], [(-1, 0), (0, 1)]),   # double
    (0, [98, 103], [100], [(0, 0), (1, -1)]), (0, [95, 102], [100], [(0, -1), (1, 0)]),
    (0, [100, 150], [130, 155], [(0, 0), (1, 1)]),   # 130 is nearer to 150, but 155 more so
    (0, [100, 150], [130, 190], [(0, -1), (1, 0), (-1, 1)]),
    (0, [100, 400, 700], [100, 700], [(0, 0), (1, -1), (2, 1)]),
    (1, [300, 370, 700], [300, 370, 700], [(1, 1), (2, 2)]),    # those before 360 are not compared
    (1, [100, 370, 700], [340, 700], [(1, 0), (2, 1)]),         # but 340 is the partner of 370
    (1, [100, 370, 700], [340, 380, 700], [(1, 1), (2, 2)]),    # unless a later one is nearer
    (1, [370], [310], [(0, -1)]),                               # or it is too far away
    (1, [350, 700], [362, 710], [(1, 1)]),                      # 362 belongs to 350, before
    (1, [350, 700], [420, 710], [(-1, 0), (1, 1)]),             # 420 is too late for that
])
def test_pairs_by_hand(start, reference, test, pairs):
    found = stage.pair_beats(reference, test, 360, start)
    assert found.tolist() == [list(pair) for pair in pairs]


# ---- Other sampling rates, and records longer than an hour ----

@pytest.mark.parametrize("rate, target_rate", [
    (100, 360), (128, 360), (250, 360), (257, 360), (1000, 360), (200, 360), (360, 100), (500, 360),
    (360, 500), (360, 360)])
def test_an_offset_stays_as_it_is_to_the_ends(rate, target_rate):
    signals = np.random.default_rng(0).normal(size=(3, 10 * rate))
    signals[2] = -.3   # a flat line
    resampled = stage.resample(signals, rate, target_rate)
    assert resampled.shape == (3, 10 * target_rate)
    np.testing.assert_allclose(resampled[2], -.3, rtol=1e-12)
    np.testing.assert_allclose(stage.resample(signals + 5, rate, target_rate), resampled + 5,
                               rtol=1e-12)


@pytest.mark.parametrize("mode, rate", [
    ("annotated", 128), ("annotated", 257), ("detected", 128), ("detected", 250),
    ("detected", 1000)])
def test_another_database_is_resampled_with_its_annotations(work, capsys, mode, rate):
    """Partners are paired at the rate of the record; positions are at SAMPLING_RATE."""
    peaks = pulse_peaks(rate, 60)
    write_pulses("svdb", peaks, rate, 60)
    marked = np.delete(np.arange(len(peaks)), 7)
    simulate.write_marks("svdb", "p", peaks[marked], "N" * len(marked))
    data = preprocess("svdb", DATA_DIR="svdb", R_PEAKS=mode)
    beats = marked if mode == "annotated" else np.arange(len(peaks))
    np.testing.assert_allclose(data.metadata["sample"], peaks[beats] * 360 / rate, atol=2)
    np.testing.assert_array_equal(data.signals[:, 0].argmax(axis=1), 180)
    np.testing.assert_array_equal(data.annotations["sample"], peaks[marked])
    np.testing.assert_array_equal(beats[rows_of_marks(data)], marked)
    np.testing.assert_array_equal(data.labels, np.where(np.isin(beats, marked), 0, 5))
    assert f"resampled from {rate} to 360 Hz" in capsys.readouterr().out


def write_long(rate):
    """Record p of 2 h and 10 s with pulses on and about both hours -> positions of its R peaks."""
    hour = 3600 * rate
    limits = [hour - 4 * rate // 5, hour - 1, hour + rate, 2 * hour - rate, 2 * hour]
    peaks = pulse_peaks(rate, 7210)
    far = np.abs(peaks[:, None] - limits).min(axis=1) > rate // 2
    peaks = np.sort(np.append(peaks[far], limits))
    write_pulses("long", peaks, rate, 7210)
    return peaks


@pytest.mark.parametrize("mode", ["annotated", "detected"])
@pytest.mark.parametrize("shift", [-2, 0, 2])
def test_a_long_record_is_the_same_as_in_one_piece(work, mode, shift):
    """Marks beside the peaks: some are in another hour than their beat."""
    peaks = write_long(100)
    symbols = np.resize(list("NNVNA"), len(peaks))
    simulate.write_marks("long", "p", peaks + shift, symbols.tolist())
    data = preprocess("other", DATA_DIR="long", R_PEAKS=mode, SAMPLING_RATE=100, SEGMENT=100,
                      LEADS="MLII")
    np.testing.assert_array_equal(data.metadata["sample"], peaks)
    np.testing.assert_array_equal(data.metadata["symbol"], symbols)
    np.testing.assert_array_equal(rows_of_marks(data), np.arange(len(peaks)))
    physical, _ = wfdb.rdsamp("long/p")
    voltage = physical[:, 0].astype(np.float32)
    np.testing.assert_array_equal(data.records[:, 0], voltage)
    np.testing.assert_array_equal(
        data.signals[:, 0], voltage[peaks[:, None] + np.arange(-50, 50)])


def test_a_long_record_is_resampled_as_in_one_piece(work):
    peaks = write_long(64)
    data = preprocess("other", DATA_DIR="long", ANNOTATOR=None, SAMPLING_RATE=100, SEGMENT=100,
                      LEADS="MLII")
    physical, _ = wfdb.rdsamp("long/p")
    whole = stage.resample(physical[:, :1].T, 64, 100).astype(np.float32)
    np.testing.assert_allclose(data.records, whole.T, atol=1e-6)
    energy = stage.qrs_energy(whole, 100)
    sample = stage.recentre(whole, energy, stage.find_beats(energy, 100), 100)
    np.testing.assert_array_equal(data.metadata["sample"], sample)
    np.testing.assert_allclose(data.metadata["sample"], peaks * 100 / 64, atol=1)
    assert data.header.records[0]["rate"] == 64 and not len(data.annotations)
