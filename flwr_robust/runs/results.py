"""Results: evaluation of a run's model, and the document with the run's result, the same for every engine."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.audit import model_sha256
from flwr_robust.core.rule import Outcome
from flwr_robust.files import write_atomically
from flwr_robust.protocol.rounds import check_trained
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.personal import ClientScore, averaged
from flwr_robust.runs.probe import Probe
from flwr_robust.tasks import Learner, Task
from flwr_robust.tasks.metrics import VALIDATION
from flwr_robust.tasks.objective import WORST_CLIENT, load_metrics

__all__ = ["Arrays", "Evaluator", "RoundResult", "document", "evaluator", "write"]

Arrays = Mapping[str, NDArray[Any]]
"""A model's arrays by name, in their order."""


@dataclass(frozen=True)
class RoundResult:
    """The part of the document that describes one round.

    Attributes
    ----------
    round : int
        Its number, from 1.
    partitions : sequence of (int or None)
        The partitions (numbered shares of the data, one per client) of the admitted replies.
    weights : sequence of float
        The rule's weight for each of them; empty if there is no aggregate.
    refused : sequence of (int or None, str)
        Partition and name of the reason for each refused reply.
    outcome : Outcome
        How the aggregation ended.
    missing : sequence of (int or None)
        The partitions of the clients that were asked and did not answer.
    strength : float or None
        The strength that the attack on messages chose, if it has one.
    abstained : sequence of (int or None)
        The partitions of the clients that abstained: they answered, but had no arrays for the round.
    quarantined : sequence of (int or None)
        The partitions of the clients that were not asked because of quarantine.
    """

    round: int
    partitions: Sequence[int | None]
    weights: Sequence[float]
    refused: Sequence[tuple[int | None, str]]
    outcome: Outcome
    missing: Sequence[int | None] = ()
    strength: float | None = None
    abstained: Sequence[int | None] = ()
    quarantined: Sequence[int | None] = ()


class Evaluator(Protocol):
    """Measures a model; see `evaluator`."""

    def __call__(self, server_round: int, model: Callable[[], Arrays], due: bool = False) -> dict[str, float] | None:
        """Return the measurements, or None in rounds without an evaluation."""


def evaluator(
    config: RunConfig,
    device: torch.device | str = "cpu",
    ask: Callable[[Arrays], Sequence[ClientScore]] | None = None,
    honest: Sequence[int] | None = None,
) -> Evaluator:
    """Return a function that evaluates the global model on the test samples, every few rounds and after the last.

    The function takes the round and a function that returns the model. The latter is called only in rounds with an
    evaluation, or if the caller demands one. For attacks with a target, the report holds their success rate. With
    ``diagnose`` it holds what `Probe` measures. With personal parameters the server has no whole model: ``ask`` returns
    the clients' scores instead. With ``validation`` the same metrics are measured on the validation set, too.

    Parameters
    ----------
    config : RunConfig
        The run.
    device : torch.device or str
        Where to compute.
    ask : callable, optional
        Takes the shared arrays, and returns the clients' scores.
    honest : sequence of int, optional
        The clients whose held-out samples are the validation set, and among whom the worst is looked for. When not
        given, those that never attack in the configuration. A caller says them if the attack is not in the
        configuration.
    """
    learner = config.learner(device)
    honest = config.honest if honest is None else honest
    parts = {"": _test_samples(config.data_set, torch.device(device))}
    if config.validation:
        parts[VALIDATION] = _validation_samples(config, honest, device)
    measures = {prefix: _measure(config, learner, *part) for prefix, part in parts.items()}
    probe = Probe(config, learner) if config.diagnose else None
    worst_client, _ = load_metrics(config.metrics)

    def evaluate(server_round: int, model: Callable[[], Arrays], due: bool = False) -> dict[str, float] | None:
        if server_round % config.evaluate_every and server_round != config.rounds and not due:
            return None
        if ask is not None:
            return averaged(ask(model())) or None
        learner.load(list(model().values()))
        metrics = {
            f"{prefix}{name}": value for prefix, measure in measures.items() for name, value in measure().items()
        }
        if worst_client:
            metrics[WORST_CLIENT] = _worst_client(config, learner, honest)
        if probe is not None:
            metrics.update(probe.measure(server_round).metrics)
        return metrics

    return evaluate


