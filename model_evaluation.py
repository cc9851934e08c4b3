"""Evaluates a trained model on its test rows: figures with intervals, and what the model looks at.

Reads   {dataset}_{model}_model.pth        from model_training.py
        {dataset}_signals.npy, _labels.npy, _metadata.npy, _header.npy   from a preprocess script
Writes  {dataset}_{model}_metrics.json     every table that is printed, with the protocol
        {dataset}_{model}_predictions.csv  one row a test example: truth, called, probabilities
        {dataset}_{model}_report.html      tables and pictures on one page
        {dataset}_{model}_confusion.png    confusion matrix
        {dataset}_{model}_curves.png       ROC and precision-recall curves
        {dataset}_{model}_calibration.png  reliability before and after temperature scaling
        {dataset}_{model}_explanation.png  a test ECG of each class, with its attribution
        {dataset}_{model}_averages.png     mean attribution of each class, and the deletion test
        {dataset}_{model}_mistakes.png     the test ECGs with the largest errors
Takes   15 s on two cores.
"""

import base64
import json
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy.ndimage import uniform_filter1d
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, precision_recall_curve, roc_curve
from torch.nn import functional as F

from model_training import (
    crop_logits,
    crop_starts,
    dataset_inputs,
    load_checkpoint,
    predict,
    probabilities,
    split_rows,
    warnings_of,
)
from preprocess_mitbih import check_choice, load_dataset, new_files

# data and model: everything else is decided by the checkpoint
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
COMPARE_WITH = None       # None, or another model of the same dataset: "mlp"

# interpretation
METHODS = ["integrated_gradients", "gradient", "grad_cam"]   # the first one is drawn
AVERAGED = {"mitbih": 100, "ptbxl": 12}   # correct examples of each class that are explained
DELETED = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]   # parts of the time, in the deletion test


# ---- Score rows ----

class Scored(NamedTuple):
    """Rows of a dataset, and what a model says of them."""
    title: str                # dataset, model, split and warnings, for pictures and pages
    data: SimpleNamespace     # from load_dataset
    net: torch.nn.Module
    recipe: SimpleNamespace   # settings of the training
    rows: np.ndarray          # (n,) rows of the dataset
    truth: np.ndarray         # (n, classes) bool
    called: np.ndarray        # (n, classes) bool
    probability: np.ndarray   # (n, classes) float64
    calibrated: np.ndarray    # (n, classes) float64, with the checkpoint's temperature
    signals: torch.Tensor     # (n, channels, samples) inputs
    features: torch.Tensor    # (n, features) inputs

    @property
    def names(self):
        """Class names."""
        return self.data.header.class_names


def score_test_rows(dataset, model):
    """Names -> Scored of the test rows, by the checkpoint's own split."""
    data = load_dataset(dataset)
    checkpoint, net = load_checkpoint(data, model)
    rows = split_rows(data, checkpoint.recipe)["test"]
    if not len(rows):
        raise SystemExit(f"{dataset}_signals.npy has no test rows with a label: preprocess the "
                         "complete dataset, or train with another SPLIT")
    inputs = dataset_inputs(data, checkpoint.recipe)
    return score_rows(checkpoint, net, data, inputs, rows)


