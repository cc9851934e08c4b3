"""Cuts heartbeats, annotated or detected, out of MIT-BIH or any other WFDB records.

Reads   DATA_DIR/RECORDS and {record}.hea, .dat, .ANNOTATOR; fetched if missing (100 MB)
Writes  mitbih_signals.npy      (n, 2, 360) float32 mV: one beat per row, its R peak at sample
                                180; a missing lead is 0 mV
        mitbih_labels.npy       (n,) int64: index into class_names of the header, -1: no class
        mitbih_metadata.npy     (n,) structured, see BEAT_FIELDS
        mitbih_annotations.npy  (k,) structured, see ANNOTATION_FIELDS
        mitbih_records.npy      (samples, 2) float32 mV: the leads of all records, end to end
        mitbih_header.npy       JSON text: kind ("beats"), class names, leads, sampling rate,
                                records with their unreadable seconds, SHA-256 of the arrays
Takes   10 seconds for the 48 records, plus the download.

The database: Moody and Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Engineering
in Medicine and Biology, 2001.
"""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, partial
from glob import glob
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock
from urllib.parse import quote

import numpy as np
import pandas as pd
import urllib3  # comes with wfdb
import wfdb
from scipy.ndimage import median_filter, uniform_filter1d
from scipy.signal import butter, find_peaks, resample_poly, sosfiltfilt
from tqdm import tqdm

# data
NAME = "mitbih"           # prefix of the files; with another name, all records are test data
DATA_DIR = "mit-bih-arrhythmia-database-1.0.0"   # folder with the WFDB files
RECORDS = "all"           # "all": those in the file RECORDS, else all .hea files; or names
SAMPLING_RATE = 360       # Hz of the arrays; records of another rate are resampled
BAD_RECORDS = "stop"      # "stop" the run at a damaged record, or "skip" and count it

# download
DOWNLOAD = True           # fetch the missing files of the database
BASE_URL = "https://physionet.org/files/"   # or "https://physionet-open.s3.amazonaws.com/"
DATABASES = {             # path of each database below BASE_URL
    "mitbih": "mitdb/1.0.0/",
    "svdb": "svdb/1.0.0/",
    "incartdb": "incartdb/1.0.0/",
}

# beats
ANNOTATOR = "atr"         # extension of the annotation files: "qrs", "ecg"; or None
R_PEAKS = "annotated"     # "annotated", or "detected" in the signals

# leads and classes
# Names of leads in the headers: "II" is also found as "MLII" or "Lead 2", any other name ("CH1") as
# it is. The first lead finds the beats; if a record lacks it, the record's first signal stands in,
# as in 102 and 104. Other missing leads are 0 mV.
LEADS = ["MLII", "V1"]
SEGMENT = 360             # samples per beat, half of them before the R peak: 1 s at 360 Hz

# Classes of ANSI/AAMI EC57 -> symbols of beats; a call is written as the first one. Escape beats
# (e, j, n) belong to N, not to S. The symbols B, n, r and ? occur in sister databases only. Other
# symbols mark rhythm, noise, flutter waves, blocked P waves or comments: + ~ | [ ! ] x "
CLASSES = {"N": "NLRBejn", "S": "SAaJ", "V": "VEr", "F": "F", "Q": "Q/f?"}

# SCP statement of PTB-XL -> the MIT-BIH symbols and rhythms that mean the same.
STATEMENTS = {
    "NORM": "N", "PVC": "V E r", "PAC": "A a J S", "CLBBB": "L", "CRBBB": "R", "PACE": "/ f (P",
    "AFIB": "(AFIB (AFL", "SVTAC": "(SVTA", "SBRAD": "(SBR", "BIGU": "(B (AB", "TRIGU": "(T",
    "2AVB": "(BII", "WPW": "(PREX",
}
# The inter-patient split of de Chazal et al., IEEE Trans. Biomed. Eng. 51(7), 2004. 201 and 202 are
# one patient: delete 202 from DS2 to leave it out.
SUBSETS = {
    "DS1": "101 106 108 109 112 114 115 116 118 119 122 124 "
           "201 203 205 207 208 209 215 220 223 230",
    "DS2": "100 103 105 111 113 117 121 123 200 202 210 "
           "212 213 214 219 221 222 228 231 232 233 234",
    "paced": "102 104 107 217",
}

# Records, and beats by AAMI class: N S V F Q.
PUBLISHED = {
    "DS1": [22, 45866, 944, 3788, 415, 8],
    "DS2": [22, 44259, 1837, 3221, 388, 7],
}

BEAT_FIELDS = [
    ("record", "<i4"),   # index into the header's records
    ("sample", "<i8"),   # position of the R peak at SAMPLING_RATE
    ("symbol", "U1"),    # of the annotation; empty for a detected beat without one
    ("rhythm", "U8"),    # the last one that was annotated before the beat: "(AFIB"
    ("statements", "i1", len(STATEMENTS)),   # 100, or -1 if the beat does not have it
]
ANNOTATION_FIELDS = [
    ("record", "<i4"),
    ("sample", "<i8"),   # at the record's own sampling rate
    ("symbol", "U1"),
    ("aux", "U8"),       # note; of a rhythm annotation (+): "(AFIB"
    ("label", "i1"),     # of a beat: index into class_names; -1: no beat
]


