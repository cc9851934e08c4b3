"""Evaluates a trained model on its test rows: figures with intervals, calibration, pictures, and what the model looks at.

Reads   {dataset}_{model}_model.pth      from model_training.py
        {dataset}_signals.npy, _labels.npy, _metadata.npy, _header.npy   from the preprocess scripts
Writes  {dataset}_{model}_metrics.json     every figure that is printed, with the protocol
        {dataset}_{model}_predictions.csv  one row a test example: identifiers, truth, prediction, probabilities
        {dataset}_{model}_confusion.png    confusion matrix
        {dataset}_{model}_curves.png       ROC and precision-recall curves of each class, with the operating point
        {dataset}_{model}_calibration.png  how often a probability comes true, before and after temperature scaling
        {dataset}_{model}_explanation.png  one test ECG a class on ECG paper, with its attribution laid over the trace
        {dataset}_{model}_averages.png     the mean attribution of each class, and the deletion test of the METHODS
        {dataset}_{model}_mistakes.png     the most confident mistakes
        {dataset}_{model}_report.html      all of it on one page without outside files, to be mailed
Takes   under a minute on two cores.
"""

import base64
import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter1d
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score, roc_curve

import model_training
from model_training import (crop_starts, first_difference, load_dataset, load_pth, make_inputs, predict, probabilities,
                            split_rows, targets_of, task_rows)
from preprocess_mitbih import check_choice, constants_of, new_files, sha256_of, versions

# data and model: the checkpoint {DATASET}_{MODEL}_model.pth decides everything else
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
COMPARE_WITH = None       # None, or another model of the same dataset ("mlp"), whose difference gets an interval, too

# interpretation
METHODS = ["gradient", "integrated_gradients", "grad_cam"]   # those that are compared
DRAWN_METHOD = "integrated_gradients"   # one of METHODS: the one that is laid over the traces
AVERAGED = {"mitbih": 100, "ptbxl": 12}   # correct examples of each class in the averages and in the deletion test


# what a checkpoint must hold
KEYS = {"dataset", "model", "class_map", "class_names", "dataset_leads", "sampling_rate", "segment", "simulated", "split",
        "leaks", "split_parts", "split_rows", "train_fraction", "train_rows", "seed", "task", "inputs", "crop", "prior",
        "thresholds", "epoch", "outputs", "output_rows", "made_from", "constants", "versions"}
INPUTS = {"leads", "record_relative", "with_distance", "rhythm", "window", "context", "align", "low_pass_hz"}   # "inputs"


# ---- Load a checkpoint ----

def build_net(checkpoint):
    """Checkpoint dict -> the net with its weights, ready for `predict`."""
    net = model_training.MODELS[checkpoint["model"]](**checkpoint["model_arguments"])
    net.load_state_dict(checkpoint["weights"])
    return net.eval()


def load_checkpoint(dataset, model):
    """Names -> (checkpoint dict, net). Stops with one sentence when the file is missing, damaged or another's."""
    name = f"{dataset}_{model}_model.pth"
    make = f'Make it with DATASET = "{dataset}" and MODEL = "{model}": python model_training.py'
    try:
        checkpoint = load_pth(name)
        net = build_net(checkpoint)
        absent = KEYS - set(checkpoint) or INPUTS - set(checkpoint["inputs"])
        if absent:
            raise ValueError(f"it lacks {', '.join(sorted(absent))}")
    except FileNotFoundError:
        raise SystemExit(f"{name} is not in this folder. {make}") from None
    except Exception as error:   # torch raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"{name} is damaged or not a checkpoint of this repository ({reason}). {make}") from error
    if (checkpoint["dataset"], checkpoint["model"]) != (dataset, model):
        raise SystemExit(f"{name} holds a {checkpoint['model']} trained on {checkpoint['dataset']}. {make}")
    return checkpoint, net


def check_dataset(checkpoint, data):
    """Stops the run when the .npy files are of another run than those that the checkpoint was trained on."""
    was, now = checkpoint["made_from"], json.loads(str(data.header["made_from"]))
    difference = first_difference(*({key: side[key] for key in ("constants", "files", "bytes", "sha256")}
                                    for side in (was, now)))
    if difference:
        name = f"{checkpoint['dataset']}_{checkpoint['model']}_model.pth"
        raise SystemExit(f"{name} and the {data.name}_*.npy files are of different runs: it was trained on files with "
                         f"{difference}. Make the .npy files again as they were, or train again")


def origin_of(checkpoint):
    """Checkpoint -> what figures of it are made from: its file, what that was made from, and the versions now."""
    name = f"{checkpoint['dataset']}_{checkpoint['model']}_model.pth"
    return {"checkpoint": name, "sha256": sha256_of(name),
            **{key: checkpoint[key] for key in ("constants", "made_from", "versions")}, "versions_now": versions(torch, np)}


# ---- Metrics ----

def ratio(part, whole):
    """Numbers -> part / whole as float, None where there is nothing to divide by."""
    return float(part) / float(whole) if whole else None


def class_metrics(wanted, predicted, probability):
    """(n,) true and predicted membership, (n,) probability -> dict of one class's figures, None where undefined."""
    hits = int(np.sum(wanted & predicted))
    both = bool(wanted.any() and not wanted.all())
    return {"support": int(wanted.sum()),
            "sensitivity": ratio(hits, wanted.sum()),
            "positive_predictivity": ratio(hits, predicted.sum()) if wanted.any() else None,
            "f1": ratio(2 * hits, wanted.sum() + predicted.sum()) if wanted.any() else None,
            "auc": float(roc_auc_score(wanted, probability)) if both else None,
            "average_precision": float(average_precision_score(wanted, probability)) if both else None}


def mean_of(classes, key, names=None, weighted=False):
    """Dict of class -> figures -> mean of one figure over the classes that have it (or over `names`), None if none."""
    rows = [row for name, row in classes.items() if row[key] is not None and (names is None or name in names)]
    weights = [row["support"] if weighted else 1 for row in rows]
    return float(np.average([row[key] for row in rows], weights=weights)) if rows else None


def summarise(classes, predicted_right):
    """Figures by class, (n,) mask of rows that are right -> dict of the figures over all classes."""
    return {"accuracy": float(np.mean(predicted_right)), "macro_f1": mean_of(classes, "f1"),
            "weighted_f1": mean_of(classes, "f1", weighted=True), "macro_auc": mean_of(classes, "auc")}


def multiclass_metrics(labels, probability, names):
    """(n,) classes, (n, k) probabilities, k names -> dict of figures over all classes and by class."""
    predicted = probability.argmax(axis=1)
    classes = {name: class_metrics(labels == i, predicted == i, probability[:, i]) for i, name in enumerate(names)}
    return {**summarise(classes, predicted == labels), "classes": classes,
            "confusion_matrix": confusion_matrix(labels, predicted, labels=range(len(names))).tolist()}


