"""tests/measure.py and tests/resnet1d_wang.py: runs that stop and go on, and tables of what was measured."""

import json
import os

import pytest
import torch

import measure
import model_evaluation
import model_training
import resnet1d_wang


@pytest.fixture
def small(monkeypatch):
    """Two short runs in place of the long list, in this process in place of another."""
    def runs():
        return {f"mitbih_mlp_{seed}": {"DATASET": "mitbih", "MODEL": "mlp", "SEED": seed, "EPOCHS": {"mitbih": 1}}
                for seed in (0, 1)} | {
            name: {"DATASET": "ptbxl", "MODEL": "mlp", "EPOCHS": {"ptbxl": 1}, **more} for name, more in (
                ("ptbxl_cnn_fraction0.5", {"MODEL": "cnn", "TRAIN_FRACTION": .5}), ("ptbxl_cnn_0", {"MODEL": "cnn"}),
                ("ptbxl_lstm_0", {}))}
    made = []

    def here(command, cwd, **_):
        made.append(command[-1])
        before = os.getcwd()
        os.chdir(cwd)
        with monkeypatch.context() as patch:
            for key in ("DATASET", "MODEL"):                         # which make_run sets
                patch.setattr(model_evaluation, key, getattr(model_evaluation, key))
            for key, value in runs()[command[-1]].items():   # put back when the run is over
                patch.setattr(model_training, key, value)
            measure.make_run(command[-1])
        os.chdir(before)
        return type("Done", (), {"returncode": 0})
    monkeypatch.setattr(measure, "all_runs", runs)
    monkeypatch.setattr(measure.subprocess, "run", here)
    return made


def test_runs_are_made_once_and_the_tables_show_them(prepared, small, quick_pictures, monkeypatch, capsys):
    monkeypatch.setattr(measure.sys, "argv", ["measure.py", "mitbih"])
    measure.main()
    assert small == ["mitbih_mlp_0", "mitbih_mlp_1"]
    first = json.loads((prepared / "results/mitbih_mlp_0/mitbih_mlp_metrics.json").read_text())
    second = json.loads((prepared / "results/mitbih_mlp_1/mitbih_mlp_metrics.json").read_text())
    row = next(line for line in (prepared / "results/tables.md").read_text().splitlines() if line.startswith("| mlp | 2 |"))
    assert row.split(" | ")[2] == measure.spread([first["mean_f1_nsv"], second["mean_f1_nsv"]])
    monkeypatch.setattr(measure.sys, "argv", ["measure.py"])
    measure.main()
    # those there stay
    assert small == ["mitbih_mlp_0", "mitbih_mlp_1", "ptbxl_cnn_fraction0.5", "ptbxl_cnn_0", "ptbxl_lstm_0"]
    text = (prepared / "results/tables.md").read_text()
    assert "cnn + lstm, seed 0" in text and (prepared / "results/learning_curve.png").stat().st_size > 10_000
    assert "done before" in capsys.readouterr().out


def test_spread_is_mean_and_standard_deviation():
    assert (measure.spread([.5, .7, .9]) == ".700 ± .200" and measure.spread([None]) == "n/a"
            and measure.spread([.25]) == ".250")


def test_the_fractions_are_those_of_the_constants():
    runs = measure.all_runs()
    assert {name.split("_")[1] for name in runs
            if name.startswith("mitbih_") and "random" not in name} == {"cnn", "lstm", "mlp"}
    for constants in runs.values():
        assert set(constants) <= set(vars(model_training))


def test_resnet1d_wang_goes_on_where_it_was_stopped(prepared, monkeypatch):
    monkeypatch.setattr(resnet1d_wang, "EPOCHS", 2)
    resnet1d_wang.main()
    straight = json.loads((prepared / "results/resnet1d_wang.json").read_text())
    for path in (prepared / "results").iterdir():
        path.unlink()
    original, calls = resnet1d_wang.train_epoch, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)
    monkeypatch.setattr(resnet1d_wang, "train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        resnet1d_wang.main()
    monkeypatch.setattr(resnet1d_wang, "train_epoch", original)
    torch.manual_seed(5)
    resnet1d_wang.main()
    resumed = json.loads((prepared / "results/resnet1d_wang.json").read_text())
    assert resumed["macro_auc"] == straight["macro_auc"] and resumed["thresholds"] == straight["thresholds"]


def test_resnet1d_wang_has_the_published_size():
    """128 maps in a stem of kernel 7 and three blocks of kernels 5 and 3, two of them with a shortcut of kernel 1."""
    net = resnet1d_wang.ResNet1dWang()
    convolutions = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, torch.nn.Conv2d))
    assert convolutions == 12 * 128 * 7 + 3 * 128 * 128 * 8 + 2 * 128 * 128
    assert net(torch.randn(2, 12, 250)).shape == (2, 5) and net.body(torch.randn(1, 12, 1, 250)).shape == (1, 128, 1, 63)
