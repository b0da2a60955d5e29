"""The ServerApp: builds everything from Flower's run config, runs it, and writes the result."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flwr_robust.app.evaluation import asking
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.message.base import MessageAttack
from flwr_robust.audit import Measured
from flwr_robust.errors import ConfigurationError, FlwrRobustError
from flwr_robust.flower import AdversarialGrid, Audit, DeSGD, InProcessGrid, RobustStrategy, discover
from flwr_robust.flower._compat import simulated
from flwr_robust.flower.client_states import most_bytes
from flwr_robust.flower.wire import decode_record, encode_record
from flwr_robust.protocol.messages import message_kind
from flwr_robust.runs.config import PLACES, RunConfig, UnreadKeyWarning
from flwr_robust.runs.results import RoundResult, document, evaluator, write
from flwr_robust.runs.world import World
from flwr_robust.tasks.partition import label_distances

__all__ = ["app", "main"]

log = logging.getLogger("flwr")

_GUARDS = (
    "quarantine-after",
    "rest-after",
    "probation",
    "deadline",
    "quorum",
    "on-infeasible",
)  # which the guard records itself
_PATIENCE = 20.0  # seconds without a new node before the server stops waiting for more

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check the configuration, train, and write the result to ``output``.

    Raises
    ------
    FlwrRobustError
        Before round 1, if the configuration is invalid.
    """
    try:
        _run(grid, context)
    except FlwrRobustError:
        if not isinstance(grid, InProcessGrid):
            sys.tracebacklimit = 0  # this process ends here, and its user needs the message, not Flower's stack frames
        raise


def _run(grid: Grid, context: Context) -> None:
    config = _checked(context.run_config)
    torch.set_num_threads(config.threads)
    if not isinstance(grid, InProcessGrid):
        _check_paths(config)
    learner = config.learner()
    _ = config.samples  # to raise its errors
    world = World(config)
    world.check_senders()
    world.check_counts()
    identities = discover(grid, _all_nodes(grid, config.clients))
    strategy = _strategy(config, simulated(grid))
    strategy.identify(identities)
    ask = None if config.split is None else asking(grid, config, strategy.partitions)
    grid = _attacked(grid, config, strategy)
    named = list(zip(learner.names, learner.arrays(), strict=True))
    initial = encode_record(dict(named if config.split is None else [named[place] for place in config.split.shared]))
    started = time.perf_counter()
    evaluate = evaluator(config, ask=ask)
    ends: list[float] = []

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round and not ends:  # the run was resumed
            ends.append(started)
        ends.append(time.perf_counter())
        metrics = evaluate(server_round, lambda: decode_record(arrays))
        return None if metrics is None else MetricRecord({**metrics})

    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=config.rounds, evaluate_fn=after_round)
    seconds = time.perf_counter() - started
    chosen = {record.round: record.strength for record in grid.history} if isinstance(grid, AdversarialGrid) else {}
    places = {**strategy.guard.replaced, **strategy.partitions}
    history = [
        RoundResult(
            record.round,
            record.partitions,
            record.weights,
            [(places.get(refusal.node), refusal.reason.name) for refusal in record.refused],
            record.outcome,
            [places.get(node) for node in record.silent],
            chosen.get(record.round),
            [places.get(node) for node in record.abstained],
            [places.get(node) for node in record.quarantined],
        )
        for record in strategy.history
    ]
    curve = {at: dict(metrics) for at, metrics in result.evaluate_metrics_serverapp.items()}
    model, stopped = decode_record(result.arrays), strategy.guard.stopped
    if stopped and history[-1].round not in curve:
        curve[history[-1].round] = dict(evaluate(history[-1].round, lambda: model, due=True) or {})
    gpus = {each.partition: each.gpus for each in identities.values()}
    write(config, model, document(config, model, curve, history, ends, seconds, gpus, stopped))


