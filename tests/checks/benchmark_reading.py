"""Times preprocess_ptbxl.read_record against wfdb.rdsamp, in one run, and compares every sample.

    python tests/checks/benchmark_reading.py [DATA_DIR]

DATA_DIR is a folder with PTB-XL at 100 Hz; without it, simulated records are read.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import simulate
from harness import changed

import preprocess_ptbxl

RECORDS = 1000


def timed(read, names):
    """Function and record names -> records per second, what the function returned for each."""
    began = time.perf_counter()
    results = [read(name) for name in names]
    return len(names) / (time.perf_counter() - began), results


def compare(folder):
    """Folder with PTB-XL -> sentence."""
    names = pd.read_csv(Path(folder, "ptbxl_database.csv"))["filename_lr"][:RECORDS]
    read_record = partial(preprocess_ptbxl.read_record, Path(folder))
    with changed(preprocess_ptbxl, SAMPLING_RATE=100):
        timed(read_record, names)   # the files are in the page cache from now on
        ours, read = timed(read_record, names)
    plain, expected = timed(lambda name: wfdb.rdsamp(f"{folder}/{name}")[0], names)
    equal = all(np.array_equal(signals, physical.T.astype(np.float32))
                for (([signals], _), physical) in zip(read, expected))
    return (f"{len(names)} records: read_record {ours:,.0f} records/s, wfdb.rdsamp "
            f"{plain:,.0f} records/s, ratio {ours / plain:.1f}, bit-equal: {equal}")


def main():
    if len(sys.argv) > 1:
        print(compare(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        simulate.write_ptbxl(folder, records=300)
        print(compare(folder))


if __name__ == "__main__":
    main()
