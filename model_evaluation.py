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
        {dataset}_{model}_mistakes.png     the most confident mistakes
Takes   under a minute on two cores.
"""

import base64
import html
import json
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
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
METHODS = ["gradient", "integrated_gradients", "grad_cam"]
DRAWN_METHOD = "integrated_gradients"     # the one that is laid over the traces
AVERAGED = {"mitbih": 100, "ptbxl": 12}   # correct examples of each class that are explained
DELETED = [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]   # parts of the time, in the deletion test


# ---- Score rows ----

class Scored(NamedTuple):
    """Rows of a dataset, and what a model says of them."""
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
    """Names -> Scored of the test rows by the checkpoint's own split, and the checkpoint."""
    data = load_dataset(dataset)
    checkpoint, net = load_checkpoint(data, model)
    rows = split_rows(data, checkpoint.sides, checkpoint.recipe)["test"]
    if not len(rows):
        raise SystemExit(f"{dataset}_signals.npy has no test rows with a label: preprocess the "
                         "complete dataset, or train with another SPLIT")
    inputs = dataset_inputs(data, checkpoint.recipe)
    return score_rows(checkpoint, net, data, inputs, rows), checkpoint


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
    return Scored(data, net, recipe, rows, truth, called, probability, calibrated,
                  signals, features)


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
    ranking = [rank_figures(*pair, weights) for pair in zip(truth.T, scored.probability.T)]
    auc, average_precision = np.transpose(ranking, (1, 2, 0))
    by_class = {
        "n": support,
        "sensitivity": ratio(hits, support),
        "positive predictivity": ratio(hits, calls) + absent,
        "f1": f1,
        "auc": auc,
        "average precision": average_precision,
    }
    overall = {
        "n": count,
        "accuracy": ratio(weights @ (truth == scored.called).all(axis=1), count),
        "macro f1": mean_of_defined(f1),
        "macro auc": mean_of_defined(auc),
        "weighted f1": ratio(np.nansum(f1 * support, axis=1), support.sum(axis=1)),
    }
    if scored.names[:3] == ["N", "S", "V"]:
        overall["mean f1 of N, S, V"] = mean_of_defined(f1[:, :3])
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
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def mean_of_defined(values):
    """(b, k) figures -> (b,) mean of those that are not NaN."""
    return ratio(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1))


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
    limits = drawn.quantile([0.025, 0.975]).T.where(drawn.notna().mean() >= 0.5, axis=0)
    return pd.DataFrame({"value": resampled.iloc[0], "low": limits[0.025], "high": limits[0.975]})


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
    weights = np.vstack([record == records[:, None], np.ones(len(record))]).astype(float)
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
    age = metadata["age"]   # 300 stands for more than 89
    groups = {
        "male": metadata["sex"] == 0,
        "female": metadata["sex"] == 1,
        "under 40": age < 40,
        "40 to 59": (age >= 40) & (age < 60),
        "60 to 79": (age >= 60) & (age < 80),
        "80 and over": age >= 80,
    }
    tables = {name: figures_of_group(scored, group).loc["all"] for name, group in groups.items()}
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
        candidates = next((x for x in (correct & alone, correct, true) if x.any()), true)
        ranked = np.flatnonzero(candidates)[np.argsort(scored.probability[candidates, k])]
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
        crop_logits(net, x, features, crop).gather(1, classes[:, None]).sum().backward()
        total += x.grad
    return total.abs() if method == "gradient" else total / steps * (signals - base)


def grad_cam(net, crop, signals, features, classes):
    """See `attributions`: the mean over the crops that cover a sample, equal for all channels."""
    total = torch.zeros_like(signals)
    covered = torch.zeros(signals.shape[2])
    for start in crop_starts(signals.shape[2], crop):
        x = net.normalise_signals(signals[:, :, start:start + crop])
        maps = net.maps(x).detach().requires_grad_()
        net.classify(maps, features).gather(1, classes[:, None]).sum().backward()
        weighted = maps.grad.mean(dim=2, keepdim=True) * maps
        weighted = weighted.sum(dim=1, keepdim=True).relu().detach()
        total[:, :, start:start + crop] += F.interpolate(weighted, size=crop, mode="linear")
        covered[start:start + crop] += 1
    return total / covered


