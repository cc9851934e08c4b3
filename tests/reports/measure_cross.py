"""Trains the models of the README's cross-dataset part, tests them on the other database, and writes its tables.

Run it in a folder with both databases and the ptbxl_*.npy files (three quarters of an hour on two cores):

    python /path/to/checkout/tests/measure_cross.py

Every run has a folder of its own, results/cross/{run}/. What is there is not made again: stop the script whenever you like,
and start it again to go on; delete a folder to measure it anew. The tables come to results/cross/tables.md, the picture to
results/cross/both_directions.png.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cross_dataset_validation as cross  # noqa: E402
import model_training  # noqa: E402
import preprocess_mitbih  # noqa: E402

MODELS = ["cnn", "lstm", "mlp"]
# The constants of the README's "models for another database".
PREPROCESS = {"LEADS": ["MLII", "V1"], "LEAD_ABSENT": "skip", "CLASS_MAP": "clinical"}
MITBIH = {"DATASET": "mitbih", "CONTEXT_SECONDS": 10, "SHIFT_SECONDS": 0.04, "LOW_PASS": 40, "EPOCHS": {"mitbih": 3},
          "VALIDATION_RECORDS": ["203", "220", "223"], "TEMPLATE_DISTANCE": {"cnn": False}}
PTBXL = {"DATASET": "ptbxl", "LEADS": ["II", "V1"], "LOW_PASS": 40, "STATEMENT_WEIGHT": 20.0, "CROP_SECONDS": {"ptbxl": 5.0},
         "EPOCHS": {"ptbxl": 10}}
RUNS = {**{f"mitbih_all_{model}": MITBIH | {"MODEL": model, "SPLIT": "all"} for model in MODELS},
        **{f"mitbih_ds1_{model}": MITBIH | {"MODEL": model} for model in MODELS},
        **{f"ptbxl_{model}": PTBXL | {"MODEL": model} for model in MODELS}}
SWITCHES = ["RESAMPLE", "BAND_LIMIT", "MATCH_LEADS", "MILLIVOLTS", "ALIGN_BEATS", "RHYTHM", "AGGREGATE"]
VARIANTS = {"whole target": {"WHOLE_TARGET": True}, **{name: {name: False} for name in SWITCHES},
            "adabn": {"ADAPTATION": "adabn"}, "coral": {"ADAPTATION": "coral"}, "5 patients": {"FINE_TUNE_PATIENTS": 5},
            "15 patients": {"FINE_TUNE_PATIENTS": 15}, "150 patients": {"FINE_TUNE_PATIENTS": 150}}
FIGURES = ["auc", "ventricular", "supraventricular", "LBBB", "RBBB", "paced"]


# ---- Runs ----

def set_constants(module, constants):
    """Gives a script other constants; a dict changes single entries of the script's own."""
    for name, value in constants.items():
        setattr(module, name, getattr(module, name) | value if isinstance(value, dict) else value)


def step(name, what):
    """One step in the current folder: what is "train" or "cross" or the name of a variant."""
    source = RUNS[name]["DATASET"]
    if what == "train":
        set_constants(model_training, RUNS[name])
        if source == "mitbih":
            model_training.ARCHITECTURE["mitbih"][RUNS[name]["MODEL"]].pop("squeeze", None)
        return model_training.main()
    cross.PRETRAINED_DATASET, cross.TEST_DATASET = source, "ptbxl" if source == "mitbih" else "mitbih"
    cross.MODEL = RUNS[name]["MODEL"]
    set_constants(cross, VARIANTS.get(what, {}))
    cross.main()
    if what in VARIANTS:
        os.replace(f"{cross.PRETRAINED_DATASET}_to_{cross.TEST_DATASET}_{cross.MODEL}_cross.json", f"{what}.json")


def variants_of(name):
    """Name of a run -> the variants that mean something for it: the cnns have most, MIT-BIH has 22 patients to learn from."""
    if name == "mitbih_all_cnn":
        return list(VARIANTS)
    absent = ("MATCH_LEADS", "ALIGN_BEATS", "RHYTHM", "150 patients")   # its target has the two leads; it has no beats
    if name == "ptbxl_cnn":
        return [variant for variant in VARIANTS if variant not in absent]
    return [] if name.startswith("mitbih_ds1") else ["whole target"]


def make_all():
    """Makes every step that is not there yet, each in a process of its own."""
    arrays = Path("results/cross/arrays")
    if not (arrays / "mitbih_header.npy").exists():
        arrays.mkdir(parents=True, exist_ok=True)
        here, folder = os.getcwd(), Path(preprocess_mitbih.DATA_DIR).resolve()
        set_constants(preprocess_mitbih, PREPROCESS | {"DATA_DIR": str(folder)})
        os.chdir(arrays)
        preprocess_mitbih.main()
        os.chdir(here)
    cross.beats_of_records(model_training.load_dataset("ptbxl"))   # once for all runs
    for name, constants in RUNS.items():
        folder = Path("results/cross") / name
        folder.mkdir(parents=True, exist_ok=True)
        source, target = constants["DATASET"], "ptbxl" if constants["DATASET"] == "mitbih" else "mitbih"
        for array in [*Path(".").glob("ptbxl_*.npy"), *arrays.glob("*.npy")]:
            if not (folder / array.name).exists():
                (folder / array.name).symlink_to(array.resolve())
        stem = f"{source}_to_{target}_{constants['MODEL']}_cross"
        steps = {"train": f"{source}_{constants['MODEL']}_model.pth", **{v: f"{v}.json" for v in variants_of(name)},
                 "cross": f"{stem}.json"}
        for what, output in steps.items():
            if (folder / output).exists():
                continue
            print(f"{name}: {what}", flush=True)
            with open(folder / f"{what}.log", "w") as log:
                code = subprocess.run([sys.executable, Path(__file__).resolve(), "--step", name, what], cwd=folder, stdout=log,
                                      stderr=subprocess.STDOUT).returncode
            if code:
                raise SystemExit(f"{name}, {what} failed: see {folder / f'{what}.log'}")


