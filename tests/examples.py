"""What the tests of model_evaluation.py and cross_dataset_validation.py share."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
from harness import run_stage

import cross_dataset_validation
import model_evaluation

NAMES = ["N", "S", "V", "F", "Q"]


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def example(kind="beats", classes=5, rows=400, **data):
    """Random Scored of five classes; the first `classes` of them have rows."""
    rng = np.random.default_rng(0)
    if kind == "beats":
        labels = rng.integers(0, classes, rows)
        truth = labels[:, None] == np.arange(5)
        probability = rng.dirichlet(np.ones(5), rows) + 0.3 * truth
        probability /= probability.sum(axis=1, keepdims=True)
        called = probability.argmax(axis=1)[:, None] == np.arange(5)
    else:
        truth = rng.random((rows, 5)) < 0.4
        probability = np.round(0.3 * truth + 0.7 * rng.random((rows, 5)), 2)   # with ties
        called = probability >= [0.2, 0.3, 0.4, 0.5, 0.6]
    header = SimpleNamespace(symbols=[])   # without the tables of EC57
    data = SimpleNamespace(kind=kind, header=header, patient=np.arange(rows) // 4,
                           **{"record": np.full(rows, "100")} | data)
    recipe = SimpleNamespace(kind=kind)
    return model_evaluation.Scored("", data, None, recipe, NAMES, None, np.arange(rows), truth,
                                   called, probability, None)


def score_test_rows(dataset, task="superdiagnostic"):
    """Scored of the test rows by the mlp."""
    return model_evaluation.score_rows(model_evaluation.predict_test_rows(dataset, "mlp"), task)


def evaluate(dataset, model, **constants):
    """Runs model_evaluation.py -> its JSON report."""
    run_stage(model_evaluation, DATASET=dataset, MODEL=model, **constants)
    with open(f"{dataset}_{model}_metrics.json") as file:
        return json.load(file)


def cross(source, target, model, **constants):
    """Runs cross_dataset_validation.py -> its JSON report and its table of scores."""
    run_stage(cross_dataset_validation, PRETRAINED_DATASET=source, TEST_DATASET=target,
              MODEL=model, **constants)
    name = f"{source}_to_{target}_{model}_cross"
    with open(f"{name}.json") as file:
        report = json.load(file)
    return report, pd.read_csv(f"{name}.csv", dtype={"record": str, "patient": str})
