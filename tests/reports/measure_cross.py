"""Trains the models of both databases, tests each on the other one, and writes the tables.

Run it in a folder with the .npy files of both databases (forty minutes on two cores):

    python tests/reports/measure_cross.py

A run has a folder of its own, results/cross/{run}/, with all that the scripts write and a run.json
of its costs. A run with a run.json is not made again: stop the script at any time and start it
again to go on. Runs of other code are refused. Writes results/cross/tables.md and
both_directions.png.

mitbih      trained on DS1, ptbxl on folds 1 to 8: three seeds of the cnn, one of the lstm and mlp
mitbih_all  trained on all records of MIT-BIH but those for validation, cnn

The ablations replace one step by which the strips of the target are matched to the model. The
strips of the source are matched as always: in-domain figures and thresholds do not change.
Fine-tuning: a logistic regression of normal or abnormal on the scores of all questions, fitted on
the strips of k patients of the target, drawn DRAWS times, and tested on the strips of the others.
"""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
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
import preprocess_mitbih

MODELS = ["cnn", "lstm", "mlp"]
SEEDS = [0, 1, 2]   # of the cnn
FOLDER = Path("results/cross")
SHORT = {"RECIPES": {"mitbih": {"epochs": 1}, "ptbxl": {"epochs": 1}}}   # the net for home: unused
TRAINING = {   # constants of model_training, by the first part of a run's name
    "mitbih": {"DATASET": "mitbih"},
    "mitbih_all": {"DATASET": "mitbih", "SPLIT": "all"},
    "ptbxl": {"DATASET": "ptbxl"},
}
SOURCES = {"mitbih": "MIT-BIH, DS1", "mitbih_all": "MIT-BIH, both sides", "ptbxl": "PTB-XL"}
OTHER = {"mitbih": "ptbxl", "ptbxl": "mitbih"}
QUESTIONS = ["abnormal", cross.BOTH, *cross.NAMED]
PATIENTS = [1, 2, 4, 8, 16, 32]   # of the target, in fine-tuning
DRAWS = 200


# ---- Ablations: each replaces one step of cross_dataset_validation.inputs_of ----

def without_resampling(inputs_of, recipe, strips, rows):
    """The samples of the target are taken as if they were at the model's rate."""
    taken = copy.copy(strips)
    taken.rate = recipe.rate
    return inputs_of(recipe, taken, rows)


def one_lead(inputs_of, recipe, strips, rows):
    """The target has lead II alone."""
    column = list(map(preprocess_mitbih.lead_name, strips.leads)).index("II")
    alone = copy.copy(strips)
    alone.signals = strips.signals[:, column:column + 1]
    alone.leads = ["II"]
    return inputs_of(recipe, alone, rows)


def mean_rhythm(inputs_of, recipe, strips, rows):
    """The model gets the mean RR features of the target's beats in place of each beat's own."""
    (signals, features), number, notes = inputs_of(recipe, strips, rows)
    return (signals, features.mean(dim=0).expand_as(features)), number, notes


ABLATIONS = {
    "not resampled": without_resampling,
    "lead II alone": one_lead,
    "mean RR features": mean_rhythm,
}


def ablated(name, target):
    """Name of an ablation and of the target -> functions for cross_dataset_validation."""
    all_strips = cross.strips_of
    all_inputs = cross.inputs_of

    def strips_of(data, members):
        strips = all_strips(data, members)
        strips.is_target = data.name == target
        return strips

    def inputs_of(recipe, strips, rows):
        if strips.is_target:
            return ABLATIONS[name](all_inputs, recipe, strips, rows)
        return all_inputs(recipe, strips, rows)
    return {"strips_of": strips_of, "inputs_of": inputs_of}


# ---- Runs ----

def training_runs():
    """Dict of run -> settings: the stage and its constants."""
    return {f"{source}_{model}_{seed}": {"stage": "model_training", "constants": {
                **constants, **SHORT, "MODEL": model, "SEED": seed}}
            for source, constants in TRAINING.items()
            for model in (MODELS[:1] if source == "mitbih_all" else MODELS)
            for seed in (SEEDS if model == "cnn" and source != "mitbih_all" else SEEDS[:1])}


