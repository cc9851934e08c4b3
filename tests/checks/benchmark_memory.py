"""Compares training on signals that stay on disk with training on the same signals in memory.

    python tests/checks/benchmark_memory.py [RECORDS]

Writes PTB-XL arrays at 500 Hz with random signals (21,799 records, 5.2 GB) into a temporary folder
of the working directory. Trains the mlp for two epochs, in a process of its own each time: from
the memory map, as the script does; from the map while half of its size fits into memory, where
control groups are allowed; and from a copy in memory. Mapped pages go when memory is short, and
are read again; anonymous memory cannot go. Takes ten minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import chdir, closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import changed, train

import model_training
import preprocess_ptbxl
from preprocess_mitbih import RowWriter, save_array, save_header

RECORDS = 21799
GROUPS = {   # root of the control groups, in version 2 and 1 -> file with the limit
    "/sys/fs/cgroup": "memory.max",
    "/sys/fs/cgroup/memory": "memory.limit_in_bytes",
}


def write_arrays(records):
    """Writes ptbxl_*.npy of so many records at 500 Hz, as preprocess_ptbxl.py does."""
    chance = np.random.default_rng(0)
    paths = {part: f"ptbxl_{part}.npy" for part in ("signals", "labels", "metadata", "header")}
    with closing(RowWriter(paths["signals"], (12, 5000))) as signals_file:
        for rows in np.array_split(np.arange(records), records // 256 + 1):
            signals_file.append(chance.standard_normal((len(rows), 12, 5000), np.float32))
    labels = chance.integers(5, size=records)
    names = preprocess_ptbxl.SUPERCLASSES
    metadata = np.zeros(records, [
        ("record", "U8"), ("patient", "U8"), ("fold", "i1"), ("superclasses", "i1", (5,)),
        ("statements", "i1", (5,)), ("beats", "<i2", (10,))])
    metadata["record"] = metadata["patient"] = np.arange(records).astype(str)
    metadata["fold"] = np.arange(records) % 10 + 1
    metadata["superclasses"] = np.eye(5, dtype="i1")[labels]
    metadata["statements"] = 101 * metadata["superclasses"] - 1   # 100, or -1 where absent
    metadata["beats"] = np.arange(250, 5000, 500)
    save_array(paths["labels"], labels)
    save_array(paths["metadata"], metadata)
    save_header(paths, {
        "class_names": names, "statement_names": names,
        "tasks": {"superdiagnostic": {name: [name] for name in names}},
        "leads": preprocess_ptbxl.LEADS, "sampling_rate": 500, "simulated": True})


def memory():
    """-> GB of this process: anonymous memory, mapped pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(fields[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile")]


def measure(in_memory):
    """Trains the mlp; prints JSON of the seconds and of the highest memory of both kinds."""
    load_dataset = model_training.load_dataset
    samples = [memory()]
    done = threading.Event()

    def load_copy(name):
        data = load_dataset(name)
        data.signals = np.array(data.signals)
        return data

    def watch():
        while not done.wait(0.5):
            samples.append(memory())

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    with changed(model_training, load_dataset=load_copy if in_memory else load_dataset):
        train("ptbxl", "mlp", {"epochs": 2})
    done.set()
    print(json.dumps([time.perf_counter() - began, *np.max(samples, axis=0)]))


def limited(size):
    """Makes a control group with so many bytes of memory -> its folder; None: not allowed here."""
    for root, limit in GROUPS.items():
        group = Path(root, "ecg_benchmark_memory")
        try:
            group.mkdir()
            if (group / limit).exists():   # the kernel made it
                (group / limit).write_text(str(size))
                return group
            group.rmdir()
        except OSError:
            continue
    return None


def run(mode, group=None):
    """Measures in a new process, with the signals on disk only, and in a control group."""
    with open("ptbxl_signals.npy", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def join():   # in the child
        if group:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run([sys.executable, __file__, mode], check=False, capture_output=True,
                          text=True, preexec_fn=join)
    if group:
        group.rmdir()
    if done.returncode:
        return f"failed with {done.returncode} {done.stderr.strip()[-200:]}"
    seconds, anonymous, mapped = json.loads(done.stdout.splitlines()[-1])
    return f"{seconds:>6.0f} s   anonymous {anonymous:.2f} GB   mapped {mapped:.2f} GB"


def main():
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    with tempfile.TemporaryDirectory(dir=".") as folder, chdir(folder):
        write_arrays(records)
        size = Path("ptbxl_signals.npy").stat().st_size
        print(f"{size / 1e9:.1f} GB of signals, 2 epochs", flush=True)
        print(f"memory map             {run('map')}", flush=True)
        group = limited(size // 2)
        answer = run("map", group) if group else "no control groups here"
        print(f"map, half of it fits   {answer}", flush=True)
        print(f"copy in memory         {run('copy')}", flush=True)


if __name__ == "__main__":
    if sys.argv[-1] in ("map", "copy"):
        measure(sys.argv[-1] == "copy")
    else:
        main()
