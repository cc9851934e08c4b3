"""Trains a CNN, LSTM or MLP on MIT-BIH beats or PTB-XL records.

Reads   {dataset}_*.npy   all that the dataset's preprocess script writes
Writes  {dataset}_{model}_model.pth      weights, and all that a later stage must know
        {dataset}_{model}_training.png   loss and validation score by epoch
        {dataset}_{model}_state.pth      after every epoch, for RESUME; removed at the end
        {dataset}_{model}_strips_*       the same three of a second net, for the other database
Takes   3 minutes for MIT-BIH, 7 for PTB-XL at 100 Hz (cnn, both nets, two cores without bfloat16).

Several GPUs or machines: torchrun --nproc-per-node=2 model_training.py
"""

import atexit
import io
import os
import sys
import time
import zipfile
from functools import partial
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from preprocess_mitbih import as_names, check_choice, lead_name, load_dataset, new_files

# data and model
DATASET = "mitbih"        # "mitbih" or "ptbxl"
MODEL = "cnn"             # "cnn", "lstm" or "mlp"
LEADS = None              # None: those of RECIPES, or names in the data: ["MLII"]

# split
SPLIT = "inter_patient"   # "inter_patient" (DS1 to DS2, PTB-XL's folds); "all": the test side
                          # and paced records train, too; or "random", which leaks patients
VALIDATION_RECORDS = ["114", "124", "203", "220", "223"]   # MIT-BIH: patients of DS1, see hold_out
EXCLUDED_RECORDS = []     # MIT-BIH: ["202"] leaves out the test record of a patient of DS1 (201)
VALIDATION_FOLD = 9       # PTB-XL: for the thresholds
TEST_FOLD = 10            # PTB-XL: only for the report

# run
SEED = 0                  # one seed, one result, on the CPU
SECOND_NET = True         # train the net for the other database, too (STRIPS)
RESUME = False            # True: go on after the last complete epoch of a stopped run
DEVICE = "auto"           # "auto": cuda, mps or cpu, whichever is there first; or one of them

# crop_seconds        what a net sees at a time: the middle of a beat, random crops of a record
# context_seconds     parts of the records that the median beat and the rhythm come from
# leads               what the net sees; if the data have none of these, the first one
# lead_dropout        share of the examples in training that have one lead only
# signal_noise        added in training, in standard deviations of the training rows
# rhythm_noise        the same for the RR features
# statement_weight    weight of a second loss, on the SCP statements
# learning_rate       peak of the one-cycle schedule
# class_weight_power  MIT-BIH: a class of count c weighs 1 / c^power in the loss
# head                flatten_width and hidden_width of `Net`, None: without; its dropout
# ensemble_size       how many nets learn side by side, see `Ensemble`
# hold_out            whether the validation records or fold are kept from training
TWELVE = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
RECIPES = {
    "mitbih": {
        "crop_seconds": 0.5, "context_seconds": 1800, "lead_dropout": 0.0,
        "leads": ["II"], "signal_noise": 2.5, "rhythm_noise": 0.3, "statement_weight": 0.0,
        "epochs": 6, "batch_size": 256,
        "learning_rate": {"cnn": 5e-3, "lstm": 3e-3, "mlp": 2e-3},
        "class_weight_power": 0.25, "head": (64, None, 0.25), "ensemble_size": 5,
        "hold_out": False,
    },
    "ptbxl": {
        "crop_seconds": 2.5, "context_seconds": None, "lead_dropout": 0.0,
        "leads": TWELVE, "signal_noise": 0.0, "rhythm_noise": 0.0, "statement_weight": 0.0,
        "epochs": 24, "batch_size": 128,
        "learning_rate": {"cnn": 1e-2, "lstm": 5e-3, "mlp": 1e-2},
        "head": (None, None, 0.25), "ensemble_size": 1, "hold_out": True,
    },
}
STRIPS = {   # what changes in a second net, which is for strips of 10 s of the other database
    "mitbih": {
        "context_seconds": 10, "leads": ["II", "V1"],
        "statement_weight": 100.0, "epochs": 3, "head": (None, 128, 0.5), "ensemble_size": 1,
        "hold_out": True,
    },
    "ptbxl": {
        "crop_seconds": 5.0, "leads": ["II", "V1"], "lead_dropout": 0.25,
        "head": (None, 128, 0.0), "batch_size": 64, "epochs": 4,
    },
}
# widths: a cnn has at most four. stem: kernel and stride. windows: length and step in parts of
# the crop
ARCHITECTURES = {
    "mitbih": {
        "cnn": {"widths": [32, 48, 64], "stem": (11, 3)},
        "lstm": {"width": 48, "stem": (9, 3)},
        "mlp": {"widths": [256, 128]},
    },
    "ptbxl": {
        "cnn": {"widths": [48, 96, 96, 192], "stem": (9, 2)},
        "lstm": {"width": 64, "stem": (9, 2)},
        "mlp": {"widths": [512, 512], "windows": (0.4, 0.05)},
    },
}


