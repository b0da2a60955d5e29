"""Files that are either complete or absent, that one process at a time writes, and hashes of their content.

Differences between operating systems are handled here. POSIX: flock, and folders are synced. Windows: a byte far
behind the end is locked, because others cannot read locked bytes; folders cannot be opened, and need no syncing.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "file_sha256",
    "file_size",
    "links_in",
    "lock",
    "make_folder",
    "move_aside",
    "open_plain",
    "open_to_append",
    "read_plain",
    "sync_folder",
    "write_atomically",
]

_SYSTEM_LOCK = next((name for name in ("fcntl", "msvcrt") if importlib.util.find_spec(name)), "")
_LOCKED_BYTE = 2**31 - 2  # behind the end of any log; as far as Windows counts here


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], *, sync: bool = True, mode: int = 0o644) -> None:
    """Write a file under a temporary name beside its place, then rename it.

    Parameters
    ----------
    path : Path
        Where the file goes; an older one is replaced in one step.
    write : callable (binary file)
        Writes the content.
    sync : bool
        Wait until the content is on the disk. If False, the file is complete after a killed process, but perhaps not
        after a power failure.
    mode : int
        The file's permissions; until it is complete, only its owner may read it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def move_aside(path: Path, aside: Path) -> None:
    """Move a file or folder into another folder under the first number that is free.

    ``5.npz`` becomes ``5.1.npz``, then ``5.2.npz``.
    """
    index = 1
    while os.path.lexists(target := aside / f"{path.stem}.{index}{path.suffix}"):
        index += 1
    path.rename(target)


def open_to_append(path: Path) -> int:
    """Open a file to read it and to append raw bytes; make it if it does not exist.

    Returns
    -------
    int
        The descriptor, for the caller to close.

    Raises
    ------
    OSError
        Among others if it is a symbolic link.
    """
    return _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file to read it; symbolic links are not followed.

    Raises
    ------
    OSError
        Among others if it is a symbolic link, a folder, a pipe or a device.
    """
    descriptor = _open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _open(path: Path, flags: int) -> int:
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0), 0o644)


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a regular file; symbolic links are not followed.

    Parameters
    ----------
    path : Path
        The file.
    most : int
        The largest length in bytes.

    Raises
    ------
    OSError
        If it cannot be opened as `open_plain` does, or is longer.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it is longer than {most} bytes", str(path))
        return file.read(size)


def file_size(path: Path) -> int:
    """Return the size of a regular file in bytes, or raise as `open_plain` does."""
    with open_plain(path) as file:
        return os.fstat(file.fileno()).st_size


def links_in(path: Path) -> Iterator[Path]:
    """Yield a path if it is a symbolic link, and otherwise the links in it and below, without following any."""
    pending = [path]
    while pending:
        path = pending.pop()
        if path.is_symlink():
            yield path
        elif path.is_dir():
            pending += sorted(path.iterdir(), reverse=True)


def make_folder(path: Path, root: Path) -> None:
    """Make a folder below ``root``, with those between, if they are missing.

    Raises
    ------
    OSError
        Among others if one of them is a symbolic link.
    """
    for each in [*(parent for parent in reversed(path.parents) if root in parent.parents), path]:
        if each.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(each))
        each.mkdir(exist_ok=True)


def lock(descriptor: int) -> None:
    """Lock an open file for this process alone, until it is closed or the process ends in any way.

    Raises
    ------
    OSError
        If another process has locked it.
    """
    # Modules of one system each; looked up by name, so that types can be checked on the other.
    module: Any = importlib.import_module(_SYSTEM_LOCK)
    if _SYSTEM_LOCK == "fcntl":
        module.flock(descriptor, module.LOCK_EX | module.LOCK_NB)
        return
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        module.locking(descriptor, module.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, at, os.SEEK_SET)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries, such as a file just renamed into it, are on the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal, or raise as `open_plain` does."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
