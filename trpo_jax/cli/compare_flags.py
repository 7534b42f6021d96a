"""Trains several algorithms on several environments, and writes one table and one figure.

An algorithm is given by its name, or in quotes as LABEL=NAME with flags of train.py, such as
"spo=ppo --loss spo". If a comparison was interrupted, the same command with the same --out
continues it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax import algorithms
from trpo_jax.cli.command_line import Parser, command_name, step_count, time_name
from trpo_jax.cli.environment_flags import add_environment_flags


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line."""
    parser = Parser(prog=command_name("compare"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    help_text = 'algorithms to compare, each NAME or "LABEL=NAME FLAGS" (default: all)'
    known = list(algorithms.ALGORITHMS)
    add("--algorithms", nargs="+", default=known, metavar="ALGORITHM", help=help_text)
    help_text = "environments to train on (default: CartPole-v1)"
    add("--envs", nargs="+", default=["CartPole-v1"], metavar="NAME", help=help_text)
    help_text = (
        "number of seeds for each algorithm on each environment, trained in parallel (default: 10)"
    )
    add("--num-seeds", type=int, default=10, metavar="N", help=help_text)
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    help_text = "environment steps of each seed (default: as in train.py)"
    add("--total-steps", type=step_count, metavar="N", help=help_text)
    help_text = (
        "output folder; runs that it holds are kept or continued (default: runs/comparison/<time>)"
    )
    folder = Path("runs/comparison", time_name())
    add("--out", type=Path, default=folder, metavar="FOLDER", help=help_text)
    help_text = (
        "value of a hyperparameter for the label LABEL, such as ppo.loss=spo; '*.gamma=0.9' sets "
        "it for all labels"
    )
    options = {"nargs": "+", "action": "extend", "default": [], "metavar": "LABEL.FIELD=VALUE"}
    add("--set", **options, dest="settings", help=help_text)
    add_environment_flags(parser)
    return parser.parse_args(words)
