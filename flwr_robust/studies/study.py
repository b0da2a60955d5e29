"""A study is a TOML file: a common configuration, axes whose product gives the cells (runs), and the report.

title = "..."                          # one line
question = "..."                       # what the study answers

[config]                               # keys of the run config, for all cells
task = "digits"

[axes]                                 # each a list; the cells are their product
defence = ["mean()", "krum(f={f})"]    # a value of the run config's key of that name, or
f = [0, 1, 2]                          # of a variable that a text holds in braces, or
setting = [{ label = "mild", partition = "dirichlet(beta=1.0)" }, ...]    # several keys at once, with a label
seed = [0, 1, 2]                       # cells that differ only by seed are repetitions

[[exceptions]]                         # cells whose labels are these get these keys, too; a later one prevails
where = { defence = "centered clipping", setting = "iid" }
set = { defence = "centered_clipping(tau=0.1)" }

A table without a label has its values as label. Of two axes that set one key, the later prevails. A key that is
replaced in every cell is an error, wherever it stands.

Braces may stand in every text of [config], [axes] and ``set``; see `flwr_robust.studies.variables`. The variable ``n``
sets ``clients``, and ``f`` sets ``attackers``. A cell has no attack if ``f`` is 0, or if an axis or an exception sets
``attackers = 0`` or ``attack = "none"``. The keys that only an attack reads are then left out. So the cells of f = 0
show the price of a rule without attack.

flwr_robust/studies/showing.py describes [report], [[reported]] and [[claims]]; flwr_robust/studies/select.py describes
[select], with which hyper-parameters are chosen on validation samples.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
import warnings
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError
from flwr_robust.runs.config import KEYS, PLACES, RunConfig, UnreadKeyWarning
from flwr_robust.studies.places import shipped
from flwr_robust.studies.select import Labelled, Select, all_labels, check_validation, read_select, shown_axes
from flwr_robust.studies.showing import (
    ALONE,
    REPETITION,
    WORST,
    Claim,
    Report,
    Reported,
    check_metrics,
    read_claims,
    read_report,
    read_reported,
)
from flwr_robust.studies.variables import Filled, fill, is_scalar

__all__ = ["REPETITION", "STUDIES", "Cell", "Claim", "Study", "load_study"]

STUDIES = shipped("studies")
"""The folder of the studies that come with the project."""

Keys = dict[str, object]
Points = Mapping[str, Sequence[Labelled]]  # the labels and the keys of each value of each axis
Exceptions = list[tuple[dict[str, str], Keys]]  # the labels that say where, and the keys


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
        shown = [label for axis, label in self.labels.items() if axis != ALONE]
        words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_") for label in shown)
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
    select : Select, optional
        How candidates are chosen; None: all labels are shown. Report, reported numbers and claims know only the axes
        that are left after the choice.
    """

    name: str
    title: str
    question: str
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    report: Report
    reported: tuple[Reported, ...] = ()
    claims: tuple[Claim, ...] = ()
    select: Select | None = None

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

    def shown(self, axis: str) -> tuple[str, ...]:
        """Return the labels along an axis as tables show them: the worst case comes last where [report] asks for it."""
        return (*self.axes[axis], WORST) if axis == self.report.worst_over else self.axes[axis]

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
    path, document = _read(source)
    stated = _keys(f"study {path}, [config]", document.get("config", {}))
    replaced = _keys(f"study {path}, --set", overrides or {})
    common = {**stated, **replaced}
    points = {axis: [_point(path, axis, value) for value in values] for axis, values in document["axes"].items()}
    points, labels_of = all_labels(str(path), points)
    for axis, found in points.items():
        names = [", ".join(labels.values()) for labels, _ in found]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"study {path}: the labels of axis {axis} must differ; got {', '.join(names)}: give each value once, "
                f"and tables of keys a label each"
            )
        if fixed := {key for _, keys in found for key in keys} & replaced.keys():
            raise ConfigurationError(
                f"study {path.stem}: {min(fixed)} cannot be set, the study varies it along its axis {axis}; copy the "
                f"study and change the axis"
            )
    _check_effect(path, stated, points)
    select = read_select(str(path), document, labels_of)
    if _is_alone(shown_axes(labels_of, select), document.get("report", {})):
        points[ALONE] = [({ALONE: "all"}, {})]
        labels_of[ALONE] = ("all",)
    shown = shown_axes(labels_of, select)
    report = read_report(str(path), document.get("report", {}), shown)
    reported = read_reported(str(path), document.get("reported", []), shown, report)
    claims = read_claims(str(path), document.get("claims", []), shown, report)
    exceptions = _exceptions(path, document.get("exceptions", []), labels_of)
    cells, used = _cells(path, common, points, exceptions)
    varied = [keys for found in points.values() for _, keys in found] + [keys for _, keys in exceptions]
    _check_variables(path, [common, *varied], used)
    _check_twins(path, labels_of, cells)
    own = set.intersection(*(set(cell.config.own_metrics) for cell in cells))
    check_metrics(str(path), report, own)
    check_validation(str(path), report, select, [cell.config.validation for cell in cells], own)
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
        select,
    )


