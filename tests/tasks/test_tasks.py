"""Data sets, models and the learner."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flwr_robust import ConfigurationError, DataUnavailableError, UnknownNameError
from flwr_robust.core import spec
from flwr_robust.tasks import (
    MODELS,
    TASKS,
    DataWarning,
    Learner,
    Task,
    build_model,
    content_digest,
    depends_on_data,
    load_task,
    task_of,
)
from flwr_robust.tasks.data import data_folder

# -- digits --------------------------------------------------------------------------------------


def test_digits():
    task = load_task("digits")
    assert task.x_train.shape == (1442, 1, 8, 8)
    assert task.x_test.shape == (355, 1, 8, 8)
    assert (task.shape, task.classes) == ((1, 8, 8), 10)
    assert task.x_train.dtype == torch.uint8
    assert task.y_train.dtype == task.y_test.dtype == torch.int64
    assert len(torch.bincount(task.y_train)) == len(torch.bincount(task.y_test)) == 10
    # A model sees [0, 1]: grey values are 0 to 16.
    seen = task.inputs(task.x_train)
    assert seen.dtype == torch.float32
    assert (float(seen.min()), float(seen.max())) == (0, 1)
    assert int(task.x_train.max()) == 16  # the stored ones stay


def test_digits_are_balanced_in_both_parts():
    # The whole set has 174 to 183 samples of each class; a test class should have about 36, not 21 or 52.
    task = load_task("digits")
    for labels in (task.y_train, task.y_test):
        share = torch.bincount(labels) / len(labels)
        assert share.min() > 0.075
        assert share.max() < 0.125


def test_digits_are_the_library_s():
    from sklearn.datasets import load_digits

    bunch, task = load_digits(), load_task("digits")
    joined = torch.cat([task.x_train, task.x_test]).flatten(1).numpy()
    assert sorted(map(bytes, joined)) == sorted(map(bytes, bunch.data.astype(np.uint8)))
    # Every fifth sample of a class is a test sample, in the order of the set.
    zeros = np.flatnonzero(bunch.target == 0)
    np.testing.assert_array_equal(task.x_test[task.y_test == 0][:, 0], bunch.images[zeros[4::5]])


def test_a_task_is_loaded_once():
    assert load_task("digits") is load_task("digits")


def test_scaling_does_not_touch_what_is_stored():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    task = Task("some", x, y, x, y, 2, scale=10.0, shift=-1.0)
    for _ in range(2):
        assert task.inputs(x).tolist() == [[9], [19]]
    assert x.tolist() == [[1], [2]]


# -- npz -----------------------------------------------------------------------------------------


def arrays(**changes):
    rng = np.random.default_rng(0)
    content = {
        "x_train": rng.standard_normal((12, 5)).astype(np.float32),
        "y_train": np.arange(12) % 3,
        "x_test": rng.standard_normal((6, 5)).astype(np.float32),
        "y_test": np.arange(6) % 3,
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        path = tmp_path / "some.npz"
        np.savez(path, **arrays(**changes))
        return str(path)

    return write


def test_tabular_npz(npz):
    path = npz()
    task = load_task(path)
    assert (task.name, task.shape, task.classes) == (path, (5,), 3)
    np.testing.assert_array_equal(task.x_train, arrays()["x_train"])
    torch.testing.assert_close(task.inputs(task.x_train), task.x_train)  # floats are not scaled
    assert task.y_train.tolist() == [0, 1, 2] * 4


def pictures(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((6, 7, 3), (3, 6, 7)),
        ((6, 7, 4), (4, 6, 7)),
        ((6, 7, 1), (1, 6, 7)),
        ((6, 7), (1, 6, 7)),
        ((3, 6, 7), (3, 6, 7)),
        ((5,), (5,)),
    ],
)
def test_image_npz(npz, stored, shape):
    x_train, x_test = pictures(12, *stored), pictures(6, *stored, seed=1)
    x_train.flat[:2] = 0, 255
    task = load_task(npz(x_train=x_train, x_test=x_test))
    assert task.shape == shape
    assert tuple(task.x_test.shape[1:]) == shape
    expected = x_train.transpose(0, 3, 1, 2) if stored[-1] in (1, 3, 4) else x_train.reshape(12, *shape)
    np.testing.assert_array_equal(task.x_train, expected)
    seen = task.inputs(task.x_train)
    assert (float(seen.min()), float(seen.max())) == (-1, 1)
    np.testing.assert_allclose(seen, expected / 127.5 - 1, atol=1e-6)


def test_numbers_of_the_other_byte_order(npz):
    content = arrays()
    task = load_task(npz(**{key: content[key].astype(content[key].dtype.newbyteorder(">")) for key in content}))
    np.testing.assert_array_equal(task.x_train, content["x_train"])
    assert task.x_train.dtype == torch.float32
    assert task.y_test.tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_of_other_types_and_shapes(npz):
    task = load_task(npz(y_train=(np.arange(12) % 4).astype(np.float64)[:, None], y_test=np.full(6, 3, np.uint8)))
    assert task.y_train.shape == (12,)
    assert task.y_train.dtype == task.y_test.dtype == torch.int64
    assert task.classes == 4


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_keys_are_named(npz, key):
    with pytest.raises(DataUnavailableError, match=f"lacks {key}; it must hold x_train, y_train, x_test, y_test"):
        load_task(npz(**{key: None}))


with_nan = arrays()["x_test"].copy()
with_nan[3, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_train": np.arange(11) % 3}, "x_train and y_train must have the same number of rows; got shapes"),
        ({"x_test": np.zeros((5, 5))}, "x_test and y_test must have the same number of rows; got shapes"),
        ({"x_test": with_nan}, "x_test must be finite"),
        ({"x_train": np.full((12, 5), np.inf)}, "x_train must be finite"),
        (
            {"y_train": np.arange(12) % 3 - 1},
            "y_train must hold class numbers 0, 1, ..., or texts .*; got int64",
        ),
        ({"y_test": np.linspace(0, 1, 6)}, "y_test must hold class numbers"),
        ({"x_train": np.zeros((12, 5), complex)}, "x_train must hold real numbers; got complex128"),
        ({"x_train": np.full((12, 5), "a")}, "x_train must hold real numbers"),
        ({"x_train": np.zeros((12, 5), bool)}, "x_train must hold real numbers; got bool"),
        ({"x_test": np.zeros((6, 4), np.float32)}, "x_train and x_test must hold inputs of one shape"),
        # What was misread without a word before:
        ({"y_train": np.eye(3)[np.arange(12) % 3]}, r"got shape \(12, 3\): if it is one-hot, pass y.argmax\(1\)"),
        (
            {"y_train": np.arange(12) % 2 * 1000, "y_test": np.zeros(6, int)},
            "got 2 classes up to 1000: number",
        ),
        ({"y_test": np.arange(6)}, "every label in y_test must be in y_train; got 3, 4, 5 in y_test alone"),
        ({"y_train": np.array(["a", "b"] * 6), "y_test": np.array(["a", "c"] * 3)}, "got c in y_test alone"),
        (
            {"x_train": np.zeros((0, 5)), "y_train": np.zeros(0)},
            "must hold samples; they are empty",
        ),
        ({"x_train": pictures(12, 8, 8, 2)}, r"must have 1, 3 or 4 channels, first or last; got shape \(12, 8, 8, 2\)"),
        (
            {"owners_train": np.arange(11)},
            "owners_train must hold .* one owner per training sample, 12",
        ),
    ],
)
def test_wrong_npz_contents_are_refused(npz, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        load_task(npz(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"y_train": np.full(12, "a")},
        {"y_train": np.full(12, np.nan)},
        {"x_train": np.array(3.0)},
        {"x_train": pictures(12, 5)},
        {"x_train": pictures(12, 4, 4, 3)},
    ],
    ids=["labels are text", "labels are NaN", "no rows", "train uint8, test float", "images, table"],
)
def test_other_wrong_npz_contents_are_refused(npz, changes):
    with pytest.raises(ConfigurationError):
        load_task(npz(**changes))


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    with pytest.raises(DataUnavailableError, match="cannot be read"):
        load_task(str(path))


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "some.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataUnavailableError, match="cannot be read"):
        load_task(str(path))


def test_pickled_objects_are_refused_and_not_run(npz, capsys):
    class Trap:
        def __reduce__(self):
            return print, ("unpickled",)

    path = npz(x_train=np.array([Trap()] * 12, dtype=object))
    with pytest.raises(DataUnavailableError, match="cannot be read"):
        load_task(path)
    assert "unpickled" not in capsys.readouterr().out


def test_an_npz_is_looked_for_in_the_data_folder(npz, tmp_path, monkeypatch):
    npz()
    assert load_task("some.npz", tmp_path).classes == 3
    monkeypatch.setenv("FLWR_ROBUST_DATA", str(tmp_path))
    assert load_task("some.npz").classes == 3
    with pytest.raises(DataUnavailableError, match=r"other\.npz is not a file; .*" + tmp_path.name):
        load_task("other.npz")


def test_data_folder(monkeypatch):
    monkeypatch.delenv("FLWR_ROBUST_DATA", raising=False)
    assert str(data_folder()) == "data"
    monkeypatch.setenv("FLWR_ROBUST_DATA", "elsewhere")
    assert str(data_folder()) == "elsewhere"
    assert str(data_folder("here")) == "here"  # the option comes first


def test_a_file_written_anew_is_read_anew(npz):
    first = load_task(npz())
    assert load_task(first.name) is first
    second = load_task(npz(y_train=(np.arange(12) + 1) % 3))
    assert second.y_train.tolist() == [1, 2, 0] * 4
    assert second.digest == content_digest(second.name) != first.digest


def test_texts_are_numbered_in_their_order(npz):
    task = load_task(npz(y_train=np.array(["yes", "no", "so"] * 4), y_test=np.array(["so"] * 6)))
    assert task.labels == ("no", "so", "yes")
    assert task.y_train.tolist() == [2, 0, 1] * 4
    assert (task.y_test.tolist(), task.classes) == ([1] * 6, 3)


def test_owners_are_numbered(npz):
    task = load_task(npz(owners_train=np.array(["rome", "oslo", "rome"] * 4)))
    assert task.owners.tolist() == [1, 0, 1] * 4
    assert task.test_owners is None
    assert load_task("digits").owners is None


def test_owners_of_test_samples_have_the_numbers_of_the_training_ones(npz):
    held, asked = np.array(["rome", "oslo", "rome"] * 4), np.array(["oslo", "rome", "paris"])
    x, y = np.zeros((12, 2)), np.arange(12) % 2
    task = task_of("sites", x, y, x[:3], y[:3], held, test_owners=asked)
    assert task.test_owners.tolist() == [0, 1, -1]
    with pytest.raises(ConfigurationError, match="task sites: owners_test needs owners_train; got none"):
        task_of("sites", x, y, x[:3], y[:3], test_owners=asked)
    with pytest.raises(ConfigurationError, match=r"owners_test must hold .* one owner per test sample, 3 in all"):
        task_of("sites", x, y, x[:3], y[:3], held, test_owners=asked[:2])


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint16, ">i8"])
def test_tokens_stay_numbers(npz, kind):
    x = np.arange(12 * 5).reshape(12, 5)
    task = load_task(npz(x_train=x.astype(kind), x_test=(x[:6] + 40).astype(kind), tokens=np.array(True)))
    assert (task.tokens, task.shape, task.vocabulary) == (True, (5,), 70)
    seen, labels = task.batch(torch.tensor([11, 0]))
    assert seen.dtype == torch.int64
    assert seen.tolist() == [[55, 56, 57, 58, 59], [0, 1, 2, 3, 4]]
    assert labels.tolist() == [2, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of numbers that are hardly scaled
        numbers = load_task(npz(x_train=x.astype(np.int64), x_test=x[:6].astype(np.int64), tokens=np.array(False)))
    assert (numbers.tokens, numbers.vocabulary) == (False, 0)
    assert numbers.inputs(numbers.x_train).dtype == torch.float32


def test_tokens_of_the_form_of_images_are_not_turned():
    x = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3, 1)
    task = task_of("own", x, np.arange(4) % 2, x, np.arange(4) % 2, tokens=True)
    assert task.shape == (5, 3, 1)
    assert task.inputs(task.x_test).flatten().tolist() == list(range(60))


@pytest.mark.parametrize("x", [np.full((4, 2), 0.5), np.full((4, 2), -1)])
def test_what_is_no_token_is_refused(x):
    with pytest.raises(
        ConfigurationError, match=r"x_train must hold token numbers, integers >= 0, .*number the tokens"
    ):
        task_of("own", x, np.arange(4) % 2, x, np.arange(4) % 2, tokens=True)


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (1000.0, True)])
def test_inputs_that_are_not_scaled_are_named(npz, factor, warned):
    path = npz(x_train=factor * arrays()["x_train"])
    if not warned:
        load_task(path)
        return
    with pytest.warns(DataWarning, match=r"x_train reaches from -\d+.* and is not scaled"):
        load_task(path)


OWN = """
import numpy as np, torch
from torch.utils.data import Dataset, TensorDataset
from flwr_robust.tasks import Task, task_of
rng = np.random.default_rng(0)
class Listed(Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, index): return torch.full((3, 2), float(index)), index % 2
def sets(folder): return Listed(8), Listed(4)
def tensors(folder): return [TensorDataset(torch.zeros(n, 3), torch.arange(n) % 3) for n in (6, 3)]
def arrays(folder): return task_of("own", rng.random((6, 3)), np.arange(6) % 2, rng.random((2, 3)), np.arange(2))
def ragged(folder): return [(torch.zeros(2), 0), (torch.zeros(3), 1)], Listed(4)
def one_hot(folder):
    x, y = torch.zeros(4, 3), torch.eye(2)[torch.arange(4) % 2]
    return Task("own", x, y, x, y, 2)
