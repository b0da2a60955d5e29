"""Segments: where rows lie in the memory of this process.

The rows never need to be one array. They are segments, such as the layers of a model. Each segment holds one piece of
every row where it lies; blocks are cut from it on demand, in float64. Compiled code reads the pieces in place if it
can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flwr_robust.core.storage import Storage
from flwr_robust.kernels import columns
from flwr_robust.kernels.lines import Lines

__all__ = ["Segment", "Segments"]

# Elements of a float64 block: 1 MiB, so that a block and its working copy stay in a core's cache.
BLOCK_ELEMENTS = 1 << 17
# The same on other devices, where every operation costs a launch, but 256 MiB are little.
DEVICE_BLOCK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Segment:
    """Consecutive columns of all rows: pieces[i] - reference, then the extra rows.

    Attributes
    ----------
    pieces : Tensor (n, w) or n tensors (w,)
        The rows where they lie.
    reference : Tensor (w,), optional
        What is subtracted from every piece, in float64.
    extra : Tensor (m, w), optional
        Rows that were added; they are not relative to the reference.
    width : int
        Number of columns.
    """

    pieces: Tensor | tuple[Tensor, ...]
    width: int
    reference: Tensor | None = None
    extra: Tensor | None = None

    @cached_property
    def lines(self) -> Lines | None:
        """The rows where they lie, if compiled code can read them there."""
        if isinstance(self.pieces, Tensor) and self.extra is None:
            return Lines.of_stack(self.pieces, self.reference)
        rows = [*self.pieces, *(() if self.extra is None else self.extra)]
        return Lines.of(rows, len(self.pieces), self.reference)

    def with_rows(self, rows: Tensor) -> Segment:
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


class Segments(Storage):
    """Rows as segments, side by side.

    Parameters
    ----------
    parts : sequence of Segment
        In the order of their columns.
    n : int
        Number of rows.
    joint : Segment, optional
        All columns as one segment, where they lie side by side in one memory.
    """

    def __init__(self, parts: Sequence[Segment], n: int, joint: Segment | None = None) -> None:
        super().__init__(n, sum(part.width for part in parts))
        self.parts = tuple(parts)
        self.joint = joint

    @classmethod
    def of_stacks(cls, stacks: Sequence[Tensor], references: Sequence[Tensor | None], n: int) -> Segments:
        """Return the segments of stacks (n, w_i), joined where they lie side by side; empty ones are left out."""
        parts = [Segment(x, x.shape[1], start) for x, start in zip(stacks, references, strict=True) if x.numel()]
        return cls(parts, n, _joint(parts))

    @cached_property
    def _lines(self) -> list[Lines] | None:
        """All segments for compiled code, if it can read them where they lie."""
        found = [part.lines for part in self.parts]
        return [lines for lines in found if lines is not None] if None not in found else None

    @property
    def _columns(self) -> list[Lines] | None:
        """Return the same in as few parts as possible, for work column by column; sums would depend on the parts."""
        lines = None if self.joint is None else self.joint.lines
        return self._lines if lines is None else [lines]

    @cached_property
    def _whole(self) -> Tensor | None:
        """All rows as one block, kept only when they fit into one."""
        if self.n * self.d > BLOCK_ELEMENTS:
            return None
        parts = [part.block(0, part.width) for part in self.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def renewed(self) -> Segments:
        """Return the storage after its memory was overwritten; the places of the rows stay known."""
        return Segments(self.parts, self.n, self.joint)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks that fit into a core's cache."""
        if self._whole is not None:
            yield 0, self._whole
            return
        device = self.parts[0].pieces[0].device
        step = max(256, (BLOCK_ELEMENTS if device.type == "cpu" else DEVICE_BLOCK_ELEMENTS) // self.n)
        step = min(step, max(part.width for part in self.parts))
        # One store for all blocks: fresh memory for each costs as much as filling it.
        store = torch.empty(step * self.n, dtype=torch.float64, device=device)
        offset = 0
        for part in self.parts:
            for start in range(0, part.width, step):
                stop = min(start + step, part.width)
                yield offset + start, part.block(start, stop, store)
            offset += part.width

    def slice(self, start: int, stop: int, mixing: Tensor | None = None) -> Tensor:
        """Cut the columns from the segments that hold them."""
        found, at = [], 0
        for part in self.parts:
            first, last = max(start - at, 0), min(stop - at, part.width)
            if first < last:
                found.append(part.block(first, last))
            at += part.width
        cut = torch.cat(found, dim=1)
        return cut if mixing is None else mixing.to(cut) @ cut

    def window_mean(
        self, low: int, high: int, near: int | None = None, mixing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Have compiled code sort the columns in place, where it can."""
        lines = None if mixing is not None else self._lines
        if lines is None or not all(map(columns.fits, lines)):
            return super().window_mean(low, high, near, mixing)
        found, shares = [], torch.zeros(self.n, dtype=torch.float64)
        for part, held in zip(self.parts, lines, strict=True):
            value, kept_by = columns.window_mean(held, low, high, near)
            mean = torch.from_numpy(value)
            found.append(mean if part.reference is None else mean.sub_(part.reference))
            shares += torch.from_numpy(kept_by)
        return found[0] if len(found) == 1 else torch.cat(found), shares / self.d

    def spread(self, ddof: int, mixing: Tensor | None = None) -> Tensor:
        """Have compiled code read the columns in place, where it can."""
        if mixing is not None or (held := self._columns) is None:
            return super().spread(ddof, mixing)
        return _column_wise(held, torch.float64, lambda lines, value: lines.spread(ddof, value))

    def gram(self, centre: int | None, mixing: Tensor | None = None) -> Tensor:
        """Have compiled code read the rows in place, where it can."""
        if mixing is not None or self._lines is None:
            return super().gram(centre, mixing)
        return torch.stack([lines.gram(centre) for lines in self._lines]).sum(0)

    def squared_norms(self, mixing: Tensor | None = None) -> Tensor:
        """Have compiled code read the rows in place, where it can."""
        if mixing is not None or self._lines is None:
            return super().squared_norms(mixing)
        return torch.stack([lines.squared_norms() for lines in self._lines]).sum(0)

    def sums_are_finite(self) -> bool:
        """Say whether sums show that no row is faulty, in a tenth of the time of norms."""
        parts = self.parts if self.joint is None else [self.joint]
        pieces = [p for part in parts for p in ([part.pieces] if isinstance(part.pieces, Tensor) else part.pieces)]
        narrow = all(part.extra is None for part in self.parts) and all(p.element_size() <= 4 for p in pieces)
        # A NaN or Inf makes the sum of its piece no number; anything else that does is looked at by norms.
        return narrow and math.isfinite(sum(float(piece.sum()) for piece in pieces))

    def pair_distances(self, left: Tensor, right: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Have compiled code read the rows in place, where it can."""
        if mixing is not None or self._lines is None:
            return super().pair_distances(left, right, mixing)
        return torch.stack([lines.pair_distances(left, right) for lines in self._lines]).sum(0)

    def against(self, point: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Have compiled code read the rows in place, where it can."""
        if mixing is not None or self._lines is None or point.device.type != "cpu":
            return super().against(point, mixing)
        return _against(self._lines, point)

    def mix(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Have compiled code form the sum where the rows lie, where it can."""
        if (held := self._columns) is None:
            return super().mix(weights, dtype)
        written = dtype if dtype in (torch.float32, torch.float64) else torch.float64
        value = _column_wise(held, written, lambda lines, value: lines.mix(weights, value))
        return value if written == dtype else self.cast(value, dtype)

    def subset(self, keep: Tensor) -> Segments:
        """Return the rows where ``keep`` (bool (n,)) is true; the others are never read again."""
        chosen = torch.nonzero(keep).flatten()
        parts = []
        for part in self.parts:
            pieces = tuple(part.pieces.unbind(0)) if isinstance(part.pieces, Tensor) else part.pieces
            held = len(pieces)
            picked = tuple(pieces[int(i)] for i in chosen if i < held)
            extra = None if part.extra is None else part.extra[chosen[chosen >= held] - held]
            if extra is not None and not picked:  # only rows that were added are left
                parts.append(Segment(extra, part.width))
            else:
                parts.append(Segment(picked, part.width, part.reference, extra))
        return Segments(parts, len(chosen))

    def with_row(self, row: Tensor) -> Segments:
        """Return the storage of these rows and one more, (d,), at the end."""
        cut = row[None].split_with_sizes([part.width for part in self.parts], 1)
        parts = [part.with_rows(rows) for part, rows in zip(self.parts, cut, strict=True)]
        joint = None if self.joint is None else self.joint.with_rows(row[None])
        return Segments(parts, self.n + 1, joint)


def _joint(segments: Sequence[Segment]) -> Segment | None:
    """Return stacks as one if they are parts of one tensor, side by side, and their references are, too."""
    stacks, starts = [], []
    for segment in segments:
        if not isinstance(segment.pieces, Tensor):
            return None
        stacks.append(segment.pieces)
        starts += [] if segment.reference is None else [segment.reference[None]]
    whole, start = _side_by_side(stacks), _side_by_side(starts)
    if whole is None or (starts and (start is None or len(starts) != len(stacks))):
        return None
    return Segment(whole, whole.shape[1], None if start is None else start[0])


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
    """Return one number per column, written segment by segment, side by side."""
    value, at = torch.empty(sum(lines.width for lines in held), dtype=dtype), 0
    for lines in held:
        write(lines, value[at : at + lines.width])
        at += lines.width
    return value


_NEAR = 1e-4  # of the lengths of both: nearer than that, a distance formed of products has lost four digits of sixteen


def _against(held: Sequence[Lines], point: Tensor) -> Tensor:
    """Return what `Storage.against` does for rows that compiled code can read, layer by layer.

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
