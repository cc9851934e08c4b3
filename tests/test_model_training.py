"""model_training.py: splits that do not leak, inputs, models, checkpoints, bad input."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import fuzz
import model_evaluation
import model_training as stage
import preprocess_mitbih
import simulate
import two_processes
from harness import contents, files_up_to

plot_history = stage.plot_history   # the fixture quick replaces it
COMBINATIONS = [(dataset, model) for dataset in ("mitbih", "ptbxl") for model in ("cnn", "lstm", "mlp")]


@pytest.fixture
def quick(quick_pictures, monkeypatch):
    """A function that trains one combination for an epoch or two -> its checkpoint."""
    def train(dataset="mitbih", model="mlp", epochs=1, **constants):
        for name, value in {"DATASET": dataset, "MODEL": model, "EPOCHS": {dataset: epochs}, **constants}.items():
            monkeypatch.setattr(stage, name, value)
        stage.main()
        return torch.load(f"{dataset}_{model}_model.pth", weights_only=True)
    return train


# ---- Split ----

def test_mitbih_split_is_de_chazals_with_validation_patients_out_of_ds1(prepared):
    data = stage.load_dataset("mitbih")
    parts = stage.split_parts(data)
    sides = stage.split_rows(data, "inter_patient", parts, 0)
    ds1 = "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split()
    ds2 = "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split()
    assert sorted(parts["train"] + parts["validation"]) == ds1 and sorted(parts["test"]) == ds2
    for side in sides:
        assert set(data.metadata["record"][sides[side]]) == set(parts[side])
    used = np.concatenate(list(sides.values()))
    assert len(np.unique(used)) == len(used) and not {"102", "104", "107", "217"} & set(data.metadata["record"][used])


def test_ptbxl_split_is_by_fold(prepared):
    data = stage.load_dataset("ptbxl")
    sides = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)
    folds = {side: sorted(set(data.metadata["fold"][rows].tolist())) for side, rows in sides.items()}
    assert folds == {"train": [1, 2, 3, 4, 5, 6, 7, 8], "validation": [9], "test": [10]}


def test_a_patient_on_two_sides_stops_the_run(prepared):
    data = stage.load_dataset("ptbxl")
    sides = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)
    assert stage.check_patients(data, sides, "inter_patient") == "no patient is on two sides"
    data.metadata["patient"][sides["test"][0]] = data.metadata["patient"][sides["train"][0]]
    with pytest.raises(SystemExit, match="two sides of the split"):
        stage.check_patients(data, sides, "inter_patient")


def test_201_and_202_are_the_one_exception_and_can_be_left_out(prepared, monkeypatch):
    data = stage.load_dataset("mitbih")
    sides = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)
    assert "201 (DS1) and 202 (DS2) are one patient" in stage.check_patients(data, sides, "inter_patient")
    monkeypatch.setattr(stage, "EXCLUDED_RECORDS", ["202"])
    sides = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)
    assert "202" not in data.metadata["record"][sides["test"]]
    assert stage.check_patients(data, sides, "inter_patient") == "no patient is on two sides"


def test_random_split_uses_every_row_once_and_says_that_it_leaks(prepared, quick, capsys):
    data = stage.load_dataset("mitbih")
    sides = stage.split_rows(data, "random", None, 3)
    assert sorted(np.concatenate(list(sides.values())).tolist()) == list(range(len(data.labels)))
    checkpoint = quick(SPLIT="random")
    assert "LEAKY SPLIT" in capsys.readouterr().out and checkpoint["leaks"] is True


def test_multiclass_keeps_records_with_exactly_one_superclass(prepared):
    data = stage.load_dataset("ptbxl")
    sides = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)
    count = data.metadata["superclasses"].sum(axis=1)
    for task, rows in (("multiclass", count == 1), ("multilabel", count >= 1)):
        kept = np.concatenate(list(stage.task_rows(data, task, sides).values()))
        assert sorted(kept.tolist()) == np.flatnonzero(rows).tolist()


def test_a_fraction_keeps_whole_patients(prepared, quick):
    data = stage.load_dataset("ptbxl")
    rows = stage.split_rows(data, "inter_patient", stage.split_parts(data), 0)["train"]
    patient = data.metadata["patient"]
    kept = stage.some_patients(data, rows, .3)
    assert not set(patient[kept]) & set(patient[np.setdiff1d(rows, kept)])
    assert len(np.unique(patient[kept])) == round(.3 * len(np.unique(patient[rows])))
    assert stage.some_patients(data, rows, 1).tolist() == rows.tolist()
    assert quick("ptbxl", TRAIN_FRACTION=.3)["train_rows"] < quick("ptbxl", TRAIN_FRACTION=1)["train_rows"]


# ---- Inputs ----

def test_relative_beats_do_not_change_with_gain_or_offset_of_the_record():
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(20, 1, 360)).astype(np.float32)
    metadata = np.zeros(20, [("record", "U3")])
    metadata["record"] = ["a"] * 12 + ["b"] * 8
    relative = stage.relative_beats(signals, stage.record_rows(metadata))
    scaled = signals.copy()
    scaled[:12] = 3 * scaled[:12] + 0.7
    np.testing.assert_allclose(stage.relative_beats(scaled, stage.record_rows(metadata)), relative, atol=1e-5)
    beats = signals[12:, 0] - np.median(signals[12:, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(relative[12:, 1] * np.ptp(np.median(beats, axis=0)), beats - np.median(beats, axis=0), atol=1e-5)


def test_statistics_are_those_of_the_training_rows():
    values = torch.randn(3000, 4, 50) * torch.tensor([1., 2, 3, 4])[:, None] + 1
    rows = np.arange(0, 3000, 3)
    mean, spread = stage.channel_statistics(values, rows)
    np.testing.assert_allclose(mean, values[rows].mean((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(spread, values[rows].transpose(0, 1).flatten(1).std(1), rtol=1e-3)


# ---- Models ----

@pytest.mark.parametrize("dataset, model", COMBINATIONS)
def test_nets_give_a_logit_a_class_and_learn_from_signals_and_features(dataset, model):
    torch.manual_seed(0)
    net = stage.MODELS[model](leads=2, samples=250, features=3, outputs=5, **stage.ARCHITECTURE[dataset][model])
    signals, features = torch.randn(4, 2, 250, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    logits = net(signals, features)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert signals.grad.abs().sum() > 0 and features.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("model", ["cnn", "lstm"])
@pytest.mark.parametrize("dataset, samples", [("mitbih", 180), ("mitbih", 193), ("ptbxl", 250)])
def test_the_steps_of_a_beat_have_their_places_those_of_a_crop_have_not(dataset, model, samples):
    torch.manual_seed(0)
    net = stage.MODELS[model](leads=2, samples=samples, features=3, outputs=5, **stage.ARCHITECTURE[dataset][model]).eval()
    maps, features = net.maps(torch.randn(4, 2, samples)), torch.zeros(4, 3)
    turned = net.classify(maps.flip(2), features)
    assert torch.allclose(net.classify(maps, features), turned, atol=1e-5) == (dataset == "ptbxl")


def test_predict_is_the_mean_over_half_overlapping_crops():
    torch.manual_seed(0)
    net = stage.CNN(leads=2, samples=250, features=0, outputs=3, **stage.ARCHITECTURE["ptbxl"]["cnn"]).eval()
    signals, features = torch.randn(7, 2, 1000), torch.zeros(7, 0)
    assert stage.crop_starts(1000, 250) == [0, 125, 250, 375, 500, 625, 750]
    with torch.no_grad():
        expected = sum(net(signals[:, :, s:s + 250], features) for s in range(0, 751, 125)) / 7
    rows = np.array([6, 1, 3])
    torch.testing.assert_close(stage.predict(net, signals, features, rows, 250, batch=8), expected[rows])


def test_the_mlp_shares_its_layers_between_overlapping_windows():
    torch.manual_seed(0)
    net = stage.MLP(leads=2, samples=250, features=0, outputs=3, widths=[16, 8], window=.4, step=.1).eval()
    signals = torch.randn(5, 2, 250)
    with torch.no_grad():
        each = torch.stack([net.layers(signals[:, :, start:start + 100].flatten(1)) for start in range(0, 151, 25)])
        torch.testing.assert_close(net.maps(signals), each.permute(1, 2, 0))
        torch.testing.assert_close(stage.mean_and_max(net.maps(signals)),
                                   torch.cat([each.mean(dim=0), each.amax(dim=0)], dim=1))


def test_the_loss_is_that_of_the_classes_and_of_the_statements(monkeypatch):
    logits, statements = torch.randn(6, 7), torch.randint(2, (6, 4)).float()
    classes, superclasses = torch.tensor([0, 0, 0, 1, 1, 2]), torch.randint(2, (6, 3)).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(stage, "STATEMENT_WEIGHT", 2.0)
    torch.testing.assert_close(stage.loss_of(logits, superclasses, statements, None),
                               bce(logits[:, :3], superclasses) + 2 * bce(logits[:, 3:], statements))
    torch.testing.assert_close(stage.loss_of(logits[:, :3], superclasses, statements[:, :0], None),
                               bce(logits[:, :3], superclasses))
    monkeypatch.setattr(stage, "CLASS_WEIGHT_POWER", 1.0)
    weight, share = stage.class_weights(classes, np.arange(6), 3)
    np.testing.assert_allclose(weight, [2 / 3, 1, 2])
    np.testing.assert_allclose(share, 1 / 3)
    per_class = [torch.nn.functional.cross_entropy(logits[classes == k, :3], classes[classes == k]) for k in range(3)]
    torch.testing.assert_close(stage.loss_of(logits[:, :3], classes, statements[:, :0], weight), sum(per_class) / 3)


def test_each_record_gets_its_own_share_of_the_classes():
    """A record of one class becomes more certain of it, an unknown class stays, no class and no record disturbs another."""
    rng = np.random.default_rng(0)
    prior = np.array([.9, .1, 0])
    probability = rng.dirichlet([6, 3, .1], 400)
    records = np.repeat(["a", "b"], 200)
    probability[200:] = rng.dirichlet([20, .5, .1], 200)
    adapted = stage.adapt_prior(probability, records, prior)
    np.testing.assert_allclose(adapted.sum(axis=1), 1)
    assert adapted[:200, 1].mean() > probability[:200, 1].mean() + .1 and adapted[200:, 1].mean() < probability[200:, 1].mean()
    np.testing.assert_array_equal(adapted[:200], stage.adapt_prior(probability[:200], records[:200], prior))
    shares = (10 * adapted[:200].mean(axis=0) + prior) / 11                  # the fixed point, by hand
    expected = probability[:200] * [shares[0] / .9, shares[1] / .1, 1]
    np.testing.assert_allclose(adapted[:200], expected / expected.sum(axis=1, keepdims=True), atol=1e-3)
    odds = probability[:200, 2] / probability[:200, 0] * .9 / shares[0]
    np.testing.assert_allclose(adapted[:200, 2] / adapted[:200, 0], odds, rtol=.05)
    balanced = np.full((10, 3), 1 / 3)                                       # a record like the training set does not change
    np.testing.assert_allclose(stage.adapt_prior(balanced, np.zeros(10), np.full(3, 1 / 3)), balanced)


def test_the_prior_is_that_of_the_weighted_classes_that_may_change():
    classes = torch.tensor([0] * 970 + [1] * 20 + [2] * 10)
    weight, share = stage.class_weights(classes, np.arange(1000), 4)
    np.testing.assert_allclose(share, weight.numpy() * [.97, .02, .01, 0], rtol=1e-6)
    assert stage.record_prior(classes, np.arange(1000), ["N", "S", "V", "F"], ["N", "S"]) == [*share[:2].tolist(), 0, 0]
    probability = np.random.default_rng(0).dirichlet([1, 1, 1], 20)
    prior = stage.record_prior(classes, np.arange(1000), ["N", "S", "V"], [])
    np.testing.assert_allclose(stage.adapt_prior(probability, np.zeros(20), prior), probability)


def test_thresholds_have_the_best_f1_to_be_expected():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(-1, 2, 20_000))
    truth = torch.sigmoid(logits).numpy()                                             # the chance of each row
    targets = np.column_stack([rng.random(20_000) < truth] * 2 + [np.zeros(20_000)])
    probability = np.column_stack([truth, torch.sigmoid(2 * logits + 1), truth])      # the second column is not calibrated
    thresholds = stage.best_thresholds(probability, targets)
    for k in (0, 1):   # with so many rows the best count is what is expected
        cuts = np.quantile(probability[:, k], np.linspace(.5, .99, 50))
        best = max(f1_score(targets[:, k], probability[:, k] >= cut) for cut in cuts)
        assert f1_score(targets[:, k], probability[:, k] >= thresholds[k]) == pytest.approx(best, abs=.003)
    assert thresholds[0] == pytest.approx(f1_score(targets[:, 0], probability[:, 0] >= thresholds[0]) / 2, abs=.02)   # theory
    assert thresholds[1] > thresholds[0] + .05 and thresholds[2] == .5


# ---- Training and checkpoint ----

@pytest.mark.parametrize("dataset, model", COMBINATIONS)
def test_a_checkpoint_describes_itself_and_gives_equal_logits(prepared, quick, monkeypatch, dataset, model):
    monkeypatch.setattr(stage, "plot_history", plot_history)
    saved = quick(dataset, model)
    checkpoint, net = model_evaluation.load_checkpoint(dataset, model)
    data = stage.load_dataset(dataset)
    model_evaluation.check_dataset(checkpoint, data)
    signals, features = stage.make_inputs(data, **checkpoint["inputs"])
    sides = stage.split_rows(data, checkpoint["split"], checkpoint["split_parts"], checkpoint["seed"])
    rows = stage.task_rows(data, checkpoint["task"], sides)["validation"]
    logits = stage.predict(net, signals, features, rows, checkpoint["crop"])
    statements = 0 if dataset == "mitbih" else data.metadata["statements"].shape[1]
    assert logits.shape[1] == len(checkpoint["outputs"]) == 5 + statements
    records = data.metadata["record"][rows] if dataset == "mitbih" else None
    probability = stage.probabilities(logits, checkpoint["task"], 5, records, checkpoint["prior"])
    targets = stage.targets_of(data, checkpoint["task"])[rows].numpy()
    score = stage.validation_score(probability, targets, checkpoint["task"], saved["class_names"])
    assert score == saved["history"][saved["epoch"] - 1]["validation_score"]   # the weights are those of the kept epoch
    assert checkpoint["simulated"] and not checkpoint["leaks"]
    assert {"class_names", "sampling_rate", "split_parts", "thresholds", "seed", "constants", "versions"} <= set(checkpoint)
    assert (prepared / f"{dataset}_{model}_training.png").stat().st_size > 10_000


def test_the_seed_repeats_a_run_exactly(prepared, quick):
    first, second, other = quick(), quick(), quick(SEED=1)
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])
    assert any(not torch.equal(first["weights"][k], other["weights"][k]) for k in first["weights"])


def test_the_best_epoch_is_the_one_kept(prepared, quick, monkeypatch):
    scores, seen = iter([.1, .9, .5, .3]), []

    def score(probability, *_):
        seen.append(probability)
        return next(scores)
    monkeypatch.setattr(stage, "validation_score", score)
    checkpoint = quick(epochs=4, KEEP={"mitbih": "best"})
    assert checkpoint["epoch"] == 2
    data = stage.load_dataset("mitbih")
    rows = stage.split_rows(data, "inter_patient", checkpoint["split_parts"], 0)["validation"]
    inputs = stage.make_inputs(data, **checkpoint["inputs"])
    logits = stage.predict(model_evaluation.build_net(checkpoint), *inputs, rows, checkpoint["crop"])
    probability = stage.probabilities(logits, "multiclass", 5, data.metadata["record"][rows], checkpoint["prior"])
    np.testing.assert_array_equal(probability, seen[1])
    assert not np.array_equal(probability, seen[3])


def test_training_stops_early(prepared, quick, monkeypatch):
    scores = iter([.5, .4, .3, .2, .1])
    monkeypatch.setattr(stage, "validation_score", lambda *_: next(scores))
    checkpoint = quick(epochs=5, PATIENCE=2, KEEP={"mitbih": "best"})
    assert len(checkpoint["history"]) == 3 and checkpoint["epoch"] == 1
    scores = iter([.5, .4, .3, .2, .1])
    checkpoint = quick(epochs=5, PATIENCE=2, KEEP={"mitbih": "last"})
    assert len(checkpoint["history"]) == 5 and checkpoint["epoch"] == 5


def test_a_model_learns_the_simulated_classes(prepared, quick):
    checkpoint = quick(model="mlp", epochs=8, BATCH_SIZE={"mitbih": 32})
    assert max(row["validation_score"] for row in checkpoint["history"]) > .8   # chance: .33


def test_multiclass_ptbxl_and_one_lead(prepared, quick):
    checkpoint = quick("ptbxl", "cnn", TASK="multiclass", LEADS=["II"])
    assert checkpoint["task"] == "multiclass" and checkpoint["inputs"]["leads"] == ["II"]
    assert checkpoint["model_arguments"]["leads"] == 1


def test_clinical_classes_are_scored_by_those_that_the_validation_rows_have(prepared):
    assert stage.validation_score(np.eye(7)[[1, 1, 4]], np.array([1, 1, 4]), "multiclass", ["normal", "LBBB"]) == 1
    assert stage.validation_score(np.eye(5)[[0, 1, 2, 0]], np.array([0, 1, 2, 3]), "multiclass",
                                  ["N", "S", "V", "F", "Q"]) == pytest.approx((2 / 3 + 2) / 3)


def test_the_window_is_the_middle_of_the_beat(prepared):
    data = stage.load_dataset("mitbih")
    settings = {"leads": ["MLII"], "record_relative": False, "with_distance": False, "rhythm": False, "context": None,
                "align": False, "low_pass_hz": None}
    whole, _ = stage.make_inputs(data, **settings, window=None)
    middle, features = stage.make_inputs(data, **settings, window=180)
    torch.testing.assert_close(middle, whole[:, :, 90:270])
    assert features.shape == (len(whole), 0)


def test_in_a_strip_a_beat_knows_its_strip_alone(prepared):
    data = stage.load_dataset("mitbih")
    settings = {"leads": ["MLII"], "record_relative": True, "with_distance": True, "rhythm": True, "context": 10,
                "align": True, "low_pass_hz": 40, "window": 180}
    signals, features = stage.make_inputs(data, **settings)
    assert features.shape == (len(signals), 26)   # 25 of the RR intervals, one of the waveform
    rows = np.flatnonzero((data.metadata["record"] == "119") & (data.metadata["sample"] // 3600 == 1))
    strip = SimpleNamespace(**vars(data) | {"signals": data.signals[rows], "metadata": data.metadata[rows]})
    alone = stage.make_inputs(strip, **settings)
    torch.testing.assert_close(alone[0], signals[rows])
    torch.testing.assert_close(alone[1], features[rows])
    whole = stage.make_inputs(data, **settings | {"context": None})
    assert not torch.equal(whole[1][rows], features[rows]) and not torch.equal(whole[0][rows], signals[rows])


def test_an_ectopic_beat_stands_out_from_its_record_and_a_noisy_record_does_not():
    rng = np.random.default_rng(0)
    beats = np.tile(np.exp(-(np.arange(-90, 90) / 8) ** 2), (60, 1, 1)).astype(np.float32)
    noise = rng.normal(size=beats.shape).astype(np.float32) * np.repeat([.02, .2], 30)[:, None, None]
    beats[[5, 35]] *= -1
    beats[7, 0, 130:] += 1   # after the QRS complex
    groups = [np.arange(30), np.arange(30, 60)]
    relative = stage.relative_beats(beats + noise, groups)
    found = stage.template_distance(relative[:, 1:], groups, 360)
    assert found.shape == (60, 1) and found.dtype == np.float32
    usual = np.delete(found, [5, 35])
    assert np.abs(usual).max() < .5 and found[5] > 2 and found[35] > np.log(1.5)
    np.testing.assert_allclose(stage.template_distance(relative[:1, 1:], [np.arange(1)], 360), 0)          # a strip of one beat
    assert (stage.template_distance(np.zeros((4, 1, 180), np.float32), [np.arange(4)], 360) == 0).all()      # a flat lead


def test_aligned_beats_are_those_of_shifted_positions():
    t = (np.arange(2000) - 1000) / 360
    wave = np.exp(-(t / .02) ** 2) - .3 * np.exp(-((t - .03) / .015) ** 2) + .2 * np.exp(-((t - .25) / .05) ** 2)
    beats = np.stack([wave[1000 + shift - 180:1000 + shift + 180]
                      for shift in (-20, -7, 0, 12, 25)])[:, None].astype(np.float32)
    aligned = stage.align_beats(beats, 360)[:, 0, 40:320]
    assert np.abs(aligned - aligned[2]).max() < .05 < np.abs(beats[:, 0, 40:320] - beats[2, 0, 40:320]).max()


def test_low_pass_keeps_what_is_below_and_removes_what_is_above():
    t = np.arange(3600) / 360
    slow, fast = np.sin(2 * np.pi * 10 * t), np.sin(2 * np.pi * 90 * t)
    found = stage.low_pass((slow + fast)[None, None].astype(np.float32), 360, 40)[0, 0]
    np.testing.assert_allclose(found[360:-360], slow[360:-360], atol=.05)
    assert found.dtype == np.float32 and stage.low_pass(found, 60, 40) is found


def test_split_all_trains_on_everything_but_the_validation_rows(prepared, quick):
    checkpoint = quick(SPLIT="all")
    parts = checkpoint["split_parts"]
    assert (parts["test"] == [] and {"100", "104", "232"} <= set(parts["train"])
            and set(parts["validation"]) == set(stage.VALIDATION_RECORDS))
    assert quick("ptbxl", SPLIT="all")["split_parts"] == {"train": [1, 2, 3, 4, 5, 6, 7, 8, 10], "validation": [9], "test": []}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch, pytest.raises(SystemExit, match="no test rows"):
        patch.setattr(model_evaluation, "DATASET", "mitbih")
        patch.setattr(model_evaluation, "MODEL", "mlp")
        model_evaluation.main()


# ---- Bad input ----

def message_of(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name, value", [("DATASET", "mit"), ("MODEL", "cnnn"), ("TASK", "both"), ("SPLIT", "patient"),
                                         ("DEVICE", "tpu")])
def test_unknown_constants_are_named(work, monkeypatch, name, value):
    monkeypatch.setattr(stage, name, value)
    with pytest.raises(SystemExit, match=f"{name} = '{value}': expected one of"):
        stage.main()


def break_array(work, name, change):
    """Replaces a link to an .npy file by a changed copy."""
    array = np.load(work / name, allow_pickle=False)
    (work / name).unlink()
    np.save(work / name, change(array))


def from_another_run(work, part):
    """Replaces an .npy file by that of a run with other constants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess_mitbih, "CLASS_MAP", "clinical")
        patch.setattr(preprocess_mitbih, "NAME", "other")
        patch.setattr(preprocess_mitbih, "DATA_DIR", str(work / "records"))
        simulate.write_mitbih(work / "records", records=("101", "114"), seconds=20)
        preprocess_mitbih.main()
    (work / f"other_{part}.npy").replace(work / f"mitbih_{part}.npy")


