"""Gathers the 12-lead records of PTB-XL and their five diagnostic superclasses.

Reads   DATA_DIR/ptbxl_database.csv, scp_statements.csv and the WFDB records of SAMPLING_RATE;
        fetched if missing (0.5 GB at 100 Hz, 2.6 GB at 500 Hz)
Writes  ptbxl_signals.npy    (n, 12, samples) float32 mV: 10 s, leads in the order of LEADS
        ptbxl_labels.npy     (n,) int64: one superclass a record, -1 for a record with none
        ptbxl_metadata.npy   (n,) structured: ecg_id, patient, fold, age, sex,
                             superclasses (5,) int8 zeros and ones,
                             statements (71,) int8 likelihoods of all SCP statements
        ptbxl_header.npy     JSON text: class names, statement names, leads, sampling rate,
                             settings, versions, SHA-256 of the three arrays
Takes   10 seconds for the 21,799 records at 100 Hz, beside the download.

The database: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset",
Scientific Data 7:154, 2020.
"""

import ast
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from preprocess_mitbih import (
    RowWriter,
    check_choice,
    check_header,
    download,
    new_files,
    print_notes,
    read_header,
    read_signals,
    save_array,
    save_header,
    usable_records,
)

# data
DATA_DIR = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"
SAMPLING_RATE = 100       # Hz: 100 (1 GB of signals) or 500 (5.2 GB)
BAD_RECORDS = "stop"      # at a damaged record "stop" the run, or "skip" the record and count it

# download
DOWNLOAD = True           # fetch the files of the database that are missing
BASE_URL = "https://physionet-open.s3.amazonaws.com/"   # or "https://physionet.org/files/"

LEADS = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
SUPERCLASSES = ["NORM", "MI", "STTC", "CD", "HYP"]
TIE_ORDER = ["MI", "CD", "HYP", "STTC", "NORM"]   # which of equally likely ones is the label


# ---- Signals ----

def read_record(name):
    """WFDB record -> (12, samples) float32 mV and whether it is simulated.

    wfdb spends fifty times longer on the header than on the samples. PTB-XL's headers have one
    form: if the header written for these samples equals the file to the letter, then format,
    gain, leads, length and checksums are right. Any other record is read by wfdb.
    Raises ValueError with one sentence if the record is damaged or not as the constants say.
    """
    path = Path(DATA_DIR, name)
    try:
        adc = np.frombuffer(path.with_suffix(".dat").read_bytes(), "<i2")
        header = path.with_suffix(".hea").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):   # missing, or an odd number of bytes
        return read_any_form(path)
    valid = len(adc) == 120 * SAMPLING_RATE and adc.min() > -32768   # marks an invalid sample
    if not valid or header != usual_header(path.name, adc.reshape(-1, 12)):
        return read_any_form(path)
    return (adc.reshape(-1, 12).T / 1000.0).astype(np.float32), False


def usual_header(name, adc):
    """(samples, 12) int16 -> the text of PTB-XL's header for these samples."""
    checksums = adc.sum(axis=0, dtype=np.int64) % 65536
    lines = [f"{name} 12 {SAMPLING_RATE} {len(adc)}"]
    for lead, first, checksum in zip(LEADS, adc[0], checksums):
        lines.append(f"{name}.dat 16 1000.0(0)/mV 16 0 {first} {checksum} 0 {lead}")
    return "\n".join(lines) + "\n"


def read_any_form(path):
    """The same for a header of any form; the leads are put in order by their names."""
    header = read_header(path)
    check_header(header, adc_gain=1000, baseline=0, fs=SAMPLING_RATE,
                 sig_len=10 * SAMPLING_RATE)
    names = [name.upper() for name in header.sig_name]
    if sorted(names) != sorted(LEADS):
        raise ValueError(f"leads {', '.join(names)}: expected {', '.join(LEADS)}")
    columns = [names.index(lead) for lead in LEADS]
    [(*_, signals)] = read_signals(path, header, columns)   # in one piece
    return signals.astype(np.float32), header.simulated


def write_signals(table, path, left_out):
    """Writes the signals of all records of the table -> mask of the rows written, simulated."""
    names = table["filename_lr" if SAMPLING_RATE == 100 else "filename_hr"]
    kept = np.zeros(len(table), bool)
    simulated = False
    with closing(RowWriter(path, (len(LEADS), 10 * SAMPLING_RATE))) as signals_file:
        for row, record in usable_records(names, read_record, BAD_RECORDS, left_out):
            signals, marked = record
            signals_file.append(signals[None])
            kept[row] = True
            simulated |= marked
    return kept, simulated


# ---- Labels ----

def read_table(name, columns, index):
    """CSV file of DATA_DIR -> pandas table sorted by its index, with at least these columns."""
    path = Path(DATA_DIR, name)
    try:
        table = pd.read_csv(path, index_col=index).sort_index()
    except FileNotFoundError:
        raise SystemExit(f"{path} is not in {Path.cwd()}. Put PTB-XL there, set DOWNLOAD = True, "
                         "or see the scripts run on simulated data: python tests/demo.py") from None
    except Exception as error:   # pandas raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())
        raise SystemExit(f"{path} cannot be read as a CSV file ({reason})") from error
    absent = sorted(set(columns) - set(table.columns))
    if absent or table.empty:
        raise SystemExit(f"{path} has {len(table)} rows and lacks the columns {absent}: "
                         "expected PTB-XL's own file")
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


