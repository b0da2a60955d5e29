"""What a rule is: a frozen dataclass that turns rows into one value and reports how.

A rule is called with rows (one client's update each) and its state. It returns an `Aggregate` and the next state, and
stores nothing on itself. A *pre-aggregator* turns rows into other rows by a matrix; `flwr_robust.core.pipeline` puts it
before a rule.

The declared f is the largest number of faulty rows, out of n, that the rule must tolerate. Rows that are not finite are
certainly faulty. k such rows are left out, and the rule runs with n - k rows and f - k. For every rule that keeps its
n - f best rows the result is that for rows at infinity. More than f such rows are an error.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch
from torch import Tensor

from flwr_robust.core.guarantees import Bound
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.spec import Component, Registry
from flwr_robust.core.weighing import Weighing, check_most
from flwr_robust.errors import ConfigurationError, InfeasibleError
from flwr_robust.printing import html_block, html_table
from flwr_robust.seeds import torch_generator

__all__ = [
    "Aggregate",
    "Case",
    "Outcome",
    "PreAggregator",
    "Rule",
    "State",
    "WeightedRule",
    "aggregators",
    "joined",
    "next_draw",
    "part",
    "preaggregators",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # typing's own has defaults from Python 3.13 on

    Value = TypeVar("Value", default=Tensor)
    Weights = TypeVar("Weights", default=Tensor)
else:
    from typing import TypeVar

    Value, Weights = TypeVar("Value"), TypeVar("Weights")

C = TypeVar("C", bound=Component)

State = Mapping[str, Tensor]
"""What a rule carries from round to round: named tensors, so that it can be written to a file as it is."""


class Outcome(Enum):
    """How an aggregation ended; the value is the sentence a user reads."""

    OK = "the rule ran to its end"
    NOT_CONVERGED = "the iteration limit came before the tolerance was met"
    INFEASIBLE = "the replies do not fit the rule; nothing was aggregated"


@dataclass(frozen=True, repr=False)
class Aggregate(Generic[Value, Weights]):
    """The result of one aggregation.

    Rules return tensors; `flwr_robust.aggregate` returns numpy's arrays, or layers, if its input was of that kind.

    Attributes
    ----------
    value : Tensor (d,)
        The aggregated update, in the rows' type.
    weights : Tensor (n,), float64
        For rules whose value is a combination of rows: its coefficients. For coordinate rules: the share of the
        coordinates for which each row was kept, summing to one. After a pre-aggregator both are multiplied by its
        matrix, so that a shortened row has less weight.
    outcome : Outcome
        How the aggregation ended.
    stats : mapping
        Rule-specific diagnostics: scores, iterations, radii.
    """

    value: Value
    weights: Weights
    outcome: Outcome = Outcome.OK
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line that shows shapes instead of numbers."""
        stats = ", ".join(f"{key}: {_shown(value)}" for key, value in self.stats.items())
        return (
            f"Aggregate(value={_shown(self.value)}, weights={_shown(self.weights)}, outcome={self.outcome.name}, "
            f"stats={{{stats}}})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: outcome, shape and norm of the value, and the weights and scores of rows."""
        n = len(self.weights)  # type: ignore[arg-type]
        weights = _numbers(self.weights, n)
        scores = {key: numbers for key, held in self.stats.items() if (numbers := _numbers(held, n))}
        others = ", ".join(f"{key}: {_shown(held)}" for key, held in self.stats.items() if key not in scores)
        shapes, norm = _measures(self.value)
        line = f"value: {shapes}, norm {norm:.4g}; weights sum to {sum(weights):.4g}{'; ' if others else ''}{others}"
        rows = list(zip(range(len(weights)), weights, *scores.values(), strict=True))
        table = html_table(["row", "weight", *scores], rows, bars=[1])
        return html_block(f"{self.outcome.name}: {self.outcome.value}", table, line=line)


def _numbers(held: Any, n: int) -> list[float]:
    """Return the numbers of a vector (n,) or of a flat list of n; none if it is neither."""
    if getattr(held, "shape", None) == (n,):
        held = held.tolist()
    flat = isinstance(held, list | tuple) and len(held) == n and all(isinstance(each, int | float) for each in held)
    return [*held] if flat else []


def _measures(value: Any) -> tuple[str, float]:
    """Return the shapes and the Euclidean norm of a value, which may be a list of layers."""
    layers = [torch.as_tensor(each) for each in (value if isinstance(value, list | tuple) else [value])]
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(each, dtype=torch.float64)) ** 2 for each in layers))
    return (f"{len(layers)} layers" if isinstance(value, list | tuple) else _shown(value)), norm