def tests_of(trained):
    """Name of a trained model -> dict of test -> constants; the cnns have most."""
    tests = {"as it is": {}}
    if trained.endswith("_cnn_0"):
        tests["whole target"] = {}
    if trained in ("mitbih_cnn_0", "ptbxl_cnn_0"):
        tests |= dict.fromkeys(ABLATIONS, {})
    return tests


def run_name(trained, test):
    """Names of a trained model and a test -> name of the run."""
    return f"{trained}_{test}".replace(" ", "_")


def test_runs():
    """Dict of run -> settings: the stage, its constants, the trained model and the test."""
    tests = {}
    for trained, settings in training_runs().items():
        source = settings["constants"]["DATASET"]
        common = {"PRETRAINED_DATASET": source, "TEST_DATASET": OTHER[source],
                  "MODEL": settings["constants"]["MODEL"]}
        for test, constants in tests_of(trained).items():
            tests[run_name(trained, test)] = {
                "stage": "cross_dataset_validation", "trained": trained, "test": test,
                "constants": common | constants}
    return tests


def everything(data, _):
    """In place of choose_sides: every row of the target; the model has seen none."""
    return {"test": sum(model_training.choose_sides(data, "all").values(), [])}


def make_run(name):
    """Makes one run in the current folder, then writes its run.json."""
    code = runs.code_version()
    settings = (training_runs() | test_runs())[name]
    constants = dict(settings["constants"])
    if settings.get("test") == "whole target":
        constants["choose_sides"] = everything
    elif settings.get("test") in ABLATIONS:
        constants |= ablated(settings["test"], constants["TEST_DATASET"])
    seconds, cpu_seconds = runs.cost_of(harness.run_stage, settings["stage"], **constants)
    runs.save_run(code, settings, seconds=seconds, cpu_seconds=cpu_seconds,
                  peak_gb=runs.peak_gb())


def make_all():
    """Makes every run that is not there yet: trained models, then tests."""
    arrays = list(Path(".").glob("*.npy"))
    trained = training_runs()
    runs.make_runs(__file__, FOLDER, trained, dict.fromkeys(trained, arrays))
    tests = test_runs()
    links = {name: [*arrays, *(FOLDER / test["trained"]).glob("*_model.pth")]
             for name, test in tests.items()}
    runs.make_runs(__file__, FOLDER, tests, links)


# ---- Tables ----

def question_table(finished):
    """Finished tests -> table: AUC of each question by source, model and rows tested on."""
    columns = {}
    for name, run in finished.items():
        if not name.endswith(("_0_as_it_is", "_0_whole_target")):
            continue
        source, model = name.split("_0_")[0].rsplit("_", 1)
        tested = "all rows" if "whole" in name else "test side"
        for side in ("in-domain", "cross-domain"):
            if side == "in-domain" and "whole" in name or side not in run["tables"]:
                continue
            where = "at home" if side == "in-domain" else tested
            figures = run["tables"][side]
            columns[f"{SOURCES[source]}, {model}: {where}"] = {
                question: runs.interval_text(figures.get(f"AUC, {question}"))
                for question in QUESTIONS}
    return pd.DataFrame(columns).T.rename_axis("trained on, model")


def count_table(finished):
    """Finished tests -> table: positive rows and patients of each question in the targets."""
    columns = {}
    for trained, title in (("mitbih_cnn_0", "PTB-XL"), ("ptbxl_cnn_0", "MIT-BIH")):
        for test, tested in (("as it is", "test side"), ("whole target", "all rows")):
            rows = finished[run_name(trained, test)]["tables"]["rows"]
            columns[f"{title}, {tested}"] = {
                question: "{:,.0f} of {:,.0f}, {:,.0f} patients".format(
                    *(row[f"cross-domain, {part}"] for part in ("positive", "rows", "patients")))
                for question, row in rows.items() if row["cross-domain, rows"]}
    return pd.DataFrame(columns).reindex(QUESTIONS).dropna(how="all").fillna("")


def seeds_table(finished):
    """Finished tests -> table: mean and standard deviation of the cnn's AUC over the seeds."""
    columns = {}
    for source, title in SOURCES.items():
        names = [run_name(f"{source}_cnn_{seed}", "as it is") for seed in SEEDS]
        tables = [finished[name]["tables"]["cross-domain"] for name in names if name in finished]
        columns[title] = {
            question: runs.spread_text([table[f"AUC, {question}"]["value"] for table in tables])
            for question in QUESTIONS if f"AUC, {question}" in tables[0]}
    return pd.DataFrame(columns).reindex(QUESTIONS).dropna(how="all").fillna("")


