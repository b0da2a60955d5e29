"""One suite for every attack and fault: the CASES of its file, and what all of them promise."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import numpy as np
import pytest
import torch

import flwr_robust.attacks.data
import flwr_robust.attacks.fault
import flwr_robust.attacks.message
from flwr_robust import Rows, parse
from flwr_robust.attacks.data.base import ClientView, DataCase, data_attacks
from flwr_robust.attacks.fault.base import FaultCase, faults
from flwr_robust.attacks.message.base import Knowledge, MessageCase, View, message_attacks
from flwr_robust.errors import KnowledgeError
from flwr_robust.seeds import torch_generator

MODULES = {
    module.name.rpartition(".")[2]: importlib.import_module(module.name)
    for package in (flwr_robust.attacks.data, flwr_robust.attacks.fault, flwr_robust.attacks.message)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
}
CASES = [case for module in MODULES.values() for case in getattr(module, "CASES", ())]
MESSAGE = [case for case in CASES if isinstance(case, MessageCase)]
DATA = [case for case in CASES if isinstance(case, DataCase)]
FAULT = [case for case in CASES if isinstance(case, FaultCase)]


def named(case):
    return case.fault if isinstance(case, FaultCase) else case.attack


def registry(case):
    kinds = {MessageCase: message_attacks, DataCase: data_attacks, FaultCase: faults}
    return kinds[type(case)]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (message_attacks, data_attacks, faults) for name in kind.members()]
)
def test_every_file_holds_cases_of_its_own(kind, name):
    module = MODULES[kind.get(name).__module__.rpartition(".")[2]]
    assert module.CASES
    assert all(registry(case) is kind and kind.parse(named(case)).name == name for case in module.CASES)
    assert all(case.source for case in module.CASES)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_text_and_attack_are_one(case):
    attack = registry(case).parse(named(case))
    assert registry(case).parse(str(attack)) == attack
    assert pickle.loads(pickle.dumps(attack)) == attack


# -- messages --------------------------------------------------------------------------------------


def rows(values) -> Rows:
    return Rows.from_tensor(torch.tensor(values, dtype=torch.float64))


def looked_at(case: MessageCase, granted: Knowledge, seed: int = 0) -> tuple[torch.Tensor, View]:
    """Return what an attack sends that may look at so much, and its view, whose inputs it must have left alone."""
    attack = message_attacks.parse(case.attack)
    honest, own = rows(case.honest), rows(case.own)
    before = [side.slice(0, side.d).clone() for side in (honest, own)]
    model = torch.tensor([1.0] * own.d, dtype=torch.float64)
    view = View(
        granted,
        own=own,
        honest=honest,
        known=honest.n,
        rule=parse(case.rule) if granted == Knowledge.DEFENCE else None,
        model=lambda: model,
    )
    crafted, _ = attack.craft(view, attack.init(), torch_generator(seed))
    assert all(torch.equal(side.slice(0, side.d), old) for side, old in zip((honest, own), before, strict=True))
    assert torch.equal(model, torch.ones_like(model))
    assert (crafted.n, crafted.d) == (own.n, own.d)
    return crafted.slice(0, crafted.d), view


@pytest.mark.parametrize("case", MESSAGE, ids=named)
def test_what_is_sent(case):
    crafted, view = looked_at(case, Knowledge.DEFENCE)
    expected = np.broadcast_to(np.array(case.crafted, float), (len(view.attackers), view.d))
    np.testing.assert_allclose(crafted.double().numpy(), expected, rtol=0, atol=case.slack)
    assert bool(torch.isfinite(crafted).all()) or case.attack in ("nan()", "inf()")


@pytest.mark.parametrize("case", MESSAGE, ids=named)
def test_a_seed_decides(case):
    first, again = (looked_at(case, Knowledge.DEFENCE, seed=7)[0] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", MESSAGE, ids=named)
def test_it_looks_at_what_it_declares_and_no_further(case):
    declared = message_attacks.parse(case.attack).knowledge
    enough, _ = looked_at(case, declared)
    torch.testing.assert_close(enough, looked_at(case, Knowledge.DEFENCE)[0], rtol=0, atol=0, equal_nan=True)
    if declared > Knowledge.NOTHING:  # and at no less: what it declares is the least
        with pytest.raises(KnowledgeError, match=f"needs knowledge='{declared.name.lower()}'"):
            looked_at(case, Knowledge(declared - 1))


# -- data ------------------------------------------------------------------------------------------


def trained_on(case: DataCase, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the inputs, and the inputs and labels in their place; what was given must be left alone."""
    x = torch.tensor(case.x if len(case.x) else [[0.0]] * len(case.labels), dtype=torch.float32)
    labels = torch.tensor(case.labels)
    scores = torch.tensor(case.scores, dtype=torch.float32)
    view = ClientView(case.classes, torch_generator(seed), scores=lambda: scores, span=case.span, rank=case.rank)
    kept = [each.clone() for each in (x, labels, scores)]
    inputs, wrong = data_attacks.parse(case.attack)(x, labels, view)
    assert all(torch.equal(each, old) for each, old in zip((x, labels, scores), kept, strict=True))
    assert wrong.data_ptr() != labels.data_ptr()
    return x, inputs, wrong


@pytest.mark.parametrize("case", DATA, ids=named)
def test_what_is_trained_on(case):
    x, inputs, labels = trained_on(case)
    assert labels.tolist() == list(case.becomes)
    expected = torch.tensor(case.shows, dtype=torch.float32) if len(case.shows) else x
    torch.testing.assert_close(inputs, expected, rtol=0, atol=case.slack)


@pytest.mark.parametrize("case", DATA, ids=named)
def test_a_seed_decides_the_data(case):
    first, again = trained_on(case, seed=7), trained_on(case, seed=7)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


# -- faults ----------------------------------------------------------------------------------------


def layers(server_round: int) -> dict[str, torch.Tensor]:
    t = float(server_round)
    return {"a": torch.tensor([t]), "b": torch.tensor([t, -t])}


def answered(case: FaultCase, seed: int = 0) -> list[dict[str, int] | str | None]:
    """Return the round of each array that a client answers; what it would have answered must be left alone."""
    fault = faults.parse(case.fault)
    state, answers = fault.init(), []
    for server_round in case.asked:
        would = layers(server_round)
        answer, state = fault.answer(would, server_round, state, torch_generator(seed, server_round))
        assert list(would) == ["a", "b"]
        assert all(torch.equal(would[name], tensor) for name, tensor in layers(server_round).items())
        if isinstance(answer, str) or answer is None:
            answers.append(answer)
            continue
        rounds = {name: int(tensor[0]) for name, tensor in answer.items()}
        assert all(torch.equal(tensor, layers(rounds[name])[name]) for name, tensor in answer.items())
        answers.append(rounds)
    return answers


@pytest.mark.parametrize("case", FAULT, ids=named)
def test_what_is_answered(case):
    assert answered(case) == [
        answer if answer is None or isinstance(answer, str) else dict(answer) for answer in case.answers
    ]
    assert answered(case, seed=7) == answered(case, seed=7)
