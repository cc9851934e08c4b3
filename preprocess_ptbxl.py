"""Gathers the 12-lead records of PTB-XL with their statements and superclasses.

Reads   DATA_DIR/ptbxl_database.csv, scp_statements.csv and the WFDB records of SAMPLING_RATE;
        fetched if missing (0.5 GB at 100 Hz, 2.6 GB at 500 Hz)
Writes  ptbxl_signals.npy    (n, 12, samples) float32 mV: 10 s, leads in the order of LEADS
        ptbxl_labels.npy     (n,) int64: one superclass per record, -1: none
        ptbxl_metadata.npy   (n,) structured: record, patient, fold, age, sex,
                             superclasses (5,) int8 zeros and ones,
                             statements (71,) int8 likelihoods in percent, -1: not stated,
                             beats (40,) int16 positions of the R peaks, then -1
        ptbxl_header.npy     JSON text: kind ("records"), class names, statement names, tasks,
                             leads, sampling rate, SHA-256 of the three arrays
Takes   90 seconds for the 21,799 records at 100 Hz, plus the download.

The database: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset",
Scientific Data 7:154, 2020.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from preprocess_mitbih import (
    check_choice,
    data_folder,
    detect_beats,
    download,
    lead_columns,
    new_files,
    print_notes,
    read_header,
    read_signals,
    resample,
    row_writer,
    save_array,
    save_header,
    usable_records,
)

# data
NAME = "ptbxl"            # prefix of the files; see LABELS for another database
DATA_DIR = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"
SAMPLING_RATE = 100       # Hz: 100 (1 GB of signals) or 500 (5.2 GB)
LABELS = "csv"            # "csv": PTB-XL's two files; "header": as in the CinC Challenges, all test
BAD_RECORDS = "stop"      # "stop" the run at a damaged record, or "skip" and count it

# download
DOWNLOAD = True           # fetch the missing files of the database
BASE_URL = "https://physionet-open.s3.amazonaws.com/"   # or "https://physionet.org/files/"

LEADS = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
SUPERCLASSES = ["NORM", "MI", "STTC", "CD", "HYP"]
# Statement, SNOMED CT codes of the CinC Challenges that name the same, and abbreviations that stand
# for them in public copies.
SNOMED = """
SR       426783006 Normal NSR SNR
SBRAD    426177001 SB
STACH    427084000 STach
SARRH    427393009 SA
AFIB     164889003 AF
AFLT     164890007 AFL
SVTAC    426761007 713422000 SVT
PSVT     67198005
PAC      284470004 63593006 PAC SVPB
PVC      427172004 17338001 164884008 PVC VPB
BIGU     11157007
TRIGU    251180001
PACE     10370003
CLBBB    164909002 733534002 LBBB CLBBB
CRBBB    59118001 713427006 RBBB CRBBB
ILBBB    251120003
IRBBB    713426002 IRBBB
IVCD     698252002
LAFB     445118002 LAnFB
LPFB     445211001
1AVB     270492004 IAVB I-AVB
2AVB     195042002 54016002 426183003
3AVB     27885002
WPW      74390002
LVOLT    251146004 LQRSV
LVH      164873001 LVH
RVH      89792004
LAO/LAE  67741000119109 446813000
RAO/RAE  446358003
LNGQT    111975006 LQT
LPR      164947007 LPR
QWAVE    164917005 QAb
TAB_     164934002 TAb
INVT     59931005 TInv
STE_     164931005 STE
STD_     429622005 STD
"""
SCP_COLUMNS = ["diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"]


# ---- Signals ----

def read_record(name):
    """WFDB record -> (k, 12, samples) float32 mV, its pieces of 10 s, and whether it is simulated.

    wfdb spends fifty times longer on the header than on the samples. PTB-XL's headers have one
    form: if the header written for these samples equals the file to the letter, then format,
    gain, leads, length and checksums are right. Any other record is read by wfdb.
    Raises ValueError with one sentence if the record is damaged or not as the constants say.
    """
    path = data_folder(DATA_DIR) / name
    try:
        adc = np.fromfile(f"{path}.dat", "<i2")
        header = Path(f"{path}.hea").read_text(errors="replace")
    except OSError:
        return read_any_form(path)
    valid = len(adc) == 120 * SAMPLING_RATE and adc.min() > -32768   # marks an invalid sample
    if not valid or header != usual_header(path.name, adc.reshape(-1, 12)):
        return read_any_form(path)
    return (adc.reshape(-1, 12).T[None] / 1000.0).astype(np.float32), False


def usual_header(name, adc):
    """(samples, 12) int16 -> the text of PTB-XL's header for these samples."""
    checksums = adc.sum(axis=0, dtype=np.int64) % 65536
    lines = [f"{name} 12 {SAMPLING_RATE} {len(adc)}"]
    for lead, first, checksum in zip(LEADS, adc[0], checksums):
        lines.append(f"{name}.dat 16 1000.0(0)/mV 16 0 {first} {checksum} 0 {lead}")
    return "\n".join(lines) + "\n"


