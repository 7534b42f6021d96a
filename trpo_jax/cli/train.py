"""Trains an algorithm on an environment, with several seeds in one program.

Without any flag, it trains TRPO on CartPole-v1. `--help` explains every flag. The defaults of each
environment are in `trpo_jax/running/defaults.toml`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trpo_jax.cli.command_line import cache_compilations, call_of, user_errors
from trpo_jax.cli.display import (
    print_broken_episodes,
    print_evaluation,
    print_files,
    print_missing_episodes,
)
from trpo_jax.cli.placement import IF_LOST, join_processes
from trpo_jax.cli.process_flags import placement_words
from trpo_jax.cli.run_flags import parse_run
from trpo_jax.errors import FileGone
from trpo_jax.processes import is_first
from trpo_jax.records.runs import CHECKPOINTS, DESCRIPTION
from trpo_jax.running.loop import NonFiniteError, broken_text
from trpo_jax.running.results import PolicyFailure, Run
from trpo_jax.running.train import FAILURES, RETURN, train


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = folder = None
    try:
        with user_errors():
            join_processes(words)
            args, settings = parse_run(words)
            folder = settings["out"]
            if args.distributed:
                after = "after its latest checkpoint"
                print(f"{IF_LOST} {resumption(folder, args, after)}", file=sys.stderr)
            cache_compilations()
            run = train(**settings, progress=not args.quiet)
    except FAILURES as error:
        return report_failure(error, folder, args)
    except KeyboardInterrupt:  # before the first update
        written = folder is not None and (folder / DESCRIPTION).is_file()
        kept = f"The files in {folder} are kept." if written else "Nothing was written."
        print(f"Interrupted. {kept}", file=sys.stderr)
        return 130
    console = Console(quiet=args.quiet or not is_first(), highlight=False)
    if run.evaluation is None:
        print(f"Interrupted. {kept_of(run, args, 'the policies at that point')}", file=sys.stderr)
        print(resumption(folder, args), file=sys.stderr)
        print_files(console, folder)
        return 130
    evaluation = run.evaluation
    print_evaluation(
        console,
        run.seeds,
        evaluation.per_seed,
        evaluation.summary,
        args.evaluation_episodes,
        run.evaluated_costs,
    )
    print_missing_episodes(console, run.metrics)
    if run.stopped_by == RETURN:
        per_update = run.algorithm.steps_per_update
        console.print(
            f"Stopped after update {run.num_updates:,}, {run.num_updates * per_update:,} steps: "
            f"every seed has reached a return of {args.stop_at_return:g}",
            soft_wrap=True,
        )
    print_broken_episodes(console, run.metrics)
    print_costs(console, run)
    print_files(console, folder)
    if run.broken:
        print(f"error: {broken_text(run.broken)} The other seeds finished.", file=sys.stderr)
    return 1 if run.broken else 0


def report_failure(error: Exception, folder: Path | None, args: argparse.Namespace | None) -> int:
    """Prints why a run failed and what its folder holds, and returns the exit code."""
    run = getattr(error, "run", None)
    moved = isinstance(error.__cause__, FileGone)  # the folder may hold another run by then
    there = folder is not None and (folder / DESCRIPTION).is_file() and not moved
    kept = f"The files in {folder} are kept."
    if not there:
        kept = f"{folder} holds nothing of this run."
    elif run is not None:
        no_policies = isinstance(error, PolicyFailure)
        kept = kept_of(run, args, None if no_policies else "the last good policy of each seed")
    print(f"error: {str(error).rstrip('.')}. {kept}", file=sys.stderr)
    if there:
        if not isinstance(error, NonFiniteError):  # a resumed run would fail in the same way
            print(resumption(folder, args), file=sys.stderr)
        print_files(Console(quiet=args.quiet or not is_first(), highlight=False), folder)
    return 1


def kept_of(run: Run, args: argparse.Namespace, policies: str | None) -> str:
    """Returns a sentence on the files of a run that ended early."""
    num_updates = args.total_steps // run.algorithm.steps_per_update
    kept = f"metrics.csv holds the run up to update {run.num_updates} of {num_updates}"
    return f"{kept}, and policy.msgpack holds {policies}." if policies else f"{kept}."


def resumption(folder: Path, args: argparse.Namespace, after: str | None = None) -> str:
    """Returns a line with the command that continues a run.

    Args:
        folder: the folder of the run.
        args: the parsed flags.
        after: words for the point from which it continues; None for the newest checkpoint.
    """
    if after is None:
        names = [path.name for path in (folder / CHECKPOINTS).glob("*")]
        numbers = [int(name) for name in names if name.isdigit()]
        after = f"after update {max(numbers)}" if numbers else "from its start"
    words = ["--resume", str(folder), *placement_words(args)]
    return f"To continue the run {after}: {call_of('train', words)}"


def print_costs(console: Console, run: Run) -> None:
    """Prints the time that evaluations during training and checkpoints took."""
    costs = [
        f"{name.replace('_', ' ')} {seconds:.1f} s"
        for name, seconds in run.costs.items()
        if seconds
    ]
    if costs:
        times = f"In addition to {run.seconds:.1f} s of training: {', '.join(costs)}"
        console.print(times, soft_wrap=True)