# ---- Constants and names ----

def check_choice(name, value, allowed):
    """Stops the run with one sentence if a constant has none of its allowed values."""
    if type(value) not in (str, int) or value not in allowed:
        raise SystemExit(f"{name} = {value!r}: expected one of {', '.join(map(str, allowed))}")


def check_number(name, value, least, largest):
    """Constant, its value and range -> the value as int, or as float if `least` is a float.

    Stops the run with one sentence if it is no such number.
    """
    kind = np.integer if isinstance(least, int) else np.number
    if not np.issubdtype(type(value), kind) or not least <= value <= largest:
        whole = "whole " if kind is np.integer else ""
        raise SystemExit(f"{name} = {value!r}: expected a {whole}number from {least} to {largest}")
    return type(least)(value)


def as_names(constant, value):
    """A constant and its value: "II V1", ["II", "V1"], ("100",) or 100 -> list of str."""
    names = value.replace(",", " ").split() if isinstance(value, str) else np.ravel(value).tolist()
    if not names or {*map(type, names)} - {str, int}:   # such as a set, None
        raise SystemExit(f'{constant} = {value!r}: expected a list of names, such as ["II", "V1"]')
    return list(map(str, names))


def lead_name(name):
    """Name of a lead in a header -> its usual name: "MLII", "DII", "ECG Lead 2", "ii" -> "II".

    A name that tells no position, such as "ECG1" or "ch1", stays but for the case.
    """
    name = name.strip().upper()
    form = re.fullmatch(
        r"(?:E[CK]G[ _-]*)?(?:(LEAD|ML|D)[ _-]*)?(I{1,3}|AV[RLF]|V\dR?|[1-3])", name)
    if not form or (form[2].isdigit() and not form[1]):
        return name
    return "I" * int(form[2]) if form[2].isdigit() else form[2]


def lead_columns(available, wanted):
    """Names of available and of wanted leads -> dict of wanted index -> available index.

    Of several leads of one name, the first is taken first.
    """
    free = list(map(lead_name, available))
    columns = {}
    for index, lead in enumerate(map(lead_name, wanted)):
        if lead in free:
            columns[index] = free.index(lead)
            free[columns[index]] = None
    return columns


def record_names():
    """RECORDS -> list of record names."""
    folder = data_folder(DATA_DIR)
    names = as_names("RECORDS", RECORDS)
    if names == ["all"]:
        names = header_names(folder)
        if (folder / "RECORDS").is_file():
            names = (folder / "RECORDS").read_text(errors="replace").split()
    if not names:
        raise SystemExit(f"DATA_DIR: no {folder / 'RECORDS'} in {Path.cwd()}, nor any .hea file. "
                         "Put the database there, set DOWNLOAD = True, or see the scripts run on "
                         "simulated data: python tests/demo.py")
    return list(dict.fromkeys(names))


def header_names(folder):
    """Folder -> sorted names of all records in it, in its subfolders and in linked ones."""
    headers = glob("**/*.hea", root_dir=folder, recursive=True)
    return sorted(name.removesuffix(".hea") for name in headers)


def data_folder(name):
    """DATA_DIR -> its path, or that of the only database one folder deeper."""
    if not isinstance(name, (str, Path)):
        raise SystemExit(f"DATA_DIR = {name!r}: expected the path of a folder")
    folder = Path(name).expanduser()
    places = {path.parent for form in ("RECORDS", "*.hea", "*/RECORDS", "*/*.hea")
              for path in folder.glob(form)}
    is_deeper = len(places) == 1 and any(folder.glob("*/RECORDS"))
    return places.pop() if is_deeper else folder


# ---- Read one record ----

class Record(NamedTuple):
    """What is known of a WFDB record before its signals are read."""
    path: Path
    header: wfdb.Record   # or wfdb.MultiRecord, if it has several segments
    rate: float           # Hz, of the signal with most samples per frame
    samples: int          # of that signal
    per_frame: list       # samples of each signal in a frame
    leads: list           # names of its signals
    units: list           # of its signals


@cache
def signal_fields():
    """wfdb's table of header fields as a dict, because wfdb looks up each field of each header."""
    table = wfdb.io._header.SIGNAL_SPECS
    cells = {(field, column): table.loc[field, column] for field in table.index for column in table}
    return SimpleNamespace(index=table.index, loc=cells)


def read_wfdb(read, path, **options):
    """Reader of wfdb, path of a record, options -> what it reads.

    Drops date and time, and the ending of the record's name (E00001.mat in Georgia): wfdb 4.3
    refuses some of them and has no option for that. Reads headers seven times faster.
    """
    parse = wfdb.io._header._parse_record_line

    def parse_undated(line):
        return parse(" ".join(re.sub(r"^(\S+)\.\w+", r"\1", line).split()[:4]))
    with mock.patch.multiple(wfdb.io._header, SIGNAL_SPECS=signal_fields(),
                             _parse_record_line=parse_undated):
        return read(str(path), **options)


