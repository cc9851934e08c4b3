"""preprocess_ptbxl.py on simulated records of PTB-XL, and of other databases of 12 leads."""

import ast
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulate
import wfdb
from conftest import PTBXL
from harness import (
    changed,
    cut,
    outputs,
    put_invalid_sample,
    replace,
    run_stage,
    write_ptbxl,
)
from scipy.signal import resample_poly

import preprocess_ptbxl as stage
from preprocess_mitbih import load_dataset

DATABASE = Path(PTBXL, "ptbxl_database.csv")
STATEMENTS = Path(PTBXL, "scp_statements.csv")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with forty records, the first one marked as simulated, and ptbxl_database.csv."""
    folder = tmp_path_factory.mktemp("ptbxl")
    return folder, write_ptbxl(folder, records=40)


@pytest.fixture
def table(work, written):
    """A copy of the forty records -> ptbxl_database.csv as written."""
    folder, table = written
    shutil.copytree(folder, work / PTBXL)
    return table.copy()


def run(**constants):
    """Runs the script -> the dataset that it wrote."""
    run_stage(stage, **constants)
    return load_dataset(constants.get("NAME", "ptbxl"))


# ---- Signals ----

@pytest.mark.parametrize("rate, column", [(100, "filename_lr"), (500, "filename_hr")])
def test_signals_are_bit_equal_to_wfdb(work, rate, column):
    names = simulate.write_ptbxl(work / PTBXL, records=12, sampling_rate=rate)[column]
    data = run(SAMPLING_RATE=rate)
    assert data.signals.shape == (12, 12, 10 * rate) and data.signals.dtype == np.float32
    assert data.header.sampling_rate == rate
    for name, signals in zip(names, data.signals):
        physical, fields = wfdb.rdsamp(str(Path(PTBXL, name)))
        assert fields["sig_name"] == stage.LEADS
        np.testing.assert_array_equal(signals, physical.T.astype(np.float32))


# ---- Labels ----

def test_metadata_is_row_aligned_and_statements_stay_reachable(table):
    data = run()
    scp = pd.read_csv(STATEMENTS, index_col=0)
    np.testing.assert_array_equal(data.metadata["fold"], table["strat_fold"])
    assert data.record.tolist() == table["ecg_id"].astype(str).tolist()
    assert data.patient.tolist() == [f"{patient:.0f}" for patient in table["patient_id"]]
    for row, text in enumerate(table["scp_codes"]):
        codes = ast.literal_eval(text)
        likelihoods = data.metadata["statements"][row].tolist()
        statements = dict(zip(data.header.statement_names, likelihoods))
        assert {name: value for name, value in statements.items() if value >= 0} == codes
        expected = {scp.diagnostic_class[code] for code in codes if scp.diagnostic[code] == 1}
        flags = dict(zip(stage.SUPERCLASSES, data.metadata["superclasses"][row]))
        assert {name for name, flag in flags.items() if flag} == expected
        label = data.labels[row]
        assert stage.SUPERCLASSES[label] in expected if label >= 0 else not expected
    assert data.header.simulated and data.kind == "records" and data.labels.dtype == np.int64


def test_single_label_is_the_likeliest_superclass_with_ties_by_order():
    cases = [({"STTC": 100, "MI": 50}, "STTC"), ({"NORM": 80, "HYP": 80}, "HYP"),
             ({"CD": 0, "MI": 0}, "MI"), ({"NORM": 0}, "NORM"), ({}, None)]
    likelihoods = np.array([[likelihood_of.get(name, -1) for name in stage.SUPERCLASSES]
                            for likelihood_of, _ in cases])
    labels = stage.single_labels(likelihoods)
    names = [stage.SUPERCLASSES[label] if label >= 0 else None for label in labels]
    assert names == [name for _, name in cases]


def test_likelihood_zero_means_unknown_not_absent():
    codes = [{"IMI": 0.0, "SR": 0.0}, {"OTHER": 100.0}, {"IMI": 50.0, "AMI": 80.0}]
    scp = pd.DataFrame({"diagnostic": [1, 1, 1, None],
                        "diagnostic_class": ["MI", "MI", "NORM", None]},
                       index=["IMI", "AMI", "NORM", "SR"])
    table = pd.DataFrame({"codes": codes}).assign(patient_id=1, strat_fold=1)
    left_out = Counter()
    metadata, labels = stage.make_metadata(table, scp, left_out)
    np.testing.assert_array_equal(
        metadata["statements"], [[0, -1, -1, 0], [-1] * 4, [50, 80, -1, -1]])
    likelihoods = stage.superclass_matrix(metadata["statements"], scp)
    mi = stage.SUPERCLASSES.index("MI")
    assert likelihoods[:, mi].tolist() == [0, -1, 80] and (likelihoods == -1).sum() == 13
    np.testing.assert_array_equal(metadata["superclasses"], likelihoods >= 0)
    assert labels.tolist() == [mi, -1, mi] and left_out == {"codes without a statement 'OTHER'": 1}


def test_the_order_of_the_table_does_not_change_the_outputs(work, table):
    run()
    before = outputs(work)
    table.sample(frac=1, random_state=0).to_csv(DATABASE, index=False)
    run()
    assert outputs(work) == before


# ---- Damaged input ----

def edit_table(column, value):
    """Changes the third row of ptbxl_database.csv."""
    table = pd.read_csv(DATABASE)
    table[column] = table[column].astype(object)
    table.loc[2, column] = value
    table.to_csv(DATABASE, index=False)


def shift_sample(path):
    adc = np.fromfile(path, "<i2")
    adc[77] += 1
    adc.tofile(path)


FOURTH = Path(PTBXL, "records100/00000/00004_lr")
FOURTH_HEA = FOURTH.with_suffix(".hea")
FOURTH_DAT = FOURTH.with_suffix(".dat")
HACK = "__import__('os').system('touch hacked')"
DAMAGES = {   # regular expression for the message -> what is done
    "DATA_DIR: no .*ptbxl_database.csv in .*demo.py$": lambda: shutil.rmtree(PTBXL),
    "DATA_DIR: no .*scp_statements.csv in": STATEMENTS.unlink,
    "no intact .*not in index.*own files again$":
        lambda: STATEMENTS.write_text("code,diagnostic,diagnostic_class\n"),
    "no intact .*patient_id.*not found": lambda: DATABASE.write_text("ecg_id\n1\n"),
    "no intact .*Error tokenizing": lambda: DATABASE.write_text("a,b\n1\n1,2,3\n"),
    "missing.*00004_lr.dat": FOURTH_DAT.unlink,
    "missing.*00004_lr.hea": FOURTH_HEA.unlink,
    "00004.*is damaged or does not fit": lambda: cut(FOURTH_DAT, 20001),
    "00004.*contradict the checksums": lambda: shift_sample(FOURTH_DAT),
    "00004.*it is shorter than 10 s. Repair or replace it":   # 5 s
        lambda: replace(FOURTH_HEA, b" 12 100 ", b" 12 200 "),
    "00004.*V5 V7, but lacks some of LEADS": lambda: replace(FOURTH_HEA, b" 0 V6", b" 0 V7"),
    "00004.*chosen leads are invalid .1 NaN": lambda: put_invalid_sample(FOURTH, -32768),
    "no intact .*malformed": lambda: edit_table("scp_codes", HACK),
    "no intact .*never closed": lambda: edit_table("scp_codes", "{'NORM': 100"),
    "no intact .*'list' object": lambda: edit_table("scp_codes", "['NORM']"),
    "likelihood not 0 to 100": lambda: edit_table("scp_codes", "{'NORM': 1000.0}"),
    "no intact .*column 'patient_id'": lambda: edit_table("patient_id", "nobody"),
    "no intact .*inf": lambda: edit_table("patient_id", "inf"),
    "strat_fold not 1 to 10": lambda: edit_table("strat_fold", 11),
    "ecg_id twice": lambda: edit_table("ecg_id", 2),
    "no filename": lambda: edit_table("filename_lr", None),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_bad_input_stops_with_one_sentence_and_keeps_earlier_outputs(work, message):
    write_ptbxl(work / PTBXL, records=8)
    run()
    before = outputs(work)
    DAMAGES[message]()
    with pytest.raises(SystemExit, match=message) as error:
        run()
    assert "\n" not in str(error.value)
    assert outputs(work) == before and not Path("hacked").exists()


def test_bad_records_can_be_skipped_and_are_counted(table, capsys):
    FOURTH_DAT.unlink()
    data = run(BAD_RECORDS="skip")
    assert data.record.tolist() == [str(ecg_id) for ecg_id in table["ecg_id"] if ecg_id != 4]
    assert len(data.signals) == len(data.labels) == 39
    line = ("1  records, records100/00000/00004_lr ...: its header or signal file is missing or "
            r"damaged .*No such file.*/\*.dat'\)\n")
    assert re.search(line, capsys.readouterr().out)
    shutil.rmtree(FOURTH.parent)
    with pytest.raises(SystemExit, match="none of 40 records.*missing"):
        run(BAD_RECORDS="skip")


@pytest.mark.parametrize("name, value, expected", [
    ("SAMPLING_RATE", 250, "one of 100, 500"), ("BAD_RECORDS", "no", "one of stop, skip"),
    ("LABELS", "xml", "one of csv, header"),
    ("NAME", "mitbih", "another name, this one has beats")])
def test_unknown_constants_are_named(work, name, value, expected):
    with pytest.raises(SystemExit, match=f"^{name} = {value!r}: expected {expected}$"):
        run(**{name: value})


# ---- Another database: LABELS = "header" ----

TWELVE = Path("twelve")
AS_CINC = [name.replace("AV", "aV") for name in stage.LEADS]
PER_MILLIVOLT = {"mV": 1, "mv": 1, "uV": 1000, "V": 0.001}
OTHERS = {"NAME": "twelve", "DATA_DIR": TWELVE, "LABELS": "header", "BAD_RECORDS": "skip"}


def waves(rate, seconds):
    """(samples, 12) mV: a few sines below 10 Hz in each lead, the same at any rate."""
    t = np.arange(round(rate * seconds))[:, None] / rate
    lead = np.arange(12)
    return (np.sin(2 * np.pi * (1.1 + 0.7 * lead) * t + lead) + 0.1 * lead
            + 0.5 * np.sin(2 * np.pi * 0.3 * t))


def write_record(name, comments, seconds=10, rate=500, unit="mV", **changes):
    """Writes a simulated record below TWELVE.

    Changes: order of the leads, extra (names of flat leads after the twelve), form, gain.
    """
    usual = {"order": range(12), "extra": (), "form": "16", "gain": 1000}
    order, extra, form, gain = (usual | changes).values()
    path = TWELVE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    leads = [AS_CINC[i] for i in order] + list(extra)
    signals = np.zeros((round(rate * seconds), len(leads)))
    signals[:, :12] = waves(rate, seconds)[:, list(order)] * PER_MILLIVOLT[unit]
    wfdb.wrsamp(path.name, rate, [unit] * len(leads), leads, p_signal=signals,
                fmt=[form] * len(leads), adc_gain=[gain / PER_MILLIVOLT[unit]] * len(leads),
                baseline=[0] * len(leads), write_dir=str(path.parent),
                comments=[*comments, simulate.SIMULATED])


def to_mat(name):
    """Turns a record into one of the Challenges: NAME.mat, samples after 24 bytes."""
    data = (TWELVE / name).with_suffix(".dat")
    data.with_suffix(".mat").write_bytes(bytes(24) + data.read_bytes())
    data.unlink()
    replace(data.with_suffix(".hea"), b".dat 16 ", b".mat 16+24 ", count=12)


@pytest.fixture
def twelve(work):
    """Ten records in folders, of which seven are usable."""
    shuffled = np.random.default_rng(0).permutation(12)
    write_record("A1", ["Age: 61", "Sex: Female", "Dx: 426783006", "Rx: Unknown"])
    replace(TWELVE / "A1.hea", b"# Dx", b"#Dx")
    write_record("g1/B2", ["Age: NaN", "Sex: M", "Dx: 164889003,59118001"], seconds=23)
    write_record("g1/C3", ["Age: 50", "Sex: F", "Dx: 426783006"], seconds=8)
    write_record("g2/D4", ["Age: 47", "Sex: Male", "Dx: NSR, LBBB"], unit="mv", order=shuffled,
                 extra=["X", "RESP"], form="212", gain=200)
    write_record("g2/E5", [], rate=257, unit="uV", gain=488)
    write_record("g2/F6", ["Age: Unknown", "Sex: Unknown", "Dx: 713427006,999,QAb"])
    write_record("g2/G7", ["Age: 80", "Sex: f", "Dx: 426783006 427393009"], seconds=20)
    to_mat("g2/G7")
    write_record("g2/H8", ["Age: 20", "Sex: 1", "Dx: 999"])
    write_record("g2/I9", ["Dx: 426783006"])
    replace(TWELVE / "g2/I9.hea", b" V6", b" V9")
    write_record("HR00001", ["Age: 33", "Sex: M", "Dx: 426783006"])


def test_records_keep_their_names_in_deep_folders_and_none_is_longer_than_an_hour(work, capsys):
    names = [f"training/of_a_hospital_with_a_long_name/g{k}/JS0000{k}" for k in (1, 2)]
    for name in names:
        write_record(name, ["Dx: 426783006"])
    write_record("night", ["Dx: 426783006"], rate=50, seconds=3610)
    assert run(**OTHERS).record.tolist() == names
    assert "night ...: it is longer than an hour" in capsys.readouterr().out


def test_the_headers_of_another_database_give_rows_statements_and_metadata(twelve, capsys):
    data = run(**OTHERS)
    expected = {   # rows, statements
        "A1": (1, {"SR", "NORM"}), "B2": (3, {"AFIB", "CRBBB"}), "D4": (1, {"SR", "CLBBB"}),
        "E5": (1, set()), "F6": (1, {"CRBBB", "QWAVE"}), "G7": (2, {"SR", "SARRH"}),
        "H8": (1, set())}
    names = [name for name, (rows, _) in expected.items() for _ in range(rows)]
    assert data.record.tolist() == data.patient.tolist()
    assert [record.split("/")[-1] for record in data.record] == names   # with their folders
    assert "g1/B2" in data.record
    assert len(data.signals) == len(data.labels) == len(names)
    assert data.kind == "records" and data.header.simulated and data.header.leads == stage.LEADS
    assert (data.metadata["fold"] == 0).all()
    statement_names = np.array(data.header.statement_names)
    table = [line.split()[0] for line in stage.SNOMED.strip().splitlines()]
    assert statement_names.tolist() == ["NORM", *table]
    for row, name in enumerate(names):
        _, statements = expected[name]
        metadata = data.metadata[row]
        assert set(statement_names[metadata["statements"] == 100]) == statements
        unknown = metadata["statements"] == -2   # each record is alone in its source
        assert unknown.sum() == len(statement_names) - len(statements)
        normal = "NORM" in statements
        assert metadata["superclasses"].tolist() == [int(normal), 0, 0, 0, 0]
        assert data.labels[row] == (0 if normal else -1)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for line in ("1  records that are PTB-XL's own (HR)", "2  codes without a statement '999'",
                 "1  records, g1/C3 ...: it is shorter than 10 s",
                 "1  records, g2/I9 ...: it has the leads I II III aVR aVL aVF V1 V2 V3 V4 V5 V9, "
                 "but lacks some of LEADS",
                 "Wrote twelve_*.npy: signals, labels, metadata, header"):
        assert line in printed
    assert sum("without a statement" in line for line in printed) == 1


@pytest.mark.parametrize("rate", [100, 500])
def test_signals_of_another_database_are_those_of_wfdb_resampled(twelve, rate):
    data = run(**OTHERS, SAMPLING_RATE=rate)
    assert data.signals.shape == (10, 12, 10 * rate) and data.signals.dtype == np.float32
    starts = {"B2": [0, 10, 13], "G7": [0, 10]}   # s; the last piece overlaps the one before
    for name in dict.fromkeys(data.record.tolist()):
        physical, fields = wfdb.rdsamp(str(TWELVE / name))
        columns = [fields["sig_name"].index(lead) for lead in AS_CINC]
        millivolts = physical.T[columns] / PER_MILLIVOLT[fields["units"][0]]
        truth = waves(rate, len(physical) / fields["fs"]).T
        if fields["fs"] != rate:
            to_rate = {"up": rate, "down": fields["fs"], "padtype": "edge"}
            millivolts = resample_poly(millivolts, axis=1, **to_rate) / resample_poly(
                np.ones(len(physical)), **to_rate)
        pieces = data.signals[data.record == name]
        assert len(pieces) == len(starts.get(name.split("/")[-1], [0]))
        for piece, start in zip(pieces, starts.get(name.split("/")[-1], [0])):
            part = slice(start * rate, (start + 10) * rate)
            np.testing.assert_allclose(piece, millivolts[:, part], atol=1e-3)
            inside = slice(rate // 2, -rate // 2)
            np.testing.assert_allclose(piece[:, inside], truth[:, part][:, inside], atol=0.01)


SNOMED = {   # some codes of the challenges' official tables -> PTB-XL's statement
    "10370003": "PACE", "251266004": "PACE", "251268003": "PACE",
    "164889003": "AFIB", "195080001": "AFIB", "426749004": "AFIB", "282825002": "AFIB",
    "314208002": "AFIB", "164890007": "AFLT", "74390002": "WPW", "195060002": "WPW",
    "427172004": "PVC", "17338001": "PVC", "251182009": "PVC", "284470004": "PAC",
    "63593006": "PAC", "251164006": "PAC", "251170000": "PAC", "11157007": "BIGU",
    "251173003": "BIGU", "251168009": "BIGU", "55930002": "NST_", "164934002": "TAB_",
    "164873001": "LVH", "55827005": "VCLVH", "164909002": "CLBBB", "733534002": "CLBBB",
}


def write_headers(**codes):
    """Writes headers below TWELVE, without signals: record=codes; "": no line #Dx."""
    TWELVE.mkdir(exist_ok=True)
    for name, text in codes.items():
        (TWELVE / f"{name}.hea").write_text(f"{name} 0 500 5000\n" + f"#Dx: {text}\n" * bool(text))


