"""A whole run in one process, without Flower: all clients as one batched computation, for sweeps over many runs.

The same draws, poison, momentum step, rule and server step as in the Flower apps, which call the same functions; what
is left out are messages, contexts and records. The clients' data stay in memory, their gradients come from one walk
over the model (`Grouped`) and their momenta are one tensor. For one configuration and seed the model is that of the
apps to the bit on a CPU. Two exceptions: local steps on batches of a single sample, where the library that multiplies
matrices rounds by where they lie in memory, and GPUs agree with them to float32's rounding.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.adversary import Adversary, written
from flwr_robust.class_rounds import check_senders
from flwr_robust.class_simulation import ClassWise
from flwr_robust.config import RunConfig, pick_device
from flwr_robust.desgd import CLASS_MOMENTUM
from flwr_robust.errors import ConfigurationError
from flwr_robust.fault import Fault
from flwr_robust.message_attack import Knowledge, MessageAttack
from flwr_robust.momentum import momentum_step
from flwr_robust.personal import ClientScore, evaluate_client, evaluated_clients
from flwr_robust.results import Arrays, RoundResult, document, evaluator, write
from flwr_robust.rounds import Poison, batch_generator, draw_batch, moved, sample_clients, server_step, settle
from flwr_robust.rows import Layer, Rows
from flwr_robust.rule import Outcome
from flwr_robust.tasks import MODELS, Grouped, Learner, Tail, descend

__all__ = ["simulate", "unbatched"]


def unbatched(config: RunConfig) -> str | None:
    """Return None, or the sentence that says why a run is not one for `simulate`."""
    if config.rule.needs_trust:
        return f"{config.rule} compares with an update of the server's own"
    if config.audit:
        return "an audit log tells of messages"
    if config.quarantine_after or config.on_infeasible != "keep":
        return "quarantine, and a stop after an infeasible round, are the guard's of Flower's strategies"
    shape, classes = config.data_set.shape, config.data_set.classes
    with torch.device("meta"):
        model = MODELS[config.model](shape, classes)
    return Grouped.check(model)


def simulate(config: RunConfig) -> dict[str, Any]:
    """Run a configuration to its end.

    Parameters
    ----------
    config : RunConfig
        One for which `unbatched` returns None.

    Returns
    -------
    dict
        What the ServerApp writes; it goes into ``output``, and the model into ``save_model``, here, too.

    Raises
    ------
    ConfigurationError
        If the run is not one for this engine, or its model does not fit the rule.

    Examples
    --------
    >>> config = RunConfig(rounds=30, defence="trimmed_mean(f=1)", attack="label_flip()", attackers=1)
    >>> simulate(config)["outcomes"]["OK"]
    30
    """
    if sentence := unbatched(config):
        raise ConfigurationError(f"simulation: {sentence}; run it in process")
    check_senders(config)
    torch.set_num_threads(config.threads)
    federation = _Federation(config)
    if sentence := config.rule.check_layout(federation.layout):
        raise ConfigurationError(sentence)
    evaluate = evaluator(config, federation.learner.device, None if config.split is None else federation.scores)
    started = time.perf_counter()
    curve: dict[int, dict[str, float]] = {}
    history: list[RoundResult] = []
    ends: list[float] = []
    for server_round in range(config.rounds + 1):
        if server_round > 0:
            history.append(federation.round(server_round))
        ends.append(time.perf_counter())
        if metrics := evaluate(server_round, federation.arrays):
            curve[server_round] = metrics
    seconds = time.perf_counter() - started
    gpus = dict.fromkeys(range(config.clients), os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    found = document(config, federation.arrays(), curve, history, ends, seconds, gpus)
    write(config, federation.arrays(), found)
    return found


_SILENT = ""  # what stands for the reason where a client did not answer at all


@dataclass(frozen=True)
class _Attacked:
    """What became of a round's messages: whose were written over, what they were, and whom the server does not hear."""

    places: Sequence[int]
    honest: Tensor
    unheard: dict[int, str] = field(default_factory=dict)  # why, by client
    strength: float | None = None


