"""Diagnostics: against naive float64 numpy, against theorems, and in runs of every engine."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flwr_robust
from flwr_robust.diagnostics import (
    Moments,
    advise,
    centered_clipping_bound,
    disturbance,
    faba_bound,
    feature_bound,
    floors,
    heterogeneity,
    known_bounds,
    least_rho,
    mixture,
    rho,
    trimmed_mean_bound,
    variance,
)
from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.probe import Probe
from tests.apps import run


def stack(n, d, seed=0, shift=0.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=draw, dtype=torch.float64) + shift).to(dtype)


# -- what is measured, against numpy -----------------------------------------------------------------


def naive_distances(rows, honest):
    rows, honest = rows.numpy().astype(np.float64), honest.numpy().astype(np.float64)
    centre = sum(honest) / len(honest)
    return [math.sqrt(sum((row - centre) ** 2)) for row in rows]


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_distances_are_those_of_numpy(n, shift):
    honest, poisoned = stack(n, 40, 1, shift), stack(3, 40, 2, shift + 0.5)
    assert heterogeneity(honest) == pytest.approx(max(naive_distances(honest, honest)), rel=1e-12, abs=1e-15)
    assert disturbance(poisoned, honest) == pytest.approx(max(naive_distances(poisoned, honest)), rel=1e-12)
    value = poisoned[0]
    if n > 1:
        expected = naive_distances(value[None], honest)[0] / max(naive_distances(honest, honest))
        assert rho(value, honest) == pytest.approx(expected, rel=1e-12)


def test_rho_of_equal_messages():
    honest = torch.ones(3, 2)
    assert rho(torch.ones(2), honest) == 0
    assert rho(torch.zeros(2), honest) == math.inf
    assert math.isnan(rho(torch.full((2,), math.nan), honest))


def test_what_is_not_finite_shows():
    rows = stack(3, 4)
    rows[1, 2] = math.nan
    assert math.isnan(heterogeneity(rows))
    assert math.isnan(disturbance(rows, stack(3, 4)))
    assert math.isnan(rho(stack(1, 4)[0], rows))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: heterogeneity(torch.zeros(0, 3)), "heterogeneity: honest must be a stack"),
        (lambda: heterogeneity(torch.zeros(3)), "heterogeneity: honest must be a stack"),
        (lambda: disturbance(torch.zeros(0, 3), torch.zeros(2, 3)), "disturbance: poisoned must be a stack"),
        (lambda: disturbance(torch.zeros(1, 4), torch.zeros(2, 3)), "poisoned must be as long .* d=3; got 4"),
        (lambda: rho(torch.zeros(4), torch.zeros(2, 3)), "value must be as long .* d=3; got 4"),
        (lambda: rho(torch.zeros(1, 3), torch.zeros(2, 3)), "value must have one dimension"),
        (lambda: variance(torch.zeros(1, 3)), "at least 2; got 1"),
        (lambda: variance(torch.zeros(2, 3), [1]), "one size per gradient; got 1 sizes for 2"),
        (lambda: variance(torch.zeros(2, 3), [1, 0]), "samples must be a finite number and > 0; got samples=0"),
        (lambda: feature_bound([], 10), "at least one worker"),
        (lambda: feature_bound([torch.ones(2, 3), torch.ones(0, 3)], 10), "at least one sample"),
        (lambda: feature_bound([torch.ones(2, 3)], 1), "classes must be an integer >= 2"),
        (lambda: Moments().mean, "at least 1 gradient"),
        (lambda: least_rho(0.5), "delta must be a finite number and >= 0 and < 0.5"),
        (lambda: faba_bound(0.34), "faba_bound: delta must be"),
        (lambda: centered_clipping_bound(-0.1), "delta must be"),
        (lambda: trimmed_mean_bound(0.1, 0, 9), "dimension must be an integer >= 1"),
        (lambda: trimmed_mean_bound(0.1, 5, 0), "regular must be an integer >= 1"),
        (lambda: advise(-1.0, 1.0, 0.1, dimension=5, regular=9), "xi must be a finite number and >= 0"),
        (lambda: advise(1.0, math.nan, 0.1, dimension=5, regular=9), "disturbance must be a finite number"),
        (lambda: advise(1.0, 1.0, 0.1, dimension=5, regular=9, bounds={"x": 0.1}), "at least 0.125.* got x=0.1"),
        (lambda: RunConfig(diagnose=1), "diagnose must be an integer >= 2, or 0: off; got diagnose=1"),
        (lambda: RunConfig(diagnose=-5), "diagnose must be an integer >= 2, or 0: off; got diagnose=-5"),
    ],
)
def test_wrong_input_is_one_clear_sentence(call, words):
    with pytest.raises(ConfigurationError, match=words):
        call()


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_variance_is_that_of_numpy(shift):
    rows = stack(50, 7, 3, shift, torch.float64)
    expected = rows.numpy().var(0, ddof=1).sum()
    assert variance(rows) == pytest.approx(expected, rel=1e-9)
    assert variance(iter(rows)) == pytest.approx(expected, rel=1e-9)
    moments = Moments()
    for row in rows:
        moments.add(row)
    np.testing.assert_allclose(moments.mean.numpy(), rows.numpy().mean(0), rtol=1e-12)


def test_variance_of_batches_is_per_sample():
    """Batches of uneven sizes, weighted: the estimate has no bias, one that ignores the sizes has."""
    samples, sizes = stack(30 * 4000, 3, 4, dtype=torch.float64), [16, 8, 4, 2]
    found, plain = [], []
    for trial in samples.split(30):
        batches = torch.stack([part.mean(0) for part in trial.split(sizes)])
        found.append(variance(batches, sizes))
        plain.append(variance(batches))
    assert np.mean(found) == pytest.approx(3.0, rel=0.05)  # three coordinates of variance one
    assert np.mean(plain) < 0.8


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99))
def test_the_mean_of_batches_is_that_of_their_samples(sizes, seed):
    samples = stack(sum(sizes), 4, seed, dtype=torch.float64)
    moments = Moments()
    for part in samples.split(sizes):
        moments.add(part.mean(0), len(part))
    np.testing.assert_allclose(moments.mean.numpy(), samples.numpy().mean(0), atol=1e-12)
    assert moments.variance >= 0


# -- theory ------------------------------------------------------------------------------------------


def test_bounds_are_those_of_the_paper():
    assert least_rho(0.0) == 0
    assert least_rho(0.1) == pytest.approx(0.125)
    assert least_rho(1 / 3) == pytest.approx(1.0)
    assert least_rho(0.45) == 1.0
    assert trimmed_mean_bound(0.1, 7850, 9) == pytest.approx(3 * 0.1 / 0.8 * 3)
    assert trimmed_mean_bound(0.1, 4, 9) == pytest.approx(3 * 0.1 / 0.8 * 2)
    assert faba_bound(0.1) == pytest.approx(0.2 / 0.7)
    assert centered_clipping_bound(0.1) == pytest.approx(math.sqrt(2.4))
    assert set(known_bounds(0.1, 5, 9)) == {"trimmed_mean", "faba", "centered_clipping"}
    assert set(known_bounds(0.4, 5, 6)) == {"trimmed_mean", "centered_clipping"}


@given(st.floats(0, 0.49))
def test_no_bound_is_below_the_least(delta):
    least = least_rho(delta)
    assert all(bound >= least * (1 - 1e-12) for bound in known_bounds(delta, 1, 1).values())


WORST = {
    "two heaps": torch.tensor([[0.0]] * 6 + [[1.0]] * 3 + [[1.0]]),  # where the poisoned one could be of either
    "far": torch.tensor([[-1.0]] * 5 + [[1.0]] * 4 + [[1e6]]),
    "many": torch.cat([stack(9, 30, 7), 1e3 * torch.ones(1, 30)]),
    "near": torch.cat([stack(9, 30, 7), 2.0 * torch.ones(1, 30)]),
}


@pytest.mark.parametrize("name", WORST)
def test_rules_keep_within_their_rho_and_the_mean_has_none(name):
    rows = WORST[name]
    honest = rows[:9]
    bounds = known_bounds(0.1, rows.shape[1], 9)
    for rule in ("trimmed_mean", "faba"):
        assert rho(flwr_robust.aggregate(rows, f"{rule}(f=1)").value, honest) <= bounds[rule] + 1e-9
    mean = rho(flwr_robust.aggregate(rows, "mean()").value, honest)
    assert (mean > max(bounds.values())) == (name in ("far", "many"))


def test_no_rule_is_below_the_least_rho_in_its_worst_case():
    """Nine at 0, one at 1: that one is the poisoned one, or one of those at 0 is, and nobody can tell."""
    rows = torch.tensor([[0.0]] * 9 + [[1.0]])
    readings = [rows[:9], rows[1:]]

    def worst(value):
        return max(rho(value, honest) for honest in readings)

    for rule in ("trimmed_mean(f=1)", "faba(f=1)", "median()", "krum(f=1)"):
        assert worst(flwr_robust.aggregate(rows, rule).value) == pytest.approx(least_rho(0.1))
    assert worst(flwr_robust.aggregate(rows, "mean()").value) == math.inf
    assert min(worst(torch.tensor([value])) for value in np.linspace(-1, 2, 301)) >= least_rho(0.1) - 1e-9


def test_advice_turns_where_the_floors_cross():
    def verdict(ratio, **keys):
        return advise(1.0, ratio, 0.1, dimension=7850, regular=9, **keys)

    edge = 1 / 0.8  # A / xi at which delta A = delta / (1 - 2 delta) xi
    faba = 0.2 / 0.7 / 0.1
    assert verdict(0.99 * edge).expected == "mean"
    assert verdict(1.01 * edge).expected == "open"
    assert verdict(0.99 * faba).expected == "open"
    assert verdict(1.01 * faba).expected == "robust"
    assert verdict(1.01 * faba).rules == ("faba",)
    assert verdict(1e3).rules == ("faba", "trimmed_mean", "centered_clipping")
    assert verdict(1.01 * faba, bounds={"trimmed_mean": 1.125}).expected == "open"
    assert verdict(2.0, bounds={"new": 0.15}).rules == ("new",)


def test_advice_says_no_more_than_the_theory():
    mean = advise(2.0, 1.9, 0.1, dimension=7850, regular=9).sentence
    assert "plain mean is expected" in mean
    assert "xi = 2, A = 1.9 and delta = 0.1" in mean
    assert "(delta A)^2 = 0.0361" in mean
    assert ">= 0.0625" in mean
    assert "lower order" in mean
    above = advise(2.0, 2.1, 0.1, dimension=7850, regular=9)
    assert above.expected == "mean"
    assert "lower order" not in above.sentence  # A > xi: the mean is not shown to be optimal
    robust = advise(0.2, 1.9, 0.1, dimension=7850, regular=9).sentence
    assert "robust rule is expected" in robust
    assert "faba" in robust
    for sentence in (mean, robust, advise(1.0, 2.0, 0.1, dimension=7850, regular=9, bounds={}).sentence):
        assert "constants left out" in sentence
        assert sentence.endswith("a run may turn out otherwise).")


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from([0.0, 0.1, 0.25, 0.4]))
def test_floors_are_those_of_the_paper(xi, poison, delta):
    found = floors(xi, poison, delta, dimension=7850, regular=9)
    assert found["any"] == pytest.approx(delta**2 * min(poison**2, xi**2))
    assert found["mean"] == pytest.approx((delta * poison) ** 2)
    assert ("faba" in found) == (delta < 1 / 3)
    for rule, bound in known_bounds(delta, 7850, 9).items():
        assert found[rule] == pytest.approx(bound**2 * xi**2)
    assert all(floor >= found["any"] - 1e-12 for floor in found.values())  # nothing is below what holds for all


@pytest.mark.parametrize(
    ("xi", "poison", "delta", "expected"),
    [(0.0, 1.0, 0.1, "robust"), (1.0, 0.0, 0.1, "mean"), (1.0, 9.0, 0.0, "mean"), (0.0, 0.0, 0.1, "mean")],
)
def test_advice_at_the_ends(xi, poison, delta, expected):
    advice = advise(xi, poison, delta, dimension=5, regular=9)
    assert advice.expected == expected
    assert advice.sentence.endswith("otherwise).")
    assert "rho < inf" in advise(0.0, 1.0, 0.1, dimension=5, regular=9, bounds={}).sentence


# -- mixtures of rules -------------------------------------------------------------------------------

POOL = ("pool_broken", "pool_bearable", "pool_expected", "pool_beta", "pool_lambda", "pool_length")


@given(st.integers(0, 2**32), st.integers(1, 6), st.floats(0.0, 2.0))
def test_the_proposition_is_enough_for_a_step_forward(seed, members, back):
    """Values along the honest mean, some turned around: what the proposition bears goes forward."""
    draw = np.random.default_rng(seed)
    honest = draw.normal(size=(4, 7)) + 1
    centre = honest.mean(0)
    values = draw.normal(size=(members, 7)) + draw.choice([1, -back], size=(members, 1)) * centre
    found = mixture([torch.from_numpy(value) for value in values], torch.from_numpy(honest))
    products = [float(value @ centre) / float(centre @ centre) for value in values]
    assert found.forward == pytest.approx(products)
    assert found.lengths == pytest.approx([np.linalg.norm(value) / np.linalg.norm(centre) for value in values])
    assert found.broken_share == sum(product <= 0 for product in products) / members
    assert all(product >= -found.backward * found.length - 1e-9 for product in products)
    if found.broken_share < found.bearable_share:
        assert found.expected > -1e-12


def test_pools_at_the_ends():
    honest, back = torch.tensor([[1.0, 0.0]]), torch.tensor([-2.0, 0.0])
    gone = mixture([back, 0 * back], honest)
    assert (gone.broken, gone.broken_share, gone.beta, gone.bearable_share) == ((0, 1), 1.0, 0.0, 0.0)
    assert (gone.length, gone.backward) == (2.0, 1.0)
    assert mixture([honest[0]], honest).bearable_share == 1.0
    with pytest.raises(ConfigurationError, match="must hold at least one row each; got 0 values"):
        mixture([], honest)
    with pytest.raises(ConfigurationError, match="honest mean must have a length; got 0"):
        mixture([back], torch.zeros(2, 2))


# -- in a run ----------------------------------------------------------------------------------------

KEYS = {"rounds": 4, "evaluate_every": 2, "attack": "label_flip()", "attackers": 2, "device": "cpu", "batch_size": 8}


def naive_softmax_gradients(model, x, y, classes):
    """Per-sample gradients of cross-entropy by weight and bias, float64."""
    weight, bias = model
    scores = x @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = p - np.eye(classes)[y]
    return np.concatenate([(error[:, :, None] * x[:, None, :]).reshape(len(x), -1), error], 1)


@pytest.mark.parametrize("partition", ["iid", "by_label"])
def test_curves_hold_what_numpy_finds(partition, tmp_path):
    """All samples of digits, static flips: xi, A and sigma^2 at the final model."""
    config = RunConfig(**KEYS, partition=partition, diagnose=10_000, save_model=str(tmp_path / "model.npz"))
    point = simulate(config)["curve"][-1]
    with np.load(tmp_path / "model.npz") as file:
        model = [array.astype(np.float64) for array in file.values()]
    task, gradients, spreads = config.data_set, [], []
    for client, held in enumerate(config.samples):
        x = task.inputs(task.x_train[held]).numpy().astype(np.float64).reshape(len(held), -1)
        y = task.y_train[held].numpy()
        own = naive_softmax_gradients(model, x, 9 - y if client >= 8 else y, 10)
        gradients.append(own.mean(0))
        spreads.append(own.var(0, ddof=1).sum() / 8)
    centre = np.mean(gradients[:8], 0)
    distances = [float(np.linalg.norm(g - centre)) for g in gradients]
    assert point["xi"] == pytest.approx(max(distances[:8]), rel=1e-5)
    assert point["A"] == pytest.approx(max(distances[8:]), rel=1e-5)
    assert point["sigma2"] == pytest.approx(max(spreads), rel=0.35)  # from batches of 8, which are few
    if partition == "iid":
        assert point["A"] > 1.8 * point["xi"]
    else:
        assert point["A"] < 1.3 * point["xi"]


@pytest.mark.parametrize(
    "keys",
    [
        {"attack": "label_flip(p=0.5)"},
        {"attack": "dynamic_label_flip(p=0.7, per='batch')", "model": "mlp", "weight_decay": 0.01},
        {"attack": "backdoor(target=0, scale=3.0)", "redraw": True, "attack_start": 2, "attack_stop": 3},
        {"attack": "label_flip()", "fraction_train": 0.5, "batching": "consecutive", "partition": "by_label"},
        {"attack": "none", "attackers": 0, "model": "cnn", "clients": 3, "rounds": 2},
        {"attack": "tailored(epsilon=0.1)", "defence": "mixtailor(f=2, pool=('krum', 'median'), seed=0)"},
    ],
    ids=["static", "dynamic", "redrawn", "sampled", "honest", "pool"],
)
def test_engines_measure_the_same_and_change_nothing(tmp_path, keys):
    keys = {**KEYS, **keys}
    slow, _ = run(tmp_path, **keys, diagnose=20)
    quick = json.loads(json.dumps(simulate(RunConfig.from_mapping({**keys, "diagnose": 20}))))
    plain = simulate(RunConfig.from_mapping(keys))
    assert quick["curve"] == slow["curve"]
    assert quick["model_sha256"] == slow["model_sha256"] == plain["model_sha256"]
    known = {"xi", "A", "sigma2", "gradient2", *POOL}
    assert [{k: v for k, v in p.items() if k not in known} for p in quick["curve"]] == plain["curve"]
    assert all(p["xi"] > 0 and p["sigma2"] > 0 for p in quick["curve"])
    other = simulate(RunConfig.from_mapping({**keys, "diagnose": 21}))
    assert other["model_sha256"] == quick["model_sha256"]
    assert all(a["xi"] != b["xi"] for a, b in zip(other["curve"], quick["curve"], strict=True))


def test_poison_is_measured_in_the_rounds_in_which_it_is_sent():
    found = simulate(RunConfig(**KEYS, diagnose=20, attack_start=3, attack_stop=4))["curve"]
    assert [(p["round"], "A" in p) for p in found] == [(0, False), (2, True), (4, False)]
    messages = {**KEYS, "attack": "sign_flip()"}
    probe, _ = probe_of(**messages)
    measured = probe.measure(0)  # the data of clients whose messages are rewritten are not poisoned
    assert (measured.attackers, len(measured.honest), set(measured.metrics)) == (
        (8, 9),
        8,
        {"xi", "sigma2", "gradient2"},
    )


def test_the_members_of_a_pool_are_measured_in_a_run():
    """With twelve clients a small epsilon breaks Krum and no other member, a large one none of them."""
    pool = "mixtailor(f=2, pool=('krum', 'krum', 'median', 'geometric_median', 'bulyan'), seed=0)"
    keys = {**KEYS, "clients": 12, "attackers": 2, "message": "gradient", "diagnose": 8, "defence": pool}
    small = simulate(RunConfig(**{**keys, "attack": "tailored(epsilon=0.1)"}))["curve"][-1]
    assert small["pool_broken"] == 0.4  # Krum counts twice
    assert small["pool_lambda"] * small["pool_length"] == pytest.approx(
        0.1, rel=1e-4
    )  # Krum's value is the crafted row
    assert small["pool_bearable"] == pytest.approx(1 / (1 + 0.1 / small["pool_beta"]), rel=1e-4)
    assert small["pool_expected"] > 0
    none = simulate(RunConfig(**{**keys, "attack": "tailored(epsilon=10.0)"}))["curve"][-1]
    assert (none["pool_broken"], none["pool_bearable"], none["pool_length"]) == (0, 1, 0)
    alone = simulate(RunConfig(**{**keys, "defence": "krum(f=2)", "attack": "tailored(epsilon=0.1)"}))["curve"][-1]
    assert not set(POOL) & set(alone)


def probe_of(**keys):
    config = RunConfig.from_mapping(keys)
    return Probe(config, config.learner()), config


def test_samples_are_at_most_those_asked_for_and_their_own():
    probe, config = probe_of(**KEYS, diagnose=30, partition="dirichlet(beta=0.2)")
    again, _ = probe_of(**KEYS, diagnose=30, partition="dirichlet(beta=0.2)")
    other, _ = probe_of(**KEYS, diagnose=30, partition="dirichlet(beta=0.2)", seed=1)
    whole, _ = probe_of(**KEYS, partition="dirichlet(beta=0.2)")
    for client, held in enumerate(config.samples):
        drawn = probe._samples[client].tolist()
        assert len(drawn) == len(set(drawn)) == min(30, len(held))
        assert set(drawn) <= set(held.tolist())
        assert drawn == again._samples[client].tolist()
        assert sorted(whole._samples[client].tolist()) == held.tolist()
    assert any(a.tolist() != b.tolist() for a, b in zip(probe._samples, other._samples, strict=True))


def test_weight_decay_is_left_out():
    keys = {**KEYS, "diagnose": 40}
    plain, heavy = (probe_of(**keys, weight_decay=decay)[0].measure(0).gradients for decay in (0.0, 5.0))
    assert torch.equal(plain, heavy)


def test_the_squared_gradient_counts_weight_decay():
    keys = {**KEYS, "diagnose": 40}
    probe, config = probe_of(**keys, weight_decay=0.5)
    measured = probe.measure(0)
    model = np.concatenate([array.astype(np.float64).ravel() for array in config.learner().arrays()])
    honest = measured.gradients[:8].numpy().mean(0)
    assert measured.metrics["gradient2"] == pytest.approx(((honest + 0.5 * model) ** 2).sum(), rel=1e-9)
    plain = probe_of(**keys)[0].measure(0).metrics["gradient2"]
    assert plain == pytest.approx((honest**2).sum(), rel=1e-9)
    assert plain != pytest.approx(measured.metrics["gradient2"], rel=0.01)


def test_what_layers_draw_while_they_are_measured_repeats():
    keys = {**KEYS, "diagnose": 20, "model": "tests.own_models:Transformer"}
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        probe, _ = probe_of(**keys, seed=seed)
        found.append(probe.measure(2).gradients)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], probe_of(**keys)[0].measure(3).gradients)


def test_p_lies_between_none_and_all():
    """A flip of half the labels pulls about half as far; one draw for a batch does the same on average."""
    gradients = {}
    for attack in ("label_flip(p=0.0)", "label_flip()", "label_flip(p=0.5)", "label_flip(p=0.5, per='batch')"):
        probe, _ = probe_of(**{**KEYS, "attack": attack})
        gradients[attack] = probe.measure(0).gradients[9]
    honest, whole, half, batches = gradients.values()
    length = float((whole - honest).norm())
    for found in (half, batches):
        assert 0.3 < float((found - honest).norm()) / length < 0.7
    assert not torch.equal(half, batches)


def test_few_samples_have_a_variance_and_one_has_none(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.arange(9) % 3
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    probe, config = probe_of(task=str(tmp_path / "few.npz"), clients=4, rounds=2)
    assert sorted(map(len, config.samples)) == [2, 2, 2, 3]
    assert all(v > 0 for v in probe.measure(0).variances)
    lone, _ = probe_of(task=str(tmp_path / "few.npz"), clients=9, rounds=2)
    assert set(lone.measure(0).metrics) == {"xi", "gradient2"}


def test_a_run_of_attackers_alone_has_no_xi():
    keys = {**KEYS, "clients": 2, "attackers": 2, "diagnose": 10}
    assert set(probe_of(**keys)[0].measure(0).metrics) == {"sigma2"}


@pytest.mark.parametrize("partition", ["iid", "by_label"])
def test_flips_stay_within_the_bound_of_softmax_regression(partition):
    probe, config = probe_of(**KEYS, partition=partition)
    task = config.data_set
    bound = feature_bound([task.inputs(task.x_train[torch.from_numpy(s)]) for s in config.samples], task.classes)
    features = [np.c_[(task.x_train[s].numpy() / 16).reshape(len(s), -1), np.ones(len(s))] for s in config.samples]
    expected = 2 * math.sqrt(10) * max(np.linalg.norm(f, axis=1).mean() for f in features)
    assert bound == pytest.approx(expected, rel=1e-6)
    assert probe.measure(0).metrics["A"] <= bound
