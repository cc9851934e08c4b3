"""Runs the five scripts from end to end on simulated databases, in a minute without a download.

Writes the folder demo/ in the working directory: two simulated databases in the real formats, and
everything that the scripts make of them with their default constants. No score is a result.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import simulate

SCRIPTS = Path(__file__).resolve().parent.parent
FOLDER = Path("demo")
MITBIH_SECONDS = 240      # s per record; the real ones have 1,805
PTBXL_RECORDS = 600       # the real database has 21,799
ABNORMAL = "abnormal (shared labels)"   # MIT-BIH does not label infarction
README = """SIMULATED DATA: computed by tests/simulate.py, not recorded from patients.
Nothing in this folder is a result, and no score made from it says anything about a real ECG.
"""


def write_databases():
    """Writes both simulated databases under the names of PhysioNet's folders."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "SIMULATED.txt").write_text(README)
    simulate.write_mitbih(FOLDER / "mit-bih-arrhythmia-database-1.0.0", seconds=MITBIH_SECONDS)
    ptbxl = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"
    simulate.write_ptbxl(FOLDER / ptbxl, PTBXL_RECORDS)


def run(script):
    """Runs one script in the demo folder -> seconds. Stops the demo if it fails."""
    print(f"\n{'=' * 20} python {script}", flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, SCRIPTS / script], cwd=FOLDER, check=False).returncode
    if code:
        raise SystemExit(f"{script} failed with exit status {code}: see its last line above")
    return time.perf_counter() - began


def tables_of(name):
    """Name of a JSON report in the demo folder -> its tables."""
    return json.loads((FOLDER / name).read_text())["tables"]


def print_summary(seconds):
    """Prints the seconds of each script, the main scores and the names of the pictures."""
    overall = tables_of("mitbih_cnn_metrics.json")["all classes"]
    cross = tables_of("mitbih_to_ptbxl_cnn_cross.json")
    scores = {
        "mitbih cnn, accuracy": overall["accuracy"]["value"],
        "mitbih cnn, mean F1 of N, S, V": overall["mean f1 of N, S, V"]["value"],
        "arrhythmia or normal, AUC in-domain": cross["in-domain"][ABNORMAL]["auc"],
        "arrhythmia or normal, AUC cross-domain": cross["cross-domain"][ABNORMAL]["auc"],
    }
    print(f"\n{'=' * 20} summary of a run on SIMULATED data (no score is a result)\n")
    for name, value in seconds.items():
        print(f"{name:<38}{value:>7.1f} s")
    print(f"{'all':<38}{sum(seconds.values()):>7.1f} s\n")
    for name, score in scores.items():
        print(f"{name:<38}{score:>7.3f}")
    print("\nPictures:", *sorted(map(str, FOLDER.glob("*.png"))), sep="\n  ")


def main():
    began = time.perf_counter()
    write_databases()
    seconds = {"simulated databases": time.perf_counter() - began}
    for script in ("preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py",
                   "model_evaluation.py", "cross_dataset_validation.py"):
        seconds[script] = run(script)
    print_summary(seconds)


if __name__ == "__main__":
    main()
