"""The history of a run, of its clients and of its rounds, read from its log."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr_robust.audit.events import (
    Aggregated,
    Banned,
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
    RoundRemembered,
    RunStarted,
    Suspected,
    UpdateKept,
)
from flwr_robust.audit.log import Record
from flwr_robust.errors import AuditError
from flwr_robust.printing import Listing

__all__ = [
    "ClientInRound",
    "ClientSummary",
    "RoundSummary",
    "banned",
    "clients",
    "counting",
    "find_client",
    "partitions_are_claims",
    "released_since",
    "rounds",
    "visits",
]

# Events that change the model; refusals and quarantines of clients stay valid after a rollback.
_UNDONE = (
    *(Aggregated, CheckpointWritten, Evaluated, Measured),
    *(ReplyAbstained, ReplyAdmitted, RoundConfigured, RoundRemembered, Suspected, UpdateKept),
)


@dataclass(frozen=True)
class ClientInRound:
    """The result of one client in one round.

    Attributes
    ----------
    round, phase, node, partition
        The round and phase, and the client.
    verdict : str
        ``admitted``, ``refused``, ``abstained`` or ``silent``.
    reason, detail : str
        Why its reply was refused.
    weight, distance, angle : float, optional
        The rule's weight, and the distance and angle of its update to the aggregate.
    undone : bool
        Whether the round was later undone by a rollback or a resumption.
    count : int
        How many of its replies were refused for this reason; otherwise 1.
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
    count: int = 1


@dataclass(frozen=True)
class ClientSummary:
    """The results of one client in all rounds.

    Attributes
    ----------
    node, partition
        The client.
    asked, admitted, refused, silent : int
        How often each happened, including undone rounds.
    reasons : tuple of (str, int)
        The reasons of refusals with their numbers, the most frequent first.
    weight : float, optional
        Mean of its weights over the rounds that count and in which it was asked to train. A round without admission
        counts as 0.
    distance : float, optional
        Mean of its known distances from the aggregate in these rounds.
    quarantined : bool
        Whether it is now in quarantine, that is, not sampled.
    abstained : int
        How often it abstained, that is, answered without arrays.
    signs : tuple of (str, int)
        The signs for which it was suspected in rounds that count, with their numbers, the most frequent first.
    banned : bool
        Whether an operator has banned it.
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
    signs: tuple[tuple[str, int], ...] = ()
    banned: bool = False


@dataclass(frozen=True)
class RoundSummary:
    """The result of one round of training.

    Attributes
    ----------
    round : int
        Flower's round.
    asked, admitted, refused, silent : int
        Numbers of clients asked, replies admitted, replies refused, and clients without an answer.
    heaviest : float, optional
        The largest weight.
    outcome, model_after : str
        The aggregation's outcome and model; empty if there was none.
    undone : bool
        Whether the round was later undone by a rollback or a resumption.
    abstained : int
        Number of clients that abstained.
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


def banned(records: Iterable[Record]) -> set[int]:
    """Return the nodes that are banned after the records of a log; no rollback lifts a ban."""
    found: set[int] = set()
    for record in records:
        if isinstance(record.event, Banned):
            found.add(record.event.node)
        elif isinstance(record.event, Released):
            found.discard(record.event.node)
    return found


def released_since(records: Iterable[Record], head: str) -> set[int]:
    """Return the nodes that were released after the line of this hash, such as that of a checkpoint."""
    found: set[int] | None = None
    for record in records:
        if record.previous == head:
            found = set()
        if found is not None and isinstance(record.event, Released):
            found.add(record.event.node)
    return found or set()


def counting(records: Iterable[Record]) -> list[Record]:
    """Return the records, without those of rounds that a rollback or a resumption has undone."""
    records = list(records)
    undone = _undone(records)
    return [record for record in records if record.sequence not in undone]


def _undone(records: Sequence[Record]) -> set[int]:
    """Return the sequences of the records that no longer count."""
    undone: set[int] = set()
    least: int | None = None  # the lowest round to which a later record returns
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
    """Return the known weights, distances and angles by node, if the round was aggregated."""
    event = group.aggregated
    if event is None:
        return {}
    columns = [
        dict(zip(event.nodes, values, strict=False)) for values in (event.weights, event.distances, event.angles)
    ]
    return {node: (columns[0].get(node), columns[1].get(node), columns[2].get(node)) for node in event.nodes}


