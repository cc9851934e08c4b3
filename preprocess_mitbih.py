"""Cuts the beats, annotated or detected, out of the records of MIT-BIH, or of others like them.

Reads   DATA_DIR/RECORDS and {record}.hea, .dat, .atr; fetched from PhysioNet if missing (100 MB)
Writes  mitbih_signals.npy      (n, 2, 360) float32 mV: one beat a row, its R peak at sample 180;
                                a lead that a record lacks is 0 mV
        mitbih_labels.npy       (n,) int64: index into class_names of the header, -1: no class
        mitbih_metadata.npy     (n,) structured: what BEAT_FIELDS names
        mitbih_annotations.npy  (k,) structured: the reference, what ANNOTATION_FIELDS names
        mitbih_records.npy      (samples, 2) float32 mV: the leads of all records, end to end
        mitbih_header.npy       JSON text: class names, leads, sampling rate, records, settings,
                                versions, SHA-256 of the five arrays
        with a single one of LEADS, signals are (n, 360) and records (samples,)
Takes   10 seconds for the 48 records, beside the download.

The database: Moody and Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Engineering
in Medicine and Biology, 2001.
"""

import hashlib
import json
import os
import platform
import re
from collections import Counter, defaultdict
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
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, resample_poly, sosfiltfilt
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

# beats
ANNOTATOR = "atr"         # ending of the reference annotations ("qrs", "ecg"), or None: none
R_PEAKS = "annotated"     # where the beats are: "annotated", or "detected" in the signals

# leads and classes
LEADS = ["MLII", "V1"]    # names in the header; an absent one is 0 mV, but for the first one, which
                          # finds the beats: the first signal stands in, as in 102 and 104
SEGMENT = 360             # samples of one beat, half of them before the R peak: 1 s

# Classes of ANSI/AAMI EC57 -> symbols of beats, first the one that evaluation writes. Escape beats
# (e, j, n) belong to N in EC57, not to S. The symbols B, n, r and ? occur in sister databases only.
# Other symbols mark no beat, but rhythm, noise or flutter waves: + ~ | x [ ! ] "
CLASSES = {"N": "NLRBejn", "S": "SAaJ", "V": "VEr", "F": "F", "Q": "Q/f?"}

# What both databases name, as SCP statements of PTB-XL -> symbols and rhythms of the annotations.
STATEMENTS = {
    "NORM": "N", "PVC": "V E r", "PAC": "A a J S", "CLBBB": "L", "CRBBB": "R", "PACE": "/ f (P",
    "AFIB": "(AFIB (AFL", "SVTAC": "(SVTA", "SBRAD": "(SBR", "BIGU": "(B", "TRIGU": "(T",
    "2AVB": "(BII", "WPW": "(PREX",
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
    ("record", "<i4"),   # index into the header's records
    ("sample", "<i8"),   # position of the R peak at SAMPLING_RATE
    ("symbol", "U1"),    # of the annotation; empty for a detected beat without one
    ("rhythm", "U8"),    # the annotations' last one before the beat: "(AFIB"
    ("statements", "i1", len(STATEMENTS)),   # 100, or -1 where absent
]
ANNOTATION_FIELDS = [
    ("record", "<i4"),
    ("sample", "<i8"),   # at the record's own sampling rate
    ("symbol", "U1"),
    ("aux", "U8"),       # of a rhythm annotation (+): "(AFIB"
    ("label", "i1"),     # of a beat: index into class_names, -1: none
    ("row", "<i4"),      # of a beat: its row in the other arrays, -1: none
]
MILLIVOLTS = {"mv": 1.0, "uv": 0.001, "v": 1000.0}   # of the units that headers have
MARGIN = 10   # s read beyond both ends of an hour of a long record, so that no beat is cut


# ---- Read one record ----

def database():
    """DATA_DIR -> its path."""
    return Path(DATA_DIR).expanduser()


def record_names():
    """RECORDS -> list of record names."""
    listing = database() / "RECORDS"
    names = as_names(RECORDS)
    if names == ["all"]:
        if listing.is_file():
            names = listing.read_text(errors="replace").split()
        else:
            names = sorted(path.stem for path in database().glob("*.hea"))
    if not names:
        raise SystemExit(f"{listing} is not in {Path.cwd()}, nor any .hea file. Put the "
                         "database there, set DOWNLOAD = True, or see the scripts run on simulated "
                         "data: python tests/demo.py")
    return list(dict.fromkeys(names))


