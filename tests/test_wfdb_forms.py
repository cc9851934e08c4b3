"""preprocess_mitbih.py on other WFDB records: formats, units, annotations, leads, names."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import simulate
import wfdb
from conftest import MITBIH
from harness import changed, preprocess, replace, rows_of_marks

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


def edit_record_line(line):
    edit_header(lambda lines: [line, *lines[1:]])


# ---- Formats, units, dates ----

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


def without_computed_checksums():
    edit_header(lambda lines: [
        re.sub(r"\d+( 0 \w+)$", r"0\1", line) if line.startswith("rec.dat") else line
        for line in lines])


def in_frames(frames, rate, per_frame, mark_rate=360):
    """Frames of so many samples of each lead; a lead with fewer has every second sample."""
    write_rec("rec", mark_rate=mark_rate)
    most = max(per_frame)
    leads = [rec_counts()[::most // size, lead] for lead, size in enumerate(per_frame)]
    blocks = [counts.reshape(frames, size) for counts, size in zip(leads, per_frame)]
    np.hstack(blocks).astype("<i2").tofile("rec/rec.dat")
    edit_header(lambda _: [f"rec 2 {rate} {frames}", *(
        f"rec.dat 16x{size} 200(1024)/mV 16 0 {counts[0]} {counts.sum() % 65536} 0 {lead}"
        for size, counts, lead in zip(per_frame, leads, ("MLII", "V5")))])


FORMS = {
    "no checksums, no lead names": without_optional_fields,
    "no length": lambda: edit_record_line("rec 2 360"),
    "a date of CinC 2017": lambda: edit_record_line("rec 2 360 3600 03:05:11 2014-05-08"),
    "a date of CinC 2020": lambda: edit_record_line("rec 2 360 3600 05-May-2020 12:31:42"),
    "an impossible date": lambda: edit_record_line("rec 2 360 3600 12:31 31/02/1990"),
    "a date alone": lambda: edit_record_line("rec 2 360 3600 2014/05/08"),
    "a counter frequency": lambda: edit_record_line("rec 2 360/128(7) 3600 1 of 2"),
    "a signal file for a name": lambda: edit_record_line("rec.mat 2 360 3600 05-May-2020"),
    "no checksums computed": without_computed_checksums,
    "frames of 1 s": lambda: in_frames(10, 1, (360, 360)),
    "one frame of 10 s": lambda: in_frames(1, "0.1", (3600, 3600)),
    "90 frames of 4 samples": lambda: in_frames(900, 90, (4, 4)),
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


@pytest.mark.parametrize("gain", [[4880, 4880], [200, 4880]])
def test_a_gain_of_4880_is_in_doubt_and_refused(work, gain):
    write_rec("rec", adc_gain=gain)
    with pytest.raises(SystemExit, match="^record rec: its gain is 4880 per mV, where later "
                                         "releases of Georgia say 1000. Repair or replace it"):
        preprocess("other", DATA_DIR="rec")


def test_a_checksum_of_0_is_a_contradiction_beside_another_one(work):
    write_rec("rec")
    edit_header(lambda lines: [*lines[:2], re.sub(r"\d+ 0 V5$", "0 0 V5", lines[2])])
    with pytest.raises(SystemExit, match="^record rec: the samples contradict the checksums"):
        preprocess("other", DATA_DIR="rec", LEADS="V5")


def test_a_skewed_lead_is_refused_because_its_checksum_is_of_all_samples(work):
    write_rec("rec")
    replace(Path("rec/rec.hea"), b"rec.dat 16 ", b"rec.dat 16:5 ")
    with pytest.raises(SystemExit, match="^record rec: the samples contradict the checksums"):
        preprocess("other", DATA_DIR="rec")


# ---- Frames of several samples ----

@pytest.mark.parametrize("per_frame", [(4, 2), (2, 4)])
@pytest.mark.parametrize("leads", ["MLII V5", "V5 MLII", "MLII", "V5"])
def test_a_lead_with_fewer_samples_per_frame_is_resampled_to_the_others(work, per_frame, leads):
    write_rec("rec")
    right = preprocess("other", DATA_DIR="rec", LEADS=leads)
    in_frames(900, 90, per_frame)
    data = preprocess("other", DATA_DIR="rec", LEADS=leads)
    np.testing.assert_array_equal(data.metadata["sample"], REC_PEAKS)
    np.testing.assert_allclose(data.records, right.records, atol=.01)   # mV, of a pulse of 1 mV
    assert data.header.records[0]["rate"] == 360 and data.records.shape == right.records.shape


def test_annotations_without_a_rate_count_in_frames(work):
    in_frames(1800, 180, (2, 2), mark_rate=None)
    wfdb.wrann("rec", "atr", REC_PEAKS // 2, ["N"] * 5, write_dir="rec")
    data = preprocess("other", DATA_DIR="rec")
    np.testing.assert_array_equal(data.annotations["sample"], REC_PEAKS // 2 * 2)
    np.testing.assert_array_equal(data.metadata["sample"], REC_PEAKS)


def test_the_checksums_of_frames_are_compared(work):
    in_frames(900, 90, (4, 2))
    content = bytearray(Path("rec/rec.dat").read_bytes())
    content[-2] ^= 1   # the last sample of V5
    Path("rec/rec.dat").write_bytes(content)
    assert len(preprocess("other", DATA_DIR="rec", LEADS="MLII").labels) == 5
    with pytest.raises(SystemExit, match="^record rec: the samples contradict the checksums"):
        preprocess("other", DATA_DIR="rec", LEADS="V5")


# ---- Annotations ----

@pytest.mark.parametrize("mark_rate", [None, 360])
@pytest.mark.parametrize("note", ["## noisy", "noise ## V5", "## time resolution was bad ## "])
@pytest.mark.parametrize("sample", [1, 299, 900, 1156, 2599])   # 0, 256, 1699 after the last beat
def test_a_note_may_have_number_signs(work, mark_rate, note, sample):
    write_rec("rec")
    marks = sorted([(300, "N", ""), (900, "!", ""), (900, "N", ""), (sample, '"', note)],
                   key=lambda mark: mark[0])
    samples, symbols, notes = zip(*marks)
    wfdb.wrann("rec", "atr", np.array(samples), list(symbols), aux_note=list(notes),
               fs=mark_rate, write_dir="rec")
    data = preprocess("other", DATA_DIR="rec")
    np.testing.assert_array_equal(data.metadata["sample"], [300, 900])
    np.testing.assert_array_equal(data.annotations["sample"], samples)
    assert data.annotations["aux"].tolist() == [re.sub("^## ", "#  ", text)[:8] for text in notes]


def test_a_note_at_sample_0_may_have_a_subtype(work):   # wfdb alone never returns
    write_rec("rec")
    wfdb.wrann("rec", "atr", np.array([0, 900]), ['"', "N"], aux_note=["## noisy", ""],
               subtype=np.array([1, 0]), write_dir="rec")
    assert preprocess("other", DATA_DIR="rec").metadata["sample"].tolist() == [900]


@pytest.mark.parametrize("mark, rate", [(3599, 360), (3600, 360), (3960, 360), (3599, 100)])
def test_a_mark_on_the_last_sample_or_right_after_it_is_too_near_to_the_end(
        work, capsys, mark, rate):
    write_rec("rec", marks=[*REC_PEAKS, mark])
    data = preprocess("other", DATA_DIR="rec", SAMPLING_RATE=rate, SEGMENT=rate)
    assert rows_of_marks(data).tolist() == [0, 1, 2, 3, 4, -1]
    assert "1  beats in unreadable signal, or too near to an end" in capsys.readouterr().out


# ---- Leads ----

@pytest.mark.parametrize("usual, names", [
    ("I", ["Lead 1", "lead I", "DI", "D1", "ML-I", "ECG I", "lead_1"]),
    ("II", ["MLII", "ECG II", "ii", "Lead_II", " mlii ", "DII", "D2", "ECG Lead 2", "EKG-II"]),
    ("III", ["iii", "D3", "Lead III", "ECG lead 3"]),
    ("AVR", ["aVR", "lead aVR", "ecg_avr"]),
    ("V1", ["V1", "v1", "Lead V1"]), ("V5", ["ecg v5"]), ("V3R", ["V3r"]),
    *((name, [name, name.lower()]) for name in (   # these tell no position
        "ECG1", "ECG2", "ECG 1", "CH1", "1", "2", "ECG", "EKG", "CHANNEL 1", "LEAD", "MCL1"))])
def test_lead_names_have_a_usual_form(usual, names):
    assert {stage.lead_name(name) for name in names} == {usual}


@pytest.mark.parametrize("header, leads", [
    ("ECG II", "MLII"), ("ii", ["MLII"]), ("MLII", "II"), ("DII", ("II",)), ("Lead 2", "MLII"),
    ("CH2", "CH2"), ("ecg2", ["ECG2"]), ("2", 2), ("Lead 1", "I")])
def test_leads_are_found_by_their_usual_name(work, capsys, header, leads):
    write_rec("rec", sig_name=["V5", header])
    data = preprocess("other", DATA_DIR="rec", LEADS=leads)
    assert data.header.records[0]["leads"] == [header]
    np.testing.assert_allclose(data.records.max(), (rec_counts()[:, 1].max() - 1024) / 200)
    assert "stands in" not in capsys.readouterr().out
    assert stage.lead_note(data, data.leads, ["rec"]) == ""


@pytest.mark.parametrize("name", ["CH1", "ECG1", "ECG", "1", "Channel 1", "Lead 1", "V5"])
def test_the_first_signal_stands_in_for_the_first_lead_by_its_own_name(work, capsys, name):
    write_rec("rec", sig_name=[name, "V1"])
    data = preprocess("other", DATA_DIR="rec", LEADS=["MLII", "V1"])
    expected = (rec_counts() - 1024) / 200
    np.testing.assert_allclose(data.records, expected, atol=1e-6)
    assert data.header.records[0]["leads"] == [name, "V1"]
    printed = capsys.readouterr().out
    assert f"\n        1  records in which {name} stands in for MLII\n" in printed
    assert "lack one of the leads" not in printed
    for wanted in (["II", "V1"], ["II"]):
        assert stage.lead_note(data, wanted, ["rec"]) == f"; {name} stands in for II"
    for wanted, records in ((["V1"], ["rec"]), (["II"], ["another"])):
        assert stage.lead_note(data, wanted, records) == ""


@pytest.mark.parametrize("leads, columns", [
    ("ECG", [0]), (["ECG", "ECG"], [0, 1]), ("ecg ECG ecg", [0, 1, None])])
def test_signals_of_one_name_are_taken_in_their_order(work, capsys, leads, columns):
    write_rec("rec", sig_name=["ECG", "V5"])
    replace(Path("rec/rec.hea"), b"V5", b"ECG")   # wfdb does not write it
    data = preprocess("other", DATA_DIR="rec", LEADS=leads)
    voltage = np.column_stack([(rec_counts() - 1024) / 200, np.zeros(3600)])
    expected = voltage[:, [-1 if column is None else column for column in columns]]
    np.testing.assert_allclose(data.records, expected, atol=1e-6)
    assert data.header.records[0]["leads"] == [
        None if column is None else "ECG" for column in columns]
    assert "stands in" not in capsys.readouterr().out


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

@pytest.mark.parametrize("lists", [
    {"RECORDS": "a/rec\nb/rec\n"}, {}, {"a/RECORDS": "rec\n", "b/RECORDS": "rec\n"}])
def test_records_in_subfolders_keep_the_folder_in_their_name(work, lists):
    write_rec("other/a")
    write_rec("elsewhere")
    Path("other/b").symlink_to(work / "elsewhere")
    for name, content in lists.items():
        Path("other", name).write_text(content)
    data = preprocess("other", DATA_DIR="other")
    names = ["a/rec", "b/rec"]
    assert [record["name"] for record in data.header.records] == names
    assert data.record.tolist() == data.patient.tolist() == np.repeat(names, 5).tolist()
    assert data.annotations["record"].tolist() == data.metadata["record"].tolist()


@pytest.mark.parametrize("linked", [False, True])
def test_the_only_database_one_folder_deeper_is_meant(work, linked):
    write_rec("elsewhere" if linked else "data/deeper")
    if linked:
        Path("data").mkdir()
        Path("data/deeper").symlink_to(work / "elsewhere")
    Path("data/deeper/RECORDS").write_text("rec\n")
    data = preprocess("other", DATA_DIR="data")
    assert [record["name"] for record in data.header.records] == ["rec"]
    np.testing.assert_array_equal(data.metadata["sample"], REC_PEAKS)


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


@pytest.mark.parametrize("patient, name, comments", [
    ("patient 7", "rec", ["patient 7"]), ("patient 7", "202x", ["Patient: 7"]),
    ("patient 12", "I01", ["patient: 12"]), ("patient x", "rec", ["Patient ID: x"]),
    ("patient 3", "rec", ["Patient number 3"]), ("patient 7", "rec", ["Patient no. 7"]),
    ("patient 9-b", "101", ["Age: 60", "patient id: 9-b, female"]),
    ("118", "118e06", []), ("118", "118e_6", []), ("119", "nstdb/119e24", []),
    ("100", "sel100", []), ("201", "sel202", []), ("118", "rec", ["made of record 118"]),
    ("201", "rec", ["made of record 202"]),
    *((name, name, []) for name in (
        "rec", "101", "300", "a/202", "my_201_x", "1180", "202x", "sel300", "sel1000", "e0118",
        "118e", "1118e06")),
    *(("rec", "rec", [comment]) for comment in (
        "", "Patient", "Patient ID:", "Patient ID: unknown", "record 999", "record 1180",
        "patient: 68 years", "Patient: 68 F", "patient, 68-year-old male", "Patient age 68",
        "100 patients", "three patients: 7 records"))])
def test_the_patient_is_that_of_the_comment_or_of_the_original(patient, name, comments):
    record = SimpleNamespace(header=SimpleNamespace(comments=comments), rate=360)
    with changed(stage, NAME="other"):
        record = stage.describe(name, SimpleNamespace(
            record=record, leads=[], voltage=[], unreadable=np.zeros(0, bool)))
    assert (record["name"], record["patient"], record["subset"]) == (name, patient, "test")


@pytest.mark.parametrize("name, patient", [("101", "101"), ("201", "201"), ("202", "201")])
def test_the_patients_of_mitbih_are_its_records_but_for_one(name, patient):
    assert stage.patient_of(name, ["69 M 1085 1629 x1", "Aldomet, Inderal"]) == patient