def statement_matrix(codes, statements):
    """n dicts of statement -> likelihood -> (n, statements) int8: 0 to 100, -1 where absent."""
    table = pd.DataFrame(codes, columns=statements)
    return table.fillna(-1).round().to_numpy(np.int8)


def superclass_matrix(matrix, superclass_of):
    """(n, statements) likelihoods, superclass of each statement -> (n, 5) int8, -1 where absent.

    As in the reference benchmark (Strodthoff et al. 2020) every statement counts, whatever its
    likelihood. A superclass has the highest likelihood of its statements.
    """
    return np.stack([matrix[:, superclass_of == name].max(axis=1, initial=-1)
                     for name in SUPERCLASSES], axis=1)


def single_labels(likelihoods):
    """(n, 5) superclass likelihoods -> (n,) int64: the most likely one, ties by TIE_ORDER, or -1.

    For a record with several superclasses this is a choice, not the truth.
    """
    order = np.array([SUPERCLASSES.index(name) for name in TIE_ORDER])
    labels = order[np.argmax(likelihoods[:, order], axis=1)]   # argmax takes the first of equals
    return np.where(likelihoods.max(axis=1) < 0, -1, labels).astype(np.int64)


def read_metadata():
    """The two CSV files -> table of records, metadata, labels, statement names, unknown codes."""
    table = read_table("ptbxl_database.csv", ["patient_id", "age", "sex", "scp_codes", "strat_fold",
                                              "filename_lr", "filename_hr"], "ecg_id")
    scp = read_table("scp_statements.csv", ["diagnostic", "diagnostic_class"], 0)
    for column in ("patient_id", "age", "sex", "strat_fold"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    valid = (
        table.index.is_unique and table.index.inferred_type == "integer"
        and table["strat_fold"].isin(range(1, 11)).all()
        and np.isfinite(table["patient_id"]).all()
        and table[["filename_lr", "filename_hr"]].notna().all(axis=None))
    if not valid:
        raise SystemExit("ptbxl_database.csv: expected each ecg_id once, as a whole number, and in "
                         "every row a patient_id, file names and a strat_fold from 1 to 10")
    codes = [parse_codes(text, ecg_id) for ecg_id, text in table["scp_codes"].items()]
    unknown = Counter(code for record in codes for code in record if code not in scp.index)
    statements = statement_matrix(codes, scp.index)
    superclass_of = scp["diagnostic_class"].where(scp["diagnostic"] == 1, "").to_numpy(str)
    likelihoods = superclass_matrix(statements, superclass_of)

    metadata = np.zeros(len(table), [
        ("ecg_id", "<i4"), ("patient", "U8"), ("fold", "i1"), ("age", "<f4"), ("sex", "i1"),
        ("superclasses", "i1", (len(SUPERCLASSES),)), ("statements", "i1", (len(scp),))])
    metadata["ecg_id"] = table.index
    metadata["patient"] = table["patient_id"].astype(int).astype(str)
    metadata["fold"] = table["strat_fold"]
    metadata["age"] = table["age"]                 # years; 300 stands for more than 89
    metadata["sex"] = table["sex"].fillna(-1)      # 0 male, 1 female
    metadata["superclasses"] = likelihoods >= 0
    metadata["statements"] = statements
    return table, metadata, single_labels(likelihoods), list(scp.index), unknown


# ---- Report ----

def print_report(metadata):
    """Prints records by superclass and fold."""
    table = pd.DataFrame(metadata["superclasses"], columns=SUPERCLASSES).assign(records=1)
    side = pd.cut(metadata["fold"], [0, 8, 9, 10], labels=["folds 1-8", "fold 9", "fold 10"])
    print("\n" + table.groupby(side, observed=False).sum().T.to_string())


# ---- Main ----

def main():
    check_choice("SAMPLING_RATE", SAMPLING_RATE, [100, 500])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    if DOWNLOAD:
        folder = f"records{SAMPLING_RATE}/"
        parts = (folder, "ptbxl_database.csv", "scp_statements.csv")
        download(DATA_DIR, f"{BASE_URL}ptb-xl/1.0.3/", f"{folder}*/*.hea",
                 lambda name: name.startswith(parts))
    table, metadata, labels, statement_names, unknown = read_metadata()
    left_out = Counter({f"statements {code!r}, which are not in scp_statements.csv": number
                        for code, number in unknown.items()})
    parts = ["signals", "labels", "metadata", "header"]
    with new_files(*(f"ptbxl_{part}.npy" for part in parts)) as paths:
        kept, simulated = write_signals(table, paths[0], left_out)
        metadata, labels = metadata[kept], labels[kept]
        save_array(paths[1], labels)
        save_array(paths[2], metadata)
        save_header(dict(zip(parts, paths)), {
            "class_map": "superclasses", "class_names": SUPERCLASSES,
            "leads": LEADS, "sampling_rate": SAMPLING_RATE, "statement_names": statement_names,
            "simulated": simulated})

    print_report(metadata)
    print_notes(left_out, simulated)
    print(f"Wrote ptbxl_*.npy: {', '.join(parts)}")


if __name__ == "__main__":
    main()
