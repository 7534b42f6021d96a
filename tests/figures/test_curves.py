import numpy as np
import pytest

from trpo_jax import algorithms
from trpo_jax.figures.curves import (
    ALGORITHMS,
    OF_TEAMS,
    WITH_LIMITS,
    Costs,
    Curve,
    comparison,
    learning_curve,
    line_look,
)

NAN = np.nan


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_seeds_are_thin_and_the_interquartile_mean_is_bold():
    returns = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [30.0, 40.0, 50.0], [3.0, 4.0, 5.0]])
    figure = learning_curve(np.array([10, 20, 30]), returns, "TRPO on Test")
    (axes,) = figure.axes
    assert axes.get_title() == "TRPO on Test: return during training"
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "return of training episodes"
    bold = lines(figure)["interquartile mean"]
    np.testing.assert_allclose(bold.get_ydata(), [2.5, 3.5, 4.5])
    np.testing.assert_allclose(bold.get_xdata(), [10, 20, 30])
    assert len(axes.lines) == 4 + 1 + 1  # seeds, their label, the mean
    (band,) = axes.collections
    assert band.get_label() == "95 % interval"
    assert "range" not in [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_band_of_two_seeds_is_their_range():
    figure = learning_curve(np.arange(3), np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 4.0]]), "")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "range"
    (outline,) = axes.collections[0].get_paths()
    for step, (low, high) in enumerate([(1, 2), (2, 5), (3, 4)]):
        ends = outline.vertices[outline.vertices[:, 0] == step, 1]
        assert (ends.min(), ends.max()) == (low, high)


def test_a_wide_band_does_not_stretch_the_axis():
    curve = Curve(np.arange(3), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 9.0, 10.0]]))
    for axes in (
        comparison({"A": {"x": curve}}, ["x"]).axes[0],
        learning_curve(*curve[:2], "").axes[0],
    ):
        (band,) = axes.collections
        assert band.get_paths()[0].vertices[:, 1].min() < -8
        np.testing.assert_allclose(axes.get_ylim(), (-0.5, 10.5))


def test_a_return_is_repeated_for_one_update_before_a_gap_in_a_short_run():
    returns = np.array([[NAN, 1, NAN, 3, 3, 3, 3], [NAN, 3, 5, NAN, NAN, NAN, 7]])
    figure = learning_curve(np.arange(7), returns, "")
    drawn = lines(figure)["interquartile mean"].get_ydata()
    np.testing.assert_allclose(drawn, [NAN, 2, 3, 4, NAN, NAN, 5])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [NAN, 3, 5, 5, NAN, NAN, 7])


def test_a_figure_without_an_episode_says_so():
    figure = learning_curve(np.arange(3), np.full((2, 3), NAN), "")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no training episode ended"]
    assert not learning_curve(np.arange(3), np.ones((2, 3)), "").axes[0].texts


def test_an_algorithm_has_the_same_colour_in_every_figure():
    assert set(algorithms.ALGORITHMS) == {*ALGORITHMS, *WITH_LIMITS, *OF_TEAMS}
    curve = Curve(np.arange(1, 4), np.ones((3, 3)))
    alone = comparison({"A": {"ppo": curve}}, ["ppo"]).axes[0].lines[0]
    beside = comparison({"A": {"mine": curve, "ppo": curve}}, ["mine", "ppo"]).axes[0].lines
    assert alone.get_color() == beside[1].get_color() != beside[0].get_color()
    single = learning_curve(np.arange(3), np.ones((1, 3)), "", "ppo")
    assert lines(single)["one seed"].get_color() == alone.get_color()


@pytest.mark.parametrize("returns", [np.zeros((3, 0)), np.full((2, 4), NAN), np.full((1, 4), NAN)])
def test_a_run_without_returns_gives_an_empty_figure(returns):
    figure = learning_curve(np.arange(returns.shape[1]), returns, "")
    assert all(np.isnan(line.get_ydata()).all() for line in figure.axes[0].lines)


def test_a_seed_without_an_episode_does_not_hide_the_others():
    returns = np.array([[1.0, 2.0, 3.0], [NAN, NAN, NAN]])
    figure = learning_curve(np.arange(3), returns, "")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 2, 3])
    assert np.isnan(lines(figure)["interquartile mean"].get_ydata()).all()


def test_one_seed_has_no_band():
    figure = learning_curve(np.arange(3), np.ones((1, 3)), "")
    assert not figure.axes[0].collections
    assert "one seed" in lines(figure)


