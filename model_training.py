"""Trains a CNN, LSTM or MLP on MIT-BIH beats or PTB-XL records.

Reads   {dataset}_*.npy   all that the dataset's preprocess script writes
Writes  {dataset}_{model}_model.pth          weights, and everything later stages need
        {dataset}_{model}_strips_model.pth   the same of the second net, for strips
Takes   3 minutes for MIT-BIH, 7 for PTB-XL at 100 Hz (cnn, both nets, two cores).
"""

import io
import time
import zipfile
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from preprocess_mitbih import (
    as_names,
    check_choice,
    check_number,
    cut_beats,
    lead_columns,
    lead_note,
    load_dataset,
    new_files,
    qrs_energy,
    recentre,
    resample,
)

# data and model
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
LEADS = None              # None: those of RECIPES, or names in the data: ["MLII"]

# split
SPLIT = "inter_patient"   # "inter_patient": DS1 to DS2, PTB-XL's folds; "all": test side and
                          # paced records train too
VALIDATION_RECORDS = ["114", "124", "203", "220", "223"]   # of DS1, see hold_out
VALIDATION_FOLD = 9       # PTB-XL: for the thresholds
TEST_FOLD = 10            # PTB-XL: only for the report

# run
SEED = 0                  # one seed, one result, on the CPU
SECOND_NET = True         # train the net for strips too
DEVICE = "auto"           # "auto": a GPU if there is one, or "cpu"

# Settings of each net. A net for strips scores 10 s strips of the other database. stem: kernel, an
# odd number, and stride. windows: length and step, as parts of the crop.
RECIPES = {
    "mitbih": {
        "leads": "II",               # what the net sees
        "crop_seconds": 0.5,         # the net sees the middle of a beat
        "context_seconds": 1800,     # of one median beat and one RR statistic
        "upright": True,             # turn leads whose median beat points down
        "signal_noise": 2.5,         # added in training, in standard deviations of training rows
        "rhythm_noise": 0.3,         # the same for the RR features
        "height_noise": 0.0,         # standard deviation of the log of a random factor
        "lead_dropout": 0.0,         # share of the training rows that keep one lead only
        "epochs": 6,
        "batch_size": 256,           # rows per step and net
        "learning_rate": {"cnn": 5e-3, "lstm": 3e-3, "mlp": 2e-3},   # peak; a number for all
        "class_weight_power": 0.25,  # a class of count c weighs 1 / c^power in the loss
        "statement_weight": 0.0,     # weight of a second loss, on the SCP statements
        "sizes": {
            "cnn": {"widths": [32, 48, 64], "stem": (11, 3)},
            "lstm": {"width": 48, "stem": (9, 3)},
            "mlp": {"widths": [256, 128]},
        },
        "head": {"flatten_width": 64, "hidden_width": 0, "dropout": 0.25},   # see Net
        "ensemble_size": 5,          # nets side by side, see Ensemble
        "hold_out": False,           # True: VALIDATION_RECORDS do not train
    },
    "mitbih_strips": {
        "leads": "II V1",            # what the net sees
        "crop_seconds": 0.5,         # the net sees the middle of a beat
        "context_seconds": 10,       # of one median beat and one RR statistic
        "upright": False,            # in V1, the direction tells the bundle branch blocks apart
        "signal_noise": 2.5,         # added in training, in standard deviations of training rows
        "rhythm_noise": 0.3,         # the same for the RR features
        "height_noise": 0.0,         # standard deviation of the log of a random factor
        "lead_dropout": 0.0,         # share of the training rows that keep one lead only
        "epochs": 3,
        "batch_size": 256,           # rows per step and net
        "learning_rate": {"cnn": 5e-3, "lstm": 3e-3, "mlp": 2e-3},   # peak of one cycle
        "class_weight_power": 0.25,  # a class of count c weighs 1 / c^power in the loss
        "statement_weight": 100.0,   # weight of a second loss, on the SCP statements
        "sizes": {
            "cnn": {"widths": [32, 48, 64], "stem": (11, 3)},
            "lstm": {"width": 48, "stem": (9, 3)},
            "mlp": {"widths": [256, 128]},
        },
        "head": {"flatten_width": 0, "hidden_width": 128, "dropout": 0.5},   # see Net
        "ensemble_size": 5,          # nets side by side, see Ensemble
        "hold_out": True,            # True: VALIDATION_RECORDS do not train
    },
    "ptbxl": {
        "leads": "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6",
        "crop_seconds": 2.5,         # the net sees random crops of a record
        "signal_noise": 0.0,         # added in training, in standard deviations of training rows
        "rhythm_noise": 0.0,         # the same for the RR features
        "height_noise": 0.0,         # standard deviation of the log of a random factor
        "lead_dropout": 0.0,         # share of the training rows that keep one lead only
        "epochs": 24,
        "batch_size": 128,           # rows per step and net
        "learning_rate": {"cnn": 1e-2, "lstm": 5e-3, "mlp": 1e-2},   # peak of one cycle
        "sizes": {
            "cnn": {"widths": [48, 96, 96, 192], "stem": (9, 2)},
            "lstm": {"width": 64, "stem": (9, 2)},
            "mlp": {"widths": [512, 512], "windows": (0.4, 0.05)},
        },
        "head": {"flatten_width": 0, "hidden_width": 0, "dropout": 0.25},   # see Net
        "ensemble_size": 1,          # nets side by side, see Ensemble
        "hold_out": True,            # must be True: the fold sets the thresholds
    },
    "ptbxl_strips": {
        "leads": "II V1",            # what the net sees
        "crop_seconds": 5.0,         # the net sees random crops of a record
        "signal_noise": 0.0,         # added in training, in standard deviations of training rows
        "rhythm_noise": 0.0,         # the same for the RR features
        "height_noise": 0.35,        # standard deviation of the log of a random factor
        "lead_dropout": 0.25,        # share of the training rows that keep one lead only
        "epochs": 4,
        "batch_size": 64,            # rows per step and net
        "learning_rate": {"cnn": 1e-2, "lstm": 5e-3, "mlp": 1e-2},   # peak of one cycle
        "sizes": {
            "cnn": {"widths": [24, 48, 48, 96], "stem": (9, 2)},
            "lstm": {"width": 32, "stem": (9, 2)},
            "mlp": {"widths": [256, 256], "windows": (0.4, 0.05)},
        },
        "head": {"flatten_width": 0, "hidden_width": 128, "dropout": 0.0},   # see Net
        "ensemble_size": 3,          # nets side by side, see Ensemble
        "hold_out": True,            # must be True: the fold sets the thresholds
    },
}

