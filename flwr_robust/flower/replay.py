"""Replay: aggregate the kept updates of a run again, and compare every model with the log, to the bit.

A replay starts from a checkpoint, which holds the model and the state of the rule and of the server. For each round, a
strategy with the recorded settings receives the updates that were kept, as replies. So it runs the code that a run
runs: admission, rule, momentum, buffers. The hash of its model is compared with the one on record.

A replay can leave out one client. Then a second strategy, with a state of its own, receives the updates of the others,
relative to the models that were sent. Its steps are what the run would have done with these updates. The others would
have sent other updates for other models, which nobody knows.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_robust.audit import model_sha256, seeds_of
from flwr_robust.audit.arrays import read_arrays
from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.contents import KeptUpdates, Standing, checkpoint_folder, log_file, update_file
from flwr_robust.audit.events import Aggregated, ReplyAbstained, ReplyAdmitted, RoundConfigured, RunStarted, UpdateKept
from flwr_robust.audit.history import counting
from flwr_robust.audit.log import Record, read_log
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Outcome, Rule
from flwr_robust.core.spec import Component
from flwr_robust.errors import AuditError
from flwr_robust.files import file_sha256
from flwr_robust.flower._compat import become_server, fill
from flwr_robust.flower.admission import short
from flwr_robust.flower.desgd import DeSGD
from flwr_robust.flower.round_records import Round
from flwr_robust.flower.snapshots import progress_of
from flwr_robust.flower.strategy import RobustStrategy
from flwr_robust.flower.wire import decode_record, encode_record
from flwr_robust.protocol.buffers import learnt
from flwr_robust.protocol.messages import message_kind
from flwr_robust.protocol.rounds import moved

__all__ = ["Replay", "ReplayedRound", "replay"]

_SETTINGS = ("message", "server_learning_rate", "server_momentum", "buffers")
_DESGD = ("classes", "gamma", "alpha", "schedule", "classes_per_round", "server_learning_rate")
_COUNTS = ("classes", "classes-per-round")
_LARGEST = 10_000  # an integer in a rule from a log; defaults may be larger
_MOST_PARTS = 1000
_DEEPEST = 6  # MixTailor's pool, Bulyan's selection, stages before a rule
_SERVER = 1
Model = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ReplayedRound:
    """A round that was aggregated again.

    Attributes
    ----------
    round : int
        The round.
    result : str
        ``equal`` if the model has the recorded hash, ``different`` if not, ``missing`` if it could not be replayed.
    sentence : str
        Why it differs or is missing; empty if it is equal.
    deleted : bool
        Whether it is missing because the updates of all its nodes were deleted on record, as retention does.
    length : float, optional
        The norm of the change of the model.
    without, distance, cosine : float, optional
        If a client is left out: the norm of the change without it, the norm of the difference of both changes, and the
        cosine of the angle between them. The cosine is None if one of the changes is zero.
    outcome_without : str
        If a client is left out: the outcome without it; empty otherwise.
    own : float, optional
        If a client is left out: the norm of its weights times its updates; see `flwr_robust.audit.incident`. None if
        rounds ask for classes.
    """

    round: int
    result: str
    sentence: str = ""
    _: KW_ONLY
    deleted: bool = False
    length: float | None = None
    without: float | None = None
    distance: float | None = None
    cosine: float | None = None
    outcome_without: str = ""
    own: float | None = None


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes
    ----------
    checkpoints : tuple of int
        The rounds of the checkpoints from which it started.
    rounds : tuple of ReplayedRound
        The rounds, in order.
    absent : tuple of (int, int)
        First and last of the rounds asked for of which the log has no finished round of training that counts.
    total : ReplayedRound or None
        If a client is left out: the changes of all replayed rounds together.
    model : mapping of str to array, or None
        If a client is left out: the model after the last round, with the changes that the others' updates make.
    """

    checkpoints: tuple[int, ...]
    rounds: tuple[ReplayedRound, ...]
    absent: tuple[tuple[int, int], ...] = ()
    total: ReplayedRound | None = None
    model: Mapping[str, NDArray[Any]] | None = None

    def of(self, result: str) -> tuple[int, ...]:
        """Return the rounds with a result: ``equal``, ``different`` or ``missing``."""
        return tuple(each.round for each in self.rounds if each.result == result)

    @property
    def complete(self) -> bool:
        """Say whether all rounds asked for are equal, or deleted on record, and at least one is equal."""
        held = all(each.result == "equal" or each.deleted for each in self.rounds)
        return held and not self.absent and bool(self.of("equal"))


class _MissingError(Exception):
    """A round cannot be replayed, for the reason in its text."""


