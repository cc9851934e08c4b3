"""The report scripts on small simulated databases: runs are made once, tables show them."""

import copy
import json
import sys
from contextlib import chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import choose_strips
import choose_tasks
import crossvalidate
import detectors
import harness
import measure
import measure_all
import measure_cross
import numpy as np
import pandas as pd
import published_ideas
import pytest
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

SHORT = dict.fromkeys(model_training.RECIPES, {
    "epochs": 1, "ensemble_size": 1,
    "sizes": {"cnn": {"widths": [24, 24, 24, 24]}, "lstm": {"width": 16}}})
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

    def start(script, settings, place):
        names.append(place.name)
        with chdir(place):
            runs.make_run(script, settings)
    monkeypatch.setattr(runs, "start", start)
    monkeypatch.setattr(model_training, "called_classes", harness.every_class)
    monkeypatch.setattr(measure, "SEEDS", [0, 1])
    monkeypatch.setattr(measure, "FRACTIONS", [0.5])
    monkeypatch.setattr(measure, "FRACTION_EPOCHS", 1)
    with harness.changed(model_training, RECIPES=SHORT):
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


# ---- runs.py ----

def test_a_run_of_other_code_or_settings_is_refused(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "script", SimpleNamespace(make=lambda **_: {}))
    settings = {"MODEL": "mlp", "stem": (31, 3)}
    folder = work / "results"
    (folder / "mlp").mkdir(parents=True)
    with chdir(folder / "mlp"):
        runs.make_run("script", settings)
    assert list(runs.finished_runs(folder, {"mlp": settings, "cnn": {}})) == ["mlp"]
    with pytest.raises(SystemExit, match="other code or settings made .*mlp"):
        runs.finished_runs(folder, {"mlp": {"MODEL": "cnn"}})
    monkeypatch.setattr(runs, "code_version", lambda: "other")
    with pytest.raises(SystemExit, match="mlp .code = .*now 'other'.*delete these folders"):
        runs.make_runs("script", folder, {"mlp": settings})


def test_a_run_is_made_in_a_process_of_its_own_and_a_failed_one_names_its_log(work, monkeypatch):
    simulate.write_mitbih(MITBIH, records=["100"], seconds=30)
    settings = {"find_beats": {"detector": "find_beats"}}
    finished = runs.make_runs("detectors", work / "results", settings, [work / MITBIH])
    [record] = finished["find_beats"]["records"]
    assert record["record"] == "100" and record["hits"] > 20
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match="XQRS failed: see .*results/XQRS/log.txt"):
        runs.make_runs("detectors", work / "results", {"XQRS": {"detector": "XQRS"}})


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


@pytest.mark.parametrize("git, commit", [
    ("echo 1343475", "1343475"), ("exit 128", "unknown"), (None, "unknown")])
def test_a_report_names_code_and_commit_also_outside_of_a_checkout(
        work, monkeypatch, version, git, commit):
    if git:
        Path("git").write_text(f"#!/bin/sh\n{git}\n")
        Path("git").chmod(0o755)
    monkeypatch.setenv("PATH", str(work))
    runs.write_report("report.md", {"scores": pd.DataFrame({"a": ["1"]})}, [])
    last = Path("report.md").read_text().splitlines()[-1]
    assert last == f"Made by code {version}, commit {commit}."


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
    without = []
    for name in trained:
        beats = pd.read_csv(prepared / "results" / name / "mitbih_mlp_predictions.csv", dtype=str)
        beats = beats[beats["record"] != "232"]
        without.append(f1_score(beats["true"], beats["called"], labels=list("NSV"), average=None))
    assert rows["S F1 without record 232"] == [runs.spread_text(f1[1] for f1 in without)]
    assert rows["mean F1 of N, S, V without record 232"] == [
        runs.spread_text(f1.mean() for f1 in without)]
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


def test_rows_with_one_class_are_scored_by_the_most_probable_one():
    true, called = ["MI"] * 4 + ["NORM"] * 6, ["MI"] * 3 + ["CD"] + ["MI"] * 2 + ["NORM"] * 4
    table = pd.crosstab(np.array(true), np.array(called))
    scores = measure.scores_of_one_class({measure.ONE_CLASS: table.to_dict(orient="index")})
    f1 = f1_score(true, called, labels=["MI", "NORM"], average="macro")
    assert scores == pytest.approx({"accuracy": 0.7, "macro f1": f1})


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


