"""What the report scripts share: a folder per run, a check of each run's code, markdown tables.

A run has a folder of its own, with all that the scripts write and a run.json of its settings, code
and results. It is not made again: stop a report script at any time and start it again to go on.
Runs of other code or settings are refused.
"""

import ast
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness
import numpy as np

import model_evaluation
import model_training

SCRIPTS = ["preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py",
           "model_evaluation.py", "cross_dataset_validation.py"]


# ---- Make runs ----

def code_version():
    """A hash of the five scripts. Comments, docstrings and line breaks do not change it."""
    code = []
    for name in SCRIPTS:
        tree = ast.parse((harness.ROOT / name).read_text())
        for node in ast.walk(tree):
            is_block = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if is_block and ast.get_docstring(node) is not None:
                del node.body[0]
        code.append(ast.unparse(tree))
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def code_and_commit():
    """-> "code c54e284be831, commit 1343475"; "1343475-dirty": with changes since."""
    command = ["git", "--no-optional-locks", "-C", harness.ROOT,
               "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):   # no git, or no checkout
        return f"code {code_version()}, commit unknown"
    return f"code {code_version()}, commit {done.stdout.strip()}"


def make_runs(script, folder, settings_of, files=()):
    """Makes every run that has no run.json yet, in a folder and a process of its own.

    script: name of the report script whose make(**settings) makes a run in the current folder and
    returns a dict of what it measured. settings_of: dict of run -> settings. files: paths that the
    folders link to, or a function of a run's settings that gives them. Returns finished_runs.
    """
    finished_runs(folder, settings_of)
    for number, (name, settings) in enumerate(settings_of.items(), 1):
        place = folder / name
        if (place / "run.json").exists():
            continue
        print(f"{number}/{len(settings_of)} {name}", end="", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        for path in files(settings) if callable(files) else files:
            link = place / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
        began = time.perf_counter()
        start(script, settings, place)
        print(f": {time.perf_counter() - began:.0f} s", flush=True)
        finished_runs(folder, {name: settings})   # the scripts may have changed meanwhile
    return finished_runs(folder, settings_of)


def start(script, settings, place):
    """make_run in a folder and a new process. Stops with one sentence if it fails."""
    here = str(Path(__file__).resolve().parent)
    code = (f"import sys; sys.path.insert(0, {here!r}); import runs; "
            f"runs.make_run({script!r}, {settings!r})")
    with open(place / "log.txt", "w") as log:
        done = subprocess.run([sys.executable, "-c", code], check=False, cwd=place,
                              stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"\n{place.name} failed: see {place / 'log.txt'}")


def make_run(script, settings):
    """Makes a run in the current folder, then writes its run.json."""
    code = code_version()
    measured = importlib.import_module(script).make(**settings)
    Path("run.json").write_text(json.dumps({"code": code, "settings": settings, **measured}))


def finished_runs(folder, settings_of):
    """Folder, dict of run -> settings -> dict of finished run -> its run.json and tables.

    Stops with one sentence if some of them come from other code or other settings.
    """
    code = code_version()
    finished = {}
    stale = []
    for name, settings in settings_of.items():
        place = folder / name
        if not (place / "run.json").exists():
            continue
        run = json.loads((place / "run.json").read_text())
        expected = {"code": code, "settings": json.loads(json.dumps(settings))}   # no tuples
        stale += [f"{place} ({key} = {run[key]!r}, now {value!r})"
                  for key, value in expected.items() if run[key] != value]
        for report in [*place.glob("*_metrics.json"), *place.glob("*_cross.json")]:
            run |= json.loads(report.read_text())
        finished[name] = run | {"folder": place}
    if stale:
        raise SystemExit(f"other code or settings made {', '.join(stale)}: move or delete these "
                         "folders to measure anew, or go back to that code")
    return finished


# ---- What runs do ----

@contextmanager
def scratch_folder():
    """Within, the working folder is a temporary one, and nothing is printed."""
    with (TemporaryDirectory() as folder, chdir(folder),
          open(os.devnull, "w") as nothing, redirect_stdout(nothing)):
        yield


def predictions_of(checkpoint, data, rows):
    """Checkpoint, dataset, its rows -> model_evaluation.Predictions for them."""
    logits, rows = model_training.predict_rows(checkpoint, data, rows)
    return model_evaluation.Predictions(checkpoint, data, logits.mean(dim=0), rows)


def provenance(simulated):
    """What warning_in needs of a run that writes no report of its own."""
    return {"header": {"simulated": bool(simulated)}}


# ---- Tables ----

def text_of(value):
    """A score -> its text with three digits; "n/a" for None or NaN."""
    if value is None or np.isnan(value):
        return "n/a"
    return f"{value:.3f}".replace("0.", ".", 1)


def interval_text(row):
    """Dict of value, low, high -> "value [low high]"; "" for None."""
    if not row:
        return ""
    if row["low"] is None:
        return text_of(row["value"])
    return f"{text_of(row['value'])} [{text_of(row['low'])} {text_of(row['high'])}]"


def spread_text(values, text=text_of):
    """Values of several seeds -> "mean ± standard deviation"."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return text(values[0]) if values else "n/a"
    return f"{text(np.mean(values))} ± {text(np.std(values, ddof=1))}"


def percent_text(values):
    """Percentages of several seeds -> "mean ± standard deviation"."""
    return spread_text(values, "{:.1f}".format)


def markdown(table):
    """Table of texts -> the lines of a markdown table."""
    titles = [table.index.name or "", *table.columns]
    rows = [titles, ["---"] * len(titles), *table.reset_index().to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def warning_in(finished):
    """Runs, as from finished_runs -> the sentence that must stand beside their scores, or ""."""
    headers = [run[name] for run in finished for name in ("header", "source", "target")
               if name in run]
    simulated = any(header["simulated"] for header in headers)
    return model_training.warning_of(simulated).removeprefix(". ")


def write_report(path, sections, finished):
    """Writes dict of heading -> table to a markdown file, with a warning, code and commit.

    finished: the runs whose scores it shows.
    """
    warning = warning_in(finished)
    parts = [f"**{warning}**"] if warning else []
    parts += [f"## {heading}\n\n{markdown(table)}" for heading, table in sections.items()]
    text = "\n\n".join([*parts, f"Made by {code_and_commit()}."]) + "\n"
    Path(path).write_text(text)
    print(f"\n{text}\nWrote {path}")
