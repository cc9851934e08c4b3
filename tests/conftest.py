"""Fixtures: small simulated databases, and a folder with all that the preprocess scripts write."""

import copy
import functools
import gc
import os
import shutil
import warnings

os.environ["OMP_NUM_THREADS"] = "1"   # on tiny data, PyTorch's threads wait more than they work

import pytest

# wfdb calls pandas in ways that pandas 3 deprecates; a warning of any other module is shown.
WFDB = r"wfdb\."

with warnings.catch_warnings():   # pytest_configure comes later
    warnings.filterwarnings("ignore", module=WFDB)
    import harness  # puts the scripts on the module path
    import simulate

    import preprocess_mitbih
    import preprocess_ptbxl

MITBIH = "mit-bih-arrhythmia-database-1.0.0"
PTBXL = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", f"ignore:::{WFDB}")


def pytest_collection_finish():
    """Takes what is imported out of garbage collection, which would look at it in every test."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_download():
    """Nothing is fetched, except by tests that switch it on for a server of their own."""
    with (harness.changed(preprocess_mitbih, DOWNLOAD=False),
          harness.changed(preprocess_ptbxl, DOWNLOAD=False)):
        yield


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder, which the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def four_records(tmp_path_factory):
    """A folder with four records of 20 s, and dict of record -> (samples, symbols)."""
    folder = tmp_path_factory.mktemp("mitbih")
    names = ("101", "102", "114", "118")
    return folder, simulate.write_mitbih(folder, records=names, seconds=20)


@pytest.fixture
def database(work, four_records):
    """A copy of the four records -> dict of record -> (samples, symbols) of all annotations."""
    folder, annotations = four_records
    shutil.copytree(folder, work / MITBIH)
    return copy.deepcopy(annotations)


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    """A folder with the .npy files of 48 records of 40 s and of 300 PTB-XL records; link them."""
    folder = tmp_path_factory.mktemp("arrays")
    harness.simulated_arrays(folder, seconds=40, records=300)
    return folder


@pytest.fixture
def prepared(work, arrays):
    """A working folder with links to the .npy files of both simulated databases."""
    for path in arrays.glob("*.npy"):
        (work / path.name).symlink_to(path)
    return work


@pytest.fixture
def quick_pictures(monkeypatch):
    """Empty files in place of the pictures, for tests that are about something else."""
    import model_evaluation  # here: the tests of the preprocess scripts need no PyTorch

    monkeypatch.setattr(model_evaluation, "explain", lambda *_: None)
    monkeypatch.setattr(model_evaluation, "plot_ecgs",
                        lambda *arguments: arguments[-1].write_bytes(b""))


@pytest.fixture
def few_resamples(monkeypatch):
    """200 resamples in place of 1,000."""
    import cross_dataset_validation
    import model_evaluation

    few = functools.partial(model_evaluation.resample_patients, resamples=200)
    for script in (cross_dataset_validation, model_evaluation):
        monkeypatch.setattr(script, "resample_patients", few)


@pytest.fixture
def coarse_pictures(monkeypatch):
    """Pictures of a third of the resolution, and ECG paper with a tenth of its lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    def savefig(figure, path, dpi, **settings):
        save(figure, path, dpi=dpi / 3, **settings)

    def init(locator, step):
        original(locator, 10 * step)
    save = Figure.savefig
    original = MultipleLocator.__init__
    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(MultipleLocator, "__init__", init)


@pytest.fixture(scope="session")
def checkpoints():
    """Dict of settings -> checkpoint, as bytes: what tests of this session have trained."""
    return {}


@pytest.fixture
def trained(prepared, checkpoints):
    """A function that trains a small model, or takes the one that an earlier test trained."""
    def provide(dataset, model, **constants):
        key = repr((dataset, model, constants))
        if key not in checkpoints:
            harness.train(dataset, model, {"epochs": 2}, **{
                "SECOND_NET": True, "RECIPES": {f"{dataset}_strips": {"epochs": 2}}} | constants)
            checkpoints[key] = {path.name: path.read_bytes() for path in prepared.glob("*.pth")}
        for name, content in checkpoints[key].items():
            (prepared / name).write_bytes(content)
    return provide
