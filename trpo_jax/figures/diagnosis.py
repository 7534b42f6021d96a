"""The diagnosis of a run on one page: panels with the signs of its steps, and its warnings."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.analysis.diagnosis import RunWarning, describe
from trpo_jax.analysis.diagnosis_costs import cost_notes
from trpo_jax.errors import counted
from trpo_jax.figures.curves import COLORS, Figure, style
from trpo_jax.figures.diagnosis_panels import Panel, panels
from trpo_jax.records.runs import StoredRun

POINTS = 100  # most points of a line; a panel cannot show more
SMALL, TITLE = 7, 8.5  # font sizes in points
# Sizes in inches. The page is as wide as A4. All places are fixed, so no layout engine is needed.
WIDTH, LEFT, GAP, RIGHT = 8.27, 0.6, 0.6, 0.25
HEADER, PANEL, BELOW, LINE, FOOTER = 0.95, 1.35, 1.1, 0.14, 0.25
PANEL_WIDTH = (WIDTH - LEFT - GAP - RIGHT) / 2
FINE = COLORS[2]


def headline(run: StoredRun) -> tuple[str, str]:
    """Returns the title of a run (algorithm and environment), and a line about its length."""
    seeds = run.metrics["seed"][:, 0].astype(int)
    updates, steps = (int(run.metrics[name][0, -1]) for name in ("update", "env_steps"))
    which, each = f"seed {seeds[0]}", ""
    if len(seeds) > 1:
        which, each = f"seeds {seeds[0]} to {seeds[-1]}", " each"
    planned = run.description["total_steps"]
    stopped = f" of {planned:,}" if planned >= steps + steps // updates else ""
    return (
        f"{run.description['algorithm'].upper()} on {run.description['env']}",
        f"{which}: {steps:,}{stopped} environment steps{each}, in {counted(updates, 'update')}",
    )


def diagnosis(run: StoredRun, found: Sequence[RunWarning]) -> Figure:
    """Returns the page about a run: its panels, with its warnings below.

    Args:
        run: the run.
        found: the warnings about the run, from `find_warnings`.
    """
    drawn, lines = panels(run), _footer(run, found)
    rows = -(-len(drawn) // 2)
    height = HEADER + rows * (PANEL + BELOW) + LINE * len(lines) + FOOTER
    figure = Figure(figsize=(WIDTH, height))  # without pyplot, no window and no backend is opened
    _head(figure, run, height)
    warned = {warning.metric for warning in found}
    for place, panel in enumerate(drawn):
        row, column = divmod(place, 2)
        left = LEFT + column * (PANEL_WIDTH + GAP)
        bottom = height - HEADER - PANEL - row * (PANEL + BELOW)
        box = (left / WIDTH, bottom / height, PANEL_WIDTH / WIDTH, PANEL / height)
        axes = figure.add_axes(box)
        _draw(axes, run.metrics["env_steps"][0], panel)
        _label(axes, panel, not warned.isdisjoint(panel.metrics))
    for below, (line, look) in zip(reversed(range(len(lines))), lines, strict=True):
        bottom = (FOOTER + LINE * below) / height
        figure.text(LEFT / WIDTH, bottom, line, fontsize=SMALL, **look)
    return figure


def _draw(axes: Axes, env_steps: np.ndarray, panel: Panel) -> None:
    """Draws the lines of a panel, their bands, and the area where they should be."""
    spans = np.unique(np.linspace(0, len(env_steps), POINTS + 1).astype(int))
    steps = env_steps[spans[1:] - 1]

    def thinned(values):
        return np.stack([signs.median(values[:, a:b]) for a, b in pairwise(spans)], axis=1)

    if panel.log:
        axes.set_yscale("log")
    for color, (label, values) in zip(COLORS, panel.lines.items(), strict=False):
        values = thinned(values)
        axes.plot(steps, signs.median(values, axis=0), color=color, lw=1.3, label=label)
        low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    if panel.fine:
        ends = thinned(np.stack(np.broadcast_arrays(*panel.fine, env_steps)[:2]))
        axes.plot(steps, ends.T, color=FINE, lw=0.6, zorder=1)
    axes.set_ylim(panel.limits)  # None keeps the limits
    if panel.fine:
        low, high = np.clip(ends, *axes.get_ylim())
        axes.fill_between(steps, low, high, color=FINE, alpha=0.13, linewidth=0, zorder=0)
    axes.set_xlim(0, env_steps[-1])
    if all(np.isnan(values).all() for values in panel.lines.values()):
        axes.set_yticks([])
        look = {"transform": axes.transAxes, "ha": "center", "color": "0.5", "fontsize": SMALL}
        axes.text(0.5, 0.5, "nothing to show in this run", **look)


def _label(axes: Axes, panel: Panel, warned: bool) -> None:
    """Writes the title of a panel, and the text on how to read it."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(which="both", labelsize=SMALL)
    axes.set_xlabel("environment steps", fontsize=SMALL, labelpad=1)
    style(axes)
    title = f"\N{WARNING SIGN} {panel.title}" if warned else panel.title
    color = COLORS[1] if warned else "black"
    axes.set_title(title, loc="left", fontsize=TITLE, fontweight="bold", color=color)
    if len(panel.lines) > 1:
        look = {"frameon": False, "fontsize": SMALL, "borderaxespad": 0, "handlelength": 1.5}
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.02), ncols=2, **look)
    axes.annotate(
        "\n".join(_wrap(panel.reading, PANEL_WIDTH)),
        (0, 0),
        (0, -27),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
        color="0.25",
        linespacing=1.3,
    )


