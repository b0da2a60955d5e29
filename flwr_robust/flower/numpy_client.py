"""Serve a NumPyClient behind Flower's Message API.

Flower's Message-API strategies cannot talk to ``ClientApp(client_fn=...)``. `serve` makes a ClientApp whose train and
evaluate functions call ``fit`` and ``evaluate``; it also answers the query ``identity``, so that a server can learn
which partition a node holds before it samples; and, where it is asked to, it hands its state over for checkpoints.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flwr_robust.flower._compat import fill, unwrapped
from flwr_robust.flower.admission import answers_to, short
from flwr_robust.flower.client_states import RESTORE, STATE
from flwr_robust.flower.quarantine import Identity
from flwr_robust.flower.wire import copy_content, decode, encode_record, records_of
from flwr_robust.protocol.classes import answer_names

__all__ = ["discover", "serve"]

log = logging.getLogger("flwr")

ClientFunction = Callable[[Context], NumPyClient]

_QUERY = "query.identity"


def serve(client_fn: ClientFunction, *, hand_over_state: bool = False, **options: Any) -> ClientApp:
    """Make a Message-API ClientApp out of NumPyClients.

    Parameters
    ----------
    client_fn : callable (Context) -> NumPyClient
        Called for every message, as by Flower; keep what must last in ``context.state``. One that ends in
        ``.to_client()`` will do, too.
    hand_over_state : bool
        Whether the server is given ``context.state`` when it asks, so that its checkpoints hold that (`Audit`), and may
        set it when a run is resumed. A momentum is what the client sends anyway; what is personal is not.
    **options
        Passed to ClientApp, e.g. ``mods``.

    Returns
    -------
    ClientApp
        Where a server asks for momenta by class (`DeSGD`), the config that ``fit`` is given holds the list ``classes``;
        ``fit`` returns one model's arrays after the other for those of them that it has, which it lists, ascending, as
        the metric ``classes``, or no arrays at all, which is an abstention.
        Replies hold the arrays under the names, in the order and with the floating-point types they were sent, and the
        metrics ``num-examples`` and
        ``partition-id`` beside those that ``fit`` returns. Text, bytes and booleans among these go into a ConfigRecord.
    """
    app = ClientApp(**options)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        names, arrays, config = _read(message)
        types = [array.dtype for array in arrays]
        updated, num_examples, metrics = _numpy_client(client_fn, context).fit(arrays, config)
        if isinstance(asked := config.get("classes"), list):
            told: dict[str, Any] = dict(metrics)
            answered = told.pop("classes", asked if updated else [])
            metrics = told
            if not answered:
                return _reply(message, context, num_examples, metrics)
            names, types = answer_names(names, answered, asked), types * len(answered)
        if len(updated) != len(names):
            raise ValueError(f"fit must return as many arrays as it was given, {len(names)}; got {len(updated)}")
        record = encode_record(dict(zip(names, map(_like, updated, types), strict=True)))
        return _reply(message, context, num_examples, metrics, record)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        _, arrays, config = _read(message)
        loss, num_examples, metrics = _numpy_client(client_fn, context).evaluate(arrays, config)
        return _reply(message, context, num_examples, {"loss": float(loss), **metrics})

    @app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        partition = context.node_config.get("partition-id", -1)
        facts = ConfigRecord({"visible-gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "all")})
        number = partition if isinstance(partition, int) else -1
        record = MetricRecord({"partition-id": number})
        return Message(RecordDict({"metrics": record, "config": facts}), reply_to=message)

    if hand_over_state:
        _answer_for_state(app)
    return app


def _answer_for_state(app: ClientApp) -> None:
    """Have an app hand its state over, and take it back."""

    @app.query(STATE.partition(".")[2])
    def state(message: Message, context: Context) -> Message:
        return Message(copy_content(context.state), reply_to=message)

    @app.query(RESTORE.partition(".")[2])
    def restore(message: Message, context: Context) -> Message:
        context.state = copy_content(message.content)
        return Message(RecordDict(), reply_to=message)


def _numpy_client(client_fn: ClientFunction, context: Context) -> NumPyClient:
    return unwrapped(client_fn(context))


def _like(values: Any, sent: np.dtype[Any]) -> NDArray[Any]:
    """Return an array; numpy's float64 for a float32 model becomes float32 again."""
    array = np.asarray(values)
    return array.astype(sent) if array.dtype.kind == sent.kind == "f" else array


def _read(message: Message) -> tuple[list[str], list[NDArray[Any]], dict[str, Any]]:
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise ValueError(f"a message to a NumPyClient must hold one ArrayRecord; got {len(records)}")
    config = {k: v for record in records_of(message.content, ConfigRecord) for k, v in record.items()}
    # Each client may write into its parameters, as NumPyClients do.
    return list(records[0]), [decode(array).copy() for array in records[0].values()], config


def _reply(
    message: Message,
    context: Context,
    num_examples: int,
    metrics: Mapping[str, Any],
    arrays: ArrayRecord | None = None,
) -> Message:
    numbers: dict[str, Any] = {"num-examples": num_examples}
    if isinstance(partition := context.node_config.get("partition-id"), int):
        numbers["partition-id"] = partition
    facts: dict[str, Any] = {}
    for name, given in metrics.items():
        value = given.item() if isinstance(given, np.generic) else given
        (facts if isinstance(value, bool | str | bytes) else numbers)[name] = value
    records: dict[str, Any] = {"metrics": MetricRecord(numbers)}
    if arrays is not None:
        records["arrays"] = arrays
    if facts:
        records["config"] = ConfigRecord(facts)
    return Message(fill(RecordDict(), records), reply_to=message)


def discover(grid: Grid, nodes: Iterable[int], timeout: float = 3600) -> dict[int, Identity]:
    """Ask nodes served by `serve` which partition they hold and which GPUs they see.

    A node that is silent, or claims a number outside 0 .. n - 1 or one that another node claims, too, cannot stop a
    run: it is assigned one of the numbers left, in the order of node ids, and a warning is logged.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    nodes : iterable of int
        Their ids; n of them.
    timeout : float
        Seconds to wait.

    Returns
    -------
    dict of int to Identity
        For every node; of their partitions each of 0 .. n - 1 once. To be passed to a strategy's ``identify``.
    """
    asked = sorted(nodes)
    claims: dict[int, Identity] = {}
    messages = [Message(RecordDict(), node, _QUERY) for node in asked]
    for node, reply in answers_to(messages, list(grid.send_and_receive(messages, timeout=timeout))):
        metrics, facts = (reply.content.get(name) if reply.has_content() else None for name in ("metrics", "config"))
        if isinstance(metrics, MetricRecord) and isinstance(facts, ConfigRecord):
            partition = metrics.get("partition-id")
            if type(partition) is int and 0 <= partition < len(asked):
                claims[node] = Identity(partition, short(str(facts.get("visible-gpus", "all"))))
    count = Counter(claim.partition for claim in claims.values())
    found = {node: claim for node, claim in claims.items() if node in asked and count[claim.partition] == 1}
    left = sorted(set(range(len(asked))) - {claim.partition for claim in found.values()})
    for node in asked:
        if node not in found:
            found[node] = claims.get(node, Identity(0))._replace(partition=left.pop(0), assigned=True)
            log.warning("node %s has no partition-id of its own; it is counted as %s", node, found[node].partition)
    return found
