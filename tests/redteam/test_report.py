"""The heatmaps of red teams: first and last rows, what died, the setting, and type that is not too small."""

import dataclasses
from itertools import pairwise

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from flwr_robust.redteam.battery import BATTERY
from flwr_robust.redteam.report import comparison_map, heatmap
from flwr_robust.studies.canvas import PAGE, SMALL
from tests.redteam.test_red_team import found


def rows_of(axis):
    """The texts of the cells by the label of their row."""
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    cells = {}
    for text in axis.texts:
        x, y = text.get_position()
        cells.setdefault(labels[round(y)], {})[round(x)] = text.get_text()
    return {label: [cells[label][x] for x in sorted(cells[label])] for label in labels}


def frames(axis):
    """The places that have a frame, as row and column."""
    return {
        (round(patch.get_y() + 0.44), round(patch.get_x() + 0.44))
        for patch in axis.patches
        if patch.get_facecolor()[3] == 0
    }


def hatches(axis):
    """The places that are hatched, as row and column."""
    return {(round(patch.get_y() + 0.5), round(patch.get_x() + 0.5)) for patch in axis.patches if patch.get_hatch()}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def note_of(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_rows_begin_with_no_attack_and_end_with_the_worst_which_is_framed_and_named():
    result = found({("a()", 1): 0.5, ("b()", 1): 0.3, ("a()", 2): 0.2, ("b()", 2): 0.25})
    figure = heatmap(result)
    axis = figure.axes[0]
    assert list(rows_of(axis).items()) == [
        ("no attack", ["90.0", "90.0"]),
        ("mean of the honest", ["80.0", "70.0"]),
        ("a()", ["50.0", "20.0"]),
        ("b()", ["30.0", "25.0"]),
        ("worst", ["30.0", "20.0"]),
    ]
    assert frames(axis) == {(3, 0), (2, 1)}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["f = 1", "f = 2 (> declared)"]
    assert note_of(figure).endswith("Worst: b() for f = 1; a() for f = 2 (> declared)")
    assert (hatches(axis), legend_of(figure)) == (set(), ["worst of its column"])


def test_what_died_is_hatched_and_written_and_low_accuracy_is_not():
    one = found({("a()", 1): 0.0, ("b()", 1): "NaN", ("c()", 1): "died"}, name="one")
    two = found({("a()", 1): 0.5, ("b()", 1): 0.6}, name="two")
    lucky = dataclasses.replace(two.runs["b()", 1, 0], accuracy=0.0, died="in round 1: Bad: luck")
    two = dataclasses.replace(two, runs={**two.runs, lucky.key: lucky})
    figure = comparison_map([one, two])
    axis = figure.axes[0]
    assert rows_of(axis)["a()"] == ["0.0", "50.0"]
    assert rows_of(axis)["b()"] == ["died", "30.0†"]
    assert rows_of(axis)["c()"] == ["died", "-"]
    assert rows_of(axis)["worst"] == ["died", "30.0†"]
    assert hatches(axis) == {(3, 0), (4, 0), (5, 0)}
    values = axis.images[0].get_array()
    assert np.argwhere(np.ma.getmaskarray(values)).tolist() == [[3, 0], [4, 0], [4, 1], [5, 0]]
    assert values[2, 0] == 0  # the lowest accuracy has a colour; death has none
    assert legend_of(figure) == [
        "died: no finite model", "† some seeds died (as 0)", "- not run", "worst of its column",
    ]  # fmt: skip
    assert note_of(figure).endswith("Worst: b() +1 for one; b() for two")


def test_the_picture_states_the_setting_and_is_legible_at_the_width_of_a_page():
    accuracies = {(attack.label, f): 0.5 for attack in BATTERY for f in (1, 2)}
    accuracies[BATTERY[0].label, 1] = "died"
    teams = [found(accuracies, name=f"nnm(f=2) | trimmed_mean(f={index})") for index in range(12)]
    for figure in (heatmap(teams[0]), comparison_map(teams)):
        for word in ("6 clients", "declared f = 1", "task digits", "model mlp", "2 rounds", "seeds 0, 1"):
            assert word in note_of(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = figure.get_size_inches()
        assert width == PAGE
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        assert min(text.get_fontsize() for text in texts) >= SMALL
        for text in texts:
            box = text.get_window_extent(canvas.get_renderer())
            inside = (
                box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width * figure.dpi + 1 and box.y1 <= height * figure.dpi + 1
            )
            assert inside, text.get_text()
        cells = [text.get_window_extent() for text in figure.axes[0].texts]
        assert not any(one.overlaps(two) for one, two in pairwise(cells))


def test_many_strategies_take_panels_of_one_width():
    teams = [found({("a()", 1): 0.5}, name=f"rule_{index:02d}") for index in range(40)]
    figure = comparison_map(teams)
    panels = [axis for axis in figure.axes if axis.images and axis.texts]
    assert len(panels) > 1
    assert [tick.get_text() for axis in panels for tick in axis.get_xticklabels()] == [t.setting.name for t in teams]
    assert len({axis.get_xlim() for axis in panels}) == 1


def test_strategies_of_one_name_keep_their_own_numbers():
    figure = comparison_map([found({("a()", 1): value}, name="same") for value in (0.5, 0.4)])
    assert rows_of(figure.axes[0])["a()"] == ["50.0", "40.0"]
