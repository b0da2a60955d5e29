"""The numba side of `lines`; imported only where numba is.

Every kernel walks over strips of columns that stay in a core's cache and reads each row once per strip, in its own
type; all sums are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, float32, float64

from flwr_robust.kernels._compile import helper, kernel
from flwr_robust.kernels.compiled import _pointer

__all__ = ["against", "gram", "mix_float32", "mix_float64", "pair_distances", "spread", "squared_norms"]

# Sums may be split over vector lanes and products fused; NaN and Inf keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


@helper(fastmath=_FAST)
def _read(line: Any, address: int, wide: bool, start: int) -> None:
    """Read columns from ``start`` on, as many as the line is long."""
    w = line.shape[0]
    if wide:
        row = carray(_pointer(address), (start + w,), float64)[start:]
        for k in range(w):
            line[k] = row[k]
    else:
        narrow = carray(_pointer(address), (start + w,), float32)[start:]
        for k in range(w):
            line[k] = np.float64(narrow[k])


@helper(fastmath=_FAST)
def _read_minus(line: Any, address: int, wide: bool, start: int, shift: Any) -> None:
    """Read columns from ``start`` on, less the shift."""
    w = line.shape[0]
    if wide:
        row = carray(_pointer(address), (start + w,), float64)[start:]
        for k in range(w):
            line[k] = row[k] - shift[k]
    else:
        narrow = carray(_pointer(address), (start + w,), float32)[start:]
        for k in range(w):
            line[k] = np.float64(narrow[k]) - shift[k]


@helper(fastmath=_FAST)
def _square(total: Any, points: Any, i: int, j: int, w: int) -> None:
    """Add the 4 x 4 inner products of rows i .. i + 3 and j .. j + 3; sixteen sums stay in registers."""
    a0, a1, a2, a3 = points[i], points[i + 1], points[i + 2], points[i + 3]
    b0, b1, b2, b3 = points[j], points[j + 1], points[j + 2], points[j + 3]
    c00 = c01 = c02 = c03 = c10 = c11 = c12 = c13 = 0.0
    c20 = c21 = c22 = c23 = c30 = c31 = c32 = c33 = 0.0
    for k in range(w):
        x0, x1, x2, x3 = a0[k], a1[k], a2[k], a3[k]
        y0, y1, y2, y3 = b0[k], b1[k], b2[k], b3[k]
        c00 += x0 * y0
        c01 += x0 * y1
        c02 += x0 * y2
        c03 += x0 * y3
        c10 += x1 * y0
        c11 += x1 * y1
        c12 += x1 * y2
        c13 += x1 * y3
        c20 += x2 * y0
        c21 += x2 * y1
        c22 += x2 * y2
        c23 += x2 * y3
        c30 += x3 * y0
        c31 += x3 * y1
        c32 += x3 * y2
        c33 += x3 * y3
    for row, values in enumerate(
        ((c00, c01, c02, c03), (c10, c11, c12, c13), (c20, c21, c22, c23), (c30, c31, c32, c33))
    ):
        for column in range(4):
            total[i + row, j + column] += values[column]


@helper(fastmath=_FAST)
def _products(total: Any, points: Any, line: Any, j: int, w: int) -> None:
    """Add the inner products of a line and rows j .. j + 3."""
    b0, b1, b2, b3 = points[j], points[j + 1], points[j + 2], points[j + 3]
    c0 = c1 = c2 = c3 = 0.0
    for k in range(w):
        c0 += line[k] * b0[k]
        c1 += line[k] * b1[k]
        c2 += line[k] * b2[k]
        c3 += line[k] * b3[k]
    total[j] += c0
    total[j + 1] += c1
    total[j + 2] += c2
    total[j + 3] += c3


@kernel(fastmath=_FAST)
def gram(
    address: Any,
    wide: Any,
    relative: Any,
    reference: int,
    wide_reference: bool,
    centre: int,
    start: int,
    stop: int,
    strip: int,
    total: Any,
) -> None:
    """Add the inner products of the rows about row ``centre`` to the lower triangle of ``total``; see `lines`.

    A negative centre stands for the origin. ``total`` has (m + 1, m + 1) entries, m being n rounded up to a multiple of
    four; its last point is the origin.
    """
    n = address.shape[0]
    m = total.shape[0] - 1
    points = np.zeros((m, strip))
    shifts = np.zeros((2, strip))  # what is subtracted from absolute and from relative rows
    offset = np.zeros(strip)
    for at in range(start, stop, strip):
        w = min(strip, stop - at)
        if reference != 0:
            _read(offset[:w], reference, wide_reference, at)
        if centre >= 0:
            _read(shifts[1, :w], address[centre], wide[centre], at)
            for k in range(w):
                shifts[0, k] = shifts[1, k] - offset[k] if relative[centre] else shifts[1, k]
                shifts[1, k] = shifts[1, k] if relative[centre] else shifts[1, k] + offset[k]
        else:
            for k in range(w):
                shifts[1, k] = offset[k]
        for i in range(n):
            _read_minus(points[i, :w], address[i], wide[i], at, shifts[1 if relative[i] else 0])
        for i in range(0, m, 4):
            for j in range(0, i + 4, 4):
                _square(total, points, i, j, w)
            _products(total[m], points, shifts[0], i, w)
        own = 0.0
        for k in range(w):
            own += shifts[0, k] * shifts[0, k]
        total[m, m] += own
    for i in range(m):  # the origin lies at minus the centre
        total[m, i] = -total[m, i]


@helper(fastmath=_FAST)
def _square_of(row: Any, shift: Any) -> float:
    total = 0.0
    for k in range(row.shape[0]):
        value = np.float64(row[k]) - shift[k]
        total += value * value
    return total


@kernel(fastmath=_FAST)
def squared_norms(
    address: Any,
    wide: Any,
    relative: Any,
    reference: int,
    wide_reference: bool,
    start: int,
    stop: int,
    strip: int,
    total: Any,
) -> None:
    """Add the rows' squared norms to ``total``."""
    shifts = np.zeros((2, strip))
    for at in range(start, stop, strip):
        w = min(strip, stop - at)
        if reference != 0:
            _read(shifts[1, :w], reference, wide_reference, at)
        for i in range(address.shape[0]):
            shift = shifts[1 if relative[i] else 0]
            if wide[i]:
                total[i] += _square_of(carray(_pointer(address[i]), (at + w,), float64)[at:], shift)
            else:
                total[i] += _square_of(carray(_pointer(address[i]), (at + w,), float32)[at:], shift)