def score_rows(checkpoint, net, data, inputs, rows):
    """Checkpoint, net, dataset, inputs of all its rows, (n,) rows -> Scored."""
    recipe = checkpoint.recipe
    classes = len(data.header.class_names)
    signals, features = (values[torch.from_numpy(rows)] for values in inputs)
    logits = predict(net, signals, features, np.arange(len(rows)), recipe.crop)
    probability = probabilities(logits, recipe, classes)
    calibrated = probabilities(logits / checkpoint.temperature, recipe, classes)
    if recipe.task == "multilabel":
        truth = data.metadata["superclasses"][rows] == 1
        called = probability >= np.array(checkpoint.thresholds)
    else:
        truth = data.labels[rows, None] == np.arange(classes)
        called = most_probable(probability)
    title = f"{data.name} {checkpoint.model}, {recipe.split} split, {len(rows):,} rows"
    title = ". ".join([title, *warnings_of(data.header, recipe)])
    return Scored(
        title, data, net, recipe, rows, truth, called,
        probability, calibrated, signals, features)


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
    ranking = [rank_figures(*pair, weights) for pair in pairs]
    auc, average_precision = np.transpose(ranking, (1, 2, 0))
    by_class = {
        "n": support,
        "sensitivity": ratio(hits, support),
        "positive predictivity": ratio(hits, calls) + absent,
        "f1": f1,
        "auc": auc,
        "average precision": average_precision,
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


def rank_figures(truth, scores, weights):
    """(n,) truth and scores, (b, n) weights -> (b,) AUC and average precision, or NaN.

    Pairs of equal scores count half in the AUC.
    """
    order = np.argsort(-scores, kind="stable")
    groups = np.flatnonzero(np.diff(scores[order], prepend=np.inf))   # starts of equal scores
    weights = weights[:, order]
    positives = np.add.reduceat(weights * truth[order], groups, axis=1)
    negatives = np.add.reduceat(weights * ~truth[order], groups, axis=1)
    above = positives.cumsum(axis=1)
    false = negatives.cumsum(axis=1)
    pairs = (positives * (false[:, -1:] - false + negatives / 2)).sum(axis=1)
    precision = np.nansum(positives * ratio(above, above + false), axis=1)
    return ratio(pairs, above[:, -1] * false[:, -1]), ratio(precision, above[:, -1])


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
    chance = np.full(count, 1 / count)
    drawn = np.random.default_rng(seed).multinomial(count, chance, size=resamples)
    drawn = np.concatenate([np.ones((1, count)), drawn])
    parts = np.array_split(drawn, len(drawn) * len(number) // 4_000_000 + 1)
    tables = [pd.DataFrame(figures_of(part[:, number])) for part in parts]
    return pd.concat(tables, ignore_index=True)


def summarise(resampled):
    """Table of resample_patients -> value, low, high of each figure: the middle 95%.

    No interval where fewer than half of the resamples have the figure.
    """
    drawn = resampled.iloc[1:]
    limits = drawn.quantile([0.025, 0.975]).T
    limits = limits.where(drawn.notna().mean() >= 0.5, axis=0)
    return pd.DataFrame({
        "value": resampled.iloc[0],
        "low": limits[0.025],
        "high": limits[0.975],
    })


def resampled_figures(scored):
    """Scored -> table of resample_patients."""
    return resample_patients(scored.data.patient[scored.rows], partial(figures, scored))


# ---- By record, by group, calibration ----

def ec57_table(scored):
    """MIT-BIH, AAMI classes -> VEB and SVEB figures by record, gross, and averaged over records.

    As in ANSI/AAMI EC57 and de Chazal et al. 2004: a fusion or unclassifiable beat called V is no
    false positive, nor is an unclassifiable beat called S.
    """
    record = scored.data.record[scored.rows]
    records = np.unique(record)
    weights = np.vstack([record == records[:, None], np.ones(len(record))])
    truth = pd.DataFrame(scored.truth, columns=scored.names)
    called = pd.DataFrame(scored.called, columns=scored.names)
    table = pd.DataFrame({"beats": weights.sum(axis=1)}, [*records, "gross"])
    for kind, name, no_error in (("VEB", "V", ["F", "Q"]), ("SVEB", "S", ["Q"])):
        hits = weights @ (truth[name] & called[name])
        false = weights @ (called[name] & ~truth[[name, *no_error]].any(axis=1))
        negatives = weights @ ~(truth[name] | called[name])
        table[f"{kind} sensitivity"] = ratio(hits, weights @ truth[name])
        table[f"{kind} positive predictivity"] = ratio(hits, hits + false)
        table[f"{kind} false positive rate"] = ratio(false, false + negatives)
    table.loc["average"] = table.iloc[:-1].mean()
    return table


def group_table(scored):
    """PTB-XL -> macro AUC and macro F1 by sex and age."""
    metadata = scored.data.metadata[scored.rows]
    ages = ["under 40", "40 to 59", "60 to 79", "80 and over"]
    age = pd.cut(metadata["age"], [0, 40, 60, 80, 999], right=False, labels=ages)
    groups = {"male": metadata["sex"] == 0, "female": metadata["sex"] == 1}
    groups |= {name: np.array(age == name) for name in ages}
    tables = {name: figures_of_group(scored, group).loc["all"]
              for name, group in groups.items()}
    return pd.DataFrame(tables).T[["n", "macro auc", "macro f1"]]


def calibration_rows(scored, probability):
    """Scored, its (n, k) probabilities -> (m,) probabilities and truth whose calibration counts.

    Multiclass: of the called class. Multilabel: of all classes together.
    """
    counted = scored.called
    if scored.recipe.task == "multilabel":
        counted = np.ones_like(counted)
    return probability[counted], scored.truth[counted]


def calibration_error(probability, truth, weights):
    """(m,) probabilities and truth, (b, m) weights -> (b,) expected calibration error, ten bins."""
    in_bin = (probability * 10).astype(int).clip(0, 9)[:, None] == np.arange(10)
    gap = weights @ (in_bin * (probability - truth)[:, None])
    return ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))


