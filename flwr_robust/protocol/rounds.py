"""What happens in a round, step by step, whichever engine runs it.

These functions draw a client's batches, choose the clients that the server asks, and form the server's round: aggregate
the messages, update the memory, return the change of the model. Flower's strategies and the fast engine both call them,
and so reach the same model.

A round that asks for classes aggregates the messages of each class separately. The ordinary round is the case of one
class, whose name is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, Rule, State
from flwr_robust.errors import InfeasibleError, UntrainedError
from flwr_robust.protocol.messages import MessageKind
from flwr_robust.seeds import derive_each, numpy_generator, torch_generator

__all__ = [
    "ServerMemory",
    "ServerRound",
    "ServerStep",
    "Settled",
    "batch_generator",
    "batch_seeds",
    "check_trained",
    "draw_batch",
    "least_replies",
    "moved",
    "sample_clients",
    "settle",
    "settle_round",
    "state_of_class",
    "too_few",
]

_RULE = "desgd.rule."  # what the rule remembers, but for
_CLASS = "desgd.class."  # points among the rows, which it remembers class by class


# -- clients ------------------------------------------------------------------------------------------


def batch_generator(seed: int, client: int, server_round: int) -> torch.Generator:
    """Return the generator of all batches that a client draws in a round."""
    return torch_generator(seed, "batch", client, server_round)


def batch_seeds(seed: int, clients: Sequence[int], server_round: int) -> list[int]:
    """Return the seeds of clients' `batch_generator`."""
    return derive_each(seed, "batch", clients, server_round)


def draw_batch(batching: str, size: int, held: int, generator: torch.Generator) -> Tensor:
    """Return a client's next batch: the places (size,) of its samples among those that it holds.

    Parameters
    ----------
    batching : str
        ``random``: drawn uniformly, with replacement. ``consecutive``: a run from a random start, wrapping.
    size : int
        How many samples.
    held : int
        How many the client holds.
    generator : torch.Generator
        The generator of the client's batches in the round.
    """
    if batching == "consecutive":
        start = int(torch.randint(held, (1,), generator=generator))
        return (start + torch.arange(size)) % held
    return torch.randint(held, (size,), generator=generator)


# -- the server ---------------------------------------------------------------------------------------


def sample_clients(seed: int, kind: str, server_round: int, available: int, size: int) -> list[int]:
    """Return the places, ascending, of the clients asked in a round among all available ones.

    Parameters
    ----------
    seed : int
        The run's seed.
    kind : str
        ``train`` or ``evaluate``.
    server_round : int
        The round.
    available, size : int
        Number of available clients, and number of clients to ask.
    """
    if size == available:
        return list(range(available))
    draw = numpy_generator(seed, "sample", kind, server_round)
    return sorted(draw.choice(available, size=size, replace=False).tolist())