@helper(fastmath=_FAST)
def _measure(row: Any, shift: Any, point: Any, found: Any) -> None:
    apart = product = own = 0.0
    for k in range(row.shape[0]):
        value = np.float64(row[k]) - shift[k]
        apart += (value - point[k]) * (value - point[k])
        product += value * point[k]
        own += value * value
    found[0] += apart
    found[1] += product
    found[2] += own


@helper(fastmath=_FAST)
def _project(row: Any, shift: Any, point: Any, found: Any) -> None:
    product = own = 0.0
    for k in range(row.shape[0]):
        value = np.float64(row[k]) - shift[k]
        product += value * point[k]
        own += value * value
    found[1] += product
    found[2] += own


@kernel(fastmath=_FAST)
def against(
    address: Any,
    wide: Any,
    relative: Any,
    reference: int,
    wide_reference: bool,
    apart: bool,
    point: int,
    wide_point: bool,
    start: int,
    stop: int,
    strip: int,
    total: Any,
) -> None:
    """Add every row's squared distance from a point, its product with it, and its squared norm, to ``total``.

    Without ``apart`` distances are left out, which is two thirds of the work.
    """
    shifts = np.zeros((2, strip))
    line = np.zeros(strip)
    for at in range(start, stop, strip):
        w = min(strip, stop - at)
        _read(line[:w], point, wide_point, at)
        if reference != 0:
            _read(shifts[1, :w], reference, wide_reference, at)
        for i in range(address.shape[0]):
            shift = shifts[1 if relative[i] else 0]
            if wide[i]:
                row = carray(_pointer(address[i]), (at + w,), float64)[at:]
                if apart:
                    _measure(row, shift, line, total[i])
                else:
                    _project(row, shift, line, total[i])
            else:
                narrow = carray(_pointer(address[i]), (at + w,), float32)[at:]
                if apart:
                    _measure(narrow, shift, line, total[i])
                else:
                    _project(narrow, shift, line, total[i])