def _head(figure: Figure, run: StoredRun, height: float) -> None:
    """Writes the title of the page and the legend of lines and areas."""
    title, below = headline(run)
    look = {"fontsize": 13, "fontweight": "bold", "va": "center"}
    figure.text(LEFT / WIDTH, 1 - 0.3 / height, f"Diagnosis of {title}", **look)
    figure.text(LEFT / WIDTH, 1 - 0.53 / height, below, fontsize=8, color="0.25", va="center")
    one = len(run.metrics["seed"]) == 1
    handles = [Line2D([], [], color=COLORS[0], label="the seed" if one else "median over seeds")]
    if not one:
        handles += [Patch(color=COLORS[0], alpha=0.2, label="lowest to highest seed")]
    handles += [Patch(color=FINE, alpha=0.13, label="where it should be")]
    corner = (1 - RIGHT / WIDTH, 1 - 0.12 / height)
    look = {"frameon": False, "fontsize": SMALL, "borderaxespad": 0}
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=corner, **look)


def _footer(run: StoredRun, found: Sequence[RunWarning]) -> list[tuple[str, dict[str, str]]]:
    """Returns the lines of text below the panels, each with its look.

    They are the warnings, the notes on costs, and the panels that the algorithm has no metrics for.
    """
    count = f"{len(found) or 'No'} warning{'' if len(found) == 1 else 's'}"
    lines = [(count, {"fontweight": "bold"})]
    for warning in found:
        text = f"\N{BULLET} {warning.name}: {describe(warning)}"
        lines += [(line, {}) for line in _wrap(text, WIDTH - LEFT - RIGHT)]
    for note in cost_notes(run):
        lines += [(line, {"color": "0.25"}) for line in _wrap(note, WIDTH - LEFT - RIGHT)]
    there = {
        "prediction of the gain": "surrogate_gain_ratio" in run.metrics,
        "conjugate gradient": "cg_residual" in run.metrics,
        "line search": signs.has_line_search(run),
    }
    absent = " and no ".join(what for what in there if not there[what])
    if absent:
        algorithm = run.description["algorithm"].upper()
        lines.append((f"{algorithm} has no {absent}, so there is no such panel.", {"color": "0.5"}))
    return lines


def _wrap(text: str, width: float) -> list[str]:
    """Returns a text in the small font as lines that are at most `width` inches wide."""
    return textwrap.wrap(text, int(width * 19), break_on_hyphens=False)
