"""The exact solve of (F + damping I) x = g in the space of the outputs, where they are few.

F = J^T M J has no more eigenvalues above 0 than the batch has outputs, R = examples times numbers
of a distribution. With the thin factorisation J^T = Q U, Q of orthonormal columns,

    x = Q (U M U^T + damping I)^-1 Q^T g + (g - Q Q^T g) / damping,

where the matrix to be inverted has min(R, P) rows. Quantum Monte Carlo knows the idea as minSR
(Chen and Heyl 2024, arXiv:2302.01941). It takes memory for 2 R P + R^2 numbers and some 4 R^2 P
multiplications whatever the damping is, where conjugate gradient takes the more products the
smaller the damping is.
"""

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import mean_fisher_product, outputs_that_depend
from trpo_jax.solvers import SolverResult, positive_definite_inverse
from trpo_jax.transform import System
from trpo_jax.trust_region import Solve

MOST_OUTPUTS = 8192  # a matrix of so many rows and columns fills 256 MiB of float32


def sample_space_solver(system: System) -> Solve:
    """Returns the function that solves a system exactly; `iterations` counts the one product.

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
        jacobian = jax.vmap(lambda row: vjp(to_outputs(row))[0])(jnp.eye(size, dtype=params.dtype))
        basis, upper = _factors(jacobian.T)
        inner = upper @ jax.vmap(metric)(upper).T
        damped = inner + system.damping * jnp.eye(len(inner), dtype=inner.dtype)
        inverted = positive_definite_inverse(damped)

    @jax.default_matmul_precision("float32")  # it is traced where it is called
    def solve(b: PyTree[Array]) -> SolverResult:
        vector, _ = ravel_pytree(b)
        inside = vector @ basis
        outside = vector - basis @ inside
        x = unravel(basis @ (inverted @ inside) + outside / system.damping)
        left = optax.tree.sub(b, optax.tree.add_scale(system.product(x), system.damping, x))
        norm = jnp.linalg.norm(vector)
        residual = optax.tree.norm(left) / jnp.where(norm == 0, 1.0, norm)
        return SolverResult(x, residual, jnp.ones((), jnp.int32))

    return solve


@sequential_vmap  # see `positive_definite_inverse`
def _factors(matrix: Float[Array, "P R"]) -> tuple[Float[Array, "P m"], Float[Array, "m R"]]:
    """Returns the thin QR factors of a matrix, m = min(P, R)."""
    return jnp.linalg.qr(matrix)
