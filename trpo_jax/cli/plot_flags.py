"""Draws learning curves of all runs in some folders, and writes their scores with intervals.

Runs with the same environment and label are joined. The label of a run is its algorithm, or LABEL
if its folder is given as LABEL=FOLDER. Several folders may have the same label. Runs may be
unfinished, and may differ in length.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.analysis import WINDOW
from trpo_jax.cli.command_line import Parser, command_name, time_name


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line."""
    parser = Parser(prog=command_name("plot"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    help_text = "folder that holds runs, at any depth"
    add("folders", nargs="+", metavar="[LABEL=]FOLDER", help=help_text)
    help_text = "label that the other labels are compared with (default: the first one)"
    add("--baseline", metavar="LABEL", help=help_text)
    help_text = (
        "score of a seed: the return of its last training episodes, or the evaluation of its final "
        "policy, which only finished runs have (default: training)"
    )
    add("--score", choices=("training", "evaluation"), default="training", help=help_text)
    help_text = f"average over at least the last N training episodes (default: {WINDOW})"
    add("--smooth", type=int, default=WINDOW, metavar="N", help=help_text)
    options = {"nargs": "+", "choices": ("pdf", "svg", "png"), "default": ["pdf", "png"]}
    help_text = "formats of the figures: pdf, svg, png (default: pdf png)"
    add("--format", **options, dest="formats", metavar="NAME", help=help_text)
    help_text = "output folder, which must be new or empty (default: runs/plots/<time>)"
    add(
        "--out",
        type=Path,
        default=Path("runs/plots", time_name()),
        metavar="FOLDER",
        help=help_text,
    )
    return parser.parse_args(words)
