"""Majority vote of signs: every coordinate moves by the same step, in the direction most rows want.

    value_j = scale * sign(sum_i sign(x_ij))

Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote is communication efficient and fault tolerant"
(ICLR 2019).

Convention: sign(0) = 0, so a zero abstains, and a tied vote gives 0. The paper's messages are one bit and cannot
abstain; an odd number of rows without zeros never ties. Each coordinate is shared equally by the rows whose sign is the
result's, or by all rows where the vote is tied. The weight of a row is its share of the coordinates.

Condition: n >= 2f + 1. The rule itself does not use f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["SignMajority"]


@aggregators.register("sign_majority")
@dataclass(frozen=True)
class SignMajority(Rule):
    """Scaled majority of the rows' signs.

    Attributes
    ----------
    scale : float
        Size of every coordinate of the value, in the units of the rows; > 0.
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    """

    scale: Annotated[float, Number(above=0)] = 1.0
    f: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at signs."""
        return False

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Count the votes of every column."""
        parts, shares = [], torch.zeros(rows.n, dtype=torch.float64)
        for _, block in rows.blocks():
            signs = block.sign()
            result = signs.sum(0).sign()
            agreeing = (signs.eq_(result).logical_or_(result == 0)).to(torch.float64)
            parts.append(self.scale * result)
            shares += (agreeing @ agreeing.sum(0).reciprocal()).cpu()
        return Aggregate(rows.cast(torch.cat(parts)), shares / rows.d), state


_SIGNS = "the value holds signs, and no lengths"

CASES = (
    Case(
        "sign_majority()",
        lacks={
            "mix": "a coordinate rule is no combination of whole rows",
            "resilience": _SIGNS,
            "scale": _SIGNS,
            "translation": "signs are taken from the origin",
            "unanimity": _SIGNS,
        },
    ),
    Case(
        "sign_majority(scale=0.01, f=1)",
        n=4,
        lacks={
            "mix": "a coordinate rule is no combination of whole rows",
            "resilience": _SIGNS,
            "scale": _SIGNS,
            "translation": "signs are taken from the origin",
            "unanimity": _SIGNS,
        },
    ),
)
