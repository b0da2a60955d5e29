"""A study is a TOML file: a common configuration, axes whose product gives the cells (runs), and the report.

title = "..."                          # one line
question = "..."                       # what the study answers

[config]                               # keys of the run config, for all cells
task = "digits"

[axes]                                 # each a list; the cells are their product
defence = ["mean()", "krum(f=1)"]      # a value of the run config's key of that name, or
setting = [{ label = "mild", partition = "dirichlet(beta=1.0)" }, ...]    # several keys at once, with a label
seed = [0, 1, 2]                       # cells that differ only by seed are repetitions

[[exceptions]]                         # cells whose labels are these get these keys, too; a later one prevails
where = { defence = "centered clipping", setting = "iid" }
set = { defence = "centered_clipping(tau=0.1)" }

flwr_robust/studies/showing.py describes [report], [[reported]] and [[claims]].
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError
from flwr_robust.runs.config import PLACES, RunConfig, UnreadKeyWarning
from flwr_robust.studies.places import shipped
from flwr_robust.studies.showing import REPETITION, Claim, Report, Reported, read_claims, read_report, read_reported

__all__ = ["REPETITION", "STUDIES", "Cell", "Claim", "Study", "load_study"]

STUDIES = shipped("studies")
"""The folder of the studies that come with the project."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes
    ----------
    labels : mapping of str to str
        Its label on each axis.
    config : RunConfig
        The run.
    """

    labels: Mapping[str, str]
    config: RunConfig

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the configuration's differences from the defaults.

        So a new key of the run config does not change the names of older results. The folder of the data is left out.
        """
        defaults = RunConfig().to_mapping()
        values = {k: v for k, v in self.config.to_mapping().items() if k not in PLACES and v != defaults[k]}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The file name of the cell's result, without suffix."""
        words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_") for label in self.labels.values())
        return f"{words[:80]}-{self.digest}"

    def differs(self, values: Mapping[str, object]) -> str | None:
        """Return the first key, if any, in which a result's configuration differs from that of the cell."""
        own = self.config.to_mapping()
        return next((k for k, v in values.items() if k in own and k not in PLACES and v != own[k]), None)


