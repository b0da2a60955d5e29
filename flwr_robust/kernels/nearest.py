"""Find what lies nearest to a centre: values of a column, and rows.

The m of n sorted values nearest to a centre c stand next to each other. Slide a window from the left: drop its lowest
value s_k and take s_(k+m) while c - s_k > s_(k+m) - c. The left side falls and the right side grows with k, so the
number of such k is the window's start. Equal distances keep the smaller value.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["nearest", "squared_distances_to"]


def nearest(ordered: Tensor, centre: Tensor, m: int) -> Tensor:
    """Return, per column, the m values nearest to a centre; ties to the smaller value.

    Parameters
    ----------
    ordered : Tensor (n, b)
        n ascending values per column; not changed.
    centre : Tensor (b,)
        The centre of each column.
    m : int
        How many values are kept; 1 <= m <= n.

    Returns
    -------
    Tensor (m, b)
        The values kept, ascending: consecutive ranks.

    Examples
    --------
    >>> nearest(torch.tensor([[0.0], [4.0], [5.0], [9.0]]), torch.tensor([4.5]), 3).tolist()
    [[0.0], [4.0], [5.0]]
    """
    n = ordered.shape[0]
    start = (centre - ordered[: n - m] > ordered[m:] - centre).sum(0, keepdim=True)
    return ordered.gather(0, start + torch.arange(m, device=ordered.device)[:, None])


def squared_distances_to(blocks: Iterable[tuple[int, Tensor]], point: Tensor) -> Tensor:
    """Return the squared distances (n,), float64, of rows from one point, by direct differences.

    Parameters
    ----------
    blocks : iterable of (int, Tensor (n, b) float64)
        The rows, column block by column block.
    point : Tensor (d,)
        Where the distances are measured from.
    """
    total = torch.zeros((), dtype=torch.float64)
    for start, block in blocks:
        difference = block - point[start : start + block.shape[1]].to(block)
        total = total + difference.square_().sum(1).cpu()
    return total
