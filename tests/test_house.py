"""The structure that ARCHITECTURE promises: arrows of imports, public names, light imports, equal defaults."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flwr_robust
from flwr_robust.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent

# Lower floors never import higher ones; rooms on one floor never import each other.
FLOORS = [
    ["flwr_robust.errors", "flwr_robust.files", "flwr_robust.registry", "flwr_robust.seeds"],
    ["flwr_robust.kernels"],
    ["flwr_robust.rows"],
    ["flwr_robust.rule", "flwr_robust.attack"],
    ["flwr_robust.message_attack", "flwr_robust.fault"],
    ["flwr_robust.line_attack"],
    ["flwr_robust.sharded"],
    [
        "flwr_robust.aggregators",
        "flwr_robust.preaggregators",
        "flwr_robust.attacks",
        "flwr_robust.diagnostics",
        "flwr_robust.momentum",
        "flwr_robust.partition",
    ],
    ["flwr_robust.desgd"],
    ["flwr_robust.tasks"],
    ["flwr_robust.config"],
    ["flwr_robust.audit", "flwr_robust.personal"],
    ["flwr_robust.rounds", "flwr_robust.adversary"],
    ["flwr_robust.probe"],
    ["flwr_robust.results"],
    ["flwr_robust.class_rounds"],
    ["flwr_robust.class_simulation"],
    ["flwr_robust.flower", "flwr_robust.simulation"],
    ["flwr_robust.cli"],
    ["clients", "server"],
    ["experiments", "benchmarks"],
]
FREE = {"flwr_robust.errors", "flwr_robust.registry"}  # neighbours on the ground floor share errors
MODULES = sorted(p for room in ("flwr_robust", "clients", "server", "experiments") for p in (ROOT / room).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name):
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            if name == room or name.startswith(room + "."):
                return floor, room
    return None


def imports(path):
    """Modules of this project that a file imports, whether at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(name, imported):
    """The sentence that says why ``name`` must not import ``imported``, or None."""
    here, there = room_of(name), room_of(imported)
    if here is None or there is None or here[1] == there[1]:
        return None
    if there[0] > here[0]:
        return f"{name} imports {imported} from a higher floor"
    if there[0] == here[0] and there[1] not in FREE:
        return f"{name} imports its neighbour {imported}"
    return None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    assert name == "flwr_robust" or room_of(name), f"{name} stands on no floor"
    assert [v for imported in imports(path) if (v := violations(name, imported))] == []
    if not name.startswith(("flwr_robust.flower", "clients", "server", "experiments")):
        assert not any(i == "flwr" or i.startswith("flwr.") or i == "ray" for i in imports(path))


def test_the_arrow_test_can_fail():
    assert violations("flwr_robust.rows", "flwr_robust.rule")
    assert violations("clients.app", "server.app")
    assert violations("flwr_robust.partition", "flwr_robust.momentum")
    assert violations("flwr_robust.rule", "flwr_robust.rows") is None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_is_what_all_reaches(path):
    name = module_name(path)
    if name.endswith(("__main__", "kernels", "attacks", "clients", "server", "experiments")):
        return
    module = importlib.import_module(name)
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    assert hasattr(module, "__all__"), f"{name} names nothing public"
    exported = set(module.__all__)
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
    assert sum(len(test.examples) for test in finder.find(flwr_robust)) >= 5


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
    assert app["config"] == RunConfig().to_mapping()


def test_wheel_holds_the_package_alone():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["packages"] == ["flwr_robust"]


def test_version_is_stated_once_more_and_equal():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == flwr_robust.__version__