@dataclass
class _Recorded:
    """The records of a round of training."""

    asked: tuple[int, ...] = ()
    examples: dict[int, float] = field(default_factory=dict)
    abstained: list[int] = field(default_factory=list)
    aggregated: Aggregated | None = None


def replay(
    folder: Path | str, first: int | None = None, last: int | None = None, *, without: int | None = None
) -> Replay:
    """Aggregate the kept updates of a run again.

    Parameters
    ----------
    folder : Path
        The run's folder. It is only read.
    first, last : int, optional
        The rounds. When not given, all rounds after the earliest checkpoint. The rounds between a checkpoint and
        ``first`` are replayed too, because the rule's state comes from them.
    without : int, optional
        A node whose updates a second strategy does not receive.

    Raises
    ------
    AuditError
        If there is no log, the run's aggregation cannot be repeated, or no checkpoint precedes the rounds. Also if an
        integer in the recorded rule is above 10,000 and not its default: the work must have a bound.
    """
    everything = read_log(log_file(folder))
    records, standing = counting(everything), Standing.of(everything)
    rounds = {number: each for number, each in _rounds(records).items() if each.aggregated is not None}
    if not rounds:
        raise AuditError(f"replay: {log_file(folder)} has no finished round of training that counts")
    store = CheckpointStore(checkpoint_folder(folder))
    starts = [each for each in store.rounds() if each in standing.current]
    before = [each for each in starts if first is None or each < first]
    last = max(rounds) if last is None else last
    begin = None if not before else before[0] if first is None else before[-1]
    if begin is None or begin >= last:
        asked = "a round" if first is None else f"round {first}"
        raise AuditError(
            f"replay: {asked} needs the checkpoint of an earlier one; there are checkpoints of rounds "
            f"{', '.join(map(str, starts)) or 'none'}, and the last finished round is {max(rounds)}"
        )
    return _Replaying(Path(folder), records, rounds, without).run(store, standing, starts, begin, last)


def _rounds(records: Sequence[Record]) -> dict[int, _Recorded]:
    """Return what is on record of each round of training that counts."""
    found: dict[int, _Recorded] = {}
    for record in records:
        event = record.event
        if isinstance(event, RoundConfigured) and event.phase == MessageType.TRAIN:
            found[event.round] = _Recorded(event.asked)
        elif isinstance(event, ReplyAdmitted) and event.phase == MessageType.TRAIN and event.round in found:
            found[event.round].examples[event.node] = event.num_examples or 0
        elif isinstance(event, ReplyAbstained) and event.phase == MessageType.TRAIN and event.round in found:
            found[event.round].abstained.append(event.node)
        elif isinstance(event, Aggregated) and event.round in found:
            found[event.round].aggregated = event
    return found


