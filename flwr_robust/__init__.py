"""flwr-robust: federated learning with Flower that holds up when some clients lie.

The one-call form:

>>> import torch, flwr_robust
>>> x = torch.tensor([[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1e8, -1e8]])
>>> flwr_robust.aggregate(x, "trimmed_mean(f=1)").value
tensor([1.0500, 1.9500])

The Flower strategies are in `flwr_robust.flower`, the only part that needs Flower.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, overload

from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    FlwrRobustError,
    InfeasibleError,
    KnowledgeError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flwr_robust.core.pipeline import Pipeline, parse
    from flwr_robust.core.rows import Layer, Rows
    from flwr_robust.core.rule import Aggregate, Outcome, PreAggregator, Rule, State
    from flwr_robust.core.sharded import Shard, aggregate_sharded

__version__ = "0.1.0"

__all__ = [
    "Aggregate",
    "ConfigurationError",
    "DataUnavailableError",
    "FlwrRobustError",
    "InfeasibleError",
    "KnowledgeError",
    "Layer",
    "Outcome",
    "Pipeline",
    "PreAggregator",
    "Rows",
    "Rule",
    "Shard",
    "State",
    "UnknownNameError",
    "__version__",
    "aggregate",
    "aggregate_sharded",
    "parse",
]

_UNSET: State = {}

# What needs torch is imported when it is first asked for: `flwr-robust --help` does without it.
_MODULES = {
    "flwr_robust.core.rows": ("Layer", "Rows"),
    "flwr_robust.core.pipeline": ("Pipeline", "parse"),
    "flwr_robust.core.rule": ("Aggregate", "Outcome", "PreAggregator", "Rule", "State"),
    "flwr_robust.core.sharded": ("Shard", "aggregate_sharded"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@overload
def aggregate(
    x: Tensor | Rows,
    rule: str | Rule,
    *,
    layout: Sequence[tuple[str, tuple[int, ...]]] = (),
    counts: Sequence[float] | Tensor | None = None,
    asked: int | None = None,
    trusted: Tensor | None = None,
) -> Aggregate: ...


@overload
def aggregate(
    x: Tensor | Rows,
    rule: str | Rule,
    *,
    state: State | None,
    layout: Sequence[tuple[str, tuple[int, ...]]] = (),
    counts: Sequence[float] | Tensor | None = None,
    asked: int | None = None,
    trusted: Tensor | None = None,
) -> tuple[Aggregate, State]: ...


def aggregate(
    x: Tensor | Rows,
    rule: str | Rule,
    *,
    state: State | None = _UNSET,
    layout: Sequence[tuple[str, tuple[int, ...]]] = (),
    counts: Sequence[float] | Tensor | None = None,
    asked: int | None = None,
    trusted: Tensor | None = None,
) -> Aggregate | tuple[Aggregate, State]:
    """Aggregate rows by a rule, in one call.

    Parameters
    ----------
    x : Tensor (n, d) or Rows
        One update per row, floating point, on any device; not changed.
    rule : str or Rule
        A defence string such as ``"clip(c=2.0) | trimmed_mean(f=2)"``, or the rule object.
    state : State, optional
        For rules with a memory (centered clipping): None the first time, then what the last call returned. Giving it
        makes the call return ``(aggregate, state)``.
    layout : sequence of (name, shape), optional
        The arrays that the columns belong to, for rules that look at one of them (lfighter).
    counts : sequence of float (n,), optional
        Examples behind each row, for weighted rules.
    asked : int, optional
        Number of clients asked, when fewer answered; n when not given.
    trusted : Tensor (d,), optional
        An update of the server's own, for rules that compare with one (monna, fltrust).

    Returns
    -------
    Aggregate, or (Aggregate, State) when ``state`` is given
        ``.value`` (d,), ``.weights`` (n,), ``.outcome``, ``.stats``.

    Raises
    ------
    ConfigurationError
        If the rule's text or the tensor is not what it must be.
    InfeasibleError
        If n and f do not fit the rule.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [2.0], [4.0]])
    >>> aggregate(x, "median").value
    tensor([2.])
    >>> result, state = aggregate(x, "centered_clipping(tau=1.0)", state=None)
    >>> result, state = aggregate(x, "centered_clipping(tau=1.0)", state=state)
    >>> round(float(result.value), 4)
    1.1111
    """
    from flwr_robust.core.pipeline import as_rule
    from flwr_robust.core.rows import Layer, Rows

    chosen = as_rule(rule)
    if isinstance(x, Rows):
        rows = x
    else:
        layers = [Layer(name, tuple(shape)) for name, shape in layout]
        rows = Rows.from_tensor(x, layout=layers, counts=counts, asked=asked, trusted=trusted)
    result, following = chosen(rows, None if state is _UNSET else state)
    return result if state is _UNSET else (result, following)
