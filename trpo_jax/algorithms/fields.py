"""Fields of the algorithms' configs. Each field has a help text and a check of its value.

A config is a frozen dataclass and a pytree. Real numbers are pytree leaves, so `jax.vmap` can run
over them. Integers, names and booleans are static, because they fix shapes or control flow.

`--help` reads configs. So this module imports JAX and NumPy inside the functions that need them.

Examples:
    >>> @config
    ... class Config:
    ...     weight: float = real(0.1, "weight of the penalty; 0 means no penalty", 0.0)
    >>> validate(Config(weight=-1.0))
    Traceback (most recent call last):
    trpo_jax.errors.ConfigurationError: weight = -1.0 cannot work: it must be a finite number, at
    least 0 (weight of the penalty; 0 means no penalty; default 0.1).
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from trpo_jax.errors import ConfigurationError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Real = Float[Array, "..."] | float  # an array if `jax.vmap` runs over configs
else:
    Real = float

LARGEST_INTEGER = 2**31 - 1  # of 32 bits
Class = TypeVar("Class")
_unregistered: list[type] = []  # the configs that are not pytrees yet


@dataclass_transform(frozen_default=True)
def config(cls: type[Class]) -> type[Class]:
    """Returns a class of fields as a frozen dataclass that is a pytree and has `replace`.

    `config.replace(max_kl=0.02)` returns a copy with other values. If JAX is not imported yet, the
    class becomes a pytree as soon as `trpo_jax.algorithms.base` is imported.
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    made.replace = dataclasses.replace
    _unregistered.append(made)
    if "jax" in sys.modules:
        register_configs()
    return made


def register_configs() -> None:
    """Makes all configs known to JAX as pytrees."""
    import jax

    while _unregistered:
        made = _unregistered.pop()
        parts: dict[bool, list[str]] = {True: [], False: []}
        for field in dataclasses.fields(made):
            parts[field.metadata.get("pytree_node", True)].append(field.name)
        jax.tree_util.register_dataclass(made, parts[True], parts[False])


def real(
    default: float,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    several: bool = False,
) -> Any:
    """Returns a field for a real number in [low, high]; the field is a pytree leaf.

    Args:
        default: default value.
        help: text for `--help` and for error messages.
        low: lower bound.
        high: upper bound.
        open_low: whether the lower bound itself is excluded.
        open_high: whether the upper bound itself is excluded.
        several: whether the field may also hold a tuple of numbers.
    """
    bounds = {
        "more than" if open_low else "at least": low,
        "less than" if open_high else "at most": high,
    }
    described = [f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound)]
    kinds = "a finite number" + " or a tuple of finite numbers" * several
    metadata = {
        "pytree_node": True,
        "help": help,
        "kind": float,
        "several": several,
        "allowed": ", ".join(filter(None, [kinds, " and ".join(described)])),
        "accepts": lambda x: (
            (low < x if open_low else low <= x) and (x < high if open_high else x <= high)
        ),
    }
    return dataclasses.field(default=default, metadata=metadata)


def integer(default: int, help: str, low: int, high: int = LARGEST_INTEGER) -> Any:
    """Returns a static field for an integer in [low, high]."""
    allowed = f"an integer from {low} to {high:,}"
    return _static(default, help, int, allowed, lambda x: low <= x <= high)


def integers(default: tuple[int, ...], help: str, low: int) -> Any:
    """Returns a static field for a tuple of integers, each at least `low`."""
    allowed = f"a tuple of integers from {low} to {LARGEST_INTEGER:,}"
    accepts = lambda xs: all(_is_integer(x) and low <= x <= LARGEST_INTEGER for x in xs)
    return _static(default, help, tuple, allowed, accepts)


def flag(default: bool, help: str) -> Any:
    """Returns a static field for true or false."""
    return _static(default, help, bool, "true or false", lambda x: True)


def choice(default: str, help: str, options: Sequence[str]) -> Any:
    """Returns a static field for one of the names in `options`."""
    allowed = "one of " + ", ".join(options)
    return _static(default, help, str, allowed, lambda x: x in options, choices=tuple(options))


def name(default: str, help: str) -> Any:
    """Returns a static field for any name."""
    return _static(default, help, str, "a name", lambda x: True)


def validate(config: Any) -> None:
    """Checks every field of a config that has a concrete value, and skips traced values.

    Raises:
        ConfigurationError: if a field cannot work. The message names the first such field, its
            value and the allowed values.
    """
    import jax
    import numpy as np

    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value)):
            continue
        kind, accepts = field.metadata["kind"], field.metadata["accepts"]
        listed = not isinstance(value, tuple | list) or field.metadata.get("several", False)
        values = (
            np.ravel(value).tolist() if kind is float and listed and np.ndim(value) else [value]
        )
        wrong = [x for x in values if not (_has_kind(x, kind) and accepts(x))]
        if wrong:
            which = (
                f", because of {wrong[0]!r}" if isinstance(value, tuple | list) and listed else ""
            )
            raise ConfigurationError(
                f"{field.name} = {value!r} cannot work{which}: it must be "
                f"{field.metadata['allowed']} ({field.metadata['help']}; default {field.default})."
            )
        if kind is float:
            for number in values:
                require_float32(field.name, number)


def require_float32(name: str, number: Any) -> None:
    """Raises a ConfigurationError if rounding to 32 bits turns a number into infinity, 0 or 1.

    A subnormal number counts as 0, since devices treat it as 0.
    """
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        held = float(np.float32(number))
    held = held if abs(held) >= np.finfo(np.float32).tiny else 0.0
    if math.isinf(held) or (held in (0, 1) and held != float(number)):
        raise ConfigurationError(
            f"{name} = {number!r} cannot work: numbers have 32 bits and about seven digits, so it "
            f"would become {held:g}. Choose 0, 1, or a number whose size is 1.2e-38 to 3.4e38."
        )


def _static(default, help, kind, allowed, accepts, **more) -> Any:
    metadata = {"pytree_node": False, "help": help, "kind": kind, "allowed": allowed}
    return dataclasses.field(default=default, metadata=metadata | {"accepts": accepts, **more})


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _has_kind(value: Any, kind: type) -> bool:
    if kind is float:
        import jax
        import numpy as np

        number = isinstance(value, (numbers.Real, np.ndarray, jax.Array)) and not isinstance(
            value, bool
        )
        return number and math.isfinite(value)
    if kind is int:
        return _is_integer(value)
    return isinstance(value, kind)
