"""Compares the training here with the loop of most public code: seconds to the same score.

    cd FOLDER_WITH_MITBIH_NPY_FILES && python /path/to/checkout/tests/checks/benchmark_training.py

The usual loop: a Dataset that makes one tensor an item, a DataLoader with batches of 32, Adam,
`.item()` at every step. It gets the same inputs, rows and statistics, and trains a usual CNN (two
convolutions, 128 hidden units) and the cnn of this repository. Every side is scored after each
epoch on the same validation patients of DS1; no row of DS2 is read. Seconds are those of training
alone. Then the distance from the machine: the floating-point operations of an epoch over the rate
of a large matrix product, measured in the same run. Nothing else should run beside it; takes five
minutes.
"""

import sys
import tempfile
import time
from contextlib import chdir
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch
from harness import changed, train
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import model_training

USUAL_EPOCHS = 4
SIZE = 4096   # of the matrices that measure the machine


class Beats(Dataset):
    """One tensor an item."""

    def __init__(self, examples, rows):
        self.examples = examples
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return (self.examples.signals[row], self.examples.features[row],
                self.examples.targets[row])


class UsualCNN(nn.Module):
    """(n, 2, 180), (n, 25) -> (n, 5) logits; normalised like the nets of this repository."""

    def __init__(self, net):
        super().__init__()
        self.normalise_signals = net.normalise_signals
        self.normalise_features = net.normalise_features
        self.layers = nn.Sequential(
            nn.Conv1d(2, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(64 * 45 + 25, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 5))

    def forward(self, signals, features):
        x = self.layers(self.normalise_signals(signals))
        return self.head(torch.cat([x, self.normalise_features(features)], dim=1))


# ---- Trainings ----

def usual_epoch(net, loader, optimiser):
    """One epoch of the usual loop."""
    net.train()
    total = 0.0
    for signals, features, targets in loader:
        optimiser.zero_grad()
        logits = net(signals, features)
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        optimiser.step()
        total += loss.item()


def training_here(score):
    """-> list of seconds so far and validation score of each epoch of this repository."""
    train_epoch = model_training.train_epoch
    history = []

    def timed(net, *arguments):
        began = time.perf_counter()
        loss = train_epoch(net, *arguments)
        before = history[-1][0] if history else 0.0
        history.append((before + time.perf_counter() - began, score(net)))
        return loss

    settings = {"epochs": model_training.RECIPES["mitbih"]["epochs"]}   # of one net
    arrays = list(Path.cwd().glob("mitbih_*.npy"))
    with (tempfile.TemporaryDirectory() as folder, chdir(folder),   # checkpoints stay as they are
          changed(model_training, train_epoch=timed)):
        for path in arrays:
            Path(path.name).symlink_to(path)
        train("mitbih", "cnn", settings)
    return history


def timed_training(name, net, train_epoch, epochs, score):
    """Trains and prints every epoch -> list of seconds so far and validation score."""
    seconds = 0.0
    history = []
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        train_epoch(net)
        seconds += time.perf_counter() - began
        history.append((seconds, score(net)))
        print(f"{name:<22} epoch {epoch}  {seconds:6.1f} s  validation score {history[-1][1]:.3f}",
              flush=True)
    return history


def trainings(examples, rows, recipe):
    """Examples, rows of each side, settings -> dict of name -> history of timed_training."""
    def score(net):
        logits = model_training.predict(
            net, examples.signals, examples.features, rows["validation"], recipe.crop)
        return model_training.validation_score(
            model_training.probabilities(logits, recipe),
            examples.targets[rows["validation"]].numpy())

    loader = DataLoader(Beats(examples, rows["train"]), batch_size=32, shuffle=True)
    histories = {}
    net, _ = model_training.make_net(examples, rows, recipe)
    for name, usual in (("usual loop, usual cnn", UsualCNN(net)), ("usual loop, this cnn", net)):
        optimiser = torch.optim.Adam(usual.parameters(), 1e-3)
        histories[name] = timed_training(
            name, usual, partial(usual_epoch, loader=loader, optimiser=optimiser),
            USUAL_EPOCHS, score)
    histories["here"] = training_here(score)
    return histories


def seconds_to(score, history):
    """Seconds of training until an epoch has at least this score."""
    return next(seconds for seconds, reached in history if reached >= score)


# ---- The machine ----

def operations_of_epoch(examples, rows, recipe):
    """Floating-point operations of one epoch, forwards and backwards."""
    net, _ = model_training.make_net(examples, rows, recipe)
    batch = next(model_training.training_batches(
        net, examples, rows["train"], recipe.batch_size, recipe))
    with FlopCounterMode(display=False) as counter:
        net(batch[0], batch[1]).sum().backward()
    return counter.get_total_flops() * (len(rows["train"]) // recipe.batch_size)


def operations_per_second(dtype):
    """The rate of a large matrix product."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * SIZE ** 3 / (time.perf_counter() - began)


def main():
    torch.manual_seed(0)
    data = model_training.load_dataset("mitbih")
    with changed(model_training, DATASET="mitbih", MODEL="cnn"):
        recipe = model_training.choose_recipe(data, {"hold_out": True, "ensemble_size": 1})
        rows = model_training.split_rows(data, recipe)
        examples = model_training.make_examples(data, recipe)
        histories = trainings(examples, rows, recipe)
        operations = operations_of_epoch(examples, rows, recipe)
    score = min(max(reached for _, reached in history) for history in histories.values())
    fast = seconds_to(score, histories["here"])
    for name, history in histories.items():
        slow = seconds_to(score, history)
        print(f"{name:<22} score {score:.3f} after {slow:6.1f} s: {slow / fast:.1f} times as long")
    fast = torch.cpu.get_capabilities().get("amx_bf16", False)   # as in train_epoch
    dtype = torch.bfloat16 if fast else torch.float32
    rate = operations_per_second(dtype)
    seconds = np.diff([0, *(seconds for seconds, _ in histories["here"])]).min()
    print(f"An epoch: {operations / 1e9:,.0f} billion operations. Matrix products ({dtype}): "
          f"{rate / 1e9:,.0f} billion/s, thus {operations / rate:.2f} s; here {seconds:.2f} s, "
          f"{seconds * rate / operations:.0f} times as long")


if __name__ == "__main__":
    main()
