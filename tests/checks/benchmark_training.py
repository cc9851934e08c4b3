"""Compares the training here with the loop of most public code: seconds to the same score.

    cd FOLDER_WITH_MITBIH_NPY_FILES && python /path/to/checkout/tests/checks/benchmark_training.py

The usual loop: a Dataset that gives one row per item, a DataLoader with batches of 32, Adam,
`.item()` at every step. It gets the same inputs, rows and statistics, and trains a usual CNN (two
convolutions, 128 hidden units) and the cnn of this repository. Every side is scored after each
epoch on the same validation patients of DS1; no row of DS2 is read. Seconds are those of training
alone. Then the distance from the machine: the floating-point operations of an epoch over the rate
of a large matrix product, measured in the same run. Nothing else should run beside it; takes five
minutes.
"""

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch
from harness import changed
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import model_training
from model_training import Inputs

USUAL_EPOCHS = 4
SIZE = 4096   # of the matrices that measure the machine


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
        x = self.layers(self.normalise_signals(signals - model_training.offset_of(signals)))
        return self.head(torch.cat([x, self.normalise_features(features)], dim=1))


# ---- Trainings: each gives a list of the seconds so far and the score after each epoch ----

def timed_epoch(history, score, train_epoch, net, *arguments):
    """Trains an epoch and adds its seconds and score to the history -> what train_epoch returns."""
    began = time.perf_counter()
    loss = train_epoch(net, *arguments)
    before = history[-1][0] if history else 0.0
    history.append((before + time.perf_counter() - began, score(net)))
    return loss


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


def usual_training(net, examples, rows, score):
    """Trains a net in the usual loop -> history."""
    beats = TensorDataset(examples.signals, examples.features, examples.targets)
    loader = DataLoader(Subset(beats, rows["train"]), batch_size=32, shuffle=True)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    history = []
    for _ in range(USUAL_EPOCHS):
        timed_epoch(history, score, usual_epoch, net, loader, optimiser)
    return history


def training_here(net, examples, rows, recipe, score):
    """Trains a net as here -> history."""
    history = []
    timed = partial(timed_epoch, history, score, model_training.train_epoch)
    with changed(model_training, train_epoch=timed):
        model_training.fit(net, examples, rows["train"], recipe)
    return history


# ---- The machine ----

def operations_of_epoch(net, examples, rows, recipe):
    """Floating-point operations of one epoch, forwards and backwards."""
    signals, features, *_ = next(model_training.training_batches(
        net, examples, rows["train"], recipe.batch_size, recipe))
    with FlopCounterMode(display=False) as counter:
        net.train()(signals, features).sum().backward()
    return counter.get_total_flops() * (len(rows["train"]) // recipe.batch_size)


def operations_per_second(dtype):
    """The rate of a large matrix product."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    matrix @ matrix
    began = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * SIZE ** 3 / (time.perf_counter() - began)


# ---- Main ----

def measure():
    """-> dict of training -> history, operations of an epoch here."""
    data = model_training.load_dataset("mitbih")
    settings = model_training.RECIPES["mitbih"] | {"hold_out": True, "ensemble_size": 1}
    with changed(model_training, DATASET="mitbih", MODEL="cnn"):
        recipe = model_training.choose_recipe(data, settings)
        rows = model_training.split_rows(data, recipe)
        examples = model_training.make_examples(data, recipe)
        net, _ = model_training.make_net(examples, rows, recipe)

        def score(net):
            logits = model_training.predict(net, inputs, recipe.crop).mean(dim=0)
            return f1_score(examples.targets[held_out], logits.argmax(dim=1),
                            labels=[0, 1, 2], average="macro", zero_division=0)   # N, S and V
        held_out = rows["validation"]
        inputs = Inputs(examples.signals[held_out], examples.features[held_out])
        net_here, _ = model_training.make_net(examples, rows, recipe)
        histories = {
            "usual loop, usual cnn": usual_training(UsualCNN(net), examples, rows, score),
            "usual loop, this cnn": usual_training(net, examples, rows, score),
            "here": training_here(net_here, examples, rows, recipe, score)}
        return histories, operations_of_epoch(net, examples, rows, recipe)


def main():
    torch.manual_seed(0)
    histories, operations = measure()
    score = min(max(reached for _, reached in history) for history in histories.values())
    seconds = {name: next(seconds for seconds, reached in history if reached >= score)
               for name, history in histories.items()}
    for name, slow in seconds.items():
        print(f"{name:<22} score {score:.3f} after {slow:6.1f} s: "
              f"{slow / seconds['here']:.1f} times as long")
    fast = torch.cpu.get_capabilities().get("amx_bf16", False)   # as in train_epoch
    rate = operations_per_second(torch.bfloat16 if fast else torch.float32)
    epoch = np.diff([0, *(seconds for seconds, _ in histories["here"])]).min()
    print(f"An epoch: {operations / 1e9:,.0f} billion operations. Matrix products: "
          f"{rate / 1e9:,.0f} billion/s, thus {operations / rate:.2f} s; here {epoch:.2f} s, "
          f"{epoch * rate / operations:.0f} times as long")


if __name__ == "__main__":
    main()
