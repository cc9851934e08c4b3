"""model_evaluation.py: metrics against scikit-learn, intervals, tasks, tables and predictions."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import PTBXL
from examples import NAMES, close, evaluate, example, score_test_rows
from harness import changed, contents, run_stage
from sklearn import metrics as sk

import model_evaluation as stage
import model_training
import preprocess_mitbih


def part_of(scored, rows):
    """Scored -> the same of some rows."""
    return scored._replace(truth=scored.truth[rows], called=scored.called[rows],
                           probability=scored.probability[rows])


def by_scikit_learn(scored):
    """Scored -> table of its metrics: rows "all" and the classes."""
    truth = scored.truth
    called = scored.called
    p = scored.probability
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, called)
    auc = sk.roc_auc_score(truth, p, average=None)
    table = pd.DataFrame({
        "n": support, "sensitivity": recall,
        "specificity": sk.recall_score(~truth, ~called, average=None),
        "positive predictivity": precision, "f1": f1, "auc": auc}, NAMES)
    overall = {"n": len(truth), "accuracy": sk.accuracy_score(truth, called),
               "macro f1": sk.f1_score(truth, called, average="macro"),
               "macro auc": sk.roc_auc_score(truth, p), "mean f1 of N, S, V": f1[:3].mean()}
    return pd.concat([table, pd.DataFrame(overall, ["all"])])


def assert_tables_equal(table, expected):
    assert sorted(table.columns) == sorted(expected.columns)
    close(table.loc[expected.index, expected.columns].astype(float), expected)


@pytest.mark.parametrize("kind", ["beats", "records"])
def test_metrics_and_those_of_a_group_equal_scikit_learn(kind):
    scored = example(kind)
    groups = np.stack([np.ones(400, bool), np.random.default_rng(1).random(400) < 0.3])
    table = pd.DataFrame(stage.metrics(scored, groups.astype(float)))
    for k, rows in enumerate(groups):
        assert_tables_equal(table.iloc[k].unstack(), by_scikit_learn(part_of(scored, rows)))


def test_metrics_of_classes_equal_those_by_hand_and_a_row_without_truth_is_left_out():
    none = np.nan
    truth = pd.DataFrame({"PVC": [1, 0, none, 1, 0], "AFIB": [0, none, 0, none, none]})
    called = pd.DataFrame({"PVC": [1, 1, 1, 0, 0], "AFIB": [0, 1, 1, 0, 0]}) == 1
    scores = pd.DataFrame({"PVC": [0.9, 0.6, 0.99, 0.4, 0.4], "AFIB": [0.1, 0.7, 0.6, 0.2, 0.3]})
    weights = np.array([[1, 1, 1, 1, 1], [1, 0, 5, 2, 0]])
    table = pd.DataFrame(stage.class_metrics(truth, called, scores, weights))
    metrics = ["n", "sensitivity", "specificity", "positive predictivity", "f1", "auc"]
    assert [*table] == [(name, metric) for name in ("PVC", "AFIB") for metric in metrics]
    close(table["PVC"], [[2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 2.5 / 4],   # one pair of equal scores
                         [3, 1 / 3, none, 1, 1 / 2, none]])
    close(table["AFIB"], [[0, none, 1 / 2, none, none, none],
                          [0, none, 1 / 6, none, none, none]])


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


def test_a_class_without_rows_is_not_available_and_not_zero(capsys):
    scored = example(classes=4)
    assert scored.called[:, 4].any()
    table = pd.DataFrame(stage.metrics(scored, np.ones((1, 400)))).iloc[0].unstack()
    assert table.loc["Q", "n"] == 0
    assert table.loc["Q"].drop(["n", "specificity"]).isna().all()
    close(table.loc["Q", "specificity"], 1 - scored.called[:, 4].mean())
    for metric in ("f1", "auc"):
        close(table.loc["all", f"macro {metric}"], table.loc[NAMES[:4], metric].mean())
    as_json = json.loads(stage.to_json({"table": table}))["table"]["Q"]
    assert (as_json["n"], as_json["f1"], as_json["auc"]) == (0, None, None)
    stage.print_tables({"heading": table.loc[["Q"], ["n", "f1"]]})
    assert capsys.readouterr().out == "\nheading\n   n  f1\nQ  0 n/a\n"


def test_resamples_are_those_of_a_loop_over_drawn_patients():
    scored = example("records")
    patients = np.random.default_rng(5).integers(0, 30, 400)
    table = stage.resample_patients(patients, partial(stage.metrics, scored), resamples=30)
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=30)
    draws = [np.ones(30, int), *drawn]
    for k, draw in enumerate(draws):
        rows = np.concatenate([np.flatnonzero(patients == patient)
                               for patient, count in enumerate(draw) for _ in range(count)])
        assert_tables_equal(table.iloc[k].unstack(), by_scikit_learn(part_of(scored, rows)))


def test_the_rows_of_a_patient_are_drawn_together():
    rows = np.arange(399, 199, -1)   # four of each patient
    scored = part_of(example(), rows)._replace(rows=rows)
    summary = stage.summarise_metrics(scored)
    expected = stage.resample_patients(rows // 4, partial(stage.metrics, scored))
    pd.testing.assert_frame_equal(summary, stage.summarise(expected))


def test_many_resamples_are_computed_in_parts():
    def metrics_of(weights):
        assert weights.size <= 4_000_000   # memory stays flat
        return {"weight of row 7": weights[:, 7]}
    table = stage.resample_patients(np.arange(2000) // 20, metrics_of, resamples=3000)
    drawn = np.random.default_rng(0).multinomial(100, np.full(100, 0.01), size=3000)
    assert table["weight of row 7"].tolist() == [1, *drawn[:, 0]]


def test_intervals_hold_the_middle_95_percent_if_half_of_the_resamples_have_the_metric():
    values = np.random.default_rng(0).normal(size=201)
    row = stage.summarise(pd.DataFrame({"f1": values})).loc["f1"]
    close(row, [values[0], *np.quantile(values[1:], [0.025, 0.975])])
    table = pd.DataFrame({"often": [0.5, 0.4, 0.6, np.nan, np.nan],
                          "seldom": [0.5, 0.4, np.nan, np.nan, np.nan]})
    close(stage.summarise(table), [[0.5, 0.405, 0.595], [0.5, np.nan, np.nan]])


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_predictions_repeat_the_metrics(few_resamples, quick_pictures, trained, dataset):
    trained(dataset, "mlp")
    tables = evaluate(dataset, "mlp")["tables"]
    table = pd.read_csv(f"{dataset}_mlp_predictions.csv", keep_default_na=False)
    overall = tables["all classes"]
    assert [*table] == ["record", "patient", *(["sample", "symbol"] if dataset == "mitbih" else []),
                        "true", "called", *(f"{name} score" for name in tables["by class"])]
    assert len(table) == overall["n"]["value"]
    accuracy = np.mean(table["true"] == table["called"])
    assert accuracy == pytest.approx(overall["accuracy"]["value"])
    for name, row in tables["by class"].items():
        truth, called = ([name in classes.split("+") for classes in table[column]]
                         for column in ("true", "called"))
        assert sum(truth) == row["n"] > 0
        assert sk.recall_score(truth, called) == pytest.approx(row["sensitivity"])
        auc = sk.roc_auc_score(truth, table[f"{name} score"])
        assert auc == pytest.approx(row["auc"], abs=1e-6)
        assert tables["by class, 95% interval from"][name]["auc"] <= auc
        assert tables["by class, 95% interval to"][name]["auc"] >= auc
    one = table[table["true"].isin(tables["by class"])]
    probable = one.filter(like=" score").idxmax(axis=1).str.removesuffix(" score")
    confusion = tables["true class and most probable class of rows with one class"]
    for pair, count in pd.DataFrame(confusion).T.stack().items():
        assert count == np.sum((one["true"] == pair[0]) & (probable == pair[1]))


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_rows_are_scored_with_the_checkpoints_thresholds(trained, dataset):
    trained(dataset, "mlp")
    scored = score_test_rows(dataset)
    data = scored.data
    checkpoint = model_training.load_checkpoint(data, "mlp")
    logits, _ = model_training.predict_rows(checkpoint, data, scored.rows)
    members = None
    if dataset == "mitbih":
        truth = np.eye(5)[data.labels[scored.rows]] == 1
        called = np.eye(5)[model_training.call_classes(
            data, scored.rows, scored.probability, scored.recipe)] == 1
    else:
        members = model_training.task_members(data.header, "superdiagnostic")
        assert scored.names == sorted(data.header.class_names)
        columns = [data.header.class_names.index(name) for name in scored.names]
        truth = data.metadata["superclasses"][scored.rows][:, columns] == 1
        called = scored.probability >= checkpoint.thresholds["superdiagnostic"]
    probability = model_training.probabilities(logits.mean(dim=0), scored.recipe, members)
    np.testing.assert_allclose(scored.probability, probability, rtol=1e-4)
    np.testing.assert_array_equal(scored.called, called)
    np.testing.assert_array_equal(scored.truth, truth)


def test_the_six_tasks_have_the_benchmarks_rows_and_classes(
        few_resamples, quick_pictures, trained, arrays):
    summaries = {}

    def summarise(scored):
        task = scored.title.split()[1]
        summaries[task] = original(scored)
        return summaries[task]
    original = stage.summarise_metrics
    trained("ptbxl", "mlp")
    report = evaluate("ptbxl", "mlp", TASK="rhythm", summarise_metrics=summarise)
    assert "rhythm statements" in report["title"]
    tasks = report["tables"]["macro AUC of the benchmark's tasks"]
    scp = pd.read_csv(arrays / PTBXL / "scp_statements.csv", index_col=0)
    data = preprocess_mitbih.load_dataset("ptbxl")
    found = pd.DataFrame(data.metadata["statements"][data.metadata["fold"] == 10] >= 0,
                         columns=data.header.statement_names)
    members = {kind: scp.index[scp[kind] == 1] for kind in ("diagnostic", "form", "rhythm")}
    for task, statements in (members | {"all": scp.index}).items():
        assert tasks[task]["records"] == found[statements].any(axis=1).sum()
        assert tasks[task]["classes"] == len(statements)
    assert tasks["superdiagnostic"]["classes"] == 5
    subclasses = scp["diagnostic_subclass"][members["diagnostic"]].nunique()
    assert tasks["subdiagnostic"]["classes"] == subclasses
    assert set(report["tables"]["by class"]) == set(members["rhythm"])
    assert list(tasks) == list(data.header.tasks)
    for task, row in tasks.items():
        expected = original(score_test_rows("ptbxl", task))
        assert row["records"] == expected.loc[("all", "n"), "value"]
        auc = [row[limit] for limit in ("value", "low", "high")]
        close(auc, expected.loc[("all", "macro auc")])
    by_statement = pd.DataFrame(report["tables"]["AUC of every statement"]).T["value"]
    assert by_statement.is_monotonic_increasing
    close(by_statement, summaries["all"].xs("auc", level=1)["value"][by_statement.index])


def test_evaluation_obeys_the_checkpoints_own_split(trained):
    trained("mitbih", "mlp")
    with changed(model_training, VALIDATION_RECORDS=["202"], SPLIT="all"):
        scored = score_test_rows("mitbih")
    names = [record["name"] for record in scored.data.header.records if record["subset"] == "DS2"]
    assert sorted(set(scored.data.record[scored.rows])) == names and "202" in names
    np.testing.assert_array_equal(scored.rows, np.flatnonzero(np.isin(scored.data.record, names)))


def test_a_patient_alone_and_a_class_without_rows_can_be_evaluated(
        coarse_pictures, few_resamples, trained):
    trained("mitbih", "mlp")

    def load_one(name):
        data = preprocess_mitbih.load_dataset(name)
        data.labels[data.record != "100"] = -1
        return data
    by_class = evaluate("mitbih", "mlp", load_dataset=load_one)["tables"]["by class"]
    assert by_class["N"]["n"] > 0 and by_class["N"]["f1"] > 0
    assert (by_class["F"]["n"], by_class["F"]["f1"]) == (0, None)
    assert len(contents("mitbih_mlp_annotations")) == 22   # calls of beats without a label, too


@pytest.mark.parametrize("constants, message", [
    ({"MODEL": "cnn"}, "mitbih_cnn_model.pth is not in this folder. Run model_training.py: "
                       'DATASET = "mitbih", MODEL = "cnn", SECOND_NET = True'),
    ({"DATASET": "ecg"}, "DATASET = 'ecg': expected one of mitbih, ptbxl"),
    ({"MODEL": "svm"}, "MODEL = 'svm': expected one of cnn, lstm, mlp"),
    ({"DATASET": "ptbxl", "TASK": "super"}, "TASK = 'super': expected one of all, diagnostic, "
                                            "subdiagnostic, superdiagnostic, form, rhythm"),
    ({}, "mitbih_signals.npy has no test rows with a label: preprocess the complete dataset, or "
         "train with another SPLIT"),   # it trained on them
])
def test_a_missing_checkpoint_and_bad_choices_stop_with_one_sentence(trained, constants, message):
    trained("mitbih", "mlp", SPLIT="all")
    trained("ptbxl", "mlp")
    with pytest.raises(SystemExit) as error:
        run_stage(stage, **{"MODEL": "mlp"} | constants)
    assert str(error.value) == message


def test_a_task_without_a_test_row_stops_with_one_sentence(trained):
    trained("ptbxl", "mlp")
    predictions = stage.predict_test_rows("ptbxl", "mlp")
    empty = predictions._replace(rows=predictions.rows[:0], logits=predictions.logits[:0])
    with pytest.raises(SystemExit, match="^no test row has a label of ptbxl, form statements"):
        stage.score_rows(empty, "form")


def test_rows_that_all_have_two_statements_can_be_evaluated(
        few_resamples, quick_pictures, trained):
    trained("ptbxl", "mlp")

    def load_two(name):
        data = preprocess_mitbih.load_dataset(name)
        data.metadata = np.array(data.metadata)
        names = np.array(data.header.statement_names)
        data.metadata["statements"][:] = np.where(np.isin(names, ["NORM", "SR", "STD_"]), 100, -1)
        return data
    tables = evaluate("ptbxl", "mlp", TASK="all", load_dataset=load_two)["tables"]
    assert tables["true class and most probable class of rows with one class"] == {}
    rows = np.sum(load_two("ptbxl").metadata["fold"] == 10)
    of_class = {name: row["n"] for name, row in tables["by class"].items() if row["n"]}
    assert of_class == {"NORM": rows, "SR": rows, "STD_": rows}
