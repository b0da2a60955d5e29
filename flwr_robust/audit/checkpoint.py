"""Checkpoints: the saved state of a run, one folder per round, either complete or absent.

    round-00000004/arrays.npz        every array: the model's, then those of the states
    round-00000004/checkpoint.json   round, configuration and its hash, names and types of the arrays, all other values,
                                     and the head (hash of the last line) of the audit log
    round-00000004/SHA256SUMS        hashes of the two, as ``sha256sum --check`` reads them
    aside/                           checkpoints moved by a rollback or a repeated round; nothing here is deleted

A checkpoint is written under a hidden name, synced to the disk, and renamed into place. A process that is killed before
that leaves the last checkpoint intact. An old checkpoint is deleted after the audit log says so; it is renamed before.
Nothing is unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_robust.audit.arrays import read_arrays
from flwr_robust.audit.digest import config_sha256
from flwr_robust.errors import AuditError, CheckpointError, ConfigurationError, check_integer
from flwr_robust.files import file_sha256, file_size, make_folder, move_aside, open_plain, read_plain, sync_folder

__all__ = ["ARRAYS", "CheckpointStore", "Snapshot", "differences"]

VERSION = 1
ARRAYS = "arrays.npz"
"""The file of a checkpoint's arrays; those of the model come first."""
_VALUES, _SUMS = "checkpoint.json", "SHA256SUMS"
_MOST_VALUES = 1 << 25  # bytes of checkpoint.json; JSON takes up to twenty times as many in memory
_MOST_SUMS = 1 << 10
_HEAD = re.compile(rb'"log_head": "([0-9a-f]{64})"')  # among the first bytes of checkpoint.json
# The errors from reading a file that has the right hash but was not written by this module.
_FORGED = (
    *(ValueError, KeyError, TypeError, AttributeError, RuntimeError, StopIteration, RecursionError),
    *(OSError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile),
)
_FOLDER = re.compile(r"round-([0-9]{8,})")
_LEFTOVER = re.compile(r"\.round-[0-9]{8,}\.(part|deleted)")


@dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to continue as if it had never stopped.

    Attributes
    ----------
    round : int
        The last finished round.
    config : mapping
        The run's configuration, as scalars.
    model : mapping of str to array
        The global model after that round, of any numpy type except objects.
    states : mapping of str to (mapping of str to Tensor)
        Named states, such as ``rule``, ``attack``, ``messages``; any torch type.
    partitions : mapping of int to int
        The partition (numbered share of the data) of each node.
    values : mapping of str
        Other JSON values, such as ``history`` and ``sampling``; tuples become lists.
    head : str
        The audit log's head at the time of the checkpoint; an argument of `CheckpointStore.save`.
    """

    round: int
    config: Mapping[str, Any]
    model: Mapping[str, NDArray[Any]]
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    partitions: Mapping[int, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""


class CheckpointStore:
    """The checkpoints of one run. Only the process that has the run's audit log open may write.

    Parameters
    ----------
    folder : Path
        The folder of the checkpoints; created if it does not exist.
    keep : int, optional
        How many of the latest checkpoints to keep; None keeps all.
    sync : bool
        Whether `save` waits for the disk, so that a power failure cannot damage the checkpoint.
    """

    def __init__(self, folder: Path | str, *, keep: int | None = 3, sync: bool = True) -> None:
        if keep is not None:
            check_integer("checkpoints", "keep", keep, 1)
        self.folder = Path(folder)
        self._keep, self._sync = keep, sync

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, in ascending order; this does not check the checkpoints."""
        found = [_FOLDER.fullmatch(path.name) for path in self.folder.glob("round-*") if not path.is_symlink()]
        return sorted(int(match[1]) for match in found if match)

    def path(self, server_round: int) -> Path:
        """Return the folder of a round's checkpoint."""
        return self.folder / f"round-{server_round:08}"

    # -- writing ----------------------------------------------------------------------------------

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint; `surplus` then names those that are no longer kept.

        Returns
        -------
        Path
            The folder of the checkpoint.

        Raises
        ------
        ConfigurationError
            If the snapshot holds a value that cannot be written.
        AuditError
            If a symbolic link is in the place of a file or folder.
        """
        check_integer("checkpoint", "round", snapshot.round, 0)
        arrays, document = _pack(snapshot)
        target = self.path(snapshot.round)
        part = self.folder / f".{target.name}.part"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._make(self.folder)
        _remove(part)
        part.mkdir()
        with (part / ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        (part / _VALUES).write_bytes(document)
        sums = "".join(f"{file_sha256(part / name)}  {name}\n" for name in (ARRAYS, _VALUES))
        (part / _SUMS).write_text(sums)
        if self._sync:
            for name in (ARRAYS, _VALUES, _SUMS):
                with (part / name).open("rb+") as file:  # Windows syncs only files that are open for writing
                    os.fsync(file.fileno())
            sync_folder(part)
        if os.path.lexists(target):
            self.put_aside([target])
        part.rename(target)
        if self._sync:
            sync_folder(self.folder)
        return target

    def surplus(self) -> list[int]:
        """Return the rounds whose checkpoints are no longer kept."""
        return self.rounds()[: -self._keep] if self._keep else []

    def delete(self, rounds: Iterable[int]) -> None:
        """Delete the checkpoints of these rounds; the log should say so before."""
        for server_round in rounds:
            doomed = self.folder / f".{self.path(server_round).name}.deleted"
            _remove(doomed)
            self.path(server_round).rename(doomed)
            _remove(doomed)

    def clean(self) -> None:
        """Delete the incomplete files of a killed process."""
        for path in self.folder.glob(".round-*"):
            if _LEFTOVER.fullmatch(path.name):
                _remove(path)

    def later(self, server_round: int) -> list[Path]:
        """Return the checkpoints of later rounds, the latest first."""
        return [self.path(later) for later in reversed(self.rounds()) if later > server_round]

    def put_aside(self, paths: Sequence[Path]) -> None:
        """Move checkpoints aside; pass the latest first, so that a kill in between leaves no gap."""
        for path in paths:
            self._make(self.folder / "aside")
            move_aside(path, self.folder / "aside")

    def _make(self, folder: Path) -> None:
        """Make a folder, if it is missing, and raise if a symbolic link is in its place."""
        try:
            make_folder(folder, self.folder.parent)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EEXIST, errno.ENOTDIR):
                raise
            raise AuditError(f"checkpoints: {error.filename} cannot be used: {error.strerror}; remove it") from None

    # -- reading ----------------------------------------------------------------------------------

    def damage(self, server_round: int) -> str | None:
        """Return what is wrong with a round's checkpoint, or None if it is intact."""
        return self.damage_of(self.path(server_round))

    @staticmethod
    def damage_of(path: Path) -> str | None:
        """Return what is wrong with the checkpoint in a folder, or None if it is intact."""
        try:
            lines = read_plain(path / _SUMS, _MOST_SUMS).decode().splitlines()
            sums = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
            if set(sums) != {ARRAYS, _VALUES}:
                return f"{_SUMS} does not list {ARRAYS} and {_VALUES}"
            odd = [name for name, expected in sums.items() if file_sha256(path / name) != expected]
        except (OSError, ValueError) as error:
            return f"it cannot be read ({error})"
        return f"the SHA-256 of {', '.join(odd)} is another one than when it was written" if odd else None

    def latest_intact(self, before: int | None = None) -> int | None:
        """Return the latest round before ``before`` with an intact checkpoint, or None."""
        rounds = [each for each in reversed(self.rounds()) if before is None or each < before]
        return next((each for each in rounds if self.damage(each) is None), None)

    def size(self, server_round: int) -> int:
        """Return the size of a checkpoint's files together, in bytes."""
        return sum(file_size(self.path(server_round) / name) for name in (ARRAYS, _VALUES, _SUMS))

    def sha256(self, server_round: int) -> str:
        """Return the hash of a checkpoint's SHA256SUMS, which covers all its files."""
        return self.sha256_of(self.path(server_round))

    @staticmethod
    def sha256_of(path: Path) -> str:
        """Return the hash of the SHA256SUMS in a checkpoint's folder."""
        return hashlib.sha256(read_plain(path / _SUMS, _MOST_SUMS)).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """Read the checkpoint in a folder, whose name is its round's.

        Raises
        ------
        CheckpointError
            If it is damaged, or another round's.
        """
        if (damage := cls.damage_of(path)) is not None:
            raise CheckpointError(damage)
        try:
            snapshot = _unpack(path)
            if (
                f"round-{snapshot.round:08}" != path.name.partition(".")[0]
            ):  # else another round's hash would confirm it
                raise ValueError(f"it says that it is of round {snapshot.round}")
        except _FORGED as error:
            raise CheckpointError(f"it does not hold what it must ({error})") from None
        return snapshot

    @staticmethod
    def head(path: Path) -> str | None:
        """Return the log's head that the checkpoint in a folder names; None if it cannot be read."""
        try:
            with open_plain(path / _VALUES) as file:
                found = _HEAD.search(file.read(_MOST_SUMS))
        except OSError:
            return None
        return found and found[1].decode()

    def load(
        self,
        server_round: int | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = (),
    ) -> Snapshot:
        """Read a checkpoint.

        Parameters
        ----------
        server_round : int, optional
            The round of the checkpoint; the latest when not given.
        config : mapping, optional
            The configuration with which the checkpoint must have been made.
        may_differ : collection of str
            Keys of the configuration that are not compared, such as ``rounds``.

        Raises
        ------
        CheckpointError
            If there is no such checkpoint, it is damaged, or it belongs to another configuration. If it is damaged,
            ``offered`` is the latest intact round before it. For another configuration, the message names the differing
            keys.
        """
        rounds = self.rounds()
        wanted = (rounds[-1] if rounds else None) if server_round is None else server_round
        if wanted is None or wanted not in rounds:
            there = ", ".join(map(str, rounds)) or "none"
            asked = "" if wanted is None else f" of round {wanted}"
            raise CheckpointError(f"checkpoint: there is none{asked} in {self.folder}; rounds there: {there}")
        try:
            snapshot = self.read(self.path(wanted))
        except CheckpointError as error:
            offered = self.latest_intact(before=wanted)
            advice = "no earlier one is intact" if offered is None else f"that of round {offered} is intact, so use it"
            raise CheckpointError(
                f"checkpoint: that of round {wanted} is damaged: {error}; {advice}", offered
            ) from None
        if config is not None and (odd := differences(snapshot.config, config, may_differ)):
            raise CheckpointError(
                f"checkpoint: that of round {wanted} was made with another configuration: {'; '.join(odd)}; use the "
                f"same one, or another folder"
            )
        return snapshot


