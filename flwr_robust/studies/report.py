"""Render a study's results: plots as PNG files, and one HTML file with tables, plots and sentences."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jinja2

from flwr_robust.files import write_atomically
from flwr_robust.printing import html_block, html_image, html_table
from flwr_robust.studies.canvas import PAGE
from flwr_robust.studies.choose import Chosen, choose
from flwr_robust.studies.claims import Verdict, judge
from flwr_robust.studies.failures import Failures
from flwr_robust.studies.groups import gather, with_worst
from flwr_robust.studies.plots import as_file, draw
from flwr_robust.studies.sheets import Section, Sheet, conclude, sheets, summarise
from flwr_robust.studies.study import Study
from flwr_robust.studies.words import called, unit, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Image", "Rendered", "computed", "drawn", "render", "write_report"]

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Image:
    """The file of a plot.

    Attributes
    ----------
    path : Path
        The PNG file.
    alt : str
        The content of the table.
    """

    path: Path
    alt: str

    @property
    def data(self) -> str:
        """The bytes of the file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True, repr=False)
class Rendered:
    """The rendered results of a study, for the terminal and all pages.

    Attributes
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its finished cells.
    folder : Path
        The folder of the plots.
    sections : tuple of (Section, tuple of Image)
        The tables with their plots.
    verdicts : tuple of Verdict
        The verdicts on the study's claims.
    chosen : Chosen
        The choice among candidates, and the whole study; with [select] all above is of the chosen candidates alone.
    failures : mapping of tuple of str to str
        Why cells failed, by their labels in the order of the whole study's axes.
    """

    study: Study
    documents: Sequence[Mapping[str, Any]]
    folder: Path
    sections: tuple[tuple[Section, tuple[Image, ...]], ...]
    verdicts: tuple[Verdict, ...]
    chosen: Chosen
    failures: Failures = field(default_factory=dict)

    @property
    def choice(self) -> Sheet | None:
        """The table of the chosen candidates; None without [select]."""
        lines = self.chosen.rows
        if not lines:
            return None
        rows = tuple(tuple(line.values()) for line in lines)
        return Sheet(f"Chosen hyper-parameters. {self.chosen.sentence}", tuple(lines[0]), rows, kind="choice")

    def __repr__(self) -> str:
        """Return one line with the study and the numbers of its cells."""
        return f"Rendered({self.study.name}: {self._counts()})"

    def _counts(self) -> str:
        return f"{self.chosen.finished} of {len(self.chosen.whole.cells)} cells finished, {len(self.failures)} failed"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the tables of each section, its plots, and why cells failed."""
        parts = [] if self.choice is None else [_shown(self.choice)]
        for section, images in self.sections:
            parts += map(_shown, sheets(self.study, section))
            parts += [html_image(image.data, image.alt) for image in images]
        if self.failures:
            reasons = [(", ".join(labels), reason) for labels, reason in self.failures.items()]
            parts.append(html_table(["failed cell", "reason"], reasons))
        return html_block(self.study.title, *parts, line=self._counts())


def _shown(sheet: Sheet) -> str:
    """Return a table for a notebook."""
    strong = {(row, column + 1) for row, column in sheet.best}
    return html_table(sheet.columns, sheet.rows, caption=sheet.caption, strong=strong)


def render(
    study: Study,
    documents: Sequence[Mapping[str, Any]],
    folder: Path,
    failures: Failures | None = None,
) -> Rendered:
    """Make tables, write plots as PNG files, and judge the study's claims.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its finished cells; at least one.
    folder : Path
        The folder of the files; created if missing.
    failures : mapping of tuple of str to str, optional
        Why cells failed, as `read_failures` returns it.

    Raises
    ------
    ConfigurationError
        If the study has [select], and no candidate has all its results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose(study, documents, failures)
    study, documents = chosen.study, chosen.documents
    sections = []
    for number, section in enumerate(summarise(study, documents, chosen.failures)):
        images = []
        for name, kind, figure in drawn(study, documents, number, section):
            image = Image(folder / f"{name}.png", f"{kind} {section.title}".strip())
            write_atomically(image.path, partial(_put, as_file(figure)))
            images.append(image)
        sections.append((section, tuple(images)))
    shown = {image.path for _, images in sections for image in images}
    for path in folder.glob("*.png"):  # plots of an earlier version of the study
        if path not in shown:
            path.unlink()
    verdicts = judge(study, gather(study, with_worst(study, documents)))
    return Rendered(study, documents, folder, tuple(sections), tuple(verdicts), chosen, failures or {})


