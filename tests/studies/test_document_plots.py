"""Plots across cells: what is drawn is what the documents say."""

import io
import itertools
import statistics

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from flwr_robust.diagnostics import floors
from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.studies.document_plots import floor_curves, metric_curves, winners_heatmap
from flwr_robust.studies.plots import as_file, draw
from flwr_robust.studies.sheets import Section
from flwr_robust.studies.study import load_study
from flwr_robust.tasks.metrics import METRICS


def grid(accuracy, betas=("1", "0.1"), ps=("0", "0.5", "1"), rules=("mean", "faba", "lfighter"), seeds=("0", "1")):
    """Results whose curves peak at ``accuracy`` in the middle."""
    return [
        {
            "labels": {"beta": beta, "p": p, "defence": rule, "seed": seed},
            "curve": [
                {"round": at, "accuracy": accuracy(beta, p, rule, seed) * share} for at, share in enumerate(PEAK)
            ],
        }
        for beta in betas
        for p in ps
        for rule in rules
        for seed in seeds
    ]


PEAK = (0.1, 1.0, 0.7)


def scored(beta, p, rule, seed):
    best = {"1": "faba", "0.1": "mean"}[beta] if p != "0" else "lfighter"
    return (0.9 if rule == best else 0.8 if rule == "mean" else 0.7) + 0.01 * float(seed) + 0.001 * float(p)


def cells_of(figure):
    """The texts of a heatmap by (row, column), and the cells with a frame."""
    axis = figure.axes[0]
    texts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axis.texts}
    frames = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    return texts, {(round(f.get_y() + 0.46), round(f.get_x() + 0.46)) for f in frames}


def test_a_cell_shows_the_best_rule_and_the_lead_of_the_mean():
    figure = winners_heatmap(grid(scored))
    texts, frames = cells_of(figure)
    assert len(texts) == 6
    assert texts[0, 0] == "90.5\nlfighter\nmean -10.00 ± 0.00"  # means of seeds 0 and 1, of the peaks
    assert texts[0, 2] == "90.6\nfaba\nmean -10.00 ± 0.00"
    assert texts[1, 2] == "90.6\nmean\nmean +20.00 ± 0.00"
    assert frames == {(1, 1), (1, 2)}
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert image.shape == (2, 3)
    assert image[1, 2] == pytest.approx(100 * statistics.fmean([0.901, 0.911]))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "0.5", "1"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["1", "0.1"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("p", "beta")
    assert figure.axes[1].get_xlabel() == "test accuracy, %, best of 3 looks at the test set"
    assert "mean over 2 seeds" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("ahead", "shown", "framed"), [(0.0, "+0.00", True), (2e-5, "-0.00", False), (2e-4, "-0.02", False)]
)
def test_a_frame_says_that_the_mean_is_not_behind(ahead, shown, framed):
    documents = grid(lambda beta, p, defence, seed: 0.9 + (ahead if defence == "faba" else 0.0))
    texts, frames = cells_of(winners_heatmap(documents))
    assert texts[0, 0].endswith(f"mean {shown} ± 0.00")
    assert ((0, 0) in frames) is framed


def test_a_dashed_frame_says_that_seeds_leave_the_winner_open():
    leads = {"0": 0.01, "1": 0.02, "2": 0.03}  # +2 +- 2.48 points: t(2) = 4.303, s / sqrt(3) = 0.577 points

    def lead(beta, p, rule, seed):
        return 0.8 + (leads[seed] * (1 if beta == "1" else 10) if rule == "mean" else 0.0)

    figure = winners_heatmap(grid(lead, ps=("0",), rules=("mean", "faba"), seeds=("0", "1", "2")))
    texts, frames = cells_of(figure)
    assert texts[0, 0].endswith("mean +2.00 ± 2.48")
    assert texts[1, 0].endswith("mean +20.00 ± 24.84")
    assert frames == {(0, 0), (1, 0)}
    assert {patch.get_linestyle() for patch in figure.axes[0].patches} == {"--"}
    assert "dashed where the 95 % interval over seeds holds 0" in figure.axes[0].get_title(loc="left").replace(
        "\n", " "
    )
    sure = winners_heatmap(grid(lambda b, p, rule, seed: lead(b, p, rule, "2") + float(seed) / 100))
    assert {patch.get_linestyle() for patch in sure.axes[0].patches} == {"-"}


