"""Times preprocess_ptbxl.read_signals against a plain wfdb.rdsamp loop, in one run, and compares every sample.

python tests/benchmark_reading.py [DATA_DIR] from a folder with PTB-XL; without it, on simulated records.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import preprocess_ptbxl  # noqa: E402
import simulate  # noqa: E402

RECORDS = 1000


def simulated_folder(folder):
    """Simulated records without the comment that marks them, so that their headers have the real form."""
    simulate.write_ptbxl(folder, records=300)
    for header in Path(folder).rglob("*.hea"):
        header.write_text("".join(line for line in header.open() if not line.startswith("#")))


def timed(read, paths):
    """Function, paths -> (records per second, list of what it returned)."""
    began = time.perf_counter()
    signals = [read(path) for path in paths]
    return len(paths) / (time.perf_counter() - began), signals


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if len(sys.argv) == 1:
            simulated_folder(folder)
        names = pd.read_csv(folder / "ptbxl_database.csv")["filename_lr"][:RECORDS]
        paths = [str(folder / name) for name in names]
        timed(lambda path: preprocess_ptbxl.read_signals(path, 100), paths)   # both find the files in the page cache
        fast, ours = timed(lambda path: preprocess_ptbxl.read_signals(path, 100)[0], paths)
        plain, theirs = timed(lambda path: wfdb.rdsamp(path)[0], paths)
    equal = all(np.array_equal(a, b.T.astype(np.float32)) for a, b in zip(ours, theirs))
    print(f"{len(paths)} records: read_signals {fast:,.0f} records/s, wfdb.rdsamp {plain:,.0f} records/s, "
          f"ratio {fast / plain:.1f}, bit-equal: {equal}")


if __name__ == "__main__":
    main()
