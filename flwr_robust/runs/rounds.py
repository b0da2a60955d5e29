"""What happens in a round of a run, step by step, whichever engine runs it.

What a client draws, what an attack makes of it, whom the server asks, how it aggregates and how far it steps: the
Flower apps and `simulation` both call these, and so come to the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataAttack
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, Rule, State
from flwr_robust.errors import InfeasibleError
from flwr_robust.protocol.messages import MessageKind, message_kind
from flwr_robust.protocol.momentum import heavy_ball
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import derive_each, numpy_generator, torch_generator
from flwr_robust.tasks import Task

__all__ = [
    "Poison",
    "Settled",
    "batch_generator",
    "batch_seeds",
    "draw_batch",
    "moved",
    "sample_clients",
    "server_step",
    "settle",
]

A = TypeVar("A", Tensor, NDArray[Any])

_VELOCITY = "server.velocity"  # the server's momentum, beside what the rule remembers


# -- clients ------------------------------------------------------------------------------------------


def batch_generator(config: RunConfig, client: int, server_round: int) -> torch.Generator:
    """Return the generator of all batches that a client draws in a round."""
    return torch_generator(config.seed, "batch", client, server_round)


def batch_seeds(config: RunConfig, clients: Sequence[int], server_round: int) -> list[int]:
    """Return the seeds of clients' `batch_generator`."""
    return derive_each(config.seed, "batch", clients, server_round)


def draw_batch(config: RunConfig, held: int, generator: torch.Generator, size: int | None = None) -> Tensor:
    """Return a client's next batch: the places (size,) of its samples among the ``held`` ones; size: batch-size."""
    size = config.batch_size if size is None else size
    if config.batching == "consecutive":
        start = int(torch.randint(held, (1,), generator=generator))
        return (start + torch.arange(size)) % held
    return torch.randint(held, (size,), generator=generator)


@dataclass(frozen=True)
class Poison:
    """What the run's attack does with a client in one round.

    Attributes
    ----------
    attack : DataAttack
        The attack.
    task : Task
        The run's data.
    message : str
        What clients send.
    rank : int
        The client's place among the attackers of the round.
    generator : torch.Generator
        The attack's draws in the round; the batches are the honest client's.
    scores : callable (Tensor) -> Tensor
        The scores that the model sent gives to inputs.
    """

    attack: DataAttack
    task: Task
    message: str
    rank: int
    generator: torch.Generator
    scores: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, config: RunConfig, client: int, server_round: int, rank: int, scores: Callable[[Tensor], Tensor]
    ) -> Poison:
        """Return the poison of a client that is an attacker of the round."""
        assert config.data_attack is not None
        draw = torch_generator(config.seed, "labels", client, server_round)
        return cls(config.data_attack, config.data_set, config.message, rank, draw, scores)

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels to train on instead of a batch, which is not changed."""
        task = self.task
        view = ClientView(task.classes, self.generator, partial(self.scores, x), task.span, self.rank)
        return self.attack(x, y, view)

    def scaled(self, arrays: Sequence[A], sent: Sequence[A]) -> list[A]:
        """Return the message to send instead of an unscaled one, array by array."""
        scale = self.attack.scale
        if scale == 1:
            return list(arrays)
        if message_kind(self.message).relative:
            return [old + scale * (new - old) for new, old in zip(arrays, sent, strict=True)]
        return [scale * array for array in arrays]


# -- the server ---------------------------------------------------------------------------------------


def sample_clients(seed: int, kind: str, server_round: int, available: int, size: int) -> list[int]:
    """Return the places, ascending, of those asked in a round among all that are available.

    Parameters
    ----------
    seed : int
        The run's seed.
    kind : str
        ``train`` or ``evaluate``.
    server_round : int
        The round.
    available, size : int
        How many there are, and how many of them are asked.
    """
    if size == available:
        return list(range(available))
    draw = numpy_generator(seed, "sample", kind, server_round)
    return sorted(draw.choice(available, size=size, replace=False).tolist())


@dataclass(frozen=True)
class Settled:
    """What became of a round's replies.

    Attributes
    ----------
    outcome : Outcome
        INFEASIBLE leaves the model, and the rule's state, as they were.
    sentence : str
        Why it was infeasible; empty otherwise.
    result : Aggregate or None
        What the rule returned, if it ran to its end.
    state : State
        The rule's next state, and the server's velocity.
    direction : Tensor (d,), float64, or None
        What the server steps along; None if the round was infeasible.
    """

    outcome: Outcome
    sentence: str
    result: Aggregate | None
    state: State
    direction: Tensor | None = None


def settle(rule: Rule, rows: Rows, state: State, momentum: float = 0.0) -> Settled:
    """Aggregate a round's rows; never raises for what they hold.

    Parameters
    ----------
    rule : Rule
        The rule.
    rows : Rows
        What clients have sent.
    state : State
        As returned for the last round; the rule's initial one before the first.
    momentum : float
        The server's, in [0, 1); see `heavy_ball`.
    """
    try:
        result, following = rule(rows, state)
    except InfeasibleError as error:
        return Settled(Outcome.INFEASIBLE, str(error), None, state)
    if result.outcome is Outcome.INFEASIBLE:
        return Settled(Outcome.INFEASIBLE, f"{rule.name} kept no reply", result, state)
    if not _finite(result.value):  # no known rows do this; the model must not pay
        return Settled(Outcome.INFEASIBLE, f"{rule.name} gave a value that is not finite", result, state)
    direction = result.value
    if momentum:  # rows' squared norms are finite, so no sum of their aggregates comes near to overflowing
        direction = heavy_ball(state.get(_VELOCITY), direction, momentum)
        following = {**following, _VELOCITY: direction}
    return Settled(result.outcome, "", result, following, direction)


def _finite(value: Tensor) -> bool:
    """Say whether all numbers are finite: their sum is then, unless it overflows, and takes a tenth of the time."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def server_step(kind: MessageKind, learning_rate: float, value: Tensor) -> NDArray[np.float64]:
    """Return what the aggregated messages change in the model, flat."""
    step: NDArray[np.float64] = kind.sign * learning_rate * value.cpu().numpy()
    return step


def moved(model: NDArray[Any], step: NDArray[np.float64]) -> NDArray[Any]:
    """Return an array of the model after its step: formed in float64, of the array's own type, saturating."""
    following = model.astype(np.float64) + step
    with np.errstate(over="ignore"):
        rounded: NDArray[Any] = following.astype(model.dtype)
    if np.isfinite(rounded).all():
        return rounded
    limits = np.finfo(model.dtype)
    return following.clip(limits.min, limits.max).astype(model.dtype)
