"""Targets: what a model learns to predict, of which kind, and how arrays of each kind are read.

class
    One class per sample: int64 (N,). A model gives scores (b, K).
values
    Regression: float32 (N, K), K numbers per sample; arrays (N,) become (N, 1). A model gives scores (b, K), which are
    the predicted values.
labels
    Multi-label: float32 (N, K) of 0 and 1. A model gives scores (b, K); a label is predicted where its score is
    above 0.
tokens
    Next token: int64 (N, T), the token that follows each position, 0 .. K - 1. A model gives scores (b, T, K).
    `IGNORED` marks positions that do not count, such as padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.errors import ConfigurationError

__all__ = ["IGNORED", "TARGETS", "Target", "Targets", "check_targets", "read_targets"]

IGNORED = -100
"""The target of a position that does not count; as PyTorch's cross-entropy has it."""


@dataclass(frozen=True)
class Target:
    """A kind of target.

    Attributes
    ----------
    name : str
        Its name.
    doc : str
        What it is, in a few words.
    losses : tuple of str
        The losses that fit it; the first is the default.
    metrics : tuple of str
        What is measured always, in the order of a curve's point.
    """

    name: str
    doc: str
    losses: tuple[str, ...]
    metrics: tuple[str, ...]


_ALL = (
    Target(
        "class",
        "one class per sample",
        ("cross_entropy",),
        ("loss", "accuracy", "balanced_accuracy", "macro_f1", "worst_class", "calibration_error"),
    ),
    Target(
        "values",
        "real numbers (regression)",
        ("squared_error", "absolute_error", "huber"),
        ("loss", "mean_absolute_error", "root_mean_squared_error", "r2"),
    ),
    Target(
        "labels",
        "several labels per sample",
        ("binary_cross_entropy",),
        ("loss", "accuracy", "macro_f1", "exact_match"),
    ),
    Target("tokens", "the next token at each position", ("cross_entropy",), ("loss", "accuracy", "perplexity")),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _ALL})
"""The kinds of targets, by name."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a task.

    Attributes
    ----------
    train, test : Tensor
        Of the kind's type and shape.
    classes : int
        K, the number of scores.
    names : tuple of str
        The names of the classes, if they were texts.
    """

    train: Tensor
    test: Tensor
    classes: int
    names: tuple[str, ...] = ()


def read_targets(where: str, kind: str, y_train: NDArray[Any], y_test: NDArray[Any]) -> Targets:
    """Return the targets of both parts as tensors.

    Parameters
    ----------
    where : str
        What errors call the task.
    kind : str
        A name in `TARGETS`.
    y_train, y_test : array (N, ...)
        The targets as stored.

    Raises
    ------
    ConfigurationError
        If they are not of this kind.
    """
    if kind == "class":
        return _classes(where, y_train, y_test)
    read = {"values": _values, "labels": _marks, "tokens": _tokens}[kind]
    train, test = (read(where, part, y) for part, y in (("train", y_train), ("test", y_test)))
    if train.shape[1:] != test.shape[1:]:
        raise ConfigurationError(
            f"task {where}: y_train and y_test must hold targets of one shape; got {tuple(y_train.shape)} and "
            f"{tuple(y_test.shape)}"
        )
    classes = max(int(train.max()), int(test.max())) + 1 if kind == "tokens" else train.shape[1]
    return Targets(train, test, classes)


def check_targets(where: str, kind: str, classes: int, y_train: Tensor, y_test: Tensor) -> None:
    """Raise unless the tensors of a user's task are targets as `read_targets` would return them.

    Parameters
    ----------
    where, kind
        As for `read_targets`.
    classes : int
        The number of scores that the task states. Tokens may be fewer.
    y_train, y_test : Tensor
        The targets.

    Raises
    ------
    ConfigurationError
        If they are not.
    """
    least = read_targets(where, kind, y_train.numpy(), y_test.numpy()).classes
    form = {
        "class": "a tensor (N,) of int64",
        "values": "a tensor (N, K) of float32",
        "labels": "a tensor (N, K) of float32",
        "tokens": "a tensor (N, T) of int64",
    }[kind]
    dimensions = 1 if kind == "class" else 2
    kept = torch.int64 if kind in ("class", "tokens") else torch.float32
    for part, y in (("train", y_train), ("test", y_test)):
        if y.dim() != dimensions or y.dtype != kept:
            raise ConfigurationError(
                f"task {where}: y_{part} must be {form} with target={kind!r}; got {y.dtype} of shape {tuple(y.shape)}"
            )
    if classes != least and not (kind == "tokens" and classes > least):
        what = {"class": "classes", "tokens": "tokens"}.get(kind, "columns")
        raise ConfigurationError(
            f"task {where}: classes must be the number of {what} in y_train, {least}; got classes={classes}"
        )


