"""Variables of a study: what braces become, what f and n set, and what is said of a mistake."""

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError, FlwrRobustError
from flwr_robust.studies.showing import ALONE
from flwr_robust.studies.study import load_study
from flwr_robust.studies.variables import fill


def study(tmp_path, text, overrides=None):
    (tmp_path / "own.toml").write_text(text)
    return load_study(str(tmp_path / "own.toml"), overrides)


def configs(found, *keys):
    """The keys of each cell, by its labels."""
    return {
        tuple(label for axis, label in c.labels.items() if axis != ALONE): tuple(c.config.to_mapping()[k] for k in keys)
        for c in found.cells
    }


GRID = """
[config]
clients = 11
attack = "alie(z={f}.5)"
attack-start = 5
[axes]
defence = ["mean()", "nnm(f={f}) | trimmed_mean(f={f})", "multi_krum(f={f}, m={n-f})"]
f = [0, 1, 2]
"""


def test_f_sets_the_rules_the_attack_and_the_attackers(tmp_path):
    found = configs(study(tmp_path, GRID), "defence", "attack", "attackers", "attack-start")
    nnm, krum = "nnm(f={f}) | trimmed_mean(f={f})", "multi_krum(f={f}, m={n-f})"
    assert len(found) == 9
    assert found[nnm, "2"] == ("nnm(f=2) | trimmed_mean(f=2)", "alie(z=2.5)", 2, 5)
    assert found[krum, "1"] == ("multi_krum(f=1, m=10)", "alie(z=1.5)", 1, 5)
    # Without attackers there is no attack, so f = 0 is the price of the rule.
    assert found[nnm, "0"] == ("nnm(f=0) | trimmed_mean(f=0)", "none", 0, 1)
    assert found["mean()", "0"] == ("mean()", "none", 0, 1)


def test_the_cells_of_f_are_those_written_out(tmp_path):
    found = study(tmp_path, GRID)
    written = study(
        tmp_path,
        """
[config]
clients = 11
[axes]
x = [
  { label = "0", defence = "nnm(f=0) | trimmed_mean(f=0)" },
  { label = "2", defence = "nnm(f=2) | trimmed_mean(f=2)", attack = "alie(z=2.5)", attack-start = 5, attackers = 2 },
]
""",
    )
    own = {c.labels["f"]: c.digest for c in found.cells if c.labels["defence"].startswith("nnm")}
    assert [c.digest for c in written.cells] == [own["0"], own["2"]]


def test_declared_and_real_f_may_differ(tmp_path):
    text = """
[config]
attack = "sign_flip()"
defence = "krum(f={f})"
[axes]
threat = [
  { label = "few", f = 1, n = 11 },
  { label = "many", f = "{(n-3)//2}", n = 20 },
  { label = "fewer than declared", f = 3, attackers = 1 },
  { label = "none at all", f = 3, attackers = 0 },
]
"""
    assert configs(study(tmp_path, text), "defence", "attack", "attackers", "clients") == {
        ("few",): ("krum(f=1)", "sign_flip()", 1, 11),
        ("many",): ("krum(f=8)", "sign_flip()", 8, 20),
        ("fewer than declared",): ("krum(f=3)", "sign_flip()", 1, 10),
        ("none at all",): ("krum(f=3)", "none", 0, 10),
    }
    real = configs(
        study(
            tmp_path,
            '[config]\nf = 2\nattack = "alie()"\ndefence = "krum(f={f})"\n[axes]\nattackers = [0, 1, 3]\n',
        ),
        *("defence", "attack", "attackers"),
    )
    assert real == {
        ("0",): ("krum(f=2)", "none", 0),
        ("1",): ("krum(f=2)", "alie()", 1),
        ("3",): ("krum(f=2)", "alie()", 3),
    }
    declared = study(
        tmp_path,
        '[config]\nattackers = 1\nattack = "alie()"\ndefence = "krum(f={f})"\n[axes]\nf = [0, 2]\n',
    )
    assert configs(declared, "defence", "attack", "attackers") == {
        ("0",): ("krum(f=0)", "alie()", 1),
        ("2",): ("krum(f=2)", "alie()", 1),
    }


@pytest.mark.parametrize("how_many", ["f = 2", "attackers = 2"])
def test_an_axis_may_say_that_there_is_no_attack(tmp_path, how_many):
    text = f'[config]\n{how_many}\nattack-stop = 7\n[axes]\nattack = ["none", "alie()"]\ndefence = ["krum(f=2)"]\n'
    if how_many == "f = 2":
        text = text.replace("krum(f=2)", "krum(f={f})")
    assert [c.config.to_mapping()["attack-stop"] for c in study(tmp_path, text).cells] == [0, 7]
    assert [c.config.attackers for c in study(tmp_path, text).cells] == [0, 2]
    assert {c.config.defence for c in study(tmp_path, text).cells} == {"krum(f=2)"}


def test_what_contradicts_itself_is_still_an_error(tmp_path):
    for text in (
        '[config]\nattack = "alie()"\n[axes]\nseed = [0]\n',  # nobody said how many
        '[config]\nattack = "alie()"\nattackers = 0\n[axes]\nseed = [0]\n',
        '[axes]\nx = [{ label = "a", attack = "alie()", attackers = 0 }]\n',
    ):
        with pytest.raises(ConfigurationError, match="needs attackers >= 1; got attackers=0"):
            study(tmp_path, text)
    with pytest.raises(ConfigurationError, match="attackers=1 need an attack"):
        study(tmp_path, '[axes]\nx = [{ label = "a", attack = "none", attackers = 1 }]\n')
    with pytest.raises(ConfigurationError, match="attack-start=5 changes nothing with attack='none'"):
        study(tmp_path, "[config]\nattack-start = 5\n[axes]\nseed = [0]\n")


