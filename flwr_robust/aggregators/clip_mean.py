"""ClipMean: the mean of the rows, none longer than the median row.

    tau   = median of ||x_1||, ..., ||x_n||
    value = (1 / n) sum_i x_i min{1, tau / ||x_i||}

The rule of that name in Xu, Yan, Zheng, Huang, "Mitigating model poisoning attacks on distributed learning with
heterogeneous data" (Byz-DeSGD).

Convention: norms are taken from the origin, that is, relative to the model that was sent; the median of an even number
is the mean of the two middle values. A clipped row still counts in full: the rule bounds the effect of every row but
leaves none out.

Condition: n >= 2f + 1. The rule itself does not use f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["ClipMean", "clipped_mean"]


def clipped_mean(rows: Rows, norms: Tensor, bound: float) -> Aggregate:
    """Average rows of the norms (n,) after shortening them to a norm of at most ``bound``."""
    weights = (bound / norms).clamp(max=1).nan_to_num(nan=1.0) / rows.n
    stats = {"bound": bound, "clipped": (norms > bound).nonzero().flatten().tolist()}
    return Aggregate(rows.mix(weights), weights, stats=stats)


@aggregators.register("clip_mean")
@dataclass(frozen=True)
class ClipMean(Rule):
    """Mean of rows clipped to their median norm.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    """

    f: Annotated[int | None, Integer(minimum=0)] = None

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Clip and average."""
        norms = rows.squared_norms.sqrt()
        return clipped_mean(rows, norms, float(norms.quantile(0.5))), state


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
)
