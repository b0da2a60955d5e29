"""What compromised clients do with their replies in a round, whichever engine runs it.

An `Adversary` holds what an attack on messages, or a fault, needs from round to round. `AdversarialGrid` passes it the
replies in Flower's messages, the fast engine passes the rows of its tensor. Both write back what it returns. So one
attack, seed and round always give the same replies, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.fault.base import Answer, Fault
from flwr_robust.attacks.message.base import Knowledge, MessageAttack, View
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.protocol.messages import message_kind
from flwr_robust.seeds import derive, torch_generator

__all__ = ["Adversary", "written"]


class Adversary:
    """An attack on messages, or a fault, with what it remembers.

    Parameters
    ----------
    attack : MessageAttack or Fault
        What the compromised clients do.
    message : str
        What clients send, one of `flwr_robust.protocol.messages.MESSAGE_KINDS`.
    knowledge : Knowledge
        What the attackers may look at.
    known : int, optional
        How many honest replies partial knowledge shows.
    rule : Rule, optional
        The defence in use, for attackers that know it.
    seed : int
        Source of all draws.

    Attributes
    ----------
    state : State
        The attack's state, or those of the clients' faults, keys prefixed by position.
    """

    def __init__(
        self,
        attack: MessageAttack | Fault,
        message: str,
        *,
        knowledge: Knowledge = Knowledge.OMNISCIENT,
        known: int | None = None,
        rule: Rule | None = None,
        seed: int = 0,
    ) -> None:
        self.attack = attack
        self.kind = message_kind(message)
        self.knowledge = knowledge
        self.known = known
        self.rule = rule
        self.seed = seed
        self.state: State = attack.init() if isinstance(attack, MessageAttack) else {}

    @property
    def strength(self) -> float | None:
        """The strength that an attack along a line chose last; None for other attacks, and before the first."""
        chosen = self.state.get("strength") if isinstance(self.attack, MessageAttack) else None
        return None if chosen is None else float(chosen)

    def usable(self, own: int, honest: int) -> bool:
        """Say whether a round can be attacked, given the numbers of readable replies of attackers and of others."""
        assert isinstance(self.attack, MessageAttack)
        return own > 0 and (honest > 0 or self.attack.knowledge < Knowledge.PARTIAL)

    def draws(self, server_round: int) -> int:
        """Return the seed of what the attackers let the defence draw; the server's own draws stay unknown to them."""
        return derive(self.seed, "defence", server_round)

    def craft(
        self,
        server_round: int,
        own: Rows,
        honest: Rows | None,
        attackers: Sequence[int],
        model: Sequence[NDArray[Any]],
        *,
        asked: int,
        unit: float,
        rule_state: State | None = None,
        kind: int | None = None,
    ) -> NDArray[np.float64]:
        """Return the rows (a, d) that the attackers send; to be turned into messages by `written`.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        own, honest : Rows
            What the attackers would have sent, and what the others send; None where there are no others. Only rounds
            that are `usable`.
        attackers : sequence of int
            Places of the attackers' rows among all rows.
        model : sequence of array
            The arrays that were sent and are learnt.
        asked : int
            How many clients were asked.
        unit : float
            The relative error of rounding a number to the messages' type.
        rule_state : State, optional
            That of the defence in use, before this round.
        kind : int, optional
            The class of all these rows, where a round asks for several classes; each class has its own draws.
        """
        assert isinstance(self.attack, MessageAttack)
        view = View(
            self.knowledge,
            own=own,
            honest=honest,
            attackers=attackers,
            server_round=server_round,
            n=asked,
            known=self.known,
            rule=self.rule,
            rule_state=rule_state,
            seed=self.draws(server_round),
            model=lambda: self.kind.sign * torch.cat([torch.from_numpy(values).double().flatten() for values in model]),
            precision=(unit, _length(model) if self.kind.relative else 0.0),
        )
        draw = torch_generator(self.seed, "attack", server_round, *([] if kind is None else [kind]))
        crafted, self.state = self.attack.craft(view, self.state, draw)
        values = np.empty((own.n, crafted.d))
        for start, block in crafted.blocks():
            values[:, start : start + block.shape[1]] = block.cpu().numpy()
        return values

    def answer(self, server_round: int, position: int, layers: Mapping[str, Tensor]) -> Answer:
        """Return what a client with a fault answers; the layers may be kept, and must not be written to later."""
        assert isinstance(self.attack, Fault)
        prefix = f"{position}/"
        mine = {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}
        others = {key: value for key, value in self.state.items() if not key.startswith(prefix)}
        answer, following = self.attack.answer(
            layers, server_round, mine, torch_generator(self.seed, "fault", server_round, position)
        )
        self.state = {**others, **{prefix + key: value for key, value in following.items()}}
        return answer


def written(
    values: NDArray[np.float64], dtype: np.dtype[Any], sent: NDArray[Any] | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return crafted numbers as a message holds them: of its type, where what is finite stays so.

    Parameters
    ----------
    values : array
        The numbers; written over.
    dtype : dtype
        The message's type.
    sent : array, optional
        What they are relative to: the model that was sent, where clients send parameters.
    out : array, optional
        Where to write them; a new array when not given.
    """
    if sent is not None:
        values += sent
    limits = np.finfo(dtype)
    if not (values.min(initial=0) >= limits.min and values.max(initial=0) <= limits.max):  # nor is NaN within
        values = np.where(np.isfinite(values), values.clip(limits.min, limits.max), values)
    if out is None:
        return values.astype(dtype)
    out[...] = values
    return out


def _length(model: Sequence[NDArray[Any]]) -> float:
    return math.sqrt(sum(float(np.square(values, dtype=np.float64).sum()) for values in model))
