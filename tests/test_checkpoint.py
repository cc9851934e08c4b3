"""Checkpoints of model_training.py: what they say, and what is refused. Thresholds."""

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simulate
import torch
from harness import contents, cut, damaged, replace, run_stage, train
from sklearn.metrics import f1_score

import model_training as stage
import preprocess_mitbih

COMBINATIONS = [(dataset, model) for dataset in ("mitbih", "ptbxl") for model in stage.MODELS]


# ---- Thresholds ----

def test_thresholds_have_the_best_f1_to_be_expected():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(-1, 2, 20_000))
    chance = torch.sigmoid(logits).numpy()
    targets = np.column_stack([rng.random(20_000) < chance] * 2 + [np.zeros(20_000)])
    skewed = torch.sigmoid(logits + 3).numpy()   # not calibrated
    probability = np.column_stack([chance, skewed, chance])
    thresholds = stage.best_thresholds(probability, targets)
    best = []
    for k in (0, 1):   # with so many rows, the best F1 counted is the best F1 to be expected
        cuts = np.quantile(probability[:, k], np.linspace(0.5, 0.99, 50))
        best.append(max(f1_score(targets[:, k], probability[:, k] >= cut) for cut in cuts))
        called = probability[:, k] >= thresholds[k]
        assert f1_score(targets[:, k], called) == pytest.approx(best[k], abs=0.003)
    assert thresholds[0] == pytest.approx(best[0] / 2, abs=0.02)   # Lipton et al. 2014
    assert thresholds[1] > thresholds[0] + 0.05
    assert thresholds[2] == 0.5   # no row has this class
    assert stage.best_thresholds(probability[:0], targets[:0].astype(bool)) == [0.5] * 3


# ---- A checkpoint describes itself ----

@pytest.mark.parametrize("dataset, model", COMBINATIONS)
def test_a_checkpoint_describes_itself_and_gives_equal_logits(prepared, dataset, model):
    saved = train(dataset, model)
    data = stage.load_dataset(dataset)
    checkpoint, net = stage.load_checkpoint(data, model)
    recipe = checkpoint.recipe
    rows = stage.split_rows(data, recipe)["validation"]
    logits = stage.predict(net, *stage.dataset_inputs(data, recipe), rows, recipe.crop)
    outputs = len(data.header.statement_names) if dataset == "ptbxl" else 5
    assert logits.shape == (len(rows), outputs)
    targets = data.metadata["statements"] >= 0 if dataset == "ptbxl" else data.labels
    score = stage.validation_score(stage.probabilities(logits, recipe), targets[rows])
    assert score == saved["history"][-1]["validation score"]
    assert vars(checkpoint.header) == vars(data.header) and data.header.simulated
    assert recipe.seed == 0 and recipe.sides == stage.choose_sides(data, "inter_patient")
    assert checkpoint.recipe.segment == data.signals.shape[2]
    assert checkpoint.versions["torch"] == torch.__version__
    assert (checkpoint.thresholds is None) == (dataset == "mitbih")
    assert checkpoint.thresholds is None or len(checkpoint.thresholds) == 6
    assert (prepared / f"{dataset}_{model}_training.png").stat().st_size > 10_000


def test_warnings_stand_for_simulated_data_and_a_random_split():
    real = SimpleNamespace(simulated=False)
    simulated = SimpleNamespace(simulated=True)
    safe = SimpleNamespace(split="inter_patient")
    leaky = SimpleNamespace(split="random")
    assert stage.warnings_of(real, safe) == []
    assert stage.warnings_of(simulated, safe) == ["SIMULATED DATA: no figure is a result"]
    assert "LEAKY RANDOM SPLIT" in stage.warnings_of(real, leaky)[0]


# ---- Bad files ----

@pytest.fixture
def trained(prepared, quick_pictures):
    """A folder with mitbih_mlp_model.pth -> the folder and the dataset."""
    train()
    return prepared, stage.load_dataset("mitbih")


def other_database(folder, **constants):
    """Writes mitbih_*.npy anew, with other constants, from two records."""
    for path in folder.glob("mitbih_*.npy"):
        path.unlink()
    simulate.write_mitbih(folder / "mitdb", records=("101", "114"), seconds=20)
    run_stage(preprocess_mitbih, DATA_DIR="mitdb", **constants)


@pytest.mark.parametrize("change, message", [
    (Path.unlink, "mitbih_labels.npy is not in this folder"),
    (lambda path: replace(path, bytes(16), bytes(15) + b"\1"), "labels.npy has another SHA-256"),
    (lambda path: cut(path, 100), "mitbih_.*npy are damaged or of several runs")])
def test_bad_arrays_stop_with_one_sentence_and_keep_the_checkpoint(trained, change, message):
    folder, _ = trained
    path = folder / "mitbih_labels.npy"
    content = path.read_bytes()
    path.unlink()   # a link
    path.write_bytes(content)
    change(path)
    before = contents(folder)
    with pytest.raises(SystemExit, match=f"{message}.*with preprocess_mitbih.py or "
                                          "preprocess_ptbxl.py$") as error:
        train()
    assert "\n" not in str(error.value)
    assert contents(folder) == before


