"""Wrappers of observations, on the device and on the host."""

from contextlib import closing

import host_tasks  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from trpo_jax import envs
from trpo_jax.envs.base import Environment, Pool, StepResult, require_usable
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete, to_environment_action
from trpo_jax.envs.wrappers import NO_VELOCITY, hide, observe_previous, without_mask
from trpo_jax.errors import ConfigurationError

FLOAT, INTEGER = np.dtype("float32"), np.dtype("int32")
VECTOR = ArraySpec((3,), FLOAT)
MASK = ArraySpec((2,), np.dtype(bool))
FIRST, THEN, REWARD = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 0.25


def task(host, action=None, observation=VECTOR):
    """Returns an environment that shows `FIRST`, then `THEN`, in each part that is not a mask."""

    def shown(vector, numpy, batch):
        of_part = lambda spec: numpy.zeros((*batch, *spec.shape), spec.dtype)
        fill = lambda spec: of_part(spec) + numpy.array(vector, FLOAT)
        return jax.tree.map(
            lambda spec: fill(spec) if spec is VECTOR else of_part(spec), observation
        )

    def result(numpy, batch):
        flag = numpy.zeros(batch, bool)
        reward = numpy.full(batch, REWARD, "float64" if batch else "float32")
        return StepResult(shown(THEN, numpy, batch), reward, flag, flag)

    def open(seeds, num_envs, render=False):
        first = lambda mask: shown(FIRST, np, (int(mask.sum()),))
        return Pool(first, lambda actions: result(np, (num_envs,)), lambda: None)

    return Environment(
        "task",
        lambda key: ((), shown(FIRST, jnp, ())),
        lambda key, state, action: (state, result(jnp, ())),
        observation,
        Discrete(2) if action is None else action,
        None,
        open=open if host else None,
        critic_observation="secret" if isinstance(observation, dict) else None,
    )


def played(env, chosen=0):
    """Returns the first observation of an environment, and the one after an action of a policy."""
    given = to_environment_action(env.action, jax.tree.map(jnp.asarray, chosen))
    if env.open is None:
        state, first = env.reset(jax.random.key(0))
        _, step = env.step(jax.random.key(0), state, given)
        return first, step.observation
    with closing(env.open(0, 2)) as pool:
        pool.reset(np.array([True, False]))
        first = pool.reset(np.array([False, True]))
        step = pool.step(jax.tree.map(lambda x: np.stack([x] * 2), given))
    for observations, batch in ((first, 1), (step.observation, 2)):
        assert {len(x) for x in jax.tree.leaves(observations)} == {batch}
    return jax.tree.map(lambda x: x[-1], (first, step.observation))


def require_as_promised(env, *shown):
    """Checks that the spec of an environment is usable, and that observations match it."""
    require_usable(env)
    for observation in shown:
        assert jax.tree.structure(observation) == jax.tree.structure(env.observation)
        for spec, x in zip(
            jax.tree.leaves(env.observation), jax.tree.leaves(observation), strict=True
        ):
            assert (x.shape, x.dtype) == (spec.shape, spec.dtype)
            assert spec.num_values is None or (x < np.resize(spec.num_values, x.shape)).all()


@pytest.mark.parametrize("host", [False, True])
def test_hidden_components_are_not_shown(host):
    env = hide(task(host), [1])
    first, then = played(env)
    np.testing.assert_array_equal(first, [1, 3])
    np.testing.assert_array_equal(then, [4, 6])
    require_as_promised(env, first, then)
    origin = ArraySpec((3,), FLOAT, origin=np.array([7.0, 8.0, 9.0]))
    np.testing.assert_array_equal(hide(task(host, None, origin), [0]).observation.origin, [8, 9])


@pytest.mark.parametrize(
    ("observation", "components", "message"),
    [
        (VECTOR, [3], r"Components \[3\] of task cannot be hidden. Its .* 0 to 2"),
        (VECTOR, [-1], "at least one of them must be shown"),
        (VECTOR, [0, 1, 2], "at least one of them must be shown"),
        ({"x": VECTOR}, [0], "is not a vector of numbers"),
        (ArraySpec((3, 1), FLOAT), [0], "is not a vector of numbers"),
        (ArraySpec((3,), INTEGER, (5,)), [0], "is not a vector of numbers"),
    ],
)
def test_components_that_cannot_be_hidden_are_refused(observation, components, message):
    with pytest.raises(ConfigurationError, match=message):
        hide(task(False, None, observation), components)


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("others", [{"observation": VECTOR}, {"x": VECTOR, "observation": VECTOR}])
def test_a_mask_is_left_out(host, others):
    env = without_mask(task(host, None, {**others, "action_mask": MASK}))
    first, then = played(env._replace(critic_observation=None))
    assert env.observation == (VECTOR if len(others) == 1 else others)
    np.testing.assert_array_equal(first if len(others) == 1 else first["x"], FIRST)
    require_as_promised(env._replace(critic_observation=None), first, then)
    with pytest.raises(ConfigurationError, match="task has no action_mask to leave out"):
        without_mask(task(host))


