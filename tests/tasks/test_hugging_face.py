"""Tasks of Hugging Face's data sets: images, tables and tokens, and one sentence for what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, UnknownNameError
from flwr_robust.tasks import task_from_dataset

datasets = pytest.importorskip("datasets")
images = pytest.importorskip("PIL.Image")

PIXELS = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)


def pictures(pixels, modes="RGB", labels=(0, 1, 0, 1), **columns):
    modes = [modes] * len(pixels) if isinstance(modes, str) else modes
    made = [images.fromarray(image).convert(mode) for image, mode in zip(pixels, modes, strict=True)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    features |= {name: datasets.Value("string") for name in columns}
    rows = {"image": made, "label": list(labels), **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def test_images_have_their_colours_names_and_owners():
    task = task_from_dataset(pictures(PIXELS, site=["a", "b", "a", "c"]), pictures(PIXELS[::-1]), owners="site")
    np.testing.assert_array_equal(task.x_train, PIXELS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(task.x_test, PIXELS[::-1].transpose(0, 3, 1, 2))
    assert (task.labels, task.y_train.tolist(), task.owners.tolist()) == (("cat", "dog"), [0, 1, 0, 1], [0, 1, 0, 2])
    assert task.inputs(task.x_train).min() == -1


def test_images_stay_grey_if_all_are():
    grey = PIXELS[..., 0]
    task = task_from_dataset(pictures(grey, "L"), pictures(grey, "L"))
    np.testing.assert_array_equal(task.x_train, grey[:, None])
    task = task_from_dataset(pictures(grey, "L"), pictures(PIXELS))
    np.testing.assert_array_equal(task.x_train, np.repeat(grey[:, None], 3, axis=1))
    task = task_from_dataset(pictures(PIXELS, ["RGB", "L", "RGBA", "RGB"]), pictures(PIXELS))
    np.testing.assert_array_equal(task.x_train[2], PIXELS[2].transpose(2, 0, 1))
    assert (task.x_train[1][0] == task.x_train[1][2]).all()


def test_columns_of_numbers_are_features():
    train = table(age=[30, 40, 50], fever=[True, False, True], outcome=["ill", "well", "ill"])
    task = task_from_dataset(train, train.select([1]), ["age", "fever"], "outcome")
    assert task.x_train.tolist() == [[30, 1], [40, 0], [50, 1]]
    assert task.x_train.dtype == torch.float32
    assert (task.labels, task.y_test.tolist()) == (("ill", "well"), [1])
    task = task_from_dataset(train, train, "age", "fever")
    assert (task.shape, task.y_train.tolist()) == ((1,), [1, 0, 1])


def test_arrays_of_bytes_are_images():
    features = datasets.Features({"x": datasets.Array3D((6, 5, 3), "uint8"), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"x": PIXELS, "label": [0, 1, 1, 0]}, features=features)
    task = task_from_dataset(rows, rows, "x")
    np.testing.assert_array_equal(task.x_train, PIXELS.transpose(0, 3, 1, 2))
    assert task.scale == 1 / 127.5


def test_columns_of_other_targets():
    rows = table(
        x=[[1.0, 2.0], [3.0, 4.0]], price=[0.5, 1.5], genres=[[True, False], [True, True]], next=[[1, 2], [2, 0]]
    )
    task = task_from_dataset(rows, rows, "x", "price", target="values")
    assert (task.target, task.y_train.tolist()) == ("values", [[0.5], [1.5]])
    task = task_from_dataset(rows, rows, "x", "genres", target="labels")
    assert (task.classes, task.y_test.tolist()) == (2, [[1, 0], [1, 1]])
    assert task_from_dataset(rows, rows, "x", "next", target="tokens").scores == (2, 3)
    with pytest.raises(ConfigurationError, match="say target='labels'"):
        task_from_dataset(rows, rows, "x", "genres")


def test_lists_of_token_numbers():
    train = table(words=[[3, 0, 1], [2, 2, 2]], label=[0, 1]).with_format("torch")
    task = task_from_dataset(train, train, "words", tokens=True)
    assert (task.tokens, task.vocabulary, task.shape) == (True, 4, (3,))
    assert task.inputs(task.x_train).tolist() == [[3, 0, 1], [2, 2, 2]]
    assert task_from_dataset(train, train, "words").inputs(task.x_train).dtype == torch.float32


def test_the_page_of_ones_own_data():
    page = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text()
    shown: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), shown)
    task = shown["patients_of_a_table"](None)
    assert (task.labels, task.owners.tolist(), task.shape) == (("ill", "well"), [0, 1, 0, 1], (2,))
    assert task.test_owners.tolist() == [0, 1, 0, 1]


good = {"x": [[0.0, 1.0], [1.0, 0.0]], "label": [0, 1]}


@pytest.mark.parametrize(
    ("train", "inputs", "words"),
    [
        (
            table(**good | {"x": [[0.0], [1.0, 0.0]]}),
            "x",
            "the rows of column x of train must have one length; pad or cut",
        ),
        (
            table(**good | {"x": ["to be", "or not"]}),
            "x",
            "must hold numbers; got texts such as 'to be': turn them into",
        ),
        (table(**good | {"x": [1.0, None]}), "x", "must hold a number in every row; got object with 1 missing values"),
        (table(**good | {"label": [0, None]}), "x", "column label of train must hold a label in every row"),
        (table(**good | {"label": [0, 2]}), "x", "must hold all class numbers from 0 to the largest"),
        (table(**good | {"label": [-1, 0]}), "x", "must hold class numbers"),
        (table(**good).select([]), "x", "train must hold samples; it is empty"),
        (table(**good).to_iterable_dataset(), "x", "must be a datasets.Dataset.* got IterableDataset: take one split"),
        (
            datasets.DatasetDict(train=table(**good)),
            "x",
            "must be a datasets.Dataset.* got DatasetDict: take one split",
        ),
        (good, "x", "must be a datasets.Dataset.* got dict"),
    ],
)
def test_what_does_not_fit_is_named(train, inputs, words):
    with pytest.raises(ConfigurationError, match=f"^task dataset: .*{words}"):
        task_from_dataset(train, table(**good), inputs)
    task_from_dataset(table(**good), table(**good), inputs)


def test_other_mistakes_are_named():
    rows = table(**good)
    with pytest.raises(UnknownNameError, match="column of train of task dataset 'image'; allowed: label, x"):
        task_from_dataset(rows, rows)
    with pytest.raises(UnknownNameError, match="column of test of task mine 'label'"):
        task_from_dataset(rows, rows.remove_columns("label"), "x", name="mine")
    with pytest.raises(UnknownNameError, match="column of train of task dataset 'site'"):
        task_from_dataset(rows, rows, "x", owners="site")
    with pytest.raises(ConfigurationError, match="must name an owner in every row"):
        task_from_dataset(table(**good, site=["a", None]), rows, "x", owners="site")
    with pytest.raises(ConfigurationError, match=r"must have one size; got \(6, 5\) in row 0 and \(5, 6\) in row 1"):
        task_from_dataset(pictures([PIXELS[0], PIXELS[1].transpose(1, 0, 2)], labels=(0, 1)), pictures(PIXELS))
