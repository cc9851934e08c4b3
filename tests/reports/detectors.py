"""Compares the beat detector of preprocess_mitbih.py with XQRS and gqrs of the wfdb package.

Run it in a folder with MIT-BIH's folder of WFDB files (five minutes):

    python tests/reports/detectors.py

All get the same lead of each record: MLII, or the first one if it is missing. Detections are paired
with the reference as in EC57, within 0.15 s and from 0:00; beats and detections in ventricular
flutter are left out. Writes results/detectors/, see runs.py, and results/detectors.md.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import pandas as pd
import runs
import wfdb
from wfdb.processing import gqrs_detect, xqrs_detect

import preprocess_mitbih as mitbih

FOLDER = Path("results/detectors")


# ---- Detectors: WFDB record of one lead -> positions ----

def find_beats(record):
    """The detector of this repository, with its re-centring."""
    return mitbih.detect_beats(record.dac().T, record.fs)


def xqrs(record):
    """XQRS of wfdb."""
    return xqrs_detect(record.dac()[:, 0], record.fs, verbose=False)


def gqrs(record):
    """gqrs of wfdb."""
    return gqrs_detect(d_sig=record.d_signal[:, 0].astype(np.int64), fs=record.fs,
                       adc_gain=record.adc_gain[0], adc_zero=record.adc_zero[0])


DETECTORS = {"find_beats": find_beats, "XQRS": xqrs, "gqrs": gqrs}


# ---- Measure ----

def compare(marks, peaks, rate):
    """Table of ANNOTATION_FIELDS, detected peaks -> dict of hits, missed and false beats."""
    reference = marks[mitbih.is_beat(marks)]["sample"]
    reference = reference[~mitbih.in_flutter(marks, reference)]
    pairs = mitbih.pair_beats(reference, peaks, rate)
    alone = peaks[pairs[pairs[:, 0] < 0, 1]]
    return {
        "hits": int((pairs >= 0).all(axis=1).sum()),
        "missed": int((pairs[:, 1] < 0).sum()),
        "false": int((~mitbih.in_flutter(marks, alone)).sum()),
    }


def measure(name, detector):
    """Names of a record and of a detector -> dict: counts, seconds, whether it is simulated."""
    record = mitbih.read_header(mitbih.data_folder(mitbih.DATA_DIR) / name)
    column = mitbih.lead_columns(record.leads, mitbih.as_names("LEADS", mitbih.LEADS)[:1]).get(0, 0)
    signal = wfdb.rdrecord(str(record.path), channels=[column], physical=False)
    began = time.perf_counter()
    peaks = np.sort(np.asarray(DETECTORS[detector](signal), np.int64))
    seconds = time.perf_counter() - began
    return {"record": name, **compare(mitbih.read_annotations(record), peaks, record.rate),
            "seconds": seconds, "simulated": "simulated" in str(record.header.comments)}


def make(detector):
    """Name of a detector -> dict with what measure gives for each record."""
    records = [measure(name, detector) for name in mitbih.record_names()]
    simulated = any(record["simulated"] for record in records)
    return {"records": records, **runs.provenance(simulated)}


def table_of(finished):
    """Dict of detector -> finished run -> table of texts, one row per detector."""
    table = {}
    for detector, run in finished.items():
        records = pd.DataFrame(run["records"])
        hits, missed, false = records[["hits", "missed", "false"]].to_numpy().T
        sensitivity = 100 * hits / (hits + missed)
        predictivity = 100 * hits / (hits + false)
        worst = np.argmax(missed + false)
        table[detector] = {
            "sensitivity, %": f"{100 * hits.sum() / (hits + missed).sum():.2f}",
            "positive predictivity, %": f"{100 * hits.sum() / (hits + false).sum():.2f}",
            "mean over records, %":
                f"{np.nanmean(sensitivity):.2f}, {np.nanmean(predictivity):.2f}",
            "missed": f"{missed.sum():,}",
            "false": f"{false.sum():,}",
            "most errors in record":
                f"{records['record'][worst]} ({missed[worst] + false[worst]:,})",
            "s per record": f"{records['seconds'].mean():.2f}",
        }
    return pd.DataFrame(table).T.rename_axis("detector")


def main():
    finished = runs.make_runs("detectors", FOLDER, {name: {"detector": name} for name in DETECTORS},
                              [Path(mitbih.DATA_DIR)])
    records = finished["find_beats"]["records"]
    beats = sum(record["hits"] + record["missed"] for record in records)
    title = f"Beat detectors on MIT-BIH, one lead, {len(records)} records, {beats:,} beats"
    runs.write_report("results/detectors.md", {title: table_of(finished)}, finished.values())


if __name__ == "__main__":
    main()
