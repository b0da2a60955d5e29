"""Numbers that an attacker chooses: what loses digits must neither be believed nor called converged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import ConfigurationError, InfeasibleError, Outcome, Rows, Shard, aggregate, aggregate_sharded, parse
from flwr_robust.attacks.message.base import Knowledge, View, message_attacks
from flwr_robust.flower import TrimmedMean, trimmed_metrics
from flwr_robust.kernels.gram import better_centre
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.seeds import torch_generator
from tests.adversary.problems import rough_rows
from tests.oracles import basic

few = settings(deadline=None, max_examples=40)


def column(*values):
    return torch.tensor([[v] for v in values], dtype=torch.float64)


# -- the geometric median ------------------------------------------------------------------------------------


def old_geometric_median(x, tolerance=1e-6, nu=1e-6, maximum=1000):
    """What the rule did before: from the mean, in a Gram matrix, until the weights' change is short."""
    alpha = np.full(len(x), 1 / len(x))
    centre = x[len(x) // 2]  # an honest row
    gram = (x - centre) @ (x - centre).T
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    others = np.sort(squared + np.diag(np.full(len(x), np.inf)), axis=1)
    smoothing = max(nu * np.sqrt(others[:, (len(x) - 2) // 2].min()), 1e-150)

    def distances(w):
        return np.sqrt(np.maximum(gram.diagonal() - 2 * gram @ w + w @ gram @ w, 0))

    weights = alpha
    for _ in range(maximum):
        beta = alpha / np.maximum(distances(weights), smoothing)
        following = beta / beta.sum()
        change = following - weights
        residual = np.sqrt(max(change @ gram @ change, 0)) * beta.sum()
        weights = following
        if residual <= tolerance:
            return weights @ x, True
    return weights @ x, False


CHOSEN = [
    (column(1e6, 0, 0, 0, 4e6), 0.0),
    (column(0, 1, 1, 1, -3), 1.0),
    (torch.tensor([[0.0, 0]] * 4 + [[1, 2], [3, 1], [2, 2]], dtype=torch.float64), 0.0),
]


@pytest.mark.parametrize(("x", "right"), CHOSEN)
def test_rows_that_the_issue_names(x, right):
    value, converged = old_geometric_median(x.numpy())
    assert np.abs(value - right).max() > 0.5 or not converged
    result = aggregate(x, "geometric_median(f=2)")
    assert result.outcome is Outcome.OK
    assert result.stats["iterations"] == 0
    assert result.value.tolist() == [right] * x.shape[1]


def two_liars(seed, n=10, d=20, size=1e8):
    """Honest rows near 1, and two clients that send S and (n - 1) S: the mean is S, up to the honest rows."""
    rng = np.random.default_rng(seed)
    x = 1 + 0.1 * rng.standard_normal((n, d))
    x[0] = size * rng.standard_normal(d) / np.sqrt(d)
    x[1] = (n - 1) * x[0]
    return x


PLACES = [
    "geometric_median(f=2)",
    "geometric_median(f=2, iterations=1)",
    "geometric_median(f=2, weighted=True, clamp=1.0)",
    "nnm(f=2) | geometric_median(f=2)",
    "bucketing(s=2, seed=1) | geometric_median(f=2)",
    "mixtailor(f=2, pool=('geometric_median',), seed=0)",
    "bulyan(f=1, selection='geometric_median')",
    "bulyan(f=1, selection='median', aggregation='geometric_median')",
]


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("size", [1e2, 1e8, 1e14, 1e30])
def test_two_clients_that_put_the_mean_on_a_row_gain_nothing(text, size):
    for seed in range(5):
        x = two_liars(seed, size=size)
        honest = x[2:].mean(0)
        if "f=1" in text:  # bulyan(f=1) has to do with one of them
            x[1] = x[2]
        spread = np.linalg.norm(x[2:] - honest, axis=1).max()
        result = aggregate(torch.from_numpy(x), text, counts=np.full(10, 7.0))
        assert result.outcome is Outcome.OK
        assert np.linalg.norm(result.value.numpy() - honest) <= 3 * spread


def test_the_old_iteration_believed_them():
    lost = 0
    for seed in range(20):
        x = two_liars(seed, size=1e10)
        value, converged = old_geometric_median(x)
        lost += bool(converged and np.linalg.norm(value) > 1e6)
    assert lost >= 8


def test_shards_search_the_same_point():
    for x in (two_liars(3), two_liars(3)[:, :2], np.array([[0.0, 0]] * 4 + [[1, 2], [3, 1], [2, 2]])):
        points = torch.from_numpy(x)
        whole = aggregate(points, "geometric_median(f=2)")
        shards = [Shard(points[:, :1]), Shard(points[:, 1:])]
        found, _ = aggregate_sharded(shards, "geometric_median(f=2)")
        assert found.outcome is Outcome.OK
        np.testing.assert_allclose(torch.cat([shard.value() for shard in shards]), whole.value, rtol=1e-9, atol=1e-9)


@few
@given(rough_rows(least=3), st.sampled_from(["", "nnm(f=1) | ", "bucketing(s=2, seed=1) | ", "clip(c=1.0) | "]))
def test_behind_any_stage_the_point_is_no_worse_than_any_row(x, stage):
    rule = parse(f"{stage}geometric_median()")
    points = Rows.from_tensor(torch.from_numpy(x))
    if rule.check(points.n):
        return
    mixing = rule.stages[0].matrix(points, rule.stages[0].init())[0] if stage else torch.eye(points.n).double()
    rows = (mixing.to(torch.float64) @ points.slice(0, points.d)).numpy()
    result = rule(points)[0]
    assert result.outcome is Outcome.OK
    alpha = np.full(len(rows), 1 / len(rows))
    least = min(basic.summed_distance(rows, row, alpha) for row in rows)
    rounding = 1e-12 * np.abs(x).max() * np.sqrt(x.shape[1])  # a mixed row is no more exact than its terms
    assert basic.summed_distance(rows, result.value.numpy(), alpha) <= least * (1 + 1e-9) + rounding


def test_multiples_of_one_row_put_the_mean_on_a_row():
    rng = np.random.default_rng(7)
    honest, own = 1 + 0.1 * rng.standard_normal((8, 30)), 1 + 0.1 * rng.standard_normal((2, 30))
    lost = 0
    rows, theirs = (Rows.from_tensor(torch.from_numpy(x)) for x in (honest, own))
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(8)
        view = View(Knowledge.OWN, own=theirs, honest=rows)
        crafted, _ = message_attacks.parse("multiples(c=1e10)").craft(view, {}, torch_generator(seed))
        x = np.vstack([honest[order], crafted.slice(0, 30).numpy() * (1 + seed / 7)])
        assert np.linalg.norm(x.mean(0) - x[8]) < 1e-9 * np.linalg.norm(x[8])
        lost += np.linalg.norm(old_geometric_median(x)[0]) > 1e6
        for text in ("geometric_median(f=2)", "krum(f=2)", "median(f=2)", "faba(f=2)", "arc(f=2) | dnc(f=2)"):
            assert np.linalg.norm(aggregate(torch.from_numpy(x), text).value.numpy() - honest.mean(0)) < 3
    assert lost > 0


@pytest.mark.parametrize("message", ["delta", "gradient"])
def test_a_run_withstands_multiples_of_one_row(message):
    keys = {"clients": 10, "attackers": 2, "attack": "multiples()", "message": message, "rounds": 40}
    right, published = (
        simulate(RunConfig(**keys, defence=f"geometric_median(f=2{steps})"))["curve"][-1]["accuracy"]
        for steps in ("", ", iterations=3, start='mean'")
    )
    assert right > 0.6
    assert published < 0.2


# -- rows of several sizes at once ---------------------------------------------------------------------------


def ladder(sizes, n=10, d=50, seed=0):
    """Honest rows near 1, and liars each of another size."""
    rng = np.random.default_rng(seed)
    x = 1 + 0.1 * rng.standard_normal((n, d))
    for row, size in enumerate(sizes):
        x[row] = size * rng.standard_normal(d)
    return x


def old_centered_clipping(x, steps):
    """Steps at the median radius from zero, in inner products about a row that a farther row made look near."""
    centre = better_centre(Rows.from_tensor(torch.from_numpy(x)).storage.gram(0), 0)
    points = np.vstack([x, np.zeros(x.shape[1])]) - x[centre]
    gram, n = points @ points.T, len(x)
    weights = np.append(np.zeros(n), 1.0)
    for step in range(steps):
        towards = gram @ weights
        squared = gram.diagonal() - 2 * towards + weights @ towards
        distances = np.linalg.norm(x, axis=1) if step == 0 else np.sqrt(np.maximum(squared[:n], 0))
        shrink = np.minimum(np.median(distances) / np.maximum(distances, 1e-300), 1)
        weights = np.append(weights[:n] * (1 - shrink.mean()) + shrink / n, weights[n] * (1 - shrink.mean()))
    return weights[:n] @ x


LADDERS = [(1e30, 1e15, 1e6), (1e25, 1e10, 1e1), (1e30, 1e22, 1e14)]


def test_the_old_centre_is_bad():
    # How the old sums round depends on the machine's matrix products: on each ladder of rows they may be right by luck.
    def away(x):
        expected = basic.centered_clipping(x.astype(np.longdouble), "median", 40)[0].astype(float)
        return np.linalg.norm(old_centered_clipping(x, 40) - expected)

    assert max(away(ladder(sizes)) for sizes in LADDERS) > 1


@pytest.mark.parametrize("sizes", LADDERS)
def test_a_far_row_does_not_make_a_bad_centre_look_good(sizes):
    x = ladder(sizes)
    expected = basic.centered_clipping(x.astype(np.longdouble), "median", 40)[0].astype(float)
    result = aggregate(torch.from_numpy(x), "centered_clipping(tau='median', steps=40)")
    np.testing.assert_allclose(result.value, expected, rtol=1e-9)
    for text in ("faba(f=3)", "multi_krum(f=3)", "caf(f=3)", "nnm(f=3) | krum(f=3)", "minimum_diameter(f=3)"):
        value = aggregate(torch.from_numpy(x), text).value
        assert float((value - torch.from_numpy(x[3:].mean(0))).norm()) < 0.5


# -- angles --------------------------------------------------------------------------------------------------


def angles(x):
    """1 - cos of all pairs in long double, every row by its own norm."""
    x = x.astype(np.longdouble)
    largest = np.abs(x).max(1, keepdims=True)
    units = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
    norms = np.sqrt((units**2).sum(1, keepdims=True))
    units = np.divide(units, norms, out=np.zeros_like(x), where=norms > 0)
    found = np.array([((units - row) ** 2).sum(1) / 2 for row in units])
    some = norms[:, 0] > 0
    found[~(some[:, None] & some[None])] = 1
    np.fill_diagonal(found, 0)
    return found


def old_angles(x):
    """What was done before: rows are scaled within a Gram matrix about the first of them."""
    norms = np.linalg.norm(x, axis=1)
    points = np.vstack([x, np.zeros(x.shape[1])]) - x[0]
    gram = points @ points.T
    factors = np.median(norms) / norms
    affine = np.block([[np.diag(factors), (1 - factors)[:, None]], [np.zeros(len(x)), 1.0]])
    gram = (affine @ gram @ affine.T)[:-1, :-1]
    squared = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    return squared / np.median(norms) ** 2 / 2


def lengths_of_many_sizes(sizes):
    """Two groups of directions, as they are and at other lengths."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((len(sizes), 30))
    return np.asarray(sizes)[:, None] * x / np.linalg.norm(x, axis=1, keepdims=True)


def test_short_rows_beside_long_ones_keep_their_direction():
    x = lengths_of_many_sizes([1, 1, 1, 1e-6, 1e-8, 1e-10])
    expected = angles(x)
    assert np.abs(old_angles(x) - expected).max() > 1
    np.testing.assert_allclose(
        Rows.from_tensor(torch.from_numpy(x)).cosine_distances, expected.astype(float), atol=1e-15
    )


@few
@given(rough_rows(kinds=("scaled rows", "near rows", "multiples", "ties", "far rows", "plain")), st.booleans())
def test_angles_are_those_of_long_double(x, mixed):
    points = Rows.from_tensor(torch.from_numpy(x))
    if mixed:
        factors = 10.0 ** np.random.default_rng(len(x)).uniform(-6, 6, len(x))
        points, x = points.mixed(torch.diag(torch.from_numpy(factors))), factors[:, None] * x
    expected = angles(x).astype(float)
    found = points.cosine_distances.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-14)
    assert (found[expected < 1e-29] == 0).all()
    np.testing.assert_allclose(points.norms, np.sqrt((x.astype(np.longdouble) ** 2).sum(1)).astype(float), rtol=1e-9)
    point = x[0][::-1] + x[-1]
    cosines, length = points.cosines_to(torch.from_numpy(np.ascontiguousarray(point)))
    exact = 1 - angles(np.vstack([x, point]))[-1, :-1].astype(float)
    np.testing.assert_allclose(cosines, exact, atol=1e-12)
    assert length == pytest.approx(np.linalg.norm(point), rel=1e-12)


def test_angles_of_rows_whose_squares_leave_float64():
    x = lengths_of_many_sizes([1, 1, 1e-160, 1e-200, 1e-290, 1e60])
    points = Rows.from_tensor(torch.from_numpy(x))
    np.testing.assert_allclose(points.cosine_distances, angles(x).astype(float), atol=1e-12)
    np.testing.assert_allclose(points.norms, [1, 1, 1e-160, 1e-200, 1e-290, 1e60], rtol=1e-12)
    cosines, _ = points.cosines_to(torch.from_numpy(x[1] * 1e-200))
    np.testing.assert_allclose(cosines, 1 - angles(x)[1].astype(float), atol=1e-12)


def test_right_angles_are_exact():
    # Whole numbers of all sizes: 1 - 0 is 1 to the bit, and ties stay ties.
    x = torch.tensor([[3.0, 4, 0, 0], [-4e9, 3e9, 0, 0], [0, 0, 7e-9 * 0 + 1, 1], [0, 0, 5, -5], [0, 0, 0, 2e12]])
    expected = torch.ones(5, 5).double().fill_diagonal_(0)
    expected[2:, 2:] = torch.tensor(
        1 - np.abs(np.array([[1, 0, 0.5**0.5], [0, 1, -(0.5**0.5)], [0.5**0.5, -(0.5**0.5), 1]]))
    )
    found = Rows.from_tensor(x).cosine_distances
    assert torch.equal(found[:2], expected[:2])
    assert found[2, 3] == 1


def test_the_length_of_a_row_does_not_hide_its_direction_from_fltrust():
    rng = np.random.default_rng(0)
    trusted = rng.standard_normal(40)
    trusted /= np.linalg.norm(trusted)
    x = np.vstack([trusted + 0.05 * rng.standard_normal((6, 40)), np.repeat(-1e-12 * trusted[None], 4, 0)])
    # Before: the cosines of the last four were 1 - half of a squared distance that had no digits of them.
    assert np.abs(old_angles(np.vstack([x, trusted]))[-1, 6:-1] - 2).max() > 0.5
    for stage in ("", "clip(c=10.0) | ", "nnm(f=4) | "):
        result = aggregate(torch.from_numpy(x), f"{stage}fltrust", trusted=torch.from_numpy(trusted))
        if not stage.startswith("nnm"):
            assert result.weights[6:].tolist() == [0.0] * 4
        assert float(result.value @ torch.from_numpy(trusted)) > 0.9
    assert result.outcome is Outcome.OK


@pytest.mark.parametrize("text", ["clustering", "clipped_clustering", "flame"])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6])
def test_a_minority_of_any_length_does_not_join_the_majority(text, size):
    rng = np.random.default_rng(1)
    direction = rng.standard_normal(30)
    x = direction + 0.1 * rng.standard_normal((10, 30))
    x[:4] *= -size
    kept = aggregate(torch.from_numpy(x), text).stats["kept"]
    assert kept == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("size", [1e-14, 1e-12, 1e-6, 1.0])
def test_sybils_of_any_length_are_sybils(size):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((10, 60))
    x[:4] = np.array([1, size, size**2, 3])[:, None] * x[0]
    scores = aggregate(torch.from_numpy(x), "foolsgold").stats["scores"]
    assert max(scores[:4]) == 0
    assert min(scores[4:]) > 0.5


@pytest.mark.parametrize("size", [1e-30, 1e-13, 1.0, 1e9])
def test_lfighter_weighs_angles_not_lengths(size):
    # Three heads turned around at a length of their own, seven that agree.
    rng = np.random.default_rng(3)
    head = rng.standard_normal((3, 6))
    x = np.array([(head + 0.05 * rng.standard_normal((3, 6))).ravel() for _ in range(10)])
    x[:3] *= -1
    result = aggregate(torch.from_numpy(size * x), "lfighter", layout=[("head", (3, 6))])
    assert result.stats["kept"] == [3, 4, 5, 6, 7, 8, 9]
    again = aggregate(torch.from_numpy(x), "lfighter", layout=[("head", (3, 6))])
    np.testing.assert_allclose(sorted(result.stats["scores"]), sorted(again.stats["scores"]), rtol=1e-9)


def old_embedded(x):
    """Rows in few coordinates, from the eigenvectors of inner products about the first of them."""
    points = np.vstack([x, np.zeros(x.shape[1])]) - x[0]
    lengths = np.linalg.norm(points, axis=1)
    units = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values, vectors = np.linalg.eigh(units[:, None] * (points @ points.T) * units)
    placed = lengths[:, None] * vectors * np.sqrt(np.maximum(values, 0))
    return (placed - placed[-1])[:-1]


def test_an_attack_tries_its_strength_on_rows_of_the_right_length():
    x = lengths_of_many_sizes([1, 1, 1e-6, 1e-10, 1e8, 1])
    norms = np.linalg.norm(x, axis=1)
    assert np.abs(np.linalg.norm(old_embedded(x), axis=1) / norms - 1).max() > 0.1
    np.testing.assert_allclose(Rows.from_tensor(torch.from_numpy(x)).embedded().norms, norms, rtol=1e-12)


@few
@given(rough_rows(kinds=("scaled rows", "near rows", "multiples", "ties", "far rows", "plain")))
def test_an_embedded_copy_keeps_lengths_angles_and_distances(x):
    points = Rows.from_tensor(torch.from_numpy(x))
    copy = points.embedded()
    np.testing.assert_allclose(copy.norms, points.norms, rtol=1e-12)
    np.testing.assert_allclose(copy.cosine_distances, points.cosine_distances, rtol=1e-6, atol=1e-12)
    placed, norms = copy.slice(0, copy.d).numpy(), points.norms.numpy()
    for row, place, norm in zip(x, placed, norms, strict=True):
        error = np.abs(np.linalg.norm(placed - place, axis=1) - np.linalg.norm(x - row, axis=1))
        assert (error <= 1e-13 * (norms + norm)).all()


# -- protections rounded down to nothing ---------------------------------------------------------------------


def test_a_fraction_that_comes_to_nobody_does_not_fit():
    # Before: floor(0.2 * 3) = 0 of three clients were dropped, and nothing was said.
    x = column(1, 2, 1e9)
    assert float(x.sort(dim=0).values.mean()) > 1e8
    with pytest.raises(InfeasibleError, match=r"got n=3, fraction=0.2: ask at least 5 clients, or give f"):
        aggregate(x, "trimmed_mean(fraction=0.2)")
    with pytest.raises(InfeasibleError, match=r"got n=3, f=1, c=0.5: raise c to 1"):
        aggregate(x, "dnc(f=1, c=0.5)")
    assert float(aggregate(x, "trimmed_mean(fraction=0.4)").value) == 2
    assert float(aggregate(x, "trimmed_mean(fraction=0.0)").value) > 1e8  # asked for


def test_a_strategy_asks_as_many_as_its_fraction_needs():
    strategy = TrimmedMean(fraction=0.2, fraction_train=0.3)
    assert strategy.min_train_nodes == 5
    assert strategy.rule.declared(5) == 1
    with pytest.raises(ConfigurationError, match=r"got n=3, fraction=0.2: ask at least 5 clients"):
        RunConfig(clients=10, fraction_train=0.3, defence="trimmed_mean(fraction=0.2)")


def test_metrics_of_too_few_replies_are_left_out_and_not_untrimmed():
    replies = [RecordDict({"m": MetricRecord({"num-examples": 1, "loss": x})}) for x in (0.1, 1e9)]
    assert dict(trimmed_metrics(1)(replies, "num-examples")) == {}
