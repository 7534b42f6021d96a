"""The flags, the defaults and the error exits that all commands share.

This module and the modules of flags import no JAX, so `--help` and wrong flags need little time.
"""

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
from typing import Any, NamedTuple, NoReturn

from trpo_jax import algorithms, envs
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install
from trpo_jax.running.settings import MOST_RUNS, choose_seeds, require_at_least, require_at_most

MAX_STEPS = 10**15  # a float holds every whole number up to here exactly


class Parser(argparse.ArgumentParser):
    """An argument parser that prints errors as one paragraph and reads -1e-05 as a number."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.I)

    def error(self, message: str) -> NoReturn:
        """Prints the error and a hint to `--help`, and exits with code 2."""
        print(f"error: {message} (--help explains every flag)", file=sys.stderr)
        raise SystemExit(2)


def command_name(name: str) -> str:
    """Returns the name of a command, in the form that the user of this process calls it by.

    Args:
        name: the short name of the command, such as "train".

    Returns:
        "experiments/train.py" if the user started a script of that folder, otherwise
        "trpo-jax train".
    """
    if Path(sys.argv[0]).absolute().parent.name == "experiments":
        return f"experiments/{name}.py"
    return f"trpo-jax {name}"


def call_of(name: str, words: Sequence[str]) -> str:
    """Returns a command line that the user can paste into the terminal.

    It begins like the command line of this process: with uv, with Python, or with neither.

    Args:
        name: the short name of the command, such as "train".
        words: the arguments of the command.
    """
    launcher, script = [], Path(sys.argv[0])
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # `uv run` sets both variables
        by_python = "UV_INTERNAL__PARENT_INTERPRETER" in os.environ
        launcher = ["python3", "-m", "uv", "run"] if by_python else ["uv", "run"]
    if script.absolute().parent.name == "experiments":
        call = [*(launcher or ["python"]), str(script.with_name(f"{name}.py"))]
    elif script.parts[-2:] == ("trpo_jax", "__main__.py"):
        call = [*launcher, "python", "-m", "trpo_jax", name]
    else:
        call = [*launcher, "trpo-jax", name]
    return shlex.join([*call, *words])


def flags_in(command: Sequence[str]) -> list[str]:
    """Returns the flags of a stored command, without the name of the command before them."""
    return list(dropwhile(lambda word: not word.startswith("-"), command))


class ListEnvironments(argparse.Action):
    """The flag that prints the names of all environments, one per line, and exits."""

    def __call__(self, *args: Any) -> NoReturn:
        """Prints the names on stdout, and the suites that are not installed on stderr."""
        with redirect_stdout(sys.stderr):  # some suites print which of their parts are missing
            found = envs.names()
        for names in found.values():
            print(*names or (), sep="\n", end="\n" if names else "")
        for suite, names in found.items():
            if names is None:
                print(f"{suite} is not installed: {how_to_install(suite)}", file=sys.stderr)
        raise SystemExit(0)


class Follows(NamedTuple):
    """A default value that is taken from another flag."""

    flag: str


@contextmanager
def user_errors(*failures: type[Exception]) -> Iterator[None]:
    """Prints an error as a message without a stack trace, and exits.

    The exit code is 2 for a `ConfigurationError`, and 1 for the given failures.
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
    """Returns an error message if JAX finds no device at all, otherwise None."""
    import jax

    try:
        jax.devices()
        return None
    except (RuntimeError, AssertionError) as error:
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"JAX finds no device: JAX_PLATFORMS = {jax.config.jax_platforms} allows only "
            f"platforms that are missing here{reason}. Unset that variable to use the devices of "
            "this machine, or install JAX for the platform (for a GPU: the extra cuda13)."
        )


def add_name_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that name an environment and an algorithm."""
    help_text = (
        "name of an environment, or my_module:make_env for a function of yours that returns an "
        "environment (default: CartPole-v1)"
    )
    parser.add_argument("--env", default="CartPole-v1", metavar="NAME", help=help_text)
    help_text = "print the names of all environments, one per line, and exit"
    parser.add_argument("--list-envs", action=ListEnvironments, nargs=0, help=help_text)
    known = ", ".join(algorithms.ALGORITHMS)
    help_text = f"one of {known}, or the name of a Python module of yours (default: trpo)"
    parser.add_argument("--algorithm", default="trpo", metavar="NAME", help=help_text)


def add_config_flags(
    parser: argparse.ArgumentParser, algorithm: str, defaults: dict[str, Any]
) -> None:
    """Adds one flag for each field of an algorithm's config, with its help text and its default.

    Each class that the config inherits from becomes a group of flags. Its docstring is the title of
    the group. The default of a number may be the name of another flag. The number then has the
    value of that flag.
    """
    config, groups = algorithms.config_of(algorithm), {}
    for owner in reversed(config.__mro__):
        if dataclasses.is_dataclass(owner):
            about = re.split(r"[.;]", owner.__doc__ or "")[0]
            title = f"hyperparameters: {about[:1].lower()}{about[1:]}"
            own = f"hyperparameters that only {algorithm} has"
            group = parser.add_argument_group(own if owner is config else title)
            groups |= {name: group for name in owner.__annotations__ if name not in groups}
    for field in dataclasses.fields(config):
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


def config_from(args: argparse.Namespace) -> Any:
    """Returns the config of the algorithm `args.algorithm` with the values of the parsed flags."""
    config, values = algorithms.config_of(args.algorithm), {}
    for field in dataclasses.fields(config):
        value = getattr(args, field.name)
        if isinstance(value, Follows):
            value = getattr(args, value.flag)
        if isinstance(value, list):  # several numbers, or one tuple for each word
            several = field.metadata.get("several", False)
            value = tuple(value) if several else sum(value, ())
            value = value[0] if several and len(value) == 1 else value
        values[field.name] = value
    return config(**values)


def seed_range(first: int, count: int) -> tuple[int, ...]:
    """Returns `count` consecutive seeds, of which `first` is the first.

    Raises:
        ConfigurationError: if the count or a seed is out of range.
    """
    require_at_least(num_seeds=(count, 1))
    require_at_most(num_seeds=(count, MOST_RUNS))
    return choose_seeds(range(first, first + count))


def cache_compilations() -> None:
    """Lets JAX store compiled programs in the cache folder of the user, for later processes.

    If `JAX_COMPILATION_CACHE_DIR` names a folder, JAX uses that folder instead.
    """
    import jax
    from platformdirs import user_cache_dir

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
            f"{text!r} is not a list of integers such as 64 32 or 64x32"
        ) from None


def step_count(text: str) -> int:
    """Returns the number of steps in a text such as 100000, 100_000 or 1e5."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not (number.is_integer() and number <= MAX_STEPS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of steps up to {MAX_STEPS:,}"
        )
    return int(number)


def time_name() -> str:
    """Returns the current time as the default name of an output folder.

    It includes microseconds, so that jobs that start at the same moment get different folders.
    """
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def first_pass(argv: Sequence[str] | None, **flags: str | None) -> argparse.Namespace:
    """Returns the values of the flags that decide which other flags and defaults there are.

    Args:
        argv: the command line.
        **flags: the name and the default of each of these flags.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    for name, default in flags.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_known_args(argv)[0]
