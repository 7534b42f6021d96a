"""Fisher-vector products of a policy, by one Jacobian-vector and one vector-Jacobian product.

The Fisher information matrix of a policy over N states is F = (1/N) sum_n J_n^T M_n J_n, where J_n
is the Jacobian of the distribution's parameters in the network's parameters and M_n the Fisher
metric of the distribution itself (Schulman et al. 2015, arXiv:1502.05477, appendix C.1). It equals
the Hessian of the mean KL divergence at the old parameters, where the second-derivative term of
the network drops out, and so needs first derivatives only: it is exact for any differentiable
network, and costs about half of differentiating the KL divergence twice.
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

    `fn` is linearised here, once: the returned function reuses the stored activations, so build it
    outside of the solver's loop.

    Args:
        fn: maps parameters to any pytree of outputs.
        params: parameters at which J is taken.
        output_metric: `(outputs, tangent u of the outputs) -> H u`, linear in u.

    Returns:
        A function that takes and returns a tree like `params`.
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
    """Returns the function `v -> F v` at `params`.

    Args:
        distribution_fn: maps parameters to the action distributions at N states; their batch axes
            may have any shape.
        params: parameters at which F is taken.
        state_weights: a weight for each state, of mean 1; all 1 if None.

    Returns:
        A function that takes and returns a tree like `params`.
    """
    return gauss_newton_product(
        distribution_fn, params, lambda d, u: mean_fisher_product(d, u, state_weights)
    )


def mean_fisher_product(
    distribution: Distribution,
    tangent: Distribution,
    state_weights: Float[Array, "*batch"] | None = None,
) -> Distribution:
    """Returns w_n M_n u_n / N for each of the N states: the metric of the mean KL divergence."""
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
    """Returns whether each output of a function, a leaf, is computed from its argument."""
    jaxpr = jax.make_jaxpr(fn)(params).jaxpr
    reached = set(jaxpr.invars)
    is_reached = lambda x: not isinstance(x, Literal) and x in reached
    for equation in jaxpr.eqns:
        if any(map(is_reached, equation.invars)):
            reached.update(equation.outvars)
    return [is_reached(x) for x in jaxpr.outvars]


def dense_fisher(distribution_fn: DistributionFn, params: Params) -> Float[Array, "P P"]:
    """Returns the whole Fisher matrix in raveled parameters, for tests and small networks.

    Computed from the dense Jacobian, independently of `fisher_vector_product`. Memory grows as
    N P K for K distribution parameters a state, and as P^2.

    Args:
        distribution_fn: maps parameters to the action distributions at N states.
        params: parameters at which F is taken; P numbers in all.
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
