"""Records of rounds, and the data that observers receive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, State
from flwr_robust.flower.admission import Admitted, Refusal
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.quarantine import Nodes
from flwr_robust.round_seeds import RoundSeeds

__all__ = ["NOBODY", "Aggregation", "Chapter", "Opening", "Progress", "Round", "RoundRecord", "Scalar"]

NOBODY = "no reply was admitted"
"""The reason why a round without admitted replies is infeasible."""

Scalar = str | int | float | bool | None
"""The types of values in a run's configuration."""


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
        The nodes whose replies were admitted, in the order of aggregation.
    partitions : tuple of (int or None)
        The partitions of the admitted nodes.
    refused : tuple of Refusal
        The replies that were refused.
    outcome : Outcome
        How the aggregation ended; INFEASIBLE leaves the model unchanged.
    sentence : str
        Why the round was infeasible; otherwise empty.
    weights : tuple of float
        The rule's weight for each admitted reply; empty if unknown.
    stats : mapping
        The rule's diagnostics.
    kind : str
        ``train`` or ``evaluate``.
    quarantined : tuple of int
        The connected nodes that were not asked because they are banned or in quarantine.
    waiting : tuple of int
        The connected nodes that were not asked, without blame: they rest, or are on probation.
    abstained : tuple of int
        The nodes that abstained: they answered, but had no arrays for the round.
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
    waiting: tuple[int, ...] = ()

    @property
    def silent(self) -> tuple[int, ...]:
        """The nodes that were asked and did not answer."""
        heard = {*self.admitted, *self.abstained, *(refusal.node for refusal in self.refused)}
        return tuple(node for node in self.asked if node not in heard)


