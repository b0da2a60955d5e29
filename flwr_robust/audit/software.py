"""Which software a run used: versions of packages, and the commit of this package's source."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["commit", "minor", "software"]

_NAME = "flwr-robust"
_PACKAGES = (_NAME, "flwr", "torch", "numpy")
_SOURCE = Path(__file__).resolve().parents[2]
_PATIENCE = 10  # seconds for git


def software() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def minor(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, for comparisons.

    Examples
    --------
    >>> minor("1.42.0"), minor("1.42rc1"), minor("2.0.dev1")
    ((1, 42), (1, 42), (2, 0))
    """
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])


def commit(source: Path = _SOURCE) -> str:
    """Return the commit of this package's source, in hexadecimal; empty if unknown.

    In a clone, git is asked. Otherwise pip may have noted the commit from which it installed the package.

    Parameters
    ----------
    source : Path
        The folder that holds the package.
    """
    if (source / ".git").exists():
        try:
            command = ["git", "-C", str(source), "rev-parse", "HEAD"]
            return subprocess.run(command, capture_output=True, check=True, text=True, timeout=_PATIENCE).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    try:
        noted = json.loads(metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    return str(noted.get("vcs_info", {}).get("commit_id", ""))
