"""Diagnose: measure how much clients differ and how far poisoned ones deviate, and advise by theory.

A short run of the plain mean is measured round by round; see `flwr_robust.diagnostics` for xi, A and sigma^2. At its
last model, several rules aggregate the clients' gradients. This shows the error of each rule at that model.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from flwr_robust.attacks.data.base import LabelAttack
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Rule
from flwr_robust.diagnostics import Advice, advise, feature_bound, known_bounds, least_rho, rho
from flwr_robust.errors import ConfigurationError
from flwr_robust.protocol.rounds import settle
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.probe import Measured, Probe
from flwr_robust.studies.runner import run_fast_cell
from flwr_robust.tasks import Learner

__all__ = ["Diagnosis", "diagnose", "diagnosis_notes", "diagnosis_tables"]


@dataclass(frozen=True)
class Diagnosis:
    """The results of a diagnosis.

    Attributes
    ----------
    config : RunConfig
        The run.
    document : mapping
        The result of the run; its curve holds the measurements.
    advice : Advice
        The advice from the largest xi and A of the curve, because the theory bounds them over all models.
    at_last : Advice
        The advice from xi and A at the last model only.
    rhos : mapping of str to float
        The distance of each rule's value from the honest mean at the last model, divided by xi there. NaN for a rule
        without a value.
    bounds : mapping of str to float
        The proven rho of the rules that have one.
    unit : float
        xi at the last model.
    noise : float
        The approximate error of a client's gradient on a part of its samples; 0 if all samples are used.
    ceiling : float or None
        The largest A that any flip of labels can have, if known.
    """

    config: RunConfig
    document: Mapping[str, Any]
    advice: Advice
    at_last: Advice
    rhos: Mapping[str, float]
    bounds: Mapping[str, float]
    unit: float
    noise: float
    ceiling: float | None


def diagnose(config: RunConfig, defences: Sequence[str] = ()) -> Diagnosis:
    """Run a configuration, and return measurements and advice.

    Parameters
    ----------
    config : RunConfig
        A run with an attack on data and ``diagnose``; its defence should be the mean.
    defences : sequence of str
        Rules to try at the last model. When not given, these are mean, trimmed_mean, median, faba and lfighter, with
        the number of attackers as declared f.

    Raises
    ------
    FlwrRobustError
        Before the run, if it cannot be measured or a rule does not fit.
    """
    delta = _check(config)
    f = config.attackers
    texts = defences or ("mean()", f"trimmed_mean(f={f})", "median()", f"faba(f={f})", "lfighter()")
    rules = {text: _rule(config, text) for text in texts}
    document, measured, layout = _measured(config)
    curve = document["curve"]
    proven = known_bounds(delta, measured.gradients.shape[1], config.clients - f)
    if not all(math.isfinite(point[key]) for point in curve for key in ("xi", "A")):
        raise ConfigurationError(
            f"diagnose: gradients must stay finite, and these did not; take a smaller server-learning-rate than "
            f"{config.server_learning_rate}"
        )
    pairs = [(point["xi"], point["A"]) for point in curve]
    advice, at_last = (
        advise(*pair, delta, dimension=measured.gradients.shape[1], regular=config.clients - f)
        for pair in ((max(xi for xi, _ in pairs), max(poison for _, poison in pairs)), pairs[-1])
    )
    held = [min(len(samples), config.diagnose) for samples in config.samples]
    partial = [m for m, samples in zip(held, config.samples, strict=True) if m < len(samples)]
    spread = max(point.get("sigma2", math.nan) for point in curve) * config.batch_size  # with one sample
    return Diagnosis(
        config,
        document,
        advice,
        at_last,
        {text: _rho(rule, measured, layout, config.seed) for text, rule in rules.items()},
        {f"{name}(f={f})": proven[name] for name in ("trimmed_mean", "faba") if name in proven},
        measured.metrics["xi"],
        math.sqrt(spread / min(partial)) if partial else 0.0,
        _ceiling(config),
    )


def _check(config: RunConfig) -> float:
    """Return delta, the share of attackers; raise if xi or A is not defined for the run."""
    if config.data_attack is None:
        raise ConfigurationError(
            f"diagnose: attack must be one on data, as A is about poisoned data; got attack={config.attack!r}: take "
            f"label_flip() or another"
        )
    if config.diagnose == 0:
        raise ConfigurationError("diagnose: samples must be at least 2; got 0")
    if config.attack_start > 1 or config.attack_stop:
        raise ConfigurationError(
            f"diagnose: the attack must last from the first round to the last; got attack-start={config.attack_start}, "
            f"attack-stop={config.attack_stop}: leave them out"
        )
    delta = config.attackers / config.clients
    if delta >= 0.5:
        raise ConfigurationError(
            f"diagnose: attackers must be fewer than half of clients={config.clients}; got attackers={config.attackers}"
        )
    return delta


def _rule(config: RunConfig, text: str) -> Rule:
    """Return a rule that fits the run, or raise."""
    rule = dataclasses.replace(config, defence=text, fraction_train=1.0).rule
    if rule.needs_trust:
        raise ConfigurationError(
            f"diagnose: --defence must be a rule that sees the clients' gradients alone; {rule} compares with an "
            f"update of the server's own: leave it out"
        )
    return rule


def _measured(config: RunConfig) -> tuple[dict[str, Any], Measured, list[Layer]]:
    """Run to the end; return the document, the measurements at the last model, and its arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        document = run_fast_cell({**config.to_mapping(), "save-model": str(path)})
        with np.load(path) as file:
            model = dict(file)
    learner: Learner = config.learner()
    learner.load([model[name] for name in learner.names])
    layout = [Layer(name, model[name].shape) for name in learner.names]
    return document, Probe(config, learner).measure(config.rounds), layout