class Malice:
    def __reduce__(self):
        return open, ("hacked", "w")


def test_bad_checkpoints_stop_with_one_sentence_and_run_no_code(trained):
    folder, data = trained
    path = folder / "mitbih_mlp_model.pth"
    content = path.read_bytes()
    good = stage.load_pth(path)
    with pytest.raises(SystemExit, match="mitbih_lstm_model.pth is not in this folder"):
        stage.load_checkpoint(data, "lstm")
    (folder / "mitbih_cnn_model.pth").write_bytes(content)
    with pytest.raises(SystemExit, match="it holds a mlp"):
        stage.load_checkpoint(data, "cnn")
    incomplete = {name: value for name, value in good.items() if name != "net_arguments"}
    foreign = good | {"weights": {"layer.weight": torch.zeros(3)}}
    for bad in (content[:5000], b"", b"junk", incomplete, foreign, {"weights": Malice()}):
        if isinstance(bad, bytes):
            path.write_bytes(bad)
        else:
            torch.save(bad, path)
        message = "mitbih_mlp_model.pth is not the expected checkpoint, or damaged"
        with pytest.raises(SystemExit, match=message) as error:
            stage.load_checkpoint(data, "mlp")
        assert "\n" not in str(error.value) and 'MODEL = "mlp", SECOND_NET' in str(error.value)
    assert not (folder / "hacked").exists()


@pytest.mark.parametrize("name", ["mitbih_header.npy", "mitbih_mlp_model.pth"])
def test_damaged_files_end_in_a_sentence_or_the_right_result(trained, name):
    path = trained[0] / name
    content = path.read_bytes()
    path.unlink()   # it may be a link

    def read():
        data = stage.load_dataset("mitbih")
        checkpoint, net = stage.load_checkpoint(data, "mlp")
        net_bytes = [value.numpy().tobytes() for value in net.state_dict().values()]
        return [vars(data.header), checkpoint.recipe, checkpoint.history, net_bytes]

    path.write_bytes(content)
    right = read()
    chance = random.Random(name)
    refused = 0
    for _ in range(40):
        path.write_bytes(damaged(content, chance))
        try:
            assert read() == right
        except SystemExit as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("constants, message", [
    ({"LEADS": ["V1"]}, "leads = .'MLII', 'V1'., now .'V1'."), ({}, "records = ")])
def test_a_checkpoint_of_other_data_is_refused_with_both_values(trained, constants, message):
    folder, _ = trained
    other_database(folder, **constants)
    with pytest.raises(SystemExit, match=f"was trained on other .npy files .{message}"):
        stage.load_checkpoint(stage.load_dataset("mitbih"), "mlp")


def change_header(path, **fields):
    """Changes fields of the header in a checkpoint."""
    content = stage.load_pth(path)
    content["header"] |= fields
    stage.save_pth(path, content)


def test_versions_of_libraries_may_differ_but_nothing_else(trained):
    folder, data = trained
    path = folder / "mitbih_mlp_model.pth"
    change_header(path, versions={"numpy": "1.0"})
    checkpoint, _ = stage.load_checkpoint(data, "mlp")
    assert checkpoint.header.versions == {"numpy": "1.0"}
    right = vars(data.header)
    for name, value in (("sha256", {"signals": "0"}), ("class_names", ["N", "S"]),
                        ("annotator", "qrs"), ("sampling_rate", 250)):
        change_header(path, **{name: value})
        with pytest.raises(SystemExit, match=f"was trained on other .npy files .{name} = "):
            stage.load_checkpoint(data, "mlp")
        change_header(path, **{name: right[name]})
    stage.load_checkpoint(data, "mlp")


@pytest.mark.parametrize("before, after", [("annotated", "detected"), ("detected", "annotated")])
def test_annotated_and_detected_beats_of_the_same_records_may_meet(
        work, quick_pictures, before, after):
    records = ("101", "208", "114")
    simulate.write_mitbih("mitdb", records=records, seconds=20)
    preprocess = partial(run_stage, preprocess_mitbih, DATA_DIR="mitdb")
    preprocess(R_PEAKS=before)
    train()
    preprocess(R_PEAKS=after)
    data = stage.load_dataset("mitbih")
    checkpoint, net = stage.load_checkpoint(data, "mlp")
    assert (checkpoint.header.r_peaks, data.header.r_peaks) == (before, after)
    classes = {"annotated": 5, "detected": 6}
    assert len(checkpoint.header.class_names) == classes[before]
    assert len(data.header.class_names) == classes[after]
    inputs = stage.dataset_inputs(data, checkpoint.recipe)
    logits = stage.predict(net, *inputs, np.arange(len(data.labels)), checkpoint.recipe.crop)
    assert logits.shape == (len(data.labels), classes[before])
    preprocess(R_PEAKS=after, RECORDS=records[1:])   # other records
    with pytest.raises(SystemExit, match="was trained on other .npy files .records = "):
        stage.load_checkpoint(stage.load_dataset("mitbih"), "mlp")
