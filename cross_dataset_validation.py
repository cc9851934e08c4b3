"""Tests a trained model on another database than its own: is it normal, which condition is it, and what does the move cost?

Reads   {source}_{model}_model.pth and the .npy files of both databases, from the earlier scripts
Writes  {source}_to_{target}_{model}_cross.json   in-domain and cross-domain figures with 95% intervals, the drop, calibration
        {source}_to_{target}_{model}_cross.csv    truth and scores of every row, to compute any figure again
        {source}_to_{target}_{model}_cross.png    ROC curves, calibration, and the conditions that both databases name
        {target}_beats.npy    (n,) structured     ecg_id, sum (of lead I, to know the record by), beats (64,) float32 s: the
                                                  R peaks found in each PTB-XL record, NaN after the last, and check, their
                                                  sum; made once
Takes   a minute on two cores, and half a minute more when the R peaks are to be found.

MIT-BIH and PTB-XL meet in strips of 10 s: the PTB-XL records, and pieces of the MIT-BIH records. Between two databases of
annotated beats each beat is scored, in its whole record. A strip of a beat model is scored by its beats, one of a PTB-XL
model by its crops, always with the model's own head. Nothing of the target is used to choose anything, unless ADAPTATION or
FINE_TUNE_PATIENTS says so; then its training side is, never its test side.
"""

import copy
import json
from math import gcd
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.linalg import sqrtm
from scipy.signal import find_peaks, resample_poly
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from model_evaluation import (check_dataset, compare, divide, evaluate, interval, load_checkpoint, origin_of, print_metrics,
                              reliability, resampled, show, warnings_of, weighted_auc)
from model_training import (crop_starts, load_array, load_dataset, load_header, make_inputs, odds_of, platt_scaling, predict,
                            probabilities, split_parts)
from preprocess_mitbih import (check_choice, constants_of, cut_beats, new_files, qrs_energy, rhythm_features, rr_window,
                               save_array)

# data and model
PRETRAINED_DATASET = "mitbih"   # source: "mitbih" or "ptbxl"
TEST_DATASET = "ptbxl"          # target: "ptbxl", "mitbih" or the NAME of a third database from preprocess_mitbih.py
MODEL = "cnn"                   # "cnn", "lstm" or "mlp"

# what is done to the target's strips so that the model can read them; switch one off to see what it is worth
RESAMPLE = True                 # False: the samples are taken as if they were at the model's rate
BAND_LIMIT = True               # False: without the LOW_PASS of the model's training
MATCH_LEADS = True              # False: the target's first leads in place of those of the model's names
MILLIVOLTS = True               # False: in the target's ADC units (ADC_UNITS)
ALIGN_BEATS = True              # False: a beat model looks every 0.8 s in place of at the R peaks
RHYTHM = True                   # False: a beat model gets the training's mean RR features
AGGREGATE = True                # False: one beat or crop, the middle one, decides for the strip

# the target's rows
WHOLE_TARGET = False            # True: every row of it is tested, because the model has seen none (needs "none" and 0 below);
                                # in MIT-BIH that adds DS1 and the paced records
# use of the target's training side
ADAPTATION = "none"             # without labels: "none"; "adabn": its batch-norm statistics (Li et al. 2016); or "coral": its
                                # last hidden layer gets the mean and covariance of the source's validation side
                                # (Sun, Feng and Saenko 2016)
FINE_TUNE_PATIENTS = 0          # with labels: so many of its patients train the last layer's normal-abnormal decision anew

# The same condition in both databases. classes: of MIT-BIH's class maps; symbols: of its annotations, of which one in a
# strip is enough; statement: of PTB-XL; without: strips with these statements are left out; beats: how a strip's score
# comes from its beats or crops: "mean" for what lasts, "max" for what a single beat shows.
CONDITIONS = {
    "ventricular": {"classes": ["ventricular", "V"], "symbols": "VEr", "statement": "PVC", "without": [], "beats": "max"},
    "supraventricular": {"classes": ["supraventricular", "S"], "symbols": "AaJS", "statement": "PAC", "without": [],
                         "beats": "max"},
    "LBBB": {"classes": ["LBBB"], "symbols": "L", "statement": "CLBBB", "without": [], "beats": "mean"},
    "RBBB": {"classes": ["RBBB"], "symbols": "R", "statement": "CRBBB", "without": [], "beats": "mean"},
    "paced": {"classes": ["paced"], "symbols": "/f", "statement": "PACE", "without": [], "beats": "mean"},
    "incomplete LBBB": {"classes": ["LBBB"], "symbols": "", "statement": "ILBBB", "without": ["CLBBB"], "beats": "mean"},
    "incomplete RBBB": {"classes": ["RBBB"], "symbols": "", "statement": "IRBBB", "without": ["CRBBB"], "beats": "mean"},
}
# Normal: the class of each class map; in MIT-BIH all beats of a strip carry this symbol; in PTB-XL this is the only superclass.
NORMAL_CLASS = {"aami": "N", "clinical": "normal", "superclasses": "NORM"}
NORMAL_SYMBOL, NORMAL_SUPERCLASS = "N", "NORM"
# Names of the same lead. A 12-lead model gets the lead of a one-lead database in all its inputs.
SAME_LEAD = {"MLII": ["II", "ECG1"], "II": ["MLII", "ECG1"]}
ADC_UNITS = {"ptbxl": 1000, "mitbih": 200}   # a mV


