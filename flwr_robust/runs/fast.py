"""The fast engine: a whole run in one process, without Flower, with the clients' messages as one tensor.

It is made for sweeps over many runs. Draws, poison, momentum, attacks, faults, rule and server step are the same
functions that the Flower apps call. It leaves out messages, contexts and records. The clients' data stay in memory, and
their momenta are one tensor. If `Grouped` knows all layers of the model, one pass over it gives all gradients, even
those of several runs that advance together. With any other model it computes one client after the other. For the same
configuration and seed the model equals that of the apps to the bit on a CPU. On a GPU it agrees up to the rounding of
float32.
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
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.errors import ConfigurationError, FlwrRobustError, UntrainedError, check_integer
from flwr_robust.kernels import steps
from flwr_robust.protocol.buffers import change, following, learnt
from flwr_robust.protocol.messages import MessageKind, message_kind
from flwr_robust.protocol.momentum import momentum_step
from flwr_robust.protocol.rounds import batch_seeds, moved, sample_clients, settle_round, too_few
from flwr_robust.runs.config import RunConfig, pick_device
from flwr_robust.runs.fast_classes import ClassWise
from flwr_robust.runs.fast_gradients import Places, Turn, work_for
from flwr_robust.runs.personal import ClientScore, evaluate_client, evaluated_clients
from flwr_robust.runs.results import Arrays, RoundResult, document, evaluator, write
from flwr_robust.runs.world import World
from flwr_robust.seeds import derive_each
from flwr_robust.tasks import Grouped, Learner, depends_on_data

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
    return _unlike(config)


def _unlike(config: RunConfig) -> str | None:
    """Return a sentence if a model's arrays do not fit into one tensor per kind of message."""
    if not depends_on_data(config.model):
        return None
    state = {name: array.numpy() for name, array in config.outline.state_dict().items()}
    names = learnt(state)
    if len(types := sorted({str(state[name].dtype) for name in names})) > 1:
        return f"the learnt arrays of the model are of several types, {' and '.join(types)}"
    if not message_kind(config.message).local_steps and len(names) < len(state):
        odd = next(name for name in state if name not in names)
        return f"the model has a parameter {odd} that is not learnt, because of its name or its size"
    return None


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
    *("batching", "loss", "weight_decay", "rounds", "threads", "device", "tail_averaging", "personal"),
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
            world.check_counts()
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
            messages = clients.messages(server_round, asked)
            for number, (run, own) in enumerate(zip(runs, asked, strict=True)):
                run.settle(server_round, messages.part(number, len(own)), own)
        ends.append(time.perf_counter())
        for run in runs:
            run.measure(server_round)
    ends.append(time.perf_counter())
    return ends


_SILENT = ""  # used as the reason if a client did not answer


@dataclass(frozen=True)
class _Messages:
    """What clients send in a round."""

    rows: Tensor  # (n, d): the learnt arrays, side by side
    buffers: Mapping[int, NDArray[Any]]  # (n, *shape) by place
    kept: bool  # whether the clients keep the rows' memory

    def part(self, run: int, count: int) -> _Messages:
        """Return the messages of the clients of one run; all runs have as many."""
        own = slice(run * count, (run + 1) * count)
        return _Messages(self.rows[own], {place: held[own] for place, held in self.buffers.items()}, self.kept)

    def refused(self, suspected: Tensor) -> list[bool]:
        """Say which messages hold NaN or Inf; only rows that are suspected are read."""
        found = np.array(_not_finite(self.rows, suspected))
        for held in self.buffers.values():
            if held.dtype.kind == "f":
                found |= ~np.isfinite(held).reshape(len(held), -1).all(1)
        return [bool(each) for each in found]


def _not_finite(rows: Tensor, suspected: Tensor) -> list[bool]:
    """Say which of the suspected rows hold NaN or Inf; others have lengths whose squares are too large."""
    return [each and not bool(rows[line].isfinite().all()) for line, each in enumerate(suspected.tolist())]


@dataclass(frozen=True)
class _Attacked:
    """A round's messages after the attack: which were overwritten, their originals, and which are lost."""

    places: Sequence[int]
    honest: Tensor
    unheard: dict[int, str] = field(default_factory=dict)  # the reasons, by client
    strength: float | None = None


