import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from scipy.stats import norm

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.distributions import DiagGaussian
from trpo_jax.envs.episodes import Episode
from trpo_jax.errors import ConfigurationError
from trpo_jax.exploration import MEMORY, color, colored, ou, white

SMALL = {"num_envs": 4, "hidden_sizes": (8,), "critic_minibatches": 4, "critic_epochs": 1}


def gaussian(num_envs, mean=0.0, log_std=0.0, size=1):
    shape = (num_envs, size)
    return DiagGaussian(jnp.full(shape, mean), jnp.full(shape, log_std))


def episodes_of(lengths):
    lengths = jnp.asarray(lengths)
    zeros, whole = jnp.zeros(len(lengths)), jnp.ones(len(lengths), bool)
    return Episode((), zeros[:, None], lengths == 0, lengths, zeros, whole)


def draw(explore, distribution, num_steps, key=0):
    """Returns the actions `[T, B]` of the first T steps of B episodes."""
    num_envs = len(distribution.mean)

    def step(state, inputs):
        length, key = inputs
        episodes = episodes_of(jnp.full(num_envs, length))
        actions, _, state = explore.act(key, distribution, state, episodes)
        return state, actions[..., 0]

    init_key, run_key = jax.random.split(jax.random.key(key))
    start = explore.init(init_key, num_envs)
    keys = jax.random.split(run_key, num_steps)
    return jax.lax.scan(step, start, (jnp.arange(num_steps), keys))[1]


# --- Ornstein-Uhlenbeck


def test_ou_actions_have_the_moments_of_the_policy_and_a_geometric_correlation():
    policy = lambda: gaussian(100_000, mean=0.3, log_std=-0.5)
    actions = np.asarray(jax.jit(lambda: draw(ou(1, 0.7), policy(), 8))())
    noise = (actions - np.float32(0.3)) / np.exp(-0.5)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.015)
    np.testing.assert_allclose(noise.var(axis=1), 1, atol=0.02)
    for lag in (1, 2, 5, 7):
        np.testing.assert_allclose(np.mean(noise[0] * noise[lag]), 0.7 ** (lag + 2), atol=0.015)


def test_the_ou_process_is_stationary_with_a_geometric_correlation():
    explore = ou(1, 0.7)

    @jax.jit
    def act(index, memory):
        episodes = episodes_of(jnp.full(100_000, index))
        policy = gaussian(100_000, mean=5.0)
        return explore.act(jax.random.key(index), policy, memory, episodes)[1:]

    _, memory = act(0, explore.init(jax.random.key(9), 100_000))
    values = []
    for index in range(1, 5):
        context, memory = act(index, memory)
        values.append(np.asarray(context)[:, 0])
    for lag, value in enumerate(values):
        np.testing.assert_allclose(value.mean(), 0, atol=0.015)
        np.testing.assert_allclose(np.mean(values[0] * value), 0.7**lag, atol=0.015)


def test_an_episode_starts_with_fresh_noise_and_then_keeps_its_own_process():
    explore = ou(1, 0.5)

    @jax.jit
    def act(key, memory, lengths):
        return explore.act(key, gaussian(1000), memory, episodes_of(lengths))[:2]

    memory = np.full((1000, 1), 50.0, np.float32)
    lengths = np.arange(1000) % 2  # every other episode has just started
    actions, context = map(np.asarray, act(jax.random.key(0), memory, lengths))
    np.testing.assert_array_equal(context[1::2], 50.0)
    assert np.abs(actions[1::2] - 25.0).max() < 5
    assert np.abs(context[::2]).max() < 5
    np.testing.assert_allclose(context[::2].std(), 1, atol=0.1)
    # The noise of an action is independent of the draw that started the process.
    assert abs(np.corrcoef(context[::2, 0], (actions - 0.5 * context)[::2, 0])[0, 1]) < 0.2


def test_actions_are_drawn_from_the_distribution_given_the_noise():
    explore = ou(1, 0.8)

    @jax.jit
    def act(key, memory):
        distribution = gaussian(50_000, mean=0.3, log_std=-0.5)
        episodes = episodes_of(jnp.ones(50_000, jnp.int32))
        actions, context, _ = explore.act(key, distribution, memory, episodes)
        return actions, explore.condition(distribution, context).log_prob(actions)

    memory = np.full((50_000, 1), 1.5, np.float32)
    actions, log_probs = map(np.asarray, act(jax.random.key(0), memory))
    mean, std = 0.3 + 0.8 * np.exp(-0.5) * 1.5, 0.6 * np.exp(-0.5)
    np.testing.assert_allclose(actions.mean(), mean, atol=0.01)
    np.testing.assert_allclose(actions.std(), std, atol=0.01)
    np.testing.assert_allclose(log_probs, norm.logpdf(actions[:, 0], mean, std), atol=1e-4)


