"""Compares published ideas with PTB-XL's recipe as it is: cnn, fold 9, three seeds.

Run it in a folder with the ptbxl_*.npy files, with the names of some ideas, or without for all:

    python tests/reports/published_ideas.py mixup "2 to 6 leads missing"

An idea that is more than another value of a constant replaces functions or classes of
model_training.py while it trains, five minutes on two cores. Writes results/published_ideas/, see
runs.py, and results/published_ideas.md: the macro AUC of the six tasks, and the gain over the
recipe as it is. Fold 10 is not read.
"""

import sys
from contextlib import chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import choose_tasks
import harness
import numpy as np
import pandas as pd
import runs
import torch
from torch import nn
from torch.nn import functional as F

import model_training
from model_training import ResidualBlock, conv
from preprocess_mitbih import check_choice, load_dataset

FOLDER = Path("results/published_ideas")
TEACHERS = "ptbxl_cnn_[0-9]"   # runs of measure.py ptbxl_seeds, in results/


# ---- Batches: signals (b, leads, crop), features (b, k), targets (b, statements) -> the same ----

def changed_batches(change):
    """One of the functions below -> training_batches with it."""
    plain = model_training.training_batches

    def batches(*arguments):
        for *batch, statements in plain(*arguments):
            yield *change(*batch), statements
    return {"training_batches": batches}


def draw(distribution, *arguments):
    """One draw of a numpy distribution, with torch's random numbers as its seed."""
    rng = np.random.default_rng(torch.randint(2 ** 31, (1,)).item())
    return getattr(rng, distribution)(*arguments)


def mixup(*batch):
    """Each row becomes a mean of two, by a share of Beta(0.2, 0.2) (Zhang et al. 2018)."""
    share = draw("beta", 0.2, 0.2)
    other = torch.randperm(len(batch[0]))
    return [share * x + (1 - share) * x[other] for x in batch]


def cutmix(signals, features, targets):
    """In half of the batches, a stretch of each row is that of another (Yun et al. 2019)."""
    samples = signals.shape[2]
    stretch = round(samples * draw("uniform") * (draw("uniform") < 0.5))
    start = draw("integers", samples - stretch + 1)
    other = torch.randperm(len(signals))
    signals = signals.clone()
    signals[:, :, start:start + stretch] = signals[other][:, :, start:start + stretch]
    return signals, features, torch.lerp(targets, targets[other], stretch / samples)


def mask_leads(signals, features, targets):
    """In half of the rows, 2 to 6 random leads are missing."""
    rows, leads, _ = signals.shape
    missing = torch.randint(2, 7, (rows, 1)) * (torch.rand(rows, 1) < 0.5)
    place = torch.rand(rows, leads).argsort(dim=1)
    return signals * (place >= missing)[:, :, None], features, targets


# ---- Targets ----

def teachers(data):
    """Dataset -> (n, statements) mean probabilities of the nets that the folder links to."""
    of_nets = []
    for path in sorted(Path().glob(TEACHERS)):
        with chdir(path):
            checkpoint = model_training.load_checkpoint(data, "cnn")
        rows = np.arange(len(data.labels))
        of_nets.append(runs.predictions_of(checkpoint, data, rows).logits.sigmoid())
    if not of_nets:
        raise SystemExit("the distillation takes the nets of: measure.py ptbxl_seeds")
    return torch.stack(of_nets).mean(dim=0)


def fit_softly(probability, net, examples, rows, *others, plain=model_training.fit):
    """fit, with targets of the training rows half way between the truth and a probability."""
    examples.targets = examples.targets.clone()
    examples.targets[rows] = (examples.targets[rows] + probability[rows]) / 2
    return plain(net, examples, rows, *others)


def rare_weights(targets, recipe):
    """class_weights for several classes per row: a share p of the rows weighs (0.1 / p) ** 0.25."""
    share = targets.mean(dim=0).clamp_min(1e-4)
    return (0.1 / share).clamp_min(1) ** 0.25


