"""Compares published ideas with PTB-XL's recipe as it is: cnn, fold 9, three seeds.

Run it in a folder with the ptbxl_*.npy files, with the names of some leads, or without for all:

    python tests/reports/leads.py mixup "age and sex"

An idea that is more than another value of a constant replaces functions or classes of
model_training.py while it trains. Each finished training is a file of results/leads/ and is not
made again: stop the script at any time and start it again to go on. A training takes five minutes
on two cores. Writes results/leads.md: the macro AUC of the six tasks, and the gain over the recipe
as it is. Fold 10 is not read.
"""

import json
import sys
from contextlib import chdir
from functools import partial
from pathlib import Path

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

FOLDER = Path("results/leads")
DISTILLATION = "distillation of finished nets"


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
    """In half of the rows, 2 to 6 random leads are absent."""
    rows, leads, _ = signals.shape
    absent = torch.randint(2, 7, (rows, 1)) * (torch.rand(rows, 1) < 0.5)
    place = torch.rand(rows, leads).argsort(dim=1)
    return signals * (place >= absent)[:, :, None], features, targets


# ---- Inputs and targets ----

def inputs_with_age(data, recipe, plain=model_training.dataset_inputs):
    """dataset_inputs, with the age in decades and the sex as two more features."""
    signals, features = plain(data, recipe)
    age = np.nan_to_num(np.float32(data.metadata["age"]), nan=60).clip(0, 95) / 10
    person = np.column_stack([age, np.float32(data.metadata["sex"])])
    return signals, torch.cat([features, torch.from_numpy(person)], dim=1)


def fit_softly(probability, net, examples, rows, *others, plain=model_training.fit):
    """fit, with targets of the training rows half way between the truth and a probability."""
    examples.targets = examples.targets.clone()
    train = torch.from_numpy(rows["train"])
    examples.targets[train] = (examples.targets[train] + probability[train]) / 2
    return plain(net, examples, rows, *others)


def rare_weights(targets, recipe):
    """class_weights for several classes a row: a share p of the rows weighs (0.1 / p) ** 0.25."""
    share = targets.mean(dim=0).clamp_min(1e-4)
    return (0.1 / share).clamp_min(1) ** 0.25


def weighted_loss(class_weight, statement_weight, logits, targets, statements):
    """loss_of with a weight of the rows that have a class."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=class_weight)


# ---- Weights ----

def averaged_epoch(net, batches, loss_function, optimiser, schedule,
                   plain=model_training.train_epoch):
    """train_epoch that keeps, beside the weights, their moving average over some 500 steps."""
    if not hasattr(net, "average"):
        net.average = {name: values.clone() for name, values in net.state_dict().items()}

    class Step:
        def step(self):
            schedule.step()
            for name, values in net.state_dict().items():
                if values.is_floating_point():
                    net.average[name].lerp_(values, 0.002)
    return plain(net, batches, loss_function, optimiser, Step())


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


class ExcitedBlock(ResidualBlock):
    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel)
        self.layers.append(Excitation(outputs))


class ManyKernels(nn.Module):
    """Convolutions of several kernels side by side, in place of one (Szegedy et al. 2015)."""

    def __init__(self, inputs, outputs, kernels, stride):
        super().__init__()
        self.parts = nn.ModuleList(
            conv(inputs, outputs // len(kernels), kernel, stride) for kernel in kernels)

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=1)


class MultiScaleBlock(ResidualBlock):
    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel)
        self.layers[0] = ManyKernels(inputs, outputs, (3, 7, 15), 2)
        self.layers[4] = ManyKernels(outputs, outputs, (3, 5, 9), 1)


class LongBlock(ResidualBlock):
    """A residual block, then a convolution of 31 steps within each map, added to it."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__(inputs, outputs, kernel)
        self.long = nn.Sequential(
            nn.Conv2d(outputs, outputs, (1, 31), padding=(0, 15), groups=outputs, bias=False),
            nn.BatchNorm2d(outputs))

    def forward(self, x):
        x = super().forward(x)
        return x + self.long(x)


