"""The tables and notes that are printed at the end of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.costs import limit_text
from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import INTERVAL, RANGE, ScoreSummary

TABLE_ROWS = 16  # at most so many seeds have a row of their own


def print_evaluation(
    console: Console,
    seeds: Sequence[int],
    scores: np.ndarray,
    summary: ScoreSummary,
    episodes: int,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Prints the evaluation of each seed, and statistics over all seeds.

    Args:
        console: where the text goes.
        seeds: the seeds.
        scores: the mean return of each seed.
        summary: the statistics of the scores.
        episodes: the number of episodes that each score is the mean of.
        costs: from `trpo_jax.analysis.costs.describe_costs`. Each cost adds a column. If it has a
            limit, it also adds a line below the table.
    """
    costs = costs or {}
    what = "Return and costs" if costs else "Return"
    played = f"{episodes} fresh episodes per seed"
    table = Table(title=f"{what} of the deterministic policy over {played}")
    table.add_column("seed")
    for name in ("return", *(f"cost {name}" for name in costs)):
        table.add_column(f"mean {name}", justify="right")
    all_scores = [scores, *(np.array(x["per_seed"], float) for x in costs.values())]
    summaries = [
        summary,
        *(ScoreSummary(*map(x.get, ScoreSummary._fields)) for x in costs.values()),
    ]

    def add(label, text, columns):
        table.add_row(label, *map(text, columns))

    for place, seed in enumerate(seeds[:TABLE_ROWS]):
        add(str(seed), return_text, [x[place] for x in all_scores])
    if len(scores) > TABLE_ROWS:
        table.add_row("...", f"{len(scores) - TABLE_ROWS} more in summary.json")
    if len(scores) > 1:
        ends = [
            x.ci95 or (np.nanmin(own), np.nanmax(own))
            for x, own in zip(summaries, all_scores, strict=True)
        ]
        table.add_section()
        add("mean", return_text, [x.mean for x in summaries])
        name = f"{INTERVAL} of the mean" if summary.ci95 else RANGE
        add(name, lambda x: " to ".join(map(return_text, x)), ends)
        add("interquartile mean", return_text, [x.iqm for x in summaries])
        add("standard deviation", return_text, [x.std for x in summaries])
    console.print(table)
    for name, described in costs.items():
        if "limit" in described:
            console.print(limit_text(name, described), soft_wrap=True)


def print_missing_episodes(console: Console, metrics: Mapping[str, np.ndarray]) -> None:
    """Prints the seeds whose training saw no episode end, if there are any."""
    if "num_episodes" not in metrics:
        return
    without = np.nansum(metrics["num_episodes"], axis=1) == 0
    if without.any():
        names = ", ".join(str(int(seed)) for seed in metrics["seed"][without, 0])
        seeds = f" of seed{'s' if without.sum() > 1 else ''} {names}"
        which = f"No training episode{'' if without.all() else seeds}"
        steps = int(metrics["env_steps"][0, -1])
        console.print(
            f"{which} ended within {steps:,} environment steps, so there is no training return. "
            "Raise --total-steps to get one.",
            soft_wrap=True,
        )


def print_broken_episodes(console: Console, metrics: Mapping[str, np.ndarray]) -> None:
    """Prints how many training episodes ended with numbers that are not finite, if any did."""
    if "broken_episodes" not in metrics:
        return
    counts = np.nansum(metrics["broken_episodes"], axis=1).astype(int)
    if counts.any():
        of = [
            f"{n} of seed {seed:.0f}"
            for n, seed in zip(counts, metrics["seed"][:, 0], strict=True)
            if n
        ]
        console.print(
            f"{counts.sum():,} training episodes ended with numbers that are not finite, or "
            f"absurdly large. They were left out: {', '.join(of)}. The column broken_episodes of "
            "metrics.csv shows when.",
            soft_wrap=True,
        )


def cost_cell(described: Mapping[str, Any] | None) -> str:
    """Returns a mean cost and its limit as the text of a cell, or a dash if there is no cost.

    Args:
        described: one cost from `trpo_jax.analysis.costs.describe_costs`.

    Examples:
        >>> cost_cell({"mean": 4.5, "limit": 5.0, "keeps_limit": True})
        '4.50 (limit 5)'
        >>> cost_cell({"mean": 5.5, "limit": 5.0, "keeps_limit": False})
        '5.50 (above limit 5)'
    """
    if described is None:
        return "-"
    text = return_text(described["mean"])
    if "limit" not in described:
        return text
    return f"{text} ({'' if described['keeps_limit'] else 'above '}limit {described['limit']:g})"


def spread_text(
    ends: Sequence[float] | None,
    scores: Sequence[float] | np.ndarray,
    style: Callable[[float], str],
    between: str = " to ",
) -> str:
    """Returns an interval over seeds as text. For too few seeds, returns their range.

    Args:
        ends: both ends of the interval, or None for too few seeds.
        scores: one score for each seed.
        style: turns a score into text.
        between: the text between the two ends.
    """
    if len(scores) == 1:
        return "one seed"
    name = "" if ends else f"{RANGE} "
    return name + between.join(map(style, ends or (min(scores), max(scores))))


def print_files(console: Console, folder: Path) -> None:
    """Prints the folder of a run and the names of its files."""
    console.print(f"Files in {folder}:", highlight=False, soft_wrap=True)
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}", highlight=False)
