"""Personal parameters: clients share a part of the model and keep the rest; evaluation of their models.

The model of client i is (u, v_i) with shared parameters u and personal parameters v_i; see `RunConfig.personal`.
Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 70 (2022), use it as the variant of
RFA for heterogeneous clients. Here every local step moves u and v_i together, along the gradient with respect to both.
The client keeps v_i from round to round, also in rounds in which it is not asked. Tail averaging takes the mean of
both.

The server holds only u, so it cannot evaluate a model. Instead each client evaluates its own on its share of the test
samples. The test samples of a class are dealt to the clients in proportion to their training samples of that class. So
clients are tested on the classes that they hold; under an iid partition the shares are about equal. Targets other than
classes count as one class. The shares are disjoint, drawn from the seed, and cover every class in the training data.
If the data say who test samples came from, each client is tested on the samples of its own owners instead. This needs
that no owner's training samples lie with two clients. The report holds:

loss, accuracy and the other metrics of the task
    The mean over clients of what each measures on its own share, weighted by their numbers of test samples.
accuracy_unweighted
    The mean over clients with equal weights.
honest_clients
    The number of clients in these means.
attack_success
    For attacks with a target: the share of successful trials among all trials on the clients' shares.

With ``validation`` each of these clients also evaluates its own model on the training samples that it held out. The
same means over them have the prefix ``validation_``; clients that held out nothing do not count there.

Only honest clients with test samples count. An attacker's accuracy means nothing, because under Flower the attacker
could state any value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import numpy_generator
from flwr_robust.tasks import Learner
from flwr_robust.tasks.metrics import VALIDATION

__all__ = ["ClientScore", "averaged", "evaluate_client", "evaluated_clients", "evaluation_shares"]


@dataclass(frozen=True)
class ClientScore:
    """The evaluation of one client's model.

    Attributes
    ----------
    samples : int
        The number of its test samples; >= 1.
    metrics : mapping of str to float
        All metrics of its model on these samples, by name.
    trials : int
        How many of its samples are trials of the attack.
    success : float
        The share of successful trials; 0 if there are none.
    validation : ClientScore, optional
        The same on the samples that the client held out of training; None if there are none.
    """

    samples: int
    metrics: Mapping[str, float]
    trials: int = 0
    success: float = 0.0
    validation: ClientScore | None = None


@lru_cache(maxsize=8)
def evaluation_shares(config: RunConfig) -> tuple[NDArray[np.int64], ...]:
    """Return the sorted indices of every client's test samples; a client with little data may have none.

    Test samples of classes without training samples belong to no client, nor do those of owners without a client.
    """
    task = config.data_set
    if (own := _owned(config)) is not None:
        return own
    trained, tested = task.class_numbers(task.y_train), task.class_numbers(task.y_test)
    counts = np.stack([np.bincount(trained[held], minlength=task.classes) for held in config.samples])
    generator = numpy_generator(config.seed, "test shares", config.clients)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(config.clients)]
    for label in range(task.classes):
        indices = generator.permutation(np.flatnonzero(tested == label))
        sums = np.cumsum(counts[:, label])
        if sums[-1] == 0:
            continue
        cuts = np.rint(sums[:-1] / sums[-1] * len(indices)).astype(np.int64)
        for part, piece in zip(parts, np.split(indices, cuts), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)).astype(np.int64) for part in parts)


def _owned(config: RunConfig) -> tuple[NDArray[np.int64], ...] | None:
    """Return the test samples of every client's owners; None if they are unknown or an owner has two clients."""
    owners, asked = config.data_set.owners, config.data_set.test_owners
    if owners is None or asked is None:
        return None
    client_of = np.full(int(owners.max()) + 1, -1)
    for client, held in enumerate(config.samples):
        mine = np.unique(owners.numpy()[held])
        if (client_of[mine] >= 0).any():
            return None
        client_of[mine] = client
    known = np.flatnonzero(asked.numpy() >= 0)
    clients = client_of[asked.numpy()[known]]
    return tuple(known[clients == client] for client in range(config.clients))


def evaluated_clients(config: RunConfig) -> list[int]:
    """Return the honest clients with test samples, in ascending order.

    Raises
    ------
    ConfigurationError
        If there is no such client.
    """
    shares = evaluation_shares(config)
    found = [client for client in config.honest if len(shares[client])]
    if not found:
        raise ConfigurationError(
            f"configuration: personal={config.personal!r} needs an honest client with test samples, but of "
            f"{len(config.data_set.y_test)} test samples none falls to one; take fewer clients or another partition"
        )
    return found


def evaluate_client(config: RunConfig, learner: Learner, client: int) -> ClientScore:
    """Evaluate the model that a learner holds on a client's test samples, and on those that it held out."""
    task, picked = config.data_set, torch.from_numpy(evaluation_shares(config)[client])
    x = task.inputs(task.x_test.index_select(0, picked), learner.device)
    score = _score(config, learner, x, task.y_test.index_select(0, picked).to(learner.device))
    if not len(held := config.held_out[client]):
        return score
    return replace(score, validation=_score(config, learner, *task.batch(torch.from_numpy(held), learner.device)))


def _score(config: RunConfig, learner: Learner, x: Tensor, y: Tensor) -> ClientScore:
    metrics = learner.evaluate(x, y)
    trial = config.data_attack and config.data_attack.trial(x, y, config.data_set.span)
    trials = len(trial[1]) if trial else 0
    success = learner.evaluate(*trial)["accuracy"] if trial and trials else 0.0
    return ClientScore(len(y), metrics, trials, success)


def averaged(scores: Sequence[ClientScore]) -> dict[str, float]:
    """Return the averages of clients' scores for the report; empty if there are no scores.

    Examples
    --------
    >>> averaged([ClientScore(30, {"loss": 1.0, "accuracy": 0.5}), ClientScore(10, {"loss": 2.0, "accuracy": 0.9})])
    {'loss': 1.25, 'accuracy': 0.6, 'accuracy_unweighted': 0.7, 'honest_clients': 2}
    """
    if not scores:
        return {}
    samples, trials = sum(s.samples for s in scores), sum(s.trials for s in scores)
    metrics = {name: sum(s.samples * s.metrics[name] for s in scores) / samples for name in scores[0].metrics}
    if "accuracy" in metrics:
        metrics["accuracy_unweighted"] = sum(s.metrics["accuracy"] for s in scores) / len(scores)
    metrics["honest_clients"] = len(scores)
    if trials:
        metrics["attack_success"] = sum(s.trials * s.success for s in scores) / trials
    held_out = averaged([s.validation for s in scores if s.validation is not None])
    return metrics | {f"{VALIDATION}{name}": value for name, value in held_out.items()}
