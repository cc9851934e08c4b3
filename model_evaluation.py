"""Evaluates a trained model on its test rows: figures with intervals, and what the model looks at.

Reads   {dataset}_{model}_model.pth        from model_training.py
        {dataset}_*.npy                    all that the dataset's preprocess script writes
Writes  {dataset}_{model}_metrics.json     every table that is printed, with the protocol
        {dataset}_{model}_predictions.csv  one row a test example: truth, called, probabilities
        {dataset}_{model}_annotations/     MIT-BIH: the called beats of each test record, for
                                           bxb, LightWAVE and wfdb.rdann: {record}.{model}
        {dataset}_{model}_confusion.png    confusion matrix
        {dataset}_{model}_curves.png       ROC and precision-recall curves
        {dataset}_{model}_explanation.png  a test ECG of each class, with its attribution
        {dataset}_{model}_averages.png     mean attribution of each class, and the deletion test
        {dataset}_{model}_mistakes.png     the test ECGs with the largest errors
Takes   15 s on two cores, PTB-XL a minute.
"""

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import wfdb
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy.ndimage import uniform_filter1d
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay, precision_recall_curve

from model_training import (
    class_logits,
    crop_logits,
    dataset_inputs,
    load_checkpoint,
    predict,
    probabilities,
    save_figure,
    split_rows,
    task_members,
    warnings_of,
)
from preprocess_mitbih import (
    check_choice,
    in_flutter,
    load_dataset,
    new_files,
    pair_beats,
)

# data and model: everything else is decided by the checkpoint
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
TASK = "superdiagnostic"  # PTB-XL: "all", "diagnostic", "subdiagnostic", "superdiagnostic",
                          # "form" or "rhythm", as in the reference benchmark; all six have a table

# interpretation
STEPS = 32                # of the integrated gradients
AVERAGED = 20             # correct examples of each class that are explained
DELETED = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]   # parts of the time, in the deletion test


# ---- Score rows ----

class Scored(NamedTuple):
    """Rows of a dataset with a label, and what a model says of them."""
    title: str                # dataset, model, split and warnings, for pictures and pages
    data: SimpleNamespace     # from load_dataset
    net: torch.nn.Module
    recipe: SimpleNamespace   # settings of the training
    names: list               # class names
    members: np.ndarray       # PTB-XL: task_members
    rows: np.ndarray          # (n,) rows of the dataset
    truth: np.ndarray         # (n, classes) bool
    called: np.ndarray        # (n, classes) bool
    probability: np.ndarray   # (n, classes) float64
    beats: pd.DataFrame       # MIT-BIH: `called_beats`, of rows without a label, too
    inputs: list = None       # tensors (n, channels, samples), (n, features)


def predict_test_rows(dataset, model):
    """Names -> checkpoint, net, dataset, (n,) test rows by the checkpoint's split, logits; inputs.

    The inputs are signals and features of all rows of the dataset.
    """
    data = load_dataset(dataset)
    checkpoint, net = load_checkpoint(data, model)
    recipe = checkpoint.recipe
    rows = split_rows(data, recipe)["test"]
    if not len(rows):
        raise SystemExit(f"{dataset}_signals.npy has no test rows with a label: preprocess the "
                         "complete dataset, or train with another SPLIT")
    if not data.is_ptbxl and recipe.split != "random":
        rows = np.flatnonzero(np.isin(data.record, recipe.sides["test"]))   # all their beats
    inputs = dataset_inputs(data, recipe)
    logits = predict(net, *inputs, rows, recipe.crop)
    return (checkpoint, net, data, rows, logits), inputs


