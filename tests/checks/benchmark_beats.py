"""Compares the detector of R peaks with wfdb's XQRS on the annotated beats of MIT-BIH's DS1, in strips of 10 s.

Run it in a folder with the mitbih_*.npy files (two minutes):

    python /path/to/checkout/tests/benchmark_beats.py
"""

import sys
import time
from pathlib import Path

import numpy as np
from wfdb.processing import xqrs_detect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cross_dataset_validation as cross  # noqa: E402
from model_training import load_dataset, split_parts  # noqa: E402

XQRS_EVERY = 13   # strips: XQRS gets a part of them


def xqrs(signals, rate):
    """(n, leads, samples) -> list of n arrays of positions in the first lead."""
    return [np.asarray(xqrs_detect(signal[0].astype(float), rate, verbose=False)) for signal in signals]


def compare(found, wanted, rate, wanted_rate):
    """Found and annotated positions of each strip -> sensitivity and positive predictivity, within 0.1 s."""
    hits = missed = false = 0
    for peaks, truth in zip(found, wanted):
        near = np.abs(peaks[:, None] / rate - truth / wanted_rate) < .1 if len(peaks) else np.zeros((0, len(truth)), bool)
        detected = near.any(axis=0)
        hits, missed, false = hits + detected.sum(), missed + (~detected).sum(), false + (~near.any(axis=1)).sum()
    return hits / (hits + missed), hits / (hits + false)


def main():
    data = load_dataset("mitbih")
    parts = split_parts(data)
    strips = cross.mitbih_strips(data, parts["train"] + parts["validation"])
    print(f"{len(strips.beats):,} strips of 10 s, {sum(map(len, strips.beats)):,} annotated beats\n")
    print(f"{'detector':<22}{'strips':>8}{'Se':>8}{'+P':>8}{'ms a strip':>12}")
    for name, detector, rate, step in (
            ("find_beats, 100 Hz", cross.find_beats, 100, 1), ("find_beats, 360 Hz", cross.find_beats, 360, 1),
            ("find_beats, 360 Hz", cross.find_beats, 360, XQRS_EVERY), ("XQRS, 360 Hz", xqrs, 360, XQRS_EVERY)):
        signals = cross.resample(strips.signals[::step], strips.rate, rate)
        began = time.perf_counter()
        found = detector(signals, rate)
        seconds = time.perf_counter() - began
        sensitivity, predictivity = compare(found, strips.beats[::step], rate, strips.rate)
        print(f"{name:<22}{len(signals):>8,}{sensitivity:>8.4f}{predictivity:>8.4f}{1000 * seconds / len(signals):>12.2f}")


if __name__ == "__main__":
    main()
