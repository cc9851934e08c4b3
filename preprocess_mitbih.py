"""Cuts the annotated beats of the MIT-BIH Arrhythmia Database, or of another one like it, out of its WFDB records.

Reads   DATA_DIR/RECORDS and {record}.hea, .dat, .atr (MIT-BIH: 360 Hz, two leads, 30 minutes each); where there are none,
        it fetches them from PhysioNet first (100 MB)
Writes  mitbih_signals.npy    (n, 360) float32   mV, one beat a row, the annotated R peak at sample 180; with several LEADS
                              (n, leads, 360)
        mitbih_labels.npy     (n,) int64         index into the header's class_names
        mitbih_metadata.npy   (n,) structured    record, patient, subset, lead, sample, symbol, RR intervals, rhythm
        mitbih_records.npy    (samples,) float32 mV, the chosen lead of all records, end to end; several: (samples, leads)
        mitbih_header.npy     (1,) structured    class names, sampling rate, leads, record names and lengths; what all five
                              files were made from, and their SHA-256
Takes   5 seconds for the 48 records, beside the download.

The database: Moody and Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Eng. Med. Biol. 2001.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
import requests   # comes with wfdb, which fetches with it, too
import wfdb
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, resample_poly, sosfiltfilt
from tqdm import tqdm

# data
NAME = "mitbih"           # prefix of the files written; for another database e.g. "svdb": its records are all for testing
DATA_DIR = "mit-bih-arrhythmia-database-1.0.0"   # folder with the WFDB files, relative to the working directory
RECORDS = "all"           # "all": those that DATA_DIR/RECORDS lists, or names: ["100", "101"]
SAMPLING_RATE = 360       # Hz of what is written; a record of another rate is resampled, annotations too, and counted
BAD_RECORDS = "stop"      # a record that cannot be used: "stop" the run, or "skip" the record and count it

# download
DOWNLOAD = True           # where DATA_DIR has no records, fetch the database; a download that was broken off goes on
BASE_URL = "https://physionet.org/files/"   # or a mirror with its paths: "https://physionet-open.s3.amazonaws.com/"
CONNECTIONS = 2           # at a time; wfdb's own dl_database takes 2

# leads and classes
LEADS = ["MLII"]          # by their names in the header, one or several: ["MLII", "V1"]; SVDB: ["ECG1"], INCART: ["II"]
LEAD_ABSENT = "first"     # 102 and 104 have no MLII: "first" takes their first signals (V5), "skip" leaves them out
CLASS_MAP = "aami"        # "aami": N S V F Q of ANSI/AAMI EC57, or "clinical": what a cardiologist names apart

# segment
SEGMENT = 360             # samples a beat, half of them before the R peak: 1 s

# Class name -> annotation symbols. "e" and "j" (escape beats) belong to N in EC57, not to S. B, n, r and ? do not occur in
# MIT-BIH, but in its sisters: an unspecified bundle branch block, an escape, an R-on-T and an unclassified beat.
CLASS_MAPS = {
    "aami": {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"},
    "clinical": {"normal": "N", "LBBB": "L", "RBBB": "R", "supraventricular": "AaJSejn", "ventricular": "VEr",
                 "fusion": "F", "paced": "/f"},
}
BEATS = "NLRBejnAaJSVErF/fQ?"   # every other symbol (+ ~ | x [ ! ] ") marks rhythm, noise or flutter waves, not a beat

# The inter-patient split of de Chazal et al., IEEE Trans. Biomed. Eng. 51(7), 2004, where NAME is "mitbih".
SUBSETS = {
    "DS1": "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230",
    "DS2": "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234",
    "paced": "102 104 107 217",
}
SAME_PATIENT = {"202": "201"}   # the one patient with two records; the standard split has them on opposite sides

# Beats of the complete database by AAMI class (N S V F Q), and how many of them fill a segment of 360 samples.
PUBLISHED = {"DS1": (45866, 944, 3788, 415, 8), "DS2": (44259, 1837, 3221, 388, 7), "all": (90631, 2781, 7236, 803, 8043)}
PUBLISHED_SEGMENTS = 109438

# Constants that say how a run goes, not what comes out; the others are recorded with the outputs.
HOW_IT_RUNS = ["DATA_DIR", "DOWNLOAD", "BASE_URL", "CONNECTIONS", "BAD_RECORDS", "DATABASES", "HOW_IT_RUNS"]
# Where a database of this NAME is below BASE_URL.
DATABASES = {"mitbih": "mitdb/1.0.0/", "svdb": "svdb/1.0.0/", "incartdb": "incartdb/1.0.0/"}


# ---- Checks and files (shared by all scripts) ----

def check_choice(name, value, expected):
    """Stops the run with one sentence when a constant has none of its allowed values."""
    if value not in expected:
        raise SystemExit(f"{name} = {value!r}: expected one of {', '.join(map(str, expected))}")


def check_folder(folder, source):
    """Stops the run when the data folder is missing, and says where the data comes from."""
    if not Path(folder).is_dir():
        raise SystemExit(f"DATA_DIR = {folder!r}: no such folder in {Path.cwd()}. Download the database from {source} and "
                         "unpack it there (DOWNLOAD = True does so), or see the pipeline run on simulated data: "
                         "python tests/demo.py")


@contextmanager
def new_files(*names):
    """Yields a temporary path for each name; they take their names together at the end, or vanish after an error.

    An interrupted run therefore leaves the outputs of earlier runs as they were.
    """
    temporary = [Path(f"{name}.tmp") for name in names]
    try:
        yield temporary
        for path, name in zip(temporary, names):
            os.replace(path, name)
    except OSError as error:
        raise SystemExit(f"cannot write {', '.join(map(str, names))} in {Path.cwd()}: {error}. "
                         "Earlier files of these names are unchanged") from error
    finally:
        for path in temporary:
            if path.exists():   # where nothing can be written, to remove what is not there is an error, too
                path.unlink()


class RowWriter:
    """Appends rows to an .npy file, so that memory stays flat however many there are."""

    def __init__(self, path, row_shape, dtype):
        self.file, self.row_shape, self.dtype, self.rows = open(path, "wb"), tuple(row_shape), np.dtype(dtype), 0
        self._write_header()

    def _write_header(self):
        """The header has room for any number of rows (numpy pads it), so it can be written again at the end."""
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row_shape)})

    def append(self, rows):
        """rows (k, *row_shape) -> appended, converted to the file's dtype."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} for a file of {self.row_shape}")
        self.file.write(rows)
        self.rows += len(rows)

    def close(self):
        """Writes the final number of rows into the header."""
        self._write_header()
        self.file.close()


