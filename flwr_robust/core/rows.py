"""Rows: n client updates of d coordinates, read as column blocks.

The rows never need to be one array. They are segments (a model's layers, say); each segment holds one piece of every
row where it lies, and blocks are cut from it on demand, in float64. Everything a Gram rule asks for is computed from
one (n + 1) x (n + 1) matrix: the centred Gram matrix of the rows and the origin. Mixing rows (clipping, neighbour
means, buckets) multiplies that small matrix and leaves the data alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flwr_robust.errors import ConfigurationError
from flwr_robust.kernels import columns
from flwr_robust.kernels.gram import accumulate_gram, better_centre, pair_distances, squared_distances
from flwr_robust.kernels.lines import Lines
from flwr_robust.kernels.nearest import nearest
from flwr_robust.kernels.order import kept_shares, ranks

__all__ = ["Layer", "Rows"]

# Elements of a float64 block: 1 MiB, so that a block and its working copy stay in a core's cache.
BLOCK_ELEMENTS = 1 << 17
# The same on other devices, where every operation costs a launch, but 256 MiB are little.
DEVICE_BLOCK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Layer:
    """Name and shape of one array of the model whose coordinates the columns are."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class _Segment:
    """Consecutive columns of all rows: pieces[i] - reference, then the extra rows."""

    pieces: Tensor | tuple[Tensor, ...]  # (n, w), or n tensors (w,)
    reference: Tensor | None  # (w,)
    extra: Tensor | None  # (m, w)
    width: int

    @cached_property
    def lines(self) -> Lines | None:
        """The rows where they lie, if compiled code can read them there."""
        if isinstance(self.pieces, Tensor) and self.extra is None:
            return Lines.of_stack(self.pieces, self.reference)
        rows = [*self.pieces, *(() if self.extra is None else self.extra)]
        return Lines.of(rows, len(self.pieces), self.reference)

    def with_rows(self, rows: Tensor) -> _Segment:
        """Return the segment with more rows (m, w), which are not relative to the reference, at the end."""
        extra = rows if self.extra is None else torch.cat([self.extra, rows.to(self.extra)])
        return dataclasses.replace(self, extra=extra)

    def block(self, start: int, stop: int, store: Tensor | None = None) -> Tensor:
        """Return columns start .. stop - 1, float64, in ``store`` where one of enough elements is given."""
        device = self.pieces[0].device
        held, added = len(self.pieces), 0 if self.extra is None else len(self.extra)
        if store is None:
            store = torch.empty((held + added) * (stop - start), dtype=torch.float64, device=device)
        block = store[: (held + added) * (stop - start)].view(held + added, stop - start)
        if isinstance(self.pieces, Tensor):
            block[:held] = self.pieces[:, start:stop]
        else:
            for row, piece in zip(block, self.pieces, strict=False):
                row.copy_(piece[start:stop])
        if self.reference is not None:
            block[:held] -= self.reference[start:stop].to(block)
        if self.extra is not None:
            block[held:] = self.extra[:, start:stop]
        return block


