"""The studies' clients on the digits: their messages by hand, their poison, their draws.

With batching="consecutive" and as many samples per batch as a client holds, every step sees all of its samples,
wherever the draw starts; so the gradient is known without knowing the draw, and is computed here in float64 numpy.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from sklearn.metrics import balanced_accuracy_score

from flwr_robust import ConfigurationError
from flwr_robust.app import client as client_app
from flwr_robust.app.numpy_clients import HonestClient, Poisoner
from flwr_robust.attacks.data import Backdoor, DynamicLabelFlip, LabelFlip, RandomLabel, TargetedFlip
from flwr_robust.flower import InProcessGrid
from flwr_robust.runs.config import RunConfig
from flwr_robust.tasks import TARGETS
from tests.flower_helpers import FIRST, record, values

HELD = 721  # 1442 training samples over two clients
NAMES = ["1.weight", "1.bias"]


run_config = partial(RunConfig, device="cpu")


def settings(**changes):
    """Return a run of two clients whose every step sees all samples of a client."""
    given = {"clients": 2, "batching": "consecutive", "batch_size": HELD, "message": "gradient"}
    alpha = {"alpha": 0.25} if changes.get("message") == "momentum" else {}
    return run_config(**{**given, **alpha, **changes})


def steps_of(message, steps):
    """Return the key of local steps for messages whose clients take any."""
    return {"local_steps": steps} if message in ("delta", "parameters") else {}


def model(seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(s)).astype(np.float32) for s in ((10, 64), (10,))]


def samples(config, client):
    """Return a client's inputs (b, 64) and labels, float64."""
    picked = config.samples[client]
    x = config.data_set.x_train.numpy()[picked].reshape(len(picked), -1) / 16
    return x.astype(np.float64), config.data_set.y_train.numpy()[picked]


def scores(parameters, x):
    weight, bias = (p.astype(np.float64) for p in parameters)
    return x @ weight.T + bias


def by_hand(parameters, x, y, decay=0.0):
    """Return the gradient of the mean cross-entropy of softmax regression plus decay times the parameters."""
    s = scores(parameters, x)
    p = np.exp(s - s.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(10)[y]) / len(y)
    return [error.T @ x + decay * parameters[0], error.sum(0) + decay * parameters[1]]


def fit(client, parameters=None, server_round=1):
    arrays, count, metrics = client.fit(model() if parameters is None else parameters, {"server-round": server_round})
    assert metrics == {}
    assert count == len(client.samples)
    return arrays


def honest(config=None, client=0, kind=HonestClient):
    return kind(settings() if config is None else config, client, RecordDict())


def poisoner(attack, config=None, client=0, kind=Poisoner, **changes):
    """Return a client of a run in which everybody attacks."""
    config = settings() if config is None else config
    poisoned = dataclasses.replace(config, attack=str(attack), **{"attackers": config.clients, **changes})
    return kind(poisoned, client, RecordDict())


def same(first, second):
    return len(first) == len(second) and all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def close(found, expected, tolerance=1e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4)


# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("client", [0, 1])
def test_a_gradient_is_that_of_the_clients_samples(client, decay):
    config = settings(weight_decay=decay)
    found = fit(honest(config, client))
    close(found, by_hand(model(), *samples(config, client), decay))
    assert [(g.shape, g.dtype) for g in found] == [((10, 64), np.float32), ((10,), np.float32)]
    # The other client's samples give another gradient, by far more than the tolerance.
    assert np.abs(found[0] - by_hand(model(), *samples(config, 1 - client), decay)[0]).max() > 1e-3


def test_a_gradient_is_taken_at_the_model_that_was_sent():
    client = honest()
    for seed in (0, 1):
        close(fit(client, model(seed)), by_hand(model(seed), *samples(settings(), 0)))


