"""Trains the models of the README's cross-dataset part, tests them on the other database, and
writes its tables.

Run it in a folder with MIT-BIH's folder of WFDB files and the ptbxl_*.npy files (an hour on two
cores):

    python tests/reports/measure_cross.py

A run has a folder of its own, results/cross/{run}/, with all that the scripts write and a run.json
of its costs. A run with a run.json is not made again: stop the script at any time and start it
again to go on. Runs of other code are refused. Writes results/cross/tables.md and
both_directions.png.

The ablations replace one step by which the strips of the target are matched to the model. The
strips of the source are matched as always: in-domain figures and thresholds do not change.
"""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness
import numpy as np
import pandas as pd
import runs
import torch
from matplotlib.figure import Figure

import cross_dataset_validation as cross
import preprocess_mitbih

MODELS = ["cnn", "lstm", "mlp"]
FOLDER = Path("results/cross")
PREPROCESS = {"LEADS": ["MLII", "V1"], "LEAD_ABSENT": "skip", "CLASS_MAP": "clinical"}
TRAINING = {   # constants of model_training, by the first part of a run's name
    "mitbih_all": {"DATASET": "mitbih", "RECIPE": "transfer", "SPLIT": "all"},
    "mitbih_ds1": {"DATASET": "mitbih", "RECIPE": "transfer"},
    "ptbxl": {"DATASET": "ptbxl", "RECIPE": "transfer", "LEADS": ["II", "V1"]},
}
SOURCES = {"mitbih_all": "MIT-BIH, all records", "mitbih_ds1": "MIT-BIH, DS1", "ptbxl": "PTB-XL"}
OTHER = {"mitbih": "ptbxl", "ptbxl": "mitbih"}
USES = {   # of the target: constants of cross_dataset_validation
    "as it is": {},
    "whole target": {"WHOLE_TARGET": True},
}
NOT_OF_PTBXL = [   # tests that do not apply to a model of PTB-XL tested on MIT-BIH
    "the first leads", "a beat every 0.8 s", "mean RR features"]
ADC_UNITS = {"ptbxl": 1000, "mitbih": 200}   # in a mV
CONDITIONS = list(cross.CONDITIONS)
FIGURES = ["AUC, abnormal", "balanced accuracy", "sensitivity", "specificity"]


# ---- Ablations: each replaces one step of cross_dataset_validation.inputs_of ----

def changed_recipe(checkpoint, **settings):
    """Checkpoint -> a copy with other settings."""
    changed = copy.copy(checkpoint)
    changed.recipe = SimpleNamespace(**vars(checkpoint.recipe) | settings)
    return changed


def without_resampling(inputs_of, checkpoint, strips):
    """The samples of the target are taken as if they were at the model's rate."""
    with harness.changed(cross, resample=lambda signals, rate, target_rate: signals):
        return inputs_of(checkpoint, strips)


def without_low_pass(inputs_of, checkpoint, strips):
    """The target keeps what lies above the cutoff of the training."""
    return inputs_of(changed_recipe(checkpoint, low_pass=None), strips)


def first_leads(inputs_of, checkpoint, strips):
    """The first leads of the target stand for the model's, whatever their names."""
    def match_leads(available, leads):
        return np.arange(len(leads)) % len(available), "leads: the first ones"
    with harness.changed(cross, match_leads=match_leads):
        return inputs_of(checkpoint, strips)


def in_adc_units(inputs_of, checkpoint, strips):
    """The target is in its ADC units in place of mV."""
    scaled = copy.copy(strips)
    scaled.signals = strips.signals * np.float32(ADC_UNITS[OTHER[checkpoint.dataset]])
    return inputs_of(checkpoint, scaled)


