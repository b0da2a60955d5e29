"""The world of a run: who poisons, who claims, who rewrites, and how the server steps."""

import dataclasses

import pytest
import torch

from flwr_robust.attacks.data.base import drawn_attackers
from flwr_robust.protocol.classes import ClassBuffer
from flwr_robust.protocol.momentum import HeavyBall
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.world import World, world_of
from flwr_robust.seeds import torch_generator

POISONED = RunConfig(attack="random_label()", attackers=3, attack_start=2, attack_stop=4, redraw=True, rounds=9)


def scores(client, x):
    return torch.full((len(x), 10), float(client))


def test_those_poison_who_attack_in_the_round_each_by_its_rank():
    world = World(POISONED)
    drawn = drawn_attackers(0, 3, 10, 3)
    found = world.poisons(range(10), 3, scores)
    assert list(found) == list(drawn)
    assert [poison.rank for poison in found.values()] == [0, 1, 2]
    assert list(world.poisons(drawn[1:], 3, scores)) == list(drawn[1:])
    assert world.poisons(drawn[1:], 3, scores)[drawn[1]].rank == 1  # among all attackers, asked or not
    assert world.poisons(range(10), 1, scores) == world.poisons(range(10), 5, scores) == {}
    assert World(RunConfig()).poisons(range(10), 3, scores) == {}
    x = torch.zeros(4, 1)
    assert [float(poison.scores(x)[0, 0]) for poison in found.values()] == [float(client) for client in drawn]


def test_a_poison_draws_from_its_round_and_its_purpose():
    world = World(POISONED)
    client = drawn_attackers(0, 3, 10, 3)[0]
    x, y = torch.zeros(30, 1), torch.zeros(30, dtype=torch.int64)

    def labels(*how):
        return world.poisons([client], 3, scores, *how)[client].batch(x, y)[1].tolist()

    assert labels() == labels(("labels", 3))
    assert labels() != labels(("labels", 4))
    assert labels() != labels(("diagnose-labels", 3))
    first = world.poisons([client], 3, scores)[client].generator
    assert first.initial_seed() == torch_generator(0, "labels", client, 3).initial_seed()


def test_only_attackers_on_messages_claim_and_have_an_adversary():
    rewriting = World(RunConfig(attack="alie()", attackers=3, attack_start=2, knowledge="defence", seed=5))
    assert [rewriting.claims(9, 2), rewriting.claims(9, 1), rewriting.claims(6, 2)] == [True, False, False]
    adversary = rewriting.adversary()
    assert (str(adversary.attack), adversary.known, adversary.seed) == ("alie()", None, 5)
    assert adversary.knowledge.name == "DEFENCE"
    failing = World(RunConfig(attack="crash()", attackers=3))
    assert not failing.claims(9, 2)
    assert str(failing.adversary().attack) == "crash()"
    assert (World(POISONED).adversary(), World(RunConfig()).adversary()) == (None, None)
    assert not World(POISONED).claims(drawn_attackers(0, 3, 10, 3)[0], 3)


@pytest.mark.parametrize("message", ["momentum", "parameters", "class_momentum"])
def test_the_server_steps_as_the_kind_of_message_says(message):
    own = {"momentum": {"alpha": 0.75}, "class_momentum": {"alpha": 0.75, "gamma": 0.125}}.get(message, {})
    config = RunConfig(message=message, server_learning_rate=0.25, **own)
    step = World(config).step
    assert (step.kind.name, step.learning_rate) == (message, 0.25)
    buffered = ClassBuffer(10, 0.125, 0.75)
    assert step.memory == (buffered if message == "class_momentum" else HeavyBall(0.0))
    if message == "class_momentum":
        slow = dataclasses.replace(config, buffer_fade=0.9)
        assert World(slow).step.memory == ClassBuffer(10, 0.125, 0.9)
    if message != "class_momentum":
        assert World(dataclasses.replace(config, server_momentum=0.5)).step.memory == HeavyBall(0.5)


def test_a_process_builds_the_world_of_a_configuration_once():
    first = world_of(RunConfig(seed=3))
    assert world_of(RunConfig(seed=3)) is first
    assert world_of(RunConfig(seed=4)) is not first
    held = first.classes_of(2)
    assert first.classes_of(2) is held
    assert sorted(torch.cat([*held.values()]).tolist()) == first.samples[2].tolist()
    assert all((first.task.y_train[places] == k).all() for k, places in held.items())
