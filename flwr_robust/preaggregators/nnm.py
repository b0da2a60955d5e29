"""Nearest-neighbour mixing: every row becomes the mean of the rows nearest to it.

    x'_i = mean of the n - f rows of least ||x_i - x_j||, row i itself included

f: declared number of faulty rows. Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing: a recipe
for optimal Byzantine ML under heterogeneity" (AISTATS 2023): with it before the rule, the honest rows' variance costs a
rule no more than the share of faulty rows makes unavoidable.

Convention: row i is always among its own neighbours, even if more than n - f rows equal it. Other ties go to the lowest
index.

Condition: n >= 2f + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, preaggregators

__all__ = ["NNM"]


@preaggregators.register("nnm")
@dataclass(frozen=True)
class NNM(PreAggregator):
    """Replace every row by the mean of its n - f nearest.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    """

    f: Annotated[int, Integer(minimum=0)]
    pairwise: ClassVar[bool] = True

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Average neighbours."""
        size = rows.n - self.f
        # Below every distance, so that a row comes first among its neighbours.
        distances = rows.squared_distances.clone().fill_diagonal_(-1)
        neighbours = torch.sort(distances, dim=1, stable=True).indices[:, :size]
        matrix = torch.zeros(rows.n, rows.n, dtype=torch.float64).scatter_(1, neighbours, 1 / size)
        return matrix, {"chosen_by": (matrix > 0).sum(0).tolist()}, state


_ALIKE = "rows of the same neighbours are equal but for rounding, which decides whose share of a column counts"

CASES = (
    Case("nnm(f=3) | krum(f=3)"),
    Case(
        "nnm(f=3) | trimmed_mean(f=3)",
        lacks={
            "mix": "a coordinate rule is no combination of whole rows",
        },
    ),
    Case("nnm(f=1) | krum(f=1)", n=5),
)
