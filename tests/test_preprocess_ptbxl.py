"""preprocess_ptbxl.py on simulated records, and its fast reader against wfdb."""

import ast
import shutil

import numpy as np
import pandas as pd
import pytest
import wfdb

import preprocess_ptbxl as stage
import simulate
from conftest import PTBXL
from harness import Server, contents, write_sums


@pytest.fixture
def table(work):
    """Forty records -> ptbxl_database.csv as written."""
    return simulate.write_ptbxl(work / PTBXL, records=40)


def load(part):
    return np.load(f"ptbxl_{part}.npy", allow_pickle=False)


def record(work, table, row=3):
    return work / PTBXL / table["filename_lr"].iloc[row]


def strip_comment(path):
    """Removes the comment that marks simulated records: the header then has the real records' form."""
    header = path.with_suffix(".hea")
    header.write_text("".join(line for line in header.open() if not line.startswith("#")))


def test_signals_are_bit_equal_to_wfdb(work, table):
    for row in range(0, 40, 2):
        strip_comment(record(work, table, row))
    stage.main()
    signals = load("signals")
    assert signals.shape == (40, 12, 1000) and signals.dtype == np.float32
    for row, name in enumerate(table["filename_lr"]):
        physical, fields = wfdb.rdsamp(str(work / PTBXL / name))
        assert fields["sig_name"] == stage.LEADS
        np.testing.assert_array_equal(signals[row], physical.T.astype(np.float32))


def test_ordinary_header_takes_the_fast_path_and_any_other_the_general_one(work, table, monkeypatch):
    calls = []
    monkeypatch.setattr(stage, "read_signals_general", lambda path, rate: calls.append(path))
    path = record(work, table)
    stage.read_signals(path, 100)
    assert calls == [path]   # the comment makes it unusual
    strip_comment(path)
    stage.read_signals(path, 100)
    assert calls == [path]
    header = path.with_suffix(".hea")
    for old, new in (("1000.0(0)/mV", "500.0(0)/mV"), ("1000.0(0)/mV", "1000.0(7)/mV"), (" 16 1000", " 16+4 1000"),
                     (" 12 100 1000", " 12 100 999"), ("AVR", "V7"), (" 0 I\n", " 0 II\n")):
        text = header.read_text()
        header.write_text(text.replace(old, new, 1))
        stage.read_signals(path, 100)
        header.write_text(text)
    assert len(calls) == 7


def test_leads_in_another_order_are_sorted_by_name(work, table):
    path = record(work, table)
    expected, _ = stage.read_signals(path, 100)
    physical, fields = wfdb.rdsamp(str(path))
    order = np.random.default_rng(0).permutation(12)
    digital = np.round(physical[:, order] * 500).astype(np.int64) * 2   # another gain as well
    wfdb.wrsamp(path.name, 100, ["mV"] * 12, [fields["sig_name"][i].replace("AV", "aV") for i in order], d_signal=digital,
                fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(path.parent))
    signals, _ = stage.read_signals(path, 100)
    np.testing.assert_allclose(signals, expected, atol=.0011)


def test_500_hz(work, monkeypatch):
    table = simulate.write_ptbxl(work / PTBXL, records=4, sampling_rate=500)
    strip_comment(work / PTBXL / table["filename_hr"].iloc[0])
    monkeypatch.setattr(stage, "SAMPLING_RATE", 500)
    stage.main()
    assert load("signals").shape == (4, 12, 5000) and load("header")["sampling_rate"][0] == 500
    physical, _ = wfdb.rdsamp(str(work / PTBXL / table["filename_hr"].iloc[0]))
    np.testing.assert_array_equal(load("signals")[0], physical.T.astype(np.float32))


def test_metadata_is_row_aligned_and_statements_stay_reachable(work, table):
    stage.main()
    metadata, header = load("metadata"), load("header")[0]
    statements = header["statement_names"].tolist()
    scp = pd.read_csv(work / PTBXL / "scp_statements.csv", index_col=0)
    np.testing.assert_array_equal(metadata["ecg_id"], table.index if table.index.name == "ecg_id" else table["ecg_id"])
    np.testing.assert_array_equal(metadata["fold"], table["strat_fold"])
    for row, text in enumerate(table["scp_codes"]):
        codes = ast.literal_eval(text)
        found = {s: int(v) for s, v in zip(statements, metadata["statements"][row]) if v >= 0}
        assert found == {code: int(likelihood) for code, likelihood in codes.items()}
        expected = {scp.diagnostic_class[code] for code in codes if scp.diagnostic[code] == 1}
        assert {c for c, v in zip(stage.SUPERCLASSES, metadata["superclasses"][row]) if v} == expected
        label = load("labels")[row]
        assert (label == -1) == (not expected) and (label < 0 or stage.SUPERCLASSES[label] in expected)
    assert bool(header["simulated"]) and load("labels").dtype == np.int64


def test_single_label_is_the_likeliest_superclass_with_ties_by_order():
    columns = stage.SUPERCLASSES
    likelihoods = np.full((5, 5), -1, np.int8)
    likelihoods[0, columns.index("STTC")], likelihoods[0, columns.index("MI")] = 100, 50
    likelihoods[1, columns.index("NORM")], likelihoods[1, columns.index("HYP")] = 80, 80
    likelihoods[2, columns.index("CD")], likelihoods[2, columns.index("MI")] = 0, 0
    likelihoods[3, columns.index("NORM")] = 0
    assert [columns[i] if i >= 0 else None for i in stage.single_labels(likelihoods)] == ["STTC", "HYP", "MI", "NORM", None]