def save_array(path, array):
    """Writes an .npy file without pickle."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def one_row(**fields):
    """Values and lists -> a (1,) structured array with one field each, so that settings need no pickle."""
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    row = np.zeros(1, [(name, array.dtype, array.shape) for name, array in arrays.items()])
    for name, array in arrays.items():
        row[name] = array
    return row


# ---- What outputs were made from ----

class Source:
    """Counts and hashes the files that a run reads, and compares them with DATA_DIR/SHA256SUMS.txt where there is one."""

    def __init__(self, folder):
        self.folder, self.files, self.bytes, self.hash = Path(folder), 0, 0, hashlib.sha256()
        listing = self.folder / "SHA256SUMS.txt"
        self.sums = read_sums(listing) if listing.is_file() else {}
        if listing.is_file() and not self.sums:
            raise SystemExit(f"{listing} is no list of SHA-256 sums and file names. Fetch it again, or delete it to go without")

    def read(self, name):
        """File name below the folder -> its bytes. ValueError where it is missing or is not what the list says."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.folder / name} is missing or cannot be read ({error.strerror})") from error
        forms = [content]
        if name.endswith((".hea", "RECORDS")):   # git and unzip change the line ends of text
            forms = [content.replace(b"\r\n", b"\n"), content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")]
        digests = [hashlib.sha256(form).hexdigest() for form in forms]
        if self.sums and self.sums.get(name) not in digests:
            raise ValueError(f"{name} is not the published file: its SHA-256 is not the one in SHA256SUMS.txt")
        self.files, self.bytes = self.files + 1, self.bytes + len(forms[0])
        self.hash.update(f"{name} {digests[0]}\n".encode())
        return content

    def describe(self, constants):
        """The constants -> JSON text: what the run was made from, and with."""
        return json.dumps({"files": self.files, "bytes": self.bytes, "sha256": self.hash.hexdigest(), "constants": constants,
                           "versions": versions(np, wfdb)})


def versions(*modules):
    """Modules -> dict of their and Python's versions."""
    return {"python": platform.python_version(), **{module.__name__: str(module.__version__) for module in modules}}


def constants_of(script, without):
    """globals() of a script, names -> dict of its constants but these and tables of anything but plain values."""
    return {name: value for name, value in script.items() if name.isupper() and name not in without
            and (value is None or isinstance(value, (str, int, float, list, tuple, dict)))}


def sha256_of(path):
    """File -> its SHA-256 in hex, a part at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def header_sum(row):
    """(1,) header -> SHA-256 of its other fields, which its own_sum must equal."""
    row = row.copy()
    row["own_sum"] = ""
    return hashlib.sha256(repr(row.dtype.descr).encode() + row.tobytes()).hexdigest()


def save_header(path, parts, **fields):
    """Path, dict of part ("signals") -> its file, fields -> writes the header that binds the parts together by their sums."""
    row = one_row(**fields, parts=list(parts), part_sums=[sha256_of(part) for part in parts.values()], own_sum="0" * 64)
    row["own_sum"] = header_sum(row)
    save_array(path, row)


# ---- Download ----

def read_sums(path):
    """SHA256SUMS.txt -> dict of file name -> SHA-256; empty where it is no such list."""
    text = path.read_text(errors="replace")
    lines = [re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?([^\0]+)", line) for line in text.splitlines()]
    return {line[2]: line[1].lower() for line in lines} if all(lines) and text.endswith("\n") else {}


def has_sum(digest, path):
    """Whether the file has this SHA-256."""
    return sha256_of(path) == digest


def reason_of(error):
    """Exception of requests -> what happened in the network; it is wrapped in several others."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error) or type(error).__name__


def fetch_file(session, url, path, is_right, stop, received, tries=8):
    """Fetches one file into path, which has it whole or not at all; its beginning waits in {path}.part.

    is_right(path) tells whether a file is as published. received(size) is told of every piece, stop is an event that ends
    the wait. ValueError where this file is not to be had, requests.ConnectionError(url, reason) where the server is not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, damaged, failed, wait, problem = path.with_name(f"{path.name}.part"), 0, 0, 0, ""
    for whole in (path, part):   # of an earlier run
        if whole.is_file() and is_right(whole):
            return os.replace(whole, path)
    while failed < tries and wait <= 600:
        if problem and wait >= 4:
            tqdm.write(f"{url}: {problem}, once more in {wait} s")
        if stop.wait(wait):
            return None
        have = part.stat().st_size if part.exists() else 0
        try:
            with session.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=60) as answer:
                problem = f"{answer.status_code} {answer.reason}"
                if answer.status_code < 400:
                    with open(part, "ab" if answer.status_code == 206 else "wb") as file:
                        for piece in answer.iter_content(1 << 10):
                            file.write(piece)
                            received(len(piece))
                            if stop.is_set():
                                return None
                    if is_right(part):
                        return os.replace(part, path)
                    damaged, problem = damaged + 1, "other bytes than SHA256SUMS.txt says"
                    if damaged == 2:
                        raise ValueError(f"came twice with {problem}")
                elif answer.status_code < 500 and answer.status_code not in (416, 429):
                    raise ValueError(problem)
                if answer.status_code < 500 and answer.status_code != 429:   # wrong bytes, or more of them than the file has
                    part.unlink(missing_ok=True)
                asked = answer.headers.get("Retry-After", "")
                wait = max(2 ** failed, int(asked) if asked.isdecimal() else 0)
        except requests.RequestException as error:   # no connection, or it broke off
            problem, wait = reason_of(error), 2 ** failed
        grew = part.exists() and part.stat().st_size > have
        failed = 1 if grew else failed + 1           # a server that gives a piece at a time gives all of it in the end
    raise requests.ConnectionError(url, problem if wait <= 600 else f"{problem}, to be asked again in {wait} s")


def fetch_all(session, url, folder, sums, connections):
    """Fetches the files {name: SHA-256} below url into the folder, with a progress bar -> sentences on those not to be had."""
    bad, size, began, stop, lock = [], 0, time.monotonic(), threading.Event(), threading.Lock()
    with (tqdm(total=len(sums), desc="files", unit="file", disable=None, miniters=0) as bar,
          ThreadPoolExecutor(connections) as pool):
        def received(more, files=0):
            nonlocal size
            with lock:
                size += more
                rate = size / 1e6 / max(time.monotonic() - began, 1e-3)
                bar.set_postfix_str(f"{size / 1e6:.1f} MB, {rate:.2f} MB/s", refresh=False)
                bar.update(files)

        try:
            jobs = {pool.submit(fetch_file, session, url + quote(name), folder / name, partial(has_sum, digest), stop,
                                received): name
                    for name, digest in sums.items()}
            for job in as_completed(jobs):
                try:
                    job.result()
                except requests.RequestException:
                    raise
                except ValueError as error:
                    bad.append(f"{jobs[job]}: {error}")
                received(0, files=1)
                if len(bad) == 20:   # not one file, but the place
                    break
        finally:                     # also after an error or Ctrl-C: what is under way ends with the piece that it has
            stop.set()
            pool.shutdown(cancel_futures=True)
    print(f"{size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s")
    return bad


def is_below(name):
    """Whether a path from a list leads below the folder that it is joined to, on any system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not re.search(r"[\\:]", name)


def fetch_database(folder, url, part, pattern, wanted, connections):
    """Fetches the files of a database that wanted(name) picks, where the folder has none that fit the pattern.

    url has a SHA256SUMS.txt, which every file is checked against; files that are there and right are kept. Until all are there,
    the file {part}.unfinished says so to the next run. Stops the run with one sentence when it cannot be done.
    """
    folder, list_url = Path(folder), f"{url}SHA256SUMS.txt"
    marker = folder / f"{part}.unfinished"
    by_hand = (f"put files fetched by hand into {folder.resolve()}"
               + (f" and delete {marker.name} there" if marker.exists() else ""))
    if not marker.exists() and any(folder.glob(pattern)):
        return
    with requests.Session() as session, tempfile.TemporaryDirectory() as temporary:
        session.headers["Accept-Encoding"] = "identity"   # compressed, a file could not go on from byte k
        session.mount(url, requests.adapters.HTTPAdapter(pool_maxsize=connections))
        try:
            listing = Path(temporary) / "SHA256SUMS.txt"
            fetch_file(session, list_url, listing, read_sums, threading.Event(), lambda size: None, tries=3)
            chosen = {name: digest for name, digest in read_sums(listing).items() if wanted(name)}
            outside = [name for name in chosen if not is_below(name)]
            if outside or not chosen:
                raise SystemExit(f"{list_url} names {len(chosen)} files to fetch, {len(outside)} of them outside DATA_DIR "
                                 f"{outside[:3]}: nothing was fetched. Check BASE_URL, or {by_hand}")
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text("A download was broken off. Run the preprocess script again, and it goes on.\n")
            print(f"Fetching {len(chosen):,} files from {url} into {folder}", flush=True)
            bad = fetch_all(session, url, folder, chosen, connections)
            if bad:
                raise SystemExit(f"not to be had from {url}: {'; '.join(bad[:5])} ({len(bad)} of {len(chosen)} files). Run the "
                                 f"script again to go on, or put them there by hand and delete {marker.name}")
            with new_files(folder / "SHA256SUMS.txt") as (copy,):
                copy.write_bytes(listing.read_bytes())
            marker.unlink()
        except requests.ConnectionError as error:
            where, reason = error.args
            raise SystemExit(f"cannot fetch {where} ({reason}). Run the script again to go on, {by_hand}, or see the pipeline "
                             "run on simulated data: python tests/demo.py") from error
        except ValueError as error:
            raise SystemExit(f"cannot fetch {list_url} ({error}). Check BASE_URL, {by_hand}, or see the pipeline run on "
                             "simulated data: python tests/demo.py") from error
        except OSError as error:
            raise SystemExit(f"cannot write into {folder.resolve()} ({error.strerror}). Run the script again to go on: what is "
                             "there already is kept") from error
        except KeyboardInterrupt:
            raise SystemExit("The download was broken off: run the script again, and it goes on") from None


# ---- Read one record ----

def record_names(source, records):
    """The names in `records`, or with "all" those in the source folder's RECORDS file."""
    if isinstance(records, str) and records != "all":
        raise SystemExit(f'RECORDS = {records!r}: expected "all" or a list of names')
    try:
        names = list(map(str, records)) if records != "all" else source.read("RECORDS").decode(errors="replace").split()
    except ValueError as error:
        raise SystemExit(f"{error}. It lists the records, one name a line: fetch it, or name the records in the constant "
                         "RECORDS") from error
    if not names or len(set(names)) < len(names):
        raise SystemExit(f"RECORDS names {len(names)} records, {len(set(names))} different ones: "
                         "expected each record once, and at least one")
    return names


class LeadAbsent(ValueError):
    """A record without a wanted lead, which LEAD_ABSENT = "skip" leaves out."""


def read_wfdb(path):
    """WFDB record -> (wfdb.Record, (samples, leads) float64 mV). ValueError when it is damaged or not in mV.

    The header's length is compared with the file's size (formats 212 and 16), and its checksums (the sum of a lead's
    samples, 16 bits) with the samples.
    """
    for name in (f"{path}.hea", f"{path}.dat"):
        if not Path(name).is_file():
            raise ValueError(f"{name} is missing")
    try:
        record = wfdb.rdrecord(str(path), physical=False)
        checksums = [(int(a) - int(b)) % 65536 for a, b in zip(record.checksum, record.calc_checksum(), strict=True)]
        signals = record.dac()
    except Exception as error:  # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"the header and the signal file do not fit together or are damaged ({error})") from error
    bits = sum({"212": 12, "16": 16}.get(form, 0) for form in record.fmt)
    size, expected = Path(f"{path}.dat").stat().st_size, -(-record.sig_len * bits // 8)
    if set(record.fmt) <= {"212", "16"} and not any(record.byte_offset) and size != expected:
        raise ValueError(f"the .dat file has {size} bytes, the header's {record.sig_len} samples make {expected}")
    if any(checksums):
        raise ValueError("the samples do not add up to the checksums in the header: the .dat file is cut or damaged")
    if set(record.units) != {"mV"}:
        raise ValueError(f"units {', '.join(record.units)}: expected mV")
    record.sig_name = [str(name) for name in record.sig_name]   # None where the header gives a lead no name
    return record, signals


def check_form(record, **expected):
    """wfdb.Record, the values of its header that its whole database has -> nothing. ValueError where one is another."""
    for name, value in expected.items():
        found = np.unique(getattr(record, name))
        if not np.array_equal(found, [value]):
            raise ValueError(f"its header says {name} = {' '.join(map(str, found))}, all of this database have {value}")


def read_record(folder, name, leads, lead_absent, sampling_rate):
    """One record -> dict of its signals ((leads, samples) float32 mV), lead names, beat samples and symbols, and notes.

    Raises ValueError with one sentence where the record is not what the constants say.
    """
    record, signals = read_wfdb(Path(folder) / name)
    absent = [lead for lead in leads if lead not in record.sig_name]
    if len(name) > 16 or len(" ".join(leads)) > 64:
        raise ValueError("the metadata have no room for a name of more than 16 letters, or for LEADS of more than 64")
    if NAME == "mitbih":
        check_form(record, fs=360, adc_gain=200, baseline=1024)
        if not set(record.sig_name) <= {"MLII", "V1", "V2", "V3", "V4", "V5", "V6"}:
            raise ValueError(f"its header names the leads {', '.join(record.sig_name)}, which are not all of this database")
    if absent and (lead_absent == "skip" or len(record.sig_name) < len(leads)):
        raise LeadAbsent(f"has no lead {' and '.join(absent)}, only {', '.join(record.sig_name)}")
    columns = range(len(leads)) if absent else [record.sig_name.index(lead) for lead in leads]
    found = [record.sig_name[column] for column in columns]
    signals = signals[:, columns].T
    if not np.isfinite(signals).all():
        raise ValueError(f"{np.sum(~np.isfinite(signals))} samples of lead {', '.join(found)} are invalid (NaN)")
    sample, symbol = read_annotations(Path(folder) / name, record.sig_len)
    signals, sample = resample_record(signals, sample, record.fs, sampling_rate)
    beat = np.isin(symbol, list(BEATS))
    return {"name": name, "signals": signals.astype(np.float32), "leads": found, "rate": record.fs,
            "sample": sample[beat], "symbol": symbol[beat], "non_beats": Counter(symbol[~beat].tolist()),
            "simulated": any("simulated" in comment for comment in record.comments)}


def read_annotations(path, samples):
    """WFDB `atr` file -> (k,) int64 sample positions, (k,) symbols, in time order. ValueError when damaged."""
    if not Path(f"{path}.atr").is_file():
        raise ValueError(f"{path}.atr is missing")
    content = Path(f"{path}.atr").read_bytes()
    known = (re.findall(rb"## (?:annotation type|end of) definitions", content)
             + re.findall(rb"## time resolution: \d", content)[:1])
    if not content.endswith(b"\0\0") or content.count(b"## ") > len(known):   # wfdb 4.3 never returns from another note
        raise ValueError("the annotation file has no end mark, or a note that says nothing: it is cut or damaged")
    try:
        annotation = wfdb.rdann(str(path), "atr")
    except Exception as error:  # see read_wfdb
        raise ValueError(f"the annotation file is damaged ({error})") from error
    sample, symbol = np.asarray(annotation.sample, np.int64), np.asarray(annotation.symbol, "U1")
    if len(sample) == 0 or sample.min() < 0 or sample.max() >= samples or np.any(np.diff(sample) < 0):
        raise ValueError(f"the annotations are not in time order within the record's {samples} samples")
    return sample, symbol


def resample_record(signals, sample, rate, wanted):
    """(leads, samples), (k,) annotated positions at `rate` Hz -> the same at `wanted` Hz, with an anti-aliasing filter."""
    if rate == wanted:
        return signals, sample
    if not 50 <= rate <= 10000:
        raise ValueError(f"sampled at {rate} Hz: expected a rate from 50 to 10,000 Hz")
    ratio = (Fraction(wanted) / Fraction(rate).limit_denominator(100)).limit_denominator(1000)
    signals = resample_poly(signals, ratio.numerator, ratio.denominator, axis=1)
    return signals, np.minimum(np.round(sample * float(ratio)).astype(np.int64), signals.shape[1] - 1)


# ---- Beats ----

def rr_window(sample, sampling_rate):
    """(k,) beat positions -> (k, 20) float32 s: the ten RR intervals before, then the ten after each beat.

    Column 9 is the interval that ends at the beat, column 10 the one that begins there. NaN where the record has no
    such interval.
    """
    edge = np.full(10, np.nan)
    rr = np.concatenate([edge, np.diff(sample) / sampling_rate, edge])
    return np.lib.stride_tricks.sliding_window_view(rr, 20)[:len(sample)].astype(np.float32)


def rhythm_features(rr):
    """(k, 20) s, the rr_window of all beats of one record -> (k, 25) float32 that describe the rhythm, without labels.

    Log ratios of the 5 intervals before and the 5 after each beat to the record's median interval; of the intervals
    around the beat to each other and to the mean of those before, and of that mean to the median; the two intervals in s;
    how irregular the last ones are; the quantiles of the record's intervals over their median, and the beat's interval over
    the quantiles. An early beat of a regular rhythm differs from one of atrial fibrillation in the last two. An interval
    beyond the record's ends counts as the median one.
    """
    if len(rr) == 0:
        return np.zeros((0, 25), np.float32)
    known = rr[np.isfinite(rr)]
    median = np.median(known) if len(known) else 1.0
    rr = np.where(np.isfinite(rr), rr, median).astype(np.float64).clip(0.1, 5)
    before, previous, following = rr[:, :9], rr[:, 9], rr[:, 10]
    mean, quantiles = before.mean(axis=1), np.quantile(previous, [.1, .25, .75, .9])
    return np.column_stack([
        np.log(rr[:, 5:15] / median), np.log(previous / mean), np.log(following / mean), np.log(following / previous),
        np.log(mean / median), previous, following, np.log(before).std(axis=1),
        np.broadcast_to(np.log(quantiles / median), (len(rr), 4)), np.log(previous[:, None] / quantiles),
    ]).astype(np.float32)


def cut_beats(signals, sample, segment):
    """(leads, samples), (k,) beat positions -> (m, leads, segment) beats and the (k,) mask of those that fill a segment."""
    start = sample - segment // 2
    complete = (start >= 0) & (start + segment <= signals.shape[1])
    return signals[:, start[complete, None] + np.arange(segment)].swapaxes(0, 1), complete


def low_pass(signals, rate, cutoff):
    """(..., samples) float32 at `rate` Hz -> the same without what is above `cutoff` Hz (4th-order Butterworth, zero phase)."""
    if cutoff >= rate / 2:
        return signals
    filtered = np.empty_like(signals)
    for rows in np.array_split(np.arange(len(signals)), max(1, signals.size // 2_000_000)):
        filtered[rows] = sosfiltfilt(butter(4, cutoff, fs=rate, output="sos"), signals[rows], axis=-1)
    return filtered


def qrs_energy(signals, rate):
    """(n, leads, samples) at `rate` Hz -> (n, samples): the slope between 5 and 20 Hz over 0.12 s, of all leads together."""
    slope = np.gradient(sosfiltfilt(butter(2, (5, 20), "bandpass", fs=rate, output="sos"), signals, axis=2), axis=2)
    return np.sqrt(uniform_filter1d(np.square(slope).sum(axis=1), round(0.12 * rate), axis=1))


def beat_table(record):
    """Record dict -> (k,) structured metadata, one row for each annotated beat, complete or not."""
    sample, rr = record["sample"], rr_window(record["sample"], SAMPLING_RATE)
    table = np.zeros(len(sample), [
        ("record", "U16"), ("patient", "U16"), ("subset", "U5"), ("leads", "U64"), ("sample", "<i8"), ("symbol", "U1"),
        ("rr_previous", "<f4"), ("rr_next", "<f4"), ("rhythm", "<f4", (25,))])
    table["record"], table["leads"] = record["name"], " ".join(record["leads"])
    subsets, same_patient = (SUBSETS, SAME_PATIENT) if NAME == "mitbih" else ({}, {})
    table["patient"] = same_patient.get(record["name"], record["name"])
    table["subset"] = next((subset for subset, names in subsets.items() if record["name"] in names.split()), "test")
    table["sample"], table["symbol"], table["rhythm"] = sample, record["symbol"], rhythm_features(rr)
    table["rr_previous"], table["rr_next"] = rr[:, 9], rr[:, 10]
    return table


def symbol_labels(symbols, class_map):
    """(k,) annotation symbols -> (k,) int64 class indices, -1 for a beat that the class map leaves out."""
    index = {symbol: i for i, group in enumerate(class_map.values()) for symbol in group}
    return np.array([index.get(symbol, -1) for symbol in symbols.tolist()], np.int64)


# ---- Report ----

def count_classes(symbols):
    """(k,) symbols -> beats in each AAMI class, as a tuple in the order N S V F Q."""
    return tuple(np.bincount(symbol_labels(symbols, CLASS_MAPS["aami"]), minlength=5).tolist())


def check_published(beats, rows, simulated):
    """Compares the counts of DS1, DS2 and all 48 records with the published ones, each if it is complete.

    Returns a sentence; counts that differ stop the run, because the data are then not the published ones.
    """
    wanted = {"DS1": SUBSETS["DS1"], "DS2": SUBSETS["DS2"], "all": " ".join(SUBSETS.values())}
    have = set(np.unique(beats["record"]))
    complete = [subset for subset, records in wanted.items() if set(records.split()) <= have]
    if simulated or NAME != "mitbih" or not complete:
        return "Not compared with the published counts: they need the real records of DS1, DS2 or all"
    found = {s: count_classes(beats["symbol"][np.isin(beats["record"], wanted[s].split())]) for s in complete}
    expected = {s: PUBLISHED[s] for s in complete}
    if found != expected:
        raise SystemExit(f"The beats differ from the published counts: found {found}, expected {expected}. "
                         f"Fetch {DATA_DIR} again; nothing was written")
    segments = f"; {rows:,} segments, expected {PUBLISHED_SEGMENTS:,}" if "all" in complete and CLASS_MAP == "aami" else ""
    return f"Equal to the published counts, to the beat (N S V F Q): {found}{segments}"


def print_report(beats, labels, left_out, names):
    """Prints beats by class and subset, then everything that was left out and why."""
    subsets = [s for s in (*SUBSETS, "test") if s in beats["subset"]]
    print(f"\n{'class':<18}{'symbols':<10}" + "".join(f"{s:>9}" for s in subsets) + f"{'all':>9}{'records':>9}")
    for index, (name, symbols) in enumerate(CLASS_MAPS[CLASS_MAP].items()):
        of_class = beats[labels == index]
        counts = [np.sum(of_class["subset"] == s) for s in subsets]
        print(f"{name:<18}{' '.join(symbols):<10}" + "".join(f"{c:>9,}" for c in counts)
              + f"{len(of_class):>9,}{len(np.unique(of_class['record'])):>9}")
    print(f"{'all':<28}" + "".join(f"{np.sum(beats['subset'] == s):>9,}" for s in subsets) + f"{len(beats):>9,}{len(names):>9}")
    print("\nLeft out or replaced")
    for reason, count in left_out.items():
        print(f"  {count:>9,}  {reason}")


# ---- Main ----

def read_all(names, source, signals_file, records_file):
    """Streams every record into the two files -> metadata of all beats, mask of rows written, labels, notes, ..."""
    beats, kept, left_out, used, simulated = [], [], Counter(), {}, False
    for name in tqdm(names, desc="records", unit="record", disable=None):
        try:
            for end in ("hea", "dat", "atr"):
                source.read(f"{name}.{end}")
            record = read_record(DATA_DIR, name, LEADS, LEAD_ABSENT, SAMPLING_RATE)
        except ValueError as error:
            if BAD_RECORDS == "stop" and not isinstance(error, LeadAbsent):
                raise SystemExit(f"record {name} in {DATA_DIR}: {error}. "
                                 'Fetch it again, or set BAD_RECORDS = "skip" to go on without it') from error
            left_out[f"record: {name} {error}"] += 1
            continue
        segments, complete = cut_beats(record["signals"], record["sample"], SEGMENT)
        known = symbol_labels(record["symbol"], CLASS_MAPS[CLASS_MAP]) >= 0
        signals_file.append(segments[known[complete]].reshape(-1, *signals_file.row_shape))
        records_file.append(record["signals"].T.reshape(-1, *records_file.row_shape))
        beats.append(beat_table(record))
        kept.append(complete & known)
        used[name], simulated = record["signals"].shape[1], simulated or record["simulated"]
        left_out["beats: too near to the record's ends to fill a segment"] += int(np.sum(~complete))
        left_out[f"beats: symbol not in the class map {CLASS_MAP!r}"] += int(np.sum(complete & ~known))
        left_out.update({f"annotations: {symbol!r} is not a beat": n for symbol, n in record["non_beats"].items()})
        if record["leads"] != LEADS:
            left_out[f"record: {name} has no {' '.join(LEADS)}, its first signal {' '.join(record['leads'])} stands in"] += 1
        if record["rate"] != SAMPLING_RATE:
            left_out[f"records: resampled from {record['rate']:g} to {SAMPLING_RATE} Hz"] += 1
    if not used:
        raise SystemExit(f"none of the {len(names)} records in {DATA_DIR} could be used")
    return np.concatenate(beats), np.concatenate(kept), left_out, used, simulated


def main():
    check_choice("CLASS_MAP", CLASS_MAP, CLASS_MAPS)
    check_choice("LEAD_ABSENT", LEAD_ABSENT, ["first", "skip"])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    if isinstance(LEADS, str) or not LEADS or len(set(LEADS)) < len(LEADS):
        raise SystemExit(f'LEADS = {LEADS!r}: expected a list of different lead names, as ["MLII"]')
    if DOWNLOAD and NAME in DATABASES:
        fetch_database(DATA_DIR, BASE_URL + DATABASES[NAME], "records", "*.hea", lambda name: True, CONNECTIONS)
    check_folder(DATA_DIR, f"https://physionet.org/content/{DATABASES.get(NAME, '')}")
    source = Source(DATA_DIR)
    names = record_names(source, RECORDS)
    outputs = [f"{NAME}_{part}.npy" for part in ("signals", "labels", "metadata", "records", "header")]

    with new_files(*outputs) as (signals_path, labels_path, metadata_path, records_path, header_path):
        several = [len(LEADS)] if len(LEADS) > 1 else []
        signals_file, records_file = (RowWriter(signals_path, [*several, SEGMENT], "<f4"),
                                      RowWriter(records_path, several, "<f4"))
        beats, kept, left_out, used, simulated = read_all(names, source, signals_file, records_file)
        signals_file.close()
        records_file.close()
        verdict = check_published(beats, signals_file.rows, simulated)
        beats = beats[kept]
        labels = symbol_labels(beats["symbol"], CLASS_MAPS[CLASS_MAP])
        save_array(labels_path, labels)
        save_array(metadata_path, beats)
        parts = {"signals": signals_path, "labels": labels_path, "metadata": metadata_path, "records": records_path}
        save_header(header_path, parts, dataset=NAME, class_map=CLASS_MAP, class_names=list(CLASS_MAPS[CLASS_MAP]), leads=LEADS,
                    sampling_rate=SAMPLING_RATE, simulated=simulated, record_names=list(used),
                    record_samples=list(used.values()), made_from=source.describe(constants_of(globals(), HOW_IT_RUNS)))

    print_report(beats, labels, left_out, used)
    print(f"\n{verdict}" + ("\nSIMULATED data: no figure made from it is a result" if simulated else ""))
    print(f"Wrote {', '.join(outputs)}")


if __name__ == "__main__":
    main()
