"""Ask clients how they fare, where parameters are personal and the server alone cannot know."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_robust.flower.wire import encode_record, records_of
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.personal import ClientScore, evaluated_clients, evaluation_shares
from flwr_robust.runs.results import Arrays

__all__ = ["asking"]

log = logging.getLogger("flwr")

_PATIENCE = 3600.0  # seconds, as Flower's strategies wait for a round


def asking(grid: Grid, config: RunConfig, partitions: Mapping[int, int]) -> Callable[[Arrays], list[ClientScore]]:
    """Return what has the honest clients evaluate the shared parameters with their own.

    A client that does not answer, or not with an accuracy, is left out, with a warning. How many test samples it has is
    known, and not taken from its answer.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    config : RunConfig
        The run, with personal parameters.
    partitions : mapping of int to int
        The client that each node is.

    Raises
    ------
    ConfigurationError
        If there is no client to ask.
    """
    clients = evaluated_clients(config)
    nodes = {client: node for node, client in partitions.items()}
    samples = [len(share) for share in evaluation_shares(config)]

    def ask(model: Arrays) -> list[ClientScore]:
        content = RecordDict({"arrays": encode_record(model), "config": ConfigRecord({})})
        messages = [Message(content, nodes[client], MessageType.EVALUATE) for client in clients]
        scores = {}
        for reply in grid.send_and_receive(messages, timeout=_PATIENCE):
            client = partitions.get(reply.metadata.src_node_id)
            if client in clients and (score := _score(reply, samples[client])) is not None:
                scores[client] = score
        if missing := [client for client in clients if client not in scores]:
            log.warning("evaluation: no accuracy came from clients %s; they are left out", missing)
        return [scores[client] for client in sorted(scores)]

    return ask


def _score(reply: Message, samples: int) -> ClientScore | None:
    """Read a reply; None where it holds no score."""
    records = records_of(reply.content, MetricRecord) if reply.has_content() else []
    found = {name: value for record in records for name, value in record.items() if isinstance(value, int | float)}
    loss, accuracy = found.get("loss"), found.get("accuracy")
    trials, success = found.get("trials", 0), found.get("success", 0.0)
    if loss is None or accuracy is None or not (0 <= accuracy <= 1 and 0 <= success <= 1 and 0 <= trials <= samples):
        return None
    return ClientScore(samples, float(loss), float(accuracy), int(trials), float(success))