@pytest.mark.parametrize("message", ["momentum", "gradient", "delta", "parameters"])
def test_a_message_has_the_models_sizes_and_types(message):
    config = run_config(clients=3, model="mlp", message=message, batch_size=8, **steps_of(message, 2))
    sent = config.learner().arrays()
    before = [p.copy() for p in sent]
    found = fit(HonestClient(config, 1, RecordDict()), sent)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in sent]
    assert all(np.isfinite(a).all() and a.any() for a in found)
    assert same(sent, before)  # what was received was only read


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_the_momentum_follows_its_recursion_over_three_rounds(alpha):
    # Through the app, with the state in the node's own context.
    config = settings(message="momentum", alpha=alpha)
    grid = InProcessGrid(client_app.app, 2, config.to_mapping())
    momentum = [None, None]
    for server_round in (1, 2, 3):
        parameters = model(server_round)
        content = RecordDict(
            {
                "arrays": record(dict(zip(NAMES, parameters, strict=True))),
                "config": ConfigRecord({"server-round": server_round}),
            }
        )
        replies = list(grid.send_and_receive([Message(content, FIRST + i, "train") for i in (0, 1)]))
        for client, reply in enumerate(replies):
            gradient = by_hand(parameters, *samples(config, client))
            if momentum[client] is None:
                momentum[client] = gradient
            else:
                momentum[client] = [
                    (1 - alpha) * m + alpha * g for m, g in zip(momentum[client], gradient, strict=True)
                ]
            close(values(reply.content["arrays"]).values(), momentum[client])
            held = values(grid.contexts[FIRST + client].state["momentum"])["flat"]
            close([held], [np.concatenate([m.ravel() for m in momentum[client]])])
            assert reply.content["metrics"]["num-examples"] == HELD
            assert reply.content["metrics"]["partition-id"] == client
    # The third message is neither the third gradient nor the first momentum.
    assert np.abs(momentum[0][0] - gradient[0]).max() > 1e-3


def test_the_first_momentum_is_the_gradient():
    assert same(fit(honest(settings(message="momentum"))), fit(honest()))


def test_with_alpha_1_the_momentum_is_the_plain_gradient():
    plain, following = honest(), honest(settings(message="momentum", alpha=1.0))
    other = honest(settings(message="momentum", alpha=0.5))
    for server_round in (1, 2, 3):
        gradient = fit(plain, model(server_round), server_round)
        close(fit(following, model(server_round), server_round), gradient, 1e-9)
        slower = fit(other, model(server_round), server_round)
    assert np.abs(slower[0] - gradient[0]).max() > 1e-3
    assert "momentum" not in plain.state  # gradients leave nothing behind


def test_a_new_client_object_goes_on_where_the_state_stands():
    config, state = settings(message="momentum"), RecordDict()
    fit(HonestClient(config, 0, state))
    resumed = fit(HonestClient(config, 0, state), model(1), 2)
    close(
        resumed,
        [
            0.75 * a + 0.25 * b
            for a, b in zip(by_hand(model(), *samples(config, 0)), by_hand(model(1), *samples(config, 0)), strict=True)
        ],
    )
    assert not same(resumed, fit(HonestClient(config, 0, RecordDict()), model(1), 2))


@pytest.mark.parametrize("steps", [1, 3])
def test_parameters_are_those_after_local_steps(steps):
    config = settings(message="parameters", local_steps=steps, local_learning_rate=0.5, weight_decay=0.01)
    expected = [p.astype(np.float64) for p in model()]
    for _ in range(steps):
        gradient = by_hand(expected, *samples(config, 0), 0.01)
        expected = [p - 0.5 * g for p, g in zip(expected, gradient, strict=True)]
    found = fit(honest(config))
    close(found, expected)
    assert np.abs(found[0] - model()[0]).max() > 1e-2


@pytest.mark.parametrize("batching", ["random", "consecutive"])
@pytest.mark.parametrize("steps", [1, 4])
def test_delta_and_parameters_say_the_same(steps, batching):
    options = {"local_steps": steps, "batching": batching, "batch_size": 16, "local_learning_rate": 0.5}
    parameters = fit(honest(settings(message="parameters", **options)))
    delta = fit(honest(settings(message="delta", **options)))
    assert same(delta, [p - s for p, s in zip(parameters, model(), strict=True)])
    assert any(d.any() for d in delta)
    once = fit(honest(settings(message="delta", **{**options, "local_steps": steps + 1})))
    assert not same(delta, once)