def read_header(path):
    """Path of a WFDB record -> Record. Raises ValueError with one sentence if it is damaged."""
    try:
        text = Path(f"{path}.hea").read_bytes()
        if re.search(rb"(?m)^[^#\n]*[\xb5\xbc]V", text):   # wfdb reads µV as V
            raise ValueError("it has µV, write uV")
        header = read_wfdb(wfdb.rdheader, path)
        start = read_wfdb(wfdb.rdrecord, path, sampto=header.sig_len and 1,
                          physical=hasattr(header, "n_seg"), smooth_frames=False)
        most = max(start.samps_per_frame)
        samples = most * (header.sig_len or start.sig_len)
        leads = list(map(str, start.sig_name))   # None: a lead without a name
        record = Record(path, header, most * header.fs, samples, start.samps_per_frame, leads,
                        start.units)
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"its header or signal file is missing or damaged ({error})") from error
    if not 50 <= record.rate <= 10000:
        raise ValueError(f"sampled at {record.rate} Hz: expected a rate from 50 to 10,000 Hz")
    if 4880 in start.adc_gain:
        raise ValueError("its gain is 4880 per mV, where later releases of Georgia say 1000")
    return record


def read_signals(record, columns):
    """Yields the chosen leads of a Record hour by hour, so that memory stays flat.

    Each time: start and stop of the hour, first sample that was read, (leads, samples) float64 mV.
    10 s more are read on both sides, so that no beat is cut in two. A missing sample is NaN. Raises
    ValueError if the samples contradict the header's checksums.
    """
    header = record.header
    millivolts = {"mv": 1.0, "uv": 0.001, "v": 1000.0}
    factors = [millivolts.get(str(record.units[column]).lower()) for column in columns]
    if None in factors:
        raise ValueError(f"units {', '.join(map(str, record.units))}: expected mV, uV or V")
    is_segmented = hasattr(header, "n_seg")
    most = max(record.per_frame)
    frames = record.samples // most
    hour = round(3600 * header.fs)
    margin = round(10 * header.fs)
    sums = np.zeros(len(columns), int)
    for start in range(0, frames, hour):
        stop = min(start + hour, frames)
        first = max(0, start - margin)
        last = stop + margin if stop + margin < frames else None   # None: to the end
        try:
            part = read_wfdb(wfdb.rdrecord, record.path, sampfrom=first, sampto=last,
                             physical=is_segmented, smooth_frames=False)
            if not is_segmented:   # segments have gains of their own, and no checksum
                counts = [part.e_d_signal[column].reshape((last or frames) - first, -1)
                          for column in columns]
                sums += [of_lead[start - first:stop - first].sum() for of_lead in counts]
                part.e_p_signal = part.dac(expanded=True)
            signals = [factor * resample(part.e_p_signal[column], record.per_frame[column], most)
                       for column, factor in zip(columns, factors)]
        except Exception as error:   # wfdb raises errors of many kinds on damaged files
            raise ValueError(f"its signal file is damaged or does not fit ({error})") from error
        yield most * start, most * stop, most * first, np.stack(signals)
    if is_segmented or None in header.checksum or not any(header.checksum):   # 0: not computed
        return
    if ((sums - np.array(header.checksum)[columns]) % 65536).any():
        raise ValueError("the samples contradict the checksums in the header")


def resample(signals, rate, target_rate):
    """(..., samples) at `rate` Hz -> the same seconds at `target_rate` Hz, without aliasing."""
    if rate == target_rate:
        return signals
    ratio = Fraction(target_rate / rate).limit_denominator(1000)
    change = partial(resample_poly, up=ratio.numerator, down=ratio.denominator, axis=-1,
                     padtype="edge")
    gain = change(np.ones(signals.shape[-1], signals.dtype))   # an offset would get a ripple
    return change(signals) / gain


def read_annotations(record):
    """Record -> (k,) table of ANNOTATION_FIELDS in time order.

    Raises ValueError with one sentence if the annotation file is missing or damaged.
    """
    if ANNOTATOR is None:
        return np.zeros(0, ANNOTATION_FIELDS)
    file = Path(f"{record.path}.{ANNOTATOR}")
    if not file.is_file():
        raise ValueError(f"{file} is missing (ANNOTATOR = None: there is no reference)")
    content = file.read_bytes()
    known = rb"(?:time resolution: \d|annotation type def|end of def)"
    unknown = re.match(rb"(?s)\0X.\xfc## (?!%b)" % known, content)   # a note at sample 0
    rates = re.findall(rb"\xfc## time resolution: \d", content)
    if unknown or len(rates) > 1 or not content.endswith(b"\0\0"):
        raise ValueError("the annotation file has no end mark, an unknown first note or two "
                         "sampling rates: it is damaged")
    # wfdb 4.3 loops forever on other notes that begin with ##
    content = re.sub(rb"\xfc## (?!%b)" % known, b"\xfc#  ", content)
    try:
        with TemporaryDirectory() as folder:
            Path(folder, "record.qrs").write_bytes(content)
            annotation = wfdb.rdann(f"{folder}/record", "qrs")
    except Exception as error:   # wfdb raises errors of many kinds on damaged files
        raise ValueError(f"the annotation file is damaged ({error})") from error
    label_of = {symbol: label for label, symbols in enumerate(CLASSES.values())
                for symbol in symbols}
    marks = np.zeros(len(annotation.sample), ANNOTATION_FIELDS)
    rate = annotation.fs or record.header.fs   # as in the header: of frames
    marks["sample"] = np.round(annotation.sample * (record.rate / rate))
    marks["symbol"] = annotation.symbol
    marks["aux"] = [note.strip("\0") for note in annotation.aux_note]
    marks["label"] = [label_of.get(symbol, -1) for symbol in annotation.symbol]
    sample = marks["sample"]
    if not is_beat(marks).any():
        raise ValueError("its annotations mark no beat")
    if sample[0] < 0 or np.any(np.diff(sample) < 0) or sample[-1] > record.samples + record.rate:
        raise ValueError("its annotations are not in time order within the record")
    return marks


