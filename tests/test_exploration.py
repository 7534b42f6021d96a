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
    return jax.jit(lambda x: jax.lax.scan(step, x, (jnp.arange(num_steps), keys))[1])(start)


# --- Ornstein-Uhlenbeck


def test_ou_actions_have_the_moments_of_the_policy_and_a_geometric_correlation():
    actions = draw(ou(1, 0.7), gaussian(100_000, mean=0.3, log_std=-0.5), 8)
    noise = np.asarray(actions - 0.3) / np.exp(-0.5)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.015)
    np.testing.assert_allclose(noise.var(axis=1), 1, atol=0.02)
    for lag in (1, 2, 5, 7):
        np.testing.assert_allclose(np.mean(noise[0] * noise[lag]), 0.7 ** (lag + 2), atol=0.015)


def test_the_ou_process_is_stationary_with_a_geometric_correlation():
    explore, policy = ou(1, 0.7), gaussian(100_000, mean=5.0)
    act = jax.jit(lambda key, x, e: explore.act(key, policy, x, e)[1:])
    start = explore.init(jax.random.key(9), 100_000)
    _, memory = act(jax.random.key(0), start, episodes_of(jnp.zeros(100_000, int)))
    values = []
    for index in range(1, 5):
        episodes = episodes_of(jnp.full(100_000, index))
        context, memory = act(jax.random.key(index), memory, episodes)
        values.append(np.asarray(context[:, 0]))
    for lag, value in enumerate(values):
        np.testing.assert_allclose(value.mean(), 0, atol=0.015)
        np.testing.assert_allclose(np.mean(values[0] * value), 0.7**lag, atol=0.015)


def test_an_episode_starts_with_fresh_noise_and_then_keeps_its_own_process():
    memory = jnp.full((1000, 1), 50.0)
    lengths = jnp.arange(1000) % 2  # every other episode has just started
    explore = ou(1, 0.5)
    actions, context, _ = explore.act(
        jax.random.key(0), gaussian(1000), memory, episodes_of(lengths)
    )
    np.testing.assert_array_equal(context[1::2], 50.0)
    assert jnp.abs(actions[1::2] - 25.0).max() < 5
    assert jnp.abs(context[::2]).max() < 5
    np.testing.assert_allclose(context[::2].std(), 1, atol=0.1)
    # The noise of an action is independent of the draw that started the process.
    assert abs(np.corrcoef(context[::2, 0], (actions - 0.5 * context)[::2, 0])[0, 1]) < 0.2


def test_actions_are_drawn_from_the_distribution_given_the_noise():
    explore, distribution = ou(1, 0.8), gaussian(50_000, mean=0.3, log_std=-0.5)
    memory = jnp.full((50_000, 1), 1.5)
    episodes = episodes_of(jnp.ones(50_000, jnp.int32))
    actions, context, _ = explore.act(jax.random.key(0), distribution, memory, episodes)
    mean, std = 0.3 + 0.8 * np.exp(-0.5) * 1.5, 0.6 * np.exp(-0.5)
    np.testing.assert_allclose(actions.mean(), mean, atol=0.01)
    np.testing.assert_allclose(actions.std(), std, atol=0.01)
    given = explore.condition(distribution, context)
    np.testing.assert_allclose(
        given.log_prob(actions), norm.logpdf(actions[:, 0], mean, std), atol=1e-4
    )


def test_ou_noise_with_rho_0_is_exactly_white_noise():
    pendulum = envs.make("Pendulum-v1")

    def update(**settings):
        algorithm = trpo.make(pendulum, trpo.Config(**SMALL, num_steps=16, **settings))
        state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
        return trajectory, *jax.jit(algorithm.learn)(state, trajectory)

    plain, plain_state, plain_metrics = update()
    without, state, metrics = update(exploration="ou", ou_rho=0.0)
    chex.assert_trees_all_equal(without, plain)
    chex.assert_trees_all_equal(state.actor, plain_state.actor)
    chex.assert_trees_all_equal(metrics, plain_metrics)
    traced, *_ = update(exploration="ou", ou_rho=jnp.zeros(()))
    assert traced.noise.shape == (16, 4, 1)


def test_the_ou_process_continues_over_rollouts_and_restarts_with_episodes():
    env = probes.counter(time_limit=5)._replace(action=envs.make("Pendulum-v1").action)
    algorithm = trpo.make(env, trpo.Config(**SMALL, num_steps=16, exploration="ou", ou_rho=0.999))
    collect = jax.jit(algorithm.collect)
    state, first = collect(algorithm.init(jax.random.key(0)))
    state, second = collect(state._replace(num_updates=1))
    context = jnp.concatenate([x.noise for x in (first, second)])
    done = jnp.concatenate([x.done for x in (first, second)])
    changes = jnp.abs(jnp.diff(context[..., 0], axis=0))
    assert jnp.where(done[:-1], 0, changes).max() < 5 * jnp.sqrt(1 - 0.999**2)
    assert jnp.where(done[:-1], changes, 9.0).min() > 1e-3
    assert jnp.where(done[:-1], changes, 0).mean() > 0.1
    _, policy = algorithm.policy(state.actor, (), first.observation)
    residual = first.action - policy.mean - 0.999 * jnp.exp(policy.log_std) * first.noise
    deviation = jnp.std(residual / jnp.exp(policy.log_std))
    np.testing.assert_allclose(deviation, jnp.sqrt(1 - 0.999**2), rtol=0.3)


