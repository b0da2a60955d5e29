"""Run this project's Flower app by ``flwr run`` on the Ray engine, and remove its processes and files.

``flwr run`` starts a SuperLink process that outlives it and keeps its files under FLWR_HOME. Here both belong to one
`FlowerRuns` object and are removed with it. They are also removed if this process ends in any other way: see
`flwr_robust.studies.keeper`.
"""

from __future__ import annotations

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
from flwr_robust.flower._compat import private_environment
from flwr_robust.runs.config import KEYS, RunConfig

with extra("studies"):  # it needs psutil
    from flwr_robust.studies import keeper

__all__ = ["FlowerRunError", "FlowerRuns", "write_app"]

# The app for `flwr run`: it refers to modules of the installed package and contains no code.
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


class FlowerRunError(FlwrRobustError, RuntimeError):
    """A run on Flower's engine ended without a result; the message holds its last lines."""


def write_app(folder: Path) -> None:
    """Write an app folder for ``flwr run``, with this package's app and the default run config.

    Parameters
    ----------
    folder : Path
        The folder; created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {name: key.default for name, key in KEYS.items()}
    config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in defaults.items())
    (folder / "pyproject.toml").write_text(_APP.format(version=__version__, config=config))


class FlowerRuns:
    """A private Flower home for runs that are started one after the other.

    Use it as a context manager: at the end, its SuperLink is stopped and its files are removed.

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
        self.home = Path(tempfile.mkdtemp(prefix="flwr-robust-"))
        # A separate session: a signal to this process's group must not stop the process that cleans up.
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", keeper.__file__, str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._app = self.home / "app"
        write_app(self._app)
        self._environment = {
            **os.environ,
            # Private ports: the default ones may lead to another SuperLink.
            **private_environment(self.home, _free_ports()),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the SuperLink and remove its files."""
        self.close()

    def close(self) -> None:
        """Stop every process that belongs to this home, and remove its files."""
        keeper.remove_home(self.home, spared=[self._keeper.pid])
        self._keeper.communicate()

    def run(self, config: RunConfig) -> dict[str, Any]:
        """Run the app once by ``flwr run``, and return the result that its ServerApp wrote.

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


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
