"""Trains and evaluates the models of the README's first tables, and writes these tables.

Run it in a folder with the .npy files of both databases and MIT-BIH's folder of WFDB files, with
the names of some groups of runs:

    python tests/reports/measure.py mitbih ptbxl

mitbih          three models, five seeds, each tested on annotated beats, on detected beats and
                on beats whose marks were moved: an hour on two cores
ptbxl           three models, one seed: a quarter of an hour
ptbxl_seeds     three models, three seeds, and ensembles: forty-five minutes
random          MIT-BIH, cnn, three seeds, a random split of beats, which leaks patients
learning_curve  PTB-XL, cnn, some of the training patients

Without a name it makes the first two groups. A run has a folder of its own, results/{run}/, with
all that the scripts write and a run.json of its costs. A run with a run.json is not made again:
stop the script at any time and start it again to go on. Runs of other code are refused.
Writes results/{group}.md and results/learning_curve.png.
"""

import json
import sys
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import crossvalidate
import harness
import numpy as np
import pandas as pd
import runs
import wfdb
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

import model_evaluation
import model_training
import preprocess_mitbih

MODELS = ["cnn", "lstm", "mlp"]
SEEDS = [0, 1, 2, 3, 4]   # PTB-XL has the first three
FRACTIONS = [0.05, 0.2, 0.5]   # of the training patients, in the learning curve
FRACTION_EPOCHS = 24           # over the root of the fraction: a smaller set is seen more often
FOLDER = Path("results")
MOVED = 0.019   # s: largest random shift of a mark
OTHER_BEATS = {"detected": "detected beats", "moved": "marks moved by up to 19 ms"}

# A random split has beats of the test patients in training: learning by heart does no harm.
RANDOM_SPLIT = {"SPLIT": "random", "RECIPES": {
    "mitbih": {"signal_noise": 0.0, "rhythm_noise": 0.0, "epochs": 15}}}

ONE_CALLED = "records with one class, the most probable one called"
TASKS = "macro AUC of the benchmark's tasks"
COSTS = {   # row of a table -> key of run.json, form
    "parameters": ("parameters", "{:,.0f}"),
    "training, CPU s": ("training_cpu_seconds", "{:.0f}"),
    "training, wall s": ("training_seconds", "{:.0f}"),
    "peak memory in training, GB": ("training_peak_gb", "{:.1f}"),
}
MITBIH_FIGURES = {   # row of a table -> place in metrics.json
    "mean F1 of N, S, V": ("all classes", "mean f1 of N, S, V", "value"),
    "its 95% interval over patients, first seed": ("all classes", "mean f1 of N, S, V"),
    "mean F1 of N, S, V without record 232": ("without record 232", "all", "mean f1 of N, S, V"),
    "mean F1, mean over records": ("mean over records", "f1"),
    "accuracy": ("all classes", "accuracy", "value"),
    "S sensitivity": ("by class", "S", "sensitivity"),
    "S positive predictivity": ("by class", "S", "positive predictivity"),
    "S F1": ("by class", "S", "f1"),
    "S F1 without record 232": ("without record 232", "S", "f1"),
    "V sensitivity": ("by class", "V", "sensitivity"),
    "V positive predictivity": ("by class", "V", "positive predictivity"),
    "V F1": ("by class", "V", "f1"),
    "F F1": ("by class", "F", "f1"),
}
EC57_FIGURES = [f"{kind} {figure}" for kind in ("QRS", "VEB", "SVEB")
                for figure in ("sensitivity", "positive predictivity")]
