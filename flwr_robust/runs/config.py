"""The configuration of a run, used by Flower's run config, a study's cells and Python callers.

Every key is a scalar, so that Flower's run config can hold it. Before any training, `RunConfig` checks every key, and
that the keys fit together. The table `KEYS` says once what each key means, which values it may have, and who reads it.
Checks, docs and tests are made from this table.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flwr_robust.attacks.data.base import DataAttack, drawn_attackers
from flwr_robust.attacks.fault.base import Fault
from flwr_robust.attacks.message.base import Knowledge, MessageAttack, check_grant, check_honest_left
from flwr_robust.attacks.registry import all_attacks
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule
from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    UnknownNameError,
)
from flwr_robust.protocol.classes import CLASS_BATCHES, SCHEDULES, check_desgd
from flwr_robust.protocol.messages import CLASS_MOMENTUM, MESSAGE_KINDS, MESSAGES, message_kind
from flwr_robust.tasks import (
    Learner,
    Split,
    Task,
    build_model,
    check_model_name,
    load_task,
    model_outline,
    model_sketch,
    split_arrays,
)
from flwr_robust.tasks.objective import LOSSES, Loss, Objective, load_loss, load_metrics
from flwr_robust.tasks.partition import partitions
from flwr_robust.tasks.targets import TARGETS
from flwr_robust.tasks.validation import hold_out

__all__ = [
    "ENGINES",
    "KEYS",
    "PLACES",
    "Key",
    "RunConfig",
    "UnreadKeyWarning",
    "keys_table",
    "pick_device",
]

ENGINES = ("apps", "fast")
"""The engines that run a configuration: Flower's apps (in process, on Ray or deployed), or `flwr_robust.runs.fast`."""

Scalar = str | int | float | bool
S = TypeVar("S", str, int, float, bool)
C = TypeVar("C", bound=type)

_OWNER = "configuration"  # every error message begins with it
_COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_ALL_MESSAGES = (*MESSAGES, CLASS_MOMENTUM)
_LOCAL = tuple(name for name, kind in MESSAGE_KINDS.items() if kind.local_steps)
_MOMENTA = tuple(name for name, kind in MESSAGE_KINDS.items() if kind.momentum)


class UnreadKeyWarning(UserWarning):
    """Warns that a key is set which has no effect on this run."""


@dataclass(frozen=True)
class Key:
    """One key of the run config.

    Attributes
    ----------
    name : str
        The name in a run config, with hyphens.
    default : str, int, float or bool
        The value if the key is not given; its type is the type of the key.
    doc : str
        What the key means.
    above, minimum, below, maximum : float, optional
        The bounds of a number; ``above`` and ``below`` are exclusive.
    zero : str
        What 0 means, if it is allowed in addition to the bounds.
    choices : collection of str
        The only values that a text may have; if empty, any text is allowed. It is read at every check.
    messages : tuple of str
        The kinds of message (what clients send) with which a run reads the key.
    needs : str
        Another key: as long as that one has its default, this key has no effect.
    engines : tuple of str
        The engines of `ENGINES` that read the key; the others refuse a run that sets it.
    place : bool
        Whether the key only says where files are and what is kept, without an effect on the result.
    result : bool
        Whether another value may change the result. False for keys that are only checked or only affect speed.
    tolerated : tuple of str
        The kinds of message with which a key that is set but not read is a warning; with all others it is an error.
    defaults : mapping of str to float
        The defaults by kind of message, if they differ; ``default`` then stands for all of them.
    """

    name: str
    default: Scalar
    doc: str
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    zero: str = ""
    choices: Collection[str] = ()
    messages: tuple[str, ...] = _ALL_MESSAGES
    needs: str = ""
    engines: tuple[str, ...] = ENGINES
    place: bool = False
    result: bool = True
    tolerated: tuple[str, ...] = ()
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def attribute(self) -> str:
        """The name of `RunConfig`'s attribute."""
        return self.name.replace("-", "_")

    @property
    def kind(self) -> type:
        """The type of the key's values."""
        return type(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values in words.

        Examples
        --------
        >>> KEYS["diagnose"].allowed, KEYS["server-momentum"].allowed
        ('an integer >= 2, or 0: off', 'a finite number >= 0 and < 1')
        """
        if self.kind is str:
            return f"one of {', '.join(self.choices)}" if self.choices else "text"
        if self.kind is bool:
            return "true or false"
        word = "an integer" if self.kind is int else "a finite number"
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in self._bounds().items())
        return f"{word} {bounds}{f', or 0: {self.zero}' if self.zero else ''}"

    def default_for(self, message: str) -> Scalar:
        """Return the default of the key for a kind of message."""
        return self.defaults.get(message, self.default)

    def checked(self, value: object) -> Scalar:
        """Check a value of the key, and return it as a plain Python value.

        Parameters
        ----------
        value : object
            The given value. Numbers of numpy are allowed, and integers are allowed for floats.

        Raises
        ------
        ConfigurationError
            If the value is of another type or outside the bounds.
        """
        plain = self._plain(value)
        if plain is None or not self._holds(plain):
            raise ConfigurationError(f"{_OWNER}: {self.name} must be {self.allowed}; got {self.name}={value!r}")
        return plain

    def _plain(self, value: object) -> Scalar | None:
        """Return a value converted to the key's plain type, or None if it is of another type."""
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, bool) or self.kind is bool:
            return plain if isinstance(plain, bool) and self.kind is bool else None
        if isinstance(plain, str):
            return str.__str__(plain) if self.kind is str else None
        if isinstance(plain, int) and self.kind is int:
            return int(plain)
        if isinstance(plain, int | float) and self.kind is float:
            try:
                return float(plain)
            except OverflowError:  # an integer too large for float64
                return math.inf
        return None

    def _holds(self, plain: Scalar) -> bool:
        """Say whether a value of the right type is within the bounds, or one of the choices."""
        if isinstance(plain, str):
            return not self.choices or plain in self.choices
        if self.zero and plain == 0:
            return True
        return abs(plain) <= sys.float_info.max and all(  # nan and inf are not, nor integers that no float reaches
            _COMPARED[sign](plain, bound) for sign, bound in self._bounds().items()
        )

    def _bounds(self) -> dict[str, float]:
        """Return the existing bounds, by their comparison signs."""
        bounds = {">": self.above, ">=": self.minimum, "<": self.below, "<=": self.maximum}
        return {sign: bound for sign, bound in bounds.items() if bound is not None}


