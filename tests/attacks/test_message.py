"""Message attacks: what each writes, what it may look at, how far it goes, and whom it hurts."""

from __future__ import annotations

import importlib
import math
import pickle
import pkgutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from flwr_robust import ConfigurationError, Rows, parse
from flwr_robust.attacks.data.base import data_attacks
from flwr_robust.attacks.fault.base import faults
from flwr_robust.attacks.message.alie import edge
from flwr_robust.attacks.message.base import Knowledge, View, message_attacks
from flwr_robust.attacks.message.line import Damage, LineAttack, strongest
from flwr_robust.errors import KnowledgeError
from flwr_robust.seeds import torch_generator

X = np.array([[1.0, 2.0], [3.0, -2.0], [5.0, 6.0]])  # mean (3, 2)
MEAN = np.array([3.0, 2.0])
OWN = np.array([[1.0, 0.0], [0.0, 2.0]])

# One instance of each attack, with what it needs to know.
EXAMPLES = {
    "alie()": Knowledge.OMNISCIENT,
    "alie(z=1.5, sign=1, ddof=0, share='clients', known='own')": Knowledge.OWN,
    "alie(z=1.0, known='clients')": Knowledge.OMNISCIENT,
    "constant(c=5.0)": Knowledge.NOTHING,
    "fang_krum()": Knowledge.OMNISCIENT,
    "fang_krum(known='own')": Knowledge.OWN,
    "fang_median()": Knowledge.OMNISCIENT,
    "fang_trimmed_mean(known=2)": Knowledge.PARTIAL,
    "gaussian(sigma=2.0)": Knowledge.NOTHING,
    "inf()": Knowledge.NOTHING,
    "ipm(epsilon=0.1)": Knowledge.OMNISCIENT,
    "mean_reversal(weighted=True)": Knowledge.OMNISCIENT,
    "mean_reversal(c=2.0, known=2)": Knowledge.PARTIAL,
    "mimic()": Knowledge.OMNISCIENT,
    "mimic(worker=1, known=2)": Knowledge.PARTIAL,
    "min_max(deviation='std')": Knowledge.OMNISCIENT,
    "min_sum(bound='min', known=3)": Knowledge.PARTIAL,
    "model_based(size=1.0)": Knowledge.OMNISCIENT,
    "model_based(size=1.0, movement='past')": Knowledge.NOTHING,
    "multiples()": Knowledge.OWN,
    "nan()": Knowledge.NOTHING,
    "optimised(base='ipm(epsilon=1.0)', budget=8)": Knowledge.DEFENCE,
    "pool(pool=('krum(f=1)', 'median()'), similarity=0.1)": Knowledge.OMNISCIENT,
    "scale(c=10.0)": Knowledge.OWN,
    "sign_flip()": Knowledge.OWN,
    "sybil(k=2, divide=True)": Knowledge.OWN,
    "sybil(k=2, base='alie()')": Knowledge.OMNISCIENT,
    "tailored(epsilon=(0.1, 10.0))": Knowledge.OMNISCIENT,
    "tailored(epsilon='search', known=2)": Knowledge.DEFENCE,
    "zero()": Knowledge.NOTHING,
}


def rows(x, **more):
    return Rows.from_tensor(torch.as_tensor(np.asarray(x, float)), **more)


def view_of(honest=X, own=OWN, granted=Knowledge.DEFENCE, rule="krum(f=1)", **more):
    return View(granted, own=rows(own), honest=rows(honest), rule=parse(rule), **more)


def craft(text, view=None, state=None, seed=0):
    """Return what an attack writes, as numpy, and its state."""
    attack, view = message_attacks.parse(text), view_of() if view is None else view
    crafted, state = attack.craft(view, attack.init() if state is None else state, torch_generator(seed))
    assert crafted.n == len(view.attackers)
    return crafted.slice(0, crafted.d).numpy(), state


def gaussians(n=10, d=50, seed=0, mean=0.3):
    return mean + np.random.default_rng(seed).standard_normal((n, d))


# -- values by hand; more in the CASES of each file ---------------------------------------------------


def test_alie_z():
    # n = 50, f = 24, as in the paper's table: s = 2, Phi^-1(24 / 26) = 1.43.
    assert edge(50, 24) == pytest.approx(1.4261, abs=1e-4)
    assert edge(50, 24, "clients") == pytest.approx(1.7507, abs=1e-4)  # Phi^-1(48 / 50)
    assert edge(20, 4) == pytest.approx(0.1573, abs=1e-4)  # s = 7, 9 / 16
    assert edge(10, 1) < 0  # s = 5, 4 / 9: the formula as published
    assert all(math.isfinite(edge(n, f)) for n in range(1, 12) for f in range(n + 1))
    # "auto" looks at the clients asked, not at those that answered.
    view = view_of(n=50, own=np.zeros((24, 2)))
    np.testing.assert_allclose(craft("alie()", view)[0], np.tile(MEAN - edge(50, 24) * np.array([2.0, 4.0]), (24, 1)))


