"""FABA: drop, one at a time, the row farthest from the mean of those left.

    f times: remove argmax_i ||x_i - mean of the rows left||, ties to the lowest index;   value = mean of the n - f left

Xia, Tao, Hao, Li, "FABA: an algorithm for fast aggregation against Byzantine attacks in distributed neural networks"
(IJCAI 2019). Under label poisoning rho = 2 delta / (1 - 3 delta) for delta < 1/3: Peng et al., JMLR 26 (2025).

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["FABA"]


@aggregators.register("faba")
@dataclass(frozen=True)
class FABA(Rule):
    """Mean after f removals of the row farthest from the mean.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, and of removals.
    """

    f: Annotated[int, Integer(minimum=0)]
    pairwise: ClassVar[bool] = True

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Remove f rows, then average."""
        gram = rows.gram
        left = list(range(rows.n))
        removed: list[int] = []
        for _ in range(self.f):
            # Only entries of the rows left: a huge row's would drown the others after it has gone.
            among = gram[left][:, left]
            # |left| (||x_i - mean||^2 - ||mean||^2): not divided, so that whole numbers tie exactly.
            distances = len(left) * among.diagonal() - 2 * among.sum(1)
            removed.append(left.pop(int((distances == distances.max()).nonzero()[0])))
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[left] = 1 / len(left)
        return Aggregate(rows.mix(weights), weights, stats={"removed": removed}), state


CASES = (
    Case("faba(f=3)"),
    Case("faba(f=0)", lacks={"resilience": "f=0 removes nothing"}),
    Case("faba(f=1)", n=3),
)
