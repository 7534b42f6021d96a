"""Environments by name."""

from importlib import import_module

from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, unknown_name

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

    Raises:
        ConfigurationError: if there is no such suite.
    """
    suite, own_name = name.split("/", 1) if "/" in name else ("gymnax", name)
    if suite not in SUITES:
        raise unknown_name("suite of environments", suite, SUITES)
    return suite, own_name


def make(name: str, processes: bool = False) -> Environment:
    """Returns the environment of that name.

    Args:
        name: the suite and the suite's own name, such as "gym/Hopper-v5"; without a suite one of
            gymnax, such as "CartPole-v1".
        processes: whether each copy runs in a process of its own, for those of Gymnasium only.

    Raises:
        ConfigurationError: if there is none of that name, its suite is not installed or too old, or
            its spaces are not supported.
    """
    suite, own_name = suite_of(name)
    try:
        module = import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}")
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
    if processes and suite != "gym":
        raise ConfigurationError(
            f"Only environments of gym/ can run in processes of their own, not {name!r}. Leave "
            "--env-processes out."
        )
    return module.make(own_name, **({"processes": True} if processes else {}))
