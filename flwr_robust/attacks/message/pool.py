"""Pool: the honest mean reversed, at the strength that does most harm to the least harmed of several rules.

    crafted_i = -epsilon mean_j x_j + offset_i
    epsilon maximises   min over rules A of the pool || A(honest rows, crafted) - honest mean ||

x_j: honest messages. It attacks randomised defences, whose draw is unknown: Ramezani-Kebrya, Tabrizian, Faghri,
Popovski, "MixTailor: mixed gradient aggregation for robust learning against tailored attacks" (TMLR 2022). A server may
drop messages nearer to each other than a threshold; ``similarity`` keeps crafted rows that far apart:

    ||crafted_i - crafted_j|| >= similarity

Convention: offsets lie on one random direction, at equal steps about zero, 1e-9 wider than the threshold. The pool is
what the attackers assume of the defence; they do not look at the rule in use.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.ipm import against_the_mean
from flwr_robust.attacks.message.line import Damage, Line, LineAttack, strongest
from flwr_robust.core.fields import Integer, ListOf, Number, Text
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule, State
from flwr_robust.errors import ConfigurationError

__all__ = ["Pool"]

_MARGIN = 1e-9


@message_attacks.register("pool")
@dataclass(frozen=True)
class Pool(InformedAttack, LineAttack):
    """Send the honest mean times the -epsilon that is worst for a pool of rules.

    Attributes
    ----------
    pool : sequence of str
        The rules, as defence strings.
    similarity : float
        How far apart the crafted rows must lie; >= 0.
    epsilon : float or "search"
        A number > 0, or the search.
    budget : int
        How many numbers the search tries.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    pool: Annotated[Sequence[str], ListOf(Text("a defence string", example="median()"))]
    similarity: Annotated[float, Number(minimum=0)] = 0.0
    epsilon: Annotated[float | str, Number(above=0, words=("search",))] = "search"
    budget: Annotated[int, Integer(minimum=1)] = 20
    parameter: ClassVar[str] = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in self._rules:
            if rule.needs_trust:
                raise ConfigurationError(f"pool: {rule} compares with an update of the server's own; leave it out")

    @property
    def _rules(self) -> list[Rule]:
        return [parse(text) for text in self.pool]

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from the offsets, against the honest mean."""
        line = against_the_mean(self, view)
        if self.similarity == 0:
            return line
        direction = torch.nn.functional.normalize(torch.randn(view.d, generator=rng, dtype=torch.float64), dim=0)
        base = line.base.with_row(direction)
        start, step = (torch.nn.functional.pad(side, (0, 1)) for side in (line.start, line.step))
        places = torch.arange(len(start), dtype=torch.float64) - (len(start) - 1) / 2
        start[:, -1] = (1 + _MARGIN) * self.similarity * places
        return Line(base, start, step, line.seen)

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return epsilon."""
        if self.epsilon != "search":
            return float(self.epsilon)
        damage = Damage(view, line, [(rule, rule.init()) for rule in self._rules])
        return strongest(damage, damage.unit, self.budget)


CASES = (MessageCase("pool(pool=('median()',), epsilon=2.0)", [(-6, -4)], source="the formula"),)