@dataclass(frozen=True)
class Aggregation:
    """A round of training with its arrays, for observers, who must not write into the arrays.

    Attributes
    ----------
    record : RoundRecord
        The record of the round.
    before, after : ArrayRecord
        The model that was sent, and the next one; the same object if the model stays unchanged.
    rows : Rows or None
        The updates, in the order of ``record.admitted``; None if there are none.
    aggregate : Aggregate or None
        The rule's result; None if there is none, or if another strategy aggregated.
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
class Round:
    """A round in progress.

    Attributes
    ----------
    number : int
        Flower's round number.
    kind : str
        ``train`` or ``evaluate``.
    messages : tuple of Message
        The messages that were sent.
    quarantined : tuple of int
        The nodes that are not asked because they are banned or in quarantine.
    model : SentModel or None
        What training replies must match; None in evaluation.
    admitted : tuple of Admitted
        The admitted replies, in the order of partitions.
    refused : tuple of Refusal
        The replies that were refused.
    abstained : tuple of int
        The nodes that abstained, in the order of partitions.
    waiting : tuple of int
        The connected nodes that are not asked, without blame: they rest, or are on probation.
    available : int, optional
        How many nodes there were to choose from, with those left out.
    fault : str
        What is wrong with the app, if the refusals show that it is the app; otherwise empty.
    """

    number: int
    kind: str
    messages: tuple[Message, ...]
    quarantined: tuple[int, ...] = ()
    model: SentModel | None = None
    admitted: tuple[Admitted, ...] = ()
    refused: tuple[Refusal, ...] = ()
    abstained: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    available: int | None = None
    fault: str = ""

    @property
    def unheard(self) -> str:
        """The reason why the round is infeasible if no reply was admitted."""
        if self.abstained:
            return f"{NOBODY}, and {len(self.abstained)} of {len(self.messages)} nodes abstained"
        return f"{NOBODY}: {self.fault}" if self.fault else NOBODY

    @property
    def unjudged(self) -> str:
        """The reason why a round of evaluation has no metrics; empty if it has.

        Metrics need replies from more than half of the nodes that were asked and did not abstain. Otherwise the reply
        of one hostile node among drop-outs would be the metric.
        """
        if not self.admitted:
            return self.unheard
        able = len(self.messages) - len(self.abstained)
        if len(self.admitted) > able // 2:
            return ""
        besides = " that did not abstain" if self.abstained else ""
        return (
            f"metrics need replies from more than half of the {able} nodes asked{besides}, at least {able // 2 + 1}; "
            f"got {len(self.admitted)}"
        )

    @property
    def asked(self) -> tuple[int, ...]:
        """The nodes that were asked."""
        return tuple(message.metadata.dst_node_id for message in self.messages)


@dataclass(frozen=True)
class Opening:
    """A run that is about to start.

    Attributes
    ----------
    nodes : Nodes
        The nodes of the run: their partitions, and which of them are in quarantine.
    strategy : str
        The name of the strategy's class.
    rule : str
        The defence string; empty if another strategy aggregates.
    config : mapping
        The known settings that determine the result: scalars by name.
    arrays : ArrayRecord
        The initial model.
    grid : Grid
        The grid with the nodes.
    timeout : float
        How many seconds to wait for answers to queries: the timeout, or the deadline of rounds if it is shorter.
    suspect : callable (round, node, sign, detail)
        Informs all observers of a suspicion; see `Guard.suspect`.
    ban : callable (node, reason)
        Bans a node; see `Guard.ban`.
    release : callable (node, reason) -> bool
        Releases a node; see `Guard.release`.
    seeds : RoundSeeds
        The seeds of the run's rounds. A secret is for the server alone.
    """

    nodes: Nodes
    strategy: str
    rule: str
    config: Mapping[str, Scalar]
    arrays: ArrayRecord
    grid: Grid
    timeout: float
    suspect: Callable[[int, int, str, str], None]
    ban: Callable[[int, str], None]
    release: Callable[[int, str], bool]
    seeds: RoundSeeds


@dataclass(frozen=True)
class Chapter:
    """What a run has added to its history between two calls of `Observer.round_finished`.

    Attributes
    ----------
    history, evaluations : sequence of RoundRecord
        The new records of the guard.
    metrics : mapping of str to (mapping of int to MetricRecord)
        The new metrics in Flower's result, by the names of its attributes and by round.
    attacks : sequence
        The new records of a grid that is `Chronicling`, as it returns them.
    """

    history: Sequence[RoundRecord] = ()
    evaluations: Sequence[RoundRecord] = ()
    metrics: Mapping[str, Mapping[int, MetricRecord]] = field(default_factory=dict)
    attacks: Sequence[Any] = ()


@dataclass(frozen=True)
class Progress:
    """The state of a run after a round: everything that the server needs to continue as if it had never stopped.

    Attributes
    ----------
    round : int
        The last finished round.
    result : Result
        Flower's result up to that round: the model and all metrics.
    history, evaluations : sequence of RoundRecord
        The records of the guard.
    partitions, refusals, replaced, evaluation_refusals : mapping of int to int
        What the guard knows about nodes.
    absences : mapping
        Who joined when, and who rests; see `Nodes.absences`.
    memory : mapping
        ``strategy`` and ``grid`` hold the states of the strategy and of the grid, if it is `Remembering`.
        ``train_config`` and ``evaluate_config`` hold the configs sent to nodes, which strategies may change during a
        run. All of it is `storable`.
    chapter : Chapter
        What is new since the round before; in the progress from which a run is resumed, all records of the grid.
    seeds : RoundSeeds or None
        As in `Opening`; None keeps those that the run began with.
    """

    round: int
    result: Result
    history: Sequence[RoundRecord]
    evaluations: Sequence[RoundRecord]
    partitions: Mapping[int, int]
    refusals: Mapping[int, int]
    memory: Mapping[str, Any]
    replaced: Mapping[int, int] = field(default_factory=dict)
    evaluation_refusals: Mapping[int, int] = field(default_factory=dict)
    chapter: Chapter = field(default_factory=Chapter)
    absences: Mapping[str, Any] = field(default_factory=dict)
    seeds: RoundSeeds | None = None