# ---- Split: patients on one side only ----

def choose_sides(data, split):
    """Dataset, SPLIT -> dict of side -> its records (MIT-BIH) or folds (PTB-XL)."""
    if data.is_ptbxl:
        side_of = dict.fromkeys(range(1, 11), "train")
        side_of |= {VALIDATION_FOLD: "validation", TEST_FOLD: "test", 0: "test"}   # 0: others'
    else:
        subsets = {"DS1": "train", "DS2": "test", "test": "test", "paced": "left out"}
        side_of = {record["name"]: subsets[record["subset"]] for record in data.header.records}
        if data.name == "mitbih" and np.size(VALIDATION_RECORDS):
            side_of |= {name: "validation" for name in as_names(VALIDATION_RECORDS)
                        if name in side_of}
    if split == "all":
        side_of = {member: "validation" if side == "validation" else "train"
                   for member, side in side_of.items()}
    if data.name == "mitbih" and np.size(EXCLUDED_RECORDS):
        for name in as_names(EXCLUDED_RECORDS):
            check_choice("one of EXCLUDED_RECORDS", name, side_of)
            side_of[name] = "left out"
    return {side: [member for member in side_of if side_of[member] == side]
            for side in ("train", "validation", "test")}


def split_rows(data, recipe):
    """Dataset, settings -> dict of side -> (rows,) rows with a label or statement.

    recipe.sides has the records or folds of each side; a random split follows recipe.seed.
    """
    has_label = data.labels >= 0
    member = data.record
    if data.is_ptbxl:
        has_label = (data.metadata["statements"] >= 0).any(axis=1)
        member = data.metadata["fold"]
    rows = {side: np.flatnonzero(np.isin(member, members))
            for side, members in recipe.sides.items()}
    if recipe.split == "random":
        order = np.random.default_rng(recipe.seed).permutation(len(member))
        parts = np.split(order, [int(0.8 * len(order)), int(0.9 * len(order))])
        rows = dict(zip(rows, map(np.sort, parts)))
    return {side: part[has_label[part]] for side, part in rows.items()}


def check_patients(data, rows, split):
    """Stops the run if a patient is on two sides; a random split says so. Returns a sentence."""
    train, validation, test = (set(data.patient[part].tolist()) for part in rows.values())
    shared = (train & validation) | ((train | validation) & test)
    if split == "random":
        return (f"*** LEAKY SPLIT: {len(shared)} patients are on several sides of it. The scores "
                "are far too good, for comparison with older papers only ***")
    known = shared & test & {"201"} if data.name == "mitbih" else set()
    if shared - known:
        raise SystemExit(f"patients {', '.join(sorted(shared - known)[:10])} are on two sides of "
                         "the split. Nothing was trained")
    note = "; 201 (DS1) and 202 (DS2) are one patient, as in the standard split" if known else ""
    return f"no patient is on two sides{note}"


# ---- Inputs ----

def make_examples(data, recipe):
    """Dataset, settings -> what a net learns from, all rows of the dataset.

    signals (n, channels, samples), features (n, k); targets (n,) int64 classes, or (n, statements)
    float32 zeros and ones; statements: these for a second loss.
    """
    statements = (data.metadata["statements"] >= 0).astype(np.float32)
    targets = data.labels if recipe.task == "multiclass" else statements
    if not recipe.statement_weight:
        statements = statements[:, :0]
    signals, features = dataset_inputs(data, recipe)
    return SimpleNamespace(signals=signals, features=features, targets=torch.from_numpy(targets),
                           statements=torch.from_numpy(statements))


def dataset_inputs(data, recipe):
    """Dataset, settings -> the inputs of all of its rows."""
    names = data.header.leads
    signals = data.signals
    if recipe.leads != names:
        signals = np.ascontiguousarray(signals[:, [names.index(x) for x in recipe.leads]])
    if data.is_ptbxl:
        return record_inputs(signals, beats_of(data.metadata), recipe.rate)
    return make_inputs(signals, data.metadata, recipe)


