"""What a run looks like in a terminal, in a notebook, and where neither is."""

import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trpo_jax.analysis.returns import return_text
from trpo_jax.records.runs import ONLY_COST, cost_columns
from trpo_jax.running.loop import Chunk

PLAIN_LINES = 10  # progress lines of a whole run where there is no bar
FIRST_LINE = 2.0  # seconds until the line that shows that a long run lives
LINE_SECONDS = 10.0  # from one line about a long evaluation to the next


def progress_console(visible: bool) -> Console:
    """Returns the console that progress goes to; one that prints nothing if not `visible`.

    In a notebook, rich needs ipywidgets for a bar. Without it the notebook gets plain lines.
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
    """Says whether a console can show a live bar."""
    return console.is_terminal or console.is_jupyter


def progress_bar(console: Console, unit: str) -> Progress:
    """Returns a live bar that counts in a unit and shows the description of a task behind it.

    It stays away where the console can show none.
    """
    columns = (
        BarColumn(bar_width=24),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left  {task.description}"),
    )
    return Progress(*columns, console=console, disable=console.quiet or not has_bar(console))


def at_doubling_times() -> Callable[[], bool]:
    """Returns a function that is true once after 2 seconds, 4, 8, and so on."""
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
    """Yields the chunks of a run, showing each: a live bar, or plain lines where that cannot be.

    Args:
        chunks: the run.
        console: where to; a quiet one shows nothing.
        num_seeds: seeds that run side by side.
        num_updates: updates in the whole run.
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
    """Returns the metrics beside the bar: the word for each, and how its number is written."""
    costs = {
        metric: ("cost" if name == ONLY_COST else f"cost {name}", return_text)
        for name, metric in cost_columns(names).items()
    }
    return {
        "episodic_return": ("return", return_text),
        **costs,
        "kl": ("KL", "{:.2g}".format),
    }


@contextmanager
def evaluation_progress(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Gives the function that shows words about a running evaluation.

    A status line shows the latest ones; where there can be none, a line every ten seconds.
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
    """Gives the function that shows the chunks of a block of runs as they are passed on.

    It is `(chunks, runs in the block) -> chunks`. A live bar shows each chunk; where there can be
    none, a line shows each block, and some show that a long block lives.

    Args:
        console: where to; a quiet one shows nothing.
        num_runs: runs in all blocks.
        num_updates: updates of a run.
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
