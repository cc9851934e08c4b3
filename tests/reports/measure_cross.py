"""Trains nets for strips of both databases, tests each on the other one, and writes the tables.

Run it in a folder with the .npy files of both databases (an hour on two cores):

    python tests/reports/measure_cross.py

Writes results/cross/{run}/, see runs.py, and results/cross/tables.md and both_directions.png.

mitbih      trained on DS1, ptbxl on folds 1 to 8: five seeds of the cnn, one of the lstm and mlp
mitbih_all  trained on all records of MIT-BIH but those for validation, cnn

Scores are means over the seeds, "±" is their standard deviation. The source gives the thresholds.
The ablations replace one step by which the strips of the target are matched to the model. The
strips of the source are matched as always: in-domain scores and thresholds do not change.
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

import cross_dataset_validation as cross
import model_evaluation
import model_training
from preprocess_mitbih import load_dataset

MODELS = ["cnn", "lstm", "mlp"]
SEEDS = [0, 1, 2, 3, 4]   # of the cnn
FOLDER = Path("results/cross")
QUESTIONS = choose_strips.QUESTIONS
DIRECTIONS = {"ptbxl": "PTB-XL to DS2", "mitbih": "DS1 to PTB-XL fold 10",
              "mitbih_all": "All of MIT-BIH to PTB-XL fold 10"}
BOTH = ["ptbxl", "mitbih"]   # the sources of most tables
ABLATIONS = ["not resampled", "mean RR features"]
HOME = "in-domain"
AWAY = "cross-domain"


# ---- Runs ----

def training_runs():
    """Dict of run -> settings."""
    members = [(source, model, 0) for source in BOTH for model in MODELS]
    members += [(source, "cnn", seed) for source in BOTH for seed in SEEDS[1:]]
    members += [("mitbih_all", "cnn", 0)]
    return {f"{source}_{model}_{seed}": {
        "dataset": source.removesuffix("_all"), "model": model, "seed": seed,
        "split": "all" if source == "mitbih_all" else "inter_patient",
    } for source, model, seed in members}


def test_runs():
    """Dict of run -> settings: those of the trained model, its name and the test."""
    trained = training_runs()
    tests = [(name, "as it is") for name in trained]
    tests += [(f"{source}_cnn_0", test) for source in BOTH for test in ABLATIONS]
    tests += [("ptbxl_cnn_0", "whole target")]
    return {f"{name}, {test}": trained[name] | {"trained": name, "test": test}
            for name, test in tests}


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
    inputs, numbers = make_inputs(strips, rows, recipe)
    if test == "mean RR features":
        features = inputs.features
        inputs = inputs._replace(features=features.mean(dim=0).expand_as(features))
    return inputs, numbers


# ---- Scores of finished tests ----

def of_seeds(finished, source):
    """Finished tests, source -> those of its cnn as it is, one per seed."""
    return [finished[f"{trained}, as it is"] for trained in training_runs()
            if trained.startswith(f"{source}_cnn_")]


def values_of(tests, heading, metric="auc"):
    """Tests, heading of a table, metric -> table: one row per test, one column per question."""
    return pd.DataFrame(
        [{question: row[metric] for question, row in test["tables"][heading].items()}
         for test in tests], dtype=float)


def mean_text(tests, heading, metric="auc"):
    """Arguments of values_of -> mean over the tests as text, by question."""
    return values_of(tests, heading, metric).mean().map(runs.text_of)


def auc_text(tests, side):
    """Tests, side -> dict of question -> mean and standard deviation of the AUC as text."""
    return {name: runs.spread_text(auc.dropna()) for name, auc in values_of(tests, side).items()}


def scores_of(test):
    """A finished test -> table of the target's strips: place, truth and scores."""
    path, = test["folder"].glob("*_cross.csv")
    table = pd.read_csv(path, dtype={"record": str, "patient": str})
    return table[table["side"] == AWAY]


def questions_of(scores):
    """Table of scores_of -> yields question, record, patient, truth, score of its known strips."""
    for column in scores.filter(like=" truth"):
        name = column.removesuffix(" truth")
        known = scores[scores[column].notna()]
        yield name, known[["record", "patient"]].assign(
            truth=known[column] == 1, score=known[f"{name} score"])


# ---- Tables ----

