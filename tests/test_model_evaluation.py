"""model_evaluation.py: figures against scikit-learn, what the model looks at, the files written."""

import json
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import compare_with_bxb
import numpy as np
import pandas as pd
import pytest
import scipy
import simulate
import torch
import wfdb
from conftest import MITBIH, PTBXL
from harness import changed, contents, run_stage, train
from matplotlib.figure import Figure
from sklearn import metrics as sk

import model_evaluation as stage
import model_training
import preprocess_mitbih

NAMES = ["N", "S", "V", "F", "Q"]
SMALL = {"AVERAGED": 2, "STEPS": 4}
FAST = {**SMALL, "STEPS": 1, "DELETED": [0, 0.5]}   # for tests of something else


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def score_test_rows(dataset, task="superdiagnostic"):
    """Scored of the test rows by the mlp."""
    outputs, _ = stage.predict_test_rows(dataset, "mlp")
    return stage.score_rows(*outputs, task)


def evaluate(dataset, model, **constants):
    """Runs the script -> its JSON report."""
    run_stage(stage, DATASET=dataset, MODEL=model, **constants)
    with open(f"{dataset}_{model}_metrics.json") as file:
        return json.load(file)


# ---- Figures ----

def example(task="multiclass", classes=5, rows=400, **data):
    """Random Scored of five classes; the first `classes` of them have rows."""
    rng = np.random.default_rng(0)
    if task == "multiclass":
        labels = rng.integers(0, classes, rows)
        truth = labels[:, None] == np.arange(5)
        probability = rng.dirichlet(np.ones(5), rows) + 0.3 * truth
        probability /= probability.sum(axis=1, keepdims=True)
        called = probability.argmax(axis=1)[:, None] == np.arange(5)
    else:
        truth = rng.random((rows, 5)) < 0.4
        probability = np.round(0.3 * truth + 0.7 * rng.random((rows, 5)), 2)   # with ties
        called = probability >= [0.2, 0.3, 0.4, 0.5, 0.6]
    everything = SimpleNamespace(is_ptbxl=task == "multilabel", patient=np.arange(rows) // 4,
                                 **{"record": np.full(rows, "100")} | data)
    recipe = SimpleNamespace(task=task, split="random")   # without the tables of EC57
    return stage.Scored("", everything, None, recipe, NAMES, None, np.arange(rows), truth,
                        called, probability, None)


def part_of(scored, rows):
    """Scored -> the same of some rows."""
    return scored._replace(truth=scored.truth[rows], called=scored.called[rows],
                           probability=scored.probability[rows])


def by_scikit_learn(scored):
    """Scored -> table of figures_of_group for all of its rows."""
    truth = scored.truth
    called = scored.called
    p = scored.probability
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, called)
    auc = sk.roc_auc_score(truth, p, average=None)
    table = pd.DataFrame({
        "n": support, "sensitivity": recall, "positive predictivity": precision, "f1": f1,
        "auc": auc}, NAMES)
    overall = {"n": len(truth), "accuracy": sk.accuracy_score(truth, called),
               "macro f1": sk.f1_score(truth, called, average="macro"),
               "macro auc": sk.roc_auc_score(truth, p), "mean f1 of N, S, V": f1[:3].mean()}
    return pd.concat([table, pd.DataFrame(overall, ["all"])])


def assert_tables_equal(table, expected):
    assert sorted(table.columns) == sorted(expected.columns)
    close(table.loc[expected.index, expected.columns].astype(float), expected)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_figures_and_those_of_a_group_equal_scikit_learn(task):
    scored = example(task)
    group = np.random.default_rng(1).random(400) < 0.3
    for rows in (np.ones(400, bool), group):
        table = stage.figures_of_group(scored, rows)
        assert_tables_equal(table, by_scikit_learn(part_of(scored, rows)))


def test_multiclass_figures_are_those_that_scikit_learn_gives_for_labels():
    scored = example()
    table = stage.figures_of_group(scored, np.ones(400, bool))
    labels = scored.truth.argmax(axis=1)
    called = scored.called.argmax(axis=1)
    close(table.loc["all", "accuracy"], sk.accuracy_score(labels, called))
    close(table.loc["all", "macro f1"], sk.f1_score(labels, called, average="macro"))
    auc = sk.roc_auc_score(labels, scored.probability, multi_class="ovr")
    close(table.loc["all", "macro auc"], auc)


def test_the_auc_with_weights_and_ties_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    scores = np.round(truth + rng.normal(size=200), 1)
    weights = rng.integers(0, 4, (20, 200))
    auc = stage.area_under_curve(truth, scores, weights)
    for k in range(20):
        rows = np.repeat(np.arange(200), weights[k])
        close(auc[k], sk.roc_auc_score(truth[rows], scores[rows]))


@pytest.mark.parametrize("truth", [True, False])
def test_one_class_alone_has_no_auc(truth):
    auc = stage.area_under_curve(np.full(5, truth), np.arange(5.0), np.ones((1, 5)))
    np.testing.assert_array_equal(auc, [np.nan])


def test_a_class_without_rows_is_not_available_and_not_zero():
    scored = example(classes=4)
    assert scored.called[:, 4].any()
    table = stage.figures_of_group(scored, np.ones(400, bool))
    assert table.loc["Q", "n"] == 0 and table.loc["Q"].drop("n").isna().all()
    for figure in ("f1", "auc"):
        close(table.loc["all", f"macro {figure}"], table.loc[NAMES[:4], figure].mean())
    as_json = json.loads(stage.to_json({"table": table}))["table"]["Q"]
    assert (as_json["n"], as_json["f1"], as_json["auc"]) == (0, None, None)
    assert "n/a" in table.to_string(**stage.FORMAT)


# ---- Intervals ----

