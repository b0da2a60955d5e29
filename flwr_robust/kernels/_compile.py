"""How kernels are compiled: by numba where it works, kept on disk where that is safe.

numba reads compiled code back from disk without any check, so it must lie where no other user can write. These places
are tried in turn: numba's own choice, the folder that FLWR_ROBUST_CACHE names, a private folder below the system's
temporary one. If none of them is usable, every process compiles anew. Where numba is missing, switched off
(NUMBA_DISABLE_JIT=1) or broken, `usable` is False and callers take torch's operations.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "helper", "kernel", "private", "usable"]

log = logging.getLogger("flwr_robust")

FOLDER = "FLWR_ROBUST_CACHE"
"""The environment variable that names the folder for compiled code."""


@cache
def usable() -> bool:
    """Say whether numba compiles here; if it should but does not, one warning says why."""
    try:
        if _config().DISABLE_JIT:  # asked for: nothing to warn of, and the kernels are no use as plain Python
            return False
        from flwr_robust.kernels.compiled import probe

        probe()
    except Exception as error:  # numba refuses versions of numpy, LLVM a processor, the host executable memory
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in ("numba", "llvmlite")
        why = "numba is not installed" if missing else f"numba does not compile here ({type(error).__name__}: {error})"
        hint = "install it: pip install 'flwr-robust[fast]'" if missing else "set NUMBA_DISABLE_JIT=1 to silence this"
        log.warning("%s; rules take torch's operations, which are several times slower; %s", why, hint)
        return False
    return True


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that Python calls, to run without the interpreter's lock; keep its code where that is safe.

    Parameters
    ----------
    **options
        Further options of numba's ``njit``.
    """
    from numba import njit

    config = _config()
    options = {"nogil": True, "boundscheck": False, **options}

    def decorate(function: Callable[..., Any]) -> Any:
        chosen = config.CACHE_DIR  # the operator's choice of a folder is trusted
        try:
            dispatcher = njit(cache=True, **options)(function)
            if chosen or _safe(Path(dispatcher.stats.cache_path)):
                return _forgiving(dispatcher)
        except RuntimeError:  # numba finds no folder that it can write
            pass
        folder = cache_folder()
        if folder is None:
            return njit(**options)(function)
        config.CACHE_DIR = str(folder)
        try:
            return _forgiving(njit(cache=True, **options)(function))
        except RuntimeError:
            return njit(**options)(function)
        finally:
            config.CACHE_DIR = chosen

    return decorate


def helper(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function into the kernels that call it.

    Parameters
    ----------
    **options
        Further options of numba's ``njit``.
    """
    from numba import njit

    decorate: Callable[[Callable[..., Any]], Any] = njit(inline="always", **options)
    return decorate


@cache
def cache_folder() -> Path | None:
    """Return our own folder for compiled code, made if missing; None if there is no safe one."""
    named = os.environ.get(FOLDER)
    try:
        # Resolved before it is made and looked at: a link further up must not change in between.
        above = Path(named).expanduser().absolute() if named else Path(tempfile.gettempdir())
        folder = above.parent.resolve() / above.name if named else above.resolve() / f"flwr-robust-{_user()}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not private(folder):
            log.warning("compiled code is not kept in %s: others can write there; name another in %s", folder, FOLDER)
            return None
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        if named:
            log.warning(
                "compiled code is not kept in %s=%s (%s); name a folder that can be written", FOLDER, named, error
            )
        return None
    return folder


def private(folder: Path) -> bool:
    """Say whether only this user and root can write a folder, or replace it by another.

    Parameters
    ----------
    folder : Path
        A folder, with links resolved; a link itself is not private.
    """
    if not hasattr(os, "geteuid"):  # Windows: folders of users and temporary ones are theirs alone
        return folder.is_dir() and not folder.is_symlink()
    trusted = {0, os.geteuid()}
    for place in (folder, *folder.parents):
        found = os.lstat(place)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in trusted:
            return False
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky folder such as /tmp, others can add files, but not move what is not theirs.
        if shared and (place == folder or not found.st_mode & stat.S_ISVTX):
            return False
    return True


def _safe(chosen: Path) -> bool:
    """Say whether numba's choice is safe: private, or beside the source and no more open than the source's folder."""
    here = Path(__file__).parent
    try:
        beside = chosen.resolve() == (here / "__pycache__").resolve()
        return (beside and _as_closed(chosen, here)) or private(chosen.resolve())
    except OSError:
        return False


def _as_closed(folder: Path, source: Path) -> bool:
    """Say whether nobody can write a folder who cannot write the source's; a folder that is not there yet is fine."""
    if not hasattr(os, "geteuid") or not folder.exists():
        return True
    own, other = os.stat(folder), os.stat(source)
    opened = own.st_mode & ~other.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not opened and own.st_uid in {0, other.st_uid, os.geteuid()}


def _config() -> Any:
    """Return numba's settings, a module that makes its names when it is imported."""
    import numba

    return numba.config


def _user() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "user"


class _Forgiving:
    """A dispatcher's cache whose failures (a full disk, a truncated file) only cost time."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return self._held.load_overload(*arguments)
        except Exception:
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            self._held.save_overload(*arguments)
        except Exception as error:
            log.debug("compiled code was not kept: %s", error)


def _forgiving(dispatcher: Any) -> Any:
    if (held := getattr(dispatcher, "_cache", None)) is not None:
        dispatcher._cache = _Forgiving(held)
    return dispatcher