def read_any_form(path):
    """WFDB record of any form and rate, up to an hour -> pieces of 10 s, whether simulated.

    The last two pieces may overlap.
    """
    record = read_header(path)
    if record.samples > 3600 * record.rate:
        raise ValueError("it is longer than an hour")
    columns = [*lead_columns(record.leads, LEADS).values()]
    if len(columns) < len(LEADS):
        raise ValueError(f"it lacks some of the 12 leads ({', '.join(record.leads)})")
    [(*_, signals)] = read_signals(record, columns)   # in one piece
    invalid = np.isnan(signals).sum()
    if invalid:
        raise ValueError(f"samples of its chosen leads are invalid ({invalid} NaN)")
    signals = resample(signals, record.rate, SAMPLING_RATE).astype(np.float32)
    length = 10 * SAMPLING_RATE
    last = signals.shape[1] - length
    if last < 0:
        raise ValueError("it is shorter than 10 s")
    starts = np.unique([*range(0, last + 1, length), last])
    pieces = np.stack([signals[:, start:start + length] for start in starts])
    return pieces, "simulated" in str(record.header.comments)


def write_signals(names, path, left_out):
    """Writes the signals of all records -> record's number and beats of each row, simulated."""
    rows = []
    beats = []
    simulated = False
    with row_writer(path, (len(LEADS), 10 * SAMPLING_RATE)) as append:
        for row, (pieces, marked) in usable_records(names, read_record, BAD_RECORDS, left_out):
            append(pieces)
            rows.extend([row] * len(pieces))
            for piece in pieces:
                # at most 40 in 10 s: find_beats gives none closer than 0.25 s to another
                peaks = detect_beats(piece, SAMPLING_RATE)[:40]
                beats.append(np.pad(peaks, (0, 40 - len(peaks)), constant_values=-1))
            simulated |= marked
    return rows, beats, simulated


# ---- Labels ----

def read_table(name, columns, index):
    """CSV file of DATA_DIR -> pandas table sorted by its index, with at least these columns."""
    path = data_folder(DATA_DIR) / name
    try:
        table = pd.read_csv(path, index_col=index).sort_index()
    except FileNotFoundError:
        raise SystemExit(f"{path} is not in {Path.cwd()}. Put PTB-XL there, set DOWNLOAD = True, "
                         "or see the scripts run on simulated data: python tests/demo.py") from None
    except Exception as error:   # pandas raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())
        raise SystemExit(f"{path} cannot be read as a CSV file ({reason})") from error
    missing = sorted(set(columns) - set(table.columns))
    if missing or table.empty:
        raise SystemExit(f"{path} lacks rows, or columns {missing}: expected PTB-XL's own file")
    return table


def parse_codes(text, ecg_id):
    """'{"NORM": 100.0, "SR": 0.0}' -> dict of statement -> likelihood in percent, 0: unknown."""
    try:
        codes = {str(code): float(value) for code, value in ast.literal_eval(text).items()}
        if all(0 <= likelihood <= 100 for likelihood in codes.values()):
            return codes
    except Exception:   # literal_eval raises errors of many kinds; the sentence is about them all
        pass
    raise SystemExit(f"ptbxl_database.csv, ecg_id {ecg_id}: scp_codes {str(text)[:60]!r} is not "
                     "a dict of statement to likelihood from 0 to 100")


