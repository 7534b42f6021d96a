"""Products of the Fisher matrix of a policy with a vector, without the matrix.

The Fisher information matrix of a policy over N states is F = (1/N) sum_n J_n^T M_n J_n. J_n is the
Jacobian of the distribution's parameters in the network's parameters. M_n is the Fisher metric of
the distribution itself (Schulman et al. 2015, arXiv:1502.05477, appendix C.1).

F equals the Hessian of the mean KL divergence at the old parameters, because the term with the
second derivatives of the network is zero there. So one Jacobian-vector product and one
vector-Jacobian product give F v. The result is exact for any differentiable network and costs about
half as much as differentiating the KL divergence twice.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.distributions import Distribution

Params = PyTree[Array]
MatrixVectorProduct = Callable[[Params], Params]
DistributionFn = Callable[[Params], Distribution]


def gauss_newton_product(
    fn: Callable[[Params], Any], params: Params, output_metric: Callable[[Any, Any], Any]
) -> MatrixVectorProduct:
    """Returns the function `v -> J^T H J v`, with J the Jacobian of `fn` at `params`.

    H is the matrix that `output_metric` multiplies by.

    `fn` is linearised once, in this call. The returned function reuses the stored activations, so
    call `gauss_newton_product` outside of the loop of a solver.

    Args:
        fn: maps parameters to any pytree of outputs.
        params: the parameters at which J is taken.
        output_metric: `(outputs, tangent u of the outputs) -> H u`, linear in u.

    Returns:
        A function that takes and returns a tree like `params`.

    Examples:
        >>> params = jnp.array([1.0, 2.0])
        >>> fn = lambda params: params**2  # J = diag(2, 4)
        >>> product = gauss_newton_product(fn, params, output_metric=lambda outputs, u: u)
        >>> product(jnp.ones(2))
        Array([ 4., 16.], dtype=float32)
    """
    outputs, jvp = jax.linearize(fn, params)
    vjp = jax.linear_transpose(jvp, params)

    def product(vector: Params) -> Params:
        (result,) = vjp(output_metric(outputs, jvp(vector)))
        return result

    return product


def fisher_vector_product(
    distribution_fn: DistributionFn,
    params: Params,
    state_weights: Float[Array, "*batch"] | None = None,
) -> MatrixVectorProduct:
    """Returns the function `v -> F v`, with F the Fisher matrix at `params`.

    Args:
        distribution_fn: maps parameters to the action distributions at N states. Their batch axes
            may have any shape.
        params: the parameters at which F is taken.
        state_weights: a weight for each state, with mean 1. None gives all states the weight 1.

    Returns:
        A function that takes and returns a tree like `params`.

    Examples:
        >>> observations = jnp.ones((5, 3))  # N = 5 states
        >>> params = {"w": jnp.zeros((3, 2))}
        >>> distribution_fn = lambda params: trpo_jax.Categorical(observations @ params["w"])
        >>> product = fisher_vector_product(distribution_fn, params)
        >>> product({"w": jnp.ones((3, 2)).at[:, 1].set(-1.0)})
        {'w': Array([[ 1.5, -1.5],
                     [ 1.5, -1.5],
                     [ 1.5, -1.5]], dtype=float32)}
    """
    return gauss_newton_product(
        distribution_fn, params, lambda d, u: mean_fisher_product(d, u, state_weights)
    )


def mean_fisher_product(
    distribution: Distribution,
    tangent: Distribution,
    state_weights: Float[Array, "*batch"] | None = None,
) -> Distribution:
    """Returns w_n M_n u_n / N for each of the N states, the metric of the mean KL divergence.

    Args:
        distribution: the action distributions at the N states.
        tangent: u, a tangent of their parameters.
        state_weights: w, a weight for each state, with mean 1. None gives all states the weight 1.

    Examples:
        >>> policy = trpo_jax.DiagGaussian(mean=jnp.zeros((2, 1)), log_std=jnp.zeros((2, 1)))
        >>> tangent = jax.tree.map(jnp.ones_like, policy)
        >>> mean_fisher_product(policy, tangent).log_std  # M = 2 for log_std, N = 2
        Array([[1.],
               [1.]], dtype=float32)
    """
    batch_shape = jax.eval_shape(lambda d: d.kl(d), distribution).shape
    num_states = math.prod(batch_shape)
    product = jax.tree.map(lambda x: x / num_states, distribution.fisher_product(tangent))
    if state_weights is None:
        return product

    def weighted(x: Array) -> Array:
        shape = (*batch_shape, *[1] * (x.ndim - len(batch_shape)))
        return x * state_weights.reshape(shape).astype(x.dtype)

    return jax.tree.map(weighted, product)


def outputs_that_depend(fn: Callable[[Params], Any], params: Params) -> list[bool]:
    """Returns whether each output of a function depends on its argument, one bool for each leaf.

    An output counts as dependent if it is computed from any part of the argument.

    Examples:
        >>> fn = lambda params: {"mean": 2 * params, "log_std": jnp.zeros(2)}
        >>> outputs_that_depend(fn, jnp.ones(2))  # in the order of jax.tree.leaves: log_std, mean
        [False, True]
    """
    jaxpr = jax.make_jaxpr(fn)(params).jaxpr
    reached = set(jaxpr.invars)
    is_reached = lambda x: not isinstance(x, Literal) and x in reached
    for equation in jaxpr.eqns:
        if any(map(is_reached, equation.invars)):
            reached.update(equation.outvars)
    return [is_reached(x) for x in jaxpr.outvars]


def dense_fisher(distribution_fn: DistributionFn, params: Params) -> Float[Array, "P P"]:
    """Returns the whole Fisher matrix in raveled parameters, for tests and small networks.

    It is computed from the dense Jacobian, independently of `fisher_vector_product`. With K
    distribution parameters for each state, the memory grows as N P K and as P^2.

    Args:
        distribution_fn: maps parameters to the action distributions at N states.
        params: the parameters at which F is taken. They hold P numbers in all.

    Examples:
        >>> distribution_fn = lambda logits: trpo_jax.Categorical(logits[None])  # one state
        >>> dense_fisher(distribution_fn, jnp.zeros(2))  # diag(p) - p p^T
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)
    """
    flat_params, unravel = ravel_pytree(params)
    distribution = distribution_fn(params)
    jacobian = jax.jacfwd(lambda flat: distribution_fn(unravel(flat)))(flat_params)
    metric_times_jacobian = jax.vmap(distribution.fisher_product, in_axes=-1, out_axes=-1)(jacobian)
    num_states = distribution.entropy().size
    blocks = jax.tree.map(
        lambda j, mj: j.reshape(-1, flat_params.size).T @ mj.reshape(-1, flat_params.size),
        jacobian,
        metric_times_jacobian,
    )
    return sum(jax.tree.leaves(blocks)) / jnp.asarray(num_states, flat_params.dtype)
