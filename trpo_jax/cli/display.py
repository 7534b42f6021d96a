"""What is printed of a run that has ended."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.returns import return_text
from trpo_jax.analysis.statistics import INTERVAL, RANGE, ScoreSummary

TABLE_ROWS = 16  # seeds listed one by one at the most


def print_evaluation(
    console: Console, seeds: Sequence[int], scores: np.ndarray, summary: ScoreSummary, episodes: int
) -> None:
    """Prints the evaluation of each seed and of all together."""
    table = Table(title=f"Return of the deterministic policy over {episodes} fresh episodes a seed")
    table.add_column("seed")
    table.add_column("mean return", justify="right")
    for seed, score in list(zip(seeds, scores, strict=True))[:TABLE_ROWS]:
        table.add_row(str(seed), return_text(score))
    if len(scores) > TABLE_ROWS:
        table.add_row("...", f"{len(scores) - TABLE_ROWS} more in summary.json")
    if len(scores) > 1:
        low, high = summary.ci95 or (scores.min(), scores.max())
        table.add_section()
        table.add_row("mean", return_text(summary.mean))
        name = f"{INTERVAL} of the mean" if summary.ci95 else RANGE
        table.add_row(name, f"{return_text(low)} to {return_text(high)}")
        table.add_row("interquartile mean", return_text(summary.iqm))
        table.add_row("standard deviation", return_text(summary.std))
    console.print(table)


def print_missing_episodes(console: Console, metrics: Mapping[str, np.ndarray]) -> None:
    """Prints which seeds trained without seeing an episode end, if there are any."""
    if "num_episodes" not in metrics:
        return
    without = np.nansum(metrics["num_episodes"], axis=1) == 0
    if without.any():
        names = ", ".join(str(int(seed)) for seed in metrics["seed"][without, 0])
        which = "No training episode" if without.all() else f"No training episode of seed {names}"
        steps = int(metrics["env_steps"][0, -1])
        console.print(
            f"{which} ended within {steps:,} environment steps, so there is no return of training. "
            "Raise --total-steps to see one.",
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
            f"absurdly large, and were left out: {', '.join(of)}. The column broken_episodes of "
            "metrics.csv says when.",
            soft_wrap=True,
        )


def spread_text(
    ends: Sequence[float] | None,
    scores: Sequence[float] | np.ndarray,
    style: Callable[[float], str],
    between: str = " to ",
) -> str:
    """Returns an interval over seeds as text, or the range of too few seeds to have one.

    Args:
        ends: of the interval, or None.
        scores: one a seed.
        style: how a score is written.
        between: what is written between the two ends.
    """
    if len(scores) == 1:
        return "one seed"
    name = "" if ends else f"{RANGE} "
    return name + between.join(map(style, ends or (min(scores), max(scores))))


def print_files(console: Console, folder: Path) -> None:
    """Prints where the files of a run are."""
    console.print(f"Files in {folder}:", highlight=False, soft_wrap=True)
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}", highlight=False)
