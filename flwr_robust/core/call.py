"""The one-call form: arrays in, arrays of the same kind out.

A row is one client's update as a vector; layers are the arrays of its model. Rows come as one array or tensor (n, d),
as a list of rows, or as a list of each client's layers. The result has the kind of the input: numpy or torch, a vector
or layers.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.pipeline import as_rule
from flwr_robust.core.rows import Counts, Layer, Rows, unfit
from flwr_robust.core.rule import Aggregate, Rule, State
from flwr_robust.errors import ConfigurationError

__all__ = ["aggregate"]

_Array = NDArray[Any]
_Weights = NDArray[np.float64]
_Layout = Sequence[tuple[str, tuple[int, ...]]]
_Trusted = Tensor | _Array | Sequence[Tensor] | Sequence[_Array]
_UNSET: State = {}
_KINDS = "pass an array or a tensor (n, d), a list of rows, or a list of each client's layers"


@overload
def aggregate(
    x: Tensor | Rows | Sequence[Tensor],
    rule: str | Rule,
    *,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> Aggregate: ...


@overload
def aggregate(
    x: _Array | Sequence[_Array],
    rule: str | Rule,
    *,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> Aggregate[_Array, _Weights]: ...


@overload
def aggregate(
    x: Sequence[Sequence[Tensor]],
    rule: str | Rule,
    *,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> Aggregate[list[Tensor]]: ...


@overload
def aggregate(
    x: Sequence[Sequence[_Array]],
    rule: str | Rule,
    *,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> Aggregate[list[_Array], _Weights]: ...


@overload
def aggregate(
    x: Tensor | Rows | Sequence[Tensor],
    rule: str | Rule,
    *,
    state: State | None,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> tuple[Aggregate, State]: ...


@overload
def aggregate(
    x: _Array | Sequence[_Array],
    rule: str | Rule,
    *,
    state: State | None,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> tuple[Aggregate[_Array, _Weights], State]: ...


@overload
def aggregate(
    x: Sequence[Sequence[Tensor]],
    rule: str | Rule,
    *,
    state: State | None,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> tuple[Aggregate[list[Tensor]], State]: ...


@overload
def aggregate(
    x: Sequence[Sequence[_Array]],
    rule: str | Rule,
    *,
    state: State | None,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> tuple[Aggregate[list[_Array], _Weights], State]: ...


def aggregate(
    x: Any,
    rule: str | Rule,
    *,
    state: State | None = _UNSET,
    layout: _Layout = (),
    counts: Counts | None = None,
    asked: int | None = None,
    trusted: _Trusted | None = None,
    seed: int | None = None,
) -> Any:
    """Aggregate rows by a rule, in one call.

    Parameters
    ----------
    x : array or tensor (n, d), sequence (n) of rows (d,) or of sequences of layers, or Rows
        One update per client, floating point, numpy's or torch's, on any device; not changed.
    rule : str or Rule
        A defence string such as ``"clip(c=2.0) | trimmed_mean(f=2)"``, or the rule object.
    state : State, optional
        For rules with a memory (centered clipping): None the first time, then what the last call returned. With this
        argument, even None, the call returns ``(aggregate, state)``.
    layout : sequence of (name, shape), optional
        The arrays that the columns belong to, for rules that look at one of them (lfighter). Clients' layers need none:
        their positions are the names.
    counts : sequence, array or tensor (n,), optional
        Examples behind each row, for weighted rules.
    asked : int, optional
        Number of clients asked, when fewer answered; n when not given.
    trusted : array or tensor (d,), or sequence of layers, optional
        The server's own update, for rules that compare with one (monna, fltrust).
    seed : int, optional
        The seed of what parts of the rule draw that have none of their own. When not given, the draws come from the
        operating system's entropy, and differ from call to call.

    Returns
    -------
    Aggregate, or (Aggregate, State) when ``state`` is given
        ``.value`` (d,), or one array per layer where layers were given; ``.weights`` (n,); ``.outcome``; ``.stats``.
        Value and weights are numpy's where ``x`` is.

    Raises
    ------
    ConfigurationError
        If the rule's text or the rows are invalid.
    InfeasibleError
        If n and f do not fit the rule.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [2.0], [4.0]])
    >>> aggregate(x, "median").value
    tensor([2.])
    >>> result, state = aggregate(x, "centered_clipping(tau=1.0)", state=None)
    >>> result, state = aggregate(x, "centered_clipping(tau=1.0)", state=state)
    >>> round(float(result.value), 4)
    1.1111

    Arrays of numpy, and the lists of arrays that Flower's clients send:

    >>> import numpy as np
    >>> aggregate(np.array([[0.0, 1.0], [2.0, 1.0], [90.0, 1.0]]), "median").value
    array([2., 1.])
    >>> clients = [[np.full((2, 2), i), np.full(3, -i)] for i in (1.0, 2.0, 90.0)]
    >>> [layer.shape for layer in aggregate(clients, "median").value]
    [(2, 2), (3,)]
    """
    chosen = as_rule(rule)
    memory = None if state is _UNSET else state
    _check_state(chosen, memory)
    if isinstance(x, Rows):
        result, following = chosen(x, memory)
        return result if state is _UNSET else (result, following)
    named = _checked_layout(layout)
    own = None if trusted is None else _whole_row(trusted)
    if isinstance(x, Tensor | np.ndarray):
        first, layers = x, None
        rows = Rows.from_tensor(_tensor(x, "x"), layout=named, counts=counts, asked=asked, trusted=own, seed=seed)
    else:
        pieces, layered = _pieces(x)
        first, layers = (x[0][0], pieces[0]) if layered else (x[0], None)
        if layered and not named:
            named = [Layer(str(index), tuple(layer.shape)) for index, layer in enumerate(pieces[0])]
        dtype = functools.reduce(torch.promote_types, (piece.dtype for row in pieces for piece in row))
        rows = Rows.from_layers(pieces, dtype=dtype, layout=named, counts=counts, asked=asked, trusted=own, seed=seed)
    result, following = chosen(rows, memory)
    found = _in_kind(result, isinstance(first, np.ndarray), layers)
    return found if state is _UNSET else (found, following)


def _in_kind(result: Aggregate, numpy: bool, layers: Sequence[Tensor] | None) -> Any:
    """Return a result with its value cut into layers like the given ones, in numpy's arrays where asked."""
    if not numpy and layers is None:
        return result
    parts = [result.value]
    if layers is not None:
        cut = torch.split(result.value, [layer.numel() for layer in layers])
        parts = [part.view(layer.shape) for part, layer in zip(cut, layers, strict=True)]
    arrays = [part.numpy() for part in parts] if numpy else parts
    value: Any = arrays[0] if layers is None else arrays
    weights: Any = result.weights.numpy() if numpy else result.weights
    return dataclasses.replace(result, value=value, weights=weights)


