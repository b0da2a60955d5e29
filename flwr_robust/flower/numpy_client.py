"""Serve a NumPyClient behind Flower's Message API.

Flower's Message-API strategies cannot work with ``ClientApp(client_fn=...)``. `serve` makes a ClientApp whose train and
evaluate functions call ``fit`` and ``evaluate``. The app also answers the query ``identity``: it tells the server which
partition (numbered share of the data) the node holds. With ``hand_over_state=True`` it sends its state to the server
for checkpoints.
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

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import fill, simulated, unwrapped
from flwr_robust.flower.admission import answers_to, short
from flwr_robust.flower.client_states import RESTORE, STATE
from flwr_robust.flower.quarantine import Identity
from flwr_robust.flower.sealing import seal, unseal
from flwr_robust.flower.wire import copy_content, decode, encode_record, records_of
from flwr_robust.protocol.classes import answer_names

__all__ = ["discover", "serve"]

log = logging.getLogger("flwr")

ClientFunction = Callable[[Context], NumPyClient]

_QUERY = "query.identity"


def serve(
    client_fn: ClientFunction,
    *,
    hand_over_state: bool = False,
    state_key: Callable[[Context], bytes] | None = None,
    **options: Any,
) -> ClientApp:
    """Make a Message-API ClientApp from NumPyClients.

    Parameters
    ----------
    client_fn : callable (Context) -> NumPyClient
        Called for every message, as in Flower. Store what must last from round to round in ``context.state``. The
        function may also return ``NumPyClient.to_client()``.
    hand_over_state : bool
        Whether the app sends ``context.state`` when the server asks for it for a checkpoint (`Audit`). It also lets the
        server restore the state when a run is resumed. A momentum is no secret, as the client sends it in every round
        anyway. Personal data in the state would leave the client only through this option.
    state_key : callable (Context) -> bytes, optional
        With ``hand_over_state``: returns the node's own secret, at least 16 bytes, for example from a file that the
        node's config names. The state then leaves the node encrypted, and the server cannot read it. A node that comes
        back under a new id gets its state all the same, if it states the same partition.
    **options
        Options of ClientApp, such as ``mods``.

    Returns
    -------
    ClientApp
        The app. Its replies hold the arrays under the names, in the order and with the floating-point types in which
        they were sent. Their metrics are ``num-examples``, ``partition-id`` and those that ``fit`` returns. Text, bytes
        and booleans among these go into a ConfigRecord.

    Notes
    -----
    If a server asks for momenta by class (`DeSGD`), the config of ``fit`` holds the list ``classes``. ``fit`` then
    returns the arrays of one model after the other, for each of these classes that the client has. It lists them in
    ascending order as the metric ``classes``. If it has none, it returns no arrays, which is an abstention.
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

    if state_key is not None and not (hand_over_state and callable(state_key)):
        raise ConfigurationError(
            f"serve: state_key must be a function (Context) -> bytes, with hand_over_state=True; got "
            f"{type(state_key).__name__}, hand_over_state={hand_over_state}"
        )
    if hand_over_state:
        _answer_for_state(app, state_key)
    return app


def _answer_for_state(app: ClientApp, key: Callable[[Context], bytes] | None) -> None:
    """Let an app send its state to the server, and restore it from there."""

    @app.query(STATE.partition(".")[2])
    def state(message: Message, context: Context) -> Message:
        content = copy_content(context.state) if key is None else seal(context.state, key(context))
        return Message(content, reply_to=message)

    @app.query(RESTORE.partition(".")[2])
    def restore(message: Message, context: Context) -> Message:
        context.state = copy_content(message.content) if key is None else unseal(message.content, key(context))
        return Message(RecordDict(), reply_to=message)


def _numpy_client(client_fn: ClientFunction, context: Context) -> NumPyClient:
    return unwrapped(client_fn(context))


def _like(values: Any, sent: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in the type of the model if numpy has turned float32 into float64."""
    array = np.asarray(values)
    return array.astype(sent) if array.dtype.kind == sent.kind == "f" else array


def _read(message: Message) -> tuple[list[str], list[NDArray[Any]], dict[str, Any]]:
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise ValueError(f"a message to a NumPyClient must hold one ArrayRecord; got {len(records)}")
    config = {k: v for record in records_of(message.content, ConfigRecord) for k, v in record.items()}
    # Copies, because NumPyClients may write into their parameters.
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


def discover(grid: Grid, nodes: Iterable[int], timeout: float | None = None) -> dict[int, Identity]:
    """Ask nodes whose app is made by `serve` which partition they hold and which GPUs they see.

    A wrong answer does not stop the run. A node without an answer, with a number outside 0 .. n - 1, or with the number
    of another node gets a free number. These numbers are assigned in the order of node ids, and a warning is logged.

    Parameters
    ----------
    grid : Grid
        The grid with the nodes.
    nodes : iterable of int
        The ids of the n nodes.
    timeout : float, optional
        Seconds to wait. When not given, 3600 in a simulation. In a deployment, where the answers are only shown, 120.

    Returns
    -------
    dict of int to Identity
        One per node; each partition 0 .. n - 1 appears once. Pass it to a strategy's ``identify``.
    """
    asked = sorted(nodes)
    claims: dict[int, Identity] = {}
    messages = [Message(RecordDict(), node, _QUERY) for node in asked]
    if timeout is None:
        timeout = 3600.0 if simulated(grid) else 120.0
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