# Least and largest value of settings. If the least value is an int, they are whole numbers.
LIMITS = {
    "epochs ensemble_size": (1, 10_000),
    "batch_size": (2, 1_000_000),
    "crop_seconds context_seconds": (0.05, 1e5),
    "signal_noise rhythm_noise height_noise class_weight_power statement_weight": (0.0, 1e6),
    "lead_dropout": (0.0, 1.0),
    "learning_rate": (1e-9, 1.0),
}


# ---- Split: patients on one side only ----

def choose_sides(data, split):
    """Dataset, SPLIT -> dict of side -> its records (MIT-BIH) or folds (PTB-XL)."""
    if data.kind == "records":
        side_of = dict.fromkeys(range(1, 11), "train")
        side_of |= {VALIDATION_FOLD: "validation", TEST_FOLD: "test", 0: "test"}   # 0: not PTB-XL
    else:
        sides = {"DS1": "train", "DS2": "test", "test": "test", "paced": "paced"}
        side_of = {record["name"]: sides.get(record["subset"]) for record in data.header.records}
    if data.name == "mitbih" and np.size(VALIDATION_RECORDS):
        names = {*as_names("VALIDATION_RECORDS", VALIDATION_RECORDS)} & {*side_of}
        others = [name for name in names if side_of[name] != "train"]
        if others and split != "all":   # without hold_out, they would train
            raise SystemExit(f"VALIDATION_RECORDS: {', '.join(sorted(others))} are not of DS1")
        side_of |= dict.fromkeys(names, "validation")
    if split == "all":
        side_of = {name: "validation" if side == "validation" else "train"
                   for name, side in side_of.items() if side}
    return {side: [name for name in side_of if side_of[name] == side]
            for side in ("train", "validation", "test")}


def split_rows(data, recipe):
    """Dataset, settings -> dict of side -> (rows,) beats with a class, records with a statement.

    recipe.sides has the records or folds of each side.
    """
    has_label = data.labels >= 0
    record_or_fold = data.record
    if data.kind == "records":
        has_label = (data.metadata["statements"] >= 0).any(axis=1)
        record_or_fold = data.metadata["fold"]
    rows = {side: np.flatnonzero(np.isin(record_or_fold, of_side))
            for side, of_side in recipe.sides.items()}
    return {side: of_side[has_label[of_side]] for side, of_side in rows.items()}


def check_patients(data, rows):
    """Stops the run if a patient is on two sides. Returns a sentence."""
    train, validation, test = (set(data.patient[of_side].tolist()) for of_side in rows.values())
    shared = (train & validation) | ((train | validation) & test)
    known = shared & test & {"201"} if data.name == "mitbih" else set()
    if shared - known:
        raise SystemExit(f"patients {', '.join(sorted(shared - known)[:10])} are on two sides of "
                         "the split. Nothing was trained")
    note = "; 201 (DS1) and 202 (DS2) are one patient, as in the standard split" if known else ""
    return f"no patient is on two sides{note}"


# ---- Inputs ----

class Inputs(NamedTuple):
    """What a net sees."""
    signals: torch.Tensor    # (n, channels, samples) float32
    features: torch.Tensor   # (n, k) float32, of the RR intervals


def pick_leads(signals, available, wanted):
    """(n, leads, samples), names of its leads, of those wanted -> (n, wanted, samples).

    A missing lead is 0, but a single lead of another name stands in for the first one.
    """
    if available == wanted:
        return signals
    columns = lead_columns(available, wanted)
    if not columns and len(available) > 1:
        raise SystemExit(f"the model needs one of the leads {', '.join(wanted)}, but the other "
                         f"database has {', '.join(available)}: choose other LEADS")
    columns = columns or {0: 0}
    picked = np.zeros((len(signals), len(wanted), signals.shape[2]), np.float32)
    picked[:, list(columns)] = signals[:, list(columns.values())]
    return picked


