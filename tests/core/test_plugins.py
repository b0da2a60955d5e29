"""Other people's components: entry points of installed distributions, and plugins of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, InfeasibleError, Rows, parse
from flwr_robust.core.rule import aggregators
from flwr_robust.core.spec import PLUGINS, load_plugin, plugin_of
from tests.aggregators import test_conformance as suite

# All that need no oracle.
PROPERTIES = (
    suite.shape,
    suite.mix,
    suite.translation,
    suite.scale,
    suite.permutation,
    suite.unanimity,
    suite.determinism,
    suite.resilience,
    suite.huge,
    suite.mixed_types,
)

RULE = """
from dataclasses import dataclass
from typing import Annotated

import torch

from flwr_robust.core.fields import Integer
from flwr_robust.core.rule import Aggregate, Rule, aggregators


@aggregators.register("{name}")
@dataclass(frozen=True)
class Newest(Rule):
    f: Annotated[int, Integer(minimum=0)]

    def combine(self, rows, state):
        weights = torch.zeros(rows.n, dtype=torch.float64)
        weights[-1] = 1
        return Aggregate(rows.mix(weights), weights), state
"""

OTHERS = """
from dataclasses import dataclass

import numpy as np
import torch

from flwr_robust.attacks.data.base import LabelAttack, data_attacks
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.core.rule import PreAggregator, preaggregators
from flwr_robust.tasks import Task
from flwr_robust.tasks.partition import Partition, partitions


@preaggregators.register("doubled")
@dataclass(frozen=True)
class Doubled(PreAggregator):
    def matrix(self, rows, state):
        return 2 * torch.eye(rows.n, dtype=torch.float64), {}, state


@data_attacks.register("to_zero")
@dataclass(frozen=True)
class ToZero(LabelAttack):
    def wrong(self, labels, view):
        return torch.zeros_like(labels)


@faults.register("asleep")
@dataclass(frozen=True)
class Asleep(Fault):
    def answer(self, layers, server_round, state, rng):
        return None, state


@partitions.register("in_turn")
@dataclass(frozen=True)
class InTurn(Partition):
    def split(self, labels, clients, generator):
        return [np.arange(c, len(labels), clients) for c in range(clients)]


def two_points(folder):
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    return Task("two_points", x, y, x, y, 2)


def no_task(folder):
    return "nothing"
"""

LOOK = """
from flwr_robust import Rows, parse
from flwr_robust.attacks.data.base import data_attacks
from flwr_robust.attacks.fault.base import faults
from flwr_robust.tasks import load_task
from flwr_robust.tasks.partition import partitions
import numpy as np, torch

value = parse("doubled() | newest(f=1)")(Rows.from_tensor(torch.tensor([[1.0], [2.0], [3.0]])))[0].value
parts = partitions.parse("in_turn()")(np.zeros(4, int), 2, 0)
print(float(value), [p.tolist() for p in parts], data_attacks.parse("to_zero"), faults.parse("asleep"))
print(load_task("two_points").classes, "newest" in __import__("flwr_robust").core.rule.aggregators.members())
"""


def installed(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """Write a distribution as an installer leaves it: its modules beside its .dist-info."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))


