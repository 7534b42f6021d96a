"""Shows the progress of a run in a terminal, in a notebook or in a file."""

import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trpo_jax.analysis.returns import return_text
from trpo_jax.records.runs import cost_columns, cost_text
from trpo_jax.running.loop import Chunk

PLAIN_LINES = 10  # number of progress lines of a whole run if there is no bar
FIRST_LINE = 2.0  # seconds until the first extra line, which shows that a long run is alive
LINE_SECONDS = 10.0  # seconds from one line about a long evaluation to the next


def progress_console(visible: bool) -> Console:
    """Returns the console for progress. It prints nothing if progress should not be `visible`.

    In a notebook, rich needs ipywidgets for a bar. Without ipywidgets the notebook gets plain
    lines.
    """
    console = Console(quiet=not visible, highlight=False)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(
            quiet=not visible, highlight=False, force_jupyter=False, force_terminal=False
        )
    return console


def duration(seconds: float) -> str:
    """Returns a duration as text: seconds up to two minutes, then hours, minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 120 else str(datetime.timedelta(seconds=round(seconds)))


def has_bar(console: Console) -> bool:
    """Returns whether a console can show a live bar."""
    return console.is_terminal or console.is_jupyter


def progress_bar(console: Console, unit: str) -> Progress:
    """Returns a live bar that counts in a unit and shows the description of a task behind it.

    If the console cannot show a bar, nothing is shown.
    """
    columns = (
        BarColumn(bar_width=24),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left  {task.description}"),
    )
    return Progress(*columns, console=console, disable=console.quiet or not has_bar(console))


def at_doubling_times() -> Callable[[], bool]:
    """Returns a function that returns True once after 2 seconds, once after 4, and so on."""
    started, due = time.perf_counter(), FIRST_LINE

    def lives() -> bool:
        nonlocal due
        passed = time.perf_counter() - started
        if passed < due:
            return False
        due = 2 * passed
        return True

    return lives


def with_progress(
    chunks: Iterable[Chunk],
    console: Console,
    num_seeds: int,
    num_updates: int,
    steps_per_update: int,
) -> Iterator[Chunk]:
    """Yields the chunks of a run and shows the progress, as a live bar or as plain lines.

    Args:
        chunks: the chunks of the run.
        console: shows the progress. A quiet console shows nothing.
        num_seeds: number of seeds that run in parallel.
        num_updates: number of updates in the whole run.
        steps_per_update: environment steps of one seed in one update.
    """
    printed, lives = 0, at_doubling_times()
    latest: dict[str, str] = {}
    with progress_bar(console, "updates") as progress:
        task = progress.add_task("", total=num_updates)
        for chunk in chunks:
            update = chunk.last_update
            for name, (word, text) in shown_metrics(chunk.metrics).items():
                values = chunk.metrics.get(name, np.nan)
                if not np.isnan(values).all():
                    latest[name] = f"{word} {text(np.nanmean(values))}"
                elif name in chunk.metrics:
                    latest.setdefault(name, f"{word} none yet")
            speed = update * steps_per_update * num_seeds / chunk.seconds
            status = "  ".join([*latest.values(), f"{speed:,.0f} steps/s"])
            progress.update(task, completed=update, description=status)
            due = update * PLAIN_LINES // num_updates
            if not has_bar(console) and (lives() or due > printed):
                left = chunk.seconds / update * (num_updates - update)
                console.print(f"update {update:,}/{num_updates:,}  {status}  {duration(left)} left")
                printed = due
            yield chunk


def shown_metrics(names: Iterable[str]) -> dict[str, tuple[str, Callable[[float], str]]]:
    """Returns the metrics to show: for each, a word and a function that formats its number."""
    costs = {metric: (cost_text(name), return_text) for name, metric in cost_columns(names).items()}
    return {
        "episodic_return": ("return", return_text),
        **costs,
        "kl": ("KL", "{:.2g}".format),
    }


@contextmanager
def evaluation_progress(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Gives a function that shows messages about a running evaluation.

    A status line shows the latest message. A console without a status line gets a line every ten
    seconds.
    """
    printed = time.monotonic()
    with console.status(title) as status:

        def tell(words: str) -> None:
            nonlocal printed
            status.update(f"{title}: {words}")
            if not has_bar(console) and time.monotonic() - printed > LINE_SECONDS:
                console.print(f"{title}: {words}")
                printed = time.monotonic()

        yield tell


@contextmanager
def sweep_progress(
    console: Console, num_runs: int, num_updates: int, steps_per_update: int
) -> Iterator[Callable[[Iterable[Chunk], int], Iterator[Chunk]]]:
    """Gives a function that passes on the chunks of a block of runs and shows the progress.

    The function is `(chunks, runs in the block) -> chunks`. A live bar shows each chunk. A console
    without a bar gets one line for each block, and more lines if a block takes long.

    Args:
        console: shows the progress. A quiet console shows nothing.
        num_runs: number of runs in all blocks.
        num_updates: number of updates of a run.
        steps_per_update: environment steps of one run in one update.
    """
    done, lives = 0, at_doubling_times()
    with progress_bar(console, "runs") as progress:
        task = progress.add_task("", total=num_runs)

        def show(chunks: Iterable[Chunk], num_block_runs: int) -> Iterator[Chunk]:
            nonlocal done
            seconds, status = 0.0, ""
            for chunk in chunks:
                share = chunk.last_update / num_updates
                steps = chunk.last_update * steps_per_update * num_block_runs
                status = f"{steps / chunk.seconds:,.0f} steps/s"
                completed = done + share * num_block_runs
                progress.update(task, completed=completed, description=status)
                seconds = chunk.seconds
                if not has_bar(console) and chunk.last_update < num_updates and lives():
                    console.print(f"run {completed:,.1f}/{num_runs:,}  {status}")
                yield chunk
            done += num_block_runs
            if not has_bar(console):
                left = seconds / num_block_runs * (num_runs - done)
                console.print(f"run {done:,}/{num_runs:,}  {status}  {duration(left)} left")

        yield show
