import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import POLICIES, policies

from trpo_jax.fisher import dense_fisher, fisher_vector_product

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", POLICIES)
def test_product_is_the_dense_fisher_and_double_backpropagation(name):
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
def test_fisher_is_the_mean_outer_product_of_scores(name):
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


def test_state_independent_log_std_has_fisher_two():
    params, distribution_fn = policies(jax.random.key(0))["gaussian"]
    vector = jax.tree.map(jnp.zeros_like, params) | {"log_std": jnp.array([1.0, -3.0])}
    product = fisher_vector_product(distribution_fn, params)(vector)
    np.testing.assert_allclose(product["log_std"], [2.0, -6.0], rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(product["mean"])[0], 0, atol=1e-12)
