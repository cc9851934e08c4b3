"""Checkpoints of model_training.py: what they say, and what is refused. Thresholds."""

import random

import numpy as np
import pytest
import simulate
import torch
from harness import damaged, preprocess, train
from sklearn.metrics import f1_score

import model_training as stage

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

@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
@pytest.mark.parametrize("model", stage.MODELS)
def test_a_checkpoint_describes_itself_and_gives_equal_logits(prepared, dataset, model):
    nets = []

    def fit(net, *arguments):
        nets.append(net)
        return original(net, *arguments)
    original = stage.fit
    saved = train(dataset, model, fit=fit)
    data = stage.load_dataset(dataset)
    checkpoint = stage.load_checkpoint(data, model)
    recipe = checkpoint.recipe
    rows = stage.split_rows(data, recipe)["validation"]
    logits, numbers = stage.predict_rows(checkpoint, data, rows)
    outputs = len(data.header.statement_names) if dataset == "ptbxl" else 5
    assert logits.shape[1:] == (len(rows), outputs)
    inputs, _ = stage.make_inputs(data, rows, recipe)
    assert numbers.tolist() == rows.tolist()
    assert torch.equal(logits, stage.predict(nets[0], inputs, recipe.crop))
    [epoch] = saved["history"]
    assert [*epoch] == ["epoch", "loss"] and epoch["epoch"] == 1 and epoch["loss"] > 0
    assert vars(checkpoint.header) == vars(data.header) and data.header.simulated
    assert recipe.seed == 0 and recipe.sides == stage.choose_sides(data, "inter_patient")
    assert checkpoint.recipe.segment == data.signals.shape[2]
    assert checkpoint.versions["torch"] == torch.__version__
    assert (checkpoint.thresholds is None) == (dataset == "mitbih")
    assert checkpoint.thresholds is None or len(checkpoint.thresholds) == 6


def test_simulated_data_have_a_warning():
    assert stage.warning_of(True) == ". SIMULATED DATA: no score is a result"
    assert stage.warning_of(False) == ""


def test_a_checkpoint_can_be_read_without_its_dataset(prepared, trained):
    trained("mitbih", "mlp")
    data = stage.load_dataset("mitbih")
    for path in prepared.glob("*.npy"):
        path.unlink()
    for strips in (False, True):
        checkpoint = stage.read_checkpoint("mitbih", "mlp", strips)
        assert checkpoint.recipe.context_seconds == (10 if strips else 1800)
        other = stage.load_checkpoint(data, "mlp", strips)
        for name, value in other.net.state_dict().items():
            assert torch.equal(checkpoint.net.state_dict()[name], value)
    with pytest.raises(SystemExit, match="mitbih_cnn_strips_model.pth is not in this folder"):
        stage.read_checkpoint("mitbih", "cnn", strips=True)


# ---- Bad files ----

@pytest.fixture
def mlp(prepared, trained):
    """A folder with mitbih_mlp_model.pth -> its path."""
    trained("mitbih", "mlp", SECOND_NET=False)
    return prepared / "mitbih_mlp_model.pth"


def load_mlp():
    """-> checkpoint for mitbih_*.npy."""
    return stage.load_checkpoint(stage.load_dataset("mitbih"), "mlp")


class Malice:
    def __reduce__(self):
        return open, ("hacked", "w")


def test_bad_checkpoints_stop_with_one_sentence_and_run_no_code(mlp):
    data = stage.load_dataset("mitbih")
    content = mlp.read_bytes()
    good = stage.load_pth(mlp)
    with pytest.raises(SystemExit, match="mitbih_lstm_model.pth is not in this folder"):
        stage.load_checkpoint(data, "lstm")
    mlp.with_name("mitbih_cnn_model.pth").write_bytes(content)
    with pytest.raises(SystemExit, match="it holds a mlp"):
        stage.load_checkpoint(data, "cnn")
    incomplete = {name: value for name, value in good.items() if name != "net_arguments"}
    foreign = good | {"weights": {"layer.weight": torch.zeros(3)}}
    for bad in (content[:5000], b"", b"junk", incomplete, foreign, {"weights": Malice()}):
        if isinstance(bad, bytes):
            mlp.write_bytes(bad)
        else:
            torch.save(bad, mlp)
        message = "mitbih_mlp_model.pth is not the expected checkpoint, or damaged"
        with pytest.raises(SystemExit, match=message) as error:
            stage.load_checkpoint(data, "mlp")
        assert "\n" not in str(error.value) and 'MODEL = "mlp", SECOND_NET' in str(error.value)
    assert not mlp.with_name("hacked").exists()


@pytest.mark.parametrize("name", ["mitbih_header.npy", "mitbih_mlp_model.pth"])
def test_damaged_files_end_in_a_sentence_or_the_right_result(mlp, name):
    path = mlp.with_name(name)
    content = path.read_bytes()
    path.unlink()   # it may be a link

    def read():
        checkpoint = load_mlp()
        net_bytes = [value.numpy().tobytes() for value in checkpoint.net.state_dict().values()]
        header = stage.load_dataset("mitbih").header
        return [vars(header), checkpoint.recipe, checkpoint.history, net_bytes]

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
def test_a_checkpoint_of_other_data_is_refused_with_both_values(mlp, constants, message):
    for path in mlp.parent.glob("mitbih_*.npy"):
        path.unlink()
    simulate.write_mitbih("mitdb", records=("101", "114"), seconds=20)
    preprocess(DATA_DIR="mitdb", **constants)
    sentence = f"^the mlp of mitbih was trained on other .npy files .{message}"
    with pytest.raises(SystemExit, match=sentence):
        load_mlp()


def test_versions_of_libraries_may_differ_but_nothing_else(mlp):
    good = stage.load_pth(mlp)
    stage.save_pth(mlp, good | {"versions": {"torch": "1.0"}})
    assert load_mlp().versions == {"torch": "1.0"}
    for name, value in (("sha256", {"signals": "0"}), ("class_names", ["N", "S"]),
                        ("annotator", "qrs"), ("sampling_rate", 250)):
        stage.save_pth(mlp, good | {"header": good["header"] | {name: value}})
        with pytest.raises(SystemExit, match=f"was trained on other .npy files .{name} = "):
            load_mlp()


@pytest.mark.parametrize("before, after", [("annotated", "detected"), ("detected", "annotated")])
def test_annotated_and_detected_beats_of_the_same_records_may_meet(work, before, after):
    records = ("101", "208", "114")
    simulate.write_mitbih("mitdb", records=records, seconds=20)
    preprocess(DATA_DIR="mitdb", R_PEAKS=before)
    train()
    data = preprocess(DATA_DIR="mitdb", R_PEAKS=after)
    checkpoint = load_mlp()
    assert (checkpoint.header.r_peaks, data.header.r_peaks) == (before, after)
    classes = {"annotated": 5, "detected": 6}
    assert len(checkpoint.header.class_names) == classes[before]
    assert len(data.header.class_names) == classes[after]
    logits, _ = stage.predict_rows(checkpoint, data, np.arange(len(data.labels)))
    assert logits.shape == (1, len(data.labels), classes[before])
    preprocess(DATA_DIR="mitdb", R_PEAKS=after, RECORDS=records[1:])   # other records
    with pytest.raises(SystemExit, match="was trained on other .npy files .records = "):
        load_mlp()