def drawn(
    study: Study, documents: Sequence[Mapping[str, Any]], number: int, section: Section, width: float = PAGE
) -> Iterator[tuple[str, str, Figure]]:
    """Yield the plots of a numbered section: the name of each file without suffix, the kind, and the figure."""
    own = [d for d in with_worst(study, documents) if section.labels.items() <= d["labels"].items()]
    for kind, figure in draw(study, section, own, width):
        yield f"{kind}{f'-{number}' if number else ''}", kind, figure


def write_report(rendered: Rendered, command: str, notes: Sequence[str] = ()) -> Path:
    """Write report.html beside the plots.

    Parameters
    ----------
    rendered : Rendered
        The content of the table.
    command : str
        The command that gives these results.
    notes : sequence of str
        The project's notes on its recorded results.

    Returns
    -------
    Path
        The HTML file.
    """
    study, documents = rendered.study, rendered.documents
    sections = []
    for section, images in rendered.sections:
        bought = _bought(study, section, documents)
        sections.append(
            {
                "title": section.title,
                "sentence": conclude(study, section),
                "sheets": [*sheets(study, section), bought],
                "images": images,
            }
        )
    measured = [study.report.metric, *study.report.tables]
    if "attack_success" not in measured and any("attack_success" in d["final"] for d in documents):
        measured.append("attack_success")
    last = max(documents, key=lambda d: str(d["finished"]))
    page = _PAGE.render(
        study=study,
        verdicts=rendered.verdicts,
        notes=notes,
        choice=rendered.choice,
        sections=sections,
        failures=[(", ".join(labels), reason) for labels, reason in rendered.failures.items()],
        command=command,
        finished=rendered.chosen.finished,
        total=len(rendered.chosen.whole.cells),
        seconds=f"{computed(documents):,.0f}",
        machine=last["machine"],
        versions=last["versions"],
        cells=[_cell(document, measured) for document in documents],
        measured=[_heading(metric) for metric in measured],
    )
    path = rendered.folder / "report.html"
    write_atomically(path, partial(_put, page.encode()))
    return path


def computed(documents: Sequence[Mapping[str, Any]]) -> float:
    """Return the computing time of results in seconds; equal configurations count once."""
    return sum({str(d["config_digest"]): float(d["seconds"]) for d in documents}.values())


def _heading(metric: str) -> str:
    return f"final {called(metric)}{', %' if unit(metric) else ''}"


def _cell(document: Mapping[str, Any], measured: Sequence[str]) -> dict[str, Any]:
    """Return a cell for the page's list, with its metrics at the end of the run as texts."""
    final = document["final"]
    return {**document, "measured": [written(name, final[name]) if name in final else "-" for name in measured]}


def _fair(documents: Sequence[Mapping[str, Any]]) -> str:
    shares = {100 * d["real_f"] / d["config"]["clients"] for d in documents}
    return " or ".join(f"{share:.1f}" for share in sorted(shares))


def _bought(study: Study, section: Section, documents: Sequence[Mapping[str, Any]]) -> Sheet:
    """Return the table of the weights that the attackers had."""
    rows, columns = study.shown(study.rows), study.shown(study.columns)
    caption = (
        "Share of the model that the attackers bought: the weight the rule gave their messages, in percent, mean over "
        f"the rounds of the attack and the repetitions. With equal weights they would have {_fair(documents)} %"
    )

    def cell(row: str, column: str) -> str:
        group = section.groups.get((row, column))
        return "-" if group is None else f"{100 * statistics.fmean(group.weights):.1f}"

    return Sheet(
        f"{caption} ({section.title})" if section.title else caption,
        (study.rows, *columns),
        tuple((row, *(cell(row, column) for column in columns)) for row in rows),
    )


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
