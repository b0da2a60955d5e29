"""Rows: n client updates of d coordinates, the input of every rule. A row is one client's update as a vector.

A rule never reads the rows as one array, because they may lie anywhere: a `Storage` answers its questions. The Gram
matrix holds the inner products of all pairs of rows. Rules on distances, norms or angles need only the centred Gram
matrix of the rows and the origin, (n + 1) x (n + 1). Mixing rows (clipping, neighbour means, buckets) multiplies that
small matrix and does not touch the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.segments import Segment, Segments
from flwr_robust.core.storage import Storage
from flwr_robust.errors import ConfigurationError
from flwr_robust.kernels.gram import better_centre, squared_distances

__all__ = ["Counts", "Layer", "Rows", "unfit"]

Counts = Sequence[float] | NDArray[Any] | Tensor
"""Numbers of examples, one per row."""

_BLURRED = 1e3  # times a squared length: a sum of terms of this size, squared, has lost three of its sixteen digits
_NEAR = 1e-6  # 1 - cos below this has lost six of its sixteen digits
_PARALLEL = 1e-28  # half the squared distance of two unit vectors that are equal but for rounding stays below this
_SHORT, _SHORTEST = 1e-100, 1e-300  # lengths whose squares lose digits or vanish; one whose inverse is finite
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """Name and shape of one array of the model whose coordinates the columns are."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


def unfit(x: Tensor) -> str | None:
    """Return in a few words why a tensor cannot hold rows, and what to do; None if it can."""
    if x.is_nested:
        return "a nested tensor: pass a list of rows of one length"
    if x.is_quantized:
        return "a quantised tensor: pass x.dequantize()"
    if x.layout != torch.strided:
        return f"a tensor of layout {str(x.layout).removeprefix('torch.')}: pass x.to_dense()"
    if x.is_meta:
        return "a tensor on device meta, which holds no numbers: pass one on a real device"
    if x.dtype not in _FLOATS:
        advice = "pass its real part" if x.is_complex() else "pass x.float()"
        return f"{str(x.dtype).removeprefix('torch.')} numbers: {advice}, or what else is float16 to float64"
    return None


def _checked_counts(counts: Counts, n: int) -> Tensor:
    """Return counts as numbers (n,), float64."""
    if isinstance(counts, Tensor):
        fits = counts.layout == torch.strided and not (counts.is_meta or counts.is_complex())
        found = counts.detach().to(torch.float64) if fits and counts.dtype != torch.bool else None
        given = f"a tensor of {counts.dtype}"
    else:
        given = f"{type(counts).__name__} {str(counts)[:60]!r}"
        try:
            array = np.asarray(counts)
        except ValueError:  # rows of several lengths
            array = np.empty(0, dtype=object)
        found = torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "iuf" else None
    if found is None:
        raise ConfigurationError(
            f"rows: counts must be numbers, one per row; got {given}: pass a list, an array or a tensor of {n} numbers"
        )
    if found.shape != (n,):
        raise ConfigurationError(
            f"rows: counts must hold one number per row, {n}; got shape {tuple(found.shape)}: pass {n} numbers"
        )
    return found


