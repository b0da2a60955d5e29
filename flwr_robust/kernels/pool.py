"""The largest of every two by two pixels and its way back, by compiled code: torch's in a fraction of the time."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.kernels._compile import usable

__all__ = ["pool_squares", "spread_squares"]


def pool_squares(images: Tensor, *, rectified: bool = False) -> tuple[Tensor, Tensor] | None:
    """Return the largest numbers of every two by two pixels, and where they are.

    Parameters
    ----------
    images : Tensor (m, h, w) of float32
        The images.
    rectified : bool
        Whether a ReLU comes before the pooling. One pass then does what takes two.

    Returns
    -------
    Tensor (m, h // 2, w // 2)
        The largest; the first of equal ones.
    Tensor (m, h // 2, w // 2) of int32
        Their places among the h w pixels; ~place where a ReLU has made the largest zero. None in place of both where
        compiled code cannot read the images, or they hold a NaN.
    """
    fit = images.device.type == "cpu" and images.dtype == torch.float32 and images.is_contiguous()
    if not fit or torch.get_num_threads() > 1 or not usable():  # torch's own goes parallel
        return None
    m, height, width = images.shape
    largest = images.new_empty(m, height // 2, width // 2)
    places = torch.empty(largest.shape, dtype=torch.int32)
    given, found, where = (part.view(m, -1).numpy() for part in (images, largest, places))
    floor = np.float32(0 if rectified else np.nan)  # nothing is below no number
    return (largest, places) if _kernels().pool(given, width, _corners(height, width), floor, found, where) else None


def spread_squares(error: Tensor, places: Tensor, images: Tensor) -> None:
    """Write the loss's gradient by the pixels, given that by what `pool_squares` has returned.

    Parameters
    ----------
    error : Tensor (m, h // 2, w // 2) of float32
        The gradient by the largest numbers.
    places : Tensor (m, h // 2, w // 2) of int32
        As returned by `pool_squares`. No gradient passes through what a ReLU has made zero.
    images : Tensor (m, h, w) of float32
        Where the gradient is written.
    """
    parts = (error.contiguous(), places, images)
    _kernels().spread(*(part.view(len(part), -1).numpy() for part in parts))


@lru_cache(maxsize=64)
def _corners(height: int, width: int) -> NDArray[np.int64]:
    """Return where squares begin in an image that is one line."""
    rows, columns = np.arange(0, height - 1, 2), np.arange(0, width - 1, 2)
    return np.asarray((rows[:, None] * width + columns).ravel(), dtype=np.int64)


@cache
def _kernels() -> Any:
    from flwr_robust.kernels import compiled_pool

    return compiled_pool
