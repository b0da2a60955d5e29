"""Byz-DeSGD in pure parts: which classes a round asks for, momenta class by class, and the server's buffer.

Worker i keeps one momentum per class c that it holds, updates all of them every round, and sends those of the round's
classes alone:

    m^(c,i) = alpha g^(c,i) + (1 - alpha) m^(c,i),   the first one is the first gradient

The server aggregates what was sent for class c_t, m^ = A({m^(c_t,i)}), and moves along m^ and the mean of a buffer that
holds one vector per class:

    m_g^(c_t) <- m^,   m_g^c <- beta m_g^c for c != c_t,   m- = (1 / K) sum_c m_g^c
    x <- x - eta ((1 - gamma) m^ + gamma m-)

g^(c,i): gradient of worker i's mean loss over samples of class c; A: the rule; K: number of classes; eta: step size;
gamma: weight of the buffer, which makes up for the classes that were not asked for. So the rule compares momenta of one
class only, which are comparable however different the workers' classes are.

Xu, Yan, Zheng, Huang, "Mitigating model poisoning attacks on distributed learning with heterogeneous data" (Byz-DeSGD).

Convention: the paper writes one beta = 0.9 for alpha, the weight of the new gradient, and for the factor by which the
buffer fades; so does this module where no other factor is named. With momenta as PyTorch forms them, m <- 0.9 m + g,
alpha is 0.1 and the factor 0.9. Other messages use a small `alpha`, so it has to be set here. The buffer starts at
zero, and m- is the mean over all K classes, even those that were never asked for. It is updated before m- is formed. In
the cyclic schedule the first round asks for class 0. A batch is split over a worker's classes, whose momenta all move;
with ``class_batch = "asked"`` it is drawn from each class that is asked for, and only its momentum moves. If a round
asks for several classes, each is aggregated separately. m^ is the mean of the aggregates, and each aggregate replaces
its line in the buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.core.rule import State
from flwr_robust.errors import ConfigurationError, check_choice, check_integer, check_number
from flwr_robust.protocol.momentum import momentum_step
from flwr_robust.protocol.rounds import draw_batch
from flwr_robust.seeds import numpy_generator, torch_generator

__all__ = [
    "CLASS_BATCHES",
    "SCHEDULES",
    "ClassBuffer",
    "answer_names",
    "answered_classes",
    "answers",
    "by_label",
    "check_desgd",
    "class_momenta",
    "classes_of_round",
    "compensated",
    "draw_class_batch",
    "held_classes",
    "part_sizes",
    "updated_buffer",
]

_BUFFER = "desgd.buffer"  # beside what the rule remembers

SCHEDULES = ("cyclic", "random")
"""How the classes of a round are chosen: in turn, or drawn from the seed, each as likely."""


CLASS_BATCHES = ("split", "asked")
"""What a worker's batch is: one that is split over its classes, or one of each class asked for."""


def check_desgd(
    owner: str,
    gamma: float,
    schedule: str,
    classes_per_round: int,
    classes: int | None = None,
    *,
    hyphens: bool = False,
) -> None:
    """Raise unless the settings are within their bounds.

    Parameters
    ----------
    owner : str
        The subject of the error message.
    gamma : float
        In [0, 1].
    schedule : str
        One of `SCHEDULES`.
    classes_per_round : int
        In 1 .. classes.
    classes : int, optional
        K, where it is known.
    hyphens : bool
        Whether the sentence names ``classes-per-round``, as a run config does.
    """
    name = "classes-per-round" if hyphens else "classes_per_round"
    check_number(owner, "gamma", gamma, minimum=0, maximum=1)
    check_choice(owner, "schedule", schedule, SCHEDULES)
    check_integer(owner, name, classes_per_round, 1)
    if classes is not None and classes_per_round > classes:
        raise ConfigurationError(
            f"{owner}: {name} must be at most the number of classes, {classes}; got {name}={classes_per_round}: ask "
            f"for fewer"
        )


# -- the schedule -------------------------------------------------------------------------------------


