"""The training loop of model_training.py: loss, seeds, the last epoch, leads, settings, device."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import changed, contents, files_up_to, run_stage, train
from sklearn.metrics import f1_score
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model_training as stage
import preprocess_mitbih

F = torch.nn.functional


def equal_weights(one, two):
    return all(torch.equal(value, two["weights"][name]) for name, value in one["weights"].items())


def predict_side(side):
    """-> dataset, rows of the side, logits of them by mitbih_mlp_model.pth."""
    data = stage.load_dataset("mitbih")
    checkpoint = stage.load_checkpoint(data, "mlp")
    rows = stage.split_rows(data, checkpoint.recipe)[side]
    [logits], _ = stage.predict_rows(checkpoint, data, rows)   # one crop per beat
    return data, rows, logits


# ---- Loss, batches ----

def test_the_loss_is_that_of_the_targets_and_of_the_statements():
    logits = torch.randn(6, 7)
    targets = torch.randint(3, (6,))
    statements = torch.randint(2, (6, 4)).float()
    probability = torch.sigmoid(logits[:, 3:])
    of_statements = -torch.where(statements == 1, probability, 1 - probability).log().mean()
    recipe = SimpleNamespace(kind="beats", classes=["N", "S", "V"], statement_weight=2.0)
    loss = stage.loss_of(recipe, None, logits, targets, statements)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :3], targets) + 2 * of_statements)
    records = SimpleNamespace(kind="records", classes=["NORM", "PVC", "SR", "AFIB"])
    loss = stage.loss_of(records, None, logits[:, 3:], statements, statements[:, :0])
    torch.testing.assert_close(loss, of_statements)


def test_the_loss_weighs_classes_by_their_inverse_frequency():
    logits = torch.randn(6, 3)
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    recipe = SimpleNamespace(kind="beats", classes=["N", "S", "V"], class_weight_power=1.0,
                             statement_weight=0.0)
    weight = stage.class_weights(targets, recipe)
    np.testing.assert_allclose(weight, [1 / 3, 1 / 2, 1])
    of_class = [F.cross_entropy(logits[targets == k], targets[targets == k]) for k in range(3)]
    loss = stage.loss_of(recipe, weight, logits, targets, torch.zeros(6, 0))
    torch.testing.assert_close(loss, sum(of_class) / 3)


def test_class_weights_equal_those_by_hand():
    targets = torch.tensor([0] * 9600 + [1] * 399 + [2])
    recipe = SimpleNamespace(kind="beats", classes=["N", "S", "V", "F"], class_weight_power=0.5)
    weight = stage.class_weights(targets, recipe)   # one row or none counts as 0.1%
    np.testing.assert_allclose(weight, np.array([9600, 399, 10, 10]) ** -0.5, rtol=1e-6)
    assert stage.class_weights(torch.zeros(3, 5), SimpleNamespace(kind="records")) is None


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_an_epoch_shows_each_row_once_in_a_random_crop_with_its_own_features_and_target(noise):
    rows = np.arange(100, 900)
    number = torch.arange(1000.0)
    signals = 1000 * number[:, None, None] + torch.arange(30)   # mV tell row and sample
    examples = SimpleNamespace(signals=signals, features=number[:, None],
                               targets=number, statements=number[:, None])
    spread = SimpleNamespace(spread=torch.ones(1))
    net = SimpleNamespace(normalise_signals=spread, normalise_features=spread)
    recipe = SimpleNamespace(crop=20, signal_noise=0.2 * noise, rhythm_noise=noise,
                             leads=["II"], lead_dropout=0.5, height_noise=0)
    torch.manual_seed(0)
    batches = list(stage.training_batches(net, examples, rows, 64, recipe))
    assert [len(batch[2]) for batch in batches] == [64] * 12
    crops, features, targets, statements = map(torch.cat, zip(*batches))
    assert len(set(targets.tolist())) == 768 and set(targets.tolist()) <= set(rows.tolist())
    assert targets[:64].tolist() != sorted(targets[:64].tolist())
    torch.testing.assert_close(statements[:, 0], targets)
    start = (crops[:, 0, 0] - 1000 * targets).round()
    assert set(start.tolist()) == set(range(11))
    exact = (1000 * targets + start)[:, None] + torch.arange(20)
    assert (crops[:, 0] - exact).std().item() == pytest.approx(0.2 * noise, rel=0.1)
    assert (features[:, 0] - targets).std().item() == pytest.approx(noise, rel=0.1)


# ---- Whole runs ----

def test_the_seed_repeats_a_run_exactly(prepared):
    first = train()
    assert equal_weights(first, train())
    assert not equal_weights(first, train(SEED=1))


def test_numbers_of_numpy_make_a_checkpoint_that_can_be_read(prepared):
    train(SEED=np.int64(1), settings={"learning_rate": {"mlp": np.float64(1e-3)}})
    checkpoint = stage.load_checkpoint(stage.load_dataset("mitbih"), "mlp")
    assert (checkpoint.recipe.seed, checkpoint.recipe.learning_rate) == (1, 1e-3)


def test_the_last_epoch_is_kept_whatever_its_loss(prepared, monkeypatch):
    weights = []

    def train_epoch(net, *arguments):
        original(net, *arguments)
        weights.append({"weights": copy.deepcopy(net.state_dict())})
        return [1.5, 0.5, 9.0][len(weights) - 1]   # worse at the end
    original = stage.train_epoch
    monkeypatch.setattr(stage, "train_epoch", train_epoch)
    checkpoint = train(settings={"epochs": 3})
    assert checkpoint["history"] == [
        {"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 9.0}]
    assert equal_weights(checkpoint, weights[2]) and not equal_weights(checkpoint, weights[1])


def test_a_model_learns_the_simulated_classes(prepared):
    train(settings={"epochs": 8, "batch_size": 32})
    data, rows, logits = predict_side("validation")
    f1 = f1_score(data.labels[rows], logits.argmax(dim=1), labels=[0, 1, 2], average=None)
    assert f1.mean() > 0.8   # chance: 0.33


def test_the_checkpoint_has_the_classes_that_are_called(prepared):
    data = stage.load_dataset("mitbih")
    labels, patient = data.labels, data.patient
    data.labels = np.where(np.isin(data.record, ["101", "106", "108"]), 2, labels)   # V enough
    checkpoint = train(called_classes=stage.called_classes, load_dataset=lambda name: data)
    train_side = np.isin(data.record, checkpoint["recipe"]["sides"]["train"])
    enough = [sum(np.sum((data.labels == k) & (patient == name)) >= 20
                  for name in set(patient[train_side])) >= 3 for k in range(5)]
    assert checkpoint["recipe"]["called"] == enough == [True, False, True, False, False]


def test_mitbih_trains_on_all_patients_of_ds1_without_validation(prepared):
    checkpoint = train(settings={"epochs": 2, "hold_out": stage.RECIPES["mitbih"]["hold_out"]})
    sides = checkpoint["recipe"]["sides"]
    assert sorted(sides["train"]) == preprocess_mitbih.SUBSETS["DS1"].split()
    assert sides["validation"] == []
    assert [list(epoch) for epoch in checkpoint["history"]] == [["epoch", "loss"]] * 2


def test_ptbxl_trains_on_one_lead(prepared):
    checkpoint = train("ptbxl", "cnn", LEADS="II")
    assert checkpoint["recipe"]["kind"] == "records"
    tasks = checkpoint["header"]["tasks"]
    assert list(tasks) == ["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form",
                           "rhythm"]
    assert {task: len(values) for task, values in checkpoint["thresholds"].items()} == {
        task: len(classes) for task, classes in tasks.items()}
    assert checkpoint["recipe"]["leads"] == ["II"]
    assert checkpoint["net_arguments"]["channels"] == 1


def test_mitbih_trains_a_second_net_for_strips(prepared):
    train(SECOND_NET=True, RECIPES={"mitbih_strips": {"epochs": 2}})
    home, strips = (stage.load_pth(f"mitbih_mlp{suffix}_model.pth") for suffix in ("", "_strips"))
    assert (home["recipe"]["context_seconds"], strips["recipe"]["context_seconds"]) == (1800, 10)
    assert (len(home["history"]), len(strips["history"])) == (1, 2)
    statements = len(strips["header"]["statement_names"])
    outputs = [checkpoint["net_arguments"]["outputs"] for checkpoint in (home, strips)]
    assert outputs == [5, 5 + statements]
    assert np.isfinite(strips["history"][-1]["loss"])


def test_detected_beats_train_a_class_of_what_is_no_beat(work, arrays, monkeypatch):
    original = preprocess_mitbih.find_beats

    def with_t_waves(energy, rate):
        beats = original(energy, rate)
        return np.concatenate([beats, beats[:-1] + round(0.35 * rate)])

    monkeypatch.setattr(preprocess_mitbih, "find_beats", with_t_waves)
    run_stage(preprocess_mitbih, DATA_DIR=arrays / preprocess_mitbih.DATA_DIR,
              R_PEAKS="detected", RECORDS=["101", "119", "203", "208", "223", "231"])
    checkpoint = train(settings={"epochs": 8, "batch_size": 32})
    assert checkpoint["header"]["class_names"] == ["N", "S", "V", "F", "Q", "not a beat"]
    data, rows, logits = predict_side("train")
    assert logits.shape == (len(rows), 6)
    no_beat = data.labels[rows] == 5
    called = logits.argmax(dim=1).numpy() == 5
    assert no_beat.mean() > 0.2 and called[no_beat].mean() > called[~no_beat].mean() + 0.5


def test_each_net_of_an_ensemble_sees_as_many_rows_as_there_are(prepared, monkeypatch):
    sizes = []

    def train_epoch(net, batches, *_):
        sizes.extend(len(targets) for *_, targets, _ in batches)
        return 0.0
    monkeypatch.setattr(stage, "train_epoch", train_epoch)
    train(settings={"epochs": 2, "batch_size": 32, "ensemble_size": 3})
    _, rows, _ = predict_side("train")
    assert set(sizes) == {3 * 32} and len(sizes) == 2 * (3 * len(rows) // (3 * 32))


# ---- An own net ----

class Own(stage.Net):
    """One layer over all samples."""

    def __init__(self, *, channels, samples, width, **shared):
        super().__init__(width=width, steps=1, **shared)
        self.maps = torch.nn.Conv1d(channels, width, samples)


def own_net(dataset):
    """-> the constants that add the net."""
    own = {"sizes": {"own": {"width": 8}}, "learning_rate": {"own": 0.01}}
    return {"MODELS": {"own": Own}, "RECIPES": {dataset: own, f"{dataset}_strips": own}}


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_an_own_net_trains_and_its_checkpoint_loads(prepared, dataset):
    with changed(stage, **own_net(dataset)):
        train(dataset, "own", SECOND_NET=True)
        data = stage.load_dataset(dataset)
        for strips in (False, True):
            checkpoint = stage.load_checkpoint(data, "own", strips)
            logits, _ = stage.predict_rows(checkpoint, data, np.arange(9))
            assert isinstance(checkpoint.net.nets[0], Own) and torch.isfinite(logits).all()


@pytest.mark.parametrize("forgotten, message", [
    ("MODELS", "MODEL"), ("sizes", "sizes in RECIPES needs an entry for MODEL"),
    ("learning_rate", "learning_rate in RECIPES needs an entry for MODEL")])
def test_what_is_forgotten_of_an_own_net_is_named(prepared, forgotten, message):
    constants = own_net("mitbih")
    del (constants if forgotten == "MODELS" else constants["RECIPES"]["mitbih"])[forgotten]
    sentence = f"^{message} = 'own': expected one of cnn, lstm, mlp$"
    with changed(stage, **constants), pytest.raises(SystemExit, match=sentence):
        train(model="own")


# ---- Leads of a recipe ----

@pytest.mark.parametrize("dataset, leads, used", [
    ("mitbih", ["MLII", "V1"], ["MLII", "V1"]), ("mitbih", ["v1"], ["V1"]),
    ("mitbih", "V1, ii", ["V1", "MLII"]), ("mitbih", ("ECG Lead 2",), ["MLII"]),
    ("ptbxl", "aVR aVL aVF", ["AVR", "AVL", "AVF"]), ("ptbxl", ["Lead I", "mlii"], ["I", "II"])])
def test_the_leads_of_a_recipe_are_found_by_their_usual_names_and_printed(
        prepared, capsys, dataset, leads, used):
    checkpoint = train(dataset, settings={"leads": leads})
    assert checkpoint["recipe"]["leads"] == used
    assert capsys.readouterr().out.startswith(
        f"{dataset}_mlp, leads {' '.join(used)}, on cpu. Rows: ")
    channels = len(used) * (2 if dataset == "mitbih" else 1)   # beats, and their differences
    assert checkpoint["net_arguments"]["channels"] == channels


@pytest.mark.parametrize("dataset, leads, names", [
    ("mitbih", ["MLII", "V5"], "MLII V1, but MLII V5"), ("mitbih", "V9", "MLII V1, but V9"),
    ("mitbih", ["II", "MLII"], "MLII V1, but II MLII"),   # it is there once
    ("mitbih", "CH1", "MLII V1, but CH1"),
    ("ptbxl", "aVR aVX", "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6, but aVR aVX")])
def test_leads_of_a_recipe_that_the_data_lack_are_refused(prepared, dataset, leads, names):
    sentence = f"^{dataset}_signals.npy has the leads {names} are wanted: set LEADS$"
    with pytest.raises(SystemExit, match=sentence):
        train(dataset, settings={"leads": leads})


def test_a_signal_that_stands_in_for_a_lead_is_printed(prepared, capsys):
    train(SPLIT="all")   # 102 and 104 train too; they have no MLII
    assert "mitbih_mlp, leads MLII; V5 stands in for MLII, on cpu" in capsys.readouterr().out


# ---- A device without float64 ----

class WithoutFloat64(TorchDispatchMode):
    """In this context, PyTorch makes and uses no float64, as on a Mac's GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves([args, kwargs, result]):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"{function}: float64")
        return result


