"""Environments by name."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, no_type_check

from trpo_jax import user_modules
from trpo_jax.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:  # imports jax, which names do not need
    from trpo_jax.envs.base import Environment

# The packages of each suite, by the prefix of its environments' names. That is also the name of the
# extra of this package that installs them.
SUITES: dict[str, tuple[str, ...]] = {
    "gymnax": ("gymnax",),
    "gym": ("gymnasium", "mujoco", "highway-env"),
    "envpool": ("envpool", "gymnasium"),
    "brax": ("brax", "mujoco-mjx"),
    "playground": ("playground", "mujoco-mjx"),
    "craftax": ("craftax",),
    "jumanji": ("jumanji",),
    "pgx": ("pgx",),
    "navix": ("navix",),
}
_MODULES = {"gym": "gymnasium"}
_NEEDS = {"navix": " It needs Python 3.12."}


def suite_of(name: str) -> tuple[str, str]:
    """Returns the suite of an environment, and the suite's own name for it.

    The suite is "" where the user's own function makes the environment.

    Raises:
        ConfigurationError: if there is no such suite.
    """
    if "/" not in name:
        return ("" if ":" in name else "gymnax"), name
    suite, own_name = name.split("/", 1)
    if suite not in SUITES:
        raise unknown_name("suite of environments", suite, SUITES)
    return suite, own_name


def folder_of(name: str) -> str:
    """Returns the name of an environment as a path, which has no colon in it."""
    return name.replace(":", "-")


def names() -> dict[str, list[str] | None]:
    """Returns the full names of all environments, by suite; None for one that is not installed."""
    found: dict[str, list[str] | None] = {}
    for suite in SUITES:
        prefix = "" if suite == "gymnax" else f"{suite}/"
        try:
            own_names = import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}").names()
        except (ImportError, AttributeError):  # or in a version that lacks what the adapter needs
            found[suite] = None
        else:
            found[suite] = sorted(f"{prefix}{name}" for name in own_names)
    return found


@no_type_check  # the annotation is not there at run time
def make(name: str, processes: bool = False) -> "Environment":
    """Returns the environment of that name.

    Args:
        name: the suite and the suite's own name, such as "gym/Hopper-v5"; without a suite one of
            gymnax, such as "CartPole-v1"; or a module and a function of it that takes no argument
            and returns an `Environment`, such as "my_module:make_env" for a function in
            `my_module.py` in the current folder.
        processes: whether each copy runs in a process of its own, for those of Gymnasium only.

    Raises:
        ConfigurationError: if there is none of that name, its suite is not installed or too old,
            its spaces are not supported, or the user's own function fails.
    """
    suite, own_name = suite_of(name)
    if processes and suite != "gym":
        raise ConfigurationError(
            f"Only environments of gym/ can run in processes of their own, not {name!r}. Leave "
            "--env-processes out."
        )
    if not suite:
        return _make_own(name)
    module = _import_suite(suite, name)
    return module.make(own_name, **({"processes": True} if processes else {}))


def _import_suite(suite: str, name: str) -> ModuleType:
    try:
        return import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Environment {name!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: uv sync --extra {suite}.{_NEEDS.get(suite, '')}"
        ) from error
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"Environment {name!r} needs another version of its suite than the one installed "
            f"({error}). Install it with: uv sync --extra {suite}"
        ) from error


@no_type_check
def _make_own(name: str) -> "Environment":
    from trpo_jax.envs.base import Environment

    module_name, _, function_name = name.partition(":")
    if module_name in SUITES:
        raise ConfigurationError(
            f"Unknown environment {name!r}. Did you mean {module_name}/{function_name}?"
        )
    module = user_modules.load(module_name)
    if module is None:
        here = Path.cwd()
        known = (path.stem for path in here.glob("*.py"))
        raise ConfigurationError(
            f"{unknown_name('module', module_name, known)} Environment {name!r} is looked for in "
            f"the current folder, {here}, and among the installed modules."
        )
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise ConfigurationError(
            f"{unknown_name('function', function_name, functions)} It is looked for in "
            f"{module.__file__}."
        )
    with user_modules.errors_located(f"Environment {name!r} cannot be made", module.__file__):
        env = function()
    if not isinstance(env, Environment):
        raise ConfigurationError(
            f"Environment {name!r} cannot be made: {function_name} in {module.__file__} returned "
            f"{type(env).__name__}, not trpo_jax.Environment."
        )
    return env._replace(name=name)
