"""cross_dataset_validation.py: strips with known labels, their scores, thresholds and metrics."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import simulate
import torch
import wfdb
from conftest import MITBIH
from examples import cross
from harness import preprocess
from scipy.special import expit
from sklearn import metrics as sk

import cross_dataset_validation as stage
import model_training
import preprocess_mitbih

pytestmark = pytest.mark.usefixtures("few_resamples")
TWELVE = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
SIDES = ("in-domain", "cross-domain")
METRICS = ["sensitivity", "specificity", "positive predictivity", "f1", "auc"]
LEADS = ["MLII", "V1"]
THRESHOLDS = {stage.ABNORMAL: 0.6, "PVC": 1.2}


# ---- Labels of strips ----

def test_mitbih_strips_are_labelled_by_their_beats(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    strips = stage.mitbih_strips(data, ["102", "119", "232"], LEADS)   # V5 stands in in 102
    assert strips.signals.shape == (12, 2, 3600)
    assert strips.note == "MLII V1; V5 stands in for MLII"
    assert stage.mitbih_strips(data, ["119"], ["MLII"]).note == "MLII"
    assert strips.place["record"].tolist() == ["102"] * 4 + ["119"] * 4 + ["232"] * 4
    assert strips.place["sample"].tolist() == 3 * [0, 3600, 7200, 10800]
    marks_of = {"PVC": "VEr", "PAC": "AaJS", "CLBBB": "L", "CRBBB": "R", "PACE": "/f"}
    for k, strip in strips.place.iterrows():
        in_strip = (data.record == strip["record"]) & (
            data.metadata["sample"] // 3600 * 3600 == strip["sample"])
        beats = data.metadata[in_strip]
        for name, symbols in marks_of.items():
            has = np.isin(beats["symbol"], list(symbols)) | (
                (name == "PACE") & (beats["rhythm"] == "(P"))
            known = name != "PAC" or has.mean() <= 0.5   # in 232, three of four beats are A
            np.testing.assert_equal(strips.truth.loc[k, name], has.any() if known else np.nan)
        row = np.flatnonzero(in_strip)[2]
        peak = beats["sample"][2] - strip["sample"]
        np.testing.assert_array_equal(strips.signals[k, :, peak - 180:peak + 180],
                                      data.signals[row])


def write_pulses(seconds):
    """Writes record p, without marks -> positions of its R peaks."""
    Path(MITBIH).mkdir()
    peaks = np.arange(200, seconds * 360 - 200, 300)
    simulate.write_record(MITBIH, "p", simulate.pulse_ecg(peaks, seconds * 360, 360), 360)
    return peaks


def test_a_strip_is_normal_where_every_beat_and_the_rhythm_are(work):
    """20 s of each rhythm. The third one has a V, then an A; the last strip has an N, else A."""
    peaks = write_pulses(80)
    symbols = np.select([peaks == peaks[60], peaks // 3600 == 7], ["V", "A"], "N")
    symbols[[54, -1]] = ["A", "N"]
    marks = sorted([*((int(peak), symbol, "") for peak, symbol in zip(peaks, symbols)),
                    *((20 * 360 * k + 1, "+", rhythm) for k, rhythm in
                      enumerate(["(N", "(AFIB", "(N", "(NOD"]))])
    sample, symbol, aux = zip(*marks)
    wfdb.wrann("p", "atr", np.array(sample), list(symbol), aux_note=list(aux), write_dir=MITBIH)
    data = preprocess("own", LEADS=["MLII"])
    truth = stage.mitbih_strips(data, ["p"], ["MLII"]).truth
    for name, expected in {
            "PVC": [0, 0, 0, 0, 0, 1, 0, 0],
            "AFIB": [0, 0, 1, 1, 0, 0, 0, 0],
            "PAC": [0, 0, 0, 0, 1, 0, 0, np.nan],   # nothing to be early against
            stage.ABNORMAL: [0, 0, 1, 1, 1, 1, np.nan, 1]}.items():   # PTB-XL has no nodal rhythm
        np.testing.assert_array_equal(truth[name], expected)


def test_a_false_detection_leaves_a_strip_normal(work):
    """Marks are left out of the second 10 s: what is detected there has no annotated beat."""
    peaks = write_pulses(30)
    marked = peaks[(peaks < 3700) | (peaks > 7000)]
    simulate.write_marks(MITBIH, "p", marked, ["N"] * len(marked))
    data = preprocess("own", LEADS=["MLII"], R_PEAKS="detected")
    assert (data.metadata["symbol"] == "").any()
    assert (stage.mitbih_strips(data, ["p"], ["MLII"]).truth[stage.ABNORMAL] == 0).all()


def test_a_strip_without_a_beat_or_without_10_s_is_left_out(prepared):
    data = preprocess_mitbih.load_dataset("mitbih")
    kept = (data.record != "100") | (data.metadata["sample"] // 3600 != 2)
    data.metadata, data.record = data.metadata[kept], data.record[kept]
    names = [record["name"] for record in data.header.records]
    data.header.records[names.index("119")]["samples"] = 4 * 3600 - 1
    strips = stage.mitbih_strips(data, ["100", "119"], LEADS)
    assert strips.place["record"].tolist() == ["100"] * 3 + ["119"] * 3
    assert strips.place["sample"].tolist() == [0, 3600, 10800, 0, 3600, 7200]
    assert len(strips.signals) == len(strips.truth) == 6


def test_ptbxl_strips_are_labelled_by_superclasses_and_statements(prepared):
    data = preprocess_mitbih.load_dataset("ptbxl")
    strips = stage.ptbxl_strips(data, [9, 10], ["V1", "II"])
    of_folds = np.isin(data.metadata["fold"], [9, 10])
    np.testing.assert_array_equal(strips.signals, data.signals[of_folds][:, [6, 1]])
    rows = data.metadata[of_folds]
    assert strips.place["record"].tolist() == rows["record"].tolist()
    for k, row in enumerate(rows):
        superclasses = {name for name, has in zip(data.header.class_names, row["superclasses"])
                        if has}
        statements = {name for name, value in zip(data.header.statement_names, row["statements"])
                      if value >= 0}
        truth = {name: name in statements for name in data.header.statement_names}
        truth["AFIB"] = not statements.isdisjoint(["AFIB", "AFLT"])
        abnormal = any(truth[name] for name in stage.SHARED_STATEMENTS
                       if name in {*statements, "AFIB"})
        abnormal = abnormal if abnormal or superclasses == {"NORM"} else np.nan
        truth = {stage.ABNORMAL: abnormal} | truth
        del truth["NORM"]
        pd.testing.assert_series_equal(strips.truth.loc[k], pd.Series(truth, dtype=float),
                                       check_names=False)
    asked = ["PVC", "PAC", "CLBBB", "CRBBB", "PACE", stage.ABNORMAL]
    assert strips.truth[asked].any().all()


def test_an_unknown_statement_is_no_negative(prepared):
    data = preprocess_mitbih.load_dataset("ptbxl")
    before = stage.ptbxl_strips(data, [10], ["II"]).truth
    rows = np.flatnonzero(data.metadata["fold"] == 10)
    column = data.header.statement_names.index("PVC")
    data.metadata["statements"][rows[:3], column] = -2   # as in read_headers
    data.metadata["statements"][rows[3]] = -2
    data.metadata["superclasses"][rows[3]] = 0
    truth = stage.ptbxl_strips(data, [10], ["II"]).truth
    assert truth["PVC"].isna().tolist() == [True] * 4 + [False] * (len(rows) - 4)
    assert truth.loc[3].isna().all()
    others = [name for name in truth if name not in ("PVC", stage.ABNORMAL)]
    pd.testing.assert_frame_equal(truth.drop(3)[others], before.drop(3)[others])


def test_a_name_of_the_challenges_means_several_statements_of_ptbxl():
    table = pd.DataFrame(
        0.0, range(6), "AFIB AFLT SVTAC PSVT NDT NT_ TAB_ LOWT INVT LVH VCLVH PVC".split())
    for row, names in enumerate(["AFLT PSVT NDT", "AFIB NT_ VCLVH", "SVTAC TAB_", "LOWT LVH"]):
        table.loc[row, names.split()] = 1
    table.loc[5] = np.nan
    stage.merge_statements(table)
    for name, expected in {"AFIB": [1, 1, 0, 0, 0, np.nan], "SVTAC": [1, 0, 1, 0, 0, np.nan],
                           "TAB_": [1, 1, 1, 1, 0, np.nan], "LVH": [0, 1, 0, 1, 0, np.nan],
                           "PVC": [0, 0, 0, 0, 0, np.nan]}.items():
        np.testing.assert_array_equal(table[name], expected)
    own = pd.DataFrame({"TAB_": [1.0, 0], "LVH": [0.0, 1]})   # of the challenges' headers
    merged = own.copy()
    stage.merge_statements(merged)
    pd.testing.assert_frame_equal(merged, own)


def test_one_detector_finds_the_beats_of_both_databases_in_the_first_lead(prepared):
    """What was annotated there does not matter."""
    home, away = map(preprocess_mitbih.load_dataset, ("mitbih", "ptbxl"))
    for data, lead, cut_strips, side in (
            (home, home.records[:, 0], stage.mitbih_strips, ["119"]),
            (away, away.signals[:, 1], stage.ptbxl_strips, [10])):
        peaks = np.arange(data.rate // 2, 10 * data.rate, 7 * data.rate // 10)
        pulses = simulate.pulse_ecg(peaks, 10 * data.rate, data.rate)[:, 0]
        lead[:] = np.resize(pulses, lead.shape)
        strips = cut_strips(data, side, ["II", "V1"])
        np.testing.assert_allclose(strips.peaks, [peaks] * len(strips.truth), atol=1)


def test_strips_of_detected_beats_have_the_peaks_of_the_whole_record(work):
    simulate.write_mitbih(MITBIH, records=["101"], seconds=40)
    data = preprocess("own", LEADS=["MLII"], R_PEAKS="detected")
    strips = stage.mitbih_strips(data, ["101"], ["MLII"])
    peaks = [start + of_strip for start, of_strip in zip(strips.place["sample"], strips.peaks)]
    np.testing.assert_array_equal(np.concatenate(peaks), data.metadata["sample"])


def test_the_shared_labels_are_what_mitbih_annotates_but_norm_and_a_slow_sinus_rhythm():
    """PTB-XL's NORM includes SBRAD."""
    shared = {"NORM", "SBRAD", *stage.SHARED_STATEMENTS}
    assert shared == set(preprocess_mitbih.STATEMENTS)