def fixed_positions(inputs_of, checkpoint, strips):
    """A beat model looks every 0.8 s in place of at the beats."""
    moved = copy.copy(strips)
    positions = np.arange(2 * strips.rate // 5, strips.signals.shape[2], 4 * strips.rate // 5)
    moved.beats = [positions] * len(strips.signals)
    return inputs_of(checkpoint, moved)


def mean_rhythm(inputs_of, checkpoint, strips):
    """A beat model gets the training's mean RR features."""
    (signals, features), number, notes = inputs_of(checkpoint, strips)
    mean = checkpoint.weights["normalise_features.mean"]
    rhythm = 25   # columns of rhythm_features, the first ones
    features[:, :rhythm] = mean[:rhythm]
    return (signals, features), number, notes


def one_decides(inputs_of, checkpoint, strips):
    """The middle beat or crop of a strip decides alone."""
    (signals, features), number, notes = inputs_of(checkpoint, strips)
    _, first, count = np.unique(number, return_index=True, return_counts=True)
    middle = first + count // 2
    rows = torch.from_numpy(middle)
    return (signals[rows], features[rows]), number[middle], notes


ABLATIONS = {
    "not resampled": without_resampling,
    "no low-pass filter": without_low_pass,
    "the first leads": first_leads,
    "ADC units": in_adc_units,
    "a beat every 0.8 s": fixed_positions,
    "mean RR features": mean_rhythm,
    "one beat or crop a strip": one_decides,
}


def ablated(name, target):
    """Name of an ablation and of the target -> functions for cross_dataset_validation."""
    all_strips = cross.strips_of
    all_inputs = cross.inputs_of

    def strips_of(data, members):
        strips = all_strips(data, members)
        strips.is_target = data.name == target
        return strips

    def inputs_of(checkpoint, strips):
        if strips.is_target:
            return ABLATIONS[name](all_inputs, checkpoint, strips)
        return all_inputs(checkpoint, strips)
    return {"strips_of": strips_of, "inputs_of": inputs_of}


# ---- Runs ----

def training_runs():
    """Dict of run -> settings: the stage and its constants."""
    return {f"{source}_{model}": {"stage": "model_training", "constants": {
                **constants, "MODEL": model}}
            for source, constants in TRAINING.items() for model in MODELS}


def tests_of(trained):
    """Name of a trained model -> names of its tests; the cnns have most."""
    if trained == "mitbih_all_cnn":
        return [*USES, *ABLATIONS]
    if trained == "ptbxl_cnn":
        return [test for test in [*USES, *ABLATIONS] if test not in NOT_OF_PTBXL]
    return ["as it is"] if trained.startswith("mitbih_ds1") else ["as it is", "whole target"]


def run_name(trained, test):
    """Names of a trained model and a test -> name of the run."""
    return f"{trained}_{test}".replace(" ", "_")


def test_runs():
    """Dict of run -> settings: the stage, its constants, the trained model and the test."""
    tests = {}
    for trained, settings in training_runs().items():
        source = settings["constants"]["DATASET"]
        common = {"PRETRAINED_DATASET": source, "TEST_DATASET": OTHER[source],
                  "MODEL": settings["constants"]["MODEL"]}
        for test in tests_of(trained):
            tests[run_name(trained, test)] = {
                "stage": "cross_dataset_validation", "trained": trained, "test": test,
                "constants": common | USES.get(test, {})}
    return tests


def all_runs():
    """Dict of run -> settings."""
    arrays = {"arrays": {"stage": "preprocess_mitbih", "constants": PREPROCESS}}
    return arrays | training_runs() | test_runs()


def make_run(name):
    """Makes one run in the current folder, then writes its run.json."""
    code = runs.code_version()
    settings = all_runs()[name]
    constants = dict(settings["constants"])
    if settings.get("test") in ABLATIONS:
        constants |= ablated(settings["test"], constants["TEST_DATASET"])
    seconds, cpu_seconds = runs.cost_of(harness.run_stage, settings["stage"], **constants)
    runs.save_run(code, settings, seconds=seconds, cpu_seconds=cpu_seconds,
                  peak_gb=runs.peak_gb())


def make_all():
    """Makes every run that is not there yet: MIT-BIH's arrays, trained models, tests."""
    settings = all_runs()
    databases = [path for path in [Path(preprocess_mitbih.DATA_DIR)] if path.exists()]
    runs.make_runs(__file__, FOLDER, {"arrays": settings["arrays"]}, {"arrays": databases})
    arrays = [*Path(".").glob("ptbxl_*.npy"), *(FOLDER / "arrays").glob("*.npy")]
    trained = training_runs()
    runs.make_runs(__file__, FOLDER, trained, dict.fromkeys(trained, arrays))
    tests = test_runs()
    links = {name: [*arrays, *(FOLDER / test["trained"]).glob("*_model.pth")]
             for name, test in tests.items()}
    runs.make_runs(__file__, FOLDER, tests, links)


# ---- Tables ----

def normal_table(finished):
    """Finished tests -> table: normal or abnormal, at home and away."""
    sides = {"in-domain": "its own test set", "cross-domain": "the other database",
             "drop": "drop"}
    rows = []
    for source in ("mitbih_ds1", "ptbxl"):
        for model in MODELS:
            tables = finished[run_name(f"{source}_{model}", "as it is")]["tables"]
            for side, text in sides.items():
                row = {"trained on": SOURCES[source], "model": model, "tested on": text}
                row |= {name: runs.interval_text(tables[side].get(name)) for name in FIGURES}
                rows.append(row)
    return pd.DataFrame(rows).set_index("trained on")


def condition_table(finished):
    """Finished tests -> table: AUC of the same condition in both databases, cross-domain."""
    rows = []
    for test, tested in (("as it is", "test side"), ("whole target", "all rows")):
        for source, title in SOURCES.items():
            names = {model: run_name(f"{source}_{model}", test) for model in MODELS}
            for model, name in names.items():
                if name in finished:
                    tables = finished[name]["tables"]
                    rows.append({"trained on": title, "model": model, "tested on": tested,
                                 **auc_texts(tables["cross-domain"])})
            if names[MODELS[0]] in finished:
                rows.append({"trained on": "strips with it", "model": "", "tested on": tested,
                             **count_texts(tables["rows"])})
    return pd.DataFrame(rows).fillna("").set_index("trained on")


def auc_texts(figures):
    """Table of a side -> dict of question -> AUC with its interval."""
    return {name: runs.interval_text(figures.get(f"AUC, {name}"))
            for name in ["abnormal", *CONDITIONS]}


def count_texts(rows):
    """Table of rows -> dict of question -> how many strips have the condition, of how many."""
    return {name: f"{row['cross-domain, positive']:,.0f} of {row['cross-domain, rows']:,.0f}"
            for name, row in rows.items() if row["cross-domain, rows"]}


def test_table(trained, finished):
    """Name of a trained model, finished tests -> table: AUC after one change at a time."""
    rows = []
    for test in tests_of(trained):
        if test == "whole target":   # other rows
            continue
        figures = finished[run_name(trained, test)]["tables"]["cross-domain"]
        row = {"change": test}
        for name in ["abnormal", *CONDITIONS]:
            figure = figures.get(f"AUC, {name}")
            row[name] = runs.text_of(figure["value"]) if figure else ""
        rows.append(row)
    return pd.DataFrame(rows).set_index("change")


def plot_both(finished, path):
    """Finished tests -> PNG: AUC of each question, both directions, in-domain and cross-domain."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    questions = ["abnormal", *CONDITIONS[:4]]
    for axis, source in zip(figure.subplots(1, 2, sharey=True), ("mitbih_ds1", "ptbxl")):
        for number, (model, mark) in enumerate(zip(MODELS, "os^")):
            tables = finished[run_name(f"{source}_{model}", "as it is")]["tables"]
            for side, fill, color in (("in-domain", "white", "0.55"),
                                      ("cross-domain", "black", "black")):
                auc = pd.DataFrame({name: tables[side].get(f"AUC, {name}") or {}
                                    for name in questions}, ["value", "low", "high"], dtype=float)
                height = np.arange(len(questions)) + 0.25 * number - 0.25
                height += 0.08 * (side == "cross-domain")
                axis.hlines(height, auc.loc["low"], auc.loc["high"], color=color, linewidth=1)
                axis.plot(auc.loc["value"], height, mark, color=color, markerfacecolor=fill,
                          markersize=5, label=f"{model}, {side}")
        axis.axvline(0.5, color="0.6", linestyle=":")
        axis.set(xlim=(0.2, 1.01), xlabel="AUC (95% interval over patients)")
        axis.set_yticks(range(len(questions)), ["normal or abnormal", *questions[1:]])
        axis.set_title(f"trained on {SOURCES[source]}, tested on the other database", fontsize=10)
    axis.invert_yaxis()
    figure.suptitle("\n".join(runs.warnings_in(finished.values())), fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, ncol=6,
                  loc="outside lower center")
    figure.savefig(path, dpi=150)


# ---- Main ----

def main():
    if sys.argv[1:2] == ["--run"]:
        make_run(sys.argv[2])
        return
    make_all()
    finished = runs.finished_runs(FOLDER, test_runs())
    tables = {
        "Normal or abnormal": normal_table(finished),
        "The same condition in both databases, AUC": condition_table(finished),
        "MIT-BIH (all records) to PTB-XL, cnn, one change at a time, AUC":
            test_table("mitbih_all_cnn", finished),
        "PTB-XL to MIT-BIH, cnn, one change at a time, AUC": test_table("ptbxl_cnn", finished),
    }
    plot_both(finished, FOLDER / "both_directions.png")
    sections = {heading: runs.markdown(table) for heading, table in tables.items()}
    runs.write_report(FOLDER / "tables.md", sections, finished.values())


if __name__ == "__main__":
    main()
