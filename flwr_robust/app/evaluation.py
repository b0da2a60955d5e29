"""Evaluation by clients, for runs with personal parameters, which the server cannot evaluate itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_robust.flower.wire import encode_record, records_of
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.personal import ClientScore, evaluated_clients, evaluation_shares
from flwr_robust.runs.results import Arrays
from flwr_robust.tasks.metrics import VALIDATION

__all__ = ["asking"]

log = logging.getLogger("flwr")

_PATIENCE = 3600.0  # seconds, as Flower's strategies wait for a round


def asking(grid: Grid, config: RunConfig, partitions: Mapping[int, int]) -> Callable[[Arrays], list[ClientScore]]:
    """Return a function that asks the honest clients to evaluate the shared parameters with their own.

    A client without a valid answer is left out, with a warning. Its numbers of test and validation samples are known
    from the configuration, and not read from its answer.

    Parameters
    ----------
    grid : Grid
        The grid with the clients.
    config : RunConfig
        The run, with personal parameters.
    partitions : mapping of int to int
        The number of the client on each node.

    Raises
    ------
    ConfigurationError
        If there is no client to ask.
    """
    clients = evaluated_clients(config)
    nodes = {client: node for node, client in partitions.items()}
    samples = [len(share) for share in evaluation_shares(config)]
    held_out = [len(held) for held in config.held_out]

    def ask(model: Arrays) -> list[ClientScore]:
        content = RecordDict({"arrays": encode_record(model), "config": ConfigRecord({})})
        messages = [Message(content, nodes[client], MessageType.EVALUATE) for client in clients]
        scores = {}
        for reply in grid.send_and_receive(messages, timeout=min(_PATIENCE, config.deadline or _PATIENCE)):
            client = partitions.get(reply.metadata.src_node_id)
            if client in clients and (score := _score(reply, samples[client], held_out[client])) is not None:
                scores[client] = score
        if missing := [client for client in clients if client not in scores]:
            log.warning("evaluation: no accuracy came from clients %s; they are left out", missing)
        return [scores[client] for client in sorted(scores)]

    return ask


def _score(reply: Message, samples: int, held_out: int) -> ClientScore | None:
    """Read the score in a reply; None if it lacks a number that it must hold."""
    records = records_of(reply.content, MetricRecord) if reply.has_content() else []
    found = {name: value for record in records for name, value in record.items() if isinstance(value, int | float)}
    score = _part(found, "", samples)
    if score is None or not held_out:
        return score
    validation = _part(found, VALIDATION, held_out)
    return None if validation is None else replace(score, validation=validation)


def _part(found: Mapping[str, int | float], prefix: str, samples: int) -> ClientScore | None:
    """Return the score on the test or validation samples; None if it is missing or impossible."""
    loss, accuracy = found.get(f"{prefix}loss"), found.get(f"{prefix}accuracy")
    trials, success = found.get(f"{prefix}trials", 0), found.get(f"{prefix}success", 0.0)
    if loss is None or accuracy is None or not (0 <= accuracy <= 1 and 0 <= success <= 1 and 0 <= trials <= samples):
        return None
    return ClientScore(samples, float(loss), float(accuracy), int(trials), float(success))
