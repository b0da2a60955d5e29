"""Generalised Krum: Krum with distances in the p-norm.

    ||z||_p = (sum_j |z_j|^p)^(1/p),   for p = "inf" max_j |z_j|
    score_i = sum over the n - f - 2 rows j nearest to i of ||x_i - x_j||_p^2
    value   = x_k with the lowest score, ties to the lowest index

Ramezani-Kebrya, Tabrizian, Faghri, Popovski, "MixTailor: mixed gradient aggregation for robust learning against
tailored attacks" (TMLR 2022), draw p from 1, ..., 16. p = 2 is Krum itself: Blanchard, El Mhamdi, Guerraoui, Stainer
(NeurIPS 2017).

Convention: distances are squared whatever p is. For p other than 2 all pairs are subtracted directly, block by block;
powers are taken relative to the pair's largest difference where they would leave the range of float64.

Condition: n >= 2f + 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.aggregators.krum import krum_kappa, krum_scores, lowest
from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["GeneralisedKrum", "squared_lp_distances"]

_BITS = 1000.0  # |z_j / scale|^p stays within 2^(+-_BITS / 2) for the largest |z_j|


def _pairs(rows: Rows) -> Iterator[tuple[int, Tensor]]:
    """Yield (i, |x_j - x_i| for all j > i (n - 1 - i, b)) over all i and blocks."""
    for _, block in rows.blocks():
        for i in range(rows.n - 1):
            yield i, (block[i + 1 :] - block[i]).abs_()


def squared_lp_distances(rows: Rows, p: float | str) -> Tensor:
    """Return the squared p-norm distances (n, n), float64, of rows; p >= 1 or "inf"."""
    if p == 2:
        return rows.squared_distances
    upper = torch.zeros(rows.n, rows.n, dtype=torch.float64)
    for i, apart in _pairs(rows):
        upper[i, i + 1 :] = torch.maximum(upper[i, i + 1 :], apart.amax(1).cpu())
    if p != "inf":
        power = float(p)
        # Scales are rounded to coarse powers of two: mostly 1, so that small integers stay exact and ties remain.
        step = math.floor(_BITS / power)
        exponents = step * torch.round(torch.frexp(upper).exponent / step).double()
        scales = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponents.clamp(-1000, 1000))
        total = torch.zeros_like(upper)
        for i, apart in _pairs(rows):
            scaled = apart.div_(scales[i, i + 1 :, None].to(apart))
            total[i, i + 1 :] += scaled.pow_(power).sum(1).cpu()
        upper = scales * total.pow(1 / power)
    return (upper + upper.T).square()


@aggregators.register("generalised_krum")
@dataclass(frozen=True)
class GeneralisedKrum(Rule):
    """The row closest to its nearest others in the p-norm.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    p : float or "inf"
        Which norm: 1 <= p <= 100, or "inf" for the largest difference.
    """

    f: Annotated[int, Integer(minimum=0)]
    p: Annotated[float | str, Number(minimum=1, maximum=100, words=("inf",))] = 2

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 2f + 3."""
        return 2 * self.f + 3, "n >= 2f + 3"

    @property
    def isometric(self) -> bool:
        """Return True for p = 2 only: other norms do not come from inner products."""
        return self.p == 2

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return Krum's bound for p = 2."""
        if f != self.f or self.p != 2:
            return ()
        return (Bound("kappa", krum_kappa(n, f), "proven in flwr_robust.aggregators.krum"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Choose the row of the lowest score."""
        scores = krum_scores(squared_lp_distances(rows, self.p), self.f)
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[lowest(scores, 1)] = 1
        return Aggregate(rows.mix(weights), weights, stats={"scores": scores.tolist()}), state


CASES = (
    Case("generalised_krum(f=3)"),
    Case("generalised_krum(f=3, p=1)"),
    Case("generalised_krum(f=2, p=3.5)"),
    Case("generalised_krum(f=2, p=16)", n=8),
    Case("generalised_krum(f=3, p='inf')"),
)
