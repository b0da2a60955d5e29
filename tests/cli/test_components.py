"""What `list` and `describe` say of components, which is what the components themselves say."""

import dataclasses
import json
import re
import tomllib

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.cli.facts import KINDS, describe, registries
from flwr_robust.core.pipeline import Pipeline, parse
from flwr_robust.core.rule import Rule, aggregators
from flwr_robust.core.spec import PLUGINS
from flwr_robust.runs.config import RunConfig

COMPONENTS = [(kind, name, cls) for kind, registry in registries().items() for name, cls in registry.members().items()]


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(("kind", "name", "cls"), COMPONENTS, ids=[name for _, name, _ in COMPONENTS])
def test_every_component_is_described_whole(kind, name, cls):
    found = describe(cls, KINDS[kind])
    assert found["title"]
    assert [field["name"] for field in found["fields"]] == [field.name for field in dataclasses.fields(cls)]
    assert all(field["meaning"] for field in found["fields"]), [f["name"] for f in found["fields"] if not f["meaning"]]
    assert registries()[kind].parse(found["examples"]["text"])  # what the example says can be parsed
    if kind in ("rules", "preaggregators"):
        assert found["condition"]
        assert found["formula"]
        assert found["least_n"]
    if kind == "attacks":
        assert found["family"] in ("data", "message", "fault")
    compile(found["examples"]["python"], name, "exec")
    keys = tomllib.loads(found["examples"]["run_config"])
    assert RunConfig.from_mapping(keys)
    assert keys or name in ("monna", "fltrust"), "what a run config cannot say"


def test_names_are_of_one_kind():
    names = [name for _, name, _ in COMPONENTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [name for name, cls in aggregators.members().items()])
def test_least_n_is_the_least(name):
    found = describe(aggregators.get(name), "rule")
    for f, n in found["least_n"].items():
        rule = aggregators.parse(found["examples"]["text"])
        rule = dataclasses.replace(rule, f=int(f)) if f else rule
        assert rule.check(n) is None
        assert n == 1 or rule.check(n - 1)


def test_krum_in_numbers():
    (found,) = json.loads(call("describe", "krum", "--json").stdout)["components"]
    assert found["least_n"] == {"1": 5, "2": 7, "3": 9, "4": 11, "5": 13}
    assert found["formula"].startswith("score_i = sum over the n - f - 2 rows")
    assert found["signature"] == "krum(f, variant='paper', strict=True)"
    assert found["examples"] == {
        "text": "krum(f=2)",
        "python": "from flwr_robust.flower import Krum\nstrategy = Krum(f=2)",
        "run_config": 'defence = "krum(f=2)"',
    }
    assert found["lacks"][0]["property"] == "resilience"
    assert (found["fields"][0]["type"], found["fields"][0]["required"]) == ("int", True)


def test_an_example_of_a_plugins_component_loads_the_plugin(monkeypatch):
    cls = aggregators.get("krum")
    monkeypatch.setenv(PLUGINS, f"/somewhere/else.py,{cls.__module__}")
    lines = describe(cls, "rule")["examples"]["python"].splitlines()
    assert lines[:2] == ["from flwr_robust.core.spec import load_plugin", f"load_plugin({cls.__module__!r})"]
    assert lines[2:] == ["from flwr_robust.flower import Krum", "strategy = Krum(f=2)"]


def test_examples_in_python_work():
    for name in ("krum", "trimmed_mean", "nnm", "alie", "dirichlet"):
        (found,) = json.loads(call("describe", name, "--json").stdout)["components"]
        lines, made = found["examples"]["python"].splitlines(), {"grid": object(), "labels": [k % 5 for k in range(50)]}
        if name == "alie":  # needs a grid of Flower's
            lines = lines[:1]
        exec("\n".join(lines), made)
    assert isinstance(parse("nnm(f=2) | trimmed_mean(f=2)"), Pipeline | Rule)


@pytest.mark.parametrize("name", ["krum", "geometric_median", "mixtailor", "alie", "backdoor", "dirichlet", "stale"])
def test_a_description_fits_a_terminal(name):
    done = call("describe", name)
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 100
    for heading in ("in Python", "in a run config", "file: "):
        assert heading in done.output


def test_help_names_the_kinds():
    text = " ".join(call("list", "--help").output.split())
    for kind in (*KINDS, "tasks", "models", "strategies", "studies", "papers"):
        assert re.search(rf"\b{kind}\b", text.partition("KIND is")[2].partition(";")[0]), kind


@pytest.mark.parametrize("kind", [*KINDS, "tasks", "models", "strategies", "papers"])
def test_lists_fit_a_terminal_and_name_all(kind):
    done = call("list", kind)
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 100
    entries = json.loads(call("list", kind, "--json").stdout)[kind]
    assert entries
    for entry in entries:
        assert re.search(rf"^{entry['name']}\b", done.output, re.M), entry["name"]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("kurm", "krum"),
        ("Krum", "krum"),
        ("multikrum", "multi_krum"),
        ("trimmed-mean", "trimmed_mean"),
        ("flip", "label_flip"),
    ],
)
def test_an_unknown_name_suggests_close_ones(name, close):
    done = call("describe", name)
    assert done.exit_code == 2
    assert close in done.stderr.partition("did you mean")[2]
    assert len(done.stderr.splitlines()) == 1


def test_a_name_like_no_other_suggests_none():
    done = call("describe", "zzzzzz")
    assert (done.exit_code, "did you mean" in done.stderr) == (2, False)


def test_a_component_may_be_written_with_its_fields():
    assert call("describe", "krum(f=3)").output == call("describe", "krum").output


def test_a_list_with_much_to_say_of_each_stays_readable():
    papers = call("list", "papers").stdout.splitlines()
    assert 4 < len(papers) < 20
    assert all(len(line) <= 100 for line in papers)