def gaps(folder):
    x, y = torch.zeros(4, 3), torch.arange(4) % 2
    return Task("own", x, y, x, y, 5)
def raises(folder): raise KeyError("column")
def nothing(folder): return 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return how a configuration names a function of a file of tasks."""
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")  # and afterwards as it was
    path = tmp_path / f"own_tasks_{abs(hash(tmp_path))}.py"
    path.write_text(OWN)
    yield lambda function: f"{path}:{function}"
    spec.sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("function", "shape", "classes", "samples"),
    [("sets", (3, 2), 2, 8), ("tensors", (3,), 3, 6), ("arrays", (3,), 2, 6)],
)
def test_a_task_of_ones_own(own, function, shape, classes, samples):
    task = load_task(own(function))
    assert (task.name, task.shape, task.classes, len(task.y_train)) == (own(function), shape, classes, samples)
    if function == "sets":
        assert task.x_train[5].eq(5).all()
        assert task.y_train.tolist() == [0, 1] * 4


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("ragged", "cannot be read as pairs of an input and a target, all inputs of one shape"),
        ("one_hot", "if it is one-hot, pass y.argmax"),
        ("gaps", "classes must be the number of classes in y_train, 2; got classes=5"),
        ("nothing", "must return a Task .*; got int"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_task_of_ones_own_that_does_not_fit(own, function, words):
    with pytest.raises(ConfigurationError, match=words):
        load_task(own(function))


def test_the_page_of_ones_own_data(own, tmp_path):
    """Its code is a task whose clients are its hospitals, in a run that learns."""
    from flwr_robust.runs.config import RunConfig
    from flwr_robust.runs.fast import simulate

    page = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text()
    path = Path(own("").rpartition(":")[0])
    path.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    config = RunConfig(task=own("patients"), partition="natural", clients=3, rounds=60, evaluate_every=60)
    assert config.data_set.labels == ("ill", "well")
    assert [len(part) for part in config.samples] == torch.bincount(config.data_set.owners).tolist()
    assert simulate(config)["curve"][-1]["accuracy"] > 0.7


def test_a_result_names_its_data_and_does_not_go_with_others(npz, tmp_path):
    from flwr_robust import FlwrRobustError
    from flwr_robust.studies.runner import read_results, run_study
    from flwr_robust.studies.study import load_study

    path = npz()
    study = tmp_path / "own.toml"
    study.write_text(
        f'title = "t"\nquestion = "q"\n[config]\ntask = "{path}"\nclients = 2\nrounds = 2\n[axes]\ndefence = ["mean"]\n'
    )
    run_study(load_study(str(study)), tmp_path / "out", engine="fast", workers=1)
    (found,) = read_results(load_study(str(study)), tmp_path / "out")
    assert found["data_sha256"] == content_digest(path)
    npz(y_train=(np.arange(12) + 1) % 3)
    with pytest.raises(FlwrRobustError, match=r"is of other data than .* holds now; delete it"):
        read_results(load_study(str(study)), tmp_path / "out")


def test_a_task_of_ones_own_that_fails(own):
    with pytest.raises(DataUnavailableError, match=r"its function fails \(KeyError: 'column'\)"):
        load_task(own("raises"))


# -- torchvision's -------------------------------------------------------------------------------

CLASSES = {"mnist": "MNIST", "emnist": "EMNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}


@pytest.mark.parametrize("name", CLASSES)
def test_data_that_are_nowhere(name, tmp_path, monkeypatch):
    import torchvision

    tried = []

    def missing(root, train, download, **options):
        tried.append(download)
        raise RuntimeError("Dataset not found") if not download else OSError("no network")

    monkeypatch.setattr(torchvision.datasets, CLASSES[name], missing)
    with pytest.raises(DataUnavailableError) as caught:
        load_task(name, tmp_path / "nothing")
    message = str(caught.value)
    assert all(word in message for word in (name, "nothing", f"{name}.npz", "FLWR_ROBUST_DATA", "OSError"))
    assert tried == [False, True]  # it did try to download
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", CLASSES)
def test_data_on_disk(name, tmp_path, monkeypatch):
    import torchvision

    colour = name == "cifar10"

    class OnDisk:
        def __init__(self, root, train, download, **options):
            assert root == str(tmp_path / name)
            assert not download
            assert options == ({"split": "byclass"} if name == "emnist" else {})
            x = pictures(20 if train else 10, *((4, 5, 3) if colour else (4, 5)), seed=train)
            labels = np.arange(len(x)) % 10
            # torchvision has tensors for MNIST, an array and a list for CIFAR-10.
            self.data = x if colour else torch.from_numpy(x)
            self.targets = labels.tolist() if colour else torch.from_numpy(labels)

    monkeypatch.setattr(torchvision.datasets, CLASSES[name], OnDisk)
    task = load_task(name, tmp_path / name)
    assert (task.shape, task.classes) == ((3, 4, 5) if colour else (1, 4, 5), 10)
    assert (len(task.x_train), len(task.x_test)) == (20, 10)
    stored = pictures(20, *((4, 5, 3) if colour else (4, 5)), seed=True)
    np.testing.assert_array_equal(task.x_train[3, -1], stored[3, :, :, -1] if colour else stored[3])
    assert task.y_test.tolist() == list(range(10))
    assert float(task.inputs(torch.tensor([255], dtype=torch.uint8))) == 1


def test_emnist_has_as_many_classes_as_its_labels(tmp_path, monkeypatch):
    import torchvision

    class OnDisk:
        def __init__(self, root, train, download, split):
            self.data, self.targets = torch.zeros(124, 4, 5, dtype=torch.uint8), torch.arange(124) % 62

    monkeypatch.setattr(torchvision.datasets, "EMNIST", OnDisk)
    assert load_task("emnist", tmp_path / "letters").classes == 62


def test_an_npz_stands_in_for_the_files(npz, tmp_path):
    npz(x_train=pictures(12, 4, 4), x_test=pictures(6, 4, 4))
    (tmp_path / "some.npz").rename(tmp_path / "mnist.npz")
    task = load_task("mnist", tmp_path)
    assert (task.name, task.shape, task.classes) == ("mnist", (1, 4, 4), 3)


def test_an_unknown_task_lists_the_tasks():
    with pytest.raises(UnknownNameError) as caught:
        load_task("minst")
    message = str(caught.value)
    assert all(name in message for name in [*TASKS, "<path>.npz", "Did you mean 'mnist'?"])


# -- models --------------------------------------------------------------------------------------

SHAPES = {"softmax": (1, 28, 28), "mlp": (1, 28, 28), "cnn": (3, 32, 32), "small_cnn": (1, 28, 28)}
SHAPES["dropout_cnn"] = SHAPES["small_cnn"]
COUNTS = {"softmax": 7850, "mlp": 42310, "cnn": 268650, "small_cnn": 80 + 1168 + 50240 + 650}
COUNTS["dropout_cnn"] = COUNTS["small_cnn"]


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_counts(name, parameters):
    model = build_model(name, SHAPES[name], 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, *SHAPES[name])).shape == (2, 10)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_models_fit_other_inputs():
    assert set(SHAPES) == {name for name in MODELS if not depends_on_data(name)}
    assert build_model("softmax", (5,), 3, seed=0)(torch.zeros(2, 5)).shape == (2, 3)
    assert build_model("mlp", (5,), 3, seed=0)(torch.zeros(2, 5)).shape == (2, 3)
    for shape in ((1, 8, 8), (2, 4, 4), (1, 9, 7)):  # odd sizes are rounded down by the pooling
        for name in ("cnn", "small_cnn", "dropout_cnn"):
            assert build_model(name, shape, 3, seed=0)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", ["cnn", "small_cnn", "dropout_cnn"])
@pytest.mark.parametrize("shape", [(5,), (1, 3, 8), (8, 8)])
def test_the_cnn_needs_images(name, shape):
    with pytest.raises(ConfigurationError, match=f"model {name} needs images"):
        build_model(name, shape, 3, seed=0)


def test_an_unknown_model_lists_the_models():
    with pytest.raises(
        UnknownNameError,
        match="unknown model 'resnet'; allowed: <module>:<function>, char_gru, char_lstm, cnn, dropout_cnn",
    ):
        build_model("resnet", (1, 8, 8), 10, seed=0)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", SHAPES)
def test_the_initialisation_is_seeded(name):
    def drawn(seed):
        return flat(build_model(name, SHAPES[name], 10, seed))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    state = torch.get_rng_state()
    first = drawn(3)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(drawn(3), first)


@pytest.mark.parametrize("name", SHAPES)
def test_the_initialisation_is_pytorch_s(name):
    ours = build_model(name, SHAPES[name], 10, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = MODELS[name](SHAPES[name], 10)
    for (key, mine), (other, default) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert key == other
        assert mine.shape == default.shape
        layer = ours.get_submodule(key.rpartition(".")[0])
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for sample in (mine, default):  # uniform in +-bound, which is what PyTorch draws from, too
            assert float(sample.abs().max()) <= bound * (1 + 1e-6)
            if sample.numel() >= 400:
                assert float(sample.abs().max()) > 0.98 * bound
                assert float(sample.std()) == pytest.approx(bound / math.sqrt(3), rel=0.08)
                assert abs(float(sample.mean())) < 5 * bound / math.sqrt(3 * sample.numel())
        assert not torch.equal(mine, default)


# -- the learner ---------------------------------------------------------------------------------


def softmax_gradient(weight, bias, x, y, decay):
    """Of the mean cross-entropy plus decay / 2 times the squared parameters, in float64."""
    z = x @ weight.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y) + decay * weight, p.mean(0) + decay * bias


def batch(n=20, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), rng.integers(0, classes, n)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_gradient_is_that_of_softmax_regression(decay):
    x, y = batch()
    learner = Learner(build_model("softmax", (6,), 4, seed=0), weight_decay=decay)
    weight, bias = (a.astype(float) for a in learner.arrays())
    found = learner.gradient(torch.from_numpy(x), torch.from_numpy(y))
    expected = softmax_gradient(weight, bias, x.astype(float), y, decay)
    assert [tuple(g.shape) for g in found] == [(4, 6), (4,)]
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-6)
    # The bias decays, too, and without decay that would show.
    if decay:
        plain = softmax_gradient(weight, bias, x.astype(float), y, 0.0)
        assert np.abs(found[1].numpy() - plain[1]).max() > 1e-3


def test_the_gradient_leaves_no_trace():
    x, y = batch()
    learner = Learner(build_model("mlp", (6,), 4, seed=0), weight_decay=0.1)
    before = learner.arrays()
    first = learner.gradient(torch.from_numpy(x), torch.from_numpy(y))
    second = learner.gradient(torch.from_numpy(x), torch.from_numpy(y))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(first, second, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, learner.arrays(), strict=True))
    assert all(p.grad is None for p in learner.parameters)


def test_a_small_step_down_lowers_the_loss():
    x, y = (torch.from_numpy(a) for a in batch())
    learner = Learner(build_model("mlp", (6,), 4, seed=0))
    loss = learner.evaluate(x, y)["loss"]
    gradient = learner.gradient(x, y)
    before = learner.arrays()
    learner.descend(gradient, 0.01)
    after = learner.evaluate(x, y)["loss"]
    squared = sum(float(g.square().sum()) for g in gradient)
    assert loss - after == pytest.approx(0.01 * squared, rel=0.1)
    for old, new, g in zip(before, learner.arrays(), gradient, strict=True):
        np.testing.assert_allclose(new, old - 0.01 * g.numpy(), atol=1e-7)


def test_arrays_go_in_and_come_out():
    learner = Learner(build_model("mlp", (6,), 4, seed=0))
    other = Learner(build_model("mlp", (6,), 4, seed=1))
    assert learner.names == ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"]
    given = other.arrays()
    learner.load(given)
    assert all(np.array_equal(a, b) for a, b in zip(learner.arrays(), given, strict=True))
    # They are copies, both ways.
    given[0][:] = 7
    learner.arrays()[1][:] = 7
    assert not any((a == 7).any() for a in learner.arrays())
    with pytest.raises(ValueError, match="zip"):
        learner.load(given[:-1])


def test_buffers_are_arrays_too():
    learner = Learner(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert len(learner.names) == len(learner.arrays()) == 7
    assert len(learner.parameters) == 4
    arrays = learner.arrays()
    arrays[learner.names.index("1.running_mean")][:] = 5
    learner.load(arrays)
    assert learner.model[1].running_mean.tolist() == [5, 5]


@pytest.mark.parametrize("shape", [(1, 6), (4, 1), (1,)])
def test_arrays_of_other_shapes_are_refused(shape):
    learner = Learner(build_model("softmax", (6,), 4, seed=0))
    with pytest.raises((ValueError, RuntimeError)):
        learner.load([np.zeros(shape, np.float32), np.zeros(4, np.float32)])


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 2500])
def test_evaluation_in_chunks(n):
    x, y = batch(n, 6, 4)
    learner = Learner(build_model("softmax", (6,), 4, seed=0))
    sizes = []
    learner.model.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    found = learner.evaluate(torch.from_numpy(x), torch.from_numpy(y))
    weight, bias = (a.astype(float) for a in learner.arrays())
    z = x @ weight.T + bias
    z -= z.max(1, keepdims=True)
    logs = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert found["loss"] == pytest.approx(-logs[np.arange(n), y].mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((z.argmax(1) == y).mean())
    assert sum(sizes) == n
    assert max(sizes) <= 1000
    assert len(sizes) == math.ceil(n / 1000)


def test_scores_are_the_model_s_without_a_graph():
    learner = Learner(build_model("softmax", (6,), 4, seed=0))
    x = torch.from_numpy(batch()[0])
    assert not learner.scores(x).requires_grad
    torch.testing.assert_close(learner.scores(x), learner.model(x).detach())


def test_learning_digits_works():
    # Two-sided: untrained it guesses, trained it does not, and it is not perfect either.
    task = load_task("digits")
    learner = Learner(build_model("softmax", task.shape, task.classes, seed=0))
    x, x_test = task.inputs(task.x_train), task.inputs(task.x_test)
    assert learner.evaluate(x_test, task.y_test)["accuracy"] < 0.4
    for _ in range(100):
        learner.descend(learner.gradient(x, task.y_train), 0.5)
    assert 0.9 < learner.evaluate(x_test, task.y_test)["accuracy"] < 0.99
