"""model_evaluation.py: metrics against scikit-learn, undefined figures, saliency, the files it writes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

import model_evaluation as stage
import model_training

NAMES = ["N", "S", "V", "F", "Q"]


@pytest.fixture
def trained(prepared, monkeypatch):
    """A function that trains a small model on the simulated data."""
    def train(dataset, model, **constants):
        for name, value in {"DATASET": dataset, "MODEL": model, "EPOCHS": {dataset: 2}, **constants}.items():
            monkeypatch.setattr(model_training, name, value)
        model_training.main()
        monkeypatch.setattr(stage, "DATASET", dataset)
        monkeypatch.setattr(stage, "MODEL", model)
        monkeypatch.setattr(stage, "AVERAGED", {"mitbih": 6, "ptbxl": 1})
    return train


def example(classes=5, rows=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    probability = rng.dirichlet(np.ones(5), rows)
    probability[np.arange(rows), labels] += .3
    return labels, probability / probability.sum(axis=1, keepdims=True)


def test_multiclass_metrics_equal_scikit_learn():
    labels, probability = example()
    found, predicted = stage.multiclass_metrics(labels, probability, NAMES), probability.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["weighted_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="weighted"))
    assert found["macro_auc"] == pytest.approx(sk.roc_auc_score(labels, probability, multi_class="ovr"))
    np.testing.assert_array_equal(found["confusion_matrix"], sk.confusion_matrix(labels, predicted))
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for i, row in enumerate(found["classes"].values()):
        assert [row["positive_predictivity"], row["sensitivity"], row["f1"], row["support"]] == pytest.approx(
            [precision[i], recall[i], f1[i], support[i]])


def test_multilabel_metrics_equal_scikit_learn():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (300, 5))
    probability, thresholds = np.clip(.3 * targets + .7 * rng.random((300, 5)), 0, 1), [.2, .3, .4, .5, .6]
    found, predicted = stage.multilabel_metrics(targets, probability, thresholds, NAMES), probability >= thresholds
    assert found["macro_auc"] == pytest.approx(sk.roc_auc_score(targets, probability, average="macro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, predicted, average="macro"))
    assert found["weighted_f1"] == pytest.approx(sk.f1_score(targets, predicted, average="weighted"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    single = targets.sum(axis=1) == 1
    assert found["single_superclass"]["accuracy"] == pytest.approx(
        np.mean(targets[single].argmax(axis=1) == probability[single].argmax(axis=1)))


def test_a_class_without_test_rows_is_not_available_and_not_zero():
    labels, probability = example(classes=4)
    found = stage.multiclass_metrics(labels, probability, NAMES)
    missing = found["classes"].pop("Q")
    assert missing == {"support": 0, "sensitivity": None, "positive_predictivity": None, "f1": None, "auc": None,
                       "average_precision": None}
    assert found["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in found["classes"].values()]))
    assert stage.show(None) == "n/a"


def test_one_class_alone_has_no_auc():
    row = stage.class_metrics(np.ones(5, bool), np.ones(5, bool), np.linspace(0, 1, 5))
    assert row["auc"] is None and row["sensitivity"] == 1.0


def test_s_without_record_232():
    labels, probability = example()
    records = np.where(np.arange(400) % 2, "232", "100")
    found = stage.aami_metrics(labels, probability, records, NAMES)
    rest = stage.multiclass_metrics(labels[records == "100"], probability[records == "100"], NAMES)
    assert found["S_without_record_232"] == rest["classes"]["S"]
    f1 = sk.f1_score(labels, probability.argmax(axis=1), average=None)
    assert found["mean_f1_nsv"] == pytest.approx(f1[:3].mean()) and found["mean_f1_nsvf"] == pytest.approx(f1[:4].mean())


def test_s_without_record_232_where_it_is_the_only_record():
    labels, probability = example()
    assert stage.aami_metrics(labels, probability, np.full(400, "232"), NAMES)["S_without_record_232"]["f1"] is None


def test_intervals_are_those_of_a_loop_over_resampled_patients():
    rng = np.random.default_rng(0)
    patients, wanted = rng.integers(0, 30, 400), rng.random(400) < .3
    scores = np.round(wanted + rng.normal(size=400), 1)   # with ties
    found = stage.bootstrap(patients, lambda weights: {"auc": stage.weighted_auc(wanted, scores, weights)},
                            resamples=200, seed=3)["auc"]
    drawn = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=200)
    for k in range(200):
        rows = np.concatenate([np.repeat(np.flatnonzero(patients == patient), count) for patient, count in enumerate(drawn[k])])
        assert found[k] == pytest.approx(sk.roc_auc_score(wanted[rows], scores[rows]))
    assert stage.interval(found) == pytest.approx(np.quantile(found, [.025, .975]).tolist())
    assert stage.weighted_auc(wanted, scores, np.ones((1, 400)))[0] == pytest.approx(sk.roc_auc_score(wanted, scores))


def test_an_interval_needs_figures_in_half_of_the_resamples():
    nothing = stage.weighted_auc(np.ones(5, bool), np.arange(5.), np.ones((3, 5)))
    assert np.isnan(nothing).all() and stage.interval(nothing) is None
    assert stage.interval(np.array([.5, .5, np.nan])) == [.5, .5] and stage.interval(np.array([.5, np.nan, np.nan])) is None


def test_figures_of_the_intervals_are_those_of_the_table():
    labels, probability = example()
    wanted, predicted = labels[:, None] == np.arange(5), probability.argmax(axis=1)[:, None] == np.arange(5)
    statistics = stage.statistics_of(wanted, predicted, probability, NAMES)
    found = {name: float(value[0]) for name, value in statistics(np.ones((1, 400))).items()}
    table = stage.multiclass_metrics(labels, probability, NAMES)
    assert {name: found[name] for name in ("accuracy", "macro_f1", "macro_auc")} == pytest.approx({
        name: table[name] for name in ("accuracy", "macro_f1", "macro_auc")})
    assert found["mean_f1_nsv"] == pytest.approx(np.mean([table["classes"][name]["f1"] for name in "NSV"]))
    for name in NAMES:
        for column in ("sensitivity", "positive_predictivity", "f1", "auc"):
            assert found[f"{name} {column}"] == pytest.approx(table["classes"][name][column])


def test_a_model_does_not_differ_from_itself_and_differs_from_a_worse_one():
    labels, probability = example()
    worse = np.random.default_rng(1).permutation(probability)
    names, patients = NAMES, np.arange(400) // 4
    checkpoint = {"task": "multiclass", "class_names": names}
    one, other = (stage.resampled_figures(checkpoint, patients, labels, p) for p in (probability, worse))
    assert all(row == {"value": 0.0, "interval": [0.0, 0.0]} for row in stage.compare(one, one).values())
    assert stage.compare(one, other)["macro_auc"]["interval"][0] > 0


def test_ec57_figures_by_hand():
    names = ["N", "S", "V", "F", "Q"]
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 0, 2])
    predicted = np.array([0, 0, 1, 2, 1, 0, 2, 1, 2, 2, 0, 2])
    records = np.array(["a"] * 10 + ["b"] * 2)
    found = stage.ec57_figures(labels, predicted, records, names)
    assert found["gross"]["VEB"] == pytest.approx(
        {"sensitivity": 2 / 3, "positive_predictivity": 2 / 3, "false_positive_rate": 1 / 7})
    assert found["gross"]["SVEB"] == pytest.approx(
        {"sensitivity": 1 / 2, "positive_predictivity": 1 / 3, "false_positive_rate": 2 / 10})
    assert found["records"]["a"]["beats"] == 10 and found["records"]["b"]["SVEB"]["sensitivity"] is None
    average = found["average"]
    assert average["VEB"]["sensitivity"] == pytest.approx((1 / 2 + 1) / 2) and average["SVEB"]["sensitivity"] == .5


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 5)) * 1.5
    labels = np.array([rng.choice(5, p=p) for p in stage.softmax(logits, axis=1)])
    assert stage.fit_temperature(stage.softmax(3 * logits, axis=1), labels, "multiclass") == pytest.approx(3, rel=.05)
    several = rng.random((20000, 5)) < stage.expit(logits)
    assert stage.fit_temperature(stage.expit(.5 * logits), several.astype(float), "multilabel") == pytest.approx(.5, rel=.05)
    checkpoint = {"task": "multiclass"}
    report = stage.calibration_of(checkpoint, labels, stage.softmax(3 * logits, axis=1), 3.0)
    assert report["after"]["expected_calibration_error"] < .02 < report["before"]["expected_calibration_error"]


def test_reliability_by_hand():
    bins = stage.reliability(np.array([.05, .05, .95, 1.0]), np.array([0, 1, 1, 1]))
    assert bins == [(pytest.approx(.05), .5, 2), (pytest.approx(.975), 1.0, 2)]
    assert stage.calibration_error(bins) == pytest.approx((2 * .45 + 2 * .025) / 4)


def test_chosen_rows_are_correct_ones_around_the_median_confidence():
    probability = np.array([[.9, .1], [.8, .2], [.6, .4], [.3, .7], [.45, .55]])
    wanted, predicted = np.tile([True, False], (5, 1)), probability >= .5
    assert {k: rows.tolist() for k, rows in stage.choose_rows(wanted, predicted, probability, 1).items()} == {0: [1]}
    assert stage.choose_rows(wanted, predicted, probability, 2)[0].tolist() == [1, 0]
    both = wanted | (np.arange(5) == 1)[:, None]   # row 1 has both classes: rows of one class go first
    assert set(stage.choose_rows(both, predicted, probability, 2)[0]) == {0, 2}
    found = stage.choose_rows(wanted[:3, ::-1], predicted[:3], probability[:3], 1)
    assert {k: rows.tolist() for k, rows in found.items()} == {1: [2]}


@pytest.fixture
def small_net():
    torch.manual_seed(0)
    net = model_training.CNN(leads=2, samples=60, features=3, outputs=4, widths=[8, 8], stem_kernel=5, stem_stride=2)
    return net.double().eval()


def test_the_gradient_equals_finite_differences(small_net):
    signals, features, classes = torch.randn(2, 2, 60).double(), torch.randn(2, 3).double(), torch.tensor([1, 3])
    found = stage.attributions("gradient", small_net, 60, signals, features, classes)
    for lead, sample in ((0, 7), (1, 33)):
        step = torch.zeros_like(signals)
        step[:, lead, sample] = 1e-6
        with torch.no_grad():
            change = small_net(signals + step, features) - small_net(signals, features)
            difference = change.gather(1, classes[:, None])[:, 0] / 1e-6
        torch.testing.assert_close(found[:, lead, sample], difference.abs(), atol=1e-4, rtol=1e-3)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits(small_net):
    signals, features, classes = torch.randn(3, 2, 100).double(), torch.randn(3, 3).double(), torch.tensor([0, 1, 3])
    found = stage.attributions("integrated_gradients", small_net, 60, signals, features, classes, steps=400)
    ends = [model_training.crop_logits(small_net, x, features, 60).gather(1, classes[:, None])[:, 0]
            for x in (signals, torch.zeros_like(signals))]
    torch.testing.assert_close(found.sum(dim=(1, 2)), ends[0] - ends[1], atol=2e-3, rtol=2e-2)


def test_grad_cam_is_the_weighted_sum_of_the_maps(small_net):
    signals, features, classes = torch.randn(1, 2, 60).double(), torch.randn(1, 3).double(), torch.tensor([2])
    found = stage.attributions("grad_cam", small_net, 60, signals, features, classes)
    maps = small_net.maps(signals).detach()
    step, gradient = 1e-6, torch.zeros_like(maps)
    with torch.no_grad():
        for place in np.ndindex(*maps.shape):
            moved = maps.clone()
            moved[place] += step
            gradient[place] = (small_net.classify(moved, features) - small_net.classify(maps, features))[0, 2] / step
    expected = (gradient.mean(dim=2, keepdim=True) * maps).sum(dim=1).relu()
    stretched = torch.nn.functional.interpolate(expected[:, None], size=60, mode="linear")[:, 0]
    torch.testing.assert_close(found[:, 0], stretched, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[:, 0], found[:, 1])


def test_attribution_by_lead_adds_the_channels_that_a_voltage_moves():
    attribution = torch.zeros(1, 4, 20)
    attribution[0, :, 10] = torch.tensor([3., 1., -1., 5.])   # of two leads: in heights, then differences
    checkpoint = {"inputs": {"leads": ["a", "b"]}, "sampling_rate": 50, "segment": 24}
    found = stage.by_lead(checkpoint, attribution)
    assert found.shape == (1, 2, 24) and found[0, :, 12].tolist() == [2, 6] and found.sum() == 8


def test_the_deletion_test_knows_a_good_attribution_from_a_moved_one(monkeypatch):
    class Middle(torch.nn.Module):
        """The probability of class 0 is in samples 40 to 60."""
        def __init__(self):
            super().__init__()
            self.normalise_signals = model_training.Normalise(1, 1)

        def forward(self, signals, features):
            x = signals[:, 0, 40:60].sum(dim=1)
            return torch.stack([x, torch.zeros_like(x)], dim=1)
    checkpoint = {"segment": 100, "crop": 100, "task": "multiclass", "class_names": ["a", "b"]}
    net, inputs = Middle(), (torch.ones(30, 1, 100), torch.zeros(30, 0))
    net.register_parameter("device", torch.nn.Parameter(torch.zeros(1)))
    weight = {0: np.tile(((np.arange(100) >= 40) & (np.arange(100) < 60)).astype(float), (30, 1, 1))}
    good, moved = (stage.deletion_test(net, checkpoint, inputs, {0: np.arange(30)}, weight, m) for m in (False, True))
    fifth = stage.DELETED.index(.2)
    assert good[0] == moved[0] > .99 and good[fifth] == pytest.approx(.5) and moved[fifth] > .8


@pytest.mark.parametrize("dataset, model, constants", [
    ("mitbih", "lstm", {"RECORD_RELATIVE": False, "RHYTHM": False, "SPLIT": "random"}),
    ("ptbxl", "mlp", {}), ("ptbxl", "mlp", {"TASK": "multiclass", "LEADS": ["I", "V3"]})])
def test_figures_and_pictures_are_written_and_named_simulated(trained, prepared, capsys, dataset, model, constants):
    trained(dataset, model, **constants)
    stage.main()
    out = capsys.readouterr().out
    report = json.loads((prepared / f"{dataset}_{model}_metrics.json").read_text())
    assert "SIMULATED DATA" in out and report["protocol"]["simulated"] is True
    assert ("LEAKY" in out) == (constants.get("SPLIT") == "random") == report["protocol"]["leaks"]
    assert f"{report['protocol']['test_rows']:,} test rows" in out
    for part in ("confusion", "curves", "calibration", "explanation", "averages", "mistakes"):
        assert (prepared / f"{dataset}_{model}_{part}.png").read_bytes()[:4] == b"\x89PNG"
    page = (prepared / f"{dataset}_{model}_report.html").read_text()
    assert (page.count("data:image/png;base64,") == 6 and "<script" not in page and "http:" not in page
            and "https:" not in page and "SIMULATED" in page)
    table = pd.read_csv(prepared / f"{dataset}_{model}_predictions.csv")
    assert len(table) == report["protocol"]["test_rows"]
    for name, row in report["classes"].items():
        if row["auc"] is not None:
            assert sk.roc_auc_score(table[f"{name} true"], table[f"{name} probability"]) == pytest.approx(row["auc"])
            low, high = report["intervals"][f"{name} auc"] or (row["auc"], row["auc"])
            assert low <= row["auc"] + .02 and high >= row["auc"] - .02
    assert report["accuracy"] == pytest.approx(np.mean(table["true"].fillna("") == table["predicted"].fillna("")))
    found = report["interpretation"]
    assert found["completeness_error"] < .1 and set(found["deletion"]) == set(stage.METHODS)
    assert ("ec57" in report) == (dataset == "mitbih") and ("groups" in report) == (dataset == "ptbxl")


def test_evaluation_uses_the_checkpoints_own_split(quick_pictures, trained, prepared, monkeypatch):
    trained("mitbih", "mlp")
    monkeypatch.setattr(model_training, "EXCLUDED_RECORDS", ["202"])   # changed after training: has no effect
    stage.main()
    report = json.loads((prepared / "mitbih_mlp_metrics.json").read_text())
    records = np.load("mitbih_metadata.npy")["record"]
    assert report["protocol"]["test_rows"] == np.isin(records, report["protocol"]["split_parts"]["test"]).sum()
    assert "202" in report["protocol"]["split_parts"]["test"]


def test_two_checkpoints_are_compared_on_the_same_rows(quick_pictures, trained, prepared, monkeypatch, capsys):
    trained("mitbih", "lstm", EPOCHS={"mitbih": 1})
    trained("mitbih", "mlp")
    monkeypatch.setattr(stage, "COMPARE_WITH", "lstm")
    stage.main()
    report, table = (json.loads((prepared / "mitbih_mlp_metrics.json").read_text()) for _ in range(2))
    monkeypatch.setattr(stage, "MODEL", "lstm")
    monkeypatch.setattr(stage, "COMPARE_WITH", None)
    stage.main()
    other = json.loads((prepared / "mitbih_lstm_metrics.json").read_text())
    row = report["comparison"]["difference"]["accuracy"]
    low, high = row["interval"]
    assert row["value"] == pytest.approx(report["accuracy"] - other["accuracy"]) and low <= row["value"] <= high


@pytest.mark.parametrize("keep", [lambda m: m["record"] == "100", lambda m: ~np.isin(m["symbol"], list("AaJS"))])
def test_a_single_patient_and_a_class_without_test_rows(quick_pictures, trained, prepared, monkeypatch, keep):
    trained("mitbih", "mlp")
    original = stage.task_rows

    def fewer(data, task, sides):
        sides = original(data, task, sides)
        return sides | {"test": sides["test"][keep(data.metadata[sides["test"]])]}
    monkeypatch.setattr(stage, "task_rows", fewer)
    stage.main()
    report = json.loads((prepared / "mitbih_mlp_metrics.json").read_text())
    assert report["protocol"]["test_patients"] >= 1 and report["classes"]["N"]["support"] > 0
    assert None in [row["f1"] for row in report["classes"].values()]


def test_missing_checkpoint_is_named_with_the_command(prepared):
    with pytest.raises(SystemExit, match="mitbih_cnn_model.pth is not in this folder.*python model_training.py"):
        stage.main()
