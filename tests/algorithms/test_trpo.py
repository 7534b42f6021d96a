import dataclasses
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import learning
import numpy as np
import optax
import probes
import pytest
from learning import SMALL

from trpo_jax import envs
from trpo_jax.advantages import generalized_advantages, standardize
from trpo_jax.algorithms import trpo, ua_trpo
from trpo_jax.algorithms.base import Actor
from trpo_jax.algorithms.natural_gradient import thinned
from trpo_jax.algorithms.on_policy import estimate
from trpo_jax.critics import explained_variance
from trpo_jax.envs.episodes import Transition
from trpo_jax.envs.specs import Discrete
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.networks import make_critic, make_policy
from trpo_jax.normalization import normalize
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import importance_sampled_surrogate

pytestmark = pytest.mark.xdist_group("trpo")  # one worker shares compiled programs


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("CartPole-v1")


@learning.CHOICES_AND_NUMBERS
def test_probe(probe, continuous):
    learning.assert_learns(trpo, probe, continuous, max_kl=0.05)


@pytest.mark.parametrize("probe", probes.PROBES)
def test_probe_with_the_critic_in_a_trust_region(probe):
    learning.assert_learns(trpo, probe, max_kl=0.05, gae_critic="trust_region")


# --- one update


@pytest.fixture(scope="module")
def one_update(cartpole):
    config = trpo.Config(**SMALL, fisher_subsample=4)
    algorithm = trpo.make(cartpole, config)

    @jax.jit
    def update(state, kl_peak):
        return trpo.make(cartpole, config.replace(kl_peak=kl_peak)).update(state)

    state = jax.jit(algorithm.init)(jax.random.key(3))
    state, _ = update(state, 0.0)  # the statistics differ from their start
    collected, trajectory = jax.jit(algorithm.collect)(state)
    learnt, metrics = jax.jit(algorithm.learn)(collected, trajectory)
    return algorithm, update, state, collected, trajectory, learnt, metrics


def test_update_is_learn_after_collect(one_update):
    _, update, state, _, _, learnt, metrics = one_update
    new_state, new_metrics = update(state, 0.0)
    chex.assert_trees_all_close(new_state.actor, learnt.actor, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new_metrics, metrics, rtol=1e-4, atol=1e-5)


def test_the_kl_compares_both_policies_with_the_statistics_of_the_rollout(one_update):
    algorithm, _, state, collected, trajectory, learnt, metrics = one_update
    chex.assert_trees_all_equal(collected.actor, state.actor)
    frozen = state.actor.observation_statistics
    assert learnt.actor.observation_statistics.count == frozen.count + 64

    @jax.jit
    def divergences(*actors):
        policies = [algorithm.policy(x, (), trajectory.observation)[1] for x in actors]
        return [policies[0].kl(x) for x in policies[1:]]

    new = Actor(learnt.actor.policy_params, frozen)
    kl, drifted = map(np.asarray, divergences(state.actor, new, learnt.actor))
    np.testing.assert_allclose(metrics["kl"], kl.mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["kl_max"], kl.max(), rtol=1e-3)
    assert 0 < metrics["kl"] <= 0.01
    assert abs(drifted.mean() / kl.mean() - 1) > 0.01  # other statistics give another KL


def test_advantages_use_the_critic_before_its_fit(one_update):
    _, _, state, _, trajectory, _, metrics = one_update
    critic = make_critic(envs.make("CartPole-v1").observation, hidden_sizes=(8,))

    @jax.jit
    def variance(state, trajectory):
        see = lambda x: normalize(state.actor.observation_statistics, x)
        old_values = critic.apply(state.critic.params, see(trajectory.observation))
        advantages = generalized_advantages(
            trajectory.reward,
            old_values,
            critic.apply(state.critic.params, see(trajectory.next_observation)),
            trajectory.terminated,
            trajectory.truncated,
            0.99,
            0.95,
        )
        return explained_variance(old_values, old_values + advantages)

    expected = variance(state, trajectory)
    np.testing.assert_allclose(metrics["explained_variance"], expected, rtol=1e-3)


@pytest.mark.slow
def test_the_gradient_is_not_subsampled():
    """States that the stride skips change the policy too."""
    algorithm = trpo.make(
        probes.constant_value(), trpo.Config(**SMALL, fisher_subsample=4, gae_lambda=0.0)
    )
    collect = jax.jit(lambda key: algorithm.collect(algorithm.init(key)))
    state, trajectory = collect(jax.random.key(0))
    skipped = jnp.arange(16)[:, None] % 4 != 0
    silent = jnp.zeros_like(trajectory.reward)
    # Only skipped states have rewards. They are centred, so the other states have no advantage.
    reward = jnp.where(skipped, 1.0 - 2.0 * trajectory.action, silent)
    critic = jax.tree.map(jnp.zeros_like, state.critic)
    state = state._replace(critic=critic)
    _, metrics = jax.jit(algorithm.learn)(state, trajectory._replace(reward=reward))
    assert metrics["surrogate_gain"] > 0.01
    assert metrics["step_rejected"] == 0