def test_likelihood_zero_means_unknown_not_absent():
    matrix = stage.statement_matrix([{"IMI": 0.0, "SR": 0.0}, {"OTHER": 100.0}], ["IMI", "NORM", "SR"])
    np.testing.assert_array_equal(matrix, [[0, -1, 0], [-1, -1, -1]])
    classes = stage.superclass_matrix(matrix, np.array(["MI", "NORM", ""]))
    np.testing.assert_array_equal(classes, [[-1, 0, -1, -1, -1], [-1] * 5])


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit_table(work, column, value):
    path = work / PTBXL / "ptbxl_database.csv"
    table = pd.read_csv(path)
    table[column] = table[column].astype(object)
    table.loc[2, column] = value
    table.to_csv(path, index=False)


def shift_sample(path):
    adc = np.fromfile(path, "<i2")
    adc[77] += 1
    adc.tofile(path)


def invalid_sample(path):
    """Puts format 16's mark of an invalid sample into the record, with the checksum to match."""
    physical = wfdb.rdrecord(str(path), physical=False)
    physical.d_signal[5, 2] = -32768
    wfdb.wrsamp(path.name, 100, physical.units, physical.sig_name, d_signal=physical.d_signal, fmt=physical.fmt,
                adc_gain=physical.adc_gain, baseline=physical.baseline, write_dir=str(path.parent))


DAMAGES = {
    "no such folder": lambda work, path: shutil.rmtree(work / PTBXL),
    "ptbxl_database.csv is missing": lambda work, path: (work / PTBXL / "ptbxl_database.csv").unlink(),
    "scp_statements.csv is missing": lambda work, path: (work / PTBXL / "scp_statements.csv").unlink(),
    "without the columns.*strat_fold": lambda work, path: (work / PTBXL / "ptbxl_database.csv").write_text("ecg_id,age\n1,2\n"),
    "dat is missing": lambda work, path: path.with_suffix(".dat").unlink(),
    "hea is missing": lambda work, path: path.with_suffix(".hea").unlink(),
    "00004.*do not fit together": lambda work, path: cut(path.with_suffix(".dat"), 20001),
    "00004.*24002 bytes.*1000 samples make 24000": lambda work, path: path.with_suffix(".dat").open("ab").write(b"no"),
    "00004.*checksums": lambda work, path: shift_sample(path.with_suffix(".dat")),
    "sampled at 200": lambda work, path: path.with_suffix(".hea").write_text(
        path.with_suffix(".hea").read_text().replace(" 12 100 ", " 12 200 ")),
    "V7.*V6 absent": lambda work, path: path.with_suffix(".hea").write_text(
        path.with_suffix(".hea").read_text().replace(" 0 V6", " 0 V7")),
    "1 samples are invalid": lambda work, path: invalid_sample(path),
    "scp_codes.*is not a dict": lambda work, path: edit_table(work, "scp_codes", "__import__('os').system('touch hacked')"),
    "likelihood from 0 to 100": lambda work, path: edit_table(work, "scp_codes", "{'NORM': 1000.0}"),
    "a patient_id and": lambda work, path: edit_table(work, "patient_id", "nobody"),
    "strat_fold of 1 to 10": lambda work, path: edit_table(work, "strat_fold", 11),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_bad_input_stops_with_one_sentence_and_keeps_earlier_outputs(work, table, message):
    stage.main()
    before = {path.name: path.read_bytes() for path in work.glob("*.npy")}
    DAMAGES[message](work, record(work, table))
    with pytest.raises(SystemExit, match=f"(?s){message}") as error:
        stage.main()
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in work.glob("*.npy*")} == before
    assert not (work / "hacked").exists()


def test_bad_record_can_be_skipped_and_is_counted(work, table, monkeypatch, capsys):
    cut(record(work, table).with_suffix(".dat"), 100)
    monkeypatch.setattr(stage, "BAD_RECORDS", "skip")
    stage.main()
    assert len(load("signals")) == len(load("labels")) == len(load("metadata")) == 39
    assert 4 not in load("metadata")["ecg_id"] and "00004_lr" in capsys.readouterr().out


def test_unknown_sampling_rate_is_named(work, monkeypatch):
    monkeypatch.setattr(stage, "SAMPLING_RATE", 250)
    with pytest.raises(SystemExit, match="SAMPLING_RATE = 250: expected one of 100, 500"):
        stage.main()


# ---- Download ----

def test_only_the_tables_and_the_records_of_the_rate_are_fetched(work, tmp_path_factory, monkeypatch):
    served = tmp_path_factory.mktemp("served") / "ptb-xl/1.0.3"
    for rate in (100, 500):
        simulate.write_ptbxl(served, records=3, sampling_rate=rate)
    (served / "RECORDS").write_text("many")
    write_sums(served)
    with Server(served.parent.parent) as server:
        for rate in (500, 100):
            for name, value in {"DOWNLOAD": True, "BASE_URL": server.url, "SAMPLING_RATE": rate}.items():
                monkeypatch.setattr(stage, name, value)
            stage.main()
            assert load("signals").shape == (3, 12, 10 * rate)
            assert {path.split("/")[0] for path in contents(work / PTBXL)} == {
                "ptbxl_database.csv", "scp_statements.csv", "SHA256SUMS.txt", "records500", f"records{rate}"}
    asked = [name for name, _ in server.asked]
    assert len(asked) == 2 + 2 + 6 + 6   # the list twice, the tables once


def test_a_damaged_record_is_told_by_the_published_sums(work, table):
    write_sums(PTBXL)
    path = record(work, table).with_suffix(".dat")
    path.write_bytes(bytes(24000))
    with pytest.raises(SystemExit, match="records100/00000/00004_lr.dat is not the published file"):
        stage.main()
    (work / PTBXL / "ptbxl_database.csv").write_text("ecg_id")
    with pytest.raises(SystemExit, match="ptbxl_database.csv is not the published file"):
        stage.main()
