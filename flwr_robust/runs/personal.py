"""Personal parameters: how clients fare that share a part of the model and keep the rest.

The model of client i is (u, v_i); see `RunConfig.personal`. Pillutla, Kakade, Harchaoui, "Robust aggregation for
federated learning", IEEE TSP 70 (2022), have it as the variant of RFA for heterogeneous clients. Here every local step
moves u and v_i together, along the gradient by both; v_i lasts from round to round and is all that a client that is not
asked keeps. With tail averaging the mean is taken of both.

The server holds u alone, so it cannot evaluate anything. Each client does, on its share of the test samples: those of
every class are dealt to the clients in proportion to the training samples of that class that they hold, so that a
client is tested on what it sees, and under an iid partition on about as much as the others. The shares are disjoint,
drawn from the seed, and cover every class that is trained on. What is reported:

accuracy, loss
    The mean over clients, weighted by their test samples: the share of these that get the right label.
accuracy_unweighted
    The mean over clients, each counting the same.
honest_clients
    Over how many clients that was.
attack_success
    Where the attack wants something in particular: of all trials on the clients' shares, the share that it gets.

Only honest clients count, and of these only such as have test samples. An attacker's own accuracy says nothing, and
under Flower it would be what the attacker says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import numpy_generator
from flwr_robust.tasks import Learner

__all__ = ["ClientScore", "averaged", "evaluate_client", "evaluated_clients", "evaluation_shares"]


@dataclass(frozen=True)
class ClientScore:
    """How one client fares.

    Attributes
    ----------
    samples : int
        Its test samples; >= 1.
    loss, accuracy : float
        Mean cross-entropy and accuracy on them.
    trials : int
        How many trials of the attack its samples make.
    success : float
        The share of these that the attack gets; 0 where there are none.
    """

    samples: int
    loss: float
    accuracy: float
    trials: int = 0
    success: float = 0.0


@lru_cache(maxsize=8)
def evaluation_shares(config: RunConfig) -> tuple[NDArray[np.int64], ...]:
    """Return the indices of every client's test samples, ascending; a client with little data may have none.

    Test samples of a class that nobody trains on are nobody's.
    """
    task = config.data_set
    trained, tested = task.y_train.numpy(), task.y_test.numpy()
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


def evaluated_clients(config: RunConfig) -> list[int]:
    """Return the honest clients that have test samples, ascending.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    shares = evaluation_shares(config)
    found = [client for client in range(config.clients) if not config.attacks(client) and len(shares[client])]
    if not found:
        raise ConfigurationError(
            f"configuration: personal={config.personal!r} needs an honest client with test samples, but of "
            f"{len(config.data_set.y_test)} test samples none falls to one; take fewer clients or another partition"
        )
    return found


def evaluate_client(config: RunConfig, learner: Learner, client: int) -> ClientScore:
    """Evaluate the model that a learner holds on a client's share of the test samples."""
    task, picked = config.data_set, torch.from_numpy(evaluation_shares(config)[client])
    x = task.inputs(task.x_test.index_select(0, picked), learner.device)
    y = task.y_test.index_select(0, picked).to(learner.device)
    loss, accuracy = learner.evaluate(x, y)
    trial = config.data_attack and config.data_attack.trial(x, y, task.span)
    trials = len(trial[1]) if trial else 0
    success = learner.evaluate(*trial)[1] if trial and trials else 0.0
    return ClientScore(len(picked), loss, accuracy, trials, success)


def averaged(scores: Sequence[ClientScore]) -> dict[str, float]:
    """Return what is reported of clients' scores; nothing if there are none.

    Examples
    --------
    >>> averaged([ClientScore(30, 1.0, 0.5), ClientScore(10, 2.0, 0.9)])
    {'loss': 1.25, 'accuracy': 0.6, 'accuracy_unweighted': 0.7, 'honest_clients': 2}
    """
    if not scores:
        return {}
    samples, trials = sum(s.samples for s in scores), sum(s.trials for s in scores)
    metrics = {
        "loss": sum(s.samples * s.loss for s in scores) / samples,
        "accuracy": sum(s.samples * s.accuracy for s in scores) / samples,
        "accuracy_unweighted": sum(s.accuracy for s in scores) / len(scores),
        "honest_clients": len(scores),
    }
    if trials:
        metrics["attack_success"] = sum(s.trials * s.success for s in scores) / trials
    return metrics
