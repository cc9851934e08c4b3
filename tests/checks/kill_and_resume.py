"""Kills training at random moments, goes on with RESUME = True until it is done, and compares the weights with those of a run
that was never stopped: equal, bit for bit.

    python tests/kill_and_resume.py

Both datasets, simulated, the cnn, in a temporary folder; takes four minutes.
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
    killed, resumed, ended = 0, 0, 0
    while killed < KILLS or not ended:
        process = subprocess.Popen(command("model_training", **constants, RESUME=True), cwd=folder, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        lines, epochs = [], chance.randint(1, 3)
        for line in process.stdout:
            lines.append(line)
            epochs -= line[:5].strip().isdigit()
            if epochs == 0 and killed < KILLS:
                time.sleep(1.5 * chance.random() * float(line.split()[4]))   # up to one and a half epochs
                process.kill()
                break
        if process.wait() > 0:
            raise SystemExit(f"it failed: {''.join(lines)[-2000:]}")
        goes_on = [line.strip() for line in lines if "goes on" in line]
        resumed += len(goes_on)
        killed, ended = killed + (process.returncode < 0), ended + (process.returncode == 0)
        print(f"  {goes_on[0] if goes_on else 'from the start'}, {'killed' if process.returncode else 'done'}", flush=True)
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
