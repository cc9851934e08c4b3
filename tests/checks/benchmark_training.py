"""Compares the training here with the loop of most public code for MIT-BIH: seconds to a score.

    cd FOLDER_WITH_MITBIH_NPY_FILES && python /path/to/checkout/tests/checks/benchmark_training.py

The usual loop: a Dataset that makes one tensor an item, a DataLoader with batches of 32, `.item()`
at every step; a CNN of two convolutions and 128 hidden units, and a bidirectional LSTM of two
layers, on the 360 samples of a beat in mV. Both sides train on the same rows, and are scored on the
same validation rows after every epoch; no test row is read. Seconds are those of training alone.
Nothing else should run beside it; takes eight minutes.
"""

import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import changed, train

import model_training

EPOCHS = {"usual": 5, "cnn": 6, "lstm": 1}
LSTM_BATCHES = 60   # of the usual LSTM: enough for its speed, an epoch takes five minutes


class Beats(Dataset):
    """One tensor an item."""

    def __init__(self, signals, labels):
        self.signals = signals
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        signal = torch.tensor(self.signals[index], dtype=torch.float32)
        return signal, torch.tensor(self.labels[index])


class UsualCNN(nn.Sequential):
    """(n, 1, 360) mV -> (n, 5) logits."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
            nn.Flatten(), nn.Linear(64 * 90, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 5))


class UsualLSTM(nn.Module):
    """(n, 1, 360) mV -> (n, 5) logits."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 128, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 5)

    def forward(self, x):
        steps, _ = self.lstm(x.transpose(1, 2))
        return self.head(steps[:, -1])


def usual_epoch(net, loader, optimiser, batches=None):
    """One epoch of the usual loop, or so many batches of it -> seconds, beats seen."""
    net.train()
    began = time.perf_counter()
    beats = 0
    total = 0.0
    for number, (x, y) in enumerate(loader):
        if number == batches:
            break
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        total += loss.item()
        beats += len(y)
    return time.perf_counter() - began, beats


def usual_training():
    """-> seconds and validation score of each epoch of the usual CNN, beats/s of both nets."""
    data = model_training.load_dataset("mitbih")
    rows = model_training.split_rows(data, model_training.choose_recipe(data))
    labels = np.array(data.labels)
    beats = Beats(np.array(data.signals[rows["train"]]), labels[rows["train"]])
    loader = DataLoader(beats, batch_size=32, shuffle=True)
    signals = torch.from_numpy(data.signals[rows["validation"]])
    targets = torch.from_numpy(labels[rows["validation"]])
    net = UsualCNN()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    epochs = []
    for _ in range(EPOCHS["usual"]):
        seconds, _ = usual_epoch(net, loader, optimiser)
        with torch.no_grad():
            logits = torch.cat([net.eval()(part) for part in signals.split(512)])
        score = model_training.validation_score(logits.numpy(), targets, data.header.class_names)
        epochs.append((seconds, score))
    speed = len(beats) / np.mean([seconds for seconds, _ in epochs])
    lstm = UsualLSTM()
    optimiser = torch.optim.Adam(lstm.parameters(), 1e-3)
    seconds, seen = usual_epoch(lstm, loader, optimiser, LSTM_BATCHES)
    return epochs, {"cnn": speed, "lstm": seen / seconds}, len(beats)


def training_here(model):
    """-> seconds and validation score of each epoch of a model of this repository."""
    train_epoch = model_training.train_epoch
    seconds = []

    def timed(*arguments):
        began = time.perf_counter()
        loss = train_epoch(*arguments)
        seconds.append(time.perf_counter() - began)
        return loss

    with changed(model_training, train_epoch=timed):
        history = train("mitbih", model, {"epochs": EPOCHS[model]})["history"]
    return [(spent, epoch["validation score"]) for spent, epoch in zip(seconds, history)]


def seconds_to(score, epochs):
    """Seconds of training until an epoch has at least this score."""
    first = next(number for number, (_, reached) in enumerate(epochs, 1) if reached >= score)
    return sum(seconds for seconds, _ in epochs[:first])


def print_epochs(name, epochs):
    for number, (_, score) in enumerate(epochs, 1):
        seconds = sum(spent for spent, _ in epochs[:number])
        print(f"{name:<10} epoch {number}  {seconds:6.1f} s  validation score {score:.3f}")


def main():
    torch.manual_seed(0)
    arrays = list(Path.cwd().glob("mitbih_*.npy"))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):   # checkpoints stay as they are
        for path in arrays:
            Path(path.name).symlink_to(path)
        usual, usual_speed, beats = usual_training()
        here = {model: training_here(model) for model in ("cnn", "lstm")}
    print_epochs("usual cnn", usual)
    print_epochs("cnn here", here["cnn"])
    score = min(max(score for _, score in epochs) for epochs in (usual, here["cnn"]))
    slow = seconds_to(score, usual)
    fast = seconds_to(score, here["cnn"])
    print(f"Score {score:.3f}: usual cnn {slow:.1f} s, cnn here {fast:.1f} s: {slow / fast:.1f} "
          "times as fast")
    for model, epochs in here.items():
        speed = beats * len(epochs) / sum(seconds for seconds, _ in epochs)
        print(f"{model}: usual {usual_speed[model]:,.0f} beats/s, here {speed:,.0f} beats/s: "
              f"{speed / usual_speed[model]:.1f} times as fast")


if __name__ == "__main__":
    main()
