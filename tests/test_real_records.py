"""The scripts on published records, skipped if these are not at hand.

Each database is looked for in the folder that the script downloads to, below the folder that pytest
is started in, then in ../shared/data next to the checkout: mitdb with the 48 records of the MIT-BIH
Arrhythmia Database, ptb-xl-500hz with some records of PTB-XL at 500 Hz and its two tables.
"""

import contextlib
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from harness import ROOT, changed, rows_of_marks, run_stage
from sklearn.metrics import f1_score

import model_training
import preprocess_mitbih
import preprocess_ptbxl


def folder_with(name, script, shared):
    """DATA_DIR of the script, or the folder in ../shared/data, if it has the file; else None."""
    folders = (Path.cwd() / Path(script.DATA_DIR).expanduser(),
               ROOT.parent / "shared/data" / shared)
    return next((folder for folder in folders if (folder / name).exists()), None)


MITDB = folder_with("RECORDS", preprocess_mitbih, "mitdb")
PTBXL = folder_with("records500", preprocess_ptbxl, "ptb-xl-500hz")

needs_mitdb = pytest.mark.skipif(not MITDB, reason="no MIT-BIH records at hand")
needs_ptbxl = pytest.mark.skipif(not PTBXL, reason="no PTB-XL records of 500 Hz at hand")


@contextlib.contextmanager
def ran_in(folder, stage, **constants):
    """Runs a stage in a folder -> what it printed; the folder is removed after."""
    try:
        with contextlib.chdir(folder):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                run_stage(stage, DOWNLOAD=False, **constants)
            yield printed.getvalue()
    finally:
        shutil.rmtree(folder)   # 0.3 GB


# ---- MIT-BIH ----

@pytest.fixture(scope="module")
def mitbih(tmp_path_factory):
    """All 48 records -> what the script printed, the dataset; the tests run in its folder."""
    folder = tmp_path_factory.mktemp("mitbih")
    with ran_in(folder, preprocess_mitbih, DATA_DIR=str(MITDB)) as printed:
        yield printed, preprocess_mitbih.load_dataset("mitbih")


@needs_mitdb
def test_mitbih_has_the_published_counts(mitbih):
    printed, data = mitbih
    assert "Equal to the published counts, to the beat: DS1, DS2\n" in printed
    assert "56  beats in unreadable signal, or too near to an end of a record" in printed
    assert data.signals.shape == (109_438, 2, 360)
    assert not data.header.simulated and len(data.header.records) == 48
    classes = preprocess_mitbih.CLASSES
    class_of = {symbol: name for name, symbols in classes.items() for symbol in symbols}
    annotated = Counter()
    complete = Counter()
    rows = Counter()
    for record in data.header.records:
        subset = record["subset"]
        annotation = wfdb.rdann(str(MITDB / record["name"]), "atr")
        for sample, symbol in zip(annotation.sample, annotation.symbol):
            if symbol in class_of:
                annotated[subset, class_of[symbol]] += 1
                complete[subset, class_of[symbol]] += 180 <= sample <= 650_000 - 180
        for label in data.labels[data.record == record["name"]]:
            rows[subset, list(classes)[label]] += 1
    for subset in ("DS1", "DS2"):
        counts = [annotated[subset, name] for name in classes]
        assert counts == preprocess_mitbih.PUBLISHED[subset][1:]
    assert rows.total() == complete.total()
    # a beat at the very limit may come to lie on the other side
    assert max(abs(rows[key] - complete[key]) for key in complete) <= 1


@needs_mitdb
@pytest.mark.parametrize("name, lead", [   # of the first place
    ("100", "MLII"), ("114", "MLII"), ("102", "V5")])
def test_mitbih_beats_and_annotations_equal_those_of_wfdb(mitbih, name, lead):
    _, data = mitbih
    physical, _ = wfdb.rdsamp(str(MITDB / name), channel_names=[lead])
    voltage = physical[:, 0].astype(np.float32)
    annotation = wfdb.rdann(str(MITDB / name), "atr")

    names = [record["name"] for record in data.header.records]
    start = names.index(name) * len(voltage)   # all records are equally long
    np.testing.assert_array_equal(data.records[start:start + len(voltage), 0], voltage)
    rows = np.flatnonzero(data.record == name)
    sample = data.metadata["sample"][rows]
    np.testing.assert_array_equal(
        data.signals[rows, 0], voltage[sample[:, None] + np.arange(-180, 180)])
    marks = data.annotations[data.annotations["record"] == names.index(name)]
    np.testing.assert_array_equal(marks["sample"], annotation.sample)
    assert marks["symbol"].tolist() == annotation.symbol
    assert marks["aux"].tolist() == [note.strip("\0") for note in annotation.aux_note]
    row = rows_of_marks(data)[data.annotations["record"] == names.index(name)]
    marks = marks[row >= 0]
    np.testing.assert_array_equal(row[row >= 0], rows)
    moved = np.abs(marks["sample"] - sample)
    assert moved.max() <= 54 and np.median(moved) <= 5   # 0.15 s, 14 ms


