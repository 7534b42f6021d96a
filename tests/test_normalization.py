import jax.numpy as jnp
import numpy as np

from trpo_jax.normalization import (
    init_statistics,
    normalize,
    standard_deviation,
    update_statistics,
)


def test_merged_batches_are_the_statistics_of_all_samples():
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(3, 40, 5, 2)) * [1, 100] + [1000, -3]).astype(np.float32)
    statistics = init_statistics((2,))
    for batch in samples:
        statistics = update_statistics(statistics, jnp.asarray(batch))
    everything = samples.reshape(-1, 2).astype(np.float64)
    assert statistics.count == 600
    np.testing.assert_allclose(statistics.mean, everything.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(standard_deviation(statistics), everything.std(axis=0), rtol=1e-3)


def test_no_samples_leave_observations_as_they_are():
    observations = jnp.array([[-3.0, 4.0]])
    np.testing.assert_allclose(normalize(init_statistics((2,)), observations), observations)


def test_normalized_samples_are_standard_and_clipped():
    samples = jnp.asarray(np.random.default_rng(0).integers(0, 50, size=(200, 3)))
    statistics = update_statistics(init_statistics((3,)), samples)
    result = normalize(statistics, samples)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-4)
    assert normalize(statistics, jnp.full((1, 3), 10_000)).max() == 10


def test_a_constant_component_stays_finite():
    statistics = update_statistics(init_statistics((1,)), jnp.full((8, 1), 7.0))
    np.testing.assert_allclose(normalize(statistics, jnp.full((2, 1), 7.0)), 0, atol=1e-3)
