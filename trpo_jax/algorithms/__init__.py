"""Algorithms by name: modules with a `Config` and a `make(env, config, *, agent=None)`."""

import dataclasses
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from trpo_jax import user_modules
from trpo_jax.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:  # `__getattr__` imports them when they are used first
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


if not TYPE_CHECKING:  # a checker would take any name for a module

    def __getattr__(name: str) -> ModuleType:
        """Imports the module of an algorithm when it is used first."""
        if name in ALGORITHMS:
            return get(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get(name: str) -> ModuleType:
    """Returns an algorithm's module, one of this package or the user's own.

    Args:
        name: one of `ALGORITHMS`, or the name of any module that has a `Config` and a `make`, such
            as "my_module" for `my_module.py` in the current folder, or "my_package.my_module".

    Raises:
        ConfigurationError: if there is none of that name, or the user's own cannot be used.
    """
    if name in ALGORITHMS:
        return import_module(f"{__name__}.{name}")
    module = user_modules.load(name)
    if module is None:
        raise ConfigurationError(
            f"{unknown_name('algorithm', name, ALGORITHMS)} An algorithm of your own is named by "
            "its module, such as my_module for my_module.py in the current folder."
        )
    missing = [part for part in ("Config", "make") if not callable(getattr(module, part, None))]
    if missing:
        raise ConfigurationError(
            f"{module.__file__} is no algorithm: it has no {' and no '.join(missing)}. Write a "
            f"module with both, or choose one of {', '.join(ALGORITHMS)}."
        )
    _check_fields(module)
    return module


def name_of(module: ModuleType) -> str:
    """Returns the name by which `get` finds a module; "own" for that of a script or a notebook."""
    name = module.__name__.removeprefix(f"{__name__}.")
    return "own" if name == "__main__" else name


def _check_fields(module: ModuleType) -> None:
    if not dataclasses.is_dataclass(module.Config):
        raise ConfigurationError(
            f"{module.__file__}: Config must be a frozen dataclass: decorate it with "
            "@flax.struct.dataclass."
        )
    for field in dataclasses.fields(module.Config):
        if "kind" not in field.metadata:
            raise ConfigurationError(
                f"{module.__file__}: the field {field.name} of Config says neither its kind nor "
                "what it is for. Give it as trpo_jax.algorithms.fields does, such as "
                f'{field.name}: float = fields.real(0.1, "what it is for").'
            )
