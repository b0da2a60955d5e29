"""Rows read where they lie: norms, inner products and weighted sums by compiled code.

Each row may be float32 or float64. Some rows may be relative to a reference, which is subtracted on the way. The
weighted sum is the only array of a row's size that is made. Columns are cut into chunks of a fixed size, and the sums
of the chunks are added in order. So the result does not depend on the number of threads. numba compiles the kernels
once and keeps them on disk. If it is not usable, or rows do not lie in main memory, `Lines.of` returns None and callers
use torch's operations.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.errors import ConfigurationError
from flwr_robust.kernels._compile import usable

__all__ = ["Lines", "in_parts", "strip_of", "thread_parts"]

_TYPES = (torch.float32, torch.float64)
_CHUNK = 1 << 16  # columns whose products are summed before they are added to those of other chunks
_LONG = 1 << 12  # columns of a strip where two lines of it are held, not all rows
_STRIP_BYTES = 1 << 18  # copies of a strip of all rows: a quarter of a core's second-level cache

T = TypeVar("T")


def in_parts(work: Callable[[int], T], count: int) -> list[T]:
    """Do work(0), ..., work(count - 1) on torch's number of threads; return the results in order."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))


def strip_of(column_bytes: int, most: int) -> int:
    """Return how many columns of so many bytes stay in a core's cache: a multiple of 64, at most ``most``."""
    return max(64, min(most, _STRIP_BYTES // column_bytes // 64 * 64))


def thread_parts(width: int, strip: int) -> list[tuple[int, int]]:
    """Cut columns into one part per thread, of whole strips, so that a strip's result does not depend on the cut."""
    strips = -(-width // strip)
    threads = max(1, min(torch.get_num_threads(), strips // 16))
    edges = [min(width, strips * i // threads * strip) for i in range(threads + 1)]
    return list(itertools.pairwise(edges))


def _readable(tensors: Sequence[Tensor]) -> bool:
    """Say whether compiled code can read tensors, line by line, where they lie."""
    fit = all(t.dtype in _TYPES and t.device.type == "cpu" and (t.stride(-1) == 1 or t.shape[-1] < 2) for t in tensors)
    return fit and usable()


@dataclass(frozen=True)
class Lines:
    """Some columns of n rows.

    Attributes
    ----------
    held : tuple of Tensor
        The rows (w,) and the reference, kept alive.
    address : array (n,) of int64
        Where each row begins.
    wide : array (n,) of bool
        Rows of float64; the others are float32.
    relative : array (n,) of bool
        Rows from which the reference is subtracted.
    reference : int
        Where the reference begins; 0 if there is none.
    wide_reference : bool
        Whether the reference is float64.
    width : int
        Number of columns.
    """

    held: tuple[Tensor, ...]
    address: NDArray[np.int64]
    wide: NDArray[np.bool_]
    relative: NDArray[np.bool_]
    reference: int
    wide_reference: bool
    width: int

    @classmethod
    def of(cls, rows: Sequence[Tensor], relative: int, reference: Tensor | None) -> Lines | None:
        """Describe rows (w,), the first ``relative`` of them relative to the reference; None where they do not fit."""
        address = np.array([row.data_ptr() for row in rows], dtype=np.int64)
        return cls._of(rows, address, [row.dtype == torch.float64 for row in rows], relative, reference)

    @classmethod
    def of_stack(cls, rows: Tensor, reference: Tensor | None) -> Lines | None:
        """Describe the rows (n, w) of one tensor, all relative to the reference; None where they do not fit."""
        n = rows.shape[0]
        address = rows.data_ptr() + rows.stride(0) * rows.element_size() * np.arange(n)
        return cls._of([rows], address, [rows.dtype == torch.float64] * n, n, reference)

    @classmethod
    def _of(
        cls,
        rows: Sequence[Tensor],
        address: NDArray[np.int64],
        wide: Sequence[bool],
        relative: int,
        reference: Tensor | None,
    ) -> Lines | None:
        """Describe rows by where they begin and whether they are float64."""
        held = (*rows, *(() if reference is None else (reference,)))
        width = rows[0].shape[-1]
        if any(t.shape[-1] != width for t in held):  # compiled code reads as far as it is told
            raise ConfigurationError(
                f"rows: all rows and the reference must have the same number of columns; got "
                f"{[t.shape[-1] for t in held]}"
            )
        if not _readable(held):
            return None
        return cls(
            held,
            address,
            np.array(wide),
            np.arange(len(address)) < (0 if reference is None else relative),
            0 if reference is None else reference.data_ptr(),
            reference is not None and reference.dtype == torch.float64,
            width,
        )

    @property
    def _described(self) -> tuple[Any, ...]:
        return self.address, self.wide, self.relative, self.reference, self.wide_reference

    def _strip(self) -> int:
        return strip_of(8 * len(self.address), 512)

    def _summed(
        self, kernel: Any, shape: tuple[int, ...], *arguments: Any, strip: int | None = None
    ) -> NDArray[np.float64]:
        """Add what a kernel sums over each chunk, in strips of so many columns."""
        strip = strip or self._strip()
        chunk = max(_CHUNK, 64 * len(self.address))

        def part(index: int) -> NDArray[np.float64]:
            found = np.zeros(shape)
            stop = min(self.width, (index + 1) * chunk)
            kernel(*self._described, *arguments, index * chunk, stop, strip, found)
            return found

        total = np.zeros(shape)
        for found in in_parts(part, -(-self.width // chunk)):
            total += found
        return total

    def squared_norms(self) -> Tensor:
        """Return the squared norms (n,), float64; NaN or Inf where a row holds one, or where they overflow."""
        return torch.from_numpy(self._summed(_kernels().squared_norms, (len(self.address),)))

    def against(self, point: Tensor) -> Tensor:
        """Return every row's squared distance from a point (w,), product with it, and squared norm: float64 (n, 3)."""
        return self._to_point(point, apart=True)

    def products(self, point: Tensor) -> Tensor:
        """Return every row's product with a point (w,), and its squared norm: float64 (n, 2)."""
        return self._to_point(point, apart=False)[:, 1:]

    def _to_point(self, point: Tensor, *, apart: bool) -> Tensor:
        if point.dtype not in _TYPES:
            point = point.to(torch.float64)
        held = point.contiguous()  # kept alive while its address is read
        strip = max(64, min(self.width, _LONG))  # no copies of rows are held, so strips may be long
        described = apart, held.data_ptr(), held.dtype == torch.float64
        found = self._summed(_kernels().against, (len(self.address), 3), *described, strip=strip)
        return torch.from_numpy(found)

    def picked(self, rows: NDArray[np.int64]) -> Lines:
        """Return some of the rows."""
        return dataclasses.replace(self, address=self.address[rows], wide=self.wide[rows], relative=self.relative[rows])

    def gram(self, centre: int | None) -> Tensor:
        """Return the inner products (n + 1, n + 1), float64, of the rows and the origin about one row; origin last.

        Without a centre the products are those of the rows as they are.
        """
        n = len(self.address)
        padded = -(-n // 4) * 4 + 1
        about = -1 if centre is None else centre
        lower = torch.from_numpy(self._summed(_kernels().gram, (padded, padded), about)).tril()
        kept = [*range(n), padded - 1]
        lower = lower[kept][:, kept]
        return lower + lower.T - torch.diag(lower.diagonal())

    def pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances (k,), float64, of rows left[p] and right[p], subtracted directly."""
        used, pairs = np.unique(np.stack([left.numpy(), right.numpy()], axis=1), return_inverse=True)
        found = self._summed(_kernels().pair_distances, (len(left),), used, pairs.reshape(-1, 2).astype(np.int64))
        return torch.from_numpy(found)

    def mix(self, weights: Tensor, value: Tensor) -> None:
        """Write sum_i weights[i] row_i, formed in float64, into ``value`` (w,), float32 or float64, saturating."""
        kernel = _kernels().mix_float64 if value.dtype == torch.float64 else _kernels().mix_float32
        self._written(kernel, 2048, value, weights.numpy())

    def spread(self, ddof: int, value: Tensor) -> None:
        """Write the columns' standard deviations into ``value`` (w,), float64; the variance divides by n - ddof."""
        self._written(_kernels().spread, self._strip(), value, ddof)

    def _written(self, kernel: Any, strip: int, value: Tensor, *arguments: Any) -> None:
        """Let a kernel write one number per column."""
        parts, written = thread_parts(self.width, strip), value.numpy()

        def part(index: int) -> None:
            kernel(*self._described, *arguments, *parts[index], strip, written)

        in_parts(part, len(parts))


@cache
def _kernels() -> Any:
    from flwr_robust.kernels import compiled_gram

    return compiled_gram