def beats_of(metadata):
    """Metadata of PTB-XL -> list of the beats of each record."""
    return [peaks[peaks >= 0] for peaks in metadata["beats"]]


def record_inputs(signals, beats, rate):
    """(n, leads, samples) mV, n arrays of beat positions -> the same inputs as make_inputs.

    The features are the mean, the smallest and the largest rhythm_features of its beats.
    """
    features = []
    for peaks in beats:
        of_beats = rhythm_features(rr_intervals(peaks if len(peaks) else np.zeros(1), rate))
        features.append([of_beats.mean(axis=0), of_beats.min(axis=0), of_beats.max(axis=0)])
    return torch.from_numpy(signals), torch.from_numpy(np.array(features).reshape(len(beats), -1))


def make_inputs(signals, beats, recipe):
    """Signals and beats -> signals (n, channels, samples) and features (n, k), float32 tensors.

    signals: (n, leads, samples) float32 mV; beats: (n,) table of BEAT_FIELDS.
    """
    parts = rows_by_context(beats, recipe.context_seconds * recipe.rate)
    inputs = [beat_inputs(signals[rows], beats["sample"][rows], recipe) for rows in parts]
    order = np.argsort(np.concatenate(parts))
    return tuple(torch.from_numpy(np.concatenate(values)[order]) for values in zip(*inputs))


def rows_by_context(beats, length):
    """(n,) beats -> list of the rows of each record, in equal parts of about `length` samples."""
    table = pd.DataFrame({name: beats[name] for name in ("record", "sample")})
    duration = table.groupby("record")["sample"].transform("max") + 1
    parts = (duration / length).round().clip(lower=1)
    part = table["sample"] * parts // duration
    return list(table.groupby(["record", part]).indices.values())


def beat_inputs(signals, sample, recipe):
    """(n, leads, samples) mV, (n,) positions of all beats of a record -> signals, features."""
    signals = relative_beats(signals, recipe.crop)
    return signals, rhythm_features(rr_intervals(sample, recipe.rate))


def relative_beats(signals, crop):
    """(n, leads, samples) mV, all beats of a record -> (n, 2 * leads, crop) float32.

    The middle of the beats in heights of the median beat, then their differences from it. The
    median beat needs no labels, but all beats of the record, as in the analysis of a Holter.
    """
    beats = signals - np.median(signals, axis=2, keepdims=True)   # no baseline
    median = np.median(beats, axis=0)
    height = np.maximum(np.ptp(median, axis=1), 0.1)[:, None]   # mV; keeps a flat lead flat
    relative = np.concatenate([beats, beats - median], axis=1) / np.tile(height, (2, 1))
    start = (signals.shape[2] - crop) // 2
    return relative[:, :, start:start + crop].astype(np.float32)


def rr_intervals(sample, rate):
    """(k,) positions of a record's beats -> (k, 20) s: the ten RR intervals before and after each.

    Column 9 ends at the beat, column 10 starts there. NaN beyond the ends of the record; others
    are limited to 0.1 and 5 s.
    """
    edge = np.full(10, np.nan)
    intervals = np.concatenate([edge, (np.diff(sample) / rate).clip(0.1, 5), edge])
    return np.lib.stride_tricks.sliding_window_view(intervals, 20)[:len(sample)]


def rhythm_features(rr):
    """(n, 20) s, rr_intervals of a record -> (n, 25) float32 features, without labels.

    Log ratios of the 5 RR intervals before and the 5 after each beat to the record's median; of
    the intervals around the beat to each other and to the mean of those before; of that mean to
    the median; the two intervals in s; the spread of the last ones; the record's quantiles over
    its median, and the beat's interval over the quantiles. The last two tell an early beat of a
    regular rhythm from atrial fibrillation. An interval beyond the record counts as the median.
    """
    median = np.nanmedian(rr) if np.isfinite(rr).any() else 1.0
    rr = np.nan_to_num(rr, nan=median)
    before = rr[:, :9]
    previous = rr[:, 9]
    following = rr[:, 10]
    mean = before.mean(axis=1)
    quantiles = np.quantile(previous, [0.10, 0.25, 0.75, 0.90])
    columns = [
        np.log(rr[:, 5:15] / median), np.log(previous / mean), np.log(following / mean),
        np.log(following / previous), np.log(mean / median), previous, following,
        np.log(before).std(axis=1), np.tile(np.log(quantiles / median), (len(rr), 1)),
        np.log(previous[:, None] / quantiles)]
    return np.column_stack(columns).astype(np.float32)