def drop_table(finished):
    """Finished tests -> table: the cnns' figures at home less those on the other database."""
    columns = {}
    for trained in ("mitbih_cnn_0", "ptbxl_cnn_0"):
        drop = finished[run_name(trained, "as it is")]["tables"]["drop"]
        columns[SOURCES[trained.removesuffix("_cnn_0")]] = {
            figure: runs.interval_text(row) for figure, row in drop.items()}
    return pd.DataFrame(columns).dropna(how="all").fillna("")


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
    rows = {}
    for test in tests_of(trained):
        figures = finished[run_name(trained, test)]["tables"]["cross-domain"]
        if test != "whole target":   # other rows
            rows[test] = {question: runs.text_of(figures[f"AUC, {question}"]["value"])
                          for question in QUESTIONS if f"AUC, {question}" in figures}
    return pd.DataFrame(rows).reindex(QUESTIONS).dropna(how="all").fillna("").T


def fine_tuning_table(finished):
    """Finished tests -> table: AUC of abnormal after fine-tuning on k patients of the target."""
    columns = {}
    for trained in ("mitbih_cnn_0", "ptbxl_cnn_0"):
        table = scores_of(trained, finished)
        table = table[table["abnormal truth"].notna()]
        gains = {k: gain_of_patients(table, k) for k in PATIENTS}
        columns[SOURCES[trained.removesuffix("_cnn_0")]] = {
            f"{k} patients": f"{np.mean(values):+.3f} [{np.quantile(values, 0.025):+.3f} "
                             f"{np.quantile(values, 0.975):+.3f}]" for k, values in gains.items()}
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
    for axis, source in zip(figure.subplots(1, 2, sharey=True), ("mitbih", "ptbxl")):
        tables = finished[run_name(f"{source}_cnn_0", "as it is")]["tables"]
        for side, fill, color, shift in (("in-domain", "white", "0.55", -0.1),
                                         ("cross-domain", "black", "black", 0.1)):
            auc = pd.DataFrame({name: tables[side].get(f"AUC, {name}") or {}
                                for name in QUESTIONS}, ["value", "low", "high"], dtype=float)
            height = np.arange(len(QUESTIONS)) + shift
            axis.hlines(height, auc.loc["low"], auc.loc["high"], color=color, linewidth=1)
            axis.plot(auc.loc["value"], height, "o", color=color, markerfacecolor=fill,
                      markersize=5, label="at home" if side == "in-domain" else "other database")
        axis.axvline(0.5, color="0.6", linestyle=":")
        axis.set(xlim=(0.3, 1.01), xlabel="AUC (95% interval over patients)")
        axis.set_yticks(range(len(QUESTIONS)), QUESTIONS)
        axis.set_title(f"cnn trained on {SOURCES[source]}", fontsize=10)
    axis.invert_yaxis()
    figure.suptitle("\n".join(runs.warnings_in(finished.values())), fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, ncol=2,
                  loc="outside lower center")
    figure.savefig(path, dpi=150)


# ---- Main ----

def main():
    if sys.argv[1:2] == ["--run"]:
        make_run(sys.argv[2])
        return
    make_all()
    finished = runs.finished_runs(FOLDER, test_runs())
    tables = {
        "AUC of each question, seed 0": question_table(finished),
        "How many rows and patients have it": count_table(finished),
        "The cnn over three seeds, on the test side of the other database": seeds_table(finished),
        "Drop: at home less away, cnn": drop_table(finished),
        "PTB-XL cnn on all of MIT-BIH, by record": record_table(finished),
        "MIT-BIH to PTB-XL, cnn, one change at a time": test_table("mitbih_cnn_0", finished),
        "PTB-XL to MIT-BIH, cnn, one change at a time": test_table("ptbxl_cnn_0", finished),
        f"What the labels of k patients add to the AUC of abnormal, {DRAWS} draws":
            fine_tuning_table(finished),
    }
    plot_both(finished, FOLDER / "both_directions.png")
    sections = {heading: runs.markdown(table) for heading, table in tables.items()}
    runs.write_report(FOLDER / "tables.md", sections, finished.values())


if __name__ == "__main__":
    main()
