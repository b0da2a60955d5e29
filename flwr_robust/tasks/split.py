"""Shared and personal parameters: which of a model's arrays clients keep for themselves.

The model is (u, v_i): u is sent, aggregated and held by the server, v_i stays with client i. Patterns over the names in
the state dict choose the arrays of v_i: ``5.*`` is all of the sixth layer, ``*.bias`` every bias. The last layer is
that of the last matrix, as for the rule `LFighter`. Its arrays are also called ``head.weight`` and ``head.bias``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from flwr_robust.errors import ConfigurationError

__all__ = ["Split", "split_arrays"]

A = TypeVar("A")


@dataclass(frozen=True)
class Split:
    """A model's arrays in two parts.

    Attributes
    ----------
    shared, personal : tuple of int
        The places of the arrays in the model, ascending; neither is empty.
    """

    shared: tuple[int, ...]
    personal: tuple[int, ...]

    def join(self, shared: Sequence[A], personal: Sequence[A]) -> list[A]:
        """Return all arrays in the model's order.

        Examples
        --------
        >>> Split((0, 2), (1,)).join(["u", "w"], ["v"])
        ['u', 'v', 'w']
        """
        places = dict(zip(self.shared, shared, strict=True)) | dict(zip(self.personal, personal, strict=True))
        return [places[index] for index in sorted(places)]

    def columns(self, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the positions of shared and personal numbers in a flat model of arrays of these sizes."""
        parts = torch.arange(sum(sizes)).split_with_sizes(list(sizes))
        return torch.cat([parts[i] for i in self.shared]), torch.cat([parts[i] for i in self.personal])


def split_arrays(shapes: Mapping[str, Sequence[int]], patterns: str) -> Split:
    """Find the personal arrays of a model.

    Parameters
    ----------
    shapes : mapping of str to shape
        The model's arrays by name, in order.
    patterns : str
        Shell-style patterns over the names, separated by commas or spaces.

    Raises
    ------
    ConfigurationError
        If a pattern matches nothing, or all arrays would be personal.

    Examples
    --------
    >>> split_arrays({"1.weight": (5, 9), "1.bias": (5,), "3.weight": (2, 5), "3.bias": (2,)}, "head.*")
    Split(shared=(0, 1), personal=(2, 3))
    """
    names, also = list(shapes), {}
    if matrices := [name for name in names if len(shapes[name]) == 2]:
        layer = matrices[-1].rpartition(".")[0]
        also = {name: f"head.{name.rpartition('.')[2]}" for name in names if name.rpartition(".")[0] == layer}
    known = f"the model's arrays, {', '.join(names)} (the last layer's also as head.*)"
    wanted = [pattern for pattern in re.split(r"[,\s]+", patterns) if pattern]
    personal: set[str] = set()
    for pattern in wanted:
        found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(also.get(name, name), pattern)}
        if not found:
            raise ConfigurationError(
                f"configuration: personal={patterns!r}: the pattern {pattern!r} matches none of {known}; correct it"
            )
        personal |= found
    if not wanted or len(personal) == len(names):
        raise ConfigurationError(
            f"configuration: personal must match some, but not all, of {known}; got personal={patterns!r}: leave "
            f"arrays to share, or set personal=''"
        )
    return Split(
        tuple(i for i, name in enumerate(names) if name not in personal),
        tuple(i for i, name in enumerate(names) if name in personal),
    )
