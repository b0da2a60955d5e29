"""Buffers: the arrays of a model that are not learnt, such as BatchNorm's statistics and counters.

No rule sees them, because they are no part of an update. A client sends them with its message, and the next model takes
their coordinate-wise median over the admitted messages (`MessageKind.buffers`). For integers this is the lower median,
so that the type stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.protocol.messages import MessageKind

__all__ = ["STATISTICS", "change", "following", "learnt"]

_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
STATISTICS = tuple(f"{place}{name}" for name in _BATCH_NORM for place in ("", "*."))
"""The patterns of the names that torch gives to BatchNorm's statistics."""


def learnt(arrays: Mapping[str, NDArray[Any]], statistics: Collection[str] = STATISTICS) -> list[str]:
    """Return the names of the learnt arrays: floating point, not empty, and not statistics.

    Parameters
    ----------
    arrays : mapping of str to array
        The model's arrays by name.
    statistics : collection of str
        Patterns of the names of statistics, as `fnmatch.fnmatchcase` reads them: ``*`` stands for any characters.

    Examples
    --------
    >>> import numpy as np
    >>> model = {"dense/kernel": np.ones(2), "norm/moving_mean": np.ones(2)}
    >>> learnt(model), learnt(model, ("*/moving_*",))
    (['dense/kernel', 'norm/moving_mean'], ['dense/kernel'])
    """
    return [
        name
        for name, values in arrays.items()
        if values.dtype.kind == "f" and values.size and not any(fnmatchcase(name, each) for each in statistics)
    ]


def change(new: NDArray[Any], old: NDArray[Any]) -> NDArray[Any]:
    """Return what a client sends as the change of an array; for booleans it is where they differ.

    Examples
    --------
    >>> change(np.array([5, 2]), np.array([3, 3])), change(np.array([True]), np.array([True]))
    (array([ 2, -1]), array([False]))
    """
    found: NDArray[Any] = new ^ old if new.dtype.kind == "b" else new - old
    return found


def following(kind: MessageKind, sent: NDArray[Any], replies: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return a buffer after a round.

    Parameters
    ----------
    kind : MessageKind
        What clients send; with ``keep`` the buffer stays.
    sent : array
        The buffer of the model that was sent.
    replies : sequence of array
        What the admitted messages hold for it, of its shape and type; at least one.

    Examples
    --------
    >>> from flwr_robust.protocol.messages import message_kind
    >>> following(message_kind("delta"), np.array(7), [np.array(1), np.array(90), np.array(2)])
    array(9)
    """
    if kind.buffers == "keep" or not sent.size:
        return sent
    stacked = np.stack(replies)
    lower = (len(replies) - 1) // 2
    middle = np.median(stacked, axis=0) if sent.dtype.kind == "f" else np.sort(stacked, axis=0)[lower]
    if kind.buffers == "change":
        middle = sent ^ middle if sent.dtype.kind == "b" else sent + middle
    return np.asarray(middle, dtype=sent.dtype)
