"""cross_dataset_validation.py: strips with known labels, matched leads and rates, honest figures."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

import cross_dataset_validation as stage
import model_training


@pytest.fixture
def run(prepared, monkeypatch):
    """A function that trains a small model on the source and cross-validates it -> the JSON report."""
    def both(source, target, model, **constants):
        for name, value in {"DATASET": source, "MODEL": model, "EPOCHS": {source: 2}, **constants}.items():
            monkeypatch.setattr(model_training, name, value)
        model_training.main()
        for name, value in {"PRETRAINED_DATASET": source, "TEST_DATASET": target, "MODEL": model}.items():
            monkeypatch.setattr(stage, name, value)
        stage.main()
        return json.loads((prepared / f"{source}_to_{target}_{model}_cross.json").read_text())
    return both


def test_mitbih_strips_are_normal_if_and_only_if_all_beats_are(prepared):
    data = model_training.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, ["100", "119", "232"])
    assert strips.signals.shape == (12, 1, 3600)
    for number, (record, start) in enumerate((r, s) for r in ("100", "119", "232") for s in range(0, 14400, 3600)):
        here = data.metadata[(data.metadata["record"] == record) & (data.metadata["sample"] // 3600 == start // 3600)]
        assert strips.abnormal[number] == any(symbol != "N" for symbol in here["symbol"])
        np.testing.assert_array_equal(strips.beats[number] + start, here["sample"])
        row = np.flatnonzero((data.metadata["record"] == record) & (data.metadata["sample"] == start + strips.beats[number][2]))[0]
        peak = strips.beats[number][2]
        np.testing.assert_array_equal(strips.signals[number, 0, peak - 180:peak + 180], data.signals[row, 0])


def test_ptbxl_strips_are_normal_if_norm_is_the_only_superclass(prepared):
    data = model_training.load_dataset("ptbxl")
    strips = stage.ptbxl_strips(data, [10])
    rows = data.metadata[(data.metadata["fold"] == 10) & data.metadata["superclasses"].any(axis=1)]
    expected = [int(not (row[0] == 1 and row.sum() == 1)) for row in rows["superclasses"]]
    assert strips.abnormal.tolist() == expected and strips.signals.shape == (len(expected), 12, 1000)
    assert list(strips.left_out.values()) == [int(np.sum(data.metadata["fold"] == 10)) - len(expected)]


@pytest.mark.parametrize("rate, wanted", [(100, 360), (360, 100), (500, 360), (100, 100)])
def test_resampling_keeps_seconds_and_millivolts(rate, wanted):
    def wave(hertz):
        return np.sin(2 * np.pi * 7 * np.arange(10 * hertz) / hertz + 1).astype(np.float32)
    found = stage.resample(np.stack([wave(rate)] * 2)[:, None], rate, wanted)
    assert found.shape == (2, 1, 10 * wanted) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0, wanted:-wanted], wave(wanted)[wanted:-wanted], atol=.01)


def test_leads_are_matched_by_name():
    twelve = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
    assert stage.match_leads(twelve, ["MLII"])[0] == [1]
    assert stage.match_leads(["V5", "MLII"], ["II"])[0] == [1]
    columns, sentence = stage.match_leads(["MLII"], twelve)
    assert columns == [0] * 12 and "stands in for all 12" in sentence
    for available, wanted in ((twelve, ["V9"]), (["MLII"], ["V2"]), (["MLII"], ["II", "V5"])):
        with pytest.raises(SystemExit, match=f"the model needs lead {wanted[-1]}"):
            stage.match_leads(available, wanted)


def test_beats_of_ptbxl_records_are_found(prepared):
    data = model_training.load_dataset("ptbxl")
    norm = np.flatnonzero((data.metadata["superclasses"] == [1, 0, 0, 0, 0]).all(axis=1))[:10]
    signals = stage.resample(data.signals[norm][:, [1]], 100, 360)[:, 0]
    for signal, peaks in zip(signals, stage.find_beats(signals, 360)):
        assert 5 <= len(peaks) <= 25 and np.diff(peaks).min() > .25 * 360
        near = [np.ptp(signal[max(0, p - 20):p + 20]) for p in peaks]
        assert min(near) > .3 * max(near)


def test_a_strip_without_beats_has_no_score_and_is_counted(run, prepared):
    run("mitbih", "ptbxl", "mlp")
    checkpoint, net = stage.load_checkpoint("mitbih", "mlp")
    strips = stage.ptbxl_strips(model_training.load_dataset("ptbxl"), [9, 10])
    expected, _ = stage.score_strips(checkpoint, net, strips)
    strips.signals = strips.signals.copy()
    strips.signals[3] = 0
    scores, _ = stage.score_strips(checkpoint, net, strips)
    assert np.isnan(scores[3])
    np.testing.assert_allclose(np.delete(scores, 3), np.delete(expected, 3), atol=1e-5)
    before = int(np.isnan(np.delete(expected, 3)).sum())
    assert stage.measure(checkpoint, net, strips).left_out["strips without a usable beat"] == 1 + before


def test_binary_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    abnormal = rng.integers(0, 2, 500)
    scores = .3 * abnormal + .7 * rng.random(500)
    found, predicted = stage.binary_metrics(abnormal, scores, .4), scores >= .4
    assert [found[k] for k in ("auc", "f1", "accuracy", "balanced_accuracy", "sensitivity", "specificity")] == pytest.approx([
        sk.roc_auc_score(abnormal, scores), sk.f1_score(abnormal, predicted), sk.accuracy_score(abnormal, predicted),
        sk.balanced_accuracy_score(abnormal, predicted), sk.recall_score(abnormal, predicted),
        sk.recall_score(1 - abnormal, ~predicted)])
    np.testing.assert_array_equal(found["confusion_matrix"], sk.confusion_matrix(abnormal, predicted))


def test_threshold_has_the_best_balanced_accuracy():
    rng = np.random.default_rng(0)
    abnormal = rng.integers(0, 2, 300)
    scores = np.clip(.3 * abnormal + .7 * rng.random(300), 0, 1)
    best = max(sk.balanced_accuracy_score(abnormal, scores >= cut) for cut in scores)
    assert sk.balanced_accuracy_score(abnormal, scores >= stage.best_threshold(abnormal, scores)) == pytest.approx(best)


@pytest.mark.parametrize("source, target, model", [
    ("mitbih", "ptbxl", "cnn"), ("mitbih", "ptbxl", "mlp"), ("ptbxl", "mitbih", "lstm"), ("ptbxl", "mitbih", "mlp")])
def test_both_directions_give_both_figures_and_the_drop(run, prepared, capsys, source, target, model):
    report = run(source, target, model)
    for figure, value in report["in_domain"].items():
        if isinstance(value, float):
            assert report["drop"][figure] == pytest.approx(value - report["cross_domain"][figure])
    assert report["cross_domain"]["strips"] > 20 and np.sum(report["cross_domain"]["confusion_matrix"]) == report["cross_domain"]["strips"]
    assert report["warnings"] == ["SIMULATED DATA: no figure is a result"] and "SIMULATED DATA" in capsys.readouterr().out
    assert (prepared / f"{source}_to_{target}_{model}_cross.png").read_bytes()[:4] == b"\x89PNG"


def test_one_lead_model_and_leaky_checkpoint_are_named(run, prepared):
    report = run("ptbxl", "mitbih", "cnn", LEADS=["II"], SPLIT="random", TASK="multiclass")
    assert "leads by name: MLII as II" in report["adapted"]["cross_domain"]
    assert any("LEAKY" in warning for warning in report["warnings"])


def test_scores_of_a_beat_model_do_not_depend_on_other_strips(run, prepared):
    run("mitbih", "ptbxl", "mlp")
    checkpoint, net = stage.load_checkpoint("mitbih", "mlp")
    data = model_training.load_dataset("mitbih")
    few, many = (stage.score_strips(checkpoint, net, stage.mitbih_strips(data, names))[0]
                 for names in (["100"], ["100", "119", "232"]))
    np.testing.assert_allclose(few, many[:len(few)], atol=1e-5)


@pytest.mark.parametrize("constants, message", [
    ({"PRETRAINED_DATASET": "ecg"}, "PRETRAINED_DATASET = 'ecg': expected one of"), ({"MODEL": "svm"}, "MODEL = 'svm'"),
    ({"TEST_DATASET": "mitbih"}, "are both mitbih"), ({}, "mitbih_cnn_model.pth is not in this folder")])
def test_bad_settings_stop_with_one_sentence(prepared, monkeypatch, constants, message):
    for name, value in constants.items():
        monkeypatch.setattr(stage, name, value)
    with pytest.raises(SystemExit, match=message):
        stage.main()
