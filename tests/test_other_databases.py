"""cross_dataset_validation.py on other databases of beats or 12 leads."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulate
import wfdb
from conftest import MITBIH
from examples import NAMES, cross
from harness import changed, contents, preprocess, run_stage
from sklearn import metrics as sk

import cross_dataset_validation as stage
import model_training
import preprocess_mitbih
import preprocess_ptbxl

pytestmark = pytest.mark.usefixtures("few_resamples", "coarse_pictures")


def other_database(names, rate, name="svdb", leads=("ECG1", "ECG2"), **constants):
    """Records of MIT-BIH {name: new name} rewritten as another database -> its dataset of beats."""
    simulate.write_mitbih(MITBIH, records=list(names), seconds=40)
    simulate.write_at_rate(MITBIH, name, names, rate, list(leads))
    return preprocess(name, DATA_DIR=name, **{"LEADS": leads[0]} | constants)


def test_a_third_database_is_scored_beat_by_beat(trained, capsys):
    names = {"101": "800", "106": "801", "208": "802", "209": "803"}   # the source's own ECGs
    target = other_database(names, 128)
    trained("mitbih", "cnn")
    capsys.readouterr()
    report, table = cross("mitbih", "svdb", "cnn")
    printed = capsys.readouterr().out
    note = "; ECG1 stands in for MLII"
    assert note in report["title"] and report["title"].replace(note, "") == (
        "cnn trained on mitbih, tested on svdb. SIMULATED DATA: no score is a result")
    assert f"\n{report['title']}. Wrote mitbih_to_svdb_cnn_cross.json, .csv\n" in printed
    tables = report["tables"]
    source = preprocess_mitbih.load_dataset("mitbih")
    checkpoint = stage.load_checkpoint(source, "cnn")
    scored = stage.score_rows(stage.predict_beats(checkpoint, target))
    assert list(tables) == list(stage.make_tables(scored, stage.summarise_metrics(scored)))
    assert all(f"\n{heading}\n" in printed for heading in tables if "counted" not in heading)
    assert set(tables["EC57 from 0:00"]) == {*names.values(), "gross", "average"}
    np.testing.assert_array_equal(table["record"], target.record)
    np.testing.assert_array_equal(table["sample"], target.metadata["sample"])
    np.testing.assert_array_equal(table["true"], np.array(NAMES)[target.labels])
    right = np.mean(table["true"] == table["called"])
    assert tables["all classes"]["accuracy"]["value"] == pytest.approx(right)
    auc = sk.roc_auc_score(table["true"] == "V", table["V score"])
    assert tables["by class"]["V"]["auc"] == pytest.approx(auc, abs=1e-6)
    own = stage.call_beats(stage.predict_beats(checkpoint, source))
    pairs = [part.assign(place=part["sample"] // 5) for part in (
        own.assign(record=own["record"].map(names)).dropna(subset="record"), table)]
    both = pd.merge(*pairs, on=["record", "place"])
    assert len(both) > len(table) / 2
    assert np.corrcoef(both["N"], both["N score"])[0, 1] > 0.95


@pytest.mark.parametrize("constants, form", [
    ({"SAMPLING_RATE": 250}, "(250, 360, ['N', 'S', 'V', 'F', 'Q'])"),
    ({"SEGMENT": 100}, "(360, 100, ['N', 'S', 'V', 'F', 'Q'])"),
    ({}, "(360, 360, ['V', 'S', 'Q', 'N', 'F'])")])
def test_a_database_of_other_beats_is_refused(trained, monkeypatch, constants, form):
    if not constants:
        classes = dict(sorted(preprocess_mitbih.CLASSES.items(), reverse=True))
        monkeypatch.setattr(preprocess_mitbih, "CLASSES", classes)
    other_database({"100": "800", "119": "801"}, 128, **constants)
    trained("mitbih", "mlp")
    message = f"beats of svdb are {form}, the model's (360, 360, ['N', 'S', 'V', 'F', 'Q']): "
    with pytest.raises(SystemExit, match=re.escape(message)):
        cross("mitbih", "svdb", "mlp")


def test_a_target_with_patients_of_the_training_says_so(trained):
    """118e06 is record 118 with noise, and 118 trains; 114 only validates."""
    other_database({"118": "118e06", "114": "114e06"}, 250, "noisy", leads=("MLII", "V1"))
    trained("mitbih", "mlp")
    report, _ = cross("mitbih", "noisy", "mlp")
    assert report["title"].endswith("no score is a result. TRAINED ON ITS PATIENTS 118")


# ---- A second 12-lead database ----

CODES = {   # an unknown one as well
    "426783006": ["SR", "NORM"], "427172004,426783006": ["PVC", "SR"],
    "733534002,426177001": ["CLBBB", "SBRAD"], "164889003,999": ["AFIB"]}
RECORDS = [f"A{number:02}" for number in range(12)]


def write_twelve_leads(*codes):
    """Simulated records of 10 and 20 s at 500 Hz, preprocessed as "other"; #Dx: codes in turn."""
    Path("other").mkdir()
    rng = np.random.default_rng(0)
    leads = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()
    for number, name in enumerate(RECORDS):
        text = codes[number % len(codes)]
        seconds = 10 + 10 * (number >= 8)
        peaks = np.arange(250, 500 * seconds - 250, rng.integers(300, 500))
        pulse = simulate.pulse_ecg(peaks, 500 * seconds, 500)[:, :1]
        ecg = pulse * rng.uniform(0.3, 1.2, 12) + rng.normal(0, 0.02, (len(pulse), 12))
        wfdb.wrsamp(name, 500, ["mV"] * 12, leads, ecg, fmt=["16"] * 12,
                    adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir="other",
                    comments=[simulate.SIMULATED, "Age: 50", "Sex: Female",
                              *[f"Dx: {text}"] * bool(text)])
    run_stage(preprocess_ptbxl, NAME="other", DATA_DIR="other", LABELS="header")


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_another_12_lead_database_has_one_row_per_record(trained, source):
    write_twelve_leads(*CODES)
    trained(source, "mlp")
    with changed(model_training, TEST_FOLD=5, VALIDATION_FOLD=10):   # are PTB-XL's own
        report, table = cross(source, "other", "mlp")
    away = table[table["side"] == "cross-domain"]
    assert away["record"].tolist() == RECORDS   # pieces of 10 s became one row
    asked = {stage.ABNORMAL, "PVC", "AFIB", "CLBBB"}
    asked |= {"SR", "SBRAD"} if source == "ptbxl" else set()   # MIT-BIH has none to train on
    metrics = report["tables"]["cross-domain"]
    assert set(metrics) == asked
    for name in asked:
        truth = 3 * [name in of_record for of_record in CODES.values()]
        if name == stage.ABNORMAL:
            truth = 3 * [False, True, True, True]
        np.testing.assert_array_equal(away[f"{name} truth"], truth)
        auc = sk.roc_auc_score(truth, away[f"{name} score"])
        assert metrics[name]["auc"] == pytest.approx(auc, abs=1e-6)
    assert table[[f"{name} score" for name in asked]].notna().all(axis=None)
    assert report["notes"]["cross-domain"].endswith(
        "; 16 of 16 pieces of 10 s scored")


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_12_lead_records_without_labels_have_scores_alone(trained, capsys, source):
    write_twelve_leads("")
    trained(source, "mlp")
    before = set(contents("."))
    report, table = cross(source, "other", "mlp")
    name = f"{source}_to_other_mlp_cross"
    assert set(contents(".")) - before == {f"{name}.json", f"{name}.csv"}
    assert report["tables"] == {} and set(report["notes"]) == {"in-domain", "cross-domain"}
    assert report["title"].endswith("tested on other. SIMULATED DATA: no score is a result. "
                                    "No positive labels: nothing was scored")
    assert f"{report['title']}. Wrote {name}.json, .csv\n" in capsys.readouterr().out
    away = table[table["side"] == "cross-domain"]
    assert away["record"].tolist() == RECORDS
    assert away[f"{stage.ABNORMAL} score"].notna().all()
    assert away[f"{stage.ABNORMAL} truth"].isna().all()


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_records_without_labels_beside_others_have_scores_and_no_part_in_metrics(trained, source):
    """Four of sinus rhythm, four with PVC, and four of which nothing is known."""
    write_twelve_leads("426783006", "427172004", "")
    trained(source, "mlp")
    report, table = cross(source, "other", "mlp")
    away = table[table["side"] == "cross-domain"]
    metrics = report["tables"]["cross-domain"]
    asked = [stage.ABNORMAL, "PVC", *["SR"] * (source == "ptbxl")]
    assert list(metrics) == asked
    for name in asked:
        truth, score = (away[f"{name} {column}"] for column in ("truth", "score"))
        np.testing.assert_array_equal(truth, 4 * [name == "SR", name != "SR", np.nan])
        assert score.notna().all()
        assert (metrics[name]["strips"], metrics[name]["n"]) == (8, 4)
        known = truth.notna()
        auc = sk.roc_auc_score(truth[known], score[known])
        assert metrics[name]["auc"] == pytest.approx(auc, abs=1e-6)


