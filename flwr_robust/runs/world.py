"""The world of a run, built from its configuration: the data and their owners, the model, and the attackers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.adversary import Adversary
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.message.base import Knowledge, MessageAttack
from flwr_robust.attacks.poison import Poison
from flwr_robust.errors import ConfigurationError
from flwr_robust.protocol.classes import ClassBuffer, held_classes
from flwr_robust.protocol.messages import message_kind
from flwr_robust.protocol.momentum import HeavyBall
from flwr_robust.protocol.rounds import ServerStep
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import torch_generator
from flwr_robust.tasks import Learner, Task

__all__ = ["World", "world_of"]


class World:
    """The objects that a configuration describes.

    Parameters
    ----------
    config : RunConfig
        The run.

    Attributes
    ----------
    config : RunConfig
        As given.
    kind : MessageKind
        What clients send.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.kind = message_kind(config.message)
        self._held: dict[int, dict[int, Tensor]] = {}

    # -- data and model ---------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task's data, loaded at the first access."""
        return self.config.data_set

    @property
    def samples(self) -> list[NDArray[np.int64]]:
        """The indices of every client's training samples, in the partition's order."""
        return self.config.samples

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Build the seeded model with its steps."""
        return self.config.learner(device)

    def classes_of(self, client: int) -> dict[int, Tensor]:
        """Return a client's samples by true class; classes and samples are in ascending order."""
        if client not in self._held:
            self._held[client] = held_classes(self.task.y_train, torch.from_numpy(self.samples[client]))
        return self._held[client]

    # -- the server -------------------------------------------------------------------------------

    @cached_property
    def step(self) -> ServerStep:
        """The server's step."""
        config = self.config
        if self.kind.class_wise:
            buffer = ClassBuffer(self.task.classes, config.gamma, config.buffer_fade or config.alpha)
            return ServerStep(self.kind, config.server_learning_rate, buffer)
        return ServerStep(self.kind, config.server_learning_rate, HeavyBall(config.server_momentum))

    def check_senders(self) -> None:
        """Raise if a class has fewer senders than the rule needs, because the model would never learn this class.

        Attackers count as senders of every class: they may claim a class, or flip their labels to it.

        Raises
        ------
        ConfigurationError
            The error names the class.
        """
        config = self.config
        if not self.kind.class_wise:
            return
        senders = dict.fromkeys(range(self.task.classes), 0)
        for client in range(config.clients):
            for k in senders if config.attacks(client) else self.classes_of(client):
                senders[k] += 1
        for k, count in senders.items():
            n = min(count, config.sampled)
            if sentence := config.rule.check(n, asked=config.sampled):
                raise ConfigurationError(
                    f"configuration: message={config.message!r}: at most {n} clients send class {k}, and "
                    f"{sentence.partition(':')[0]}: take a partition that gives each class to more clients, or a rule "
                    f"that needs fewer"
                )

    def check_counts(self) -> None:
        """Raise if the clients' numbers of samples do not fit the rule, where all clients are asked in every round.

        Elsewhere only a round knows the numbers; one that does not fit is infeasible.

        Raises
        ------
        ConfigurationError
            The error names the share of the heaviest clients.
        """
        config = self.config
        if self.kind.class_wise or config.sampled < config.clients:
            return
        counts = torch.tensor([len(samples) for samples in config.samples], dtype=torch.float64)
        if bool((counts > 0).all()) and (sentence := config.rule.check_counts(counts)):
            raise ConfigurationError(sentence)

    # -- attackers --------------------------------------------------------------------------------

    def claims(self, client: int, server_round: int) -> bool:
        """Say whether a client answers for classes that it does not hold, as attackers on messages do.

        The attack rewrites the answer anyway; without an answer there is nothing to rewrite.
        """
        config = self.config
        return isinstance(config.attack_object, MessageAttack) and client in config.attackers_in(server_round)

    def whole_batches(self, client: int, server_round: int, asked: Collection[int]) -> Collection[int] | None:
        """Return the classes of which a client draws a whole batch each; None if one is split over its classes.

        These are the classes asked for. A client with poisoned labels draws of all its classes, because only the
        poison says which labels come out. So does one that claims a class that it lacks.
        """
        config = self.config
        if config.class_batch == "split":
            return None
        held = self.classes_of(client)
        poisoned = config.data_attack is not None and client in config.attackers_in(server_round)
        if poisoned or (self.claims(client, server_round) and not set(asked) <= held.keys()):
            return held
        return asked

    def poisons(
        self,
        clients: Iterable[int],
        server_round: int,
        scores: Callable[[int, Tensor], Tensor],
        draws: tuple[str, int] | None = None,
    ) -> dict[int, Poison]:
        """Return the attack on data of each client that attacks in a round.

        Parameters
        ----------
        clients : iterable of int
            The clients in question.
        server_round : int
            The round, from 1.
        scores : callable (client, Tensor) -> Tensor
            Returns the scores for inputs by the model that was sent to a client.
        draws : (str, int), optional
            Purpose and number of the attack's draws. When not given, these are the draws of training in the round.
        """
        config, attack = self.config, self.config.data_attack
        if attack is None:
            return {}
        attackers = config.attackers_in(server_round)
        purpose, number = draws or ("labels", server_round)
        return {
            client: Poison(
                attack,
                self.task.classes,
                self.task.span,
                self.kind,
                attackers.index(client),
                torch_generator(config.seed, purpose, client, number),
                partial(scores, client),
            )
            for client in clients
            if client in attackers
        }

    def adversary(self) -> Adversary | None:
        """Return the adversary that rewrites messages or lets clients fail; None if there is none."""
        config, attack = self.config, self.config.attack_object
        if not isinstance(attack, MessageAttack | Fault):
            return None
        return Adversary(
            attack,
            config.message,
            knowledge=Knowledge.of(config.knowledge),
            known=config.known or None,
            rule=config.rule,
            seed=config.seed,
        )


@lru_cache(maxsize=8)
def world_of(config: RunConfig) -> World:
    """Return the world of a configuration, one per process."""
    return World(config)
