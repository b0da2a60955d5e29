"""Scale: every attacker multiplies its own message, whether honest or trained on poisoned data.

    crafted_i = c x_i

x_i: what attacker i would have sent. With c = n / (server learning rate) and a backdoored x_i this is the model
replacement of Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How to backdoor federated learning" (AISTATS 2020).

Convention: c is required; a negative c is `sign_flip`.

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

__all__ = ["Scale"]


@message_attacks.register("scale")
@dataclass(frozen=True)
class Scale(LineAttack):
    """Send the own message times c.

    Attributes
    ----------
    c : float
        Factor of the message; >= 0.
    """

    c: Annotated[float, Number(minimum=0)]
    parameter: ClassVar[str] = "c"

    @property
    def knowledge(self) -> Knowledge:
        """Own."""
        return Knowledge.OWN

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from zero along the attackers' own rows."""
        own = torch.eye(view.own.n, dtype=torch.float64)
        return Line(view.own, torch.zeros_like(own), own, 0)


CASES = (MessageCase("scale(c=10.0)", [(10, 0), (0, 20)], source="the formula"),)
