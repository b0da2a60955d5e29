"""Pictures of what may be relied on before a run: plans of samples."""

from __future__ import annotations

from flwr_robust.diagnostics.planning import Plan, bounds_of_f
from flwr_robust.errors import extra
from flwr_robust.studies.canvas import PAGE, finish, styled

with extra("studies"):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

__all__ = ["plan_figure"]

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
        figure, axis = plt.subplots(figsize=(width, 0.45 * width), layout="constrained")
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
