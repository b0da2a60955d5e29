"""What clients keep from round to round, such as momenta: taken into checkpoints, and given back.

Flower keeps a node's state in its Context, which lasts as long as the run: one that is resumed is another run, with new
Contexts. So the server asks every node for its state when a checkpoint is due (the query ``state``), and hands it back
before the resumed run's first round (``restore``). `serve` answers both where the app says so. The server looks into
none of it but for its form and its length: what a client sends comes back to nobody but the client.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_robust.flower.admission import short
from flwr_robust.flower.memory import storable
from flwr_robust.flower.records import PayloadError, decode_record, encode_record, fill

__all__ = ["RESTORE", "STATE", "ClientStates", "collect", "restore"]

log = logging.getLogger("flwr")

STATE, RESTORE = "query.state", "query.restore"
"""The types of the two messages."""

MOST_BYTES = 64
"""How many times as long as the model a client's state may be: enough for a momentum of each of many classes."""

_MOST_ENTRIES = 10_000
_RECORDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}


@dataclass(frozen=True)
class ClientStates:
    """The states of a run's clients, as they were after one round; all of it is `storable`.

    Attributes
    ----------
    partitions, nodes : mapping of int to mapping
        The states, by partition, and of nodes whose partition is not known, or claimed by others too, by node.
    missing : mapping of int to str
        The nodes that handed over none, and why.
    """

    partitions: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    nodes: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    missing: Mapping[int, str] = field(default_factory=dict)


def collect(grid: Grid, partitions: Mapping[int, int], timeout: float, model_bytes: int) -> ClientStates:
    """Ask all nodes for their states; never raises for what they answer.

    Parameters
    ----------
    grid : Grid
        Where they are.
    partitions : mapping of int to int
        The partition of each node, as far as it is known.
    timeout : float
        Seconds to wait.
    model_bytes : int
        Length of the model: states that are more than `MOST_BYTES` times as long are not taken.
    """
    asked = sorted(grid.get_node_ids())
    found: dict[int, Mapping[str, Any]] = {}
    missing = dict.fromkeys(asked, "no answer")
    for reply in grid.send_and_receive([Message(RecordDict(), node, STATE) for node in asked], timeout=timeout):
        node = reply.metadata.src_node_id
        if node not in missing:
            continue
        try:
            if not reply.has_content():
                raise ValueError(f"it failed: {reply.error.reason}")
            found[node] = _read(reply.content, MOST_BYTES * model_bytes)
            del missing[node]
        except (PayloadError, ValueError, TypeError, AttributeError) as error:
            missing[node] = short(str(error))
    own = _alone(partitions)
    return ClientStates(
        {own[node]: state for node, state in found.items() if node in own},
        {node: state for node, state in found.items() if node not in own},
        missing,
    )


def restore(grid: Grid, states: ClientStates, partitions: Mapping[int, int], timeout: float) -> dict[int, str]:
    """Give every node its state back; never raises for what they answer.

    Parameters
    ----------
    grid, partitions, timeout
        As for `collect`, now.
    states : ClientStates
        As they were then.

    Returns
    -------
    dict of int to str
        The nodes that begin anew, and why.
    """
    own, nodes = _alone(partitions), sorted(grid.get_node_ids())
    missing = {}
    messages = []
    for node in nodes:
        state = states.partitions.get(own[node]) if node in own else states.nodes.get(node)
        if state is None:
            missing[node] = "the checkpoint holds no state of it"
            continue
        records = {
            name: encode_record(items) if kind == "arrays" else _RECORDS[kind](dict(items))
            for name, (kind, items) in state.items()
        }
        messages.append(Message(fill(RecordDict(), records), node, RESTORE))
    done = {
        reply.metadata.src_node_id
        for reply in (grid.send_and_receive(messages, timeout=timeout) if messages else ())
        if reply.has_content()
    }
    for message in messages:
        if (node := message.metadata.dst_node_id) not in done:
            missing[node] = "it did not take its state back"
    return missing


def _alone(partitions: Mapping[int, int]) -> dict[int, int]:
    """Return the partitions of the nodes that alone are said to hold theirs."""
    count = Counter(partitions.values())
    return {node: partition for node, partition in partitions.items() if count[partition] == 1}


def _read(content: RecordDict, most_bytes: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the records of a state by name: each its kind, and its items.

    Raises
    ------
    ValueError, PayloadError
        If it is too long, or holds what no file can.
    """
    entries, length = (sum(map(count, content.values())) for count in (len, lambda record: record.count_bytes()))
    if entries > _MOST_ENTRIES or length > most_bytes:
        raise ValueError(
            f"its state is too long: {length} bytes in {entries} entries; {most_bytes} in {_MOST_ENTRIES} would do"
        )
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, record in content.items():
        kind = next(kind for kind, each in _RECORDS.items() if isinstance(record, each))
        items = decode_record(record) if isinstance(record, ArrayRecord) else dict(record)
        if not storable(items) or not storable(name):
            raise ValueError(f"its state holds in '{name}' what no file can")
        found[name] = kind, items
    return found
