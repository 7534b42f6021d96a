import functools

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


def surrogate_of(actions, seed=0, scale=1.0):
    advantages = np.random.default_rng((seed, 3)).normal(size=(2, 3))
    return importance_sampled_surrogate(actions, jnp.asarray(scale * advantages))


def problem(name, seed=0):
    params, distribution_fn, actions = policies(seed)[name]
    advantages = jax.device_put(np.random.default_rng((seed, 3)).normal(size=(2, 3)))
    return params, distribution_fn, importance_sampled_surrogate(actions, advantages)


def solver(params, distribution_fn, damping=0.1, iterations=50):
    fvp = fisher_vector_product(distribution_fn, params)
    return damped_solver(fvp, damping=damping, num_iterations=iterations)


def step(name, seed=0, **changes):
    """Returns the parameters before and after a step, and what was measured."""
    settings = SETTINGS | changes
    iterations = settings.pop("cg_iters", 50)

    params, distribution_fn, surrogate = problem(name, seed)

    @jax.jit
    def run(params):
        solve = solver(params, distribution_fn, settings["damping"], iterations)
        return trust_region_step(params, distribution_fn, surrogate, solve, **settings)

    return params, *run(params)


def surrogate_gradient(params, distribution_fn, surrogate):
    old = distribution_fn(params)
    return jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)


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
@pytest.mark.parametrize(("name", "seed"), [("categorical", 2), ("gaussian", 0)])
def test_kl_peak_bounds_the_kl_at_every_state_and_does_not_change_smaller_steps(name, seed):
    params, free, unbounded = step(name, seed)
    ratio = float(unbounded.kl_max / 0.01)
    assert ratio > 1.5
    new, bounded = step(name, seed, kl_peak=0.5 * ratio)[1:]
    _, distribution_fn, _ = problem(name, seed)
    kl = distribution_fn(params).kl(distribution_fn(new))
    assert 0.3 * ratio * 0.01 < kl.max() <= 0.5 * ratio * 0.01
    np.testing.assert_allclose(bounded.kl_max, kl.max())
    assert 0 < bounded.step_fraction < unbounded.step_fraction
    chex.assert_trees_all_equal(step(name, seed, kl_peak=1.01 * ratio)[1], free)
    assert step(name, seed, kl_peak=1e-6 * ratio)[2].step_rejected


def natural_steps(**choices):
    """Returns a step, as one vector, for each value of a setting; the gradient; the dense F."""
    ((name, values),) = choices.items()
    params, distribution_fn, surrogate = problem("gaussian")

    @jax.jit
    def steps(params):
        gradient = surrogate_gradient(params, distribution_fn, surrogate)
        solve = solver(params, distribution_fn)
        results = []
        for value in values:
            found = natural_step(gradient, solve, max_kl=0.01, damping=0.1, **{name: value})
            results.append(found._replace(step=ravel_pytree(found.step)[0]))
        return results, ravel_pytree(gradient)[0], dense_fisher(distribution_fn, params)

    return jax.device_get(steps(params))


def test_a_penalty_ends_the_step_where_the_penalised_model_is_largest():
    (edge, weak, inside), gradient, fisher = natural_steps(kl_penalty=(0.0, 0.1, 30.0))
    np.testing.assert_array_equal(weak.step, edge.step)
    metric = fisher + 0.1 * np.eye(len(fisher))
    np.testing.assert_allclose(30.0 * metric @ inside.step, gradient, atol=1e-8)
    np.testing.assert_allclose(inside.predicted_gain, gradient @ inside.step)
    assert inside.step @ metric @ inside.step / 2 < 0.01


def test_gradient_of_the_surrogate_is_the_policy_gradient():
    params, distribution_fn, actions = policies(0)["gaussian"]

    @jax.jit
    def gradients(params, advantages):
        surrogate = importance_sampled_surrogate(actions, advantages)
        score = lambda p: jnp.mean(distribution_fn(p).log_prob(actions) * advantages)
        return surrogate_gradient(params, distribution_fn, surrogate), jax.grad(score)(params)

    gradient, score = gradients(params, np.random.default_rng(3).normal(size=(2, 3)))
    chex.assert_trees_all_close(gradient, score, rtol=1e-9)


