"""FLTrust: weigh a row by how well its direction agrees with the server's own update, and rescale it to that length.

    s_i   = max{0, cos(x_i, x_0)}
    value = sum_i s_i (||x_0|| / ||x_i||) x_i / sum_i s_i

x_0: the trusted row, computed by the server on a small clean set of its own. Cao, Fang, Liu, Gong, "FLTrust:
Byzantine-robust federated learning via trust bootstrapping" (NDSS 2021).

Convention: each row is divided by its own norm, however short it is. A zero row has cosine 0; a cosine below 1e-12 is
rounding and counts as 0. Where all scores are 0 (also when the trusted row is zero) nothing is aggregated: the value is
zero and the outcome INFEASIBLE. Weights are the coefficients of the rows, s_i ||x_0|| / (||x_i|| sum_j s_j). They sum
to one only where all lengths agree.

Condition: n >= 1, and a trusted row. There is no f: any number of rows may point elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators

__all__ = ["FLTrust"]

_ROUNDING = 1e-12


@aggregators.register("fltrust")
@dataclass(frozen=True)
class FLTrust(Rule):
    """Mean weighted by the cosine to a trusted row, at its length."""

    def tolerated(self, n: int, asked: int) -> int:
        """Return n - 1: one finite row is enough."""
        return n - 1

    @property
    def needs_trust(self) -> bool:
        """Return True: the rule compares with a trusted row."""
        return True

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Score the rows, then average."""
        assert rows.trusted is not None
        cosines, length = rows.cosines_to(rows.trusted)
        scores = torch.where(cosines < _ROUNDING, 0.0, cosines)
        total = scores.sum()
        trusted = bool(total > 0)
        weights = (scores / total * length / rows.norms).nan_to_num(nan=0.0) if trusted else torch.zeros_like(scores)
        return Aggregate(
            rows.mix(weights),
            weights,
            Outcome.OK if trusted else Outcome.INFEASIBLE,
            {"scores": scores.tolist(), "trusted_norm": length},
        ), state


CASES = (
    Case(
        "fltrust()",
        lacks={
            "resilience": "a row at less than a right angle to the trusted one keeps a share",
            "translation": "cosines and norms are taken from the origin",
        },
    ),
)
