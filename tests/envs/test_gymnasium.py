"""Environments of Gymnasium as pools. Gymnasium never resets them by itself."""

import dataclasses
import multiprocessing
import os
import signal
from contextlib import closing

import gymnasium
import host_tasks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from trpo_jax import envs
from trpo_jax.envs.base import require_usable
from trpo_jax.envs.episodes import stagger
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete, to_environment_action
from trpo_jax.errors import ConfigurationError, EnvironmentFailure
from trpo_jax.host_rollout import advance_host_episodes, reset_pool, start_host_episodes
from trpo_jax.rollout import random_actions

NUM_ENVS = 3
BOX = spaces.Box(-1.0, 1.0, (2,))
FLOAT, INTEGER = np.dtype("float32"), np.dtype("int32")
INT8, INT16, INT64 = (np.dtype(f"int{bits}") for bits in (8, 16, 64))


def transitions(env, seed, num_steps, action=4, staggered=False):
    """Returns a list of transitions of all environments, with the same action in each step."""
    with closing(env.open(seed, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        episodes = stagger(env, episodes) if staggered else episodes
        found = []
        for _ in range(num_steps):
            actions = np.full(NUM_ENVS, action)
            episodes, transition = advance_host_episodes(env, pool, episodes, actions)
            found.append(transition)
    return found


def of_spaces(observation_space, action_space=BOX, processes=False, **infos):
    """Returns an environment with these spaces, and with these infos of resets and steps."""
    kwargs = {"observation_space": observation_space, "action_space": action_space, **infos}
    gymnasium.registry.pop("Shown-v0", None)
    host_tasks.register("Shown-v0", "Shown", kwargs=kwargs)
    return envs.make("gym/Shown-v0", processes=processes)


@pytest.mark.parametrize("processes", [False, True])
def test_a_reset_loses_no_step_and_no_last_observation(processes):
    env = envs.make("gym/Counter-v0", processes=processes)
    assert env.time_limit == 5
    found = transitions(env, 0, 12)
    shown = np.array([t.observation[0, 0] for t in found])
    np.testing.assert_array_equal(shown, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    following = np.array([t.next_observation[0, 0] for t in found])
    np.testing.assert_array_equal(following, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])
    np.testing.assert_array_equal([t.truncated[0] for t in found], following == 5)
    assert not any(t.terminated.any() for t in found)
    np.testing.assert_array_equal([t.length[0] for t in found], following)
    np.testing.assert_array_equal([t.reward[0] for t in found], 4.0)
    assert found[4].total_reward[0] == 20.0


@pytest.mark.parametrize("processes", [False, True])
def test_staggered_episodes_end_before_their_pool_would_end_them(processes):
    found = transitions(envs.make("gym/Counter-v0", processes=processes), 0, 9, staggered=True)
    ends = np.argwhere([t.truncated for t in found])
    assert ends.tolist() == [[1, 2], [3, 1], [4, 0], [6, 2], [8, 1]]
    for t, i in ends[:-1]:
        assert found[t + 1].observation[i, 0] == 0


def test_termination_and_truncation_are_different():
    found = transitions(envs.make("gym/Short-v0"), 0, 4)
    np.testing.assert_array_equal([t.terminated[0] for t in found], [False, False, True, False])
    assert not any(t.truncated.any() for t in found)


def test_the_seed_decides_the_episodes():
    env = envs.make("gym/Counter-v0")
    marks = lambda seed: np.array([t.observation[:, 1] for t in transitions(env, seed, 6)])
    np.testing.assert_array_equal(marks(1), marks(1))
    assert len(np.unique(marks(1))) == 2 * NUM_ENVS  # all environments and episodes differ
    assert not set(marks(1).ravel()) & set(marks(2).ravel())
    assert not set(marks(1).ravel()) & set(marks((7, 1)).ravel())


def test_environments_are_closed():
    before = host_tasks.Counter.closed
    transitions(envs.make("gym/Counter-v0"), 0, 1)
    assert host_tasks.Counter.closed >= before + NUM_ENVS


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        (BOX, ArraySpec((2,), FLOAT)),
        (spaces.Box(-1, 1, (2,), np.float64), ArraySpec((2,), FLOAT, own_dtype=np.dtype("f8"))),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), ArraySpec((8, 8, 3), np.dtype("uint8"))),
        (
            spaces.Box(-3, 60, (2,), np.int16),
            ArraySpec((2,), INTEGER, (64,), np.full(2, -3), INT16),
        ),
        (
            spaces.Box(-3, 61, (2,), np.int16),
            ArraySpec((2,), INT16),
        ),  # too many values, so a measurement
        (
            spaces.Box(np.int8([0, 0]), np.int8([1, 2]), dtype=np.int8),
            ArraySpec((2,), np.dtype("int8")),
        ),
        (spaces.Discrete(5), ArraySpec((), INTEGER, (5,), None, INT64)),
        (spaces.Discrete(5, start=-2), ArraySpec((), INTEGER, (5,), np.array(-2), INT64)),
        (spaces.MultiDiscrete([2, 3]), ArraySpec((2,), INTEGER, (2, 3), None, INT64)),
        (
            spaces.MultiDiscrete([[2, 3]], np.int16, start=[[0, 7]]),
            ArraySpec((1, 2), INTEGER, (2, 3), np.array([[0, 7]]), INT16),
        ),
        (spaces.MultiBinary((2, 3)), ArraySpec((2, 3), np.dtype(bool), (2,), None, INT8)),
    ],
)
def test_each_space_of_observations_gets_its_spec(space, spec):
    env = of_spaces(space)
    found = dataclasses.replace(env.observation, origin=None)
    assert found == dataclasses.replace(spec, origin=None)
    np.testing.assert_equal(env.observation.origin, spec.origin)
    with closing(env.open(0, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        actions = np.zeros((NUM_ENVS, 2), np.float32)
        _, step = advance_host_episodes(env, pool, episodes, actions)
        some = reset_pool(env, pool, np.array([True, False, True]))
    assert step.observation.shape == step.next_observation.shape == (NUM_ENVS, *spec.shape)
    assert some.shape == (2, *spec.shape)
    shown = (step.observation, step.next_observation, some)
    assert {x.dtype for x in shown} == {spec.dtype}
    if spec.num_values:
        highest = np.resize(spec.num_values, spec.shape)
        assert all((x >= 0).all() and (x < highest).all() for x in shown)
    assert step.reward.dtype == np.float32


@pytest.mark.parametrize("processes", [False, True])
def test_the_parts_of_an_observation_keep_their_names(processes):
    camera = spaces.Box(0, 255, (3, 8, 9), np.uint8)
    inner = spaces.Dict(near=spaces.MultiDiscrete([2, 3]), keys=spaces.MultiBinary(2))
    space = spaces.Dict(speed=BOX, pair=spaces.Tuple([camera, inner]))
    env = of_spaces(space, processes=processes)
    pair = (
        ArraySpec((8, 9, 3), np.dtype("uint8"), channels_first=True),
        {
            "near": ArraySpec((2,), INTEGER, (2, 3), None, INT64),
            "keys": ArraySpec((2,), np.dtype(bool), (2,), None, INT8),
        },
    )
    assert env.observation == {"speed": ArraySpec((2,), FLOAT), "pair": pair}
    with closing(env.open(0, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        actions = np.zeros((NUM_ENVS, 2), np.float32)
        _, step = advance_host_episodes(env, pool, episodes, actions)
    for shown in (step.observation, step.next_observation):
        check = lambda spec, x: (x.shape, x.dtype) == ((NUM_ENVS, *spec.shape), spec.dtype)
        assert jax.tree.all(jax.tree.map(check, env.observation, shown))


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((3, 48, 48), True),
        ((1, 84, 84), True),
        ((4, 60, 90), True),
        ((48, 48, 3), False),
        ((3, 48, 3), False),
        ((10, 10, 7), False),
    ],
)
def test_the_channels_of_images_come_last(shape, first):
    env = of_spaces(spaces.Box(0, 255, shape, np.uint8))
    assert env.observation.shape == ((*shape[1:], shape[0]) if first else shape)
    with closing(env.open(0, NUM_ENVS)) as pool:
        frames = reset_pool(env, pool, np.ones(NUM_ENVS, bool))
    assert frames.shape == (NUM_ENVS, *env.observation.shape)


@pytest.mark.parametrize(
    ("dtype", "shown", "origin"),
    [
        (np.int64, [1_700_000_000_000, 1], [1_700_000_000_000, 0]),
        (np.float64, [1e9, -5.0], [1e9, 0]),
        (np.float64, [1e20, 1e5], [0, 1e5]),  # so large a number is a placeholder
        (np.float64, [1.0, 60_000], None),
        (np.float32, [1e9, 0], None),  # the environment itself has only 32 bits
    ],
)
def test_the_origin_is_the_large_numbers_of_the_first_observation(
    monkeypatch, dtype, shown, origin
):
    shown = np.array(shown, dtype)
    monkeypatch.setattr(host_tasks.Shown, "reset", lambda self, **_: (shown, {}))
    env = of_spaces(spaces.Box(-(2**62), 2**62, (2,), dtype))
    found = env.observation.origin
    assert (found is None) if origin is None else np.array_equal(found, origin)
    if origin is not None:
        with closing(env.open(0, NUM_ENVS)) as pool:
            seen = reset_pool(env, pool, np.ones(NUM_ENVS, bool)) if max(shown) < 1e15 else None
        assert seen is None or np.array_equal(seen[0], shown - origin)


def test_a_time_limit_can_be_any_integer(monkeypatch):
    gymnasium.registry.pop("Limited-v0", None)
    host_tasks.register("Limited-v0", "Counter", max_episode_steps=np.int64(7))
    env = envs.make("gym/Limited-v0")
    assert (env.time_limit, type(env.time_limit)) == (7, int)
    monkeypatch.setattr(gymnasium.registry["Limited-v0"], "max_episode_steps", 2**40)
    assert envs.make("gym/Limited-v0").time_limit is None  # no episode reaches it


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_close_that_raises_does_not_hide_the_spaces(monkeypatch, error):
    monkeypatch.setattr(host_tasks.Counter, "close", lambda self: (_ for _ in ()).throw(error))
    assert envs.make("gym/Counter-v0").time_limit == 5


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        (spaces.Discrete(3), Discrete(3, 0, INT64)),
        (spaces.Discrete(3, start=-1), Discrete(3, -1, INT64)),
        (spaces.MultiDiscrete([2, 3]), MultiDiscrete((2, 3), (), INT64)),
        (
            spaces.MultiDiscrete([2, 3], np.int8, start=[-4, 7]),
            MultiDiscrete((2, 3), (-4, 7), INT8),
        ),
        (
            spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
            MultiDiscrete((2, 3, 4, 5), (0, 1, 2, 3), INT64, (2, 2)),
        ),
        (spaces.MultiBinary(2), MultiDiscrete((2, 2), (), INT8)),
        (spaces.MultiBinary((2, 1)), MultiDiscrete((2, 2), (), INT8, (2, 1))),
        (
            spaces.Box(np.int16([-1, 4]), np.int16([1, 9]), dtype=np.int16),
            MultiDiscrete((3, 6), (-1, 4), INT16),
        ),
        (spaces.Box(0, 2, (2, 1), np.uint8), MultiDiscrete((3, 3), (), np.dtype("u1"), (2, 1))),
        (spaces.Box(0, 2, (), np.int64), MultiDiscrete((3,), (), INT64, ())),
    ],
)
def test_actions(space, spec):
    env = of_spaces(BOX, space)
    assert env.action == spec
    ends = [0] * spec.size, [n - 1 for n in spec.choices]
    step_with(env, *(x[0] if isinstance(spec, Discrete) else tuple(x) for x in ends))


