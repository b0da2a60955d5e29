"""The verb ``doctor``: check whether each part of the installation works, and say what to do if not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from flwr_robust import TESTED_FLWR
from flwr_robust.cli.shared import Data, Json, as_text, console, print_json, told
from flwr_robust.files import write_atomically

__all__ = ["Finding", "doctor_command", "examine"]

_PYTHON = (3, 11)
_SPACE = 2**30  # bytes that the results and logs of a study may need
_OPTIONAL = {  # modules, their purpose, and the extra that installs them
    "ray": ("Flower's simulation engine: demo, --engine ray", "sim"),
    "sklearn": ("the data set digits: demo, red-team, diagnose", "studies"),
    "matplotlib": ("plots: report, reproduce, red-team", "studies"),
    "torchvision": ("the data sets mnist, emnist, fashion_mnist, cifar10", "studies"),
    "jinja2": ("HTML pages: report, reproduce", "studies"),
    "psutil": ("stopping what `flwr run` starts: demo, --engine ray", "studies"),
}


@dataclass(frozen=True)
class Finding:
    """The result of the check of one part.

    Attributes
    ----------
    part : str
        The part.
    status : str
        ``ok``: works. ``warning``: works with a limitation. ``missing``: not installed, and not needed by the rules and
        strategies. ``fault``: does not work.
    found : str
        The result in words.
    todo : str
        What to do; empty if everything is fine.
    """

    part: str
    status: str
    found: str
    todo: str = ""


def doctor_command(
    data: Data = "",
    results: Annotated[Path, typer.Option(help="Folder for results.")] = Path("results"),
    ray: Annotated[bool, typer.Option("--ray", help="Also start Ray; takes some seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Check whether each part of the installation works, and say what to do if it does not.

    Exit status: 0 all needed parts work, 1 a part does not work. A missing part that rules and strategies do not need
    is no fault.

    JSON: usable, parts (part, status, found, todo); status is ok, warning, missing or fault.
    """
    with told():
        found = list(examine(data, results, start_ray=ray))
    usable = all(finding.status != "fault" for finding in found)
    if as_json:
        print_json({"usable": usable, "parts": [asdict(finding) for finding in found]})
    else:
        _print(found, usable)
    if not usable:
        raise typer.Exit(1)


def _print(found: list[Finding], usable: bool) -> None:
    from rich.table import Table

    colours = {"ok": "green", "warning": "yellow", "missing": "yellow", "fault": "red"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column("part", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found; what to do", ratio=1, overflow="fold")
    for finding in found:
        text = "; ".join(part for part in (finding.found, finding.todo) if part)
        table.add_row(finding.part, as_text(finding.status, colours[finding.status]), as_text(text))
    console().print(table)
    faults = ", ".join(finding.part for finding in found if finding.status == "fault")
    console().print("all that is needed works" if usable else f"does not work: {faults}", style="bold")


def examine(data: str = "", results: Path = Path("results"), *, start_ray: bool = False) -> Iterator[Finding]:
    """Yield the finding of each part; a check that raises an error is a fault.

    Parameters
    ----------
    data : str
        Folder of the data sets; the default folder when empty.
    results : Path
        Folder for results; it is not created.
    start_ray : bool
        Whether to start Ray.
    """
    checks: dict[str, Callable[[], Finding | list[Finding]]] = {
        "python": _python,
        "torch": _torch,
        "flwr": _flwr,
        "numba": _numba,
        "compiled code": _cache,
        **{name: lambda name=name: _optional(name, start_ray) for name in _OPTIONAL},  # type: ignore[misc]
        "data sets": lambda: _data(data),
        "results folder": lambda: _folder("results folder", results, "name another with --results"),
        "Flower's home": _home,
        "disk": lambda: _disk(results),
    }
    for part, check in checks.items():
        try:
            found = check()
        except Exception as error:  # a broken third-party part may raise any error
            sentence = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            found = Finding(part, "fault", sentence, "reinstall it, or see what its own documentation says of this")
        yield from [found] if isinstance(found, Finding) else found


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] < _PYTHON:
        return Finding("python", "fault", version, "install Python 3.11 or newer")
    return Finding("python", "ok", f"{version}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}")


def _torch() -> list[Finding]:
    import torch

    import flwr_robust

    x = torch.tensor([[1.0, 2.0], [1.5, 2.5], [2.0, 3.0], [1e8, -1e8]])
    right = torch.tensor([1.75, 2.25])
    value = flwr_robust.aggregate(x, "trimmed_mean(f=1)").value
    found = [
        Finding("torch", "ok", f"{torch.__version__}; a rule gives what it should")
        if torch.equal(value, right)
        else Finding("torch", "fault", f"{torch.__version__}; trimmed_mean gives {value.tolist()}", "reinstall torch")
    ]
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    for device in devices:
        try:
            product = float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().cpu())
            name = torch.cuda.get_device_name(device) if device != "mps" else "Apple GPU"
            status, todo = ("ok", "") if product == 512 else ("fault", "take device=cpu, or repair the driver")
            found.append(Finding(device, status, f"{name}; a product gives {product:g} of 512", todo))
        except RuntimeError as error:
            sentence = " ".join(str(error).split())[:200]
            found.append(Finding(device, "fault", sentence, "take device=cpu, or repair the driver"))
    return found


