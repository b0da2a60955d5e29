"""The strategy that a red team attacks, made from the options of the command line."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from typing import Any

from flwr.serverapp.strategy import Strategy

from flwr_robust.errors import ConfigurationError, FlwrRobustError, UnknownNameError, check_choice
from flwr_robust.flower import RobustStrategy
from flwr_robust.protocol.messages import MESSAGES, message_kind
from flwr_robust.redteam.run import MakeStrategy, Setting, quiet

__all__ = ["maker"]


def maker(strategy: str, kwargs: str, defence: str, message: str) -> tuple[MakeStrategy, str]:
    """Return a function that makes the strategy, checked by one call, and the text that describes it.

    Parameters
    ----------
    strategy : str
        ``package.module:Class``; empty if a defence is given.
    kwargs : str
        The arguments of its constructor, as a JSON object.
    defence : str
        A defence string; empty if a strategy is given.
    message : str
        With a defence: what clients send.

    Raises
    ------
    FlwrRobustError
        If the strategy cannot be made.
    """
    if bool(strategy) == bool(defence):
        raise ConfigurationError("red-team: give either --strategy or --defence")
    try:
        options = json.loads(kwargs)
    except ValueError as error:
        raise ConfigurationError(f"red-team: --kwargs must be a JSON object; got {kwargs!r} ({error})") from None
    if not isinstance(options, dict):
        raise ConfigurationError(f"red-team: --kwargs must be a JSON object; got {kwargs!r}")
    if strategy and message != Setting.message:
        raise ConfigurationError("red-team: --message goes with --defence; a strategy has its own, in --kwargs")
    check_choice("red-team", "message", message, MESSAGES)
    if defence:
        steps = Setting.local_steps * Setting.local_learning_rate
        defaults = {"message": message, "fraction_evaluate": 0.0}
        if not message_kind(message).local_steps:  # as far as the local steps of a client that sends parameters
            defaults["server_learning_rate"] = steps
        make, subject = functools.partial(RobustStrategy, defence, **{**defaults, **options}), defence
    else:
        make, subject = functools.partial(_strategy_class(strategy), **options), strategy
    try:
        with quiet():
            made = make()
    except FlwrRobustError:
        raise
    except Exception as error:  # another author's class may raise any error
        raise ConfigurationError(
            f"red-team: {subject} cannot be made with {kwargs}: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(made, Strategy):
        raise ConfigurationError(f"red-team: {subject} must be a flwr.serverapp.strategy.Strategy; it is none")
    return make, f"{subject} {json.dumps(options, sort_keys=True)}" if options else subject


def _strategy_class(path: str) -> Callable[..., Any]:
    """Return the class named by a path."""
    module_name, colon, class_name = path.partition(":")
    if not (module_name and colon and class_name):
        raise ConfigurationError(
            f"red-team: --strategy must be package.module:Class; got {path!r}; for a defence string take --defence"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the import runs another author's code
        raise ConfigurationError(
            f"red-team: module {module_name} of --strategy cannot be imported: {type(error).__name__}: {error}"
        ) from None
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Strategy)
        ]
        if not classes:
            raise ConfigurationError(
                f"red-team: --strategy must be package.module:Class, such as flwr.serverapp.strategy:Krum; "
                f"got {path!r}, and there is no strategy in {module_name}"
            )
        raise UnknownNameError(f"strategy in {module_name}", class_name, classes)
    return found
