import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems import mlp, mlp_params

from trpo_jax.critics import (
    Sequences,
    explained_variance,
    fit_critic,
    init_critic,
    trust_region_fit,
)
from trpo_jax.networks import Network
from trpo_jax.recurrent import without_memory


def linear(params, x):
    return x @ params["w"] + params["b"]


def unrolled(apply):
    return without_memory(Network(None, apply)).unroll


def sequences_of(observations):
    """Returns observations `[T, B, ...]` as a critic without a memory sees them."""
    return Sequences((), observations, jnp.zeros(observations.shape[:2], bool))


def test_fit_reaches_the_targets_of_a_linear_function():
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


def test_moments_survive_from_one_fit_to_the_next_and_the_rate_is_the_one_given():
    critic = init_critic({"w": jnp.zeros(3), "b": jnp.zeros(())})
    observations, targets = jnp.ones((4, 2, 3)), jnp.ones((4, 2))

    def fit(critic, learning_rate):
        settings = {"learning_rate": learning_rate, "epochs": 1, "minibatches": 1}
        sequences = sequences_of(observations)
        key = jax.random.key(0)
        return fit_critic(key, unrolled(linear), critic, sequences, targets, **settings)[0]

    once = fit(critic, 0.01)
    np.testing.assert_allclose(once.params["w"], 0.01, rtol=1e-3)  # Adam's first step is its rate
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
def test_a_fit_in_a_trust_region_is_the_gauss_newton_step_cut_at_its_edge(max_change):
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
    if max_change == 1e-8:  # so short that the values change as their gradients say
        moved = jnp.mean((values_of(fitted.params) - values) ** 2)
        np.testing.assert_allclose(moved / (2 * loss), max_change, rtol=0.02)


@pytest.mark.usefixtures("x64")
def test_fits_in_a_trust_region_decrease_the_error_and_leave_the_optimizer_alone():
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


def test_explained_variance():
    targets = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(explained_variance(targets, targets), 1)
    np.testing.assert_allclose(explained_variance(jnp.ones(3), targets), 0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(-targets, targets), -3, rtol=1e-5)
    np.testing.assert_allclose(explained_variance(targets, jnp.ones(3)), 0)
