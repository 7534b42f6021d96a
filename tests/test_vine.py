import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax.distributions import Categorical, DiagGaussian
from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.envs.episodes import start_episode
from trpo_jax.envs.specs import ArraySpec, Box, Discrete
from trpo_jax.vine import branch_return, differences, draw_actions, self_normalized_surrogate

pytestmark = pytest.mark.xdist_group("vine")


# --- the return of a branch

GAMMA = 0.5
act_zero = lambda key, observation: jnp.zeros((), jnp.int32)
value = lambda observation: 100.0 + observation[0]


def counted(env, start, num_steps, value=value, length=None):
    """Returns the branch return in an environment whose reward is 10 times its counter."""
    count = jnp.asarray(start, jnp.int32)
    length = jnp.asarray(start if length is None else length, jnp.int32)
    episode = start_episode(env, jax.random.key(0))
    observation = jnp.full(1, start, jnp.float32)
    episode = episode._replace(state=count, observation=observation, length=length)
    first, key = jnp.zeros((), jnp.int32), jax.random.key(0)
    return float(branch_return(env, act_zero, value, key, episode, first, num_steps, GAMMA))


def truncated_by_the_step(at):
    env = counter()

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(truncated=state == at)

    return env._replace(step=step)


@pytest.mark.parametrize(
    ("env", "start", "num_steps", "rewards", "bootstrap"),
    [
        (counter(), 2, 1, 20, 0.5 * 103),
        (counter(), 2, 3, 20 + 15 + 10, 0.125 * 105),
        (counter(terminates_at=4), 2, 3, 20 + 15, 0),
        (counter(terminates_at=5), 2, 3, 20 + 15 + 10, 0),
        (counter(terminates_at=6), 2, 3, 20 + 15 + 10, 0.125 * 105),
        (counter(time_limit=4), 2, 3, 20 + 15, 0.25 * 104),
        (counter(time_limit=3), 2, 3, 20, 0.5 * 103),
        (truncated_by_the_step(4), 2, 3, 20 + 15, 0.25 * 104),
        (counter(terminates_at=4, time_limit=4), 2, 3, 20 + 15, 0),  # both at once
        (counter(terminates_at=4, time_limit=3), 2, 3, 20, 0.5 * 103),  # the time limit is first
    ],
)
def test_a_branch_ends_at_termination_truncation_or_the_horizon(
    env, start, num_steps, rewards, bootstrap
):
    assert counted(env, start, num_steps) == rewards + bootstrap
    assert counted(env, start, num_steps, value=lambda observation: jnp.zeros(())) == rewards


def test_the_time_limit_counts_from_the_stored_length():
    assert counted(counter(time_limit=10), 2, 3, length=8) == 20 + 15 + 0.25 * 104


def test_only_the_first_action_of_a_branch_is_given():
    spec = ArraySpec((1,), np.dtype(np.float32))
    paid = lambda key, state, action: (
        state,
        StepResult(jnp.zeros(1), action[0], jnp.zeros((), bool), jnp.zeros((), bool)),
    )
    bounds = np.full(1, np.inf, np.float32)
    reset = lambda key: (jnp.zeros(()), jnp.zeros(1))
    env = Environment("paid", reset, paid, spec, Box(-bounds, bounds), None)
    episode = start_episode(env, jax.random.key(0))
    act, key = lambda key, observation: jnp.ones(1), jax.random.key(0)
    found = branch_return(env, act, lambda o: jnp.zeros(()), key, episode, jnp.full(1, 8.0), 3, 0.5)
    assert found == 8 + 0.5 + 0.25


# --- the first actions


def test_with_as_many_branches_as_actions_each_action_is_tried_once():
    env = counter()._replace(action=Discrete(3))
    actions, log_probs = draw_actions(
        jax.random.key(0), env, Categorical(jnp.zeros((20, 3)).at[:, 0].set(50.0)), 3
    )
    np.testing.assert_array_equal(np.sort(actions, axis=1), np.tile(np.arange(3), (20, 1)))
    np.testing.assert_allclose(log_probs, np.full((20, 3), -np.log(3)), rtol=1e-6)


def test_fewer_branches_than_actions_have_distinct_uniform_actions():
    env = counter()._replace(action=Discrete(4))
    skewed = Categorical(jnp.zeros((4000, 4)).at[:, 0].set(5.0))
    actions, _ = draw_actions(jax.random.key(0), env, skewed, 2)
    assert (actions[:, 0] != actions[:, 1]).all()
    np.testing.assert_allclose(np.bincount(actions.ravel()) / 4000, np.full(4, 0.5), atol=0.04)


def test_continuous_actions_are_drawn_from_the_policy():
    bounds = np.ones(2, np.float32)
    env = counter()._replace(action=Box(-bounds, bounds))
    policy = DiagGaussian(jnp.array([[1.0, 2.0], [5.0, 6.0]]), jnp.full((2, 2), -1.0))
    actions, log_probs = draw_actions(jax.random.key(0), env, policy, 2000)
    np.testing.assert_allclose(actions.mean(1), policy.mean, atol=0.05)
    np.testing.assert_allclose(actions.std(1), np.full((2, 2), np.exp(-1)), atol=0.02)
    np.testing.assert_allclose(log_probs[:, 7], policy.log_prob(actions[:, 7]), rtol=1e-6)


