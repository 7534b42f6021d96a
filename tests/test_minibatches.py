import jax
import numpy as np
import pytest
import scipy.stats

from trpo_jax.minibatches import shuffled_minibatches


@pytest.mark.parametrize(("num_samples", "minibatches"), [(1, 1), (12, 3), (64, 4), (3000, 8)])
def test_every_sample_is_in_one_minibatch_of_each_pass(num_samples, minibatches):
    parts = shuffled_minibatches(jax.random.key(0), num_samples, 2, minibatches)
    assert parts.shape == (2 * minibatches, num_samples // minibatches)
    first, second = np.asarray(parts).reshape(2, -1)
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), np.arange(num_samples))
    assert num_samples == 1 or (first != second).any()


def test_all_orders_are_as_likely():
    keys = jax.random.split(jax.random.key(1), 24_000)
    orders = jax.jit(jax.vmap(lambda key: shuffled_minibatches(key, 4, 1, 1)[0]))(keys)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
