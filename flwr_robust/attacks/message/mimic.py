"""Mimic: all attackers copy one honest client, so that it counts as often as there are attackers.

    crafted = x_k

x_i: honest messages; k, the client copied, is given or found ("auto") in a warm-up of a few rounds: with mu and z the
running mean and top principal direction of the honest messages,

    mu <- t / (t + 1) mu + mean / (t + 1),   z <- t / (t + 1) z + sum_i (x_i - mu) <x_i - mu, z> / (t + 1),   ||z|| = 1
    k = argmax_i |sum over the rounds of the warm-up of <x_i, z>|

Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing" (ICLR 2022): harmless where
clients are alike, harmful where each holds other data.

Convention: z starts as the exact top direction of the first round's messages; the authors draw it. During the warm-up
the attackers copy the client with the largest sum so far. Clients are identified by their position among the honest
rows that are seen. So the same clients should take part in every round; if their number changes, the search starts
again. ByzFL copies a given client.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.core.fields import Integer
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["Mimic"]


@message_attacks.register("mimic")
@dataclass(frozen=True)
class Mimic(InformedAttack):
    """Send what one honest client sends.

    Attributes
    ----------
    worker : int or "auto"
        Its position among the honest rows; the last one where there are fewer.
    warmup : int
        For "auto": the number of rounds before the choice is final.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    worker: Annotated[int | str, Integer(minimum=0, words=("auto",))] = "auto"
    warmup: Annotated[int, Integer(minimum=1)] = 10

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Copy a row."""
        seen = self.seen(view)
        if self.worker == "auto":
            state = self._follow(seen, state)
            worker = int(state["scores"].abs().argmax())
        else:
            worker = min(int(self.worker), seen.n - 1)
        copies = torch.zeros(len(view.attackers), seen.n, dtype=torch.float64)
        copies[:, worker] = 1
        return seen.mixed(copies), {**state, "worker": torch.tensor(worker)}

    def _follow(self, seen: Rows, state: State) -> State:
        """Return the state with this round's messages taken in."""
        if len(state.get("scores", ())) != seen.n:
            state = {}
        rounds = int(state["rounds"]) if state else 0
        if rounds >= self.warmup:
            return state
        mean = torch.full((seen.n,), 1 / seen.n, dtype=torch.float64)
        if rounds == 0:
            centre = seen.mix_exactly(mean)
            centred = torch.eye(seen.n, dtype=torch.float64) - mean
            top = torch.linalg.eigh(centred @ seen.gram @ centred).eigenvectors[:, -1]
            direction = seen.mix_exactly(top @ centred)
            scores = torch.zeros_like(mean)
        else:
            scores, old, direction = (state[key] for key in ("scores", "centre", "direction"))
            centre = (rounds * old + seen.mix_exactly(mean)) / (rounds + 1)
            along = _inner(seen, direction) - float(centre @ direction)
            moved = seen.mix_exactly(along) - along.sum() * centre
            direction = (rounds * direction + moved) / (rounds + 1)
        direction = torch.nn.functional.normalize(direction, dim=0)
        scores = scores + _inner(seen, direction)
        return {"scores": scores, "centre": centre, "direction": direction, "rounds": torch.tensor(rounds + 1)}


def _inner(rows: Rows, direction: torch.Tensor) -> torch.Tensor:
    """Return the inner products (n,) of rows with a direction (d,)."""
    total = torch.zeros(rows.n, dtype=torch.float64)
    for start, block in rows.blocks():
        total += (block @ direction[start : start + block.shape[1]]).cpu()
    return total


CASES = (
    MessageCase("mimic(worker=1)", [(3, -2)], source="the formula"),
    MessageCase("mimic(worker=7)", [(5, 6)], source="the last where there are fewer"),
    MessageCase(
        "mimic()",
        [(5, 6)],
        source="along (1, 1), the longest side, the rows lie at 3, 1 and 11",
        honest=((1, 2), (0, 1), (5, 6)),
    ),
)
