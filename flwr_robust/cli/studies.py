"""Verbs of studies and papers: ``run``, ``report``, ``record``, ``reproduce``, ``demo``."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_robust.cli.shared import (
    Data,
    Json,
    Overrides,
    Plugins,
    Results,
    Workers,
    as_text,
    console,
    keys_of,
    print_json,
    say,
    told,
)
from flwr_robust.errors import ConfigurationError, check_choice
from flwr_robust.studies.places import shipped

if TYPE_CHECKING:
    from rich.table import Table

    from flwr_robust.studies.choose import Choice
    from flwr_robust.studies.failures import Failures
    from flwr_robust.studies.report import Rendered
    from flwr_robust.studies.runner import Summary
    from flwr_robust.studies.shards import Shard
    from flwr_robust.studies.study import Study

__all__ = ["demo_command", "in_clone", "record_command", "report_command", "reproduce_command", "run_command"]

_ENGINES = "in-process, fast, ray"
_PAPERS = ", ".join(sorted(path.stem for path in shipped("papers").glob("*.toml")))
_REASON = 400  # characters of an error that a table shows
_RESULTS, _RECORDED = Path("results"), Path("results/recorded")

StudyName = Annotated[str, typer.Argument(help="A study that comes with the project (`list studies`), or a TOML file.")]
Engine = Annotated[str, typer.Option(help=f"What runs the cells: {_ENGINES}.")]
RayAddress = Annotated[str, typer.Option(help="Ray cluster that runs the cells, for example auto.")]
BatchRuns = Annotated[
    int | None,
    typer.Option(min=1, help="With fast: runs of one process that advance together; 16 on a GPU, else 1, by default."),
]
ShardName = Annotated[
    str, typer.Option("--shard", metavar="I/N", help="Run part I of N only; the parts may run at the same time.")
]
Recorded = Annotated[
    bool, typer.Option("--recorded", help="Show the results that come with the project, without a run.")
]


Formats = Annotated[
    list[str] | None,
    typer.Option("--export", metavar="FORMAT", help="md, latex, csv (tables), pdf or svg (plots); may be repeated."),
]


def in_clone() -> bool:
    """Say whether this is a clone, in which recorded results can be written, and not an installed wheel."""
    folder = shipped("recorded")
    return folder.parent.name == "experiments" and folder.is_dir()


def run_command(
    study: StudyName,
    results: Results = _RESULTS,
    data: Data = "",
    engine: Engine = "in-process",
    workers: Workers = None,
    ray_address: RayAddress = "",
    batch_runs: BatchRuns = None,
    shard: ShardName = "1/1",
    overrides: Overrides = None,
    plugins: Plugins = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run nothing; list the cells with their state.")] = False,
    as_json: Json = False,
) -> None:
    """Run the cells of a study that have no result yet. You can stop it at any time and start it again.

    If another study in --results has run a cell with the same configuration, its result is copied. A cell that failed
    leaves a file CELL.failed.json with the error, and is tried again by the next run.

    Exit status: 0 all cells have a result, 1 a cell failed, 2 wrong input. JSON: study, results, finished, skipped,
    failed (errors by the name of the cell); with --dry-run study, results, cells (labels, name, state).
    """
    with told(plugins, resumable=not dry_run):
        from flwr_robust.studies.runner import ENGINES, run_study
        from flwr_robust.studies.shards import read_shard

        check_choice("run", "--engine", engine, ENGINES)
        part = read_shard(shard)
        loaded = _load(study, data, overrides)
        folder = results / loaded.name
        if dry_run:
            _survey(loaded, folder, results, part, as_json)
            return
        summary = run_study(
            loaded,
            folder,
            engine=engine,
            workers=workers,
            ray_address=ray_address,
            batch_runs=batch_runs,
            others=results,
            shard=part,
        )
    if as_json:
        print_json(_counts(loaded, summary, folder))
        _exit_if_failed(summary.failed)
        return
    _show_summary(loaded, summary, folder)
    if summary.failed:
        raise typer.Exit(1)


def report_command(
    study: StudyName,
    results: Results = _RESULTS,
    data: Data = "",
    overrides: Overrides = None,
    recorded: Recorded = False,
    formats: Formats = None,
    width: Annotated[
        str, typer.Option(help="Width of exported plots: column (3.3 inches) or page (6.9 inches) of a paper.")
    ] = "page",
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Print a study's tables and write its report: one HTML file, and the plots as PNG files.

    With --export, also write the tables (md, latex, csv) and the plots (pdf, svg) in other formats, beside the report.
    In Python, flwr_robust.studies.load(folder) returns all results as a data frame.

    JSON: study, title, question, cells, finished, failed (labels, reason), metric, chosen (labels, candidates), places
    (labels, values and seeds of the repetitions, mean, spread: the standard deviation, interval: the 95 % t-interval of
    the mean, beside: further metrics by name, worst_under), claims (text, holds, detail), report, exported. Shares are
    shares of one.
    """
    with told(plugins):
        from flwr_robust.studies.canvas import WIDTHS
        from flwr_robust.studies.export import FORMATS, export
        from flwr_robust.studies.recorded import read_recorded
        from flwr_robust.studies.runner import read_failures, read_results

        for each in formats or []:
            check_choice("report", "--export", each, FORMATS)
        check_choice("report", "--width", width, tuple(WIDTHS))
        loaded = _load(study, data, overrides)
        documents = read_recorded(loaded) if recorded else read_results(loaded, results / loaded.name)
        if recorded and not documents:
            raise ConfigurationError(f"no result of study {loaded.name} is recorded with these settings; run it")
        said = ["report", study, "--recorded"] if recorded else ["run", study]
        if not recorded and {document["engine"] for document in documents} == {"fast"}:
            said += ["--engine", "fast"]
        failures = {} if recorded else read_failures(loaded, results / loaded.name)
        command = _command(said, results, data, overrides, plugins)
        rendered, path = _report(loaded, documents, results, command, failures=failures)
        exported = export(rendered, path.parent, formats or [], width)
        if as_json:
            print_json({**_report_document(rendered, path), "exported": exported})
            return
        _show(rendered, path)
        if exported:
            console().print(f"exported: {', '.join(each.name for each in exported)}", soft_wrap=True)


