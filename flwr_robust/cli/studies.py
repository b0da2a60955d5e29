"""The command line of the studies: ``python -m experiments --help``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_choice, check_number
from flwr_robust.files import write_atomically
from flwr_robust.redteam.battery import choose
from flwr_robust.redteam.report import (
    compare,
    comparison_map,
    conclude_red_team,
    footnotes,
    heatmap,
    into_page,
    red_tables,
)
from flwr_robust.redteam.run import Setting, read_red_team, red_team
from flwr_robust.redteam.subject import maker
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.diagnose import diagnose, diagnosis_notes, diagnosis_tables
from flwr_robust.studies.document_plots import metric_curves
from flwr_robust.studies.flower_run import FlowerRuns
from flwr_robust.studies.page import write_page
from flwr_robust.studies.paper import PAPERS, load_paper
from flwr_robust.studies.plots import as_png
from flwr_robust.studies.recorded import read_recorded
from flwr_robust.studies.recorded import record as keep
from flwr_robust.studies.report import Rendered, conclude, render, tables, write_report
from flwr_robust.studies.runner import ENGINES, make_folder, read_results, run_in_process_cell, run_study
from flwr_robust.studies.study import STUDIES, Study, load_study

__all__ = ["app"]

app = typer.Typer(
    help="Run studies of robust federated learning and render what came of them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
# Wide enough for a pipe, never wider than a hundred columns.
console = Console(width=min(100, Console().width) if sys.stdout.isatty() else 100, highlight=False)

StudyName = Annotated[str, typer.Argument(help="A study that comes with the project (see `list`), or a TOML file.")]
Results = Annotated[Path, typer.Option(help="Folder that holds one folder of results per study.")]
Data = Annotated[str, typer.Option(help="Folder of the data sets; else FLWR_ROBUST_DATA, else ./data.")]
Engine = Annotated[str, typer.Option(help=f"What runs the cells: {', '.join(ENGINES)}.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that run cells; one per CPU by default.")]
RayAddress = Annotated[str, typer.Option(help="Ray cluster that runs the cells instead of processes here, e.g. auto.")]
BatchRuns = Annotated[
    int | None,
    typer.Option(min=1, help="With fast: runs of one process that advance together; 16 on a GPU, else 1, by default."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a common key of the study, e.g. --set rounds=50.")
]


@contextmanager
def _told() -> Iterator[None]:
    """End a command in one sentence: with status 2 where its input is wrong, with 130 where it is stopped."""
    try:
        yield
    except FlwrRobustError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("stopped; what is finished is kept, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _load(study: str, data: str, overrides: list[str] | None) -> Study:
    return load_study(study, _keys(data, overrides))


def _keys(data: str, overrides: list[str] | None) -> dict[str, object]:
    """Return the keys of the run config that options set."""
    keys: dict[str, object] = {"data": data} if data else {}
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set must be key=value; got '{text}'")
        try:
            keys[key] = json.loads(value)
        except ValueError:
            keys[key] = value
    return keys


@app.command("list")
def list_studies() -> None:
    """List the studies that come with the project."""
    with _told():
        for path in sorted(STUDIES.glob("*.toml")):
            study = load_study(path.stem)
            console.print(f"[bold]{study.name}[/bold]  {escape(study.title)} ({len(study.cells)} cells)")


@app.command()
def run(
    study: StudyName,
    results: Results = Path("results"),
    data: Data = "",
    engine: Engine = "in-process",
    workers: Workers = None,
    ray_address: RayAddress = "",
    batch_runs: BatchRuns = None,
    overrides: Overrides = None,
) -> None:
    """Run the cells of a study that have no result yet; stop it at any time and call it again.

    A cell that another study has run with the same configuration is taken from its folder under --results.
    """
    with _told():
        check_choice("run", "--engine", engine, ENGINES)
        loaded = _load(study, data, overrides)
        folder = results / loaded.name
        summary = run_study(
            loaded,
            folder,
            engine=engine,
            workers=workers,
            ray_address=ray_address,
            batch_runs=batch_runs,
            others=results,
        )
    console.print(f"{summary.finished} cells run, {summary.skipped} found finished, in {results / loaded.name}")
    _exit_if_failed(summary.failed)


def _exit_if_failed(failed: Mapping[str, str]) -> None:
    for name, reason in failed.items():
        typer.secho(f"failed: {name}: {reason}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


Recorded = Annotated[
    bool, typer.Option("--recorded", help="Show the results that come with the project, without running anything.")
]


@app.command()
def report(
    study: StudyName,
    results: Results = Path("results"),
    data: Data = "",
    overrides: Overrides = None,
    recorded: Recorded = False,
) -> None:
    """Print a study's tables and write its report: one HTML file, and the plots as PNG files."""
    with _told():
        loaded = _load(study, data, overrides)
        documents = read_recorded(loaded) if recorded else read_results(loaded, results / loaded.name)
        if recorded and not documents:
            raise ConfigurationError(f"no result of study {loaded.name} is recorded with these settings; run it")
        words = ["report", study, "--recorded"] if recorded else ["run", study]
        if not recorded and {document["engine"] for document in documents} == {"fast"}:
            words += ["--engine", "fast"]
        _report(loaded, documents, results, _command(words, results, data, overrides))


