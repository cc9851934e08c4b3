"""Runs the five scripts from end to end on simulated databases, in about a minute and without a download.

Writes the folder demo/ in the working directory: two simulated databases in the real formats, and everything that the
scripts make of them with their default constants. No figure of it is a result.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import simulate

SCRIPTS = Path(__file__).resolve().parent.parent
FOLDER = Path("demo")
MITBIH_SECONDS = 240      # s a record; the real ones have 1,805
PTBXL_RECORDS = 600       # the real database has 21,799
README = """SIMULATED DATA: computed by tests/simulate.py, not recorded from patients.
Nothing in this folder is a result, and no figure made from it says anything about a real ECG.
"""


def write_databases():
    """Writes both simulated databases under the names of PhysioNet's folders."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "SIMULATED.txt").write_text(README)
    simulate.write_mitbih(FOLDER / "mit-bih-arrhythmia-database-1.0.0", seconds=MITBIH_SECONDS)
    simulate.write_ptbxl(FOLDER / "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3", PTBXL_RECORDS)


def run(script):
    """Runs one script in the demo folder -> seconds. Stops the demo when it fails."""
    print(f"\n{'=' * 20} python {script}", flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, SCRIPTS / script], cwd=FOLDER).returncode
    if code:
        raise SystemExit(f"{script} failed with exit status {code}: see its last line above")
    return time.perf_counter() - began


def print_summary(seconds):
    """Prints the seconds of every script, the main figures of the simulated run and where the pictures are."""
    metrics = json.loads((FOLDER / "mitbih_cnn_metrics.json").read_text())
    cross = json.loads((FOLDER / "mitbih_to_ptbxl_cnn_cross.json").read_text())
    print(f"\n{'=' * 20} summary of a run on SIMULATED data (no figure is a result)\n")
    for name, value in seconds.items():
        print(f"{name:<34}{value:>8.1f} s")
    print(f"{'all':<34}{sum(seconds.values()):>8.1f} s\n")
    print(f"{'mitbih cnn, test records':<34}{'accuracy':>9}{metrics['accuracy']:>8.3f}   "
          f"mean F1 of N, S, V {metrics['mean_f1_nsv']:.3f}")
    print(f"{'normal or abnormal, in-domain':<34}{'AUC':>9}{cross['in_domain']['auc']['value']:>8.3f}")
    print(f"{'the same on the other dataset':<34}{'AUC':>9}{cross['cross_domain']['auc']['value']:>8.3f}")
    print("\nPictures:", *sorted(map(str, FOLDER.glob("*.png"))), sep="\n  ")


def main():
    began = time.perf_counter()
    write_databases()
    seconds = {"simulated databases": time.perf_counter() - began}
    for script in ("preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py", "model_evaluation.py",
                   "cross_dataset_validation.py"):
        seconds[script] = run(script)
    print_summary(seconds)


if __name__ == "__main__":
    main()
