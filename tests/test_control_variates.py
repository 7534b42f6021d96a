import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.control_variates import CONTROL_WEIGHTS, control_variate, controlled_surrogate
from trpo_jax.distributions import DiagGaussian

pytestmark = pytest.mark.xdist_group("control_variates")  # one worker, to share compiled programs

SIGNS = (np.array([2.0, -3.0, 1.0, -4.0, 0.0, 2.0]), np.array([5.0, -1.0, -2.0, 3.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("conservative", [1, 1, 0, 0, 0, 0]),
        ("aggressive", [1, 1, -1, -1, 0, 0]),
        ("standard", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_eta_depends_on_the_signs_of_the_two_advantages(kind, expected):
    np.testing.assert_array_equal(jax.jit(CONTROL_WEIGHTS[kind])(*SIGNS), expected)


def two_dimensional_policy(theta, observations):
    """Returns a policy with a deviation that depends on the state."""
    outputs = jnp.tanh(observations @ theta.reshape(3, 4))
    return DiagGaussian(outputs[..., :2], outputs[..., 2:])


@jax.jit
def sample_and_derivatives(theta, observations, key):
    """Returns actions, their means, and derivatives in theta: scores and those of the policy."""
    policy = lambda theta: two_dimensional_policy(theta, observations)
    actions = policy(theta).sample(key)
    scores = jax.jacfwd(lambda t: policy(t).log_prob(actions))(theta)
    means = jax.jacfwd(lambda t: policy(t).mean)(theta)
    entropies = jax.jacfwd(lambda t: policy(t).entropy())(theta)
    return actions, policy(theta).mean, scores, means, entropies


@functools.partial(jax.jit, static_argnums=(0, 1))
def surrogate_gradient(kind, common_scale, theta, observations, actions, advantages):
    old = two_dimensional_policy(theta, observations)
    q = lambda a: jnp.sin(2 * a[..., 0] + observations[..., 1]) + a[..., 1] ** 2 * a[..., 0]
    control = control_variate(q, old.mode(), actions)
    eta = CONTROL_WEIGHTS[kind](advantages, control.advantages)
    surrogate = controlled_surrogate(
        actions, advantages, control, eta, 0.1, common_scale=common_scale
    )
    return jax.grad(lambda t: surrogate(two_dimensional_policy(t, observations), old))(theta)


@pytest.mark.parametrize(
    ("kind", "common_scale"),
    [("standard", True), ("conservative", True), ("aggressive", True), ("conservative", False)],
)
def test_the_gradient_equals_the_estimator_of_the_paper(x64, kind, common_scale):
    """The expected value is computed action by action, from scores and Jacobians of the means."""
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(4, 6, 3))
    advantages = 3.0 + generator.normal(size=(4, 6))
    theta = 0.5 * generator.normal(size=12)
    actions, *others = sample_and_derivatives(theta, observations, jax.random.key(3))
    gradient = surrogate_gradient(kind, common_scale, theta, observations, actions, advantages)

    chosen, centre, scores, means, entropies, seen, sampled = (
        np.asarray(x).reshape(24, *x.shape[2:])
        for x in (actions, *others, observations, advantages)
    )
    slopes, residuals = [], []
    for n in range(24):
        (a, b), phase = centre[n], seen[n, 1]
        slope = np.array([2 * np.cos(2 * a + phase) + b**2, 2 * a * b])
        bar = slope @ (chosen[n] - centre[n])
        agreement = np.sign(bar * sampled[n])
        weight = {"conservative": max(agreement, 0), "aggressive": agreement, "standard": 1}[kind]
        slopes.append(weight * slope)
        residuals.append(sampled[n] - weight * bar)
    deviation = np.std(residuals)
    expected = np.mean(
        [
            scores[n] * (residuals[n] - np.mean(residuals)) / deviation
            + slopes[n] @ means[n] / (deviation if common_scale else 1.0)
            + 0.1 * entropies[n]
            for n in range(24)
        ],
        axis=0,
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_good_critic_lowers_the_variance_of_the_gradient(x64):
    """For a ~ N(0, 1) and A = 4 a - a^2, a slope of 4 leaves Var(a (1 - a^2)) = 10."""

    def gradient(key, slope):
        actions = jax.random.normal(key, (64, 1))
        advantages = (4 * actions - actions**2)[:, 0]
        policy = lambda mean: DiagGaussian(jnp.full((64, 1), mean), jnp.zeros((64, 1)))
        control = control_variate(lambda a: slope * a[:, 0], jnp.zeros((64, 1)), actions)
        surrogate = controlled_surrogate(actions, advantages, control, jnp.ones(64))
        scale = jnp.std(advantages - control.advantages)
        return scale * jax.grad(lambda m: surrogate(policy(m), policy(0.0)))(0.0)

    @jax.jit
    def gradients(key, slopes):
        keys = jax.random.split(key, 4000)
        return jax.vmap(lambda slope: jax.vmap(lambda key: gradient(key, slope))(keys))(slopes)

    without, right = np.asarray(gradients(jax.random.key(0), np.array([0.0, 4.0])))
    np.testing.assert_allclose([without.mean(), right.mean()], 4.0, rtol=0.03)
    np.testing.assert_allclose(64 * right.var(), 10.0, rtol=0.15)
    assert without.var() > 3 * right.var()


def test_a_constant_residual_leaves_only_the_gradient_of_the_critic():
    @jax.jit
    def gradient(actions):
        control = control_variate(lambda a: 2 * a[:, 0], jnp.zeros((3, 1)), actions)
        surrogate = controlled_surrogate(actions, 2 * actions[:, 0], control, jnp.ones(3))
        policy = lambda mean: DiagGaussian(jnp.full((3, 1), mean), jnp.zeros((3, 1)))
        return jax.grad(lambda m: surrogate(policy(m), policy(0.0)))(0.0)

    np.testing.assert_allclose(gradient(np.array([[1.0], [-1.0], [2.0]], np.float32)), 2.0)


# --- a linear-quadratic problem of two steps, whose expected return has a formula

DRIFT, GAIN, NOISE, STEPS = 0.9, 0.5, 0.2, 2
THETA = np.array([-0.4, 0.3, -0.5])  # a ~ N(THETA[0] s + THETA[1], exp(THETA[2])^2)


def exact_return(theta):
    """Returns the expected sum of -(s^2 + a^2 / 2), from the moments of s, with s_0 ~ N(1, 1/4)."""
    slope, offset, log_std = theta
    mean, variance, total = 1.0, 0.25, 0.0
    for _ in range(STEPS):
        action_mean = slope * mean + offset
        action_variance = slope**2 * variance + np.exp(2 * log_std)
        total -= mean**2 + variance + 0.5 * (action_mean**2 + action_variance)
        mean, variance = (
            DRIFT * mean + GAIN * action_mean,
            (DRIFT + GAIN * slope) ** 2 * variance + (GAIN * np.exp(log_std)) ** 2 + NOISE**2,
        )
    return total


def policy(theta, states):
    mean = theta[0] * states + theta[1]
    return DiagGaussian(mean, jnp.broadcast_to(theta[2], mean.shape))


def wrong_q(states, actions):
    return (4.0 * actions + jnp.sin(3 * states) * actions**2 + jnp.cos(2 * states))[..., 0]


def sampled_gradients(key, number):
    """Returns the gradients of the surrogate on `number` episodes, in units of the return.

    The first is that with one scale, the second that with two.
    """
    start_key, *keys = jax.random.split(key, 1 + 2 * STEPS)
    state = 1.0 + 0.5 * jax.random.normal(start_key, (number, 1))
    states, actions, rewards = [], [], []
    for step in range(STEPS):
        action = policy(THETA, state).sample(keys[2 * step])
        states.append(state)
        actions.append(action)
        rewards.append(-(state**2 + 0.5 * action**2)[:, 0])
        noise = jax.random.normal(keys[2 * step + 1], state.shape)
        state = DRIFT * state + GAIN * action + NOISE * noise
    states, actions = jnp.stack(states), jnp.stack(actions)
    to_go = jnp.cumsum(jnp.stack(rewards)[::-1], axis=0)[::-1]
    control = control_variate(lambda a: wrong_q(states, a), policy(THETA, states).mode(), actions)
    weights = jnp.ones_like(to_go)

    def gradient(common_scale):
        surrogate = controlled_surrogate(
            actions, to_go, control, weights, common_scale=common_scale
        )
        gradient = jax.grad(lambda t: surrogate(policy(t, states), policy(THETA, states)))(THETA)
        return gradient * STEPS * jnp.std(to_go - control.advantages)

    return gradient(True), gradient(False)


def test_the_gradient_is_unbiased_for_a_wrong_critic_with_one_scale(x64):
    step = 1e-5
    truth = np.array(
        [
            (exact_return(THETA + step * e) - exact_return(THETA - step * e)) / (2 * step)
            for e in np.eye(3)
        ]
    )

    @jax.jit
    def gradients(key):
        return jax.vmap(lambda k: sampled_gradients(k, 2000))(jax.random.split(key, 400))

    right, wrong = map(np.asarray, gradients(jax.random.key(0)))
    mean, error = right.mean(0), right.std(0) / np.sqrt(400)
    assert np.all(np.abs(mean - truth) < 4 * error)
    assert np.all(error < 0.02 * np.abs(truth).max())

    along = lambda g: truth @ g / np.linalg.norm(truth) / np.linalg.norm(g)
    assert along(mean) > 0.999
    # With two scales, the direction differs from that of the gradient, not only the length.
    biased, error = wrong.mean(0), wrong.std(0) / np.sqrt(400)
    assert np.any(np.abs(biased - truth) > 20 * error)
    assert along(biased) < 0.99
