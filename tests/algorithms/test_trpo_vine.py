import chex
import jax
import jax.numpy as jnp
import learning
import numpy as np
import optax
import probes
import pytest

from trpo_jax.algorithms import trpo_vine
from trpo_jax.algorithms.base import Actor, update_keys
from trpo_jax.algorithms.on_policy import estimate
from trpo_jax.algorithms.trpo_vine import make_branches
from trpo_jax.envs.base import Environment, StepResult
from trpo_jax.envs.episodes import start_episode
from trpo_jax.envs.specs import ArraySpec, Box, Discrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.networks import make_critic
from trpo_jax.normalization import RunningStatistics
from trpo_jax.solvers import damped_solver
from trpo_jax.vine import branch_return, differences, self_normalized_surrogate

pytestmark = pytest.mark.xdist_group("trpo_vine")

SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "hidden_sizes": (8,),
    "critic_minibatches": 4,
    "num_states": 16,
    "branch_steps": 3,
}


LEARN = {"max_kl": 0.05, "num_states": 32, "branch_steps": 3}


def branches_of(algorithm, state, trajectory):
    """Returns the branches of a trajectory. The advantages in their batch are the row numbers."""
    config, env = algorithm.config, algorithm.env
    _, step_input, _ = estimate(env, config, algorithm.agent, state, trajectory)
    numbers = jnp.arange(config.num_envs * config.num_steps, dtype=jnp.float32)
    numbers = numbers.reshape(config.num_steps, config.num_envs)
    step_input = step_input._replace(batch=step_input.batch._replace(advantages=numbers))
    num_branches = config.num_branches
    if isinstance(env.action, Discrete):
        num_branches = min(num_branches, env.action.num_actions)
    branch_rollouts = make_branches(env, config, algorithm.agent, num_branches)
    key, _ = jax.random.split(update_keys(state).policy)
    return jax.jit(branch_rollouts)(key, step_input)


def values(env, state, observations):
    critic = make_critic(env.observation, hidden_sizes=SMALL["hidden_sizes"])
    return critic.apply(state.critic.params, jnp.asarray(observations, jnp.float32)[:, None])


@pytest.mark.slow
@learning.CHOICES_AND_NUMBERS
def test_probe(probe, continuous):
    learning.assert_learns(trpo_vine, probe, continuous, **LEARN)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["constant_value", "value_of_observation"])
def test_no_step_is_taken_if_no_action_matters(probe):
    _, _, metrics, *_ = learning.learnt(trpo_vine, probe, **LEARN)
    assert not metrics["kl"].any()