def read_annotations(path, header):
    """WFDB record and its header -> (k,) table of ANNOTATION_FIELDS in time order.

    Raises ValueError with one sentence if the annotation file is missing or damaged.
    """
    if ANNOTATOR is None:
        return np.zeros(0, ANNOTATION_FIELDS)
    file = Path(f"{path}.{ANNOTATOR}")
    if not file.is_file():
        raise ValueError(f"{file} is missing (ANNOTATOR = None: there is no reference)")
    content = file.read_bytes()
    known_notes = re.findall(rb"## (?:annotation type|end of) definitions", content)
    known_notes += re.findall(rb"## time resolution: \d", content)[:1]
    if content.count(b"## ") > len(known_notes) or not content.endswith(b"\0\0"):
        # wfdb 4.3 never returns from another note
        raise ValueError("the annotation file has no end mark or an unknown note: it is damaged")
    try:
        annotation = wfdb.rdann(str(path), ANNOTATOR)
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"the annotation file is damaged ({error})") from error
    table = np.zeros(len(annotation.sample), ANNOTATION_FIELDS)
    table["sample"] = np.round(annotation.sample * (header.fs / (annotation.fs or header.fs)))
    table["symbol"] = annotation.symbol
    table["aux"] = [note.strip("\0") for note in annotation.aux_note]
    table["label"] = symbol_labels(table["symbol"])
    sample = table["sample"]
    if not is_beat(table).any():
        raise ValueError("its annotations mark no beat")
    if sample[0] < 0 or np.any(np.diff(sample) < 0) or sample[-1] > header.sig_len + header.fs:
        raise ValueError("its annotations are not in time order within the record")
    return table


def read_header(path):
    """WFDB record -> its header: wfdb.Record, or wfdb.MultiRecord if it has several segments.

    Raises ValueError with one sentence if it is damaged.
    """
    try:
        text = Path(f"{path}.hea").read_bytes()
        if re.search(rb"(?m)^[^#\n]*[\xb5\xbc]V", text):   # of µV wfdb reads V
            raise ValueError("it has µV, write uV")
        header = wfdb.rdheader(str(path))
        start = wfdb.rdrecord(str(path), sampto=header.sig_len and 1,
                              physical=hasattr(header, "n_seg"))
        header.sig_len = header.sig_len or start.sig_len
        header.units = start.units   # of all segments
        header.sig_name = [str(name) for name in start.sig_name]   # None: a lead without a name
        header.skewed = any(getattr(header, "skew", []))
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"its header or signal file is missing or damaged ({error})") from error
    if not 50 <= header.fs <= 10000:
        raise ValueError(f"sampled at {header.fs} Hz: expected a rate from 50 to 10,000 Hz")
    header.simulated = any("simulated" in comment for comment in header.comments)
    return header


def read_signals(path, header, columns):
    """Yields an hour of the chosen leads of a WFDB record at a time, so that memory stays flat.

    Each time: start and stop (samples), and (leads, samples) float64 mV with MARGIN more on both
    sides. Raises ValueError if samples are invalid or contradict the header's checksums.
    """
    units = [str(header.units[column]).lower() for column in columns]
    if not set(units) <= set(MILLIVOLTS):
        raise ValueError(f"units {', '.join(units)}: expected mV, uV or V")
    hour = round(3600 * header.fs)
    margin = round(MARGIN * header.fs)
    segments = hasattr(header, "n_seg")
    total = 0
    for start in range(0, header.sig_len, hour):
        stop = min(start + hour, header.sig_len)
        first = max(0, start - margin)
        try:
            last = stop + margin if stop + margin < header.sig_len else None   # None: to the end
            record = wfdb.rdrecord(str(path), sampfrom=first, sampto=last, physical=segments)
            if not segments:   # which have gains of their own, and no checksum
                total += record.d_signal[start - first:stop - first].sum(axis=0)
                record.p_signal = record.dac()
            signals = record.p_signal[:, columns] * [MILLIVOLTS[unit] for unit in units]
        except Exception as error:   # wfdb raises errors of many kinds on damaged files
            raise ValueError(f"its signal file is damaged or does not fit ({error})") from error
        if header.skewed:   # a lead that is moved ends too early
            signals = pd.DataFrame(signals).ffill().to_numpy()
        invalid = np.isnan(signals).sum()
        if invalid:
            raise ValueError(f"samples of its chosen leads are invalid ({invalid} NaN)")
        yield start, stop, signals.T
    if segments or None in header.checksum or header.skewed or max(header.samps_per_frame) > 1:
        return
    if ((total - header.checksum)[columns] % 65536).any():
        raise ValueError("the samples contradict the checksums in the header")