# ---- Strips of both databases ----

def mitbih_strips(data, records):
    """Dataset of beats, record names -> strips of 10 s with their annotated beats, labelled by these."""
    _, sums, script = load_header(data.name)
    everything = load_array(f"{data.name}_records.npy", script, sums["records"])
    rate, lengths = int(data.header["sampling_rate"]), data.header["record_samples"]
    length, leads = 10 * rate, [str(x) for x in data.header["leads"]]
    everything, strips, left_out = everything.reshape(len(everything), -1), [], {"strips without an annotated beat": 0}
    for name, offset, samples in zip(data.header["record_names"], np.cumsum(lengths) - lengths, lengths):
        beats = data.metadata[data.metadata["record"] == name]
        if name not in records or len(beats) == 0:
            continue
        if beats["leads"][0] != " ".join(leads):
            left_out[f"record {name} without {' '.join(leads)}"] = 1
            continue
        for start in range(0, samples - length + 1, length):
            here = beats[(beats["sample"] >= start) & (beats["sample"] < start + length)]
            left_out["strips without an annotated beat"] += len(here) == 0
            if len(here):
                strips.append((everything[offset + start:offset + start + length].T, here["sample"] - start, here["symbol"],
                               here["patient"][0], name, start))
    signals, beats, symbols, patients, names, starts = zip(*strips) if strips else ((),) * 6
    every = np.ones(len(symbols), bool)
    conditions = {name: (np.array([bool(set(row["symbols"]) & set(x)) for x in symbols]), every)
                  for name, row in CONDITIONS.items() if row["symbols"]}
    return SimpleNamespace(kind="mitbih", signals=np.array(signals), rate=rate, leads=leads, beats=list(beats),
                           beats_are="annotated", abnormal=np.array([np.any(x != NORMAL_SYMBOL) for x in symbols]),
                           known=every, conditions=conditions, patients=np.array(patients), records=np.array(names),
                           samples=np.array(starts), left_out=left_out)


def ptbxl_strips(data, folds, need_beats=False):
    """PTB-XL, folds -> their records as strips, labelled by superclasses and statements, with detected beats if need be."""
    rows = np.flatnonzero(np.isin(data.metadata["fold"], folds))
    metadata, rate = data.metadata[rows], int(data.header["sampling_rate"])
    superclasses, absent = metadata["superclasses"] == 1, np.zeros(len(rows), bool)
    normal = [str(name) for name in data.header["class_names"]].index(NORMAL_SUPERCLASS)
    has = dict(zip(map(str, data.header["statement_names"]), metadata["statements"].T >= 0))
    conditions = {name: (has.get(row["statement"], absent),
                         ~np.any([absent, *(has[x] for x in row["without"] if x in has)], axis=0))
                  for name, row in CONDITIONS.items()}
    known = superclasses.any(axis=1)
    beats = [np.round(row[np.isfinite(row)] * rate).astype(np.int64)
             for row in beats_of_records(data)[rows]] if need_beats else None
    return SimpleNamespace(kind="ptbxl", signals=data.signals[rows], rate=rate, leads=[str(x) for x in data.header["leads"]],
                           beats=beats, beats_are="found in all leads", conditions=conditions, known=known,
                           abnormal=~(superclasses[:, normal] & (superclasses.sum(axis=1) == 1)), patients=metadata["patient"],
                           records=metadata["ecg_id"].astype(str), samples=np.zeros(len(rows), int),
                           left_out={"records without a superclass, except for the conditions": int(np.sum(~known))})


def strips_of(data, parts, side, need_beats=False):
    """Dataset, its split's parts, a side's name -> strips. Stops when one of the two labels is absent."""
    strips = ptbxl_strips(data, parts[side], need_beats) if data.kind == "ptbxl" else mitbih_strips(data, parts[side])
    if len(set(strips.abnormal[strips.known].tolist())) < 2:
        raise SystemExit(f"{data.name}: the {side} side {parts[side]} has {len(strips.abnormal)} strips, not both normal "
                         "and abnormal ones. Preprocess the complete dataset")
    return strips


def take(strips, rows):
    """Strips, row numbers -> those strips."""
    fields = {key: value[rows] for key, value in vars(strips).items() if isinstance(value, np.ndarray)}
    beats = None if strips.beats is None else [strips.beats[row] for row in rows]
    conditions = {name: (truth[rows], known[rows]) for name, (truth, known) in strips.conditions.items()}
    return SimpleNamespace(**vars(strips) | fields | {"beats": beats, "conditions": conditions})


