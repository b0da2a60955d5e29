"""Turn replies into rows: the learnt arrays of each reply, relative to the sent model if replies are models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.rows import Layer, Rows
from flwr_robust.flower.admission import Admitted
from flwr_robust.flower.expected import SentModel
from flwr_robust.flower.wire import as_tensor

__all__ = ["admitted_rows", "layout_of", "learnt_of", "rows_of"]


def learnt_of(sent: SentModel) -> dict[str, NDArray[Any]]:
    """Return the learnt arrays of the model, by name."""
    named = list(sent.arrays.items())
    return dict(named[place] for place in sent.learnt)


def layout_of(model: Mapping[str, NDArray[Any]]) -> list[Layer]:
    """Return the names and shapes of arrays."""
    return [Layer(name, values.shape) for name, values in model.items()]


def rows_of(
    replies: Sequence[Sequence[NDArray[Any]]],
    model: Mapping[str, NDArray[Any]],
    *,
    relative: bool,
    counts: Sequence[float] | None,
    asked: int,
    trusted: Tensor | None = None,
    seed: int | None = None,
) -> Rows:
    """Return the rows of replies.

    Parameters
    ----------
    replies : sequence of sequence of array
        The learnt arrays of each reply, in the model's order.
    model : mapping of str to array
        The learnt arrays of the model that was sent.
    relative : bool
        Whether replies are models; the rows are then the differences from the model that was sent.
    counts : sequence of float, optional
        The clients' numbers of examples.
    asked : int
        The number of clients that were asked.
    trusted : Tensor (d,), optional
        The server's own row.
    seed : int, optional
        The seed of what the rule draws; the operating system's entropy when not given.
    """
    return Rows.from_layers(
        [[as_tensor(values) for values in arrays] for arrays in replies],
        reference=[as_tensor(values) for values in model.values()] if relative else None,
        layout=layout_of(model),
        counts=counts,
        asked=asked,
        trusted=trusted,
        seed=seed,
    )


def admitted_rows(
    admitted: Sequence[Admitted],
    sent: SentModel,
    *,
    relative: bool,
    asked: int,
    trusted: Tensor | None = None,
    seed: int | None = None,
) -> Rows:
    """Return the rows of replies that were admitted.

    Parameters
    ----------
    admitted : sequence of Admitted
        The replies; each holds all arrays of the model.
    sent : SentModel
        The model that was sent.
    relative, asked, trusted, seed
        As for `rows_of`.
    """
    return rows_of(
        [[reply.arrays[place] for place in sent.learnt] for reply in admitted],
        learnt_of(sent),
        relative=relative,
        counts=[reply.num_examples for reply in admitted],
        asked=asked,
        trusted=trusted,
        seed=seed,
    )
