"""The numba side of `pool`; imported only where numba is."""

from __future__ import annotations

from typing import Any

from numba import int64

from flwr_robust.kernels._compile import kernel

__all__ = ["pool"]


@kernel()
def pool(images: Any, largest: Any, places: Any) -> None:
    """Write the largest of every four numbers, and where it is; see `pool.pool_squares`."""
    count, height, width = largest.shape
    row = images.shape[2]
    for image in range(count):
        for i in range(height):
            above, below = images[image, 2 * i], images[image, 2 * i + 1]
            found, where = largest[image, i], places[image, i]
            first = int64(2 * i * row)
            for j in range(width):
                best, step = above[2 * j], int64(0)
                # A later one must be larger, or no number.
                value = above[2 * j + 1]
                later = (value > best) | (value != value)
                best, step = (value, int64(1)) if later else (best, step)
                value = below[2 * j]
                later = (value > best) | (value != value)
                best, step = (value, int64(row)) if later else (best, step)
                value = below[2 * j + 1]
                later = (value > best) | (value != value)
                best, step = (value, int64(row + 1)) if later else (best, step)
                found[j], where[j] = best, first + 2 * j + step
