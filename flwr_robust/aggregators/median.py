"""Coordinate-wise median.

    value_j = median of x_1j, ..., x_nj

Convention: for even n the mean of the two middle values (torch.median and ByzPy take the lower one). Yin, Chen,
Kannan, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates" (ICML 2018).

Condition: n >= 2f + 1. The rule itself does not use f; declared or not, it bears floor((n - 1) / 2) faulty rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr_robust.aggregators.trimmed_mean import trim
from flwr_robust.errors import check_integer
from flwr_robust.rows import Rows
from flwr_robust.rule import Aggregate, Case, Rule, State, aggregators

__all__ = ["Median"]


@aggregators.register("median")
@dataclass(frozen=True)
class Median(Rule):
    """Coordinate-wise median.

    Attributes
    ----------
    f : int, optional
        Declared number of faulty rows; it only bounds n.
    """

    f: int | None = None

    def __post_init__(self) -> None:
        if self.f is not None:
            check_integer("median", "f", self.f, 0)

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Take the median of every column."""
        return trim(rows, (rows.n - 1) // 2), state


CASES = (
    Case("median()", lacks={"mix": "a coordinate rule is no combination of whole rows"}),
    Case("median(f=4)", n=9, lacks={"mix": "a coordinate rule is no combination of whole rows"}),
)
