"""Trains models in one process and in two (torchrun, gloo): equal parameters, score, seconds.

    python tests/checks/two_processes.py

Simulated databases in a temporary folder; takes two minutes. Fails if the two processes end
with different parameters, or with a score that is far from the score of one process.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import changed, run_stage, simulated_arrays

import model_training

COMBINATIONS = [("mitbih", "cnn"), ("mitbih", "lstm"), ("mitbih", "mlp"), ("ptbxl", "cnn")]
EPOCHS = 8
BATCH_SIZE = 64     # rows per net, of all processes together
TOLERANCE = 0.15    # of the score; on such small data, another seed alone moves it by 0.1


def launch(folder, processes, constants):
    """Trains in the folder -> the checkpoint, and what `work` saved in each process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // processes))}
    done = subprocess.run([*launcher, __file__, json.dumps(constants)], cwd=folder,
                          env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{processes} processes: {done.stderr[-3000:]}")
    path = Path(folder, f"{constants['DATASET']}_{constants['MODEL']}_model.pth")
    ranks = [torch.load(Path(folder, f"rank{rank}.pth"), weights_only=True)
             for rank in range(processes)]
    ranks[0]["seconds"] = [float(text) for text in re.findall(r"([\d.]+) s$", done.stdout, re.M)]
    return torch.load(path, weights_only=True), ranks


def work(constants):
    """One process: trains, then saves the parameters that it ends with, its rows and batch size."""
    fit = model_training.fit
    training_batches = model_training.training_batches
    result = {}

    def observed_batches(net, examples, rows, batch_size, recipe):
        result.update(rows=rows.tolist(), batch_size=batch_size)
        return training_batches(net, examples, rows, batch_size, recipe)

    def observed_fit(net, *arguments):
        history = fit(net, *arguments)
        result["parameters"] = {name: value.detach() for name, value in net.named_parameters()}
        return history

    with changed(model_training, fit=observed_fit, training_batches=observed_batches):
        run_stage(model_training, SECOND_NET=False, **constants)
    torch.save(result, f"rank{os.environ['RANK']}.pth")


def compare(folder, dataset, model):
    """Trains with one and with two processes -> sentence. Stops if they contradict each other."""
    settings = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "hold_out": True}
    constants = {"DATASET": dataset, "MODEL": model, "DEVICE": "cpu",
                 "RECIPES": {dataset: settings}}
    scores, seconds = [], []
    for processes in (1, 2):
        checkpoint, ranks = launch(folder, processes, constants)
        scores.append(checkpoint["history"][-1]["validation score"])
        seconds.append(min(ranks[0]["seconds"]))
    one, two = (rank["parameters"] for rank in ranks)
    if not all(torch.equal(value, two[name]) for name, value in one.items()):
        raise SystemExit(f"{dataset} {model}: the processes end with different parameters")
    sentence = (f"{dataset} {model}: equal parameters in both processes; score {scores[0]:.3f} of "
                f"one process, {scores[1]:.3f} of two; fastest epoch {seconds[0]:.1f} s, "
                f"{seconds[1]:.1f} s")
    if abs(scores[0] - scores[1]) > TOLERANCE:
        raise SystemExit(f"{sentence}: the scores differ by more than {TOLERANCE}")
    return sentence


def main():
    with tempfile.TemporaryDirectory() as folder:
        simulated_arrays(folder, seconds=120, records=1500)
        for combination in COMBINATIONS:
            print(compare(folder, *combination), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(json.loads(sys.argv[1]))
    else:
        main()
