"""Dependencies: what the core imports, what each extra adds, and what is said where one is missing."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flwr_robust.errors import MissingExtraError, extra
from flwr_robust.flower.versions import TESTED_FLWR, untested

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"matplotlib": "studies", "psutil": "studies", "sklearn": "studies", "torchvision": "studies", "ray": "sim"}

# What has no optional package: the core's part of the tests below.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "numba", "psutil", "ray", "sklearn", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def names(requirements):
    return {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in requirements}


def test_each_package_is_a_dependency_once():
    core, extras = names(PROJECT["dependencies"]), {key: names(EXTRAS[key]) for key in ("sim", "fast", "studies")}
    assert core == {"cryptography", "flwr", "jinja2", "numpy", "rich", "torch", "typer"}
    assert extras["sim"] == {"flwr"}
    assert not core & (extras["fast"] | extras["studies"])
    assert EXTRAS["all"] == ["flwr-robust[sim,fast,studies]"]
    assert names(EXTRAS["datasets"]) == {"flwr-datasets", "pillow"}  # heavy, so not in all
    assert "flwr-robust[all,datasets]" in EXTRAS["dev"]


def test_flwr_has_no_upper_bound_and_the_lowest_is_the_lowest_tested():
    (flwr,) = (d for d in PROJECT["dependencies"] if d.startswith("flwr"))
    assert flwr == f"flwr>={TESTED_FLWR[0]}"
    assert EXTRAS["sim"] == [f"flwr[simulation]>={TESTED_FLWR[0]}"]


@pytest.mark.parametrize(
    ("version", "fine"), [("1.31.9", False), ("1.32.0", True), ("1.42.7", True), ("1.43.0", False)]
)
def test_a_version_that_is_not_tested_is_named(version, fine):
    sentence = untested(version)
    assert (sentence is None) == fine
    assert fine or (version in sentence and " to ".join(TESTED_FLWR) in sentence)


@pytest.mark.parametrize(("version", "warnings"), [("1.42.1", 0), ("2.0.dev1", 1)])
def test_a_version_beyond_warns_once_and_works(version, warnings):
    code = (
        "from importlib import metadata\n"
        "true = metadata.version\n"
        f"metadata.version = lambda name: {version!r} if name == 'flwr' else true(name)\n"
        "import logging\n"
        "found = []\n"
        "handler = logging.Handler(); handler.emit = lambda record: found.append(record.getMessage())\n"
        "logging.getLogger('flwr').addHandler(handler)\n"
        "import flwr_robust.flower, flwr_robust.flower.versions\n"
        "print(sum('is not tested' in line for line in found))\n"
    )
    assert run(code)[-1] == str(warnings)


def test_what_is_missing_is_said_with_its_extra():
    sentence = re.escape("this needs nowhere: pip install 'flwr-robust[studies]'")
    with pytest.raises(MissingExtraError, match=sentence), extra("studies"):
        import nowhere.inside  # noqa: F401
    with extra("studies"):
        import json  # noqa: F401
    error = pickle.loads(pickle.dumps(MissingExtraError("ray", "sim")))
    assert (str(error), error.name) == ("this needs ray: pip install 'flwr-robust[sim]'", "ray")


def test_another_error_inside_stays_what_it_is():
    with pytest.raises(ValueError, match="own"), extra("studies"):
        raise ValueError("own")


def test_the_core_alone_aggregates_and_serves_strategies():
    code = (
        "import torch, flwr_robust, flwr_robust.flower\n"
        "from flwr_robust.flower import Krum\n"
        "print(flwr_robust.aggregate(torch.eye(7), 'krum(f=2)').value.sum().item())\n"
        "Krum(f=1)\n"
        "import flwr_robust.app.server, flwr_robust.app.client, flwr_robust.audit.card, flwr_robust.runs.fast\n"
        "import flwr_robust.redteam.run\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'matplotlib', 'numba', 'psutil', 'ray'}))\n"
    )
    assert run(code) == ["1.0", "[]"]


def test_what_needs_an_extra_says_which():
    code = (
        "from flwr_robust.errors import MissingExtraError\n"
        "from importlib import import_module\n"
        "def tell(function, *arguments):\n"
        "    try: function(*arguments)\n"
        "    except MissingExtraError as error: print(error)\n"
        "for name in ('studies.plots', 'studies.bands', 'studies.report', 'studies.flower_run', 'redteam.report'):\n"
        "    tell(import_module, 'flwr_robust.' + name)\n"
        "from flwr_robust.tasks import load_task\n"
        "tell(load_task, 'digits')\n"
        "tell(load_task, 'mnist')\n"
    )
    found = run(code)
    assert len(found) == 7
    for line in found:
        module, name = re.fullmatch(r"this needs (\w+): pip install 'flwr-robust\[(\w+)\]'", line).groups()
        assert MODULES[module] == name
    assert {re.search("needs ([a-z]+)", line)[1] for line in found} == {
        "matplotlib",
        "psutil",
        "sklearn",
        "torchvision",
    }