def weighted_loss(recipe, class_weight, logits, targets, statements):
    """loss_of with a weight of the rows that have a class."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=class_weight)


# ---- Weights ----

def averaged_epoch(net, batches, loss_function, optimiser, schedule,
                   plain=model_training.train_epoch):
    """train_epoch that also keeps the moving average of the weights over some 500 steps."""
    if not hasattr(net, "average"):
        net.average = {name: values.clone() for name, values in net.state_dict().items()}

    def step():
        schedule.step()
        for name, values in net.state_dict().items():
            if values.is_floating_point():
                net.average[name].lerp_(values, 0.002)
    return plain(net, batches, loss_function, optimiser, SimpleNamespace(step=step))


def fit_average(net, *arguments, plain=model_training.fit):
    """fit -> the average of the weights in place of the last ones."""
    history = plain(net, *arguments)
    net.load_state_dict(net.average)
    return history


# ---- Layers ----

class Excitation(nn.Sequential):
    """(n, width, 1, t) -> the same, each map weighed by the means of all (Hu et al. 2018)."""

    def __init__(self, width):
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 8, 1), nn.ReLU(),
            nn.Conv2d(width // 8, width, 1), nn.Sigmoid())

    def forward(self, x):
        return x * super().forward(x)


def excited_block(inputs, outputs, kernel):
    block = ResidualBlock(inputs, outputs, kernel)
    block.layers.append(Excitation(outputs))
    return block


class ManyKernels(nn.ModuleList):
    """Convolutions of several kernels side by side, in place of one (Szegedy et al. 2015)."""

    def forward(self, x):
        return torch.cat([layer(x) for layer in self], dim=1)


def multi_scale_block(inputs, outputs, kernel):
    block = ResidualBlock(inputs, outputs, kernel)
    width = outputs // 3
    block.layers[0] = ManyKernels(conv(inputs, width, length, 2) for length in (3, 7, 15))
    block.layers[4] = ManyKernels(conv(outputs, width, length) for length in (3, 5, 9))
    return block


class LongKernel(nn.Sequential):
    """(n, width, 1, t) -> the same, and a convolution of 31 steps within each map added to it."""

    def __init__(self, width):
        super().__init__(
            nn.Conv2d(width, width, (1, 31), padding=(0, 15), groups=width, bias=False),
            nn.BatchNorm2d(width))

    def forward(self, x):
        return x + super().forward(x)


def long_block(inputs, outputs, kernel):
    return nn.Sequential(ResidualBlock(inputs, outputs, kernel), LongKernel(outputs))


# ---- The reference benchmark's best net: Wang, Yan and Oates, IJCNN 2017, in its form there ----

class WangBlock(nn.Module):
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
    """(n, leads, samples) -> (n, outputs) logits: a stem without stride, then three blocks."""

    def __init__(self, *, channels, outputs, **_):
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, 128, 7), nn.BatchNorm2d(128), nn.ReLU(),
            WangBlock(1), WangBlock(2), WangBlock(2))
        self.head = nn.Sequential(
            nn.BatchNorm1d(256), nn.Dropout(0.25), nn.Linear(256, 128), nn.ReLU(),
            nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, outputs))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, signals, features):
        x = signals.unsqueeze(2).to(memory_format=torch.channels_last)   # (n, leads, 1, samples)
        x = self.body(x).squeeze(2)
        return self.head(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))


# ---- Trainings ----

TWO_SMALL_NETS = {"RECIPES": {"ptbxl": {
    "ensemble_size": 2, "sizes": {"cnn": {"widths": [32, 64, 64, 128]}}}}}
RESNET1D_WANG = {   # with the benchmark's recipe: an hour; this recipe has its other settings
    "MODELS": {"cnn": ResNet1dWang},
    "RECIPES": {"ptbxl": {"epochs": 50, "batch_size": 128, "learning_rate": {"cnn": 1e-2}}},
}
DISTILLATION = "distillation of finished nets"
IDEAS = {   # name -> what it replaces in model_training
    "as it is": {},
    "two nets of widths 32 64 64 128": TWO_SMALL_NETS,
    "moving average of the weights": {"train_epoch": averaged_epoch, "fit": fit_average},
    "mixup": changed_batches(mixup),
    "cutmix": changed_batches(cutmix),
    "2 to 6 leads missing": changed_batches(mask_leads),
    "squeeze and excitation": {"ResidualBlock": excited_block},
    "kernels of three lengths": {"ResidualBlock": multi_scale_block},
    "kernels of 31 steps": {"ResidualBlock": long_block},
    "rare statements weigh more": {"class_weights": rare_weights, "loss_of": weighted_loss},
    DISTILLATION: {},
    "resnet1d_wang, 50 epochs": RESNET1D_WANG,
}


def make(idea, fold, seed):
    """Name of an idea, fold, seed -> dict with the macro AUC of each task."""
    data = load_dataset("ptbxl")
    replaced = IDEAS[idea]
    if idea == DISTILLATION:
        replaced = {"fit": partial(fit_softly, teachers(data))}
    with harness.changed(choose_tasks, FOLD=fold), harness.changed(model_training, **replaced):
        auc = choose_tasks.auc_of(data, "cnn", seed, {})
    return {"auc": auc, **runs.provenance(data.header.simulated)}


def table_of(finished):
    """Finished runs -> table of texts: macro AUC of each task and its gain, one row per idea."""
    scores = {}
    for run in finished:
        scores.setdefault(run["settings"]["idea"], []).append(run["auc"])
    table = {}
    for idea, of_seeds in scores.items():
        auc = pd.DataFrame(of_seeds)
        gain = auc - pd.DataFrame(scores["as it is"])
        table[idea] = {"seeds": len(auc)} | {
            task: f"{runs.text_of(auc[task].mean())} ({gain[task].mean():+.3f})" for task in auc}
    return pd.DataFrame(table).T


def main():
    ideas = sys.argv[1:] or list(IDEAS)
    for idea in ideas:
        check_choice("idea", idea, IDEAS)
    fold = choose_tasks.FOLD
    trainings = {f"{idea}, fold {fold}, seed {seed}": {"idea": idea, "fold": fold, "seed": seed}
                 for idea in dict.fromkeys(["as it is", *ideas]) for seed in choose_tasks.SEEDS}
    files = [*Path().glob("ptbxl_*.npy"), *Path("results").glob(TEACHERS)]
    finished = runs.make_runs("published_ideas", FOLDER, trainings, files).values()
    title = (f"Published ideas on PTB-XL's fold {fold}, cnn: macro AUC "
             "(gain over the recipe as it is)")
    runs.write_report("results/published_ideas.md", {title: table_of(finished)}, finished)


if __name__ == "__main__":
    main()