class _Federation:
    """The server's model, and all clients side by side."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.learner = config.learner(pick_device(config.device))
        task, device = config.data_set, self.learner.device
        self._x, self._y = task.x_train.to(device), task.y_train.to(device)
        held = [len(samples) for samples in config.samples]
        self._held = torch.from_numpy(np.concatenate(config.samples))  # client after client, of which each begins at
        self._first = torch.tensor([0, *itertools.accumulate(held)])[:-1, None]
        self._counts = torch.tensor(held, dtype=torch.float64)
        arrays = self.learner.arrays()
        places = range(len(arrays)) if config.split is None else config.split.shared
        self.layout = [Layer(self.learner.names[place], arrays[place].shape) for place in places]
        self._sizes = [layer.size for layer in self.layout]
        self._flat = np.concatenate([arrays[place].ravel() for place in places])
        self._sent = torch.from_numpy(self._flat)  # the same memory
        self._model = [parameter.detach().unsqueeze(0) for parameter in self.learner.parameters]
        self._shared = [self._model[place] for place in places]
        self._personal = None if config.split is None else _Personal(config, self.learner)
        self._state = config.rule.init()
        self._momentum: Tensor | None = None  # (clients, d); where not all are asked each round, the lines count of
        self._started = torch.zeros(config.clients, dtype=torch.bool)  # clients that were asked before
        self._grouped = Grouped(self.learner)
        width = sum(parameter.numel() for parameter in self.learner.parameters)
        self._gradients = torch.empty(config.sampled, width, device=device)
        self._into = self._grouped.layers(self._gradients)
        attack = config.attack_object
        self._adversary: Adversary | None = None
        if isinstance(attack, MessageAttack | Fault):
            known, granted = config.known or None, Knowledge.of(config.knowledge)
            self._adversary = Adversary(
                attack, config.message, knowledge=granted, known=known, rule=config.rule, seed=config.seed
            )
        self._class_wise: ClassWise | None = None
        if config.message == CLASS_MOMENTUM:
            samples = self._x, self._y
            self._class_wise = ClassWise(config, self._grouped, *samples, self.layout, self._rows, self._adversary)

    def arrays(self) -> Arrays:
        """Return the model's arrays by name."""
        parts = self._sent.split_with_sizes(self._sizes)
        return {layer.name: p.numpy().reshape(layer.shape) for layer, p in zip(self.layout, parts, strict=True)}

    def scores(self, model: Arrays) -> list[ClientScore]:
        """Return how the honest clients fare with the shared arrays and their own."""
        assert self._personal is not None
        found = []
        for client in evaluated_clients(self.config):
            self.learner.load(self._personal.joined(list(model.values()), client))
            found.append(evaluate_client(self.config, self.learner, client))
        return found

    def round(self, server_round: int) -> RoundResult:
        """Run one round and step the model."""
        config = self.config
        asked = sample_clients(config.seed, "train", server_round, config.clients, config.sampled)
        for parameter, part in zip(self._shared, self._sent.split_with_sizes(self._sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
        if self._class_wise is not None:
            told, direction = self._class_wise.round(server_round, asked, self._shared)
            if direction is not None:
                self._flat[:] = moved(self._flat, server_step(config.message, config.server_learning_rate, direction))
            return told
        messages = self._messages(server_round, asked)
        attacked = self._attacked(server_round, messages, asked)
        unheard = attacked.unheard
        rows = self._rows(messages, asked) if not unheard else None
        if rows is None or bool(rows.faulty.any()):
            found = self._rows(messages, asked) if rows is None else rows
            for client, faulty in zip(asked, found.faulty.tolist(), strict=True):
                if faulty:  # the server lets no such message in
                    unheard.setdefault(client, "NOT_FINITE")
            heard = [client not in unheard for client in asked]
            rows = self._rows(messages[heard], list(itertools.compress(asked, heard))) if any(heard) else None
        settled = None if rows is None else settle(config.rule, rows, self._state)
        result = None if settled is None else settled.result
        if settled is not None:
            self._state = settled.state
            if result is not None and settled.outcome is not Outcome.INFEASIBLE:
                step = server_step(config.message, config.server_learning_rate, result.value)
                self._flat[:] = moved(self._flat, step)
        if messages is self._momentum:  # clients keep what they would have sent
            self._momentum[attacked.places] = attacked.honest
        return RoundResult(
            server_round,
            [client for client in asked if client not in unheard],
            () if result is None else result.weights.tolist(),
            [(client, reason) for client in asked if (reason := unheard.get(client))],
            Outcome.INFEASIBLE if settled is None else settled.outcome,
            [client for client in asked if unheard.get(client) == _SILENT],
            attacked.strength,
        )

    def _attacked(self, server_round: int, messages: Tensor, asked: Sequence[int]) -> _Attacked:
        """Let attackers, of those asked, write over their messages, or fail."""
        adversary, attackers = self._adversary, self.config.attackers_in(server_round)
        places = [place for place, client in enumerate(asked) if client in attackers]
        if adversary is None or not places:
            return _Attacked([], messages[:0])
        if isinstance(adversary.attack, Fault):
            return self._failed(server_round, messages, asked, places)
        rows = self._rows(messages, asked)
        attacking = torch.zeros(len(asked), dtype=torch.bool)
        attacking[places] = True
        sound = ~rows.faulty  # others are not looked at, and stay as they are
        own, honest = attacking & sound, ~attacking & sound
        if not adversary.usable(int(own.sum()), int(honest.sum())):
            return _Attacked([], messages[:0])
        places = torch.nonzero(own).flatten().tolist()
        values = adversary.craft(
            server_round,
            rows.subset(own),
            rows.subset(honest) if bool(honest.any()) else None,
            torch.nonzero(attacking[sound]).flatten().tolist(),
            list(self.arrays().values()),
            asked=len(asked),
            unit=torch.finfo(messages.dtype).eps / 2,
            rule_state=self._state,
        )
        kept = messages[places]
        reference = self._flat if self.config.message == "parameters" else None
        messages[places] = torch.from_numpy(written(values, self._flat.dtype, reference)).to(messages.device)
        return _Attacked(places, kept, strength=adversary.strength)

    def _failed(self, server_round: int, messages: Tensor, asked: Sequence[int], places: Sequence[int]) -> _Attacked:
        """Let clients fail, each for itself."""
        assert self._adversary is not None
        attacked = _Attacked(places, messages[places])
        own = attacked.honest.cpu().clone()  # faults keep it
        names = {layer.name for layer in self.layout}
        for place, row in zip(places, own, strict=True):
            parts = zip(self.layout, row.split_with_sizes(self._sizes), strict=True)
            layers = {layer.name: part.view(layer.shape) for layer, part in parts}
            answer = self._adversary.answer(server_round, asked[place], layers)
            if answer is None:
                attacked.unheard[asked[place]] = _SILENT
            elif isinstance(answer, str):
                attacked.unheard[asked[place]] = "ERROR"
            elif answer.keys() != names:
                attacked.unheard[asked[place]] = "NAMES"
            elif answer is not layers:
                messages[place] = torch.cat([answer[layer.name].flatten() for layer in self.layout])
        return attacked

    def _rows(self, messages: Tensor, clients: Sequence[int]) -> Rows:
        """Return the rows that the server makes of messages, layer by layer as they would come."""
        reference = None
        if self.config.message == "parameters":
            reference = self._sent.to(messages.device).split_with_sizes(self._sizes)
        return Rows.from_stacks(
            messages.split_with_sizes(self._sizes, 1),
            reference=reference,
            layout=self.layout,
            counts=self._counts if len(clients) == len(self._counts) else self._counts[clients],
            asked=self.config.sampled,
        )

    def _messages(self, server_round: int, asked: Sequence[int]) -> Tensor:
        """Return what the clients send, one per line."""
        config = self.config
        draws = [batch_generator(config, client, server_round) for client in asked]
        attackers = config.attackers_in(server_round) if config.data_attack else ()
        poisons = {
            place: Poison.of(config, client, server_round, attackers.index(client), self._scores(client))
            for place, client in enumerate(asked)
            if client in attackers
        }
        if config.message in ("gradient", "momentum"):
            messages = self._gradients_at(self._model, asked, draws, poisons)
            if config.message == "momentum":
                messages = self._with_momentum(messages, asked)
        else:
            sent = self._sent.to(self.learner.device)
            messages = sent.repeat(len(asked), 1) if self._personal is None else self._personal.models(sent, asked)
            local = self._grouped.layers(messages)
            tail = Tail(config.local_steps) if config.tail_averaging else None
            for _ in range(config.local_steps):
                self._gradients_at(local, asked, draws, poisons)
                for place in range(len(asked)):  # each in the shapes that a lone client has
                    direction = [layer[place] for layer in self._into]
                    descend([layer[place] for layer in local], direction, config.local_learning_rate)
                if tail:
                    tail.see([messages])
            if tail:
                tail.write([messages])
            if self._personal is not None:
                messages = self._personal.keep(messages, asked)
            if config.message == "delta":
                messages -= sent
        scaled = {place: poison for place, poison in poisons.items() if poison.attack.scale != 1}
        if scaled:
            messages = messages.clone()  # a momentum is kept unscaled
            for place, poison in scaled.items():
                messages[place] = poison.scaled([messages[place]], [self._sent.to(messages.device)])[0]
        return messages

    def _scores(self, client: int) -> Callable[[Tensor], Tensor]:
        """Return the scores that the model sent gives to inputs; what is personal in it is the client's."""
        if self._personal is None:
            return self.learner.scores
        return partial(self._personal.scores, client)

    def _gradients_at(
        self,
        parameters: Sequence[Tensor],
        asked: Sequence[int],
        draws: Sequence[torch.Generator],
        poisons: Mapping[int, Poison],
    ) -> Tensor:
        """Return every client's gradient (n, d) on its next batch; the next call takes the same memory."""
        config = self.config
        batches = [
            draw_batch(config, len(config.samples[client]), draw) for client, draw in zip(asked, draws, strict=True)
        ]
        first = self._first if len(asked) == config.clients else self._first[asked]
        rows = self._held.index_select(0, (torch.stack(batches) + first).view(-1)).to(self.learner.device)
        shape = (len(asked), config.batch_size)
        x = config.data_set.inputs(self._x.index_select(0, rows), self.learner.device)
        x = x.view(*shape, *x.shape[1:])
        y = self._y.index_select(0, rows).view(shape)
        for place, poison in poisons.items():
            own = x[place]
            inputs, y[place] = poison.batch(own, y[place])
            if inputs is not own:
                own.copy_(inputs)
        self._grouped.gradients(parameters, x, y, self._into)
        return self._gradients

    def _with_momentum(self, gradients: Tensor, asked: Sequence[int]) -> Tensor:
        """Return the next momenta of the clients asked, and keep them."""
        alpha = self.config.alpha
        if len(asked) == self.config.clients:  # nothing to pick
            previous = None if self._momentum is None else [self._momentum]
            (self._momentum,) = momentum_step(previous, [gradients], alpha)
            return self._momentum
        if self._momentum is None:
            self._momentum = gradients.new_zeros(self.config.clients, gradients.shape[1])
        (following,) = momentum_step([self._momentum[asked]], [gradients], alpha)
        fresh = ~self._started[asked]
        following[fresh] = momentum_step(None, [gradients[fresh]], alpha)[0]
        self._started[asked] = True
        self._momentum[asked] = following
        return following


class _Personal:
    """The personal parameters of all clients, one per line."""

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        assert config.split is not None
        self._split, self._learner = config.split, learner
        parameters = [parameter.detach() for parameter in learner.parameters]
        self._shared, self._own = (
            columns.to(learner.device) for columns in self._split.columns([p.numel() for p in parameters])
        )
        self._parts = [parameters[place] for place in self._split.personal]  # of the learner, to write into
        flat = torch.cat([part.reshape(-1) for part in self._parts])
        self._held = flat.repeat(config.clients, 1)

    def models(self, sent: Tensor, asked: Sequence[int]) -> Tensor:
        """Return the models (n, d) that clients start from."""
        models = sent.new_empty(len(asked), len(self._shared) + len(self._own))
        models[:, self._shared] = sent
        models[:, self._own] = self._held[asked]
        return models

    def keep(self, models: Tensor, asked: Sequence[int]) -> Tensor:
        """Keep what is personal in the clients' models, and return the rest."""
        self._held[asked] = models[:, self._own]
        return models[:, self._shared]

    def scores(self, client: int, x: Tensor) -> Tensor:
        """Return the scores that a learner holding the model sent gives with a client's parameters."""
        for part, held in zip(self._parts, self._layers(client), strict=True):
            part.copy_(held)
        return self._learner.scores(x)

    def joined(self, shared: Sequence[NDArray[Any]], client: int) -> list[NDArray[Any]]:
        """Return all arrays of a client's model."""
        return self._split.join(shared, [held.cpu().numpy() for held in self._layers(client)])

    def _layers(self, client: int) -> list[Tensor]:
        parts = self._held[client].split_with_sizes([part.numel() for part in self._parts])
        return [held.view(part.shape) for held, part in zip(parts, self._parts, strict=True)]
