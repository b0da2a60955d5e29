"""Shards: parts of a study that several machines or jobs run, all of them into one folder of results.

A shard I/N holds every N-th run of the whole study, whatever is finished. So shards have no run in common, together
they hold all, and each holds the same runs at every call. Cells of one configuration are one run. From each N runs to
the next, the shards move on by one place. Otherwise all runs of a shard could have one label of an axis of N labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.study import Cell, Study

__all__ = ["WHOLE", "Shard", "read_shard"]


@dataclass(frozen=True)
class Shard:
    """One of equal parts of a study.

    Attributes
    ----------
    index : int
        Which part, from 1.
    count : int
        The number of parts.
    """

    index: int
    count: int

    def cells(self, study: Study) -> Sequence[Cell]:
        """Return the cells of a study that belong to this part, in their order."""
        places: dict[str, int] = {}
        digests = [cell.digest for cell in study.cells]
        for digest in digests:
            places.setdefault(digest, len(places))
        return [cell for cell, digest in zip(study.cells, digests, strict=True) if self._holds(places[digest])]

    def _holds(self, place: int) -> bool:
        return (place + place // self.count) % self.count == self.index - 1


WHOLE = Shard(1, 1)
"""All cells."""


def read_shard(text: str) -> Shard:
    """Read a shard as ``--shard`` takes it.

    Parameters
    ----------
    text : str
        ``I/N``, with 1 <= I <= N.

    Raises
    ------
    ConfigurationError
        If it is anything else.

    Examples
    --------
    >>> read_shard("2/8")
    Shard(index=2, count=8)
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigurationError(
            f"run: --shard must be I/N, two whole numbers with 1 <= I <= N, for example 1/8; got --shard={text!r}"
        )
    return Shard(int(found[1]), int(found[2]))