class _Replaying:
    """One replay: the strategy, perhaps another one that lacks a client, and the sums of their changes."""

    def __init__(
        self, folder: Path, records: Sequence[Record], rounds: Mapping[int, _Recorded], without: int | None
    ) -> None:
        start = next((record.event for record in records if isinstance(record.event, RunStarted)), None)
        if start is None:
            raise AuditError(f"replay: {log_file(folder)} has no line that says how the run was started")
        self._folder, self._rounds, self._without = folder, rounds, without
        updates = KeptUpdates.of(records)
        self._kept, self._deleted = updates.standing, updates.deleted
        self._strategy, self._other = _strategy(start), _strategy(start)
        self._strategy.guard.seeds = self._other.guard.seeds = seeds_of(folder)
        self._change: _Change = {}
        self._other_change: _Change = {}
        self._own_change: _Change = {}

    def run(self, store: CheckpointStore, standing: Standing, starts: Sequence[int], begin: int, last: int) -> Replay:
        """Replay the rounds after a checkpoint; after a round that cannot be replayed, go on from the next one."""
        become_server(_SERVER, _SERVER)
        begun = self._recall(store, standing, begin)
        model: Model | None = begun
        used, found = [begin], []
        for number in (each for each in sorted(self._rounds) if begin < each <= last):
            if model is None and number - 1 in starts:
                model = self._recall(store, standing, number - 1)
                used.append(number - 1)
            if model is None:
                found.append(self._missing(number, "the round before was not replayed"))
                continue
            after: Model | None
            try:
                result, after = self._replay(number, model)
            except _MissingError as missing:
                result, after = self._missing(number, str(missing)), None
            except Exception as error:  # log, checkpoint and updates may be anybody's work
                sentence = short(f"it cannot be aggregated: {type(error).__name__}: {error}")
                result, after = self._missing(number, sentence), None
            found.append(result)
            model = after if result.result == "equal" else None
        absent = tuple(_gaps([begin, *(each.round for each in found), last + 1]))
        if self._without is None or not self._change:
            return Replay(tuple(used), tuple(found), absent)
        own = None if isinstance(self._strategy, DeSGD) else _norm(self._own_change)
        total = ReplayedRound(last, "equal", own=own, **_compared(self._change, self._other_change))
        other = {
            name: moved(values, self._other_change[name]) if name in self._other_change else values
            for name, values in begun.items()
        }
        return Replay(tuple(used), tuple(found), absent, total, other)

    def _missing(self, number: int, sentence: str) -> ReplayedRound:
        """Return a round that could not be replayed, with the reason; a deletion of all its updates is the reason."""
        event = self._rounds[number].aggregated
        if event is not None and event.nodes and {*event.nodes} <= self._deleted.get(number, set()):
            return ReplayedRound(number, "missing", "its updates were deleted on record", deleted=True)
        return ReplayedRound(number, "missing", sentence)

    def _recall(self, store: CheckpointStore, standing: Standing, number: int) -> Model:
        """Give both strategies the state in a checkpoint, and return its model."""
        if (why := standing.odd(store, number)) is not None:
            raise AuditError(f"replay: the checkpoint of round {number} is not the one on record: {why}")
        snapshot = store.load(number)
        try:
            for strategy in (self._strategy, self._other):
                strategy.recall(progress_of(snapshot, ()).memory["strategy"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise AuditError(
                f"replay: the checkpoint of round {number} holds no state of a strategy: {error}"
            ) from None
        return dict(snapshot.model)

    def _replay(self, number: int, model: Model) -> tuple[ReplayedRound, Model]:
        """Return the result of a round, and the model after it."""
        recorded = self._rounds[number]
        event = recorded.aggregated
        assert event is not None
        if model_sha256(model) != event.model_before:
            raise _MissingError("the round began with another model than the replay")
        updates = {node: self._update(number, node) for node in event.nodes}
        after, outcome = _aggregated(self._strategy, number, recorded, model, updates)
        if (event.outcome, event.model_after) != (outcome.name, model_sha256(after)):
            told = f"the outcome is {outcome.name}, on record {event.outcome}" if outcome.name != event.outcome else ""
            return ReplayedRound(
                number, "different", told or "the model has another hash than the one on record"
            ), after
        if self._without is None:
            return ReplayedRound(number, "equal", length=_norm(_step(model, after))), after
        own = self._own(event, model, updates.pop(self._without, None))
        asked = tuple(node for node in recorded.asked if node != self._without)
        abstained = [node for node in recorded.abstained if node != self._without]
        lacking, outcome_without = _aggregated(
            self._other, number, _Recorded(asked, recorded.examples, abstained, event), model, updates
        )
        changes = _step(model, after), _step(model, lacking)
        for sums, change in zip((self._change, self._other_change), changes, strict=True):
            sums.update({name: sums.get(name, 0) + values for name, values in change.items()})
        return ReplayedRound(
            number, "equal", outcome_without=outcome_without.name, own=own, **_compared(*changes)
        ), after

    def _own(self, event: Aggregated, model: Model, update: Model | None) -> float | None:
        """Add a client's weight times its update to its changes, and return the norm of this one."""
        strategy = self._strategy
        if isinstance(strategy, DeSGD):
            return None
        if update is None or self._without is None or not event.weights or event.model_after == event.model_before:
            return 0.0
        factor = strategy.server_learning_rate * (event.weights[event.nodes.index(self._without)] or 0.0)
        relative = message_kind(strategy.message).relative
        change = {
            name: factor * (values.astype(np.float64) - (model[name].astype(np.float64) if relative else 0.0))
            for name, values in update.items()
            if name in learnt(model, strategy.statistics)
        }
        self._own_change = {name: self._own_change.get(name, 0) + values for name, values in change.items()}
        return _norm(change)

    def _update(self, number: int, node: int) -> Model:
        """Return a kept update that has the hash on record."""
        records = self._kept.get(number, {}).get(node, [])
        event = records[-1].event if records else None
        if not isinstance(event, UpdateKept):
            raise _MissingError(f"the update of node {node} was not kept, or was deleted")
        path = update_file(self._folder, number, node)
        try:
            if file_sha256(path) != event.sha256:
                raise _MissingError(f"the update of node {node} is not the one on record")
            held = read_arrays(path)
            return {str(name): held[str(index)] for index, name in enumerate(held["names"])}
        except (OSError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
            raise _MissingError(f"the update of node {node} cannot be read: {error}") from None


def _gaps(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of the integers that ascending ones leave out."""
    for one, other in pairwise(numbers):
        if other > one + 1:
            yield one + 1, other - 1


def _check_work(rule: Rule) -> None:
    """Refuse a rule from a log whose work has no reasonable bound: the log may be anybody's work."""
    waiting: list[tuple[Component, int]] = [(rule, 0)]
    seen = 0
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        if seen > _MOST_PARTS or depth > _DEEPEST:
            raise AuditError(
                f"replay: the rule in the log has more than {_MOST_PARTS} parts, or parts nested more than {_DEEPEST} "
                f"deep: it is not replayed"
            )
        defaults = {each.name: each.default for each in fields(part)}
        own = {name: getattr(part, name) for name in defaults if name != "seed"}
        _check_numbers(part.name, {name: value for name, value in own.items() if value != defaults[name]})
        for held in vars(part).values():  # also what it made of texts
            inner = held if isinstance(held, tuple) else (held,)
            waiting += [(each, depth + 1) for each in inner if isinstance(each, Component)]


def _check_numbers(owner: str, numbers: Mapping[str, object]) -> None:
    """Refuse an integer above the bound."""
    for name, value in numbers.items():
        if isinstance(value, int) and value > _LARGEST:
            raise AuditError(
                f"replay: {owner} in the log has {name} above {_LARGEST}, which may take too long: it is not replayed"
            )


def _strategy(start: RunStarted) -> RobustStrategy:
    """Return a strategy with the recorded settings."""
    config = start.config
    if not start.rule:
        raise AuditError(
            f"replay: the log names no rule of this project: {start.strategy} aggregated, and its code cannot be "
            f"repeated from a log"
        )
    try:
        rule = parse(start.rule)
        _check_work(rule)
        _check_numbers("the configuration", {name: config.get(name) for name in _COUNTS})
    except RecursionError:
        raise AuditError("replay: the rule in the log is nested too deeply") from None
    if rule.needs_trust:
        raise AuditError(f"replay: {start.rule} compares replies with the server's own update, which is not kept")
    class_wise = "classes-per-round" in config and "gamma" in config and start.strategy == DeSGD.__name__
    names = _DESGD if class_wise else _SETTINGS
    if lacking := [name for name in names if name.replace("_", "-") not in config]:
        raise AuditError(f"replay: the configuration on record lacks {', '.join(lacking)}")
    options: dict[str, Any] = {name: config[name.replace("_", "-")] for name in names}
    if class_wise and config.get("buffer-fade"):  # older logs have none
        options["buffer_fade"] = config["buffer-fade"]
    if config.get("min-replies"):  # a run config says 0 for the default
        options["min_replies"] = config["min-replies"]
    if isinstance(statistics := config.get("statistics"), str):
        options["statistics"] = tuple(statistics.split(", ")) if statistics else ()
    return (DeSGD if class_wise else RobustStrategy)(rule, by_partition=True, **options)


def _aggregated(
    strategy: RobustStrategy, number: int, recorded: _Recorded, model: Model, updates: Mapping[int, Model]
) -> tuple[Model, Outcome]:
    """Return the model and the outcome after a round in which nodes answer with these updates."""
    event = recorded.aggregated
    assert event is not None
    arrays = encode_record(model)
    messages = {node: Message(RecordDict(), node, MessageType.TRAIN) for node in recorded.asked}
    strategy.partitions = {node: place for place, node in enumerate(event.nodes)}  # the order on record
    opened = Round(number, MessageType.TRAIN, tuple(messages.values()), (), strategy.expected(number, arrays))
    strategy.guard.open(opened, arrays)
    replies = []
    for node, update in updates.items():
        metrics = MetricRecord({strategy.weighted_by_key: recorded.examples[node]})
        content = fill(RecordDict(), {"arrays": encode_record(update), "metrics": metrics})
        replies.append(Message(content, reply_to=messages[node]))
    for node in recorded.abstained:
        content = fill(RecordDict(), {"metrics": MetricRecord({strategy.weighted_by_key: 0})})
        replies.append(Message(content, reply_to=messages[node]))
    after, _ = strategy.aggregate_train(number, replies)
    assert after is not None
    return decode_record(after), strategy.history[-1].outcome


_Change = dict[str, Any]


def _step(before: Model, after: Model) -> _Change:
    """Return the change of the floating-point arrays, in float64."""
    return {
        name: after[name].astype(np.float64) - values.astype(np.float64)
        for name, values in before.items()
        if values.dtype.kind == "f"
    }


def _norm(change: _Change) -> float:
    return math.sqrt(sum(float(np.vdot(values, values)) for values in change.values()))


def _compared(change: _Change, other: _Change) -> dict[str, Any]:
    """Return the norms of two changes and of their difference, and the cosine of the angle between them."""
    lengths = _norm(change), _norm(other)
    product = sum(float(np.vdot(values, other[name])) for name, values in change.items())
    return {
        "length": lengths[0],
        "without": lengths[1],
        "distance": _norm({name: values - other[name] for name, values in change.items()}),
        "cosine": product / (lengths[0] * lengths[1]) if all(lengths) else None,
    }