@helper(fastmath=_FAST)
def _add_square(total: Any, row: Any, shift: Any) -> None:
    for k in range(total.shape[0]):
        total[k] += (row[k] - shift[k]) * (row[k] - shift[k])


@kernel(fastmath=_FAST)
def pair_distances(
    address: Any,
    wide: Any,
    relative: Any,
    reference: int,
    wide_reference: bool,
    used: Any,
    pairs: Any,
    start: int,
    stop: int,
    strip: int,
    total: Any,
) -> None:
    """Add the squared distances of pairs to ``total``; pairs count among the rows ``used``."""
    table = np.zeros((used.shape[0], strip))
    shift = np.zeros(strip)
    for at in range(start, stop, strip):
        w = min(strip, stop - at)
        if reference != 0:
            _read(shift[:w], reference, wide_reference, at)
        for i in range(used.shape[0]):
            _read(table[i, :w], address[used[i]], wide[used[i]], at)
        for p in range(pairs.shape[0]):
            i, j = pairs[p, 0], pairs[p, 1]
            one, other = table[i, :w], table[j, :w]
            sign = float64(relative[used[j]]) - float64(relative[used[i]])
            found = 0.0
            if sign == 0.0:  # the reference, if any, cancels exactly
                for k in range(w):
                    found += (one[k] - other[k]) * (one[k] - other[k])
            else:
                for k in range(w):
                    difference = one[k] - other[k] + sign * shift[k]
                    found += difference * difference
            total[p] += found


@helper(fastmath=_FAST)
def _add(value: Any, row: Any, weight: float) -> None:
    for k in range(value.shape[0]):
        value[k] += weight * np.float64(row[k])


def _mix(kind: Any) -> Any:
    largest = np.finfo(str(kind)).max

    @kernel(fastmath=_FAST)
    def mix(
        address: Any,
        wide: Any,
        relative: Any,
        reference: int,
        wide_reference: bool,
        weights: Any,
        start: int,
        stop: int,
        strip: int,
        value: Any,
    ) -> None:
        """Write the weighted sum of the rows, saturated to the value's type; rows of weight zero are not read."""
        taken = 0.0
        for i in range(address.shape[0]):
            taken += weights[i] if relative[i] else 0.0
        total = np.empty(strip)
        for at in range(start, stop, strip):
            w = min(strip, stop - at)
            total[:] = 0.0
            for i in range(address.shape[0]):
                if weights[i] == 0.0:
                    continue
                if wide[i]:
                    _add(total[:w], carray(_pointer(address[i]), (at + w,), float64)[at:], weights[i])
                else:
                    _add(total[:w], carray(_pointer(address[i]), (at + w,), float32)[at:], weights[i])
            if reference != 0:
                if wide_reference:
                    _add(total[:w], carray(_pointer(reference), (at + w,), float64)[at:], -taken)
                else:
                    _add(total[:w], carray(_pointer(reference), (at + w,), float32)[at:], -taken)
            for k in range(w):
                value[at + k] = min(max(total[k], -largest), largest) if total[k] == total[k] else total[k]

    return mix


mix_float32 = _mix(float32)
mix_float64 = _mix(float64)


@kernel(fastmath=_FAST)
def spread(
    address: Any,
    wide: Any,
    relative: Any,
    reference: int,
    wide_reference: bool,
    ddof: int,
    start: int,
    stop: int,
    strip: int,
    value: Any,
) -> None:
    """Write the columns' standard deviations."""
    n = address.shape[0]
    table = np.zeros((n, strip))
    shifts = np.zeros((2, strip))
    mean, total = np.empty(strip), np.empty(strip)
    for at in range(start, stop, strip):
        w = min(strip, stop - at)
        if reference != 0:
            _read(shifts[1, :w], reference, wide_reference, at)
        mean[:] = 0.0
        total[:] = 0.0
        for i in range(n):
            _read_minus(table[i, :w], address[i], wide[i], at, shifts[1 if relative[i] else 0])
            _add(mean[:w], table[i], 1.0)
        for k in range(w):
            mean[k] /= n
        for i in range(n):
            _add_square(total[:w], table[i], mean)
        for k in range(w):
            value[at + k] = np.sqrt(total[k] / max(n - ddof, 1))
