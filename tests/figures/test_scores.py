import numpy as np
import pytest

from trpo_jax.analysis.statistics import Estimate
from trpo_jax.figures.curves import COLORS
from trpo_jax.figures.scores import aggregates, improvements, performance_profiles

LEVELS = np.linspace(0, 1, 5)
SURE, UNSURE = Estimate(np.array(0.7), None), Estimate(np.array(0.4), (0.3, 0.5))


def points(axes):
    return {
        line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"
    }


def intervals(axes):
    return {bar.get_segments()[0][0][1]: bar.get_segments()[0][:, 0] for bar in axes.collections}


def test_a_profile_is_a_line_and_has_a_band_if_there_is_an_interval():
    falling = 1 - LEVELS
    with_band = Estimate(falling, (falling - 0.1, falling + 0.1))
    figure = performance_profiles(LEVELS, {"trpo": with_band, "npg": Estimate(falling / 2, None)})
    (axes,) = figure.axes
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_ydata(), falling)
    np.testing.assert_array_equal(second.get_ydata(), falling / 2)
    assert (first.get_color(), second.get_color()) == COLORS[:2]
    assert len(axes.collections) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["trpo", "npg"]


def test_each_aggregate_has_a_panel_with_one_row_for_each_label():
    figure = aggregates({"IQM": {"a": SURE, "b": UNSURE}, "mean": {"a": UNSURE, "b": SURE}})
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["IQM", "mean"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b"]
    assert points(left) == {0: 0.7, 1: 0.4}
    assert points(right) == {0: 0.4, 1: 0.7}
    np.testing.assert_array_equal(intervals(left)[1], [0.3, 0.5])  # both ends
    assert 0 not in intervals(left)
    bottom, top = left.get_ylim()
    assert bottom > top  # the first label is above


def test_improvements_keep_the_colours_of_their_labels():
    figure = improvements("trpo", {"npg": UNSURE, "vpg": SURE}, ["trpo", "npg", "vpg"])
    (axes,) = figure.axes
    assert points(axes) == {0: 0.4, 1: 0.7}
    colors = [line.get_color() for line in axes.lines if line.get_marker() == "o"]
    assert tuple(colors) == COLORS[1:3]
    assert "than trpo" in axes.get_xlabel()


@pytest.mark.parametrize("num_labels", [1, 14])
def test_no_text_is_cut_off(num_labels):
    labels = [f"a label with some words {n}" for n in range(num_labels)]
    profile = Estimate(1 - LEVELS, None)
    for figure in (
        performance_profiles(LEVELS, dict.fromkeys(labels, profile)),
        aggregates({name: dict.fromkeys(labels, UNSURE) for name in "abcd"}),
        improvements("the baseline", dict.fromkeys(labels, SURE), labels),
    ):
        for _ in range(2):  # saving also draws twice, because the first time settles the layout
            figure.draw_without_rendering()
        box = figure.get_tightbbox()  # inches
        assert min(box.x0, box.y0) > -0.02
        assert box.x1 < figure.get_figwidth() + 0.02
        assert box.y1 < figure.get_figheight() + 0.02
        assert all(axes.get_position().height > 0.3 for axes in figure.axes)
