"""Mean reversal: the mean of all messages becomes the opposite of what it would have been without the attack.

    crafted = -(sum over honest i of w_i x_i) / W - c (sum over all i of w_i x_i) / W

x_i: honest messages, and what the attackers' own clients would have sent. w_i: the weight of message i in the mean, one
or its clamped number of examples. W: the weight of all attackers together. The mean of all messages is then -c times
the mean without attack. The "omniscient" corruption, with c = 1, of Pillutla, Kakade, Harchaoui, "Robust aggregation
for federated learning" (IEEE TSP 70, 2022), as in the code behind it.

Convention: the target is the mean of all clients without attack, the attackers' own messages included, as in the paper.
``weighted`` and ``clamp`` describe the mean to be reversed: the paper's is weighted, without a clamp. All attackers
send the same message; with fewer attackers it is longer. Without weights, and if the attackers' own messages have the
mean of the others, the attack is ``ipm`` with epsilon = (c n + n - f) / f.

If a message states no number of examples, all have equal weights.

Knows: omniscient; with ``known`` own or partial, those that are seen stand for all honest messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack
from flwr_robust.core.fields import Flag, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["MeanReversal"]


@message_attacks.register("mean_reversal")
@dataclass(frozen=True)
class MeanReversal(InformedAttack, LineAttack):
    """Send what turns the mean of all messages around.

    Attributes
    ----------
    c : float
        How far the mean goes beyond zero, as a multiple of its length without attack; > 0.
    weighted : bool
        Whether the mean to be reversed weighs messages by their numbers of examples.
    clamp : float
        With ``weighted``: a number above this multiple of the median number is lowered to it, as in `Mean`; >= 1.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    c: Annotated[float, Number(above=0)] = 1.0
    weighted: Annotated[bool, Flag()] = False
    clamp: Annotated[float, Number(minimum=1)] = 2.0
    parameter: ClassVar[str] = "c"

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from the point where the mean of all is zero, against the mean without attack."""
        seen, own = self.seen(view), view.own
        honest, attackers = self._weights(seen, own, view.replies - own.n)
        total = attackers.sum()
        base = seen.with_row(own.mix_exactly(attackers / total))
        start = torch.cat([-honest / total, torch.zeros(1, dtype=torch.float64)])
        step = torch.cat([-honest / total, -torch.ones(1, dtype=torch.float64)])
        return Line(base, start.repeat(own.n, 1), step.repeat(own.n, 1), seen.n)

    def _weights(self, seen: Rows, own: Rows, honest: int) -> tuple[Tensor, Tensor]:
        """Return the weights of the messages seen, which stand for all honest ones, and of the attackers' own."""
        shown, held = (torch.ones(rows.n, dtype=torch.float64) for rows in (seen, own))
        if self.weighted and seen.counts is not None and own.counts is not None:
            most = self.clamp * float(torch.cat([seen.counts, own.counts]).quantile(0.5))
            shown, held = seen.counts.clamp(max=most), own.counts.clamp(max=most)
        return shown * (honest / seen.n), held


CASES = (
    MessageCase("mean_reversal()", [(-9.5, -7)], source="sums (9, 6) and (1, 2): -(9, 6) / 2 - (10, 8) / 2"),
    MessageCase("mean_reversal(c=2.0)", [(-14.5, -11)], source="-(9, 6) / 2 - 2 (10, 8) / 2"),
)
