"""Gathers the 12-lead records of PTB-XL and their five diagnostic superclasses.

Reads   DATA_DIR/ptbxl_database.csv, scp_statements.csv and the WFDB records of one sampling rate; where there are none, it
        fetches these files from PhysioNet first (0.5 GB at 100 Hz, 2.6 GB at 500 Hz)
Writes  ptbxl_signals.npy    (n, 12, samples) float32  mV, 10 s, leads in the order of LEADS
        ptbxl_labels.npy     (n,) int64                one superclass a record, -1 for a record with none
        ptbxl_metadata.npy   (n,) structured           ecg_id, patient, fold, age, sex, superclasses (5,) int8 (the
                                                       multi-label form), statements (71,) int8 likelihoods,
                                                       one for each row of scp_statements.csv
        ptbxl_header.npy     (1,) structured           class names, statement names, leads, sampling rate; what all four
                                                       files were made from, and their SHA-256
Takes   half a minute for the 21,799 records at 100 Hz, beside the download.

The database: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Sci. Data 7, 2020.
"""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocess_mitbih import (RowWriter, Source, check_choice, check_folder, check_form, constants_of, fetch_database,
                               new_files, read_wfdb, save_array, save_header)

# data
DATA_DIR = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"   # 1.0.1 and 1.0.2 work as well
SAMPLING_RATE = 100       # Hz: 100 (1 GB of signals) or 500 (5.2 GB)
BAD_RECORDS = "stop"      # a record that cannot be used: "stop" the run, or "skip" the record and count it

# download
DOWNLOAD = True           # where DATA_DIR has no records of this rate, fetch them; a download that was broken off goes on
BASE_URL = "https://physionet.org/files/"   # or a mirror with its paths: "https://physionet-open.s3.amazonaws.com/"
CONNECTIONS = 2           # at a time; wfdb's own dl_database takes 2

LEADS = "I II III AVR AVL AVF V1 V2 V3 V4 V5 V6".split()
SUPERCLASSES = ["NORM", "MI", "STTC", "CD", "HYP"]
TIE_ORDER = ["MI", "CD", "HYP", "STTC", "NORM"]   # which superclass is the label of equally likely ones
SECONDS = 10              # length of every record
# Constants that say how a run goes, not what comes out; the others are recorded with the outputs.
HOW_IT_RUNS = ["DATA_DIR", "DOWNLOAD", "BASE_URL", "CONNECTIONS", "BAD_RECORDS", "HOW_IT_RUNS"]


# ---- Diagnostic statements ----

def read_table(path, columns, index):
    """CSV file -> pandas table, after a check that it is there and has the columns."""
    try:
        table = pd.read_csv(path, index_col=index)
    except FileNotFoundError:
        raise SystemExit(f"{path} is missing: it is part of PTB-XL. Fetch it from "
                         "https://physionet.org/content/ptb-xl/") from None
    except (ValueError, OSError) as error:   # pandas' parser errors are ValueErrors
        raise SystemExit(f"{path} cannot be read as a CSV file ({error}). Fetch it again") from error
    absent = sorted(set(columns) - set(table.columns))
    if absent or table.empty:
        raise SystemExit(f"{path}: {len(table)} rows, without the columns {absent}. Expected PTB-XL's own file: fetch it again")
    return table


def parse_codes(text, ecg_id):
    """'{"NORM": 100.0, "SR": 0.0}' -> dict of statement -> likelihood in percent (0: likelihood unknown, not absent)."""
    try:
        codes = ast.literal_eval(text)
        codes = {str(code): float(likelihood) for code, likelihood in codes.items()}
        if all(0 <= likelihood <= 100 for likelihood in codes.values()):
            return codes
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        pass   # the sentence below is about them all
    raise SystemExit(f"ecg_id {ecg_id} in ptbxl_database.csv: scp_codes {str(text)[:60]!r} is not a dict of statement to "
                     "likelihood from 0 to 100. Fetch the file again")


def statement_matrix(codes, statements):
    """n dicts of statement -> likelihood, names -> (n, statements) int8: likelihood 0 to 100, -1 where absent."""
    column = {name: i for i, name in enumerate(statements)}
    matrix = np.full((len(codes), len(statements)), -1, np.int8)
    for row, record in enumerate(codes):
        for code, likelihood in record.items():
            if code in column:
                matrix[row, column[code]] = round(likelihood)
    return matrix


def superclass_matrix(matrix, superclass_of):
    """(n, statements) likelihoods, superclass of each statement -> (n, 5) int8 likelihoods, -1 where absent.

    As in the reference benchmark (Strodthoff et al. 2020) every statement counts, whatever its likelihood; a
    superclass takes the highest likelihood of its statements.
    """
    return np.stack([matrix[:, superclass_of == name].max(axis=1, initial=-1) for name in SUPERCLASSES], axis=1)


