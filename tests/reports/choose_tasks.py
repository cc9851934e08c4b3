"""Compares a changed recipe of PTB-XL with the recipe as it is, on fold 9.

Run it in a folder with the ptbxl_*.npy files, with the name of a model and changes of RECIPES or
ARCHITECTURES:

    python tests/reports/choose_tasks.py cnn epochs=18 batch_size=64

Choices for PTB-XL are made here, and never on fold 10, which is not read. Prints the macro AUC of
the six tasks for every seed; a training takes five minutes on two cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import crossvalidate
import harness
import numpy as np
import pandas as pd
import runs

import model_evaluation
import model_training
from preprocess_mitbih import check_choice, load_dataset

SEEDS = [0, 1, 2]
FOLD = 9   # 8 gives a second opinion: 9 trains then


def auc_of(data, model, seed, constants):
    """Dataset, model, seed, changed constants -> dict of task -> macro AUC of FOLD."""
    with runs.scratch_folder():
        harness.run_stage(model_training, DATASET="ptbxl", MODEL=model, SEED=seed,
                          VALIDATION_FOLD=FOLD, SECOND_NET=False,
                          load_dataset=lambda name: data, **constants)
        checkpoint, net = model_training.load_checkpoint(data, model)
    rows = model_training.split_rows(data, checkpoint.recipe)["validation"]
    inputs = model_training.dataset_inputs(data, checkpoint.recipe)
    logits = model_training.predict(net, *inputs, rows, checkpoint.recipe.crop)
    auc = {}
    for task in data.header.tasks:
        scored = model_evaluation.score_rows(checkpoint, net, data, rows, logits, task)
        every = np.ones(len(scored.rows), bool)
        auc[task] = model_evaluation.figures_of_group(scored, every).loc["all", "macro auc"]
    return auc


def main():
    model, *changes = sys.argv[1:] or ["cnn"]
    check_choice("model", model, model_training.MODELS)
    settings = crossvalidate.parse_settings(changes, "ptbxl", model)
    data = load_dataset("ptbxl")
    table = pd.DataFrame(columns=list(data.header.tasks))
    for setting, constants in settings.items():
        for seed in SEEDS:
            auc = auc_of(data, model, seed, constants)
            table.loc[f"{setting}, seed {seed}"] = {
                task: runs.text_of(value) for task, value in auc.items()}
            print(table.to_string(), flush=True)


if __name__ == "__main__":
    main()