# ---- Models ----

class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation of the training rows."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def fit(self, values, rows):
        """(n, channels, ...) tensor, training rows -> sets mean and standard deviation.

        A few thousand rows, at equal distances, tell them well enough.
        """
        values = values[torch.from_numpy(rows[::len(rows) // 4000 + 1])]
        values = values.transpose(0, 1).flatten(1)
        self.mean.view(-1)[:] = values.mean(dim=1)
        self.spread.view(-1)[:] = values.std(dim=1, correction=0).clamp_min(1e-6)

    def forward(self, x):
        return (x - self.mean) / self.spread


def conv(inputs, outputs, kernel, stride=1):
    """A 1-D convolution as a 2-D one over a single row: 1.3 times as fast on CPUs."""
    return nn.Conv2d(inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=False)


class ResidualBlock(nn.Module):
    """(n, inputs, 1, t) -> (n, outputs, 1, t / 2): two convolutions beside a pooled shortcut."""

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
            *map(ResidualBlock, widths, widths[1:], (5, 5, 5, 3)))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = x.unsqueeze(2).to(memory_format=torch.channels_last)   # (n, leads, 1, samples)
        return super().forward(x).squeeze(2)


class Net(nn.Module):
    """What the models share: (n, channels, samples), (n, features) -> (n, outputs) logits.

    A model's `maps` gives feature maps (n, width, steps). In a crop of a record, a beat may be
    anywhere: the mean and the maximum over the steps go on. In a cut beat, each step has its
    place: `flatten` brings all steps to `flatten_width` numbers, no more than a hidden layer
    makes of the rhythm. The logits are the sum of a linear layer and of `hidden_width` units that
    join waveform and rhythm (Cheng et al. 2016); rare statements are learned better without them.
    """

    def __init__(self, maps_shape, features, outputs, head):
        super().__init__()
        width, steps = maps_shape
        flatten_width, hidden_width, dropout = head
        flatten_width = steps and flatten_width   # an mlp has no steps in a fixed number
        self.flatten = flatten_width and nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(width * steps, flatten_width),
            nn.BatchNorm1d(flatten_width), nn.ReLU())
        self.rhythm = nn.Sequential(nn.Linear(features, 64), nn.ReLU())
        inputs = (flatten_width or 2 * width) + 64
        self.wide = nn.Sequential(
            nn.BatchNorm1d(inputs), nn.Dropout(dropout), nn.Linear(inputs, outputs))
        self.deep = hidden_width and nn.Sequential(
            nn.BatchNorm1d(inputs), nn.Dropout(0.1), nn.Linear(inputs, hidden_width), nn.ReLU(),
            nn.BatchNorm1d(hidden_width), nn.Dropout(0.5), nn.Linear(hidden_width, outputs))

    def forward(self, signals, features):
        maps = self.maps(signals)
        x = self.flatten(maps) if self.flatten else mean_and_max(maps)
        x = torch.cat([x, self.rhythm(features)], dim=1)
        return self.wide(x) + (self.deep(x) if self.deep else 0)


def mean_and_max(x):
    """(n, width, steps) -> (n, 2 * width): what shows throughout a record, and what shows once."""
    return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


class CNN(Net):
    """Residual convolutional network."""

    def __init__(self, *, channels, samples, widths, stem, **shared):
        steps = ceil(samples / (stem[1] * 2 ** len(widths)))
        super().__init__((widths[-1], steps), **shared)
        self.layers = Convolutions(channels, (widths[0], *widths), stem)

    def maps(self, x):
        return self.layers(x)                              # (n, width, steps)


class LSTM(Net):
    """Bidirectional LSTM over a strided convolutional stem."""

    def __init__(self, *, channels, samples, width, stem, **shared):
        super().__init__((2 * width, ceil(samples / (stem[1] * 4))), **shared)
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
        super().__init__((widths[-1], None), **shared)
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


class Ensemble(nn.Module):
    """Nets of one model, each with first weights and batches of its own.

    (n, channels, samples), (n, features) -> (n, outputs) logits. In training, each net gets an
    equal part of the rows; else all of them, and the mean of the nets depends less on the seed.
    """

    def __init__(self, model, ensemble_size, **arguments):
        super().__init__()
        self.normalise_signals = Normalise(arguments["channels"], 1)
        self.normalise_features = Normalise(arguments["features"])
        self.nets = nn.ModuleList(MODELS[model](**arguments) for _ in range(ensemble_size))

    def forward(self, signals, features):
        inputs = self.normalise_signals(signals), self.normalise_features(features)
        if self.training:
            parts = zip(*(values.tensor_split(len(self.nets)) for values in inputs))
            return torch.cat([net(*part) for net, part in zip(self.nets, parts)])
        return torch.stack([net(*inputs) for net in self.nets]).mean(dim=0)


# ---- Inference: the one path of training, evaluation and cross-dataset validation ----

def crop_starts(samples, crop):
    """Length of a record and of a crop -> starts of the half-overlapping crops that cover it."""
    return [*range(0, samples - crop, crop // 2 or 1), samples - crop]


def crop_logits(net, signals, features, crop):
    """Net, (n, channels, samples), (n, k) on its device -> (n, outputs) logits, mean over crops."""
    starts = crop_starts(signals.shape[2], crop)
    crops = torch.cat([signals[:, :, start:start + crop] for start in starts])
    logits = net(crops, features.repeat(len(starts), 1))
    return logits.view(len(starts), len(signals), -1).mean(dim=0)


@torch.no_grad()
def predict(net, signals, features, rows, crop, batch=512):
    """Net, (n, channels, samples), (n, k), rows -> (rows, outputs) float32 logits on the CPU.

    Net, signals and features are on one device.
    """
    net.eval()
    rows = torch.from_numpy(rows).to(signals.device)
    parts = rows.split(batch * crop // signals.shape[2] or 1)
    logits = [crop_logits(net, signals[part], features[part], crop) for part in parts]
    return torch.cat(logits).cpu()


def task_members(header, task):
    """Header, task -> (statements, classes) bool: which statements make a class of the task."""
    return np.stack([np.isin(header.statement_names, members)
                     for members in header.tasks[task].values()], axis=1)


def class_logits(logits, recipe, members=None):
    """(n, outputs) logits -> (n, classes) float64 logits.

    With task_members, a class holds where one or more of its statements do: noisy-or.
    """
    logits = logits[:, :len(recipe.classes)].double()
    if members is None:
        return logits
    return (F.softplus(logits) @ torch.from_numpy(members).double()).expm1().log()


def probabilities(logits, recipe, members=None):
    """(n, outputs) logits -> (n, classes) float64: softmax for multiclass, else sigmoid.

    With task_members, given that a row has one of the task's labels, as every row of a task has:
    the probability of a class over that of any.
    """
    of_class = class_logits(logits, recipe, members)
    if recipe.task == "multiclass":
        return of_class.softmax(dim=1).numpy()
    chance = of_class.sigmoid()
    if members is not None:
        any_label = members.any(axis=1, keepdims=True)
        chance /= class_logits(logits, recipe, any_label).sigmoid()
    return chance.numpy()


# ---- Training ----

def class_weights(targets, recipe):
    """(n,) classes of the training rows -> (classes,) float32 weights 1 / count^power in the loss.

    A class below 0.1% of the rows weighs like one of 0.1%. None for targets of several classes
    a row.
    """
    if targets.dim() == 2:
        return None
    counts = torch.bincount(targets, minlength=len(recipe.classes)).double()
    return (counts.clamp_min(0.001 * counts.sum()) ** -recipe.class_weight_power).float()


def loss_of(class_weight, statement_weight, logits, targets, statements):
    """(n, outputs) logits, targets of the classes, (n, k) statements -> mean loss.

    Cross-entropy of one class a row, or binary cross-entropy of several; the outputs after those
    of the classes are those of the statements.
    """
    k = statements.shape[1]
    logits, others = logits.float().split([logits.shape[1] - k, k], dim=1)
    if targets.dim() == 1:
        loss = F.cross_entropy(logits, targets, class_weight)
    else:
        loss = F.binary_cross_entropy_with_logits(logits, targets)
    if k:
        loss = loss + statement_weight * F.binary_cross_entropy_with_logits(others, statements)
    return loss


def training_batches(net, examples, rows, batch_size, recipe):
    """Yields one pass over the rows in random order, as random crops with noise.

    Each batch: signals (b, channels, crop), features (b, k), targets, statements.
    """
    device = examples.targets.device
    crops = examples.signals.unfold(2, recipe.crop, 1)   # (n, channels, starts, crop), a view
    order = torch.from_numpy(rows)[torch.randperm(len(rows))]
    order = order[:len(rows) // batch_size * batch_size]
    starts = torch.randint(crops.shape[2], (len(order),))
    batches = zip(order.to(device).split(batch_size), starts.to(device).split(batch_size))
    for batch, start in batches:
        signals = crops[batch, :, start]
        signals = add_noise(signals, recipe.signal_noise, net.normalise_signals.spread)
        signals = drop_leads(signals, recipe)
        features = examples.features[batch]
        features = add_noise(features, recipe.rhythm_noise, net.normalise_features.spread)
        yield signals, features, examples.targets[batch], examples.statements[batch]


def add_noise(values, size, spread):
    """(b, ...) values -> the same with Gaussian noise of `size` standard deviations."""
    if size == 0:
        return values
    return values + size * spread * torch.randn(values.shape, device=values.device)


def drop_leads(signals, recipe):
    """(b, channels, samples) -> the same; in some rows all leads but one are absent, which is 0."""
    leads = len(recipe.leads)
    kept = F.one_hot(torch.randint(leads, (len(signals),)), leads).bool()
    kept |= torch.rand(len(signals), 1) >= recipe.lead_dropout
    kept = kept.repeat(1, signals.shape[1] // leads).to(signals.device)
    return signals * kept[:, :, None]


def train_epoch(net, batches, loss_function, optimiser, schedule):
    """One pass over the batches -> mean loss; in bfloat16 where that is faster."""
    fast = torch.cpu.get_capabilities().get("amx_bf16", False)
    net.train()
    total = 0.0
    count = 0
    for signals, features, targets, statements in batches:
        with torch.autocast(signals.device.type, torch.bfloat16,
                            enabled=signals.is_cuda or fast):
            logits = net(signals, features)
        loss = loss_function(logits, targets, statements)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.detach()   # no .item(): a GPU would wait for it
        count += 1
    if not torch.isfinite(total):
        raise SystemExit("the training loss is infinite: lower the learning_rate in RECIPES")
    return total.item() / count


def validation_score(probability, targets):
    """(n, k) probabilities, targets of the validation rows -> the score; higher is better.

    Multilabel: macro AUC. Multiclass: mean F1 of the first three classes, N, S and V.
    """
    if targets.ndim == 2:
        return np.mean([roc_auc_score(truth, p) for truth, p in zip(targets.T, probability.T)
                        if truth.min() < truth.max()])
    return f1_score(targets, probability.argmax(axis=1), average="macro", zero_division=0,
                    labels=[0, 1, 2])


def fit(net, examples, rows, recipe, header, name):
    """Trains the net -> history, a dict for each epoch.

    The last epoch is kept: the learning rate ends near 0 there, and validation chooses nothing. It
    takes place after every fourth epoch, counted from the last.
    """
    targets = examples.targets[rows["validation"]]
    run = ARCHITECTURES[DATASET][MODEL] | vars(recipe) | header.sha256
    state_path = Path(f"{name}_state.pth")
    nets = len(net.nets)   # each of them sees as many rows as there are
    batch_size = nets * min(recipe.batch_size, len(rows["train"]))
    model, train_rows, batch_size = divide_work(net, np.tile(rows["train"], nets), batch_size)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate,
        total_steps=recipe.epochs * (len(train_rows) // batch_size))
    weight = class_weights(examples.targets[rows["train"]], recipe)
    loss_function = partial(loss_of, weight, recipe.statement_weight)
    history = []
    if RESUME and state_path.exists():
        history = load_state(state_path, run, (net, optimiser, schedule))

    for epoch in range(len(history) + 1, recipe.epochs + 1):
        began = time.perf_counter()
        batches = training_batches(net, examples, train_rows, batch_size, recipe)
        loss = train_epoch(model, batches, loss_function, optimiser, schedule)
        if not is_main_process():
            continue
        history.append({"epoch": epoch, "loss": loss})
        if len(targets) and not (recipe.epochs - epoch) % 4:
            logits = predict(
                net, examples.signals, examples.features, rows["validation"], recipe.crop)
            history[-1]["validation score"] = float(validation_score(
                probabilities(logits, recipe), targets.cpu().numpy()))
        print(*(f"{name} {value:.4g}  " for name, value in history[-1].items()),
              f"{time.perf_counter() - began:.1f} s", flush=True)
        save_state(state_path, run, (net, optimiser, schedule), history)
    return history


def save_state(path, run, parts, history):
    """Saves what a stopped run goes on from; parts: net, optimiser, schedule."""
    with new_files(path) as (temporary,):
        save_pth(temporary, {"run": run, "parts": [part.state_dict() for part in parts],
                             "random": torch.get_rng_state(), "history": history})


def load_state(path, run, parts):
    """Sets net, optimiser, schedule and random numbers to a saved state -> history."""
    try:
        state = load_pth(path)
        change = first_difference(state["run"], run)
    except Exception as error:   # torch and zipfile raise errors of many kinds on damaged files
        raise SystemExit(f"{path} is damaged ({error}). Start again with RESUME = False") from error
    if change:
        raise SystemExit(f"{path} is of another run: {change}. Start again with RESUME = False")
    for part, saved in zip(parts, state["parts"]):
        part.load_state_dict(saved)
    torch.set_rng_state(state["random"])
    print(f"goes on after epoch {len(state['history'])}")
    return state["history"]


def first_difference(old, new):
    """Two dicts -> "name = old, now new" of the first value that differs, or None."""
    for name in old | new:
        if old.get(name) != new.get(name):
            return f"{name} = {old.get(name)!r}, now {new.get(name)!r}"
    return None


# ---- Several processes, started by torchrun ----

def start_processes():
    """DEVICE -> the device, after joining the processes of torchrun, if it started this one."""
    found = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    check_choice("DEVICE", DEVICE, sorted({"auto", "cpu", found}))
    device = torch.device(found if DEVICE == "auto" else DEVICE)
    if dist.is_torchelastic_launched():
        if device.type == "cuda":
            torch.cuda.set_device(dist.get_node_local_rank())
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
        if not is_main_process():
            sys.stdout = open(os.devnull, "w")
    return device


def is_main_process():
    """Whether this process validates and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def divide_work(net, rows, batch_size):
    """Net, training rows, rows a batch -> model, rows and batch size of this process."""
    if not dist.is_initialized():
        return net, rows, batch_size
    torch.manual_seed(SEED + dist.get_rank())   # each process draws other noise
    if next(net.parameters()).is_cuda:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    processes = dist.get_world_size()
    rows = rows[dist.get_rank()::processes][:len(rows) // processes]
    return nn.parallel.DistributedDataParallel(net), rows, batch_size // processes


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


def load_checkpoint(data, model, strips=False):
    """Dataset, model name, whether for strips of 10 s -> checkpoint and net.

    Stops with one sentence if the file is missing or damaged, or was trained on other data.
    """
    check_choice("MODEL", model, MODELS)
    suffix = "_strips" if strips else ""
    path = f"{data.name}_{model}{suffix}_model.pth"
    make = f'Run model_training.py: DATASET = "{data.name}", MODEL = "{model}", SECOND_NET = True'
    try:
        checkpoint = SimpleNamespace(**load_pth(path))
        checkpoint.recipe = SimpleNamespace(**checkpoint.recipe)
        checkpoint.header = SimpleNamespace(**checkpoint.header)
        if checkpoint.model != model:
            raise ValueError(f"it holds a {checkpoint.model}")
        net = Ensemble(model, **checkpoint.net_arguments)
        net.load_state_dict(checkpoint.weights)
    except FileNotFoundError:
        raise SystemExit(f"{path} is not in this folder. {make}") from None
    except Exception as error:   # torch and zipfile raise errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"{path} is not the expected checkpoint, or damaged ({reason}). {make}"
                         ) from error
    now = vars(data.header)
    was = vars(checkpoint.header) | {"versions": now["versions"]}
    if was.get("r_peaks") != now.get("r_peaks"):   # annotated and detected beats may meet
        was |= {name: now[name] for name in ("r_peaks", "class_names", "sha256")}
    change = first_difference(was, now)
    if change:
        raise SystemExit(f"{path} was trained on other .npy files ({change[:200]}): train again")
    return checkpoint, net.eval()


def warnings_of(header, recipe):
    """Header and settings -> the sentences that must stand beside every figure."""
    warnings = []
    if header.simulated:
        warnings.append("SIMULATED DATA: no figure is a result")
    if recipe.split == "random":
        warnings.append("LEAKY RANDOM SPLIT: trained on the patients of its own test rows")
    return warnings


def save_figure(figure, title, path):
    """Figure -> PNG."""
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def plot_history(history, title, path):
    """List of epochs -> PNG of the loss, and of the validation score, by epoch."""
    table = pd.DataFrame(history).set_index("epoch")
    figure = Figure(figsize=(4 * len(table.columns), 3.5), layout="constrained")
    table.plot(ax=figure.subplots(1, len(table.columns)), subplots=True, style="ko")
    save_figure(figure, title, path)


# ---- Main ----

def choose_recipe(data, changes):
    """The constants -> every setting of a net, as it travels in the checkpoint."""
    recipe = SimpleNamespace(**RECIPES[DATASET] | changes, split=SPLIT, seed=int(SEED))
    recipe.sides = choose_sides(data, SPLIT)
    if not recipe.hold_out:
        recipe.sides["train"] += recipe.sides["validation"]
        recipe.sides["validation"] = []
    recipe.task = "multilabel" if data.is_ptbxl else "multiclass"
    recipe.classes = data.header.statement_names if data.is_ptbxl else data.header.class_names
    recipe.learning_rate = float(recipe.learning_rate[MODEL])
    available = data.header.leads
    of_recipe = [name for name in available if lead_name(name) in recipe.leads]
    recipe.leads = (of_recipe or available[:1]) if LEADS is None else as_names(LEADS)
    if not set(recipe.leads) <= set(available):
        raise SystemExit(f"LEADS = {LEADS!r}: {DATASET}_signals.npy has {available}")
    recipe.rate = data.header.sampling_rate
    recipe.segment = data.signals.shape[2]
    recipe.crop = round(recipe.crop_seconds * recipe.rate)
    if recipe.crop > recipe.segment:
        raise SystemExit(f"crop_seconds makes {recipe.crop} samples, a row has {recipe.segment}")
    return recipe


def make_net(examples, rows, recipe):
    """A new net that normalises by the statistics of the training rows -> net, its arguments."""
    arguments = {
        "ensemble_size": recipe.ensemble_size,
        "channels": examples.signals.shape[1],
        "features": examples.features.shape[1],
        "samples": recipe.crop,
        "outputs": len(recipe.classes) + examples.statements.shape[1],
        "head": recipe.head,
        **ARCHITECTURES[DATASET][MODEL],
    }
    net = Ensemble(MODEL, **arguments)
    net.normalise_signals.fit(examples.signals, rows["train"])
    net.normalise_features.fit(examples.features, rows["train"])
    return net, arguments


def train(data, device, name, changes):
    """Dataset, device, name of the files, changes of the recipe -> writes the checkpoint."""
    torch.manual_seed(SEED)
    recipe = choose_recipe(data, changes)
    rows = split_rows(data, recipe)
    warnings = warnings_of(data.header, recipe)
    print(f"{name}, {recipe.task}, on {device}. Rows:",
          *(f"{len(part):,} {side}" for side, part in rows.items()))
    print(check_patients(data, rows, SPLIT), *warnings, sep="\n")
    if len(rows["train"]) < 2 or (recipe.hold_out and not len(rows["validation"])):
        raise SystemExit(f"too few labelled rows, see VALIDATION_RECORDS, SPLIT: {recipe.sides}")

    examples = make_examples(data, recipe)
    net, arguments = make_net(examples, rows, recipe)
    for part, tensor in vars(examples).items():
        setattr(examples, part, tensor.to(device))
    history = fit(net.to(device), examples, rows, recipe, data.header, name)
    if not is_main_process():
        return

    thresholds = None   # one class a row: the most probable one is called
    if data.is_ptbxl:
        logits = predict(
            net, examples.signals, examples.features, rows["validation"], recipe.crop)
        statements = data.metadata["statements"][rows["validation"]] >= 0
        thresholds = task_thresholds(logits, statements, recipe, data.header)
    checkpoint = {
        "model": MODEL, "recipe": vars(recipe), "header": vars(data.header),
        "net_arguments": arguments,
        "weights": net.cpu().state_dict(),
        "history": history, "thresholds": thresholds,
        "versions": {"torch": str(torch.__version__)},
    }
    with new_files(f"{name}_model.pth", f"{name}_training.png") as (model_path, picture_path):
        save_pth(model_path, checkpoint)
        plot_history(history, ". ".join([name, *warnings]), picture_path)
    print(f"Wrote {name}_model.pth, {name}_training.png")


def main():
    check_choice("DATASET", DATASET, RECIPES)
    check_choice("MODEL", MODEL, MODELS)
    check_choice("SPLIT", SPLIT, ["inter_patient", "all", "random"])
    check_choice("VALIDATION_FOLD", VALIDATION_FOLD, range(1, 11))
    check_choice("TEST_FOLD", TEST_FOLD, range(1, 11))
    device = start_processes()
    data = load_dataset(DATASET)
    train(data, device, f"{DATASET}_{MODEL}", {})
    if SECOND_NET:
        train(data, device, f"{DATASET}_{MODEL}_strips", STRIPS[DATASET])
    for path in Path().glob(f"{DATASET}_{MODEL}*_state.pth"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