def test_an_ensemble_has_the_mean_log_odds(prepared, made, monkeypatch):
    monkeypatch.setattr(model_evaluation, "TASK", "all")   # each class is one statement
    monkeypatch.setattr(measure, "MODELS", ["cnn", "lstm"])
    monkeypatch.setattr(measure, "SEEDS", [0])
    run(measure, monkeypatch, "ptbxl_seeds")
    tables = [pd.read_csv(prepared / f"results/ptbxl_{model}_0/ptbxl_{model}_predictions.csv")
              for model in ("cnn", "lstm")]
    mean = sum(logit(table.filter(like=" score").to_numpy()) for table in tables) / 2
    names = tables[0].filter(like=" score").columns.str.removesuffix(" score")
    truth = np.array([names.isin(text.split("+")) for text in tables[0]["true"]])
    rows = rows_of(prepared / "results/ptbxl_seeds.md")
    known = truth.any(axis=0)   # small data lack some statements
    auc = roc_auc_score(truth[:, known], mean[:, known], average="macro")
    assert rows["macro AUC, all"][2] == f"{auc:.3f}".replace("0.", ".")


def test_every_run_names_constants_of_model_training():
    counts = {}
    for group in measure.TITLES:
        settings_of = measure.runs_of(group)
        for settings in settings_of.values():
            assert set(settings) - {"fraction"} <= set(vars(model_training))
        counts[group] = len(settings_of)
    assert counts == {"mitbih": 15, "ptbxl": 3, "ptbxl_seeds": 9, "learning_curve": 4}
    assert len(measure.tests_on_other_beats()) == 30


def test_ptbxl_has_one_seed_in_the_first_groups(prepared, made, monkeypatch):
    monkeypatch.setattr(measure, "MODELS", ["mlp"])
    run(measure, monkeypatch, "ptbxl")
    assert made == ["ptbxl_mlp_0"]
    assert rows_of(prepared / "results/ptbxl.md")["seeds"] == ["1"]


def test_moved_marks_are_those_of_all_beats_and_of_nothing_else(work):
    simulate.write_mitbih(MITBIH, records=["102", "207"], seconds=60)
    before = harness.preprocess()
    measure.make(beats="moved")
    after = preprocess_mitbih.load_dataset("mitbih")
    assert after.header.r_peaks == "moved"
    np.testing.assert_array_equal(after.records, before.records)
    shifts = []
    for number in (0, 1):
        marks = [data.annotations[data.annotations["record"] == number] for data in (before, after)]
        beats = [table[preprocess_mitbih.is_beat(table)] for table in marks]
        others = [table[~preprocess_mitbih.is_beat(table)] for table in marks]
        np.testing.assert_array_equal(*others)
        assert np.all(np.diff(marks[1]["sample"]) >= 0)
        np.testing.assert_array_equal(*(table["symbol"] for table in beats))
        shifts.extend(beats[1]["sample"] - beats[0]["sample"])
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

def test_a_direction_has_means_over_the_seeds_and_counts_the_target(tmp_path):
    """BIGU has too few patients for an interval, and none at home."""
    metrics = ["auc", "sensitivity", "specificity"]
    tests = []
    for score, away, home, low, high in (
            ([3, 2, 1, 0, 9], [0.8, 0.5, 0.9], [0.9, 1.0, 0.8], 0.6, 0.9),
            ([3, 1, 2, 0, 9], [0.9, 0.7, 0.7], [0.9, 0.8, 0.9], 0.7, 1.0)):
        folder = tmp_path / str(len(tests))
        folder.mkdir()
        pd.DataFrame({
            "record": list("aabcc"), "patient": list("aabcc"), "side": "cross-domain",
            "PVC truth": [1, 0, 1, 0, np.nan], "PVC score": score,
        }).to_csv(folder / "ptbxl_to_mitbih_cnn_cross.csv")
        tests.append({"folder": folder, "tables": {
            "cross-domain": {"BIGU": dict.fromkeys(metrics, 0.5), "PVC": dict(zip(metrics, away))},
            "cross-domain, 95% interval from": {"PVC": {"auc": low}},
            "cross-domain, 95% interval to": {"PVC": {"auc": high}},
            "in-domain": {"BIGU": dict.fromkeys(metrics), "PVC": dict(zip(metrics, home))}}})
    table = measure_cross.direction_table(tests)
    assert table.index.tolist() == ["PVC", "BIGU"]
    assert table.loc["PVC"].tolist() == [
        "2 of 3 patients, 2 of 4 strips", ".850 ± .071", ".650 to .950", ".600 / .800",
        ".700", ".875", ".900 ± .000", ".900 / .850"]
    assert table["its 95% interval"]["BIGU"] == "" and table["AUC at home"]["BIGU"] == "n/a"


