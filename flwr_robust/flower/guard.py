"""Guard: what every guarded strategy shares between asking clients and stepping the model.

A strategy opens a round on its guard with the messages it sends, has the guard judge the replies, and closes the round
with what came of them. The guard keeps the records, the partitions and the quarantine, tells observers, and ends a run
that is to stop. It knows no rule.

Quarantine: a node whose replies were refused ``quarantine_after`` times, for what was certainly its own doing, is no
longer asked, until it is released. The nodes left are never fewer than the strategy's rule needs: where they would be,
those in quarantine with the fewest refusals are asked all the same, and judged like everybody. So whoever has others,
or itself, put into quarantine gains nothing: the round has no fewer replies than it would have had without.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import sample_nodes

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, State
from flwr_robust.errors import ConfigurationError, check_choice, check_integer, check_number
from flwr_robust.flower.admission import Admitted, Refusal, SentModel, Terms, admit, rebuilt, short
from flwr_robust.flower.failures import failure
from flwr_robust.flower.metrics import MetricsFunction, robust_metrics
from flwr_robust.runs.rounds import sample_clients

__all__ = [
    "METHODS",
    "NOBODY",
    "Aggregation",
    "EvaluateFunction",
    "Guard",
    "Guarding",
    "Identity",
    "Observer",
    "Opening",
    "Progress",
    "Remembering",
    "Round",
    "RoundRecord",
    "check_observers",
    "replaced",
    "scalars",
]

log = logging.getLogger("flwr")

NOBODY = "no reply was admitted"

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]

Scalar = str | int | float | bool | None

METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
"""What Flower's loop calls in every round."""

