"""From the observation of an environment, a tree of arrays, to the tree that networks see.

Each array is treated by its kind:

| the environment shows | networks see, as float32 |
|---|---|
| floating-point numbers | the same, standardised by running statistics |
| integers of a known range | one number for each value: 1 for that value, 0 for the others |
| other integers | the same, standardised |
| bytes | fractions of 255 |
| booleans | 0 and 1 |

The mask of legal actions stays as it is. Without standardisation all numbers keep their size.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from trpo_jax.envs.base import MASK, ArraySpec, ObservationSpec, split_mask
from trpo_jax.normalization import init_statistics, normalize, update_statistics

# A `RunningStatistics` for each array that is standardised, () for the others.
Statistics = Any


def seen_spec(observation: ObservationSpec) -> ObservationSpec:
    """Returns the specs of what networks see, without the mask of legal actions."""
    return jax.tree.map(_seen_array, split_mask(observation)[0])


def init_observing(observation: ObservationSpec) -> Statistics:
    """Returns the statistics of no observations.

    Args:
        observation: what the environment shows.
    """
    return _map(
        lambda spec: init_statistics(spec.shape) if is_standardized(spec) else (), observation
    )


def update_observing(
    observation: ObservationSpec, statistics: Statistics, observations: Any
) -> Statistics:
    """Returns the statistics with a batch of observations added, each array `[*batch, *shape]`."""
    update = lambda spec, old, x: update_statistics(old, x) if is_standardized(spec) else ()
    return _map(update, observation, statistics, observations)


def observe(
    observation: ObservationSpec, statistics: Statistics, observations: Any, normalized: bool
) -> Any:
    """Returns observations as networks see them.

    Args:
        observation: what the environment shows.
        statistics: from `init_observing` and `update_observing`.
        observations: a batch of it, each array `[*batch, *shape]`.
        normalized: whether to standardise.

    Example:
        >>> seen = observe(env.observation, statistics, observations, normalized=True)
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
    """Returns whether an array is standardised by running statistics."""
    return np.dtype(spec.dtype) not in (np.bool_, np.uint8) and not is_one_hot(spec)


def is_one_hot(spec: ArraySpec) -> bool:
    """Returns whether networks see a number for each value that a component may have."""
    return spec.num_values is not None and np.dtype(spec.dtype) != np.bool_


def _map(function: Any, observation: ObservationSpec, *trees: Any, of_mask: Any = None) -> Any:
    """Returns the tree that a function gives for each array; () for a mask, if nothing is said."""
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
    """Returns the shape of a one-hot array: an image keeps its three axes."""
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