def test_a_table_by_record_leaves_one_out_and_compares_within_records():
    """Record a has most positive rows; the scores tell rows apart within b alone."""
    scores = pd.DataFrame({"record": list("aaaabbbbcc"), "patient": list("aaaabbbbcc"),
                           "PVC truth": [1, 1, 1, 0, 1, 0, 1, 0, 0, np.nan],
                           "PVC score": [0, 0, 0, 0, 5, 1, 5, 1, 9, 7.0]})
    row = measure_cross.record_table(scores).loc["PVC"]
    assert row.tolist() == ["a", ".667", ".750", 2]   # 4 / 6, (0.5 + 1) / 2


def test_cross_runs_and_tables(prepared, arrays, made, monkeypatch):
    monkeypatch.setattr(measure_cross, "MODELS", ["cnn"])
    monkeypatch.setattr(measure_cross, "SEEDS", [0])
    monkeypatch.setattr(measure_cross, "ABLATIONS", ["mean RR features"])
    run(measure_cross, monkeypatch)
    assert len(made) == 3 + 3 + 2 + 1   # trained, as it is, ablation, whole target
    run(measure_cross, monkeypatch)
    assert len(made) == 9
    as_it_is, without_rhythm = (
        json.loads((prepared / "results/cross" / f"ptbxl_cnn_0, {test}"
                    / "ptbxl_to_mitbih_cnn_cross.json").read_text())["tables"]
        for test in ("as it is", "mean RR features"))
    assert without_rhythm["in-domain"] == as_it_is["in-domain"]
    assert without_rhythm["cross-domain"] != as_it_is["cross-domain"]
    text = (prepared / "results/cross/tables.md").read_text()
    assert "SIMULATED" in text and text.count("## ") == 6
    row = next(line for line in text.splitlines() if line.startswith("| PVC | "))
    for side in ("cross-domain", "in-domain"):
        pvc = as_it_is[side]["PVC"]
        auc, *rates = (runs.text_of(pvc[name]) for name in ("auc", "sensitivity", "specificity"))
        assert f"| {auc} |" in row and f"| {' / '.join(rates)} |" in row
    assert (prepared / "results/cross/both_directions.png").stat().st_size > 10_000


def test_each_ablation_replaces_one_step_for_the_target_alone(prepared):
    source, target = map(preprocess_mitbih.load_dataset, ("mitbih", "ptbxl"))
    with harness.changed(model_training, DATASET="mitbih", MODEL="mlp"):
        recipe = model_training.choose_recipe(source, model_training.RECIPES["mitbih_strips"])
    strips = cross_dataset_validation.ptbxl_strips(target, [10], recipe.leads)
    rows = np.arange(len(strips.signals))

    def ablated(test, strips=strips):
        inputs, _ = measure_cross.ablated_inputs(
            test, model_training.make_inputs, strips, rows, recipe)
        return inputs
    features = ablated("as it is").features
    other = copy.copy(strips)   # 100 Hz, taken for 360 Hz
    other.rate = recipe.rate
    taken, _ = model_training.make_inputs(other, rows, recipe)
    assert torch.equal(ablated("not resampled").signals, taken.signals)
    mean = ablated("mean RR features").features
    assert features.shape[1] == 25 and torch.equal(mean, mean[:1].expand_as(mean))
    torch.testing.assert_close(mean[0], features.mean(dim=0))
    rows = np.arange(4)
    strips = cross_dataset_validation.mitbih_strips(source, ["114"], recipe.leads)   # of the source
    at_home = [ablated(test, strips) for test in ("as it is", *measure_cross.ABLATIONS)]
    assert all(torch.equal(first, other) for inputs in at_home[1:]
               for first, other in zip(at_home[0], inputs))


# ---- choose_strips.py ----