@pytest.mark.parametrize("available, wanted, columns", [
    (TWELVE, ["MLII", "V1"], [1, 6]), (["V5", "MLII"], ["II"], [1]), (["ECG1"], ["MLII"], [0]),
    (["MLII"], TWELVE, [None, 0, *[None] * 10]), (TWELVE, TWELVE, list(range(12))),
    (["aVR", "lead ii"], ["MLII"], [1]), (["ECG"], ["MLII", "V1"], [0, None]),
    (["MLII", "V1"], ["II", "V5"], [0, None])])
def test_leads_are_matched_by_name_and_a_missing_one_is_0(available, wanted, columns):
    signals = np.random.default_rng(0).normal(size=(3, len(available), 50)).astype(np.float32)
    picked = model_training.pick_leads(signals, available, wanted)
    for lead, column in zip(picked.swapaxes(0, 1), columns):
        np.testing.assert_array_equal(lead, 0 if column is None else signals[:, column])


@pytest.mark.parametrize("leads, wanted, signals, note", [
    (["MLII", "V1"], ["II", "V1"], [["MLII", "V1"], ["DII", None], ["ECG Lead 2", "V1"]], ""),
    (["MLII", "V1"], ["MLII"], [["CH1", "V1"]], "; CH1 stands in for MLII"),
    (["MLII", "V1"], ["V1"], [["CH1", "V1"]], ""),   # of another lead
    (["ECG1"], ["II", "V1"], [["ECG1"]], "; ECG1 stands in for II"),
    (["MLII"], ["MLII"], [["Lead 1"], ["1"]],
     "; 1 stands in for MLII; Lead 1 stands in for MLII"),
    (["V5", "MLII"], ["II"], [["ECG", "MLII"]], "")])
