"""Flags, defaults and error exits shared by the scripts."""

import argparse
import dataclasses
import datetime
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import dropwhile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import jax
from platformdirs import user_cache_dir

from trpo_jax import algorithms, envs
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install
from trpo_jax.running.plan import (
    MOST_RUNS,
    choose_seeds,
    require_at_least,
    require_at_most,
)

MAX_STEPS = 10**15  # whole numbers that a float holds exactly, and some centuries of stepping


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one paragraph, and that takes -1e-05 as a number."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.I)

    def error(self, message: str) -> NoReturn:
        """Prints what was wrong and where to look, and exits with 2."""
        print(f"error: {message} (--help explains every flag)", file=sys.stderr)
        raise SystemExit(2)


def command_name(name: str) -> str:
    """Returns how a command is called by a user who started this process as the user did.

    Args:
        name: of the command, such as "train".

    Returns:
        "experiments/train.py" if a script of that folder was started, or else "trpo-jax train".
    """
    if Path(sys.argv[0]).absolute().parent.name == "experiments":
        return f"experiments/{name}.py"
    return f"trpo-jax {name}"


def call_of(name: str, words: Sequence[str]) -> str:
    """Returns the text by which this user calls a command in this terminal.

    It begins as the call of this process began: with uv, with Python or with neither.

    Args:
        name: of the command, such as "train".
        words: its arguments.
    """
    launcher, script = [], Path(sys.argv[0])
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # `uv run` sets both variables
        by_python = "UV_INTERNAL__PARENT_INTERPRETER" in os.environ
        launcher = ["python3", "-m", "uv", "run"] if by_python else ["uv", "run"]
    if script.absolute().parent.name == "experiments":
        call = [*(launcher or ["python"]), str(script.with_name(f"{name}.py"))]
    elif script.name == "__main__.py":
        call = [*launcher, "python", "-m", "trpo_jax", name]
    else:
        call = [*launcher, "trpo-jax", name]
    return shlex.join([*call, *words])


def flags_in(command: Sequence[str]) -> list[str]:
    """Returns the flags of a stored command, which begins with the command's name."""
    return list(dropwhile(lambda word: not word.startswith("-"), command))


class ListEnvironments(argparse.Action):
    """The flag that prints the names of all environments, one a line, and exits."""

    def __call__(self, *args: Any) -> NoReturn:
        """Prints the names; suites that are not installed are named on the error output."""
        with redirect_stdout(sys.stderr):  # where suites say which of their parts are missing
            found = envs.names()
        for names in found.values():
            print(*names or (), sep="\n", end="\n" if names else "")
        for suite, names in found.items():
            if names is None:
                print(f"{suite} is not installed: {how_to_install(suite)}", file=sys.stderr)
        raise SystemExit(0)


class Follows(NamedTuple):
    """A default that is the value of another flag."""

    flag: str


@contextmanager
def user_errors(*failures: type[Exception]) -> Iterator[None]:
    """Turns errors into their message, without a stack trace.

    The exit code is 2 for a `ConfigurationError`, and 1 for the failures.
    """
    try:
        yield
    except (ConfigurationError, *failures) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 1) from None
    except (RuntimeError, AssertionError):
        missing = missing_platform()
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(2) from None


def missing_platform() -> str | None:
    """Returns what is wrong if JAX finds no device at all, or else None."""
    try:
        jax.devices()
        return None
    except (RuntimeError, AssertionError) as error:
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"JAX finds no device: JAX_PLATFORMS = {jax.config.jax_platforms} allows platforms "
            f"that are not here{reason}. Unset that variable to take what is here, or install JAX "
            "for the platform, such as the extra cuda13 for a GPU."
        )


