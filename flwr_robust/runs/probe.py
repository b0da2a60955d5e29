"""Probe: measure every client's gradient at the global model, on samples of its own.

The gradients give the diagnostics of Peng et al. (JMLR 2025), see `flwr_robust.diagnostics`. A client's samples are
drawn once per run, so that a curve shows changes of the model and not of the samples. They are divided into parts of
the size of a batch. The mean of the parts' gradients is the client's gradient, and their spread gives its variance. A
gradient on m of many samples has an error of about sqrt(sigma2 * batch size / m). If the clients hardly differ, xi
shows little more than this error.

If the defence is MixTailor and the attack rewrites messages, the attackers rewrite their gradients. Every member of the
pool then aggregates all gradients; see `flwr_robust.diagnostics.mixture`. With ``diagnose`` as large as a batch the
gradients scatter as messages do.

Weight decay is left out of the clients' gradients, because it adds the same to every one. It counts in gradient2, the
squared length of the gradient of what training minimises:

    ||grad f(x)||^2 = ||mean over honest w of grad f_w(x) + lambda x||^2

The theory bounds it by floors, see `flwr_robust.diagnostics.floors`. A poisoned client's parts are poisoned as its
batches are in training, with separate draws. So a measurement does not change the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flwr_robust.aggregators.mixtailor import MixTailor
from flwr_robust.attacks.message.base import MessageAttack
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.diagnostics import Mixture, Moments, disturbance, heterogeneity, mixture
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.world import World
from flwr_robust.seeds import derive, torch_generator
from flwr_robust.tasks import Learner

__all__ = ["Measured", "Probe"]


@dataclass(frozen=True)
class Measured:
    """The clients' gradients at one model.

    Attributes
    ----------
    gradients : Tensor (clients, d) of float64
        One client per row; poisoned clients use the poisoned data on which they train.
    attackers : tuple of int
        The clients that attack.
    poisoned : bool
        Whether the attackers poison their data, and so their rows.
    variances : tuple (clients,) of float
        Variance of each client's gradients on batches of the run's size; NaN for a client with one sample.
    pull : Tensor (d,) of float64
        The gradient of the weight decay, lambda x.
    mixture : Mixture, optional
        What the members of a pool make of the gradients after an attack on messages, where the defence is a pool.
    """

    gradients: Tensor
    attackers: tuple[int, ...]
    poisoned: bool
    variances: tuple[float, ...]
    pull: Tensor
    mixture: Mixture | None = None

    @cached_property
    def honest(self) -> Tensor:
        """The rows of the clients that do not attack."""
        return self.gradients[[client for client in range(len(self.gradients)) if client not in self.attackers]]

    @property
    def metrics(self) -> dict[str, float]:
        """The known values of ``xi``, ``A``, ``sigma2`` and ``gradient2``; of a pool also its six numbers.

        xi and gradient2 need a client that does not attack. A also needs one that poisons its data. sigma2 is the
        largest variance of a batch among all clients, and needs a client with two samples.
        """
        found = {}
        if len(self.honest):
            found["xi"] = heterogeneity(self.honest)
            found["gradient2"] = float((self.honest.mean(0) + self.pull).square().sum())
            if self.attackers and self.poisoned:
                found["A"] = disturbance(self.gradients[list(self.attackers)], self.honest)
        if known := [value for value in self.variances if not math.isnan(value)]:
            found["sigma2"] = max(known)
        if (pool := self.mixture) is not None:
            found |= {"pool_broken": pool.broken_share, "pool_bearable": pool.bearable_share}
            found |= {"pool_expected": pool.expected, "pool_beta": pool.beta}
            found |= {"pool_lambda": pool.backward, "pool_length": pool.length}
        return found


class Probe:
    """Measures the clients of a run.

    Parameters
    ----------
    config : RunConfig
        The run. Its ``diagnose`` is the largest number of samples per client; 0 takes all samples.
    learner : Learner
        The model; `measure` uses its parameters at the time of the call.
    """

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self._config = config
        self._world = World(config)
        self._learner = Learner(learner.model, 0.0, learner.device, learner.objective)  # the same model
        self._samples = []
        for client, held in enumerate(config.samples):
            draw = torch_generator(config.seed, "diagnose", client)
            picked = torch.randperm(len(held), generator=draw)[: config.diagnose or len(held)]
            self._samples.append(torch.from_numpy(held)[picked])

    def measure(self, server_round: int) -> Measured:
        """Measure all clients, asked or not, after a round; the attackers of the next round poison.

        Parameters
        ----------
        server_round : int
            The round; 0 before the first.
        """
        config = self._config
        poisons = self._world.poisons(
            range(config.clients),
            server_round + 1,
            lambda _, x: self._learner.scores(x),
            ("diagnose-labels", server_round),
        )
        gradients, variances = [], []
        for client in range(config.clients):
            poison = poisons.get(client)
            moments = Moments()
            with self._learner.drawing(derive(config.seed, "diagnose-layers", client, server_round)):
                for x, y in self._parts(client):
                    batch = (x, y) if poison is None else poison.batch(x, y)
                    moments.add(torch.cat([layer.reshape(-1) for layer in self._learner.gradient(*batch)]), len(y))
            gradients.append(moments.mean)
            variances.append(moments.variance / config.batch_size)
        attackers = tuple(config.attackers_in(server_round + 1))
        model = torch.cat([array.detach().double().reshape(-1) for array in self._learner.parameters])
        pull = config.weight_decay * model
        stack = torch.stack(gradients)
        pool = self._mixture(stack, attackers, server_round + 1)
        return Measured(stack, attackers, config.data_attack is not None, tuple(variances), pull, pool)

    def _mixture(self, gradients: Tensor, attackers: tuple[int, ...], server_round: int) -> Mixture | None:
        """Let the attackers rewrite their gradients, and the members of the pool aggregate them all."""
        config, adversary = self._config, self._world.adversary()
        honest = [client for client in range(config.clients) if client not in attackers]
        pool = config.rule
        if adversary is None or not isinstance(adversary.attack, MessageAttack) or not isinstance(pool, MixTailor):
            return None
        if not adversary.usable(len(attackers), len(honest)) or not honest or not gradients[honest].mean(0).any():
            return None
        sizes = [array.numel() for array in self._learner.parameters]
        layout = [
            Layer(name, tuple(array.shape))
            for name, array in zip(self._learner.names, self._learner.parameters, strict=True)
        ]

        def rows(which: Sequence[int], held: Tensor) -> Rows:
            stacks = held[list(which)].split_with_sizes(sizes, 1)
            return Rows.from_stacks(stacks, layout=layout, asked=config.clients, seed=adversary.draws(server_round))

        model = [array.detach().cpu().numpy() for array in self._learner.parameters]
        crafted = adversary.craft(
            server_round,
            rows(attackers, gradients),
            rows(honest, gradients),
            attackers,
            model,
            asked=config.clients,
            unit=float(torch.finfo(gradients.dtype).eps),
            rule_state=pool.init(),
        )
        sent = gradients.clone()
        sent[list(attackers)] = torch.from_numpy(crafted).to(sent)
        return mixture(pool.values(rows(range(config.clients), sent)), gradients[honest])

    def _parts(self, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a client's samples in parts of a batch's size, but at least two parts if there are two samples."""
        samples = self._samples[client]
        size = max(1, min(self._config.batch_size, len(samples) // 2))
        for picked in torch.split(samples, size):
            yield self._world.task.batch(picked, self._learner.device)
