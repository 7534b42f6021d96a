import re
from dataclasses import fields

import numpy as np
import pytest
from healthy_runs import healthy_run
from matplotlib.text import Text

from trpo_jax import algorithms
from trpo_jax.analysis.diagnosis import RunWarning, find_warnings
from trpo_jax.figures.diagnosis import diagnosis
from trpo_jax.figures.diagnosis_panels import panels

NAN = np.nan
WARNING = RunWarning(
    "CG residual high", "cg_residual", (7, 8), (1, 60), "residual 0.7", "Raise --damping " * 12
)


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts)


def panel_of(figure, word):
    (axes,) = (axes for axes in figure.axes if word in axes.get_title(loc="left"))
    return axes


def test_the_page_has_one_panel_for_each_sign():
    figure = diagnosis(healthy_run(), [])
    words = ("Return", "KL", "Gain", "residual", "Fraction", "rejected", "Entropy", "critic")
    assert len(figure.axes) == len(words)
    for word, title in zip(words, titles(figure), strict=True):
        assert word in title
    assert "Diagnosis of TRPO on CartPole-v1" in texts(figure)
    assert "seeds 7 to 9: 60,000 environment steps each, in 60 updates" in texts(figure)
    assert "No warnings" in texts(figure)
    for axes in figure.axes:
        assert axes.get_xlabel() == "environment steps"
        (reading,) = axes.texts
        assert len(reading.get_text().splitlines()) <= 3


@pytest.mark.parametrize(
    ("algorithm", "num_panels", "said"),
    [
        ("npg", 6, "NPG has no line search"),
        ("ppo", 5, "PPO has no prediction of the gain and no conjugate gradient and no line"),
    ],
)
def test_panels_without_metrics_are_left_out(algorithm, num_panels, said):
    figure = diagnosis(healthy_run(algorithm), [])
    assert len(figure.axes) == num_panels
    assert said in texts(figure)


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
def test_the_text_of_a_panel_names_only_flags_of_the_algorithm(algorithm):
    known = {field.name for field in fields(algorithms.get(algorithm).Config)}
    for panel in panels(healthy_run(algorithm)):
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", panel.reading)}
        assert flags <= known, panel.title


def test_lines_are_medians_and_bands_reach_from_the_lowest_to_the_highest_seed():
    run = healthy_run(num_updates=10)
    run.metrics["entropy"] = np.array([[1.0], [2.0], [6.0]]) + np.arange(10)
    axes = panel_of(diagnosis(run, []), "Entropy")
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), 1000 * np.arange(1, 11))
    np.testing.assert_array_equal(line.get_ydata(), 2 + np.arange(10))
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    assert (box.ymin, box.ymax) == (1, 15)


def test_many_updates_are_thinned_to_medians():
    run = healthy_run(num_seeds=1, num_updates=1000)
    run.metrics["entropy"] = np.where(np.arange(1000) % 10 == 3, 99.0, np.arange(1000))[None]
    (line,) = panel_of(diagnosis(run, []), "Entropy").lines
    np.testing.assert_array_equal(line.get_xdata(), 10_000 * np.arange(1, 101))
    np.testing.assert_allclose(line.get_ydata(), 10 * np.arange(100) + 5, atol=1)


def test_the_bound_in_the_panel_falls_with_decay_steps():
    run = healthy_run(decay_steps=60_000)
    axes = panel_of(diagnosis(run, []), "KL")
    mean, _, _, bound = axes.lines
    np.testing.assert_allclose(bound.get_ydata(), 0.01 * (1 - np.arange(60) / 60))
    np.testing.assert_allclose(mean.get_ydata(), np.median(run.metrics["kl"], axis=0))
    assert axes.get_yscale() == "log"
    unknown = healthy_run(max_kl_per_dimension=True)
    axes = panel_of(diagnosis(unknown, []), "KL")
    assert len(axes.lines) == 2
    assert "does not say" in axes.texts[0].get_text().replace("\n", " ")


@pytest.mark.parametrize(
    ("word", "low", "high"), [("Gain", 0.5, 2), ("rejected", 0, 0.2), ("critic", 0.1, 1)]
)
def test_green_areas_show_the_range_without_warnings(word, low, high):
    axes = panel_of(diagnosis(healthy_run(), []), word)
    _, area = axes.collections
    box = area.get_datalim(axes.transData)
    np.testing.assert_allclose((box.ymin, box.ymax), (low, high))


def test_a_panel_without_numbers_says_so():
    run = healthy_run()
    run.metrics["step_rejected"][:] = 1
    axes = panel_of(diagnosis(run, []), "Fraction")
    assert "nothing to show in this run" in [text.get_text() for text in axes.texts]


def test_warnings_are_listed_below_and_mark_their_panel():
    figure = diagnosis(healthy_run(), [WARNING])
    marked = [title for title in titles(figure) if title.startswith("\N{WARNING SIGN}")]
    assert len(marked) == 1
    assert "residual" in marked[0]
    assert "1 warning \N{BULLET} CG residual high: seeds 7, 8" in texts(figure)


def test_the_page_says_if_a_run_stopped_early():
    run = healthy_run()
    run.description["total_steps"] = 61_000
    assert "60,000 of 61,000 environment steps" in texts(diagnosis(run, []))
    run.description["total_steps"] = 60_999  # less than one update is missing
    assert "seeds 7 to 9: 60,000 environment steps" in texts(diagnosis(run, []))


@pytest.mark.parametrize("algorithm", ["trpo", "npg", "ppo"])
@pytest.mark.parametrize("count", [0, 9])
def test_all_text_is_on_the_page_and_does_not_overlap(algorithm, count):
    figure = diagnosis(healthy_run(algorithm), [WARNING] * count)
    figure.draw_without_rendering()
    drawn = [*figure.texts, *figure.legends]
    for axes in figure.axes:
        drawn += [axes.patch, axes.texts[0], axes.xaxis.label, axes._left_title]
        drawn += [axes.get_legend()] if axes.get_legend() else []
    boxes = [(str(artist), artist.get_window_extent()) for artist in drawn]
    width, height = figure.canvas.get_width_height()
    for i, (name, box) in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= width, name
        assert 0 <= box.y0 < box.y1 <= height, name
        for other_name, other in boxes[:i]:
            assert not box.shrunk(0.98, 0.8).overlaps(other), (name, other_name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_updates", [1, 60])
@pytest.mark.parametrize(
    "columns",
    [
        {"step_rejected": 1.0, "kl": 0.0, "kl_max": 0.0, "surrogate_gain_ratio": 0.0},
        {"episodic_return": NAN, "num_episodes": 0.0},
        {"cg_residual": 0.0, "explained_variance": NAN},
    ],
)
def test_a_run_without_numbers_can_be_drawn(columns, num_updates):
    run = healthy_run(num_seeds=1, num_updates=num_updates)
    run.metrics.update({name: np.full((1, num_updates), x) for name, x in columns.items()})
    found = find_warnings(run)
    figure = diagnosis(run, found)
    figure.draw_without_rendering()
    written = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    assert all(warning.name in written for warning in found)
