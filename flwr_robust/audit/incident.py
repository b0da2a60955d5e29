"""What a client has done in a run: its rounds, its weight, how far it moved the model, and what followed.

The displacement by client i is the norm of its part in the changes of the model, with the server's learning rate:

    || sum_t learning_rate * w_i(t) * x_i(t) ||

The log holds the weights w_i, the distances of the updates to the aggregate and the aggregate's length, but no update.
So it bounds the displacement by sum_t learning_rate * w_i(t) * (distance_i(t) + length(t)), by the triangle inequality.
A replay of kept updates gives the norm itself. A server's momentum m continues each change, by 1/(1 - m) in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.contents import KeptUpdates, Standing, checkpoint_folder, log_file
from flwr_robust.audit.events import Aggregated, RunStarted, UpdateKept
from flwr_robust.audit.history import ClientInRound, ClientSummary, clients, counting, visits
from flwr_robust.audit.log import Record
from flwr_robust.errors import AuditError

__all__ = ["Incident", "incident"]


@dataclass(frozen=True)
class Incident:
    """What is on record of one client.

    Attributes
    ----------
    summary : ClientSummary
        The client in all rounds, with those that were undone.
    visits : tuple of ClientInRound
        Its rounds of training and evaluation, with those that were undone.
    rounds : tuple of int
        The rounds that count, from ``since`` on, in which the client has a part in the model, in order.
    weight : float
        The sum of its weights in these rounds.
    bound : float or None
        The bound of the displacement; None if a distance is unknown.
    models : tuple of (int, str)
        The models from the first of these rounds on, as round and hash.
    rollback : int or None
        The last round before these; None if there are none.
    rollback_model : str
        The hash of the model after that round; empty if unknown.
    checkpoint : int or None
        The latest round with a checkpoint that is not later than that round; None if there is none.
    kept, kept_bytes : int
        The number of the client's updates that are kept, and their size together.
    deleted : int
        How many of its updates were deleted on record.
    """

    summary: ClientSummary
    visits: tuple[ClientInRound, ...]
    rounds: tuple[int, ...]
    weight: float
    bound: float | None
    models: tuple[tuple[int, str], ...]
    rollback: int | None
    rollback_model: str
    checkpoint: int | None
    kept: int
    kept_bytes: int
    deleted: int


def incident(folder: Path | str, records: Sequence[Record], node: int, since: int = 1) -> Incident:
    """Collect what a run's folder says of a client.

    Parameters
    ----------
    folder : Path
        The run's folder.
    records : sequence of Record
        The records of its log.
    node : int
        The client; `find_client` finds it by its partition.
    since : int
        The round from which the client is suspected; earlier ones are only among the visits.

    Raises
    ------
    AuditError
        If the log does not say how the run was started, or knows no such node.
    """
    current = counting(records)
    rounds = {each.event.round: each.event for each in current if isinstance(each.event, Aggregated)}
    moving = (event for event in rounds.values() if event.round >= since and event.model_before != event.model_after)
    mine = [event for event in moving if node in event.nodes]
    shares = [_share(event, event.nodes.index(node)) for event in mine]
    start = next((each.event for each in records if isinstance(each.event, RunStarted)), None)
    summary = next((each for each in clients(records) if each.node == node), None)
    if start is None:
        raise AuditError(f"incident: {log_file(folder)} has no line that says how the run was started")
    if summary is None:
        raise AuditError(f"incident: {log_file(folder)} knows no node {node}")
    rate = start.config.get("server-learning-rate", 1.0)
    reach = [weight * reach for weight, reach in shares if weight is not None and reach is not None]
    first = min((event.round for event in mine), default=None)
    before = None if first is None else first - 1
    starts = Standing.of(records).current
    there = [each for each in CheckpointStore(checkpoint_folder(folder)).rounds() if each in starts]
    found = KeptUpdates.of(records)
    kept = [each.event for nodes in found.standing.values() for each in nodes.get(node, ())]
    return Incident(
        summary=summary,
        visits=tuple(each for each in visits(records) if each.node == node),
        rounds=tuple(sorted(event.round for event in mine)),
        weight=sum(weight or 0.0 for weight, _ in shares),
        bound=float(rate) * sum(reach) if isinstance(rate, int | float) and len(reach) == len(shares) else None,
        models=tuple((number, rounds[number].model_after) for number in sorted(rounds) if first and number >= first),
        rollback=before,
        rollback_model="" if first is None else rounds[first].model_before,
        checkpoint=None if before is None else max((each for each in there if each <= before), default=None),
        kept=len(kept),
        kept_bytes=sum(event.size for event in kept if isinstance(event, UpdateKept)),
        deleted=sum(node in nodes for nodes in found.deleted.values()),
    )


def _share(event: Aggregated, place: int) -> tuple[float | None, float | None]:
    """Return the weight of a client in a round, and a bound of the length of its update; None where unknown."""
    weight = event.weights[place] if event.weights else None
    distance = event.distances[place] if event.distances else None
    return weight, None if distance is None or event.length is None else distance + event.length
