"""Figures of scores: performance profiles, aggregates, and probabilities of improvement."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trpo_jax.analysis.statistics import Estimate
from trpo_jax.figures.curves import Figure, band_look, legend_above, line_look, style

ROW_HEIGHT = 0.28  # height of a row in inches, in figures with one row for each label


def performance_profiles(levels: np.ndarray, profiles: dict[str, Estimate]) -> Figure:
    """Returns a figure of the fraction of seeds above each score, with pointwise 95 % bands.

    Args:
        levels: normalised scores, `[L]`.
        profiles: fraction of seeds above each level, by label, `[L]` each.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    labels = list(profiles)
    for label, profile in profiles.items():
        look = line_look(labels, label)
        axes.step(levels, profile.value, where="post", **look)
        if profile.ci95 is not None:
            axes.fill_between(levels, *profile.ci95, step="post", **band_look(look["color"]))
    axes.set_xlim(levels[0], levels[-1])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("normalised score $\\tau$")
    axes.set_ylabel("fraction of seeds above $\\tau$")
    style(axes, grid="both")
    legend_above(figure, axes.lines, "Performance profile with 95 % bands")
    return figure


def aggregates(estimates: dict[str, dict[str, Estimate]]) -> Figure:
    """Returns a figure of aggregates with 95 % intervals.

    Each aggregate has a panel, with a row for each label.

    Args:
        estimates: estimates by name of the aggregate, then by label.
    """
    labels = list(next(iter(estimates.values())))
    figure = Figure(figsize=(2.1 * len(estimates) + 1.2, _height(labels)), layout="constrained")
    panels = figure.subplots(1, len(estimates), sharey=True, squeeze=False)[0]
    for axes, (name, by_label) in zip(panels, estimates.items(), strict=True):
        _plot_rows(axes, by_label, labels)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("normalised score")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    figure.suptitle("Aggregate scores with 95 % intervals")
    return figure


def improvements(baseline: str, estimates: dict[str, Estimate], labels: Sequence[str]) -> Figure:
    """Returns a figure of the probability that each label scores higher than the baseline.

    Args:
        baseline: the label that the other labels are compared with.
        estimates: estimates by label, without the baseline.
        labels: all labels. Their order decides the look of each label.
    """
    figure = Figure(figsize=(5, _height(estimates)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    _plot_rows(axes, estimates, labels)
    axes.set_xlim(-0.02, 1.02)
    axes.set_title("Probability of improvement\nwith 95 % intervals")
    axes.set_xlabel(f"probability of a higher score\nthan {baseline}")
    return figure


def _plot_rows(axes: Axes, estimates: dict[str, Estimate], labels: Sequence[str]) -> None:
    """Draws one row for each estimate, from the top: a point on the bar of its interval."""
    for row, (label, estimate) in enumerate(estimates.items()):
        color = line_look(labels, label)["color"]
        if estimate.ci95 is not None:
            axes.hlines(row, *estimate.ci95, color=color, linewidth=5, alpha=0.35)
        axes.plot(estimate.value, row, color=color, marker="o", markersize=5)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    style(axes, grid="x")


def _height(rows: Sequence[str] | dict[str, Estimate]) -> float:
    """Returns the height in inches of a figure with one row for each label."""
    return 1.6 + ROW_HEIGHT * len(rows)