def is_beat(marks):
    """(k,) table of ANNOTATION_FIELDS -> mask of the beats."""
    return marks["label"] >= 0


# ---- Beats: where they are ----

def qrs_energy(signals, rate):
    """(leads, samples) mV -> (samples,) mV/s: slope of all leads, 4 to 20 Hz, over 0.1 s."""
    sections = butter(2, (4, 20), "bandpass", fs=rate, output="sos")
    slope = np.gradient(sosfiltfilt(sections, signals), 1 / rate, axis=1)
    power = uniform_filter1d(np.square(slope).sum(axis=0), round(0.1 * rate))
    return np.sqrt(power.clip(0))   # rounding makes it negative on a flat line


def find_beats(energy, rate):
    """(samples,) qrs_energy -> (k,) positions of the beats.

    A beat is a peak without a higher one within 0.25 s. Its prominence is above 0.2 mV/s, and above
    0.22 of the usual one: the median of the ten largest within 10 s. A peak less than 0.36 s after
    a beat and with less than 0.4 of its prominence is a T wave.
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


def recentre(signals, energy, peaks, rate):
    """(leads, samples) mV, its qrs_energy, (k,) rough positions of beats -> (k,) R peaks.

    Moves each position to the largest energy within 0.12 s, then to the largest deviation from the
    local baseline within 0.06 s. The sum is limited to 0.15 s, the match window of EC57.
    So it hardly matters where in a QRS complex a mark was put.
    """
    limit = int(0.15 * rate)
    reach = round(0.12 * rate)
    steepest = peaks + around(energy, peaks, reach).argmax(axis=-1) - reach
    baseline = np.median(around(signals, steepest, round(0.3 * rate)), axis=-1, keepdims=True)
    reach = round(0.06 * rate)
    deviation = np.abs(around(signals, steepest, reach) - baseline).sum(axis=0)
    deviation = deviation.round(4)   # mV: equal heights stay equal whatever the offset
    highest = steepest + deviation.argmax(axis=-1) - reach
    return highest.clip(peaks - limit, peaks + limit).clip(0, len(energy) - 1)


def around(values, peaks, reach):
    """(..., samples), (k,) positions -> (..., k, 2 * reach + 1) values around them."""
    columns = peaks[:, None] + np.arange(-reach, reach + 1)
    return values[..., columns.clip(0, values.shape[-1] - 1)]


def detect_beats(signals, rate):
    """(leads, samples) mV -> (k,) R peaks, found in all leads together."""
    energy = qrs_energy(signals, rate)
    return recentre(signals, energy, find_beats(energy, rate), rate)


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
        before, here, after = (abs(reference[i] - test[k]) for k in (j - 1, j, j + 1))
        if before <= window and before < here:
            j -= 1
        elif test[j] <= start + window and after < here:
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


# ---- Signal quality ----

def describe_pieces(energy, rate):
    """(samples,) qrs_energy -> (3, pieces of 5 s): largest, median, regularity of each.

    Regularity is the largest autocorrelation at 0.2 to 1.5 s.
    """
    length = 5 * rate
    pieces = np.pad(energy, (0, -len(energy) % length), mode="reflect").reshape(-1, length)
    centred = pieces - pieces.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, 2 * length)) ** 2
    correlation = np.fft.irfft(power)[:, :length] / np.arange(length, 0, -1)
    regularity = correlation[:, rate // 5:rate * 3 // 2].max(axis=1) / (correlation[:, 0] + 1e-12)
    return np.array([pieces.max(axis=1), np.median(pieces, axis=1), regularity])


def find_unreadable(largest, median, regularity):
    """describe_pieces of a record -> (pieces of 5 s,) mask of those that cannot be read.

    Noise is irregular, and its median energy is nearly half of the largest; in an ECG it is far
    below. An irregular piece is unreadable if its median exceeds 0.3 of the usual QRS (noise), or
    if most of five pieces around it are irregular without a QRS (a loose electrode, or asystole).
    """
    is_ecg = median < 0.3 * largest
    usual = np.median(largest[is_ecg]) if is_ecg.any() else 0
    no_qrs = (largest < 0.15 * usual) | (~is_ecg & (largest < 0.7 * usual))
    is_irregular = regularity < 0.5   # unlike tachycardia and flutter
    return is_irregular & (median >= 0.3 * usual) | median_filter(is_irregular & no_qrs, 5)


# ---- Beats: cut and label ----

class CutRecord(NamedTuple):
    """A record and the beats cut from it."""
    record: Record
    leads: list           # its signal for each of LEADS, or None
    marks: np.ndarray     # (k,) ANNOTATION_FIELDS
    voltage: np.ndarray   # (samples, leads) float32 mV at SAMPLING_RATE
    unreadable: np.ndarray   # (pieces of 5 s,) mask
    peaks: np.ndarray     # (m,) all R peaks
    written: np.ndarray   # (m,) mask; the others are unreadable or too near to the record's ends
    beats: np.ndarray     # (written, leads, SEGMENT) float32 mV


def is_detected():
    """Whether a detector finds the beats."""
    return R_PEAKS == "detected" or ANNOTATOR is None


def class_names():
    """Names of the classes; with a detector and a reference also "not a beat"."""
    return [*CLASSES] + ["not a beat"] * (is_detected() and ANNOTATOR is not None)


def cut_beats(signals, peaks, segment, wanted=True):
    """(leads, samples), (k,) R peaks, mask -> (m, leads, segment) and (k,) mask of those m.

    A beat is left out if its segment would reach beyond the record.
    """
    start = peaks - segment // 2
    complete = wanted & (start >= 0) & (start + segment <= signals.shape[1])
    columns = start[complete, None] + np.arange(segment)
    return signals[:, columns].swapaxes(0, 1), complete


def read_hours(record, columns, annotated):
    """Record, dict of lead_columns, (k,) annotated peaks -> voltage, unreadable, R peaks.

    (samples, LEADS) mV; (pieces of 5 s,) mask; (m,). A piece is unreadable if a sample of the first
    lead is missing, or, if a detector finds the beats, if it is noisy.
    """
    voltage, peaks, pieces, missing = [], [], [], []
    for *hour, signals in read_signals(record, list(columns.values())):
        start, stop, first = (round(sample * SAMPLING_RATE / record.rate) for sample in hour)
        gaps = np.flatnonzero(np.isnan(signals[0]))
        missing.append((hour[2] + gaps) // (5 * record.rate))
        filled = pd.DataFrame(signals.T).interpolate(limit_direction="both").fillna(0)
        signals = resample(filled.to_numpy().T, record.rate, SAMPLING_RATE)
        lead = signals[:1]   # one lead finds the beats: with V1, P waves are found too
        energy = qrs_energy(lead, SAMPLING_RATE)
        rough = first + find_beats(energy, SAMPLING_RATE) if is_detected() else annotated
        rough = rough[(rough >= start) & (rough < stop)] - first
        peaks.append(first + np.sort(recentre(lead, energy, rough, SAMPLING_RATE)))
        pieces.append(describe_pieces(energy[start - first:stop - first], SAMPLING_RATE))
        present = signals[:, start - first:stop - first].T
        voltage.append(np.zeros((len(present), len(as_names("LEADS", LEADS))), np.float32))
        voltage[-1][:, list(columns)] = present
    unreadable = find_unreadable(*np.hstack(pieces)) & is_detected()
    unreadable[np.concatenate(missing).astype(int).clip(max=len(unreadable) - 1)] = True
    return np.concatenate(voltage), unreadable, np.concatenate(peaks)


def cut_record(folder, name):
    """Folder and name of a record -> CutRecord.

    Raises ValueError with one sentence if the record is damaged or not as the constants say.
    """
    record = read_header(folder / name)
    marks = read_annotations(record)
    scale = SAMPLING_RATE / record.rate
    annotated = np.round(marks["sample"][is_beat(marks)] * scale).astype(np.int64)
    annotated = annotated.clip(max=round(record.samples * scale) - 1)
    leads = as_names("LEADS", LEADS)
    columns = {0: 0} | lead_columns(record.leads, leads)   # the first signal stands in
    voltage, unreadable, peaks = read_hours(record, columns, annotated)
    is_readable = ~unreadable[peaks // (5 * SAMPLING_RATE)]
    beats, written = cut_beats(voltage.T, peaks, SEGMENT, is_readable)
    height = np.median(np.ptp(beats[:, 0], axis=1)) if len(beats) else 0
    if height > 20:
        raise ValueError(f"its median QRS is {height:,.0f} mV high: expected about 1 mV. If the "
                         "values are uV, write uV into the header, a factor of 1000")
    signals = dict(enumerate(record.leads))
    leads = [signals.get(columns.get(index)) for index in range(len(leads))]
    return CutRecord(record, leads, marks, voltage, unreadable, peaks, written, beats)


def label_beats(cut):
    """CutRecord -> (m,) BEAT_FIELDS, (m,) labels.

    A beat takes symbol and label of its annotation; a detected one, of its partner within 0.15 s.
    Without a partner it is "not a beat"; in ventricular flutter or without a reference it has no
    label (-1).
    """
    beats = np.zeros(len(cut.peaks), BEAT_FIELDS)
    beats["sample"] = cut.peaks
    labels = np.full(len(cut.peaks), -1)
    marked = np.flatnonzero(is_beat(cut.marks))
    partners = np.arange(len(marked))
    if is_detected():
        sample = np.round(cut.peaks * (cut.record.rate / SAMPLING_RATE))
        if ANNOTATOR:
            labels[~in_flutter(cut.marks, sample)] = len(CLASSES)
        pairs = pair_beats(cut.marks["sample"][marked], sample, cut.record.rate)
        kept, partners = pairs[(pairs >= 0).all(axis=1)].T
        marked = marked[kept]
    beats["symbol"][partners] = cut.marks["symbol"][marked]
    labels[partners] = cut.marks["label"][marked]
    is_rhythm = cut.marks["symbol"] == "+"
    rhythm = pd.Series(cut.marks["aux"]).where(is_rhythm).ffill().fillna("")
    beats["rhythm"][partners] = rhythm[marked]
    for column, (name, names) in enumerate(STATEMENTS.items()):
        has_it = np.isin([beats["symbol"], beats["rhythm"]], names.split()).any(axis=0)
        if name == "NORM":   # an N beat of atrial fibrillation is not normal
            has_it &= np.isin(beats["rhythm"], ["(N", ""])
        beats["statements"][:, column] = np.where(has_it, 100, -1)
    return beats, labels


def in_flutter(marks, sample):
    """Table of ANNOTATION_FIELDS of a record, (k,) samples -> mask of those between [ and ]."""
    onset, end = (marks["sample"][marks["symbol"] == symbol] for symbol in "[]")
    return np.searchsorted(onset, sample, side="right") > np.searchsorted(end, sample)


def usable_records(names, read, bad_records, left_out):
    """Yields row and read(name) of each record; a damaged one stops the run or is skipped."""
    skipped = defaultdict(list)
    for row, name in enumerate(tqdm(names, desc="records", disable=None)):
        try:
            record = read(name)
        except ValueError as error:
            if bad_records == "stop":
                raise SystemExit(f"record {name}: {error}. Repair or replace it, "
                                 'or set BAD_RECORDS = "skip" to go on without it') from error
            skipped[str(error).replace(f"{name}.", "*.")].append(name)
        else:
            yield row, record
    for reason, records in skipped.items():
        left_out[f"records, {' '.join(records[:3])} ...: {reason}"] = len(records)
    if sum(map(len, skipped.values())) == len(names):
        raise SystemExit(f"none of {len(names)} records could be used: {'; '.join(skipped)[:300]}")


def cut_records(names, append_beats, append_voltage):
    """Appends beats and leads of all records to the two files.

    Returns labels and metadata of the beats, all annotations, the header's list of records, and a
    Counter of what was left out.
    """
    labels, beats, marks, records = [], [], [], []
    left_out = Counter()
    read = partial(cut_record, data_folder(DATA_DIR))
    for row, cut in usable_records(names, read, BAD_RECORDS, left_out):
        of_record, label = label_beats(cut)
        count_left_out(left_out, cut, of_record, label)
        append_beats(cut.beats)
        append_voltage(cut.voltage)
        cut.marks["record"] = of_record["record"] = len(records)
        labels.append(label[cut.written])
        beats.append(of_record[cut.written])
        marks.append(cut.marks)
        records.append(describe(names[row], cut))
    return (*map(np.concatenate, (labels, beats, marks)), records, left_out)


def patient_of(name, comments):
    """Name of a record, comments of its header -> name of its patient.

    "patient 7" and "Patient ID: x" name one, "patient: 45 years" does not. A record that was made
    of one of MIT-BIH has that one's patient: "record 118", 118e06 of NSTDB, sel100 of QTDB.
    """
    text = "\n".join([*comments, name])
    number = re.search(
        r"(?im)\b(?:patient|subject)[ _-]?(?:id|number)[ :#=]+(?!unk|no|n/a|anon|xx|-)([\w-]+)"
        r"|\bpatient (?:no[.: ]+)?#?(\d+) *(?:$|[.,;()])"
        r"|\bpatient(?:: ?)?(\d+)(?:$|/)", text)   # patient001/ of PTB
    if number:
        return f"patient {number[number.lastindex]}"
    made_of = re.search(
        r"(?i)\brecord (\d{3})\b(?! of )"
        r"|\bsel(\d{3})\b|\b(\d{3})e(?:\d\d|_6)\b", text)
    original = made_of[made_of.lastindex] if made_of else name
    if (made_of or NAME == "mitbih") and original in " ".join(SUBSETS.values()).split():
        return original.replace("202", "201")   # one patient, on both sides of the standard split
    return name


def describe(name, cut):
    """Name of a record, CutRecord -> its entry in the dataset's header."""
    subset_of = {name: subset for subset, names in SUBSETS.items() for name in names.split()}
    edges = 5 * np.flatnonzero(np.diff(np.pad(cut.unreadable.astype(int), 1)))
    edges = edges.clip(max=len(cut.voltage) // SAMPLING_RATE)
    return {
        "name": name,
        "patient": patient_of(name, cut.record.header.comments),
        "subset": subset_of.get(name, "left out") if NAME == "mitbih" else "test",
        "leads": cut.leads,
        "samples": len(cut.voltage),
        "unreadable": edges.reshape(-1, 2).tolist(),   # start and stop in s
        "rate": cut.record.rate,
        "simulated": "simulated" in str(cut.record.header.comments),
    }


# ---- Report ----

def count_left_out(left_out, cut, beats, labels):
    """Adds to the Counter what was left out of one record, or replaced in it."""
    missed = is_beat(cut.marks).sum() - np.sum(beats["symbol"] != "")
    lead = as_names("LEADS", LEADS)[0]
    left_out += Counter({
        "beats in unreadable signal, or too near to an end of a record to fill a segment":
            np.sum(~cut.written),
        "seconds of unreadable signal": 5 * int(cut.unreadable.sum()),
        "annotated beats that were not detected": missed,
        "beats without a label": np.sum(cut.written & (labels < 0)),
        "records that lack one of the leads": int(None in cut.leads),
        f"records in which {cut.leads[0]} stands in for {lead}":
            int(lead_name(cut.leads[0]) != lead_name(lead)),
        f"records resampled from {cut.record.rate:g} to {SAMPLING_RATE} Hz":
            int(cut.record.rate != SAMPLING_RATE),
    })


def check_published(annotations, records):
    """Compares the beats of DS1 and DS2, each if complete, with the published counts.

    Other counts stop the run: the data are not the published ones. Returns a sentence.
    """
    subsets = np.array([record["subset"] for record in records])
    beats = annotations[is_beat(annotations)]
    equal = []
    for subset, (size, *published) in PUBLISHED.items():
        inside = subsets == subset
        if ANNOTATOR != "atr" or records[0]["simulated"] or inside.sum() < size:
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
    names = np.array([*class_names(), "no label"])   # -1 takes the last one
    table = pd.crosstab(names[labels], subsets, rownames=["class"], colnames=["beats"],
                        margins=True, margins_name="all")
    print("\n" + table.reindex([*names, "all"], fill_value=0).to_string())


def print_notes(left_out, simulated):
    """Prints a Counter of what was left out and why, and whether the data are simulated."""
    print("\nLeft out or replaced" + ("" if left_out else ": nothing"))
    for reason, count in left_out.items():
        print(f"{count:>9,}  {reason}")
    print("\nSIMULATED DATA: no score made from it is a result" if simulated else "")


# ---- Files, shared with the other scripts ----

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


@contextmanager
def row_writer(path, row_shape):
    """Yields a function that appends (k, ...) float32 rows to an .npy file: memory stays flat."""
    count = 0

    def append(rows):
        nonlocal count
        count += len(rows)
        file.write(np.ascontiguousarray(rows, "<f4"))
    with open(path, "wb") as file:
        file.seek(128)   # numpy's header comes last: it has the number of rows
        yield append
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {
            "descr": "<f4", "fortran_order": False, "shape": (count, *row_shape)})


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
    text = json.dumps(fields | {"sha256": {part: sha256_of(paths[part]) for part in arrays}})
    save_array(paths[header], [text, hashlib.sha256(text.encode()).hexdigest()])


