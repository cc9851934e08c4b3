"""Compares training on signals that stay on disk with training on the same signals in memory.

    python tests/checks/benchmark_memory.py [RECORDS]

Writes PTB-XL arrays at 500 Hz with random signals (21,799 records, 5.2 GB) into a temporary folder
of the working directory. Trains the mlp for two epochs, in a process of its own each time: from
the memory map, as the script does, and from a copy in memory. Mapped pages go when memory is
short, and are read again; anonymous memory cannot go. Takes seven minutes.
"""

import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import chdir
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import changed, train

import model_training
from preprocess_mitbih import load_dataset, row_writer, save_array, save_header
from preprocess_ptbxl import LEADS, SUPERCLASSES


def write_arrays(records):
    """Writes ptbxl_*.npy of so many records at 500 Hz, as preprocess_ptbxl.py does."""
    chance = np.random.default_rng(0)
    paths = {part: f"ptbxl_{part}.npy" for part in ("signals", "labels", "metadata", "header")}
    with row_writer(paths["signals"], (12, 5000)) as append:
        for rows in np.array_split(np.arange(records), records // 256 + 1):
            append(chance.standard_normal((len(rows), 12, 5000), np.float32))
    labels = chance.integers(5, size=records)
    metadata = np.zeros(records, [
        ("record", "U8"), ("patient", "U8"), ("fold", "i1"), ("statements", "i1", (5,)),
        ("beats", "<i2", (10,))])
    metadata["record"] = metadata["patient"] = np.arange(records).astype(str)
    metadata["fold"] = np.arange(records) % 10 + 1
    metadata["statements"] = 101 * np.eye(5, dtype="i1")[labels] - 1   # 100, or -1: not stated
    metadata["beats"] = np.arange(250, 5000, 500)
    save_array(paths["labels"], labels)
    save_array(paths["metadata"], metadata)
    save_header(paths, {
        "kind": "records", "class_names": SUPERCLASSES, "statement_names": SUPERCLASSES,
        "tasks": {"superdiagnostic": {name: [name] for name in SUPERCLASSES}},
        "leads": LEADS, "sampling_rate": 500, "simulated": True})


def memory():
    """-> GB of this process: anonymous memory, mapped pages of files."""
    status = Path("/proc/self/status").read_text()
    return [int(kb) / 1e6 for kb in re.findall(r"Rss(?:Anon|File):\s+(\d+)", status)]


def load_copy(name):
    """load_dataset, with the signals in memory."""
    data = load_dataset(name)
    data.signals = np.array(data.signals)
    return data


def measure(load):
    """Trains the mlp; prints the seconds and the highest memory of both kinds."""
    samples = [memory()]
    done = threading.Event()

    def watch():
        while not done.wait(0.5):
            samples.append(memory())

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    with changed(model_training, load_dataset=load):
        train("ptbxl", "mlp", {"epochs": 2})
    done.set()
    anonymous, mapped = np.max(samples, axis=0)
    print(f"{load.__name__}: {time.perf_counter() - began:.1f} s, anonymous {anonymous:.2f} GB, "
          f"mapped {mapped:.2f} GB", flush=True)


def main():
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 21799
    with tempfile.TemporaryDirectory(dir=".") as folder, chdir(folder):
        write_arrays(records)
        for load in (load_dataset, load_copy):
            subprocess.run([sys.executable, __file__, load.__name__], check=True)


if __name__ == "__main__":
    if sys.argv[-1].startswith("load_"):
        measure({"load_dataset": load_dataset, "load_copy": load_copy}[sys.argv[-1]])
    else:
        main()