@pytest.mark.parametrize("source, change", [
    ("mitbih", "statement_weight=9"), ("ptbxl", "lead_dropout=1.0")])
def test_strips_are_chosen_on_fold_9_and_ds1(prepared, monkeypatch, capsys, source, change):
    asked = {"mitbih": set(), "ptbxl": set()}

    def watched(cut_strips, data, side, leads):
        asked[data.name].update(side)
        return cut_strips(data, side, leads)
    for name in ("mitbih_strips", "ptbxl_strips"):
        cut_strips = getattr(cross_dataset_validation, name)
        monkeypatch.setattr(cross_dataset_validation, name, partial(watched, cut_strips))
    monkeypatch.setattr(choose_strips, "SEEDS", [0])
    with harness.changed(model_training, RECIPES=SHORT):
        run(choose_strips, monkeypatch, source, "mlp", change)
    assert asked == {"mitbih": {*preprocess_mitbih.SUBSETS["DS1"].split()}, "ptbxl": {9}}
    tables = capsys.readouterr().out.strip().split("\n\n")
    check_choices(tables, change, prepared)
    assert cross_dataset_validation.ABNORMAL in tables[0] and choose_strips.BEST in tables[0]


def check_choices(texts, change, folder):
    """Both settings were printed, the change changes something, and no checkpoint is left."""
    one, other = texts
    assert one.startswith("as it is, seed 0") and other.startswith(f"{change}, seed 0")
    assert one.split()[4:] != other.removeprefix(change).split()[2:]
    assert not list(folder.glob("*.pth"))


def test_strips_for_choices_are_called_by_the_thresholds_of_the_source(monkeypatch):
    truth = pd.DataFrame({"PAC": [1, 1, 0, 0, 0, np.nan], "AFLT": [1.0, 0, 0, 0, 0, 0]})
    scores = pd.DataFrame({"PAC": [4.0, 1, 3, 0, 0, 9], "AFLT": 0.0})
    called = scores > pd.Series({"PAC": 3.0, "AFLT": 0})
    result = cross_dataset_validation.Result(truth, scores, None, "", called)
    monkeypatch.setattr(cross_dataset_validation, "compare", lambda *_: {"cross-domain": result})
    checkpoint = SimpleNamespace(recipe=SimpleNamespace(sides={"test": ["100"]}))
    table = choose_strips.score_table(checkpoint, None, None)
    assert checkpoint.recipe.sides == {"test": []}
    assert table.index.tolist() == ["PAC"]   # AFLT is no shared statement
    assert list(table) == [*choose_strips.METRICS, choose_strips.BALANCED, choose_strips.BEST]
    assert table.loc["PAC"].tolist() == pytest.approx(
        [5 / 6, 1 / 2, 1, 3 / 4, 5 / 6])   # a score equal to the threshold is no call


# ---- choose_tasks.py ----

def test_ptbxls_recipe_is_chosen_on_fold_9(prepared, monkeypatch, capsys):
    asked = []

    def watched(predictions, task):
        asked.extend(predictions.rows)
        return score_rows(predictions, task)
    score_rows = model_evaluation.score_rows
    monkeypatch.setattr(model_evaluation, "score_rows", watched)
    monkeypatch.setattr(choose_tasks, "SEEDS", [0])
    with harness.changed(model_training, RECIPES=SHORT):
        run(choose_tasks, monkeypatch, "mlp", "batch_size=32")
    data = preprocess_mitbih.load_dataset("ptbxl")
    assert set(data.metadata["fold"][asked]) == {9}
    check_choices(capsys.readouterr().out.splitlines()[-2:], "batch_size=32", prepared)


# ---- published_ideas.py ----