@pytest.mark.slow
def test_ou_noise_with_rho_0_is_exactly_white_noise():
    pendulum = envs.make("Pendulum-v1")

    def update(**settings):
        algorithm = trpo.make(pendulum, trpo.Config(**SMALL, num_steps=16, **settings))

        def run(key):
            state, trajectory = algorithm.collect(algorithm.init(key))
            return trajectory, *algorithm.learn(state, trajectory)

        return run

    key = jax.random.key(0)
    plain, plain_state, plain_metrics = jax.jit(update())(key)
    without, state, metrics = jax.jit(update(exploration="ou", ou_rho=0.0))(key)
    chex.assert_trees_all_equal(without, plain)
    chex.assert_trees_all_equal(state.actor, plain_state.actor)
    chex.assert_trees_all_equal(metrics, plain_metrics)
    traced, *_ = jax.eval_shape(update(exploration="ou", ou_rho=jnp.zeros(())), key)
    assert traced.noise.shape == (16, 4, 1)


def test_the_ou_process_continues_over_rollouts_and_restarts_with_episodes():
    env = probes.counter(time_limit=5)._replace(action=envs.make("Pendulum-v1").action)
    algorithm = trpo.make(env, trpo.Config(**SMALL, num_steps=16, exploration="ou", ou_rho=0.999))
    collect = jax.jit(algorithm.collect)
    state, first = collect(jax.jit(algorithm.init)(jax.random.key(0)))
    _, policy = jax.jit(algorithm.policy)(state.actor, (), first.observation)
    state, second = collect(state._replace(num_updates=np.ones_like(state.num_updates)))
    context = np.concatenate([x.noise for x in (first, second)])
    done = np.concatenate([x.done for x in (first, second)])
    changes = np.abs(np.diff(context[..., 0], axis=0))
    assert np.where(done[:-1], 0, changes).max() < 5 * np.sqrt(1 - 0.999**2)
    assert np.where(done[:-1], changes, 9.0).min() > 1e-3
    assert np.where(done[:-1], changes, 0).mean() > 0.1
    mean, std = np.asarray(policy.mean), np.exp(policy.log_std)
    residual = np.asarray(first.action) - mean - 0.999 * std * np.asarray(first.noise)
    deviation = np.std(residual / std)
    np.testing.assert_allclose(deviation, np.sqrt(1 - 0.999**2), rtol=0.3)


@pytest.mark.usefixtures("x64")
def test_scores_given_the_noise_estimate_the_gradient_and_marginal_scores_do_not():
    """For a linear system with linear feedback, compared with finite differences of the return."""
    explore, num_envs, horizon = ou(1, 0.8), 200_000, 5

    def policy(theta, positions):
        return DiagGaussian(theta[0] * positions, jnp.broadcast_to(theta[1], positions.shape))

    def simulate(theta):
        def step(carry, inputs):
            t, key = inputs
            positions, noise = carry
            episodes = episodes_of(jnp.full(num_envs, t))
            actions, context, noise = explore.act(key, policy(theta, positions), noise, episodes)
            following = positions + actions
            reward = -jnp.sum(following**2 + 0.1 * actions**2, axis=-1)
            return (following, noise), ((positions, actions, context), reward)

        noise = explore.init(jax.random.key(1), num_envs).astype(float)
        keys = jax.random.split(jax.random.key(0), horizon)
        start = jnp.ones((num_envs, 1)), noise
        return jax.lax.scan(step, start, (jnp.arange(horizon), keys))[1]

    # All parameters see the same random numbers, so vmap draws them only once.
    theta = np.array([-0.5, -0.7])
    moves = 1e-4 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    steps, rewards = jax.jit(jax.vmap(simulate))(theta + moves)
    rewards = np.asarray(rewards)
    mean_returns = rewards.sum(axis=1).mean(axis=1)
    differences = (mean_returns[[0, 2]] - mean_returns[[1, 3]]) / 2e-4
    positions, actions, context = (np.asarray(x)[-1] for x in steps)
    to_go = np.cumsum(rewards[-1, ::-1], axis=0)[::-1]

    @jax.jit
    def scores(theta, positions, actions, context, to_go):
        def weighted(theta, condition):
            given = condition(policy(theta, positions), context)
            return jnp.sum(given.log_prob(actions) * to_go, axis=0)

        slopes = jax.jacfwd(weighted)
        return slopes(theta, explore.condition), slopes(theta, white().condition)

    def errors(samples):
        deviation = samples.mean(axis=0) - differences
        return deviation / (samples.std(axis=0) / np.sqrt(num_envs))

    conditional, marginal = map(np.asarray, scores(theta, positions, actions, context, to_go))
    assert np.abs(errors(conditional)).max() < 4
    assert np.abs(errors(marginal)).min() > 20


