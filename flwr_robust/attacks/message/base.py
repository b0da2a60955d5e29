"""What a message attack is: it writes the rows that compromised clients send instead of their own.

A row is one client's message as a vector of d numbers. The attackers act together. What they may look at in a round is
a `View`, made with the `Knowledge` that they are granted. It raises an error when asked for more. An attack declares
the least knowledge that it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.core.spec import Component, Registry
from flwr_robust.errors import ConfigurationError, KnowledgeError, UnknownNameError

__all__ = [
    "InformedAttack",
    "Knowledge",
    "MessageAttack",
    "MessageCase",
    "View",
    "check_grant",
    "check_honest_left",
    "message_attacks",
]

message_attacks: Registry[MessageAttack] = Registry(
    "message attack", "flwr_robust.attacks.message", "flwr_robust.attacks"
)


class Knowledge(IntEnum):
    """What attackers know; each level includes those before it.

    Examples
    --------
    >>> Knowledge.of("own") < Knowledge.OMNISCIENT
    True
    """

    NOTHING = 0
    """The model that was sent, and who attacks."""
    OWN = 1
    """What their own clients would have sent."""
    PARTIAL = 2
    """What the first few honest clients send."""
    OMNISCIENT = 3
    """What all honest clients send."""
    DEFENCE = 4
    """Omniscient, and the rule in use with its state."""

    @classmethod
    def of(cls, value: Knowledge | str) -> Knowledge:
        """Return a level by its name in small letters."""
        names = {level.name.lower(): level for level in cls}
        if isinstance(value, cls):
            return value
        if not isinstance(value, str) or value not in names:
            raise UnknownNameError("knowledge", str(value), names)
        return names[value]


class View:
    """What attackers may look at in one round.

    Parameters
    ----------
    granted : Knowledge
        What they may look at.
    own : Rows
        What the compromised clients would have sent honestly.
    honest : Rows or None
        What the honest clients send; None where there is none.
    attackers : sequence of int, optional
        Positions of the attackers among all rows; the last ones when not given.
    server_round : int
        The round, from 1.
    n : int, optional
        Number of clients asked; all rows when not given.
    known : int, optional
        How many honest rows partial knowledge shows; all when not given.
    rule : Rule, optional
        The defence in use.
    rule_state : State, optional
        Its state; `init()` when not given.
    seed : int
        Seed of what the attackers let the defence draw; never the server's own.
    model : callable returning Tensor (d,), optional
        Makes the model that was sent, with the sign that makes a row a step from it.
    precision : tuple of float
        (u, offset): a row of length r is moved by at most u (offset + r) when it is written into a message.

    Attributes
    ----------
    granted : Knowledge
        As given.
    round, seed : int
        The round, and the seed; as given.
    n : int
        Number of clients asked.
    attackers : tuple of int
        Positions of the attackers among all rows.
    replies : int
        Number of all rows.

    Examples
    --------
    >>> import torch
    >>> view = View(Knowledge.OWN, own=Rows.from_tensor(torch.ones(1, 2)), honest=Rows.from_tensor(torch.ones(3, 2)))
    >>> view.attackers, view.own.n
    ((3,), 1)
    >>> try:
    ...     view.honest
    ... except KnowledgeError as error:
    ...     print(str(error).partition(";")[0])
    view: 'honest' needs knowledge='omniscient', but 'own' is granted
    """

    def __init__(
        self,
        granted: Knowledge,
        *,
        own: Rows,
        honest: Rows | None,
        attackers: Sequence[int] | None = None,
        server_round: int = 1,
        n: int | None = None,
        known: int | None = None,
        rule: Rule | None = None,
        rule_state: State | None = None,
        seed: int = 0,
        model: Callable[[], Tensor] | None = None,
        precision: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.granted = granted
        self.seed = seed
        self.round = server_round
        self.replies = own.n + (0 if honest is None else honest.n)
        self.n = self.replies if n is None else n
        self.attackers = tuple(range(self.replies - own.n, self.replies)) if attackers is None else tuple(attackers)
        self._own, self._honest, self._known = own, honest, known
        self._rule, self._rule_state, self._model = rule, rule_state, model
        self._precision = precision
        if len(self.attackers) != own.n or not set(self.attackers) <= set(range(self.replies)):
            raise ConfigurationError(
                f"view: attackers must be {own.n} positions below {self.replies}; got {list(self.attackers)}"
            )

    def _check(self, asked: str, needed: Knowledge) -> None:
        if self.granted < needed:
            raise KnowledgeError(asked, needed.name.lower(), self.granted.name.lower())

    def _some(self, rows: Rows | None) -> Rows:
        if rows is None:
            raise ConfigurationError("view: no honest client sends anything; configure fewer attackers than clients")
        return rows

    @property
    def d(self) -> int:
        """Number of coordinates of a row."""
        return self._own.d

    @property
    def model(self) -> Tensor:
        """The model that was sent (d,), with the sign that makes a row a step from it."""
        if self._model is None:
            raise ConfigurationError("view: the model that was sent is not known here; pass model=...")
        return self._model()

    @property
    def own(self) -> Rows:
        """What the compromised clients would have sent honestly."""
        self._check("own", Knowledge.OWN)
        return self._own

    @property
    def known(self) -> Rows:
        """The honest rows that are visible: the first few under partial knowledge, else all."""
        self._check("known", Knowledge.PARTIAL)
        rows = self._some(self._honest)
        if self.granted > Knowledge.PARTIAL or self._known is None or self._known >= rows.n:
            return rows
        return rows.subset(torch.arange(rows.n) < self._known)

    @property
    def honest(self) -> Rows:
        """What all honest clients send."""
        self._check("honest", Knowledge.OMNISCIENT)
        return self._some(self._honest)

    @property
    def rule(self) -> Rule:
        """The defence in use."""
        self._check("rule", Knowledge.DEFENCE)
        if self._rule is None:
            raise ConfigurationError("view: the rule in use is not known here; pass rule=...")
        return self._rule

    @property
    def rule_state(self) -> State:
        """The state of the defence in use."""
        self._check("rule_state", Knowledge.DEFENCE)
        return self.rule.init() if self._rule_state is None else self._rule_state

    def written(self, length: float) -> float:
        """Return how far writing a row of this length into a message may move it."""
        unit, offset = self._precision
        return unit * (offset + length)


@dataclass(frozen=True)
class MessageAttack(Component, ABC):
    """An attack on messages.

    A subclass is a frozen dataclass of parameters with `knowledge` and `craft`.
    """

    @property
    @abstractmethod
    def knowledge(self) -> Knowledge:
        """The least knowledge that these parameters need."""

    @property
    def sees(self) -> int | None:
        """Return how many honest rows it needs under partial knowledge; None if any number is enough."""
        return None

    def init(self) -> State:
        """Return the state before the first round."""
        return {}

    @abstractmethod
    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write the attackers' rows.

        Parameters
        ----------
        view : View
            What may be looked at.
        state : State
            What the last call returned; `init()` in the first round.
        rng : torch.Generator
            Source of the draws; a CPU generator.

        Returns
        -------
        Rows
            One row per attacker.
        State
            To be given to the next call.
        """


