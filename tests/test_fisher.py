import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import POLICIES, policies

from trpo_jax.fisher import dense_fisher, fisher_vector_product, gauss_newton_product

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", POLICIES)
def test_the_product_equals_the_dense_matrix_and_double_backpropagation(name):
    params, distribution_fn = policies(jax.random.key(0))[name]
    flat, unravel = ravel_pytree(params)
    vector = jax.random.normal(jax.random.key(1), flat.shape)
    product, _ = ravel_pytree(fisher_vector_product(distribution_fn, params)(unravel(vector)))

    np.testing.assert_allclose(product, dense_fisher(distribution_fn, params) @ vector, rtol=1e-6)

    old = distribution_fn(params)
    mean_kl = lambda x: jnp.mean(old.kl(distribution_fn(unravel(x))))
    double_backprop = jax.grad(lambda x: jax.grad(mean_kl)(x) @ vector)(flat)
    np.testing.assert_allclose(product, double_backprop, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_the_fisher_matrix_is_the_mean_outer_product_of_scores(name):
    params, distribution_fn = policies(jax.random.key(0))[name]
    flat, unravel = ravel_pytree(params)

    def score_outer_products(key):
        actions = distribution_fn(params).sample(key)
        scores = jax.jacrev(lambda x: distribution_fn(unravel(x)).log_prob(actions))(flat)
        scores = scores.reshape(-1, flat.size)
        return scores.T @ scores / len(scores)

    keys = jax.random.split(jax.random.key(2), 20_000)
    estimate = jax.lax.map(score_outer_products, keys, batch_size=500).mean(axis=0)
    dense = dense_fisher(distribution_fn, params)
    assert jnp.abs(estimate - dense).max() < 0.03 * jnp.abs(dense).max()


def test_dense_fisher_is_symmetric_and_positive_semidefinite():
    params, distribution_fn = policies(jax.random.key(3))["gaussian"]
    dense = dense_fisher(distribution_fn, params)
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    assert jnp.linalg.eigvalsh(dense).min() > -1e-12


def test_the_fisher_matrix_of_a_state_independent_log_std_is_twice_the_identity():
    params, distribution_fn = policies(jax.random.key(0))["gaussian"]
    vector = jax.tree.map(jnp.zeros_like, params) | {"log_std": jnp.array([1.0, -3.0])}
    product = fisher_vector_product(distribution_fn, params)(vector)
    np.testing.assert_allclose(product["log_std"], [2.0, -6.0], rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(product["mean"])[0], 0, atol=1e-12)


def test_state_weights_multiply_the_fisher_matrix_of_each_state():
    params, distribution_fn = policies(jax.random.key(0))["product"]
    weights = jnp.array([[0.0, 0.5, 1.0], [1.5, 3.0, 0.0]])  # their mean is 1
    at_state = lambda t, b: lambda p: jax.tree.map(lambda x: x[t, b][None], distribution_fn(p))
    dense = sum(
        weights[t, b] * dense_fisher(at_state(t, b), params) / 6 for t in range(2) for b in range(3)
    )
    flat, unravel = ravel_pytree(params)
    vector = jax.random.normal(jax.random.key(1), flat.shape)
    product = lambda w: ravel_pytree(
        fisher_vector_product(distribution_fn, params, w)(unravel(vector))
    )[0]
    np.testing.assert_allclose(product(weights), dense @ vector, rtol=1e-6)
    np.testing.assert_allclose(product(jnp.ones((2, 3))), product(None), rtol=1e-12)


def test_the_gauss_newton_product_equals_the_dense_product():
    """The function has two outputs. The metric mixes them and depends on them."""
    params = {"a": jnp.array([0.3, -1.2]), "b": jnp.array([[0.5], [2.0]])}
    fn = lambda p: (jnp.sin(p["a"]), p["b"][:, 0] ** 2 * p["a"][0])
    flat, unravel = ravel_pytree(params)
    outputs, unravel_outputs = ravel_pytree(fn(params))
    metric = jnp.outer(outputs, outputs) + jnp.diag(jnp.arange(1.0, 5.0))

    def output_metric(given, tangent):
        np.testing.assert_array_equal(ravel_pytree(given)[0], outputs)
        return unravel_outputs(metric @ ravel_pytree(tangent)[0])

    jacobian = jax.jacobian(lambda x: ravel_pytree(fn(unravel(x)))[0])(flat)
    vector = jnp.array([1.0, -2.0, 0.5, 3.0])
    product, _ = ravel_pytree(gauss_newton_product(fn, params, output_metric)(unravel(vector)))
    np.testing.assert_allclose(product, jacobian.T @ metric @ jacobian @ vector, rtol=1e-9)
