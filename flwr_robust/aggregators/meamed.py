"""MeaMed: the mean around the median, coordinate by coordinate.

    c_j     = median of x_1j, ..., x_nj
    value_j = mean of the n - f values of x_1j, ..., x_nj nearest to c_j

Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD" (arXiv 1802.10116, 2018).

Convention: the median of an even number is the mean of the two middle values, as in `median`. Of two values equally far
from the centre the smaller one is kept.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Meamed", "average_near_median"]


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

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average around the median of every column."""
        return average_near_median(rows, rows.n - self.f), state


_NO_MIX = "a coordinate rule is no combination of whole rows"

CASES = (
    Case("meamed(f=3)", lacks={"mix": _NO_MIX}),
    Case("meamed(f=4)", n=9, lacks={"mix": _NO_MIX}),
)
