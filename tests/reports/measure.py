"""Trains and evaluates the models of the README's first tables, and writes these tables.

Run it in a folder with the .npy files of both databases and MIT-BIH's folder of WFDB files, with
the names of some groups of runs:

    python tests/reports/measure.py mitbih ptbxl

mitbih          three models, five seeds, each tested on annotated beats, on detected beats and
                on beats whose marks were moved: an hour on two cores
ptbxl           three models, one seed: a quarter of an hour
ptbxl_seeds     three models, three seeds, and ensembles: forty-five minutes
learning_curve  PTB-XL, cnn, some of the training patients

Without a name it makes the first two groups. Writes results/{run}/, see runs.py, and {group}.md.
"""

import json
import sys
import time
from contextlib import chdir
from functools import partial, reduce
from itertools import product
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import crossvalidate
import harness
import numpy as np
import pandas as pd
import runs
from sklearn.metrics import confusion_matrix

import model_evaluation
import model_training
import preprocess_mitbih

MODELS = ["cnn", "lstm", "mlp"]
SEEDS = [0, 1, 2, 3, 4]   # PTB-XL has the first three
FRACTIONS = [0.05, 0.2, 0.5]   # of the training patients, in the learning curve
FRACTION_EPOCHS = 24           # over the root of the fraction: a smaller set is seen more often
FOLDER = Path("results")
MOVED = 0.019   # s: largest random shift of a mark
OTHER_BEATS = {"detected": "detected beats", "moved": "marks moved by up to 19 ms"}

ONE_CLASS = "true class and most probable class of rows with one class"
TASKS = "macro AUC of the benchmark's tasks"
COSTS = {   # row of a table -> key of run.json, form
    "parameters": ("parameters", "{:,.0f}"),
    "training, CPU s": ("training_cpu_seconds", "{:.0f}"),
    "training, wall s": ("training_seconds", "{:.0f}"),
    "peak memory in training, GB": ("training_peak_gb", "{:.1f}"),
}
MITBIH_METRICS = {   # row of a table -> place in metrics.json
    "mean F1 of N, S, V": ("all classes", "mean f1 of N, S, V", "value"),
    "its 95% interval over patients, first seed": ("all classes", "mean f1 of N, S, V"),
    "mean F1 of N, S, V without record 232": ("without record 232", "mean f1 of N, S, V"),
    "mean F1, mean over records": ("mean over records", "f1"),
    "accuracy": ("all classes", "accuracy", "value"),
    **{f"{name} {metric}": ("by class", name, metric.lower()) for name in "SVF"
       for metric in ("sensitivity", "positive predictivity", "F1")},
    "S F1 without record 232": ("without record 232", "S f1"),
}
PERCENTAGES = [f"{kind} {metric}" for kind in ("QRS", "VEB", "SVEB")
               for metric in ("sensitivity", "positive predictivity")]
TASK_NAMES = ["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm"]
PTBXL_METRICS = {
    **{f"macro AUC, {task}": (TASKS, task, "value") for task in TASK_NAMES},
    **{f"{task}, 95% interval over patients, first seed": (TASKS, task) for task in TASK_NAMES},
    "macro F1": ("all classes", "macro f1", "value"),
    "records with one superclass: accuracy": ("one class", "accuracy"),
    "records with one superclass: macro F1": ("one class", "macro f1"),
}
TITLES = {
    "mitbih": "MIT-BIH, DS1 to DS2",
    "ptbxl": "PTB-XL, the reference benchmark's six tasks, one net for all",
    "ptbxl_seeds": "PTB-XL, the reference benchmark's six tasks, seeds and ensembles",
    "learning_curve": "PTB-XL, cnn, some of the training patients",
}


# ---- Runs ----