def superclass_matrix(matrix, scp):
    """(n, statements) likelihoods, table of the statements -> (n, 5) int8, -1: not stated.

    As in the reference benchmark (Strodthoff et al. 2020) every statement counts, whatever its
    likelihood. A superclass has the highest likelihood of its statements.
    """
    superclass_of = scp["diagnostic_class"].where(scp["diagnostic"] == 1)
    return np.transpose([matrix[:, superclass_of == name].max(axis=1, initial=-1)
                         for name in SUPERCLASSES])


def benchmark_tasks(scp):
    """Table of the statements -> dict of task -> dict of class -> its statements.

    The six tasks of the reference benchmark (Strodthoff et al. 2020).
    """
    scp = scp.assign(name=scp.index)
    diagnostic = scp[scp["diagnostic"] == 1]
    tasks = {
        "all": scp["name"],
        "diagnostic": diagnostic["name"],
        "subdiagnostic": diagnostic["diagnostic_subclass"],
        "superdiagnostic": diagnostic["diagnostic_class"],
        "form": scp["name"][scp["form"] == 1],
        "rhythm": scp["name"][scp["rhythm"] == 1],
    }
    return {task: classes.index.to_series().groupby(classes).agg(list).to_dict()
            for task, classes in tasks.items()}


def single_labels(likelihoods):
    """(n, 5) superclass likelihoods -> (n,) int64: the most likely one, or -1.

    For a record with several superclasses this is a choice, not the truth. MI goes before CD, HYP,
    STTC and NORM if they are equally likely.
    """
    order = np.array([SUPERCLASSES.index(name) for name in ("MI", "CD", "HYP", "STTC", "NORM")])
    labels = order[likelihoods[:, order].argmax(axis=1)]   # argmax takes the first of equals
    return np.where(likelihoods.max(axis=1) < 0, -1, labels)


