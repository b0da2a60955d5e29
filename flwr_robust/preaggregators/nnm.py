"""Nearest-neighbour mixing: every row becomes the mean of the rows nearest to it.

    x'_i = mean of the n - f rows of least ||x_i - x_j||, row i itself included

f: declared number of faulty rows. Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing: a recipe
for optimal Byzantine ML under heterogeneity" (AISTATS 2023): with it before the rule, the honest rows' variance costs a
rule no more than the share of faulty rows makes unavoidable.

With a rule of known kappa behind it, f declared and real: kappa' <= 8 f / (n - f) (kappa + 1).

Convention: row i is always among its own neighbours, even if more than n - f rows equal it. Other ties go to the lowest
index.

    weighted: x'_i = sum_j a_ij x_j / (1 - phi),   a_ij = w_j for the rows nearest to i, until they hold 1 - phi

w_j: the bounded weights of `flwr_robust.core.weighing`. phi: the share of the f heaviest rows. The last neighbour
counts in part. This definition is ours; we know of none. It takes the partial sums of Dahan, Levy, "Weight for
robustness: a comprehensive approach towards optimal fault-tolerant asynchronous ML" (NeurIPS 2024), which they take
about one anchor, about every row. The proof for equal weights rests on two facts, which stay true. Faulty rows hold at
most phi of a neighbourhood. And for an honest i the sum of a_ij ||x_i - x_j||^2 is least among all choices of weight 1
- phi, which honest rows alone could fill. So shares of weight take the place of f / n. Equal numbers of examples give
the n - f nearest. A client, other than the f heaviest, that splits in two equal halves changes no neighbourhood.

Condition: n >= 2f + 1. Weighted, n > (1 + clamp) f, or n >= f / most, and phi < 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Flag, Integer, Number
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, preaggregators
from flwr_robust.core.weighing import Weighing

__all__ = ["NNM"]

_ROUNDING = 1e-12


@preaggregators.register("nnm")
@dataclass(frozen=True)
class NNM(PreAggregator):
    """Replace every row by the mean of its n - f nearest.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    weighted : bool
        Weigh rows, and the size of a neighbourhood, by clamped numbers of examples instead of equally.
    clamp : float
        As for the rule `mean`.
    most : float, optional
        With ``weighted``: the largest share of the weight that the f heaviest rows (one if f is 0) hold; in (0, 1).
    """

    f: Annotated[int, Integer(minimum=0)]
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    most: Annotated[float | None, Number(above=0, below=1)] = None
    pairwise: ClassVar[bool] = True

    def weighing(self) -> Weighing:
        """Return how rows count."""
        return Weighing(self.name, self.weighted, self.clamp, self.most, self.f)

    def bounds(self, n: int, f: int, following: Sequence[Bound]) -> Sequence[Bound]:
        """Return 8 f / (n - f) (kappa + 1) for the declared f and equal weights."""
        if f != self.f or self.weighted:
            return ()
        factor, source = 8 * f / (n - f), "Allouah et al., AISTATS 2023, for nnm before: "
        return [Bound("kappa", factor * (b.value + 1), source + b.source) for b in following if b.measure == "kappa"]

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Average neighbours."""
        counts = self.weighing().of(rows)
        size = counts.sum() - counts.topk(self.f).values.sum()
        # Below every distance, so that a row comes first among its neighbours.
        distances = rows.squared_distances.clone().fill_diagonal_(-1)
        nearest = torch.sort(distances, dim=1, stable=True).indices
        held = counts[nearest]
        taken = (size - (held.cumsum(1) - held)).clamp(min=0).minimum(held)
        taken = torch.where(taken > _ROUNDING * size, taken, 0.0)  # what is left over by rounding is nothing
        matrix = torch.zeros(rows.n, rows.n, dtype=torch.float64).scatter_(1, nearest, taken / size)
        return matrix, {"chosen_by": (matrix > 0).sum(0).tolist()}, state


CASES = (
    Case("nnm(f=3) | krum(f=3)"),
    Case(
        "nnm(f=3) | trimmed_mean(f=3)",
        lacks={
            "mix": "a coordinate rule is no combination of whole rows",
        },
    ),
    Case("nnm(f=1) | krum(f=1)", n=5),
    Case("nnm(f=2, weighted=True, clamp=100.0, most=0.4) | krum(f=2)", n=8),
)
