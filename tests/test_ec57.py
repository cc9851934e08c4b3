"""model_evaluation.py: beats counted one by one as in ANSI/AAMI EC57, and annotation files."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import simulate
import wfdb
from conftest import MITBIH
from examples import NAMES, close, evaluate, score_test_rows
from harness import contents, preprocess, rows_of_marks, train
from sklearn import metrics as sk

import model_evaluation as stage
import preprocess_mitbih

pytestmark = pytest.mark.usefixtures("few_resamples", "quick_pictures")
CELLS = [reference + call for reference in "NSVFQO" for call in "nsvfqo"]


# ---- Beat by beat ----

def two_annotators(rate, **records):
    """record=(reference, calls), each a list of (sample, symbol) -> dataset, table of the calls."""
    calls = [(record, *call) for record, (_, called) in records.items() for call in called]
    marks = [(number, *mark) for number, (reference, _) in enumerate(records.values())
             for mark in reference]
    annotations = np.zeros(len(marks), preprocess_mitbih.ANNOTATION_FIELDS)
    annotations["record"], annotations["sample"], annotations["symbol"] = zip(*marks)
    of_symbol = {symbol: label for label, symbols in enumerate(preprocess_mitbih.CLASSES.values())
                 for symbol in symbols}
    annotations["label"] = [of_symbol.get(symbol, -1) for symbol in annotations["symbol"]]
    header = SimpleNamespace(symbols=NAMES,
                             records=[{"name": record, "rate": rate} for record in records])
    data = SimpleNamespace(header=header, annotations=annotations)
    return data, pd.DataFrame(calls, columns=["record", "sample", "symbol"])


def counted(counts, record):
    """Table of beat_counts, record -> dict of its cells that are not zero."""
    return {cell: count for cell, count in counts.loc[record].items() if count}


REFERENCE = [   # at 100 Hz, where 0.15 s are 15 samples
    (20, "+"), (100, "N"), (200, "A"), (300, "V"), (400, "F"), (550, "N"), (560, "~"), (580, "V"),
    (600, "["), (640, "!"), (650, "V"), (700, "]"), (800, "j"), (850, "e"), (900, "/"), (1000, "Q")]
CALLS = [
    (105, "N"),               # Nn
    (215, "V"),               # Sv, 0.15 s away
    (316, "V"),               # Ov and Vo: 0.16 s away
    # F at 400 is missed: Fo
    (500, "S"),               # Os
    (562, "N"),               # On: 0.12 s from N, but the next one is nearer
    (551, "N"),               # Nn
    (578, "F"),               # Vf
    (601, "V"), (650, "N"),   # flutter: neither counts, nor does V at 650
    (701, "Q"),               # Oq
    (803, "N"), (850, "S"),   # escape beats are N: Nn, Ns
    (890, "Q"), (1000, "N")]  # Qq, Qn


def test_beats_are_counted_as_by_hand():
    data, beats = two_annotators(100, a=(REFERENCE, sorted(CALLS)), b=([(90, "V")], [(80, "V")]))
    counts = stage.beat_counts(data, beats, ["a", "b"], 0)
    assert list(counts.columns) == CELLS
    assert counted(counts, "a") == {
        "Nn": 3, "Ns": 1, "Sv": 1, "Vo": 1, "Vf": 1, "Fo": 1, "Qn": 1, "Qq": 1,
        "On": 1, "Os": 1, "Ov": 1, "Oq": 1}
    assert counted(counts, "b") == {"Vv": 1}
    alone = stage.beat_counts(data, beats, ["b"], 0)
    pd.testing.assert_frame_equal(alone, counts.loc[["b"]])


def test_a_record_at_another_rate_has_a_window_of_as_many_seconds():
    for rate, cells in ((100, {"No": 1, "On": 1}), (250, {"Nn": 1})):
        data, beats = two_annotators(rate, a=([(400, "N")], [(437, "N")]))
        assert counted(stage.beat_counts(data, beats, ["a"], 0), "a") == cells


def test_beats_before_5_minutes_are_not_counted():
    """But the last call before 5:00 is the partner of the first beat after it."""
    reference = [(29_950, "N"), (30_005, "V"), (30_500, "N")]
    data, beats = two_annotators(100, a=(reference, [(29_995, "V"), (30_100, "S")]))
    assert counted(stage.beat_counts(data, beats, ["a"], 300), "a") == {"Vv": 1, "Os": 1, "No": 1}


def metrics_of_bxb(m, fusion):
    """Counts, those of fusion beats called S that are false -> list of the metrics by formulas."""
    beats = sum(m[a + b] for a in "NSVFQ" for b in "nsvfqo")
    missed = m.No + m.So + m.Vo + m.Fo + m.Qo
    false = m.On + m.Os + m.Ov + m.Of + m.Oq
    normal = m.Nn + m.Ns + m.Nv + m.Nf + m.Nq + m.No
    veb = m.Vn + m.Vs + m.Vv + m.Vf + m.Vq + m.Vo
    sveb = m.Sn + m.Ss + m.Sv + m.Sf + m.Sq + m.So
    false_veb = m.Nv + m.Sv + m.Ov              # not Fv, not Qv
    false_sveb = m.Ns + m.Vs + fusion + m.Os    # not Qs
    called = {b: sum(m[a + b] for a in "NSVFQO") for b in "nsv"}
    f1 = [2 * m.Nn / (normal + called["n"]), 2 * m.Ss / (sveb + called["s"]),
          2 * m.Vv / (veb + called["v"])]
    return [beats, percent(beats - missed, beats), percent(beats - missed, beats - missed + false),
            percent(m.Vv, veb), percent(m.Vv, m.Vv + false_veb),
            percent(m.Ss, sveb), percent(m.Ss, m.Ss + false_sveb), *f1, np.mean(f1)]


def percent(part, whole):
    return 100 * part / whole if whole else np.nan


def test_ec57_metrics_are_those_of_the_formulas_of_bxb_and_sumstats():
    rng = np.random.default_rng(0)
    counts = pd.DataFrame(rng.integers(1, 50, (3, 36)), list("abc"), CELLS)
    counts["Oo"] = 0
    counts.loc["b", ["Ss", "Sn", "Sv", "Sf", "Sq", "So"]] = 0   # no S in the reference
    counts.loc["c", [cell for cell in CELLS if "v" in cell]] = 0   # nothing called V
    table = stage.ec57_table(counts)
    assert table.index.tolist() == ["a", "b", "c", "gross", "average"]
    for record, m in counts.iterrows():
        close(table.loc[record], metrics_of_bxb(m, m.Fs))
    close(table.loc["gross"], metrics_of_bxb(counts.sum(), 0))   # in sumstats, Fs is not false
    by_record = pd.DataFrame([metrics_of_bxb(m, 0) for _, m in counts.iterrows()])
    close(table.loc["average"], by_record.mean())
    assert np.isnan(table.loc["b", "SVEB sensitivity"])   # left out of the average
    assert np.isnan(table.loc["c", "VEB positive predictivity"])
    assert not table.loc["average"].isna().any()


# ---- Annotation files ----

def missed_in_ds2(data):
    """Dataset -> number of annotated beats of DS2 without a row."""
    marks = data.annotations
    in_ds2 = np.array([record["subset"] == "DS2" for record in data.header.records])
    return np.sum((marks["label"] >= 0) & (rows_of_marks(data) < 0) & in_ds2[marks["record"]])


def test_annotation_files_hold_the_called_beats(trained):
    trained("mitbih", "mlp")
    kept = ["mine.txt", "100.atr"]
    for name in ("999.mlp", "sub/100.mlp", *kept):   # of an earlier run, and others
        path = Path("mitbih_mlp_annotations", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    tables = evaluate("mitbih", "mlp")["tables"]
    scored = score_test_rows("mitbih")
    names = preprocess_mitbih.SUBSETS["DS2"].split()
    files = [f"{name}.mlp" for name in names]
    assert sorted(contents("mitbih_mlp_annotations")) == sorted([*files, *kept])
    called = np.array(NAMES)[scored.called.argmax(axis=1)]
    assert set(called) >= {"N", "V"}
    for name in names:
        rows = scored.data.record[scored.rows] == name
        annotation = wfdb.rdann(f"mitbih_mlp_annotations/{name}", "mlp")
        expected = scored.data.metadata["sample"][scored.rows[rows]]
        np.testing.assert_array_equal(annotation.sample, expected)
        np.testing.assert_array_equal(annotation.symbol, called[rows])
    # annotated beats all have a partner, except those at the ends of the records
    counts = pd.DataFrame(tables["beats counted from 0:00, reference and call"]).T
    assert counts.filter(regex="^O").sum().sum() == 0
    confusion = sk.confusion_matrix(scored.truth.argmax(axis=1), scored.called.argmax(axis=1))
    together = counts.sum()
    cells = [[truth + call for call in "nsvfq"] for truth in NAMES]
    assert [together[row].tolist() for row in cells] == confusion.tolist()
    missed = together.filter(regex="o$").sum()
    assert missed == missed_in_ds2(scored.data)
    gross = tables["EC57 from 0:00"]["gross"]
    assert gross["beats"] == len(scored.rows) + missed
    close(gross["VEB sensitivity"], 100 * together["Vv"] / together.filter(regex="^V").sum())
    assert tables["EC57 from 5:00"]["gross"]["beats"] == 0   # the records have 40 s
    scored.data.header.symbols = [*"NLRAV"]   # classes of one's own
    summary = stage.summarise_metrics(scored)
    assert not any("EC57" in heading for heading in stage.make_tables(scored, summary))


def test_annotation_files_are_at_the_rate_of_the_record(work):
    simulate.write_mitbih(MITBIH, ["101", "106", "119", "124", "203", "100", "232"], seconds=60)
    preprocess(SAMPLING_RATE=200, SEGMENT=200)
    train("mitbih", "mlp")
    tables = evaluate("mitbih", "mlp")["tables"]
    for name in ("100", "232"):
        reference = wfdb.rdann(f"{MITBIH}/{name}", "atr")
        of_beat = reference.sample[np.isin(reference.symbol, list("NRAVj"))]
        annotation = wfdb.rdann(f"mitbih_mlp_annotations/{name}", "mlp")
        assert annotation.fs == 360
        called = annotation.sample
        distance = np.abs(called[:, None] - of_beat).min(axis=1)
        assert len(called) > 30 and distance.max() < 0.05 * 360
    counts = pd.DataFrame(tables["beats counted from 0:00, reference and call"]).T
    assert counts.filter(regex="^O").sum().sum() == 0   # all have a partner


# ---- Detected beats ----

def lose_annotations(names):
    """Takes every third mark out of some records; a detector finds these beats all the same."""
    for name in names:
        annotation = wfdb.rdann(f"{MITBIH}/{name}", "atr")
        keep = np.arange(len(annotation.sample)) % 3 > 0
        simulate.write_marks(MITBIH, name, annotation.sample[keep],
                             np.array(annotation.symbol)[keep])


def test_a_model_of_annotated_beats_is_evaluated_on_detected_ones(trained, arrays):
    trained("mitbih", "mlp")
    shutil.copytree(arrays / MITBIH, MITBIH)
    lose_annotations(["100", "103"])
    data = preprocess(R_PEAKS="detected")
    report = evaluate("mitbih", "mlp")
    assert "detected beats" in report["title"]
    tables = report["tables"]
    rows = np.flatnonzero(np.isin(data.record, preprocess_mitbih.SUBSETS["DS2"].split()))
    false = np.sum(data.labels[rows] == 5)
    assert false > 15
    assert list(tables["by class"]) == NAMES   # of the model
    assert tables["all classes"]["n"]["value"] == len(rows)
    table = pd.read_csv("mitbih_mlp_predictions.csv", keep_default_na=False)
    assert np.sum(table["true"] == "") == false
    counts = pd.DataFrame(tables["beats counted from 0:00, reference and call"]).T.sum()
    assert counts.filter(regex="^O").sum() == false
    missed = missed_in_ds2(data)
    assert counts.filter(regex="o$").sum() == missed > 0
    gross = tables["EC57 from 0:00"]["gross"]
    hits = len(rows) - false
    close(gross["QRS sensitivity"], 100 * hits / (hits + missed))
    close(gross["QRS positive predictivity"], 100 * hits / (hits + false))


def test_a_model_of_detected_beats_knows_false_ones(work, arrays):
    shutil.copytree(arrays / MITBIH, MITBIH)
    lose_annotations(["101", "106", "112", "119", "207", "208", "209", "230", "100", "103"])
    preprocess(R_PEAKS="detected")
    train("mitbih", "mlp", {"epochs": 2})
    report = evaluate("mitbih", "mlp")
    scored = score_test_rows("mitbih")
    assert list(report["tables"]["by class"]) == [*NAMES, "not a beat"]
    assert report["tables"]["by class"]["not a beat"]["n"] == np.sum(scored.truth[:, 5]) > 15
    # make the model say "not a beat" where it is one
    truth = scored.truth.argmax(axis=1)
    beats = stage.called_beats(scored.data, scored.rows, truth)
    records = np.unique(beats["record"])
    counts = stage.beat_counts(scored.data, beats, records, 0).sum()
    assert counts.filter(regex="^O").sum() == 0
    on_diagonal = [counts[name + name.lower()] for name in NAMES]
    assert on_diagonal == scored.truth[:, :5].sum(axis=0).tolist()
    # a beat that is called "not a beat" is a missed one
    truth[np.flatnonzero(truth == 2)[0]] = 5
    beats = stage.called_beats(scored.data, scored.rows, truth)
    fewer = stage.beat_counts(scored.data, beats, records, 0).sum()
    assert (fewer["Vv"], fewer["Vo"]) == (counts["Vv"] - 1, counts["Vo"] + 1)
