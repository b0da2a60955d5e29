"""What a fault is: a client that fails without malice. A fault changes whether and what one client answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.core.rule import State
from flwr_robust.core.spec import Component, Registry

__all__ = ["Answer", "Fault", "FaultCase", "faults"]

faults: Registry[Fault] = Registry("fault", "flwr_robust.attacks.fault", "flwr_robust.attacks")

Answer = Mapping[str, Tensor] | str | None
"""What a client answers: arrays by name, the reason of an error, or nothing."""


@dataclass(frozen=True)
class Fault(Component, ABC):
    """A way in which one client fails, whatever the others do."""

    def init(self) -> State:
        """Return a client's state before the first round."""
        return {}

    @abstractmethod
    def answer(
        self,
        layers: Mapping[str, Tensor],
        server_round: int,
        state: State,
        rng: torch.Generator,
    ) -> tuple[Answer, State]:
        """Return what a client answers, and its next state.

        Parameters
        ----------
        layers : mapping of str to Tensor
            What it would have answered: the arrays by name; not changed.
        server_round : int
            The round, from 1.
        state : State
            What the last call for this client returned; `init()` in the first round.
        rng : torch.Generator
            Source of the draws; a CPU generator.

        Returns
        -------
        Answer
            What it answers instead.
        State
            To be given to its next call.
        """


@dataclass(frozen=True)
class FaultCase:
    """One fault solved by hand, for the conformance suite.

    In round t the client would answer the arrays a = (t) and b = (t, -t).

    Attributes
    ----------
    fault : str
        The fault's text.
    asked : sequence of int
        The rounds in which the client is asked.
    answers : sequence
        What it must answer in each: nothing, an error's text, or the round of each array by name.
    source : str
        Where they come from.
    """

    fault: str
    asked: Sequence[int]
    answers: Sequence[Mapping[str, int] | str | None]
    source: str
