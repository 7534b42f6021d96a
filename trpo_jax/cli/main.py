"""The command `trpo-jax`: hands its arguments on to one of the commands of this folder."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import trpo_jax
from trpo_jax.cli.streams import outlive_readers
from trpo_jax.errors import unknown_name

COMMANDS = {
    "train": "train an algorithm on an environment, several seeds in one program",
    "sweep": "try many values of hyperparameters, as few compiled programs as can be",
    "evaluate": "play fresh episodes with the policies of a run, and print their returns",
    "plot": "draw the learning curves of many runs, and test which of them are better",
    "diagnose": "show what the steps of a run did, and what is wrong with the run",
    "compare": "train several algorithms on several environments, and make one table of them",
    "render": "play an episode with the policy of a run, and write it as a GIF",
}
HELP = f"""usage: trpo-jax COMMAND ...

Trust-region policy optimisation in JAX.

commands:
{"".join(f"  {name:<10}{text}" + chr(10) for name, text in COMMANDS.items())}
options:
  -h, --help  show this help
  --version   show the version

"trpo-jax COMMAND --help" explains every flag of a command.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the first argument names, and exits with its exit code."""
    outlive_readers()
    command, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0)
    if command == "--version":
        print(f"trpo-jax {trpo_jax.__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        print(f"error: {unknown_name('command', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module = import_module(f"trpo_jax.cli.{command}")
    from trpo_jax.cli.placement import exit_with  # imports jax

    exit_with(lambda: module.main(words))
