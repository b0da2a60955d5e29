"""Pictures of what may be relied on before a run: plans of samples, and certificates of rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flwr_robust.certificates.certificate import Certificate
from flwr_robust.diagnostics.planning import Plan, bounds_of_f
from flwr_robust.errors import extra
from flwr_robust.studies.canvas import PAGE, finish, fold, make_panels, styled

with extra("studies"):
    from matplotlib.figure import Figure

__all__ = ["certificates_figure", "plan_figure"]

_POINTS = 200  # samples that are looked at


def plan_figure(found: Plan, width: float = PAGE) -> Figure:
    """Draw, over the number of clients asked, the f that the risk needs and the f that the rule allows.

    Parameters
    ----------
    found : Plan
        The plan; its sample and f are marked.
    width : float
        In inches.
    """
    most = min(found.clients, max(20, 3 * (found.sample or found.clients)))
    samples = sorted({1 + round((most - 1) * at / (_POINTS - 1)) for at in range(_POINTS)})
    bounds = bounds_of_f(found, samples)
    with styled():
        figure, axes = make_panels(1, 1, (width, 0.45 * width))
        axis = axes[0, 0]
        needed = axis.step(samples, [low for low, _ in bounds], where="mid", color="#d55e00")[0]
        fitting = [(m, high) for m, (_, high) in zip(samples, bounds, strict=True) if high is not None]
        allowed = axis.step([m for m, _ in fitting], [f for _, f in fitting], where="mid", color="#0072b2", ls="--")[0]
        legend = {"f that the risk needs": needed, "largest f that fits, if f replies are refused": allowed}
        if found.sample is not None and found.f is not None:
            legend["the plan"] = axis.plot([found.sample], [found.f], "o", color="black", ms=5)[0]
        axis.set_xlabel("clients asked in a round")
        axis.set_ylabel("f")
        axis.set_xlim(0, most)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        rounds = f"{found.rounds} round{'s' if found.rounds > 1 else ''}"
        said = (
            f"{found.clients} clients, {found.compromised} compromised, {rounds}, risk {found.risk:g}, "
            f"condition: {found.rule or 'n >= 2f + 1'}"
        )
        finish(figure, said, legend)
    return figure


def certificates_figure(certificates: Sequence[Certificate], width: float = PAGE) -> Figure:
    """Draw what was found of each rule, up to what is proven; unbounded rules have an arrow.

    Parameters
    ----------
    certificates : sequence of Certificate
        Of one measure, n and f; at least one. The smallest found value comes first.
    width : float
        In inches.
    """
    ordered = sorted(certificates, key=lambda each: (each.found, str(each.rule)))
    finite = [x for each in ordered for x in (each.found, each.proven or 0.0) if 0 < x < math.inf]
    one = ordered[0]
    low, high = min([one.lower or 1.0, *finite]) / 1.5, 3 * max([one.lower or 1.0, *finite])
    with styled():
        figure, axes = make_panels(1, 1, (width, 0.5 + 0.17 * len(ordered)))
        axis = axes[0, 0]
        legend = {"no rule has less": axis.axvline(one.lower, color="0.4", ls=":")} if one.lower > 0 else {}
        for place, each in enumerate(reversed(ordered)):
            if math.isinf(each.found):
                legend["unbounded"] = axis.plot([low, high], [place, place], ">-", color="#d55e00", ms=4, lw=0.6)[0]
                continue
            top = each.proven
            if top is not None and math.isfinite(top):
                legend["proven"] = axis.plot([each.found, top], [place, place], "|-", color="#0072b2", ms=6, lw=1.2)[0]
            legend["found"] = axis.plot([max(each.found, low)], [place], "o", color="black", ms=3)[0]
        axis.set_yticks(range(len(ordered)), [fold(str(each.rule), 60) for each in reversed(ordered)])
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.set_xlabel(one.measure)
        axis.spines[["top", "right"]].set_visible(False)
        finish(
            figure, f"n = {one.n}, f = {one.f}; the worst case lies between what was found and what is proven", legend
        )
    return figure