def direction_table(tests):
    """Tests of one direction, one per seed -> table of texts: each question away and at home."""
    low, high = (mean_text(tests, f"{AWAY}, 95% interval {limit}") for limit in ("from", "to"))
    balanced = (values_of(tests, AWAY, "sensitivity") + values_of(tests, AWAY, "specificity")) / 2
    best = pd.DataFrame([{
        name: choose_strips.best_balanced_accuracy(strips["truth"], strips["score"])
        for name, strips in questions_of(scores_of(test))} for test in tests])
    columns = {
        "positive in the target":
            {name: count_text(strips) for name, strips in questions_of(scores_of(tests[0]))},
        "AUC away": auc_text(tests, AWAY),
        "its 95% interval": low + " to " + high,
        "sensitivity / specificity away":
            mean_text(tests, AWAY, "sensitivity") + " / " + mean_text(tests, AWAY, "specificity"),
        "balanced accuracy away": balanced.mean().map(runs.text_of),
        choose_strips.BEST: best.mean().map(runs.text_of),
    }
    if HOME in tests[0]["tables"]:
        columns |= {
            "AUC at home": auc_text(tests, HOME),
            "sensitivity / specificity at home": mean_text(tests, HOME, "sensitivity")
                + " / " + mean_text(tests, HOME, "specificity"),
        }
    return by_question(columns)


def count_text(strips):
    """Table of questions_of -> text: how many patients and strips are positive."""
    positive = strips[strips["truth"]]
    return (f"{positive['patient'].nunique():,} of {strips['patient'].nunique():,} patients, "
            f"{len(positive):,} of {len(strips):,} strips")


def by_question(columns):
    """Dict of title -> texts by question -> table; "" where a question has none."""
    return pd.DataFrame(columns).reindex(QUESTIONS).dropna(how="all").fillna("")


def auc_table(finished, names):
    """Finished tests, dict of title -> name of one -> table: AUC away by question."""
    return by_question({title: mean_text([finished[name]], AWAY)
                        for title, name in names.items()})


def record_table(scores):
    """Table of scores_of -> table of AUC: without the record with most positives, and within.

    The latter compares strips of the same record only; each record weighs equally.
    """
    table = {}
    for name, strips in questions_of(scores):
        record = strips["record"]
        positive = strips["truth"].to_numpy()
        most = record[positive].mode().get(0)
        groups = [record != most, *(record == one for one in record[positive].unique())]
        without, *within = model_evaluation.area_under_curve(
            positive, strips["score"].to_numpy(), np.array(groups, float))
        within = pd.Series(within, dtype=float)
        table[name] = {
            "most positive strips": most, "AUC without that record": runs.text_of(without),
            "AUC within records": runs.text_of(within.mean()), "records": within.count()}
    return pd.DataFrame(table).T.reindex(QUESTIONS).dropna(how="all")


def plot_both(finished, path):
    """Finished tests -> PNG: AUC of each question, both directions, at home and away, cnn."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axis, source in zip(figure.subplots(1, 2, sharey=True), BOTH):
        for side, label, fill, color, shift in (
                (HOME, "at home", "white", "0.55", -0.1),
                (AWAY, "other database", "black", "black", 0.1)):
            headings = (side, f"{side}, 95% interval from", f"{side}, 95% interval to")
            value, low, high = (values_of(of_seeds(finished, source), heading).mean()
                                .reindex(QUESTIONS).to_numpy() for heading in headings)
            height = np.arange(len(QUESTIONS)) + shift
            axis.errorbar(value, height, xerr=[value - low, high - value], fmt="o", color=color,
                          elinewidth=1, mfc=fill, markersize=5, label=label)
        axis.axvline(0.5, color="0.6", linestyle=":")
        axis.set(xlim=(0.3, 1.01), xlabel="AUC (95% interval over patients)")
        axis.set_yticks(range(len(QUESTIONS)), QUESTIONS)
        axis.set_title(f"cnn, {DIRECTIONS[source]}, mean over seeds", fontsize=10)
    axis.invert_yaxis()
    figure.suptitle(runs.warning_in(finished.values()), fontsize=10)
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
    sections = {}
    for source, title in DIRECTIONS.items():
        tests = of_seeds(finished, source)
        sections[f"{title}, cnn, seeds: {len(tests)}"] = direction_table(tests)
    models = {f"{DIRECTIONS[source]}, {model}": f"{source}_{model}_0, as it is"
              for source in BOTH for model in MODELS}
    changes = {f"{DIRECTIONS[source]}, {test}": f"{source}_cnn_0, {test}"
               for source in BOTH for test in ("as it is", *ABLATIONS)}
    runs.write_report(FOLDER / "tables.md", sections | {
        "AUC away by model, seed 0": auc_table(finished, models),
        "PTB-XL cnn on all of MIT-BIH, by record":
            record_table(scores_of(finished["ptbxl_cnn_0, whole target"])),
        "AUC away, cnn, seed 0, one change at a time": auc_table(finished, changes),
    }, finished.values())


if __name__ == "__main__":
    main()