# -- poison ------------------------------------------------------------------------------------------


class Seeing:
    """Mixed into a client: keeps the inputs, true labels and labels trained on of every step."""

    def batch(self, x, y):
        shown, found = super().batch(x, y)
        self.__dict__.setdefault("steps", []).append((shown.clone(), y.clone(), found.clone()))
        return shown, found


class SeeingHonest(Seeing, HonestClient):
    pass


class SeeingPoisoner(Seeing, Poisoner):
    pass


@pytest.mark.parametrize("message", ["gradient", "momentum", "delta", "parameters"])
def test_a_poisoner_is_an_honest_client_with_flipped_labels(message):
    config = settings(message=message, batching="random", batch_size=24)
    liar, twin, truthful = poisoner(LabelFlip(), config), honest(config), honest(config)
    twin.task = dataclasses.replace(twin.task, y_train=9 - twin.task.y_train)
    for server_round in (1, 2):
        poisoned = fit(liar, model(server_round), server_round)
        assert same(poisoned, fit(twin, model(server_round), server_round))
        clean = fit(truthful, model(server_round), server_round)
        assert np.abs(poisoned[0] - clean[0]).max() > 1e-3


def test_a_poisoned_gradient_by_hand():
    x, y = samples(settings(), 0)
    close(fit(poisoner(LabelFlip())), by_hand(model(), x, 9 - y))


