"""Render the reproduction of a paper as one Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.claims import judge
from experiments.groups import gather
from experiments.paper import Paper
from experiments.report import sheets, summarise, write_images
from experiments.study import Study
from flwr_robust.files import write_atomically

__all__ = ["write_page"]

_PAGE = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("paper.md.j2").read_text(encoding="utf-8")
)
_SETTING = ("task", "model", "clients", "rounds", "message", "batch-size")


def write_page(
    paper: Paper, documents: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, command: str, changed: str = ""
) -> Path:
    """Write ``<paper>.md``, with the plots of each study in a folder of the study's name beside it.

    Parameters
    ----------
    paper : Paper
        The paper.
    documents : mapping of str to sequence of mapping
        Results by the name of the study.
    folder : Path
        Where the page goes.
    command : str
        What the user would type to get it.
    changed : str
        What was set otherwise than the studies say; empty for nothing.

    Returns
    -------
    Path
        The page.
    """
    parts = [_part(study, documents[study.name], folder) for study in paper.studies]
    text = _PAGE.render(
        paper=paper,
        parts=parts,
        seconds=sum(part["seconds"] for part in parts),
        hours=_hours,
        cell=_cell,
        command=command,
        changed=changed,
    )
    path = folder / f"{paper.name}.md"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _part(study: Study, documents: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    sections = []
    for number, section in enumerate(summarise(study, documents)):
        images = [
            {"alt": image.alt, "path": image.path.relative_to(folder).as_posix()}
            for image in write_images(study, section, number, documents, folder / study.name)
        ]
        sections.append({"sheets": list(sheets(study, section)), "images": images})
    return {
        "study": study,
        "documents": documents,
        "seconds": sum(d["seconds"] for d in documents),
        "setting": _setting(documents),
        "verdicts": judge(study, gather(study, documents)) if documents else [],
        "sections": sections,
    }


def _setting(documents: Sequence[Mapping[str, Any]]) -> str:
    """Say what the results have in common, and how often they repeat."""
    found = []
    for key in _SETTING:
        values = sorted({str(d["config"][key]) for d in documents})
        found.append(f"{key} {', '.join(values)}")
    for name in ("declared_f", "real_f"):
        values = sorted({"none" if d[name] is None else str(d[name]) for d in documents})
        found.append(f"{name.replace('_', ' ')} {' or '.join(values)}")
    seeds = sorted({d["config"]["seed"] for d in documents})
    return ", ".join([*found, f"seeds {', '.join(map(str, seeds))}"])


def _hours(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{seconds / 3600:.1f} hours" if minutes >= 90 else f"{minutes} minute{'s' if minutes > 1 else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