def _shown(value: object) -> str:
    """Return a few words for a value: an array's shape and type, or the beginning of a text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{len(value)} {'rows' if isinstance(value[0], list | tuple) else 'entries'}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _breach(found: object, rows: Rows) -> str | None:
    """Return in a few words what is invalid in a rule's result, or None."""
    if not isinstance(found, tuple) or len(found) != 2:
        return f"{type(found).__name__}" + (f" of {len(found)}" if isinstance(found, tuple) else "")
    result, state = found
    if not isinstance(result, Aggregate):
        return f"{type(result).__name__} for the Aggregate"
    for name, n, dtype in (("value", rows.d, rows.dtype), ("weights", rows.n, torch.float64)):
        held = getattr(result, name)
        if not isinstance(held, Tensor) or held.shape != (n,) or held.dtype != dtype:
            return f"{name} {_shown(held) if hasattr(held, 'shape') else type(held).__name__}"
    if not isinstance(result.outcome, Outcome):
        return f"outcome {_shown(result.outcome)}"
    if not isinstance(result.stats, Mapping):
        return f"stats of type {type(result.stats).__name__}"
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        return f"state {_shown(state)}"
    return None


def _lowered(component: C, k: int) -> C:
    """Return a component with its field ``f``, where it has one, lowered by k but not below 0."""
    f = getattr(component, "f", None)
    fields: dict[str, Any] = {} if f is None else {"f": max(f - k, 0)}
    return dataclasses.replace(component, **fields)


def _check_bound(component: Component) -> None:
    """Raise if a component has a bound ``most`` on weights that it does not use."""
    if hasattr(component, "most"):
        check_most(component.name, bool(getattr(component, "weighted", False)), component.most)


