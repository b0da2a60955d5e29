"""MeaMed: the mean around the median, coordinate by coordinate.

    c_j     = median of x_1j, ..., x_nj
    value_j = mean of the n - f values of x_1j, ..., x_nj nearest to c_j

Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD" (arXiv 1802.10116, 2018).

Convention: the median of an even number is the mean of the two middle values, as in `median`. Of two values equally far
from the centre the smaller one is kept.

Worst case: with f of n rows faulty, as many as are declared, h = n - f and p = floor(n / 2) + 1, kappa
(`flwr_robust.core.guarantees`) is exactly

    kappa = 4 f p / ((n - f) (p - f))

Proof. As for `trimmed_mean`, let d = 1, and let the value lie above the honest mean m. If k faulty values are kept,
k honest ones are not, as h values are kept. Each faulty value kept is no farther from the centre c than each honest
value x_j left out. Pair them: h (value - m) is at most the sum of |x_j - c| - (x_j - c) over the k pairs, so at most
twice the sum of c - x_j over the s <= f of these x_j below c. c is at most the mean of the p - f largest honest
values, as for `median`. So the sum is at most L x for a vector L of honest values: s / (p - f) for each of the p - f
largest, -1 for each of the s smallest. L sums to zero, and its squared length is s (s + p - f) / (p - f), largest for s
= f. So h (value - m) <= 2 sqrt(h f p / (p - f)) standard deviations. It is reached, up to the side on which ties fall:
f honest values at -1, the p - f largest at y = f / (p - f), the others at 0, and the faulty ones at 2 y + 1.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from flwr_robust.core.fields import Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Meamed", "average_near_median", "nearest_kappa"]


def nearest_kappa(n: int, f: int, upper: int) -> float:
    """Return kappa of the mean of the n - f values nearest to a centre.

    Parameters
    ----------
    n, f : int
        Number of values, and of faulty ones.
    upper : int
        u: the centre is at most the mean of the u largest honest values, for any faulty ones; then kappa is
        4 f (f + u) / ((n - f) u).

    Examples
    --------
    >>> round(nearest_kappa(20, 4, 7), 6)
    1.571429
    """
    return 4 * f * (f + upper) / ((n - f) * upper)


def average_near_median(rows: Rows, m: int) -> Aggregate:
    """Average, per column, the m values nearest to the median; m <= n."""
    value, shares = rows.window_mean((rows.n - 1) // 2, rows.n // 2 + 1, near=m)
    return Aggregate(rows.cast(value), shares)


@aggregators.register("meamed")
@dataclass(frozen=True)
class Meamed(Rule):
    """Coordinate-wise mean of the n - f values nearest to the median.

    Attributes
    ----------
    f : int
        Declared number of faulty rows; as many values of every column are left out.
    """

    f: Annotated[int, Integer(minimum=0)]

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at single coordinates."""
        return False

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the exact kappa for the declared f."""
        if f != self.f or 2 * f >= n:
            return ()
        value = nearest_kappa(n, f, n // 2 + 1 - f)
        return (Bound("kappa", value, "closed form, proven in flwr_robust.aggregators.meamed", exact=True),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average around the median of every column."""
        return average_near_median(rows, rows.n - self.f), state


_NO_MIX = "a coordinate rule is no combination of whole rows"

CASES = (
    Case("meamed(f=3)", lacks={"mix": _NO_MIX}),
    Case("meamed(f=4)", n=9, lacks={"mix": _NO_MIX}),
)
