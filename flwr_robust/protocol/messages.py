"""The kinds of messages: one table of what a client's arrays mean, and of all that depends on it.

======================  ==============================================  ====================================
kind                    what the arrays are                             the server's step
======================  ==============================================  ====================================
``parameters``          the client's parameters after its local steps   x <- x + eta A({x_i - x})
``delta``               their change, x_i - x                           x <- x + eta A({delta_i})
``gradient``            a gradient                                      x <- x - eta A({g_i})
``momentum``            a momentum of gradients                         x <- x - eta A({m_i})
``class_momentum``      one momentum per class that was asked for       see `flwr_robust.protocol.classes`
======================  ==============================================  ====================================

x: the model that was sent; A: the rule; eta: the server's learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr_robust.errors import check_choice

__all__ = ["CLASS_MOMENTUM", "MESSAGES", "MESSAGE_KINDS", "MessageKind", "message_kind"]


@dataclass(frozen=True)
class MessageKind:
    """What a client's arrays mean.

    Attributes
    ----------
    name : str
        Its name in a run config.
    sign : int
        1 if the server steps along the aggregate, -1 if it steps against it.
    relative : bool
        Whether the arrays are a model, so that rules and attacks that scale a message use its change.
    buffers : str
        How the server uses the median of arrays that are not learnt (buffers, such as running means). ``value``: the
        array's new value; ``change``: its change; ``keep``: nothing, the array stays.
    local_steps : bool
        Whether the client takes steps on its own copy of the model before it answers. If not, it answers with one
        gradient.
    momentum : bool
        Whether the client keeps a momentum, a running mean of its gradients, from round to round.
    class_wise : bool
        Whether a round asks for classes, each of which is aggregated on its own.
    """

    name: str
    sign: int
    relative: bool = False
    buffers: str = "keep"
    local_steps: bool = False
    momentum: bool = False
    class_wise: bool = False


MESSAGE_KINDS = {
    kind.name: kind
    for kind in (
        MessageKind("delta", 1, buffers="change", local_steps=True),
        MessageKind("gradient", -1),
        MessageKind("momentum", -1, momentum=True),
        MessageKind("parameters", 1, relative=True, buffers="value", local_steps=True),
        MessageKind("class_momentum", -1, momentum=True, class_wise=True),
    )
}
"""All kinds, by name."""

MESSAGES = tuple(name for name, kind in MESSAGE_KINDS.items() if not kind.class_wise)
"""The names of those that ask for no classes."""

CLASS_MOMENTUM = "class_momentum"
"""The name of the one that does."""


def message_kind(name: str) -> MessageKind:
    """Return the message kind with a given name.

    Parameters
    ----------
    name : str
        One of `MESSAGE_KINDS`.

    Raises
    ------
    ConfigurationError
        If no kind has that name.

    Examples
    --------
    >>> message_kind("momentum").sign, message_kind("parameters").relative
    (-1, True)
    """
    check_choice("protocol", "message", name, MESSAGE_KINDS)
    return MESSAGE_KINDS[name]