OTHER = "damaged, or of another run than the header"
ARRAYS = {
    "mitbih_signals.npy is not in this folder": lambda work: (work / "mitbih_signals.npy").unlink(),
    f"mitbih_labels.npy is {OTHER}": lambda work: from_another_run(work, "labels"),
    f"mitbih_signals.npy is {OTHER}": lambda work: from_another_run(work, "signals"),
    f"mitbih_metadata.npy is {OTHER}": lambda work: break_array(work, "mitbih_metadata.npy", lambda a: a[:-1]),
    f".*_signals.npy is {OTHER}": lambda work: from_another_run(work, "header"),
    "mitbih_header.npy is damaged": lambda work: (
        (work / "mitbih_header.npy").unlink() or (work / "mitbih_header.npy").write_bytes(b"no")),
    "mitbih_labels.npy is damaged": lambda work: break_array(work, "mitbih_labels.npy", lambda a: a.astype(object)),
    "mitbih_header.npy is damaged or of an earlier version": lambda work: break_array(
        work, "mitbih_header.npy", lambda a: a[["class_names", "leads"]]),
}


@pytest.mark.parametrize("message", ARRAYS)
def test_bad_arrays_stop_with_one_sentence_and_keep_the_checkpoint(prepared, quick, message):
    quick()
    before = (prepared / "mitbih_mlp_model.pth").read_bytes()
    ARRAYS[message](prepared)
    with pytest.raises(SystemExit, match=message) as error:
        stage.main()
    assert "preprocess_mitbih.py" in message_of(error)
    assert (prepared / "mitbih_mlp_model.pth").read_bytes() == before


