"""The verb ``red-team``: attack a strategy with all attacks, and compare results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_robust.cli.shared import Json, Plugins, console, print_json, told
from flwr_robust.errors import ConfigurationError, check_choice, check_number

if TYPE_CHECKING:
    from flwr_robust.redteam.choose import Pick
    from flwr_robust.redteam.run import RedTeam

__all__ = ["compare_command", "red_team", "red_team_command"]

red_team = typer.Typer(help="Attack a strategy with everything there is.", invoke_without_command=True)


@red_team.callback()
def red_team_command(
    context: typer.Context,
    strategy: Annotated[str, typer.Option(help="A Flower strategy, as package.module:Class.")] = "",
    kwargs: Annotated[str, typer.Option(help="Its arguments, as a JSON object.")] = "{}",
    defence: Annotated[str, typer.Option(help="A defence string, in place of a strategy.")] = "",
    message: Annotated[str, typer.Option(help="With a defence: what clients send.")] = "parameters",
    f: Annotated[int | None, typer.Option("--f", help="Declared f, if the rule does not say it.")] = None,
    real_f: Annotated[list[int] | None, typer.Option(help="Number of attackers; 1 to f + 1 by default.")] = None,
    clients: Annotated[int, typer.Option(help="n.")] = 12,
    rounds: Annotated[int, typer.Option(help="Rounds of each run.")] = 30,
    partition: Annotated[str, typer.Option(help="How samples are divided among clients.")] = "dirichlet(beta=1.0)",
    model: Annotated[str, typer.Option(help="softmax, mlp, cnn, small_cnn or dropout_cnn.")] = "mlp",
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate", help="Another defence string or other --kwargs, from which to choose on validation samples."
        ),
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the training samples held out for validation.")] = 0.0,
    by: Annotated[str, typer.Option(help="With candidates: choose by the worst case over attacks, or the mean.")] = (
        "worst case"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of repetitions of every run.")] = 1,
    attacks: Annotated[list[str] | None, typer.Option(help="Families, names or texts; all by default.")] = None,
    rule: Annotated[str, typer.Option(help="Rule that attackers assume, for a strategy that is not ours.")] = "",
    floor: Annotated[float | None, typer.Option(help="Least accuracy in percent; exit with 1 below it.")] = None,
    name: Annotated[str, typer.Option(help="Name of the strategy in tables.")] = "",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all CPUs by default.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/red-team"),
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Attack a strategy with all attacks, by 0 to f + 1 attackers. Repeat an option to give several values.

    You can stop the command at any time and start it again: finished runs are kept. `red-team compare` shows strategies
    side by side.

    With --candidate and --validation every candidate is attacked. The one with the best worst case on validation
    samples is shown, with its accuracies on test samples. These do not enter the choice.

    Exit status: 0 no accuracy with at most f attackers is below the floor, or no floor is set; 1 an accuracy is below
    it; 2 wrong input. JSON: name, subject, declared_f, real_f, seeds, without_attackers, worst (accuracy, attack,
    real_f), floor, held, attacks (attack, family, real_f, accuracy, success, died), left_out, results. Accuracies are
    shares of one. With candidates also chosen (by, validation, candidates: subject, value, attack, real_f, results).
    """
    if context.invoked_subcommand is not None:
        return
    with told(plugins, resumable=True):
        from flwr_robust.files import write_atomically
        from flwr_robust.redteam.battery import choose
        from flwr_robust.redteam.choose import choose_candidate
        from flwr_robust.redteam.report import conclude_red_team, footnotes, heatmap, red_tables
        from flwr_robust.redteam.run import red_team
        from flwr_robust.redteam.subject import maker
        from flwr_robust.studies.plots import as_file
        from flwr_robust.studies.runner import make_folder
        from flwr_robust.studies.select import BY

        if floor is not None:
            check_number("red-team", "--floor", floor, minimum=0, maximum=100)
        check_choice("red-team", "--by", by, BY)
        check_number("red-team", "--validation", validation, minimum=0, below=1)
        if candidates and not validation:
            raise ConfigurationError(
                "red-team: --candidate needs --validation, the share of samples by which to choose, for example 0.1"
            )
        chosen_attacks = choose(attacks or ())
        shared = {"clients": clients, "rounds": rounds, "partition": partition, "model": model, "rule": rule}
        subjects = _subjects(kwargs, defence, candidates or [])
        made = [maker(strategy, *subject, message) for subject in subjects]  # all are checked before one runs
        told_of = [subject for _, subject in made]
        if twice := next((subject for subject in told_of if told_of.count(subject) > 1), None):
            raise ConfigurationError(f"red-team: --candidate must differ from all other candidates; got {twice} twice")
        make_folder(results)
        found, paths = [], {}
        for (_, own), (make, subject) in zip(subjects, made, strict=True):
            options: dict[str, Any] = {"name": name or own or strategy.rpartition(":")[2], "subject": subject, **shared}
            options |= {"validation": validation} if validation else {}
            stem = _stem({**options, "f": f, "message": message})
            result = red_team(
                make,
                **options,
                f=f,
                real_f=real_f or (),
                seeds=range(seeds),
                attacks=chosen_attacks,
                path=results / f"{stem}.json",
                workers=workers or os.cpu_count() or 1,
            )
            found.append(result)
            paths[subject] = results / f"{stem}.json"
        pick = choose_candidate(found, by) if candidates else None
        result = found[0] if pick is None else pick.chosen
        path = paths[result.setting.subject]
        picture = as_file(heatmap(result), dpi=150)
        write_atomically(path.with_suffix(".png"), lambda file: file.write(picture))
    if as_json:
        document = {**_document(result, floor), "results": path}
        print_json(document if pick is None else {**document, "chosen": _choice(pick, paths)})
    else:
        for table in red_tables(result):
            console().print(table)
        for note in footnotes(result):
            console().print(note)
        if pick is not None:
            console().print(pick.table())
            console().print(pick.sentence)
        console().print(f"results: {path.with_suffix('')}.json and .png", soft_wrap=True)
        console().print(conclude_red_team(result, floor), style="bold")
    if floor is not None and not result.holds(floor):
        raise typer.Exit(1)