def test_a_target_without_anything_abnormal_has_no_auc_of_it(trained):
    """Sinus rhythm of normal records, which PTB-XL names."""
    write_twelve_leads("426783006")
    trained("ptbxl", "mlp")
    report, table = cross("ptbxl", "other", "mlp")
    away = table[table["side"] == "cross-domain"]
    truth, score = (away[f"{stage.ABNORMAL} {column}"] for column in ("truth", "score"))
    assert not truth.any() and score.notna().all()
    metrics = report["tables"]["cross-domain"][stage.ABNORMAL]
    assert metrics["auc"] is None and 0 <= metrics["specificity"] <= 1


# ---- Bad settings ----

@pytest.mark.parametrize("constants, message", [
    ({"PRETRAINED_DATASET": "ecg"}, "PRETRAINED_DATASET = 'ecg': expected one of"),
    ({"MODEL": "svm"}, "MODEL = 'svm': expected one of"),
    ({"TEST_DATASET": "mitbih"}, "are both 'mitbih'"),
    ({"TEST_DATASET": "svdb"}, "svdb_header.npy is not in this folder"),
    ({}, "mitbih_cnn_strips_model.pth is not in this folder. Run model_training.py: DATASET = "),
])
def test_bad_settings_stop_with_one_sentence(prepared, constants, message):
    with pytest.raises(SystemExit, match=message) as error:
        run_stage(stage, **constants)
    assert "\n" not in str(error.value)
