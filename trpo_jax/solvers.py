"""Solvers of A x = b for a symmetric positive-definite A that is known only by its products A v.

Conjugate gradient minimises 1/2 x^T A x - b^T x over Krylov spaces that grow by one dimension in
each iteration. Three of its properties matter to a trust-region step (Nocedal and Wright 2006,
Numerical Optimization, chapter 5):

- If it is stopped early, it acts as a regulariser.
- Every iterate is an ascent direction: b^T x > 0.
- At every iterate x^T A x = b^T x, because the residual is orthogonal to the Krylov space that
  contains x. So the length of the step needs no further product with A.
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
    """A solution and its accuracy.

    Attributes:
        x: the solution, a tree like b.
        residual: ||b - A x|| / ||b||, scalar; 0 if b = 0. It is computed by the recurrence of the
            method, which differs from the true residual only by rounding.
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

    With a preconditioner M, the method does what it would do with M^-1/2 A M^-1/2 in the place of
    A. The closer M is to A, the fewer iterations this takes (Nocedal and Wright 2006, algorithm
    5.3).

    The loop always runs `num_iterations` times, so that it costs the same under `jax.vmap`. x stops
    changing as soon as the relative residual is at most `tolerance`, or a product shows that A is
    not positive definite.

    Args:
        matvec: `v -> A v` on trees like `b`.
        b: right-hand side.
        num_iterations: number of products with A.
        tolerance: relative residual ||b - A x|| / ||b|| at which x stops changing. With a
            preconditioner, the norm of v is sqrt(v^T M^-1 v).
        precondition: `v -> M^-1 v` for a symmetric positive-definite M. None stands for the
            identity.

    Returns:
        The solution, its relative residual and the number of iterations.

    Examples:
        >>> diagonal = jnp.array([1.0, 2.0, 4.0])
        >>> result = conjugate_gradient(lambda v: diagonal * v, jnp.ones(3), num_iterations=3)
        >>> print(jnp.array_str(result.x, precision=3))
        [1.   0.5  0.25]
        >>> result.iterations
        Array(3, dtype=int32)
    """
    # One array takes a CPU less time than a tree of small arrays.
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
        # An inactive iteration divides by one and moves by zero, so no branch and no NaN occur.
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
    """Returns a function that solves (A + damping I) x = b for a given b, by conjugate gradient.

    Args:
        matvec: `v -> A v`, for a positive-semidefinite A.
        damping: added to the diagonal of A.
        num_iterations: number of products with A.
        precondition: `v -> M^-1 v`, with M close to A + damping I.

    Examples:
        >>> solve = damped_solver(lambda v: 2 * v, damping=0.5, num_iterations=10)
        >>> solve(jnp.array([5.0])).x
        Array([2.], dtype=float32)
    """

    def damped(vector: PyTree[Array]) -> PyTree[Array]:
        return optax.tree.add_scale(matvec(vector), damping, vector)

    return lambda b: conjugate_gradient(damped, b, num_iterations, precondition=precondition)


@sequential_vmap
def positive_definite_inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Returns the inverse of a positive-definite matrix.

    Under `jax.vmap` the matrices are inverted one after another. Two batched calls of LAPACK at the
    same time can wait for each other forever on a CPU with few cores.

    Examples:
        >>> print(positive_definite_inverse(jnp.array([[4.0, 0.0], [0.0, 1.0]])))
        [[0.25 0.  ]
         [0.   1.  ]]
    """
    factor = jax.scipy.linalg.cho_factor(matrix)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(len(matrix), dtype=matrix.dtype))
