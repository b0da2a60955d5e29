"""Pictures of plans and certificates: what is drawn are their own numbers."""

from flwr_robust import certify, plan
from flwr_robust.diagnostics.planning import bounds_of_f
from flwr_robust.studies.guarantee_plots import certificates_figure, plan_figure


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


def test_an_impossible_plan_is_drawn_without_a_mark():
    figure = plan_figure(plan(20, 9, rule="krum"))
    assert len(figure.axes[0].lines) == 2


def test_certificates_are_drawn_from_what_was_found_to_what_is_proven():
    found = [certify(text, 7, 2, evaluations=150) for text in ("krum", "mean", "trimmed_mean", "caf")]
    figure = certificates_figure(found)
    (axis,) = figure.axes
    ordered = sorted(found, key=lambda each: (each.found, str(each.rule)))
    assert [label.get_text() for label in axis.get_yticklabels()] == [str(each.rule) for each in reversed(ordered)]
    spans = {tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2}
    krum = next(each for each in found if str(each.rule) == "krum(f=2)")
    assert (krum.found, krum.proven) in spans
    dots = {line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1}
    assert {each.found for each in found if each.found < 1e300} == dots
