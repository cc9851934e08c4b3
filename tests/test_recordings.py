"""cross_dataset_validation.py on recordings without a reference: calls, rhythm, hours, marks."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import simulate
import wfdb
from conftest import MITBIH
from harness import contents, preprocess, run_stage

import cross_dataset_validation as stage
import model_evaluation
import preprocess_mitbih

pytestmark = pytest.mark.usefixtures("coarse_pictures")


# ---- From beats to hours ----

def table_of(times, symbols, rr=None):
    """Times in s, text of symbols, RR if they have gaps -> beats of record a, as in `annotate`."""
    rr = np.diff(times, prepend=np.nan) if rr is None else rr
    return pd.DataFrame({"record": "a", "time": np.array(times, float), "symbol": list(symbols),
                         "RR": np.array(rr, float)})


def test_an_rr_interval_does_not_span_unreadable_signal():
    record = {"unreadable": [[5, 10], [15, 19]]}
    beats = table_of([0.5, 1.5, 4.99, 10, 10.75, 14.9], "NNNNNN")
    np.testing.assert_allclose(
        stage.rr_before(beats, record), [np.nan, 1, 3.49, np.nan, 0.75, 4.15])
    assert len(stage.rr_before(beats[:0], record)) == 0
    np.testing.assert_allclose(
        stage.rr_before(beats, {"unreadable": []}), [np.nan, 1, 3.49, 5.01, 0.75, 4.15])


def test_events_are_counted_by_hour():
    """Of the first hour, ten minutes cannot be read; of the third one, nothing."""
    record = {"samples": (3 * 3600 + 600) * 100, "unreadable": [[1000, 1600], [7200, 10_800]]}
    first = table_of(np.arange(17) * 0.5, "NSSNSVVVNVVSSSSNV")
    end = table_of([3598, 3599.5, 3600.5, 3603, 10_800, 10_801], "NVVNNV",
                   [np.nan, 1.5, 1, 2.5, np.nan, 1])
    rhythm = pd.Series({0: "AFIB", 10: "AFIB", 20: "N", 30: "SBRAD", 3580: "AFIB", 3590: "AFIB",
                        3600: "AFIB", 3610: "STACH", 10_800: "STACH", 10_810: "N"})
    beats = pd.concat([first, end], ignore_index=True)
    table = stage.hourly_table(beats, rhythm, record, 100)
    assert table.index.tolist() == [0, 1, 2, 3]
    rate = table.pop("heart_rate")
    np.testing.assert_allclose(rate, [60 / (9.5 / 17), 60 / 1.75, np.nan, 60])
    assert table["minutes analysed"].tolist() == [50, 60, 0, 10]
    columns = ["beats", "pauses", *(f"{symbol} {kind}" for symbol in "SV"
                                    for kind in ("beats", "runs"))]
    # of V the run of three; two beats are no run, within the hour and over its end
    assert table[columns].to_numpy().tolist() == [
        [19, 0, 7, 1, 7, 1], [2, 1, 0, 0, 1, 0], [0] * 6, [2, 0, 0, 0, 1, 0]]
    minutes = table[["AFIB min", "SBRAD min", "STACH min"]] * 6
    np.testing.assert_allclose(minutes, [[4, 1, 0], [1, 0, 1], [0] * 3, [0, 0, 1]])
    assert len(table.columns) == 1 + 6 + 3


def test_a_recording_without_a_beat_has_its_hours():
    beats = table_of([], "")
    rhythm = stage.call_rhythm(beats, None, None)
    record = {"samples": 500_000, "unreadable": [[0, 5000]]}
    table = stage.hourly_table(beats, rhythm, record, 100)
    assert table.index.tolist() == [0, 1] and table.pop("heart_rate").isna().all()
    assert (table == 0).all(axis=None) and len(table.columns) == 10


# ---- Rhythm ----

def strip_beats(*intervals):
    """RR intervals that repeat in each strip of 10 s -> beats, all N."""
    times, rr = [], []
    for number, of_strip in enumerate(intervals):
        repeated = np.resize(of_strip, 40)
        inside = np.cumsum(repeated) < 9.9
        times.extend(10 * number + np.cumsum(repeated)[inside])
        rr.extend(repeated[inside])
    return table_of(times, "N" * len(times), rr)


def test_the_rate_of_a_strip_is_slow_below_60_and_fast_above_100():
    beats = strip_beats([0.8], [1.1], [1.0], [0.6], [0.59], [0.5, 0.5, 0.5, 1.9])
    beats = beats[beats["time"] // 10 != 1]   # nothing is known of the second strip
    rhythm = stage.call_rhythm(beats, None, None)
    assert rhythm.to_dict() == {0: "N", 20: "N", 30: "N", 40: "STACH", 50: "STACH"}
    slow = stage.call_rhythm(strip_beats([1.1], [0.8]), None, None)
    assert slow.tolist() == ["SBRAD", "N"]
    first_beat = stage.call_rhythm(table_of([3.0], "N"), None, None)
    assert first_beat.to_dict() == {0: "N"}   # without an interval


REGULAR, IRREGULAR = [0.8], [0.7, 0.9, 0.8, 0.6]


def rhythm_of(monkeypatch, beats, scores):
    """Beats, dict of strip -> score of AFIB -> rhythm of each strip."""
    place = pd.DataFrame({"sample": 100 * np.array(list(scores))})
    result = stage.Result(None, pd.DataFrame({"AFIB": scores.values()}), place, "")
    monkeypatch.setattr(stage, "shared_leads", lambda *_: ["II"])
    monkeypatch.setattr(stage, "mitbih_strips", lambda data, records, leads: SimpleNamespace(
        truth=result.scores, records=list(records), leads=leads))

    def score_strips(model, strips):
        assert (model, strips.records, strips.leads) == ("a model", ["a"], ["II"])
        return result
    monkeypatch.setattr(stage, "score_strips", score_strips)
    return stage.call_rhythm(beats, SimpleNamespace(rate=100), "a model")


def test_fibrillation_has_a_high_score_and_irregular_intervals_in_most_of_three_strips(monkeypatch):
    beats = strip_beats(*[REGULAR] * 2, *[IRREGULAR] * 7, *[REGULAR] * 3, *[IRREGULAR] * 2)
    scores = dict(zip(range(0, 140, 10), [5, 5, -0.9, -0.9, -1.1, 0, -1.1, -1.1, 0, 5, 5, -5, 2]))
    rhythm = rhythm_of(monkeypatch, beats, scores)   # the last strip has no score
    assert rhythm.index.tolist() == list(range(0, 140, 10))
    assert rhythm.index[rhythm == "AFIB"].tolist() == [20, 30, 40]
    assert set(rhythm) == {"AFIB", "N"}


def test_ectopic_beats_make_no_fibrillation(monkeypatch):
    """Each third beat is early; the intervals before and after it do not count."""
    times = np.cumsum(np.resize([0.8, 0.8, 0.5, 1.1], 60))
    scores = dict.fromkeys(range(0, 40, 10), 9.0)
    for symbols, expected in (("NNVN", "N"), ("NNNN", "AFIB"), ("NVNV", "N")):
        beats = table_of(times, np.resize(list(symbols), 60))
        rhythm = rhythm_of(monkeypatch, beats, scores)
        assert rhythm.iloc[:4].tolist() == [expected] * 4


# ---- Marks ----

def test_marks_of_rhythm_and_unreadable_signal_are_read_back_by_wfdb(work):
    record = {"name": "a", "rate": 250, "samples": 60 * 360, "unreadable": [[0, 5], [30, 45]]}
    rhythm = pd.Series({0: "N", 10: "SBRAD", 20: "AFIB", 40: "AFIB", 50: "STACH"})
    marks = stage.marks_of(record, rhythm)
    beats = pd.DataFrame({"record": "a", "sample": [2000, 5000, 14_000], "symbol": list("NVN")})
    marks = pd.concat([marks, beats]).sort_values("sample", kind="stable")
    model_evaluation.write_annotations(marks, "marks", "cnn", [record])
    read = wfdb.rdann("marks/a", "cnn")
    assert read.fs == 250
    found = list(zip(read.sample, read.symbol, read.subtype, read.aux_note))
    assert found == [
        (0, "~", -1, ""), (0, "+", 0, "(N"), (1250, "~", 0, ""), (2000, "N", 0, ""),
        (5000, "+", 0, "(AFIB"), (5000, "V", 0, ""), (7500, "~", -1, ""), (11_250, "~", 0, ""),
        (12_500, "+", 0, "(N"), (14_000, "N", 0, "")]


# ---- Pictures ----

@pytest.fixture
def figures(monkeypatch):
    """Pictures are not drawn -> dict of title -> Figure."""
    figures = {}

    def save_figure(figure, title, path):
        path.touch()
        figures[title] = figure
    monkeypatch.setattr(stage, "save_figure", save_figure)
    return figures


def test_a_picture_shows_pauses_at_its_upper_edge_and_what_cannot_be_read(work, figures):
    beats = table_of([1, 2, 7, 8], "NNVN")
    record = {"name": "a", "unreadable": [[60, 120]]}
    rhythm = pd.Series({0: "N", 10: "AFIB"})
    stage.plot_recording(record, beats, rhythm, "a, CH1", work / "a.png")
    rr, = figures["a, CH1. Grey: unreadable"].axes
    normal, ventricular = (points.get_offsets() for points in rr.collections)
    assert ventricular[:, 1].tolist() == [2.5] and normal[1:, 1].tolist() == [1, 1]
    spans = [(patch.get_x(), patch.get_width()) for patch in rr.patches]
    np.testing.assert_allclose(spans, [(1, 1), (1 / 6, 1 / 6)])   # min
    stage.plot_recording(record, beats[:0], rhythm[:0], "b", work / "b.png")
    empty, = figures["b. Grey: unreadable"].axes
    assert not empty.collections


# ---- The whole script ----

def own_recordings():
    """Recordings at 250 Hz, preprocessed as "own": fibrillation, a sinus rhythm, a flat line.

    The last 32 of 62 s of the sinus rhythm are noise.
    """
    simulate.write_mitbih(MITBIH, records=["101", "221"], seconds=62)
    simulate.write_at_rate(MITBIH, "own", {"221": "left", "101": "right"}, 250, ["II", "V5"])
    noisy = wfdb.rdrecord("own/right").p_signal
    noisy[30 * 250:] += 3 * np.random.default_rng(0).normal(size=(32 * 250, 2))
    for name, signals in (("right", noisy), ("flat", np.zeros((3700 * 250, 2)))):
        simulate.write_record("own", name, signals, 250, ("II", "V5"))
    with open("own/RECORDS", "a") as file:
        file.write("flat\n")
    return preprocess("own", DATA_DIR="own", LEADS=["II"], ANNOTATOR=None)


@pytest.mark.parametrize("with_strips", [True, False])
def test_recordings_without_annotations_are_called_and_not_scored(trained, capsys, with_strips):
    """Each tenth beat is called V."""
    data = own_recordings()
    trained("mitbih", "mlp")
    if with_strips:
        trained("ptbxl", "mlp")
    before = set(contents("."))
    capsys.readouterr()
    titles = []

    def plot(*arguments):
        titles.append(arguments[3])
        original(*arguments)
    original = stage.plot_recording
    run_stage(stage, TEST_DATASET="own", MODEL="mlp", PICTURES=2, AF_LOG_ODDS=-99,
              plot_recording=plot,
              call_classes=lambda data, rows, *_: np.where(rows % 10 == 9, 2, 0))
    printed = capsys.readouterr().out
    name = "mitbih_to_own_mlp"
    assert set(contents(".")) - before == {
        f"{name}_beats.csv", f"{name}_hours.csv", f"{name}_left.png", f"{name}_right.png",
        *(f"{name}_annotations/{record}.mlp" for record in ("left", "right", "flat"))}
    assert "tested on own. SIMULATED DATA: no score is a result\n" in printed
    assert "\ncalls by hour, the first 48 rows\n" in printed   # no signal stands in
    assert "No reference (ANNOTATOR = None): nothing was scored" in printed
    without = "ptbxl_mlp_strips_model.pth is not in this folder: nothing looked for atrial fibrill"
    assert (without in printed) != with_strips
    assert ["Red: atrial fibrillation" in title for title in titles] == [with_strips] * 2
    for record in ("left", "right"):
        assert Path(f"{name}_{record}.png").read_bytes()[:4] == b"\x89PNG"

    table = pd.read_csv(f"{name}_beats.csv")
    assert list(table) == ["record", "sample", "symbol", "time", *"NSVFQ", "RR"]
    np.testing.assert_array_equal(table["record"], data.record)   # every beat has a row
    np.testing.assert_array_equal(table["symbol"], np.where(table.index % 10 == 9, "V", "N"))
    np.testing.assert_allclose(table["time"], data.metadata["sample"] / 360, atol=1e-4)
    np.testing.assert_allclose(table[list("NSVFQ")].sum(axis=1), 1, atol=3e-4)
    np.testing.assert_allclose(table["sample"], table["time"] * 250, atol=0.6)
    later = table["record"] == table["record"].shift()
    np.testing.assert_allclose(table["RR"], table["time"].diff().where(later), atol=2e-4)
    assert table[table["record"] == "right"]["time"].max() < 30   # the rest cannot be read

    hours = pd.read_csv(f"{name}_hours.csv")
    assert hours[["record", "hour", "minutes analysed"]].round(4).to_numpy().tolist() == [
        ["left", 0, 1.0333], ["right", 0, 0.5], ["flat", 0, 0], ["flat", 1, 0]]
    counts = table["record"].value_counts()
    assert hours["beats"].tolist() == [counts["left"], counts["right"], 0, 0]
    assert hours["V beats"].tolist() == [counts["left"] // 10, len(table) // 10
                                         - counts["left"] // 10, 0, 0]
    assert ("AFIB min" in hours) == with_strips
    if with_strips:   # by irregular intervals alone
        assert hours["AFIB min"][0] > 0.6 and hours["AFIB min"][1:].sum() == 0

    for record in ("left", "right"):
        rows = table[table["record"] == record]
        annotation = wfdb.rdann(f"{name}_annotations/{record}", "mlp")
        symbols = np.array(annotation.symbol)
        is_beat = np.isin(symbols, list("NSVFQ"))
        np.testing.assert_array_equal(symbols[is_beat], rows["symbol"])
        np.testing.assert_array_equal(annotation.sample[is_beat], rows["sample"])
        notes = [note for note in annotation.aux_note if note]
        expected = {"left": "(AFIB", "right": "(N"}[record]   # only a model of PTB-XL knows
        assert (expected in notes if with_strips else notes == []) and set(notes) <= {"(AFIB", "(N"}
        assert (symbols == "~").sum() == (2 if record == "right" else 0)


@pytest.mark.parametrize("leads, titles", [
    ("CH1", ["left; CH1 stands in for MLII"]),
    (["MLII", "V1"], ["left; CH1 stands in for MLII", "right"])])
def test_tables_and_pictures_name_a_signal_that_stands_in(trained, capsys, figures, leads, titles):
    """Whether the user chose it, or it is the first of a recording without the lead."""
    simulate.write_mitbih(MITBIH, records=["101", "221"], seconds=20)
    simulate.write_at_rate(MITBIH, "own", {"221": "left"}, 250, ["CH1", "CH2"])
    simulate.write_at_rate(MITBIH, "named", {"101": "right"}, 250, ["V5", "DII"])
    for path in Path("named").glob("right.*"):
        shutil.move(path, "own")
    preprocess("own", DATA_DIR="own", LEADS=leads, ANNOTATOR=None,
               RECORDS=["left", "right"][:len(titles)])
    trained("mitbih", "mlp")
    capsys.readouterr()
    run_stage(stage, TEST_DATASET="own", MODEL="mlp")
    assert ("\ncalls by hour, the first 48 rows; CH1 stands in for MLII\n"
            in capsys.readouterr().out)
    assert list(figures) == [
        f"{title}. Grey: unreadable" for title in titles]


def test_files_of_earlier_recordings_are_removed(trained, figures):
    own_recordings()
    trained("mitbih", "mlp")
    run_stage(stage, TEST_DATASET="own", MODEL="mlp")
    folder = Path("mitbih_to_own_mlp_annotations")
    pictures = {f"mitbih_to_own_mlp_{record}.png" for record in ("left", "right", "flat")}
    assert pictures <= set(contents(".")) and (folder / "left.mlp").exists()
    kept = ["mitbih_to_own_cnn_left.png", "mitbih_to_other_mlp_left.png", "left.png",
            folder / "left.cnn", folder / "left.txt"]
    for path in map(Path, kept):   # of another model or recording, or of the user
        path.touch()
    preprocess("own", DATA_DIR="own", LEADS=["II"], ANNOTATOR=None, RECORDS=["right", "flat"])
    run_stage(stage, TEST_DATASET="own", MODEL="mlp", PICTURES=1)
    files = set(contents("."))
    assert pictures & files == {"mitbih_to_own_mlp_right.png"}
    assert {str(path) for path in kept} <= files
    assert sorted(path.name for path in folder.glob("*.mlp")) == ["flat.mlp", "right.mlp"]


def test_annotation_files_of_earlier_records_are_removed_in_folders_too(work):
    records = [{"name": name, "rate": 128} for name in ("a", "g1/b", "g2/c")]
    beats = pd.DataFrame({"record": ["a", "g1/b", "g2/c"], "sample": [10, 20, 30], "symbol": "N"})
    model_evaluation.write_annotations(beats, "marks", "cnn", records)
    assert sorted(contents("marks")) == ["a.cnn", "g1/b.cnn", "g2/c.cnn"]
    Path("marks/a.atr").touch()
    model_evaluation.write_annotations(beats[1:2], "marks", "cnn", records)
    assert sorted(contents("marks")) == ["a.atr", "g1/b.cnn"]
    read = wfdb.rdann("marks/g1/b", "cnn")
    assert (read.sample.tolist(), read.symbol, read.fs) == ([20], ["N"], 128)


def test_corrected_annotation_files_are_a_reference(trained):
    """No mark lies beyond the record, though its last piece, which cannot be read, has 2 s."""
    own_recordings()
    trained("mitbih", "mlp")
    run_stage(stage, TEST_DATASET="own", MODEL="mlp", PICTURES=0)
    for record in ("left", "right"):
        shutil.copy(f"mitbih_to_own_mlp_annotations/{record}.mlp", "own")
    table = pd.read_csv("mitbih_to_own_mlp_beats.csv")
    data = preprocess("own", DATA_DIR="own", LEADS=["II"], ANNOTATOR="mlp",
                      RECORDS=["left", "right"])
    np.testing.assert_array_equal(data.record, table["record"])
    np.testing.assert_array_equal(data.metadata["symbol"], table["symbol"])
    np.testing.assert_allclose(data.metadata["sample"] / 360, table["time"], atol=0.01)


def test_calls_without_a_reference_are_those_of_the_same_beats_with_one(trained):
    """The same recording: what the model calls does not depend on there being a reference."""
    trained("mitbih", "mlp")
    model = stage.load_checkpoint(preprocess_mitbih.load_dataset("mitbih"), "mlp")
    own = stage.call_beats(stage.predict_beats(model, own_recordings()))
    data = preprocess("svdb", DATA_DIR="own", LEADS=["II"], R_PEAKS="detected",
                      RECORDS=["left", "right"])
    scored = stage.score_rows(stage.predict_beats(model, data))
    pd.testing.assert_frame_equal(own[["record", "sample", "symbol"]], scored.beats)


def test_a_model_of_records_calls_no_beats(trained):
    own_recordings()
    trained("ptbxl", "mlp")
    with pytest.raises(SystemExit, match="ANNOTATOR = None, .* 'ptbxl': expected one of mitbih$"):
        run_stage(stage, PRETRAINED_DATASET="ptbxl", TEST_DATASET="own", MODEL="mlp")