def test_a_note_names_the_signals_that_stand_in_for_a_lead(leads, wanted, signals, note):
    records = [{"name": f"a{number}", "leads": names} for number, names in enumerate(signals)]
    header = SimpleNamespace(records=[*records, {"name": "b", "leads": ["no"] * len(leads)}])
    data = SimpleNamespace(leads=leads, header=header)
    assert stage.lead_note(data, wanted, {record["name"] for record in records}) == note


def test_other_leads_are_refused_with_one_sentence():
    with pytest.raises(SystemExit) as error:
        model_training.pick_leads(np.zeros((1, 2, 9)), ["MLII", "V5"], ["V2", "V3"])
    assert str(error.value) == ("the model needs one of the leads V2, V3, but the other database "
                                "has MLII, V5: choose other LEADS")


def test_strips_of_another_rate_give_the_model_the_same_inputs(trained):
    trained("mitbih", "mlp")
    data = preprocess_mitbih.load_dataset("mitbih")
    recipe = model_training.load_checkpoint(data, "mlp", strips=True).recipe
    strips = stage.mitbih_strips(data, ["100", "103"], LEADS)
    strips.peaks = [peaks // 18 * 18 for peaks in strips.peaks]   # whole samples at 100 Hz, too
    expected, number = model_training.make_inputs(strips, np.arange(8), recipe)
    strips.signals = preprocess_mitbih.resample(strips.signals, 360, 100)
    strips.peaks = [peaks // 18 * 5 for peaks in strips.peaks]
    strips.rate = 100
    inputs, again = model_training.make_inputs(strips, np.arange(8), recipe)
    np.testing.assert_array_equal(again, number)
    assert np.corrcoef(inputs.signals.ravel(), expected.signals.ravel())[0, 1] > 0.99


# ---- Scores ----

def model_and_strips(trained, source):
    """-> checkpoint of the mlp for strips, and some strips of its own database."""
    trained(source, "mlp")
    data = preprocess_mitbih.load_dataset(source)
    checkpoint = stage.load_checkpoint(data, "mlp", strips=True)
    if source == "mitbih":
        return checkpoint, stage.mitbih_strips(data, ["100", "119", "232"], LEADS)
    return checkpoint, stage.ptbxl_strips(data, [10], ["II", "V1"])


@pytest.mark.parametrize("source, note", [
    ("mitbih", "MLII V1; 360 to 360 Hz; 12 of 12"),
    ("ptbxl", "II V1; 100 to 100 Hz; 31 of 31")])
def test_a_strips_score_is_the_mean_or_the_largest_log_odds_of_its_beats_or_crops(
        trained, source, note):
    checkpoint, strips = model_and_strips(trained, source)
    result = stage.score_strips(checkpoint, strips)
    rows = np.arange(len(strips.truth))
    inputs, number = model_training.make_inputs(strips, rows, checkpoint.recipe)
    crop = checkpoint.recipe.crop
    starts = range(0, inputs.signals.shape[2] - crop + 1, crop // 2)
    assert len(starts) == (1 if source == "mitbih" else 3)   # a beat, 10 s in crops of 5 s
    with torch.no_grad():
        logits = np.stack([checkpoint.net(inputs.signals[:, :, start:start + crop], inputs.features)
                           for start in starts])
    names = checkpoint.header.statement_names   # the last outputs
    for row in rows:
        odds = logits[:, number == row, -len(names):].reshape(-1, len(names))
        odds = pd.DataFrame(odds, columns=names)
        expected = odds.drop(columns="NORM").mean()
        expected[["PVC", "PAC"]] = odds[["PVC", "PAC"]].max()
        assert set(result.scores) == {*expected.index, stage.ABNORMAL}
        np.testing.assert_allclose(
            result.scores.loc[row, expected.index], expected, rtol=1e-4, atol=1e-5)
    assert result.note == f"{note} pieces of 10 s scored"


def test_scores_do_not_depend_on_other_strips_and_a_strip_without_beats_has_none(trained):
    checkpoint, strips = model_and_strips(trained, "mitbih")
    whole = stage.score_strips(checkpoint, strips)
    strips.peaks[3] = strips.peaks[3][:0]
    fewer = stage.score_strips(checkpoint, strips)
    assert fewer.note.endswith("; 11 of 12 pieces of 10 s scored")
    pd.testing.assert_frame_equal(fewer.truth, whole.truth.drop(3).reset_index(drop=True))
    pd.testing.assert_frame_equal(fewer.place, whole.place.drop(3).reset_index(drop=True))
    np.testing.assert_allclose(fewer.scores, whole.scores.drop(3), atol=1e-5)
    strips.peaks = [peaks[:0] for peaks in strips.peaks]
    with pytest.raises(SystemExit, match="^no beat was found in 12 strips$"):
        stage.score_strips(checkpoint, strips)


def test_records_shorter_than_a_strip_are_refused_with_one_sentence(trained):
    trained("ptbxl", "mlp")
    simulate.write_mitbih("short", records=("101", "102"), seconds=8)
    preprocess("own", DATA_DIR="short", RECORDS=["101"])
    with pytest.raises(SystemExit, match="^there is no piece of 10 s to score"):
        cross("ptbxl", "own", "mlp")


def test_pieces_of_a_record_have_one_score_the_largest(trained):
    checkpoint, strips = model_and_strips(trained, "ptbxl")
    single = stage.score_strips(checkpoint, strips)
    names = strips.place["record"].copy()
    names[1::2] = names[::2].to_numpy()[:len(names[1::2])]
    strips.place["record"] = names
    result = stage.score_strips(checkpoint, strips)
    for table, pieces in ((result.scores, single.scores), (result.truth, single.truth)):
        expected = pieces.groupby(names, sort=False).max().reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected)
    assert result.place["record"].tolist() == names.unique().tolist()


def test_merged_and_shared_statements_take_the_larger_score_and_that_of_any():
    logits = pd.DataFrame({"NORM": [2.0, -1], "PVC": [-3.0, 1], "AFIB": [-2.0, -4], "MI": [9, 9.0],
                           "AFLT": [-5.0, -1], "PAC": -5.0})
    scores = stage.answers(logits.groupby([0, 1]))
    assert scores["AFIB"].tolist() == [-2, -1]
    chance = 1 - (1 - expit(logits["PVC"])) * (1 - expit(scores["AFIB"])) * (1 - expit(-5))
    np.testing.assert_allclose(
        scores[stage.ABNORMAL], np.log(chance / (1 - chance)), rtol=1e-6)


def example_result():
    """500 strips of 167 patients, with ties and unknown answers."""
    rng = np.random.default_rng(0)
    truth = pd.DataFrame({stage.ABNORMAL: rng.random(500) < 0.4, "PVC": rng.random(500) < 0.2})
    scores = (truth + rng.normal(size=(500, 2))).round(1)
    truth = truth.astype(float).mask(rng.random((500, 2)) < 0.1)
    place = pd.DataFrame({"patient": np.arange(500) // 3})
    return stage.Result(truth, scores, place, "", scores > pd.Series(THRESHOLDS))


def metrics_of(truth, score, called):
    """Truth, scores and calls of a question -> its METRICS by scikit-learn."""
    predictivity = sk.precision_score(truth, called) if called.any() else np.nan
    return [sk.recall_score(truth, called), sk.recall_score(~truth, ~called), predictivity,
            sk.f1_score(truth, called), sk.roc_auc_score(truth, score)]


def test_metrics_of_strips_with_an_answer_equal_scikit_learn():
    result = example_result()
    called = result.called
    weights = np.random.default_rng(1).integers(0, 4, (2, 500))
    weights[0] = 1
    table = stage.class_metrics(result.truth, called, result.scores, weights)
    assert list(table) == [(name, metric) for name in result.truth for metric in ["n", *METRICS]]
    for name, truth in result.truth.items():
        for k in range(2):
            rows = np.repeat(np.arange(500), weights[k])
            rows = rows[truth.notna().to_numpy()[rows]]
            expected = metrics_of(truth[rows] == 1, result.scores[name][rows], called[name][rows])
            assert [table[name, metric][k] for metric in METRICS] == pytest.approx(
                expected, abs=1e-12)
            assert table[name, "n"][k] == (truth[rows] == 1).sum()


def test_few_patients_have_metrics_and_no_interval():
    home = example_result()
    away = home._replace(truth=home.truth.copy())
    rare = away.place["patient"] < stage.MIN_PATIENTS - 1
    away.truth["PVC"] = (rare & (away.truth["PVC"] == 1)).astype(float)
    away.truth.loc[0, "PVC"] = 1.0
    tables = stage.cross_tables(dict(zip(SIDES, (home, away))))
    for side, asked in zip(SIDES, ([stage.ABNORMAL, "PVC"], [stage.ABNORMAL])):
        low, high = (tables[f"{side}, 95% interval {limit}"] for limit in ("from", "to"))
        metrics = tables[side].loc[asked, METRICS]
        assert list(low.index) == list(high.index) == asked
        assert ((low[METRICS] < metrics) & (metrics < high[METRICS])).all(axis=None)
    assert tables["cross-domain"].notna().all(axis=None)
    truth, score = (table["PVC"][home.truth["PVC"].notna()] for table in (home.truth, home.scores))
    assert tables["in-domain"].loc["PVC", METRICS].tolist() == pytest.approx(
        metrics_of(truth == 1, score, score > THRESHOLDS["PVC"]))
    patients = home.place["patient"][home.truth["PVC"] == 1].nunique()
    assert tables["in-domain"].loc["PVC", ["strips", "n", "patients"]].tolist() == [
        len(truth), truth.sum(), patients]


def test_a_threshold_has_a_specificity_of_90_percent_where_both_kinds_of_negatives_weigh_alike():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.random((3000, 2)) < [0.2, 0.1], columns=["PAC", stage.ABNORMAL])
    scores = rng.normal(size=(3000, 2)) + 2 * truth[[stage.ABNORMAL]].to_numpy()
    scores = pd.DataFrame(scores, columns=truth.columns)
    truth = truth.astype(float).mask(rng.random((3000, 2)) < 0.1)
    place = pd.DataFrame({"patient": np.arange(3000) % (stage.MIN_PATIENTS - 1)})
    thresholds = stage.choose_thresholds(stage.Result(truth, scores, place, ""), list(truth))
    assert list(thresholds.index) == list(truth)
    for name, threshold in thresholds.items():
        negative = truth[name] == 0
        kinds = (truth[stage.ABNORMAL] == 1)[negative]   # of ABNORMAL itself there is one
        below, up_to = ((scores[name][negative] < limit).groupby(kinds).mean().mean()
                        for limit in (threshold, np.nextafter(threshold, np.inf)))
        assert below < 0.9 <= up_to


def test_enough_positive_patients_lower_a_threshold_to_a_sensitivity_of_90_percent():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame({stage.ABNORMAL: rng.random(3000) < 0.5}, dtype=float)
    place = pd.DataFrame({"patient": np.arange(3000)})
    for height, sensitivity in ((1, 0.9), (5, 1.0)):   # near to the negatives, and far from them
        scores = truth * height + rng.normal(size=(3000, 1))
        result = stage.Result(truth, scores, place, "")
        threshold, = stage.choose_thresholds(result, list(truth))
        called = (scores > threshold)[stage.ABNORMAL].groupby(truth[stage.ABNORMAL]).mean()
        assert called[1] == pytest.approx(sensitivity, abs=2e-3)
        assert (called[0] > 0.2) == (height == 1)


@pytest.mark.parametrize("truth", [[1.0, 1, np.nan], [1.0, 1, 1], [np.nan] * 3])
def test_a_question_without_a_negative_strip_of_the_source_is_named(truth):
    table = pd.DataFrame({stage.ABNORMAL: [0.0, 0, 1], "PVC": truth})
    place = pd.DataFrame({"patient": range(3)})
    with pytest.raises(SystemExit, match="^no strip of the source is without PVC: preprocess all"):
        stage.choose_thresholds(stage.Result(table, table, place, ""), list(table))


@pytest.mark.parametrize("source, target", [("mitbih", "ptbxl"), ("ptbxl", "mitbih")])
def test_strips_of_the_source_that_do_not_test_it_set_the_thresholds(trained, source, target):
    def choose(validation, names):
        assert set(validation.place["record"]) == set(known[source])
        chosen.update(validation.scores[names].median())
        return pd.Series(chosen)
    chosen = {}
    trained(source, "mlp")
    data = preprocess_mitbih.load_dataset("ptbxl")
    known = {"mitbih": preprocess_mitbih.SUBSETS["DS1"].split(),
             "ptbxl": data.record[data.metadata["fold"] == model_training.VALIDATION_FOLD]}
    report, table = cross(source, target, "mlp", choose_thresholds=choose)
    assert list(chosen) == list(report["tables"]["cross-domain"])
    for name, threshold in chosen.items():
        called = table[f"{name} called"]
        assert called.nunique() == 2
        np.testing.assert_array_equal(called, table[f"{name} score"] > threshold)


@pytest.mark.parametrize("source, target, v1", [("mitbih", "ptbxl", 1), ("ptbxl", "mitbih", 6)])
def test_the_source_is_scored_by_the_leads_that_the_target_has(trained, source, target, v1):
    trained(source, "mlp")
    home, away = map(preprocess_mitbih.load_dataset, (source, target))
    checkpoint = stage.load_checkpoint(home, "mlp", strips=True)
    with_v1 = stage.compare(checkpoint, home, away)
    away.leads = [name if name in ("MLII", "II") else "another" for name in away.leads]
    results = stage.compare(checkpoint, home, away)
    voltage = home.records.T if source == "mitbih" else home.signals.swapaxes(0, 1)
    voltage[v1] += np.random.default_rng(0).normal(size=voltage[v1].shape)
    again = stage.compare(checkpoint, home, away)
    for side in SIDES:
        pd.testing.assert_frame_equal(again[side].called, results[side].called)
        pd.testing.assert_frame_equal(again[side].scores, results[side].scores)
        assert not np.allclose(results[side].scores, with_v1[side].scores, atol=0.1)
        assert results[side].note.startswith(("MLII; ", "II; "))


# ---- The whole script ----

@pytest.mark.parametrize("source, target, model, constants", [
    ("mitbih", "ptbxl", "lstm", {}),
    ("mitbih", "ptbxl", "mlp", {}),
    ("ptbxl", "mitbih", "mlp", {}),
    ("ptbxl", "mitbih", "mlp", {"LEADS": ["II"]}),
])
def test_the_saved_scores_repeat_the_metrics(trained, capsys, source, target, model, constants):
    trained(source, model, **constants)
    capsys.readouterr()
    report, table = cross(source, target, model)
    printed = capsys.readouterr().out
    names = list(report["tables"]["cross-domain"])
    assert table.filter(like=" called").columns.tolist() == [f"{name} called" for name in names]
    for side in SIDES:
        of_side = table[table["side"] == side]
        assert of_side.notna().any().all()   # both sides have the same questions
        assert list(report["tables"][side]) == names
        for name, row in report["tables"][side].items():
            asked = of_side[of_side[f"{name} truth"].notna()]
            truth = asked[f"{name} truth"] == 1
            assert (row["strips"], row["n"]) == (len(asked), truth.sum())
            assert side == "in-domain" or name == stage.ABNORMAL or truth.any()
            if truth.nunique() == 1:
                assert row["auc"] is None and None in (row["sensitivity"], row["specificity"])
                continue
            expected = metrics_of(truth, asked[f"{name} score"], asked[f"{name} called"])
            values = np.array([row[metric] for metric in METRICS], float)
            np.testing.assert_allclose(values, expected, atol=1e-6)
        assert len(of_side) > 20 and stage.ABNORMAL in names
        assert f"\n{side}\n" in printed and f"\n{side}: {report['notes'][side]}\n" in printed
    ecgs = table[table["side"] == SIDES[target == "ptbxl"]]["record"]
    metadata = np.load("ptbxl_metadata.npy")
    assert ecgs.tolist() == metadata["record"][metadata["fold"] == 10].tolist()
    title = f"{model} trained on {source}, tested on {target}. SIMULATED DATA: no score is a result"
    assert report["title"] == title and f"{title}\n" in printed


@pytest.mark.parametrize("source, target", [("mitbih", "ptbxl"), ("ptbxl", "mitbih")])
def test_a_model_that_trained_on_all_patients_has_no_metrics_in_its_own_domain(
        trained, source, target):
    trained(source, "mlp", SPLIT="all")
    report, table = cross(source, target, "mlp")
    assert set(table["side"]) == {"cross-domain"} and "in-domain" not in report["tables"]
    assert stage.ABNORMAL in report["tables"]["cross-domain"]


def test_a_simulated_target_of_a_real_source_has_the_warning(trained):
    def load(data, model, strips):
        loaded = model_training.load_checkpoint(data, model, strips)
        data.header.simulated = False
        return loaded
    trained("mitbih", "mlp")
    report, _ = cross("mitbih", "ptbxl", "mlp", load_checkpoint=load)
    assert report["title"] == ("mlp trained on mitbih, tested on ptbxl. "
                               "SIMULATED DATA: no score is a result")
