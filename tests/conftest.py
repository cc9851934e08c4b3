"""Fixtures: small simulated databases, and a working folder with everything that the preprocess scripts write."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cross_dataset_validation  # noqa: E402
import model_evaluation  # noqa: E402
import model_training  # noqa: E402
import preprocess_mitbih  # noqa: E402
import preprocess_ptbxl  # noqa: E402
import simulate  # noqa: E402

MITBIH = "mit-bih-arrhythmia-database-1.0.0"
PTBXL = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Tests that fetch something switch it on, for a server of their own."""
    monkeypatch.setattr(preprocess_mitbih, "DOWNLOAD", False)
    monkeypatch.setattr(preprocess_ptbxl, "DOWNLOAD", False)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder, which the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    """A folder with the .npy files of 48 records of 40 s and of 300 PTB-XL records. Link it, do not change it."""
    folder = tmp_path_factory.mktemp("arrays")
    simulate.write_mitbih(folder / MITBIH, seconds=40)
    simulate.write_ptbxl(folder / PTBXL, records=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(preprocess_mitbih, "DOWNLOAD", False)
        patch.setattr(preprocess_ptbxl, "DOWNLOAD", False)
        preprocess_mitbih.main()
        preprocess_ptbxl.main()
    return folder


@pytest.fixture
def quick_pictures(monkeypatch):
    """Empty files in place of the pictures, for tests that are about something else."""
    def draw_all(paths, *_):
        for path in paths:
            path.write_bytes(b"")
        return {"completeness_error": None, "deleted": [.2], "deletion": {}}
    monkeypatch.setattr(model_evaluation, "draw_all", draw_all)
    monkeypatch.setattr(model_training, "plot_history", lambda *arguments: arguments[-1].write_bytes(b""))
    monkeypatch.setattr(cross_dataset_validation, "plot_report", lambda *arguments: arguments[-1].write_bytes(b""))


@pytest.fixture
def prepared(work, arrays):
    """A working folder with links to the .npy files of both simulated databases."""
    for path in arrays.glob("*.npy"):
        (work / path.name).symlink_to(path)
    return work