@dataclass(frozen=True)
class Study:
    """The cells to run, and the report on them.

    Attributes
    ----------
    name, title, question : str
        The name, the title and the question of the study.
    axes : mapping of str to tuple of str
        The labels along each axis, in order.
    cells : tuple of Cell
        All runs.
    report : Report
        The content of tables and plots.
    reported : tuple of Reported
        The numbers that a paper reports.
    claims : tuple of Claim
        The claims of the paper.
    """

    name: str
    title: str
    question: str
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    report: Report
    reported: tuple[Reported, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def rows(self) -> str:
        """The axis of the table's rows."""
        return self.report.rows

    @property
    def columns(self) -> str:
        """The axis of the table's columns."""
        return self.report.columns

    @property
    def baseline(self) -> str:
        """The row with which the others are compared; empty for none."""
        return self.report.baseline

    @property
    def further(self) -> list[str]:
        """The axes that are not rows, columns, contest or repetitions; each combination of their labels has a table."""
        return [axis for axis in self.places if axis not in (self.rows, self.columns, self.report.contest)]

    @property
    def places(self) -> list[str]:
        """The axes in which cells are not mere repetitions; seeds count only if they are rows or columns."""
        return [axis for axis in self.axes if axis != REPETITION or axis in (self.rows, self.columns)]

    def reported_at(self, labels: Mapping[str, str], drops: bool = False) -> float | None:
        """Return the paper's number for a place, in percent or as a drop; None if there is none."""
        place = labels[self.rows], labels[self.columns]
        for reported in self.reported:
            if reported.drops == drops and reported.where.items() <= labels.items() and place in reported.values:
                return reported.values[place]
        return None


def load_study(source: str, overrides: Mapping[str, object] | None = None) -> Study:
    """Read a study and check every cell.

    Parameters
    ----------
    source : str
        The name of a study that comes with the project, or the path of a TOML file.
    overrides : mapping, optional
        Keys of the run config that replace the study's common ones.

    Raises
    ------
    FlwrRobustError
        If the file or one of its cells is invalid; the message names the cell.
    """
    path = Path(source) if source.endswith(".toml") else STUDIES / f"{source}.toml"
    if not path.is_file() and source.endswith(".toml"):
        raise ConfigurationError(f"study {source}: there is no such file; see `list` for those of the project")
    if not path.is_file():
        names = [found.stem for found in STUDIES.glob("*.toml")]
        raise UnknownNameError("study", source, [*names, "<path>.toml"])
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"study {path}: it is no TOML file: {error}") from None
    known = {"title", "question", "config", "axes", "exceptions", "report", "reported", "claims"}
    if unknown := set(document) - known:
        raise UnknownNameError(f"table of study {path}", min(unknown), known)
    for table in sorted({"config", "axes", "report"} & set(document)):
        if not isinstance(document[table], dict):
            raise ConfigurationError(f"study {path}: [{table}] must be a table; got {document[table]!r}")
    axes = document.get("axes", {})
    if not axes:
        raise ConfigurationError(f"study {path}: [axes] must hold at least one axis, a list of values; got none")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"study {path}: axis {axis} must be a list of at least one value; got {values!r}")
    common = {**document.get("config", {}), **(overrides or {})}
    points = {axis: [_point(axis, value) for value in values] for axis, values in axes.items()}
    for axis, found in points.items():
        names = [label for label, _ in found]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"study {path}: the labels of axis {axis} must differ; got {', '.join(names)}")
        taken = {key.replace("_", "-") for _, keys in found for key in keys}
        if fixed := taken & {key.replace("_", "-") for key in overrides or {}}:
            raise ConfigurationError(
                f"study {path.stem}: {min(fixed)} cannot be set, the study varies it along its axis {axis}; copy the "
                f"study and change the axis"
            )
    labels_of = {axis: tuple(label for label, _ in values) for axis, values in points.items()}
    report = read_report(str(path), document.get("report", {}), labels_of)
    reported = read_reported(str(path), document.get("reported", []), labels_of, report)
    claims = read_claims(str(path), document.get("claims", []), labels_of, report)
    exceptions = _exceptions(path, document.get("exceptions", []), points)
    cells = []
    for combination in itertools.product(*points.values()):
        labels = {axis: label for axis, (label, _) in zip(points, combination, strict=True)}
        values = dict(common)
        for _, keys in combination:
            values.update(keys)
        for place, keys in exceptions:
            if place.items() <= labels.items():
                values.update(keys)
        try:
            cells.append(Cell(labels, RunConfig.from_mapping(values, warn=False)))
        except FlwrRobustError as error:
            where = ", ".join(f"{axis}={label}" for axis, label in labels.items())
            raise ConfigurationError(f"study {path.stem}, cell {where}: {error}") from None
    for key in sorted(
        set.intersection(*(set(cell.config.unread) for cell in cells))
    ):  # a key of [config]; other cells may read it
        warnings.warn(f"study {path.stem}: no cell reads {key}: leave it out", UnreadKeyWarning, stacklevel=2)
    return Study(
        path.stem,
        str(document.get("title", path.stem)),
        str(document.get("question", "")),
        labels_of,
        tuple(cells),
        report,
        reported,
        claims,
    )


def _exceptions(
    path: Path, tables: object, points: Mapping[str, list[tuple[str, dict[str, object]]]]
) -> list[tuple[dict[str, str], dict[str, object]]]:
    """Return the labels and the keys of each exception."""
    found = []
    for table in tables if isinstance(tables, list) else [tables]:
        if not isinstance(table, dict) or set(table) != {"where", "set"} or not all(map(_is_table, table.values())):
            raise ConfigurationError(
                f"study {path}: each of [[exceptions]] must hold two tables, where and set; got {table}"
            )
        for axis, label in table["where"].items():
            if axis not in points:
                raise UnknownNameError(f"axis of an exception in study {path}", axis, points)
            if not isinstance(label, str):
                raise ConfigurationError(
                    f"study {path}: labels in where of [[exceptions]] are texts; got {axis} = {label!r}: put it in "
                    f"quotes"
                )
            if label not in (labels := [name for name, _ in points[axis]]):
                raise UnknownNameError(f"label on axis {axis} in study {path}", str(label), labels)
        found.append((table["where"], table["set"]))
    return found


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _point(axis: str, value: object) -> tuple[str, dict[str, object]]:
    """Return the label of an axis value and the keys that it sets."""
    if isinstance(value, dict):
        keys = {key: v for key, v in value.items() if key != "label"}
        return str(value.get("label", " ".join(map(str, keys.values())))), keys
    return str(value), {axis: value}
