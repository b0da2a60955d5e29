"""Sybil: one attacker answers under several names.

    crafted_i = x_g (identical),   or x_g / k (divided): k replies that add up to one

g: the first of every k attackers in order, the one that the others stand for; x_g: what it sends under the ``base``
attack. Douceur, "The Sybil attack" (IPTPS 2002); Fung, Yoon, Beschastnikh, "The limitations of federated learning in
sybil settings" (RAID 2020), whose FoolsGold looks for identical rows.

Convention: the base is another message attack; "scale(c=1)", the attacker's own message, suits clients that poison
their data. The last group may be smaller, and is still divided by k.

Knows: what its base knows, and the attackers' own messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, MessageCase, View, message_attacks
from flwr_robust.core.fields import Flag, Integer, Text
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Sybil"]


@message_attacks.register("sybil")
@dataclass(frozen=True)
class Sybil(MessageAttack):
    """Send one attacker's message k times.

    Attributes
    ----------
    k : int
        How many replies an attacker sends.
    divide : bool
        Divide each by k.
    base : str
        The message attack that makes the message.
    """

    k: Annotated[int, Integer(minimum=1)]
    divide: Annotated[bool, Flag()] = False
    base: Annotated[str, Text("a message attack", example="sign_flip()")] = "scale(c=1)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._attack

    @property
    def _attack(self) -> MessageAttack:
        return message_attacks.parse(self.base)

    @property
    def knowledge(self) -> Knowledge:
        """Return what the base attack needs, at least OWN."""
        return max(Knowledge.OWN, self._attack.knowledge)

    @property
    def sees(self) -> int | None:
        """Return how many honest rows the base attack needs."""
        return self._attack.sees

    def init(self) -> State:
        """Return the base attack's first state."""
        return self._attack.init()

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write the base attack's rows, and repeat the first of each group."""
        rows, state = self._attack.craft(view, state, rng)
        first = torch.arange(rows.n) // self.k * self.k
        repeated = torch.eye(rows.n, dtype=torch.float64)[first] / (self.k if self.divide else 1)
        return rows.mixed(repeated), state


CASES = (
    MessageCase("sybil(k=2)", [(1, 0)], source="the formula"),
    MessageCase("sybil(k=2, divide=True)", [(0.5, 0)], source="the formula"),
    MessageCase("sybil(k=1, base='sign_flip()')", [(-1, 0), (0, -2)], source="the formula"),
    MessageCase(
        "sybil(k=2, divide=True)",
        [(0.5, 0), (0.5, 0), (2, 2)],
        source="the last group may be smaller",
        own=((1, 0), (0, 2), (4, 4)),
    ),
)
