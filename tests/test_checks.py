"""The checks that are run by hand fit the scripts as they stand: each runs here on little data."""

import json
import re
from pathlib import Path

import benchmark_memory
import benchmark_reading
import benchmark_training
import compare_with_bxb
import deletion
import fuzz  # noqa: F401  takes minutes: it is imported only
import harness
import numpy as np
import pytest
import simulate
import wfdb
from conftest import MITBIH
from examples import score_test_rows

import model_training


def test_the_readers_are_compared_sample_by_sample(work):
    harness.write_ptbxl(work, records=20)
    assert benchmark_reading.compare(str(work)).endswith("bit-equal: True")


@pytest.mark.parametrize("load", [benchmark_memory.load_dataset, benchmark_memory.load_copy])
def test_memory_is_measured_with_signals_on_disk_or_in_memory(work, capsys, load):
    benchmark_memory.write_arrays(records=40)
    benchmark_memory.measure(load)
    seconds, anonymous, mapped = re.findall(r"[\d.]+(?= s,| GB)", capsys.readouterr().out)[-3:]
    assert float(seconds) > 0 and float(anonymous) > 0 and float(mapped) > 0


def test_trainings_are_compared(prepared, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_training, "USUAL_EPOCHS", 1)
    monkeypatch.setattr(benchmark_training, "SIZE", 64)
    with harness.changed(model_training, RECIPES={"mitbih": {"epochs": 2}}):
        benchmark_training.main()
    *_, usual, other, here, machine = capsys.readouterr().out.splitlines()
    assert usual.startswith("usual loop, usual cnn ") and other.startswith("usual loop, this cnn ")
    assert here.startswith("here ") and here.endswith(": 1.0 times as long")
    assert machine.startswith("An epoch: ")


@pytest.mark.parametrize("dataset", ["mitbih", "ptbxl"])
def test_the_deletion_test_runs_and_starts_with_the_scores_of_correct_rows(
        trained, monkeypatch, capsys, dataset):
    trained(dataset, "mlp")
    scored = score_test_rows(dataset)
    rows, classes = deletion.choose_rows(scored)
    assert scored.truth[rows, classes].all() and scored.called[rows, classes].all()
    assert 1 < np.bincount(classes).max() <= 20 and len(set(zip(rows, classes))) == len(rows)
    rows, classes = rows[::8], classes[::8]   # to be quick
    monkeypatch.setattr(deletion, "choose_rows", lambda _: (rows, classes))
    monkeypatch.setattr("sys.argv", ["", "mlp", dataset])
    capsys.readouterr()
    deletion.main()
    title, _, first, *others = capsys.readouterr().out.splitlines()
    assert title == scored.title and len(others) == len(deletion.SHARES) - 1
    mean = f"{scored.probability[rows, classes].mean():.3f}"
    assert first.split()[1:] == [mean, mean]


def print_report(folder, name, *arguments):
    """In place of bxb and sumstats: prints what the report of this repository says."""
    tables = json.loads(Path("mitbih_mlp_metrics.json").read_text())["tables"]
    if name == "sumstats":
        table = tables[f"EC57 from {re.findall('[05]', arguments[0])[0]}:00"]
        values = [[table[row][metric] for metric in compare_with_bxb.PERCENTAGES]
                  for row in ("gross", "average")]
        lines = [" ".join("-" if value is None else f"{value:.2f}" for value in row)
                 for row in values]
        return f"Gross  {lines[0]}\nAverage  {lines[1]}\n"
    reference = wfdb.rdann(str(Path(folder, arguments[1])), "ref")
    assert set(reference.symbol) <= {*"NSVFQ[]~"}
    counts = tables[f"beats counted from {arguments[6]}, reference and call"][arguments[1]]
    lines = [" ".join(str(counts[reference + call]) for call in "nsvfqo") for reference in "NSVFQ"]
    lines += [" ".join(str(counts[f"O{call}"]) for call in "nsvfq"), "0 0 0 0 0"]
    return "\n".join(f" {row} | {line}" for row, line in zip("NSVFQOX", lines))


def test_the_check_against_bxb_compares_every_count(work, quick_pictures, monkeypatch, capsys):
    records = ["101", "106", "119", "124", "203", "100", "213", "232", "234"]
    simulate.write_mitbih(MITBIH, records, seconds=330)   # beyond 5:00
    harness.preprocess()
    harness.train("mitbih", "mlp")
    harness.run_stage("model_evaluation", DATASET="mitbih", MODEL="mlp")
    monkeypatch.setattr("sys.argv", ["", "mitbih", "mlp"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="bxb is not installed: nothing was compared"):
        compare_with_bxb.main()
    capsys.readouterr()
    monkeypatch.setattr(compare_with_bxb, "program", print_report)
    compare_with_bxb.main()
    assert capsys.readouterr().out == (
        "4 records from 0:00 and from 5:00: every count equals that of bxb, "
        "gross and average percentages those of sumstats\n")

    def print_other(folder, name, *arguments):
        text = print_report(folder, name, *arguments)
        if name == "sumstats":
            return re.sub(r"^Average  \S+", "Average  12.34", text, flags=re.M)
        return text.replace(" O | ", " O | 9") if arguments[1] == "232" else text
    monkeypatch.setattr(compare_with_bxb, "program", print_other)
    with pytest.raises(SystemExit, match="4 numbers DIFFER"):
        compare_with_bxb.main()
    printed = capsys.readouterr().out
    assert "from 5:00, record 232, On: bxb 9" in printed
    assert "from 0:00, Average, QRS sensitivity: sumstats 12.34, here " in printed