def add_name_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that name an environment and an algorithm."""
    help_text = (
        "the name of an environment, or my_module:make_env for a function of your own that returns "
        "one (default: CartPole-v1)"
    )
    parser.add_argument("--env", default="CartPole-v1", metavar="NAME", help=help_text)
    help_text = "print the names of all environments, one a line, and exit"
    parser.add_argument("--list-envs", action=ListEnvironments, nargs=0, help=help_text)
    known = ", ".join(algorithms.ALGORITHMS)
    help_text = f"one of {known}, or a module of your own (default: trpo)"
    parser.add_argument("--algorithm", default="trpo", metavar="NAME", help=help_text)


def add_config_flags(
    parser: argparse.ArgumentParser, module: ModuleType, defaults: dict[str, Any]
) -> None:
    """Adds one flag for each field of an algorithm's config, with its help and its default.

    Flags stand in groups: a class that the config inherits from is one, and its docstring says what
    the group is. The default of a number may be the name of another flag, whose value is then
    taken.
    """
    groups = {}
    for owner in reversed(module.Config.__mro__):
        if dataclasses.is_dataclass(owner):
            about = re.split(r"[.;]", owner.__doc__ or "")[0]
            title = f"hyperparameters: {about[:1].lower()}{about[1:]}"
            own = f"hyperparameters of {algorithms.name_of(module)} alone"
            group = parser.add_argument_group(own if owner is module.Config else title)
            groups |= {name: group for name in owner.__annotations__ if name not in groups}
    for field in dataclasses.fields(module.Config):
        default = defaults.get(field.name, field.default)
        kind, several = field.metadata["kind"], field.metadata.get("several", False)
        default_text = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        default_text = "none" if default_text == "" else default_text
        if isinstance(default, str) and kind is not str:
            default = Follows(default)
        help_text = f"{field.metadata['help']} (default: {default_text})".replace("%", "%%")
        options: dict[str, Any] = {"default": default, "help": help_text}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            options |= {"type": sizes, "nargs": "+", "metavar": "N", "default": [tuple(default)]}
        elif "choices" in field.metadata:
            options["choices"] = field.metadata["choices"]
        else:
            options |= {"type": kind, "metavar": {int: "N", float: "X", str: "NAME"}[kind]}
            options |= {"nargs": "+"} if several else {}
        groups[field.name].add_argument("--" + field.name.replace("_", "-"), **options)


def config_from(args: argparse.Namespace, module: ModuleType) -> Any:
    """Returns the algorithm's config from parsed flags."""
    values = {}
    for field in dataclasses.fields(module.Config):
        value = getattr(args, field.name)
        if isinstance(value, Follows):
            value = getattr(args, value.flag)
        if isinstance(value, list):  # of numbers, where a field holds several, or of tuples
            several = field.metadata.get("several", False)
            value = tuple(value) if several else sum(value, ())
            value = value[0] if several and len(value) == 1 else value
        values[field.name] = value
    return module.Config(**values)


def seed_range(first: int, count: int) -> tuple[int, ...]:
    """Returns consecutive seeds.

    Raises:
        ConfigurationError: if one of them is no seed.
    """
    require_at_least(num_seeds=(count, 1))
    require_at_most(num_seeds=(count, MOST_RUNS))
    return choose_seeds(range(first, first + count))


def cache_compilations() -> None:
    """Keeps compiled programs for later processes, in the user's own cache folder.

    A folder that JAX was told of (`JAX_COMPILATION_CACHE_DIR`) is used instead.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", user_cache_dir("trpo_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def sizes(text: str) -> tuple[int, ...]:
    """Returns the integers in a text such as "64" or "64x32"."""
    try:
        return tuple(map(int, text.split("x")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of integers, such as 64 32 or 64x32"
        ) from None


def step_count(text: str) -> int:
    """Returns a number of steps written as 100000, 100_000 or 1e5."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not (number.is_integer() and number <= MAX_STEPS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number of steps up to {MAX_STEPS:,}"
        )
    return int(number)


def time_name() -> str:
    """Returns the name of an output folder for which the user has none.

    It is precise enough for jobs that start at the same moment to differ.
    """
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def first_pass(argv: Sequence[str] | None, **flags: str | None) -> argparse.Namespace:
    """Returns the flags that decide what the other flags and their defaults are.

    Args:
        argv: the command line.
        **flags: name and default of each.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    for name, default in flags.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_known_args(argv)[0]