@dataclass(frozen=True)
class MessageCase:
    """One attack solved by hand, for the conformance suite.

    Attributes
    ----------
    attack : str
        The attack's text.
    crafted : sequence of sequence of float
        What each attacker must send; one row stands for all where they send the same.
    source : str
        Where the numbers come from.
    honest, own : sequence of sequence of float
        What the honest clients send, and what the attackers would have sent.
    rule : str
        The defence in use.
    slack : float
        How far a number may differ from the given one; more than rounding only if the attack draws at random.
    """

    attack: str
    crafted: Sequence[Sequence[float]]
    source: str
    honest: Sequence[Sequence[float]] = ((1, 2), (3, -2), (5, 6))  # mean (3, 2), standard deviations (2, 4)
    own: Sequence[Sequence[float]] = ((1, 0), (0, 2))
    rule: str = "mean()"
    slack: float = 1e-9


def check_grant(
    owner: str, attack: MessageAttack | None, granted: Knowledge, known: int | None, rule: Rule | None
) -> None:
    """Raise unless the granted knowledge is enough for an attack.

    Parameters
    ----------
    owner : str
        Who grants it; it opens the sentence.
    attack : MessageAttack or None
        The attack; None if there is none, or none that needs knowledge.
    granted : Knowledge
        What it may look at.
    known : int or None
        How many honest rows partial knowledge shows.
    rule : Rule or None
        The defence in use.

    Raises
    ------
    ConfigurationError
        If the attack needs more, or ``known`` is given without partial knowledge.
    """
    if (granted == Knowledge.PARTIAL) != (known is not None):
        raise ConfigurationError(
            f"{owner}: known, the number of honest replies seen, goes with knowledge='partial'; "
            f"got knowledge={granted.name.lower()!r}, {'no known' if known is None else f'known={known}'}"
        )
    if attack is None:
        return
    if attack.knowledge > granted:
        raise ConfigurationError(
            f"{owner}: {attack} needs knowledge={attack.knowledge.name.lower()!r}, but {granted.name.lower()!r} is "
            f"granted; grant more, or choose an attack that needs less"
        )
    if known is not None and attack.sees is not None and attack.sees > known:
        raise ConfigurationError(f"{owner}: {attack} needs {attack.sees} honest replies, but known={known} are shown")
    if attack.knowledge == Knowledge.DEFENCE and rule is not None and rule.needs_trust:
        raise ConfigurationError(f"{owner}: {attack} cannot try {rule}: it compares with an update of the server's own")


def check_honest_left(owner: str, attack: MessageAttack | None, attackers: int, clients: int) -> None:
    """Raise if an attack looks at honest replies where every client is an attacker; see `check_grant`."""
    if attack is not None and attack.knowledge >= Knowledge.PARTIAL and attackers == clients:
        raise ConfigurationError(
            f"{owner}: {attack} looks at honest replies, so attackers must be below clients={clients}; got "
            f"attackers={attackers}"
        )


@dataclass(frozen=True, kw_only=True)
class InformedAttack(MessageAttack):
    """An attack that is computed from honest rows, or from rows that it uses in their place.

    Attributes
    ----------
    known : "all", "clients", "own" or int
        The rows that it is computed from: all honest ones; those and what the attackers' own clients would have sent;
        the latter alone; or the first ``known`` honest ones.
    """

    known: Annotated[int | str, Integer(minimum=1, words=("all", "clients", "own"))] = "all"

    @property
    def knowledge(self) -> Knowledge:
        """Omniscient, own or partial."""
        if isinstance(self.known, str):
            return Knowledge.OWN if self.known == "own" else Knowledge.OMNISCIENT
        return Knowledge.PARTIAL

    @property
    def sees(self) -> int | None:
        """How many honest rows it needs under partial knowledge."""
        return self.known if isinstance(self.known, int) else None

    def seen(self, view: View) -> Rows:
        """Return the rows that it is computed from."""
        if self.known == "clients":
            rows, own = view.honest, view.own
            for one in torch.eye(own.n, dtype=torch.float64):
                rows = rows.with_row(own.mix(one))
            return rows
        if isinstance(self.known, str):
            return view.honest if self.known == "all" else view.own
        rows = view.known
        return rows if self.known >= rows.n else rows.subset(torch.arange(rows.n) < self.known)
