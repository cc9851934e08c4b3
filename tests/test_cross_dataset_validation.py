"""cross_dataset_validation.py: strips with known labels, matched leads and rates, figures."""

import json
import re
from collections import Counter
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import simulate
import torch
import wfdb
from conftest import MITBIH
from harness import changed, contents, run_stage, train
from measure_cross import everything
from scipy.special import expit
from sklearn import metrics as sk

import cross_dataset_validation as stage
import model_training
import preprocess_mitbih
import preprocess_ptbxl

pytestmark = pytest.mark.usefixtures("few_resamples", "coarse_pictures")
TWELVE = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
SIDES = ("in-domain", "cross-domain")


def cross(source, target, model, **constants):
    """Runs the script -> its JSON report and its table of scores."""
    run_stage(stage, PRETRAINED_DATASET=source, TEST_DATASET=target, MODEL=model, **constants)
    name = f"{source}_to_{target}_{model}_cross"
    with open(f"{name}.json") as file:
        report = json.load(file)
    return report, pd.read_csv(f"{name}.csv", dtype={"record": str, "patient": str})


def values(report, side):
    """Report, side -> dict of figure -> value."""
    return {figure: row["value"] for figure, row in report["tables"][side].items()}


# ---- Strips ----

def test_mitbih_strips_are_labelled_by_their_beats(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, ["100", "119", "232"])
    starts = [0, 3600, 7200, 10800]
    assert strips.signals.shape == (12, 2, 3600)
    assert strips.place["record"].tolist() == ["100"] * 4 + ["119"] * 4 + ["232"] * 4
    assert strips.place["sample"].tolist() == 3 * starts
    marks_of = {"PVC": "VEr", "PAC": "AaJS", "CLBBB": "L", "CRBBB": "R", "PACE": "/f"}
    for k, strip in strips.place.iterrows():
        in_strip = (data.record == strip["record"]) & (
            data.metadata["sample"] // 3600 * 3600 == strip["sample"])
        beats = data.metadata[in_strip]
        for name, symbols in marks_of.items():
            has = np.isin(beats["symbol"], list(symbols))
            expected = np.nan if name == "PAC" and has.mean() > 0.5 else float(has.any())
            np.testing.assert_equal(strips.truth.loc[k, name], expected)
        np.testing.assert_array_equal(strips.beats[k] + strip["sample"], beats["sample"])
        peak = strips.beats[k][2]
        row = np.flatnonzero(in_strip)[2]
        np.testing.assert_array_equal(strips.signals[k, :, peak - 180:peak + 180],
                                      data.signals[row])


def test_a_strip_is_normal_where_every_beat_and_the_rhythm_are(work):
    """20 s of each rhythm; the third one has a ventricular beat."""
    Path(MITBIH).mkdir()
    peaks = np.arange(200, 80 * 360 - 200, 300)
    simulate.write_record(MITBIH, "p", simulate.pulse_ecg(peaks, 80 * 360, 360), 360)
    symbols = np.where(peaks == peaks[60], "V", "N")
    marks = sorted([*((int(peak), symbol, "") for peak, symbol in zip(peaks, symbols)),
                    *((20 * 360 * k + 1, "+", rhythm) for k, rhythm in
                      enumerate(["(N", "(AFIB", "(N", "(NOD"]))])
    sample, symbol, aux = zip(*marks)
    wfdb.wrann("p", "atr", np.array(sample), list(symbol), aux_note=list(aux), write_dir=MITBIH)
    run_stage(preprocess_mitbih, NAME="own", RECORDS=["p"], LEADS=["MLII"])
    strips = stage.mitbih_strips(preprocess_mitbih.load_dataset("own"), ["p"])
    truth = strips.truth
    has_v = [False] * 8
    has_v[int(peaks[60] // 3600)] = True
    assert truth["PVC"].tolist() == has_v
    assert truth["AFIB"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert truth["abnormal"].tolist() == [0, 0, 1, 1, *map(float, has_v[4:6]), 1, 1]
    assert truth[stage.BOTH].isna().tolist() == [False] * 6 + [True] * 2   # PTB-XL has no nodal one
    assert (truth[stage.BOTH].dropna() == truth["abnormal"][:6]).all()


def test_a_false_detection_leaves_a_strip_normal(work):
    """Marks are left out of the second 10 s: what is detected there has no annotated beat."""
    Path(MITBIH).mkdir()
    peaks = np.arange(200, 30 * 360 - 200, 300)
    simulate.write_record(MITBIH, "p", simulate.pulse_ecg(peaks, 30 * 360, 360), 360)
    marked = peaks[(peaks < 3700) | (peaks > 7000)]
    wfdb.wrann("p", "atr", marked, ["N"] * len(marked), write_dir=MITBIH)
    run_stage(preprocess_mitbih, NAME="own", RECORDS=["p"], LEADS=["MLII"], R_PEAKS="detected")
    data = preprocess_mitbih.load_dataset("own")
    assert (data.metadata["symbol"] == "").any()
    assert not stage.mitbih_strips(data, ["p"]).truth["abnormal"].any()


def test_records_of_which_another_lead_stands_in_have_strips(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, ["102", "107"])   # 102 has no MLII
    assert strips.place["record"].tolist() == ["102"] * 4 + ["107"] * 4
    assert strips.left_out.total() == 0


def test_a_strip_without_an_annotated_beat_is_counted(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    kept = (data.record != "100") | (data.metadata["sample"] // 3600 != 2)
    data.metadata = data.metadata[kept]
    strips = stage.mitbih_strips(data, ["100", "119"])
    assert strips.place["sample"].tolist() == [0, 3600, 10800, 0, 3600, 7200, 10800]
    assert strips.left_out == {"strips without a beat": 1}


def test_ptbxl_strips_are_labelled_by_superclasses_and_statements(prepared):
    data = preprocess_mitbih.load_dataset("ptbxl")
    strips = stage.ptbxl_strips(data, [9, 10])
    rows = data.metadata[np.isin(data.metadata["fold"], [9, 10])]
    assert strips.place["record"].tolist() == rows["record"].tolist()
    for peaks, row in zip(strips.beats, rows):
        assert peaks.tolist() == [peak for peak in row["beats"] if peak >= 0]
    for k, row in enumerate(rows):
        superclasses = {name for name, has in zip(data.header.class_names, row["superclasses"])
                        if has}
        statements = {name for name, value in zip(data.header.statement_names, row["statements"])
                      if value >= 0}
        truth = {name: name in statements for name in data.header.statement_names}
        truth |= {"AFIB": not statements.isdisjoint(["AFIB", "AFLT"]), "SVTAC": np.nan}   # no name
        abnormal = superclasses != {"NORM"} if superclasses else np.nan
        both = any(truth[name] for name in stage.NAMED if name in {*statements, "AFIB"})
        both = both if both or superclasses == {"NORM"} else np.nan
        truth = {"abnormal": abnormal, stage.BOTH: both} | truth
        del truth["NORM"]
        pd.testing.assert_series_equal(strips.truth.loc[k], pd.Series(truth, dtype=float),
                                       check_names=False)
    assert strips.truth[["PVC", "PAC", "CLBBB", "CRBBB", "PACE", stage.BOTH]].any().all()
    unknown = np.sum(rows["superclasses"].sum(axis=1) == 0)
    assert strips.left_out == {"pieces without a label of normal or abnormal": unknown}


def test_beats_are_found_where_they_were_drawn(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, [record["name"] for record in data.header.records])
    # without ventricular beats: simulated ones are rounder than real ones
    rows = np.flatnonzero(strips.truth["PVC"] == 0)
    counts = Counter()
    for rate in (360, 100):
        signals = stage.resample(strips.signals[rows], 360, rate)
        for row, signal in zip(rows, signals):
            peaks = preprocess_mitbih.detect_beats(signal[:1], rate)
            near = np.abs(peaks[:, None] / rate - strips.beats[row] / 360) < 0.1
            counts["hits"] += near.any(axis=0).sum()
            counts["missed"] += (~near.any(axis=0)).sum()
            counts["false"] += (~near.any(axis=1)).sum()
    assert counts["hits"] > 2000 and counts["missed"] < 0.02 * counts["hits"]
    assert counts["false"] < 0.05 * counts["hits"]   # the metadata lack the outermost beats


def test_no_beat_is_found_in_a_flat_strip():
    assert len(preprocess_mitbih.detect_beats(np.zeros((1, 1000), np.float32), 100)) == 0


# ---- Match the strips to the model ----

@pytest.mark.parametrize("rate, target", [(100, 360), (360, 100), (500, 360), (100, 100)])
def test_resampling_keeps_seconds_and_millivolts(rate, target):
    def wave(hertz):
        return np.sin(2 * np.pi * 7 * np.arange(10 * hertz) / hertz + 1).astype(np.float32)
    signals = stage.resample(np.stack([wave(rate)] * 2)[:, None], rate, target)
    assert signals.shape == (2, 1, 10 * target) and signals.dtype == np.float32
    middle = slice(target, -target)
    np.testing.assert_allclose(signals[1, 0, middle], wave(target)[middle], atol=0.01)


@pytest.mark.parametrize("available, wanted, columns", [
    (TWELVE, ["MLII"], [1]), (TWELVE, ["MLII", "V1"], [1, 6]), (["V5", "MLII"], ["II"], [1]),
    (["ECG1"], ["MLII"], [0]), (["MLII"], TWELVE, [None, 0, *[None] * 10]),
    (TWELVE, TWELVE, list(range(12))), (["MLII"], ["MLII", "V1"], [0, None]),
    (["aVR", "lead ii"], ["MLII"], [1]), (["ECG"], ["MLII", "V1"], [0, None]),
    (["MLII", "V1"], ["II", "V5"], [0, None])])
def test_leads_are_matched_by_name_and_an_absent_one_is_0(available, wanted, columns):
    signals = np.random.default_rng(0).normal(size=(3, len(available), 50)).astype(np.float32)
    matched, sentence = stage.match_leads(signals, available, wanted)
    for lead, column in zip(matched.swapaxes(0, 1), columns):
        np.testing.assert_array_equal(lead, 0 if column is None else signals[:, column])
    pairs = [f"{available[column]} as {name}" for name, column in zip(wanted, columns)
             if column is not None]
    assert sentence == f"leads: {', '.join(pairs)}"


@pytest.mark.parametrize("available, wanted", [(TWELVE, ["V9"]), (["MLII", "V5"], ["V2"])])
def test_other_leads_are_refused_with_one_sentence(available, wanted):
    with pytest.raises(SystemExit, match=f"needs one of the leads {', '.join(wanted)}, but") as e:
        stage.match_leads(np.zeros((1, len(available), 9)), available, wanted)
    assert "\n" not in str(e.value)


def test_annotated_and_detected_beats_give_the_model_the_same_inputs(trained):
    trained("mitbih", "mlp")
    data = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, _ = stage.load_checkpoint(data, "mlp", strips=True)
    strips = stage.mitbih_strips(data, ["100", "103", "112"])
    every = np.arange(12)
    (annotated, _), number, _ = stage.inputs_of(checkpoint.recipe, strips, every)
    strips.beats = [preprocess_mitbih.detect_beats(signal[:1], 360) for signal in strips.signals]
    (detected, _), again, _ = stage.inputs_of(checkpoint.recipe, strips, every)
    more = np.bincount(again) - np.bincount(number)
    assert np.abs(more).max() <= 1   # a beat at the edge of a strip
    np.testing.assert_allclose(detected.mean(dim=0), annotated.mean(dim=0), atol=0.08)


def test_strips_of_another_rate_give_the_model_the_same_inputs(trained):
    trained("mitbih", "mlp")
    data = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, _ = stage.load_checkpoint(data, "mlp", strips=True)
    strips = stage.mitbih_strips(data, ["100", "103"])
    strips.beats = [peaks // 18 * 18 for peaks in strips.beats]   # whole samples at 100 Hz, too
    every = np.arange(8)
    (expected, _), number, _ = stage.inputs_of(checkpoint.recipe, strips, every)
    strips.signals = stage.resample(strips.signals, 360, 100)
    strips.beats = [peaks // 18 * 5 for peaks in strips.beats]
    strips.rate = 100
    (signals, _), again, notes = stage.inputs_of(checkpoint.recipe, strips, every)
    np.testing.assert_array_equal(again, number)
    assert np.corrcoef(signals.ravel(), expected.ravel())[0, 1] > 0.99
    assert "sampling rate: 100 to 360 Hz" in notes


# ---- Scores ----

def mitbih_model(trained, model="mlp", records=("100", "119", "232")):
    """-> checkpoint, net and strips: arguments of score_strips."""
    trained("mitbih", model)
    data = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, net = stage.load_checkpoint(data, model, strips=True)
    return checkpoint, net, stage.mitbih_strips(data, list(records))


def test_a_strips_score_is_the_mean_or_the_largest_log_odds_of_its_beats(trained):
    checkpoint, net, strips = arguments = mitbih_model(trained)
    result = stage.score_strips(*arguments)
    (signals, features), number, _ = stage.inputs_of(checkpoint.recipe, strips, np.arange(12))
    with torch.no_grad():   # a beat has a single crop
        odds = net(signals, features).numpy()[:, len(checkpoint.header.class_names):]
    place = checkpoint.header.statement_names.index
    for k in range(12):
        of_strip = odds[number == k]
        expected = [-of_strip[:, place("NORM")].mean(), of_strip[:, place("PVC")].max(),
                    of_strip[:, place("PAC")].max(), of_strip[:, place("AFIB")].mean()]
        scores = result.scores.loc[k, ["abnormal", "PVC", "PAC", "AFIB"]]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_records_score_for_a_statement_comes_from_the_statements_own_output(trained):
    trained("ptbxl", "mlp")
    data = preprocess_mitbih.load_dataset("ptbxl")
    checkpoint, net = stage.load_checkpoint(data, "mlp")
    strips = stage.ptbxl_strips(data, [10])
    result = stage.score_strips(checkpoint, net, strips)
    crop = checkpoint.recipe.crop
    starts = model_training.crop_starts(1000, crop)
    signals, features = model_training.record_inputs(strips.signals, strips.beats, 100)
    with torch.no_grad():
        logits = np.stack([net(signals[:, :, start:start + crop], features) for start in starts])
    statement = {name: k for k, name in enumerate(data.header.statement_names)}
    mean = {name: logits[:, :, k].mean(axis=0) for name, k in statement.items()}
    abnormal = -mean.pop("NORM")
    expected = mean | {
        "abnormal": abnormal,
        "PVC": logits[:, :, statement["PVC"]].max(axis=0),
        "PAC": logits[:, :, statement["PAC"]].max(axis=0),
        "AFIB": np.maximum(mean["AFIB"], mean.get("AFLT", -np.inf))}
    assert set(result.scores) == {*expected, "SVTAC", stage.BOTH}
    for name, scores in expected.items():
        np.testing.assert_allclose(result.scores[name], scores, rtol=1e-4, atol=1e-5)


def test_scores_do_not_depend_on_other_strips_and_a_strip_without_beats_has_none(trained):
    checkpoint, net, strips = mitbih_model(trained)
    whole = stage.score_strips(checkpoint, net, strips)
    strips.beats[3] = strips.beats[3][:0]
    fewer = stage.score_strips(checkpoint, net, strips)
    assert fewer.left_out["strips without a beat"] == 1
    pd.testing.assert_frame_equal(fewer.truth, whole.truth.drop(3).reset_index(drop=True))
    pd.testing.assert_frame_equal(fewer.place, whole.place.drop(3).reset_index(drop=True))
    np.testing.assert_allclose(fewer.scores, whole.scores.drop(3), atol=1e-5)


def test_strips_without_any_beat_are_refused_with_one_sentence(trained):
    checkpoint, net, strips = mitbih_model(trained)
    strips.beats = [peaks[:0] for peaks in strips.beats]
    with pytest.raises(SystemExit, match="^no beat was found in 12 strips$"):
        stage.score_strips(checkpoint, net, strips)


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_a_target_without_a_strip_is_refused_with_one_sentence(trained, source):
    trained(source, "mlp")
    data = preprocess_mitbih.load_dataset(source)
    other = preprocess_mitbih.load_dataset("mitbih" if data.is_ptbxl else "ptbxl")
    checkpoint, net = model_training.load_checkpoint(data, "mlp", strips=True)
    with pytest.raises(SystemExit, match="^there is no piece of 10 s to score"):
        stage.score_strips(checkpoint, net, stage.strips_of(other, []))


def test_records_shorter_than_a_strip_are_refused_with_one_sentence(trained):
    trained("ptbxl", "mlp")
    simulate.write_mitbih("short", records=("101", "102"), seconds=8)
    run_stage(preprocess_mitbih, NAME="own", DATA_DIR="short", RECORDS=["101"])
    with pytest.raises(SystemExit, match="^there is no piece of 10 s to score"):
        cross("ptbxl", "own", "mlp")


def test_pieces_of_a_record_have_one_score_the_largest(trained):
    trained("ptbxl", "mlp")
    data = preprocess_mitbih.load_dataset("ptbxl")
    checkpoint, net = stage.load_checkpoint(data, "mlp")
    strips = stage.ptbxl_strips(data, [10])
    single = stage.score_strips(checkpoint, net, strips)
    names = strips.place["record"].copy()
    names[1::2] = names[::2].to_numpy()[:len(names[1::2])]
    strips.place["record"] = names
    result = stage.score_strips(checkpoint, net, strips)
    pd.testing.assert_frame_equal(
        result.scores, single.scores.groupby(names, sort=False).max().reset_index(drop=True))
    pd.testing.assert_frame_equal(
        result.truth, single.truth.groupby(names, sort=False).max().reset_index(drop=True))
    assert result.place["record"].tolist() == names.unique().tolist()


# ---- Figures ----

def example_result():
    """500 strips of 167 patients, with ties and unknown answers."""
    rng = np.random.default_rng(0)
    truth = pd.DataFrame({"abnormal": rng.random(500) < 0.4, "PVC": rng.random(500) < 0.2})
    scores = (truth + rng.normal(size=(500, 2))).round(1)
    truth = truth.astype(float).mask(rng.random((500, 2)) < 0.1)
    place = pd.DataFrame({"patient": np.arange(500) // 3})
    return SimpleNamespace(truth=truth, scores=scores, threshold=0.6, place=place)


def test_strip_figures_equal_scikit_learn():
    result = example_result()
    weights = np.random.default_rng(1).integers(0, 4, (2, 500))
    weights[0] = 1
    table = stage.strip_figures(result, weights)
    for k in range(2):
        rows = np.repeat(np.arange(500), weights[k])
        pvc = rows[result.truth["PVC"].notna().to_numpy()[rows]]
        rows = rows[result.truth["abnormal"].notna().to_numpy()[rows]]
        truth = result.truth["abnormal"].to_numpy()[rows] == 1
        called = result.scores["abnormal"].to_numpy()[rows] >= 0.6
        expected = {
            "AUC, abnormal": sk.roc_auc_score(truth, result.scores["abnormal"][rows]),
            "AUC, PVC": sk.roc_auc_score(result.truth["PVC"][pvc], result.scores["PVC"][pvc]),
            "balanced accuracy": sk.balanced_accuracy_score(truth, called),
            "sensitivity": sk.recall_score(truth, called),
            "specificity": sk.recall_score(~truth, ~called),
        }
        assert list(table) == list(expected)
        for figure, value in expected.items():
            assert table[figure][k] == pytest.approx(value, abs=1e-12)


def test_both_sides_are_drawn_apart_and_differ_in_what_both_have():
    home = example_result()
    away = example_result()
    away.truth = away.truth.rename(columns={"PVC": "PAC"})
    away.scores = away.scores.rename(columns={"PVC": "PAC"})
    tables = stage.cross_tables(dict(zip(SIDES, (home, away))))
    drop = tables["drop"]
    assert "AUC, abnormal" in drop.index and not drop.index.str.contains("PVC|PAC").any()
    assert (drop["value"] == 0).all() and (drop["low"] < 0).all() and (drop["high"] > 0).all()
    rows = tables["rows"]
    assert rows.loc["PVC"].notna().tolist() == [True] * 3 + [False] * 3
    abnormal = home.truth["abnormal"]
    patients = home.place["patient"][abnormal == 1].nunique()
    assert rows.loc["abnormal"].tolist() == 2 * [abnormal.count(), abnormal.sum(), patients]


def test_validation_strips_set_the_threshold():
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    truth = pd.Series(rng.random(20_000) < expit(2 * score - 1), dtype=float)
    known = rng.random(20_000) < 0.9
    validation = SimpleNamespace(truth=pd.DataFrame({"abnormal": truth.where(known)}),
                                 scores=pd.DataFrame({"abnormal": score}))
    called = score[known] >= stage.choose_threshold(validation)
    best = max(sk.balanced_accuracy_score(truth[known], score[known] >= cut)
               for cut in np.quantile(score, np.linspace(0.02, 0.98, 49)))
    assert sk.balanced_accuracy_score(truth[known], called) >= best


def test_few_patients_have_a_figure_and_no_interval():
    result = example_result()
    rare = result.place["patient"] < stage.FEW - 1
    result.truth["PVC"] = (rare & (result.truth["PVC"] == 1)).astype(float)
    result.truth.loc[0, "PVC"] = 1.0
    table = stage.cross_tables({"cross-domain": result})["cross-domain"]
    assert table.loc["AUC, PVC"].isna().tolist() == [False, True, True]
    assert table.loc["AUC, abnormal"].notna().all()


def test_abnormal_as_both_name_it_is_that_any_shared_statement_is_true():
    logits = pd.DataFrame({"NORM": [2.0, -1], "PVC": [-3.0, 1], "AFIB": [-2.0, -4], "MI": [9, 9.0]})
    scores = stage.answers(logits.assign(PAC=-5.0).groupby([0, 1]))
    chance = 1 - (1 - expit(logits["PVC"])) * (1 - expit(logits["AFIB"])) * (1 - expit(-5))
    np.testing.assert_allclose(scores[stage.BOTH], np.log(chance / (1 - chance)), rtol=1e-6)
    assert scores["abnormal"].tolist() == [-2, 1]


@pytest.mark.parametrize("truth", [[0.0, 0, np.nan], [1.0, 1, 1], [np.nan] * 3])
def test_validation_strips_of_one_kind_are_refused(truth):
    validation = SimpleNamespace(truth=pd.DataFrame({"abnormal": truth}),
                                 scores=pd.DataFrame({"abnormal": [0.0, 1, 2]}))
    with pytest.raises(SystemExit, match="validation strips are all normal or all abnormal"):
        stage.choose_threshold(validation)


# ---- The whole script ----

@pytest.mark.parametrize("source, target, model, constants", [
    ("mitbih", "ptbxl", "lstm", {}),
    ("mitbih", "ptbxl", "mlp", {}),
    ("ptbxl", "mitbih", "mlp", {}),
    ("ptbxl", "mitbih", "mlp", {"LEADS": ["II"]}),
])
def test_the_saved_scores_repeat_the_figures(trained, capsys, source, target, model, constants):
    trained(source, model, **constants)
    capsys.readouterr()
    report, table = cross(source, target, model)
    printed = capsys.readouterr().out
    for side in SIDES:
        of_side = table[table["side"] == side]
        assert of_side.notna().any().all()   # both sides have the same questions
        figures = values(report, side)
        known = of_side[of_side["abnormal truth"].notna()]
        assert len(known) == report["tables"]["rows"]["abnormal"][f"{side}, rows"] > 20
        for name in of_side.filter(like=" truth").columns.str.removesuffix(" truth"):
            asked = of_side[of_side[f"{name} truth"].notna()]
            auc = figures[f"AUC, {name}"]
            assert side == "in-domain" or name == "abnormal" or asked[f"{name} truth"].any()
            if auc is None:
                assert asked[f"{name} truth"].nunique() == 1
            else:
                expected = sk.roc_auc_score(asked[f"{name} truth"], asked[f"{name} score"])
                assert auc == pytest.approx(expected, abs=1e-6)
        truth = known["abnormal truth"] == 1
        score = known["abnormal score"]
        called = known["called"]
        assert [figures["sensitivity"], figures["balanced accuracy"]] == pytest.approx([
            sk.recall_score(truth, called), sk.balanced_accuracy_score(truth, called)])
        assert called.nunique() == 1 or score[~called].max() < score[called].min()   # one threshold
        assert f"\n{side}\n" in printed
    for figure, drop in values(report, "drop").items():
        ends = [values(report, side)[figure] for side in SIDES]
        assert drop is None or drop == pytest.approx(ends[0] - ends[1])
    ecgs = table[table["side"] == SIDES[target == "ptbxl"]]["record"]
    metadata = np.load("ptbxl_metadata.npy")
    tested = metadata[metadata["fold"] == 10]
    assert set(ecgs) == set(tested["record"]) and ecgs.is_unique
    unknown = np.sum(tested["superclasses"].sum(axis=1) == 0)
    left_out = report["left_out"][SIDES[target == "ptbxl"]]
    assert left_out == {"pieces without a label of normal or abnormal": unknown}
    assert report["warnings"] == ["SIMULATED DATA: no figure is a result"]
    assert "SIMULATED DATA" in printed
    with open(f"{source}_to_{target}_{model}_cross.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_validation_records_of_the_source_alone_set_the_threshold(quick_pictures, trained):
    records = []

    def choose(validation):
        records.extend(validation.place["record"])
        return original(validation)
    original = stage.choose_threshold
    trained("mitbih", "mlp")
    with changed(stage, choose_threshold=choose):
        cross("mitbih", "ptbxl", "mlp")
    assert set(records) == set(model_training.VALIDATION_RECORDS)


def test_shuffled_labels_give_an_interval_around_one_half(quick_pictures, trained):
    trained("mitbih", "mlp")

    def shuffled(data, members):
        strips = original(data, members)
        if data.name == "ptbxl":
            strips.truth = strips.truth.sample(frac=1, random_state=0, ignore_index=True)
        return strips
    original = stage.strips_of
    with changed(stage, strips_of=shuffled):
        report, _ = cross("mitbih", "ptbxl", "mlp", choose_sides=everything)
    auc = report["tables"]["cross-domain"]["AUC, abnormal"]
    assert auc["low"] < 0.5 < auc["high"] < auc["low"] + 0.2


@pytest.mark.parametrize("source, target, rows", [
    ("mitbih", "ptbxl", 300),
    ("ptbxl", "mitbih", 48 * 4),   # with the paced records
])
def test_the_whole_target_of_the_report_has_all_rows(quick_pictures, trained, source, target, rows):
    trained(source, "mlp")
    _, table = cross(source, target, "mlp", choose_sides=everything)
    assert np.sum(table["side"] == "cross-domain") == rows


def test_a_model_trained_on_all_records_has_no_figures_in_its_own_domain(trained):
    trained("mitbih", "mlp", SPLIT="all")
    report, table = cross("mitbih", "ptbxl", "mlp")
    assert set(table["side"]) == {"cross-domain"}
    assert not {"in-domain", "drop"} & set(report["tables"])
    assert "AUC, abnormal" in report["tables"]["cross-domain"]


def test_a_leaky_checkpoint_is_named_and_has_no_figures_in_its_own_domain(quick_pictures, trained):
    trained("ptbxl", "mlp", SPLIT="random")
    report, table = cross("ptbxl", "mitbih", "mlp")
    assert any("LEAKY" in warning for warning in report["warnings"])
    assert set(table["side"]) == {"cross-domain"}


def test_a_simulated_target_of_a_real_source_is_named(quick_pictures, trained):
    def load(data, model, strips):
        loaded = model_training.load_checkpoint(data, model, strips)
        data.header.simulated = False
        return loaded
    trained("mitbih", "mlp")
    with changed(stage, load_checkpoint=load):
        report, _ = cross("mitbih", "ptbxl", "mlp")
    assert report["warnings"] == ["SIMULATED DATA in ptbxl: no figure is a result"]


# ---- A third database ----

def test_a_third_database_is_scored_beat_by_beat(quick_pictures, trained, capsys):
    names = {"101": "800", "106": "801", "208": "802", "209": "803"}
    simulate.write_mitbih(MITBIH, records=list(names), seconds=40)   # the source's own ECGs
    simulate.write_at_rate(MITBIH, "svdb", names, 128, ["ECG1", "ECG2"])
    run_stage(preprocess_mitbih, NAME="svdb", DATA_DIR="svdb", LEADS=["ECG1", "ECG2"])
    trained("mitbih", "cnn")
    capsys.readouterr()
    report, table = cross("mitbih", "svdb", "cnn")
    assert "SIMULATED DATA" in capsys.readouterr().out
    assert report["notes"]["cross-domain"] == ["leads: ECG1 as MLII", "beats: annotated"]
    rows = table[table["side"] == "cross-domain"]
    labels = np.load("svdb_labels.npy")
    np.testing.assert_array_equal(rows["V truth"], labels == 2)
    np.testing.assert_array_equal(rows["abnormal truth"], labels != 0)
    assert set(rows["record"]) == set(names.values())
    by_class = report["tables"]["by class"]
    assert by_class["V"]["n"] == np.sum(labels == 2)
    auc = sk.roc_auc_score(rows["V truth"], rows["V score"])
    assert by_class["V"]["auc"] == pytest.approx(auc, abs=1e-6)
    assert values(report, "cross-domain")["AUC, V"] == pytest.approx(auc, abs=1e-6)
    for start in (0, 5):
        ec57 = report["tables"][f"EC57 from {start}:00"]
        assert set(ec57) == {*names.values(), "gross", "average"}

    source = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, net = stage.load_checkpoint(source, "cnn")
    own = stage.score_beats(checkpoint, net, source, list(names))
    places = own.place["record"].map(names) + (own.place["sample"] // 5).astype(str)
    score_at = pd.Series(own.scores["abnormal"].to_numpy(), places)
    score = score_at.reindex(rows["record"] + (rows["sample"] // 5).astype(str)).to_numpy()
    same = np.isfinite(score)
    assert same.mean() > 0.5 and np.corrcoef(score[same], rows["abnormal score"][same])[0, 1] > 0.95


@pytest.mark.parametrize("source_beats, target_beats", [
    ("annotated", "detected"), ("detected", "annotated")])
def test_annotated_and_detected_beats_may_meet(quick_pictures, trained, arrays, source_beats,
                                               target_beats):
    """A model is tested on beats that another way found, in both databases."""
    Path(MITBIH).symlink_to(arrays / MITBIH)
    some = {"RECORDS": ["101", "106", "119", "124", "203", "100", "232"]}
    run_stage(preprocess_mitbih, R_PEAKS=source_beats, **some)
    train("mitbih", "mlp")
    run_stage(preprocess_mitbih, R_PEAKS=target_beats, **some)
    simulate.write_at_rate(MITBIH, "svdb", {"100": "800", "119": "801"}, 128, ["ECG1", "ECG2"])
    run_stage(preprocess_mitbih, NAME="svdb", DATA_DIR="svdb", LEADS=["ECG1"],
              R_PEAKS=target_beats)
    report, table = cross("mitbih", "svdb", "mlp")
    assert report["notes"]["cross-domain"][1] == f"beats: {target_beats}"
    labels = np.load("svdb_labels.npy")
    rows = table[table["side"] == "cross-domain"]
    np.testing.assert_array_equal(rows["V truth"], labels == 2)
    assert rows["V score"].notna().all()


def test_logits_of_a_long_record_come_part_by_part(trained):
    trained("mitbih", "cnn")
    data = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, net = stage.load_checkpoint(data, "cnn")
    checkpoint.recipe.context_seconds = 10   # the records have 40
    sizes = []

    def watched(net, signals, *others):
        sizes.append(len(signals))
        return model_training.predict(net, signals, *others)
    rows = np.flatnonzero(np.isin(data.record, ["100", "119"]))
    with changed(stage, predict=watched):
        logits, sentence = stage.beat_logits(checkpoint, net, data, rows)
    assert sentence == "leads: MLII as MLII"
    assert len(sizes) == 8 and sum(sizes) == len(rows)
    signals, features = model_training.dataset_inputs(data, checkpoint.recipe)
    expected = model_training.predict(net, signals, features, rows, checkpoint.recipe.crop)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


V_FIRST = {"V": "VEr", "N": "NLRBejn", "S": "SAaJ", "F": "F", "Q": "Q/f?"}


@pytest.mark.parametrize("constants, form", [
    ({"SAMPLING_RATE": 250}, "(250, 360, ['N', 'S', 'V', 'F', 'Q'])"),
    ({"SEGMENT": 100}, "(360, 100, ['N', 'S', 'V', 'F', 'Q'])"),
    ({}, "(360, 360, ['V', 'N', 'S', 'F', 'Q'])")])
def test_a_database_of_other_beats_is_refused(trained, monkeypatch, constants, form):
    simulate.write_mitbih(MITBIH, records=["100", "119"], seconds=20)
    simulate.write_at_rate(MITBIH, "svdb", {"100": "800", "119": "801"}, 128, ["ECG1", "ECG2"])
    if not constants:
        monkeypatch.setattr(preprocess_mitbih, "CLASSES", V_FIRST)
    run_stage(preprocess_mitbih, NAME="svdb", DATA_DIR="svdb", LEADS=["ECG1"], **constants)
    trained("mitbih", "mlp")
    message = f"beats of svdb are {form}, the model's (360, 360, ['N', 'S', 'V', 'F', 'Q']): "
    with pytest.raises(SystemExit, match=re.escape(message)):
        cross("mitbih", "svdb", "mlp")


def test_a_target_with_patients_of_the_training_says_so(quick_pictures, trained):
    """118e06 is record 118 with noise, and 118 trains."""
    simulate.write_mitbih(MITBIH, records=["118", "100"], seconds=20)
    simulate.write_at_rate(MITBIH, "noisy", {"118": "118e06", "100": "100e06"}, 250,
                           ["MLII", "V1"])
    run_stage(preprocess_mitbih, NAME="noisy", DATA_DIR="noisy")
    trained("mitbih", "mlp")
    report, _ = cross("mitbih", "noisy", "mlp")
    assert report["notes"]["cross-domain"][2:] == ["TRAINED ON ITS PATIENTS 118"]


# ---- A second 12-lead database ----

def write_twelve_leads(labelled):
    """Simulated records of 10 and 20 s at 500 Hz, preprocessed as "other" -> dict of statements.

    Their #Dx in turn: normal; PVC and sinus rhythm; LBBB; atrial fibrillation and an unknown code.
    """
    codes = {"426783006": ["SR", "NORM"], "427172004,426783006": ["PVC", "SR"],
             "733534002": ["CLBBB"], "164889003,999": ["AFIB"]}
    Path("other").mkdir()
    rng = np.random.default_rng(0)
    statements = {}
    for number in range(12):
        name = f"A{number:02}"
        text, statements[name] = list(codes.items())[number % 4]
        comments = [simulate.SIMULATED, "Age: 50", "Sex: Female"]
        seconds = 10 + 10 * (number >= 8)
        peaks = np.arange(250, 500 * seconds - 250, rng.integers(300, 500))
        pulse = simulate.pulse_ecg(peaks, 500 * seconds, 500)[:, :1]
        ecg = pulse * rng.uniform(0.3, 1.2, 12) + rng.normal(0, 0.02, (len(pulse), 12))
        leads = [lead.replace("AV", "aV") for lead in TWELVE]
        wfdb.wrsamp(name, 500, ["mV"] * 12, leads, ecg, fmt=["16"] * 12, adc_gain=[1000.0] * 12,
                    baseline=[0] * 12, write_dir="other",
                    comments=comments + [f"Dx: {text}"] * labelled)
    run_stage(preprocess_ptbxl, NAME="other", DATA_DIR="other", LABELS="header")
    assert len(np.load("other_labels.npy")) == 8 + 2 * 4
    return statements


@pytest.fixture(scope="module")
def twelve_leads(tmp_path_factory):
    """A function that links the arrays of write_twelve_leads, which it makes once."""
    made = {}

    def link(labelled):
        if labelled not in made:
            folder = tmp_path_factory.mktemp("other")
            with chdir(folder):
                made[labelled] = (folder, write_twelve_leads(labelled))
        folder, statements = made[labelled]
        for path in folder.glob("*.npy"):
            Path(path.name).symlink_to(path)
        return statements
    return link


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_another_12_lead_database_has_a_row_a_record(trained, twelve_leads, capsys, source):
    statements = twelve_leads(labelled=True)
    trained(source, "mlp")
    with changed(model_training, TEST_FOLD=5, VALIDATION_FOLD=10):   # are PTB-XL's own
        report, table = cross(source, "other", "mlp")
    away = table[table["side"] == "cross-domain"].set_index("record")
    assert away.index.tolist() == list(statements)   # pieces of 10 s became one row
    asked = {"abnormal", stage.BOTH, "PVC", "AFIB", "CLBBB"}
    asked |= {"SR"} if source == "ptbxl" else set()
    assert set(away.filter(like=" truth").columns.str.removesuffix(" truth")) == asked
    home = table[table["side"] == "in-domain"]
    figures = values(report, "cross-domain")
    assert {figure for figure in figures if "AUC" in figure} == {f"AUC, {name}" for name in asked}
    for name in asked:
        truth = [name in of_record for of_record in statements.values()]
        if "abnormal" in name:
            truth = ["NORM" not in of_record for of_record in statements.values()]
        np.testing.assert_array_equal(away[f"{name} truth"], truth)
        auc = sk.roc_auc_score(truth, away[f"{name} score"])
        assert figures[f"AUC, {name}"] == pytest.approx(auc, abs=1e-6)
        assert home[f"{name} score"].notna().all()
    assert report["left_out"]["cross-domain"].get("strips without a beat", 0) == 0
    assert "SIMULATED DATA" in capsys.readouterr().out
    picture = Path(f"{source}_to_other_mlp_cross.png").read_bytes()
    assert picture[:4] == b"\x89PNG"


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_12_lead_records_without_labels_have_scores_alone(trained, twelve_leads, capsys, source):
    statements = twelve_leads(labelled=False)
    trained(source, "mlp")
    before = set(contents("."))
    run_stage(stage, PRETRAINED_DATASET=source, TEST_DATASET="other", MODEL="mlp")
    name = f"{source}_to_other_mlp_cross.csv"
    assert set(contents(".")) - before == {name}
    printed = capsys.readouterr().out
    assert f"other has no positive labels: nothing was scored. Wrote {name}" in printed
    assert "SIMULATED DATA" in printed
    table = pd.read_csv(name, dtype={"record": str})
    away = table[table["side"] == "cross-domain"]
    assert away["record"].tolist() == list(statements)
    assert away["abnormal score"].notna().all()
    assert away["abnormal truth"].isna().all()


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_a_target_without_anything_abnormal_has_no_figure_of_it(trained, source):
    """Sinus rhythm of normal records, which PTB-XL names; normal beats of MIT-BIH."""
    simulate.write_mitbih(MITBIH, records=["101", "103"], seconds=40)
    trained(source, "mlp")
    if source == "ptbxl":
        Path("other").mkdir()
        for path in Path(MITBIH).glob("*.hea"):
            record = wfdb.rdrecord(str(path.with_suffix("")))
            wfdb.wrsamp(path.stem, 360, ["mV"] * 12, TWELVE, record.p_signal[:, [0] * 12],
                        fmt=["16"] * 12, write_dir="other", comments=["Dx: 426783006"])
        run_stage(preprocess_ptbxl, NAME="other", DATA_DIR="other", LABELS="header")
    else:
        simulate.write_at_rate(MITBIH, "other", {"101": "800", "103": "801"}, 128,
                               ["ECG1", "ECG2"])
        for path in Path("other").glob("*.atr"):
            marks = wfdb.rdann(str(path.with_suffix("")), "atr")
            wfdb.wrann(path.stem, "atr", marks.sample, ["N"] * len(marks.sample),
                       write_dir="other")
        run_stage(preprocess_mitbih, NAME="other", DATA_DIR="other", LEADS=["ECG1"])
    report, table = cross(source, "other", "mlp")
    away = table[table["side"] == "cross-domain"]
    assert not away["abnormal truth"].any() and away["abnormal score"].notna().all()
    figures = values(report, "cross-domain")
    assert np.isnan(float(figures["AUC, abnormal"] or "nan"))
    assert 0 <= figures["specificity"] <= 1


# ---- Recordings without a reference ----

def test_a_model_of_records_calls_no_beats(prepared, trained):
    own_recordings()
    trained("ptbxl", "mlp")
    with pytest.raises(SystemExit, match="ANNOTATOR = None, .* 'ptbxl': expected one of mitbih$"):
        run_stage(stage, PRETRAINED_DATASET="ptbxl", TEST_DATASET="own", MODEL="mlp")


def called(record, times, symbols):
    """Record, times in s, a text of symbols -> rows of a table of call_beats."""
    return pd.DataFrame({"record": record, "time": times, "symbol": list(symbols),
                         "RR": np.diff(times, prepend=np.nan)})


def test_ectopic_beats_are_counted_by_hour():
    first = called("a", np.arange(17) * 0.5, "NSSNSVVVNVVSSSSNV")
    end = called("a", [3598, 3599.5, 3600.5, 3601.5, 10_800, 10_801], "NVVNNV")
    end.loc[0, "RR"] = 3590.0
    other = called("b", [0.5, 1.25, 2], "VVN")
    table = stage.hourly_table(pd.concat([first, end, other], ignore_index=True))
    assert table.index.tolist() == [("a", 0), ("a", 1), ("a", 3), ("b", 0)]
    counts = table.drop(columns="rate")
    assert counts.loc[("a", 0)].to_dict() == {
        "beats": 19, "S beats": 7, "S couplets": 1, "S runs": 1,
        # the run of three, one couplet within, one over the end of the hour, and one beat
        "V beats": 7, "V couplets": 2, "V runs": 1}
    assert counts.loc[("a", 1)].to_list() == [2, 0, 0, 0, 1, 0, 0]
    # the last beat of a and the first two of b are no run
    assert counts.loc[("a", 3)].to_list() == [2, 0, 0, 0, 1, 0, 0]
    assert counts.loc[("b", 0)].to_list() == [3, 0, 0, 0, 2, 1, 0]
    rate = table["rate"]
    assert rate["b", 0] == pytest.approx(80) and rate["a", 1] == pytest.approx(60)
    assert rate["a", 0] == pytest.approx(60 / ((16 * 0.5 + 1.5) / 17))   # not over an hour's gap


def test_a_pause_is_drawn_at_the_upper_edge(work, monkeypatch):
    beats = called("a", [1.0, 2, 7, 8], "NNVN").assign(probability=1.0)
    data = SimpleNamespace(signals=np.zeros((4, 1, 360)), header=SimpleNamespace(sampling_rate=360))
    figures = []
    monkeypatch.setattr(stage, "save_figure", lambda figure, *_: figures.append(figure))
    stage.plot_recording(data, beats, "", "a.png")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figures[0].axes[0].lines}
    assert drawn["V"] == [2.5] and drawn["N"][1:] == [1, 1]


def own_recordings(**constants):
    """Two simulated records without annotations at 250 Hz, preprocessed as "own"."""
    simulate.write_mitbih(MITBIH, records=["106", "119"], seconds=60)
    simulate.write_at_rate(MITBIH, "own", {"106": "left", "119": "right"}, 250, ["II", "V5"])
    for path in Path("own").glob("*.atr"):
        path.unlink()
    run_stage(preprocess_mitbih, NAME="own", DATA_DIR="own", ANNOTATOR=None, LEADS=["II"],
              **constants)


def test_a_recording_without_annotations_is_called_and_not_scored(trained, capsys):
    own_recordings()
    trained("mitbih", "cnn")
    before = set(contents("."))
    capsys.readouterr()
    run_stage(stage, TEST_DATASET="own", MODEL="cnn")
    printed = capsys.readouterr().out
    name = "mitbih_to_own_cnn"
    assert set(contents(".")) - before == {
        f"{name}_beats.csv", f"{name}_hours.csv", f"{name}_left.png", f"{name}_right.png",
        f"{name}_annotations/left.cnn", f"{name}_annotations/right.cnn"}
    assert "SIMULATED DATA" in printed and "leads: II as MLII; beats: detected" in printed
    assert "No reference (ANNOTATOR = None): nothing was scored" in printed
    for record in ("left", "right"):
        assert Path(f"{name}_{record}.png").read_bytes()[:4] == b"\x89PNG"

    data = preprocess_mitbih.load_dataset("own")
    table = pd.read_csv(f"{name}_beats.csv")
    assert len(table) == len(data.labels) > 100   # every beat has a row
    np.testing.assert_array_equal(table["record"], data.record)
    np.testing.assert_allclose(table["time"], data.metadata["sample"] / 360, atol=1e-4)
    later = table["record"] == table["record"].shift()
    assert table["RR"].notna().tolist() == later.tolist()   # no interval from record to record
    np.testing.assert_allclose(table["RR"][later], table["time"].diff()[later], atol=2e-4)
    names = data.header.class_names
    assert table[names].to_numpy().argmax(axis=1).tolist() == [
        names.index(symbol) for symbol in table["class"]]
    np.testing.assert_allclose(table["probability"], table[names].max(axis=1))
    for record, rows in table.groupby("record"):
        annotation = wfdb.rdann(f"{name}_annotations/{record}", "cnn")
        np.testing.assert_array_equal(annotation.symbol, rows["class"])
        np.testing.assert_allclose(annotation.sample, rows["time"] * 250, atol=0.6)
        reference = wfdb.rdann(f"{MITBIH}/{'106' if record == 'left' else '119'}", "atr")
        normal = reference.sample[np.array(reference.symbol) == "N"] / 360
        assert (np.abs(rows["time"].to_numpy() - normal[5:-5, None]).min(axis=1) < 0.06).all()

    hours = pd.read_csv(f"{name}_hours.csv")
    assert hours["record"].tolist() == ["left", "right"] and hours["hour"].tolist() == [0, 0]
    counts = table.groupby("record")["class"].value_counts().unstack(fill_value=0)
    np.testing.assert_array_equal(hours["beats"], counts.sum(axis=1))
    for symbol in "SV":
        expected = counts.get(symbol, pd.Series(0, counts.index))
        np.testing.assert_array_equal(hours[f"{symbol} beats"], expected)
    rate = 60 / table.groupby("record")["RR"].mean()
    np.testing.assert_allclose(hours["rate"], rate, atol=0.051)


def test_calls_without_a_reference_are_those_of_the_same_beats_with_one(quick_pictures, trained):
    """The same recording: what the model calls does not depend on there being a reference."""
    trained("mitbih", "mlp")
    source = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, net = stage.load_checkpoint(source, "mlp")
    own_recordings()
    own = preprocess_mitbih.load_dataset("own")
    simulate.write_at_rate(MITBIH, "svdb", {"106": "left", "119": "right"}, 250, ["II", "V5"])
    run_stage(preprocess_mitbih, NAME="svdb", DATA_DIR="svdb", LEADS=["II"], R_PEAKS="detected")
    svdb = preprocess_mitbih.load_dataset("svdb")
    beats = stage.call_beats(checkpoint, net, own)
    rows = np.arange(len(svdb.labels))
    logits, _ = stage.beat_logits(checkpoint, net, svdb, rows)
    scored = stage.score_rows(checkpoint, net, svdb, rows, logits)
    pd.testing.assert_frame_equal(beats[["record", "sample", "symbol"]], scored.beats)


# ---- Bad input ----

@pytest.mark.parametrize("constants, message", [
    ({"PRETRAINED_DATASET": "ecg"}, "PRETRAINED_DATASET = 'ecg': expected one of"),
    ({"MODEL": "svm"}, "MODEL = 'svm': expected one of"),
    ({"TEST_DATASET": "mitbih"}, "are both 'mitbih'"),
    ({"TEST_DATASET": "svdb"}, "svdb_header.npy is not in this folder"),
    ({}, "mitbih_cnn_strips_model.pth is not in this folder. Run model_training.py: DATASET = "),
])
def test_bad_settings_stop_with_one_sentence(prepared, constants, message):
    with pytest.raises(SystemExit, match=message) as error:
        run_stage(stage, **constants)
    assert "\n" not in str(error.value)


def test_what_both_databases_name_is_what_mitbih_annotates_but_norm():
    assert {"NORM", *stage.NAMED} == set(preprocess_mitbih.STATEMENTS)