# ---- What the model looks at ----

def choose_examples(scored, number):
    """Scored -> (m,) rows among the scored ones and the class to explain of each.

    Of each class up to `number` correct rows around the median confidence, rows of one class
    alone first. A class without a correct row has its most confident one.
    """
    alone = scored.truth.sum(axis=1) == 1
    rows, classes = [], []
    for k, true in enumerate(scored.truth.T):
        correct = true & scored.called[:, k]
        choices = (correct & alone, correct, true)
        candidates = next((choice for choice in choices if choice.any()), true)
        order = np.argsort(scored.probability[candidates, k])
        ranked = np.flatnonzero(candidates)[order]
        if not correct.any():
            ranked = ranked[-1:]
        first = (len(ranked) - 1) // 2 - (number - 1) // 2
        first = np.clip(first, 0, max(0, len(ranked) - number))
        chosen = ranked[first:first + number]
        rows.extend(chosen)
        classes.extend([k] * len(chosen))
    return np.array(rows), np.array(classes)


def attributions(method, net, crop, signals, features, classes):
    """(m, channels, samples), (m, k), (m,) class of each row -> (m, channels, samples).

    gradient: its size (Simonyan et al. 2014). integrated_gradients: from the training mean to the
    signal; they add up to the difference of the logits (Sundararajan et al. 2017). grad_cam: the
    feature maps, weighted by their mean gradients (Selvaraju et al. 2017).
    """
    if method == "grad_cam":
        return grad_cam(net, crop, signals, features, classes)
    steps = 1 if method == "gradient" else 32
    base = net.normalise_signals.mean
    total = torch.zeros_like(signals)
    for step in range(steps):
        part = 1 if method == "gradient" else (step + 0.5) / steps
        x = (base + part * (signals - base)).requires_grad_()
        logits = crop_logits(net, x, features, crop)
        logits.gather(1, classes[:, None]).sum().backward()
        total += x.grad
    if method == "gradient":
        return total.abs()
    return total / steps * (signals - base)


def grad_cam(net, crop, signals, features, classes):
    """See `attributions`: the mean over the crops that cover a sample, equal for all channels."""
    total = torch.zeros_like(signals)
    covered = torch.zeros(signals.shape[2])
    for start in crop_starts(signals.shape[2], crop):
        x = net.normalise_signals(signals[:, :, start:start + crop])
        maps = net.maps(x).detach().requires_grad_()
        logits = net.classify(maps, features)
        logits.gather(1, classes[:, None]).sum().backward()
        weighted = maps.grad.mean(dim=2, keepdim=True) * maps
        weighted = weighted.sum(dim=1, keepdim=True).relu().detach()
        seen = slice(start, start + crop)
        total[:, :, seen] += F.interpolate(weighted, size=crop, mode="linear")
        covered[seen] += 1
    return total / covered


