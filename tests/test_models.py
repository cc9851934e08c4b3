"""The nets of model_training.py, their predictions, and the classes that are called."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import model_training as stage


def make_net(dataset, model, samples=250, features=3, hidden_width=0):
    """A net of two leads and five outputs, with the arguments of a dataset and model."""
    torch.manual_seed(0)
    return stage.MODELS[model](
        channels=2, samples=samples, features=features, outputs=5,
        head=stage.RECIPES[dataset]["head"] | {"hidden_width": hidden_width},
        **stage.RECIPES[dataset]["sizes"][model])


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
@pytest.mark.parametrize("model", stage.MODELS)
@pytest.mark.parametrize("hidden_width", [0, 16])
def test_nets_give_a_logit_a_class_and_learn_from_signals_and_features(
        dataset, model, hidden_width):
    net = make_net(dataset, model, hidden_width=hidden_width)
    signals = torch.randn(4, 2, 250, requires_grad=True)
    features = torch.randn(4, 3, requires_grad=True)
    logits = net(signals, features)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert signals.grad.abs().sum() > 0 and features.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("model", ["cnn", "lstm"])
@pytest.mark.parametrize("dataset, samples", [("mitbih", 180), ("mitbih", 193), ("ptbxl", 250)])
def test_the_steps_of_a_beat_have_their_places_and_those_of_a_crop_have_not(
        dataset, model, samples):
    net = make_net(dataset, model, samples).eval()
    maps = net.maps(torch.randn(4, 2, samples))
    assert maps.shape[2] > 1
    inputs = torch.zeros(4, 2, samples), torch.zeros(4, 3)
    net.maps = lambda _: maps
    logits = net(*inputs)
    net.maps = lambda _: maps.flip(2)
    reversed_logits = net(*inputs)
    assert torch.allclose(logits, reversed_logits, atol=1e-5) == (dataset == "ptbxl")


def test_the_mlp_shares_its_layers_between_overlapping_windows():
    net = make_net("ptbxl", "mlp").eval()
    assert (net.window, net.step) == (100, 12)
    net.wide = torch.nn.Identity()   # shows what comes before the last layer
    signals = torch.randn(5, 2, 250)
    with torch.no_grad():
        windows = torch.stack([net.layers(signals[:, :, start:start + 100].flatten(1))
                               for start in range(0, 151, 12)])
        maps = net.maps(signals)
        pooled = net(signals, torch.zeros(5, 3))[:, :-64]   # the others are of the rhythm
    torch.testing.assert_close(maps, windows.permute(1, 2, 0))
    torch.testing.assert_close(pooled, torch.cat([windows.mean(dim=0), windows.amax(dim=0)], dim=1))


@pytest.mark.parametrize("model", stage.MODELS)
def test_each_net_of_an_ensemble_has_rows_of_its_own_and_their_mean_answers(model):
    torch.manual_seed(0)
    ensemble = stage.Ensemble(
        model, 3, channels=2, samples=250, features=3, outputs=5,
        head=stage.RECIPES["mitbih"]["head"], **stage.RECIPES["mitbih"]["sizes"][model])
    ensemble.normalise_signals.spread += 1
    ensemble.normalise_features.mean += 2
    inputs = torch.randn(6, 2, 250), torch.randn(6, 3)
    logits = ensemble(*inputs)
    assert logits.shape == (6, 5)
    logits[2:4].sum().backward()
    reached = [bool(net.rhythm[0].weight.grad.any()) for net in ensemble.nets]
    assert reached == [False, True, False]
    ensemble.eval()
    centred = inputs[0] - inputs[0].sort(dim=2).values[:, :, 124:125]   # the lower median of 250
    expected = torch.stack([net(centred / 2, inputs[1] - 2) for net in ensemble.nets])
    torch.testing.assert_close(ensemble(*inputs), expected.mean(dim=0))
    higher = inputs[0] + torch.tensor([5, -3.0])[:, None]
    torch.testing.assert_close(ensemble(higher, inputs[1]), expected.mean(dim=0))


@pytest.mark.parametrize("samples, starts", [
    (1000, [0, 125, 250, 375, 500, 625, 750]), (1001, [0, 125, 250, 375, 500, 625, 750, 751]),
    (250, [0])])
def test_predict_sees_crops_that_overlap_by_half_and_cover_the_record(samples, starts):
    net = make_net("ptbxl", "cnn", features=2).train()   # predict switches dropout off
    inputs = stage.Inputs(torch.randn(150, 2, samples), torch.randn(150, 2))   # two batches
    logits = stage.predict(net, inputs, 250)
    with torch.no_grad():
        crops = [net.eval()(inputs.signals[:, :, start:start + 250], inputs.features)
                 for start in starts]
    torch.testing.assert_close(logits, torch.stack(crops))


def test_probabilities_are_those_of_the_classes_alone():
    logits = torch.randn(6, 7)   # two outputs of statements
    first = logits[:, :5].double().numpy()
    recipe = SimpleNamespace(kind="records", classes=["MI", "STE_", "PVC", "SR", "AFIB"])
    of_records = stage.probabilities(logits, recipe)
    np.testing.assert_allclose(of_records, 1 / (1 + np.exp(-first)))
    recipe.kind = "beats"
    of_beats = stage.probabilities(logits, recipe)
    np.testing.assert_allclose(of_beats, np.exp(first) / np.exp(first).sum(1, keepdims=True))


def test_a_class_of_a_task_is_the_noisy_or_of_its_statements_given_that_one_is_there():
    header = SimpleNamespace(
        statement_names=["IMI", "AMI", "NORM"],
        tasks={"superdiagnostic": {"MI": ["AMI", "IMI"], "NORM": ["NORM"]},
               "form": {"AMI": ["AMI"]}})
    members = stage.task_members(header, "superdiagnostic")
    np.testing.assert_array_equal(members, [[True, False], [True, False], [False, True]])
    recipe = SimpleNamespace(kind="records", classes=header.statement_names)
    logits = torch.tensor([[-30.0, -40.0, 20.0], [1.0, -2.0, 0.5], [60.0, 3.0, -90.0]])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = np.stack([1 - (1 - p[:, 0]) * (1 - p[:, 1]), p[:, 2]], axis=1)
    any_label = 1 - (1 - p).prod(axis=1, keepdims=True)
    np.testing.assert_allclose(
        stage.probabilities(logits, recipe, members), expected / any_label, rtol=1e-9, atol=1e-15)
    only = stage.probabilities(logits, recipe, stage.task_members(header, "form"))
    np.testing.assert_allclose(only, 1)   # a row of a task with one label has that label
    alone = stage.class_logits(logits, recipe, members)[:, 1]   # as the statement itself
    np.testing.assert_allclose(alone, logits[:, 2].double(), rtol=1e-9)


# ---- Calls ----

def beats_of(*records):
    """RR intervals of each record in 0.01 s -> dataset of beats at 100 Hz, one more per record."""
    beats = [(number, sample) for number, rr in enumerate(records)
             for sample in np.cumsum([50, *rr])]
    metadata = np.array(beats, [("record", "i4"), ("sample", "i8")])
    return SimpleNamespace(metadata=metadata, rate=100)


def call(data, probable, rows=None, called="NSVFQ"):
    """Dataset, text of the most probable classes of some rows or all -> text of the calls."""
    probability = 0.2 + 0.5 * (np.array(list(probable))[:, None] == list("NSVFQ"))
    probability -= [0, 0.01, 0.02, 0.03, 0.04]   # the second most probable is the first other one
    recipe = SimpleNamespace(classes=list("NSVFQ"), called=[name in called for name in "NSVFQ"])
    rows = np.arange(len(probable)) if rows is None else rows
    return "".join(np.array(list("NSVFQ"))[stage.call_classes(data, rows, probability, recipe)])


def test_a_beat_is_premature_below_0_85_of_the_median_of_three_intervals():
    premature = stage.premature_beats(beats_of(
        [80, 80, 80, 68, 67, 67, 67, 120, 50],   # 0.85 of 80; then three of 80, 68, 67, 67
        [60, 60, 40, 80, 80, 50],                # too few before the first 40
        [80, 80, 80, 301, 60, 60, 60, 40]))      # a gap, after which three have no median
    assert np.flatnonzero(premature).tolist() == [5, 9, 16, 25]


@pytest.mark.parametrize("rr, probable, calls", [
    # sinus tachycardia: each interval is 0.95 of the last one, and then it slows down
    ([80, 76, 72, 68, 65, 62, 59, 56, 53, 50, 50, 60, 70], "NNNNNSSSSSSSSN", "NNNNNNNNNNNNNN"),
    # a sudden start, also if it is the one beat of the run that is early
    ([80, 80, 80, 80, 50, 50, 50, 80, 80], "NNNNNSSSNN", "NNNNNSSSNN"),
    ([80, 80, 80, 80, 80, 50, 50, 80, 80], "NNNNSSSSNN", "NNNNSSSSNN"),
    # two others in between: one run; three: two runs, of which the second has no early beat
    ([80, 80, 80, 50, 80, 80, 80, 80, 80], "NNNNSNVSNN", "NNNNSNVSNN"),
    ([80, 80, 80, 50, 80, 80, 80, 80, 80], "NNNNSNVNSN", "NNNNSNVNNN"),
    # early after a gap, but there it is not known what is usual
    ([80, 80, 80, 80, 400, 50, 50, 50, 50], "NNNNNNSSSS", "NNNNNNNNNN"),
])
def test_a_run_of_s_without_a_premature_beat_is_sinus_tachycardia(rr, probable, calls):
    assert call(beats_of(rr), probable) == calls


def test_a_run_of_s_ends_with_its_record():
    data = beats_of([80, 80, 80, 50], [80, 80, 80, 80])
    assert call(data, "NNNNSSSSNN") == "NNNNSNNNNN"
    assert call(data, "SSSNN", rows=np.arange(4, 9)) == "SNNNN"   # early by a beat of another row


def test_sinus_tachycardia_is_n_in_any_order_of_the_classes():
    probability = np.eye(3)[[2, 2, 1, 1, 0]]
    recipe = SimpleNamespace(classes=["V", "S", "N"], called=[True] * 3)
    called = stage.call_classes(beats_of([80] * 4), np.arange(5), probability, recipe)
    assert called.tolist() == [2, 2, 2, 2, 0]


def test_own_classes_need_no_n():
    recipe = SimpleNamespace(classes=["normal", "ectopic"], called=[True] * 2)
    rows = np.arange(3)
    called = stage.call_classes(beats_of([80] * 2), rows, np.eye(2)[[0, 1, 0]], recipe)
    assert called.tolist() == [0, 1, 0]


def test_a_class_that_is_not_called_leaves_its_rows_to_the_next_one():
    data = beats_of([80] * 5)
    assert call(data, "NVFFQN", called="NSVQ") == "NVNNQN"
    assert call(data, "NVFFQN", called="") == "NNNNNN"


def test_a_class_is_called_if_three_patients_have_20_beats_of_it_in_training():
    counts = {"a": [20, 20, 50, 90, 0], "b": [20, 20, 50, 90, 0], "c": [20, 20, 19, 0, 0]}
    labels = [k for of_patient in counts.values() for k in np.repeat(range(5), of_patient)]
    patient = np.repeat(list(counts), [sum(of_patient) for of_patient in counts.values()])
    data = SimpleNamespace(labels=np.array([*labels, 2]), patient=np.array([*patient, "c"]))
    recipe = SimpleNamespace(classes=list("NSVFQ"))
    rows = np.arange(len(labels))   # without the last beat: F of two patients, V of two and a half
    assert stage.called_classes(data, rows, recipe) == [True, True, False, False, False]
    rows = np.arange(len(labels) + 1)
    assert stage.called_classes(data, rows, recipe) == [True, True, True, False, False]
