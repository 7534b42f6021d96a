"""The hyperparameters that the flags of sweep.py sweep, and their values."""

from collections.abc import Sequence
from typing import Any

from trpo_jax import algorithms
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.sweep_plan import Range, field_of

BOOLEANS = {"true": True, "false": False}


def parse_grid(algorithm: str, text: str) -> tuple[str, list[Any]]:
    """Returns the name and the values from a text NAME=VALUE,VALUE.

    Raises:
        ConfigurationError: if the text is not of that form, or a value is of the wrong kind.
    """
    name, _, values = text.partition("=")
    if not values:
        raise ConfigurationError(f"--grid {text!r} is not of the form NAME=VALUE,VALUE.")
    kind = field_of(algorithms.config_of(algorithm), name).metadata["kind"]
    return name, [parse_value(name, kind, value) for value in values.split(",")]


def parse_value(name: str, kind: type, text: str) -> Any:
    """Returns the value of a field from text. A space or an x separates the parts of a tuple.

    Raises:
        ConfigurationError: if the text is not a value of that kind.
    """
    try:
        if kind is bool:
            return BOOLEANS[text]
        return tuple(map(int, text.replace("x", " ").split())) if kind is tuple else kind(text)
    except (ValueError, KeyError):
        forms = {float: "a number", int: "an integer", bool: "true or false"}
        form = forms.get(kind, 'integers with spaces between them, such as "64 64"')
        raise ConfigurationError(f"--grid {name}: {text!r} is not {form}.") from None


def parse_range(text: str) -> tuple[str, Range]:
    """Returns the name and the range from a text NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE.

    Raises:
        ConfigurationError: if the text is not of that form.
    """
    name, _, bounds = text.partition("=")
    try:
        low, high, *scale = bounds.split(":")
        return name, Range(float(low), float(high), *scale)
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"--range {text!r} is not of the form NAME=LOW:HIGH or NAME=LOW:HIGH:SCALE."
        ) from None


def refuse_repeats(texts: Sequence[str]) -> None:
    """Raises a ConfigurationError if two texts NAME=... name the same field."""
    names = [text.partition("=")[0] for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{name} is swept twice. Name it in one --grid or --range.")
