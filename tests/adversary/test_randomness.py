"""What defends is drawn from a secret: who has read the source and knows all messages still cannot tell the draws.

Each attack is played against the product in its default setting. It is also played against a small model of the old
behaviour, the same strategy with the seed 0 that everybody knew. The attack must win there.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from flwr_robust import aggregate
from flwr_robust.aggregators.dnc import draw_coordinates
from flwr_robust.audit import read_log, seeds_of
from flwr_robust.audit.run import log_file
from flwr_robust.core.rule import aggregators, preaggregators
from flwr_robust.flower import Audit, DeSGD, DnC, Guarded, Median, RobustStrategy, SignGuard
from flwr_robust.flower._compat import packed
from flwr_robust.flower.grids import InProcessGrid
from flwr_robust.protocol.classes import classes_of_round
from flwr_robust.protocol.rounds import sample_clients
from flwr_robust.round_seeds import RevealedSeed
from flwr_robust.seeds import torch_generator
from tests.flower_helpers import FIRST, Deployed, client_app, drive

OLD = {"seed": 0}  # the seed that was everybody's default
NEW: dict[str, int] = {}
SILENT = {"fraction_evaluate": 0.0}


def play(strategy, n, d, liars, craft, rounds=1, mean=0.0):
    """Run a strategy; return the honest updates, and the model's step, of every round.

    The liars know all honest updates, the call's number and the source.
    """

    def honest(at):
        return mean + np.random.default_rng(at).standard_normal((n, d))

    def train(partition, model, config, context):
        at = config["server-round"]
        x = honest(at)
        return {"w": (craft(x, at - 1) if partition in liars else x)[partition]}

    seen = [np.zeros(d)]
    options = {"evaluate_fn": lambda at, arrays: seen.append(arrays["w"].numpy()) if at else None}
    drive(strategy, client_app(train), {"w": np.zeros(d)}, n, rounds=rounds, **options)
    return [honest(at) for at in range(1, rounds + 1)], np.diff(seen, axis=0)


# -- dnc: honest where it looks, anything elsewhere ---------------------------------------------------


def looked_at(d, call, b=10_000, iterations=5):
    """The coordinates that seed 0 draws."""
    generator = torch_generator(0, "dnc", call)
    found = torch.zeros(d, dtype=torch.bool)
    for _ in range(iterations):
        found[draw_coordinates(generator, d, b)] = True
    return found.numpy()


@pytest.mark.parametrize(("options", "beaten"), [(OLD, True), (NEW, False)])
def test_two_liars_of_ten_are_honest_where_dnc_looks(options, beaten):
    n, d, liars = 10, 50_000, (8, 9)

    def craft(x, call):
        x[8:] = np.where(looked_at(d, call), x[:8].mean(0), 1000.0)
        return x

    strategy = DnC(f=2, min_train_nodes=n, message="delta", **options, **SILENT)
    updates, steps = play(strategy, n, d, liars, craft, rounds=2)
    for x, step, record in zip(updates, steps, strategy.history, strict=True):
        off = int((np.abs(step - x[:8].mean(0)) > 1).sum())
        bought = sum(record.weights[i] for i in liars)
        if beaten:
            assert off > 15_000
            assert bought > 0.2
        else:
            assert off == 0
            assert bought == 0


# -- bucketing and resampling: who shares a mean with whom --------------------------------------------

SHARED = {
    "bucketing": (14, "bucketing(s=2) | krum(f=2)", 7),  # some draws go the liars' way by chance
    "resampling": (11, "resampling(s=2) | krum(f=2)", 9),
}


def shared(name, n, call):
    """The groups that seed 0 draws."""
    generator = torch_generator(0, name, call)
    if name == "bucketing":
        return [group.tolist() for group in torch.split(torch.randperm(n, generator=generator), 2)]
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(2)], 1).tolist()


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize(("options", "beaten"), [(OLD, True), (NEW, False)])
def test_two_liars_turn_two_means_into_one_point(name, options, beaten):
    """Krum takes the two means, which are the same to the bit, for the densest place."""
    n, rule, lucky = SHARED[name]
    d, rounds, away = 2000, 16, np.sqrt(0.8)

    def craft(x, call):
        for liar in (n - 2, n - 1):
            partners = (i for group in shared(name, n, call) if liar in group for i in group if i < n - 2)
            x[liar] = 2 * away - x[next(partners, 0)]
        return x

    strategy = RobustStrategy(rule, message="delta", min_train_nodes=n, **options, **SILENT)
    _, steps = play(strategy, n, d, (n - 2, n - 1), craft, rounds)
    won = int((steps.mean(1) > away / 2).sum())
    assert won > 0.75 * rounds if beaten else won <= lucky


# -- signguard: whose signs count ---------------------------------------------------------------------


@pytest.mark.parametrize(("options", "beaten"), [(OLD, True), (NEW, False)])
def test_four_liars_of_nine_keep_the_signs_that_are_counted(options, beaten):
    n, d, liars = 9, 3000, (5, 6, 7, 8)

    def craft(x, call):
        counted = torch.randperm(d, generator=torch_generator(0, "signguard", call))[: d // 10].numpy()
        flipped = -x[5:]
        flipped[:, counted] = x[5:, counted]
        x[5:] = flipped
        return x

    strategy = SignGuard(min_train_nodes=n, message="delta", **options, **SILENT)
    play(strategy, n, d, liars, craft, rounds=6, mean=1.0)
    bought = [sum(record.weights[i] for i in liars) for record in strategy.history]
    assert np.mean(bought) > 0.3 if beaten else max(bought) == 0


# -- flame: a backdoor under known noise --------------------------------------------------------------


def test_known_noise_masks_nothing():
    x = torch.randn(9, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, known = (
        aggregate(x, "flame()").value,
        torch.randn(4000, dtype=torch.float64, generator=torch_generator(0, "flame", 0)),
    )
    for rule, beaten in (("flame(noise=0.01, seed=0)", True), ("flame(noise=0.01)", False)):
        noise = aggregate(x, rule).value - plain
        alike = float(torch.corrcoef(torch.stack([noise, known]))[0, 1])
        assert alike == pytest.approx(1.0) if beaten else abs(alike) < 0.1


# -- mixtailor: which rule comes next -----------------------------------------------------------------


@pytest.mark.parametrize(("options", "beaten"), [(OLD, True), (NEW, False)])
def test_the_next_rule_of_mixtailor(options, beaten):
    rule, n, rounds = "mixtailor(f=1, pool=['median', 'krum', 'faba', 'cge'])", 7, 30
    strategy = RobustStrategy(rule, min_train_nodes=n, **options, **SILENT)
    play(strategy, n, 3, (), None, rounds)
    drawn = [record.stats["member"] for record in strategy.history]
    members = [str(member) for member in strategy.rule.members]
    told = [
        members[int(torch.randint(4, (), generator=torch_generator(0, "mixtailor", call)))] for call in range(rounds)
    ]
    assert (drawn == told) == beaten
    assert len(set(drawn)) == 4


# -- whom the server asks -----------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "beaten"), [(OLD, True), (NEW, False)])
def test_colluders_do_not_know_when_they_are_the_majority(options, beaten):
    """Six nodes that seed 0 asks together in round 7 are honest until then."""
    n, size, strike = 40, 11, 7
    places = sample_clients(0, "train", strike, n, size)[:6]

    def train(partition, model, config, context):
        hostile = partition in places and config["server-round"] == strike
        return {"w": model["w"] + (1e6 if hostile else 1.0)}

    app, start = client_app(train), {"w": np.zeros(2)}
    strategy = Median(fraction_train=size / n + 1e-9, min_available_nodes=n, spares=0, **options, **SILENT)
    model, _ = drive(strategy, app, start, n, rounds=strike, grid=Deployed(app, n))
    assert {len(record.asked) for record in strategy.history} == {size}
    assert (float(model["w"][0]) > 1000) == beaten
    told = [tuple(FIRST + place for place in sample_clients(0, "train", at, n, size)) for at in range(1, strike + 1)]
    assert sum(tuple(record.asked) == ids for record, ids in zip(strategy.history, told, strict=True)) == 7 * beaten


def test_colluders_do_not_know_the_classes_of_a_round():
    told = [classes_of_round("random", at, 10, seed=0) for at in range(1, 41)]
    for options, beaten in ((OLD, True), (NEW, False)):
        strategy = DeSGD("median()", classes=10, schedule="random", **options)
        assert ([strategy.classes_of(at) for at in range(1, 41)] == told) == beaten


# -- the kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", [aggregators, preaggregators])
def test_no_component_has_a_seed_that_everybody_knows(registry):
    for name, cls in registry.members().items():
        for field in dataclasses.fields(cls):
            if "seed" in field.name:
                assert field.default is None, name


@pytest.mark.parametrize("kind", [RobustStrategy, DeSGD, Guarded])
def test_no_strategy_has_a_seed_that_everybody_knows(kind):
    assert inspect.signature(kind.__init__).parameters["seed"].default is None


def test_no_message_holds_a_key(tmp_path):
    """Whoever finds the key of a round in a message knows what is drawn in it, and before it."""

    class Listening(InProcessGrid):
        def push_messages(self, messages):
            pushed = list(messages)
            heard.extend(packed(message.content) + repr(message.metadata).encode() for message in pushed)
            return super().push_messages(pushed)

    heard = []
    app = client_app(lambda partition, model, config, context: {"w": model["w"] + partition})
    rule = "bucketing(s=2) | dnc(f=1, sub_dimension=2)"
    strategy = DeSGD(rule, classes=3, schedule="random", audit=Audit(tmp_path, sync=False), fraction_train=0.8)
    drive(strategy, app, {"w": np.zeros(4)}, 8, rounds=3, grid=Listening(app, 8))
    assert len(heard) >= 18
    seeds = seeds_of(tmp_path)
    for chain in (chain for _, chain in seeds.parts):
        for key in [chain.key(at) for at in range(1, 8)] + [chain.secret, seeds.lasting.to_bytes(32, "big")]:
            forms = (key, key.hex().encode(), str(int.from_bytes(key, "big")).encode(), key[::-1])
            assert not any(form in message for form in forms for message in heard)


def test_a_log_in_progress_holds_no_key(tmp_path):
    """Clients may read a log that is published while the run goes on: it holds the commitment alone."""
    strategy = Median(min_train_nodes=5, audit=Audit(tmp_path, sync=False), **SILENT)
    texts = []
    app = client_app(lambda partition, model, config, context: {"w": model["w"] + 1.0})
    options = {"evaluate_fn": lambda at, arrays: texts.append(log_file(tmp_path).read_text())}
    drive(strategy, app, {"w": np.zeros(2)}, 5, rounds=3, **options)
    seeds = strategy.guard.seeds
    for text in texts:
        assert seeds.commitment in text
        assert not any(chain.key(at).hex() in text for _, chain in seeds.parts for at in range(1, 6))
    end = read_log(log_file(tmp_path))[-1].event
    assert RevealedSeed.parse(end.seed_revealed).of(3) == seeds.of(3)
