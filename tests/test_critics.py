import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems import mlp, mlp_params

from trpo_jax.critics import (
    NormalizedState,
    Sequences,
    adam_critic,
    explained_variance,
    fit_critic,
    init_critic,
    normalized,
    trust_region_critic,
    trust_region_fit,
)
from trpo_jax.networks import Network
from trpo_jax.normalization import init_statistics
from trpo_jax.recurrent import without_memory


def linear(params, x):
    return x @ params["w"] + params["b"]


def unrolled(apply):
    return without_memory(Network(None, apply)).unroll


def sequences_of(observations):
    """Returns observations `[T, B, ...]` as sequences for a critic without a memory."""
    return Sequences((), observations, np.zeros(observations.shape[:2], bool))


def linear_params(size):
    return {"w": np.zeros(size, np.float32), "b": np.zeros((), np.float32)}


def test_a_fit_reaches_the_targets_of_a_linear_function():
    observations = np.random.default_rng(0).normal(size=(16, 4, 3)).astype(np.float32)
    targets = observations @ np.array([1.0, -2.0, 0.5], np.float32) + np.float32(0.3)
    settings = {"learning_rate": 0.05, "epochs": 100, "minibatches": 4}

    @jax.jit
    def fit(key, params, sequences, targets):
        critic = init_critic(params)
        return fit_critic(key, unrolled(linear), critic, sequences, targets, **settings)

    sequences = sequences_of(observations)
    fitted, loss = fit(jax.random.key(1), linear_params(3), sequences, targets)
    assert loss < 1e-3
    np.testing.assert_allclose(fitted.params["w"], [1.0, -2.0, 0.5], atol=0.02)


def test_each_epoch_visits_every_sample_once_in_a_new_order():
    seen = []

    def spy(params, x):
        jax.debug.callback(lambda ids: seen.append(np.sort(ids.reshape(-1))), x[..., 0])
        return params["b"] + 0 * x[..., 0]

    @jax.jit
    def fit(key, sequences):
        critic, targets = init_critic({"b": jnp.zeros(())}), jnp.zeros((3, 4))
        settings = {"learning_rate": 0.1, "epochs": 2, "minibatches": 3}
        return fit_critic(key, unrolled(spy), critic, sequences, targets, **settings)

    fit(jax.random.key(0), sequences_of(np.arange(12, dtype=np.float32).reshape(3, 4, 1)))
    jax.effects_barrier()
    batches = sorted({tuple(ids) for ids in seen})
    assert sorted(np.concatenate([list(ids) for ids in batches]).tolist()) == sorted(
        2 * list(range(12))
    )
    assert len(batches) == 6  # two different orders


def test_a_fit_keeps_the_moments_of_adam_and_uses_the_given_learning_rate():
    observations = np.ones((4, 2, 3), np.float32)

    @jax.jit
    def fit(critic, learning_rate):
        settings = {"learning_rate": learning_rate, "epochs": 1, "minibatches": 1}
        sequences, targets, key = sequences_of(observations), jnp.ones((4, 2)), jax.random.key(0)
        return fit_critic(key, unrolled(linear), critic, sequences, targets, **settings)[0]

    once = fit(jax.jit(init_critic)(linear_params(3)), 0.01)
    np.testing.assert_allclose(
        once.params["w"], 0.01, rtol=1e-3
    )  # the first step of Adam is the learning rate
    twice = fit(once, 0.0)
    np.testing.assert_array_equal(twice.params["w"], once.params["w"])
    assert twice.optimizer[0].count == 2


def value_problem():
    """Returns (params -> values, params, targets), 13 parameters and 40 samples."""
    observations = jax.device_put(np.random.default_rng(0).normal(size=(40, 2)))
    targets = jax.device_put(np.sin(np.asarray(observations)[:, 0]) + 3.0)
    return lambda p: mlp(p, observations)[:, 0], mlp_params(1, (2, 3, 1)), targets


@functools.cache
def gauss_newton_fit():
    """Returns a problem and the program that fits its critic for any bound."""
    values_of, params, targets = value_problem()

    @jax.jit
    def results(params, targets, max_change):
        settings = {"max_change": max_change, "damping": 1e-3, "cg_iters": 100}
        fitted, loss = trust_region_fit(values_of, init_critic(params), targets, **settings)
        flat, unravel = ravel_pytree(params)
        jacobian = jax.jacobian(lambda p: values_of(unravel(p)))(flat)
        taken = ravel_pytree(fitted.params)[0] - flat
        return taken, loss, jacobian, values_of(params), values_of(fitted.params)

    return results, params, targets


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("max_change", [1e3, 0.1, 1e-8])
def test_a_fit_in_a_trust_region_is_the_gauss_newton_step_cut_at_the_bound(max_change):
    results, params, targets = gauss_newton_fit()
    found = results(params, targets, max_change)
    taken, loss, jacobian, values, new_values = map(np.asarray, found)
    errors = np.asarray(targets) - values
    hessian = jacobian.T @ jacobian / 40 + 1e-3 * np.eye(len(taken))
    step = np.linalg.solve(hessian, jacobian.T @ errors / 40)
    change = step @ hessian @ step / 2
    bound = max_change * np.mean(errors**2)
    assert (change < bound) == (max_change == 1e3)
    np.testing.assert_allclose(taken, step * min(1.0, np.sqrt(bound / change)), rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(errors**2))
    if max_change == 1e-8:  # so short that the values are nearly linear
        moved = np.mean((new_values - values) ** 2)
        np.testing.assert_allclose(moved / (2 * loss), max_change, rtol=0.02)