@pytest.mark.parametrize("name", ["mitbih_labels.npy", "mitbih_header.npy", "mitbih_mlp_model.pth"])
def test_damaged_files_end_in_a_sentence_or_the_right_result(prepared, quick, name):
    quick()
    chance, content = random.Random(name), (prepared / name).read_bytes()
    right = fuzz.checkpoint_reader() if name.endswith(".pth") else fuzz.dataset_reader()
    (prepared / name).unlink()   # a link
    for _ in range(40):
        (prepared / name).write_bytes(fuzz.damaged(content, chance))
        found = fuzz.outcome(fuzz.checkpoint_reader if name.endswith(".pth") else fuzz.dataset_reader, right)
        assert found in ("error", "same result")


class Malice:
    def __reduce__(self):
        return open, ("hacked", "w")


def test_bad_checkpoints_stop_with_one_sentence_and_run_no_code(prepared, quick):
    good = quick()
    path = prepared / "mitbih_mlp_model.pth"
    with pytest.raises(SystemExit, match="mitbih_lstm_model.pth is not in this folder"):
        model_evaluation.load_checkpoint("mitbih", "lstm")
    (prepared / "mitbih_cnn_model.pth").write_bytes(path.read_bytes())
    with pytest.raises(SystemExit, match="holds a mlp trained on mitbih"):
        model_evaluation.load_checkpoint("mitbih", "cnn")
    for content in (path.read_bytes()[:5000], b"", b"junk"):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="damaged or not a checkpoint") as error:
            model_evaluation.load_checkpoint("mitbih", "mlp")
        assert 'MODEL = "mlp"' in message_of(error)
    torch.save({name: value for name, value in good.items() if name != "inputs"}, path)
    with pytest.raises(SystemExit, match="lacks inputs"):
        model_evaluation.load_checkpoint("mitbih", "mlp")
    torch.save({"weights": Malice()}, path)
    with pytest.raises(SystemExit, match="damaged or not a checkpoint"):
        model_evaluation.load_checkpoint("mitbih", "mlp")
    assert not (prepared / "hacked").exists()