_CONFIGS = ("train_config", "evaluate_config")
_SETTINGS = ("seed", "least", "quarantine_after", "on_infeasible", "clamp")  # the guard's, for the record


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round of training or evaluation.

    Attributes
    ----------
    round : int
        Flower's round number.
    asked : tuple of int
        The nodes that were asked.
    admitted : tuple of int
        The nodes whose replies were let in, in the order they were aggregated.
    partitions : tuple of (int or None)
        The partitions of the nodes admitted.
    refused : tuple of Refusal
        The replies that were not.
    outcome : Outcome
        How the aggregation ended; INFEASIBLE leaves the model as it was.
    sentence : str
        Why it was infeasible; empty otherwise.
    weights : tuple of float
        What the rule gave to each reply admitted; empty where that is not known.
    stats : mapping
        The rule's diagnostics.
    kind : str
        ``train`` or ``evaluate``.
    quarantined : tuple of int
        The nodes that were there but not asked, because they are in quarantine.
    abstained : tuple of int
        The nodes that answered, and had nothing to say to what the round asked for.
    """

    round: int
    asked: tuple[int, ...]
    admitted: tuple[int, ...] = ()
    partitions: tuple[int | None, ...] = ()
    refused: tuple[Refusal, ...] = ()
    outcome: Outcome = Outcome.INFEASIBLE
    sentence: str = ""
    weights: tuple[float, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)
    kind: str = MessageType.TRAIN
    quarantined: tuple[int, ...] = ()
    abstained: tuple[int, ...] = ()

    @property
    def silent(self) -> tuple[int, ...]:
        """The nodes that were asked and did not answer at all."""
        heard = {*self.admitted, *self.abstained, *(refusal.node for refusal in self.refused)}
        return tuple(node for node in self.asked if node not in heard)


@dataclass(frozen=True)
class Aggregation:
    """A round of training with its arrays, as observers see it; read them, never write into them.

    Attributes
    ----------
    record : RoundRecord
        What is kept of the round.
    before, after : ArrayRecord
        The model that was sent, and the next one; one object where the model stays.
    rows : Rows or None
        The updates, in the order of ``record.admitted``; None if there are none.
    aggregate : Aggregate or None
        What the rule returned; None where it did not, or another strategy aggregated.
    state : State
        The rule's state after the round.
    """

    record: RoundRecord
    before: ArrayRecord
    after: ArrayRecord
    rows: Rows | None = None
    aggregate: Aggregate | None = None
    state: State = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """A run that is about to start.

    Attributes
    ----------
    guard : Guard
        Of the strategy.
    strategy : str
        The class that aggregates.
    rule : str
        The defence string; empty where another strategy aggregates.
    config : mapping
        What is known to decide the result: scalars by name.
    arrays : ArrayRecord
        The initial model.
    grid : Grid
        Where the nodes are.
    timeout : float
        How many seconds to wait for them.
    """

    guard: Guard
    strategy: str
    rule: str
    config: Mapping[str, Scalar]
    arrays: ArrayRecord
    grid: Grid
    timeout: float


@dataclass(frozen=True)
class Progress:
    """What a run has come to after a round: all that the server needs to go on as if it had never stopped.

    Attributes
    ----------
    round : int
        The last round that is over.
    result : Result
        Flower's, up to that round: the model, and all metrics.
    history, evaluations : sequence of RoundRecord
        What the guard has on record.
    partitions, refusals, replaced : mapping of int to int
        What the guard knows of nodes.
    memory : mapping
        ``strategy``: what the strategy keeps from round to round; ``grid``: the same, if it is `Remembering`;
        ``train_config`` and ``evaluate_config``: what the nodes are sent, which strategies may change on the way. All
        of it is `storable`.
    """

    round: int
    result: Result
    history: Sequence[RoundRecord]
    evaluations: Sequence[RoundRecord]
    partitions: Mapping[int, int]
    refusals: Mapping[int, int]
    memory: Mapping[str, Any]
    replaced: Mapping[int, int] = field(default_factory=dict)


class Observer:
    """What watches a guard: an audit log, a checkpointer. Every method does nothing until it is overridden.

    The methods are called in the order in which they stand here. One that raises ends the run: evidence that cannot
    be kept is the operator's to mend.
    """

    def run_started(self, opening: Opening) -> Progress | None:
        """``start`` was called; an observer may return what is to be gone on from."""
        return None

    def round_configured(
        self, server_round: int, kind: str, asked: Sequence[int], quarantined: Sequence[int], model: ArrayRecord
    ) -> None:
        """Nodes are about to be sent a model."""

    def reply_judged(self, server_round: int, kind: str, verdict: Admitted | Refusal) -> None:
        """A reply was admitted, or refused."""

    def reply_abstained(self, server_round: int, kind: str, node: int) -> None:
        """A node had nothing to say to what the round asks for; called after the verdicts."""

    def node_quarantined(self, server_round: int, node: int, refusals: int) -> None:
        """A node is not to be asked any more."""

    def node_released(self, node: int) -> None:
        """A node may be asked again."""

    def aggregated(self, aggregation: Aggregation) -> None:
        """A round of training is over."""

    def evaluated(self, record: RoundRecord, metrics: MetricRecord | None) -> None:
        """A round of evaluation by clients is over."""

    def server_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """The server has evaluated the model; 0 is the round before the first."""

    def round_finished(self, progress: Progress, *, last: bool) -> None:
        """A round is over with all its evaluations; round 0 is where a run begins."""

    def run_ended(self, server_round: int, outcome: str, sentence: str) -> None:
        """``start`` is over: ``finished``, ``stopped`` by an infeasible round, or ``failed``, and why."""


@dataclass(frozen=True)
class Round:
    """A round that is under way.

    Attributes
    ----------
    number : int
        Flower's round number.
    kind : str
        ``train`` or ``evaluate``.
    messages : tuple of Message
        What was sent.
    quarantined : tuple of int
        The nodes left out of it.
    model : SentModel or None
        What training replies must match; None in evaluation.
    admitted : tuple of Admitted
        The replies let in, in the order of partitions.
    refused : tuple of Refusal
        The replies that were not.
    abstained : tuple of int
        The nodes that had nothing to say to what the round asks for, in the order of partitions.
    """

    number: int
    kind: str
    messages: tuple[Message, ...]
    quarantined: tuple[int, ...] = ()
    model: SentModel | None = None
    admitted: tuple[Admitted, ...] = ()
    refused: tuple[Refusal, ...] = ()
    abstained: tuple[int, ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """The nodes that were asked."""
        return tuple(message.metadata.dst_node_id for message in self.messages)


def check_observers(observers: object) -> None:
    """Raise unless these are observers."""
    if not isinstance(observers, Sequence) or not all(isinstance(each, Observer) for each in observers):
        raise ConfigurationError(f"strategy: observers must be a list of Observer objects; got {observers!r:.100}")


class Identity(NamedTuple):
    """What a node says of itself.

    Attributes
    ----------
    partition : int
        The partition that it holds.
    gpus : str
        Its CUDA_VISIBLE_DEVICES; ``all`` where it is not set.
    assigned : bool
        Whether the partition was assigned to it, because it named none, or one that others named, too.
    """

    partition: int
    gpus: str = "all"
    assigned: bool = False


@runtime_checkable
class Remembering(Protocol):
    """What keeps something from round to round that a run needs to go on: strategies, and grids that attack."""

    def memory(self) -> Mapping[str, Any]:
        """Return what is kept; all of it is `storable`."""

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore what `memory` returned."""