def classes_of_round(
    schedule: str, server_round: int, classes: int, classes_per_round: int = 1, seed: int = 0
) -> tuple[int, ...]:
    """Return the classes that a round asks for, ascending.

    Parameters
    ----------
    schedule : str
        ``cyclic``: round t asks for the next ``classes_per_round`` classes in turn, round 1 from class 0 on.
        ``random``: that many different classes are drawn.
    server_round : int
        The round, from 1.
    classes : int
        K.
    classes_per_round : int
        How many; 1 .. K.
    seed : int
        The run's seed.

    Examples
    --------
    >>> [classes_of_round("cyclic", t, 3) for t in (1, 2, 3, 4)]
    [(0,), (1,), (2,), (0,)]
    >>> [classes_of_round("cyclic", t, 3, 2) for t in (1, 2)]
    [(0, 1), (0, 2)]
    """
    if schedule == "cyclic":
        first = (server_round - 1) * classes_per_round
        return tuple(sorted((first + step) % classes for step in range(classes_per_round)))
    draw = numpy_generator(seed, "classes", server_round)
    return tuple(sorted(draw.choice(classes, classes_per_round, replace=False).tolist()))


# -- workers ------------------------------------------------------------------------------------------


def held_classes(labels: Tensor, samples: Tensor) -> dict[int, Tensor]:
    """Return a worker's samples by class, classes and samples ascending.

    Parameters
    ----------
    labels : Tensor (N,) of int64
        Of all samples.
    samples : Tensor (n,) of int64
        The indices of the worker's own, ascending.
    """
    own = labels.index_select(0, samples)
    return {k: samples[own == k] for k in torch.unique(own).tolist()}


def part_sizes(batch_size: int, parts: int) -> list[int]:
    """Return how a batch is split over classes: evenly, the first ones get one more, and each gets at least one.

    Examples
    --------
    >>> part_sizes(50, 3), part_sizes(2, 3)
    ([17, 17, 16], [1, 1, 1])
    """
    even, more = divmod(batch_size, parts)
    return [max(1, even + (index < more)) for index in range(parts)]


def draw_class_batch(
    seed: int,
    client: int,
    server_round: int,
    held: Mapping[int, Tensor],
    batching: str,
    size: int,
    whole: Collection[int] | None = None,
) -> dict[int, Tensor]:
    """Return the samples that a client trains on in a round, class by class.

    Parameters
    ----------
    seed : int
        The run's seed.
    client, server_round : int
        The client and the round, from 1.
    held : mapping of int to Tensor
        The client's samples by class, as `held_classes` returns them.
    batching : str
        How a batch is drawn, see `flwr_robust.protocol.rounds.draw_batch`.
    size : int
        The batch's size, which is split over the client's classes.
    whole : collection of int, optional
        Classes of which a batch of this size each is drawn, and of no others; a class that the client lacks is left
        out.

    Returns
    -------
    dict of int to Tensor of int64
        Indices of samples by class, ascending; each class's are drawn from (seed, client, round, class).
    """
    if whole is None:
        sizes = dict(zip(held, part_sizes(size, len(held)), strict=True))
    else:
        sizes = {k: size for k in held if k in whole}
    parts = {}
    for k, part in sizes.items():
        generator = torch_generator(seed, "class batch", client, server_round, k)
        parts[k] = held[k][draw_batch(batching, part, len(held[k]), generator)]
    return parts


