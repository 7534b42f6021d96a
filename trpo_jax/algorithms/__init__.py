"""Algorithms by name: modules with a `Config` and a `make(env, config) -> Algorithm`."""

from types import ModuleType

from trpo_jax.algorithms import (
    npg,
    ppo,
    qprop,
    trpo,
    trpo_ensemble,
    trpo_held_out,
    trpo_vine,
    ua_trpo,
    vpg,
)
from trpo_jax.errors import unknown_name

ALGORITHMS: dict[str, ModuleType] = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (trpo, npg, vpg, ppo, ua_trpo, qprop, trpo_vine, trpo_held_out, trpo_ensemble)
}


def get(name: str) -> ModuleType:
    """Returns the algorithm's module.

    Raises:
        ConfigurationError: if there is none of that name.
    """
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
