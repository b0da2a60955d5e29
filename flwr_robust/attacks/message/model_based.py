"""Model-based: send a model that undoes what the round, or the whole training, has done.

    w' = w_0 - lambda s,   s = w - w_0

movement "round": w_0 is the model that was sent and w the one that the mean of the honest messages would make of it. As
a row, relative to w_0, that is -lambda mean_i x_i. Ramezani-Kebrya, Tabrizian, Faghri, Popovski (MixTailor, TMLR 2022),
after the model-level attacks of Fang et al. (USENIX Security 2020).

movement "past": w_0 is the model of the first round of the attack and w the one sent now; as a row, relative to w, that
is -(1 + lambda) (w - w_0), and zero in the first round. This movement needs only the models that every client receives.

Convention: lambda is ``size`` and required. Rows have the sign that makes them steps of the model; where clients send
gradients, "past" is turned accordingly, and is in the units of the model.

Knows: omniscient, with ``known`` own or partial; "past": nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, Knowledge, MessageCase, View, message_attacks
from flwr_robust.attacks.message.ipm import against_the_mean
from flwr_robust.attacks.message.line import Line, LineAttack
from flwr_robust.core.fields import Choice, Number
from flwr_robust.core.rows import Rows
from flwr_robust.core.rule import State

__all__ = ["ModelBased"]


@message_attacks.register("model_based")
@dataclass(frozen=True)
class ModelBased(InformedAttack, LineAttack):
    """Undo a movement of the model.

    Attributes
    ----------
    size : float
        lambda; > 0.
    movement : str
        "round" or "past".
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    size: Annotated[float, Number(above=0)]
    movement: Annotated[str, Choice(("past", "round"))] = "round"
    parameter: ClassVar[str] = "size"

    @property
    def knowledge(self) -> Knowledge:
        """Return the least knowledge needed; the past needs nothing."""
        return Knowledge.NOTHING if self.movement == "past" else super().knowledge

    @property
    def sees(self) -> int | None:
        """How many honest rows it needs under partial knowledge."""
        return None if self.movement == "past" else super().sees

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from the earlier model, against the movement."""
        if self.movement == "round":
            return against_the_mean(self, view)
        model = view.model
        moved = model - state.get("first", model)
        back = -torch.ones(len(view.attackers), 1, dtype=torch.float64)
        return Line(Rows.from_tensor(moved[None]), back, back, 0)

    def craft(self, view: View, state: State, rng: torch.Generator) -> tuple[Rows, State]:
        """Write the rows; the state keeps the first model."""
        if self.movement == "past" and "first" not in state:
            state = {**state, "first": view.model}
        return super().craft(view, state, rng)


CASES = (
    MessageCase("model_based(size=2.0)", [(-6, -4)], source="the formula"),
    MessageCase("model_based(size=2.0, movement='past')", [(0, 0)], source="no past in the first round"),
)
