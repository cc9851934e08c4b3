"""Compares a changed recipe for beats with the recipe as it is, on patients of three databases.

Run it in a folder with the mitbih_*.npy, svdb_*.npy and nsrdb_*.npy files, with the name of a model
and changes of RECIPES:

    python tests/reports/crossvalidate.py cnn epochs=8 signal_noise=2.0
    python tests/reports/crossvalidate.py cnn "stem=(31, 3)"

Choices for beats are made here, and never on DS2, by three numbers that stand side by side:
- DS1, mean over patients. Each of GROUPINGS divides the patients at random into GROUPS groups. A
  model is trained on all groups but one and calls the beats of that one after the last epoch.
- Half of SVDB, mean over patients, by a model that DS1 trained.
- False S and V of 100,000 beats in healthy people (a part of NSRDB), by the same model: at most 100
  and 10.
The mean over patients of a class is over those with ten or more of its beats. Preprocess the two
other databases with NAME = "svdb" or "nsrdb" and LEADS = ["ECG1"]. Without a change, the recipe as
it is is measured alone.

A setting takes SEEDS x (GROUPINGS x GROUPS + 1) trainings, an hour on two cores (the mlp twenty
minutes), each a run as in runs.py. Writes results/crossvalidation/{setting}/ and {setting}.md.
"""

import ast
import functools
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness
import numpy as np
import pandas as pd
import runs
from sklearn.metrics import confusion_matrix

import model_training
from preprocess_mitbih import check_choice, load_dataset

GROUPINGS = [0, 1, 2]   # seeds of the random divisions of the patients
SEEDS = [0, 1]          # of the trainings
GROUPS = 4
OTHERS = ["svdb", "nsrdb"]
FOLDER = Path("results/crossvalidation")


# ---- Settings ----

def parse_change(text, recipe, model):
    """Text "name=value", key of RECIPES, model -> the constant of model_training that it changes.

    Stops if there is no such name.
    """
    name, _, value = text.partition("=")
    settings = model_training.RECIPES[recipe]
    sizes = settings["sizes"][model]
    known = [*settings, *sizes]
    known.remove("hold_out")
    check_choice("name of a change", name, known)
    change = {name: ast.literal_eval(value)}
    if name in sizes:
        change = {"sizes": {model: change}}
    elif name == "learning_rate":
        change = {name: {model: change[name]}}
    return {"RECIPES": {recipe: change}}


def parse_settings(changes, recipe, model):
    """List of "name=value" -> dict of setting -> its constants; first, no change at all."""
    check_choice("model", model, model_training.MODELS)
    settings = {"as it is": {}}
    if changes:
        constants = [parse_change(change, recipe, model) for change in changes]
        settings[" ".join(changes)] = functools.reduce(harness.merged, constants)
    return settings


# ---- Trainings ----

def ds1_only(data):
    """Dataset of beats -> the same with the rows of DS1 only."""
    subset = pd.DataFrame(data.header.records)["subset"].to_numpy()
    rows = subset[data.metadata["record"]] == "DS1"
    for name in ("signals", "labels", "metadata", "record", "patient"):
        setattr(data, name, np.array(getattr(data, name)[rows]))
    return data


def divide_patients(data, grouping):
    """Dataset, seed -> GROUPS lists of records; the records of a patient stay together."""
    patients = np.random.default_rng(grouping).permutation(np.unique(data.patient))
    return [np.unique(data.record[np.isin(data.patient, part)]).tolist()
            for part in np.array_split(patients, GROUPS)]


def count_calls(checkpoint, data, rows):
    """Checkpoint, dataset, rows -> dict of record -> (classes, classes) beats by truth and call."""
    *_, logits, rows = runs.predictions_of(checkpoint, data, rows)
    probability = model_training.probabilities(logits, checkpoint.recipe)
    called = model_training.call_classes(data, rows, probability, checkpoint.recipe)
    counts = {}
    for record in np.unique(data.record[rows]).tolist():
        chosen = (data.record[rows] == record) & (data.labels[rows] >= 0)
        matrix = confusion_matrix(
            data.labels[rows[chosen]], called[chosen], labels=range(len(data.header.class_names)))
        counts[record] = matrix.tolist()
    return counts


