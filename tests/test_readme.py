"""The README's commands, file names and constants against the code as it stands; the imports."""

import ast
import re

import pytest
from harness import ROOT

README = (ROOT / "README.md").read_text()
SCRIPTS = ["preprocess_mitbih.py", "preprocess_ptbxl.py", "model_training.py",
           "model_evaluation.py", "cross_dataset_validation.py"]
ROWS = {row.split("|")[1].strip().strip("`"): row.split("|")
        for row in README.splitlines() if row.startswith("| `") and ".py`" in row}


def tree_of(script):
    return ast.parse((ROOT / script).read_text())


def constants_of(script):
    """Script -> names of the constants that it assigns."""
    targets = [target for node in tree_of(script).body if isinstance(node, ast.Assign)
               for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()}


@pytest.mark.parametrize("script", re.findall(r"python (?:PATH/)?([\w/]+\.py)", README))
def test_every_command_names_a_file_that_exists(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("name", re.findall(r"\]\((tests/[^)]+)\)", README))
def test_every_link_names_a_file_that_exists_and_pictures_are_small(name):
    assert (ROOT / name).stat().st_size < 300_000


def test_the_first_command_comes_early():
    lines = enumerate(README.splitlines(), 1)
    assert next(number for number, line in lines if line.startswith("python")) <= 25


def test_the_scripts_appear_in_pipeline_order():
    places = [README.index(f"python {script}") for script in SCRIPTS]
    assert places == sorted(places)


def test_the_table_of_scripts_names_constants_that_exist():
    assert list(ROWS) == SCRIPTS
    for script, row in ROWS.items():
        names = set(re.findall(r"`([A-Z][A-Z_]+)`", row[4]))
        assert names and names <= constants_of(script), names - constants_of(script)


def test_the_table_of_scripts_names_files_that_the_docstrings_name():
    for script, row in ROWS.items():
        docstring = ast.get_docstring(tree_of(script))
        written = re.findall(r"`([^`]+)`", row[3])
        parts = [re.split(r"[}_]", name)[-1].removesuffix(".npy") for name in written]
        assert parts and all(part in docstring for part in parts), script


def test_every_constant_in_code_quotes_exists():
    known = set().union(*map(constants_of, SCRIPTS))
    quoted = re.findall(r"`([A-Z][A-Z_]{2,})(?: = [^`]*)?`", README)
    assert len(quoted) > 20 and set(quoted) <= known, set(quoted) - known


def test_no_placeholder_is_left():
    assert not re.findall(r"TODO|@[A-Z0-9]+@", README)


def test_imports_flow_one_way_and_never_carry_a_constant():
    modules = [script[:-3] for script in SCRIPTS]
    for place, script in enumerate(SCRIPTS):
        for node in tree_of(script).body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                assert modules.index(node.module) < place
                assert not any(alias.name.isupper() for alias in node.names)


def test_the_last_line_of_every_script_calls_main():
    for script in SCRIPTS:
        assert (ROOT / script).read_text().endswith('if __name__ == "__main__":\n    main()\n')
