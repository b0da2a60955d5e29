"""Validation samples: a part of every client's training samples that it does not train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_robust.seeds import numpy_generator

__all__ = ["hold_out"]

Indices = NDArray[np.int64]


def hold_out(
    labels: NDArray[Any], samples: Sequence[Indices], share: float, seed: int
) -> tuple[list[Indices], list[Indices]]:
    """Divide every client's samples into those for training and those for validation.

    Client i with n_i samples holds out round(share n_i), but at most n_i - 1. Of the samples of class k it holds out
    share n_ik, rounded down. The rest comes from the classes with the largest remainders, one each; ties are drawn.
    Which samples of a class are held out is drawn, too. Samples without a class number are one class.

    Parameters
    ----------
    labels : array (N,) of int
        The class of every sample. Labels of another kind, such as real numbers, are not looked at.
    samples : sequence of array of int64
        The indices of every client's samples, as a partition returns them.
    share : float
        The share that is held out, in [0, 1); 0 holds out nothing.
    seed : int
        The run's seed.

    Returns
    -------
    training, validation : list of array of int64
        The indices of every client, in the order in which they were given.

    Examples
    --------
    >>> training, validation = hold_out(np.array([0, 0, 0, 0, 1, 1]), [np.arange(4), np.array([4, 5])], 0.5, seed=0)
    >>> [len(held) for held in training], [len(held) for held in validation]
    ([2, 1], [2, 1])
    """
    stratified = labels.ndim == 1 and labels.dtype.kind in "iu"
    training, validation = [], []
    for client, own in enumerate(samples):
        out = np.zeros(len(own), dtype=np.bool_)
        if share > 0:
            generator = numpy_generator(seed, "validation", client)
            of_class = labels[own] if stratified else np.zeros(len(own), dtype=np.int64)
            out[_drawn(of_class, share, generator)] = True
        training.append(own[~out])
        validation.append(own[out])
    return training, validation


def _drawn(of_class: NDArray[np.integer], share: float, generator: np.random.Generator) -> Indices:
    """Return the places of the samples of a client that are held out."""
    n = len(of_class)
    wanted = min(int(np.floor(share * n + 0.5)), n - 1)
    classes = generator.permutation(np.unique(of_class))  # the order decides ties
    places = [generator.permutation(np.flatnonzero(of_class == k)) for k in classes]
    exact = share * np.array([len(found) for found in places])
    counts = np.floor(exact).astype(np.int64)
    further = wanted - int(counts.sum())
    if further > 0:
        counts[np.argsort(counts - exact, kind="stable")[:further]] += 1
    drawn = np.concatenate([found[:count] for found, count in zip(places, counts, strict=True)])
    return np.sort(drawn[:wanted])  # rounding of a share next to 1 may have counted all
