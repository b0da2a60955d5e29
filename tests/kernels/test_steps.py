"""What the fast engine does in few calls: to the bit what torch does in many, with numba or without."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_robust import Rows
from flwr_robust.core.pipeline import parse
from flwr_robust.kernels import pool, steps
from flwr_robust.protocol.momentum import momentum_step
from flwr_robust.protocol.rounds import batch_generator, batch_seeds, draw_batch, moved
from flwr_robust.runs.config import RunConfig
from flwr_robust.tasks import Grouped, load_task

compiled = pytest.mark.skipif(not steps.usable(), reason="needs numba")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["random", "consecutive"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**40), held=st.lists(st.integers(1, 70), min_size=1, max_size=5), size=st.integers(1, 90))
def test_draws_are_those_of_each_client_alone(batching, seed, held, size):
    counts, samples = np.array(held), generator().initial_seed() + np.arange(sum(held))[::-1].copy()
    first = np.cumsum(counts) - counts
    seeds = batch_seeds(seed, range(len(held)), 3)
    found = steps.draw_samples(seeds, counts, first, samples, 9, size, consecutive=batching == "consecutive")
    assert found.shape == (9, len(held), size)
    for client, count in enumerate(held):
        draw, own = batch_generator(seed, client, 3), samples[first[client] :][:count]
        for step in range(9):  # of random batches, more than the generator's 624 words at times
            assert found[step, client].tolist() == own[draw_batch(batching, size, count, draw).numpy()].tolist()


@compiled
def test_draws_go_on_past_the_generators_words_and_depend_on_the_seed():
    few = (np.array([1000, 1000]), np.zeros(2, np.int64), np.arange(1000), 3, 500)
    found = steps.draw_samples([5, 2**33 + 5], *few, consecutive=False)
    assert steps._draws_as_torch()
    expected = torch.randint(1000, (1500,), generator=generator(5)).view(3, 500).numpy()
    assert np.array_equal(found[:, 0], expected)
    assert np.array_equal(found[:, 1], expected)  # torch takes 32 bits of a seed
    assert not np.array_equal(steps.draw_samples([6, 7], *few, consecutive=False)[:, 0], expected)


def test_torch_draws_where_compiled_code_is_missing_or_draws_otherwise(monkeypatch):
    few = ([3, 4], np.array([50, 7]), np.array([0, 50]), np.arange(57), 2, 11)
    both = [steps.draw_samples(*few, consecutive=c) for c in (True, False)]
    monkeypatch.setattr(steps, "_draws_as_torch", lambda: False)
    monkeypatch.setattr(steps, "_kernels", None)
    assert all(np.array_equal(steps.draw_samples(*few, consecutive=c), both[not c]) for c in (True, False))


# -- samples -----------------------------------------------------------------------------------------

TYPES = {
    "images": (torch.arange(512).to(torch.uint8), 1 / 127.5, -1.0),
    "digits": (torch.arange(512).to(torch.uint8), 1 / 16, 0.0),
    "numbers": (torch.randn(512, generator=generator()), 1.0, 0.0),
    "scaled numbers": (torch.randn(512, generator=generator()), 0.3, 0.1),
    "integers": (torch.arange(-256, 256).to(torch.int16), 1.0, 0.0),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_samples_are_scaled_as_the_task_scales_them(monkeypatch, name, missing):
    stored, scale, shift = TYPES[name]
    if missing:
        monkeypatch.setattr(steps, "usable", lambda: False)
    x, y = stored.view(128, 2, 2), torch.randperm(128, generator=generator(1))
    task = load_task("digits")
    task = type(task)("other", x, y, x, y, 128, scale, shift)
    samples = steps.Samples(x, y, scale, shift, 4, 32)
    for seed in (2, 3):
        rows = torch.randperm(128, generator=generator(seed))
        samples.take(rows.numpy().reshape(4, 32))
        assert torch.equal(samples.inputs.view(128, 2, 2), task.inputs(x[rows]))
        assert torch.equal(samples.labels.view(128), y[rows])


# -- momenta -----------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize(("decay", "alpha"), [(0.01, 0.1), (0.0, 0.3), (1e-3, 1.0)])
@pytest.mark.parametrize("back", [False, True])
def test_momenta_are_stepped_as_a_client_steps_its_own(decay, alpha, back):
    draw = generator()
    kept, gradients, models = (torch.randn(n, 901, generator=draw) for n in (20, 12, 3))
    which, fresh = torch.randperm(20, generator=draw)[:12], torch.arange(12) % 4 == 0
    expected = gradients.clone()
    if decay:
        expected.view(3, 4, -1).add_((decay * models).unsqueeze(1))
    begun, before = expected.clone(), kept.clone()
    (expected,) = momentum_step([kept[which]], [expected], alpha)
    expected[fresh] = begun[fresh]
    untouched = gradients.clone()
    arrays = (kept.numpy(), which.numpy(), fresh.numpy(), gradients.numpy(), models.numpy())
    steps.step_momenta(*arrays, decay, alpha, back=back)
    assert torch.equal(kept[which], expected)
    others = [line for line in range(20) if line not in which.tolist()]
    assert torch.equal(kept[others], before[others])
    assert torch.equal(gradients, expected) == (back or alpha == 1)  # then nothing else is in a momentum
    if not back and not decay:
        assert torch.equal(gradients, untouched)


@pytest.mark.parametrize("keys", [{}, {"fraction_train": 0.5}, {"weight_decay": 0.1}])
def test_a_run_without_numba_is_the_same_to_the_bit(monkeypatch, keys):
    from flwr_robust.runs.fast import simulate

    config = RunConfig(rounds=4, evaluate_every=4, device="cpu", **keys)
    expected = simulate(config)["model_sha256"]
    monkeypatch.setattr(steps, "usable", lambda: False)
    monkeypatch.setattr(steps, "_kernels", None)
    monkeypatch.setattr(steps, "_draws_as_torch", lambda: False)
    assert simulate(config)["model_sha256"] == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_step_of_the_model_saturates(dtype):
    model, largest = np.array([1.0, -2.0, 0.0, 3.0], dtype), np.finfo(dtype).max
    step = np.array([0.1, -np.float64(largest), float(largest) / 2, 1e-9])
    if dtype != np.float64:
        step[2] = 1e300
    with np.errstate(over="ignore"):
        expected = (model.astype(np.float64) + step).clip(-float(largest), float(largest)).astype(dtype)
    found = moved(model, step)
    assert found.dtype == dtype
    assert np.array_equal(found, expected)
    assert np.isfinite(found).all()
    assert np.array_equal(moved(model, step * 0), model)


# -- pooling -----------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 28, 28), (2, 7, 9), (5, 6, 3)])
def test_squares_are_pooled_and_spread_as_torch_does_it(shape, rectified):
    images = torch.randint(-3, 4, shape, generator=generator()).float()  # many ties, and squares below zero
    images[0, :2, :2] = -1.0
    if rectified:
        images[1, 1, 0] = images[1, 0, 0] = torch.inf
    else:
        images[-1, :2, :2] = -torch.inf
    images.requires_grad_()
    squares = pool.pool_squares(images.detach(), rectified=rectified)
    assert squares is not None
    largest, places = squares
    before = images.relu() if rectified else images
    expected, where = torch.nn.functional.max_pool2d(before, 2, return_indices=True)
    assert torch.equal(largest, expected)
    passes = (largest > 0) if rectified else torch.ones_like(largest, dtype=torch.bool)
    assert torch.equal(places[passes].long(), where[passes])
    assert bool((places[~passes] < 0).all())
    assert bool(passes.all()) != rectified
    error = torch.randn(largest.shape, generator=generator())
    found = torch.full_like(images.detach(), 7.0)
    pool.spread_squares(error, places, found)
    assert torch.equal(found, torch.autograd.grad(expected, images, error)[0])


@compiled
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, 3), (2, 0, 1)])
def test_what_cannot_be_pooled_so_is_left_to_torch(monkeypatch, place):
    images = torch.ones(3, 4, 4)
    assert pool.pool_squares(images) is not None
    assert pool.pool_squares(images.double()) is None
    assert pool.pool_squares(images.mT[:, ::2]) is None
    images[place] = torch.nan
    assert pool.pool_squares(images) is None
    images[place] = 1.0
    monkeypatch.setattr(pool, "usable", lambda: False)
    assert pool.pool_squares(images) is None


# -- what is written once and read anew --------------------------------------------------------------


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn"])
@pytest.mark.parametrize("models", [1, 2, 6])
def test_a_walk_that_is_prepared_reads_its_memory_anew(model, models):
    config = RunConfig(model=model, weight_decay=0.1)
    learner, task = config.learner(), config.data_set
    walk, sizes = Grouped(learner), sum(p.numel() for p in learner.parameters)
    x, y = torch.empty(6, 5, *task.shape), torch.empty(6, 5, dtype=torch.int64)
    parameters = walk.models(models)
    found, expected = torch.empty(2, 6, sizes).unbind(0)
    calls = {decay: walk.prepared(parameters, x, y, walk.layers(found), decay=decay) for decay in (True, False)}
    seen = []
    for turn in range(2):
        x.copy_(task.inputs(task.x_train[30 * turn :][:30]).view_as(x))
        y.copy_(task.y_train[30 * turn :][:30].view_as(y))
        for parameter, start in zip(parameters, learner.parameters, strict=True):
            parameter.copy_(start.detach() * torch.arange(1 + turn, 1 + turn + models).view(-1, *[1] * start.dim()))
        for decay, call in calls.items():
            walk.gradients(parameters, x.clone(), y, walk.layers(expected), decay=decay)
            call()
            assert torch.equal(found, expected)
            seen.append(found.clone())
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_rows_are_read_anew_and_in_as_few_parts_as_they_lie_in():
    x, start = torch.randn(6, 90, generator=generator()), torch.ones(90)
    sizes = [40, 30, 20]
    stacks, starts = x.split(sizes, 1), start.split(sizes)
    apart = [stack.clone() for stack in stacks]
    for reference in (None, starts):
        rows = Rows.from_stacks(stacks, reference=reference)
        other = Rows.from_stacks(apart, reference=reference)
        assert rows.storage.joint is not None
        assert other.storage.joint is None
        for rule in ("mean()", "trimmed_mean(f=1)", "krum(f=1)", "centered_clipping(tau=1.0)"):
            (one, _), (two, _) = parse(rule)(rows.renewed()), parse(rule)(other.renewed())
            assert torch.equal(one.value, two.value)
            assert torch.equal(one.weights, two.weights)
        assert torch.equal(rows.spread(), other.spread())
    _ = rows.faulty, rows.gram
    x[2, 50] = torch.nan
    assert not bool(rows.faulty.any())  # it remembers
    assert rows.renewed().faulty.tolist() == [i == 2 for i in range(6)]
    assert rows.renewed([1.0] * 6).counts.tolist() == [1.0] * 6


ODD = {
    "in another order": lambda x: [x[:, 50:], x[:, :50]],
    "with a gap": lambda x: [x[:, :40], x[:, 50:]],
    "of two memories": lambda x: [x[:, :40], x[:, 40:].clone()],
    "of other rows": lambda x: [x[:, :40], x.flip(0)[:, 40:]],
    "of two types": lambda x: [x[:, :40], x[:, 40:].double()],
    "by columns": lambda x: [x.T.contiguous().T[:, :40], x.T.contiguous().T[:, 40:]],
}


@pytest.mark.parametrize("name", ODD)
def test_stacks_that_do_not_lie_side_by_side_are_not_taken_for_one(name):
    stacks = ODD[name](torch.randn(6, 90, generator=generator()))
    rows = Rows.from_stacks(stacks)
    assert rows.storage.joint is None
    torch.testing.assert_close(
        rows.mix(torch.full((6,), 1 / 6, dtype=torch.float64)), torch.cat([s.double() for s in stacks], 1).mean(0)
    )
    one = Rows.from_stacks([stacks[0], stacks[1]], reference=[torch.zeros(s.shape[1]) for s in stacks])
    assert one.storage.joint is None


def test_stacks_side_by_side_relative_to_what_is_not_are_not_taken_for_one():
    x = torch.randn(6, 90, generator=generator())
    assert Rows.from_stacks(x.split(45, 1), reference=[torch.zeros(45), torch.zeros(45)]).storage.joint is None
