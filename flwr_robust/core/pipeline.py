"""Pipelines: pre-aggregators followed by a rule, together again a rule, and the text that names them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, PreAggregator, Rule, State, aggregators, joined, part, preaggregators
from flwr_robust.core.spec import Component, parse_chain
from flwr_robust.errors import ConfigurationError, UnknownNameError

__all__ = ["Pipeline", "as_rule", "parse"]


@dataclass(frozen=True)
class Pipeline(Rule):
    """Pre-aggregators in order, then a rule.

    Attributes
    ----------
    stages : tuple of PreAggregator
        Applied first to last.
    rule : Rule
        Aggregates the rows that come out of the stages.
    """

    stages: tuple[PreAggregator, ...]
    rule: Rule
    name: ClassVar[str] = "pipeline"

    def __str__(self) -> str:
        """Join the stages by ``|``."""
        return " | ".join(str(part) for part in (*self.stages, self.rule))

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say which stage n rows do not fit, and why."""
        left, asked = n, n if asked is None else asked
        for stage in self.stages:
            if sentence := stage.check(left):
                return sentence
            left, asked = stage.rows_out(left), stage.rows_out(asked)
        sentence = self.rule.check(left, asked=asked)
        if sentence is None or left == n:
            return sentence
        enough = next((m for m in range(n + 1, 100 * n + 1000) if self.check(m) is None), None)
        advice = "" if enough is None else f": ask at least {enough} clients"
        return f"{self.stages[-1].name} leaves {left} of {n} rows, and {sentence.partition(':')[0]}{advice}"

    def check_counts(self, counts: Tensor, *, asked: int | None = None) -> str | None:
        """Say which stage rows of these numbers of examples do not fit, as far as the stages keep every row."""
        left, asked = len(counts), len(counts) if asked is None else asked
        for stage in self.stages:
            if sentence := stage.check_counts(counts):
                return sentence
            if stage.rows_out(left) != left:
                return None
        return self.rule.check_counts(counts, asked=asked)

    def starts_pairwise(self) -> bool:
        """Say whether the first stage begins with distances."""
        return self.stages[0].pairwise

    @property
    def needs_trust(self) -> bool:
        """Say whether the final rule compares with a row of the server's own."""
        return self.rule.needs_trust

    @property
    def isometric(self) -> bool:
        """Say whether the final rule sees rows through inner products alone, as all pre-aggregators do."""
        return self.rule.isometric

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return those of all parts, by their keys in the joined state."""
        parts: list[PreAggregator | Rule] = [*self.stages, self.rule]
        return tuple(f"{index}.{key}" for index, each in enumerate(parts) for key in each.remembered)

    @property
    def located(self) -> tuple[str, ...]:
        """Return those of the final rule, by their keys in the joined state."""
        return tuple(f"{len(self.stages)}.{key}" for key in self.rule.located)

    def check_layout(self, layout: Sequence[Layer]) -> str | None:
        """Say why the final rule does not fit."""
        return self.rule.check_layout(layout)

    def remark(self, n: int, *, asked: int | None = None, layout: Sequence[Layer] | None = None) -> str | None:
        """Return the final rule's remark on the rows that come out of the stages."""
        asked = n if asked is None else asked
        for stage in self.stages:
            n, asked = stage.rows_out(n), stage.rows_out(asked)
        return self.rule.remark(n, asked=asked, layout=layout)

    def declared(self, asked: int) -> int | None:
        """Return the final rule's declared number of faulty rows."""
        return self.rule.declared(asked)

    def tolerated(self, n: int, asked: int) -> int:
        """Return what the final rule tolerates."""
        return self.rule.tolerated(n, asked)

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return what is proven of all parts together, as far as each step keeps the number of rows."""
        if any(stage.rows_out(n) != n for stage in self.stages):
            return ()
        found: Sequence[Bound] = [bound for bound in self.rule.bounds(n, f) if math.isfinite(bound.value)]
        for stage in reversed(self.stages):
            found = stage.bounds(n, f, found)
        return found

    def reduced(self, k: int, asked: int) -> Rule:
        """Reduce every stage and the rule."""
        stages = tuple(stage.reduced(k) for stage in self.stages)
        for stage in self.stages:
            asked = stage.rows_out(asked)
        return Pipeline(stages, self.rule.reduced(k, asked))

    def init(self) -> State:
        """Return the first states of all parts."""
        return joined([*(stage.init() for stage in self.stages), self.rule.init()])

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Mix, aggregate, and express the weights in the rows that came in."""
        mixed, stats = rows, {}
        mixing = torch.eye(rows.n, dtype=torch.float64)
        following: list[State] = []
        for index, stage in enumerate(self.stages):
            matrix, seen, after = stage.checked_matrix(mixed, part(state, index))
            following.append(after)
            asked = stage.rows_out(mixed.asked)
            mixed, mixing = mixed.mixed(matrix), matrix @ mixing
            mixed.asked = max(asked, mixed.n)
            stats.update({f"{stage.name}.{key}": value for key, value in seen.items()})
        aggregate, after = self.rule.combined(mixed, part(state, len(self.stages)))
        following.append(after)
        return dataclasses.replace(
            aggregate, weights=aggregate.weights @ mixing, stats={**stats, **aggregate.stats}
        ), joined(following)


def _completed(component: type[Component], given: dict[str, Any], f: int | None) -> dict[str, Any]:
    """Return a component's fields, with f added if it takes one and they do not set it."""
    takes = any(field.name == "f" for field in dataclasses.fields(component))
    return {"f": f, **given} if takes and f is not None and "fraction" not in given else given


def parse(text: str, *, f: int | None = None, kind: str = "defence") -> Rule:
    """Turn a defence string into a rule.

    Parameters
    ----------
    text : str
        Pre-aggregators and then one aggregator, joined by ``|``; fields are literals and are named.
    f : int, optional
        The declared number of faulty rows (f), for every part whose text does not set it.
    kind : str
        What error messages call the text.

    Returns
    -------
    Rule
        ``parse(str(rule)) == rule``.

    Raises
    ------
    ConfigurationError
        If the text cannot be read, or a name, a field or a value is not allowed.

    Examples
    --------
    >>> str(parse("clip(c=2.0) | trimmed_mean(f=2)"))
    'clip(c=2.0) | trimmed_mean(f=2)'
    >>> str(parse("nnm | krum(f=1)", f=2))
    'nnm(f=2) | krum(f=1)'
    """
    *first, (name, fields) = parse_chain(text, kind)
    stages = []
    for stage, values in first:
        if stage not in preaggregators.members():
            known = [*preaggregators.members()]
            if stage in aggregators.members():
                raise UnknownNameError("pre-aggregator (an aggregator comes last)", stage, known)
            raise UnknownNameError("pre-aggregator", stage, known)
        stages.append(preaggregators.build(stage, _completed(preaggregators.get(stage), values, f)))
    if name in preaggregators.members():
        raise UnknownNameError("aggregator (a pre-aggregator cannot come last)", name, aggregators.members())
    rule = aggregators.build(name, _completed(aggregators.get(name), fields, f))
    return Pipeline(tuple(stages), rule) if stages else rule


def as_rule(rule: Rule | str) -> Rule:
    """Return a rule, parsed if it is text.

    Raises
    ------
    ConfigurationError
        If it is neither a rule nor text, or the text cannot be read.
    """
    if isinstance(rule, str):
        return parse(rule)
    if not isinstance(rule, Rule):
        raise ConfigurationError(f"rule: it must be a defence string or a Rule; got {type(rule).__name__}")
    return rule