def test_a_comparison_has_one_panel_for_each_environment_and_one_legend():
    curve = Curve(np.arange(1, 501) * 10, np.arange(500) + np.zeros((3, 1)))
    figure = comparison({"A": {"x": curve, "y": curve}, "B": {"y": curve}}, ["x", "y", "absent"])
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("A", "B")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["x", "y"]
    (alone,) = right.lines
    assert alone.get_color() == left.lines[1].get_color() != left.lines[0].get_color()
    assert len(left.collections) == 2  # bands
    assert len(alone.get_xdata()) <= 200
    assert alone.get_xdata()[-1] == 5000
    assert figure.get_supxlabel() == "environment steps (bands: 95 % interval over seeds)"
    np.testing.assert_allclose(alone.get_ydata()[-1], 499)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((2, 2), " (bands: range over seeds)"),
        ((2, 3), " (bands: 95 % interval or range over seeds)"),
        ((1, 1), ""),
    ],
)
def test_a_comparison_says_if_its_bands_are_intervals_or_ranges(counts, told):
    curves = {str(n): Curve(np.arange(3), np.zeros((count, 3))) for n, count in enumerate(counts)}
    assert comparison({"A": curves}, ["0", "1"]).get_supxlabel() == f"environment steps{told}"


def test_a_comparison_can_have_empty_panels():
    unknown = Curve(np.arange(3), np.full((2, 3), NAN))
    figure = comparison({name: {} for name in "ABC"} | {"D": {"x": unknown}}, ["x"])
    assert [axes.get_title() for axes in figure.axes] == list("ABCD")


@pytest.mark.parametrize("num_panels", [1, 2, 3])
def test_the_legend_of_a_comparison_fits_into_the_figure(num_panels):
    curve = Curve(np.arange(3), np.zeros((2, 3)))
    labels = [f"algorithm-{n}" for n in range(7)]
    figure = comparison({str(n): dict.fromkeys(labels, curve) for n in range(num_panels)}, labels)
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent().transformed(figure.transFigure.inverted())
    assert 0 <= box.x0 < box.x1 <= 1
    assert 0 <= box.y0 < box.y1 <= 1


def costly(limit, returns=(1.0, 2.0, 3.0)):
    values = np.array([returns] * 3)
    return Curve(np.arange(1, 4), values, {"cost": Costs(10 + values, limit)})


def test_costs_have_panels_below_the_return_with_their_limit():
    values = np.array([[5.0, 4.0, NAN, 2.0]] * 3)
    costs = {"a": Costs(values, np.array([3.0, 3.0, 3.0, 2.0])), "b": Costs(values)}
    figure = learning_curve(np.arange(1, 5), np.ones((3, 4)), "", "cpo", costs)
    top, first, second = figure.axes
    assert top.get_shared_x_axes().joined(top, second)
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == ["cost a", "cost b"]
    *_, mean, limit = first.lines
    np.testing.assert_array_equal(mean.get_ydata(), [5, 4, 4, 2])
    np.testing.assert_array_equal(limit.get_ydata(), [3, 3, 3, 3, 2])
    assert limit.is_dashed()
    assert "limit" not in [line.get_label() for line in second.lines]


def test_a_comparison_has_panels_for_costs():
    limit = np.full(3, 12.5)
    plain = Curve(np.arange(3), np.ones((3, 3)))
    curves = {"A": {"x": costly(limit), "y": costly(None)}, "B": {"x": plain}}
    figure = comparison(curves, ["x", "y"])
    _, b, cost, nothing = figure.axes
    assert not nothing.axison
    assert not b.get_ylabel()
    np.testing.assert_array_equal(cost.lines[0].get_ydata(), [11, 12, 13])
    np.testing.assert_array_equal(cost.lines[-1].get_ydata(), [12.5] * 4)
    assert [line.get_label() for line in cost.lines] == ["x", "y", "limit"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "limit"]
    assert figure.get_supylabel() == "return and costs of training episodes"


def test_different_limits_have_the_colours_of_their_labels():
    curves = {"A": {"x": costly(np.full(3, 12.0)), "y": costly(np.full(3, 11.0))}}
    cost = comparison(curves, ["x", "y"]).axes[1]
    colors = [line.get_color() for line in cost.lines]
    assert colors[:2] == colors[2:]
    (limit,) = (
        comparison({"A": {x: costly(np.full(3, 12.0)) for x in "xy"}}, ["x", "y"]).axes[1].lines[2:]
    )
    assert limit.get_color() == "black"


def test_every_algorithm_has_its_own_look():
    looks = [line_look((), name) for name in (*ALGORITHMS, *WITH_LIMITS, *OF_TEAMS)]
    assert len({(x["color"], str(x["linestyle"])) for x in looks}) == len(looks)
