"""Sign flip: every attacker sends its own honest message with the opposite sign.

    crafted_i = -c x_i

x_i: what attacker i would have sent. The sign-flip attack of Xu, Yan, Zheng, Huang (Byz-DeSGD), with c = 1.

Convention: each attacker uses its own message. ByzFL reverses the mean of the honest messages, which is
``ipm(epsilon=c)``.

Knows: own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack
from flwr_robust.core.fields import Number
from flwr_robust.core.rule import State

__all__ = ["SignFlip"]


@message_attacks.register("sign_flip")
@dataclass(frozen=True)
class SignFlip(LineAttack):
    """Send the own message times -c.

    Attributes
    ----------
    c : float
        Factor of the message; > 0.
    """

    c: Annotated[float, Number(above=0)] = 1.0
    parameter: ClassVar[str] = "c"

    @property
    def knowledge(self) -> Knowledge:
        """Own."""
        return Knowledge.OWN

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero, against the attackers' own rows."""
        own = torch.eye(view.own.n, dtype=torch.float64)
        return Line(view.own, torch.zeros_like(own), -own, 0)


CASES = (
    MessageCase("sign_flip()", [(-1, 0), (0, -2)], source="the formula"),
    MessageCase("sign_flip(c=0.5)", [(-0.5, 0), (0, -1)], source="the formula"),
)