@dataclass(frozen=True)
class Rule(Component, ABC):
    """An aggregation rule.

    A subclass is a frozen dataclass of hyperparameters with `needs` and `combine`. The declared number of faulty rows
    is its field ``f`` where it has one.

    Attributes
    ----------
    pairwise : bool
        Of the class: whether the rule begins with the distances between the rows. These also show which rows are not
        finite.
    """

    pairwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields, also that a bound on weights is given to weights alone."""
        super().__post_init__()
        _check_bound(self)

    def weighing(self, asked: int) -> Weighing | None:
        """Return how rows count, where the rule can weigh them by their numbers of examples; None elsewhere."""
        return None

    def check_counts(self, counts: Tensor, *, asked: int | None = None) -> str | None:
        """Say why rows of these numbers of examples (n,) do not fit this rule, or return None."""
        weighing = self.weighing(len(counts) if asked is None else asked)
        return None if weighing is None else weighing.check(counts)

    def starts_pairwise(self) -> bool:
        """Say whether the rule first asks for the distances between its rows."""
        return self.pairwise

    @property
    def needs_trust(self) -> bool:
        """Say whether the rule compares with the server's own row (`Rows.trusted`)."""
        return False

    @property
    def isometric(self) -> bool:
        """Say whether the rule sees rows through inner products alone.

        Rotate the rows, the trusted row and the `located` tensors of the state about the origin. Then the weights stay
        the same and the value rotates with the rows. Rules that look at single coordinates return False.
        """
        return True

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the keys that the state may hold; a rule that adds others than those of `init` names them here."""
        return tuple(dict.fromkeys((*self.init(), *self.located)))

    @property
    def located(self) -> tuple[str, ...]:
        """Return the keys of the state whose tensors (d,) are points in the space of the rows."""
        return ()

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why n rows do not fit this rule.

        Parameters
        ----------
        n : int
            Number of rows.
        asked : int, optional
            Number of clients that were asked; n when not given.

        Returns
        -------
        str or None
            One sentence naming the rule, the bound and the values; None if they fit.
        """
        smallest, condition = self.needs(n if asked is None else asked)
        if n >= smallest:
            return None
        f = self.declared(n if asked is None else asked)
        return (
            f"{self.name} needs {condition}; got n={n}"
            + ("" if f is None else f", f={f}")
            + f": ask at least {smallest} clients"
            + (f" or lower {lever}" if (lever := self.lever()) else "")
        )

    def needs(self, asked: int) -> tuple[int, str]:
        """Return the smallest n that fits, and the condition in words ("n >= 2f + 1")."""
        f = self.declared(asked) or 0
        return 2 * f + 1, "n >= 2f + 1"

    def lever(self) -> str:
        """Return the field that a user whose clients are too few could lower; empty if there is none."""
        return "f" if getattr(self, "f", None) else ""

    def declared(self, asked: int) -> int | None:
        """Return the declared number of faulty rows, or None where the rule declares none."""
        return getattr(self, "f", None)

    def tolerated(self, n: int, asked: int) -> int:
        """Return how many rows may be not finite: the declared f, or fewer than half if none is declared."""
        f = self.declared(asked)
        return (n - 1) // 2 if f is None else f

    def reduced(self, k: int, asked: int) -> Rule:
        """Return the rule for the rows left when k faulty ones have been left out."""
        return _lowered(self, k)

    def check_layout(self, layout: Sequence[Layer]) -> str | None:
        """Say why a model of these arrays does not fit this rule, or return None."""
        return None

    def remark(self, n: int, *, asked: int | None = None, layout: Sequence[Layer] | None = None) -> str | None:
        """Say in one sentence what a user should know before n rows of these arrays come, or return None."""
        return None

    def bounds(self, n: int, f: int) -> Sequence[Bound]:
        """Return what is proven of the error if f of n rows are faulty; nothing where no theorem is known."""
        return ()

    def init(self) -> State:
        """Return the state before the first call."""
        return {}

    @abstractmethod
    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Aggregate finite rows that fit the rule."""

    def combined(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Return the result of `combine`.

        Raises
        ------
        InfeasibleError
            If the numbers of examples do not fit the rule.
        ConfigurationError
            If the result is not of the form that a rule returns.
        """
        if rows.counts is not None and (sentence := self.check_counts(rows.counts, asked=rows.asked)):
            raise InfeasibleError(sentence)
        found = self.combine(rows, state)
        if wrong := _breach(found, rows):
            raise ConfigurationError(
                f"{type(self).__name__}.combine must return (Aggregate, state): a value ({rows.d},) of "
                f"{rows.dtype}, weights ({rows.n},) of torch.float64, a mapping of names to tensors; got {wrong}: "
                f"correct the rule"
            )
        return found

    def __call__(self, rows: Rows, state: State | None = None) -> tuple[Aggregate, State]:
        """Aggregate rows.

        Parameters
        ----------
        rows : Rows
            The updates; never changed.
        state : State, optional
            What the last call returned; `init()` when not given.

        Returns
        -------
        Aggregate
            Value, weights, outcome, stats.
        State
            The argument of the next call.

        Raises
        ------
        InfeasibleError
            If n or the numbers of examples do not fit, or more rows than tolerated are not finite.
        ConfigurationError
            If the rule needs a trusted row and there is none, or none that is finite.
        """
        state = self.init() if state is None else state
        if not isinstance(state, Mapping):
            raise ConfigurationError(
                f"{self.name}: state must be None or what the last call returned; got {type(state).__name__}"
            )
        if sentence := self.check(rows.n, asked=rows.asked):
            raise InfeasibleError(sentence)
        if self.starts_pairwise():
            _ = rows.gram  # one pass over the data for this and for what is faulty
        faulty = rows.faulty
        k = int(faulty.sum())
        allowed = self.tolerated(rows.n, rows.asked)
        if k > allowed:
            raise InfeasibleError(
                f"{self.name}: {k} of {rows.n} rows are not finite, but only {allowed} may be; "
                f"find out which clients send them and leave these rows out"
            )
        if self.needs_trust and (rows.trusted is None or not bool(torch.isfinite(rows.trusted).all())):
            raise ConfigurationError(
                f"{self}: it compares rows with one that the server trusts; pass trusted=..., a finite update of the "
                f"server's own of shape ({rows.d},); got {'none' if rows.trusted is None else 'one with NaN or Inf'}"
            )
        if k == 0:
            return self.combined(rows, state)
        aggregate, state = self.reduced(k, rows.asked).combined(rows.subset(~faulty), state)
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[~faulty] = aggregate.weights
        stats = {**aggregate.stats, "not_finite": torch.nonzero(faulty).flatten().tolist()}
        return dataclasses.replace(aggregate, weights=weights, stats=stats), state


class WeightedRule(Rule):
    """A rule whose rows may count by their numbers of examples.

    A subclass has the fields ``weighted``, ``clamp`` and ``most``, as `Weighing` has them.

    Attributes
    ----------
    halved : bool
        Of the class: whether the f heaviest rows must weigh less than half, as for `Weighing`.
    """

    weighted: bool
    clamp: float
    most: float | None
    halved: ClassVar[bool] = True

    def weighing(self, asked: int) -> Weighing:
        """Return how rows count."""
        return Weighing(self.name, self.weighted, self.clamp, self.most, self.declared(asked), self.halved)

    def needs(self, asked: int) -> tuple[int, str]:
        """Require what equal weights need, and what the bounds on weights add."""
        return self.weighing(asked).needs(*self.needs_unweighted(asked))

    def needs_unweighted(self, asked: int) -> tuple[int, str]:
        """Return what `Rule.needs` returns where rows count equally."""
        return super().needs(asked)


