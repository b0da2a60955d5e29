"""What the fast engine's clients compute in a round: all of them at once, or one client after the other.

`Batched` takes models that `Grouped` can walk. `OneByOne` takes any model: it loads each client's model into a
`Learner`, and computes what the Flower app's client computes, with autograd. `work_for` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.poison import Poison
from flwr_robust.kernels import steps
from flwr_robust.protocol.buffers import learnt
from flwr_robust.runs.config import pick_device
from flwr_robust.runs.world import World
from flwr_robust.tasks import Grouped, Learner, Split, Tail, descend

__all__ = ["Batched", "OneByOne", "Places", "Turn", "Work", "work_for"]

Arrays = Mapping[int, NDArray[Any]]
"""Arrays of a model, by their places."""


@dataclass(frozen=True)
class Places:
    """Where the arrays of a model belong in a run, by their places in the state dict, ascending.

    Attributes
    ----------
    learnt : tuple of int
        Those that rules see.
    buffers : tuple of int
        Those that are sent, but not learnt; see `flwr_robust.protocol.buffers`.
    personal : tuple of int
        Those that each client keeps.
    """

    learnt: tuple[int, ...]
    buffers: tuple[int, ...] = ()
    personal: tuple[int, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], arrays: Sequence[NDArray[Any]], split: Split | None = None) -> Places:
        """Return the places of a model's arrays."""
        shared = range(len(names)) if split is None else split.shared
        found = set(learnt({names[place]: arrays[place] for place in shared}))
        return cls(
            tuple(place for place in shared if names[place] in found),
            tuple(place for place in shared if names[place] not in found),
            () if split is None else tuple(split.personal),
        )

    @property
    def shared(self) -> list[int]:
        """Those that are sent, in the model's order."""
        return sorted((*self.learnt, *self.buffers))


@dataclass(frozen=True)
class Turn:
    """The work of a round for the n clients asked, in the order of runs and, in each run, of clients.

    Attributes
    ----------
    lines : array (n,) of int64
        Every client's line in the personal arrays.
    drawn : array (steps, n, size) of int64
        The samples of their batches, step by step.
    seeds : sequence (n) of int
        The seeds of what their layers draw; empty if the work does not draw.
    poisons : mapping of int to Poison
        The attacks on data, by the places of the clients.
    """

    lines: NDArray[np.int64]
    drawn: NDArray[np.int64]
    seeds: Sequence[int]
    poisons: Mapping[int, Poison]


class Work(ABC):
    """The clients' numerical work, for runs that advance together.

    Parameters
    ----------
    worlds : sequence of World
        The runs.
    places : Places
        Where the arrays of their models belong.
    initial : sequence (r) of sequences of array
        The runs' initial models, all arrays.

    Attributes
    ----------
    told : str
        How gradients are computed, for the result.
    draws : bool
        Whether layers may draw.
    decay : float
        The weight decay that gradients leave to the step of the momenta.
    personal : dict of int to Tensor (clients of all runs, *shape)
        The personal arrays by place.
    """

    told: str
    draws: bool
    decay: float = 0.0

    def __init__(
        self, worlds: Sequence[World], places: Places, initial: Sequence[Sequence[NDArray[Any]]], device: torch.device
    ) -> None:
        self.worlds, self.places, self.device = worlds, places, device
        self.config = worlds[0].config
        self.clients = len(worlds) * self.config.sampled
        self.personal: dict[int, Tensor] = {}
        for place in places.personal:
            first = torch.stack([torch.from_numpy(arrays[place]) for arrays in initial])
            self.personal[place] = first.repeat_interleave(self.config.clients, 0).to(device)

    @abstractmethod
    def receive(self, models: Tensor, buffers: Sequence[Arrays]) -> None:
        """Take the models (r, d) that are sent in a round, their learnt arrays side by side, and their buffers."""

    @abstractmethod
    def gradients(self, turn: Turn) -> Tensor:
        """Return every client's gradient (n, d) on the first batch; the next round writes over it."""

    @abstractmethod
    def trained(self, turn: Turn) -> tuple[Tensor, dict[int, NDArray[Any]]]:
        """Return the learnt arrays (n, d) after the local steps, and the buffers (n, *shape); keep personal arrays."""

    @abstractmethod
    def scores(self, run: int, client: int, x: Tensor) -> Tensor:
        """Return the scores of the sent model for inputs; personal arrays are the client's own."""

    def line(self, run: int, client: int) -> int:
        """Return a client's line in the personal arrays."""
        return run * self.config.clients + client


