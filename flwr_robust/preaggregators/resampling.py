"""Resampling: replace the n rows by n means of s rows each, in which every row counts s times.

    pi_1, ..., pi_s = random permutations of the rows
    x'_j            = (1 / s) sum_k x_(pi_k(j)),   j = 1, ..., n

s: how many rows are averaged. He, Karimireddy, Jaggi, "Byzantine-robust learning on heterogeneous datasets via
resampling" (2020), the first version of the paper on `bucketing`. The variance that a rule mistakes for faults falls by
a factor of up to s. n stays the same, so rules keep their conditions even with few clients. MixTailor's authors use it
where clients' data differ.

Convention: permutations are drawn from (seed, number of calls so far); the count is the step's state. A row may enter
the same mean more than once. The seed must be secret, or attackers know which means they share.

Condition: none of its own. Each faulty row spoils up to s of the n means. So only a rule that declares s f has a
guarantee against f faulty rows. The authors declare f.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Case, PreAggregator, State, next_draw, preaggregators

__all__ = ["Resampling"]


@preaggregators.register("resampling")
@dataclass(frozen=True)
class Resampling(PreAggregator):
    """Average s rows at a time, each row s times.

    Attributes
    ----------
    s : int
        Rows per mean; >= 1.
    seed : int, optional
        Seed of the permutations. When not given, it is the seed of the round; without one the operating system's
        entropy.
    """

    s: Annotated[int, Integer(minimum=1)]
    seed: Annotated[int | None, Integer(minimum=0)] = None

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws."""
        return ("draws",)

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Draw the permutations."""
        generator, following = next_draw(rows, state, self.seed, "resampling")
        drawn = torch.stack([torch.randperm(rows.n, generator=generator) for _ in range(self.s)], 1)
        counts = torch.zeros(rows.n, rows.n, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        return counts / self.s, {"rows": drawn.tolist()}, following


_DRAWN = "means are drawn by position"

CASES = (
    Case("resampling(s=2) | krum(f=2)", n=11, lacks={"permutation": _DRAWN}),
    Case(
        "resampling(s=3, seed=7) | trimmed_mean(f=1)",
        n=11,
        lacks={
            "permutation": _DRAWN,
            "resilience": "each faulty row spoils up to s of the means",
            "mix": "a coordinate rule is no combination of whole rows",
        },
    ),
)
