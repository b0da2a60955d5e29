"""What the replies to a round of class-wise momenta must hold; see `DeSGD`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flwr_robust.flower.expected import SentModel
from flwr_robust.protocol.buffers import STATISTICS
from flwr_robust.protocol.classes import answer_names, answered_classes

__all__ = ["ClassesAsked"]


class ClassesAsked(SentModel):
    """The model and the classes that were sent: a reply holds the arrays for at least one class, or abstains.

    Parameters
    ----------
    record : ArrayRecord
        The model; floating-point, integer and boolean arrays.
    classes : sequence of int
        The classes that the round asks for, in ascending order; at least one.
    statistics : collection of str
        Patterns of the names of statistics, as for `SentModel`.

    Attributes
    ----------
    classes : tuple of int
        As given.

    Examples
    --------
    >>> from flwr_robust.flower.wire import encode_record
    >>> import numpy as np
    >>> asked = ClassesAsked(encode_record({"w": np.zeros(2, np.float32)}), (3, 7))
    >>> asked.answered(["7/w"]), list(asked.demanded(["7/w"]))
    ((7,), ['7/w'])
    """

    def __init__(self, record: ArrayRecord, classes: Sequence[int], statistics: Collection[str] = STATISTICS) -> None:
        super().__init__(record, statistics)
        self.classes = tuple(classes)

    @property
    def may_abstain(self) -> bool:
        """True: a node that holds none of the classes abstains."""
        return True

    def answered(self, names: Collection[str]) -> tuple[int, ...]:
        """Return the requested classes for which a reply with these array names answers."""
        return answered_classes(names, self.classes)

    def demanded(self, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Return the arrays of the model, once for each answered class, under the names that replies use."""
        if len(self.classes) < 2:
            return self.arrays
        answered = self.answered(names)
        arrays = [*self.arrays.values()] * len(answered)
        return dict(zip(answer_names(self.arrays, answered, self.classes), arrays, strict=True))
