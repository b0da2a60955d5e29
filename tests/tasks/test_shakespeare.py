"""The roles of a play, and their samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_robust.runs.config import RunConfig
from flwr_robust.tasks import build_model, content_digest, load_task, task_of
from flwr_robust.tasks.data import ARCHIVES, data_folder
from flwr_robust.tasks.shakespeare import ARCHIVE, read_roles, samples_of

PLAY = """
THE PLAY

PERSONS REPRESENTED.

A KING.
A FOOL, his servant.

ACT I.

SCENE I. A hall in
the castle.

[Enter the KING
and the FOOL.]

KING.
Where is my daughter?
{where}

FOOL.
Nuncle, [Aside] nowhere.

[Exit.]

KING.
Farewell.

So be it.

SCENE II. Another room.

A trumpet sounds.

FIRST LORD, SECOND LORD.
Hail.
"""


def test_the_roles_of_a_play():
    found = read_roles(PLAY.replace("\n", "\r\n"))
    assert found == {
        "KING": ["Where is my daughter? {where}", "Farewell. So be it."],
        "FOOL": ["Nuncle,  nowhere."],
        "FIRST LORD, SECOND LORD": ["Hail."],
    }


def test_names_that_are_not_written_in_capitals():
    text = PLAY.replace("KING.\nW", "Ham.\nW").replace("KING.\nF", "Ham.\nF").replace("FOOL.", "Lady Macduff.")
    assert list(read_roles(text.replace("FIRST LORD, SECOND LORD.", "First Lord."))) == [
        "HAM",
        "LADY MACDUFF",
        "FIRST LORD",
    ]


@pytest.mark.parametrize("text", ["", "A sonnet.\n\nWho lead thee in their riot\neven there."])
def test_what_is_no_play_has_no_roles(text):
    assert read_roles(text) == {}


def test_samples_are_windows_in_the_order_of_time():
    draw = np.random.default_rng(0)
    texts = {name: "".join(draw.choice(list("abcde "), size)) for name, size in (("a", 1080), ("b", 130), ("c", 129))}
    texts["a"] = texts["a"][:200] + "#" + texts["a"][201:]
    found = samples_of(texts)
    alphabet = sorted(set(found["y_train"]))
    assert alphabet == list(" abcde")  # without the rare character
    assert np.bincount(found["owners"]).tolist() == [800, 40]  # c has too few
    assert found["test_owners"].tolist() == [0, 0, 1]
    said = [
        "".join(alphabet[token] for token in x) + y for x, y in zip(found["x_train"], found["y_train"], strict=True)
    ]
    spoken = texts["a"].replace("#", " ")
    assert said[:800] == [spoken[j : j + 81] for j in range(800)]
    assert said[800:] == [texts["b"][j : j + 81] for j in range(40)]
    asked = ["".join(alphabet[token] for token in x) + y for x, y in zip(found["x_test"], found["y_test"], strict=True)]
    assert asked == [spoken[800:881], spoken[900:981], texts["b"][40:121]]
    task = task_of("play", **found, tokens=True)
    assert (task.classes, task.vocabulary, task.labels) == (6, 6, tuple(" abcde"))


real = pytest.mark.skipif(not (data_folder() / ARCHIVES["shakespeare"]).is_file(), reason="needs the package's file")


@real
def test_the_plays_are_as_documented():
    task = load_task("shakespeare")
    counts = torch.bincount(task.owners)
    assert (len(counts), len(task.y_train), len(task.y_test)) == (1016, 3305129, 8812)
    assert (torch.bincount(task.test_owners, minlength=1016) > 0).all()  # every role is asked
    assert (task.shape, task.classes, task.vocabulary, task.x_train.dtype) == ((80,), 65, 65, torch.uint8)
    assert (round(float(counts.double().mean())), round(float(counts.double().std(correction=0)))) == (3253, 4994)
    assert task.digest == ARCHIVE.sha256 == content_digest("shakespeare")
    config = RunConfig(task="shakespeare", model="char_gru", partition="natural(largest=True)", clients=3, batch_size=4)
    assert [len(part) for part in config.samples] == [50532, 35605, 34008]  # Hamlet, Iago, Henry V
    first = "".join(task.labels[token] for token in task.x_train[config.samples[0][0]])
    assert first.startswith("A little more than kin, and less than kind!")


@pytest.mark.parametrize("model", ["char_gru", "char_lstm"])
def test_personal_arrays_of_a_model_of_characters_are_known_without_the_data(model, tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_ROBUST_DATA", str(tmp_path))
    before = torch.get_rng_state()
    split = RunConfig(task="shakespeare", model=model, message="parameters", personal="head.*").split
    assert torch.equal(torch.get_rng_state(), before)
    names = list(build_model(model, (80,), 65, 1, 65).state_dict())
    assert [names[place] for place in split.personal] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(("model", "parameters"), [("char_gru", 61897), ("char_lstm", 815945)])
def test_the_models_of_characters(model, parameters):
    from flwr_robust import ConfigurationError

    built = build_model(model, (80,), 65, 1, 65)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    again, other = build_model(model, (80,), 65, 1, 65), build_model(model, (80,), 65, 2, 65)
    assert torch.equal(built.head.weight, again.head.weight)
    assert not torch.equal(built.head.weight, other.head.weight)
    with pytest.raises(ConfigurationError, match=f"model {model} embeds token numbers, and the task's inputs are real"):
        RunConfig(model=model).learner()