# --- the loss


@pytest.mark.slow
def test_the_loss_over_all_actions_has_the_exact_policy_gradient(x64):
    """The MDP has 3 states with the discounted visits (1/2, 1/3, 1/6), written as 6 rows."""
    gamma, num_actions = 0.5, 4
    keys = jax.random.split(jax.random.key(1), 4)
    transitions = jax.nn.softmax(jax.random.normal(keys[0], (3, num_actions, 3)))
    rewards = jax.random.normal(keys[1], (3, num_actions))
    features = jax.random.normal(keys[2], (3, 5))  # states share weights, so the visits matter
    params = jax.random.normal(keys[3], (5, num_actions))

    def values(params):
        policy = jax.nn.softmax(features @ params)
        dynamics = jnp.einsum("sa,sat->st", policy, transitions)
        return jnp.linalg.solve(jnp.eye(3) - gamma * dynamics, jnp.sum(policy * rewards, 1))

    # The distribution of the first state that gives these visits under the old policy.
    visits = jnp.array([3, 2, 1]) / 6
    dynamics = jnp.einsum("sa,sat->st", jax.nn.softmax(features @ params), transitions)
    start = (visits - gamma * visits @ dynamics) / (1 - gamma)
    assert (start > 0).all()
    exact = (1 - gamma) * jax.jit(jax.grad(lambda p: start @ values(p)))(params)

    rows = jnp.array([0, 0, 0, 1, 1, 2])
    actions = jnp.array([jnp.roll(jnp.arange(num_actions), n) for n in range(6)])
    q = rewards + gamma * transitions @ values(params)
    distribution = lambda p: Categorical(features[rows] @ p)
    surrogate = self_normalized_surrogate(
        actions, jnp.full(actions.shape, -jnp.log(num_actions)), q[rows[:, None], actions]
    )
    old = distribution(params)
    found = jax.jit(jax.grad(lambda p: surrogate(distribution(p), old)))(params)
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(surrogate(old, old), values(params)[rows].mean(), rtol=1e-10)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_gradient_has_a_baseline_for_each_state(x64, kind):
    """The gradient is sum_k grad p_k / q_k (Q_k - L_n) / sum_k w_k for any q."""
    keys = jax.random.split(jax.random.key(2), 4)
    features = jax.random.normal(keys[0], (5, 3))
    params = jax.random.normal(keys[1], (3, 4))
    returns = jax.random.normal(keys[2], (5, 2)) + 10 * jnp.arange(5.0)[:, None]
    if kind == "categorical":
        distribution = lambda p: Categorical(features @ p)
        actions = jnp.array([[0, 3], [1, 2], [3, 1], [2, 0], [0, 1]])
    else:
        distribution = lambda p: DiagGaussian(*jnp.split(features @ p, 2, axis=-1))
        actions = jax.random.normal(keys[3], (5, 2, 2))
    log_q = jax.random.normal(keys[3], (5, 2))
    probs = lambda p: jnp.exp(
        jnp.stack([distribution(p).log_prob(actions[:, k]) for k in range(2)], axis=1)
    )
    weights = probs(params) / jnp.exp(log_q)
    loss = jnp.sum(weights * returns, 1) / jnp.sum(weights, 1)
    factors = (returns - loss[:, None]) / jnp.exp(log_q) / jnp.sum(weights, 1, keepdims=True)
    expected = jnp.einsum("nk,nkij->ij", factors, jax.jit(jax.jacobian(probs))(params)) / 5

    surrogate = self_normalized_surrogate(actions, log_q, returns)
    old = distribution(params)
    found = jax.jit(jax.grad(lambda p: surrogate(distribution(p), old)))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(surrogate(old, old), loss.mean(), rtol=1e-12)

    # The mean of the returns of a state does not matter.
    centred = self_normalized_surrogate(actions, log_q, differences(returns))
    shifted = jax.jit(jax.grad(lambda p: centred(distribution(p), old)))(params)
    np.testing.assert_allclose(found, shifted, rtol=1e-10, atol=1e-12)


def test_the_entropy_is_added_with_its_weight():
    policy = Categorical(jnp.array([[0.0, 1.0], [2.0, 0.0]]))
    actions, zeros = jnp.array([[0, 1], [1, 0]]), jnp.zeros((2, 2))
    surrogate = self_normalized_surrogate(actions, zeros, zeros, 0.3)
    np.testing.assert_allclose(surrogate(policy, policy), 0.3 * policy.entropy().mean(), rtol=1e-6)


def test_differences_that_are_only_rounding_errors_become_zero():
    returns = jnp.array([[1000.0, 1000.0001, 999.9999], [3.0, 4.0, 5.0]])
    np.testing.assert_allclose(differences(returns), [[0, 0, 0], [-1, 0, 1]])
