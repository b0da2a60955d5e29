"""What the replies to a round of training must hold, as an object that admission calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import fill
from flwr_robust.flower.wire import PayloadError, decode, is_finite
from flwr_robust.protocol.buffers import STATISTICS, learnt

__all__ = ["Expected", "SentModel", "check_statistics", "idle_patterns"]


class Expected(Protocol):
    """What admission has to know about the replies to a round of training."""

    @property
    def may_abstain(self) -> bool:
        """Whether a node may abstain, that is, answer without an ArrayRecord."""

    def demanded(self, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Return the arrays that a reply with these names must hold; each gives the shape and the type."""


def check_statistics(owner: str, statistics: object) -> None:
    """Raise `ConfigurationError` unless the patterns are a tuple of texts that are not empty."""
    if not isinstance(statistics, tuple) or not all(isinstance(each, str) and each for each in statistics):
        raise ConfigurationError(
            f"{owner}: statistics must be a tuple of patterns of names, such as ('*/moving_mean',); "
            f"got statistics={statistics!r:.100}"
        )


def idle_patterns(arrays: Collection[str], statistics: Collection[str]) -> list[str]:
    """Return the patterns that match no array of a model; torch's own patterns need not match."""
    own = [each for each in statistics if each not in STATISTICS]
    return [each for each in own if not any(fnmatchcase(name, each) for name in arrays)]


class SentModel:
    """The model that was sent; every reply must hold its arrays.

    Parameters
    ----------
    record : ArrayRecord
        The model; floating-point, integer and boolean arrays.
    statistics : collection of str
        Patterns of the names of statistics, as for `learnt`.

    Attributes
    ----------
    record : ArrayRecord
        The model, in a separate record, so that changes to the caller's record do not affect it.
    arrays : dict of str to array
        The model's arrays by name, read-only.
    learnt : tuple of int
        Positions of the arrays that are learnt.

    Raises
    ------
    ConfigurationError
        If the model is empty, cannot be read, or holds numbers of other types.
    """

    def __init__(self, record: ArrayRecord, statistics: Collection[str] = STATISTICS) -> None:
        self.record = fill(ArrayRecord(), dict(record))
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, array in record.items():
            try:
                self.arrays[name] = decode(array)
            except PayloadError as error:
                raise ConfigurationError(f"model: array '{name}' cannot be used: {error}") from None
            dtype = self.arrays[name].dtype
            if dtype.kind not in "fiub" or dtype.itemsize > 8 or not dtype.isnative:
                raise ConfigurationError(
                    f"model: array '{name}' must hold float16/32/64, integers or booleans; got {dtype.str}"
                )
            if dtype.kind == "f" and not is_finite(self.arrays[name]):
                raise ConfigurationError(f"model: array '{name}' must be finite; it holds NaN or Inf")
        if not any(values.dtype.kind == "f" and values.size for values in self.arrays.values()):
            sentence = "model: it must hold at least one floating-point array; got none"
            if self.arrays and all(values.dtype == np.uint8 for values in self.arrays.values()):
                sentence += (
                    " but bytes: no rule can compare XGBoost's trees; Flower's FedXgbBagging adds them up without a "
                    "guard, and checks no reply"
                )
            raise ConfigurationError(sentence)
        names = set(learnt(self.arrays, statistics))
        self.learnt = tuple(index for index, name in enumerate(self.arrays) if name in names)

    @property
    def may_abstain(self) -> bool:
        """False: every reply must hold the model's arrays."""
        return False

    def demanded(self, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Return the arrays of the model; the names in the reply do not matter."""
        return self.arrays