def _rho(rule: Rule, measured: Measured, layout: Sequence[Layer], seed: int) -> float:
    if sentence := rule.check_layout(layout):
        raise ConfigurationError(sentence)
    stacks = measured.gradients.split_with_sizes([layer.size for layer in layout], 1)
    result = settle(rule, Rows.from_stacks(stacks, layout=layout, seed=seed), rule.init()).result
    return math.nan if result is None else rho(result.value, measured.honest)


def _ceiling(config: RunConfig) -> float | None:
    """Return the bound on A for softmax regression and attacks that do not change the inputs, or None."""
    if config.model != "softmax" or not isinstance(config.data_attack, LabelAttack):
        return None
    task = config.data_set
    if config.objective.loss.own:
        return None
    return feature_bound([task.inputs(task.x_train[torch.from_numpy(s)]) for s in config.samples], task.classes)


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return the tables for the terminal: the measurements by round, and the rules at the last model.

    Parameters
    ----------
    diagnosis : Diagnosis
        The results.
    """
    measured = Table(title="at the global model of a run of the plain mean", title_justify="left")
    name = "accuracy" if "accuracy" in diagnosis.document["curve"][-1] else "loss"
    for heading in ("round", "accuracy, %" if name == "accuracy" else name, "xi", "A", "A / xi", "sigma^2"):
        measured.add_column(heading, justify="right")
    for point in diagnosis.document["curve"]:
        xi, poison = point["xi"], point["A"]
        ratio = poison / xi if xi else math.inf
        numbers = (xi, poison, ratio, point.get("sigma2", math.nan))
        measured.add_row(
            str(point["round"]),
            f"{100 * point[name]:.1f}" if name == "accuracy" else f"{point[name]:.3g}",
            *(f"{number:.3g}" for number in numbers),
        )
    rules = Table(title="rules on the gradients of all clients at the last model", title_justify="left")
    rules.add_column("rule", no_wrap=True)
    for heading in ("off by", "rho = off by / xi", "proven rho"):
        rules.add_column(heading, justify="right")
    for text, found in diagnosis.rhos.items():
        bound = diagnosis.bounds.get(text)
        rules.add_row(text, f"{found * diagnosis.unit:.3g}", f"{found:.3g}", "-" if bound is None else f"{bound:.3g}")
    return [measured, rules]


def diagnosis_notes(diagnosis: Diagnosis) -> list[str]:
    """Return the notes on the tables, a sentence each; the last one is the advice.

    Parameters
    ----------
    diagnosis : Diagnosis
        The results.
    """
    config = diagnosis.config
    notes = [
        f"{config.task}, {config.model}, {config.partition}; {config.clients} clients, {config.attackers} of them "
        f"{config.attack}; seed {config.seed}.",
        "xi: the honest client that differs most, by the distance of its gradient from the mean of the honest ones; A: "
        f"the same of the poisoned clients; sigma^2: the largest variance of a gradient on {config.batch_size} "
        "samples; off by: distance of a rule's value from the mean of the honest. No rule can have a rho below "
        f"{least_rho(config.attackers / config.clients):.3g} on all data. Rules with a memory start without it.",
    ]
    if diagnosis.noise:
        notes.append(
            f"Measured on at most {config.diagnose:,} samples of each client, which moves gradients by about "
            f"{diagnosis.noise:.3g}; an xi no larger than that means clients that hardly differ."
        )
    if diagnosis.ceiling is not None:
        notes.append(f"With this model and these inputs no flip of labels has an A above {diagnosis.ceiling:.3g}.")
    advice, last = diagnosis.advice, diagnosis.at_last
    if last.expected != advice.expected:
        answer = {"mean": "the mean", "robust": f"a robust rule, {' or '.join(last.rules)}", "open": "open"}[
            last.expected
        ]
        notes.append(
            f"The advice below takes the largest xi and A of all rounds, as the theory bounds them over all models; by "
            f"those of the last model, xi = {last.xi:.3g} and A = {last.disturbance:.3g}, the answer is: {answer}."
        )
    return [*notes, advice.sentence]
