"""Specs of observations and actions as plain data for JSON and msgpack."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from trpo_jax.envs.specs import (
    ActionSpec,
    Agents,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    ObservationSpec,
)

KINDS = {kind.__name__: kind for kind in (ArraySpec, Discrete, MultiDiscrete, Box, Agents)}


def to_plain(specs: ObservationSpec | ActionSpec) -> Any:
    """Returns a tree of specs as plain data: dictionaries, lists, texts and integers."""
    if isinstance(specs, dict):
        return {"dict": {name: to_plain(x) for name, x in specs.items()}}
    if isinstance(specs, Agents):
        return {"kind": Agents.__name__, "each": [to_plain(x) for x in specs.each]}
    if isinstance(specs, tuple):
        return {"tuple": [to_plain(x) for x in specs]}
    fields = {x.name: getattr(specs, x.name) for x in dataclasses.fields(specs)}
    return {"kind": type(specs).__name__} | {name: _value_to(x) for name, x in fields.items()}


def from_plain(data: dict[str, Any]) -> Any:
    """Returns the tree of specs that `to_plain` wrote."""
    if "dict" in data:
        return {name: from_plain(x) for name, x in data["dict"].items()}
    if "tuple" in data:
        return tuple(from_plain(x) for x in data["tuple"])
    if "each" in data:
        return Agents(tuple(from_plain(x) for x in data["each"]))
    fields = {name: _value_from(x) for name, x in data.items() if name != "kind"}
    return KINDS[data["kind"]](**fields)


def essence(specs: ObservationSpec | ActionSpec) -> Any:
    """Returns the part of the specs that must be the same for a policy to act.

    The number types, origins and layouts of the environment are not part of it.
    """
    leaves, structure = jax.tree.flatten(specs)
    return str(structure), [_essence(x) for x in leaves]


def _essence(spec: ArraySpec | Discrete | MultiDiscrete | Box | Agents) -> Any:
    if isinstance(spec, Agents):
        return "Agents", [_essence(own) for own in spec.each]
    if isinstance(spec, ArraySpec):
        return tuple(spec.shape), np.dtype(spec.dtype).name, spec.num_values
    if isinstance(spec, Box):
        return "Box", *(np.asarray(x, np.float32).tolist() for x in (spec.low, spec.high))
    starts = np.zeros(spec.size, int) + np.asarray(spec.start or 0)
    return type(spec).__name__, spec.choices, starts.tolist(), tuple(spec.shape)


def in_words(specs: ObservationSpec | ActionSpec) -> str:
    """Returns specs in words, for the message that two specs differ."""
    if isinstance(specs, dict):
        return "{" + ", ".join(f"{name}: {in_words(specs[name])}" for name in sorted(specs)) + "}"
    if isinstance(specs, tuple):
        return "(" + ", ".join(map(in_words, specs)) + ")"
    if isinstance(specs, Agents):
        return f"those of {specs.count} agents: {'; '.join(map(in_words, specs.each))}"
    if isinstance(specs, ArraySpec):
        values = "" if specs.num_values is None else f" with {_listed(specs.num_values)} values"
        return f"{np.dtype(specs.dtype).name} of shape {tuple(specs.shape)}{values}"
    if isinstance(specs, Box):
        return f"numbers from {specs.low.tolist()} to {specs.high.tolist()}"
    _, choices, starts, shape = _essence(specs)
    array = "" if isinstance(specs, Discrete) else f" in shape {shape or (len(choices),)}"
    return f"integers with {_listed(choices)} values, from {_listed(starts)} on{array}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _value_to(x: Any) -> Any:
    """Returns a field of a spec as plain data. Arrays become text, because JSON has no infinity."""
    if isinstance(x, np.ndarray):
        return {"array": x.astype(str).tolist(), "dtype": x.dtype.name}
    if isinstance(x, np.dtype | type):
        return np.dtype(x).name
    return [int(n) for n in x] if isinstance(x, tuple) else x


def _value_from(x: Any) -> Any:
    if isinstance(x, dict):
        return np.array(x["array"]).astype(x["dtype"])
    if isinstance(x, str):
        return np.dtype(x)
    return tuple(x) if isinstance(x, list) else x