def load_dataset(name):
    """Name -> a dataset, after a check of every file against the SHA-256 in the header.

    kind ("beats" or "records"); signals (n, leads, samples) float32 mV, a memory map; labels (n,)
    int64, -1: none; metadata (n,) structured; record, patient (n,) names; leads; rate (Hz); header.
    Records: peaks, n arrays. Beats: records (samples, leads) mV, annotations.
    """
    make = f"Make all {name}_*.npy files with preprocess_mitbih.py or preprocess_ptbxl.py"
    try:
        text, digest = np.load(f"{name}_header.npy", allow_pickle=False).tolist()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError(f"{name}_header.npy has a wrong checksum")
        header = SimpleNamespace(**json.loads(text))
        data = SimpleNamespace(name=name, header=header, kind=header.kind, leads=header.leads,
                               rate=header.sampling_rate)
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
    if data.kind == "records":
        data.record = data.metadata["record"]
        data.patient = data.metadata["patient"]
        data.peaks = [peaks[peaks >= 0] for peaks in data.metadata["beats"]]
    else:
        of_beat = pd.DataFrame(header.records).iloc[data.metadata["record"]]
        data.record = of_beat["name"].to_numpy(str)
        data.patient = of_beat["patient"].to_numpy(str)
    return data


def record_voltage(data, number):
    """Dataset of beats, index of a record in the header -> (samples, leads) float32 mV."""
    samples = [record["samples"] for record in data.header.records]
    start = sum(samples[:number])
    return data.records[start:start + samples[number]]