def read_headers(left_out=None):
    """-> dict of record -> dict of statement -> likelihood, -1 if not stated, -2 if unknown."""
    left_out = Counter() if left_out is None else left_out
    with changed(stage, **OTHERS):
        table, scp = stage.read_headers(left_out)
        metadata, _ = stage.make_metadata(table, scp, left_out)
    return {row["record"]: dict(zip(scp.index, row["statements"].tolist())) for row in metadata}


def test_codes_of_the_challenges_are_the_statements_of_ptbxl(work):
    write_headers(**{f"A{code}": code for code in SNOMED})
    left_out = Counter()
    records = read_headers(left_out)
    assert not left_out
    assert SNOMED == {name[1:]: statement for name, statements in records.items()
                      for statement, likelihood in statements.items() if likelihood >= 0}


def test_what_a_source_never_states_is_unknown_there_and_so_is_a_record_without_labels(work):
    write_headers(A1="426783006", A2="427172004", A3="", JS1="164889003", JS2="427172004,999")
    records = read_headers()
    asked = ["NORM", "SR", "PVC", "AFIB", "PAC"]
    values = {name: [statements[one] for one in asked] for name, statements in records.items()}
    assert values == {
        "A1": [100, 100, -1, -2, -2], "A2": [-1, -1, 100, -2, -2], "A3": [-2] * 5,
        "JS1": [-2, -2, -1, 100, -2], "JS2": [-2, -2, 100, -1, -2]}
    assert set(records["A3"].values()) == {-2}


