"""Plays one episode with a policy of a run, and writes it as a GIF or an MP4.

The command prints the return of the episode, and its costs with their limits.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.cli.command_line import Parser, command_name
from trpo_jax.cli.environment_flags import add_environment_flags


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line."""
    parser = Parser(prog=command_name("render"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run")
    help_text = (
        "seed whose policy plays (default: the seed with the best evaluation; with limits on "
        "costs, the best that keeps them)"
    )
    add("--seed", type=int, metavar="N", help=help_text)
    help_text = (
        "use a policy of a checkpoint instead of the final policy: best (the highest return in "
        "the evaluations during training; with limits on costs, the highest that keeps them), "
        "latest, or the number of an update"
    )
    add("--checkpoint", metavar="WHICH", help=help_text)
    help_text = "play in another environment, which has the same observations and actions"
    add("--env", metavar="NAME", help=help_text)
    add_environment_flags(parser)
    help_text = "number that chooses the random episode (default: 0)"
    add("--episode", type=int, default=0, metavar="N", help=help_text)
    help_text = "maximum number of steps (default: 1000)"
    add("--steps", type=int, default=1000, metavar="N", help=help_text)
    help_text = "number of steps from one frame to the next (default: 1)"
    add("--every", type=int, default=1, metavar="N", help=help_text)
    add("--fps", type=float, default=30, metavar="X", help="frames per second (default: 30)")
    help_text = "width of the picture in pixels (default: 320)"
    add("--width", type=int, default=320, metavar="N", help=help_text)
    help_text = (
        "file that ends in .gif or .mp4 and must not exist (default: episode.gif in the folder of "
        "the run, or episode-WHICH.gif for a checkpoint)"
    )
    add("--out", type=Path, metavar="FILE", help=help_text)
    return parser.parse_args(words)
