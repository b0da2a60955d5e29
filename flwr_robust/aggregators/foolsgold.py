"""FoolsGold: weigh rows down that point the way of another row, as sybils of one attacker do.

    c_ij = cos(x_i, x_j) for i != j, c_ii = 0;   v_i = max_j c_ij
    c_ij <- c_ij v_i / v_j where v_j > v_i   (pardoning: an honest row that is like a sybil is less alike elsewhere)
    a_i = 1 - max_j c_ij, brought into [0, 1];   a_i <- a_i / max_j a_j
    a_i <- kappa (ln(a_i / (1 - a_i)) + 1/2), brought into [0, 1];   value = sum_i a_i x_i / sum_i a_i

kappa: confidence. Fung, Yoon, Beschastnikh, "The limitations of federated learning in sybil settings" (RAID 2020).

Convention: the cosines are those of this round's rows. The paper takes the sum of all updates of a client so far. That
needs a second matrix of the size of the rows, and the client of each row. Momentum messages already contain such a
history: use this rule with them. All coordinates count alike. The value is a weighted mean; the paper's is the sum,
which differs by a factor that a learning rate absorbs. Where every row equals another's direction all weights are 0 and
nothing is aggregated: the value is zero and the outcome INFEASIBLE. A zero row has cosine 0 with every other.

Condition: n >= 1. There is no f. Honest rows that agree look like sybils, too. The rule is for heterogeneous clients,
and does nothing against a single attacker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators

__all__ = ["FoolsGold", "sybil_weights"]


def sybil_weights(distances: Tensor, confidence: float) -> Tensor:
    """Return a (n,) in [0, 1] from the distances 1 - cos (n, n); their diagonal is ignored."""
    # All in terms of 1 - c: near 1 the cosines themselves have lost the digits that count.
    apart = distances.clone().fill_diagonal_(1)
    least = apart.min(1).values  # 1 - v
    excess = (least[:, None] - least[None, :]).clamp(min=0) / (1 - least)[None, :]  # 1 - v_i / v_j where v_j > v_i
    excess = excess.nan_to_num(nan=0.0)
    alone = (apart * (1 - excess) + excess).min(1).values
    largest = alone.max()
    if not bool(largest > 0):
        return torch.zeros_like(alone)
    return (confidence * (torch.logit(alone / largest) + 0.5)).clamp(0, 1)


@aggregators.register("foolsgold")
@dataclass(frozen=True)
class FoolsGold(Rule):
    """Mean in which a row counts less the more it resembles another row.

    Attributes
    ----------
    confidence : float
        kappa, how steeply the weight falls with likeness; > 0.
    """

    confidence: Annotated[float, Number(above=0)] = 1.0

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Weigh and average."""
        scores = sybil_weights(rows.cosine_distances, self.confidence)
        total = float(scores.sum())
        weights = scores / total if total > 0 else scores
        outcome = Outcome.OK if total > 0 else Outcome.INFEASIBLE
        return Aggregate(rows.mix(weights), weights, outcome, {"scores": scores.tolist()}), state


_LACKS = {
    "resilience": "rows that agree are what it takes for sybils; outliers keep their weight",
    "translation": "cosines are taken from the origin",
    "unanimity": "rows that all agree are all taken for sybils",
}

CASES = (
    Case("foolsgold()", lacks=_LACKS),
    Case(
        "foolsgold(confidence=0.5)",
        n=5,
        lacks={**_LACKS, "outlier": "the far row keeps its weight, and its size sets the precision"},
    ),
)
