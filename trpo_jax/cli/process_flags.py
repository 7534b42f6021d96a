"""The flags that say where a script runs: on how many devices, and in how many processes."""

import argparse
from collections.abc import Sequence

from trpo_jax.cli.command_line import Parser

SEEDS, ENVIRONMENTS = "seeds", "environments"
ALL = "all"


def add_process_flags(
    parser: argparse.ArgumentParser, devices: str = ALL
) -> argparse._ArgumentGroup:
    """Adds the flags that say where a script runs, and returns their group.

    Args:
        parser: the parser that gets the flags.
        devices: the default of `--devices`.
    """
    group = parser.add_argument_group("where it runs")
    help_text = f"number of devices to split the work over, or all (default: {devices})"
    group.add_argument("--devices", default=devices, type=device_count, metavar="N", help=help_text)
    help_text = (
        "run as one of several processes, each with its own devices; Slurm, Open MPI and Cloud TPU "
        "need no further flag"
    )
    group.add_argument("--distributed", action="store_true", help=help_text)
    help_text = "without Slurm, Open MPI or Cloud TPU: address at which process 0 listens"
    group.add_argument("--coordinator", metavar="HOST:PORT", help=help_text)
    help_text = "with --coordinator: number of this process, from 0"
    group.add_argument("--process-id", type=int, metavar="K", help=help_text)
    help_text = "with --coordinator: number of processes"
    group.add_argument("--num-processes", type=int, metavar="N", help=help_text)
    return group


def device_count(text: str) -> int | None:
    """Returns a number of devices, or None for all devices."""
    try:
        return None if text == ALL else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of devices, and not the word all"
        ) from None


def without_process_flags(words: Sequence[str]) -> list[str]:
    """Returns a command line without the flags that say where it runs."""
    parser = Parser(add_help=False, allow_abbrev=False)
    add_process_flags(parser)
    return parser.parse_known_args(words)[1]


def placement_words(args: argparse.Namespace) -> list[str]:
    """Returns the words of a command line that place a script as the parsed flags do."""
    words = ["--shard", args.shard] if args.shard != SEEDS else []
    if not args.distributed:
        count = ALL if args.devices is None else str(args.devices)
        return [*words, "--devices", count] if count != "1" else words
    words.append("--distributed")
    if args.coordinator is not None:
        words += ["--coordinator", args.coordinator, "--num-processes", str(args.num_processes)]
        words += ["--process-id", str(args.process_id)]
    return words