@app.command()
def record(study: StudyName, results: Results = Path("results")) -> None:
    """Keep a study's finished cells with the project, in experiments/recorded: the results that --recorded shows."""
    with _told():
        if study.endswith(".toml"):
            raise ConfigurationError(f"record: only studies of the project are recorded; got the file {study}")
        loaded = _load(study, "", None)
        if not (documents := read_results(loaded, results / loaded.name)):
            raise ConfigurationError(f"{results / loaded.name} holds no result of study {loaded.name}; run it first")
        path = keep(loaded, documents)
    console.print(f"{len(documents)} of {len(loaded.cells)} cells recorded in {path}", soft_wrap=True)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help=f"One of {', '.join(sorted(p.stem for p in PAPERS.glob('*.toml')))}.")],
    only: Annotated[list[str] | None, typer.Option("--study", help="One study of the paper; may be repeated.")] = None,
    results: Results = Path("results"),
    data: Data = "",
    engine: Engine = "fast",
    workers: Workers = None,
    ray_address: RayAddress = "",
    batch_runs: BatchRuns = None,
    overrides: Overrides = None,
    recorded: Recorded = False,
) -> None:
    """Reproduce a paper: run its studies, and show what they give beside what the paper reports.

    Finished cells are kept; stop it at any time and call it again. Shorter: --set rounds=500. What --recorded shows
    goes into results/recorded, unless a folder is named.
    """
    with _told():
        check_choice("reproduce", "--engine", engine, ENGINES)
        loaded = load_paper(paper, _keys(data, overrides), only)
        shown = Path("results/recorded") if recorded and results == Path("results") else results
        make_folder(shown)
        failed: dict[str, str] = {}
        documents = {}
        for study in loaded.studies:
            if not recorded:
                failed |= run_study(
                    study,
                    results / study.name,
                    engine=engine,
                    workers=workers,
                    ray_address=ray_address,
                    batch_runs=batch_runs,
                    others=results,
                ).failed
            documents[study.name] = read_recorded(study) if recorded else read_results(study, results / study.name)
        if not any(documents.values()):
            raise ConfigurationError(
                f"paper {paper}: no result {'is recorded' if recorded else 'came about'} of "
                f"{', '.join(documents)} with these settings{'; leave out --recorded to compute them' * recorded}"
            )
        words = ["reproduce", paper, *(word for name in only or [] for word in ("--study", name))]
        words += ["--recorded"] if recorded else ["--engine", engine] if engine != "fast" else []
        command = _command(words, results, data, overrides)
        rendered = {}
        for study in loaded.studies:
            console.rule(study.name, align="left")
            console.print(study.title, style="bold", markup=False)
            if documents[study.name]:
                notes = loaded.notes.get(study.name, ())
                rendered[study.name] = _report(study, documents[study.name], shown, command, notes)
            else:
                console.print("[yellow]no cell has been run yet[/yellow]")
        page = write_page(loaded, rendered, shown, command, ", ".join(overrides or []))
        console.print(f"page: {page}", soft_wrap=True)
    _exit_if_failed(failed)


def _command(words: Sequence[str], results: Path, data: str, overrides: list[str] | None) -> str:
    """Return the command that gives what is reported on."""
    words = ["python", "-m", "experiments", *words]
    words += ["--results", str(results)] if results != Path("results") else []
    words += ["--data", data] if data else []
    words += [word for override in overrides or [] for word in ("--set", override)]
    return shlex.join(words)


def _report(
    study: Study, documents: Sequence[Mapping[str, Any]], results: Path, command: str, notes: Sequence[str] = ()
) -> Rendered:
    folder = results / study.name
    if not documents:
        raise ConfigurationError(f"{folder} holds no result of study {study.name}; run `{command}` first")
    make_folder(folder)
    rendered = render(study, documents, folder)
    for section, _ in rendered.sections:
        for table in tables(study, section):
            console.print(table)
        if not study.claims and (sentence := conclude(study, section)):
            console.print(sentence, soft_wrap=False)
    for verdict in rendered.verdicts:
        console.print(f"{escape(verdict.text)}: [bold]{verdict.word}[/bold]; {escape(verdict.detail)}")
    if len(documents) < len(study.cells):
        console.print(
            f"[yellow]{len(study.cells) - len(documents)} of {len(study.cells)} cells are not finished[/yellow]"
        )
    console.print(f"report: {write_report(rendered, command, notes)}", soft_wrap=True)
    return rendered


