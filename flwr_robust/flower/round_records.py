"""What is known of a run and its rounds: records that are kept, and what observers are handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import Aggregate, Outcome, State
from flwr_robust.flower.admission import Admitted, Refusal
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.quarantine import Nodes

__all__ = ["NOBODY", "Aggregation", "Opening", "Progress", "Round", "RoundRecord", "Scalar"]

NOBODY = "no reply was admitted"
"""Why a round is infeasible that has nothing to aggregate."""

Scalar = str | int | float | bool | None
"""What a run's configuration is made of."""


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


@dataclass(frozen=True)
class Opening:
    """A run that is about to start.

    Attributes
    ----------
    nodes : Nodes
        Their partitions, and which of them are in quarantine.
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

    nodes: Nodes
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