def lead_note(data, wanted, records):
    """Dataset, leads of a model, names of records -> "; CH1 stands in for MLII", or empty."""
    columns = lead_columns(data.leads, wanted) or {0: 0}
    signals = [record["leads"] for record in getattr(data.header, "records", [])
               if record["name"] in records]
    pairs = {(of_record[column], wanted[index])
             for of_record in signals or [data.leads] for index, column in columns.items()}
    return "".join(f"; {signal} stands in for {lead}" for signal, lead in sorted(pairs, key=str)
                   if signal and lead_name(signal) != lead_name(lead))


# ---- Download, shared with preprocess_ptbxl.py ----

def download(folder, url, pattern, prefixes):
    """Fetches the files below url that its SHA256SUMS.txt lists, and checks them by it.

    Files that are there and right are kept; if none is missing, they are not read. A folder
    without this list, but with files of the pattern, was filled by hand and stays as it is.
    prefixes: how the wanted names begin. Stops the run with one sentence on failure.
    """
    listing = folder / "SHA256SUMS.txt"
    if not listing.exists() and glob(f"**/{pattern}", root_dir=folder, recursive=True):
        return
    connections = 16 if "amazonaws" in url else 2
    retry = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504],
                          respect_retry_after_header=False)
    server = urllib3.PoolManager(maxsize=connections, retries=retry, timeout=60)
    try:
        with ThreadPoolExecutor(connections) as pool:
            if not listing.exists():
                fetch_file(server, url + listing.name, listing, partial(parse_sums, prefixes))
            sums = parse_sums(prefixes, listing.read_bytes())
            if all((folder / name).exists() for name in sums):
                return
            print(f"Fetching {len(sums):,} files from {url} into {folder}", flush=True)
            jobs = pool.map(lambda name: fetch_file(
                server, url + quote(name), folder / name,
                lambda content: hashlib.sha256(content).hexdigest() == sums[name]), sums)
            list(tqdm(jobs, desc="files", total=len(sums), disable=None))
    except (OSError, ValueError, urllib3.exceptions.HTTPError, KeyboardInterrupt) as error:
        reason = str(error) or type(error).__name__
        raise SystemExit(f"The download stopped: {reason}. Run the script again to continue, or "
                         f"put the files into {folder.resolve()} and set DOWNLOAD = False. The "
                         "scripts run on simulated data with: python tests/demo.py") from error


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


