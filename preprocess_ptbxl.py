"""Gathers the 12-lead records of PTB-XL with their statements and superclasses.

Reads   DATA_DIR/ptbxl_database.csv, scp_statements.csv and the WFDB records of SAMPLING_RATE;
        fetched if missing (0.5 GB at 100 Hz, 2.6 GB at 500 Hz). LABELS = "header": .hea files
Writes  ptbxl_signals.npy    (n, 12, samples) float32 mV: 10 s, leads in the order of LEADS
        ptbxl_labels.npy     (n,) int64: one superclass per record, -1: none
        ptbxl_metadata.npy   (n,) structured: record, patient, fold,
                             superclasses (5,) int8 zeros and ones,
                             statements (71,) int8 likelihoods in percent, -1: not stated,
                             -2: unknown,
                             beats (40,) int16 positions of the R peaks, then -1
        ptbxl_header.npy     JSON text: kind ("records"), class names, statement names, tasks,
                             leads, sampling rate, SHA-256 of the three arrays
Takes   100 seconds for the 21,799 records at 100 Hz, plus the download.

The database: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset",
Scientific Data 7:154, 2020.
"""

import ast
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from preprocess_mitbih import (
    as_names,
    check_choice,
    data_folder,
    detect_beats,
    download,
    header_names,
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
# for them in public copies. TAB_ is any change of the T wave but inversion, LVH may be VCLVH: see
# MERGED_STATEMENTS in cross_dataset_validation.py.
SNOMED = """
SR       426783006 Normal NSR SNR
SBRAD    426177001 SB
STACH    427084000 STach
SARRH    427393009 SA
AFIB     164889003 195080001 426749004 282825002 314208002 AF
AFLT     164890007 AFL
SVTAC    426761007 713422000 251166008 233897008 SVT
PSVT     67198005
PAC      284470004 63593006 251164006 251170000 PAC SVPB
PVC      427172004 17338001 164884008 251182009 PVC VPB
BIGU     11157007 251173003 251168009
TRIGU    251180001
PACE     10370003 251266004 251268003
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
WPW      74390002 195060002
LVOLT    251146004 LQRSV
LVH      164873001 LVH
VCLVH    55827005
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
NST_     55930002
"""
SCP_COLUMNS = ["diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"]


# ---- Signals ----

def read_record(folder, name):
    """Folder and name of a record -> its k pieces of 10 s, (k, 12, samples) float32 mV; simulated.

    The last two pieces may overlap. `simulated`: whether the header says so. Raises ValueError with
    one sentence if the record is damaged or not as the constants say.
    """
    record = read_header(folder / name)
    if record.samples > 3600 * record.rate:
        raise ValueError("it is longer than an hour")
    wanted = as_names("LEADS", LEADS)
    columns = [*lead_columns(record.leads, wanted).values()]
    if len(columns) < len(wanted):
        raise ValueError(f"it has the leads {' '.join(record.leads)}, but lacks some of LEADS")
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
    with row_writer(path, (len(as_names("LEADS", LEADS)), 10 * SAMPLING_RATE)) as append:
        read = partial(read_record, data_folder(DATA_DIR))
        for row, (pieces, marked) in usable_records(names, read, BAD_RECORDS, left_out):
            append(pieces)
            rows.extend([row] * len(pieces))
            for piece in pieces:
                # find_beats gives at most 40 in 10 s: none closer than 0.25 s to another
                peaks = detect_beats(piece, SAMPLING_RATE)
                beats.append(np.pad(peaks, (0, 40 - len(peaks)), constant_values=-1))
            simulated |= marked
    return rows, beats, simulated


# ---- Labels ----

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
    folder = data_folder(DATA_DIR)
    try:
        table = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id").sort_index()
        scp = pd.read_csv(folder / "scp_statements.csv", index_col=0)[SCP_COLUMNS].sort_index()
        table = table.astype({"patient_id": int, "strat_fold": int})
        table["filename"] = table["filename_lr" if SAMPLING_RATE == 100 else "filename_hr"]
        table["codes"] = table["scp_codes"].map(ast.literal_eval)   # {"NORM": 100.0, "SR": 0.0}
        likelihoods = [value for codes in table["codes"] for value in codes.values()]
        if not (table.index.is_unique and table["filename"].notna().all()
                and table["strat_fold"].isin(range(1, 11)).all()
                and 0 <= min(likelihoods) <= max(likelihoods) <= 100):
            raise ValueError("ecg_id twice, no filename, strat_fold not 1 to 10, or likelihood not "
                             "0 to 100")
    except FileNotFoundError as error:
        raise SystemExit(f"DATA_DIR: no {error.filename} in {Path.cwd()}. Put PTB-XL there, set "
                         "DOWNLOAD = True, or see the scripts run on simulated data: "
                         "python tests/demo.py") from None
    except Exception as error:   # pandas raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())
        raise SystemExit(f"{folder} has no intact ptbxl_database.csv and scp_statements.csv "
                         f"({reason}). Fetch PTB-XL's own files again") from error
    return table, scp


def read_headers(left_out):
    """Comments Dx in the headers of DATA_DIR -> tables as from read_csv_files.

    All records are fold 0: test data. Sinus rhythm and nothing else counts as NORM. HR records are
    PTB-XL's own and are skipped. Statements are unknown (-2) if the record has no Dx, or if no
    record of its source has them. The source is the letters that begin the record's name.
    """
    known = [line.split() for line in SNOMED.strip().splitlines()]
    statement_of = {code: name for name, *codes in known for code in codes}
    names = ["NORM", *(name for name, *_ in known)]
    folder = data_folder(DATA_DIR)
    rows = {}
    used = defaultdict(set)
    for name in header_names(folder):
        stem = Path(name).name
        if re.fullmatch(r"HR\d{5}", stem):
            left_out["records that are PTB-XL's own (HR)"] += 1
            continue
        text = (folder / f"{name}.hea").read_text(errors="replace")
        codes = re.findall(r'[^,;"\s]+', "".join(re.findall(r"(?im)^# *Dx *:?(.*)$", text)))
        codes = {statement_of.get(code, code): 100 for code in codes
                 if code.lower() not in ("unknown", "nan", "none")}
        if not codes:
            left_out["records without a diagnosis (Dx)"] += 1
        if list(codes) == ["SR"]:
            codes["NORM"] = 100
        source = re.match("[A-Za-z]*", stem)[0]
        used[source].update(codes)
        rows[name] = {"filename": name, "patient_id": name, "codes": codes, "strat_fold": 0,
                      "source": source}
    if not rows:
        raise SystemExit(f"DATA_DIR: {folder} has no .hea file, or none but HR records")
    for row in rows.values():
        unknown = {*names} - used[row["source"]] if row["codes"] else names
        row["codes"] = dict.fromkeys(unknown, -2) | row["codes"]
    scp = pd.DataFrame(columns=SCP_COLUMNS, index=names)
    scp.loc["NORM", ["diagnostic", "diagnostic_class"]] = [1, "NORM"]
    return pd.DataFrame.from_dict(rows, orient="index"), scp


def make_metadata(table, scp, left_out):
    """Tables of the records and of the statements -> metadata and labels of all records."""
    left_out.update(f"codes without a statement {code!r}" for codes in table["codes"]
                    for code in codes if code not in scp.index)
    statements = pd.DataFrame(list(table["codes"]), columns=scp.index)
    statements = statements.fillna(-1).round().to_numpy(np.int8)   # -1: not stated
    likelihoods = superclass_matrix(statements, scp)
    records = table.index.to_numpy(str)
    patients = table["patient_id"].to_numpy(str)
    metadata = np.zeros(len(table), [
        ("record", records.dtype), ("patient", patients.dtype), ("fold", "i1"),
        ("superclasses", "i1", (len(SUPERCLASSES),)),
        ("statements", "i1", statements.shape[1:]), ("beats", "<i2", (40,))])
    metadata["record"] = records
    metadata["patient"] = patients
    metadata["fold"] = table["strat_fold"]
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
    if DOWNLOAD and NAME == "ptbxl" and LABELS == "csv":
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
            "kind": "records", "class_names": SUPERCLASSES, "leads": as_names("LEADS", LEADS),
            "sampling_rate": SAMPLING_RATE,
            "statement_names": list(scp.index), "tasks": benchmark_tasks(scp),
            "simulated": simulated})

    counts = pd.DataFrame(metadata["superclasses"], columns=SUPERCLASSES).assign(records=1)
    print("\n" + counts.groupby(metadata["fold"]).sum().T.to_string())
    print_notes(left_out, simulated)
    print(f"Wrote {NAME}_*.npy: {', '.join(parts)}")


if __name__ == "__main__":
    main()
