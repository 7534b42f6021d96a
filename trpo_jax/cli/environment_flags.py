"""The flags that say how an environment is made, and the environments made from them."""

import argparse
from collections.abc import Mapping
from typing import Any

from trpo_jax import envs
from trpo_jax.envs.base import Environment
from trpo_jax.envs.options import parse_value, stored_options

OBSERVE_PREVIOUS = "trpo_jax.envs.wrappers:observe_previous"
CAPITALS = {word.lower(): word for word in ("True", "False", "None")}


def add_processes_flag(parser: argparse._ActionsContainer, default: bool) -> None:
    """Adds the flag that runs the copies of an environment in processes."""
    help_text = (
        "run the copies of a gym/, driving/ or pettingzoo/ environment in processes, one for each "
        f"core. This is faster if a step takes a millisecond or more (default: {default})"
    )
    action = argparse.BooleanOptionalAction
    parser.add_argument("--env-processes", default=default, action=action, help=help_text)


def add_environment_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags for the arguments, wrappers, costs and timeout of an environment."""
    add = parser.add_argument
    repeated = {"action": "append", "default": []}
    help_text = (
        "an argument for the environment, such as is_slippery=False; may be given several times"
    )
    add("--env-arg", type=argument, **repeated, metavar="NAME=VALUE", help=help_text)
    help_text = (
        "wrap the environment, for example in gymnasium.wrappers:FlattenObservation or in "
        "my_module:my_function; may be given several times, the first is applied first"
    )
    add("--wrapper", **repeated, metavar="MODULE:NAME", help=help_text)
    help_text = (
        "record a cost of each step in addition to its reward: info:cost for an entry of info (in "
        "gym/ and envpool/), or my_module:my_cost for a function of observation and action; may be "
        "given several times"
    )
    add("--cost", **repeated, metavar="info:NAME|MODULE:NAME", help=help_text)
    help_text = "add the previous action and the previous reward to the observation"
    add("--observe-previous", action="store_true", help=help_text)
    help_text = (
        "stop with an error if a reset or a step of a gym/ or envpool/ environment takes more "
        "seconds than this (default: no limit)"
    )
    add("--env-timeout", type=float, metavar="SECONDS", help=help_text)


def argument(text: str) -> tuple[str, Any]:
    """Returns the name and the value in NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if value in CAPITALS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write {name}={CAPITALS[value]}, as in Python. If you mean the text "
            f"{value!r}, write \"{name}='{value}'\""
        )
    return name, parse_value(value)


def options_from(args: argparse.Namespace) -> envs.Options:
    """Returns the options of the environment that the flags ask for."""
    processes = getattr(args, "env_processes", None)
    wrappers = (*args.wrapper, *([OBSERVE_PREVIOUS] if args.observe_previous else []))
    costs = tuple(args.cost)
    return envs.Options(dict(args.env_arg), wrappers, processes, args.env_timeout, costs)


def make_stored(
    description: Mapping[str, Any], args: argparse.Namespace, processes: bool | None = None
) -> Environment:
    """Returns the environment of a stored run, or another environment if the flags name one.

    Without `--env`, the environment is made as it was for the run. Then `--env-arg` changes single
    arguments. `--wrapper` and `--cost` replace the wrappers and the costs of the run.

    Args:
        description: the contents of `config.json`.
        args: the parsed flags.
        processes: whether the copies run in processes; None means as in the run.

    Raises:
        ConfigurationError: if the environment cannot be made.
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
