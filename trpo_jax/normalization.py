"""Running mean and deviation, for observations and for the scale of rewards.

All of it is float32, and so built that no size of numbers, and no number of samples, ends what it
can tell apart: deviations are kept instead of their squares, which overflow beyond 1e19 and vanish
below 1e-19; a mean has a second float32 for its rounding; the count is an integer.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt32

MOST = 2**32 - 1  # samples that are counted: from then on, later ones outweigh earlier ones
CLIP = 10.0  # deviations
CONSTANT = 4 * float(jnp.finfo(jnp.float32).eps)  # of a mean: what varies by less is rounding


class RunningStatistics(NamedTuple):
    """Count, mean and standard deviation of all samples seen so far.

    Attributes:
        count: number of samples, scalar.
        mean: mean of the samples, `[*shape]`.
        mean_rest: what rounding left out of the mean: their sum is the mean in twice the digits.
        deviation: standard deviation of the samples.
    """

    count: UInt32[Array, ""]
    mean: Float[Array, "*shape"]
    mean_rest: Float[Array, "*shape"]
    deviation: Float[Array, "*shape"]


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Returns statistics of no samples."""
    # Separate arrays: a program that uses its state up cannot be given one array twice.
    mean, rest, deviation = (jnp.zeros(shape, jnp.float32) for _ in range(3))
    return RunningStatistics(jnp.zeros((), jnp.uint32), mean, rest, deviation)


def update_statistics(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> RunningStatistics:
    """Returns the statistics with a batch `[*batch, *shape]` added.

    Merges the batch's own moments into the running ones (Chan, Golub and LeVeque 1979). The batch
    is seen from its first sample and in units of its largest distance from it, so that no square
    overflows, a constant has a deviation of exactly 0, and a mean that is large against the
    deviation costs no digits.
    """
    count, mean, rest, deviation = statistics
    axes = tuple(range(batch.ndim - mean.ndim))
    size = math.prod(batch.shape[: len(axes)])
    samples = batch.astype(jnp.float32)
    first = samples[(0,) * len(axes)]
    low, high = jnp.min(samples, axis=axes), jnp.max(samples, axis=axes)
    largest = jnp.maximum(high - first, first - low)
    unit = jnp.where(largest > 0, largest, 1.0)
    relative = (samples - first) / unit
    relative_mean = jnp.mean(relative, axis=axes)
    batch_deviation = unit * jnp.sqrt(jnp.mean((relative - relative_mean) ** 2, axis=axes))

    mean = jnp.where(count > 0, mean, first)
    new_count = count + jnp.minimum(jnp.uint32(size), jnp.uint32(MOST) - count)
    share = size / new_count.astype(jnp.float32)
    share = jnp.where(count > 0, share, 1.0)
    shift = (first - mean) - rest + unit * relative_mean
    moved = share * shift + rest
    new_mean = mean + moved
    return RunningStatistics(
        new_count,
        new_mean,
        moved - (new_mean - mean),
        _root_sum_square(
            jnp.sqrt(1 - share) * deviation,
            jnp.sqrt(share) * batch_deviation,
            jnp.sqrt(share * (1 - share)) * shift,
        ),
    )


def _root_sum_square(*parts: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns sqrt(sum of squares), where no square overflows or vanishes."""
    sizes = jnp.abs(jnp.stack(parts))
    largest = jnp.max(sizes, axis=0)
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(jnp.sum((sizes / unit) ** 2, axis=0))


def standard_deviation(statistics: RunningStatistics) -> Float[Array, "*shape"]:
    """Returns what to divide by: the standard deviation.

    Where all samples are the same but for the rounding of their mean there is none. The size of the
    mean takes its place, or 1 if that is larger: rounding is not to look like a signal, and what
    begins to move is seen in its own units until the next update.
    """
    size = jnp.abs(statistics.mean)
    varies = statistics.deviation > CONSTANT * size
    return jnp.where(varies, statistics.deviation, jnp.maximum(size, 1.0))


def normalize(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> Float[Array, "*batch_and_shape"]:
    """Returns (x - mean) / deviation, clipped to [-10, 10], for a batch `[*batch, *shape]`."""
    centred = batch.astype(jnp.float32) - statistics.mean - statistics.mean_rest
    return jnp.clip(centred / standard_deviation(statistics), -CLIP, CLIP)