def test_resamples_are_those_of_a_loop_over_drawn_patients():
    scored = example("multilabel")
    patients = np.random.default_rng(5).integers(0, 30, 400)
    table = stage.resample_patients(patients, partial(stage.figures, scored), 3, resamples=30)
    drawn = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=30)
    draws = [np.ones(30, int), *drawn]
    for k, draw in enumerate(draws):
        rows = np.concatenate([np.flatnonzero(patients == patient)
                               for patient, count in enumerate(draw) for _ in range(count)])
        assert_tables_equal(table.iloc[k].unstack(), by_scikit_learn(part_of(scored, rows)))


def test_the_rows_of_a_patient_are_drawn_together():
    rows = np.arange(399, 199, -1)   # four of each patient
    scored = part_of(example(), rows)._replace(rows=rows)
    summary = stage.summarise_figures(scored)
    expected = stage.resample_patients(rows // 4, partial(stage.figures, scored))
    pd.testing.assert_frame_equal(summary, stage.summarise(expected))


def test_many_resamples_are_computed_in_parts():
    sizes = []

    def figures_of(weights):
        sizes.append(len(weights))
        return {"n": weights @ np.arange(2000)}
    table = stage.resample_patients(np.arange(2000) // 20, figures_of, resamples=3000)
    assert len(sizes) > 1 and sum(sizes) == len(table) == 3001
    drawn = np.random.default_rng(0).multinomial(100, np.full(100, 0.01), size=3000)
    close(table["n"][1:], drawn.repeat(20, axis=1) @ np.arange(2000))


def test_intervals_hold_the_middle_95_percent_of_the_resamples():
    values = np.random.default_rng(0).normal(size=201)
    row = stage.summarise(pd.DataFrame({"f1": values})).loc["f1"]
    close(row, [values[0], *np.quantile(values[1:], [0.025, 0.975])])


def test_an_interval_needs_the_figure_in_half_of_the_resamples():
    table = pd.DataFrame({"often": [0.5, 0.4, 0.6, np.nan, np.nan],
                          "seldom": [0.5, 0.4, np.nan, np.nan, np.nan]})
    summary = stage.summarise(table)
    close(summary.loc["often"], [0.5, 0.405, 0.595])
    close(summary.loc["seldom"], [0.5, np.nan, np.nan])


# ---- By group ----

@pytest.mark.parametrize("other", ["100", "232"])
def test_figures_without_record_232_are_those_of_the_other_records(other):
    record = np.where(np.arange(400) % 3, other, "232")
    scored = example(record=record)
    table = stage.make_tables(scored)["without record 232"]
    if other == "232":
        assert table.loc["S", "n"] == 0 and np.isnan(table.loc["S", "f1"])
    else:
        assert_tables_equal(table, by_scikit_learn(part_of(scored, record != "232")))


def test_records_with_one_superclass_are_called_by_the_most_probable_one():
    scored = example("multilabel", record=np.full(400, "1"))
    tables = stage.make_tables(scored)
    table = tables["records with one class, the most probable one called"]
    single = scored.truth.sum(axis=1) == 1
    correct = scored.truth[single].argmax(axis=1) == scored.probability[single].argmax(axis=1)
    assert table.loc["all", "n"] == single.sum()
    close(table.loc["all", "accuracy"], correct.mean())


# ---- Beat by beat ----

def two_annotators(rate, **records):
    """record=(reference, calls), each a list of (sample, symbol) -> dataset, table of the calls."""
    marks = [(record, *mark) for record, (reference, _) in records.items() for mark in reference]
    calls = [(record, *call) for record, (_, called) in records.items() for call in called]
    annotations = pd.DataFrame(marks, columns=["record", "sample", "symbol"])
    annotations["label"] = preprocess_mitbih.symbol_labels(
        annotations["symbol"].to_numpy())
    annotations["rate"] = rate
    data = SimpleNamespace(header=SimpleNamespace(symbols=list("NSVFQ")), annotations=annotations)
    return data, pd.DataFrame(calls, columns=["record", "sample", "symbol"])


def counted(counts, record):
    """Table of beat_counts, record -> dict of its cells that are not zero."""
    return {cell: count for cell, count in counts.loc[record].items() if count}


REFERENCE = [   # at 100 Hz, where 0.15 s are 15 samples
    (20, "+"), (100, "N"), (200, "A"), (300, "V"), (400, "F"), (550, "N"), (560, "~"), (580, "V"),
    (600, "["), (640, "!"), (650, "V"), (700, "]"), (800, "j"), (850, "e"), (900, "/"), (1000, "Q")]
CALLS = [
    (105, "N"),               # Nn
    (215, "V"),               # Sv, 0.15 s away
    (316, "V"),               # Ov and Vo: 0.16 s away
    # F at 400 is missed: Fo
    (500, "S"),               # Os
    (562, "N"),               # On: 0.12 s from N, but the next one is nearer
    (551, "N"),               # Nn
    (578, "F"),               # Vf
    (601, "V"), (650, "N"),   # flutter: neither counts, nor does V at 650
    (701, "Q"),               # Oq
    (803, "N"), (850, "S"),   # escape beats are N: Nn, Ns
    (890, "Q"), (1000, "N")]  # Qq, Qn


def test_beats_are_counted_as_by_hand():
    data, beats = two_annotators(100, a=(REFERENCE, sorted(CALLS)), b=([(90, "V")], [(80, "V")]))
    counts = stage.beat_counts(data, beats, np.unique(beats["record"]), 0)
    assert list(counts.columns) == [a + b for a in "NSVFQO" for b in "nsvfqo"]
    assert counted(counts, "a") == {
        "Nn": 3, "Ns": 1, "Sv": 1, "Vo": 1, "Vf": 1, "Fo": 1, "Qn": 1, "Qq": 1,
        "On": 1, "Os": 1, "Ov": 1, "Oq": 1}
    assert counted(counts, "b") == {"Vv": 1}


def test_a_record_at_another_rate_has_a_window_of_as_many_seconds():
    for rate, cells in ((100, {"No": 1, "On": 1}), (250, {"Nn": 1})):
        data, beats = two_annotators(rate, a=([(400, "N")], [(437, "N")]))
        assert counted(stage.beat_counts(data, beats, np.unique(beats["record"]), 0), "a") == cells


@pytest.mark.parametrize("reference, calls, cells", [
    ([(29_950, "V"), (30_500, "N")], [(29_951, "S"), (30_501, "N")], {"Nn": 1}),
    # the last call before 5:00 is the partner of the first beat after it
    ([(30_005, "V"), (30_500, "N")], [(29_995, "V"), (30_100, "S")], {"Vv": 1, "Os": 1, "No": 1}),
    # the partner of the last beat before 5:00 counts as little as that beat
    ([(29_995, "V"), (30_100, "N")], [(30_005, "V"), (30_101, "N")], {"Nn": 1}),
    ([(29_900, "V"), (30_100, "N")], [(30_020, "V"), (30_101, "N")], {"Ov": 1, "Nn": 1}),
])
def test_beats_before_5_minutes_are_not_counted(reference, calls, cells):
    data, beats = two_annotators(100, a=(reference, calls))
    assert counted(stage.beat_counts(data, beats, np.unique(beats["record"]), 300), "a") == cells


def pairs_of_bxb(reference, test, window, start):
    """The rule of bxb since 2002, step by step -> list of pairs of indices, -1 for no partner."""
    far = 10 ** 9
    time = [*reference, far, far]
    test_time = [*test, far, far]
    i = sum(sample < start for sample in reference)
    j = sum(sample < start for sample in test)
    pairs = []
    if start and j and time[i] - test_time[j - 1] <= window and (
            time[i] - test_time[j - 1] < abs(time[i] - test_time[j])):
        pairs.append((i, j - 1))
        i += 1
    elif start and test_time[j] - start <= window and (
            abs(time[i] - test_time[j + 1]) < abs(time[i] - test_time[j])):
        j += 1
    while i < len(reference) or j < len(test):
        next_distance = abs(time[i + 1] - test_time[j + 1])
        if test_time[j] < time[i]:
            distance = time[i] - test_time[j]
            other = abs(time[i] - test_time[j + 1])
            if distance <= window and (distance < other or next_distance < other):
                pairs.append((i, j))
                i += 1
                j += 1
            else:
                pairs.append((-1, j))
                j += 1
        else:
            distance = test_time[j] - time[i]
            other = abs(test_time[j] - time[i + 1])
            if distance <= window and (distance < other or next_distance < other):
                pairs.append((i, j))
                i += 1
                j += 1
            else:
                pairs.append((i, -1))
                i += 1
    return pairs


def test_a_pair_of_which_the_next_beats_are_a_better_one_is_not_torn_apart():
    reference = [(96, "N"), (160, "V")]   # the example in bxb.c, at 250 Hz
    data, beats = two_annotators(250, a=(reference, [(128, "N"), (185, "V")]))
    counts = stage.beat_counts(data, beats, np.unique(beats["record"]), 0)
    assert counted(counts, "a") == {"Nn": 1, "Vv": 1}


@pytest.mark.parametrize("start", [0, 5])
def test_beats_are_paired_as_by_a_literal_form_of_the_rule(start):
    rng = np.random.default_rng(start)
    single = 0
    for _ in range(200):
        reference = np.cumsum(rng.integers(5, 120, 30))
        test = np.concatenate([reference + rng.integers(-20, 21, 30), rng.integers(0, 2000, 8)])
        test = np.sort(rng.permutation(test)[:rng.integers(0, 39)].clip(1))
        pairs = preprocess_mitbih.pair_beats(reference, test, 100, start)
        expected = pairs_of_bxb(reference.tolist(), test.tolist(), 15, 100 * start)
        assert pairs.tolist() == list(map(list, expected))
        single += (pairs < 0).sum()
    assert single > 1000


def figures_of_bxb(m, fusion):
    """Counts, those of fusion beats called S that are false -> list of the figures by formulas."""
    beats = sum(m[a + b] for a in "NSVFQ" for b in "nsvfqo")
    missed = m.No + m.So + m.Vo + m.Fo + m.Qo
    false = m.On + m.Os + m.Ov + m.Of + m.Oq
    normal = m.Nn + m.Ns + m.Nv + m.Nf + m.Nq + m.No
    veb = m.Vn + m.Vs + m.Vv + m.Vf + m.Vq + m.Vo
    sveb = m.Sn + m.Ss + m.Sv + m.Sf + m.Sq + m.So
    false_veb = m.Nv + m.Sv + m.Ov              # not Fv, not Qv
    false_sveb = m.Ns + m.Vs + fusion + m.Os    # not Qs
    not_veb = sum(m[a + b] for a in "NSFQO" for b in "nsfq")
    not_sveb = sum(m[a + b] for a in "NVFQO" for b in "nvfq")
    called = {b: sum(m[a + b] for a in "NSVFQO") for b in "nsv"}
    f1 = [2 * m.Nn / (normal + called["n"]), 2 * m.Ss / (sveb + called["s"]),
          2 * m.Vv / (veb + called["v"])]
    return [beats, percent(beats - missed, beats), percent(beats - missed, beats - missed + false),
            percent(m.Vv, veb), percent(m.Vv, m.Vv + false_veb),
            percent(false_veb, false_veb + not_veb),
            percent(m.Ss, sveb), percent(m.Ss, m.Ss + false_sveb),
            percent(false_sveb, false_sveb + not_sveb), *f1, np.mean(f1)]


def test_ec57_figures_are_those_of_the_formulas_of_bxb_and_sumstats():
    rng = np.random.default_rng(0)
    cells = [a + b for a in "NSVFQO" for b in "nsvfqo"]
    counts = pd.DataFrame(rng.integers(1, 50, (3, 36)), list("abc"), cells)
    counts["Oo"] = 0
    counts.loc["b", ["Ss", "Sn", "Sv", "Sf", "Sq", "So"]] = 0   # no S in the reference
    counts.loc["c", [cell for cell in cells if "v" in cell]] = 0   # nothing called V
    table = stage.ec57_table(counts)
    assert table.index.tolist() == ["a", "b", "c", "gross", "average"]
    for record, m in counts.iterrows():
        close(table.loc[record], figures_of_bxb(m, m.Fs))
    # sumstats does not count Fs as false
    close(table.loc["gross"], figures_of_bxb(counts.sum(), 0))
    by_record = pd.DataFrame([figures_of_bxb(m, 0) for _, m in counts.iterrows()])
    close(table.loc["average"], by_record.mean())
    assert np.isnan(table.loc["b", "SVEB sensitivity"])   # left out of the average
    assert np.isnan(table.loc["c", "VEB positive predictivity"])
    assert not table.loc["average"].isna().any()


def percent(part, whole):
    return 100 * part / whole if whole else np.nan


# ---- What the model looks at ----

def test_chosen_examples_are_correct_ones_around_the_median_confidence():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.45, 0.55]])

    def choose(truth, number, rows=5):
        scored = example()._replace(names=["a", "b"], truth=truth[:rows],
                                    probability=probability[:rows],
                                    called=probability[:rows] >= 0.5)
        chosen, classes = stage.choose_examples(scored, number)
        return chosen.tolist(), classes.tolist()
    first = np.tile([True, False], (5, 1))
    assert choose(first, 1) == ([1], [0])
    assert choose(first, 2) == ([2, 1], [0, 0])
    assert choose(first, 9) == ([2, 1, 0], [0, 0, 0])
    every = np.ones((5, 2), bool)
    assert choose(every, 1) == ([1, 4], [0, 1])
    with pytest.raises(SystemExit, match="not one row is called correctly"):
        choose(first[:, ::-1], 1, rows=3)


