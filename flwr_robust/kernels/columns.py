"""Window means of sorted columns, compiled: the rows are read where they lie, a cache-sized strip at a time.

A strip of every row is copied into one small table, sorted by the pruned network of `order` (one vectorised minimum and
maximum per comparator), and the values kept of each column are averaged in float64. Nothing of the size of the data
is made. Order statistics commute with the offset of a column, so rows relative to a reference are sorted as they are
and the reference is subtracted from the result. numba compiles it once and keeps it on disk; where numba is missing,
`available` is False and callers take torch's operations instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.kernels.order import comparators

__all__ = ["available", "fits", "window_mean"]

available = importlib.util.find_spec("numba") is not None

_TYPES = (torch.float32, torch.float64)
_STRIP_BYTES = 1 << 18  # a strip of all rows: a quarter of a core's second-level cache


def fits(pieces: Sequence[Tensor]) -> bool:
    """Say whether rows can be read in place: on the CPU, contiguous, all float32 or all float64."""
    first = pieces[0]
    return (
        available
        and first.dtype in _TYPES
        and all(p.device.type == "cpu" and p.dtype == first.dtype and p.is_contiguous() for p in pieces)
    )


def window_mean(
    pieces: Sequence[Tensor], low: int, high: int, near: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average, per column, the values of ranks low .. high - 1, or those nearest to that average.

    Parameters
    ----------
    pieces : sequence of n Tensor (w,)
        The rows; finite, and such that `fits` holds.
    low, high : int
        0 <= low < high <= n.
    near : int, optional
        When given, the ``near`` values nearest to the average of the ranks are averaged; ties to the smaller.

    Returns
    -------
    array (w,), float64
        The averages.
    array (n,), float64
        What each row has of the values kept, summed over columns; rows tied at an edge share equally. Sums to w.
    """
    n, width = len(pieces), pieces[0].numel()
    address = np.array([piece.data_ptr() for piece in pieces], dtype=np.int64)
    network = _network(n, low, high) if near is None else _network(n, 0, n)
    kernel = _kernel(str(pieces[0].dtype))
    strip = max(64, min(1024, _STRIP_BYTES // (pieces[0].element_size() * n) // 64 * 64))
    value = np.empty(width, np.float64)
    threads = min(torch.get_num_threads(), -(-width // (16 * strip)))
    # Parts are whole strips, so that the result does not depend on how many threads there are.
    strips = -(-width // strip)
    edges = [min(width, strips * i // threads * strip) for i in range(threads)] + [width]
    shares = np.zeros((threads, n), np.float64)

    def part(index: int) -> None:
        start, stop = edges[index], edges[index + 1]
        kernel(address, start, stop, network, low, high, near or 0, strip, value, shares[index])

    if threads == 1:
        part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
    return value, shares.sum(0)


@lru_cache(maxsize=256)
def _network(n: int, low: int, high: int) -> NDArray[np.int32]:
    pairs = [(i, j) for i, j, _, _ in comparators(n, low, high)]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


@lru_cache(maxsize=2)
def _kernel(dtype: str) -> Any:
    """Compile the kernel for one type of rows."""
    from flwr_robust.kernels import compiled

    return compiled.window_mean_float32 if dtype == "torch.float32" else compiled.window_mean_float64
