"""Tail averaging: the mean of the last half of the local iterates, in both engines to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from flwr_robust import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import torch_generator
from flwr_robust.studies.flower_run import FlowerRuns
from flwr_robust.tasks import Tail
from tests.apps import run
from tests.runs.test_fast import both, untimed

LOCAL = {"message": "parameters", "server_learning_rate": 1.0, "tail_averaging": True, "local_steps": 5}

CASES = {
    "parameters": {"defence": "geometric_median(f=2, iterations=3, weighted=True)", "partition": "dirichlet(beta=1.0)"},
    "delta": {"message": "delta", "local_steps": 4, "model": "mlp", "defence": "trimmed_mean(f=2)"},
    "cnn": {"model": "cnn", "rounds": 2, "batch_size": 4, "clients": 3, "local_steps": 3},
    "poisoned": {"attack": "pixel_noise(p=0.5, scale=2.0)", "attackers": 2, "weight_decay": 0.01},
    "inverted": {"attack": "pixel_invert(per='batch', p=0.5)", "attackers": 2, "fraction_train": 0.5},
}


@given(some.integers(1, 12), some.integers(0, 99))
def test_it_is_the_mean_of_the_last_half(steps, seed):
    rng = np.random.default_rng(seed)
    iterates = rng.standard_normal((steps, 7)).astype(np.float32)
    tail, model = Tail(steps), torch.zeros(7)
    for iterate in iterates:
        model.copy_(torch.from_numpy(iterate))
        tail.see([model[:3], model[3:].view(2, 2)])
    last = iterates[steps - math.ceil(steps / 2) :]
    tail.write([model[:3], model[3:].view(2, 2)])
    np.testing.assert_array_equal(model, (last.astype(np.float64).sum(0) / len(last)).astype(np.float32))
    if steps > 2:
        assert not np.array_equal(model, iterates[-1])
        assert not np.array_equal(model, iterates.astype(np.float64).mean(0).astype(np.float32))


def naive_run(config, tail):
    """FedAvg on softmax regression in float64, on the batches that the seeds say."""
    task = config.data_set
    w, b = (array.astype(np.float64) for array in config.learner().arrays())
    for at in range(1, config.rounds + 1):
        results = []
        for client, held in enumerate(config.samples):
            draw = torch_generator(config.seed, "batch", client, at)
            u, v, iterates = w.copy(), b.copy(), []
            for _ in range(config.local_steps):
                picked = held[torch.randint(len(held), (config.batch_size,), generator=draw).numpy()]
                x = task.x_train[picked].double().flatten(1).numpy() * task.scale + task.shift
                scores = x @ u.T + v
                p = np.exp(scores - scores.max(1, keepdims=True))
                error = p / p.sum(1, keepdims=True) - np.eye(task.classes)[task.y_train[picked].numpy()]
                u = u - config.local_learning_rate * error.T @ x / len(x)
                v = v - config.local_learning_rate * error.mean(0)
                iterates.append((u, v))
            kept = iterates[-tail:]
            results.append([sum(part) / tail for part in zip(*kept, strict=True)])
        w, b = (sum(part) / len(results) for part in zip(*results, strict=True))
    return w, b


@pytest.mark.parametrize(("steps", "tail"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_run_is_the_transcription(tmp_path, steps, tail):
    keys = {**LOCAL, "rounds": 4, "evaluate_every": 4, "clients": 4, "local_steps": steps}
    _, model = run(tmp_path, **keys)
    w, b = naive_run(RunConfig.from_mapping(keys), tail)
    np.testing.assert_allclose(model["1.weight"], w, atol=2e-6)
    np.testing.assert_allclose(model["1.bias"], b, atol=2e-6)
    other, _ = naive_run(RunConfig.from_mapping(keys), tail + 1 if steps > tail else tail)
    assert steps == tail or np.abs(other - w).max() > 1e-4
    _, plain = run(tmp_path, **{**keys, "tail_averaging": False})
    assert np.array_equal(plain["1.weight"], model["1.weight"]) == (tail == 1)


@pytest.mark.parametrize("name", CASES)
def test_the_fast_engine_gives_the_same_bits(tmp_path, name):
    keys = {**LOCAL, "rounds": 4, **CASES[name]}
    (slow, expected), (quick, found) = both(tmp_path, **keys)
    assert untimed(quick) == untimed(slow)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    (_, _), (_, plain) = both(tmp_path, **{**keys, "tail_averaging": False})
    assert any(found[key].tobytes() != plain[key].tobytes() for key in found)


@pytest.mark.parametrize("message", ["gradient", "momentum"])
def test_gradients_have_no_tail(message):
    with pytest.raises(
        ConfigurationError, match=r"tail-averaging=True changes nothing with .*, only with 'delta' or 'parameters'"
    ):
        RunConfig(message=message, tail_averaging=True)
    with pytest.raises(ConfigurationError, match="tail-averaging must be true or false; got tail-averaging=1"):
        RunConfig(message="delta", tail_averaging=1)


@pytest.mark.ray
def test_ray_gives_the_same_bits(tmp_path):
    keys = {**LOCAL, "rounds": 3, "clients": 4, "defence": "geometric_median(iterations=3)"}
    with FlowerRuns() as flower:
        on_ray = flower.run(RunConfig.from_mapping(keys))
    assert on_ray["model_sha256"] == run(tmp_path, **keys)[0]["model_sha256"]