TASK_NAMES = ["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm"]
PTBXL_FIGURES = {
    **{f"macro AUC, {task}": (TASKS, task, "value") for task in TASK_NAMES},
    "macro AUC, superdiagnostic": ("all classes", "macro auc", "value"),   # resnet1d_wang's, too
    **{f"{task}, 95% interval over patients, first seed": (TASKS, task) for task in TASK_NAMES},
    "macro F1": ("all classes", "macro f1", "value"),
    "records with one superclass: accuracy": (ONE_CALLED, "all", "accuracy"),
    "records with one superclass: macro F1": (ONE_CALLED, "all", "macro f1"),
}
FIGURES = {"random": MITBIH_FIGURES, "ptbxl": PTBXL_FIGURES, "ptbxl_seeds": PTBXL_FIGURES}
TITLES = {
    "mitbih": "MIT-BIH, DS1 to DS2",
    "ptbxl": "PTB-XL, the reference benchmark's six tasks, one net for all",
    "ptbxl_seeds": "PTB-XL, the reference benchmark's six tasks, seeds and ensembles",
    "random": "MIT-BIH, random split of beats",
    "learning_curve": "PTB-XL, cnn, some of the training patients",
}


# ---- Runs ----

def all_groups():
    """Dict of group -> run -> settings: constants of model_training, fraction of the patients."""
    groups = {group: {} for group in TITLES}
    for model in MODELS:
        for seed in SEEDS:
            common = {"MODEL": model, "SEED": seed}
            groups["mitbih"][f"mitbih_{model}_{seed}"] = {"DATASET": "mitbih", **common}
        for seed in SEEDS[:3]:
            common = {"MODEL": model, "SEED": seed}
            groups["ptbxl_seeds"][f"ptbxl_{model}_{seed}"] = {"DATASET": "ptbxl", **common}
    groups["ptbxl"] = {name: settings for name, settings in groups["ptbxl_seeds"].items()
                       if settings["SEED"] == SEEDS[0]}
    for seed in SEEDS[:3]:
        common = {"MODEL": "cnn", "SEED": seed}
        groups["random"][f"random_cnn_{seed}"] = {"DATASET": "mitbih", **common, **RANDOM_SPLIT}
    for fraction in FRACTIONS:
        groups["learning_curve"][f"ptbxl_cnn_fraction_{fraction:g}"] = {
            "DATASET": "ptbxl", "MODEL": "cnn", "fraction": fraction,
            "RECIPES": {"ptbxl": {"epochs": round(FRACTION_EPOCHS / fraction ** 0.5)}}}
    groups["learning_curve"][f"ptbxl_cnn_{SEEDS[0]}"] = {
        "DATASET": "ptbxl", "MODEL": "cnn", "SEED": SEEDS[0]}
    return groups


def array_runs():
    """Dict of run -> settings: MIT-BIH's arrays with other beats."""
    return {f"mitbih_{beats}": {"beats": beats} for beats in OTHER_BEATS}


def test_runs():
    """Dict of run -> settings: each model of the first group, tested on other beats."""
    return {f"{trained}_{beats}": {"beats": beats, "trained": trained, "MODEL": run["MODEL"]}
            for trained, run in all_groups()["mitbih"].items() for beats in OTHER_BEATS}


def all_runs():
    """Dict of run -> settings, of all groups."""
    of_groups = {name: settings for group in all_groups().values()
                 for name, settings in group.items()}
    return of_groups | array_runs() | test_runs()


def make_run(name):
    """Makes one run in the current folder, then writes its run.json."""
    code = runs.code_version()
    settings = all_runs()[name]
    if "trained" in settings:
        test_on_other_beats(**settings)
        runs.save_run(code, settings)
    elif "beats" in settings:
        make_arrays(settings["beats"])
        runs.save_run(code, settings)
    else:
        train_and_evaluate(code, settings)