@dataclass(frozen=True)
class PreAggregator(Component, ABC):
    """A step that mixes rows before a rule sees them; ``pairwise`` as for `Rule`."""

    pairwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields, also that a bound on weights is given to weights alone."""
        super().__post_init__()
        _check_bound(self)

    def weighing(self) -> Weighing | None:
        """Return how rows count, where the step can weigh them by their numbers of examples; None elsewhere."""
        return None

    def check_counts(self, counts: Tensor) -> str | None:
        """Say why rows of these numbers of examples (n,) do not fit this step, or return None."""
        weighing = self.weighing()
        return None if weighing is None else weighing.check(counts)

    def check(self, n: int) -> str | None:
        """Say why n rows do not fit, or return None: a step that declares f needs n >= 2f + 1."""
        f = getattr(self, "f", None)
        if f is None:
            return None
        weighing = self.weighing()
        smallest, condition = 2 * f + 1, "n >= 2f + 1"
        if weighing is not None:
            smallest, condition = weighing.needs(smallest, condition)
        if n >= smallest:
            return None
        return f"{self.name} needs {condition}; got n={n}, f={f}: ask at least {smallest} clients or lower f"

    def rows_out(self, n: int) -> int:
        """Return how many rows come out of n."""
        return n

    def bounds(self, n: int, f: int, following: Sequence[Bound]) -> Sequence[Bound]:
        """Return what is proven of this step and a rule behind it, given what is proven of the rule alone.

        Parameters
        ----------
        n, f : int
            Number of rows that come in, and of faulty ones among them.
        following : sequence of Bound
            Of the rule, for as many rows and faulty ones.
        """
        return ()

    def reduced(self, k: int) -> PreAggregator:
        """Return the step for the rows left when k faulty ones have been left out."""
        return _lowered(self, k)

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the keys that the state may hold; a step that adds others than those of `init` names them here."""
        return tuple(self.init())

    def init(self) -> State:
        """Return the state before the first call."""
        return {}

    def checked_matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Return the result of `matrix`.

        Raises
        ------
        InfeasibleError
            If the numbers of examples do not fit the step.
        ConfigurationError
            If the result is not of the form that a step returns.
        """
        if rows.counts is not None and (sentence := self.check_counts(rows.counts)):
            raise InfeasibleError(sentence)
        found = self.matrix(rows, state)
        shape, got = (self.rows_out(rows.n), rows.n), f"{type(found).__name__}"
        if isinstance(found, tuple) and len(found) == 3:
            mixing, stats, following = found
            got = f"matrix {_shown(mixing)}, stats {type(stats).__name__}, state {type(following).__name__}"
            fits = isinstance(mixing, Tensor) and mixing.shape == shape and mixing.dtype == torch.float64
            if fits and isinstance(stats, Mapping) and isinstance(following, Mapping):
                return found
        raise ConfigurationError(
            f"{type(self).__name__}.matrix must return (matrix, stats, state): a matrix {shape} of torch.float64 and "
            f"two mappings; got {got}: correct the step"
        )

    @abstractmethod
    def matrix(self, rows: Rows, state: State) -> tuple[Tensor, Mapping[str, Any], State]:
        """Return the matrix (rows_out(n), n), float64, that mixes the rows, the step's stats and its next state."""


def joined(states: Sequence[State]) -> State:
    """Join the states of a rule's parts, keys prefixed by the part's position."""
    return {f"{index}.{key}": value for index, state in enumerate(states) for key, value in state.items()}


def part(state: State, index: int) -> State:
    """Return the state of one part out of joined ones."""
    prefix = f"{index}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def next_draw(rows: Rows, state: State, seed: int | None, *keys: int | str) -> tuple[torch.Generator, State]:
    """Return the generator of a component's next random draw, and the state that counts it.

    Parameters
    ----------
    rows : Rows
        Their ``seed`` counts where the component has none.
    state : State
        Its key ``draws`` holds the number of draws so far.
    seed : int or None
        The component's own seed. Without any seed, the draw comes from the operating system's entropy.
    *keys
        The purpose of the draw.
    """
    draws = int(state.get("draws", torch.zeros((), dtype=torch.int64)))
    seed = rows.seed if seed is None else seed
    seed = secrets.randbits(256) if seed is None else seed
    return torch_generator(seed, *keys, draws), {**state, "draws": torch.tensor(draws + 1)}


@dataclass(frozen=True)
class Case:
    """One instance of a rule for the conformance suite.

    Attributes
    ----------
    rule : str
        The rule's text.
    n : int
        How many rows to try it on.
    lacks : mapping of str to str
        Properties of the suite that the rule does not have, each with the reason.
    layout : tuple of (str, shape)
        The arrays of the columns, if the rule needs them.
    """

    rule: str
    n: int = 10
    lacks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layout: tuple[tuple[str, tuple[int, ...]], ...] = ()


aggregators: Registry[Rule] = Registry("aggregator", "flwr_robust.aggregators", "flwr_robust.rules")
preaggregators: Registry[PreAggregator] = Registry("pre-aggregator", "flwr_robust.preaggregators", "flwr_robust.rules")
