"""Trains an algorithm with many settings of its hyperparameters, and ranks the settings."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trpo_jax.cli.command_line import (
    cache_compilations,
    call_of,
    config_from,
    flags_in,
    seed_range,
    user_errors,
)
from trpo_jax.cli.environment_flags import options_from
from trpo_jax.cli.placement import IF_LOST, join_processes, place_runs
from trpo_jax.cli.sweep_flags import parse
from trpo_jax.cli.sweep_report import print_ranking
from trpo_jax.cli.sweep_values import parse_grid, parse_range, refuse_repeats
from trpo_jax.errors import EnvironmentFailure, MemoryFailure, PeerFailure, StorageFailure
from trpo_jax.processes import decided_by_first, is_first
from trpo_jax.running.sweep import Sweep, sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    folder = None
    try:
        with user_errors():
            join_processes(words)
            args, settings = parse_sweep(words)
            folder = settings["out"]
            if args.distributed:
                print(f"{IF_LOST} {kept_of(folder)}", file=sys.stderr)
            cache_compilations()
            found = sweep(**settings, progress=not args.quiet)
    except (EnvironmentFailure, MemoryFailure, PeerFailure, StorageFailure) as error:
        print(f"error: {str(error).rstrip('.')}. {kept_of(folder)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first block
        print(f"Interrupted. {kept_of(folder)}", file=sys.stderr)
        return 130
    if found.stopped_by is not None:
        print(f"Interrupted. {kept_of(folder)}", file=sys.stderr)
        return 130
    if is_first():
        report(found, Console(quiet=args.quiet, highlight=False, soft_wrap=True))
    return 0


def kept_of(folder: Path | None) -> str:
    """Returns a sentence that says how a sweep that stops can be continued."""
    if folder is None:
        return "Nothing was written."
    return f"The same command with --out {folder} continues the sweep."


def parse_sweep(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the parsed flags of a command line, and the arguments of `trpo_jax.sweep` for them.

    Raises:
        ConfigurationError: if a flag cannot work.
    """
    args = parse(words)
    refuse_repeats([*args.grid, *args.range])
    names = ("env", "algorithm", "random", "total_steps", "evaluation_episodes", "score", "batch")
    settings = {name: getattr(args, name) for name in names}
    options = options_from(args)
    settings |= {
        "env_processes": options.processes,
        "env_args": options.args,
        "wrappers": options.wrappers,
        "env_timeout": options.timeout,
        "costs": options.costs,
        "config": config_from(args),
        "grid": dict(parse_grid(args.algorithm, text) for text in args.grid),
        "ranges": dict(map(parse_range, args.range)),
        "seeds": seed_range(args.seed, args.num_seeds),
        "out": Path(decided_by_first(lambda: str(args.out))),  # the clocks of processes differ
        "placement": place_runs(args),
    }
    return args, settings


def report(found: Sweep, console: Console) -> None:
    """Prints the ranking of a sweep, a command that checks its best setting, and its files."""
    within = "" if found.ranking[0].limits is None else " within limits"
    print_ranking(console, found.ranking, f"{found.title}, by {found.score} return{within}")
    if found.ranking[0].summary is not None and found.check is not None:
        command = call_of("train", flags_in(found.check))
        console.print(
            f"The best of {len(found.ranking)} settings looks better than it is, because it was "
            f"chosen by its score. To judge it, train it with fresh seeds:\n  {command}"
        )
    names = ", ".join(sorted(x.name for x in found.folder.iterdir()))
    console.print(f"Files in {found.folder}: {names}")
