"""The gradients of many clients at one model: one walk forward and one walk back for all of them.

The walks call the same operations as autograd, without its bookkeeping, which takes more time than a small model's
arithmetic. On the CPU, products and convolutions are formed client by client, in the shapes of a single client.
Rounding depends on the shapes there, so the gradients equal those of `Learner.gradient` to the bit. On other devices
every call is a launch, so the products of all clients are formed at once. All other operations work sample by sample or
column by column, and are done for all clients at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from flwr_robust.kernels.pool import pool_squares, spread_squares
from flwr_robust.tasks.layers import is_changed, joined, layers_of, pools_squares
from flwr_robust.tasks.learner import Learner
from flwr_robust.tasks.objective import CLASSES, Objective
from flwr_robust.tasks.written import noise_for, room, smooth_of, walk

__all__ = ["Grouped"]

_aten: Any = torch.ops.aten

# Takes the loss's gradient by a step's output and whether that by its input is asked for, and returns the latter.
_Back = Callable[[Tensor, bool], Tensor]
_Draws = Sequence[torch.Generator]  # one for each client
_Walk = Callable[[Any, Tensor, Sequence[Tensor], Sequence[Tensor], _Draws], tuple[Tensor, _Back]]


class Grouped:
    """A learner's model, walked for many clients at once.

    Parameters
    ----------
    learner : Learner
        The learner; `check` must return None for its model and its objective.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._modules = list(layers_of(learner.model))
        self._layers = list(_layers(self._modules))
        self._generators: list[torch.Generator] = []
        self._shapes = [parameter.shape for parameter in learner.parameters]
        self._sizes = [parameter.numel() for parameter in learner.parameters]
        # What a convolution leaves behind for the way back must stay in the cache, or the memory is what one waits for.
        self._alone = learner.device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in self._modules)

    @staticmethod
    def check(model: nn.Module, objective: Objective = CLASSES) -> str | None:
        """Return what cannot run for many clients at once, of a model or its objective, in one sentence, or None."""
        if objective.target != "class" or objective.loss.own:
            return f"the loss is {objective.loss.name} with target={objective.target!r}, not cross-entropy of classes"
        if type(model) is not nn.Sequential:  # another class may have another forward
            return f"the model is a {type(model).__name__}, not a Sequential"
        leaves = list(layers_of(model))
        for module in leaves:
            unusual = type(module) not in _WALKS or None in module._parameters.values()
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                unusual |= module.p == 1
            if isinstance(module, nn.Conv2d):
                unusual |= module.padding_mode != "zeros" or isinstance(module.padding, str)
            if isinstance(module, nn.Flatten):
                unusual |= (module.start_dim, module.end_dim) != (1, -1)
            if unusual:
                text = str(module)
                return f"the model holds {type(module).__name__ if chr(10) in text else text}"
        held = list(model.parameters())
        if sum(len(module._parameters) for module in leaves) != len(held) or len({*leaves}) < len(leaves):
            return "the model has shared layers or parameters"
        if not all(parameter.requires_grad for parameter in held):
            return "the model has frozen parameters"
        if any(is_changed(module) for module in model.modules()):
            return "the model has hooks, buffers or a forward of its own"
        return None

    @staticmethod
    def draws(model: nn.Module) -> bool:
        """Say whether a model's layers draw, as dropout does."""
        return any(isinstance(module, nn.Dropout | nn.Dropout2d) for module in model.modules())

    def seed(self, seeds: Sequence[int]) -> None:
        """Let each client's layers draw from its seed from now on, as `Learner.drawing` does; on a CPU.

        Parameters
        ----------
        seeds : sequence (n) of int
            The clients' seeds.
        """
        self._generators += [torch.Generator() for _ in range(len(seeds) - len(self._generators))]
        for generator, seed in zip(self._generators, seeds, strict=False):
            generator.manual_seed(seed)

    def layers(self, flat: Tensor) -> list[Tensor]:
        """View models (n, d), one per line, as one tensor (n, *shape) per array of parameters."""
        parts = flat.split_with_sizes(self._sizes, 1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def models(self, count: int) -> list[Tensor]:
        """Return memory for models, (count, *shape) per array, aligned like separate allocations."""
        held = (parameter.detach() for parameter in self.learner.parameters)
        return [room(parameter.expand(count, *parameter.shape), *parameter.shape) for parameter in held]

    def gradients(
        self, parameters: Sequence[Tensor], x: Tensor, y: Tensor, into: Sequence[Tensor], *, decay: bool = True
    ) -> None:
        """Write every client's gradient, as `Learner.gradient` defines it.

        Parameters
        ----------
        parameters : sequence of Tensor
            Each (r, *shape), without gradients; n / r consecutive clients share each of the r models.
        x : Tensor (n, b, ...)
            Every client's inputs, scaled; written over where the model starts with a ReLU.
        y : Tensor (n, b) of int64
            Their labels.
        into : sequence of Tensor (n, *shape)
            Where the gradients are written.
        decay : bool
            Whether the weight decay's part is added.
        """
        n, share = x.shape[0], x.shape[0] // parameters[0].shape[0]
        if self._alone:
            for i in range(n):
                model, some = slice(i // share, i // share + 1), slice(i, i + 1)
                own = [parameter[model] for parameter in parameters]
                self._walk(own, x[some], y[some], [gradient[some] for gradient in into], self._generators[some])
        else:
            self._walk(parameters, x, y, into, self._generators)
        weight = self.learner.weight_decay
        if decay and weight:
            _add_decay(parameters, into, weight)

    def prepared(
        self, parameters: Sequence[Tensor], x: Tensor, y: Tensor, into: Sequence[Tensor], *, decay: bool = True
    ) -> Callable[[], None]:
        """Return a function that repeats `gradients` on the same memory, faster for small models."""
        if self.draws(self.learner.model):
            self.seed([0] * len(x))  # what is written out refers to these generators
        calls = walk(self._modules, parameters, x, y, into, self._generators)
        if calls is None:
            return partial(self.gradients, parameters, x, y, into, decay=decay)
        weight = self.learner.weight_decay if decay else 0.0

        def gradients() -> None:
            for call in calls:
                call()
            if weight:
                _add_decay(parameters, into, weight)

        return gradients

    def _walk(self, parameters: Sequence[Tensor], x: Tensor, y: Tensor, into: Sequence[Tensor], draws: _Draws) -> None:
        held, written, backs = list(parameters), list(into), []
        for walk_layer, module in self._layers:
            count = len(module._parameters)
            x, back = walk_layer(module, x, held[:count], written[:count], draws)
            # Below the first parameters nothing has to be known.
            backs.append((back, len(held) < len(parameters)))
            del held[:count], written[:count]
        error = _loss_gradient(x, y)
        first = next(index for index, (_, module) in enumerate(self._layers) if module._parameters)
        for back, further in reversed(backs[first:]):
            error = back(error, further)


def _layers(modules: Sequence[nn.Module]) -> Iterator[tuple[_Walk, nn.Module]]:
    """Yield layers with their walks; a ReLU before the pooling of squares is walked with it."""
    for module, rectified in joined(modules):
        yield _relu_pool if rectified else _WALKS[type(module)], module


def _add_decay(parameters: Sequence[Tensor], into: Sequence[Tensor], weight: float) -> None:
    for gradient, parameter in zip(into, parameters, strict=True):
        shared = (len(parameter), -1, *parameter.shape[1:])
        gradient.view(shared).add_((weight * parameter).unsqueeze(1))


def _loss_gradient(scores: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each client's mean cross-entropy by its scores (n, b, K)."""
    logarithms = torch.log_softmax(scores, 2)
    error = torch.zeros_like(logarithms).scatter_(2, y.unsqueeze(2), -1 / y.shape[1])
    error = _aten._log_softmax_backward_data(error, logarithms, 2, scores.dtype)
    lying = room(error, *error.shape[1:])
    return error if lying.is_contiguous() else lying.copy_(error)


def _apart(tensor: Tensor) -> bool:
    """Say whether products are formed client by client."""
    return tensor.device.type == "cpu"


def _each(operation: Callable[..., Tensor], out: Tensor, *operands: Tensor) -> None:
    """Call an operation for one client after the other; consecutive clients share an operand of fewer models."""
    n = out.shape[0]
    clients = [
        repeat(operand[0])
        if operand.shape[0] == 1
        else operand.unbind(0)
        if operand.shape[0] == n
        else chain.from_iterable(map(repeat, operand.unbind(0), repeat(n // operand.shape[0])))
        for operand in operands
    ]
    for target, *given in zip(out.unbind(0), *clients, strict=False):
        operation(*given, out=target)


def _folded(tensor: Tensor, models: int) -> Tensor:
    """Join the samples (n, b, w) of clients that share a model: (models, n / models * b, w)."""
    return tensor.view(models, -1, tensor.shape[2])


def _linear(
    module: nn.Linear, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    weight, bias = held
    scores = room(x, x.shape[1], module.out_features)
    if _apart(x):
        _each(torch.addmm, scores, bias, x, weight.mT)
    else:
        models = weight.shape[0]
        torch.matmul(_folded(x, models), weight.mT, out=_folded(scores, models)).add_(bias.unsqueeze(1))

    def back(error: Tensor, further: bool) -> Tensor:
        if _apart(x):
            _each(torch.mm, into[0], error.mT, x)
        else:
            torch.matmul(error.mT, x, out=into[0])
        torch.sum(error, 1, out=into[1])
        if not further:
            return error
        below = room(x, *x.shape[1:])
        if _apart(x):
            _each(torch.mm, below, error, weight)
        else:
            models = weight.shape[0]
            torch.matmul(_folded(error, models), weight, out=_folded(below, models))
        return below

    return scores, back


def _conv(
    module: nn.Conv2d, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    n, share = x.shape[0], x.shape[0] // held[0].shape[0]
    weights, biases = held
    settings: Any = (module.stride, module.padding, module.dilation)
    convolve: Any = nn.functional.conv2d
    parts = [convolve(x[i], weights[i // share], biases[i // share], *settings, module.groups) for i in range(n)]

    def back(error: Tensor, further: bool) -> Tensor:
        below = []
        for i in range(n):
            given = error[i], x[i], weights[i // share], [module.out_channels]
            asked = [further, True, True]
            found, into[0][i], into[1][i] = _aten.convolution_backward(
                *given, *settings, False, [0, 0], module.groups, asked
            )
            below.append(found)
        return _joined(below) if further else error

    return _joined(parts), back


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors; a single one is not copied."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))


def _relu(
    module: nn.ReLU, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    x.relu_()  # nobody asks for what was below zero

    def back(error: Tensor, further: bool) -> Tensor:
        found: Tensor = _aten.threshold_backward(error, x, 0, grad_input=error)
        return found

    return x, back


def _pool(
    module: nn.MaxPool2d, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    if pools_squares(module) and (found := _pool_squares(x)) is not None:
        return found
    images = x.flatten(0, 1)
    settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    pooled, places = _aten.max_pool2d_with_indices(images, *settings)

    def back(error: Tensor, further: bool) -> Tensor:
        found: Tensor = _aten.max_pool2d_with_indices_backward(error.flatten(0, 1), images, *settings, places)
        return found.view_as(x)

    return pooled.view(*x.shape[:2], *pooled.shape[1:]), back


def _relu_pool(
    module: nn.MaxPool2d, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    """Walk a ReLU and the pooling that follows it, in one pass where compiled code can."""
    if (found := _pool_squares(x, rectified=True)) is not None:
        return found
    rectified, relu_back = _WALKS[nn.ReLU](module, x, held, into, draws)
    pooled, pool_back = _pool(module, rectified, held, into, draws)
    return pooled, lambda error, further: relu_back(pool_back(error, further), further)


def _pool_squares(x: Tensor, *, rectified: bool = False) -> tuple[Tensor, _Back] | None:
    """Pool squares by compiled code; None where it cannot."""
    squares = pool_squares(x.flatten(0, 2), rectified=rectified)
    if squares is None:
        return None
    largest, places = squares

    def back(error: Tensor, further: bool) -> Tensor:
        below = torch.empty_like(x)
        spread_squares(error.flatten(0, 2), places, below.flatten(0, 2))
        return below

    return largest.view(*x.shape[:3], *largest.shape[1:]), back


def _flatten(
    module: nn.Flatten, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    return x.flatten(2), lambda error, further: error.view_as(x)


def _identity(
    module: nn.Identity, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    return x, lambda error, further: error


def _smooth(
    module: nn.Module, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    forward, backward, by_output = smooth_of(module)
    values = room(x, *x.shape[1:])
    _each_rounded(forward, values, x)
    known = values if by_output else x

    def back(error: Tensor, further: bool) -> Tensor:
        below = room(x, *x.shape[1:])
        _each_rounded(backward, below, error, known)
        return below

    return values, back


def _each_rounded(operation: Callable[..., Tensor], out: Tensor, *operands: Tensor) -> None:
    """Call an operation client by client on a CPU, where a number's place in memory decides how it is rounded."""
    if _apart(out):
        _each(operation, out, *operands)
    else:
        operation(*operands, out=out)


def _dropout(
    module: nn.Dropout | nn.Dropout2d, x: Tensor, held: Sequence[Tensor], into: Sequence[Tensor], draws: _Draws
) -> tuple[Tensor, _Back]:
    if module.p == 0:
        return x, lambda error, further: error
    noise = noise_for(module, x)
    for own, generator in zip(noise, draws, strict=False):
        own.bernoulli_(1 - module.p, generator=generator)
    noise.div_(1 - module.p)
    return torch.mul(x, noise, out=room(x, *x.shape[1:])), lambda error, further: error.mul_(noise)


_WALKS: dict[type[nn.Module], _Walk] = {
    nn.Conv2d: _conv,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
    nn.Flatten: _flatten,
    nn.GELU: _smooth,
    nn.Identity: _identity,
    nn.Linear: _linear,
    nn.MaxPool2d: _pool,
    nn.ReLU: _relu,
    nn.Sigmoid: _smooth,
    nn.Tanh: _smooth,
}
