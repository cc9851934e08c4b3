"""model_evaluation.py: what the model looks at, and the pictures; deletion.py."""

from pathlib import Path
from types import SimpleNamespace

import deletion
import numpy as np
import pytest
import torch
from examples import NAMES, evaluate, example, score_test_rows
from matplotlib.figure import Figure

import model_evaluation as stage
import model_training
from model_training import Inputs

pytestmark = pytest.mark.usefixtures("few_resamples", "coarse_pictures")


# ---- Attributions ----

def test_the_example_of_a_class_is_the_correct_row_of_median_score():
    """Of an even number, the upper one; of all rows if none is correct; none without a row."""
    score = np.array([0.9, 0.6, 0.7, 0.8, 0.1, 0.3, 0.2, 0.55])
    truth = np.array([1, 1, 1, 1, 1, 1, 0, 0]) == 1
    called = score > 0.5
    none = np.zeros(8, bool)
    scored = example()._replace(
        names=list("abc"), truth=np.transpose([truth, ~truth, none]),
        called=np.transpose([called, ~called, none]),
        probability=np.transpose([score, 1 - score, none]))
    rows, classes = stage.choose_examples(scored)
    assert classes.tolist() == [0, 1]
    assert rows.tolist() == [3, 6]   # of 1 2 3 0 by score; 6 is the only correct one of b
    rows, _ = stage.choose_examples(scored._replace(called=~scored.called))
    assert rows.tolist() == [5, 7]   # the wrong ones: of 4 5, and 7
    rows, _ = stage.choose_examples(scored._replace(called=scored.called & none[:, None]))
    assert rows.tolist() == [2, 6]   # none is correct: of 4 5 1 2 3 0, and of 7 6


def test_the_eight_largest_classes_have_an_example():
    sizes = [5, 1, 9, 2, 8, 3, 7, 6, 4, 0]
    truth = np.repeat(range(10), sizes)[:, None] == np.arange(10)
    scored = example()._replace(names=list("abcdefghij"), truth=truth, called=truth,
                                probability=truth.astype(float))
    rows, classes = stage.choose_examples(scored)
    assert classes.tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert truth[rows, classes].all()


@pytest.mark.parametrize("members", [None, np.eye(3)[[0, 0, 1, 2]] > 0])   # two make class 0
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(members):
    torch.manual_seed(0)
    net = model_training.Ensemble(
        "cnn", 1, channels=2, samples=60, features=3, outputs=4, widths=[8, 8], stem=(5, 2),
        head={"flatten_width": 0, "hidden_width": 0, "dropout": 0.5}).double().eval()
    net.normalise_signals.mean += 0.3
    signals = torch.full((3, 2, 100), 5).double()
    signals[:, :, 15:85] += torch.randn(3, 2, 70)
    inputs = Inputs(signals, torch.randn(3, 3).double())
    recipe = SimpleNamespace(crop=60, classes=list("abcd"))
    scored = example()._replace(net=net, recipe=recipe, members=members)
    classes = np.array([0, 2, 1])
    attribution = stage.integrated_gradients(scored, inputs, classes)
    ends = []
    for x in (signals, torch.full_like(signals, 5)):
        with torch.no_grad():
            logits = model_training.crop_logits(net, Inputs(x, inputs.features), 60).mean(dim=0)
        logits = model_training.class_logits(logits, recipe, members)
        ends.append(logits[np.arange(3), classes])
    difference = ends[0] - ends[1]
    missed = attribution.sum(dim=(1, 2)) - difference
    assert missed.abs().sum() < 0.03 * difference.abs().sum()
    assert not attribution[:, :, :15].any() and not attribution[:, :, 85:].any()   # the flat line


class Sum(torch.nn.Module):
    """Logits: the sum of all samples, and 0."""

    def forward(self, signals, features):
        x = signals.sum(dim=(1, 2))
        return torch.stack([x, torch.zeros_like(x)], dim=1)