# ---- Tables ----

def report(name, variant=None):
    """Name of a run, variant -> its JSON report."""
    folder = Path("results/cross") / name
    return json.loads((folder / f"{variant}.json" if variant else next(folder.glob("*_cross.json"))).read_text())


def cell(row, digits=3):
    """A figure with its interval -> text."""
    if not row:
        return ""
    text = f"{row['value']:.{digits}f}" + (
        f" [{row['interval'][0]:.{digits}f} {row['interval'][1]:.{digits}f}]" if row["interval"] else "")
    return text.replace("0.", ".")


def normal_table():
    """The question normal or abnormal, with in-domain figures."""
    names = ["auc", "f1", "balanced_accuracy", "sensitivity", "specificity", "calibration_error"]
    lines = ["| trained on | model | on | " + " | ".join(name.replace("_", " ") for name in names) + " |",
             "|" + "---|" * (3 + len(names))]
    for name in [*(f"mitbih_ds1_{model}" for model in MODELS), *(f"ptbxl_{model}" for model in MODELS)]:
        for side, text in (("in_domain", "its own test set"), ("cross_domain", "the other database"), ("drop", "drop")):
            lines.append(f"| {name.split('_')[0]} | {name.split('_')[-1]} | {text} | "
                         + " | ".join(cell(report(name)[side].get(x)) for x in names) + " |")
    return lines


def condition_table():
    """The same condition in both databases, cross-domain."""
    names = [*FIGURES, "incomplete LBBB", "incomplete RBBB"]
    lines = ["| trained on | model | normal or abnormal | " + " | ".join(names[1:]) + " |", "|" + "---|" * (2 + len(names))]
    for variant in (None, "whole target"):
        for source in ("mitbih_all", "ptbxl"):
            for model in MODELS:
                row = report(f"{source}_{model}", variant)["cross_domain"]
                lines.append(f"| {source.split('_')[0]} | {model}{', ' + variant if variant else ''} | " + " | ".join(
                    cell(row.get(x)) for x in names) + " |")
            lines.append(f"| strips with it | | {row['abnormal']} of {row['normal_or_abnormal']} | " + " | ".join(
                str(row["condition_rows"].get(x, "")) for x in names[1:]) + " |")
    return lines


def variant_table(name):
    """One adjustment switched off, or one adaptation used, at a time."""
    lines = ["| change | normal or abnormal | " + " | ".join(FIGURES[1:]) + " |", "|" + "---|" * (1 + len(FIGURES))]
    for variant in (None, *variants_of(name)):
        text = "none" if variant is None else f"{variant} = False" if variant in SWITCHES else variant
        row = report(name, variant)["cross_domain"]
        values = [row.get(x) if x == "auc" or "patients" not in str(variant) else None for x in FIGURES]
        lines.append(f"| {text} | " + " | ".join(f"{v['value']:.3f}".lstrip("0") if v else "" for v in values) + " |")
    return lines


def plot_both(path):
    """PNG: AUC of every question that both test sides have, in both directions, in-domain and cross-domain, with intervals."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    titles = {"mitbih_ds1": "trained on MIT-BIH (DS1), tested on PTB-XL", "ptbxl": "trained on PTB-XL, tested on MIT-BIH"}
    for axis, (source, title) in zip(figure.subplots(1, 2, sharey=True), titles.items()):
        for number, (model, mark) in enumerate(zip(MODELS, "os^")):
            for side, fill, color in (("in_domain", "white", "0.55"), ("cross_domain", "black", "black")):
                part = report(f"{source}_{model}")[side]
                for place, figure_name in enumerate(reversed(FIGURES[:5])):
                    shift = .08 if side == "in_domain" else 0
                    row, height = part.get(figure_name) if part else None, place + .25 - .25 * number + shift
                    if row:
                        axis.plot(row["interval"] or [np.nan] * 2, [height] * 2, color=color, linewidth=1)
                        axis.plot(row["value"], height, mark, color=color, markerfacecolor=fill, markersize=5,
                                  label=f"{model}, {side.replace('_', '-')}" if place == 0 else None)
        axis.axvline(.5, color="0.6", linestyle=":")
        axis.set(xlim=(.2, 1.01), xlabel="AUC (95% interval over patients)", title=title)
        axis.set_yticks(range(5), ["normal or abnormal" if name == "auc" else name for name in reversed(FIGURES[:5])])
        axis.title.set_fontsize(10)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, ncol=6, loc="outside lower center")
    figure.savefig(path, dpi=150)


def main():
    if sys.argv[1:2] == ["--step"]:
        return step(*sys.argv[2:])
    make_all()
    sections = {"Normal or abnormal": normal_table(), "The same condition in both databases": condition_table(),
                "MIT-BIH (all records) to PTB-XL, cnn, one change at a time": variant_table("mitbih_all_cnn"),
                "PTB-XL to MIT-BIH, cnn, one change at a time": variant_table("ptbxl_cnn")}
    text = "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in sections.items())
    Path("results/cross/tables.md").write_text(text + "\n")
    plot_both("results/cross/both_directions.png")
    print(f"\n{text}\n\nWrote results/cross/tables.md, both_directions.png")


if __name__ == "__main__":
    main()
