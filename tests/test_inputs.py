"""What the nets of model_training.py see: signals, features and targets, with their statistics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import changed, train

import model_training as stage


def inputs_of(data, rows=None, **settings):
    """MIT-BIH dataset, some rows or all -> Inputs of make_inputs in their order, of both leads."""
    recipe = {"kind": "beats", "leads": data.leads, "context_seconds": 1800, "crop": 180,
              "rate": 360, "upright": True}
    rows = np.arange(len(data.signals)) if rows is None else rows
    inputs, numbers = stage.make_inputs(data, rows, SimpleNamespace(**recipe | settings))
    assert sorted(numbers) == rows.tolist()
    return at(np.argsort(numbers), inputs)


def at(rows, inputs):
    """Rows, Inputs -> their Inputs."""
    return stage.Inputs(*(values[rows] for values in inputs))


def array_of(data, rows):
    """A MIT-BIH dataset of these rows alone, in this order."""
    return SimpleNamespace(kind="beats", leads=data.leads, signals=data.signals[rows],
                           metadata=data.metadata[rows])


# ---- Signals ----

def test_the_crop_is_the_middle_of_the_beat(prepared):
    data = stage.load_dataset("mitbih")
    whole, _ = inputs_of(data, crop=360)
    middle, features = inputs_of(data, crop=180)
    torch.testing.assert_close(middle, whole[:, :, 90:270])
    assert features.shape == (len(data.labels), 25)


@pytest.mark.parametrize("upright", [False, True])
def test_relative_beats_do_not_change_with_gain_or_offset_of_the_record(upright):
    """Of a lead that points down, they change with its sign, unless it is turned."""
    signals = np.random.default_rng(0).normal(size=(8, 2, 360)).astype(np.float32)
    signals[:, 0, 170] += 30
    signals[:, 1, 170] -= 30
    recipe = SimpleNamespace(crop=100, upright=upright)
    relative = stage.relative_beats(signals, recipe)
    assert relative.shape == (8, 4, 100) and relative.dtype == np.float32
    beats = signals - np.median(signals, axis=2, keepdims=True)
    median = np.median(beats, axis=0)
    for lead in (0, 1):
        height = np.ptp(median[lead]) * (-1 if upright and lead else 1)
        differences = (beats - median)[:, lead, 130:230]
        np.testing.assert_allclose(relative[:, lead], beats[:, lead, 130:230] / height, atol=1e-5)
        np.testing.assert_allclose(relative[:, 2 + lead], differences / height, atol=1e-5)
    other_gain = stage.relative_beats(3 * signals + 0.7, recipe)
    np.testing.assert_allclose(other_gain, relative, atol=1e-5)
    turned = stage.relative_beats(-signals, recipe)
    np.testing.assert_allclose(turned, relative if upright else -relative, atol=1e-5)


def test_a_lead_is_turned_by_its_median_beat_whatever_a_single_beat_does():
    wave = np.array([0, 0, 0.4, -0.5, 0, 0, 0])   # smaller upwards
    signals = np.array([[wave], [wave], [-9 * wave]], np.float32)
    relative = stage.relative_beats(signals, SimpleNamespace(crop=7, upright=True))
    np.testing.assert_allclose(relative[:, 0], np.outer([1, 1, -9], -wave / 0.9), atol=1e-6)
    np.testing.assert_allclose(relative[:, 1], np.outer([0, 0, -10], -wave / 0.9), atol=1e-6)


def test_a_flat_lead_stays_flat():
    flat = np.full((4, 1, 180), 0.3, np.float32)
    assert not stage.relative_beats(flat, SimpleNamespace(crop=180, upright=True)).any()


def contexts_of(record, sample, length):
    """Beats, given as two lists, with contexts of `length` samples -> list of lists of rows."""
    beats = np.zeros(len(record), [("record", "i4"), ("sample", "i8")])
    beats["record"] = record
    beats["sample"] = sample
    data = SimpleNamespace(metadata=beats, leads=["II"], signals=np.zeros((len(beats), 1, 4)))
    recipe = SimpleNamespace(context_seconds=length / 100, rate=100, leads=["II"])
    contexts = list(stage.record_contexts(data, np.arange(len(beats)), recipe))
    for rows, _, peaks in contexts:
        np.testing.assert_array_equal(peaks, beats["sample"][rows])
    return [rows.tolist() for rows, *_ in contexts]


def test_a_record_is_divided_into_equal_parts_of_about_the_context():
    assert contexts_of([0] * 4, [5, 40, 60, 99], 100) == [[0, 1, 2, 3]]
    assert contexts_of([0] * 4, [5, 40, 60, 99], 1e9) == [[0, 1, 2, 3]]
    two = contexts_of([0] * 6, [0, 70, 119, 120, 180, 239], 100)     # 2.4
    three = contexts_of([0] * 6, [0, 70, 119, 120, 180, 259], 100)   # 2.6
    assert (two, three) == ([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]])
    assert contexts_of([3, 3, 7, 7], [10, 90, 10, 90], 100) == [[0, 1], [2, 3]]
    assert contexts_of([7, 3, 7, 3], [10, 10, 90, 90], 100) == [[1, 3], [0, 2]]
    assert contexts_of([3, 3, 7, 7], [10, 199, 10, 140], 100) == [[0], [1], [2, 3]]   # 2, 1.41


def test_in_a_part_of_its_record_a_beat_knows_this_part_alone(prepared):
    data = stage.load_dataset("mitbih")
    metadata = data.metadata.tobytes()
    parts = inputs_of(data, context_seconds=10)
    assert parts.features.shape == (len(data.labels), 25)
    assert data.metadata.tobytes() == metadata
    whole = inputs_of(data)
    for record, part in (("119", 1), ("119", 2), ("200", 0)):   # 40 s, thus four parts
        end = data.metadata["sample"][data.record == record].max() + 1
        rows = (data.record == record) & (4 * data.metadata["sample"] // end == part)
        torch.testing.assert_close(inputs_of(array_of(data, rows)), at(rows, parts))
        for of_whole, of_part in zip(at(rows, whole), at(rows, parts)):
            assert not torch.allclose(of_whole, of_part)


@pytest.mark.parametrize("seconds", [10, 1800])
def test_a_record_has_the_same_inputs_whatever_else_is_in_the_array(prepared, seconds):
    data = stage.load_dataset("mitbih")
    inputs = inputs_of(data, context_seconds=seconds)
    rows = np.flatnonzero(np.isin(data.record, ["119", "200", "232"]))
    rows = rows[np.argsort(data.metadata["sample"][rows], kind="stable")]   # records interleaved
    assert (np.diff(data.metadata["record"][rows]) < 0).sum() > 10
    for some in (rows, np.flatnonzero(data.record == "200")):   # in the order of the array
        alone = inputs_of(array_of(data, some), context_seconds=seconds)
        torch.testing.assert_close(alone, at(some, inputs))
    some = np.arange(5, len(data.labels), 3)
    torch.testing.assert_close(inputs_of(data, some, context_seconds=seconds), at(some, inputs))


@pytest.mark.parametrize("leads", [["V1", "II"], ("V1", "II"), "V1 II"])
def test_leads_are_chosen_by_name_and_12_lead_records_have_features_of_their_rhythm(
        prepared, leads):
    data = stage.load_dataset("ptbxl")
    peaks = data.metadata["beats"][7]
    of_beats = stage.rhythm_features(stage.rr_intervals(peaks[peaks >= 0], 100))
    expected = np.concatenate([of_beats.mean(axis=0), of_beats.min(axis=0), of_beats.max(axis=0)])
    for name in ("ptbxl", "ptbxl_strips"):
        with changed(stage, DATASET="ptbxl", LEADS=leads):
            recipe = stage.choose_recipe(data, stage.RECIPES[name])
        examples = stage.make_examples(data, recipe)
        assert examples.features.shape == (300, 75) and examples.targets.shape == (300, 27)
        np.testing.assert_array_equal(examples.signals, data.signals[:, [6, 1]])
        np.testing.assert_allclose(examples.features[7], expected, rtol=1e-6)
        rows = np.arange(7, 300, 50)
        inputs, numbers = stage.make_inputs(data, rows, recipe)
        assert numbers.tolist() == rows.tolist()
        torch.testing.assert_close(inputs, at(rows, (examples.signals, examples.features)))


def test_a_record_without_beats_has_finite_features():
    for peaks in (np.zeros(0, int), np.array([500])):
        features = stage.record_features(peaks, 100)
        assert features.shape == (75,) and np.isfinite(features).all()


@pytest.mark.parametrize("leads, expected", [
    (["I", "MLII", "V1"], {(1, 1, 1): 0.4, (1, 0, 0): 0.2, (0, 1, 0): 0.2, (0, 0, 1): 0.2}),
    (["V5"], {(1,): 1})])   # a single lead stays
def test_a_part_of_the_rows_keeps_one_lead(leads, expected):
    torch.manual_seed(0)
    count = len(leads)
    signals = torch.ones(4000, 2 * count, 5)   # leads, and their differences from the median beat
    recipe = SimpleNamespace(leads=leads, lead_dropout=0.6, signal_noise=0, rhythm_noise=0,
                             height_noise=0)
    dropped, _ = stage.add_noise(signals, torch.zeros(4000, 1), None, recipe)
    assert torch.equal(dropped[:, :count], dropped[:, count:])
    kept = [tuple(row) for row in dropped[:, :count, 0].int().tolist()]
    share = {pattern: kept.count(pattern) / 4000 for pattern in set(kept)}
    assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("height_noise", [0.0, 0.4])
def test_a_row_has_another_height_which_all_of_its_leads_share(height_noise):
    torch.manual_seed(0)
    signals = torch.randn(4000, 3, 5)
    recipe = SimpleNamespace(leads=["I", "II", "V1"], lead_dropout=0, signal_noise=0,
                             rhythm_noise=0, height_noise=height_noise)
    higher, _ = stage.add_noise(signals, torch.zeros(4000, 1), None, recipe)
    factor = higher[:, :1, :1] / signals[:, :1, :1]
    torch.testing.assert_close(higher, factor * signals)
    assert factor.min() > 0 and factor.median().item() == pytest.approx(1, abs=0.03)
    assert factor.log().std().item() == pytest.approx(height_noise, rel=0.05)


@pytest.mark.parametrize("dataset", ["ptbxl", "mitbih"])
def test_targets_and_statements_are_those_of_the_metadata(prepared, dataset):
    data = stage.load_dataset(dataset)
    with changed(stage, DATASET=dataset):
        home, strips = (stage.choose_recipe(data, stage.RECIPES[name])
                        for name in (dataset, f"{dataset}_strips"))
    examples = stage.make_examples(data, strips)
    statements = examples.targets   # of records: all of them, in place of classes
    if dataset == "mitbih":
        np.testing.assert_array_equal(examples.targets, data.labels)
        statements = examples.statements
        assert stage.make_examples(data, home).statements.shape == (len(data.labels), 0)
        assert (strips.leads, home.leads) == (["MLII", "V1"], ["MLII"])
    np.testing.assert_array_equal(statements, data.metadata["statements"] > -1)
    assert 0 < statements.mean() < 1


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


def test_an_interval_above_3_s_is_none_and_the_least_is_a_tenth_of_a_second():
    rr = stage.rr_intervals(np.cumsum([50, 80, 300, 301, 5]), 100)
    np.testing.assert_allclose(rr[0, 10:14], [0.8, 3.0, np.nan, 0.1])


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


def test_a_gap_changes_no_feature_of_a_regular_rhythm():
    regular = np.arange(500, 3700, 80)
    with_gap = regular + 9000 * (regular > 2000)
    features = stage.rhythm_features(stage.rr_intervals(with_gap, 100))
    expected = stage.rhythm_features(stage.rr_intervals(regular, 100))
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_the_quantiles_tell_a_regular_record_from_fibrillation():
    rr = np.random.default_rng(0).integers(40, 140, 500)
    quantiles = stage.rhythm_features(stage.rr_intervals(np.cumsum(rr), 100))[0, 17:21]
    expected = np.log(np.quantile(rr, [0.1, 0.25, 0.75, 0.9]) / np.median(rr))
    np.testing.assert_allclose(quantiles, expected, atol=0.01)
    assert quantiles[0] < -0.3 and quantiles[3] > 0.2   # 0 in a regular record


# ---- Statistics ----

def test_a_net_starts_with_statistics_of_training_rows_without_their_offsets():
    rows = np.arange(0, 30_000, 2)
    values = 5 + np.linspace(-1, 1, 30_000)[:, None] * [1, 2, 3]   # three channels
    waves = values[:, :, None] * [0, 0, 0, 2, -1]
    kept = values[rows[::2]], waves[rows[::2]]   # of 15,000 rows every fourth is enough
    values[1::2] = values[rows[1::2]] = np.nan   # other sides, and rows that are not needed
    features, signals = (torch.from_numpy(array.astype(np.float32))
                         for array in (values, values[:, :, None] + waves))
    settings = stage.RECIPES["mitbih"]
    recipe = SimpleNamespace(**settings | {"sizes": settings["sizes"]["cnn"], "crop": 5,
                                           "classes": ["N"]})
    net, _ = stage.make_net(
        SimpleNamespace(signals=signals, features=features, statements=features[:, :0]),
        {"train": rows}, recipe)
    for normalise, of_rows in ((net.normalise_features, kept[0][:, :, None]),
                               (net.normalise_signals, kept[1])):
        mean, spread = (getattr(of_rows, name)(axis=(0, 2)) for name in ("mean", "std"))
        np.testing.assert_allclose(normalise.mean.ravel(), mean, rtol=1e-3)
        np.testing.assert_allclose(normalise.spread.ravel(), spread, rtol=1e-3)


def test_a_lead_that_is_0_in_all_training_rows_keeps_its_height_in_others():
    normalise = stage.Normalise(3, 1)
    wave = torch.tensor([1.0, -1])
    normalise.fit(torch.stack([0 * wave, 4 * wave, 1e-7 * wave]).repeat(5, 1, 1))
    assert normalise.spread.ravel().tolist() == [1, 4, 1]
    normal = normalise(torch.stack([0.5 * wave, 2 * wave, 0.5 * wave])[None])
    torch.testing.assert_close(normal, 0.5 * wave.expand(1, 3, 2))


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_a_model_of_a_lead_that_was_0_in_training_gives_usual_logits_when_it_is_there(
        prepared, monkeypatch, dataset):
    data = stage.load_dataset(dataset)
    lead = data.leads.index("V1")
    signals = np.array(data.signals)
    data.signals[:, lead] = 0
    monkeypatch.setattr(stage, "load_dataset", lambda name: data)
    train(dataset, settings={"leads": "II V1"})
    checkpoint = stage.load_checkpoint(data, "mlp")
    rows = stage.split_rows(data, checkpoint.recipe)["test"]
    without, _ = stage.predict_rows(checkpoint, data, rows)
    data.signals = signals
    logits, _ = stage.predict_rows(checkpoint, data, rows)
    assert not torch.equal(logits, without)
    assert logits.abs().max() < 10 * without.abs().max()
