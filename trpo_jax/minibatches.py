"""Minibatches: a batch visited in random order, part by part.

A batch `[T, B]` is shuffled within groups of neighbouring environments, the smallest that equal
parts allow, and each minibatch takes as many samples from every group. So it is a fair sample of
all environments, and a device that holds whole groups finds its share of each minibatch at hand.
Where a network has a memory, what is shuffled are whole sequences, one of each environment.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


class Minibatches:
    """A batch in parts.

    Attributes:
        count: number of parts of each pass.

    Example:
        >>> parts = Minibatches((observations, targets), 16)
        >>> observations, targets = parts.take(parts.shuffled(key, epochs=10)[0])
    """

    def __init__(self, batch: Any, count: int, whole_sequences: bool = False):
        """Groups the samples of a batch.

        Args:
            batch: a tree of arrays `[T, B, ...]`, or `[1, B, ...]` with whole sequences.
            count: parts of each pass, which must divide T * B.
            whole_sequences: whether a part has all steps of some environments; their number is
                then the greatest common divisor of `count` and B.
        """
        self.whole_sequences = whole_sequences
        num_envs = jax.tree.leaves(batch)[0].shape[1]
        self.count = math.gcd(count, num_envs) if whole_sequences else count
        if whole_sequences:
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[None], batch)
        self.groups = group_samples(batch, self.count)

    def shuffled(self, key: PRNGKeyArray, epochs: int) -> Int[Array, "parts n G"]:
        """Returns indices of the parts of several passes, each in an order of its own."""
        return shuffled_minibatches(key, self.groups, epochs, self.count)

    def take(self, indices: Int[Array, "n G"]) -> Any:
        """Returns a part: samples `[n, G, ...]`, or whole sequences `[T, n * G, ...]`."""
        part = take_minibatch(self.groups, indices)
        if not self.whole_sequences:
            return part
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, *x.shape[2:]), 0, 1), part)


def group_size(num_steps: int, minibatches: int) -> int:
    """Returns how many neighbouring environments are shuffled together, to give M equal parts.

    It divides the number B of environments wherever M divides T * B.

    Args:
        num_steps: T.
        minibatches: M.
    """
    return minibatches // math.gcd(minibatches, num_steps)


def group_samples(batch: Any, minibatches: int) -> Any:
    """Returns a batch `[T, B, ...]` by groups: `[L, G, ...]`, L samples of each of G groups.

    Args:
        batch: a tree of arrays.
        minibatches: parts of each pass, which must divide T * B.
    """

    def group(x):
        size = group_size(x.shape[0], minibatches)
        apart = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(apart, 2, 1).reshape(-1, *apart.shape[1:2], *x.shape[2:])

    return jax.tree.map(group, batch)


def shuffled_minibatches(
    key: PRNGKeyArray, groups: Any, epochs: int, minibatches: int
) -> Int[Array, "parts n G"]:
    """Returns which samples of each group are in each minibatch of E passes.

    Sorts random numbers that carry the indices in their last log2 L bits, which takes a CPU a
    seventh of the time of `jax.random.permutation`. Where the bits that are left of 32 agree, the
    samples keep their order; which of them meet in a minibatch stays as random.

    Args:
        key: consumed to shuffle.
        groups: from `group_samples`, leading axes `[L, G]`.
        epochs: E, passes over all samples, each in an order of its own.
        minibatches: M, parts of each pass.
    """
    length, num_groups = jax.tree.leaves(groups)[0].shape[:2]
    bits = (length - 1).bit_length()
    index = jnp.arange(length, dtype=jnp.uint32)
    random = jax.random.bits(key, (epochs, num_groups, length), jnp.uint32) >> bits << bits
    order = (jnp.sort(random | index) & (2**bits - 1)).astype(jnp.int32)
    parts = order.reshape(epochs, num_groups, minibatches, -1)
    return jnp.moveaxis(parts, 1, -1).reshape(epochs * minibatches, -1, num_groups)


def take_minibatch(groups: Any, indices: Int[Array, "n G"]) -> Any:
    """Returns the samples `[n, G, ...]` of a minibatch.

    Args:
        groups: from `group_samples`.
        indices: one of `shuffled_minibatches`.
    """
    of_group = jax.vmap(lambda x, i: x[i], in_axes=1, out_axes=1)
    return jax.tree.map(lambda x: of_group(x, indices), groups)
