"""The report scripts on small simulated databases: runs are made once, tables show them."""

import copy
import json
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import choose_strips
import choose_tasks
import crossvalidate
import detectors
import harness
import leads
import measure
import measure_all
import measure_cross
import numpy as np
import pandas as pd
import pytest
import resnet1d_wang
import runs
import simulate
import torch
import wfdb
from conftest import MITBIH
from scipy.special import logit
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

import cross_dataset_validation
import model_evaluation
import model_training
import preprocess_mitbih

SHORT = {"epochs": 1, "ensemble_size": 1}   # recipe of every training here
SMALL = {"mitbih": {"cnn": {"widths": [8, 8, 8]}},
         "ptbxl": {"cnn": {"widths": [16, 16, 16, 16]}, "lstm": {"width": 16}}}
code_version = runs.code_version


@pytest.fixture(scope="module")
def version():
    return code_version()


@pytest.fixture(autouse=True)
def one_version(monkeypatch, version):
    """The version of the code is computed once: the scripts stay as they are meanwhile."""
    monkeypatch.setattr(runs, "code_version", lambda: version)


@pytest.fixture
def made(monkeypatch, quick_pictures, few_resamples):
    """Runs are made in this process, by small nets with one epoch -> list of their names."""
    names = []
    scripts = {measure.__file__: measure, measure_cross.__file__: measure_cross}

    def start(script, name, place):
        names.append(name)
        with chdir(place):
            scripts[script].make_run(name)
    monkeypatch.setattr(runs, "start", start)
    monkeypatch.setattr(measure, "SEEDS", [0, 1])
    monkeypatch.setattr(measure, "FRACTIONS", [0.5])
    monkeypatch.setattr(measure, "FRACTION_EPOCHS", 1)

    short = {"mitbih": SHORT, "ptbxl": SHORT}
    with (harness.changed(model_evaluation, STEPS=1, AVERAGED=1),
          harness.changed(model_training, RECIPES=short, STRIPS=short, ARCHITECTURES=SMALL)):
        yield names