def python(code: str, *paths: Path, plugins: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that finds the distributions of some folders."""
    here = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, *map(str, paths)]),
        PLUGINS: plugins,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


# -- entry points ----------------------------------------------------------------------------------

GROUPS = """
    [flwr_robust.rules]
    newest = other_rules
    doubled = other_parts:Doubled

    [flwr_robust.attacks]
    anything = other_parts

    [flwr_robust.partitions]
    in_turn = other_parts:InTurn

    [flwr_robust.tasks]
    two_points = other_parts:two_points
    no_task = other_parts:no_task
"""

SPAWN = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from flwr_robust import parse
from flwr_robust.core.spec import load_plugin

if __name__ == "__main__":
    {before}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(parse, "newest(f=3)").result())       # the child knows the name, and sends a rule back
        print(pool.submit(str, parse("newest(f=4)")).result())  # and is sent one
"""


@pytest.mark.slow
def test_a_distribution_makes_its_components_known(tmp_path):
    installed(tmp_path, "other", GROUPS, other_rules=RULE.format(name="newest"), other_parts=OTHERS)
    seen = python(LOOK, tmp_path)
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.splitlines() == ["6.0 [[0, 2], [1, 3]] to_zero() asleep()", "2 True"]
    assert "Warning" not in seen.stderr
    without = python(LOOK)
    assert without.returncode == 1
    assert "unknown pre-aggregator 'doubled'" in without.stderr


@pytest.mark.slow
def test_a_loader_that_returns_no_task_is_an_error(tmp_path):
    installed(tmp_path, "other", GROUPS, other_rules=RULE.format(name="newest"), other_parts=OTHERS)
    seen = python("from flwr_robust.tasks import load_task\nload_task('no_task')", tmp_path)
    assert "ConfigurationError: task no_task: its function must return a Task" in seen.stderr
    unknown = python("from flwr_robust.tasks import load_task\nload_task('two_pints')", tmp_path)
    assert "Did you mean 'two_points'?" in unknown.stderr


@pytest.mark.slow
def test_a_task_of_the_projects_own_name_is_an_error(tmp_path):
    installed(tmp_path, "other", "[flwr_robust.tasks]\ndigits = other_parts:two_points\n", other_parts=OTHERS)
    seen = python("from flwr_robust.tasks import load_task\nload_task('digits')", tmp_path)
    assert "task 'digits' is registered twice: by flwr_robust and by an entry point; rename one" in seen.stderr


@pytest.mark.slow
def test_spawned_processes_know_a_distribution(tmp_path):
    installed(tmp_path, "other", "[flwr_robust.rules]\nx = other_rules\n", other_rules=RULE.format(name="newest"))
    script = tmp_path / "script.py"
    script.write_text(SPAWN.format(before="pass"))
    seen = python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", tmp_path)
    assert seen.stdout.splitlines() == ["newest(f=3)", "newest(f=4)"], seen.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_distribution_is_a_warning_to_those_who_do_not_use_it(tmp_path, module, why):
    points = "[flwr_robust.rules]\nbad = other_bad\ngood = other_rules\n"
    installed(tmp_path, "broken", points, other_bad=module, other_rules=RULE.format(name="newest"))
    code = "from flwr_robust import parse\nprint(parse('krum(f=1)'), parse('nnm(f=1) | newest(f=2)'))"
    seen = python(code, tmp_path)
    assert seen.stdout == "krum(f=1) nnm(f=1) | newest(f=2)\n"
    assert seen.stderr.count("RuntimeWarning") == 1
    assert "entry point 'bad = other_bad' of the package broken cannot be loaded" in seen.stderr
    assert why in seen.stderr
    assert "repair, update or uninstall broken" in seen.stderr


@pytest.mark.slow
def test_a_distribution_may_use_other_names_while_it_is_loaded(tmp_path):
    module = "from flwr_robust import parse\nUSED = str(parse('nnm(f=1) | krum(f=1)'))\n" + RULE.format(name="newest")
    installed(tmp_path, "other", "[flwr_robust.rules]\nx = other_rules:Newest\n", other_rules=module)
    code = "from flwr_robust import parse\nprint(parse('newest(f=1)'), __import__('other_rules').USED)"
    seen = python(code, tmp_path)
    assert seen.stdout == "newest(f=1) nnm(f=1) | krum(f=1)\n", seen.stderr
    assert "Warning" not in seen.stderr


@pytest.mark.slow
def test_a_distribution_with_a_name_that_is_taken_is_an_error(tmp_path):
    installed(tmp_path, "clash", "[flwr_robust.rules]\nx = other_rules\n", other_rules=RULE.format(name="krum"))
    seen = python("from flwr_robust import parse\nparse('mean')", tmp_path)
    assert seen.returncode == 1
    assert "ConfigurationError: aggregator 'krum' is registered twice: by " in seen.stderr
    assert all(name in seen.stderr.splitlines()[-1] for name in ("other_rules", "flwr_robust.aggregators.krum"))


# -- plugins ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_is_a_plugin_in_spawned_processes_too(tmp_path):
    plugin = tmp_path / "rules_of_mine.py"
    plugin.write_text(RULE.format(name="newest"))
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(SPAWN.format(before=f"load_plugin({str(plugin)!r})"))
    seen = python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert seen.stdout.splitlines() == ["newest(f=3)", "newest(f=4)"], seen.stderr


@pytest.mark.slow
@pytest.mark.parametrize("separator", [",", os.pathsep, f" {os.pathsep} "])
def test_the_environment_names_plugins(tmp_path, separator):
    (tmp_path / "first_of_mine.py").write_text(RULE.format(name="newest"))
    (tmp_path / "second_of_mine.py").write_text(RULE.format(name="second"))
    code = (
        "import os\nfrom flwr_robust import parse\n"
        f"print(parse('newest(f=1)'), parse('second(f=2)'), os.environ['{PLUGINS}'])"
    )
    seen = python(code, tmp_path, plugins=f"first_of_mine{separator}./second_of_mine.py", cwd=tmp_path)
    # A relative path becomes a full one: a child may run elsewhere.
    expected = f"newest(f=1) second(f=2) first_of_mine{os.pathsep}{tmp_path / 'second_of_mine.py'}\n"
    assert seen.stdout == expected, seen.stderr


@pytest.mark.slow
def test_a_plugin_of_the_environment_that_is_absent_is_an_error_every_time(tmp_path):
    code = (
        "from flwr_robust import ConfigurationError, parse\n"
        "for _ in range(2):\n    try:\n        parse('mean')\n"
        "    except ConfigurationError as error:\n        print(error)\n"
    )
    seen = python(code, plugins="nothing_of_this_name")
    sentence = (
        "plugin: there is no module 'nothing_of_this_name'; install it, or give the path of a file that ends in .py\n"
    )
    assert seen.stdout == 2 * sentence


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """Undo what a plugin registers, and where it was found."""
    monkeypatch.setenv(PLUGINS, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(aggregators, "_members", dict(aggregators.members()))
    yield
    for name, module in [*sys.modules.items()]:  # the plugins alone: numba and parts of torch load only once
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_plugin_may_come_after_the_first_look(tmp_path, clean):
    path = tmp_path / "late_of_mine.py"
    path.write_text(RULE.format(name="latecomer"))
    with pytest.raises(ConfigurationError, match="unknown aggregator 'latecomer'"):
        parse("latecomer(f=1)")
    load_plugin(str(path))
    load_plugin(str(path))
    assert str(parse("latecomer(f=1)")) == "latecomer(f=1)"
    assert os.environ[PLUGINS] == str(path)
    assert plugin_of(aggregators.get("latecomer")) == str(path)
    assert plugin_of(aggregators.get("krum")) == ""
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1
    with pytest.raises(ConfigurationError, match="latecomer: f must be an integer >= 0; got f=-1"):
        parse("latecomer(f=-1)")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.py", None, r"plugin: there is no file .*absent\.py; give the path"),
        ("json.py", "", r"plugin: .*json\.py has the name of another module, .*json.__init__\.py; rename the file"),
        ("time.py", "", r"plugin: .*time\.py has the name of another module, built-in; rename the file"),
        ("a-b.py", "", r"plugin: .*a-b\.py must have a name of letters, digits and '_'; rename"),
        (
            "bad_of_mine.py",
            "1 / 0",
            r"plugin: .*bad_of_mine\.py cannot be imported \(ZeroDivisionError: .*\); correct",
        ),
        ("bad_of_mine.py", "import no_such_thing", r"cannot be imported \(ModuleNotFoundError: .*'no_such_thing'"),
        ("clash_of_mine.py", RULE.format(name="krum"), r"aggregator 'krum' is registered twice: .* by clash_of_mine"),
    ],
)
def test_what_is_no_plugin_is_refused(tmp_path, clean, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_plugin(str(path))
    assert os.environ[PLUGINS] == ""


def test_a_file_whose_path_cannot_be_passed_on_is_refused(tmp_path, clean):
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "rule_of_mine.py").write_text(RULE.format(name="newest"))
    with pytest.raises(ConfigurationError, match=r"the path of a file must be without ','.*move the file"):
        load_plugin(str(folder / "rule_of_mine.py"))
    for name in ("", "no.such.module", "..", "no such module"):
        with pytest.raises(ConfigurationError, match=r"^plugin: "):
            load_plugin(name)