class Batched(Work):
    """All clients at once, for models that `Grouped.check` accepts."""

    told = "batched"

    def __init__(
        self, worlds: Sequence[World], places: Places, initial: Sequence[Sequence[NDArray[Any]]], device: torch.device
    ) -> None:
        super().__init__(worlds, places, initial, device)
        config, task = self.config, worlds[0].task
        self._learner = worlds[0].learner(device)
        self._grouped = Grouped(self._learner)
        self.draws = Grouped.draws(self._learner.model)
        self._model = self._grouped.models(len(worlds))
        self._shared = [self._model[place] for place in places.learnt]
        self._sizes = [parameter[0].numel() for parameter in self._shared]
        width = sum(parameter.numel() for parameter in self._learner.parameters)
        self._gradients = torch.empty(self.clients, width, device=device)
        self._into = self._grouped.layers(self._gradients)
        x, y = task.x_train.to(device), task.y_train.to(device)
        self._samples = steps.Samples(x, y, task.scale, task.shift, self.clients, config.batch_size)
        at = self._model
        if worlds[0].kind.local_steps:
            at = self._local = self._grouped.models(self.clients)
            self._messages = torch.empty(self.clients, sum(self._sizes), device=device)
            self._sent_parts = [self._local[place] for place in places.learnt]
            rates = [world.config.local_learning_rate for world in worlds for _ in range(config.sampled)]
            # Every client's parameters, gradient and step size.
            self._alone = list(zip(zip(*self._local, strict=True), zip(*self._into, strict=True), rates, strict=True))
        left = worlds[0].kind.momentum and steps.fits(self._gradients)
        self.decay = config.weight_decay if left else 0.0
        where = (at, self._samples.inputs, self._samples.labels, self._into)
        self._walk = self._grouped.prepared(*where, decay=not left)

    def receive(self, models: Tensor, buffers: Sequence[Arrays]) -> None:
        """Copy the models; such models have no buffers."""
        for model, part in zip(self._shared, models.split_with_sizes(self._sizes, 1), strict=True):
            model.copy_(part.view_as(model))

    def gradients(self, turn: Turn) -> Tensor:
        """Walk the models that were sent."""
        self._grouped.seed(turn.seeds)
        self._take_gradients(turn.drawn[0], turn.poisons)
        return self._gradients

    def trained(self, turn: Turn) -> tuple[Tensor, dict[int, NDArray[Any]]]:
        """Walk each client's own model, step by step."""
        config = self.config
        self._grouped.seed(turn.seeds)
        for mine, model in zip(self._sent_parts, self._shared, strict=True):
            mine.view(len(model), config.sampled, *mine.shape[1:]).copy_(model.unsqueeze(1))
        lines = torch.from_numpy(turn.lines).to(self.device)
        for place, kept in self.personal.items():
            self._local[place].copy_(kept[lines])
        tail = Tail(config.local_steps) if config.tail_averaging else None
        for drawn in turn.drawn:
            self._take_gradients(drawn, turn.poisons)
            for own, direction, rate in self._alone:  # each with the shapes of a single client
                descend(own, direction, rate)
            if tail:
                tail.see(self._local)
        if tail:
            tail.write(self._local)
        for place, kept in self.personal.items():
            kept[lines] = self._local[place]
        return torch.cat([mine.flatten(1) for mine in self._sent_parts], 1, out=self._messages), {}

    def scores(self, run: int, client: int, x: Tensor) -> Tensor:
        """Score with the learner, whose parameters serve nothing else."""
        for place, (parameter, sent) in enumerate(zip(self._learner.parameters, self._model, strict=True)):
            own = self.personal.get(place)
            parameter.detach().copy_(sent[run] if own is None else own[self.line(run, client)])
        return self._learner.scores(x)

    def _take_gradients(self, rows: NDArray[np.int64], poisons: Mapping[int, Poison]) -> None:
        """Compute every client's gradient on a batch; the samples are given client after client."""
        self._samples.take(rows)
        x, y = self._samples.inputs, self._samples.labels
        for place, poison in poisons.items():
            own = x[place]
            inputs, y[place] = poison.batch(own, y[place])
            if inputs is not own:
                own.copy_(inputs)
        self._walk()


