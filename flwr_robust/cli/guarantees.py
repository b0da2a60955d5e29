"""The verbs that say what may be relied on before a run: ``certify`` and ``plan``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_robust.cli.shared import Json, Plugins, Workers, as_text, console, print_json, say, told
from flwr_robust.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from flwr_robust.certificates.certificate import Certificate
    from flwr_robust.certificates.table import Row
    from flwr_robust.diagnostics.planning import Plan

__all__ = ["certify_command", "plan_command"]

_Plot = Annotated[Path | None, typer.Option(help="A PNG file for the picture.")]


def _check_file(verb: str, option: str, path: Path | None, suffix: str, example: str) -> None:
    """Raise before the work if a file cannot be written."""
    if path is None:
        return
    if path.suffix != suffix or path.is_dir():
        kind = suffix.removeprefix(".").upper()
        raise ConfigurationError(f"{verb}: {option} must be a {kind} file; got {path}: name one, such as {example}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{verb}: the folder of {option} must exist; got {path}: make {path.parent} first")


def _write_picture(plot: Path, figure: Figure) -> None:
    from flwr_robust.files import write_atomically
    from flwr_robust.studies.plots import as_file

    picture = as_file(figure)
    write_atomically(plot, lambda file: file.write(picture))


def certify_command(
    rule: Annotated[str | None, typer.Argument(help="The defence, e.g. 'nnm | krum'; f may be left out.")] = None,
    n: Annotated[int, typer.Option("--n", help="Number of clients that answer.")] = 20,
    f: Annotated[int | None, typer.Option("--f", help="How many of them lie; the rule's declared f.")] = None,
    measure: Annotated[str, typer.Option(help="kappa, rho or lambda.")] = "kappa",
    everything: Annotated[bool, typer.Option("--all", help="All rules, alone and behind pre-aggregators.")] = False,
    evaluations: Annotated[int, typer.Option(help="How many sets of rows the search tries at most.")] = 6000,
    seconds: Annotated[float | None, typer.Option(help="When the search of a rule stops: 60, with --all 7.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="A file for the JSON; with --all the witnesses in it are starts.")
    ] = None,
    plot: _Plot = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Say what a rule withstands in the worst case.

    The error of a rule is compared with how far the honest rows spread, for the worst honest and faulty rows. kappa:
    squared error over their mean squared distance from their mean. rho: error over their largest distance. lambda:
    squared error over the largest squared distance of two.

    A search shows a value and the rows that reach it: the true worst case is no smaller. Beside it stand what is
    proven, and what no rule can fall below. For median, trimmed_mean, meamed and phocas kappa is exact.

    Exit status 1: a value was found above a proven bound, so one of them is wrong.

    JSON: rule, n, f, measure, found, exact, proven, source, lower, witness, draws, error, evaluations, sentence. With
    --all: version, n, f, measure and rows, each with name, stage, reason and certificate.
    """
    with told(plugins):
        from flwr_robust.certificates.certificate import certify

        _check_file("certify", "--plot", plot, ".png", "certify.png")
        _check_file("certify", "--output", output, ".json", "table.json")
        if everything == (rule is not None):
            given = "both" if everything else "neither"
            raise ConfigurationError(
                f"certify: give a rule or --all; got {given}: for example certify krum --n 20 --f 4"
            )
        if everything:
            rows = _all_rows(*(n, f, measure, evaluations, 7.0 if seconds is None else seconds, seed, workers, output))
            found = [row.certificate for row in rows if row.certificate is not None]
            from flwr_robust.certificates.table import document_of

            document = document_of(rows, n, found[0].f, measure)
        else:
            with console(stderr=True).status(f"searching the worst rows for {rule}"):
                found = [
                    certify(
                        *(rule or "", n, f, measure),
                        evaluations=evaluations,
                        seconds=60.0 if seconds is None else seconds,
                        seed=seed,
                    )
                ]
            document = found[0].to_dict()
        if output is not None:
            _write_json(output, document)
        if plot is not None:
            from flwr_robust.studies.guarantee_plots import certificates_figure

            _write_picture(plot, certificates_figure(found))
    if as_json:
        print_json(document)
    elif everything:
        _print_rows(rows)
    else:
        console().print(found[0].sentence, style="bold")
    if wrong := [each.sentence for each in found if each.contradicted]:
        for sentence in wrong:
            say(sentence, "red")
        raise typer.Exit(1)


def _all_rows(
    n: int,
    f: int | None,
    measure: str,
    evaluations: int,
    seconds: float,
    seed: int,
    workers: int | None,
    output: Path | None,
) -> Sequence[Row]:
    import json
    import os

    from flwr_robust.certificates.table import certify_all

    if f is None:
        raise ConfigurationError("certify: --all needs --f, the number of clients that lie; got none: give --f 4, say")

    def tell(row: Row) -> None:
        name = f"{row.stage} | {row.rule}" if row.stage else row.rule
        say(row.certificate.sentence if row.certificate is not None else f"{name}: {row.reason}")

    earlier = None
    if output is not None and output.exists():
        try:
            earlier = json.loads(output.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(
                f"certify: --output must be a table of certify --all, from which the searches begin, or a new file; "
                f"got {output}, which is not JSON ({error}): name another"
            ) from None
    count = os.cpu_count() or 1 if workers is None else workers
    return certify_all(
        *(n, f, measure), evaluations=evaluations, seconds=seconds, seed=seed, workers=count, earlier=earlier, told=tell
    )


def _write_json(output: Path, document: object) -> None:
    import json

    from flwr_robust.files import write_atomically

    text = json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"
    write_atomically(output, lambda file: file.write(text))


def _print_rows(rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rule", overflow="fold")
    for name in ("found", "proven", "no rule below"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        held = row.certificate
        if held is not None:
            table.add_row(as_text(held.rule), *_numbers(held))
    console().print(table)
    for row in rows:
        if row.certificate is None and not row.stage:
            console().print(f"{row.rule}: {row.reason}", style="dim")


def _numbers(held: Certificate) -> list[str]:
    found = "unbounded" if math.isinf(held.found) else f"{held.found:.4f}"
    if held.error > 0:
        found += f" +- {held.error:.2g}"
    if held.exact is not None and math.isfinite(held.exact):
        proven = f"= {held.exact:.4f}"
    else:
        proven = "-" if held.proven is None or math.isinf(held.proven) else f"<= {held.proven:.4f}"
    return [found, proven, f"{held.lower:.4f}"]


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

        _check_file("plan", "--plot", plot, ".png", "plan.png")
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
