"""Reports of red teams: tables for the terminal, heatmaps, and strategies side by side in Markdown.

Every table and picture begins with the row "no attack" and ends with the row "worst". The worst is the attack with the
lowest mean over seeds. A run that left no finite model is shown as "died", and counts as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from flwr_robust.errors import ConfigurationError, extra
from flwr_robust.redteam.battery import HONEST_MEAN, NO_ATTACK, REVIEW
from flwr_robust.redteam.run import DIED, NOT_TRIED, SOME_DIED, RedTeam
from flwr_robust.studies.canvas import (
    PAGE,
    SMALL,
    chunks,
    finish,
    fold,
    hatched,
    inches,
    ink,
    make_panels,
    name_rows,
    styled,
    tall,
    wide,
)
from flwr_robust.studies.showing import WORST

with extra("studies"):
    from matplotlib import colormaps
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke

__all__ = ["compare", "comparison_map", "conclude_red_team", "footnotes", "heatmap", "into_page", "red_tables"]

_COLUMNS = 3  # columns of three numbers that fit beside the attacks in a hundred characters
_NUMBERS = 18  # characters of an accuracy with its two changes
_MARKS = ("<!-- begin: generated -->", "<!-- end: generated -->")


def red_tables(result: RedTeam) -> Iterator[Table]:
    """Yield the tables for the terminal: accuracies, then the success of attacks with a target label.

    Parameters
    ----------
    result : RedTeam
        The results of the red team.
    """
    for at in range(0, len(result.real_f), _COLUMNS):
        yield _accuracies(result, result.real_f[at : at + _COLUMNS])
    targeted = [label for label in result.families if any(result.success(label, f) is not None for f in _all_f(result))]
    if targeted:
        table = Table(title="success of the attack, %", title_justify="left")
        table.add_column("attack", overflow="fold")
        for f in _all_f(result):
            table.add_column(_heading(result, f), justify="right")
        for label in targeted:
            table.add_row(label, *(_percent(result.success(label, f)) for f in _all_f(result)))
        yield table


def _accuracies(result: RedTeam, attackers: Sequence[int]) -> Table:
    table = Table(
        title="accuracy, %; its change against f = 0; against the mean of the honest",
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("attack", overflow="fold")
    for f in attackers:
        table.add_column(_heading(result, f), justify="right", no_wrap=True)
    alone = f"{100 * result.alone:.1f}".ljust(_NUMBERS)
    table.add_row(f"{NO_ATTACK.label}, f = 0", *(alone for _ in attackers))
    table.add_row(HONEST_MEAN.label, *(_changes(result, HONEST_MEAN.label, f) for f in attackers))
    worst = {f: _worst(result, f) for f in attackers}
    family = ""
    for label in result.families:
        if label in result.left_out:
            continue
        if result.families[label] != family:
            family = result.families[label]
            table.add_section()
            table.add_row(Text(f"{family}{' (review)' if family in REVIEW else ''}", "italic"))
        cells = [_changes(result, label, f) for f in attackers]
        bold = [Text(text, "bold" if label in worst[f] else "") for f, text in zip(attackers, cells, strict=True)]
        table.add_row(Text(label), *bold)
    table.add_section()
    numbers = [_changes(result, worst[f][0], f) for f in attackers]
    under = [fold(_first_of(worst[f]), _NUMBERS) for f in attackers]
    table.add_row(WORST, *(Text(f"{n}\n{label}", "bold") for n, label in zip(numbers, under, strict=True)))
    return table


def _heading(result: RedTeam, f: int) -> str:
    return f"f = {f}{' (> declared)' if f > result.setting.declared_f else ''}"


def _all_f(result: RedTeam) -> list[int]:
    return [0, *result.real_f]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _worst(result: RedTeam, f: int, labels: Iterable[str] | None = None) -> list[str]:
    """Return the labels of the lowest accuracy under f attackers; among equal ones, those under which all runs died.

    Only some attacks are looked at if ``labels`` says which. The strategy without attackers counts too.
    """
    tried = {label: result.accuracy(label, f) for label in (result.families if labels is None else labels)}
    ranks = {label: (value, not result.died(label, f)) for label, value in tried.items() if value is not None}
    ranks[NO_ATTACK.label] = (result.alone, not result.died(NO_ATTACK.label, 0))
    least = min(ranks.values())
    return [label for label, rank in ranks.items() if rank == least]


def _place(labels: Sequence[str], f: int) -> tuple[str, int]:
    """Return the first of some labels with its number of attackers."""
    return labels[0], 0 if labels[0] == NO_ATTACK.label else f


def _first_of(labels: Sequence[str]) -> str:
    """Return the first of some labels, and how many others there are."""
    return f"{labels[0]} +{len(labels) - 1}" if len(labels) > 1 else labels[0]


def _changes(result: RedTeam, label: str, f: int) -> str:
    """Return the accuracy and its differences from both baselines; of a run that died there are none."""
    place = _place([label], f)
    text, accuracy, honest = result.told(*place), result.accuracy(*place), result.honest(f)
    if accuracy is None or honest is None:
        return NOT_TRIED
    if text == DIED:
        return text.ljust(_NUMBERS)
    return f"{text} {100 * (accuracy - result.alone):+6.1f} {100 * (accuracy - honest):+6.1f}"


def _deaths(result: RedTeam, attackers: Iterable[int]) -> dict[str, list[str]]:
    """Return the attacks under which a run died, by the reason."""
    found: dict[str, dict[str, None]] = {}
    for label in result.families:
        for run in (run for f in attackers for run in result.of(label, f) if run.end):
            found.setdefault(run.end, {})[label] = None
    return {reason: list(labels) for reason, labels in found.items()}


def _subject(result: RedTeam) -> str:
    """Return the strategy and what its clients send."""
    s = result.setting
    return f"{s.name if s.subject == s.name else f'{s.name}: {s.subject}'}; messages {s.message}"


def _length(result: RedTeam) -> str:
    """Return the setting of all runs, without the strategy."""
    s = result.setting
    held_out = f", {100 * s.validation:g} % of the training samples held out" if s.validation else ""
    return (
        f"{s.clients} clients, declared f = {s.declared_f}, task {s.task}, {s.partition}, model {s.model}, "
        f"{s.rounds} rounds{held_out}, seeds {', '.join(map(str, result.seeds))}; mean over seeds"
    )


def footnotes(result: RedTeam) -> list[str]:
    """Return the footnotes of the tables, a sentence each.

    Parameters
    ----------
    result : RedTeam
        The results of the red team.
    """
    notes = [
        f"{_subject(result)}; {_length(result)}.",
        "Mean of the honest: the same clients without the attackers, by the plain mean.",
    ]
    for reason, victims in _deaths(result, result.real_f).items():
        notes.append(f"Died, which counts as 0, under {', '.join(victims)}: {reason}")
    if any(SOME_DIED in result.told(label, f) for label in result.families for f in result.real_f):
        notes.append(f"{SOME_DIED}: the runs of some seeds died.")
    for reason in dict.fromkeys(result.left_out.values()):
        labels = [label for label, found in result.left_out.items() if found == reason]
        notes.append(f"Left out: {', '.join(labels)}: {reason}.")
    return notes


def conclude_red_team(result: RedTeam, floor: float | None = None) -> str:
    """Return one sentence on the worst case, and whether it stays above a floor.

    Parameters
    ----------
    result : RedTeam
        The results of the red team.
    floor : float, optional
        The lowest acceptable accuracy, in percent.
    """
    accuracy, label, f = result.bottom
    value = "died, as 0 %," if result.died(label, f) else f"{100 * accuracy:.2f} %"
    sentence = (
        f"Worst with real f <= declared f = {result.setting.declared_f}: {value} under {label} with "
        f"f = {f}; without attackers {100 * result.alone:.2f} %"
    )
    if floor is None:
        return f"{sentence}."
    tried = any(f <= result.setting.declared_f for f in result.real_f) and result.families
    verdict = "held" if result.holds(floor) else "did not hold" if tried else "is not held: no attack was tried"
    return f"{sentence}. The floor of {floor:g} % {verdict}."


# -- pictures --------------------------------------------------------------------------------------


_CELL = 0.31  # least width of a cell, in inches
_ROW = 0.135  # height of a line of a row, in inches


def heatmap(result: RedTeam) -> Figure:
    """Draw accuracies by attack and real f (the number of attackers).

    Parameters
    ----------
    result : RedTeam
        The results of the red team.

    Returns
    -------
    Figure
        As wide as a page; it states the setting of the runs.
    """
    columns = [(f"f = {f}{' (> declared)' if f > result.setting.declared_f else ''}", result, f) for f in result.real_f]
    # Without attackers there is one column all the same.
    columns = columns or [("f = 0", result, 0)]
    labels = {label: family for label, family in result.families.items() if label not in result.left_out}
    return _map(f"{_subject(result)}; {_length(result)}", labels, columns)


def _map(said: str, families: dict[str, str], columns: Sequence[tuple[str, RedTeam, int]]) -> Figure:
    """Draw the accuracies under some attacks, by column: its title, its results and its number of attackers."""
    rows = [NO_ATTACK.label, HONEST_MEAN.label, *families, WORST]
    names = {row: row for row in rows} if wide(rows) <= 0.42 * PAGE else name_rows(rows, PAGE)
    titles = [title for title, _, _ in columns]
    parts = chunks(titles, int((PAGE - 0.25 - wide(names.values())) / _CELL))
    left = iter(columns)
    most = max(map(len, parts))
    turned = inches(max(map(len, titles))) > (PAGE - 0.25 - wide(names.values())) / most
    below = 0.25 + (0.6 * wide(titles) if turned else 0.0)
    size = (PAGE, len(parts) * (_ROW * tall(names.values()) * len(rows) + below) + 0.4)
    norm, colours = Normalize(0, 100), colormaps["viridis"]
    legend: dict[str, Artist] = {}
    with styled():
        figure, axes = make_panels(len(parts), 1, size)
        for axis, part in zip(axes[:, 0], parts, strict=True):
            values = np.full((len(rows), len(part)), np.nan)
            image = axis.imshow(values, norm=norm, cmap=colours, aspect="auto")
            for x, (_, result, f) in enumerate(islice(left, len(part))):
                worst = _worst(result, f)
                for y, row in enumerate(rows):
                    place = _place(worst, f) if row == WORST else _place([row], f)
                    text = result.told(*place)
                    values[y, x] = 100 * (result.accuracy(*place) or 0.0) if text not in (NOT_TRIED, DIED) else np.nan
                    _write(axis, x, y, text, ink(colours(norm(values[y, x]))), legend)
                    if row in worst:
                        _frame(axis, x, y)
            image.set_data(values)
            axis.set_xlim(-0.5, most - 0.5)  # cells of a shorter part are as wide
            axis.spines[:].set_visible(False)
            angle: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
            axis.set_xticks(range(len(part)), part, **angle)
            axis.set_yticks(range(len(rows)), [names[row] for row in rows])
            axis.tick_params(length=0)
            for y, (one, two) in enumerate(pairwise(families.get(row, row) for row in rows)):
                if one != two and y > 0:
                    axis.axhline(y + 0.5, color="white", lw=2.5 if y == 1 or two == WORST else 1.0)
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, shrink=0.7, aspect=40, pad=0.01)
        bar.set_label("test accuracy, %")
        legend["worst of its column"] = Patch(fc="none", ec="black", lw=1.1)
        finish(figure, f"{said}. {_named_worst(columns)}", legend)
    return figure


def _write(axis: Axes, x: int, y: int, text: str, colour: str, legend: dict[str, Artist]) -> None:
    """Write the text of a cell, and what it means into the legend; the cell of runs that died is hatched."""
    box = None
    if text == DIED:
        legend["died: no finite model"] = hatched(axis, x, y, dense=True)
        box = {"fc": "white", "ec": "none", "pad": 0.0}
    elif text == NOT_TRIED:
        legend["- not run"] = Patch(fc="none", ec="none")
    elif SOME_DIED in text:
        legend[f"{SOME_DIED} some seeds died (as 0)"] = Patch(fc="none", ec="none")
    if text in (DIED, NOT_TRIED):
        colour = "black"
    axis.text(x, y, text, ha="center", va="center_baseline", fontsize=SMALL, color=colour, bbox=box)


def _frame(axis: Axes, x: int, y: int) -> None:
    """Frame a cell, in black with a white border, which is seen on every colour."""
    frame = Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, fc="none", ec="black", lw=1.1, zorder=3)
    frame.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
    axis.add_patch(frame)


def _named_worst(columns: Sequence[tuple[str, RedTeam, int]]) -> str:
    """Return which attack is the worst of which column."""
    found: dict[str, list[str]] = {}
    for title, result, f in columns:
        found.setdefault(_first_of(_worst(result, f)), []).append(title)
    return "Worst: " + "; ".join(f"{label} for {', '.join(titles)}" for label, titles in found.items())


# -- side by side ----------------------------------------------------------------------------------


def _labels(results: Sequence[RedTeam]) -> dict[str, str]:
    """Return the families of all attacks that were run against any of the strategies, by label."""
    families = {label: family for result in results for label, family in result.families.items()}
    return {
        label: family for label, family in families.items() if not all(label in result.left_out for result in results)
    }


def _check_alike(results: Sequence[RedTeam]) -> int:
    """Return the real f for the comparison, which is the declared f; raise if the attacks differed."""
    if not results:
        raise ConfigurationError("compare: there must be at least one result")
    first = results[0]
    for other in results[1:]:
        for key in ("declared_f", "clients", "rounds", "partition", "model", "task", "validation"):
            one, two = (getattr(result.setting, key) for result in (first, other))
            if one != two:
                raise ConfigurationError(
                    f"compare: strategies must have been attacked alike; {first.setting.name} has {key}={one!r}, "
                    f"{other.setting.name} {key}={two!r}"
                )
        if first.seeds != other.seeds:
            raise ConfigurationError(
                f"compare: strategies must have been attacked alike; {first.setting.name} has seeds {first.seeds}, "
                f"{other.setting.name} {other.seeds}"
            )
    f = first.setting.declared_f
    if lacking := [result.setting.name for result in results if f not in result.real_f]:
        raise ConfigurationError(f"compare: {', '.join(lacking)} must have been attacked by real f={f} attackers")
    return f


def compare(results: Sequence[RedTeam]) -> str:
    """Return tables in Markdown of strategies side by side, real f = declared f.

    Parameters
    ----------
    results : sequence of RedTeam
        One per strategy, all with the same clients, data, model, rounds, seeds and declared f.

    Raises
    ------
    ConfigurationError
        If they differ in any of these.
    """
    f = _check_alike(results)
    names = [result.setting.name for result in results]
    worst = [_worst(result, f) for result in results]
    lines = [
        f"Final test accuracy in percent, with real f = declared f = {f}: {_length(results[0])}. The worst of each "
        f"strategy is in bold. Died: the run left no finite model, which counts as 0. {SOME_DIED}: some seeds died.",
        "",
        *_header("attack", names),
        _line(NO_ATTACK.label, _bold(NO_ATTACK.label, results, 0, worst)),
        _line(f"{HONEST_MEAN.label} (omniscient)", [result.told(HONEST_MEAN.label, f) for result in results]),
    ]
    family = ""
    for label, listed in _labels(results).items():
        if listed != family:
            family = listed
            lines.append(_line(f"*{family}{' (review)' if family in REVIEW else ''}*", [""] * len(results)))
        lines.append(_line(f"`{label}`", _bold(label, results, f, worst)))
    least = [result.told(*_place(labels, f)) for result, labels in zip(results, worst, strict=True)]
    under = [_first_of(labels) for labels in worst]
    cells = [f"{text} `{label}`" for text, label in zip(least, under, strict=True)]
    lines.append(_line(f"**{WORST}**", cells))
    lines += ["", "The worst of each strategy, and its change against no attack in points:", ""]
    lines += _header("strategy", ["no attack", "worst", "change", "worst of those that left a model", "change"])
    for result in results:
        alive = [label for label in result.families if not any(run.end for run in result.of(label, f))]
        both = [cell for labels in (None, alive) for cell in _fall(result, f, _worst(result, f, labels))]
        lines.append(_line(result.setting.name, [result.told(NO_ATTACK.label, 0), *both]))
    lines += ["", f"Success of the attack in percent, without attackers -> real f = {f}.", ""]
    lines += _header("attack", names)
    for label in _labels(results):
        if any(result.success(label, f) is not None for result in results):
            rates = [
                f"{_percent(result.success(label, 0))} -> {_percent(result.success(label, f))}" for result in results
            ]
            lines.append(_line(f"`{label}`", rates))
    lines += ["", "How each was made, and the rule that attackers who know the defence look at:", ""]
    lines += _header("strategy", ["made by", "rule"], "---")
    for setting in (result.setting for result in results):
        lines.append(_line(setting.name, [f"`{setting.subject}`", f"`{setting.rule}`" if setting.rule else "its own"]))
    died: dict[str, list[str]] = {}
    for result in results:
        for reason, labels in _deaths(result, [f]).items():
            died.setdefault(f"under {', '.join(f'`{label}`' for label in labels)}: {reason}", []).append(
                result.setting.name
            )
    lines += ["", "What they died of:", ""] if died else []
    lines += [f"- {', '.join(names)}, {how}" for how, names in died.items()]
    return "\n".join(lines) + "\n"


def _bold(label: str, results: Sequence[RedTeam], f: int, worst: Sequence[Sequence[str]]) -> list[str]:
    """Return the texts of an attack by strategy, in bold where it is the worst."""
    return [
        f"**{text}**" if label in labels else text
        for result, labels in zip(results, worst, strict=True)
        for text in [result.told(label, f)]
    ]


def _fall(result: RedTeam, f: int, labels: Sequence[str]) -> list[str]:
    """Return the worst accuracy with its attack, and its change against no attack."""
    place = _place(labels, f)
    text, accuracy = result.told(*place), result.accuracy(*place)
    change = DIED if text == DIED or accuracy is None else f"{100 * (accuracy - result.alone):+.1f}"
    return [f"{text} `{_first_of(labels)}`", change]


def comparison_map(results: Sequence[RedTeam]) -> Figure:
    """Draw accuracies by attack and strategy, with real f = declared f.

    Parameters
    ----------
    results : sequence of RedTeam
        As for `compare`.

    Returns
    -------
    Figure
        As wide as a page; it states the setting of the runs.
    """
    f = _check_alike(results)
    columns = [(result.setting.name, result, f) for result in results]
    return _map(f"Real f = {f}; {_length(results[0])}", _labels(results), columns)


def _header(first: str, names: Sequence[str], align: str = "---:") -> list[str]:
    return [_line(first, names), f"|---|{f'{align}|' * len(names)}"]


def _line(first: str, cells: Sequence[str]) -> str:
    # The text between vertical bars must not hold one.
    return "| " + " | ".join(text.replace("|", "\\|") for text in (first, *cells)) + " |"


def into_page(path: Path, text: str) -> str:
    """Return a page in which the part between the marks is replaced.

    Parameters
    ----------
    path : Path
        A Markdown file with the two marks.
    text : str
        The new text between the marks.

    Raises
    ------
    ConfigurationError
        If the page cannot be read, or lacks the marks.
    """
    try:
        before, _, rest = path.read_text().partition(_MARKS[0])
    except OSError as error:
        raise ConfigurationError(f"page {path} cannot be read ({error.strerror}); name another") from None
    _, found, after = rest.partition(_MARKS[1])
    if not found:
        raise ConfigurationError(f"page {path} must hold the lines {' and '.join(_MARKS)}")
    return f"{before}{_MARKS[0]}\n\n{text}\n{_MARKS[1]}{after}"
