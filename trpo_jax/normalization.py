"""Running mean and variance, for observations and for the scale of rewards."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

CLIP = 10.0  # deviations


class RunningStatistics(NamedTuple):
    """Count, mean and summed squared deviations of all samples seen so far.

    Attributes:
        count: number of samples, scalar.
        mean: mean of the samples, `[*shape]`.
        squared_deviations: sum of (x - mean)^2, `[*shape]`.
    """

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    squared_deviations: Float[Array, "*shape"]


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Returns statistics of no samples: mean 0, and a variance that reads as 1."""
    zeros = jnp.zeros(shape, jnp.float32)
    return RunningStatistics(jnp.zeros((), jnp.float32), zeros, jnp.zeros_like(zeros))


def update_statistics(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> RunningStatistics:
    """Returns the statistics with a batch `[*batch, *shape]` added.

    Merges the batch's own moments into the running ones (Chan, Golub and LeVeque 1979), which
    keeps its precision when the mean is large against the deviation.
    """
    samples = batch.astype(jnp.float32)
    axes = tuple(range(batch.ndim - statistics.mean.ndim))
    batch_count = math.prod(batch.shape[: len(axes)])
    batch_mean = jnp.mean(samples, axis=axes)
    batch_deviations = jnp.sum((samples - batch_mean) ** 2, axis=axes)
    count = statistics.count + batch_count
    shift = batch_mean - statistics.mean
    return RunningStatistics(
        count=count,
        mean=statistics.mean + shift * (batch_count / count),
        squared_deviations=statistics.squared_deviations
        + batch_deviations
        + shift**2 * (statistics.count * batch_count / count),
    )


def standard_deviation(statistics: RunningStatistics) -> Float[Array, "*shape"]:
    """Returns the standard deviation, 1 where no sample was seen yet."""
    variance = statistics.squared_deviations / jnp.maximum(statistics.count, 1.0)
    return jnp.sqrt(jnp.where(statistics.count > 0, variance, 1.0) + 1e-8)


def normalize(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> Float[Array, "*batch_and_shape"]:
    """Returns (x - mean) / std, clipped to [-10, 10], for a batch `[*batch, *shape]`."""
    centred = batch.astype(jnp.float32) - statistics.mean
    return jnp.clip(centred / standard_deviation(statistics), -CLIP, CLIP)


def observe(
    statistics: RunningStatistics, observations: Num[Array, "..."], normalized: bool
) -> Float[Array, "..."]:
    """Returns observations as networks see them: float32, and standardised if `normalized`.

    If not, bytes, which pixels come as, become fractions of 255.
    """
    if normalized:
        return normalize(statistics, observations)
    seen = observations.astype(jnp.float32)
    return seen / 255 if observations.dtype == jnp.uint8 else seen
