"""Running mean and standard deviation, for observations and for the scale of rewards.

All numbers are float32. They stay accurate for samples of any size and for any number of samples:

- The standard deviation is stored instead of the variance. A variance overflows if deviations are
  above 1e19, and becomes 0 if they are below 1e-19.
- A second float32 holds the rounding error of the mean.
- The count is an integer.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt32

MOST = 2**32 - 1  # the largest count; later samples then have more weight than earlier ones
CLIP = 10.0  # in standard deviations
CONSTANT = 4 * float(jnp.finfo(jnp.float32).eps)  # of the mean; a smaller deviation is rounding


class RunningStatistics(NamedTuple):
    """Count, mean and standard deviation of all samples so far.

    Attributes:
        count: number of samples, scalar.
        mean: mean of the samples, `[*shape]`.
        mean_rest: the rounding error of `mean`. `mean + mean_rest` is the mean with twice as many
            digits.
        deviation: standard deviation of the samples.
    """

    count: UInt32[Array, ""]
    mean: Float[Array, "*shape"]
    mean_rest: Float[Array, "*shape"]
    deviation: Float[Array, "*shape"]


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Returns the statistics of no samples.

    Args:
        shape: shape of one sample.

    Examples:
        >>> statistics = init_statistics((3,))  # of observations [3]
        >>> statistics.count
        Array(0, dtype=uint32)
    """
    # Separate arrays, because a program that donates its state cannot receive one array twice.
    mean, rest, deviation = (jnp.zeros(shape, jnp.float32) for _ in range(3))
    return RunningStatistics(jnp.zeros((), jnp.uint32), mean, rest, deviation)


def update_statistics(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> RunningStatistics:
    """Returns the statistics after a batch `[*batch, *shape]` was added.

    The mean and deviation of the batch are merged into the running ones (Chan, Golub and LeVeque
    1979). The samples of the batch are first expressed as distances from the first sample, in units
    of the largest distance. So no square overflows, and a constant has a deviation of exactly 0. A
    mean that is large compared with the deviation costs no digits.

    Args:
        statistics: the statistics so far.
        batch: the samples.

    Examples:
        >>> statistics = update_statistics(init_statistics(()), jnp.array([1.0, 3.0]))
        >>> print(statistics.count, statistics.mean, statistics.deviation)
        2 2.0 1.0
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
    """Returns sqrt(sum of squares), without overflow or underflow of a square."""
    sizes = jnp.abs(jnp.stack(parts))
    largest = jnp.max(sizes, axis=0)
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(jnp.sum((sizes / unit) ** 2, axis=0))


def standard_deviation(statistics: RunningStatistics) -> Float[Array, "*shape"]:
    """Returns the standard deviation, or a replacement for it if the samples are constant.

    Samples count as constant if they vary only by rounding errors of their mean. The replacement is
    the absolute value of the mean, or 1 if the mean is smaller. So rounding errors do not look like
    a signal.

    Examples:
        >>> constant = update_statistics(init_statistics(()), jnp.array([5.0, 5.0]))
        >>> print(standard_deviation(constant))
        5.0
    """
    size = jnp.abs(statistics.mean)
    varies = statistics.deviation > CONSTANT * size
    return jnp.where(varies, statistics.deviation, jnp.maximum(size, 1.0))


def normalize(
    statistics: RunningStatistics, batch: Num[Array, "*batch_and_shape"]
) -> Float[Array, "*batch_and_shape"]:
    """Returns (x - mean) / deviation, clipped to [-10, 10], for a batch `[*batch, *shape]`.

    Examples:
        >>> statistics = update_statistics(init_statistics(()), jnp.array([1.0, 3.0]))
        >>> normalize(statistics, jnp.array([2.0, 3.0, 100.0]))
        Array([ 0.,  1., 10.], dtype=float32)
    """
    centred = batch.astype(jnp.float32) - statistics.mean - statistics.mean_rest
    return jnp.clip(centred / standard_deviation(statistics), -CLIP, CLIP)
