"""Backtracking line search: shortens a step until the surrogate improves inside the trust region.

The full step is computed from a linear model of the surrogate and a quadratic model of the KL
divergence. Sometimes these models are far from the truth, and the full step would ruin the policy.
The line search checks the surrogate and the KL divergence themselves (Schulman et al. 2015,
arXiv:1502.05477, appendix C).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


class LineSearchResult(NamedTuple):
    """The result of a line search.

    Attributes:
        params: the accepted parameters. If no candidate was accepted, these are exactly the
            given parameters.
        accepted: whether a candidate was accepted, scalar.
        fraction: fraction of the full step that was taken, scalar. 0 if none was accepted.
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
    """Tries `params + shrink^j step` for j = 0, 1, ... and takes the first acceptable candidate.

    A candidate is acceptable if its surrogate gain is positive and its mean KL divergence is at
    most `max_kl`. A candidate with a gain or a KL divergence that is not finite is never accepted.

    Args:
        evaluate: maps parameters to (surrogate gain over `params`, mean KL(old || new)).
        params: the old parameters.
        step: the full step, a tree like `params`.
        max_kl: radius of the trust region, in nats.
        shrink: factor between one candidate and the next, in (0, 1).
        num_steps: largest number of candidates to try.

    Examples:
        >>> evaluate = lambda x: (x, x**2)  # the gain is x, the KL divergence is x^2
        >>> result = backtracking(
        ...     evaluate, jnp.array(0.0), jnp.array(1.0), max_kl=0.1, shrink=0.5, num_steps=10
        ... )
        >>> result.params, result.evaluations
        (Array(0.25, dtype=float32), Array(3, dtype=int32))
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

    # At least float32, because bfloat16 has too few digits for the powers of `shrink`.
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(step)), jnp.float32)
    shrink = jnp.asarray(shrink, dtype)
    start = (jnp.zeros((), jnp.int32), jnp.ones((), dtype), jnp.zeros((), bool))
    tried, fraction, accepted = jax.lax.while_loop(searching, try_next, start)
    # A select instead of `params + 0 * step`, because 0 times infinity is not 0.
    new_params = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), candidate(fraction), params
    )
    return LineSearchResult(new_params, accepted, jnp.where(accepted, fraction, 0.0), tried)
