"""The standings of the league, and the page that shows them; both are made from the record alone.

The worst case is taken seed by seed, as in studies: for every seed it is the attack with the lowest accuracy. A rule's
score on a data set is the mean of its worst cases over the partitions.
"""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr_robust.redteam.league import (
    ATTACKERS,
    BEHIND,
    CHOSEN_ON,
    CLIENTS,
    DATA_SETS,
    NONE,
    PARTITIONS,
    SEARCHES,
    SEEDS,
    SIZE,
    TERMS,
    Cell,
    Choice,
    Entry,
    League,
    attacks,
    entries,
    left_out,
    without_entry,
)
from flwr_robust.studies.intervals import Estimate, estimate, paired

__all__ = ["Standing", "Worst", "findings", "lacking", "page", "standing", "standings"]

_BASELINE = "mean()"
_PLACE = "experiments/recorded/red-team/league.json"


@dataclass(frozen=True)
class Worst:
    """The worst case of a rule on one partition.

    Attributes
    ----------
    values : tuple of float
        The lowest accuracy over attacks, for each seed.
    under : str
        The attack that is lowest for most seeds.
    lowest : int
        The class that is recognised least often under that attack, for most seeds.
    class_accuracy : float
        The accuracy on that class, as the mean over seeds.
    """

    values: tuple[float, ...]
    under: str
    lowest: int
    class_accuracy: float


@dataclass(frozen=True)
class Standing:
    """A row of the table of a data set.

    Attributes
    ----------
    rule : str
        The defence string, with the chosen hyper-parameter.
    worst : mapping of str to Worst
        The worst case by partition.
    calm : mapping of str to float
        The accuracy without attack by partition, as the mean over seeds.
    calm_class : float
        The accuracy on the worst class without attack, as the mean over partitions and seeds.
    sacrificed : tuple of (int, float)
        The class that is the worst in most runs, and the share of these runs.
    price : float or None
        How far the accuracy without attack is below that of the mean, over all partitions; None without the mean.
    cost : float or None
        Milliseconds per aggregation.
    """

    rule: str
    worst: Mapping[str, Worst]
    calm: Mapping[str, float]
    calm_class: float
    sacrificed: tuple[int, float]
    price: float | None
    cost: float | None

    @property
    def seeds(self) -> tuple[float, ...]:
        """The score of each seed: the mean of the worst cases over partitions."""
        return tuple(map(statistics.fmean, zip(*(each.values for each in self.worst.values()), strict=True)))

    @property
    def score(self) -> Estimate:
        """The mean score over seeds, with its interval."""
        return estimate(self.seeds)

    @property
    def calm_mean(self) -> float:
        """The accuracy without attack, as the mean over partitions."""
        return statistics.fmean(self.calm.values())

    def level(self, other: Standing) -> bool:
        """Say whether the seeds leave open which of two rows is ahead."""
        found = paired(*({str(seed): value for seed, value in enumerate(row.seeds)} for row in (self, other)))
        return found is not None and found.sign == 0


def standing(league: League, data: str, rule: str) -> Standing | None:
    """Return the row of a rule on a data set; None if a cell is missing."""
    if any(league.missing(data, rule, partition) for partition in PARTITIONS):
        return None
    groups = {partition: league.groups[data, rule, partition] for partition in PARTITIONS}
    calm = {partition: cells[NONE].mean for partition, cells in groups.items()}
    runs = [number for cells in groups.values() for cell in cells.values() for number in cell.classes if number >= 0]
    (most, count), *_ = Counter(runs).most_common() or [(-1, 0)]
    price = None
    if not any(league.missing(data, _BASELINE, partition) for partition in PARTITIONS):
        of_mean = [league.groups[data, _BASELINE, partition][NONE].mean for partition in PARTITIONS]
        price = statistics.fmean(of_mean) - statistics.fmean(calm.values())
    return Standing(
        rule,
        {partition: _worst(cells) for partition, cells in groups.items()},
        calm,
        statistics.fmean(value for cells in groups.values() for value in cells[NONE].worst),
        (most, count / max(1, len(runs))),
        price,
        league.costs.get(rule),
    )