def step_with(env, *actions):
    """Steps an environment with these actions. It asserts that they are in its space."""
    with closing(env.open(0, NUM_ENVS)) as pool:
        pool.reset(np.ones(NUM_ENVS, bool))
        for action in actions:
            given = to_environment_action(env.action, jax.tree.map(jnp.asarray, action))
            pool.step(jax.tree.map(lambda x: np.stack([x] * NUM_ENVS), given))


def test_actions_of_several_parts():
    keys = spaces.Tuple([spaces.MultiBinary((1, 2)), spaces.Discrete(4, start=5)])
    env = of_spaces(BOX, spaces.Dict(move=spaces.Discrete(2), aim=BOX, keys=keys))
    assert env.action["keys"] == (MultiDiscrete((2, 2), (), INT8, (1, 2)), Discrete(4, 5, INT64))
    assert env.action["move"] == Discrete(2, 0, INT64)
    assert isinstance(env.action["aim"], Box)
    aim = np.array([5.0, -5.0])
    step_with(
        env,
        {"move": 0, "aim": 0 * aim, "keys": ((0, 0), 0)},
        {"move": 1, "aim": aim, "keys": ((1, 0), 3)},
    )


THREE, SEVERAL = spaces.Discrete(3), spaces.MultiDiscrete([2, 3])
JOINT = spaces.Dict(move=THREE, aim=BOX, keys=spaces.Tuple([spaces.MultiBinary(1)]))


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (THREE, np.int8([1, 0, 1]), [True, False, True]),
        (THREE, np.array([True, False, True]), [True, False, True]),
        (THREE, np.array([1.0, 0.0, 0.0]), [True, False, False]),
        (THREE, [0, 0, 1], [False, False, True]),
        (SEVERAL, np.int8([1, 0, 0, 0, 1]), [True, False, False, False, True]),
        (SEVERAL, (np.int8([1, 0]), [0, 0, 1]), ([True, False], [False, False, True])),
        (spaces.MultiDiscrete([2, 2]), np.int8([[1, 0], [0, 1]]), [[True, False], [False, True]]),
        (
            JOINT,
            {"move": np.int8([0, 1, 0]), "keys": (np.int8([1, 1]),)},
            {"move": [False, True, False], "keys": ([True, True],)},
        ),
    ],
)
def test_a_mask_in_info_becomes_a_part_of_the_observation(space, mask, expected):
    infos = {"at_reset": {"action_mask": mask}, "at_step": {"action_mask": mask}}
    env = of_spaces(BOX, space, **infos)
    assert env.observation["observation"] == ArraySpec((2,), FLOAT)
    require_usable(env)
    with closing(env.open(0, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        shown = episodes.observation["action_mask"]
        actions = random_actions(jax.random.key(0), env.action, NUM_ENVS, shown)
        given = jax.vmap(lambda x: to_environment_action(env.action, x))(actions)
        _, step = advance_host_episodes(env, pool, episodes, given)
    for found in (shown, step.next_observation["action_mask"]):
        assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(bool)}
        for copy in range(NUM_ENVS):
            assert jax.tree.map(lambda x, i=copy: x[i].tolist(), found) == expected


def test_a_mask_in_the_observation_is_used_before_a_mask_in_info():
    info = {"action_mask": np.int8([1, 0, 1])}
    env = of_spaces(spaces.Dict(speed=BOX), THREE, at_reset=info, at_step=info)
    assert list(env.observation) == ["speed", "action_mask"]
    space = spaces.Dict(speed=BOX, action_mask=spaces.MultiBinary(3))
    wrong = {"action_mask": "nobody reads this"}
    assert list(of_spaces(space, THREE, at_reset=wrong).observation) == ["action_mask", "speed"]
    assert of_spaces(BOX, BOX, at_reset=info).observation == ArraySpec((2,), FLOAT)


@pytest.mark.parametrize("mask", [np.ones(4), "all", [[1, 0], [1, 0, 0]], {"a": [1]}])
def test_a_mask_of_a_wrong_size_is_refused(mask):
    with pytest.raises(
        ConfigurationError, match=r"info\['action_mask'\] of \d numbers, and.*3 values. A"
    ):
        of_spaces(BOX, THREE, at_reset={"action_mask": mask})


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(
    ("space", "info", "message"),
    [
        (THREE, {}, "returned an info without 'action_mask', which it had after its first reset"),
        (THREE, None, "returned an info without 'action_mask'"),
        (THREE, {"action_mask": [1, 0]}, r'part observation\["action_mask"\], .* shape \(3,\)'),
        (THREE, {"action_mask": [0] * 3}, r"action_mask without a legal action \(copy 1\)"),
        (SEVERAL, {"action_mask": [1, 1, 0, 0, 0]}, r"legal action for choice 2 of 2 \(copy 1\)"),
    ],
)
def test_the_error_for_a_step_without_a_legal_action_names_it(processes, space, info, message):
    mask = [1] * (3 if space is THREE else 5)
    env = of_spaces(BOX, space, processes, at_reset={"action_mask": mask}, at_step=info)
    with closing(env.open(0, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        with pytest.raises(EnvironmentFailure, match=f"Environment gym/Shown-v0 .*{message}"):
            actions = np.zeros((NUM_ENVS, *space.shape), int)
            advance_host_episodes(env, pool, episodes, actions)


def test_the_last_state_of_an_episode_needs_no_legal_action(monkeypatch):
    none = {"action_mask": np.zeros(3)}
    over = lambda self, action: (np.zeros(2, np.float32), 0.0, True, False, none)
    monkeypatch.setattr(host_tasks.Shown, "step", over)
    found = transitions(of_spaces(BOX, THREE, at_reset={"action_mask": np.ones(3)}), 0, 2, 0)
    assert not found[0].next_observation["action_mask"].any()
    assert found[1].observation["action_mask"].all()


def test_bounds_of_actions():
    low, high = np.array([-2.0, -0.7]), np.array([2.0, 0.1])  # some of them are not 32-bit numbers
    env = of_spaces(BOX, spaces.Box(low, high, dtype=np.float64))
    assert isinstance(env.action, Box)
    np.testing.assert_array_equal(env.action.high, high)
    step_with(env, *map(np.array, ([-5.0, -5.0], [5.0, 5.0], [0.3, 0.999])))


def test_unsupported_spaces_are_refused():
    refused = lambda message: pytest.raises(ConfigurationError, match=message)
    with refused(r"gym/Shown-v0' has observations of type Sequence, which"):
        of_spaces(spaces.Sequence(BOX))
    with refused(r'observations of type Text, in their part observation\["b"\]\["mission"\], wh'):
        of_spaces(spaces.Dict(a=BOX, b=spaces.Dict(mission=spaces.Text(3))))
    with refused(r"observations of type Graph, in their part observation\[1\], which"):
        of_spaces(spaces.Tuple([BOX, spaces.Graph(BOX, None)]))
    with refused(r"actions of type Text, which.*Supported: Discrete"):
        of_spaces(BOX, spaces.Text(3))
    with refused(r'actions of type Box, in their part action\["aim"\]\[0\], which.* 1,024 values'):
        aim = spaces.Tuple([spaces.Box(0, 1024, (2,), np.int64)])
        of_spaces(BOX, spaces.Dict(aim=aim, move=spaces.Discrete(2)))


def test_the_error_for_an_unknown_name_names_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"Did you mean gym/CartPole-v1"):
        envs.make("gym/Cartpole-v1")
    with pytest.raises(ConfigurationError, match="no_such_package"):
        envs.make("gym/no_such_package:Env-v0")


def test_the_error_of_a_step_of_a_host_environment_names_it():
    with pytest.raises(TypeError, match="gym/Counter-v0 runs on the host"):
        envs.make("gym/Counter-v0").step(None, (), None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "a reward.*step 4"),
        ("inf", "a reward.*step 4"),
        ("nan-observation", "an observation.*step 4"),
        ("nan-reset", "an observation.*from a reset"),
    ],
)
def test_the_error_for_numbers_that_are_not_finite_names_environment_and_step(how, message):
    with pytest.raises(EnvironmentFailure, match=f"gym/Broken-{how}-v0 returned {message}"):
        transitions(envs.make(f"gym/Broken-{how}-v0"), 0, 6)


