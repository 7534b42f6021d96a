"""Figures of a run."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from trpo_jax.training.evaluation import bootstrap_interval, interquartile_mean


def learning_curve(env_steps: np.ndarray, returns: np.ndarray, title: str) -> Figure:
    """Returns a figure of training return against environment steps.

    Every seed is a thin line; the interquartile mean over seeds is bold, with its 95 % bootstrap
    interval. Where no episode ended, a seed's last return stands; the bold line starts where every
    seed has one.

    Args:
        env_steps: `[U]`.
        returns: `[num_seeds, U]`, NaN where no episode ended.
        title: shown above.
    """
    num_seeds = len(returns)
    returns = _fill_forward(returns)
    known = ~np.isnan(returns).any(axis=0)
    all_steps, all_known = env_steps[known], returns[:, known]

    figure = Figure(figsize=(7, 4.2), layout="constrained")  # no pyplot: no window, no backend
    axes = figure.subplots()
    if num_seeds > 1:
        axes.plot(env_steps, returns.T, color="0.6", linewidth=0.7, alpha=0.7)
        axes.plot([], [], color="0.6", linewidth=0.7, label=f"each of {num_seeds} seeds")
    if num_seeds > 1 and known.any():
        low, high = bootstrap_interval(all_known, interquartile_mean)
        band = axes.fill_between(all_steps, low, high, color="tab:blue", alpha=0.25, linewidth=0)
        band.set_label("95 % bootstrap interval")
    label = "interquartile mean" if num_seeds > 1 else "one seed"
    axes.plot(all_steps, interquartile_mean(all_known), color="tab:blue", linewidth=2, label=label)
    axes.set_title(title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of training episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="best")
    return figure


def _fill_forward(returns: np.ndarray) -> np.ndarray:
    indices = np.where(np.isnan(returns), 0, np.arange(returns.shape[1]))
    return np.take_along_axis(returns, np.maximum.accumulate(indices, axis=1), axis=1)
