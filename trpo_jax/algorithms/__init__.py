"""Algorithms by name. Each is a module with a `Config` and a `make(env, config, *, agent=None)`."""

import dataclasses
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from trpo_jax import user_modules
from trpo_jax.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:  # at run time `__getattr__` imports each module on its first use
    from trpo_jax.algorithms import cpo as cpo
    from trpo_jax.algorithms import happo as happo
    from trpo_jax.algorithms import hatrpo as hatrpo
    from trpo_jax.algorithms import mappo as mappo
    from trpo_jax.algorithms import npg as npg
    from trpo_jax.algorithms import pcpo as pcpo
    from trpo_jax.algorithms import ppo as ppo
    from trpo_jax.algorithms import ppo_lag as ppo_lag
    from trpo_jax.algorithms import qprop as qprop
    from trpo_jax.algorithms import trpo as trpo
    from trpo_jax.algorithms import trpo_ensemble as trpo_ensemble
    from trpo_jax.algorithms import trpo_held_out as trpo_held_out
    from trpo_jax.algorithms import trpo_lag as trpo_lag
    from trpo_jax.algorithms import trpo_pid as trpo_pid
    from trpo_jax.algorithms import trpo_vine as trpo_vine
    from trpo_jax.algorithms import ua_trpo as ua_trpo
    from trpo_jax.algorithms import vpg as vpg

ALGORITHMS = (
    "trpo",
    "npg",
    "vpg",
    "ppo",
    "ua_trpo",
    "qprop",
    "trpo_vine",
    "trpo_held_out",
    "trpo_ensemble",
    "cpo",
    "pcpo",
    "trpo_lag",
    "trpo_pid",
    "ppo_lag",
    "hatrpo",
    "happo",
    "mappo",
)


if not TYPE_CHECKING:  # or a type checker would accept any name as a module

    def __getattr__(name: str) -> ModuleType:
        """Imports the module of an algorithm on its first use."""
        if name in ALGORITHMS:
            return get(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get(name: str) -> ModuleType:
    """Returns the module of an algorithm, from this package or written by the user.

    Args:
        name: one of `ALGORITHMS`, or the name of a module of the user that has a `Config` and a
            `make`. For example "my_module" is `my_module.py` in the current folder, and
            "my_package.my_module" works too.

    Raises:
        ConfigurationError: if no module has this name, or the module of the user is no algorithm.

    Examples:
        >>> get("trpo").Config().max_kl
        0.01
    """
    if name in ALGORITHMS:
        return import_module(f"{__name__}.{name}")
    module = user_modules.load(name)
    if module is None:
        raise ConfigurationError(
            f"{unknown_name('algorithm', name, ALGORITHMS)} To use an algorithm of your own, give "
            "the name of its module, such as my_module for my_module.py in the current folder."
        )
    missing = [part for part in ("Config", "make") if not callable(getattr(module, part, None))]
    if missing:
        raise ConfigurationError(
            f"{module.__file__} is no algorithm: it has no {' and no '.join(missing)}. Write a "
            f"module with both, or choose one of {', '.join(ALGORITHMS)}."
        )
    _check_fields(module)
    return module


def config_of(name: str) -> type:
    """Returns the `Config` of an algorithm. For an algorithm of this package, it imports no JAX.

    Args:
        name: see `get`.

    Raises:
        ConfigurationError: see `get`.
    """
    from trpo_jax.algorithms.configs import CONFIGS

    return CONFIGS[name] if name in ALGORITHMS else get(name).Config


def name_of(module: ModuleType) -> str:
    """Returns the name with which `get` finds a module; "own" for a script or a notebook."""
    name = module.__name__.removeprefix(f"{__name__}.")
    return "own" if name == "__main__" else name


def _check_fields(module: ModuleType) -> None:
    if not dataclasses.is_dataclass(module.Config):
        raise ConfigurationError(
            f"{module.__file__}: Config must be a frozen dataclass. Decorate it with "
            "@trpo_jax.algorithms.fields.config or @flax.struct.dataclass."
        )
    for field in dataclasses.fields(module.Config):
        if "kind" not in field.metadata:
            raise ConfigurationError(
                f"{module.__file__}: the field {field.name} of Config says neither its kind nor "
                "its purpose. Make it with a function of trpo_jax.algorithms.fields, such as "
                f'{field.name}: float = fields.real(0.1, "help text").'
            )