def resample(signals, rate, target_rate):
    """(..., samples) at `rate` Hz -> the same seconds at `target_rate` Hz, without aliasing."""
    if rate == target_rate:
        return signals
    ratio = Fraction(target_rate / rate).limit_denominator(1000)
    return resample_poly(signals, ratio.numerator, ratio.denominator, axis=-1, padtype="edge")


# ---- Beats: where they are ----

def qrs_energy(signals, rate):
    """(leads, samples) mV -> (samples,) mV/s: slope of all leads, 4 to 20 Hz, over 0.1 s."""
    sections = butter(2, (4, 20), "bandpass", fs=rate, output="sos")
    slope = np.gradient(sosfiltfilt(sections, signals), 1 / rate, axis=1)
    power = uniform_filter1d(np.square(slope).sum(axis=0), round(0.1 * rate))
    return np.sqrt(power.clip(0))   # rounding makes it negative on a flat line


def find_beats(energy, rate):
    """(samples,) qrs_energy -> (k,) positions of the beats.

    A beat is a peak, 0.25 s from a higher one, that stands out by 0.22 of what the beats around
    it do (the median of the ten most prominent peaks in 10 s), and by 0.2 mV/s. A peak less than
    0.36 s after a beat and with less than 0.4 of its prominence is a T wave.
    """
    peaks, found = find_peaks(energy, distance=0.25 * rate, prominence=0.2, wlen=2 * rate)
    height = found["prominences"]
    middle = peaks.clip(5 * rate, len(energy) - 5 * rate)
    first = np.searchsorted(peaks, middle - 5 * rate)
    last = np.searchsorted(peaks, middle + 5 * rate)
    usual = [np.median(np.sort(height[a:b])[-10:]) for a, b in zip(first, last)]
    is_beat = height > 0.22 * np.array(usual)
    peaks = peaks[is_beat]
    height = height[is_beat]
    gap = np.diff(peaks, prepend=-rate)
    is_t_wave = (gap < 0.36 * rate) & (height < 0.4 * np.roll(height, 1))
    return peaks[~is_t_wave]


def recentre(signals, energy, sample, rate):
    """(leads, samples) mV, its qrs_energy, (k,) marks of beats -> (k,) positions by one rule.

    From the mark to the largest energy within 0.12 s, and on to the largest deviation from the
    local baseline within 0.06 s. Where the mark was put makes no difference then.
    """
    reach = round(0.12 * rate)
    sample = sample + around(energy, sample, reach).argmax(axis=-1) - reach
    baseline = np.median(around(signals, sample, round(0.3 * rate)), axis=-1, keepdims=True)
    reach = round(0.06 * rate)
    deviation = np.abs(around(signals, sample, reach) - baseline).sum(axis=0)
    return (sample + deviation.argmax(axis=-1) - reach).clip(0, len(energy) - 1)


def detect_beats(signals, rate):
    """(leads, samples) mV -> (k,) positions of the beats, from all leads together."""
    energy = qrs_energy(signals, rate)
    return recentre(signals, energy, find_beats(energy, rate), rate)


def around(values, sample, reach):
    """(..., samples), (k,) positions -> (..., k, 2 * reach + 1) values around them."""
    columns = sample[:, None] + np.arange(-reach, reach + 1)
    return values[..., columns.clip(0, values.shape[-1] - 1)]


