"""Cuts annotated beats out of the records of the MIT-BIH Arrhythmia Database, or of one like it.

Reads   DATA_DIR/RECORDS and {record}.hea, .dat, .atr; fetched from PhysioNet if missing (100 MB)
Writes  mitbih_signals.npy   (n, 360) float32 mV: one beat a row, its R peak at sample 180;
                             (n, leads, 360) with several LEADS
        mitbih_labels.npy    (n,) int64: index into class_names of the header
        mitbih_metadata.npy  (n,) structured: what BEAT_FIELDS names
        mitbih_records.npy   (samples,) float32 mV: the chosen lead of all records, end to end;
                             (samples, leads) with several LEADS
        mitbih_header.npy    JSON text: class names, leads, sampling rate, records, settings,
                             versions, SHA-256 of the four arrays
Takes   5 seconds for the 48 records, beside the download.

The database: Moody and Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Engineering
in Medicine and Biology, 2001.
"""

import hashlib
import json
import os
import platform
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pandas as pd
import requests  # comes with wfdb
import urllib3
import wfdb
from scipy.signal import resample_poly
from tqdm import tqdm

# data
NAME = "mitbih"           # prefix of the files written; another database, "svdb": all for testing
DATA_DIR = "mit-bih-arrhythmia-database-1.0.0"   # folder with the WFDB files
RECORDS = "all"           # "all": those listed in DATA_DIR/RECORDS, or names: ["100", "101"]
SAMPLING_RATE = 360       # Hz of the output; records of another rate are resampled
BAD_RECORDS = "stop"      # at a damaged record "stop" the run, or "skip" the record and count it

# download
DOWNLOAD = True           # fetch the files of the database that are missing
BASE_URL = "https://physionet.org/files/"   # or "https://physionet-open.s3.amazonaws.com/"
DATABASES = {             # path of each database below BASE_URL
    "mitbih": "mitdb/1.0.0/",
    "svdb": "svdb/1.0.0/",
    "incartdb": "incartdb/1.0.0/",
}

# leads and classes
LEADS = ["MLII"]          # names in the header: ["MLII", "V1"]; SVDB: ["ECG1"], INCART: ["II"]
LEAD_ABSENT = "first"     # 102 and 104 have no MLII: take the "first" signals, or "skip" them
CLASS_MAP = "aami"        # "aami" (ANSI/AAMI EC57), or "clinical": what a cardiologist names apart
SEGMENT = 360             # samples of one beat, half of them before the R peak: 1 s

