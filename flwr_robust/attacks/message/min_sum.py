"""Min-sum: as far from the honest mean as a summed distance allows.

    crafted = mean + gamma p,   gamma the largest with sum_i ||crafted - x_i||^2 <= B
    B = max_i sum_j ||x_i - x_j||^2 ("max"),   or the least of these sums ("min")

x_i: honest messages; p as for `min_max`. Shejwalkar, Houmansadr, "Manipulating the Byzantine: optimizing model
poisoning attacks and defenses for federated learning" (NDSS 2021).

Convention: "max" is the paper's bound; the authors' code takes "min". As in `min_max` the equation is solved for gamma,
which stays below the bound: sum_i ||mean + gamma p - x_i||^2 = sum_i ||mean - x_i||^2 + m gamma^2 ||p||^2 for m rows.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from flwr_robust.attacks.message.base import MessageCase, message_attacks
from flwr_robust.attacks.message.min_max import MARGIN, MinMax, apart
from flwr_robust.core.fields import Choice

__all__ = ["MinSum"]


@message_attacks.register("min_sum")
@dataclass(frozen=True)
class MinSum(MinMax):
    """Deviate within a sum of squared honest distances.

    Attributes
    ----------
    deviation, gamma, known
        As for `MinMax`.
    bound : str
        "max" or "min" over the clients' sums.
    """

    bound: Annotated[str, Choice(("max", "min"))] = "max"

    def farthest(self, inner: Tensor, along: Tensor, squared: float, moved: float) -> float:
        """Return the largest gamma within the bound."""
        sums = apart(inner).sum(1)
        limit = float(sums.max() if self.bound == "max" else sums.min())
        # Rows moved by r make a root of m summed squares larger by at most sqrt(m) r.
        root = (1 - MARGIN) * math.sqrt(limit) - math.sqrt(len(inner)) * moved
        room = root**2 - float(inner.diagonal().sum())
        return math.sqrt(room / (len(inner) * squared)) if root > 0 and room > 0 else 0.0


CASES = (
    MessageCase("min_sum(gamma=2.0)", [(3 - 6 / 13**0.5, 2 - 4 / 13**0.5)], source="the formula"),
    MessageCase(
        "min_sum()",
        [(2 - 3,)],
        source="sums of squares 26, 17, 41; 14 about the mean; gamma = sqrt((41 - 14) / 3)",
        honest=((0,), (1,), (5,)),
        own=((0,),),
        slack=1e-6,
    ),
    MessageCase(
        "min_sum(bound='min')",
        [(2 - 1,)],
        source="as before; gamma = sqrt((17 - 14) / 3)",
        honest=((0,), (1,), (5,)),
        own=((0,),),
        slack=1e-6,
    ),
)
