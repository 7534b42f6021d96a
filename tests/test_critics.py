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
    return Sequences((), observations, jnp.zeros(observations.shape[:2], bool))


def test_a_fit_reaches_the_targets_of_a_linear_function():
    observations = jax.random.normal(jax.random.key(0), (16, 4, 3))
    targets = observations @ jnp.array([1.0, -2.0, 0.5]) + 0.3
    critic = init_critic({"w": jnp.zeros(3), "b": jnp.zeros(())})
    fitted, loss = fit_critic(
        jax.random.key(1),
        unrolled(linear),
        critic,
        sequences_of(observations),
        targets,
        learning_rate=0.05,
        epochs=100,
        minibatches=4,
    )
    assert loss < 1e-3
    np.testing.assert_allclose(fitted.params["w"], [1.0, -2.0, 0.5], atol=0.02)


def test_each_epoch_visits_every_sample_once_in_a_new_order():
    seen = []

    def spy(params, x):
        jax.debug.callback(lambda ids: seen.append(np.sort(ids.reshape(-1))), x[..., 0])
        return params["b"] + 0 * x[..., 0]

    observations = jnp.arange(12.0).reshape(3, 4, 1)
    fit_critic(
        jax.random.key(0),
        unrolled(spy),
        init_critic({"b": jnp.zeros(())}),
        sequences_of(observations),
        jnp.zeros((3, 4)),
        learning_rate=0.1,
        epochs=2,
        minibatches=3,
    )
    jax.effects_barrier()
    batches = sorted({tuple(ids) for ids in seen})
    assert sorted(np.concatenate([list(ids) for ids in batches]).tolist()) == sorted(
        2 * list(range(12))
    )
    assert len(batches) == 6  # two different orders


def test_a_fit_keeps_the_moments_of_adam_and_uses_the_given_learning_rate():
    critic = init_critic({"w": jnp.zeros(3), "b": jnp.zeros(())})
    observations, targets = jnp.ones((4, 2, 3)), jnp.ones((4, 2))

    def fit(critic, learning_rate):
        settings = {"learning_rate": learning_rate, "epochs": 1, "minibatches": 1}
        sequences = sequences_of(observations)
        key = jax.random.key(0)
        return fit_critic(key, unrolled(linear), critic, sequences, targets, **settings)[0]

    once = fit(critic, 0.01)
    np.testing.assert_allclose(
        once.params["w"], 0.01, rtol=1e-3
    )  # the first step of Adam is the learning rate
    twice = fit(once, 0.0)
    np.testing.assert_array_equal(twice.params["w"], once.params["w"])
    assert twice.optimizer[0].count == 2


def value_problem():
    """Returns (params -> values, params, targets), 13 parameters and 40 samples."""
    observations = jax.random.normal(jax.random.key(0), (40, 2))
    params = mlp_params(jax.random.key(1), (2, 3, 1))
    targets = jnp.sin(observations[:, 0]) + 3.0
    return lambda p: mlp(p, observations)[:, 0], params, targets


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("max_change", [1e3, 0.1, 1e-8])
def test_a_fit_in_a_trust_region_is_the_gauss_newton_step_cut_at_the_bound(max_change):
    values_of, params, targets = value_problem()
    settings = {"max_change": max_change, "damping": 1e-3, "cg_iters": 100}
    fitted, loss = trust_region_fit(values_of, init_critic(params), targets, **settings)
    flat, unravel = ravel_pytree(params)
    values = values_of(params)
    jacobian = jax.jacobian(lambda p: values_of(unravel(p)))(flat)
    errors = targets - values
    hessian = jacobian.T @ jacobian / 40 + 1e-3 * jnp.eye(flat.size)
    step = jnp.linalg.solve(hessian, jacobian.T @ errors / 40)
    change = step @ hessian @ step / 2
    bound = max_change * jnp.mean(errors**2)
    assert (change < bound) == (max_change == 1e3)
    taken = ravel_pytree(fitted.params)[0] - flat
    np.testing.assert_allclose(taken, step * min(1.0, jnp.sqrt(bound / change)), rtol=1e-6)
    np.testing.assert_allclose(loss, jnp.mean(errors**2))
    if max_change == 1e-8:  # so short that the values are nearly linear
        moved = jnp.mean((values_of(fitted.params) - values) ** 2)
        np.testing.assert_allclose(moved / (2 * loss), max_change, rtol=0.02)


