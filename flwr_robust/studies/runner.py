"""Run a study's cells side by side, and write each result as soon as it is finished.

A cell that fails leaves a file of its own (`flwr_robust.studies.failures`), and the next run tries it again.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flwr_robust.errors import ConfigurationError, FlwrRobustError, check_integer, extra
from flwr_robust.files import write_atomically
from flwr_robust.runs.config import RunConfig, pick_device
from flwr_robust.runs.fast import batches, simulate, simulate_many, unbatched
from flwr_robust.studies.failures import failure_path, is_failure, read_failures, reason_of, write_failure
from flwr_robust.studies.shards import WHOLE, Shard
from flwr_robust.studies.study import Cell, Study
from flwr_robust.studies.workers import side_by_side
from flwr_robust.tasks import TARGETS, content_digest
from flwr_robust.tasks.metrics import VALIDATION, best_of

__all__ = [
    "ENGINES",
    "STATES",
    "Summary",
    "circumstances",
    "make_folder",
    "progress_bar",
    "read_failures",
    "read_results",
    "run_fast_cell",
    "run_fast_cells",
    "run_in_process_cell",
    "run_study",
    "survey",
]

ENGINES = ("in-process", "fast", "ray")
STATES = ("finished", "finished elsewhere", "failed", "waiting")
"""What a cell can be: with a result, with one in another study that would be copied, tried in vain, or neither."""

_ON_GPU = 16  # runs that advance together there
_PACKAGES = ("flwr", "flwr-robust", "numpy", "ray", "torch")
_NEEDED = ("finished", "labels", "config", "config_digest", "curve", "final", "seconds")  # in every result


@dataclass(frozen=True)
class Summary:
    """The result of a call of `run_study`.

    Attributes
    ----------
    finished, skipped : int
        Numbers of cells run now, and of cells that were already finished.
    failed : mapping of str to str
        The error of each failed cell, by the cell's name.
    """

    finished: int
    skipped: int
    failed: Mapping[str, str]


def run_in_process_cell(values: Mapping[str, Any]) -> dict[str, Any]:
    """Run one configuration through both apps in this process, and return the ServerApp's result."""
    from flwr_robust.app.client import app as client_app
    from flwr_robust.app.server import app as server_app
    from flwr_robust.flower import run_in_process

    logging.getLogger("flwr").setLevel(logging.ERROR)
    pick_device(str(values.get("device", "auto")))  # to raise its error here; in a client it would become a reply
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        run_in_process(server_app, client_app, int(values["clients"]), {**values, "output": str(output)})
        document: dict[str, Any] = json.loads(output.read_text())
    return document


def run_fast_cell(values: Mapping[str, Any]) -> dict[str, Any]:
    """Run one configuration by `simulate`, or in process if `simulate` cannot; the document then says so."""
    config = RunConfig.from_mapping(values, warn=False)
    sentence = unbatched(config)
    if sentence is None:
        return simulate(config)
    return {**run_in_process_cell(values), "engine": "in-process", "fallback": sentence}


def run_fast_cells(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | Exception]:
    """Run configurations by `simulate_many`; run those that it cannot in process, one after another.

    Returns the result or the error of each configuration, in their order.
    """
    configs = [RunConfig.from_mapping(values, warn=False) for values in cells]
    found: dict[int, dict[str, Any] | Exception] = {}
    together = [place for place, config in enumerate(configs) if unbatched(config) is None]
    for place, outcome in simulate_many([configs[place] for place in together], max(1, len(together))):
        found[together[place]] = outcome
    for place, values in enumerate(cells):
        if place not in found:
            try:
                found[place] = run_fast_cell(values)
            except Exception as error:  # as if raised in a separate process
                found[place] = error
    return [found[place] for place in range(len(cells))]