@torch.no_grad()
def completeness_error(net, crop, signals, features, classes, attribution):
    """Integrated gradients -> by how much they miss the difference of the logits, relative."""
    base = net.normalise_signals.mean.expand_as(signals)
    logits = crop_logits(net, signals, features, crop)
    base_logits = crop_logits(net, base, features, crop)
    difference = (logits - base_logits).gather(1, classes[:, None])[:, 0]
    missed = attribution.sum(dim=(1, 2)) - difference
    return (missed.abs().sum() / difference.abs().sum()).item()


def by_lead(scored, attribution):
    """(m, channels, samples) -> (m, leads, samples) sizes, smoothed over 0.02 s.

    The channels of a lead (the relative beat, its difference) add up: its voltage moves both.
    """
    rows, _, samples = attribution.shape
    leads = len(scored.recipe.leads)
    size = attribution.view(rows, -1, leads, samples).sum(dim=1).abs()
    smoothing = max(1, round(0.02 * scored.data.header.sampling_rate))
    return uniform_filter1d(size.numpy(), smoothing, axis=2)


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
        probability = probabilities(logits, scored.recipe, len(scored.names))
        of_class = pd.Series(probability[every, classes])
        curve.append(of_class.groupby(classes).mean().mean())
    return curve


def explain(scored, rows, classes):
    """Rows, class of each -> dict of method -> (m, leads, samples), table, completeness error.

    The table has the deletion test of each method, at its own and at moved places.
    """
    crop = scored.recipe.crop
    inputs = (scored.signals[rows], scored.features[rows], torch.from_numpy(classes))
    explained = {}
    deletion = pd.DataFrame(index=DELETED)
    missed = np.nan
    for method in METHODS:
        attribution = attributions(method, scored.net, crop, *inputs)
        if method == "integrated_gradients":
            missed = completeness_error(scored.net, crop, *inputs, attribution)
        explained[method] = by_lead(scored, attribution)
        deletion[method] = deletion_test(scored, rows, classes, explained[method])
        deletion[f"{method}, moved"] = deletion_test(
            scored, rows, classes, explained[method], np.random.default_rng(0))
    return explained, deletion, missed


# ---- Pictures ----

STYLES = [   # of classes and methods; pictures are read in greyscale, too
    {"linestyle": line, "color": shade}
    for shade in ("black", "0.5") for line in ("-", "--", ":", "-.")]


def save_figure(figure, title, path):
    """Figure -> PNG."""
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def plot_confusion(scored, path):
    """PNG: percentages of each true class that are called which, of rows with one class."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    single = scored.truth.sum(axis=1) == 1
    display = ConfusionMatrixDisplay.from_predictions(
        scored.truth[single].argmax(axis=1),
        scored.probability[single].argmax(axis=1),
        labels=range(len(scored.names)),
        display_labels=scored.names,
        normalize="true",
        values_format=".1%",
        cmap="Blues",
        ax=figure.subplots())
    display.ax_.set(xlabel="most probable class", ylabel="true class")
    save_figure(figure, scored.title, path)


def plot_curves(scored, path):
    """PNG: ROC and precision-recall curve of each class; circle: the operating point."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, name in enumerate(scored.names):
        truth = scored.truth[:, k]
        called = scored.called[:, k]
        p = scored.probability[:, k]
        if truth.all() or not truth.any():
            continue
        style = STYLES[k % len(STYLES)]
        false_positive_rate, sensitivity, _ = roc_curve(truth, p)
        precision, recall, _ = precision_recall_curve(truth, p)
        left.plot(false_positive_rate, sensitivity, **style, label=name)
        right.plot(recall, precision, **style, label=name)
        left.plot(called[~truth].mean(), called[truth].mean(), "o", color="C0")
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    right.set(xlabel="sensitivity", ylabel="positive predictivity")
    right.legend()
    save_figure(figure, f"{scored.title}. Circle: operating point", path)


