"""What the nets of model_training.py see: signals, features and targets, with their statistics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import changed

import model_training as stage
from preprocess_mitbih import BEAT_FIELDS, beat_table, record_rhythm

TRANSFERRED = {"context_seconds": 10, "align_beats": True, "low_pass": 40,
               "template_distance": True}


def inputs_of(data, rows=slice(None), **settings):
    """MIT-BIH dataset, rows -> signals and features of make_inputs."""
    recipe = {"context_seconds": None, "align_beats": False, "low_pass": None,
              "template_distance": False, "window": 180}
    return stage.make_inputs(data.signals[rows], data.metadata[rows], 360,
                             SimpleNamespace(**recipe | settings))


# ---- Signals ----

def test_the_window_is_the_middle_of_the_beat(prepared):
    data = stage.load_dataset("mitbih")
    whole, _ = inputs_of(data, window=360)
    middle, features = inputs_of(data, window=180)
    torch.testing.assert_close(middle, whole[:, :, 90:270])
    assert features.shape == (len(data.labels), 25)


def test_relative_beats_do_not_change_with_gain_or_offset_of_the_record():
    signals = np.random.default_rng(0).normal(size=(20, 1, 360)).astype(np.float32)
    groups = [np.arange(12), np.arange(12, 20)]
    relative = stage.relative_beats(signals, groups)
    beats = signals[12:, 0] - np.median(signals[12:, 0], axis=1, keepdims=True)
    median = np.median(beats, axis=0)
    np.testing.assert_allclose(relative[12:, 0], beats / np.ptp(median), atol=1e-5)
    np.testing.assert_allclose(relative[12:, 1], (beats - median) / np.ptp(median), atol=1e-5)
    signals[:12] = 3 * signals[:12] + 0.7
    np.testing.assert_allclose(stage.relative_beats(signals, groups), relative, atol=1e-5)


def test_a_flat_lead_stays_flat():
    flat = np.full((4, 1, 180), 0.3, np.float32)
    assert not stage.relative_beats(flat, [np.arange(4)]).any()


def test_in_a_strip_a_beat_knows_its_strip_alone(prepared):
    data = stage.load_dataset("mitbih")
    metadata = data.metadata.tobytes()
    signals, features = inputs_of(data, **TRANSFERRED)
    assert features.shape == (len(signals), 26)   # 25 of the RR intervals, one of the waveform
    assert data.metadata.tobytes() == metadata
    whole = inputs_of(data, **TRANSFERRED | {"context_seconds": None})
    for record, strip in (("119", 1), ("119", 2), ("200", 0)):
        rows = (data.record == record) & (data.metadata["sample"] // 3600 == strip)
        alone = inputs_of(data, rows, **TRANSFERRED)
        torch.testing.assert_close(alone[0], signals[rows])
        torch.testing.assert_close(alone[1], features[rows])
        assert not torch.allclose(whole[0][rows], signals[rows])
        assert not torch.allclose(whole[1][rows], features[rows])


def test_aligned_beats_are_those_of_shifted_positions():
    t = (np.arange(2000) - 1000) / 360
    wave = (np.exp(-(t / 0.02) ** 2) - 0.3 * np.exp(-((t - 0.03) / 0.015) ** 2)
            + 0.2 * np.exp(-((t - 0.25) / 0.05) ** 2))
    shifts = (-20, -7, 0, 12, 25)
    beats = np.stack([wave[820 + shift:1180 + shift] for shift in shifts])[:, None]
    aligned = stage.align_beats(beats, 360)[:, 0, 40:320]
    assert np.abs(beats[:, 0, 40:320] - beats[2, 0, 40:320]).max() > 0.5
    np.testing.assert_allclose(aligned, aligned[[2] * 5], atol=0.05)


def test_low_pass_keeps_what_is_below_the_cutoff_and_removes_what_is_above():
    t = np.arange(3600) / 360
    slow = np.sin(2 * np.pi * 10 * t)
    fast = np.sin(2 * np.pi * 90 * t)
    signals = (slow + fast)[None, None].astype(np.float32)
    filtered = stage.low_pass(signals, 360, 40)
    np.testing.assert_allclose(filtered[0, 0, 360:-360], slow[360:-360], atol=0.05)
    assert filtered.dtype == np.float32
    assert stage.low_pass(signals, 60, 40) is signals   # nothing is above half the rate


def test_leads_are_chosen_by_name_and_12_lead_records_have_no_features(prepared):
    data = stage.load_dataset("ptbxl")
    with changed(stage, DATASET="ptbxl", LEADS=["V1", "II"]):
        examples = stage.make_examples(data, stage.choose_recipe(data))
    np.testing.assert_array_equal(examples.signals, data.signals[:, [6, 1]])
    assert examples.features.shape == (300, 0)


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_targets_and_statements_are_those_of_the_metadata(prepared, task):
    data = stage.load_dataset("ptbxl")
    with changed(stage, DATASET="ptbxl", TASK=task):
        examples = stage.make_examples(data, stage.choose_recipe(data))
    expected = {"multilabel": data.metadata["superclasses"], "multiclass": data.labels}
    np.testing.assert_array_equal(examples.targets, expected[task])
    np.testing.assert_array_equal(examples.statements, data.metadata["statements"] > -1)
    assert 0 < examples.statements.mean() < 1


# ---- Features ----

def test_rhythm_features_of_a_premature_beat_equal_those_by_hand():
    rr = [80] * 12 + [40, 120] + [80] * 12   # samples at 100 Hz
    beats = beat_table(np.cumsum([500, *rr]), 100)
    features = stage.rhythm_features(beats)
    assert features.shape == (27, 25) and features.dtype == np.float32
    early, late = np.log([0.5, 1.5])
    expected = [0, 0, 0, 0, early, late, 0, 0, 0, 0,   # five intervals before, five after
                early, late, late - early, 0,          # around the beat; the mean of those before
                0.4, 1.2, 0,                           # s; spread of those before
                0, 0, 0, 0, early, early, early, early]   # quantiles of the record; over them
    np.testing.assert_allclose(features[13], expected, atol=1e-6)


def test_an_interval_beyond_the_record_counts_as_the_median():
    rr = np.full((40, 20), 0.8)
    rr[0, :10] = np.nan
    rr[1, 10:] = np.nan
    beats = np.zeros(40, BEAT_FIELDS)
    beats["rr"] = rr
    beats["rr_record"] = record_rhythm(rr)
    features = stage.rhythm_features(beats)
    np.testing.assert_allclose(features[:2], features[[2, 2]], atol=1e-6)
    one_beat = stage.rhythm_features(beat_table(np.array([700]), 360))
    assert np.isfinite(one_beat).all()
    assert stage.rhythm_features(beat_table(np.zeros(0, np.int64), 360)).shape == (0, 25)


def test_the_quantiles_tell_a_regular_record_from_fibrillation():
    rr = np.random.default_rng(0).integers(40, 140, 500)
    quantiles = stage.rhythm_features(beat_table(np.cumsum(rr), 100))[0, 17:21]
    expected = np.log(np.quantile(rr, [0.1, 0.25, 0.75, 0.9]) / np.median(rr))
    np.testing.assert_allclose(quantiles, expected, atol=0.01)
    assert quantiles[0] < -0.3 and quantiles[3] > 0.2   # 0 in a regular record


def test_an_ectopic_beat_stands_out_from_its_record_and_a_noisy_record_does_not():
    rng = np.random.default_rng(0)
    beats = np.tile(np.exp(-(np.arange(-90, 90) / 8) ** 2), (60, 1, 1)).astype(np.float32)
    noise = rng.normal(size=beats.shape) * np.repeat([0.02, 0.2], 30)[:, None, None]
    beats[[5, 35]] *= -1
    beats[7, 0, 130:] += 1   # after the QRS complex
    groups = [np.arange(30), np.arange(30, 60)]
    relative = stage.relative_beats(beats + noise, groups)
    distance = stage.template_distance(relative, groups, 360)
    assert distance.shape == (60, 1) and distance.dtype == np.float32
    assert distance[5] > 2 and distance[35] > np.log(1.5)
    assert np.abs(np.delete(distance, [5, 35])).max() < 0.5


@pytest.mark.parametrize("beats", [np.ones((1, 2, 180)), np.zeros((4, 2, 180))])
def test_one_beat_and_a_flat_lead_have_the_usual_distance(beats):
    assert (stage.template_distance(beats, [np.arange(len(beats))], 360) == 0).all()


# ---- Statistics ----

@pytest.mark.parametrize("shape", [(4, 50), (4, 1)])
def test_statistics_are_those_of_the_training_rows(shape):
    rows = np.arange(0, 3000, 3)
    values = np.random.default_rng(0).normal(size=(3000, *shape)).astype(np.float32)
    values = 5 + values * np.float32([[1], [2], [3], [4]])
    values[1] = 1e6   # a row of another side
    normalise = stage.Normalise(4, 1)
    normalise.fit(torch.from_numpy(values), rows)
    mean = values[rows].mean(axis=(0, 2), dtype=float)
    spread = values[rows].std(axis=(0, 2), dtype=float)
    np.testing.assert_allclose(normalise.mean[:, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(normalise.spread[:, 0], spread, rtol=1e-5)


def test_a_net_starts_with_the_statistics_of_its_training_rows(prepared):
    data = stage.load_dataset("mitbih")
    recipe = stage.choose_recipe(data)
    rows = stage.split_rows(data, recipe)
    examples = stage.make_examples(data, recipe)
    net, _ = stage.make_net(examples, rows, recipe, 5)
    features = examples.features[rows["train"]].numpy()
    signals = examples.signals[rows["train"]].numpy()
    np.testing.assert_allclose(net.normalise_features.mean, features.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(net.normalise_signals.spread[:, 0], signals.std(axis=(0, 2)),
                               rtol=1e-3)
