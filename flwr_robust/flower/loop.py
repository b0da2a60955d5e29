"""Loop: run Flower's rounds under guard, inform observers from start to end, and resume where a run stopped.

A round is one cycle: the server sends the model to nodes (the clients), and combines their replies. Flower's own loop
runs the rounds and calls four methods in each. During the run these are the methods of the guarded strategy, wrapped by
`Loop`. The wrappers count the rounds from where the run continues, and keep their results.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import simulated
from flwr_robust.flower.admission import short
from flwr_robust.flower.deadlines import closing, quorum_of
from flwr_robust.flower.guard import Guard
from flwr_robust.flower.quarantine import Identity
from flwr_robust.flower.round_records import Chapter, Opening, Progress, RoundRecord, Scalar
from flwr_robust.protocol.rounds import check_trained
from flwr_robust.round_seeds import SECRET

__all__ = ["METHODS", "Chronicling", "EvaluateFunction", "Guarding", "Loop", "Remembering", "replaced", "scalars"]

log = logging.getLogger("flwr")

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]

METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
"""The methods that Flower's loop calls in every round."""

_CONFIGS = ("train_config", "evaluate_config")
_SEEDED = re.compile(r"\bseed=[0-9]")  # a part of the rule has a seed of its own


@runtime_checkable
class Remembering(Protocol):
    """Objects with a state that a resumed run needs: strategies, and grids that attack."""

    def memory(self) -> Mapping[str, Any]:
        """Return the state; all of it is `storable`."""

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore the state that `memory` returned."""


@runtime_checkable
class Chronicling(Remembering, Protocol):
    """Grids that also keep a record of every round, which is not part of `memory` because it grows."""

    def chronicle(self, since: int) -> Sequence[Any]:
        """Return the records from the given number on; each is `storable`."""

    def recall_chronicle(self, records: Sequence[Any]) -> None:
        """Restore the records."""


class _Stopped(Exception):  # noqa: N818
    """Ends Flower's loop over the rounds, which can only be left by an exception."""


