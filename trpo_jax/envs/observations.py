"""Turns the observations of an environment on the host into the arrays of its spec. NumPy only."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from trpo_jax.envs.specs import ArraySpec, ObservationSpec, path_name
from trpo_jax.errors import Unpromised

BIG = (np.dtype(np.uint32), np.dtype(np.int32))  # dtypes of integers that become float32


def array_spec(shape: tuple[int, ...], dtype: Any, **fields: Any) -> ArraySpec:
    """Returns the spec of an array of an environment. Its dtype has at most 32 bits."""
    own = np.dtype(dtype)
    wide = own.itemsize == 8 or own in BIG
    shown = np.dtype(np.float32) if wide else own
    if fields.get("channels_first"):
        shape = (*shape[1:], shape[0])
    return ArraySpec(tuple(shape), shown, own_dtype=None if shown == own else own, **fields)


def integer_spec(shape: tuple[int, ...], dtype: Any, num_values: Any, start: Any) -> ArraySpec:
    """Returns the spec of integers of a known range that starts at `start`."""
    origin = np.broadcast_to(np.asarray(start, np.int64), shape).copy() if np.any(start) else None
    own = np.dtype(dtype)
    return ArraySpec(
        tuple(shape),
        np.dtype(np.int32),
        tuple(int(n) for n in np.ravel(num_values)),
        origin,
        None if own == np.int32 else own,
    )


def to_arrays(observation: ObservationSpec, shown: Any) -> Any:
    """Returns an observation as the arrays of its spec, in the precision of the environment.

    Args:
        observation: the spec.
        shown: the observation. It can be a batch. All of its arrays then have the same batch axes.

    Raises:
        Unpromised: if the observation does not match the spec.
    """
    return _checked(observation, shown, ())


def _checked(spec: ObservationSpec, shown: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(spec, ArraySpec):
        return _array(spec, shown, path)
    if isinstance(spec, Mapping):
        if not isinstance(shown, Mapping) or not spec.keys() <= shown.keys():
            raise _wrong(path, shown, f"a dictionary of {', '.join(spec)}")
        key = jax.tree_util.DictKey
        return {name: _checked(x, shown[name], (*path, key(name))) for name, x in spec.items()}
    if not isinstance(shown, tuple | list) or len(shown) != len(spec):
        raise _wrong(path, shown, f"a tuple of {len(spec)}")
    pairs = enumerate(zip(spec, shown, strict=True))
    return tuple(_checked(*pair, (*path, jax.tree_util.SequenceKey(i))) for i, pair in pairs)


def _array(spec: ArraySpec, shown: Any, path: tuple[Any, ...]) -> np.ndarray:
    x, shape = np.asarray(shown), tuple(spec.shape)
    if spec.channels_first:
        shape = (shape[-1], *shape[:-1])
    dtype = np.dtype(spec.own_dtype or spec.dtype)
    kinds = "biu" if dtype.kind in "biu" else "biuf"
    promised = f"{dtype}, shape {shape}"
    if spec.num_values is not None:
        low = 0 if spec.origin is None else spec.origin
        high = low + np.reshape(spec.num_values, -1 if len(spec.num_values) == 1 else shape) - 1
        promised = f"integers from {np.min(low)} to {np.max(high)}, shape {shape}"
    if x.shape[max(0, x.ndim - len(shape)) :] != shape or x.dtype.kind not in kinds:
        raise _wrong(path, x, promised)
    if spec.num_values is not None:
        if (x < low).any() or (x > high).any():
            raise _wrong(path, x, promised)
    elif x.dtype != dtype and dtype.kind in "iu" and x.size:
        limits = np.iinfo(dtype)
        if x.min() < limits.min or x.max() > limits.max:
            raise _wrong(path, x, f"{dtype}, from {limits.min} to {limits.max}")
    x = x.astype(dtype, copy=False)
    return np.moveaxis(x, -3, -1) if spec.channels_first else x


def centre(observation: ObservationSpec, arrays: Any) -> Any:
    """Subtracts the origin of the spec from arrays of `to_arrays`, and casts to its dtypes.

    If a small signal is added to a large number, such as a time or a price, a cast to 32 bits alone
    would lose the signal.
    """
    return jax.tree.map(_centred, observation, arrays)


def _centred(spec: ArraySpec, x: np.ndarray) -> np.ndarray:
    if spec.origin is None:
        return np.asarray(x, spec.dtype)
    distance = np.asarray(x, np.float64) - np.asarray(spec.origin, np.float64)
    if np.issubdtype(x.dtype, np.integer):  # 64-bit integers subtract exactly if they do not wrap
        wide = np.uint64 if x.dtype == np.uint64 else np.int64
        exact = (x.astype(wide) - spec.origin.astype(wide)).view(np.int64)
        distance = np.where(np.abs(distance) < 2.0**62, exact, distance)
    return distance.astype(spec.dtype)


def batch_shape(observation: ObservationSpec, arrays: Any) -> tuple[int, ...]:
    """Returns the sizes of the batch axes of the arrays of an observation."""
    spec, x = jax.tree.leaves(observation)[0], jax.tree.leaves(arrays)[0]
    return tuple(x.shape[: x.ndim - len(spec.shape)])


def num_numbers(observation: ObservationSpec) -> int:
    """Returns how many numbers an observation holds."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(observation))


def _wrong(path: tuple[Any, ...], found: Any, promised: str) -> Unpromised:
    part = f", in its part {path_name('observation', path)}" if path else ""
    return Unpromised(
        f"an observation of {in_words(found)}{part}, but its space promises {promised}"
    )


def require_tuple(call: str, returned: Any, *names: str) -> tuple[Any, ...]:
    """Returns what a call of an environment returned, if it is a tuple of the named parts.

    Raises:
        Unpromised: if it is not.
    """
    if not isinstance(returned, tuple) or len(returned) != len(names):
        raise Unpromised(f"{in_words(returned)} from {call}, not ({', '.join(names)})")
    return returned


def in_words(value: Any) -> str:
    """Describes a value: the dtype, shape and range of an array, or the class and the parts."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.80}"
    if isinstance(value, Mapping):
        return f"type {type(value).__name__} with the parts {', '.join(map(str, value))}"
    if not isinstance(value, np.ndarray | np.generic):
        return f"type {type(value).__name__}"
    extent = ""
    if value.dtype.kind in "biuf" and value.size:
        low, high = value.min(), value.max()
        extent = f", from {low} to {high}"
    return f"{value.dtype}, shape {value.shape}{extent}"
