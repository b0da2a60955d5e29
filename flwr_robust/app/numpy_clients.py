"""The NumPyClients of the studies: an honest one, and one that poisons its data."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from torch import Tensor

from flwr_robust.attacks.poison import Poison
from flwr_robust.flower.wire import as_tensor, decode, encode_record
from flwr_robust.protocol.buffers import change
from flwr_robust.protocol.classes import answers, by_label, class_momenta, draw_class_batch
from flwr_robust.protocol.momentum import momentum_step
from flwr_robust.protocol.rounds import batch_generator, draw_batch
from flwr_robust.runs.config import RunConfig, pick_device
from flwr_robust.runs.personal import ClientScore, evaluate_client
from flwr_robust.runs.world import world_of
from flwr_robust.seeds import derive
from flwr_robust.tasks import Learner, Tail
from flwr_robust.tasks.metrics import VALIDATION

__all__ = ["HonestClient", "Poisoner"]

_MOMENTUM = "momentum"
_MOMENTA = "class-momenta"
_PERSONAL = "personal"


@lru_cache(maxsize=8)
def _learner(config: RunConfig, device: torch.device, role: str) -> Learner:
    """Return the model of a process and role; its parameters are set anew for every message."""
    return config.learner(device)


@lru_cache(maxsize=8)
def _initial(config: RunConfig) -> NDArrays:
    """Return all arrays of the initial model of every client."""
    return config.learner().arrays()


def _told(score: ClientScore) -> dict[str, Scalar]:
    """Return the numbers of a score that a reply holds."""
    return {**score.metrics, "trials": score.trials, "success": score.success}


class HonestClient(NumPyClient):
    """Trains on its own samples and answers with the run's kind of message.

    Parameters
    ----------
    config : RunConfig
        The run.
    client : int
        The number of the client and of its partition.
    state : RecordDict
        The store of its momentum and its personal parameters: the node's ``context.state``.
    """

    def __init__(self, config: RunConfig, client: int, state: RecordDict) -> None:
        self.config = config
        self.world = world_of(config)
        self.kind = self.world.kind
        self.client = client
        self.state = state
        self.task = config.data_set
        self.samples = config.samples[client]
        self.learner = _learner(config, pick_device(config.device), "trained")

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels to train on, which are the client's own."""
        return x, y

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Compute this round's message on batches drawn from (seed, client, round)."""
        server_round = int(config["server-round"])
        self.learner.load(self._whole(parameters))
        with self.learner.drawing(derive(self.config.seed, "layers", self.client, server_round)):
            if self.kind.class_wise:
                return self._answer(server_round, config["classes"])
            return self._message(parameters, server_round), len(self.samples), {}

    def _message(self, parameters: NDArrays, server_round: int) -> NDArrays:
        """Return the arrays of this round's message."""
        generator = batch_generator(self.config.seed, self.client, server_round)
        if not self.kind.local_steps:
            message = self._gradient(generator)
            if self.kind.momentum:
                message = self._with_momentum(message)
            return [layer.cpu().numpy() for layer in message]
        tail = Tail(self.config.local_steps) if self.config.tail_averaging else None
        for _ in range(self.config.local_steps):
            self.learner.descend(self._gradient(generator), self.config.local_learning_rate)
            if tail:
                tail.see(self.learner.parameters)
        if tail:
            tail.write(self.learner.parameters)
        arrays = self._keep_personal(self.learner.arrays())
        if self.kind.relative:
            return arrays
        return [change(new, old) for new, old in zip(arrays, parameters, strict=True)]

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global model on the client's own samples, with their true labels.

        With personal parameters: evaluate the client's own model on its share of the test samples, and on the samples
        that it holds out for validation.
        """
        self.learner.load(self._whole(parameters))
        if self.config.split is not None:
            score = evaluate_client(self.config, self.learner, self.client)
            metrics = _told(score)
            if score.validation is not None:
                metrics |= {f"{VALIDATION}{name}": value for name, value in _told(score.validation).items()}
            return float(score.metrics["loss"]), score.samples, metrics
        found = self.learner.evaluate(*self.task.batch(torch.from_numpy(self.samples), self.learner.device))
        return found["loss"], len(self.samples), {**found}

    def _whole(self, shared: NDArrays) -> NDArrays:
        """Return all arrays of the model: those that were sent, and the client's own."""
        if (split := self.config.split) is None:
            return shared
        record = self.state.get(_PERSONAL)
        if isinstance(record, ArrayRecord):
            personal = [decode(array) for array in record.values()]
        else:
            initial = _initial(self.config)
            personal = [initial[place] for place in split.personal]
        return split.join(shared, personal)

    def _keep_personal(self, arrays: NDArrays) -> NDArrays:
        """Keep the personal arrays, and return the others, which are sent."""
        if (split := self.config.split) is None:
            return arrays
        self.state[_PERSONAL] = encode_record({self.learner.names[place]: arrays[place] for place in split.personal})
        return [arrays[place] for place in split.shared]

    def _gradient(self, generator: torch.Generator) -> list[Tensor]:
        drawn = draw_batch(self.config.batching, self.config.batch_size, len(self.samples), generator)
        batch = self.task.batch(torch.from_numpy(self.samples)[drawn], self.learner.device)
        return self.learner.gradient(*self.batch(*batch))

    def _answer(self, server_round: int, asked: Scalar) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Update the momenta of all classes in the batch; return those of the requested classes, if any."""
        run, own_classes = self.config, self.world.classes_of(self.client)
        assert isinstance(asked, list)  # from the server; Flower's type of a config has no lists
        whole = self.world.whole_batches(self.client, server_round, asked)
        parts = draw_class_batch(run.seed, self.client, server_round, own_classes, run.batching, run.batch_size, whole)
        gradients = {}
        if parts:
            own = self.task.batch(torch.cat([*parts.values()]), self.learner.device)
            gradients = {
                k: torch.cat([layer.reshape(-1) for layer in self.learner.gradient(*batch)])
                for k, batch in by_label(*self.batch(*own)).items()
            }
        record = self.state.get(_MOMENTA)
        held = record.items() if isinstance(record, ArrayRecord) else ()
        previous = {int(k): as_tensor(decode(array)).to(self.learner.device) for k, array in held}
        following = class_momenta(previous, gradients, self.config.alpha)
        self.state[_MOMENTA] = encode_record({str(k): flat.cpu().numpy() for k, flat in following.items()})
        fresh = {k: following[k] for k in gradients}
        sent = answers(fresh, asked, self.world.claims(self.client, server_round))
        shapes = [parameter.shape for parameter in self.learner.parameters]
        sizes = [shape.numel() for shape in shapes]
        arrays = [
            part.view(shape).cpu().numpy()
            for flat in sent.values()
            for part, shape in zip(flat.split(sizes), shapes, strict=True)
        ]
        told: dict[str, Any] = {"classes": list(sent)}
        return arrays, len(self.samples), told

    def _with_momentum(self, gradient: list[Tensor]) -> list[Tensor]:
        record, previous = self.state.get(_MOMENTUM), None
        if isinstance(record, ArrayRecord):
            held = as_tensor(decode(record["flat"])).to(self.learner.device)
            sizes = [layer.numel() for layer in gradient]
            previous = [m.view_as(g) for m, g in zip(torch.split(held, sizes), gradient, strict=True)]
        following = momentum_step(previous, gradient, self.config.alpha)
        flat = torch.cat([layer.reshape(-1) for layer in following])
        self.state[_MOMENTUM] = encode_record({"flat": flat.cpu().numpy()})
        return following


class Poisoner(HonestClient):
    """A client that follows the protocol, but trains on its poisoned samples in the rounds in which it attacks.

    In all other rounds it is an honest client, which continues with its momentum. Only an attack with a ``scale``
    changes the message itself.

    Parameters
    ----------
    config, client, state
        As for `HonestClient`. The run's attack poisons each batch; the stored samples never change.
    """

    def __init__(self, config: RunConfig, client: int, state: RecordDict) -> None:
        super().__init__(config, client, state)
        self._sent: NDArrays = []
        self._poison: Poison | None = None  # of the round, if it attacks

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Compute the message of an honest client, with poisoned batches and the attack's scale."""
        server_round = int(config["server-round"])
        self._sent = parameters
        poisons = self.world.poisons([self.client], server_round, lambda _, x: self._scores(x))
        self._poison = poisons.get(self.client)
        arrays, count, metrics = super().fit(parameters, config)
        if self._poison is None:
            return arrays, count, metrics
        # Only parameters are scaled relative to the model; class momenta may hold arrays for several classes, or none.
        sent = parameters if self.kind.relative else arrays
        return self._poison.scaled(arrays, sent), count, metrics

    def batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return poisoned inputs and labels; attacks that use the model see the global model that was sent.

        Personal parameters are the client's own, as they were before the round.
        """
        return (x, y) if self._poison is None else self._poison.batch(x, y)

    def _scores(self, x: Tensor) -> Tensor:
        learner = _learner(self.config, self.learner.device, "sent")
        learner.load(self._whole(self._sent))
        return learner.scores(x)
