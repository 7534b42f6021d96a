"""The solution of (F + damping I) x = g in the space of the outputs, where they are few.

F = J^T M J has no more eigenvalues above 0 than the batch has outputs, R = examples times numbers
of a distribution. With J J^T = V D V^T, Q = J^T V D^-1/2 has orthonormal columns, and

    x = Q (D^1/2 V^T M V D^1/2 + damping I)^-1 Q^T g + (g - Q Q^T g) / damping,

where the matrix to be inverted has R rows. Quantum Monte Carlo knows the idea as minSR (Chen and
Heyl 2024, arXiv:2302.01941). It takes memory for R P + R^2 numbers and some 6 R^2 P multiplications
whatever the damping is, where conjugate gradient takes the more products the smaller the damping.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import mean_fisher_product, outputs_that_depend
from trpo_jax.solvers import damped_solver, positive_definite_inverse
from trpo_jax.transform import System
from trpo_jax.trust_region import Solve

MOST_OUTPUTS = 8192  # a matrix of so many rows and columns fills 256 MiB of float32


def sample_space_solver(system: System) -> Solve:
    """Returns the function that solves a system in the space of its outputs.

    Iterations of conjugate gradient with exact products follow, against rounding: eigenvalues of
    J J^T below some 1e-7 of the largest are lost in float32. One is enough where no outputs depend
    on each other nearly; the residual says so.

    Raises:
        ConfigurationError: if the batch has too many outputs.

    Example:
        >>> natural_gradient(max_kl=0.01, damping=1e-4, cg_iters=1, solver=sample_space_solver)
    """
    params, unravel = ravel_pytree(system.params)
    distribution, jvp = jax.linearize(lambda p: system.distribution_fn(unravel(p)), params)
    vjp = jax.linear_transpose(jvp, params)
    leaves, structure = jax.tree.flatten(distribution)
    depends = outputs_that_depend(system.distribution_fn, system.params)
    kept = lambda leaves: [x for x, moves in zip(leaves, depends, strict=True) if moves]
    outputs, to_leaves = ravel_pytree(kept(leaves))
    size = outputs.size
    if size > MOST_OUTPUTS:
        raise ConfigurationError(
            f"The batch has {size:,} outputs, and sample_space_solver is for {MOST_OUTPUTS:,} at "
            "the most. Choose fewer examples, or conjugate gradient (solver=None)."
        )

    def to_rows(tree: PyTree[Array]) -> Float[Array, " R"]:
        """Returns the numbers that depend on the parameters."""
        return ravel_pytree(kept(jax.tree.leaves(tree)))[0]

    def to_outputs(rows: Float[Array, " R"]) -> PyTree[Array]:
        """Returns a tangent of the distribution, 0 where nothing depends on the parameters."""
        found = iter(to_leaves(rows))
        pairs = zip(leaves, depends, strict=True)
        return structure.unflatten(next(found) if y else jnp.zeros_like(x) for x, y in pairs)

    def metric(rows: Float[Array, " R"]) -> Float[Array, " R"]:
        return to_rows(mean_fisher_product(distribution, to_outputs(rows), system.weights))

    damping = system.damping
    with jax.default_matmul_precision("float32"):
        jacobian = jax.vmap(lambda row: vjp(to_outputs(row))[0])(jnp.eye(size, dtype=params.dtype))
        eigenvalues, vectors = _decomposed(jacobian @ jacobian.T)
        # Smaller ones are rounding, and what F does there is less than a damping that can be felt.
        felt = eigenvalues > size * jnp.finfo(params.dtype).eps * eigenvalues[-1]
        roots = jnp.sqrt(jnp.where(felt, eigenvalues, 0.0))
        scaled = vectors * roots
        inner = scaled.T @ jax.vmap(metric, in_axes=1, out_axes=1)(scaled)
        inverted = positive_definite_inverse(inner + damping * jnp.eye(size, dtype=inner.dtype))
        basis = vectors * jnp.where(felt, 1 / jnp.where(felt, roots, 1.0), 0.0)

    @jax.default_matmul_precision("float32")  # it is traced where it is called
    def precondition(vector: PyTree[Array]) -> PyTree[Array]:
        vector, _ = ravel_pytree(vector)
        inside = lambda v: (jacobian @ v) @ basis
        back = lambda rows: (basis @ rows) @ jacobian
        outside = vector - back(inside(vector))
        outside = outside - back(inside(outside))  # once more: rounding is divided by the damping
        return unravel(back(inverted @ inside(vector)) + outside / damping)

    return damped_solver(
        system.product,
        damping=damping,
        num_iterations=system.num_iterations,
        precondition=precondition,
    )


@sequential_vmap  # see `positive_definite_inverse`
def _decomposed(matrix: Float[Array, "R R"]) -> tuple[Float[Array, " R"], Float[Array, "R R"]]:
    """Returns the eigenvalues of a symmetric matrix, the smallest first, and its eigenvectors."""
    return jnp.linalg.eigh(matrix)
