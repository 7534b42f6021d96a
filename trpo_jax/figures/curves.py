"""Learning curves of one run, and of several runs in comparison."""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from PIL import Image

from trpo_jax.analysis.groups import Group
from trpo_jax.analysis.statistics import interquartile_mean, iqm_spread
from trpo_jax.records.runs import ONLY_COST, cost_text

# The colours are Okabe and Ito's. People with any kind of colour vision can tell them apart. Every
# second line is dashed, so that a line under another line shows. An algorithm has the same look in
# every figure: its place in this tuple decides it. Other labels come after the algorithms.
ALGORITHMS = ("trpo", "npg", "vpg", "ppo", "ua_trpo", "qprop", "trpo_vine")
ALGORITHMS += ("trpo_held_out", "trpo_ensemble")
# Algorithms with limits and algorithms for teams have their own line styles, so they take no look
# from other labels. Algorithms with limits skip the first colour, because trpo has it.
WITH_LIMITS = ("cpo", "pcpo", "trpo_lag", "trpo_pid", "ppo_lag")
OF_TEAMS = ("hatrpo", "happo", "mappo")
OWN_STYLES = ((("", *WITH_LIMITS), (0, (5, 1))), (OF_TEAMS, (0, (4, 1, 1, 1))))
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", (0, (3, 1.5)))
COMPARISON_POINTS = 200  # most points of a line; a panel cannot show more
LONGEST_STAND = 0.02  # share of a run for which a return is repeated if no episode ends