def make(model, constants, grouping, seed, group):
    """Trains without a group of records and calls their beats; without group: other databases'.

    The group is the validation side, and the last epoch is kept: nothing is chosen on it. Returns
    dict of database -> count_calls.
    """
    data = ds1_only(load_dataset("mitbih"))
    records = [] if group is None else divide_patients(data, grouping)[group]
    hold_out = {"RECIPES": {"mitbih": {"hold_out": bool(records)}}}
    with runs.scratch_folder(), harness.changed(model_training, load_dataset=lambda name: data):
        harness.run_stage(
            model_training, DATASET="mitbih", MODEL=model, SEED=seed, SECOND_NET=False,
            VALIDATION_RECORDS=records, **harness.merged(constants, hold_out))
        checkpoint = model_training.load_checkpoint(data, model)
    if records:
        rows = model_training.split_rows(data, checkpoint.recipe)["validation"]
        counts = {"DS1": count_calls(checkpoint, data, rows)}
    else:
        others = {name: load_dataset(name) for name in OTHERS}
        counts = {name: count_calls(checkpoint, other, np.arange(len(other.labels)))
                  for name, other in others.items()}
    return {"counts": counts, **runs.provenance(data.header.simulated)}


# ---- Metrics ----

def metrics_of(trainings):
    """Finished trainings -> table of metrics, one row for each grouping and seed."""
    counts = {}
    for run in trainings:
        place = run["settings"]["grouping"], run["settings"]["seed"]
        for name, records in run["counts"].items():
            counts.setdefault((*place, name), {}).update(
                {record: np.array(matrix) for record, matrix in records.items()})
    rows = {}
    for grouping, seed, name in counts:
        if name == "DS1":
            others = {other: counts[None, seed, other] for other in OTHERS}
            rows[grouping, seed] = (
                metrics("DS1", counts[grouping, seed, "DS1"]) | metrics("SVDB", others["svdb"])
                | false_alarms(others["nsrdb"]))
    return pd.DataFrame(rows).T


def metrics(name, records):
    """Name of a database, dict of record -> (classes, classes) beats -> dict of metric -> value."""
    pooled = f1_of(sum(records.values()))[:3]
    by_record = np.array([f1_of(matrix)[:3] for matrix in records.values()])
    enough = np.array([matrix.sum(axis=1)[:3] >= 10 for matrix in records.values()])
    by_class = np.nanmean(np.where(enough, by_record, np.nan), axis=0)
    table = {f"{name}, mean over patients": by_class.mean()}
    table |= {f"{name}, {symbol} over patients": f1 for symbol, f1 in zip("NSV", by_class)}
    table |= {f"{name}, mean F1 of all beats": np.mean(pooled)}
    table |= {f"{name}, {symbol} F1 of all beats": f1 for symbol, f1 in zip("NSV", pooled)}
    return table | {f"{name}, mean F1 over records": np.nanmean(np.nanmean(by_record, axis=1))}


def false_alarms(records):
    """Dict of healthy record -> (classes, classes) beats -> S and V calls of 100,000 N beats."""
    calls = sum(records.values())[0]
    return {f"healthy, false {symbol} of 100,000": 1e5 * calls[k] / calls.sum()
            for k, symbol in ((1, "S"), (2, "V"))}


def f1_of(matrix):
    """(classes, classes) beats by truth and call -> (classes,) F1, NaN for a missing class."""
    support = matrix.sum(axis=1)
    f1 = 2 * np.diag(matrix) / np.maximum(1, support + matrix.sum(axis=0))
    return np.where(support > 0, f1, np.nan)


def comparison(tables):
    """Dict of setting -> table of metrics_of -> table of texts; the first is the recipe as it is.

    Differences are paired: the same grouping and seed. Their "±" is also a standard deviation.
    """
    columns = {}
    first, *_ = tables.values()
    for setting, table in tables.items():
        columns[setting] = {name: runs.spread_text(table[name]) for name in table}
        if table is not first:
            difference = table - first
            columns["difference"] = {
                name: f"{runs.spread_text(difference[name])}, higher in "
                      f"{(difference[name] > 0).sum()} of {len(difference)}"
                for name in table}
    return pd.DataFrame(columns)


# ---- Main ----

def main():
    model, *changes = sys.argv[1:] or ["cnn"]
    tables = {}
    for setting, constants in parse_settings(changes, "mitbih", model).items():
        stem = f"{model} {setting}".replace(" ", "_")
        keys = [*product(GROUPINGS, SEEDS, range(GROUPS)), *product([None], SEEDS, [None])]
        trainings = {"_".join(map(str, key)): {
            "model": model, "constants": constants,
            **dict(zip(["grouping", "seed", "group"], key))} for key in keys}
        finished = runs.make_runs(
            "crossvalidate", FOLDER / stem, trainings, [
                path for name in ("mitbih", *OTHERS) for path in Path().glob(f"{name}_*.npy")])
        tables[setting] = metrics_of(finished.values())
    title = f"{model}, DS1 in {len(GROUPINGS)} groupings, SVDB, NSRDB: {len(SEEDS)} seeds"
    runs.write_report(FOLDER / f"{stem}.md", {title: comparison(tables)}, finished.values())


if __name__ == "__main__":
    main()