def multilabel_metrics(targets, probability, thresholds, names):
    """(n, k) zeros and ones, (n, k) probabilities, k thresholds from validation rows -> dict of figures.

    accuracy is the share of records with all superclasses right. The confusion matrix, and the accuracy and macro-F1
    beside it, are of the records with exactly one superclass, each called by its most probable one.
    """
    predicted, wanted = probability >= np.array(thresholds), targets == 1
    classes = {name: class_metrics(wanted[:, i], predicted[:, i], probability[:, i]) for i, name in enumerate(names)}
    single = targets.sum(axis=1) == 1
    one = multiclass_metrics(targets[single].argmax(axis=1), probability[single], names) if single.any() else {}
    return {**summarise(classes, (predicted == wanted).all(axis=1)), "thresholds": thresholds, "classes": classes,
            "single_superclass": {key: one.get(key) for key in ("accuracy", "macro_f1", "weighted_f1")},
            "confusion_matrix": one.get("confusion_matrix", np.zeros((len(names), len(names)), int).tolist())}


def aami_metrics(labels, probability, records, names):
    """MIT-BIH, AAMI classes -> the field's mean F1, and the S class without record 232, which holds 75% of DS2's S."""
    classes, rest, s = multiclass_metrics(labels, probability, names)["classes"], records != "232", names.index("S")
    figures = {"mean_f1_nsv": mean_of(classes, "f1", "NSV"), "mean_f1_nsvf": mean_of(classes, "f1", "NSVF")}
    if not rest.all():
        figures["S_without_record_232"] = class_metrics(labels[rest] == s, probability[rest].argmax(axis=1) == s,
                                                        probability[rest, s])
    return figures


# ---- Intervals ----

def bootstrap(patients, statistics, resamples=1000, seed=0):
    """(n,) patient of each row, function of (b, n) weights -> dict of (resamples,) figures, over resamples of the patients.

    A patient is drawn with all rows, because these are not independent. Weights of one give the figures themselves.
    """
    _, number = np.unique(patients, return_inverse=True)
    count = number.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    parts = [statistics(part[:, number].astype(np.float64))
             for part in np.array_split(drawn, max(1, resamples * len(number) // 10 ** 7))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def weighted_auc(wanted, scores, weights):
    """(n,) bool, (n,) scores, (b, n) weights -> (b,) AUC, NaN where one of both is missing. Equal scores count half."""
    order = np.argsort(scores, kind="stable")
    groups = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))   # where each group of equal scores begins
    weights, wanted = weights[:, order], wanted[order]
    positive, negative = (np.add.reduceat(weights * mask, groups, axis=1) for mask in (wanted, ~wanted))
    pairs = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
    return divide(pairs, positive.sum(axis=1) * negative.sum(axis=1))


def divide(parts, wholes):
    """Arrays -> parts / wholes, NaN where there is nothing to divide by."""
    return np.divide(parts, wholes, out=np.full(np.shape(wholes), np.nan), where=np.asarray(wholes) > 0)


def interval(values):
    """Figures of the resamples -> [low, high], the middle 95%; None where fewer than half of them are defined."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= .5 else []
    return [float(x) for x in np.quantile(values, [.025, .975])] if len(values) else None


def statistics_of(wanted, predicted, probability, names):
    """(n, k) truth, prediction, probability, k names -> function of (b, n) weights -> dict of (b,) figures for `bootstrap`."""
    right = (wanted == predicted).all(axis=1).astype(float)

    def statistics(weights):
        hits, called, there = (weights @ mask.astype(float) for mask in (wanted & predicted, predicted, wanted))
        f1 = np.where(there > 0, divide(2 * hits, called + there), np.nan)
        auc = np.stack([weighted_auc(column, p, weights) for column, p in zip(wanted.T, probability.T)], axis=1)
        figures = {"accuracy": divide(weights @ right, weights.sum(axis=1)), "macro_f1": mean_of_defined(f1),
                   "macro_auc": mean_of_defined(auc)}
        if list(names[:3]) == ["N", "S", "V"]:
            figures["mean_f1_nsv"] = mean_of_defined(f1[:, :3])
        for k, name in enumerate(names):
            figures |= {
                f"{name} sensitivity": divide(hits[:, k], there[:, k]), f"{name} f1": f1[:, k], f"{name} auc": auc[:, k],
                f"{name} positive_predictivity": np.where(there[:, k] > 0, divide(hits[:, k], called[:, k]), np.nan)}
        return figures
    return statistics


def mean_of_defined(values):
    """(b, k) figures -> (b,) mean of those that are defined, NaN where none is."""
    return divide(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1).astype(float))


def resampled(patients, statistics, seed=0):
    """(n,) patient of each row, statistics for `bootstrap` -> dict of figure -> (1 + 1000,): its value, then the resamples'."""
    value, drawn = statistics(np.ones((1, len(patients)))), bootstrap(patients, statistics, seed=seed)
    return {name: np.concatenate([value[name], drawn[name]]) for name in value if np.isfinite(value[name][0])}


def compare(figures, others):
    """Two dicts of `resampled` -> dict of the differences of the figures that both have, with their intervals.

    With the same patients and seed the resamples are paired, with other seeds independent.
    """
    return {name: {"value": float(values[0] - others[name][0]), "interval": interval(values[1:] - others[name][1:])}
            for name, values in figures.items() if name in others}


# ---- MIT-BIH by record, PTB-XL by group ----

def ectopic_figures(matrix, index, ignored):
    """(k, k) confusion matrix, a class's index, true classes that may be called it without an error -> dict of figures."""
    hits, missed = matrix[index, index], matrix[index].sum() - matrix[index, index]
    others = [i for i in range(len(matrix)) if i != index]
    false = sum(matrix[i, index] for i in others if i not in ignored)
    negatives = sum(matrix[i].sum() - matrix[i, index] for i in others)
    return {"sensitivity": ratio(hits, hits + missed), "positive_predictivity": ratio(hits, hits + false),
            "false_positive_rate": ratio(false, false + negatives)}


def ec57_figures(labels, predicted, records, names):
    """MIT-BIH, AAMI classes -> VEB and SVEB figures of each record, of all beats together (gross), and their average by record.

    As in ANSI/AAMI EC57 and de Chazal et al. 2004: a fusion or unclassifiable beat that is called V is no false positive, nor
    is an unclassifiable one that is called S.
    """
    s, v, f, q = (names.index(name) for name in "SVFQ")

    def figures(rows):
        matrix = confusion_matrix(labels[rows], predicted[rows], labels=range(len(names)))
        return {"beats": int(matrix.sum()), "VEB": ectopic_figures(matrix, v, (f, q)), "SVEB": ectopic_figures(matrix, s, (q,))}
    by_record = {str(record): figures(records == record) for record in np.unique(records)}
    gross = figures(np.ones(len(labels), bool))
    average = {kind: {key: mean_of({record: row[kind] for record, row in by_record.items()}, key) for key in gross[kind]}
               for kind in ("VEB", "SVEB")}
    return {"gross": gross, "average": average, "records": by_record}


def group_figures(checkpoint, metadata, targets, probability):
    """PTB-XL test rows -> dict of sex or age group -> records, macro AUC and macro F1."""
    age = np.where(metadata["age"] > 89, 90, metadata["age"])   # 300 stands for above 89
    groups = {"male": metadata["sex"] == 0, "female": metadata["sex"] == 1, "under 40": age < 40,
              "40 to 59": (age >= 40) & (age < 60), "60 to 79": (age >= 60) & (age < 80), "80 and over": age >= 80}
    found = {}
    for name, rows in groups.items():
        if rows.any():
            metrics = figures_of_task(checkpoint, targets[rows], probability[rows])
            found[name] = {"records": int(rows.sum()), "macro_auc": metrics["macro_auc"], "macro_f1": metrics["macro_f1"]}
    return found


# ---- Calibration ----

def with_temperature(probability, task, temperature):
    """(n, k) probabilities -> those of the logits divided by the temperature."""
    clipped = np.clip(probability, 1e-12, 1 - 1e-12)
    return expit(logit(clipped) / temperature) if task == "multilabel" else softmax(np.log(clipped) / temperature, axis=1)


def fit_temperature(probability, targets, task):
    """(n, k) probabilities and targets of the validation rows -> the temperature of the smallest log loss (Guo et al. 2017)."""
    def loss(log_temperature):
        p = np.clip(with_temperature(probability, task, np.exp(log_temperature)), 1e-12, 1 - 1e-12)
        if task == "multilabel":
            return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))
        return -np.mean(np.log(p[np.arange(len(targets)), targets]))
    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def reliability(probability, truth):
    """(n,) probabilities and truth -> list of (mean probability, share that is true, rows) of ten equal bins."""
    number = (probability * 10).astype(int).clip(0, 9)
    return [(float(probability[number == k].mean()), float(truth[number == k].mean()), int(np.sum(number == k)))
            for k in range(10) if np.any(number == k)]