def _subjects(kwargs: str, defence: str, candidates: Sequence[str]) -> list[tuple[str, str]]:
    """Return the arguments and the defence string of every candidate; those of --kwargs or --defence come first."""
    return [(kwargs, defence), *((kwargs, each) if defence else (each, "") for each in candidates)]


def _choice(pick: Pick, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Return the choice among candidates in the form that `--json` prints."""
    return {
        "by": pick.by,
        "validation": pick.chosen.setting.validation,
        "candidates": [
            {
                "subject": each.result.setting.subject,
                "value": each.value,
                "attack": each.attack or None,
                "real_f": each.real_f if each.attack else None,
                "results": paths[each.result.setting.subject],
            }
            for each in pick.ranking
        ],
    }


def _document(result: RedTeam, floor: float | None) -> dict[str, Any]:
    """Return the results in the form that `--json` prints."""
    accuracy, label, attackers = result.bottom
    return {
        "name": result.setting.name,
        "subject": result.setting.subject,
        "declared_f": result.setting.declared_f,
        "real_f": result.real_f,
        "seeds": result.seeds,
        "without_attackers": result.alone,
        "worst": {"accuracy": accuracy, "attack": label, "real_f": attackers},
        "floor": floor,
        "held": None if floor is None else result.holds(floor),
        "attacks": [
            {
                "attack": attack,
                "family": family,
                "real_f": f,
                "accuracy": result.accuracy(attack, f),
                "success": result.success(attack, f),
                "died": any(run.end for run in result.of(attack, f)),
            }
            for attack, family in result.families.items()
            for f in result.real_f
            if result.of(attack, f)
        ],
        "left_out": result.left_out,
    }


def _stem(options: Mapping[str, object]) -> str:
    """Return the name of a red team's files without suffix, which differs for each setting."""
    from flwr_robust.redteam.run import Setting

    defaults = {field.name: field.default for field in dataclasses.fields(Setting)}
    fixed = {k: v for k, v in defaults.items() if v is not dataclasses.MISSING and k != "validation"}  # a younger key
    digest = hashlib.sha256(json.dumps({**fixed, **options}, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', str(options['name'])).strip('_')[:60]}-{digest[:8]}"


@red_team.command("compare")
def compare_command(
    files: Annotated[list[Path], typer.Argument(help="Results of red-team, one JSON file per strategy.")],
    page: Annotated[Path | None, typer.Option(help="A Markdown file to write the tables into, a PNG beside.")] = None,
    as_json: Json = False,
) -> None:
    """Show strategies with the same attacks side by side, in Markdown.

    JSON: strategies (each as in `red-team --json`, without results).
    """
    with told():
        from flwr_robust.files import write_atomically
        from flwr_robust.redteam.report import compare, comparison_map, into_page
        from flwr_robust.redteam.run import read_red_team
        from flwr_robust.studies.plots import as_file

        found = [read_red_team(path) for path in files]
        text = compare(found)
        if page is not None:
            new = into_page(page, text).encode()
            picture = as_file(comparison_map(found), dpi=150)
            write_atomically(page, lambda file: file.write(new))
            write_atomically(page.with_suffix(".png"), lambda file: file.write(picture))
        if as_json:
            print_json({"strategies": [_document(result, None) for result in found]})
        elif page is None:
            typer.echo(text)
