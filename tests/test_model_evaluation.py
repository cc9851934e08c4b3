"""model_evaluation.py: metrics against scikit-learn, undefined figures, saliency, the files it writes."""

import json

import numpy as np
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
    found = stage.bootstrap(patients, lambda weights: {"auc": stage.weighted_auc(wanted, scores, weights)}, resamples=200, seed=3)["auc"]
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


def test_examples_are_correct_rows_of_median_confidence():
    probability = np.array([[.9, .1], [.8, .2], [.6, .4], [.3, .7], [.45, .55]])
    wanted = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], bool)
    assert stage.choose_examples(wanted, probability, ["a", "b"]) == {"a": 1}
    both = wanted | (np.arange(5) == 1)[:, None]   # row 1 has both classes: a row of one class goes first
    assert stage.choose_examples(both, probability, ["a", "b"])["a"] in (0, 2)
    assert stage.choose_examples(wanted[:, ::-1][:3], probability[:3], ["a", "b"]) == {"b": 2}


@pytest.mark.parametrize("relative", [False, True])
def test_saliency_is_the_gradient(monkeypatch, relative):
    """Against finite differences, for a plain model and for one with record-relative inputs."""
    monkeypatch.setattr(stage, "SMOOTHING", 0)
    torch.manual_seed(0)
    channels = 2 if relative else 1
    net = model_training.MLP(leads=channels, samples=40, features=0, outputs=3, widths=[16], window=1.0, step=1.0).double().eval()
    signals, features = torch.randn(1, channels, 40).double(), torch.zeros(1, 0).double()
    checkpoint = {"crop": 40, "inputs": {"record_relative": relative}, "sampling_rate": 360, "segment": 50}
    found = stage.saliency(net, checkpoint, signals, features, 0, 1)
    with torch.no_grad():
        step = torch.eye(40).double()[:, None] * 1e-5   # the beat's voltage moves both channels
        difference = (net(signals + step, features.expand(40, 0)) - net(signals, features))[:, 1].abs()
    np.testing.assert_allclose(found[0, 5:45], (difference / difference.max()).numpy(), atol=1e-3)
    assert found.shape == (1, 50) and not found[0, :5].any() and not found[0, 45:].any()


@pytest.mark.parametrize("dataset, model, constants", [
    ("mitbih", "cnn", {}), ("mitbih", "lstm", {"RECORD_RELATIVE": False, "RHYTHM": False}), ("mitbih", "mlp", {"SPLIT": "random"}),
    ("ptbxl", "cnn", {}), ("ptbxl", "mlp", {"TASK": "multiclass", "LEADS": ["I", "V3"]})])
def test_figures_and_pictures_are_written_and_named_simulated(trained, prepared, capsys, dataset, model, constants):
    trained(dataset, model, **constants)
    stage.main()
    out = capsys.readouterr().out
    report = json.loads((prepared / f"{dataset}_{model}_metrics.json").read_text())
    assert "SIMULATED DATA" in out and report["protocol"]["simulated"] is True
    assert ("LEAKY" in out) == (constants.get("SPLIT") == "random") == report["protocol"]["leaks"]
    assert f"{report['protocol']['test_rows']:,} test rows" in out
    for part in ("confusion", "saliency"):
        assert (prepared / f"{dataset}_{model}_{part}.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluation_uses_the_checkpoints_own_split(trained, prepared, monkeypatch):
    trained("mitbih", "mlp")
    monkeypatch.setattr(model_training, "EXCLUDED_RECORDS", ["202"])   # changed after training: has no effect
    stage.main()
    report = json.loads((prepared / "mitbih_mlp_metrics.json").read_text())
    records = np.load("mitbih_metadata.npy")["record"]
    assert report["protocol"]["test_rows"] == np.isin(records, report["protocol"]["split_parts"]["test"]).sum()
    assert "202" in report["protocol"]["split_parts"]["test"]


def test_missing_checkpoint_is_named_with_the_command(prepared):
    with pytest.raises(SystemExit, match="mitbih_cnn_model.pth is not in this folder.*python model_training.py"):
        stage.main()