def calibration_error(bins):
    """Bins of `reliability` -> expected calibration error."""
    return float(sum(n * abs(p - share) for p, share, n in bins) / sum(n for _, _, n in bins))


def calibration_of(checkpoint, targets, probability, temperature):
    """Test rows, temperature of the validation rows -> dict: error and bins before and after.

    Multiclass: of the most probable class. Multilabel: of all classes together.
    """
    report = {"temperature": temperature}
    for when, p in (("before", probability), ("after", with_temperature(probability, checkpoint["task"], temperature))):
        bins = (reliability(p.ravel(), targets.ravel()) if checkpoint["task"] == "multilabel"
                else reliability(p.max(axis=1), p.argmax(axis=1) == targets))
        report[when] = {"expected_calibration_error": calibration_error(bins), "bins": bins}
    return report


# ---- What the model looks at ----

def attributions(method, net, crop, signals, features, classes, steps=32):
    """Net, (n, channels, samples), (n, k), (n,) class of each -> (n, channels, samples) attribution to that class's logit.

    gradient: its size (Simonyan et al. 2014). integrated_gradients: from the training's mean to the signal, in `steps` steps
    (Sundararajan et al. 2017); they add up to the difference of the logits. grad_cam: the feature maps, weighted by their
    mean gradients (Selvaraju et al. 2017), the same for all channels.
    """
    if method == "grad_cam":
        return grad_cam(net, crop, signals, features, classes)
    base, total = net.normalise_signals.mean, torch.zeros_like(signals)
    for k in range(1 if method == "gradient" else steps):
        share = 1 if method == "gradient" else (k + .5) / steps
        x = (base + share * (signals - base)).requires_grad_()
        model_training.crop_logits(net, x, features, crop).gather(1, classes[:, None]).sum().backward()
        total += x.grad
    return total.abs() if method == "gradient" else total / steps * (signals - base)


def grad_cam(net, crop, signals, features, classes):
    """See `attributions`: the mean over the crops that cover a sample."""
    total, covered = torch.zeros_like(signals), torch.zeros(signals.shape[2])
    for start in crop_starts(signals.shape[2], crop):
        maps = net.maps(net.normalise_signals(signals[:, :, start:start + crop])).detach().requires_grad_()
        net.classify(maps, features).gather(1, classes[:, None]).sum().backward()
        weighted = (maps.grad.mean(dim=2, keepdim=True) * maps).sum(dim=1, keepdim=True).relu().detach()
        total[:, :, start:start + crop] += torch.nn.functional.interpolate(weighted, size=crop, mode="linear")
        covered[start:start + crop] += 1
    return total / covered


