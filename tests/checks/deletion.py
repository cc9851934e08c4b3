"""Tests the attributions of a trained model by deleting what they name.

    python tests/checks/deletion.py cnn mitbih

Run it in a folder with the .npy files of the dataset and the checkpoint of the model. Of up to 20
correct test rows per class, the samples with the largest attribution become a flat line. Prints
the mean probability of the class after each share of the samples. The same attributions at random
places keep their shape but not their place; a useful attribution must do better. Takes a minute.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import numpy as np
import pandas as pd
import torch

import model_evaluation as stage
from model_training import Inputs, offset_of, predict, probabilities

SHARES = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def choose_rows(scored):
    """Scored -> (m,) rows and classes: up to 20 correct ones per class, of median confidence."""
    rows, classes = [], []
    for k in range(len(scored.names)):
        correct = np.flatnonzero(scored.truth[:, k] & scored.called[:, k])
        ranked = correct[np.argsort(scored.probability[correct, k])]
        first = max(0, len(ranked) - 20) // 2
        rows.extend(ranked[first:first + 20])
        classes.extend([k] * len(ranked[first:first + 20]))
    return np.array(rows, int), np.array(classes, int)


def deletion_test(scored, inputs, classes, attribution, rng=None):
    """Inputs of m rows, class of each, (m, leads, samples) -> dict: mean probability of the class.

    With rng, the attributions are moved to random places first.
    """
    signals, features = inputs
    samples = signals.shape[2]
    weight = attribution.sum(axis=1)
    if rng:
        weight = np.stack([np.roll(row, rng.integers(samples)) for row in weight])
    rank = np.argsort(np.argsort(-weight))   # 0: the largest of its row
    curve = {}
    for share in SHARES:
        deleted = torch.from_numpy(rank < round(share * samples))[:, None]
        x = torch.where(deleted, offset_of(signals), signals)
        logits = predict(scored.net, Inputs(x, features), scored.recipe.crop).mean(dim=0)
        probability = probabilities(logits, scored.recipe, scored.members)
        curve[share] = probability[np.arange(len(classes)), classes].mean()
    return curve


def main():
    model, dataset = sys.argv[1:]
    scored = stage.score_rows(stage.predict_test_rows(dataset, model), "superdiagnostic")
    rows, classes = choose_rows(scored)
    attribution = stage.explain(scored, rows, classes)
    arguments = scored, stage.inputs_of(scored, rows), classes, attribution
    print(scored.title)
    print(pd.DataFrame({
        "at its places": deletion_test(*arguments),
        "at random places": deletion_test(*arguments, np.random.default_rng(0)),
    }).to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()
