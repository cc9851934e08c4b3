"""Trains the reference benchmark's resnet1d_wang with the benchmark's recipe on the same PTB-XL rows, for comparison.

Run it in a folder with the ptbxl_*.npy files; about an hour on two cores:

    python /path/to/checkout/tests/resnet1d_wang.py

After every epoch the whole state goes to results/resnet1d_wang_state.pth: stopped, it goes on there when it is started again.
Writes results/resnet1d_wang.json, which tests/measure.py shows in its table; its training_seconds are the median epoch's times
their number, so that an epoch beside another job does not count.

Network: Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks", IJCNN 2017, in the form and
with the recipe of Strodthoff et al., "Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL", 2020: random
2.5 s crops, batch 128, AdamW, one-cycle to 1e-2 over 50 epochs, the maximum over half-overlapping crops.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_evaluation import multilabel_metrics  # noqa: E402
from model_training import (best_thresholds, conv, crop_starts, load_dataset, mean_and_max, split_parts,  # noqa: E402
                            split_rows, targets_of, task_rows, validation_score)
from preprocess_mitbih import new_files  # noqa: E402

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, CROP, SEED = 50, 128, 1e-2, 1e-2, 250, 0


class Block(nn.Module):
    """(n, 128, 1, t) -> (n, 128, 1, t / stride): the basic residual block with kernels 5 and 3."""

    def __init__(self, stride):
        super().__init__()
        self.layers = nn.Sequential(conv(128, 128, 5, stride), nn.BatchNorm2d(128), nn.ReLU(),
                                    conv(128, 128, 3), nn.BatchNorm2d(128))
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(conv(128, 128, 1, stride), nn.BatchNorm2d(128))

    def forward(self, x):
        return F.relu(self.layers(x) + self.shortcut(x))


class ResNet1dWang(nn.Module):
    """(n, 12, samples) standardised -> (n, 5) logits. Three blocks of width 128 after a stem without stride."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(12, 128, 7), nn.BatchNorm2d(128), nn.ReLU(), Block(1), Block(2), Block(2))
        self.head = nn.Sequential(nn.BatchNorm1d(256), nn.Dropout(0.25), nn.Linear(256, 128), nn.ReLU(),
                                  nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, 5))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = x.unsqueeze(2).to(memory_format=torch.channels_last)
        return self.head(mean_and_max(self.body(x).squeeze(2)))


@torch.no_grad()
def predict(net, signals, rows, mean, spread):
    """(n, 12, samples) mV, rows -> (rows, 5) probabilities: the maximum over half-overlapping crops."""
    net.eval()
    starts, parts = crop_starts(signals.shape[2], CROP), []
    for part in torch.from_numpy(rows).split(64):
        x = (signals[part] - mean) / spread
        parts.append(torch.stack([net(x[:, :, start:start + CROP]) for start in starts]).sigmoid().amax(dim=0))
    return torch.cat(parts)


def train_epoch(net, signals, targets, rows, mean, spread, optimiser, schedule):
    """One pass over random crops of the training rows -> mean loss."""
    net.train()
    crops, losses = signals.unfold(2, CROP, 1), []
    for batch in torch.from_numpy(rows)[torch.randperm(len(rows))].split(BATCH_SIZE)[:len(rows) // BATCH_SIZE]:
        x = (crops[batch, :, torch.randint(crops.shape[2], (len(batch),))] - mean) / spread
        loss = F.binary_cross_entropy_with_logits(net(x), targets[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def main():
    torch.manual_seed(SEED)
    Path("results").mkdir(exist_ok=True)
    state_path = Path("results/resnet1d_wang_state.pth")
    data = load_dataset("ptbxl")
    sides = task_rows(data, "multilabel", split_rows(data, "inter_patient", split_parts(data), SEED))
    signals, targets = torch.from_numpy(data.signals), targets_of(data, "multilabel")
    sample = signals[torch.from_numpy(sides["train"][::4])]   # one mean and one spread, of a quarter of the training rows
    mean, spread = sample.mean(), sample.std()
    del sample

    net = ResNet1dWang()
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, betas=(.95, .99), weight_decay=WEIGHT_DECAY, fused=True)
    steps = EPOCHS * (len(sides["train"]) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    seconds = []   # of each epoch
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        for part, value in ((net, state["net"]), (optimiser, state["optimiser"]), (schedule, state["schedule"])):
            part.load_state_dict(value)
        torch.set_rng_state(state["random"])
        seconds = state["seconds"]
        print(f"goes on after epoch {len(seconds)}")
    for epoch in range(len(seconds) + 1, EPOCHS + 1):
        began = time.perf_counter()
        loss = train_epoch(net, signals, targets, sides["train"], mean, spread, optimiser, schedule)
        seconds.append(time.perf_counter() - began)
        with new_files(state_path) as (path,):
            torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                        "random": torch.get_rng_state(), "seconds": seconds}, path)
        print(f"epoch {epoch}/{EPOCHS}  loss {loss:.4f}  {seconds[-1]:.0f} s", flush=True)

    names = [str(name) for name in data.header["class_names"]]
    probability = {side: predict(net, signals, sides[side], mean, spread) for side in ("validation", "test")}
    thresholds = best_thresholds(probability["validation"].numpy(), targets[sides["validation"]].numpy())
    metrics = multilabel_metrics(targets[sides["test"]].numpy(), probability["test"].double().numpy(), thresholds, names)
    validation = validation_score(probability["validation"].numpy(), targets[sides["validation"]].numpy(), "multilabel", names)
    with new_files("results/resnet1d_wang.json") as (path,):
        parameters = sum(values.numel() for values in net.parameters())
        path.write_text(json.dumps({"epochs": EPOCHS, "training_seconds": EPOCHS * statistics.median(seconds),
                                    "parameters": parameters, "validation_macro_auc": validation, **metrics}, indent=1) + "\n")
    print(f"macro AUC {metrics['macro_auc']:.4f}, in validation {validation:.4f}; {sum(seconds):.0f} s. "
          "Wrote results/resnet1d_wang.json")


if __name__ == "__main__":
    main()
