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


# What has no test file at its mirrored place: a folder or a module, and the file that covers it.
COVERED = {
    "app": "app/test_clients.py",
    "attacks/adversary.py": "runs/test_world.py",
    "attacks/data": "attacks/test_data.py",
    "attacks/fault": "attacks/test_message.py",
    "attacks/message": "attacks/test_message.py",
    "attacks/registry.py": "attacks/test_conformance.py",
    "audit/card_templates.py": "audit/test_card.py",
    "audit/commitments.py": "audit/test_secret_seeds.py",
    "audit/digest.py": "audit/test_log.py",
    "audit/distances.py": "flower/test_audit.py",
    "audit/events.py": "audit/test_log.py",
    "audit/history.py": "audit/test_card.py",
    "audit/models.py": "adversary/test_record.py",
    "audit/order_files.py": "audit/test_orders.py",
    "audit/red_team_file.py": "audit/test_card.py",
    "audit/run.py": "audit/test_checkpoint.py",
    "audit/signing.py": "adversary/test_record.py",
    "cli/facts.py": "cli/test_components.py",
    "cli/league.py": "redteam/test_league.py",
    "cli/redteam.py": "redteam/test_red_team.py",
    "cli/shared.py": "cli/test_main.py",
    "cli/studies.py": "studies/test_studies.py",
    "core/pipeline.py": "core/test_spec.py",
    "core/segments.py": "core/test_rows.py",
    "core/storage.py": "core/test_call.py",
    "diagnostics": "diagnostics/test_diagnostics.py",
    "errors.py": "core/test_spec.py",
    "flower/memory.py": "flower/test_hostile.py",
    "flower/metrics.py": "flower/test_strategy.py",
    "flower/round_records.py": "flower/test_strategy.py",
    "flower/versions.py": "flower/test_compat.py",
    "kernels": "kernels/test_kernels.py",
    "redteam": "redteam/test_red_team.py",
    "runs/probe.py": "diagnostics/test_diagnostics.py",
    "studies": "studies/test_studies.py",
    "tasks": "tasks/test_tasks.py",
}


def mirrored(module):
    """Return where the tests of a module of the package belong, below tests/."""
    return module.with_name(f"test_{module.stem.removeprefix('_')}.py")


def covering(module):
    """Return the file of tests that stands in for the mirrored one; None: there is none."""
    return COVERED.get(module.as_posix()) or COVERED.get(module.parent.as_posix())


def test_every_module_has_its_tests_at_the_mirrored_place():
    inside = (p.relative_to(ROOT / "flwr_robust") for p in MODULES if "flwr_robust" in p.parts)
    modules = [p for p in inside if not p.stem.startswith("__")]
    apart = [p for p in modules if not (ROOT / "tests" / mirrored(p)).exists()]
    assert [p.as_posix() for p in apart if covering(p) is None] == []
    assert [file for file in COVERED.values() if not (ROOT / "tests" / file).exists()] == []
    needed = {key for p in apart for key in (p.as_posix(), p.parent.as_posix())}
    assert COVERED.keys() - needed == set(), "an exception that is needed no longer"


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines() == ["[1.0, 1.0]", "absent flwr"], done.stderr


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
