"""preprocess_mitbih.py: published counts, what a run prints, the header and the files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from harness import changed, preprocess

import preprocess_mitbih as stage


def published_beats():
    """Beats as many as published, all of a subset in its first record -> beats, records."""
    counts = {subset: np.array(published[1:]) for subset, published in stage.PUBLISHED.items()}
    counts["paced"] = np.array([506, 0, 227, 0, 8028])
    records, record, label = [], [], []
    for subset, names in stage.SUBSETS.items():
        record += [len(records)] * counts[subset].sum()
        label += np.repeat(range(5), counts[subset]).tolist()
        records += [{"name": name, "subset": subset, "simulated": False} for name in names.split()]
    beats = np.zeros(len(record), stage.ANNOTATION_FIELDS)
    beats["record"] = record
    beats["label"] = label
    return beats, records


def test_published_counts_are_compared_to_the_beat():
    beats, records = published_beats()
    assert len(beats) == 109_494
    assert stage.check_published(beats, records).endswith(": DS1, DS2")
    ds1 = beats[beats["record"] < 22]
    assert stage.check_published(ds1, records[:22]).endswith(": DS1")
    for some_beats, some_records in (
            (ds1[ds1["record"] < 21], records[:21]),
            (beats, [record | {"simulated": True} for record in records])):
        assert stage.check_published(some_beats, some_records).endswith(": none is complete")
    for annotator in (None, "qrs"):   # nothing was published of other annotations
        with changed(stage, ANNOTATOR=annotator):
            assert "DS" not in stage.check_published(beats[:0], records)
    beats["label"][np.flatnonzero(beats["label"] == 1)[-1]] = 0   # in a record of DS2
    with pytest.raises(SystemExit, match="DS2 has .44260, 1836, .* but .44259, 1837, "):
        stage.check_published(beats, records)


def test_the_report_counts_beats_by_class_and_subset(capsys):
    beats = np.zeros(5, stage.BEAT_FIELDS)
    beats["record"] = [0, 0, 0, 1, 2]
    records = [{"subset": "DS1"}, {"subset": "DS1"}, {"subset": "DS2"}]
    stage.print_report(beats, np.array([0, 0, 2, 2, -1]), records)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in ("beats DS1 DS2 all", "class", "N 2 0 2", "S 0 0 0", "V 2 0 2", "no label 0 1 1",
                "all 4 1 5"):
        assert row.split() in lines


def test_what_is_left_out_is_counted(database, capsys):
    rows = len(preprocess().labels)
    printed = capsys.readouterr().out
    beats = sum(symbol not in "+~|" for _, symbols in database.values() for symbol in symbols)
    assert rows < beats
    assert (f"{beats - rows}  beats in unreadable signal, or too near to an end of a record to "
            "fill a segment\n") in printed
    assert "seconds of unreadable" not in printed
    assert "2  records that lack one of the leads" in printed   # 102 and 114 have no V1
    assert "1  records in which V5 stands in for MLII\n" in printed


# ---- Files ----

def test_the_header_names_leads_and_the_sha256_of_each_array(database):
    header = preprocess(RECORDS=["101", "114", "118"]).header
    assert header.simulated and header.statement_names == list(stage.STATEMENTS)
    assert (header.annotator, header.r_peaks) == ("atr", "annotated")
    assert header.symbols == header.class_names == ["N", "S", "V", "F", "Q"]
    assert {record["rate"] for record in header.records} == {360}
    assert header.leads == ["MLII", "V1"] and header.sampling_rate == 360
    assert header.sha256 == {
        part: hashlib.sha256(Path(f"mitbih_{part}.npy").read_bytes()).hexdigest()
        for part in ("signals", "records", "labels", "metadata", "annotations")}


@pytest.mark.parametrize("row_shape", [(2,), (3, 5)])
def test_rows_that_come_in_pieces_make_the_file_that_numpy_writes(work, row_shape):
    rows = np.random.default_rng(0).normal(size=(20, *row_shape)).astype(np.float32)
    with stage.row_writer("rows.npy", row_shape) as append:
        for piece in (rows[:7], rows[7:7], rows[7:]):
            append(piece)
    np.save("numpy.npy", rows)
    assert Path("rows.npy").read_bytes() == Path("numpy.npy").read_bytes()
