"""What happens in a round of class-wise momenta, step by step, whichever engine runs it.

See `flwr_robust.protocol.classes`.
A worker draws a batch of each class that it holds, an attack on data may poison it, and the labels that come of it say
which class a sample counts for: whoever holds flipped labels takes part in the protocol with these. The server settles
every class of the round on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.attacks.message.base import MessageAttack
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, Rule, State
from flwr_robust.errors import ConfigurationError
from flwr_robust.protocol.classes import compensated, held_classes, part_sizes, updated_buffer
from flwr_robust.protocol.messages import message_kind
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.rounds import draw_batch, settle
from flwr_robust.seeds import torch_generator

__all__ = [
    "ClassesSettled",
    "answers",
    "by_label",
    "check_senders",
    "claims",
    "draw_class_batch",
    "own_classes",
    "settle_classes",
    "state_of_class",
]

_BUFFER = "desgd.buffer"
_RULE = "desgd.rule."  # what the rule remembers, but for
_CLASS = "desgd.class."  # points among the rows, which it remembers class by class


# -- before round 1 -----------------------------------------------------------------------------------


def own_classes(config: RunConfig, client: int) -> dict[int, Tensor]:
    """Return a client's samples by their true class."""
    return held_classes(config.data_set.y_train, torch.from_numpy(config.samples[client]))


def check_senders(config: RunConfig) -> None:
    """Raise if a class has fewer senders than the rule needs: the model would never learn of it.

    Attackers count for every class, whatever they hold: they may claim it, or flip their labels to it.

    Raises
    ------
    ConfigurationError
        The sentence names the class.
    """
    if not message_kind(config.message).class_wise:
        return
    senders = dict.fromkeys(range(config.data_set.classes), 0)
    for client in range(config.clients):
        for k in senders if config.attacks(client) else own_classes(config, client):
            senders[k] += 1
    for k, count in senders.items():
        n = min(count, config.sampled)
        sentence = "nobody holds it" if n == 0 else config.rule.check(n, asked=config.sampled)
        if sentence:
            raise ConfigurationError(
                f"configuration: message='{config.message}': at most {n} clients send class {k}, and "
                f"{sentence.partition(':')[0]}: take a partition that gives each class to more clients, or a rule "
                f"that does with fewer"
            )


# -- clients ------------------------------------------------------------------------------------------


def draw_class_batch(config: RunConfig, client: int, server_round: int, held: Mapping[int, Tensor]) -> list[Tensor]:
    """Return the samples that a client trains on in a round, class by class.

    Parameters
    ----------
    config : RunConfig
        The run; its ``batch_size`` is split over the classes.
    client, server_round : int
        Who and when.
    held : mapping of int to Tensor
        The client's samples by class, as `own_classes` returns them.

    Returns
    -------
    list of Tensor of int64
        Indices of samples; each class's are drawn from (seed, client, round, class).
    """
    parts = []
    for (k, places), size in zip(held.items(), part_sizes(config.batch_size, len(held)), strict=True):
        generator = torch_generator(config.seed, "class batch", client, server_round, k)
        parts.append(places[draw_batch(config, len(places), generator, size)])
    return parts


