"""What tests, checks and reports share: stages with other constants, files, a faulty web server.

Import it before the scripts: it puts their folder and those below tests/ on the module path.
"""

import hashlib
import importlib
import random
import resource
import sys
import threading
import time
from collections import Counter
from contextlib import chdir, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import simulate
import wfdb

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(path) for path in (ROOT, TESTS, TESTS / "checks", TESTS / "reports")
                if str(path) not in sys.path]


# ---- A stage with other constants ----

@contextmanager
def changed(stage, **constants):
    """Sets constants of a script and restores them after.

    A dict is merged into the script's own dict, at any depth; any other value replaces the old one.
    AttributeError for a constant that the script does not have.
    """
    before = {name: getattr(stage, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(stage, name, merged(before[name], value))
        yield stage
    finally:
        for name, value in before.items():
            setattr(stage, name, value)


def merged(old, new):
    """Two dicts -> a new dict of both, where the second one wins; anything else -> the second."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def run_stage(stage, **constants):
    """Runs main() of a script, given as a module or by its name, with other constants."""
    if isinstance(stage, str):
        stage = importlib.import_module(stage)
    with changed(stage, **constants):
        stage.main()


def every_class(data, rows, recipe):
    """In place of model_training.called_classes: on little data, no class has beats enough."""
    return [True] * len(recipe.classes)


def train(dataset="mitbih", model="mlp", settings=None, **constants):
    """Runs model_training.py for one epoch of one net, or with other settings -> checkpoint.

    Validation rows are kept from training, there is no second net, and every class is called,
    unless told otherwise; RECIPES={"mitbih_strips": {...}} has the settings of a second net.
    """
    recipes = {dataset: {"epochs": 1, "ensemble_size": 1, "hold_out": True} | (settings or {}),
               f"{dataset}_strips": {"epochs": 1, "ensemble_size": 1}}
    recipes = merged(recipes, constants.pop("RECIPES", {}))
    run_stage("model_training", DATASET=dataset, MODEL=model, RECIPES=recipes,
              **{"DEVICE": "cpu", "SECOND_NET": False, "called_classes": every_class} | constants)
    return importlib.import_module("model_training").load_pth(f"{dataset}_{model}_model.pth")


def preprocess(name="mitbih", **constants):
    """Runs preprocess_mitbih.py with other constants -> the dataset that it wrote."""
    run_stage("preprocess_mitbih", NAME=name, **constants)
    return importlib.import_module("preprocess_mitbih").load_dataset(name)


def command(stage, **constants):
    """Name of a script and constants -> the command line that does run_stage in a new process."""
    code = (f"import sys; sys.path.insert(0, {str(TESTS)!r}); import harness; "
            f"harness.run_stage({stage!r}, **{constants!r})")
    return [sys.executable, "-u", "-c", code]


def simulated_arrays(folder, seconds, records):
    """Writes both simulated databases into a folder, and the .npy files made of them."""
    mitbih = importlib.import_module("preprocess_mitbih")
    ptbxl = importlib.import_module("preprocess_ptbxl")
    with chdir(folder):
        simulate.write_mitbih(mitbih.DATA_DIR, seconds=seconds)
        write_ptbxl(ptbxl.DATA_DIR, records=records)
        for stage in (mitbih, ptbxl):
            run_stage(stage, DOWNLOAD=False)


def write_ptbxl(folder, **settings):
    """simulate.write_ptbxl; the comment that marks simulated ECGs is in the first header alone.

    The other headers have PTB-XL's own form.
    """
    table = simulate.write_ptbxl(folder, **settings)
    for path in sorted(Path(folder).rglob("*.hea"))[1:]:
        path.write_text(path.read_text().partition("#")[0])
    return table


def rows_of_marks(data):
    """Dataset of beats -> (k,) row of each annotation, the next one within 0.15 s, or -1."""
    marks = data.annotations
    rows = np.full(len(marks), -1)
    for number, record in enumerate(data.header.records):
        of_record = np.flatnonzero(data.metadata["record"] == number)
        here = np.flatnonzero((marks["record"] == number) & (marks["label"] >= 0))
        if len(of_record) and len(here):
            beats = data.metadata["sample"][of_record] / data.rate
            marked = marks["sample"][here] / record["rate"]
            middle = (beats[1:] + beats[:-1]) / 2
            nearest = np.searchsorted(middle, marked)
            same = data.metadata["symbol"][of_record[nearest]] == marks["symbol"][here]
            close = np.abs(beats[nearest] - marked) < 0.153
            rows[here] = np.where(same & close, of_record[nearest], -1)
    return rows


# ---- Files ----

def contents(folder):
    """Folder -> dict of file name -> bytes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def outputs(folder):
    """Folder -> dict of name -> bytes of the arrays that stages wrote, unfinished ones included."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npy*")}


def write_sums(folder):
    """Writes SHA256SUMS.txt of all files below the folder, in PhysioNet's form."""
    listing = Path(folder, "SHA256SUMS.txt")
    listing.unlink(missing_ok=True)
    lines = [f"{hashlib.sha256(content).hexdigest()} {name}\n"
             for name, content in sorted(contents(folder).items())]
    listing.write_text("".join(lines))


@contextmanager
def files_up_to(size):
    """Within, no file can grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def replace(path, old, new, count=1):
    """Replaces bytes of a file, which must be in it."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))


def put_invalid_sample(path, mark, sample=5):
    """Puts the mark of an invalid sample into a WFDB record, with the checksum to match."""
    record = wfdb.rdrecord(str(path), physical=False)
    record.d_signal[sample, 0] = mark
    wfdb.wrsamp(path.name, record.fs, record.units, record.sig_name, d_signal=record.d_signal,
                fmt=record.fmt, adc_gain=record.adc_gain, baseline=record.baseline,
                write_dir=str(path.parent))


def damaged(content, chance):
    """Bytes and a random.Random -> the bytes with one kind of damage."""
    content = bytearray(content)
    place = chance.randrange(len(content))
    match chance.randrange(7):
        case 0 | 1:                                   # one bit flipped
            content[place] ^= 1 << chance.randrange(8)
        case 2:                                       # some bytes replaced
            for _ in range(chance.randrange(1, 20)):
                content[chance.randrange(len(content))] = chance.randrange(256)
        case 3:                                       # the end cut off
            del content[place:]
        case 4:                                       # a part removed
            del content[place:place + chance.randrange(1, 50)]
        case 5:                                       # a part repeated
            content[place:place] = content[:chance.randrange(1, 50)]
        case 6:                                       # another file
            content = bytearray(chance.randbytes(chance.randrange(0, 3000)))
    return bytes(content)


# ---- A web server that misbehaves ----

class Handler(BaseHTTPRequestHandler):
    """Answers GET with a file of server.folder, or with the next fault planned for its name.

    Faults: a number is an HTTP status; "close" answers nothing; "wrong" sends wrong bytes; "cut"
    and "cut without length" end in the middle of the file; "slow" and "ok" send it whole.
    """
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = unquote(self.path).lstrip("/")
        path = self.server.folder / name
        self.server.asked.append(name)
        fault = self.server.next_fault(name)
        if fault == "close":
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer(fault, b"")
        elif not path.is_file():
            self.answer(404, b"")
        else:
            body = path.read_bytes()
            self.answer(200, bytes([body[0] ^ 255]) + body[1:] if fault == "wrong" else body, fault)

    def answer(self, status, body, fault="ok"):
        self.send_response(status)
        if fault == "cut without length":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.startswith("cut"):
            body = body[:len(body) // 2]
            self.close_connection = True
        for start in range(0, len(body), 4096):
            block = body[start:start + 4096]
            self.wfile.write(block)
            self.server.count(len(block))
            time.sleep(self.server.pause if fault == "slow" else 0)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Serves a folder on the loopback address, in a `with` block.

    faults: dict of file name -> list of faults for its first requests. random_faults: what any
    request may meet, at most twice in a row for a file. pause: s between the blocks of a slow
    answer. victim: a process that is killed when kill_after bytes have been sent.
    """
    daemon_threads = True

    def __init__(self, folder, faults=None, random_faults=(), pause=0.05):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.folder = Path(folder)
        self.planned = {name: list(of_name) for name, of_name in (faults or {}).items()}
        self.random_faults = list(random_faults)
        self.random = random.Random(0)
        self.pause = pause
        self.asked = []          # names of all files asked for
        self.met = Counter()     # how often each fault was met
        self.in_a_row = Counter()
        self.sent = 0            # bytes
        self.victim = None
        self.kill_after = 0

    def next_fault(self, name):
        fault = self.planned[name].pop(0) if self.planned.get(name) else "ok"
        if self.random_faults and self.in_a_row[name] < 2:
            fault = self.random.choice(self.random_faults)
        self.in_a_row[name] = 0 if fault in ("ok", "slow") else self.in_a_row[name] + 1
        self.met[fault] += 1
        return fault

    def count(self, size):
        self.sent += size
        if self.victim and self.sent >= self.kill_after:
            self.victim.kill()
            self.victim = None

    def handle_error(self, *_):
        pass   # a killed or refused client breaks its connection

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
