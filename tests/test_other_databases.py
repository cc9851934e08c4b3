"""cross_dataset_validation.py: other databases of beats or 12 leads, recordings without labels."""

import re
from pathlib import Path
from types import SimpleNamespace

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
    target = other_database(names, 128, LEADS=["ECG1", "ECG2"])
    trained("mitbih", "cnn")
    capsys.readouterr()
    report, table = cross("mitbih", "svdb", "cnn")
    printed = capsys.readouterr().out
    assert "\nleads: ECG1 as MLII; beats: annotated\n" in printed
    assert report["title"].endswith("tested on svdb. SIMULATED DATA: no score is a result")
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
    auc = sk.roc_auc_score(table["V true"], table["V probability"])
    assert tables["by class"]["V"]["auc"] == pytest.approx(auc, abs=1e-6)
    own = stage.call_beats(stage.predict_beats(checkpoint, source))
    pairs = [part.assign(place=part["sample"] // 5) for part in (
        own.assign(record=own["record"].map(names)).dropna(subset="record"), table)]
    both = pd.merge(*pairs, on=["record", "place"])
    assert len(both) > len(table) / 2
    assert np.corrcoef(both["N"], both["N probability"])[0, 1] > 0.95


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
        assert metrics[name]["AUC"] == pytest.approx(auc, abs=1e-6)
    assert table[[f"{name} score" for name in asked]].notna().all(axis=None)
    assert report["notes"]["cross-domain"].endswith(
        "; beats found in 16 of 16 pieces of 10 s")


@pytest.mark.parametrize("source", ["ptbxl", "mitbih"])
def test_12_lead_records_without_labels_have_scores_alone(trained, capsys, source):
    write_twelve_leads("")
    trained(source, "mlp")
    before = set(contents("."))
    run_stage(stage, PRETRAINED_DATASET=source, TEST_DATASET="other", MODEL="mlp")
    name = f"{source}_to_other_mlp_cross.csv"
    assert set(contents(".")) - before == {name}
    printed = capsys.readouterr().out
    assert "tested on other. SIMULATED DATA: no score is a result\n" in printed
    assert f"other has no positive labels: nothing was scored. Wrote {name}" in printed
    table = pd.read_csv(name)
    away = table[table["side"] == "cross-domain"]
    assert away["record"].tolist() == RECORDS
    assert away[f"{stage.ABNORMAL} score"].notna().all()
    assert away[f"{stage.ABNORMAL} truth"].isna().all()


def test_a_target_without_anything_abnormal_has_no_auc_of_it(trained):
    """Sinus rhythm of normal records, which PTB-XL names."""
    write_twelve_leads("426783006")
    trained("ptbxl", "mlp")
    report, table = cross("ptbxl", "other", "mlp")
    away = table[table["side"] == "cross-domain"]
    truth, score = (away[f"{stage.ABNORMAL} {column}"] for column in ("truth", "score"))
    assert not truth.any() and score.notna().all()
    metrics = report["tables"]["cross-domain"][stage.ABNORMAL]
    assert metrics["AUC"] is None and 0 <= metrics["specificity"] <= 1


# ---- Recordings without a reference ----

def own_recordings():
    """Two simulated records without annotations at 250 Hz, preprocessed as "own"."""
    simulate.write_mitbih(MITBIH, records=["106", "119"], seconds=60)
    simulate.write_at_rate(MITBIH, "own", {"106": "left", "119": "right"}, 250, ["II", "V5"])
    return preprocess("own", DATA_DIR="own", LEADS=["II"], ANNOTATOR=None)


def test_a_model_of_records_calls_no_beats(trained):
    own_recordings()
    trained("ptbxl", "mlp")
    with pytest.raises(SystemExit, match="ANNOTATOR = None, .* 'ptbxl': expected one of mitbih$"):
        run_stage(stage, PRETRAINED_DATASET="ptbxl", TEST_DATASET="own", MODEL="mlp")


def called(record, times, symbols):
    """Record, times in s, a text of symbols -> rows of a table of call_beats."""
    return pd.DataFrame({"record": record, "time": times, "symbol": list(symbols),
                         "RR": np.diff(times, prepend=np.nan)})


