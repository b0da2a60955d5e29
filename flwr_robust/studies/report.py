"""Render a study's results as tables for the terminal and Markdown, plots, one HTML file, and sentences."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jinja2
from rich.table import Table
from rich.text import Text

from flwr_robust.files import write_atomically
from flwr_robust.studies.claims import Verdict, judge
from flwr_robust.studies.groups import Group, gather, percent
from flwr_robust.studies.plots import as_file, draw
from flwr_robust.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Image",
    "Rendered",
    "Section",
    "Sheet",
    "computed",
    "conclude",
    "drawn",
    "render",
    "sheets",
    "summarise",
    "tables",
    "write_report",
]

_WIDE = 5  # from this number of columns, the terminal shows only means
_TERMINAL = 100  # width in characters


@dataclass(frozen=True)
class Section:
    """The table for one combination of labels on the axes that are neither rows nor columns.

    Attributes
    ----------
    labels : mapping of str to str
        The combination.
    groups : mapping of (row, column) to Group
        The groups in the table; with a contest, the group that won.
    winners : mapping of (row, column) to str
        With a contest: the labels that won.
    """

    labels: Mapping[str, str]
    groups: Mapping[tuple[str, str], Group]
    winners: Mapping[tuple[str, str], str]

    @property
    def title(self) -> str:
        """The combination in words; empty if there is only one."""
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes
    ----------
    caption : str
        The content of the table.
    columns : tuple of str
        Headings, beginning with that of the rows' names.
    rows : tuple of tuple of str
        Cells, beginning with the name of the row.
    best : frozenset of (row, column)
        Positions of the best value of each column; columns are counted without the rows' names.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()


def summarise(study: Study, documents: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Put results into tables, with grouped repetitions.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its finished cells.
    """
    found: dict[tuple[str, ...], dict[tuple[str, str], dict[str, Group]]] = {}
    for place, group in gather(study, documents).items():
        labels = dict(zip(study.places, place, strict=True))
        section = found.setdefault(tuple(labels[axis] for axis in study.further), {})
        rivals = section.setdefault((labels[study.rows], labels[study.columns]), {})
        rivals[labels.get(study.report.contest, "")] = group
    sections = []
    for place, contests in found.items():
        winners = {at: max(rivals, key=lambda name: rivals[name].mean) for at, rivals in contests.items()}
        sections.append(
            Section(
                dict(zip(study.further, place, strict=True)),
                {at: rivals[winners[at]] for at, rivals in contests.items()},
                winners if study.report.contest else {},
            )
        )
    return sections


def _best(study: Study, section: Section, column: str) -> set[str]:
    """Return the rows with the largest value as shown."""
    shown = {
        row: round(100 * section.groups[row, column].mean, 1)
        for row in study.axes[study.rows]
        if (row, column) in section.groups
    }
    return {row for row, value in shown.items() if value == max(shown.values())}


Cell = Callable[[str, str], str]


def _sheet(study: Study, section: Section, caption: str, cell: Cell, best: bool = False) -> Sheet:
    rows, columns = study.axes[study.rows], study.axes[study.columns]
    title = f"{caption} ({section.title})" if section.title else caption
    return Sheet(
        title,
        (study.rows, *columns),
        tuple((row, *(cell(row, column) for column in columns)) for row in rows),
        frozenset((rows.index(row), at) for at, column in enumerate(columns) for row in _best(study, section, column))
        if best
        else frozenset(),
    )


def _written(number: Callable[[str, str], float | None], form: str) -> Cell:
    def cell(row: str, column: str) -> str:
        found = number(row, column)
        return "-" if found is None else format(found, form)

    return cell


def sheets(study: Study, section: Section, *, spreads: bool = True) -> Iterator[Sheet]:
    """Yield a section's tables: measured values, a paper's values, their difference, drops, the attack's success.

    Parameters
    ----------
    study : Study
        The study.
    section : Section
        One of its sections.
    spreads : bool
        Whether standard deviations are shown.
    """
    groups = section.groups
    what = f"{'best' if study.report.take == 'best' else 'final'} test {study.report.metric.replace('_', ' ')}, %"

    def of(write: Callable[[Group], str]) -> Cell:
        return lambda row, column: write(groups[row, column]) if (row, column) in groups else "-"

    def measured(row: str, column: str) -> str:
        group = groups.get((row, column))
        if group is None:
            return "-"
        text = str(group) if spreads else f"{100 * group.mean:.1f}"
        return f"{text} {section.winners[row, column]}" if section.winners else text

    yield _sheet(study, section, f"{what}{f'; best {study.report.contest}' if section.winners else ''}", measured, True)

    def compared(ours: Callable[[str, str], float | None], drops: bool) -> Iterator[Sheet]:
        """Yield a table of a paper's values, and one of the differences of the measured values from them."""

        def theirs(row: str, column: str) -> float | None:
            return study.reported_at({**section.labels, study.rows: row, study.columns: column}, drops)

        def difference(row: str, column: str) -> float | None:
            own, reported = ours(row, column), theirs(row, column)
            return None if own is None or reported is None else own - reported

        found = [r for r in study.reported if r.drops == drops and r.where.items() <= section.labels.items()]
        if found:
            what = "reported drop, points" if drops else "reported, %"
            yield _sheet(study, section, f"{what}: {found[0].source}", _written(theirs, ".1f"))
            yield _sheet(study, section, "measured minus reported", _written(difference, "+.1f"))

    def value(row: str, column: str) -> float | None:
        return 100 * groups[row, column].mean if (row, column) in groups else None

    def drop(row: str, column: str) -> float | None:
        before, after = value(row, against), value(row, column)
        return None if before is None or after is None or column == against else before - after

    yield from compared(value, False)
    against = study.report.against
    if against:
        yield _sheet(study, section, f"drop from {against}, points", _written(drop, ".1f"))
        yield from compared(drop, True)
    if any(group.successes for group in groups.values()):
        yield _sheet(study, section, "success of the attack, %", of(_success if spreads else _mean_success))


