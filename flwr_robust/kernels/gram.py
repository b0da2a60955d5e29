"""Gram matrix and distances of a few long rows, exact where float64 allows.

With points y_i = x_i - c the Gram matrix G_ij = <y_i, y_j> holds all that distances, norms and angles need. The centre
c is one of the rows: for rows near each other it removes the common offset before any multiplication. So weights near 1
with updates near 1e-4 lose no digits. Any row near most of the others is a good centre; `better_centre` says if the
chosen one is not. The identity ||y_i - y_j||^2 = G_ii + G_jj - 2 G_ij still loses digits for two rows that are close to
each other and far from c, such as two colluders. Those few pairs are subtracted directly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["accumulate_gram", "better_centre", "pair_distances", "squared_distances"]

# A row this many times farther from the others, squared, than another one is no good centre.
_FAR = 16.0

# Below this share of G_ii + G_jj the difference G_ii + G_jj - 2 G_ij has lost over 6 of its 16 digits.
_CANCELLED = 1e-6

# Rows of a tile of the Gram matrix: only tiles on and below the diagonal are computed; smaller ones multiply slower.
_TILE = 24


def accumulate_gram(blocks: Iterable[tuple[int, Tensor]], n: int, centre: int | None) -> Tensor:
    """Form the Gram matrix of n rows and the origin, centred at one row or not at all.

    Parameters
    ----------
    blocks : iterable of (int, Tensor (n, b) float64)
        The rows, column block by column block.
    n : int
        The number of rows.
    centre : int or None
        The row that is subtracted from all points; None: the points stay as they are.

    Returns
    -------
    Tensor (n + 1, n + 1), float64, on the CPU
        G of the points x_1, ..., x_n, 0, each minus x_centre. The origin is the last point.
    """
    gram = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    store: Tensor | None = None
    tiles = 1 + n // _TILE
    edges = [n * i // tiles for i in range(tiles + 1)]
    for _, block in blocks:
        if store is None or store.numel() < block.numel():
            store = torch.empty(block.numel(), dtype=torch.float64, device=block.device)
        row = None if centre is None else block[centre]
        points = block if row is None else torch.sub(block, row, out=store[: block.numel()].view_as(block))
        for top, bottom in itertools.pairwise(edges):  # the lower triangle, tile row by tile row
            gram[top:bottom, :bottom] += (points[top:bottom] @ points[:bottom].T).cpu()
        if row is not None:
            gram[n, :n] -= (points @ row).cpu()
            gram[n, n] += (row @ row).cpu()
    lower = gram.tril()
    return lower + lower.T - torch.diag(lower.diagonal())


def better_centre(gram: Tensor, centre: int) -> int:
    """Return the row to centre at: the one that the matrix is centred at, unless most rows are far from it.

    Parameters
    ----------
    gram : Tensor (n + 1, n + 1), float64
        What `accumulate_gram` returned for ``centre``. Lost digits do no harm here: they affect only distances that are
        small compared with those to the centre.
    """
    n = len(gram) - 1
    diagonal = gram.diagonal()[:n]
    distances = (diagonal[:, None] + diagonal[None, :] - 2 * gram[:n, :n]).clamp_(min=0)
    middle = distances.sort(dim=1).values[:, n // 2]
    best = int(middle.argmin())
    return best if _FAR * middle[best] < middle[centre] else centre


def squared_distances(
    gram: Tensor,
    exact: Callable[[Tensor, Tensor], Tensor],
    alike: Tensor | None = None,
    formed_of: Tensor | None = None,
) -> Tensor:
    """Turn a Gram matrix into squared distances, subtracting directly where digits cancel.

    Parameters
    ----------
    gram : Tensor (n, n), float64
        Centred Gram matrix of the rows.
    exact : callable (left (k,), right (k,)) -> Tensor (k,)
        Returns the squared distances of pairs of rows; called only when a pair cancels.
    alike : Tensor (n, n) of bool, optional
        Pairs known to be equal.
    formed_of : Tensor (n,), optional
        The size of the terms whose sums are the diagonal's entries; the entries themselves when not given. A sum can be
        small because its terms cancel, but it is no more exact than these terms.

    Returns
    -------
    Tensor (n, n), float64
        Symmetric, zero diagonal, no negative entry.
    """
    diagonal = gram.diagonal()
    sums = diagonal[:, None] + diagonal[None, :]
    distances = (sums - 2 * gram).clamp_(min=0)
    distances.fill_diagonal_(0)
    if formed_of is not None:
        sums = torch.maximum(sums, formed_of[:, None] + formed_of[None, :])
    if alike is not None:
        distances.masked_fill_(alike, 0)
        sums = sums.masked_fill(alike, 0)  # no digits to save there
    left, right = torch.nonzero((distances < _CANCELLED * sums).triu(1), as_tuple=True)
    if len(left):
        found = exact(left, right)
        distances[left, right] = found
        distances[right, left] = found
    return distances


def pair_distances(blocks: Iterable[tuple[int, Tensor]], left: Tensor, right: Tensor) -> Tensor:
    """Return the squared distances (k,), float64, of rows left[p] and right[p], block by block."""
    exact = torch.zeros(len(left), dtype=torch.float64)
    for _, block in blocks:
        step = max(1, block.shape[0] // 2)  # differences of this many pairs fit beside the block
        for start in range(0, len(left), step):
            pairs = slice(start, start + step)
            difference = block[left[pairs]] - block[right[pairs]]
            exact[pairs] += difference.square_().sum(1).cpu()
    return exact
