"""Convert a run's progress into the snapshot in an audit's checkpoint and the entries of its log, and back.

A checkpoint holds what the run needs to continue, whose size does not depend on the number of rounds. The history of
the rounds is in the log, an entry `RoundRemembered` for each. A checkpoint holds the log's head, so it names its
history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flwr_robust.audit import RoundRemembered, Snapshot
from flwr_robust.core.rule import Outcome
from flwr_robust.errors import CheckpointError, ConfigurationError
from flwr_robust.flower.admission import Reason, Refusal
from flwr_robust.flower.client_states import ClientStates
from flwr_robust.flower.memory import freeze, storable, thaw
from flwr_robust.flower.round_records import Chapter, Opening, Progress, RoundRecord
from flwr_robust.flower.wire import decode_record, encode_record

__all__ = ["check_fits", "progress_of", "remembered", "snapshot_of"]

_MOST_STATS = 1 << 20  # characters of one of a rule's diagnostics; longer ones are not kept


def snapshot_of(progress: Progress, config: Mapping[str, Any], states: ClientStates | None = None) -> Snapshot:
    """Return the snapshot of a run's progress for a checkpoint, without its history.

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
        "absences": freeze(progress.absences, tensors),
        "replaced": [[node, partition] for node, partition in progress.replaced.items()],
    }
    if states is not None:
        values["clients"] = freeze(states.memory(), tensors)
    model = decode_record(progress.result.arrays)
    return Snapshot(progress.round, config, model, {"arrays": tensors}, progress.partitions, values)


def remembered(progress: Progress) -> RoundRemembered:
    """Return the entry of the log from which `progress_of` reads what a round has added to the history."""
    chapter = progress.chapter
    values = {
        "history": [_written(record) for record in chapter.history],
        "evaluations": [_written(record) for record in chapter.evaluations],
        "metrics": {
            name: [[number, freeze(dict(metrics))] for number, metrics in shown.items()]
            for name, shown in chapter.metrics.items()
        },
        "attacks": [freeze(each) for each in chapter.attacks],
    }
    return RoundRemembered(progress.round, {name: value for name, value in values.items() if value})


def progress_of(snapshot: Snapshot, history: Sequence[RoundRemembered]) -> Progress:
    """Return the progress of a run, without the clients' states.

    Parameters
    ----------
    snapshot : Snapshot
        What `snapshot_of` returned.
    history : sequence of RoundRemembered
        What `remembered` returned for this and all earlier rounds that count.
    """
    values, tensors, result = snapshot.values, snapshot.states["arrays"], Result()
    result.arrays = encode_record(snapshot.model)
    chapters = list({event.round: event.values for event in history}.values())  # a start that was repeated counts once
    for chapter in chapters:
        for name, shown in chapter.get("metrics", {}).items():
            getattr(result, name).update({number: MetricRecord(thaw(metrics)) for number, metrics in shown})
    return Progress(
        snapshot.round,
        result,
        [_read(record) for chapter in chapters for record in chapter.get("history", ())],
        [_read(record) for chapter in chapters for record in chapter.get("evaluations", ())],
        snapshot.partitions,
        dict(values["refusals"]),
        thaw(values["memory"], tensors),
        dict(values["replaced"]),
        dict(values["evaluation_refusals"]),
        Chapter(attacks=[thaw(each) for chapter in chapters for each in chapter.get("attacks", ())]),
        thaw(values["absences"], tensors),
    )


def _written(record: RoundRecord) -> dict[str, Any]:
    stats = {name: freeze(value) for name, value in record.stats.items() if storable(value)}
    return {
        **vars(record),
        "refused": [[each.node, each.reason.name, each.detail, each.count] for each in record.refused],
        "outcome": record.outcome.name,
        "stats": {name: value for name, value in stats.items() if len(json.dumps(value)) <= _MOST_STATS},
    }


def _read(written: Mapping[str, Any]) -> RoundRecord:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
    fields["refused"] = tuple(Refusal(node, Reason[reason], *rest) for node, reason, *rest in fields["refused"])
    fields["outcome"] = Outcome[fields["outcome"]]
    fields["stats"] = {name: thaw(value) for name, value in fields["stats"].items()}
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
