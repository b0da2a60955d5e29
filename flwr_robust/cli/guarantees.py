"""The verbs that say what may be relied on before a run: ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_robust.cli.shared import Json, Plugins, as_text, console, print_json, told
from flwr_robust.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flwr_robust.diagnostics.planning import Plan

__all__ = ["plan_command"]

_Plot = Annotated[Path | None, typer.Option(help="A PNG file for the picture.")]


def _check_picture(verb: str, plot: Path | None) -> None:
    """Raise before the work if a picture cannot be written."""
    if plot is None:
        return
    if plot.suffix != ".png" or plot.is_dir():
        raise ConfigurationError(f"{verb}: --plot must be a PNG file; got {plot}: name one, such as {verb}.png")
    if not plot.parent.is_dir():
        raise ConfigurationError(f"{verb}: the folder of --plot must exist; got {plot}: make {plot.parent} first")


def _write_picture(plot: Path, figure: Figure) -> None:
    from flwr_robust.files import write_atomically
    from flwr_robust.studies.plots import as_file

    picture = as_file(figure)
    write_atomically(plot, lambda file: file.write(picture))


def plan_command(
    clients: Annotated[int, typer.Option(help="N, the number of all clients.")],
    compromised: Annotated[int, typer.Option(help="How many of them lie.")],
    sample: Annotated[int | None, typer.Option(help="How many a round asks; the smallest that will do.")] = None,
    f: Annotated[int | None, typer.Option("--f", help="The declared f; the rule's, else the smallest.")] = None,
    rounds: Annotated[int, typer.Option(help="Number of rounds; each draws anew.")] = 1,
    rule: Annotated[str | None, typer.Option(help="The rule whose condition must hold, e.g. krum.")] = None,
    risk: Annotated[float, typer.Option(help="The accepted chance that a round asks more than f.")] = 0.01,
    plot: _Plot = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Say how many clients to ask, and which f to declare.

    A rule that declares f withstands f liars among those asked. If a round asks a sample of all clients, their number
    is a matter of luck. This command computes the chance exactly, the smallest f for a sample, and the smallest sample
    for a rule. The rule has to fit n even if f replies are malformed and refused.

    Exit status 1: the plan is impossible; the output says which number to change, and to what.

    JSON: clients, compromised, rounds, risk, rule, sample, f, expected, per_round, over_rounds, least_f, most_f,
    least_sample, hoeffding, price, least_price, feasible, problem, changes, sentence.
    """
    with told(plugins):
        from flwr_robust.diagnostics.planning import plan

        _check_picture("plan", plot)
        found = plan(clients, compromised, sample, f, rounds, rule, risk)
        if plot is not None:
            from flwr_robust.studies.guarantee_plots import plan_figure

            _write_picture(plot, plan_figure(found))
    if as_json:
        print_json(found.to_dict())
    else:
        _print_plan(found)
    if not found.feasible:
        raise typer.Exit(1)


def _print_plan(found: Plan) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(ratio=1)
    out = console()
    if found.sample is not None and found.f is not None:
        condition = "n >= 2f + 1" if found.rule is None else found.rule
        lines = [
            (found.sample, f"clients asked in a round, {found.expected:.3g} of them compromised on average"),
            (found.f, "declared f"),
            (_number(found.per_round), "chance that a round asks more than f compromised clients"),
            (_number(found.over_rounds), f"chance that some of {found.rounds} rounds does; {found.risk:g} is accepted"),
            (found.least_f, "smallest f within the risk, for this sample"),
            (_number(found.most_f), f"largest f that fits {condition}, for this sample, if f replies are refused"),
            (_number(found.least_sample), "smallest sample that fits the condition and the risk"),
            (_number(found.hoeffding), "sample by Hoeffding's inequality for the same share f / m (RFA)"),
        ]
        if found.price is not None and found.least_price is not None:
            lines.append(
                (f"{found.price:.3g}", f"f' / (n - f - f'), which errors grow with; {found.least_price:.3g} with the "
                 f"f' of the average round")
            )  # fmt: skip
        for number, meaning in lines:
            table.add_row(str(number), as_text(meaning))
        out.print(table)
    out.print(found.sentence, style="bold")


def _number(value: float | None) -> str:
    return "none" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"
