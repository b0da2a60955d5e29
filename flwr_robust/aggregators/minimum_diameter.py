"""Minimum-diameter averaging (MDA): the mean of the n - f rows that lie closest together.

    S     = argmin over subsets of n - f rows of max over i, j in S of ||x_i - x_j||,   ties to the lowest indices
    value = mean of the rows in S

El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely distributed Byzantine machine learning" (PODC 2020); the rule
goes back to Rousseeuw, "Multivariate estimation with high breakdown point" (1985).

The search is exact. A subset of diameter at most t is what remains when f rows are left out so that no pair farther
apart than t remains: a vertex cover of the far pairs with f rows. The search branches on the row with the most far
partners: either this row is left out, or all its partners are. The least t is found by bisection over the distances
that occur.

Convention: "lowest indices" means the subset that comes first in lexicographic order. Several subsets may share their
diameter, so the order of the rows can matter.

Proven: lambda <= (2f / (n - f))^2, for f declared and real (Farhadkhani et al., ICML 2022, unsquared). S and the honest
set H both have n - f rows, and share at least n - 2f >= 1. Pair the at most f rows of S that are not in H with those of
H that are not in S. By way of a common row the two of a pair are at most the diameter of S plus that of H apart. The
diameter of S is no larger than that of H.

Condition: n >= 2f + 1. Every step of the search looks at no more than 2^f subsets; above ``maximum_subsets`` the
rule refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["MinimumDiameter", "densest_subset"]


def _coverable(far: Sequence[int], left: int, budget: int) -> bool:
    """Say whether leaving out ``budget`` rows of the set ``left`` separates all far pairs in it.

    Sets are integers, bit i for row i; far[i] is the set of rows too far from row i.
    """
    partners = [((far[i] & left).bit_count(), i) for i in range(len(far)) if left >> i & 1]
    most, row = max(partners, default=(0, 0), key=lambda pair: pair[0])
    if most == 0:
        return True
    if sum(count for count, _ in partners) > 2 * budget * most:  # each row left out separates at most ``most`` pairs
        return False
    without = left & ~(1 << row)
    if _coverable(far, without, budget - 1):
        return True
    return 1 < most <= budget and _coverable(far, without & ~far[row], budget - most)


def densest_subset(squared_distances: Tensor, m: int) -> tuple[list[int], float]:
    """Return the m points of least diameter, ties to the lowest indices, and their diameter.

    Parameters
    ----------
    squared_distances : Tensor (n, n)
        Between the points.
    m : int
        How many points; 1 <= m <= n.
    """
    n = squared_distances.shape[0]
    everyone, budget = (1 << n) - 1, n - m

    def too_far(limit: float) -> list[int]:
        digits = (squared_distances > limit).flip(1).to(torch.uint8) + ord("0")
        return [int(bytes(row), 2) for row in digits.tolist()]

    limits = torch.unique(squared_distances).tolist()
    low, high = 0, len(limits) - 1
    while low < high:
        half = (low + high) // 2
        if _coverable(too_far(limits[half]), everyone, budget):
            high = half
        else:
            low = half + 1
    far, left, chosen = too_far(limits[low]), everyone, 0
    for i in range(n):
        if chosen.bit_count() == m or not left >> i & 1:
            continue
        # Row i stays if leaving out its far partners can still be completed.
        remaining = left & ~far[i]
        dropped = n - remaining.bit_count()
        if dropped <= budget and _coverable(far, remaining, budget - dropped):
            left, chosen = remaining, chosen | 1 << i
        else:
            left &= ~(1 << i)
    return [i for i in range(n) if chosen >> i & 1], limits[low] ** 0.5


@aggregators.register("minimum_diameter")
@dataclass(frozen=True)
class MinimumDiameter(Rule):
    """Mean of the n - f rows of least diameter.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, and of rows left out.
    maximum_subsets : int
        Refuse where the search could look at more subsets than this per step.
    """

    f: Annotated[int, Integer(minimum=0)]
    maximum_subsets: Annotated[int, Integer(minimum=1)] = 2**20
    pairwise: ClassVar[bool] = True

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why n rows do not fit this rule, or that the search may take too long."""
        if sentence := super().check(n, asked=asked):
            return sentence
        if 2**self.f > self.maximum_subsets:
            return (
                f"minimum_diameter searches up to 2^f subsets, and maximum_subsets={self.maximum_subsets} allows "
                f"f <= {self.maximum_subsets.bit_length() - 1}; got n={n}, f={self.f}: lower f, raise maximum_subsets, "
                f"or take a rule without a search, such as faba"
            )
        return None

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return the bound of lambda for the declared f."""
        if f != self.f or 2 * f >= n:
            return ()
        source = "Farhadkhani et al., ICML 2022; flwr_robust.aggregators.minimum_diameter"
        return (Bound("lambda", (2 * f / (n - f)) ** 2, source),)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Search the subset, then average it."""
        kept, diameter = densest_subset(rows.squared_distances, rows.n - self.f)
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[kept] = 1 / len(kept)
        return Aggregate(rows.mix(weights), weights, stats={"kept": kept, "diameter": diameter}), state


CASES = (
    Case("minimum_diameter(f=3)"),
    Case("minimum_diameter(f=4)", n=9),
    Case("minimum_diameter(f=0)", n=3, lacks={"resilience": "f=0 leaves nothing out"}),
)
