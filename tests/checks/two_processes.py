"""Trains every model in one process and in two (torchrun, gloo) and compares the weights, losses and probabilities.

    python tests/two_processes.py

Simulated databases in a temporary folder, the same global batch, two epochs; takes two minutes. Fails where they differ by
more than float32 summation in another order makes of it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import simulate
from harness import command

# Rounding errors grow with every step, so rates are low; BATCH_SIZE is that of both processes together.
CONSTANTS = {"EPOCHS": {"mitbih": 2, "ptbxl": 2}, "BATCH_SIZE": {"mitbih": 64, "ptbxl": 16},
             "LEARNING_RATE": {name: dict.fromkeys(("cnn", "lstm", "mlp"), 1e-4) for name in ("mitbih", "ptbxl")}}
TOLERANCE = 1e-3   # of the length of all weights together, and of a loss


def train(folder, processes, **constants):
    """Trains in the folder with so many processes -> the checkpoint."""
    run = command("model_training", **constants)
    if processes > 1:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python",
               *run]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{processes} processes: {done.stderr[-3000:]}")
    return torch.load(Path(folder, f"{constants['DATASET']}_{constants['MODEL']}_model.pth"), weights_only=True)


def differences(one, two):
    """Two checkpoints -> the difference of all weights together, in parts of their length, and the largest one of a loss."""
    a, b = (torch.cat([values.flatten().double() for values in checkpoint["weights"].values() if values.is_floating_point()])
            for checkpoint in (one, two))
    losses = [abs(x[key] - y[key]) for x, y in zip(one["history"], two["history"], strict=True)
              for key in ("train_loss", "validation_loss", "validation_score")]
    return ((a - b).norm() / a.norm()).item(), max(losses)


def main():
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        simulate.write_mitbih(Path(folder, "mit-bih-arrhythmia-database-1.0.0"), seconds=40)
        simulate.write_ptbxl(Path(folder, "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"), records=200)
        for script in ("preprocess_mitbih", "preprocess_ptbxl"):
            subprocess.run(command(script, DOWNLOAD=False), cwd=folder, check=True, capture_output=True)
        for dataset, model, task in (("mitbih", "cnn", ""), ("mitbih", "lstm", ""), ("mitbih", "mlp", ""),
                                     ("ptbxl", "cnn", "multilabel"), ("ptbxl", "lstm", "multilabel"),
                                     ("ptbxl", "mlp", "multiclass")):
            constants = {**CONSTANTS, "DATASET": dataset, "MODEL": model, "TASK": task or "multilabel"}
            weights, losses = differences(train(folder, 1, **constants), train(folder, 2, **constants))
            print(f"{dataset} {model} {task}: weights differ by {weights:.1e} of their length, losses by {losses:.1e}",
                  flush=True)
            worst = max(worst, weights, losses)
    raise SystemExit(f"more than {TOLERANCE}" if worst > TOLERANCE else 0)


if __name__ == "__main__":
    main()