def runs_of(group):
    """Name of a group -> dict of run -> settings: constants of model_training, fraction."""
    if group == "learning_curve":
        return {f"ptbxl_cnn_fraction_{fraction:g}": {
            "DATASET": "ptbxl", "MODEL": "cnn", "fraction": fraction,
            "RECIPES": {"ptbxl": {"epochs": round(FRACTION_EPOCHS / fraction ** 0.5)}},
        } for fraction in FRACTIONS} | {"ptbxl_cnn_0": runs_of("ptbxl_seeds")["ptbxl_cnn_0"]}
    dataset = "ptbxl" if group.startswith("ptbxl") else "mitbih"
    seeds = {"mitbih": SEEDS, "ptbxl": SEEDS[:1]}.get(group, SEEDS[:3])
    return {f"{dataset}_{model}_{seed}": {"DATASET": dataset, "MODEL": model, "SEED": seed}
            for model in MODELS for seed in seeds}


def tests_on_other_beats():
    """Dict of run -> settings: each model of the first group, tested on other beats."""
    return {f"{trained}_{beats}": {"beats": beats, "trained": trained, "MODEL": run["MODEL"]}
            for trained, run in runs_of("mitbih").items() for beats in OTHER_BEATS}


def make(beats=None, trained=None, fraction=1, **constants):
    """Makes a run in the current folder: arrays with other beats, a test on these, or a model."""
    if trained:
        harness.run_stage(model_evaluation, DATASET="mitbih", MODEL=constants["MODEL"])
    elif beats == "detected":
        harness.run_stage(preprocess_mitbih, R_PEAKS="detected", DOWNLOAD=False)
    elif beats == "moved":
        harness.run_stage(preprocess_mitbih, read_annotations=partial(
            move_marks, np.random.default_rng(0)), save_header=save_moved, DOWNLOAD=False)
    else:
        return train_and_evaluate(fraction, constants)
    return {}


def move_marks(rng, record, plain=preprocess_mitbih.read_annotations):
    """read_annotations, with the mark of every beat moved by up to MOVED at random."""
    marks = plain(record)
    shift = rng.uniform(-MOVED, MOVED, len(marks)) * record.rate * preprocess_mitbih.is_beat(marks)
    marks["sample"] = (marks["sample"] + np.round(shift)).clip(0, record.samples - 1)
    return marks[np.argsort(marks["sample"], kind="stable")]


def save_moved(paths, fields, plain=preprocess_mitbih.save_header):
    """save_header; with other beats than those of the training, a model takes other arrays."""
    plain(paths, fields | {"r_peaks": "moved"})


def train_and_evaluate(fraction, constants):
    """Trains and evaluates a model -> dict of its costs."""
    counts = {}
    split = partial(split_some_patients, model_training.split_rows, fraction, counts)
    began = time.perf_counter(), time.process_time()
    with harness.changed(model_training, split_rows=split):
        harness.run_stage(model_training, SECOND_NET=False, **constants)
    costs = {
        "training_rows": counts["train"],
        "training_seconds": time.perf_counter() - began[0],
        "training_cpu_seconds": time.process_time() - began[1],   # of all threads
        "training_peak_gb": getrusage(RUSAGE_SELF).ru_maxrss * 1024 / 1e9}   # Linux: in KiB
    choice = {key: constants[key] for key in ("DATASET", "MODEL")}
    harness.run_stage(model_evaluation, **choice)
    checkpoint = model_training.load_pth("{DATASET}_{MODEL}_model.pth".format(**choice))
    net = model_training.Ensemble(choice["MODEL"], **checkpoint["net_arguments"])
    costs["parameters"] = sum(weights.numel() for weights in net.parameters())
    if choice["DATASET"] == "mitbih":
        costs["without record 232"] = metrics_without("232", choice["MODEL"])
    return costs


def metrics_without(record, model):
    """Name of a record of DS2, name of a model of MIT-BIH -> dict: F1 of the other test beats."""
    scored = model_evaluation.score_rows(model_evaluation.predict_test_rows("mitbih", model))
    others = scored.data.record[scored.rows] != record
    metrics = model_evaluation.metrics(scored, others[None].astype(float))
    return {"mean f1 of N, S, V": metrics["all", "mean f1 of N, S, V"][0],
            "S f1": metrics["S", "f1"][0]}


