"""Attacks along a line in the space of rows, and the search for the strength that harms most.

Nearly every message attack is a line,

    crafted = start + strength * step,

where start and step are combinations of a few base rows: those that the attackers see, and one or two more, such as the
standard deviations. So a strength is tried on small matrices of coefficients. Some defences see rows through inner
products alone (`Rule.isometric`). They run on a copy of the rows with as few coordinates as there are rows. So a search
over strengths reads the rows of d coordinates once, for any budget.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_robust.attacks.message.base import Knowledge, MessageAttack, View
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Rule, State
from flwr_robust.errors import InfeasibleError

__all__ = ["Damage", "Line", "LineAttack", "averaging", "strongest"]

_LADDER = (1.0, 0.25, 4.0, 1 / 16, 16.0, 1 / 64, 64.0)
_RATIO = 4.0


@dataclass(frozen=True)
class Line:
    """Rows as a function of one number.

    Attributes
    ----------
    base : Rows
        The m rows that are combined.
    start, step : Tensor (a, m), float64
        Coefficients of the a crafted rows at strength 0, and what a strength of 1 adds.
    seen : int
        How many of the first base rows are the honest rows that the attackers see, or rows used in their place.
    """

    base: Rows
    start: Tensor
    step: Tensor
    seen: int

    def rows(self, strength: float) -> Rows:
        """Return the crafted rows at a strength."""
        return self.base.mixed(self.start + strength * self.step)


def averaging(m: int, base: Rows) -> Tensor:
    """Return the coefficients (1, base.n) of the mean of the first m base rows."""
    weights = torch.zeros(1, base.n, dtype=torch.float64)
    weights[0, :m] = 1 / m
    return weights


@dataclass(frozen=True)
class LineAttack(MessageAttack):
    """An attack along a line.

    Attributes
    ----------
    parameter : str
        Of the class: the field that holds the strength.
    """

    parameter: ClassVar[str] = ""

    @abstractmethod
    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line."""

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return the strength that the parameters ask for."""
        return float(getattr(self, self.parameter))

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write the rows at the strength asked for; the state says which it was."""
        line = self.line(view, state, rng)
        strength = self.strength(view, line, rng)
        return line.rows(strength), {**state, "strength": torch.tensor(strength, dtype=torch.float64)}