def by_label(x: Tensor, y: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return a batch's inputs and labels by label, ascending.

    An attack on data may have changed the labels: a worker with flipped labels uses them throughout the protocol.
    """
    return {k: (x[y == k], y[y == k]) for k in torch.unique(y).tolist()}


def class_momenta(previous: Mapping[int, Tensor], gradients: Mapping[int, Tensor], alpha: float) -> dict[int, Tensor]:
    """Return the next momenta of a worker, class by class; no argument is changed.

    Parameters
    ----------
    previous : mapping of int to Tensor
        The last momentum of each class that has one.
    gradients : mapping of int to Tensor
        This round's gradient of each class that the worker's batch holds.
    alpha : float
        Weight of the new gradient, in (0, 1].

    Returns
    -------
    dict of int to Tensor
        The momenta of all classes in either argument; those without a gradient stay unchanged.
    """
    following = dict(previous)
    for k, gradient in gradients.items():
        last = [previous[k]] if k in previous else None
        (following[k],) = momentum_step(last, [gradient], alpha)
    return following


def answers(momenta: Mapping[int, Tensor], asked: Sequence[int], claimed: bool) -> dict[int, Tensor]:
    """Return what a client answers, by class.

    Parameters
    ----------
    momenta : mapping of int to Tensor (d,)
        The client's momenta of the classes that its batch held in this round.
    asked : sequence of int
        The classes of the round.
    claimed : bool
        Whether it answers for all of them; for a class that it lacks it sends the mean of its momenta.
    """
    found = {k: momenta[k] for k in asked if k in momenta}
    if claimed and len(found) < len(asked):
        mean = torch.stack([momenta[k] for k in sorted(momenta)]).mean(0)
        found = {k: found.get(k, mean) for k in asked}
    return found


def answer_names(model: Iterable[str], answered: Collection[int], asked: Sequence[int]) -> list[str]:
    """Return the names of the arrays of a reply.

    Parameters
    ----------
    model : iterable of str
        The names of the model's arrays.
    answered : collection of int
        The classes that the reply answers for, ascending.
    asked : sequence of int
        The classes that were asked for.

    Returns
    -------
    list of str
        The model's own names if one class is asked for. Otherwise the class, a slash and the name, class by class.

    Examples
    --------
    >>> answer_names(["w", "b"], [7], [7]), answer_names(["w", "b"], [7], [3, 7])
    (['w', 'b'], ['7/w', '7/b'])
    """
    names = list(model)
    return [name if len(asked) == 1 else f"{k}/{name}" for k in answered for name in names]


def answered_classes(names: Collection[str], asked: Sequence[int]) -> tuple[int, ...]:
    """Return the classes, of those asked for, that a reply with arrays of these names answers for.

    Examples
    --------
    >>> answered_classes(["3/w"], [2, 3]), answered_classes(["w"], [2])
    ((3,), (2,))
    """
    if len(asked) == 1:
        return tuple(asked)
    return tuple(k for k in asked if any(name.startswith(f"{k}/") for name in names))


# -- the server ---------------------------------------------------------------------------------------


def updated_buffer(buffer: Tensor, fresh: Mapping[int, Tensor], fade: float) -> Tensor:
    """Return the buffer with a round's aggregates; the other classes fade.

    Parameters
    ----------
    buffer : Tensor (K, d)
        One line per class; not changed.
    fresh : mapping of int to Tensor (d,)
        The aggregates of the round, by class.
    fade : float
        The paper's beta, in (0, 1].
    """
    following = buffer * fade
    for k, value in fresh.items():
        following[k] = value
    return following


def compensated(fresh: Mapping[int, Tensor], buffer: Tensor, gamma: float) -> Tensor:
    """Return the direction of the server's step, (1 - gamma) m^ + gamma m-.

    Parameters
    ----------
    fresh : mapping of int to Tensor (d,)
        The aggregates of the round, by class; m^ is their mean.
    buffer : Tensor (K, d)
        The buffer after the round; m- is the mean of its lines.
    gamma : float
        In [0, 1].

    Examples
    --------
    >>> buffer = updated_buffer(torch.tensor([[4.0], [9.0]]), {1: torch.tensor([2.0])}, 0.5)
    >>> compensated({1: torch.tensor([2.0])}, buffer, 0.25)
    tensor([2.])
    """
    mean = torch.stack([fresh[k] for k in sorted(fresh)]).mean(0)
    return mean * (1 - gamma) + buffer.mean(0) * gamma


@dataclass(frozen=True)
class ClassBuffer:
    """The server's buffer, its memory of earlier steps.

    Attributes
    ----------
    classes : int
        K.
    gamma : float
        Weight of the buffer in the step, in [0, 1].
    fade : float
        Factor by which the buffer fades, in (0, 1].
    """

    classes: int
    gamma: float
    fade: float

    def direction(self, values: Mapping[int | None, Tensor], state: State) -> tuple[Tensor, State]:
        """Return the compensated direction, and the part of the state that holds the buffer.

        Parameters
        ----------
        values : mapping of int to Tensor (d,)
            The aggregates of the round, by class. A class that could not be aggregated fades like those not asked for.
        state : State
            The state before the round.
        """
        fresh = {k: value.detach().cpu().double() for k, value in values.items() if k is not None}
        held = state.get(_BUFFER)
        if held is None:
            held = torch.zeros(self.classes, len(next(iter(fresh.values()))), dtype=torch.float64)
        buffer = updated_buffer(held, fresh, self.fade)
        return compensated(fresh, buffer, self.gamma), {_BUFFER: buffer}