def random_inputs(rows, samples):
    """-> Scored of a small net, and the class of each row."""
    torch.manual_seed(0)
    net = model_training.Ensemble(
        "cnn", 1, channels=2, samples=60, features=3, outputs=4, widths=[8, 8], stem=(5, 2),
        head=(None, None, 0.5)).double().eval()
    net.normalise_signals.mean += 0.3
    signals = torch.randn(rows, 2, samples).double()
    features = torch.randn(rows, 3).double()
    recipe = SimpleNamespace(crop=60, classes=list("abcd"))
    scored = example()._replace(net=net, recipe=recipe, inputs=[signals, features])
    return scored, np.array([0, 2, 1][:rows])


class Squares(torch.nn.Module):
    """Logits: the sum of the squares of all samples, and the sum of the samples."""
    normalise_signals = SimpleNamespace(mean=torch.full((2, 1), 0.3))

    def forward(self, signals, features):
        return torch.stack([signals.square().sum(dim=(1, 2)), signals.sum(dim=(1, 2))], dim=1)


def test_integrated_gradients_of_sums_and_squares_equal_a_computation_by_hand():
    signals = torch.randn(2, 2, 60)
    scored = example()._replace(
        net=Squares(), recipe=SimpleNamespace(crop=60, classes=["a", "b"]),
        inputs=[signals, torch.zeros(2, 0)])
    attribution = stage.integrated_gradients(scored, np.arange(2), np.array([0, 1]))
    expected = torch.stack([signals[0].square() - 0.3 ** 2, signals[1] - 0.3])
    torch.testing.assert_close(attribution, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("members", [None, np.eye(3)[[0, 0, 1, 2]]])   # two make class 0
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(members):
    scored, classes = random_inputs(3, 100)
    if members is not None:
        scored = scored._replace(members=np.array(members, bool))
    attribution = stage.integrated_gradients(scored, np.arange(3), classes)
    ends = []
    for x in (scored.inputs[0], torch.full_like(scored.inputs[0], 0.3)):
        with torch.no_grad():
            logits = model_training.crop_logits(scored.net, x, scored.inputs[1], 60)
        logits = model_training.class_logits(logits, scored.recipe, scored.members)
        ends.append(logits[np.arange(3), classes])
    difference = ends[0] - ends[1]
    missed = attribution.sum(dim=(1, 2)) - difference
    assert missed.abs().sum() < 0.03 * difference.abs().sum()


def test_attribution_by_lead_adds_the_channels_that_a_voltage_moves():
    attribution = torch.zeros(1, 4, 20)
    attribution[0, :, 10] = torch.tensor([3., 1, -1, -5])   # two leads, then their differences
    scored = SimpleNamespace(recipe=SimpleNamespace(leads=["a", "b"]), data=SimpleNamespace(
        header=SimpleNamespace(sampling_rate=150)))
    smooth = stage.by_lead(scored, attribution)
    expected = np.zeros((1, 2, 20))
    expected[0, 0, 9:12] = 2 / 3   # over 0.02 s: three samples
    expected[0, 1, 9:12] = 4 / 3
    np.testing.assert_allclose(smooth, expected, atol=1e-6)


def test_the_deletion_test_knows_a_good_attribution_from_a_moved_one():
    class Middle(torch.nn.Module):
        """The logit of class 0 is the sum of samples 40 to 60."""
        normalise_signals = SimpleNamespace(mean=torch.zeros(1, 1))

        def forward(self, signals, features):
            x = signals[:, 0, 40:60].sum(dim=1)
            return torch.stack([x, torch.zeros_like(x)], dim=1)
    recipe = SimpleNamespace(task="multiclass", crop=100, classes=["a", "b"])
    scored = example()._replace(net=Middle(), recipe=recipe, inputs=[
        torch.ones(30, 1, 100), torch.zeros(30, 0)])
    good = np.zeros((30, 1, 100))
    good[:, :, 40:60] = np.linspace(1, 2, 20)
    rows = np.arange(30)
    classes = np.zeros(30, int)
    with changed(stage, DELETED=[0, 0.1, 0.2]):
        curve = stage.deletion_test(scored, rows, classes, good)
        moved = stage.deletion_test(scored, rows, classes, good, np.random.default_rng(0))
    expected = torch.sigmoid(torch.tensor([20.0, 10, 0]))   # of what is left
    np.testing.assert_allclose(curve, expected, atol=1e-6)
    assert moved[0] == curve[0] and moved[2] > 0.8


def test_pictures_show_an_example_of_each_class_and_the_largest_errors(monkeypatch):
    drawn = {}
    for name in ("plot_confusion", "plot_curves", "plot_averages"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    monkeypatch.setattr(stage, "plot_ecgs", lambda _, rows, *others: drawn.update(
        {others[-1]: (rows, others[0])}))
    scored = example()
    scored.data.is_ptbxl = False
    rows, classes = stage.choose_examples(scored, 3)
    attribution = np.arange(len(rows))
    stage.draw_pictures(scored, rows, classes, attribution, None, list("abcde"))
    examples, shown = drawn["c"]
    assert scored.truth[examples].argmax(axis=1).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rows[shown], examples)
    worst, _ = drawn["e"]
    assert len(worst) == 15 and not scored.called[worst].any(where=scored.truth[worst])
    error = np.abs(scored.truth - scored.probability).max(axis=1)
    assert error[worst].min() >= np.delete(error, worst).max()


# ---- The whole script ----

@pytest.mark.parametrize("dataset, model, constants", [
    ("mitbih", "lstm", {"SPLIT": "random"}),
    ("ptbxl", "mlp", {"LEADS": ["I", "V3"]}),
])
def test_every_output_says_what_it_was_made_from(
        trained, coarse_pictures, capsys, dataset, model, constants):
    trained(dataset, model, SECOND_NET=False, **constants)
    report = evaluate(dataset, model, **SMALL)
    printed = capsys.readouterr().out.split("Wrote")[-2]
    name = f"{dataset}_{model}"
    for text in (report["title"], printed):
        assert "SIMULATED" in text
        assert ("LEAKY" in text) == ("SPLIT" in constants)
        assert ("annotated beats" in text) == (dataset == "mitbih")
    for part in ("confusion", "curves", "explanation", "averages", "mistakes"):
        with open(f"{name}_{part}.png", "rb") as file:
            assert file.read(4) == b"\x89PNG"
    tables = report["tables"]
    shown = [heading for heading in tables if heading != "AUC of every statement"]
    assert all(f"\n{heading}\n" in printed for heading in shown)
    # single beats of a record, as a random split has them, are no record
    assert not any("EC57" in heading for heading in tables)
    assert not Path(f"{name}_annotations").exists()
    methods = {"at its places", "at random places"}
    assert all(set(row) == methods for row in tables["deletion test"].values())


@pytest.mark.parametrize("dataset, model", [("mitbih", "mlp"), ("ptbxl", "mlp")])
def test_predictions_repeat_the_figures(quick_pictures, trained, dataset, model):
    trained(dataset, model)
    report = evaluate(dataset, model, **FAST)
    tables = report["tables"]
    table = pd.read_csv(f"{dataset}_{model}_predictions.csv", keep_default_na=False)
    overall = tables["all classes"]
    assert len(table) == overall["n"]["value"]
    accuracy = np.mean(table["true"] == table["called"])
    assert accuracy == pytest.approx(overall["accuracy"]["value"])
    for name, row in tables["by class"].items():
        truth = table[f"{name} true"]
        called = [name in classes.split("+") for classes in table["called"]]
        np.testing.assert_array_equal(truth, [name in x.split("+") for x in table["true"]])
        assert truth.sum() == row["n"] > 0
        assert sk.recall_score(truth, called) == pytest.approx(row["sensitivity"])
        auc = sk.roc_auc_score(truth, table[f"{name} probability"])
        assert auc == pytest.approx(row["auc"], abs=1e-6)
        assert tables["by class, 95% interval from"][name]["auc"] <= auc
        assert tables["by class, 95% interval to"][name]["auc"] >= auc


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_rows_are_scored_with_the_checkpoints_thresholds(trained, dataset):
    trained(dataset, "mlp")
    scored = score_test_rows(dataset)
    checkpoint = model_training.load_pth(f"{dataset}_mlp_model.pth")
    (_, net, data, rows, _), inputs = stage.predict_test_rows(dataset, "mlp")
    with torch.no_grad():
        logits = model_training.crop_logits(
            net, *(values[scored.rows] for values in inputs), scored.recipe.crop).double().numpy()
    if dataset == "ptbxl":
        assert scored.names == sorted(data.header.class_names)
        none = np.stack([np.prod(1 / (1 + np.exp(logits[:, np.isin(
            data.header.statement_names, data.header.tasks["superdiagnostic"][name])])), axis=1)
            for name in scored.names], axis=1)
        any_label = 1 - none.prod(axis=1, keepdims=True)   # no statement is in two classes
        np.testing.assert_allclose(scored.probability, (1 - none) / any_label, rtol=1e-4)
        called = scored.probability >= checkpoint["thresholds"]["superdiagnostic"]
        columns = [data.header.class_names.index(name) for name in scored.names]
        truth = data.metadata["superclasses"][scored.rows][:, columns] == 1
    else:
        np.testing.assert_allclose(
            scored.probability, scipy.special.softmax(logits, axis=1), rtol=1e-4)
        called = np.eye(5)[scored.probability.argmax(axis=1)] == 1
        truth = np.eye(5)[scored.data.labels[scored.rows]] == 1
    np.testing.assert_array_equal(scored.called, called)
    np.testing.assert_array_equal(scored.truth, truth)


def test_the_six_tasks_have_the_benchmarks_rows_and_classes(quick_pictures, trained, arrays):
    trained("ptbxl", "mlp")
    report = evaluate("ptbxl", "mlp", TASK="rhythm", **FAST)
    assert "rhythm statements" in report["title"]
    tables = report["tables"]
    tasks = tables["macro AUC of the benchmark's tasks"]
    scp = pd.read_csv(arrays / PTBXL / "scp_statements.csv", index_col=0)
    data = preprocess_mitbih.load_dataset("ptbxl")
    test = data.metadata["fold"] == 10
    found = pd.DataFrame(data.metadata["statements"][test] >= 0,
                         columns=data.header.statement_names)
    for task, members in {"all": scp.index, **{
            kind: scp.index[scp[kind] == 1] for kind in ("diagnostic", "form", "rhythm")}}.items():
        assert tasks[task]["records"] == found[members].any(axis=1).sum()
        assert tasks[task]["classes"] == len(members)
        scored = score_test_rows("ptbxl", task)
        table = pd.DataFrame(scored.probability, columns=scored.names)
        truth = pd.DataFrame(scored.truth, columns=scored.names)
        auc = [sk.roc_auc_score(truth[name], table[name]) for name in scored.names
               if 0 < truth[name].sum() < len(truth)]
        assert tasks[task]["value"] == pytest.approx(np.mean(auc))
    assert tasks["superdiagnostic"]["classes"] == 5
    diagnostic = scp[scp["diagnostic"] == 1]
    assert tasks["subdiagnostic"]["classes"] == diagnostic["diagnostic_subclass"].nunique()
    assert set(tables["by class"]) == set(scp.index[scp["rhythm"] == 1])
    worst = [row["value"] for row in tables["statements with the lowest AUC"].values()]
    best = [row["value"] for row in tables["statements with the highest AUC"].values()]
    assert len(worst) == len(best) == 5 and max(worst) < min(best)


def test_evaluation_obeys_the_checkpoints_own_split(trained):
    trained("mitbih", "mlp")
    with changed(model_training, EXCLUDED_RECORDS=["202"], SPLIT="all"):
        scored = score_test_rows("mitbih")
    records = scored.data.header.records
    names = [record["name"] for record in records if record["subset"] == "DS2"]
    assert sorted(set(scored.data.record[scored.rows])) == names and "202" in names
    np.testing.assert_array_equal(scored.rows, np.flatnonzero(np.isin(scored.data.record, names)))


@pytest.mark.parametrize("keep", [
    lambda beats: beats["record"] == beats["record"][0],   # record 100
    lambda beats: ~np.isin(beats["symbol"], list("AaJS")),
])
def test_a_patient_alone_and_a_class_without_rows_can_be_evaluated(quick_pictures, trained, keep):
    trained("mitbih", "mlp")

    def load_fewer(name):
        data = preprocess_mitbih.load_dataset(name)
        in_test = np.isin(data.record, preprocess_mitbih.SUBSETS["DS2"].split())
        data.labels[~(in_test & keep(data.metadata))] = -1
        return data
    with changed(stage, load_dataset=load_fewer):
        tables = evaluate("mitbih", "mlp", **FAST)["tables"]
    assert tables["by class"]["N"]["n"] > 0
    assert None in [row["f1"] for row in tables["by class"].values()]


def read_called(folder, record, extension="mlp"):
    """Annotation file of a test record -> its samples and symbols, as wfdb reads them."""
    annotation = wfdb.rdann(str(Path(folder, record)), extension)
    return annotation.sample, annotation.symbol


def test_annotation_files_hold_the_called_beats(quick_pictures, trained):
    trained("mitbih", "mlp")
    Path("mitbih_mlp_annotations").mkdir()   # of an earlier run
    tables = evaluate("mitbih", "mlp", **FAST)["tables"]
    scored = score_test_rows("mitbih")
    names = preprocess_mitbih.SUBSETS["DS2"].split()
    assert sorted(contents("mitbih_mlp_annotations")) == [f"{name}.mlp" for name in names]
    called = np.array(list("NSVFQ"))[scored.probability.argmax(axis=1)]
    for name in names:
        rows = scored.data.record[scored.rows] == name
        sample, symbol = read_called("mitbih_mlp_annotations", name)
        expected = scored.data.metadata["sample"][scored.rows[rows]]
        np.testing.assert_array_equal(sample, expected)
        np.testing.assert_array_equal(symbol, called[rows])
    # annotated beats all have a partner, except those at the ends of the records
    counts = pd.DataFrame(tables["beats counted from 0:00, reference and call"]).T
    close(counts["Oo"], 0)
    assert counts.filter(regex="^O").sum().sum() == 0
    confusion = sk.confusion_matrix(scored.truth.argmax(axis=1), scored.called.argmax(axis=1))
    together = counts.sum()
    for k, truth in enumerate("NSVFQ"):
        for n, call in enumerate("nsvfq"):
            assert together[truth + call] == confusion[k, n]
    missed = together.filter(regex="o$").sum()
    assert missed == np.sum(in_ds2(scored.data.annotations, scored.data.annotations["row"] < 0))
    gross = tables["EC57 from 0:00"]["gross"]
    assert gross["beats"] == len(scored.rows) + missed
    close(gross["VEB sensitivity"], 100 * together["Vv"] / together.filter(regex="^V").sum())
    assert tables["EC57 from 5:00"]["gross"]["beats"] == 0   # the records have 40 s
    scored.data.header.symbols = [*"NLRAV"]   # classes of one's own
    assert not any("EC57" in heading for heading in stage.make_tables(scored))


def in_ds2(annotations, mask):
    """Table of annotations, mask -> mask of those that are beats of DS2, too."""
    is_beat = annotations["label"] >= 0
    return is_beat & mask & annotations["record"].isin(preprocess_mitbih.SUBSETS["DS2"].split())


def test_annotation_files_are_at_the_rate_of_the_record(work, quick_pictures):
    simulate.write_mitbih(MITBIH, ["101", "106", "119", "124", "203", "100", "232"], seconds=60)
    run_stage(preprocess_mitbih, SAMPLING_RATE=200, SEGMENT=200)
    train("mitbih", "mlp")
    evaluate("mitbih", "mlp", **FAST)
    for name in ("100", "232"):
        reference = wfdb.rdann(f"{MITBIH}/{name}", "atr")
        of_beat = reference.sample[np.isin(reference.symbol, list("NRAVj"))]
        sample, _ = read_called("mitbih_mlp_annotations", name)
        distance = np.abs(sample[:, None] - of_beat).min(axis=1)
        assert len(sample) > 30 and distance.max() < 0.05 * 360
    data = preprocess_mitbih.load_dataset("mitbih")
    beats = stage.called_beats(data, np.arange(len(data.labels)), np.eye(5)[data.labels])
    counts = stage.beat_counts(data, beats, np.unique(beats["record"]), 0)
    assert counts.filter(regex="^O").sum().sum() == 0   # all have a partner
    of_class = np.bincount(data.labels, minlength=5)
    for name, count in zip("NSVFQ", of_class):
        assert counts[name + name.lower()].sum() == count


# ---- Detected beats ----

def lose_annotations(names):
    """Takes every third beat out of the reference of some records -> how many are left out.

    A detector finds these beats all the same: they are "not a beat" then.
    """
    for name in names:
        annotation = wfdb.rdann(f"{MITBIH}/{name}", "atr")
        keep = np.arange(len(annotation.sample)) % 3 > 0
        wfdb.wrann(name, "atr", annotation.sample[keep],
                   np.array(annotation.symbol)[keep], write_dir=MITBIH)


def test_a_model_of_annotated_beats_is_evaluated_on_detected_ones(trained, arrays, quick_pictures):
    trained("mitbih", "mlp")
    shutil.copytree(arrays / MITBIH, MITBIH)
    lose_annotations(["100", "103"])
    run_stage(preprocess_mitbih, R_PEAKS="detected")
    report = evaluate("mitbih", "mlp", **FAST)
    assert "detected beats" in report["title"]
    tables = report["tables"]
    data = preprocess_mitbih.load_dataset("mitbih")
    rows = np.flatnonzero(np.isin(data.record, preprocess_mitbih.SUBSETS["DS2"].split()))
    false = np.sum(data.labels[rows] == 5)
    assert false > 15
    assert list(tables["by class"]) == NAMES   # of the model
    assert tables["all classes"]["n"]["value"] == len(rows)
    table = pd.read_csv("mitbih_mlp_predictions.csv", keep_default_na=False)
    assert np.sum(table["true"] == "") == false
    right = (table["true"] == table["called"]).mean()   # a false detection never is
    assert tables["all classes"]["accuracy"]["value"] == pytest.approx(right)
    counts = pd.DataFrame(tables["beats counted from 0:00, reference and call"]).T.sum()
    assert counts.filter(regex="^O").sum() == false
    missed = np.sum(in_ds2(data.annotations, data.annotations["row"] < 0))
    assert counts.filter(regex="o$").sum() == missed > 0
    gross = tables["EC57 from 0:00"]["gross"]
    hits = len(rows) - false
    close(gross["QRS sensitivity"], 100 * hits / (hits + missed))
    close(gross["QRS positive predictivity"], 100 * hits / (hits + false))


def test_a_model_of_detected_beats_knows_false_ones(work, arrays, quick_pictures):
    shutil.copytree(arrays / MITBIH, MITBIH)
    lose_annotations(["101", "106", "112", "119", "207", "208", "209", "230", "100", "103"])
    run_stage(preprocess_mitbih, R_PEAKS="detected")
    train("mitbih", "mlp", {"epochs": 2})
    report = evaluate("mitbih", "mlp", **FAST)
    scored = score_test_rows("mitbih")
    assert list(report["tables"]["by class"]) == [*NAMES, "not a beat"]
    assert report["tables"]["by class"]["not a beat"]["n"] == np.sum(scored.truth[:, 5]) > 15
    # make the model say "not a beat" where it is one
    beats = stage.called_beats(scored.data, scored.rows, scored.truth)
    assert len(beats) == np.sum(~scored.truth[:, 5])
    assert set(beats["symbol"]) == set(NAMES)
    counts = stage.beat_counts(scored.data, beats, np.unique(beats["record"]), 0).sum()
    assert counts.filter(regex="^O").sum() == 0
    on_diagonal = [counts[name + name.lower()] for name in NAMES]
    np.testing.assert_array_equal(on_diagonal, scored.truth[:, :5].sum(axis=0))
    # a beat that is called "not a beat" is a missed one
    silent = scored.truth.copy()
    first = np.flatnonzero(silent[:, 2])[0]
    silent[first] = np.arange(6) == 5
    beats = stage.called_beats(scored.data, scored.rows, silent)
    fewer = stage.beat_counts(scored.data, beats, np.unique(beats["record"]), 0).sum()
    assert (fewer["Vv"], fewer["Vo"]) == (counts["Vv"] - 1, counts["Vo"] + 1)


# ---- The check against bxb ----

def program(folder, name, *arguments):
    """In place of bxb and sumstats: prints what they print, by a literal form of their rules."""
    if name == "sumstats":
        return sumstats(Path(folder, *arguments).read_text())
    record, model, start = (arguments[k] for k in (1, 4, 6))
    reference = wfdb.rdann(str(Path(folder, record)), arguments[3])
    test = wfdb.rdann(str(Path(folder, record)), model)
    is_beat = np.isin(reference.symbol, NAMES)
    pairs = pairs_of_bxb(reference.sample[is_beat].tolist(), test.sample.tolist(), 54,
                         60 * 360 * int(start.split(":")[0]))
    true = [*np.array(reference.symbol)[is_beat], "O"]
    call = [*test.symbol, "O"]
    counts = Counter(true[i] + call[j].lower() for i, j in pairs)
    if "-L" in arguments:
        with open(Path(folder, arguments[-2]), "a") as file:
            file.write(json.dumps(counts) + "\n")
        return ""
    lines = [f" {a} | " + " ".join(f"{counts[a + b]:4}" for b in "nsvfqo") + "    0"
             for a in "NSVFQ"]
    false = " O | " + " ".join(f"{counts['O' + b]:4}" for b in "nsvfq")
    return "\n".join([*lines, false, " X |    0    0    0    0    0", ""])


def sumstats(lines):
    """Counts of each record as JSON lines -> the last lines that sumstats prints."""
    records = [Counter(json.loads(line)) for line in lines.splitlines()]
    rows = []
    for m in (*records, sum(records, Counter())):
        beats = sum(m[a + b] for a in "NSVFQ" for b in "nsvfq")
        pairs = [
            (beats, beats + sum(m[a + "o"] for a in "NSVFQ")),
            (beats, beats + sum(m["O" + b] for b in "nsvfq")),
            (m["Vv"], sum(m["V" + b] for b in "nsvfqo")),
            (m["Vv"], m["Vv"] + m["Nv"] + m["Sv"] + m["Ov"]),
            (m["Ss"], sum(m["S" + b] for b in "nsvfqo")),
            (m["Ss"], m["Ss"] + m["Ns"] + m["Vs"] + m["Os"])]   # without Fs
        rows.append([percent(*pair) for pair in pairs])
    table = pd.DataFrame(rows)
    return "\n".join(
        f"{name}      " + " ".join("-" if np.isnan(x) else f"{x:6.2f}" for x in row)
        for name, row in (("Gross", table.iloc[-1]), ("Average", table.iloc[:-1].mean())))


def test_the_check_against_bxb_compares_every_count(work, quick_pictures, monkeypatch, capsys):
    records = ["101", "106", "119", "124", "203", "100", "213", "232", "234"]
    simulate.write_mitbih(MITBIH, records, seconds=330)   # beyond 5:00
    run_stage(preprocess_mitbih, R_PEAKS="detected")
    train("mitbih", "mlp")
    evaluate("mitbih", "mlp", **FAST)
    monkeypatch.setattr(sys, "argv", ["", "mitbih", "mlp"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="bxb is not installed: nothing was compared"):
        compare_with_bxb.main()
    capsys.readouterr()
    monkeypatch.setattr(compare_with_bxb, "program", program)
    compare_with_bxb.main()
    assert capsys.readouterr().out == (
        "4 records from 0:00 and from 5:00: every count equals that of bxb, "
        "gross and average percentages those of sumstats\n")
    path = Path("mitbih_mlp_metrics.json")
    report = json.loads(path.read_text())
    report["tables"]["beats counted from 5:00, reference and call"]["232"]["On"] += 3
    report["tables"]["EC57 from 0:00"]["average"]["VEB sensitivity"] += 0.02
    path.write_text(json.dumps(report))
    with pytest.raises(SystemExit, match="2 numbers DIFFER"):
        compare_with_bxb.main()
    printed = capsys.readouterr().out
    assert "from 5:00, record 232, On: bxb " in printed
    assert "from 0:00, Average, VEB sensitivity: sumstats " in printed


# ---- Bad input ----

@pytest.mark.parametrize("constants, message", [
    ({}, "mitbih_cnn_model.pth is not in this folder. Run model_training.py: DATASET = "),
    ({"DATASET": "ecg"}, "DATASET = 'ecg': expected one of mitbih, ptbxl"),
    ({"MODEL": "svm"}, "MODEL = 'svm': expected one of"),
])
def test_a_missing_checkpoint_and_bad_choices_stop_with_one_sentence(prepared, constants, message):
    with pytest.raises(SystemExit, match=message):
        run_stage(stage, **constants)


def test_an_unknown_task_stops_with_one_sentence(trained):
    trained("ptbxl", "mlp")
    with pytest.raises(SystemExit, match="TASK = 'super': expected one of all, diagnostic"):
        run_stage(stage, DATASET="ptbxl", MODEL="mlp", TASK="super")


def test_a_model_trained_on_all_records_has_no_test_rows(trained):
    trained("mitbih", "mlp", SPLIT="all")
    with pytest.raises(SystemExit, match="no test rows"):
        run_stage(stage, MODEL="mlp")


def test_a_task_without_a_test_row_stops_with_one_sentence(trained):
    trained("ptbxl", "mlp")
    (*model, rows, logits), _ = stage.predict_test_rows("ptbxl", "mlp")
    with pytest.raises(SystemExit, match="^no test row has a label of ptbxl, form statements"):
        stage.score_rows(*model, rows[:0], logits[:0], "form")


@pytest.mark.parametrize("size", [1.0, 3.0, -3.0])
def test_paper_shows_the_whole_trace_and_4_mv_at_least(size):
    axis = Figure().subplots()
    voltage = np.zeros(360)
    voltage[180] = size
    stage.draw_ecg(axis, 360, [(0, 0, voltage, np.zeros(360), "tall")])
    assert axis.get_ylim() == (min(-2, size), max(2, size)) and axis.get_xlim() == (0, 5)
    assert axis.texts[0].get_position() == (0, max(0, size) + 0.1)   # above the trace