# Class name -> annotation symbols. Escape beats (e, j, n) belong to N in EC57, not to S. The
# symbols B, n, r and ? occur in sister databases only. Symbols outside "aami" mark no beat, but
# rhythm, noise or flutter waves: + ~ | x [ ! ] "
CLASS_MAPS = {
    "aami": {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"},
    "clinical": {"normal": "N", "LBBB": "L", "RBBB": "R", "supraventricular": "AaJSejn",
                 "ventricular": "VEr", "fusion": "F", "paced": "/f"},
}

# The inter-patient split of de Chazal et al., IEEE Trans. Biomed. Eng. 51(7), 2004.
SUBSETS = {
    "DS1": "101 106 108 109 112 114 115 116 118 119 122 124 "
           "201 203 205 207 208 209 215 220 223 230",
    "DS2": "100 103 105 111 113 117 121 123 200 202 210 "
           "212 213 214 219 221 222 228 231 232 233 234",
    "paced": "102 104 107 217",
}
SAME_PATIENT = {"202": "201"}   # on opposite sides of the standard split

# Records, and beats by AAMI class: N S V F Q.
PUBLISHED = {
    "DS1": [22, 45866, 944, 3788, 415, 8],
    "DS2": [22, 44259, 1837, 3221, 388, 7],
    "all": [48, 90631, 2781, 7236, 803, 8043],
}

BEAT_FIELDS = [
    ("record", "<i4"),           # index into the header's records
    ("sample", "<i8"),           # position of the R peak in the record
    ("symbol", "U1"),            # annotation symbol
    ("rr", "<f4", (20,)),        # s: the ten RR intervals before the beat and the ten after it
    ("rr_record", "<f8", (5,)),  # s: RR intervals of the record: median; 10, 25, 75, 90% quantiles
]


# ---- Read one record ----

class LeadAbsent(ValueError):
    """The record lacks a chosen lead, and LEAD_ABSENT leaves it out."""


def record_names():
    """RECORDS -> list of record names."""
    if RECORDS != "all":
        return list(dict.fromkeys(map(str, RECORDS)))
    path = Path(DATA_DIR, "RECORDS")
    if not path.is_file():
        raise SystemExit(f"{path} is not in {Path.cwd()}. It lists the records: put the database "
                         "there, set DOWNLOAD = True, or see the scripts run on simulated data: "
                         "python tests/demo.py")
    return path.read_text(errors="replace").split()


def read_record(name):
    """One record -> its signals (leads, samples) float32 mV, beats and notes at SAMPLING_RATE.

    Raises ValueError with one sentence if the record is damaged or not as the constants say.
    """
    path = Path(DATA_DIR, name)
    record, signals = read_wfdb(path)
    if NAME == "mitbih":
        check_header(record, fs=360, adc_gain=200, baseline=1024)
    absent = [lead for lead in LEADS if lead not in record.sig_name]
    if absent and (LEAD_ABSENT == "skip" or len(record.sig_name) < len(LEADS)):
        raise LeadAbsent(f"no lead {' and '.join(absent)}, only {', '.join(record.sig_name)}")
    columns = list(range(len(LEADS)))
    if not absent:
        columns = [record.sig_name.index(lead) for lead in LEADS]
    leads = [record.sig_name[column] for column in columns]
    signals = signals[:, columns].T
    invalid = np.isnan(signals).sum()
    if invalid:
        raise ValueError(f"{invalid} samples of lead {' '.join(leads)} are invalid (NaN)")
    sample, symbol = read_annotations(path, record.sig_len)
    signals = resample(signals, record.fs, SAMPLING_RATE).astype(np.float32)
    sample = np.round(sample * (SAMPLING_RATE / record.fs)).astype(np.int64)
    sample = np.minimum(sample, signals.shape[1] - 1)
    is_beat = symbol_labels(symbol, CLASS_MAPS["aami"]) >= 0
    return SimpleNamespace(
        name=name, signals=signals, leads=leads, rate=record.fs,
        sample=sample[is_beat], symbol=symbol[is_beat],
        simulated=record.simulated)


def read_annotations(path, samples):
    """`atr` file -> (k,) int64 samples and (k,) symbols in time order. ValueError if damaged."""
    file = Path(f"{path}.atr")
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    content = file.read_bytes()
    known_notes = re.findall(rb"## (?:annotation type|end of) definitions", content)
    known_notes += re.findall(rb"## time resolution: \d", content)[:1]
    if content.count(b"## ") > len(known_notes) or not content.endswith(b"\0\0"):
        # wfdb 4.3 never returns from another note
        raise ValueError("the annotation file has no end mark or an unknown note: it is damaged")
    try:
        annotation = wfdb.rdann(str(path), "atr")
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"the annotation file is damaged ({error})") from error
    sample = np.asarray(annotation.sample, np.int64)
    ordered = len(sample) and sample[0] >= 0 and np.all(np.diff(sample) >= 0)
    if not ordered or sample[-1] >= samples:
        raise ValueError(f"the annotations are not in time order within {samples} samples")
    return sample, np.asarray(annotation.symbol, "U1")


