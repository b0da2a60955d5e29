"""Norm bounding: the mean of the rows, none longer than c.

    value = (1 / n) sum_i x_i min{1, c / ||x_i||}

Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?" (arXiv 1911.07963, 2019). They also add
noise; this rule does not. The same as ``clip(c=...) | mean``.

Convention: norms are taken from the origin, that is, relative to the model that was sent.

Condition: n >= 2f + 1. The rule itself does not use f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flwr_robust.aggregators.clip_mean import clipped_mean
from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["NormBound"]


@aggregators.register("norm_bound")
@dataclass(frozen=True)
class NormBound(Rule):
    """Mean of rows clipped to a fixed norm.

    Attributes
    ----------
    c : float
        The largest norm, in the units of the rows; > 0.
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    """

    c: Annotated[float, Number(above=0)]
    f: Annotated[int | None, Integer(minimum=0)] = None

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Clip and average."""
        return clipped_mean(rows, rows.squared_norms.sqrt(), float(self.c)), state


CASES = (
    Case(
        "norm_bound(c=2.0)",
        lacks={
            "translation": "clipping is relative to the origin",
            "scale": "c is in the units of the rows",
            "unanimity": "rows longer than c are shortened",
            "resilience": "a clipped row still counts in full",
        },
    ),
)
