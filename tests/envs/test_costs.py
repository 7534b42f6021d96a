"""Costs of suites, costs in `info`, and costs that are functions of the user."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import check_episodes, check_types

from trpo_jax import envs
from trpo_jax.envs import native, velocity
from trpo_jax.envs.costs import with_cost
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.host_rollout import advance_host_episodes, start_host_episodes
from trpo_jax.rollout import episode_metrics, rollout, start_episodes


def torque(observation, action):
    return abs(action[0])


def lean(observation, action):
    return observation[2] > 0


class Costly(gymnasium.Env):
    """An episode has three steps. The info of step t has the cost t."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, odd=None):
        self.odd = odd

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        info = {"cost": np.float64(self.time), "other": self.time / 10}
        if self.odd is not None and self.time == 2:
            info = self.odd
        return np.full(1, self.time, np.float32), 1.0, self.time == 3, False, info


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Costly-v0", Costly)
    yield
    del gymnasium.registry["Costly-v0"]


def played(env, num_steps, num_envs=2):
    """Returns the transitions of a pool, `[T, B, ...]`."""
    pool = env.open(3, num_envs)
    episodes, steps = start_host_episodes(env, pool, num_envs), []
    for _ in range(num_steps):
        action = np.zeros((num_envs, *getattr(env.action, "low", np.zeros(())).shape), np.float32)
        action = action if hasattr(env.action, "low") else action.astype(np.int32)
        episodes, transition = advance_host_episodes(env, pool, episodes, action)
        steps.append(transition)
    pool.close()
    return jax.tree.map(lambda *xs: np.stack(xs), *steps)


def test_entries_of_info_are_costs_and_add_up_over_an_episode():
    env = envs.make("gym/Costly-v0", costs=["info:cost", "info:other"])
    assert env.costs == ("cost", "other")
    trajectory = played(env, 4)
    np.testing.assert_allclose(trajectory.costs[:, 0], [[1, 0.1], [2, 0.2], [3, 0.3], [1, 0.1]])
    np.testing.assert_allclose(trajectory.total_costs[:, 1, 0], [1, 3, 6, 1])
    metrics = episode_metrics(jax.tree.map(jnp.asarray, trajectory), env.costs)
    assert metrics["episodic_cost_cost"] == 6
    assert metrics["episodic_cost_other"] == pytest.approx(0.6)


@pytest.mark.slow
def test_processes_give_the_same_costs():
    env = envs.make("gym/CartPole-v1", processes=True, costs=[lean])
    alone = envs.make("gym/CartPole-v1", costs=[lean])
    np.testing.assert_array_equal(played(env, 5).costs, played(alone, 5).costs)


def test_functions_give_costs_on_the_device():
    env = envs.make("Pendulum-v1", costs=[torque])
    assert env.costs == ("torque",)
    check_types(env)
    act = lambda key, observations: jax.random.normal(key, (3, 1))
    episodes = start_episodes(env, jax.random.key(0), 3)
    _, trajectory = jax.jit(lambda: rollout(env, act, jax.random.key(1), episodes, 6))()
    given = np.clip(2 * trajectory.action, -2, 2)
    np.testing.assert_allclose(trajectory.costs, np.abs(given), rtol=1e-6)
    np.testing.assert_allclose(
        trajectory.total_costs, np.cumsum(trajectory.costs, axis=0), rtol=1e-5
    )


def test_cost_functions_on_the_host_see_the_observation_after_the_action():
    trajectory = played(envs.make("gym/CartPole-v1", costs=[lean]), 8)
    np.testing.assert_array_equal(trajectory.costs[..., 0], trajectory.next_observation[..., 2] > 0)


def test_costs_are_added_to_the_costs_of_an_environment():
    env = with_cost(native.toll_road(), "always", lambda observation, action: 1.0)
    assert env.costs == ("toll", "always")
    check_types(env)
    _, result = env.step(jax.random.key(0), env.reset(jax.random.key(0))[0], jnp.int32(1))
    assert result.costs.tolist() == [1, 1]
    with pytest.raises(ConfigurationError, match="already has a cost with the name toll"):
        with_cost(env, "toll", torque)