@pytest.mark.usefixtures("x64")
def test_scores_given_the_noise_estimate_the_gradient_and_marginal_scores_do_not():
    """For a linear system with linear feedback, compared with finite differences of the return."""
    explore, num_envs, horizon = ou(1, 0.8), 200_000, 5

    def policy(theta, positions):
        return DiagGaussian(theta[0] * positions, jnp.broadcast_to(theta[1], positions.shape))

    @jax.jit
    def simulate(theta):
        positions = jnp.ones((num_envs, 1))
        noise = explore.init(jax.random.key(1), num_envs)
        steps, rewards = [], []
        for t, key in enumerate(jax.random.split(jax.random.key(0), horizon)):
            episodes = episodes_of(jnp.full(num_envs, t))
            actions, context, noise = explore.act(key, policy(theta, positions), noise, episodes)
            steps.append((positions, actions, context))
            positions = positions + actions
            rewards.append(-jnp.sum(positions**2 + 0.1 * actions**2, axis=-1))
        return steps, jnp.stack(rewards)

    theta = jnp.array([-0.5, -0.7])
    mean_return = lambda theta: simulate(theta)[1].sum(axis=0).mean()
    differences = jnp.array(
        [(mean_return(theta + h) - mean_return(theta - h)) / 2e-4 for h in 1e-4 * jnp.eye(2)]
    )
    steps, rewards = simulate(theta)
    to_go = jnp.cumsum(rewards[::-1], axis=0)[::-1]

    def errors(condition):
        def weighted(theta):
            log_probs = [
                condition(policy(theta, positions), context).log_prob(actions)
                for positions, actions, context in steps
            ]
            return sum(log_prob * g for log_prob, g in zip(log_probs, to_go, strict=True))

        samples = jax.jit(jax.jacfwd(weighted))(theta)
        deviation = samples.mean(axis=0) - differences
        return deviation / (samples.std(axis=0) / jnp.sqrt(num_envs))

    assert jnp.abs(errors(explore.condition)).max() < 4
    assert jnp.abs(errors(white().condition)).min() > 20


def test_staggered_first_episodes_start_from_the_stationary_distribution():
    env = probes.counter(time_limit=64)._replace(action=envs.make("Pendulum-v1").action)
    config = trpo.Config(**(SMALL | {"num_envs": 512}), num_steps=1, exploration="ou", ou_rho=0.9)
    algorithm = trpo.make(env, config)
    _, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
    noise = trajectory.noise[0, :, 0]
    np.testing.assert_allclose(noise.std(), 1, atol=0.15)
    assert jnp.abs(noise).min() > 0


# --- coloured noise


def colored_noise(beta, num_steps=1000, size=400, key=1):
    """Returns coloured noise `[T, D]` from white noise."""
    white = jax.random.normal(jax.random.key(key), (num_steps + MEMORY - 1, size))
    return color(white, beta)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_colored_noise_has_unit_variance_at_each_step(beta):
    noise = colored_noise(beta, 4, 50_000)
    assert noise.shape == (4, 50_000)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=0.025)
    np.testing.assert_allclose(noise.var(axis=1), 1, atol=0.03)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_the_spectrum_of_colored_noise_is_one_over_f_to_the_beta(beta):
    """The response to an impulse has the amplitude of the filter at each frequency."""
    impulse = jnp.zeros((2 * MEMORY - 1, 1)).at[MEMORY - 1].set(1.0)
    answer = color(impulse, beta)[:, 0]
    assert answer.shape == (MEMORY,)
    power = jnp.abs(jnp.fft.rfft(answer)) ** 2
    expected = np.maximum(np.arange(MEMORY // 2 + 1), 1.0) ** -beta
    np.testing.assert_allclose(power / power[0], expected, rtol=1e-8)
    np.testing.assert_allclose(jnp.sum(answer**2), 1, rtol=1e-10)


@pytest.mark.parametrize(("beta", "correlation"), [(0.0, 0.0), (0.5, 0.36), (1.0, 0.77)])
def test_neighbouring_steps_of_colored_noise_are_correlated(beta, correlation):
    noise = colored_noise(beta, key=2)
    np.testing.assert_allclose(jnp.mean(noise[1:] * noise[:-1]), correlation, atol=0.015)


def test_colored_noise_continues_over_rollouts_without_gaps():
    explore, policy = colored(1, 1.0, num_steps=3), gaussian(5, mean=2.0, log_std=-1.0)
    prepare = jax.jit(explore.prepare)
    act = jax.jit(lambda state: explore.act(jax.random.key(0), policy, state, None))
    state = first = explore.init(jax.random.key(9), 5)
    drawn, noise = [first.past], []
    for index in range(2):
        state = prepare(jax.random.key(index), state)
        drawn.append(state.past[:, -3:])
        for t in range(3):
            actions, context, following = act(state)
            assert context == ()
            np.testing.assert_allclose(actions, 2.0 + np.exp(-1.0) * state.noise[:, t], rtol=1e-5)
            noise.append((actions - 2.0) / np.exp(-1.0))
            state = following
    expected = color(jnp.concatenate(drawn, axis=1), 1.0)
    np.testing.assert_allclose(jnp.stack(noise, axis=1), expected, atol=2e-5)
    assert all(x.shape[0] == 5 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("exploration", ["ou", "colored"])
def test_correlated_noise_needs_continuous_actions(exploration):
    with pytest.raises(ConfigurationError, match=f"exploration = '{exploration}' needs continuous"):
        trpo.make(probes.action_choice(), trpo.Config(exploration=exploration))
