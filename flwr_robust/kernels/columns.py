"""Window means of sorted columns, compiled: the rows are read where they lie, a cache-sized strip at a time.

A strip of every row is copied into one small table and sorted by the pruned `network`. Each comparator is one
vectorised minimum and maximum, on up to eight rows at a time. The values kept of each column are averaged in float64.
No array of the size of the data is made. An offset of a column does not change the order of its values. So rows
relative to a reference are sorted as they are, and the reference is subtracted from the result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.kernels.lines import Lines, in_parts, strip_of, thread_parts
from flwr_robust.kernels.network import groups

__all__ = ["fits", "window_mean"]


def fits(lines: Lines) -> bool:
    """Say whether all rows have one type, and all or none of them are relative to the reference."""
    return len(set(lines.wide.tolist())) == len(set(lines.relative.tolist())) == 1


def window_mean(
    lines: Lines, low: int, high: int, near: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average, per column, the values of ranks low .. high - 1, or those nearest to that average.

    Parameters
    ----------
    lines : Lines
        n rows of w columns; finite, and such that `fits` holds. Their reference is not subtracted.
    low, high : int
        0 <= low < high <= n.
    near : int, optional
        When given, the ``near`` values nearest to the average of the ranks are averaged; ties to the smaller.

    Returns
    -------
    array (w,), float64
        The averages.
    array (n,), float64
        Each row's share of the values kept, summed over columns; rows tied at an edge share equally. Sums to w.
    """
    n, width = len(lines.address), lines.width
    network = _network(n, low, high) if near is None else _network(n, 0, n)
    kernel = _kernel(wide=bool(lines.wide[0]))
    strip = strip_of((8 if lines.wide[0] else 4) * n, 256)
    value = np.empty(width, np.float64)
    parts = thread_parts(width, strip)
    shares = np.zeros((len(parts), n), np.float64)

    def part(index: int) -> None:
        start, stop = parts[index]
        kernel(lines.address, start, stop, network, low, high, near or 0, strip, value, shares[index])

    in_parts(part, len(parts))
    return value, shares.sum(0)


@lru_cache(maxsize=256)
def _network(n: int, low: int, high: int) -> NDArray[np.int64]:
    """Return the groups of the network, one per line: the program, then its rows."""
    found = groups(n, low, high)
    table = np.zeros((len(found), 9), dtype=np.int64)
    for line, (program, rows) in zip(table, found, strict=True):
        line[: 1 + len(rows)] = program, *rows
    return table


def _kernel(*, wide: bool) -> Any:
    """Return the kernel for one type of rows, compiled where it has not been."""
    from flwr_robust.kernels import compiled

    return compiled.window_mean_float64 if wide else compiled.window_mean_float32