def test_the_full_step_solves_the_damped_system_and_reaches_the_edge():
    results, gradient, fisher = natural_steps(damped_scaling=(False, True))
    damped = fisher + 0.1 * np.eye(len(fisher))
    direction = np.linalg.solve(damped, gradient)
    for damped_scaling, result in zip((False, True), results, strict=True):
        step = result.step
        metric = damped if damped_scaling else fisher
        np.testing.assert_allclose(step @ metric @ step / 2, 0.01, rtol=1e-6)
        scale = np.linalg.norm(step) / np.linalg.norm(direction)
        np.testing.assert_allclose(step, scale * direction, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(result.gradient_dot_direction, gradient @ direction, rtol=1e-6)
        np.testing.assert_allclose(result.predicted_gain, gradient @ step, rtol=1e-6)
    # With the damped metric, the step is too short, because the damping counts as curvature.
    assert step @ fisher @ step / 2 < 0.0095


def test_the_undamped_length_is_bounded_if_the_gradient_is_not_in_the_range_of_f():
    """F = diag(1, 0). Conjugate gradient with a damping of 0.1 solves the system exactly."""

    @jax.jit
    @jax.vmap
    def lengths(gradient):
        solve = damped_solver(lambda v: v * jnp.array([1.0, 0.0]), damping=0.1, num_iterations=5)
        step = lambda x: natural_step(gradient, solve, max_kl=0.01, damping=0.1, damped_scaling=x)
        return [jnp.linalg.norm(step(x).step) for x in (True, False)]

    damped, undamped = map(np.asarray, lengths(np.array([[0, 0.05], [1e-9, 0.05], [0.05, 0.05]])))
    # In the first two cases, F does not see the step, so the length is the damped one.
    np.testing.assert_allclose(undamped[:2] / damped[:2], 1, rtol=1e-6)
    np.testing.assert_allclose(undamped[:2], 0.447, rtol=1e-3)
    assert 1 <= undamped[2] / damped[2] <= 10 + 1e-9


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


@functools.cache
def categorical_step():
    """Returns parameters, and the program of a step from them with given advantages."""
    params, distribution_fn, actions = policies(0)["categorical"]

    @jax.jit
    def step(params, advantages):
        surrogate = importance_sampled_surrogate(actions, advantages)
        solve = solver(params, distribution_fn)
        return trust_region_step(params, distribution_fn, surrogate, solve, **SETTINGS)

    return params, step


def test_a_rejected_step_leaves_the_parameters_exactly_the_same():
    params, step = categorical_step()
    for broken in (np.nan, 0.0):
        new, info = step(params, np.full((2, 3), broken))
        assert info.step_rejected
        assert info.kl == 0
        assert info.step_fraction == 0
        assert info.surrogate_gain == 0
        chex.assert_trees_all_equal(new, params)


def test_the_step_does_not_change_with_the_scale_of_the_advantages():
    params, step = categorical_step()
    advantages = np.random.default_rng(3).normal(size=(2, 3))
    (small, info), (large, _) = step(params, advantages), step(params, 1e3 * advantages)
    assert not info.step_rejected
    chex.assert_trees_all_close(small, large, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "seed"), [("state_dependent_gaussian", 10), ("gaussian", 11), ("categorical", 2)]
)
def test_the_line_search_checks_the_kl_from_old_to_new(name, seed):
    """KL(old || new) of the full step is too large, but KL(new || old) is not."""
    settings = {"max_kl": 0.5, "damping": 0.1, "damped_scaling": False}
    params, distribution_fn, surrogate = problem(name, seed)

    @jax.jit
    def run(params):
        old = distribution_fn(params)
        solve = solver(params, distribution_fn)
        gradient = surrogate_gradient(params, distribution_fn, surrogate)
        full = natural_step(gradient, solve, **settings).step
        too_far = distribution_fn(jax.tree.map(jnp.add, params, full))
        kls = too_far.kl(old).mean(), old.kl(too_far).mean()
        gain = surrogate(too_far, old) - surrogate(old, old)
        new, info = trust_region_step(
            params, distribution_fn, surrogate, solve, **(SETTINGS | settings)
        )
        return kls, gain, info, old.kl(distribution_fn(new)).mean()

    (backward, forward), gain, info, kl = run(params)
    assert backward < 0.5 < forward
    assert gain > 0
    assert 0 < info.step_fraction < 1
    assert kl <= 0.5
    np.testing.assert_allclose(info.kl, kl)
