"""Trains an algorithm with many settings of its hyperparameters, and ranks the settings.

Settings that differ only in real-valued hyperparameters share one compiled program. Each value of
another hyperparameter needs a program of its own. If a sweep was interrupted, the same command with
the same --out continues it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from trpo_jax import algorithms
from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    cache_compilations,
    call_of,
    command_name,
    config_from,
    first_pass,
    flags_in,
    seed_range,
    step_count,
    time_name,
    user_errors,
)
from trpo_jax.cli.environment_flags import (
    add_environment_flags,
    add_processes_flag,
    options_from,
)
from trpo_jax.cli.placement import (
    IF_LOST,
    add_process_flags,
    join_processes,
    place_runs,
)
from trpo_jax.cli.sweep_flags import parse_grid, parse_range, refuse_repeats
from trpo_jax.cli.sweep_report import print_ranking
from trpo_jax.errors import EnvironmentFailure, MemoryFailure, PeerFailure, StorageFailure
from trpo_jax.processes import decided_by_first, is_first
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.sweep import SCORES, Sweep, sweep


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
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
    module = algorithms.get(first.algorithm)
    args = build_parser(module, first).parse_args(words)
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
        "config": config_from(args, module),
        "grid": dict(parse_grid(module, text) for text in args.grid),
        "ranges": dict(map(parse_range, args.range)),
        "seeds": seed_range(args.seed, args.num_seeds),
        "out": Path(decided_by_first(lambda: str(args.out))),  # the clocks of processes differ
        "placement": place_runs(args),
    }
    return args, settings


def build_parser(module: ModuleType, first: argparse.Namespace) -> Parser:
    """Returns the parser, with the defaults for the chosen algorithm and environment."""
    defaults = defaults_for(first.algorithm, first.env)
    parser = Parser(
        prog=command_name("sweep"),
        usage="%(prog)s [FLAG ...]",
        description=__doc__,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("environment, algorithm and seeds")
    add_name_flags(group)
    add = group.add_argument
    help_text = "number of seeds for each setting (default: 4)"
    add("--num-seeds", type=int, default=4, metavar="N", help=help_text)
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    add_processes_flag(group, defaults["env_processes"])
    add_environment_flags(group)
    add = parser.add_argument_group("hyperparameters to sweep").add_argument
    repeated = {"action": "append", "default": []}
    help_text = (
        "values of a hyperparameter, such as max_kl=0.003,0.01 or 'hidden_sizes=64 64,256 256'; "
        "may be given several times, then the sweep tries every combination"
    )
    add("--grid", **repeated, metavar="NAME=VALUES", help=help_text)
    help_text = (
        "draw N settings at random from all ranges; without --range, the ranges come from "
        "search_spaces.toml; the first setting is not random, it has the values of the other flags"
    )
    add("--random", type=int, metavar="N", help=help_text)
    help_text = (
        "range of a real-valued hyperparameter, such as max_kl=1e-3:1e-1:log; the scale is linear, "
        "log, or log1m (logarithmic in 1 - value, for discounts) (default: linear)"
    )
    add("--range", **repeated, metavar="NAME=LOW:HIGH[:SCALE]", help=help_text)
    add = parser.add_argument_group("each run, and its score").add_argument
    total_steps = defaults["total_steps"]
    help_text = f"environment steps of each run (default: {total_steps:,})"
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    help_text = "number of episodes for evaluating the final policy of each run (default: 16)"
    add("--evaluation-episodes", default=16, type=int, metavar="N", help=help_text)
    help_text = (
        "score that ranks the settings: evaluation is the return of the final deterministic "
        "policy, training is the return of the training episodes in the second half of a run; "
        "settings whose mean costs keep their limits come first (default: evaluation)"
    )
    add("--score", choices=SCORES, default="evaluation", help=help_text)
    add = parser.add_argument_group("the sweep and its files").add_argument
    help_text = (
        "maximum number of runs in parallel (default: the number of seeds if the environment runs "
        "on the host; otherwise 16 on a CPU, and as many as fit into half of the free memory on an "
        "accelerator)"
    )
    add("--batch", type=int, metavar="N", help=help_text)
    help_text = "output folder; a sweep that it holds is continued (default: runs/sweeps/<time>)"
    add(
        "--out",
        type=Path,
        default=Path("runs/sweeps", time_name()),
        metavar="FOLDER",
        help=help_text,
    )
    add("--quiet", action="store_true", help="print errors only")
    add_process_flags(parser)
    add_config_flags(parser, module, defaults)
    return parser


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
