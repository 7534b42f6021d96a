"""Trains an algorithm with many settings of its hyperparameters, and ranks the settings.

Settings that differ only in real-valued hyperparameters share one compiled program. Each value of
another hyperparameter needs a program of its own. If a sweep was interrupted, the same command with
the same --out continues it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    command_name,
    first_pass,
    step_count,
    time_name,
)
from trpo_jax.cli.environment_flags import add_environment_flags, add_processes_flag
from trpo_jax.cli.process_flags import add_process_flags
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.settings import SCORES


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line.

    Raises:
        ConfigurationError: if the algorithm is unknown.
    """
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
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
        "maximum number of runs in parallel (default: whole settings with two runs for each core "
        "if the environment runs on the host; otherwise 16 on a CPU, and as many as fit into half "
        "of the free memory on an accelerator)"
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
    add_config_flags(parser, first.algorithm, defaults)
    return parser.parse_args(words)
