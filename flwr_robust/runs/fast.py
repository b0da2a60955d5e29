"""The fast engine: a whole run in one process, without Flower, with all clients as one batched computation.

It is made for sweeps over many runs. Draws, poison, momentum, attacks, faults, rule and server step are the same
functions that the Flower apps call. It leaves out messages, contexts and records. The clients' data stay in memory. One
pass over the model gives all their gradients (`Grouped`), and their momenta are one tensor. Several runs may advance
together, with all their clients in one pass. For the same configuration and seed the model equals that of the apps to
the bit on a CPU. On a GPU it agrees up to the rounding of float32.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.adversary import written
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.poison import Poison
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.errors import ConfigurationError, FlwrRobustError, UntrainedError, check_integer
from flwr_robust.kernels import steps
from flwr_robust.protocol.messages import message_kind
from flwr_robust.protocol.momentum import momentum_step
from flwr_robust.protocol.rounds import batch_seeds, moved, sample_clients, settle_round, too_few
from flwr_robust.runs.config import RunConfig, pick_device
from flwr_robust.runs.fast_classes import ClassWise
from flwr_robust.runs.personal import ClientScore, evaluate_client, evaluated_clients
from flwr_robust.runs.results import Arrays, RoundResult, document, evaluator, write
from flwr_robust.runs.world import World
from flwr_robust.tasks import Grouped, Tail, descend

__all__ = ["batches", "simulate", "simulate_many", "unbatched"]

# Below this size of a run's messages, rules are faster on the CPU, because a GPU needs too many launches.
_SMALL = 1 << 20


def unbatched(config: RunConfig) -> str | None:
    """Return None, or a sentence that says why `simulate` cannot run a configuration."""
    if config.audit:
        return "an audit log tells of messages"
    guards = (config.quarantine_after, config.rest_after, config.probation, config.deadline, config.wait)
    if any(guards) or config.on_infeasible != "keep":
        return "who is asked, how long, and a stop after an infeasible round, are for the guard of Flower's strategies"
    return Grouped.check(config.outline)


def simulate(config: RunConfig) -> dict[str, Any]:
    """Run a configuration to its end.

    Parameters
    ----------
    config : RunConfig
        A configuration for which `unbatched` returns None.

    Returns
    -------
    dict
        The document that the ServerApp writes. This function also writes it to ``output``, and the model to
        ``save_model``.

    Raises
    ------
    ConfigurationError
        If this engine cannot run the configuration, or its model does not fit the rule.
    UntrainedError
        If no round changed the model.

    Examples
    --------
    >>> config = RunConfig(rounds=30, defence="trimmed_mean(f=1)", attack="label_flip()", attackers=1)
    >>> simulate(config)["outcomes"]["OK"]
    30
    """
    ((_, found),) = simulate_many([config])
    if isinstance(found, FlwrRobustError):
        raise found
    return found


def simulate_many(
    configs: Sequence[RunConfig], most: int = 1
) -> Iterator[tuple[int, dict[str, Any] | FlwrRobustError]]:
    """Run several configurations to their end, side by side, round by round.

    Runs that advance together have the same data, model and shapes of messages. So one pass over the model gives the
    gradients of all their clients. Seeds, rule, attack, partition and the server's step may differ. With small models
    this is what keeps a GPU busy. Each run has the result of `simulate`: to the bit on a CPU, up to rounding on a GPU.

    Parameters
    ----------
    configs : sequence of RunConfig
        The runs. A run that `simulate` refuses does not stop the others.
    most : int
        How many runs may advance together; >= 1. The momenta and gradients of all their clients are in memory at once.

    Yields
    ------
    (int, dict or FlwrRobustError)
        The index of a configuration, and what `simulate` returns or raises for it. The results of one group follow each
        other as soon as the group has ended. In them ``runs_together`` is the size of the group, and a round's time is
        that of the whole group.

    Raises
    ------
    ConfigurationError
        If ``most`` is less than 1.

    Examples
    --------
    >>> configs = [RunConfig(rounds=10, seed=seed, defence="median()") for seed in (0, 1, 2)]
    >>> [(place, found["outcomes"]["OK"]) for place, found in simulate_many(configs, most=2)]
    [(0, 10), (1, 10), (2, 10)]
    """
    check_integer("simulate_many", "most", most, 1)
    for chosen in batches(configs, most):
        yield from zip(chosen, _together([configs[place] for place in chosen]), strict=True)


# The values that runs must share to advance together.
_ALIKE = (
    *("task", "data", "model", "clients", "fraction_train", "message", "alpha", "local_steps", "batch_size"),
    *("batching", "weight_decay", "rounds", "threads", "device", "tail_averaging", "personal"),
)


def batches(configs: Sequence[RunConfig], most: int) -> list[list[int]]:
    """Return groups of at most ``most`` runs that may advance together, as indices of configurations.

    Runs with class-wise momenta advance alone, because the sizes of their batches vary.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, config in enumerate(configs):
        alike = tuple(getattr(config, key) for key in _ALIKE)
        groups.setdefault((*alike, place if message_kind(config.message).class_wise else None), []).append(place)
    return [places[start : start + most] for places in groups.values() for start in range(0, len(places), most)]


