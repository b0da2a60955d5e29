"""Convert a run's progress into the snapshot in an audit's checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flwr_robust.audit import Snapshot
from flwr_robust.core.rule import Outcome
from flwr_robust.errors import CheckpointError, ConfigurationError
from flwr_robust.flower.admission import Reason, Refusal
from flwr_robust.flower.client_states import ClientStates
from flwr_robust.flower.memory import freeze, storable, thaw
from flwr_robust.flower.round_records import Opening, Progress, RoundRecord
from flwr_robust.flower.wire import decode_record, encode_record

__all__ = ["check_fits", "progress_of", "snapshot_of"]

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


def snapshot_of(progress: Progress, config: Mapping[str, Any], states: ClientStates | None = None) -> Snapshot:
    """Return the snapshot of a run's progress for a checkpoint.

    Parameters
    ----------
    progress : Progress
        The state of the run after a round.
    config : mapping
        The settings that determine its result.
    states : ClientStates, optional
        The states of clients.
    """
    tensors: dict[str, torch.Tensor] = {}
    values = {
        "memory": freeze(progress.memory, tensors),
        "refusals": [[node, count] for node, count in progress.refusals.items()],
        "evaluation_refusals": [[node, count] for node, count in progress.evaluation_refusals.items()],
        "replaced": [[node, partition] for node, partition in progress.replaced.items()],
        "history": [_written(record, tensors) for record in progress.history],
        "evaluations": [_written(record, tensors) for record in progress.evaluations],
        **{
            name: [[number, dict(metrics)] for number, metrics in getattr(progress.result, name).items()]
            for name in _METRICS
        },
    }
    if states is not None:
        values["clients"] = freeze(states.memory(), tensors)
    model = decode_record(progress.result.arrays)
    return Snapshot(progress.round, config, model, {"arrays": tensors}, progress.partitions, values)


def progress_of(snapshot: Snapshot) -> Progress:
    """Return the progress that was given to `snapshot_of`, without the clients' states."""
    values, tensors, result = snapshot.values, snapshot.states["arrays"], Result()
    result.arrays = encode_record(snapshot.model)
    for name in _METRICS:
        getattr(result, name).update({number: MetricRecord(metrics) for number, metrics in values[name]})
    return Progress(
        snapshot.round,
        result,
        [_read(record, tensors) for record in values["history"]],
        [_read(record, tensors) for record in values["evaluations"]],
        snapshot.partitions,
        dict(values["refusals"]),
        thaw(values["memory"], tensors),
        dict(values["replaced"]),
        dict(values["evaluation_refusals"]),
    )


def _written(record: RoundRecord, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        **vars(record),
        "refused": [[refusal.node, refusal.reason.name, refusal.detail] for refusal in record.refused],
        "outcome": record.outcome.name,
        "stats": freeze({name: value for name, value in record.stats.items() if storable(value)}, tensors),
    }


def _read(written: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> RoundRecord:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
    fields["refused"] = tuple(Refusal(node, Reason[reason], detail) for node, reason, detail in fields["refused"])
    fields["outcome"] = Outcome[fields["outcome"]]
    fields["stats"] = thaw(fields["stats"], tensors)
    return RoundRecord(**fields)


def check_fits(opening: Opening, snapshot: Snapshot) -> None:
    """Check that a checkpoint fits the run: not later than its last round, and with the same arrays."""
    if (rounds := opening.config["rounds"]) < snapshot.round:  # type: ignore[operator]
        raise ConfigurationError(
            f"strategy: num_rounds must be at least the {snapshot.round} rounds that the run has behind it; got "
            f"num_rounds={rounds}: ask for more, or roll the run back"
        )
    there = [(name, values.dtype, values.shape) for name, values in snapshot.model.items()]
    now = [(name, values.dtype, values.shape) for name, values in decode_record(opening.arrays).items()]
    if there != now:
        first = next((pair for pair in zip(there, now, strict=False) if pair[0] != pair[1]), (len(there), len(now)))
        raise CheckpointError(
            f"checkpoint: that of round {snapshot.round} holds another model: {first[0]} there, {first[1]} now; start "
            f"with the same model, or name another folder"
        )
