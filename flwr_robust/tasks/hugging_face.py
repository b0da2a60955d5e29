"""Tasks of Hugging Face's data sets, which Flower Datasets hands out, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.tasks.data import Task, task_of

__all__ = ["task_from_dataset"]


def task_from_dataset(
    train: Any,
    test: Any,
    inputs: str | Sequence[str] = "image",
    labels: str = "label",
    owners: str | None = None,
    *,
    tokens: bool = False,
    target: str = "class",
    name: str = "dataset",
) -> Task:
    """Make a task of two ``datasets.Dataset``, such as ``load_dataset(..., split="train")`` returns.

    Parameters
    ----------
    train, test : datasets.Dataset
        Training and test samples.
    inputs : str or sequence of str
        The column of the inputs: images, arrays, lists of numbers or numbers. Images must have one size. They become
        uint8, grey if all of them are, else red, green and blue. Or several columns of numbers, which become float32.
    labels : str
        The column of the targets. For classes it holds class numbers, ``ClassLabel``, truth values or texts; for other
        kinds of target numbers, or lists of numbers.
    owners : str, optional
        The column of ``train``, and perhaps of ``test``, that says who a sample came from, as numbers or texts; for
        the partition ``natural``.
    tokens : bool
        Whether inputs are token numbers, as for `task_of`.
    target : str
        The kind of target, as for `task_of`.
    name : str
        What errors and results call the task; a study calls it by what it names.

    Raises
    ------
    UnknownNameError
        If a data set lacks a column.
    ConfigurationError
        If something else than a ``datasets.Dataset`` is given, or a column cannot be used as it is.

    Examples
    --------
    A file ``mine.py``, for ``task = "mine.py:make"``:

    >>> def make(folder):
    ...     from datasets import load_dataset
    ...     train, test = load_dataset("ylecun/mnist", split=["train", "test"], cache_dir=folder)
    ...     return task_from_dataset(train, test)
    """
    for part, rows in (("train", train), ("test", test)):
        _check(name, part, rows, [*_columns(inputs), labels, *([owners] if owners and part == "train" else [])])
    x_train, x_test = (_inputs(name, part, rows, inputs) for part, rows in (("train", train), ("test", test)))
    if isinstance(x_train, list):  # images
        colours = max(image.ndim for image in [*x_train, *x_test]) == 3
        x_train, x_test = (np.stack([_coloured(image) if colours else image for image in x]) for x in (x_train, x_test))
    read = _labels if target == "class" else _numbers
    y_train, y_test = (read(name, part, rows, labels) for part, rows in (("train", train), ("test", test)))
    held_by = _owners(name, "train", train, owners) if owners else None
    tested = _owners(name, "test", test, owners) if owners and owners in test.features else None
    task = task_of(name, x_train, y_train, x_test, y_test, held_by, tokens=tokens, target=target, test_owners=tested)
    names = tuple((target == "class" and getattr(train.features[labels], "names", None)) or ())
    return task if task.labels or len(names) != task.classes else replace(task, labels=names)


def _columns(inputs: str | Sequence[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else list(inputs)


def _check(name: str, part: str, rows: Any, columns: list[str]) -> None:
    """Refuse what is no ``datasets.Dataset``, is empty, or lacks a column."""
    if not all(hasattr(rows, each) for each in ("features", "with_format", "__len__")) or isinstance(rows, dict):
        raise ConfigurationError(
            f"task {name}: {part} must be a datasets.Dataset, such as load_dataset(..., split='{part}') returns; got "
            f"{type(rows).__name__}: take one split, and do not stream it"
        )
    for column in columns:
        if column not in rows.features:
            raise UnknownNameError(f"column of {part} of task {name}", column, rows.features)
    if len(rows) == 0:
        raise ConfigurationError(f"task {name}: {part} must hold samples; it is empty")


def _values(rows: Any, column: str) -> list[Any]:
    return list(rows.with_format(None)[column])


def _inputs(name: str, part: str, rows: Any, inputs: str | Sequence[str]) -> Any:
    """Return inputs (N, ...), or a list of images (H, W) or (H, W, 3)."""
    if not isinstance(inputs, str):
        return np.stack([_numbers(name, part, rows, column) for column in inputs], axis=1).astype(np.float32)
    if type(rows.features[inputs]).__name__ == "Image":
        return _images(name, part, rows, inputs)
    found = _numbers(name, part, rows, inputs)
    return found[:, None] if found.ndim == 1 else found


def _images(name: str, part: str, rows: Any, column: str) -> list[NDArray[Any]]:
    """Return images of one size, each grey or with three colours."""
    images: list[NDArray[Any]] = []
    for index, image in enumerate(rows.with_format(None)[column]):
        if image is None:
            raise ConfigurationError(
                f"task {name}: column {column} of {part} lacks the image in row {index}; leave out such rows"
            )
        images.append(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
        if images[-1].shape[:2] != images[0].shape[:2]:
            raise ConfigurationError(
                f"task {name}: all images in column {column} of {part} must have one size; got {images[0].shape[:2]} "
                f"in row 0 and {images[-1].shape[:2]} in row {index}: resize them by {part}.map"
            )
    return images


def _coloured(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def _numbers(name: str, part: str, rows: Any, column: str) -> NDArray[Any]:
    """Return a column of numbers, or of lists of numbers of one length, as one array; bytes stay bytes."""
    values, feature = _values(rows, column), rows.features[column]
    while hasattr(feature, "feature"):  # what a list holds
        feature = feature.feature
    try:
        found = np.asarray(values)
    except ValueError:  # rows of several lengths
        raise ConfigurationError(
            f"task {name}: the rows of column {column} of {part} must have one length; pad or cut them by {part}.map"
        ) from None
    if found.dtype.kind == "U":
        raise ConfigurationError(
            f"task {name}: column {column} of {part} must hold numbers; got texts such as {values[0]!r}: turn them "
            f"into token numbers by {part}.map, and say tokens=True"
        )
    if found.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"task {name}: column {column} of {part} must hold a number in every row; got {found.dtype} with "
            f"{sum(value is None for value in values)} missing values: fill them in, or leave out the rows"
        )
    if found.dtype.kind in "bf":
        return found.astype(np.float32)
    return found.astype(np.uint8) if getattr(feature, "dtype", "") == "uint8" else found


def _labels(name: str, part: str, rows: Any, column: str) -> NDArray[Any]:
    values = _values(rows, column)
    if any(value is None for value in values):
        raise ConfigurationError(
            f"task {name}: column {column} of {part} must hold a label in every row; leave out the rows without one"
        )
    found = np.asarray(values)
    return found.astype(np.int64) if found.dtype.kind == "b" else found


def _owners(name: str, part: str, rows: Any, column: str) -> NDArray[Any]:
    values = _values(rows, column)
    if any(value is None for value in values):
        raise ConfigurationError(
            f"task {name}: column {column} of {part} must name an owner in every row; leave out the rows without one"
        )
    return np.asarray(values)