def split_some_patients(split_rows, fraction, counts, data, recipe):
    """model_training.split_rows with a random fraction of the training patients.

    Puts the number of rows of each side into counts.
    """
    rows = split_rows(data, recipe)
    if fraction < 1:
        patient = data.patient[rows["train"]]
        patients = np.unique(patient)
        kept = np.random.default_rng(0).permutation(patients)[:round(fraction * len(patients))]
        rows["train"] = rows["train"][np.isin(patient, kept)]
    counts.update({side: len(of_side) for side, of_side in rows.items()})
    return rows


def add_other_beats(finished):
    """Makes the runs with other beats, and adds their tables to those of the finished models."""
    database = Path(preprocess_mitbih.DATA_DIR)
    if not database.exists():
        raise SystemExit(f"{database} is not in {Path.cwd()}: put or link it there")
    arrays = {f"mitbih_{beats}": {"beats": beats} for beats in OTHER_BEATS}
    runs.make_runs("measure", FOLDER, arrays, [database])

    def files(test):
        return [*(FOLDER / f"mitbih_{test['beats']}").glob("mitbih_*.npy"),
                *(FOLDER / test["trained"]).glob("*_model.pth")]
    for run in runs.make_runs("measure", FOLDER, tests_on_other_beats(), files).values():
        title = OTHER_BEATS[run["settings"]["beats"]]
        finished[run["settings"]["trained"]]["tables"] |= {
            f"{title}, {heading}": table for heading, table in run["tables"].items()}


# ---- Tables ----

def mean_over_records(folder):
    """Folder of a run -> mean over records of the mean F1 of those of N, S and V that it has."""
    [path] = folder.glob("*_predictions.csv")
    scores = []
    for _, beats in pd.read_csv(path, dtype={"record": str}).groupby("record"):
        matrix = confusion_matrix(beats["true"], beats["called"], labels=list("NSVFQ"))
        scores.append(pd.Series(crossvalidate.f1_of(matrix)[:3]).mean())
    return np.nanmean(scores)


def scores_of_one_class(tables):
    """Tables of a run -> dict: scores of rows with one class, the most probable one called."""
    matrix = pd.DataFrame(tables[ONE_CLASS]).T   # rows: true class
    names = matrix.index.union(matrix.columns)
    matrix = matrix.reindex(index=names, columns=names).fillna(0).to_numpy()
    f1 = crossvalidate.f1_of(matrix)
    return {"accuracy": np.trace(matrix) / matrix.sum(), "macro f1": np.nanmean(f1)}


def metrics_of(group):
    """Name of a group -> dict of row of its table -> place of the metric."""
    if group != "mitbih":
        return PTBXL_METRICS
    starts = ["EC57 from 0:00", "EC57 from 5:00"]
    of_detected = [f"{OTHER_BEATS['detected']}, {start}" for start in starts]
    every_beat = [starts[0], *(f"{beats}, {starts[0]}" for beats in OTHER_BEATS.values())]
    f1 = ["mean f1 of N, S, V", "S f1", "V f1"]   # a missed beat and a false one count
    places = [*product(starts, ["gross"], PERCENTAGES[2:]),
              *product(starts[:1], ["average"], PERCENTAGES[2:]),
              *product(every_beat, ["gross"], f1),
              *product(of_detected, ["gross"], PERCENTAGES)]
    rows = dict(MITBIH_METRICS)
    for place in places:
        heading, kind, metric = place
        metric = metric.replace("f1", "F1") if metric in f1 else f"{metric}, %"
        rows[f"{heading}, {kind.replace('average', 'mean over records')}: {metric}"] = place
    return rows


def metric_of(run, place):
    """A run and a place in its tables -> what is there, or None."""
    return reduce(lambda table, key: (table or {}).get(key), place, run["tables"])