def pair_beats(reference, test, rate, start=0):
    """Samples of two annotators in time order -> (pairs, 2) indices, -1 for no partner.

    The rule of EC57 as in bxb of the WFDB software: of the two next beats, the earlier one has
    the other for a partner if that is within 0.15 s and nearer than the beat after it, or if the
    two beats after them are nearer to each other. Beats before `start` s are not compared, but
    one may be the partner of the first one after.
    """
    window = int(0.15 * rate + 0.5)
    start = int(start * rate + 0.5)
    never = 2 ** 62
    reference = [*reference, never, never]
    test = [*test, never, never]
    i = int(np.searchsorted(reference, start))
    j = int(np.searchsorted(test, start))
    if start:
        def gap(k):
            return abs(reference[i] - test[k])
        if gap(j - 1) <= window and gap(j - 1) < gap(j):
            j -= 1
        elif test[j] <= start + window and gap(j + 1) < gap(j):
            j += 1
    pairs = []
    while min(reference[i], test[j]) < never:
        apart = test[j] - reference[i]
        after = test[j + 1] - reference[i] if apart < 0 else test[j] - reference[i + 1]
        next_apart = test[j + 1] - reference[i + 1]
        partners = abs(apart) <= window and min(abs(apart), abs(next_apart)) < abs(after)
        pairs.append((i if partners or apart >= 0 else -1, j if partners or apart < 0 else -1))
        i += pairs[-1][0] >= 0
        j += pairs[-1][1] >= 0
    return np.array(pairs, np.int64).reshape(-1, 2)


# ---- Beats: cut and label ----

def cut_beats(signals, sample, segment):
    """(leads, samples), (k,) beat positions -> (m, leads, segment) and (k,) mask of those m.

    A beat is left out where its segment would reach beyond the record.
    """
    start = sample - segment // 2
    complete = (start >= 0) & (start + segment <= signals.shape[1])
    columns = start[complete, None] + np.arange(segment)
    return signals[:, columns].swapaxes(0, 1), complete


def symbol_labels(symbols):
    """(k,) annotation symbols -> (k,) int64 indices of CLASSES, -1 for what marks no beat."""
    index = {symbol: i for i, group in enumerate(CLASSES.values()) for symbol in group}
    return pd.Series(symbols).map(index).fillna(-1).to_numpy(np.int64)


def is_beat(annotations):
    """(k,) table of ANNOTATION_FIELDS -> mask of the beats."""
    return annotations["label"] >= 0


def cut_record(name, signals_file, records_file):
    """Writes the beats and the leads of one record to the two RowWriters, an hour at a time.

    Returns its wfdb header with its leads, its annotations, (k,) positions of all its beats at
    SAMPLING_RATE, and mask of those that were written; the others are too near to its ends.
    Raises ValueError with one sentence if the record is damaged or not as the constants say.
    """
    path = database() / name
    header = read_header(path)
    leads = as_names(LEADS)
    columns = {0: 0} | lead_columns(header.sig_name, leads)   # the first stands in
    annotations = read_annotations(path, header)
    scale = SAMPLING_RATE / header.fs
    marks = np.round(annotations["sample"][is_beat(annotations)] * scale).astype(np.int64)
    marks = marks.clip(max=round(header.sig_len * scale) - 1)
    positions, written = [], []
    for start, stop, present in read_signals(path, header, list(columns.values())):
        present = resample(present, header.fs, SAMPLING_RATE)
        signals = np.zeros((len(leads), present.shape[1]), np.float32)
        signals[list(columns)] = present
        start = round(start * scale)
        stop = round(stop * scale)
        first = max(0, start - MARGIN * SAMPLING_RATE)
        lead = present[:1]   # one finds the beats: with V1, P waves are found, too
        energy = qrs_energy(lead, SAMPLING_RATE)
        found = first + find_beats(energy, SAMPLING_RATE) if is_detected() else marks
        found = found[(found >= start) & (found < stop)] - first
        sample = np.sort(recentre(lead, energy, found, SAMPLING_RATE))
        segments, complete = cut_beats(signals, sample, SEGMENT)
        signals_file.append(segments)
        records_file.append(signals[:, start - first:stop - first].T)
        positions.append(first + sample)
        written.append(complete)
    header.leads = {leads[place]: header.sig_name[column] for place, column in columns.items()}
    return header, annotations, np.concatenate(positions), np.concatenate(written)


