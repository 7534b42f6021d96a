import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from trpo_jax.minibatches import (
    Minibatches,
    group_samples,
    group_size,
    shuffled_minibatches,
    take_minibatch,
)

SHAPES = [(1, 1, 1), (12, 1, 3), (4, 6, 8), (5, 8, 20), (3, 4, 12), (64, 3, 4)]


def minibatches_of(key, shape, epochs, minibatches):
    """Returns the samples `[epochs, minibatches, n]` of a batch whose samples are numbered."""

    @jax.jit
    def taken(key, batch):
        groups = group_samples(batch, minibatches)
        parts = shuffled_minibatches(key, groups, epochs, minibatches)
        return jax.vmap(lambda indices: take_minibatch(groups, indices))(parts)

    batch = np.arange(np.prod(shape)).reshape(shape)
    return np.asarray(taken(key, batch)).reshape(epochs, minibatches, -1)


@pytest.mark.parametrize(("num_steps", "num_envs", "minibatches"), SHAPES)
def test_every_sample_is_in_one_minibatch_of_each_pass(num_steps, num_envs, minibatches):
    shape = (num_steps, num_envs)
    first, second = minibatches_of(jax.random.key(0), shape, 2, minibatches)
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order, axis=None), np.arange(np.prod(shape)))
    assert np.prod(shape) == 1 or (first != second).any()


@pytest.mark.parametrize(("num_steps", "num_envs", "minibatches"), SHAPES)
def test_every_minibatch_has_equally_many_samples_of_each_group(num_steps, num_envs, minibatches):
    size = group_size(num_steps, minibatches)
    assert num_envs % size == 0
    (parts,) = minibatches_of(jax.random.key(1), (num_steps, num_envs), 1, minibatches)
    for part in parts:
        groups, counts = np.unique(part % num_envs // size, return_counts=True)
        np.testing.assert_array_equal(groups, np.arange(num_envs // size))
        assert len(set(counts)) == 1


def test_groups_hold_whole_environments_and_their_rows_stay_together():
    batch = {"a": np.arange(24).reshape(4, 6), "b": np.arange(48).reshape(4, 6, 2)}
    # Two environments each, because 8 does not divide 4.
    groups = jax.tree.map(np.asarray, jax.jit(lambda batch: group_samples(batch, 8))(batch))
    assert (groups["a"].shape, groups["b"].shape) == ((8, 3), (8, 3, 2))
    np.testing.assert_array_equal(groups["b"], 2 * groups["a"][..., None] + np.arange(2))
    for group in range(3):
        envs = {2 * group, 2 * group + 1}
        assert set(groups["a"][:, group] % 6) == envs


def test_all_orders_are_equally_likely():
    @jax.jit
    def orders_of(key):
        groups = group_samples(jnp.arange(4).reshape(2, 2), 4)
        keys = jax.random.split(key, 24_000)
        return jax.vmap(lambda key: shuffled_minibatches(key, groups, 1, 4))(keys)

    orders = np.asarray(orders_of(jax.random.key(1)))
    _, counts = np.unique(orders.reshape(-1, 4), axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("num_envs", "asked", "count"), [(6, 3, 3), (6, 6, 6), (6, 4, 2), (5, 3, 1), (8, 16, 8)]
)
def test_each_whole_sequence_is_in_one_part_of_each_pass(num_envs, asked, count):
    step, env = np.indices((4, num_envs), dtype=np.int32)
    batch = {"step": step, "env": np.stack([env, env], axis=-1), "carry": env[:1]}

    @jax.jit
    def parts_of(key, batch):
        parts = Minibatches(batch, asked, whole_sequences=True)
        assert parts.count == count
        orders = parts.shuffled(key, 3)
        return orders, [parts.take(indices) for indices in orders]

    orders, taken = jax.tree.map(np.asarray, parts_of(jax.random.key(0), batch))
    assert len(orders) == 3 * count
    envs = []
    for part in taken:
        size = num_envs // count
        assert part["env"].shape == (4, size, 2)
        assert part["carry"].shape == (1, size)
        np.testing.assert_array_equal(part["step"], step[:, :size])  # in the order of time
        np.testing.assert_array_equal(part["env"], part["env"][:1].repeat(4, axis=0))
        np.testing.assert_array_equal(part["env"][0, :, 0], part["carry"][0])
        envs.append(part["carry"][0].tolist())
    passes = np.reshape(envs, (3, num_envs))
    np.testing.assert_array_equal(np.sort(passes), np.broadcast_to(range(num_envs), (3, num_envs)))
    if num_envs > 5:
        assert len({tuple(order) for order in passes.tolist()}) > 1


def test_without_whole_sequences_a_part_consists_of_samples():
    @jax.jit
    def results(key, batch):
        parts = Minibatches(batch, 8)
        groups = group_samples(batch, 8)
        orders = parts.shuffled(key, 2)
        expected = shuffled_minibatches(key, groups, 2, 8)
        return orders, expected, parts.take(orders[3]), take_minibatch(groups, orders[3])

    batch = np.arange(24).reshape(4, 6)
    orders, expected, part, expected_part = results(jax.random.key(1), batch)
    np.testing.assert_array_equal(orders, expected)
    np.testing.assert_array_equal(part, expected_part)
