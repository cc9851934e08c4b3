"""simulate.py: any length works, a record does not depend on the others, wfdb reads the files."""

import numpy as np
import pytest
import simulate
import wfdb


@pytest.mark.parametrize("seconds", [20, 231, 240, 251, 300])
def test_records_of_any_length_are_valid(work, seconds):
    annotations = simulate.write_mitbih(work, records=("101", "208", "203"), seconds=seconds)
    for record, (samples, symbols) in annotations.items():
        header = wfdb.rdrecord(record, physical=False)
        assert header.sig_len == 360 * seconds
        assert simulate.SIMULATED in header.comments
        checksums = zip(header.checksum, header.calc_checksum())
        assert all((stored - actual) % 65536 == 0 for stored, actual in checksums)
        assert len(samples) == len(symbols)
        assert samples.max() < header.sig_len and np.all(np.diff(samples) >= 0)


def test_a_record_does_not_depend_on_the_others(work):
    simulate.write_mitbih(work / "one", records=("119",), seconds=20)
    simulate.write_mitbih(work / "two", records=("101", "119"), seconds=20)
    for suffix in ("hea", "dat", "atr"):
        one, two = (work / folder / f"119.{suffix}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
