import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from problems import policies

from trpo_jax import confidence
from trpo_jax.confidence import (
    covariance_product,
    directional_means,
    noise_gradient,
    output_gradient,
)
from trpo_jax.fisher import dense_fisher, gauss_newton_product, mean_fisher_product
from trpo_jax.trust_region import importance_sampled_surrogate

pytestmark = pytest.mark.usefixtures("x64")

NAMES = ("categorical", "product", "gaussian", "state_dependent_gaussian")

p_value = jax.jit(confidence.p_value)
squared_radius = jax.jit(confidence.squared_radius, static_argnums=(0, 1))


def problem(name):
    """Returns a policy at [2, 3] states, its surrogate, and the surrogate of an environment."""
    params, distribution_fn, actions = policies(0)[name]
    advantages = jax.device_put(np.random.default_rng(1).normal(size=(2, 3)))
    surrogate = importance_sampled_surrogate(actions, advantages, 0.1)

    def surrogate_of(env):
        own = jax.tree.map(lambda x: x[:, env], (actions, advantages))
        inner = importance_sampled_surrogate(*own, 0.1)
        return lambda new, old: inner(*jax.tree.map(lambda x: x[:, env], (new, old)))

    return params, distribution_fn, surrogate, surrogate_of


def explicit_gradients(params, distribution_fn, surrogate_of):
    """Returns the flat gradient from each environment alone."""
    old = distribution_fn(params)

    def gradient(env):
        return jax.grad(lambda p: surrogate_of(env)(distribution_fn(p), old))(params)

    return jax.vmap(lambda env: ravel_pytree(gradient(env))[0])(jnp.arange(3))


@pytest.mark.parametrize("name", NAMES)
def test_products_equal_explicit_gradients_and_the_projected_matrices(name):
    weight = 0.7

    params, distribution_fn, surrogate, surrogate_of = problem(name)
    # On an orthonormal basis of a subspace, one batch of tangents gives both matrices.
    size = sum(x.size for x in jax.tree.leaves(params))
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(size, 7))).Q

    @jax.jit
    def matrices(params, directions):
        old = distribution_fn(params)
        q = output_gradient(surrogate, old)

        def metric(distribution, tangent):
            return jax.tree.map(
                lambda f, s: f + weight * s,
                mean_fisher_product(distribution, tangent),
                covariance_product(q, tangent),
            )

        product = gauss_newton_product(distribution_fn, params, metric)
        flat, unravel = ravel_pytree(params)
        basis = jnp.eye(flat.size)
        matrix_free = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(basis)
        gradients = explicit_gradients(params, distribution_fn, surrogate_of)

        tangents = jax.vmap(
            lambda v: jax.jvp(distribution_fn, (params,), (unravel(v),))[1], in_axes=1
        )(directions)
        per_env = jax.vmap(lambda u: directional_means(q, u))(tangents)
        images = jax.vmap(lambda u: mean_fisher_product(old, u))(tangents)
        inner = lambda a, b: sum(
            jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
        fisher = jax.vmap(lambda u: jax.vmap(lambda image: inner(u, image))(images))(tangents)
        dense = dense_fisher(distribution_fn, params)
        return matrix_free, dense, gradients, fisher, per_env

    matrix_free, dense, gradients, fisher, per_env = map(np.asarray, matrices(params, directions))
    explicit = dense + weight * np.cov(gradients.T)
    np.testing.assert_allclose(matrix_free, explicit, rtol=1e-6, atol=1e-9)
    projected = fisher + weight * np.cov(per_env)
    np.testing.assert_allclose(
        projected, directions.T @ matrix_free @ directions, rtol=1e-6, atol=1e-9
    )


def test_the_output_gradient_gives_the_gradient_of_the_surrogate():
    params, distribution_fn, surrogate, _ = problem("gaussian")

    @jax.jit
    def gradients(params):
        old, pull_back = jax.vjp(distribution_fn, params)
        (gradient,) = pull_back(jax.tree.map(lambda x: x / 6, output_gradient(surrogate, old)))
        expected = jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)
        return ravel_pytree(gradient)[0], ravel_pytree(expected)[0]

    gradient, expected = gradients(params)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_noise_gradients_have_mean_zero_and_the_covariance_of_the_estimate():
    params, distribution_fn, surrogate, surrogate_of = problem("gaussian")

    @jax.jit
    def draws_and_gradients(params, key):
        old, pull_back = jax.vjp(distribution_fn, params)
        q = output_gradient(surrogate, old)

        def draw(key):
            return ravel_pytree(pull_back(noise_gradient(key, q)))[0]

        draws = jax.vmap(draw)(jax.random.split(key, 4000))
        return draws, explicit_gradients(params, distribution_fn, surrogate_of)

    draws, gradients = map(np.asarray, draws_and_gradients(params, jax.random.key(3)))
    covariance = np.cov(gradients.T) / 3
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.1 * np.sqrt(scale))
    np.testing.assert_allclose(draws.T @ draws / 4000, covariance, atol=0.1 * scale)


@functools.cache
def distances_of_means(dimension, num_samples):
    """Returns squared distances between 4000 sample means and the expectation."""
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(dimension, dimension)) + 2 * np.eye(dimension)
    noise = generator.normal(size=(4000, num_samples, dimension))
    errors = np.mean(noise, axis=1) @ factor.T  # covariance f f^T / n
    return np.sum(errors.T * np.linalg.solve(factor @ factor.T, errors.T), axis=0)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize(("dimension", "num_samples"), [(1, 8), (5, 20), (40, 200)])
def test_the_ellipsoid_contains_the_mean_as_often_as_chi_squared(dimension, num_samples, alpha):
    """The probability is at least 1 - alpha, but it is not 1."""
    radius = float(squared_radius(dimension, num_samples, alpha))
    coverage = np.mean(distances_of_means(dimension, num_samples) <= radius)
    exact = scipy.stats.chi2.cdf(num_samples * radius, dimension)
    assert 1 - alpha <= exact < 1 - 0.02 * alpha
    np.testing.assert_allclose(coverage, exact, atol=0.01)


def test_the_radius_falls_with_samples_and_grows_with_confidence():
    assert squared_radius(10, 100_000, 0.05) < 1e-3
    assert squared_radius(10, 10, 0.01) > squared_radius(10, 10, 0.1)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.4, 2.0])
def test_the_p_value_equals_that_of_student_s_t_test(shift):
    samples = np.random.default_rng(3).normal(size=6) + shift
    expected = scipy.stats.ttest_1samp(samples, 0, alternative="greater").pvalue
    np.testing.assert_allclose(p_value(samples), expected, rtol=1e-6)
    alpha = 0.1
    quantile = scipy.stats.t.ppf(1 - alpha, 5)
    bound = samples.mean() - quantile * samples.std(ddof=1) / np.sqrt(6)
    assert (p_value(samples) <= alpha) == (bound >= 0)


def test_equal_samples_have_a_p_value_of_0_or_1():
    assert p_value(np.full(4, 0.1)) == 0
    assert p_value(np.zeros(4)) == 1
