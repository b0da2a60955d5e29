"""Fang's attack on the trimmed mean: in every coordinate just beyond the honest values, on the far side.

    s_j = 1 where mean_i x_ij > 0, else -1
    full knowledge:     crafted_j uniform between min_i x_ij and a step below it where s_j = 1,
                        between max_i x_ij and a step above it where s_j = -1;
                        the step leads to b x or x / b, whichever lies outside
    partial knowledge:  crafted_j uniform in mean_j - s_j [3, 4] std_j

x_i: honest messages; b = 2. Each attacker draws for itself. Fang, Cao, Jia, Gong, "Local model poisoning attacks to
Byzantine-robust federated learning" (USENIX Security 2020).

Convention: messages are relative to the model that was sent, as in the whole package; the paper's min and max are of
whole parameters. Partial knowledge (``known`` "own" or a number) uses mean and std of the rows that are seen; std
divides by n - 1. The paper uses the attackers' own clients.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.core.fields import Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["FangTrimmedMean"]


@message_attacks.register("fang_trimmed_mean")
@dataclass(frozen=True)
class FangTrimmedMean(InformedAttack):
    """Draw just beyond the honest values.

    Attributes
    ----------
    b : float
        How far beyond, as a factor; > 1.
    known : "all", "clients", "own" or int
        As for `InformedAttack`; all but "all" is partial knowledge.
    """

    b: Annotated[float, Number(above=1)] = 2.0

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Draw every coordinate."""
        seen = self.seen(view)
        crafted = torch.rand(len(view.attackers), view.d, generator=rng, dtype=torch.float64)
        for start, block in seen.blocks():
            part = crafted[:, start : start + block.shape[1]]
            near, far = (side.cpu() for side in self._interval(block))
            part.mul_(far - near).add_(near)
        return Rows.from_tensor(crafted), state

    def _interval(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two ends of every column's interval."""
        mean = block.mean(0)
        side = torch.where(mean > 0, -1.0, 1.0).to(mean)
        if self.known != "all":
            spread = block.std(0) if len(block) > 1 else torch.zeros_like(mean)
            return mean + 3 * side * spread, mean + 4 * side * spread
        edge = torch.where(side < 0, block.amin(0), block.amax(0))
        outward = edge * side > 0  # away from zero is out
        return edge, torch.where(outward, edge * self.b, edge / self.b)


CASES = (
    MessageCase("fang_trimmed_mean(b=1.000001)", [(1, -2)], source="just beyond the least", slack=1e-5),
    MessageCase(
        "fang_trimmed_mean(b=1.000001)",
        [(-1, 2)],
        source="just beyond the largest",
        honest=((-1, 2), (-3, -2), (-5, -6)),
        slack=1e-5,
    ),
    MessageCase("fang_trimmed_mean(known=1)", [(1, 2)], source="one row has no spread"),
)