class Figure(matplotlib.figure.Figure):
    """A figure that notebooks show without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        return file_of(self, "png", dpi=100)


LIMIT = {"color": "black", "linestyle": (0, (6, 2)), "linewidth": 1.2, "label": "limit"}


class Costs(NamedTuple):
    """The curve of a cost of one algorithm on one environment.

    Attributes:
        values: cost of an episode, `[num_seeds, U]`; NaN without an episode.
        limit: limit of the cost, `[U]`; None without a limit.
    """

    values: np.ndarray
    limit: np.ndarray | None = None


class Curve(NamedTuple):
    """The learning curve of one algorithm on one environment.

    Attributes:
        env_steps: environment steps at each update, `[U]`.
        returns: return of each seed, `[num_seeds, U]`; NaN without an episode.
        costs: curves of the costs, by the name of the cost.
    """

    env_steps: np.ndarray
    returns: np.ndarray
    costs: Mapping[str, Costs] = MappingProxyType({})


def learning_curve(
    env_steps: np.ndarray,
    returns: np.ndarray,
    title: str,
    algorithm: str = "",
    costs: Mapping[str, Costs] = MappingProxyType({}),
) -> Figure:
    """Returns a figure of the return during training against environment steps.

    Each seed is a thin line. The interquartile mean over seeds is a bold line, drawn where every
    seed has a return. The band around it is its 95 % interval, or the range of fewer than 3 seeds.
    If no episode ends in an update, the last return is repeated for up to 2 % of the run. After
    that, the line has a gap. Each cost has its own panel below, with its limit.

    Args:
        env_steps: environment steps at each update, `[U]`.
        returns: return of each seed, `[num_seeds, U]`; NaN if no episode ended.
        title: the algorithm and the environment, for the title of the figure.
        algorithm: name of the algorithm, which decides the colour.
        costs: curves of the costs, by the name of the cost.
    """
    rows = 1 + len(costs)
    # Figures are made without pyplot, so no window and no backend is opened.
    figure = Figure(figsize=(7, 4.2 + 2.4 * len(costs)), layout="constrained")
    heights = {"height_ratios": [3, *[2] * len(costs)]}
    panels = figure.subplots(rows, squeeze=False, sharex=True, gridspec_kw=heights)[:, 0]
    _draw_seeds(panels[0], env_steps, returns, algorithm)
    what = "return and costs" if costs else "return"
    panels[0].set_title(f"{title}: {what} during training")
    panels[0].set_ylabel("return of training episodes")
    for axes, (name, cost) in zip(panels[1:], costs.items(), strict=True):
        _draw_seeds(axes, env_steps, cost.values, algorithm)
        axes.set_ylabel(cost_label(name))
        if cost.limit is not None:
            _draw_limit(axes, env_steps, cost.limit)
            axes.legend(handles=axes.lines[-1:], frameon=False, loc="best")
    panels[-1].set_xlabel("environment steps")
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    if not np.isnan(returns).all():
        panels[0].legend(frameon=False, loc="best")
    return figure


def cost_label(name: str) -> str:
    """Returns the label of the axis of a cost."""
    return "cost of training episodes" if name == ONLY_COST else f"cost {name}"


def _draw_seeds(axes: Axes, env_steps: np.ndarray, returns: np.ndarray, algorithm: str) -> None:
    """Draws the returns or costs of each seed `[num_seeds, U]`, and their interquartile mean."""
    num_seeds = len(returns)
    none_ended = np.isnan(returns).all()
    returns = _fill_forward(returns, most=max(1, int(LONGEST_STAND * returns.shape[1])))
    dots = {"marker": "." if returns.shape[1] == 1 else ""}  # a line needs two points
    if num_seeds > 1:
        axes.plot(env_steps, returns.T, color="0.6", linewidth=0.7, alpha=0.7, **dots)
        axes.plot([], [], color="0.6", linewidth=0.7, label=f"each of {num_seeds} seeds")
    if none_ended:
        centre = {"transform": axes.transAxes, "ha": "center", "va": "center", "color": "0.4"}
        axes.text(0.5, 0.5, "no training episode ended", **centre)
        axes.set_yticks([])
        axes.set_xlim(0, max(env_steps, default=1))
    label = "interquartile mean" if num_seeds > 1 else "one seed"
    color = line_look((), algorithm)["color"]
    _plot_iqm(axes, env_steps, returns, color=color, linewidth=2, label=label, **dots)
    style(axes)


def _draw_limit(axes: Axes, env_steps: np.ndarray, limit: np.ndarray, **look: Any) -> None:
    """Draws the limit `[U]` of a cost, beginning at step 0."""
    axes.plot([0, *env_steps], [limit[0], *limit], **LIMIT | look)


def comparison(curves: dict[str, dict[str, Curve]], labels: Sequence[str]) -> Figure:
    """Returns a figure that compares several labels: one panel for each environment.

    Each line is the interquartile mean over seeds, drawn where every seed has a value. The band
    around it is its 95 % interval, or the range of fewer than 3 seeds. The text below the panels
    says which of the two the bands are. Each cost has its own panel below the panel of its
    environment.

    Args:
        curves: learning curves by environment, then by label.
        labels: all labels, in the order of the legend.
    """
    columns = 2 if len(curves) in (2, 4) else min(3, len(curves))
    costs = [list(dict.fromkeys(x for y in z.values() for x in y.costs)) for z in curves.values()]
    below = [max(map(len, costs[x : x + columns])) for x in range(0, len(curves), columns)]
    starts = np.cumsum([0, *(1 + x for x in below)])  # first row of panels of each environment row
    width = max(4.8, 3.6 * columns)
    figure = Figure(figsize=(width, 2.7 * starts[-1] + 0.7), layout="constrained")
    all_axes = figure.subplots(starts[-1], columns, squeeze=False)
    bands: set[str] = set()
    used: list[Axes] = []
    for place, (environment, panel) in enumerate(curves.items()):
        row, column = starts[place // columns], place % columns
        top, *others = all_axes[row : row + 1 + len(costs[place]), column]
        returns = {label: x.returns for label, x in panel.items()}
        bands |= _draw_labels(top, panel, returns, labels)
        top.set_title(environment, fontsize="medium")
        for axes, name in zip(others, costs[place], strict=True):
            found = {label: x for label, x in panel.items() if name in x.costs}
            values = {label: x.costs[name].values for label, x in found.items()}
            bands |= _draw_labels(axes, found, values, labels)
            _draw_limits(axes, found, name, labels)
            top.set_ylabel("return", fontsize="small")
            axes.set_ylabel(cost_text(name), fontsize="small")
            axes.sharex(top)
        used += [top, *others]
    for axes in set(all_axes.ravel()) - set(used):
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in used for line in axes.lines}
    if LIMIT["label"] in lines:
        lines[LIMIT["label"]] = Line2D([], [], **LIMIT)
    bands_are = f" (bands: {' or '.join(sorted(bands))} over seeds)" if bands else ""
    figure.supxlabel(f"environment steps{bands_are}", fontsize="medium")
    of = "return and costs" if any(costs) else "return"
    figure.supylabel(f"{of} of training episodes", fontsize="medium")
    title = f"{of.capitalize()} during training"
    legend_above(figure, [lines[x] for x in (*labels, LIMIT["label"]) if x in lines], title)
    return figure


def _draw_labels(
    axes: Axes,
    panel: Mapping[str, Curve],
    values: Mapping[str, np.ndarray],
    labels: Sequence[str],
) -> set[str]:
    """Draws the values `[num_seeds, U]` of each label in a panel, and returns the bands' names."""
    bands: set[str] = set()
    for label, curve in panel.items():
        points = _spread(len(curve.env_steps), COMPARISON_POINTS)
        look = line_look(labels, label)
        band = _plot_iqm(axes, curve.env_steps[points], values[label][:, points], **look)
        if band is not None:
            bands.add(band.get_label())
            band.set(**band_look(look["color"]))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    style(axes)
    return bands


