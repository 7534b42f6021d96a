import numpy as np
import pytest

from trpo_jax.figures.curves import file_of
from trpo_jax.figures.sweeps import sweep_figure

RNG = np.random.default_rng(0)


def test_one_field_gives_a_line_with_a_band():
    scores = np.array([[3.0, 5.0, 4.0], [1.0, 1.0, 1.0], [9.0, 9.0, np.nan]])
    figure = sweep_figure({"max_kl": [0.1, 0.01, 1.0]}, scores, "TRPO on Test")
    (axes,) = figure.axes
    mean = {line.get_label(): line for line in axes.lines}["interquartile mean"]
    np.testing.assert_allclose(mean.get_xdata(), [0.01, 0.1])  # sorted, without the NaN
    np.testing.assert_allclose(mean.get_ydata(), [1, 4])
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "max_kl"
    (band,) = axes.collections
    assert band.get_label() == "95 % interval"
    (legend,) = figure.legends
    assert "95 % interval" in [text.get_text() for text in legend.get_texts()]


def test_the_band_of_two_seeds_is_their_range():
    figure = sweep_figure({"max_kl": [0.1, 0.2]}, np.array([[1.0, 3.0], [2.0, 8.0]]), "")
    (band,) = figure.axes[0].collections
    assert band.get_label() == "range"
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 8)


def test_one_seed_has_no_band():
    figure = sweep_figure({"max_kl": [0.1, 0.2]}, np.ones((2, 1)), "")
    assert not figure.axes[0].collections


def test_a_grid_of_two_fields_gives_a_heat_map_of_interquartile_means():
    settings = {"max_kl": [0.1, 0.1, 0.2, 0.2], "hidden_sizes": [(8,), (64, 64)] * 2}
    scores = np.array([[1.0, 1.0, 1.0, 9.0], [2.0] * 4, [3.0] * 4, [np.nan] * 4])
    axes, bar = sweep_figure(settings, scores, "").axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array().filled(-1), [[1, 3], [2, -1]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["8", "64x64"]
    assert [text.get_text() for text in axes.texts] == ["1.00", "3.00", "2.00", "none"]
    assert "interquartile mean" in bar.get_ylabel()


def test_other_sweeps_give_one_panel_for_each_field():
    settings = {name: RNG.random(9).tolist() for name in ("a", "b")}
    settings |= {"c": [True, False, True] * 3, "d": [1, 2, 4] * 3}
    scores = RNG.random((9, 3))
    figure = sweep_figure(settings, scores, "")
    used = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_xlabel() for axes in used] == ["a", "b", "c", "d"]
    best = used[0].lines[1]
    assert best.get_label() == "best setting"
    highest = int(scores.mean(axis=1).argmax())
    np.testing.assert_allclose(best.get_xdata(), settings["a"][highest])
    excess = np.arange(9.0) + 1
    excess[(highest + 1) % 9] = 0  # the only setting that keeps its limits
    best = sweep_figure(settings, scores, "", excess=excess).axes[0].lines[1]
    np.testing.assert_allclose(best.get_xdata(), settings["a"][(highest + 1) % 9])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("score", [np.nan, 1.0])
@pytest.mark.parametrize("settings", [{"a": [1.0]}, {"a": [1.0], "b": [2.0]}, {"a": [1.0] * 2}])
def test_missing_or_equal_scores_can_be_drawn(settings, score):
    scores = np.full((len(settings["a"]), 3), score)
    assert file_of(sweep_figure(settings, scores, ""), "png", 50)
