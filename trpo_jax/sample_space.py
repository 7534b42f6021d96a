"""The solve of (F + damping I) x = g in the space of the outputs, where they are few.

F = J^T M J has at most as many eigenvalues that are not 0 as the batch has outputs: R = examples
times numbers of a distribution. The identity of Woodbury moves the solve there,

    x = (g - J^T (M K + damping I)^-1 M J g) / damping,    K = J J^T, a matrix of R by R,

without any approximation (quantum Monte Carlo knows it as minSR: Chen and Heyl 2024,
arXiv:2302.01941). It takes memory for R P + 2 R^2 numbers and R^2 P multiplications, whatever the
damping, where conjugate gradient takes the more products the smaller the damping is.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import mean_fisher_product, outputs_that_depend
from trpo_jax.solvers import SolverResult
from trpo_jax.transform import System
from trpo_jax.trust_region import Solve

MOST_OUTPUTS = 8192  # a matrix of so many rows and columns fills 256 MiB of float32


def sample_space_solver(system: System) -> Solve:
    """Returns the function that solves a system exactly, by a matrix of outputs by outputs.

    One refinement with an exact product follows, since the identity subtracts numbers that are
    nearly equal where the damping is small; `iterations` counts it.

    Raises:
        ConfigurationError: if the batch has too many outputs.

    Example:
        >>> natural_gradient(max_kl=0.01, damping=1e-4, solver=sample_space_solver)
    """
    params, unravel = ravel_pytree(system.params)
    distribution, jvp = jax.linearize(lambda p: system.distribution_fn(unravel(p)), params)
    vjp = jax.linear_transpose(jvp, params)
    depends = outputs_that_depend(system.distribution_fn, system.params)
    size = sum(x.size for x, y in zip(jax.tree.leaves(distribution), depends, strict=True) if y)
    if size > MOST_OUTPUTS:
        raise ConfigurationError(
            f"The batch has {size:,} outputs, and sample_space_solver is for {MOST_OUTPUTS:,} at "
            "the most. Choose fewer examples, or conjugate gradient (solver=None)."
        )

    def to_rows(tree: PyTree[Array]) -> Float[Array, " R"]:
        """Returns the numbers that depend on the parameters."""
        kept = [x.ravel() for x, y in zip(jax.tree.leaves(tree), depends, strict=True) if y]
        return jnp.concatenate(kept)

    def to_outputs(rows: Float[Array, " R"]) -> PyTree[Array]:
        """Returns a tangent of the distribution, 0 where nothing depends on the parameters."""
        leaves, structure = jax.tree.flatten(distribution)
        found, start = [], 0
        for leaf, kept in zip(leaves, depends, strict=True):
            found.append(
                rows[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype)
                if kept
                else jnp.zeros_like(leaf)
            )
            start += leaf.size * kept
        return structure.unflatten(found)

    def metric(rows: Float[Array, " R"]) -> Float[Array, " R"]:
        return to_rows(mean_fisher_product(distribution, to_outputs(rows), system.weights))

    with jax.default_matmul_precision("float32"):
        identity = jnp.eye(size, dtype=params.dtype)
        jacobian = jax.vmap(lambda row: vjp(to_outputs(row))[0])(identity)  # [R, P]
        gram = jax.vmap(metric, in_axes=1, out_axes=1)(jacobian @ jacobian.T)
        inverted = _inverse(gram + system.damping * identity)

    def damped(vector: Float[Array, " P"]) -> Float[Array, " P"]:
        product, _ = ravel_pytree(system.product(unravel(vector)))
        return product + system.damping * vector

    def inverse(vector: Float[Array, " P"]) -> Float[Array, " P"]:
        return (vector - (inverted @ metric(jacobian @ vector)) @ jacobian) / system.damping

    @jax.default_matmul_precision("float32")  # it is traced where it is called
    def solve(b: PyTree[Array]) -> SolverResult:
        b, _ = ravel_pytree(b)
        x = inverse(b)
        x = x + inverse(b - damped(x))
        norm = jnp.linalg.norm(b)
        residual = jnp.linalg.norm(b - damped(x)) / jnp.where(norm == 0, 1.0, norm)
        return SolverResult(unravel(x), residual, jnp.ones((), jnp.int32))

    return solve


@sequential_vmap
def _inverse(matrix: Float[Array, "R R"]) -> Float[Array, "R R"]:
    """Returns the inverse of a matrix, of one after another under `jax.vmap`.

    Two batched calls of LAPACK at a time can wait for each other for ever on a CPU with few cores.
    """
    return jnp.linalg.inv(matrix)