@app.command()
def demo(results: Results = Path("results"), workers: Workers = None) -> None:
    """Show on real data when the plain mean beats the robust rules: a study, then a short run on Ray."""
    with _told():
        study = load_study("demo")
        console.print(f"{study.title}\n{study.question}\n")
        summary = run_study(study, results / study.name, workers=workers)
        if summary.failed:
            raise FlwrRobustError("; ".join(f"{name}: {reason}" for name, reason in summary.failed.items()))
        config = _ray_config(study)
        what = f"flwr run . on Flower's Ray engine: {config.rounds} rounds of {config.clients} clients"
        with console.status(what), FlowerRuns() as flower:
            document = flower.run(config)
        same = run_in_process_cell(config.to_mapping())["model_sha256"] == document["model_sha256"]
        console.print(
            f"flwr run . on Ray: {config.clients} clients, {config.rounds} rounds of {config.defence}, "
            f"{config.partition}, {document['seconds']:.1f} s: "
            f"{'the same model to the bit as' if same else 'ANOTHER MODEL THAN'} in process\n"
        )
        documents = read_results(study, results / study.name)
        _report(study, documents, results, _command(["run", "demo"], results, "", None))


def _ray_config(study: Study) -> RunConfig:
    """Return the study's by-label cell of the mean, shortened to twenty rounds."""
    cell = next(c for c in study.cells if c.labels == {"defence": "mean()", "partition": "by_label", "seed": "0"})
    return RunConfig.from_mapping({**cell.config.to_mapping(), "rounds": 20, "evaluate-every": 20})


