"""Evaluates a trained model on its test rows and shows what it looks at.

Reads   {dataset}_{model}_model.pth      from model_training.py
        {dataset}_signals.npy, _labels.npy, _metadata.npy, _header.npy   from the preprocess scripts
Writes  {dataset}_{model}_metrics.json   every figure that is printed, with the protocol
        {dataset}_{model}_confusion.png  confusion matrix
        {dataset}_{model}_saliency.png   one test ECG a class, with the gradient of its score laid over the trace
Takes   half a minute on two cores.
"""

import json

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

import model_training
from model_training import (crop_logits, load_dataset, make_inputs, predict, probabilities, split_rows, targets_of,
                            task_rows)
from preprocess_mitbih import check_choice, new_files

# data and model: the checkpoint {DATASET}_{MODEL}_model.pth decides everything else
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"

# pictures
SALIENCY_LEADS = ["II", "V2", "V5"]   # the leads of a 12-lead record that are drawn
SMOOTHING = 0.02          # s, width of the moving average over the gradient


# what a checkpoint must hold
KEYS = {"dataset", "model", "class_map", "class_names", "dataset_leads", "sampling_rate", "segment", "simulated", "split",
        "leaks", "split_parts", "split_rows", "train_fraction", "train_rows", "seed", "task", "inputs", "crop", "prior", "thresholds",
        "epoch", "outputs", "output_rows"}
INPUTS = {"leads", "record_relative", "rhythm", "window", "context", "align", "low_pass_hz"}   # in its "inputs"


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
        checkpoint = torch.load(name, map_location="cpu", weights_only=True)
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
    """Stops the run when the .npy files are not of the kind that the checkpoint was trained on."""
    found = {"dataset": data.name, "class_names": [str(c) for c in data.header["class_names"]],
             "sampling_rate": int(data.header["sampling_rate"]), "segment": data.signals.shape[2],
             "simulated": bool(data.header["simulated"])}
    for key, value in found.items():
        if checkpoint[key] != value:
            raise SystemExit(f"the checkpoint was trained with {key} = {checkpoint[key]}, the .npy files have {value}. "
                             "Run the preprocess script again with the checkpoint's setting, or train again")
    if checkpoint["split"] == "random" and checkpoint["split_rows"] != len(data.labels):
        raise SystemExit(f"the checkpoint was trained on a random split of {checkpoint['split_rows']} rows, the .npy "
                         f"files have {len(data.labels)}. Train again")
    absent = set(checkpoint["split_parts"]["test"]) - set(data.metadata[model_training.GROUP[data.name]].tolist())
    if absent:
        raise SystemExit(f"the test rows {', '.join(sorted(map(str, absent)))} of the checkpoint's split are not in the .npy "
                         "files. Run the preprocess script again on all records, or train again")


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
    return {"mean_f1_nsv": mean_of(classes, "f1", "NSV"), "mean_f1_nsvf": mean_of(classes, "f1", "NSVF"),
            "S_without_record_232": class_metrics(labels[rest] == s, probability[rest].argmax(axis=1) == s, probability[rest, s])}


# ---- Intervals ----