@pytest.mark.usefixtures("x64")
def test_fits_in_a_trust_region_decrease_the_error_and_keep_the_optimizer_state():
    values_of, params, targets = value_problem()
    critic, losses = init_critic(params), []
    for _ in range(12):
        critic, loss = trust_region_fit(values_of, critic, targets, max_change=0.1)
        losses.append(float(loss))
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]
    assert optax.tree.get(critic.optimizer, "count") == 0


def test_a_fit_without_errors_changes_nothing():
    values_of, params, _ = value_problem()
    values = values_of(params)
    fitted, _ = trust_region_fit(values_of, init_critic(params), values, max_change=0.1)
    for old, new in zip(*map(jax.tree.leaves, (params, fitted.params)), strict=True):
        np.testing.assert_array_equal(old, new)


def linear_critic(num_features=3):
    """Returns a critic with a linear function that Adam fits."""
    init = lambda key: {"w": jax.random.normal(key, (num_features,)), "b": jnp.zeros(())}
    return adam_critic(Network(init, linear), learning_rate=0.05, epochs=3, minibatches=2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("critic", [linear_critic(), trust_region_critic(Network(None, linear))])
def test_a_normalized_critic_is_fitted_to_standardised_targets(critic):
    keys = jax.random.split(jax.random.key(0), 4)
    sequences = sequences_of(jax.random.normal(keys[0], (8, 4, 3)))
    own = linear_critic().init(keys[1])
    wrapped = normalized(critic)
    state = NormalizedState(own, init_statistics(()))
    np.testing.assert_array_equal(  # before there are any targets
        wrapped.values(state.params, sequences)[0], critic.values(own.params, sequences)[0]
    )
    seen = np.zeros((0, 4))
    for scale in (1.0, 50.0):
        targets = 300 + scale * jax.random.normal(keys[2], (8, 4))
        seen = np.concatenate([seen, targets])
        mean, deviation = seen.mean(), seen.std()
        own, own_loss = critic.fit(keys[3], own, sequences, (targets - mean) / deviation)
        state, loss = wrapped.fit(keys[3], state, sequences, targets)
        np.testing.assert_allclose(state.own.params["w"], own.params["w"], rtol=1e-4)
        np.testing.assert_allclose(loss, own_loss * deviation**2, rtol=1e-4)
        values = mean + deviation * critic.values(own.params, sequences)[0]
        np.testing.assert_allclose(wrapped.values(state.params, sequences)[0], values, rtol=1e-4)


def test_the_units_of_rewards_do_not_change_what_a_normalized_critic_learns():
    critic, keys = normalized(linear_critic()), jax.random.split(jax.random.key(0), 3)
    sequences = sequences_of(jax.random.normal(keys[0], (8, 4, 3)))
    targets = jax.random.normal(keys[1], (8, 4))
    fit = lambda targets: critic.fit(keys[2], critic.init(keys[2]), sequences, targets)
    (plain, loss), (scaled, scaled_loss) = fit(targets), fit(1000 * targets - 400)
    for a, b in zip(*map(jax.tree.leaves, (plain.own, scaled.own)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(scaled_loss, 1e6 * loss, rtol=1e-3)
    values = [critic.values(state.params, sequences)[0] for state in (plain, scaled)]
    np.testing.assert_allclose(values[1], 1000 * values[0] - 400, rtol=1e-3, atol=0.1)


def test_a_normalized_critic_learns_targets_that_are_all_the_same():
    critic = normalized(trust_region_critic(Network(None, linear), max_change=1.0))
    state = NormalizedState(init_critic({"w": jnp.ones(1), "b": jnp.ones(())}), init_statistics(()))
    sequences = sequences_of(jnp.zeros((4, 2, 1)))
    for _ in range(10):
        state, loss = critic.fit(jax.random.key(0), state, sequences, jnp.full((4, 2), -20.0))
    assert loss < 1e-3
    np.testing.assert_allclose(critic.values(state.params, sequences)[0], -20.0, atol=0.02)


def test_explained_variance():
    targets = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(explained_variance(targets, targets), 1)
    np.testing.assert_allclose(explained_variance(jnp.ones(3), targets), 0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(-targets, targets), -3, rtol=1e-5)
    np.testing.assert_allclose(explained_variance(targets, jnp.ones(3)), 0)