def make_inputs(data, rows, recipe):
    """Dataset or strips, (n,) sorted rows -> Inputs, row of each: a strip has many beats."""
    if recipe.kind == "records":
        signals = data.signals if len(rows) == len(data.signals) else data.signals[rows]
        signals = resample(pick_leads(signals, data.leads, recipe.leads), data.rate, recipe.rate)
        peaks = [data.peaks[row].astype(int) * recipe.rate // data.rate for row in rows]
        features = [record_features(of_record, recipe.rate) for of_record in peaks]
        return Inputs(torch.from_numpy(signals), torch.from_numpy(np.stack(features))), rows
    contexts = record_contexts if data.kind == "beats" else strip_contexts
    is_wanted = np.isin(np.arange(len(data.signals)), rows)
    signals, features, numbers = [], [], []
    for number, beats, peaks in contexts(data, rows, recipe):
        chosen = is_wanted[number]
        signals.append(relative_beats(beats, recipe)[chosen])
        features.append(rhythm_features(rr_intervals(peaks, recipe.rate))[chosen])
        numbers.append(number[chosen])
    if not numbers:
        raise SystemExit(f"no beat was found in {len(rows)} strips")
    inputs = Inputs(*(torch.from_numpy(np.concatenate(values)) for values in (signals, features)))
    return inputs, np.concatenate(numbers)


def record_contexts(data, rows, recipe):
    """Dataset of beats, some rows -> yields all beats of their contexts: equal parts of a record.

    Each time: (k,) rows, (k, leads, segment) mV, (k,) R peaks.
    """
    record = data.metadata["record"]
    sample = pd.Series(data.metadata["sample"])
    duration = sample.groupby(record).transform("max") + 1
    parts = (duration / (recipe.context_seconds * recipe.rate)).round().clip(lower=1)
    part = sample * parts // duration
    for context in sample.groupby([record, part]).indices.values():
        if np.isin(context, rows).any():
            signals = pick_leads(data.signals[context], data.leads, recipe.leads)
            yield context, signals, sample[context].to_numpy()


def strip_contexts(data, rows, recipe):
    """Strips, some rows -> yields rows, beats and R peaks of each: a strip is their context."""
    half = recipe.segment // 2
    for row in rows:
        signal = pick_leads(data.signals[row:row + 1], data.leads, recipe.leads)[0]
        signal = resample(signal, data.rate, recipe.rate)
        lead = signal[signal.any(axis=1)][:1]   # as in preprocess_mitbih.py
        peaks = data.peaks[row].astype(int) * recipe.rate // data.rate
        peaks = recentre(lead, qrs_energy(lead, recipe.rate), peaks, recipe.rate)
        padded = np.pad(signal, ((0, 0), (half, half)), mode="edge")   # keeps the outer beats
        if len(peaks):
            beats, _ = cut_beats(padded, peaks + half, recipe.segment)
            yield np.full(len(peaks), row), beats, peaks


def record_features(peaks, rate):
    """(k,) R peaks of a record -> mean, minimum and maximum of its rhythm_features."""
    of_beats = rhythm_features(rr_intervals(peaks if len(peaks) else np.zeros(1), rate))
    return np.concatenate([of_beats.mean(axis=0), of_beats.min(axis=0), of_beats.max(axis=0)])


def relative_beats(signals, recipe):
    """(n, leads, samples) mV, all beats of a context -> (n, 2 * leads, crop) float32.

    The middle of the beats, scaled by the height of the median beat, then their differences from
    it. The median beat needs no labels, only the positions of all beats, as in Holter analysis.
    With `upright`, a lead whose median beat points down is turned.
    """
    beats = signals - np.median(signals, axis=2, keepdims=True)   # no baseline
    median = np.median(beats, axis=0)
    height = np.maximum(np.ptp(median, axis=1), 0.1)   # mV; keeps a flat lead flat
    if recipe.upright:
        height = np.copysign(height, median.max(axis=1) + median.min(axis=1))
    height = height[:, None]
    relative = np.concatenate([beats, beats - median], axis=1) / np.tile(height, (2, 1))
    start = (signals.shape[2] - recipe.crop) // 2
    return relative[:, :, start:start + recipe.crop].astype(np.float32)


def rr_intervals(peaks, rate):
    """(k,) R peaks -> (k, 20) s: the ten RR intervals before and after each beat.

    Column 9 ends at the beat, column 10 starts there. NaN beyond the ends and above 3 s, over a gap
    or a pause. The least is 0.1 s.
    """
    edge = np.full(10, np.nan)
    intervals = (np.diff(peaks) / rate).clip(0.1)
    intervals = np.concatenate([edge, np.where(intervals > 3, np.nan, intervals), edge])
    return np.lib.stride_tricks.sliding_window_view(intervals, 20)[:len(peaks)]


def rhythm_features(rr):
    """(n, 20) s, rr_intervals of a context -> (n, 25) float32 features, without labels.

    Log ratios of the 5 RR intervals before and the 5 after each beat to the context's median; of
    the intervals around the beat to each other and to the mean of the nine before them; of that
    mean to the median; the two intervals in s; the spread of the nine; the context's quantiles over
    its median, and the beat's interval over the quantiles. The last two tell an early beat of a
    regular rhythm from atrial fibrillation. A missing interval counts as the median.
    """
    median = np.nanmedian(rr) if np.isfinite(rr).any() else 1.0
    rr = np.nan_to_num(rr, nan=median)
    before = rr[:, :9]
    previous = rr[:, 9]
    following = rr[:, 10]
    mean = before.mean(axis=1)
    quantiles = np.quantile(previous, [0.10, 0.25, 0.75, 0.90])
    columns = [
        np.log(rr[:, 5:15] / median),
        np.log(previous / mean),
        np.log(following / mean),
        np.log(following / previous),
        np.log(mean / median),
        previous,
        following,
        np.log(before).std(axis=1),
        np.tile(np.log(quantiles / median), (len(rr), 1)),
        np.log(previous[:, None] / quantiles)]
    return np.column_stack(columns).astype(np.float32)


# ---- Models ----

class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation of the training rows."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def fit(self, values):
        """(n, channels, ...) tensor -> sets mean and standard deviation."""
        values = values.transpose(0, 1).flatten(1)
        self.mean.view(-1)[:] = values.mean(dim=1)
        spread = values.std(dim=1, correction=0)
        self.spread.view(-1)[:] = torch.where(spread < 1e-6, 1, spread)   # a lead that is missing

    def forward(self, x):
        return (x - self.mean) / self.spread


def conv(inputs, outputs, kernel, stride=1):
    """A 1-D convolution as a 2-D one over a single row: 1.3 times as fast on CPUs."""
    return nn.Conv2d(inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=False)


class ResidualBlock(nn.Module):
    """(n, inputs, 1, t) -> (n, outputs, 1, t / 2): two convolutions and a pooled shortcut."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.layers = nn.Sequential(
            conv(inputs, outputs, kernel, 2), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Dropout2d(0.1),
            conv(outputs, outputs, kernel), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d((1, 2), ceil_mode=True), conv(inputs, outputs, 1),
            nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.layers(x) + self.shortcut(x))


class Convolutions(nn.Sequential):
    """(n, leads, samples) -> (n, width, steps): a strided stem, then residual blocks."""

    def __init__(self, leads, widths, stem):
        super().__init__(
            conv(leads, widths[0], *stem), nn.BatchNorm2d(widths[0]), nn.ReLU(),
            *map(ResidualBlock, widths, widths[1:], [5, 5, 5] + [3] * len(widths)))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = x.unsqueeze(2).to(memory_format=torch.channels_last)   # (n, leads, 1, samples)
        return super().forward(x).squeeze(2)


class Net(nn.Module):
    """What the models share: (n, channels, samples), (n, features) -> (n, outputs) logits.

    A model's `maps` gives feature maps (n, width, steps). They are pooled by mean and maximum over
    the steps. With `flatten_width`, all steps are kept and reduced to so many numbers, because
    beats are centred. The logits are the sum of a linear layer and of `hidden_width` units that
    join waveform and rhythm (Cheng et al. 2016); without them, rare statements are learned better.
    """

    def __init__(self, *, width, steps, features, outputs, head):
        super().__init__()
        flatten_width = head["flatten_width"]
        hidden_width = head["hidden_width"]
        self.flatten = self.deep = None
        inputs = 2 * width + 64
        if flatten_width and steps:   # an mlp has mixed all samples of its window already
            inputs = flatten_width + 64
            self.flatten = nn.Sequential(
                nn.Flatten(), nn.Dropout(0.25), nn.Linear(width * steps, flatten_width),
                nn.BatchNorm1d(flatten_width), nn.ReLU())
        self.rhythm = nn.Sequential(nn.Linear(features, 64), nn.ReLU())
        self.wide = nn.Sequential(
            nn.BatchNorm1d(inputs), nn.Dropout(head["dropout"]), nn.Linear(inputs, outputs))
        if hidden_width:
            self.deep = nn.Sequential(
                nn.BatchNorm1d(inputs), nn.Dropout(0.1), nn.Linear(inputs, hidden_width), nn.ReLU(),
                nn.BatchNorm1d(hidden_width), nn.Dropout(0.5), nn.Linear(hidden_width, outputs))

    def forward(self, signals, features):
        maps = self.maps(signals)
        if self.flatten:
            pooled = [self.flatten(maps)]
        else:   # what shows throughout a record, and what shows once
            pooled = [maps.mean(dim=2), maps.amax(dim=2)]
        x = torch.cat([*pooled, self.rhythm(features)], dim=1)
        return self.wide(x) + self.deep(x) if self.deep else self.wide(x)


class CNN(Net):
    """Residual convolutional network."""

    def __init__(self, *, channels, samples, widths, stem, **shared):
        steps = ceil(samples / (stem[1] * 2 ** len(widths)))
        super().__init__(width=widths[-1], steps=steps, **shared)
        self.layers = Convolutions(channels, (widths[0], *widths), stem)

    def maps(self, x):
        return self.layers(x)                              # (n, width, steps)


class LSTM(Net):
    """Bidirectional LSTM over a strided convolutional stem."""

    def __init__(self, *, channels, samples, width, stem, **shared):
        super().__init__(width=2 * width, steps=ceil(samples / (stem[1] * 4)), **shared)
        widths = (width // 2, width, width)
        self.stem = Convolutions(channels, widths, stem)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def maps(self, x):
        steps, _ = self.lstm(self.stem(x).transpose(1, 2))   # (n, steps, 2 * width)
        return steps.transpose(1, 2)


class MLP(Net):
    """Fully connected layers over all samples of a window, the same ones for every window.

    A beat is one window. In a crop of a record, many windows overlap.
    """

    def __init__(self, *, channels, samples, widths, windows=(1, 1), **shared):
        super().__init__(width=widths[-1], steps=0, **shared)
        self.window, self.step = (round(part * samples) for part in windows)
        sizes = [channels * self.window, *widths]
        layers = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def maps(self, x):
        windows = x.unfold(2, self.window, self.step).transpose(1, 2)   # (n, steps, leads, window)
        x = self.layers(windows.flatten(0, 1).flatten(1))               # (n * steps, width)
        return x.view(*windows.shape[:2], -1).transpose(1, 2)           # (n, width, steps)


MODELS = {"cnn": CNN, "lstm": LSTM, "mlp": MLP}


def offset_of(signals):
    """(n, channels, samples) -> (n, channels, 1) medians: each recorder adds another offset."""
    return signals.median(dim=2, keepdim=True).values


class Ensemble(nn.Module):
    """Nets of one model, each with its own initial weights and batches.

    (n, channels, samples), (n, features) -> (n, outputs) logits. In training, each net gets an
    equal part of the rows; else all of them, and the mean of the nets depends less on the seed.
    """

    def __init__(self, model, ensemble_size, **arguments):
        super().__init__()
        self.normalise_signals = Normalise(arguments["channels"], 1)
        self.normalise_features = Normalise(arguments["features"])
        self.nets = nn.ModuleList(MODELS[model](**arguments) for _ in range(ensemble_size))

    def forward(self, signals, features):
        signals = self.normalise_signals(signals - offset_of(signals))
        inputs = signals, self.normalise_features(features)
        if self.training:
            parts = zip(*(values.tensor_split(len(self.nets)) for values in inputs))
            return torch.cat([net(*part) for net, part in zip(self.nets, parts)])
        return torch.stack([net(*inputs) for net in self.nets]).mean(dim=0)


# ---- Inference: the one path of training, evaluation and cross-dataset validation ----

def crop_logits(net, inputs, crop):
    """Net, Inputs on its device -> (crops, n, outputs) logits.

    The crops of a record overlap by half and cover it.
    """
    last = inputs.signals.shape[2] - crop
    starts = [*range(0, last, crop // 2 or 1), last]
    crops = torch.cat([inputs.signals[:, :, start:start + crop] for start in starts])
    logits = net(crops, inputs.features.repeat(len(starts), 1))
    return logits.view(len(starts), len(inputs.signals), -1)


@torch.no_grad()
def predict(net, inputs, crop):
    """Net, Inputs on its device -> (crops, n, outputs) float32 logits on the CPU."""
    net.eval()
    size = 512 * crop // inputs.signals.shape[2] or 1
    batches = zip(*(values.split(size) for values in inputs))
    logits = [crop_logits(net, Inputs(*batch), crop) for batch in batches]
    return torch.cat(logits, dim=1).cpu()


def predict_rows(checkpoint, data, rows):
    """Checkpoint, dataset or strips, (n,) rows -> (crops, m, outputs) logits, (m,) row of each.

    Part by part, so that memory stays flat.
    """
    recipe = checkpoint.recipe
    size = {"beats": 20_000, "records": 1_000}[data.kind]
    parts = np.array_split(rows, len(rows) // size + 1)
    logits, numbers = [], []
    for part in parts:
        inputs, number = make_inputs(data, part, recipe)
        logits.append(predict(checkpoint.net, inputs, recipe.crop))
        numbers.append(number)
    return torch.cat(logits, dim=1), np.concatenate(numbers)


def task_members(header, task):
    """Header, task -> (statements, classes) bool: which statements make a class of the task."""
    return np.stack([np.isin(header.statement_names, members)
                     for members in header.tasks[task].values()], axis=1)


def class_logits(logits, recipe, members=None):
    """(n, outputs) logits -> (n, classes) float64 logits.

    With task_members, a class holds if one or more of its statements do: noisy-or.
    """
    logits = logits[:, :len(recipe.classes)].double()
    if members is None:
        return logits
    return (F.softplus(logits) @ torch.from_numpy(members).double()).expm1().log()


def probabilities(logits, recipe, members=None):
    """(n, outputs) logits -> (n, classes) float64: softmax for beats, sigmoid for records.

    With task_members, given that the record has a label of the task, as all rows of a task have:
    the probability of a class over that of any.
    """
    of_class = class_logits(logits, recipe, members)
    if recipe.kind == "beats":
        return of_class.softmax(dim=1).numpy()
    chance = of_class.sigmoid()
    if members is not None:
        any_label = members.any(axis=1, keepdims=True)
        chance /= class_logits(logits, recipe, any_label).sigmoid()
    return chance.numpy()


def premature_beats(data):
    """Dataset of beats -> mask: the RR interval is below 0.85 of the median of the three before.

    None of the four spans a gap or a pause: see rr_intervals.
    """
    def is_premature(peaks):
        rr = rr_intervals(peaks, data.rate)
        return rr[:, 9] < 0.85 * np.median(rr[:, 6:9], axis=1)
    peaks = pd.Series(data.metadata["sample"])
    return peaks.groupby(data.metadata["record"]).transform(is_premature).to_numpy(bool)


def call_classes(data, rows, probability, recipe):
    """Dataset of beats, (n,) sorted rows, (n, classes) probabilities -> (n,) classes.

    The most probable class that is called. A run of S has a premature beat; without one, it is
    sinus tachycardia, and its beats are N.
    """
    called = np.where(recipe.called, probability, -1).argmax(axis=1)
    names = np.array(recipe.classes)
    s = np.flatnonzero(names[called] == "S")
    run = np.cumsum(np.diff(rows[s], prepend=0) > 3)   # one or two others may be in between
    of_run = [data.metadata["record"][rows[s]], run]
    premature = pd.Series(premature_beats(data)[rows[s]])
    is_sinus = ~premature.groupby(of_run).transform("any")
    called[s[is_sinus]] = (names == "N").argmax()
    return called


# ---- Training ----

def class_weights(targets, recipe):
    """(n,) classes of the training rows -> (classes,) float32 weights 1 / count^power in the loss.

    A class below 0.1% of the rows weighs like one of 0.1%. None for records.
    """
    if recipe.kind == "records":
        return None
    counts = torch.bincount(targets, minlength=len(recipe.classes)).float()   # mps has no float64
    return counts.clamp_min(0.001 * counts.sum()) ** -recipe.class_weight_power


def loss_of(recipe, class_weight, logits, targets, statements):
    """(n, outputs) logits, targets of the classes, (n, k) statements -> mean loss.

    Beats: cross-entropy of the classes, plus that of the statements, the last k outputs. Records:
    binary cross-entropy of every statement.
    """
    classes = len(recipe.classes)
    if recipe.kind == "records":
        return F.binary_cross_entropy_with_logits(logits, targets)
    loss = F.cross_entropy(logits[:, :classes], targets, class_weight)
    if recipe.statement_weight:
        of_statements = F.binary_cross_entropy_with_logits(logits[:, classes:], statements)
        loss = loss + recipe.statement_weight * of_statements
    return loss


def training_batches(net, examples, rows, batch_size, recipe):
    """Yields one pass over the rows in random order, without the last incomplete batch.

    Each batch: random crops (b, channels, crop), features (b, k), targets, statements.
    """
    device = examples.targets.device
    crops = examples.signals.unfold(2, recipe.crop, 1)   # (n, channels, starts, crop), a view
    order = torch.from_numpy(rows)[torch.randperm(len(rows))]
    order = order[:len(rows) // batch_size * batch_size]
    starts = torch.randint(crops.shape[2], (len(order),))
    batches = zip(order.to(device).split(batch_size), starts.to(device).split(batch_size))
    for batch, start in batches:
        inputs = add_noise(crops[batch, :, start], examples.features[batch], net, recipe)
        yield *inputs, examples.targets[batch], examples.statements[batch]


def add_noise(signals, features, net, recipe):
    """Signals and features of a batch -> the same with noise, another height, missing leads (0)."""
    if recipe.signal_noise:
        spread = net.normalise_signals.spread
        signals = signals + recipe.signal_noise * spread * torch.randn_like(signals)
    if recipe.height_noise:
        noise = torch.randn(len(signals), 1, 1, device=signals.device)
        signals = signals * (recipe.height_noise * noise).exp()
    if recipe.lead_dropout:
        leads = len(recipe.leads)
        kept = F.one_hot(torch.randint(leads, (len(signals),)), leads).bool()
        kept |= torch.rand(len(signals), 1) >= recipe.lead_dropout
        kept = kept.repeat(1, signals.shape[1] // leads).to(signals.device)
        signals = signals * kept[:, :, None]
    if recipe.rhythm_noise:
        spread = net.normalise_features.spread
        features = features + recipe.rhythm_noise * spread * torch.randn_like(features)
    return signals, features


def train_epoch(net, batches, loss_function, optimiser, schedule):
    """One pass over the batches -> mean loss."""
    net.train()
    total = 0.0
    count = 0
    for signals, features, targets, statements in batches:
        loss = loss_function(net(signals, features), targets, statements)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.detach()   # no .item(): a GPU would wait for it
        count += 1
    if not torch.isfinite(total):
        raise SystemExit("the training loss is not finite: lower the learning_rate in RECIPES")
    return total.item() / count


def fit(net, examples, rows, recipe):
    """Trains the net on (n,) rows -> history, a dict for each epoch.

    The last epoch is kept: the learning rate ends near 0 there.
    """
    nets = len(net.nets)   # each of them sees as many rows as there are
    batch_size = nets * min(recipe.batch_size, len(rows))
    weight = class_weights(examples.targets[rows], recipe)
    loss_function = partial(loss_of, recipe, weight)
    rows = np.tile(rows, nets)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * (len(rows) // batch_size))
    history = []
    for epoch in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        batches = training_batches(net, examples, rows, batch_size, recipe)
        loss = train_epoch(net, batches, loss_function, optimiser, schedule)
        history.append({"epoch": epoch, "loss": loss})
        print(f"epoch {epoch}  loss {loss:.4g}  {time.perf_counter() - began:.1f} s", flush=True)
    return history


# ---- Thresholds, on validation rows ----

def log_odds(probability):
    """Probabilities -> finite log odds."""
    return logit(np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9))


def best_thresholds(probability, targets):
    """(n, classes) probabilities, bool -> list of the classes' thresholds.

    They maximise the expected F1 under Platt-scaled probabilities (Lipton et al. 2014), which is
    smoother than an F1 counted on some hundred rows. 0.5 for a class that all rows have, or none.
    """
    thresholds = []
    for p, truth in zip(probability.T, targets.T):
        if truth.all() or not truth.any():
            thresholds.append(0.5)
            continue
        called = np.sort(p)[::-1]   # a threshold calls the first one, two, ... of these rows
        model = LogisticRegression(C=1e6).fit(log_odds(p)[:, None], truth)   # Platt 1999
        chance = model.predict_proba(log_odds(called)[:, None])[:, 1]
        expected_f1 = 2 * np.cumsum(chance) / (np.arange(1, len(p) + 1) + chance.sum())
        thresholds.append(float(called[np.argmax(expected_f1)]))
    return thresholds


def task_thresholds(logits, statements, recipe, header):
    """(n, outputs) logits, (n, statements) bool of validation rows -> dict of task -> thresholds.

    A task has the rows with one of its labels.
    """
    thresholds = {}
    for task in header.tasks:
        members = task_members(header, task)
        truth = statements @ members
        rows = truth.any(axis=1)
        probability = probabilities(logits[rows], recipe, members)
        thresholds[task] = best_thresholds(probability, truth[rows])
    return thresholds


# ---- Checkpoint ----

def save_pth(path, content):
    """Writes a dict of tensors and plain values."""
    buffer = io.BytesIO()   # a full disk is an OSError then
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def load_pth(path):
    """.pth file -> its content on the CPU; nothing in it is executed."""
    with zipfile.ZipFile(path) as archive:   # torch.load ignores the checksums in the file
        if archive.testzip():
            raise ValueError("a checksum is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(name, model, strips=False):
    """Names of dataset and model, whether for strips of 10 s -> checkpoint with its net.

    Stops with one sentence if the file is missing or damaged.
    """
    check_choice("MODEL", model, MODELS)
    suffix = "_strips" if strips else ""
    path = f"{name}_{model}{suffix}_model.pth"
    make = f'Run model_training.py: DATASET = "{name}", MODEL = "{model}", SECOND_NET = True'
    try:
        checkpoint = SimpleNamespace(**load_pth(path))
        checkpoint.recipe = SimpleNamespace(**checkpoint.recipe)
        checkpoint.header = SimpleNamespace(**checkpoint.header)
        if checkpoint.model != model:
            raise ValueError(f"it holds a {checkpoint.model}")
        checkpoint.net = Ensemble(model, **checkpoint.net_arguments).eval()
        checkpoint.net.load_state_dict(checkpoint.weights)
    except FileNotFoundError:
        raise SystemExit(f"{path} is not in this folder. {make}") from None
    except Exception as error:   # torch and zipfile raise errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"{path} is not the expected checkpoint, or damaged ({reason}). {make}"
                         ) from error
    return checkpoint


def load_checkpoint(data, model, strips=False):
    """Dataset and the rest of read_checkpoint -> its checkpoint, if it was trained on that data."""
    checkpoint = read_checkpoint(data.name, model, strips)
    now = vars(data.header)
    was = vars(checkpoint.header)
    if was.get("r_peaks") != now.get("r_peaks"):   # detected beats may be scored too
        was = was | {name: now[name] for name in ("r_peaks", "class_names", "sha256")}
    for name in was:
        if was[name] != now.get(name):
            change = f"{name} = {was[name]!r}, now {now.get(name)!r}"
            raise SystemExit(f"the {model} of {data.name} was trained on other .npy files "
                             f"({change[:200]}): train again")
    return checkpoint


def warning_of(simulated):
    """Whether the data are simulated -> the sentence that must stand beside every score."""
    return ". SIMULATED DATA: no score is a result" if simulated else ""


# ---- Main ----

def called_classes(data, rows, recipe):
    """Dataset of beats, training rows -> list of bool: 20 beats from each of three patients."""
    counts = pd.crosstab(data.labels[rows], data.patient[rows])
    patients = (counts >= 20).sum(axis=1)
    return [bool(patients.get(k, 0) >= 3) for k in range(len(recipe.classes))]


def choose_recipe(data, settings):
    """Dataset, its entry in RECIPES -> every setting of a net, as it travels in the checkpoint."""
    recipe = SimpleNamespace(**settings, split=SPLIT, seed=check_number("SEED", SEED, 0, 2 ** 32))
    recipe.sides = choose_sides(data, SPLIT)
    if not recipe.hold_out:
        recipe.sides["train"] += recipe.sides["validation"]
        recipe.sides["validation"] = []
    recipe.kind = data.kind
    is_beats = data.kind == "beats"
    recipe.classes = data.header.class_names if is_beats else data.header.statement_names
    for name in ("learning_rate", "sizes"):
        values = settings[name]
        if isinstance(values, dict):
            check_choice(f"{name} in RECIPES needs an entry for MODEL", MODEL, values)
            setattr(recipe, name, values[MODEL])
    for names, limits in LIMITS.items():
        for name in settings.keys() & names.split():
            value = check_number(f"{name} in RECIPES", getattr(recipe, name), *limits)
            setattr(recipe, name, value)
    wanted = as_names("leads in RECIPES", recipe.leads)
    if LEADS is not None:
        wanted = as_names("LEADS", LEADS)
    columns = lead_columns(data.leads, wanted)
    if len(columns) < len(wanted):
        raise SystemExit(f"{DATASET}_signals.npy has the leads {' '.join(data.leads)}, but "
                         f"{' '.join(wanted)} are wanted: set LEADS")
    recipe.leads = [data.leads[column] for column in columns.values()]
    recipe.rate = data.rate
    recipe.segment = data.signals.shape[2]
    recipe.crop = round(recipe.crop_seconds * recipe.rate)
    if recipe.crop > recipe.segment:
        raise SystemExit(f"crop_seconds makes {recipe.crop} samples, a row has {recipe.segment}")
    return recipe


def make_examples(data, recipe):
    """Dataset, settings -> what a net learns from, all rows of the dataset.

    Inputs; targets (n,) int64 classes of beats, or (n, statements) float32 zeros and ones of
    records; statements (n, k) for a second loss, or k = 0.
    """
    inputs, _ = make_inputs(data, np.arange(len(data.labels)), recipe)
    statements = torch.from_numpy((data.metadata["statements"] >= 0).astype(np.float32))
    targets = torch.from_numpy(data.labels)
    if data.kind == "records":
        targets = statements
    if data.kind == "records" or not recipe.statement_weight:
        statements = statements[:, :0]
    return SimpleNamespace(**inputs._asdict(), targets=targets, statements=statements)


def make_net(examples, rows, recipe):
    """A new net that normalises by the statistics of the training rows -> net, its arguments."""
    try:
        arguments = {
            "ensemble_size": recipe.ensemble_size,
            "channels": examples.signals.shape[1],
            "features": examples.features.shape[1],
            "samples": recipe.crop,
            "outputs": len(recipe.classes) + examples.statements.shape[1],
            "head": recipe.head,
            **recipe.sizes,
        }
        net = Ensemble(MODEL, **arguments)
        predict(net, Inputs(examples.signals[:2], examples.features[:2]), recipe.crop)
    except Exception as error:   # torch raises errors of many kinds
        raise SystemExit(f"RECIPES: sizes = {recipe.sizes} and head = {recipe.head} make no net "
                         f"({error})") from error
    some = rows["train"][::len(rows["train"]) // 4000 + 1]
    signals = examples.signals[some]
    net.normalise_signals.fit(signals - offset_of(signals))
    net.normalise_features.fit(examples.features[some])
    return net, arguments


def train(data, device, settings, name):
    """Dataset, device, entry in RECIPES, name of the files -> writes the checkpoint."""
    recipe = choose_recipe(data, settings)
    torch.manual_seed(recipe.seed)
    rows = split_rows(data, recipe)
    leads = " ".join(recipe.leads) + lead_note(data, recipe.leads, recipe.sides["train"])
    print(f"{name}, leads {leads}, on {device}. Rows:",
          *(f"{len(of_side):,} {side}" for side, of_side in rows.items()))
    print(check_patients(data, rows) + warning_of(data.header.simulated))
    needs_validation = recipe.hold_out or data.kind == "records"   # for the thresholds
    if len(rows["train"]) < 2 or (needs_validation and not len(rows["validation"])):
        raise SystemExit(f"too few labelled rows, see SPLIT, hold_out: {recipe.sides}")

    if data.kind == "beats":
        recipe.called = called_classes(data, rows["train"], recipe)
    examples = make_examples(data, recipe)
    net, arguments = make_net(examples, rows, recipe)
    for part, tensor in vars(examples).items():
        setattr(examples, part, tensor.to(device))
    history = fit(net.to(device), examples, rows["train"], recipe)

    thresholds = None   # beats: the most probable class is called
    if data.kind == "records":
        validation = rows["validation"]
        inputs = Inputs(examples.signals[validation], examples.features[validation])
        logits = predict(net, inputs, recipe.crop).mean(dim=0)
        statements = data.metadata["statements"][validation] >= 0
        thresholds = task_thresholds(logits, statements, recipe, data.header)
    checkpoint = {
        "model": MODEL, "recipe": vars(recipe), "header": vars(data.header),
        "net_arguments": arguments,
        "weights": net.cpu().state_dict(),
        "history": history, "thresholds": thresholds,
        "versions": {"torch": str(torch.__version__)},
    }
    with new_files(f"{name}_model.pth") as [path]:
        save_pth(path, checkpoint)
    print(f"Wrote {name}_model.pth")


def main():
    check_choice("DATASET", DATASET, ["mitbih", "ptbxl"])
    check_choice("MODEL", MODEL, MODELS)
    check_choice("SPLIT", SPLIT, ["inter_patient", "all"])
    check_number("VALIDATION_FOLD", VALIDATION_FOLD, 1, 10)
    check_number("TEST_FOLD", TEST_FOLD, 1, 10)
    check_choice("DEVICE", DEVICE, ["auto", "cpu"])
    gpu = torch.accelerator.current_accelerator(check_available=True)
    device = gpu if gpu and DEVICE == "auto" else torch.device("cpu")
    data = load_dataset(DATASET)
    if SECOND_NET:   # a wrong setting stops the run before the first training
        choose_recipe(data, RECIPES[f"{DATASET}_strips"])
    train(data, device, RECIPES[DATASET], f"{DATASET}_{MODEL}")
    if SECOND_NET:
        train(data, device, RECIPES[f"{DATASET}_strips"], f"{DATASET}_{MODEL}_strips")


if __name__ == "__main__":
    main()
