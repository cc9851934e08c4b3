"""Kills training at random moments, goes on with RESUME = True until it is done, and compares the weights with those of a run
that was never stopped: equal, bit for bit.

    python tests/kill_and_resume.py

Both datasets, simulated, the cnn, in a temporary folder; takes three minutes.
"""

import random
import subprocess
import tempfile
import time
from pathlib import Path

import torch

import simulate
from harness import command

CONSTANTS = {"MODEL": "cnn", "EPOCHS": {"mitbih": 8, "ptbxl": 8}}
KILLS = 10


def equal(one, two):
    """Whether two checkpoints have the same weights and history, bit for bit."""
    return (one["history"] == two["history"]
            and all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"]))


def train_with_kills(folder, path, whole, chance, constants):
    """Starts the training again and again until ten were killed and one ended -> how often it went on, and ended.

    Every run that ends must have the weights of the whole one.
    """
    killed, resumed, ended, began = 0, 0, 0, time.perf_counter()
    subprocess.run(command("model_training", **constants), cwd=folder, check=True, capture_output=True)
    seconds = time.perf_counter() - began   # of a run without a kill
    while killed < KILLS or not ended:
        process = subprocess.Popen(command("model_training", **constants, RESUME=True), cwd=folder, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        try:
            out, message = process.communicate(timeout=chance.uniform(.5, .95) * seconds if killed < KILLS else None)
        except subprocess.TimeoutExpired:
            process.kill()
            out, message = process.communicate()
        if process.returncode > 0:
            raise SystemExit(f"it failed: {message[-2000:]}")
        resumed, killed, ended = resumed + ("goes on" in out), killed + (process.returncode < 0), ended + (process.returncode == 0)
        print(f"  {next((line for line in out.splitlines() if 'goes on' in line), 'from the start')}, "
              f"{'killed' if process.returncode else 'done'}", flush=True)
        if process.returncode == 0 and not equal(whole, torch.load(path, weights_only=True)):
            raise SystemExit("the weights or the history DIFFER")
    if not resumed:
        raise SystemExit("no run went on after a kill: nothing was tested")
    return resumed, ended


def main():
    with tempfile.TemporaryDirectory() as folder:
        simulate.write_mitbih(Path(folder, "mit-bih-arrhythmia-database-1.0.0"), seconds=120)
        simulate.write_ptbxl(Path(folder, "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"), records=300)
        for script in ("preprocess_mitbih", "preprocess_ptbxl"):
            subprocess.run(command(script, DOWNLOAD=False), cwd=folder, check=True, capture_output=True)
        for dataset in ("mitbih", "ptbxl"):
            constants, path = {**CONSTANTS, "DATASET": dataset}, Path(folder, f"{dataset}_cnn_model.pth")
            subprocess.run(command("model_training", **constants), cwd=folder, check=True, capture_output=True)
            whole = torch.load(path, weights_only=True)
            resumed, ended = train_with_kills(folder, path, whole, random.Random(dataset), constants)
            print(f"{dataset}: killed {KILLS} times, gone on {resumed} times, ended {ended} times: weights and history equal, "
                  "bit for bit")


if __name__ == "__main__":
    main()
