"""Kills a run at random moments, resumes it each time, and compares it with an uninterrupted run.

All other flags go to train.py. The exit code is 1 if a result is lost or different.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.console import Console

from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.files import create_run_folder
from trpo_jax.records.runs import DESCRIPTION, METRICS, read_metrics, read_rows

MOST_SECONDS = 0.5  # from an update to the kill, so that it can hit any part of the loop
SCRIPT = [sys.executable, str(Path(__file__).parent.parent / "train.py")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        parser = Parser(description=__doc__.replace("\n", " "), allow_abbrev=False)
        add = parser.add_argument
        help_text = "number of times that SIGKILL ends the run (default: 20)"
        add("--kills", type=int, default=20, metavar="N", help=help_text)
        help_text = "seed of the random moments (default: 0)"
        add("--kill-seed", type=int, default=0, metavar="N", help=help_text)
        help_text = "output folder; it must be new or empty (default: runs/kill_test)"
        add("--out", type=Path, default=Path("runs/kill_test"), metavar="FOLDER", help=help_text)
        args, flags = parser.parse_known_args(argv)
        if args.kills < 1:
            raise ConfigurationError(f"kills = {args.kills} must be at least 1.")
        folder = create_run_folder(args.out)
    whole, killed = folder / "left_alone", folder / "killed"
    flags = [*flags, "--quiet"]
    if subprocess.run([*SCRIPT, *flags, "--out", str(whole)]).returncode != 0:
        return 1
    num_updates = updates_done(whole)
    console.print(f"The uninterrupted run has {num_updates} updates")
    generator = random.Random(args.kill_seed)
    moments = sorted(generator.choices(range(num_updates), k=args.kills))
    command = [*SCRIPT, *flags, "--out", str(killed)]
    for number, moment in enumerate(moments, start=1):
        if not run_and_kill(command, killed, moment, generator.uniform(0, MOST_SECONDS)):
            console.print("The run finished before the next kill")
            break
        done = updates_done(killed)
        console.print(f"kill {number:>2} of {args.kills}: {done:>6} updates in {METRICS}")
        if (killed / DESCRIPTION).is_file():
            command = [*SCRIPT, "--resume", str(killed), "--quiet"]
    if not (killed / "summary.json").is_file() and subprocess.run(command).returncode != 0:
        return 1
    different = list(compare(whole, killed))
    console.print("\n".join(different) or "Nothing is lost, and nothing is different")
    return 1 if different else 0


def run_and_kill(command: Sequence[str], folder: Path, moment: int, seconds: float) -> bool:
    """Runs a command and kills it some seconds after an update. Returns whether the kill hit it."""
    process = subprocess.Popen(command)
    while process.poll() is None and updates_done(folder) < moment:
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def updates_done(folder: Path) -> int:
    """Returns the number of updates in the metrics of a run."""
    path = folder / METRICS
    metrics = read_metrics(path) if path.is_file() else {}
    return metrics["update"].shape[1] if metrics else 0


def compare(whole: Path, resumed: Path) -> Iterator[str]:
    """Yields each difference between the files of two runs, without times."""
    for path in sorted(whole.glob("*.csv")):
        a, b = (without_seconds(*read_rows(folder / path.name)) for folder in (whole, resumed))
        if a != b:
            rows = sum(x != y for x, y in zip(a, b, strict=False))
            yield f"{path.name} has {len(a)} and {len(b)} rows, and {rows} rows differ"
    if (whole / "policy.msgpack").read_bytes() != (resumed / "policy.msgpack").read_bytes():
        yield "policy.msgpack differs"


def without_seconds(columns: list[str], rows: list[list[str]]) -> list[tuple[str, ...]]:
    """Returns the rows of a CSV file without the columns of seconds."""
    kept = np.flatnonzero([not name.endswith("seconds") for name in columns])
    return [tuple(row[i] for i in kept) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
