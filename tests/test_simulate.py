"""simulate.py: any length works, a record does not depend on the others, wfdb finds nothing wrong."""

import numpy as np
import pytest
import wfdb

import simulate


@pytest.mark.parametrize("seconds", [20, 231, 240, 251, 300])
def test_any_length(work, seconds):
    annotations = simulate.write_mitbih(work, records=("101", "208", "203"), seconds=seconds)
    for record, (samples, symbols) in annotations.items():
        header = wfdb.rdrecord(record, physical=False)
        assert header.sig_len == 360 * seconds and simulate.SIMULATED in header.comments
        assert [c % 65536 for c in header.checksum] == [c % 65536 for c in header.calc_checksum()]
        assert len(samples) == len(symbols) and samples.max() < header.sig_len and np.all(np.diff(samples) >= 0)


def test_a_record_does_not_depend_on_the_others(work):
    simulate.write_mitbih(work / "one", records=("119",), seconds=20)
    simulate.write_mitbih(work / "two", records=("101", "119"), seconds=20)
    for suffix in ("hea", "dat", "atr"):
        assert (work / "one" / f"119.{suffix}").read_bytes() == (work / "two" / f"119.{suffix}").read_bytes()