# -- the example of CONTRIBUTING -------------------------------------------------------------------


def test_the_example_of_contributing_is_a_plugin_that_passes_the_suite(tmp_path, clean):
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    path = tmp_path / "medoid_of_the_guide.py"
    path.write_text(block)
    load_plugin(str(path))
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [100.0, 100.0]])
    result, _ = parse("medoid(f=1)")(Rows.from_tensor(torch.from_numpy(x)))
    sums = np.linalg.norm(x[:, None] - x, axis=2).sum(1)  # 3 + |(100, 100)|, 1 + sqrt(5) + ..., ...
    assert result.value.tolist() == x[sums.argmin()].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(result.stats["sums"], sums)
    with pytest.raises(InfeasibleError, match=r"medoid needs n >= 2f \+ 1; got n=4, f=2: ask at least 5 clients"):
        parse("medoid(f=2)")(Rows.from_tensor(torch.from_numpy(x)))
    with pytest.raises(ConfigurationError, match="medoid: f must be an integer >= 0; got f='1'"):
        parse("medoid(f='1')")
    for case in sys.modules["medoid_of_the_guide"].CASES:
        for holds in PROPERTIES:
            holds(case)


def test_a_module_of_this_package_is_no_plugin_of_later_processes(monkeypatch):
    """It would be imported where rules are used without Flower, and fail there."""
    monkeypatch.setenv(PLUGINS, "")
    load_plugin("flwr_robust.redteam.league")
    assert os.environ[PLUGINS] == ""