# --- the returns of branches


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap", [False, True])
def test_branches_start_from_the_states_of_the_trajectory(bootstrap):
    """The reward is 10 times the count, for all actions. The reward scale of the critic is 3."""
    env = probes.counter(terminates_at=6)
    settings = {"gamma": 0.5, "normalize_observations": False, "scale_rewards": True}
    config = trpo_vine.Config(**(SMALL | settings), branch_bootstrap=bootstrap)
    algorithm = trpo_vine.make(env, config)
    zero = jnp.zeros(())
    deviation_of_3 = RunningStatistics(jnp.uint32(10**9), zero, zero, jnp.array(3.0))
    state = algorithm.init(jax.random.key(0))._replace(reward_statistics=deviation_of_3)
    _, trajectory = jax.jit(algorithm.collect)(state)
    branches = branches_of(algorithm, state, trajectory)
    chex.assert_shape(branches.returns, (16, 2))
    rows = branches.batch.advantages[:, 0].astype(int)
    assert len(set(rows.tolist())) == 16
    assert set((rows % 4).tolist()) == {0, 1, 2, 3}
    assert 4 < (rows // 4).max() < 8
    starts = branches.batch.observations[:, 0, 0]
    np.testing.assert_array_equal(starts, trajectory.observation[rows // 4, rows % 4, 0])
    assert len(set(starts.tolist())) > 3
    for start, found in zip(starts.tolist(), branches.returns, strict=True):
        steps = min(3, 6 - int(start))
        expected = sum(10 * (start + t) * 0.5**t for t in range(steps))
        if bootstrap and start + steps < 6:
            expected += 0.5**steps * 3 * float(values(env, state, [start + steps])[0])
        np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)


def noisy():
    """Returns an environment whose reward is the action plus noise. Its state is constant."""

    def step(key, state, action):
        reward = action[0] + 3 * jax.random.normal(key)
        no = jnp.zeros((), bool)
        return state, StepResult(jnp.zeros(1), reward, no, no)

    bounds = np.full(1, np.inf, np.float32)
    spec = ArraySpec((1,), np.dtype(np.float32))
    reset = lambda key: (jnp.zeros(()), jnp.zeros(1))
    return Environment("noisy", reset, step, spec, Box(-bounds, bounds), None)


@pytest.mark.slow
def test_branches_of_a_state_share_their_random_numbers():
    env = noisy()
    settings = {"branch_bootstrap": False, "gamma": 1.0, "num_states": 32}
    algorithm = trpo_vine.make(env, trpo_vine.Config(**(SMALL | settings)))
    state = algorithm.init(jax.random.key(0))
    _, trajectory = jax.jit(algorithm.collect)(state)
    branches = branches_of(algorithm, state, trajectory)
    # All branches of a state have the same noise, and different states have different noise.
    noise = branches.returns - branches.actions[..., 0]
    np.testing.assert_allclose(noise, noise[:, :1].repeat(4, axis=1), atol=1e-4)
    assert np.std(noise[:, 0]) > 3

    def independent(key, action):
        episode = start_episode(env, key)
        act = lambda key, o: algorithm.policy(state.actor, (), o)[1].sample(key)
        return branch_return(env, act, lambda o: jnp.zeros(()), key, episode, action, 3, 1.0)

    keys = jax.random.split(jax.random.key(1), (32, 4))
    others = jax.vmap(jax.vmap(independent))(keys, branches.actions)
    variance = lambda returns: np.var(returns[:, 0] - returns[:, 1])
    assert variance(branches.returns) < 0.2 * variance(others)  # 2 and 2 (1 + 3 9 + 2) on average


# --- one update


@pytest.fixture(scope="module")
def one_update():
    env = probes.counter(time_limit=6)._replace(action=Discrete(3))

    def reset(key):  # the environments start in different states
        state = jax.random.randint(key, (), 0, 6, jnp.int32)
        return state, state[None].astype(jnp.float32)

    def step(key, state, action):
        new, result = env.step(key, state, action)
        return new, result._replace(reward=action * (state % 2 - 1 / 3))

    config = trpo_vine.Config(**SMALL, fisher_subsample=4, entropy_coef=0.1)
    algorithm = trpo_vine.make(env._replace(reset=reset, step=step), config)
    state = jax.jit(algorithm.init)(jax.random.key(3))
    update = jax.jit(algorithm.update)
    state, _ = update(state)  # the statistics differ from their start
    _, trajectory = jax.jit(algorithm.collect)(state)
    return algorithm, state, trajectory, *update(state)


@pytest.mark.slow
def test_the_step_uses_the_branches(one_update):
    algorithm, state, trajectory, learnt, metrics = one_update
    branches = branches_of(algorithm, state, trajectory)
    rows = branches.batch.advantages[:, 0].astype(int)
    observations = trajectory.observation[rows // 4, rows % 4]
    frozen = state.actor.observation_statistics
    policy = lambda p, obs: algorithm.policy(Actor(p, frozen), (), obs)[1]
    params = state.actor.policy_params
    distribution_fn = lambda p: policy(p, observations)
    old, new = distribution_fn(params), distribution_fn(learnt.actor.policy_params)
    np.testing.assert_allclose(metrics["kl"], old.kl(new).mean(), rtol=1e-3)
    assert 0 < metrics["kl"] <= 0.01

    centred = differences(branches.returns)
    surrogate = self_normalized_surrogate(
        branches.actions, branches.log_probs, centred / centred.std(), 0.1
    )
    gain = surrogate(new, old) - surrogate(old, old)
    np.testing.assert_allclose(metrics["surrogate_gain"], gain, rtol=1e-3)
    np.testing.assert_allclose(
        metrics["branch_return_std"], branches.returns.std(axis=1).mean(), rtol=1e-4
    )
    gradient = jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)

    def squared_length(seen):
        fvp = fisher_vector_product(lambda p: policy(p, seen), params)
        solution = damped_solver(fvp, damping=0.1, num_iterations=10)(gradient)
        return float(optax.tree.vdot(gradient, solution.x))

    found = [squared_length(observations[first::4]) for first in range(4)]
    errors = [abs(float(metrics["gradient_dot_direction"]) / x - 1) for x in found]
    assert sorted(errors)[0] < 1e-3 < 5e-3 < sorted(errors)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("num_actions", "tried"), [(2, 2), (5, 4)])
def test_every_step_of_the_simulator_counts(num_actions, tried):
    steps = []
    env = probes.counter(terminates_at=2)._replace(action=Discrete(num_actions))

    def step(key, state, action):
        jax.debug.callback(lambda _: steps.append(1), action)
        return env.step(key, state, action)

    algorithm = trpo_vine.make(env._replace(step=step), trpo_vine.Config(**SMALL))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    jax.effects_barrier()
    steps.clear()  # without the random actions of the first statistics
    jax.block_until_ready(jax.jit(algorithm.update)(state))
    jax.effects_barrier()
    assert algorithm.steps_per_update == len(steps) == 4 * 8 + 16 * tried * 3


@pytest.mark.slow
def test_configs_sweep_in_one_program():
    env = noisy()
    configs = trpo_vine.Config(**SMALL).replace(gamma=jnp.array([0.9, 0.9, 0.5]))
    configs = jax.tree.map(lambda x: jnp.broadcast_to(x, (3,)), configs)

    def run(config):
        algorithm = trpo_vine.make(env, config)
        return algorithm.update(algorithm.init(jax.random.key(0)))[1]

    metrics = jax.jit(jax.vmap(run))(configs)
    np.testing.assert_allclose(metrics["kl"][0], metrics["kl"][1], rtol=1e-4)
    loss = metrics["critic_loss"]
    assert not np.allclose(loss[0], loss[2], rtol=1e-3)


# --- wrong settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_branches": 1}, "num_branches = 1 compares no actions.*constant"),
        ({"num_states": 33}, r"num_states = 33 is more than .* 4 \* 8 = 32"),
        ({"num_states": 4, "fisher_subsample": 5}, "fisher_subsample = 5 .* num_states = 4"),
        ({"num_branches": 0}, "num_branches = 0 cannot work"),
    ],
)
def test_sizes_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        trpo_vine.make(probes.action_choice(), trpo_vine.Config(**(SMALL | settings)))


def test_an_environment_that_cannot_be_restarted_is_refused():
    env = probes.action_choice()._replace(restartable=False)
    with pytest.raises(ConfigurationError, match="action choice cannot be restarted"):
        trpo_vine.make(env, trpo_vine.Config(**SMALL))