def _one_by_one(learner: Learner, kind: MessageKind) -> str | None:
    """Return why a model's gradients are computed for one client after the other, or None."""
    if sentence := Grouped.check(learner.model, learner.objective):
        return sentence
    if not Grouped.draws(learner.model):
        return None
    if kind.class_wise:
        return "the model draws for one class after the other"
    return "the model draws on a GPU" if learner.device.type != "cpu" else None


class _Run:
    """The server and the attackers of a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.config = config = world.config
        self.kind = world.kind
        device = pick_device(config.device)
        self._learner = config.learner(device)
        self.initial, self._names = self._learner.arrays(), self._learner.names
        self.places = places = Places.of(self._names, self.initial, config.split)
        self.one_by_one = _one_by_one(self._learner, self.kind)
        self.layout = [Layer(self._names[place], self.initial[place].shape) for place in places.learnt]
        if sentence := config.rule.check_layout(self.layout):
            raise ConfigurationError(sentence)
        self.sizes = [layer.size for layer in self.layout]
        self.flat = np.concatenate([self.initial[place].ravel() for place in places.learnt])
        self.buffers = {place: self.initial[place] for place in places.buffers}
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
            together = self.one_by_one is None
            self.class_wise = ClassWise(world, self._learner, together, self.layout, self._rows, self._adversary)

    def arrays(self) -> Arrays:
        """Return the arrays of the model that are sent, by name."""
        held = {**dict(zip(self.places.learnt, self._learnt(), strict=True)), **self.buffers}
        return {self._names[place]: held[place] for place in self.places.shared}

    def _learnt(self) -> list[NDArray[Any]]:
        """Return the learnt arrays."""
        parts = torch.from_numpy(self.flat).split_with_sizes(self.sizes)
        return [part.numpy().reshape(layer.shape) for layer, part in zip(self.layout, parts, strict=True)]

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
        found["gradients"] = "batched" if self.one_by_one is None else f"one client at a time: {self.one_by_one}"
        if together > 1:
            found["runs_together"] = together
        write(config, self.arrays(), found)
        return found

    def settle_classes(self, server_round: int) -> None:
        """Run a round of class-wise momenta and step the model."""
        assert self.class_wise is not None
        self._learner.load(self._learnt())
        told, step = self.class_wise.round(server_round, self.asked(server_round))
        if step is not None:
            self.flat[:] = moved(self.flat, step)
        self._history.append(told)

    def settle(self, server_round: int, messages: _Messages, asked: Sequence[int]) -> None:
        """Aggregate a round's messages and step the model; restore messages that clients keep."""
        attacked = self._attacked(server_round, messages, asked)
        unheard = attacked.unheard
        seed = self.config.seed
        rows = self._rows(messages.rows, asked, seed) if not unheard else None
        found = self._rows(messages.rows, asked) if rows is None else rows
        refused = messages.refused(found.faulty)
        if rows is None or any(refused):
            for client, faulty in zip(asked, refused, strict=True):
                if faulty:  # the server refuses such a message
                    unheard.setdefault(client, "NOT_FINITE")
            heard = [client not in unheard for client in asked]
            senders = list(itertools.compress(asked, heard))
            rows = self._rows(messages.rows[heard], senders, seed) if senders else None
        rule, least = self.config.rule, self.config.min_replies or None
        lacking = too_few(rule, 0 if rows is None else rows.n, len(asked), least)
        settled = settle_round(rule, {None: rows}, self._state, self.world.step, lacking=lacking)
        self._state = settled.state
        if settled.change is not None:
            self.flat[:] = moved(self.flat, settled.change)
            heard = [client not in unheard for client in asked]
            for place, held in messages.buffers.items():
                self.buffers[place] = following(self.kind, self.buffers[place], list(held[heard]))
        if messages.kept and attacked.places:
            messages.rows[attacked.places] = attacked.honest
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

    def _attacked(self, server_round: int, messages: _Messages, asked: Sequence[int]) -> _Attacked:
        """Let the attackers among the clients asked overwrite their messages, or fail."""
        adversary, sent = self._adversary, messages.rows
        if adversary is None:
            return _Attacked([], sent[:0])
        attackers = self.config.attackers_in(server_round)
        places = [place for place, client in enumerate(asked) if client in attackers]
        if not places:
            return _Attacked([], sent[:0])
        if isinstance(adversary.attack, Fault):
            return self._failed(server_round, messages, asked, places)
        rows = self._rows(sent, asked)
        attacking = torch.zeros(len(asked), dtype=torch.bool)
        attacking[places] = True
        # Messages that are not finite are invisible to the attack and stay unchanged.
        sound = ~torch.tensor(_not_finite(sent, rows.faulty))
        own, honest = attacking & sound, ~attacking & sound
        if not adversary.usable(int(own.sum()), int(honest.sum())):
            return _Attacked([], sent[:0])
        places = torch.nonzero(own).flatten().tolist()
        values = adversary.craft(
            server_round,
            rows.subset(own),
            rows.subset(honest) if bool(honest.any()) else None,
            torch.nonzero(attacking[sound]).flatten().tolist(),
            self._learnt(),
            asked=len(asked),
            unit=torch.finfo(sent.dtype).eps / 2,
            rule_state=self._state,
        )
        honestly = sent[places]
        reference = self.flat if self.kind.relative else None
        sent[places] = torch.from_numpy(written(values, self.flat.dtype, reference)).to(sent.device)
        return _Attacked(places, honestly, strength=adversary.strength)

    def _failed(self, server_round: int, messages: _Messages, asked: Sequence[int], places: Sequence[int]) -> _Attacked:
        """Let each client fail independently."""
        assert self._adversary is not None
        attacked = _Attacked(places, messages.rows[places])
        own = attacked.honest.cpu().clone()  # faults keep the message
        learnt_names = [layer.name for layer in self.layout]
        for place, row in zip(places, own, strict=True):
            parts = zip(self.layout, row.split_with_sizes(self.sizes), strict=True)
            held = {layer.name: part.view(layer.shape) for layer, part in parts}
            held |= {self._names[p]: torch.tensor(buffer[place]) for p, buffer in messages.buffers.items()}
            layers = {name: held[name] for name in self._names if name in held}
            answer = self._adversary.answer(server_round, asked[place], layers)
            if answer is None:
                attacked.unheard[asked[place]] = _SILENT
            elif isinstance(answer, str):
                attacked.unheard[asked[place]] = "ERROR"
            elif answer.keys() != layers.keys():
                attacked.unheard[asked[place]] = "NAMES"
            elif answer is not layers:
                messages.rows[place] = torch.cat([answer[name].flatten() for name in learnt_names])
                for p, buffer in messages.buffers.items():
                    buffer[place] = answer[self._names[p]].numpy()
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
        first = runs[0]
        self.config = config = first.config
        self._kind = first.kind
        worlds, initial = [run.world for run in runs], [run.initial for run in runs]
        self._work = work = work_for(worlds, first.places, initial, first.one_by_one)
        samples = [own for run in runs for own in run.config.samples]
        self._counts = np.array([len(own) for own in samples])
        self._held = np.concatenate(samples)  # client after client; each begins at
        self._first = np.cumsum(self._counts) - self._counts
        models = np.stack([run.flat for run in runs])
        for number, (run, model) in enumerate(zip(runs, models, strict=True)):
            run.flat = model
            run.personal = partial(self._personal, number)
        self._models = torch.from_numpy(models)  # the runs' own memory
        total = len(runs) * config.clients
        self._whole = config.sampled == config.clients
        self._all = np.arange(total)
        self._fresh = np.ones(total, dtype=np.bool_)  # clients that have never been asked
        if self._kind.momentum:
            self._momenta = torch.zeros(total, models.shape[1], dtype=self._models.dtype, device=work.device)

    def messages(self, server_round: int, asked: Sequence[Sequence[int]]) -> _Messages:
        """Return the messages of the clients asked, in their order.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        asked : sequence of sequence of int
            The clients that each run asks.
        """
        config, work = self.config, self._work
        sent, buffers = self._models.to(work.device), [run.buffers for run in self._runs]
        work.receive(sent, buffers)
        turn = self._turn(server_round, asked)
        if self._kind.local_steps:
            messages = self._after_steps(turn, sent, buffers)
        else:
            rows, kept = work.gradients(turn), False
            if self._kind.momentum:
                rows, kept = self._with_momentum(turn.lines, rows), self._whole
            messages = _Messages(rows, {}, kept)
        if scaled := {place: poison for place, poison in turn.poisons.items() if poison.attack.scale != 1}:
            rows = messages.rows.clone()  # a momentum is kept unscaled
            for place, poison in scaled.items():
                run = place // config.sampled
                rows[place] = poison.scaled([rows[place]], [sent[run]])[0]
                for p, held in messages.buffers.items():
                    held[place] = poison.scaled([held[place]], [buffers[run][p]])[0]
            messages = _Messages(rows, messages.buffers, False)
        if len(self._runs) > 1 and sent.device.type != "cpu" and sent[0].numel() * config.sampled <= _SMALL:
            return _Messages(messages.rows.cpu(), messages.buffers, False)
        return messages

    def _turn(self, server_round: int, asked: Sequence[Sequence[int]]) -> Turn:
        """Draw what the clients asked do in a round."""
        config = self.config
        which = self._all
        if not self._whole:
            which = np.array([self._work.line(run, client) for run, own in enumerate(asked) for client in own])
        pairs = list(zip(self._runs, asked, strict=True))
        drawn = steps.draw_samples(
            [seed for run, own in pairs for seed in batch_seeds(run.config.seed, own, server_round)],
            self._counts if self._whole else self._counts[which],
            self._first if self._whole else self._first[which],
            self._held,
            config.local_steps,
            config.batch_size,
            consecutive=config.batching == "consecutive",
        )
        seeds = []
        if self._work.draws:
            seeds = [s for run, own in pairs for s in derive_each(run.config.seed, "layers", own, server_round)]
        poisons = {}
        for number, (run, own) in enumerate(pairs):
            attacks = run.world.poisons(own, server_round, partial(self._work.scores, number))
            places = enumerate(own, number * config.sampled)
            poisons.update({place: attacks[client] for place, client in places if client in attacks})
        return Turn(which, drawn, seeds, poisons)

    def _after_steps(self, turn: Turn, sent: Tensor, buffers: Sequence[Mapping[int, NDArray[Any]]]) -> _Messages:
        """Let the clients take their local steps; return their models, or how these have changed."""
        rows, held = self._work.trained(turn)
        if self._kind.relative:
            return _Messages(rows, held, False)
        rows.view(len(sent), self.config.sampled, -1).sub_(sent.unsqueeze(1))
        changed = {}
        for place, new in held.items():
            old = np.repeat(np.stack([own[place] for own in buffers]), self.config.sampled, 0)
            changed[place] = change(new, old)
        return _Messages(rows, changed, False)

    def _personal(self, run: int, client: int) -> list[NDArray[Any]]:
        """Return the part of the model that a client keeps."""
        line, kept = self._work.line(run, client), self._work.personal
        return [kept[place][line].cpu().numpy() for place in sorted(kept)]

    def _with_momentum(self, which: steps.Integers, gradients: Tensor) -> Tensor:
        """Compute the next momenta of the clients asked, keep and return them; the gradients may be written over."""
        fresh, alpha = self._fresh[which], self.config.alpha
        self._fresh[which] = False
        if steps.fits(gradients):
            kept, models = self._momenta.numpy(), self._models.numpy()
            numbers = (self._work.decay, alpha)
            steps.step_momenta(kept, which, fresh, gradients.numpy(), models, *numbers, back=not self._whole)
            return self._momenta if self._whole else gradients
        lines = torch.from_numpy(which).to(gradients.device)
        (next_ones,) = momentum_step([self._momenta[lines]], [gradients], alpha)
        if fresh.any():
            begun = torch.from_numpy(fresh).to(gradients.device)
            next_ones[begun] = gradients[begun]
        self._momenta[lines] = next_ones
        return self._momenta if self._whole else next_ones
