"""The folders of the studies, papers and recorded results that come with the project."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]


def shipped(name: str) -> Path:
    """Return a folder of files that come with the project.

    In a wheel it is inside the package; in a clone it is the folder of that name in ``experiments``.

    Parameters
    ----------
    name : str
        ``studies``, ``papers`` or ``recorded``.
    """
    packed = Path(__file__).resolve().parent / "shipped" / name
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "experiments" / name