@pytest.mark.parametrize("dataset, model", [
    ("mitbih", "cnn"), ("mitbih", "mlp"), ("ptbxl", "lstm")])
def test_everything_on_the_device_is_float32(prepared, dataset, model):
    used = []

    def on_device(function, net, *arguments):
        used.append(function)
        with WithoutFloat64():
            for tensor in [*net.state_dict().values(), *vars(arguments[0]).values()]:
                tensor.clone()   # also what is there without being used
            return function(net, *arguments)

    def predict(net, inputs, crop):
        examples = SimpleNamespace(**inputs._asdict())
        return on_device(lambda *_: original(net, inputs, crop), net, examples)
    original = stage.predict
    noise = {"signal_noise": 0.1, "rhythm_noise": 0.1, "height_noise": 0.1, "lead_dropout": 0.1}
    train(dataset, model, noise, SECOND_NET=True, RECIPES={f"{dataset}_strips": noise},
          fit=partial(on_device, stage.fit), predict=predict)
    assert used.count(stage.fit) == 2


def test_a_device_without_float64_refuses_it():
    with WithoutFloat64(), pytest.raises(TypeError):
        torch.ones(2).double()
    values = torch.ones(2, dtype=torch.float64)
    with WithoutFloat64(), pytest.raises(TypeError):
        values.float()


