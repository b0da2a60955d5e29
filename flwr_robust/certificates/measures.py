"""The three measures of an error, what no rule can fall below, and what a bound of one says of the others.

Definitions and sources stand in `flwr_robust.core.guarantees`. Let h = n - f be the number of honest rows.

No rule has less. Let h rows be 0 and f rows be 1. If those at 1 are faulty, the honest rows agree and the value must be
0. If f of those at 0 are faulty instead, the honest mean is f / h. Their mean squared distance from it is f (n - 2f) /
h^2, the largest distance max{f, n - 2f} / h, and the largest squared distance of two is 1. So

    kappa >= f / (n - 2f),   rho >= min{f / (n - 2f), 1},   lambda >= (f / h)^2

as Allouah et al. (AISTATS 2023) have it for kappa, and Peng et al. (JMLR 2025) for rho.

One bound gives the others. Let s^2 be the mean of the squared distances from the honest mean, r their largest distance
and D the largest distance of two honest rows. Then s <= r <= sqrt(h - 1) s, r <= (h - 1) / h D, D <= 2 r,
D^2 <= 2 h s^2 and s^2 <= (h - 1) / (2 h) D^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flwr_robust.core.guarantees import Bound

__all__ = ["best_bound", "converted", "least", "spread"]


def least(measure: str, n: int, f: int) -> float:
    """Return what no rule can fall below, for f of n rows faulty.

    Parameters
    ----------
    measure : str
        ``kappa``, ``rho`` or ``lambda``.
    n, f : int
        f < n / 2.

    Examples
    --------
    >>> least("kappa", 10, 2), least("rho", 10, 2), least("lambda", 10, 2)
    (0.3333333333333333, 0.3333333333333333, 0.0625)
    """
    if measure == "lambda":
        return (f / (n - f)) ** 2
    return f / (n - 2 * f) if measure == "kappa" else min(f / (n - 2 * f), 1.0)


def spread(measure: str, honest: NDArray[np.float64]) -> float:
    """Return the right side of a measure's inequality for honest rows (h, k), without its factor."""
    apart = honest - honest.mean(0)
    squared = (apart**2).sum(1)
    if measure == "kappa":
        return float(squared.mean())
    if measure == "rho":
        return math.sqrt(float(squared.max()))
    pairs = squared[:, None] + squared[None, :] - 2 * apart @ apart.T
    return max(float(pairs.max()), 0.0)


def converted(bound: Bound, measure: str, n: int, f: int) -> float:
    """Return what a bound of one measure says of another.

    Examples
    --------
    >>> converted(Bound("kappa", 4.0, "a paper"), "rho", 10, 2)
    2.0
    """
    h, value = n - f, bound.value
    if bound.measure == measure:
        return value
    factors = {
        ("kappa", "lambda"): lambda: value * (h - 1) / (2 * h),
        ("kappa", "rho"): lambda: math.sqrt(value),
        ("rho", "kappa"): lambda: value**2 * (h - 1),
        ("rho", "lambda"): lambda: (value * (h - 1) / h) ** 2,
        ("lambda", "kappa"): lambda: value * 2 * h,
        ("lambda", "rho"): lambda: 2 * math.sqrt(value),
    }
    return factors[bound.measure, measure]()


def best_bound(bounds: Sequence[Bound], measure: str, n: int, f: int) -> Bound | None:
    """Return the smallest bound of a measure that some bounds give, directly or through another; None without any."""
    found = [
        bound
        if bound.measure == measure
        else Bound(measure, converted(bound, measure, n, f), f"from {bound.measure}: {bound.source}")
        for bound in bounds
        if bound.measure == measure or math.isfinite(bound.value)
    ]
    return min(found, key=lambda bound: (bound.value, not bound.exact), default=None)
