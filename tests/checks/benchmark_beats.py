"""Compares the detector of R peaks with wfdb's XQRS on the annotated beats of DS1 in 10 s strips.

    cd FOLDER_WITH_MITBIH_NPY_FILES && python /path/to/checkout/tests/checks/benchmark_beats.py

Takes two minutes.
"""

import sys
import time
from pathlib import Path

import numpy as np
from wfdb.processing import xqrs_detect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness  # noqa: F401  puts the scripts on the module path

from cross_dataset_validation import mitbih_strips
from model_training import choose_sides
from preprocess_mitbih import detect_beats, load_dataset, resample

XQRS_EVERY = 13   # XQRS is slow: it gets every 13th strip


def xqrs(signals, rate):
    """(leads, samples) -> (k,) positions of the beats in the first lead."""
    return np.array(xqrs_detect(signals[0].astype(float), rate, verbose=False), dtype=int)


def compare(detected, annotated):
    """Positions of each strip in s, twice -> sensitivity, positive predictivity, within 0.1 s."""
    hits = beats = right = peaks = 0
    for found, truth in zip(detected, annotated):
        near = np.abs(found[:, None] - truth) < 0.1
        hits += near.any(axis=0).sum()
        right += near.any(axis=1).sum()
        beats += len(truth)
        peaks += len(found)
    return hits / beats, right / peaks


def main():
    data = load_dataset("mitbih")
    if data.header.r_peaks != "annotated":
        raise SystemExit('R_PEAKS = "annotated" in preprocess_mitbih.py makes the right files')
    sides = choose_sides(data, "inter_patient")
    strips = mitbih_strips(data, sides["train"] + sides["validation"])
    annotated = [beats / strips.rate for beats in strips.beats]
    print(f"{len(annotated):,} strips of 10 s, {sum(map(len, annotated)):,} annotated beats\n")
    print(f"{'detector':<14}{'Hz':>5}{'strips':>8}{'Se':>8}{'+P':>8}{'ms a strip':>12}")
    for detector, rate, step in ((detect_beats, 100, 1), (detect_beats, 360, 1),
                                 (detect_beats, 360, XQRS_EVERY), (xqrs, 360, XQRS_EVERY)):
        signals = resample(strips.signals[::step], strips.rate, rate)
        began = time.perf_counter()
        detected = [detector(strip, rate) / rate for strip in signals]
        milliseconds = 1000 * (time.perf_counter() - began) / len(signals)
        sensitivity, predictivity = compare(detected, annotated[::step])
        print(f"{detector.__name__:<14}{rate:>5}{len(signals):>8,}{sensitivity:>8.4f}"
              f"{predictivity:>8.4f}{milliseconds:>12.2f}")


if __name__ == "__main__":
    main()