class Rows:
    """n rows of d coordinates, with what every rule needs to know about them.

    Make them with `from_tensor`, `from_layers` or `from_stacks`, or from a `Storage`.

    Parameters
    ----------
    storage : Storage
        Where the rows lie.
    dtype : torch.dtype
        The type a rule's value is returned in.
    mixing : Tensor (n, storage.n), float64, optional
        The rows are mixing @ X, X being what lies in the storage.
    layout, counts, asked, trusted, seed
        The attributes of these names.

    Attributes
    ----------
    storage : Storage
        The rows in memory: these rows, or those from which they are mixed.
    n : int
        Number of rows.
    d : int
        Number of coordinates of a row.
    dtype : torch.dtype
        The type a rule's value is returned in.
    layout : tuple of Layer
        The arrays the columns belong to; empty when unknown.
    counts : Tensor (n,) or None
        Number of examples each row stands for, float64.
    asked : int
        How many clients were asked; at least n.
    trusted : Tensor (d,) or None
        The server's own update, for rules that compare with one.
    seed : int or None
        The seed of what rules draw that have no seed of their own; None stands for the operating system's entropy.
    """

    def __init__(
        self,
        storage: Storage,
        dtype: torch.dtype,
        *,
        mixing: Tensor | None = None,
        layout: Sequence[Layer] = (),
        counts: Counts | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        self.storage = storage
        self._mixing = mixing
        self._origin = None if mixing is None else Rows(storage, dtype)  # the rows these are mixed from
        n = storage.n if mixing is None else len(mixing)
        self.n = n
        self.d = storage.d
        self.dtype = dtype
        self.layout = tuple(layout)
        self.trusted = trusted
        self.seed = seed
        if trusted is not None:
            why = unfit(trusted) if isinstance(trusted, Tensor) else type(trusted).__name__
            if why or trusted.shape != (self.d,):
                raise ConfigurationError(
                    f"rows: the trusted row must be a floating-point tensor of shape ({self.d},); "
                    f"got {why or tuple(trusted.shape)}"
                )
        if n < 1 or self.d < 1:
            raise ConfigurationError(f"rows: there must be at least one row and one coordinate; got ({n}, {self.d})")
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, Integral) or asked < n):
            raise ConfigurationError(
                f"rows: asked must be an integer, at least the number of rows, {n}; got asked={asked!r}"
            )
        self.asked = n if asked is None else int(asked)
        self.counts = None if counts is None else _checked_counts(counts, n)
        if self.layout and sum(layer.size for layer in self.layout) != self.d:
            raise ConfigurationError(
                f"rows: the layout holds {sum(layer.size for layer in self.layout)} coordinates, but a row has {self.d}"
            )

    @classmethod
    def from_tensor(
        cls,
        x: Tensor,
        *,
        layout: Sequence[Layer] = (),
        counts: Counts | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
        seed: int | None = None,
    ) -> Rows:
        """Read the rows of one tensor.

        Parameters
        ----------
        x : Tensor (n, d)
            Floating point, on any device; neither copied nor changed.
        layout : sequence of Layer, optional
            The arrays the columns belong to.
        counts : sequence of float, optional
            Examples per row, for weighted rules.
        asked : int, optional
            How many clients were asked; n when not given.
        trusted : Tensor (d,), optional
            The server's own update.
        seed : int, optional
            The seed of what rules draw; the operating system's entropy when not given.

        Raises
        ------
        ConfigurationError
            If ``x`` is not a floating-point tensor of shape (n >= 1, d >= 1).
        """
        why = unfit(x) if isinstance(x, Tensor) else type(x).__name__
        if why or x.dim() != 2 or 0 in x.shape:
            why = why or f"shape {tuple(x.shape)}: pass one row per client"
            raise ConfigurationError(f"rows: x must be a floating-point tensor (n >= 1, d >= 1); got {why}")
        return cls(
            Segments([Segment(x.detach(), x.shape[1])], x.shape[0]),
            x.dtype,
            layout=layout,
            counts=counts,
            asked=asked,
            trusted=trusted,
            seed=seed,
        )

    @classmethod
    def from_layers(
        cls,
        rows: Sequence[Sequence[Tensor]],
        *,
        reference: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        layout: Sequence[Layer] = (),
        counts: Counts | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
        seed: int | None = None,
    ) -> Rows:
        """Read rows where they lie, layer by layer, optionally relative to a reference.

        Parameters
        ----------
        rows : sequence (n) of sequences of Tensor
            Each client's layers, in the same order; flattened, types may differ.
        reference : sequence of Tensor, optional
            Layers subtracted from every row, in float64 (the model that was sent).
        dtype : torch.dtype
            The type a rule's value is returned in.
        layout, counts, asked, trusted, seed
            As for `from_tensor`.
        """
        segments = []
        shapes = [[layer.numel() for layer in row] for row in ([*rows] if reference is None else [*rows, reference])]
        if any(shape != shapes[0] for shape in shapes):
            odd = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
            raise ConfigurationError(f"rows: all rows must have the same layers; row {odd} differs from row 0")
        for index in range(len(rows[0]) if rows else 0):
            pieces = tuple(row[index].detach().reshape(-1) for row in rows)
            start = None if reference is None else reference[index].detach().reshape(-1)
            if pieces[0].numel():  # a layer of nothing has no columns
                segments.append(Segment(pieces, pieces[0].numel(), start))
        return cls(
            Segments(segments, len(rows)),
            dtype,
            layout=layout,
            counts=counts,
            asked=asked,
            trusted=trusted,
            seed=seed,
        )

    @classmethod
    def from_stacks(
        cls,
        stacks: Sequence[Tensor],
        *,
        reference: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        layout: Sequence[Layer] = (),
        counts: Counts | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
        seed: int | None = None,
    ) -> Rows:
        """Read rows whose layers are stacked; all results equal those of `from_layers`, to the bit.

        Parameters
        ----------
        stacks : sequence of Tensor (n, w)
            One per layer, with the clients in the same order; neither copied nor changed.
        reference : sequence of Tensor (w,), optional
            As for `from_layers`.
        dtype, layout, counts, asked, trusted, seed
            As for `from_layers`.
        """
        n = stacks[0].shape[0] if stacks else 0
        if any(stack.dim() != 2 or stack.shape[0] != n for stack in stacks):
            raise ConfigurationError(
                f"rows: all stacks must have two dimensions and the same number of rows; got "
                f"{[tuple(s.shape) for s in stacks]}"
            )
        shapes = [(stack.shape[1],) for stack in stacks]
        if reference is not None and [tuple(start.shape) for start in reference] != shapes:
            raise ConfigurationError(
                f"rows: the reference must have one row per stack, of shapes {shapes}; got "
                f"{[tuple(start.shape) for start in reference]}"
            )
        starts = [None] * len(stacks) if reference is None else [start.detach() for start in reference]
        storage = Segments.of_stacks([stack.detach() for stack in stacks], starts, n)
        return cls(storage, dtype, layout=layout, counts=counts, asked=asked, trusted=trusted, seed=seed)

    def renewed(self, counts: Counts | None = None) -> Rows:
        """Return these rows, unmixed, after their memory was overwritten; all computed results are dropped."""
        return self._derived(self.storage.renewed(), counts, self.asked)

    # -- reading ----------------------------------------------------------------------------------

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, Tensor (n, b) float64) over all columns.

        Neither write into a block nor keep it: the next block may reuse its memory.
        """
        return self.storage.mixed_blocks(self._mixing)

    def slice(self, start: int, stop: int) -> Tensor:
        """Return columns start .. stop - 1 of all rows, float64 (n, stop - start)."""
        return self.storage.slice(start, stop, self._mixing)

    # -- what the coordinate rules need -----------------------------------------------------------

    def window_mean(self, low: int, high: int, near: int | None = None) -> tuple[Tensor, Tensor]:
        """Average, per column, the values of ranks low .. high - 1, or those nearest to that average.

        Parameters
        ----------
        low, high : int
            0 <= low < high <= n; rank 0 is the smallest value.
        near : int, optional
            If given, average the ``near`` values nearest to the average of the ranks; ties to the smaller.

        Returns
        -------
        Tensor (d,), float64
            The averages.
        Tensor (n,), float64
            The share that each row has in the values kept, mean over columns; rows tied at an edge share equally.
        """
        return self.storage.window_mean(low, high, near, self._mixing)

    def spread(self, ddof: int = 1) -> Tensor:
        """Return the standard deviation (d,), float64, of every column; the variance divides by max(n - ddof, 1)."""
        return self.storage.spread(ddof, self._mixing)

    # -- what the Gram rules need -----------------------------------------------------------------

    @cached_property
    def _points(self) -> Tensor:
        """Gram matrix (n + 1, n + 1) of rows and origin about one affine point; the origin last."""
        if self._origin is None or self._mixing is None:
            centre, found = 0, self.storage.gram(0)
            # About a far row, rows at some distance look as near as the others: the next centre need not be good.
            for _ in range(self.n):
                if (better := better_centre(found, centre)) == centre:
                    break
                centre, found = better, self.storage.gram(better)
            return found
        affine = _affine(self._mixing)
        return affine @ self._origin._points @ affine.T

    @cached_property
    def faulty(self) -> Tensor:
        """Rows with a NaN, an Inf, or a norm so large that sums of its square leave float64: bool (n,)."""
        limit = torch.finfo(torch.float64).max / (8 * self.n * (self.n + 1))
        if "_points" in self.__dict__:
            # A row's norm is at most its distance to the centre plus that of the origin, the last point.
            if bool((self._points.diagonal() < limit / 4).all()):
                return torch.zeros(self.n, dtype=torch.bool)
            del self._points  # not finite
        if self._mixing is None and self.storage.sums_are_finite():
            return torch.zeros(self.n, dtype=torch.bool)
        return ~(self.squared_norms < limit)

    @property
    def is_mixed(self) -> bool:
        """Whether these rows are sums of others, so that only inner products are known without reading the data."""
        return self._mixing is not None

    @property
    def gram_and_origin(self) -> Tensor:
        """Return `gram` with the origin as one more row, the last: (n + 1, n + 1)."""
        return self._points

    @property
    def gram(self) -> Tensor:
        """Inner products (n, n), float64, of the rows about one point of their affine hull.

        The point is not specified. Use only what does not depend on it, such as distances between affine combinations,
        ||w^T X - v^T X||^2 = (w - v)^T G (w - v) for weights of equal sum.
        """
        return self._points[: self.n, : self.n]

    def gram_about(self, row: int) -> Tensor:
        """Return the inner products (n, n), float64, of the rows about one of them.

        Each is exact to float64 rounding of the two lengths, however far that row is from the others: where `gram` has
        lost digits, the data are read again. Rows that equal the given one have products of zero.
        """
        apart, terms = self.squared_distances[row].numpy(), self._terms.numpy()
        if bool(((terms + terms[row]) ** 2 > _BLURRED * np.where(apart > 0, apart, np.inf)).any()):
            found = self.storage.gram(row, self._mixing)[: self.n, : self.n].numpy().copy()
        else:
            held = self.gram.numpy()
            found = held - held[row][:, None] + (held[row, row] - held[row])
        equal = apart == 0
        found[equal] = found[:, equal] = 0
        np.fill_diagonal(found, apart)
        return torch.from_numpy(found)

    @cached_property
    def _terms(self) -> Tensor:
        """Sizes (n,) of the terms whose sums are the rows in `gram`: they, not the sums, limit what is exact."""
        if self._origin is None or self._mixing is None:
            return self.gram.diagonal().clamp(min=0).sqrt()
        lengths = self._origin._points.diagonal().clamp(min=0).sqrt()
        return (_affine(self._mixing).abs() @ lengths)[:-1]

    @cached_property
    def products(self) -> Tensor:
        """Inner products (n, n), float64, of the rows as they are, each exact to rounding of the two lengths.

        `gram` is about another point, and has no digits of rows much shorter than their distance from it.
        """
        if self._origin is None or self._mixing is None:
            return self.storage.gram(None)[: self.n, : self.n]
        # From what is known already, if that is exact; else of products about the origin; else of the rows themselves.
        origin = self._points[self.n]
        found = (self._points - origin - origin[:, None] + origin[self.n])[: self.n, : self.n]
        if _kept(found.diagonal(), self._terms + origin[self.n].clamp(min=0).sqrt()):
            return found
        products = self._origin.products
        found = self._mixing @ products @ self._mixing.T
        if _kept(found.diagonal(), self._mixing.abs() @ products.diagonal().sqrt()):
            return found
        return self.storage.gram(None, self._mixing)[: self.n, : self.n]

    @cached_property
    def squared_norms(self) -> Tensor:
        """Squared norms (n,) of the rows, float64."""
        if self._mixing is None:
            return self.storage.squared_norms()
        origin = self._points[self.n]
        found = (self._points.diagonal() - 2 * origin + origin[self.n])[: self.n].clamp(min=0)
        terms = self._terms + origin[self.n].sqrt()
        lost = terms.square() > _BLURRED * found
        if bool(lost.any()):
            found[lost] = self.storage.squared_norms(self._mixing[lost])
        return found

    # -- what the rules on angles need -------------------------------------------------------------

    @cached_property
    def norms(self) -> Tensor:
        """Norms (n,) of the rows, float64; squares that leave float64 at its lower end do no harm."""
        found = self.squared_norms.sqrt()
        if bool((short := found < _SHORT).any()):
            largest = self.storage.largest(self._mixing)
            scaled = self.storage.squared_norms(self._scaled(_inverse(largest)))
            found = torch.where(short, largest.clamp(min=_SHORTEST) * scaled.sqrt() * (largest > 0), found)
        return found

    @cached_property
    def cosine_distances(self) -> Tensor:
        """1 - cos(x_i, x_j) (n, n), float64, zero on the diagonal, in [0, 2].

        It is half the squared distance of the rows scaled to length one, each by its own norm. So rows of any lengths
        may stand beside each other, and small angles keep their digits. A zero row has distance 1 from every other.
        Rows that are parallel up to rounding have distance 0.
        """
        some, inverse = self.norms > 0, _inverse(self.norms)
        if bool((some & (self.norms < _SHORT)).any()):  # their products leave float64
            cosines = self.storage.gram(None, self._scaled(inverse))[: self.n, : self.n]
        else:
            cosines = inverse[:, None] * self.products * inverse
        distances = (1 - cosines).clamp(min=0, max=2)
        both = some[:, None] & some[None, :]
        alike = _alike(self._mixing, self.n)
        near = ((distances < _NEAR) & both & ~alike).triu(1)
        left, right = torch.nonzero(near, as_tuple=True)
        if len(left):
            own = self.norms if self._mixing is None else self.storage.squared_norms(self._mixing).sqrt()
            units = self._scaled(torch.where(own < _SHORT, inverse, _inverse(own)))

            def exact(left: Tensor, right: Tensor) -> Tensor:
                return self.storage.pair_distances(left, right, units)

            if len(left) <= 2 * self.n:
                found = exact(left, right)
            else:  # one pass for all of them, about a row that has near ones
                found = squared_distances(self.storage.gram(int(left[0]), units)[: self.n, : self.n], exact)[near]
            distances[left, right] = distances[right, left] = found / 2
        distances.masked_fill_((distances < _PARALLEL) | alike, 0.0)
        distances.masked_fill_(~both, 1.0)
        return distances.fill_diagonal_(0)

    def cosines_to(self, point: Tensor) -> tuple[Tensor, float]:
        """Return the cosines (n,), float64, of the rows and a point (d,), and the point's norm; 0 for zeros."""
        size = float(point.abs().max())
        if size == 0:
            return torch.zeros(self.n, dtype=torch.float64), 0.0
        scaled = point.double() / size
        length = float(torch.linalg.vector_norm(scaled))
        inverse = _inverse(self.norms)
        if bool((self.norms < _SHORT).any()):
            products = self.storage.against(scaled, self._scaled(inverse))[:, 1]
        else:
            products = self.against(scaled)[:, 1] * inverse
        return (products / length).clamp(min=-1, max=1), size * length

    def _scaled(self, factors: Tensor) -> Tensor:
        """Return the matrix that mixes these rows, each times its factor, from what lies in the storage."""
        return torch.diag(factors) if self._mixing is None else factors[:, None] * self._mixing

    def against(self, point: Tensor) -> Tensor:
        """Return every row's squared distance from a point (d,), product with it, and squared norm: float64 (n, 3)."""
        return self.storage.against(point, self._mixing)

    @cached_property
    def squared_distances(self) -> Tensor:
        """Squared distances (n, n) between rows, float64, exact to float64 rounding of the data."""
        if self._origin is None or self._mixing is None:
            return squared_distances(self.gram, self.storage.pair_distances)
        # Their inner products are sums of those of the origin's, and as exact as the largest of these.
        alike = _alike(self._mixing, self.n)
        return squared_distances(self.gram, self._pair_distances, alike, self._terms.square())

    def _pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        return self.storage.pair_distances(left, right, self._mixing)

    def mix(self, weights: Tensor) -> Tensor:
        """Return sum_i weights[i] row_i, shape (d,), in the rows' type.

        Parameters
        ----------
        weights : Tensor (n,), float64
        """
        return self.storage.mix(self._unmixed(weights), self.dtype)

    def mix_exactly(self, weights: Tensor) -> Tensor:
        """Return what `mix` does, in float64."""
        return self.storage.mix(self._unmixed(weights), torch.float64)

    def _unmixed(self, weights: Tensor) -> Tensor:
        """Return the weights of what lies in the storage."""
        return weights if self._mixing is None else weights @ self._mixing

    def cast(self, value: Tensor) -> Tensor:
        """Round a float64 value to the rows' type, saturating instead of overflowing."""
        return self.storage.cast(value, self.dtype)

    # -- other rows out of these ------------------------------------------------------------------

    def _derived(self, storage: Storage, counts: Counts | None, asked: int, mixing: Tensor | None = None) -> Rows:
        """Return rows made of these."""
        return Rows(
            storage,
            self.dtype,
            mixing=mixing,
            layout=self.layout,
            counts=counts,
            asked=asked,
            trusted=self.trusted,
            seed=self.seed,
        )

    def mixed(self, matrix: Tensor) -> Rows:
        """Return the rows matrix @ X without touching X.

        Parameters
        ----------
        matrix : Tensor (m, n), float64
            Its rows need not sum to one: the missing weight goes to the origin.
        """
        counts = self.counts if matrix.shape[0] == self.n else None
        mixing = matrix if self._mixing is None else matrix @ self._mixing
        rows = self._derived(self.storage, counts, max(self.asked, len(matrix)), mixing)
        rows._origin = self if self._origin is None else self._origin  # what it has computed is computed once
        return rows

    def subset(self, keep: Tensor) -> Rows:
        """Return the rows where ``keep`` (bool (n,)) is true; the others are never read again."""
        if self._mixing is not None:
            return self.mixed(torch.eye(self.n, dtype=torch.float64)[keep])
        return self._derived(self.storage.subset(keep), None if self.counts is None else self.counts[keep], self.asked)

    def embedded(self) -> Rows:
        """Return a copy of the rows in few coordinates, with the same inner products, norms and distances.

        The copy has at most n + 1 coordinates, float64: the rows are rotated about the origin into the space they span.
        The trusted row is rotated, too; there is no layout. A computation that uses inner products alone may run on the
        copy, at no cost in d.
        """
        points = self if self.trusted is None else self.with_row(self.trusted)
        # X^T = Q R: the columns of R are the rows in the coordinates of Q, each as exact as its own length. An inner
        # product has half of these digits where rows are near each other, or short beside others.
        upper = torch.zeros(0, points.n, dtype=torch.float64)
        for _, block in points.blocks():
            upper = torch.linalg.qr(torch.cat([upper, block.T.cpu()]), mode="r").R
        placed = upper.T.contiguous()
        return Rows.from_tensor(
            placed[: self.n],
            counts=self.counts,
            asked=self.asked,
            trusted=None if self.trusted is None else placed[self.n],
            seed=self.seed,
        )

    def with_row(self, row: Tensor) -> Rows:
        """Return these rows with one more, (d,), at the end.

        Raises
        ------
        ConfigurationError
            If the row has another shape.
        """
        if not isinstance(row, Tensor) or row.shape != (self.d,):
            found = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
            raise ConfigurationError(f"rows: a row that is added must be a tensor of shape ({self.d},); got {found}")
        if self._origin is not None and self._mixing is not None:
            mixing = torch.nn.functional.pad(self._mixing, (0, 1, 0, 1))
            mixing[-1, -1] = 1
            return self._origin.with_row(row).mixed(mixing)
        return Rows(self.storage.with_row(row), self.dtype, layout=self.layout, asked=self.asked + 1, seed=self.seed)

    def __repr__(self) -> str:
        """Return a short line without numbers of the rows."""
        notes = [
            f"n={self.n}, d={self.d}, {str(self.dtype).removeprefix('torch.')}",
            f"asked={self.asked}" if self.asked > self.n else "",
            "" if self._mixing is None else f"mixed from {self.storage.n}",
            f"layers={len(self.layout)}" if self.layout else "",
            "" if self.counts is None else "counted",
            "" if self.trusted is None else "trusted",
        ]
        return f"Rows({', '.join(filter(None, notes))})"


