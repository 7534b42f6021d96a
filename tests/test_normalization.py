import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.normalization import (
    MOST,
    RunningStatistics,
    init_statistics,
    normalize,
    standard_deviation,
    update_statistics,
)


def merged(batches):
    statistics = init_statistics(batches[0].shape[1:])
    for batch in batches:
        statistics = update_statistics(statistics, jnp.asarray(batch))
    return statistics


def whole_mean(statistics):
    return np.float64(statistics.mean) + np.float64(statistics.mean_rest)


# (offset, scale) of the samples of each component
COMPONENTS = {
    "usual": (1.0, 1.0),
    "a large offset": (1e6, 1.0),
    "a larger offset": (-3e7, 100.0),
    "tiny": (0.0, 1e-8),
    "tiny on an offset": (1e-3, 1e-7),
    "nearly nothing": (0.0, 1e-30),
    "huge": (0.0, 1e30),
    "huge offset": (1e30, 1e27),
}


def test_merged_batches_give_the_statistics_of_all_samples():
    """Some squares would overflow or underflow. The expected values are computed in float64."""
    offsets, scales = np.array(list(COMPONENTS.values())).T
    rng = np.random.default_rng(0)
    batches = (rng.normal(size=(7, 300, len(offsets))) * scales + offsets).astype(np.float32)
    statistics = merged(batches)
    everything = batches.reshape(-1, len(offsets)).astype(np.float64)
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    assert statistics.count == 2100
    assert np.max(np.abs(whole_mean(statistics) - mean) / deviation) < 1e-5
    np.testing.assert_allclose(standard_deviation(statistics), deviation, rtol=1e-5)
    standardized = (everything - mean) / deviation
    ours = normalize(statistics, jnp.asarray(everything, jnp.float32))
    np.testing.assert_allclose(ours, standardized, atol=1e-4)


def test_the_mean_follows_a_drift_that_is_smaller_than_its_last_digit():
    rng = np.random.default_rng(1)
    drift = np.linspace(0, 20, 4000)[:, None, None]
    batches = (1e6 + drift + rng.normal(size=(4000, 16, 1))).astype(np.float32)
    update = lambda statistics, batch: (update_statistics(statistics, batch), None)
    statistics, _ = jax.lax.scan(update, init_statistics((1,)), jnp.asarray(batches))
    everything = batches.astype(np.float64)
    assert abs(whole_mean(statistics) - everything.mean()) < 1e-3
    np.testing.assert_allclose(standard_deviation(statistics), everything.std(), rtol=1e-3)


@pytest.mark.parametrize("count", [2**24, 10**9, MOST - 3])
def test_samples_still_count_after_very_many_samples(count):
    """A float32 counter would stop at 16,777,216. The integer counter stops at MOST."""
    before = RunningStatistics(*map(jnp.asarray, (np.uint32(count), 0.0, 0.0, 1.0)))
    batch = np.array([3.0, 5.0])
    after = update_statistics(before, jnp.asarray(batch))
    assert int(after.count) == count + 2
    share = 2 / (count + 2)
    assert abs(whole_mean(after) / (share * 4) - 1) < 1e-5
    later = update_statistics(after._replace(count=jnp.uint32(MOST)), jnp.asarray(batch))
    assert int(later.count) == MOST
    assert later.deviation < 1.01


def test_statistics_of_no_samples_do_not_change_observations():
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


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e-20, 1e9, -1e30])
def test_a_constant_component_becomes_0_and_its_rounding_is_not_amplified(value):
    rng = np.random.default_rng(2)
    constant = np.full((5, 77, 1), value, np.float32)
    assert not normalize(merged(constant), jnp.asarray(constant[0])).any()
    noisy = np.nextafter(constant, rng.choice([-1, 0, 1], constant.shape) * np.float32(3e38))
    seen = normalize(merged(noisy), jnp.asarray(noisy[0]))
    assert np.abs(seen).max() < 1e-6


@pytest.mark.parametrize("moved", [7.5, 8.0, 1e6, -1e12])
def test_a_component_that_changes_after_a_long_time_is_clipped(moved):
    long = RunningStatistics(*map(jnp.asarray, (np.uint32(10**8), 7.0, 0.0, 0.0)))
    batch = jnp.full(64, moved)
    assert np.abs(normalize(long, batch)).max() <= 10
    after = update_statistics(long, batch)
    assert np.abs(normalize(after, batch)).max() <= 10
    assert np.abs(normalize(after, jnp.full(64, 7.0))).max() < 1e-2


@pytest.mark.usefixtures("x64")
def test_the_state_keeps_its_dtypes_if_float64_is_enabled():
    statistics = init_statistics((2,))
    after = update_statistics(statistics, jnp.ones((3, 2), jnp.float64))
    types = lambda tree: [x.dtype for x in tree]
    assert types(after) == types(statistics)