def _key(default: S, doc: str, **rest: Any) -> S:
    """Return the dataclass field of a key; ``rest`` are the attributes of `Key`."""
    field: S = dataclasses.field(default=default, metadata={"default": default, "doc": doc, **rest})
    return field


def _names_checked(cls: C) -> C:
    """Make a class answer an unknown keyword with an error that names the allowed ones."""
    made: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @wraps(made)
    def init(self: object, *values: object, **options: object) -> None:
        for name in options:
            if name not in _ATTRIBUTES:
                raise UnknownNameError("configuration key", name, _ATTRIBUTES)
        made(self, *values, **options)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_names_checked
@dataclass(frozen=True)
class RunConfig:
    """Everything that determines the result of a run; checked on creation.

    In a run config the keys are written with hyphens: ``batch-size``.
    """

    task: str = _key(
        "digits",
        "``digits``, ``mnist``, ``emnist``, ``fashion_mnist``, ``cifar10``, the path of an .npz, or a function of your "
        "own as ``module:function`` or ``path/file.py:function``; see own-data.md.",
    )
    data: str = _key("", "Folder of the data; if empty, FLWR_ROBUST_DATA, or ./data if that is not set.", place=True)
    model: str = _key(
        "softmax",
        "``softmax``, ``mlp``, ``cnn``, ``small_cnn``, ``dropout_cnn``, or a function of your own as "
        "``module:function`` or ``path/file.py:function``; see own-models.md.",
    )
    partition: str = _key(
        "iid",
        "``iid``, ``dirichlet(beta=1.0)``, ``gamma_similarity(gamma=0.66)``, ``by_label``, ``k_classes(k=3)``, "
        "``shards``, ``sizes(shares=[5, 1])``, or ``natural``.",
    )
    validation: float = _key(
        0.0,
        "Share of every client's training samples that is held out of training; 0: none. It is drawn from the seed "
        "after the partition, from each class alike. The samples that honest clients held out are the validation set. "
        "Each evaluation then also gives ``validation_accuracy`` and so on, by which to choose; see choosing.md.",
        minimum=0,
        below=1,
    )
    clients: int = _key(10, "Number of clients; Flower's num-supernodes must be the same.", minimum=1)
    defence: str = _key("mean()", "Defence string, with the declared f: the number of attackers it is made for.")
    attack: str = _key(
        "none",
        "``none``, or an attack with its fields. Clients apply attacks on data (``label_flip(p=0.5)``) themselves. "
        "The server's grid applies attacks on messages (``alie()``) and faults (``crash(p=0.5)``) to honest "
        "replies.",
    )
    attackers: int = _key(0, "How many clients attack, the last ones; the real f.", minimum=0)
    attack_start: int = _key(
        1, "First round of the attack; before it every client is honest.", minimum=1, needs="attack"
    )
    attack_stop: int = _key(
        0,
        "Last round of the attack; 0: it never stops. A momentum forgets poisoned data only slowly.",
        minimum=1,
        zero="never",
        needs="attack",
    )
    redraw: bool = _key(
        False,
        "Draw the attackers anew in every round, from the seed, among all clients. A former attacker continues with "
        "a momentum of poisoned data. So with momentum messages, more than ``attackers`` clients send poison.",
        needs="attack",
    )
    knowledge: str = _key(
        "omniscient",
        "What an attack on messages may know at most: ``nothing``, ``own``, ``partial``, ``omniscient`` or "
        "``defence``. An attack that needs more is an error. ``omniscient`` is the adversary of most papers. Only "
        "attacks that search against the rule in use and its state need ``defence``.",
        choices=tuple(level.name.lower() for level in Knowledge),
        needs="attack",
        result=False,
    )
    known: int = _key(
        0,
        "With ``partial``: how many honest replies the attackers see, those of the first clients; otherwise 0.",
        minimum=1,
        zero="none",
        needs="attack",
        result=False,
    )
    message: str = _key(
        "momentum",
        "What clients send: ``momentum``, ``gradient``, ``delta``, ``parameters`` or ``class_momentum``. The last "
        "has one momentum per class, and a round asks for some classes (Byz-DeSGD, see "
        "`flwr_robust.protocol.classes`).",
        choices=_ALL_MESSAGES,
    )
    alpha: float = _key(
        0.1,
        "Weight of the new gradient in a client's momentum, in (0, 1]. PyTorch's momentum of 0.9 is alpha = 0.1 with "
        "a server-learning-rate ten times as large.",
        above=0,
        maximum=1,
        messages=_MOMENTA,
        tolerated=("gradient",),
    )
    gamma: float = _key(
        0.5, "Weight of the server's buffer in its step, in [0, 1].", minimum=0, maximum=1, messages=(CLASS_MOMENTUM,)
    )
    buffer_fade: float = _key(
        0.0,
        "Factor by which the server's buffer of a class that was not asked for fades in a round, in (0, 1].",
        zero="the value of alpha",
        above=0,
        maximum=1,
        messages=(CLASS_MOMENTUM,),
    )
    schedule: str = _key(
        "cyclic",
        "``cyclic`` or ``random``: the order in which classes are asked for.",
        choices=SCHEDULES,
        messages=(CLASS_MOMENTUM,),
    )
    class_batch: str = _key(
        "split",
        "``split``: a client's batch is split over its classes, and all their momenta move. ``asked``: a batch of each "
        "class asked for, and only its momentum moves. Clients whose labels are poisoned then draw one of every class.",
        choices=CLASS_BATCHES,
        messages=(CLASS_MOMENTUM,),
    )
    classes_per_round: int = _key(1, "How many classes a round asks for.", minimum=1, messages=(CLASS_MOMENTUM,))
    server_learning_rate: float = _key(
        0.0,
        "Factor of the aggregated update; the step size for gradients and momenta. 0 stands for the default of the "
        "kind of message, and is replaced by it at once.",
        above=0,
        zero="the default of the kind of message",
        defaults={**dict.fromkeys(_ALL_MESSAGES, 0.1), **dict.fromkeys(_LOCAL, 1.0)},
    )
    server_momentum: float = _key(
        0.0,
        "Weight of the server's last step in the next one, in [0, 1); see `flwr_robust.protocol.momentum`. It does "
        "not apply to class_momentum, for which the server has a buffer.",
        minimum=0,
        below=1,
        messages=MESSAGES,
    )
    local_steps: int = _key(1, "Steps of a client per round.", minimum=1, messages=_LOCAL)
    local_learning_rate: float = _key(0.1, "Step size of the local steps.", above=0, messages=_LOCAL)
    tail_averaging: bool = _key(
        False,
        "Whether a client's local result is the mean of the last half (rounded up) of its local iterates, not the "
        "last one; see `Tail`.",
        messages=_LOCAL,
    )
    personal: str = _key(
        "",
        "Patterns, such as ``head.*`` or ``1.*, 3.bias``, for the names of the model's arrays; see `split_arrays`. "
        "Matching arrays are personal: each client keeps its own and trains them jointly with the shared ones. Only "
        "shared arrays are sent, aggregated and saved. All clients start from the same seeded personal arrays. The "
        "run then measures the honest clients' own models; see `flwr_robust.runs.personal`.",
        messages=_LOCAL,
    )
    batch_size: int = _key(32, "Samples per step.", minimum=1)
    batching: str = _key(
        "random",
        "``random`` (drawn uniformly, with replacement) or ``consecutive`` (consecutive samples of the client's "
        "list from a random start, continuing at its beginning, as in the code for Peng et al.).",
        choices=("random", "consecutive"),
    )
    loss: str = _key(
        "auto",
        "What training minimises, as a mean over a batch: ``cross_entropy``, ``squared_error``, ``absolute_error``, "
        "``huber`` or ``binary_cross_entropy``; or a function of your own as ``module:function`` or "
        "``path/file.py:function``, see own-losses.md. ``auto`` follows the task's kind of target: cross_entropy for "
        "class and tokens, squared_error for values, binary_cross_entropy for labels.",
    )
    weight_decay: float = _key(0.0, "The weight decay lambda, on all parameters.", minimum=0)
    rounds: int = _key(100, "Rounds of training.", minimum=1)
    evaluate_every: int = _key(10, "Rounds between evaluations of the global model on the test samples.", minimum=1)
    metrics: str = _key(
        "",
        "What is measured in addition, separated by commas. ``worst_client`` is the accuracy on the training samples "
        "of the honest client where it is smallest. Others are functions of your own as ``module:function`` or "
        "``path/file.py:function``, see own-losses.md.",
    )
    diagnose: int = _key(
        0,
        "At every evaluation measure ``xi``, ``A``, ``sigma2`` and ``gradient2`` (`flwr_robust.diagnostics`). Each "
        "client's gradient is taken on this number of its own samples, or on all if it has fewer; at least 2. 0: no "
        "measurement. The result of the run does not change.",
        minimum=2,
        zero="off",
    )
    fraction_train: float = _key(1.0, "Share of the clients sampled each round.", above=0, maximum=1)
    min_replies: int = _key(
        0,
        "The smallest number of replies with which a round is aggregated. With 0 it is what the rule needs, and more "
        "than half of the clients asked if the rule declares no f.",
        minimum=1,
        zero="the rule's own",
    )
    quarantine_after: int = _key(
        0,
        "Number of refused replies after which a client is no longer asked (quarantine); 0: never.",
        minimum=1,
        zero="never",
        engines=("apps",),
    )
    rest_after: int = _key(
        0,
        "Number of failures to answer in a row after which a client is not asked for some rounds, without blame. With "
        "0 it is 3 in a deployment, and no client rests in a simulation.",
        minimum=1,
        zero="3 in a deployment",
        engines=("apps",),
    )
    probation: int = _key(
        0,
        "For how many rounds a client that joins after the first round is not asked.",
        minimum=0,
        engines=("apps",),
    )
    deadline: float = _key(
        0.0,
        "Seconds after which a round closes if a quorum of clients has answered. Later replies are not read.",
        above=0,
        zero="none",
        engines=("apps",),
    )
    quorum: float = _key(
        0.0,
        "Which replies close a round at its deadline: a share of the clients asked, up to 1, or a whole number above "
        "1. With 0 it is all but the declared f, or more than half if the rule declares none.",
        above=0,
        zero="the rule's own",
        needs="deadline",
        engines=("apps",),
    )
    wait: float = _key(
        0.0,
        "Seconds to wait in a round for as many clients as the run asks, at most; then the run ends. With 0 it waits "
        "without limit in a deployment; in a simulation no more clients can come.",
        above=0,
        zero="no limit",
        engines=("apps",),
    )
    on_infeasible: str = _key(
        "keep",
        "What follows an infeasible round, that is, one without an aggregate. ``keep`` continues with the unchanged "
        "model; ``stop`` ends the run, with its results.",
        choices=("keep", "stop"),
        engines=("apps",),
    )
    seed: int = _key(
        0,
        "Source of every draw. In a deployment it is the source of what concerns learning alone, such as the initial "
        "model and the batches. The draws that defend are then secret: which clients are asked, and what the defence "
        "draws.",
        minimum=0,
    )
    threads: int = _key(
        1, "CPU threads of each process; with the same number, results repeat to the bit.", minimum=1, result=False
    )
    device: str = _key(
        "auto",
        "``auto`` (the GPU that Ray assigned to the client, or the CPU if there is none), ``cpu`` or ``cuda``.",
        choices=("auto", "cpu", "cuda"),
        place=True,
    )
    output: str = _key(
        "",
        "File for the run's result as JSON; empty: none. Under ``flwr run`` this and the other paths must be "
        "absolute, because the app runs in the folder where Flower's SuperLink was started.",
        place=True,
    )
    save_model: str = _key("", "File for the final model as .npz; empty: none.", place=True)
    audit: str = _key("", "Folder for the run's audit log and checkpoints; empty: none.", place=True, engines=("apps",))
    checkpoint_every: int = _key(
        1, "Rounds between checkpoints.", minimum=1, place=True, needs="audit", engines=("apps",)
    )
    resume: bool = _key(
        False,
        "Continue from the latest checkpoint in ``audit``, if there is one. The checkpoint also holds the clients' "
        "momenta, their personal parameters and what an attack remembers. So the resumed run equals one that never "
        "stopped.",
        place=True,
        needs="audit",
        engines=("apps",),
    )
    keep_updates: int = _key(
        0,
        "Rounds of which the clients' raw updates are kept in ``audit``, for `flwr-robust replay` and `incident`; 0: "
        "none. Training data can be reconstructed from updates.",
        minimum=0,
        place=True,
        needs="audit",
        engines=("apps",),
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], *, warn: bool = True) -> RunConfig:
        """Make a configuration from a run config or a study's table.

        Parameters
        ----------
        values : mapping
            Keys with hyphens or underscores; missing keys have their defaults.
        warn : bool
            Whether to warn of `unread` keys; False if a warning was given before.

        Raises
        ------
        UnknownNameError
            If a key does not exist.
        ConfigurationError
            If a value is of another type or outside its bounds, a key is given in two spellings, or nothing reads it.
        """
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in _ATTRIBUTES:
                raise UnknownNameError("configuration key", str(key), KEYS)
            if name in given:
                hyphens = name.replace("_", "-")
                raise ConfigurationError(f"{_OWNER}: {hyphens} is given twice, as {hyphens} and {name}: leave one out")
            given[name] = value
        if warn:
            return cls(**given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreadKeyWarning)
            return cls(**given)

    def to_mapping(self) -> dict[str, Scalar]:
        """Return all keys with hyphens, as in a run config."""
        return {name: getattr(self, key.attribute) for name, key in KEYS.items()}

    def __post_init__(self) -> None:
        for key in KEYS.values():
            object.__setattr__(self, key.attribute, key.checked(getattr(self, key.attribute)))
        for key in KEYS.values():  # checked before
            if key.defaults and getattr(self, key.attribute) == key.default:
                object.__setattr__(self, key.attribute, key.default_for(self.message))
        attack = self._checked_attack()
        self._check_read()
        check_desgd(_OWNER, self.gamma, self.schedule, self.classes_per_round, hyphens=True)
        self._check_local()
        self._check_validation()
        check_model_name(self.model)
        load_loss(self.loss)  # to raise its errors
        self._check_metrics()
        partitions.parse(self.partition)
        looking = attack if isinstance(attack, MessageAttack) else None
        check_grant(_OWNER, looking, Knowledge.of(self.knowledge), self.known or None, self.rule)
        check_honest_left(_OWNER, looking, self.attackers, self.clients)
        if self.rule.needs_trust:
            raise ConfigurationError(
                f"{_OWNER}: {self.rule} compares with an update of the server's own, which no run config can give; got "
                f"defence={self.defence!r}: take another rule, or RobustStrategy(..., trusted_fn=...) in your own app"
            )
        if sentence := self.rule.check(self.sampled, asked=self.sampled):
            raise ConfigurationError(sentence)
        if self.min_replies > self.sampled:
            raise ConfigurationError(
                f"{_OWNER}: min-replies must be at most the {self.sampled} clients asked in a round; got "
                f"min-replies={self.min_replies}"
            )
        for name in ("output", "save_model"):
            path = getattr(self, name)
            if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
                raise ConfigurationError(
                    f"{_OWNER}: {name.replace('_', '-')} must be a file in a folder that exists; got {path}"
                )

    def _checked_attack(self) -> DataAttack | MessageAttack | Fault | None:
        """Return the attack; raise if it does not fit the attackers and the rounds."""
        if self.attackers > self.clients:
            raise ConfigurationError(
                f"{_OWNER}: attackers must be at most clients={self.clients}; got attackers={self.attackers}"
            )
        attack = self.attack_object  # parse it to raise its errors
        if attack is not None and self.attackers == 0:
            raise ConfigurationError(
                f"{_OWNER}: attack={self.attack!r} needs attackers >= 1; got attackers=0: set "
                f"attackers, or attack='none'"
            )
        if attack is None and self.attackers > 0:
            raise ConfigurationError(
                f"{_OWNER}: attackers={self.attackers} need an attack; got attack='none': choose one of "
                f"{', '.join(all_attacks.members())}, or set attackers=0"
            )
        if self.attack_start > self.rounds:
            raise ConfigurationError(
                f"{_OWNER}: attack-start must be at most rounds={self.rounds}; got attack-start={self.attack_start}"
            )
        if 0 < self.attack_stop < self.attack_start:
            raise ConfigurationError(
                f"{_OWNER}: attack-stop must be 0 (never) or at least attack-start={self.attack_start}; got "
                f"attack-stop={self.attack_stop}"
            )
        return attack

    @property
    def unread(self) -> tuple[str, ...]:
        """The names of keys that are set although nothing in this run reads them."""
        return tuple(name for name, key in KEYS.items() if self._is_unread(key))

    def _is_unread(self, key: Key) -> bool:
        if getattr(self, key.attribute) == key.default_for(self.message):
            return False
        return self.message not in key.messages or self._lacks(key)

    def _lacks(self, key: Key) -> bool:
        """Say whether a key needs another key that is not set."""
        return bool(key.needs) and getattr(self, KEYS[key.needs].attribute) == KEYS[key.needs].default

    def _check_read(self) -> None:
        """Raise or warn if a key is set that nothing in this run reads."""
        for name in self.unread:
            key = KEYS[name]
            what = f"{_OWNER}: {name}={getattr(self, key.attribute)!r} changes nothing with"
            if self._lacks(key):
                raise ConfigurationError(
                    f"{what} {key.needs}={KEYS[key.needs].default!r}: leave {name} out, or set {key.needs}"
                )
            sentence = (
                f"{what} message={self.message!r}, only with {' or '.join(map(repr, key.messages))}: leave {name} out, "
                f"or take another message"
            )
            if self.message not in key.tolerated:
                raise ConfigurationError(sentence)
            warnings.warn(sentence, UnreadKeyWarning, stacklevel=5)

    def _check_local(self) -> None:
        """Check that personal parameters fit the rest of the run."""
        if self.split is None:  # else parse it to raise its errors
            return
        if self.diagnose:
            raise ConfigurationError(
                f"{_OWNER}: diagnose measures clients at one model, and with personal={self.personal!r} there is "
                f"none; got diagnose={self.diagnose}: set one of the two to its default"
            )
        if self.redraw:
            raise ConfigurationError(
                f"{_OWNER}: personal={self.personal!r} needs attackers that stay, because it is how honest "
                f"clients fare that is measured; got redraw=True: set redraw=False"
            )
        if self.attackers == self.clients:
            raise ConfigurationError(
                f"{_OWNER}: personal={self.personal!r} needs an honest client to measure, so attackers must be "
                f"below clients={self.clients}; got attackers={self.attackers}"
            )

    def _check_validation(self) -> None:
        """Check that there is a client whose validation samples can be believed."""
        if self.validation and not self.honest:
            among, change = (", redraw=True", "redraw=False") if self.redraw else ("", "fewer attackers")
            raise ConfigurationError(
                f"{_OWNER}: validation={self.validation} needs a client that never attacks, because an attacker's "
                f"labels could be anything; got attackers={self.attackers} of clients={self.clients}{among}: set "
                f"{change}, or validation=0"
            )

    def _check_metrics(self) -> None:
        """Check that there is a client whose accuracy worst_client can give."""
        worst_client, _ = load_metrics(self.metrics)
        if worst_client and self.personal:
            raise ConfigurationError(
                f"{_OWNER}: worst_client measures the global model, and with personal={self.personal!r} there is none; "
                f"got metrics={self.metrics!r}: leave it out"
            )
        if worst_client and not self.honest:
            raise ConfigurationError(
                f"{_OWNER}: worst_client needs a client that never attacks; got attackers={self.attackers} of clients="
                f"{self.clients}{' with redraw=True' if self.redraw else ''}: leave worst_client out of metrics"
            )

    @cached_property
    def split(self) -> Split | None:
        """Which of the model's arrays are personal; None if there are none."""
        if not self.personal:
            return None
        # The name of an array and its number of dimensions depend on the data for a user's model alone.
        sketch = model_sketch(self.model)
        model = self.outline if sketch is None else sketch
        return split_arrays({name: tuple(array.shape) for name, array in model.state_dict().items()}, self.personal)

    @property
    def sampled(self) -> int:
        """The number of clients asked in a round."""
        return max(1, int(self.clients * self.fraction_train))

    @cached_property
    def rule(self) -> Rule:
        """The defence, parsed."""
        return parse(self.defence)

    @cached_property
    def attack_object(self) -> DataAttack | MessageAttack | Fault | None:
        """The attack, parsed; None for ``none``."""
        if self.attack == "none":
            return None
        name = self.attack.partition("(")[0].strip()
        if name.isidentifier() and name not in all_attacks.members():
            raise UnknownNameError("attack", name, ["none", *all_attacks.members()])
        return all_attacks.parse(self.attack)

    @property
    def data_attack(self) -> DataAttack | None:
        """The attack, if clients apply it to their own data."""
        return self.attack_object if isinstance(self.attack_object, DataAttack) else None

    def attacks(self, client: int) -> bool:
        """Say whether a client may attack: the last ``attackers``, or any of them when they are redrawn."""
        return self.attackers > 0 if self.redraw else client >= self.clients - self.attackers

    @property
    def honest(self) -> list[int]:
        """The clients that never attack, in ascending order."""
        return [client for client in range(self.clients) if not self.attacks(client)]

    def attackers_in(self, server_round: int) -> Sequence[int]:
        """Return the clients that attack in a round, in ascending order."""
        if server_round < self.attack_start or 0 < self.attack_stop < server_round:
            return ()
        if not self.redraw:
            return range(self.clients - self.attackers, self.clients)
        return drawn_attackers(self.seed, server_round, self.clients, self.attackers)

    @cached_property
    def data_set(self) -> Task:
        """The task's data, loaded at the first access.

        Raises
        ------
        DataUnavailableError
            If the data folder or the data are missing.
        ConfigurationError
            If the attack, the partition, the message or the loss does not fit the data.
        """
        if self.data and not Path(self.data).expanduser().is_dir():
            raise DataUnavailableError(
                f"data folder {self.data} does not exist; create it, or name another in the data "
                f"option or FLWR_ROBUST_DATA"
            )
        task = load_task(self.task, self.data or None)
        self._check_target(task)
        if self.data_attack and (sentence := self.data_attack.check(task.classes, task.shape)):
            raise ConfigurationError(sentence)
        if self.data_attack and task.tokens and self.data_attack.changes_inputs:
            raise ConfigurationError(
                f"{self.data_attack.name} changes inputs that are real numbers; those of task {self.task} are token "
                f"numbers: choose an attack on labels or on messages"
            )
        if message_kind(self.message).class_wise:
            check_desgd(_OWNER, self.gamma, self.schedule, self.classes_per_round, task.classes, hyphens=True)
        return task

    def _check_target(self, task: Task) -> None:
        """Raise if a part of the configuration does not fit the kind of target."""
        has = f"and task {self.task} has target={task.target!r}"
        if task.target != "class":
            if partitions.parse(self.partition).reads_classes:
                raise ConfigurationError(
                    f"{_OWNER}: partition={self.partition!r} follows the classes of samples, {has}: take iid, sizes or "
                    f"natural"
                )
            if self.data_attack and self.data_attack.changes_labels:
                raise ConfigurationError(
                    f"{_OWNER}: attack={self.attack!r} changes the classes of samples, {has}: choose an attack on "
                    f"inputs or on messages"
                )
            if message_kind(self.message).class_wise:
                raise ConfigurationError(
                    f"{_OWNER}: message={self.message!r} has one momentum per class, {has}: take another message"
                )
        kind, loss = TARGETS[task.target], load_loss(self.loss)
        if loss and not loss.own and loss.name not in kind.losses:
            raise ConfigurationError(
                f"{_OWNER}: loss={self.loss!r} does not fit the targets, {has}: take {', '.join(kind.losses)}, or a "
                f"function of your own"
            )
        if "accuracy" not in kind.metrics and load_metrics(self.metrics)[0]:
            raise ConfigurationError(
                f"{_OWNER}: worst_client is an accuracy, {has}, which has none; got metrics={self.metrics!r}: leave "
                f"worst_client out"
            )

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The names of the user's metrics."""
        return tuple(metric.name for metric in load_metrics(self.metrics)[1])

    @cached_property
    def objective(self) -> Objective:
        """The loss, and what is measured."""
        target = self.data_set.target
        default = TARGETS[target].losses[0]
        loss = load_loss(self.loss) or Loss(default, LOSSES[default])
        return Objective(target, loss, load_metrics(self.metrics)[1])

    @property
    def outline(self) -> nn.Module:
        """The model's layers and shapes for these data; the numbers in it mean nothing."""
        task = self.data_set
        return model_outline(self.model, task.shape, task.classes, task.vocabulary, self.seed, task.scores)

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Build the seeded model with its steps."""
        task = self.data_set
        model = build_model(self.model, task.shape, task.classes, self.seed, task.vocabulary, task.scores)
        if not message_kind(self.message).local_steps:
            self._check_gradients(model)
        self.objective.check(model, task.blank, task.y_train[[0, -1]], task.y_test)
        return Learner(model, self.weight_decay, device, self.objective)

    def _check_gradients(self, model: nn.Module) -> None:
        """Raise if a model has arrays that messages of gradients do not hold."""
        with_gradients = [name for name, _ in model.named_parameters()]
        others = [name for name in model.state_dict() if name not in with_gradients]
        if others:
            raise ConfigurationError(
                f"{_OWNER}: message={self.message!r} sends a gradient for each array, and model={self.model!r} has "
                f"arrays without one of their own: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}; take "
                f"message='parameters' or 'delta', or layers without such arrays (GroupNorm for BatchNorm)"
            )

    @cached_property
    def samples(self) -> list[NDArray[np.int64]]:
        """The indices of the samples that every client trains on, in the partition's order."""
        return self._divided[0]

    @cached_property
    def held_out(self) -> list[NDArray[np.int64]]:
        """The indices of the training samples that every client holds out for validation, in the partition's order."""
        return self._divided[1]

    @cached_property
    def _divided(self) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
        labels, owners = self.data_set.class_numbers(self.data_set.y_train), self.data_set.owners
        partition = partitions.parse(self.partition)
        dealt = partition(labels, self.clients, self.seed, None if owners is None else owners.numpy())
        if empty := [client for client, held in enumerate(dealt) if len(held) == 0]:
            raise ConfigurationError(
                f"{_OWNER}: partition={self.partition!r} leaves clients {empty} without samples; take fewer "
                f"clients or another partition"
            )
        training, validation = hold_out(labels, dealt, self.validation, self.seed)
        if self.validation and not any(len(validation[client]) for client in self.honest):
            raise ConfigurationError(
                f"{_OWNER}: validation={self.validation} holds out no sample of an honest client, of whom the largest "
                f"has {max(len(dealt[client]) for client in self.honest)}: take a larger share, or fewer clients"
            )
        return training, validation