def cell(members, place):
    """Runs of several seeds, place of a metric -> mean and spread, or the first one's interval."""
    values = [metric_of(run, place) for run in members]
    if isinstance(values[0], dict):
        return runs.interval_text(values[0])
    if place[-1] in PERCENTAGES:
        return runs.percent_text(values)
    return runs.spread_text(values)


def table_of(columns, rows):
    """Dict of title -> runs of several seeds, dict of row -> place of a metric -> table."""
    table = {}
    for title, members in columns.items():
        for run in members:
            run["tables"]["one class"] = scores_of_one_class(run["tables"])
        column = {"seeds": len(members) if "settings" in members[0] else ""}   # "": an ensemble
        column |= {row: cell(members, place) for row, place in rows.items()}
        for row, (key, form) in COSTS.items():
            known = [run[key] for run in members if key in run]
            column[row] = form.format(np.mean(known)) if known else ""
        table[title] = column
    return pd.DataFrame(table)


def columns_of(group, finished):
    """Name of a group, its finished runs -> dict of title -> runs of several seeds."""
    columns = {}
    for run in finished.values():
        columns.setdefault(run["settings"]["MODEL"], []).append(run)
    if group == "ptbxl_seeds":
        both = columns["cnn"] + columns["lstm"]
        first = [run for run in both if run["settings"]["SEED"] == SEEDS[0]]
        columns[f"cnn + lstm, seed {SEEDS[0]}"] = [ensemble(first)]
        columns["cnn + lstm, all seeds"] = [ensemble(both)]
    return columns


def ensemble(members):
    """Runs of PTB-XL -> a run of the mean of their logits, with thresholds from fold 9."""
    data = preprocess_mitbih.load_dataset("ptbxl")
    logits = {"validation": [], "test": []}
    for run in members:
        with chdir(run["folder"]):
            checkpoint = model_training.load_checkpoint(data, run["settings"]["MODEL"])
        rows = model_training.split_rows(data, checkpoint.recipe)
        for side, of_nets in logits.items():
            predictions = runs.predictions_of(checkpoint, data, rows[side])
            of_nets.append(predictions.logits)
    mean = {side: sum(of_nets) / len(members) for side, of_nets in logits.items()}
    statements = data.metadata["statements"][rows["validation"]] >= 0
    checkpoint.thresholds = model_training.task_thresholds(
        mean["validation"], statements, checkpoint.recipe, data.header)
    together = predictions._replace(logits=mean["test"])
    task = model_evaluation.TASK
    scored = model_evaluation.score_rows(together, task)
    summary = model_evaluation.summarise_metrics(scored)
    tables = model_evaluation.make_tables(scored, summary)
    tables |= model_evaluation.task_tables(together)
    return json.loads(model_evaluation.to_json({"tables": tables}))


def learning_curve(finished):
    """Finished runs of the group -> table."""
    place = ("all classes", "macro auc")
    rows = sorted(finished.values(), key=lambda run: run["training_rows"])
    return pd.DataFrame({f"{run['training_rows']:,}": {
        "macro AUC": runs.interval_text(metric_of(run, place)),
        "training, CPU s": f"{run['training_cpu_seconds']:.0f}",
    } for run in rows}).T.rename_axis("training records")


# ---- Main ----

def main():
    for group in sys.argv[1:] or ["mitbih", "ptbxl"]:
        preprocess_mitbih.check_choice("group", group, TITLES)
        finished = runs.make_runs("measure", FOLDER, runs_of(group), list(Path().glob("*.npy")))
        if group == "mitbih":
            add_other_beats(finished)
            for run in finished.values():
                run["tables"]["mean over records"] = {"f1": mean_over_records(run["folder"])}
                run["tables"]["without record 232"] = run["without record 232"]
        if group == "learning_curve":
            table = learning_curve(finished)
        else:
            table = table_of(columns_of(group, finished), metrics_of(group))
        runs.write_report(FOLDER / f"{group}.md", {TITLES[group]: table}, finished.values())


if __name__ == "__main__":
    main()
