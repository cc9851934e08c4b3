"""Trains the models of both databases, tests each on the other one, and writes the tables.

Run it in a folder with the .npy files of both databases (forty minutes on two cores):

    python tests/reports/measure_cross.py

Writes results/cross/{run}/, see runs.py, and results/cross/tables.md and both_directions.png.

mitbih      trained on DS1, ptbxl on folds 1 to 8: three seeds of the cnn, one of the lstm and mlp
mitbih_all  trained on all records of MIT-BIH but those for validation, cnn

The ablations replace one step by which the strips of the target are matched to the model. The
strips of the source are matched as always: in-domain scores and thresholds do not change.
Fine-tuning: a logistic regression of normal or abnormal on the scores of all questions, fitted on
the strips of k patients of the target, drawn DRAWS times, and tested on the strips of the others.
"""

import copy
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import choose_strips
import harness
import numpy as np
import pandas as pd
import runs
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cross_dataset_validation as cross
import model_training
from preprocess_mitbih import lead_columns, load_dataset

MODELS = ["cnn", "lstm", "mlp"]
SEEDS = [0, 1, 2]   # of the cnn
FOLDER = Path("results/cross")
SOURCES = {"mitbih": "MIT-BIH, DS1", "mitbih_all": "all of MIT-BIH", "ptbxl": "PTB-XL"}
QUESTIONS = ["abnormal", cross.ABNORMAL_SHARED, *cross.SHARED_STATEMENTS]
FIRST = ["mitbih_cnn_0", "ptbxl_cnn_0"]   # the models of most tables
ABLATIONS = ["not resampled", "lead II alone", "mean RR features"]
PATIENTS = [1, 2, 4, 8, 16, 32]   # of the target, in fine-tuning
DRAWS = 200


# ---- Runs ----

def training_runs():
    """Dict of run -> settings."""
    members = [(source, model, 0) for source in ("mitbih", "ptbxl") for model in MODELS]
    members += [(source, "cnn", seed) for source in ("mitbih", "ptbxl") for seed in SEEDS[1:]]
    members += [("mitbih_all", "cnn", 0)]
    return {f"{source}_{model}_{seed}": {
        "dataset": source.removesuffix("_all"), "model": model, "seed": seed,
        "split": "all" if source == "mitbih_all" else "inter_patient",
    } for source, model, seed in members}


def tests_of(trained):
    """Name of a trained model -> its tests; the cnns have most."""
    tests = ["as it is"]
    if trained.endswith("_cnn_0"):
        tests.append("whole target")
    return tests + ABLATIONS * (trained in FIRST)


def run_name(trained, test):
    """Names of a trained model and a test -> name of the run."""
    return f"{trained}_{test}".replace(" ", "_")


def test_runs():
    """Dict of run -> settings: those of the trained model, its name and the test."""
    return {run_name(trained, test): settings | {"trained": trained, "test": test}
            for trained, settings in training_runs().items() for test in tests_of(trained)}


def make(dataset, model, seed, split, trained=None, test=None):
    """Makes a run in the current folder: trains a net for strips, or tests one."""
    if not trained:
        choose_strips.train_for_strips(load_dataset(dataset), model, seed, SPLIT=split)
        return {}
    sides = everything if test == "whole target" else cross.choose_sides
    inputs = partial(ablated_inputs, test, model_training.make_inputs)
    with harness.changed(model_training, make_inputs=inputs):
        harness.run_stage(cross, PRETRAINED_DATASET=dataset, MODEL=model, choose_sides=sides,
                          TEST_DATASET=choose_strips.OTHER[dataset])
    return {}


def everything(data, _):
    """In place of choose_sides: every row of the target; the model has seen none."""
    return {"test": sum(model_training.choose_sides(data, "all").values(), [])}


def ablated_inputs(test, make_inputs, strips, rows, recipe):
    """model_training.make_inputs, but with one step left out for the strips of the target.

    not resampled: the samples are taken as if they were at the model's rate. mean RR features: the
    model gets those of all beats in place of each beat's own.
    """
    if strips.rate == recipe.rate or test not in ABLATIONS:   # those of the source
        return make_inputs(strips, rows, recipe)
    strips = copy.copy(strips)
    if test == "not resampled":
        strips.rate = recipe.rate
    if test == "lead II alone":
        column = lead_columns(strips.leads, ["II"])[0]
        strips.signals = strips.signals[:, column:column + 1]
        strips.leads = ["II"]
    inputs, numbers = make_inputs(strips, rows, recipe)
    if test == "mean RR features":
        features = inputs.features
        inputs = inputs._replace(features=features.mean(dim=0).expand_as(features))
    return inputs, numbers