def _pieces(x: Any) -> tuple[list[list[Tensor]], bool]:
    """Return the pieces of every row of a list, and whether they are layers; a row that is one array is one piece."""
    if not isinstance(x, list | tuple) or not x:
        found = f"an empty {type(x).__name__}" if isinstance(x, list | tuple) else type(x).__name__
        raise ConfigurationError(f"aggregate: x holds no rows that can be read; got {found}: {_KINDS}")
    _refuse_numbers(x)
    layered = isinstance(x[0], list | tuple)
    kind = np.ndarray if isinstance(x[0][0] if layered and x[0] else x[0], np.ndarray) else Tensor
    rows: list[list[Tensor]] = []
    for i, row in enumerate(x):
        if isinstance(row, list | tuple) != layered or (layered and not row):
            found = type(row).__name__ if row != [] and row != () else "no layer"
            raise ConfigurationError(
                f"aggregate: all rows must be arrays, or all of them lists of layers; got {found} in row {i}: {_KINDS}"
            )
        for j, piece in enumerate(row if layered else [row]):
            if not isinstance(piece, kind):
                where = f"layer {j} of row {i}" if layered else f"row {i}"
                raise ConfigurationError(
                    f"aggregate: all rows must be numpy's arrays, or all of them torch's tensors; got "
                    f"{type(piece).__name__} in {where}: {_KINDS}"
                )
        rows.append([_tensor(piece, f"row {i}") for piece in (row if layered else [row])])
        if not layered and rows[i][0].dim() != 1:
            raise ConfigurationError(
                f"aggregate: a row must have one dimension; got shape {tuple(rows[i][0].shape)} in row {i}: flatten "
                f"it, or pass a list of layers for every client"
            )
        shapes, device = [[tuple(piece.shape) for piece in rows[k]] for k in (0, i)], rows[0][0].device
        if shapes[0] != shapes[1]:
            raise ConfigurationError(
                f"aggregate: all rows must have the same shapes; got {shapes[0]} in row 0 and {shapes[1]} in row {i}: "
                f"leave out the row that differs"
            )
        if any(piece.device != device for piece in rows[i]):
            raise ConfigurationError(
                f"aggregate: all rows must lie on one device; got {device} in row 0 and another in row {i}: move them "
                f"to one"
            )
    return rows, layered


