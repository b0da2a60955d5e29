"""Reports of red teams: tables for the terminal, heatmaps, and strategies side by side in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from flwr_robust.errors import ConfigurationError, extra
from flwr_robust.redteam.battery import HONEST_MEAN, NO_ATTACK, REVIEW
from flwr_robust.redteam.run import RedTeam
from flwr_robust.studies.plots import as_file

with extra("studies"):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

__all__ = ["compare", "comparison_map", "conclude_red_team", "footnotes", "heatmap", "into_page", "red_tables"]

_COLUMNS = 3  # columns of three numbers that fit beside the attacks in a hundred characters
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
    table.add_row(f"{NO_ATTACK.label}, f = 0", *(f"{100 * result.alone:.1f}{' ' * 14}" for _ in attackers))
    table.add_row(HONEST_MEAN.label, *(_changes(result, HONEST_MEAN.label, f) for f in attackers))
    worst = {f: result.worst([f])[1] for f in attackers}
    family = ""
    for label in result.families:
        if label in result.left_out:
            continue
        if result.families[label] != family:
            family = result.families[label]
            table.add_section()
            table.add_row(Text(f"{family}{' (review)' if family in REVIEW else ''}", "italic"))
        cells = [_changes(result, label, f) for f in attackers]
        bold = [Text(text, "bold" if worst[f] == label else "") for f, text in zip(attackers, cells, strict=True)]
        table.add_row(Text(label), *bold)
    return table


def _heading(result: RedTeam, f: int) -> str:
    return f"f = {f}{' (> declared)' if f > result.setting.declared_f else ''}"


def _all_f(result: RedTeam) -> list[int]:
    return [0, *result.real_f]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _changes(result: RedTeam, label: str, f: int) -> str:
    """Return the accuracy and its differences from both baselines."""
    accuracy, honest = result.accuracy(label, f), result.honest(f)
    if accuracy is None or honest is None:
        return "-"
    return f"{result.told(label, f)} {100 * (accuracy - result.alone):+6.1f} {100 * (accuracy - honest):+6.1f}"


def footnotes(result: RedTeam) -> list[str]:
    """Return the footnotes of the tables, a sentence each.

    Parameters
    ----------
    result : RedTeam
        The results of the red team.
    """
    s = result.setting
    subject = s.name if s.subject == s.name else f"{s.name}: {s.subject}"
    held_out = f", {100 * s.validation:g} % of the training samples held out" if s.validation else ""
    notes = [
        f"{subject}; {s.clients} clients, declared f = {s.declared_f}, {s.task}, {s.partition}, {s.model}, messages "
        f"{s.message}, {s.rounds} rounds{held_out}, seeds {', '.join(map(str, result.seeds))}; mean over seeds.",
        "Mean of the honest: the same clients without the attackers, by the plain mean.",
    ]
    runs = [run for label in result.families for f in result.real_f for run in result.of(label, f)]
    for reason in dict.fromkeys(run.died for run in runs if run.died):
        victims = dict.fromkeys(run.attack for run in runs if run.died == reason)
        notes.append(f"Died, which counts as 0, under {', '.join(victims)}: {reason}")
    if broken := dict.fromkeys(run.attack for run in runs if not run.finite):
        notes.append(f"NaN, a model that is not finite, which counts as 0, under {', '.join(broken)}.")
    if any("†" in result.told(label, f) for label in result.families for f in result.real_f):
        notes.append("†: the runs of some seeds ended so.")
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
    sentence = (
        f"Worst with real f <= declared f = {result.setting.declared_f}: {100 * accuracy:.2f} % under {label} with "
        f"f = {f}; without attackers {100 * result.alone:.2f} %"
    )
    if floor is None:
        return f"{sentence}."
    tried = any(f <= result.setting.declared_f for f in result.real_f) and result.families
    verdict = "held" if result.holds(floor) else "did not hold" if tried else "is not held: no attack was tried"
    return f"{sentence}. The floor of {floor:g} % {verdict}."


# -- pictures --------------------------------------------------------------------------------------


def heatmap(result: RedTeam) -> bytes:
    """Draw accuracies by attack and real f (the number of attackers), as a PNG file.

    Parameters
    ----------
    result : RedTeam
        The results of the red team.
    """
    labels = [label for label in (HONEST_MEAN.label, *result.families) if label not in result.left_out]
    shown = {
        (label, str(f)): (result.alone, f"{100 * result.alone:.1f}")
        if f == 0 and label != HONEST_MEAN.label
        else (result.accuracy(label, f) or 0.0, result.told(label, f))
        for label in labels
        for f in _all_f(result)
    }
    title = f"{result.setting.name}: accuracy in % by real f (declared: {result.setting.declared_f})"
    return _map(title, labels, [str(f) for f in _all_f(result)], shown)


def _map(
    title: str, rows: Sequence[str], columns: Sequence[str], shown: dict[tuple[str, str], tuple[float, str]]
) -> bytes:
    values = np.array([[100 * shown[row, column][0] for column in columns] for row in rows])
    width, height = 3.6 + 0.8 * len(columns), 1.2 + 0.2 * len(rows) + 0.06 * max(map(len, columns))
    figure, axis = plt.subplots(figsize=(max(width, 6.4), height), layout="constrained")
    image = axis.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            colour = "black" if values[i, j] > 60 else "white"
            axis.text(j, i, shown[row, column][1], ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    if max(map(len, columns)) > 4:
        plt.setp(axis.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.tick_params(length=0)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axis, label="test accuracy, %", fraction=0.04, pad=0.02)
    return as_file(figure, dpi=100)


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
    s, names = results[0].setting, [result.setting.name for result in results]
    lines = [
        f"Final test accuracy in percent, real f = declared f = {f} of {s.clients} clients, {s.task}, {s.partition}, "
        f"{s.model}, {s.rounds} rounds, mean over seeds {', '.join(map(str, results[0].seeds))}; the worst case of "
        f"each strategy in bold. A run that died, or ended with a model that is not finite (NaN), counts as 0; †: some "
        f"seeds did.",
        "",
        *_header("attack", names),
        _line(NO_ATTACK.label, [result.told(NO_ATTACK.label, 0) for result in results]),
        _line(f"{HONEST_MEAN.label} (omniscient)", [result.told(HONEST_MEAN.label, f) for result in results]),
    ]
    family = ""
    worst = [result.worst([f])[0] for result in results]
    for label, listed in _labels(results).items():
        if listed != family:
            family = listed
            lines.append(_line(f"*{family}{' (review)' if family in REVIEW else ''}*", [""] * len(results)))
        cells = [
            f"**{text}**" if result.accuracy(label, f) == least and text != "-" else text
            for result, least in zip(results, worst, strict=True)
            for text in [result.told(label, f)]
        ]
        lines.append(_line(f"`{label}`", cells))
    lines.append(_line("worst case against no attack", [_change(result, result.families, f) for result in results]))
    alive = [[label for label in result.families if _lived(result, label, f)] for result in results]
    cells = [_change(result, labels, f) for result, labels in zip(results, alive, strict=True)]
    lines.append(_line("the same without those that died or were NaN", cells))
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
    died = [
        (result.setting.name, run.died)
        for result in results
        for label in result.families
        for run in result.of(label, f)
        if run.died
    ]
    lines += ["", "What they died of:", ""] if died else []
    for reason in dict.fromkeys(reason for _, reason in died):
        lines.append(f"- {', '.join(dict.fromkeys(name for name, found in died if found == reason))}: {reason}")
    return "\n".join(lines) + "\n"


def _lived(result: RedTeam, label: str, f: int) -> bool:
    """Say whether all runs of an attack ended with a finite model."""
    return all(run.finite and not run.died for run in result.of(label, f))


def _change(result: RedTeam, labels: Iterable[str], f: int) -> str:
    """Return the difference of the lowest accuracy under some attacks from that without attack."""
    tried = [accuracy for label in labels if (accuracy := result.accuracy(label, f)) is not None]
    return f"{100 * (min(tried) - result.alone):+.1f}" if tried else "-"


def comparison_map(results: Sequence[RedTeam]) -> bytes:
    """Draw accuracies by attack and strategy, with real f = declared f, as a PNG file.

    Parameters
    ----------
    results : sequence of RedTeam
        As for `compare`.
    """
    f = _check_alike(results)
    labels = [HONEST_MEAN.label, *_labels(results)]
    shown = {
        (label, result.setting.name): (result.accuracy(label, f) or 0.0, result.told(label, f))
        for label in labels
        for result in results
    }
    names = [result.setting.name for result in results]
    return _map(f"accuracy in %, real f = declared f = {f}", labels, names, shown)


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