def _classes(where: str, y_train: NDArray[Any], y_test: NDArray[Any]) -> Targets:
    """Return the labels of both parts as class numbers, and the names of the classes if they are texts."""
    for part, y in (("train", y_train), ("test", y_test)):
        if y.ndim > 1 and y.size != len(y):
            raise ConfigurationError(
                f"task {where}: y_{part} must hold one label per sample; got shape {y.shape}: if it is one-hot, pass "
                f"y.argmax(1); if several labels may hold at once, say target='labels'"
            )
    y_train, y_test = y_train.reshape(-1), y_test.reshape(-1)
    names: tuple[str, ...] = ()
    if y_train.dtype.kind == y_test.dtype.kind == "U":
        known = np.unique(y_train)
        _check_known(where, set(y_test.tolist()) - set(known.tolist()))
        names = tuple(known.tolist())
        y_train, y_test = np.searchsorted(known, y_train), np.searchsorted(known, y_test)
    for part, y in (("train", y_train), ("test", y_test)):
        if y.dtype.kind not in "uif" or not np.isfinite(y).all() or (y != np.floor(y)).any() or y.min() < 0:
            raise ConfigurationError(
                f"task {where}: y_{part} must hold class numbers 0, 1, ..., or texts in both parts; got {y.dtype} "
                f"{y[:5]}: for real numbers say target='values'"
            )
    held = np.unique(y_train)
    if held[-1] != len(held) - 1:
        raise ConfigurationError(
            f"task {where}: y_train must hold all class numbers from 0 to the largest; got {len(held)} classes up to "
            f"{int(held[-1])}: number them anew, for example by numpy.unique(y, return_inverse=True)"
        )
    _check_known(where, {int(label) for label in np.unique(y_test) if label > held[-1]})
    train, test = (torch.from_numpy(y.astype(np.int64)) for y in (y_train, y_test))
    return Targets(train, test, int(train.max()) + 1, names)


def _check_known(where: str, unknown: set[Any]) -> None:
    if unknown:
        shown = ", ".join(map(str, sorted(unknown)[:3]))
        raise ConfigurationError(
            f"task {where}: every label in y_test must be in y_train; got {shown} in y_test alone: leave out these "
            f"samples, or add some of them to training"
        )


def _values(where: str, part: str, y: NDArray[Any]) -> Tensor:
    """Return real numbers (N, K)."""
    with np.errstate(over="ignore"):  # the error is below
        values = y.astype(np.float32) if y.dtype.kind in "uif" and y.ndim in (1, 2) and y.size else None
    if values is None or not np.isfinite(values).all():
        raise ConfigurationError(
            f"task {where}: y_{part} must hold finite real numbers (N,) or (N, K) with target='values'; got {y.dtype} "
            f"of shape {y.shape}{'' if values is None else ' with NaN, Inf, or numbers beyond float32'}"
        )
    return torch.from_numpy(values.reshape(len(values), -1))


def _marks(where: str, part: str, y: NDArray[Any]) -> Tensor:
    """Return labels (N, K), 0 or 1 each."""
    sound = y.dtype.kind in "buif" and y.ndim == 2 and y.size
    if not sound or not ((y == 0) | (y == 1)).all():
        raise ConfigurationError(
            f"task {where}: y_{part} must hold 0 or 1 for each of K labels, shape (N, K), with target='labels'; got "
            f"{y.dtype} of shape {y.shape}{' with other numbers' if sound else ''}"
        )
    return torch.from_numpy(y.astype(np.float32))


def _tokens(where: str, part: str, y: NDArray[Any]) -> Tensor:
    """Return tokens (N, T)."""
    sound = y.dtype.kind in "ui" and y.ndim == 2 and y.size
    if not sound or not ((y >= 0) | (y == IGNORED)).all():
        raise ConfigurationError(
            f"task {where}: y_{part} must hold integers (N, T), tokens from 0 or {IGNORED} where none counts, with "
            f"target='tokens'; got {y.dtype} of shape {y.shape}{f' down to {y.min()}' if sound else ''}"
        )
    if not (y >= 0).any(1).all():
        empty = int(np.argmin((y >= 0).any(1)))
        raise ConfigurationError(
            f"task {where}: every sample in y_{part} must have a token that counts; sample {empty} holds {IGNORED} "
            f"alone: leave it out"
        )
    return torch.from_numpy(y.astype(np.int64))
