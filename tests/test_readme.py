"""The README's commands, file names and constants against the code as it stands."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = ["preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py", "model_evaluation.py", "cross_dataset_validation.py"]


def constants_of(script):
    """Script -> names of the constants that it assigns."""
    tree = ast.parse((ROOT / script).read_text())
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    names = [n.id for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return {name for name in names if name.isupper()}


@pytest.mark.parametrize("script", re.findall(r"python ([\w/]+\.py)", README))
def test_every_command_names_a_file_that_exists(script):
    assert (ROOT / script).is_file()


def test_the_scripts_appear_in_pipeline_order():
    block = README[README.index("## The real data"):]
    places = [block.index(f"python {script}") for script in SCRIPTS]
    assert places == sorted(places)


def test_the_table_of_scripts_holds():
    rows = {row.split("|")[1].strip().strip("`"): row for row in README.splitlines() if row.startswith("| `") and ".py`" in row}
    assert list(rows) == SCRIPTS
    for script, row in rows.items():
        names = set(re.findall(r"`([A-Z][A-Z_]+)`", row.split("|")[4]))
        assert names and names <= constants_of(script), names - constants_of(script)


def test_no_placeholder_is_left():
    assert not re.findall(r"\b(RESULTS|LIMITS|TRAINMIN|EVALMIN|CROSSMIN|TODO)\b|@[A-Z]+@", README)


def test_the_files_of_the_table_are_those_of_the_docstrings():
    for row in README.splitlines():
        if row.startswith("| `") and ".py`" in row:
            script, written = row.split("|")[1].strip().strip("`"), re.findall(r"`([^`]+)`", row.split("|")[3])
            docstring = ast.get_docstring(ast.parse((ROOT / script).read_text()))
            parts = [name.split("}")[-1] if "}" in name else name.split("_")[-1] for name in written]
            assert parts and all(part.removesuffix(".npy") in docstring for part in parts), script


def test_every_constant_in_code_quotes_exists():
    known = set().union(*(constants_of(script) for script in SCRIPTS))
    for name in re.findall(r"`([A-Z][A-Z_]{2,}) = ", README):
        assert name in known


def test_imports_flow_one_way_and_never_carry_a_constant():
    modules = [script[:-3] for script in SCRIPTS]
    for script in SCRIPTS:
        for node in ast.parse((ROOT / script).read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                assert modules.index(node.module) < modules.index(script[:-3])
                assert not any(alias.name.isupper() for alias in node.names)


def test_the_layout_is_the_agreed_one():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    assert top == {*SCRIPTS, "requirements.txt", "README.md", "LICENSE", "tests", ".gitignore", ".ci"}


def test_pictures_of_the_readme_exist_and_are_small():
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).stat().st_size < 300_000