@pytest.mark.parametrize("text", ["alie({})", "ipm(epsilon=1.0, {})", "min_max({})", "fang_krum({})"])
def test_known_clients_are_the_honest_and_the_attackers_own(text):
    # The same numbers, all of them honest, give the same line from the same rows.
    both = craft(text.format("known='clients'"), view_of())[0]
    joined = view_of(honest=np.vstack([X, OWN]), own=OWN, n=view_of().n)
    np.testing.assert_allclose(both, craft(text.format("known='all'"), joined)[0], atol=1e-9)
    assert not np.allclose(both, craft(text.format("known='all'"))[0])


def test_min_max_and_min_sum_by_hand():
    # On a line: 0, 1, 5 with mean 2; largest distance 5; squared sums 26, 17, 41; about the mean 4 + 1 + 9 = 14.
    view = view_of(honest=[[0.0], [1.0], [5.0]], own=[[0.0]])
    expected = {
        "min_max({})": 0.0,  # 5 - 5
        "min_sum({})": 2 - math.sqrt((41 - 14) / 3),
        "min_sum(bound='min', {})": 2 - math.sqrt((17 - 14) / 3),
    }
    for name, value in expected.items():
        for deviation in ("unit", "sign", "std"):  # one direction in one dimension
            assert craft(name.format(f"deviation='{deviation}'"), view)[0] == pytest.approx(value, abs=1e-6)


def test_fang_trimmed_mean_stays_in_its_intervals():
    # Column 0: mean > 0, least value -1 (outside is 2x); column 1: mean < 0, largest value -1 (outside is half).
    x = np.array([[-1.0, -1.0], [2.0, -2.0], [5.0, -6.0]])
    view = view_of(honest=x, own=np.zeros((200, 2)))
    for name in ("fang_trimmed_mean", "fang_median"):
        full = craft(f"{name}()", view)[0]
        assert full[:, 0].min() >= -2
        assert full[:, 0].max() <= -1
        assert full[:, 1].min() >= -1
        assert full[:, 1].max() <= -0.5
        assert full.std(0).min() > 0.1  # each attacker draws for itself
        partial = craft(f"{name}(known=3)", view)[0]
        away = np.abs(partial - x.mean(0)) / x.std(0, ddof=1)
        assert away.min() >= 3
        assert away.max() <= 4
        assert (np.sign(partial - x.mean(0)) == [-1, 1]).all()


def test_fang_krum_halves_until_krum_falls_for_it():
    honest, f = gaussians(12, 40, mean=0.5), 3
    view = view_of(honest=honest, own=honest[:f])
    crafted, state = craft("fang_krum()", view)
    size = float(state["strength"])
    np.testing.assert_allclose(crafted, np.tile(-size * np.where(honest.mean(0) > 0, 1, -1), (f, 1)), rtol=1e-12)

    def chosen(length):
        everyone = np.vstack([honest, np.tile(crafted[:1] / size * length, (f, 1))])
        return float(parse(f"krum(f={f})")(rows(everyone))[0].weights[-f:].sum()) > 0

    # The bound, naively, and what is left of it after halving.
    distances = np.linalg.norm(honest[:, None] - honest[None], axis=2)
    reach = np.sort(distances, axis=1)[:, 1 : 1 + 15 - f - 2].sum(1).min() / (15 - 2 * f - 1)
    bound = (reach + np.linalg.norm(honest, axis=1).max()) / math.sqrt(40)
    halvings = math.log2(bound / size)
    assert halvings == pytest.approx(round(halvings), abs=1e-9)
    assert chosen(size)
    assert halvings == 0 or not chosen(2 * size)


def test_fang_krum_gives_up_where_krum_never_falls():
    honest = np.zeros((8, 4))
    honest[:, 0] = 1e-3  # any step of 1e-5 or more leaves the crowd
    _, state = craft("fang_krum(least=1e-4)", view_of(honest=honest, own=honest[:1]))
    assert float(state["strength"]) < 1e-4


def test_tailored_draws_from_its_set():
    drawn = {float(craft("tailored(epsilon=[0.1, 10.0])", seed=seed)[1]["strength"]) for seed in range(20)}
    assert drawn == {0.1, 10.0}


def test_gaussian_has_the_moments_asked_for():
    noise, _ = craft("gaussian(sigma=2.0, mu=-3.0)", view_of(np.zeros((3, 20_000)), np.zeros((2, 20_000))))
    assert noise.mean() == pytest.approx(-3, abs=0.05)
    assert noise.std() == pytest.approx(2, abs=0.05)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.03  # each attacker draws for itself


def test_pool_keeps_rows_apart():
    view = view_of(gaussians(8), gaussians(4, seed=1))
    crafted, _ = craft("pool(pool=('median()',), similarity=0.25, epsilon=1.0)", view)
    distances = np.linalg.norm(crafted[:, None] - crafted[None], axis=2)
    assert distances[np.triu_indices(4, 1)].min() >= 0.25
    np.testing.assert_allclose(distances, 0.25 * np.abs(np.subtract.outer(range(4), range(4))), rtol=1e-2)
    np.testing.assert_allclose(crafted.mean(0), -gaussians(8).mean(0), atol=1e-9)