@pytest.mark.parametrize("leads", ["II V1", "ii,V1", ["MLII", "v1"], ("Lead II", "V1")])
def test_leads_are_names_in_a_text_or_a_list(work, leads):
    write_record("A1", ["Dx: 426783006"], rate=100)
    data = run(**OTHERS, LEADS=leads)
    assert data.signals.shape == (1, 2, 1000) and len(data.header.leads) == 2
    np.testing.assert_allclose(data.signals[0], waves(100, 10)[:, [1, 6]].T, atol=1e-3)


def test_other_leads_are_refused(work):
    write_record("A1", ["Dx: 426783006"], rate=100)
    with pytest.raises(SystemExit, match="it has the leads I II .* V6, but lacks some of LEADS"):
        run(**OTHERS | {"LEADS": "II X9", "BAD_RECORDS": "stop"})
    with pytest.raises(SystemExit, match="^LEADS = None: expected a list of names, such as"):
        run(**OTHERS, LEADS=None)


def test_records_of_a_linked_folder_are_found(work):
    write_record("g1/A1", ["Dx: 426783006"], rate=100)
    (TWELVE / "g1").rename("elsewhere")
    (TWELVE / "g2").symlink_to(work / "elsewhere")
    assert run(**OTHERS).record.tolist() == ["g2/A1"]


