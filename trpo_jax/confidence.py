"""The uncertainty of a gradient estimate, computed from the differences between environments.

The steps of one episode depend on each other, but the environments are independent. So the E
samples are the gradients from one environment each. Their covariance Sigma measures how uncertain
the estimate is. If the estimate is normally distributed, the true gradient lies with probability
1 - alpha in the ellipsoid (g - g_hat)^T Sigma^-1 (g - g_hat) <= R^2 (Queeney, Paschalidis and
Cassandras 2021, arXiv:2012.10791).

The functions work on the outputs of the network. A batch has T steps of E environments, so the
distributions have the batch axes `[T, E]`. J is the Jacobian of all outputs in the parameters.
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

    The mean of n samples in d dimensions lies with probability at least 1 - alpha within R of its
    expectation, in units of the covariance of one sample. For Gaussian samples, this is the
    probability that a chi-squared variable with d degrees of freedom is at most n R^2 (Laurent and
    Massart 2000, lemma 1).

    Args:
        dimension: d.
        num_samples: n.
        alpha: probability that the expectation may lie outside, in (0, 1).

    Examples:
        >>> print(f"{squared_radius(dimension=10, num_samples=100, alpha=0.05):.3f}")
        0.269
    """
    tail = -jnp.log(alpha)
    return (dimension + 2 * jnp.sqrt(dimension * tail) + 2 * tail) / num_samples


def output_gradient(surrogate: Surrogate, old: Distribution) -> Distribution:
    """Returns q_n = N dL/d(distribution parameters of state n) at the old policy.

    The gradient of L is the mean of J_n^T q_n over the N states.

    Args:
        surrogate: maps (new, old) distributions to L.
        old: the old policy at the N states.

    Examples:
        >>> from trpo_jax.trust_region import importance_sampled_surrogate
        >>> old = trpo_jax.Categorical(jnp.zeros((1, 2, 2)))  # T = 1 step of E = 2 environments
        >>> surrogate = importance_sampled_surrogate(jnp.array([[0, 1]]), jnp.array([[1.0, 2.0]]))
        >>> output_gradient(surrogate, old).logits[0]
        Array([[ 0.5, -0.5],
               [-1. ,  1. ]], dtype=float32)
    """
    num_states = jax.eval_shape(lambda d: d.entropy(), old).size
    gradient = jax.grad(lambda new: surrogate(new, old))(old)
    return jax.tree.map(lambda x: x * num_states, gradient)


def directional_means(output_gradients: Distribution, tangent: Distribution) -> Float[Array, " E"]:
    """Returns c_e . v for the gradient c_e of each environment.

    Args:
        output_gradients: from `output_gradient`, with batch axes `[T, E]`.
        tangent: J v, with the same batch axes.

    Examples:
        >>> gradients = trpo_jax.Categorical(jnp.array([[[0.5, -0.5], [-1.0, 1.0]]]))
        >>> tangent = trpo_jax.Categorical(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]))
        >>> directional_means(gradients, tangent)
        Array([ 0.5, -1. ], dtype=float32)
    """
    products = jax.tree.map(
        lambda q, u: jnp.sum(q * u, axis=tuple(range(2, q.ndim))), output_gradients, tangent
    )
    return jnp.mean(sum(jax.tree.leaves(products)), axis=0)


def covariance_product(output_gradients: Distribution, tangent: Distribution) -> Distribution:
    """Returns y with J^T y = Sigma v, for a given J v.

    Sigma = sum_e (c_e - g)(c_e - g)^T / (E - 1). c_e is the gradient from environment e alone. g is
    the mean of the c_e. Like a product with the Fisher matrix, the product needs J v and one J^T y.

    Args:
        output_gradients: from `output_gradient`, with batch axes `[T, E]`.
        tangent: J v, with the same batch axes.

    Examples:
        >>> gradients = trpo_jax.Categorical(jnp.array([[[0.5, -0.5], [-1.0, 1.0]]]))
        >>> tangent = trpo_jax.Categorical(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]))
        >>> covariance_product(gradients, tangent).logits[0]
        Array([[ 0.375, -0.375],
               [ 0.75 , -0.75 ]], dtype=float32)
    """
    means = directional_means(output_gradients, tangent)
    weights = (means - jnp.mean(means)) / (len(means) - 1)
    return _combine(output_gradients, weights)


def noise_gradient(key: PRNGKeyArray, output_gradients: Distribution) -> Distribution:
    """Returns y such that J^T y is a random gradient whose covariance is Sigma / E.

    Sigma / E is the covariance of the gradient estimate. So the random gradient is as large as the
    error of the estimate, but it contains no signal. It is the sum of the deviations of the
    environments from their mean, each with a random sign.

    Args:
        key: consumed by the random signs.
        output_gradients: from `output_gradient`, with batch axes `[T, E]`.

    Examples:
        >>> gradients = trpo_jax.Categorical(jnp.array([[[0.5, -0.5], [-1.0, 1.0]]]))
        >>> noise_gradient(jax.random.key(0), gradients).logits.shape
        (1, 2, 2)
    """
    leaf = jax.tree.leaves(output_gradients)[0]
    num_envs = leaf.shape[1]
    signs = jax.random.rademacher(key, (num_envs,), dtype=leaf.dtype)
    weights = (signs - jnp.mean(signs)) / jnp.sqrt(num_envs * (num_envs - 1.0))
    return _combine(output_gradients, weights)


def p_value(samples: Float[Array, " E"]) -> Float[Array, ""]:
    """Returns the p-value of Student's one-sided t-test, with a positive mean as alternative.

    The p-value is at most alpha exactly if mean - t_{1 - alpha, E - 1} std / sqrt(E) >= 0.

    Args:
        samples: E independent samples.

    Examples:
        >>> print(f"{p_value(jnp.array([1.0, 2.0, 3.0, 2.0])):.3f}")
        0.008
    """
    degrees = len(samples) - 1.0
    error = jnp.std(samples, ddof=1) / jnp.sqrt(len(samples))
    t = jnp.mean(samples) / jnp.where(error > 0, error, 1.0)
    tail = 0.5 * jax.scipy.special.betainc(degrees / 2, 0.5, degrees / (degrees + t**2))
    certain = jnp.where(jnp.mean(samples) > 0, 0.0, 1.0)
    return jnp.where(error > 0, jnp.where(t > 0, tail, 1 - tail), certain)


def _combine(output_gradients: Distribution, weights: Float[Array, " E"]) -> Distribution:
    """Returns y with J^T y = sum_e weights_e c_e."""
    num_steps = jax.tree.leaves(output_gradients)[0].shape[0]
    return jax.tree.map(
        lambda q: q * (weights / num_steps).reshape(1, -1, *[1] * (q.ndim - 2)), output_gradients
    )