def test_attribution_by_lead_adds_the_channels_that_a_voltage_moves():
    """Of this net, it is the input over its median: the beat, its difference from the usual one."""
    rng = np.random.default_rng(0)
    beats = (3 * rng.normal(size=(2, 40)) + rng.normal(size=(9, 2, 40))).astype(np.float32)
    metadata = np.array([(0, 150 * k) for k in range(9)], [("record", int), ("sample", int)])
    data = SimpleNamespace(kind="beats", signals=beats, leads=["a", "b"], rate=150,
                           metadata=metadata)
    recipe = SimpleNamespace(kind="beats", leads=["a", "b"], rate=150, crop=20, upright=False,
                             context_seconds=1800, classes=["x", "y"])
    scored = example()._replace(net=Sum(), recipe=recipe, data=data, rows=np.arange(8, 0, -1))
    rows = np.array([4, 0, 6, 2])
    attribution = stage.explain(scored, rows, np.zeros(4, int))
    channels = model_training.relative_beats(beats, recipe)
    centred = channels - np.sort(channels, axis=2)[:, :, 9:10]   # the lower median of 20
    by_lead = np.abs(centred[:, :2] + centred[:, 2:])[scored.rows[rows]]
    smooth = (by_lead[..., :-2] + by_lead[..., 1:-1] + by_lead[..., 2:]) / 3   # 0.02 s
    np.testing.assert_allclose(attribution[..., 1:-1], smooth, atol=1e-6)
    inputs = stage.inputs_of(scored, rows)
    np.testing.assert_allclose(inputs.signals, channels[scored.rows[rows]])


def test_the_deletion_test_knows_a_good_attribution_from_a_moved_one():
    class Middle(Sum):
        """The logit of class 0 is the sum of samples 40 to 60."""

        def forward(self, signals, features):
            return super().forward(signals[:, :, 40:60], features)
    recipe = SimpleNamespace(kind="beats", crop=100, classes=["a", "b"])
    scored = example()._replace(net=Middle(), recipe=recipe)
    signals = torch.full((30, 1, 100), -0.1)
    signals[:, :, 40:60] = 1
    inputs = Inputs(signals, torch.zeros(30, 0))
    good = np.zeros((30, 1, 100))
    good[:, :, 40:60] = np.linspace(1, 2, 20)
    classes = np.zeros(30, int)
    curve = deletion.deletion_test(scored, inputs, classes, good)
    moved = deletion.deletion_test(scored, inputs, classes, good, np.random.default_rng(0))
    expected = torch.sigmoid(torch.tensor([20.0, 9, -2]))   # of what is left, at the median
    np.testing.assert_allclose([curve[share] for share in (0, 0.1, 0.2)], expected, atol=1e-6)
    assert moved[0] == curve[0] and moved[0.2] > 0.8


# ---- ECG paper ----

@pytest.mark.parametrize("size", [1.0, 3.0, -3.0, 50.0])
def test_paper_shows_4_mv_at_least_and_the_trace_up_to_6_mv(size):
    axis = Figure().subplots()
    voltage = np.full((1, 361), 0.7)   # the baseline is at 0
    voltage[0, 180] += size
    stage.draw_ecg(axis, 360, voltage, np.zeros((1, 361)), ["II"], "tall")
    size = min(size, 6)
    low, high = axis.get_ylim()
    assert min(-2, size) - 0.45 < low <= min(-2, size)
    assert max(2, size) <= high < max(2, size) + 0.45
    assert axis.get_xlim() == (0, 1) and axis.get_aspect() == 0.4   # 0.04 s are as long as 0.1 mV
    assert (axis.get_title(), axis.texts[0].get_text()) == ("tall", "II")


def drawn(draw, scored, row, weight):
    """-> times, voltages and attributions of the leads that a function draws; names and title."""
    axis = Figure().subplots()
    draw(axis, scored, row, weight)
    lines = [line for line in axis.lines if line.get_linestyle() == "-"]
    attributions = np.array([band.get_array().ravel() for band in axis.collections])
    return (lines[0].get_xdata(), np.array([line.get_ydata() for line in lines]), attributions,
            [text.get_text() for text in axis.texts], axis.get_title())