def test_every_idea_trains_and_its_gain_is_over_the_recipe_as_it_is(prepared, made, monkeypatch):
    monkeypatch.setattr(choose_tasks, "SEEDS", [0])
    small = {"ptbxl": {"batch_size": 16, "crop_seconds": 1.0}}
    monkeypatch.setitem(published_ideas.RESNET1D_WANG["RECIPES"]["ptbxl"], "epochs", 1)
    with harness.changed(model_training, RECIPES=small):
        with pytest.raises(SystemExit, match="takes the nets of: measure.py ptbxl_seeds"):
            run(published_ideas, monkeypatch, published_ideas.DISTILLATION)
        harness.run_stage(model_training, DATASET="ptbxl", SECOND_NET=False)
        teacher = Path("results/ptbxl_cnn_0")
        teacher.mkdir(parents=True, exist_ok=True)
        Path("ptbxl_cnn_model.pth").rename(teacher / "ptbxl_cnn_model.pth")
        run(published_ideas, monkeypatch)
    auc = {path.name.removesuffix(", fold 9, seed 0"):
           json.loads((path / "run.json").read_text())["auc"]
           for path in published_ideas.FOLDER.iterdir()}
    assert set(auc) == set(published_ideas.IDEAS)
    assert len({tuple(of_idea.values()) for of_idea in auc.values()}) == len(auc)   # all differ
    text = Path("results/published_ideas.md").read_text()
    gain = auc["mixup"]["form"] - auc["as it is"]["form"]
    assert f"({gain:+.3f})" in next(line for line in text.splitlines() if "mixup" in line)
    assert "SIMULATED" in text


def test_resnet1d_wang_has_the_published_size():
    """A stem of kernel 7 and three blocks of kernels 5 and 3, two of them with a shortcut."""
    net = published_ideas.ResNet1dWang(channels=12, outputs=5)
    convolutions = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    expected = 12 * 128 * 7 + 3 * 128 * 128 * 8 + 2 * 128 * 128
    assert sum(layer.weight.numel() for layer in convolutions) == expected
    assert net(torch.randn(2, 12, 250), None).shape == (2, 5)
    assert net.body(torch.randn(1, 12, 1, 250)).shape == (1, 128, 1, 63)


# ---- crossvalidate.py ----

@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_cross_validation_calls_every_beat_of_ds1_once_and_never_sees_ds2(
        prepared, made, monkeypatch):
    simulate.write_mitbih(MITBIH, records=["208", "101", "122"], seconds=40)
    for name, names in (("svdb", {"208": "800"}), ("nsrdb", {"101": "16265", "122": "16272"})):
        simulate.write_at_rate(MITBIH, name, names, 128, ["ECG1", "ECG2"])
        harness.preprocess(name, DATA_DIR=name, LEADS=["ECG1"])
    beats = {name: pd.Series(preprocess_mitbih.load_dataset(name).record).value_counts().to_dict()
             for name in ("mitbih", "svdb", "nsrdb")}
    ds1 = set(preprocess_mitbih.SUBSETS["DS1"].split())
    beats["DS1"] = {name: beats["mitbih"][name] for name in ds1}
    del beats["mitbih"]
    fit = model_training.fit
    trainings = []

    def watched_fit(net, examples, rows, recipe):
        train, validation = recipe.sides["train"], recipe.sides["validation"]
        assert ds1 == {*train, *validation} and not {*train} & {*validation}
        assert len(examples.targets) == sum(beats["DS1"].values())
        assert len(rows) == sum(beats["DS1"][name] for name in train)
        trainings.append((recipe.epochs, set(validation)))
        return fit(net, examples, rows, recipe)
    monkeypatch.setattr(model_training, "fit", watched_fit)
    monkeypatch.setattr(crossvalidate, "GROUPINGS", [0])
    run(crossvalidate, monkeypatch, "mlp", "epochs=2", "learning_rate=1e-3")
    assert [epochs for epochs, _ in trainings] == [1] * 10 + [2] * 10
    assert set.union(*(group for _, group in trainings[:4])) == ds1
    assert sum(len(group) for _, group in trainings[:4]) == len(ds1)
    assert trainings[8] == trainings[9] == (1, set())   # they call the other databases
    folder = prepared / "results/crossvalidation/mlp_as_it_is"
    called = {}
    for path in folder.glob("*_0_*/run.json"):
        for name, records in json.loads(path.read_text())["counts"].items():
            called.setdefault(name, {}).update(
                {record: int(np.sum(matrix)) for record, matrix in records.items()})
    assert called == beats

    (folder / "0_1_3/run.json").unlink()   # one training is lost
    run(crossvalidate, monkeypatch, "mlp", "epochs=2", "learning_rate=1e-3")
    assert len(trainings) == 21 and made[-1] == "0_1_3"
    rows = rows_of(prepared / "results/crossvalidation/mlp_epochs=2_learning_rate=1e-3.md")
    assert rows["DS1, S F1 of all beats"][2].endswith("of 2")
    assert not list(prepared.rglob("*.pth"))


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_cross_validation_pools_the_beats_of_all_groups_and_means_over_patients():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (8, 50))   # of eight records
    called = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 5, truth.shape))
    matrices = [confusion_matrix(*pair, labels=range(5)).tolist() for pair in zip(truth, called)]
    healthy = np.zeros((2, 5, 5), int)
    healthy[:, 0] = [[6000, 3, 1, 1, 0], [3990, 4, 1, 0, 0]]
    trainings = [{"settings": {"grouping": 0, "seed": 0}, "counts": {"DS1": {
        str(record): matrices[record] for record in (group, group + 4)}}} for group in range(4)]
    trainings.append({"settings": {"grouping": None, "seed": 0}, "counts": {
        "svdb": {"800": matrices[2]}, "nsrdb": dict(zip("ab", healthy.tolist()))}})
    metrics = crossvalidate.metrics_of(trainings).loc[0, 0]
    labels = {"labels": [0, 1, 2], "average": None}
    f1 = f1_score(truth.ravel(), called.ravel(), **labels)
    assert metrics[[f"DS1, {name} F1 of all beats" for name in "NSV"]].tolist() == pytest.approx(f1)
    assert metrics["DS1, mean F1 of all beats"] == pytest.approx(f1.mean())
    of_records = np.array([f1_score(*pair, **labels) for pair in zip(truth, called)])
    assert metrics["DS1, mean F1 over records"] == pytest.approx(of_records.mean())
    enough = np.array([[np.sum(of_record == k) >= 10 for k in range(3)] for of_record in truth])
    assert 0 < enough.mean() < 1
    by_class = [of_records[enough[:, k], k].mean() for k in range(3)]
    assert metrics[[f"DS1, {name} over patients" for name in "NSV"]].tolist() == pytest.approx(
        by_class)
    assert metrics["DS1, mean over patients"] == pytest.approx(np.mean(by_class))
    assert metrics["SVDB, S F1 of all beats"] == pytest.approx(of_records[2, 1])
    assert metrics["healthy, false S of 100,000"] == pytest.approx(70)
    assert metrics["healthy, false V of 100,000"] == pytest.approx(20)


