"""Trains a CNN, LSTM or MLP on MIT-BIH beats or PTB-XL records.

Reads   {dataset}_signals.npy, _labels.npy, _metadata.npy, _header.npy   from the preprocess scripts
Writes  {dataset}_{model}_model.pth      weights and everything needed to use them (see `describe`)
        {dataset}_{model}_training.png   loss and validation score by epoch
        {dataset}_{model}_state.pth      after every epoch, what RESUME goes on from; removed at the end
Takes   a minute for MIT-BIH, 6 to 7 minutes for PTB-XL at 100 Hz, on two cores without a GPU (mlp: a third of that).
        Several processes, GPUs or machines share the work with: torchrun --nproc-per-node=2 model_training.py
"""

import io
import json
import os
import sys
import time
import zipfile
from functools import partial
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from preprocess_mitbih import (check_choice, constants_of, header_sum, low_pass, new_files, qrs_energy, rhythm_features,
                               rr_window, sha256_of, versions)

# data
DATASET = "mitbih"        # "mitbih" or "ptbxl"
TASK = "multilabel"       # PTB-XL: "multilabel" (five superclasses, as in the published benchmark) or "multiclass"
                          # (records with exactly one superclass). MIT-BIH beats have one class each: always multiclass
LEADS = "all"             # "all" leads of the .npy file, or names: ["II"] trains a one-lead model on PTB-XL
RECORD_RELATIVE = True    # MIT-BIH: show each beat beside its record's median beat (needs no labels of the record)
TEMPLATE_DISTANCE = {"cnn": True, "lstm": False, "mlp": False}   # MIT-BIH: a feature that says how far the QRS complex is from
                          # the median beat's (see `template_distance`); only the cnn gained by it in cross-validation over DS1
RHYTHM = True             # MIT-BIH: give the model the RR intervals around the beat (annotated beat positions)
CONTEXT_SECONDS = None    # s: MIT-BIH: where a beat's normal beat and rhythm come from: None: its whole record, as in a Holter
                          # analysis; 10: the 10 s strip it is in, all that a PTB-XL record offers, for models to be used there
SHIFT_SECONDS = 0.0       # s: MIT-BIH: in training a beat is moved at random by up to so much, for positions of another origin;
                          # its score is then the mean of the two ends of that range
LOW_PASS = None           # Hz: None, or a frequency (40) above which nothing reaches the model, as databases differ there
ADAPTED_CLASSES = {"aami": ["N", "S"], "clinical": ["normal", "supraventricular"]}   # MIT-BIH: classes whose share may
                          # differ from record to record (see `adapt_prior`, which needs no labels); []: none

# split
SPLIT = "inter_patient"   # "inter_patient" (MIT-BIH DS1 to DS2, PTB-XL folds); "all": the test side and the paced records train
                          # too, for models to be used on another database; or "random", which leaks patients
VALIDATION_RECORDS = ["114", "124", "203", "220", "223"]   # MIT-BIH: patients of DS1 that are not trained on
EXCLUDED_RECORDS = []     # MIT-BIH, not for random: ["202"] leaves out the test record of the patient who is also in DS1 (201)
VALIDATION_FOLD = 9       # PTB-XL: strat_fold for choosing the epoch and the thresholds; the rest trains
TEST_FOLD = 10            # PTB-XL: strat_fold that is only reported

# model
MODEL = "cnn"             # "cnn", "lstm" or "mlp"

# optimiser
EPOCHS = {"mitbih": 6, "ptbxl": 18}
BATCH_SIZE = {"mitbih": 256, "ptbxl": 64}
LEARNING_RATE = {"mitbih": {"cnn": 5e-3, "lstm": 3e-3, "mlp": 2e-3},   # the peak of the one-cycle schedule
                 "ptbxl": {"cnn": 1e-2, "lstm": 5e-3, "mlp": 3e-3}}
WEIGHT_DECAY = 1e-2       # of AdamW
CLASS_WEIGHT_POWER = 0.25 # multiclass: a class with count c weighs 1 / c^power: 0 for equal weights, 1 for balanced
                          # classes (one below 0.1% of the rows weighs like one of 0.1%)
SIGNAL_NOISE = {"mitbih": 2.5, "ptbxl": 0.0}   # added in training, in standard deviations of the training rows: DS1 has
                          # 17 training patients, and without noise a net learns them by heart
RHYTHM_NOISE = 0.3        # the same for the RR features
STATEMENT_WEIGHT = 3.0    # PTB-XL: weight of a second loss, on all 71 SCP statements (the superclasses summarise 44 of them):
                          # the net has an output for each of them after those of the classes. 0: neither
TRAIN_FRACTION = 1.0      # share of the training patients that is used: to see what a small dataset would give
KEEP = {"mitbih": "last", "ptbxl": "best"}   # which epoch's weights: five validation patients are too few to pick one of
                          # MIT-BIH's, and cross-validation over DS1 was done with the last one
PATIENCE = 8              # "best": epochs without a better validation score before the run stops; the one-cycle schedule
                          # reaches its best epochs last

# run
SEED = 0                  # one seed, one result, on the CPU
RESUME = False            # True: goes on after the last whole epoch of a run that was stopped, to the same weights on the CPU
DEVICE = "auto"           # "auto": cuda, mps or cpu, whichever is there first; or one of their names

# What a model sees at a time: the middle of a MIT-BIH segment (the P wave to the ST segment), random crops of PTB-XL.
CROP_SECONDS = {"mitbih": 0.5, "ptbxl": 2.5}
ARCHITECTURE = {
    "mitbih": {"cnn": {"widths": [32, 48, 64], "stem_kernel": 11, "stem_stride": 3, "squeeze": 16},
               "lstm": {"width": 48, "stem_stride": 3, "squeeze": 16},
               "mlp": {"widths": [256, 128], "window": 1.0, "step": 1.0}},   # shares of the crop
    "ptbxl": {"cnn": {"widths": [48, 96, 96, 192], "stem_kernel": 9, "stem_stride": 2},
              "lstm": {"width": 80, "stem_stride": 2},
              "mlp": {"widths": [512, 256], "window": 0.4, "step": 0.1}},
}
# Constants that say how a run goes, not what comes out; the others are recorded in the checkpoint.
HOW_IT_RUNS = ["RESUME", "DEVICE", "MODELS", "HOW_IT_RUNS"]
# The metadata field that the inter-patient split goes by.
GROUP = {"mitbih": "record", "ptbxl": "fold"}


