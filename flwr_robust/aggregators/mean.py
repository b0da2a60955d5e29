"""Mean: the plain average. It resists no attack by itself, but is order-optimal when data are very heterogeneous.

    value = sum_i w_i x_i,   w_i = 1 / n,   or w_i proportional to min(c_i, clamp * median of c, U) when weighted

with c_i the number of examples client i says it has. A client can lie about c_i; clamping bounds what a lie buys. With
``most`` U is the largest number at which no client weighs more than that share: `flwr_robust.core.weighing`.

Convention: equal weights. McMahan et al., "Communication-efficient learning of deep networks from decentralized
data" (AISTATS 2017), weigh by c_i without a clamp, as Flower's FedAvg does. That the mean can beat robust rules under
label poisoning: Peng, Li, Vlaski, Ling, JMLR 26 (2025).

Condition: n >= 1; with ``most``, n >= 1 / most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from flwr_robust.core.fields import Flag, Number
from flwr_robust.core.guarantees import MEASURES, Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators

__all__ = ["Mean"]


@aggregators.register("mean")
@dataclass(frozen=True)
class Mean(WeightedRule):
    """Average of the rows.

    Attributes
    ----------
    weighted : bool
        Weigh rows by their number of examples instead of equally.
    clamp : float
        With ``weighted``: a count above this multiple of the median count is lowered to it; >= 1.
    most : float, optional
        With ``weighted``: the largest share of the weight that one row holds; in (0, 1).
    """

    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None

    def needs_unweighted(self, asked: int) -> tuple[int, str]:
        """Require one row."""
        return 1, "n >= 1"

    def tolerated(self, n: int, asked: int) -> int:
        """Return n - 1: one finite row is enough."""
        return n - 1

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return infinity for every measure if a row is faulty: it moves the mean without bound."""
        return [
            Bound(measure, math.inf, "a single row moves the mean without bound", exact=True)
            for measure in MEASURES
            if f
        ]

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average the rows."""
        counts = self.weighing(rows.asked).of(rows)
        weights = counts / counts.sum()
        return Aggregate(rows.mix(weights), weights), state


CASES = (
    Case("mean()", lacks={"resilience": "a single row moves the mean without bound"}),
    Case("mean(weighted=True)", lacks={"resilience": "a single row moves the mean without bound"}),
    Case(
        "mean(weighted=True, clamp=100.0, most=0.2)",
        n=7,
        lacks={"resilience": "a single row moves the mean without bound"},
    ),
)
