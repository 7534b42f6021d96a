"""Solvers of A x = b for a symmetric positive-definite A known only through its products.

Conjugate gradient minimises 1/2 x^T A x - b^T x over growing Krylov spaces. Three of its facts
matter to a trust-region step (Nocedal and Wright 2006, Numerical Optimization, chapter 5):
stopped early it is a regulariser, not just an approximation; every iterate is an ascent
direction, b^T x > 0; and since the residual is orthogonal to the Krylov space that holds x,
x^T A x = b^T x at every iterate, so the step's length comes without a further product.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class SolverResult(NamedTuple):
    """A solution and how far it can be trusted.

    Attributes:
        x: the solution, a tree like b.
        residual: ||b - A x|| / ||b||, scalar; 0 for b = 0. The recurrence's own residual, which
            drifts from the true one by rounding only.
        iterations: number of iterations that changed x, scalar.
    """

    x: PyTree[Array]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


def conjugate_gradient(
    matvec: Callable[[PyTree[Array]], PyTree[Array]],
    b: PyTree[Array],
    num_iterations: int,
    tolerance: float = 1e-10,
) -> SolverResult:
    """Solves A x = b from x = 0 by the conjugate gradient method (Hestenes and Stiefel 1952).

    The loop always runs `num_iterations` times, so that it costs the same under `jax.vmap`. Once
    the relative residual is at most `tolerance`, or a product shows that A is not positive
    definite, the iterate is frozen.

    Args:
        matvec: `v -> A v` on trees like `b`.
        b: right-hand side.
        num_iterations: number of products with A.
        tolerance: relative residual ||b - A x|| / ||b|| at which the iterate is frozen.
    """
    b_squared = optax.tree.vdot(b, b)
    threshold = tolerance**2 * b_squared

    def body(_, carry):
        x, residual, direction, residual_squared, iterations, active = carry
        product = matvec(direction)
        curvature = optax.tree.vdot(direction, product)
        active = active & (residual_squared > threshold) & (curvature > 0)
        # A frozen lane divides by one and moves by zero: no branch, no NaN.
        alpha = jnp.where(active, residual_squared / jnp.where(active, curvature, 1.0), 0.0)
        x = optax.tree.add_scale(x, alpha, direction)
        residual = optax.tree.add_scale(residual, -alpha, product)
        new_residual_squared = optax.tree.vdot(residual, residual)
        safe_residual_squared = jnp.where(active, residual_squared, 1.0)
        beta = jnp.where(active, new_residual_squared / safe_residual_squared, 0.0)
        direction = optax.tree.add_scale(residual, beta, direction)
        return x, residual, direction, new_residual_squared, iterations + active, active

    initial = (
        optax.tree.zeros_like(b),
        b,
        b,
        b_squared,
        jnp.zeros((), jnp.int32),
        jnp.ones((), bool),
    )
    x, _, _, residual_squared, iterations, _ = jax.lax.fori_loop(0, num_iterations, body, initial)
    relative = jnp.sqrt(residual_squared / jnp.where(b_squared == 0, 1.0, b_squared))
    return SolverResult(x, relative, iterations)