def score_rows(checkpoint, net, data, rows, logits, task=None):
    """Checkpoint, net, dataset, (n,) rows and their logits, task -> Scored, without inputs."""
    recipe = checkpoint.recipe
    members = beats = None
    if data.is_ptbxl:
        check_choice("TASK", task, data.header.tasks)
        names = list(data.header.tasks[task])
        members = task_members(data.header, task)
        truth = (data.metadata["statements"][rows] >= 0) @ members
        known = truth.any(axis=1)
        probability = probabilities(logits, recipe, members)
        called = probability >= np.array(checkpoint.thresholds[task])
        title = f"{data.name}, {task} statements"
    else:
        names = recipe.classes
        truth = data.labels[rows, None] == np.arange(len(names))
        known = data.labels[rows] >= 0
        probability = probabilities(logits, recipe)
        called = most_probable(probability)
        title = f"{data.name}, {data.header.r_peaks} beats"
        beats = called_beats(data, rows, probability)
    if not known.any():
        raise SystemExit(f"no test row has a label of {title}: preprocess the complete dataset")
    title += f", {checkpoint.model}, {recipe.split} split, {known.sum():,} rows"
    title = ". ".join([title, *warnings_of(data.header, recipe)])
    return Scored(title, data, net, recipe, names, members, rows[known], truth[known],
                  called[known], probability[known], beats)


def most_probable(probability):
    """(n, k) probabilities -> (n, k) bool, true for the most probable class of each row."""
    return probability.argmax(axis=1)[:, None] == np.arange(probability.shape[1])


# ---- Figures: one weighted table ----

def figures(scored, weights):
    """Scored, (b, n) weights -> dict of (class, figure) or ("all", figure) -> (b,) values.

    Weights of one give the figures themselves, weights of 0 and 1 those of a group, and how
    often each patient was drawn those of a resample. NaN where a figure is undefined.
    """
    truth = scored.truth
    count = weights.sum(axis=1)
    support = weights @ truth
    hits = weights @ (truth & scored.called)
    calls = weights @ scored.called
    absent = np.where(support > 0, 0, np.nan)
    f1 = ratio(2 * hits, support + calls) + absent
    pairs = zip(truth.T, scored.probability.T)
    auc = np.transpose([area_under_curve(*pair, weights) for pair in pairs])
    by_class = {
        "n": support,
        "sensitivity": ratio(hits, support),
        "positive predictivity": ratio(hits, calls) + absent,
        "f1": f1,
        "auc": auc,
    }
    correct = weights @ (truth == scored.called).all(axis=1)
    overall = {
        "n": count,
        "accuracy": ratio(correct, count),
        "macro f1": pd.DataFrame(f1).mean(axis=1),   # of the classes that have one
        "macro auc": pd.DataFrame(auc).mean(axis=1),
    }
    if scored.names[:3] == ["N", "S", "V"]:
        overall["mean f1 of N, S, V"] = pd.DataFrame(f1[:, :3]).mean(axis=1)
    table = {("all", figure): values for figure, values in overall.items()}
    for k, name in enumerate(scored.names):
        table |= {(name, figure): values[:, k] for figure, values in by_class.items()}
    return table


def figures_of_group(scored, group):
    """Scored, (n,) bool -> table of the group's figures: rows "all" and the classes."""
    table = pd.DataFrame(figures(scored, group[None].astype(float)))
    return table.iloc[0].unstack(sort=False)


def area_under_curve(truth, scores, weights):
    """(n,) truth and scores, (b, n) weights -> (b,) areas under the ROC curve, or NaN.

    Pairs of equal scores count half.
    """
    order = np.argsort(scores, kind="stable")
    groups = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))   # starts of equal scores
    weights = weights[:, order]
    positives = np.add.reduceat(weights * truth[order], groups, axis=1)
    negatives = np.add.reduceat(weights * ~truth[order], groups, axis=1)
    below = negatives.cumsum(axis=1) - negatives / 2
    pairs = (positives * below).sum(axis=1)
    return ratio(pairs, positives.sum(axis=1) * negatives.sum(axis=1))


def ratio(part, whole):
    """Arrays -> part / whole, NaN where there is nothing to divide by."""
    nothing = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=nothing, where=whole > 0)