@needs_mitdb
def test_detected_beats_are_the_annotated_ones():
    """By bxb's rule, in every third record from its beginning, without ventricular flutter."""
    counts = Counter()
    with changed(preprocess_mitbih, DATA_DIR=str(MITDB), R_PEAKS="detected"):
        for name in preprocess_mitbih.record_names()[::3]:
            cut = preprocess_mitbih.cut_record(MITDB, name)
            reference = cut.marks["sample"][preprocess_mitbih.is_beat(cut.marks)]
            pairs = preprocess_mitbih.pair_beats(reference, cut.peaks, 360)
            counts["found"] += int((pairs >= 0).all(axis=1).sum())
            counts["beats"] += len(reference)
            alone = cut.peaks[pairs[pairs[:, 0] < 0, 1]]
            counts["extra"] += int((~preprocess_mitbih.in_flutter(cut.marks, alone)).sum())
    assert counts["found"] / counts["beats"] >= .9985, counts      # sensitivity
    called = counts["found"] + counts["extra"]
    assert counts["found"] / called >= .9975, counts               # positive predictivity


@needs_mitdb
@pytest.mark.parametrize("name", ["119", "207", "213", "232"])
def test_marks_moved_by_up_to_19_ms_give_the_same_positions(name):
    record = preprocess_mitbih.read_header(MITDB / name)
    annotations = preprocess_mitbih.read_annotations(record)
    marks = annotations["sample"][preprocess_mitbih.is_beat(annotations)]
    [(*_, signals)] = preprocess_mitbih.read_signals(record, [0])
    energy = preprocess_mitbih.qrs_energy(signals, 360)
    moved = marks + np.random.default_rng(0).integers(-6, 7, len(marks))
    right, other = (preprocess_mitbih.recentre(signals, energy, sample, 360)
                    for sample in (marks, moved))
    np.testing.assert_array_equal(right, other)


@needs_mitdb
def test_a_short_training_reaches_its_score_on_patients_that_it_has_not_seen(mitbih):
    with contextlib.redirect_stdout(io.StringIO()):
        run_stage(model_training, MODEL="mlp", SECOND_NET=False, RECIPES={
            "mitbih": {"epochs": 2, "ensemble_size": 1, "hold_out": True}})
    _, data = mitbih
    checkpoint = model_training.load_checkpoint(data, "mlp")
    assert checkpoint.recipe.sides["validation"] == ["114", "124", "203", "220", "223"]
    assert checkpoint.recipe.called == [True, True, True, False, False]   # F: of two patients
    rows = model_training.split_rows(data, checkpoint.recipe)["validation"]
    [logits], rows = model_training.predict_rows(checkpoint, data, rows)
    probability = model_training.probabilities(logits, checkpoint.recipe)
    called = model_training.call_classes(data, rows, probability, checkpoint.recipe)
    assert f1_score(data.labels[rows], called, labels=[0, 1, 2], average="macro") > 0.7


# ---- PTB-XL ----

@needs_ptbxl
def test_ptbxl_signals_at_500_hz_equal_those_of_wfdb(tmp_path):
    """Of the first 120 records, because all of them fill 5 GB."""
    table = pd.read_csv(PTBXL / "ptbxl_database.csv", nrows=120)
    table.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    for name in ("scp_statements.csv", "records500"):
        (tmp_path / name).symlink_to(PTBXL / name)
    with ran_in(tmp_path, preprocess_ptbxl, DATA_DIR=".", SAMPLING_RATE=500):
        data = preprocess_mitbih.load_dataset("ptbxl")
        assert data.signals.shape[1:] == (12, 5000) and len(data.signals) >= 100
        for ecg_id, signals in zip(data.record.astype(int), data.signals):
            path = PTBXL / f"records500/{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}_hr"
            physical, fields = wfdb.rdsamp(str(path))
            assert fields["sig_name"] == preprocess_ptbxl.LEADS
            np.testing.assert_array_equal(signals, physical.T.astype(np.float32))
