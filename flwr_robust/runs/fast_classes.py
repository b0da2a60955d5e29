"""The fast engine for class-wise momenta: all clients of a run in a few batched computations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.attacks.adversary import Adversary, written
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.poison import Poison
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import State
from flwr_robust.protocol.classes import (
    answer_names,
    answered_classes,
    answers,
    by_label,
    class_momenta,
    classes_of_round,
    draw_class_batch,
)
from flwr_robust.protocol.rounds import settle_round, state_of_class, too_few
from flwr_robust.runs.results import RoundResult
from flwr_robust.runs.world import World
from flwr_robust.seeds import derive
from flwr_robust.tasks import Grouped, Learner

__all__ = ["ClassWise"]

MakeRows = Callable[[Tensor, Sequence[int], int | None], Rows]

_Sent = dict[int, dict[int, Tensor]]  # by client and class; empty for clients that abstain


@dataclass
class _Heard:
    """The messages of a round that reach the server."""

    unheard: dict[int, str] = field(default_factory=dict)  # the reasons, by client
    silent: set[int] = field(default_factory=set)
    strength: float | None = None


class ClassWise:
    """The momenta of all clients by class, and the server's memory.

    Parameters
    ----------
    world : World
        The world of a run with messages of the kind ``class_momentum``.
    learner : Learner
        Holds the model that was sent.
    together : bool
        Whether many batches are computed at once, by `Grouped`. If not, the learner computes one after the other.
    layout : sequence of Layer
        The model's arrays.
    make_rows : callable (Tensor (n, d), clients, seed) -> Rows
        Turns messages into the server's rows.
    adversary : Adversary, optional
        Rewrites the attackers' messages.
    """

    def __init__(
        self,
        world: World,
        learner: Learner,
        together: bool,
        layout: Sequence[Layer],
        make_rows: MakeRows,
        adversary: Adversary | None = None,
    ) -> None:
        self.world = world
        self.config = world.config
        self._learner = learner
        self._grouped = Grouped(learner) if together else None
        self._x, self._y = (part.to(learner.device) for part in (world.task.x_train, world.task.y_train))
        self._layout, self._rows, self._adversary = layout, make_rows, adversary
        self._held = [world.classes_of(client) for client in range(self.config.clients)]
        self._momenta: list[dict[int, Tensor]] = [{} for _ in range(self.config.clients)]
        self._state: State = {}

    def round(self, server_round: int, asked: Sequence[int]) -> tuple[RoundResult, NDArray[np.float64] | None]:
        """Run a round, without the server's step on the model.

        Parameters
        ----------
        server_round : int
            The round.
        asked : sequence of int
            The clients asked, in ascending order.

        Returns
        -------
        RoundResult
            The record of the round.
        array (d,) of float64, or None
            The change of the model; None leaves it unchanged.
        """
        config = self.config
        classes = config.data_set.classes
        wanted = classes_of_round(config.schedule, server_round, classes, config.classes_per_round, config.seed)
        sent = self._sent(server_round, asked, wanted)
        abstained = [client for client in asked if not sent[client]]
        heard = self._attacked(server_round, sent, wanted)
        for client, parts in sent.items():
            if not all(bool(torch.isfinite(part).all()) for part in parts.values()):
                heard.unheard.setdefault(client, "NOT_FINITE")
        out = {*abstained, *heard.unheard, *heard.silent}
        senders = [client for client in asked if client not in out]
        members: dict[int | None, list[int]] = {
            k: [place for place, client in enumerate(senders) if k in sent[client]] for k in wanted
        }
        rows: dict[int | None, Rows | None] = {
            k: self._rows_of(sent, k, [senders[place] for place in members[k]], config.seed) for k in wanted
        }
        answered = len(senders) + len(abstained)
        settled = settle_round(
            *(config.rule, rows, self._state, self.world.step),
            members=members,
            replies=len(senders),
            lacking=too_few(config.rule, answered, len(asked), config.min_replies or None),
        )
        self._state = settled.state
        result = RoundResult(
            server_round,
            senders,
            () if settled.aggregate is None else settled.aggregate.weights.tolist(),
            [(client, heard.unheard[client]) for client in asked if client in heard.unheard],
            settled.outcome,
            [client for client in asked if client in heard.silent],
            heard.strength,
            abstained,
        )
        return result, settled.change

    def _rows_of(self, sent: _Sent, k: int, clients: Sequence[int], seed: int | None = None) -> Rows | None:
        """Return the rows that clients have sent for a class, or None; the attackers' have no seed."""
        return self._rows(torch.stack([sent[client][k] for client in clients]), clients, seed) if clients else None

    def _attacked(self, server_round: int, sent: _Sent, wanted: Sequence[int]) -> _Heard:
        """Let attackers overwrite their messages in place, or fail."""
        heard, adversary = _Heard(), self._adversary
        attackers = {client for client in self.config.attackers_in(server_round) if client in sent}
        if adversary is None or not attackers:
            return heard
        if isinstance(adversary.attack, Fault):
            for client in sorted(attackers):
                if sent[client]:
                    self._fail(adversary, server_round, client, sent, wanted, heard)
            return heard
        model = self._learner.arrays()
        for k in wanted:
            # Messages that are not finite are invisible to the attack and stay unchanged.
            read = [client for client in sent if k in sent[client] and bool(torch.isfinite(sent[client][k]).all())]
            own = [client for client in read if client in attackers]
            honest = [client for client in read if client not in attackers]
            if not adversary.usable(len(own), len(honest)):
                continue
            own_rows = self._rows_of(sent, k, own)
            assert own_rows is not None
            values = adversary.craft(
                server_round,
                own_rows,
                self._rows_of(sent, k, honest),
                [place for place, client in enumerate(read) if client in attackers],
                model,
                asked=len(sent),
                unit=torch.finfo(sent[own[0]][k].dtype).eps / 2,
                rule_state=state_of_class(self.config.rule, self._state, k),
                kind=k if len(wanted) > 1 else None,
            )
            for client, row in zip(own, values, strict=True):
                held = sent[client][k]
                sent[client][k] = torch.from_numpy(written(row, model[0].dtype)).to(held.device)
            heard.strength = adversary.strength if heard.strength is None else heard.strength
        return heard

    def _fail(
        self, adversary: Adversary, server_round: int, client: int, sent: _Sent, wanted: Sequence[int], heard: _Heard
    ) -> None:
        """Let a client fail."""
        sizes = [layer.size for layer in self._layout]
        model = [layer.name for layer in self._layout]
        parts = (
            part.view(layer.shape)
            for flat in sent[client].values()
            for layer, part in zip(
                self._layout, flat.cpu().clone().split_with_sizes(sizes), strict=True
            )  # faults keep the message
        )
        layers = dict(zip(answer_names(model, sent[client], wanted), parts, strict=True))
        answer = adversary.answer(server_round, client, layers)
        if answer is None:
            heard.silent.add(client)
        elif isinstance(answer, str):
            heard.unheard[client] = "ERROR"
        else:
            answered = answered_classes(answer.keys(), wanted)
            names = answer_names(model, answered, wanted)
            if answer.keys() != set(names) or not names:
                heard.unheard[client] = "NAMES"
            elif answer is not layers:
                device, width = self._learner.device, len(model)
                flat = [answer[name].flatten() for name in names]
                sent[client] = {
                    k: torch.cat(flat[place * width : (place + 1) * width]).to(device)
                    for place, k in enumerate(answered)
                }

    def _sent(self, server_round: int, asked: Sequence[int], wanted: Sequence[int]) -> _Sent:
        """Return the messages of all clients."""
        config = self.config
        poisons = self.world.poisons(asked, server_round, lambda _, x: self._learner.scores(x))
        drawn = {client: self._drawn(server_round, client, wanted) for client in asked}
        if self._grouped is None:
            gradients = {client: self._alone(server_round, client, drawn[client], poisons) for client in asked}
        else:
            gradients = self._together(self._grouped, self._batches(drawn, poisons), asked)
        sent = {}
        for client in asked:
            momenta = self._momenta[client] = class_momenta(self._momenta[client], gradients[client], config.alpha)
            fresh = {k: momenta[k] for k in gradients[client]}
            sent[client] = answers(fresh, wanted, self.world.claims(client, server_round))
            if client in poisons:  # scaling a momentum does not need the model
                scaled = ((k, poisons[client].scaled([part], [part])) for k, part in sent[client].items())
                sent[client] = {k: part for k, (part,) in scaled}
        return sent

    def _drawn(self, server_round: int, client: int, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the samples of a client's batch, by class."""
        config = self.config
        return draw_class_batch(
            *(config.seed, client, server_round, self._held[client], config.batching, config.batch_size),
            self.world.whole_batches(client, server_round, wanted),
        )

    def _alone(
        self, server_round: int, client: int, drawn: dict[int, Tensor], poisons: dict[int, Poison]
    ) -> dict[int, Tensor]:
        """Return a client's gradients by class, as its app computes them."""
        if not drawn:
            return {}
        x, y = self.world.task.batch(torch.cat([*drawn.values()]), self._learner.device)
        with self._learner.drawing(derive(self.config.seed, "layers", client, server_round)):
            if client in poisons:
                x, y = poisons[client].batch(x, y)
            return {
                k: torch.cat([layer.reshape(-1) for layer in self._learner.gradient(*batch)])
                for k, batch in by_label(x, y).items()
            }

    def _batches(
        self, parts: dict[int, dict[int, Tensor]], poisons: dict[int, Poison]
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Return inputs and labels by client and class."""
        device = self._learner.device
        if not any(parts.values()):
            return {}
        picked = torch.cat([part for drawn in parts.values() for part in drawn.values()]).to(device)
        inputs = self.config.data_set.inputs(self._x.index_select(0, picked), device)
        labels = self._y.index_select(0, picked)
        batches, start = {}, 0
        for client, drawn in parts.items():
            if client in poisons:
                own = slice(start, start + sum(map(len, drawn.values())))
                for k, batch in by_label(*poisons[client].batch(inputs[own], labels[own])).items():
                    batches[client, k] = batch
                start = own.stop
                continue
            for k, part in drawn.items():  # the result that `by_label` would give
                batches[client, k] = inputs[start : start + len(part)], labels[start : start + len(part)]
                start += len(part)
        return batches

    def _together(
        self, grouped: Grouped, batches: dict[tuple[int, int], tuple[Tensor, Tensor]], asked: Sequence[int]
    ) -> dict[int, dict[int, Tensor]]:
        """Return the gradients by client and class; batches of equal size are computed together."""
        found: dict[int, dict[int, Tensor]] = {client: {} for client in asked}
        sizes: dict[int, list[tuple[int, int]]] = {}
        for place, (_, labels) in batches.items():
            sizes.setdefault(len(labels), []).append(place)
        shared = [parameter.detach().unsqueeze(0) for parameter in self._learner.parameters]
        width = sum(parameter.numel() for parameter in shared)
        for places in sizes.values():
            x, y = (torch.stack([batches[place][part] for place in places]) for part in (0, 1))
            gradients = x.new_empty(len(places), width)
            grouped.gradients(shared, x, y, grouped.layers(gradients))
            for (client, k), gradient in zip(places, gradients, strict=True):
                found[client][k] = gradient
        return found