# ---- Load a dataset ----

def load_array(name, script, digest=None):
    """.npy file of the working directory -> memory-mapped array. Stops with one sentence when it is not usable.

    With a digest the file must have this SHA-256.
    """
    try:
        array = np.lib.format.open_memmap(name, mode="c")   # "c": the file is never written to. Pickled objects are refused
    except FileNotFoundError:
        raise SystemExit(f"{name} is not in this folder. Make it with: python {script}") from None
    except Exception as error:   # numpy raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"{name} is damaged ({reason}). Make it again with: python {script}") from error
    if digest and sha256_of(name) != digest:
        raise SystemExit(f"{name} is damaged, or of another run than the header beside it (its SHA-256 is not the one in "
                         f"there). Make all of them again with: python {script}")
    return array


def load_header(dataset):
    """Name -> (header record, dict of part -> SHA-256, name of the script that makes them), after a check of the header."""
    script = "preprocess_ptbxl.py" if dataset == "ptbxl" else "preprocess_mitbih.py"
    header = load_array(f"{dataset}_header.npy", script)
    fields = set(header.dtype.names or ())
    if header.shape != (1,) or not {"own_sum", "made_from"} <= fields or header["own_sum"] != header_sum(header):
        raise SystemExit(f"{dataset}_header.npy is damaged or of an earlier version. Make all {dataset}_*.npy files again "
                         f"with: python {script}")
    return header[0], dict(zip(header["parts"][0].tolist(), header["part_sums"][0].tolist())), script


def load_dataset(dataset):
    """Name -> signals (n, leads, samples) float32 mV, labels (n,), metadata (n,) structured, header (one record), kind.

    kind is "ptbxl", or "mitbih" for any database of annotated beats. The signals stay on disk, as a memory map. The files must
    be those that one run of the preprocess script wrote, byte for byte; it is this script that has checked what is in them.
    """
    header, sums, script = load_header(dataset)
    signals, labels, metadata = (load_array(f"{dataset}_{part}.npy", script, sums[part])
                                 for part in ("signals", "labels", "metadata"))
    return SimpleNamespace(name=dataset, kind="ptbxl" if dataset == "ptbxl" else "mitbih", labels=labels, metadata=metadata,
                           header=header, signals=signals[:, None] if signals.ndim == 2 else signals)


# ---- Split ----

def split_rows(data, split, parts, seed):
    """Dataset, "inter_patient" or "random", checkpoint's parts, seed -> dict of train, validation, test row numbers.

    parts names the records (MIT-BIH) or folds (PTB-XL) of each side; a random split follows the seed instead.
    """
    if split == "random":
        rows = np.random.default_rng(seed).permutation(len(data.signals))
        first, second = int(.8 * len(rows)), int(.9 * len(rows))
        return {"train": np.sort(rows[:first]), "validation": np.sort(rows[first:second]), "test": np.sort(rows[second:])}
    group = data.metadata[GROUP[data.kind]]
    return {side: np.flatnonzero(np.isin(group, members)) for side, members in parts.items()}


def split_parts(data, split="inter_patient"):
    """Dataset, "inter_patient" or "all" -> dict of side -> its records or folds, from the constants."""
    if data.kind == "ptbxl":
        group = np.arange(1, 11)
        test, validation = group == TEST_FOLD, group == VALIDATION_FOLD
    else:
        group, first = np.unique(data.metadata["record"], return_index=True)
        subset = data.metadata["subset"][first]
        kept = ~np.isin(group, EXCLUDED_RECORDS) & ((split == "all") | (subset != "paced"))
        group, subset = group[kept], subset[kept]
        test, validation = np.isin(subset, ["DS2", "test"]), np.isin(group, VALIDATION_RECORDS)   # "test": of a third database
    test &= split != "all"
    sides = {"train": ~test & ~validation, "validation": validation, "test": test}
    return {side: group[rows].tolist() for side, rows in sides.items()}


def check_records(data):
    """Stops the run when a constant names a MIT-BIH record that is not there or not in DS1."""
    here = set(np.unique(data.metadata["record"]).tolist())
    ds1 = set(np.unique(data.metadata["record"][data.metadata["subset"] == "DS1"]).tolist())
    for name, value, allowed, what in (("VALIDATION_RECORDS", VALIDATION_RECORDS, ds1, "records of DS1"),
                                       ("EXCLUDED_RECORDS", EXCLUDED_RECORDS, here, "records")):
        wrong = [str(record) for record in value if record not in allowed]
        if wrong:
            raise SystemExit(f"{name} names {', '.join(wrong)}: expected {what} that are in mitbih_metadata.npy, as texts: "
                             f"{' '.join(sorted(allowed))}")


def check_patients(data, sides, split):
    """Stops the run if a patient is on two sides; a random split shares patients and says so. Returns a sentence."""
    patients = {side: set(np.unique(data.metadata["patient"][rows]).tolist()) for side, rows in sides.items()}
    shared = (patients["train"] & patients["validation"]) | ((patients["train"] | patients["validation"]) & patients["test"])
    if split == "random":
        return (f"*** LEAKY SPLIT: {len(shared)} patients are on two sides of it or three. The scores are far too good, "
                "for comparison with older papers only ***")
    allowed = {"201"} if data.name == "mitbih" else set()   # 201 (DS1) and 202 (DS2), the standard split's known flaw
    if shared - allowed:
        raise SystemExit(f"patients {', '.join(sorted(shared - allowed)[:10])} are on two sides of the split. "
                         "Nothing was trained")
    note = "; 201 (DS1) and 202 (DS2) are one patient, as in the standard split" if shared else ""
    return f"no patient is on two sides{note}"


def task_rows(data, task, sides):
    """Leaves the rows that the task can use: one superclass each for multiclass, at least one for multilabel."""
    usable = data.labels >= 0
    if data.kind == "ptbxl" and task == "multiclass":
        usable = data.metadata["superclasses"].sum(axis=1) == 1
    return {side: rows[usable[rows]] for side, rows in sides.items()}


def some_patients(data, rows, fraction):
    """Training rows -> those of a share of their patients, drawn at random with a fixed seed."""
    patients = np.unique(data.metadata["patient"][rows])
    kept = np.random.default_rng(0).permutation(patients)[:round(fraction * len(patients))]
    return rows[np.isin(data.metadata["patient"][rows], kept)]


