"""The verb ``diagnose``: say whether a robust rule is likely to help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_robust.cli.shared import Data, Json, Plugins, console, keys_of, print_json, told
from flwr_robust.errors import ConfigurationError

__all__ = ["diagnose_command"]


def diagnose_command(
    task: Annotated[
        str, typer.Option(help="digits, mnist, emnist, fashion_mnist, cifar10, or the path of an .npz.")
    ] = "digits",
    data: Data = "",
    model: Annotated[str, typer.Option(help="softmax, mlp, cnn, small_cnn or dropout_cnn.")] = "softmax",
    partition: Annotated[str, typer.Option(help="How samples are divided among clients.")] = "by_label",
    attack: Annotated[str, typer.Option(help="The attack of poisoned clients on their data.")] = "label_flip()",
    attackers: Annotated[int, typer.Option(help="Number of poisoned clients.")] = 1,
    clients: Annotated[int, typer.Option(help="n.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the measured run.")] = 200,
    samples: Annotated[int, typer.Option(min=2, help="Number of samples per client for the gradients.")] = 1000,
    seed: Annotated[int, typer.Option(help="Source of every draw.")] = 0,
    defence: Annotated[list[str] | None, typer.Option(help="Rules to try at the last model; may be repeated.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Any other key, e.g. --set alpha=1.0.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file for xi and A over the rounds.")] = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Before you choose a rule, check whether a robust one is likely to help against poisoned labels.

    A robust rule drops updates that are far from the others. If honest clients have different data, their updates are
    also far apart, and the rule drops some of them. Two distances of gradients show what to expect: xi is the distance
    of the most unusual honest client from the honest mean, and A is that of a poisoned client. The error of the plain
    mean grows as delta A, where delta is the share of poisoned clients. The error of a robust rule grows as rho xi, and
    no rule has a rho below delta / (1 - 2 delta). If A is about xi, as with one class per client, the mean is as good
    as any rule. If A is several times xi, as with similar clients, a robust rule is better (Peng, Li, Vlaski, Ling,
    JMLR 2025).

    This command trains some rounds with the plain mean, and prints how xi and A change. It then applies rules to the
    clients' gradients at the last model, and ends with the advice. Try --partition iid, then by_label.

    JSON: expected (mean, robust or open), xi, A, delta, least_rho, advice,
    notes, curve (the measurements by round), rules (rule, rho, off_by,
    proven_rho).
    """
    with told(plugins):
        from flwr_robust.files import write_atomically
        from flwr_robust.runs.config import RunConfig
        from flwr_robust.studies.diagnose import diagnose, diagnosis_notes, diagnosis_tables
        from flwr_robust.studies.runner import make_folder

        own = {"task": task, "model": model, "partition": partition, "clients": clients, "seed": seed}
        poison = {"attack": attack, "attackers": attackers}
        length = {"rounds": rounds, "evaluate-every": max(1, rounds // 10), "diagnose": samples}
        keys = keys_of(data, overrides)
        if taken := {key.replace("_", "-") for key in keys} & {"defence", "audit", *own, *poison, *length}:
            raise ConfigurationError(f"diagnose: {min(taken)} cannot be set; see --help for what it takes")
        config = RunConfig.from_mapping({**own, **poison, **length, **keys})
        if plot is not None:
            if plot.is_dir():
                raise ConfigurationError(f"diagnose: --plot must be a PNG file; got the folder {plot}")
            make_folder(plot.parent)
        with console(stderr=True).status(f"{config.rounds} rounds of {config.clients} clients"):
            found = diagnose(config, defence or ())
        if plot is not None:
            from flwr_robust.studies.document_plots import metric_curves
            from flwr_robust.studies.plots import as_file

            document = {"labels": {"partition": config.partition}, **found.document}
            picture = as_file(metric_curves([document]))
            write_atomically(plot, lambda file: file.write(picture))
    *notes, advice = diagnosis_notes(found)
    if as_json:
        print_json(
            {
                "expected": found.advice.expected,
                "xi": found.advice.xi,
                "A": found.advice.disturbance,
                "delta": found.advice.delta,
                "least_rho": found.advice.least,
                "advice": advice,
                "notes": notes,
                "curve": found.document["curve"],
                "rules": [
                    {"rule": rule, "rho": rho, "off_by": rho * found.unit, "proven_rho": found.bounds.get(rule)}
                    for rule, rho in found.rhos.items()
                ],
            }
        )
        return
    for table in diagnosis_tables(found):
        console().print(table)
    for note in notes:
        console().print(note)
    console().print(advice, style="bold")
