"""Steps that respect a limit equal the results of searches, solvers and other formulas."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import mlp, mlp_params
from scipy.optimize import minimize

from trpo_jax.constraints import (
    CostSide,
    constrained_step,
    cost_acceptance,
    cost_surrogate,
    projected_step,
)
from trpo_jax.distributions import Categorical, DiagGaussian
from trpo_jax.fisher import dense_fisher, fisher_vector_product
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import (
    NaturalStep,
    importance_sampled_surrogate,
    natural_step,
    surrogate_gradient,
)

pytestmark = pytest.mark.usefixtures("x64")


class Program(NamedTuple):
    """maximise g.x subject to c + b.x <= 0 and 1/2 x^T H x <= max_kl."""

    g: np.ndarray
    b: np.ndarray
    c: float
    matrix: np.ndarray
    max_kl: float


def random_program(seed):
    """Returns a random program in two or three dimensions. Its plane may miss the region."""
    rng = np.random.default_rng(seed)
    size = 2 + seed % 2
    root = rng.normal(size=(size, size))
    matrix = root @ root.T + 0.2 * np.eye(size)
    g, b = rng.normal(size=(2, size))
    max_kl = np.exp(rng.uniform(np.log(1e-3), 0.0))
    lowest = np.sqrt(2 * max_kl * b @ np.linalg.solve(matrix, b))  # largest |b.x| in the region
    return Program(g, b, rng.uniform(-1.6, 1.4) * lowest, matrix, max_kl)


def plain_solution(program):
    direction = np.linalg.solve(program.matrix, program.g)
    return np.sqrt(2 * program.max_kl / (program.g @ direction)) * direction


@jax.jit
def solve(program):
    """Returns the solution of the program, and the plain step projected in both metrics."""
    direction = lambda vector: jnp.linalg.solve(program.matrix, vector)
    length = jnp.sqrt(2 * program.max_kl / (program.g @ direction(program.g)))
    # The functions only use the step.
    plain = NaturalStep(length * direction(program.g), *[jnp.zeros(())] * 3, jnp.zeros((), int))
    cost = CostSide(program.b, direction(program.b), program.c)
    found = constrained_step(program.g, plain, cost, program.max_kl)
    return found, *(projected_step(program.g, plain, cost, by_kl) for by_kl in (True, False))


def searched(program):
    """Returns the best point on the edge of a region in two dimensions, by a search over angles.

    If no point on the edge is feasible, the best point is the one with the lowest cost.
    """
    centre, width = np.pi, np.pi
    for _ in range(12):
        angles = np.linspace(centre - width, centre + width, 4001)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        curvature = np.einsum("ni,ij,nj->n", directions, program.matrix, directions)
        points = directions * np.sqrt(2 * program.max_kl / curvature)[:, None]
        feasible = program.c + points @ program.b <= 0
        better = points @ program.g if feasible.any() else -points @ program.b
        best = np.where(feasible | ~feasible.any(), better, -np.inf).argmax()
        centre, width = angles[best], width / 20
    return points[best]


def by_solver(program, limited=True):
    """Returns the best point that a general solver finds from several starts."""
    root = np.linalg.inv(np.linalg.cholesky(program.matrix)).T * np.sqrt(2 * program.max_kl)
    g, b = root.T @ program.g, root.T @ program.b  # x = root y with |y| <= 1
    scale = np.linalg.norm(b)
    objective = g / np.linalg.norm(g) if limited else -b / scale
    functions = [(lambda y: 1 - y @ y, lambda y: -2 * y)]
    functions += [(lambda y: -(program.c + b @ y) / scale, lambda y: -b / scale)] * limited
    found = []
    for start in np.random.default_rng(0).normal(size=(4, len(g))):
        result = minimize(
            lambda y: -objective @ y,
            start / np.linalg.norm(start),
            jac=lambda y: -objective,
            constraints=[{"type": "ineq", "fun": f, "jac": jac} for f, jac in functions],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        if all(function(result.x) > -1e-9 for function, _ in functions):
            found.append(result.x)
    return root @ max(found, key=lambda y: objective @ y)


def by_multipliers(program, sign, clamped=False):
    """Returns the step of published code, with two multipliers and an ascent gradient g.

    The step is H^-1 (g - nu b) / lambda with nu = max(0, lambda c + sign r) / s and r = g.H^-1 b.
    The plane c + b.x = 0 gives the sign +1. The sign -1 is right for a descent gradient, but some
    code uses it with an ascent gradient. Each candidate for lambda has an interval. One interval
    may be empty, because its high end is below 0. The candidate is then 0 and is not chosen. If it
    is clamped to the high end instead, it is negative and may be chosen.
    """
    g, b, c, matrix, max_kl = program
    along, against = np.linalg.solve(matrix, g), np.linalg.solve(matrix, b)
    q, r, s = g @ along, -sign * g @ against, b @ against
    inside, left = q - r**2 / s, 2 * max_kl - c**2 / s
    if left < 0:
        return np.sqrt(2 * max_kl / q) * along if c < 0 else -np.sqrt(2 * max_kl / s) * against

    def between(x, low, high):
        return min(max(x, low), high) if clamped else max(min(x, high), low)

    of_plane, of_region = [(0, r / c), (r / c, np.inf)][:: 1 if c < 0 else -1]
    plane = between(np.sqrt(inside / left), *of_plane) + 1e-8
    region = between(np.sqrt(q / (2 * max_kl)), *of_region) + 1e-8
    by_plane = -0.5 * (inside / plane + left * plane) - r * c / s
    by_region = -0.5 * (q / region + 2 * max_kl * region)
    price = plane if by_plane >= by_region else region
    return (along - max(price * c - r, 0) / s * against) / price


def kind(program):
    """Returns the name of the case of a program, from its geometry."""
    step = np.linalg.solve(program.matrix, program.b)
    lowest = np.sqrt(2 * program.max_kl * program.b @ step)
    if program.c > lowest:
        return "recovery"
    if program.c < -lowest:
        return "all feasible"
    if program.c + program.b @ plain_solution(program) <= 0:
        return "inactive beside a cut"
    return "active from inside" if program.c <= 0 else "active from outside"


KINDS = (
    "all feasible",
    "inactive beside a cut",
    "active from inside",
    "active from outside",
    "recovery",
)


@pytest.fixture(scope="module")
def programs():
    return [random_program(seed) for seed in range(500)]


@pytest.mark.slow
def test_the_step_is_the_best_point_of_the_region_and_the_half_plane(programs):
    counts = dict.fromkeys(KINDS, 0)
    for program in programs:
        found, case = solve(program)[0], kind(program)
        counts[case] += 1
        x = np.asarray(found.step.step)
        assert 0.5 * x @ program.matrix @ x <= program.max_kl * (1 + 1e-9)
        assert bool(found.active) == (case not in KINDS[:2])
        assert bool(found.recovery) == (case == "recovery")
        flat = len(program.g) == 2
        best = searched(program) if flat else by_solver(program, limited=case != "recovery")
        if found.active:
            np.testing.assert_allclose(found.step.predicted_gain, program.g @ x)
        if case == "recovery":
            np.testing.assert_allclose(program.b @ x, program.b @ best, rtol=1e-6)
            continue
        assert program.c + program.b @ x <= 1e-9
        most = program.g @ plain_solution(program)
        assert abs(program.g @ x - program.g @ best) <= 1e-4 * most
    assert min(counts.values()) > 20, counts


def test_the_wrong_sign_breaks_limits_that_a_step_can_keep(programs):
    """`docs/constraints.md` reports these numbers."""
    kept = [program for program in programs if kind(program) != "recovery"]

    def faults(sign, clamped):
        """Returns how many steps break the limit, and how many others lower the surrogate."""
        broken = worse = 0
        for program in kept:
            x, unit = by_multipliers(program, sign, clamped), np.sqrt(2 * program.max_kl)
            above = program.c + program.b @ x > 1e-6 * unit
            broken += above
            worse += not above and program.c < 0 and program.g @ x < 0
        return broken, worse

    for program in kept:
        right = by_multipliers(program, 1)
        np.testing.assert_allclose(solve(program)[0].step.step, right, rtol=1e-4, atol=1e-6)
    assert len(kept) == 424
    assert faults(1, clamped=False) == (0, 0)
    assert faults(-1, clamped=False) == (151, 0)
    assert faults(1, clamped=True) == (0, 82)
    assert faults(-1, clamped=True) == (169, 74)


def test_the_example_in_the_documentation():
    example = Program(np.array([1.0, 0.0]), np.array([0.6, 0.8]), -0.1, np.eye(2), 0.5)
    np.testing.assert_allclose(solve(example)[0].step.step, [0.856, -0.517], atol=5e-4)
    np.testing.assert_allclose(by_multipliers(example, -1), [1, 0], atol=5e-4)
    np.testing.assert_allclose(by_multipliers(example, -1, clamped=True), [-0.167, 0], atol=5e-4)


@pytest.mark.parametrize("c", [-0.3, 0.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_ends_on_a_plane_that_is_perpendicular_to_the_gradient(c, sign):
    """The gradient has no part inside the plane."""
    b = np.array([0.3, 0.4])
    program = Program(sign * b, b, c, np.eye(2), 2.0)
    found, *_ = solve(program)
    x = np.asarray(found.step.step)
    if sign < 0:
        assert not found.active
        np.testing.assert_allclose(x, plain_solution(program))
    else:
        assert found.active
        np.testing.assert_allclose(x, -c * b / 0.25, rtol=1e-6)


@pytest.mark.parametrize("c", [-1.0, 0.0, 1.0])
def test_a_cost_that_no_action_changes_does_not_change_the_step(c):
    program = Program(np.array([1.0, 2.0]), np.zeros(2), c, np.eye(2), 0.1)
    for found in solve(program):
        assert not found.active
        assert not found.recovery
        np.testing.assert_allclose(found.step.step, plain_solution(program))


def test_a_limit_outside_of_the_region_does_not_change_the_step_of_an_inexact_solve():
    """An inexact solve gives a plain step that leaves the region and crosses the plane."""
    plain = NaturalStep(jnp.array([2.0]), *[jnp.zeros(())] * 3, jnp.zeros((), int))
    cost = CostSide(jnp.ones(1), jnp.array([0.1]), jnp.asarray(-1.0))
    found = jax.jit(constrained_step)(np.ones(1), plain, cost, 0.05)
    assert not found.active
    assert not found.recovery
    np.testing.assert_array_equal(found.step.step, plain.step)


@pytest.mark.parametrize("by_kl", [True, False])
def test_the_projected_step_is_the_nearest_point_within_the_limit(programs, by_kl):
    moved = 0
    for program in programs[:60]:
        metric = program.matrix if by_kl else np.eye(len(program.g))
        plain = plain_solution(program)
        found = solve(program)[1 if by_kl else 2]
        size = np.linalg.norm(plain)
        nearest = (
            plain
            + size
            * minimize(  # in units of the length of the plain step
                lambda x, metric=metric: x @ metric @ x,
                np.zeros_like(plain),
                jac=lambda x, metric=metric: 2 * metric @ x,
                constraints={
                    "type": "ineq",
                    "fun": lambda x, p=program, plain=plain, size=size: (
                        -(p.c + p.b @ plain) / size - p.b @ x
                    ),
                    "jac": lambda x, p=program: -p.b,
                },
                method="SLSQP",
                options={"ftol": 1e-14},
            ).x
        )
        np.testing.assert_allclose(found.step.step, nearest, atol=1e-6 * size)
        assert bool(found.active) == (program.c + program.b @ plain > 0)
        if found.active:
            gain = program.g @ np.asarray(found.step.step)
            np.testing.assert_allclose(found.step.predicted_gain, gain)
        moved += bool(found.active)
    assert 20 < moved < 60


@functools.cache
def on_network(kind):
    """Returns the step of a policy at 64 states, and the numbers for a dense computation of it.

    The step is a function of the excess. The numbers are the Fisher matrix, the gradient of the
    log-probability of each action, the advantages, and the advantages of the cost.
    """
    rng = np.random.default_rng(0)
    observations = jax.device_put(rng.normal(size=(16, 4, 3)))
    advantages, cost_advantages = jax.device_put(tuple(rng.normal(size=(2, 16, 4)) + 3))
    params = mlp_params(0, (3, 4, 2))

    def distribution_fn(params):
        outputs = mlp(params, observations)
        if kind == "categorical":
            return Categorical(outputs)
        return DiagGaussian(outputs[..., :1], 0.3 * outputs[..., 1:])

    @jax.jit
    def dense(params, key):
        flat, unravel = ravel_pytree(params)
        actions = distribution_fn(params).sample(key)
        log_probs = lambda flat: jnp.ravel(distribution_fn(unravel(flat)).log_prob(actions))
        return actions, dense_fisher(distribution_fn, params), jax.jacfwd(log_probs)(flat)

    actions, fisher, scores = dense(params, jax.random.key(0))
    surrogates = (
        importance_sampled_surrogate(actions, advantages),
        cost_surrogate(actions, cost_advantages),
    )

    @jax.jit
    def step(excess):
        g, b = (surrogate_gradient(params, distribution_fn, x) for x in surrogates)
        product = fisher_vector_product(distribution_fn, params)
        solver = damped_solver(product, damping=0.1, num_iterations=60)
        plain = natural_step(g, solver, max_kl=0.01, damping=0.1)
        found = constrained_step(g, plain, CostSide(b, solver(b).x, excess), 0.01)
        return found, *(ravel_pytree(x)[0] for x in (found.step.step, g, b))

    return step, *map(np.asarray, (fisher, scores)), *map(np.ravel, (advantages, cost_advantages))


@pytest.mark.parametrize("c", [-1.0, -0.03, 1e-9, 0.01, 1.0])
@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_the_step_of_a_network_equals_the_dense_step(name, c):
    step, fisher, scores, advantages, cost_advantages = on_network(name)
    found, flat, g, b = step(c)
    np.testing.assert_allclose(g, advantages @ scores / 64, atol=1e-12)
    centred = cost_advantages - cost_advantages.mean()
    np.testing.assert_allclose(b, centred @ scores / 64, atol=1e-12)
    damped = fisher + 0.1 * np.eye(len(fisher))
    program = Program(np.asarray(g), np.asarray(b), c, damped, 0.01)
    expected = by_multipliers(program, 1)
    np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert bool(found.recovery) == (kind(program) == "recovery") == (c == 1)
    assert bool(found.active) == (kind(program) in KINDS[2:])


def test_the_surrogate_of_a_cost_is_the_change_of_the_cost():
    """It is 0 at the old policy, and a constant added to the advantages does not change it."""
    keys = jax.random.split(jax.random.key(0), 3)
    old, new = (Categorical(jax.random.normal(key, (6, 3))) for key in keys[:2])
    actions, advantages = jnp.array([0, 1, 2, 2, 1, 0]), jax.random.normal(keys[2], (6,))
    surrogate = cost_surrogate(actions, advantages)
    assert surrogate(old, old) == 0
    ratios = np.exp(np.asarray(new.log_prob(actions) - old.log_prob(actions)))
    expected = np.mean((ratios - 1) * np.asarray(advantages - advantages.mean()))
    np.testing.assert_allclose(surrogate(new, old), expected)
    np.testing.assert_allclose(cost_surrogate(actions, advantages + 7)(new, old), expected)


@pytest.mark.parametrize(
    ("excess", "gain", "rise", "accepted"),
    [
        (-0.5, 0.1, 0.4, True),
        (-0.5, 0.1, 0.6, False),
        (-0.5, -0.1, -0.2, False),
        (0.0, 0.1, 0.01, False),
        (0.0, 0.1, -0.01, True),
        (0.0, -0.1, -0.01, False),
        (0.5, -0.1, -0.01, True),
        (0.5, 0.1, 0.01, False),
        (0.5, np.nan, -0.01, False),
        (-0.5, 0.1, np.nan, False),
    ],
)
def test_a_step_may_raise_the_cost_up_to_its_limit(excess, gain, rise, accepted):
    surrogate = lambda new, old: new.logits[0]
    of_cost = lambda new, old: new.logits[1]
    acceptance = cost_acceptance(surrogate, of_cost, jnp.asarray(excess))
    found = acceptance(Categorical(jnp.array([5 + gain, rise])), Categorical(jnp.array([5.0, 0.0])))
    assert bool(jnp.isfinite(found) & (found > 0)) == accepted