def by_lead(checkpoint, attribution):
    """(n, channels, samples) -> (n, leads, segment) numpy sizes, smoothed over 0.02 s: the channels of a lead belong together.

    With record-relative inputs each lead has two channels, and its voltage moves both (the median beat is held).
    """
    leads = len(checkpoint["inputs"]["leads"])
    size = attribution.view(len(attribution), -1, leads, attribution.shape[2]).sum(dim=1).abs().numpy()
    size = uniform_filter1d(size, max(1, round(.02 * checkpoint["sampling_rate"])), axis=2)
    unseen = checkpoint["segment"] - size.shape[2]   # the ends of a segment that the model does not see
    return np.pad(size, ((0, 0), (0, 0), (unseen // 2, unseen - unseen // 2)))


def choose_rows(wanted, predicted, probability, number):
    """(n, k) truth, predictions, probabilities -> dict of class index -> up to `number` correct rows around median confidence.

    Rows of that class alone come first. Without a correct one it is the most confident one; a class without rows is left out.
    """
    chosen, alone = {}, wanted.sum(axis=1) == 1
    for k in range(wanted.shape[1]):
        right = wanted[:, k] & predicted[:, k]
        for rows, place in ((right & alone, .5), (right, .5), (wanted[:, k], 1)):
            ranked = np.flatnonzero(rows)[np.argsort(probability[rows, k])]
            if len(ranked):
                ranked = ranked[-1:] if place == 1 else ranked
                first = int(np.clip(int(place * (len(ranked) - 1)) - (number - 1) // 2, 0, max(0, len(ranked) - number)))
                chosen[k] = ranked[first:first + number]
                break
    return chosen


def explain(net, checkpoint, inputs, chosen):
    """Net, inputs of the test rows, rows of each class -> dict of method -> class -> (n, leads, segment), and how far the
    integrated gradients are from the difference of the logits (relative)."""
    found, gap = {method: {} for method in METHODS}, []
    for k, rows in chosen.items():
        signals, features = (values[torch.from_numpy(rows)] for values in inputs)
        classes = torch.full((len(rows),), k)
        for method in METHODS:
            attribution = attributions(method, net, checkpoint["crop"], signals, features, classes)
            found[method][k] = by_lead(checkpoint, attribution)
            if method == "integrated_gradients":
                base = net.normalise_signals.mean.expand_as(signals)
                with torch.no_grad():
                    ends = [model_training.crop_logits(net, x, features, checkpoint["crop"])[:, k] for x in (signals, base)]
                difference = ends[0] - ends[1]
                gap.append(torch.stack([(attribution.sum(dim=(1, 2)) - difference).abs().sum(), difference.abs().sum()]))
    missed, whole = torch.stack(gap).sum(dim=0).tolist() if gap else (0, 0)
    return found, ratio(missed, whole)


DELETED = [0, .02, .05, .1, .2, .3, .4, .5]   # shares of the time that the deletion test takes away


def deletion_test(net, checkpoint, inputs, chosen, attribution, moved):
    """Rows of each class and their attributions -> (8,) mean probability of the class after the loss of DELETED shares of time.

    The samples with the largest attribution become the training's mean. moved: the attributions are moved to random places
    first, so that they keep their form and lose their meaning; an attribution is worth something where it does better.
    """
    rng, curves = np.random.default_rng(0), []
    for k, rows in chosen.items():
        signals, features = (values[torch.from_numpy(rows)] for values in inputs)
        unseen = checkpoint["segment"] - signals.shape[2]
        weight = attribution[k].sum(axis=1)[:, unseen // 2:unseen // 2 + signals.shape[2]]
        if moved:
            weight = np.stack([np.roll(row, rng.integers(len(row))) for row in weight])
        order = torch.from_numpy(np.argsort(-weight, axis=1).copy())
        curve = []
        for share in DELETED:
            largest = order[:, :round(share * signals.shape[2])]
            mask = torch.zeros(len(rows), signals.shape[2], dtype=torch.bool).scatter(1, largest, True)
            x = torch.where(mask[:, None], net.normalise_signals.mean, signals)
            logits = predict(net, x, features, np.arange(len(rows)), checkpoint["crop"])
            curve.append(probabilities(logits, checkpoint["task"], len(checkpoint["class_names"]))[:, k].mean())
        curves.append(curve)
    return np.mean(curves, axis=0)


# ---- Pictures ----

LINES = ["-", "--", ":", "-.", "-"]   # of a class or a method, with its shade: pictures are read in greyscale, too
SHADES = ["black", "black", "black", "0.45", "0.65", "0.3", "0.55"]
BLUE = "#08519c"


def save(figure, title, path):
    """Figure -> PNG."""
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def plot_confusion(matrix, names, title, path):
    """(k, k) counts, rows true -> PNG with counts and row percentages."""
    matrix = np.array(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(2.2 + .95 * len(names), 1.8 + .8 * len(names)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        axis.text(j, i, f"{count:,}\n{share[i, j]:.1%}" if matrix[i].any() else "n/a", ha="center", va="center",
                  fontsize=8, color="white" if share[i, j] > .5 else "black")
    axis.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class")
    axis.set_xticklabels(names, rotation=30 if max(map(len, names)) > 5 else 0, ha="center")
    axis.set_yticklabels(names)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=.8)
    save(figure, title, path)


def plot_curves(wanted, predicted, probability, names, title, path):
    """(n, k) truth, predictions, probabilities -> PNG: ROC and precision-recall curves by class, circle: operating point."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    roc, precision_recall = figure.subplots(1, 2)
    for k, name in enumerate(names):
        if wanted[:, k].all() or not wanted[:, k].any():
            continue
        figures, style = (class_metrics(wanted[:, k], predicted[:, k], probability[:, k]),
                          {"linestyle": LINES[k % 5], "color": SHADES[k % 7]})
        x, y, _ = roc_curve(wanted[:, k], probability[:, k])
        roc.plot(x, y, **style, linewidth=1.2, label=f"{name}: {figures['auc']:.3f}, {figures['average_precision']:.3f}")
        specificity = np.mean(~predicted[~wanted[:, k], k])
        roc.plot(1 - specificity, figures["sensitivity"], "o", color=BLUE, markersize=4)
        precision, recall, _ = precision_recall_curve(wanted[:, k], probability[:, k])
        precision_recall.plot(recall, precision, **style, linewidth=1.2)
        precision_recall.plot(figures["sensitivity"], figures["positive_predictivity"] or np.nan, "o", color=BLUE, markersize=4)
    roc.plot([0, 1], [0, 1], color="0.7", linewidth=.8)
    for axis, labels in ((roc, ("1 - specificity", "sensitivity")),
                         (precision_recall, ("sensitivity (recall)", "positive predictivity (precision)"))):
        axis.set(xlabel=labels[0], ylabel=labels[1], xlim=(-.01, 1.01), ylim=(-.01, 1.02))
    roc.legend(frameon=False, fontsize=8, title="AUC, average precision", title_fontsize=8, loc="lower right")
    save(figure, title, path)


def plot_calibration(calibration, title, path):
    """Dict of `calibration_of` -> PNG: reliability curves before and after the temperature, and how many rows are where."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    curve, counts = figure.subplots(1, 2)
    for when, style, fill, shift in (("before", "--", "white", -.02), ("after", "-", "black", .02)):
        p, share, n = zip(*calibration[when]["bins"])
        error = calibration[when]["expected_calibration_error"]
        curve.plot(p, share, style + "o", color="black", markerfacecolor=fill, markersize=4, label=f"{when}: error {error:.3f}")
        counts.bar(np.array(p) + shift, n, width=.035, color="white" if when == "before" else "0.3", edgecolor="black",
                   label=when)
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=.8)
    curve.set(xlabel="probability", ylabel="share that is true", xlim=(-.01, 1.01), ylim=(-.01, 1.01))
    counts.set(xlabel="probability", ylabel="rows (logarithmic)", yscale="log", xlim=(-.05, 1.05))
    curve.legend(frameon=False, fontsize=8, title=f"temperature {calibration['temperature']:.2f}", title_fontsize=8)
    counts.legend(frameon=False, fontsize=8)
    save(figure, title, path)


def draw_paper(axis, seconds, low, high):
    """ECG paper: squares of 0.04 s and 0.1 mV, heavier ones of 0.2 s and 0.5 mV; the shape is that of 25 mm/s and 10 mm/mV."""
    for step, width in ((1, .3), (5, .8)):
        axis.vlines(np.arange(round(seconds[0] / .04 / step), round(seconds[1] / .04 / step) + 1) * .04 * step, low, high,
                    color="#e8b5b5", linewidth=width, zorder=0)
        axis.hlines(np.arange(round(low / .1 / step), round(high / .1 / step) + 1) * .1 * step, *seconds,
                    color="#e8b5b5", linewidth=width, zorder=0)
    axis.set(xlim=seconds, ylim=(low, high), aspect=.4)


def draw_trace(axis, seconds, voltage, weight):
    """(t,) s, (t,) mV, (t,) 0 to 1 -> the trace, with the weight as a band behind it."""
    points, seen = np.column_stack([seconds, voltage]), weight[:-1] > .02
    band = LineCollection(np.stack([points[:-1], points[1:]], axis=1)[seen], array=weight[:-1][seen], cmap="YlGnBu",
                          linewidths=6, capstyle="round", clim=(0, 1), zorder=1)
    axis.add_collection(band)
    axis.plot(seconds, voltage, color="black", linewidth=.8, zorder=2)
    return band


def draw_beat(axis, voltage, rate, weight=None):
    """(samples,) mV -> one beat on ECG paper, its R peak at 0 s."""
    seconds = (np.arange(len(voltage)) - len(voltage) // 2) / rate
    middle = round(float(voltage.max() + voltage.min()) / 2 / .5) * .5
    reach = max(1.5, np.ceil((np.abs(voltage - middle).max() + .1) / .5) * .5)
    draw_paper(axis, (seconds[0], seconds[-1]), middle - reach, middle + reach)
    axis.tick_params(labelsize=6)
    axis.set_xlabel("time from the R peak (s)", fontsize=7)
    axis.set_ylabel("mV", fontsize=7)
    return draw_trace(axis, seconds, voltage, np.zeros(len(voltage)) if weight is None else weight)


def draw_record(axis, voltage, names, rate, weight=None, rows=3):
    """(leads, samples) mV, lead names -> a record on ECG paper: 2.5 s of each of 12 leads in 3 rows, and lead II below.

    Other numbers of leads, and rows = 0, are drawn as strips of 10 s.
    """
    weight, seconds = np.zeros(voltage.shape) if weight is None else weight, np.arange(voltage.shape[1]) / rate
    if len(names) == 12 and rows == 3:
        order = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
        places = [(lead, -3 * row, 2.5 * column, 2.5 * column + 2.5)
                  for row, leads in enumerate(order) for column, lead in enumerate(leads)]
        places.append((1, -9, 0, 10))
    else:
        places = [(lead, -3 * lead, 0, 10) for lead in range(len(names))]
    lowest = min(level for _, level, _, _ in places)
    draw_paper(axis, (0, 10), lowest - 1.5, 1.5)
    for lead, level, start, end in places:
        part = (seconds >= start) & (seconds <= end)
        trace = np.clip(voltage[lead, part] - np.median(voltage[lead]), -1.9, 1.9)
        band = draw_trace(axis, seconds[part], level + trace, weight[lead, part])
        axis.text(start + .05, level + 1.05, names[lead], fontsize=7, weight="bold")
    axis.set_yticks([])
    axis.tick_params(labelsize=6)
    axis.set_xlabel("time (s); 25 mm/s, 10 mm/mV, cut at 1.9 mV", fontsize=7)
    return band


def first_lead(checkpoint):
    """Checkpoint -> the column of the dataset with the model's first lead, the one that is drawn of a beat."""
    return checkpoint["dataset_leads"].index(checkpoint["inputs"]["leads"][0])


def plot_explanation(checkpoint, signals, examples, weights, captions, title, path):
    """(n, leads, samples) mV of all leads, dicts of class -> row, (leads, segment) attribution, caption -> PNG on ECG paper."""
    rate, beats = checkpoint["sampling_rate"], checkpoint["dataset"] != "ptbxl"
    shape = (1, len(examples)) if beats else (len(examples), 1)
    figure = Figure(figsize=(2.7 * len(examples), 4.1) if beats else (11, 6.1 * len(examples)), layout="constrained")
    for axis, (k, row) in zip(figure.subplots(*shape, squeeze=False).ravel(), examples.items()):
        size = weights[k] / max(weights[k].max(), 1e-12)
        if beats:
            band = draw_beat(axis, np.array(signals[row, first_lead(checkpoint)]), rate, size[0])
        else:
            every = np.zeros(signals.shape[1:])
            every[[checkpoint["dataset_leads"].index(lead) for lead in checkpoint["inputs"]["leads"]]] = size
            band = draw_record(axis, np.array(signals[row]), checkpoint["dataset_leads"], rate, every)
        axis.set_title(captions[k], fontsize=7 if beats else 9)
    figure.colorbar(band, ax=figure.axes, label="attribution (largest: 1)", shrink=.6, fraction=.03,
                    location="bottom" if beats else "right")
    save(figure, title, path)


def plot_averages(checkpoint, signals, chosen, explained, curves, title, path):
    """Mean attribution of each class over its chosen rows, and the deletion test -> PNG.

    Beats: over time, below their mean beat. Records: the share of each lead, because their beats are not aligned.
    """
    names, leads, rate = checkpoint["class_names"], checkpoint["inputs"]["leads"], checkpoint["sampling_rate"]
    beats = checkpoint["dataset"] != "ptbxl"
    figure = Figure(figsize=(2.3 * (len(chosen) + 1.5), 5.2) if beats else (11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(len(chosen), 1.6) if beats else (2, 1))
    if beats:
        grid = left.subplots(2, len(chosen), squeeze=False, sharex="col")
        for axes, (k, rows) in zip(grid.T, chosen.items()):
            weight = explained[DRAWN_METHOD][k].mean(axis=0)[0]
            draw_beat(axes[0], np.mean(signals[rows, first_lead(checkpoint)], axis=0), rate, weight / max(weight.max(), 1e-12))
            axes[0].set_title(f"{names[k]}, mean of {len(rows)}", fontsize=8)
            axes[0].set_xlabel("")
            seconds = (np.arange(signals.shape[2]) - signals.shape[2] // 2) / rate
            for method, style in zip(METHODS, LINES):
                mean = explained[method][k].mean(axis=(0, 1))
                axes[1].plot(seconds, mean / max(mean.max(), 1e-12), linestyle=style, color="black", linewidth=1,
                             label=method.replace("_", " "))
            axes[1].set_xlabel("time from the R peak (s)", fontsize=7)
            axes[1].tick_params(labelsize=6)
        grid[1, 0].set_ylabel("mean attribution (largest: 1)", fontsize=7)
    else:
        axis = left.subplots()
        share = np.stack([explained[DRAWN_METHOD][k].sum(axis=(0, 2)) / explained[DRAWN_METHOD][k].sum() for k in chosen])
        image = axis.imshow(share, cmap="YlGnBu", vmin=0)
        axis.set_xticks(range(len(leads)), leads, fontsize=8)
        axis.set_yticks(range(len(chosen)), [names[k] for k in chosen], fontsize=8)
        left.colorbar(image, ax=axis, label="share of the attribution", shrink=.7)
        axis.set_xlabel("lead")
    axis = right.subplots()
    for (method, (curve, moved)), style in zip(curves.items(), LINES):
        axis.plot(DELETED, curve, linestyle=style, color="black", marker="o", markersize=3, label=method.replace("_", " "))
        axis.plot(DELETED, moved, linestyle=style, color="0.6", marker="o", markersize=3,
                  label=f"{method.replace('_', ' ')}, moved")
    axis.set(xlabel="share of the time deleted", ylabel="mean probability of the class", ylim=(0, 1))
    axis.set_title("deletion test: black below grey is better", fontsize=8)
    axis.legend(frameon=False, fontsize=6, handlelength=4)
    save(figure, title, path)


def plot_mistakes(checkpoint, signals, rows, captions, title, path):
    """The most confident mistakes, with captions -> PNG: beats side by side, or lead II (or the model's first) of records."""
    rate, beats = checkpoint["sampling_rate"], checkpoint["dataset"] != "ptbxl"
    if beats:
        figure = Figure(figsize=(11, 2.9 * -(-max(1, len(rows)) // 4)), layout="constrained")
        axes = figure.subplots(-(-max(1, len(rows)) // 4), 4, squeeze=False).ravel()
    else:
        figure = Figure(figsize=(11, 1.75 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots(max(1, len(rows)), 1, squeeze=False).ravel()
    lead = "II" if "II" in checkpoint["dataset_leads"] else checkpoint["inputs"]["leads"][0]
    for axis, row, caption in zip(axes, rows, captions):
        if beats:
            draw_beat(axis, np.array(signals[row, first_lead(checkpoint)]), rate)
        else:
            draw_record(axis, np.array(signals[row, [checkpoint["dataset_leads"].index(lead)]]), [lead], rate, rows=0)
            axis.set_xlabel("")
        axis.set_title(caption, fontsize=7)
    for axis in axes[len(rows):]:
        axis.set_axis_off()
    save(figure, title, path)


# ---- Report ----

def show(value, digits=3):
    """Number -> text, "n/a" for None."""
    return "n/a" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def protocol_of(checkpoint, rows):
    """Checkpoint, test rows -> dict that says what the figures were measured on."""
    return {key: checkpoint[key] for key in ("dataset", "model", "task", "split", "leaks", "simulated",
                                             "seed", "epoch", "class_names")} | {
        "split_parts": None if checkpoint["leaks"] else checkpoint["split_parts"],
        "train_fraction": checkpoint["train_fraction"], "train_rows": checkpoint["train_rows"], "test_rows": len(rows)}


def warnings_of(checkpoint):
    """Checkpoint -> the sentences that must stand beside every figure made with it."""
    return (["SIMULATED DATA: no figure is a result"] if checkpoint["simulated"] else []) + (
        ["LEAKY RANDOM SPLIT: the model was trained on the patients of its own test rows"] if checkpoint["leaks"] else [])


def print_metrics(metrics):
    """Prints the figures by class, then over all classes, with 95% intervals if any; then calibration, EC57, groups."""
    columns = ["support", "sensitivity", "positive_predictivity", "f1", "auc", "average_precision"]
    rows, intervals = dict(metrics["classes"]), metrics.get("intervals", {})
    if "S_without_record_232" in metrics:
        rows["S without record 232"] = metrics["S_without_record_232"]
    print(f"\n{'class':<24}" + "".join(f"{title:>9}" for title in ("n", "Se", "+P", "F1", "AUC", "AP"))
          + ("   F1, 95% interval" if intervals else ""))
    for name, row in rows.items():
        low, high = intervals.get(f"{name} f1") or (None, None)
        print(f"{name:<24}" + "".join(f"{show(row[column]):>9}" for column in columns)
              + (f"   {show(low)} to {show(high)}" if low is not None else ""))
    print()
    for name, value in metrics.items():
        if value is None or isinstance(value, float):
            print(f"{name:<24}{with_interval(value, intervals.get(name))}")
    for name, value in metrics.get("single_superclass", {}).items():
        print(f"{name + ', one superclass':<32}{show(value)}")
    for kind in ("VEB", "SVEB") if "ec57" in metrics else ():
        for how in ("gross", "average"):
            row = metrics["ec57"][how][kind]
            print(f"{kind + ', ' + how:<24}Se {show(row['sensitivity'])}  +P {show(row['positive_predictivity'])}  "
                  f"FPR {show(row['false_positive_rate'], 4)}")
    for name, row in metrics.get("groups", {}).items():
        print(f"{name:<24}{row['records']:>6,} records  macro AUC {show(row['macro_auc'])}  macro F1 {show(row['macro_f1'])}")
    if "calibration" in metrics:
        before, after = (metrics["calibration"][when]["expected_calibration_error"] for when in ("before", "after"))
        print(f"calibration error       {before:.3f}, "
              f"with temperature {metrics['calibration']['temperature']:.2f}: {after:.3f}")
    for name, row in metrics.get("comparison", {}).get("difference", {}).items():
        if " " not in name:
            print(f"{name + ' minus ' + metrics['comparison']['model'] + '`s':<32}"
                  f"{with_interval(row['value'], row['interval'])}")


def print_interpretation(found):
    """Prints whether integrated gradients add up, and what deleting a fifth of the time does to the class's probability."""
    if found["completeness_error"] is not None:
        print(f"integrated gradients miss the difference of the logits by {found['completeness_error']:.2%}")
    place = found["deleted"].index(.2)
    for method, curve in found["deletion"].items():
        print(f"a fifth of the time deleted by {method}: probability {curve['attribution'][0]:.3f} "
              f"to {curve['attribution'][place]:.3f}; at moved places {curve['moved'][place]:.3f}")


# ---- Report page ----

def html_table(titles, rows):
    """Column titles, rows of texts -> HTML table."""
    cells = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return ("<table><tr>" + "".join(f"<th>{html.escape(title)}</th>" for title in titles) + "</tr>"
            + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")


def with_interval(value, limits):
    """Value, [low, high] or None -> text."""
    return show(value) + (f" ({show(limits[0])} to {show(limits[1])})" if limits and value is not None else "")


def report_page(title, report, pictures):
    """Title, the JSON report, dict of heading -> PNG path -> one HTML page without outside files."""
    intervals, columns = report["intervals"], ["support", "sensitivity", "positive_predictivity", "f1", "auc",
                                               "average_precision"]
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p><b>{html.escape(warning)}</b></p>" for warning in report["warnings"])]
    overall = [(name, with_interval(value, intervals.get(name))) for name, value in report.items() if isinstance(value, float)]
    parts += ["<h2>All classes</h2><p>95% intervals from 1,000 resamples of the patients.</p>",
              html_table(["figure", "value"], overall)]
    parts += ["<h2>By class</h2>", html_table(["class", *columns], [
        (name, *(with_interval(row[column], intervals.get(f"{name} {column}")) for column in columns))
        for name, row in report["classes"].items()])]
    if "ec57" in report:
        rows = {"gross": report["ec57"]["gross"], "average": report["ec57"]["average"], **report["ec57"]["records"]}
        keys = ["sensitivity", "positive_predictivity", "false_positive_rate"]
        parts += ["<h2>Ventricular (VEB) and supraventricular (SVEB) ectopic beats by record</h2>", html_table(
            ["record", "beats", *(f"{kind} {key.replace('_', ' ')}" for kind in ("VEB", "SVEB") for key in keys)],
            [(name, row.get("beats", ""), *(show(row[kind][key]) for kind in ("VEB", "SVEB") for key in keys))
             for name, row in rows.items()])]
    if "groups" in report:
        parts += ["<h2>By sex and age</h2>", html_table(["group", "records", "macro AUC", "macro F1"], [
            (name, row["records"], show(row["macro_auc"]), show(row["macro_f1"])) for name, row in report["groups"].items()])]
    if "comparison" in report:
        parts += [f"<h2>Difference from {html.escape(report['comparison']['model'])}</h2>", html_table(
            ["figure", "difference"], [(name, with_interval(row["value"], row["interval"]))
                                       for name, row in report["comparison"]["difference"].items()])]
    for heading, path in pictures.items():
        image = base64.b64encode(Path(path).read_bytes()).decode()
        parts.append(f'<h2>{html.escape(heading)}</h2><img alt="{html.escape(heading)}" src="data:image/png;base64,{image}">')
    parts += ["<h2>Protocol</h2>", html_table(["", ""], [(key, value) for key, value in report["protocol"].items()])]
    style = "body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}img{max-width:100%}" \
            "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:3px 8px;text-align:left}th{background:#eee}"
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{style}</style></head><body>{''.join(parts)}</body></html>\n")


# ---- Main ----

def figures_of_task(checkpoint, targets, probability):
    """Checkpoint, targets and probabilities -> dict of figures over all classes and by class."""
    if checkpoint["task"] == "multilabel":
        return multilabel_metrics(targets, probability, checkpoint["thresholds"], checkpoint["class_names"])
    return multiclass_metrics(targets, probability, checkpoint["class_names"])


def evaluate(checkpoint, data, rows, targets, probability):
    """Checkpoint, dataset, test rows, their targets and probabilities -> dict of all figures."""
    metrics, names, metadata = figures_of_task(checkpoint, targets, probability), checkpoint["class_names"], data.metadata[rows]
    if data.kind == "mitbih" and checkpoint["class_map"] == "aami":
        metrics |= aami_metrics(targets, probability, metadata["record"], names)
        metrics["ec57"] = ec57_figures(targets, probability.argmax(axis=1), metadata["record"], names)
    elif data.kind == "ptbxl":
        metrics["groups"] = group_figures(checkpoint, metadata, targets, probability)
    return metrics


def membership(checkpoint, targets, probability):
    """Targets and probabilities -> (n, k) true and predicted membership, bool."""
    if checkpoint["task"] == "multilabel":
        return targets == 1, probability >= np.array(checkpoint["thresholds"])
    classes = np.arange(len(checkpoint["class_names"]))
    return targets[:, None] == classes, probability.argmax(axis=1)[:, None] == classes


def scored_rows(checkpoint, net, data, inputs, side):
    """Checkpoint, net, dataset, inputs of all its rows, "validation" or "test" -> its row numbers, targets, probabilities."""
    sides = split_rows(data, checkpoint["split"], checkpoint["split_parts"], checkpoint["seed"])
    rows = task_rows(data, checkpoint["task"], sides)[side]
    if len(rows) == 0:
        raise SystemExit(f"{data.name}_signals.npy has no {side} rows with a class: preprocess the complete dataset"
                         + (', or train with another SPLIT: "all" left none' if checkpoint["split"] == "all" else ""))
    records = data.metadata["record"][rows] if checkpoint["prior"] else None
    logits = predict(net, *inputs, rows, checkpoint["crop"])
    probability = probabilities(logits, checkpoint["task"], len(checkpoint["class_names"]), records, checkpoint["prior"])
    return rows, targets_of(data, checkpoint["task"])[rows].numpy(), probability


def resampled_figures(checkpoint, patients, targets, probability):
    """Test rows -> their `resampled` figures."""
    return resampled(patients, statistics_of(*membership(checkpoint, targets, probability), probability,
                                             checkpoint["class_names"]))


def compare_with(model, checkpoint, data, rows, patients, figures):
    """Name of another model of the dataset -> dict of the differences from it on the same rows, with their intervals."""
    other, net = load_checkpoint(DATASET, model)
    check_dataset(other, data)
    other_rows, targets, probability = scored_rows(other, net, data, make_inputs(data, **other["inputs"]), "test")
    if not np.array_equal(other_rows, rows) or other["task"] != checkpoint["task"]:
        raise SystemExit(f"COMPARE_WITH = {model!r}: that model has another task or other test rows. "
                         "Train both with the same constants")
    return {"model": model, "difference": compare(figures, resampled_figures(other, patients, targets, probability))}


def predictions_table(checkpoint, metadata, wanted, predicted, probability):
    """Metadata of the test rows, (n, k) truth, predictions, probabilities -> table with one row each."""
    names = np.array(checkpoint["class_names"])
    fields = [name for name in ("ecg_id", "record", "sample", "symbol", "patient", "fold", "age", "sex")
              if name in metadata.dtype.names]
    columns = {name: metadata[name] for name in fields}
    for title, mask in (("true", wanted), ("predicted", predicted)):
        columns[title] = ["+".join(names[row]) for row in mask]
    for k, name in enumerate(names):
        columns |= {f"{name} true": wanted[:, k].astype(int), f"{name} probability": probability[:, k]}
    return pd.DataFrame(columns)


def captions_of(checkpoint, metadata, wanted, probability, rows):
    """Row numbers among the test rows -> a caption for each: where it is from, its classes, the most probable one."""
    names = np.array(checkpoint["class_names"])
    where = [f"ecg_id {m['ecg_id']}" if "ecg_id" in metadata.dtype.names
             else f"{m['record']}, {m['sample'] / checkpoint['sampling_rate']:.1f} s" for m in metadata[rows]]
    end = ", " if "ecg_id" in metadata.dtype.names else ",\n"
    return [f"{place}: true {'+'.join(names[wanted[row]]) or 'none'}{end}most probable {names[probability[row].argmax()]} "
            f"({probability[row].max():.2f})" for place, row in zip(where, rows)]


def worst_rows(wanted, predicted, probability, number):
    """(n, k) truth, predictions, probabilities -> rows of the most confident mistakes."""
    error = np.where(wanted != predicted, np.abs(wanted - probability), 0).max(axis=1)
    return np.argsort(-error, kind="stable")[:min(number, int(np.sum(error > 0)))]


def draw_all(paths, checkpoint, net, data, inputs, rows, wanted, predicted, probability, report, title):
    """Makes the six pictures -> dict for the JSON: completeness of the integrated gradients, and the deletion test."""
    names, metadata, signals = checkpoint["class_names"], data.metadata[rows], data.signals[rows]
    confusion, curves, calibration, explanation, averages, mistakes = paths
    plot_confusion(report["confusion_matrix"], names,
                   title + (", records with one superclass" if checkpoint["task"] == "multilabel" else ""), confusion)
    plot_curves(wanted, predicted, probability, names, f"{title}; circle: operating point", curves)
    plot_calibration(report["calibration"], title, calibration)

    test_inputs = [values[torch.from_numpy(rows)] for values in inputs]
    chosen = choose_rows(wanted, predicted, probability, AVERAGED[DATASET])
    explained, gap = explain(net, checkpoint, test_inputs, chosen)
    tests = {method: [deletion_test(net, checkpoint, test_inputs, chosen, explained[method], moved) for moved in (False, True)]
             for method in METHODS}
    middle = {k: (len(found) - 1) // 2 for k, found in chosen.items()}
    examples = {k: found[middle[k]] for k, found in chosen.items()}
    captions = dict(zip(examples, captions_of(checkpoint, metadata, wanted, probability, list(examples.values()))))
    plot_explanation(checkpoint, signals, examples, {k: explained[DRAWN_METHOD][k][middle[k]] for k in chosen}, captions,
                     f"{title}: {DRAWN_METHOD.replace('_', ' ')}", explanation)
    plot_averages(checkpoint, signals, chosen, explained, tests, f"{title}: {DRAWN_METHOD.replace('_', ' ')}", averages)
    worst = worst_rows(wanted, predicted, probability, 12 if data.kind == "mitbih" else 8)
    plot_mistakes(checkpoint, signals, worst, captions_of(checkpoint, metadata, wanted, probability, worst),
                  f"{title}: the most confident mistakes", mistakes)
    return {"methods": METHODS, "completeness_error": gap, "deleted": DELETED,
            "deletion": {method: {"attribution": found.tolist(), "moved": moved.tolist()}
                         for method, (found, moved) in tests.items()}}


def check_constants():
    """Stops the run with one sentence when a constant has none of its allowed values."""
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    check_choice("MODEL", MODEL, ["cnn", "lstm", "mlp"])
    check_choice("COMPARE_WITH", COMPARE_WITH, [None, *(model for model in ("cnn", "lstm", "mlp") if model != MODEL)])
    if not METHODS or set(METHODS) - {"gradient", "integrated_gradients", "grad_cam"}:
        raise SystemExit(f"METHODS = {METHODS!r}: expected some of gradient, integrated_gradients, grad_cam")
    check_choice("DRAWN_METHOD", DRAWN_METHOD, METHODS)


def main():
    check_constants()
    checkpoint, net = load_checkpoint(DATASET, MODEL)
    data = load_dataset(DATASET)
    check_dataset(checkpoint, data)
    inputs = make_inputs(data, **checkpoint["inputs"])
    rows, targets, probability = scored_rows(checkpoint, net, data, inputs, "test")
    _, validation_targets, validation_probability = scored_rows(checkpoint, net, data, inputs, "validation")
    wanted, predicted = membership(checkpoint, targets, probability)
    patients, warnings = data.metadata["patient"][rows], warnings_of(checkpoint)

    figures = resampled_figures(checkpoint, patients, targets, probability)
    temperature = fit_temperature(validation_probability, validation_targets, checkpoint["task"])
    report = {"protocol": protocol_of(checkpoint, rows) | {"test_patients": len(np.unique(patients))}, "warnings": warnings,
              "made_from": {**origin_of(checkpoint), "evaluation": constants_of(globals(), ["KEYS", "INPUTS"])},
              **evaluate(checkpoint, data, rows, targets, probability),
              "intervals": {name: interval(values[1:]) for name, values in figures.items()},
              "calibration": calibration_of(checkpoint, targets, probability, temperature)}
    if COMPARE_WITH:
        report["comparison"] = compare_with(COMPARE_WITH, checkpoint, data, rows, patients, figures)
    print(f"{DATASET} {MODEL}, {checkpoint['task']}: {len(rows):,} test rows of the {checkpoint['split']} split, "
          f"{report['protocol']['test_patients']:,} patients")
    print_metrics(report)

    title = ". ".join([f"{DATASET} {MODEL}, {checkpoint['split']} split, test rows", *warnings])
    outputs = [f"{DATASET}_{MODEL}_{part}"
               for part in ("confusion.png", "curves.png", "calibration.png", "explanation.png", "averages.png", "mistakes.png",
                            "metrics.json", "predictions.csv", "report.html")]
    with new_files(*outputs) as paths:
        report["interpretation"] = draw_all(paths[:6], checkpoint, net, data, inputs, rows, wanted, predicted, probability,
                                            report, title)
        paths[6].write_text(json.dumps(report, indent=1) + "\n")
        table = predictions_table(checkpoint, data.metadata[rows], wanted, predicted, probability)
        table.to_csv(paths[7], index=False, float_format="%.9g")
        headings = ["Confusion matrix", "Curves", "Calibration", "What the model looks at", "Averages and deletion test",
                    "Mistakes"]
        paths[8].write_text(report_page(title, report, dict(zip(headings, paths))))
    print_interpretation(report["interpretation"])
    print(*warnings, sep="\n")
    print(f"Wrote {', '.join(outputs)}")


if __name__ == "__main__":
    main()
