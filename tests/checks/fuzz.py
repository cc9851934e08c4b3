"""Flips, cuts and scrambles bytes of every kind of file that the scripts read, a thousand cases each, and looks what they do.

    python tests/fuzz.py [CASES]

A case is right when the reader stops with one sentence, or gives what the undamaged file gives. It fails on any other error, on
another result, and after ten seconds. WFDB files are read twice: with the published SHA256SUMS.txt beside them, and without it,
where a damaged byte that makes another valid file cannot be told; these are counted as "another result".
"""

import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import model_evaluation  # noqa: E402
import model_training  # noqa: E402
import preprocess_mitbih  # noqa: E402
import preprocess_ptbxl  # noqa: E402
import simulate  # noqa: E402
from harness import write_sums  # noqa: E402

SECONDS = 10   # for a case


def damaged(content, chance):
    """Bytes -> the same with a bit flipped, bytes replaced, a part removed or repeated, the end cut, or nothing like it."""
    content, place = bytearray(content), chance.randrange(len(content))
    match chance.randrange(7):
        case 0 | 1:
            content[place] ^= 1 << chance.randrange(8)
        case 2:
            for _ in range(chance.randrange(1, 20)):
                content[chance.randrange(len(content))] = chance.randrange(256)
        case 3:
            del content[place:]
        case 4:
            del content[place:place + chance.randrange(1, 50)]
        case 5:
            content[place:place] = content[:chance.randrange(1, 50)]
        case 6:
            content = bytearray(chance.randbytes(chance.randrange(0, 3000)))
    return bytes(content)


def same(a, b):
    """Whether two results of a reader are equal: dicts, lists, arrays, tensors and plain values."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f")) if isinstance(a, np.ndarray) else a == b


class TooSlow(BaseException):
    """Not an Exception, which a reader may catch."""


def too_slow(*_):
    raise TooSlow(f"more than {SECONDS} s")


def outcome(read, right, refusal=SystemExit):
    """A reader, what it gives for the undamaged file, how it refuses -> "error", "same result", or what is wrong."""
    signal.alarm(SECONDS)
    try:
        found = read()
        return "same result" if same(right, found) else "ANOTHER RESULT"
    except refusal as error:
        if "\n" in str(error) or not str(error):
            return f"NO SENTENCE: {error!r}"
        return "error"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)


def fuzz(name, path, read, cases, refusal=SystemExit):
    """One file and its reader -> Counter of outcomes; prints them. The file is left as it was."""
    chance, content = random.Random(name), path.read_bytes()
    right, outcomes, began, slowest = read(), Counter(), time.perf_counter(), 0
    for _ in range(cases):
        path.write_bytes(damaged(content, chance))
        start = time.perf_counter()
        outcomes["same result" if path.read_bytes() == content else outcome(read, right, refusal)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    path.write_bytes(content)
    print(f"{name:<44}{time.perf_counter() - began:>6.0f} s, slowest {slowest:.2f} s  {dict(outcomes)}", flush=True)
    return outcomes


def mitbih_reader(record):
    """-> a function that reads one MIT-BIH record as the script does."""
    def read():
        source = preprocess_mitbih.Source("mitdb")
        for end in ("hea", "dat", "atr"):
            source.read(f"{record}.{end}")
        found = preprocess_mitbih.read_record("mitdb", record, ["MLII"], "first", 360)
        return {key: value for key, value in found.items() if key != "simulated"}   # a comment, not a number
    return read


def ptbxl_reader(name):
    """-> a function that reads one PTB-XL record as the script does."""
    def read():
        source = preprocess_ptbxl.Source("ptbxl")
        source.read(f"{name}.hea")
        source.read(f"{name}.dat")
        return preprocess_ptbxl.read_signals(Path("ptbxl") / name, 100)[0]
    return read


def dataset_reader():
    """All arrays of a dataset as copies."""
    data = model_training.load_dataset("mitbih")
    return [np.array(data.signals), np.array(data.labels), np.array(data.metadata).tobytes(), data.header.tobytes()]


def checkpoint_reader():
    checkpoint, net = model_evaluation.load_checkpoint("mitbih", "mlp")
    return [checkpoint, dict(net.state_dict())]


def state_reader():
    """What a run that goes on takes from the state: history, best epoch, weights, optimiser, schedule, random numbers."""
    checkpoint, net = model_evaluation.load_checkpoint("mitbih", "mlp")
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1, total_steps=2)
    configuration = {**model_training.made_with(model_training.load_dataset("mitbih")), "device": "cpu"}
    history, best = model_training.load_state("mitbih_mlp_state.pth", configuration, net, optimiser, schedule,
                                              torch.device("cpu"))
    return [history, best, dict(net.state_dict()), optimiser.state_dict(), schedule.state_dict(), torch.get_rng_state()]


def prepare():
    """Writes small databases, arrays, a checkpoint and a state into the working folder."""
    simulate.write_mitbih("mitdb", records=("101", "114", "124", "203", "220", "223"), seconds=20)
    simulate.write_ptbxl("ptbxl", records=20)
    preprocess_mitbih.DATA_DIR = "mitdb"
    preprocess_mitbih.main()
    model_training.MODEL, model_training.EPOCHS = "mlp", {"mitbih": 1}
    unlink, Path.unlink = Path.unlink, lambda path, missing_ok=False: None if "state" in path.name else unlink(path, missing_ok)
    model_training.main()   # its state stays
    Path.unlink = unlink


def main():
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    # A size read from a damaged file must not fill the memory.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        total, without = Counter(), Counter()
        record = "records100/00000/00003_lr"
        for sums in (False, True):
            if sums:
                write_sums("mitdb")
                write_sums("ptbxl")
            for path, read in ((Path("mitdb/101.hea"), mitbih_reader("101")), (Path("mitdb/101.dat"), mitbih_reader("101")),
                               (Path("mitdb/101.atr"), mitbih_reader("101")),
                               (Path("ptbxl", record + ".hea"), ptbxl_reader(record)),
                               (Path("ptbxl", record + ".dat"), ptbxl_reader(record))):
                what = f"{path.name}, {path.parts[0]}, {'with' if sums else 'no'} SHA256SUMS.txt"
                found = fuzz(what, path, read, cases,
                             (SystemExit, ValueError))   # the scripts make a SystemExit of it, or skip the record
                (total if sums else without).update(found)
        for part in ("signals", "labels", "metadata", "header"):
            total.update(fuzz(f"mitbih_{part}.npy", Path(f"mitbih_{part}.npy"), dataset_reader, cases))
        total.update(fuzz("mitbih_mlp_model.pth", Path("mitbih_mlp_model.pth"), checkpoint_reader, cases))
        total.update(fuzz("mitbih_mlp_state.pth", Path("mitbih_mlp_state.pth"), state_reader, cases))
        os.chdir(here)
    undetected = without.pop("ANOTHER RESULT", 0)
    wrong = {what: number for what, number in (total + without).items() if what not in ("error", "same result")}
    print(f"{sum(total.values())} cases; {sum(without.values()) + undetected} without SHA256SUMS.txt, of which {undetected} "
          f"gave another result; failures: {wrong or 'none'}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
