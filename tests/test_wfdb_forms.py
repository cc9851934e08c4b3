"""preprocess_mitbih.py on other WFDB records: formats, units, annotations, leads, names."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import simulate
import wfdb
from conftest import MITBIH
from harness import changed, preprocess, replace

import preprocess_mitbih as stage

REC_PEAKS = np.array([300, 900, 1450, 2100, 2800])


def rec_counts():
    """(3600, 2) samples of record rec; its second lead is half as large."""
    ecg = simulate.pulse_ecg(REC_PEAKS, 3600, 360)
    return np.round(1024 + 200 * ecg * [1, .5]).astype(np.int64)


def write_rec(folder, marks=REC_PEAKS, mark_rate=None, counts=None, **header):
    """Writes a record of pulses in format 16; header: other arguments of wfdb.wrsamp."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    counts = rec_counts() if counts is None else counts
    wfdb.wrsamp(write_dir=folder, **{
        "record_name": "rec", "fs": 360, "units": ["mV", "mV"], "sig_name": ["MLII", "V5"],
        "d_signal": counts, "fmt": ["16", "16"], "adc_gain": [200, 200],
        "baseline": [1024, 1024]} | header)
    wfdb.wrann("rec", "atr", np.array(marks), ["N"] * len(marks), fs=mark_rate, write_dir=folder)


def edit_header(edit):
    path = Path("rec/rec.hea")
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


# ---- Formats, units, annotations ----

def without_optional_fields():
    edit_header(lambda lines: [lines[0], *(" ".join(line.split()[:3]) for line in lines[1:])])


def in_two_files():
    lines = ["rec 2 360 3600"]
    for lead, counts in zip(["MLII", "V5"], rec_counts().T):
        counts.astype("<i2").tofile(f"rec/{lead}.dat")
        checksum = counts.sum() % 65536
        lines.append(f"{lead}.dat 16 200(1024)/mV 11 1024 {counts[0]} {checksum} 0 {lead}")
    edit_header(lambda _: lines)


def in_two_segments():
    """The second one has twice the gain."""
    for name, part, times in (("s0", slice(0, 1500), 1), ("s1", slice(1500, None), 2)):
        write_rec("rec", counts=1024 + times * (rec_counts()[part] - 1024), record_name=name,
                  adc_gain=[200 * times] * 2)
    edit_header(lambda _: ["rec/2 2 360 3600", "s0 1500", "s1 2100"])
    Path("rec/RECORDS").write_text("rec\n")


def in_matlab():
    scipy.io.savemat("rec/rec.mat", {"val": rec_counts().T.astype(np.int16)}, format="4")
    edit_header(lambda lines: [line.replace("rec.dat 16", "rec.mat 16+24") for line in lines])


def in_a_variable_layout():
    """The first segment lacks V5."""
    in_two_segments()
    write_rec("rec", counts=rec_counts()[:1500, :1], record_name="s0", sig_name=["MLII"],
              units=["mV"], fmt=["16"], adc_gain=[200], baseline=[1024])
    Path("rec/all.hea").write_text(
        "all 2 360 0\n" + "".join(f"~ 0 200/mV 16 0 0 0 0 {name}\n" for name in ("MLII", "V5")))
    edit_header(lambda _: ["rec/3 2 360 3600", "all 0", "s0 1500", "s1 2100"])


FORMS = {
    "no checksums, no lead names": without_optional_fields,
    "no length": lambda: edit_header(lambda lines: ["rec 2 360", *lines[1:]]),
    "two files": in_two_files,
    "two segments": in_two_segments,
    "a variable layout": in_a_variable_layout,
    "MATLAB": in_matlab,
    "uV": lambda: write_rec("rec", units=["uV", "uV"], adc_gain=[.2, .2]),
    "V": lambda: write_rec("rec", units=["v", "mV"], adc_gain=[200_000, 1]),
    "MV": lambda: write_rec("rec", units=["MV", "mmHg"]),
    "another lead is invalid": lambda: write_rec(
        "rec", counts=rec_counts() * [1, 0] - [0, 32_768], units=["mV", "mmHg"]),
    "annotations at 128 Hz":
        lambda: write_rec("rec", marks=np.round(REC_PEAKS * 128 / 360).astype(int), mark_rate=128),
}


