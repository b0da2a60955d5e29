"""Data sets by name: an embedded one, torchvision's, and any .npz file.

Inputs stay in the type they are stored in (images: uint8) and are scaled when a batch is taken, so that a process holds
one small copy.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.spec import entry_points
from flwr_robust.errors import ConfigurationError, DataUnavailableError, UnknownNameError, extra

__all__ = ["TASKS", "Task", "data_folder", "load_task"]

_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled data set, split into training and test samples.

    Attributes
    ----------
    name : str
        The name or path that was asked for.
    x_train, x_test : Tensor (N, ...)
        Inputs as stored; images are (N, C, H, W).
    y_train, y_test : Tensor (N,) of int64
        Labels 0 .. classes - 1.
    classes : int
        K.
    scale, shift : float
        A model sees ``x * scale + shift``.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    scale: float = 1.0
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @cached_property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest training input, as a model sees them."""
        smallest, largest = self.inputs(torch.stack(self.x_train.aminmax())).tolist()
        return smallest, largest

    def inputs(self, x: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Scale stored inputs to what a model sees, float32."""
        scaled = x.to(device, torch.float32)
        if (self.scale, self.shift) == (1.0, 0.0):
            return scaled
        return (scaled.mul(self.scale) if scaled is x else scaled.mul_(self.scale)).add_(self.shift)

    def batch(self, picked: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of training samples, given their indices."""
        x = self.inputs(self.x_train.index_select(0, picked), device)
        return x, self.y_train.index_select(0, picked).to(device)


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the data sets: the option, or FLWR_ROBUST_DATA, or ./data."""
    return Path(folder or os.environ.get("FLWR_ROBUST_DATA") or "data").expanduser()


def _digits(folder: Path) -> Task:
    with extra("studies"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    # The set comes in the writers' order: every fifth of a class is a test sample, so both parts see all writers.
    test = torch.zeros(len(y), dtype=torch.bool)
    for k in range(10):
        test[torch.nonzero(y == k).flatten()[4::5]] = True
    return Task("digits", x[~test], y[~test], x[test], y[test], 10, 1 / 16, 0.0)


def _torchvision(name: str, class_name: str, **options: str) -> Callable[[Path], Task]:
    def load(folder: Path) -> Task:
        npz = folder / f"{name}.npz"
        if npz.is_file():
            return _from_npz(npz, name)
        with extra("studies"):
            import torchvision

        cls = partial(getattr(torchvision.datasets, class_name), **options)
        try:
            train, test = (_open(cls, folder, part) for part in (True, False))
        except Exception as error:  # torchvision raises what its download stumbled over
            raise DataUnavailableError(
                f"task {name} is not in {folder.absolute()} and could not be downloaded ({type(error).__name__}): put "
                f"torchvision's {class_name} files or a {name}.npz with {', '.join(_KEYS)} there, "
                f"or name the folder that has "
                f"them in FLWR_ROBUST_DATA or the data option"
            ) from None
        return _images(name, train.data, train.targets, test.data, test.targets)

    return load


def _open(cls: Callable[..., Any], folder: Path, train: bool) -> Any:
    try:
        return cls(root=str(folder), train=train, download=False)
    except RuntimeError:
        return cls(root=str(folder), train=train, download=True)


def _images(name: str, x_train: object, labels_train: object, x_test: object, labels_test: object) -> Task:
    def pictures(x: object) -> Tensor:
        array = torch.as_tensor(np.asarray(x))
        return array[:, None] if array.dim() == 3 else array.permute(0, 3, 1, 2).contiguous()

    def labels(y: object) -> Tensor:
        return torch.as_tensor(np.asarray(y).astype(np.int64)).reshape(-1)

    y_train, y_test = labels(labels_train), labels(labels_test)
    classes = int(y_train.max()) + 1
    return Task(name, pictures(x_train), y_train, pictures(x_test), y_test, classes, 1 / 127.5, -1.0)


def _from_npz(path: Path, name: str) -> Task:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _KEYS if key in file}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise DataUnavailableError(
            f"task {path} cannot be read ({error}); it must be an .npz file with {', '.join(_KEYS)}"
        ) from None
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise DataUnavailableError(f"task {path} lacks {', '.join(missing)}; it must hold {', '.join(_KEYS)}")
    x_train, y_train = _checked(path, "train", arrays["x_train"], arrays["y_train"])
    x_test, y_test = _checked(path, "test", arrays["x_test"], arrays["y_test"])
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ConfigurationError(
            f"task {path}: x_train and x_test must hold inputs of one shape and type; got "
            f"{tuple(x_train.shape[1:])} {x_train.dtype} and {tuple(x_test.shape[1:])} {x_test.dtype}"
        )
    classes = int(max(y_train.max(), y_test.max())) + 1
    scale, shift = (1 / 127.5, -1.0) if x_train.dtype == torch.uint8 else (1.0, 0.0)
    return Task(name, x_train, y_train, x_test, y_test, classes, scale, shift)


def _checked(path: Path, part: str, x: NDArray[Any], y: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return inputs (images with channels first) and labels; refuse arrays that are not usable for training."""
    y = y.reshape(-1)
    if x.ndim < 2 or len(x) != len(y) or len(y) == 0:
        raise ConfigurationError(
            f"task {path}: x_{part} and y_{part} must have the same number of rows; got shapes {x.shape} and {y.shape}"
        )
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise ConfigurationError(f"task {path}: x_{part} must hold real numbers; got {x.dtype}")
    if not np.isfinite(x).all():
        raise ConfigurationError(f"task {path}: x_{part} must be finite; it holds NaN or Inf")
    if y.dtype.kind not in "uif" or not np.isfinite(y).all() or (y != np.floor(y)).any() or y.min() < 0:
        raise ConfigurationError(f"task {path}: y_{part} must hold class numbers 0, 1, ...; got {y.dtype} {y[:5]}")
    inputs = torch.from_numpy(x.astype(x.dtype.newbyteorder("="), order="C"))
    if inputs.dtype == torch.uint8 and inputs.dim() == 3:
        inputs = inputs[:, None]
    elif inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[-1] in (1, 3):
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    return inputs, torch.from_numpy(y.astype(np.int64))


TASKS: dict[str, Callable[[Path], Task]] = {
    "cifar10": _torchvision("cifar10", "CIFAR10"),
    "digits": _digits,
    "emnist": _torchvision("emnist", "EMNIST", split="byclass"),
    "fashion_mnist": _torchvision("fashion_mnist", "FashionMNIST"),
    "mnist": _torchvision("mnist", "MNIST"),
}
"""Loaders by task name; each takes the data folder."""


def load_task(name: str, folder: str | os.PathLike[str] | None = None) -> Task:
    """Load a data set by name, once per process.

    Parameters
    ----------
    name : str
        ``digits`` (embedded in scikit-learn), ``mnist``, ``emnist`` (digits and letters, 62 classes), ``fashion_mnist``
        or ``cifar10``. All but ``digits`` are read from the folder, or downloaded by torchvision if they are missing.
        Or the path of an ``.npz`` file with x_train, y_train, x_test, y_test. uint8 inputs are taken for images and
        scaled to [-1, 1]. An entry point of the group ``flwr_robust.tasks`` names a loader: it takes the data folder
        and returns a `Task`.
    folder : path, optional
        Where data lie; FLWR_ROBUST_DATA or ``./data`` when not given.

    Raises
    ------
    UnknownNameError
        If there is no such task.
    DataUnavailableError
        If the data are neither in the folder nor downloadable.

    Examples
    --------
    >>> load_task("digits").x_train.shape
    torch.Size([1442, 1, 8, 8])
    """
    return _load(str(name), data_folder(folder).absolute())


@lru_cache(maxsize=4)
def _load(name: str, folder: Path) -> Task:
    if name.endswith(".npz"):
        path = Path(name) if Path(name).is_absolute() or Path(name).is_file() else folder / name
        if not path.is_file():
            raise DataUnavailableError(
                f"task {name} is not a file; give the path of an .npz with {', '.join(_KEYS)}, or put it into {folder}"
            )
        return _from_npz(path, name)
    others = entry_points("flwr_robust.tasks")
    if taken := others.keys() & TASKS.keys():
        raise ConfigurationError(
            f"task '{min(taken)}' is registered twice: by flwr_robust and by an entry point; rename one"
        )
    loaders = {**others, **TASKS}
    if name not in loaders:
        raise UnknownNameError("task", name, [*loaders, "<path>.npz"])
    task = loaders[name](folder)
    if not isinstance(task, Task):
        raise ConfigurationError(f"task {name}: its loader must return a Task; got {type(task).__name__}")
    return task