def test_a_checkpoint_of_other_data_is_refused_with_both_values(prepared, quick):
    checkpoint = quick()
    data, made_from = stage.load_dataset("mitbih"), checkpoint["made_from"]
    model_evaluation.check_dataset(checkpoint | {"made_from": made_from | {"versions": {"wfdb": "0"}}}, data)
    with pytest.raises(SystemExit, match="mitbih_mlp_model.pth and the mitbih_.* of different runs.*"
                                         "LEADS = ..V1.., now ..MLII.."):
        constants = made_from["constants"] | {"LEADS": ["V1"]}
        model_evaluation.check_dataset(checkpoint | {"made_from": made_from | {"constants": constants}}, data)
    with pytest.raises(SystemExit, match="files = 3, now 145"):
        model_evaluation.check_dataset(checkpoint | {"made_from": made_from | {"files": 3}}, data)


# ---- Runs that survive ----

class Killed(BaseException):
    pass


@pytest.fixture
def killed(monkeypatch):
    """A function that stops training as a kill does, in the middle of an epoch."""
    def after(epochs):
        train_epoch, calls = stage.train_epoch, []

        def dying(*arguments):
            calls.append(None)
            if len(calls) > epochs:
                torch.rand(7)   # the random numbers are not where the last epoch left them
                raise Killed
            return train_epoch(*arguments)
        monkeypatch.setattr(stage, "train_epoch", dying)
        return lambda: monkeypatch.setattr(stage, "train_epoch", train_epoch)
    return after


