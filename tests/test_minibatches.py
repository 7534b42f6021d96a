import jax
import numpy as np
import pytest
import scipy.stats

from trpo_jax.minibatches import shuffled_minibatches


@pytest.mark.parametrize(("num_samples", "minibatches"), [(1, 1), (12, 3), (64, 4), (3000, 8)])
def test_every_sample_is_in_one_minibatch(num_samples, minibatches):
    parts = shuffled_minibatches(jax.random.key(0), num_samples, minibatches)
    assert parts.shape == (minibatches, num_samples // minibatches)
    np.testing.assert_array_equal(np.sort(np.ravel(parts)), np.arange(num_samples))


def test_all_orders_are_as_likely():
    keys = jax.random.split(jax.random.key(1), 24_000)
    orders = jax.jit(jax.vmap(lambda key: shuffled_minibatches(key, 4, 1)[0]))(keys)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