def read_csv_files():
    """PTB-XL's two files -> tables of the records and of the statements."""
    table = read_table("ptbxl_database.csv", ["patient_id", "age", "sex", "scp_codes", "strat_fold",
                                              "filename_lr", "filename_hr"], "ecg_id")
    scp = read_table("scp_statements.csv", SCP_COLUMNS, 0)
    for column in ("patient_id", "strat_fold"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    if not (table.index.is_unique and table["strat_fold"].isin(range(1, 11)).all()
            and np.isfinite(table["patient_id"]).all()
            and table[["filename_lr", "filename_hr"]].notna().all(axis=None)):
        raise SystemExit("ptbxl_database.csv: expected each ecg_id once, and in every row a "
                         "patient_id, file names and a strat_fold from 1 to 10")
    table["codes"] = [parse_codes(text, ecg_id) for ecg_id, text in table["scp_codes"].items()]
    table["filename"] = table["filename_lr" if SAMPLING_RATE == 100 else "filename_hr"]
    table["patient_id"] = table["patient_id"].astype(int)
    return table, scp


def read_headers(left_out):
    """Comments Dx, Age and Sex in the headers of DATA_DIR -> tables as from read_csv_files.

    All records are fold 0: test data. Sinus rhythm and nothing else counts as NORM. HR records are
    PTB-XL's own.
    """
    known = [line.split() for line in SNOMED.strip().splitlines()]
    statement_of = {code: name for name, *codes in known for code in codes}
    folder = data_folder(DATA_DIR)
    rows = {}
    for path in sorted(folder.rglob("*.hea")):
        if re.fullmatch(r"HR\d{5}", path.stem):
            left_out["records that are PTB-XL's own (HR)"] += 1
            continue
        text = path.read_text(errors="replace")
        fields = dict(re.findall(r"^# *(Dx|Age|Sex): *(.*)$", text, re.M))
        codes = re.findall(r"[^,\s]+", fields.get("Dx", ""))
        codes = {statement_of.get(code, code): 100 for code in codes}
        if list(codes) == ["SR"]:
            codes["NORM"] = 100
        name = str(path.relative_to(folder).with_suffix(""))
        rows[name] = {"filename": name, "patient_id": name, "codes": codes, "strat_fold": 0,
                      "age": fields.get("Age"), "sex": fields.get("Sex")}
    if not rows:
        raise SystemExit(f"{folder} has no .hea file")
    scp = pd.DataFrame(columns=SCP_COLUMNS, index=["NORM", *(name for name, *_ in known)])
    scp.loc["NORM", ["diagnostic", "diagnostic_class"]] = [1, "NORM"]
    return pd.DataFrame.from_dict(rows, orient="index"), scp


def make_metadata(table, scp, left_out):
    """Tables of the records and of the statements -> metadata and labels of all records."""
    left_out.update(f"unknown statements {code!r}" for codes in table["codes"]
                    for code in codes if code not in scp.index)
    statements = pd.DataFrame(list(table["codes"]), columns=scp.index)
    statements = statements.fillna(-1).round().to_numpy(np.int8)   # -1: not stated
    likelihoods = superclass_matrix(statements, scp)
    records = table.index.to_numpy(str)
    patients = table["patient_id"].to_numpy(str)
    metadata = np.zeros(len(table), [
        ("record", records.dtype), ("patient", patients.dtype), ("fold", "i1"), ("age", "<f4"),
        ("sex", "i1"), ("superclasses", "i1", (len(SUPERCLASSES),)),
        ("statements", "i1", statements.shape[1:]), ("beats", "<i2", (40,))])
    metadata["record"] = records
    metadata["patient"] = patients
    metadata["fold"] = table["strat_fold"]
    metadata["age"] = pd.to_numeric(table["age"], errors="coerce")   # years; 300: more than 89
    sex = table["sex"].astype(str).str.lower().str[0]
    metadata["sex"] = sex.map({"0": 0, "m": 0, "1": 1, "f": 1}).fillna(-1)
    metadata["superclasses"] = likelihoods >= 0
    metadata["statements"] = statements
    return metadata, single_labels(likelihoods)


# ---- Main ----

def main():
    check_choice("SAMPLING_RATE", SAMPLING_RATE, [100, 500])
    check_choice("LABELS", LABELS, ["csv", "header"])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    if NAME == "mitbih":
        raise SystemExit("NAME = 'mitbih': expected another name, this one has beats")
    if DOWNLOAD and NAME == "ptbxl":
        folder = f"records{SAMPLING_RATE}/"
        download(data_folder(DATA_DIR), f"{BASE_URL}ptb-xl/1.0.3/", f"{folder}*/*.hea",
                 (folder, "ptbxl_database.csv", "scp_statements.csv"))
    left_out = Counter()
    table, scp = read_csv_files() if LABELS == "csv" else read_headers(left_out)
    metadata, labels = make_metadata(table, scp, left_out)
    parts = ["signals", "labels", "metadata", "header"]
    with new_files(*(f"{NAME}_{part}.npy" for part in parts)) as paths:
        rows, beats, simulated = write_signals(table["filename"].astype(str), paths[0], left_out)
        metadata = metadata[rows]
        metadata["beats"] = beats
        save_array(paths[1], labels[rows])
        save_array(paths[2], metadata)
        save_header(dict(zip(parts, paths)), {
            "kind": "records", "class_names": SUPERCLASSES, "leads": LEADS,
            "sampling_rate": SAMPLING_RATE,
            "statement_names": list(scp.index), "tasks": benchmark_tasks(scp),
            "simulated": simulated})

    counts = pd.DataFrame(metadata["superclasses"], columns=SUPERCLASSES).assign(records=1)
    print("\n" + counts.groupby(metadata["fold"]).sum().T.to_string())
    print_notes(left_out, simulated)
    print(f"Wrote {NAME}_*.npy: {', '.join(parts)}")


if __name__ == "__main__":
    main()
