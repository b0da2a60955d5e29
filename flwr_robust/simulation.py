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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flwr_robust.config import RunConfig, pick_device
from flwr_robust.errors import ConfigurationError
from flwr_robust.momentum import momentum_step
from flwr_robust.results import Arrays, RoundResult, document, evaluator, write
from flwr_robust.rounds import Poison, batch_generator, draw_batch, moved, sample_clients, server_step, settle
from flwr_robust.rows import Layer, Rows
from flwr_robust.rule import Outcome
from flwr_robust.tasks import MODELS, Grouped, descend

__all__ = ["simulate", "unbatched"]


def unbatched(config: RunConfig) -> str | None:
    """Return None, or the sentence that says why a run is not one for `simulate`."""
    if config.rule.needs_trust:
        return f"{config.rule} compares with an update of the server's own"
    if config.audit:
        return "an audit log tells of messages"
    if config.quarantine_after or config.on_infeasible != "keep":
        return "quarantine, and a stop after an infeasible round, are the guard's of Flower's strategies"
    if config.attack_object is not None and config.data_attack is None:
        return f"{config.attack_object} is done to Flower's messages"
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
    torch.set_num_threads(config.threads)
    federation = _Federation(config)
    if sentence := config.rule.check_layout(federation.layout):
        raise ConfigurationError(sentence)
    evaluate = evaluator(config, federation.learner.device)
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
        self.layout = [Layer(name, held.shape) for name, held in zip(self.learner.names, arrays, strict=True)]
        self._sizes = [layer.size for layer in self.layout]
        self._flat = np.concatenate([held.ravel() for held in arrays])
        self._sent = torch.from_numpy(self._flat)  # the same memory
        self._shared = [parameter.detach().unsqueeze(0) for parameter in self.learner.parameters]
        self._state = config.rule.init()
        self._momentum: Tensor | None = None  # (clients, d); where not all are asked each round, the lines count of
        self._started = torch.zeros(config.clients, dtype=torch.bool)  # clients that were asked before
        self._grouped = Grouped(self.learner)
        self._gradients = torch.empty(config.sampled, self._sent.numel(), device=device)
        self._into = self._grouped.layers(self._gradients)

    def arrays(self) -> Arrays:
        """Return the model's arrays by name."""
        parts = self._sent.split_with_sizes(self._sizes)
        return {layer.name: p.numpy().reshape(layer.shape) for layer, p in zip(self.layout, parts, strict=True)}

    def round(self, server_round: int) -> RoundResult:
        """Run one round and step the model."""
        config = self.config
        asked = sample_clients(config.seed, "train", server_round, config.clients, config.sampled)
        for parameter, part in zip(self._shared, self._sent.split_with_sizes(self._sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
        messages = self._messages(server_round, asked)
        rows = self._rows(messages, asked)
        refused: list[tuple[int | None, str]] = []
        if bool(rows.faulty.any()):  # the server lets no such message in
            sound = ~rows.faulty
            refused = [(client, "NOT_FINITE") for client, whole in zip(asked, sound.tolist(), strict=True) if not whole]
            asked = [client for client, whole in zip(asked, sound.tolist(), strict=True) if whole]
            if not asked:
                return RoundResult(server_round, (), (), refused, Outcome.INFEASIBLE)
            rows = self._rows(messages[sound], asked)
        settled = settle(config.rule, rows, self._state)
        self._state, result = settled.state, settled.result
        if result is not None and settled.outcome is not Outcome.INFEASIBLE:
            self._flat[:] = moved(self._flat, server_step(config.message, config.server_learning_rate, result.value))
        return RoundResult(
            server_round, asked, () if result is None else result.weights.tolist(), refused, settled.outcome
        )

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
        attackers = config.attackers_in(server_round)
        poisons = {
            place: Poison.of(config, client, server_round, attackers.index(client), self.learner.scores)
            for place, client in enumerate(asked)
            if client in attackers
        }
        if config.message in ("gradient", "momentum"):
            messages = self._gradients_at(self._shared, asked, draws, poisons)
            if config.message == "momentum":
                messages = self._with_momentum(messages, asked)
        else:
            sent = self._sent.to(self.learner.device)
            messages = sent.repeat(len(asked), 1)
            local = self._grouped.layers(messages)
            for _ in range(config.local_steps):
                self._gradients_at(local, asked, draws, poisons)
                for place in range(len(asked)):  # each in the shapes that a lone client has
                    direction = [layer[place] for layer in self._into]
                    descend([layer[place] for layer in local], direction, config.local_learning_rate)
            if config.message == "delta":
                messages -= sent
        scaled = {place: poison for place, poison in poisons.items() if poison.attack.scale != 1}
        if scaled:
            messages = messages.clone()  # a momentum is kept unscaled
            for place, poison in scaled.items():
                messages[place] = poison.scaled([messages[place]], [self._sent.to(messages.device)])[0]
        return messages

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