def test_sybils_come_in_groups():
    own = gaussians(5, 3)
    crafted, _ = craft("sybil(k=2)", view_of(own=own, honest=gaussians(6, 3)))
    np.testing.assert_allclose(crafted, own[[0, 0, 2, 2, 4]])


def test_model_based_on_the_past_undoes_it():
    attack, state, models = "model_based(size=0.5, movement='past')", None, [torch.ones(2), torch.tensor([2.0, 5.0])]
    first, state = craft(attack, view_of(model=lambda: models[0].double()), state)
    np.testing.assert_allclose(first, 0)
    second, state = craft(attack, view_of(model=lambda: models[1].double()), state)
    np.testing.assert_allclose(second, np.tile([-1.5, -6.0], (2, 1)))  # (2, 5) + this = 1 - size (s)
    np.testing.assert_allclose(models[1].numpy() + second[0], models[0].numpy() - 0.5 * np.array([1.0, 4.0]))


# -- mimic -------------------------------------------------------------------------------------------


def spread_along(axis, rounds=6, n=8, d=30):
    """Clients that differ most along one axis, client 5 most of all."""
    for at in range(rounds):
        x = gaussians(n, d, seed=at, mean=0.0)
        x[:, axis] += np.linspace(-8, 8, n)[[3, 1, 4, 2, 5, 0, 6, 7]] * 2
        yield x


def test_mimic_finds_the_client_that_is_farthest_out():
    state, worker = None, []
    for x in spread_along(2):
        crafted, state = craft("mimic(warmup=4)", view_of(x, x[:2]), state)
        worker.append(int(state["worker"]))
        np.testing.assert_array_equal(crafted, np.tile(x[worker[-1]], (2, 1)))
    assert worker[-1] in (5, 7)  # the ends of the axis
    assert int(state["rounds"]) == 4
    assert abs(float(state["direction"][2])) > 0.95
    assert len(set(worker[3:])) == 1  # after the warm-up it stays


def test_mimic_agrees_with_a_naive_iteration():
    state, scores = None, 0
    for at, x in enumerate(spread_along(2, rounds=5)):
        _, state = craft("mimic(warmup=5)", view_of(x, x[:1]), state)
        if at == 0:
            centre = x.mean(0)
            z = np.linalg.svd(x - centre)[2][0]
        else:
            centre = at / (at + 1) * centre + x.mean(0) / (at + 1)
            z = at / (at + 1) * z + ((x - centre) * ((x - centre) @ z)[:, None]).sum(0) / (at + 1)
        z = z / np.linalg.norm(z)
        scores = scores + x @ z
    assert abs(float(state["direction"] @ torch.from_numpy(z))) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(np.abs(state["scores"]), np.abs(scores), rtol=1e-9)
    # Another number of clients: it starts again.
    _, again = craft("mimic()", view_of(x[:5], x[:1]), state)
    assert int(again["rounds"]) == 1


# -- bounds ------------------------------------------------------------------------------------------


def within(text, honest, point):
    """The share of its bound that a point uses, naively."""
    distances = np.linalg.norm(honest[:, None] - honest[None], axis=2)
    away = np.linalg.norm(honest - point, axis=1)
    if text.startswith("min_max"):
        return away.max() / distances.max()
    sums = (distances**2).sum(1)
    return math.sqrt((away**2).sum() / (sums.min() if "bound='min'" in text else sums.max()))


@settings(max_examples=60, deadline=None)
@given(
    seed=some.integers(0, 10_000),
    n=some.integers(2, 9),
    d=some.integers(1, 12),
    offset=some.sampled_from([0.0, 1.0, 1e4]),
    scale=some.sampled_from([1e-6, 1.0, 1e5]),
    deviation=some.sampled_from(["unit", "std", "sign"]),
    name=some.sampled_from(["min_max({})", "min_sum({})", "min_sum(bound='min', {})"]),
)
def test_bounds_are_kept_and_reached(seed, n, d, offset, scale, deviation, name):
    text = name.format(f"deviation='{deviation}'")
    honest = scale * (offset + np.random.default_rng(seed).standard_normal((n, d)))
    crafted, state = craft(text, view_of(honest, honest[:1]))
    assert within(text, honest, crafted[0]) <= 1
    # A little farther on the same line is outside.
    mean, gamma = honest.mean(0), float(state["strength"])
    farther = mean + (1 + 1e-5) * (crafted[0] - mean)
    assert gamma > 0
    assert within(text, honest, farther) > 1 - 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("text", ["min_max()", "min_sum()", "min_sum(bound='min')", "min_max(deviation='std')"])
def test_bounds_are_kept_when_rows_are_written(text, dtype):
    # What is written is the model plus the row, rounded.
    model = np.random.default_rng(9).standard_normal(300).astype(dtype)
    for seed in range(10):
        sent = (model + 0.05 * gaussians(7, 300, seed)).astype(dtype)
        honest = sent.astype(float) - model.astype(float)
        unit, length = float(np.finfo(dtype).eps) / 2, float(np.linalg.norm(model.astype(float)))
        crafted, state = craft(text, view_of(honest, honest[:1], precision=(unit, length)))
        written = (model.astype(float) + crafted[0]).astype(dtype).astype(float) - model.astype(float)
        assert within(text, honest, written) <= 1
        assert float(state["strength"]) > 0


