"""Rules over columns that are spread over workers, against the same rules over one tensor."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from flwr_robust import ConfigurationError, InfeasibleError, Rows, aggregate, aggregate_sharded
from flwr_robust.core.rule import Aggregate, Rule
from flwr_robust.core.sharded import Shard
from tests.aggregators.test_conformance import CASES

# Rules that look at single coordinates of all rows, compare with a row of d numbers, or change their value: why not.
REFUSED = {
    "bulyan(f=2, selection=": "single coordinates",  # by the distance of rows to a value
    "centered_clipping": "cannot run on shards",
    "dnc": "single coordinates",
    "flame(noise": "changes its value",
    "fltrust": "cannot run on shards",
    "generalised_krum(f=3, p=": "single coordinates",
    "generalised_krum(f=2, p=": "single coordinates",
    "median(weighted": "single coordinates",
    "median(f=3, weighted": "single coordinates",
    "mixtailor": "cannot run on shards",
    "monna": "cannot run on shards",
    "sign_majority": "single coordinates",
    "signguard": "single coordinates",
    "trimmed_mean(f=3, weighted": "single coordinates",
    "trimmed_mean(fraction=0.25, weighted": "single coordinates",
}


def draw(n, d, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))).float()
    x[-1] += 4
    x[-2] *= 3
    return x


def cut(x, *edges):
    return [Shard(part) for part in x.tensor_split(edges, dim=1)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.n}")
def test_every_rule_agrees_or_says_that_it_cannot(case):
    width = sum(int(np.prod(shape)) for _, shape in case.layout) or 500
    x, counts = draw(case.n, width), list(range(1, case.n + 1))
    shards = cut(x, width // 3, width // 3 + 1)
    why = next((reason for start, reason in REFUSED.items() if case.rule.startswith(start)), None)
    if why is not None:
        with pytest.raises(ConfigurationError, match=why):
            aggregate_sharded(shards, case.rule, layout=case.layout, counts=counts)
        return
    whole = aggregate(x, case.rule, layout=case.layout, counts=counts, seed=0)
    result, _ = aggregate_sharded(shards, case.rule, layout=case.layout, counts=counts, seed=0)
    value = torch.cat([shard.value() for shard in shards])
    assert value.dtype == whole.value.dtype
    assert result.value.is_meta
    assert result.value.shape == whole.value.shape
    # Iterative rules end where a tolerance is met; sums in another order end elsewhere within it.
    np.testing.assert_allclose(value, whole.value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.weights, whole.weights, rtol=1e-4, atol=1e-6)
    assert result.outcome == whole.outcome


def test_what_was_formed_on_the_way_to_a_refusal_is_no_value():
    shards = cut(draw(9, 40), 20)
    with pytest.raises(ConfigurationError, match="changes its value"):
        aggregate_sharded(shards, "flame(noise=0.1)")
    with pytest.raises(ConfigurationError, match="no value yet"):
        shards[0].value()


@pytest.mark.parametrize("shards", [[], torch.ones(3, 3), 5, [torch.ones(3, 3)]])
def test_other_things_than_shards_are_refused(shards):
    with pytest.raises(ConfigurationError, match="at least one Shard"):
        aggregate_sharded(shards, "mean")


def test_a_generator_of_shards_will_do_and_one_shard_twice_will_not():
    x = draw(7, 30)
    shards = cut(x, 10)
    result, _ = aggregate_sharded((shard for shard in shards), "krum(f=2)")
    assert torch.equal(result.weights, aggregate(x, "krum(f=2)").weights)
    with pytest.raises(ConfigurationError, match="given twice"):
        aggregate_sharded([shards[0], shards[0]], "krum(f=2)")


@pytest.mark.parametrize(
    "rule",
    [
        "mixtailor(f=1)",
        "nnm(f=1) | mixtailor(f=1)",
        "fltrust()",
        "monna(f=1)",
        "bucketing(s=2) | centered_clipping(tau=1.0, steps=2)",
        "bulyan(f=1, selection='centered_clipping(tau=1.0)')",
    ],
)
def test_rules_that_shards_may_not_follow_are_refused_at_once(rule):
    for _ in range(5):
        with pytest.raises(ConfigurationError, match="cannot run on shards"):
            aggregate_sharded(cut(draw(9, 40), 20), rule)


@dataclass(frozen=True)
class _Compares(Rule):
    """Somebody's own rule with a point of its own, which it does not say."""

    def combine(self, rows, state):
        return Aggregate(rows.with_row(torch.ones(rows.d)).mix(torch.ones(rows.n + 1)), torch.ones(rows.n)), state


def test_a_rule_that_adds_a_row_unannounced_is_refused_when_it_does():
    with pytest.raises(ConfigurationError, match="do not hold"):
        aggregate_sharded(cut(draw(9, 40), 20), _Compares())