@pytest.mark.slow
def test_the_fisher_matrix_uses_every_kth_time_step(one_update):
    _, _, state, _, trajectory, _, metrics = one_update  # fisher_subsample = 4
    policy = make_policy(envs.make("CartPole-v1").observation, Discrete(2), hidden_sizes=(8,))
    critic = make_critic(envs.make("CartPole-v1").observation, hidden_sizes=(8,))
    see = lambda x: normalize(state.actor.observation_statistics, x)
    observations = see(trajectory.observation)
    advantages = generalized_advantages(
        trajectory.reward,
        critic.apply(state.critic.params, observations),
        critic.apply(state.critic.params, see(trajectory.next_observation)),
        trajectory.terminated,
        trajectory.truncated,
        0.99,
        0.95,
    )
    surrogate = importance_sampled_surrogate(trajectory.action, standardize(advantages))
    params = state.actor.policy_params
    old = policy.apply(params, observations)
    gradient = jax.grad(lambda p: surrogate(policy.apply(p, observations), old))(params)

    def squared_length(seen):
        fvp = fisher_vector_product(lambda p: policy.apply(p, seen), params)
        solution = damped_solver(fvp, damping=0.1, num_iterations=10)(gradient)
        return float(optax.tree.vdot(gradient, solution.x))

    found = [squared_length(observations[first::4]) for first in range(4)]
    errors = [abs(float(metrics["gradient_dot_direction"]) / x - 1) for x in found]
    assert sorted(errors)[0] < 1e-3 < 5e-3 < sorted(errors)[1]


def thinned_64_times(batch, stride, axis=0):
    @jax.jit
    def draw(key, batch):
        return jax.vmap(lambda key: thinned(key, batch, stride, axis))(jax.random.split(key, 64))

    return jax.device_get(draw(jax.random.key(0), batch))


@pytest.mark.parametrize(("length", "stride"), [(8, 2), (10, 4), (7, 7)])
def test_every_time_step_is_in_the_fisher_matrix_of_some_update(length, stride):
    """With a fixed first step, the Fisher matrix of a periodic task would always miss states."""
    rows = np.broadcast_to(np.arange(length)[:, None], (length, 3))
    kept = thinned_64_times(rows, stride)
    assert kept.shape == (64, length // stride, 3)
    assert set(kept.ravel().tolist()) == set(range(length))
    assert (np.diff(kept, axis=1) == stride).all()


@pytest.mark.parametrize(("num_envs", "stride"), [(8, 2), (10, 4), (7, 7)])
def test_a_subsample_of_environments_keeps_whole_sequences(num_envs, stride):
    step, env = np.indices((5, num_envs))
    batch = {"step": step, "env": env, "carry": env[:1]}
    kept = thinned_64_times(batch, stride, axis=1)
    assert kept["env"].shape == (64, 5, num_envs // stride)
    np.testing.assert_array_equal(kept["step"], np.broadcast_to(step[:, :1], kept["env"].shape))
    np.testing.assert_array_equal(kept["env"], kept["carry"].repeat(5, axis=1))
    assert set(kept["carry"].ravel().tolist()) == set(range(num_envs))


@pytest.mark.parametrize("module", [trpo, ua_trpo])
def test_only_fisher_vector_products_may_be_less_precise(module):
    def products(precision):
        algorithm = module.make(
            probes.counter(), module.Config(**SMALL, fisher_precision=precision)
        )
        lowered = jax.jit(algorithm.update).lower(jax.eval_shape(algorithm.init, jax.random.key(0)))
        lines = [x for x in lowered.as_text().splitlines() if "dot_general" in x]
        return Counter("HIGHEST" in x for x in lines)

    exact, fast = products("float32"), products("default")
    # Each of two layers has three products. The rest acts, estimates values and fits the critic.
    assert 0 < exact[True] - fast[True] == fast[False] - exact[False] <= 20
    assert fast[True] > 0


def test_every_update_is_one_program(one_update):
    _, update, state, *_ = one_update  # its first state is the result of `init`
    for _ in range(3):
        state, _ = update(state, 0.0)
    assert update._cache_size() == 1


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        # Observations and next observations, each raw and standardised.
        ({"normalize_observations": False}, 4),
        ({}, 4),
        ({"fisher_subsample": 4}, 4.25),
    ],
)
def test_an_update_needs_memory_for_about_four_copies_of_its_observations(settings, copies):
    width = 2048
    env = probes.counter(width=width)
    algorithm = trpo.make(env, trpo.Config(**(SMALL | {"num_steps": 64} | settings)))
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))
    compiled = jax.jit(algorithm.update, donate_argnums=0).lower(shapes).compile()
    observations = 4 * 64 * width * np.dtype(np.float32).itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < (copies + 0.2) * observations