# ---- Settings of a recipe ----

@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_the_learning_rate_may_be_one_number(prepared, dataset):
    rates = []

    def train_epoch(net, batches, loss_function, optimiser, schedule):
        for _ in range(schedule.total_steps):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return 1.0
    settings = {"learning_rate": 0.004, "batch_size": 16}
    checkpoint = train(dataset, settings=settings, train_epoch=train_epoch)
    assert checkpoint["recipe"]["learning_rate"] == 0.004
    assert max(rates) == pytest.approx(0.004, rel=0.05)   # the peak


@pytest.mark.parametrize("dataset, sizes", [
    ("mitbih", {"widths": [4, 4, 8, 8, 8], "stem": (9, 3)}),
    ("ptbxl", {"widths": [4, 4, 8, 8, 8], "stem": (9, 2)}),
    ("mitbih", {"widths": [4], "stem": (3, 1)})])
def test_a_cnn_of_any_depth_trains_and_is_read_again(prepared, dataset, sizes):
    weights = train(dataset, "cnn", {"sizes": {"cnn": sizes}})["weights"]
    blocks = [name for name in weights if name.endswith(".shortcut.1.weight")]
    assert len(blocks) == len(sizes["widths"])
    stage.load_checkpoint(stage.load_dataset(dataset), "cnn")


