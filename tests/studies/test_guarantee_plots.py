"""Pictures of plans: the lines are the plan's own numbers."""

from matplotlib import pyplot as plt

from flwr_robust import plan
from flwr_robust.diagnostics.planning import bounds_of_f
from flwr_robust.studies.guarantee_plots import plan_figure


def test_the_lines_are_the_bounds_of_f_and_the_plan_is_marked():
    found = plan(60, 6, rule="krum", rounds=10)
    figure = plan_figure(found)
    needed, allowed, mark = figure.axes[0].lines
    samples = [int(x) for x in needed.get_xdata()]
    assert samples[0] == 1
    assert samples[-1] == min(60, 3 * found.sample)
    bounds = bounds_of_f(found, samples)
    assert [int(y) for y in needed.get_ydata()] == [low for low, _ in bounds]
    assert [int(y) for y in allowed.get_ydata()] == [high for _, high in bounds if high is not None]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (found.sample, found.f)
    plt.close(figure)


def test_an_impossible_plan_is_drawn_without_a_mark():
    figure = plan_figure(plan(20, 9, rule="krum"))
    assert len(figure.axes[0].lines) == 2
    plt.close(figure)