def read_wfdb(path):
    """WFDB record -> wfdb.Record and (samples, leads) float64 mV.

    Raises ValueError if the samples contradict the header's length or checksums, or the unit is
    not mV.
    """
    try:
        record = wfdb.rdrecord(str(path), physical=False)
        checksums = zip(record.checksum, record.calc_checksum(), strict=True)
        wrong_sum = any((int(stored) - int(actual)) % 65536 for stored, actual in checksums)
        signals = record.dac()
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError("the header or the signal file is missing or damaged, or they do not "
                         f"fit together ({error})") from error
    bits = [{"212": 12, "16": 16}.get(form) for form in record.fmt]
    size = Path(f"{path}.dat").stat().st_size
    if None not in bits and not any(record.byte_offset):
        expected = -(-record.sig_len * sum(bits) // 8)
        if size != expected:
            raise ValueError(f"the .dat file has {size} bytes, but the header's "
                             f"{record.sig_len} samples make {expected}")
    if wrong_sum:
        raise ValueError("the samples contradict the checksums in the header")
    if set(record.units) != {"mV"}:
        raise ValueError(f"units {', '.join(record.units)}: expected mV")
    record.sig_name = [str(name) for name in record.sig_name]   # None for a lead without a name
    record.simulated = any("simulated" in comment for comment in record.comments)
    return record, signals


def check_header(record, **expected):
    """Raises ValueError if a header field differs from what the whole database has."""
    for field, value in expected.items():
        values = np.unique(getattr(record, field))
        if not np.array_equal(values, [value]):
            raise ValueError(f"its header says {field} = {' '.join(map(str, values))}, "
                             f"but all records of this database have {value}")


def resample(signals, rate, target_rate):
    """(..., samples) at `rate` Hz -> the same seconds at `target_rate` Hz, without aliasing."""
    if rate == target_rate:
        return signals
    if not 50 <= rate <= 10000:
        raise ValueError(f"sampled at {rate} Hz: expected a rate from 50 to 10,000 Hz")
    ratio = Fraction(target_rate) / Fraction(rate).limit_denominator(100)
    ratio = ratio.limit_denominator(1000)
    return resample_poly(signals, ratio.numerator, ratio.denominator, axis=-1)


# ---- Beats ----

def cut_beats(signals, sample, segment):
    """(leads, samples), (k,) beat positions -> (m, leads, segment) and (k,) mask of those m.

    A beat is left out where its segment would reach beyond the record.
    """
    start = sample - segment // 2
    complete = (start >= 0) & (start + segment <= signals.shape[1])
    columns = start[complete, None] + np.arange(segment)
    return signals[:, columns].swapaxes(0, 1), complete


def beat_table(sample, rate, record=0, symbol=""):
    """(k,) positions of all beats of one record at `rate` Hz -> (k,) table of BEAT_FIELDS."""
    table = np.zeros(len(sample), BEAT_FIELDS)
    table["record"] = record
    table["sample"] = sample
    table["symbol"] = symbol
    if len(sample):
        table["rr"] = rr_intervals(sample, rate)
        table["rr_record"] = record_rhythm(table["rr"])
    return table


def rr_intervals(sample, rate):
    """(k,) beat positions -> (k, 20) s: the ten RR intervals before and the ten after each beat.

    Column 9 ends at the beat, column 10 starts there. NaN beyond the ends of the record.
    """
    edge = np.full(10, np.nan)
    intervals = np.concatenate([edge, np.diff(sample) / rate, edge])
    return np.lib.stride_tricks.sliding_window_view(intervals, 20)[:len(sample)]


def record_rhythm(rr):
    """(k, 20) s, RR intervals of a record's beats -> (5,) s: median; 10, 25, 75, 90% quantiles."""
    known = rr[np.isfinite(rr)]
    median = np.median(known) if len(known) else 1.0
    previous = np.where(np.isfinite(rr[:, 9]), rr[:, 9], median).clip(0.1, 5)
    return [median, *np.quantile(previous.astype(np.float64), [0.10, 0.25, 0.75, 0.90])]


def symbol_labels(symbols, class_map):
    """(k,) annotation symbols -> (k,) int64 class indices, -1 for a beat outside the class map."""
    index = {symbol: i for i, group in enumerate(class_map.values()) for symbol in group}
    return np.array([index.get(symbol, -1) for symbol in symbols.tolist()], np.int64)


def cut_records(names, signals_file, records_file):
    """Writes the beats and the leads of all records to the two RowWriters.

    Returns the table of all annotated beats, their labels (-1: not in the files), the header's
    list of records, and a Counter of what was left out.
    """
    tables, labels, records, left_out = [], [], [], Counter()
    for _, record in usable_records(names, read_record, BAD_RECORDS, left_out):
        segments, complete = cut_beats(record.signals, record.sample, SEGMENT)
        label = symbol_labels(record.symbol, CLASS_MAPS[CLASS_MAP])
        signals_file.append(segments[label[complete] >= 0])
        records_file.append(record.signals.T)
        tables.append(beat_table(record.sample, SAMPLING_RATE, len(records), record.symbol))
        labels.append(np.where(complete, label, -1))
        is_mitbih = NAME == "mitbih"
        subsets = [subset for subset, names in SUBSETS.items() if record.name in names.split()]
        records.append({
            "name": record.name,
            "patient": SAME_PATIENT.get(record.name, record.name) if is_mitbih else record.name,
            "subset": subsets[0] if subsets and is_mitbih else "test",
            "leads": record.leads,
            "samples": record.signals.shape[1],
            "simulated": record.simulated,
        })
        count_left_out(left_out, record, complete, label)
    return np.concatenate(tables), np.concatenate(labels), records, left_out


# ---- Report ----

def count_left_out(left_out, record, complete, label):
    """Adds what was left out of one record, or replaced in it, to the Counter."""
    left_out["beats too near to the ends of the record to fill a segment"] += np.sum(~complete)
    left_out[f"beats outside the class map {CLASS_MAP!r}"] += np.sum(complete & (label < 0))
    if record.leads != list(LEADS):
        left_out[f"record {record.name}: {' '.join(record.leads)} stands in for the leads"] += 1
    if record.rate != SAMPLING_RATE:
        left_out[f"records resampled from {record.rate:g} to {SAMPLING_RATE} Hz"] += 1


def check_published(beats, records):
    """Compares the beats of DS1, DS2 and all records, each if complete, with the published counts.

    Other counts stop the run: the data are not the published ones. Returns a sentence.
    """
    subsets = np.array([record["subset"] for record in records])
    labels = symbol_labels(beats["symbol"], CLASS_MAPS["aami"])
    equal = []
    for subset, (size, *published) in PUBLISHED.items():
        inside = (subsets == subset) | (subset == "all")
        if NAME != "mitbih" or records[0]["simulated"] or inside.sum() < size:
            continue
        counts = np.bincount(labels[inside[beats["record"]]], minlength=5).tolist()
        if counts != published:
            raise SystemExit(f"{subset} has {counts} beats of N S V F Q, but {published} were "
                             f"published: fetch {DATA_DIR} again. Nothing was written")
        equal.append(subset)
    if not equal:
        return "Not compared with the published counts: no subset is complete"
    return f"Equal to the published counts, to the beat: {', '.join(equal)}"


def print_report(beats, labels, records):
    """Prints the beats by class and subset."""
    subsets = np.array([record["subset"] for record in records])[beats["record"]]
    classes = pd.Categorical.from_codes(labels, list(CLASS_MAPS[CLASS_MAP]))
    table = pd.crosstab(classes, subsets, margins=True, margins_name="all", dropna=False)
    print("\n" + table.rename_axis(index="class", columns="").to_string())


# ---- Main ----

def main():
    check_choice("CLASS_MAP", CLASS_MAP, CLASS_MAPS)
    check_choice("LEAD_ABSENT", LEAD_ABSENT, ["first", "skip"])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    if isinstance(LEADS, str) or not LEADS:
        raise SystemExit(f'LEADS = {LEADS!r}: expected a list of lead names, such as ["MLII"]')
    if DOWNLOAD and NAME in DATABASES:
        download(DATA_DIR, BASE_URL + DATABASES[NAME], "*.hea", lambda name: True)
    parts = ["signals", "records", "labels", "metadata", "header"]
    with new_files(*(f"{NAME}_{part}.npy" for part in parts)) as paths:
        lead_axis = (len(LEADS),) if len(LEADS) > 1 else ()
        with (closing(RowWriter(paths[0], (*lead_axis, SEGMENT))) as signals_file,
              closing(RowWriter(paths[1], lead_axis)) as records_file):
            beats, labels, records, left_out = cut_records(
                record_names(), signals_file, records_file)
        verdict = check_published(beats, records)
        simulated = any(record["simulated"] for record in records)
        beats, labels = beats[labels >= 0], labels[labels >= 0]
        save_array(paths[2], labels)
        save_array(paths[3], beats)
        save_header(dict(zip(parts, paths)), {
            "dataset": NAME, "class_map": CLASS_MAP, "class_names": list(CLASS_MAPS[CLASS_MAP]),
            "leads": LEADS, "sampling_rate": SAMPLING_RATE, "lead_absent": LEAD_ABSENT,
            "records": records, "simulated": simulated})

    print_report(beats, labels, records)
    print_notes(left_out, simulated)
    print(verdict)
    print(f"Wrote {NAME}_*.npy: {', '.join(parts)}")


# ---- Shared with the other scripts: files ----

def check_choice(name, value, allowed):
    """Stops the run with one sentence if a constant has none of its allowed values."""
    if value not in allowed:
        raise SystemExit(f"{name} = {value!r}: expected one of {', '.join(map(str, allowed))}")


def usable_records(names, read, bad_records, left_out):
    """Yields row and read(name) of each record; a damaged one stops the run or is counted."""
    count = 0
    for row, name in enumerate(tqdm(names, desc="records", unit="record", disable=None)):
        try:
            record = read(name)
        except ValueError as error:
            if bad_records == "stop" and not isinstance(error, LeadAbsent):
                raise SystemExit(f"record {name}: {error}. Fetch it again, "
                                 'or set BAD_RECORDS = "skip" to go on without it') from error
            left_out[f"record {name}: {error}"] += 1
        else:
            count += 1
            yield row, record
    if not count:
        raise SystemExit(f"none of {len(names)} records could be used: {'; '.join(left_out)[:300]}")


def print_notes(left_out, simulated):
    """Prints a Counter of what was left out and why, and whether the data are simulated."""
    print("\nLeft out or replaced" + ("" if left_out else ": nothing"))
    for reason, count in left_out.items():
        print(f"{count:>9,}  {reason}")
    print("\nSIMULATED DATA: no figure made from it is a result" if simulated else "")


@contextmanager
def new_files(*names):
    """Yields temporary paths that take their names together at the end, or vanish after an error.

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
            if path.exists():   # in a read-only folder even unlink(missing_ok=True) fails
                path.unlink()


class RowWriter:
    """Appends float32 rows to an .npy file, so that memory stays flat."""

    def __init__(self, path, row_shape):
        self.file = open(path, "wb")
        self.row_shape = row_shape
        self.rows = 0
        self.write_header()

    def write_header(self):
        """numpy pads the header, so that it can be written again with the final number of rows."""
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.row_shape)})

    def append(self, rows):
        """Appends (k, ...) rows of the file's shape; a single lead may keep its axis."""
        rows = np.ascontiguousarray(rows, "<f4").reshape(len(rows), *self.row_shape)
        self.file.write(rows)
        self.rows += len(rows)

    def close(self):
        self.write_header()
        self.file.close()


def save_array(path, array):
    """Writes an .npy file without pickle, whatever the ending of the path."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def sha256_of(path):
    """File -> its SHA-256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_header(paths, fields):
    """Writes the header of a dataset; paths: dict of part ("signals") -> file, "header" last."""
    *arrays, header = paths
    versions = {module.__name__: module.__version__ for module in (np, wfdb)}
    text = json.dumps(fields | {
        "versions": versions | {"python": platform.python_version()},
        "sha256": {part: sha256_of(paths[part]) for part in arrays}})
    save_array(paths[header], [text, hashlib.sha256(text.encode()).hexdigest()])


def load_dataset(name):
    """Name -> a dataset, after a check of every file against the SHA-256 in the header.

    signals (n, leads, samples) float32 mV, a memory map; labels (n,) int64, -1: none; metadata
    (n,) structured; record, patient (n,) names; header; is_ptbxl. MIT-BIH: records.
    """
    is_ptbxl = name == "ptbxl"
    script = "preprocess_ptbxl.py" if is_ptbxl else "preprocess_mitbih.py"
    make = f"Make all {name}_*.npy files with: python {script}"
    try:
        text, digest = np.load(f"{name}_header.npy", allow_pickle=False).tolist()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError(f"{name}_header.npy has a wrong checksum")
        header = SimpleNamespace(**json.loads(text))
        data = SimpleNamespace(name=name, is_ptbxl=is_ptbxl, header=header)
        for part, expected in header.sha256.items():
            path = f"{name}_{part}.npy"
            setattr(data, part, np.lib.format.open_memmap(path, mode="c"))
            if sha256_of(path) != expected:
                raise ValueError(f"{path} has another SHA-256 than the header says")
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename} is not in this folder. {make}") from None
    except Exception as error:   # numpy raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise SystemExit(f"the {name}_*.npy files are damaged or of different runs ({reason}). "
                         f"{make}") from error
    if data.signals.ndim == 2:
        data.signals = data.signals[:, None]
    if is_ptbxl:
        data.record = data.metadata["ecg_id"].astype(str)
        data.patient = data.metadata["patient"]
    else:
        records = pd.DataFrame(header.records).iloc[data.metadata["record"]]
        data.record = records["name"].to_numpy(str)
        data.patient = records["patient"].to_numpy(str)
    return data


