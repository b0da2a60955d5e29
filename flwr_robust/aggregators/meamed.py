"""MeaMed: the mean around the median, coordinate by coordinate.

    c_j     = median of x_1j, ..., x_nj
    value_j = mean of the n - f values of x_1j, ..., x_nj nearest to c_j

Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD" (arXiv 1802.10116, 2018).

Convention: the median of an even number is the mean of the two middle values, as in `median`. Of two values equally far
from the centre the smaller one is kept.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.errors import check_integer
from flwr_robust.kernels.nearest import nearest
from flwr_robust.kernels.order import kept_shares, ranks
from flwr_robust.rows import Rows
from flwr_robust.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Meamed", "average_near", "middle"]


def middle(ordered: Tensor) -> Tensor:
    """Return the median (b,) of every column of ascending values (n, b)."""
    n = ordered.shape[0]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def average_near(rows: Rows, m: int, centre: Callable[[Tensor], Tensor]) -> Aggregate:
    """Average, per column, the m values nearest to a centre.

    Parameters
    ----------
    rows : Rows
        The rows; at least m.
    m : int
        Values kept per column.
    centre : callable from Tensor (n, b) to Tensor (b,)
        Finds the centre of columns whose values ascend.
    """
    parts, shares = [], torch.zeros(rows.n, dtype=torch.float64)
    for _, block in rows.blocks():
        ordered = ranks(block, 0, rows.n)
        kept = nearest(ordered, centre(ordered), m)
        parts.append((kept / m).sum(0))
        shares += kept_shares(block, kept)
    return Aggregate(rows.cast(torch.cat(parts)), shares / rows.d)


@aggregators.register("meamed")
@dataclass(frozen=True)
class Meamed(Rule):
    """Coordinate-wise mean of the n - f values nearest to the median.

    Attributes
    ----------
    f : int
        Declared number of faulty rows; as many values of every column are left out.
    """

    f: int

    def __post_init__(self) -> None:
        check_integer("meamed", "f", self.f, 0)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average around the median of every column."""
        return average_near(rows, rows.n - self.f, middle), state


_NO_MIX = "a coordinate rule is no combination of whole rows"

CASES = (
    Case("meamed(f=3)", lacks={"mix": _NO_MIX}),
    Case("meamed(f=4)", n=9, lacks={"mix": _NO_MIX}),
)
