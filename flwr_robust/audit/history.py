"""What a log tells of a run, of its clients and of its rounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr_robust.audit.events import (
    Aggregated,
    CheckpointWritten,
    Evaluated,
    Measured,
    Quarantined,
    Released,
    ReplyAbstained,
    ReplyAdmitted,
    ReplyRefused,
    Resumed,
    RolledBack,
    RoundConfigured,
    UpdateKept,
)
from flwr_robust.audit.log import Record
from flwr_robust.errors import AuditError

__all__ = ["ClientInRound", "ClientSummary", "RoundSummary", "clients", "counting", "find_client", "rounds", "visits"]

# What a round did to the model; clients' refusals and quarantines stay true whatever became of the model.
_UNDONE = (
    *(Aggregated, CheckpointWritten, Evaluated, Measured),
    *(ReplyAbstained, ReplyAdmitted, RoundConfigured, UpdateKept),
)


@dataclass(frozen=True)
class ClientInRound:
    """What became of one client in one round.

    Attributes
    ----------
    round, phase, node, partition
        Where and who.
    verdict : str
        ``admitted``, ``refused``, ``abstained`` or ``silent``.
    reason, detail : str
        Why it was refused.
    weight, distance, angle : float, optional
        What the rule gave it, and how far and in which direction it lies from the aggregate.
    undone : bool
        Whether the run was later taken back to before this round.
    """

    round: int
    phase: str
    node: int
    partition: int | None
    verdict: str
    reason: str = ""
    detail: str = ""
    weight: float | None = None
    distance: float | None = None
    angle: float | None = None
    undone: bool = False


@dataclass(frozen=True)
class ClientSummary:
    """What became of one client in all rounds.

    Attributes
    ----------
    node, partition
        Who.
    asked, admitted, refused, silent : int
        How often; rounds that were undone included.
    reasons : tuple of (str, int)
        Why it was refused, and how often; the most frequent first.
    weight : float, optional
        Mean of its weights over the rounds that count and in which it was asked to train; 0 where it was not admitted.
    distance : float, optional
        Mean of its distances from the aggregate, in those of them that know it.
    quarantined : bool
        Whether it is left out of sampling now.
    abstained : int
        How often it had nothing to say to what was asked for.
    """

    node: int
    partition: int | None
    asked: int
    admitted: int
    refused: int
    silent: int
    reasons: tuple[tuple[str, int], ...]
    weight: float | None
    distance: float | None
    quarantined: bool
    abstained: int = 0


@dataclass(frozen=True)
class RoundSummary:
    """What became of one round of training.

    Attributes
    ----------
    round : int
        Flower's round.
    asked, admitted, refused, silent : int
        Clients, replies, replies, clients.
    heaviest : float, optional
        The largest weight.
    outcome, model_after : str
        Of the aggregation; empty where there was none.
    undone : bool
        Whether the run was later taken back to before this round.
    abstained : int
        Clients that had nothing to say to what was asked for.
    """

    round: int
    asked: int
    admitted: int
    refused: int
    silent: int
    heaviest: float | None
    outcome: str
    model_after: str
    undone: bool
    abstained: int = 0


def counting(records: Iterable[Record]) -> list[Record]:
    """Return the records without those of rounds that a rollback or a resumption undid."""
    records = list(records)
    undone = _undone(records)
    return [record for record in records if record.sequence not in undone]


def _undone(records: Sequence[Record]) -> set[int]:
    """Return the sequences of the records that no longer count."""
    undone: set[int] = set()
    least: int | None = None  # the lowest round that anything later goes back to
    for record in reversed(records):
        event = record.event
        if isinstance(event, Resumed | RolledBack):
            to_round = event.round if isinstance(event, Resumed) else event.to_round
            least = to_round if least is None else min(least, to_round)
        elif least is not None and isinstance(event, _UNDONE) and event.round > least:
            undone.add(record.sequence)
    return undone


@dataclass
class _Group:
    """The records of one phase of one round."""

    round: int
    phase: str
    undone: bool
    asked: tuple[int, ...] = ()
    replies: list[ReplyAbstained | ReplyAdmitted | ReplyRefused] = field(default_factory=list)
    aggregated: Aggregated | None = None


def _groups(records: Sequence[Record]) -> list[_Group]:
    undone = _undone(records)
    groups: list[_Group] = []

    def current(server_round: int, phase: str) -> _Group:
        if not groups or (groups[-1].round, groups[-1].phase) != (server_round, phase):
            groups.append(_Group(server_round, phase, record.sequence in undone))
        return groups[-1]

    for record in records:
        event = record.event
        if isinstance(event, RoundConfigured):
            groups.append(_Group(event.round, event.phase, record.sequence in undone, event.asked))
        elif isinstance(event, ReplyAbstained | ReplyAdmitted | ReplyRefused):
            current(event.round, event.phase).replies.append(event)
        elif isinstance(event, Aggregated):
            current(event.round, "train").aggregated = event
    return groups


def _measured(group: _Group) -> dict[int, tuple[float | None, float | None, float | None]]:
    """Return weight, distance and angle by node, as far as the round was aggregated and they are known."""
    event = group.aggregated
    if event is None:
        return {}
    columns = [
        dict(zip(event.nodes, values, strict=False)) for values in (event.weights, event.distances, event.angles)
    ]
    return {node: (columns[0].get(node), columns[1].get(node), columns[2].get(node)) for node in event.nodes}


def _partitions(records: Iterable[Record]) -> dict[int, int]:
    """Return the partition of every node that is known, as it was last stated."""
    return {
        record.event.node: record.event.partition
        for record in records
        if isinstance(record.event, ReplyAbstained | ReplyAdmitted | ReplyRefused | Quarantined)
        and record.event.partition is not None
    }


def rounds(records: Sequence[Record]) -> list[RoundSummary]:
    """Return a summary of every round of training, in the order of the log; one that was done twice comes twice."""
    found = []
    for group in _groups(records):
        if group.phase == "train":
            event = group.aggregated
            admitted = sum(isinstance(reply, ReplyAdmitted) for reply in group.replies)
            abstained = sum(isinstance(reply, ReplyAbstained) for reply in group.replies)
            weights = [] if event is None else [weight for weight in event.weights if weight is not None]
            found.append(
                RoundSummary(
                    group.round,
                    len(group.asked),
                    admitted,
                    len(group.replies) - admitted - abstained,
                    len(set(group.asked) - {reply.node for reply in group.replies}),
                    max(weights, default=None),
                    event.outcome if event else "",
                    event.model_after if event else "",
                    group.undone,
                    abstained,
                )
            )
    return found


def visits(records: Sequence[Record]) -> list[ClientInRound]:
    """Return what became of every client in every round and phase, in the order of the log."""
    partitions = _partitions(records)
    found = []
    for group in _groups(records):
        measured = _measured(group)
        for reply in group.replies:
            place = (group.round, group.phase, reply.node, partitions.get(reply.node))
            if isinstance(reply, ReplyRefused):
                found.append(ClientInRound(*place, "refused", reply.reason, reply.detail, undone=group.undone))
            elif isinstance(reply, ReplyAbstained):
                found.append(ClientInRound(*place, "abstained", undone=group.undone))
            else:
                weight, distance, angle = measured.get(reply.node, (None, None, None))
                found.append(ClientInRound(*place, "admitted", "", "", weight, distance, angle, group.undone))
        heard = {reply.node for reply in group.replies}
        found += [
            ClientInRound(group.round, group.phase, node, partitions.get(node), "silent", undone=group.undone)
            for node in group.asked
            if node not in heard
        ]
    return found


def clients(records: Sequence[Record]) -> list[ClientSummary]:
    """Return a summary of every client, by partition and then by node."""
    asked: Counter[int] = Counter()
    weights: dict[int, list[float]] = {}
    for group in _groups(records):
        asked.update(group.asked)
        if group.phase == "train" and not group.undone and group.aggregated and group.aggregated.weights:
            measured = _measured(group)
            for node in {*group.asked, *measured}:
                weights.setdefault(node, []).append(measured.get(node, (0.0,))[0] or 0.0)
    verdicts: Counter[tuple[int, str]] = Counter()
    reasons: dict[int, Counter[str]] = {}
    distances: dict[int, list[float]] = {}
    for visit in visits(records):
        verdicts[visit.node, visit.verdict] += 1
        if visit.reason:
            reasons.setdefault(visit.node, Counter())[visit.reason] += 1
        if visit.distance is not None and not visit.undone:
            distances.setdefault(visit.node, []).append(visit.distance)
    quarantined = {
        record.event.node: isinstance(record.event, Quarantined)
        for record in records
        if isinstance(record.event, Quarantined | Released)
    }
    partitions = _partitions(records)
    nodes = {*asked, *(node for node, _ in verdicts), *quarantined}
    return [
        ClientSummary(
            node,
            partitions.get(node),
            asked[node],
            verdicts[node, "admitted"],
            verdicts[node, "refused"],
            verdicts[node, "silent"],
            tuple(reasons.get(node, Counter()).most_common()),
            statistics.fmean(weights[node]) if node in weights else None,
            statistics.fmean(distances[node]) if node in distances else None,
            quarantined.get(node, False),
            verdicts[node, "abstained"],
        )
        for node in sorted(nodes, key=lambda node: (node not in partitions, partitions.get(node, 0), node))
    ]


def find_client(records: Sequence[Record], client: int) -> int:
    """Return the node that a number means: a node's id, else the partition that one node has.

    Raises
    ------
    AuditError
        If no node, or more than one, is meant.
    """
    known = {summary.node: summary.partition for summary in clients(records)}
    if client in known:
        return client
    meant = [node for node, partition in known.items() if partition == client]
    if len(meant) != 1:
        those = f"nodes {', '.join(map(str, meant))} all say they hold that partition" if meant else "no node has it"
        raise AuditError(f"audit: client {client} is neither a node nor the partition of one: {those}")
    return meant[0]
