"""The numba side of `pool`; imported only where numba is."""

from __future__ import annotations

from typing import Any

from numba import float32, int32

from flwr_robust.kernels._compile import kernel

__all__ = ["pool", "spread"]


@kernel()
def pool(images: Any, row: int, corners: Any, floor: Any, largest: Any, places: Any) -> bool:
    """Write the largest of every four numbers, and where it is; see `pool.pool_squares`.

    An image is one line; ``corners`` says where its squares begin, and ``row`` how long a row of it is. What is not
    above ``floor`` becomes ``floor``. Return False if there may be a NaN: the results are then of no use.
    """
    total = float32(0)
    for image in range(images.shape[0]):
        pixels, found, where = images[image], largest[image], places[image]
        for k in range(corners.shape[0]):
            corner = corners[k]
            best, step = pixels[corner], int32(0)
            total += best
            value = pixels[corner + 1]
            total += value
            later = not (value <= best)  # in this form LLVM needs no branch
            best, step = (value, int32(1)) if later else (best, step)
            value = pixels[corner + row]
            total += value
            later = not (value <= best)
            best, step = (value, int32(row)) if later else (best, step)
            value = pixels[corner + row + 1]
            total += value
            later = not (value <= best)
            best, step = (value, int32(row + 1)) if later else (best, step)
            stopped = best <= floor
            place = int32(corner) + step
            found[k] = floor if stopped else best
            where[k] = ~place if stopped else place
    return total == total


@kernel()
def spread(error: Any, places: Any, images: Any) -> None:
    """Write every number where its place says, and zeros elsewhere; see `pool.spread_squares`."""
    for image in range(images.shape[0]):
        given, where, pixels = error[image], places[image], images[image]
        pixels[:] = float32(0)
        for k in range(where.shape[0]):
            place = where[k]
            value = given[k] + float32(0)  # torch adds it to a zero, too: no negative zero is left
            pixels[place if place >= 0 else ~place] = value if place >= 0 else float32(0)