def test_what_is_missing_shows():
    documents = [
        d
        for d in grid(scored, seeds=("0",))
        if (d["labels"]["beta"], d["labels"]["p"]) != ("1", "0.5")
        and (d["labels"]["beta"], d["labels"]["p"], d["labels"]["defence"]) != ("0.1", "1", "mean")
    ]
    figure = winners_heatmap(documents)
    texts, _ = cells_of(figure)
    assert set(texts) == {(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)}  # 0.5 comes late, and stands between 0 and 1
    assert texts[1, 2] == "70.1\nfaba\n2 of 3 done"  # without the mean there is no lead
    assert sum("of 3 done" in text for text in texts.values()) == 1
    assert np.ma.getmaskarray(figure.axes[0].images[0].get_array()).sum() == 1
    assert "seeds" not in figure.axes[0].get_title(loc="left")


def test_another_metric_and_another_baseline():
    documents = grid(scored)
    for document in documents:
        for point in document["curve"]:
            point["score"] = 2 * point["accuracy"]
    figure = winners_heatmap(documents, rows="p", columns="beta", metric="score", baseline="faba")
    texts, frames = cells_of(figure)
    assert texts[2, 0] == "1.81\nfaba\nfaba +0.2000 ± 0.0000"
    assert frames == {(1, 0), (2, 0)}
    assert figure.axes[1].get_xlabel() == "score, best of 3 looks at the test set"


def test_every_share_is_shown_in_percent():
    for metric, known in ((name, metric) for name, metric in METRICS.items() if metric.share):
        documents = grid(scored)
        for document in documents:
            document["curve"] = [{"round": p["round"], metric: p["accuracy"]} for p in document["curve"]]
        figure = winners_heatmap(documents, metric=metric)
        best = "90.5\nlfighter\nmean -10.00 ± 0.00" if known.higher else "7.0\nfaba\nmean -1.00 ± 0.00"
        assert cells_of(figure)[0][0, 0] == best
        assert ", %, best of 3 looks at the test set" in figure.axes[1].get_xlabel()


def test_the_end_may_count_instead_of_the_maximum():
    figure = winners_heatmap(grid(scored), take="final")
    assert cells_of(figure)[0][0, 0] == "63.3\nlfighter\nmean -7.00 ± 0.00"  # seven tenths of the peak
    assert figure.axes[1].get_xlabel() == "final test accuracy, %"
    with pytest.raises(ConfigurationError, match="take must be one of best, best_on_test, final; got take='last'"):
        winners_heatmap(grid(scored), take="last")


def diagnosed(points, attackers=1):
    config = {"clients": 10, "attackers": attackers}
    return [
        {"labels": {"partition": name, "seed": "0"}, "config": config, "curve": [{"round": 0, **point}]}
        for name, point in points.items()
    ]


def test_floors_stand_on_the_axes_of_the_measured_gradient():
    points = {"iid": {"xi": 0.5, "A": 2.0, "gradient2": 0.3}, "apart": {"xi": 3.0, "A": 2.0, "gradient2": 0.9}}
    figure = floor_curves(diagnosed(points))
    drawn = {
        axis.get_title(): {line.get_label(): float(line.get_ydata()[0]) for line in axis.lines} for axis in figure.axes
    }
    for name, point in points.items():
        values = list(drawn[f"partition: {name}"].values())
        known = floors(point["xi"], point["A"], 0.1, dimension=9, regular=9)
        order = ("any", "mean", "faba", "trimmed_mean", "centered_clipping")
        assert values == pytest.approx([point["gradient2"], *(known[key] for key in order)])
    assert figure.axes[0].get_yscale() == "log"
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    ticks = [float(text.get_text()) for text in figure.axes[0].get_yticklabels() if text.get_text()]
    assert high > 1000 * low
    assert sum(low <= tick <= high for tick in ticks) >= 2
    without = {name: {k: v for k, v in point.items() if k != "gradient2"} for name, point in points.items()}
    assert len(floor_curves(diagnosed(without)).axes[0].lines) == 5  # older results hold no gradient
    with pytest.raises(ConfigurationError, match="floors need curves with xi and A; got none"):
        floor_curves(diagnosed({"iid": {"xi": 1.0}}))
    with pytest.raises(ConfigurationError, match="floors need curves with xi and A"):
        floor_curves(diagnosed(points, attackers=5))  # no theory for half


