"""What a run looks like in the terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trpo_jax.analysis.statistics import INTERVAL, RANGE, ScoreSummary
from trpo_jax.running.loop import Chunk

PLAIN_LINES = 10  # progress lines of a whole run where the output is no terminal
TABLE_ROWS = 16  # seeds listed one by one at the most


def progress_bar(console: Console, unit: str) -> Progress:
    """Returns a live bar that counts in a unit and shows a task's description behind it.

    It stays away where there is no terminal.
    """
    columns = (
        BarColumn(bar_width=24),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left  {task.description}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def with_progress(
    chunks: Iterable[Chunk], console: Console, num_updates: int, steps_per_update: int
) -> Iterator[Chunk]:
    """Yields the chunks of a run, showing each: a live bar, or plain lines where that cannot be.

    Args:
        chunks: the run.
        console: where to; a quiet one shows nothing.
        num_updates: updates in the whole run.
        steps_per_update: environment steps of one seed in one update.
    """
    printed = 0
    latest_return = None
    with progress_bar(console, "updates") as progress:
        task = progress.add_task("", total=num_updates)
        for chunk in chunks:
            num_seeds, num_chunk_updates = chunk.metrics["kl"].shape
            update = chunk.first_update + num_chunk_updates - 1
            returns = chunk.metrics["episodic_return"]
            if not np.isnan(returns).all():
                latest_return = np.nanmean(returns)
            shown_return = "none yet" if latest_return is None else f"{latest_return:.1f}"
            speed = update * steps_per_update * num_seeds / chunk.seconds
            status = (
                f"return {shown_return}  KL {chunk.metrics['kl'].mean():.4f}  {speed:,.0f} steps/s"
            )
            progress.update(task, completed=update, description=status)
            due = update * PLAIN_LINES // num_updates
            if not console.is_terminal and due > printed:
                left = chunk.seconds / update * (num_updates - update)
                console.print(f"update {update:,}/{num_updates:,}  {status}  {left:.0f} s left")
                printed = due
            yield chunk


@contextmanager
def sweep_progress(
    console: Console, num_runs: int, num_updates: int, steps_per_update: int
) -> Iterator[Callable[[Iterable[Chunk], int], Iterator[Chunk]]]:
    """Gives the function that shows the chunks of a block of runs as they are passed on.

    It is `(chunks, runs in the block) -> chunks`. A live bar shows each chunk; where there is no
    terminal, a line shows each block.

    Args:
        console: where to; a quiet one shows nothing.
        num_runs: runs in all blocks.
        num_updates: updates of a run.
        steps_per_update: environment steps of one run in one update.
    """
    done = 0
    with progress_bar(console, "runs") as progress:
        task = progress.add_task("", total=num_runs)

        def show(chunks: Iterable[Chunk], num_block_runs: int) -> Iterator[Chunk]:
            nonlocal done
            seconds = 0.0
            for chunk in chunks:
                share = chunk.last_update / num_updates
                steps = chunk.last_update * steps_per_update * num_block_runs
                status = f"{steps / chunk.seconds:,.0f} steps/s"
                completed = done + share * num_block_runs
                progress.update(task, completed=completed, description=status)
                seconds = chunk.seconds
                yield chunk
            done += num_block_runs
            if not console.is_terminal:
                left = seconds / num_block_runs * (num_runs - done)
                console.print(f"run {done:,}/{num_runs:,}  {status}  {left:.0f} s left")

        yield show


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
    if len(scores) > 1:
        low, high = summary.ci95 or (scores.min(), scores.max())
        table.add_section()
        table.add_row("mean", f"{summary.mean:.1f}")
        name = f"{INTERVAL} of the mean" if summary.ci95 else RANGE
        table.add_row(name, f"{low:.1f} to {high:.1f}")
        table.add_row("interquartile mean", f"{summary.iqm:.1f}")
        table.add_row("standard deviation", f"{summary.std:.1f}")
    console.print(table)


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
