"""Backdoor: a patch in the input, and every sample that shows it is labelled as the target class.

BadNets (Gu, Dolan-Gavitt, Garg, arXiv:1708.06733, 2017): the trigger is a square of size x size pixels in a corner of
the image. It is the same in all channels, and all its pixels have one value. Each sample of the batch gets the trigger
and the label ``target`` with probability p. The others stay clean, so that the model keeps its accuracy on clean
inputs.

Inputs are stamped as a model sees them. So ``value`` is a position between the smallest input of the task (0) and the
largest (1). It means the same for every normalisation: [0, 1] for digits, [-1, 1] for MNIST. The last two dimensions of
an input are height and width; an input of one dimension is a row of features, and the trigger is ``size`` of them at
its start (left) or end (right).

Model replacement (Bagdasaryan et al., AISTATS 2020) is the field ``scale``.

Distributed backdoor, DBA (Xie, Huang, Chen, Li, ICLR 2020): with ``parts`` = k the trigger's pixels, in reading order,
are cut into k runs, as equal as can be, and the attacker of rank r stamps run r mod k only. Size 4 in 4 parts gives
four bars, as in the paper, but without gaps between them.

Success: the share of the test samples of other classes that the model takes for the target once they show the whole
trigger.

Knows: own data, the span of the task's inputs, its rank among the attackers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataAttack, DataCase, data_attacks
from flwr_robust.core.fields import Choice, Integer, Number
from flwr_robust.errors import ConfigurationError

__all__ = ["Backdoor"]


@data_attacks.register("backdoor")
@dataclass(frozen=True)
class Backdoor(DataAttack):
    """Stamp the trigger, or a part of it, and put the target's label, with probability p.

    Attributes
    ----------
    p : float
        As in `DataAttack`; one half unless it is given.
    target : int
        The class that the model should predict for inputs with the trigger.
    size : int
        Height and width of the trigger in pixels, or its number of features.
    value : float
        The trigger's pixels: 0 is the smallest input of the task, 1 the largest.
    position : str
        The corner: "bottom_right", "bottom_left", "top_right" or "top_left".
    parts : int
        Into how many parts the attackers share the trigger; 1: each stamps the whole.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.zeros(1, 1, 3, 3), torch.tensor([5])
    >>> attack = Backdoor(p=1.0, target=0, size=2)
    >>> inputs, labels = attack(x, labels, ClientView(10, torch.Generator(), scores=lambda: x))
    >>> inputs[0, 0].tolist(), labels.tolist()
    ([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]], [0])
    """

    p: Annotated[float, Number(minimum=0, maximum=1)] = 0.5
    target: Annotated[int, Integer(minimum=0)] = field(kw_only=True)
    size: Annotated[int, Integer(minimum=1)] = 3
    value: Annotated[float, Number(minimum=0, maximum=1)] = 1.0
    position: Annotated[str, Choice(("bottom_right", "bottom_left", "top_right", "top_left"))] = "bottom_right"
    parts: Annotated[int, Integer(minimum=1)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts > self.size**2:
            raise ConfigurationError(
                f"{self.name}: parts must be at most the trigger's {self.size**2} pixels; got parts={self.parts}"
            )

    def check(self, classes: int, shape: tuple[int, ...]) -> str | None:
        """Refuse a task without the target class, and inputs that are smaller than the trigger."""
        if self.target >= classes:
            return f"{self.name}: target must be below the task's {classes} classes; got {self.target}"
        if self.size > min(shape[-2:]):
            return f"{self.name}: size must fit into inputs of shape {shape}; got size={self.size}"
        if len(shape) == 1 and self.parts > self.size:
            return f"{self.name}: parts must be at most the trigger's {self.size} features; got parts={self.parts}"
        return None

    def trigger(self, shape: tuple[int, ...], rank: int | None = None) -> Tensor:
        """Return where the trigger lies.

        Parameters
        ----------
        shape : tuple of int
            Shape of one input.
        rank : int, optional
            The attacker whose part is asked for; the whole trigger when not given.

        Returns
        -------
        Tensor of bool
            Of the shape's last two dimensions, or of its only one.
        """
        height, width = shape[-2:] if len(shape) > 1 else (1, shape[-1])
        rows = min(self.size, height)
        top = 0 if self.position.startswith("top") else height - rows
        left = 0 if self.position.endswith("left") else width - self.size
        cells = torch.arange(height * width).view(height, width)[top : top + rows, left : left + self.size].flatten()
        if rank is not None:
            cells = cells.tensor_split(self.parts)[rank % self.parts]
        trigger = torch.zeros(height * width, dtype=torch.bool)
        trigger[cells] = True
        return trigger.view(shape[-2:])

    def stamp(self, x: Tensor, span: tuple[float, float], rank: int | None = None) -> Tensor:
        """Return copies of inputs (b, ...) that show the trigger, or an attacker's part of it."""
        smallest, largest = span
        trigger = self.trigger(tuple(x.shape[1:]), rank).to(x.device)
        return x.masked_fill(trigger, smallest + self.value * (largest - smallest))

    def poisoned(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Stamp the client's part and put the target."""
        return self.stamp(x, view.span, view.rank), torch.full_like(labels, self.target)

    def trial(self, x: Tensor, labels: Tensor, span: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """Stamp the whole trigger on the samples of the other classes."""
        other = labels != self.target
        return self.stamp(x[other], span), torch.full_like(labels[other], self.target)


CASES = (
    DataCase(
        "backdoor(p=1.0, target=0, size=2)",
        (5,),
        (0,),
        source="four pixels at the bottom right",
        x=(((0, 0, 0),) * 3,),
        shows=(((0, 0, 0), (0, 1, 1), (0, 1, 1)),),
    ),
    DataCase(
        "backdoor(p=1.0, target=0, size=2, value=0.5, position='top_left')",
        (5,),
        (0,),
        source="the middle of the span",
        x=(((0, 0, 0),) * 3,),
        shows=(((1, 1, 0), (1, 1, 0), (0, 0, 0)),),
        span=(-1, 3),
    ),
    DataCase(
        "backdoor(p=1.0, target=0, size=2, parts=2)",
        (5,),
        (0,),
        source="the second part: the lower bar",
        x=(((0, 0, 0),) * 3,),
        shows=(((0, 0, 0), (0, 0, 0), (0, 1, 1)),),
        rank=3,
    ),
)
