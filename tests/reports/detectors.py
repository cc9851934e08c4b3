"""Compares the beat detector of preprocess_mitbih.py with XQRS and gqrs of the wfdb package.

Run it in a folder with MIT-BIH's folder of WFDB files (five minutes):

    python tests/reports/detectors.py

All get the same lead of each record: MLII, or the first one where it is absent. Detections are
paired with the reference as in EC57, within 0.15 s and from 0:00; beats and detections in
ventricular flutter are left out. Each detector and record is a line of
results/detectors_{code version}.jsonl and is not made again: stop the script at any time and start
it again to go on. Writes results/detectors.md.
"""

import json
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

FOLDER = Path("results")


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

def compare(annotations, found, rate):
    """Table of ANNOTATION_FIELDS, positions -> dict of hits, missed and false beats."""
    reference = annotations[mitbih.is_beat(annotations)]["sample"]
    reference = reference[~mitbih.in_flutter(annotations, reference)]
    pairs = mitbih.pair_beats(reference, found, rate)
    alone = found[pairs[pairs[:, 0] < 0, 1]]
    return {
        "hits": int((pairs >= 0).all(axis=1).sum()),
        "missed": int((pairs[:, 1] < 0).sum()),
        "false": int((~mitbih.in_flutter(annotations, alone)).sum()),
    }


def measure(name, detector):
    """Names of a record and of a detector -> dict: counts, seconds, whether it is simulated."""
    path = Path(mitbih.DATA_DIR, name)
    header = mitbih.read_header(path)
    columns = list((mitbih.lead_columns(header.sig_name, mitbih.LEADS) or {0: 0}).values())
    record = wfdb.rdrecord(str(path), channels=columns[:1], physical=False)
    began = time.perf_counter()
    found = np.sort(np.asarray(DETECTORS[detector](record), np.int64))
    seconds = time.perf_counter() - began
    counts = compare(mitbih.read_annotations(path, header), found, header.fs)
    return {"detector": detector, "record": name, **counts, "seconds": seconds,
            "simulated": header.simulated}


def measure_all(path):
    """Measures what has no line in the file yet -> table, one row a detector and record."""
    rows = []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    done = {(row["detector"], row["record"]) for row in rows}
    for detector in DETECTORS:
        for name in mitbih.record_names():
            if (detector, name) in done:
                continue
            rows.append(measure(name, detector))
            with open(path, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{detector} {name}: {rows[-1]['seconds']:.1f} s", flush=True)
    return pd.DataFrame(rows)


# ---- Table ----

def table_of(rows):
    """Table of measure_all -> table of texts, one row a detector."""
    table = {}
    for detector, of_detector in rows.groupby("detector", sort=False):
        hits, missed, false = of_detector[["hits", "missed", "false"]].to_numpy().T
        sensitivity = hits / (hits + missed)
        predictivity = hits / (hits + false)
        worst = np.argmax(missed + false)
        table[detector] = {
            "sensitivity, %": f"{100 * hits.sum() / (hits + missed).sum():.2f}",
            "positive predictivity, %": f"{100 * hits.sum() / (hits + false).sum():.2f}",
            "mean over records, %": f"{100 * np.nanmean(sensitivity):.2f}, "
                                    f"{100 * np.nanmean(predictivity):.2f}",
            "missed": f"{missed.sum():,}",
            "false": f"{false.sum():,}",
            "most errors in record": f"{of_detector['record'].iloc[worst]} "
                                     f"({missed[worst] + false[worst]:,})",
            "s a record": f"{of_detector['seconds'].mean():.2f}",
        }
    return pd.DataFrame(table).T.rename_axis("detector")


def main():
    FOLDER.mkdir(exist_ok=True)
    rows = measure_all(FOLDER / f"detectors_{runs.code_version()}.jsonl")
    one = rows[rows["detector"] == rows["detector"].iloc[0]]
    beats = (one["hits"] + one["missed"]).sum()
    title = f"Beat detectors on MIT-BIH, one lead, {len(one)} records, {beats:,} beats"
    source = {"header": {"simulated": bool(rows["simulated"].any())},
              "recipe": {"split": "inter_patient"}}
    runs.write_report(FOLDER / "detectors.md", {title: runs.markdown(table_of(rows))}, [source])


if __name__ == "__main__":
    main()
