"""Krum: the row that lies closest to its neighbours.

    score_i = sum over the n - f - 2 rows j nearest to i of ||x_i - x_j||^2
    value   = x_k with the lowest score, ties to the lowest index

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent"
(NeurIPS 2017). Libraries differ in the number of neighbours and the power of the distances, and so choose different
clients:

    variant                neighbours   distances   who
    paper                  n - f - 2    squared     the paper; ours
    byzfl                  n - f - 1    squared     ByzFL, ByzPy, FLPoison
    byzantine_momentum     n - f - 1    plain       ByzantineMomentum

Numbers of examples do not enter: the literature defines no weighted score, and the rule averages nothing.
`multi_krum` can weigh the rows that it has chosen.

Proven here for the paper's variant, f of n rows being faulty, h = n - f and q = n - 2f - 1 >= 1:

    kappa <= (sqrt(2 h (h - 2) / (q (h - 1))) + sqrt((f + 1) / q))^2

Let s^2 be the honest rows' mean squared distance from their mean m_H. The pairs of honest rows have squared distances
of sum 2 h^2 s^2. A score is of h - 2 out of h - 1 others. So the mean honest score is at most 2 h s^2 (h - 2) / (h -
1). The lowest score is no higher. The n - f - 2 rows nearest to row k hold at least q - 1 honest ones, q if k is
faulty. If k is honest it counts itself. So there is a set T of q honest rows whose squared distances from x_k sum to no
more than the score. So x_k is no farther from the mean of T than sqrt(score / q). The mean of q of h rows is at most
sqrt((h - q) / q) s from m_H, and h - q = f + 1. Allouah et al. (AISTATS 2023) have 6 (1 + f / (n - 2f)) for another
number of neighbours.

Condition: n >= 2f + 3. Without it the theorem does not hold. ``strict=False`` computes the scores anyway, down to
n = f + 3, which is one neighbour; some studies let Krum choose among so few clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Choice, Flag, Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Krum", "krum_kappa", "krum_needs", "krum_scores", "lowest", "nearest_sums", "neighbours"]

VARIANTS = {"paper": (2, 2), "byzfl": (1, 2), "byzantine_momentum": (1, 1)}


def neighbours(squared_distances: Tensor, variant: str = "paper") -> tuple[Tensor, Tensor]:
    """Return every row's distances to the rows, ascending, in the variant's power, and whose they are.

    Both have shape (n, n); a row's distance to itself counts as infinite, so that it comes last.
    """
    _, power = VARIANTS[variant]
    others = squared_distances if power == 2 else squared_distances.sqrt()
    found = others.clone().fill_diagonal_(torch.inf).sort(dim=1)
    return found.values, found.indices


def nearest_sums(ordered: Tensor, f: int, variant: str = "paper") -> Tensor:
    """Return every row's score (n,) from its ascending distances: the sum of those to its nearest others."""
    left_out, _ = VARIANTS[variant]
    return ordered[:, : len(ordered) - f - left_out].sum(1)


def krum_scores(squared_distances: Tensor, f: int, variant: str = "paper") -> Tensor:
    """Return every row's score (n,): its summed distances to its nearest others."""
    return nearest_sums(neighbours(squared_distances, variant)[0], f, variant)


def lowest(scores: Tensor, m: int) -> Tensor:
    """Return the indices of the m lowest scores, ties to the lowest index."""
    return torch.sort(scores, stable=True).indices[:m]


def krum_kappa(n: int, f: int) -> float:
    """Return the bound of kappa for f of n rows faulty and as many declared; infinity where q = n - 2f - 1 < 1.

    Examples
    --------
    >>> round(krum_kappa(20, 4), 3)
    5.392
    """
    h, q = n - f, n - 2 * f - 1
    if q < 1 or h < 3:
        return math.inf
    return (math.sqrt(2 * h * (h - 2) / (q * (h - 1))) + math.sqrt((f + 1) / q)) ** 2


def krum_needs(f: int, strict: bool) -> tuple[int, str]:
    """Return the smallest n, and the condition in words."""
    return (2 * f + 3, "n >= 2f + 3") if strict else (f + 3, "n >= f + 3")


@aggregators.register("krum")
@dataclass(frozen=True)
class Krum(Rule):
    """The row closest to its nearest others.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    variant : str
        Which library's definition: "paper", "byzfl" or "byzantine_momentum".
    strict: bool
        Whether n >= 2f + 3 is required. If False, n >= f + 3 is enough.
    """

    f: Annotated[int, Integer(minimum=0)]
    variant: Annotated[str, Choice(VARIANTS)] = "paper"
    strict: Annotated[bool, Flag()] = True
    pairwise: ClassVar[bool] = True

    def needs(self, asked: int) -> tuple[int, str]:
        """Require n >= 2f + 3, or n >= f + 3 if not strict."""
        return krum_needs(self.f, self.strict)

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of kappa for the declared f, in the paper's variant."""
        if f != self.f or self.variant != "paper":
            return ()
        return (Bound("kappa", krum_kappa(n, f), "proven in flwr_robust.aggregators.krum"),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Choose the row of the lowest score."""
        scores = krum_scores(rows.squared_distances, self.f, self.variant)
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[lowest(scores, 1)] = 1
        return Aggregate(rows.mix(weights), weights, stats={"scores": scores.tolist()}), state


CASES = (
    Case("krum(f=3)"),
    Case("krum(f=2, variant='byzfl')"),
    Case("krum(f=0)", n=3),
    Case("krum(f=3, strict=False)", n=7, lacks={"resilience": "two neighbours, and two colluders besides"}),
)