ATTACKS = [
    LabelFlip(),
    LabelFlip(p=0.5),
    DynamicLabelFlip(),
    LabelFlip(p=0.5, per="batch"),
    RandomLabel(p=0.5),
    TargetedFlip(source=1, target=7),
    Backdoor(target=0),
    Backdoor(target=0, size=4, parts=4, p=1.0),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_stored_data_never_change(attack):
    config = settings(batching="random", batch_size=64)
    task = config.data_set
    before = task.x_train.clone(), task.y_train.clone()
    liar = poisoner(attack, config, kind=SeeingPoisoner)
    for server_round in range(1, 6):
        fit(liar, server_round=server_round)
    assert any((seen != true).any() for _, true, seen in liar.steps)
    assert torch.equal(task.x_train, before[0])
    assert torch.equal(task.y_train, before[1])
    assert task.y_train is liar.task.y_train


def test_dynamic_flips_go_to_the_least_likely_class_of_the_model_that_was_sent():
    config = settings(batching="random", batch_size=64)
    liar = poisoner(DynamicLabelFlip(), config, kind=SeeingPoisoner)
    flips = []
    for server_round in (1, 2):
        # The model of the first round must not be remembered in the second.
        parameters = model(server_round)
        fit(liar, parameters, server_round)
        x, true, seen = liar.steps[-1]
        expected = scores(parameters, x.numpy().reshape(len(x), -1).astype(np.float64)).argmin(1)
        assert seen.tolist() == expected.tolist()
        assert (seen != true).float().mean() > 0.5
        flips.append(scores(model(3 - server_round), x.numpy().reshape(len(x), -1)).argmin(1).tolist() != seen.tolist())
    assert all(flips)  # the other round's model would have flipped otherwise


def test_dynamic_flips_of_later_steps_still_use_the_model_that_was_sent():
    config = settings(message="delta", local_steps=3, local_learning_rate=5.0)
    liar = poisoner(DynamicLabelFlip(), config, kind=SeeingPoisoner)
    fit(liar)
    assert len(liar.steps) == 3
    for x, _, seen in liar.steps:
        assert seen.tolist() == scores(model(), x.numpy().reshape(len(x), -1).astype(np.float64)).argmin(1).tolist()


@pytest.mark.parametrize(
    "attack",
    [LabelFlip, DynamicLabelFlip, RandomLabel, partial(TargetedFlip, source=1, target=7), partial(Backdoor, target=0)],
)
@pytest.mark.parametrize("per", ["label", "batch"])
@pytest.mark.parametrize("message", ["gradient", "momentum", "parameters"])
def test_with_p_0_a_poisoner_is_honest_to_the_bit(attack, per, message):
    config = settings(message=message, batching="random", batch_size=60)
    for server_round in (1, 2):
        found = fit(poisoner(attack(p=0.0, per=per), config), model(server_round), server_round)
        assert same(found, fit(honest(config), model(server_round), server_round))
        assert not same(found, fit(poisoner(attack(p=1.0, per=per), config), model(server_round), server_round))


def test_with_p_0_a_poisoner_is_honest_over_several_local_steps():
    config = settings(message="delta", batching="random", batch_size=24, local_steps=3)
    assert same(fit(poisoner(LabelFlip(p=0.0), config)), fit(honest(config)))


def test_half_of_the_labels_are_flipped_with_p_one_half():
    config = settings(batching="random", batch_size=400)
    liar = poisoner(LabelFlip(p=0.5), config, kind=SeeingPoisoner)
    fit(liar)
    _, true, seen = liar.steps[0]
    share = float((seen != true).float().mean())
    assert 0.4 < share < 0.6  # four standard deviations are 0.1
    changed = seen != true
    assert torch.equal(seen[changed], 9 - true[changed])


def test_a_backdoored_gradient_by_hand():
    config = settings()
    x, _ = samples(config, 1)
    shown = x.copy().reshape(-1, 8, 8)
    shown[:, 5:, 5:] = 1
    found = fit(poisoner(Backdoor(target=3, p=1.0), client=1))
    close(found, by_hand(model(), shown.reshape(-1, 64), np.full(HELD, 3)))
    assert np.abs(found[0] - by_hand(model(), x, np.full(HELD, 3))[0]).max() > 1e-3


@pytest.mark.parametrize(("client", "row"), [(2, 6), (3, 7), (4, 6)])
def test_a_distributed_trigger_goes_by_the_rank_among_the_attackers(client, row):
    # Clients 2, 3 and 4 of five attack: the third starts again with the first part.
    config = settings(clients=5, batching="random", batch_size=50)
    attack = Backdoor(target=0, size=2, parts=2, p=1.0)
    seeing = poisoner(attack, config, client, kind=SeeingPoisoner, attackers=3)
    fit(seeing)
    (shown, _, _), own = seeing.steps[0], SeeingHonest(config, client, RecordDict())
    fit(own)
    expected = own.steps[0][0].clone()
    expected[..., row, 6:] = 1
    assert torch.equal(shown, expected)


@pytest.mark.parametrize("attack", [LabelFlip(scale=3.0), Backdoor(target=0, scale=3.0)], ids=str)
def test_a_scaled_message_is_a_multiple_of_the_unscaled(attack):
    once = dataclasses.replace(attack, scale=1.0)
    for message in ("gradient", "delta"):
        config = settings(message=message, batching="random", batch_size=24, **steps_of(message, 2))
        assert same(fit(poisoner(attack, config)), [np.float32(3) * a for a in fit(poisoner(once, config))])
    config = settings(message="parameters", local_steps=2)
    sent = model()
    update = [new - old for new, old in zip(fit(poisoner(once, config), sent), sent, strict=True)]
    found = fit(poisoner(attack, config), sent)
    close([new - old for new, old in zip(found, sent, strict=True)], [3 * u for u in update])
    assert [a.dtype for a in found] == [np.float32] * 2


def test_a_scaled_momentum_is_kept_unscaled():
    config = settings(message="momentum")
    scaled, plain = poisoner(LabelFlip(scale=3.0), config), poisoner(LabelFlip(), config)
    for server_round in (1, 2, 3):
        found, once = (fit(liar, model(server_round), server_round) for liar in (scaled, plain))
        assert same(found, [np.float32(3) * a for a in once])
        assert values(scaled.state["momentum"])["flat"].tobytes() == values(plain.state["momentum"])["flat"].tobytes()


# -- when --------------------------------------------------------------------------------------------


def attacked(config, attack, rounds=8):
    """Return, for every round, the clients whose message is not the honest one."""
    poisoned = dataclasses.replace(config, attack=attack, rounds=rounds)
    found = []
    for server_round in range(1, rounds + 1):
        liars = [client_app.client_fn(context(poisoned, client)) for client in range(config.clients)]
        found.append(
            [
                client
                for client, liar in enumerate(liars)
                if not same(
                    fit(liar, server_round=server_round), fit(honest(config, client), server_round=server_round)
                )
            ]
        )
    return found


@pytest.mark.parametrize("attack", ["label_flip()", "backdoor(target=0)", "random_label(scale=2.0)"])
def test_clients_attack_from_the_start_to_the_stop_and_are_honest_to_the_bit_otherwise(attack):
    config = settings(clients=4, attackers=2, attack=attack, batching="random", batch_size=24, message="delta")
    assert attacked(config, attack) == [[2, 3]] * 8
    assert attacked(dataclasses.replace(config, attack_start=3), attack) == [[]] * 2 + [[2, 3]] * 6
    assert attacked(dataclasses.replace(config, attack_stop=5), attack) == [[2, 3]] * 5 + [[]] * 3
    one = dataclasses.replace(config, attack_start=4, attack_stop=4)
    assert attacked(one, attack) == [[]] * 3 + [[2, 3]] + [[]] * 4


def test_redrawn_attackers_are_those_the_configuration_draws():
    config = settings(clients=6, attackers=2, attack="label_flip()", batching="random", batch_size=24, redraw=True)
    found = attacked(dataclasses.replace(config, attack_start=2), "label_flip()")
    assert found == [[], *(config.attackers_in(server_round) for server_round in range(2, 9))]
    assert all(len(liars) == 2 for liars in found[1:])
    assert len({tuple(liars) for liars in found[1:]}) > 2


# -- draws -------------------------------------------------------------------------------------------


def positions(client, step=-1):
    """Return which of its samples a step of the client saw, by comparing images."""
    x, true, _ = client.steps[step]
    own = client.task.inputs(client.task.x_train[torch.from_numpy(client.samples)])
    equal = (x[:, None] == own[None]).flatten(2).all(2)
    assert (equal.sum(1) == 1).all()  # no two images are the same
    found = equal.int().argmax(1)
    assert torch.equal(true, client.task.y_train[torch.from_numpy(client.samples)][found])
    return found.tolist()


def drawn(client=0, server_round=1, seed=0, batching="random", size=40, clients=20, **options):
    config = run_config(clients=clients, message="gradient", batching=batching, batch_size=size, seed=seed, **options)
    # Both hold the same number of samples, so that positions can be compared.
    config.__dict__["samples"] = [config.data_set.y_train.new_tensor(range(70)).numpy()] * clients
    seeing = SeeingHonest(config, client, RecordDict())
    fit(seeing, server_round=server_round)
    return positions(seeing)


@pytest.mark.parametrize("batching", ["random", "consecutive"])
def test_a_draw_belongs_to_client_round_and_seed(batching):
    first = drawn(batching=batching)
    assert drawn(batching=batching) == first
    assert drawn(client=1, batching=batching) != first
    assert drawn(server_round=2, batching=batching) != first
    assert drawn(seed=1, batching=batching) != first
    # Not the sum of client and round, say.
    assert drawn(client=1, server_round=1, batching=batching) != drawn(client=0, server_round=2, batching=batching)


def test_draws_do_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = drawn()
    torch.manual_seed(2)
    assert drawn() == first


def test_random_batches_are_drawn_with_replacement():
    found = [drawn(server_round=r, size=60) for r in range(1, 7)]
    assert all(len(batch) == 60 and len(set(batch)) < 55 for batch in found)  # about 40 different ones are expected
    assert len(set().union(*found)) > 65  # from all of the 70 samples


def test_consecutive_batches_are_runs_that_wrap():
    wrapped = 0
    for server_round in range(1, 7):
        found = drawn(server_round=server_round, batching="consecutive", size=40)
        assert found == [(found[0] + i) % 70 for i in range(40)]
        wrapped += 0 in found[1:]
    assert 0 < wrapped < 6  # some of these six runs wrap, some do not
    longer = drawn(batching="consecutive", size=100)
    assert longer == [(longer[0] + i) % 70 for i in range(100)]
    # Random batches are no such runs.
    other = drawn(size=40)
    assert other != [(other[0] + i) % 70 for i in range(40)]


def test_every_local_step_draws_its_own_batch():
    config = run_config(clients=20, message="delta", batch_size=30, local_steps=3)
    seeing = SeeingHonest(config, 3, RecordDict())
    fit(seeing)
    batches = {tuple(positions(seeing, step)) for step in range(3)}
    assert len(batches) == 3


# -- evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["honest", "poisoned"])
def test_clients_evaluate_on_their_own_samples_with_the_true_labels(kind):
    config = settings()
    client = honest(config, 1) if kind == "honest" else poisoner(LabelFlip(), config, 1)
    parameters = model(2)
    loss, count, metrics = client.evaluate(parameters, {})
    x, y = samples(config, 1)
    s = scores(parameters, x)
    log = s - s.max(1, keepdims=True)
    log -= np.log(np.exp(log).sum(1, keepdims=True))
    assert loss == pytest.approx(-log[np.arange(len(y)), y].mean(), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx((s.argmax(1) == y).mean(), abs=2 / len(y))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, s.argmax(1)), abs=0.02)
    assert set(metrics) == {*TARGETS["class"].metrics}
    assert count == HELD


