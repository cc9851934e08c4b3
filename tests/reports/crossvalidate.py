"""Compares a changed recipe with the recipe as it is, by cross-validation over DS1's patients.

Run it in a folder with the mitbih_*.npy files, with the name of a model and changes of RECIPES:

    python tests/reports/crossvalidate.py cnn epochs=8 signal_noise=2.0
    python tests/reports/crossvalidate.py cnn "stem=(31, 3)"

Choices for MIT-BIH are made here, and never on DS2: only the rows of DS1 are kept in memory. Each
of GROUPINGS divides DS1's patients at random into GROUPS groups. A model is trained on all groups
but one and calls the beats of that one after the last epoch. So every beat of DS1 is called by a
model that has not seen its patient. Without a change, the recipe as it is is measured alone.

A setting takes GROUPINGS x SEEDS x GROUPS trainings, forty minutes on two cores (the mlp ten), each
a run as in runs.py. Writes results/crossvalidation/{setting}/ and {setting}.md.
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


def make(model, constants, grouping, seed, group):
    """Trains without a group of records and calls their beats.

    records: dict of record -> (classes, classes) numbers of beats, by truth and call. The group is
    the validation side, and the last epoch is kept: nothing is chosen on it.
    """
    data = ds1_only(load_dataset("mitbih"))
    records = divide_patients(data, grouping)[group]
    with runs.scratch_folder(), harness.changed(model_training, load_dataset=lambda name: data):
        harness.run_stage(
            model_training, DATASET="mitbih", MODEL=model, SEED=seed, SECOND_NET=False,
            VALIDATION_RECORDS=records,
            **harness.merged(constants, {"RECIPES": {"mitbih": {"hold_out": True}}}))
        checkpoint = model_training.load_checkpoint(data, model)
    rows = model_training.split_rows(data, checkpoint.recipe)["validation"]
    *_, logits, rows = runs.predictions_of(checkpoint, data, rows)
    called = model_training.probabilities(logits, checkpoint.recipe).argmax(axis=1)
    confusion = {}
    classes = range(len(data.header.class_names))   # one more with detected beats
    for record in records:
        chosen = data.record[rows] == record
        matrix = confusion_matrix(data.labels[rows[chosen]], called[chosen], labels=classes)
        confusion[record] = matrix.tolist()
    return {"records": confusion, **runs.provenance(data.header.simulated)}


# ---- Metrics ----

def metrics_of(trainings):
    """Finished trainings -> table of the metrics of each grouping and seed, all groups pooled."""
    groups = {}
    for run in trainings:
        key = run["settings"]["grouping"], run["settings"]["seed"]
        groups.setdefault(key, []).extend(map(np.array, run["records"].values()))
    rows = {}
    for key, records in groups.items():
        n, s, v = f1_of(sum(records))[:3]
        by_record = [np.nanmean(f1_of(matrix)[:3]) for matrix in records]
        rows[key] = {"mean F1 of N, S, V": np.mean([n, s, v]), "N F1": n, "S F1": s, "V F1": v,
                     "mean over records": np.nanmean(by_record)}
    return pd.DataFrame(rows).T


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
        keys = product(GROUPINGS, SEEDS, range(GROUPS))
        trainings = {"_".join(map(str, key)): {
            "model": model, "constants": constants,
            **dict(zip(["grouping", "seed", "group"], key))} for key in keys}
        finished = runs.make_runs(
            "crossvalidate", FOLDER / stem, trainings, list(Path().glob("mitbih_*.npy")))
        tables[setting] = metrics_of(finished.values())
    title = f"{model}, cross-validation over DS1: {len(GROUPINGS)} groupings, {len(SEEDS)} seeds"
    runs.write_report(FOLDER / f"{stem}.md", {title: comparison(tables)}, finished.values())


if __name__ == "__main__":
    main()
