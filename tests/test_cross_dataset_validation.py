"""cross_dataset_validation.py: strips with known labels, matched leads and rates, figures that can be computed again."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import cross_dataset_validation as stage
import model_evaluation
import model_training
import preprocess_mitbih
import simulate
from conftest import MITBIH

plot_report = stage.plot_report     # the fixture run replaces it
STRIP = {"CONTEXT_SECONDS": 10, "SHIFT_SECONDS": .04, "LOW_PASS": 40}


@pytest.fixture
def run(quick_pictures, prepared, monkeypatch):
    """Function that trains a small model on the source (unless it is there), validates it on the target -> the JSON report."""
    monkeypatch.setattr(model_evaluation, "bootstrap", partial(model_evaluation.bootstrap, resamples=200))

    def both(source, target, model, cross=(), **constants):
        if not (prepared / f"{source}_{model}_model.pth").exists():
            for name, value in {"DATASET": source, "MODEL": model, "EPOCHS": {source: 2}, **constants}.items():
                monkeypatch.setattr(model_training, name, value)
            model_training.main()
        for name, value in {"PRETRAINED_DATASET": source, "TEST_DATASET": target, "MODEL": model, **dict(cross)}.items():
            monkeypatch.setattr(stage, name, value)
        stage.main()
        return json.loads((prepared / f"{source}_to_{target}_{model}_cross.json").read_text())
    return both


# ---- Strips ----

def test_mitbih_strips_are_normal_if_and_only_if_all_beats_are(prepared):
    data = model_training.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, ["100", "119", "232"])
    assert strips.signals.shape == (12, 1, 3600)
    for number, (record, start) in enumerate((r, s) for r in ("100", "119", "232") for s in range(0, 14400, 3600)):
        here = data.metadata[(data.metadata["record"] == record) & (data.metadata["sample"] // 3600 == start // 3600)]
        assert (strips.records[number], strips.samples[number]) == (record, start)
        assert strips.abnormal[number] == any(symbol != "N" for symbol in here["symbol"])
        for name, symbols in (("ventricular", "VEr"), ("supraventricular", "AaJS"), ("LBBB", "L"), ("paced", "/f")):
            assert strips.conditions[name][0][number] == any(symbol in symbols for symbol in here["symbol"])
        np.testing.assert_array_equal(strips.beats[number] + start, here["sample"])
        row = np.flatnonzero((data.metadata["record"] == record)
                             & (data.metadata["sample"] == start + strips.beats[number][2]))[0]
        peak = strips.beats[number][2]
        np.testing.assert_array_equal(strips.signals[number, 0, peak - 180:peak + 180], data.signals[row, 0])


def test_ptbxl_strips_are_normal_if_norm_is_the_only_superclass(prepared):
    data = model_training.load_dataset("ptbxl")
    strips = stage.ptbxl_strips(data, [9, 10])
    rows = data.metadata[np.isin(data.metadata["fold"], [9, 10])]
    for k, row in enumerate(rows):
        classes = row["superclasses"]
        assert strips.known[k] == classes.any() and strips.abnormal[k] == (not (classes[0] == 1 and classes.sum() == 1))
        has = {str(name) for name, value in zip(data.header["statement_names"], row["statements"]) if value >= 0}
        assert strips.conditions["LBBB"][0][k] == ("CLBBB" in has) and strips.conditions["LBBB"][1][k]
        assert strips.conditions["incomplete RBBB"][0][k] == ("IRBBB" in has)
        assert strips.conditions["incomplete RBBB"][1][k] == ("CRBBB" not in has)
    assert strips.records.tolist() == [str(x) for x in rows["ecg_id"]]
    assert list(strips.left_out.values()) == [int(np.sum(~rows["superclasses"].any(axis=1)))]


# ---- R peaks ----

def test_beats_are_found_where_they_were_drawn(prepared):
    data = model_training.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, [str(name) for name in data.header["record_names"]])
    # without ventricular beats: simulated ones are rounder than real ones
    strips = stage.take(strips, np.flatnonzero(~strips.conditions["ventricular"][0]))
    hits = missed = false = 0
    for rate in (360, 100):
        for peaks, truth in zip(stage.find_beats(stage.resample(strips.signals, 360, rate), rate), strips.beats):
            near = np.abs(peaks[:, None] / rate - truth / 360) < .1
            detected = near.any(axis=0)
            hits, missed, false = hits + detected.sum(), missed + (~detected).sum(), false + (~near.any(axis=1)).sum()
    assert hits > 2000 and missed < .02 * hits and false < .05 * hits   # metadata lack the beats at the ends of a record
    assert [len(peaks) for peaks in stage.find_beats(np.zeros((2, 1, 1000), np.float32), 100)] == [0, 0]


def test_detections_are_kept_in_rows_and_made_anew_for_other_signals(prepared, monkeypatch, capsys):
    data = model_training.load_dataset("ptbxl")
    first = stage.beats_of_records(data)
    stored = np.load("ptbxl_beats.npy", allow_pickle=False)
    assert stored["ecg_id"].tolist() == data.metadata["ecg_id"].tolist() and stored["beats"].shape == (300, 64)
    row = stage.find_beats(data.signals[7:8], 100)[0]
    np.testing.assert_allclose(stored["beats"][7, :len(row)], row / 100, rtol=1e-6)
    assert np.isnan(stored["beats"][7, len(row):]).all() and "none in 0" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(stage, "find_beats", None)
        np.testing.assert_array_equal(stage.beats_of_records(data), first)
    data.signals = np.roll(data.signals, 200, axis=2)
    data.signals[0, 0, 0] += 1
    assert not np.array_equal(stage.beats_of_records(data), first, equal_nan=True)
    (prepared / "ptbxl_beats.npy").write_bytes(b"no array")
    with pytest.raises(SystemExit, match="ptbxl_beats.npy is damaged"):
        stage.beats_of_records(data)


# ---- Match ----

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
    assert stage.match_leads(twelve, ["MLII", "V1"])[0] == [1, 6]
    assert stage.match_leads(["V5", "MLII"], ["II"])[0] == [1]
    assert stage.match_leads(["ECG1"], ["MLII"])[0] == [0]
    columns, sentence = stage.match_leads(["MLII"], twelve)
    assert columns == [0] * 12 and "stands in for all 12" in sentence
    for available, wanted in ((twelve, ["V9"]), (["MLII"], ["V2"]), (["MLII"], ["II", "V5"])):
        with pytest.raises(SystemExit, match=f"the model needs lead {wanted[-1]}"):
            stage.match_leads(available, wanted)


def test_annotated_and_detected_beats_give_the_model_the_same_inputs(run, prepared):
    run("mitbih", "ptbxl", "mlp", **STRIP)
    checkpoint, net = stage.load_checkpoint("mitbih", "mlp")
    strips = stage.mitbih_strips(model_training.load_dataset("mitbih"), ["100", "103", "112"])
    annotated, _, _ = stage.units_of(checkpoint, net, strips)
    strips.beats, strips.beats_are = stage.find_beats(strips.signals, 360), "found"
    detected, _, sentences = stage.units_of(checkpoint, net, strips)
    assert "beats: found" in sentences
    assert abs(len(detected[0]) - len(annotated[0])) <= .02 * len(annotated[0]) + len(strips.beats)
    np.testing.assert_allclose(detected[0].mean(dim=0), annotated[0].mean(dim=0), atol=.08)


# ---- Figures ----

def test_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    abnormal, known = rng.random(500) < .4, rng.random(500) < .9
    score = np.round(abnormal + rng.normal(size=500), 1)   # with ties
    result = stage.SimpleNamespace(abnormal=abnormal, known=known, score=score, probability=stage.expit(score), threshold=.6,
                                   patients=np.arange(500) // 3, conditions={"PVC": (abnormal, known, -score)})
    found = {name: values[0] for name, values in stage.resampled(result.patients, stage.statistics_of(result)).items()}
    truth, called = abnormal[known], stage.expit(score[known]) >= .6
    assert [found[k] for k in ("auc", "f1", "balanced_accuracy", "sensitivity", "specificity", "PVC")] == pytest.approx([
        sk.roc_auc_score(truth, score[known]), sk.f1_score(truth, called), sk.balanced_accuracy_score(truth, called),
        sk.recall_score(truth, called), sk.recall_score(~truth, ~called), sk.roc_auc_score(truth, -score[known])])
    bins = stage.reliability(result.probability[known], truth)
    assert sum(n for _, _, n in bins) == known.sum()
    assert found["calibration_error"] == pytest.approx(sum(n * abs(p - share) for p, share, n in bins) / known.sum())


def test_probabilities_of_validation_strips_are_calibrated():
    rng = np.random.default_rng(0)
    score = rng.normal(size=20000)
    result = stage.SimpleNamespace(score=score, abnormal=rng.random(20000) < stage.expit(2 * score - 1),
                                   known=np.ones(20000, bool))
    slope, intercept, threshold = stage.fit_decision(result)
    assert slope == pytest.approx(2, abs=.1) and intercept == pytest.approx(-1, abs=.1)
    called = stage.expit(slope * score + intercept) >= threshold
    best = max(sk.balanced_accuracy_score(result.abnormal, score >= cut) for cut in np.quantile(score, np.arange(.05, 1, .05)))
    assert sk.balanced_accuracy_score(result.abnormal, called) >= best


def test_a_strips_score_is_the_mean_or_the_largest_of_its_beats():
    values, number = np.array([1., 5, 3, -2, 4]), np.array([0, 0, 0, 2, 2])
    np.testing.assert_array_equal(stage.aggregate(values, number, 4, "mean"), [3, np.nan, 1, np.nan])
    np.testing.assert_array_equal(stage.aggregate(values, number, 4, "max"), [5, np.nan, 4, np.nan])


@pytest.mark.parametrize("source, target, model, constants", [
    ("mitbih", "ptbxl", "cnn", STRIP), ("mitbih", "ptbxl", "mlp", {}),
    ("ptbxl", "mitbih", "lstm", {"LEADS": ["II"], "LOW_PASS": 40}), ("ptbxl", "mitbih", "mlp", {"TASK": "multiclass"})])
def test_both_directions_give_figures_that_the_saved_scores_repeat(run, prepared, capsys, monkeypatch, source, target, model,
                                                                   constants):
    monkeypatch.setattr(stage, "plot_report", plot_report)
    report = run(source, target, model, **constants)
    table = pd.read_csv(prepared / f"{source}_to_{target}_{model}_cross.csv")
    for side in ("in_domain", "cross_domain"):
        rows = table[(table["side"] == side) & table["abnormal"].notna()]
        assert len(rows) == report[side]["normal_or_abnormal"] > 20
        assert sk.roc_auc_score(rows["abnormal"], rows["score"]) == pytest.approx(report[side]["auc"]["value"])
        called = rows["probability"] >= report["threshold"]
        assert sk.f1_score(rows["abnormal"], called) == pytest.approx(report[side]["f1"]["value"])
        low, high = report[side]["auc"]["interval"]
        assert low < report[side]["auc"]["value"] < high
        names = [name for name in stage.CONDITIONS if name in report[side]]
        assert "ventricular" in names or source == "ptbxl" or side == "in_domain"
        for name in names:
            of = table[(table["side"] == side) & table[f"{name} truth"].notna()]
            assert sk.roc_auc_score(of[f"{name} truth"], of[f"{name} score"]) == pytest.approx(report[side][name]["value"])
    for name, drop in report["drop"].items():
        assert drop["value"] == pytest.approx(report["in_domain"][name]["value"] - report["cross_domain"][name]["value"])
    ids = set(model_training.load_dataset("ptbxl").metadata["ecg_id"].tolist())
    ecgs = table[table["side"] == ("cross_domain" if target == "ptbxl" else "in_domain")]["record"].astype(int)
    assert set(ecgs) <= ids and ecgs.is_unique
    assert report["warnings"] == ["SIMULATED DATA: no figure is a result"] and "SIMULATED DATA" in capsys.readouterr().out
    assert (prepared / f"{source}_to_{target}_{model}_cross.png").read_bytes()[:4] == b"\x89PNG"


def test_shuffled_labels_give_an_interval_around_one_half(run, prepared, monkeypatch):
    original = stage.strips_of

    def shuffled(data, *arguments):
        strips = original(data, *arguments)
        if data.name == "ptbxl":
            strips.abnormal = np.random.default_rng(0).permutation(strips.abnormal)
        return strips
    monkeypatch.setattr(stage, "strips_of", shuffled)
    low, high = run("mitbih", "ptbxl", "mlp")["cross_domain"]["auc"]["interval"]
    assert low < .5 < high


def test_each_switch_changes_what_the_target_shows_the_model_and_nothing_else(run, prepared, monkeypatch):
    def scores(**cross):
        report = run("mitbih", "ptbxl", "cnn", cross, **STRIP)
        table = pd.read_csv("mitbih_to_ptbxl_cnn_cross.csv")
        return report["in_domain"], table.loc[table["side"] == "cross_domain", "score"].to_numpy()
    inside, usual = scores()
    for name in ("RESAMPLE", "BAND_LIMIT", "MATCH_LEADS", "ALIGN_BEATS", "RHYTHM", "AGGREGATE"):
        inside_too, changed = scores(**{name: False})
        assert len(changed) == len(usual) and np.abs(changed - usual).max() > 1e-6 and inside_too == inside, name
        monkeypatch.setattr(stage, name, True)
    # beats are in heights of their strip's median beat
    np.testing.assert_allclose(scores(MILLIVOLTS=False)[1], usual, atol=.01)


@pytest.mark.parametrize("source, target", [("mitbih", "ptbxl"), ("ptbxl", "mitbih")])
def test_adaptations_change_the_target_alone(run, prepared, source, target):
    usual = run(source, target, "cnn")
    for cross in ({"ADAPTATION": "adabn"}, {"ADAPTATION": "coral"}, {"ADAPTATION": "none", "FINE_TUNE_PATIENTS": 15}):
        report = run(source, target, "cnn", cross)
        assert report["in_domain"] == usual["in_domain"] and report["cross_domain"]["auc"] != usual["cross_domain"]["auc"]
        assert len(report["cross_domain"]["adapted"]) == len(usual["cross_domain"]["adapted"]) + 1
        assert report["cross_domain"]["rows"] == usual["cross_domain"]["rows"]
    assert report["cross_domain"]["auc"]["value"] > .6   # 15 labelled patients of simulated data are enough for that


def test_coral_gives_the_target_the_sources_statistics():
    rng = np.random.default_rng(0)
    mix = [rng.normal(size=(5, 5)) + 4 * np.eye(5) for _ in range(2)]
    source, target = rng.normal(size=(4000, 5)) @ mix[0] + 3, rng.normal(size=(3000, 5)) @ mix[1] - 1
    matrix, shift = stage.coral(target, source)
    found = target @ matrix + shift
    np.testing.assert_allclose(found.mean(axis=0), source.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(np.cov(found.T), np.cov(source.T), atol=.05 * np.trace(np.cov(source.T)) / 5)


def test_one_lead_model_and_leaky_checkpoint_are_named(run, prepared):
    report = run("ptbxl", "mitbih", "cnn", LEADS=["II"], SPLIT="random", TASK="multiclass")
    assert "leads by name: MLII as II" in report["cross_domain"]["adapted"]
    assert any("LEAKY" in warning for warning in report["warnings"])


def test_a_model_trained_on_all_records_has_no_figures_in_its_own_domain(run, prepared, capsys):
    report = run("mitbih", "ptbxl", "mlp", SPLIT="all", **STRIP)
    assert report["in_domain"] is None and report["drop"] is None and report["cross_domain"]["auc"]["value"] > 0
    assert "in-domain: none" in capsys.readouterr().out


def test_the_whole_target_has_all_rows(run, prepared):
    report = run("mitbih", "ptbxl", "mlp", {"WHOLE_TARGET": True})
    assert report["cross_domain"]["rows"] == 300
    report = run("ptbxl", "mitbih", "mlp", {"WHOLE_TARGET": True})
    assert report["cross_domain"]["rows"] == 46 * 4   # with two paced records; 102 and 104 have no MLII


def test_scores_of_a_beat_model_do_not_depend_on_other_strips(run, prepared):
    run("mitbih", "ptbxl", "mlp")
    checkpoint, net = stage.load_checkpoint("mitbih", "mlp")
    data = model_training.load_dataset("mitbih")
    few, many = (stage.scored_strips(checkpoint, net, stage.mitbih_strips(data, names)).score
                 for names in (["100"], ["100", "119", "232"]))
    np.testing.assert_allclose(few, many[:len(few)], atol=1e-5)


def test_a_strip_without_beats_has_no_score_and_is_counted(run, prepared):
    run("mitbih", "ptbxl", "mlp")
    checkpoint, net = stage.load_checkpoint("mitbih", "mlp")
    strips = stage.ptbxl_strips(model_training.load_dataset("ptbxl"), [9, 10], need_beats=True)
    expected = stage.scored_strips(checkpoint, net, strips, True)
    strips.beats[3] = strips.beats[3][:0]
    found = stage.scored_strips(checkpoint, net, strips, True)
    np.testing.assert_allclose(found.score, np.delete(expected.score, 3), atol=1e-5)
    assert found.left_out["strips without a beat"] == 1 and strips.records[3] not in found.records


# ---- A third database ----

def test_a_third_database_of_beats_takes_a_few_constants(run, prepared, monkeypatch, capsys):
    names = {"101": "800", "106": "801", "208": "802", "209": "803"}   # the same ECGs as in the source, under other names
    simulate.write_mitbih(prepared / MITBIH, records=list(names), seconds=40)
    simulate.write_at_rate(prepared / MITBIH, prepared / "svdb", names, 128, ["ECG1", "ECG2"])
    with monkeypatch.context() as patch:
        for name, value in {"NAME": "svdb", "DATA_DIR": "svdb", "LEADS": ["ECG1"]}.items():
            patch.setattr(preprocess_mitbih, name, value)
        preprocess_mitbih.main()
    report = run("mitbih", "svdb", "cnn", ADAPTED_CLASSES={"aami": []})
    classes = report["cross_domain"]["classes"]
    table = pd.read_csv("mitbih_to_svdb_cnn_cross.csv")
    rows = table[table["side"] == "cross_domain"]
    labels = np.load("svdb_labels.npy")
    assert report["unit"] == "beats" and len(rows) == len(labels) and set(rows["record"].astype(str)) == set(names.values())
    np.testing.assert_array_equal(rows["V truth"], labels == 2)
    assert set(classes["classes"]) == set("NSVFQ") and classes["classes"]["V"]["support"] == np.sum(labels == 2)
    assert "leads by name: ECG1 as MLII" in report["cross_domain"]["adapted"]
    checkpoint, net = stage.load_checkpoint("mitbih", "cnn")
    original = stage.scored_beats(checkpoint, net, model_training.load_dataset("mitbih"), list(names))
    at = {(names[record], round(sample / 5)): score
          for record, sample, score in zip(original.records, original.samples, original.score)}
    pairs = np.array([(at[key], row["score"]) for _, row in rows.iterrows()
                      if (key := (str(row["record"]), round(row["sample"] / 5))) in at])
    assert len(pairs) > .8 * len(rows) and np.corrcoef(pairs.T)[0, 1] > .95
    assert "mean_f1_nsv" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="svdb has annotated beats"):
        run("mitbih", "svdb", "cnn", {"ADAPTATION": "adabn"})


# ---- Bad input ----

@pytest.mark.parametrize("constants, message", [
    ({"PRETRAINED_DATASET": "ecg"}, "PRETRAINED_DATASET = 'ecg': expected one of"), ({"MODEL": "svm"}, "MODEL = 'svm'"),
    ({"ADAPTATION": "dann"}, "ADAPTATION = 'dann'"), ({"FINE_TUNE_PATIENTS": -1}, "FINE_TUNE_PATIENTS = -1: expected"),
    ({"WHOLE_TARGET": True, "ADAPTATION": "coral"}, "WHOLE_TARGET = True leaves no rows"),
    ({"TEST_DATASET": "mitbih"}, "are both mitbih"), ({}, "mitbih_cnn_model.pth is not in this folder")])
def test_bad_settings_stop_with_one_sentence(prepared, monkeypatch, constants, message):
    for name, value in constants.items():
        monkeypatch.setattr(stage, name, value)
    with pytest.raises(SystemExit, match=message):
        stage.main()