def _together(configs: Sequence[RunConfig]) -> list[dict[str, Any] | FlwrRobustError]:
    """Run similar configurations side by side; return the result of each."""
    found: dict[int, dict[str, Any] | FlwrRobustError] = {}
    runs: dict[int, _Run] = {}
    for place, config in enumerate(configs):
        try:
            if sentence := unbatched(config):
                raise ConfigurationError(f"simulation: {sentence}; run it in process")
            world = World(config)
            world.check_senders()
            torch.set_num_threads(config.threads)
            runs[place] = _Run(world)
        except FlwrRobustError as error:
            found[place] = error
    if runs:
        ends = _advance(list(runs.values()))
        for place, run in runs.items():
            try:
                found[place] = run.document(ends, len(runs))
            except UntrainedError as error:
                found[place] = error
    return [found[place] for place in range(len(configs))]


def _advance(runs: Sequence[_Run]) -> list[float]:
    """Run all rounds of several runs; return the end time of each round, from round 0."""
    clients = None if runs[0].class_wise else _Clients(runs)
    ends: list[float] = []
    for server_round in range(runs[0].config.rounds + 1):
        if server_round > 0 and clients is None:
            for run in runs:
                run.settle_classes(server_round)
        elif server_round > 0 and clients is not None:
            asked = [run.asked(server_round) for run in runs]
            messages, kept = clients.messages(server_round, asked)
            for run, own, places in zip(runs, messages.view(len(runs), len(asked[0]), -1), asked, strict=True):
                run.settle(server_round, own, places, kept)
        ends.append(time.perf_counter())
        for run in runs:
            run.measure(server_round)
    ends.append(time.perf_counter())
    return ends


_SILENT = ""  # used as the reason if a client did not answer


@dataclass(frozen=True)
class _Attacked:
    """A round's messages after the attack: which were overwritten, their originals, and which are lost."""

    places: Sequence[int]
    honest: Tensor
    unheard: dict[int, str] = field(default_factory=dict)  # the reasons, by client
    strength: float | None = None