def test_a_rejected_step_keeps_the_policy_bit_for_bit(one_update):
    _, update, state, *_ = one_update
    new_state, metrics = update(state, 1e-20)
    assert metrics["step_rejected"] == 1
    assert metrics["kl"] == 0
    chex.assert_trees_all_equal(new_state.actor.policy_params, state.actor.policy_params)


def test_truncation_bootstraps_and_termination_does_not():
    """With a bootstrap at time limits, a reward of 1 in each step is worth 1 / (1 - gamma)."""

    @jax.jit
    @jax.vmap
    def critic_targets(terminates_at, visible):
        # The time limit comes after the termination.
        env = probes.counter(time_limit=5, terminates_at=terminates_at, reward=1, visible=visible)
        config = trpo.Config(**SMALL, gamma=0.8, critic_lr=0.01)
        algorithm = trpo.make(env, config)
        update = lambda state, _: algorithm.update(state)
        state, _ = jax.lax.scan(update, algorithm.init(jax.random.key(0)), length=150)
        critic = make_critic(env.observation, hidden_sizes=SMALL["hidden_sizes"])
        observations = normalize(state.actor.observation_statistics, jnp.arange(4.0)[:, None])
        return critic.apply(state.critic.params, observations)

    # Without a termination, all observations look the same.
    truncated, terminated = critic_targets(np.array([-1, 4]), np.array([False, True]))
    np.testing.assert_allclose(truncated[0], 5.0, atol=0.05)
    geometric = [(1 - 0.8**n) / 0.2 for n in (4, 3, 2, 1)]
    np.testing.assert_allclose(terminated, geometric, atol=0.25)


# --- many runs in one program


@pytest.mark.slow
def test_64_seeds_together_are_the_same_seeds_alone(cartpole):
    algorithm = trpo.make(cartpole, trpo.Config(**SMALL))
    run = lambda key: jax.lax.scan(lambda s, _: algorithm.update(s), algorithm.init(key), length=3)[
        1
    ]
    keys = jax.vmap(jax.random.key)(jnp.arange(64))
    together = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    chex.assert_trees_all_close(together, alone, rtol=2e-3, atol=2e-4)
    assert len(np.unique(together["entropy"][:, 0])) > 60  # the seeds differ


IDLE = {"penalty_memory"}  # the advantages of six updates of Pendulum spread alike


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "idle"),
    [
        ({"exploration": "ou"}, IDLE | {"color_beta", "critic_max_change"}),
        ({"gae_critic": "trust_region", "exploration": "colored"}, IDLE | {"ou_rho", "critic_lr"}),
    ],
    ids=["adam", "trust_region"],
)
def test_every_real_field_sweeps_in_one_program(choices, idle):
    """Lane 0 keeps the config. Each other lane changes one field, which must have an effect."""
    # With damped_scaling=False, the line search shortens some steps. This kl_penalty bounds others.
    numbers = {
        "entropy_coef": 0.01,
        "damped_scaling": False,
        "kl_penalty": 2.0,
        "penalty_memory": 0.5,
    }
    base = trpo.Config(**SMALL, **choices, **numbers)
    names = [f.name for f in dataclasses.fields(base) if f.metadata["kind"] is float]
    assert len(names) == len(jax.tree.leaves(base)) == 14
    names = [name for name in names if name not in idle]
    lanes = len(names) + 1
    columns = {name: jnp.full(lanes, getattr(base, name)) for name in names}
    for lane, name in enumerate(names, start=1):
        columns[name] = columns[name].at[lane].set(columns[name][0] * 0.7 + 0.01)
    rest = {name: jnp.full(lanes, getattr(base, name)) for name in idle}
    configs = base.replace(**columns, **rest)
    pendulum = envs.make("Pendulum-v1")

    def run(config):
        algorithm = trpo.make(pendulum, config)
        state = algorithm.init(jax.random.key(0))
        return jax.lax.scan(lambda s, _: algorithm.update(s), state, length=6)[1]

    swept = jax.jit(jax.vmap(run))(configs)
    single = jax.jit(lambda configs: jax.lax.map(run, configs))(configs)
    # A Gauss-Newton step of the critic multiplies rounding errors by thousands.
    alike = 1 if base.gae_critic == "trust_region" else 2
    for name, values in swept.items():
        close = {"rtol": 1e-2, "atol": 1e-3, "err_msg": name}
        np.testing.assert_allclose(values[:, :alike], single[name][:, :alike], **close)
    for lane, name in enumerate(names, start=1):
        different = [
            not np.allclose(x[lane], x[0], rtol=1e-3, equal_nan=True)
            for x in map(np.asarray, swept.values())
        ]
        assert any(different), f"{name} changes nothing"


