import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Categorical, DiagGaussian
from trpo_jax.envs.base import Pool, StepResult, host_environment
from trpo_jax.envs.gymnasium import environment_seeds
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import EnvironmentFailure, NotFinite
from trpo_jax.normalization import RunningStatistics
from trpo_jax.records.acting import make_act
from trpo_jax.running.evaluation import (
    EVALUATION,
    HOST_STEPS,
    Played,
    cut_note,
    evaluate,
    evaluation_bound,
    make_evaluation,
    require_finite_returns,
)


def returns_of(env, act, num_episodes, **options):
    """Evaluates in one program; `evaluate` alone compiles each of its operations."""
    play = jax.jit(lambda key: evaluate(env, act, key, num_episodes, **options).returns)
    return np.asarray(play(jax.random.key(0)))


def zeros_of(num_seeds, size=1):
    """Returns an actor without numbers. `size` is that of an observation."""
    count, numbers = np.zeros(num_seeds, np.uint32), np.zeros((num_seeds, size), np.float32)
    return Actor(np.zeros(num_seeds), RunningStatistics(count, numbers, numbers, numbers))


def test_each_episode_counts_once_and_is_whole():
    act = lambda key, carry, observations: (carry, jnp.zeros(len(observations), jnp.int32))
    returns = returns_of(counter(terminates_at=4), act, 5)
    np.testing.assert_array_equal(returns, np.full(5, 60.0))
    returns = returns_of(counter(time_limit=3), act, 5)
    np.testing.assert_array_equal(returns, np.full(5, 30.0))


def test_the_memory_of_a_policy_is_carried_from_step_to_step():
    env = counter(terminates_at=4)

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(reward=action.astype(jnp.float32))

    act = lambda key, carry, observations: (2 * carry, carry)
    returns = returns_of(env._replace(step=step), act, 2, carry=np.array([1, 3]))
    np.testing.assert_array_equal(returns, [1 + 2 + 4 + 8, 3 + 6 + 12 + 24])


def test_short_episodes_keep_their_return_while_long_ones_continue():
    env = envs.make("CartPole-v1")
    act = lambda key, carry, observations: (carry, (observations[:, 2] > 0).astype(jnp.int32))
    returns = returns_of(env, act, 16)
    assert len(set(returns)) > 3
    assert returns.min() > 8
    assert returns.max() < 200


def test_the_error_about_numbers_that_are_not_finite_names_environment_and_seed():
    env = counter(terminates_at=4)

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(reward=jnp.where(count > 2, jnp.nan, result.reward))

    actor = zeros_of(2)
    policy = lambda actor, carry, observations: (
        carry,
        Categorical(jnp.zeros((len(observations), 2))),
    )
    with pytest.raises(EnvironmentFailure, match=r"counter returned .* policy of seeds 3, 4"):
        returns = make_evaluation(env._replace(step=step), policy, 2)(actor, (3, 4)).returns
        require_finite_returns(env, (3, 4), returns)


def test_seed_and_number_decide_the_episodes():
    env = envs.make("Pendulum-v1")
    actor = zeros_of(3, size=3)

    def policy(actor, carry, observations):
        zeros = jnp.zeros((len(observations), 1))
        return carry, DiagGaussian(zeros, zeros)

    evaluation = make_evaluation(env, policy, 2)
    returns = evaluation(actor, (3, 4, 3)).returns
    assert returns.shape == (3, 2)
    np.testing.assert_array_equal(returns[0], returns[2])
    np.testing.assert_array_equal(evaluation(actor, (3, 4, 3)).returns, returns)
    assert len({*returns[:2].ravel(), *evaluation(actor, (3, 4, 3), 7).returns[:2].ravel()}) == 8
    stochastic = make_evaluation(env, policy, 2, stochastic=True)(actor, (3, 4, 3)).returns
    assert (stochastic != returns).all()


def test_no_two_evaluations_share_a_key(monkeypatch):
    """`split(key, n)[i]` is `fold_in(key, i)`, so one key must not be used for both."""

    def keys_of(env, act, key, num_episodes, max_steps, carry):
        keys = jnp.stack([key, *jax.random.split(key)])
        numbers = jax.random.key_data(keys)[:, 0].astype(jnp.float32)
        return Played(numbers, jnp.zeros(3, bool))

    monkeypatch.setattr("trpo_jax.running.evaluation.evaluate", keys_of)
    evaluation = make_evaluation(counter(time_limit=2), lambda *_: None, 3)
    actor = zeros_of(1)
    found = [evaluation(actor, (3,), number).returns[0].tolist() for number in range(4)]
    assert len({x for keys in found for x in keys}) == 12


def constant(choice):
    logits = lambda observations: jnp.tile(jax.nn.one_hot(choice, 2), (len(observations), 1))
    policy = lambda actor, carry, observations: (carry, Categorical(logits(observations)))
    return zeros_of(1, size=2), policy