@torch.no_grad()
def completeness_error(net, crop, signals, features, classes, attribution):
    """Integrated gradients -> by how much they miss the difference of the logits, relative."""
    base = net.normalise_signals.mean.expand_as(signals)
    logits = crop_logits(net, signals, features, crop) - crop_logits(net, base, features, crop)
    difference = logits.gather(1, classes[:, None])[:, 0]
    missed = attribution.sum(dim=(1, 2)) - difference
    return (missed.abs().sum() / difference.abs().sum()).item()


def by_lead(scored, attribution):
    """(m, channels, samples) -> (m, leads, segment) sizes, smoothed over 0.02 s.

    The channels of a lead (the relative beat, its difference) add up: its voltage moves both.
    """
    rows, _, samples = attribution.shape
    size = attribution.view(rows, -1, len(scored.recipe.leads), samples).sum(dim=1).abs()
    smoothing = max(1, round(0.02 * scored.data.header.sampling_rate))
    size = uniform_filter1d(size.numpy(), smoothing, axis=2)
    unseen = scored.data.signals.shape[2] - samples   # the ends of a beat that the model ignores
    return np.pad(size, ((0, 0), (0, 0), (unseen // 2, unseen - unseen // 2)))


def deletion_test(scored, rows, classes, attribution, rng=None):
    """(m,) rows, class of each, (m, leads, segment) attribution -> mean probability of the class.

    The samples with the largest attribution, DELETED of the time, become the training mean.
    With rng, the attributions are moved to random places first. They keep their form and lose
    their meaning; an attribution is worth something where it does better.
    """
    signals = scored.signals[rows]
    samples = signals.shape[2]
    unseen = (attribution.shape[2] - samples) // 2
    weight = attribution.sum(axis=1)[:, unseen:unseen + samples]
    if rng:
        weight = np.stack([np.roll(row, rng.integers(samples)) for row in weight])
    place = np.argsort(np.argsort(-weight, axis=1), axis=1)   # 0: the largest
    every = np.arange(len(rows))
    curve = []
    for part in DELETED:
        deleted = torch.from_numpy(place < round(part * samples))[:, None]
        x = torch.where(deleted, scored.net.normalise_signals.mean, signals)
        logits = predict(scored.net, x, scored.features[rows], every, scored.recipe.crop)
        p = probabilities(logits, scored.recipe, len(scored.names))[every, classes]
        curve.append(pd.Series(p).groupby(classes).mean().mean())
    return curve


def explain(scored, rows, classes):
    """Rows, class of each -> dict of method -> (m, leads, segment), table, completeness error.

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


def plot_confusion(scored, title, path):
    """PNG: percentages of each true class that are called which, of rows with one class."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    single = scored.truth.sum(axis=1) == 1
    display = ConfusionMatrixDisplay.from_predictions(
        scored.truth[single].argmax(axis=1), scored.probability[single].argmax(axis=1),
        labels=range(len(scored.names)), display_labels=scored.names, normalize="true",
        values_format=".1%", cmap="Blues", ax=figure.subplots())
    display.ax_.set(xlabel="most probable class", ylabel="true class")
    save_figure(figure, title, path)


def plot_curves(scored, title, path):
    """PNG: ROC and precision-recall curve of each class; circles are the operating points."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, name in enumerate(scored.names):
        truth = scored.truth[:, k]
        called = scored.called[:, k]
        if truth.all() or not truth.any():
            continue
        style = STYLES[k % len(STYLES)]
        false_positive_rate, sensitivity, _ = roc_curve(truth, scored.probability[:, k])
        precision, recall, _ = precision_recall_curve(truth, scored.probability[:, k])
        left.plot(false_positive_rate, sensitivity, **style, label=name)
        right.plot(recall, precision, **style, label=name)
        left.plot(called[~truth].mean(), called[truth].mean(), "o", color="C0")
        if called.any():
            right.plot(called[truth].mean(), truth[called].mean(), "o", color="C0")
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    right.set(xlabel="sensitivity", ylabel="positive predictivity")
    right.legend()
    save_figure(figure, f"{title}; circle: operating point", path)


def plot_calibration(scored, title, path):
    """PNG: reliability before and after temperature scaling, and the probabilities' histogram."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, probability, style in (("before", scored.probability, STYLES[1]),
                                     ("after temperature", scored.calibrated, STYLES[0])):
        p, truth = calibration_rows(scored, probability)
        CalibrationDisplay.from_predictions(truth, p, n_bins=10, ax=left, name=name, **style)
        right.hist(p, bins=20, range=(0, 1), histtype="step", log=True, label=name, **style)
    left.set(xlabel="probability", ylabel="share that is true")
    right.set(xlabel="probability", ylabel="rows")
    save_figure(figure, title, path)


def draw_paper(axis, seconds, low, high):
    """ECG paper: squares of 0.04 s and 0.1 mV, heavier ones of 0.2 s and 0.5 mV."""
    for squares, width in ((1, 0.3), (5, 0.8)):
        style = {"color": "#e8b5b5", "linewidth": width, "zorder": 0}
        time = 0.04 * squares
        voltage = 0.1 * squares
        columns = np.arange(round(seconds[0] / time), round(seconds[1] / time) + 1) * time
        lines = np.arange(round(low / voltage), round(high / voltage) + 1) * voltage
        axis.vlines(columns, low, high, **style)
        axis.hlines(lines, *seconds, **style)
    axis.set(xlim=seconds, ylim=(low, high), aspect=0.4)   # 25 mm/s and 10 mm/mV
    axis.tick_params(labelsize=6)


def draw_trace(axis, seconds, voltage, weight):
    """(t,) s, (t,) mV, (t,) attribution from 0 to 1 -> the trace, with the weight as a band."""
    points = np.column_stack([seconds, voltage])
    seen = weight[:-1] > 0.02
    band = LineCollection(np.stack([points[:-1], points[1:]], axis=1)[seen],
                          array=weight[:-1][seen], cmap="YlGnBu", linewidths=6,
                          capstyle="round", clim=(0, 1), zorder=1)
    axis.add_collection(band)
    axis.plot(seconds, voltage, color="black", linewidth=0.8, zorder=2)
    return band


def draw_beat(axis, voltage, rate, weight):
    """(samples,) mV, attribution -> one beat on ECG paper, its R peak at 0 s."""
    seconds = (np.arange(len(voltage)) - len(voltage) // 2) / rate
    middle = round((voltage.max() + voltage.min()) / 2 / 0.5) * 0.5
    reach = np.ceil((np.abs(voltage - middle).max() + 0.1) / 0.5) * 0.5
    reach = max(1.5, reach)
    draw_paper(axis, (seconds[0], seconds[-1]), middle - reach, middle + reach)
    axis.set_xlabel("time from the R peak (s)", fontsize=7)
    axis.set_ylabel("mV", fontsize=7)
    return draw_trace(axis, seconds, voltage, weight)


def draw_record(axis, voltage, names, rate, weight):
    """(12, samples) mV, attribution -> a record on ECG paper: 2.5 s of each lead, 10 s of II."""
    seconds = np.arange(voltage.shape[1]) / rate
    places = [(lead, -3 * (lead % 3), 2.5 * (lead // 3), 2.5) for lead in range(12)]
    places.append((1, -9, 0, 10))
    draw_paper(axis, (0, 10), -10.5, 1.5)
    for lead, level, start, length in places:
        part = (seconds >= start) & (seconds <= start + length)
        trace = np.clip(voltage[lead] - np.median(voltage[lead]), -1.9, 1.9)
        band = draw_trace(axis, seconds[part], level + trace[part], weight[lead, part])
        axis.text(start + 0.05, level + 1.05, names[lead], fontsize=7, weight="bold")
    axis.set_yticks([])
    axis.set_xlabel("time (s); 25 mm/s, 10 mm/mV, cut at 1.9 mV", fontsize=7)
    return band


def plot_ecgs(scored, rows, weights, title, path):
    """Rows on ECG paper with (m, leads, segment) attribution -> PNG.

    Beats stand side by side, of the model's first lead; records one below the other.
    """
    header = scored.data.header
    columns = [header.leads.index(lead) for lead in scored.recipe.leads]
    is_beat = not scored.data.is_ptbxl
    width = min(len(rows), 4) if is_beat else 1
    height = -(-len(rows) // width)
    size = (2.8 * width, 3.2 * height + 0.8) if is_beat else (11, 6.1 * height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for axis, row, weight in zip(axes, rows, weights):
        voltage = scored.data.signals[scored.rows[row]]
        every = np.zeros(voltage.shape)
        every[columns] = weight / max(weight.max(), 1e-12)
        axis.set_title(caption_of(scored, row), fontsize=8)
        if is_beat:
            band = draw_beat(axis, voltage[columns[0]], header.sampling_rate, every[columns[0]])
        else:
            band = draw_record(axis, voltage, header.leads, header.sampling_rate, every)
    for axis in axes[len(rows):]:
        axis.set_axis_off()
    figure.colorbar(band, ax=figure.axes, label="attribution (largest: 1)", shrink=0.6,
                    location="bottom" if is_beat else "right")
    save_figure(figure, title, path)


def caption_of(scored, row):
    """Row among the scored ones -> where it is from, its classes, the most probable one."""
    names = np.array(scored.names)
    place = f"record {scored.data.record[scored.rows[row]]}"
    if not scored.data.is_ptbxl:
        sample = scored.data.metadata["sample"][scored.rows[row]]
        place += f", {sample / scored.data.header.sampling_rate:.1f} s"
    truth = "+".join(names[scored.truth[row]]) or "none"
    p = scored.probability[row]
    return f"{place}: true {truth}\nmost probable {names[p.argmax()]} ({p.max():.2f})"


def plot_averages(scored, classes, attribution, deletion, title, path):
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
        columns = (np.arange(mean.shape[1]) - mean.shape[1] // 2) / scored.data.header.sampling_rate
        left.set_xlabel("time from the R peak (s)")
    mean = pd.DataFrame(mean, columns=columns).groupby(classes).mean()
    mean = mean.div(mean.max(axis=1), axis=0)
    names = [scored.names[k] for k in mean.index]
    image = left.pcolormesh(columns, names, mean, cmap="YlGnBu", vmin=0, shading="nearest")
    figure.colorbar(image, ax=left, label="mean attribution (largest: 1)")
    deletion.plot(ax=right, style=["-", "-", "--", "--", ":", ":"], color=["black", "0.6"] * 3)
    right.set(xlabel="part of the time deleted", ylabel="mean probability of the class",
              ylim=(0, 1), title="deletion test: black below grey is better")
    save_figure(figure, title, path)


# ---- Report ----

FORMAT = {   # of printed and HTML tables
    "float_format": lambda value: f"{value:.3f}".removesuffix(".000"), "na_rep": "n/a"}


def predictions_table(scored):
    """Scored -> table of one row a test example: identifiers, truth, called, probabilities."""
    names = np.array(scored.names)
    metadata = scored.data.metadata[scored.rows]
    plain = [field for field in metadata.dtype.names if metadata[field].ndim == 1]
    table = pd.DataFrame({field: metadata[field] for field in plain})
    table["record"] = scored.data.record[scored.rows]
    table["patient"] = scored.data.patient[scored.rows]
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
             f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>"]
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


def protocol_of(checkpoint):
    """Checkpoint -> what it was trained on and how, without weights."""
    return {name: vars(value) if isinstance(value, SimpleNamespace) else value
            for name, value in vars(checkpoint).items() if name != "weights"}


def most_confident_mistakes(scored, number):
    """Scored -> up to `number` wrong rows, the most confident ones first."""
    error = np.abs(scored.truth - scored.probability) * (scored.truth != scored.called)
    rows = np.argsort(-error.max(axis=1), kind="stable")[:number]
    return rows[error[rows].any(axis=1)]


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
    tables["calibration error"] = pd.DataFrame({
        "before": calibration_error(before, truth, np.ones((1, len(truth)))),
        "after temperature": calibration_error(after, truth, np.ones((1, len(truth))))})
    return tables


def compare_with(model, scored, resampled):
    """Name of another model of the dataset -> table of differences from it on the same rows."""
    other, _ = score_test_rows(DATASET, model)
    if other.recipe.task != scored.recipe.task or not np.array_equal(other.rows, scored.rows):
        raise SystemExit(f"COMPARE_WITH = {model!r}: that model has another task or other test "
                         "rows. Train both with the same constants")
    return summarise(resampled - resampled_figures(other)).loc["all"]


# ---- Main ----

def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    check_choice("MODEL", MODEL, ["cnn", "lstm", "mlp"])
    check_choice("COMPARE_WITH", COMPARE_WITH, [None, "cnn", "lstm", "mlp"])
    check_choice("DRAWN_METHOD", DRAWN_METHOD, METHODS)
    scored, checkpoint = score_test_rows(DATASET, MODEL)
    warnings = warnings_of(scored.data.header, scored.recipe)
    title = ". ".join([f"{DATASET} {MODEL}, {scored.recipe.split} split, test rows", *warnings])
    resampled = resampled_figures(scored)
    tables = make_tables(scored, resampled)
    if COMPARE_WITH:
        tables[f"difference from {COMPARE_WITH}"] = compare_with(COMPARE_WITH, scored, resampled)
    rows, classes = choose_examples(scored, AVERAGED[DATASET])
    explained, tables["deletion test"], missed = explain(scored, rows, classes)
    drawn = explained[DRAWN_METHOD]
    examples = [np.flatnonzero(classes == k)[(classes == k).sum() // 2] for k in set(classes)]
    mistakes = most_confident_mistakes(scored, 4 if scored.data.is_ptbxl else 12)

    pictures = ["confusion", "curves", "calibration", "explanation", "averages", "mistakes"]
    outputs = [f"{DATASET}_{MODEL}_{name}.png" for name in pictures]
    outputs += [f"{DATASET}_{MODEL}_{name}" for name in (
        "metrics.json", "predictions.csv", "report.html")]
    with new_files(*outputs) as paths:
        plot_confusion(scored, title, paths[0])
        plot_curves(scored, title, paths[1])
        plot_calibration(scored, title, paths[2])
        plot_ecgs(scored, rows[examples], drawn[examples], f"{title}: {DRAWN_METHOD}", paths[3])
        plot_averages(scored, classes, drawn, tables["deletion test"], title, paths[4])
        plot_ecgs(scored, mistakes, np.zeros((len(mistakes), *drawn.shape[1:])),
                  f"{title}: the most confident mistakes", paths[5])
        paths[6].write_text(to_json({
            "checkpoint": protocol_of(checkpoint), "warnings": warnings, "tables": tables,
            "test_rows": len(scored.rows), "completeness_error": missed}))
        predictions_table(scored).to_csv(paths[7], index=False, float_format="%.9g")
        paths[8].write_text(report_page(title, tables, dict(zip(pictures, paths))))

    print(title)
    print_tables(tables)
    print(f"integrated gradients miss the difference of the logits by {missed:.2%}")
    print(f"Wrote {', '.join(outputs)}")


if __name__ == "__main__":
    main()