def test_two_rows_make_the_smallest_batch(prepared):
    history = train(settings={"batch_size": 2, "head": {"hidden_width": 16}})["history"]
    assert np.isfinite(history[0]["loss"])


@pytest.mark.parametrize("name, value, expected", [
    ("learning_rate", "1e-3", "a number from 1e-09 to 1.0"),
    ("learning_rate", None, "a number from 1e-09 to 1.0"),
    ("batch_size", 1, "a whole number from 2 to 1000000"),
    ("batch_size", 64.0, "a whole number from 2 to 1000000"),
    ("epochs", 0, "a whole number from 1 to 10000"),
    ("epochs", 1.5, "a whole number from 1 to 10000"),
    ("class_weight_power", None, "a number from 0.0 to 1000000.0"),
    ("class_weight_power", -1, "a number from 0.0 to 1000000.0"),
    ("signal_noise", None, "a number from 0.0 to 1000000.0"),
    ("rhythm_noise", [0.3], "a number from 0.0 to 1000000.0"),
    ("height_noise", float("nan"), "a number from 0.0 to 1000000.0"),
    ("lead_dropout", 1.1, "a number from 0.0 to 1.0"),
    ("context_seconds", None, "a number from 0.05 to 100000.0"),
    ("context_seconds", 0, "a number from 0.05 to 100000.0"),
    ("crop_seconds", 0, "a number from 0.05 to 100000.0"),
    ("statement_weight", "100", "a number from 0.0 to 1000000.0"),
    ("ensemble_size", 0, "a whole number from 1 to 10000"),
])
def test_a_setting_out_of_its_range_is_named(prepared, name, value, expected):
    sentence = f"^{re.escape(f'{name} in RECIPES = {value!r}: expected {expected}')}$"
    with pytest.raises(SystemExit, match=sentence):
        train(settings={name: value})
    assert not list(prepared.glob("*.pth"))


