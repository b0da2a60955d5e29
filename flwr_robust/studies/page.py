"""Render the reproduction of a paper as one Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from flwr_robust.files import write_atomically
from flwr_robust.studies.paper import Paper
from flwr_robust.studies.report import Rendered, computed
from flwr_robust.studies.sheets import markdown, sheets
from flwr_robust.studies.study import Study

__all__ = ["write_page"]

_PAGE = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("paper.md.j2").read_text(encoding="utf-8")
)
_SETTING = ("task", "model", "clients", "rounds", "message", "batch-size")


def write_page(paper: Paper, rendered: Mapping[str, Rendered], folder: Path, command: str, changed: str = "") -> Path:
    """Write ``<paper>.md``, which links to the plots.

    Parameters
    ----------
    paper : Paper
        The paper.
    rendered : mapping of str to Rendered
        The rendered studies with results, by name, in folders below that of the page.
    folder : Path
        The folder of the page.
    command : str
        The command that gives this page.
    changed : str
        The settings that differ from the studies; empty if none.

    Returns
    -------
    Path
        The page.
    """
    parts = [_part(study, rendered.get(study.name), folder) for study in paper.studies]
    text = _PAGE.render(
        paper=paper,
        parts=parts,
        seconds=computed([d for part in parts for d in part["documents"]]),
        hours=_hours,
        cell=_cell,
        table=markdown,
        command=command,
        changed=changed,
    )
    path = folder / f"{paper.name}.md"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _part(study: Study, rendered: Rendered | None, folder: Path) -> dict[str, Any]:
    if rendered is None:
        return {"study": study, "documents": (), "seconds": 0.0}
    own = rendered.study
    return {
        "study": study,
        "documents": rendered.documents,
        "seconds": computed(rendered.documents),
        "setting": _setting(rendered.documents),
        "verdicts": rendered.verdicts,
        "sections": [
            {
                "sheets": [*([rendered.choice] if rendered.choice and not number else []), *sheets(own, section)],
                "images": [{"alt": image.alt, "path": image.path.relative_to(folder).as_posix()} for image in images],
            }
            for number, (section, images) in enumerate(rendered.sections)
        ],
    }


def _setting(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the common settings of the results, and the number of repetitions."""
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