def _alike(mixing: Tensor | None, n: int) -> Tensor:
    """Return which pairs of rows (n, n) are mixed alike: they are equal, and need not be read to know it."""
    if mixing is None:
        return torch.eye(n, dtype=torch.bool)
    kinds: Tensor = torch.unique(mixing, dim=0, return_inverse=True)[1]
    return kinds[:, None] == kinds[None, :]


def _kept(squared: Tensor, terms: Tensor) -> bool:
    """Say whether squares keep their digits where they are sums of products of terms of these sizes."""
    return not bool(((terms.square() > _BLURRED * squared) & (terms > 0)).any())


def _inverse(lengths: Tensor) -> Tensor:
    """Return 1 / length (n,), finite; 0 for zero."""
    return torch.where(lengths > 0, 1 / lengths.clamp(min=_SHORTEST), 0.0)


def _affine(mixing: Tensor) -> Tensor:
    """Return the matrix (m + 1, n + 1) that mixes rows and origin; what a row's sum lacks to one goes to the origin."""
    m, n = mixing.shape
    affine = torch.zeros(m + 1, n + 1, dtype=torch.float64)
    affine[:-1, :-1] = mixing
    affine[:-1, -1] = 1 - mixing.sum(1)
    affine[-1, -1] = 1
    return affine
