"""Plots at the width of a paper's column and page: no text is too small, cut off or covered."""

import itertools
import subprocess
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flwr_robust.studies import sheets
from flwr_robust.studies.canvas import COLUMN, PAGE, SMALL, TALLEST, chunks, fold
from flwr_robust.studies.document_plots import metric_curves, winners_heatmap
from flwr_robust.studies.plots import draw
from flwr_robust.studies.study import load_study
from tests.studies.test_studies import documents_of

RULES = (
    "mean()",
    "median(f=1)",
    "trimmed_mean(f=1)",
    "krum(f=1)",
    "nnm(f=1) | trimmed_mean(f=1)",
    "clip(c=2.0) | nnm(f=1) | geometric_median(f=1)",
    "faba(f=1)",
    "centered_clipping(tau=0.1)",
    "bucketing(s=2) | median(f=1)",
    "lfighter()",
    "dnc(f=1)",
    "meamed(f=1)",
)
ATTACKS = (
    "none",
    "alie(z=1.5)",
    "ipm(epsilon=0.1)",
    "ipm(epsilon=10.0)",
    "min_max()",
    "min_max(deviation='std')",
    "sign_flip()",
    "sign_flip(c=10.0)",
    "mimic()",
    "gaussian(sigma=10.0)",
    "zero()",
    "inf()",
    "nan()",
    "fang_trimmed_mean()",
)
SHAPES = {"one axis": (5, 0), "twelve rows": (12, 2), "fifteen columns": (3, 14), "large": (12, 14)}


def study_of(path, rows, columns):
    """A study of so many rules and attacks, with the worst case where it has attacks."""
    attack = ", ".join(
        f'{{ label = "{name}", attack = "{name}", attackers = {int(name != "none")} }}' for name in ATTACKS[:columns]
    )
    axes = f"defence = {[*RULES[:rows]]}\n" + (f"attack = [{attack}]\n" if columns else "")
    worst = 'worst_over = "attack"\nagainst = "none"\n' if columns else ""
    path.write_text(
        f'[config]\ntask = "digits"\nclients = 12\n[axes]\n{axes}seed = [0, 1]\n[report]\n{worst}'
        'plots = ["bars", "curves", "heatmap"]\n'
    )
    return load_study(str(path))


def readable(figure):
    """Assert that every text is large enough and inside the figure, and that no two texts overlap much."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    whole = figure.bbox
    boxes = []
    for text in texts_of(figure):
        box = text.get_window_extent(renderer)
        assert text.get_fontsize() >= SMALL, text.get_text()
        assert whole.x0 - 3 <= box.x0 < box.x1 <= whole.x1 + 3, text.get_text()
        assert whole.y0 - 3 <= box.y0 < box.y1 <= whole.y1 + 3, text.get_text()
        if text.get_rotation() in (0, 90):
            boxes.append((text.get_text(), box))
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 3 or high <= 3, (one, two)


def texts_of(figure):
    """Return every text of a figure that is drawn."""
    found = [*figure.texts]
    for legend in figure.legends:
        found += [*legend.get_texts(), legend.get_title()]
    for axis in figure.axes:
        if axis.get_visible():
            found += [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
            for side, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
                ticks = [tick for tick in side.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
                found += [tick.label1 for tick in ticks if tick.label1.get_visible()]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("shape", [*[*SHAPES][:-1], pytest.param("large", marks=pytest.mark.slow)])
def test_every_picture_is_readable_at_its_width(tmp_path, shape, width):
    study = study_of(tmp_path / "s.toml", *SHAPES[shape])
    documents = documents_of(study, lambda labels: 0.3 + 0.05 * RULES.index(labels["defence"]))
    (section,) = sheets.summarise(study, documents)
    names = []
    for name, figure in draw(study, section, documents, width):
        names.append(name)
        wide, high = figure.get_size_inches()
        assert wide == width or (wide == PAGE and shape != "one axis")
        assert width == PAGE or wide == PAGE or high <= TALLEST
        readable(figure)
        said = " ".join(text.get_text() for text in figure.texts)
        assert "clients 12" in said.replace("\n", " ")
        assert "2 seeds" in said.replace("\n", " ")
    assert names == ["final", "curves", "heatmap"]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_winners_and_metrics_are_readable_too(width):
    documents = [
        {
            "labels": {"beta": beta, "p": p, "defence": rule, "seed": "0"},
            "curve": [{"round": at, "accuracy": 0.5 + 0.01 * at, "xi": 1.0 + at} for at in (0, 500, 1000)],
        }
        for beta in ("1", "0.1")
        for p in ("0", "0.2", "0.4", "0.6", "0.8", "1")
        for rule in ("mean", "centered_clipping")
    ]
    readable(winners_heatmap(documents, width=width, said="task digits, " * 20))
    alone = [document for document in documents if document["labels"]["defence"] == "mean"]
    readable(metric_curves(alone, "p", "beta", ["xi"], width=width, said="task digits, " * 20))


def test_the_worst_is_set_apart_and_named(tmp_path):
    study = study_of(tmp_path / "s.toml", 3, 4)
    documents = documents_of(study, lambda labels: 0.9 if labels["attack"] != "alie(z=1.5)" else 0.2)
    (section,) = sheets.summarise(study, documents)
    figure = dict(draw(study, section, documents))["heatmap"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("alie(z=1.5)") == 3
    assert texts.count("20.0") == 6
    assert "right of worst: the attack under which it is" in figure.texts[0].get_text().replace("\n", " ")


def test_labels_are_broken_behind_marks_and_parts_are_alike():
    assert fold("nnm(f=2) | trimmed_mean(f=2)", 20) == "nnm(f=2) |\ntrimmed_mean(f=2)"
    assert fold("abcdefghij", 4) == "abcd\nefgh\nij"
    assert list(map(len, chunks(ATTACKS, 5))) == [5, 5, 4]


def test_plots_leave_a_users_figures_and_backend_alone():
    """A notebook shows its own plots by another backend; what is drawn here must not change that."""
    script = (
        "import matplotlib\n"
        "matplotlib.use('svg')\n"
        "from matplotlib import pyplot as plt\n"
        "mine = plt.figure()\n"
        "import importlib, pkgutil\n"
        "import flwr_robust.redteam, flwr_robust.studies\n"
        "for package in (flwr_robust.redteam, flwr_robust.studies):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "from flwr_robust.studies.canvas import make_panels\n"
        "from flwr_robust.studies.plots import as_file\n"
        "figure, axes = make_panels(2, 3, (4.0, 2.0))\n"
        "assert axes.shape == (2, 3)\n"
        "assert as_file(figure)[:4] == b'\\x89PNG'\n"
        "print(matplotlib.get_backend(), plt.get_fignums(), plt.gcf() is mine)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["svg", "[1]", "True"]
