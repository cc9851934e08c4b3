"""What the nets of model_training.py see: signals, features and targets, with their statistics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import changed

import model_training as stage

STRIPS = {"context_seconds": 10}


def inputs_of(data, rows=slice(None), **settings):
    """MIT-BIH dataset, rows -> signals and features of make_inputs."""
    recipe = {"context_seconds": 1800, "crop": 180, "rate": 360}
    return stage.make_inputs(data.signals[rows], data.metadata[rows],
                             SimpleNamespace(**recipe | settings))


# ---- Signals ----

def test_the_crop_is_the_middle_of_the_beat(prepared):
    data = stage.load_dataset("mitbih")
    whole, _ = inputs_of(data, crop=360)
    middle, features = inputs_of(data, crop=180)
    torch.testing.assert_close(middle, whole[:, :, 90:270])
    assert features.shape == (len(data.labels), 25)


def test_relative_beats_do_not_change_with_gain_or_offset_of_the_record():
    signals = np.random.default_rng(0).normal(size=(8, 2, 360)).astype(np.float32)
    relative = stage.relative_beats(signals, 100)
    assert relative.shape == (8, 4, 100) and relative.dtype == np.float32
    beats = signals - np.median(signals, axis=2, keepdims=True)
    median = np.median(beats, axis=0)
    for lead in (0, 1):
        height = np.ptp(median[lead])
        differences = (beats - median)[:, lead, 130:230]
        np.testing.assert_allclose(relative[:, lead], beats[:, lead, 130:230] / height, atol=1e-5)
        np.testing.assert_allclose(relative[:, 2 + lead], differences / height, atol=1e-5)
    other_gain = stage.relative_beats(3 * signals + 0.7, 100)
    np.testing.assert_allclose(other_gain, relative, atol=1e-5)


def test_a_flat_lead_stays_flat():
    flat = np.full((4, 1, 180), 0.3, np.float32)
    assert not stage.relative_beats(flat, 180).any()


def rows_of(record, sample, length):
    """rows_by_context of beats given as two lists -> list of lists."""
    beats = {"record": np.array(record), "sample": np.array(sample)}
    return [rows.tolist() for rows in stage.rows_by_context(beats, length)]


def test_a_record_is_divided_into_equal_parts_of_about_the_context():
    assert rows_of([0] * 4, [5, 40, 60, 99], 100) == [[0, 1, 2, 3]]
    assert rows_of([0] * 4, [5, 40, 60, 99], 1e9) == [[0, 1, 2, 3]]
    assert rows_of([0] * 6, [0, 70, 119, 120, 180, 239], 100) == [[0, 1, 2], [3, 4, 5]]   # 2.4
    assert rows_of([0] * 6, [0, 70, 119, 120, 180, 259], 100) == [[0, 1], [2, 3], [4, 5]]   # 2.6
    assert rows_of([3, 3, 7, 7], [10, 90, 10, 90], 100) == [[0, 1], [2, 3]]
    assert rows_of([7, 3, 7, 3], [10, 10, 90, 90], 100) == [[1, 3], [0, 2]]
    assert rows_of([3, 3, 7, 7], [10, 199, 10, 140], 100) == [[0], [1], [2, 3]]   # 2, 1.41


def test_in_a_part_of_its_record_a_beat_knows_this_part_alone(prepared):
    data = stage.load_dataset("mitbih")
    metadata = data.metadata.tobytes()
    signals, features = inputs_of(data, **STRIPS)
    assert features.shape == (len(signals), 25)
    assert data.metadata.tobytes() == metadata
    whole = inputs_of(data, **STRIPS | {"context_seconds": 1800})
    for record, part in (("119", 1), ("119", 2), ("200", 0)):   # 40 s, thus four parts
        end = data.metadata["sample"][data.record == record].max() + 1
        rows = (data.record == record) & (4 * data.metadata["sample"] // end == part)
        alone = inputs_of(data, rows, **STRIPS | {"context_seconds": 1800})
        torch.testing.assert_close(alone[0], signals[rows])
        torch.testing.assert_close(alone[1], features[rows])
        assert not torch.allclose(whole[0][rows], signals[rows])
        assert not torch.allclose(whole[1][rows], features[rows])


@pytest.mark.parametrize("settings", [STRIPS, STRIPS | {"context_seconds": 1800}])
def test_a_record_has_the_same_inputs_whatever_else_is_in_the_array(prepared, settings):
    data = stage.load_dataset("mitbih")
    signals, features = inputs_of(data, **settings)
    rows = np.flatnonzero(np.isin(data.record, ["119", "200", "232"]))
    rows = rows[np.argsort(data.metadata["sample"][rows], kind="stable")]   # records interleaved
    assert (np.diff(data.metadata["record"][rows]) < 0).sum() > 10
    mixed = inputs_of(data, rows, **settings)   # row by row in the order of the array
    torch.testing.assert_close(mixed[0], signals[rows])
    torch.testing.assert_close(mixed[1], features[rows])
    rows = np.flatnonzero(data.record == "200")
    alone = inputs_of(data, rows, **settings)
    torch.testing.assert_close(alone[0], signals[rows])
    torch.testing.assert_close(alone[1], features[rows])


@pytest.mark.parametrize("leads", [["V1", "II"], ("V1", "II"), "V1 II"])
def test_leads_are_chosen_by_name_and_12_lead_records_have_features_of_their_rhythm(
        prepared, leads):
    data = stage.load_dataset("ptbxl")
    with changed(stage, DATASET="ptbxl", LEADS=leads):
        home = stage.make_examples(data, stage.choose_recipe(data, {}))
        examples = stage.make_examples(data, stage.choose_recipe(data, stage.STRIPS["ptbxl"]))
    assert home.features.shape == (300, 75) and home.targets.shape == (300, 27)
    np.testing.assert_array_equal(examples.signals, data.signals[:, [6, 1]])
    assert examples.features.shape == (300, 75)
    peaks = data.metadata["beats"][7]
    of_beats = stage.rhythm_features(stage.rr_intervals(peaks[peaks >= 0], 100))
    expected = [of_beats.mean(axis=0), of_beats.min(axis=0), of_beats.max(axis=0)]
    np.testing.assert_allclose(examples.features[7], np.concatenate(expected), rtol=1e-6)


def test_a_record_without_beats_has_finite_features():
    signals = np.zeros((2, 1, 1000), np.float32)
    _, features = stage.record_inputs(signals, [np.zeros(0, int), np.array([500])], 100)
    assert features.shape == (2, 75) and torch.isfinite(features).all()


def test_a_part_of_the_rows_keeps_one_lead():
    torch.manual_seed(0)
    signals = torch.ones(4000, 6, 5)   # three leads, then their differences from the median beat
    recipe = SimpleNamespace(leads=["I", "MLII", "V1"], lead_dropout=0.6)
    dropped = stage.drop_leads(signals, recipe)
    assert torch.equal(dropped[:, :3], dropped[:, 3:])
    kept = [tuple(row) for row in dropped[:, :3, 0].int().tolist()]
    share = {pattern: kept.count(pattern) / 4000 for pattern in set(kept)}
    assert share == {(1, 1, 1): pytest.approx(0.4, abs=0.03), **{
        pattern: pytest.approx(0.2, abs=0.03) for pattern in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]}}
    for leads in (["II"], ["V5"]):   # a single lead stays
        one = SimpleNamespace(leads=leads, lead_dropout=1.0)
        assert torch.equal(stage.drop_leads(signals[:, :1], one), signals[:, :1])


@pytest.mark.parametrize("dataset", ["ptbxl", "mitbih"])
def test_targets_and_statements_are_those_of_the_metadata(prepared, dataset):
    data = stage.load_dataset(dataset)
    with changed(stage, DATASET=dataset):
        recipe = stage.choose_recipe(data, stage.STRIPS.get(dataset, {}))
        examples = stage.make_examples(data, recipe)
        if dataset == "mitbih":
            np.testing.assert_array_equal(examples.targets, data.labels)
            at_home = stage.make_examples(data, stage.choose_recipe(data, {}))
            assert at_home.statements.shape == (len(data.labels), 0)
            assert (recipe.leads, stage.choose_recipe(data, {}).leads) == (["MLII", "V1"], ["MLII"])
        else:
            examples.statements = examples.targets   # all of them, in place of classes
    np.testing.assert_array_equal(examples.statements, data.metadata["statements"] > -1)
    assert 0 < examples.statements.mean() < 1


# ---- Features ----

def test_rr_intervals_are_those_before_and_after_the_beat():
    rr = stage.rr_intervals(np.array([100, 180, 220, 340]), 100)
    expected = np.full((4, 20), np.nan)
    expected[0, 10:13] = 0.8, 0.4, 1.2
    expected[1, 9:12] = 0.8, 0.4, 1.2
    expected[2, 8:11] = 0.8, 0.4, 1.2
    expected[3, 7:10] = 0.8, 0.4, 1.2
    np.testing.assert_allclose(rr, expected)
    assert np.isnan(stage.rr_intervals(np.array([100]), 100)).tolist() == [[True] * 20]
    assert stage.rr_intervals(np.zeros(0, np.int64), 100).shape == (0, 20)


def test_rhythm_features_of_a_premature_beat_equal_those_by_hand():
    rr = [80] * 12 + [40, 120] + [80] * 12   # samples at 100 Hz
    features = stage.rhythm_features(stage.rr_intervals(np.cumsum([500, *rr]), 100))
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
    features = stage.rhythm_features(rr)
    np.testing.assert_allclose(features[:2], features[[2, 2]], atol=1e-6)
    assert features[0, 14] == np.float32(0.8)
    one_beat = stage.rhythm_features(stage.rr_intervals(np.array([700]), 360))
    assert one_beat.shape == (1, 25) and np.isfinite(one_beat).all()


def test_the_quantiles_tell_a_regular_record_from_fibrillation():
    rr = np.random.default_rng(0).integers(40, 140, 500)
    quantiles = stage.rhythm_features(stage.rr_intervals(np.cumsum(rr), 100))[0, 17:21]
    expected = np.log(np.quantile(rr, [0.1, 0.25, 0.75, 0.9]) / np.median(rr))
    np.testing.assert_allclose(quantiles, expected, atol=0.01)
    assert quantiles[0] < -0.3 and quantiles[3] > 0.2   # 0 in a regular record


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


def test_statistics_of_many_rows_come_from_some_all_along_them():
    values = torch.arange(30_000.0)[:, None]
    rows = np.arange(0, 30_000, 2)
    normalise = stage.Normalise(1)
    normalise.fit(values, rows)
    assert normalise.mean.item() == pytest.approx(rows.mean(), rel=1e-3)
    assert normalise.spread.item() == pytest.approx(rows.std(), rel=1e-3)
    values[rows[1::2]] = torch.nan   # 15,000 rows: every fourth is enough
    normalise.fit(values, rows)
    assert torch.isfinite(normalise.mean).all() and torch.isfinite(normalise.spread).all()


def test_a_net_starts_with_the_statistics_of_its_training_rows(prepared):
    data = stage.load_dataset("mitbih")
    recipe = stage.choose_recipe(data, {})
    rows = stage.split_rows(data, recipe)
    examples = stage.make_examples(data, recipe)
    net, _ = stage.make_net(examples, rows, recipe)
    features = examples.features[rows["train"]].numpy()
    signals = examples.signals[rows["train"]].numpy()
    np.testing.assert_allclose(net.normalise_features.mean, features.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(net.normalise_signals.spread[:, 0], signals.std(axis=(0, 2)),
                               rtol=1e-3)