def _checked(values: Mapping[str, object]) -> RunConfig:
    """Return the configuration; its warnings go to Flower's log, as the other messages of the run do."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UnreadKeyWarning)
        config = RunConfig.from_mapping(values)
    for warning in told:
        log.warning("%s", warning.message)
    return config


def _strategy(config: RunConfig, repeats: bool) -> RobustStrategy:
    """Return the strategy for the run's kind of message; its draws come from the seed in a simulation alone."""
    options: Any = {
        "server_learning_rate": config.server_learning_rate,
        "seed": config.seed if repeats else None,
        "fraction_train": config.fraction_train,
        "fraction_evaluate": 0.0,
        "min_train_nodes": config.sampled,
        "min_available_nodes": config.clients,
        "rest_after": config.rest_after or None,
        "probation": config.probation,
        "deadline": config.deadline or None,
        "quorum": config.quorum or None,
        "wait": config.wait or None,
        "min_replies": config.min_replies or None,
        "quarantine_after": config.quarantine_after or None,
        "on_infeasible": config.on_infeasible,
        "audit": _audit(config, repeats),
    }
    if not message_kind(config.message).class_wise:
        return RobustStrategy(config.rule, message=config.message, server_momentum=config.server_momentum, **options)
    return DeSGD(
        config.rule,
        classes=config.data_set.classes,
        gamma=config.gamma,
        alpha=config.alpha,
        buffer_fade=config.buffer_fade or None,
        schedule=config.schedule,
        classes_per_round=config.classes_per_round,
        **options,
    )


def _audit(config: RunConfig, repeats: bool) -> Audit | None:
    """Return the audit of the run, if it has one."""
    if not config.audit:
        return None
    kind, model = message_kind(config.message), sum(array.nbytes for array in config.learner().arrays())
    settings = {key: value for key, value in config.to_mapping().items() if key not in (*PLACES, *_GUARDS)}
    if not repeats:  # the guard's own record says that the seed of the draws is secret
        settings["learning-seed"] = settings.pop("seed")
    return Audit(
        config.audit,
        every=config.checkpoint_every,
        resume=config.resume,
        keep_updates=config.keep_updates or False,
        client_states=kind.momentum or bool(config.personal),
        most_state_bytes=most_bytes(model * (config.data_set.classes if kind.class_wise else 1)),
        measured=_label_distance(config),
        config=settings,
    )


def _label_distance(config: RunConfig) -> list[Measured]:
    """Return the measured difference of the clients' labels for the log; other apps may not know it."""
    if config.data_set.target != "class":
        return []
    distances = label_distances(config.data_set.y_train.numpy(), config.samples)
    method = "total variation distance of a client's labels from all clients', {} of the clients"
    return [
        Measured(0, "label distribution distance", float(value), method.format(name))
        for name, value in (("mean", distances.mean()), ("largest", distances.max()))
    ]


def _attacked(grid: Grid, config: RunConfig, strategy: RobustStrategy) -> Grid:
    """Return the grid for training; it performs the attack if the clients do not."""
    attack = config.attack_object
    if not isinstance(attack, MessageAttack | Fault):
        return grid
    adversary = AdversarialGrid(
        grid,
        attack,
        config.attackers,
        knowledge=config.knowledge,
        known=config.known or None,
        rule=strategy,
        start=config.attack_start,
        stop=config.attack_stop or None,
        redraw=config.redraw,
        message=strategy.message,
        seed=config.seed,
    )
    adversary.partitions = dict(strategy.partitions)
    return adversary


def _check_paths(config: RunConfig) -> None:
    """Raise for relative paths, because this process runs in the folder in which the SuperLink was started."""
    paths = {"data": config.data, "output": config.output, "save-model": config.save_model, "audit": config.audit}
    if config.task.endswith(".npz"):
        paths["task"] = config.task
    for key, path in paths.items():
        if path and not Path(path).expanduser().is_absolute():
            raise ConfigurationError(f"configuration: {key} must be an absolute path under flwr run; got {path}")


def _all_nodes(grid: Grid, clients: int) -> list[int]:
    """Wait for as many nodes as clients; otherwise Flower samples among the nodes that connect first."""
    nodes: list[int] = []
    last = time.monotonic()
    while len(nodes) < clients and time.monotonic() - last < _PATIENCE:
        found = sorted(grid.get_node_ids())
        if len(found) != len(nodes):
            nodes, last = found, time.monotonic()
        if len(nodes) < clients:
            time.sleep(0.1)
    if len(nodes) != clients:
        raise ConfigurationError(
            f"configuration: clients={clients}, but {len(nodes)} nodes are connected; set clients "
            f"and num-supernodes to the "
            f"same, e.g. --federation-config 'num-supernodes={clients}'"
        )
    return nodes