def by_label(x: Tensor, y: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return a batch's inputs and labels by label, ascending."""
    return {k: (x[y == k], y[y == k]) for k in torch.unique(y).tolist()}


def claims(config: RunConfig, client: int, server_round: int) -> bool:
    """Say whether a client answers for classes that it does not hold: an attacker on messages, while it attacks.

    What it sends is rewritten by the attack anyway; without an answer there would be nothing to rewrite.
    """
    return isinstance(config.attack_object, MessageAttack) and client in config.attackers_in(server_round)


def answers(momenta: Mapping[int, Tensor], asked: Sequence[int], claimed: bool) -> dict[int, Tensor]:
    """Return what a client answers, by class.

    Parameters
    ----------
    momenta : mapping of int to Tensor (d,)
        The client's momenta of the classes that its batch held in this round.
    asked : sequence of int
        The classes of the round.
    claimed : bool
        Whether it answers for all of them: with the mean of its momenta where it has none.
    """
    found = {k: momenta[k] for k in asked if k in momenta}
    if claimed and len(found) < len(asked):
        mean = torch.stack([momenta[k] for k in sorted(momenta)]).mean(0)
        found = {k: found.get(k, mean) for k in asked}
    return found


# -- the server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassesSettled:
    """What became of a round's replies.

    Attributes
    ----------
    outcome : Outcome
        INFEASIBLE, which leaves the model and all that is remembered as they were, if no class could be aggregated;
        NOT_CONVERGED if that is so of one that was.
    sentence : str
        Why it was infeasible; empty otherwise.
    direction : Tensor (d,), float64, or None
        What the server steps along; None if the round was infeasible.
    aggregate : Aggregate or None
        m^ with the weights that the replies have in it, and ``classes`` among the stats; None if the round was
        infeasible.
    state : State
        The buffer and what the rule remembers, for the next round.
    """

    outcome: Outcome
    sentence: str
    direction: Tensor | None
    aggregate: Aggregate | None
    state: State


def state_of_class(rule: Rule, state: State, k: int) -> State:
    """Return what the rule remembers when it is given the rows of a class.

    Points among the rows (`Rule.located`), such as the centre of centered clipping, it has one of per class; all else,
    such as how often it has drawn, is common to all.
    """
    common = {key.removeprefix(_RULE): value for key, value in state.items() if key.startswith(_RULE)}
    own = f"{_CLASS}{k}."
    points = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
    return {**(common or rule.init()), **points}


def _remembered(rule: Rule, state: State, k: int) -> dict[str, Tensor]:
    own = f"{_CLASS}{k}."
    return {(own if key in rule.located else _RULE) + key: value for key, value in state.items()}


def settle_classes(
    rule: Rule,
    rows: Mapping[int, Rows | None],
    members: Mapping[int, Sequence[int]],
    state: State,
    *,
    replies: int,
    classes: int,
    gamma: float,
    alpha: float,
) -> ClassesSettled:
    """Aggregate a round, class by class; never raises for what the rows hold.

    Parameters
    ----------
    rule : Rule
        The rule.
    rows : mapping of int to (Rows or None)
        What was sent for each class of the round; None where nothing was.
    members : mapping of int to sequence of int
        Which of the replies the rows of each class are.
    state : State
        As returned for the last round; empty before the first.
    replies : int
        How many replies there are.
    classes : int
        K.
    gamma : float
        Weight of the buffer.
    alpha : float
        What the buffer fades by.

    Returns
    -------
    ClassesSettled
        A class that cannot be aggregated fades in the buffer like those that were not asked for.
    """
    results: dict[int, Aggregate] = {}
    sentences: dict[int, str] = {}
    following = dict(state)
    for k in sorted(rows):
        own = rows[k]
        if own is None:
            sentences[k] = "nobody sent it"
            continue
        settled = settle(rule, own, state_of_class(rule, following, k))
        if settled.result is None or settled.outcome is Outcome.INFEASIBLE:
            sentences[k] = settled.sentence
            continue
        results[k] = settled.result
        following.update(_remembered(rule, settled.state, k))
    lost = "; ".join(f"class {k}: {sentence}" for k, sentence in sentences.items())
    if not results:
        return ClassesSettled(Outcome.INFEASIBLE, lost, None, None, state)
    fresh = {k: result.value.detach().cpu().double() for k, result in results.items()}
    held = state.get(_BUFFER)
    if held is None:
        held = torch.zeros(classes, len(next(iter(fresh.values()))), dtype=torch.float64)
    following[_BUFFER] = updated_buffer(held, fresh, alpha)
    direction = compensated(fresh, following[_BUFFER], gamma)
    if not bool(torch.isfinite(direction).all()):  # sums of what is finite may not be
        return ClassesSettled(Outcome.INFEASIBLE, "the step would not be finite", None, None, state)
    outcomes = {result.outcome for result in results.values()}
    outcome = Outcome.NOT_CONVERGED if Outcome.NOT_CONVERGED in outcomes else Outcome.OK
    aggregate = _joined(results, members, replies, sentences)
    return ClassesSettled(outcome, "", direction, dataclasses.replace(aggregate, outcome=outcome), following)


def _joined(
    results: Mapping[int, Aggregate], members: Mapping[int, Sequence[int]], replies: int, lost: Mapping[int, str]
) -> Aggregate:
    """Return m^ with the weight of each reply, the mean over the classes that were aggregated."""
    ((first, one), *others) = results.items()
    weights = torch.zeros(replies, dtype=torch.float64)
    for k, result in results.items():
        weights[list(members[k])] += result.weights / len(results)
    if not others and not lost:
        return dataclasses.replace(one, weights=weights, stats={**one.stats, "classes": [first]})
    value = torch.stack([result.value for result in results.values()]).mean(0)
    stats = {str(k): dict(result.stats) for k, result in results.items()}
    told = {str(k): sentence for k, sentence in lost.items()}
    return Aggregate(value, weights, stats={"classes": [*results], "by_class": stats, "infeasible": told})