def label_beats(header, annotations, positions):
    """Header, annotations, (k,) positions of a record's beats -> (k,) BEAT_FIELDS, (k,) labels.

    A beat takes symbol and label of its annotation; a detected one, of its partner within 0.15 s.
    Without a partner it is "not a beat"; in ventricular flutter or without a reference it has no
    label (-1). Sets the field "row" of the annotations: number of their beat, or -1.
    """
    table = np.zeros(len(positions), BEAT_FIELDS)
    table["sample"] = positions
    labels = np.full(len(positions), -1)
    marks = np.flatnonzero(is_beat(annotations))
    beats = np.arange(len(marks))
    if is_detected():
        sample = np.round(positions * (header.fs / SAMPLING_RATE))
        if ANNOTATOR:
            labels[~in_flutter(annotations, sample)] = len(CLASSES)
        pairs = pair_beats(annotations["sample"][marks], sample, header.fs)
        partners, beats = pairs[(pairs >= 0).all(axis=1)].T
        marks = marks[partners]
    annotations["row"] = -1
    annotations["row"][marks] = beats
    table["symbol"][beats] = annotations["symbol"][marks]
    labels[beats] = annotations["label"][marks]
    rhythm = pd.Series(annotations["aux"]).where(annotations["symbol"] == "+").ffill().fillna("")
    table["rhythm"][beats] = rhythm[marks]
    for place, names in enumerate(STATEMENTS.values()):
        found = np.isin([table["symbol"], table["rhythm"]], names.split()).any(axis=0)
        table["statements"][:, place] = np.where(found, 100, -1)
    return table, labels


def in_flutter(annotations, sample):
    """Table of ANNOTATION_FIELDS of a record, (k,) samples -> mask of those between [ and ]."""
    onset, end = (annotations["sample"][annotations["symbol"] == mark] for mark in "[]")
    return np.searchsorted(onset, sample, side="right") > np.searchsorted(end, sample)


def cut_records(names, signals_file, records_file):
    """Writes the beats and the leads of all records to the two RowWriters.

    Returns labels and metadata of the beats, all annotations, the header's list of records, and a
    Counter of what was left out.
    """
    labels, beats, annotations, records, left_out = [], [], [], [], Counter()

    def cut(name):
        rows = signals_file.rows, records_file.rows
        try:
            return rows, *cut_record(name, signals_file, records_file)
        except ValueError:
            signals_file.truncate(rows[0])
            records_file.truncate(rows[1])
            raise
    for place, (rows, header, marks, positions, written) in usable_records(
            names, cut, BAD_RECORDS, left_out):
        table, label = label_beats(header, marks, positions)
        count_left_out(left_out, header, written, marks, label)
        row = np.where(written, rows[0] + np.cumsum(written) - 1, -1)
        marks["row"] = np.append(row, -1)[marks["row"]]
        marks["record"] = table["record"] = len(records)
        labels.append(label[written])
        beats.append(table[written])
        annotations.append(marks)
        records.append(describe(names[place], header, records_file.rows - rows[1]))
    return (*map(np.concatenate, (labels, beats, annotations)), records, left_out)


def describe(name, header, samples):
    """Name and header of a record, its samples here -> its line in the dataset's header.

    A record that was made of one of MIT-BIH, such as 118e06, has that one's patient.
    """
    subset_of = {name: subset for subset, names in SUBSETS.items() for name in names.split()}
    text = " ".join([name, *header.comments])
    originals = re.findall(r"(?<!\d)\d{3}(?!\d)", name) + re.findall(r"record (\d{3})\b", text)
    patients = [f"patient {number}" for number in re.findall(r"patient\W*(\d+)", text)]
    patients += [SAME_PATIENT.get(record, record) for record in originals if record in subset_of]
    return {
        "name": name,
        "patient": [*patients, name][0],
        "subset": subset_of.get(name, "test") if NAME == "mitbih" else "test",
        "leads": header.leads,
        "samples": samples,
        "rate": header.fs,
        "simulated": header.simulated,
    }


# ---- Report ----

def count_left_out(left_out, header, written, annotations, label):
    """Adds what was left out of one record, or replaced in it, to the Counter."""
    missed = is_beat(annotations) & (annotations["row"] < 0)
    lead, *others = as_names(LEADS)
    left_out += Counter({
        "beats too near to the ends of the record to fill a segment": np.sum(~written),
        "annotated beats that were not detected": np.sum(missed),
        "beats without a label": np.sum(written & (label < 0)),
        "records without a beat": int(not len(written)),
        "records that lack one of the leads": int(len(header.leads) <= len(others)),
        f"record {header.record_name}: the first signal stands in for lead {lead}":
            int(lead_name(header.leads[lead]) != lead_name(lead)),
        f"records resampled from {header.fs:g} to {SAMPLING_RATE} Hz":
            int(header.fs != SAMPLING_RATE),
    })


