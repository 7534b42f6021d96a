"""The solution of (F + damping I) x = g in the space of the outputs, for batches with few outputs.

F = J^T M J. Its number of eigenvalues above 0 is at most the number of outputs of the batch,
R = examples times parameters of a distribution. With J J^T = V D V^T, the columns of
Q = J^T V D^-1/2 are orthonormal, and

    x = Q (D^1/2 V^T M V D^1/2 + damping I)^-1 Q^T g + (g - Q Q^T g) / damping.

The matrix to invert has R rows. In quantum Monte Carlo, this idea is known as minSR (Chen and Heyl
2024, arXiv:2302.01941). It needs memory for R P + R^2 numbers and about 6 R^2 P multiplications,
with P the number of parameters. This cost does not depend on the damping. With
conjugate gradient, a smaller damping needs more products.
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

MOST_OUTPUTS = 8192  # a square matrix of this size takes 256 MiB in float32


def sample_space_solver(system: System) -> Solve:
    """Returns the function that solves a system in the space of its outputs.

    Eigenvalues of J J^T below about 1e-7 of the largest one are lost in float32. So iterations of
    conjugate gradient with exact products follow. One iteration is enough if no outputs are nearly
    linearly dependent. The residual shows whether it was enough.

    Raises:
        ConfigurationError: if the batch has too many outputs.

    Examples:
        >>> inputs, labels = jnp.eye(3), jnp.array([0, 1, 0])
        >>> distribution_fn = lambda params: trpo_jax.Categorical(inputs @ params)
        >>> loss_fn = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
        >>> params = jnp.zeros((3, 2))
        >>> optimizer = trpo_jax.natural_gradient(
        ...     max_kl=0.01, damping=1e-4, cg_iters=1, solver=trpo_jax.sample_space_solver
        ... )
        >>> updates, state = optimizer.update(
        ...     jax.grad(loss_fn)(params),
        ...     optimizer.init(params),
        ...     params,
        ...     distribution_fn=distribution_fn,
        ... )
        >>> bool(state.info.residual < 1e-3)
        True
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
            f"The batch has {size:,} outputs. sample_space_solver allows at most "
            f"{MOST_OUTPUTS:,}. Use fewer examples, or conjugate gradient (solver=None)."
        )

    def to_rows(tree: PyTree[Array]) -> Float[Array, " R"]:
        """Returns the numbers that depend on the parameters, as one vector."""
        return ravel_pytree(kept(jax.tree.leaves(tree)))[0]

    def to_outputs(rows: Float[Array, " R"]) -> PyTree[Array]:
        """Returns a tangent of the distribution. It is 0 where the distribution is constant."""
        found = iter(to_leaves(rows))
        pairs = zip(leaves, depends, strict=True)
        return structure.unflatten(next(found) if y else jnp.zeros_like(x) for x, y in pairs)

    def metric(rows: Float[Array, " R"]) -> Float[Array, " R"]:
        return to_rows(mean_fisher_product(distribution, to_outputs(rows), system.weights))

    damping = system.damping
    with jax.default_matmul_precision("float32"):
        jacobian = jax.vmap(lambda row: vjp(to_outputs(row))[0])(jnp.eye(size, dtype=params.dtype))
        eigenvalues, vectors = _decomposed(jacobian @ jacobian.T)
        # Smaller eigenvalues are rounding errors. A reasonable damping is larger than F there.
        felt = eigenvalues > size * jnp.finfo(params.dtype).eps * eigenvalues[-1]
        roots = jnp.sqrt(jnp.where(felt, eigenvalues, 0.0))
        scaled = vectors * roots
        inner = scaled.T @ jax.vmap(metric, in_axes=1, out_axes=1)(scaled)
        inverted = positive_definite_inverse(inner + damping * jnp.eye(size, dtype=inner.dtype))
        basis = vectors * jnp.where(felt, 1 / jnp.where(felt, roots, 1.0), 0.0)

    @jax.default_matmul_precision("float32")  # also if it is called outside of this function
    def precondition(vector: PyTree[Array]) -> PyTree[Array]:
        vector, _ = ravel_pytree(vector)
        inside = lambda v: (jacobian @ v) @ basis
        back = lambda rows: (basis @ rows) @ jacobian
        outside = vector - back(inside(vector))
        # The projection is repeated, because the division by the damping amplifies rounding errors.
        outside = outside - back(inside(outside))
        return unravel(back(inverted @ inside(vector)) + outside / damping)

    return damped_solver(
        system.product,
        damping=damping,
        num_iterations=system.num_iterations,
        precondition=precondition,
    )


@sequential_vmap  # see `positive_definite_inverse`
def _decomposed(matrix: Float[Array, "R R"]) -> tuple[Float[Array, " R"], Float[Array, "R R"]]:
    """Returns the eigenvalues of a symmetric matrix in ascending order, and its eigenvectors."""
    return jnp.linalg.eigh(matrix)
