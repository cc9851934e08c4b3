"""Tells whether a model's attribution is worth something: what it points at is deleted.

    cd FOLDER_WITH_CHECKPOINT && python /path/to/checkout/tests/checks/deletion_test.py

Set DATASET and MODEL below. Takes half a minute.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness  # noqa: F401  puts the scripts on the module path

import model_evaluation
from model_training import predict, probabilities

DATASET = "mitbih"   # "mitbih" or "ptbxl"
MODEL = "cnn"        # "cnn", "lstm" or "mlp"
DELETED = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]   # parts of the time


def deletion_test(scored, rows, classes, attribution, rng=None):
    """(m,) rows, class of each, (m, leads, samples) attribution -> mean probability of the class.

    The samples with the largest attribution, DELETED of the time, become the training mean.
    With rng, the attributions are moved to random places first. They keep their form and lose
    their meaning; an attribution is worth something where it does better.
    """
    signals = scored.signals[rows]
    samples = signals.shape[2]
    weight = attribution.sum(axis=1)
    if rng:
        weight = np.stack([np.roll(row, rng.integers(samples)) for row in weight])
    order = np.argsort(-weight, axis=1)
    place = np.argsort(order, axis=1)   # 0: the largest
    every = np.arange(len(rows))
    curve = []
    for part in DELETED:
        deleted = torch.from_numpy(place < round(part * samples))[:, None]
        x = torch.where(deleted, scored.net.normalise_signals.mean, signals)
        logits = predict(scored.net, x, scored.features[rows], every, scored.recipe.crop)
        probability = probabilities(logits, scored.recipe, scored.members)
        curve.append(probability[every, classes].mean())
    return curve


def main():
    outputs, inputs = model_evaluation.predict_test_rows(DATASET, MODEL)
    scored = model_evaluation.score_rows(*outputs, model_evaluation.TASK)
    known = np.isin(outputs[3], scored.rows)
    scored = scored._replace(signals=inputs[0][known], features=inputs[1][known])
    rows, classes = model_evaluation.choose_examples(scored, model_evaluation.AVERAGED)
    attribution = model_evaluation.by_lead(
        scored, model_evaluation.integrated_gradients(scored, rows, classes))
    table = pd.DataFrame({
        "at its places": deletion_test(scored, rows, classes, attribution),
        "at random places": deletion_test(scored, rows, classes, attribution,
                                          np.random.default_rng(0))}, index=DELETED)
    print(f"{scored.title}: mean probability of the class, by the part of the time deleted")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
