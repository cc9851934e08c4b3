"""Compares the tables of EC57 with the programs bxb and sumstats of the WFDB software.

    cd FOLDER && python /path/to/checkout/tests/checks/compare_with_bxb.py [DATASET MODEL [DATA]]

The folder has {dataset}_{model}_annotations/ and _metrics.json from model_evaluation.py, and
DATA the records; without arguments: mitbih cnn, and DATA_DIR of preprocess_mitbih.py.
bxb and sumstats must be on the PATH (https://physionet.org/content/wfdb/).

The reference goes to bxb in the letters N S V F Q, because bxb takes escape beats (e j n) for S.
Shutdown (X) counts as no beat there (O). Every count of each record must be equal, from 0:00 and
from 5:00; then the gross and average percentages.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import preprocess_mitbih

PERCENTAGES = [f"{kind} {metric}" for kind in ("QRS", "VEB", "SVEB")
               for metric in ("sensitivity", "positive predictivity")]


def program(folder, *command):
    """Runs bxb or sumstats in a folder -> what it prints."""
    try:
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is not installed: nothing was compared. It is part of the "
                         "WFDB software, https://physionet.org/content/wfdb/") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-1000:]}")
    return done.stdout


def write_reference(source, annotator, target):
    """Writes the reference {source}.{annotator} in AAMI letters to {target}.ref, with its header.

    Of the other annotations it keeps flutter ([ ]) and noise (~), which bxb knows.
    """
    shutil.copy(f"{source}.hea", f"{target}.hea")
    marks = wfdb.rdann(str(source), annotator)
    letter_of = {symbol: letter for letter, symbols in preprocess_mitbih.CLASSES.items()
                 for symbol in symbols} | {symbol: symbol for symbol in "[]~"}
    letters = np.array([letter_of.get(symbol, "") for symbol in marks.symbol])
    kept = letters != ""
    wfdb.wrann(target.name, "ref", marks.sample[kept], letters[kept], marks.subtype[kept],
               write_dir=str(target.parent))


def counts_of(printed):
    """What bxb -S prints -> dict of counts, "Vn" and so on."""
    counts = dict.fromkeys([a + b for a in "NSVFQO" for b in "nsvfqo"], 0)
    lines = re.findall(r"^ ([NSVFQOX]) \|([ \d]+)$", printed, re.M)
    if len(lines) != 7:
        raise SystemExit(f"bxb printed no table: {printed[:300]}")
    for reference, numbers in lines:
        for call, number in zip("nsvfqox", numbers.split()):
            counts[reference.replace("X", "O") + call.replace("x", "o")] += int(number)
    return counts


def compare_counts(folder, model, ours, start):
    """Runs bxb on each record of the table of counts -> number of counts that differ."""
    different = 0
    for record, of_record in ours.iterrows():
        command = ["bxb", "-r", Path(record).name, "-a", "ref", model, "-f", f"{start}:00"]
        counts = counts_of(program(folder, *command, "-S", "-"))
        program(folder, *command, "-L", f"lines{start}.txt", "shutdown.txt")   # for sumstats
        for cell, count in counts.items():
            if count != of_record[cell]:
                print(f"from {start}:00, record {record}, {cell}: bxb {count}, "
                      f"here {of_record[cell]}")
                different += 1
    return different


def compare_averages(folder, ec57, start):
    """Runs sumstats on what bxb wrote of all records -> number of percentages that differ."""
    printed = program(folder, "sumstats", f"lines{start}.txt")
    rows = re.findall(r"^(Gross|Average) +(.*)$", printed, re.M)
    if len(rows) != 2:
        raise SystemExit(f"sumstats printed no averages: {printed[-300:]}")
    different = 0
    for row, numbers in rows:
        for metric, text in zip(PERCENTAGES, numbers.split()):
            here = ec57[row.lower()][metric]   # None: no record has it
            if text == "-" or here is None:
                equal = text == "-" and here is None
            else:
                equal = abs(float(text) - here) < 0.006   # sumstats has two digits
            if not equal:
                print(f"from {start}:00, {row}, {metric}: sumstats {text}, here {here}")
                different += 1
    return different


def main():
    names = sys.argv[1:3] or ["mitbih", "cnn"]
    database = preprocess_mitbih.data_folder(*sys.argv[3:4] or [preprocess_mitbih.DATA_DIR])
    model = names[1]
    called = Path(f"{'_'.join(names)}_annotations")
    report = json.loads(Path(f"{'_'.join(names)}_metrics.json").read_text())
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for start in (0, 5):
            counts = report["tables"][f"beats counted from {start}:00, reference and call"]
            ours = pd.DataFrame(counts).T.astype(int)
            for record in ours.index:
                name = Path(record).name
                write_reference(database / record, report["header"]["annotator"], folder / name)
                shutil.copy(f"{called / record}.{model}", folder)
            different += compare_counts(folder, model, ours, start)
            different += compare_averages(
                folder, report["tables"][f"EC57 from {start}:00"], start)
    if different:
        raise SystemExit(f"{different} numbers DIFFER")
    print(f"{len(ours)} records from 0:00 and from 5:00: every count equals that of bxb, "
          "gross and average percentages those of sumstats")


if __name__ == "__main__":
    main()
