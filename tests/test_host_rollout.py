"""Rollouts on the host give the same actions, statistics and updates as on the device."""

import re
import threading
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from trpo_jax import envs
from trpo_jax.algorithms import qprop, trpo, trpo_vine, vpg
from trpo_jax.algorithms.base import update_keys
from trpo_jax.envs.base import Pool, StepResult, host_environment
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.host_rollout import host_rollout, make_choose
from trpo_jax.running.host_program import HostState, host_program

NUM_ENVS, NUM_STEPS, TIME_LIMIT = 4, 40, 12
SETTINGS = {
    "num_envs": NUM_ENVS,
    "num_steps": NUM_STEPS,
    "hidden_sizes": (8,),
    "critic_epochs": 2,
    "critic_minibatches": 4,
    "scale_rewards": True,
}


def replaying(env, trajectories=(), last=None):
    """Returns a host environment that plays back trajectories, until the `last` observations.

    The actions must be the recorded actions. The pool returns only what a simulator would return:
    no statistics and no episodes.
    """

    def open(seeds, num_envs, render=False):
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *trajectories)
        join = lambda seen, final: np.concatenate([seen, final[None]])
        shown = jax.tree.map(join, joined.observation, last)
        time = iter(range(len(joined.reward)))
        now = -1

        def reset(mask):
            return jax.tree.map(lambda x: x[now + 1][mask], shown)

        def step(actions):
            nonlocal now
            now = next(time)
            step = jax.tree.map(lambda x: x[now], joined)
            taken = jax.vmap(partial(envs.specs.to_environment_action, env.action))
            chex.assert_trees_all_close(actions, taken(step.action), rtol=1e-4, atol=1e-5)
            return StepResult(step.next_observation, step.reward, step.terminated, step.truncated)

        return Pool(reset, step, lambda: None)

    return host_environment(env.name, env.observation, env.action, env.time_limit, open)


CASES = [("CartPole-v1", trpo, {})]
SLOW_CASES = [
    ("CartPole-v1", trpo, {"memory": "lstm", "memory_size": 4}),
    ("everything", vpg, {"memory": "gru", "memory_size": 4}),
    ("Pendulum-v1", trpo, {"exploration": "ou"}),
    ("Pendulum-v1", trpo, {"exploration": "colored"}),
    ("Pendulum-v1", qprop, {"replay_size": 200, "q_updates": 3}),
]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES]
EVERYTHING = {"parts": True, "masked": True, "joint": True}


@pytest.mark.parametrize(("name", "module", "options"), CASES)
def test_the_host_and_the_device_learn_the_same_from_one_recorded_trajectory(name, module, options):
    env = probes.noise(**EVERYTHING) if name == "everything" else envs.make(name)
    env = env._replace(time_limit=TIME_LIMIT)
    config = module.Config(**SETTINGS, **options)
    on_device = module.make(env, config)
    collect, learn = jax.jit(on_device.collect), jax.jit(on_device.learn)
    state = initial = jax.jit(on_device.init)(jax.random.key(3))
    trajectories, states = [], []
    for _ in range(2):
        state, trajectory = collect(state)
        trajectories.append(jax.tree.map(np.asarray, trajectory))
        state, metrics = learn(state, trajectory)
        states.append((state, metrics))
    assert trajectories[0].truncated.any()

    last = jax.tree.map(np.asarray, state.rollout.episodes.observation)
    host_env = replaying(env, trajectories, last)
    on_host = module.make(host_env, config)
    # The run starts as a resumed run, because in a new run random actions decide the statistics.
    program = host_program(on_host, (3,), 2, num_done=1)
    (start,) = program.state.seeds
    start = start._replace(actor=initial.actor)
    started = start.rollout.episodes
    chex.assert_trees_all_equal(started.observation, initial.rollout.episodes.observation)
    assert started.length.tolist() == [0, 3, 6, 9], "staggered over the time limit"
    assert started.first.all()
    choose, pool = make_choose(host_env, on_host.act), host_env.open(3, NUM_ENVS)
    key, acting = update_keys(start).collect, start.rollout.acting
    _, _, trajectory = host_rollout(
        host_env, pool, choose, start.actor, key, started, acting, NUM_STEPS
    )
    assert_close(trajectory, trajectories[0])
    started_state = HostState(start.actor, (start,))
    advanced, (metrics, health) = program.advance(started_state, 2)
    (state,), (expected, _) = advanced.seeds, states[-1]
    assert health.finite.all()
    lengths = (x.rollout.episodes.length for x in (state, expected))
    np.testing.assert_array_equal(*lengths)
    without = lambda x: x._replace(key=0, rollout=x.rollout._replace(episodes=()))
    assert_close(without(state), without(expected))
    for index, (_, expected_metrics) in enumerate(states):
        assert_close({name: x[0, index] for name, x in metrics.items()}, expected_metrics)


