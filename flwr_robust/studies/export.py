"""Results in the forms that an author needs: data frames, tables as Markdown, LaTeX and CSV, plots as PDF and SVG.

The tables are those of the report; as CSV they are one file of numbers, one line per cell of a table. The data frame
has one line per finished run, with its whole setting.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_choice, check_flag, extra
from flwr_robust.files import write_atomically
from flwr_robust.studies.canvas import PAGE, WIDTHS
from flwr_robust.studies.failures import is_failure, is_open_failure
from flwr_robust.studies.plots import as_file
from flwr_robust.studies.report import Rendered, drawn
from flwr_robust.studies.sheets import Section, Sheet, markdown, sheets
from flwr_robust.studies.study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["FORMATS", "export", "load"]

FORMATS = ("md", "latex", "csv", "pdf", "svg")
"""The formats of `export`: those of tables, then those of plots."""

_PLOTS = ("pdf", "svg")
_KEPT = (
    "declared_f",
    "real_f",
    "best_accuracy",
    "best_loss",
    "attackers_weight",
    "model_sha256",
    "data_sha256",
    "engine",
    "seconds",
)


def load(folder: Path | str, *, failed: bool = False) -> DataFrame:
    """Return the results in a folder as a data frame, one line per finished run.

    Parameters
    ----------
    folder : Path
        The folder of a study's results, as ``flwr-robust run`` writes it, or one with several such folders.
    failed : bool
        Whether cells that failed have lines, too. The column ``failed`` then holds the error; elsewhere it is empty.

    Returns
    -------
    DataFrame
        The columns are: ``study``; the labels on each axis; all keys of the run config, with hyphens; ``declared_f``
        and ``real_f``; the last value of each metric; and what else is known of the run. Accuracies are in [0, 1].

    Raises
    ------
    ConfigurationError
        If the folder holds no result.
    FlwrRobustError
        If a result cannot be read; the message names the file.

    Examples
    --------
    >>> table = load("results/demo")  # doctest: +SKIP
    >>> table.pivot_table("accuracy", "defence", "partition")  # doctest: +SKIP
    """
    with extra("studies"):
        import pandas

    check_flag("load", "failed", failed)
    paths = [path for path in sorted(Path(folder).rglob("*.json")) if path.is_file()]
    lines = [line for path in paths if not is_failure(path) and (line := _line(path)) is not None]
    if failed:
        lines = [{**line, "failed": ""} for line in lines]
        lines += [line for path in paths if is_open_failure(path) and (line := _line(path)) is not None]
    if not lines:
        raise ConfigurationError(f"load: {folder} holds no result of a study; name the folder that --results named")
    return pandas.DataFrame(lines)


def _line(path: Path) -> dict[str, object] | None:
    """Return the line of a result or a failed cell; None if the file is neither."""
    try:
        document = json.loads(path.read_text())
        ends = "failed" if is_failure(path) else "final"
        if not isinstance(document, dict) or not {"study", "labels", "config", ends} <= document.keys():
            return None
        line = {"study": document["study"], **document["config"], **document["labels"]}
        if is_failure(path):
            return {**line, "failed": document["failed"]}
        return {**line, **document["final"], **{key: document[key] for key in _KEPT if key in document}}
    except (ValueError, OSError, TypeError) as error:
        raise FlwrRobustError(f"result {path} cannot be read ({error}); delete it and run the study again") from None


def export(rendered: Rendered, folder: Path, formats: Sequence[str], width: str = "page") -> list[Path]:
    """Write a report's tables and plots in other formats.

    Parameters
    ----------
    rendered : Rendered
        The report.
    folder : Path
        The folder of the files; created if missing.
    formats : sequence of str
        From `FORMATS`. ``md``, ``latex`` and ``csv`` write all tables, ``pdf`` and ``svg`` all plots.
    width : str
        The width of the plots: ``column`` (3.3 inches) or ``page`` (6.9 inches).

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ConfigurationError
        If a format or the width is unknown.
    """
    for form in formats:
        check_choice("report", "--export", form, FORMATS)
    check_choice("report", "--width", width, tuple(WIDTHS))
    folder.mkdir(parents=True, exist_ok=True)
    found = [(section, sheet) for section, _ in rendered.sections for sheet in sheets(rendered.study, section)]
    written = []
    for form in dict.fromkeys(formats):
        if form in _PLOTS:
            written += _plots(rendered, folder, form, WIDTHS[width])
        elif form == "csv":
            written.append(_put(folder / "tables.csv", _csv(rendered.study, found).encode()))
        else:
            suffix, text = (".md", markdown) if form == "md" else (".tex", _latex)
            choice = [] if rendered.choice is None else [rendered.choice]
            every = [*choice, *(sheet for _, sheet in found)]
            written.append(_put(folder / f"tables{suffix}", "\n".join(map(text, every)).encode()))
    return written


def _plots(rendered: Rendered, folder: Path, form: str, width: float = PAGE) -> list[Path]:
    written = []
    for number, (section, _) in enumerate(rendered.sections):
        for name, _, figure in drawn(rendered.study, rendered.documents, number, section, width):
            written.append(_put(folder / f"{name}.{form}", as_file(figure, form)))
    return written


def _put(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write(content))
    return path


_NUMBERS = ("mean", "low", "high", "deviation", "n", "failed", "worst_under")


def _csv(study: Study, found: Sequence[tuple[Section, Sheet]]) -> str:
    """Return all tables as lines of numbers, one line per cell.

    The columns are: the kind of table, the metric and the unit; the labels on each axis; the mean, the ends of its 95 %
    t-interval, the standard deviation and the number of repetitions; the number of failed runs; and for a worst case
    the labels under which it was. What is not known is empty.
    """
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(("table", "metric", "unit", *study.further, study.rows, study.columns, *_NUMBERS))
    for section, sheet in found:
        for r, row in enumerate(sheet.rows):
            for c, column in enumerate(sheet.columns[1:]):
                known, failed = sheet.numbers.get((r, c)), sheet.failed.get((r, c), 0)
                place = (sheet.kind, sheet.metric, sheet.unit, *section.labels.values(), row[0], column)
                numbers = [""] * 5
                if known is not None:
                    values = (known.mean, known.low, known.high, known.deviation)
                    numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                    numbers.append(str(known.n) if known.n else "")
                lines.writerow((*place, *numbers, failed, sheet.under.get((r, c), "")))
    return file.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "±": r"$\pm$",
    **{letter: f"\\{letter}" for letter in "%_&#{}$"},
}


def _escaped(text: str) -> str:
    """Return a text in which no character has a meaning in LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(sheet: Sheet) -> str:
    """Return a table for the package booktabs; the best value of each column is bold."""

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    rows = [
        (
            _escaped(row[0]),
            *(
                rf"\textbf{{{_escaped(cell)}}}" if (at, column) in sheet.best else _escaped(cell)
                for column, cell in enumerate(row[1:])
            ),
        )
        for at, row in enumerate(sheet.rows)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(sheet.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"\toprule",
            line([*map(_escaped, sheet.columns)]),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
