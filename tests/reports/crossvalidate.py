"""Compares a changed recipe with the recipe as it is, by cross-validation over DS1's patients.

Run it in a folder with the mitbih_*.npy files, with the name of a model and changes of RECIPES or
ARCHITECTURES:

    python tests/reports/crossvalidate.py cnn epochs=8 signal_noise=2.0
    python tests/reports/crossvalidate.py cnn "stem=(31, 3)"

Choices for MIT-BIH are made here, and never on DS2: only the rows of DS1 are kept in memory. Each
of GROUPINGS divides DS1's patients at random into GROUPS groups. A model is trained on all groups
but one and calls the beats of that one after the last epoch. So every beat of DS1 is called by a
model that has not seen its patient. Without a change, the recipe as it is is measured alone.

Each finished training is a line of results/crossvalidation/{setting}_{code version}.jsonl and is
not made again: stop the script at any time and start it again to go on. A setting takes
GROUPINGS x SEEDS x GROUPS trainings, forty minutes on two cores (the mlp ten). Writes
results/crossvalidation/{setting}.md.
"""

import ast
import functools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness
import numpy as np
import pandas as pd
import runs

import model_training
from preprocess_mitbih import check_choice, load_dataset

GROUPINGS = [0, 1, 2]   # seeds of the random divisions of the patients
SEEDS = [0, 1]          # of the trainings
GROUPS = 4
FOLDER = Path("results/crossvalidation")


# ---- Settings ----

def parse_change(text, dataset, model, table="RECIPES"):
    """Text "name=value", dataset, model -> the constant of model_training that it changes.

    table: the one that a change of the recipe goes to. Stops if there is no such name.
    """
    name, _, value = text.partition("=")
    recipe = model_training.RECIPES[dataset]
    architecture = model_training.ARCHITECTURES[dataset][model]
    check_choice("name of a change", name, [name for name in (*recipe, *architecture)
                                            if name != "hold_out"])
    value = ast.literal_eval(value)
    if name in architecture:
        return {"ARCHITECTURES": {dataset: {model: {name: value}}}}
    if isinstance(recipe[name], dict) and not isinstance(value, dict):
        value = {model: value}   # learning_rate=4e-3
    return {table: {dataset: {name: value}}}


def parse_settings(changes, dataset, model, table="RECIPES"):
    """List of "name=value" -> dict of setting -> its constants; first, no change at all."""
    settings = {"as it is": {}}
    if changes:
        constants = [parse_change(change, dataset, model, table) for change in changes]
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


def train(data, model, constants, group, seed):
    """Trains without a group of records, calls their beats -> dict of record -> confusion matrix.

    (classes, classes) numbers of beats, by truth and call. The group is the validation side, and
    the last epoch is kept: nothing is chosen on it.
    """
    fit = model_training.fit
    result = {}

    def recording_fit(net, examples, rows, recipe, *settings):
        history = fit(net, examples, rows, recipe, *settings)
        logits = model_training.predict(
            net, examples.signals, examples.features, rows["validation"], recipe.crop)
        called = logits[:, :len(recipe.classes)].argmax(dim=1).numpy()
        result.update(rows=rows["validation"], called=called)
        return history
    with (runs.scratch_folder(),
          harness.changed(model_training, fit=recording_fit, load_dataset=lambda name: data)):
        harness.run_stage(
            model_training, DATASET="mitbih", MODEL=model, SEED=seed, SECOND_NET=False,
            VALIDATION_RECORDS=group,
            **harness.merged(constants, {"RECIPES": {"mitbih": {"hold_out": True}}}))
    confusion = {}
    classes = len(data.header.class_names)   # one more with detected beats
    for record in group:
        of_record = data.record[result["rows"]] == record
        matrix = np.zeros((classes, classes), int)
        truth = data.labels[result["rows"][of_record]]
        np.add.at(matrix, (truth, result["called"][of_record]), 1)
        confusion[record] = matrix.tolist()
    return confusion


def read_trainings(path):
    """File of trainings -> dict of (grouping, seed, group) -> dict of record -> confusion."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(line["key"]): line["records"] for line in lines}


def make_trainings(data, model, constants, path):
    """Makes every training that has no line in the file yet -> table of figures_of."""
    done = read_trainings(path)
    for grouping in GROUPINGS:
        for seed in SEEDS:
            for number, group in enumerate(divide_patients(data, grouping)):
                key = (grouping, seed, number)
                if key in done:
                    continue
                began = time.perf_counter()
                done[key] = train(data, model, constants, group, seed)
                seconds = time.perf_counter() - began
                with open(path, "a") as file:
                    line = {"key": key, "seconds": seconds, "records": done[key]}
                    file.write(json.dumps(line) + "\n")
                print(f"{path.stem}: grouping {grouping}, seed {seed}, group {number + 1} of "
                      f"{GROUPS}: {seconds:.0f} s", flush=True)
            print(figures_of(done).loc[[(grouping, seed)]].round(3).to_string(), flush=True)
    return figures_of(done)


# ---- Figures ----

def figures_of(trainings):
    """Dict of (grouping, seed, group) -> confusion by record -> table by grouping and seed."""
    rows = {}
    for grouping, seed in dict.fromkeys(key[:2] for key in trainings):
        groups = [trainings.get((grouping, seed, number), {}) for number in range(GROUPS)]
        if not all(groups):
            continue
        records = [np.array(matrix) for group in groups for matrix in group.values()]
        n, s, v = f1_of(sum(records))[:3]
        by_record = [np.nanmean(f1_of(matrix)[:3]) for matrix in records]
        rows[grouping, seed] = {
            "mean F1 of N, S, V": np.mean([n, s, v]), "N F1": n, "S F1": s, "V F1": v,
            "mean over records": np.nanmean(by_record)}
    table = pd.DataFrame(rows).T
    return table.rename_axis(index=["grouping", "seed"]) if rows else table


def f1_of(matrix):
    """(classes, classes) beats by truth and call -> (classes,) F1, NaN for an absent class."""
    support = matrix.sum(axis=1)
    f1 = 2 * np.diag(matrix) / np.maximum(1, support + matrix.sum(axis=0))
    return np.where(support > 0, f1, np.nan)


def comparison(tables):
    """Dict of setting -> table of figures_of -> table of texts; the first is the recipe as it is.

    Differences are paired: the same grouping and seed. Their "±" is a standard deviation, too.
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
    check_choice("model", model, model_training.MODELS)
    settings = parse_settings(changes, "mitbih", model)
    data = ds1_only(load_dataset("mitbih"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    tables = {}
    for setting, constants in settings.items():
        stem = f"{model} {setting}".replace(" ", "_")
        path = FOLDER / f"{stem}_{runs.code_version()}.jsonl"
        tables[setting] = make_trainings(data, model, constants, path)
    title = f"{model}, cross-validation over DS1: {len(GROUPINGS)} groupings, {len(SEEDS)} seeds"
    source = {"header": vars(data.header), "recipe": {"split": "inter_patient"}}
    runs.write_report(FOLDER / f"{stem}.md", {title: runs.markdown(comparison(tables))}, [source])


if __name__ == "__main__":
    main()
