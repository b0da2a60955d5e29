"""Rows too long for one machine: every worker holds a slice of the columns, and only small matrices travel.

    G = sum over the workers of G_w,    ||x_i - x_j||^2 and ||x_i||^2 likewise
    value_w = sum_i weights_i x_i,w     formed, and kept, by worker w

A `Shard` is a worker's slice of all rows. `aggregate_sharded` runs any rule that asks `Rows` for inner products,
distances, norms, mixtures or windows of sorted columns: the rule itself runs in the caller's process on n x n numbers,
and each question is put to all workers at once. Shards may be objects of this process or actors of Ray
(``ray.remote(Shard).remote(slice)``), on as many machines as Ray has. The value never travels: ask each shard for its
own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flwr_robust.core.pipeline import Pipeline, as_rule
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Rule, State
from flwr_robust.core.storage import Storage
from flwr_robust.errors import ConfigurationError, FlwrRobustError

__all__ = ["Shard", "aggregate_sharded"]


class Shard:
    """The columns of all rows that one worker holds.

    Parameters
    ----------
    rows : Tensor (n, w) or Rows
        The slice of every row, in the same order in all shards, not mixed.

    Raises
    ------
    ConfigurationError
        If ``rows`` is neither a tensor nor Rows, or the rows are mixed.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0, 5.0], [1.0, 1.0, 6.0], [9.0, 0.0, 0.0]])
    >>> shards = [Shard(x[:, :2]), Shard(x[:, 2:])]
    >>> result, _ = aggregate_sharded(shards, "median")
    >>> result.weights.sum()
    tensor(1., dtype=torch.float64)
    >>> [shard.value().tolist() for shard in shards]
    [[1.0, 1.0], [5.0]]
    """

    def __init__(self, rows: Tensor | Rows) -> None:
        held = rows if isinstance(rows, Rows) else Rows.from_tensor(rows)
        if held.is_mixed:
            raise ConfigurationError(
                f"shard: rows must be unmixed; got {held}: put the pre-aggregator into the defence instead"
            )
        self._storage, self._dtype = held.storage, held.dtype
        self._value: Tensor | None = None

    def describe(self) -> tuple[int, int, torch.dtype]:
        """Return n, the number of columns, and the type of the rows."""
        return self._storage.n, self._storage.d, self._dtype

    def value(self) -> Tensor:
        """Return this shard's columns of the last value, in the rows' type.

        Raises
        ------
        ConfigurationError
            If nothing has been aggregated.
        """
        if self._value is None:
            raise ConfigurationError("shard: there is no value yet; call aggregate_sharded first")
        return self._storage.cast(self._value, self._dtype)

    def forget(self) -> None:
        """Drop the last value."""
        self._value = None

    def answer(self, question: str, kept: Tensor, *arguments: Any) -> Any:
        """Answer a question of `Storage` about the rows ``kept`` (bool (n,)); a value that is formed stays here."""
        rows = self._storage if bool(kept.all()) else self._storage.subset(kept)
        if question == "mix":
            self._value = rows.mix(arguments[0], torch.float64)
            return None
        if question == "window_mean":
            self._value, shares = rows.window_mean(*arguments)
            return shares * rows.d
        return getattr(rows, question)(*arguments)


class _Spread(Storage):
    """Rows whose columns lie with the shards; this process holds none of their numbers."""

    def __init__(self, shards: Sequence[Any], widths: Sequence[int], kept: Tensor, formed: list[Tensor]) -> None:
        super().__init__(int(kept.sum()), sum(widths))
        self.shards = shards
        self.widths = widths
        self.kept = kept  # among the shards' own rows
        self.formed = formed  # what stands for the value that the shards formed last; shared by all subsets

    def _ask(self, question: str, *arguments: Any) -> list[Any]:
        return _gathered(self.shards, "answer", question, self.kept, *arguments)

    def _total(self, question: str, *arguments: Any) -> Tensor:
        return torch.stack(self._ask(question, *arguments)).sum(0)

    def subset(self, keep: Tensor) -> Storage:
        kept = self.kept.clone()
        kept[self.kept] = keep
        return _Spread(self.shards, self.widths, kept, self.formed)

    def gram(self, centre: int | None, mixing: Tensor | None = None) -> Tensor:
        return self._total("gram", centre, mixing)

    def squared_norms(self, mixing: Tensor | None = None) -> Tensor:
        return self._total("squared_norms", mixing)

    def largest(self, mixing: Tensor | None = None) -> Tensor:
        return torch.stack(self._ask("largest", mixing)).amax(0)

    def pair_distances(self, left: Tensor, right: Tensor, mixing: Tensor | None = None) -> Tensor:
        return self._total("pair_distances", left, right, mixing)

    def mix(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        self._ask("mix", weights)
        return self.cast(self._elsewhere(), dtype)

    def window_mean(
        self, low: int, high: int, near: int | None = None, mixing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shares = self._total("window_mean", low, high, near, mixing) / self.d
        return self._elsewhere(), shares

    def slice(self, start: int, stop: int, mixing: Tensor | None = None) -> Tensor:
        parts, at = [], 0
        for shard, width in zip(self.shards, self.widths, strict=True):
            first, last = max(start - at, 0), min(stop - at, width)
            if first < last:
                parts += _gathered([shard], "answer", "slice", self.kept, first, last, mixing)
            at += width
        return torch.cat(parts, dim=1)

    def _elsewhere(self) -> Tensor:
        """Return a tensor of the value's shape without numbers, which the shards hold."""
        self.formed[:] = [torch.empty(self.d, dtype=torch.float64, device="meta")]
        return self.formed[0]

    def cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        self.check_formed(value)
        rounded = value.to(dtype)
        self.formed.append(rounded)
        return rounded

    def check_formed(self, value: Tensor) -> None:
        """Raise unless a value is the one that the shards formed last, rounded or not."""
        if not any(value is formed for formed in self.formed):
            raise ConfigurationError(
                "aggregate_sharded: this rule changes its value after it was formed (flame's noise does), where the "
                "shards cannot follow; take one that does not, such as krum, geometric_median or trimmed_mean"
            )

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        raise ConfigurationError(
            "aggregate_sharded: this rule looks at single coordinates of all rows, which do not travel; take one that "
            "works on distances, norms or windows of sorted columns, such as krum, geometric_median or trimmed_mean"
        )

    def with_row(self, row: Tensor) -> Storage:
        raise ConfigurationError(
            "aggregate_sharded: this rule compares with a row that the shards do not hold; take one without a centre "
            "or a trusted row, such as krum, geometric_median or trimmed_mean"
        )