def _partitions(records: Iterable[Record]) -> dict[int, int]:
    """Return the last stated partition (numbered share of the data) of each node."""
    return {
        record.event.node: record.event.partition
        for record in records
        if isinstance(record.event, ReplyAbstained | ReplyAdmitted | ReplyRefused | Quarantined)
        and record.event.partition is not None
    }


def rounds(records: Sequence[Record]) -> Listing[RoundSummary]:
    """Return a summary of every round of training, in the order of the log; a repeated round appears twice."""
    found: Listing[RoundSummary] = Listing()
    for group in _groups(records):
        if group.phase == "train":
            event = group.aggregated
            admitted = sum(isinstance(reply, ReplyAdmitted) for reply in group.replies)
            abstained = sum(isinstance(reply, ReplyAbstained) for reply in group.replies)
            refused = sum(reply.count for reply in group.replies if isinstance(reply, ReplyRefused))
            weights = [] if event is None else [weight for weight in event.weights if weight is not None]
            found.append(
                RoundSummary(
                    group.round,
                    len(group.asked),
                    admitted,
                    refused,
                    len(set(group.asked) - {reply.node for reply in group.replies}),
                    max(weights, default=None),
                    event.outcome if event else "",
                    event.model_after if event else "",
                    group.undone,
                    abstained,
                )
            )
    return found


def visits(records: Sequence[Record]) -> Listing[ClientInRound]:
    """Return the result of every client in every round and phase, in the order of the log."""
    partitions = _partitions(records)
    found: Listing[ClientInRound] = Listing()
    for group in _groups(records):
        measured = _measured(group)
        for reply in group.replies:
            place = (group.round, group.phase, reply.node, partitions.get(reply.node))
            if isinstance(reply, ReplyRefused):
                why = (reply.reason, reply.detail)
                found.append(ClientInRound(*place, "refused", *why, undone=group.undone, count=reply.count))
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


def clients(records: Sequence[Record]) -> Listing[ClientSummary]:
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
        verdicts[visit.node, visit.verdict] += visit.count
        if visit.reason:
            reasons.setdefault(visit.node, Counter())[visit.reason] += visit.count
        if visit.distance is not None and not visit.undone:
            distances.setdefault(visit.node, []).append(visit.distance)
    barred = banned(records)
    quarantined = {
        record.event.node: isinstance(record.event, Quarantined)
        for record in records
        if isinstance(record.event, Released)
        or (isinstance(record.event, Quarantined) and record.event.phase == "train")
    }
    signs: dict[int, Counter[str]] = {}
    for record in counting(records):
        if isinstance(record.event, Suspected):
            signs.setdefault(record.event.node, Counter())[record.event.sign] += 1
    partitions = _partitions(records)
    nodes = {*asked, *(node for node, _ in verdicts), *quarantined, *signs, *barred}
    return Listing(
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
            tuple(signs.get(node, Counter()).most_common()),
            node in barred,
        )
        for node in sorted(nodes, key=lambda node: (node not in partitions, partitions.get(node, 0), node))
    )


def partitions_are_claims(records: Iterable[Record]) -> bool:
    """Say whether partitions are what nodes say about themselves, as in a deployment; there ids identify nodes."""
    starts = [record.event for record in records if isinstance(record.event, RunStarted)]
    return any(start.config.get("by-partition") is False for start in starts)


def find_client(records: Sequence[Record], client: int) -> int:
    """Return the node for a number: a node's id, or the partition of exactly one node unless partitions are claims.

    Raises
    ------
    AuditError
        If the number fits no node, or more than one.
    """
    known = {summary.node: summary.partition for summary in clients(records)}
    if client in known:
        return client
    if partitions_are_claims(records):
        raise AuditError(
            f"audit: client {client} is no node of this run; in a deployment a partition is what a node claims: name "
            f"the id of a node"
        )
    meant = [node for node, partition in known.items() if partition == client]
    if len(meant) != 1:
        those = f"nodes {', '.join(map(str, meant))} all say they hold that partition" if meant else "no node has it"
        raise AuditError(f"audit: client {client} is neither a node nor the partition of one: {those}")
    return meant[0]
