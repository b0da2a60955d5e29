"""Results in the forms that an author needs: data frames, tables as Markdown, LaTeX and CSV, plots as PDF and SVG.

The tables are those of the report. The data frame has one line per finished run, with its whole setting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_choice, check_flag, extra
from flwr_robust.files import write_atomically
from flwr_robust.studies.failures import is_failure, is_open_failure
from flwr_robust.studies.plots import as_file
from flwr_robust.studies.report import Rendered, Sheet, drawn, sheets

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


def export(rendered: Rendered, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write a report's tables and plots in other formats.

    Parameters
    ----------
    rendered : Rendered
        The report.
    folder : Path
        The folder of the files; created if missing.
    formats : sequence of str
        From `FORMATS`. ``md``, ``latex`` and ``csv`` write all tables, ``pdf`` and ``svg`` all plots.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ConfigurationError
        If a format is unknown.
    """
    for form in formats:
        check_choice("report", "--export", form, FORMATS)
    folder.mkdir(parents=True, exist_ok=True)
    found = [sheet for section, _ in rendered.sections for sheet in sheets(rendered.study, section)]
    written = []
    for form in dict.fromkeys(formats):
        if form in _PLOTS:
            written += _plots(rendered, folder, form)
        elif form == "csv":
            for number, sheet in enumerate(found):
                written.append(_put(folder / f"table{f'-{number}' if number else ''}.csv", _csv(sheet).encode()))
        else:
            suffix, text = (".md", _markdown) if form == "md" else (".tex", _latex)
            written.append(_put(folder / f"tables{suffix}", "\n".join(map(text, found)).encode()))
    return written


def _plots(rendered: Rendered, folder: Path, form: str) -> list[Path]:
    written = []
    for number, (section, _) in enumerate(rendered.sections):
        for name, _, figure in drawn(rendered.study, rendered.documents, number, section):
            written.append(_put(folder / f"{name}.{form}", as_file(figure, form)))
    return written


def _put(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write(content))
    return path


def _frame(sheet: Sheet) -> DataFrame:
    with extra("studies"):
        import pandas

    return pandas.DataFrame([row[1:] for row in sheet.rows], [row[0] for row in sheet.rows], sheet.columns[1:])


def _csv(sheet: Sheet) -> str:
    return str(_frame(sheet).to_csv(index_label=sheet.columns[0]))


def _markdown(sheet: Sheet) -> str:
    """Return a table with its caption; the best value of each column is bold."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rows = [
        (row[0], *(f"**{cell}**" if (at, column) in sheet.best else cell for column, cell in enumerate(row[1:])))
        for at, row in enumerate(sheet.rows)
    ]
    rule = f"|---|{'---:|' * (len(sheet.columns) - 1)}"
    return "\n".join([f"{sheet.caption}", "", line(sheet.columns), rule, *map(line, rows), ""])


def _latex(sheet: Sheet) -> str:
    """Return a table for the package booktabs; the best value of each column is bold."""
    frame = _frame(sheet)
    styled = frame.style.format(escape="latex").format_index(escape="latex", axis=0)
    styled = styled.format_index(escape="latex", axis=1)
    for row, column in sheet.best:
        at = (frame.index[row], frame.columns[column])
        styled = styled.set_properties(subset=([at[0]], [at[1]]), textbf="--rwrap")
    caption = sheet.caption.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&").replace("#", r"\#")
    return str(
        styled.to_latex(
            hrules=True, caption=caption, column_format="l" + "r" * (len(sheet.columns) - 1), position_float="centering"
        )
    )