def run_study(
    study: Study,
    results: Path,
    *,
    engine: str = "in-process",
    workers: int | None = None,
    ray_address: str = "",
    batch_runs: int | None = None,
    others: Path | None = None,
    shard: Shard = WHOLE,
    console: Console | None = None,
) -> Summary:
    """Run the cells that have no result yet, also those that failed before.

    Parameters
    ----------
    study : Study
        The study to run.
    results : Path
        Folder of the study's results; created if missing.
    engine : str
        ``in-process``: several processes, each with a whole federation. ``fast``: the same without Flower's messages,
        with all clients of a run at once where the model allows it (`flwr_robust.runs.fast`). Runs that this engine
        cannot do run in process.
        ``ray``: ``flwr run`` on Flower's Ray engine, one run after the other.
    workers : int, optional
        Number of processes of the first two engines; the number of CPUs when not given.
    ray_address : str
        A Ray cluster that runs the cells of the first two engines, for example ``auto``. This project and the data must
        be at the same path on all its machines.
    batch_runs : int, optional
        With ``fast``: how many runs a process advances together (`simulate_many`). With small models this keeps a GPU
        busy. Their results are written when the last of them ends. When not given, 16 on a GPU and 1 otherwise.
    others : Path, optional
        Folder with one folder of results per study. A cell that another study has run is copied from there.
    shard : Shard
        The part of the study to run. Several processes may run different shards into one folder at the same time.
    console : Console, optional
        The console that shows progress; standard error when not given.

    Returns
    -------
    Summary
        It counts the cells of the shard only.

    Raises
    ------
    FlwrRobustError
        Before the first run, if data are missing or cannot be divided as a cell requires.
    """
    if ray_address and engine == "ray":
        raise ConfigurationError(
            f"--ray-address runs cells of the engines in-process and fast; got --engine {engine}: leave one of them out"
        )
    if batch_runs is not None:
        check_integer("run", "--batch-runs", batch_runs, 1)
        if engine != "fast" or ray_address:
            raise ConfigurationError(
                f"--batch-runs={batch_runs} is for --engine fast without --ray-address; got --engine {engine}"
                f"{' with --ray-address ' + ray_address if ray_address else ''}: leave one of them out"
            )
    make_folder(results)
    cells = shard.cells(study)
    waiting = [cell for cell in cells if _found(results, cell) is None]
    if others is not None:
        there = _by_digest(others)
        waiting = [cell for cell in waiting if not _adopt(results, study, cell, there.get(cell.digest, ()))]
    of_split = ("task", "data", "partition", "clients", "seed", "attack", "attackers", "validation", "loss", "metrics")
    for config in _differing(waiting, of_split):
        _ = config.samples  # loads and divides the data, to raise errors early
        _check_measured(study, config)
    for config in _differing(waiting, ("task", "data", "model", "message", "loss", "metrics")):
        config.learner()  # builds and checks each model, to raise errors early
    alike: dict[str, list[Cell]] = {}  # cells with the same configuration, run once
    for cell in waiting:
        alike.setdefault(cell.digest, []).append(cell)
    first = [same[0] for same in alike.values()]
    failed: dict[str, str] = {}
    run = run_fast_cell if engine == "fast" else run_in_process_cell
    if engine == "ray":
        runs = _on_ray(first)
    elif ray_address:
        runs = _on_cluster(first, ray_address, run)
    elif engine == "fast" and (most := batch_runs or _usual(first)) > 1:
        runs = _in_batches(first, workers or os.cpu_count() or 1, most)
    else:
        runs = _in_processes(first, workers or os.cpu_count() or 1, run)
    with closing(runs), progress_bar(console) as progress:
        name = f"{study.name} ({engine}{'' if shard == WHOLE else f', shard {shard.index}/{shard.count}'})"
        bar = progress.add_task(name, total=len(cells), completed=len(cells) - len(waiting))
        for cell, outcome in runs:
            for same in alike[cell.digest]:
                if isinstance(outcome, BaseException):
                    failed[same.name] = reason_of(outcome)
                    write_failure(results, study, same, outcome, circumstances())
                else:
                    _write(results, study, same, engine, outcome)
                progress.advance(bar)
    return Summary(len(waiting) - len(failed), len(cells) - len(waiting), failed)