@app.command("diagnose")
def diagnose_command(
    task: Annotated[
        str, typer.Option(help="digits, mnist, emnist, fashion_mnist, cifar10, or the path of an .npz.")
    ] = "digits",
    data: Data = "",
    model: Annotated[str, typer.Option(help="softmax, mlp, cnn or small_cnn.")] = "softmax",
    partition: Annotated[str, typer.Option(help="Who holds which samples.")] = "by_label",
    attack: Annotated[str, typer.Option(help="What poisoned clients do to their data.")] = "label_flip()",
    attackers: Annotated[int, typer.Option(help="How many clients are poisoned.")] = 1,
    clients: Annotated[int, typer.Option(help="n.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the run that is measured.")] = 200,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each client that gradients are taken of.")] = 1000,
    seed: Annotated[int, typer.Option(help="Source of every draw.")] = 0,
    defence: Annotated[list[str] | None, typer.Option(help="Rules to try at the last model; may be repeated.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Any other key, e.g. --set alpha=1.0.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file for xi and A over the rounds.")] = None,
) -> None:
    """Ask, before choosing a rule, whether a robust one is likely to help against poisoned labels.

    A robust rule drops what lies far from the rest. Where honest clients hold
    unlike data, they lie far from each other, and it drops them. Two
    distances of gradients tell what is to be expected: xi, how far the most
    unusual honest client is from the honest mean, and A, how far a poisoned
    one is. The error that the plain mean is left with grows as delta A, delta
    being the share of poisoned clients; that of a robust rule as rho xi, and
    no rule has a rho below delta / (1 - 2 delta). So with A about xi, as with
    one class per client, the mean is as good as any rule; with A several
    times xi, as with like clients, a robust rule is better (Peng, Li, Vlaski,
    Ling, JMLR 2025).

    This trains by the plain mean for some rounds, prints both as they change,
    tries rules on the clients' gradients at the last model, and ends with the
    advice. Try --partition iid, then by_label.
    """
    with _told():
        own = {"task": task, "model": model, "partition": partition, "clients": clients, "seed": seed}
        poison = {"attack": attack, "attackers": attackers}
        length = {"rounds": rounds, "evaluate-every": max(1, rounds // 10), "diagnose": samples}
        keys = _keys(data, overrides)
        if taken := {key.replace("_", "-") for key in keys} & {"defence", "audit", *own, *poison, *length}:
            raise ConfigurationError(f"diagnose: {min(taken)} cannot be set; see --help for what it takes")
        config = RunConfig.from_mapping({**own, **poison, **length, **keys})
        if plot is not None:
            if plot.is_dir():
                raise ConfigurationError(f"diagnose: --plot must be a PNG file; got the folder {plot}")
            make_folder(plot.parent)
        with console.status(f"{config.rounds} rounds of {config.clients} clients"):
            found = diagnose(config, defence or ())
        if plot is not None:
            document = {"labels": {"partition": config.partition}, **found.document}
            picture = as_png(metric_curves([document]))
            write_atomically(plot, lambda file: file.write(picture))
    for table in diagnosis_tables(found):
        console.print(table)
    *notes, advice = diagnosis_notes(found)
    for note in notes:
        console.print(note, markup=False)
    console.print(advice, style="bold", markup=False)


@app.command("red-team")
def red_team_command(
    strategy: Annotated[str, typer.Option(help="A Flower strategy, as package.module:Class.")] = "",
    kwargs: Annotated[str, typer.Option(help="Its arguments, as a JSON object.")] = "{}",
    defence: Annotated[str, typer.Option(help="A defence string, in place of a strategy.")] = "",
    message: Annotated[str, typer.Option(help="With a defence: what clients send.")] = "parameters",
    f: Annotated[int | None, typer.Option("--f", help="Declared f, where the rule does not say it.")] = None,
    real_f: Annotated[list[int] | None, typer.Option(help="Number of attackers; 1 to f + 1 by default.")] = None,
    clients: Annotated[int, typer.Option(help="n.")] = 12,
    rounds: Annotated[int, typer.Option(help="Rounds of each run.")] = 30,
    partition: Annotated[str, typer.Option(help="Who holds which samples.")] = "dirichlet(beta=1.0)",
    model: Annotated[str, typer.Option(help="softmax, mlp, cnn or small_cnn.")] = "mlp",
    seeds: Annotated[int, typer.Option(min=1, help="How often every run is repeated.")] = 1,
    attacks: Annotated[list[str] | None, typer.Option(help="Families, names or texts; all by default.")] = None,
    rule: Annotated[str, typer.Option(help="What attackers take a strategy for that is not ours.")] = "",
    floor: Annotated[float | None, typer.Option(help="Least accuracy in percent; else exit with 1.")] = None,
    name: Annotated[str, typer.Option(help="What tables call it.")] = "",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all CPUs by default.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/red-team"),
) -> None:
    """Attack a strategy with everything there is, by 0 to f + 1 attackers. Options of several values are repeated.

    Exits with 0 if no accuracy with at most f attackers is below the floor, or none is set; with 1 if one is; with 2
    for wrong input.
    """
    with _told():
        if floor is not None:
            check_number("red-team", "--floor", floor, minimum=0, maximum=100)
        make, subject = maker(strategy, kwargs, defence, message)
        make_folder(results)
        options: dict[str, Any] = {
            "name": name or defence or strategy.rpartition(":")[2],
            "subject": subject,
            "clients": clients,
            "rounds": rounds,
            "partition": partition,
            "model": model,
            "rule": rule,
        }
        stem = _stem({**options, "f": f, "message": message})
        result = red_team(
            make,
            **options,
            f=f,
            real_f=real_f or (),
            seeds=range(seeds),
            attacks=choose(attacks or ()),
            path=results / f"{stem}.json",
            workers=workers or os.cpu_count() or 1,
        )
    for table in red_tables(result):
        console.print(table)
    for note in footnotes(result):
        console.print(note, markup=False)
    picture = heatmap(result)
    write_atomically(results / f"{stem}.png", lambda file: file.write(picture))
    console.print(f"results: {results / stem}.json and .png", soft_wrap=True)
    console.print(conclude_red_team(result, floor), style="bold", markup=False)
    if floor is not None and not result.holds(floor):
        raise typer.Exit(1)


def _stem(options: Mapping[str, object]) -> str:
    """Return the name of a red team's files, without suffix: another setting has another."""
    defaults = {field.name: field.default for field in dataclasses.fields(Setting)}
    fixed = {key: value for key, value in defaults.items() if value is not dataclasses.MISSING}
    digest = hashlib.sha256(json.dumps({**fixed, **options}, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', str(options['name'])).strip('_')[:60]}-{digest[:8]}"


@app.command("red-compare")
def red_compare(
    files: Annotated[list[Path], typer.Argument(help="Results of red-team, one JSON file per strategy.")],
    page: Annotated[Path | None, typer.Option(help="A Markdown file to write the tables into, a PNG beside.")] = None,
) -> None:
    """Show strategies side by side that were attacked alike, in Markdown."""
    with _told():
        found = [read_red_team(path) for path in files]
        text = compare(found)
        if page is None:
            typer.echo(text)
            return
        new = into_page(page, text).encode()
    picture = comparison_map(found)
    write_atomically(page, lambda file: file.write(new))
    write_atomically(page.with_suffix(".png"), lambda file: file.write(picture))


if __name__ == "__main__":
    app()
