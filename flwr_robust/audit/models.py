"""Which round of which run a model file is: by the model's hash, which the log has for every round."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.audit.arrays import read_arrays
from flwr_robust.audit.checkpoint import ARRAYS, CheckpointStore
from flwr_robust.audit.events import Aggregated, RoundConfigured, RunEnded
from flwr_robust.audit.history import counting
from flwr_robust.audit.log import Record
from flwr_robust.errors import AuditError, CheckpointError

__all__ = ["Place", "places_of", "read_model"]

_NO_STATE = "it holds no state_dict of tensors"
_READABLE = "an .npz file of named arrays, a .pt file of a state_dict, or a checkpoint's folder"


@dataclass(frozen=True)
class Place:
    """A place in a log where a model is current.

    Attributes
    ----------
    line : int
        The number of the line.
    round : int
        The round after which the model is current; 0 is the initial model.
    undone : bool
        Whether the round was later undone by a rollback or a resumption.
    final : bool
        Whether a run ended with it.
    """

    line: int
    round: int
    undone: bool
    final: bool = False


def read_model(path: Path | str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a model file by name, in the file's order, which changes the hash.

    Parameters
    ----------
    path : Path
        An .npz file of named arrays, as the run config's ``save-model`` writes it; a .pt or .pth file of a state_dict;
        or the folder of a checkpoint, or its arrays.npz. Nothing is unpickled but tensors and their names.

    Raises
    ------
    AuditError
        If it is none of these.
    """
    path = Path(path)
    folder = path.parent if path.name == ARRAYS else path
    number = folder.name.removeprefix("round-").partition(".")[0]
    try:
        if folder.is_dir() and number.isascii() and number.isdecimal():
            return CheckpointStore.read(folder).model
        if path.suffix in (".pt", ".pth"):
            return _state_dict(_loaded(path))
        return read_arrays(path)
    except CheckpointError as error:
        raise AuditError(f"hash: {error}") from None
    except OSError as error:
        raise AuditError(f"hash: {path} cannot be read: {error.strerror or error}; name {_READABLE}") from None
    except (ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise AuditError(f"hash: {path} holds no model ({error!s:.200}); name {_READABLE}") from None


def _loaded(path: Path) -> object:
    """Return what a .pt file holds, if that is tensors and their names."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # torch's own sentence advises to run the code in the file
            raise ValueError(_NO_STATE) from None


def _state_dict(held: object) -> dict[str, NDArray[Any]]:
    if not isinstance(held, Mapping) or not all(isinstance(each, torch.Tensor) for each in held.values()):
        raise ValueError(_NO_STATE)
    return {str(name): np.asarray(tensor.detach().numpy()) for name, tensor in held.items()}


def places_of(records: Sequence[Record], sha256: str) -> Iterator[Place]:
    """Yield the places in a log where the model with this hash is current, in the log's order.

    Parameters
    ----------
    records : sequence of Record
        The records of the log.
    sha256 : str
        The model's hash, from `model_sha256`.
    """
    count = {record.sequence for record in counting(records)}
    begun = False
    for record in records:
        event, undone = record.event, record.sequence not in count
        if isinstance(event, RoundConfigured) and not begun:
            begun = True
            if event.model == sha256:
                yield Place(record.line, event.round - 1, undone)
        elif isinstance(event, Aggregated) and event.model_after == sha256:
            yield Place(record.line, event.round, undone)
        elif isinstance(event, RunEnded) and event.model == sha256:
            yield Place(record.line, event.round, undone, final=True)
