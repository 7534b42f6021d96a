import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import POLICIES, policies

from trpo_jax.fisher import dense_fisher, fisher_vector_product
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import importance_sampled_surrogate, natural_step, trust_region_step

pytestmark = pytest.mark.usefixtures("x64")

SETTINGS = {
    "max_kl": 0.01,
    "damping": 0.1,
    "line_search_steps": 10,
    "line_search_shrink": 0.8,
}


def problem(name, seed=0):
    params, distribution_fn = policies(jax.random.key(seed))[name]
    actions = distribution_fn(params).sample(jax.random.key(seed + 1))
    advantages = jax.random.normal(jax.random.key(seed + 2), (2, 3))
    return params, distribution_fn, importance_sampled_surrogate(actions, advantages)


def solver(params, distribution_fn, damping=0.1, iterations=50):
    fvp = fisher_vector_product(distribution_fn, params)
    return damped_solver(fvp, damping=damping, num_iterations=iterations)


def step(name, seed=0, **changes):
    params, distribution_fn, surrogate = problem(name, seed)
    iterations = changes.pop("cg_iters", 50)
    settings = SETTINGS | changes
    solve = solver(params, distribution_fn, settings["damping"], iterations)
    new, info = trust_region_step(params, distribution_fn, surrogate, solve, **settings)
    return params, new, info


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_accepted_step_improves_the_surrogate_inside_the_region(name, seed):
    params, distribution_fn, surrogate = problem(name, seed)
    _, new, info = step(name, seed)
    assert not info.step_rejected
    old_distribution, new_distribution = distribution_fn(params), distribution_fn(new)
    kl = old_distribution.kl(new_distribution)
    gain = surrogate(new_distribution, old_distribution) - surrogate(
        old_distribution, old_distribution
    )
    assert 0 < kl.mean() <= 0.01
    assert gain > 0
    np.testing.assert_allclose(info.kl, kl.mean())
    np.testing.assert_allclose(info.kl_max, kl.max())
    np.testing.assert_allclose(info.surrogate_gain, gain)
    np.testing.assert_allclose(info.entropy, new_distribution.entropy().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_kl_peak_bounds_the_kl_at_every_state_and_does_not_change_smaller_steps(name):
    params, free, unbounded = step(name)
    ratio = float(unbounded.kl_max / 0.01)
    assert ratio > 1.5
    new, bounded = step(name, kl_peak=0.5 * ratio)[1:]
    _, distribution_fn, _ = problem(name)
    kl = distribution_fn(params).kl(distribution_fn(new))
    assert 0.3 * ratio * 0.01 < kl.max() <= 0.5 * ratio * 0.01
    np.testing.assert_allclose(bounded.kl_max, kl.max())
    assert 0 < bounded.step_fraction < unbounded.step_fraction
    chex.assert_trees_all_equal(step(name, kl_peak=1.01 * ratio)[1], free)
    assert step(name, kl_peak=1e-6 * ratio)[2].step_rejected


def test_gradient_of_the_surrogate_is_the_policy_gradient():
    params, distribution_fn = policies(jax.random.key(0))["gaussian"]
    actions = distribution_fn(params).sample(jax.random.key(1))
    advantages = jax.random.normal(jax.random.key(2), (2, 3))
    surrogate = importance_sampled_surrogate(actions, advantages)
    old = distribution_fn(params)
    gradient = jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)
    score = jax.grad(lambda p: jnp.mean(distribution_fn(p).log_prob(actions) * advantages))(params)
    chex.assert_trees_all_close(gradient, score, rtol=1e-9)


