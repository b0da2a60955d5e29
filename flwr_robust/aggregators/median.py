"""Coordinate-wise median.

    value_j = median of x_1j, ..., x_nj
    weighted: with the values in ascending order, the one at which their cumulative weight passes 1/2

Convention: for even n the median is the mean of the two middle values (torch.median and ByzPy take the lower one). With
weights it is the mean of two values where the cumulative weight is exactly 1/2. So equal weights change nothing. The
weights are those of `mean(weighted=True)`: a client can lie about its number of examples, but gains no more than
``clamp`` times the median client's, and with ``most`` no more than that share. Yin, Chen, Kannan, Bartlett,
"Byzantine-robust distributed learning: towards optimal statistical rates" (ICML 2018).

Worst case: the median drops t = floor((n - 1) / 2) values per side, so `trimmed_mean` holds the proof. With f of n rows
faulty, kappa is exactly

    kappa = (n - 1) / (n + 1 - 2f) for odd n,   (n - 2) / (n + 2 - 2f) for even n

The bound of Allouah et al. (AISTATS 2023) is 4 ((n - f) / (n - 2f))^2.

Condition: n >= 2f + 1; weighted, n > (1 + clamp) f. Then f clients that lie hold less than half of the weight, if
honest clients have equal numbers of examples. A round in which the f heaviest hold half of it is infeasible. With
``most`` below 1/2 they never do, and n >= f / most is enough. The rule itself does not use f: it tolerates
floor((n - 1) / 2) faulty rows if none lies about its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.aggregators.trimmed_mean import trim, trimmed_kappa
from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators

__all__ = ["Median", "weighted_median"]

_ROUNDING = 1e-12  # a cumulative weight this close to 1/2 is 1/2


def weighted_median(rows: Rows, shares: Tensor) -> Aggregate:
    """Take, per column, the value where the cumulative share (of shares (n,), summing to one) passes 1/2."""
    parts, credit = [], torch.zeros(rows.n, dtype=torch.float64)
    for _, block in rows.blocks():
        values, order = torch.sort(block, dim=0, stable=True)
        below = shares.to(block.device)[order].cumsum(0)
        last = rows.n - 1
        middle = torch.stack([(below < 0.5 - _ROUNDING).sum(0), (below <= 0.5 + _ROUNDING).sum(0)]).clamp(max=last)
        parts.append((values.gather(0, middle) / 2).sum(0))
        chosen = order.gather(0, middle).flatten()
        credit += torch.bincount(chosen, minlength=rows.n).cpu() / 2
    return Aggregate(rows.cast(torch.cat(parts)), credit / rows.d)


@aggregators.register("median")
@dataclass(frozen=True)
class Median(WeightedRule):
    """Coordinate-wise median.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    weighted : bool
        Weigh rows by their clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at single coordinates."""
        return False

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the exact kappa for equal weights."""
        if self.weighted:
            return ()
        value = trimmed_kappa(n, f, (n - 1) // 2)
        return (Bound("kappa", value, "closed form, in flwr_robust.aggregators.median", exact=True),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Take the median of every column."""
        if self.weighted:
            counts = self.weighing(rows.asked).of(rows)
            return weighted_median(rows, counts / counts.sum()), state
        return trim(rows, (rows.n - 1) // 2), state


CASES = (
    Case("median()", lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case("median(f=4)", n=9, lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case("median(weighted=True)", lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case(
        "median(f=3, weighted=True, clamp=100.0, most=0.45)",
        n=9,
        lacks={"mix": "a coordinate rule is no combination of whole rows"},
    ),
)