def run(script, monkeypatch, *arguments):
    """Runs the main() of a report script with command line arguments."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    script.main()


def rows_of(path):
    """Markdown file with one table -> dict of its rows."""
    lines = [line.strip("| ").split(" | ") for line in path.read_text().splitlines()
             if line.startswith("| ")]
    return {title: values for title, *values in lines}


# ---- measure.py ----

def metrics_of(folder, name):
    """Folder and name of a run of measure.py -> its JSON report."""
    dataset, model, *_ = name.split("_")
    path = folder / "results" / name / f"{dataset}_{model}_metrics.json"
    return json.loads(path.read_text())


def test_runs_are_made_once_and_the_table_shows_what_was_measured(
        prepared, arrays, made, monkeypatch):
    monkeypatch.setattr(measure, "MODELS", ["mlp"])
    with pytest.raises(SystemExit, match=f"{MITBIH} is not in "):
        run(measure, monkeypatch, "mitbih")
    (prepared / MITBIH).symlink_to(arrays / MITBIH)
    run(measure, monkeypatch, "mitbih")
    run(measure, monkeypatch, "mitbih")
    trained = ["mitbih_mlp_0", "mitbih_mlp_1"]
    tested = [f"{name}_{beats}" for name in trained for beats in ("detected", "moved")]
    assert made == [*trained, "mitbih_detected", "mitbih_moved", *tested]
    reports = {name: metrics_of(prepared, name) for name in [*trained, *tested]}
    rows = rows_of(prepared / "results/mitbih.md")
    f1 = [reports[name]["tables"]["by class"]["S"]["f1"] for name in trained]
    assert rows["S F1"] == [f"{np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}".replace("0.", ".")]
    for beats, heading in (("", ""), ("_detected", "detected beats, "),
                           ("_moved", "marks moved by up to 19 ms, ")):
        gross = [reports[f"{name}{beats}"]["tables"]["EC57 from 0:00"]["gross"]
                 for name in trained]
        f1 = [row["V f1"] for row in gross]
        assert rows[f"{heading}EC57 from 0:00, gross: V F1"] == [runs.spread_text(f1)]
        if not beats.endswith("moved"):
            sensitivity = [row["VEB sensitivity"] for row in gross]
            assert rows[f"{heading}EC57 from 0:00, gross: VEB sensitivity, %"] == [
                runs.percent_text(sensitivity)]
    assert reports["mitbih_mlp_0_detected"]["header"]["r_peaks"] == "detected"
    assert rows["detected beats, EC57 from 5:00, gross: VEB sensitivity, %"] == ["n/a"]   # 40 s
    counts = [reports[name]["tables"]["beats counted from 0:00, reference and call"]
              for name in ("mitbih_mlp_0", "mitbih_mlp_0_moved")]
    assert counts[0].keys() == counts[1].keys()
    means = [measure.mean_over_records(prepared / "results" / name) for name in trained]
    assert rows["mean F1, mean over records"] == [runs.spread_text(means)]
    assert rows["seeds"] == ["2"]
    assert "SIMULATED" in (prepared / "results/mitbih.md").read_text()
    costs = json.loads((prepared / "results/mitbih_mlp_0/run.json").read_text())
    assert costs["training_cpu_seconds"] > 0 and costs["training_peak_gb"] > 0.1
    assert rows["parameters"] == [f"{costs['parameters']:,}"]


def test_the_mean_over_records_asks_for_the_classes_that_a_record_has(tmp_path):
    pd.DataFrame({
        "record": ["100", "100", "100", "101", "101", "101"],
        "true": ["N", "N", "S", "N", "V", "F"],
        "called": ["N", "S", "S", "V", "V", "F"],
    }).to_csv(tmp_path / "mitbih_mlp_predictions.csv", index=False)
    f1 = [(2 / 3 + 2 / 3) / 2, (0 + 2 / 3) / 2]   # of N and S, of N and V
    assert measure.mean_over_records(tmp_path) == pytest.approx(np.mean(f1))


def test_a_run_of_other_code_or_settings_is_refused(prepared, monkeypatch):
    settings = {"MODEL": "mlp"}
    folder = prepared / "results"
    (folder / "mlp").mkdir(parents=True)
    with chdir(folder / "mlp"):
        runs.save_run(runs.code_version(), settings)
    assert list(runs.finished_runs(folder, {"mlp": settings, "cnn": {}})) == ["mlp"]
    with pytest.raises(SystemExit, match="other code or settings made .*mlp"):
        runs.finished_runs(folder, {"mlp": {"MODEL": "cnn"}})
    monkeypatch.setattr(runs, "code_version", lambda: "other")
    with pytest.raises(SystemExit, match="mlp .code = .*now 'other'.*delete these folders"):
        runs.make_runs(measure.__file__, folder, {"mlp": settings}, {"mlp": []})


def test_the_code_version_follows_the_code_and_not_the_comments(work, monkeypatch):
    for name in runs.SCRIPTS:
        (work / name).write_text((harness.ROOT / name).read_text())
    version = code_version()
    monkeypatch.setattr(harness, "ROOT", work)
    path = work / "model_training.py"
    text = path.read_text()
    path.write_text(text.replace('"""Trains ', '"""Fits ') + "\n# a comment\n")
    assert path.read_text() != text and code_version() == version
    path.write_text(text + "\nx = 1\n")
    assert code_version() != version


def test_the_learning_curve_trains_on_some_patients_and_tests_on_all(prepared, made, monkeypatch):
    run(measure, monkeypatch, "learning_curve")
    assert made == ["ptbxl_cnn_fraction_0.5", "ptbxl_cnn_0"]
    some, every = (json.loads((prepared / "results" / name / "run.json").read_text())
                   for name in made)
    assert 0.4 < some["training_rows"] / every["training_rows"] < 0.6
    metrics = [json.loads((prepared / "results" / name / "ptbxl_cnn_metrics.json").read_text())
               for name in made]
    counts = [one["tables"]["all classes"]["n"]["value"] for one in metrics]
    assert counts[0] == counts[1]
    assert len(rows_of(prepared / "results/learning_curve.md")) == 4   # two of the head
    assert (prepared / "results/learning_curve.png").stat().st_size > 10_000


def test_an_ensemble_has_the_mean_log_odds(prepared, made, monkeypatch):
    monkeypatch.setattr(model_evaluation, "TASK", "all")   # each class is one statement
    monkeypatch.setattr(measure, "MODELS", ["cnn", "lstm"])
    monkeypatch.setattr(measure, "SEEDS", [0])
    run(measure, monkeypatch, "ptbxl_seeds")
    tables = [pd.read_csv(prepared / f"results/ptbxl_{model}_0/ptbxl_{model}_predictions.csv")
              for model in ("cnn", "lstm")]
    mean = sum(logit(table.filter(like=" probability").to_numpy()) for table in tables) / 2
    truth = tables[0].filter(like=" true").to_numpy()
    rows = rows_of(prepared / "results/ptbxl_seeds.md")
    known = truth.any(axis=0)   # small data lack some statements
    auc = roc_auc_score(truth[:, known], mean[:, known], average="macro")
    assert rows["macro AUC, all"][2] == f"{auc:.3f}".replace("0.", ".")


def test_every_run_names_constants_of_model_training():
    for settings in measure.all_runs().values():
        assert set(settings) - {"fraction", "beats", "trained"} <= set(vars(model_training))
    assert len(measure.all_runs()) == 15 + 9 + 3 + 3 + 2 + 30


def test_moved_marks_are_those_of_all_beats_and_of_nothing_else(work, tmp_path_factory):
    simulate.write_mitbih(MITBIH, records=["102", "207"], seconds=60)
    folder = tmp_path_factory.mktemp("moved")
    measure.write_moved(str(folder))
    assert (folder / "RECORDS").read_text().split() == ["102", "207"]
    shifts = []
    for name in ("102", "207"):
        before, after = (wfdb.rdann(str(place / name), "atr") for place in (work / MITBIH, folder))
        assert sorted(before.symbol) == sorted(after.symbol)
        assert set(before.aux_note) == set(after.aux_note)
        is_beat = [np.isin(marks.symbol, list("+~|"), invert=True) for marks in (before, after)]
        np.testing.assert_array_equal(before.sample[~is_beat[0]], after.sample[~is_beat[1]])
        shifts.extend(after.sample[is_beat[1]] - before.sample[is_beat[0]])
        np.testing.assert_array_equal(wfdb.rdrecord(str(folder / name)).p_signal,
                                      wfdb.rdrecord(f"{MITBIH}/{name}").p_signal)
    assert set(shifts) == set(range(-7, 8))   # 0.019 s at 360 Hz


# ---- measure_all.py ----

def test_one_command_starts_every_script_and_stops_at_the_first_that_fails(monkeypatch):
    started = []

    def start(command, check):
        started.append([command[1].name, *command[2:]])
        assert command[1].exists()
        return SimpleNamespace(returncode=len(started) == 3)
    monkeypatch.setattr(measure_all.subprocess, "run", start)
    with pytest.raises(SystemExit, match="detectors.py failed with exit status True"):
        measure_all.main()
    assert started[:2] == [["measure.py", "mitbih", "ptbxl_seeds"], ["measure_cross.py"]]
    monkeypatch.setattr(measure_all, "COMMANDS", measure_all.COMMANDS[3:])
    started[:] = [None] * 3
    measure_all.main()
    assert started[3:] == [["crossvalidate.py", model] for model in ("cnn", "lstm", "mlp")]


# ---- measure_cross.py ----

def test_a_table_by_record_leaves_one_out_and_compares_within_records():
    """Record a has most positive rows; the scores tell rows apart within b alone."""
    scores = pd.DataFrame({"record": list("aaaabbbbcc"),
                           "PVC truth": [1, 1, 1, 0, 1, 0, 1, 0, 0, np.nan],
                           "PVC score": [0, 0, 0, 0, 5, 1, 5, 1, 9, 7.0]})
    row = measure_cross.by_record(scores).loc["PVC"]
    assert row.tolist() == ["a", pytest.approx(4 / 6), pytest.approx((0.5 + 1) / 2), 2]


def test_cross_runs_and_tables(prepared, arrays, made, monkeypatch):
    monkeypatch.setattr(measure_cross, "MODELS", ["cnn"])
    monkeypatch.setattr(measure_cross, "SEEDS", [0])
    monkeypatch.setattr(measure_cross, "PATIENTS", [2])
    monkeypatch.setattr(measure_cross, "DRAWS", 3)
    name = "mean RR features"
    monkeypatch.setattr(measure_cross, "ABLATIONS", {name: measure_cross.ABLATIONS[name]})
    run(measure_cross, monkeypatch)
    assert len(made) == 3 + 3 + 3 + 2   # trained, as it is, whole target, ablation
    run(measure_cross, monkeypatch)
    assert len(made) == 11
    as_it_is, without_rhythm = (
        json.loads((prepared / "results/cross" / f"ptbxl_cnn_0_{test}"
                    / "ptbxl_to_mitbih_cnn_cross.json").read_text())["tables"]
        for test in ("as_it_is", "mean_RR_features"))
    assert without_rhythm["in-domain"] == as_it_is["in-domain"]
    assert without_rhythm["cross-domain"] != as_it_is["cross-domain"]
    text = (prepared / "results/cross/tables.md").read_text()
    assert "SIMULATED" in text and text.count("## ") == 8
    assert runs.interval_text(as_it_is["cross-domain"]["AUC, PVC"]) in text
    assert (prepared / "results/cross/both_directions.png").stat().st_size > 10_000



def test_fine_tuning_gains_nothing_from_patients_of_one_kind_and_much_where_scores_tell():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60) < 0.5, 10).astype(float)   # of 60 patients
    table = pd.DataFrame({
        "patient": np.repeat(np.arange(60).astype(str), 10), "abnormal truth": truth,
        "abnormal score": rng.normal(size=600), "PVC score": truth + rng.normal(size=600) / 4})
    with harness.changed(measure_cross, DRAWS=20):
        assert measure_cross.gain_of_patients(table, 1) == [0.0] * 20
        assert np.mean(measure_cross.gain_of_patients(table, 16)) > 0.4   # from .5 to nearly 1


@pytest.fixture
def beat_model(prepared, quick_pictures):
    """A beat model for strips, and strips of PTB-XL."""
    harness.train("mitbih", "mlp", SECOND_NET=True, STRIPS={"mitbih": SHORT})
    source = preprocess_mitbih.load_dataset("mitbih")
    checkpoint, _ = model_training.load_checkpoint(source, "mlp", strips=True)
    target = preprocess_mitbih.load_dataset("ptbxl")
    return checkpoint, cross_dataset_validation.strips_of(target, [10])


def test_each_ablation_replaces_one_step(beat_model):
    checkpoint, strips = beat_model
    inputs_of = cross_dataset_validation.inputs_of
    rows = np.arange(len(strips.signals))
    (signals, features), _, _ = inputs_of(checkpoint.recipe, strips, rows)

    def ablated(name):
        return measure_cross.ABLATIONS[name](inputs_of, checkpoint.recipe, strips, rows)

    other = copy.copy(strips)   # 100 Hz, taken for 360 Hz
    other.rate = checkpoint.recipe.rate
    (taken, _), _, _ = inputs_of(checkpoint.recipe, other, rows)
    assert torch.equal(ablated("not resampled")[0][0], taken)
    (alone, _), _, notes = ablated("lead II alone")
    assert notes[0] == "leads: II as MLII"
    assert torch.equal(alone[:, ::2], signals[:, ::2]) and not alone[:, 1::2].any()
    (_, mean), _, _ = ablated("mean RR features")
    assert features.shape[1] == 25 and torch.equal(mean, mean[:1].expand_as(mean))


# ---- choose_strips.py ----

@pytest.mark.parametrize("source", ["mitbih", "ptbxl"])
def test_strips_are_chosen_on_fold_9_and_ds1(prepared, quick_pictures, monkeypatch, capsys, source):
    asked = []

    def watched(data, members):
        asked.extend(members)
        return strips_of(data, members)
    strips_of = cross_dataset_validation.strips_of
    monkeypatch.setattr(cross_dataset_validation, "strips_of", watched)
    monkeypatch.setattr(choose_strips, "SEEDS", [0])
    with harness.changed(model_training, STRIPS={"mitbih": SHORT, "ptbxl": SHORT}):
        run(choose_strips, monkeypatch, source, "mlp", "lead_dropout=1.0")
    ds1 = preprocess_mitbih.SUBSETS["DS1"].split()
    assert sorted(asked) == ([9] if source == "mitbih" else sorted(ds1))
    printed = capsys.readouterr().out
    assert "as it is, seed 0" in printed and "lead_dropout=1.0, seed 0" in printed
    columns = np.array([row.split()[-2:] for row in printed.splitlines() if "." in row])
    assert (columns[:, 0] != columns[:, 1]).any()   # the change changes something
    assert not list(prepared.glob("*.pth"))


# ---- choose_tasks.py ----

def test_ptbxls_recipe_is_chosen_on_fold_9(prepared, quick_pictures, monkeypatch, capsys):
    asked = []

    def watched(checkpoint, net, data, rows, *others):
        asked.extend(rows)
        return score_rows(checkpoint, net, data, rows, *others)
    score_rows = model_evaluation.score_rows
    monkeypatch.setattr(model_evaluation, "score_rows", watched)
    monkeypatch.setattr(choose_tasks, "SEEDS", [0])
    with harness.changed(model_training, RECIPES={"ptbxl": SHORT}):
        run(choose_tasks, monkeypatch, "mlp", "batch_size=32")
    data = preprocess_mitbih.load_dataset("ptbxl")
    assert set(data.metadata["fold"][asked]) == {9}
    *_, one, other = capsys.readouterr().out.splitlines()
    assert one.startswith("as it is, seed 0") and other.startswith("batch_size=32, seed 0")
    assert one.split()[-6:] != other.split()[-6:]
    assert not list(prepared.glob("*.pth"))


# ---- leads.py ----

def test_every_lead_trains_and_its_gain_is_over_the_recipe_as_it_is(
        prepared, quick_pictures, monkeypatch):
    monkeypatch.setattr(choose_tasks, "SEEDS", [0])
    small = {"ptbxl": SHORT | {"batch_size": 16, "crop_seconds": 1.0}}
    narrow = {"ptbxl": {"cnn": {"widths": [24, 24, 24, 24]}}}
    with harness.changed(model_training, RECIPES=small, ARCHITECTURES=narrow):
        harness.run_stage(model_training, DATASET="ptbxl", SECOND_NET=False)
        teacher = Path("results/ptbxl_cnn_0")
        teacher.mkdir(parents=True)
        for path in [*prepared.glob("ptbxl_*.npy"), Path("ptbxl_cnn_model.pth")]:
            (teacher / path.name).symlink_to(path.resolve())
        run(leads, monkeypatch)
    auc = {path.stem.removesuffix(", fold 9, seed 0"): json.loads(path.read_text())["auc"]
           for path in leads.FOLDER.glob("*.json")}
    assert set(auc) == set(leads.LEADS)
    assert len({tuple(of_lead.values()) for of_lead in auc.values()}) == len(auc)   # all differ
    text = Path("results/leads.md").read_text()
    gain = auc["mixup"]["form"] - auc["as it is"]["form"]
    assert f"({gain:+.3f})" in next(line for line in text.splitlines() if "mixup" in line)
    monkeypatch.setattr(runs, "code_version", lambda: "other")
    with pytest.raises(SystemExit, match="of other code"):
        run(leads, monkeypatch, "mixup")


# ---- crossvalidate.py ----

def test_cross_validation_calls_every_beat_of_ds1_once_and_never_sees_ds2(
        prepared, quick_pictures, monkeypatch):
    ds1 = set(preprocess_mitbih.SUBSETS["DS1"].split())
    data = preprocess_mitbih.load_dataset("mitbih")
    beats = {name: int(np.sum(data.record == name)) for name in ds1}
    split_rows = model_training.split_rows
    trainings = []

    def watched_split(data, recipe):
        rows = split_rows(data, recipe)
        train, validation = (set(data.record[rows[side]]) for side in ("train", "validation"))
        assert set(data.record) == ds1 == train | validation and not train & validation
        assert len(rows["test"]) == 0
        trainings.append((recipe.epochs, validation))
        return rows
    monkeypatch.setattr(model_training, "split_rows", watched_split)
    monkeypatch.setattr(crossvalidate, "GROUPINGS", [0])
    monkeypatch.setattr(crossvalidate, "SEEDS", [0, 1])
    with harness.changed(model_training, RECIPES={"mitbih": SHORT}):
        run(crossvalidate, monkeypatch, "mlp", "epochs=2", "learning_rate=1e-3")
        assert [epochs for epochs, _ in trainings] == [1] * 8 + [2] * 8
        assert set.union(*(group for _, group in trainings[:4])) == ds1
        assert sum(len(group) for _, group in trainings[:4]) == len(ds1)
        path, = prepared.glob("results/crossvalidation/mlp_as_it_is_*.jsonl")
        called = {}
        for key, records in crossvalidate.read_trainings(path).items():
            if key[1] == 0:
                called |= {name: int(np.sum(matrix)) for name, matrix in records.items()}
        assert called == beats

        lines = path.read_text().splitlines()   # one training is lost
        path.write_text("\n".join(lines[:-1]) + "\n")
        run(crossvalidate, monkeypatch, "mlp", "epochs=2", "learning_rate=1e-3")
        assert len(trainings) == 17 and path.read_text().splitlines()[:-1] == lines[:-1]
    rows = rows_of(prepared / "results/crossvalidation/mlp_epochs=2_learning_rate=1e-3.md")
    assert rows["S F1"][2].endswith("of 2")
    assert not list(prepared.glob("*.pth"))


def test_cross_validation_pools_the_beats_of_all_groups():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (8, 50))   # of eight records
    called = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 5, truth.shape))
    matrices = [confusion_matrix(*pair, labels=range(5)).tolist() for pair in zip(truth, called)]
    trainings = {(0, 0, group): {str(record): matrices[record] for record in (group, group + 4)}
                 for group in range(4)}
    figures = crossvalidate.figures_of(trainings).loc[0, 0]
    f1 = f1_score(truth.ravel(), called.ravel(), labels=[0, 1, 2], average=None)
    assert np.allclose(figures[["N F1", "S F1", "V F1"]], f1)
    assert figures["mean F1 of N, S, V"] == pytest.approx(f1.mean())
    of_records = [f1_score(*pair, labels=[0, 1, 2], average="macro") for pair in zip(truth, called)]
    assert figures["mean over records"] == pytest.approx(np.mean(of_records))
    del trainings[0, 0, 3]   # not complete
    assert len(crossvalidate.figures_of(trainings)) == 0


def test_a_change_is_one_of_the_recipe_or_of_the_architecture():
    assert crossvalidate.parse_settings(["epochs=3", "learning_rate=0.1"], "ptbxl", "mlp") == {
        "as it is": {}, "epochs=3 learning_rate=0.1": {
            "RECIPES": {"ptbxl": {"epochs": 3, "learning_rate": {"mlp": 0.1}}}}}
    assert crossvalidate.parse_change("epochs=3", "ptbxl", "cnn", "STRIPS") == {
        "STRIPS": {"ptbxl": {"epochs": 3}}}
    assert crossvalidate.parse_change("widths=[4, 8]", "mitbih", "cnn") == {
        "ARCHITECTURES": {"mitbih": {"cnn": {"widths": [4, 8]}}}}


def test_an_unknown_setting_is_refused():
    with pytest.raises(SystemExit, match="epoch'.*expected one of .*epochs"):
        crossvalidate.parse_change("epoch=3", "mitbih", "cnn")


# ---- resnet1d_wang.py ----

def test_resnet1d_wang_goes_on_where_it_was_stopped(prepared, monkeypatch):
    monkeypatch.setattr(resnet1d_wang, "EPOCHS", 2)
    monkeypatch.setattr(resnet1d_wang, "CROP", 50)
    path = prepared / "results/resnet1d_wang/ptbxl_resnet1d_wang_metrics.json"
    resnet1d_wang.main()
    straight = path.read_text()
    for file in path.parent.iterdir():
        file.unlink()
    train_epoch = resnet1d_wang.train_epoch
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*arguments)
    monkeypatch.setattr(resnet1d_wang, "train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        resnet1d_wang.main()
    assert not path.exists()
    torch.manual_seed(5)
    resnet1d_wang.main()
    assert len(calls) == 3 and path.read_text() == straight
    peer = runs.finished_runs(measure.FOLDER, {"resnet1d_wang": {}})
    rows = measure.table_of({"resnet1d_wang": list(peer.values())}, measure.PTBXL_FIGURES)
    assert rows.loc["macro AUC, superdiagnostic", "resnet1d_wang"].startswith(".")


def test_resnet1d_wang_has_the_published_size():
    """A stem of kernel 7 and three blocks of kernels 5 and 3, two of them with a shortcut."""
    net = resnet1d_wang.ResNet1dWang()
    convolutions = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    expected = 12 * 128 * 7 + 3 * 128 * 128 * 8 + 2 * 128 * 128
    assert sum(layer.weight.numel() for layer in convolutions) == expected
    assert net(torch.randn(2, 12, 250)).shape == (2, 5)
    assert net.body(torch.randn(1, 12, 1, 250)).shape == (1, 128, 1, 63)


# ---- detectors.py ----

def test_detectors_are_compared_once_and_by_hand(work, monkeypatch):
    simulate.write_mitbih(MITBIH, records=["100", "102", "119"], seconds=30)

    def every_second_beat(record):
        """Of record 100, and a false one beside."""
        annotation = wfdb.rdann(f"{MITBIH}/{record.record_name}", "atr")
        beats = annotation.sample[np.isin(annotation.symbol, list("+~|"), invert=True)]
        calls.append((record.record_name, record.sig_name))
        return np.append(beats[::2], beats[:1] + 100)
    calls = []
    monkeypatch.setitem(detectors.DETECTORS, "gqrs", every_second_beat)
    run(detectors, monkeypatch)
    run(detectors, monkeypatch)
    assert calls == [("100", ["MLII"]), ("102", ["V5"]), ("119", ["MLII"])]   # once
    path, = work.glob("results/detectors_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["detector"] for line in lines] == [
        name for name in ("find_beats", "XQRS", "gqrs") for _ in range(3)]
    beats = [line["hits"] + line["missed"] for line in lines]
    assert beats[:3] == beats[3:6] == beats[6:]
    hits = [(count + 1) // 2 for count in beats[6:]]
    assert [line["hits"] for line in lines[6:]] == hits
    assert [line["false"] for line in lines[6:]] == [1, 1, 1]
    rows = rows_of(work / "results/detectors.md")
    assert rows["gqrs"][:2] == [f"{100 * sum(hits) / sum(beats[6:]):.2f}",
                                f"{100 * sum(hits) / (sum(hits) + 3):.2f}"]
    assert lines[0]["hits"] > beats[0] - 3 and lines[0]["false"] == 0   # record 100 is easy
    text = (work / "results/detectors.md").read_text()
    assert "SIMULATED" in text and f"{sum(beats[:3])} beats" in text


def test_beats_in_flutter_are_left_out_of_the_comparison():
    table = np.zeros(6, preprocess_mitbih.ANNOTATION_FIELDS)
    table["sample"] = [100, 500, 600, 700, 900, 1000]
    table["symbol"] = ["N", "[", "V", "]", "V", "N"]
    counts = detectors.compare(table, np.array([101, 550, 602, 1001, 1200]), 360)
    assert counts == {"hits": 2, "missed": 1, "false": 1}   # 900; 1200


# ---- Texts ----

def test_figures_have_three_digits_and_no_leading_zero():
    assert runs.spread_text([0.5, 0.7, 0.9]) == ".700 ± .200"
    assert runs.spread_text([0.25, None]) == ".250"
    assert runs.spread_text([None]) == "n/a"
    assert runs.percent_text([None, None]) == "n/a" and runs.percent_text([99.96]) == "100.0"
    assert runs.percent_text([50, 70.0]) == "60.0 ± 14.1"
    assert runs.text_of(-0.0101) == "-.010" and runs.text_of(1.0) == "1.000"
    assert runs.interval_text({"value": 0.5, "low": 0.25, "high": 1.0}) == ".500 [.250 1.000]"
    assert runs.interval_text({"value": 0.5, "low": None, "high": None}) == ".500"