class Damage:
    """How far a defence's value lies from the honest mean, as a function of the strength.

    Honest rows that the attackers do not see are taken to be the mean of those they see. Where nothing is aggregated
    the model stays as it is, and the value is zero.

    Parameters
    ----------
    view : View
        Who attacks, among how many.
    line : Line
        What they could send.
    defences : sequence of (Rule, State)
        The least of their distances counts.

    Attributes
    ----------
    unit : float
        The strength at which a crafted row has gone as far from the line's start as the two honest rows that are
        farthest apart; 1 where these distances define no unit.
    """

    def __init__(self, view: View, line: Line, defences: Sequence[tuple[Rule, State]]) -> None:
        base, start, step, seen = line.base, line.start, line.step, line.seen
        honest = view.replies - len(view.attackers)
        if seen == 0:  # the line does not lead through honest rows: they are added
            shown, seen = view.known, view.known.n
            combined = shown
            for i in range(base.n):
                combined = combined.with_row(base.mix_exactly(torch.eye(base.n, dtype=torch.float64)[i]))
            base, start, step = combined, *(torch.nn.functional.pad(side, (seen, 0)) for side in (start, step))
        places = torch.zeros(honest, base.n, dtype=torch.float64)
        visible = min(seen, honest)
        places[:visible, :visible] = torch.eye(visible, dtype=torch.float64)
        places[visible:] = averaging(seen, base)
        self._mean = places.mean(0) if honest else averaging(seen, base)[0]
        attacking = torch.zeros(view.replies, dtype=torch.bool)
        attacking[list(view.attackers)] = True
        self._arrange = (attacking, places, start, step)
        self._asked, self._seed = max(view.n, view.replies), view.seed
        self._counts = _counts(view, attacking)
        copy = base.embedded()
        apart, length = copy.mixed(places).squared_distances.max(), copy.mixed(step).squared_norms.max()
        unit = math.sqrt(apart / length) if length > 0 else 0.0
        self.unit = unit if 0 < unit < math.inf else 1.0
        self._runs = [self._prepared(base, rule, state) for rule, state in defences]

    def _prepared(self, base: Rows, rule: Rule, state: State) -> tuple[Rule, State, Rows, Tensor]:
        """Return a rule with the state, base rows and honest mean to run it on, in few coordinates where possible."""
        if not rule.isometric:
            return rule, state, base, base.mix_exactly(self._mean)
        keys = [key for key in rule.located if key in state]
        points = base
        for key in keys:
            points = points.with_row(state[key])
        copy = points.embedded()
        placed = copy.slice(0, copy.d)
        state = {**state, **{key: placed[base.n + i] for i, key in enumerate(keys)}}
        small = Rows.from_tensor(placed[: base.n])
        return rule, state, small, small.mix_exactly(self._mean)

    def __call__(self, strength: float) -> float:
        """Return the damage at a strength."""
        attacking, places, start, step = self._arrange
        matrix = torch.zeros(len(attacking), places.shape[1], dtype=torch.float64)
        matrix[attacking], matrix[~attacking] = start + strength * step, places
        least = math.inf
        for rule, state, base, mean in self._runs:
            rows = base.mixed(matrix)
            rows.counts, rows.asked, rows.dtype, rows.seed = self._counts, self._asked, torch.float64, self._seed
            try:
                value = rule(rows, state)[0].value
            except InfeasibleError:
                value = torch.zeros_like(mean)
            least = min(least, float(torch.linalg.vector_norm(value - mean)))
        return least


def _counts(view: View, attacking: Tensor) -> Tensor | None:
    """Return the stated numbers of examples of all clients; for unseen ones the mean of those seen."""
    own = view.own.counts
    shown = own if view.granted < Knowledge.PARTIAL else view.known.counts
    if own is None or shown is None:
        return None
    counts = torch.empty(len(attacking), dtype=torch.float64)
    honest = torch.full((int((~attacking).sum()),), float(shown.mean()), dtype=torch.float64)
    visible = min(len(shown), len(honest))
    honest[:visible] = shown[:visible]
    counts[attacking], counts[~attacking] = own, honest
    return counts


def strongest(damage: Callable[[float], float], unit: float, budget: int, first: float | None = None) -> float:
    """Search for the strength of most damage; of equal ones, return the least.

    A ladder of strengths around the unit comes first. The rest of the budget halves the wider gap beside the best
    strength so far. Where the best is the largest, it tries a larger one.

    Parameters
    ----------
    damage : callable float -> float
        What to maximise, over strengths above zero.
    unit : float
        The scale of the strengths.
    budget : int
        How many strengths are tried; >= 1.
    first : float, optional
        A strength to begin with.

    Returns
    -------
    float
        The best strength tried.

    Examples
    --------
    >>> strongest(lambda strength: strength if strength < 2.5 else 0.0, unit=1.0, budget=20)
    2.4765625
    """
    ladder = ([] if first is None or not first > 0 else [first]) + [unit * rung for rung in _LADDER]
    tried = {strength: damage(strength) for strength in dict.fromkeys(ladder[:budget])}
    while True:
        best = max(tried, key=lambda strength: (tried[strength], -strength))
        if len(tried) >= budget:
            return best
        larger = min((s for s in tried if s > best), default=None)
        smaller = max((s for s in tried if s < best), default=best / _RATIO**2)
        if larger is None:
            following = best * _RATIO
        elif larger / best >= best / smaller:
            following = (best + larger) / 2
        else:
            following = (smaller + best) / 2
        if following in tried or not 0 < following < math.inf:
            return best
        tried[following] = damage(following)
