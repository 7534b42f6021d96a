import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import POLICIES, policies

from trpo_jax.fisher import dense_fisher, fisher_vector_product, gauss_newton_product

pytestmark = pytest.mark.usefixtures("x64")


def random_vector(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), params)


@pytest.mark.parametrize("name", POLICIES)
def test_the_product_equals_the_dense_matrix_and_double_backpropagation(name):
    params, distribution_fn, _ = policies(0)[name]

    @jax.jit
    def products(params, vector):
        product, _ = ravel_pytree(fisher_vector_product(distribution_fn, params)(vector))
        flat, unravel = ravel_pytree(params)
        vector, _ = ravel_pytree(vector)

        old = distribution_fn(params)
        mean_kl = lambda x: jnp.mean(old.kl(distribution_fn(unravel(x))))
        double_backprop = jax.grad(lambda x: jax.grad(mean_kl)(x) @ vector)(flat)
        return product, dense_fisher(distribution_fn, params) @ vector, double_backprop

    product, dense, double_backprop = products(params, random_vector(params))
    np.testing.assert_allclose(product, dense, rtol=1e-6)
    np.testing.assert_allclose(product, double_backprop, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_the_fisher_matrix_is_the_mean_outer_product_of_scores(name):
    params, distribution_fn, _ = policies(0)[name]

    @jax.jit
    def matrices(params, sample_key):
        flat, unravel = ravel_pytree(params)

        def score_outer_products(key):
            actions = distribution_fn(params).sample(key)
            scores = jax.jacrev(lambda x: distribution_fn(unravel(x)).log_prob(actions))(flat)
            scores = scores.reshape(-1, flat.size)
            return scores.T @ scores / len(scores)

        keys = jax.random.split(sample_key, 20_000)
        estimate = jax.lax.map(score_outer_products, keys, batch_size=500).mean(axis=0)
        return estimate, dense_fisher(distribution_fn, params)

    estimate, dense = map(np.asarray, matrices(params, jax.random.key(2)))
    assert np.abs(estimate - dense).max() < 0.03 * np.abs(dense).max()


def test_dense_fisher_is_symmetric_and_positive_semidefinite():
    params, distribution_fn, _ = policies(3)["gaussian"]
    dense = np.asarray(jax.jit(lambda params: dense_fisher(distribution_fn, params))(params))
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    assert np.linalg.eigvalsh(dense).min() > -1e-12


def test_the_fisher_matrix_of_a_state_independent_log_std_is_twice_the_identity():
    params, distribution_fn, _ = policies(0)["gaussian"]

    @jax.jit
    def product_with(params, log_std):
        vector = jax.tree.map(jnp.zeros_like, params) | {"log_std": log_std}
        return fisher_vector_product(distribution_fn, params)(vector)

    product = product_with(params, np.array([1.0, -3.0]))
    np.testing.assert_allclose(product["log_std"], [2.0, -6.0], rtol=1e-12)
    for x in jax.tree.leaves(product["mean"]):
        np.testing.assert_allclose(x, 0, atol=1e-12)


def test_state_weights_multiply_the_fisher_matrix_of_each_state():
    params, distribution_fn, _ = policies(0)["product"]

    @jax.jit
    def products(params, weights, vector):

        @jax.vmap
        def dense_at_state(t, b):
            at_state = lambda p: jax.tree.map(lambda x: x[t, b][None], distribution_fn(p))
            return dense_fisher(at_state, params)

        dense = dense_at_state(*np.indices((2, 3)).reshape(2, 6))
        product = lambda w: ravel_pytree(fisher_vector_product(distribution_fn, params, w)(vector))[
            0
        ]
        return (
            dense @ ravel_pytree(vector)[0],
            product(weights),
            product(jnp.ones((2, 3))),
            product(None),
        )

    weights = np.array([[0.0, 0.5, 1.0], [1.5, 3.0, 0.0]])  # their mean is 1
    results = products(params, weights, random_vector(params))
    of_states, weighted, with_ones, unweighted = results
    expected = weights.ravel() @ np.asarray(of_states) / 6
    np.testing.assert_allclose(weighted, expected, rtol=1e-6)
    np.testing.assert_allclose(with_ones, unweighted, rtol=1e-12)


def test_the_gauss_newton_product_equals_the_dense_product():
    """The function has two outputs. The metric mixes them and depends on them."""
    fn = lambda p: (jnp.sin(p["a"]), p["b"][:, 0] ** 2 * p["a"][0])

    @jax.jit
    def products(params, vector):
        flat, unravel = ravel_pytree(params)
        outputs, unravel_outputs = ravel_pytree(fn(params))
        metric, seen = jnp.outer(outputs, outputs) + jnp.diag(jnp.arange(1.0, 5.0)), []

        def output_metric(given, tangent):
            seen.append(ravel_pytree(given)[0])
            return unravel_outputs(metric @ ravel_pytree(tangent)[0])

        jacobian = jax.jacobian(lambda x: ravel_pytree(fn(unravel(x)))[0])(flat)
        product, _ = ravel_pytree(gauss_newton_product(fn, params, output_metric)(unravel(vector)))
        return product, jacobian.T @ metric @ jacobian @ vector, outputs, seen

    params = {"a": np.array([0.3, -1.2]), "b": np.array([[0.5], [2.0]])}
    product, dense, outputs, seen = products(params, np.array([1.0, -2.0, 0.5, 3.0]))
    assert seen
    for given in seen:
        np.testing.assert_array_equal(given, outputs)
    np.testing.assert_allclose(product, dense, rtol=1e-9)
