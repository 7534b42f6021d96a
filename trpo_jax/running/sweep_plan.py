"""Makes the settings of a sweep, and groups them by the compiled program that can run them."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.errors import ConfigurationError, unknown_name

SCALES = ("linear", "log", "log1m")
MOST_SETTINGS = 100_000  # even the shortest runs of so many settings take more than a day

Setting = dict[str, Any]


class Range(NamedTuple):
    """A range from which values of a real-valued field are drawn uniformly on a scale.

    Attributes:
        low: the smallest value.
        high: the largest value.
        scale: linear, log, or log1m (logarithmic in 1 - value, for discounts).
    """

    low: float
    high: float
    scale: str = "linear"


class Compilation(NamedTuple):
    """Settings that one compiled program can run.

    Attributes:
        static: the values of fields that fix shapes or control flow. All settings share them.
        indices: the indices of the settings.
    """

    static: Setting
    indices: list[int]


def plan_settings(
    base: Any,
    grid: Mapping[str, Any],
    ranges: Mapping[str, Any],
    num_random: int | None,
    spaces: Mapping[str, Any],
) -> list[Setting]:
    """Returns the settings of a sweep: every combination of the grid with every random draw.

    The first random draw has the values of the base config, for comparison.

    Args:
        base: the config that the settings change.
        grid: a list of values for each field.
        ranges: `(low, high)` or `(low, high, scale)` for each field.
        num_random: number of random draws, or None.
        spaces: default ranges. They are used for fields outside the grid if `ranges` is empty.

    Raises:
        ConfigurationError: if a field is unknown, is swept twice, or cannot be swept in this way.
    """
    grid = {name: _listed(base, name, values) for name, values in grid.items()}
    for name in grid.keys() & ranges.keys():
        raise ConfigurationError(f"{name} is swept twice. Name it in grid or in ranges.")
    if num_random is None and ranges:
        raise ConfigurationError(
            "Ranges need the number of settings to draw. Give random as well, 64 for instance. To "
            "try values of your own, use grid."
        )
    if num_random is not None and num_random < 1:
        raise ConfigurationError(f"random = {num_random} must be at least 1.")
    if num_random is None and not grid:
        raise ConfigurationError(
            "Nothing is swept. Give a grid of values (--grid max_kl=0.003,0.01), or a number of "
            "random settings (--random 64). Random settings can have ranges of your own (--range "
            "max_kl=0.001:0.1:log). In Python, these are grid, random and ranges."
        )
    number = math.prod([num_random or 1, *map(len, grid.values())])
    if number > MOST_SETTINGS:
        raise ConfigurationError(
            f"The grid and random give {number:,} settings, but a sweep can have at most "
            f"{MOST_SETTINGS:,}. Remove values, or draw fewer settings at random."
        )
    chosen = [dict(zip(grid, x, strict=True)) for x in itertools.product(*grid.values())]
    if num_random is None:
        return chosen
    ranges = ranges or {name: x for name, x in spaces.items() if name not in grid}
    drawn = draw({name: _range(base, name, x) for name, x in ranges.items()}, base, num_random)
    return [{**values, **random} for values in chosen for random in drawn]


def _listed(base: Any, name: str, values: Any) -> list[Any]:
    field_of(base, name)
    if isinstance(values, str) or not np.iterable(values) or not len(values):
        raise ConfigurationError(f"The grid of {name} must be a list of values, not {values!r}.")
    plain = [x.item() if isinstance(x, np.generic) else x for x in values]
    plain = [tuple(x) if isinstance(x, list) else x for x in plain]
    value, times = Counter(plain).most_common(1)[0]
    if times > 1:
        raise ConfigurationError(f"The grid of {name} has {value} twice.")
    return plain


def _range(base: Any, name: str, values: Sequence[Any]) -> Range:
    if is_static(field_of(base, name)):
        raise ConfigurationError(
            f"{name} cannot have a range, since each of its values needs a compiled program of its "
            "own. List its values in grid."
        )
    if not 2 <= len(values) <= 3:
        raise ConfigurationError(
            f"The range {values!r} of {name} must be (low, high) or (low, high, scale)."
        )
    low, high, scale = Range(*values)
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    fits = {"log": low > 0, "log1m": high < 1}.get(scale, True)
    if not (fits and low < high):
        raise ConfigurationError(
            f"The range of {name}, {low} to {high} on the scale {scale}, cannot work. low must be "
            "less than high. On the scale log, low must be more than 0. On the scale log1m, high "
            "must be less than 1."
        )
    return Range(low, high, scale)


def field_of(config: Any, name: str) -> dataclasses.Field:
    """Returns the field with a name of a config, or of its class.

    Raises:
        ConfigurationError: if there is no such field.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    if name not in fields:
        raise unknown_name("hyperparameter", name, fields)
    return fields[name]


def is_static(field: dataclasses.Field) -> bool:
    """Returns whether each value of a field needs a compiled program of its own."""
    return not field.metadata.get("pytree_node", True)


def draw(ranges: Mapping[str, Range], base: Any, number: int) -> list[Setting]:
    """Returns `number` random settings, which are the same in each call.

    The first setting has the values of the base config.
    """
    generator = np.random.default_rng(0)
    columns = {}
    for name, (low, high, scale) in ranges.items():
        uniform = generator.random(number)
        match scale:
            case "log":
                values = low * (high / low) ** uniform
            case "log1m":
                values = 1 - (1 - low) * ((1 - high) / (1 - low)) ** uniform
            case _:
                values = low + (high - low) * uniform
        columns[name] = [getattr(base, name), *values[1:].tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def compilations(base: Any, settings: Iterable[Setting]) -> list[Compilation]:
    """Returns the settings in groups that differ only in real-valued fields."""
    found: dict[tuple[Any, ...], Compilation] = {}
    for index, setting in enumerate(settings):
        static = {name: x for name, x in setting.items() if is_static(field_of(base, name))}
        found.setdefault(tuple(static.values()), Compilation(static, [])).indices.append(index)
    return list(found.values())