def least_replies(rule: Rule, asked: int, min_replies: int | None = None) -> int:
    """Return how many of the clients asked must answer, so that a round can be aggregated.

    Parameters
    ----------
    rule : Rule
        The rule.
    asked : int
        Number of clients asked.
    min_replies : int, optional
        The operator's number. When not given: what the rule needs. If it declares no f, or f=0, this is more than half
        of those asked, since the rule relies on a majority of honest replies. Otherwise drop-outs could leave hostile
        replies alone. This holds for the mean, too.

    Returns
    -------
    int
        The number; ``asked + 1`` if not even all of them fit the rule.

    Examples
    --------
    >>> from flwr_robust.aggregators import Krum, Median
    >>> least_replies(Krum(f=2), 10), least_replies(Median(), 10), least_replies(Median(), 10, min_replies=3)
    (7, 6, 3)
    """
    fitting = next((n for n in range(1, asked + 1) if rule.check(n, asked=asked) is None), asked + 1)
    if min_replies is not None:
        return max(fitting, min_replies)
    return fitting if rule.declared(asked) else max(fitting, asked // 2 + 1)


def too_few(rule: Rule, heard: int, asked: int, min_replies: int | None = None) -> str | None:
    """Say why the replies of a round are too few, apart from the rule's own condition; None if they are enough.

    Parameters
    ----------
    rule, asked, min_replies
        As for `least_replies`.
    heard : int
        How many replies can be aggregated. Where a round asks for classes: how many clients answered, or abstained.

    Examples
    --------
    >>> from flwr_robust.aggregators import Median
    >>> too_few(Median(), 1, 10)
    'median declares no f, so more than half of the 10 clients asked must answer, at least 6; 1 did: set min_replies'
    """
    if min_replies is not None:
        return None if heard >= min_replies else f"min_replies={min_replies} replies are needed; there are {heard}"
    f = rule.declared(asked)
    if f or heard > asked // 2:
        return None
    return (
        f"{rule.name} declares {'no f' if f is None else 'f=0'}, so more than half of the {asked} clients asked must "
        f"answer, at least {asked // 2 + 1}; {heard} did: set min_replies"
    )


@dataclass(frozen=True)
class Settled:
    """The outcome of a rule on rows.

    Attributes
    ----------
    outcome : Outcome
        INFEASIBLE leaves the rule's state unchanged.
    sentence : str
        Why it was infeasible; empty otherwise.
    result : Aggregate or None
        What the rule returned, if it ran to its end.
    state : State
        The rule's next state.
    """

    outcome: Outcome
    sentence: str
    result: Aggregate | None
    state: State


def settle(rule: Rule, rows: Rows, state: State) -> Settled:
    """Aggregate rows; never raise an error because of their content.

    Parameters
    ----------
    rule : Rule
        The rule.
    rows : Rows
        What clients have sent.
    state : State
        As returned for the last round; the rule's initial one before the first.
    """
    try:
        result, following = rule(rows, state)
    except InfeasibleError as error:
        return Settled(Outcome.INFEASIBLE, str(error), None, state)
    if result.outcome is Outcome.INFEASIBLE:
        return Settled(Outcome.INFEASIBLE, f"{rule.name} kept no reply", result, state)
    if not _finite(result.value):  # no known rows do this; the model must not pay
        return Settled(Outcome.INFEASIBLE, f"{rule.name} gave a value that is not finite", result, state)
    return Settled(result.outcome, "", result, following)


def _finite(value: Tensor) -> bool:
    """Say whether all numbers are finite. Their sum is checked first, which takes a tenth of the time."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


class ServerMemory(Protocol):
    """What the server remembers of its steps: `HeavyBall`, or `flwr_robust.protocol.classes.ClassBuffer`."""

    def direction(self, values: Mapping[int | None, Tensor], state: State) -> tuple[Tensor, State]:
        """Return what the server steps along, and the part of the state to replace.

        Parameters
        ----------
        values : mapping of int or None to Tensor (d,)
            The aggregates of the round, by class.
        state : State
            That before the round.
        """
        ...


@dataclass(frozen=True)
class ServerStep:
    """How the server steps along what the rule returns.

    Attributes
    ----------
    kind : MessageKind
        What clients send.
    learning_rate : float
        Length of the step.
    memory : ServerMemory
        What the server keeps of a step for the next ones.
    """

    kind: MessageKind
    learning_rate: float
    memory: ServerMemory


@dataclass(frozen=True)
class ServerRound:
    """The result of a round's replies.

    Attributes
    ----------
    outcome : Outcome
        INFEASIBLE if nothing could be aggregated; the model and the state then stay unchanged. NOT_CONVERGED if the
        rule did not converge for a class.
    sentence : str
        Why it was infeasible; empty otherwise.
    aggregate : Aggregate or None
        What the rule returned, if it ran to its end. Where the round asks for classes: the mean over those that could
        be aggregated, with the weights that the replies have in it, and ``classes`` among the stats.
    state : State
        What the rule and the server remember.
    change : array (d,) of float64, or None
        What changes in the model, flat; None if the round was infeasible.
    """

    outcome: Outcome
    sentence: str
    aggregate: Aggregate | None
    state: State
    change: NDArray[np.float64] | None = None


def settle_round(
    rule: Rule,
    rows: Mapping[int | None, Rows | None],
    state: State,
    step: ServerStep,
    *,
    members: Mapping[int | None, Sequence[int]] | None = None,
    replies: int = 0,
    lacking: str | None = None,
) -> ServerRound:
    """Aggregate a round and form the server's step; never raise an error because of the rows' content.

    Parameters
    ----------
    rule : Rule
        The rule.
    rows : mapping of (int or None) to (Rows or None)
        The messages of each class of the round, or None if there are none. The ordinary round's one class is None.
    state : State
        As returned for the last round. Before the first: the rule's initial one; empty where rounds ask for classes.
    step : ServerStep
        How the server steps.
    members : mapping of (int or None) to sequence of int, optional
        If the round asks for classes: the places, among the replies, of each class's rows.
    replies : int
        Where the round asks for classes: how many replies there are.
    lacking : str, optional
        Why there are too few replies (`too_few`); the round is then infeasible.

    Returns
    -------
    ServerRound
        The result; a class that cannot be aggregated has no part in the step.

    Examples
    --------
    >>> from flwr_robust.aggregators import Median
    >>> from flwr_robust.protocol.messages import message_kind
    >>> from flwr_robust.protocol.momentum import HeavyBall
    >>> rows = Rows.from_layers([[torch.tensor([1.0])], [torch.tensor([2.0])], [torch.tensor([9.0])]])
    >>> settle_round(Median(), {None: rows}, {}, ServerStep(message_kind("gradient"), 0.5, HeavyBall())).change
    array([-1.])
    """
    if lacking is not None:
        return ServerRound(Outcome.INFEASIBLE, lacking, None, state)
    results: dict[int | None, Aggregate] = {}
    lost: dict[int | None, Settled] = {}
    following = state
    for k in sorted(rows, key=lambda k: -1 if k is None else k):
        own = rows[k]
        if own is None:
            lost[k] = Settled(Outcome.INFEASIBLE, "nobody sent it", None, state)
            continue
        settled = settle(rule, own, state_of_class(rule, following, k))
        if settled.result is None or settled.outcome is Outcome.INFEASIBLE:
            lost[k] = settled
            continue
        results[k] = settled.result
        following = _remembered(rule, following, k, settled.state)
    if not results:
        told = "; ".join(each.sentence if k is None else f"class {k}: {each.sentence}" for k, each in lost.items())
        return ServerRound(Outcome.INFEASIBLE, told, lost[None].result if None in lost else None, state)
    direction, memory = step.memory.direction({k: result.value for k, result in results.items()}, state)
    if not _finite(direction):  # sums of what is finite may not be
        return ServerRound(Outcome.INFEASIBLE, "the step would not be finite", None, state)
    change: NDArray[np.float64] = step.kind.sign * step.learning_rate * direction.cpu().numpy()
    one = results.get(None)
    aggregate = _joined(results, members or {}, replies, lost) if one is None else one
    return ServerRound(aggregate.outcome, "", aggregate, {**following, **memory} if memory else following, change)


def moved(model: NDArray[Any], change: NDArray[np.float64]) -> NDArray[Any]:
    """Return an array of the model after its step: formed in float64, of the array's own type, saturating."""
    following = model.astype(np.float64) + change
    with np.errstate(over="ignore"):
        rounded: NDArray[Any] = following.astype(model.dtype)
    if np.isfinite(rounded).all():
        return rounded
    limits = np.finfo(model.dtype)
    return following.clip(limits.min, limits.max).astype(model.dtype)


# -- classes ------------------------------------------------------------------------------------------


def check_trained(outcomes: Sequence[Outcome], why: str) -> int:
    """Return how many rounds of a run changed the model.

    Parameters
    ----------
    outcomes : sequence of Outcome
        How each round of training ended.
    why : str
        Why the last round left the model as it was, for the error.

    Raises
    ------
    UntrainedError
        If there were rounds, and none changed the model.
    """
    changed = sum(outcome is not Outcome.INFEASIBLE for outcome in outcomes)
    if outcomes and not changed:
        raise UntrainedError(f"run: 0 of {len(outcomes)} rounds changed the model; the last one: {why}")
    return changed


def state_of_class(rule: Rule, state: State, k: int | None) -> State:
    """Return the rule's state for the rows of a class; None stands for rounds without classes.

    Points in the space of the rows (`Rule.located`), such as the centre of centered clipping, are kept per class. The
    rest, such as the number of draws, is common to all classes.
    """
    if k is None:
        return state
    common = {key.removeprefix(_RULE): value for key, value in state.items() if key.startswith(_RULE)}
    own = f"{_CLASS}{k}."
    points = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
    return {**(common or rule.init()), **points}


def _remembered(rule: Rule, state: State, k: int | None, following: State) -> State:
    """Return the state with what the rule remembers after the rows of a class."""
    if k is None:
        return following
    own = f"{_CLASS}{k}."
    return {**state, **{(own if key in rule.located else _RULE) + key: value for key, value in following.items()}}


def _joined(
    results: Mapping[int | None, Aggregate],
    members: Mapping[int | None, Sequence[int]],
    replies: int,
    lost: Mapping[int | None, Settled],
) -> Aggregate:
    """Return the mean over the classes that were aggregated, with the weight of each reply."""
    found = {k: result for k, result in results.items() if k is not None}
    weights = torch.zeros(replies, dtype=torch.float64)
    for k, result in found.items():
        weights[list(members[k])] += result.weights / len(found)
    outcomes = {result.outcome for result in found.values()}
    outcome = Outcome.NOT_CONVERGED if Outcome.NOT_CONVERGED in outcomes else Outcome.OK
    if len(found) == 1 and not lost:
        ((k, one),) = found.items()
        return dataclasses.replace(one, weights=weights, stats={**one.stats, "classes": [k]})
    value = torch.stack([result.value for result in found.values()]).mean(0)
    stats = {str(k): dict(result.stats) for k, result in found.items()}
    told = {str(k): each.sentence for k, each in lost.items()}
    return Aggregate(
        value, weights, outcome=outcome, stats={"classes": [*found], "by_class": stats, "infeasible": told}
    )