def test_labels_in_headers_need_no_files_of_ptbxl(work, monkeypatch):
    """NAME is still "ptbxl"."""
    monkeypatch.setattr(stage, "download", None)
    write_record("A1", ["Dx: 426783006"], rate=100)
    data = run(**OTHERS | {"NAME": "ptbxl", "DOWNLOAD": True})
    assert data.record.tolist() == ["A1"] and data.metadata["fold"].tolist() == [0]


def test_skipped_records_are_counted_by_reason(work, capsys):
    for name in ("A1", "g1/B2", "g1/C3", "g2/D4", "g2/E5"):
        write_record(name, ["Dx: 426783006"], rate=100)
    for name in ("g1/B2", "g1/C3", "g2/D4"):
        (TWELVE / f"{name}.dat").unlink()
    replace(TWELVE / "g2/E5.hea", b"1000.0(0)/mV", b"4880.0(0)/mV")
    assert run(**OTHERS).record.tolist() == ["A1"]
    printed = capsys.readouterr().out
    reason = "3  records, g1/B2 g1/C3 g2/D4 ...: its header or signal file is missing or damaged ("
    assert printed.count(" ...: ") == 2 and reason in printed and "/*.dat')\n" in printed
    assert ("1  records, g2/E5 ...: its gain is 4880 per mV, where later releases of Georgia say "
            "1000\n") in printed