def single_labels(likelihoods):
    """(n, 5) superclass likelihoods -> (n,) int64: the most likely superclass, ties by TIE_ORDER, -1 for none.

    It is a choice, not the truth, for a record with several superclasses; the metadata tell which ones those are.
    """
    order = np.array([SUPERCLASSES.index(name) for name in TIE_ORDER])
    labels = order[np.argmax(likelihoods[:, order], axis=1)]   # argmax takes the first of equals
    return np.where(likelihoods.max(axis=1) < 0, -1, labels).astype(np.int64)


# ---- Signals ----

def ordinary_header(name, adc):
    """(samples, 12) int16 -> the very header text that PTB-XL has for these samples."""
    rate = len(adc) // SECONDS
    checksums = adc.sum(axis=0, dtype=np.int64) % 65536
    lines = [f"{name}.dat 16 1000.0(0)/mV 16 0 {first} {checksum} 0 {lead}\n"
             for lead, first, checksum in zip(LEADS, adc[0].tolist(), checksums.tolist())]
    return f"{name} 12 {rate} {len(adc)}\n" + "".join(lines)


def read_signals(path, sampling_rate):
    """WFDB record -> ((12, samples) float32 mV, simulated). ValueError where it is not what the constants say.

    Parsing the header costs wfdb fifty times more than reading the samples. So the samples are taken to be what
    PTB-XL stores, and the header that belongs to them is written out: if it equals the one on disk to the letter,
    format, gain, leads, length and checksums are proven. Any other record takes the general path.
    """
    samples = SECONDS * sampling_rate
    try:
        adc = np.frombuffer(Path(f"{path}.dat").read_bytes(), "<i2")
        text = Path(f"{path}.hea").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):   # missing, or an odd number of bytes: the general path says what is wrong
        return read_signals_general(path, sampling_rate)
    ordinary = len(adc) == 12 * samples and adc.min() > -32768   # -32768 marks an invalid sample
    if not ordinary or text != ordinary_header(Path(path).name, adc.reshape(-1, 12)):
        return read_signals_general(path, sampling_rate)
    return (adc.reshape(-1, 12).T / 1000.0).astype(np.float32), False


def read_signals_general(path, sampling_rate):
    """The same for a header of any form: wfdb decodes it, and the leads are put in order by their names."""
    record, signals = read_wfdb(path)
    names = [name.upper() for name in record.sig_name]
    check_form(record, adc_gain=1000, baseline=0)
    if record.fs != sampling_rate:
        raise ValueError(f"sampled at {record.fs} Hz, SAMPLING_RATE says {sampling_rate} Hz")
    if len(signals) != SECONDS * sampling_rate:
        raise ValueError(f"{len(signals)} samples, expected {SECONDS * sampling_rate} ({SECONDS} s)")
    absent = [lead for lead in LEADS if names.count(lead) != 1]
    if absent:
        raise ValueError(f"leads {', '.join(record.sig_name)}: {', '.join(absent)} absent or twice")
    signals = signals[:, [names.index(lead) for lead in LEADS]]
    if np.isnan(signals).any():
        raise ValueError(f"{np.isnan(signals).sum()} samples are invalid (NaN)")
    return signals.T.astype(np.float32), any("simulated" in comment for comment in record.comments)


def read_all(table, source, signals_file):
    """Streams the records of the table into the file -> mask of rows written, reasons of the others, simulated."""
    column = "filename_lr" if SAMPLING_RATE == 100 else "filename_hr"
    kept, left_out, simulated = np.ones(len(table), bool), Counter(), False
    for row, name in enumerate(tqdm(table[column], desc="records", unit="record", disable=None)):
        try:
            source.read(f"{name}.hea")
            source.read(f"{name}.dat")
            signals, mark = read_signals(f"{DATA_DIR}/{name}", SAMPLING_RATE)
            signals_file.append(signals[None])
            simulated |= mark
        except ValueError as error:
            if BAD_RECORDS == "stop":
                raise SystemExit(f"record {name} in {DATA_DIR}: {error}. "
                                 'Fetch it again, or set BAD_RECORDS = "skip" to go on without it') from error
            kept[row] = False
            left_out[f"record: {name} {error}"] += 1
    if not kept.any():
        raise SystemExit(f"none of the {len(table)} records in {DATA_DIR} could be used")
    return kept, left_out, simulated


# ---- Metadata ----

def metadata_table(table, superclasses, statements):
    """Rows of ptbxl_database.csv, (n, 5) and (n, statements) likelihoods -> (n,) structured metadata."""
    metadata = np.zeros(len(table), [
        ("ecg_id", "<i4"), ("patient", "U8"), ("fold", "i1"), ("age", "<f4"), ("sex", "i1"),
        ("superclasses", "i1", (len(SUPERCLASSES),)), ("statements", "i1", (statements.shape[1],))])
    metadata["ecg_id"], metadata["fold"] = table.index, table["strat_fold"]
    metadata["patient"] = table["patient_id"].astype(int).astype(str)
    metadata["age"], metadata["sex"] = table["age"], table["sex"].fillna(-1)   # years (300: above 89); 0 male, 1 female
    metadata["superclasses"], metadata["statements"] = superclasses >= 0, statements
    return metadata