FOUR = MultiDiscrete((2, 2, 2, 2), (1, 0, 0, 0), INTEGER, (2, 2))
BOX = Box(np.full((2, 1), -1, FLOAT), np.full((2, 1), 3, FLOAT))
AIM = np.array([0.0, 9.0], FLOAT)  # beyond the bound


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize(
    ("action", "chosen", "expected", "num_values"),
    [
        (Discrete(3), 0, 1, (4,)),
        (Discrete(3, -1), 2, 3, (4,)),
        (MultiDiscrete((2, 3)), (1, 0), [2, 1], (3, 4)),
        (MultiDiscrete((2, 3), (5, -7)), (0, 2), [1, 3], (3, 4)),
        (FOUR, (1, 0, 0, 1), [[2, 1], [1, 2]], (3, 3, 3, 3)),
        (BOX, AIM, [[1], [3]], None),
        (
            {"aim": BOX, "keys": (FOUR, Discrete(3, -1))},
            {"aim": AIM, "keys": ((0, 0, 0, 1), 1)},
            {"aim": [[1], [3]], "keys": ([[1, 1], [1, 2]], 2)},
            None,
        ),
    ],
)
def test_the_previous_action_and_reward_are_shown(host, action, chosen, expected, num_values):
    env = observe_previous(task(host, action))
    first, then = played(env, chosen)
    require_as_promised(env, first, then)
    assert not any(x.any() for x in jax.tree.leaves([first[x] for x in env.observation][1:]))
    np.testing.assert_array_equal(first["observation"], FIRST)
    np.testing.assert_array_equal(then["observation"], THEN)
    assert then["previous_reward"] == REWARD
    assert jax.tree.map(lambda x: x.tolist(), then["previous_action"]) == expected
    if num_values:
        assert env.observation["previous_action"].num_values == num_values


@pytest.mark.parametrize("host", [False, True])
def test_other_parts_stay_next_to_the_previous_action(host):
    env = observe_previous(task(host, None, {"action_mask": MASK, "x": VECTOR, "secret": VECTOR}))
    assert env.critic_observation == "secret"
    first, then = played(env)
    require_as_promised(env, first, then)
    assert set(then) == {"action_mask", "x", "secret", "previous_action", "previous_reward"}


@pytest.mark.parametrize("suite", ["", "gym/"])
def test_tasks_without_velocities_have_names(suite):
    whole, env = (envs.make(f"{suite}MountainCar-v0{x}") for x in ("", "-NoVel"))
    assert env.name == f"{suite}MountainCar-v0-NoVel"
    assert env.observation.shape == (1,)
    assert env.time_limit == whole.time_limit
    for shown, known in zip(played(env), played(whole), strict=True):
        np.testing.assert_array_equal(shown, known[:1])
    slower = envs.make(f"{suite}MountainCar-v0-NoVel", {"goal_velocity": 0.5})
    assert slower.observation.shape == (1,)


def test_names_without_velocities_are_listed(monkeypatch):
    monkeypatch.setattr(envs, "SUITES", dict.fromkeys(("gymnax", "gym", "pgx"), ()))
    found = envs.names()
    partial = {x for names in found.values() for x in names or () if x.endswith("-NoVel")}
    assert {f"gym/{name}-NoVel" for name in NO_VELOCITY} < partial
    assert {x for x in partial if "/" not in x} == {
        f"{name}-NoVel" for name in NO_VELOCITY if name in found["gymnax"]
    }
    assert found["gym"] == sorted(found["gym"])
    for name in ("Acrobot-v1-NoVel", "pgx/2048-NoVel"):
        with pytest.raises(ConfigurationError, match=f"Unknown environment '{name}'"):
            envs.make(name)


def test_wrappers_of_the_library_work_with_environments_of_gymnasium():
    kwargs = {"observation_space": spaces.Box(-1, 1, (3,)), "action_space": spaces.Discrete(2)}
    infos = {name: {"action_mask": [1, 1]} for name in ("at_reset", "at_step")}
    suites_own = "gymnasium.wrappers:FlattenObservation"
    names = [f"trpo_jax.envs.wrappers:{x}" for x in ("without_mask", "observe_previous")]
    env = envs.make("gym/host_tasks:Shown-v0", kwargs | infos, [names[0], suites_own, names[1]])
    assert env.name == "gym/host_tasks:Shown-v0"
    first, then = played(env)
    assert list(first) == ["observation", "previous_action", "previous_reward"]
    assert then["previous_action"] == 1


def test_a_wrapper_with_an_annotated_argument_also_works_in_gym():
    def without_velocities(env: Environment) -> Environment:
        return hide(env, [1, 3])

    env = envs.make("gym/CartPole-v1", wrappers=[without_velocities])
    assert env.observation.shape == (2,)
