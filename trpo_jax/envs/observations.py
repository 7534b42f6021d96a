"""From what an environment on the host shows to the array that a network sees; NumPy alone.

What it shows is described by a layout, which is plain data, so that files can hold it:

    {"kind": "box", "shape": [3], "dtype": "float32"}     and "channels_first": True of some images
    {"kind": "discrete", "n": 5, "start": 0}
    {"kind": "multi_discrete", "shape": [2], "n": [2, 3], "start": [0, 0]}
    {"kind": "multi_binary", "shape": [4]}
    {"kind": "dict", "parts": {"name": layout, ...}}
    {"kind": "tuple", "parts": [layout, ...]}

One `box` keeps its shape. All else becomes a vector: integers from a finite set are shown one-hot,
the parts of a dictionary are joined in the order of their names.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trpo_jax.envs.base import ArraySpec
from trpo_jax.errors import Unpromised

Layout = dict[str, Any]


def spec_of(layout: Layout) -> ArraySpec:
    """Returns the spec of what a network is shown: numbers of 32 bits at the most."""
    flat = flatten(layout, example(layout))
    wide = flat.dtype.itemsize == 8 or flat.dtype == np.uint32
    return ArraySpec(flat.shape, np.dtype(np.float32) if wide else flat.dtype, layout)


def flatten(layout: Layout, observation: Any) -> np.ndarray:
    """Returns what an environment shows as one array, in the environment's own precision.

    Args:
        layout: of the environment.
        observation: one, or several: each array in it then has the same axes before its own.

    Raises:
        Unpromised: if it is not what the layout says.
    """
    if layout["kind"] != "box":
        return _vector(layout, observation, "")
    x = _box(layout, observation, "")
    return np.moveaxis(x, -3, -1) if layout.get("channels_first") else x


def centre(spec: ArraySpec, flat: np.ndarray) -> np.ndarray:
    """Returns flattened observations as networks see them: without their origin, and cast.

    A signal on top of a large number, such as a time or a price, would be lost in 32 bits.
    """
    if spec.origin is None:
        return np.asarray(flat, spec.dtype)
    distance = np.asarray(flat, np.float64) - np.asarray(spec.origin, np.float64)
    if np.issubdtype(flat.dtype, np.integer):  # which 64 bits subtract exactly, if they do not wrap
        exact = (flat - spec.origin.astype(flat.dtype)).view(np.int64)
        distance = np.where(np.abs(distance) < 2.0**62, exact, distance)
    return distance.astype(spec.dtype)


def example(layout: Layout) -> Any:
    """Returns an observation of a layout, all zeros or the first of a set."""
    match layout:
        case {"kind": "dict", "parts": parts}:
            return {name: example(part) for name, part in parts.items()}
        case {"kind": "tuple", "parts": parts}:
            return tuple(example(part) for part in parts)
        case {"kind": "discrete" | "multi_discrete", "start": start}:
            return np.reshape(start, layout.get("shape", ()))
    return np.zeros(layout["shape"], layout.get("dtype", np.int8))


def _vector(layout: Layout, observation: Any, name: str) -> np.ndarray:
    match layout:
        case {"kind": "dict", "parts": parts}:
            if not isinstance(observation, Mapping) or not parts.keys() <= observation.keys():
                raise _wrong(name, observation, f"a dictionary of {', '.join(parts)}")
            flat = [_vector(parts[x], observation[x], f"{name}/{x}") for x in sorted(parts)]
            return np.concatenate(flat, axis=-1)
        case {"kind": "tuple", "parts": parts}:
            if not isinstance(observation, tuple | list) or len(observation) != len(parts):
                raise _wrong(name, observation, f"a tuple of {len(parts)}")
            pairs = enumerate(zip(parts, observation, strict=True))
            return np.concatenate([_vector(*pair, f"{name}/{i}") for i, pair in pairs], axis=-1)
        case {"kind": "discrete", "n": n, "start": start}:
            return _one_hot(_integers(layout, observation, name, start, start + n - 1) - start, n)
        case {"kind": "multi_discrete", "n": sizes, "start": starts, "shape": shape}:
            low, n = (np.reshape(x, shape) for x in (starts, sizes))
            indices = _integers(layout, observation, name, low, low + n - 1) - low
            indices = indices.reshape(*indices.shape[: indices.ndim - len(shape)], -1)
            hot = [_one_hot(indices[..., i], size) for i, size in enumerate(sizes)]
            return np.concatenate(hot, axis=-1)
        case {"kind": "multi_binary"}:
            x = _integers(layout, observation, name, 0, 1).astype(np.int8)
        case _:
            x = _box(layout, observation, name)
    shape = layout["shape"]
    return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def _one_hot(indices: Any, n: int) -> np.ndarray:
    return (np.expand_dims(indices, -1) == np.arange(n)).astype(np.int32)


def _integers(layout: Layout, observation: Any, name: str, low: Any, high: Any) -> np.ndarray:
    shape = tuple(layout.get("shape", ()))
    x = np.asarray(observation)
    whole = np.issubdtype(x.dtype, np.integer) or x.dtype == bool
    if not whole or x.shape[x.ndim - len(shape) :] != shape:
        raise _wrong(name, x, f"integers, shape {shape}")
    x = x.astype(np.int64)
    if (x < low).any() or (x > high).any():
        raise _wrong(name, x, f"integers from {np.min(low)} to {np.max(high)}")
    return x


def _box(layout: Layout, observation: Any, name: str) -> np.ndarray:
    shape, dtype = tuple(layout["shape"]), np.dtype(layout["dtype"])
    x = np.asarray(observation)
    if x.shape[max(0, x.ndim - len(shape)) :] != shape:
        raise _wrong(name, x, f"{dtype}, shape {shape}")
    if x.dtype != dtype:
        whole = dtype.kind in "iu"
        if x.dtype.kind not in ("biu" if whole else "biuf"):
            raise _wrong(name, x, f"{dtype}, shape {shape}")
        limits = np.iinfo(dtype) if whole else None
        if whole and x.size and (x.min() < limits.min or x.max() > limits.max):
            raise _wrong(name, x, f"{dtype}, from {limits.min} to {limits.max}")
        x = x.astype(dtype)
    return x.astype(np.int64) if dtype == np.int32 else x  # one-hot integers alone have 32 bits


def _wrong(name: str, found: Any, promised: str) -> Unpromised:
    part = f", in its part {name.strip('/')!r}" if name else ""
    return Unpromised(
        f"an observation of {in_words(found)}{part}, where its space promises {promised}"
    )


def in_words(value: Any) -> str:
    """Returns what a value is: dtype, shape and extent of an array, or its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.80}"
    if not isinstance(value, np.ndarray | np.generic):
        return f"type {type(value).__name__}"
    extent = ""
    if value.dtype.kind in "biuf" and value.size:
        low, high = value.min(), value.max()
        extent = f", from {low} to {high}"
    return f"{value.dtype}, shape {value.shape}{extent}"
