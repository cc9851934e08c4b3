"""The five scripts as a user runs them: from the shell, in order, in one folder."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import demo
import numpy as np
import pandas as pd
import pytest
import simulate
import wfdb
from conftest import MITBIH, PTBXL
from harness import ROOT, contents, outputs, preprocess, replace, run_stage, train, write_ptbxl

import cross_dataset_validation
import model_evaluation
import model_training
import preprocess_mitbih
import preprocess_ptbxl

SCRIPTS = ("preprocess_mitbih", "preprocess_ptbxl", "model_training", "model_evaluation",
           "cross_dataset_validation")


@pytest.mark.usefixtures("coarse_pictures", "few_resamples")
def test_the_demo_runs_from_end_to_end(work, monkeypatch, capfd):
    def in_this_process(script):   # importing torch five times would take half of the test
        with monkeypatch.context() as patch:
            patch.chdir("demo")
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return 1.25
    monkeypatch.setattr(demo, "run", in_this_process)
    monkeypatch.setattr(demo, "MITBIH_SECONDS", 20)
    monkeypatch.setattr(demo, "PTBXL_RECORDS", 60)
    demo.main()
    summary = capfd.readouterr().out.split("summary of a run on SIMULATED data")[1]
    for script in SCRIPTS:
        assert f"{script}.py".ljust(38) + "    1.2 s" in summary
    files = {path.name for path in (work / "demo").iterdir() if path.is_file()}
    arrays = {f"{database}_{part}.npy" for database in ("mitbih", "ptbxl")
              for part in ("signals", "labels", "metadata", "header")}
    pictures = {"mitbih_cnn_explanation.png"}
    assert files == arrays | pictures | {
        "SIMULATED.txt", "mitbih_records.npy", "mitbih_annotations.npy", "mitbih_cnn_model.pth",
        "mitbih_cnn_strips_model.pth", "mitbih_cnn_metrics.json", "mitbih_cnn_predictions.csv",
        "mitbih_to_ptbxl_cnn_cross.json", "mitbih_to_ptbxl_cnn_cross.csv"}
    annotations = {path.name for path in (work / "demo/mitbih_cnn_annotations").iterdir()}
    assert annotations == {f"{name}.cnn" for name in preprocess_mitbih.SUBSETS["DS2"].split()}
    assert all(f"demo/{name}" in summary for name in pictures)
    metrics = json.loads((work / "demo" / "mitbih_cnn_metrics.json").read_text())
    cross = json.loads((work / "demo" / "mitbih_to_ptbxl_cnn_cross.json").read_text())
    assert metrics["header"]["simulated"] is True
    for line, value in (
            ("accuracy", metrics["tables"]["all classes"]["accuracy"]["value"]),
            ("AUC cross-domain", cross["tables"]["cross-domain"][demo.ABNORMAL]["auc"])):
        assert f"{value:.3f}" in next(row for row in summary.splitlines() if line in row)


def test_the_demo_stops_where_a_script_fails(work, capfd):
    (work / "demo" / MITBIH).mkdir(parents=True)
    (work / "demo" / MITBIH / "101.hea").write_text("damaged")
    with pytest.raises(SystemExit, match="preprocess_mitbih.py failed with exit status 1"):
        demo.run("preprocess_mitbih.py")   # it starts faster than those with PyTorch
    error = capfd.readouterr().err
    assert "101: its header or signal file is missing" in error and "Traceback" not in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_in_an_empty_folder_a_script_says_what_is_missing(work, script):
    with pytest.raises(SystemExit, match="^DATA_DIR: no .* in .*: python tests/demo.py$|"
                       "^.* is not in .*. Make all .* with preprocess_mitbih.py or "
                       "preprocess_ptbxl.py$") as error:
        run_stage(script)
    assert "\n" not in str(error.value)
    assert not list(work.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(work):
    simulate.write_mitbih(work / MITBIH, records=("101",), seconds=20)
    before = contents(work)
    work.chmod(0o500)
    try:
        with pytest.raises(SystemExit, match="cannot write .*mitbih_header.npy in"):
            run_stage(preprocess_mitbih)
    finally:
        work.chmod(0o700)
    assert contents(work) == before


def test_the_hash_seed_changes_nothing_and_constants_may_be_edited(work):
    """As a user runs a script: from the shell."""
    write_ptbxl(work / PTBXL, records=40)
    run_stage(preprocess_ptbxl)
    before = outputs(work)
    for path in work.glob("*.npy"):
        path.unlink()
    for name in SCRIPTS[:2]:   # the second one imports the first
        (work / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    replace(work / "preprocess_ptbxl.py", b'BAD_RECORDS = "stop"', b'BAD_RECORDS = "skip"')
    subprocess.run([sys.executable, "preprocess_ptbxl.py"], check=True,
                   env=os.environ | {"PYTHONHASHSEED": "7"})
    assert outputs(work) == before


@pytest.mark.usefixtures("coarse_pictures", "few_resamples")
def test_records_of_one_lead_are_trained_on_and_drawn(work):
    write_ptbxl(work / PTBXL, records=100)
    run_stage(preprocess_ptbxl, LEADS=["V1"])
    train("ptbxl", "mlp", LEADS="v1")
    run_stage("model_evaluation", DATASET="ptbxl", MODEL="mlp")
    assert (work / "ptbxl_mlp_explanation.png").stat().st_size > 10_000


@pytest.mark.usefixtures("quick_pictures", "few_resamples")
def test_other_classes_and_500_hz_pass_through_the_whole_chain(work):
    simulate.write_mitbih(work / MITBIH, seconds=30)
    write_ptbxl(work / PTBXL, records=100, sampling_rate=500)
    run_stage(preprocess_mitbih, CLASSES={"S": "SAaJejn", "N": "NLRB"})
    run_stage(preprocess_ptbxl, SAMPLING_RATE=500)
    for source, target in (("mitbih", "ptbxl"), ("ptbxl", "mitbih")):
        train(source, "mlp", SECOND_NET=True)
        run_stage("model_evaluation", DATASET=source, MODEL="mlp")
        run_stage("cross_dataset_validation", PRETRAINED_DATASET=source, TEST_DATASET=target,
                  MODEL="mlp")
    metrics = json.loads((work / "mitbih_mlp_metrics.json").read_text())
    labels = np.load(work / "mitbih_labels.npy")
    symbols = np.load(work / "mitbih_metadata.npy")["symbol"]
    np.testing.assert_array_equal(labels == 1, np.isin(symbols, list("SAaJejn")))
    assert metrics["tables"]["by class"]["S"]["n"] > 0
    called = wfdb.rdann(str(work / "mitbih_mlp_annotations/212"), "mlp")
    assert len(called.symbol) > 20 and set(called.symbol) <= set("NSVFQ")
    for name, rates in (("mitbih_to_ptbxl", "500 to 360"), ("ptbxl_to_mitbih", "360 to 500")):
        cross = json.loads((work / f"{name}_mlp_cross.json").read_text())
        assert f"; {rates} Hz; " in cross["notes"]["cross-domain"]
        asked = cross["tables"]["cross-domain"]
        assert list(cross["tables"]["in-domain"]) == list(asked)
        assert all(row["n"] for row in asked.values())
        # fold 10 of 100 records has no LBBB, DS2 no paced beat
        assert ("CLBBB" in asked) == (name == "ptbxl_to_mitbih") and "PACE" not in asked


# ---- Another offset ----

def lower_baseline(match):
    """Gain and baseline of a lead in a WFDB header -> those of a lead that lies 5 mV higher."""
    return f"{match[1]}({round(int(match[2]) - 5 * float(match[1]))})/mV"


def whole_chain():
    """-> signals of the own recording; name -> CSV file of a script."""
    run_stage(preprocess_mitbih)
    run_stage(preprocess_ptbxl)
    own = preprocess("own", DATA_DIR="own", LEADS=["II"], ANNOTATOR=None)
    for source, targets in (("mitbih", ["ptbxl", "own"]), ("ptbxl", ["mitbih"])):
        run_stage("model_evaluation", DATASET=source, MODEL="mlp")
        for target in targets:
            run_stage("cross_dataset_validation", PRETRAINED_DATASET=source, TEST_DATASET=target,
                      MODEL="mlp")
    return own.signals, {path.name: pd.read_csv(path) for path in Path().glob("*.csv")}


@pytest.mark.usefixtures("quick_pictures", "few_resamples", "coarse_pictures")
def test_5_mv_added_to_all_leads_change_no_call_and_no_score(trained, arrays, monkeypatch):
    """Also of a recording without a reference at 200 Hz, which is resampled."""
    for folder in (MITBIH, PTBXL):
        shutil.copytree(arrays / folder, folder)
    simulate.write_at_rate(MITBIH, "own", {"106": "left"}, 200, ["II", "V5"])
    for name in ("mitbih", "ptbxl"):
        trained(name, "mlp")
    signals, tables = whole_chain()
    assert len(tables) == 6
    for header in Path().rglob("*.hea"):
        header.write_text(re.sub(r"([\d.]+)\((-?\d+)\)/mV", lower_baseline, header.read_text()))
    for script in (cross_dataset_validation, model_evaluation):   # they were not trained on it
        monkeypatch.setattr(script, "load_checkpoint", lambda data, model, strips=False:
                            model_training.read_checkpoint(data.name, model, strips))
    higher, again = whole_chain()
    np.testing.assert_allclose(higher, signals + 5, atol=1e-4)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table, atol=1e-3, rtol=0)