def _check_measured(study: Study, config: RunConfig) -> None:
    """Raise if a run does not measure what the study shows, or a function of the user's does not fit it."""
    objective = config.objective
    with_target = {name for target in TARGETS.values() for name in target.metrics}
    for name in (study.report.metric, *study.report.metrics):
        if name.removeprefix(VALIDATION) in with_target - {*objective.measured}:
            raise ConfigurationError(
                f"study {study.name}: [report] shows the metric {name}, which is not measured with target="
                f"{objective.target!r}; take one of {', '.join(objective.measured)}"
            )
    if objective.loss.own or objective.own:
        config.learner()  # which calls them


def _differing(cells: Iterable[Cell], keys: Sequence[str]) -> Iterable[RunConfig]:
    """Return one configuration for each combination of the values of some keys."""
    return {tuple(getattr(cell.config, key) for key in keys): cell.config for cell in cells}.values()


def make_folder(results: Path) -> None:
    """Create a folder of results if it is missing.

    Raises
    ------
    FlwrRobustError
        If the folder cannot be written to.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(results / ".writable", lambda file: None)
        (results / ".writable").unlink(missing_ok=True)  # another process may use the same folder
    except OSError as error:
        raise FlwrRobustError(
            f"results folder {results} cannot be written to ({error.strerror}); name another"
        ) from None


def progress_bar(console: Console | None = None) -> Progress:
    """Return a progress bar with the remaining time, on standard error unless a console is given."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


Runs = Generator[tuple[Cell, dict[str, Any] | BaseException]]
Run = Callable[[Mapping[str, Any]], dict[str, Any]]


def _in_processes(cells: Sequence[Cell], workers: int, run: Run) -> Runs:
    return side_by_side(run, [(cell, [cell.config.to_mapping()]) for cell in cells], workers)


def _usual(cells: Sequence[Cell]) -> int:
    """Return the default number of runs that advance together."""
    return _ON_GPU if torch.cuda.is_available() and any(cell.config.device != "cpu" for cell in cells) else 1


def _in_batches(cells: Sequence[Cell], workers: int, most: int) -> Runs:
    chosen = [[cells[place] for place in places] for places in batches([cell.config for cell in cells], most)]
    calls = [(number, [[cell.config.to_mapping() for cell in batch]]) for number, batch in enumerate(chosen)]
    with closing(side_by_side(run_fast_cells, calls, workers)) as found:
        for number, outcomes in found:
            batch = chosen[number]
            each = [outcomes] * len(batch) if isinstance(outcomes, BaseException) else outcomes
            yield from zip(batch, each, strict=True)


def _on_cluster(cells: Sequence[Cell], address: str, run: Run) -> Runs:
    """Run cells as Ray tasks of one CPU each."""
    if not cells:
        return
    with extra("sim"):
        import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FlwrRobustError(
            f"--ray-address {address} cannot be connected to ({type(error).__name__}): start a cluster there with "
            f"`ray start --head`, or name another"
        ) from None
    try:
        task = ray.remote(run)
        waiting = {task.remote(cell.config.to_mapping()): cell for cell in cells}
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            cell = waiting.pop(done)
            try:
                yield cell, ray.get(done)
            except ray.exceptions.RayError as error:
                yield cell, error
    finally:
        ray.shutdown()


def _on_ray(cells: Sequence[Cell]) -> Runs:
    if not cells:
        return
    from flwr_robust.studies.flower_run import FlowerRuns  # imported here, because other engines do not need psutil

    with FlowerRuns() as flower:
        for cell in cells:
            try:
                yield cell, flower.run(cell.config)
            except FlwrRobustError as error:
                yield cell, error


def _path(results: Path, cell: Cell) -> Path:
    return results / f"{cell.name}.json"