def read_metadata(source):
    """The two csv files -> (table of records, metadata, labels, statement names, unknown codes)."""
    try:
        source.read("ptbxl_database.csv")
        source.read("scp_statements.csv")
    except ValueError as error:
        raise SystemExit(f"{error}. It is part of PTB-XL: fetch it from https://physionet.org/content/ptb-xl/") from error
    table = read_table(Path(DATA_DIR) / "ptbxl_database.csv",
                       ["patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr"], "ecg_id")
    scp = read_table(Path(DATA_DIR) / "scp_statements.csv", ["diagnostic", "diagnostic_class"], 0)
    table, scp = table.sort_index(), scp.sort_index()
    for column in ("patient_id", "age", "sex", "strat_fold"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    if table.index.has_duplicates or not table["strat_fold"].isin(range(1, 11)).all() or table["patient_id"].isna().any():
        raise SystemExit("ptbxl_database.csv: expected each ecg_id once, a patient_id and a strat_fold of 1 to 10 in "
                         "every row. Fetch the file again")
    codes = [parse_codes(text, ecg_id) for ecg_id, text in table["scp_codes"].items()]
    unknown = Counter(code for record in codes for code in record if code not in scp.index)
    statements = statement_matrix(codes, scp.index)
    diagnostic_class = scp["diagnostic_class"].where(scp["diagnostic"] == 1, "").to_numpy(str)
    likelihoods = superclass_matrix(statements, diagnostic_class)
    return table, metadata_table(table, likelihoods, statements), single_labels(likelihoods), list(scp.index), unknown


# ---- Report ----

def print_report(metadata, labels, left_out):
    """Prints records by superclass and split, how many superclasses a record has, and what was left out."""
    splits = {"folds 1-8": metadata["fold"] <= 8, "fold 9": metadata["fold"] == 9, "fold 10": metadata["fold"] == 10,
              "all": metadata["fold"] > 0}
    print(f"\n{'superclass':<22}" + "".join(f"{name:>11}" for name in splits) + f"{'as label':>11}")
    for index, name in enumerate(SUPERCLASSES):
        has = metadata["superclasses"][:, index] == 1
        print(f"{name:<22}" + "".join(f"{np.sum(has & rows):>11,}" for rows in splits.values())
              + f"{np.sum(labels == index):>11,}")
    count = metadata["superclasses"].sum(axis=1)
    for number in range(count.max() + 1):
        text = f"records with {number or 'none'}"
        print(f"{text:<22}" + "".join(f"{np.sum((count == number) & rows):>11,}" for rows in splits.values()))
    print(f"{'records':<22}" + "".join(f"{np.sum(rows):>11,}" for rows in splits.values()))
    print(f"{'patients':<22}" + "".join(f"{len(np.unique(metadata['patient'][rows])):>11,}" for rows in splits.values()))
    print("\nLeft out" + ("" if left_out else ": nothing"))
    for reason, number in left_out.items():
        print(f"  {number:>9,}  {reason}")


# ---- Main ----

def main():
    check_choice("SAMPLING_RATE", SAMPLING_RATE, [100, 500])
    check_choice("BAD_RECORDS", BAD_RECORDS, ["stop", "skip"])
    if DOWNLOAD:
        folder = f"records{SAMPLING_RATE}/"
        fetch_database(DATA_DIR, f"{BASE_URL}ptb-xl/1.0.3/", folder.strip("/"), f"{folder}*/*.hea",
                       lambda name: name.startswith((folder, "ptbxl_database.csv", "scp_statements.csv")), CONNECTIONS)
    check_folder(DATA_DIR, "https://physionet.org/content/ptb-xl/1.0.3/")
    source = Source(DATA_DIR)
    table, metadata, labels, statement_names, unknown = read_metadata(source)
    outputs = [f"ptbxl_{part}.npy" for part in ("signals", "labels", "metadata", "header")]

    with new_files(*outputs) as (signals_path, labels_path, metadata_path, header_path):
        signals_file = RowWriter(signals_path, (len(LEADS), SECONDS * SAMPLING_RATE), "<f4")
        kept, left_out, simulated = read_all(table, source, signals_file)
        signals_file.close()
        left_out.update({f"statements: {code!r} is not in scp_statements.csv": n for code, n in unknown.items()})
        save_array(labels_path, labels[kept])
        save_array(metadata_path, metadata[kept])
        parts = {"signals": signals_path, "labels": labels_path, "metadata": metadata_path}
        save_header(header_path, parts, dataset="ptbxl", class_map="superclasses", class_names=SUPERCLASSES, leads=LEADS,
                    sampling_rate=SAMPLING_RATE, simulated=simulated, statement_names=statement_names,
                    made_from=source.describe(constants_of(globals(), HOW_IT_RUNS)))

    print_report(metadata[kept], labels[kept], left_out)
    print("\nSIMULATED data: no figure made from it is a result" if simulated else "")
    print(f"Wrote {', '.join(outputs)}")


if __name__ == "__main__":
    main()