class OneByOne(Work):
    """One client after the other, for any model: each is loaded into a learner, which computes by autograd.

    Every run has a learner of its own, because a model may hold what is not in its state dict.

    Parameters
    ----------
    worlds, places, initial, device
        As for `Work`.
    why : str
        Why not all clients are computed at once.
    """

    draws = True

    def __init__(
        self,
        worlds: Sequence[World],
        places: Places,
        initial: Sequence[Sequence[NDArray[Any]]],
        device: torch.device,
        why: str,
    ) -> None:
        super().__init__(worlds, places, initial, device)
        self.told = f"one client at a time: {why}"
        self._learners = [world.learner(device) for world in worlds]
        self._senders: dict[int, Learner] = {}  # which score with the models that were sent
        self._parts: list[dict[int, Tensor]] = []  # of the models that were sent
        state = self._learners[0].state
        self._sizes = [state[place].numel() for place in places.learnt]
        dtype = state[places.learnt[0]].dtype
        self._rows = torch.empty(self.clients, sum(self._sizes), dtype=dtype, device=device)

    def receive(self, models: Tensor, buffers: Sequence[Arrays]) -> None:
        """Take the models apart; learners take a model that all their clients share at once."""
        self._parts = [
            {
                **dict(zip(self.places.learnt, model.split_with_sizes(self._sizes), strict=True)),
                **{place: torch.tensor(array).to(self.device) for place, array in others.items()},
            }
            for model, others in zip(models, buffers, strict=True)
        ]
        if not self.worlds[0].kind.local_steps:
            for run, learner in enumerate(self._learners):
                self._load(learner, run)

    def gradients(self, turn: Turn) -> Tensor:
        """Compute the gradients at the models that were sent."""
        for place in range(self.clients):
            learner = self._learners[place // self.config.sampled]
            with learner.drawing(turn.seeds[place]):
                gradient = learner.gradient(*self._batch(turn, 0, place))
            torch.cat([part.reshape(-1) for part in gradient], out=self._rows[place])
        return self._rows

    def trained(self, turn: Turn) -> tuple[Tensor, dict[int, NDArray[Any]]]:
        """Let every client take its local steps."""
        state = self._learners[0].state
        buffers = {p: torch.empty(self.clients, *state[p].shape, dtype=state[p].dtype) for p in self.places.buffers}
        for place, line in enumerate(turn.lines.tolist()):
            run = place // self.config.sampled
            learner, rate = self._learners[run], self.worlds[run].config.local_learning_rate
            self._load(learner, run, line)
            with learner.drawing(turn.seeds[place]):
                self._descend(learner, rate, turn, place)
            torch.cat([learner.state[p].reshape(-1) for p in self.places.learnt], out=self._rows[place])
            for p, kept in buffers.items():
                kept[place] = learner.state[p]
            for p, kept in self.personal.items():
                kept[line] = learner.state[p]
        return self._rows, {p: kept.numpy() for p, kept in buffers.items()}

    def scores(self, run: int, client: int, x: Tensor) -> Tensor:
        """Score with another learner, because a client may be in the middle of its steps."""
        if run not in self._senders:
            self._senders[run] = self.worlds[run].learner(self.device)
        self._load(self._senders[run], run, self.line(run, client))
        return self._senders[run].scores(x)

    def _load(self, learner: Learner, run: int, line: int = 0) -> None:
        """Load the model that was sent, with a client's personal arrays."""
        for place, held in enumerate(learner.state):
            own = self.personal.get(place)
            held.copy_(self._parts[run][place].view_as(held) if own is None else own[line])

    def _descend(self, learner: Learner, rate: float, turn: Turn, place: int) -> None:
        """Take a client's local steps."""
        tail = Tail(self.config.local_steps) if self.config.tail_averaging else None
        for step in range(self.config.local_steps):
            learner.descend(learner.gradient(*self._batch(turn, step, place)), rate)
            if tail:
                tail.see(learner.parameters)
        if tail:
            tail.write(learner.parameters)

    def _batch(self, turn: Turn, step: int, place: int) -> tuple[Tensor, Tensor]:
        """Return a client's batch as it trains on it."""
        x, y = self.worlds[0].task.batch(torch.from_numpy(turn.drawn[step, place]), self.device)
        return turn.poisons[place].batch(x, y) if place in turn.poisons else (x, y)


def work_for(
    worlds: Sequence[World], places: Places, initial: Sequence[Sequence[NDArray[Any]]], why: str | None
) -> Work:
    """Return the clients' work; ``why`` is what `Grouped.check` says of the model."""
    device = pick_device(worlds[0].config.device)
    return Batched(worlds, places, initial, device) if why is None else OneByOne(worlds, places, initial, device, why)