def resample_patients(patients, figures_of, seed=0, resamples=1000):
    """(n,) patient of each row, function of (b, n) weights -> (1 + resamples, figures) table.

    Row 0 has the figures, the others those of resampled patients. A patient is drawn with all
    rows, because these are not independent.
    """
    _, number = np.unique(patients, return_inverse=True)
    count = number.max() + 1
    drawn = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=resamples)
    drawn = np.concatenate([np.ones((1, count)), drawn])
    parts = np.array_split(drawn, len(drawn) * len(number) // 4_000_000 + 1)
    tables = [pd.DataFrame(figures_of(part[:, number])) for part in parts]
    return pd.concat(tables, ignore_index=True)


def summarise(resampled):
    """Table of resample_patients -> value, low, high of each figure: the middle 95%.

    No interval where fewer than half of the resamples have the figure.
    """
    drawn = resampled.iloc[1:]
    limits = drawn.quantile([0.025, 0.975]).T.where(drawn.notna().mean() >= 0.5, axis=0)
    return pd.DataFrame({
        "value": resampled.iloc[0],
        "low": limits[0.025],
        "high": limits[0.975],
    })


def summarise_figures(scored):
    """Scored -> table of summarise, by class and over all."""
    return summarise(
        resample_patients(scored.data.patient[scored.rows], partial(figures, scored)))


# ---- Beat by beat, as in ANSI/AAMI EC57 ----

def called_beats(data, rows, probability):
    """Dataset, (n,) rows of beats, probabilities -> table of record, sample, symbol of each call.

    The samples are the record's own, as in its annotation file.
    """
    header = data.header
    rates = pd.DataFrame(header.records)["rate"].to_numpy()[data.metadata["record"][rows]]
    symbols = np.array([*header.symbols, "not a beat"])
    beats = pd.DataFrame({
        "record": data.record[rows],
        "sample": np.round(data.metadata["sample"][rows] * (rates / header.sampling_rate)),
        "symbol": symbols[probability.argmax(axis=1)]}, rows)
    return beats[beats["symbol"] != "not a beat"].astype({"sample": int})


def write_annotations(beats, folder, extension):
    """Table of called_beats -> a WFDB annotation file of each record."""
    for record, called in beats.groupby("record"):
        path = Path(folder, f"{record}.{extension}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_files(path) as (temporary,), TemporaryDirectory() as scratch:
            wfdb.wrann("record", "beats", called["sample"].to_numpy(),
                       called["symbol"].to_numpy(), write_dir=scratch)
            temporary.write_bytes(Path(scratch, "record.beats").read_bytes())


def beat_counts(data, beats, records, start):
    """Dataset, table of called_beats, record names, start in s -> table of counts by record.

    Columns: class of the reference and of the call: "Vn"; "On": no beat there; "Vo": missed. The
    counts of `bxb` of the WFDB software, for files in these classes: e j n are N, not S.
    """
    letters = np.array([*data.header.symbols, "O"])   # -1 takes the last one
    counts = {}
    for record in records:
        called = beats[beats["record"] == record]
        marks = data.annotations[data.annotations["record"] == record]
        reference = marks[(marks["label"] >= 0) & ~in_flutter(marks, marks["sample"])]
        pairs = pair_beats(reference["sample"], called["sample"], marks["rate"].iloc[0], start)
        true = np.append(letters[reference["label"]], "O")[pairs[:, 0]]
        call = np.append(called["symbol"], "O")[pairs[:, 1]]
        sample = np.append(called["sample"], 0)[pairs[:, 1]]
        counted = (true != "O") | ~in_flutter(marks, sample)
        cells = pd.Series(true[counted]) + pd.Series(call[counted]).str.lower()
        counts[record] = cells.value_counts()
    cells = [reference + call for reference in "NSVFQO" for call in "nsvfqo"]
    return pd.DataFrame(counts).T.reindex(columns=cells).fillna(0).astype(int)


def ec57_table(counts):
    """Table of beat_counts -> percentages by record, gross, and average of the records with any.

    A fusion or unclassifiable beat called V is no false VEB, nor is an unclassifiable one called S
    a false SVEB. A fusion beat called S is one by record, as in `bxb`, but neither gross nor on
    average, as in `sumstats`. F1 counts every beat.
    """
    gross = counts.sum().to_frame("gross").T
    average = ec57_rows(counts, "NVO").mean().to_frame("average").T
    return pd.concat([ec57_rows(counts, "NVFO"), ec57_rows(gross, "NVO"), average])


def ec57_rows(counts, not_sveb):
    """Table of beat_counts, classes whose beats called S are false -> its rows of ec57_table."""
    def total(references, calls):
        return counts[[reference + call for reference in references for call in calls]].sum(axis=1)
    table = {"beats": total("NSVFQ", "nsvfqo")}
    for kind, true, false in [
        ("QRS", "NSVFQ", "O"),
        ("VEB", "V", "NSO"),
        ("SVEB", "S", not_sveb),
    ]:
        call = true.lower()
        hits = total(true, call)
        errors = total(false, call)
        rejected = total(set("NSVFQO") - set(true), set("nsvfq") - set(call))
        table[f"{kind} sensitivity"] = 100 * hits / total(true, "nsvfqo")
        table[f"{kind} positive predictivity"] = 100 * hits / (hits + errors)
        table[f"{kind} false positive rate"] = 100 * errors / (errors + rejected)
    table = pd.DataFrame(table).drop(columns="QRS false positive rate")
    for name in "NSV":
        hits = total(name, name.lower())
        table[f"{name} f1"] = 2 * hits / (total(name, "nsvfqo") + total("NSVFQO", name.lower()))
    table["mean f1 of N, S, V"] = table[["N f1", "S f1", "V f1"]].mean(axis=1)
    return table


# ---- What the model looks at ----

def largest_classes(scored):
    """Scored -> the eight classes with most rows: pictures have no room for more."""
    return np.sort(np.argsort(-scored.truth.sum(axis=0), kind="stable")[:8])


def choose_examples(scored, number):
    """Scored -> (m,) rows among the scored ones and the class to explain of each.

    Of each class up to `number` correct rows around the median confidence.
    """
    rows, classes = [], []
    for k in largest_classes(scored):
        correct = np.flatnonzero(scored.truth[:, k] & scored.called[:, k])
        ranked = correct[np.argsort(scored.probability[correct, k])]
        first = max(0, len(ranked) - number) // 2
        chosen = ranked[first:first + number]
        rows.extend(chosen)
        classes.extend([k] * len(chosen))
    if not rows:
        raise SystemExit(f"{scored.title}: not one row is called correctly. Train longer")
    return np.array(rows), np.array(classes)


def integrated_gradients(scored, rows, classes):
    """(m,) rows, class of each -> (m, channels, samples).

    From the training mean to the signal; they add up to the difference of the logits
    (Sundararajan et al. 2017).
    """
    signals, features = (values[rows] for values in scored.inputs)
    classes = torch.from_numpy(classes)[:, None]
    base = scored.net.normalise_signals.mean
    total = torch.zeros_like(signals)
    for step in range(STEPS):
        x = (base + (step + 0.5) / STEPS * (signals - base)).requires_grad_()
        logits = crop_logits(scored.net, x, features, scored.recipe.crop)
        logits = class_logits(logits, scored.recipe, scored.members)
        logits.gather(1, classes).sum().backward()
        total += x.grad
    return total / STEPS * (signals - base)


def by_lead(scored, attribution):
    """(m, channels, samples) -> (m, leads, samples) sizes, smoothed over 0.02 s.

    The channels of a lead (the relative beat, its difference) add up: its voltage moves both.
    """
    leads = len(scored.recipe.leads)
    size = attribution.unflatten(1, (-1, leads)).sum(dim=1).abs()
    return uniform_filter1d(size.numpy(), round(0.02 * scored.data.header.sampling_rate), axis=2)


def deletion_test(scored, rows, classes, attribution, rng=None):
    """(m,) rows, class of each, (m, leads, samples) attribution -> mean probability of the class.

    The samples with the largest attribution, DELETED of the time, become the training mean.
    With rng, the attributions are moved to random places first. They keep their form and lose
    their meaning; an attribution is worth something where it does better.
    """
    signals, features = (values[rows] for values in scored.inputs)
    samples = signals.shape[2]
    weight = attribution.sum(axis=1)
    if rng:
        weight = np.stack([np.roll(row, rng.integers(samples)) for row in weight])
    place = np.argsort(np.argsort(-weight))   # 0: the largest of its row
    every = np.arange(len(rows))
    curve = []
    for part in DELETED:
        deleted = torch.from_numpy(place < round(part * samples))[:, None]
        x = torch.where(deleted, scored.net.normalise_signals.mean, signals)
        logits = predict(scored.net, x, features, every, scored.recipe.crop)
        probability = probabilities(logits, scored.recipe, scored.members)
        curve.append(probability[every, classes].mean())
    return curve


def explain(scored, rows, classes):
    """Rows, class of each -> (m, leads, samples) attribution, table of the deletion test."""
    attribution = by_lead(scored, integrated_gradients(scored, rows, classes))
    test = partial(deletion_test, scored, rows, classes, attribution)
    deletion = {"at its places": test(), "at random places": test(np.random.default_rng(0))}
    return attribution, pd.DataFrame(deletion, index=DELETED)


# ---- Pictures ----

STYLES = [   # of classes; pictures are read in greyscale, too
    {"linestyle": line, "color": shade}
    for shade in ("black", "0.5") for line in ("-", "--", ":", "-.")]


def plot_confusion(scored, path):
    """PNG: percentages of each true class by the most probable one, of rows with one class."""
    size = 4 + 0.6 * len(scored.names)
    figure = Figure(figsize=(size, size - 1), layout="constrained")
    single = scored.truth.sum(axis=1) == 1
    display = ConfusionMatrixDisplay.from_predictions(
        scored.truth[single].argmax(axis=1),
        scored.probability[single].argmax(axis=1),
        labels=range(len(scored.names)),
        display_labels=scored.names,
        normalize="true",
        values_format=".1%",
        ax=figure.subplots())
    display.ax_.set(xlabel="most probable class", ylabel="true class")
    save_figure(figure, scored.title, path)


def plot_curves(scored, path):
    """PNG: ROC and precision-recall curve of each class."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, style in zip(largest_classes(scored), STYLES):
        truth, p = scored.truth[:, k], scored.probability[:, k]
        if truth.min() < truth.max():
            RocCurveDisplay.from_predictions(
                truth, p, ax=left, name=scored.names[k], curve_kwargs=style)
            precision, recall, _ = precision_recall_curve(truth, p)
            right.plot(recall, precision, **style)
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    right.set(xlabel="sensitivity", ylabel="positive predictivity")
    save_figure(figure, scored.title, path)


def draw_ecg(axis, rate, traces):
    """Draws traces on ECG paper: squares of 0.04 s and 0.1 mV, as at 25 mm/s and 10 mm/mV.

    traces: of each its start in s, height in mV, (t,) voltage in mV at `rate` Hz, (t,) attribution
    from 0 to 1, which is drawn behind it, and caption.
    """
    for start, height, voltage, weight, caption in traces:
        level = height + voltage - np.median(voltage)
        points = np.column_stack([start + np.arange(len(voltage)) / rate, level])
        band = LineCollection(
            np.stack([points[:-1], points[1:]], axis=1),
            array=weight[:-1],
            cmap="Blues",
            linewidths=6,
            clim=(0, 1))
        axis.add_collection(band)
        axis.plot(*points.T, color="black", linewidth=0.8)
        axis.text(start, level.max() + 0.1, caption, fontsize=6)
    for ticks, small, large in ((axis.xaxis, 0.04, 0.2), (axis.yaxis, 0.1, 0.5)):
        ticks.set_major_locator(MultipleLocator(large))
        ticks.set_minor_locator(MultipleLocator(small))
        ticks.grid(which="both", color="#e8b5b5", linewidth=0.4)
    axis.update_datalim([(0, height - 2), (5, 2)])   # at least
    axis.margins(0)
    axis.set(aspect=0.4, axisbelow=True, xlabel="25 mm/s, 10 mm/mV")
    axis.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    return band


def plot_ecgs(scored, rows, weights, subtitle, path):
    """Rows on ECG paper with (m, leads, samples) attribution -> PNG.

    Five beats stand side by side, of the model's first lead; records one below the other, with
    2.5 s of each lead and 10 s of lead II.
    """
    header = scored.data.header
    rate = header.sampling_rate
    columns = [header.leads.index(lead) for lead in scored.recipe.leads]
    lines = []
    for place, (row, weight) in enumerate(zip(rows, weights)):
        voltage = scored.data.signals[scored.rows[row]]
        every = np.zeros_like(voltage)
        first = (voltage.shape[1] - weight.shape[1]) // 2   # the model ignores the ends of a beat
        every[columns, first:first + weight.shape[1]] = weight / max(weight.max(), 1e-12)
        caption = caption_of(scored, row)
        if place % 5 == 0 or scored.data.is_ptbxl:
            lines.append([])
        if not scored.data.is_ptbxl:
            start = place % 5 * voltage.shape[1] / rate
            lines[-1].append((start, 0, voltage[columns[0]], every[columns[0]], caption))
            continue
        for lead, name in enumerate(header.leads):
            start = lead // 3 * 2.5
            part = slice(round(start * rate), round((start + 2.5) * rate))
            lines[-1].append((start, -4 * (lead % 3), voltage[lead, part], every[lead, part], name))
        long = min(1, len(voltage) - 1)   # lead II, or the only one
        lines[-1].append((0, -12, voltage[long], every[long], f"{header.leads[long]}    {caption}"))
    figure = Figure(figsize=(11, (7 if scored.data.is_ptbxl else 4) * len(lines)),
                    layout="constrained")
    for axis, traces in zip(figure.subplots(len(lines), 1, squeeze=False).ravel(), lines):
        band = draw_ecg(axis, rate, traces)
    figure.colorbar(band, ax=figure.axes, shrink=0.6, label="attribution")
    save_figure(figure, f"{scored.title}. {subtitle}", path)


def caption_of(scored, row):
    """Row among the scored ones -> where it is from, its classes, the most probable one."""
    names = np.array(scored.names)
    data = scored.data
    place = f"record {data.record[scored.rows[row]]}"
    if not data.is_ptbxl:
        sample = data.metadata["sample"][scored.rows[row]]
        place += f", {sample / data.header.sampling_rate:.1f} s"
    truth = "+".join(names[scored.truth[row]])
    p = scored.probability[row]
    return f"{place}\ntrue {truth}, most probable {names[p.argmax()]} ({p.max():.2f})"


def plot_averages(scored, classes, attribution, deletion, path):
    """Mean attribution of each class, and the deletion test -> PNG.

    Beats: over time. Records: by lead, because their beats are not aligned.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    if scored.data.is_ptbxl:
        mean = pd.DataFrame(attribution.mean(axis=2), columns=scored.recipe.leads)
    else:
        mean = pd.DataFrame(attribution.mean(axis=1))
        mean.columns = (mean.columns - len(mean.columns) // 2) / scored.data.header.sampling_rate
        left.set_xlabel("time from the R peak (s)")
    mean = mean.groupby(np.array(scored.names)[classes]).mean()
    mean.div(mean.max(axis=1), axis=0).T.plot(
        ax=left, ylabel="mean attribution (largest: 1)")
    deletion.plot(
        ax=right,
        color=["black", "0.6"])
    right.set(
        xlabel="part of the time deleted",
        ylabel="mean probability of the class",
        ylim=(0, 1),
        title="deletion test: black below grey is better")
    save_figure(figure, scored.title, path)


# ---- Report ----

FORMAT = {   # of printed tables
    "float_format": lambda value: f"{value:.3f}".removesuffix(".000"), "na_rep": "n/a"}


def predictions_table(scored):
    """Scored -> table of one row a test example: identifiers, truth, called, probabilities."""
    names = np.array(scored.names)
    fields = ["fold", "age", "sex"] if scored.data.is_ptbxl else ["sample", "symbol"]
    table = pd.DataFrame(scored.data.metadata[scored.rows][fields])
    table.insert(0, "record", scored.data.record[scored.rows])
    table.insert(1, "patient", scored.data.patient[scored.rows])
    table["true"] = ["+".join(names[row]) for row in scored.truth]
    table["called"] = ["+".join(names[row]) for row in scored.called]
    table[[f"{name} true" for name in names]] = scored.truth.astype(int)
    table[[f"{name} probability" for name in names]] = scored.probability
    return table


def print_tables(tables):
    """Prints a dict of heading -> table."""
    for heading, table in tables.items():
        if len(table.columns) < 20:   # wider ones are in the files
            print(f"\n{heading}\n{table.to_string(**FORMAT)}")


def to_json(report):
    """Dict with tables -> JSON text; NaN becomes null."""
    return json.dumps(report, indent=1, default=lambda table: json.loads(
        table.to_json(orient="index", double_precision=15)))


def make_tables(scored):
    """Scored -> dict of heading -> table."""
    record = scored.data.record[scored.rows]
    summary = summarise_figures(scored)
    by_class = summary.loc[scored.names]
    tables = {
        "all classes": summary.loc["all"],
        "by class": by_class["value"].unstack(sort=False),
        "by class, 95% interval from": by_class["low"].unstack(sort=False),
        "by class, 95% interval to": by_class["high"].unstack(sort=False),
    }
    if not scored.data.is_ptbxl:
        if "232" in record:   # 75% of DS2's S beats
            tables["without record 232"] = figures_of_group(scored, record != "232")
        aami = scored.recipe.split != "random" and scored.data.header.symbols == [*"NSVFQ"]
        for start in (0, 5) if aami else ():
            counts = beat_counts(scored.data, scored.beats, np.unique(record), 60 * start)
            tables[f"EC57 from {start}:00"] = ec57_table(counts)
            tables[f"beats counted from {start}:00, reference and call"] = counts
    else:
        single = scored.truth.sum(axis=1) == 1
        one_called = scored._replace(called=most_probable(scored.probability))
        tables["records with one class, the most probable one called"] = (
            figures_of_group(one_called, single))
    return tables


def task_tables(outputs):
    """What predict_test_rows gives of PTB-XL -> dict of heading -> table, of all six tasks."""
    tasks = {}
    for task in outputs[2].header.tasks:
        scored = score_rows(*outputs, task)
        summary = summarise_figures(scored)
        tasks[task] = {"records": len(scored.rows), "classes": len(scored.names),
                       **summary.loc[("all", "macro auc")]}
        if task == "all":
            statements = summary.xs("auc", level=1).sort_values("value").dropna(subset="value")
    return {
        "macro AUC of the benchmark's tasks": pd.DataFrame(tasks).T,
        "AUC of every statement": statements.T,   # too wide for print_tables
        "statements with the highest AUC": statements[:-6:-1],
        "statements with the lowest AUC": statements[:5],
    }


# ---- Main ----

def draw_pictures(scored, rows, classes, attribution, deletion, paths):
    """Draws the five pictures; rows, class of each and attribution: what was explained."""
    confusion, curves, explanation, averages, mistakes = paths
    plot_confusion(scored, confusion)
    plot_curves(scored, curves)
    numbers = pd.Series(range(len(classes)))
    examples = numbers.groupby(classes).quantile(interpolation="higher")   # the median of each
    plot_ecgs(scored, rows[examples], attribution[examples], "Integrated gradients",
              explanation)
    plot_averages(scored, classes, attribution, deletion, averages)
    error = np.abs(scored.truth - scored.probability).max(axis=1)
    worst = np.argsort(-error)[:4 if scored.data.is_ptbxl else 15]
    plot_ecgs(scored, worst, np.zeros((len(worst), 1, 1)), "The largest errors", mistakes)


def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    outputs, inputs = predict_test_rows(DATASET, MODEL)
    scored = score_rows(*outputs, TASK)
    scored = scored._replace(inputs=[values[scored.rows] for values in inputs])
    tables = make_tables(scored)
    if scored.data.is_ptbxl:
        tables |= task_tables(outputs)
    rows, classes = choose_examples(scored, AVERAGED)
    attribution, deletion = explain(scored, rows, classes)
    tables["deletion test"] = deletion

    parts = ["confusion.png", "curves.png", "explanation.png", "averages.png",
             "mistakes.png", "metrics.json", "predictions.csv"]
    with new_files(*(f"{DATASET}_{MODEL}_{part}" for part in parts)) as paths:
        *pictures, metrics, predictions = paths
        draw_pictures(scored, rows, classes, attribution, deletion, pictures)
        metrics.write_text(to_json({
            "title": scored.title,
            "recipe": vars(scored.recipe),
            "header": vars(scored.data.header),
            "tables": tables,
        }))
        predictions_table(scored).to_csv(predictions, index=False, float_format="%.9g")

    if not scored.data.is_ptbxl and scored.recipe.split != "random":
        write_annotations(scored.beats, f"{DATASET}_{MODEL}_annotations", MODEL)
    print(scored.title)
    print_tables(tables)
    print(f"Wrote {DATASET}_{MODEL}_ {', '.join(parts)}")


if __name__ == "__main__":
    main()
