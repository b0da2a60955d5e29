"""Bulyan: select n - 2f rows by repeated Krum, then average around their median.

    selection: n - 2f times, run the selection rule on the rows left and move the row nearest to its value to S
    value_j  = mean of the n - 4f values of {x_ij : i in S} nearest to their median

El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium" (ICML 2018). For Krum the
row nearest to the value is the value; all scores come from the one distance matrix of the n rows. ``aggregation`` names
another rule for the rows in S, as in the pool of `mixtailor`.

Convention: the selection rule gets f, unless its text names one. So does the aggregation rule, since all f faulty rows
may be in S. When the selection rule does not fit the few rows left (Krum: fewer than 2f + 3), its f is lowered until it
fits. With the n' - f - 2 neighbours of the formula, the last selections would look at f - 1 neighbours or none. Then
f - 1 accomplices would decide these selections. "Nearest" is Euclidean, whatever norm the rules take. Ties go to the
lowest index, in selection, and to the smaller value around the median. With f = 0 all rows are selected.

Condition: n >= 4f + 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from flwr_robust.aggregators.generalised_krum import GeneralisedKrum, squared_lp_distances
from flwr_robust.aggregators.krum import Krum, lowest, nearest_sums, neighbours
from flwr_robust.aggregators.meamed import average_near_median
from flwr_robust.core.fields import Integer, Text
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Case, Rule, State, aggregators, joined, part
from flwr_robust.kernels.nearest import squared_distances_to

__all__ = ["Bulyan"]

_ROUNDING = 1e-9


@aggregators.register("bulyan")
@dataclass(frozen=True)
class Bulyan(Rule):
    """Average around the median of rows selected one by one.

    Attributes
    ----------
    f : int
        Declared number of faulty rows.
    selection : str
        The defence whose value selects: a rule, or pre-aggregators and a rule, joined by ``|``.
    aggregation : str, optional
        The defence that aggregates the rows selected; the average around their median when not given.
    """

    f: Annotated[int, Integer(minimum=0)]
    selection: Annotated[str, Text("a defence string", example="median()")] = "krum"
    aggregation: Annotated[str | None, Text("a defence string", example="mean()")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._selector, self._aggregator  # their texts are read now, not in the first round

    @cached_property
    def _selector(self) -> Rule:
        return parse(self.selection, f=self.f, kind="bulyan's selection")

    @cached_property
    def _aggregator(self) -> Rule | None:
        return None if self.aggregation is None else parse(self.aggregation, f=self.f, kind="bulyan's aggregation")

    def starts_pairwise(self) -> bool:
        """Say whether the selection rule begins with the distances between the rows."""
        return self.f > 0 and self._selector.starts_pairwise()

    @property
    def needs_trust(self) -> bool:
        """Say whether one of its two rules compares with a row of the server's own."""
        return self._selector.needs_trust or (self._aggregator is not None and self._aggregator.needs_trust)

    def _fitting(self, n: int, asked: int) -> Rule:
        """Return the selection rule for n rows left, its f lowered where that is needed."""
        rule = self._selector
        while rule.check(n, asked=asked) and (rule.declared(asked) or 0) > 0:
            rule = rule.reduced(1, asked)
        return rule

    def needs(self, asked: int) -> tuple[int, str]:
        """N >= 4f + 3."""
        return 4 * self.f + 3, "n >= 4f + 3"

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why n rows do not fit this rule, or its selection rule the fewest rows it selects from."""
        if sentence := super().check(n, asked=asked):
            return sentence
        fewest, selected, asked = 2 * self.f + 1, n - 2 * self.f, n if asked is None else asked
        if self.f and (sentence := self._fitting(fewest, asked).check(fewest, asked=asked)):
            return f"bulyan: its selection rule selects from as few as 2f + 1 = {fewest} rows, but {sentence}"
        if self._aggregator and (sentence := self._aggregator.check(selected, asked=asked)):
            return f"bulyan: its aggregation rule gets the n - 2f = {selected} rows selected, but {sentence}"
        return None

    def check_layout(self, layout: Sequence[Layer]) -> str | None:
        """Say why one of its two rules does not fit."""
        sentence = self._selector.check_layout(layout)
        return sentence or (self._aggregator.check_layout(layout) if self._aggregator else None)

    def init(self) -> State:
        """Return the first states of the selection rule and of the aggregation rule."""
        return joined([self._selector.init(), self._aggregator.init() if self._aggregator else {}])

    @property
    def isometric(self) -> bool:
        """Say whether both rules are isometric; the average around the median looks at single coordinates."""
        return self._selector.isometric and self._aggregator is not None and self._aggregator.isometric

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return those of the two rules, by their keys in the joined state."""
        second = self._aggregator.remembered if self._aggregator else ()
        return (*(f"0.{key}" for key in self._selector.remembered), *(f"1.{key}" for key in second))

    @property
    def located(self) -> tuple[str, ...]:
        """Return those of the two rules, by their keys in the joined state."""
        second = self._aggregator.located if self._aggregator else ()
        return (*(f"0.{key}" for key in self._selector.located), *(f"1.{key}" for key in second))

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Select, then aggregate."""
        following = [part(state, 0), part(state, 1)]
        if self.f == 0:
            selected = list(range(rows.n))
        elif isinstance(self._selector, Krum | GeneralisedKrum):
            selected = self._select_by_scores(rows, self._selector)
        else:
            selected, following[0] = self._select_by_values(rows, following[0])
        keep = torch.zeros(rows.n, dtype=torch.bool)
        keep[selected] = True
        kept = rows.subset(keep)
        if self._aggregator is None:
            found = average_near_median(kept, rows.n - 4 * self.f)
        else:
            found, following[1] = self._aggregator.combined(kept, following[1])
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[keep] = found.weights
        stats = {**found.stats, "selected": selected}
        return dataclasses.replace(found, weights=weights, stats=stats), joined(following)

    def _select_by_scores(self, rows: Rows, rule: Krum | GeneralisedKrum) -> list[int]:
        """Return the rows selected by Krum, in that order: distances are formed, and sorted, once."""
        variant = getattr(rule, "variant", "paper")
        squared = squared_lp_distances(rows, rule.p if isinstance(rule, GeneralisedKrum) else 2)
        ordered, whose = neighbours(squared, variant)
        left, selected = list(range(rows.n)), []
        while len(left) > 2 * self.f:
            f = self._fitting(len(left), rows.asked).declared(rows.asked) or 0
            picked = int(lowest(nearest_sums(ordered, f, variant), 1))
            selected.append(left.pop(picked))
            if len(left) > 2 * self.f:  # every row left loses one neighbour
                others = torch.arange(len(ordered)) != picked
                ordered, whose = ordered[others], whose[others]
                stays = whose != selected[-1]
                ordered, whose = (table[stays].view(len(left), len(left)) for table in (ordered, whose))
        return selected

    def _select_by_values(self, rows: Rows, state: State) -> tuple[list[int], State]:
        """Return the rows selected by another rule, in that order, and that rule's next state."""
        left, selected = list(range(rows.n)), []
        while len(left) > 2 * self.f:
            # Mixed rather than taken out: their Gram matrix is then a part of the one that is known.
            among = rows.mixed(torch.eye(rows.n, dtype=torch.float64)[left])
            among.counts = None if rows.counts is None else rows.counts[left]
            among.dtype = torch.float64  # a value rounded to half precision would not say which row is nearest
            aggregate, state = self._fitting(len(left), rows.asked)(among, state)
            away = squared_distances_to(among.blocks(), aggregate.value)
            # The mean of two rows is equally far from both, up to rounding.
            selected.append(left.pop(int((away <= away.min() * (1 + _ROUNDING)).nonzero()[0])))
        return selected, state


_NO_MIX = "a coordinate rule is no combination of whole rows"

CASES = (
    Case("bulyan(f=3)", n=16, lacks={"mix": _NO_MIX}),
    Case("bulyan(f=2, selection='faba')", n=12, lacks={"mix": _NO_MIX}),
    Case("bulyan(f=2, selection='median')", n=11, lacks={"mix": _NO_MIX}),
    Case("bulyan(f=2, selection='generalised_krum(p=3)', aggregation='krum')", n=11),
    Case("bulyan(f=2, selection='mean', aggregation='median')", n=12, lacks={"mix": _NO_MIX}),
    Case("bulyan(f=0)", n=5, lacks={"resilience": "f=0 leaves nothing out"}),
)