@pytest.mark.parametrize("processes", [False, True])
def test_the_failure_of_an_environment_names_it(processes):
    env = envs.make("gym/Broken-raise-v0", processes=processes)
    with pytest.raises(EnvironmentFailure, match=r"gym/Broken-raise-v0 failed.*floor gave way"):
        transitions(env, 0, 6)


def test_the_error_of_a_constructor_names_its_environment():
    with pytest.raises(ConfigurationError, match="gym/Unmade-v0' cannot be made: RuntimeError: no"):
        envs.make("gym/Unmade-v0")


def test_the_error_for_a_missing_package_says_how_to_install_it(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"no_such_module.*PYTHONPATH"):
        envs.make("gym/no_such_module:Task-v0")

    def fail(name, **kwargs):
        raise gymnasium.error.DependencyNotInstalled("no MuJoCo")

    monkeypatch.setattr(gymnasium, "make", fail)
    with pytest.raises(ConfigurationError, match=r"no MuJoCo. Install it with: .*gym"):
        envs.make("gym/Counter-v0")


def test_the_processes_of_copies_ignore_an_interrupt():
    with closing(envs.make("gym/Counter-v0", processes=True).open(0, NUM_ENVS)) as pool:
        pool.reset(np.ones(NUM_ENVS, bool))
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGINT)
        assert pool.step(np.full(NUM_ENVS, 3)).observation[0, 0] == 1
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def test_a_process_that_dies_raises_an_error_and_does_not_hang(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: NUM_ENVS)
    env = envs.make("gym/Broken-exit-v0", processes=True)
    with pytest.raises(EnvironmentFailure, match=r"Broken-exit-v0 failed.*its processes died"):
        transitions(env, 0, 6)


def test_only_gymnasium_runs_in_processes():
    with pytest.raises(ConfigurationError, match="--env-processes"):
        envs.make("CartPole-v1", processes=True)