def targets_of(data, task):
    """Dataset, task -> tensor of targets: (n,) int64 classes or (n, classes) float32 zeros and ones."""
    if task == "multilabel":
        return torch.from_numpy(data.metadata["superclasses"].astype(np.float32))
    return torch.from_numpy(np.array(data.labels))


def statements_of(data):
    """Dataset -> (n, statements) float32 zeros and ones, the SCP statements of PTB-XL's records; (n, 0) for other datasets."""
    if data.kind != "ptbxl" or STATEMENT_WEIGHT == 0:
        return torch.zeros(len(data.labels), 0)
    return torch.from_numpy((data.metadata["statements"] >= 0).astype(np.float32))


# ---- Inputs ----

def record_rows(metadata, strip=None):
    """(n,) metadata -> list of the row numbers of each record, or of each strip of so many samples, in time order."""
    _, number = np.unique(metadata["record"], return_inverse=True)
    if strip:
        place = metadata["sample"] // strip
        _, number = np.unique(number * (place.max() + 1) + place, return_inverse=True)
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])


def relative_beats(signals, groups):
    """(n, leads, samples) float32 mV, row numbers of each record or strip -> (n, 2 * leads, samples).

    The beats in heights of their record's median beat, then their differences from it. The median beat needs no labels, but
    all beats of the record: an offline analysis, as in a Holter.
    """
    relative = np.empty((len(signals), 2, *signals.shape[1:]), np.float32)
    for rows in groups:
        beats = signals[rows] - np.median(signals[rows], axis=2, keepdims=True)     # without their baseline
        median = np.median(beats, axis=0)
        height = np.maximum(np.ptp(median, axis=1), 0.1)[:, None]                   # mV; a flat lead is not blown up
        relative[rows, 0], relative[rows, 1] = beats / height, (beats - median) / height
    return relative.reshape(len(signals), -1, signals.shape[2])


def template_distance(differences, groups, rate):
    """(n, leads, samples) differences from the record's median beat, rows of each record or strip -> (n, 1) float32.

    The log of the root mean square difference of a QRS complex over the median one of its record: in a noisy record all
    beats differ, a ventricular one stands out, and a supraventricular one has the QRS complex of the normal ones.
    """
    middle = differences.shape[2] // 2
    qrs = differences[:, :, middle - round(0.08 * rate):middle + round(0.1 * rate)]
    distance = np.sqrt(np.square(qrs).mean(axis=(1, 2))) + 0.001   # heights of the median beat; a flat lead has 0
    for rows in groups:
        distance[rows] /= np.median(distance[rows])
    return np.log(distance)[:, None]


