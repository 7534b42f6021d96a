"""Tests the theory of TRPO exactly on small tables (Schulman et al. 2015, section 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.optimize import minimize

from trpo_jax.distributions import Categorical
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import natural_step, search_along, surrogate_gradient

pytestmark = pytest.mark.usefixtures("x64")

NUM_STATES, NUM_ACTIONS = 4, 3


class Table(NamedTuple):
    """A Markov decision process: `transitions[s, a, s']`, `rewards[s, a]`, `start[s]`."""

    transitions: Array
    rewards: Array
    start: Array
    gamma: float


def random_table(seed, gamma):
    generator = np.random.default_rng(seed)
    transitions = generator.dirichlet(np.full(NUM_STATES, 0.5), (NUM_STATES, NUM_ACTIONS))
    rewards = generator.normal(size=(NUM_STATES, NUM_ACTIONS))
    return Table(transitions, rewards, generator.dirichlet(np.ones(NUM_STATES)), gamma)


def evaluate(table, policy):
    """Returns the return eta, the discounted visits rho `[S]` and the advantages `[S, A]`."""
    moves = jnp.einsum("sa,sat->st", policy, table.transitions)
    resolvent = jnp.linalg.inv(jnp.eye(NUM_STATES) - table.gamma * moves)
    values = resolvent @ jnp.sum(policy * table.rewards, axis=1)
    advantages = table.rewards + table.gamma * table.transitions @ values - values[:, None]
    return table.start @ values, table.start @ resolvent, advantages


@jax.jit
def return_of(table, logits):
    return evaluate(table, jax.nn.softmax(logits))[0]


def surrogate_gain(table, old, new):
    """Returns L(new) - eta(old) = sum_s rho(s) sum_a new(a|s) A(s, a)."""
    _, visits, advantages = evaluate(table, old)
    return visits @ jnp.sum(new * advantages, axis=1)


def penalty(table, old):
    """Returns C = 4 eps gamma / (1 - gamma)^2 with eps = max |A|."""
    advantages = evaluate(table, old)[2]
    return 4 * jnp.abs(advantages).max() * table.gamma / (1 - table.gamma) ** 2


def test_the_penalised_surrogate_is_a_lower_bound_of_the_return():
    """Theorem 1, in total variation and in KL, for small and large changes of the policy."""
    table = random_table(0, gamma=0.6)

    @jax.jit
    @jax.vmap
    def sides(key, distance):
        first, second = jax.random.normal(key, (2, NUM_STATES, NUM_ACTIONS))
        old, new = Categorical(2 * first), Categorical(2 * first + distance * second)
        old_policy, new_policy = jax.nn.softmax(old.logits), jax.nn.softmax(new.logits)
        gain = evaluate(table, new_policy)[0] - evaluate(table, old_policy)[0]
        promised = surrogate_gain(table, old_policy, new_policy)
        variation = jnp.max(jnp.abs(new_policy - old_policy).sum(axis=1) / 2)
        weight = penalty(table, old_policy)
        return gain, promised, weight * variation**2, weight * old.kl(new).max()

    keys = jax.random.split(jax.random.key(1), 500)
    gain, promised, in_variation, in_kl = map(np.asarray, sides(keys, np.geomspace(1e-2, 10, 500)))
    assert (gain >= promised - in_variation - 1e-12).all()
    assert (in_variation <= in_kl + 1e-12).all()
    assert (gain < promised - 1e-3).sum() > 50  # without the penalty, it is not a bound
    near = slice(0, 20)  # here the surrogate is right to first order
    assert (np.abs(gain - promised) <= 0.1 * np.abs(gain) + 1e-3 * in_kl)[near].mean() > 0.8


@jax.jit
def divergences(x, logits):
    return Categorical(logits).kl(Categorical(x[:-1].reshape(logits.shape)))


@jax.jit
def bound_gain(x, logits, table):
    """Returns L - C d. The constraints make the last variable d a bound of all divergences."""
    old, new = jax.nn.softmax(logits), jax.nn.softmax(x[:-1].reshape(logits.shape))
    return surrogate_gain(table, old, new) - penalty(table, old) * x[-1]


bound_gradient, divergence_gradient = (
    jax.jit(jax.grad(bound_gain)),
    jax.jit(jax.jacobian(divergences)),
)


def maximize_bound(logits, table):
    """Returns the logits that maximise L - C max KL, and that maximum."""
    solution = minimize(
        lambda x: -bound_gain(x, logits, table),
        np.append(logits, 1e-3),
        jac=lambda x: -bound_gradient(x, logits, table),
        constraints={
            "type": "ineq",
            "fun": lambda x: x[-1] - divergences(x, logits),
            "jac": lambda x: np.eye(len(x))[-1] - divergence_gradient(x, logits),
        },
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    x = solution.x
    x[-1] = np.max(divergences(x, logits))
    new = x[:-1].reshape(logits.shape)
    return new - new.mean(axis=1, keepdims=True), bound_gain(x, logits, table)


@pytest.mark.parametrize("seed", [0, 1])
def test_algorithm_1_never_decreases_the_return(seed):
    """Exact policy iteration: each policy maximises L - C max KL around the policy before it."""
    table = random_table(seed, gamma=0.4)
    logits, returns, promises = np.zeros((NUM_STATES, NUM_ACTIONS)), [], []
    for _ in range(8):
        returns.append(float(return_of(table, logits)))
        logits, promised = maximize_bound(logits, table)
        promises.append(float(promised))
    gains = np.diff(returns)
    assert (np.array(promises) > 0).all()
    assert (gains >= promises[:-1]).all()
    assert returns[-1] > returns[0] + 0.01


def test_steps_on_the_exact_surrogate_reach_the_optimum_of_the_table():
    """Uses the step of the library, with states weighted by their visits."""
    table = random_table(3, gamma=0.9)

    @jax.jit
    def step(logits):
        _, visits, advantages = evaluate(table, jax.nn.softmax(logits))
        weights = visits / visits.mean()
        surrogate = lambda new, old: (
            visits @ jnp.sum(jax.nn.softmax(new.logits) * advantages, axis=1)
        )
        gradient = surrogate_gradient(logits, Categorical, surrogate)
        metric = fisher_vector_product(Categorical, logits, weights)
        solve = damped_solver(metric, damping=1e-6, num_iterations=20)
        full = natural_step(gradient, solve, max_kl=0.05, damping=1e-6)
        return search_along(
            logits,
            Categorical,
            surrogate,
            full,
            max_kl=0.05,
            line_search_steps=10,
            line_search_shrink=0.5,
            state_weights=weights,
        )

    logits, returns = np.zeros((NUM_STATES, NUM_ACTIONS)), []
    for _ in range(40):
        returns.append(float(return_of(table, logits)))
        logits, _ = step(logits)
    values = np.zeros(NUM_STATES)
    for _ in range(300):
        values = np.max(table.rewards + table.gamma * table.transitions @ values, axis=1)
    assert (np.diff(returns)[:10] > 0).all()
    np.testing.assert_allclose(returns[-1], table.start @ values, rtol=0.01)
