"""All clients' work of a round except gradients (draws, batches and momenta), by compiled code.

Each function gives the result of torch's operations, to the bit, without their many small calls. The draws are those of
`torch.randint` with one generator per client. torch may change that algorithm, so the first use compares a few draws.
If they differ, or numba is missing, torch draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.kernels._compile import usable

__all__ = ["Samples", "draw_samples", "fits", "step_momenta"]

_FEW = 1 << 28  # torch takes one word of 32 bits for a draw below this
_INPUTS = (torch.uint8, torch.float32)

Integers = NDArray[np.int64]


def draw_samples(
    seeds: Sequence[int],
    held: Integers,
    first: Integers,
    samples: Integers,
    steps: int,
    size: int,
    *,
    consecutive: bool,
) -> Integers:
    """Draw every client's batches.

    Parameters
    ----------
    seeds : sequence (n) of int
        Of each client's generator.
    held : array (n,) of int64
        How many samples each client has; >= 1.
    first : array (n,) of int64
        Where each client's samples begin.
    samples : array (N,) of int64
        All clients' samples.
    steps : int
        Batches per client.
    size : int
        Samples per batch.
    consecutive : bool
        A batch is a run of the client's samples from a random start, wrapping. If False, each sample is drawn
        independently.

    Returns
    -------
    array (steps, n, size) of int64
        The samples drawn.
    """
    if _draws_as_torch() and int(held.max()) < _FEW:
        return _compiled(seeds, held, first, samples, steps, size, consecutive)
    return _drawn(seeds, held, first, samples, steps, size, consecutive)


def _compiled(
    seeds: Sequence[int],
    held: Integers,
    first: Integers,
    samples: Integers,
    steps: int,
    size: int,
    consecutive: bool,
) -> Integers:
    drawn = np.empty((steps, len(seeds), size), np.int64)
    words = np.array([seed & 0xFFFFFFFF for seed in seeds], np.uint32)  # what torch's generator takes of a seed
    _kernels().draw(words, held, first, samples, consecutive, drawn)
    return drawn


def _drawn(
    seeds: Sequence[int],
    held: Integers,
    first: Integers,
    samples: Integers,
    steps: int,
    size: int,
    consecutive: bool,
) -> Integers:
    drawn = np.empty((steps, len(seeds), size), np.int64)
    for client, (seed, count) in enumerate(zip(seeds, held.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            places = torch.randint(count, (1 if consecutive else size,), generator=generator).numpy()
            if consecutive:
                places = (places + np.arange(size)) % count
            drawn[step, client] = samples[first[client] + places]
    return drawn


@cache
def _draws_as_torch() -> bool:
    """Say whether compiled draws are those of this release of torch."""
    if not usable():
        return False
    held = np.array([1, 7, 1000, 999_983])
    first, samples = np.zeros(4, np.int64), np.arange(held.max())
    few = ([0, 1, 2**32 - 1, 2**62 + 12345], held, first, samples, 2, 400, False)
    return np.array_equal(_compiled(*few), _drawn(*few))


def fits(tensor: Tensor) -> bool:
    """Say whether compiled code can read and write a tensor, and others like it."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous() and usable()


class Samples:
    """All samples of a task, and room for those of all clients' batches.

    Parameters
    ----------
    x : Tensor (N, ...)
        Inputs as stored.
    y : Tensor (N,) of int64
        Labels.
    scale, shift : float
        A model sees ``x * scale + shift``, each of the two operations rounded to float32.
    clients, size : int
        How many batches of how many samples.

    Attributes
    ----------
    inputs : Tensor (clients, size, ...) of float32
        The inputs taken last, scaled.
    labels : Tensor (clients, size) of int64
        Their labels.
    """

    def __init__(self, x: Tensor, y: Tensor, scale: float, shift: float, clients: int, size: int) -> None:
        self.inputs = torch.empty(clients, size, *x.shape[1:], device=x.device)
        self.labels = torch.empty(clients, size, dtype=torch.int64, device=x.device)
        self._x, self._y, self._scale, self._shift = x, y, scale, shift
        self._scaled = (scale, shift) != (1.0, 0.0)
        self._compiled: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
        if fits(self.inputs) and x.dtype in _INPUTS and x.is_contiguous():
            numbers = (self._scaled, np.float32(scale), np.float32(shift))
            into = (self.inputs.view(clients * size, -1).numpy(), self.labels.view(-1).numpy())
            self._compiled = (x.view(len(x), -1).numpy(), y.numpy()), (*numbers, *into)

    def take(self, rows: Integers) -> None:
        """Write the samples of some rows, client after client."""
        if self._compiled is not None:
            stored, others = self._compiled
            _kernels().gather(*stored, rows.ravel(), *others)
            return
        chosen = torch.from_numpy(rows).ravel().to(self._x.device)
        inputs = self._x.index_select(0, chosen).to(torch.float32)
        if self._scaled:
            inputs.mul_(self._scale).add_(self._shift)
        self.inputs.copy_(inputs.view_as(self.inputs))
        self.labels.copy_(self._y.index_select(0, chosen).view_as(self.labels))


def step_momenta(
    kept: NDArray[np.float32],
    which: Integers,
    fresh: NDArray[np.bool_],
    gradients: NDArray[np.float32],
    models: NDArray[np.float32],
    decay: float,
    alpha: float,
    *,
    back: bool,
) -> None:
    """Step clients' momenta in place, as `flwr_robust.protocol.momentum` does; `fits` must hold for them.

    Parameters
    ----------
    kept : array (N, d) of float32
        All momenta.
    which : array (n,) of int64
        The lines that are stepped.
    fresh : array (n,) of bool
        Momenta in their first step.
    gradients : array (n, d) of float32
        The gradients without weight decay; written over.
    models : array (r, d) of float32
        The models they were taken at, each by n / r clients.
    decay : float
        lambda: this much of the model is added to a gradient.
    alpha : float
        Weight of the new gradient.
    back : bool
        Whether to write the momenta into ``gradients``, too.
    """
    share = len(gradients) // len(models)
    numbers = (np.float32(decay), np.float32(1 - alpha), np.float32(alpha))
    _kernels().momentum(kept, which, fresh, gradients, models, share, *numbers, back)


@cache
def _kernels() -> Any:
    from flwr_robust.kernels import compiled_steps

    return compiled_steps
