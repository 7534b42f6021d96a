"""The settings of a sweep: grids and ranges of hyperparameters, as a command line says them."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trpo_jax import algorithms
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.running.defaults import SPACES_FILE, defaults_for

SCALES = ("linear", "log", "log1m")
BOOLEANS = {"true": True, "false": False}

Setting = dict[str, Any]


class Range(NamedTuple):
    """A range that values of a real-valued field are drawn from, evenly on some scale."""

    scale: str
    low: float
    high: float


class Group(NamedTuple):
    """Settings that one compiled program can run.

    Attributes:
        static: values of fields that fix shapes or control flow, the same for all.
        indices: of the settings.
    """

    static: Setting
    indices: list[int]


def plan_settings(
    module: ModuleType,
    base: Any,
    grid: Sequence[str],
    ranges: Sequence[str],
    num_random: int | None,
    env: str,
) -> list[Setting]:
    """Returns the settings of a sweep: every value of the grid with every random draw.

    The first of random draws is what the fields are without a sweep, for comparison.

    Args:
        module: the algorithm's.
        base: its config where nothing is swept.
        grid: NAME=VALUE,VALUE of each field.
        ranges: NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE of each; if there is none, those of
            `search_spaces.toml` that the grid does not list.
        num_random: draws, or None.
        env: name of the environment.

    Raises:
        ConfigurationError: if one of them cannot be read or cannot work.
    """
    listed = dict(parse_grid(module, text) for text in grid)
    refuse_repeats([text.partition("=")[0] for text in [*grid, *ranges]])
    if num_random is None and ranges:
        raise ConfigurationError(
            f"--range {ranges[0]} says from where, and not how many: add --random 64, for "
            "instance. For a few values of your own, use --grid."
        )
    draws: list[Setting] = [{}]
    if num_random is not None:
        if num_random < 1:
            raise ConfigurationError(f"--random {num_random} must be at least 1.")
        drawn = dict(parse_range(module, text) for text in ranges)
        if not ranges:
            spaces = defaults_for(algorithms.name_of(module), env, SPACES_FILE)
            drawn = {name: Range(*x) for name, x in spaces.items() if name not in listed}
        draws = draw(drawn, base, num_random)
    if not listed and draws == [{}]:
        raise ConfigurationError(
            "Nothing is swept. Say what: --grid max_kl=0.003,0.01,0.03, for instance, or "
            "--random 64 --range max_kl=1e-3:1e-1:log."
        )
    combinations = itertools.product(*listed.values())
    chosen = [dict(zip(listed, values, strict=True)) for values in combinations]
    return [{**values, **random} for values in chosen for random in draws]


def parse_grid(module: ModuleType, text: str) -> tuple[str, list[Any]]:
    """Returns the name and the values in NAME=VALUE,VALUE.

    Raises:
        ConfigurationError: if it is not of that form, or a value is none of the field's.
    """
    name, _, values = text.partition("=")
    if not values:
        raise ConfigurationError(f"--grid {text!r} is not of the form NAME=VALUE,VALUE.")
    kind = field_of(module, name).metadata["kind"]
    parsed = [parse_value(name, kind, value) for value in values.split(",")]
    for value in parsed:
        if parsed.count(value) > 1:
            raise ConfigurationError(f"--grid {text} has {value} twice.")
    return name, parsed


def parse_value(name: str, kind: type, text: str) -> Any:
    """Returns a value of a field; the parts of a tuple have an x between them.

    Raises:
        ConfigurationError: if it is none.
    """
    try:
        if kind is bool:
            return BOOLEANS[text]
        return tuple(map(int, text.split("x"))) if kind is tuple else kind(text)
    except (ValueError, KeyError):
        forms = {float: "a number", int: "an integer", bool: "true or false"}
        form = forms.get(kind, "integers with an x between them, such as 64x64")
        raise ConfigurationError(f"--grid {name}: {text!r} is not {form}.") from None


def parse_range(module: ModuleType, text: str) -> tuple[str, Range]:
    """Returns the name and the range in NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE.

    Raises:
        ConfigurationError: if it is not of that form, or the field has no range.
    """
    name, _, bounds = text.partition("=")
    if field_of(module, name).metadata["kind"] is not float:
        raise ConfigurationError(
            f"--range {text}: {name} fixes shapes or the course of the program, so that each of "
            f"its values is compiled for itself. List them: --grid {name}=..."
        )
    low, high, scale = (*bounds.split(":"), "linear")[:3] if bounds.count(":") else ("", "", "")
    try:
        result = Range(scale, float(low), float(high))
    except ValueError:
        raise ConfigurationError(
            f"--range {text!r} is not of the form NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE."
        ) from None
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    fits = {"log": result.low > 0, "log1m": result.high < 1}.get(scale, True)
    if not (fits and result.low < result.high):
        raise ConfigurationError(
            f"--range {text} cannot work: LOW must be less than HIGH, more than 0 on the scale "
            "log, and HIGH less than 1 on the scale log1m."
        )
    return name, result


def field_of(module: ModuleType, name: str) -> dataclasses.Field:
    """Returns the field of an algorithm's config with a name.

    Raises:
        ConfigurationError: if there is none.
    """
    fields = {field.name: field for field in dataclasses.fields(module.Config)}
    if name not in fields:
        raise unknown_name("hyperparameter", name, fields)
    return fields[name]


def refuse_repeats(names: Sequence[str]) -> None:
    """Raises a ConfigurationError if a field is swept twice."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{name} is swept twice. Name it in one --grid or --range.")


def draw(ranges: dict[str, Range], base: Any, number: int) -> list[Setting]:
    """Returns so many settings, the first being the base's own; the same ones each time."""
    generator = np.random.default_rng(0)
    columns = {}
    for name, (scale, low, high) in ranges.items():
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


def group_settings(module: ModuleType, settings: Iterable[Setting]) -> Iterator[Group]:
    """Yields the groups of settings that differ in real-valued fields only."""
    groups: dict[tuple[Any, ...], Group] = {}
    for index, setting in enumerate(settings):
        static = {
            name: value
            for name, value in setting.items()
            if field_of(module, name).metadata["kind"] is not float
        }
        groups.setdefault(tuple(static.values()), Group(static, [])).indices.append(index)
    yield from groups.values()
