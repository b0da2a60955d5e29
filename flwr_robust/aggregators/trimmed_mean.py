"""Coordinate-wise trimmed mean.

    value_j = mean of the n - 2f values of x_1j, ..., x_nj left after dropping the f smallest and the f largest

Convention: exactly f per side. The values left are summed; "sum of all minus the extremes" is the same on paper and
loses every digit to one row at 1e8. With ``fraction`` f = floor(fraction * clients asked), so that clients which stay
silent do not shrink the trim; Flower's FedTrimmedAvg takes the fraction of the replies. Yin, Chen, Kannan, Bartlett
(ICML 2018). Under label poisoning rho = 3 delta / (1 - 2 delta) min{sqrt(D), sqrt(R)}: Peng et al., JMLR 26 (2025).

Condition: n >= 2f + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flwr_robust.errors import ConfigurationError, check_integer, check_number
from flwr_robust.kernels.order import kept_shares, ranks
from flwr_robust.rows import Rows
from flwr_robust.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["TrimmedMean", "trim"]


def trim(rows: Rows, f: int) -> Aggregate:
    """Average, per column, the values of ranks f .. n - f - 1."""
    parts, shares = [], torch.zeros(rows.n, dtype=torch.float64)
    for _, block in rows.blocks():
        kept = ranks(block, f, rows.n - f)
        # Dividing first: the mean of values near the type's limit must not overflow.
        parts.append((kept / kept.shape[0]).sum(0))
        shares += kept_shares(block, kept)
    return Aggregate(rows.cast(torch.cat(parts)), shares / rows.d)


@aggregators.register("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Rule):
    """Coordinate-wise trimmed mean; give ``f`` or ``fraction``.

    Attributes
    ----------
    f : int, optional
        Values dropped at each side of every column, the declared number of faulty rows.
    fraction : float, optional
        Fixes f as floor(fraction * clients asked); in [0, 0.5).
    """

    f: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.f is None) == (self.fraction is None):
            raise ConfigurationError(
                f"trimmed_mean: give either f or fraction; got f={self.f}, fraction={self.fraction}"
            )
        if self.f is not None:
            check_integer("trimmed_mean", "f", self.f, 0)
        if self.fraction is not None:
            check_number("trimmed_mean", "fraction", self.fraction, minimum=0, below=0.5)

    def declared(self, asked: int) -> int:
        """Return f, or the f that the fraction of the clients asked comes to."""
        if self.f is not None:
            return self.f
        assert self.fraction is not None
        return math.floor(self.fraction * asked + 1e-9)

    def lever(self) -> str:
        """Return the field that sets the smallest n."""
        return super().lever() if self.fraction is None else "fraction"

    def reduced(self, k: int, asked: int) -> TrimmedMean:
        """Return the rule with k fewer per side."""
        return TrimmedMean(f=max(self.declared(asked) - k, 0))

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Trim every column."""
        return trim(rows, self.declared(rows.asked)), state


CASES = (
    Case("trimmed_mean(f=3)", lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case(
        "trimmed_mean(fraction=0.2)",
        lacks={"mix": "a coordinate rule is no combination of whole rows"},
    ),
)
