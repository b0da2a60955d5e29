"""Where the studies, papers and recorded results lie that come with the project."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]


def shipped(name: str) -> Path:
    """Return a folder of what comes with the project.

    A wheel holds it inside the package; in a clone it is the folder of that name in ``experiments``.

    Parameters
    ----------
    name : str
        ``studies``, ``papers`` or ``recorded``.
    """
    packed = Path(__file__).resolve().parent / "shipped" / name
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "experiments" / name
