"""Trains the reference benchmark's resnet1d_wang with the benchmark's recipe on the same rows.

Run it in a folder with the ptbxl_*.npy files (over an hour on two cores):

    python tests/reports/resnet1d_wang.py

After every epoch the whole state goes to results/resnet1d_wang/state_{code version}.pth: stopped,
the script goes on from there. Writes run.json and ptbxl_resnet1d_wang_metrics.json into that
folder; measure.py shows them beside the models of this repository. training_seconds are the median
epoch's times the number of epochs, so that an epoch beside another job does not count.

Network: Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks",
IJCNN 2017, in the form and with the recipe of Strodthoff et al., "Deep Learning for ECG Analysis:
Benchmarks and Insights from PTB-XL", 2020: random 2.5 s crops, batch 128, AdamW, one-cycle to 1e-2
over 50 epochs, the maximum over half-overlapping crops.
"""

import statistics
import sys
import time
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runs
import torch
from torch import nn
from torch.nn import functional as F

import model_evaluation
import model_training
from model_training import conv, mean_and_max
from preprocess_mitbih import load_dataset, new_files

EPOCHS = 50
BATCH_SIZE = 128
LEARNING_RATE = 1e-2   # peak of the one-cycle schedule
WEIGHT_DECAY = 1e-2
CROP = 250             # samples: 2.5 s at 100 Hz
SEED = 0
FOLDER = Path("results/resnet1d_wang")


# ---- Network ----

class Block(nn.Module):
    """(n, 128, 1, t) -> (n, 128, 1, t / stride): the basic residual block, kernels 5 and 3."""

    def __init__(self, stride):
        super().__init__()
        self.layers = nn.Sequential(
            conv(128, 128, 5, stride), nn.BatchNorm2d(128), nn.ReLU(),
            conv(128, 128, 3), nn.BatchNorm2d(128))
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(conv(128, 128, 1, stride), nn.BatchNorm2d(128))

    def forward(self, x):
        return F.relu(self.layers(x) + self.shortcut(x))


class ResNet1dWang(nn.Module):
    """(n, 12, samples) standardised -> (n, 5) logits: a stem without stride, then three blocks."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv(12, 128, 7), nn.BatchNorm2d(128), nn.ReLU(), Block(1), Block(2), Block(2))
        self.head = nn.Sequential(
            nn.BatchNorm1d(256), nn.Dropout(0.25), nn.Linear(256, 128), nn.ReLU(),
            nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, 5))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = x.unsqueeze(2).to(memory_format=torch.channels_last)   # (n, 12, 1, samples)
        return self.head(mean_and_max(self.body(x).squeeze(2)))


# ---- Training and inference ----

@torch.no_grad()
def predict(net, signals, rows):
    """(n, 12, samples) standardised, rows -> (rows, 5) float64 probabilities.

    The maximum over half-overlapping crops.
    """
    net.eval()
    starts = model_training.crop_starts(signals.shape[2], CROP)
    parts = []
    for part in torch.from_numpy(rows).split(64):
        logits = torch.stack([net(signals[part, :, start:start + CROP]) for start in starts])
        parts.append(logits.sigmoid().amax(dim=0))
    return torch.cat(parts).double().numpy()


def train_epoch(net, signals, targets, rows, parts):
    """One pass over random crops of the training rows -> mean loss; parts: optimiser, schedule."""
    net.train()
    crops = signals.unfold(2, CROP, 1)   # (n, 12, starts, crop), a view
    order = torch.from_numpy(rows)[torch.randperm(len(rows))]
    order = order[:len(rows) // BATCH_SIZE * BATCH_SIZE]
    losses = []
    for batch in order.split(BATCH_SIZE):
        starts = torch.randint(crops.shape[2], (len(batch),))
        loss = F.binary_cross_entropy_with_logits(net(crops[batch, :, starts]), targets[batch])
        net.zero_grad(set_to_none=True)
        loss.backward()
        for part in parts:
            part.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def fit(net, signals, targets, rows):
    """Trains the net, from the state of a stopped run if there is one.

    Returns wall seconds and CPU seconds of each epoch.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, betas=(0.95, 0.99),
                                  weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=EPOCHS * (len(rows) // BATCH_SIZE))
    parts = [net, optimiser, schedule]
    run = {"epochs": EPOCHS}
    path = FOLDER / f"state_{runs.code_version()}.pth"
    costs = []
    if path.exists():
        costs = model_training.load_state(path, run, parts)
    for epoch in range(len(costs) + 1, EPOCHS + 1):
        began = time.perf_counter()
        cpu_began = runs.cpu_seconds()
        loss = train_epoch(net, signals, targets, rows, parts[1:])
        costs.append([time.perf_counter() - began, runs.cpu_seconds() - cpu_began])
        model_training.save_state(path, run, parts, costs)
        print(f"epoch {epoch}/{EPOCHS}  loss {loss:.4f}  {costs[-1][0]:.0f} s", flush=True)
    return costs


def standardise(signals, rows):
    """(n, 12, samples), training rows -> the signals with one mean and spread for all leads.

    As in the benchmark; a quarter of the training rows gives both.
    """
    sample = signals[torch.from_numpy(rows[::4])]
    return (signals - sample.mean()).div_(sample.std())


# ---- Main ----

def score(net, data, recipe, rows, signals):
    """Net, dataset, settings, rows of each side, inputs -> model_evaluation.Scored of the test."""
    truth = data.metadata["superclasses"] == 1
    validation = predict(net, signals, rows["validation"])
    thresholds = model_training.best_thresholds(validation, truth[rows["validation"]])
    p = predict(net, signals, rows["test"])
    return model_evaluation.Scored(
        title="ptbxl resnet1d_wang", data=data, net=net, recipe=recipe,
        names=data.header.class_names, members=None, rows=rows["test"], truth=truth[rows["test"]],
        called=p >= thresholds, probability=p, beats=None)


def main():
    torch.manual_seed(SEED)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = load_dataset("ptbxl")
    sides = model_training.choose_sides(data, "inter_patient")
    recipe = SimpleNamespace(task="multilabel", classes=data.header.class_names,
                             split="inter_patient", seed=SEED, sides=sides)
    rows = {side: part[data.labels[part] >= 0]   # with a superclass
            for side, part in model_training.split_rows(data, recipe).items()}
    signals = standardise(torch.from_numpy(data.signals), rows["train"])
    targets = torch.from_numpy(data.metadata["superclasses"].astype("float32"))
    net = ResNet1dWang()
    costs = fit(net, signals, targets, rows["train"])

    scored = score(net, data, recipe, rows, signals)
    tables = model_evaluation.make_tables(scored)
    with new_files(FOLDER / "ptbxl_resnet1d_wang_metrics.json") as (path,):
        path.write_text(model_evaluation.to_json({
            "title": scored.title, "recipe": vars(recipe), "header": vars(data.header),
            "tables": tables}))
    seconds, cpu_seconds = (EPOCHS * statistics.median(column) for column in zip(*costs))
    with chdir(FOLDER):
        runs.save_run(
            runs.code_version(), {}, epochs=EPOCHS, training_seconds=seconds,
            training_cpu_seconds=cpu_seconds, training_peak_gb=runs.peak_gb(),
            parameters=sum(weights.numel() for weights in net.parameters()))
    model_evaluation.print_tables({"all classes": tables["all classes"]})
    print(f"Wrote run.json and ptbxl_resnet1d_wang_metrics.json in {FOLDER}")


if __name__ == "__main__":
    main()
