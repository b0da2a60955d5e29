"""The configuration of a run: what Flower's run config, a study's cell and a Python caller all speak.

Every key is a scalar, so that a run config can hold it. `RunConfig` checks all of them, and that they fit each other,
before anything is trained.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_robust.attacks.data.base import DataAttack, data_attacks, drawn_attackers
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import Knowledge, MessageAttack, check_grant, check_honest_left, message_attacks
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule
from flwr_robust.core.spec import JoinedRegistry, Registry
from flwr_robust.errors import (
    ConfigurationError,
    DataUnavailableError,
    UnknownNameError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
)
from flwr_robust.protocol.classes import CLASS_MOMENTUM, check_desgd
from flwr_robust.protocol.momentum import check_alpha
from flwr_robust.tasks import MODELS, Learner, Split, Task, build_model, load_task, split_arrays
from flwr_robust.tasks.partition import partitions

__all__ = ["MESSAGES", "PLACES", "RunConfig", "all_attacks", "pick_device"]

MESSAGES = ("delta", "gradient", "momentum", "parameters")
"""What a client's arrays mean: new parameters, their change, a gradient, or a momentum of gradients."""

all_attacks: Registry[DataAttack | MessageAttack | Fault] = JoinedRegistry(
    "attack", data_attacks, message_attacks, faults
)
"""All that attackers may do, by name: poison their data, rewrite their messages, or just fail."""

PLACES = ("data", "device", "output", "save-model", "audit", "checkpoint-every", "resume")
"""The keys that say where things lie and what is kept, not what the result is."""