@pytest.mark.parametrize("form", FORMS)
def test_records_in_other_forms_are_read_as_the_plain_one(work, form):
    write_rec("rec")
    right = preprocess("other", DATA_DIR="rec")
    assert right.metadata["sample"].tolist() == REC_PEAKS.tolist()
    assert right.signals.max() == right.records.max() == ((rec_counts()[:, 0] - 1024) / 200).max(
        ).astype(np.float32)
    FORMS[form]()
    data = preprocess("other", DATA_DIR="rec")
    for part in ("labels", "metadata"):
        np.testing.assert_array_equal(getattr(data, part), getattr(right, part))
    for part in ("signals", "records"):
        np.testing.assert_allclose(getattr(data, part), getattr(right, part), atol=1e-6)
    np.testing.assert_allclose(data.annotations["sample"], REC_PEAKS, atol=2)


@pytest.mark.parametrize("unit, encoding", [("\u00b5V", "utf8"), ("\u03bcV", "utf8"),
                                            ("\u00b5V", "latin1")])
def test_microvolts_that_wfdb_would_read_as_volts_are_refused(work, unit, encoding):
    write_rec("rec", units=["uV", "uV"])
    header = Path("rec/rec.hea")
    header.write_bytes(header.read_text().replace("uV", unit).encode(encoding))
    with pytest.raises(SystemExit, match="rec: .*it has µV, write uV"):
        preprocess("other", DATA_DIR="rec")
    write_rec("rec")
    with header.open("ab") as file:   # in a comment it harms nothing
        file.write(f"# noise below 5 {unit}\n".encode(encoding))
    assert preprocess("other", DATA_DIR="rec").metadata["sample"].tolist() == REC_PEAKS.tolist()


def test_a_skewed_lead_is_refused_because_its_checksum_is_of_all_samples(work):
    write_rec("rec")
    replace(Path("rec/rec.hea"), b"rec.dat 16 ", b"rec.dat 16:5 ")
    with pytest.raises(SystemExit, match="^record rec: the samples contradict the checksums"):
        preprocess("other", DATA_DIR="rec")