def test_sinus_rhythm_with_an_unknown_code_is_not_normal(work):
    write_record("A1", ["Dx: 426783006,164865005"])   # myocardial infarction
    write_record("B2", ["Dx: 426783006"])
    assert run(**OTHERS).labels.tolist() == [-1, 0]


@pytest.mark.parametrize("name, message", [
    ("g1/C3", "record g1/C3: it is shorter than 10 s. Repair or replace it, or set BAD_RECORDS"),
    ("g2/I9", "record g2/I9: it has the leads I .*V5 V9, but lacks some of LEADS. Repair or")])
def test_a_record_of_another_database_that_cannot_be_used_stops_the_run(twelve, name, message):
    for path in TWELVE.rglob("*.hea"):
        if path.stem != Path(name).stem:
            path.unlink()
    with pytest.raises(SystemExit, match=message):
        run(**OTHERS | {"BAD_RECORDS": "stop"})
    assert not outputs(Path())


def test_a_folder_without_headers_is_named(work):
    with pytest.raises(SystemExit, match="^DATA_DIR: twelve has no .hea file, or none but HR"):
        run(**OTHERS)


# ---- Report ----

@pytest.mark.parametrize("folds", [[10], [3, 9]])
def test_a_part_of_the_folds_is_enough(table, folds):
    rows = table[table["strat_fold"].isin(folds)]
    rows.to_csv(DATABASE, index=False)
    assert len(run().labels) == len(rows)


def test_the_report_counts_records_by_superclass_and_fold(table, capsys):
    metadata = run().metadata
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    folds = [metadata["superclasses"][metadata["fold"] == fold] for fold in range(1, 11)]
    assert [str(fold) for fold in range(1, 11)] in lines
    assert ["records", *(str(len(flags)) for flags in folds)] in lines
    for k, name in enumerate(stage.SUPERCLASSES):
        assert [name, *(str(flags[:, k].sum()) for flags in folds)] in lines
