"""Fixtures: small simulated databases, and a folder with all that the preprocess scripts write."""

import functools
import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"   # on tiny data, PyTorch's threads wait more than they work

import harness  # puts the scripts on the module path
import pytest

import preprocess_mitbih
import preprocess_ptbxl

MITBIH = "mit-bih-arrhythmia-database-1.0.0"
PTBXL = "ptb-xl-a-large-publicly-available-electrocardiography-dataset-1.0.3"


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


def draw_nothing(monkeypatch):
    """Empty files in place of the pictures.

    The scripts are imported here, so that the tests of the preprocess scripts need no PyTorch.
    """
    import cross_dataset_validation
    import model_evaluation
    import model_training

    def draw_all(*arguments):
        for path in arguments[-1]:
            path.write_bytes(b"")

    def draw_one(*arguments):
        arguments[-1].write_bytes(b"")

    monkeypatch.setattr(model_evaluation, "draw_pictures", draw_all)
    monkeypatch.setattr(model_training, "plot_history", draw_one)
    monkeypatch.setattr(cross_dataset_validation, "plot_report", draw_one)


@pytest.fixture
def quick_pictures(monkeypatch):
    """Empty files in place of the pictures, for tests that are about something else."""
    draw_nothing(monkeypatch)


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
    def train(dataset, model, **constants):
        key = repr((dataset, model, constants))
        if key not in checkpoints:
            with pytest.MonkeyPatch.context() as patch:
                draw_nothing(patch)
                harness.train(dataset, model, {"epochs": 2}, STRIPS={dataset: {"epochs": 2}},
                              **{"SECOND_NET": True} | constants)
            checkpoints[key] = {path.name: path.read_bytes() for path in prepared.glob("*.pth")}
        for name, content in checkpoints[key].items():
            (prepared / name).write_bytes(content)
    return train