def _write(results: Path, study: Study, cell: Cell, engine: str, outcome: dict[str, Any]) -> None:
    config: RunConfig = cell.config
    curve = outcome["curve"]
    document = {
        "schema": 1,
        "study": study.name,
        "labels": dict(cell.labels),
        "config": config.to_mapping(),
        "config_digest": cell.digest,
        "declared_f": config.rule.declared(config.sampled),
        "real_f": config.attackers,
        "engine": engine,
        "final": {key: value for key, value in curve[-1].items() if key != "round"},
        **best_of(curve),
        **outcome,
        **circumstances(),
    }
    _put(results, cell, document)


def _put(results: Path, cell: Cell, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1).encode()
    write_atomically(_path(results, cell), lambda file: file.write(text))
    failure_path(results, cell).unlink(missing_ok=True)


def _by_digest(others: Path) -> dict[str, list[Path]]:
    """Return the result files of all studies by the digest in their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(others.glob("*/*-*.json")):
        if not is_failure(path):
            found.setdefault(path.stem.rpartition("-")[2], []).append(path)
    return found


def _adopt(results: Path, study: Study, cell: Cell, there: Iterable[Path]) -> bool:
    """Copy a cell's result from another study with the same configuration; say whether there is one."""
    document = _elsewhere(cell, there)
    if document is not None:
        _put(results, cell, {**document, "study": study.name, "labels": dict(cell.labels)})
    return document is not None


def _elsewhere(cell: Cell, there: Iterable[Path]) -> dict[str, Any] | None:
    """Return the result of another study with the configuration of a cell; None if there is none."""
    for path in there:
        with suppress(FlwrRobustError):  # the error belongs to that study
            return _read(path, cell)
    return None


def survey(study: Study, results: Path, *, others: Path | None = None, shard: Shard = WHOLE) -> list[tuple[Cell, str]]:
    """Return the state of each cell without a run: one of `STATES`.

    Parameters
    ----------
    study, results, others, shard
        As for `run_study`; the folder need not exist.

    Raises
    ------
    FlwrRobustError
        If the file of a result or of a failed cell cannot be read.
    """
    there = {} if others is None else _by_digest(others)
    failures = read_failures(study, results)

    def state(cell: Cell) -> str:
        if _found(results, cell) is not None:
            return "finished"
        if _elsewhere(cell, there.get(cell.digest, ())) is not None:
            return "finished elsewhere"
        return "failed" if tuple(cell.labels[axis] for axis in study.axes) in failures else "waiting"

    return [(cell, state(cell)) for cell in shard.cells(study)]


def circumstances() -> dict[str, Any]:
    """Return when and where a result was computed: the time, the machine, and the versions of packages."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def read_results(study: Study, results: Path) -> list[dict[str, Any]]:
    """Return the results of the study's finished cells, in the order of the cells.

    Raises
    ------
    FlwrRobustError
        If a result file cannot be read; the message names the file.
    """
    found = (_found(results, cell) for cell in study.cells)
    return [document for document in found if document is not None]


def _found(results: Path, cell: Cell) -> dict[str, Any] | None:
    """Return a cell's result, or None if there is none; raise if its file holds something else."""
    path = _path(results, cell)
    return _read(path, cell) if path.is_file() else None


def _read(path: Path, cell: Cell) -> dict[str, Any]:
    """Return the result in a file; raise if it does not have the cell's configuration."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        sound = isinstance(document, dict) and document.get("schema") == 1 and {*_NEEDED} <= document.keys()
    except (ValueError, OSError):
        sound = False
    if not sound:
        raise FlwrRobustError(f"result {path} cannot be read; delete it and run the study again")
    if key := cell.differs(document["config"]):
        raise FlwrRobustError(f"result {path} is of another {key}; delete it and run the study again")
    there = content_digest(cell.config.task, cell.config.data or None)
    if there and document.get("data_sha256", there) != there:
        raise FlwrRobustError(
            f"result {path} is of other data than {cell.config.task} holds now; delete it and run the study again"
        )
    return {**document, "labels": dict(cell.labels)}
