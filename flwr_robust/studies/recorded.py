"""Recorded results, which come with the project: one small JSON file per study, one line per cell (run).

A recorded cell holds a result without meaningless digits. Refused replies are counted, not listed. The figures of a
curve are stored column by column.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr_robust.errors import FlwrRobustError
from flwr_robust.files import write_atomically
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.places import shipped
from flwr_robust.studies.study import Cell, Study
from flwr_robust.tasks.metrics import best_of

__all__ = ["RECORDED", "read_recorded", "record"]

RECORDED = shipped("recorded")
"""The folder of recorded results."""

_KEPT = (
    "labels",
    "config_digest",
    "declared_f",
    "real_f",
    "engine",
    "fallback",
    "model_sha256",
    "outcomes",
    "finished",
)
_DIGITS = 6  # of figures


def record(study: Study, documents: Sequence[Mapping[str, Any]], folder: Path = RECORDED) -> Path:
    """Write a study's results to its file of recorded results, and keep those of its other cells.

    Results of cells that the study no longer has are removed.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of finished cells.
    folder : Path
        The folder of the file.

    Returns
    -------
    Path
        The file.
    """
    path = folder / f"{study.name}.json"
    found = {str(d["config_digest"]): d for d in [*read_recorded(study, folder), *documents]}
    ordered = [found[digest] for digest in dict.fromkeys(c.digest for c in study.cells) if digest in found]
    places: list[Any] = []
    lines = []
    for document in ordered:
        place = {"machine": document["machine"], "versions": document["versions"]}
        if place not in places:
            places.append(place)
        lines.append(json.dumps(_packed(document, places.index(place))))
    head = json.dumps({"schema": 1, "study": study.name, "circumstances": places})
    text = f"{head[:-1]},\n" + '"cells": [\n' + ",\n".join(lines) + "\n]}\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def read_recorded(study: Study, folder: Path = RECORDED) -> list[dict[str, Any]]:
    """Return the recorded results of a study's cells in their order, in the form of `read_results`.

    Raises
    ------
    FlwrRobustError
        If the file cannot be read, or a cell's digest has another configuration in it.
    """
    path = folder / f"{study.name}.json"
    if not path.is_file():
        return []
    try:
        file = json.loads(path.read_text())
        kept = {line["config_digest"]: line for line in file["cells"]}
        places = file["circumstances"]
        return [_unpacked(cell, kept[cell.digest], places) for cell in study.cells if cell.digest in kept]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FlwrRobustError(f"recorded results {path} cannot be read ({error!r}); delete the file") from None


def _packed(document: Mapping[str, Any], place: int) -> dict[str, Any]:
    defaults = RunConfig().to_mapping()
    curve = document["curve"]
    names = list(dict.fromkeys(name for point in curve for name in point))
    return {
        **{key: document[key] for key in _KEPT if key in document},
        "set": {key: value for key, value in document["config"].items() if value != defaults.get(key)},
        "curve": {name: [_short(point.get(name)) for point in curve] for name in names},
        "mean_weights": [_short(weight) for weight in document["mean_weights"]],
        "attackers_weight": _short(document["attackers_weight"]),
        "refusals": document.get("refusals") or dict(Counter(r["reason"] for r in document["refused"])),
        "seconds": round(document["seconds"], 2),
        "circumstances": place,
    }


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _unpacked(cell: Cell, line: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if key := cell.differs({**RunConfig().to_mapping(), **line["set"]}):
        raise ValueError(f"{cell.name} is of another {key}")
    columns = line["curve"]
    curve = [
        {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in zip(*columns.values(), strict=True)
    ]
    return {
        **{
            key: line[key] for key in (*_KEPT, "mean_weights", "attackers_weight", "refusals", "seconds") if key in line
        },
        "schema": 1,
        "labels": dict(cell.labels),
        "config": cell.config.to_mapping(),
        "final": {key: value for key, value in curve[-1].items() if key != "round"},
        **best_of(curve),
        "curve": curve,
        "refused": [],
        **places[line["circumstances"]],
    }
