"""Storage: what `Rows` asks of the original rows, wherever they lie.

A storage yields its rows in column blocks, from which every answer can be computed. A storage with a faster way
overrides the method: `flwr_robust.core.segments` lets compiled code read rows where they lie.
`flwr_robust.core.sharded` asks the workers that hold the columns.

Several methods take a matrix ``mixing`` (m, n). They then answer for the m rows mixing @ X, which are never formed as a
whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from flwr_robust.kernels.gram import accumulate_gram, pair_distances
from flwr_robust.kernels.nearest import nearest
from flwr_robust.kernels.order import kept_shares, ranks

__all__ = ["Storage"]


class Storage(ABC):
    """n rows of d coordinates as they came.

    A subclass defines `blocks`, `slice`, `subset` and `with_row`; the other methods compute their answers from blocks.

    Attributes
    ----------
    n : int
        Number of rows.
    d : int
        Number of coordinates of a row.
    """

    def __init__(self, n: int, d: int) -> None:
        self.n = n
        self.d = d

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, Tensor (n, b) float64) over all columns; the next block may reuse its memory."""

    @abstractmethod
    def slice(self, start: int, stop: int, mixing: Tensor | None = None) -> Tensor:
        """Return columns start .. stop - 1 of all rows, float64 (n, stop - start)."""

    @abstractmethod
    def subset(self, keep: Tensor) -> Storage:
        """Return the storage of the rows where ``keep`` (bool (n,)) is true."""

    @abstractmethod
    def with_row(self, row: Tensor) -> Storage:
        """Return the storage of these rows and one more, (d,), at the end."""

    def renewed(self) -> Storage:
        """Return the storage after its memory was overwritten; nothing that was read before is kept."""
        return self

    def mixed_blocks(self, mixing: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of the mixed rows, or of the rows as they are."""
        for start, block in self.blocks():
            yield start, block if mixing is None else mixing.to(block) @ block

    def window_mean(
        self, low: int, high: int, near: int | None = None, mixing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Answer `Rows.window_mean`."""
        n = self.n if mixing is None else len(mixing)
        parts, shares = [], torch.zeros(n, dtype=torch.float64)
        for _, block in self.mixed_blocks(mixing):
            if near is None:
                kept = ranks(block, low, high)
            else:
                ordered = ranks(block, 0, n)
                kept = nearest(ordered, (ordered[low:high] / (high - low)).sum(0), near)
            # Dividing first: the mean of values near the type's limit must not overflow.
            parts.append((kept / kept.shape[0]).sum(0))
            shares += kept_shares(block, kept)
        return torch.cat(parts), shares / self.d

    def spread(self, ddof: int, mixing: Tensor | None = None) -> Tensor:
        """Answer `Rows.spread`."""
        n = self.n if mixing is None else len(mixing)
        parts = []
        for _, block in self.mixed_blocks(mixing):
            ones = block.new_ones(n)  # sums of columns as products: many times as fast as torch.std
            away = block - (ones @ block).div_(n)
            parts.append((ones @ away.square_()).div_(max(n - ddof, 1)).sqrt_())
        return torch.cat(parts)

    def gram(self, centre: int | None, mixing: Tensor | None = None) -> Tensor:
        """Return the Gram matrix (n + 1, n + 1), float64, of the rows and the origin about one row; the origin last.

        Without a centre the products are those of the rows as they are, and the last row and column are zero.
        """
        n = self.n if mixing is None else len(mixing)
        return accumulate_gram(self.mixed_blocks(mixing), n, centre)

    def squared_norms(self, mixing: Tensor | None = None) -> Tensor:
        """Return the squared norms (n,), float64."""
        total = torch.zeros(self.n if mixing is None else len(mixing), dtype=torch.float64)
        for _, block in self.mixed_blocks(mixing):
            total += torch.linalg.vector_norm(block, dim=1).square().cpu()
        return total

    def largest(self, mixing: Tensor | None = None) -> Tensor:
        """Return every row's largest absolute value (n,), float64."""
        found = torch.zeros(self.n if mixing is None else len(mixing), dtype=torch.float64)
        for _, block in self.mixed_blocks(mixing):
            found = torch.maximum(found, block.abs().amax(1).cpu())
        return found

    def sums_are_finite(self) -> bool:
        """Say whether sums show that no row is faulty; False if they cannot show it at low cost."""
        return False

    def pair_distances(self, left: Tensor, right: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Return the squared distances (k,), float64, of rows left[p] and right[p], subtracted directly."""
        return pair_distances(self.mixed_blocks(mixing), left, right)

    def against(self, point: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Answer `Rows.against`."""
        total = torch.zeros(self.n if mixing is None else len(mixing), 3, dtype=torch.float64)
        for start, block in self.mixed_blocks(mixing):
            part = point[start : start + block.shape[1]].to(block)
            apart = torch.linalg.vector_norm(block - part, dim=1).square()
            own = torch.linalg.vector_norm(block, dim=1).square()
            total += torch.stack([apart, block @ part, own], dim=1).cpu()
        return total

    def mix(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Return sum_i weights[i] row_i (d,), formed in float64 and rounded as `cast` does."""
        used = weights != 0
        rows: Storage = self
        if 0 < int(used.sum()) <= self.n // 2:  # rows of weight 0 need not be read
            rows, weights = self.subset(used), weights[used]
        value: Tensor | None = None
        for start, block in rows.blocks():
            if value is None:
                value = block.new_empty(self.d)
                weights = weights.to(value.device)
            torch.mv(block.T, weights, out=value[start : start + block.shape[1]])
        assert value is not None  # d >= 1
        return self.cast(value, dtype)

    def cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Round a float64 value to a type, saturating instead of overflowing."""
        rounded = value.to(dtype)
        if dtype == torch.float64 or bool(torch.isfinite(rounded.sum())):
            return rounded
        limits = torch.finfo(dtype)
        return value.clamp(limits.min, limits.max).to(dtype)