# ---- Trainings ----

TWO_SMALL_NETS = {
    "RECIPES": {"ptbxl": {"ensemble_size": 2}},
    "ARCHITECTURES": {"ptbxl": {"cnn": {"widths": [32, 64, 64, 128]}}},
}
LEADS = {   # name -> what it replaces in model_training
    "as it is": {},
    "two nets of widths 32 64 64 128": TWO_SMALL_NETS,
    "moving average of the weights": {"train_epoch": averaged_epoch, "fit": fit_average},
    "mixup": changed_batches(mixup),
    "cutmix": changed_batches(cutmix),
    "2 to 6 leads absent": changed_batches(mask_leads),
    "squeeze and excitation": {"ResidualBlock": ExcitedBlock},
    "kernels of three lengths": {"ResidualBlock": MultiScaleBlock},
    "kernels of 31 steps": {"ResidualBlock": LongBlock},
    "age and sex": {"dataset_inputs": inputs_with_age},
    "rare statements weigh more": {"class_weights": rare_weights, "loss_of": weighted_loss},
    DISTILLATION: {},
}


def teachers(data):
    """Dataset -> (n, statements) mean probabilities of the nets of measure.py ptbxl_seeds."""
    of_nets = []
    for path in sorted(Path("results").glob("ptbxl_cnn_[0-9]")):
        with chdir(path):
            checkpoint, net = model_training.load_checkpoint(data, "cnn")
        inputs = model_training.dataset_inputs(data, checkpoint.recipe)
        rows = np.arange(len(data.labels))
        logits = model_training.predict(net, *inputs, rows, checkpoint.recipe.crop)
        of_nets.append(logits.sigmoid())
    if not of_nets:
        raise SystemExit(f"{DISTILLATION} takes the nets of: measure.py ptbxl_seeds")
    return torch.stack(of_nets).mean(dim=0)


def auc_of(data, lead, seed):
    """Dataset, name of a lead, seed -> dict of task -> macro AUC of fold 9, made or read."""
    path = FOLDER / f"{lead}, fold {choose_tasks.FOLD}, seed {seed}.json"
    code = runs.code_version()
    if path.exists():
        run = json.loads(path.read_text())
        if run["code"] != code:
            raise SystemExit(f"{path} is of other code: move or delete {FOLDER}")
        return run["auc"]
    replaced = LEADS[lead]
    if lead == DISTILLATION:
        replaced = {"fit": partial(fit_softly, teachers(data))}
    with harness.changed(model_training, **replaced):
        auc = choose_tasks.auc_of(data, "cnn", seed, {})
    path.write_text(json.dumps({"code": code, "auc": auc}))
    print(lead, seed, auc, flush=True)
    return auc


def table_of(scores):
    """Dict of lead -> list of dict of task -> macro AUC, one a seed -> table of texts."""
    table = {}
    for lead, of_seeds in scores.items():
        auc = pd.DataFrame(of_seeds)
        gain = auc - pd.DataFrame(scores["as it is"])
        table[lead] = {"seeds": len(auc)} | {
            task: f"{runs.text_of(auc[task].mean())} ({gain[task].mean():+.3f})" for task in auc}
    return pd.DataFrame(table).T


def main():
    names = sys.argv[1:] or list(LEADS)
    for name in names:
        check_choice("lead", name, LEADS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = load_dataset("ptbxl")
    scores = {lead: [auc_of(data, lead, seed) for seed in choose_tasks.SEEDS]
              for lead in dict.fromkeys(["as it is", *names])}
    title = (f"Published ideas on PTB-XL's fold {choose_tasks.FOLD}, cnn: macro AUC "
             "(gain over the recipe as it is)")
    runs.write_report("results/leads.md", {title: runs.markdown(table_of(scores))}, [])


if __name__ == "__main__":
    main()
