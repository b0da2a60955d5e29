"""FABA: drop, one at a time, the row farthest from the mean of those left.

    f times: remove argmax_i ||x_i - mean of the rows left||, ties to the lowest index;   value = mean of the n - f left

Xia, Tao, Hao, Li, "FABA: an algorithm for fast aggregation against Byzantine attacks in distributed neural networks"
(IJCAI 2019). Under label poisoning rho = 2 delta / (1 - 3 delta) for delta < 1/3: Peng et al., JMLR 26 (2025).

    weighted: both means are sum_i b_i x_i / sum_i b_i over the rows left

That is the iterative outlier scissor (IOS) of Wu, Chen, Ling, "Byzantine-resilient decentralized stochastic
optimization with robust aggregation rules" (IEEE TSP 71, 2023). Its weights are those of a mixing matrix. Here they are
bounded numbers of examples (`flwr_robust.core.weighing`), and no row is exempt, for a server has none of its own. The
weights move the mean and not the distances: f rows go, light or heavy.

Condition: n >= 2f + 1. Weighted, n > (1 + clamp) f, or n >= f / most, and the f heaviest rows must hold less than half
of the weight. If f rows at one far place held more, the mean would lie nearer to them, and the others would go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, State, WeightedRule, aggregators

__all__ = ["FABA"]


@aggregators.register("faba")
@dataclass(frozen=True)
class FABA(WeightedRule):
    """Mean after f removals of the row farthest from the mean.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, and of removals.
    weighted : bool
        Take means by the rows' clamped numbers of examples instead of equally.
    clamp : float
        As for `Mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int, Integer(minimum=0)]
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None
    pairwise: ClassVar[bool] = True

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of rho for the declared f below n / 3 and equal weights."""
        if f != self.f or self.weighted or 3 * f >= n:
            return ()
        return (Bound("rho", 2 * f / (n - 3 * f), "Peng et al., JMLR 2025: 2 delta / (1 - 3 delta)"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Remove f rows, then average."""
        gram, counts = rows.gram, self.weighing(rows.asked).of(rows)
        counts = counts / counts.max()  # equal ones are exactly 1
        left = list(range(rows.n))
        removed: list[int] = []
        for _ in range(self.f):
            # Only entries of the rows left: a huge row's would drown the others after it has gone.
            among, held = gram[left][:, left], counts[left]
            # Their sum times (||x_i - mean||^2 - ||mean||^2): not divided, so that whole numbers tie exactly.
            distances = held.sum() * among.diagonal() - 2 * (among * held).sum(1)
            removed.append(left.pop(int((distances == distances.max()).nonzero()[0])))
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[left] = counts[left] / counts[left].sum()
        return Aggregate(rows.mix(weights), weights, stats={"removed": removed}), state


CASES = (
    Case("faba(f=3)"),
    Case("faba(f=0)", lacks={"resilience": "f=0 removes nothing"}),
    Case("faba(f=1)", n=3),
    Case("faba(f=1, weighted=True)"),
    Case("faba(f=3, weighted=True, clamp=100.0, most=0.4)"),
)
