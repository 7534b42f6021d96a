"""Minibatches: the parts of a batch, visited in random order.

A batch `[T, B]` is shuffled within groups of neighbouring environments. The groups are as small as
possible for minibatches of equal size. Each minibatch takes the same number of samples from every
group. So it represents all environments, and a device that holds whole groups has its part of each
minibatch in its own memory. If a network has a memory, whole sequences of one environment are
shuffled instead of samples.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


class Minibatches:
    """A batch that is split into parts.

    Attributes:
        count: number of parts in each pass.

    Examples:
        >>> observations, targets = jnp.zeros((4, 6, 3)), jnp.zeros((4, 6))  # T = 4, B = 6
        >>> parts = Minibatches((observations, targets), 2)
        >>> indices = parts.shuffled(jax.random.key(0), epochs=10)
        >>> len(indices)
        20
        >>> jax.tree.map(jnp.shape, parts.take(indices[0]))
        ((2, 6, 3), (2, 6))
    """

    def __init__(self, batch: Any, count: int, whole_sequences: bool = False):
        """Groups the samples of a batch.

        Args:
            batch: a tree of arrays `[T, B, ...]`. Arrays may be `[1, B, ...]` if
                `whole_sequences` is true.
            count: number of parts in each pass. It must divide T * B.
            whole_sequences: whether a part consists of all steps of some environments. The number
                of parts is then the greatest common divisor of `count` and B.
        """
        self.whole_sequences = whole_sequences
        num_envs = jax.tree.leaves(batch)[0].shape[1]
        self.count = math.gcd(count, num_envs) if whole_sequences else count
        if whole_sequences:
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[None], batch)
        self.groups = group_samples(batch, self.count)

    def shuffled(self, key: PRNGKeyArray, epochs: int) -> Int[Array, "parts n G"]:
        """Returns the indices of the parts of several passes. Each pass has its own order."""
        return shuffled_minibatches(key, self.groups, epochs, self.count)

    def take(self, indices: Int[Array, "n G"]) -> Any:
        """Returns one part: samples `[n, G, ...]`, or whole sequences `[T, n * G, ...]`."""
        part = take_minibatch(self.groups, indices)
        if not self.whole_sequences:
            return part
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, *x.shape[2:]), 0, 1), part)


def group_size(num_steps: int, minibatches: int) -> int:
    """Returns the number of neighbouring environments in a group that gives M minibatches.

    The number divides the number B of environments if M divides T * B.

    Args:
        num_steps: T.
        minibatches: M.

    Examples:
        >>> group_size(num_steps=4, minibatches=8)  # 4 steps of 2 environments make 8 samples
        2
    """
    return minibatches // math.gcd(minibatches, num_steps)


def group_samples(batch: Any, minibatches: int) -> Any:
    """Returns a batch `[T, B, ...]` as groups `[L, G, ...]`: L samples of each of G groups.

    Args:
        batch: a tree of arrays.
        minibatches: number of minibatches in each pass. It must divide T * B.

    Examples:
        >>> group_samples(jnp.zeros((4, 6, 3)), minibatches=8).shape  # 3 groups of 2 environments
        (8, 3, 3)
    """

    def group(x):
        size = group_size(x.shape[0], minibatches)
        apart = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(apart, 2, 1).reshape(-1, *apart.shape[1:2], *x.shape[2:])

    return jax.tree.map(group, batch)


def shuffled_minibatches(
    key: PRNGKeyArray, groups: Any, epochs: int, minibatches: int
) -> Int[Array, "parts n G"]:
    """Returns the indices of the samples of each group that form each minibatch of E passes.

    It sorts random numbers that carry the indices in their last log2 L bits. This takes a CPU a
    seventh of the time of `jax.random.permutation`. If the random bits of two samples are equal,
    the samples keep their order. Which samples meet in a minibatch is still random.

    Args:
        key: consumed by the shuffle.
        groups: from `group_samples`, with leading axes `[L, G]`.
        epochs: E, the number of passes over all samples. Each pass has its own order.
        minibatches: M, the number of minibatches in each pass.

    Examples:
        >>> groups = group_samples(jnp.arange(24).reshape(4, 6), minibatches=8)
        >>> shuffled_minibatches(jax.random.key(0), groups, epochs=10, minibatches=8).shape
        (80, 1, 3)
    """
    length, num_groups = jax.tree.leaves(groups)[0].shape[:2]
    bits = (length - 1).bit_length()
    index = jnp.arange(length, dtype=jnp.uint32)
    random = jax.random.bits(key, (epochs, num_groups, length), jnp.uint32) >> bits << bits
    order = (jnp.sort(random | index) & (2**bits - 1)).astype(jnp.int32)
    parts = order.reshape(epochs, num_groups, minibatches, -1)
    return jnp.moveaxis(parts, 1, -1).reshape(epochs * minibatches, -1, num_groups)


def take_minibatch(groups: Any, indices: Int[Array, "n G"]) -> Any:
    """Returns the samples `[n, G, ...]` of one minibatch.

    Args:
        groups: from `group_samples`.
        indices: one row of `shuffled_minibatches`.

    Examples:
        >>> groups = group_samples(jnp.arange(4).reshape(2, 2), minibatches=2)
        >>> take_minibatch(groups, jnp.array([[1, 0]]))  # sample 1 of group 0, sample 0 of group 1
        Array([[2, 1]], dtype=int32)
    """
    of_group = jax.vmap(lambda x, i: x[i], in_axes=1, out_axes=1)
    return jax.tree.map(lambda x: of_group(x, indices), groups)
