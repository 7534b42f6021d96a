"""Backtracking along a step until it improves the surrogate and stays in the trust region.

The full step rests on a linear model of the surrogate and a quadratic one of the KL divergence. Now
and then they are far off, and the policy would be ruined in one step; the line search checks both
against the truth (Schulman et al. 2015, arXiv:1502.05477, appendix C).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


class LineSearchResult(NamedTuple):
    """Where the search ended.

    Attributes:
        params: the accepted parameters, or exactly the given ones if no candidate was accepted.
        accepted: whether a candidate was accepted, scalar.
        fraction: fraction of the full step that was taken, scalar; 0 if none.
        evaluations: number of candidates evaluated, scalar.
    """

    params: PyTree[Array]
    accepted: Bool[Array, ""]
    fraction: Float[Array, ""]
    evaluations: Int[Array, ""]


def backtracking(
    evaluate: Callable[[PyTree[Array]], tuple[Float[Array, ""], Float[Array, ""]]],
    params: PyTree[Array],
    step: PyTree[Array],
    max_kl: Float[Array, ""] | float,
    shrink: Float[Array, ""] | float,
    num_steps: int,
) -> LineSearchResult:
    """Tries `params + shrink^j step` for j = 0, 1, ... and takes the first that qualifies.

    A candidate qualifies if its surrogate gain is positive and its mean KL divergence is at most
    `max_kl`; a number that is not finite never qualifies.

    Args:
        evaluate: maps parameters to (surrogate gain over `params`, mean KL(old || new)).
        params: the old parameters.
        step: the full step, a tree like `params`.
        max_kl: radius of the trust region, in nats.
        shrink: factor between one candidate and the next, in (0, 1).
        num_steps: number of candidates tried at the most.
    """

    def candidate(fraction):
        return jax.tree.map(lambda p, s: p + (fraction * s).astype(p.dtype), params, step)

    def searching(carry):
        tried, _, accepted = carry
        return ~accepted & (tried < num_steps)

    def try_next(carry):
        tried, fraction, _ = carry
        fraction = jnp.where(tried == 0, fraction, fraction * shrink)
        gain, kl = evaluate(candidate(fraction))
        accepted = jnp.isfinite(gain) & (gain > 0) & (kl <= max_kl)
        return tried + 1, fraction, accepted

    # At least float32: powers of `shrink` need the digits that bfloat16 lacks.
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(step)), jnp.float32)
    shrink = jnp.asarray(shrink, dtype)
    start = (jnp.zeros((), jnp.int32), jnp.ones((), dtype), jnp.zeros((), bool))
    tried, fraction, accepted = jax.lax.while_loop(searching, try_next, start)
    # A select, not `params + 0 * step`: a step that is not finite must not touch the parameters.
    new_params = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), candidate(fraction), params
    )
    return LineSearchResult(new_params, accepted, jnp.where(accepted, fraction, 0.0), tried)
