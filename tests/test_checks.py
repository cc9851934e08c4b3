"""The checks that are run by hand fit the scripts as they stand: each runs here on little data."""

import json

import benchmark_beats
import benchmark_memory
import benchmark_reading
import benchmark_training  # noqa: F401  needs real data: it is imported only
import compare_with_bxb  # noqa: F401  the same
import fuzz  # noqa: F401  takes minutes
import kill_and_resume  # noqa: F401  the same
import pytest
from harness import write_ptbxl


def test_the_detectors_are_compared_on_strips(prepared, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_beats, "XQRS_EVERY", 60)
    benchmark_beats.main()
    *_, ours, other = (line.split() for line in capsys.readouterr().out.splitlines())
    assert ours[0] == "detect_beats" and other[0] == "xqrs"
    assert float(ours[3]) > 0.98   # sensitivity


def test_the_readers_are_compared_sample_by_sample(work):
    write_ptbxl(work, records=20)
    assert benchmark_reading.compare(str(work)).endswith("bit-equal: True")


@pytest.mark.parametrize("in_memory", [False, True])
def test_memory_is_measured_with_signals_on_disk_or_in_memory(
        work, quick_pictures, capsys, in_memory):
    benchmark_memory.write_arrays(records=40)
    benchmark_memory.measure(in_memory)
    seconds, anonymous, mapped = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert seconds > 0 and anonymous > 0 and mapped > 0