# ---- Tables ----

def by_question(columns):
    """Dict of title -> dict of question -> text -> table with the questions that one has."""
    return pd.DataFrame(columns).reindex(QUESTIONS).dropna(how="all").fillna("")


def auc_of(finished, trained, test="as it is", side="cross-domain"):
    """Finished tests, names of a model and a test -> dict of question or metric -> interval."""
    table = finished[run_name(trained, test)]["tables"].get(side, {})
    return {name.removeprefix("AUC, "): row for name, row in table.items()}


def question_table(finished):
    """Finished tests -> table: all metrics by source, model and rows tested on."""
    rows = {}
    metrics = [*QUESTIONS, "balanced accuracy", "sensitivity", "specificity"]   # of abnormal
    for trained in training_runs():
        source, model, seed = trained.rsplit("_", 2)
        parts = {"at home": ("as it is", "in-domain"), "test side": ("as it is", "cross-domain"),
                 "all rows": ("whole target", "cross-domain")}
        for tested, (test, side) in parts.items():
            auc = auc_of(finished, trained, test, side) if test in tests_of(trained) else {}
            if seed == "0" and auc:
                rows[f"{SOURCES[source]}, {model}: {tested}"] = {
                    metric: runs.interval_text(auc.get(metric)) for metric in metrics}
    return pd.DataFrame(rows).T.rename_axis("trained on, model")


def count_table(finished):
    """Finished tests -> table: positive rows and patients of each question in the targets."""
    columns = {}
    for trained, title in zip(FIRST, ("PTB-XL", "MIT-BIH")):
        for test, tested in (("as it is", "test side"), ("whole target", "all rows")):
            rows = finished[run_name(trained, test)]["tables"]["rows"]
            columns[f"{title}, {tested}"] = {
                question: "{:,.0f} of {:,.0f}, {:,.0f} patients".format(
                    *(row[f"cross-domain, {part}"] for part in ("positive", "rows", "patients")))
                for question, row in rows.items() if row["cross-domain, rows"]}
    return by_question(columns)


def seeds_table(finished):
    """Finished tests -> table: mean and standard deviation of the cnn's AUC over the seeds."""
    columns = {}
    for source, title in SOURCES.items():
        of_seeds = pd.DataFrame([
            {question: row["value"] for question, row in auc_of(finished, trained).items()}
            for trained in training_runs() if trained.startswith(f"{source}_cnn_")])
        columns[title] = {question: runs.spread_text(values)
                          for question, values in of_seeds.items()}
    return by_question(columns)


def record_table(finished):
    """Finished tests -> table of the PTB-XL cnn on MIT-BIH: without one record, within records."""
    table = by_record(scores_of("ptbxl_cnn_0", finished)).reindex(QUESTIONS).dropna(how="all")
    for column in table.columns.drop("most positive rows"):
        table[column] = table[column].map(runs.text_of if "AUC" in column else "{:.0f}".format)
    return table


def scores_of(trained, finished):
    """Name of a trained model, finished tests -> table of its scores on the whole target."""
    path, = Path(finished[run_name(trained, "whole target")]["folder"]).glob("*_cross.csv")
    table = pd.read_csv(path, dtype={"record": str, "patient": str})
    return table[table["side"] == "cross-domain"]


def by_record(scores):
    """Table of scores_of -> table of AUC: without the record with most positive rows, and within.

    The latter compares rows of the same record only; each record weighs equally.
    """
    table = {}
    for column in scores.filter(like=" truth"):
        name = column.removesuffix(" truth")
        known = scores[scores[column].notna()]
        record = known["record"]
        positive = (known[column] == 1).to_numpy()
        most = record[positive].mode().get(0)
        groups = [record != most, *(record == one for one in record[positive].unique())]
        without, *within = cross.area_under_curve(
            positive, known[f"{name} score"].to_numpy(), np.array(groups, float))
        within = pd.Series(within, dtype=float)
        table[name] = {"most positive rows": most, "AUC without that record": without,
                       "AUC within records": within.mean(), "records": within.count()}
    return pd.DataFrame(table).T


