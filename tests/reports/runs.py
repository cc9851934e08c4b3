"""What the report scripts share: a folder a run, a check of each run's code, markdown tables."""

import ast
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import harness
import numpy as np

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


def make_runs(script, folder, runs, links):
    """Makes every run that has no run.json yet, each in a process of its own.

    runs: dict of run -> its settings; links: dict of run -> files that its folder links to.
    """
    finished_runs(folder, runs)
    for number, (name, settings) in enumerate(runs.items(), 1):
        print(f"{number}/{len(runs)} {name}", end="", flush=True)
        place = folder / name
        if (place / "run.json").exists():
            print(": done before", flush=True)
            continue
        place.mkdir(parents=True, exist_ok=True)
        for path in links[name]:
            link = place / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
        began = time.perf_counter()
        start(script, name, place)
        print(f": {time.perf_counter() - began:.0f} s", flush=True)
        finished_runs(folder, {name: settings})   # the scripts may have changed meanwhile


@contextmanager
def scratch_folder():
    """Within, the working folder is a temporary one, and nothing is printed."""
    with (TemporaryDirectory() as folder, chdir(folder),
          open(os.devnull, "w") as nothing, redirect_stdout(nothing)):
        yield


def start(script, name, place):
    """Runs `script --run name` in a folder. Stops with one sentence if it fails."""
    with open(place / "log.txt", "w") as log:
        code = subprocess.run([sys.executable, script, "--run", name], check=False, cwd=place,
                              stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"\n{name} failed: see {place / 'log.txt'}")


def save_run(code, settings, **measured):
    """Writes run.json in the current folder, as the last file of a run."""
    Path("run.json").write_text(json.dumps({"code": code, "settings": settings, **measured}))


def cost_of(function, *arguments, **constants):
    """Runs a function -> wall seconds and CPU seconds of this process."""
    began = time.perf_counter()
    cpu_began = cpu_seconds()
    function(*arguments, **constants)
    return time.perf_counter() - began, cpu_seconds() - cpu_began


def cpu_seconds():
    """Seconds that the threads of this process have computed."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_gb():
    """The largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9   # Linux counts in KiB


def finished_runs(folder, runs):
    """Folder, dict of run -> settings -> dict of finished run -> its run.json and tables.

    Stops with one sentence if some of them come from other code or other settings.
    """
    code = code_version()
    finished = {}
    stale = []
    for name, settings in runs.items():
        place = folder / name
        if not (place / "run.json").exists():
            continue
        run = json.loads((place / "run.json").read_text())
        expected = {"code": code, "settings": settings}
        change = model_training.first_difference({key: run[key] for key in expected}, expected)
        if change:
            stale.append(f"{place} ({change})")
        for report in [*place.glob("*_metrics.json"), *place.glob("*_cross.json")]:
            run |= json.loads(report.read_text())
        finished[name] = run | {"folder": place}
    if stale:
        raise SystemExit(f"other code or settings made {', '.join(stale)}: move or delete these "
                         "folders to measure anew, or go back to that code")
    return finished


# ---- Tables ----

def text_of(value):
    """A figure -> its text with three digits; "n/a" for None or NaN."""
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


def spread_text(values):
    """Values of several seeds -> "mean ± standard deviation"."""
    values = [value for value in values if value is not None]
    if not values:
        return "n/a"
    if len(values) == 1:
        return text_of(values[0])
    return f"{text_of(np.mean(values))} ± {text_of(np.std(values, ddof=1))}"


def percent_text(values):
    """Percentages of several seeds -> "mean ± standard deviation"."""
    values = [value for value in values if value is not None]
    if not values:
        return "n/a"
    text = f"{np.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.1f}"


def markdown(table):
    """Table of texts -> the lines of a markdown table."""
    titles = [table.index.name or "", *table.columns]
    rows = [titles, ["---"] * len(titles), *table.reset_index().to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def warnings_in(runs):
    """Runs, as from finished_runs -> the sentences that must stand beside their figures."""
    warnings = []
    for run in runs:
        header = SimpleNamespace(**run.get("header", run.get("source", {})))
        warnings += model_training.warnings_of(header, SimpleNamespace(**run["recipe"]))
    return list(dict.fromkeys(warnings))


def write_report(path, sections, runs):
    """Writes dict of heading -> text to a markdown file, with warnings and the code version.

    runs: those whose figures it shows, as from finished_runs.
    """
    parts = [f"**{warning}**" for warning in warnings_in(runs)]
    parts += [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    parts += [f"Code version {code_version()}."]
    text = "\n\n".join(parts) + "\n"
    Path(path).write_text(text)
    print(f"\n{text}\nWrote {path}")
