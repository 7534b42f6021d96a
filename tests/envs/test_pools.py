"""Copies of an environment on the host, also with wrong values and errors."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing

import chex
import numpy as np
import pytest

from trpo_jax.envs.base import Pool, host_environment
from trpo_jax.envs.observations import array_spec
from trpo_jax.envs.pools import Shows, open_pool
from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete
from trpo_jax.envs.threads import with_timeout
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, NotFinite
from trpo_jax.host_rollout import advance_host_episodes, start_host_episodes

SPEC = array_spec((2,), "float32")
EVERYWHERE = np.ones(2, bool)


class Odd:
    """An environment with the interface of Gymnasium that does one thing differently."""

    def __init__(self, **odd):
        self.odd = {"options": (), **odd}
        if "made" in odd:
            odd["made"]()

    def reset(self, **options):
        assert options.keys() <= {"seed"}, options
        return self.odd.get("reset", (np.zeros(2, np.float32), {}))

    def step(self, action):
        step = self.odd.get("step")
        usual = {"observation": np.zeros(2, np.float32), "reward": 1.0, "terminated": False}
        usual |= {"truncated": False, "info": {}}
        return step() if callable(step) else step or tuple((usual | self.odd)[x] for x in usual)

    def render(self):
        return self.odd.get("frame")

    def close(self):
        if "close" in self.odd:
            self.odd["close"]()


def pool_of(**odd):
    return open_pool("odd", lambda: Odd(**odd), Shows(SPEC), Discrete(2), [0, 1])


def step_once(**odd):
    """Returns the transition of one step of two copies."""
    env = host_environment("odd", SPEC, Discrete(2), None, lambda *_: pool_of(**odd))
    with closing(env.open()) as pool:
        episodes = start_host_episodes(env, pool, 2)
        return advance_host_episodes(env, pool, episodes, np.zeros(2, int))[1]


@pytest.mark.parametrize(
    "reward", [1, True, 1.0, np.float64(1), np.array([1.0]), np.array([[1]], np.int8), np.array(1)]
)
def test_a_reward_can_be_any_single_number(reward):
    step = step_once(reward=reward, terminated=np.array([0]), truncated=np.bool_(True))
    assert (step.reward.dtype, step.reward.tolist()) == (np.float32, [1.0, 1.0])
    assert not step.terminated.any()
    assert step.truncated.all()


def test_an_unused_info_breaks_nothing():
    infos = iter([{"path": np.zeros(3)}, {"path": np.zeros(5)}, None, "no dictionary"])
    step = lambda: (np.zeros(2, np.float32), 1.0, False, False, next(infos))
    with closing(pool_of(step=step)) as pool:
        pool.reset(EVERYWHERE)
        steps = [pool.step(np.zeros(2, int)) for _ in range(2)]
    assert [step.reward.tolist() for step in steps] == [[1.0, 1.0]] * 2


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"observation": np.zeros(1)}, r"returned an observation of .*\(1,\).*promises .*\(2,\)"),
        ({"reward": np.zeros(2)}, r"returned a reward of float64, shape \(2,\)"),
        ({"reward": None}, "returned a reward of None, not a number"),
        ({"reward": 1j}, "returned a reward of type complex, not a number"),
        ({"terminated": "no"}, "returned a flag terminated of 'no', not a number"),
        ({"step": (np.zeros(2), 1.0, False, {})}, "returned type tuple from step, not"),
        ({"reset": np.zeros(2)}, r"returned float64, shape \(2,\).*from reset, not"),
    ],
)
def test_the_error_for_wrong_values_of_an_environment_describes_them(odd, message):
    with pytest.raises(EnvironmentFailure, match=rf"Environment odd {message}.*\(copy 1 of 2\)"):
        step_once(**odd)


def stop(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(0), r"it called sys.exit\(0\)"),
        (StopIteration(), "StopIteration"),
        (RuntimeError("the floor\n\ngave way"), "RuntimeError: the floor gave way"),
    ],
)
def test_any_error_of_an_environment_becomes_an_environment_failure(error, message):
    with pytest.raises(EnvironmentFailure, match=rf"odd failed: {message} \(copy 1 of 2\)\.$"):
        step_once(step=stop(error))
    with pytest.raises(EnvironmentFailure, match=rf"odd failed: {message} \(copy 1 of 2\)\.$"):
        pool_of(made=stop(error))


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("stuck")])
def test_an_error_while_closing_is_a_warning(error, capsys):
    pool = pool_of(close=stop(error))
    pool.close()
    pool.close()
    assert capsys.readouterr().err.count("did not close cleanly: Environment odd failed") == 1


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"reward": -1e30}, r"a reward that is absurdly large: -1e\+30, in step 1 of an episode"),
        ({"reward": 10.0**300}, r"a reward that is absurdly large: 1e\+300"),
        ({"reward": np.nan}, "a reward that is not finite: nan"),
        (
            {"observation": np.array([0, 1e20])},
            r"an observation that is absurdly large: 1e\+20, in its component 1, in step 1",
        ),
        (
            {"observation": np.array([-np.inf, 0])},
            ".* not finite: -inf, in its component 0",
        ),
        (
            {"reset": (np.array([0, 1e20]), {})},
            r".* 1e\+20, in its component 1, from a reset",
        ),
    ],
)
def test_the_error_for_numbers_that_are_not_sound_names_them(odd, message):
    with pytest.raises(NotFinite, match=rf"Environment odd returned {message}.*\(copy 1 of 2\)"):
        step_once(**odd)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("odd", [{"reward": np.nan}, {"observation": np.array([1e20, 0])}])
def test_an_episode_that_ends_with_unsound_numbers_is_left_out(odd, end):
    step = step_once(**odd, **{end: True})
    assert step.broken.all()
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not step.whole.any()
    np.testing.assert_array_equal(step.reward, 0)
    np.testing.assert_array_equal(step.next_observation, step.observation)
    np.testing.assert_array_equal(step.total_reward, 0)


@pytest.mark.parametrize("frame", [None, [], np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_a_frame_that_is_not_an_image_is_refused(frame):
    with pytest.raises(EnvironmentFailure, match=r"from render, not an image of bytes"):
        pool_of(frame=frame).render()


def test_actions_have_the_dtype_of_their_space():
    class Recording(Odd):
        def step(self, action):
            given.append(action)
            return super().step(action)

    bounds = np.array([0.1]), np.array([0.3])  # 32 bits round one of them outwards
    for spec, action in [
        (Discrete(3, -1, np.dtype(np.int64)), np.int64(1)),
        (MultiDiscrete((2, 3), (), np.dtype(np.int8)), np.array([1, 2], np.int8)),
        (Box(*bounds), bounds[1]),
        (Box(np.float32([0]), np.float32([np.inf])), np.float32([7])),
    ]:
        given = []
        with closing(open_pool("odd", Recording, Shows(SPEC), spec, [0])) as pool:
            pool.step(np.asarray(action, np.float32 if isinstance(spec, Box) else np.int32)[None])
        assert given[0].dtype == action.dtype
        np.testing.assert_array_equal(given[0], action)


def test_a_pool_with_a_timeout_lives_in_one_thread(capsys):
    threads = set()

    def make():
        threads.add(threading.get_ident())
        database = sqlite3.connect(":memory:")  # it refuses other threads
        return Odd(step=None, close=lambda: (database.execute("select 1"), database.close()))

    env = host_environment(
        "odd",
        SPEC,
        Discrete(2),
        None,
        lambda *_: open_pool("odd", make, Shows(SPEC), Discrete(2), [0, 1]),
    )
    with closing(with_timeout(env, 60.0).open(0, 2)) as pool:
        pool.reset(EVERYWHERE)
        pool.step(np.zeros(2, int))
    assert len(threads - {threading.get_ident()}) == 1
    assert not capsys.readouterr().err


def test_a_step_that_hangs_raises_an_environment_failure():
    released, killed = threading.Event(), []

    def open(seeds, num_envs, render=False):
        step = lambda actions: released.wait(60)
        return Pool(lambda mask: mask, step, lambda: None, kill=lambda: killed.append(True))

    env = with_timeout(host_environment("odd", SPEC, Discrete(2), None, open), 0.05)
    pool = env.open(0, 1)
    pool.reset(EVERYWHERE)
    with pytest.raises(EnvironmentFailure, match=r"odd hangs: a step took more than 0\.05 s"):
        pool.step(np.zeros(1, int))
    assert killed
    released.set()
    pool.close()


def test_an_environment_that_does_not_open_leaves_no_thread():
    before = threading.active_count()
    env = host_environment("odd", SPEC, Discrete(2), None, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        with_timeout(env, 60.0).open(0, 2)
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.05)
    raise AssertionError("the thread is still there")


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_timeout_must_be_positive_and_for_an_environment_on_the_host(seconds):
    env = host_environment("odd", SPEC, Discrete(2), None, lambda *_: None)
    with pytest.raises(ConfigurationError, match="env_timeout"):
        with_timeout(env, seconds)
    with pytest.raises(ConfigurationError, match="odd, because it does not run on the host"):
        with_timeout(env._replace(open=None), 1.0)


class Walk:
    """Shows its position, its speed and a random number of its episode."""

    def reset(self, seed=None):
        self.random = np.random.default_rng(seed) if seed is not None else self.random
        self.position = np.zeros(2, np.int16)
        self.number = self.random.uniform()
        return self.shown(0), {}

    def shown(self, speed):
        return {"position": self.position, "rest": (speed, np.array([self.number]))}

    def step(self, action):
        speed, push = action
        assert type(speed) is np.int64
        self.position = self.position + np.int16(speed) + push.astype(np.int16)
        ends = bool(self.position[0] > 2)
        return self.shown(speed), self.number * speed, ends, not ends, {"cost": push.sum()}

    def close(self):
        pass


def pushed(info):
    return info["cost"]


def test_copies_in_processes_give_the_numbers_of_copies_in_this_process(monkeypatch):
    """Five copies share two processes. Results stay the same after later steps."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    spec = {
        "position": array_spec((2,), "int16"),
        "rest": (array_spec((), "int64"), array_spec((1,), "float64")),
    }
    shows, everywhere = Shows(spec, costs=(("pushed", pushed),)), np.ones(5, bool)
    action = (Discrete(3, 0, np.dtype(np.int64)), Box(np.float32([-3, -3]), np.float32([3, 3])))

    def play(processes):
        with closing(open_pool("walk", Walk, shows, action, range(5), processes)) as pool:
            assert len(multiprocessing.active_children()) == 2 * processes
            found = [pool.reset(everywhere)]
            for number in range(3):
                given = np.arange(5) % 3, np.full((5, 2), number, np.float32)
                found += [pool.step(given), pool.reset(np.arange(5) == number)]
            return found

    here, there = play(False), play(True)
    chex.assert_trees_all_equal(there, here)
    np.testing.assert_array_equal(here[1].reward, here[0]["rest"][1][:, 0] * [0, 1, 2, 0, 1])
    ends = [False] * 5, [False, True, True, False, True], [True] * 5
    np.testing.assert_array_equal([x.terminated for x in here[1::2]], ends)
    assert here[2]["position"].tolist() == [[0, 0]]
    assert here[3].costs.tolist() == [[2.0]] * 5
    assert here[3].observation["position"].dtype == np.int16


