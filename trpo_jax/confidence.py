"""Confidence in a gradient estimate, from the spread between independent environments.

Steps of one episode depend on each other, environments do not: the sums over one environment are
the samples, E of them. Their covariance Sigma says how far the estimate can be trusted; under a
normal assumption the true gradient lies with probability 1 - alpha in the ellipsoid
(g - g_hat)^T Sigma^-1 (g - g_hat) <= R^2 (Queeney, Paschalidis and Cassandras 2021,
arXiv:2012.10791).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trpo_jax.distributions import Distribution
from trpo_jax.trust_region import Surrogate


def squared_radius(
    dimension: int, num_samples: int, alpha: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Returns R^2 = (d + 2 sqrt(d ln(1/alpha)) + 2 ln(1/alpha)) / n, the sub-Gaussian bound.

    The mean of n samples in d dimensions lies with probability at least 1 - alpha within R of their
    expectation, in units of the covariance of one sample. The bound is safe: for Gaussian samples
    its coverage is that of the chi-squared law at n R^2 (Laurent and Massart 2000, lemma 1).
    """
    tail = -jnp.log(alpha)
    return (dimension + 2 * jnp.sqrt(dimension * tail) + 2 * tail) / num_samples


def output_gradient(surrogate: Surrogate, old: Distribution) -> Distribution:
    """Returns q_n = N dL/d(distribution parameters of state n) at the old policy.

    The gradient of L is the mean of J_n^T q_n over the N states.
    """
    num_states = jax.eval_shape(lambda d: d.entropy(), old).size
    gradient = jax.grad(lambda new: surrogate(new, old))(old)
    return jax.tree.map(lambda x: x * num_states, gradient)


def directional_means(output_gradients: Distribution, tangent: Distribution) -> Float[Array, " E"]:
    """Returns c_e . v for each environment's own gradient c_e, given J v of all states `[T, E]`."""
    products = jax.tree.map(
        lambda q, u: jnp.sum(q * u, axis=tuple(range(2, q.ndim))), output_gradients, tangent
    )
    return jnp.mean(sum(jax.tree.leaves(products)), axis=0)


def covariance_product(output_gradients: Distribution, tangent: Distribution) -> Distribution:
    """Returns what J^T maps to Sigma v, given J v of all states `[T, E]`.

    Sigma = sum_e (c_e - g)(c_e - g)^T / (E - 1), with c_e the gradient from environment e alone and
    g their mean. The product needs the same two passes through the network as a Fisher product.
    """
    means = directional_means(output_gradients, tangent)
    weights = (means - jnp.mean(means)) / (len(means) - 1)
    return _combine(output_gradients, weights)


def noise_gradient(key: PRNGKeyArray, output_gradients: Distribution) -> Distribution:
    """Returns what J^T maps to a random gradient with the covariance of the estimate, Sigma / E.

    Deviations of the environments from their mean, with random signs: as large as the estimate's
    error, and without any signal.
    """
    leaf = jax.tree.leaves(output_gradients)[0]
    num_envs = leaf.shape[1]
    signs = jax.random.rademacher(key, (num_envs,), dtype=leaf.dtype)
    weights = (signs - jnp.mean(signs)) / jnp.sqrt(num_envs * (num_envs - 1.0))
    return _combine(output_gradients, weights)


def p_value(samples: Float[Array, " E"]) -> Float[Array, ""]:
    """Returns the p-value of Student's one-sided t-test that the mean of samples is positive.

    It is at most alpha exactly where mean - t_{1 - alpha, E - 1} std / sqrt(E) >= 0.
    """
    degrees = len(samples) - 1.0
    error = jnp.std(samples, ddof=1) / jnp.sqrt(len(samples))
    t = jnp.mean(samples) / jnp.where(error > 0, error, 1.0)
    tail = 0.5 * jax.scipy.special.betainc(degrees / 2, 0.5, degrees / (degrees + t**2))
    certain = jnp.where(jnp.mean(samples) > 0, 0.0, 1.0)
    return jnp.where(error > 0, jnp.where(t > 0, tail, 1 - tail), certain)


def _combine(output_gradients: Distribution, weights: Float[Array, " E"]) -> Distribution:
    """Returns the cotangent of sum_e weights_e c_e."""
    num_steps = jax.tree.leaves(output_gradients)[0].shape[0]
    return jax.tree.map(
        lambda q: q * (weights / num_steps).reshape(1, -1, *[1] * (q.ndim - 2)), output_gradients
    )
