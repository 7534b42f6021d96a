"""Plays fresh episodes with the policies of a run, prints mean returns and writes all returns.

The policy of each seed plays twice: first with its most probable actions (deterministic), then with
sampled actions (stochastic).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.cli.command_line import Parser, command_name
from trpo_jax.cli.environment_flags import add_environment_flags


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line."""
    parser = Parser(
        prog=command_name("evaluate"), description=__doc__.replace("\n", " "), allow_abbrev=False
    )
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run")
    help_text = "episodes for each seed and mode (default: 128)"
    add("--episodes", type=int, default=128, metavar="N", help=help_text)
    help_text = (
        "use the policies of a checkpoint instead of the final policies: best (the highest return "
        "in the evaluations during training; with limits on costs, the highest that keeps them), "
        "latest, or the number of an update"
    )
    add("--checkpoint", metavar="WHICH", help=help_text)
    help_text = (
        "maximum number of steps of an episode (default: the time limit of the environment; "
        "without one, 100,000 on the device and 1,000 on the host)"
    )
    add("--evaluation-steps", type=int, metavar="N", help=help_text)
    help_text = "play in another environment, which has the same observations and actions"
    add("--env", metavar="NAME", help=help_text)
    add_environment_flags(parser)
    help_text = (
        "number that chooses the random episodes; they always differ from the episodes that are "
        "played during training (default: 1)"
    )
    add("--number", type=int, default=1, metavar="N", help=help_text)
    help_text = (
        "file for all returns, which must not exist (default: evaluation.json in the folder of "
        "the run, or evaluation-WHICH.json for a checkpoint)"
    )
    add("--out", type=Path, metavar="FILE", help=help_text)
    return parser.parse_args(words)