def _defaults(key: Key, form: Callable[[object], str] = repr) -> str:
    """Return a key's defaults, in words."""
    found: dict[str, list[str]] = {}
    for message in _ALL_MESSAGES:
        found.setdefault(form(key.default_for(message)), []).append(message)
    return "; ".join(f"{value} with {', '.join(on)}" if len(found) > 1 else value for value, on in found.items())


def _described(key: Key) -> str:
    """Return the entry of a key for the attributes of `RunConfig`."""
    told = f"{key.allowed[0].upper()}{key.allowed[1:]}. Default: {_defaults(key)}."
    if key.messages != _ALL_MESSAGES:
        told += f" With message {' or '.join(key.messages)}."
    return "\n        ".join([f"{key.attribute} : {key.kind.__name__}", key.doc, told])


def keys_table() -> str:
    """Return all keys as a Markdown table with one line per key, as in ``docs/run-config.md``."""
    lines = ["| key | default | allowed | read with | meaning |", "|---|---|---|---|---|"]
    for name, key in KEYS.items():
        readers = ["" if key.messages == _ALL_MESSAGES else f"message {', '.join(key.messages)}"]
        readers.append(f"`{key.needs}` set" if key.needs else "")
        readers.append("" if key.engines == ENGINES else f"engines {', '.join(key.engines)}")
        told = "; ".join(filter(None, readers))
        doc = key.doc.replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | {_defaults(key, json.dumps)} | {key.allowed} | {told} | {doc} |")
    return "\n".join(lines)