def _success(group: Group) -> str:
    return group.success


def _mean_success(group: Group) -> str:
    return percent([statistics.fmean(group.successes)] if group.successes else [])


def tables(study: Study, section: Section) -> Iterator[Table]:
    """Yield a section's tables for a terminal of a hundred columns.

    Parameters
    ----------
    study : Study
        The study.
    section : Section
        One of its sections.
    """
    wide = len(study.axes[study.columns]) >= _WIDE
    for sheet in sheets(study, section, spreads=not wide):
        for number, columns in enumerate(_abreast(sheet)):
            title = sheet.caption if number == 0 else f"{sheet.caption}, continued"
            table = Table(title=title, title_justify="left", padding=(0, 1))
            table.add_column(Text(sheet.columns[0]), no_wrap=True)
            for column in columns:
                table.add_column(Text(sheet.columns[column]), justify="right", no_wrap=True)
            for place, row in enumerate(sheet.rows):
                bold = [Text(row[at], "bold" if (place, at - 1) in sheet.best else "") for at in columns]
                table.add_row(Text(row[0]), *bold)
            yield table


def _abreast(sheet: Sheet) -> list[list[int]]:
    """Return the columns of each part of a sheet, such that every part fits a terminal."""
    widths = [max(map(len, column)) + 3 for column in zip(sheet.columns, *sheet.rows, strict=True)]
    parts: list[list[int]] = [[]]
    for column, width in enumerate(widths[1:], 1):
        if parts[-1] and widths[0] + 1 + sum(widths[at] for at in parts[-1]) + width > _TERMINAL:
            parts.append([])
        parts[-1].append(column)
    return parts


def conclude(study: Study, section: Section) -> str:
    """Return one sentence that compares the baseline with the other rows in each column."""
    if not study.baseline:
        return ""
    parts = []
    for column in study.axes[study.columns]:
        base = section.groups.get((study.baseline, column))
        others = {
            row: section.groups[row, column]
            for row in study.axes[study.rows]
            if row != study.baseline and (row, column) in section.groups
        }
        if base is None or not others:
            continue
        name = max(others, key=lambda row: others[row].mean)
        best = others[name]
        noise = max([0.0, *(s for s in (base.spread, best.spread) if not math.isnan(s))])
        gap = base.mean - best.mean
        verb = "is level with" if abs(gap) <= noise else "beats" if gap > 0 else "loses to"
        parts.append(f"with {column}, {study.baseline} ({base} %) {verb} the best other rule, {name} ({best} %)")
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "." if parts else ""


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


@dataclass(frozen=True)
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
    """

    study: Study
    documents: Sequence[Mapping[str, Any]]
    folder: Path
    sections: tuple[tuple[Section, tuple[Image, ...]], ...]
    verdicts: tuple[Verdict, ...]


def render(study: Study, documents: Sequence[Mapping[str, Any]], folder: Path) -> Rendered:
    """Make tables, write plots as PNG files, and judge the study's claims.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its finished cells; at least one.
    folder : Path
        The folder of the files; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, section in enumerate(summarise(study, documents)):
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
    return Rendered(study, documents, folder, tuple(sections), tuple(judge(study, gather(study, documents))))


def drawn(
    study: Study, documents: Sequence[Mapping[str, Any]], number: int, section: Section
) -> Iterator[tuple[str, str, Figure]]:
    """Yield the plots of a numbered section: the name of each file without suffix, the kind, and the figure."""
    own = [d for d in documents if section.labels.items() <= d["labels"].items()]
    for kind, figure in draw(study, section.groups, own):
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
        bought = _sheet(
            study,
            section,
            "Share of the model that the attackers bought: the weight the rule gave their messages, in percent, mean "
            f"over the rounds of the attack and seeds. With equal weights they would have {_fair(documents)} %",
            partial(_bought, section),
        )
        sections.append(
            {
                "title": section.title,
                "sentence": conclude(study, section),
                "sheets": [*sheets(study, section), bought],
                "images": images,
            }
        )
    last = max(documents, key=lambda d: str(d["finished"]))
    page = _PAGE.render(
        study=study,
        verdicts=rendered.verdicts,
        notes=notes,
        sections=sections,
        repetitions=max(len(group.values) for section, _ in rendered.sections for group in section.groups.values()),
        command=command,
        finished=len(documents),
        total=len(study.cells),
        seconds=f"{computed(documents):,.0f}",
        machine=last["machine"],
        versions=last["versions"],
        documents=documents,
    )
    path = rendered.folder / "report.html"
    write_atomically(path, partial(_put, page.encode()))
    return path


def computed(documents: Sequence[Mapping[str, Any]]) -> float:
    """Return the computing time of results in seconds; equal configurations count once."""
    return sum({str(d["config_digest"]): float(d["seconds"]) for d in documents}.values())


def _fair(documents: Sequence[Mapping[str, Any]]) -> str:
    shares = {100 * d["real_f"] / d["config"]["clients"] for d in documents}
    return " or ".join(f"{share:.1f}" for share in sorted(shares))


def _bought(section: Section, row: str, column: str) -> str:
    group = section.groups.get((row, column))
    return "-" if group is None else f"{100 * statistics.fmean(group.weights):.1f}"


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