@pytest.mark.usefixtures("x64")
def test_fits_in_a_trust_region_decrease_the_error_and_keep_the_optimizer_state():
    values_of, params, targets = value_problem()
    fit = jax.jit(lambda critic: trust_region_fit(values_of, critic, targets, max_change=0.1))
    critic, losses = jax.jit(init_critic)(params), []
    for _ in range(12):
        critic, loss = fit(critic)
        losses.append(float(loss))
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]
    assert optax.tree.get(critic.optimizer, "count") == 0


def test_a_fit_without_errors_changes_nothing():
    values_of, params, _ = value_problem()

    @jax.jit
    def fit(params):
        values = values_of(params)
        return trust_region_fit(values_of, init_critic(params), values, max_change=0.1)

    fitted, _ = fit(params)
    for old, new in zip(*map(jax.tree.leaves, (params, fitted.params)), strict=True):
        np.testing.assert_array_equal(old, new)


def linear_critic(num_features=3):
    """Returns a critic with a linear function that Adam fits."""
    init = lambda key: {"w": jax.random.normal(key, (num_features,)), "b": jnp.zeros(())}
    return adam_critic(Network(init, linear), learning_rate=0.05, epochs=3, minibatches=2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("critic", [linear_critic(), trust_region_critic(Network(None, linear))])
def test_a_normalized_critic_is_fitted_to_standardised_targets(critic):
    rng = np.random.default_rng(0)
    key = jax.random.key(3)
    sequences = sequences_of(jax.device_put(rng.normal(size=(8, 4, 3))))
    wrapped = normalized(critic)
    values_of, fit = jax.jit(critic.values), jax.jit(critic.fit)
    wrapped_values, wrapped_fit = jax.jit(wrapped.values), jax.jit(wrapped.fit)
    own = jax.jit(linear_critic().init)(jax.random.key(1))
    state = NormalizedState(own, jax.jit(lambda: init_statistics(()))())
    np.testing.assert_array_equal(  # before there are any targets
        wrapped_values(state.params, sequences)[0], values_of(own.params, sequences)[0]
    )
    seen, noise = np.zeros((0, 4)), rng.normal(size=(8, 4))
    for scale in (1.0, 50.0):
        targets = 300 + scale * noise
        seen = np.concatenate([seen, targets])
        mean, deviation = seen.mean(), seen.std()
        own, own_loss = fit(key, own, sequences, (targets - mean) / deviation)
        state, loss = wrapped_fit(key, state, sequences, targets)
        np.testing.assert_allclose(state.own.params["w"], own.params["w"], rtol=1e-4)
        np.testing.assert_allclose(loss, np.asarray(own_loss) * deviation**2, rtol=1e-4)
        values = mean + deviation * np.asarray(values_of(own.params, sequences)[0])
        np.testing.assert_allclose(wrapped_values(state.params, sequences)[0], values, rtol=1e-4)


def test_the_units_of_rewards_do_not_change_what_a_normalized_critic_learns():
    critic, rng = normalized(linear_critic()), np.random.default_rng(0)
    sequences = sequences_of(rng.normal(size=(8, 4, 3)).astype(np.float32))
    targets = rng.normal(size=(8, 4)).astype(np.float32)

    @jax.jit
    def fit(key, sequences, targets):
        state, loss = critic.fit(key, critic.init(key), sequences, targets)
        return state, loss, critic.values(state.params, sequences)[0]

    key = jax.random.key(2)
    plain, loss, values = fit(key, sequences, targets)
    scaled, scaled_loss, scaled_values = fit(key, sequences, 1000 * targets - 400)
    for a, b in zip(*map(jax.tree.leaves, (plain.own, scaled.own)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(scaled_loss, 1e6 * np.asarray(loss), rtol=1e-3)
    expected = 1000 * np.asarray(values) - 400
    np.testing.assert_allclose(scaled_values, expected, rtol=1e-3, atol=0.1)


def test_a_normalized_critic_learns_targets_that_are_all_the_same():
    critic = normalized(trust_region_critic(Network(None, linear), max_change=1.0))
    params = {"w": np.ones(1, np.float32), "b": np.ones((), np.float32)}
    start = lambda params: NormalizedState(init_critic(params), init_statistics(()))
    state, fit = jax.jit(start)(params), jax.jit(critic.fit)
    sequences = sequences_of(np.zeros((4, 2, 1), np.float32))
    for _ in range(10):
        state, loss = fit(jax.random.key(0), state, sequences, np.full((4, 2), -20.0, np.float32))
    assert loss < 1e-3
    values, _ = jax.jit(critic.values)(state.params, sequences)
    np.testing.assert_allclose(values, -20.0, atol=0.02)


def test_explained_variance():
    explained = jax.jit(explained_variance)
    targets, ones = np.array([1.0, 2.0, 4.0], np.float32), np.ones(3, np.float32)
    np.testing.assert_allclose(explained(targets, targets), 1)
    np.testing.assert_allclose(explained(ones, targets), 0, atol=1e-6)
    np.testing.assert_allclose(explained(-targets, targets), -3, rtol=1e-5)
    np.testing.assert_allclose(explained(targets, ones), 0)
