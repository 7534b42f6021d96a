"""Environments by name."""

from importlib import import_module

from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, unknown_name

# The suites by the prefix of their names, which are also those of the extras that install them.
SUITES = ("gymnax", "gym", "envpool", "brax", "playground", "craftax", "jumanji", "pgx", "navix")
_MODULES = {"gym": "gymnasium"}


def make(name: str) -> Environment:
    """Returns the environment of that name.

    Args:
        name: the suite and the suite's own name, such as "gym/Hopper-v5"; without a suite one of
            gymnax, such as "CartPole-v1".

    Raises:
        ConfigurationError: if there is none of that name, its suite is not installed, or its spaces
            are not supported.
    """
    suite, own_name = name.split("/", 1) if "/" in name else ("gymnax", name)
    if suite not in SUITES:
        raise unknown_name("suite of environments", suite, SUITES)
    try:
        module = import_module(f"trpo_jax.envs.{_MODULES.get(suite, suite)}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Environment {name!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: uv sync --extra {suite}"
        ) from error
    return module.make(own_name)
