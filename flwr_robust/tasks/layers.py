"""A model as layers in a row: which of them are computed together, and scores of many images in parts.

A convolution's results for a thousand images leave the cache, and memory is then what one waits for. Scores are formed
some images at a time, up to the layer that makes features of them. A ReLU and the pooling of squares behind it are one
pass. The operations that round are the same, so that scores are, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from flwr_robust.kernels.pool import pool_squares

__all__ = ["is_changed", "joined", "layers_of", "pools_squares", "scorer"]

_PART = 100
"""Images at a time."""

_SMOOTH = (nn.GELU, nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh)
_OF_IMAGES = (nn.Conv2d, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, *_SMOOTH)


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a model in their order, those of nested Sequentials too."""
    for module in model._modules.values():
        if type(module) is nn.Sequential:
            yield from layers_of(module)
        elif module is not None:
            yield module


def is_changed(module: nn.Module) -> bool:
    """Say whether a module does more than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or bool(module._buffers) or "forward" in vars(module)


def pools_squares(module: nn.Module) -> bool:
    """Say whether a layer pools squares of two by two pixels that lie side by side."""
    if type(module) is not nn.MaxPool2d:
        return False
    sides = ((module.kernel_size, 2), (module.stride, 2), (module.padding, 0), (module.dilation, 1))
    plain = not (module.ceil_mode or module.return_indices)
    return plain and all(given in (side, (side, side)) for given, side in sides)


def joined(layers: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, bool]]:
    """Yield layers, and whether a ReLU comes before one; only one before `pools_squares` is taken out of the row."""
    for index, module in enumerate(layers):
        if type(module) is nn.ReLU and index + 1 < len(layers) and pools_squares(layers[index + 1]):
            continue
        yield module, pools_squares(module) and index > 0 and type(layers[index - 1]) is nn.ReLU


def scorer(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what computes a model's scores, without gradients: the model, or a function that computes it in parts.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode. On a CPU it is computed in parts if it is a Sequential that begins with
        convolutions.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)).eval()
    >>> images = torch.rand(120, 1, 8, 8)
    >>> with torch.no_grad():
    ...     torch.allclose(scorer(model)(images), model(images))
    True
    """
    layers = list(layers_of(model))
    first = list(takewhile(lambda layer: type(layer) in _OF_IMAGES, layers))
    plain = type(model) is nn.Sequential and not any(map(is_changed, model.modules()))
    if not plain or not any(type(layer) is nn.Conv2d for layer in first):
        return model
    front, rest = list(joined(first)), layers[len(first) :]

    def scores(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            found: Tensor = model(x)
            return found
        parts = []
        for part in torch.split(x, _PART):
            for layer, rectified in front:
                part = _applied(layer, part, rectified=rectified)
            parts.append(part)
        features = torch.cat(parts)
        for layer in rest:
            features = layer(features)
        return features

    return scores


def _applied(layer: nn.Module, x: Tensor, *, rectified: bool) -> Tensor:
    """Return a layer's output, with a ReLU before it if asked for."""
    squares = pool_squares(x.flatten(0, 1), rectified=rectified) if pools_squares(layer) else None
    if squares is not None:
        return squares[0].view(*x.shape[:2], *squares[0].shape[1:])
    found: Tensor = layer(x.relu() if rectified else x)
    return found
