"""App faults: tell a fault of the whole app from faults of single nodes.

If the first replies of a run are all refused for one reason, the app is at fault, and no node is to blame. The sentence
says what to change. An attacker cannot use this to escape blame: one admitted reply, one abstention or one other reason
ends it, and so does silence of half of the nodes asked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flwr_robust.flower.admission import Reason, Refusal

__all__ = ["app_fault"]

_NOBODYS = (Reason.NOT_ASKED, Reason.DUPLICATE, Reason.BANNED)  # messages that are not a node's answer to the round

_REMEDIES = {
    Reason.ERROR: "their own logs show what they raised",
    Reason.KIND: "answer with Message(content, reply_to=message), which keeps the kind of the message",
    Reason.RECORDS: "answer with one ArrayRecord and one MetricRecord, under the names that records= gives, if any; "
    "flwr_robust.flower.serve does so for a NumPyClient",
    Reason.NAMES: "send back the arrays of the model, all of them and under the names under which they came",
    Reason.PAYLOAD: "put numpy arrays of numbers, or a torch state_dict of float16, float32 or float64, into the "
    "ArrayRecord",
    Reason.SHAPE: "build the same model on clients and server: the same numbers of inputs, classes and layers",
    Reason.DTYPE: "send back floating point where floating point came, and integers of the same type where those came",
    Reason.NOT_FINITE: "the clients' training diverges: lower its learning rate, or use a type with a wider range",
    Reason.NUM_EXAMPLES: "put the number of examples into the MetricRecord, under the name that weighted_by_key= gives",
    Reason.METRICS: "report the metrics that train_metrics= and evaluate_metrics= name, and at most 10,000 numbers",
    Reason.UNREADABLE: "build the records with Flower's own classes",
}


# What clients of Flower's older interfaces raise, and what to do instead.
_LEGACY = {
    "fitins.": "the ClientApp expects Flower's legacy messages: make it with flwr_robust.flower.serve in place of "
    "ClientApp(client_fn=...), and take mods from flwr.clientapp.mod in place of flwr.client.mod",
    "secagg": "SecAgg+ works with Flower's legacy strategies only, and hides from a robust rule what it looks at: "
    "leave its mod out of the ClientApp",
}


def app_fault(asked: Collection[int], refused: Sequence[Refusal]) -> str:
    """Return the sentence that says what is wrong with an app, if a round's refusals show that it is the app.

    Parameters
    ----------
    asked : collection of int
        The nodes that were asked; no reply to this round was admitted, and none abstained.
    refused : sequence of Refusal
        The replies that were refused.

    Returns
    -------
    str
        The sentence; empty unless more than half of the nodes asked have answered, all of them with one fault.

    Examples
    --------
    >>> app_fault([2, 3], [Refusal(2, Reason.NAMES), Refusal(3, Reason.SHAPE)])
    ''
    >>> app_fault([2, 3], [Refusal(2, Reason.KIND), Refusal(3, Reason.KIND)])[:56]
    'all 2 nodes that answered were refused for one reason, s'
    """
    answers = [each for each in refused if each.node in asked and each.reason not in _NOBODYS]
    nodes, reasons = {each.node for each in answers}, {each.reason for each in answers}
    if len(reasons) != 1 or 2 * len(nodes) <= len(asked):
        return ""
    (reason,) = reasons
    detail = f" ({answers[0].detail})" if answers[0].detail else ""
    return (
        f"all {len(nodes)} nodes that answered were refused for one reason, so the fault is the app's and no node's: "
        f"{reason.value}{detail}; {_remedy(reason, answers)}"
    )


def _remedy(reason: Reason, answers: Sequence[Refusal]) -> str:
    for sign, remedy in _LEGACY.items():
        if reason is Reason.ERROR and all(sign in each.detail for each in answers):
            return remedy
    return _REMEDIES[reason]