def test_any_name_is_a_variable_and_may_hold_others(tmp_path):
    text = """
[config]
clients = 8
f = 1
attack = "label_flip()"
defence = "{before}{rule}"
batch-size = "{4*clients}"
[axes]
beta = [5.0, 0.1]
partition = ["dirichlet(beta={beta})"]
before = ["", { label = "nearest neighbours", before = "nnm(f={f}) | " }]
rule = ["trimmed_mean(f={f})", "centered_clipping(tau={batch_size/320})"]
[[exceptions]]
where = { beta = "0.1", before = "" }
set = { seed = "{n + f}" }
"""
    keys = ("defence", "partition", "batch-size", "seed")
    found = configs(study(tmp_path, text), *keys)
    partition, trimmed = "dirichlet(beta={beta})", "trimmed_mean(f={f})"
    assert found["5.0", partition, "nearest neighbours", trimmed] == (
        *("nnm(f=1) | trimmed_mean(f=1)", "dirichlet(beta=5.0)"),
        *(32, 0),
    )
    assert found["0.1", partition, "", trimmed] == ("trimmed_mean(f=1)", "dirichlet(beta=0.1)", 32, 9)
    assert found["5.0", partition, "", "centered_clipping(tau={batch_size/320})"][0] == "centered_clipping(tau=0.1)"


def test_set_replaces_variables_of_the_config(tmp_path):
    text = '[config]\nf = 1\nattack = "alie()"\n[axes]\ndefence = ["krum(f={f})"]\n'
    assert study(tmp_path, text).cells[0].config.defence == "krum(f=1)"
    for number, attack in ((2, "alie()"), (0, "none")):
        (cell,) = study(tmp_path, text, {"f": number}).cells
        assert (cell.config.defence, cell.config.attackers, cell.config.attack) == (f"krum(f={number})", number, attack)
    with pytest.raises(ConfigurationError, match="f cannot be set, the study varies it along its axis f"):
        study(tmp_path, GRID, {"f": 1})


def test_braces_themselves_are_written_twice():
    assert fill({"task": "a/{{b}}.npz"}).keys == {"task": "a/{b}.npz"}
    assert fill({"task": "{{}}"}).keys == {"task": "{}"}
    assert fill({"task": "{k}", "k": 3}).keys == {"task": "3"}  # a key that is a text stays one


WRONG = [
    (
        {"defence": "krum(f={g})", "f": 1, "tau": 2},
        "names g in braces, which is unknown; known are f, n, tau and",
    ),
    ({"defence": "krum(f={f)"}, "a brace without its partner: close it, or write {{ for {"),
    ({"defence": "krum(f=f})"}, "a brace without its partner: close it, or write }} for }"),
    ({"defence": "krum(f={})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={__import__('os').getcwd()})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={2**9})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={n.real})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={True})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={" + "-" * 20000 + "1})"}, "braces hold names, numbers"),
    ({"defence": "krum(f={1//0})"}, "cannot be computed: integer division or modulo by zero|division by zero"),
    ({"defence": "krum(f={a+1})", "a": "x"}, "computes with a, which is 'x'"),
    (
        {"defence": "krum(f={a})", "a": "{b}", "b": "{a}"},
        "defence asks for a asks for b asks for a: a name cannot stand",
    ),
    ({"clients": "{n}"}, "clients asks for clients: a name cannot"),
    ({"n": 4, "clients": 4}, "n sets clients, so only one of them"),
    ({"defence": "{a}", "a": [1]}, r"variable a must be a text, a number or a boolean; got \[1\]"),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=range(len(WRONG)))
def test_a_mistake_in_braces_is_one_sentence(values, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        fill(values)
    assert "\n" not in str(caught.value)


UNUSED = [
    (
        "[config]\ntua = 0.1\n[axes]\nseed = [0]\n",
        "tua is no variable, because no text holds {tua}; unknown config.*key",
    ),
    ("[axes]\nsedd = [0]\n", "sedd is no variable.*Did you mean 'seed'"),
    ("[config]\nf = 1\n[axes]\nseed = [0]\n", "f has no effect: no text holds {f}"),
    ('[config]\nattack = "alie()"\n[axes]\nf = [1]\nattackers = [2]\n', "f has no effect: no text holds {f}"),
    ('[axes]\nseed = [0]\n[[exceptions]]\nwhere = { seed = "0" }\nset = { tua = 1 }\n', "tua is no variable"),
    ("[config]\nclients = 4\n[axes]\nn = [5]\n", "n sets clients"),
    ('[axes]\nf = [1]\ndefence = ["krum(f={g})"]\n', "cell f=1, defence=krum.*names g in braces"),
    ('[axes]\nseed = ["{f}"]\n', "names f in braces, which is unknown; known are n and .*set f in .config. or"),
]


@pytest.mark.parametrize(("text", "words"), UNUSED, ids=range(len(UNUSED)))
def test_a_variable_without_effect_is_one_sentence(tmp_path, text, words):
    with pytest.raises(FlwrRobustError, match=words):
        study(tmp_path, text)
    done = CliRunner().invoke(app, ["run", str(tmp_path / "own.toml"), "--results", str(tmp_path)])
    assert (done.exit_code, done.output.count("error: ")) == (2, 1)
