"""Trains on signals that stay on disk, and on the same signals in memory: how much memory each takes and what it costs.

    python tests/benchmark_memory.py [RECORDS]

Writes simulated PTB-XL arrays at 500 Hz (21,799 records, 5.2 GB of float32, random numbers in the place of signals) into a
temporary folder of the working directory, and trains the mlp for two epochs in processes of their own: from the memory map, as
the script does, from the map with half of that size left for the whole process and its page cache (where control groups allow
it), and from a copy in memory. Anonymous memory cannot be given back to the disk, mapped pages can: a map that is larger than
the memory is read again where pages had to go. Takes ten minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model_training  # noqa: E402
import preprocess_mitbih  # noqa: E402
import preprocess_ptbxl  # noqa: E402

RECORDS = 21799
EPOCHS = 2


def write_arrays(records):
    """Writes ptbxl_*.npy of so many records at 500 Hz, as preprocess_ptbxl.py would."""
    chance = np.random.default_rng(0)
    signals = preprocess_mitbih.RowWriter("ptbxl_signals.npy", (12, 5000), "<f4")
    for start in range(0, records, 256):
        signals.append(chance.standard_normal((min(256, records - start), 12, 5000), np.float32))
    signals.close()
    likelihoods = np.where(np.arange(5) == chance.integers(5, size=(records, 1)), 100, -1)
    metadata = np.zeros(records, [("ecg_id", "<i4"), ("patient", "U8"), ("fold", "i1"), ("age", "<f4"), ("sex", "i1"),
                                  ("superclasses", "i1", (5,)), ("statements", "i1", (71,))])
    metadata["ecg_id"], metadata["fold"], metadata["superclasses"] = (np.arange(records), np.arange(records) % 10 + 1,
                                                                      likelihoods >= 0)
    metadata["patient"], metadata["statements"] = np.arange(records).astype(str), -1
    np.save("ptbxl_metadata.npy", metadata)
    np.save("ptbxl_labels.npy", likelihoods.argmax(axis=1))
    preprocess_mitbih.save_header(
        "ptbxl_header.npy", {part: f"ptbxl_{part}.npy" for part in ("signals", "labels", "metadata")}, dataset="ptbxl",
        class_map="superclasses", class_names=preprocess_ptbxl.SUPERCLASSES, leads=preprocess_ptbxl.LEADS, sampling_rate=500,
        simulated=True, statement_names=[f"S{i}" for i in range(71)],
        made_from=json.dumps({"files": 0, "bytes": 0, "sha256": "", "constants": {}}))


def memory():
    """-> GB of this process that are anonymous, and that are pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(fields[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile")]


def train(in_memory):
    """Trains the mlp; prints JSON of the seconds an epoch and of the memory over time."""
    load, samples, done = model_training.load_dataset, [], threading.Event()
    if in_memory:
        def load_copy(name):
            data = load(name)
            data.signals = np.array(data.signals)
            return data
        model_training.load_dataset = load_copy
    threading.Thread(target=lambda: [samples.append(memory()) for _ in iter(lambda: done.wait(1), True)], daemon=True).start()
    model_training.DATASET, model_training.MODEL, model_training.EPOCHS = "ptbxl", "mlp", {"ptbxl": EPOCHS}
    model_training.CROP_SECONDS = {"ptbxl": 2.5}
    began = time.perf_counter()
    model_training.main()
    done.set()
    anonymous, files = zip(*samples)
    half = len(samples) // 2
    print(json.dumps({"seconds": time.perf_counter() - began, "anonymous": max(anonymous), "second half": max(anonymous[half:]),
                      "first half": max(anonymous[:half]), "mapped": max(files)}))


def limited(gigabytes):
    """-> a new control group with so much memory for processes and pages of files, or None where that is not allowed."""
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root, "ecg_benchmark_memory")
        try:
            group.mkdir()
            if (group / limit).exists():   # the kernel has made it
                (group / limit).write_text(str(int(gigabytes * 1e9)))
                return group
            group.rmdir()
        except OSError:
            continue
    return None


def forget_pages(name):
    """Takes the pages of a file out of memory, so that every run begins with the disk."""
    with open(name, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main():
    records, here = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS, Path(__file__).resolve()
    size, start_folder = records * 12 * 5000 * 4 / 1e9, Path.cwd()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        write_arrays(records)
        print(f"{size:.1f} GB of signals, {EPOCHS} epochs; GB of memory", flush=True)
        for name, mode in (("map", "map"), ("map, half of it fits", "map"), ("in memory", "memory")):
            group = limited(size / 2) if "half" in name else None
            if "half" in name and group is None:
                print(f"{name}: no control groups here")
                continue
            forget_pages("ptbxl_signals.npy")
            join = group and (lambda: (group / "cgroup.procs").write_text(str(os.getpid())))   # in the child
            done = subprocess.run([sys.executable, here, mode], capture_output=True, text=True, preexec_fn=join)
            if group:
                group.rmdir()
            if done.returncode:
                print(f"{name}: failed with {done.returncode} {done.stderr.strip()[-200:]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:<22}{found['seconds']:>6.0f} s   anonymous {found['anonymous']:.2f} "
                  f"(first half {found['first half']:.2f}, second half {found['second half']:.2f})   "
                  f"mapped {found['mapped']:.2f}", flush=True)
        os.chdir(start_folder)


if __name__ == "__main__":
    if sys.argv[-1] in ("map", "memory"):
        train(sys.argv[-1] == "memory")
    else:
        main()