def plot_calibration(scored, path):
    """PNG: reliability before and after temperature scaling, and the probabilities' histogram."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, probability, style in (("before", scored.probability, STYLES[1]),
                                     ("after temperature", scored.calibrated, STYLES[0])):
        p, truth = calibration_rows(scored, probability)
        CalibrationDisplay.from_predictions(
            truth, p, n_bins=10, ax=left, name=name, **style)
        right.hist(p, bins=20, histtype="step", log=True, **style)
    left.set(xlabel="probability", ylabel="share that is true")
    right.set(xlabel="probability", ylabel="rows")
    save_figure(figure, scored.title, path)


def draw_ecg(axis, seconds, voltage, weight, places):
    """(t,) s, (leads, t) mV, attribution from 0 to 1 -> traces on ECG paper, the weight behind.

    places: of each trace lead, name, height in mV, start and end in s. The squares of the paper
    have 0.04 s and 0.1 mV; the shape is that of 25 mm/s and 10 mm/mV.
    """
    limit = 1.9 if len(places) > 1 else np.inf   # mV; a large wave stays in its row
    for lead, name, level, start, end in places:
        inside = (seconds >= start) & (seconds <= end)
        trace = np.clip(voltage[lead] - np.median(voltage[lead]), -limit, limit)
        points = np.column_stack([seconds, level + trace])[inside]
        band = LineCollection(
            np.stack([points[:-1], points[1:]], axis=1),
            array=weight[lead, inside][:-1],
            cmap="Blues",
            linewidths=6,
            clim=(0, 1))
        axis.add_collection(band)
        axis.plot(*points.T, color="black", linewidth=0.8)
        axis.text(start, level + 1.1, name, fontsize=7, weight="bold")
    for ticks, small, large in ((axis.xaxis, 0.04, 0.2), (axis.yaxis, 0.1, 0.5)):
        ticks.set_major_locator(MultipleLocator(large))
        ticks.set_minor_locator(MultipleLocator(small))
        ticks.grid(which="both", color="#e8b5b5", linewidth=0.4)
    axis.set(aspect=0.4, xlim=(seconds[0], seconds[-1]), axisbelow=True)
    alone = len(places) == 1
    axis.tick_params(which="both", length=0, labelsize=6, labelleft=alone, labelbottom=alone)
    return band


def plot_ecgs(scored, rows, weights, subtitle, path):
    """Rows on ECG paper with (m, leads, samples) attribution -> PNG.

    Beats stand side by side, of the model's first lead; records one below the other, with 2.5 s
    of each lead and 10 s of lead II.
    """
    header = scored.data.header
    columns = [header.leads.index(lead) for lead in scored.recipe.leads]
    seconds = np.arange(scored.data.signals.shape[2]) / header.sampling_rate
    if scored.data.is_ptbxl:
        grid = (len(rows), 1)
        places = []
        for lead, name in enumerate(header.leads):
            column, row = divmod(lead, 3)
            places.append((lead, name, -3 * row, 2.5 * column, 2.5 * column + 2.5))
        places.append((1, "II", -9, 0, 10))
    else:
        grid = (-(-len(rows) // 5), 5)
        seconds = seconds - 0.5 * len(seconds) / header.sampling_rate   # the R peak is at 0 s
        places = [(columns[0], scored.recipe.leads[0], 0, seconds[0], seconds[-1])]
    height = 4.9 if scored.data.is_ptbxl else 3.6
    figure = Figure(figsize=(11, height * grid[0]), layout="constrained")
    axes = figure.subplots(*grid, squeeze=False, sharey=True).ravel()
    for axis in axes[len(rows):]:
        axis.set_axis_off()
    for axis, row, weight in zip(axes, rows, weights):
        every = np.zeros((len(header.leads), len(seconds)))
        first = (len(seconds) - weight.shape[1]) // 2   # the model ignores the ends of a beat
        largest = max(weight.max(), 1e-12)
        every[columns, first:first + weight.shape[1]] = weight / largest
        voltage = scored.data.signals[scored.rows[row]]
        band = draw_ecg(axis, seconds, voltage, every, places)
        axis.set_title(caption_of(scored, row), fontsize=8)
    figure.colorbar(
        band, ax=figure.axes, shrink=0.6, label="attribution (largest: 1)")
    save_figure(figure, f"{scored.title}. {subtitle}", path)


def caption_of(scored, row):
    """Row among the scored ones -> where it is from, its classes, the most probable one."""
    names = np.array(scored.names)
    data = scored.data
    place = f"record {data.record[scored.rows[row]]}"
    if not data.is_ptbxl:
        sample = data.metadata["sample"][scored.rows[row]]
        place += f", {sample / data.header.sampling_rate:.1f} s"
    truth = "+".join(names[scored.truth[row]]) or "none"
    p = scored.probability[row]
    return f"{place}: true {truth}\nmost probable {names[p.argmax()]} ({p.max():.2f})"


def plot_averages(scored, classes, attribution, deletion, path):
    """Mean attribution of each class, and the deletion test of each method -> PNG.

    Beats: over time. Records: by lead, because their beats are not aligned.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    if scored.data.is_ptbxl:
        columns = scored.recipe.leads
        mean = attribution.mean(axis=2)
    else:
        mean = attribution.mean(axis=1)
        samples = mean.shape[1]
        columns = (np.arange(samples) - samples // 2) / scored.data.header.sampling_rate
        left.set_xlabel("time from the R peak (s)")
    mean = pd.DataFrame(mean, columns=columns).groupby(classes).mean()
    mean = mean.div(mean.max(axis=1), axis=0)
    names = [scored.names[k] for k in mean.index]
    image = left.pcolormesh(
        columns, names, mean, cmap="YlGnBu", vmin=0, shading="nearest")
    figure.colorbar(image, ax=left, label="mean attribution (largest: 1)")
    deletion.plot(
        ax=right,
        style=["-", "-", "--", "--", ":", ":"],
        color=["black", "0.6"] * 3)
    right.set(
        xlabel="part of the time deleted",
        ylabel="mean probability of the class",
        ylim=(0, 1))
    right.set_title("deletion test: black below grey is better", fontsize=9)
    save_figure(figure, scored.title, path)


# ---- Report ----

FORMAT = {   # of printed and HTML tables
    "float_format": lambda value: f"{value:.3f}".removesuffix(".000"), "na_rep": "n/a"}


def predictions_table(scored):
    """Scored -> table of one row a test example: identifiers, truth, called, probabilities."""
    names = np.array(scored.names)
    metadata = scored.data.metadata[scored.rows]
    fields = ["fold", "age", "sex"] if scored.data.is_ptbxl else ["sample", "symbol"]
    table = pd.DataFrame({field: metadata[field] for field in fields})
    table.insert(0, "record", scored.data.record[scored.rows])
    table.insert(1, "patient", scored.data.patient[scored.rows])
    table["true"] = ["+".join(names[row]) for row in scored.truth]
    table["called"] = ["+".join(names[row]) for row in scored.called]
    table[[f"{name} true" for name in names]] = scored.truth.astype(int)
    table[[f"{name} probability" for name in names]] = scored.probability
    return table


def report_page(title, tables, pictures):
    """Title, dict of heading -> table, dict of heading -> PNG path -> one HTML page."""
    style = ("body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
             "img{max-width:100%}table{border-collapse:collapse}td,th{padding:3px 8px}")
    parts = [f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><style>{style}</style>',
             f"<title>{title}</title><h1>{title}</h1>"]
    for heading, table in tables.items():
        parts.append(f"<h2>{heading}</h2>{table.to_html(**FORMAT)}")
    for heading, path in pictures.items():
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{image}">')
    return "\n".join(parts) + "</html>\n"


def print_tables(tables):
    """Prints a dict of heading -> table."""
    for heading, table in tables.items():
        print(f"\n{heading}\n{table.to_string(**FORMAT)}")


def to_json(report):
    """Dict with tables -> JSON text; NaN becomes null."""
    return json.dumps(report, indent=1, default=lambda table: json.loads(
        table.to_json(orient="index", double_precision=15)))


def make_tables(scored, resampled):
    """Scored, its resampled_figures -> dict of heading -> table."""
    record = scored.data.record[scored.rows]
    summary = summarise(resampled)
    by_class = summary.loc[scored.names]
    tables = {
        "all classes": summary.loc["all"],
        "by class": by_class["value"].unstack(sort=False),
        "by class, 95% interval from": by_class["low"].unstack(sort=False),
        "by class, 95% interval to": by_class["high"].unstack(sort=False),
    }
    if scored.data.header.class_map == "aami":
        if "232" in record:   # 75% of DS2's S beats
            tables["without record 232"] = figures_of_group(scored, record != "232")
        tables["EC57"] = ec57_table(scored)
    if scored.recipe.task == "multilabel":
        tables["by sex and age"] = group_table(scored)
        single = scored.truth.sum(axis=1) == 1
        one_called = scored._replace(called=most_probable(scored.probability))
        tables["records with one superclass, the most probable one called"] = (
            figures_of_group(one_called, single))
    before, truth = calibration_rows(scored, scored.probability)
    after, _ = calibration_rows(scored, scored.calibrated)
    once = np.ones((1, len(truth)))
    tables["calibration error"] = pd.DataFrame({
        "before": calibration_error(before, truth, once),
        "after temperature": calibration_error(after, truth, once)})
    return tables


# ---- Main ----

def draw_pictures(scored, rows, classes, attribution, deletion, paths):
    """Draws the six pictures; rows, class of each and attribution: what was explained."""
    confusion, curves, calibration, explanation, averages, mistakes = paths
    plot_confusion(scored, confusion)
    plot_curves(scored, curves)
    plot_calibration(scored, calibration)
    examples = [np.flatnonzero(classes == k)[(classes == k).sum() // 2]
                for k in np.unique(classes)]
    plot_ecgs(scored, rows[examples], attribution[examples], METHODS[0], explanation)
    plot_averages(scored, classes, attribution, deletion, averages)
    error = np.abs(scored.truth - scored.probability).max(axis=1)
    worst = np.argsort(-error, kind="stable")[:4 if scored.data.is_ptbxl else 15]
    plot_ecgs(scored, worst, np.zeros((len(worst), 1, 1)), "The largest errors", mistakes)


def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    check_choice("MODEL", MODEL, ["cnn", "lstm", "mlp"])
    check_choice("COMPARE_WITH", COMPARE_WITH, [None, "cnn", "lstm", "mlp"])
    scored = score_test_rows(DATASET, MODEL)
    resampled = resampled_figures(scored)
    tables = make_tables(scored, resampled)
    if COMPARE_WITH:
        other = score_test_rows(DATASET, COMPARE_WITH)
        if not np.array_equal(other.truth, scored.truth):
            raise SystemExit(f"COMPARE_WITH = {COMPARE_WITH!r}: that model has another task or "
                             "other test rows. Train both with the same constants")
        difference = summarise(resampled - resampled_figures(other))
        tables[f"difference from {COMPARE_WITH}"] = difference.loc["all"]
    rows, classes = choose_examples(scored, AVERAGED[DATASET])
    explained, deletion, missed = explain(scored, rows, classes)
    tables["deletion test"] = deletion

    parts = ["confusion.png", "curves.png", "calibration.png", "explanation.png", "averages.png",
             "mistakes.png", "metrics.json", "predictions.csv", "report.html"]
    with new_files(*(f"{DATASET}_{MODEL}_{part}" for part in parts)) as paths:
        *pictures, metrics, predictions, page = paths
        draw_pictures(scored, rows, classes, explained[METHODS[0]], deletion, pictures)
        metrics.write_text(to_json({
            "title": scored.title,
            "recipe": vars(scored.recipe),
            "header": vars(scored.data.header),
            "tables": tables,
            "completeness_error": missed,
        }))
        predictions_table(scored).to_csv(predictions, index=False, float_format="%.9g")
        page.write_text(report_page(scored.title, tables, dict(zip(parts, pictures))))

    print(scored.title)
    print_tables(tables)
    print(f"integrated gradients miss the difference of the logits by {missed:.2%}")
    print(f"Wrote {DATASET}_{MODEL}_ {', '.join(parts)}")


if __name__ == "__main__":
    main()