Scalar = str | int | float | bool


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run.

    In a run config the keys are written with hyphens: ``batch-size``.

    Attributes
    ----------
    task : str
        ``digits``, ``mnist``, ``emnist``, ``fashion_mnist``, ``cifar10``, or the path of an .npz.
    data : str
        Folder of the data; empty: FLWR_ROBUST_DATA, else ./data.
    model : str
        ``softmax``, ``mlp``, ``cnn`` or ``small_cnn``.
    partition : str
        ``iid``, ``dirichlet(beta=1.0)``, ``by_label``, ``k_classes(k=3)``, ``shards``.
    clients : int
        Number of clients; Flower's num-supernodes must be the same.
    defence : str
        Defence string; the declared f stands in it.
    attack : str
        ``none``, or an attack with its fields: on data (``label_flip(p=0.5)``), which the clients do themselves; on
        messages (``alie()``), or a fault (``crash(p=0.5)``), which the server's grid does to their honest replies.
    attackers : int
        How many clients attack, the last ones; the real f.
    attack_start : int
        First round of the attack; before it every client is honest.
    attack_stop : int
        Last round of the attack; 0: it never stops. A momentum forgets poisoned data only slowly.
    redraw : bool
        Draw the attackers anew every round, from the seed, among all clients. One that poisoned its data before goes
        on with the momentum it then made, so with momentum messages more than ``attackers`` clients send poison.
    knowledge : str
        The most that an attack on messages may look at: ``nothing``, ``own``, ``partial``, ``omniscient`` or
        ``defence``; an attack that needs more is an error. ``omniscient`` is the adversary of most papers, and enough
        for all but those that search against the rule in use and its state: these are to be granted expressly.
    known : int
        With ``partial``: how many honest replies are seen, those of the first clients; else 0.
    message : str
        ``momentum``, ``gradient``, ``delta`` or ``parameters``; or ``class_momentum``: one momentum per class, of which
        those that the round asks for are sent (Byz-DeSGD, see `flwr_robust.protocol.classes`).
    alpha : float
        With momentum: weight of the new gradient, in (0, 1]. With class_momentum the server's buffer fades by it, too.
    gamma : float
        With class_momentum: weight of the server's buffer in its step, in [0, 1].
    schedule : str
        With class_momentum: ``cyclic`` or ``random``, how the classes of a round are chosen.
    classes_per_round : int
        With class_momentum: how many classes a round asks for.
    server_learning_rate : float
        Multiplies the aggregated update; the step size for gradients and momenta.
    server_momentum : float
        Weight of the server's last step in the next one, in [0, 1); see `flwr_robust.protocol.momentum`. Not with
        class_momentum, whose buffer is the server's memory.
    local_steps : int
        With delta and parameters: steps of a client per round.
    local_learning_rate : float
        With delta and parameters: their step size.
    tail_averaging : bool
        With delta and parameters: a client's local result is the mean of the last half (rounded up) of its local
        iterates instead of the last one; see `Tail`.
    personal : str
        With delta and parameters: patterns, such as ``head.*`` or ``1.*, 3.bias``, over the names of the model's
        arrays; see `split_arrays`. Those that match stay with the client, which trains them jointly with the shared
        ones; only the shared ones are sent, aggregated and saved. All clients start from the same seeded ones. What is
        measured is then how the honest clients fare; see `flwr_robust.runs.personal`.
    batch_size : int
        Samples per step.
    batching : str
        ``random`` (drawn uniformly, with replacement) or ``consecutive`` (a run of the client's list from a random
        start, wrapping, as in the code behind Peng et al.).
    weight_decay : float
        lambda, on all parameters.
    rounds : int
        Rounds of training.
    evaluate_every : int
        Rounds between evaluations of the global model on the test samples.
    diagnose : int
        At every evaluation measure ``xi``, ``A`` and ``sigma2`` (`flwr_robust.diagnostics`), each client's gradient on
        this many of its own samples, or all that it has; at least 2. 0: not at all. It changes nothing in the run.
    fraction_train : float
        Share of the clients sampled each round; the sample is drawn from the seed.
    quarantine_after : int
        Refusals after which a client is no longer asked; 0: never.
    on_infeasible : str
        ``keep`` goes on with the model as it is after a round that is infeasible; ``stop`` ends the run, with its
        results.
    seed : int
        Source of every draw.
    threads : int
        CPU threads of each process; results repeat to the bit for one number.
    device : str
        ``auto`` (a client takes the GPU that Ray gave it, else the CPU), ``cpu`` or ``cuda``.
    output : str
        File for the run's result as JSON; empty: none. Under ``flwr run`` this and the other paths must be absolute,
        because the app runs in the folder where Flower's SuperLink was started.
    save_model : str
        File for the final model as .npz; empty: none.
    audit : str
        Folder for the run's audit log and checkpoints; empty: none.
    checkpoint_every : int
        Rounds between checkpoints.
    resume : bool
        Go on from the latest checkpoint in ``audit``, if there is one. It holds the clients' momenta and personal
        parameters, and what an attack remembers, too: the run is the one that never stopped.
    """

    task: str = "digits"
    data: str = ""
    model: str = "softmax"
    partition: str = "iid"
    clients: int = 10
    defence: str = "mean()"
    attack: str = "none"
    attackers: int = 0
    attack_start: int = 1
    attack_stop: int = 0
    redraw: bool = False
    knowledge: str = "omniscient"
    known: int = 0
    message: str = "momentum"
    alpha: float = 0.1
    gamma: float = 0.5
    schedule: str = "cyclic"
    classes_per_round: int = 1
    server_learning_rate: float = 0.1
    server_momentum: float = 0.0
    local_steps: int = 1
    local_learning_rate: float = 0.1
    tail_averaging: bool = False
    personal: str = ""
    batch_size: int = 32
    batching: str = "random"
    weight_decay: float = 0.0
    rounds: int = 100
    evaluate_every: int = 10
    diagnose: int = 0
    fraction_train: float = 1.0
    quarantine_after: int = 0
    on_infeasible: str = "keep"
    seed: int = 0
    threads: int = 1
    device: str = "auto"
    output: str = ""
    save_model: str = ""
    audit: str = ""
    checkpoint_every: int = 1
    resume: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> RunConfig:
        """Make a configuration from a run config or a study's table.

        Parameters
        ----------
        values : mapping
            Keys with hyphens or underscores; those left out have their defaults.

        Raises
        ------
        UnknownNameError
            If a key does not exist.
        ConfigurationError
            If a value is of another type or outside its bounds.
        """
        fields = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        given: dict[str, Scalar] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in fields:
                raise UnknownNameError("configuration key", key, [f.replace("_", "-") for f in fields])
            wanted = fields[name]
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise ConfigurationError(f"configuration: {key} must be of type {wanted.__name__}; got {key}={value!r}")
            given[name] = value  # type: ignore[assignment]
        return cls(**given)  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, Scalar]:
        """Return all keys with hyphens, as a run config holds them."""
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in dataclasses.fields(self)}

    def __post_init__(self) -> None:
        owner = "configuration"
        check_integer(owner, "clients", self.clients, 1)
        for name in ("attackers", "attack_stop", "known", "quarantine_after"):
            check_integer(owner, name.replace("_", "-"), getattr(self, name), 0)
        for name in ("attack_start", "local_steps", "batch_size", "rounds", "evaluate_every", "threads"):
            check_integer(owner, name.replace("_", "-"), getattr(self, name), 1)
        check_integer(owner, "seed", self.seed, 0)
        check_integer(owner, "diagnose", self.diagnose, 0)
        if self.diagnose == 1:
            raise ConfigurationError(f"{owner}: diagnose must be 0 (off) or at least 2 samples; got diagnose=1")
        check_flag(owner, "redraw", self.redraw)
        check_flag(owner, "resume", self.resume)
        check_flag(owner, "tail-averaging", self.tail_averaging)
        check_integer(owner, "checkpoint-every", self.checkpoint_every, 1)
        if self.resume and not self.audit:
            raise ConfigurationError(f"{owner}: resume needs the run's folder; got audit='': name it")
        check_number(owner, "server-learning-rate", self.server_learning_rate, above=0)
        check_number(owner, "server-momentum", self.server_momentum, minimum=0, below=1)
        check_number(owner, "local-learning-rate", self.local_learning_rate, above=0)
        check_number(owner, "weight-decay", self.weight_decay, minimum=0)
        check_number(owner, "fraction-train", self.fraction_train, above=0, maximum=1)
        check_alpha(self.alpha)
        check_choice(owner, "message", self.message, (*MESSAGES, CLASS_MOMENTUM))
        check_desgd(owner, self.gamma, self.schedule, self.classes_per_round, hyphens=True)
        if self.server_momentum and self.message == CLASS_MOMENTUM:
            raise ConfigurationError(
                f"{owner}: with message='{CLASS_MOMENTUM}' the server's memory is its buffer; got "
                f"server-momentum={self.server_momentum:g}: set server-momentum=0, or another message"
            )
        check_choice(owner, "batching", self.batching, ("random", "consecutive"))
        check_choice(owner, "device", self.device, ("auto", "cpu", "cuda"))
        check_choice(owner, "on-infeasible", self.on_infeasible, ("keep", "stop"))
        if self.model not in MODELS:
            raise UnknownNameError("model", self.model, MODELS)
        if self.attackers > self.clients:
            raise ConfigurationError(
                f"{owner}: attackers must be at most clients={self.clients}; got attackers={self.attackers}"
            )
        attack = self.attack_object  # parsed for its errors
        if attack is not None and self.attackers == 0:
            raise ConfigurationError(
                f"{owner}: attack={self.attack!r} needs attackers >= 1; got attackers=0: set "
                f"attackers, or attack='none'"
            )
        if attack is None and self.attackers > 0:
            raise ConfigurationError(
                f"{owner}: attackers={self.attackers} need an attack; got attack='none': choose one of "
                f"{', '.join(all_attacks.members())}, or set attackers=0"
            )
        if self.attack_start > self.rounds:
            raise ConfigurationError(
                f"{owner}: attack-start must be at most rounds={self.rounds}; got attack-start={self.attack_start}"
            )
        if 0 < self.attack_stop < self.attack_start:
            raise ConfigurationError(
                f"{owner}: attack-stop must be 0 (never) or at least attack-start={self.attack_start}; got "
                f"attack-stop={self.attack_stop}"
            )
        self._check_local()
        partitions.parse(self.partition)
        looking = attack if isinstance(attack, MessageAttack) else None
        check_grant(owner, looking, Knowledge.of(self.knowledge), self.known or None, self.rule)
        check_honest_left(owner, looking, self.attackers, self.clients)
        if self.rule.needs_trust:
            raise ConfigurationError(
                f"{owner}: {self.rule} compares with an update of the server's own, which no run config can give; got "
                f"defence={self.defence!r}: take another rule, or RobustStrategy(..., trusted_fn=...) in your own app"
            )
        if sentence := self.rule.check(self.sampled, asked=self.sampled):
            raise ConfigurationError(sentence)
        for name in ("output", "save_model"):
            path = getattr(self, name)
            if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
                raise ConfigurationError(
                    f"{owner}: {name.replace('_', '-')} must be a file in a folder that exists; got {path}"
                )

    def _check_local(self) -> None:
        """Check what asks for local steps."""
        steps = self.message in ("delta", "parameters")
        for key, given in (("tail-averaging", self.tail_averaging), ("personal", self.personal)):
            if given and not steps:
                raise ConfigurationError(
                    f"configuration: {key}={given!r} needs local steps, message='delta' or 'parameters'; got "
                    f"message={self.message!r}"
                )
        if self.split is None:  # else parsed for its errors
            return
        if self.diagnose:
            raise ConfigurationError(
                f"configuration: diagnose measures clients at one model, and with personal={self.personal!r} there is "
                f"none; got diagnose={self.diagnose}: set one of the two to its default"
            )
        if self.redraw:
            raise ConfigurationError(
                f"configuration: personal={self.personal!r} needs attackers that stay, because it is how honest "
                f"clients fare that is measured; got redraw=True: set redraw=False"
            )
        if self.attackers == self.clients:
            raise ConfigurationError(
                f"configuration: personal={self.personal!r} needs an honest client to measure, so attackers must be "
                f"below clients={self.clients}; got attackers={self.attackers}"
            )

    @cached_property
    def split(self) -> Split | None:
        """Which of the model's arrays are personal; None if none are."""
        if not self.personal:
            return None
        with torch.device("meta"):  # an array's name and its number of dimensions do not depend on the data
            model = MODELS[self.model]((1, 8, 8), 2)
        return split_arrays({name: tuple(array.shape) for name, array in model.state_dict().items()}, self.personal)

    @property
    def sampled(self) -> int:
        """Number of clients asked in a round."""
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
        """The attack, if it is one that clients do on their own data."""
        return self.attack_object if isinstance(self.attack_object, DataAttack) else None

    def attacks(self, client: int) -> bool:
        """Say whether a client may attack: the last ``attackers``, or any of them when they are redrawn."""
        return self.attackers > 0 if self.redraw else client >= self.clients - self.attackers

    def attackers_in(self, server_round: int) -> Sequence[int]:
        """Return the clients that attack in a round, ascending."""
        if server_round < self.attack_start or 0 < self.attack_stop < server_round:
            return ()
        if not self.redraw:
            return range(self.clients - self.attackers, self.clients)
        return drawn_attackers(self.seed, server_round, self.clients, self.attackers)

    @cached_property
    def data_set(self) -> Task:
        """The task's data, loaded at the first look.

        Raises
        ------
        DataUnavailableError
            If the data folder or the data are missing.
        ConfigurationError
            If the attack does not fit the data.
        """
        if self.data and not Path(self.data).expanduser().is_dir():
            raise DataUnavailableError(
                f"data folder {self.data} does not exist; create it, or name another in the data "
                f"option or FLWR_ROBUST_DATA"
            )
        task = load_task(self.task, self.data or None)
        if self.data_attack and (sentence := self.data_attack.check(task.classes, task.shape)):
            raise ConfigurationError(sentence)
        if self.message == CLASS_MOMENTUM:
            check_desgd("configuration", self.gamma, self.schedule, self.classes_per_round, task.classes, hyphens=True)
        return task

    def learner(self, device: torch.device | str = "cpu") -> Learner:
        """Build the seeded model with its steps."""
        model = build_model(self.model, self.data_set.shape, self.data_set.classes, self.seed)
        return Learner(model, self.weight_decay, device)

    @cached_property
    def samples(self) -> list[NDArray[np.int64]]:
        """The indices of every client's training samples, ascending."""
        samples = partitions.parse(self.partition)(self.data_set.y_train.numpy(), self.clients, self.seed)
        if empty := [client for client, held in enumerate(samples) if len(held) == 0]:
            raise ConfigurationError(
                f"configuration: partition={self.partition!r} leaves clients {empty} without samples; take fewer "
                f"clients or another partition"
            )
        return samples


def pick_device(device: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means in this process.

    Ray shows a process only the GPUs it gave it, so the first visible one is the client's own.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "configuration: device='cuda', but no GPU is visible to this process; give clients one with "
            "client-resources-num-gpus, or set device='auto'"
        )
    if device == "auto":
        ray = sys.modules.get("ray")
        # Ray may leave GPUs visible to a process that it gave none.
        without = ray is not None and ray.is_initialized() and not ray.get_gpu_ids()
        device = "cuda" if torch.cuda.is_available() and not without else "cpu"
    return torch.device("cuda:0" if device == "cuda" else "cpu")
