"""Turns the observation of an environment, a tree of arrays, into the tree that networks see.

The treatment of an array depends on its kind:

| the environment shows | networks see, as float32 |
|---|---|
| floating-point numbers | the same, standardised by running statistics |
| integers of a known range | a one-hot vector for each integer |
| other integers | the same, standardised |
| bytes | the same, divided by 255 |
| booleans | 0 and 1 |

The mask of legal actions stays as it is. If standardisation is off, numbers that would be
standardised keep their values.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from trpo_jax.envs.specs import MASK, ArraySpec, ObservationSpec, split_mask
from trpo_jax.normalization import init_statistics, normalize, update_statistics

# A tree with a `RunningStatistics` for each array that is standardised, and () for the other arrays
Statistics = Any


def seen_spec(observation: ObservationSpec) -> ObservationSpec:
    """Returns the spec of the observation that networks see, without the mask of legal actions."""
    return jax.tree.map(_seen_array, split_mask(observation)[0])


def init_observing(observation: ObservationSpec) -> Statistics:
    """Returns the running statistics before the first observation.

    Args:
        observation: spec of the observations of the environment.
    """
    return _map(
        lambda spec: init_statistics(spec.shape) if is_standardized(spec) else (), observation
    )


def update_observing(
    observation: ObservationSpec, statistics: Statistics, observations: Any
) -> Statistics:
    """Adds a batch of observations, each array `[*batch, *shape]`, to the running statistics."""
    update = lambda spec, old, x: update_statistics(old, x) if is_standardized(spec) else ()
    return _map(update, observation, statistics, observations)


def observe(
    observation: ObservationSpec, statistics: Statistics, observations: Any, normalized: bool
) -> Any:
    """Returns observations as networks see them.

    Args:
        observation: spec of the observations of the environment.
        statistics: from `init_observing` and `update_observing`.
        observations: a batch of observations, each array `[*batch, *shape]`.
        normalized: whether to standardise.

    Examples:
        >>> spec = trpo_jax.ArraySpec((), jnp.dtype("float32"))
        >>> observations = jnp.array([1.0, 3.0])
        >>> statistics = update_observing(spec, init_observing(spec), observations)
        >>> observe(spec, statistics, observations, normalized=True)
        Array([-1.,  1.], dtype=float32)

    """

    def see(spec: ArraySpec, old: Statistics, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
        if is_one_hot(spec):
            return _one_hot(spec, x)
        if normalized and is_standardized(spec):
            return normalize(old, x)
        seen = x.astype(jnp.float32)
        return seen / 255 if np.dtype(spec.dtype) == np.uint8 else seen

    return _map(see, observation, statistics, observations, of_mask=lambda spec, _, x: x != 0)


def is_standardized(spec: ArraySpec) -> bool:
    """Returns whether running statistics standardise the array."""
    return np.dtype(spec.dtype) not in (np.bool_, np.uint8) and not is_one_hot(spec)


def is_one_hot(spec: ArraySpec) -> bool:
    """Returns whether networks see the integers of the array as one-hot vectors."""
    return spec.num_values is not None and np.dtype(spec.dtype) != np.bool_


def _map(function: Any, observation: ObservationSpec, *trees: Any, of_mask: Any = None) -> Any:
    """Returns a tree of the results of a function for each array, and of `of_mask` for the mask.

    If `of_mask` is None, the mask becomes ().
    """
    of_mask = of_mask or (lambda *_: ())
    names = lambda path: [getattr(key, "key", None) for key in path[:1]]
    return jax.tree_util.tree_map_with_path(
        lambda path, *args: (of_mask if names(path) == [MASK] else function)(*args),
        observation,
        *trees,
    )


def _seen_array(spec: ArraySpec) -> ArraySpec:
    shape = tuple(spec.shape)
    if is_one_hot(spec):
        shape = _joined(shape, spec.num_values)
    return ArraySpec(shape, np.dtype(np.float32))


def _joined(shape: tuple[int, ...], num_values: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a one-hot array. An image keeps its three axes."""
    if len(num_values) > 1:
        return (sum(num_values),)
    kept = 2 if len(shape) == 3 else len(shape)
    return (*shape[:kept], math.prod(shape[kept:]) * num_values[0])


def _one_hot(spec: ArraySpec, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    batch = x.shape[: x.ndim - len(spec.shape)]
    values = jnp.arange(max(spec.num_values))
    hot = x[..., None] == values
    if len(spec.num_values) > 1:  # each component has its own number of values
        used = np.flatnonzero(np.arange(len(values)) < np.reshape(spec.num_values, (-1, 1)))
        hot = hot.reshape(*batch, -1)[..., used]
    return hot.reshape(*batch, *_joined(tuple(spec.shape), spec.num_values)).astype(jnp.float32)