def assert_close(found, expected):
    """Asserts that all leaves are equal, up to the rounding of two updates."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )


def test_a_host_environment_shows_zeros_before_its_pool_is_opened():
    env = replaying(envs.make("CartPole-v1"))
    state = jax.jit(trpo.make(env, trpo.Config(**SETTINGS)).init)(jax.random.key(0))
    np.testing.assert_array_equal(state.rollout.episodes.observation, np.zeros((NUM_ENVS, 4)))


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "batches"), [("policy", 3), ("critic", 4)])
def test_an_update_with_nan_is_discarded(broken, batches):
    """A policy with NaN never acts. NaN in a critic is found while the next batch is collected."""
    steps = []

    def open(seed, num_envs, render=False):
        def step(actions):
            steps.append(actions)
            flags = np.zeros(num_envs, bool)
            observations = np.full((num_envs, 4), np.sin(len(steps)), np.float32)
            return StepResult(observations, np.ones(num_envs, np.float32), flags, flags)

        reset = lambda mask: np.zeros((mask.sum(), 4), np.float32)
        return Pool(reset, step, lambda: None)

    spaces = envs.make("CartPole-v1")
    env = host_environment("breaking", spaces.observation, spaces.action, None, open)
    settings = SETTINGS | {"num_steps": 10, "normalize_observations": False}
    algorithm = trpo.make(env, trpo.Config(**settings))

    def improve(state, trajectory):
        improved, fit_input, metrics = algorithm.improve(state, trajectory)
        factor = jnp.where(state.num_updates >= 2, jnp.nan, 1)
        if broken == "policy":
            return improved, fit_input, metrics | {"kl": metrics["kl"] * factor}
        return improved, fit_input._replace(targets=fit_input.targets * factor), metrics

    def run(num_updates):
        program = host_program(algorithm._replace(improve=improve), (3,), num_updates)
        steps.clear()
        return program.advance(program.state, num_updates)

    expected, _ = run(2)
    state, (_, health) = run(5)
    assert health.finite.tolist() == [[True, True, False, False, False]]
    assert len(steps) == batches * 10
    for a, b in zip(*map(jax.tree.leaves, (state.actor, expected.actor)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_seed_that_fails_stops_the_others(monkeypatch):
    """Seed 0 waits for the failure of seed 1, and must then stop before the end of its chunk."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    failed, steps = threading.Event(), []

    def open(seed, num_envs, render=False):
        def step(actions):
            if seed == 1:
                failed.set()
                raise RuntimeError("the floor gave way")
            assert failed.wait(60)
            steps.append(actions)
            flags = np.zeros(num_envs, bool)
            return StepResult(np.zeros((num_envs, 4), np.float32), np.float32(flags), flags, flags)

        reset = lambda mask: np.zeros((mask.sum(), 4), np.float32)
        return Pool(reset, step, lambda: None)

    spaces = envs.make("CartPole-v1")
    env = host_environment("waiting", spaces.observation, spaces.action, None, open)
    settings = SETTINGS | {"num_steps": 10, "normalize_observations": False}
    algorithm = trpo.make(env, trpo.Config(**settings))
    program = host_program(algorithm, (0, 1), 10_000)
    with pytest.raises(EnvironmentFailure, match="floor gave way"):
        program.advance(program.state, 10_000)
    assert len(steps) <= 1


