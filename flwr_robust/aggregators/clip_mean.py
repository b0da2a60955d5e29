"""ClipMean: the mean of the rows, none longer than the median row.

    tau   = median of ||x_1||, ..., ||x_n||
    value = (1 / n) sum_i x_i min{1, tau / ||x_i||}

The rule of that name in Xu, Yan, Zheng, Huang, "Mitigating model poisoning attacks on distributed learning with
heterogeneous data" (Byz-DeSGD).

Convention: norms are taken from the origin, that is, relative to the model that was sent; the median of an even number
is the mean of the two middle values. A clipped row still counts in full: the rule bounds the effect of every row but
leaves none out.

    weighted: value = sum_i b_i x_i min{1, tau / ||x_i||} / sum_i b_i

That is `clip(c='median') | mean(weighted=True)`, with a condition on f: tau stays a median of clients, so that no claim
moves it, and the bounded numbers of examples b_i weigh the rows (`flwr_robust.core.weighing`). The paper has equal
weights only.

Condition: n >= 2f + 1. Weighted, n > (1 + clamp) f, or n >= f / most, and the f heaviest rows must hold less than half
of the weight, else they turn a mean of rows of equal length around. The rule itself does not use f, unless ``most`` is
given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators

__all__ = ["ClipMean", "clipped_mean"]


def clipped_mean(rows: Rows, norms: Tensor, bound: float, counts: Tensor | None = None) -> Aggregate:
    """Average rows of the norms (n,), by counts (n,), after shortening them to a norm of at most ``bound``."""
    counts = torch.ones_like(norms) if counts is None else counts / counts.max()  # equal ones are exactly 1
    weights = (bound / norms).clamp(max=1).nan_to_num(nan=1.0) * counts / counts.sum()
    stats = {"bound": bound, "clipped": (norms > bound).nonzero().flatten().tolist()}
    return Aggregate(rows.mix(weights), weights, stats=stats)


@aggregators.register("clip_mean")
@dataclass(frozen=True)
class ClipMean(WeightedRule):
    """Mean of rows clipped to their median norm.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n, and weights.
    weighted : bool
        Average by the rows' clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int | None, Integer(minimum=0)] = None
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Clip and average."""
        norms = rows.squared_norms.sqrt()
        return clipped_mean(rows, norms, float(norms.quantile(0.5)), self.weighing(rows.asked).of(rows)), state


CASES = (
    Case(
        "clip_mean()",
        lacks={
            "translation": "clipping is relative to the origin",
            "resilience": "a clipped row still counts in full",
        },
    ),
    Case(
        "clip_mean(f=2)",
        n=5,
        lacks={
            "translation": "clipping is relative to the origin",
            "resilience": "a clipped row still counts in full",
        },
    ),
    Case(
        "clip_mean(f=2, weighted=True, clamp=100.0, most=0.4)",
        n=6,
        lacks={
            "translation": "clipping is relative to the origin",
            "resilience": "a clipped row still counts in full",
        },
    ),
)