def _gathered(shards: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
    """Call a method of all shards, of Ray's actors side by side, and return the answers in the shards' order."""
    calls: list[Callable[..., Any]] = [getattr(shard, method) for shard in shards]
    waiting = [getattr(call, "remote", call)(*arguments) for call in calls]
    ray = sys.modules.get("ray")  # whoever holds an actor has imported it
    if ray is None:
        return waiting
    return [ray.get(answer) if isinstance(answer, ray.ObjectRef) else answer for answer in waiting]


def aggregate_sharded(
    shards: Sequence[Any],
    rule: str | Rule,
    state: State | None = None,
    *,
    layout: Sequence[tuple[str, Sequence[int]]] = (),
    counts: Sequence[float] | None = None,
    asked: int | None = None,
    seed: int | None = None,
) -> tuple[Aggregate, State]:
    """Aggregate rows whose columns are spread over workers.

    Parameters
    ----------
    shards : sequence of Shard, or of Ray actors of it
        In the order of their columns; each holds a slice of the same n rows.
    rule : str or Rule
        The defence.
    state : State, optional
        What the last call returned.
    layout, counts, asked, seed
        As for `aggregate`.

    Returns
    -------
    Aggregate
        Weights, outcome and stats as from `aggregate`. Its value has the shape and the type, but no numbers (device
        "meta"): each shard's ``value()`` returns that shard's columns of it.
    State
        To be given to the next call.

    Raises
    ------
    ConfigurationError
        If the shards do not match each other, or the rule needs to see single coordinates of all rows.
    InfeasibleError
        If n and f do not fit the rule.
    """
    chosen = as_rule(rule)
    drawn = chosen.rule if isinstance(chosen, Pipeline) else chosen
    draws = drawn.name == "mixtailor"
    if draws or chosen.needs_trust or chosen.located:
        why = "draws rules that they may not follow" if draws else "compares with a row of d numbers"
        raise ConfigurationError(
            f"aggregate_sharded: {drawn.name} cannot run on shards, because it {why}; use "
            f"for example krum or trimmed_mean"
        )
    held = list(shards) if isinstance(shards, Iterable) else [shards]
    if not held or not all(hasattr(shard, "answer") for shard in held):
        raise ConfigurationError(
            f"aggregate_sharded: shards must hold at least one Shard, or Ray actors of it; got "
            f"{[type(shard).__name__ for shard in held]}"
        )
    if len({id(shard) for shard in held}) < len(held):
        raise ConfigurationError("aggregate_sharded: one shard is given twice; each holds columns of its own")
    facts = _gathered(held, "describe")
    n, _, dtype = facts[0]
    for index, (rows, _, kind) in enumerate(facts):
        if (rows, kind) != (n, dtype):
            raise ConfigurationError(
                f"aggregate_sharded: all shards must hold the same rows; shard 0 has {n} of {dtype}, shard {index} has "
                f"{rows} of {kind}"
            )
    storage = _Spread(held, [width for _, width, _ in facts], torch.ones(n, dtype=torch.bool), [])
    layers = [Layer(name, tuple(shape)) for name, shape in layout]
    try:
        result, following = chosen(Rows(storage, dtype, layout=layers, counts=counts, asked=asked, seed=seed), state)
        storage.check_formed(result.value)
    except FlwrRobustError:
        _gathered(held, "forget")  # what was formed on the way is not the rule's value
        raise
    return result, following