def train_and_evaluate(code, settings):
    """Trains and evaluates one run, then writes its run.json."""
    constants = dict(settings)
    fraction = constants.pop("fraction", 1)
    counts = {}
    split = partial(split_some_patients, model_training.split_rows, fraction, counts)
    with harness.changed(model_training, split_rows=split):
        training = runs.cost_of(harness.run_stage, model_training, SECOND_NET=False,
                                **constants)
    peak = runs.peak_gb()
    choice = {key: constants[key] for key in ("DATASET", "MODEL")}
    evaluation = runs.cost_of(harness.run_stage, model_evaluation, **choice)
    checkpoint = model_training.load_pth("{DATASET}_{MODEL}_model.pth".format(**choice))
    net = model_training.Ensemble(choice["MODEL"], **checkpoint["net_arguments"])
    runs.save_run(
        code, settings, parameters=sum(weights.numel() for weights in net.parameters()),
        training_rows=counts["train"], training_peak_gb=peak,
        training_seconds=training[0], training_cpu_seconds=training[1],
        evaluation_seconds=evaluation[0], evaluation_cpu_seconds=evaluation[1])


def split_some_patients(split_rows, fraction, counts, data, recipe):
    """model_training.split_rows with a random fraction of the training patients.

    Puts the number of rows of each side into counts.
    """
    rows = split_rows(data, recipe)
    if fraction < 1:
        patient = data.patient[rows["train"]]
        patients = np.unique(patient)
        kept = np.random.default_rng(0).permutation(patients)[:round(fraction * len(patients))]
        rows["train"] = rows["train"][np.isin(patient, kept)]
    counts.update({side: len(part) for side, part in rows.items()})
    return rows


# ---- The same models on other beats ----

def make_arrays(beats):
    """Preprocesses MIT-BIH with detected beats, or after all marks have moved."""
    if beats == "detected":
        harness.run_stage(preprocess_mitbih, R_PEAKS="detected", DOWNLOAD=False)
        return
    with TemporaryDirectory() as folder:
        write_moved(folder)
        harness.run_stage(preprocess_mitbih, DATA_DIR=folder, DOWNLOAD=False)


def write_moved(folder):
    """Copies MIT-BIH into a folder, the mark of every beat moved by up to MOVED at random."""
    source = Path(preprocess_mitbih.DATA_DIR).resolve()
    names = preprocess_mitbih.record_names()
    rng = np.random.default_rng(0)
    for name in names:
        for file in (f"{name}.hea", f"{name}.dat"):
            Path(folder, file).symlink_to(source / file)
        header = wfdb.rdheader(str(source / name))
        marks = wfdb.rdann(str(source / name), "atr")
        symbols = np.array(marks.symbol)
        is_beat = preprocess_mitbih.symbol_labels(symbols) >= 0
        shift = rng.uniform(-MOVED, MOVED, len(symbols)) * header.fs * is_beat
        sample = (marks.sample + np.round(shift).astype(int)).clip(0, header.sig_len - 1)
        order = np.argsort(sample, kind="stable")
        wfdb.wrann(name, "atr", sample[order], symbols[order], marks.subtype[order],
                   aux_note=[marks.aux_note[k] for k in order], write_dir=folder)
    Path(folder, "RECORDS").write_text("\n".join(names) + "\n")


def test_on_other_beats(beats, trained, **choice):
    """Evaluates a model, which the folder links to, on the arrays that it links to."""
    def load_moved(data, model):   # a model knows the arrays of its training by their SHA-256
        checkpoint = model_training.load_pth(f"{data.name}_{model}_model.pth")
        data.header.sha256 = checkpoint["header"]["sha256"]
        return model_training.load_checkpoint(data, model)
    load = load_moved if beats == "moved" else model_training.load_checkpoint
    with harness.changed(model_evaluation, load_checkpoint=load):
        harness.run_stage(model_evaluation, DATASET="mitbih", **choice)


