"""Run this project's Flower app by ``flwr run`` on the Ray engine, and leave nothing behind.

``flwr run`` starts a SuperLink process that outlives it and keeps its files under FLWR_HOME. Here both are private to
one `FlowerRuns` and end with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr_robust import __version__
from flwr_robust.errors import FlwrRobustError, MissingExtraError, extra
from flwr_robust.runs.config import RunConfig

with extra("studies"):
    import psutil

__all__ = ["FlowerRunError", "FlowerRuns", "write_app"]

# What `flwr run` is given: the modules of the installed package, which the app itself does not hold.
_APP = """\
[project]
name = "flwr-robust-app"
version = "{version}"
description = "The Flower app of flwr-robust"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "flwr-robust"

[tool.flwr.app.components]
serverapp = "flwr_robust.app.server:app"
clientapp = "flwr_robust.app.client:app"

[tool.flwr.app.config]
{config}
"""
_PORTS = ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")


class FlowerRunError(FlwrRobustError, RuntimeError):
    """A run on Flower's engine ended without a result; the message holds its last lines."""


def write_app(folder: Path) -> None:
    """Write a folder that ``flwr run`` takes for an app: the one of this package, with the default run config.

    Parameters
    ----------
    folder : Path
        Where it is written; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in RunConfig().to_mapping().items())
    (folder / "pyproject.toml").write_text(_APP.format(version=__version__, config=config))


class FlowerRuns:
    """A private Flower home in which runs are started one after the other.

    Use it as a context manager: on leaving, its SuperLink is stopped and its files are removed.

    Parameters
    ----------
    clients_cpus : int
        CPUs of each client process; Flower's client-resources-num-cpus.
    clients_gpus : float
        GPUs of each client process, fractions allowed.
    federation : mapping, optional
        Further entries of Flower's federation config.
    """

    def __init__(
        self, clients_cpus: int = 1, clients_gpus: float = 0.0, federation: Mapping[str, int | float] | None = None
    ) -> None:
        self.federation = {
            "client-resources-num-cpus": clients_cpus,
            "client-resources-num-gpus": float(clients_gpus),
            **(federation or {}),
        }
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "sim")
        self._folder = tempfile.TemporaryDirectory(prefix="flwr-robust-")
        self.home = Path(self._folder.name)
        self._app = self.home / "app"
        write_app(self._app)
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            # Ports of its own: the default ones may lead to somebody else's SuperLink.
            **dict(zip(_PORTS, map(str, _free_ports(len(_PORTS))), strict=True)),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the SuperLink and remove its files."""
        self.close()

    def close(self) -> None:
        """Stop every process that belongs to this home, and remove its files."""
        mine = [p for p in psutil.process_iter() if p.pid != os.getpid() and self._owns(p)]
        family = {p.pid: p for parent in mine for p in [parent, *_children(parent)]}
        for process in family.values():
            try:
                process.terminate()
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(list(family.values()), timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._folder.cleanup()

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return any(str(self.home) in part for part in process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False

    def run(self, config: RunConfig) -> dict[str, Any]:
        """Run the app once by ``flwr run`` and return what its ServerApp wrote.

        Parameters
        ----------
        config : RunConfig
            The run; its ``output`` is replaced.

        Raises
        ------
        FlowerRunError
            If there is no result.
        """
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            output, settings = Path(folder) / "result.json", Path(folder) / "run.toml"
            values = {**config.to_mapping(), "output": str(output)}
            settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
            federation = {"num-supernodes": config.clients, **self.federation}
            command = [
                *("flwr", "run", str(self._app), "--stream", "--run-config", str(settings)),
                *("--federation-config", " ".join(f"{key}={value}" for key, value in federation.items())),
            ]
            process = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if not output.is_file():
                raise FlowerRunError(f"flwr run ended without a result; its last lines:\n{process.stdout[-2000:]}")
            document: dict[str, Any] = json.loads(output.read_text())
            return document


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