@pytest.mark.slow
def test_new_statistics_change_the_policy_by_less_than_the_trust_region():
    """The KL divergence between the old and the new statistics, with the same parameters."""
    env = envs.make("MountainCar-v0")
    algorithm = trpo.make(env, trpo.Config(**(SMALL | {"num_steps": 64})))
    update, collect = jax.jit(algorithm.update), jax.jit(algorithm.collect)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    for _ in range(4):
        _, trajectory = collect(state)
        new_state, _ = update(state)
        frozen = new_state.actor._replace(observation_statistics=state.actor.observation_statistics)
        _, through_old = algorithm.policy(frozen, (), trajectory.observation)
        _, through_new = algorithm.policy(new_state.actor, (), trajectory.observation)
        assert through_old.kl(through_new).mean() < 0.01
        state = new_state


def test_scale_rewards_divides_by_the_deviation_of_discounted_sums():
    env = probes.counter(time_limit=6)
    algorithm = trpo.make(env, trpo.Config(**SMALL, scale_rewards=True))

    @jax.jit
    def run(key):
        state, trajectory = algorithm.collect(algorithm.init(key))
        assert isinstance(trajectory, Transition)
        learnt, _ = algorithm.learn(state, trajectory)
        return trajectory, learnt.reward_statistics, learnt.rollout.reward_sums

    trajectory, statistics, reward_sums = jax.device_get(run(jax.random.key(0)))
    sums, total = [], np.zeros(4)
    for reward, done in zip(trajectory.reward, trajectory.done, strict=True):
        total = reward + 0.99 * total
        sums.append(total)
        total = np.where(done, 0.0, total)
    assert statistics.count == 64
    np.testing.assert_allclose(statistics.mean, np.mean(sums), rtol=1e-4)
    np.testing.assert_allclose(reward_sums, total, rtol=1e-5)


REWARDS = [  # rewards of a count, and the size of the largest of the scaled rewards
    (lambda count: 1.0, 1.0),
    (lambda count: 1e6 + 0 * count, 1.0),
    (lambda count: 1e-6 + 0 * count, 1e-6),
    (lambda count: 1 + 1e-5 * count, 100.0),  # hardly varies
    (lambda count: 1e8 * (1 + 1e-5 * count), 100.0),
    (lambda count: 5e-9 * (count == 2), 1 / np.sqrt(5 / 36)),  # tiny, but the only reward
]


def test_scaled_rewards_have_a_size_that_a_critic_can_fit():
    """With a gamma of 0, the targets of the critic are the scaled rewards."""
    env = probes.counter(time_limit=6)
    config = trpo.Config(**(SMALL | {"num_steps": 36}), scale_rewards=True, gamma=0.0)
    numbers = [lambda count, f=f: jnp.asarray(f(count), jnp.float32) for f, _ in REWARDS]

    @jax.jit
    @jax.vmap
    def largest_target(index):
        def step(key, count, action):
            new, result = env.step(key, count, action)
            return new, result._replace(reward=jax.lax.switch(index, numbers, count))

        algorithm = trpo.make(env._replace(step=step), config)
        state, trajectory = algorithm.collect(algorithm.init(jax.random.key(0)))
        _, _, targets = estimate(env, config, algorithm.agent, state, trajectory)
        return jnp.abs(targets).max()

    expected = [size for _, size in REWARDS]
    np.testing.assert_allclose(largest_target(np.arange(len(REWARDS))), expected, rtol=0.2)


def test_a_restored_state_continues_bit_for_bit(one_update):
    _, update, state, *_ = one_update
    stored = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    restored = jax.tree.map(np.array, stored)
    restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
    for _ in range(2):
        state, metrics = update(state, 0.0)
        restored, restored_metrics = update(restored, 0.0)
    chex.assert_trees_all_equal(metrics, restored_metrics)
    chex.assert_trees_all_equal(
        (state.actor, state.critic, state.rollout),
        (restored.actor, restored.critic, restored.rollout),
    )