def test_evaluation_and_training_do_not_disturb_each_other():
    client = honest()
    first = fit(client)
    client.evaluate(model(5), {})
    assert same(fit(client), first)


def test_clients_share_one_model_without_mixing_their_messages():
    config = settings(message="parameters", local_steps=2)
    alone = [fit(honest(config, i)) for i in (0, 1)]
    pair = [honest(config, i) for i in (0, 1)]
    assert pair[0].learner is pair[1].learner
    kept = fit(pair[0])
    other = fit(pair[1], model(1))
    assert same(kept, alone[0])  # not overwritten by the other client's work
    assert not same(other, alone[1])
    assert same(fit(pair[1]), alone[1])


# -- who is what -------------------------------------------------------------------------------------


def context(config, partition):
    return Context(
        1, 2, {"partition-id": partition, "num-partitions": config.clients}, RecordDict(), config.to_mapping()
    )


def test_the_last_clients_are_the_attackers():
    config = run_config(clients=5, attackers=2, attack="dynamic_label_flip(p=0.5)")
    found = [client_app.client_fn(context(config, i)) for i in range(5)]
    assert [type(client) for client in found] == [HonestClient] * 3 + [Poisoner] * 2
    assert found[4].config.attack_object == DynamicLabelFlip(p=0.5)
    assert [client.client for client in found] == [0, 1, 2, 3, 4]
    for none in (run_config(clients=5), run_config(clients=5, seed=1)):
        assert all(type(client_app.client_fn(context(none, i))) is HonestClient for i in range(5))