@pytest.mark.parametrize("dataset, model, keep", [("mitbih", "cnn", "best"), ("mitbih", "mlp", "last"),
                                                  ("ptbxl", "mlp", "best")])
def test_a_killed_run_goes_on_to_the_same_weights(prepared, quick, killed, dataset, model, keep):
    constants = {"dataset": dataset, "model": model, "epochs": 4, "KEEP": {dataset: keep}}
    whole = quick(**constants)
    (prepared / f"{dataset}_{model}_model.pth").unlink()
    for epochs in (2, 1):
        alive = killed(epochs)
        with pytest.raises(Killed):
            quick(**constants, RESUME=True)
        alive()
    resumed = quick(**constants, RESUME=True)
    assert resumed["history"] == whole["history"] and resumed["epoch"] == whole["epoch"]
    assert all(torch.equal(resumed["weights"][name], whole["weights"][name]) for name in whole["weights"])
    assert not list(prepared.glob("*_state.pth"))


def test_a_run_that_had_stopped_early_stays_stopped(prepared, quick, monkeypatch):
    def dying(*_):
        raise Killed
    constants = {"epochs": 6, "PATIENCE": 2, "KEEP": {"mitbih": "best"}}
    monkeypatch.setattr(stage, "validation_score", lambda *_: .5)
    monkeypatch.setattr(stage, "plot_history", dying)   # after the last epoch
    with pytest.raises(Killed):
        quick(**constants)
    monkeypatch.setattr(stage, "plot_history", plot_history)
    assert len(quick(**constants, RESUME=True)["history"]) == 3


