"""What is printed of a run that has ended."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trpo_jax.analysis.statistics import ScoreSummary

TABLE_ROWS = 16  # seeds listed one by one at the most


def print_evaluation(
    console: Console, seeds: Sequence[int], scores: np.ndarray, summary: ScoreSummary, episodes: int
) -> None:
    """Prints the evaluation of each seed and of all together."""
    table = Table(title=f"Return of the deterministic policy over {episodes} fresh episodes a seed")
    table.add_column("seed")
    table.add_column("mean return", justify="right")
    for seed, score in list(zip(seeds, scores, strict=True))[:TABLE_ROWS]:
        table.add_row(str(seed), f"{score:.1f}")
    if len(scores) > TABLE_ROWS:
        table.add_row("...", f"{len(scores) - TABLE_ROWS} more in summary.json")
    if summary.ci95 is not None:
        low, high = summary.ci95
        table.add_section()
        table.add_row("mean", f"{summary.mean:.1f}")
        table.add_row("95 % interval of the mean", f"{low:.1f} to {high:.1f}")
        table.add_row("interquartile mean", f"{summary.iqm:.1f}")
        table.add_row("standard deviation", f"{summary.std:.1f}")
    console.print(table)


def print_files(console: Console, folder: Path) -> None:
    """Prints where the files of a run are."""
    console.print(f"Files in {folder}:", highlight=False, soft_wrap=True)
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}", highlight=False)
