"""Optimised: any attack along a line, at the strength that does most harm to the defence in use.

    maximise over strength:   || defence(honest rows, crafted(strength)) - honest mean ||

ByzFL optimises IPM and ALIE in this way, with 20 evaluations; Shejwalkar, Houmansadr (NDSS 2021) their attacks tailored
to a known rule.

Convention: the strengths tried are those of `strongest`, in units of the honest spread; ByzFL's begin at 0 and go up in
steps of 10, whatever the units of the messages. The strength that the base attack itself asks for is one of them. The
defence is run with its current state, on rows in as few coordinates as possible.

Knows: the defence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Damage, LineAttack, strongest
from flwr_robust.core.fields import Integer, Text
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State
from flwr_robust.errors import ConfigurationError

__all__ = ["Optimised"]


@message_attacks.register("optimised")
@dataclass(frozen=True)
class Optimised(MessageAttack):
    """Choose the strength of another attack by its effect.

    Attributes
    ----------
    base : str
        An attack along a line.
    budget : int
        How many strengths are tried.
    """

    base: Annotated[str, Text("a message attack", example="sign_flip()")] = "alie()"
    budget: Annotated[int, Integer(minimum=1)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._attack

    @property
    def _attack(self) -> LineAttack:
        attack = message_attacks.parse(self.base)
        if not isinstance(attack, LineAttack):
            lines = [name for name, cls in message_attacks.members().items() if issubclass(cls, LineAttack)]
            raise ConfigurationError(
                f"optimised: base must be an attack with a strength ({', '.join(lines)}); got base={self.base!r}"
            )
        return attack

    @property
    def knowledge(self) -> Knowledge:
        """Return the knowledge of the defence."""
        return Knowledge.DEFENCE

    def init(self) -> State:
        """Return the base attack's first state."""
        return self._attack.init()

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Search, and write the rows."""
        attack = self._attack
        line = attack.line(view, state, rng)
        damage = Damage(view, line, [(view.rule, view.rule_state)])
        strength = strongest(damage, damage.unit, self.budget, attack.strength(view, line, rng))
        return line.rows(strength), {**state, "strength": torch.tensor(strength, dtype=torch.float64)}


CASES = (
    MessageCase(
        "optimised(base='constant(c=5.0)', budget=1)", [(5, 5)], source="the base's own strength is tried first"
    ),
)