def test_without_resume_a_run_starts_anew(prepared, quick, killed, capsys):
    alive = killed(1)
    with pytest.raises(Killed):
        quick(epochs=2)
    alive()
    capsys.readouterr()
    quick(epochs=2, RESUME=False)
    assert "goes on" not in capsys.readouterr().out


@pytest.mark.parametrize("constants, message", [
    ({"SEED": 3}, "constants SEED = 0, now 3"), ({"BATCH_SIZE": {"mitbih": 32}}, "BATCH_SIZE mitbih = 64, now 32")])
def test_the_state_of_another_configuration_is_refused_with_both_values(prepared, quick, killed, constants, message):
    alive = killed(1)
    base = {"epochs": 2, "SEED": 0, "BATCH_SIZE": {"mitbih": 64}}
    with pytest.raises(Killed):
        quick(**base)
    alive()
    state = (prepared / "mitbih_mlp_state.pth").read_bytes()
    with pytest.raises(SystemExit, match=message):
        quick(**{**base, **constants}, RESUME=True)
    assert (prepared / "mitbih_mlp_state.pth").read_bytes() == state
    (prepared / "mitbih_mlp_state.pth").write_bytes(state[:1000])
    with pytest.raises(SystemExit, match="mitbih_mlp_state.pth is damaged") as error:
        quick(**base, RESUME=True)
    message_of(error)


