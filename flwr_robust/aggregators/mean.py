"""Mean: the plain average. It resists no attack by itself, but is order-optimal when data are very heterogeneous.

    value = sum_i w_i x_i,   w_i = 1 / n,   or w_i proportional to min(c_i, clamp * median of c) when weighted

with c_i the number of examples client i says it has. A client can lie about c_i; clamping bounds what a lie buys.

Convention: equal weights. McMahan et al., "Communication-efficient learning of deep networks from decentralized
data" (AISTATS 2017), weigh by c_i without a clamp, as Flower's FedAvg does. That the mean can beat robust rules under
label poisoning: Peng, Li, Vlaski, Ling, JMLR 26 (2025).

Condition: n >= 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Flag, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators
from flwr_robust.errors import ConfigurationError

__all__ = ["Mean", "clamped_shares", "weighted_needs"]


def clamped_shares(rows: Rows, clamp: float) -> Tensor:
    """Return weights (n,) proportional to the rows' example counts, none above clamp times their median."""
    if rows.counts is None:
        raise ConfigurationError(
            "weighted=True needs the number of examples of every row; pass counts=... with the rows"
        )
    if not bool((torch.isfinite(rows.counts) & (rows.counts > 0)).all()):
        raise ConfigurationError(
            f"counts must be finite and > 0; got {rows.counts.tolist()}: leave out rows without examples"
        )
    counts = rows.counts.clamp(max=clamp * float(rows.counts.quantile(0.5)))
    return counts / counts.sum()


def weighted_needs(f: int, clamp: float) -> tuple[int, str]:
    """Return the smallest n at which f rows that lie about their counts weigh less than half, and the condition."""
    return math.floor((1 + clamp) * f) + 1, f"n > (1 + clamp) f with clamp={clamp:g}"


@aggregators.register("mean")
@dataclass(frozen=True)
class Mean(Rule):
    """Average of the rows.

    Attributes
    ----------
    weighted : bool
        Weigh rows by their number of examples instead of equally.
    clamp : float
        With ``weighted``: a count above this multiple of the median count is lowered to it; >= 1.
    """

    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0

    def tolerated(self, n: int, asked: int) -> int:
        """Return n - 1: one finite row is enough."""
        return n - 1

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Average the rows."""
        if self.weighted:
            weights = clamped_shares(rows, self.clamp)
        else:
            weights = torch.full((rows.n,), 1 / rows.n, dtype=torch.float64)
        return Aggregate(rows.mix(weights), weights), state


CASES = (
    Case("mean()", lacks={"resilience": "a single row moves the mean without bound"}),
    Case("mean(weighted=True)", lacks={"resilience": "a single row moves the mean without bound"}),
)