def drawing(opened, broken_step):
    """Returns a joint environment whose copies draw observations, each with a generator of its own.

    The last copy of seed 1 returns a reward that is NaN in one of its steps.
    """

    def open(seeds, num_envs, render=False):
        opened.append(seeds)
        generators = [np.random.default_rng([x, copy]) for x in seeds for copy in range(num_envs)]
        number = 0

        def draw(mask):
            drawn = [x.normal(size=4) for x, here in zip(generators, mask, strict=True) if here]
            return np.array(drawn, np.float32)

        def step(actions):
            nonlocal number
            number += 1
            shown = draw(np.ones(len(generators), bool))
            reward, ends = shown[:, 1] * np.asarray(actions), shown[:, 0] > 1
            if number == broken_step and 1 in seeds:
                bad = num_envs * seeds.index(1) + num_envs - 1
                reward[bad], ends[bad] = np.nan, False
            return StepResult(shown, reward, ends, np.zeros_like(ends))

        return Pool(draw, step, lambda: None)

    spaces = envs.make("CartPole-v1")
    arguments = spaces.observation, spaces.action, TIME_LIMIT, open
    return host_environment("drawing", *arguments, joint=True)


@pytest.mark.slow
def test_a_seed_learns_the_same_in_a_group_alone_and_in_other_chunks(monkeypatch):
    """Numbers that are not finite stop only their own seed."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    settings, opened = SETTINGS | {"num_steps": 10}, []
    broken_step = 10 + 3 * 10 - 5  # a warm-up and two whole rollouts come before
    algorithm = trpo.make(drawing(opened, broken_step), trpo.Config(**settings))

    def run(seeds, chunks):
        program = host_program(algorithm, seeds, max(chunks))
        state, rows, alive = program.state, [], np.ones(len(seeds), bool)
        for count in chunks:
            state, (metrics, health) = program.advance(state, count, alive)
            rows.append((metrics, health))
            alive = alive & health.finite.all(axis=1)
        program.close()
        metrics, health = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *rows)
        return program.broken_by, state.actor, metrics, health

    broken_by, *together = run((0, 1, 2), (4,))
    assert sorted(opened) == [[0, 1], [2]]  # each group opens its pool in its own thread
    assert list(broken_by) == [1]
    assert re.search(r"a reward that is not finite: nan.*\(copy 4 of 4\)", broken_by[1])
    np.testing.assert_array_equal(together[-1].finite.sum(axis=1), [4, 2, 4])
    chex.assert_trees_all_equal(run((0, 1, 2), (1, 2, 1))[1:], tuple(together))
    for index in range(3):
        alone = run((index,), (4,))
        own = jax.tree.map(lambda x, index=index: x[index : index + 1], tuple(together))
        chex.assert_trees_all_equal(alone[1:], own)
        assert list(alone[0].values()) == [x for key, x in broken_by.items() if key == index]


@pytest.mark.slow
def test_a_pool_lives_in_one_thread_from_its_opening_to_its_closing(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    threads = {}

    def open(seed, num_envs, render=False):
        time.sleep(0.1)
        threads[seed] = used = {threading.get_ident()}
        here = lambda: used.add(threading.get_ident())

        def step(actions):
            here()
            flags = np.zeros(num_envs, bool)
            return StepResult(np.zeros((num_envs, 4), np.float32), np.float32(flags), flags, flags)

        def reset(mask):
            here()
            return np.zeros((mask.sum(), 4), np.float32)

        return Pool(reset, step, here)

    spaces = envs.make("CartPole-v1")
    env = host_environment("owned", spaces.observation, spaces.action, None, open)
    monkeypatch.setattr("trpo_jax.running.host_program.TELL_EVERY", 0.02)
    said = []
    algorithm = trpo.make(env, trpo.Config(**SETTINGS))
    program = host_program(algorithm, (0, 1, 2), 2, tell=said.append)
    assert said[0].startswith("Starting 4 environments per seed: 0 of 3 seeds after 0 s")
    for _ in range(2):
        program = program._replace(state=program.advance(program.state, 2)[0])
    program.close()
    assert all(len(used) == 1 for used in threads.values()), threads
    assert len(set().union(*threads.values())) == 2


def test_trpo_vine_refuses_an_environment_that_cannot_be_restarted():
    env = replaying(envs.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="cannot be restarted"):
        trpo_vine.make(env, trpo_vine.Config(**SETTINGS))
