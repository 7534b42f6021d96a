import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.solvers import conjugate_gradient

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 12


def problem(seed=0, spread=3.0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    matrix = jnp.asarray(basis @ np.diag(np.logspace(0, spread, SIZE)) @ basis.T)
    return matrix, jax.random.normal(jax.random.key(seed), (SIZE,))


def test_enough_iterations_give_the_solution_of_cholesky():
    matrix, b = problem()
    result = conjugate_gradient(lambda v: matrix @ v, b, 4 * SIZE)
    expected = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), b)
    np.testing.assert_allclose(result.x, expected, rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_the_residual_is_exact_and_x_a_x_equals_x_b(iterations):
    matrix, b = problem()
    result = conjugate_gradient(lambda v: matrix @ v, b, iterations)
    true_residual = jnp.linalg.norm(b - matrix @ result.x) / jnp.linalg.norm(b)
    np.testing.assert_allclose(result.residual, true_residual, rtol=1e-8)
    assert result.residual > 1e-3
    assert result.iterations == iterations
    np.testing.assert_allclose(result.x @ matrix @ result.x, result.x @ b, rtol=1e-8)


def test_x_stays_after_convergence_and_iterations_are_counted():
    _, b = problem()
    result = conjugate_gradient(lambda v: 3.0 * v, b, 10)
    assert result.iterations == 1
    np.testing.assert_allclose(result.x, b / 3)
    loose = conjugate_gradient(lambda v: problem()[0] @ v, b, 40, tolerance=0.1)
    assert 1 < loose.iterations < 12
    assert loose.residual <= 0.1


def test_a_preconditioner_changes_the_iterates_but_not_the_solution():
    matrix, b = problem()
    diagonal = jnp.diag(matrix)
    product, precondition = lambda v: matrix @ v, lambda v: v / diagonal
    expected = jnp.linalg.solve(matrix, b)
    ended = conjugate_gradient(product, b, 4 * SIZE, precondition=precondition)
    np.testing.assert_allclose(ended.x, expected, rtol=1e-6)
    halfway = conjugate_gradient(product, b, 5, precondition=precondition)
    np.testing.assert_allclose(halfway.x @ matrix @ halfway.x, halfway.x @ b, rtol=1e-8)
    true_residual = jnp.linalg.norm(b - matrix @ halfway.x) / jnp.linalg.norm(b)
    np.testing.assert_allclose(halfway.residual, true_residual, rtol=1e-8)
    root = jnp.sqrt(diagonal)
    scaled = conjugate_gradient(lambda v: (matrix @ (v / root)) / root, b / root, 5)
    np.testing.assert_allclose(halfway.x, scaled.x / root, rtol=1e-8)
    exact = conjugate_gradient(product, b, 5, precondition=lambda v: jnp.linalg.solve(matrix, v))
    np.testing.assert_allclose(exact.x, expected, rtol=1e-8)
    assert exact.iterations == 1


def test_zero_right_hand_side_gives_zero():
    matrix, b = problem()
    result = conjugate_gradient(lambda v: matrix @ v, jnp.zeros_like(b), 5)
    chex.assert_trees_all_equal(result.x, jnp.zeros_like(b))
    assert result.residual == 0
    assert result.iterations == 0


def test_negative_curvature_stops_the_iteration_with_finite_numbers():
    _, b = problem()
    result = conjugate_gradient(lambda v: -v, b, 5)
    np.testing.assert_array_equal(result.x, 0)
    assert result.residual == 1


def test_conjugate_gradient_works_on_trees_and_under_vmap():
    matrix, b = problem()
    single = conjugate_gradient(lambda v: matrix @ v, b, 5)
    split = lambda v: {"a": v[:4], "b": v[4:].reshape(2, 4)}
    join = lambda t: jnp.concatenate([t["a"], t["b"].ravel()])
    tree = conjugate_gradient(lambda t: split(matrix @ join(t)), split(b), 5)
    np.testing.assert_allclose(join(tree.x), single.x)
    scales = jnp.array([1.0, 0.0, 1e-3])
    batch = jax.vmap(lambda s: conjugate_gradient(lambda v: matrix @ v, s * b, 5))(scales)
    np.testing.assert_allclose(batch.x, scales[:, None] * single.x, rtol=1e-8)
