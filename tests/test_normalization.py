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

jit_normalize, update = jax.jit(normalize), jax.jit(update_statistics)


@jax.jit
def merged(batches):
    """Returns the statistics after each of the batches was added."""
    start = init_statistics(batches[0].shape[1:])
    add = lambda statistics, batch: (update_statistics(statistics, batch), None)
    return jax.lax.scan(add, start, batches)[0]


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
    np.testing.assert_allclose(jax.jit(standard_deviation)(statistics), deviation, rtol=1e-5)
    standardized = (everything - mean) / deviation
    ours = jit_normalize(statistics, everything.astype(np.float32))
    np.testing.assert_allclose(ours, standardized, atol=1e-4)


def test_the_mean_follows_a_drift_that_is_smaller_than_its_last_digit():
    rng = np.random.default_rng(1)
    drift = np.linspace(0, 20, 4000)[:, None, None]
    batches = (1e6 + drift + rng.normal(size=(4000, 16, 1))).astype(np.float32)
    statistics = merged(batches)
    everything = batches.astype(np.float64)
    assert abs(whole_mean(statistics) - everything.mean()) < 1e-3
    deviation = jax.jit(standard_deviation)(statistics)
    np.testing.assert_allclose(deviation, everything.std(), rtol=1e-3)


@pytest.mark.parametrize("count", [2**24, 10**9, MOST - 3])
def test_samples_still_count_after_very_many_samples(count):
    """A float32 counter would stop at 16,777,216. The integer counter stops at MOST."""
    before = RunningStatistics(np.uint32(count), *np.array([0, 0, 1], np.float32))
    batch = np.array([3.0, 5.0], np.float32)
    after = update(before, batch)
    assert int(after.count) == count + 2
    share = 2 / (count + 2)
    assert abs(whole_mean(after) / (share * 4) - 1) < 1e-5
    later = update(after._replace(count=np.uint32(MOST)), batch)
    assert int(later.count) == MOST
    assert later.deviation < 1.01


def test_statistics_of_no_samples_do_not_change_observations():
    observations = np.array([[-3.0, 4.0]], np.float32)
    found = jax.jit(lambda x: normalize(init_statistics((2,)), x))(observations)
    np.testing.assert_allclose(found, observations)


def test_normalized_samples_are_standard_and_clipped():
    samples = np.random.default_rng(0).integers(0, 50, size=(200, 3), dtype=np.int32)
    statistics = merged(samples[None])
    result = jit_normalize(statistics, samples)
    assert result.dtype == jnp.float32
    result = np.asarray(result)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-4)
    far = np.full((1, 3), 10_000, np.int32)
    assert np.max(jit_normalize(statistics, far)) == 10


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e-20, 1e9, -1e30])
def test_a_constant_component_becomes_0_and_its_rounding_is_not_amplified(value):
    rng = np.random.default_rng(2)
    constant = np.full((5, 77, 1), value, np.float32)
    assert not np.any(np.asarray(jit_normalize(merged(constant), constant[0])))
    noisy = np.nextafter(constant, rng.choice([-1, 0, 1], constant.shape) * np.float32(3e38))
    seen = jit_normalize(merged(noisy), noisy[0])
    assert np.abs(seen).max() < 1e-6


@pytest.mark.parametrize("moved", [7.5, 8.0, 1e6, -1e12])
def test_a_component_that_changes_after_a_long_time_is_clipped(moved):
    long = RunningStatistics(np.uint32(10**8), *np.array([7, 0, 0], np.float32))
    batch = np.full(64, moved, np.float32)
    assert np.abs(jit_normalize(long, batch)).max() <= 10
    after = update(long, batch)
    assert np.abs(jit_normalize(after, batch)).max() <= 10
    assert np.abs(jit_normalize(after, np.full(64, 7.0, np.float32))).max() < 1e-2


@pytest.mark.usefixtures("x64")
def test_the_state_keeps_its_dtypes_if_float64_is_enabled():
    statistics = init_statistics((2,))
    after = update(statistics, np.ones((3, 2)))
    types = lambda tree: [x.dtype for x in tree]
    assert types(after) == types(statistics)
