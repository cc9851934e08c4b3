"""Compares a changed recipe of the net for strips with the recipe as it is, on rows for choices.

Run it in a folder with the .npy files of both databases, with the name of the dataset that trains,
the name of a model and changes of RECIPES ("mitbih_strips"):

    python tests/reports/choose_strips.py mitbih cnn lead_dropout=0.5 epochs=2

A net of MIT-BIH trains on DS1 without its validation patients and is tested on PTB-XL's fold 9; a
net of PTB-XL trains on folds 1 to 8 and is tested on the strips of DS1. DS2 and fold 10 are not
read. Prints the scores of each question for every seed; a training takes some minutes.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import crossvalidate
import harness
import numpy as np
import pandas as pd
import runs
import torch
from sklearn.metrics import roc_curve

import cross_dataset_validation as cross
import model_evaluation
import model_training
from preprocess_mitbih import check_choice, load_dataset

SEEDS = [0, 1]
OTHER = {"mitbih": "ptbxl", "ptbxl": "mitbih"}
QUESTIONS = [cross.ABNORMAL, *cross.SHARED_STATEMENTS, "SBRAD"]
METRICS = ["auc", "sensitivity", "specificity"]
BALANCED = "balanced accuracy"   # the mean of sensitivity and specificity
BEST = "best possible balanced accuracy"


def train_for_strips(data, model, seed, **constants):
    """Dataset, model, seed, changed constants -> checkpoint of the net for strips."""
    with harness.changed(model_training, DATASET=data.name, MODEL=model, SEED=seed, **constants):
        recipe = f"{data.name}_strips"
        model_training.train(data, torch.device("cpu"), model_training.RECIPES[recipe],
                             f"{data.name}_{model}_strips")
        return model_training.load_checkpoint(data, model, strips=True)


def sides_for_choices(target, _):
    """In place of choose_sides: the test side is PTB-XL's fold 9, or DS1."""
    sides = model_training.choose_sides(target, "inter_patient")
    train = sides["train"] if target.kind == "beats" else []
    return {"test": sides["validation"] + train}


def best_balanced_accuracy(truth, scores):
    """Truth (0, 1 or NaN) and scores of strips -> balanced accuracy by the best threshold."""
    known = truth.notna()
    false_positive, true_positive, _ = roc_curve(truth[known], scores[known])
    return (1 + np.max(true_positive - false_positive)) / 2


def score_table(checkpoint, source, target):
    """Checkpoint, both datasets -> table of metrics by the source's thresholds, by question."""
    checkpoint.recipe.sides["test"] = []   # nothing is scored at home
    with harness.changed(cross, choose_sides=sides_for_choices):
        results = cross.compare(checkpoint, source, target)
    result = results["cross-domain"]
    weights = np.ones((1, len(result.truth)))
    metrics = model_evaluation.class_metrics(
        result.truth, result.called, result.scores, weights)
    table = pd.DataFrame(metrics).iloc[0].unstack(sort=False)[METRICS]
    table[BALANCED] = table[METRICS[1:]].mean(axis=1, skipna=False)
    table[BEST] = [best_balanced_accuracy(result.truth[name], result.scores[name])
                   for name in table.index]
    return table.reindex(QUESTIONS).dropna(how="all")


def main():
    source, model, *changes = sys.argv[1:] or ["mitbih", "cnn"]
    check_choice("dataset", source, OTHER)
    settings = crossvalidate.parse_settings(changes, f"{source}_strips", model)
    data = load_dataset(source)
    target = load_dataset(OTHER[source])
    for (setting, constants), seed in product(settings.items(), SEEDS):
        with runs.scratch_folder():
            checkpoint = train_for_strips(data, model, seed, **constants)
        table = score_table(checkpoint, data, target).map(runs.text_of)
        print(f"\n{setting}, seed {seed}\n{table.to_string()}", flush=True)


if __name__ == "__main__":
    main()
