"""SignGuard: keep the rows of usual length whose signs are like most others'.

    M   = median of ||x_i||
    S_1 = {i : lower M <= ||x_i|| <= upper M}
    S_2 = the larger of two clusters of the points (numbers of positive, zero and negative coordinates of x_i),
          counted on a random share of the coordinates
    value = mean over S_1 and S_2 of x_i min{1, M / ||x_i||}

Xu, Huang, Song, Lan, "Byzantine-robust federated learning through collaborative malicious gradient filtering" (ICDCS
2022). They take lower 0.1, upper 3 and a tenth of the coordinates. This is their plain form; the variants with cosine
or distance features are not offered.

Convention: the points are clustered by `lfighter`'s 2-means, which starts from the two points farthest apart and has no
randomness (the paper takes MeanShift); a tie in size goes to the cluster of row 0. Coordinates, max{1, floor(share d)}
of them without repetition, are drawn from (seed, number of calls so far); the count is the state. The seed must be
secret, or attackers know whose signs count. Where no row is in both sets nothing is aggregated: the value is zero and
the outcome INFEASIBLE.

Condition: n >= 1. There is no f: the rule keeps a majority at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.aggregators.lfighter import two_means
from flwr_robust.core.fields import Integer, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators, next_draw

__all__ = ["SignGuard", "sign_counts"]


def sign_counts(rows: Rows, chosen: Tensor) -> Tensor:
    """Count positive, zero and negative coordinates (n, 3) of every row where ``chosen`` (bool (d,)) is true."""
    counts = torch.zeros(rows.n, 3, dtype=torch.float64)
    for start, block in rows.blocks():
        picked = block[:, chosen[start : start + block.shape[1]].to(block.device)]
        counts += torch.stack([(picked > 0).sum(1), (picked == 0).sum(1), (picked < 0).sum(1)], dim=1).cpu()
    return counts


@aggregators.register("signguard")
@dataclass(frozen=True)
class SignGuard(Rule):
    """Clipped mean of the rows that pass a filter on norms and one on signs.

    Attributes
    ----------
    lower : float
        Rows shorter than this multiple of the median norm are left out; in [0, 1].
    upper : float
        Rows longer than this multiple of the median norm are left out; >= 1.
    share : float
        Share of the coordinates whose signs are counted; in (0, 1].
    seed : int, optional
        Seed of the choice of coordinates. When not given, it is the seed of the round; without one the operating
        system's entropy.
    """

    lower: Annotated[float, Number(minimum=0, maximum=1)] = 0.1
    upper: Annotated[float, Number(minimum=1)] = 3.0
    share: Annotated[float, Number(above=0, maximum=1)] = 0.1
    seed: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws."""
        return ("draws",)

    @property
    def isometric(self) -> bool:
        """Return False: the rule looks at signs."""
        return False

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Filter by norms and by signs, then average."""
        norms = rows.squared_norms.sqrt()
        middle = norms.quantile(0.5)
        usual = (norms >= self.lower * middle) & (norms <= self.upper * middle)
        generator, following = next_draw(rows, state, self.seed, "signguard")
        chosen = torch.zeros(rows.d, dtype=torch.bool)
        chosen[torch.randperm(rows.d, generator=generator)[: max(1, int(self.share * rows.d))]] = True
        counts = sign_counts(rows, chosen)
        alike = two_means(counts)
        if 2 * int(alike.sum()) < rows.n:
            alike = ~alike
        kept = usual & alike
        weights = (middle / norms).clamp(max=1).nan_to_num(nan=1.0) * kept / kept.sum().clamp(min=1)
        stats = {
            "radius": float(middle),
            "usual_norm": usual.nonzero().flatten().tolist(),
            "usual_signs": alike.nonzero().flatten().tolist(),
            "signs": counts.tolist(),
        }
        outcome = Outcome.OK if bool(kept.any()) else Outcome.INFEASIBLE
        return Aggregate(rows.mix(weights), weights, outcome, stats), following


CASES = (
    Case(
        "signguard()",
        lacks={
            "translation": "norms and signs are taken from the origin",
            "permutation": "pairs of points equally far apart go to the lowest index, and small counts tie often",
        },
    ),
    Case(
        "signguard(lower=0.5, upper=1.5, share=1.0)",
        n=7,
        lacks={
            "translation": "norms and signs are taken from the origin",
            "state": "all coordinates are counted, whatever is drawn",
        },
    ),
)