@pytest.mark.parametrize("text", ["min_max()", "min_sum()", "min_max(deviation='std')", "min_sum(deviation='sign')"])
def test_nothing_to_hide_in(text):
    honest = np.ones((4, 3))
    np.testing.assert_allclose(craft(text, view_of(honest, honest[:1]))[0], honest[:1], atol=1e-12)


# -- knowledge ---------------------------------------------------------------------------------------

NEEDS = {
    "own": Knowledge.OWN,
    "known": Knowledge.PARTIAL,
    "honest": Knowledge.OMNISCIENT,
    "rule": Knowledge.DEFENCE,
    "rule_state": Knowledge.DEFENCE,
}


@pytest.mark.parametrize("granted", Knowledge)
def test_a_view_withholds(granted):
    view = view_of(granted=granted, known=2, server_round=7)
    assert (view.round, view.n, view.replies, view.attackers, view.d) == (7, 5, 5, (3, 4), 2)
    for name, needed in NEEDS.items():
        if granted >= needed:
            getattr(view, name)
            continue
        with pytest.raises(KnowledgeError) as caught:
            getattr(view, name)
        assert f"'{name}' needs knowledge='{needed.name.lower()}'" in str(caught.value)
        assert f"'{granted.name.lower()}' is granted" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    if granted == Knowledge.PARTIAL:
        np.testing.assert_array_equal(view.known.slice(0, 2), X[:2])
    if granted > Knowledge.PARTIAL:
        np.testing.assert_array_equal(view.known.slice(0, 2), X)


@pytest.mark.parametrize("text", EXAMPLES)
def test_attacks_look_at_no_more_than_they_declare(text):
    attack, needed = message_attacks.parse(text), EXAMPLES[text]
    assert attack.knowledge == needed
    honest, own = gaussians(6), gaussians(2, seed=1)

    def look(granted):
        view = view_of(honest, own, granted, known=3, model=lambda: torch.ones(50, dtype=torch.float64))
        return attack.craft(view, attack.init(), torch_generator(0))[0]

    crafted = look(needed)
    assert (crafted.n, crafted.d) == (2, 50)
    if needed > Knowledge.NOTHING:
        with pytest.raises(KnowledgeError):
            look(Knowledge(needed - 1))


def test_every_attack_is_an_example():
    assert {text.partition("(")[0] for text in EXAMPLES} == set(message_attacks.members())
    assert not set(message_attacks.members()) & (set(faults.members()) | set(data_attacks.members()))


@pytest.mark.parametrize("kind", ["message", "fault"])
def test_every_attack_is_found_by_listing_its_folder(kind):
    module = importlib.import_module(f"flwr_robust.attacks.{kind}")
    files = {found.name for found in pkgutil.iter_modules(module.__path__)} - {"base", "line"}
    assert {getattr(module, name).name for name in module.__all__} == files


def test_partial_knowledge_cannot_depend_on_what_it_does_not_see():
    other = X.copy()
    other[2] += 100
    for text in (
        "ipm(epsilon=1.0, known=2)",
        "alie(known=2)",
        "min_max(known=2)",
        "fang_krum(known=2)",
        "mimic(known=2)",
    ):
        np.testing.assert_array_equal(craft(text)[0], craft(text, view_of(other))[0])
        whole = text.replace(", known=2", "").replace("known=2", "")
        assert not np.array_equal(craft(whole)[0], craft(whole, view_of(other))[0])


def test_views_and_levels_are_checked():
    with pytest.raises(ConfigurationError, match=r"unknown knowledge 'all'; allowed: defence, nothing, omniscient"):
        Knowledge.of("all")
    with pytest.raises(ConfigurationError, match="attackers must be 2 positions below 5; got \\[5, 6\\]"):
        view_of(attackers=[5, 6])
    with pytest.raises(ConfigurationError, match="no honest client"):
        _ = View(Knowledge.OMNISCIENT, own=rows(OWN), honest=None).honest


