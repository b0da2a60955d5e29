"""Class-wise momenta for all clients of a run as few batched computations: what `simulation` does in such a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flwr_robust.class_rounds import (
    ClassesSettled,
    answers,
    by_label,
    claims,
    draw_class_batch,
    own_classes,
    settle_classes,
)
from flwr_robust.config import RunConfig
from flwr_robust.desgd import class_momenta, classes_of_round
from flwr_robust.results import RoundResult
from flwr_robust.rounds import Poison
from flwr_robust.rows import Rows
from flwr_robust.rule import State
from flwr_robust.tasks import Grouped

__all__ = ["ClassWise"]

MakeRows = Callable[[Tensor, Sequence[int]], Rows]


class ClassWise:
    """All clients' momenta, class by class, and what the server remembers.

    Parameters
    ----------
    config : RunConfig
        A run whose message is ``class_momentum``.
    grouped : Grouped
        The model, walked for many batches at once; its learner holds the model that was sent.
    x, y : Tensor (N, ...), Tensor (N,)
        The training samples, on the learner's device.
    """

    def __init__(self, config: RunConfig, grouped: Grouped, x: Tensor, y: Tensor) -> None:
        self.config = config
        self._grouped, self._x, self._y = grouped, x, y
        self._held = [own_classes(config, client) for client in range(config.clients)]
        self._momenta: list[dict[int, Tensor]] = [{} for _ in range(config.clients)]
        self._state: State = {}

    def round(
        self, server_round: int, asked: Sequence[int], shared: Sequence[Tensor], make_rows: MakeRows
    ) -> tuple[RoundResult, Tensor | None]:
        """Run a round up to the server's step.

        Parameters
        ----------
        server_round : int
            Which.
        asked : sequence of int
            The clients asked, ascending.
        shared : sequence of Tensor (1, *shape)
            The model that was sent.
        make_rows : callable (Tensor (n, d), clients) -> Rows
            What the server makes of messages.

        Returns
        -------
        RoundResult
            What is on record.
        Tensor (d,) or None
            What the server steps along; None leaves the model as it is.
        """
        config = self.config
        classes = config.data_set.classes
        wanted = classes_of_round(config.schedule, server_round, classes, config.classes_per_round, config.seed)
        sent = self._sent(server_round, asked, wanted, shared)
        abstained = [client for client in asked if not sent[client]]
        faulty = [c for c in asked if any(not bool(torch.isfinite(part).all()) for part in sent[c].values())]
        senders = [client for client in asked if client not in abstained and client not in faulty]
        rows: dict[int, Rows | None] = {}
        members = {k: [place for place, client in enumerate(senders) if k in sent[client]] for k in wanted}
        for k, places in members.items():
            clients = [senders[place] for place in places]
            rows[k] = make_rows(torch.stack([sent[c][k] for c in clients]), clients) if clients else None
        settled: ClassesSettled = settle_classes(
            config.rule,
            rows,
            members,
            self._state,
            replies=len(senders),
            classes=classes,
            gamma=config.gamma,
            alpha=config.alpha,
        )
        self._state = settled.state
        result = RoundResult(
            server_round,
            senders,
            () if settled.aggregate is None else settled.aggregate.weights.tolist(),
            [(client, "NOT_FINITE") for client in faulty],
            settled.outcome,
            abstained=abstained,
        )
        return result, settled.direction

    def _sent(
        self, server_round: int, asked: Sequence[int], wanted: Sequence[int], shared: Sequence[Tensor]
    ) -> dict[int, dict[int, Tensor]]:
        """Return what every client sends, by class; empty for those that abstain."""
        config, learner = self.config, self._grouped.learner
        attackers = config.attackers_in(server_round) if config.data_attack else ()
        poisons = {
            client: Poison.of(config, client, server_round, attackers.index(client), learner.scores)
            for client in asked
            if client in attackers
        }
        gradients = self._gradients(self._batches(server_round, asked, poisons), asked, shared)
        sent = {}
        for client in asked:
            momenta = self._momenta[client] = class_momenta(self._momenta[client], gradients[client], config.alpha)
            fresh = {k: momenta[k] for k in gradients[client]}
            sent[client] = answers(fresh, wanted, claims(config, client, server_round))
            if client in poisons:  # scaling a momentum takes no model
                scaled = ((k, poisons[client].scaled([part], [part])) for k, part in sent[client].items())
                sent[client] = {k: part for k, (part,) in scaled}
        return sent

    def _batches(
        self, server_round: int, asked: Sequence[int], poisons: dict[int, Poison]
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Return inputs and labels by client and class."""
        parts = {client: draw_class_batch(self.config, client, server_round, self._held[client]) for client in asked}
        device = self._grouped.learner.device
        picked = torch.cat([part for drawn in parts.values() for part in drawn]).to(device)
        inputs = self.config.data_set.inputs(self._x.index_select(0, picked), device)
        labels = self._y.index_select(0, picked)
        batches, start = {}, 0
        for client, drawn in parts.items():
            if client in poisons:
                own = slice(start, start + sum(map(len, drawn)))
                for k, batch in by_label(*poisons[client].batch(inputs[own], labels[own])).items():
                    batches[client, k] = batch
                start = own.stop
                continue
            for k, part in zip(self._held[client], drawn, strict=True):  # what `by_label` would find
                batches[client, k] = inputs[start : start + len(part)], labels[start : start + len(part)]
                start += len(part)
        return batches

    def _gradients(
        self,
        batches: dict[tuple[int, int], tuple[Tensor, Tensor]],
        asked: Sequence[int],
        shared: Sequence[Tensor],
    ) -> dict[int, dict[int, Tensor]]:
        """Return the gradients by client and class; batches of one size are walked together."""
        found: dict[int, dict[int, Tensor]] = {client: {} for client in asked}
        sizes: dict[int, list[tuple[int, int]]] = {}
        for place, (_, labels) in batches.items():
            sizes.setdefault(len(labels), []).append(place)
        width = sum(parameter.numel() for parameter in shared)
        for places in sizes.values():
            x, y = (torch.stack([batches[place][part] for place in places]) for part in (0, 1))
            gradients = x.new_empty(len(places), width)
            self._grouped.gradients(shared, x, y, self._grouped.layers(gradients))
            for (client, k), gradient in zip(places, gradients, strict=True):
                found[client][k] = gradient
        return found