def test_a_change_is_one_of_the_recipe_or_of_the_sizes_of_the_model():
    assert crossvalidate.parse_settings(["epochs=3", "learning_rate=0.1"], "ptbxl", "mlp") == {
        "as it is": {}, "epochs=3 learning_rate=0.1": {
            "RECIPES": {"ptbxl": {"epochs": 3, "learning_rate": {"mlp": 0.1}}}}}
    assert crossvalidate.parse_change("epochs=3", "ptbxl_strips", "cnn") == {
        "RECIPES": {"ptbxl_strips": {"epochs": 3}}}
    assert crossvalidate.parse_change("widths=[4, 8]", "mitbih_strips", "cnn") == {
        "RECIPES": {"mitbih_strips": {"sizes": {"cnn": {"widths": [4, 8]}}}}}


def test_an_unknown_setting_is_refused():
    with pytest.raises(SystemExit, match="epoch'.*expected one of .*epochs"):
        crossvalidate.parse_change("epoch=3", "mitbih", "cnn")


# ---- detectors.py ----

def test_detectors_are_compared_once_and_by_hand(work, made, monkeypatch):
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
    assert made == ["find_beats", "XQRS", "gqrs"]
    records = {name: json.loads((detectors.FOLDER / name / "run.json").read_text())["records"]
               for name in made}
    beats, *others = ([line["hits"] + line["missed"] for line in lines]
                      for lines in records.values())
    assert others == [beats, beats]
    hits = [(count + 1) // 2 for count in beats]
    assert [line["hits"] for line in records["gqrs"]] == hits
    assert [line["false"] for line in records["gqrs"]] == [1, 1, 1]
    rows = rows_of(work / "results/detectors.md")
    assert rows["gqrs"][:2] == [f"{100 * sum(hits) / sum(beats):.2f}",
                                f"{100 * sum(hits) / (sum(hits) + 3):.2f}"]
    first = records["find_beats"][0]
    assert first["hits"] > beats[0] - 3 and first["false"] == 0   # record 100 is easy
    text = (work / "results/detectors.md").read_text()
    assert "SIMULATED" in text and f"{sum(beats)} beats" in text


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
