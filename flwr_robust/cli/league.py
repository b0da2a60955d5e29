"""The verb ``league``: show the league, run what it lacks, and rank a rule of one's own in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_robust.cli.shared import Data, Json, Plugins, as_text, console, print_json, say, told
from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_choice

if TYPE_CHECKING:
    from rich.table import Table

    from flwr_robust.redteam.league import Entry, League
    from flwr_robust.redteam.league_page import Standing

__all__ = ["league_command"]

_FIRST, _AROUND = 3, 2  # rows that are shown with a rule of one's own: the leaders, and those before and after it


def league_command(
    rule: Annotated[str, typer.Option(help="A defence string to attack, and to rank among the recorded rules.")] = "",
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidate", help="A further setting of --rule; validation samples choose. May be repeated."),
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option("--on", help="digits or fashion_mnist; both by default. May be repeated.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Run what the record lacks; all of it takes about 80 minutes of a core.")
    ] = False,
    results: Annotated[Path, typer.Option(help="File of what you run; the recorded league is read, too.")] = Path(
        "results/league.json"
    ),
    page: Annotated[Path | None, typer.Option(help="A Markdown file to write the league into.")] = None,
    data: Data = "",
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show every rule against every attack, the best worst case first. Without an option nothing is run.

    All rules meet the same attacks, by 3 of 15 clients, on four partitions of two data sets, with three seeds. To rank
    a rule of your own, which takes a minute or two for each data set:

        flwr-robust league --rule 'my_rule(f=3)' --plugin mine.py --on digits

    --run runs what is missing, also rules that were registered since. Each finished group is written at once. You can
    stop at any time and start again.

    Exit status: 0 done, 2 wrong input. JSON: clients, attackers, seeds, data (for each data set: standings, missing),
    own (rule, data, rank, of). A standing holds rank, rule, worst (a mean over partitions and seeds), half (of its 95 %
    interval), no_attack, price, worst_class, ms, partitions. For each partition that is worst (of each seed), under,
    lowest_class, class_accuracy, no_attack. Accuracies are shares of one.
    """
    with told(plugins, resumable=run):
        from flwr_robust.files import write_atomically
        from flwr_robust.redteam.league import DATA_SETS, RECORD, entries, entry_of, read_league
        from flwr_robust.redteam.league_page import page as page_of
        from flwr_robust.redteam.league_page import standings

        for each in on or []:
            check_choice("league", "--on", each, tuple(DATA_SETS))
        if candidates and not rule:
            raise ConfigurationError(
                "league: --candidate is a further setting of --rule, and there is none; name the first with --rule"
            )
        if rule and (run or page is not None):
            raise ConfigurationError(
                f"league: --rule ranks a rule without recording it; got {'--run' if run else '--page'}, too: leave one "
                f"of them out"
            )
        wanted = [each for each in DATA_SETS if each in (on or DATA_SETS)]
        own = entry_of([rule, *(candidates or [])]) if rule else None
        league = read_league(RECORD)
        league.add(read_league(results))
        if own is not None:
            _fill(league, [own], wanted, data, None)
        elif run:
            _fill(league, entries(), wanted, data, results)
        rows = entries() if own is None else [*entries(), own]
        found = {each: standings(league, each, rows) for each in wanted}
        if page is not None:
            text = page_of(league).encode()
            try:
                write_atomically(page, lambda file: file.write(text))
            except OSError as error:
                raise FlwrRobustError(f"league: --page {page} cannot be written ({error.strerror})") from None
    if as_json:
        print_json(_document(league, found, own))
        return
    for each, listed in found.items():
        _show(league, each, listed, own)
    if page is not None:
        say(f"page: {page}")


