"""`flwr-robust plan`: output, JSON, pictures, and what bad input gets."""

import json

import pytest
from typer.testing import CliRunner

from flwr_robust import plan
from flwr_robust.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_plan_is_printed_and_drawn(tmp_path):
    picture = tmp_path / "plan.png"
    done = invoke("plan", "--clients", 1000, "--compromised", 100, "--rounds", 200, "--rule", "krum", "--plot", picture)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    found = plan(1000, 100, rounds=200, rule="krum")
    assert found.sentence in text
    assert f"{found.least_sample} smallest sample that fits the condition and the risk" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_json_is_the_plan():
    done = invoke("plan", "--clients", 50, "--compromised", 5, "--sample", 20, "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(plan(50, 5, sample=20).to_dict()))
    documented = " ".join(invoke("plan", "--help").output.replace("│", " ").split()).split("JSON: ")[1].split(".")[0]
    assert set(documented.split(", ")) == set(plan(50, 5).to_dict())


def test_an_impossible_plan_is_a_finding():
    done = invoke("plan", "--clients", 20, "--compromised", 8, "--rule", "trimmed_mean")
    assert done.exit_code == 1
    assert "have at most 6 compromised clients" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--clients", 10, "--compromised", 11), "compromised must be at most the clients=10"),
        (("--clients", 10, "--compromised", 1, "--plot", "x.pdf"), "--plot must be a PNG file; got x.pdf"),
        (("--clients", 10, "--compromised", 1, "--plot", "none/x.png"), "the folder of --plot must exist"),
        (("--clients", 10, "--compromised", 1, "--rule", "nothing"), "unknown aggregator"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(arguments, sentence):
    done = invoke("plan", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.strip().splitlines()) == 1
