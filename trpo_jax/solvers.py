"""Solvers of A x = b for a symmetric positive-definite A, known only through its products.

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
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree
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
    precondition: Callable[[PyTree[Array]], PyTree[Array]] | None = None,
) -> SolverResult:
    """Solves A x = b from x = 0 by the conjugate gradient method (Hestenes and Stiefel 1952).

    With a preconditioner M, it works as on M^-1/2 A M^-1/2, which takes the fewer iterations the
    nearer M is to A (Nocedal and Wright 2006, algorithm 5.3).

    Inside, vectors are raveled: one array takes a CPU less time than a tree of small ones.

    The loop always runs `num_iterations` times, so that it costs the same under `jax.vmap`. Once
    the relative residual is at most `tolerance`, or a product shows that A is not positive
    definite, the iterate is frozen.

    Args:
        matvec: `v -> A v` on trees like `b`.
        b: right-hand side.
        num_iterations: number of products with A.
        tolerance: relative residual ||b - A x|| / ||b|| at which the iterate is frozen, in the norm
            of M^-1 if there is one.
        precondition: `v -> M^-1 v` for a symmetric positive-definite M; the identity if None.
    """
    b, unravel = ravel_pytree(b)
    on_vectors = lambda function: lambda vector: ravel_pytree(function(unravel(vector)))[0]
    matvec = on_vectors(matvec)
    precondition = (lambda v: v) if precondition is None else on_vectors(precondition)
    preconditioned_b = precondition(b)
    size = jnp.vdot(b, preconditioned_b)
    threshold = tolerance**2 * size

    def body(_, carry):
        x, residual, direction, size, iterations, active = carry
        product = matvec(direction)
        curvature = jnp.vdot(direction, product)
        active = active & (size > threshold) & (curvature > 0)
        # A frozen lane divides by one and moves by zero: no branch, no NaN.
        alpha = jnp.where(active, size / jnp.where(active, curvature, 1.0), 0.0)
        x = x + alpha * direction
        residual = residual - alpha * product
        preconditioned = precondition(residual)
        new_size = jnp.vdot(residual, preconditioned)
        beta = jnp.where(active, new_size / jnp.where(active, size, 1.0), 0.0)
        direction = preconditioned + beta * direction
        return x, residual, direction, new_size, iterations + active, active

    initial = (
        jnp.zeros_like(b),
        b,
        preconditioned_b,
        size,
        jnp.zeros((), jnp.int32),
        jnp.ones((), bool),
    )
    x, residual, _, _, iterations, _ = jax.lax.fori_loop(0, num_iterations, body, initial)
    b_norm = jnp.linalg.norm(b)
    relative = jnp.linalg.norm(residual) / jnp.where(b_norm == 0, 1.0, b_norm)
    return SolverResult(unravel(x), relative, iterations)


def damped_solver(
    matvec: Callable[[PyTree[Array]], PyTree[Array]],
    *,
    damping: Float[Array, ""] | float,
    num_iterations: int,
    precondition: Callable[[PyTree[Array]], PyTree[Array]] | None = None,
) -> Callable[[PyTree[Array]], SolverResult]:
    """Returns the function that solves (A + damping I) x = b by conjugate gradient, given b.

    Args:
        matvec: `v -> A v`, for a positive-semidefinite A.
        damping: added to the diagonal of A.
        num_iterations: number of products with A.
        precondition: `v -> M^-1 v` with M near A + damping I.

    Example:
        >>> solve = damped_solver(product, damping=0.1, num_iterations=10)
        >>> direction = solve(gradient).x
    """

    def damped(vector: PyTree[Array]) -> PyTree[Array]:
        return optax.tree.add_scale(matvec(vector), damping, vector)

    return lambda b: conjugate_gradient(damped, b, num_iterations, precondition=precondition)


@sequential_vmap
def positive_definite_inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Returns the inverse of a positive-definite matrix, one after another under `jax.vmap`.

    Two batched calls of LAPACK at a time can wait for each other for ever on a CPU with few cores.
    """
    factor = jax.scipy.linalg.cho_factor(matrix)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(len(matrix), dtype=matrix.dtype))