class Rows:
    """n rows of d coordinates, with what every rule needs to know about them.

    Make them with `from_tensor`, `from_layers` or `from_stacks`.

    Attributes
    ----------
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
        An update of the server's own, for rules that compare with one.
    """

    def __init__(
        self,
        segments: Sequence[_Segment],
        n: int,
        dtype: torch.dtype,
        *,
        layout: Sequence[Layer] = (),
        counts: Sequence[float] | Tensor | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
    ) -> None:
        self._segments = tuple(segments)
        self._origin: Rows | None = None  # the rows these were mixed from, and
        self._mixing: Tensor | None = None  # the matrix that mixed them
        self._joint: _Segment | None = None  # all columns at once, where they lie side by side
        self.n = n
        self.d = sum(segment.width for segment in self._segments)
        self.dtype = dtype
        self.layout = tuple(layout)
        self.counts = None if counts is None else torch.as_tensor(counts, dtype=torch.float64)
        self.asked = self.n if asked is None else asked
        self.trusted = trusted
        if trusted is not None and trusted.shape != (self.d,):
            raise ConfigurationError(f"rows: the trusted row must have shape ({self.d},); got {tuple(trusted.shape)}")
        if n < 1 or self.d < 1:
            raise ConfigurationError(f"rows: there must be at least one row and one coordinate; got ({n}, {self.d})")
        if self.asked < self.n:
            raise ConfigurationError(f"rows: asked must be at least the number of rows, {n}; got asked={self.asked}")
        if self.counts is not None and self.counts.shape != (n,):
            raise ConfigurationError(
                f"rows: counts must hold one number per row, {n}; got shape {tuple(self.counts.shape)}"
            )
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
        counts: Sequence[float] | Tensor | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
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

        Raises
        ------
        ConfigurationError
            If ``x`` is not a floating-point tensor of shape (n >= 1, d >= 1).
        """
        if not isinstance(x, Tensor) or x.dim() != 2 or 0 in x.shape or not x.is_floating_point():
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ConfigurationError(f"rows: x must be a floating-point tensor (n >= 1, d >= 1); got {found}")
        return cls(
            [_Segment(x.detach(), None, None, x.shape[1])],
            x.shape[0],
            x.dtype,
            layout=layout,
            counts=counts,
            asked=asked,
            trusted=trusted,
        )

    @classmethod
    def from_layers(
        cls,
        rows: Sequence[Sequence[Tensor]],
        *,
        reference: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        layout: Sequence[Layer] = (),
        counts: Sequence[float] | Tensor | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
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
        layout, counts, asked, trusted
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
                segments.append(_Segment(pieces, start, None, pieces[0].numel()))
        return cls(
            segments,
            len(rows),
            dtype,
            layout=layout,
            counts=counts,
            asked=asked,
            trusted=trusted,
        )

    @classmethod
    def from_stacks(
        cls,
        stacks: Sequence[Tensor],
        *,
        reference: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        layout: Sequence[Layer] = (),
        counts: Sequence[float] | Tensor | None = None,
        asked: int | None = None,
        trusted: Tensor | None = None,
    ) -> Rows:
        """Read rows whose layers are stacked; what is computed is that of `from_layers`, to the bit.

        Parameters
        ----------
        stacks : sequence of Tensor (n, w)
            One per layer, all clients' in the same order; neither copied nor changed.
        reference : sequence of Tensor (w,), optional
            As for `from_layers`.
        dtype, layout, counts, asked, trusted
            As for `from_layers`.
        """
        n = stacks[0].shape[0] if stacks else 0
        if any(stack.dim() != 2 or stack.shape[0] != n for stack in stacks):
            raise ConfigurationError(
                f"rows: all stacks must have two dimensions and as many rows; got {[tuple(s.shape) for s in stacks]}"
            )
        shapes = [(stack.shape[1],) for stack in stacks]
        if reference is not None and [tuple(start.shape) for start in reference] != shapes:
            raise ConfigurationError(
                f"rows: the reference must have one row per stack, of shapes {shapes}; got "
                f"{[tuple(start.shape) for start in reference]}"
            )
        starts = [None] * len(stacks) if reference is None else [start.detach() for start in reference]
        segments = [
            _Segment(x.detach(), start, None, x.shape[1]) for x, start in zip(stacks, starts, strict=True) if x.numel()
        ]
        rows = cls(segments, n, dtype, layout=layout, counts=counts, asked=asked, trusted=trusted)
        rows._joint = _joint(segments)
        return rows

    def renewed(self, counts: Sequence[float] | Tensor | None = None) -> Rows:
        """Return these rows, unmixed, for when their memory has been written anew; what was computed is forgotten."""
        given = None if counts is None else torch.as_tensor(counts, dtype=torch.float64)
        rows = self._derived(self._segments, self.n, given, self.asked)
        rows._joint = self._joint
        return rows

    # -- reading ----------------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> list[Lines] | None:
        """All segments of unmixed rows for compiled code, if it can read them where they lie."""
        found = [segment.lines for segment in self._segments]
        return [lines for lines in found if lines is not None] if None not in found else None

    @property
    def _columns(self) -> list[Lines] | None:
        """The same in as few parts as they lie in, for what goes column by column; sums would depend on the parts."""
        lines = None if self._joint is None else self._joint.lines
        return self._lines if lines is None else [lines]

    @cached_property
    def _whole(self) -> Tensor | None:
        """All unmixed rows as one block, kept only when they fit into one."""
        if self.n * self.d > BLOCK_ELEMENTS:
            return None
        parts = [segment.block(0, segment.width) for segment in self._segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _unmixed_blocks(self) -> Iterator[tuple[int, Tensor]]:
        if self._origin is not None:
            yield from self._origin._unmixed_blocks()
            return
        if self._whole is not None:
            yield 0, self._whole
            return
        device = self._segments[0].pieces[0].device
        step = max(256, (BLOCK_ELEMENTS if device.type == "cpu" else DEVICE_BLOCK_ELEMENTS) // self.n)
        step = min(step, max(segment.width for segment in self._segments))
        # One store for all blocks: fresh memory for each costs as much as filling it.
        store = torch.empty(step * self.n, dtype=torch.float64, device=device)
        offset = 0
        for segment in self._segments:
            for start in range(0, segment.width, step):
                stop = min(start + step, segment.width)
                yield offset + start, segment.block(start, stop, store)
            offset += segment.width

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first column, Tensor (n, b) float64) over all columns.

        Neither write into a block nor keep it: the next one may take its memory.
        """
        for start, block in self._unmixed_blocks():
            yield start, block if self._mixing is None else self._mixing.to(block) @ block

    def slice(self, start: int, stop: int) -> Tensor:
        """Return columns start .. stop - 1 of all rows, float64 (n, stop - start)."""
        rows = self if self._origin is None else self._origin
        parts, at = [], 0
        for segment in rows._segments:
            first, last = max(start - at, 0), min(stop - at, segment.width)
            if first < last:
                parts.append(segment.block(first, last))
            at += segment.width
        columns = torch.cat(parts, dim=1)
        return columns if self._mixing is None else self._mixing.to(columns) @ columns

    # -- what the coordinate rules need -----------------------------------------------------------

    def window_mean(self, low: int, high: int, near: int | None = None) -> tuple[Tensor, Tensor]:
        """Average, per column, the values of ranks low .. high - 1, or those nearest to that average.

        Parameters
        ----------
        low, high : int
            0 <= low < high <= n; rank 0 is the smallest value.
        near : int, optional
            When given, the ``near`` values nearest to the average of the ranks are averaged; ties to the smaller.

        Returns
        -------
        Tensor (d,), float64
            The averages.
        Tensor (n,), float64
            The share that each row has in the values kept, mean over columns; rows tied at an edge share equally.
        """
        parts, shares = [], torch.zeros(self.n, dtype=torch.float64)
        lines = None if self._origin is not None else self._lines
        if lines is not None and all(map(columns.fits, lines)):
            for segment, held in zip(self._segments, lines, strict=True):
                value, kept_by = columns.window_mean(held, low, high, near)
                part = torch.from_numpy(value)
                parts.append(part if segment.reference is None else part.sub_(segment.reference))
                shares += torch.from_numpy(kept_by)
            return parts[0] if len(parts) == 1 else torch.cat(parts), shares / self.d
        for _, block in self.blocks():
            if near is None:
                kept = ranks(block, low, high)
            else:
                ordered = ranks(block, 0, self.n)
                kept = nearest(ordered, (ordered[low:high] / (high - low)).sum(0), near)
            # Dividing first: the mean of values near the type's limit must not overflow.
            parts.append((kept / kept.shape[0]).sum(0))
            shares += kept_shares(block, kept)
        return torch.cat(parts), shares / self.d

    def spread(self, ddof: int = 1) -> Tensor:
        """Return the standard deviation (d,), float64, of every column; the variance divides by max(n - ddof, 1)."""
        if self._origin is None and (held := self._columns) is not None:
            return _column_wise(held, torch.float64, lambda lines, value: lines.spread(ddof, value))
        parts = []
        for _, block in self.blocks():
            ones = block.new_ones(self.n)  # sums of columns as products: many times as fast as torch.std
            away = block - (ones @ block).div_(self.n)
            parts.append((ones @ away.square_()).div_(max(self.n - ddof, 1)).sqrt_())
        return torch.cat(parts)

    # -- what the Gram rules need -----------------------------------------------------------------

    @cached_property
    def _points(self) -> Tensor:
        """Gram matrix (n + 1, n + 1) of rows and origin about one affine point; the origin last."""
        if self._origin is None or self._mixing is None:
            first = self._gram_about(0)
            centre = better_centre(first, 0)
            return first if centre == 0 else self._gram_about(centre)
        affine = torch.zeros(self.n + 1, self._origin.n + 1, dtype=torch.float64)
        affine[:-1, :-1] = self._mixing
        affine[:-1, -1] = 1 - self._mixing.sum(1)
        affine[-1, -1] = 1
        return affine @ self._origin._points @ affine.T

    def _gram_about(self, centre: int) -> Tensor:
        """Gram matrix (n + 1, n + 1) of unmixed rows and origin about one row."""
        if self._lines is None:
            return accumulate_gram(self._unmixed_blocks(), self.n, centre)
        return torch.stack([lines.gram(centre) for lines in self._lines]).sum(0)

    def _pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Squared distances (k,) of pairs of rows, subtracted directly."""
        if self._mixing is not None or self._lines is None:
            return pair_distances(self.blocks(), left, right)
        return torch.stack([lines.pair_distances(left, right) for lines in self._lines]).sum(0)

    @cached_property
    def faulty(self) -> Tensor:
        """Rows with a NaN, an Inf, or a norm so large that sums of its square leave float64: bool (n,)."""
        limit = torch.finfo(torch.float64).max / (8 * self.n * (self.n + 1))
        if "_points" in self.__dict__:
            # A row's norm is at most its distance to the centre plus that of the origin, the last point.
            if bool((self._points.diagonal() < limit / 4).all()):
                return torch.zeros(self.n, dtype=torch.bool)
            del self._points  # not finite
        if self._sums_are_finite():
            return torch.zeros(self.n, dtype=torch.bool)
        return ~(self.squared_norms < limit)

    def _sums_are_finite(self) -> bool:
        """Say whether sums show that no row is faulty, where they can: a tenth of what norms take."""
        segments = self._segments if self._joint is None else [self._joint]
        pieces = [p for s in segments for p in ([s.pieces] if isinstance(s.pieces, Tensor) else s.pieces)]
        alone = self._origin is None and all(s.extra is None for s in self._segments)
        narrow = alone and all(p.element_size() <= 4 for p in pieces)
        # A NaN or Inf makes the sum of its piece no number; anything else that does is looked at by norms.
        return narrow and math.isfinite(sum(float(piece.sum()) for piece in pieces))

    @property
    def is_mixed(self) -> bool:
        """Whether these rows are sums of others: only their inner products are at hand without reading those."""
        return self._mixing is not None

    @property
    def gram_and_origin(self) -> Tensor:
        """What `gram` is, (n + 1, n + 1), with the origin as one more row, the last."""
        return self._points

    @property
    def gram(self) -> Tensor:
        """Inner products (n, n), float64, of the rows about one point of their affine hull.

        Which point it is is not stated: use it only in ways that do not depend on it, such as distances between
        affine combinations, ||w^T X - v^T X||^2 = (w - v)^T G (w - v) for weights of equal sum.
        """
        return self._points[: self.n, : self.n]

    @cached_property
    def squared_norms(self) -> Tensor:
        """Squared norms (n,) of the rows, float64."""
        if self._mixing is None:
            return self._squared_norms()
        origin = self._points[self.n]
        return (self._points.diagonal() - 2 * origin + origin[self.n])[: self.n].clamp(min=0)

    def _squared_norms(self) -> Tensor:
        """Squared norms (n,) of unmixed rows."""
        if self._lines is not None:
            return torch.stack([lines.squared_norms() for lines in self._lines]).sum(0)
        total = torch.zeros(self.n, dtype=torch.float64)
        for _, block in self._unmixed_blocks():
            total += torch.linalg.vector_norm(block, dim=1).square().cpu()
        return total

    def against(self, point: Tensor) -> Tensor:
        """Return every row's squared distance from a point (d,), product with it, and squared norm: float64 (n, 3)."""
        if self._origin is None and self._lines is not None and point.device.type == "cpu":
            return _against(self._lines, point)
        total = torch.zeros(self.n, 3, dtype=torch.float64)
        for start, block in self.blocks():
            part = point[start : start + block.shape[1]].to(block)
            apart = torch.linalg.vector_norm(block - part, dim=1).square()
            own = torch.linalg.vector_norm(block, dim=1).square()
            total += torch.stack([apart, block @ part, own], dim=1).cpu()
        return total

    @cached_property
    def squared_distances(self) -> Tensor:
        """Squared distances (n, n) between rows, float64, exact to float64 rounding of the data."""
        alike = None
        if self._mixing is not None:  # rows mixed alike are equal, and need not be read to know it
            kinds = torch.unique(self._mixing, dim=0, return_inverse=True)[1]
            alike = kinds[:, None] == kinds[None, :]
        return squared_distances(self.gram, self._pair_distances, alike)

    def mix(self, weights: Tensor) -> Tensor:
        """Return sum_i weights[i] row_i, shape (d,), in the rows' type.

        Parameters
        ----------
        weights : Tensor (n,), float64
        """
        if (
            self.dtype in (torch.float32, torch.float64)
            and (value := self._mix_in_place(weights, self.dtype)) is not None
        ):
            return value
        return self.cast(self.mix_exactly(weights))

    def _mix_in_place(self, weights: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the weighted sum if compiled code can form it where the rows lie."""
        rows = self if self._origin is None else self._origin
        if (held := rows._columns) is None:
            return None
        unmixed = weights if self._mixing is None else weights @ self._mixing
        return _column_wise(held, dtype, lambda lines, value: lines.mix(unmixed, value))

    def mix_exactly(self, weights: Tensor) -> Tensor:
        """Return what `mix` does, in float64."""
        if (value := self._mix_in_place(weights, torch.float64)) is not None:
            return value
        unmixed = weights if self._mixing is None else weights @ self._mixing
        rows = self if self._origin is None else self._origin
        used = unmixed != 0
        if int(used.sum()) <= rows.n // 2:
            rows, unmixed = (rows.subset(used), unmixed[used]) if bool(used.any()) else (rows, unmixed)
        value = torch.empty(self.d, dtype=torch.float64, device=rows._segments[0].pieces[0].device)
        unmixed = unmixed.to(value.device)
        for start, block in rows._unmixed_blocks():
            torch.mv(block.T, unmixed, out=value[start : start + block.shape[1]])
        return value

    def cast(self, value: Tensor) -> Tensor:
        """Round a float64 value to the rows' type, saturating instead of overflowing."""
        rounded = value.to(self.dtype)
        if rounded.is_meta or bool(torch.isfinite(rounded.sum())) or self.dtype == torch.float64:
            return rounded
        limits = torch.finfo(self.dtype)
        return value.clamp(limits.min, limits.max).to(self.dtype)

    # -- other rows out of these ------------------------------------------------------------------

    def _derived(self, segments: Sequence[_Segment], n: int, counts: Tensor | None, asked: int) -> Rows:
        """Return rows made of these."""
        return Rows(segments, n, self.dtype, layout=self.layout, counts=counts, asked=asked, trusted=self.trusted)

    def mixed(self, matrix: Tensor) -> Rows:
        """Return the rows matrix @ X without touching X.

        Parameters
        ----------
        matrix : Tensor (m, n), float64
            A row of it need not sum to one: what is missing goes to the origin.
        """
        counts = self.counts if matrix.shape[0] == self.n else None
        rows = self._derived(self._segments, matrix.shape[0], counts, max(self.asked, matrix.shape[0]))
        rows._origin = self if self._origin is None else self._origin
        rows._mixing = matrix if self._mixing is None else matrix @ self._mixing
        return rows

    def subset(self, keep: Tensor) -> Rows:
        """Return the rows where ``keep`` (bool (n,)) is true; the others are never read again."""
        if self._mixing is not None:
            return self.mixed(torch.eye(self.n, dtype=torch.float64)[keep])
        chosen = torch.nonzero(keep).flatten()
        segments = []
        for s in self._segments:
            pieces: Tensor | tuple[Tensor, ...]
            if isinstance(s.pieces, Tensor):
                pieces, held = tuple(s.pieces.unbind(0)), s.pieces.shape[0]
            else:
                pieces, held = s.pieces, len(s.pieces)
            picked = tuple(pieces[int(i)] for i in chosen if i < held)
            extra = None if s.extra is None else s.extra[chosen[chosen >= held] - held]
            if extra is not None and not picked:  # only rows that were added are left
                segments.append(_Segment(extra, None, None, s.width))
            else:
                segments.append(_Segment(picked, s.reference, extra, s.width))
        return self._derived(segments, len(chosen), None if self.counts is None else self.counts[chosen], self.asked)

    def embedded(self) -> Rows:
        """Return a copy of the rows in few coordinates, with the same inner products, norms and distances.

        At most n + 1 coordinates, float64: the rows are turned about the origin into the space they span. The trusted
        row turns with them; there is no layout. Whatever depends on rows through inner products alone may be computed
        on the copy, at no cost in d.
        """
        points = self if self.trusted is None else self.with_row(self.trusted)
        gram = points.gram_and_origin
        # Scaled to unit length first: a far row's rounding would drown the others.
        lengths = gram.diagonal().clamp(min=0).sqrt()
        units = torch.where(lengths > 0, 1 / lengths, 0.0)
        values, vectors = torch.linalg.eigh(units[:, None] * gram * units)
        # One of the points is the centre: a dimension fewer than points, and the least eigenvalue is zero.
        placed = (lengths[:, None] * vectors * values.clamp(min=0).sqrt())[:, 1:]
        placed = placed - placed[-1]
        return Rows.from_tensor(
            placed[: self.n],
            counts=self.counts,
            asked=self.asked,
            trusted=None if self.trusted is None else placed[self.n],
        )

    def with_row(self, row: Tensor) -> Rows:
        """Return these rows with one more, (d,), at the end.

        Raises
        ------
        ConfigurationError
            If it has another shape.
        """
        if not isinstance(row, Tensor) or row.shape != (self.d,):
            found = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
            raise ConfigurationError(f"rows: a row that is added must be a tensor of shape ({self.d},); got {found}")
        if self._origin is not None and self._mixing is not None:
            mixing = torch.nn.functional.pad(self._mixing, (0, 1, 0, 1))
            mixing[-1, -1] = 1
            return self._origin.with_row(row).mixed(mixing)
        parts = row[None].split_with_sizes([segment.width for segment in self._segments], 1)
        segments = [segment.with_rows(part) for segment, part in zip(self._segments, parts, strict=True)]
        rows = Rows(segments, self.n + 1, self.dtype, layout=self.layout, asked=self.asked + 1)
        rows._joint = None if self._joint is None else self._joint.with_rows(row[None])
        return rows


def _joint(segments: Sequence[_Segment]) -> _Segment | None:
    """Return stacks as one where they are parts of one tensor, side by side; so must be what they are relative to."""
    stacks, starts = [], []
    for segment in segments:
        if not isinstance(segment.pieces, Tensor):
            return None
        stacks.append(segment.pieces)
        starts += [] if segment.reference is None else [segment.reference[None]]
    whole, start = _side_by_side(stacks), _side_by_side(starts)
    if whole is None or (starts and (start is None or len(starts) != len(stacks))):
        return None
    return _Segment(whole, None if start is None else start[0], None, whole.shape[1])


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor (n, w) that parts (n, w_i) of one memory make up in their order; None where they do not."""
    if not parts:
        return None
    n, width = parts[0].shape[0], sum(part.shape[1] for part in parts)
    stride = parts[0].stride(0) if n > 1 else width
    memory, offset = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        steps = n == 1 or part.stride(0) == stride, part.shape[1] == 1 or part.stride(1) == 1
        if not all(steps) or part.dtype != parts[0].dtype or part.storage_offset() != offset:
            return None
        if part.untyped_storage().data_ptr() != memory:
            return None
        offset += part.shape[1]
    return parts[0].as_strided((n, width), (stride, 1)) if stride >= width else None


def _column_wise(held: Sequence[Lines], dtype: torch.dtype, write: Callable[[Lines, Tensor], None]) -> Tensor:
    """Return what is written for each segment's columns, one number per column, side by side."""
    value, at = torch.empty(sum(lines.width for lines in held), dtype=dtype), 0
    for lines in held:
        write(lines, value[at : at + lines.width])
        at += lines.width
    return value


_NEAR = 1e-4  # of the lengths of both: nearer than that, a distance formed of products has lost four digits of sixteen


def _against(held: Sequence[Lines], point: Tensor) -> Tensor:
    """Return what `Rows.against` does for rows that compiled code can read, layer by layer.

    |x - p|^2 = |x|^2 - 2 <x, p> + |p|^2 saves a third of the work. Where it cancels, the rows are subtracted from the
    point instead; NaN and Inf go that way, too.
    """
    parts = point.split_with_sizes([lines.width for lines in held])
    found = torch.zeros(len(held[0].address), 2, dtype=torch.float64)
    for lines, part in zip(held, parts, strict=True):
        found += lines.products(part)
    products, own = found.T
    length = sum(float(part.dot(part)) for part in map(Tensor.double, point.tensor_split(1 + len(point) // 2**16)))
    apart = own - 2 * products + length
    total = torch.stack([apart, products, own], dim=1)
    near = (~(apart > _NEAR * (own + length))).nonzero().flatten().numpy()
    if near.size:
        total[near] = torch.stack([lines.picked(near).against(p) for lines, p in zip(held, parts, strict=True)]).sum(0)
    return total
