"""Tests a model trained on one dataset on the other one: is this strip of ECG normal or abnormal?

Reads   {source}_{model}_model.pth and the .npy files of both datasets, from the earlier scripts
Writes  {source}_to_{target}_{model}_cross.json   in-domain and cross-domain figures, the drop, all adaptations
        {source}_to_{target}_{model}_cross.png    both ROC curves with the operating point, and both score distributions
Takes   a minute on two cores.

Both datasets become strips of the same length, each strip is normal (0) or abnormal (1) by one table of names, and both
are scored by the same function with the model's own head. The threshold is chosen on validation strips of the source
dataset; nothing is trained or chosen on the target. One difference of method remains: a beat model gets the annotated
beats of MIT-BIH, but detected ones in PTB-XL, which has no annotations; the drop includes the detector's errors.
"""

import json
from math import gcd
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from scipy.signal import resample_poly
from scipy.special import logit
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from tqdm import tqdm
from wfdb.processing import xqrs_detect

from model_evaluation import check_dataset, load_checkpoint, ratio, show, warnings_of
from model_training import load_array, load_dataset, make_inputs, predict, probabilities, record_rows, split_parts
from preprocess_mitbih import check_choice, cut_beats, new_files, rhythm_features, rr_window

# data and model
PRETRAINED_DATASET = "mitbih"   # source: "mitbih" or "ptbxl"
TEST_DATASET = "ptbxl"          # target: the other one
MODEL = "cnn"                   # "cnn", "lstm" or "mlp"

# what is compared
STRIP_SECONDS = 10              # s: fixed by PTB-XL, whose records have this length; MIT-BIH is cut into such strips
AGGREGATION = "mean"            # a strip's score from its beats' probabilities of abnormal: "mean" or "max"

# The classes of each class map that mean normal; every other class means abnormal. AAMI's N also holds the bundle
# branch blocks, which PTB-XL calls abnormal (CD): train with CLASS_MAP = "clinical" to keep them apart.
NORMAL_CLASSES = {"aami": ["N"], "clinical": ["normal"], "superclasses": ["NORM"]}
# What makes a strip of the data normal, whatever the model's classes are.
NORMAL_SYMBOL = "N"             # MIT-BIH: every row of the strip carries this symbol (not L, R, e, j, A, V, ...)
NORMAL_SUPERCLASS = "NORM"      # PTB-XL: the record has this superclass and no other
# Names of the same lead. A 12-lead model gets the one lead of a one-lead record in all its inputs.
SAME_LEAD = {"MLII": "II", "II": "MLII"}


# ---- Strips of both datasets ----

def mitbih_strips(data, records):
    """Dataset, record names -> strips of STRIP_SECONDS, labelled by the annotated beats in them."""
    everything = load_array(f"{data.name}_records.npy", "preprocess_mitbih.py")
    rate = int(data.header["sampling_rate"])
    lengths, length = data.header["record_samples"], STRIP_SECONDS * rate
    if len(everything) != lengths.sum():
        raise SystemExit(f"{data.name}_records.npy has {len(everything)} samples, the header says {lengths.sum()}. "
                         "Make them again with: python preprocess_mitbih.py")
    strips, no_beat, other_lead = [], 0, []
    for name, offset, samples in zip(data.header["record_names"], np.cumsum(lengths) - lengths, lengths):
        beats = data.metadata[data.metadata["record"] == name]
        if name not in records or len(beats) == 0:
            continue
        if beats["lead"][0] != data.header["leads"][0]:
            other_lead.append(str(name))
            continue
        for start in range(0, samples - length + 1, length):
            here = beats[(beats["sample"] >= start) & (beats["sample"] < start + length)]
            no_beat += len(here) == 0
            if len(here):
                strips.append((everything[offset + start:offset + start + length], here["sample"] - start,
                               int(np.any(here["symbol"] != NORMAL_SYMBOL)), here["patient"][0]))
    signals, beats, abnormal, patients = zip(*strips) if strips else ((), (), (), ())
    return SimpleNamespace(signals=np.array(signals)[:, None], rate=rate, leads=[str(x) for x in data.header["leads"]],
                           beats=list(beats), abnormal=np.array(abnormal), patients=np.array(patients),
                           left_out={"strips without an annotated beat": int(no_beat),
                                     f"records without {data.header['leads'][0]}": len(other_lead)})