def _check_state(rule: Rule, state: Any) -> None:
    """Raise if a state holds keys that a rule does not remember; the rule itself refuses what is no state."""
    known = rule.remembered
    if isinstance(state, Mapping) and (unknown := [key for key in state if key not in known]):
        raise ConfigurationError(
            f"aggregate: state must be None or what the last call returned; {rule} remembers "
            f"{', '.join(known) or 'nothing'}; got {', '.join(map(repr, unknown[:5])):.100}: pass what "
            f"it returned; in a rule of your own, name its keys in `remembered`"
        )


def _refuse_numbers(x: Sequence[Any]) -> None:
    """Raise if a list holds Python's numbers, at any depth, in place of arrays."""
    first: Any = x
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, Real):
        raise ConfigurationError(
            f"aggregate: x must hold arrays or tensors; got lists of plain numbers, first {first!r:.40}: pass "
            f"numpy.array(x, 'float32'), or torch.tensor(x, dtype=torch.float32)"
        )


def _tensor(x: Tensor | _Array, what: str) -> Tensor:
    """Return an array as a tensor that shares its memory if torch can read it; refuse what cannot hold rows."""
    if isinstance(x, Tensor):
        if why := unfit(x):
            raise ConfigurationError(f"aggregate: {what} must be a floating-point tensor; got {why}")
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise ConfigurationError(f"aggregate: {what} must be a plain array; got a masked one: pass x.filled(0.0), say")
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise ConfigurationError(
            f"aggregate: {what} must be a floating-point array; got {x.dtype} numbers: pass "
            f"for example x.astype('float32')"
        )
    strides = all(stride >= 0 and stride % x.itemsize == 0 for stride in x.strides)
    if not (strides and x.dtype.isnative and x.flags.aligned and x.flags.writeable):  # torch reads no others
        x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(np.asarray(x))


def _whole_row(row: Any) -> Tensor:
    """Return the trusted row, whose layers may be given one by one."""
    pieces = row if isinstance(row, list | tuple) else [row]
    if not pieces or not all(isinstance(piece, Tensor | np.ndarray) for piece in pieces):
        raise ConfigurationError(
            f"aggregate: trusted must be an array or a tensor (d,), or a list of layers; got {type(row).__name__}: "
            f"pass an update of the server's own"
        )
    read = [_tensor(piece, "trusted") for piece in pieces]
    return read[0] if row is pieces[0] else torch.cat([piece.reshape(-1) for piece in read])


def _checked_layout(layout: Any) -> list[Layer]:
    """Return the layers that pairs of name and shape describe."""
    try:
        layers = [Layer(name, tuple(map(operator.index, shape))) for name, shape in layout]
        fits = all(isinstance(layer.name, str) and min(layer.shape, default=0) >= 0 for layer in layers)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigurationError(
            f"aggregate: layout must hold pairs of a name and a shape; got {str(layout)[:80]!r}: pass "
            f"for example [('weight', (2, 3)), ('bias', (3,))]"
        )
    return layers
