"""A dense model's gradients written out once: a list of operations on all clients' tensors, to be called repeatedly.

For a small model, calls take more time than arithmetic, mostly to make the tensors that they use. Here every operand is
made once: the memory between the layers, and each client's part of every tensor. The operations are those of `Grouped`,
in the same order, on tensors of the same layout. So the results are equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["noise_for", "room", "smooth_of", "walk"]

_ALIGNED = 16  # numbers of four bytes in what memory is aligned to

_aten: Any = torch.ops.aten

Call = Callable[[], object]

_DENSE = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.GELU, nn.Identity, nn.Linear, nn.ReLU, nn.Sigmoid, nn.Tanh)


def room(like: Tensor, *shape: int) -> Tensor:
    """Return memory for tensors (n, *shape), each client's part aligned like a separate allocation.

    On a CPU, the rounding of products depends on the alignment of their operands.
    """
    size = math.prod(shape)
    if size % _ALIGNED == 0 or like.device.type != "cpu":
        return like.new_empty(like.shape[0], *shape)
    return like.new_empty(like.shape[0], -(-size // _ALIGNED) * _ALIGNED)[:, :size].view(-1, *shape)


def smooth_of(module: nn.Module) -> tuple[Callable[..., Tensor], Callable[..., Tensor], bool]:
    """Return how a smooth activation is computed, its way back, and whether that reads the output or the input."""
    if isinstance(module, nn.GELU):
        how = {"approximate": module.approximate}
        return partial(_aten.gelu.out, **how), _into(partial(_aten.gelu_backward.grad_input, **how)), False
    if isinstance(module, nn.Sigmoid):
        return torch.sigmoid, _into(_aten.sigmoid_backward.grad_input), True
    return torch.tanh, _into(_aten.tanh_backward.grad_input), True


def _into(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a way back that names its result as all operations do."""
    return lambda error, known, out: operation(error, known, grad_input=out)


def noise_for(module: nn.Dropout | nn.Dropout2d, x: Tensor) -> Tensor:
    """Return memory for what dropout multiplies inputs (n, b, ...) with: one number for each, or for each channel."""
    shape = x.shape if isinstance(module, nn.Dropout) else (*x.shape[:3], *[1] * (x.dim() - 3))
    return x.new_empty(shape)


def walk(
    modules: Sequence[nn.Module],
    parameters: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    into: Sequence[Tensor],
    generators: Sequence[torch.Generator],
) -> list[Call] | None:
    """Write out the gradients of all clients, at one common model or at one model each.

    Parameters
    ----------
    modules : sequence of nn.Module
        The model, layer by layer.
    parameters, x, y, into
        As for `Grouped.gradients`: the memory that every call reads and writes.
    generators : sequence of torch.Generator
        What the clients' dropout draws from.

    Returns
    -------
    list of callable () -> object, or None
        The operations, to be called in order; None if a layer is not dense, or the tensors lie on a GPU.
    """
    if x.device.type != "cpu" or any(type(module) not in _DENSE for module in modules):
        return None
    n = x.shape[0]
    calls: list[Call] = []
    held, written = list(parameters), list(into)
    backs: list[Callable[[Tensor, bool], Tensor]] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            weight, bias, target, total = held.pop(0), held.pop(0), written.pop(0), written.pop(0)
            scores = room(x, x.shape[1], module.out_features)
            operands = (_each(bias, n), _each(x, n), _each(weight.mT, n), _each(scores, n))
            calls += [partial(torch.addmm, b, inner, w, out=out) for b, inner, w, out in zip(*operands, strict=True)]
            backs.append(partial(_linear_back, calls, x, weight, target, total))
            x = scores
        elif isinstance(module, nn.ReLU):
            calls.append(x.relu_)
            backs.append(partial(_relu_back, calls, x))
        elif isinstance(module, nn.Flatten):
            x = x.flatten(2)
            backs.append(lambda error, further: error)  # only products follow, and they are of two dimensions
        elif isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout | nn.Dropout2d) and not module.p):
            backs.append(lambda error, further: error)
        elif isinstance(module, nn.Dropout | nn.Dropout2d):
            noise, dropped = noise_for(module, x), room(x, *x.shape[1:])
            pairs = zip(noise.unbind(0), generators, strict=False)
            calls += [partial(own.bernoulli_, 1 - module.p, generator=generator) for own, generator in pairs]
            calls.append(partial(noise.div_, 1 - module.p))
            calls.append(partial(torch.mul, x, noise, out=dropped))
            backs.append(partial(_dropout_back, calls, noise))
            x = dropped
        else:
            forward, backward, by_output = smooth_of(module)
            values = room(x, *x.shape[1:])
            calls += [
                partial(forward, inner, out=out) for inner, out in zip(_each(x, n), _each(values, n), strict=True)
            ]
            backs.append(partial(_smooth_back, calls, backward, values if by_output else x))
            x = values
    error = _loss_back(calls, x, y)
    first = next(index for index, module in enumerate(modules) if isinstance(module, nn.Linear))
    for index in range(len(modules) - 1, first - 1, -1):
        error = backs[index](error, index > first)
    return calls


def _each(tensor: Tensor, n: int) -> list[Tensor]:
    """Return every client's part; that of a model is shared by clients in a row."""
    return [part for part in tensor.unbind(0) for _ in range(n // tensor.shape[0])]


def _linear_back(
    calls: list[Call], x: Tensor, weight: Tensor, target: Tensor, total: Tensor, error: Tensor, further: bool
) -> Tensor:
    n = x.shape[0]
    operands = (_each(error.mT, n), _each(x, n), _each(target, n))
    calls += [partial(torch.mm, e, inner, out=out) for e, inner, out in zip(*operands, strict=True)]
    calls.append(partial(torch.sum, error, 1, out=total))
    if not further:
        return error
    below = room(x, *x.shape[1:])
    operands = (_each(error, n), _each(weight, n), _each(below, n))
    calls += [partial(torch.mm, e, w, out=out) for e, w, out in zip(*operands, strict=True)]
    return below


def _relu_back(calls: list[Call], x: Tensor, error: Tensor, further: bool) -> Tensor:
    calls.append(partial(_aten.threshold_backward.grad_input, error, x, 0, grad_input=error))
    return error


def _dropout_back(calls: list[Call], noise: Tensor, error: Tensor, further: bool) -> Tensor:
    calls.append(partial(error.mul_, noise))
    return error


def _smooth_back(
    calls: list[Call], backward: Callable[..., Tensor], known: Tensor, error: Tensor, further: bool
) -> Tensor:
    below, n = room(known, *known.shape[1:]), known.shape[0]
    operands = (_each(error, n), _each(known, n), _each(below, n))
    calls += [partial(backward, e, inner, out=out) for e, inner, out in zip(*operands, strict=True)]
    return below


def _loss_back(calls: list[Call], scores: Tensor, y: Tensor) -> Tensor:
    """Write out the gradient of each client's mean cross-entropy by its scores (n, b, K)."""
    logarithms, marks, error = (torch.empty(scores.shape, dtype=scores.dtype) for _ in range(3))
    calls.append(partial(_aten._log_softmax.out, scores, 2, False, out=logarithms))
    calls.append(marks.zero_)
    calls.append(partial(marks.scatter_, 2, y.unsqueeze(2), -1 / y.shape[1]))
    calls.append(partial(_aten._log_softmax_backward_data.out, marks, logarithms, 2, scores.dtype, out=error))
    if math.prod(error.shape[1:]) % _ALIGNED == 0:
        return error
    lying = room(error, *error.shape[1:])
    calls.append(partial(lying.copy_, error))
    return lying