class Loop:
    """One run of a strategy, until its end or until it is stopped.

    If an observer returns the progress of an earlier run, the loop skips the rounds that are done. Flower's log then
    counts the remaining rounds from 1. If the run is stopped in a round, the evaluations of this round are finished.
    The result is then that of the rounds so far.

    Parameters
    ----------
    guarding : Guarding
        The strategy with a guard.
    looped : Strategy
        The strategy whose methods Flower's loop calls.
    start : callable
        Flower's ``Strategy.start``, bound to ``looped``.
    evaluate_fn : callable, optional
        The argument ``evaluate_fn`` of ``start``.
    arguments : mapping
        The other arguments of ``start``.
    """

    def __init__(
        self,
        guarding: Guarding,
        looped: Strategy,
        start: Callable[..., Result],
        evaluate_fn: EvaluateFunction | None,
        arguments: Mapping[str, Any],
    ) -> None:
        self._guarding, self._guard = guarding, guarding.guard
        self._looped, self._start = looped, start
        self._evaluate_fn, self._arguments = evaluate_fn, arguments
        # Copies, so that changes by strategies are not mistaken for the caller's values when a run is resumed.
        self._configs = {name: ConfigRecord({**(arguments[name] or {})}) for name in _CONFIGS}
        self._holders: dict[str, Remembering] = {"strategy": guarding}
        if isinstance(grid := arguments["grid"], Remembering):
            self._holders["grid"] = grid
        self._result = Result()  # the result of the run so far
        self._result.arrays = arguments["initial_arrays"]
        self._unfinished: int | None = 0  # a round whose evaluations may not be finished
        self._written = _Written()
        self._earlier = len(self._guard.history)  # the rounds of earlier runs of the same strategy

    def run(self) -> Result:
        """Run Flower's loop, and return its result.

        Raises
        ------
        UntrainedError
            If there were rounds of training, and none changed the model.
        """
        guard = self._guard
        guard.stopped = ""
        try:
            done = self._begin()
            left = {
                "initial_arrays": self._result.arrays,
                "num_rounds": max(self._arguments["num_rounds"] - done, 0),
                "evaluate_fn": None if self._evaluate_fn is None else self._evaluated(self._evaluate_fn, done),
            }
            try:
                timed = closing(self._arguments["grid"], guard.deadline, self._guarding.quorum_of)
                with replaced(self._looped, self._methods(done)), timed as grid, guard.looping():
                    found = self._start(**{**self._arguments, **self._configs, **left, "grid": grid})
                self._finish(last=True)
            except _Stopped:
                found = self._result
                log.warning("The run ends after round %s: %s", guard.history[-1].round, guard.stopped)
            self._check_trained()
        except BaseException as error:
            self._end("failed", short(f"{type(error).__name__}: {error}"))
            raise
        self._end("stopped" if guard.stopped else "finished", guard.stopped)
        return self._result if done else found

    # -- its beginning and its end ----------------------------------------------------------------

    def _begin(self) -> int:
        """Inform observers, restore the progress that one of them returns, and return its round."""
        guard, guarding, arguments = self._guard, self._guarding, self._arguments
        guard.nodes.begin(arguments["grid"])
        rule = str(getattr(guarding, "rule", ""))
        guard.seeds.check(arguments["num_rounds"])
        guard.rounds = max(1, arguments["num_rounds"])
        guard.seeds = guard.seeds.fresh()
        if guard.seeds.told != SECRET or _SEEDED.search(rule):
            _warn_of_predictable_draws(arguments["grid"])
        if guard.deadline is None:
            _warn_of_waiting(arguments["grid"], arguments["timeout"])
        sent = {f"{name}.{key}": value for name, each in self._configs.items() for key, value in each.items()}
        told = {key: value for key, value in sent.items() if isinstance(value, Scalar)}
        config = {"rounds": arguments["num_rounds"], **guard.settings(), **guarding.settings(), **told}
        opening = Opening(
            guard.nodes,
            guarding.label,
            rule,
            config,
            self._result.arrays,
            arguments["grid"],
            min(arguments["timeout"], guard.deadline or math.inf),
            guard.suspect,
            guard.ban,
            guard.release,
            guard.seeds,
        )
        found = [progress for each in guard.observers if (progress := each.run_started(opening)) is not None]
        if not found:
            self._finish()
            return 0
        self._restore(found[0])
        return found[0].round

    def _restore(self, progress: Progress) -> None:
        for each in dataclasses.fields(self._result):
            setattr(self._result, each.name, getattr(progress.result, each.name))
        self._guard.history, self._guard.evaluations = list(progress.history), list(progress.evaluations)
        self._earlier = 0
        self._guard.nodes.recall(
            progress.partitions,
            progress.refusals,
            progress.replaced,
            progress.evaluation_refusals,
            progress.absences,
        )
        for name, holder in self._holders.items():
            if name in progress.memory:
                holder.recall(progress.memory[name])
        if progress.seeds is not None:
            self._guard.seeds = progress.seeds
        for name in _CONFIGS:
            self._configs[name].update(progress.memory[name])
        if isinstance(grid := self._holders.get("grid"), Chronicling):
            grid.recall_chronicle(progress.chapter.attacks)
        self._written.new(self._guard, self._result, self._holders.get("grid"))
        self._unfinished = None

    def _check_trained(self) -> None:
        """Log how many rounds changed the model; raise if none did."""
        if history := self._guard.history[self._earlier :]:
            changed = check_trained([record.outcome for record in history], history[-1].sentence)
            log.info("%s of %s rounds changed the model", changed, len(history))

    def _end(self, outcome: str, sentence: str) -> None:
        history = self._guard.history
        for observer in self._guard.observers:
            observer.run_ended(history[-1].round if history else 0, outcome, sentence)

    # -- its rounds -------------------------------------------------------------------------------

    def _finish(self, *, last: bool = False) -> None:
        """If a round is finished, inform observers."""
        if self._unfinished is None:
            return
        guard, nodes = self._guard, self._guard.nodes
        if guard.observers:
            progress = Progress(
                self._unfinished,
                self._result,
                guard.history,
                guard.evaluations,
                nodes.partitions,
                nodes.refusals,
                {
                    **{name: each.memory() for name, each in self._holders.items()},
                    **{name: dict(each) for name, each in self._configs.items()},
                },
                nodes.replaced,
                nodes.evaluation_refusals,
                self._written.new(guard, self._result, self._holders.get("grid")),
                nodes.absences(),
                guard.seeds,
            )
            for observer in guard.observers:
                observer.round_finished(progress, last=last)
        self._unfinished = None

    def _methods(self, done: int) -> dict[str, Callable[..., Any]]:
        """Return the methods for Flower's loop, with rounds counted from where the run continues."""
        own = {name: getattr(self._guarding, name) for name in METHODS}

        def configure_train(server_round: int, *arguments: Any, **named: Any) -> Iterable[Message]:
            self._finish(last=bool(self._guard.stopped))
            if self._guard.stopped:
                raise _Stopped
            self._guard.attend()
            messages: Iterable[Message] = own["configure_train"](server_round + done, *arguments, **named)
            return messages

        def aggregate_train(
            server_round: int, *arguments: Any, **named: Any
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            number, before = server_round + done, len(self._guard.history)
            arrays, metrics = own["aggregate_train"](number, *arguments, **named)
            if arrays is not None:
                self._result.arrays = arrays
            if metrics is not None:
                self._result.train_metrics_clientapp[number] = metrics
            if arrays is not None or len(self._guard.history) > before:
                self._unfinished = number
            return arrays, metrics

        def configure_evaluate(server_round: int, *arguments: Any, **named: Any) -> Iterable[Message]:
            self._guard.attend()
            messages: Iterable[Message] = own["configure_evaluate"](server_round + done, *arguments, **named)
            return messages

        def aggregate_evaluate(server_round: int, *arguments: Any, **named: Any) -> MetricRecord | None:
            metrics: MetricRecord | None = own["aggregate_evaluate"](server_round + done, *arguments, **named)
            if metrics is not None:
                self._result.evaluate_metrics_clientapp[server_round + done] = metrics
            return metrics

        methods = (configure_train, aggregate_train, configure_evaluate, aggregate_evaluate)
        return {method.__name__: method for method in methods}

    def _evaluated(self, evaluate_fn: EvaluateFunction, done: int) -> EvaluateFunction:
        """Return the server's evaluation function, which uses the true round number and informs observers."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if done and server_round == 0:
                return None  # the earlier run has evaluated it
            number = server_round + done
            metrics = evaluate_fn(number, arrays)
            if metrics is not None:
                self._result.evaluate_metrics_serverapp[number] = metrics
                for observer in self._guard.observers:
                    observer.server_evaluated(number, metrics)
            return metrics

        return evaluate


_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class _Written:
    """How much of a run's history observers have received, so that each round costs the same."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def new(self, guard: Guard, result: Result, grid: object) -> Chapter:
        """Return what is new since the last call."""
        metrics: dict[str, Mapping[int, MetricRecord]] = {}
        for name in _METRICS:
            shown = getattr(result, name)
            fresh = [*islice(reversed(shown), self._since(name, len(shown)))]
            metrics[name] = {number: shown[number] for number in reversed(fresh)}
        history, evaluations = (self._tail(name, getattr(guard, name)) for name in ("history", "evaluations"))
        attacks: Sequence[Any] = ()
        if isinstance(grid, Chronicling):
            attacks = grid.chronicle(self._counts.get("attacks", 0))
            self._counts["attacks"] = self._counts.get("attacks", 0) + len(attacks)
        return Chapter(history, evaluations, metrics, attacks)

    def _since(self, name: str, count: int) -> int:
        """Return how many entries are new, and note that there are ``count`` now."""
        new = count - self._counts.get(name, 0)
        self._counts[name] = count
        return new

    def _tail(self, name: str, records: Sequence[RoundRecord]) -> Sequence[RoundRecord]:
        new = self._since(name, len(records))
        return records[len(records) - new :]


def _warn_of_predictable_draws(grid: Grid) -> None:
    """Warn unless the nodes are simulated, that is, without an attacker of their own."""
    if not simulated(grid):
        log.warning(
            "start: the seed is not secret: clients that know it can predict whom the server asks and what its rule "
            "draws; leave seed out of the strategy and of its rule"
        )


def _warn_of_waiting(grid: Grid, timeout: float) -> None:
    """Warn unless the nodes are simulated, that is, unless a node may stay silent."""
    if not simulated(grid):
        log.warning("start: one silent node makes every round last timeout=%g seconds; set deadline=", timeout)


@contextmanager
def replaced(strategy: Strategy, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace methods of one strategy object for the duration of a ``with`` block."""
    held = vars(strategy)
    before = {name: held[name] for name in methods if name in held}
    held.update(methods)
    try:
        yield
    finally:
        for name in methods:
            held.pop(name, None)
        held.update(before)


def scalars(strategy: object) -> dict[str, Scalar]:
    """Return a strategy's public scalar attributes, named as in a run config; attributes that are None are left out."""
    held = {name.replace("_", "-"): value for name, value in vars(strategy).items() if not name.startswith("_")}
    return {name: value for name, value in held.items() if isinstance(value, Scalar) and value is not None}


class Guarding:
    """Base of strategies with a guard: passes on what users read from it. Subclasses set ``guard``."""

    guard: Guard

    @abstractmethod
    def looped(self) -> tuple[Strategy, Callable[..., Result]]:
        """Return the strategy whose methods Flower's loop calls, and the ``start`` that runs the loop."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
    ) -> Result:
        """Run Flower's rounds under guard; see its ``Strategy.start`` for the parameters.

        Raises
        ------
        UntrainedError
            At the end, if there were rounds of training and none changed the model.
        """
        arguments = {
            "grid": grid,
            "initial_arrays": initial_arrays,
            "num_rounds": num_rounds,
            "timeout": timeout,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
        }
        return Loop(self, *self.looped(), evaluate_fn, arguments).run()

    @abstractmethod
    def usual_quorum(self, kind: str, asked: int) -> int:
        """Return with how many replies a round may close at its deadline, unless the operator says it."""

    def quorum_of(self, kind: str, asked: int) -> int:
        """Return with how many replies a round may close at its deadline, if so many nodes are asked."""
        quorum = self.guard.quorum
        return self.usual_quorum(kind, asked) if quorum is None else quorum_of(quorum, asked)

    def check_quorum(self, asked: int, needed: int) -> None:
        """Raise unless a quorum of the nodes asked is at least what a round of training needs, and can be reached."""
        if self.guard.deadline is None:
            return
        quorum = self.quorum_of(MessageType.TRAIN, asked)
        if not needed <= quorum <= asked:
            raise ConfigurationError(
                f"strategy: quorum must be from the {needed} replies that a round needs to the {asked} nodes asked; "
                f"got quorum={self.guard.quorum}, which is {quorum}"
            )

    @property
    def label(self) -> str:
        """The name of the strategy in records."""
        return type(self).__name__

    def settings(self) -> dict[str, Scalar]:
        """Return the scalar settings that determine a run's result."""
        return scalars(self)

    def memory(self) -> Mapping[str, Any]:
        """Return the state that lasts from round to round; see `Progress`."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore the state that `memory` returned."""

    @property
    def history(self) -> list[RoundRecord]:
        """One record per round of training."""
        return self.guard.history

    @property
    def evaluations(self) -> list[RoundRecord]:
        """One record per round of evaluation by clients."""
        return self.guard.evaluations

    @property
    def partitions(self) -> dict[int, int]:
        """The known partitions (numbered shares of the data), by node.

        A partition is read from the node's first reply with the metric ``partition-id``, or set beforehand. In a
        simulation the runtime assigns partitions, and node ids are new in every run. So that runs repeat to the bit,
        replies are there aggregated and clients sampled in the order of partitions. Nodes without a known partition
        follow in the order of their ids. In a deployment a partition is a claim: it is shown, and has no effect.
        """
        return self.guard.nodes.partitions

    @partitions.setter
    def partitions(self, partitions: dict[int, int]) -> None:
        self.guard.nodes.partitions = partitions

    def identify(self, identities: Mapping[int, Identity]) -> None:
        """Set the nodes' partitions, as `discover` returns them; each says whether the node stated it itself.

        In a deployment this changes what is shown only; see `partitions`.
        """
        self.guard.nodes.identify(identities)

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes in quarantine."""
        return self.guard.nodes.quarantined

    def release(self, node: int, reason: str = "") -> None:
        """Take a node out of quarantine, forget its refusals, and lift its ban."""
        self.guard.release(node, reason)

    @property
    def banned(self) -> tuple[int, ...]:
        """The nodes that an operator has banned."""
        return tuple(sorted(self.guard.nodes.banned))

    def ban(self, node: int, reason: str = "") -> None:
        """Ban a node: it is not asked, and its replies are refused, until it is released."""
        self.guard.ban(node, reason)