@pytest.mark.parametrize("damped_scaling", [False, True])
def test_the_full_step_solves_the_damped_system_and_reaches_the_edge(damped_scaling):
    params, distribution_fn, surrogate = problem("gaussian")
    old = distribution_fn(params)
    gradient = jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)
    solve = solver(params, distribution_fn)
    result = natural_step(gradient, solve, max_kl=0.01, damping=0.1, damped_scaling=damped_scaling)
    flat_step, _ = ravel_pytree(result.step)
    flat_gradient, _ = ravel_pytree(gradient)
    fisher = dense_fisher(distribution_fn, params)
    damped = fisher + 0.1 * jnp.eye(len(fisher))
    direction = jnp.linalg.solve(damped, flat_gradient)
    metric = damped if damped_scaling else fisher
    np.testing.assert_allclose(flat_step @ metric @ flat_step / 2, 0.01, rtol=1e-6)
    scale = jnp.linalg.norm(flat_step) / jnp.linalg.norm(direction)
    np.testing.assert_allclose(flat_step, scale * direction, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(result.gradient_dot_direction, flat_gradient @ direction, rtol=1e-6)
    np.testing.assert_allclose(result.predicted_gain, flat_gradient @ flat_step, rtol=1e-6)
    if damped_scaling:  # the step is too short, because the damping counts as curvature
        assert flat_step @ fisher @ flat_step / 2 < 0.0095


@pytest.mark.parametrize("gradient", [(0.0, 0.05), (1e-9, 0.05), (0.05, 0.05)])
def test_the_undamped_length_is_bounded_if_the_gradient_is_not_in_the_range_of_f(gradient):
    """F = diag(1, 0). Conjugate gradient with a damping of 0.1 solves the system exactly."""
    gradient = jnp.array(gradient)
    solve = damped_solver(lambda v: v * jnp.array([1.0, 0.0]), damping=0.1, num_iterations=5)
    damped, undamped = (
        natural_step(gradient, solve, max_kl=0.01, damping=0.1, damped_scaling=x).step
        for x in (True, False)
    )
    ratio = jnp.linalg.norm(undamped) / jnp.linalg.norm(damped)
    if gradient[0] < 1e-8:  # F does not see the step, so the length is the damped one
        np.testing.assert_allclose(ratio, 1, rtol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(undamped), 0.447, rtol=1e-3)
    assert 1 <= ratio <= 10 + 1e-9


def test_a_small_step_has_the_predicted_gain_and_about_the_allowed_kl():
    _, _, info = step("gaussian", max_kl=1e-8)
    np.testing.assert_allclose(info.surrogate_gain_ratio, 1, rtol=1e-3)
    np.testing.assert_allclose(info.kl, 1e-8, rtol=0.5)
    assert info.cg_residual < 1e-6


def test_few_iterations_leave_a_large_residual():
    _, _, one = step("gaussian", cg_iters=1, damping=1e-3)
    _, _, many = step("gaussian", cg_iters=100, damping=1e-3)
    assert one.cg_residual > 0.05
    assert many.cg_residual < 1e-6
    assert one.cg_iterations == 1


@pytest.mark.parametrize("broken", [jnp.nan, 0.0])
def test_a_rejected_step_leaves_the_parameters_exactly_the_same(broken):
    params, distribution_fn, _ = problem("categorical")
    actions = distribution_fn(params).sample(jax.random.key(1))
    surrogate = importance_sampled_surrogate(actions, jnp.full((2, 3), broken))
    solve = solver(params, distribution_fn)
    new, info = trust_region_step(params, distribution_fn, surrogate, solve, **SETTINGS)
    assert info.step_rejected
    assert info.kl == 0
    assert info.step_fraction == 0
    assert info.surrogate_gain == 0
    chex.assert_trees_all_equal(new, params)


def test_the_step_does_not_change_with_the_scale_of_the_advantages():
    params, distribution_fn = policies(jax.random.key(0))["categorical"]
    actions = distribution_fn(params).sample(jax.random.key(1))
    advantages = jax.random.normal(jax.random.key(2), (2, 3))
    solve = solver(params, distribution_fn)
    small, large = (
        trust_region_step(
            params,
            distribution_fn,
            importance_sampled_surrogate(actions, scale * advantages),
            solve,
            **SETTINGS,
        )[0]
        for scale in (1.0, 1e3)
    )
    chex.assert_trees_all_close(small, large, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "seed"), [("state_dependent_gaussian", 3), ("gaussian", 3), ("categorical", 4)]
)
def test_the_line_search_checks_the_kl_from_old_to_new(name, seed):
    """KL(old || new) of the full step is too large, but KL(new || old) is not."""
    params, distribution_fn, surrogate = problem(name, seed)
    old = distribution_fn(params)
    solve = solver(params, distribution_fn)
    gradient = jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)
    settings = {"max_kl": 0.5, "damping": 0.1, "damped_scaling": False}
    full = natural_step(gradient, solve, **settings).step
    too_far = distribution_fn(jax.tree.map(jnp.add, params, full))
    assert too_far.kl(old).mean() < 0.5 < old.kl(too_far).mean()
    assert surrogate(too_far, old) > surrogate(old, old)

    new_params, info = trust_region_step(
        params, distribution_fn, surrogate, solve, **(SETTINGS | settings)
    )
    assert 0 < info.step_fraction < 1
    forward = old.kl(distribution_fn(new_params)).mean()
    assert forward <= 0.5
    np.testing.assert_allclose(info.kl, forward)