class Made:
    """Makes environments in processes. A class can be pickled, but a local function cannot."""

    def __init__(self, how):
        self.how = how

    def __call__(self):
        number = int(multiprocessing.current_process().name.rpartition("-")[-1])
        if self.how == "unmade" and number % 2:
            raise RuntimeError("no floor")
        if self.how == "slow close":
            return Odd(close=lambda: time.sleep(60))
        return Odd(observation=np.zeros(1), reward=np.array([1.0]))


@pytest.mark.slow
def test_processes_check_values_in_the_same_way_and_all_of_them_end():
    pool = open_pool("odd", Made("wrong"), Shows(SPEC), Discrete(2), [0, 1], processes=True)
    with closing(pool):
        pool.reset(EVERYWHERE)
        with pytest.raises(EnvironmentFailure, match=r"\(1,\).*promises .*\(2,\) \(copy 1 of 2\)"):
            pool.step(np.zeros(2, int))
    assert not multiprocessing.active_children()
    with closing(open_pool("odd", Odd, Shows(SPEC), Discrete(2), [0], processes=True)) as pool:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(EnvironmentFailure, match=r"processes died.*exit code -9.*copy 1 of 1"):
            pool.reset(EVERYWHERE[:1])
    assert not multiprocessing.active_children()
    with pytest.raises(EnvironmentFailure, match="no floor"):
        open_pool("odd", Made("unmade"), Shows(SPEC), Discrete(2), [0, 1], processes=True)
    assert not multiprocessing.active_children()
    open_pool("odd", Made("slow close"), Shows(SPEC), Discrete(2), [0], processes=True).close()
    assert not multiprocessing.active_children()