def check_published(annotations, records):
    """Compares the beats of DS1, DS2 and all records, each if complete, with the published counts.

    Other counts stop the run: the data are not the published ones. Returns a sentence.
    """
    subsets = np.array([record["subset"] for record in records])
    beats = annotations[is_beat(annotations)]
    equal = []
    for subset, (size, *published) in PUBLISHED.items():
        inside = (subsets == subset) | (subset == "all")
        if (NAME, ANNOTATOR) != ("mitbih", "atr") or records[0]["simulated"] or inside.sum() < size:
            continue
        counts = np.bincount(beats["label"][inside[beats["record"]]], minlength=5).tolist()
        if counts != published:
            raise SystemExit(f"{subset} has {counts} beats of N S V F Q, but {published} were "
                             f"published: fetch {DATA_DIR} again (own CLASSES: PUBLISHED = {{}})")
        equal.append(subset)
    return f"Equal to the published counts, to the beat: {', '.join(equal) or 'none is complete'}"


def print_report(beats, labels, records):
    """Prints the beats by class and subset."""
    subsets = np.array([record["subset"] for record in records])[beats["record"]]
    names = [*class_names(), "no label"]   # -1 takes the last one
    classes = pd.Categorical(np.array(names)[labels], names)
    table = pd.crosstab(classes, subsets, margins=True, margins_name="all", dropna=False)
    print("\n" + table.rename_axis(index="class", columns="").to_string())


# ---- Main ----

def is_detected():
    """Whether a detector finds the beats."""
    return R_PEAKS == "detected" or ANNOTATOR is None


def class_names():
    """Names of the labels."""
    return [*CLASSES] + ["not a beat"] * (is_detected() and ANNOTATOR is not None)


def main():
    check_choice("R_PEAKS", R_PEAKS, ["annotated", "detected"])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    leads = as_names(LEADS)
    if NAME == "ptbxl" or not isinstance(SAMPLING_RATE, int):
        raise SystemExit(f"NAME = {NAME!r}, SAMPLING_RATE = {SAMPLING_RATE!r}: expected another "
                         "name than ptbxl, and a whole number of Hz")
    if DOWNLOAD and NAME in DATABASES:
        download(database(), BASE_URL + DATABASES[NAME], "*.hea", "")
    parts = ["signals", "records", "labels", "metadata", "annotations", "header"]
    with new_files(*(f"{NAME}_{part}.npy" for part in parts)) as paths:
        lead_axis = (len(leads),) if len(leads) > 1 else ()
        with (closing(RowWriter(paths[0], (*lead_axis, SEGMENT))) as signals_file,
              closing(RowWriter(paths[1], lead_axis)) as records_file):
            labels, beats, annotations, records, left_out = cut_records(
                record_names(), signals_file, records_file)
        if not len(labels):
            raise SystemExit(f"no beat of the {len(records)} records (signals in mV?) fills a "
                             f"segment of {SEGMENT} samples: {'; '.join(left_out)}")
        verdict = check_published(annotations, records)
        simulated = any(record["simulated"] for record in records)
        for path, array in zip(paths[2:], (labels, beats, annotations)):
            save_array(path, array)
        save_header(dict(zip(parts, paths)), {
            "class_names": class_names(),
            "symbols": [symbols[0] for symbols in CLASSES.values()],
            "statement_names": list(STATEMENTS),
            "leads": leads, "sampling_rate": SAMPLING_RATE,
            "annotator": ANNOTATOR, "r_peaks": "detected" if is_detected() else "annotated",
            "records": records, "simulated": simulated})

    print_report(beats, labels, records)
    print_notes(left_out, simulated)
    print(f"{verdict}\nWrote {NAME}_*.npy: {', '.join(parts)}")


# ---- Shared with the other scripts: files ----

def check_choice(name, value, allowed):
    """Stops the run with one sentence if a constant has none of its allowed values."""
    if type(value) not in (str, int) or value not in allowed:
        raise SystemExit(f"{name} = {value!r}: expected one of {', '.join(map(str, allowed))}")


def as_names(value):
    """A constant that takes names: "II V1", ["II", "V1"], ("100",) or 100 -> list of str."""
    names = value.replace(",", " ").split() if isinstance(value, str) else np.ravel(value).tolist()
    if not names or {*map(type, names)} - {str, int}:   # such as a set, None
        raise SystemExit(f'{value!r} has no names: expected a list of them, such as ["II", "V1"]')
    return list(map(str, names))