def test_numbers_worth_surviving():
    x = draw(11, 700) * 1e-4 + 1
    x[0] = 1e30
    x[1, 699] = torch.nan
    shards = cut(x, 200)
    for rule in ("krum(f=3)", "geometric_median(f=3)", "nnm(f=3) | trimmed_mean(f=3)"):
        whole, (result, _) = aggregate(x, rule), aggregate_sharded(shards, rule)
        np.testing.assert_allclose(result.weights, whole.weights, atol=1e-5)
        assert result.stats["not_finite"] == [1]
        np.testing.assert_allclose(torch.cat([s.value() for s in shards]), whole.value, rtol=1e-6)


class Spy:
    """A shard that notes how many numbers go in and out."""

    def __init__(self, shard):
        self.shard, self.largest = shard, 0

    def describe(self):
        return self.shard.describe()

    def answer(self, *arguments):
        found = self.shard.answer(*arguments)
        for item in (*arguments, found):
            if isinstance(item, torch.Tensor):
                self.largest = max(self.largest, item.numel())
        return found


@pytest.mark.parametrize("rule", ["krum(f=2)", "nnm(f=2) | trimmed_mean(f=2)", "bulyan(f=1)", "geometric_median()"])
def test_only_small_matrices_travel(rule):
    x = draw(9, 4000)
    x[5] = x[4]  # distances that cancel are asked for, too
    spies = [Spy(shard) for shard in cut(x, 1500)]
    aggregate_sharded(spies, rule)
    assert 0 < max(spy.largest for spy in spies) <= 10 * 10


def test_a_shard_may_hold_layers_where_they_lie():
    x = draw(7, 90)
    layers = [[row[:40], row[40:60]] for row in x]
    shards = [Shard(Rows.from_layers(layers, dtype=torch.float32)), Shard(x[:, 60:])]
    result, _ = aggregate_sharded(shards, "multi_krum(f=2)")
    assert torch.equal(result.weights, aggregate(x, "multi_krum(f=2)").weights)
    np.testing.assert_allclose(torch.cat([s.value() for s in shards]), aggregate(x, "multi_krum(f=2)").value, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    x = draw(7, 30)
    with pytest.raises(ConfigurationError, match="at least one Shard"):
        aggregate_sharded([], "mean")
    with pytest.raises(ConfigurationError, match=r"shard 1 has 6 of torch.float32"):
        aggregate_sharded([Shard(x), Shard(x[:6])], "mean")
    with pytest.raises(ConfigurationError, match=r"shard 1 has 7 of torch.float64"):
        aggregate_sharded([Shard(x), Shard(x.double())], "mean")
    with pytest.raises(InfeasibleError, match=r"krum needs n >= 2f \+ 3"):
        aggregate_sharded([Shard(x)], "krum(f=3)")
    with pytest.raises(ConfigurationError, match="no value yet"):
        Shard(x).value()


ON_RAY = """
import ray, torch
from flwr_robust import aggregate, aggregate_sharded
from flwr_robust.core.sharded import Shard
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
torch.manual_seed(0)
x = torch.randn(9, 1000)
x[8] += 3
actors = [ray.remote(num_cpus=1)(Shard).remote(part) for part in x.split(600, dim=1)]
for rule in ("krum(f=2)", "nnm(f=2) | trimmed_mean(f=2)"):
    result, state = aggregate_sharded(actors, rule)
    value = torch.cat(ray.get([actor.value.remote() for actor in actors]))
    whole = aggregate(x, rule)
    assert torch.allclose(value, whole.value, atol=1e-6), rule
    assert torch.allclose(result.weights, whole.weights), rule
try:
    aggregate_sharded(actors, "krum(f=4)")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.ray
def test_the_shards_may_be_actors_of_ray():
    done = subprocess.run([sys.executable, "-c", ON_RAY], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "InfeasibleError"


@dataclass(frozen=True)
class _Doubles(Rule):
    """Somebody's own rule that changes its value by arithmetic of its own."""

    def combine(self, rows, state):
        weights = torch.full((rows.n,), 1 / rows.n, dtype=torch.float64)
        return Aggregate(2 * rows.mix(weights), weights), state


def test_a_value_that_was_changed_by_arithmetic_is_refused_too():
    shards = cut(draw(9, 40), 20)
    with pytest.raises(ConfigurationError, match="changes its value"):
        aggregate_sharded(shards, _Doubles())
    with pytest.raises(ConfigurationError, match="no value yet"):
        shards[0].value()
    whole = aggregate(draw(9, 40), _Doubles()).value
    torch.testing.assert_close(whole, 2 * draw(9, 40).mean(0))
