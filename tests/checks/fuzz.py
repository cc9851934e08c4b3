"""Damages every kind of file that the scripts read, and looks at what they make of it.

    python tests/checks/fuzz.py [CASES]

CASES (1,000) for each file; takes ten minutes. A case is right if the reader refuses the file
with one sentence, or gives what it gives for the undamaged file. Any other error, other signals,
another dataset or checkpoint, and more than ten seconds are failures. WFDB's checksums
guard the signal file alone: a damaged header or annotation file may still be a valid one, with
another gain or lead name, or another beat. Such cases are counted as "other notes".
"""

import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import chdir
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import simulate
from harness import changed, damaged, run_stage, train

import model_training
import preprocess_mitbih
import preprocess_ptbxl

SECONDS = 10   # for a case
PTBXL_RECORD = "records100/00000/00003_lr"


# ---- Readers: each returns what must be right, and what a valid damaged file may change ----

def read_mitbih():
    """Reads one record as preprocess_mitbih.py does."""
    cut = preprocess_mitbih.cut_record(Path("mitdb"), "101")
    notes = [cut.leads, cut.record.rate, cut.marks.tobytes(), cut.peaks.tolist(),
             cut.beats.tobytes()]
    return cut.voltage.tobytes(), notes


def read_ptbxl():
    """Reads one record as preprocess_ptbxl.py does."""
    signals, _ = preprocess_ptbxl.read_record(Path("ptbxl"), PTBXL_RECORD)
    return signals.tobytes(), None


def any_valid(read):
    """A reader -> the same one for a damaged header, which may change all that is read."""
    return lambda: (None, read())


def read_dataset():
    """Reads all arrays of a dataset."""
    data = model_training.load_dataset("mitbih")
    arrays = [getattr(data, part).tobytes() for part in data.header.sha256]
    return (arrays, vars(data.header)), None


def read_checkpoint():
    """Loads a checkpoint and its net."""
    checkpoint = model_training.load_checkpoint(model_training.load_dataset("mitbih"), "mlp")
    content = {**vars(checkpoint), "recipe": vars(checkpoint.recipe),
               "header": vars(checkpoint.header), "net": checkpoint.net.state_dict()}
    return plain(content), None


def plain(value):
    """Dicts, lists and tensors -> the same with bytes for tensors, so that == compares them."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.numpy().tobytes()
    return value


# ---- Cases ----

def outcome(read, right):
    """A reader, its result for the undamaged file -> what it makes of the damaged one."""
    signal.alarm(SECONDS)
    try:
        result, notes = read()
    except (SystemExit, ValueError) as error:   # main() makes a SystemExit of a ValueError
        sentence = str(error)
        return "FAILED: no sentence" if "\n" in sentence or not sentence else "refused"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
    if result != right[0]:
        return "FAILED: another result"
    return "same result" if notes == right[1] else "other notes"


def fuzz(path, read, cases):
    """One file and its reader -> Counter of outcomes; prints it. The file is left as it was."""
    path = Path(path)
    chance = random.Random(path.name)
    content = path.read_bytes()
    right = read()
    if read() != right:
        raise SystemExit(f"{read.__name__} gives another result each time")
    outcomes = Counter()
    slowest = 0.0
    for _ in range(cases):
        path.write_bytes(damaged(content, chance))
        began = time.perf_counter()
        outcomes[outcome(read, right)] += 1
        slowest = max(slowest, time.perf_counter() - began)
    path.write_bytes(content)
    print(f"{path.name:<24}slowest {slowest:.2f} s  {dict(outcomes)}", flush=True)
    return outcomes


def prepare():
    """Writes small databases, the arrays of one and a checkpoint to the working folder."""
    simulate.write_mitbih("mitdb", records=("101", "114", "124", "203", "220", "223"), seconds=20)
    simulate.write_ptbxl("ptbxl", records=20)
    run_stage(preprocess_mitbih)
    train("mitbih", "mlp")


def main():
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    warnings.simplefilter("ignore")
    # A slow case ends with a KeyboardInterrupt, because a reader may catch an Exception.
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    # A size read from a damaged file must not fill the memory.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    readers = {"mitdb/101.hea": any_valid(read_mitbih), "mitdb/101.dat": read_mitbih,
               "mitdb/101.atr": read_mitbih, f"ptbxl/{PTBXL_RECORD}.hea": any_valid(read_ptbxl),
               f"ptbxl/{PTBXL_RECORD}.dat": read_ptbxl}
    readers |= {f"mitbih_{part}.npy": read_dataset
                for part in ("signals", "records", "labels", "metadata", "annotations", "header")}
    readers["mitbih_mlp_model.pth"] = read_checkpoint
    total = Counter()
    with (tempfile.TemporaryDirectory() as folder, chdir(folder),
          changed(preprocess_mitbih, DATA_DIR="mitdb", DOWNLOAD=False),
          changed(preprocess_ptbxl, DATA_DIR="ptbxl")):
        prepare()
        for path, read in readers.items():
            total += fuzz(path, read, cases)
    failures = {reason: count for reason, count in total.items() if reason.startswith("FAILED")}
    print(f"{total.total():,} cases, {total['other notes']} with other notes; "
          f"failures: {failures or 'none'}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