def _remove(path: Path) -> None:
    """Delete a folder with its content, if there is one."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise AuditError(f"checkpoints: {path} is no folder that this run has made; remove it")
    if path.exists():
        shutil.rmtree(path)


def differences(there: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str]) -> list[str]:
    """Return a phrase for every key in which two configurations differ."""
    now = json.loads(json.dumps(dict(now)))
    return [
        f"{key} was {_shown(there, key)} and is {_shown(now, key)}"
        for key in sorted({*there, *now} - set(may_differ))
        if _shown(there, key) != _shown(now, key)
    ]


def _shown(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else "absent"


def _pack(snapshot: Snapshot) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Return a snapshot as numbered arrays and one JSON document, which names them."""
    arrays: dict[str, NDArray[Any]] = {}
    states: dict[str, dict[str, Any]] = {}
    for name, values in snapshot.model.items():
        if values.dtype.hasobject:
            raise ConfigurationError(f"checkpoint: array '{name}' must not hold Python objects; got {values.dtype}")
        arrays[str(len(arrays))] = values
    for name, state in snapshot.states.items():
        states[name] = {}
        for key, tensor in state.items():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            try:
                values = flat.numpy()
            except TypeError:  # types such as bfloat16, which numpy does not have
                values = flat.view(torch.uint8).numpy()
            states[name][key] = {"type": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            arrays[str(len(arrays))] = values
    document = {
        "version": VERSION,
        "round": snapshot.round,
        "log_head": snapshot.head,  # among the first bytes
        "config": dict(snapshot.config),
        "config_sha256": config_sha256(snapshot.config),
        "model": list(snapshot.model),
        "states": states,
        "partitions": [[node, partition] for node, partition in snapshot.partitions.items()],
        "values": dict(snapshot.values),
    }
    if odd := _unwritable(document, "checkpoint"):
        raise ConfigurationError(f"{odd}; a checkpoint's values are numbers, text, booleans, None, lists and mappings")
    text = json.dumps(document, indent=1).encode()
    if len(text) > _MOST_VALUES:
        raise ConfigurationError(
            f"checkpoint: its values must take at most {_MOST_VALUES} bytes as JSON; got {len(text)}: keep large "
            f"states as arrays or tensors"
        )
    return arrays, text


def _unwritable(value: Any, where: str) -> str | None:
    """Return which part of a value JSON would not restore."""
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"{where}: keys must be text; got {odd[0]!r}"
        return next((found for key, each in value.items() if (found := _unwritable(each, f"{where}.{key}"))), None)
    if isinstance(value, list | tuple):
        return next((found for each in value if (found := _unwritable(each, where))), None)
    if value is None or isinstance(value, str | bool | int | float):
        return None
    return f"{where}: {type(value).__name__} cannot be written"


_TYPES = {"round": int, "config": dict, "log_head": str, "model": list, "states": dict, "values": dict}


def _unpack(path: Path) -> Snapshot:
    document = json.loads(read_plain(path / _VALUES, _MOST_VALUES))
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}; this release reads {VERSION}")
    for key, kind in _TYPES.items():
        if not isinstance(document[key], kind):
            raise ValueError(f"its {key} is no {kind.__name__}")
    if not all(isinstance(name, str) for name in document["model"]):
        raise ValueError("its model has names that are no text")
    held = read_arrays(path / ARRAYS)
    arrays = iter([held[str(index)] for index in range(len(held))])
    model = {name: next(arrays) for name in document["model"]}
    states = {
        name: {key: _tensor(next(arrays), described) for key, described in state.items()}
        for name, state in document["states"].items()
    }
    return Snapshot(
        document["round"],
        document["config"],
        model,
        states,
        dict(document["partitions"]),
        document["values"],
        document["log_head"],
    )


def _tensor(values: NDArray[Any], described: Mapping[str, Any]) -> Tensor:
    flat, dtype = torch.from_numpy(values), getattr(torch, described["type"])
    return (flat if flat.dtype == dtype else flat.view(dtype)).reshape(described["shape"])