def ptbxl_strips(data, folds):
    """Dataset, folds -> their records with at least one superclass; the beats are still to be found."""
    rows = np.flatnonzero(np.isin(data.metadata["fold"], folds))
    superclasses = data.metadata["superclasses"][rows]
    known = superclasses.any(axis=1)
    normal = [str(name) for name in data.header["class_names"]].index(NORMAL_SUPERCLASS)
    only_normal = (superclasses[:, normal] == 1) & (superclasses.sum(axis=1) == 1)
    return SimpleNamespace(signals=data.signals[rows[known]], rate=int(data.header["sampling_rate"]),
                           leads=[str(x) for x in data.header["leads"]], beats=None,
                           abnormal=(~only_normal[known]).astype(int), patients=data.metadata["patient"][rows[known]],
                           left_out={"records without a superclass": int(np.sum(~known))})


def strips_of(data, parts, side):
    """Dataset, its split's parts, "validation" or "test" -> strips. Stops when one of the two labels is absent."""
    strips = (ptbxl_strips if data.name == "ptbxl" else mitbih_strips)(data, parts[side])
    if len(set(strips.abnormal.tolist())) < 2:
        raise SystemExit(f"{data.name}: the {side} side {parts[side]} has {len(strips.abnormal)} strips, not both normal "
                         "and abnormal ones. Preprocess the complete dataset")
    return strips


# ---- Match the strips to the model ----

