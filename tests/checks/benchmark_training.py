"""Compares the training of this repository with the loop that most public code for MIT-BIH uses, in one run on two cores.

Run it in a folder with the mitbih_*.npy files (about six minutes); nothing else should run beside it:

    python /path/to/checkout/tests/benchmark_training.py

The usual loop: a Dataset that makes one tensor an item, a DataLoader with batches of 32, float32, `.item()` every step; a CNN of
two convolutions and 128 hidden units, and a bidirectional LSTM of two layers over all 360 samples. Both get the same rows of DS1.
Printed: beats/s in training, and for the CNN the seconds and the figures on DS2 after EPOCHS epochs of the usual loop, beside
those after each epoch of this repository's models.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model_training  # noqa: E402

EPOCHS = 5             # of the usual CNN
LSTM_BATCHES = 60      # of the usual LSTM: enough for its speed; an epoch of it takes five minutes


class Beats(Dataset):
    """One tensor an item."""

    def __init__(self, signals, labels):
        self.signals, self.labels = signals, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.tensor(self.signals[index], dtype=torch.float32), torch.tensor(self.labels[index])


class UsualCNN(nn.Module):
    """(n, 1, 360) mV -> (n, 5) logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(),
            nn.MaxPool1d(2), nn.Flatten(), nn.Linear(64 * 90, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 5))

    def forward(self, x):
        return self.layers(x)


class UsualLSTM(nn.Module):
    """(n, 1, 360) mV -> (n, 5) logits."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 128, 2, batch_first=True, bidirectional=True), nn.Linear(256, 5)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(1, 2))[0][:, -1])


def usual_epoch(net, loader, optimiser, batches=None):
    """One epoch of the usual loop, or some batches of it -> beats/s."""
    net.train()
    began, seen, losses = time.perf_counter(), 0, 0.0
    for number, (x, y) in enumerate(loader):
        if number == batches:
            break
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
        losses += loss.item()
        seen += len(y)
    return seen / (time.perf_counter() - began)


def scores(probability, labels):
    """(n, classes) probabilities or logits of the test rows, their classes -> accuracy and mean F1 of N S V as text."""
    predicted = probability.argmax(axis=1)
    f1 = f1_score(labels, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    return f"accuracy {np.mean(predicted == labels):.3f}, mean F1 of N S V {f1:.3f}"


def usual(data, sides):
    """Trains the usual CNN for EPOCHS epochs and the usual LSTM for some batches; prints speed and figures."""
    labels = np.array(data.labels)
    loader = DataLoader(Beats(np.array(data.signals[sides["train"]]), labels[sides["train"]]), batch_size=32, shuffle=True)
    net = UsualCNN()
    optimiser, began = torch.optim.Adam(net.parameters(), 1e-3), time.perf_counter()
    speed = np.mean([usual_epoch(net, loader, optimiser) for _ in range(EPOCHS)])
    seconds = time.perf_counter() - began
    with torch.no_grad():
        parts = np.array_split(sides["test"], 100)
        logits = torch.cat([net.eval()(torch.from_numpy(np.array(data.signals[part]))) for part in parts])
    figures = scores(logits.numpy(), labels[sides["test"]])
    print(f"usual cnn    {speed:7,.0f} beats/s, {EPOCHS} epochs in {seconds:.0f} s: {figures}", flush=True)
    lstm = UsualLSTM()
    speed_lstm = usual_epoch(lstm, loader, torch.optim.Adam(lstm.parameters(), 1e-3), LSTM_BATCHES)
    print(f"usual lstm   {speed_lstm:7,.0f} beats/s", flush=True)
    return seconds, speed, speed_lstm


def ours(data, sides, model, usual_seconds, usual_speed):
    """Trains a model of this repository with its default constants; prints the figures on DS2 after every epoch."""
    model_training.MODEL = model
    tensors = [*model_training.make_inputs(data, **model_training.input_settings(data)),
               model_training.targets_of(data, "multiclass"), model_training.statements_of(data)]
    crop = tensors[0].shape[2]
    net, _ = model_training.make_net(data, tensors, sides["train"], crop)
    spent, original = [], model_training.train_epoch

    def timed(net, *arguments):
        began = time.perf_counter()
        loss = original(net, *arguments)
        spent.append(time.perf_counter() - began)
        logits = model_training.predict(net, *tensors[:2], sides["test"], crop)
        probability = model_training.probabilities(logits, "multiclass", 5, records[sides["test"]], prior)
        print(f"{model:<5} epoch {len(spent)}, {sum(spent):5.1f} s of training ({usual_seconds / sum(spent):.1f} times less than the "
              f"usual cnn): {scores(probability, tensors[2][sides['test']].numpy())}", flush=True)
        return loss
    model_training.train_epoch = timed
    prior = model_training.record_prior(tensors[2], sides["train"], [str(name) for name in data.header["class_names"]],
                                        ["N", "S"])
    records = data.metadata["record"]
    model_training.fit(net, tensors, sides, "multiclass", data.header["class_names"], crop, records[sides["validation"]], prior,
                       model_training.made_with(data))
    Path(f"mitbih_{model}_state.pth").unlink()
    model_training.train_epoch = original
    speed = len(spent) * len(sides["train"]) / sum(spent)
    print(f"{model:<12} {speed:7,.0f} beats/s, {speed / usual_speed:.1f} times the usual {model}", flush=True)


def main():
    torch.manual_seed(0)
    model_training.DATASET = "mitbih"
    data = model_training.load_dataset("mitbih")
    sides = model_training.split_rows(data, "inter_patient", model_training.split_parts(data), 0)
    seconds, speed, speed_lstm = usual(data, sides)
    ours(data, sides, "cnn", seconds, speed)
    ours(data, sides, "lstm", seconds, speed_lstm)


if __name__ == "__main__":
    main()