def test_episodes_that_are_cut_are_marked():
    actor, policy = constant(0)
    play = lambda env, **options: make_evaluation(env, policy, 4, **options)(actor, (3,))
    for env in (counter(terminates_at=9), counter(time_limit=9), counter()):
        returns, cut, _ = play(env, max_steps=3)
        np.testing.assert_array_equal(returns, [[30.0] * 4])
        assert cut.all()
    for env in (counter(terminates_at=3), counter(time_limit=3)):
        returns, cut, _ = play(env, max_steps=3)
        np.testing.assert_array_equal(returns, [[30.0] * 4])
        assert not cut.any()
    assert cut_note(cut, 3) is None
    assert "2 of 4 evaluation episodes were cut after 3 steps" in cut_note(np.arange(4) < 2, 3)


@pytest.mark.parametrize(
    ("name", "max_steps", "length", "is_cut"),
    [("Counter", None, 5, False), ("Counter", 4, 4, True), ("Short", 3, 3, False)],
)
def test_few_copies_play_all_episodes_on_the_host(name, max_steps, length, is_cut):
    env = envs.make(f"gym/host_tasks:{name}-v0")
    opened = []

    def open(seeds, num_envs, render=False):
        opened.append(num_envs)
        return env.open(seeds, num_envs, render)

    actor, policy = constant(1)  # the environment gets 4 for it
    said = []
    options = {"max_steps": max_steps, "num_envs": 3}
    evaluation = make_evaluation(env._replace(open=open), policy, 7, **options)
    returns, cut, _ = evaluation(actor, (0,), tell=said.append)
    assert opened == [3]
    np.testing.assert_array_equal(returns, [[4.0 * length] * 7])
    assert (cut == is_cut).all()


def test_an_episode_with_numbers_that_are_not_finite_is_replaced(capsys):
    """This is on the host. On the device its return is NaN, which ends the run."""

    def host(broken_episodes):
        ends = iter(range(100))

        def step(actions):
            yes, broken = np.ones(1, bool), next(ends) in broken_episodes
            reward = np.full(1, np.nan if broken else 2.0)
            return StepResult(np.zeros((1, 1), np.float32), reward, yes, ~yes)

        pool = Pool(lambda mask: np.zeros((1, 1), np.float32), step, lambda: None)
        spec = counter().observation
        return host_environment("host", spec, Discrete(2), None, lambda *_: pool)

    actor, policy = constant(0)
    play = lambda env: make_evaluation(env, policy, 3, num_envs=1)(actor, (0,)).returns
    np.testing.assert_array_equal(play(host({0, 2})), [[2.0] * 3])
    assert (
        "2 evaluation episodes of host ended with numbers that are not" in capsys.readouterr().err
    )
    with pytest.raises(NotFinite, match="host ended 4 episodes of an evaluation"):
        play(host(range(100)))


def test_an_episode_that_never_ends_is_cut_and_shows_its_progress(monkeypatch):
    monkeypatch.setattr("trpo_jax.running.evaluation.SECONDS", 0.0)
    env = envs.make("gym/host_tasks:Counter-v0")._replace(time_limit=None)
    assert evaluation_bound(env, None) == HOST_STEPS
    actor, policy = constant(0)
    said = []
    played = make_evaluation(env, policy, 2, max_steps=4)(actor, (0,), tell=said.append)
    assert played.cut.all()
    assert said == [
        f"seed 0, {2 * (step == 4)} of 2 episodes ended, step {step}" for step in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_an_evaluation_equals_a_plain_loop_with_the_policy(memory):
    env = envs.make("gym/CartPole-v1")
    settings = {"hidden_sizes": (8,), "memory": memory, "memory_size": 4}
    algorithm = trpo.make(env, trpo.Config(num_envs=2, num_steps=8, **settings))
    actor = jax.jit(algorithm.init)(jax.random.key(1)).actor
    stacked = jax.tree.map(lambda x: x[None], actor)
    evaluation = make_evaluation(env, algorithm.policy, 4, num_envs=1, carry=algorithm.carry)
    played = evaluation(stacked, (3,))

    spaces = env.observation, env.action
    act = make_act(algorithm.policy, algorithm.carry, actor, env.name, *spaces)
    own = gymnasium.make("CartPole-v1")
    (seed,) = environment_seeds((EVALUATION, 3), 1)
    returns = []
    for _ in range(4):
        observation, _ = own.reset(seed=seed)
        seed, done, total = None, False, 0.0
        act.start()
        while not done:
            observation, reward, terminated, truncated, _ = own.step(act(observation))
            done, total = terminated or truncated, total + reward
        returns.append(total)
    np.testing.assert_array_equal(played.returns, [returns])
    assert len(set(returns)) > 1