def test_when_attackers_are_redrawn_every_client_may_be_one():
    config = run_config(clients=5, attackers=2, attack="label_flip()", redraw=True)
    assert {type(client_app.client_fn(context(config, i))) for i in range(5)} == {Poisoner}


@pytest.mark.parametrize("attack", ["alie()", "sign_flip()", "crash()"])
def test_clients_know_nothing_of_attacks_on_messages(attack):
    for redraw in (False, True):
        config = run_config(clients=5, attackers=2, attack=attack, redraw=redraw)
        assert {type(client_app.client_fn(context(config, i))) for i in range(5)} == {HonestClient}


def test_more_nodes_than_clients_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ConfigurationError, match="partition-id must be below clients=5; got 5: set clients and num-super"
    ):
        client_app.client_fn(context(run_config(clients=5), 5))


def test_the_app_answers_every_kind_of_message():
    config = settings(message="parameters")
    grid = InProcessGrid(client_app.app, 2, config.to_mapping())
    content = RecordDict(
        {
            "arrays": record(dict(zip(NAMES, model(), strict=True))),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    train, evaluate, query = grid.send_and_receive(
        [Message(content, FIRST, kind) for kind in ("train", "evaluate", "query.identity")]
    )
    assert list(train.content["arrays"]) == NAMES
    assert 0 < evaluate.content["metrics"]["accuracy"] < 1
    assert evaluate.content["metrics"]["loss"] > 0
    assert isinstance(query.content["metrics"], MetricRecord)
    assert query.content["metrics"]["partition-id"] == 0