class _Run:
    """The server and the attackers of a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.config = config = world.config
        self.kind = world.kind
        device = pick_device(config.device)
        self._learner = config.learner(device)
        self.initial = self._learner.arrays()
        shared = range(len(self.initial)) if config.split is None else config.split.shared
        self.layout = [Layer(self._learner.names[place], self.initial[place].shape) for place in shared]
        if sentence := config.rule.check_layout(self.layout):
            raise ConfigurationError(sentence)
        self.sizes = [layer.size for layer in self.layout]
        self.flat = np.concatenate([self.initial[place].ravel() for place in shared])
        self.counts = torch.tensor([len(samples) for samples in config.samples], dtype=torch.float64)
        self.personal: Callable[[int], list[NDArray[Any]]] | None = None  # the part of the model that a client keeps
        if config.split is not None:
            evaluated_clients(config)  # to raise its error
        self._evaluate = evaluator(config, device, None if config.split is None else self._client_scores)
        self._curve: dict[int, dict[str, float]] = {}
        self._history: list[RoundResult] = []
        self._state = config.rule.init()
        self._known: tuple[tuple[int, torch.Size], Rows] | None = None  # the last rows, and where they are stored
        self._adversary = world.adversary()
        self.class_wise: ClassWise | None = None
        if self.kind.class_wise:
            task, grouped = config.data_set, Grouped(self._learner)
            x, y = task.x_train.to(device), task.y_train.to(device)
            self.class_wise = ClassWise(world, grouped, x, y, self.layout, self._rows, self._adversary)

    def arrays(self) -> Arrays:
        """Return the model's arrays by name."""
        parts = torch.from_numpy(self.flat).split_with_sizes(self.sizes)
        return {layer.name: p.numpy().reshape(layer.shape) for layer, p in zip(self.layout, parts, strict=True)}

    def _client_scores(self, model: Arrays) -> list[ClientScore]:
        """Return the honest clients' scores with the shared arrays and their own."""
        assert self.config.split is not None
        assert self.personal is not None
        found = []
        for client in evaluated_clients(self.config):
            self._learner.load(self.config.split.join(list(model.values()), self.personal(client)))
            found.append(evaluate_client(self.config, self._learner, client))
        return found

    def asked(self, server_round: int) -> list[int]:
        """Return the clients that are asked in a round."""
        config = self.config
        return sample_clients(config.seed, "train", server_round, config.clients, config.sampled)

    def measure(self, server_round: int) -> None:
        """Evaluate the model if the round is one with an evaluation."""
        if metrics := self._evaluate(server_round, self.arrays):
            self._curve[server_round] = metrics

    def document(self, ends: Sequence[float], together: int) -> dict[str, Any]:
        """Write the run's result, and return it."""
        config, *rounds = self.config, *ends
        gpus = dict.fromkeys(range(config.clients), os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        seconds = rounds.pop() - rounds[0]
        found = document(config, self.arrays(), self._curve, self._history, rounds, seconds, gpus)
        if together > 1:
            found["runs_together"] = together
        write(config, self.arrays(), found)
        return found

    def settle_classes(self, server_round: int) -> None:
        """Run a round of class-wise momenta and step the model."""
        assert self.class_wise is not None
        shared = [parameter.detach().unsqueeze(0) for parameter in self._learner.parameters]
        for parameter, part in zip(shared, torch.from_numpy(self.flat).split_with_sizes(self.sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
        told, change = self.class_wise.round(server_round, self.asked(server_round), shared)
        if change is not None:
            self.flat[:] = moved(self.flat, change)
        self._history.append(told)

    def settle(self, server_round: int, messages: Tensor, asked: Sequence[int], kept: bool) -> None:
        """Aggregate a round's messages (n, d) and step the model; restore messages that clients keep."""
        attacked = self._attacked(server_round, messages, asked)
        unheard = attacked.unheard
        seed = self.config.seed
        rows = self._rows(messages, asked, seed) if not unheard else None
        if rows is None or bool(rows.faulty.any()):
            found = self._rows(messages, asked) if rows is None else rows
            for client, faulty in zip(asked, found.faulty.tolist(), strict=True):
                if faulty:  # the server refuses such a message
                    unheard.setdefault(client, "NOT_FINITE")
            heard = [client not in unheard for client in asked]
            rows = self._rows(messages[heard], list(itertools.compress(asked, heard)), seed) if any(heard) else None
        rule, least = self.config.rule, self.config.min_replies or None
        lacking = too_few(rule, 0 if rows is None else rows.n, len(asked), least)
        settled = settle_round(rule, {None: rows}, self._state, self.world.step, lacking=lacking)
        self._state = settled.state
        if settled.change is not None:
            self.flat[:] = moved(self.flat, settled.change)
        if kept and attacked.places:
            messages[attacked.places] = attacked.honest
        self._history.append(
            RoundResult(
                server_round,
                [client for client in asked if client not in unheard] if unheard else asked,
                () if settled.aggregate is None else settled.aggregate.weights.tolist(),
                [(client, reason) for client in asked if (reason := unheard.get(client))] if unheard else (),
                settled.outcome,
                [client for client in asked if unheard.get(client) == _SILENT] if unheard else (),
                attacked.strength,
            )
        )

    def _attacked(self, server_round: int, messages: Tensor, asked: Sequence[int]) -> _Attacked:
        """Let the attackers among the clients asked overwrite their messages, or fail."""
        adversary = self._adversary
        if adversary is None:
            return _Attacked([], messages[:0])
        attackers = self.config.attackers_in(server_round)
        places = [place for place, client in enumerate(asked) if client in attackers]
        if not places:
            return _Attacked([], messages[:0])
        if isinstance(adversary.attack, Fault):
            return self._failed(server_round, messages, asked, places)
        rows = self._rows(messages, asked)
        attacking = torch.zeros(len(asked), dtype=torch.bool)
        attacking[places] = True
        sound = ~rows.faulty  # other messages are invisible to the attack and stay unchanged
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
        reference = self.flat if self.kind.relative else None
        messages[places] = torch.from_numpy(written(values, self.flat.dtype, reference)).to(messages.device)
        return _Attacked(places, kept, strength=adversary.strength)

    def _failed(self, server_round: int, messages: Tensor, asked: Sequence[int], places: Sequence[int]) -> _Attacked:
        """Let each client fail independently."""
        assert self._adversary is not None
        attacked = _Attacked(places, messages[places])
        own = attacked.honest.cpu().clone()  # faults keep the message
        names = {layer.name for layer in self.layout}
        for place, row in zip(places, own, strict=True):
            parts = zip(self.layout, row.split_with_sizes(self.sizes), strict=True)
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

    def _rows(self, messages: Tensor, clients: Sequence[int], seed: int | None = None) -> Rows:
        """Return the rows of messages, layer by layer as replies would hold them; the attackers' have no seed."""
        counts = self.counts if len(clients) == len(self.counts) else self.counts[clients]
        where = messages.data_ptr(), messages.shape
        if self._known is not None and where == self._known[0]:  # the same rows as before; their source is kept
            rows = self._known[1].renewed(counts)
            rows.seed = seed
            return rows
        reference = None
        if self.kind.relative:
            reference = torch.from_numpy(self.flat).to(messages.device).split_with_sizes(self.sizes)
        stacks = messages.split_with_sizes(self.sizes, 1)
        rows = Rows.from_stacks(
            stacks, reference=reference, layout=self.layout, counts=counts, asked=self.config.sampled, seed=seed
        )
        if messages.device.type == "cpu":
            self._known = where, rows
        return rows


class _Clients:
    """The clients of runs that advance together, in the order of runs and, in each run, of clients."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        self._runs = runs
        self.config = config = runs[0].config
        self._kind = runs[0].kind
        self._learner = config.learner(pick_device(config.device))
        task, device = config.data_set, self._learner.device
        self._device = device
        samples = [own for run in runs for own in run.config.samples]
        self._counts = np.array([len(own) for own in samples])
        self._held = np.concatenate(samples)  # client after client; each begins at
        self._first = np.cumsum(self._counts) - self._counts
        self._grouped = Grouped(self._learner)
        models = np.stack([run.flat for run in runs])
        for run, model in zip(runs, models, strict=True):
            run.flat = model
        self._models = torch.from_numpy(models)  # the runs' own memory
        self._sizes = runs[0].sizes
        self._model = self._grouped.models(len(runs))
        places = range(len(self._model)) if config.split is None else config.split.shared
        self._shared = [self._model[place] for place in places]
        n, width = len(runs) * config.sampled, sum(parameter.numel() for parameter in self._learner.parameters)
        self._gradients = torch.empty(n, width, device=device)
        self._into = self._grouped.layers(self._gradients)
        x, y = task.x_train.to(device), task.y_train.to(device)
        self._samples = steps.Samples(x, y, task.scale, task.shift, n, config.batch_size)
        if self._kind.local_steps:
            self._local = self._grouped.models(n)
            self._messages = torch.empty(n, models.shape[1], device=device)
            self._sent_parts = [self._local[place] for place in places]
            rates = [run.config.local_learning_rate for run in runs for _ in range(config.sampled)]
            # Every client's parameters, gradient and step size.
            self._alone = list(zip(zip(*self._local, strict=True), zip(*self._into, strict=True), rates, strict=True))
        total = len(runs) * config.clients
        self._kept: dict[int, Tensor] = {}  # the personal arrays of all clients, by position in the model
        for place in () if config.split is None else config.split.personal:
            first = torch.stack([torch.from_numpy(run.initial[place]) for run in runs])
            self._kept[place] = first.repeat_interleave(config.clients, 0).to(device)
        for number, run in enumerate(runs):
            run.personal = partial(self._personal, number)
        self._whole = config.sampled == config.clients
        self._all = np.arange(total)
        self._fresh = np.ones(total, dtype=np.bool_)  # clients that have never been asked
        self._compiled: tuple[NDArray[Any], ...] = ()
        if self._kind.momentum:
            self._momenta = torch.zeros(total, width, device=device)
            if steps.fits(self._gradients):  # the weight decay is then added there
                self._compiled = self._momenta.numpy(), self._gradients.numpy(), models
        at = self._local if self._kind.local_steps else self._model
        where = (at, self._samples.inputs, self._samples.labels, self._into)
        self._walk = self._grouped.prepared(*where, decay=not self._compiled)

    def messages(self, server_round: int, asked: Sequence[Sequence[int]]) -> tuple[Tensor, bool]:
        """Return the messages of the clients asked, one per row, and whether the clients keep this memory.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        asked : sequence of sequence of int
            The clients that each run asks.
        """
        config = self.config
        which = self._all
        if not self._whole:
            which = np.array([run * config.clients + client for run, own in enumerate(asked) for client in own])
        sent = self._models.to(self._device)
        for model, part in zip(self._shared, sent.split_with_sizes(self._sizes, 1), strict=True):
            model.copy_(part.view_as(model))
        seeds = [
            seed
            for run, own in zip(self._runs, asked, strict=True)
            for seed in batch_seeds(run.config.seed, own, server_round)
        ]
        rows = steps.draw_samples(
            seeds,
            self._counts if self._whole else self._counts[which],
            self._first if self._whole else self._first[which],
            self._held,
            config.local_steps,
            config.batch_size,
            consecutive=config.batching == "consecutive",
        )
        poisons = self._poisons(server_round, asked)
        kept = False
        if not self._kind.local_steps:
            self._take_gradients(rows[0], poisons)
            messages = self._gradients
            if self._kind.momentum:
                messages, kept = self._with_momentum(which), self._whole
        else:
            lines = torch.from_numpy(which).to(self._device)
            for mine, model in zip(self._sent_parts, self._shared, strict=True):
                mine.view(len(sent), config.sampled, *mine.shape[1:]).copy_(model.unsqueeze(1))
            for place, kept_parts in self._kept.items():
                self._local[place].copy_(kept_parts[lines])
            tail = Tail(config.local_steps) if config.tail_averaging else None
            for drawn in rows:
                self._take_gradients(drawn, poisons)
                for own, direction, rate in self._alone:  # each with the shapes of a single client
                    descend(own, direction, rate)
                if tail:
                    tail.see(self._local)
            if tail:
                tail.write(self._local)
            for place, kept_parts in self._kept.items():
                kept_parts[lines] = self._local[place]
            messages = torch.cat([mine.flatten(1) for mine in self._sent_parts], 1, out=self._messages)
            if not self._kind.relative:
                messages.view(len(sent), config.sampled, -1).sub_(sent.unsqueeze(1))
        if scaled := {place: poison for place, poison in poisons.items() if poison.attack.scale != 1}:
            messages, kept = messages.clone(), False  # a momentum is kept unscaled
            for place, poison in scaled.items():
                messages[place] = poison.scaled([messages[place]], [sent[place // config.sampled]])[0]
        if len(self._runs) > 1 and messages.device.type != "cpu" and messages[0].numel() * config.sampled <= _SMALL:
            return messages.cpu(), False
        return messages, kept

    def _poisons(self, server_round: int, asked: Sequence[Sequence[int]]) -> dict[int, Poison]:
        """Return the attacks on clients' data, by the positions of the clients."""
        found = {}
        for number, (run, own) in enumerate(zip(self._runs, asked, strict=True)):
            poisons = run.world.poisons(own, server_round, partial(self._scores, number))
            for place, client in enumerate(own, number * self.config.sampled):
                if client in poisons:
                    found[place] = poisons[client]
        return found

    def _scores(self, run: int, client: int, x: Tensor) -> Tensor:
        """Return the scores of the sent model for inputs; personal arrays are the client's own."""
        for place, (parameter, sent) in enumerate(zip(self._learner.parameters, self._model, strict=True)):
            own = self._kept.get(place)
            parameter.detach().copy_(sent[run] if own is None else own[run * self.config.clients + client])
        return self._learner.scores(x)

    def _personal(self, run: int, client: int) -> list[NDArray[Any]]:
        """Return the part of the model that a client keeps."""
        line = run * self.config.clients + client
        return [self._kept[place][line].cpu().numpy() for place in sorted(self._kept)]

    def _take_gradients(self, rows: steps.Integers, poisons: Mapping[int, Poison]) -> None:
        """Compute every client's gradient on a batch; the samples are given client after client."""
        self._samples.take(rows)
        x, y = self._samples.inputs, self._samples.labels
        for place, poison in poisons.items():
            own = x[place]
            inputs, y[place] = poison.batch(own, y[place])
            if inputs is not own:
                own.copy_(inputs)
        self._walk()

    def _with_momentum(self, which: steps.Integers) -> Tensor:
        """Compute the next momenta of the clients asked, keep and return them."""
        fresh, alpha = self._fresh[which], self.config.alpha
        self._fresh[which] = False
        if self._compiled:
            kept, gradients, models = self._compiled
            decay = self._learner.weight_decay
            steps.step_momenta(kept, which, fresh, gradients, models, decay, alpha, back=not self._whole)
            return self._momenta if self._whole else self._gradients
        lines = torch.from_numpy(which).to(self._device)
        (following,) = momentum_step([self._momenta[lines]], [self._gradients], alpha)
        if fresh.any():
            begun = torch.from_numpy(fresh).to(self._device)
            following[begun] = self._gradients[begun]
        self._momenta[lines] = following
        return self._momenta if self._whole else following
