"""Algorithms by name: modules with a `Config` and a `make(env, config) -> Algorithm`."""

from types import ModuleType

from trpo_jax.algorithms import trpo
from trpo_jax.errors import unknown_name

ALGORITHMS: dict[str, ModuleType] = {"trpo": trpo}


def get(name: str) -> ModuleType:
    """Returns the algorithm's module.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