_FIELDS = dataclasses.fields(RunConfig)
_ATTRIBUTES = tuple(field.name for field in _FIELDS)

KEYS: Mapping[str, Key] = MappingProxyType(
    {name: Key(name, **field.metadata) for field, name in ((field, field.name.replace("_", "-")) for field in _FIELDS)}
)
"""All keys by name, with hyphens: the meaning, the allowed values, and who reads each."""

PLACES = tuple(name for name, key in KEYS.items() if key.place)
"""The keys that only say where files are and what is kept, without an effect on the result."""

RunConfig.__doc__ = "\n    ".join(
    [f"{RunConfig.__doc__ or ''}", "Attributes", "----------", *map(_described, KEYS.values()), ""]
)


def pick_device(device: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means in this process.

    Ray shows each process only the GPUs assigned to it, so the first visible GPU is the client's own.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "configuration: device='cuda', but no GPU is visible to this process; give clients one with "
            "client-resources-num-gpus, or set device='auto'"
        )
    if device == "auto":
        ray = sys.modules.get("ray")
        # Ray may leave GPUs visible to a process without an assigned GPU.
        without = ray is not None and ray.is_initialized() and not ray.get_gpu_ids()
        device = "cuda" if torch.cuda.is_available() and not without else "cpu"
    return torch.device("cuda:0" if device == "cuda" else "cpu")