def test_a_full_disk_is_named_and_earlier_outputs_stay(prepared, quick):
    quick()
    before = contents(prepared)
    with files_up_to(100_000), pytest.raises(SystemExit, match="cannot write mitbih_mlp_state.pth .*File too large") as error:
        quick()
    message_of(error)
    assert contents(prepared) == before


# ---- Several processes ----

def test_two_processes_train_the_weights_of_one(prepared, quick):
    constants = {name: two_processes.CONSTANTS[name] for name in ("BATCH_SIZE", "LEARNING_RATE")}
    one = quick("mitbih", "cnn", **constants)
    two = two_processes.train(prepared, 2, DATASET="mitbih", MODEL="cnn", EPOCHS={"mitbih": 1}, **constants)
    assert max(two_processes.differences(one, two)) < two_processes.TOLERANCE
    counts = [name for name, values in one["weights"].items() if not values.is_floating_point()]   # of batches
    assert counts and all(torch.equal(one["weights"][name], two["weights"][name]) for name in counts)


def test_validation_records_must_be_in_ds1(prepared, monkeypatch):
    monkeypatch.setattr(stage, "VALIDATION_RECORDS", ["114", "100"])
    with pytest.raises(SystemExit, match="VALIDATION_RECORDS names 100"):
        stage.main()