def _worst(cells: Mapping[str, Cell]) -> Worst:
    """Return the worst case over the attacks of a group."""
    attacked = {label: cell for label, cell in cells.items() if label != NONE}
    lowest = [min(attacked, key=lambda label: attacked[label].accuracy[place]) for place in range(len(SEEDS))]
    under = Counter(lowest).most_common()[0][0]
    cell = attacked[under]
    return Worst(
        tuple(attacked[label].accuracy[place] for place, label in enumerate(lowest)),
        under,
        Counter(cell.classes).most_common()[0][0],
        statistics.fmean(cell.worst),
    )


def standings(league: League, data: str, rows: Sequence[Entry] | None = None) -> list[Standing]:
    """Return the complete rows of a data set, the best worst case first.

    Parameters
    ----------
    league : League
        The record.
    data : str
        One of `DATA_SETS`.
    rows : sequence of Entry, optional
        The rows; those of `entries` when not given.
    """
    texts = dict.fromkeys(league.chosen(data, entry) for entry in (entries() if rows is None else rows))
    found = [row for text in texts if text is not None and (row := standing(league, data, text)) is not None]
    return sorted(found, key=lambda row: (-row.score.mean, row.rule))


def lacking(league: League, data: str) -> list[str]:
    """Return the rows that a data set lacks, in whole or in part."""
    return [
        entry.text(entry.key)
        for entry in entries()
        if (text := league.chosen(data, entry)) is None or standing(league, data, text) is None
    ]


# -- sentences ------------------------------------------------------------------------------------


def findings(league: League) -> list[str]:
    """Return what the tables say, in three sentences for each data set: who leads, its price, and what is behind it."""
    return [
        sentence
        for data in DATA_SETS
        if (rows := standings(league, data))
        for sentence in _findings(data, rows, bool(lacking(league, data)))
    ]


def _findings(data: str, rows: Sequence[Standing], partial: bool) -> list[str]:
    first = rows[0]
    by_rule = {row.rule: row for row in rows}
    level = [row.rule for row in rows[1:] if first.level(row)]
    mean = by_rule.get(_BASELINE)
    parts = ", ".join(f"{_percent(statistics.fmean(first.worst[p].values))} {_named(p)}" for p in PARTITIONS)
    leads = (
        f"On {data}, `{first.rule}` has the best worst case over all attacks"
        + (f" of the {len(rows)} rows run so far" if partial else "")
        + f", {_percent(first.score.mean)} % ({parts})"
        + (f"; the mean has {_percent(mean.score.mean)} %" if mean and mean is not first else "")
        + (f"; three seeds leave open whether it is ahead of {len(level)} other rows" if level else "")
        + "."
    )
    dearest = max(rows, key=lambda row: row.calm[PARTITIONS[0]] - row.calm[PARTITIONS[-1]])
    price = "" if first.price is None else f"{100 * first.price:.1f} points below the mean, "
    pays = (
        f"Without attack that rule reaches {_percent(first.calm_mean)} % on {data}, {price}"
        f"and {_percent(first.calm_class)} % on its worst class; from samples dealt {_named(PARTITIONS[0])} to "
        f"{_named(PARTITIONS[-1])} `{dearest.rule}` loses most without any attack, from "
        f"{_percent(dearest.calm[PARTITIONS[0]])} to {_percent(dearest.calm[PARTITIONS[-1]])} %."
    )
    best = {p: max(rows, key=lambda row: statistics.fmean(row.worst[p].values)) for p in PARTITIONS}
    falls = ", ".join(
        f"{_percent(statistics.fmean(best[p].worst[p].values))} % {_named(p)} (`{best[p].rule}`)" for p in PARTITIONS
    )
    helped = [text for before in BEHIND if (text := _helped(by_rule, before))]
    behind = (
        f"On {data} the best worst case of any rule is {falls}" + (f"; {' and '.join(helped)}" if helped else "") + "."
    )
    return [leads, pays, behind]


def _helped(by_rule: Mapping[str, Standing], before: str) -> str:
    """Say what a pre-aggregator does to the rules that are there with and without it."""
    gains = [
        row.score.mean - by_rule[alone].score.mean
        for rule, row in by_rule.items()
        if rule.startswith(f"{before} | ") and (alone := rule.removeprefix(f"{before} | ")) in by_rule
    ]
    if not gains:
        return ""
    raised = sum(gain > 0 for gain in gains)
    middle = 100 * statistics.median(gains)
    return f"{_name(before)} raises it for {raised} of {len(gains)} rules, by {middle:.1f} points in the median"


