"""model_evaluation.py: figures against scikit-learn, what the model looks at, the files written."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from harness import changed, run_stage
from sklearn import metrics as sk

import model_evaluation as stage
import model_training

NAMES = ["N", "S", "V", "F", "Q"]
SMALL = {"AVERAGED": {"mitbih": 6, "ptbxl": 1}}
FAST = {**SMALL, "METHODS": ["gradient"], "DELETED": [0, 0.5]}   # for tests of something else


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


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
    header = SimpleNamespace(class_names=NAMES, class_map="aami")
    everything = SimpleNamespace(header=header, patient=np.arange(rows) // 4, **data)
    recipe = SimpleNamespace(task=task)
    return stage.Scored("", everything, None, recipe, np.arange(rows), truth, called,
                        probability, probability, None, None)


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
        "auc": auc, "average precision": sk.average_precision_score(truth, p, average=None),
    }, NAMES)
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


def test_ranking_figures_with_weights_and_ties_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    scores = np.round(truth + rng.normal(size=200), 1)
    weights = rng.integers(0, 4, (20, 200))
    auc, average_precision = stage.rank_figures(truth, scores, weights)
    for k in range(20):
        rows = np.repeat(np.arange(200), weights[k])
        close(auc[k], sk.roc_auc_score(truth[rows], scores[rows]))
        close(average_precision[k], sk.average_precision_score(truth[rows], scores[rows]))


@pytest.mark.parametrize("truth, expected", [(True, [np.nan, 1]), (False, [np.nan, np.nan])])
def test_one_class_alone_has_no_auc(truth, expected):
    ranking = stage.rank_figures(np.full(5, truth), np.arange(5.0), np.ones((1, 5)))
    np.testing.assert_array_equal(np.ravel(ranking), expected)


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
    table = stage.resampled_figures(scored)
    expected = stage.resample_patients(rows // 4, partial(stage.figures, scored))
    pd.testing.assert_frame_equal(table, expected)


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


def test_a_model_does_not_differ_from_itself_and_differs_from_a_worse_one():
    scored = example()
    shuffled = np.random.default_rng(1).permutation(scored.probability)
    worse = scored._replace(probability=shuffled, called=stage.most_probable(shuffled))
    one, again, other = map(stage.resampled_figures, (scored, scored, worse))
    assert (stage.summarise(one - again) == 0).all(axis=None)
    assert stage.summarise(one - other).loc[("all", "macro auc"), "low"] > 0


# ---- By record, by group, calibration ----

def by_labels(labels, called, **data):
    """(n,) classes that are true and called -> Scored."""
    scored = example(rows=len(labels), **data)
    one_hot = np.eye(5, dtype=bool)
    return scored._replace(truth=one_hot[labels], called=one_hot[called])


def test_ec57_figures_equal_a_computation_by_hand():
    scored = by_labels([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 0, 2],
                       [0, 0, 1, 2, 1, 0, 2, 1, 2, 2, 1, 0, 2],
                       record=np.array(["a"] * 11 + ["b"] * 2))
    table = stage.ec57_table(scored)
    assert table["beats"].to_dict() == {"a": 11, "b": 2, "gross": 13, "average": 6.5}
    # F and Q called V, and Q called S, count neither as errors nor as negatives
    veb = [[1 / 2, 1 / 2, 1 / 7], [1, 1, 0], [2 / 3, 2 / 3, 1 / 8]]
    sveb = [[1 / 2, 1 / 3, 2 / 8], [np.nan, np.nan, 0], [1 / 2, 1 / 3, 2 / 10]]
    for kind, expected in (("VEB", veb), ("SVEB", sveb)):
        columns = [f"{kind} {figure}" for figure in
                   ("sensitivity", "positive predictivity", "false positive rate")]
        close(table.loc[["a", "b", "gross"], columns], expected)
        close(table.loc["average", columns], np.nanmean(expected[:2], axis=0))


@pytest.mark.parametrize("other", ["100", "232"])
def test_figures_without_record_232_are_those_of_the_other_records(other):
    record = np.where(np.arange(400) % 3, other, "232")
    scored = example(record=record)
    table = stage.make_tables(scored, stage.resampled_figures(scored))["without record 232"]
    if other == "232":
        assert table.loc["S", "n"] == 0 and np.isnan(table.loc["S", "f1"])
    else:
        assert_tables_equal(table, by_scikit_learn(part_of(scored, record != "232")))


def test_groups_are_those_of_sex_and_age():
    metadata = np.zeros(400, [("age", "<f4"), ("sex", "i1")])
    metadata["age"] = np.resize([18, 39, 40, 59, 60, 79, 80, 89, 300, np.nan], 400)
    metadata["sex"] = np.repeat([0, 1, -1], [150, 200, 50])
    scored = example("multilabel", metadata=metadata)
    table = stage.group_table(scored)
    assert table["n"].to_dict() == {"male": 150, "female": 200, "under 40": 80, "40 to 59": 80,
                                    "60 to 79": 80, "80 and over": 120}
    for group, rows in (("female", metadata["sex"] == 1), ("80 and over", metadata["age"] >= 80)):
        expected = by_scikit_learn(part_of(scored, rows)).loc["all"]
        close(table.loc[group], expected[table.columns])


def test_records_with_one_superclass_are_called_by_the_most_probable_one():
    scored = example("multilabel", record=np.full(400, "1"), metadata=np.zeros(
        400, [("age", "<f4"), ("sex", "i1")]))
    tables = stage.make_tables(scored, stage.resampled_figures(scored))
    table = tables["records with one superclass, the most probable one called"]
    single = scored.truth.sum(axis=1) == 1
    correct = scored.truth[single].argmax(axis=1) == scored.probability[single].argmax(axis=1)
    assert table.loc["all", "n"] == single.sum()
    close(table.loc["all", "accuracy"], correct.mean())


def test_calibration_error_equals_a_computation_by_hand():
    p = np.array([0.05, 0.05, 0.95, 1.0])
    truth = np.array([False, True, True, False])
    weights = np.array([[1, 1, 1, 1], [3, 1, 0, 1]])
    expected = [(2 * 0.45 + 2 * 0.475) / 4, (4 * 0.2 + 1) / 5]
    close(stage.calibration_error(p, truth, weights), expected)


def test_calibration_is_about_the_called_class_or_about_all_superclasses():
    scored = example()
    p, truth = stage.calibration_rows(scored, scored.probability)
    close(p, scored.probability.max(axis=1))
    np.testing.assert_array_equal(truth, (scored.truth & scored.called).any(axis=1))
    scored = example("multilabel")
    p, truth = stage.calibration_rows(scored, scored.probability)
    close(p, scored.probability.ravel())
    np.testing.assert_array_equal(truth, scored.truth.ravel())


# ---- What the model looks at ----

def test_chosen_examples_are_correct_ones_around_the_median_confidence():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.45, 0.55]])

    def choose(truth, number, rows=5):
        scored = example()._replace(truth=truth[:rows], probability=probability[:rows],
                                    called=probability[:rows] >= 0.5)
        chosen, classes = stage.choose_examples(scored, number)
        return chosen.tolist(), classes.tolist()
    first = np.tile([True, False], (5, 1))
    assert choose(first, 1) == ([1], [0])
    assert choose(first, 2) == ([1, 0], [0, 0])
    assert choose(first, 9) == ([2, 1, 0], [0, 0, 0])
    both = first | (np.arange(5) == 1)[:, None]   # rows of one class go first
    assert choose(both, 2) == ([2, 0, 1], [0, 0, 1])
    assert choose(first[:, ::-1], 1, rows=3) == ([2], [1])   # none is correct


def random_inputs(rows, samples):
    """-> net, crop, signals, features and class of each row: arguments of `attributions`."""
    torch.manual_seed(0)
    net = model_training.CNN(channels=2, samples=60, features=3, outputs=4, widths=[8, 8],
                             stem_kernel=5, stem_stride=2, flatten_width=None).double().eval()
    net.normalise_signals.mean += 0.3
    signals = torch.randn(rows, 2, samples).double()
    features = torch.randn(rows, 3).double()
    return net, 60, signals, features, torch.tensor([0, 3, 1][:rows])


@pytest.mark.parametrize("samples", [60, 100])   # one crop, three crops
def test_the_gradient_equals_finite_differences(samples):
    net, crop, signals, features, classes = arguments = random_inputs(2, samples)
    attribution = stage.attributions("gradient", *arguments)
    for lead, sample in ((0, 7), (1, 33)):
        step = torch.zeros_like(signals)
        step[:, lead, sample] = 1e-6
        with torch.no_grad():
            ends = [model_training.crop_logits(net, x, features, crop)
                    for x in (signals + step, signals - step)]
        difference = (ends[0] - ends[1]).gather(1, classes[:, None])[:, 0] / 2e-6
        torch.testing.assert_close(attribution[:, lead, sample], difference.abs(),
                                   atol=1e-6, rtol=1e-5)


class Squares(torch.nn.Module):
    """Logits: the sum of the squares of all samples, and the sum of the samples."""
    normalise_signals = SimpleNamespace(mean=torch.full((2, 1), 0.3))

    def forward(self, signals, features):
        return torch.stack([signals.square().sum(dim=(1, 2)), signals.sum(dim=(1, 2))], dim=1)


def test_integrated_gradients_of_sums_and_squares_equal_a_computation_by_hand():
    signals = torch.randn(2, 2, 60)
    attribution = stage.attributions("integrated_gradients", Squares(), 60, signals,
                                     torch.zeros(2, 0), torch.tensor([0, 1]))
    expected = torch.stack([signals[0].square() - 0.3 ** 2, signals[1] - 0.3])
    torch.testing.assert_close(attribution, expected, atol=1e-5, rtol=1e-5)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    net, crop, signals, features, classes = arguments = random_inputs(3, 100)
    attribution = stage.attributions("integrated_gradients", *arguments)
    mean = torch.full_like(signals, 0.3)
    with torch.no_grad():
        ends = [model_training.crop_logits(net, x, features, crop).gather(1, classes[:, None])
                for x in (signals, mean)]
    difference = (ends[0] - ends[1])[:, 0]
    missed = attribution.sum(dim=(1, 2)) - difference
    assert missed.abs().sum() < 0.03 * difference.abs().sum()
    wrong = attribution.clone()
    wrong[:2, 0, 0] += torch.tensor([1, -1])   # errors that cancel out
    for values, gap in ((attribution, missed), (wrong, missed + torch.tensor([1, -1, 0]))):
        error = gap.abs().sum() / difference.abs().sum()
        assert stage.completeness_error(*arguments, values) == pytest.approx(error.item())


def test_grad_cam_is_the_sum_of_the_maps_weighted_by_their_gradients():
    net, crop, signals, features, classes = random_inputs(1, 60)
    maps = net.maps(net.normalise_signals(signals)).detach()
    gradient = torch.zeros_like(maps)
    with torch.no_grad():
        before = net.classify(maps, features)[0, classes[0]]
        for place in np.ndindex(*maps.shape):
            moved = maps.clone()
            moved[place] += 1e-6
            gradient[place] = (net.classify(moved, features)[0, classes[0]] - before) / 1e-6
    expected = (gradient.mean(dim=2, keepdim=True) * maps).sum(dim=1, keepdim=True).relu()
    assert expected.max() > 0
    stretched = torch.nn.functional.interpolate(expected, size=60, mode="linear")
    attribution = stage.attributions("grad_cam", net, crop, signals, features, classes)
    torch.testing.assert_close(attribution, stretched.expand_as(signals), atol=1e-5, rtol=1e-4)


def test_grad_cam_of_a_record_is_the_mean_of_its_crops():
    net, crop, signals, features, classes = random_inputs(3, 90)
    whole, first, second = (
        stage.attributions("grad_cam", net, crop, x, features, classes)
        for x in (signals, signals[:, :, :60], signals[:, :, 30:]))
    torch.testing.assert_close(whole[:, :, :30], first[:, :, :30])
    torch.testing.assert_close(whole[:, :, 30:60], (first[:, :, 30:] + second[:, :, :30]) / 2)
    torch.testing.assert_close(whole[:, :, 60:], second[:, :, 30:])


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
    recipe = SimpleNamespace(task="multiclass", crop=100)
    scored = example()._replace(net=Middle(), recipe=recipe, signals=torch.ones(30, 1, 100),
                                features=torch.zeros(30, 0))
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
    for name in ("plot_confusion", "plot_curves", "plot_calibration", "plot_averages"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    monkeypatch.setattr(stage, "plot_ecgs", lambda _, rows, *others: drawn.update(
        {others[-1]: (rows, others[0])}))
    scored = example()
    scored.data.is_ptbxl = False
    rows, classes = stage.choose_examples(scored, 3)
    attribution = np.arange(len(rows))
    stage.draw_pictures(scored, rows, classes, attribution, None, list("abcdef"))
    examples, shown = drawn["d"]
    assert scored.truth[examples].argmax(axis=1).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rows[shown], examples)
    worst, _ = drawn["f"]
    assert len(worst) == 15 and not scored.called[worst].any(where=scored.truth[worst])
    error = np.abs(scored.truth - scored.probability).max(axis=1)
    assert error[worst].min() >= np.delete(error, worst).max()


# ---- The whole script ----

@pytest.mark.parametrize("dataset, model, constants", [
    ("mitbih", "lstm", {"SPLIT": "random"}),
    ("ptbxl", "mlp", {"LEADS": ["I", "V3"]}),
])
def test_every_output_says_what_it_was_made_from(trained, capsys, dataset, model, constants):
    trained(dataset, model, **constants)
    report = evaluate(dataset, model, **SMALL)
    printed = capsys.readouterr().out.split("Wrote")[-2]
    name = f"{dataset}_{model}"
    with open(f"{name}_report.html") as file:
        page = file.read()
    for text in (report["title"], printed, page):
        assert "SIMULATED" in text
        assert ("LEAKY" in text) == ("SPLIT" in constants)
    for part in ("confusion", "curves", "calibration", "explanation", "averages", "mistakes"):
        with open(f"{name}_{part}.png", "rb") as file:
            assert file.read(4) == b"\x89PNG"
    assert page.count('src="data:image/png;base64,') == page.count("src=") == 6
    assert not any(text in page for text in ("http:", "https:", "<script", "<link"))
    tables = report["tables"]
    assert all(f"<h2>{heading}</h2>" in page and heading in printed for heading in tables)
    assert ("EC57" in tables) == (dataset == "mitbih")
    assert ("by sex and age" in tables) == (dataset == "ptbxl")
    assert report["completeness_error"] < 0.1
    methods = {f"{method}{place}" for method in stage.METHODS for place in ("", ", moved")}
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
def test_rows_are_scored_with_the_checkpoints_thresholds_and_temperature(trained, dataset):
    trained(dataset, "mlp")
    scored = stage.score_test_rows(dataset, "mlp")
    checkpoint = model_training.load_pth(f"{dataset}_mlp_model.pth")
    inputs = scored.net, scored.signals, scored.features, scored.recipe.crop
    with torch.no_grad():
        logits = model_training.crop_logits(*inputs).double()[:, :5]
    to_probability = torch.sigmoid if dataset == "ptbxl" else partial(torch.softmax, dim=1)
    for p, temperature in ((scored.probability, 1), (scored.calibrated, checkpoint["temperature"])):
        np.testing.assert_allclose(p, to_probability(logits / temperature), rtol=1e-4)
    if dataset == "ptbxl":
        called = scored.probability >= checkpoint["thresholds"]
        truth = scored.data.metadata["superclasses"][scored.rows] == 1
    else:
        called = np.eye(5)[scored.probability.argmax(axis=1)] == 1
        truth = np.eye(5)[scored.data.labels[scored.rows]] == 1
    np.testing.assert_array_equal(scored.called, called)
    np.testing.assert_array_equal(scored.truth, truth)

    errors = []
    for p in (scored.probability, scored.calibrated):
        counted, true = stage.calibration_rows(scored, p)
        errors.append(stage.calibration_error(counted, true, np.ones((1, len(true))))[0])
    table = stage.make_tables(scored, stage.resampled_figures(scored))["calibration error"]
    close(table.iloc[0], errors)


def test_evaluation_obeys_the_checkpoints_own_split(trained):
    trained("mitbih", "mlp")
    with changed(model_training, EXCLUDED_RECORDS=["202"], SPLIT="all"):
        scored = stage.score_test_rows("mitbih", "mlp")
    records = scored.data.header.records
    names = [record["name"] for record in records if record["subset"] == "DS2"]
    assert sorted(set(scored.data.record[scored.rows])) == names and "202" in names
    np.testing.assert_array_equal(scored.rows, np.flatnonzero(np.isin(scored.data.record, names)))


def test_evaluation_obeys_the_checkpoints_own_task(quick_pictures, trained):
    trained("ptbxl", "mlp", TASK="multiclass")
    tables = evaluate("ptbxl", "mlp", **FAST)["tables"]
    metadata = np.load("ptbxl_metadata.npy")
    single = metadata["superclasses"].sum(axis=1) == 1
    assert tables["all classes"]["n"]["value"] == np.sum(single & (metadata["fold"] == 10))
    assert "by sex and age" not in tables


def test_two_models_are_compared_on_the_same_rows(quick_pictures, trained):
    trained("mitbih", "lstm")
    trained("mitbih", "mlp")
    report = evaluate("mitbih", "mlp", COMPARE_WITH="lstm", **FAST)
    other = evaluate("mitbih", "lstm", **FAST)
    difference = report["tables"]["difference from lstm"]
    for figure, row in difference.items():
        one, two = (x["tables"]["all classes"][figure]["value"] for x in (report, other))
        assert row["value"] == pytest.approx(one - two) and row["low"] <= row["high"]
    assert difference["accuracy"]["low"] < difference["accuracy"]["high"]
    trained("mitbih", "lstm", EXCLUDED_RECORDS=["202"])
    with pytest.raises(SystemExit, match="another task or other test rows"):
        evaluate("mitbih", "mlp", COMPARE_WITH="lstm", **FAST)


@pytest.mark.parametrize("keep", [
    lambda beats: beats["record"] == beats["record"].min(),
    lambda beats: ~np.isin(beats["symbol"], list("AaJS")),
])
def test_a_patient_alone_and_a_class_without_rows_can_be_evaluated(quick_pictures, trained, keep):
    trained("mitbih", "mlp")

    def fewer(data, recipe):
        sides = model_training.split_rows(data, recipe)
        return sides | {"test": sides["test"][keep(data.metadata[sides["test"]])]}
    with changed(stage, split_rows=fewer):
        tables = evaluate("mitbih", "mlp", **FAST)["tables"]
    assert tables["by class"]["N"]["n"] > 0
    assert None in [row["f1"] for row in tables["by class"].values()]


@pytest.mark.parametrize("constants, message", [
    ({}, "mitbih_cnn_model.pth is not in this folder.*python model_training.py"),
    ({"DATASET": "ecg"}, "DATASET = 'ecg': expected one of mitbih, ptbxl"),
    ({"MODEL": "svm"}, "MODEL = 'svm': expected one of"),
    ({"COMPARE_WITH": "svm"}, "COMPARE_WITH = 'svm': expected one of"),
])
def test_a_missing_checkpoint_and_bad_choices_stop_with_one_sentence(prepared, constants, message):
    with pytest.raises(SystemExit, match=message):
        run_stage(stage, **constants)


def test_a_model_trained_on_all_records_has_no_test_rows(trained):
    trained("mitbih", "mlp", SPLIT="all")
    with pytest.raises(SystemExit, match="no test rows"):
        run_stage(stage, MODEL="mlp")