def bootstrap(patients, statistics, resamples=1000, seed=0):
    """(n,) patient of each row, function of (b, n) weights -> dict of figures, each (resamples,), over resamples of the patients.

    A patient is drawn with all rows, because these are not independent. Weights of one give the figures themselves.
    """
    _, number = np.unique(patients, return_inverse=True)
    count = number.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    parts = [statistics(part[:, number].astype(np.float64)) for part in np.array_split(drawn, max(1, resamples * len(number) // 10 ** 7))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def weighted_auc(wanted, scores, weights):
    """(n,) bool, (n,) scores, (b, n) weights -> (b,) AUC, NaN where one of both is missing. Equal scores count half."""
    order = np.argsort(scores, kind="stable")
    groups = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))   # where each group of equal scores begins
    positive, negative = (np.add.reduceat(weights[:, order] * mask[order], groups, axis=1) for mask in (wanted, ~wanted))
    pairs = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
    return divide(pairs, positive.sum(axis=1) * negative.sum(axis=1))


def divide(parts, wholes):
    """Arrays -> parts / wholes, NaN where there is nothing to divide by."""
    return np.divide(parts, wholes, out=np.full(np.shape(wholes), np.nan), where=np.asarray(wholes) > 0)


def interval(values):
    """Figures of the resamples -> [low, high], the middle 95%; None where fewer than half of them are defined."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= .5 else []
    return [float(x) for x in np.quantile(values, [.025, .975])] if len(values) else None


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
        ["LEAKY RANDOM SPLIT: the model was trained on the patients that it is tested on"] if checkpoint["leaks"] else [])


def print_metrics(metrics):
    """Prints the figures by class, then those over all classes."""
    columns = ["support", "sensitivity", "positive_predictivity", "f1", "auc", "average_precision"]
    titles = ["n", "Se", "+P", "F1", "AUC", "AP"]
    rows = dict(metrics["classes"])
    if "S_without_record_232" in metrics:
        rows["S without record 232"] = metrics["S_without_record_232"]
    print(f"\n{'class':<24}" + "".join(f"{title:>9}" for title in titles))
    for name, row in rows.items():
        print(f"{name:<24}" + "".join(f"{show(row[column]):>9}" for column in columns))
    print()
    for name, value in metrics.items():
        if value is None or isinstance(value, float):
            print(f"{name:<24}{show(value):>9}")
    for name, value in metrics.get("single_superclass", {}).items():
        print(f"{name + ', one superclass':<32}{show(value)}")


def plot_confusion(matrix, names, title, path):
    """(k, k) counts, rows true -> PNG with counts and row percentages."""
    matrix = np.array(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + .95 * len(names), 1.6 + .8 * len(names)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        axis.text(j, i, f"{count:,}\n{share[i, j]:.1%}" if matrix[i].any() else "n/a", ha="center", va="center",
                  fontsize=8, color="white" if share[i, j] > .5 else "black")
    axis.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class")
    axis.set_xticklabels(names, rotation=30 if max(map(len, names)) > 5 else 0, ha="center")
    axis.set_yticklabels(names)
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=.8)
    figure.savefig(path, dpi=150, format="png")


# ---- Saliency ----

def choose_examples(wanted, probability, names):
    """(n, k) true membership and probabilities -> dict of class -> row: the correct one of median confidence.

    Rows of that class alone come first. Where none is correct, the most confident one is taken; a class without test
    rows is left out.
    """
    examples, alone = {}, wanted.sum(axis=1) == 1
    for index, name in enumerate(names):
        right = wanted[:, index] & (probability.argmax(axis=1) == index)
        for rows, place in ((right & alone, .5), (right, .5), (wanted[:, index], 1)):
            ranked = np.flatnonzero(rows)[np.argsort(probability[rows, index])]
            if len(ranked):
                examples[name] = int(ranked[int(place * (len(ranked) - 1))])
                break
    return examples


def saliency(net, checkpoint, signals, features, row, target):
    """Size of the gradient of one class's logit -> (leads, samples) from 0 to 1: where a change of voltage matters most.

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", smoothed over SMOOTHING seconds. With record-relative
    inputs both channels move with the beat's voltage (the median beat is held), so their gradients add up to the beat's.
    """
    x = signals[row:row + 1].clone().requires_grad_()
    crop_logits(net, x, features[row:row + 1], checkpoint["crop"])[0, target].backward()
    gradient = x.grad[0].sum(dim=0, keepdim=True) if checkpoint["inputs"]["record_relative"] else x.grad[0]
    width = max(1, round(SMOOTHING * checkpoint["sampling_rate"]))
    size = np.stack([np.convolve(lead, np.ones(width) / width, mode="same") for lead in gradient.abs().numpy()])
    unseen = checkpoint["segment"] - size.shape[1]   # the ends of a segment that the model does not see
    return np.pad(size / max(size.max(), 1e-12), ((0, 0), (unseen // 2, unseen - unseen // 2)))


def draw_ecg(axis, voltage, weight, sampling_rate, start):
    """(samples,) mV, (samples,) 0 to 1 -> trace on ECG paper, the weight as a band behind it."""
    seconds = start + np.arange(len(voltage)) / sampling_rate
    points = np.column_stack([seconds, voltage])
    band = LineCollection(np.stack([points[:-1], points[1:]], axis=1), array=weight[:-1], cmap="OrRd",
                          linewidths=7, capstyle="round", clim=(0, 1))
    axis.grid(which="both", color="#eec6c6", linewidth=.5)
    axis.xaxis.set_minor_locator(MultipleLocator(.04 if len(voltage) <= 2 * sampling_rate else .2))
    axis.xaxis.set_major_locator(MultipleLocator(.2 if len(voltage) <= 2 * sampling_rate else 1))
    axis.yaxis.set(major_locator=MultipleLocator(.5), minor_locator=MultipleLocator(.1 if np.ptp(voltage) < 2 else .5))
    axis.add_collection(band)
    axis.plot(seconds, voltage, color="black", linewidth=.9)
    middle = (voltage.max() + voltage.min()) / 2
    reach = max(.75, .6 * np.ptp(voltage))
    axis.set(xlim=(seconds[0], seconds[-1]), ylim=(middle - reach, middle + reach))
    axis.tick_params(labelsize=6)
    return band


def plot_saliency(net, checkpoint, data, inputs, rows, wanted, probability, title, path):
    """Test rows with their true membership and probabilities -> PNG with one example a class."""
    names, leads, rate = checkpoint["class_names"], checkpoint["inputs"]["leads"], checkpoint["sampling_rate"]
    examples = choose_examples(wanted, probability, names)
    drawn = [lead for lead in SALIENCY_LEADS if lead in leads] or leads[:1]
    single = checkpoint["dataset"] == "mitbih"   # beats side by side, 10 s records one below the other
    figure = Figure(figsize=(3.2 * len(examples), 3.2) if single else (12, 1.2 * len(drawn) * len(examples)), layout="constrained")
    axes = figure.subplots(*((1, len(examples)) if single else (len(examples) * len(drawn), 1)), squeeze=False, sharex=True).ravel()
    for k, (name, example) in enumerate(examples.items()):
        weight = saliency(net, checkpoint, *inputs, int(rows[example]), names.index(name))
        truth = " + ".join(names[i] for i in np.flatnonzero(wanted[example]))
        guess = int(probability[example].argmax())   # for multilabel the most probable superclass
        for axis, lead in zip(axes[k * len(drawn):], drawn):
            voltage = np.array(data.signals[rows[example], checkpoint["dataset_leads"].index(lead)])
            band = draw_ecg(axis, voltage, weight[leads.index(lead)], rate, -len(voltage) / rate / 2 if single else 0)
            axis.set_ylabel(f"{lead} (mV)", fontsize=8)
        axes[k * len(drawn)].set_title(f"true {truth}, predicted {names[guess]} ({probability[example, guess]:.2f}): "
                                       f"gradient of {name}", fontsize=7 if single else 8)
    for axis in axes if single else axes[-1:]:
        axis.set_xlabel("time from the R peak (s)" if single else "time (s)", fontsize=8)
    figure.colorbar(band, ax=axes.tolist(), label="size of the gradient (scaled to 1)", fraction=.03, aspect=40, shrink=.8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


# ---- Main ----

def evaluate(checkpoint, data, rows, targets, probability):
    """Checkpoint, dataset, test rows, their targets and probabilities -> dict of all figures."""
    names = checkpoint["class_names"]
    if checkpoint["task"] == "multilabel":
        return multilabel_metrics(targets, probability, checkpoint["thresholds"], names)
    metrics = multiclass_metrics(targets, probability, names)
    if data.name != "ptbxl" and checkpoint["class_map"] == "aami":
        metrics |= aami_metrics(targets, probability, data.metadata["record"][rows], names)
    return metrics


def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    check_choice("MODEL", MODEL, ["cnn", "lstm", "mlp"])
    checkpoint, net = load_checkpoint(DATASET, MODEL)
    data = load_dataset(DATASET)
    check_dataset(checkpoint, data)
    sides = split_rows(data, checkpoint["split"], checkpoint["split_parts"], checkpoint["seed"])
    rows = task_rows(data, checkpoint["task"], sides)["test"]
    if len(rows) == 0:
        raise SystemExit(f"{DATASET}_signals.npy has no test rows with a class: preprocess the complete dataset"
                         + (", or train with another SPLIT: \"all\" left none" if checkpoint["split"] == "all" else ""))

    inputs = make_inputs(data, **checkpoint["inputs"])
    targets = targets_of(data, checkpoint["task"])[rows].numpy()
    logits = predict(net, *inputs, rows, checkpoint["crop"])
    records = data.metadata["record"][rows] if checkpoint["prior"] else None
    probability = probabilities(logits, checkpoint["task"], len(checkpoint["class_names"]), records, checkpoint["prior"])
    metrics = evaluate(checkpoint, data, rows, targets, probability)
    warnings = warnings_of(checkpoint)
    print(f"{DATASET} {MODEL}, {checkpoint['task']}: {len(rows):,} test rows of the {checkpoint['split']} split")
    print_metrics(metrics)
    print(*warnings, sep="\n")

    wanted = targets == 1 if targets.ndim == 2 else targets[:, None] == np.arange(len(checkpoint["class_names"]))
    title = ". ".join([f"{DATASET} {MODEL}, {checkpoint['split']} split, test rows", *warnings])
    outputs = [f"{DATASET}_{MODEL}_{part}" for part in ("metrics.json", "confusion.png", "saliency.png")]
    with new_files(*outputs) as (json_path, confusion_path, saliency_path):
        json_path.write_text(json.dumps({"protocol": protocol_of(checkpoint, rows), **metrics}, indent=1) + "\n")
        rows_shown = "" if checkpoint["task"] == "multiclass" else " with one superclass"
        plot_confusion(metrics["confusion_matrix"], checkpoint["class_names"], title.replace("test rows", f"test rows{rows_shown}"),
                       confusion_path)
        plot_saliency(net, checkpoint, data, inputs, rows, wanted, probability, title, saliency_path)
    print(f"Wrote {', '.join(outputs)}")


if __name__ == "__main__":
    main()