def _fill(league: League, rows: Sequence[Entry], on: Sequence[str], folder: str, path: Path | None) -> None:
    """Run what a record lacks, and write it after each group; without a path it is not written."""
    from flwr_robust.redteam.league import run_league, waiting
    from flwr_robust.studies.runner import progress_bar

    with progress_bar() as progress:
        bar = progress.add_task("league", total=waiting(league, rows, on))
        for name, rule, partition, _ in run_league(league, rows, on, folder):
            if path is not None:
                league.write(path)
            progress.update(bar, advance=1, description=f"{name}: {rule}, {partition}"[:60])


def _show(league: League, data: str, rows: Sequence[Standing], own: Entry | None) -> None:
    """Print the table of a data set, and the place of one's own rule."""
    from flwr_robust.redteam.league_page import lacking

    text = None if own is None else league.chosen(data, own)
    place = next((number for number, row in enumerate(rows, 1) if row.rule == text), None)
    near = [
        number
        for number in range(1, len(rows) + 1)
        if place is None or number <= _FIRST or abs(number - place) <= _AROUND or rows[number - 1].rule == "mean()"
    ]
    console().print(_table(f"{data}: worst case over attacks, %", rows, near, place))
    if place is not None:
        row = rows[place - 1]
        under = "; ".join(f"{partition}: {worst.under}" for partition, worst in row.worst.items())
        console().print(f"{row.rule} has place {place} of {len(rows)} on {data}. It is worst under {under}.")
    elif missing := lacking(league, data):
        console().print(f"{len(missing)} rows are missing; --json names them, and `flwr-robust league --run` runs them")


def _table(title: str, rows: Sequence[Standing], near: Sequence[int], place: int | None) -> Table:
    """Return the table of some rows for a terminal."""
    from rich.table import Table

    from flwr_robust.redteam.league import PARTITIONS

    table = Table(title=title, title_justify="left")
    for name in ("#", "rule", "worst", *PARTITIONS, "no attack", "ms"):
        table.add_column(
            name.replace("dirichlet(beta=", "dir(").replace("_", " "), justify="left" if name == "rule" else "right"
        )
    for number in near:
        row, style = rows[number - 1], "bold" if number == place else ""
        means = [100 * sum(row.worst[partition].values) / len(row.worst[partition].values) for partition in PARTITIONS]
        cost = "-" if row.cost is None else f"{row.cost:.1f}"
        cells = (str(number), row.rule, f"{100 * row.score.mean:.1f}", *(f"{mean:.1f}" for mean in means))
        table.add_row(*(as_text(cell, style) for cell in (*cells, f"{100 * row.calm_mean:.1f}", cost)))
    return table


def _document(league: League, found: dict[str, list[Standing]], own: Entry | None) -> dict[str, Any]:
    """Return the standings in the form that `--json` prints."""
    from flwr_robust.redteam.league import ATTACKERS, CLIENTS, SEEDS
    from flwr_robust.redteam.league_page import lacking

    document: dict[str, Any] = {
        "clients": CLIENTS,
        "attackers": ATTACKERS,
        "seeds": SEEDS,
        "data": {
            data: {
                "standings": [_standing(number, row) for number, row in enumerate(rows, 1)],
                "missing": lacking(league, data),
            }
            for data, rows in found.items()
        },
    }
    if own is not None:
        document["own"] = [
            {"rule": row.rule, "data": data, "rank": number, "of": len(rows)}
            for data, rows in found.items()
            for number, row in enumerate(rows, 1)
            if row.rule == league.chosen(data, own)
        ]
    return document


def _standing(number: int, row: Standing) -> dict[str, Any]:
    return {
        "rank": number,
        "rule": row.rule,
        "worst": row.score.mean,
        "half": row.score.half,
        "no_attack": row.calm_mean,
        "price": row.price,
        "worst_class": row.calm_class,
        "ms": row.cost,
        "partitions": {
            partition: {
                "worst": worst.values,
                "under": worst.under,
                "lowest_class": worst.lowest,
                "class_accuracy": worst.class_accuracy,
                "no_attack": row.calm[partition],
            }
            for partition, worst in row.worst.items()
        },
    }
