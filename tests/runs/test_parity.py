"""One configuration and seed give one model: run to run, engine to engine, and against a numpy transcription."""

import numpy as np
import pytest

from flwr_robust.runs.config import RunConfig
from flwr_robust.seeds import torch_generator
from flwr_robust.studies.flower_run import FlowerRuns
from tests import algorithm1
from tests.apps import run

POISONED = {"attack": "label_flip()", "attackers": 1, "partition": "by_label", "weight_decay": 0.01}
MIMICKED = {"attack": "mimic(warmup=3)", "attackers": 3, "redraw": True, "partition": "by_label"}
RULES = {"mean()": algorithm1.mean, "trimmed_mean(f=1)": algorithm1.trimmed_mean, "faba(f=1)": algorithm1.faba}


def transcription(config, rule, poisoned):
    """Run the transcription from the same start on the same batches, which are read off the seeds."""
    import torch

    task = config.data_set
    rows = [torch.from_numpy(samples) for samples in config.samples]
    batches = []
    for at in range(1, config.rounds + 1):
        batch = []
        for worker, held in enumerate(rows):
            draw = torch_generator(config.seed, "batch", worker, at)
            picked = held[torch.randint(len(held), (config.batch_size,), generator=draw)]
            x = task.x_train[picked].double().flatten(1).numpy() * task.scale + task.shift
            batch.append((x, task.y_train[picked].numpy()))
        batches.append(batch)
    w, b = (a.astype(np.float64) for a in config.learner().arrays())
    return algorithm1.train(
        w, b, batches, poisoned, task.classes, config.alpha, config.server_learning_rate, config.weight_decay, rule
    )


@pytest.mark.parametrize("defence", RULES)
def test_in_process_equals_the_transcription(tmp_path, defence):
    keys = {**POISONED, "defence": defence, "rounds": 40, "evaluate_every": 40}
    _, model = run(tmp_path, **keys)
    config = RunConfig.from_mapping(keys)
    w, b = transcription(config, RULES[defence], poisoned={9})
    np.testing.assert_allclose(model["1.weight"], w, atol=2e-6)
    np.testing.assert_allclose(model["1.bias"], b, atol=2e-6)
    # And it is no accident: without the poison the transcription ends elsewhere.
    honest, _ = transcription(config, RULES[defence], poisoned=set())
    assert np.abs(honest - w).max() > 1e-3


@pytest.mark.parametrize("attacked", [POISONED, MIMICKED], ids=lambda keys: keys["attack"])
def test_runs_repeat_to_the_bit_and_seeds_differ(tmp_path, attacked):
    keys = {**attacked, "defence": "krum(f=1)", "partition": "dirichlet(beta=1.0)", "rounds": 15}
    first, model = run(tmp_path, **keys)
    again, other = run(tmp_path, **keys)
    assert first["model_sha256"] == again["model_sha256"]
    assert all(np.array_equal(model[name], other[name]) for name in model)
    assert run(tmp_path, **keys, seed=1)[0]["model_sha256"] != first["model_sha256"]


@pytest.mark.parametrize("message", ["parameters", "delta"])
def test_parameters_and_delta_are_two_ways_to_say_one_thing(tmp_path, message):
    keys = {"message": message, "local_steps": 3, "server_learning_rate": 1.0, "rounds": 10, "defence": "median()"}
    _, model = run(tmp_path, **keys)
    _, other = run(tmp_path, **{**keys, "message": "delta"})
    np.testing.assert_allclose(model["1.weight"], other["1.weight"], atol=1e-6)


@pytest.mark.ray
def test_ray_gives_the_same_model_to_the_bit(tmp_path):
    cases = [
        {**POISONED, "defence": "centered_clipping(tau=0.3)", "rounds": 6},
        {"attack": "dynamic_label_flip(p=0.5)", "attackers": 2, "defence": "trimmed_mean(f=2)", "rounds": 4},
        # Half of the clients each round: the sample must not depend on the node ids that Ray draws.
        {**POISONED, "defence": "faba(f=1)", "fraction_train": 0.5, "rounds": 4, "message": "delta", "local_steps": 2},
        # Attacks on messages: one with a memory and other attackers every round, one that looks at the rule's state,
        # and replies that turn into errors.
        {**MIMICKED, "defence": "median()", "rounds": 5},
        {
            "attack": "optimised(base='ipm(epsilon=1.0)')",
            "knowledge": "defence",
            "attackers": 2,
            "defence": "centered_clipping(tau=0.3)",
            "rounds": 3,
        },
        {"attack": "crash(p=0.5, error=True)", "attackers": 3, "defence": "median()", "rounds": 4},
    ]
    with FlowerRuns() as flower:
        for keys in cases:
            on_ray = flower.run(RunConfig.from_mapping(keys))
            in_process, _ = run(tmp_path, **keys)
            assert on_ray["model_sha256"] == in_process["model_sha256"], keys
            assert on_ray["curve"] == in_process["curve"]
            for key in ("mean_weights", "attackers_weight", "refused", "missing"):
                assert on_ray[key] == in_process[key]
            assert on_ray["outcomes"]["OK"] == keys["rounds"]


@pytest.mark.ray
def test_ray_gives_each_client_its_gpu():
    # Ray can be told of a GPU that does not exist; what counts is which one each client process is shown.
    with FlowerRuns(clients_gpus=0.5, federation={"init-args-num-gpus": 1}) as flower:
        document = flower.run(RunConfig(clients=3, rounds=1, device="cpu"))
    assert document["visible_gpus"] == {"0": "0", "1": "0", "2": "0"}
