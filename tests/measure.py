"""Trains and evaluates every model of the README's first tables, and writes those tables.

Run it in a folder with the .npy files of both datasets (two to three hours on two cores):

    python /path/to/checkout/tests/measure.py

Every run has a folder of its own, results/{run}/, with all that the scripts write and a run.json (seconds, memory). A run
whose run.json is there is not repeated: stop the script whenever you like, and start it again to go on. Delete a folder to
measure it anew. The tables come to results/tables.md, the picture to results/learning_curve.png. With a name, only the
runs that contain it are made:  python tests/measure.py mitbih
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import model_evaluation  # noqa: E402
import model_training  # noqa: E402

SEEDS = [0, 1, 2]
MODELS = ["cnn", "lstm", "mlp"]
FRACTIONS = [.05, .2, .5]     # of the training patients of PTB-XL, beside all of them
SCRIPTS = ["preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py", "model_evaluation.py"]


def all_runs():
    """Name of a run -> the constants of model_training that differ from those in the script."""
    runs = {}
    for seed in SEEDS:
        for model in MODELS:
            runs[f"mitbih_{model}_{seed}"] = {"DATASET": "mitbih", "MODEL": model, "SEED": seed}
    for seed in SEEDS:
        for model in MODELS:
            runs[f"ptbxl_{model}_{seed}"] = {"DATASET": "ptbxl", "MODEL": model, "SEED": seed}
    for fraction in FRACTIONS:   # the smaller the set, the more often it is seen
        epochs = round(12 / fraction ** .5)
        runs[f"ptbxl_cnn_fraction{fraction:g}"] = {"DATASET": "ptbxl", "MODEL": "cnn", "TRAIN_FRACTION": fraction,
                                                   "PATIENCE": epochs, "EPOCHS": {"ptbxl": epochs}}
    for seed in SEEDS:
        runs[f"mitbih_random_cnn_{seed}"] = {"DATASET": "mitbih", "MODEL": "cnn", "SEED": seed, "SPLIT": "random",
                                             **RANDOM_SPLIT}
    for seed in SEEDS:
        runs[f"ptbxl_multiclass_cnn_{seed}"] = {"DATASET": "ptbxl", "MODEL": "cnn", "SEED": seed, "TASK": "multiclass"}
    return runs


# A random split has the test patients' beats in training: nothing needs to be kept from learning by heart.
RANDOM_SPLIT = {"SIGNAL_NOISE": {"mitbih": 0.0, "ptbxl": 0.0}, "RHYTHM_NOISE": 0.0, "EPOCHS": {"mitbih": 15}}


# ---- One run ----

def code_version():
    """A hash of the scripts, so that figures of two versions are not taken for those of one."""
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in SCRIPTS)).hexdigest()[:12]


def make_run(name):
    """Trains and evaluates one run in the current folder, then writes run.json."""
    constants = all_runs()[name]
    for key, value in constants.items():
        setattr(model_training, key, value)
    began = time.perf_counter()
    model_training.main()
    trained, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model_evaluation.DATASET, model_evaluation.MODEL = constants["DATASET"], constants["MODEL"]
    model_evaluation.main()
    _, net = model_evaluation.load_checkpoint(constants["DATASET"], constants["MODEL"])
    Path("run.json").write_text(json.dumps({
        "constants": constants, "training_seconds": trained - began, "evaluation_seconds": time.perf_counter() - trained,
        "parameters": sum(values.numel() for values in net.parameters()),
        "peak_mb": peak, "code": code_version()}))


def make_all(wanted):
    """Makes every run whose name contains `wanted` and that has no run.json yet, or one of other constants."""
    names = [name for name in all_runs() if wanted in name]
    if not names:
        raise SystemExit(f"no run has {wanted!r} in its name: expected a part of {', '.join(all_runs())}")
    for number, name in enumerate(names, 1):
        folder = Path("results") / name
        done = folder / "run.json"
        if done.exists() and json.loads(done.read_text())["constants"] == all_runs()[name]:
            print(f"{number}/{len(names)} {name}: done before")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for array in Path(".").glob("*.npy"):
            link = folder / array.name
            link.unlink(missing_ok=True)
            link.symlink_to(array.resolve())
        print(f"{number}/{len(names)} {name}", flush=True)
        with open(folder / "log.txt", "w") as log:
            code = subprocess.run([sys.executable, Path(__file__).resolve(), "--run", name], cwd=folder, stdout=log,
                                  stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"{name} failed: see {folder / 'log.txt'}")
        print(f"    {json.loads((folder / 'run.json').read_text())['training_seconds']:.0f} s", flush=True)


# ---- Tables ----

def finished(pattern):
    """Pattern of run names -> list of dicts (metrics, run) of the runs that are there."""
    runs = []
    for path in sorted(Path("results").glob(f"{pattern}/run.json")):
        run = json.loads(path.read_text())
        metrics = json.loads(next(path.parent.glob("*_metrics.json")).read_text())
        runs.append({"folder": path.parent, **run, **metrics})
    return runs


def spread(values, digits=3):
    """Values over seeds -> "mean ± standard deviation" as text."""
    values = [value for value in values if value is not None]
    if not values:
        return "n/a"
    text = f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")
    return text.replace("0.", ".")


def cost(runs):
    """Runs of one model -> the last columns of each table: parameters, seconds and peak memory of training."""
    seconds, memory = np.mean([run["training_seconds"] for run in runs]), max(run["peak_mb"] for run in runs) / 1000
    return f"{runs[0]['parameters']:,} | {seconds:.0f} s | {memory:.1f} GB |"


def mitbih_table(pattern):
    """MIT-BIH runs -> lines of a markdown table."""
    titles = ["model", "seeds", "mean F1 of N, S, V", "accuracy", "macro F1", "S F1", "S Se", "S +P", "S F1 without 232",
              "V F1", "V Se", "V +P", "F F1", "parameters", "training", "memory"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for model in MODELS:
        runs = finished(pattern.format(model=model))
        if not runs:
            continue
        s, v, f = ([run["classes"][name] for run in runs] for name in "SVF")
        rest = [run["S_without_record_232"] for run in runs]
        of = [(runs, "mean_f1_nsv"), (runs, "accuracy"), (runs, "macro_f1"), (s, "f1"), (s, "sensitivity"),
              (s, "positive_predictivity"), (rest, "f1"), (v, "f1"), (v, "sensitivity"), (v, "positive_predictivity"),
              (f, "f1")]
        lines.append(f"| {model} | {len(runs)} | " + " | ".join(spread([row[key] for row in rows]) for rows, key in of)
                     + f" | {cost(runs)}")
    return lines


def ptbxl_table(pattern):
    """PTB-XL runs -> lines of a markdown table."""
    titles = ["model", "seeds", "macro AUC", "macro F1", "accuracy, one superclass", "macro F1, one superclass", "parameters",
              "training", "memory"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for model in MODELS:
        runs = finished(pattern.format(model=model))
        if not runs:
            continue
        one = [run.get("single_superclass", run) for run in runs]
        lines.append(f"| {model} | {len(runs)} | " + " | ".join([
            spread([run["macro_auc"] for run in runs]), spread([run["macro_f1"] for run in runs]),
            spread([row["accuracy"] for row in one]), spread([row["macro_f1"] for row in one])]) + f" | {cost(runs)}")
    return lines


def ensemble_line(title, patterns):
    """Runs of PTB-XL -> a line of the table for the mean of their probabilities, thresholds from fold 9."""
    runs = [run for pattern in patterns for run in finished(pattern)]
    if len(runs) < 2:
        return []
    data, here = model_training.load_dataset("ptbxl"), os.getcwd()
    mean = {"validation": 0, "test": 0}
    for run in runs:
        os.chdir(run["folder"])
        checkpoint, net = model_evaluation.load_checkpoint("ptbxl", run["constants"]["MODEL"])
        os.chdir(here)
        inputs = model_training.make_inputs(data, **checkpoint["inputs"])
        sides = model_training.task_rows(data, "multilabel", model_training.split_rows(
            data, "inter_patient", checkpoint["split_parts"], 0))
        for side in mean:
            logits = model_training.predict(net, *inputs, sides[side], checkpoint["crop"])
            mean[side] = mean[side] + model_training.probabilities(logits, "multilabel", 5) / len(runs)
    targets = model_training.targets_of(data, "multilabel").numpy()
    thresholds = model_training.best_thresholds(mean["validation"], targets[sides["validation"]])
    metrics = model_evaluation.multilabel_metrics(targets[sides["test"]], mean["test"], thresholds, checkpoint["class_names"])
    one = metrics["single_superclass"]
    return [f"| {title} | | " + " | ".join(spread([value]) for value in (
        metrics["macro_auc"], metrics["macro_f1"], one["accuracy"], one["macro_f1"])) + " | | | |"]


def resnet_line():
    """The line of resnet1d_wang, if tests/resnet1d_wang.py has finished."""
    path = Path("results/resnet1d_wang.json")
    if not path.exists():
        return []
    run = json.loads(path.read_text())
    one = run["single_superclass"]
    return [f"| resnet1d_wang | 1 | {spread([run['macro_auc']])} | {spread([run['macro_f1']])} | {spread([one['accuracy']])} | "
            f"{spread([one['macro_f1']])} | {run['parameters']:,} | {run['training_seconds']:.0f} s | |"]


def learning_curve(path):
    """PTB-XL runs with a part of the training patients -> PNG of macro AUC against training records, and a table."""
    runs = [*finished("ptbxl_cnn_fraction*"), *finished("ptbxl_cnn_0")]
    points = sorted((run["protocol"]["train_rows"], run["macro_auc"], run["training_seconds"]) for run in runs)
    if len(points) < 2:
        return []
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.semilogx([point[0] for point in points], [point[1] for point in points], "k-o", label="cnn of this repository")
    axis.axhline(.930, color="0.5", linestyle="--", label="resnet1d_wang, all records (published)")
    axis.set(xlabel="training records of PTB-XL", ylabel="macro AUC, fold 10", xticks=[point[0] for point in points])
    axis.set_xticklabels([f"{point[0]:,}" for point in points])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    axis.set_title("PTB-XL, five superclasses, 100 Hz", fontsize=10)
    figure.savefig(path, dpi=150)
    return ["| training records | macro AUC | training |", "|---|---|---|",
            *(f"| {records:,} | {spread([auc])} | {seconds:.0f} s |" for records, auc, seconds in points)]


def main():
    if sys.argv[1:2] == ["--run"]:
        return make_run(sys.argv[2])
    make_all(sys.argv[1] if len(sys.argv) > 1 else "")
    versions = {run["code"] for run in finished("*")}
    sections = {
        "MIT-BIH, DS1 to DS2": mitbih_table("mitbih_{model}_*"),
        "MIT-BIH, random split (leaky)": mitbih_table("mitbih_random_{model}_*"),
        "PTB-XL, multilabel": [*ptbxl_table("ptbxl_{model}_[0-9]*"),
                               *ensemble_line("cnn + lstm, seed 0", ["ptbxl_cnn_0", "ptbxl_lstm_0"]),
                               *ensemble_line("cnn + lstm, all seeds", ["ptbxl_cnn_[0-9]*", "ptbxl_lstm_[0-9]*"]),
                               *resnet_line()],
        "PTB-XL, multiclass (records with one superclass)": ptbxl_table("ptbxl_multiclass_{model}_*"),
        "PTB-XL, cnn, part of the training patients": learning_curve("results/learning_curve.png")}
    text = "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in sections.items())
    if len(versions) > 1:
        text = f"The runs come from {len(versions)} versions of the scripts: delete results/ to measure them anew.\n\n{text}"
    Path("results/tables.md").write_text(text + "\n")
    print(f"\n{text}\n\nWrote results/tables.md")


if __name__ == "__main__":
    main()
