"""The scripts on published records, skipped where these are not at hand.

They are looked for beside the checkout, in ../shared/data: mitdb with the 48 records of the MIT-BIH
Arrhythmia Database, ptb-xl-500hz with some records of PTB-XL at 500 Hz and its two tables.
"""

import contextlib
import io
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import wfdb
from harness import ROOT, changed, run_stage

import model_training
import preprocess_mitbih
import preprocess_ptbxl

MITDB = ROOT.parent / "shared/data/mitdb"
PTBXL = ROOT.parent / "shared/data/ptb-xl-500hz"

needs_mitdb = pytest.mark.skipif(not MITDB.is_dir(), reason="no MIT-BIH records at hand")
needs_ptbxl = pytest.mark.skipif(not PTBXL.is_dir(), reason="no PTB-XL records at hand")


@contextlib.contextmanager
def ran_in(folder, stage, **constants):
    """Runs a stage in a folder -> what it printed; the folder is removed after."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run_stage(stage, DOWNLOAD=False, **constants)
        yield printed.getvalue()
    finally:
        os.chdir(before)
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
    assert "Equal to the published counts, to the beat: DS1, DS2, all" in printed
    assert "56  beats too near to the ends of the record" in printed
    assert data.signals.shape == (109_438, 2, 360)
    assert not data.header.simulated and len(data.header.records) == 48
    class_map = preprocess_mitbih.CLASSES
    annotated = Counter()
    complete = Counter()
    for record in data.header.records:
        annotation = wfdb.rdann(str(MITDB / record["name"]), "atr")
        for sample, symbol in zip(annotation.sample, annotation.symbol):
            for name in class_map:
                is_beat = symbol in class_map[name]
                annotated[record["subset"], name] += is_beat
                complete[record["subset"], name] += is_beat and 180 <= sample <= 650_000 - 180
    for subset in ("DS1", "DS2"):
        counts = [annotated[subset, name] for name in class_map]
        assert counts == preprocess_mitbih.PUBLISHED[subset][1:]
    subset_of = {record["name"]: record["subset"] for record in data.header.records}
    rows = Counter(zip([subset_of[name] for name in data.record],
                       np.array(list(class_map))[data.labels].tolist()))
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
    marks = data.annotations[data.annotations["record"] == name]
    np.testing.assert_array_equal(marks["sample"], annotation.sample)
    assert marks["symbol"].tolist() == annotation.symbol
    assert marks["aux"].tolist() == [note.strip("\0") for note in annotation.aux_note]
    marks = marks[marks["row"] >= 0]
    np.testing.assert_array_equal(marks["row"], rows)
    moved = np.abs(marks["sample"] - sample)
    assert moved.max() <= 65 and moved.median() <= 5   # 0.18 s, 14 ms


@needs_mitdb
def test_detected_beats_are_the_annotated_ones():
    """By bxb's rule, in every third record from its beginning, without ventricular flutter."""
    counts = Counter()
    with changed(preprocess_mitbih, DATA_DIR=str(MITDB), R_PEAKS="detected"):
        for name in preprocess_mitbih.record_names()[::3]:
            _, annotations, positions, _ = preprocess_mitbih.cut_record(name, [], [])
            reference = annotations["sample"][preprocess_mitbih.is_beat(annotations)]
            pairs = preprocess_mitbih.pair_beats(reference, positions, 360)
            counts["found"] += int((pairs >= 0).all(axis=1).sum())
            counts["beats"] += len(reference)
            alone = positions[pairs[pairs[:, 0] < 0, 1]]
            counts["extra"] += int((~preprocess_mitbih.in_flutter(annotations, alone)).sum())
    assert counts["found"] / counts["beats"] >= .9985, counts      # sensitivity
    called = counts["found"] + counts["extra"]
    assert counts["found"] / called >= .9975, counts               # positive predictivity


@needs_mitdb
@pytest.mark.parametrize("name", ["119", "207", "213", "232"])
def test_marks_moved_by_up_to_19_ms_give_the_same_positions(name):
    path = MITDB / name
    header = preprocess_mitbih.read_header(path)
    annotations = preprocess_mitbih.read_annotations(path, header)
    marks = annotations["sample"][preprocess_mitbih.is_beat(annotations)]
    [(*_, signals)] = preprocess_mitbih.read_signals(path, header, [0])
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
    checkpoint = model_training.load_pth("mitbih_mlp_model.pth")
    assert checkpoint["recipe"]["sides"]["validation"] == ["114", "124", "203", "220", "223"]
    assert checkpoint["history"][-1]["validation score"] > 0.7   # mean F1 of N, S and V: 0.747


# ---- PTB-XL ----

@needs_ptbxl
def test_ptbxl_signals_at_500_hz_equal_those_of_wfdb(tmp_path):
    with ran_in(tmp_path, preprocess_ptbxl, DATA_DIR=str(PTBXL), SAMPLING_RATE=500):
        data = preprocess_mitbih.load_dataset("ptbxl")
        assert data.signals.shape[1:] == (12, 5000) and len(data.signals) >= 100
        for ecg_id, signals in zip(data.record.astype(int), data.signals):
            path = PTBXL / f"records500/{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}_hr"
            physical, fields = wfdb.rdsamp(str(path))
            assert fields["sig_name"] == preprocess_ptbxl.LEADS
            np.testing.assert_array_equal(signals, physical.T.astype(np.float32))
