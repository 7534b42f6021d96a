"""The settings of a sweep, and which of them one compiled program can run."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.errors import ConfigurationError, unknown_name

SCALES = ("linear", "log", "log1m")
MOST_SETTINGS = 100_000  # a day and more of the shortest runs

Setting = dict[str, Any]


class Range(NamedTuple):
    """A range that values of a real-valued field are drawn from, evenly on a scale.

    Attributes:
        low: the least value.
        high: the largest value.
        scale: linear, log, or log1m: logarithmic in 1 - value, for discounts.
    """

    low: float
    high: float
    scale: str = "linear"


class Compilation(NamedTuple):
    """Settings that one compiled program can run.

    Attributes:
        static: values of fields that fix shapes or control flow, the same for all.
        indices: of the settings.
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

    The first of random draws is what the fields are without a sweep, for comparison.

    Args:
        base: the config where nothing is swept.
        grid: values of each field.
        ranges: `(low, high)` or `(low, high, scale)` of each field.
        num_random: draws, or None.
        spaces: ranges of fields that are not in the grid, where no ranges are given.

    Raises:
        ConfigurationError: if a field is unknown or swept twice, or cannot be swept so.
    """
    grid = {name: _listed(base, name, values) for name, values in grid.items()}
    for name in grid.keys() & ranges.keys():
        raise ConfigurationError(f"{name} is swept twice. Name it in grid or in ranges.")
    if num_random is None and ranges:
        raise ConfigurationError(
            "Ranges say where values are drawn from, and not how many. Give random as well, 64 for "
            "instance. For a few values of your own, use grid."
        )
    if num_random is not None and num_random < 1:
        raise ConfigurationError(f"random = {num_random} must be at least 1.")
    if num_random is None and not grid:
        raise ConfigurationError(
            "Nothing is swept. Give a grid, such as max_kl = 0.003, 0.01, 0.03, or random = 64, "
            "with ranges of your own if you like, such as max_kl = (0.001, 0.1, log)."
        )
    number = math.prod([num_random or 1, *map(len, grid.values())])
    if number > MOST_SETTINGS:
        raise ConfigurationError(
            f"The grid and random give {number:,} settings, and a sweep has {MOST_SETTINGS:,} at "
            "the most. Leave values out, or draw fewer settings at random."
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
            f"{name} fixes shapes or the course of the program, so that each of its values is "
            "compiled for itself. It has no range: list its values in grid."
        )
    if not 2 <= len(values) <= 3:
        raise ConfigurationError(f"The range of {name} = {values!r} must be low, high and scale.")
    low, high, scale = Range(*values)
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    fits = {"log": low > 0, "log1m": high < 1}.get(scale, True)
    if not (fits and low < high):
        raise ConfigurationError(
            f"The range of {name}, {low} to {high} on the scale {scale}, cannot work: low must be "
            "less than high, more than 0 on the scale log, and high less than 1 on the scale log1m."
        )
    return Range(low, high, scale)


def field_of(config: Any, name: str) -> dataclasses.Field:
    """Returns the field of a config, or of its class, with a name.

    Raises:
        ConfigurationError: if there is none.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    if name not in fields:
        raise unknown_name("hyperparameter", name, fields)
    return fields[name]


def is_static(field: dataclasses.Field) -> bool:
    """Says whether each value of a field has to be compiled for itself."""
    return not field.metadata.get("pytree_node", True)


def draw(ranges: Mapping[str, Range], base: Any, number: int) -> list[Setting]:
    """Returns so many settings, the first being the base's own; the same ones each time."""
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
    """Returns settings by what has to be compiled: those of one differ in real-valued fields."""
    found: dict[tuple[Any, ...], Compilation] = {}
    for index, setting in enumerate(settings):
        static = {name: x for name, x in setting.items() if is_static(field_of(base, name))}
        found.setdefault(tuple(static.values()), Compilation(static, [])).indices.append(index)
    return list(found.values())