@pytest.mark.parametrize("constants, message", [
    ({"VALIDATION_FOLD": 11}, "0 rows to use for validation"), ({"LEADS": "II"}, "LEADS = 'II': expected"),
    ({"LEADS": ["II", "II"]}, "LEADS = "), ({"LEADS": ["V9"]}, "lead V9 is not in"), ({"EPOCHS": {"ptbxl": 0}}, "EPOCHS"),
    ({"CROP_SECONDS": {"ptbxl": 20}}, "shorter than the 2000"), ({"LEARNING_RATE": {"ptbxl": {"mlp": 1e9}}}, "the loss is"),
    ({"LEARNING_RATE": {"mlp": 1e-3}}, "LEARNING_RATE = .*: expected a number above 0 for ptbxl mlp"),
    ({"KEEP": "last"}, "KEEP = 'last': expected one of"), ({"TRAIN_FRACTION": 0}, "TRAIN_FRACTION = 0: expected"),
    ({"STATEMENT_WEIGHT": -1}, "STATEMENT_WEIGHT = -1: expected"), ({"BATCH_SIZE": {"ptbxl": 1}}, "BATCH_SIZE")])
def test_settings_that_cannot_work_are_named(prepared, quick, constants, message):
    with pytest.raises(SystemExit, match=message):
        quick("ptbxl", "mlp", **({"epochs": 3} if "EPOCHS" not in constants else {}), **{
            name: value for name, value in constants.items() if name != "EPOCHS"}, **(
            {"epochs": 0} if "EPOCHS" in constants else {}))


def test_excluded_records_are_left_out_everywhere_and_must_exist(prepared, quick):
    checkpoint = quick(EXCLUDED_RECORDS=["202", "114"])
    assert not {"202", "114"} & {name for side in checkpoint["split_parts"].values() for name in side}
    with pytest.raises(SystemExit, match="EXCLUDED_RECORDS names 202"):
        quick(EXCLUDED_RECORDS=[202])
