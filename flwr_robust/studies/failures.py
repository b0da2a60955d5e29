"""Failed cells: each leaves a small JSON file beside the results, until a later run of the cell succeeds.

The file ``<cell name>.failed.json`` holds the cell's labels and configuration, and the class and the sentence of the
error. It also says when and where the cell was run. It is no result, and no reader of results takes it for one.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr_robust.errors import FlwrRobustError
from flwr_robust.files import write_atomically
from flwr_robust.studies.study import Cell, Study

__all__ = [
    "FAILED",
    "Failures",
    "cells_in_words",
    "failure_path",
    "grouped",
    "is_failure",
    "is_open_failure",
    "read_failures",
    "reason_of",
    "write_failure",
]

FAILED = ".failed.json"
"""The end of the name of a failed cell's file."""

Failures = Mapping[tuple[str, ...], str]
"""Why cells failed, by their labels in the order of the study's axes."""

_LISTED = 4  # cells that a sentence lists one by one


def failure_path(results: Path, cell: Cell) -> Path:
    """Return the place of the file of a failed cell in a folder of results."""
    return results / f"{cell.name}{FAILED}"


def is_failure(path: Path) -> bool:
    """Say whether a path is that of a failed cell, and so of no result."""
    return path.name.endswith(FAILED)


def is_open_failure(path: Path) -> bool:
    """Say whether a path is that of a failed cell that has no result yet."""
    return is_failure(path) and not path.with_name(f"{path.name.removesuffix(FAILED)}.json").is_file()


def reason_of(error: BaseException) -> str:
    """Return the class and the sentence of an error, as tables show them.

    Examples
    --------
    >>> reason_of(RuntimeError("out of luck")), reason_of(MemoryError())
    ('RuntimeError: out of luck', 'MemoryError')
    """
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def write_failure(
    results: Path, study: Study, cell: Cell, error: BaseException, circumstances: Mapping[str, Any]
) -> None:
    """Write the file of a failed cell; an older one is replaced.

    Parameters
    ----------
    results : Path
        The folder of the study's results.
    study : Study
        The study.
    cell : Cell
        The cell.
    error : BaseException
        What the run of the cell raised.
    circumstances : mapping
        The time, the machine and the versions of packages.
    """
    document = {
        "schema": 1,
        "study": study.name,
        "labels": dict(cell.labels),
        "config": cell.config.to_mapping(),
        "config_digest": cell.digest,
        "error": type(error).__name__,
        "sentence": str(error),
        "failed": reason_of(error),
        **circumstances,
    }
    text = json.dumps(document, indent=1).encode()
    write_atomically(failure_path(results, cell), lambda file: file.write(text))


def read_failures(study: Study, results: Path) -> dict[tuple[str, ...], str]:
    """Return why cells of a study failed, for those that have no result.

    Parameters
    ----------
    study : Study
        The study.
    results : Path
        The folder of its results; it need not exist.

    Returns
    -------
    dict of tuple of str to str
        The class and the sentence of each error. A key holds the cell's labels in the order of ``study.axes``.

    Raises
    ------
    FlwrRobustError
        If the file of a failed cell cannot be read; the message names the file.
    """
    found = {}
    for cell in study.cells:
        path = failure_path(results, cell)
        if not path.is_file() or not is_open_failure(path):
            continue
        try:
            found[tuple(cell.labels[axis] for axis in study.axes)] = str(json.loads(path.read_text())["failed"])
        except FileNotFoundError:  # another process has just run the cell
            continue
        except (ValueError, OSError, TypeError, KeyError):
            raise FlwrRobustError(f"failed cell {path} cannot be read; delete it and run the study again") from None
    return found


def grouped(failures: Failures) -> dict[str, list[tuple[str, ...]]]:
    """Return the labels of the failed cells by their reason, the most frequent reason first."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for labels, reason in failures.items():
        found.setdefault(reason, []).append(labels)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


def cells_in_words(axes: Mapping[str, Sequence[str]], places: Iterable[tuple[str, ...]]) -> str:
    """Describe cells by their labels: as a product where they are one, else one by one. Axes of one label are left out.

    Parameters
    ----------
    axes : mapping of str to sequence of str
        The labels of each axis.
    places : iterable of tuple of str
        The labels of at least one cell, in the order of the axes.

    Examples
    --------
    >>> axes = {"defence": ["mean()", "krum(f=1)"], "seed": ["0", "1"]}
    >>> cells_in_words(axes, [("krum(f=1)", "0"), ("krum(f=1)", "1")])
    'defence krum(f=1), every seed'
    >>> cells_in_words(axes, [("krum(f=1)", "0"), ("mean()", "1")])
    'defence krum(f=1), seed 0; defence mean(), seed 1'
    """
    cells = list(dict.fromkeys(places))
    chosen = [number for number, labels in enumerate(axes.values()) if len(labels) > 1] or list(range(len(axes)))
    axes = {axis: labels for number, (axis, labels) in enumerate(axes.items()) if number in chosen}
    cells = [tuple(labels[number] for number in chosen) for labels in cells]
    along = [list(dict.fromkeys(labels)) for labels in zip(*cells, strict=True)]
    if math.prod(map(len, along)) == len(cells):
        return ", ".join(
            f"every {axis}" if len(own) == len(every) > 1 else f"{axis} {' or '.join(own)}"
            for (axis, every), own in zip(axes.items(), along, strict=True)
        )
    listed = [
        ", ".join(f"{axis} {label}" for axis, label in zip(axes, labels, strict=True))
        for labels in itertools.islice(cells, _LISTED)
    ]
    return "; ".join([*listed, *([f"and {len(cells) - _LISTED} more"] if len(cells) > _LISTED else [])])