def align_beats(signals, rate):
    """(n, leads, samples) beats -> the same, moved by up to 0.1 s so that the QRS complex's energy peaks in the middle.

    Annotated and detected positions differ by some samples; so do two databases'.
    """
    middle, reach = signals.shape[2] // 2, round(0.1 * rate)
    aligned = np.empty_like(signals)
    for rows in np.array_split(np.arange(len(signals)), max(1, len(signals) // 4096)):
        shift = qrs_energy(signals[rows], rate)[:, middle - reach:middle + reach + 1].argmax(axis=1) - reach
        columns = np.clip(np.arange(signals.shape[2]) + shift[:, None], 0, signals.shape[2] - 1)
        aligned[rows] = np.take_along_axis(signals[rows], columns[:, None], axis=2)
    return aligned


def make_inputs(data, leads, record_relative, with_distance, rhythm, window, context, align, low_pass_hz):
    """Dataset and the checkpoint's settings -> signals (n, channels, samples), features (n, k) float32 tensors.

    window is the number of samples kept in the middle of each signal, None for all; context, low_pass_hz and with_distance are
    CONTEXT_SECONDS, LOW_PASS and TEMPLATE_DISTANCE; align: see `align_beats`.
    """
    names = [str(lead) for lead in data.header["leads"]]
    absent = [lead for lead in leads if lead not in names]
    if absent:
        raise SystemExit(f"lead {', '.join(absent)} is not in {data.name}_signals.npy, which has {', '.join(names)}")
    signals = data.signals if list(leads) == names else np.ascontiguousarray(data.signals[:, [names.index(x) for x in leads]])
    rate = int(data.header["sampling_rate"])
    if low_pass_hz:
        signals = low_pass(signals, rate, low_pass_hz)
    if align:
        signals = align_beats(signals, rate)
    groups = record_rows(data.metadata, context and round(context * rate)) if record_relative or context else []
    if record_relative:
        signals = relative_beats(signals, groups)
    if window is not None:
        start = (signals.shape[2] - window) // 2
        signals = np.ascontiguousarray(signals[:, :, start:start + window])
    features = np.array(data.metadata["rhythm"]) if rhythm else np.zeros((len(signals), 0), np.float32)
    for rows in groups if rhythm and context else []:
        features[rows] = rhythm_features(rr_window(data.metadata["sample"][rows], rate))
    if with_distance:
        features = np.concatenate([features, template_distance(signals[:, len(leads):], groups, rate)], axis=1)
    return torch.from_numpy(signals), torch.from_numpy(features)


def channel_statistics(values, rows):
    """(n, channels, ...) tensor, training rows -> mean and spread of each channel, (channels,) float32 each."""
    total = count = square = 0.0
    for part in np.array_split(rows, max(1, len(rows) * values.shape[2:].numel() // 1_024_000)):
        part = values[torch.from_numpy(part)].flatten(2) if values.dim() > 2 else values[torch.from_numpy(part), :, None]
        total, square = total + part.sum((0, 2), dtype=torch.float64), square + part.double().square().sum((0, 2))
        count += part.shape[0] * part.shape[2]
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp_min(1e-12).sqrt().float()


# ---- Models ----

class Normalise(nn.Module):
    """Subtracts the mean and divides by the spread of the training rows, which are stored with the weights."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def forward(self, x):
        return (x - self.mean) / self.spread


def conv(a, b, kernel, stride=1):
    """A 1-D convolution as a 2-D one over a single row, whose channels-last layout is 1.3 times as fast on CPUs."""
    return nn.Conv2d(a, b, (1, kernel), (1, stride), (0, kernel // 2), bias=False)


class ResidualBlock(nn.Module):
    """(n, a, 1, t) -> (n, b, 1, t / stride): two convolutions, added to the average-pooled input."""

    def __init__(self, a, b, kernel, stride, dropout=0.1):
        super().__init__()
        self.layers = nn.Sequential(
            conv(a, b, kernel, stride), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout2d(dropout),
            conv(b, b, kernel), nn.BatchNorm2d(b))
        self.shortcut = nn.Sequential(nn.AvgPool2d((1, stride), ceil_mode=True), conv(a, b, 1), nn.BatchNorm2d(b))

    def forward(self, x):
        return F.relu(self.layers(x) + self.shortcut(x))


class Convolutions(nn.Sequential):
    """(n, leads, samples) -> (n, width, steps): a strided stem, then residual blocks that halve the length."""

    def __init__(self, leads, widths, kernels, stride):   # widths and kernels: of the stem, then of each block
        super().__init__(
            conv(leads, widths[0], kernels[0], stride), nn.BatchNorm2d(widths[0]), nn.ReLU(),
            *(ResidualBlock(a, b, kernel, 2) for a, b, kernel in zip(widths, widths[1:], kernels[1:])))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return super().forward(x.unsqueeze(2).to(memory_format=torch.channels_last)).squeeze(2)


class Net(nn.Module):
    """What the three models share: (n, leads, samples) signals and (n, features) -> (n, outputs) logits.

    The signals are in mV, or with record-relative inputs two "leads" in heights of the median beat. `maps` of a model gives
    (n, width, steps) feature maps. What a crop of a record shows may be anywhere in it: the mean and the maximum over the
    steps go on. In a beat each step has its place: with `squeeze` all of them go on, as so many numbers, few enough for the
    rhythm to be heard beside them.
    """

    def __init__(self, leads, features, width, outputs, squeeze=None, steps=None):
        super().__init__()
        self.normalise_signals, self.normalise_features = Normalise(leads, 1), Normalise(features)
        self.squeeze = squeeze and nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(width * steps, squeeze), nn.BatchNorm1d(squeeze), nn.ReLU())
        inputs = (squeeze or 2 * width) + features
        self.head = nn.Sequential(
            nn.BatchNorm1d(inputs), nn.Dropout(0.1 if squeeze else 0.25), nn.Linear(inputs, 128), nn.ReLU(),
            nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, outputs))

    def forward(self, signals, features):
        return self.classify(self.maps(self.normalise_signals(signals)), features)

    def classify(self, maps, features):
        """(n, width, steps), (n, features) -> (n, outputs) logits."""
        x = self.squeeze(maps) if self.squeeze else mean_and_max(maps)             # (n, squeeze or 2 * width)
        return self.head(torch.cat([x, self.normalise_features(features)], dim=1))


def mean_and_max(x):
    """(n, width, t) -> (n, 2 * width): what a record shows throughout, and what it shows once."""
    return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


class CNN(Net):
    """Residual 1-D convolutional network."""

    def __init__(self, *, leads, samples, features, outputs, widths, stem_kernel, stem_stride, squeeze=None):
        super().__init__(leads, features, widths[-1], outputs, squeeze, ceil(samples / (stem_stride * 2 ** len(widths))))
        self.layers = Convolutions(leads, (widths[0], *widths), (stem_kernel, 5, 5, 5, 3), stem_stride)

    def maps(self, x):
        return self.layers(x)                                        # (n, width, steps)


class LSTM(Net):
    """Bidirectional LSTM over a strided convolutional stem, which leaves it an eighth of the steps or fewer."""

    def __init__(self, *, leads, samples, features, outputs, width, stem_stride, squeeze=None):
        super().__init__(leads, features, 2 * width, outputs, squeeze, ceil(samples / (stem_stride * 4)))
        self.stem = Convolutions(leads, (width // 2, width, width), (9, 5, 5), stem_stride)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def maps(self, x):
        steps, _ = self.lstm(self.stem(x).transpose(1, 2))           # (n, samples / (stem_stride * 4), 2 * width)
        return steps.transpose(1, 2)


class MLP(Net):
    """Fully connected layers over all samples of all leads of a window, the same ones for each window of the crop.

    A MIT-BIH beat is one window. In a PTB-XL crop beats may come anywhere, so it takes many windows that overlap.
    """

    def __init__(self, *, leads, samples, features, outputs, widths, window, step):
        super().__init__(leads, features, widths[-1], outputs)
        self.window, self.step = round(window * samples), round(step * samples)
        sizes = [leads * self.window, *widths]
        self.layers = nn.Sequential(*(layer for a, b in zip(sizes, sizes[1:]) for layer in
                                      (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3))))

    def maps(self, x):
        windows = x.unfold(2, self.window, self.step).transpose(1, 2)            # (n, windows, leads, window)
        x = self.layers(windows.flatten(0, 1).flatten(1))                        # (n * windows, width)
        return x.view(*windows.shape[:2], -1).transpose(1, 2)                    # (n, width, windows)


MODELS = {"cnn": CNN, "lstm": LSTM, "mlp": MLP}


# ---- Inference (the one path of training, evaluation and cross-dataset validation) ----

def crop_starts(samples, crop):
    """Length of a record and of a crop -> start of each of the half-overlapping crops that cover the record."""
    if samples < crop:
        raise SystemExit(f"signals of {samples} samples are shorter than the {crop} that the model was trained on")
    return sorted({*range(0, samples - crop + 1, max(1, crop // 2)), samples - crop})


def crop_logits(net, signals, features, crop):
    """Net, (n, channels, samples), (n, k) on its device -> (n, outputs) logits, the mean over the crops."""
    starts = crop_starts(signals.shape[2], crop)
    crops = torch.cat([signals[:, :, start:start + crop] for start in starts])
    return net(crops, features.repeat(len(starts), 1)).view(len(starts), len(signals), -1).mean(dim=0)


@torch.no_grad()
def predict(net, signals, features, rows, crop, batch=512):
    """Net, (n, channels, samples), (n, k), row numbers -> (rows, outputs) float32 logits on the CPU."""
    net.eval()
    device = next(net.parameters()).device
    parts = torch.from_numpy(np.asarray(rows)).split(max(1, batch * crop // signals.shape[2]))
    return torch.cat([crop_logits(net, signals[part.to(signals.device)].to(device),
                                  features[part.to(features.device)].to(device), crop).float().cpu() for part in parts])


def adapt_prior(probability, records, prior):
    """(n, classes) probabilities, each row's record, the classes' shares in the loss -> probabilities for those records.

    One patient has 1,000 supraventricular beats, another none. Each record's shares are estimated from the probabilities of
    its own beats by expectation maximisation, without labels, and weigh ten times what the training's do; a class with
    share 0 keeps its weight. After Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities", Neural Computation 14, 2002.
    """
    _, number, count = np.unique(records, return_inverse=True, return_counts=True)
    prior = np.asarray(prior)
    shares = np.tile(prior, (len(count), 1))
    for _ in range(50):
        adapted = probability * np.where(prior > 0, shares / np.maximum(prior, 1e-9), 1)[number]
        adapted /= adapted.sum(axis=1, keepdims=True)
        found = np.stack([np.bincount(number, column) for column in adapted.T], axis=1) / count[:, None]
        shares = (10 * found + prior) / 11
    return adapted


def probabilities(logits, task, classes, records=None, prior=None):
    """(n, outputs) logits -> (n, classes) float64 probabilities: softmax for multiclass, sigmoid for multilabel.

    With the training's class shares they are adapted to the record of each row (see `adapt_prior`).
    """
    logits = logits[:, :classes].double()
    probability = (torch.sigmoid(logits) if task == "multilabel" else torch.softmax(logits, dim=1)).numpy()
    return probability if prior is None else adapt_prior(probability, records, prior)


# ---- Several processes (torchrun), each with its part of every batch, to the weights of a single one but for rounding ----

class Total(torch.autograd.Function):
    """The sum of a tensor over all processes, which gradients flow back through."""

    @staticmethod
    def forward(ctx, x):
        dist.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx, gradient):
        return Total.apply(gradient)


def start_processes(device):
    """Joins the processes that torchrun has started, if it has -> the device of this one. The first alone prints and writes."""
    if not dist.is_torchelastic_launched():
        return device
    device, here = torch.device("cuda" if device.type == "cuda" else "cpu"), dist.get_node_local_rank()   # gloo cannot do mps
    if device.type == "cuda" and here >= torch.cuda.device_count():
        raise SystemExit(f"process {here} has no GPU: torchrun's --nproc-per-node is above "
                         f"the {torch.cuda.device_count()} GPUs here")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device := torch.device("cuda", here))
    sys.stdout = open(os.devnull, "w") if dist.get_rank() else sys.stdout
    return device


def is_first():
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def leave_processes():
    """Ends the work of several processes -> whether this is the one that writes."""
    first = is_first()
    if dist.is_initialized():
        dist.destroy_process_group()
    return first


def own_part(rows):
    """The rows of the whole batch -> those of this process."""
    return rows.tensor_split(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else rows


def all_parts(own):
    """What this process has -> list of what each process has."""
    parts = [own] * (dist.get_world_size() if dist.is_initialized() else 1)
    if dist.is_initialized():
        dist.all_gather_object(parts, own)
    return parts


def whole_batch(layer, x):
    """Batch normalisation or dropout of this process's rows, with the statistics or the mask of the whole batch."""
    if not layer.training:
        return type(layer).forward(layer, x)
    if isinstance(layer, nn.modules.dropout._DropoutNd):   # Dropout2d drops whole maps: one number each will do
        shape = x.shape[1:] if isinstance(layer, nn.Dropout) else (x.shape[1], 1, 1)
        return x * own_part(type(layer).forward(layer, x.new_ones(dist.get_world_size() * len(x), *shape)))
    axes, shape, count = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2), dist.get_world_size() * x.numel() // x.shape[1]
    mean, square = Total.apply(torch.stack([x.float().sum(axes), x.float().square().sum(axes)])) / count
    variance = (square - mean.square()).clamp_min(0)
    layer.num_batches_tracked += 1
    layer.running_mean.lerp_(mean.detach(), layer.momentum)
    layer.running_var.lerp_(variance.detach() * count / (count - 1), layer.momentum)
    scale = layer.weight * (variance + layer.eps).rsqrt()
    return x * scale.view(shape) + (layer.bias - mean * scale).view(shape)


def share_net(net, batch_size):
    """The net -> the net as all processes train it together. nn.SyncBatchNorm, for GPUs alone, would leave the dropout."""
    if not dist.is_initialized():
        return net
    if batch_size % dist.get_world_size():
        raise SystemExit(f"batches of {batch_size} rows: expected a multiple of "
                         f"the {dist.get_world_size()} processes (BATCH_SIZE)")
    for layer in net.modules():
        if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            layer.forward = partial(whole_batch, layer)
    return nn.parallel.DistributedDataParallel(net, forward_sync_buffers=False)


# ---- A state to go on from ----

def save_pth(path, content):
    """Writes a dict of tensors and plain values."""
    buffer = io.BytesIO()   # so that a full disk is an ordinary OSError
    torch.save(content, buffer)
    Path(path).write_bytes(buffer.getvalue())


def load_pth(path):
    """.pth file -> its content on the CPU; nothing in it is executed. ValueError when it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()   # torch.load does not look at the checksums
        if damaged:
            raise ValueError(f"{damaged} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:   # zipfile and torch raise errors of many kinds on damaged files
        raise ValueError(" ".join(str(error).split())[:100]) from error


def on_device(device):
    """Device -> the module with its random state."""
    return {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)


def first_difference(old, new, name=""):
    """Two dicts of plain values -> "name = old, now new" of the first value that differs, or None."""
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f"{name}{key} "):
                return found
        elif a != b:
            return f"{name}{key} = {a!r}, now {b!r}"
    return None


def load_state(path, configuration, net, optimiser, schedule, device):
    """State file -> history and best epoch of the run so far, after setting net, optimiser, schedule and random numbers to it.

    Stops the run with one sentence when the state is damaged or of other constants or data.
    """
    try:
        state = all_parts(load_pth(path) if is_first() else None)[0]
        difference = first_difference(state["configuration"], configuration)
        if not difference:
            for part, value in ((net, state["net"]), (optimiser, state["optimiser"]), (schedule, state["schedule"])):
                part.load_state_dict(value)
            torch.set_rng_state(state["random"])
            on_device(device).set_rng_state(state["random_on_device"])
            return state["history"], state["best"]
    except Exception as error:   # a damaged state can be anything
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"{path} is damaged ({reason}). Start anew with RESUME = False") from error
    raise SystemExit(f"{path} is of another run: {difference}. Set it back, or start anew with RESUME = False")


# ---- Training ----

def pick_device(name):
    """"auto" -> the fastest device that is there; a name -> that device, if it is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind in there if there[kind]]
    check_choice("DEVICE", name, ["auto", *here])
    return torch.device(here[0] if name == "auto" else name)


def class_weights(targets, rows, classes):
    """(n,) classes, training rows -> the classes' weights in the loss, and their shares of it, (classes,) float32 each."""
    counts = torch.bincount(targets[rows].cpu(), minlength=classes).double()
    weight = torch.where(counts > 0, counts.clamp_min(0.001 * counts.sum()) ** -CLASS_WEIGHT_POWER, 0.0)
    share = weight * counts / (weight * counts).sum()
    return (weight * counts.sum() / (weight * counts).sum()).float(), share.float()


def record_prior(targets, rows, names, adapted):
    """(n,) classes, training rows, class names, the adapted ones -> all classes' shares in the loss, 0 for the others."""
    share = class_weights(targets, rows, len(names))[1].tolist()
    return [value if name in adapted else 0.0 for name, value in zip(names, share)]


def prior_of(data, targets, sides, names):
    """Dataset, targets, rows by side, class names -> prior and records of the validation rows, for `adapt_prior`, or None."""
    if data.kind == "ptbxl":
        return None, None
    adapted = ADAPTED_CLASSES[str(data.header["class_map"])]
    return record_prior(targets, sides["train"], names, adapted), data.metadata["record"][sides["validation"]]


def loss_of(logits, targets, statements, weight, share=1.0):
    """(n, outputs) logits, targets of the classes, (n, k) statements, class weights (multiclass) -> mean loss.

    share scales the weighted mean of the classes' loss.
    """
    k, bce = statements.shape[1], F.binary_cross_entropy_with_logits
    logits, others = logits.float().split([logits.shape[1] - k, k], dim=1)
    loss = bce(logits, targets) if targets.dim() == 2 else share * F.cross_entropy(logits, targets, weight)
    return loss + STATEMENT_WEIGHT * bce(others, statements) if k else loss


def validation_score(probability, targets, task, names):
    """Probabilities and targets of the validation rows -> the score that KEEP = "best" goes by (higher is better).

    Multilabel: macro AUC. Multiclass: mean F1 of N, S and V, or in other class maps of the classes with validation rows.
    """
    if task == "multilabel":
        present = [k for k in range(targets.shape[1]) if 0 < targets[:, k].sum() < len(targets)]
        if not present:
            raise SystemExit("the validation rows have no superclass that some have and others have not: too few records")
        return float(np.mean([roc_auc_score(targets[:, k], probability[:, k]) for k in present]))
    classes = [i for i, name in enumerate(names) if name in ("N", "S", "V")] or np.unique(targets).tolist()
    return float(f1_score(targets, probability.argmax(axis=1), labels=classes, average="macro", zero_division=0))


def add_noise(values, spread, size, rows):
    """Values, spread, size in units of it, rows of the whole batch -> values with Gaussian noise, drawn for the whole batch."""
    return values + size * spread * own_part(torch.randn(rows, *values.shape[1:], device=values.device)) if size else values


def train_epoch(net, model, tensors, rows, crop, weight, optimiser, schedule, batch_size):
    """One pass over the training rows in random order and with random crops -> mean loss.

    model is the net, or the net shared by several processes (see `share_net`). The signals may stay on the CPU.
    """
    net.train()
    signals, features, targets, statements = tensors
    total = torch.zeros((), device=targets.device)
    crops = signals.unfold(2, crop, 1)                           # (n, channels, starts, crop), a view: nothing is copied
    batches = len(rows) // batch_size
    order = torch.from_numpy(rows)[torch.randperm(len(rows))][:batches * batch_size]
    starts = torch.randint(crops.shape[2], (len(order),))
    for batch, start in zip(order.to(signals.device).split(batch_size), starts.to(signals.device).split(batch_size)):
        own, share = own_part(batch.to(targets.device)), 1.0
        if weight is not None:   # of this process's rows in the weighted mean over the batch
            share = weight[targets[own]].mean() / weight[targets[batch.to(targets.device)]].mean()
        x = crops[own_part(batch), :, own_part(start)].to(targets.device)
        x = add_noise(x, net.normalise_signals.spread, SIGNAL_NOISE[DATASET], len(batch))
        f = add_noise(features[own], net.normalise_features.spread, RHYTHM_NOISE, len(batch))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            logits = model(x, f)
        loss = loss_of(logits, targets[own], statements[own], weight, share)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.detach()                                   # no .item(): a GPU would wait for it
    return torch.cat(all_parts(total.cpu()[None])).mean().item() / batches


def fit(net, tensors, sides, task, names, crop, records, prior, configuration):
    """Trains the net in place and leaves the weights of the epoch that KEEP names in it.

    records (of the validation rows) and prior are for `probabilities`, the configuration (see `made_with`) for `load_state`.
    Returns the history of epochs, the number of the kept one, and its probabilities of the validation rows.
    """
    signals, features, targets, statements = tensors
    device, state_path = targets.device, f"{DATASET}_{MODEL}_state.pth"
    batch_size, epochs, peak = min(BATCH_SIZE[DATASET], len(sides["train"])), EPOCHS[DATASET], LEARNING_RATE[DATASET][MODEL]
    if difference := first_difference(all_parts(configuration)[0], configuration):
        raise SystemExit(f"the processes are not of one run: the first has {difference} in another")
    model = share_net(net, batch_size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=epochs * (len(sides["train"]) // batch_size))
    weight = class_weights(targets, sides["train"], len(names))[0].to(device) if task == "multiclass" else None
    validation = torch.from_numpy(sides["validation"])
    history, best = [], {"score": -1.0, "epoch": 0}
    if RESUME and all_parts(Path(state_path).exists())[0]:
        history, best = load_state(state_path, configuration, net, optimiser, schedule, device)
        print(f"goes on after epoch {len(history)}")
    print(f"{'epoch':>5}{'train loss':>12}{'val. loss':>12}{'val. score':>12}{'seconds':>9}")
    for epoch in range(len(history) + 1, epochs + 1):
        if history and epoch - 1 - best["epoch"] >= PATIENCE:
            break
        began = time.perf_counter()
        train_loss = train_epoch(net, model, tensors, sides["train"], crop, weight, optimiser, schedule, batch_size)
        logits = torch.cat(all_parts(predict(net, signals, features, own_part(validation), crop))).to(device)
        loss = loss_of(logits, targets[validation.to(device)], statements[validation.to(device)], weight).item()
        if not np.isfinite([train_loss, loss]).all():
            raise SystemExit(f"the loss is {train_loss}, in validation {loss}, after epoch {epoch}: lower LEARNING_RATE")
        probability = probabilities(logits.cpu(), task, len(names), records, prior)
        score = all_parts(validation_score(probability, targets.cpu()[validation].numpy(), task, names))[0]
        history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": loss, "validation_score": score})
        if score > best["score"] or KEEP[DATASET] == "last":
            best = {"score": score, "epoch": epoch, "probability": torch.from_numpy(probability),
                    "weights": {k: v.detach().clone() for k, v in net.state_dict().items()}}
        print(f"{epoch:>5}{train_loss:>12.4f}{loss:>12.4f}{score:>12.4f}{time.perf_counter() - began:>9.1f}"
              + ("  best" if best["epoch"] == epoch and KEEP[DATASET] == "best" else ""), flush=True)
        if is_first():
            with new_files(state_path) as (path,):
                save_pth(path, {"configuration": configuration, "net": net.state_dict(), "optimiser": optimiser.state_dict(),
                                "schedule": schedule.state_dict(), "history": history, "best": best,
                                "random": torch.get_rng_state(), "random_on_device": on_device(device).get_rng_state()})
    net.load_state_dict(best["weights"])
    return history, best["epoch"], best["probability"].numpy()


def odds_of(probability):
    """Probabilities -> finite log odds."""
    return logit(np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9))


def platt_scaling(score, truth):
    """(n,) scores, (n,) true or not -> slope and intercept: expit(slope * score + intercept) is a probability (Platt 1999)."""
    model = LogisticRegression(C=1e6).fit(score[:, None], truth)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def best_thresholds(probabilities, targets):
    """(n, classes) probabilities and 0/1 targets of the validation rows -> per class, the threshold with the best expected F1.

    An F1 that is counted on some hundred positives jumps about, and its best place with it. The F1 to be expected where the
    probabilities hold, after Platt's scaling, is smooth (Lipton et al. 2014). 0.5 for a class that all rows have, or none.
    """
    thresholds = []
    for p, t in zip(probabilities.T, targets.T):
        if t.min() == t.max():
            thresholds.append(0.5)
            continue
        called = np.sort(p)[::-1]   # a threshold calls the first one, two, ... of these rows
        slope, intercept = platt_scaling(odds_of(p), t)
        right = expit(slope * odds_of(called) + intercept)   # how likely each of them is right
        f1 = 2 * np.cumsum(right) / (np.arange(1, len(p) + 1) + right.sum())
        thresholds.append(float(called[np.argmax(f1)]))
    return thresholds


# ---- Checkpoint ----

def title_of(name, task, data):
    """Name of the run, its task, dataset -> the title of its picture."""
    return (f"{name}, {task}, {SPLIT} split" + (" (leaky)" if SPLIT == "random" else "")
            + (", simulated data" if data.header["simulated"] else ""))


def plot_history(history, best_epoch, title, path):
    """List of epochs -> PNG of loss and validation score by epoch."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], "k-", label="training")
    left.plot(epochs, [row["validation_loss"] for row in history], "k--", label="validation")
    right.plot(epochs, [row["validation_score"] for row in history], "k-o", markersize=3)
    right.axvline(best_epoch, color="0.6", linestyle=":", label=f"kept: epoch {best_epoch}")
    for axis, label in ((left, "loss"), (right, "validation score")):
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format="png")


# ---- Main ----

def input_settings(data):
    """Constants -> what make_inputs needs to know, as it travels in the checkpoint."""
    beats = data.kind == "mitbih"
    return {"leads": [str(lead) for lead in data.header["leads"]] if LEADS == "all" else list(LEADS),
            "record_relative": RECORD_RELATIVE and beats, "rhythm": RHYTHM and beats,
            "with_distance": RECORD_RELATIVE and beats and TEMPLATE_DISTANCE[MODEL],
            "window": (round((CROP_SECONDS["mitbih"] + 2 * SHIFT_SECONDS) * int(data.header["sampling_rate"]))
                       if beats else None),
            "context": CONTEXT_SECONDS if beats else None,
            "align": beats and CONTEXT_SECONDS is not None, "low_pass_hz": LOW_PASS}


def check_settings():
    """Stops the run with one sentence when a constant has no value for this run, or one that cannot work."""
    for name, keys, right, expected in (
            ("DATASET", [], lambda x: x in ARCHITECTURE, f"one of {', '.join(ARCHITECTURE)}"),
            ("MODEL", [], lambda x: x in MODELS, f"one of {', '.join(MODELS)}"),
            ("TASK", [], lambda x: x in ("multilabel", "multiclass"), "one of multilabel, multiclass"),
            ("SPLIT", [], lambda x: x in ("inter_patient", "all", "random"), "one of inter_patient, all, random"),
            ("CONTEXT_SECONDS", [], lambda x: x is None or x >= 2, "None or a number of seconds from 2"),
            ("SHIFT_SECONDS", [], lambda x: x >= 0, "0 or a number of seconds"),
            ("TEMPLATE_DISTANCE", [MODEL], lambda x: isinstance(x, bool), "True or False"),
            ("LOW_PASS", [], lambda x: x is None or x > 0, "None or a frequency in Hz"),
            ("KEEP", [DATASET], lambda x: x in ("last", "best"), "one of last, best"),
            ("EPOCHS", [DATASET], lambda x: isinstance(x, int) and x >= 1, "a whole number from 1"),
            ("BATCH_SIZE", [DATASET], lambda x: isinstance(x, int) and x >= 2, "a whole number from 2"),
            ("LEARNING_RATE", [DATASET, MODEL], lambda x: x > 0, "a number above 0"),
            ("TRAIN_FRACTION", [], lambda x: 0 < x <= 1, "a number above 0, up to 1"),
            ("STATEMENT_WEIGHT", [], lambda x: x >= 0, "0 or a number above it"),
            ("LEADS", [], lambda x: x == "all" or isinstance(x, list) and 0 < len(x) == len(set(x)),
             '"all" or a list of names')):
        value = globals()[name]
        try:
            for key in keys:
                value = value[key]
            fine = right(value)
        except (KeyError, TypeError, IndexError):
            fine = False
        if not fine:
            raise SystemExit(f"{name} = {globals()[name]!r}: expected {expected}" + (f" for {' '.join(keys)}" if keys else ""))


def check_sizes(data, sides, crop):
    """Stops the run where there is nothing to train with, or nowhere to write the result."""
    for side in ("train", "validation"):
        if len(sides[side]) < 2:
            raise SystemExit(f"{len(sides[side])} rows to use for {side}: {data.name}_signals.npy has too few of that side "
                             f"(TRAIN_FRACTION = {TRAIN_FRACTION})")
    crop_starts(data.signals.shape[2], crop)
    if data.kind == "mitbih" and crop + 2 * SHIFT_SECONDS * int(data.header["sampling_rate"]) > data.signals.shape[2]:
        raise SystemExit("CROP_SECONDS and twice SHIFT_SECONDS are longer than "
                         f"the segments of {data.signals.shape[2]} samples")
    if not os.access(".", os.W_OK):
        raise SystemExit(f"the folder {os.getcwd()} cannot be written to: run the script in another one")


def make_net(data, tensors, rows, crop):
    """A new net with the statistics of the training rows in its normalisation -> (net, its arguments)."""
    signals, features, _, statements = tensors
    arguments = {"leads": signals.shape[1], "samples": crop, "features": features.shape[1],
                 "outputs": len(data.header["class_names"]) + statements.shape[1], **ARCHITECTURE[data.name][MODEL]}
    net = MODELS[MODEL](**arguments)
    for layer, values in ((net.normalise_signals, signals), (net.normalise_features, features)):
        layer.mean.view(-1)[:], layer.spread.view(-1)[:] = channel_statistics(values, rows)
    return net, arguments


def to_device(tensors, device):
    """Signals, other tensors -> the same on the device, but signals that would fill over half of a GPU stay in memory."""
    fits = device.type != "cuda" or tensors[0].nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]
    return [tensors[0].to(device) if fits else tensors[0], *(tensor.to(device) for tensor in tensors[1:])]


def output_rows(tensors, rows, classes):
    """Tensors, training rows, number of classes -> how many of them have each class and each statement, a list."""
    targets, statements = tensors[2][rows].cpu(), tensors[3][rows].cpu()
    counts = targets.sum(dim=0) if targets.dim() == 2 else torch.bincount(targets, minlength=classes)
    return [int(count) for count in (*counts, *statements.sum(dim=0))]


def made_with(data):
    """Dataset -> what a run is made with: the constants, and what the data were made from and with."""
    return {"constants": constants_of(globals(), HOW_IT_RUNS), "made_from": json.loads(str(data.header["made_from"]))}


def describe(data, net, train_rows, **results):
    """Dataset, trained net and the run's results -> the checkpoint: everything that a later stage must know."""
    text = {key: [str(name) for name in data.header[key]] for key in ("class_names", "leads", "statement_names")
            if key in data.header.dtype.names}
    statements = text.get("statement_names", []) if STATEMENT_WEIGHT else []
    return {"dataset": data.name, "model": MODEL, "class_map": str(data.header["class_map"]),
            "class_names": text["class_names"], "outputs": text["class_names"] + statements, "dataset_leads": text["leads"],
            "sampling_rate": int(data.header["sampling_rate"]), "simulated": bool(data.header["simulated"]),
            "weights": {name: tensor.cpu() for name, tensor in net.state_dict().items()},
            "normalisation": {key: value.flatten().tolist() for key, value in net.normalise_signals.state_dict().items()},
            "split": SPLIT, "leaks": SPLIT == "random", "split_rows": len(data.labels), "seed": SEED,
            "train_fraction": TRAIN_FRACTION, "train_rows": train_rows, "segment": data.signals.shape[2],
            **made_with(data), "versions": versions(torch, np), **results}


def main():
    check_settings()
    device = start_processes(pick_device(DEVICE))
    torch.manual_seed(SEED)

    data = load_dataset(DATASET)
    task = TASK if DATASET == "ptbxl" else "multiclass"
    if DATASET == "mitbih" and SPLIT != "random":
        check_records(data)
    parts = split_parts(data, SPLIT)
    sides = task_rows(data, task, split_rows(data, SPLIT, parts, SEED))
    sides["train"] = some_patients(data, sides["train"], TRAIN_FRACTION)
    crop = round(CROP_SECONDS[DATASET] * int(data.header["sampling_rate"]))
    check_sizes(data, sides, crop)
    print(f"{DATASET} {MODEL}, {task}, on {device}: " + ", ".join(f"{len(rows):,} {side}" for side, rows in sides.items()))
    print(check_patients(data, sides, SPLIT) + ("\nSIMULATED data" if data.header["simulated"] else ""))

    settings = input_settings(data)
    tensors = [*make_inputs(data, **settings), targets_of(data, task), statements_of(data)]
    net, arguments = make_net(data, tensors, sides["train"], crop)
    net, tensors = net.to(device), to_device(tensors, device)
    names = [str(name) for name in data.header["class_names"]]
    prior, records = prior_of(data, tensors[2], sides, names)
    configuration = {**made_with(data), "device": device.type}
    history, epoch, probability = fit(net, tensors, sides, task, names, crop, records, prior, configuration)
    if not leave_processes():
        return

    wanted = tensors[2].cpu().numpy()[sides["validation"]]
    thresholds = best_thresholds(probability, wanted) if task == "multilabel" else None   # None: the most probable class
    checkpoint = describe(data, net, len(sides["train"]), task=task, model_arguments=arguments, inputs=settings, crop=crop,
                          split_parts=parts, prior=prior, thresholds=thresholds, epoch=epoch, history=history,
                          output_rows=output_rows(tensors, sides["train"], len(names)))
    name = f"{DATASET}_{MODEL}"
    with new_files(f"{name}_model.pth", f"{name}_training.png") as (model_path, plot_path):
        save_pth(model_path, checkpoint)
        plot_history(history, epoch, title_of(name, task, data), plot_path)
    Path(f"{name}_state.pth").unlink(missing_ok=True)
    print(f"Kept epoch {epoch}. Wrote {name}_model.pth, {name}_training.png")


if __name__ == "__main__":
    main()