def lead_name(name):
    """Name of a lead in a header -> its usual one: "MLII", "ECG II", "ii" -> "II"."""
    name = re.sub(r"^(ECG|LEAD|ML)[ _-]*", "", name.strip().upper())
    return "II" if name == "1" else name   # ECG1 of SVDB


def lead_columns(names, wanted):
    """Lead names of a record, wanted ones -> dict of place among the wanted -> its column."""
    names = list(map(lead_name, names))
    return {place: names.index(lead) for place, lead in enumerate(map(lead_name, wanted))
            if lead in names}


def usable_records(names, read, bad_records, left_out):
    """Yields row and read(name) of each record; a damaged one stops the run or is counted."""
    skipped = defaultdict(list)
    for row, name in enumerate(tqdm(names, desc="records", disable=None)):
        try:
            record = read(name)
        except ValueError as error:
            if bad_records == "stop":
                raise SystemExit(f"record {name}: {error}. Mend or replace it, "
                                 'or set BAD_RECORDS = "skip" to go on without it') from error
            skipped[str(error).split(" (")[0]].append(name)
        else:
            yield row, record
    for reason, records in skipped.items():
        left_out[f"records, {' '.join(records[:3])} ...: {reason}"] = len(records)
    if sum(map(len, skipped.values())) == len(names):
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

    def truncate(self, rows):
        """Drops the rows after the first `rows`."""
        self.file.seek(4 * (rows - self.rows) * int(np.prod(self.row_shape)), os.SEEK_END)
        self.file.truncate()
        self.rows = rows

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
    (n,) structured; record, patient (n,) names; header; is_ptbxl. MIT-BIH: records, annotations.
    """
    make = f"Make all {name}_*.npy files with preprocess_mitbih.py or preprocess_ptbxl.py"
    try:
        text, digest = np.load(f"{name}_header.npy", allow_pickle=False).tolist()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError(f"{name}_header.npy has a wrong checksum")
        header = SimpleNamespace(**json.loads(text))
        is_ptbxl = not hasattr(header, "records")
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
        raise SystemExit(f"{name}_*.npy are damaged or of several runs ({reason}). {make}"
                         ) from error
    if data.signals.ndim == 2:
        data.signals = data.signals[:, None]
    if is_ptbxl:
        data.record = data.metadata["record"]
        data.patient = data.metadata["patient"]
    else:
        records = pd.DataFrame(header.records)
        of_beat = records.iloc[data.metadata["record"]]
        data.record = of_beat["name"].to_numpy(str)
        data.patient = of_beat["patient"].to_numpy(str)
        data.annotations = pd.DataFrame(np.asarray(data.annotations)).join(
            records[["name", "rate"]], on="record")
        data.annotations["record"] = data.annotations.pop("name")
    return data


# ---- Shared with preprocess_ptbxl.py: download ----

def download(folder, url, pattern, prefixes):
    """Fetches the files below url that its SHA256SUMS.txt lists, and checks them by it.

    Files that are there and right are kept; if none is missing, they are not read. A folder
    without this list, but with files of the pattern, was filled by hand and stays as it is.
    prefixes: how the wanted names begin. Stops the run with one sentence on failure.
    """
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
                fetch_file(session, url + listing.name, listing, partial(parse_sums, prefixes))
            sums = parse_sums(prefixes, listing.read_bytes())
            if all((folder / name).exists() for name in sums):
                return
            print(f"Fetching {len(sums):,} files from {url} into {folder}", flush=True)
            jobs = pool.map(lambda name: fetch_file(
                session, url + quote(name), folder / name,
                lambda content: hashlib.sha256(content).hexdigest() == sums[name]), sums)
            list(tqdm(jobs, desc="files", total=len(sums), disable=None))
    except (OSError, ValueError, KeyboardInterrupt) as error:   # OSError: of requests, too
        reason = str(error) or type(error).__name__
        raise SystemExit(f"The download stopped: {reason}. Run the script again to go on, or put "
                         f"the files into {folder.resolve()} and set DOWNLOAD = False. The scripts "
                         "run on simulated data with: python tests/demo.py") from error


def parse_sums(prefixes, content):
    """Content of SHA256SUMS.txt -> dict of wanted name -> SHA-256, empty if it is no such list."""
    text = content.decode(errors="replace")
    lines = [re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(.+)", line) for line in text.splitlines()]
    if not all(lines) or not text.endswith("\n"):
        return {}
    sums = {line[2]: line[1].lower() for line in lines if line[2].startswith(prefixes)}
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