def test_a_crop_is_not_longer_than_a_row(prepared):
    with pytest.raises(SystemExit, match="^crop_seconds makes 720 samples, a row has 360$"):
        train(settings={"crop_seconds": 2})


@pytest.mark.parametrize("model, name, value", [
    ("mlp", "head", {"flatten_width": 64, "hidden_width": 0}),
    ("mlp", "head", [64, 0, 0.25]),
    ("mlp", "head", None),
    ("mlp", "head", {"flatten_width": 0, "hidden_width": 16, "dropout": 1.5}),
    ("cnn", "head", {"flatten_width": "64", "hidden_width": 0, "dropout": 0.25}),
    ("mlp", "sizes", None),
    ("mlp", "sizes", {"mlp": None}),
    ("cnn", "sizes", [32, 48]),
    ("cnn", "sizes", {"cnn": {"widths": [32, 48]}}),
    ("cnn", "sizes", {"cnn": {"widths": [], "stem": (9, 3)}}),
    ("cnn", "sizes", {"cnn": {"widths": [32, 48], "stem": (10, 3)}}),   # an even kernel
    ("lstm", "sizes", {"lstm": {"width": 48, "stem": 9}}),
    ("mlp", "sizes", {"mlp": {"widths": [32], "windows": (0.4, 0)}}),
])
def test_sizes_and_head_that_make_no_net_are_named(prepared, monkeypatch, model, name, value):
    monkeypatch.setitem(stage.RECIPES["mitbih"], name, value)
    with pytest.raises(SystemExit, match="^RECIPES: sizes = .* and head = .* make no net") as error:
        train(model=model)
    assert "\n" not in str(error.value)
    value = value[model] if isinstance(value, dict) and model in value else value
    assert f"{name} = {value}" in str(error.value)
    assert not list(prepared.glob("*.pth"))