# -- states, draws, text -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", EXAMPLES)
def test_attacks_are_deterministic_and_keep_their_hands_off(text):
    attack = message_attacks.parse(text)
    assert message_attacks.parse(str(attack)) == attack
    assert pickle.loads(pickle.dumps(attack)) == attack
    honest, own = torch.from_numpy(gaussians(6)), torch.from_numpy(gaussians(2, seed=1))
    kept, before = (honest.clone(), own.clone()), torch.get_rng_state()

    def look():
        view = View(
            Knowledge.DEFENCE,
            own=Rows.from_tensor(own),
            honest=Rows.from_tensor(honest),
            rule=parse("krum(f=1)"),
            model=lambda: torch.ones(50, dtype=torch.float64),
        )
        crafted, state = attack.craft(view, attack.init(), torch_generator(3))
        again, _ = attack.craft(view, state, torch_generator(4))
        return crafted.slice(0, 50), again.slice(0, 50), state

    first, second = look(), look()
    for one, other in zip(first[:2], second[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert all(isinstance(value, torch.Tensor) for value in first[2].values())
    assert torch.equal(honest, kept[0])
    assert torch.equal(own, kept[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ipm()", "epsilon must be given"),
        ("ipm(epsilon=0)", "ipm: epsilon must be a finite number and > 0; got epsilon=0"),
        ("ipm(epsilon=1, known=0)", "ipm: known must be 'all' or 'clients' or 'own' or an integer >= 1; got known=0"),
        ("alie(z='max')", "alie: z must be 'auto' or a finite number; got z='max'"),
        ("alie(sign=2)", "alie: sign must be one of -1, 1; got sign=2"),
        ("alie(ddof=True)", "alie: ddof must be one of 0, 1; got ddof=True"),
        ("alie(share='n')", "share must be one of clients, honest"),
        ("min_max(deviation='mean')", "deviation must be one of sign, std, unit"),
        ("min_sum(bound='mean')", "min_sum: bound must be one of max, min"),
        ("mimic(worker=-1)", "mimic: worker must be 'auto' or an integer >= 0; got worker=-1"),
        ("gaussian(sigma=0)", "sigma"),
        (
            "tailored(epsilon=[])",
            r"tailored: epsilon must be number > 0 or 'search', or a list, not empty, .*; got epsilon=\(\)",
        ),
        ("tailored(epsilon=[0.1, -1])", r"tailored: epsilon must be .* of: number > 0; got epsilon=\(0.1, -1\)"),
        ("tailored(epsilon='best')", "='best'"),
        (
            "optimised(base='zero()')",
            r"must be an attack with a strength \(alie, constant, fang_krum, ipm.*got base='zero",
        ),
        ("optimised(base='nothing')", "unknown message attack 'nothing'"),
        ("optimised(budget=0)", "budget must be an integer >= 1"),
        ("pool(pool=[])", r"pool: pool must be a list, not empty, of: a defence string; got pool=\(\)"),
        ("pool(pool=['krum(f=1)', 'fltrust()'])", "fltrust.. compares with an update of the server's own"),
        ("sybil(k=0)", "k must be an integer >= 1"),
        ("sybil(k=2, base='label_flip')", "unknown message attack 'label_flip'"),
        ("model_based(size=1, movement='future')", "movement must be one of past, round"),
    ],
)
def test_fields_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        message_attacks.parse(text)


# -- the embedded copy and the search ----------------------------------------------------------------


def test_an_embedded_copy_has_the_same_inner_products():
    x = 1 + 1e-4 * gaussians(8, 500)
    x[3] += 1e3  # one far row does not cost the others their digits
    trusted = torch.from_numpy(gaussians(1, 500, seed=3)[0])
    copy = rows(x, counts=range(1, 9), asked=11, trusted=trusted).embedded()
    placed = copy.slice(0, copy.d).numpy()
    assert copy.d <= 9
    assert copy.asked == 11
    assert copy.counts.tolist() == list(range(1, 9))
    np.testing.assert_allclose(placed @ placed.T, x @ x.T, rtol=1e-12)
    np.testing.assert_allclose(placed @ copy.trusted.numpy(), x @ trusted.numpy(), rtol=1e-9, atol=1e-9)
    direct = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(placed[:, None] - placed[None], axis=2), direct, rtol=1e-6)
    assert rows(x[:1]).embedded().slice(0, 1).square().sum() == pytest.approx((x[0] ** 2).sum())


def test_rows_that_were_added_are_rows_when_the_others_are_left_out():
    reference = [torch.full((2,), 10.0)]
    base = Rows.from_layers([[torch.tensor(row)] for row in X], reference=reference)
    added = base.with_row(torch.tensor([1.0, 2.0], dtype=torch.float64)).with_row(torch.tensor([3.0, 4.0]))
    kept = added.subset(torch.tensor([False, False, False, True, True]))
    assert kept.slice(0, 2).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert kept.mix(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [3.0, 4.0]


def damage_of(text, rule, honest, own, *, state=None, **more):
    attack = message_attacks.parse(text)
    rule = parse(rule)
    state = rule.init() if state is None else state
    view = View(Knowledge.DEFENCE, own=rows(own), honest=rows(honest), rule=rule, rule_state=state, **more)
    line = attack.line(view, attack.init(), torch_generator(0))
    return Damage(view, line, [(rule, state)]), line


def naive_damage(line, rule, honest, attackers, strength, state):
    """All rows, side by side, in full length."""
    crafted = line.rows(strength).slice(0, line.base.d).numpy()
    everyone = np.empty((len(honest) + len(crafted), honest.shape[1]))
    mask = np.zeros(len(everyone), bool)
    mask[list(attackers)] = True
    everyone[mask], everyone[~mask] = crafted, honest
    value = parse(rule)(rows(everyone, seed=0), state)[0].value.numpy()
    return float(np.linalg.norm(value - honest.mean(0)))


RULES = [
    "mean()",
    "krum(f=2)",
    "nnm(f=2) | trimmed_mean(f=2)",
    "bucketing(s=2) | geometric_median()",
    "median()",
    "faba(f=2)",
    "centered_clipping(tau=3.0)",
    "clip(c=4.0) | centered_clipping(tau=3.0)",
    "bulyan(f=1)",
    "generalised_krum(f=2, p=1)",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", ["alie(z=1.0)", "ipm(epsilon=1.0)", "sign_flip()", "constant(c=1.0)"])
def test_damage_is_that_of_the_full_rows(text, rule):
    honest, own = gaussians(8), gaussians(3, seed=1)
    state = parse(rule)(rows(gaussians(11, seed=2)))[1]  # a second round: where there is a state, it counts
    for attackers in ((8, 9, 10), (0, 4, 9)):
        damage, line = damage_of(text, rule, honest, own, state=state, attackers=attackers)
        for strength in (0.0, 0.3, 2.0):
            expected = naive_damage(line, rule, honest, attackers, strength, state)
            assert damage(strength) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_rows_that_are_not_seen_are_taken_for_the_mean():
    honest, own = gaussians(8), gaussians(2, seed=1)
    damage, line = damage_of("tailored(epsilon='search', known=3)", "krum(f=2)", honest, own)
    believed = np.vstack([honest[:3], np.tile(honest[:3].mean(0), (5, 1))])
    assert damage(0.7) == pytest.approx(naive_damage(line, "krum(f=2)", believed, (8, 9), 0.7, {}), rel=1e-6)


def test_the_search_does_not_read_the_rows_again():
    # After the first look the rows are overwritten: whatever is read from then on is not a number.
    for text in ("ipm(epsilon=1.0)", "alie()", "min_max()"):
        for rule, reads in (("krum(f=4)", False), ("nnm(f=4) | faba(f=4)", False), ("median()", True)):
            honest = torch.from_numpy(gaussians(16, 20_000))
            attack, defence = message_attacks.parse(text), parse(rule)
            view = View(
                Knowledge.DEFENCE, own=rows(gaussians(4, 20_000, seed=1)), honest=Rows.from_tensor(honest), rule=defence
            )
            line = attack.line(view, {}, torch_generator(0))
            damage = Damage(view, line, [(defence, {})])
            before = [damage(strength) for strength in (0.1, 1.0)]
            honest.fill_(torch.nan)
            after = [damage(strength) for strength in (0.1, 1.0)]
            assert (after != before) == reads
            assert reads or math.isfinite(strongest(damage, damage.unit, 20))


@pytest.mark.parametrize("rule", [*RULES[1:6], *RULES[8:]])
@pytest.mark.parametrize("base", ["alie()", "ipm(epsilon=1.0)", "min_max()", "sign_flip()"])
def test_the_search_finds_what_a_grid_finds(base, rule):
    honest, own = gaussians(9, 40), gaussians(2, 40, seed=1)
    damage, _ = damage_of(base, rule, honest, own)
    tried = {}

    def counted(strength):
        tried[strength] = damage(strength)
        return tried[strength]

    best = strongest(counted, damage.unit, 20)
    assert len(tried) <= 20
    assert tried[best] == max(tried.values())
    grid = max(damage(damage.unit * strength) for strength in np.geomspace(1 / 64, 64, 60))
    assert tried[best] >= 0.93 * grid
    more = strongest(damage, damage.unit, 60)
    assert damage(more) >= 0.999 * max(grid, tried[best])


def test_the_search_starts_where_the_attack_stands():
    honest, own = gaussians(9), gaussians(2, seed=1)
    view = view_of(honest, own, rule="krum(f=2)")
    crafted, state = craft("optimised(base='ipm(epsilon=0.7)', budget=1)", view)
    assert float(state["strength"]) == 0.7
    np.testing.assert_allclose(crafted, np.tile(-0.7 * honest.mean(0), (2, 1)))
    for base in ("ipm(epsilon=0.7)", "alie()"):
        damage, line = damage_of(base, "krum(f=2)", honest, own)
        plain = message_attacks.parse(base).strength(view, line, torch_generator(0))
        _, state = craft(f"optimised(base={base!r})", view)
        assert damage(float(state["strength"])) >= damage(plain)


def test_the_pool_is_hurt_where_it_is_hurt_least():
    honest, own = gaussians(9), gaussians(2, seed=1)
    pool = ("krum(f=2)", "median()", "trimmed_mean(f=2)")
    _, state = craft(f"pool(pool={pool!r}, budget=30)", view_of(honest, own))
    least = {}
    for strength in (float(state["strength"]), *np.geomspace(0.05, 20, 30)):
        least[strength] = min(damage_of("ipm(epsilon=1.0)", rule, honest, own)[0](strength) for rule in pool)
    assert least[float(state["strength"])] >= 0.98 * max(least.values())


def test_a_defence_that_aggregates_nothing_leaves_the_model_as_it_is():
    honest, own = gaussians(4), gaussians(2, seed=1)
    damage, _ = damage_of("ipm(epsilon=1.0)", "krum(f=3)", honest, own)  # needs 9 rows
    assert damage(1.0) == pytest.approx(np.linalg.norm(honest.mean(0)))


def test_weighted_rules_see_the_numbers_of_examples():
    honest, own = gaussians(6), gaussians(2, seed=1)
    attack, rule = message_attacks.parse("ipm(epsilon=1.0)"), parse("mean(weighted=True, clamp=100.0)")
    view = View(
        Knowledge.DEFENCE,
        own=rows(own, counts=[5.0, 7.0]),
        honest=rows(honest, counts=[1, 2, 3, 4, 5, 6]),
        attackers=(0, 3),
        rule=rule,
    )
    damage = Damage(view, attack.line(view, {}, torch_generator(0)), [(rule, {})])
    counts = np.array([5.0, 1, 2, 7, 3, 4, 5, 6])
    everyone = np.insert(honest, [0, 2], -honest.mean(0), axis=0)
    value = counts @ everyone / counts.sum()
    assert damage(1.0) == pytest.approx(np.linalg.norm(value - honest.mean(0)))


# -- whom they hurt ----------------------------------------------------------------------------------


def bias(rule, text, *, n=20, f=4, d=200, rounds=30, mean=0.3, momentum=0.0, attacked=True):
    """Distance of the average value from the true mean, per root of d, and the share of the mean that is left."""
    rule, attack = parse(rule), message_attacks.parse(text)
    state, memory, total, messages = rule.init(), attack.init(), 0, 0.0
    rng = np.random.default_rng(0)
    for at in range(rounds):
        fresh = mean + rng.standard_normal((n, d))
        messages = fresh if at == 0 else momentum * messages + (1 - momentum) * fresh
        sent = messages.copy()
        view = View(Knowledge.DEFENCE, own=rows(sent[n - f :]), honest=rows(sent[: n - f]), rule=rule, rule_state=state)
        crafted, memory = attack.craft(view, memory, torch_generator(0, at))
        if attacked:
            sent[n - f :] = crafted.slice(0, d)
        result, state = rule(rows(sent), state)
        total = total + (result.value.numpy() if at >= rounds // 3 else 0)
    average = total / (rounds - rounds // 3)
    return np.linalg.norm(average - mean) / math.sqrt(d), average.mean() / mean


RESISTS = {"momentum": 0.9, "rule": "centered_clipping(tau=8.0)"}  # Karimireddy, He, Jaggi (ICML 2021)


def test_alie_turns_krum_and_the_median_around_but_not_clipping_with_momentum():
    for rule in ("krum(f=4)", "median()"):
        assert bias(rule, "alie(z=1.0)")[1] < 0
        assert bias(rule, "alie(z=1.0)", attacked=False)[1] > 0.9
    krum, resisting = bias("krum(f=4)", "alie(z=1.0)"), bias(text="alie(z=1.0)", **RESISTS)
    assert krum[0] > 10 * resisting[0]
    assert resisting[1] > 0.75
    # It is the momentum: the same rule without it loses most of the mean.
    assert bias("centered_clipping(tau=8.0)", "alie(z=1.0)")[1] < 0.6


def test_ipm_turns_krum_around_when_small_and_wears_the_median_down_when_large():
    assert bias("krum(f=4)", "ipm(epsilon=0.1)")[1] < 0
    assert bias("krum(f=4)", "ipm(epsilon=10.0)")[1] > 0.9  # a large one is nothing to Krum
    assert bias("median()", "ipm(epsilon=10.0)")[1] < 0.3
    assert bias("mean()", "ipm(epsilon=10.0)")[1] < -1
    # Mixing neighbours resists both, and so does clipping with momentum where epsilon is small.
    for epsilon, least in ((0.1, 0.6), (10.0, 0.95)):
        assert bias("nnm(f=4) | trimmed_mean(f=4)", f"ipm(epsilon={epsilon})")[1] > least
    assert bias(text="ipm(epsilon=0.1)", **RESISTS)[1] > 0.7


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("min_max()", "krum(f=4)"),
        ("min_sum()", "krum(f=4)"),
        ("fang_krum()", "krum(f=4)"),
        ("fang_trimmed_mean()", "trimmed_mean(f=4)"),
        ("fang_median()", "median()"),
        ("tailored(epsilon='search')", "krum(f=4)"),
        ("optimised()", "trimmed_mean(f=4)"),
        ("sign_flip(c=10.0)", "mean()"),
        ("gaussian(sigma=200.0)", "mean()"),
    ],
)
def test_attacks_do_what_they_are_for(text, rule):
    attacked, honest = bias(rule, text), bias(rule, text, attacked=False)
    assert attacked[0] > 3 * honest[0] or attacked[1] < 0.4
    assert honest[1] > 0.9


def test_optimised_harms_at_least_as_much_as_its_base():
    for rule in ("krum(f=4)", "trimmed_mean(f=4)", "nnm(f=4) | krum(f=4)"):
        assert bias(rule, "optimised(base='alie()')", rounds=6)[0] > 1.2 * bias(rule, "alie()", rounds=6)[0]


# -- another library ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byzfl():
    return pytest.importorskip("byzfl")


def test_byzfl_agrees_where_the_definitions_do(byzfl):
    x = gaussians(7, 20)
    view = view_of(x, x[:2])
    same = {
        "ipm(epsilon=2.0)": byzfl.InnerProductManipulation(2.0),
        "ipm(epsilon=1.0)": byzfl.SignFlipping(),  # of the honest mean
        "alie(z=1.5, sign=1)": byzfl.ALittleIsEnough(1.5),
        "mimic(worker=3)": byzfl.Mimic(3),
        "inf()": byzfl.Inf(),
    }
    for text, theirs in same.items():
        np.testing.assert_allclose(craft(text, view)[0], np.tile(theirs(x), (2, 1)), rtol=1e-12)


def test_byzfl_differs_where_they_do_not(byzfl):
    x = gaussians(7, 20)
    view = view_of(x, x[:2])
    assert np.abs(craft("sign_flip()", view)[0] - byzfl.SignFlipping()(x)).max() > 0.1  # ours: each its own
    away = craft("alie(z=1.5)", view)[0][0] - x.mean(0)
    np.testing.assert_allclose(away, -(byzfl.ALittleIsEnough(1.5)(x) - x.mean(0)))  # ours: minus
    assert np.abs(np.abs(away) - np.abs(craft("alie()", view)[0][0] - x.mean(0))).max() > 0.1  # ours: z from n and f


def test_byzfl_searches_no_better(byzfl):
    f = 2
    for seed in range(5):
        x = gaussians(9, 30, seed)
        view = view_of(x, x[:f], rule="krum(f=2, variant='byzfl')")
        for base, theirs in (
            ("ipm(epsilon=1.0)", byzfl.Optimal_InnerProductManipulation),
            ("alie(sign=1)", byzfl.Optimal_ALittleIsEnough),
        ):
            optimal = theirs(byzfl.Krum(f), pre_agg_list=[], f=f)
            crafted, _ = craft(f"optimised(base={base!r})", view)

            def harm(row, x=x):
                everyone = torch.from_numpy(np.vstack([x, np.tile(row, (f, 1))]))
                value = parse("krum(f=2, variant='byzfl')")(Rows.from_tensor(everyone))[0].value.numpy()
                return np.linalg.norm(value - x.mean(0))

            assert harm(crafted[0]) >= 0.95 * harm(optimal(x.copy()))


# -- faults ------------------------------------------------------------------------------------------

LAYERS = [{"w": torch.full((2,), float(i)), "b": torch.full((1,), -float(i))} for i in range(1, 9)]


def answers(text, rounds=range(1, 7), seed=0):
    """The first numbers of what a client answers, round by round."""
    fault, found = faults.parse(text), []
    state = fault.init()
    for at in rounds:
        answer, state = fault.answer(LAYERS[at - 1], at, state, torch_generator(seed, at))
        found.append(answer)
    return found


def numbers(found):
    return [None if answer is None else int(answer["w"][0]) for answer in found]


def test_crashed_clients_fall_silent():
    assert answers("crash()") == [None] * 6
    assert answers("crash(error=True)") == ["the client crashed"] * 6
    assert numbers(answers("crash(p=0)")) == [1, 2, 3, 4, 5, 6]
    silent = [answer is None for answer in answers("crash(p=0.5)", rounds=[1] * 400)]
    assert len(set(silent)) == 1  # the draw is the round's
    several = [answers("crash(p=0.25)", seed=seed)[0] is None for seed in range(400)]
    assert np.mean(several) == pytest.approx(0.25, abs=0.09)


def test_delayed_answers_are_old_ones():
    assert numbers(answers("delay(rounds=2)")) == [None, None, 1, 2, 3, 4]
    # Not asked in rounds 2 to 4: of what is due the newest is sent, and what is sent does not come again.
    assert numbers(answers("delay(rounds=2)", rounds=[1, 5, 6, 7, 8])) == [None, 1, None, 5, 6]


def test_stale_answers_are_repeated():
    assert numbers(answers("stale(rounds=2)")) == [1, 1, 1, 4, 4, 4]
    assert numbers(answers("stale(rounds=1)", rounds=[1, 4, 5, 6])) == [1, 4, 4, 6]


def test_layers_are_dropped_by_name_or_by_number():
    assert [list(answer) for answer in answers("drop_layers(layers=['w', 'x'])")] == [["b"]] * 6
    assert {tuple(answer) for answer in answers("drop_layers()")} == {("w",), ("b",)}
    assert [list(answer) for answer in answers("drop_layers(layers=5)")] == [[]] * 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crash(p=2)", "crash: p must be"),
        ("crash(error=1)", "error must be True or False"),
        ("delay(rounds=0)", "rounds must be an integer >= 1"),
        ("stale(rounds=-1)", "stale: rounds"),
        (
            "drop_layers(layers=[])",
            r"layers must be integer >= 1, or a list, not empty, of: the name of an array; got layers=\(\)",
        ),
        ("drop_layers(layers=0)", "layers"),
    ],
)
def test_faults_outside_their_bounds_are_refused(text, words):
    with pytest.raises(ConfigurationError, match=words):
        faults.parse(text)


def test_faults_round_trip():
    for text in ("crash(p=0.5, error=True)", "delay(rounds=3)", "stale(rounds=2)", "drop_layers(layers=('a', 'b'))"):
        assert str(faults.parse(text)) == text
    assert issubclass(message_attacks.get("alie"), LineAttack)