def _draw_limits(axes: Axes, panel: Mapping[str, Curve], name: str, labels: Sequence[str]) -> None:
    """Draws the limits of a cost: one line if all are equal, else one in each label's colour."""
    found = {x: y for x, y in panel.items() if y.costs[name].limit is not None}
    alike = len({tuple(np.unique(curve.costs[name].limit)) for curve in found.values()}) == 1
    longest = sorted(found.items(), key=lambda x: x[1].env_steps[-1])
    for label, curve in longest[-1:] if alike else found.items():
        own = {} if alike else {"color": line_look(labels, label)["color"]}
        _draw_limit(axes, curve.env_steps, curve.costs[name].limit, **own)


def curve_of(group: Group) -> Curve:
    """Returns the learning curve of a group of runs."""
    limits = group.limits if group.limits is not None else [None] * len(group.costs)
    pairs = zip(group.costs.items(), limits, strict=True)
    costs = {name: Costs(values, limit) for (name, values), limit in pairs}
    return Curve(group.env_steps, group.returns, costs)


def line_look(labels: Sequence[str], label: str) -> dict[str, Any]:
    """Returns the look of the line of a label, as arguments of `Axes.plot`.

    An algorithm has the same look in every figure. The other labels take the next looks, in their
    order.
    """
    others = [name for name in labels if name not in (*ALGORITHMS, *WITH_LIMITS, *OF_TEAMS)]
    place = [*ALGORITHMS, *others, label].index(label)
    color, style = COLORS[place % len(COLORS)], LINE_STYLES[place % len(LINE_STYLES)]
    for names, own_style in OWN_STYLES:
        if label and label in names:
            color, style = COLORS[names.index(label)], own_style
    return {"color": color, "linestyle": style, "linewidth": 1.6, "label": label}


def band_look(color: str) -> dict[str, Any]:
    """Returns the look of a band around a line. It is pale with an edge, because bands overlap."""
    edge = {"edgecolor": (color, 0.4), "linewidth": 0.6}
    return {"alpha": None, "facecolor": (color, 0.1)} | edge


def style(axes: Axes, grid: str = "y") -> None:
    """Styles a panel: no frame at the top and the right, and a pale grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)


def file_of(figure: Figure, kind: str, dpi: int) -> bytes:
    """Returns a figure as the content of a small file.

    Args:
        figure: the figure.
        kind: "pdf", "svg" or "png". A pdf has TrueType fonts, as journals ask for. A png has 256
            colours.
        dpi: dots per inch of a png.
    """
    content = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # 42 is TrueType
        figure.savefig(content, format=kind, dpi=dpi)
    if kind == "png":
        image = Image.open(content).convert("RGB").quantize(256, kmeans=1)
        content = io.BytesIO()
        image.save(content, "png", optimize=True)
    return content.getvalue()


def legend_above(figure: Figure, lines: Sequence[Line2D], title: str) -> None:
    """Adds a title and a legend above the panels of a figure, in as many columns as fit."""
    longest = max((len(line.get_label()) for line in lines), default=1)
    fitting = max(1, int(figure.get_figwidth() / (0.6 + 0.09 * longest)))  # inches
    columns = max(1, min(fitting, len(lines)))
    look = {"loc": "outside upper center", "frameon": False, "title_fontsize": "large"}
    figure.legend(handles=lines, ncols=columns, title=title, **look)


def _plot_iqm(
    axes: Axes, env_steps: np.ndarray, returns: np.ndarray, **look: Any
) -> PolyCollection | None:
    """Draws the interquartile mean over seeds where no seed is NaN. Returns its band, or None."""
    known = ~np.isnan(returns).any(axis=0)
    line = np.full(len(env_steps), np.nan)
    line[known] = interquartile_mean(returns[:, known])
    axes.plot(env_steps, line, **look)
    if len(returns) == 1 or not known.any():
        return None
    low, high = np.full((2, len(env_steps)), np.nan)
    name, low[known], high[known] = iqm_spread(returns[:, known])
    alike = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
    seen = axes.dataLim.frozen()
    band = axes.fill_between(env_steps, low, high, label=name, **alike)
    axes.dataLim.set(seen)  # the axis fits the seeds' values; a band of three seeds is far wider
    ends = np.nanmin(returns), np.nanmax(returns)
    axes.update_datalim(list(zip(env_steps[[0, -1]], ends, strict=True)))
    return band


def _spread(length: int, most: int) -> np.ndarray:
    """Returns at most `most` evenly spread indices below `length`, including the last index."""
    return np.unique(np.linspace(length - 1, 0, min(length, most)).round().astype(int))


def _fill_forward(returns: np.ndarray, most: int) -> np.ndarray:
    """Returns the returns with a NaN replaced by the last return, for at most `most` places."""
    places = np.arange(returns.shape[1])
    last = np.maximum.accumulate(np.where(np.isnan(returns), 0, places), axis=1)
    return np.where(places - last <= most, np.take_along_axis(returns, last, axis=1), np.nan)
