"""Phocas: the mean around the trimmed mean, coordinate by coordinate.

    c_j     = mean of the n - 2f values left after dropping the f smallest and the f largest of x_1j, ..., x_nj
    value_j = mean of the n - f values of x_1j, ..., x_nj nearest to c_j

Xie, Koyejo, Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent" (arXiv 1805.09682, 2018).

Convention: of two values equally far from the centre the smaller one is kept. With n = 2f + 1 or 2f + 2 the centre is
the median, and the rule is `meamed`.

Worst case: with f of n rows faulty, as many as are declared, kappa (`flwr_robust.core.guarantees`) is exactly

    kappa = 4 f / (n - 2f)

The proof is that of `meamed`. In place of the p - f largest honest values stand the n - 2f largest, as for
`trimmed_mean`. This is four times what the trimmed mean alone has: averaging around a centre costs twice the error in
the worst case.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from flwr_robust.aggregators.meamed import nearest_kappa
from flwr_robust.core.fields import Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Phocas"]


@aggregators.register("phocas")
@dataclass(frozen=True)
class Phocas(Rule):
    """Coordinate-wise mean of the n - f values nearest to the trimmed mean.

    Attributes
    ----------
    f : int
        Declared number of faulty rows; the trimmed mean drops f values per side.
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
        value = nearest_kappa(n, f, n - 2 * f)
        return (Bound("kappa", value, "closed form, proven in flwr_robust.aggregators.phocas", exact=True),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average around the trimmed mean of every column."""
        value, shares = rows.window_mean(self.f, rows.n - self.f, near=rows.n - self.f)
        return Aggregate(rows.cast(value), shares), state


_NO_MIX = "a coordinate rule is no combination of whole rows"

CASES = (
    Case("phocas(f=3)", lacks={"mix": _NO_MIX}),
    Case("phocas(f=1)", n=7, lacks={"mix": _NO_MIX}),
)
