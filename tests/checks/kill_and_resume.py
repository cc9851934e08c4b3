"""Kills training at random moments until it was killed ten times, and resumes it each time.

    python tests/checks/kill_and_resume.py

Every run that ends must have the weights and the history of a run that was never stopped, bit for
bit. Both datasets, simulated, in a temporary folder; takes three minutes.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import command, simulated_arrays

KILLS = 10
EPOCHS = 8


def run(folder, dataset, kill_after=None, **constants):
    """Trains, killed after so many epochs and a random pause -> its output, whether it ended."""
    line_of_training = command(
        "model_training", DATASET=dataset, RECIPES={dataset: {"epochs": EPOCHS}}, DEVICE="cpu",
        SECOND_NET=False, **constants)
    process = subprocess.Popen(line_of_training, cwd=folder, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"epoch {kill_after} " if kill_after else "never"):
            time.sleep(1.5 * random.random() * float(line.split()[-2]))   # s: up to 1.5 epochs
            process.kill()
    output = "".join(lines)
    if process.wait() > 0:
        raise SystemExit(f"it failed: {output[-2000:]}")
    return output, process.returncode == 0


def content_of(path):
    """Checkpoint -> its history and the bytes of its weights."""
    checkpoint = torch.load(path, weights_only=True)
    weights = {name: value.numpy().tobytes() for name, value in checkpoint["weights"].items()}
    return checkpoint["history"], weights


def check(folder, dataset):
    """Compares a whole run with killed and resumed ones -> sentence. Stops if they differ."""
    path = Path(folder, f"{dataset}_cnn_model.pth")
    run(folder, dataset)
    whole = content_of(path)
    killed = resumed = ended = epochs = 0
    while killed < KILLS or not ended:
        kill_after = epochs + random.randint(1, 3) if killed < KILLS else None
        output, done = run(folder, dataset, kill_after, RESUME=True)
        before = output.partition("resuming after epoch ")[2].split()[:1]
        resumed += bool(before)
        ended += done
        killed += not done
        epochs = 0 if done else output.count("\nepoch") + sum(map(int, before))
        print(f"  {dataset}: {'ended' if done else 'killed'} after epoch {epochs or EPOCHS}",
              flush=True)
        if done and content_of(path) != whole:
            raise SystemExit("the weights or the history DIFFER")
    if not resumed:
        raise SystemExit("no run was resumed after a kill: nothing was tested")
    return f"{dataset}: {killed} kills, {resumed} runs resumed, {ended} ended: equal, bit for bit"


def main():
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        simulated_arrays(folder, seconds=120, records=300)
        for dataset in ("mitbih", "ptbxl"):
            print(check(folder, dataset), flush=True)


if __name__ == "__main__":
    main()