def test_studies_ask_for_these_plots():
    """[report] of a study, through `draw`."""
    winners, metrics = load_study("peng2025_grid"), load_study("peng2025_diagnostics")
    documents = [
        {"labels": dict(cell.labels), "config": cell.config.to_mapping(), "curve": [{"round": 0, "accuracy": 0.5}]}
        for cell in winners.cells
    ]
    (drawn,) = draw(winners, Section({}, {}), documents)
    assert drawn[0] == "winners"
    texts, frames = cells_of(drawn[1])
    assert len(texts) == len(frames) == 36  # the mean is level with all, and named first
    assert texts[0, 0] == "50.0\nmean\nmean +0.00"
    documents = [
        {
            "labels": dict(cell.labels),
            "config": cell.config.to_mapping(),
            "curve": [{"round": 0, "xi": 1.0, "A": 2.0, "sigma2": 3.0}],
        }
        for cell in metrics.cells
        if cell.labels["model"] == "mlp"
    ]
    (one, figure), (other, variances), (third, floor) = itertools.islice(
        draw(metrics, Section({}, {}), documents), 3
    )  # before the curves
    assert (one, other, third) == ("xi-A", "sigma2", "floors")
    assert [line.get_ydata().tolist() for line in floor.axes[5].lines][:2] == [
        [pytest.approx(0.01)],
        [pytest.approx(0.04)],
    ]
    assert len(figure.axes) == len(variances.axes) == 6
    assert [line.get_ydata().tolist() for line in figure.axes[5].lines] == [[1.0], [2.0]]
    assert [line.get_ydata().tolist() for line in variances.axes[5].lines] == [[3.0]]


def measured(xi, a, seeds=("0", "1", "2"), partitions=("iid", "apart"), attacks=("static", "dynamic")):
    return [
        {
            "labels": {"partition": partition, "attack": attack, "seed": seed},
            "curve": [
                {"round": at, "accuracy": 0.5, "xi": xi(partition, at) + float(seed)}
                | ({"A": a(attack, at)} if at else {})
                for at in (0, 10, 20)
            ],
        }
        for partition in partitions
        for attack in attacks
        for seed in seeds
    ]


def test_lines_are_means_over_seeds_and_bands_reach_their_ends():
    documents = measured(lambda partition, at: 1.0 + at + 100 * (partition == "apart"), lambda attack, at: 7.0 + at)
    figure = metric_curves(documents, columns="partition", rows="attack")
    assert len(figure.axes) == 4
    first, second = figure.axes[0], figure.axes[1]
    xi, a = first.lines
    assert xi.get_xdata().tolist() == [0, 10, 20]
    assert xi.get_ydata().tolist() == [2.0, 12.0, 22.0]
    assert second.lines[0].get_ydata().tolist() == [102.0, 112.0, 122.0]
    assert a.get_xdata().tolist() == [10, 20]  # no A in round 0
    band = first.collections[0].get_paths()[0].vertices
    assert {(10.0, 11.0), (10.0, 13.0)} <= set(map(tuple, band.tolist()))
    assert (first.get_title(), second.get_title()) == ("partition: iid", "partition: apart")
    assert first.get_ylabel() == "attack: static\ndistance of\ngradients"
    assert figure.axes[2].get_xlabel() == "round"
    assert first.get_yscale() == "log"
    assert len(figure.legends[0].get_texts()) == 2
    assert xi.get_linestyle() != a.get_linestyle()


def test_other_quantities_start_at_zero():
    documents = measured(lambda partition, at: 0.0, lambda attack, at: 7.0, attacks=("static",))
    assert metric_curves(documents, metrics=["xi"]).axes[0].get_yscale() == "linear"  # zero has no logarithm
    figure = metric_curves(documents, metrics=["accuracy"])
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylabel() == "test accuracy, %"
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50.0] * 3


@pytest.mark.parametrize("draw", [winners_heatmap, metric_curves])
def test_pictures_are_not_empty(draw):
    documents = (
        grid(scored)
        if draw is winners_heatmap
        else measured(lambda partition, at: 1.0, lambda attack, at: 2.0, attacks=("static",))
    )
    pixels = imread(io.BytesIO(as_file(draw(documents), dpi=60)))
    assert min(pixels.shape[:2]) > 100
    assert np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).shape[0] > 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: winners_heatmap([]), "at least one result; got none"),
        (lambda: metric_curves([]), "at least one result; got none"),
        (lambda: winners_heatmap(grid(scored), rows="bta"), "unknown axis of the results 'bta'"),
        (lambda: winners_heatmap(grid(scored), rows="p"), "axes must differ; got p, p, defence"),
        (lambda: winners_heatmap(grid(scored), metric="accurcy"), "Did you mean 'accuracy'"),
        (lambda: metric_curves(measured(lambda *_: 1.0, lambda *_: 1.0)), "must not differ along axis attack"),
        (lambda: metric_curves(grid(scored), columns="p", rows="beta"), "must not differ along axis defence"),
        (lambda: metric_curves(grid(scored, rules=("mean",)), columns="p", rows="beta"), "unknown metric .* 'xi'"),
        (lambda: metric_curves(grid(scored), columns="p", metrics=()), "metrics must name at least one"),
    ],
)
def test_what_cannot_be_drawn_is_said(call, words):
    with pytest.raises((ConfigurationError, UnknownNameError), match=words):
        call()
