"""Draws one page about the policy steps of a run, and prints warnings if something is wrong.

The page explains each of its panels. The command writes it to diagnosis.pdf and diagnosis.png, and
replaces the files of an earlier call.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.cli.command_line import Parser, command_name


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line."""
    parser = Parser(prog=command_name("diagnose"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, help="folder of a run, finished or not")
    help_text = "folder for the page (default: the folder of the run)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    return parser.parse_args(words)