# ---- Shared with preprocess_ptbxl.py: download ----

def download(folder, url, pattern, wanted):
    """Fetches the files below url that wanted(name) picks, checked against its SHA256SUMS.txt.

    Files that are there and right are kept. A folder without this list, but with files of the
    pattern, was filled by hand and stays as it is. Stops the run with one sentence on failure.
    """
    folder = Path(folder)
    listing = folder / "SHA256SUMS.txt"
    if not listing.exists() and any(folder.glob(pattern)):
        return
    connections = 16 if "amazonaws" in url else 2
    retry = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504],
                          respect_retry_after_header=False)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=connections, max_retries=retry)
    try:
        with requests.Session() as session, ThreadPoolExecutor(connections) as pool:
            session.mount(url, adapter)
            if not listing.exists():
                fetch_file(session, url + listing.name, listing, partial(parse_sums, wanted))
            sums = parse_sums(wanted, listing.read_bytes())
            if all((folder / name).exists() for name in sums):
                return
            print(f"Fetching {len(sums):,} files from {url} into {folder}", flush=True)
            jobs = pool.map(lambda name: fetch_file(
                session, url + quote(name), folder / name,
                lambda content: hashlib.sha256(content).hexdigest() == sums[name]), sums)
            list(tqdm(jobs, desc="files", unit="file", total=len(sums), disable=None))
    except (OSError, ValueError, KeyboardInterrupt) as error:   # OSError: of requests, too
        reason = str(error) or type(error).__name__
        raise SystemExit(f"The download stopped: {reason}. Run the script again to go on, or put "
                         f"the files into {folder.resolve()} and set DOWNLOAD = False. The scripts "
                         "run on simulated data with: python tests/demo.py") from error


def parse_sums(wanted, content):
    """Content of SHA256SUMS.txt -> dict of wanted name -> SHA-256, empty if it is no such list."""
    text = content.decode(errors="replace")
    lines = [re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(.+)", line) for line in text.splitlines()]
    if not all(lines) or not text.endswith("\n"):
        return {}
    sums = {line[2]: line[1].lower() for line in lines if wanted(line[2])}
    for name in sums:
        path = PureWindowsPath(name)   # knows both slashes, on any system
        if path.anchor or ".." in path.parts:
            raise ValueError(f"SHA256SUMS.txt names {name}, which is outside the folder")
    return sums


def fetch_file(session, url, path, is_right):
    """Fetches one file, unless it is there and is_right(content). ValueError if it stays wrong."""
    if path.is_file() and is_right(path.read_bytes()):
        return
    for _ in range(5):
        try:
            answer = session.get(url, timeout=60)
            answer.raise_for_status()
        except requests.exceptions.ChunkedEncodingError:   # it broke off
            continue
        if is_right(answer.content):
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_files(path) as (temporary,):
                temporary.write_bytes(answer.content)
            return
    raise ValueError(f"{url} did not come whole and right in five tries")


if __name__ == "__main__":
    main()