def test_several_samples_a_frame_become_their_mean(work):
    write_rec("rec", marks=REC_PEAKS // 2)
    frames = rec_counts().reshape(1800, 2, 2).transpose(0, 2, 1)   # frame, lead, sample
    frames.astype("<i2").tofile("rec/rec.dat")
    edit_header(lambda lines: ["rec 2 180 1800", *(
        line.replace("rec.dat 16 ", "rec.dat 16x2 ") for line in lines[1:])])
    data = preprocess("other", DATA_DIR="rec", SAMPLING_RATE=180, SEGMENT=180, LEADS="MLII")
    mean = (frames[:, 0].mean(axis=1) - 1024) / 200
    np.testing.assert_allclose(data.records[:, 0], mean, atol=.01)   # of whole counts
    np.testing.assert_allclose(data.metadata["sample"], REC_PEAKS // 2, atol=1)


@pytest.mark.parametrize("mark, rate", [(3599, 360), (3600, 360), (3960, 360), (3599, 100)])
def test_a_mark_on_the_last_sample_or_right_after_it_is_too_near_to_the_end(
        work, capsys, mark, rate):
    write_rec("rec", marks=[*REC_PEAKS, mark])
    data = preprocess("other", DATA_DIR="rec", SAMPLING_RATE=rate, SEGMENT=rate)
    assert data.annotations["row"].tolist() == [0, 1, 2, 3, 4, -1]
    assert "1  beats in unreadable signal, or too near to an end" in capsys.readouterr().out


# ---- Leads ----

@pytest.mark.parametrize("name, usual", [
    ("MLII", "II"), ("ECG II", "II"), ("ii", "II"), ("Lead_II", "II"), (" mlii ", "II"),
    ("ECG1", "II"), ("ECG2", "2"), ("V1", "V1"), ("ecg v5", "V5"), ("ML-I", "I"), ("aVR", "AVR")])
def test_lead_names_have_a_usual_form(name, usual):
    assert stage.lead_name(name) == usual


@pytest.mark.parametrize("header, leads", [
    ("ECG II", "MLII"), ("ii", ["MLII"]), ("MLII", "II"), ("ECG1", "II"), ("MLII", ("ECG1",))])
def test_leads_are_found_by_their_usual_name(work, capsys, header, leads):
    write_rec("rec", sig_name=["V5", header])
    data = preprocess("other", DATA_DIR="rec", LEADS=leads)
    assert list(data.header.records[0]["leads"].values()) == [header]
    np.testing.assert_allclose(data.records.max(), (rec_counts()[:, 1].max() - 1024) / 200)
    assert "stands in" not in capsys.readouterr().out


def test_the_first_signal_stands_in_where_the_first_lead_alone_is_absent(work, capsys):
    write_rec("rec", sig_name=["V5", "V1"])
    data = preprocess("other", DATA_DIR="rec", LEADS=["MLII", "V1"])
    expected = (rec_counts() - 1024) / 200
    np.testing.assert_allclose(data.records, expected, atol=1e-6)
    assert data.header.records[0]["leads"] == {"MLII": "V5", "V1": "V1"}
    printed = capsys.readouterr().out
    assert "1  records whose first signal, V5, stands in for lead MLII" in printed
    assert "lack one of the leads" not in printed


@pytest.mark.parametrize("leads", [["V1", "MLII"], "V1 MLII"])
def test_several_leads_are_kept_together(database, leads):
    data = preprocess(RECORDS=["101", "118"], LEADS=leads)
    assert data.header.leads == ["V1", "MLII"]
    physical, fields = wfdb.rdsamp(f"{MITBIH}/118")
    assert fields["sig_name"] == ["MLII", "V1"]
    voltage = physical[:, ::-1].astype(np.float32)
    row = np.flatnonzero(data.record == "118")[3]
    sample = data.metadata["sample"][row]
    np.testing.assert_array_equal(data.signals[row], voltage[sample - 180:sample + 180].T)
    np.testing.assert_array_equal(data.records[7200:], voltage)


# ---- Names of records and patients ----

def test_records_in_subfolders_keep_the_folder_in_their_name(work):
    write_rec("other/a")
    write_rec("other/b")
    Path("other/RECORDS").write_text("a/rec\nb/rec\n")
    data = preprocess("other", DATA_DIR="other")
    names = ["a/rec", "b/rec"]
    assert [record["name"] for record in data.header.records] == names
    assert data.record.tolist() == data.patient.tolist() == np.repeat(names, 5).tolist()
    assert data.annotations["record"].tolist() == data.metadata["record"].tolist()


def test_the_data_may_lie_below_the_home_folder(work, monkeypatch):
    monkeypatch.setenv("HOME", str(work / "home"))
    write_rec("home/ecg")
    assert preprocess("other", DATA_DIR="~/ecg").metadata["sample"].tolist() == REC_PEAKS.tolist()


@pytest.mark.parametrize("content, names", [
    (None, ["101", "102", "114", "118"]), ("118\n101\n118\n", ["118", "101"])])
def test_the_list_names_the_records_and_their_order_else_all_are_read(
        database, work, content, names):
    path = work / MITBIH / "RECORDS"
    path.write_text(content) if content else path.unlink()
    assert [record["name"] for record in preprocess().header.records] == names


@pytest.mark.parametrize("records, read", [
    ([101, "114"], {"101", "114"}), (["114", "114"], {"114"}), ("118 101", {"101", "118"}),
    (("101", "114"), {"101", "114"}), (118, {"118"}), ("118", {"118"}),
    ("118, 101", {"101", "118"}), (np.array(["101", "114"]), {"101", "114"})])
def test_records_are_named_by_text_or_number_and_read_once(database, records, read):
    data = preprocess(RECORDS=records)
    assert set(data.record) == read and len(data.header.records) == len(read)


@pytest.mark.parametrize("name, comment, patient", [
    ("rec", "patient 7", "patient 7"), ("rec", "Patient", "rec"), ("rec", "", "rec"),
    ("118e06", "", "118"), ("sel100", "", "100"), ("rec", "made of record 118", "118"),
    ("202x", "patient 7", "patient 7"), ("a/202", "", "201"), ("rec", "record 999", "rec"),
    ("1180", "", "1180"), ("300", "", "300"), ("I01", "patient: 12", "patient 12")])
def test_the_patient_is_that_of_the_comment_or_of_the_original(name, comment, patient):
    record = SimpleNamespace(header=SimpleNamespace(comments=[comment]), rate=360)
    with changed(stage, NAME="other"):
        record = stage.describe(name, SimpleNamespace(
            record=record, leads={}, voltage=[], unreadable=np.zeros(0, bool)))
    assert (record["name"], record["patient"], record["subset"]) == (name, patient, "test")
