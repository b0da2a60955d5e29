"""What a data attack is: it replaces a client's training data, batch by batch; the client still follows the protocol.

The stored data never change: an attack is a pure function of its batch, so its effect on one batch does not last into
the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from flwr_robust.core.fields import Choice, Number
from flwr_robust.core.spec import Component, Registry
from flwr_robust.seeds import numpy_generator

__all__ = ["ClientView", "DataAttack", "DataCase", "LabelAttack", "data_attacks", "drawn_attackers"]

data_attacks: Registry[DataAttack] = Registry("attack", "flwr_robust.attacks.data", "flwr_robust.attacks")


@dataclass(frozen=True)
class ClientView:
    """What a poisoned client knows beside its batch.

    Attributes
    ----------
    classes : int
        K, the number of classes.
    generator : torch.Generator
        Source of the attack's draws; a CPU generator.
    scores : callable returning Tensor (b, K)
        The current global model's scores of the batch; called only by attacks that look.
    span : (float, float)
        The smallest and the largest input of the task, as a model sees them.
    rank : int
        The client's place among the attackers of the round, from 0.
    """

    classes: int
    generator: torch.Generator
    scores: Callable[[], Tensor]
    span: tuple[float, float] = (0.0, 1.0)
    rank: int = 0


@dataclass(frozen=True)
class DataAttack(Component, ABC):
    """Poison samples with a probability.

    Attributes
    ----------
    p : float
        Probability that a sample is poisoned; in [0, 1].
    per : str
        "label": one draw for every sample. "batch": one draw for the whole batch, as in the code of Peng et al. (JMLR
        2025).
    scale : float
        What the client multiplies its message by, relative to the model it was sent; > 0. 1 follows the protocol.
        n / server learning rate is the model replacement of Bagdasaryan et al., "How To Backdoor Federated Learning"
        (AISTATS 2020): under the mean the poisoned model takes the place of the global one. A momentum (the running
        mean of a client's gradients) is scaled when it is sent; the stored one stays as it is.
    changes_inputs : bool, class attribute
        Whether the attack computes new inputs from real numbers; it then refuses tasks of token numbers.
    changes_labels : bool, class attribute
        Whether the attack computes new class labels; it then refuses tasks with other targets.
    """

    p: Annotated[float, Number(minimum=0, maximum=1)] = 1.0
    per: Annotated[str, Choice(("label", "batch"))] = "label"
    scale: Annotated[float, Number(above=0)] = 1.0
    changes_inputs: ClassVar[bool] = True
    changes_labels: ClassVar[bool] = True

    def check(self, classes: int, shape: tuple[int, ...]) -> str | None:
        """Return why a task with so many classes and this shape of inputs does not fit, in one sentence, or None."""
        return None

    @abstractmethod
    def poisoned(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Return the replacement of each sample and label; x itself may be returned where inputs do not change."""

    def trial(self, x: Tensor, labels: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """Return the test of the attack's success: inputs, and the label that the attacker wants for each.

        Parameters
        ----------
        x : Tensor (N, ...)
            Clean test inputs, as a model sees them.
        labels : Tensor (N,) of int64
            Their labels.
        span : (float, float)
            As in `ClientView`.

        Returns
        -------
        (Tensor, Tensor), or None
            None if the attack wants no label in particular.
        """
        return None

    def __call__(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Return what to train on instead of a batch; the batch is not changed.

        Parameters
        ----------
        x : Tensor (b, ...)
            Inputs, as a model sees them.
        labels : Tensor (b, ...)
            True targets; class labels are int64 (b,), 0 .. K - 1.
        view : ClientView
            What else the client knows.

        Returns
        -------
        (Tensor (b, ...), Tensor (b, ...))
            The inputs are x itself where the attack leaves them alone; the labels are copies.
        """
        count = len(labels) if self.per == "label" else 1
        chosen = (torch.rand(count, generator=view.generator) < self.p).to(labels.device)
        if not bool(chosen.any()):
            return x, labels.clone()
        inputs, wrong = self.poisoned(x, labels, view)
        if inputs is not x:
            inputs = torch.where(chosen.view(-1, *[1] * (x.dim() - 1)), inputs, x)
        return inputs, labels.clone() if wrong is labels else torch.where(chosen, wrong, labels)


@dataclass(frozen=True)
class LabelAttack(DataAttack):
    """A data attack that leaves the inputs alone."""

    changes_inputs: ClassVar[bool] = False

    @abstractmethod
    def wrong(self, labels: Tensor, view: ClientView) -> Tensor:
        """Return the label that each one would be replaced by."""

    def poisoned(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Replace the labels only."""
        return x, self.wrong(labels, view)


@dataclass(frozen=True)
class DataCase:
    """One attack solved by hand, for the conformance suite.

    Attributes
    ----------
    attack : str
        The attack's text.
    labels, becomes : sequence of int
        True labels, and what must be trained on instead.
    source : str
        Where the numbers come from.
    x, shows : nested sequence of float
        Inputs, and what must be trained on instead; the inputs themselves when not given.
    scores : nested sequence of float
        The current model's scores of the inputs.
    classes, span, rank
        As in `ClientView`.
    slack : float
        How far an input may differ from the given one; more than rounding only if the attack draws at random.
    """

    attack: str
    labels: Sequence[int]
    becomes: Sequence[int]
    source: str
    x: Sequence[Any] = ()
    shows: Sequence[Any] = ()
    scores: Sequence[Sequence[float]] = ()
    classes: int = 10
    span: tuple[float, float] = (0.0, 1.0)
    rank: int = 0
    slack: float = 1e-6


def drawn_attackers(seed: int, server_round: int, clients: int, attackers: int) -> list[int]:
    """Return the clients that attack in a round, ascending, where they are drawn anew every round."""
    draw = numpy_generator(seed, "attackers", server_round)
    found: list[int] = sorted(draw.choice(clients, attackers, replace=False).tolist())
    return found
