"""Bucketing: the means of random groups of rows.

    pi = a random permutation of the rows;   the buckets are {pi_1 ... pi_s}, {pi_(s+1) ... pi_(2s)}, and so on
    x'_b = mean of the rows in bucket b

s: size of a bucket. There are ceil(n / s) buckets. The last one holds the remaining rows and may be smaller; its mean
counts like any other. Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing" (ICLR
2022). Averaging lowers the variance that a rule mistakes for faults. "Resampling" with replacement is the same family.

Convention: the permutation is drawn from (seed, number of calls so far); the count is the step's state. Buckets are
listed by their lowest row. The seed must be secret, or attackers know who shares a bucket with whom.

Condition: none of its own. The rule that follows declares its f for the buckets. Each faulty row spoils at most one
bucket, so the f of the clients is safe. The rule's condition has to hold with ceil(n / s) rows: trimmed_mean(f=2) with
s=2 needs 9 clients, not 5.
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

__all__ = ["Bucketing"]


@preaggregators.register("bucketing")
@dataclass(frozen=True)
class Bucketing(PreAggregator):
    """Average random buckets of s rows.

    Attributes
    ----------
    s : int
        Rows per bucket; >= 1.
    seed : int, optional
        Seed of the permutations. When not given, it is the seed of the round; without one the operating system's
        entropy.
    """

    s: Annotated[int, Integer(minimum=1)]
    seed: Annotated[int | None, Integer(minimum=0)] = None

    def rows_out(self, n: int) -> int:
        """Return ceil(n / s)."""
        return -(-n // self.s)

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the key of the number of draws."""
        return ("draws",)

    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Draw the buckets."""
        generator, following = next_draw(rows, state, self.seed, "bucketing")
        order = torch.randperm(rows.n, generator=generator)
        buckets = sorted(sorted(bucket.tolist()) for bucket in torch.split(order, self.s))
        matrix = torch.zeros(len(buckets), rows.n, dtype=torch.float64)
        for row, bucket in zip(matrix, buckets, strict=True):
            row[bucket] = 1 / len(bucket)
        return matrix, {"buckets": buckets}, following


_DRAWN = "buckets are drawn by position"
_COUNTED = "the sentence counts the buckets that come out"

CASES = (
    Case("bucketing(s=2) | krum(f=2)", n=14, lacks={"permutation": _DRAWN, "few_rows": _COUNTED}),
    Case(
        "bucketing(s=3, seed=7) | trimmed_mean(f=1)",
        n=11,
        lacks={
            "permutation": _DRAWN,
            "few_rows": _COUNTED,
            "mix": "a coordinate rule is no combination of whole rows",
        },
    ),
)