def _measure(config: RunConfig, learner: Learner, x: Tensor, y: Tensor) -> Callable[[], dict[str, float]]:
    """Return a function that measures the model of a learner on samples."""
    trial = config.data_attack and config.data_attack.trial(x, y, config.data_set.span)

    def measure() -> dict[str, float]:
        metrics = learner.evaluate(x, y)
        if trial and len(trial[1]):
            metrics["attack_success"] = learner.evaluate(*trial)["accuracy"]
        return metrics

    return measure


def _worst_client(config: RunConfig, learner: Learner, honest: Sequence[int]) -> float:
    """Return the smallest accuracy of the model on a client's own training samples."""
    samples = (torch.from_numpy(config.samples[client]) for client in honest)
    return min(learner.evaluate(*config.data_set.batch(own, learner.device))["accuracy"] for own in samples)


def _validation_samples(config: RunConfig, honest: Sequence[int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return the pooled inputs and labels that honest clients held out, in the order of the data."""
    picked = np.sort(np.concatenate([config.held_out[client] for client in honest]))
    return config.data_set.batch(torch.from_numpy(picked), device)


@lru_cache(maxsize=1)  # shared by runs that advance together
def _test_samples(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the test inputs in the form of a model's input, and their labels."""
    return task.inputs(task.x_test, device), task.y_test.to(device)


def document(
    config: RunConfig,
    model: Arrays,
    curve: Mapping[int, Mapping[str, Any]],
    history: Sequence[RoundResult],
    ends: Sequence[float],
    seconds: float,
    visible_gpus: Mapping[int, str],
    stopped: str = "",
) -> dict[str, Any]:
    """Return the result of a run as data for JSON.

    Parameters
    ----------
    config : RunConfig
        The run.
    model : mapping of str to array
        The final model.
    curve : mapping of int to mapping
        The measurements, by round.
    history : sequence of RoundResult
        All rounds.
    ends : sequence of float
        The end time of each round, beginning with round 0 or the round from which the run was resumed.
    seconds : float
        The total time.
    visible_gpus : mapping of int to str
        The GPUs that each client saw.
    stopped : str
        Why the run ended before its last round; empty if it did not.

    Raises
    ------
    UntrainedError
        If no round changed the model.
    """
    check_trained([result.outcome for result in history], f"no reply, or too few for {config.rule}")
    weights = np.zeros(config.clients)
    for result in history:
        for partition, weight in zip(result.partitions, result.weights, strict=False):
            if partition in range(config.clients):  # in a deployment it is what a client claims
                weights[partition] += weight / len(history)
    shares = [
        sum(w for p, w in zip(result.partitions, result.weights, strict=False) if p in attackers)
        for result in history
        if (attackers := config.attackers_in(result.round))
    ]
    abstentions = Counter(partition for result in history for partition in result.abstained)
    spans = [after - before for before, after in itertools.pairwise(ends)]
    return {
        "model_sha256": model_sha256(model),
        **({"data_sha256": config.data_set.digest} if config.data_set.digest else {}),
        "curve": [{"round": at, **metrics} for at, metrics in sorted(curve.items())],
        "mean_weights": weights.tolist(),
        "attackers_weight": statistics.fmean(shares) if shares else 0.0,
        "outcomes": {outcome.name: sum(result.outcome is outcome for result in history) for outcome in Outcome},
        "refused": [
            {"round": result.round, "partition": partition, "reason": reason}
            for result in history
            for partition, reason in result.refused
        ],
        "missing": [
            {"round": result.round, "partition": partition} for result in history for partition in result.missing
        ],
        "strengths": [
            {"round": result.round, "strength": result.strength} for result in history if result.strength is not None
        ],
        "abstentions": [abstentions[client] for client in range(config.clients)],
        "quarantined": [
            {"round": result.round, "partition": partition} for result in history for partition in result.quarantined
        ],
        "stopped": stopped,
        "seconds": seconds,
        "median_round_seconds": statistics.median(spans) if spans else 0.0,
        "visible_gpus": dict(sorted(visible_gpus.items())),
    }


def write(config: RunConfig, model: Arrays, found: Mapping[str, Any]) -> None:
    """Write the model and the document to the files that the configuration names."""
    if config.save_model:
        arrays: dict[str, Any] = dict(model)
        write_atomically(Path(config.save_model), lambda file: np.savez(file, **arrays))
    if config.output:
        text = json.dumps(found, indent=1).encode()
        write_atomically(Path(config.output), lambda file: file.write(text))