def record_command(study: StudyName, results: Results = _RESULTS) -> None:
    """Store a study's finished cells in experiments/recorded, for --recorded."""
    with told():
        from flwr_robust.studies.recorded import record
        from flwr_robust.studies.runner import read_results

        if study.endswith(".toml"):
            raise ConfigurationError(f"record: only studies of the project are recorded; got the file {study}")
        loaded = _load(study, "", None)
        if not (documents := read_results(loaded, results / loaded.name)):
            raise ConfigurationError(f"{results / loaded.name} holds no result of study {loaded.name}; run it first")
        path = record(loaded, documents)
    console().print(f"{len(documents)} of {len(loaded.cells)} cells recorded in {path}", soft_wrap=True)


def reproduce_command(
    paper: Annotated[str, typer.Argument(help=f"One of {_PAPERS}.")],
    only: Annotated[list[str] | None, typer.Option("--study", help="One study of the paper; may be repeated.")] = None,
    results: Results = _RESULTS,
    data: Data = "",
    engine: Engine = "fast",
    workers: Workers = None,
    ray_address: RayAddress = "",
    batch_runs: BatchRuns = None,
    shard: ShardName = "1/1",
    overrides: Overrides = None,
    recorded: Recorded = False,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Reproduce a paper: run its studies, and show the results beside those of the paper.

    Finished cells are kept, so you can stop it at any time and start it again. For a shorter run: --set rounds=500.
    With --recorded, the report goes into results/recorded unless you name a folder. With --shard nothing is reported;
    the same command without it runs what is left and reports all.

    Exit status: 0 all cells have a result, 1 a cell failed, 2 wrong input. JSON: paper, title, page, studies (each as
    in `report --json`), failed; with --shard no page, and studies as in `run --json`.
    """
    with told(plugins, resumable=True):
        from flwr_robust.studies.page import write_page
        from flwr_robust.studies.paper import load_paper
        from flwr_robust.studies.recorded import read_recorded
        from flwr_robust.studies.runner import ENGINES, make_folder, read_failures, read_results, run_study
        from flwr_robust.studies.shards import WHOLE, read_shard

        check_choice("reproduce", "--engine", engine, ENGINES)
        part = read_shard(shard)
        if recorded and part != WHOLE:
            raise ConfigurationError(
                f"reproduce: --recorded runs nothing; got --shard={shard!r}: leave one of them out"
            )
        loaded = load_paper(paper, keys_of(data, overrides), only)
        shown = _RECORDED if recorded and results == _RESULTS else results
        make_folder(shown)
        summaries = {}
        for study in () if recorded else loaded.studies:
            summaries[study.name] = run_study(
                study,
                results / study.name,
                engine=engine,
                workers=workers,
                ray_address=ray_address,
                batch_runs=batch_runs,
                others=results,
                shard=part,
            )
            if part != WHOLE and not as_json:
                _show_summary(study, summaries[study.name], results / study.name)
        failed = {name: reason for summary in summaries.values() for name, reason in summary.failed.items()}
        if part != WHOLE:
            if as_json:
                counts = [_counts(study, summaries[study.name], results / study.name) for study in loaded.studies]
                print_json({"paper": paper, "title": loaded.title, "studies": counts, "failed": failed})
            raise typer.Exit(1 if failed else 0)
        documents = {
            study.name: read_recorded(study) if recorded else read_results(study, results / study.name)
            for study in loaded.studies
        }
        if not any(documents.values()):
            _exit_if_failed(failed)
            raise ConfigurationError(
                f"paper {paper}: no result {'is recorded' if recorded else 'came about'} of "
                f"{', '.join(documents)} with these settings{'; leave out --recorded to compute them' * recorded}"
            )
        said = ["reproduce", paper, *(word for name in only or [] for word in ("--study", name))]
        said += ["--recorded"] if recorded else ["--engine", engine] if engine != "fast" else []
        command = _command(said, results, data, overrides, plugins)
        rendered, reports = {}, []
        for study in loaded.studies:
            if not as_json:
                console().rule(study.name, align="left")
                console().print(study.title, style="bold")
            failures = {} if recorded else read_failures(study, results / study.name)
            if documents[study.name]:
                notes = loaded.notes.get(study.name, ())
                rendered[study.name], path = _report(study, documents[study.name], shown, command, notes, failures)
                reports.append(_report_document(rendered[study.name], path))
                if not as_json:
                    _show(rendered[study.name], path)
            elif not as_json:
                console().print("no cell is finished", style="yellow")
                if failures:
                    _show_counts(study, "failed cells", [], failures)
        page = write_page(loaded, rendered, shown, command, ", ".join(overrides or []))
        if as_json:
            print_json({"paper": paper, "title": loaded.title, "page": page, "studies": reports, "failed": failed})
        else:
            console().print(f"page: {page}", soft_wrap=True)
    if as_json:
        _exit_if_failed(failed)
    if failed:
        raise typer.Exit(1)


def demo_command(results: Results = _RESULTS, workers: Workers = None) -> None:
    """Show on real data when the plain mean beats the robust rules: a study, then a short run on Ray."""
    with told(resumable=True):
        from flwr_robust.runs.config import RunConfig
        from flwr_robust.studies.flower_run import FlowerRuns
        from flwr_robust.studies.runner import read_results, run_in_process_cell, run_study
        from flwr_robust.studies.study import load_study

        study = load_study("demo")
        console().print(study.title, study.question, "", sep="\n")
        summary = run_study(study, results / study.name, workers=workers)
        _exit_if_failed(summary.failed)
        # The study's by-label cell of the mean, shortened.
        cell = next(c for c in study.cells if c.labels == {"defence": "mean()", "partition": "by_label", "seed": "0"})
        config = RunConfig.from_mapping({**cell.config.to_mapping(), "rounds": 20, "evaluate-every": 20})
        what = f"flwr run . on Flower's Ray engine: {config.rounds} rounds of {config.clients} clients"
        with console(stderr=True).status(what), FlowerRuns() as flower:
            document = flower.run(config)
        same = run_in_process_cell(config.to_mapping())["model_sha256"] == document["model_sha256"]
        console().print(
            f"flwr run . on Ray: {config.clients} clients, {config.rounds} rounds of {config.defence}, "
            f"{config.partition}, {document['seconds']:.1f} s: "
            f"{'the same model to the bit as' if same else 'ANOTHER MODEL THAN'} in process",
            end="\n\n",
        )
        documents = read_results(study, results / study.name)
        _show(*_report(study, documents, results, _command(["run", "demo"], results, "", None, None)))
        if not same:
            raise typer.Exit(1)


def _load(study: str, data: str, overrides: Sequence[str] | None) -> Study:
    from flwr_robust.studies.study import load_study

    return load_study(study, keys_of(data, overrides))


def _exit_if_failed(failed: Mapping[str, str]) -> None:
    for name, reason in failed.items():
        say(f"failed: {name}: {reason}", "red")
    if failed:
        raise typer.Exit(1)


def _command(
    said: Sequence[str],
    results: Path,
    data: str,
    overrides: Sequence[str] | None,
    plugins: Sequence[str] | None,
) -> str:
    """Return the command that computes the results of a report."""
    said = ["flwr-robust", *said]
    said += ["--results", str(results)] if results != _RESULTS else []
    said += ["--data", data] if data else []
    said += [word for override in overrides or [] for word in ("--set", override)]
    said += [word for plugin in plugins or [] for word in ("--plugin", plugin)]
    return shlex.join(said)


def _report(
    study: Study,
    documents: Sequence[Mapping[str, Any]],
    results: Path,
    command: str,
    notes: Sequence[str] = (),
    failures: Failures | None = None,
) -> tuple[Rendered, Path]:
    """Render results and write their report; return the rendered results and the report's path."""
    from flwr_robust.studies.failures import grouped
    from flwr_robust.studies.report import render, write_report
    from flwr_robust.studies.runner import make_folder

    folder = results / study.name
    if not documents:
        failed = ""
        if failures:
            reason, places = next(iter(grouped(failures).items()))
            failed = f", and {len(failures)} cells failed, {len(places)} of them with {reason}"
        raise ConfigurationError(f"{folder} holds no result of study {study.name}{failed}; run `{command}` first")
    make_folder(folder)
    rendered = render(study, documents, folder, failures)
    return rendered, write_report(rendered, command, notes)


def _counts(study: Study, summary: Summary, folder: Path) -> dict[str, Any]:
    """Return what a call of `run_study` did, in the form that `--json` prints."""
    counts = {"finished": summary.finished, "skipped": summary.skipped, "failed": summary.failed}
    return {"study": study.name, "results": folder, **counts}


def _show_summary(study: Study, summary: Summary, folder: Path) -> None:
    """Print what a call of `run_study` did: how many cells finished, were skipped and failed, and why."""
    names = {cell.name: tuple(cell.labels[axis] for axis in study.axes) for cell in study.cells}
    lines = [("finished now", summary.finished), ("finished before, skipped", summary.skipped)]
    _show_counts(study, f"{study.name}, results in {folder}", lines, {names[n]: r for n, r in summary.failed.items()})


def _survey(study: Study, folder: Path, results: Path, shard: Shard, as_json: bool) -> None:
    """Print the cells of a shard with their state, and how many there are of each."""
    from rich.table import Table

    from flwr_robust.studies.runner import STATES, read_failures, survey
    from flwr_robust.studies.showing import ALONE

    found = survey(study, folder, others=results, shard=shard)
    if as_json:
        cells = [{"labels": dict(cell.labels), "name": cell.name, "state": state} for cell, state in found]
        print_json({"study": study.name, "results": folder, "cells": cells})
        return
    table = Table()
    axes = [axis for axis in study.axes if axis != ALONE]
    for axis in axes:
        table.add_column(as_text(axis), overflow="fold")
    table.add_column("state", no_wrap=True)
    colours = {"finished": "green", "finished elsewhere": "green", "failed": "red", "waiting": ""}
    for cell, state in found:
        table.add_row(*(as_text(cell.labels[axis]) for axis in axes), as_text(state, colours[state]))
    console().print(table)
    own = {tuple(cell.labels[axis] for axis in study.axes) for cell, state in found if state == "failed"}
    failures = {labels: reason for labels, reason in read_failures(study, folder).items() if labels in own}
    states = [state for _, state in found]
    lines = [(state, states.count(state)) for state in STATES if state != "failed"]
    _show_counts(study, f"{study.name}, results in {folder}", lines, failures)


def _show_counts(study: Study, title: str, lines: Sequence[tuple[str, int]], failures: Failures) -> None:
    """Print a table of numbers of cells, with a line for each reason of failures."""
    from rich.table import Table

    from flwr_robust.studies.failures import cells_in_words, grouped

    table = Table(title=as_text(title), title_justify="left", show_lines=bool(failures))
    table.add_column("")
    table.add_column("cells", justify="right")
    if failures:
        table.add_column("which, and why", overflow="fold")
    for what, count in lines:
        table.add_row(what, str(count))
    for reason, places in grouped(failures).items():
        shown = reason if len(reason) <= _REASON else f"{reason[: _REASON // 2]} ... {reason[-_REASON // 2 :]}"
        which = as_text(f"{cells_in_words(study.axes, places)}: {shown}")
        table.add_row(as_text("failed", "red"), str(len(places)), which)
    console().print(table)


def _show(rendered: Rendered, path: Path) -> None:
    """Print a report's tables and sentences, after what is missing and why."""
    from flwr_robust.studies.sheets import conclude, tables

    study, failures, whole, out = rendered.study, rendered.failures, rendered.chosen.whole, console()
    if missing := len(whole.cells) - rendered.chosen.finished:
        failed = f", {len(failures)} of them failed" if failures else ""
        out.print(f"{missing} of {len(whole.cells)} cells are not finished{failed}", style="yellow")
    if failures:
        _show_counts(whole, "failed cells", [], failures)
    if rendered.chosen.rows:
        out.print(_choice_table(rendered.chosen.rows))
        out.print(as_text(rendered.chosen.sentence))
    for section, _ in rendered.sections:
        for table in tables(study, section):
            out.print(table)
        if not study.claims and (sentence := conclude(study, section)):
            out.print(sentence, soft_wrap=False)
    for verdict in rendered.verdicts:
        out.print(as_text(f"{verdict.claim}: ") + as_text(verdict.word, "bold") + as_text(f"; {verdict.detail}"))
    out.print(f"report: {path}", soft_wrap=True)


def _choice_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return the table of the chosen hyper-parameters."""
    from rich.table import Table

    table = Table(title="chosen hyper-parameters", title_justify="left", padding=(0, 1))
    for heading in rows[0]:
        table.add_column(as_text(heading), overflow="fold")
    for row in rows:
        table.add_row(*map(as_text, row.values()))
    return table


def _choice_document(choice: Choice) -> dict[str, Any]:
    """Return a choice in the form that `--json` prints; a value that is not finite is null."""
    return {
        "labels": choice.place,
        "candidates": [
            {
                "labels": each.labels,
                "value": each.value if math.isfinite(each.value) else None,
                "chosen": each is choice.chosen,
                "cells": each.cells,
                "missing": each.missing,
                "failed": each.failed,
            }
            for each in (*choice.ranking, *choice.others)
        ],
    }


def _report_document(rendered: Rendered, path: Path) -> dict[str, Any]:
    """Return a report in the form that `--json` prints."""
    study = rendered.study
    places = [
        {
            "labels": {**section.labels, study.rows: row, study.columns: column}
            | ({study.report.contest: section.winners[row, column]} if section.winners else {}),
            "values": [*group.values.values()],
            "seeds": [*group.values],
            "mean": group.mean,
            "spread": group.estimate.deviation,
            "interval": [group.estimate.low, group.estimate.high],
            "beside": {
                metric: [*known[row, column].values.values()]
                for metric, known in section.beside.items()
                if (row, column) in known
            },
            "worst_under": group.under,
        }
        for section, _ in rendered.sections
        for (row, column), group in section.groups.items()
    ]
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "cells": len(rendered.chosen.whole.cells),
        "finished": rendered.chosen.finished,
        "failed": [
            {"labels": dict(zip(rendered.chosen.whole.axes, labels, strict=True)), "reason": reason}
            for labels, reason in rendered.failures.items()
        ],
        "metric": study.report.metric,
        "chosen": [_choice_document(choice) for choice in rendered.chosen.choices],
        "places": places,
        "claims": [
            {"text": v.text, "ours": v.ours, "holds": v.holds, "partial": v.partial, "detail": v.detail}
            for v in rendered.verdicts
        ],
        "report": path,
    }
