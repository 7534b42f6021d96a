"""The flags that say how an environment is made."""

import argparse
from typing import Any

from trpo_jax import envs
from trpo_jax.envs.options import parse_value

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
        "stop with an error if a reset or a step of an environment on the host takes more seconds "
        "than this (default: no limit)"
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
