"""Compares a changed recipe of the net for strips with the recipe as it is, on rows for choices.

Run it in a folder with the .npy files of both databases, with the name of the dataset that trains,
the name of a model and changes of RECIPES ("mitbih_strips") or ARCHITECTURES:

    python tests/reports/choose_strips.py mitbih cnn lead_dropout=0.5 epochs=2

A net of MIT-BIH trains on DS1 without its validation patients and is tested on PTB-XL's fold 9; a
net of PTB-XL trains on folds 1 to 8 and is tested on the strips of DS1. DS2 and fold 10 are not
read. Prints the AUC of each question for every seed; a training takes half a minute for MIT-BIH,
three minutes for PTB-XL.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import choose_tasks
import crossvalidate
import harness
import runs

import cross_dataset_validation as cross
import model_training
from preprocess_mitbih import check_choice, load_dataset

SEEDS = [0, 1]
OTHER = {"mitbih": "ptbxl", "ptbxl": "mitbih"}


def train_for_strips(data, model, seed, **constants):
    """Dataset, model, seed, changed constants -> checkpoint of the net for strips."""
    with harness.changed(model_training, DATASET=data.name, MODEL=model, SEED=seed, **constants):
        recipe = f"{data.name}_strips"
        model_training.train(data, model_training.start_processes(),
                             model_training.RECIPES[recipe], f"{data.name}_{model}_strips")
        return model_training.load_checkpoint(data, model, strips=True)


def strips_for_choices(target):
    """Dataset -> strips of PTB-XL's fold 9, or of DS1."""
    sides = model_training.choose_sides(target, "inter_patient")
    if target.kind == "records":
        return cross.ptbxl_strips(target, sides["validation"])
    return cross.mitbih_strips(target, sides["validation"] + sides["train"])


def auc_of(checkpoint, strips):
    """Checkpoint, strips -> dict of question -> AUC."""
    result = cross.score_strips(checkpoint, strips)
    auc = {}
    for name in result.truth.filter(
            ["abnormal", cross.ABNORMAL_SHARED, *cross.SHARED_STATEMENTS]):
        known = result.truth[name].notna().to_numpy(float)[None]
        truth = (result.truth[name] == 1).to_numpy()
        auc[name], = cross.area_under_curve(truth, result.scores[name].to_numpy(), known)
    return auc


def main():
    source, model, *changes = sys.argv[1:] or ["mitbih", "cnn"]
    check_choice("dataset", source, OTHER)
    settings = crossvalidate.parse_settings(changes, f"{source}_strips", model)
    data = load_dataset(source)
    strips = strips_for_choices(load_dataset(OTHER[source]))

    def auc(seed, constants):
        with runs.scratch_folder():
            checkpoint = train_for_strips(data, model, seed, **constants)
        return auc_of(checkpoint, strips)
    choose_tasks.print_choices(settings, SEEDS, auc)


if __name__ == "__main__":
    main()