def test_ectopic_beats_are_counted_by_hour():
    first = called("a", np.arange(17) * 0.5, "NSSNSVVVNVVSSSSNV")
    end = called("a", [3598, 3599.5, 3600.5, 3601.5, 10_800, 10_801], "NVVNNV")
    end.loc[0, "RR"] = 3590.0
    other = called("b", [0.5, 1.25, 2], "VVN")
    table = stage.hourly_table(pd.concat([first, end, other], ignore_index=True))
    assert table.index.tolist() == [("a", 0), ("a", 1), ("a", 3), ("b", 0)]
    rate = table.pop("rate")
    assert table.columns.tolist() == ["beats", *(
        f"{symbol} {kind}" for symbol in "SV" for kind in ("beats", "couplets", "runs"))]
    assert table.to_numpy().tolist() == [
        # of V the run of three, one couplet within, one over the end of the hour, and one beat
        [19, 7, 1, 1, 7, 2, 1], [2, 0, 0, 0, 1, 0, 0],
        # the last beat of a and the first two of b are no run
        [2, 0, 0, 0, 1, 0, 0], [3, 0, 0, 0, 2, 1, 0]]
    assert rate["b", 0] == pytest.approx(80) and rate["a", 1] == pytest.approx(60)
    assert rate["a", 0] == pytest.approx(60 / ((16 * 0.5 + 1.5) / 17))   # not over an hour's gap


def test_a_pause_is_drawn_at_the_upper_edge(monkeypatch):
    beats = called("a", [1.0, 2, 7, 8], "NNVN").assign(probability=1.0)
    data = SimpleNamespace(signals=np.zeros((4, 1, 360)), rate=360)
    figures = []
    monkeypatch.setattr(stage, "save_figure", lambda figure, *_: figures.append(figure))
    stage.plot_recording(data, beats, "", "a.png")
    normal, ventricular = (points.get_offsets() for points in figures[0].axes[0].collections)
    assert ventricular[:, 1].tolist() == [2.5] and normal[1:, 1].tolist() == [1, 1]


def test_a_recording_without_annotations_is_called_and_not_scored(trained, capsys):
    data = own_recordings()
    trained("mitbih", "cnn")
    before = set(contents("."))
    run_stage(stage, TEST_DATASET="own", MODEL="cnn")
    printed = capsys.readouterr().out
    name = "mitbih_to_own_cnn"
    assert set(contents(".")) - before == {
        f"{name}_beats.csv", f"{name}_hours.csv", f"{name}_left.png", f"{name}_right.png",
        f"{name}_annotations/left.cnn", f"{name}_annotations/right.cnn"}
    assert "tested on own. SIMULATED DATA: no score is a result\n" in printed
    assert "\nleads: II as MLII; beats: detected\n" in printed
    assert "No reference (ANNOTATOR = None): nothing was scored" in printed
    table = pd.read_csv(f"{name}_beats.csv")
    np.testing.assert_array_equal(table["record"], data.record)   # every beat has a row
    np.testing.assert_allclose(table["time"], data.metadata["sample"] / 360, atol=1e-4)
    later = table["record"] == table["record"].shift()
    assert table["RR"].notna().tolist() == later.tolist()   # no interval from record to record
    np.testing.assert_allclose(table["RR"][later], table["time"].diff()[later], atol=2e-4)
    names = np.array(data.header.class_names)
    np.testing.assert_array_equal(table["class"], names[table[names].to_numpy().argmax(axis=1)])
    np.testing.assert_allclose(table["probability"], table[names].max(axis=1))
    for record in ("left", "right"):
        assert Path(f"{name}_{record}.png").read_bytes()[:4] == b"\x89PNG"
        rows = table[table["record"] == record]
        annotation = wfdb.rdann(f"{name}_annotations/{record}", "cnn")
        np.testing.assert_array_equal(annotation.symbol, rows["class"])
        np.testing.assert_allclose(annotation.sample, rows["time"] * 250, atol=0.6)
    hours = pd.read_csv(f"{name}_hours.csv")[["record", "hour", "beats"]]
    assert hours.to_numpy().tolist() == [
        [record, 0, size] for record, size in table.groupby("record").size().items()]


def test_calls_without_a_reference_are_those_of_the_same_beats_with_one(trained):
    """The same recording: what the model calls does not depend on there being a reference."""
    trained("mitbih", "mlp")
    model = stage.load_checkpoint(preprocess_mitbih.load_dataset("mitbih"), "mlp")
    own = stage.call_beats(stage.predict_beats(model, own_recordings()))
    data = preprocess("svdb", DATA_DIR="own", LEADS=["II"], R_PEAKS="detected")
    scored = stage.score_rows(stage.predict_beats(model, data))
    pd.testing.assert_frame_equal(own[["record", "sample", "symbol"]], scored.beats)


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