def test_table(trained, finished):
    """Name of a trained model, finished tests -> table: AUC after one change at a time."""
    return by_question({
        test: {question: runs.text_of(row["value"])
               for question, row in auc_of(finished, trained, test).items()}
        for test in ("as it is", *ABLATIONS)}).T


def fine_tuning_table(finished):
    """Finished tests -> table: AUC of abnormal after fine-tuning on k patients of the target."""
    columns = {}
    for trained in FIRST:
        table = scores_of(trained, finished)
        table = table[table["abnormal truth"].notna()]
        column = columns[SOURCES[trained.removesuffix("_cnn_0")]] = {}
        for k in PATIENTS:
            gains = gain_of_patients(table, k)
            low, high = np.quantile(gains, [0.025, 0.975])
            column[f"{k} patients"] = f"{np.mean(gains):+.3f} [{low:+.3f} {high:+.3f}]"
    return pd.DataFrame(columns)


def gain_of_patients(table, k):
    """Table of scores, number of patients -> what their labels add to the AUC, in each draw."""
    scores = table.filter(like=" score").to_numpy()
    truth = table["abnormal truth"].to_numpy()
    patients = table["patient"].unique()
    rng = np.random.default_rng(k)
    gains = []
    while len(gains) < DRAWS:
        known = table["patient"].isin(rng.choice(patients, k, replace=False)).to_numpy()
        if len(set(truth[known])) < 2:
            gains.append(0.0)   # nothing can be learned
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        tuned = model.fit(scores[known], truth[known]).decision_function(scores[~known])
        before = roc_auc_score(truth[~known], table["abnormal score"][~known])
        gains.append(roc_auc_score(truth[~known], tuned) - before)
    return gains


def plot_both(finished, path):
    """Finished tests -> PNG: AUC of each question, both directions, at home and away, cnn."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axis, trained in zip(figure.subplots(1, 2, sharey=True), FIRST):
        for side, label, fill, color, shift in (
                ("in-domain", "at home", "white", "0.55", -0.1),
                ("cross-domain", "other database", "black", "black", 0.1)):
            auc = pd.DataFrame(auc_of(finished, trained, side=side), ["value", "low", "high"],
                               dtype=float).reindex(columns=QUESTIONS)
            value, low, high = auc.to_numpy()
            height = np.arange(len(QUESTIONS)) + shift
            axis.errorbar(value, height, xerr=[value - low, high - value], fmt="o", color=color,
                          elinewidth=1, mfc=fill, markersize=5, label=label)
        axis.axvline(0.5, color="0.6", linestyle=":")
        axis.set(xlim=(0.3, 1.01), xlabel="AUC (95% interval over patients)")
        axis.set_yticks(range(len(QUESTIONS)), QUESTIONS)
        source = trained.removesuffix("_cnn_0")
        axis.set_title(f"cnn trained on {SOURCES[source]}", fontsize=10)
    axis.invert_yaxis()
    figure.suptitle("\n".join(runs.warnings_in(finished.values())), fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, ncol=2,
                  loc="outside lower center")
    figure.savefig(path, dpi=150)


# ---- Main ----

def main():
    arrays = list(Path().glob("*.npy"))
    runs.make_runs("measure_cross", FOLDER, training_runs(), arrays)

    def files(test):
        return [*arrays, *(FOLDER / test["trained"]).glob("*_model.pth")]
    finished = runs.make_runs("measure_cross", FOLDER, test_runs(), files)
    plot_both(finished, FOLDER / "both_directions.png")
    runs.write_report(FOLDER / "tables.md", {
        "AUC of each question, seed 0; abnormal by the source's threshold":
            question_table(finished),
        "How many rows and patients have it": count_table(finished),
        "The cnn over three seeds, on the test side of the other database": seeds_table(finished),
        "PTB-XL cnn on all of MIT-BIH, by record": record_table(finished),
        "MIT-BIH to PTB-XL, cnn, one change at a time": test_table("mitbih_cnn_0", finished),
        "PTB-XL to MIT-BIH, cnn, one change at a time": test_table("ptbxl_cnn_0", finished),
        f"What the labels of k patients add to the AUC of abnormal, {DRAWS} draws":
            fine_tuning_table(finished),
    }, finished.values())


if __name__ == "__main__":
    main()
