"""The nets of model_training.py and their predictions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import model_training as stage

COMBINATIONS = [(dataset, model) for dataset in ("mitbih", "ptbxl") for model in stage.MODELS]


def make_net(dataset, model, samples=250, features=3, hidden_width=None):
    """A net of two leads and five outputs, with the arguments of a dataset and model."""
    torch.manual_seed(0)
    return stage.MODELS[model](
        channels=2, samples=samples, features=features, outputs=5,
        head=(stage.RECIPES[dataset]["head"][0], hidden_width, 0.5),
        **stage.ARCHITECTURES[dataset][model])


@pytest.mark.parametrize("dataset, model", COMBINATIONS)
@pytest.mark.parametrize("hidden_width", [None, 16])
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
    signals = torch.randn(5, 2, 250)
    with torch.no_grad():
        windows = torch.stack([net.layers(signals[:, :, start:start + 100].flatten(1))
                               for start in range(0, 151, 12)])
        maps = net.maps(signals)
    torch.testing.assert_close(maps, windows.permute(1, 2, 0))
    torch.testing.assert_close(stage.mean_and_max(maps),
                               torch.cat([windows.mean(dim=0), windows.amax(dim=0)], dim=1))


@pytest.mark.parametrize("model", stage.MODELS)
def test_each_net_of_an_ensemble_has_rows_of_its_own_and_their_mean_answers(model):
    torch.manual_seed(0)
    ensemble = stage.Ensemble(
        model, 3, channels=2, samples=250, features=3, outputs=5, head=(None, None, 0.5),
        **stage.ARCHITECTURES["mitbih"][model])
    ensemble.normalise_signals.spread += 1
    ensemble.normalise_features.mean += 2
    inputs = torch.randn(6, 2, 250), torch.randn(6, 3)
    logits = ensemble(*inputs)
    assert logits.shape == (6, 5)
    logits[2:4].sum().backward()
    reached = [bool(net.rhythm[0].weight.grad.any()) for net in ensemble.nets]
    assert reached == [False, True, False]
    ensemble.eval()
    expected = torch.stack([net(inputs[0] / 2, inputs[1] - 2) for net in ensemble.nets])
    torch.testing.assert_close(ensemble(*inputs), expected.mean(dim=0))


def test_crops_overlap_by_half_and_cover_the_record():
    assert stage.crop_starts(1000, 250) == [0, 125, 250, 375, 500, 625, 750]
    assert stage.crop_starts(1001, 250) == [0, 125, 250, 375, 500, 625, 750, 751]
    assert stage.crop_starts(250, 250) == [0]


def test_predict_is_the_mean_over_half_overlapping_crops():
    net = make_net("ptbxl", "cnn", features=2).train()   # predict switches dropout off
    signals = torch.randn(7, 2, 1000)
    features = torch.randn(7, 2)
    rows = np.array([6, 1, 3])
    logits = stage.predict(net, signals, features, rows, 250, batch=8)
    with torch.no_grad():
        crops = [net.eval()(signals[:, :, start:start + 250], features)
                 for start in range(0, 751, 125)]
    torch.testing.assert_close(logits, torch.stack(crops).mean(dim=0)[rows])


def test_probabilities_are_those_of_the_classes_alone():
    logits = torch.randn(6, 7)   # two outputs of statements
    first = logits[:, :5].double().numpy()
    recipe = SimpleNamespace(task="multilabel", classes=["MI", "STE_", "PVC", "SR", "AFIB"])
    multilabel = stage.probabilities(logits, recipe)
    np.testing.assert_allclose(multilabel, 1 / (1 + np.exp(-first)))
    recipe.task = "multiclass"
    multiclass = stage.probabilities(logits, recipe)
    np.testing.assert_allclose(multiclass, np.exp(first) / np.exp(first).sum(1, keepdims=True))


def test_a_class_of_a_task_is_the_noisy_or_of_its_statements_given_that_one_is_there():
    header = SimpleNamespace(
        statement_names=["IMI", "AMI", "NORM"],
        tasks={"superdiagnostic": {"MI": ["AMI", "IMI"], "NORM": ["NORM"]},
               "form": {"AMI": ["AMI"]}})
    members = stage.task_members(header, "superdiagnostic")
    np.testing.assert_array_equal(members, [[True, False], [True, False], [False, True]])
    recipe = SimpleNamespace(task="multilabel", classes=header.statement_names)
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
