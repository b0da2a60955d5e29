"""The studies of Peng et al. (JMLR 2025): what their protocols say is what the cells hold, and cells run."""

import math

import pytest

from flwr_robust.runs.fast import unbatched
from flwr_robust.studies.runner import run_fast_cell
from flwr_robust.studies.study import load_study

NAMES = ("softmax", "softmax_text", "mlp", "cifar10", "diagnostics", "grid", "grid_authors", "grid_splits")
CELLS = {"softmax": 144, "softmax_text": 90, "mlp": 90, "cifar10": 18, "diagnostics": 24, "grid": 180}
CELLS |= {"grid_authors": 90, "grid_splits": 150}
RULES = {"mean", "trimmed_mean", "faba", "centered_clipping", "lfighter"}
WIDER = "centered_clipping, tau = 1"  # ours, beside the authors'
FARTHEST = "lfighter, farthest"  # ours, too
GRIDS = ("grid", "grid_authors", "grid_splits")


def study(name, **keys):
    return load_study(f"peng2025_{name}", keys)


@pytest.mark.parametrize("name", NAMES)
def test_the_protocol(name):
    cells = study(name).cells
    assert len(cells) == CELLS[name]
    for cell in cells:
        config = cell.config
        assert (config.clients, config.attackers, config.message, config.alpha) == (10, 1, "momentum", 0.1)
        assert (config.server_learning_rate, config.batch_size, config.local_steps) == (0.01, 32, 1)
        assert config.weight_decay == (0.01 if config.model == "softmax" else 0.0085)
        assert config.batching == ("random" if name == "softmax_text" else "consecutive")
        long = name == "softmax" or name in GRIDS
        assert config.rounds == (20_000 if long else 3000 if name == "cifar10" else 5000)
        assert config.rule.declared(10) in (None, 1)
        known = {"mlp": "mlp", **dict.fromkeys(GRIDS, "mlp"), "cifar10": "cnn"}
        assert config.model == known.get(name, cell.labels.get("model", "softmax"))
        if config.defence.startswith("centered_clipping"):
            tau = 1.0 if cell.labels["defence"] == WIDER else 0.1 if cell.labels.get("partition") == "iid" else 0.3
            assert config.defence == f"centered_clipping(tau={tau})"


@pytest.mark.parametrize("name", NAMES)
def test_axes(name):
    axes = study(name).axes
    if name == "diagnostics":
        assert {cell.config.defence for cell in study(name).cells} == {"mean()"}
        assert {cell.config.diagnose for cell in study(name).cells} == {1000}
        assert axes["model"] == ("softmax", "mlp")
    else:
        assert set(axes["defence"]) == RULES | {"cifar10": {WIDER}, "softmax": {FARTHEST}}.get(name, set())
    if name not in GRIDS:
        drawn = ("mild, drawn",) if name == "softmax" else ()  # the same lists, with a split from each seed
        assert axes["partition"] == ("iid", "mild", *drawn, "non-iid")
        mild = {cell.config.partition for cell in study(name).cells if cell.labels["partition"] == "mild"}
        theirs = {"softmax_text": "dirichlet(beta=1.0)"}
        theirs |= dict.fromkeys(("softmax", "diagnostics"), "peng2025(beta=1.0)")
        assert mild == {theirs.get(name, "dirichlet(beta=1.0, balanced=True)")}


def test_the_grid():
    cells = study("grid").cells
    for cell in cells:
        attack = cell.config.data_attack
        assert attack.p == float(cell.labels["p"])
        assert attack.per == "batch"  # one draw for all labels of a batch, as in the authors' code
        assert f"beta={float(cell.labels['beta'])}," in cell.config.partition
    assert {(float(c.labels["beta"]), float(c.labels["p"])) for c in cells} == {
        (beta, p) for beta in (5, 1, 0.1, 0.05, 0.03, 0.01) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)
    }
    assert {c.config.evaluate_every for c in cells} == {100}


def test_the_two_protocols_differ_where_the_text_does_from_the_code():
    code, text = study("softmax"), study("softmax_text")
    there = {tuple(cell.labels.items()): cell.config.to_mapping() for cell in code.cells}
    both = [(there[tuple(cell.labels.items())], cell.config.to_mapping()) for cell in text.cells]
    assert len(both) == len(text.cells)
    differing = {key for a, b in both for key, value in a.items() if b[key] != value}
    assert differing == {"batching", "rounds", "partition", "defence"}
    assert {(a["defence"], b["defence"]) for a, b in both if a["defence"] != b["defence"]} == {
        ("lfighter(seed=0)", "lfighter(start='farthest')")
    }


def test_the_grids_on_the_authors_splits_and_on_five_of_ours():
    minima = {"1": "", "0.1": ", minimum=3000", "0.01": ", minimum=4000"}
    for cell in study("grid_authors").cells:
        beta = cell.labels["beta"]
        assert cell.config.partition == f"peng2025(beta={float(beta)}{minima[beta]})"
    ours = study("grid_splits").cells
    assert {cell.config.seed for cell in ours} == {0, 1, 2, 3, 4}
    for cell in ours:
        beta = float(cell.labels["beta"])
        assert cell.config.partition == f"dirichlet(beta={beta}, balanced=True, order='by_class')"
        assert cell.config.attack == "label_flip(p=1.0, per='batch')"
    for cell in (*ours, *study("grid_authors").cells):
        assert cell.labels["defence"] != "lfighter" or cell.config.defence == "lfighter(seed=0)"


@pytest.mark.parametrize("name", NAMES)
def test_cells_run_fast(name):
    """On digits, a few iterations; every rule on some partition and attack."""
    cells = study(name, task="digits", rounds=3, **{"evaluate-every": 3}).cells
    beta = {"grid_authors": "1"}.get(name, "5" if name in GRIDS else None)  # digits are too few for a small beta
    cells = [cell for cell in cells if cell.labels.get("beta") == beta]
    for cell in cells[:: max(1, len(cells) // 4)]:
        assert unbatched(cell.config) is None
        document = run_fast_cell(cell.config.to_mapping())
        last = document["curve"][-1]
        assert document["outcomes"]["OK"] == 3
        assert 0 <= last["accuracy"] <= 1
        assert math.isfinite(last["loss"])
        assert ({"xi", "A", "sigma2", "gradient2"} <= set(last)) == (name == "diagnostics")
