"""The length of the aggregate, and the distance and angle of each update to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flwr_robust.core.rows import Rows

__all__ = ["distances_and_angles"]


_BLOCK = 1 << 16  # numbers converted to float64 at a time: a second copy of a large model costs more than its norm


def distances_and_angles(rows: Rows, value: Tensor) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Measure rows against the aggregate, in one pass.

    Parameters
    ----------
    rows : Rows
        The updates.
    value : Tensor (d,)
        The aggregate of the updates.

    Returns
    -------
    distances : tuple (n,) of float
        The norms of row - value.
    angles : tuple (n,) of float
        The angles between row and value, in degrees; NaN if one of them is zero.
    length : float
        The norm of the value.

    Examples
    --------
    >>> distances_and_angles(Rows.from_tensor(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), torch.tensor([1.0, 0.0]))
    ((2.0, 4.123105625617661), (0.0, 90.0), 1.0)
    """
    apart, products, norms = rows.against(value).T
    blocks = (value[start : start + _BLOCK].to(torch.float64) for start in range(0, len(value), _BLOCK))
    length = math.sqrt(sum(float(block.dot(block)) for block in blocks))
    angles = torch.rad2deg(torch.arccos((products / (norms.sqrt() * length)).clamp(-1, 1)))
    return tuple(apart.sqrt().tolist()), tuple(angles.tolist()), length
