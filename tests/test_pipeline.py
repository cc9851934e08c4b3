"""The five scripts as a user runs them: from the shell, in order, in one folder."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import demo
import preprocess_ptbxl
import simulate
from conftest import MITBIH, PTBXL

ROOT = Path(__file__).resolve().parent.parent


def shell(folder, script, *changes, environment=None):
    """Runs a script with some constants edited, as a user would -> completed process."""
    if changes:
        copies = folder / "scripts"
        copies.mkdir(exist_ok=True)
        for path in ROOT.glob("*.py"):
            (copies / path.name).write_text(path.read_text())
        text = (copies / script).read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (copies / script).write_text(text)
    return subprocess.run([sys.executable, (copies if changes else ROOT) / script], cwd=folder, capture_output=True, text=True,
                          env=environment)


def test_demo_runs_from_end_to_end(work, monkeypatch, capfd):
    def in_this_process(script):   # importing torch five times would take half of the test
        with monkeypatch.context() as patch:
            patch.chdir("demo")
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return 0.0
    monkeypatch.setattr(demo, "run", in_this_process)
    monkeypatch.setattr(demo, "MITBIH_SECONDS", 20)
    monkeypatch.setattr(demo, "PTBXL_RECORDS", 60)
    demo.main()
    out = capfd.readouterr().out
    assert "summary of a run on SIMULATED data" in out
    assert {path.name for path in (work / "demo").iterdir() if path.is_file()} == {
        "SIMULATED.txt", "mitbih_signals.npy", "mitbih_labels.npy", "mitbih_metadata.npy", "mitbih_records.npy",
        "mitbih_header.npy", "ptbxl_signals.npy", "ptbxl_labels.npy", "ptbxl_metadata.npy", "ptbxl_header.npy",
        "mitbih_cnn_model.pth", "mitbih_cnn_training.png", "mitbih_cnn_metrics.json", "mitbih_cnn_predictions.csv",
        "mitbih_cnn_report.html", *(f"mitbih_cnn_{part}.png" for part in (
            "confusion", "curves", "calibration", "explanation", "averages", "mistakes")),
        "ptbxl_beats.npy", *(f"mitbih_to_ptbxl_cnn_cross.{end}" for end in ("json", "csv", "png"))}
    assert json.loads((work / "demo" / "mitbih_cnn_metrics.json").read_text())["protocol"]["simulated"] is True


def test_the_demo_stops_where_a_script_fails(work, capfd):
    (work / "demo").mkdir()
    with pytest.raises(SystemExit, match="model_training.py failed with exit status 1"):
        demo.run("model_training.py")
    assert "mitbih_header.npy is not in this folder" in capfd.readouterr().err


def test_in_an_empty_folder_every_script_says_what_is_missing(work):
    for script in ("preprocess_mitbih", "preprocess_ptbxl", "model_training", "model_evaluation", "cross_dataset_validation"):
        with pytest.raises(SystemExit, match="no such folder|is not in this folder") as error:
            importlib.import_module(script).main()
        assert "\n" not in str(error.value)
    assert list(work.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(work):
    simulate.write_mitbih(work / MITBIH, records=("101",), seconds=20)
    work.chmod(0o500)
    done = shell(work, "preprocess_mitbih.py")
    work.chmod(0o700)
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr


def test_labels_do_not_depend_on_the_hash_seed_and_constants_may_be_edited(work):
    simulate.write_ptbxl(work / PTBXL, records=40)
    preprocess_ptbxl.main()
    parts = {part: (work / f"ptbxl_{part}.npy").read_bytes() for part in ("labels", "metadata", "header")}
    done = shell(work, "preprocess_ptbxl.py", ('BAD_RECORDS = "stop"', 'BAD_RECORDS = "skip"'),
                 environment={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert {part: (work / f"ptbxl_{part}.npy").read_bytes() for part in parts} == parts


def test_clinical_classes_and_500_hz_through_training_evaluation_and_both_directions(work, monkeypatch, quick_pictures):
    import cross_dataset_validation
    import model_evaluation
    import model_training
    import preprocess_mitbih
    simulate.write_mitbih(work / MITBIH, seconds=30)
    simulate.write_ptbxl(work / PTBXL, records=100, sampling_rate=500)
    monkeypatch.setattr(preprocess_mitbih, "CLASS_MAP", "clinical")
    monkeypatch.setattr(preprocess_ptbxl, "SAMPLING_RATE", 500)
    preprocess_mitbih.main()
    preprocess_ptbxl.main()
    for source, target in (("mitbih", "ptbxl"), ("ptbxl", "mitbih")):
        for stage, constants in ((model_training, {"DATASET": source, "MODEL": "mlp", "EPOCHS": {source: 1}}),
                                 (model_evaluation, {"DATASET": source, "MODEL": "mlp"}),
                                 (cross_dataset_validation,
                                  {"PRETRAINED_DATASET": source, "TEST_DATASET": target, "MODEL": "mlp"})):
            for name, value in constants.items():
                monkeypatch.setattr(stage, name, value)
            stage.main()
    report = json.loads((work / "mitbih_mlp_metrics.json").read_text())
    assert list(report["classes"]) == list(preprocess_mitbih.CLASS_MAPS["clinical"]) and "mean_f1_nsv" not in report
    cross = json.loads((work / "ptbxl_to_mitbih_mlp_cross.json").read_text())
    assert "sampling rate: 360 to 500 Hz" in cross["cross_domain"]["adapted"]