def _read(source: str) -> tuple[Path, dict[str, Any]]:
    """Return the path and the tables of a study, of which the types are checked."""
    path = Path(source) if source.endswith(".toml") else STUDIES / f"{source}.toml"
    if not path.is_file() and source.endswith(".toml"):
        raise ConfigurationError(f"study {source}: there is no such file; see `list` for those of the project")
    if not path.is_file():
        names = [found.stem for found in STUDIES.glob("*.toml")]
        raise UnknownNameError("study", source, [*names, "<path>.toml"])
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"study {path}: it is no TOML file: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"study {path}: it cannot be read: {error.strerror}") from None
    known = {"title", "question", "config", "axes", "exceptions", "report", "reported", "claims", "select"}
    if unknown := set(document) - known:
        raise UnknownNameError(f"table of study {path}", min(unknown), known)
    for table in sorted({"config", "axes", "report"} & set(document)):
        if not isinstance(document[table], dict):
            raise ConfigurationError(f"study {path}: [{table}] must be a table; got {document[table]!r}")
    if not (axes := document.get("axes", {})):
        raise ConfigurationError(f"study {path}: [axes] must hold at least one axis, a list of values; got none")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"study {path}: axis {axis} must be a list of at least one value; got {values!r}")
    for key in sorted({"title", "question"} & set(document)):
        if not isinstance(document[key], str):
            raise ConfigurationError(f"study {path}: {key} must be a text; got {document[key]!r}")
    return path, document


def _is_alone(axes: Mapping[str, Sequence[str]], report: Mapping[str, object]) -> bool:
    """Say whether a study has one axis to show, and none for columns."""
    shown = [axis for axis in axes if axis != REPETITION]
    return len(shown) < 2 and (not shown or REPETITION not in (report.get("rows"), report.get("columns")))


def _cells(path: Path, common: Keys, points: Points, exceptions: Exceptions) -> tuple[list[Cell], set[str]]:
    """Return the product of the axes, and the variables that have an effect in a cell."""
    cells: list[Cell] = []
    used: set[str] = set()
    for combination in itertools.product(*points.values()):
        labels = {axis: label for own, _ in combination for axis, label in own.items()}
        tables = [keys for _, keys in combination]
        tables += [keys for place, keys in exceptions if place.items() <= labels.items()]
        try:
            filled = fill(dict(ChainMap(*reversed([common, *tables]))))
            used |= filled.used
            cells.append(Cell(labels, RunConfig.from_mapping(_settled(filled, tables), warn=False)))
        except FlwrRobustError as error:
            where = ", ".join(f"{axis}={label}" for axis, label in labels.items() if axis != ALONE)
            raise ConfigurationError(f"study {path.stem}, cell {where}: {error}") from None
    return cells, used


def _exceptions(path: Path, tables: object, axes: Mapping[str, Sequence[str]]) -> Exceptions:
    """Return the labels and the keys of each exception."""
    found: Exceptions = []
    for table in tables if isinstance(tables, list) else [tables]:
        if not isinstance(table, dict) or set(table) != {"where", "set"} or not all(map(_is_table, table.values())):
            raise ConfigurationError(
                f"study {path}: each of [[exceptions]] must hold two tables, where and set, which are not empty; got "
                f"{table!r}"
            )
        for axis, label in table["where"].items():
            if axis not in axes:
                raise UnknownNameError(f"axis of an exception in study {path}", axis, axes)
            if not isinstance(label, str):
                raise ConfigurationError(
                    f"study {path}: labels in where of [[exceptions]] are texts; got {axis} = {label!r}: put it in "
                    f"quotes"
                )
            if label not in axes[axis]:
                raise UnknownNameError(f"label on axis {axis} in study {path}", str(label), axes[axis])
        found.append((table["where"], _keys(f"study {path}, [[exceptions]]", table["set"])))
    return found


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and len(value) > 0