def fetch_file(server, url, path, is_right):
    """Fetches one file, unless it is there and is_right(content). ValueError if it stays wrong."""
    if path.is_file() and is_right(path.read_bytes()):
        return
    for _ in range(5):
        answer = server.request("GET", url)
        if answer.status != 200:
            raise ValueError(f"{answer.status} {answer.reason} for {url}")
        if is_right(answer.data):
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_files(path) as (temporary,):
                temporary.write_bytes(answer.data)
            return
    raise ValueError(f"{url} could not be downloaded intact in five attempts")


# ---- Main ----

def check_symbols():
    """Stops the run with one sentence if CLASSES or STATEMENTS is not as expected."""
    for name, table in {"CLASSES": CLASSES, "STATEMENTS": STATEMENTS}.items():
        if not (isinstance(table, dict) and all(
                isinstance(symbols, str) and symbols for symbols in table.values())):
            raise SystemExit(f"{name} = {table!r}: expected a dict of texts, none of them empty")
    if not {"NORM", "PVC", "PAC"} <= STATEMENTS.keys():
        raise SystemExit(f"STATEMENTS = {STATEMENTS}: expected also NORM, PVC and PAC")


def main():
    check_choice("R_PEAKS", R_PEAKS, ["annotated", "detected"])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    check_number("SAMPLING_RATE", SAMPLING_RATE, 50, 10_000)
    check_number("SEGMENT", SEGMENT, 10, 100_000)
    leads = as_names("LEADS", LEADS)
    if NAME == "ptbxl":
        raise SystemExit("NAME = 'ptbxl': expected another name, this one has 12-lead records")
    check_symbols()
    if DOWNLOAD and NAME in DATABASES:
        download(data_folder(DATA_DIR), BASE_URL + DATABASES[NAME], "*.hea", "")
    parts = ["signals", "records", "labels", "metadata", "annotations", "header"]
    with new_files(*(f"{NAME}_{part}.npy" for part in parts)) as paths:
        with (row_writer(paths[0], (len(leads), SEGMENT)) as append_beats,
              row_writer(paths[1], (len(leads),)) as append_voltage):
            labels, beats, annotations, records, left_out = cut_records(
                record_names(), append_beats, append_voltage)
        if not len(labels):
            raise SystemExit(f"no beat of the {len(records)} records (signals in mV?) fills a "
                             f"segment of {SEGMENT} samples: {'; '.join(left_out)}")
        verdict = check_published(annotations, records)
        simulated = any(record["simulated"] for record in records)
        for path, array in zip(paths[2:], (labels, beats, annotations)):
            save_array(path, array)
        save_header(dict(zip(parts, paths)), {
            "kind": "beats", "class_names": class_names(),
            "symbols": [symbols[0] for symbols in CLASSES.values()],
            "statement_names": list(STATEMENTS),
            "leads": leads, "sampling_rate": SAMPLING_RATE,
            "annotator": ANNOTATOR, "r_peaks": "detected" if is_detected() else "annotated",
            "records": records, "simulated": simulated})

    print_report(beats, labels, records)
    print_notes(left_out, simulated)
    print(f"{verdict}\nWrote {NAME}_*.npy: {', '.join(parts)}")


if __name__ == "__main__":
    main()
