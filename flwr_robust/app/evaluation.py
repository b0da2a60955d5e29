"""Evaluation by clients, for runs with personal parameters, which the server cannot evaluate itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_robust.flower.wire import encode_record, records_of
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.personal import ClientScore, evaluated_clients, evaluation_shares
from flwr_robust.runs.results import Arrays
from flwr_robust.tasks.metrics import VALIDATION, metric_named

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
    names = config.objective.measured

    def ask(model: Arrays) -> list[ClientScore]:
        content = RecordDict({"arrays": encode_record(model), "config": ConfigRecord({})})
        messages = [Message(content, nodes[client], MessageType.EVALUATE) for client in clients]
        scores = {}
        for reply in grid.send_and_receive(messages, timeout=min(_PATIENCE, config.deadline or _PATIENCE)):
            client = partitions.get(reply.metadata.src_node_id)
            if client in clients and (score := _score(reply, names, samples[client], held_out[client])) is not None:
                scores[client] = score
        if missing := [client for client in clients if client not in scores]:
            log.warning("evaluation: no metrics came from clients %s; they are left out", missing)
        return [scores[client] for client in sorted(scores)]

    return ask


def _score(reply: Message, names: Sequence[str], samples: int, held_out: int) -> ClientScore | None:
    """Read the score in a reply; None if it lacks a number that it must hold."""
    records = records_of(reply.content, MetricRecord) if reply.has_content() else []
    found = {name: value for record in records for name, value in record.items() if isinstance(value, int | float)}
    score = _part(found, "", names, samples)
    if score is None or not held_out:
        return score
    validation = _part(found, VALIDATION, names, held_out)
    return None if validation is None else replace(score, validation=validation)


def _part(found: Mapping[str, int | float], prefix: str, names: Sequence[str], samples: int) -> ClientScore | None:
    """Return the score on the test or validation samples; None if a number is missing or impossible."""
    metrics = {name: float(found[f"{prefix}{name}"]) for name in names if f"{prefix}{name}" in found}
    trials, success = found.get(f"{prefix}trials", 0), found.get(f"{prefix}success", 0.0)
    shares = [success, *(value for name, value in metrics.items() if metric_named(name).share)]
    if len(metrics) < len(names) or not all(0 <= share <= 1 for share in shares) or not 0 <= trials <= samples:
        return None
    return ClientScore(samples, metrics, int(trials), float(success))