# ---- R peaks ----

def find_beats(signals, rate):
    """(n, leads, samples) mV -> list of n arrays of R peak positions, from all leads together.

    A beat is a peak of the slope's energy, 0.25 s from a higher one, of at least 0.3 of the strip's usual beat (the median of
    as many highest peaks as the strip has seconds). On 10 s strips of DS1 (tests/benchmark_beats.py) it finds more beats
    than wfdb's XQRS, which needs the first ones to learn, and takes a hundredth of its time.
    """
    found = []
    for energy in qrs_energy(signals, rate):
        peaks, _ = find_peaks(energy, distance=round(0.25 * rate))
        usual = np.median(np.sort(energy[peaks])[-max(1, len(energy) // rate):]) if len(peaks) else 0
        found.append(peaks[energy[peaks] > max(0.3 * usual, 1e-6)])
    return found


def beats_of_records(data):
    """PTB-XL -> (n, 64) float32 s, R peaks of every record, NaN after the last; from {name}_beats.npy if of these signals."""
    path, rate = f"{data.name}_beats.npy", int(data.header["sampling_rate"])
    table = np.zeros(len(data.signals), [("ecg_id", "<i8"), ("sum", "<f8"), ("beats", "<f4", (64,)), ("check", "<f8")])
    table["ecg_id"], table["sum"], table["beats"] = data.metadata["ecg_id"], data.signals[:, 0].sum(axis=1, dtype=float), np.nan
    if Path(path).exists():
        stored = load_array(path, "cross_dataset_validation.py, after deleting it")
        if (stored.dtype == table.dtype and all(np.array_equal(stored[field], table[field]) for field in ("ecg_id", "sum"))
                and np.array_equal(stored["check"], np.nansum(stored["beats"], axis=1, dtype=float))):
            return stored["beats"]
    ids = table["ecg_id"]
    for rows in tqdm(np.array_split(np.arange(len(ids)), max(1, len(ids) // 256)), desc="R peaks", unit="part", disable=None):
        for row, peaks in zip(rows, find_beats(data.signals[rows], rate)):
            table["beats"][row, :len(peaks)] = peaks[:64] / rate
    table["check"] = np.nansum(table["beats"], axis=1, dtype=float)
    with new_files(path) as (temporary,):
        save_array(temporary, table)
    print(f"Found {np.isfinite(table['beats']).sum():,} R peaks in {len(ids):,} records, none in "
          f"{np.sum(np.isnan(table['beats'][:, 0]))}; wrote {path}")
    return table["beats"]


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
    columns = [next((available.index(name) for name in (lead, *SAME_LEAD.get(lead, [])) if name in available), None)
               for lead in wanted]
    if None not in columns:
        pairs = ", ".join(f"{available[column]} as {lead}" if available[column] != lead else lead
                          for column, lead in zip(columns, wanted))
        return columns, f"leads by name: {pairs}"
    if len(available) == 1 and len(wanted) == 12:
        return [0] * len(wanted), f"one lead, {available[0]}, stands in for all {len(wanted)} of the model"
    absent = [lead for lead, column in zip(wanted, columns) if column is None]
    raise SystemExit(f"the model needs lead {', '.join(absent)}, the other dataset has {', '.join(available)}. "
                     "Train on leads that both have (LEADS in preprocess_mitbih.py and in model_training.py)")


def match_signals(strips, checkpoint, target):
    """Strips -> (n, leads, samples) float32 in the model's leads, unit, rate; and sentences. The switches are the target's."""
    columns, sentence = match_leads(strips.leads, checkpoint["inputs"]["leads"])
    if target and not MATCH_LEADS:
        columns, sentence = np.arange(len(columns)) % len(strips.leads), "leads: the first ones, whatever their names"
    needed, place = np.unique(columns, return_inverse=True)
    signals, wanted, sentences = strips.signals[:, needed], checkpoint["sampling_rate"], [sentence]
    if target and not MILLIVOLTS:
        signals = signals * np.float32(ADC_UNITS[strips.kind])
        sentences.append(f"amplitude: in ADC units, {ADC_UNITS[strips.kind]} a mV")
    if target and not RESAMPLE:
        return signals[:, place], [*sentences, f"sampling rate: {strips.rate} Hz, taken for {wanted} Hz"]
    return resample(signals, strips.rate, wanted)[:, place], [*sentences, f"sampling rate: {strips.rate} to {wanted} Hz"]


def beat_units(signals, positions, checkpoint, settings):
    """(n, leads, samples), n arrays of positions -> (signals, features) of all beats as the model takes them, strip of each."""
    half, cut, rhythm, number = checkpoint["segment"] // 2, [], [], []
    for strip, (signal, peaks) in enumerate(zip(signals, positions)):
        padded = np.pad(signal, ((0, 0), (half, half)), mode="edge")   # the first and the last beat count, too
        cut.append(cut_beats(padded, peaks + half, checkpoint["segment"])[0])
        rhythm.append(rhythm_features(rr_window(peaks, checkpoint["sampling_rate"])))
        number.append(np.full(len(peaks), strip))
    number, rhythm = np.concatenate(number), np.concatenate(rhythm)
    if len(number) == 0:
        raise SystemExit(f"no beat was found in any of the {len(signals)} strips: nothing to measure")
    metadata = np.zeros(len(number), [("record", "<i8"), ("rhythm", "<f4", rhythm.shape[1:])])
    metadata["record"], metadata["rhythm"] = number, rhythm
    header = {"leads": settings["leads"], "sampling_rate": checkpoint["sampling_rate"]}
    data = SimpleNamespace(name="strips", signals=np.concatenate(cut), metadata=metadata, header=header)
    return make_inputs(data, **settings | {"context": None}), number   # a strip is a record here, so it is the context


def crop_units(signals, checkpoint, settings):
    """(n, leads, samples) -> (signals, features) of all half-overlapping crops as the model takes them, strip of each."""
    header = {"leads": settings["leads"], "sampling_rate": checkpoint["sampling_rate"]}
    signals, features = make_inputs(SimpleNamespace(name="strips", signals=signals, metadata=None, header=header), **settings)
    starts = crop_starts(signals.shape[2], checkpoint["crop"])
    crops = signals.unfold(2, checkpoint["crop"], 1)[:, :, starts].transpose(1, 2).flatten(0, 1)
    return (crops, features.repeat_interleave(len(starts), 0)), np.repeat(np.arange(len(signals)), len(starts))


def units_of(checkpoint, net, strips, target=False):
    """Strips -> (signals, features) of their beats or crops, (u,) strip of each in rising order, and what was done."""
    matched, sentences = match_signals(strips, checkpoint, target)
    settings = dict(checkpoint["inputs"])
    if target and not BAND_LIMIT:
        settings["low_pass_hz"] = None
    if settings["low_pass_hz"]:
        sentences.append(f"band: up to {settings['low_pass_hz']:g} Hz")
    if checkpoint["dataset"] == "ptbxl":
        (signals, features), number = crop_units(matched, checkpoint, settings)
    elif target and not ALIGN_BEATS:
        rate = checkpoint["sampling_rate"]
        positions = [np.arange(2 * rate // 5, matched.shape[2], 4 * rate // 5)] * len(matched)
        (signals, features), number = beat_units(matched, positions, checkpoint, settings | {"align": False})
        sentences.append("beats: every 0.8 s")
    else:
        positions = [peaks * matched.shape[2] // strips.signals.shape[2] for peaks in strips.beats]
        (signals, features), number = beat_units(matched, positions, checkpoint, settings)
        sentences.append(f"beats: {strips.beats_are}")
    if target and not RHYTHM and settings["rhythm"]:
        rr = features.shape[1] - settings["with_distance"]   # which comes last
        features[:, :rr] = net.normalise_features.mean[:rr].cpu()
        sentences.append("RR features: the training's means")
    if target and not AGGREGATE:
        _, first, count = np.unique(number, return_index=True, return_counts=True)
        middle = first + count // 2
        signals, features, number = signals[middle], features[middle], number[middle]
        sentences.append("one beat or crop a strip")
    return (signals, features), number, sentences


# ---- Score ----

def hidden_layer(net, units, crop):
    """Net, (signals, features) -> (u, 128) float64, what its last layer sees."""
    body = copy.deepcopy(net)
    body.head[-1] = nn.Identity()
    return predict(body, *units, np.arange(len(units[0])), crop).double().numpy()


def log_odds(checkpoint, net, hidden):
    """Checkpoint, net, (u, 128) last hidden layer -> (u, outputs) log odds of every class and of every further output."""
    last, classes = net.head[-1], len(checkpoint["class_names"])
    logits = torch.from_numpy(hidden) @ last.weight.detach().double().T + last.bias.detach().double()
    return np.concatenate([odds_of(probabilities(logits, checkpoint["task"], classes)), logits[:, classes:].numpy()], axis=1)


def aggregate(values, number, strips, how):
    """(u, ...) values of beats or crops, strip of each in rising order -> (strips, ...) their "mean" or "max", NaN if none."""
    result = np.full((strips, *values.shape[1:]), np.nan)
    present, first, count = np.unique(number, return_index=True, return_counts=True)
    result[present] = (np.maximum if how == "max" else np.add).reduceat(values, first)
    if how == "mean":
        result[present] = (result[present].T / count).T
    return result


def scored_strips(checkpoint, net, strips, target=False, transform=None):
    """Strips -> truth, scores (log odds) and identities of those that have a beat; what was done, and what was left out.

    transform: of the last hidden layer, by `coral`.
    """
    units, number, sentences = units_of(checkpoint, net, strips, target)
    hidden = hidden_layer(net, units, checkpoint["crop"])
    if transform is not None:
        hidden = hidden @ transform[0] + transform[1]
    odds, outputs, n = log_odds(checkpoint, net, hidden), checkpoint["outputs"], len(strips.signals)
    normal = aggregate(odds[:, outputs.index(NORMAL_CLASS[checkpoint["class_map"]])], number, n, "mean")
    usable = np.flatnonzero(np.isfinite(normal))
    kept, conditions = take(strips, usable), {}
    for name, row in CONDITIONS.items():
        column = np.flatnonzero(np.isin(outputs, [row["statement"]] if checkpoint["dataset"] == "ptbxl" else row["classes"]))
        if name in kept.conditions and len(column) and checkpoint["output_rows"][column[0]]:
            conditions[name] = (*kept.conditions[name], aggregate(odds[:, column[0]], number, n, row["beats"])[usable])
    return SimpleNamespace(abnormal=kept.abnormal, known=kept.known, score=-normal[usable], conditions=conditions,
                           patients=kept.patients, records=kept.records, samples=kept.samples, hidden=hidden,
                           adapted=sentences, pooled=aggregate(hidden, number, n, "mean")[usable],
                           left_out=strips.left_out | {"strips without a beat": n - len(usable)})


def scored_beats(checkpoint, net, data, records):
    """Dataset of annotated beats, record names -> the same for beats, each in its whole record, and the figures by class."""
    columns, sentence = match_leads([str(x) for x in data.header["leads"]], checkpoint["inputs"]["leads"])
    header = {"leads": checkpoint["inputs"]["leads"], "sampling_rate": checkpoint["sampling_rate"]}
    named = SimpleNamespace(**vars(data) | {"signals": data.signals[:, columns], "header": header})
    rows = np.flatnonzero(np.isin(data.metadata["record"], records) & (data.labels >= 0))
    beats, labels, names, every = (data.metadata[rows], np.array(data.labels[rows]), checkpoint["class_names"],
                                   np.ones(len(rows), bool))
    logits = predict(net, *make_inputs(named, **checkpoint["inputs"]), rows, checkpoint["crop"])
    probability = probabilities(logits, checkpoint["task"], len(names), beats["record"], checkpoint["prior"])
    odds, normal = odds_of(probability), names.index(NORMAL_CLASS[checkpoint["class_map"]])
    return SimpleNamespace(abnormal=labels != normal, known=every, score=-odds[:, normal], patients=beats["patient"],
                           conditions={name: (labels == k, every, odds[:, k])
                                       for k, name in enumerate(names) if checkpoint["output_rows"][k]},
                           records=beats["record"], samples=beats["sample"], left_out={},
                           adapted=[sentence, "beats: annotated"],
                           classes=evaluate(checkpoint, data, rows, labels, probability))


# ---- Use of the target's training side ----

def adapt_batch_norm(net, units, crop):
    """Net, (signals, features) of the target without labels -> a copy whose batch norms have the target's statistics."""
    net = copy.deepcopy(net).eval()
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_running_stats()
            layer.momentum = None   # a plain average over the batches
            layer.train()
    signals, features = units
    with torch.no_grad():
        for batch in torch.randperm(len(signals), generator=torch.Generator().manual_seed(0)).split(256):
            if len(batch) > 1:
                for start in crop_starts(signals.shape[2], crop):
                    net(signals[batch, :, start:start + crop], features[batch])
    return net.eval()


def coral(hidden, source):
    """(u, k) last hidden layer of the target and of the source -> ((k, k), (k,)): x @ A + b has the source's statistics."""
    def root(values):
        covariance = np.cov(values.T)
        return np.real(sqrtm(covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))))
    matrix = np.linalg.solve(root(hidden), root(source))
    return matrix, source.mean(axis=0) - hidden.mean(axis=0) @ matrix


def some_patients(strips, number):
    """Strips, a number -> the strips of so many of their patients, drawn at random with a fixed seed."""
    drawn = np.random.default_rng(0).permutation(np.unique(strips.patients))[:number]
    return take(strips, np.flatnonzero(np.isin(strips.patients, drawn)))


def refit(known, result):
    """Scored strips of labelled patients -> gives the scored test strips the probabilities of a last layer fitted to them."""
    rows = known.known
    if len(set(known.abnormal[rows].tolist())) < 2:
        raise SystemExit(f"the {FINE_TUNE_PATIENTS} patients of FINE_TUNE_PATIENTS are all normal or all abnormal: take more")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(
        known.pooled[rows], known.abnormal[rows])
    result.score, result.probability, result.threshold = (
        model.decision_function(result.pooled), model.predict_proba(result.pooled)[:, 1], .5)
    result.adapted.append(f"last layer fitted to {rows.sum():,} labelled strips of {len(np.unique(known.patients))} patients")


# ---- Figures ----

def fit_decision(validation):
    """Scored validation rows of the source -> (slope, intercept) that make probabilities of scores, and the threshold.

    Platt's scaling; the threshold has the best balanced accuracy.
    """
    score, abnormal = validation.score[validation.known], validation.abnormal[validation.known]
    slope, intercept = platt_scaling(score, abnormal)
    false_positive, true_positive, cuts = roc_curve(abnormal, expit(slope * score + intercept))
    return slope, intercept, float(np.clip(cuts[np.argmax(true_positive - false_positive)], 0, 1))


def statistics_of(result):
    """Scored rows with probabilities and threshold -> function of (b, n) weights -> dict of (b,) figures (see `bootstrap`)."""
    known, called = result.known, result.probability >= result.threshold
    wrong = np.where(known, result.probability - result.abnormal, 0)
    in_bin = (result.probability * 10).astype(int).clip(0, 9)[:, None] == np.arange(10)
    abnormal, normal = result.abnormal & known, ~result.abnormal & known

    def statistics(weights):
        tp, fp, fn, tn = (weights @ (a & b) for a, b in ((called, abnormal), (called, normal),
                                                         (~called, abnormal), (~called, normal)))
        sensitivity, specificity = divide(tp, tp + fn), divide(tn, tn + fp)
        return {"auc": weighted_auc(abnormal[known], result.score[known], weights[:, known]),
                "f1": divide(2 * tp, 2 * tp + fp + fn), "balanced_accuracy": (sensitivity + specificity) / 2,
                "sensitivity": sensitivity, "specificity": specificity,
                "calibration_error": divide(np.abs(weights @ (in_bin * wrong[:, None])).sum(axis=1), weights @ known),
                **{name: weighted_auc(truth[known], score[known], weights[:, known])
                   for name, (truth, known, score) in result.conditions.items()}}
    return statistics


# ---- Report ----

def report_of(result, figures):
    """Scored rows and their figures -> dict for the JSON file."""
    return {"rows": len(result.score), "threshold": result.threshold, "normal_or_abnormal": int(result.known.sum()),
            "abnormal": int(np.sum(result.abnormal & result.known)), "patients": len(np.unique(result.patients)),
            **{name: {"value": float(values[0]), "interval": interval(values[1:])} for name, values in figures.items()},
            "condition_rows": {name: int(np.sum(truth & known)) for name, (truth, known, _) in result.conditions.items()},
            "reliability": reliability(result.probability[result.known], result.abnormal[result.known]),
            "adapted": result.adapted, "left_out": result.left_out,
            **({"classes": result.classes} if hasattr(result, "classes") else {})}


def print_report(report, unit):
    """Prints figures in the model's own domain and in the other one, and the drop, with 95% intervals."""
    def cell(side, name):
        row = report[side].get(name) if report[side] else None
        low, high = (row and row["interval"]) or (None, None)
        return f"{show(row['value']):>7} [{show(low)} {show(high)}]" if row else f"{'n/a':>7}"
    names = ["auc", "f1", "balanced_accuracy", "sensitivity", "specificity", "calibration_error"]
    conditions = [name for name in report["cross_domain"]["condition_rows"] if name in report["cross_domain"]]
    print(f"\n{'normal or abnormal':<20}{'in-domain':<24}{'cross-domain':<24}drop")
    for name in [*names, *conditions]:
        if conditions and name == conditions[0]:
            print("\nAUC of one condition against the rest")
        print(f"{name:<20}" + "".join(f"{cell(side, name):<24}" for side in ("in_domain", "cross_domain", "drop"))
              + (f"{report['cross_domain']['condition_rows'][name]:,} {unit}" if name in conditions else ""))
    for side in ("in_domain", "cross_domain"):
        if report[side]:
            print(f"\n{side.replace('_', '-')}: {report[side]['rows']:,} {unit} of {report[side]['patients']:,} patients, "
                  f"{report[side]['normal_or_abnormal']:,} of them normal or abnormal. "
                  + "; ".join(report[side]["adapted"]))
            left_out = ", ".join(f"{number:,} {reason}" for reason, number in report[side]["left_out"].items())
            print("  left out: " + (left_out or "nothing"))
        else:
            print("\nin-domain: none, because the model was trained on the source's test side, too")


def plot_report(results, report, title, path):
    """Scored rows of both sides (the in-domain one may be None) -> PNG: ROC curves, calibration, AUC of the conditions."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    conditions = [name for name in report["cross_domain"]["condition_rows"] if name in report["cross_domain"]]
    for shift, side, style, fill in ((.12, "in_domain", "--", "white"), (-.12, "cross_domain", "-", "black")):
        result, part = results[side], report[side]
        if result is None:
            continue
        x, y, _ = roc_curve(result.abnormal[result.known], result.score[result.known])
        label = f"{side.replace('_', '-')} ({report['source' if side == 'in_domain' else 'target']})"
        axes[0].plot(x, y, style, color="black", label=f"{label}: AUC {part['auc']['value']:.3f}")
        axes[0].plot(1 - part["specificity"]["value"], part["sensitivity"]["value"], "o", color="black", markerfacecolor=fill)
        means, shares, _ = zip(*part["reliability"])
        axes[1].plot(means, shares, style + "o", color="black", markersize=4, markerfacecolor=fill, label=label)
        for place, name in enumerate(reversed(conditions)):
            if name in part:
                low, high = part[name]["interval"] or (np.nan, np.nan)
                axes[2].plot([low, high], [place + shift] * 2, style, color="black", linewidth=1)
                axes[2].plot(part[name]["value"], place + shift, "o", color="black", markersize=5, markerfacecolor=fill)
    for axis, names in ((axes[0], ("1 - specificity", "sensitivity")),
                        (axes[1], ("probability of abnormal", "share that is abnormal"))):
        axis.plot([0, 1], [0, 1], ":", color="0.6")
        axis.set(xlabel=names[0], ylabel=names[1], xlim=(-.01, 1.01), ylim=(-.01, 1.01))
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_title("ROC curve; circle: the source's threshold", fontsize=9)
    axes[1].set_title("calibration", fontsize=9)
    axes[2].axvline(.5, color="0.6", linestyle=":")
    axes[2].set(xlim=(-.01, 1.01), yticks=range(len(conditions)), yticklabels=conditions[::-1],
                xlabel="AUC against the rest (95% interval)")
    axes[2].set_title("the same condition; white: in-domain", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150, format="png")


def table_of(results):
    """Scored rows of both sides -> table with one row each: side, record (or ecg_id), first sample, patient, truth, scores."""
    tables = []
    for side, result in results.items():
        if result is not None:
            columns = {"side": side, "record": result.records, "sample": result.samples, "patient": result.patients,
                       "abnormal": np.where(result.known, result.abnormal, np.nan), "score": result.score,
                       "probability": result.probability}
            for name, (truth, known, score) in result.conditions.items():
                columns |= {f"{name} truth": np.where(known, truth.astype(float), np.nan), f"{name} score": score}
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


# ---- Main ----

def check_constants():
    """Stops the run with one sentence when a constant has none of its allowed values."""
    for name, expected in (("PRETRAINED_DATASET", ["mitbih", "ptbxl"]), ("MODEL", ["cnn", "lstm", "mlp"]),
                           ("ADAPTATION", ["none", "adabn", "coral"])):
        check_choice(name, globals()[name], expected)
    if PRETRAINED_DATASET == TEST_DATASET:
        raise SystemExit(f"PRETRAINED_DATASET and TEST_DATASET are both {TEST_DATASET}: model_evaluation.py does that")
    if not isinstance(FINE_TUNE_PATIENTS, int) or FINE_TUNE_PATIENTS < 0:
        raise SystemExit(f"FINE_TUNE_PATIENTS = {FINE_TUNE_PATIENTS!r}: expected 0 or a number of patients")
    if WHOLE_TARGET and (ADAPTATION != "none" or FINE_TUNE_PATIENTS):
        raise SystemExit("WHOLE_TARGET = True leaves no rows of the target to adapt to: "
                         'set ADAPTATION to "none" and FINE_TUNE_PATIENTS to 0')


def own_parts(checkpoint):
    """Checkpoint -> its split's sides; a random split leaves no test side to measure the model's own domain with."""
    return checkpoint["split_parts"] | ({"test": []} if checkpoint["leaks"] else {})


def compare_beats(checkpoint, net, source, target):
    """Both databases have annotated beats -> dict of scored beats: validation, in-domain (or None), cross-domain."""
    if ADAPTATION != "none" or FINE_TUNE_PATIENTS:
        raise SystemExit(f"ADAPTATION and FINE_TUNE_PATIENTS are for strips: {TEST_DATASET} has annotated beats, set them to "
                         '"none" and 0')
    if WHOLE_TARGET or not all((RESAMPLE, BAND_LIMIT, MATCH_LEADS, MILLIVOLTS, ALIGN_BEATS, RHYTHM, AGGREGATE)):
        raise SystemExit(f"the switches are for strips: {TEST_DATASET} has annotated beats, "
                         "set WHOLE_TARGET = False and the others True")
    for name in ("class_names", "sampling_rate"):
        if str(source.header[name]) != str(target.header[name]):
            raise SystemExit(f"{source.name} has {name} {source.header[name]}, {target.name} {target.header[name]}: "
                             "make both with the same CLASS_MAP and SAMPLING_RATE in preprocess_mitbih.py")
    parts = own_parts(checkpoint)
    return {"validation": scored_beats(checkpoint, net, source, parts["validation"]) if parts["validation"] else None,
            "in_domain": scored_beats(checkpoint, net, source, parts["test"]) if parts["test"] else None,
            "cross_domain": scored_beats(checkpoint, net, target, split_parts(target)["test"])}


def compare_strips(checkpoint, net, source, target):
    """One of both databases is PTB-XL -> dict of scored strips: validation, in-domain (or None), cross-domain."""
    parts, needs_beats, transform, done = own_parts(checkpoint), checkpoint["dataset"] != "ptbxl", None, []
    target_parts, adapts = split_parts(target), ADAPTATION != "none" or FINE_TUNE_PATIENTS
    if adapts and not target_parts["train"]:
        raise SystemExit(f"{target.name} has no training side to adapt to: "
                         'set ADAPTATION to "none" and FINE_TUNE_PATIENTS to 0')
    if WHOLE_TARGET:
        target_parts["test"] = sum(split_parts(target, "all").values(), [])
    validation, inside = (scored_strips(checkpoint, net, strips_of(source, parts, side)) if parts[side] else None
                          for side in ("validation", "test"))
    test = strips_of(target, target_parts, "test", needs_beats)
    if adapts:   # 201 and 202 of MIT-BIH are one patient on both sides
        train = strips_of(target, target_parts, "train", needs_beats)
        train = take(train, np.flatnonzero(~np.isin(train.patients, test.patients)))
    if ADAPTATION == "adabn":
        units, _, _ = units_of(checkpoint, net, some_patients(train, 1000), True)
        net, done = adapt_batch_norm(net, units, checkpoint["crop"]), ["batch norms with the target's statistics"]
    elif ADAPTATION == "coral":
        others = scored_strips(checkpoint, net, some_patients(train, 1000), True)
        transform, done = coral(others.hidden, validation.hidden), ["last hidden layer aligned by CORAL"]
    outside = scored_strips(checkpoint, net, test, True, transform)
    outside.adapted += done
    if FINE_TUNE_PATIENTS:
        outside.labelled = scored_strips(checkpoint, net, some_patients(train, FINE_TUNE_PATIENTS), True, transform)
    return {"validation": validation, "in_domain": inside, "cross_domain": outside}


def add_probabilities(results):
    """Gives the scored rows of all sides probabilities and a threshold, from the validation rows or FINE_TUNE_PATIENTS."""
    for side, result in results.items():
        if result is None and side == "validation" or result and len(set(result.abnormal[result.known].tolist())) < 2:
            raise SystemExit(f"the {side.replace('_', '-')} rows are not both normal and abnormal: nothing to measure. "
                             "Take more records (RECORDS in preprocess_mitbih.py, VALIDATION_RECORDS in model_training.py)")
    slope, intercept, threshold = fit_decision(results["validation"])
    for result in results.values():
        if result is not None:
            result.probability, result.threshold = expit(slope * result.score + intercept), threshold
    if hasattr(results["cross_domain"], "labelled"):
        refit(results["cross_domain"].labelled, results["cross_domain"])


def main():
    check_constants()
    checkpoint, net = load_checkpoint(PRETRAINED_DATASET, MODEL)
    source, target = load_dataset(PRETRAINED_DATASET), load_dataset(TEST_DATASET)
    check_dataset(checkpoint, source)
    unit = "beats" if source.kind == target.kind == "mitbih" else "strips"
    print(f"{MODEL} trained on {source.name}, tested on {target.name}: is a {unit[:-1]} normal or abnormal?")
    results = (compare_beats if unit == "beats" else compare_strips)(checkpoint, net, source, target)
    add_probabilities(results)
    threshold = results.pop("validation").threshold
    figures = {side: resampled(result.patients, statistics_of(result), seed) if result else None
               for seed, (side, result) in enumerate(results.items())}
    warnings = warnings_of(checkpoint)
    if target.header["simulated"] and not checkpoint["simulated"]:
        warnings.append(f"SIMULATED DATA in {TEST_DATASET}: no figure is a result")
    report = {"source": source.name, "target": target.name, "model": MODEL, "unit": unit, "warnings": warnings,
              "threshold": threshold, "constants": constants_of(globals(), []),
              "made_from": {**origin_of(checkpoint), "target": json.loads(str(target.header["made_from"]))},
              **{side: report_of(result, figures[side]) if result else None for side, result in results.items()},
              "drop": compare(figures["in_domain"], figures["cross_domain"]) if results["in_domain"] else None}
    print_report(report, unit)
    if unit == "beats":
        print_metrics(results["cross_domain"].classes)
    print(*warnings, sep="\n")

    name = f"{source.name}_to_{target.name}_{MODEL}_cross"
    with new_files(*(f"{name}.{end}" for end in ("json", "csv", "png"))) as (json_path, table_path, plot_path):
        json_path.write_text(json.dumps(report, indent=1) + "\n")
        table_of(results).to_csv(table_path, index=False, float_format="%.9g")
        title = ". ".join([f"{MODEL} trained on {source.name}, tested on {target.name}", *warnings])
        plot_report(results, report, title, plot_path)
    print(f"Wrote {name}.json, .csv, .png")


if __name__ == "__main__":
    main()