def test_staggered_first_episodes_start_from_the_stationary_distribution():
    env = probes.counter(time_limit=64)._replace(action=envs.make("Pendulum-v1").action)
    config = trpo.Config(**(SMALL | {"num_envs": 512}), num_steps=1, exploration="ou", ou_rho=0.9)
    algorithm = trpo.make(env, config)
    _, trajectory = jax.jit(lambda key: algorithm.collect(algorithm.init(key)))(jax.random.key(0))
    noise = np.asarray(trajectory.noise)[0, :, 0]
    np.testing.assert_allclose(noise.std(), 1, atol=0.15)
    assert np.abs(noise).min() > 0


# --- coloured noise


jit_color = jax.jit(color)


@pytest.fixture(scope="module")
def white_noise():
    """Returns a function that draws the white noise `[T + L - 1, D]` of T steps, once for all."""

    @functools.cache  # and NumPy draws much faster than JAX
    def draw_white(num_steps=1000, size=400, seed=1):
        shape = (num_steps + MEMORY - 1, size)
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    return draw_white


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_colored_noise_has_unit_variance_at_each_step(beta, white_noise):
    noise = np.asarray(jit_color(white_noise(4, 50_000), beta))
    assert noise.shape == (4, 50_000)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.025)
    np.testing.assert_allclose(noise.var(axis=1), 1, atol=0.03)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_the_spectrum_of_colored_noise_is_one_over_f_to_the_beta(beta):
    """The response to an impulse has the amplitude of the filter at each frequency."""
    impulse = np.zeros((2 * MEMORY - 1, 1))
    impulse[MEMORY - 1] = 1.0
    answer = np.asarray(jit_color(impulse, beta))[:, 0]
    assert answer.shape == (MEMORY,)
    power = np.abs(np.fft.rfft(answer)) ** 2
    expected = np.maximum(np.arange(MEMORY // 2 + 1), 1.0) ** -beta
    np.testing.assert_allclose(power / power[0], expected, rtol=1e-8)
    np.testing.assert_allclose(np.sum(answer**2), 1, rtol=1e-10)


@pytest.mark.parametrize(("beta", "correlation"), [(0.0, 0.0), (0.5, 0.36), (1.0, 0.77)])
def test_neighbouring_steps_of_colored_noise_are_correlated(beta, correlation, white_noise):
    noise = np.asarray(jit_color(white_noise(seed=2), beta))
    np.testing.assert_allclose(np.mean(noise[1:] * noise[:-1]), correlation, atol=0.015)


def test_colored_noise_continues_over_rollouts_without_gaps():
    explore = colored(1, 1.0, num_steps=3)
    prepare = jax.jit(explore.prepare)
    policy = lambda: gaussian(5, mean=2.0, log_std=-1.0)
    act = jax.jit(lambda state: explore.act(jax.random.key(0), policy(), state, None))
    state = first = jax.jit(lambda key: explore.init(key, 5))(jax.random.key(9))
    drawn, noise = [first.past], []
    for index in range(2):
        state = prepare(jax.random.key(index), state)
        drawn.append(np.asarray(state.past)[:, -3:])
        for t in range(3):
            actions, context, following = act(state)
            assert context == ()
            expected = 2.0 + np.exp(-1.0) * np.asarray(state.noise)[:, t]
            np.testing.assert_allclose(actions, expected, rtol=1e-5)
            noise.append((np.asarray(actions) - 2.0) / np.exp(-1.0))
            state = following
    expected = jit_color(np.concatenate(drawn, axis=1), 1.0)
    np.testing.assert_allclose(np.stack(noise, axis=1), expected, atol=2e-5)
    assert all(x.shape[0] == 5 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("exploration", ["ou", "colored"])
def test_correlated_noise_needs_continuous_actions(exploration):
    with pytest.raises(ConfigurationError, match=f"exploration = '{exploration}' needs continuous"):
        trpo.make(probes.action_choice(), trpo.Config(exploration=exploration))