# ---- Bad settings ----

@pytest.mark.parametrize("name, value", [
    ("DATASET", "mit"), ("MODEL", "cnnn"), ("SPLIT", "random"), ("DEVICE", "tpu"),
    ("DEVICE", "cuda"), ("DATASET", ["mitbih"]), ("MODEL", ["cnn", "lstm"])])
def test_unknown_choices_are_named(work, monkeypatch, name, value):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    sentence = f"^{re.escape(f'{name} = {value!r}')}: expected one of .*[a-z]$"
    with pytest.raises(SystemExit, match=sentence):
        run_stage(stage, **{name: value})


@pytest.mark.parametrize("constants, message", [
    ({"VALIDATION_FOLD": 11}, "VALIDATION_FOLD = 11: expected a whole number from 1 to 10"),
    ({"VALIDATION_FOLD": [8, 9]}, "VALIDATION_FOLD = .8, 9.: expected a whole number from 1"),
    ({"TEST_FOLD": "10"}, "TEST_FOLD = '10': expected a whole number from 1 to 10"),
    ({"split_rows": lambda *_: {"train": [0], "validation": [1, 2], "test": []},
      "check_patients": lambda *_: ""}, "too few labelled rows"),
    ({"VALIDATION_FOLD": 10}, "too few labelled rows"),   # that of the test
    ({"LEADS": ["V9"]}, "^ptbxl_signals.npy has the leads I II .* V6, but V9 are wanted: set "),
    ({"LEADS": []}, r"^LEADS = \[\]: expected a list of names"),
    ({"SEED": None}, "^SEED = None: expected a whole number from 0 to "),
    ({"SEED": -1}, "^SEED = -1: expected a whole number from 0 to "),
    ({"SEED": "0"}, "^SEED = '0': expected a whole number from 0 to "),
    ({"loss_of": lambda recipe, weight, logits, *_: np.nan * logits.sum()},
     "the training loss is not finite: lower the learning_rate in RECIPES"),
])
def test_settings_that_cannot_work_stop_with_one_sentence(prepared, constants, message):
    (prepared / "ptbxl_mlp_model.pth").write_bytes(b"of an earlier run")
    before = contents(prepared)
    with pytest.raises(SystemExit, match=message) as error:
        train("ptbxl", **constants)
    assert "\n" not in str(error.value)
    assert contents(prepared) == before


def test_a_full_disk_is_named_and_earlier_outputs_stay(prepared):
    train()
    before = contents(prepared)
    message = "cannot write mitbih_mlp_model.pth in .*File too large"
    with files_up_to(100_000), pytest.raises(SystemExit, match=message) as error:
        train()
    assert "\n" not in str(error.value)
    assert contents(prepared) == before
