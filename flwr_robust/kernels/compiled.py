"""The numba side of `columns`; imported only where numba is."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, float32, float64, int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from flwr_robust.kernels._compile import helper, kernel
from flwr_robust.kernels.network import PROGRAMS, Pairs

__all__ = ["probe", "window_mean_float32", "window_mean_float64"]

# The values compared are finite, so that a minimum is one instruction. Sums keep their order.
_FLAGS = ("nnan", "ninf", "nsz")
_FAST = set(_FLAGS)
_HUGE = 1e300
_VECTOR_BYTES = 64
_VECTORS = 2  # of every row, that a group works on at a time
_PIECE = _VECTORS * _VECTOR_BYTES


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """Make a pointer of an address, for carray."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def _group(program: Pairs) -> Any:
    """Return the function that runs a program of comparators on vectors of a table's rows, given their addresses.

    All rows are read before any is written, so that the values stay in registers.
    """
    rows = 1 + max(j for _, j in program)

    def group(context: Any, table: Any, addresses: Any) -> Any:
        bits = table.dtype.bitwidth
        scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        pointer = ir.VectorType(scalar, 8 * _VECTOR_BYTES // bits).as_pointer()

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            starts = [builder.inttoptr(builder.extract_value(arguments[1], row), pointer) for row in range(rows)]
            for vector in range(_VECTORS):
                index = ir.Constant(ir.IntType(64), vector)
                places = [builder.gep(start, [index]) for start in starts]
                values = [builder.load(place, align=4) for place in places]
                for i, j in program:
                    a, b = values[i], values[j]
                    less = builder.fcmp_ordered("<", a, b, flags=_FLAGS)
                    more = builder.fcmp_ordered(">", a, b, flags=_FLAGS)
                    values[i], values[j] = builder.select(less, a, b), builder.select(more, a, b)
                for value, place in zip(values, places, strict=True):
                    builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(table, addresses), generate

    return intrinsic(group)


# At the top of the module: what a function encloses is part of the key under which numba keeps its code.
_one, _three, _merge, _sort = (_group(program) for program in PROGRAMS)


@kernel()
def _smaller() -> float:
    table = np.ones((2, _PIECE // 4), np.float32)
    table[0] = 2
    base = int64(table.ctypes.data)
    _one(table, (base, base + _PIECE))
    return float64(table[0].max())


def probe() -> None:
    """Raise an error unless vector code compiles, runs, and gives the right result; see `_compile.usable`."""
    if _smaller() != 1:
        raise RuntimeError("compiled code computes wrongly")


# Each of these walks over two or three stretches of memory, so that the compiler can see that they do not overlap.


@helper(fastmath=_FAST)
def _copy(line: Any, row: Any) -> None:
    for k in range(row.shape[0]):
        line[k] = row[k]


@helper()
def _add(total: Any, line: Any) -> None:
    for k in range(total.shape[0]):
        total[k] += line[k]


@helper()
def _average(total: Any, table: Any, first: Any, count: int) -> None:
    """Divide the sums of ``count`` values from rank ``first`` on; one that overflowed is formed anew, divided first."""
    for k in range(total.shape[0]):
        if abs(total[k]) < _HUGE:
            total[k] /= count
        else:
            total[k] = 0.0
            for i in range(first[k], first[k] + count):
                total[k] += table[i, k] / float64(count)


@helper(fastmath=_FAST)
def _pass_on(first: Any, left: Any, right: Any, centre: Any) -> None:
    for k in range(first.shape[0]):
        first[k] += np.int32(centre[k] - float64(left[k]) > float64(right[k]) - centre[k])


@helper()
def _add_inside(total: Any, line: Any, first: Any, i: int, near: int) -> None:
    for k in range(total.shape[0]):
        take = (first[k] <= i) & (i < first[k] + near)
        total[k] += line[k] if take else 0.0


@helper(fastmath=_FAST)
def _hits(inside: Any, row: Any, lowest: Any, highest: Any) -> int:
    count = np.int32(0)
    for k in range(row.shape[0]):
        hit = np.int32((row[k] >= lowest[k]) & (row[k] <= highest[k]))
        inside[k] += hit
        count += hit
    return count


def _make(kind: Any, name: np.dtype[Any]) -> Any:
    size = kind.bitwidth // 8

    @kernel()
    def window_mean(
        address: Any,
        start: int,
        stop: int,
        network: Any,
        low: int,
        high: int,
        near: int,
        strip: int,
        value: Any,
        shares: Any,
    ) -> None:
        n = address.shape[0]
        table = np.empty((n, strip), name)
        base = int64(table.ctypes.data)
        total = np.empty(strip, np.float64)
        lowest = np.empty(strip, name)
        highest = np.empty(strip, name)
        inside = np.empty(strip, np.int32)
        first = np.empty(strip, np.int32)
        counts = np.empty(n, np.int64)
        for at in range(start, stop, strip):
            w = min(strip, stop - at)
            for i in range(n):
                _copy(table[i], carray(_pointer(address[i]), (at + w,), kind)[at:])
            if w < strip:
                table[:, w:] = 0
            for line in network:
                r0, r1 = base + size * strip * line[1], base + size * strip * line[2]
                r2, r3 = base + size * strip * line[3], base + size * strip * line[4]
                r4, r5 = base + size * strip * line[5], base + size * strip * line[6]
                r6, r7 = base + size * strip * line[7], base + size * strip * line[8]
                program = line[0]
                if program == 0:
                    for k in range(0, size * strip, _PIECE):
                        _one(table, (r0 + k, r1 + k))
                elif program == 1:
                    for k in range(0, size * strip, _PIECE):
                        _three(table, (r0 + k, r1 + k, r2 + k, r3 + k))
                elif program == 2:
                    for k in range(0, size * strip, _PIECE):
                        _merge(table, (r0 + k, r1 + k, r2 + k, r3 + k, r4 + k, r5 + k, r6 + k, r7 + k))
                else:
                    for k in range(0, size * strip, _PIECE):
                        _sort(table, (r0 + k, r1 + k, r2 + k, r3 + k, r4 + k, r5 + k, r6 + k, r7 + k))
            kept = high - low
            total[:] = 0.0
            for i in range(low, high):
                _add(total, table[i])
            first[:] = low
            _average(total, table, first, kept)
            if near == 0:
                for k in range(strip):
                    lowest[k] = table[low, k]
                    highest[k] = table[high - 1, k]
            else:
                kept = near
                first[:] = 0
                for j in range(n - near):
                    _pass_on(first, table[j], table[j + near], total)
                total[:] = 0.0
                for i in range(n):
                    if n - near <= i < near:  # in every window
                        _add(total, table[i])
                    else:
                        _add_inside(total, table[i], first, i, near)
                _average(total, table, first, kept)
                for k in range(strip):
                    lowest[k] = table[first[k], k]
                    highest[k] = table[first[k] + near - 1, k]
            for k in range(w):
                value[at + k] = total[k]
            # Who was kept: the rows are read once more, from the cache.
            inside[:] = 0
            for i in range(n):
                counts[i] = _hits(inside, carray(_pointer(address[i]), (at + w,), kind)[at:], lowest, highest)
            tied = False
            for k in range(w):
                tied |= inside[k] != kept
            if not tied:
                for i in range(n):
                    shares[i] += counts[i] / float64(kept)
                continue
            for i in range(n):
                row = carray(_pointer(address[i]), (at + w,), kind)
                count = 0
                for k in range(w):
                    hit = (row[at + k] >= lowest[k]) & (row[at + k] <= highest[k])
                    count += np.int32(hit & (inside[k] == kept))
                shares[i] += count / float64(kept)
            for k in range(w):
                if inside[k] == kept:
                    continue
                least, most = lowest[k], highest[k]
                at_least, at_most, between = 0, 0, 0
                for i in range(n):
                    v = carray(_pointer(address[i]), (at + w,), kind)[at + k]
                    at_least += v == least
                    at_most += v == most
                    between += (v > least) & (v < most)
                # Of the values kept that are not between the edges, how many stand at which edge.
                kept_least = 0
                bottom = low if near == 0 else first[k]
                for i in range(bottom, bottom + kept):
                    kept_least += table[i, k] == least
                kept_most = kept - between - kept_least
                for i in range(n):
                    v = carray(_pointer(address[i]), (at + w,), kind)[at + k]
                    if v == least:
                        shares[i] += kept_least / (float64(at_least) * kept)
                    elif v == most:
                        shares[i] += kept_most / (float64(at_most) * kept)
                    elif v > least and v < most:
                        shares[i] += 1 / float64(kept)

    return window_mean


window_mean_float32 = _make(float32, np.dtype(np.float32))
window_mean_float64 = _make(float64, np.dtype(np.float64))
