"""preprocess_mitbih.py: pieces of 5 s that cannot be read, and missing samples."""

from pathlib import Path

import numpy as np
import pytest
import simulate
from harness import preprocess, put_invalid_sample, rows_of_marks
from test_beats import pulse_peaks, write_pulses

import preprocess_mitbih as stage


def noise(voltage):
    return np.random.default_rng(0).normal(size=voltage.shape)


BAD = {   # mV -> mV; the pulses are 1 mV high, on a baseline of -0.3 mV
    "a flat line": lambda voltage: np.full(voltage.shape, -0.3),
    "a loose electrode": lambda voltage: 0.03 * noise(voltage) - 0.3,
    "noise above the QRS": lambda voltage: voltage + 2 * noise(voltage),
}


TIMES = [(360, 100, 30, 60), (100, 1200, 300, 900)]   # Hz, s of the record, from, to


def write_bad(bad, rate, seconds, start, stop):
    """Writes record p to a new folder, bad from start to stop in s -> positions of all pulses.

    There is none within 0.5 s of start and stop.
    """
    peaks = pulse_peaks(rate, seconds)
    limits = np.array([start, stop]) * rate
    peaks = peaks[np.abs(peaks[:, None] - limits).min(axis=1) > rate // 2]
    write_pulses("bad", peaks, rate, seconds)
    ecg = simulate.pulse_ecg(peaks, seconds * rate, rate)
    part = slice(start * rate, stop * rate)
    ecg[part] = bad(ecg[part])
    simulate.write_record("bad", "p", ecg, rate)
    return peaks


def run(rate=360, **constants):
    """Preprocesses the folder -> dataset, its only record's unreadable parts."""
    data = preprocess("own", DATA_DIR="bad", LEADS=["MLII"], SAMPLING_RATE=rate, SEGMENT=rate,
                      **constants)
    return data, data.header.records[0]["unreadable"]


# ---- Noise ----

@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("times", TIMES)
def test_no_beat_is_written_of_signal_that_cannot_be_read(work, capsys, bad, times):
    rate, seconds, start, stop = times
    peaks = write_bad(BAD[bad], *times)
    data, unreadable = run(rate, ANNOTATOR=None)
    assert unreadable == [[start, stop]]
    outside = (peaks < start * rate) | (peaks >= stop * rate)
    np.testing.assert_allclose(data.metadata["sample"], peaks[outside], atol=1)
    assert len(data.signals) == outside.sum() and len(data.records) == seconds * rate
    assert f"{stop - start}  seconds of unreadable signal\n" in capsys.readouterr().out


@pytest.mark.parametrize("bad", BAD)
def test_annotated_beats_stay_in_noise_and_detected_ones_do_not(work, bad):
    peaks = write_bad(BAD[bad], 360, 100, 30, 60)
    data, unreadable = run()
    assert len(data.labels) == len(peaks) and unreadable == []
    data, unreadable = run(R_PEAKS="detected")
    assert unreadable == [[30, 60]]
    outside = peaks // 360 // 30 != 1
    np.testing.assert_array_equal(rows_of_marks(data) >= 0, outside)
    assert not data.labels.any() and len(data.labels) == outside.sum()   # N


@pytest.mark.parametrize("start, stop", [(30, 40), (32, 41)])
def test_a_short_pause_stays_readable(work, start, stop):
    peaks = write_bad(BAD["a flat line"], 360, 100, start, stop)
    data, unreadable = run(ANNOTATOR=None)
    outside = (peaks < start * 360) | (peaks >= stop * 360)
    np.testing.assert_allclose(data.metadata["sample"], peaks[outside], atol=1)
    assert unreadable == []


def test_a_record_that_cannot_be_read_has_no_row(work):
    write_bad(BAD["a flat line"], 360, 60, 0, 60)
    with pytest.raises(SystemExit, match="^no beat of the 1 records .* fills a segment of 360 "
                                         "samples: seconds of unreadable signal$"):
        run(ANNOTATOR=None)


@pytest.mark.parametrize("pieces, expected", [
    ({}, []),
    ({4: (10, 3.1, 0.49), 7: (10, 2.9, 0.4)}, [4]),        # 0.3 of the usual QRS
    ({4: (10, 3.1, 0.51)}, []),                            # a tachycardia is regular
    (dict.fromkeys([4, 5], (1.4, 0.1, 0.4)), []),          # a pause
    (dict.fromkeys([4, 5, 6], (1.4, 0.1, 0.4)), [4, 5, 6]),
    (dict.fromkeys([4, 5, 6], (1.6, 0.1, 0.4)), []),       # 0.15 of the usual QRS
    (dict.fromkeys([3, 4, 6, 7], (1.4, 0.1, 0.4)), [4, 5, 6]),   # most of five
    (dict.fromkeys([4, 5, 6], (6, 1.9, 0.4)), [4, 5, 6]),  # small noise: 0.3 of its largest
    (dict.fromkeys([4, 5, 6], (6, 1.7, 0.4)), []),
    (dict.fromkeys([4, 5, 6], (6, 1.9, 0.6)), []),
    (dict.fromkeys([4, 5, 6], (7.1, 2.9, 0.4)), []),       # 0.7 of the usual QRS
    (dict.fromkeys(range(12), (0, 0, 0)), range(12)),
    (dict.fromkeys(range(12), (10, 5, 0.4)), range(12)),   # there is no usual QRS
])
def test_unreadable_pieces_by_hand(pieces, expected):
    """Twelve pieces: largest energy, median, regularity; those of an ECG are 10, 1, 0.8."""
    table = np.array([pieces.get(k, (10, 1, 0.8)) for k in range(12)], float)
    assert np.flatnonzero(stage.find_unreadable(*table.T)).tolist() == list(expected)


def test_pieces_are_described_by_largest_energy_median_and_regularity():
    """A saw of 1 s, then noise, then two seconds alone, which are mirrored."""
    saw = np.tile(np.linspace(0, 1, 100), 5)
    rng = np.random.default_rng(0)
    largest, median, regularity = stage.describe_pieces(
        np.concatenate([saw, rng.random(500), saw[:200]]), 100)
    assert largest[0] == largest[2] == 1 and 0.99 < largest[1] < 1
    np.testing.assert_allclose(median, 0.5, atol=0.1)
    assert regularity[0] == pytest.approx(1, abs=0.01)
    assert abs(regularity[1]) < 0.3


# ---- Missing samples ----

@pytest.mark.parametrize("constants", [{}, {"R_PEAKS": "detected"}, {"ANNOTATOR": None}])
def test_one_missing_sample_takes_its_piece_alone(work, constants):
    peaks = pulse_peaks(360, 60)
    write_pulses("bad", peaks, 360, 60)
    right, _ = run(**constants)
    missing = int(peaks[30]) + 40
    put_invalid_sample(Path("bad/p"), -2048, missing)
    data, unreadable = run(**constants)
    piece = missing // 1800
    assert unreadable == [[5 * piece, 5 * piece + 5]]
    outside = peaks // 1800 != piece
    np.testing.assert_array_equal(data.metadata, right.metadata[outside])
    np.testing.assert_array_equal(data.signals, right.signals[outside])
    expected = right.records[:, 0].copy()
    expected[missing] = expected[[missing - 1, missing + 1]].mean()
    np.testing.assert_allclose(data.records[:, 0], expected, atol=1e-6)
    if not constants:
        np.testing.assert_array_equal(rows_of_marks(data) >= 0, outside)


@pytest.mark.parametrize("second", [0, 3595, 3605, 7209.99])   # two are read with both hours
def test_a_missing_sample_of_a_long_resampled_record_is_found_at_its_place(work, second):
    peaks = pulse_peaks(64, 7210)
    write_pulses("bad", peaks, 64, 7210)
    put_invalid_sample(Path("bad/p"), -2048, int(second * 64))
    data, unreadable = run(100)
    assert unreadable == [[second // 5 * 5, second // 5 * 5 + 5]]
    assert len(data.labels) == np.sum(peaks // 320 != second // 5)
    np.testing.assert_allclose(data.records[[0, -1], 0], -0.3, atol=0.01)   # as their neighbours


def test_the_last_sample_may_be_missing_whatever_the_rates_are(work):
    """One sample more than 60 s: at 100 Hz there are 60 s."""
    peaks = pulse_peaks(360, 60)
    write_pulses("bad", peaks, 360, 60)
    ecg = simulate.pulse_ecg(peaks, 60 * 360 + 1, 360)
    simulate.write_record("bad", "p", ecg, 360)
    put_invalid_sample(Path("bad/p"), -2048, 60 * 360)
    data, unreadable = run(100)
    assert unreadable in ([], [[55, 60]]) and len(data.labels) > len(peaks) - 10