def resample(signals, rate, wanted):
    """(n, leads, samples) float32 at `rate` Hz -> the same seconds at `wanted` Hz, with an anti-aliasing filter."""
    if rate == wanted:
        return signals
    divisor = gcd(rate, wanted)
    return np.concatenate([resample_poly(part, wanted // divisor, rate // divisor, axis=2).astype(np.float32)
                           for part in np.array_split(signals, max(1, len(signals) // 256))])


def match_leads(available, wanted):
    """Lead names of the strips and of the model -> (column of the strips for each of the model's leads, a sentence)."""
    columns = [next((available.index(name) for name in (lead, SAME_LEAD.get(lead)) if name in available), None)
               for lead in wanted]
    if None not in columns:
        pairs = ", ".join(f"{available[column]} as {lead}" if available[column] != lead else lead
                          for column, lead in zip(columns, wanted))
        return columns, f"leads by name: {pairs}"
    if len(available) == 1 and len(wanted) == 12:
        return [0] * len(wanted), f"one lead, {available[0]}, stands in for all {len(wanted)} of the model"
    absent = [lead for lead, column in zip(wanted, columns) if column is None]
    raise SystemExit(f"the model needs lead {', '.join(absent)}, the other dataset has {', '.join(available)}. "
                     "Train on a lead that both have (LEAD in preprocess_mitbih.py, LEADS in model_training.py)")


def find_beats(signals, rate):
    """(n, samples) float32 mV -> list of n arrays of R peak positions, by wfdb's XQRS detector.

    XQRS needs more than PTB-XL's 100 Hz: at 100 Hz it finds T waves as beats. So it gets the resampled signal.
    """
    return [np.asarray(xqrs_detect(signal.astype(float), rate, verbose=False), np.int64)
            for signal in tqdm(signals, desc="beats", unit="strip", disable=None)]


def beat_dataset(signals, beats, checkpoint):
    """(n, samples) mV at the model's rate, n arrays of R peaks -> a dataset of beats, each strip in the role of a record."""
    cut, rhythm, strips = [], [], []
    for number, (signal, peaks) in enumerate(zip(signals, beats)):
        segments, complete = cut_beats(signal, peaks, checkpoint["segment"])
        cut.append(segments)
        rhythm.append(rhythm_features(rr_window(peaks, checkpoint["sampling_rate"]))[complete])
        strips.append(np.full(len(segments), number))
    strips = np.concatenate(strips)
    if len(strips) == 0:
        raise SystemExit(f"no beat was found in any of the {len(signals)} strips: nothing to measure")
    rhythm = np.concatenate(rhythm)
    metadata = np.zeros(len(strips), [("record", "<i8"), ("rhythm", "<f4", rhythm.shape[1:])])
    metadata["record"], metadata["rhythm"] = strips, rhythm
    return SimpleNamespace(name=checkpoint["dataset"], signals=np.concatenate(cut)[:, None], metadata=metadata,
                           header={"leads": checkpoint["inputs"]["leads"]})


# ---- Score ----

def abnormal_probability(checkpoint, net, inputs):
    """Checkpoint, net, its inputs -> (n,) probability of abnormal: one minus that of the normal classes.

    The classes keep their shares of the training set: the ten beats of a strip cannot tell others.
    """
    logits = predict(net, *inputs, np.arange(len(inputs[0])), checkpoint["crop"])
    probability = probabilities(logits, checkpoint["task"], len(checkpoint["class_names"]))
    normal = [name in NORMAL_CLASSES[checkpoint["class_map"]] for name in checkpoint["class_names"]]
    return 1 - probability[:, normal].sum(axis=1)


def score_strips(checkpoint, net, strips):
    """Checkpoint, net, strips -> ((n,) scores, NaN for a strip without a usable beat; what was adapted, as sentences)."""
    columns, sentence = match_leads(strips.leads, checkpoint["inputs"]["leads"])
    needed, place = np.unique(columns, return_inverse=True)
    signals = resample(strips.signals[:, needed], strips.rate, checkpoint["sampling_rate"])[:, place]
    adapted = [sentence, f"sampling rate: {strips.rate} to {checkpoint['sampling_rate']} Hz"]
    if checkpoint["dataset"] == "ptbxl":
        crop = checkpoint["crop"] / checkpoint["sampling_rate"]
        inputs = make_inputs(SimpleNamespace(name="ptbxl", signals=signals, metadata=None,
                                             header={"leads": checkpoint["inputs"]["leads"]}), **checkpoint["inputs"])
        return abnormal_probability(checkpoint, net, inputs), [
            *adapted, f"segment: {STRIP_SECONDS} s as overlapping crops of {crop:g} s, as in training"]
    if strips.beats is None:
        beats, found = find_beats(signals[:, 0], checkpoint["sampling_rate"]), "found by wfdb's XQRS"
    else:
        beats, found = [peaks * checkpoint["sampling_rate"] // strips.rate for peaks in strips.beats], "annotated"
    data = beat_dataset(signals[:, 0], beats, checkpoint)
    probability = abnormal_probability(checkpoint, net, make_inputs(data, **checkpoint["inputs"]))
    scores = np.full(len(signals), np.nan)
    for rows in record_rows(data.metadata):
        scores[data.metadata["record"][rows[0]]] = {"mean": np.mean, "max": np.max}[AGGREGATION](probability[rows])
    seen = checkpoint["crop"] / checkpoint["sampling_rate"]
    return scores, [*adapted, f"segment: the {seen:g} s around each beat, as in training", f"beats: {found}",
                    f"score: {AGGREGATION} over the beats of a {STRIP_SECONDS} s strip, whose own median beat and interval "
                    "are the reference"]


def best_threshold(abnormal, scores):
    """(n,) truth and scores of validation strips -> the threshold with the best balanced accuracy."""
    false_positive, true_positive, cuts = roc_curve(abnormal, scores)
    return float(np.clip(cuts[np.argmax(true_positive - false_positive)], 0, 1))


def binary_metrics(abnormal, scores, threshold):
    """(n,) truth and scores, threshold -> dict of figures. Abnormal (1) is the positive class."""
    (tn, fp), (fn, tp) = confusion_matrix(abnormal, scores >= threshold, labels=[0, 1]).tolist()
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    return {"strips": len(abnormal), "abnormal": int(np.sum(abnormal)), "auc": float(roc_auc_score(abnormal, scores)),
            "f1": ratio(2 * tp, 2 * tp + fp + fn), "accuracy": ratio(tp + tn, len(abnormal)),
            "balanced_accuracy": (sensitivity + specificity) / 2, "sensitivity": sensitivity,
            "specificity": specificity, "confusion_matrix": [[tn, fp], [fn, tp]]}


def measure(checkpoint, net, strips, threshold=None):
    """Checkpoint, net, strips, threshold (None: choose it here) -> dict of truth, scores, threshold, figures, ..."""
    scores, adapted = score_strips(checkpoint, net, strips)
    usable = np.isfinite(scores)
    abnormal, scores = strips.abnormal[usable], scores[usable]
    if len(set(abnormal.tolist())) < 2:
        raise SystemExit(f"beats were found in {len(abnormal)} of {len(strips.abnormal)} strips, which are not both normal and "
                         "abnormal: nothing to measure")
    threshold = best_threshold(abnormal, scores) if threshold is None else threshold
    return SimpleNamespace(abnormal=abnormal, scores=scores, threshold=threshold, adapted=adapted,
                           metrics=binary_metrics(abnormal, scores, threshold),
                           left_out=strips.left_out | {"strips without a usable beat": int(np.sum(~usable))})


# ---- Report ----

def print_report(inside, outside):
    """Prints the in-domain and cross-domain figures side by side, and the drop."""
    print(f"\n{'':<20}{'in-domain':>12}{'cross':>12}{'drop':>12}")
    for name, value in inside.metrics.items():
        other = outside.metrics[name]
        if isinstance(value, list):
            print(f"{name:<20}{str(value):>24}  {other}   rows: true normal, abnormal")
        else:
            print(f"{name:<20}{show(value):>12}{show(other):>12}{show(value - other) if isinstance(value, float) else '':>12}")
    for title, result in (("in-domain", inside), ("cross-domain", outside)):
        print(f"\n{title}: " + "; ".join(result.adapted))
        print("  left out: " + ", ".join(f"{number:,} {reason}" for reason, number in result.left_out.items()))


def plot_report(inside, outside, names, title, path):
    """Both results -> PNG: ROC curves with the operating points, and how the scores of both labels are distributed."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for result, name, style in zip((inside, outside), names, ("-", "--")):
        x, y, _ = roc_curve(result.abnormal, result.scores)
        axes[0].plot(x, y, style, color="black", label=f"{name}: AUC {result.metrics['auc']:.3f}")
        axes[0].plot(1 - result.metrics["specificity"], result.metrics["sensitivity"], "o", color="black",
                     markerfacecolor="black" if style == "-" else "white")
    axes[0].plot([0, 1], [0, 1], ":", color="0.6")
    axes[0].set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-.01, 1.01), ylim=(-.01, 1.01))
    axes[0].legend(frameon=False, loc="lower right", fontsize=8, title="circle: threshold of the source", title_fontsize=8)
    for axis, result, name in zip(axes[1:], (inside, outside), names):
        for label, color, text in ((0, "0.7", "normal"), (1, "#08519c", "abnormal")):
            odds = logit(result.scores[result.abnormal == label].clip(1e-4, 1 - 1e-4))
            axis.hist(odds, bins=np.linspace(-9.5, 9.5, 77), density=True, alpha=.65, color=color, label=text)
        axis.axvline(logit(np.clip(result.threshold, 1e-4, 1 - 1e-4)), color="black", linestyle="--", linewidth=.9, label="threshold")
        axis.set(xlabel="probability of abnormal", ylabel="density of strips (by log odds)", title=name)
        axis.set_xticks(logit([1e-4, .001, .01, .1, .5, .9, .99, .999]), ["≤.0001", ".001", ".01", ".1", ".5", ".9", ".99", ".999"],
                        fontsize=7)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150, format="png")


# ---- Main ----

def main():
    for name, expected in (("PRETRAINED_DATASET", ["mitbih", "ptbxl"]), ("TEST_DATASET", ["mitbih", "ptbxl"]),
                           ("MODEL", ["cnn", "lstm", "mlp"]), ("AGGREGATION", ["mean", "max"])):
        check_choice(name, globals()[name], expected)
    if PRETRAINED_DATASET == TEST_DATASET:
        raise SystemExit(f"PRETRAINED_DATASET and TEST_DATASET are both {TEST_DATASET}: model_evaluation.py does that")
    checkpoint, net = load_checkpoint(PRETRAINED_DATASET, MODEL)
    source, target = load_dataset(PRETRAINED_DATASET), load_dataset(TEST_DATASET)
    check_dataset(checkpoint, source)
    print(f"{MODEL} trained on {PRETRAINED_DATASET}, tested on {TEST_DATASET}: is a strip of {STRIP_SECONDS} s abnormal?")

    validation = measure(checkpoint, net, strips_of(source, checkpoint["split_parts"], "validation"))
    inside = measure(checkpoint, net, strips_of(source, checkpoint["split_parts"], "test"), validation.threshold)
    outside = measure(checkpoint, net, strips_of(target, split_parts(target), "test"), validation.threshold)
    warnings = warnings_of(checkpoint)
    if target.header["simulated"] and not checkpoint["simulated"]:
        warnings.append(f"SIMULATED DATA in {TEST_DATASET}: no figure is a result")
    print_report(inside, outside)
    print(f"\nThreshold {validation.threshold:.3f} from {len(validation.abnormal):,} validation strips of {PRETRAINED_DATASET}")
    print(*warnings, sep="\n")

    name = f"{PRETRAINED_DATASET}_to_{TEST_DATASET}_{MODEL}_cross"
    report = {"source": PRETRAINED_DATASET, "target": TEST_DATASET, "model": MODEL, "warnings": warnings,
              "threshold": validation.threshold, "in_domain": inside.metrics, "cross_domain": outside.metrics,
              "drop": {k: v - outside.metrics[k] for k, v in inside.metrics.items() if isinstance(v, float)},
              "adapted": {"in_domain": inside.adapted, "cross_domain": outside.adapted},
              "left_out": {"in_domain": inside.left_out, "cross_domain": outside.left_out},
              "normal": {"classes": NORMAL_CLASSES[checkpoint["class_map"]], "mitbih": NORMAL_SYMBOL, "ptbxl": NORMAL_SUPERCLASS}}
    with new_files(f"{name}.json", f"{name}.png") as (json_path, plot_path):
        json_path.write_text(json.dumps(report, indent=1) + "\n")
        plot_report(inside, outside, [f"in-domain ({PRETRAINED_DATASET})", f"cross-domain ({TEST_DATASET})"],
                    ". ".join([f"{MODEL} trained on {PRETRAINED_DATASET}: normal or abnormal", *warnings]), plot_path)
    print(f"Wrote {name}.json, {name}.png")


if __name__ == "__main__":
    main()