def _named(partition: str) -> str:
    """Return a partition in a few words."""
    return partition.replace("beta=", "").replace("_", " ")


def _name(text: str) -> str:
    return text.partition("(")[0]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


# -- the page -------------------------------------------------------------------------------------


def page(league: League) -> str:
    """Return the page as Markdown."""
    told = {data: standings(league, data) for data in DATA_SETS}
    parts = [
        "# The league: every rule against every attack\n",
        *_introduction(),
        "## What it says\n",
        *(_item(sentence) for sentence in findings(league)),
        "",
        *(part for data, rows in told.items() if rows for part in _of_data(league, data, rows)),
        *_lacking(league),
        *_how(),
        *_terms(),
        *_choices(league),
        "## What is not in it, and why\n",
        *_reasons("rules", without_entry()),
        *_reasons("attacks", left_out()),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _introduction() -> list[str]:
    return _prose(
        f"Each row is a rule, alone or behind a pre-aggregator. It meets {len(attacks()) - 1} attacks by {ATTACKERS} "
        f"of {CLIENTS} clients, on four partitions, with three seeds. What counts is the worst case: for each seed the "
        f"lowest test accuracy over all attacks. The tables are sorted by its mean over the four partitions.",
        f"`make pages` makes this page from `{_PLACE}` alone.",
    )


def _of_data(league: League, data: str, rows: Sequence[Standing]) -> list[str]:
    """Return the tables of a data set."""
    shown = [_named(partition) for partition in PARTITIONS]
    first = [
        (
            str(place),
            f"`{row.rule}`",
            f"**{_percent(row.score.mean)}**",
            *(
                f"{_percent(statistics.fmean(v))} ± {_percent(statistics.stdev(v))}"
                for v in (row.worst[p].values for p in PARTITIONS)
            ),
            _percent(row.calm_mean),
            "-" if row.price is None else f"{100 * row.price:.1f}",
            _percent(row.calm_class),
            "-" if row.cost is None else f"{row.cost:.1f}",
        )
        for place, row in enumerate(rows, 1)
    ]
    second = [
        (
            f"`{row.rule}`",
            *(f"{w.under}: {w.lowest} at {_percent(w.class_accuracy)}" for w in (row.worst[p] for p in PARTITIONS)),
            f"{row.sacrificed[0]} ({100 * row.sacrificed[1]:.0f} %)",
        )
        for row in rows
    ]
    return [
        f"## {data}\n",
        *_prose(
            "Worst case in percent, with its standard deviation over seeds. *No attack* is the mean over partitions, "
            "*price* how many points it is below the plain mean, *worst class* the accuracy on the class that fares "
            "worst without attack, *ms* the cost of an aggregation."
        ),
        *_table(("#", "rule", "worst case", *shown, "no attack", "price", "worst class", "ms"), first, "rlrrrrrrrrr"),
        f"### Under which attack, and who is sacrificed: {data}\n",
        *_prose(
            "The attack that is worst for most seeds, the class that is then recognised least often, and its accuracy. "
            "The last column is the class that is the worst in most runs of the row, attacked or not."
        ),
        *_table(("rule", *shown, "most often"), second, "llllll"),
    ]


def _lacking(league: League) -> list[str]:
    """Return what has not been run, and what left no model."""
    parts = []
    if found := {data: names for data in DATA_SETS if (names := lacking(league, data))}:
        parts += [
            "## What is missing\n",
            *_prose(
                "These rows have not been run, or not in whole. One command runs them, and can be stopped at any time:"
            ),
            f"```bash\nflwr-robust league --run --results {_PLACE} --page docs/league.md\n```\n",
            *(_item(f"{data}: {_gathered(names)}.") for data, names in found.items()),
            "",
        ]
    failed = [
        (data, f"`{rule}`", _named(partition), f"`{label}`", cell.failed)
        for (data, rule, partition), cells in league.groups.items()
        for label, cell in cells.items()
        if cell.failed
    ]
    if failed:
        parts += ["## Runs that left no model\n", *_prose("They count as an accuracy of 0.")]
        parts += _table(("data", "rule", "partition", "attack", "why"), failed, "lllll")
    return parts


def _gathered(names: Sequence[str]) -> str:
    """Return names of rows, those behind the same pre-aggregator together."""
    parts = []
    for before in ("", *BEHIND):
        own = [name.removeprefix(f"{before} | ") for name in names if before == (name.rpartition(" | ")[0])]
        if own:
            parts.append(f"{f'behind {_name(before)}' if before else 'alone'} {', '.join(f'`{name}`' for name in own)}")
    return "; ".join(parts)


def _reasons(what: str, reasons: Mapping[str, str]) -> list[str]:
    """Return a table of reasons, each with the names for which it holds."""
    held: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        held.setdefault(reason, []).append(f"`{name}`")
    return _table((what, "reason"), [(", ".join(names), reason) for reason, names in held.items()], "ll")


def _how() -> list[str]:
    return [
        "## Add a rule\n",
        f"```bash\nflwr-robust league --rule 'my_rule(f={ATTACKERS})' --plugin mine.py\n```\n",
        *_prose(
            "This attacks a rule of your own in the same way, and shows its rows between the recorded ones. "
            f"`--candidate 'my_rule(f={ATTACKERS}, c=2.0)'` names another setting; validation samples choose. "
            "`--on digits` is half the work, and needs no download.",
            "A rule that is registered in `flwr_robust/aggregators` needs nothing more: `flwr-robust league --run` "
            "finds and runs it.",
        ),
    ]


def _terms() -> list[str]:
    keys = ", ".join(f"`{key} = {value}`" for key, value in TERMS.items())
    return [
        "## Under which terms\n",
        _item(
            f"Declared f and the number of attackers: {ATTACKERS} of {CLIENTS} clients, the most that Bulyan's "
            f"n >= 4f + 3 allows."
        ),
        _item(f"All runs share {keys}. Seeds: {', '.join(map(str, SEEDS))}."),
        _item(
            "digits: 1,442 training and 355 test images of 8 x 8. fashion_mnist: the first 6,000 training and 2,000 "
            "test images, at 14 x 14 (each 2 x 2 pixels as their mean)."
        ),
        _item(
            "Attacks see the honest messages. The optimised ones also know the rule in use and its state, and try "
            f"{SEARCHES} strengths in a round."
        ),
        _item(
            f"Cost: the CPU time of an aggregation of {CLIENTS} rows of {SIZE:,} numbers on one thread, the least of 7."
        ),
        _item(
            f"{TERMS['rounds']} rounds are a short training, and a linear model is an easy one. With longer runs and "
            f"deep models the order may be another."
        ),
        "",
    ]


def _choices(league: League) -> list[str]:
    """Return the choices of hyper-parameters."""
    made = [
        (
            data,
            f"`{text}`",
            _percent(value),
            under if under == NONE else f"`{under}`",
            "chosen" if text == choice.chosen else "",
        )
        for (data, _), choice in league.choices.items()
        for text, (value, under) in _ranked(choice)
    ]
    if not made:
        return []
    partition, seed = CHOSEN_ON
    return [
        "## How hyper-parameters were chosen\n",
        *_prose(
            "By the worst accuracy on validation samples (a tenth of what honest clients hold), over all attacks that "
            f"do not search, for each data set. The seed ({seed}) is of this choice alone, and the partition is "
            f"{_named(partition)}. Of equal candidates the first in the list is taken. Test samples were not read. "
            "What is chosen for a rule alone holds behind a pre-aggregator, too. Rules that are not here have no "
            "hyper-parameter besides f, or keep its default."
        ),
        *_table(("data", "candidate", "worst on validation", "under", ""), made, "llrll"),
    ]


def _ranked(choice: Choice) -> list[tuple[str, tuple[float, str]]]:
    return sorted(choice.values.items(), key=lambda each: -each[1][0])


def _prose(*paragraphs: str) -> list[str]:
    """Return paragraphs in lines of at most 120 characters, each with an empty line behind it."""
    return [f"{_filled(text)}\n" for text in paragraphs]


def _item(text: str) -> str:
    return _filled(f"- {text}", "  ")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return a Markdown table and an empty line; ``|`` in cells is escaped."""
    lines = [[*head], ["---:" if side == "r" else "---" for side in align], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]