def add_other_beats(finished):
    """Makes the runs with other beats, and adds their tables to those of the finished models."""
    database = Path(preprocess_mitbih.DATA_DIR)
    if not database.exists():
        raise SystemExit(f"{database} is not in {Path.cwd()}: put or link it there")
    arrays = array_runs()
    runs.make_runs(__file__, FOLDER, arrays, dict.fromkeys(arrays, [database]))
    tests = test_runs()
    links = {name: [*(FOLDER / f"mitbih_{test['beats']}").glob("mitbih_*.npy"),
                    *(FOLDER / test["trained"]).glob("*_model.pth")]
             for name, test in tests.items()}
    runs.make_runs(__file__, FOLDER, tests, links)
    for name, run in runs.finished_runs(FOLDER, tests).items():
        title = OTHER_BEATS[tests[name]["beats"]]
        finished[tests[name]["trained"]]["tables"] |= {
            f"{title}, {heading}": table for heading, table in run["tables"].items()}


def mean_over_records(folder):
    """Folder of a run -> mean over records of the mean F1 of those of N, S and V that it has."""
    [path] = folder.glob("*_predictions.csv")
    scores = []
    for _, beats in pd.read_csv(path, dtype={"record": str}).groupby("record"):
        matrix = confusion_matrix(beats["true"], beats["called"], labels=list("NSVFQ"))
        scores.append(np.nanmean(crossvalidate.f1_of(matrix)[:3]))
    return np.mean(scores)


def figures_of(group):
    """Name of a group -> dict of row of its table -> place of the figure."""
    if group != "mitbih":
        return FIGURES[group]
    rows = dict(MITBIH_FIGURES)
    for start in ("EC57 from 0:00", "EC57 from 5:00"):
        for figure in EC57_FIGURES[2:]:
            rows[f"{start}, gross: {figure}, %"] = (start, "gross", figure)
    for figure in EC57_FIGURES[2:]:
        rows[f"EC57 from 0:00, mean over records: {figure}, %"] = (
            "EC57 from 0:00", "average", figure)
    every_beat = {"mean F1 of N, S, V": "mean f1 of N, S, V", "S F1": "S f1", "V F1": "V f1"}
    for beats in ("", *OTHER_BEATS.values()):   # a missed beat and a false one count
        heading = f"{beats}, EC57 from 0:00".removeprefix(", ")
        for row, figure in every_beat.items():
            rows[f"{heading}, gross: {row}"] = (heading, "gross", figure)
    for start in ("EC57 from 0:00", "EC57 from 5:00"):
        heading = f"{OTHER_BEATS['detected']}, {start}"
        for figure in EC57_FIGURES:
            rows[f"{heading}, gross: {figure}, %"] = (heading, "gross", figure)
    return rows


# ---- Tables ----

def figure_of(run, place):
    """A run and a place in its tables -> what is there, or None."""
    value = run["tables"]
    for key in place:
        value = value.get(key) if value else None
    return value


def cell(members, place):
    """Runs of several seeds, place of a figure -> mean and spread, or the first one's interval."""
    values = [figure_of(run, place) for run in members]
    if isinstance(values[0], dict):
        return runs.interval_text(values[0])
    if place[-1] in EC57_FIGURES:
        return runs.percent_text(values)
    return runs.spread_text(values)


def table_of(columns, rows):
    """Dict of title -> runs of several seeds, dict of row -> place of a figure -> table."""
    table = {}
    for title, members in columns.items():
        column = {"seeds": len(members) if "settings" in members[0] else ""}   # "": an ensemble
        column |= {row: cell(members, place) for row, place in rows.items()}
        for row, (key, form) in COSTS.items():
            known = [run[key] for run in members if key in run]
            column[row] = form.format(np.mean(known)) if known else ""
        table[title] = column
    return pd.DataFrame(table)


def columns_of(group, finished):
    """Name of a group, its finished runs -> dict of title -> runs of several seeds."""
    columns = {}
    for model in MODELS:
        members = [run for run in finished.values() if run["settings"]["MODEL"] == model]
        if members:
            columns[model] = members
    if group.startswith("ptbxl"):
        peer = runs.finished_runs(FOLDER, {"resnet1d_wang": {}})
        columns |= {title: [run] for title, run in peer.items()}
    if group == "ptbxl_seeds":
        both = columns["cnn"] + columns["lstm"]
        first = [run for run in both if run["settings"]["SEED"] == SEEDS[0]]
        columns[f"cnn + lstm, seed {SEEDS[0]}"] = [ensemble(first)]
        columns["cnn + lstm, all seeds"] = [ensemble(both)]
    return columns