class _Stopped(Exception):  # noqa: N818
    """Ends Flower's loop over the rounds."""


class Guard:
    """Judges replies, keeps records and quarantine, tells observers.

    Parameters
    ----------
    terms : Terms
        What replies to training must hold beside the model.
    evaluation_terms : Terms
        The same in evaluation.
    seed : int
        Source of the samples.
    least : int
        Quarantine leaves at least as many nodes; >= 1.
    quarantine_after : int, optional
        Refusals after which a node is no longer asked; never when not given.
    on_infeasible : str
        ``keep`` or ``stop``: whether the run goes on after a round that was infeasible.
    clamp : float, optional
        In what functions of Flower's and the user's are given, a number of examples above this multiple of the median
        is lowered to it; >= 1.
    observers : sequence of Observer
        Who is told.

    Attributes
    ----------
    history, evaluations : list of RoundRecord
        One record per round of training, and of evaluation.
    partitions : dict of int to int
        The partition of each node, as far as it is known.
    refusals : dict of int to int
        How often each node was refused for what was certainly its own doing, since it was last released.
    assigned : set of int
        Nodes whose partition was assigned to them, because they named none, or one that others named, too: they are
        taken for nobody's successor.
    replaced : dict of int to int
        The partitions of nodes that had other ids before the run was resumed; their records name the old ones.
    stopped : str
        Why the run is to end; empty as long as it is not.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.
    """

    def __init__(
        self,
        terms: Terms,
        evaluation_terms: Terms,
        *,
        seed: int = 0,
        least: int = 1,
        quarantine_after: int | None = None,
        on_infeasible: str = "keep",
        clamp: float | None = 2.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        check_integer("strategy", "seed", seed, 0)
        check_choice("strategy", "on_infeasible", on_infeasible, ("keep", "stop"))
        check_integer("strategy", "least", least, 1)
        if quarantine_after is not None:
            check_integer("strategy", "quarantine_after", quarantine_after, 1)
        if clamp is not None:
            check_number("strategy", "clamp", clamp, minimum=1)
        check_observers(observers)
        self.terms = {MessageType.TRAIN: terms, MessageType.EVALUATE: evaluation_terms}
        self.seed = seed
        self.least = least
        self.quarantine_after = quarantine_after
        self.on_infeasible = on_infeasible
        self.clamp = clamp
        self.observers = tuple(observers)
        self.history: list[RoundRecord] = []
        self.evaluations: list[RoundRecord] = []
        self.partitions: dict[int, int] = {}
        self.refusals: dict[int, int] = {}
        self.assigned: set[int] = set()
        self.replaced: dict[int, int] = {}
        self.stopped = ""
        self._open: Round | None = None
        self._result: Result | None = None  # what a run has come to, while one is under way
        self._unfinished: int | None = None  # a round of it whose evaluations may not be over
        self._memory: Callable[[], Mapping[str, Any]] = dict  # what `Progress.memory` is then

    # -- whom to ask ------------------------------------------------------------------------------

    def order(self, node: int) -> tuple[int, int, int]:
        """Nodes of known partition first, by partition; then, and where two claim the same, by id."""
        partition = self.partitions.get(node)
        return (1, 0, node) if partition is None else (0, partition, node)

    def own_partitions(self, nodes: Iterable[int]) -> dict[int, int]:
        """Return the partitions of the nodes that alone, of all these, are said to hold theirs, by themselves."""
        known = {node: self.partitions[node] for node in nodes if node in self.partitions}
        count = Counter(known.values())
        return {node: own for node, own in known.items() if count[own] == 1 and node not in self.assigned}

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes in quarantine, those with the fewest refusals first."""
        if self.quarantine_after is None:
            return ()
        held = (node for node, count in self.refusals.items() if count >= self.quarantine_after)
        return tuple(sorted(held, key=lambda node: (self.refusals[node], self.order(node))))

    def release(self, node: int) -> None:
        """Let a node out of quarantine and forget its refusals."""
        if self.refusals.pop(node, None) is not None:
            for observer in self.observers:
                observer.node_released(node)

    def withheld(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """Return the nodes, of those that could be asked, that quarantine leaves out."""
        nodes = set(nodes)
        held = [node for node in self.quarantined if node in nodes]
        return tuple(held[max(self.least - (len(nodes) - len(held)), 0) :])

    def sample(
        self, kind: str, server_round: int, grid: Grid, fraction: float, minimum: int, available: int
    ) -> tuple[list[int], tuple[int, ...]]:
        """Draw the nodes to ask from the seed, in order, once there are enough.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        server_round : int
            The round.
        grid : Grid
            Where the nodes are.
        fraction : float
            The share of all nodes to ask.
        minimum : int
            The smallest number to ask; fewer only if quarantine leaves fewer.
        available : int
            How many nodes to wait for.

        Returns
        -------
        list of int
            The nodes to ask.
        tuple of int
            The nodes left out because they are in quarantine.
        """
        size = max(int(len(list(grid.get_node_ids())) * fraction), minimum)
        _, nodes = sample_nodes(grid, available, size)  # it waits for the nodes
        held = self.withheld(nodes)
        pool = sorted((node for node in nodes if node not in held), key=self.order)
        size = min(size, len(pool))
        chosen = sample_clients(self.seed, kind, server_round, len(pool), size)
        log.info("configure_%s: Sampled %s nodes (out of %s)", kind, size, len(nodes))
        return [pool[index] for index in chosen], held

    # -- one round --------------------------------------------------------------------------------

    def open(self, opened: Round, arrays: ArrayRecord) -> list[Message]:
        """Remember what is sent, and return it.

        Parameters
        ----------
        opened : Round
            The round.
        arrays : ArrayRecord
            The model that is sent.
        """
        self._open = opened
        if opened.quarantined:
            log.info("configure_%s: %s nodes are in quarantine", opened.kind, len(opened.quarantined))
        for observer in self.observers:
            observer.round_configured(opened.number, opened.kind, opened.asked, opened.quarantined, arrays)
        return list(opened.messages)

    def judge(self, kind: str, replies: Iterable[Message]) -> Round | None:
        """Judge the replies to the round that is open.

        Parameters
        ----------
        kind : str
            ``train`` or ``evaluate``.
        replies : iterable of Message
            As they came.

        Returns
        -------
        Round or None
            The round, with its verdicts; None if no such round is open.
        """
        opened, self._open = self._open, None
        if opened is None or opened.kind != kind:
            return None
        admitted, refused = admit(replies, opened.messages, self.terms[kind], opened.model)
        for reply in admitted:
            if reply.partition is not None:
                self.partitions.setdefault(reply.node, reply.partition)
        abstained = sorted((reply.node for reply in admitted if reply.abstains), key=self.order)
        admitted = sorted((r for r in admitted if not r.abstains), key=lambda reply: self.order(reply.node))
        besides = f", {len(abstained)} abstained" if abstained else ""
        log.info("aggregate_%s: Admitted %s replies, refused %s%s", kind, len(admitted), len(refused), besides)
        refused.sort(key=lambda refusal: self.order(refusal.node))
        verdicts: list[Admitted | Refusal] = [*admitted, *refused]
        for verdict in verdicts:
            for observer in self.observers:
                observer.reply_judged(opened.number, kind, verdict)
        for node in abstained:
            for observer in self.observers:
                observer.reply_abstained(opened.number, kind, node)
        for refusal in refused:
            log.warning("\t> Refused node %s: %s (%s)", refusal.node, refusal.reason.value, refusal.detail)
            if refusal.reason.blames:
                self._count(opened.number, refusal.node)
        return dataclasses.replace(opened, admitted=tuple(admitted), refused=tuple(refused), abstained=tuple(abstained))

    def _count(self, server_round: int, node: int) -> None:
        count = self.refusals[node] = self.refusals.get(node, 0) + 1
        if count == self.quarantine_after:
            log.warning("\t> Node %s is put into quarantine after %s refusals", node, count)
            for observer in self.observers:
                observer.node_quarantined(server_round, node, count)

    def contents(self, judged: Round) -> list[RecordDict]:
        """Return the replies admitted to a round as `rebuilt` makes them."""
        return rebuilt(judged.admitted, self.terms[judged.kind], judged.model, self.clamp)

    def metrics(self, judged: Round, aggregate: MetricsFunction) -> MetricRecord | None:
        """Aggregate the metrics of a round; a function that stumbles over what a client sent gives way to medians.

        Parameters
        ----------
        judged : Round
            The round.
        aggregate : callable (list of RecordDict, str) -> MetricRecord
            Flower's or the user's.

        Returns
        -------
        MetricRecord or None
            None if no reply was admitted.
        """
        if not judged.admitted:
            return None
        contents, key = self.contents(judged), self.terms[judged.kind].weighted_by_key
        try:
            found = aggregate(contents, key)
            if not isinstance(found, MetricRecord | None):
                raise TypeError(f"it returned a {type(found).__name__}; return a MetricRecord")
            return found
        except Exception as error:
            failed = failure(aggregate, error)
            log.warning("metrics: medians are shown instead in round %s, for %s", judged.number, failed)
            return robust_metrics(self.contents(judged), key)

    def _record(self, judged: Round, outcome: Outcome, sentence: str = "", **fields: Any) -> RoundRecord:
        return RoundRecord(
            judged.number,
            judged.asked,
            tuple(reply.node for reply in judged.admitted),
            tuple(self.partitions.get(reply.node) for reply in judged.admitted),
            judged.refused,
            outcome,
            sentence,
            kind=judged.kind,
            quarantined=judged.quarantined,
            abstained=judged.abstained,
            **fields,
        )

    def close_training(
        self,
        judged: Round,
        outcome: Outcome,
        sentence: str,
        arrays: ArrayRecord,
        metrics: MetricRecord | None,
        *,
        rows: Rows | None = None,
        aggregate: Aggregate | None = None,
        state: State | None = None,
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Put a round of training on record.

        Parameters
        ----------
        judged : Round
            The round.
        outcome : Outcome
            How it ended.
        sentence : str
            Why it was infeasible, if it was.
        arrays : ArrayRecord
            The next model.
        metrics : MetricRecord or None
            The metrics.
        rows, aggregate, state
            As in `Aggregation`.

        Returns
        -------
        ArrayRecord
            The next model.
        MetricRecord or None
            The metrics.
        """
        assert judged.model is not None
        known: dict[str, Any] = {}
        if aggregate is not None:
            known = {"weights": tuple(aggregate.weights.tolist()), "stats": aggregate.stats}
        record = self._record(judged, outcome, sentence, **known)
        self.history.append(record)
        if self._result is not None:
            self._result.arrays = arrays
            self._unfinished = judged.number
            if metrics is not None:
                self._result.train_metrics_clientapp[judged.number] = metrics
        for observer in self.observers:
            observer.aggregated(Aggregation(record, judged.model.record, arrays, rows, aggregate, state or {}))
        if outcome is Outcome.INFEASIBLE:
            log.warning("aggregate_train: round %s leaves the model as it is: %s", judged.number, sentence)
            if self.on_infeasible == "stop":
                self.stopped = sentence
        return arrays, metrics

    def close_evaluation(self, judged: Round, metrics: MetricRecord | None) -> MetricRecord | None:
        """Put a round of evaluation on record, and return its metrics."""
        sentence = "" if judged.admitted else NOBODY
        record = self._record(judged, Outcome.INFEASIBLE if sentence else Outcome.OK, sentence)
        self.evaluations.append(record)
        if self._result is not None and metrics is not None:
            self._result.evaluate_metrics_clientapp[judged.number] = metrics
        for observer in self.observers:
            observer.evaluated(record, metrics)
        return metrics

    # -- the run ----------------------------------------------------------------------------------

    def over(self) -> bool:
        """Finish the round before, and say whether it was the last; inside `run` that ends the run.

        Flower's loop knows no way out, so from within it there is an exception that `run` catches.
        """
        self._finish(last=bool(self.stopped))
        if self.stopped and self._result is not None:
            raise _Stopped
        return bool(self.stopped)

    def run(
        self,
        guarding: Guarding,
        looped: Strategy,
        start: Callable[..., Result],
        evaluate_fn: EvaluateFunction | None,
        arguments: Mapping[str, Any],
    ) -> Result:
        """Run a strategy to its end, or until it is stopped.

        Where an observer has something to go on from, the rounds up to there are left out, and Flower's log counts
        those that follow from 1. A round that is to be the last is finished with its evaluations; then the result is
        what there is so far.

        Parameters
        ----------
        guarding : Guarding
            The strategy with this guard.
        looped : Strategy
            The one whose methods Flower's loop calls.
        start : callable
            Its ``Strategy.start`` as Flower wrote it, bound.
        evaluate_fn : callable, optional
            The argument of that name.
        arguments : mapping
            The other arguments.

        Returns
        -------
        Result
            Flower's.
        """
        # Copies: what strategies write into them must not be taken for the caller's when a run is resumed.
        configs = {name: ConfigRecord({**(arguments[name] or {})}) for name in _CONFIGS}
        result = self._result = Result()
        result.arrays = arguments["initial_arrays"]
        self.stopped, self._unfinished = "", 0
        holders: dict[str, Remembering] = {"strategy": guarding}
        if isinstance(grid := arguments["grid"], Remembering):
            holders["grid"] = grid
        self._memory = lambda: {
            **{name: each.memory() for name, each in holders.items()},
            **{name: dict(each) for name, each in configs.items()},
        }
        try:
            done = self._begin(guarding, result, configs, holders, arguments)
            left = {
                "initial_arrays": result.arrays,
                "num_rounds": max(arguments["num_rounds"] - done, 0),
                "evaluate_fn": None if evaluate_fn is None else self._evaluated(evaluate_fn, done),
            }
            with replaced(looped, {name: _later(getattr(guarding, name), done) for name in METHODS}):
                found = start(**{**arguments, **configs, **left})
            self._finish(last=True)
        except _Stopped:
            found = result
            log.warning("The run ends after round %s: %s", self.history[-1].round, self.stopped)
        except BaseException as error:
            self._end("failed", short(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._result = None
        self._end("stopped" if self.stopped else "finished", self.stopped)
        return result if done else found

    def _begin(
        self,
        guarding: Guarding,
        result: Result,
        configs: Mapping[str, ConfigRecord],
        holders: Mapping[str, Remembering],
        arguments: Mapping[str, Any],
    ) -> int:
        """Tell observers, restore what one of them has, and return the round to go on from."""
        sent = {f"{name}.{key}": value for name, each in configs.items() for key, value in each.items()}
        own = {name.replace("_", "-"): getattr(self, name) for name in _SETTINGS}
        told = {key: value for key, value in sent.items() if isinstance(value, Scalar)}
        config = {"rounds": arguments["num_rounds"], **own, **guarding.settings(), **told}
        rule, grid = str(getattr(guarding, "rule", "")), arguments["grid"]
        opening = Opening(self, guarding.label, rule, config, result.arrays, grid, arguments["timeout"])
        found = [progress for each in self.observers if (progress := each.run_started(opening)) is not None]
        if not found:
            self._finish()
            return 0
        progress = found[0]
        vars(result).update(vars(progress.result))
        self.history, self.evaluations = list(progress.history), list(progress.evaluations)
        self._replace(progress)
        for name, holder in holders.items():
            if name in progress.memory:
                holder.recall(progress.memory[name])
        for name in _CONFIGS:
            configs[name].update(progress.memory[name])
        self._unfinished = None
        return progress.round

    def _replace(self, progress: Progress) -> None:
        """Restore what is known of nodes, also of those that have new ids since, as all have that Flower simulates.

        They are known by their partition, if it is known before the run goes on, and if one node alone was said to
        hold it, then and now: nobody gets another one into quarantine by naming its partition.
        """
        known, refusals = dict(progress.partitions), dict(progress.refusals)
        then, own = Counter(known.values()), self.own_partitions(self.partitions)
        former = {partition: node for node, partition in known.items() if then[partition] == 1}
        self.replaced = dict(progress.replaced)
        for node, partition in self.partitions.items():
            old = former.get(partition)
            if old is None or old in self.partitions or node in progress.partitions or node not in own:
                continue
            self.replaced[old] = known.pop(old)
            if old in refusals:
                refusals[node] = refusals.pop(old)
        self.partitions, self.refusals = {**known, **self.partitions}, refusals

    def _finish(self, *, last: bool = False) -> None:
        """Tell observers that a round is over, if one is."""
        if self._result is None or self._unfinished is None:
            return
        if self.observers:
            progress = Progress(
                self._unfinished,
                self._result,
                self.history,
                self.evaluations,
                self.partitions,
                self.refusals,
                self._memory(),
                self.replaced,
            )
            for observer in self.observers:
                observer.round_finished(progress, last=last)
        self._unfinished = None

    def _end(self, outcome: str, sentence: str) -> None:
        for observer in self.observers:
            observer.run_ended(self.history[-1].round if self.history else 0, outcome, sentence)

    def _evaluated(self, evaluate_fn: EvaluateFunction, done: int) -> EvaluateFunction:
        """Return the server's evaluation by the true number of the round, which goes on record."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if done and server_round == 0:
                return None  # it was evaluated before
            number = server_round + done
            metrics = evaluate_fn(number, arrays)
            if metrics is not None:
                if self._result is not None:
                    self._result.evaluate_metrics_serverapp[number] = metrics
                for observer in self.observers:
                    observer.server_evaluated(number, metrics)
            return metrics

        return evaluate


def _later(method: Callable[..., Any], by: int) -> Callable[..., Any]:
    """Return a method whose first argument, the round, is counted from where a run goes on."""
    return lambda server_round, *arguments: method(server_round + by, *arguments)


@contextmanager
def replaced(strategy: Strategy, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Put other methods into one strategy's place for those of its class, for a while."""
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
    """Return a strategy's public attributes that are scalars, named as in a run config; None may become anything."""
    held = {name.replace("_", "-"): value for name, value in vars(strategy).items() if not name.startswith("_")}
    return {name: value for name, value in held.items() if isinstance(value, Scalar) and value is not None}


class Guarding:
    """What strategies with a guard let their users see of it; ``guard`` is theirs to set."""

    guard: Guard

    @abstractmethod
    def looped(self) -> tuple[Strategy, Callable[..., Result]]:
        """Return the strategy whose methods Flower's loop calls, and the ``start`` that holds the loop."""

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
        """Run Flower's rounds, as many as there are to be, under guard; see its ``Strategy.start``."""
        arguments = {
            "grid": grid,
            "initial_arrays": initial_arrays,
            "num_rounds": num_rounds,
            "timeout": timeout,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
        }
        return self.guard.run(self, *self.looped(), evaluate_fn, arguments)

    @property
    def label(self) -> str:
        """The name that records give to the strategy."""
        return type(self).__name__

    def settings(self) -> dict[str, Scalar]:
        """Return what decides a run's result, as far as it is scalars."""
        return scalars(self)

    def memory(self) -> Mapping[str, Any]:
        """Return what is kept from round to round; see `Progress`."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restore what `memory` returned."""

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
        """The partition of each node, as far as it is known.

        Replies are aggregated, and clients sampled, in this order, so that runs repeat to the bit although Flower
        draws new node ids. It is learnt from a node's first reply that holds the metric ``partition-id``, or set
        beforehand; node ids serve where it is not known.
        """
        return self.guard.partitions

    @partitions.setter
    def partitions(self, partitions: dict[int, int]) -> None:
        self.guard.partitions = partitions

    def identify(self, identities: Mapping[int, Identity]) -> None:
        """Set the nodes' partitions, as `discover` returns them, with which of them are the nodes' own word."""
        self.guard.partitions = {node: each.partition for node, each in identities.items()}
        self.guard.assigned = {node for node, each in identities.items() if each.assigned}

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The nodes in quarantine."""
        return self.guard.quarantined

    def release(self, node: int) -> None:
        """Let a node out of quarantine and forget its refusals."""
        self.guard.release(node)