def _flwr() -> Finding:
    from flwr_robust.audit.software import minor

    version = importlib.metadata.version("flwr")
    tested = f"{version}; tested from {TESTED_FLWR[0]} to {TESTED_FLWR[1]}"
    if minor(version) < minor(TESTED_FLWR[0]):
        return Finding("flwr", "fault", tested, f"pip install 'flwr>={TESTED_FLWR[0]}'")
    importlib.import_module("flwr_robust.flower").Krum(f=1)  # imports flwr with everything that strategies use
    if minor(version) > minor(TESTED_FLWR[1]):
        return Finding("flwr", "warning", tested, "run the tests before you rely on it")
    return Finding("flwr", "ok", tested)


def _numba() -> Finding:
    slower = "rules work, several times slower"
    try:
        numba = importlib.import_module("numba")
    except ModuleNotFoundError:
        return Finding("numba", "missing", slower, "pip install 'flwr-robust[fast]'")
    version = numba.__version__
    if numba.config.DISABLE_JIT:
        return Finding("numba", "warning", f"{version}, switched off; {slower}", "unset NUMBA_DISABLE_JIT")
    if numba.njit(_next)(1.0) != 2.0:
        return Finding("numba", "fault", f"{version} computes wrongly", "pip install --force-reinstall numba")
    compiled = importlib.import_module("flwr_robust.kernels.compiled").window_mean_float32
    if not getattr(compiled, "signatures", ()):  # the rule that `_torch` ran needs compilation
        return Finding("numba", "warning", f"{version} compiles, but the rules do not use it", "see the log for why")
    return Finding("numba", "ok", f"{version} compiles, and the rules use it")


def _next(x: float) -> float:
    return x + 1.0


def _cache() -> Finding:
    part, again = "compiled code", "every process compiles anew, some seconds each"
    try:
        kernel = importlib.import_module("flwr_robust.kernels.compiled").window_mean_float32
        folder = kernel.stats.cache_path
    except (ImportError, AttributeError):
        return Finding(part, "missing", "nothing is compiled")
    if folder is None:
        return Finding(
            part, "warning", f"cannot be kept: {again}", "name a folder that only you can write to in FLWR_ROBUST_CACHE"
        )
    if sentence := _unwritable(Path(folder)):
        return Finding(part, "warning", f"{sentence}: {again}", "name another folder in NUMBA_CACHE_DIR")
    return Finding(part, "ok", f"kept in {folder}")


def _optional(name: str, start_ray: bool) -> Finding:
    purpose, extra = _OPTIONAL[name]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # it is installed, but one of its own dependencies is missing
        return Finding(name, "missing", f"for {purpose}", f"pip install 'flwr-robust[{extra}]'")
    version = getattr(module, "__version__", "present")
    if name != "ray" or not start_ray:
        return Finding(name, "ok", f"{version}; for {purpose}")
    module.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        answer = module.get(module.remote(_next).remote(1.0))
    finally:
        module.shutdown()
    assert answer == 2.0
    return Finding(name, "ok", f"{version} starts and computes; for {purpose}")


def _data(data: str) -> Finding:
    from flwr_robust.cli.components import data_sets

    folder, found = data_sets(data)
    there = [name for name, present in found.items() if present]
    absent = [name for name, present in found.items() if not present]
    words = f"{', '.join(there) or 'none'} found; looked for in {folder}"
    todo = f"{', '.join(absent)} are downloaded when first asked for; name another folder by --data or FLWR_ROBUST_DATA"
    return Finding("data sets", "ok", words, todo if absent else "")


def _home() -> Finding:
    home = Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser()
    return _folder("Flower's home", home, "name another in FLWR_HOME")


def _folder(part: str, folder: Path, todo: str) -> Finding:
    if sentence := _unwritable(folder):
        return Finding(part, "fault", sentence, todo)
    return Finding(part, "ok", f"{folder} can be written to")


def _unwritable(folder: Path) -> str:
    """Return why a folder, or the folder in which it would be created, cannot be written to; empty if it can."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryDirectory(dir=place) as inside:
            write_atomically(Path(inside) / "written", lambda file: None)
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror})"
    return ""


def _existing(folder: Path) -> Path:
    """Return a folder, or its nearest existing parent."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _disk(results: Path) -> Finding:
    place = _existing(results)
    free = shutil.disk_usage(place).free
    words = f"{free / 2**30:.1f} GiB free for {results}"
    if free < _SPACE:
        return Finding("disk", "warning", words, "make room, or name another folder with --results")
    return Finding("disk", "ok", words)
