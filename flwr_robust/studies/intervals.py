"""Means of repetitions with their t-intervals, and paired differences.

Repetitions that share a seed share their data, their split and their attackers. So two rows of a table are compared
seed by seed: the interval is that of the mean of the differences. What a seed does to both rows does not widen it.
With mean m, standard deviation s and n repetitions the interval is

    m +- t s / sqrt(n),   t: the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom.

Student, "The probable error of a mean", Biometrika 6 (1908). The interval is one of each comparison alone: it is not
corrected for how many comparisons a table holds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flwr_robust.errors import extra

__all__ = ["CONFIDENCE", "Estimate", "estimate", "paired"]

CONFIDENCE = 0.95
"""The share of intervals that hold the true mean, if values are normally distributed."""


@dataclass(frozen=True)
class Estimate:
    """A mean, and how well it is known.

    Attributes
    ----------
    mean : float
        The mean.
    deviation : float
        The standard deviation of the values, with n - 1 in the denominator; NaN for a single one.
    half : float
        Half the width of the t-interval of the mean; NaN for a single value.
    n : int
        The number of values; 0 for a number that somebody else reports.
    """

    mean: float
    deviation: float = math.nan
    half: float = math.nan
    n: int = 0

    @property
    def low(self) -> float:
        """The lower end of the interval; NaN for a single value."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval; NaN for a single value."""
        return self.mean + self.half

    @property
    def sign(self) -> int | None:
        """1 or -1 if the whole interval lies above or below 0, 0 if it holds 0, None if there is no interval."""
        if math.isnan(self.half):
            return None
        if abs(self.mean) <= self.half + 1e-12:  # equal values differ by the rounding of their sums
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of repetitions with its interval.

    Parameters
    ----------
    values : sequence of float
        At least one value.

    Examples
    --------
    >>> found = estimate([0.90, 0.91, 0.95])
    >>> f"{found.mean:.2f} from {found.low:.3f} to {found.high:.3f}, n = {found.n}"
    '0.92 from 0.854 to 0.986, n = 3'
    """
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return Estimate(mean, n=n)
    with extra("studies"):
        from scipy.special import stdtrit  # imported here, because means alone do without it

    deviation = float(np.std(values, ddof=1))
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(mean, deviation, quantile * deviation / math.sqrt(n), n)


def paired(values: Mapping[str, float], others: Mapping[str, float]) -> Estimate | None:
    """Return the mean of the differences of two rows over the seeds that both have; None if they have none.

    Parameters
    ----------
    values, others : mapping of str to float
        The values by seed; the second are subtracted from the first.

    Examples
    --------
    >>> paired({"0": 0.9, "1": 0.8}, {"1": 0.7, "2": 0.1}).n
    1
    """
    common = [seed for seed in values if seed in others]
    return estimate([values[seed] - others[seed] for seed in common]) if common else None