def _keys(owner: str, table: Mapping[str, object]) -> Keys:
    """Return a table with the keys of the run config written with hyphens."""
    found: Keys = {}
    for key, value in table.items():
        name = key.replace("_", "-") if key.replace("_", "-") in KEYS else key
        if name in found:
            raise ConfigurationError(f"{owner}: {name} is given twice, with hyphens and underscores: leave one out")
        found[name] = value
    return found


def _point(path: Path, axis: str, value: object) -> Labelled:
    """Return the label of an axis value on that axis, and the keys that it sets."""
    owner = f"study {path}, axis {axis}"
    if not isinstance(value, dict):
        if not is_scalar(value):
            raise ConfigurationError(f"{owner}: values are texts, numbers, booleans or tables of keys; got {value!r}")
        return {axis: str(value)}, _keys(owner, {axis: value})
    keys = _keys(owner, {key: v for key, v in value.items() if key != "label"})
    label = value.get("label", " ".join(map(str, keys.values())))
    if not is_scalar(label) or not str(label).strip():
        raise ConfigurationError(f"{owner}: label must be a text of at least one letter; got {value!r}")
    return {axis: str(label)}, keys


def _settled(filled: Filled, tables: Sequence[Keys]) -> Keys:
    """Return a cell's keys; where an axis, an exception or f = 0 leaves no attacker, without those of an attack."""
    keys = dict(filled.keys)
    set_here = {key for table in tables for key in table}
    if "attack" in set_here and "attackers" not in set_here and keys["attack"] == "none":
        keys["attackers"] = 0
    both = any({"attack", "attackers"} <= table.keys() for table in tables)  # then one table contradicts itself
    if keys.get("attackers") == 0 and (filled.by_f or ("attackers" in set_here and not both)):
        keys["attack"] = "none"
    if keys.get("attack") == "none" and (filled.by_f or {"attack", "attackers"} & set_here):
        keys = {key: value for key, value in keys.items() if KEYS[key].needs != "attack"}
    return keys


def _check_effect(path: Path, stated: Keys, points: Points) -> None:
    """Raise if a key is given where another place replaces it in every cell."""
    given = dict.fromkeys(stated, "[config]")
    for axis, found in points.items():
        everywhere = set.intersection(*(set(keys) for _, keys in found))
        if lost := sorted(everywhere & given.keys()):
            raise ConfigurationError(
                f"study {path}: {lost[0]} of {given[lost[0]]} has no effect, every value of axis {axis} replaces it: "
                f"leave one of them out"
            )
        given |= {key: f"axis {axis}" for _, keys in found for key in keys}


def _check_variables(path: Path, tables: Iterable[Keys], used: set[str]) -> None:
    """Raise if a name is no key of the run config, and no variable that has an effect."""
    given = {key for table in tables for key in table}
    for name in sorted(given - KEYS.keys() - used):
        if name == "f":
            raise ConfigurationError(
                f"study {path}: f has no effect: no text holds {{f}}, and attackers is given or there is no attack; "
                f"leave f or attackers out, or name an attack"
            )
        unknown = UnknownNameError("configuration key", name, KEYS)
        raise ConfigurationError(f"study {path}: {name} is no variable, because no text holds {{{name}}}; {unknown}")


def _check_twins(path: Path, axes: Mapping[str, Sequence[str]], cells: Sequence[Cell]) -> None:
    """Raise for two cells of one name, and warn of values of an axis that give the same runs."""
    names: dict[str, Cell] = {}
    digests = [cell.digest for cell in cells]
    for cell in cells:
        other = names.setdefault(cell.name, cell)
        if other is not cell:
            first, second = (", ".join(v for k, v in c.labels.items() if k != ALONE) for c in (other, cell))
            raise ConfigurationError(
                f"study {path}: the cells {first} and {second} would have one file of results; give them "
                f"labels that differ in letters or digits"
            )
    for axis, labels in axes.items():
        runs: dict[tuple[str, ...], str] = {}
        for label in labels:
            own = tuple(digest for cell, digest in zip(cells, digests, strict=True) if cell.labels[axis] == label)
            if (twin := runs.setdefault(own, label)) != label:
                warnings.warn(
                    f"study {path.stem}: {twin} and {label} of axis {axis} give the same runs; leave one out",
                    UserWarning,
                    stacklevel=3,
                )
