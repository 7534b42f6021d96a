"""The flags that say how an environment is made, and the environments that they ask for."""

import argparse
from collections.abc import Mapping
from typing import Any

from trpo_jax import envs
from trpo_jax.envs.base import Environment
from trpo_jax.envs.options import parse_value, stored_options

OBSERVE_PREVIOUS = "trpo_jax.envs.wrappers:observe_previous"
CAPITALS = {word.lower(): word for word in ("True", "False", "None")}


def add_processes_flag(parser: argparse._ActionsContainer, default: bool) -> None:
    """Adds the flag for copies of an environment in processes of their own."""
    help_text = (
        "run each environment of gym/, driving/ or pettingzoo/ in a process of its own: faster "
        f"where a step takes a millisecond or more (default: {default})"
    )
    action = argparse.BooleanOptionalAction
    parser.add_argument("--env-processes", default=default, action=action, help=help_text)


def add_environment_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags for arguments, wrappers and the timeout of an environment."""
    add = parser.add_argument
    repeated = {"action": "append", "default": []}
    help_text = (
        "an argument of the environment's own, such as is_slippery=False; the flag may be given "
        "several times"
    )
    add("--env-arg", type=argument, **repeated, metavar="NAME=VALUE", help=help_text)
    help_text = (
        "put the environment into a wrapper, such as gymnasium.wrappers:FlattenObservation or "
        "my_module:my_function; several are applied in order"
    )
    add("--wrapper", **repeated, metavar="MODULE:NAME", help=help_text)
    help_text = (
        "a cost of a step beside its reward: an entry of info, such as info:cost, in gym/ and "
        "envpool/, or a function of an observation and an action, such as my_module:my_cost; the "
        "flag may be given several times"
    )
    add("--cost", **repeated, metavar="info:NAME|MODULE:NAME", help=help_text)
    help_text = "show the previous action and reward beside the observation"
    add("--observe-previous", action="store_true", help=help_text)
    help_text = (
        "give up when a reset or a step of the copies of an environment of gym/ or envpool/ takes "
        "longer than this many seconds (default: never)"
    )
    add("--env-timeout", type=float, metavar="SECONDS", help=help_text)


def argument(text: str) -> tuple[str, Any]:
    """Returns the name and the value in NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if value in CAPITALS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: Python writes {name}={CAPITALS[value]}. If the word itself is meant, write "
            f"\"{name}='{value}'\""
        )
    return name, parse_value(value)


def options_from(args: argparse.Namespace) -> envs.Options:
    """Returns the options of the environment that flags ask for."""
    processes = getattr(args, "env_processes", None)
    wrappers = (*args.wrapper, *([OBSERVE_PREVIOUS] if args.observe_previous else []))
    costs = tuple(args.cost)
    return envs.Options(dict(args.env_arg), wrappers, processes, args.env_timeout, costs)


def make_stored(
    description: Mapping[str, Any], args: argparse.Namespace, processes: bool | None = None
) -> Environment:
    """Returns the environment of a stored run, or the one that flags name in its place.

    Without `--env` it is made as it was for the run; `--env-arg` changes some of its arguments, and
    `--wrapper` and `--cost` take the place of its wrappers and costs.

    Args:
        description: what `config.json` says.
        args: the flags.
        processes: whether copies run in processes; as for the run if None.

    Raises:
        ConfigurationError: if it cannot be made.
    """
    given = options_from(args)
    if args.env is not None:
        return envs.make(args.env, **given._asdict())
    stored = stored_options(description)
    options = envs.Options(
        {**stored.args, **given.args},
        given.wrappers or stored.wrappers,
        stored.processes if processes is None else processes,
        stored.timeout if given.timeout is None else given.timeout,
        given.costs or stored.costs,
    )
    return envs.make(description["env"], **options._asdict())
