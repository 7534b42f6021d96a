"""The flags of train.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    command_name,
    first_pass,
    flags_in,
    step_count,
)
from trpo_jax.cli.environment_flags import add_environment_flags, add_processes_flag
from trpo_jax.cli.process_flags import ENVIRONMENTS, SEEDS, add_process_flags, without_process_flags
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.settings import SERVICES, STOP_EVERY


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed flags of a command line; for `--resume`, also the flags of the stored run.

    Raises:
        ConfigurationError: if the algorithm is unknown, or there is no run to resume.
    """
    resumed = first_pass(words, resume=None).resume
    if resumed is not None:
        words = [*stored_flags(Path(resumed)), *words]
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
    return build_parser(first.algorithm, first.env).parse_args(words)


def stored_flags(folder: Path) -> list[str]:
    """Returns the flags that the run in a folder was started with, without folder and devices.

    Raises:
        ConfigurationError: if there is no run, or no flags can start it.
    """
    from trpo_jax.records.runs import read_description  # imports NumPy

    command = read_description(folder, "command")["command"]
    if command is None:
        raise ConfigurationError(
            f"The run in {folder} was started from Python, with objects that no flag can name. To "
            "continue it, call trpo_jax.train with the same arguments and resume=True."
        )
    parser = Parser(add_help=False, allow_abbrev=False)
    for flag in ("--out", "--shard"):
        parser.add_argument(flag)
    return without_process_flags(parser.parse_known_args(flags_in(command))[1])


def build_parser(algorithm: str, env: str) -> Parser:
    """Returns the parser, with the defaults for an algorithm and an environment."""
    defaults = defaults_for(algorithm, env)
    parser = Parser(
        prog=command_name("train"),
        usage="%(prog)s [FLAG ...]",
        description="Trains an algorithm on an environment, with several seeds in one program, and "
        "writes the results into a folder. Without any flag, it trains TRPO on CartPole-v1.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("environment, algorithm, seeds and length")
    add_name_flags(group)
    add = group.add_argument
    add("--seed", default=0, type=int, metavar="N", help="the first seed (default: 0)")
    total_steps, num_seeds = defaults["total_steps"], defaults["num_seeds"]
    help_text = f"number of seeds, which are trained in parallel (default: {num_seeds})"
    add("--num-seeds", default=num_seeds, type=int, metavar="N", help=help_text)
    help_text = (
        f"environment steps of each seed, rounded down to whole updates (default: {total_steps:,})"
    )
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    add_processes_flag(group, defaults["env_processes"])
    add_environment_flags(group)
    help_text = (
        "start every seed with the policy, the critic and the statistics of the best seed of the "
        "finished run in FOLDER; with limits on costs, a seed that keeps them is better than a "
        "seed that does not"
    )
    add("--init-from", type=Path, metavar="FOLDER", help=help_text)
    help_text = (
        "stop the run once the mean return of every seed over at least its last 20 training "
        f"episodes reaches X; checked after every {STOP_EVERY}th update"
    )
    add("--stop-at-return", type=float, metavar="X", help=help_text)
    add = parser.add_argument_group("evaluation").add_argument
    episodes = defaults["evaluation_episodes"]
    help_text = f"number of episodes for evaluating the policy of a seed (default: {episodes})"
    add("--evaluation-episodes", default=episodes, type=int, metavar="N", help=help_text)
    help_text = (
        "also evaluate the policies during training: before the first update and after every N-th "
        "update; a checkpoint keeps the best policies; with limits on costs, the best that keep "
        "them (default: 0, which evaluates only at the end)"
    )
    add("--eval-every", default=0, type=int, metavar="N", help=help_text)
    help_text = (
        "maximum number of steps of an evaluation episode (default: the time limit of the "
        "environment; without one, 100,000 on the device and 1,000 on the host)"
    )
    add("--evaluation-steps", type=int, metavar="N", help=help_text)
    add = parser.add_argument_group("checkpoints and files").add_argument
    help_text = (
        "save the whole state after every N-th update, or never if N is 0 (default: chosen "
        "so that checkpoints take at most 3 %% of the time)"
    )
    add("--checkpoint-every", type=int, metavar="N", help=help_text)
    help_text = "number of latest checkpoints to keep in addition to the best one (default: 3)"
    add("--keep-checkpoints", default=3, type=int, metavar="N", help=help_text)
    help_text = (
        "continue the run in FOLDER from its latest checkpoint with its own settings, as if it had "
        "never stopped; a larger --total-steps makes the run longer, even if it is finished"
    )
    add("--resume", type=Path, metavar="FOLDER", help=help_text)
    help_text = (
        f"write the metrics also to {' or '.join(SERVICES)}; separate several names by commas"
    )
    add("--log", type=services, default=(), metavar="NAMES", help=help_text)
    help_text = "output folder, which must be new or empty (default: runs/<env>/<algorithm>/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    add("--quiet", action="store_true", help="print errors only")
    where = add_process_flags(parser, devices="1")
    help_text = (
        "how several devices share the work: seeds gives each device whole seeds, environments "
        "splits the environments of every seed, for runs that are too large for one device "
        "(default: seeds)"
    )
    where.add_argument("--shard", choices=(SEEDS, ENVIRONMENTS), default=SEEDS, help=help_text)
    add_config_flags(parser, algorithm, defaults)
    group = parser.add_argument_group("schedules of hyperparameters")
    help_text = (
        "let a real-valued hyperparameter change during the run, such as max_kl=linear:0.02:0.005; "
        "KIND is linear, exponential or cosine; a third number is the number of environment steps "
        "of each seed until END (default: the whole run); max_kl=piecewise:0.02:50000:0.01 changes "
        "the value after 50,000 steps; may be given several times"
    )
    kind = {"action": "append", "default": [], "type": schedule}
    group.add_argument("--schedule", **kind, metavar="NAME=KIND:START:END", help=help_text)
    return parser


def schedule(text: str) -> tuple[str, str]:
    """Returns the name of a hyperparameter and its schedule from a text NAME=SCHEDULE."""
    name, equals, described = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=SCHEDULE")
    return name.strip().replace("-", "_"), described


def services(text: str) -> tuple[str, ...]:
    """Returns the names of logging services in a text with commas between them."""
    names = tuple(text.split(","))
    for name in names:
        if name not in SERVICES:
            raise argparse.ArgumentTypeError(str(unknown_name("log", name, SERVICES)))
    return names