def test_a_cost_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "own_costs.py").write_text("def drift(observation, action):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    env = envs.make("CartPole-v1", costs=["own_costs:drift"])
    assert env.costs == ("drift",)
    options = envs.Options(costs=(sys.modules["own_costs"].drift, "info:cost"))
    assert options.named
    assert options.flags() == ["--cost=own_costs:drift", "--cost=info:cost"]
    stored = envs.options.stored_options({"env": "x"} | options.described())
    assert stored.costs == ("own_costs:drift", "info:cost")
    assert not envs.Options(costs=(lambda observation, action: 0,)).named


@pytest.mark.parametrize(
    ("name", "cost", "message"),
    [
        ("gym/Costly-v0", "info:damage", r"needs info\['damage'\].*'cost', 'other'"),
        ("CartPole-v1", "info:cost", "Only steps of gym/ and envpool/ return an info"),
        ("CartPole-v1", "no_module_of_that_name:cost", "no_module_of_that_name"),
        ("CartPole-v1", 3, "must be a function"),
    ],
)
def test_a_cost_that_cannot_work_is_refused(name, cost, message):
    with pytest.raises(ConfigurationError, match=message):
        envs.make(name, costs=[cost])


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({}, "without the cost cost"),
        ({"cost": "much"}, "a cost cost of .* not a number"),
        ({"cost": np.nan}, r"a cost that is not finite.*|.*cost.*nan"),
    ],
)
def test_the_error_for_a_cost_that_is_not_a_number_names_it(odd, message):
    env = envs.make("gym/Costly-v0", {"odd": odd}, costs=["info:cost"])
    with pytest.raises(EnvironmentFailure, match=message):
        played(env, 3)


def test_the_toll_road_follows_the_protocol_and_has_a_known_optimum():
    env = envs.make("native/TollRoad", {"length": 8})
    check_types(env)
    check_episodes(env)
    # With at most 2 tolls on average, the best policy pays if it saves at least 3/4.
    start = start_episodes(env, jax.random.key(0), 4096)
    threshold = lambda key, shown: (shown[:, 0] >= 0.75).astype(jnp.int32)
    _, trajectory = jax.jit(lambda: rollout(env, threshold, jax.random.key(1), start, 8))()
    assert trajectory.terminated[-1].all()
    assert np.mean(trajectory.total_costs[-1]) == pytest.approx(2, abs=0.1)
    best = native.best_return(2.0, 8)
    assert best == pytest.approx(8 * (1 - 0.75**2) / 2)
    assert np.mean(trajectory.total_reward[-1]) == pytest.approx(best, abs=0.1)
    assert native.best_return(100.0, 8) == 4
    with pytest.raises(ConfigurationError, match="length = 0"):
        envs.make("native/TollRoad", {"length": 0})


@pytest.mark.parametrize("suite", ["envpool", "gymnasium"])
@pytest.mark.parametrize("task", ["HalfCheetah", "Ant"])
def test_velocity_tasks_are_mujoco_tasks_with_a_cost(suite, task, monkeypatch):
    pytest.importorskip("envpool" if suite == "envpool" else "mujoco")
    if suite == "gymnasium":
        monkeypatch.setattr(velocity, "find_spec", lambda name: None)
    in_plane = velocity.THRESHOLDS[task][1]
    soon_exceeded = {"HalfCheetah": 0.05, "Ant": 0.5}[task]
    monkeypatch.setitem(velocity.THRESHOLDS, task, (soon_exceeded, in_plane))
    env = envs.make(f"velocity/{task}")
    assert (env.name, env.costs, env.time_limit) == (f"velocity/{task}", ("velocity",), 1000)
    trajectory = played(env, 12)
    assert set(np.unique(trajectory.costs)) == {0, 1}
    plain = envs.make(f"{'gym' if suite == 'gymnasium' else suite}/{task}-v4")
    np.testing.assert_array_equal(trajectory.reward, played(plain, 12).reward)


@pytest.mark.parametrize(
    ("info", "costs"),
    [({"x_velocity": 3.0, "y_velocity": 4.0}, (0, 1)), ({"x_velocity": 5.5}, (1,))],
)
def test_the_speed_is_measured_forwards_or_in_the_plane(info, costs):
    found = [velocity.speeding(4.5, in_plane, info) for in_plane in (False, True)[: len(costs)]]
    assert tuple(found) == costs


def test_in_driving_damage_is_a_cost_and_not_a_part_of_the_reward():
    pytest.importorskip("highway_env")
    env = envs.make("driving/highway-fast-v0", {"config": {"vehicles_count": 40}})
    assert env.costs == ("damage",)
    pool = env.open(0, 1)
    pool.reset(np.ones(1, bool))
    for _ in range(30):
        result = pool.step(np.array([3], np.int32))  # the fastest action
        assert 0 <= result.reward[0] <= 1
        assert result.costs[0, 0] == result.terminated[0]
        if result.terminated[0]:
            break
    else:
        pytest.fail("no crash")
    pool.close()