@pytest.mark.parametrize("place", ["first", "middle"])
def test_a_beat_is_drawn_among_2_5_s_of_its_record(trained, place):
    trained("mitbih", "mlp")
    scored = score_test_rows("mitbih")
    data = scored.data
    of_record = np.flatnonzero(data.record[scored.rows] == "103")
    row = of_record[0 if place == "first" else len(of_record) // 2]
    beat = data.metadata[scored.rows[row]]
    weight = np.zeros((1, 180))   # the crop that is seen
    weight[0, 70] = 1   # 20 samples before the R peak
    times, voltages, attributions, _, title = drawn(stage.draw_beat, scored, row, weight)
    np.testing.assert_allclose(times, np.arange(901) / 360)
    assert (beat["sample"] < 450) == (place == "first")
    lead = stage.record_voltage(data, beat["record"])[:, 0]   # MLII
    expected = np.pad(lead, 450, mode="edge")[beat["sample"]:][:901]   # flat before the record
    assert len(voltages) == 1 and np.ptp(voltages[0] - expected) < 1e-6   # on another baseline
    assert np.flatnonzero(attributions[0]).tolist() == [430 - 1]   # from sample 429 to 430
    p = scored.probability[row]
    assert title == (f"record 103, {beat['sample'] / 360:.1f} s: true N, highest score "
                     f"{NAMES[p.argmax()]} ({p.max():.2f})")


def test_a_record_is_drawn_with_all_leads_and_the_attribution_of_those_seen(trained):
    trained("ptbxl", "mlp", SECOND_NET=False, LEADS=["I", "V3"])
    scored = score_test_rows("ptbxl")
    weight = np.zeros((2, 1000))
    weight[0, 300] = weight[1, 500] = 1
    _, voltages, attributions, names, title = drawn(stage.draw_record, scored, 5, weight)
    signals = scored.data.signals[scored.rows[5]]
    assert np.ptp(voltages - signals, axis=1).max() < 1e-5   # each lead has a level of its own
    assert np.argwhere(attributions).tolist() == [[0, 299], [8, 499]]   # I and V3
    assert names == scored.data.leads
    assert title.startswith(f"record {scored.data.record[scored.rows[5]]}: true ")


# ---- The whole script ----

@pytest.mark.parametrize("dataset, model, constants", [
    ("mitbih", "lstm", {}),
    ("ptbxl", "mlp", {"LEADS": ["I", "V3"]}),
])
def test_every_output_says_what_it_was_made_from(trained, capsys, dataset, model, constants):
    trained(dataset, model, SECOND_NET=False, **constants)
    report = evaluate(dataset, model)
    printed = capsys.readouterr().out.split("Wrote")[-2]
    name = f"{dataset}_{model}"
    for text in (report["title"], printed):
        assert "rows. SIMULATED DATA: no score is a result" in text
        assert ("annotated beats" in text) == (dataset == "mitbih")
    [picture] = Path().glob("*.png")
    assert picture.name == f"{name}_explanation.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    tables = report["tables"]
    assert all(f"\n{heading}\n" in printed for heading in tables if "counted" not in heading)
    assert ("EC57 from 0:00" in tables) == (dataset == "mitbih")


def test_a_model_without_a_correct_call_has_all_of_its_outputs(trained):
    def score(*arguments):
        scored = score_rows(*arguments)
        return scored._replace(called=np.roll(scored.truth, 1, axis=1))
    score_rows = stage.score_rows
    trained("mitbih", "mlp")
    tables = evaluate("mitbih", "mlp", score_rows=score)["tables"]
    assert tables["all classes"]["accuracy"]["value"] == 0
    assert Path("mitbih_mlp_explanation.png").read_bytes()[:4] == b"\x89PNG"