def ensemble(members):
    """Runs of PTB-XL -> a run of the mean of their logits, with thresholds from fold 9."""
    data = preprocess_mitbih.load_dataset("ptbxl")
    mean = dict.fromkeys(("validation", "test"), 0)
    for run in members:
        with chdir(run["folder"]):
            checkpoint, net = model_training.load_checkpoint(data, run["settings"]["MODEL"])
        recipe = checkpoint.recipe
        inputs = model_training.dataset_inputs(data, recipe)
        rows = model_training.split_rows(data, recipe)
        for side, so_far in mean.items():
            logits = model_training.predict(net, *inputs, rows[side], recipe.crop)
            mean[side] = so_far + logits / len(members)
    statements = data.metadata["statements"][rows["validation"]] >= 0
    checkpoint.thresholds = model_training.task_thresholds(
        mean["validation"], statements, recipe, data.header)
    outputs = (checkpoint, net, data, rows["test"], mean["test"])
    together = model_evaluation.score_rows(*outputs, model_evaluation.TASK)
    tables = model_evaluation.make_tables(together) | model_evaluation.task_tables(outputs)
    return json.loads(model_evaluation.to_json({"tables": tables}))


def learning_curve(finished):
    """Finished runs of the group -> table, after drawing it to results/learning_curve.png."""
    place = ("all classes", "macro auc")
    table = pd.DataFrame({
        "rows": [run["training_rows"] for run in finished.values()],
        "auc": [figure_of(run, place)["value"] for run in finished.values()],
        "macro AUC": [runs.interval_text(figure_of(run, place)) for run in finished.values()],
        "training, CPU s": [f"{run['training_cpu_seconds']:.0f}" for run in finished.values()],
    }).sort_values("rows")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.semilogx(table["rows"], table["auc"], "k-o", label="cnn of this repository")
    axis.axhline(0.930, color="0.5", linestyle="--",
                 label="resnet1d_wang, all records (published)")
    axis.set(xlabel="training records of PTB-XL", ylabel="macro AUC, fold 10")
    axis.set_xticks(table["rows"], [f"{rows:,}" for rows in table["rows"]])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    title = [TITLES["learning_curve"], *runs.warnings_in(finished.values())]
    axis.set_title("\n".join(title), fontsize=10)
    figure.savefig(FOLDER / "learning_curve.png", dpi=150)
    table.index = pd.Index([f"{rows:,}" for rows in table["rows"]], name="training records")
    return table.drop(columns=["rows", "auc"])


# ---- Main ----

def main():
    if sys.argv[1:2] == ["--run"]:
        make_run(sys.argv[2])
        return
    groups = all_groups()
    for group in sys.argv[1:] or ["mitbih", "ptbxl"]:
        preprocess_mitbih.check_choice("group", group, groups)
        arrays = list(Path(".").glob("*.npy"))
        runs.make_runs(__file__, FOLDER, groups[group], dict.fromkeys(groups[group], arrays))
        finished = runs.finished_runs(FOLDER, groups[group])
        if group == "mitbih":
            add_other_beats(finished)
        if group in ("mitbih", "random"):
            for run in finished.values():
                run["tables"]["mean over records"] = {"f1": mean_over_records(run["folder"])}
        if group == "learning_curve":
            table = learning_curve(finished)
        else:
            table = table_of(columns_of(group, finished), figures_of(group))
        runs.write_report(FOLDER / f"{group}.md", {TITLES[group]: runs.markdown(table)},
                          finished.values())


if __name__ == "__main__":
    main()
