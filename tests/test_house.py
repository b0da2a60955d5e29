"""The structure that ARCHITECTURE promises: arrows of imports, public names, light imports, equal defaults."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib

import pytest

import flwr_robust
from flwr_robust.runs.config import KEYS, RunConfig
from tests.house import MODULES, ROOT, imports, module_name, room_of, violation


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    assert name == "flwr_robust" or room_of(name), f"{name} stands on no floor"
    assert [v for imported in imports(path) if (v := violation(name, imported))] == []
    if not name.startswith(
        ("flwr_robust.flower", "flwr_robust.app", "flwr_robust.studies", "flwr_robust.redteam", "benchmarks")
    ):
        assert not any(i == "flwr" or i.startswith("flwr.") or i == "ray" for i in imports(path))


def test_the_arrow_test_can_fail():
    assert violation("flwr_robust.core.rows", "flwr_robust.aggregators.krum")
    assert violation("clients.app", "server.app")
    assert violation("flwr_robust.tasks.partition", "flwr_robust.diagnostics.measures")
    assert violation("flwr_robust.aggregators.krum", "flwr_robust.core.rows") is None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_is_what_all_reaches(path):
    name = module_name(path)
    if name.endswith("__main__") or name.startswith("benchmarks"):
        return
    module = importlib.import_module(name)
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    exported = set(getattr(module, "__all__", ()))
    assert exported >= defined
    for key in exported:
        value = getattr(module, key)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{key} is not documented"


@pytest.mark.parametrize("path", [p for p in MODULES if "flwr_robust" in p.parts], ids=module_name)
def test_examples_in_docstrings(path):
    module = importlib.import_module(module_name(path))
    globs = {**vars(module), "torch": __import__("torch")}
    failed, _ = doctest.testmod(module, globs=globs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_examples_exist():
    finder = doctest.DocTestFinder()
    assert sum(len(test.examples) for test in finder.find(importlib.import_module("flwr_robust.core.call"))) >= 5


def test_rules_need_neither_flwr_nor_ray():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flwr', 'ray', 'torchvision', 'sklearn', 'matplotlib', 'typer'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch, flwr_robust, flwr_robust.aggregators\n"
        "print(flwr_robust.aggregate(torch.ones(3, 2), 'median').value.tolist())\n"
        "try:\n"
        "    import flwr_robust.flower\n"
        "except ModuleNotFoundError as error:\n"
        "    print('absent', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[1.0, 1.0]", "absent flwr"]


def test_every_rule_is_found_by_listing_its_folder():
    for package in ("aggregators", "preaggregators"):
        module = importlib.import_module(f"flwr_robust.{package}")
        files = {m.name for m in pkgutil.iter_modules(module.__path__)}
        assert len(module.__all__) == len(files)
        assert {getattr(module, name).name for name in module.__all__} == files


def test_run_config_of_the_app_has_the_same_defaults():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == {name: key.default for name, key in KEYS.items()}
    assert RunConfig.from_mapping(app["config"]) == RunConfig()


def test_version_is_stated_once_more_and_equal():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == flwr_robust.__version__
