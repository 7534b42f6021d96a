"""Figures of a sweep: the scores against the swept values, or against the costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import interquartile_mean, iqm_spread
from trpo_jax.figures.curves import LIMIT, Figure, line_look, style
from trpo_jax.records.limits import best_of
from trpo_jax.records.runs import cost_text

RATIO_OF_LOG = 10  # least ratio of the largest to the smallest value for a logarithmic axis
MOST_TICKS = 8  # most values of an axis that each get a tick
MOST_NUMBERS = 100  # most cells of a heat map that show their number


def sweep_figure(
    settings: Mapping[str, Sequence[Any]],
    scores: np.ndarray,
    title: str,
    algorithm: str = "",
    excess: np.ndarray | None = None,
) -> Figure:
    """Returns a figure of the scores of a sweep against the values that were swept.

    - If one field was swept, a line shows the interquartile mean over seeds. The band around it is
      its 95 % interval, or the range of fewer than 3 seeds. Each seed is a dot.
    - If two fields were swept and all combinations are there, the figure is a heat map.
    - Otherwise each field has a panel, with a dot for each setting and a ring around the best
      setting. The best setting keeps the limits on costs, if any setting does.

    Args:
        settings: values by the name of their field, each `[num_settings]`.
        scores: scores `[num_settings, num_seeds]`; NaN for a run that stopped early.
        title: the algorithm and the environment, for the title of the figure.
        algorithm: name of the algorithm, which decides the colour.
        excess: how far the costs of each setting are above their limits, `[num_settings]`; None
            for 0.
    """
    color = line_look((), algorithm)["color"]
    excess = np.zeros(len(scores)) if excess is None else excess
    names = list(settings)
    values = {name: _distinct(settings[name]) for name in names}
    if len(names) == 2 and len(scores) == np.prod([len(x) for x in values.values()]):
        figure = _heat_map(settings, values, scores)
    else:
        single = len(names) == 1
        width = 6 if single else 3.2 * min(3, len(names))
        rows = -(-len(names) // 3)
        figure = Figure(figsize=(width, 4 if single else 2.6 * rows + 0.5), layout="constrained")
        all_axes = figure.subplots(rows, min(3, len(names)), squeeze=False, sharey=True).ravel()
        for axes, name in zip(all_axes, names, strict=False):
            if single:
                _line(axes, name, settings[name], scores, color)
            else:
                _scatter(axes, name, settings[name], scores, color, excess)
        for axes in all_axes[len(names) :]:
            axes.set_axis_off()
        for axes in all_axes[::3]:
            axes.set_ylabel("return" if single else "return (interquartile mean)")
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}\nreturn of each setting")
    return figure


def limits_figure(
    limits: Sequence[float],
    returns: np.ndarray,
    costs: Mapping[str, np.ndarray],
    title: str,
    algorithm: str = "",
) -> Figure:
    """Returns a figure of the return of policies against their cost, for several limits.

    Each limit is a point at the interquartile means over seeds. Its bars are the 95 % intervals, or
    the ranges of fewer than 3 seeds. A dashed line of the same colour marks the limit. Each seed is
    a dot. Each cost has its own panel. More than `MOST_TICKS` limits have no legend.

    Args:
        limits: the limits, `[num_limits]`.
        returns: returns `[num_limits, num_seeds]`; NaN for a run that stopped early.
        costs: costs by the name of the cost, each `[num_limits, num_seeds]`.
        title: the algorithm and the environment, for the title of the figure.
        algorithm: name of the algorithm, which decides the colour of the line through the points.
    """
    whole = np.isfinite(returns).all(axis=1)
    order = [index for index in np.argsort(limits) if whole[index]]
    figure = Figure(figsize=(1 + 5 * len(costs), 4.2), layout="constrained")
    colors = colormaps["viridis"](np.linspace(0, 0.85, len(order)))
    for axes, (name, values) in zip(
        figure.subplots(1, len(costs), squeeze=False, sharey=True)[0], costs.items(), strict=True
    ):
        places = [interquartile_mean(x[order], axis=1) for x in (values, returns)]
        axes.plot(*places, color=line_look((), algorithm)["color"], linewidth=1, zorder=1)
        for color, index, x, y in zip(colors, order, *places, strict=True):
            own = values[index], returns[index]
            axes.axvline(limits[index], **LIMIT | {"color": color, "label": None}, zorder=1)
            axes.plot(*own, ".", color=color, markersize=4, alpha=0.5)
            (_, *x_ends), (_, *y_ends) = (iqm_spread(z[:, None]) for z in own)
            bars = [np.abs(np.ravel(z) - w)[:, None] for z, w in ((x_ends, x), (y_ends, y))]
            label = f"limit {_label(limits[index])}" if len(order) <= MOST_TICKS else None
            look = {"fmt": "o", "color": color, "capsize": 2, "label": label}
            axes.errorbar(x, y, bars[1], bars[0], **look)
        axes.set_xlabel(cost_text(name))
        style(axes, "both")
    first = figure.axes[0]
    first.set_ylabel("return")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", title="dashed: the limit", frameon=False
    )
    figure.suptitle(f"{title}\nreturn and cost for each limit")
    return figure


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Returns the values without repetition: numbers sorted, other values in their order."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct) if _are_numbers(distinct) else distinct


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _place(axes: Axes, name: str, values: Sequence[Any], labelled: bool) -> np.ndarray:
    """Sets the horizontal axis up for the values of a field.

    Args:
        axes: the panel.
        name: name of the field.
        values: its values.
        labelled: whether each value may get its own tick.

    Returns:
        The horizontal position of each value.
    """
    axes.set_xlabel(name)
    if not _are_numbers(values):
        distinct = _distinct(values)
        axes.set_xticks(range(len(distinct)), [_label(x) for x in distinct])
        return np.array([distinct.index(x) for x in values])
    numbers = np.array(values, float)
    distinct = _distinct(values)
    logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() >= RATIO_OF_LOG
    if logarithmic:
        axes.set_xscale("log")
    if labelled and len(distinct) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(distinct))
    elif logarithmic:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    else:
        axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())
    return numbers


def _line(axes: Axes, name: str, values: Sequence[Any], scores: np.ndarray, color: str) -> None:
    x = _place(axes, name, values, labelled=True)
    order = np.argsort(x)
    x, scores = x[order], scores[order]
    label = "each seed" if scores.shape[1] > 1 else "one seed"
    dots = np.broadcast_to(x[:, None], scores.shape)
    axes.plot(dots, scores, "o", color="0.6", markersize=3, zorder=1)
    axes.plot([], [], "o", color="0.6", markersize=3, label=label)
    if scores.shape[1] > 1:
        whole = np.isfinite(scores).all(axis=1)
        x, scores = x[whole], scores[whole]
        axes.plot(
            x, interquartile_mean(scores, axis=1), "o-", color=color, label="interquartile mean"
        )
        name, low, high = iqm_spread(scores.T)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, label=name)
    style(axes)


def _scatter(
    axes: Axes,
    name: str,
    values: Sequence[Any],
    scores: np.ndarray,
    color: str,
    excess: np.ndarray,
) -> None:
    in_a_grid = len(_distinct(values)) < len(values)
    x = _place(axes, name, values, labelled=in_a_grid)
    iqm = interquartile_mean(scores, axis=1)
    axes.plot(x, iqm, "o", color=color, markersize=4, alpha=0.7, label="each setting")
    if np.isfinite(iqm).any():
        best = best_of(iqm, excess)
        ring = {"color": "black", "markersize": 8, "fillstyle": "none", "linestyle": "none"}
        axes.plot(x[best], iqm[best], marker="o", **ring, label="best setting")
    style(axes)


def _heat_map(
    settings: Mapping[str, Sequence[Any]], values: Mapping[str, list[Any]], scores: np.ndarray
) -> Figure:
    (x_name, columns), (y_name, rows) = values.items()
    table = np.full((len(rows), len(columns)), np.nan)
    means = interquartile_mean(scores, axis=1)
    for x, y, mean in zip(settings[x_name], settings[y_name], means, strict=True):
        table[rows.index(y), columns.index(x)] = mean
    figure = Figure(
        figsize=(2.4 + 0.8 * max(3, len(columns)), 1.6 + 0.5 * max(3, len(rows))),
        layout="constrained",
    )
    axes = figure.subplots()
    image = axes.imshow(table, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), [_label(x) for x in columns])
    axes.set_yticks(range(len(rows)), [_label(y) for y in rows])
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    if table.size <= MOST_NUMBERS:
        known = table[~np.isnan(table)]
        middle = (known.min() + known.max()) / 2 if len(known) else 0.0
        for (i, j), value in np.ndenumerate(table):
            text = "none" if np.isnan(value) else return_text(value)
            color = "black" if np.isnan(value) or value > middle else "white"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize="small")
    figure.colorbar(image, label="return (interquartile mean)")
    return figure
