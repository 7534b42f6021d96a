import functools
import hashlib
import re
import resource
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium
import host_tasks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from gymnasium import spaces

import trpo_jax
from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import Actor, Learnt
from trpo_jax.envs.base import Environment, StepResult, key_shape
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete, to_environment_action
from trpo_jax.errors import ConfigurationError
from trpo_jax.normalization import RunningStatistics, init_statistics
from trpo_jax.records.acting import make_act
from trpo_jax.records.checkpoints import Checkpoints
from trpo_jax.records.files import write_json
from trpo_jax.records.policy_files import NEEDED, describe_policy, save_policy
from trpo_jax.records.spaces import to_plain
from trpo_jax.running.host_program import HostState

SEEDS = (4, 9)


def some_actor(algorithm, num_seeds, scale=0.3):
    """Returns an actor of random numbers, without compiling `init`.

    With its statistics, standardised observations differ from plain ones.
    """
    random = np.random.default_rng(0)
    normal = lambda x: random.normal(0, scale, (num_seeds, *x.shape)).astype(x.dtype)
    full = lambda x, number: np.full((num_seeds, *x.shape), number, x.dtype)
    actor = jax.eval_shape(algorithm.init, key_shape()).actor
    statistics = jax.tree.map(
        lambda x: RunningStatistics(*map(full, x, (1, 0.5, 0, 0.5))),
        actor.observation_statistics,
        is_leaf=lambda x: isinstance(x, RunningStatistics),
    )
    return Actor(jax.tree.map(normal, actor.policy_params), statistics)


def saved(tmp_path, env, **settings):
    config = trpo.Config(num_envs=2, num_steps=8, hidden_sizes=(8,), **settings)
    algorithm = trpo.make(env, config)
    actor = some_actor(algorithm, len(SEEDS))
    path = tmp_path / "policy.msgpack"
    save_policy(path, algorithm, Learnt(actor), SEEDS, [1.0, 2.0])
    return algorithm, actor, path


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        pytest.param("Pendulum-v1", marks=pytest.mark.slow),
        pytest.param("FrozenLake-misc", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_loaded_policy_returns_the_actions_of_the_trained_policy(tmp_path, name, normalize):
    env = envs.make(name)
    algorithm, actor, path = saved(tmp_path, env, normalize_observations=normalize)
    shown = jax.jit(jax.vmap(lambda key: env.reset(key)[1]))
    observations, key = shown(jax.random.split(jax.random.key(1), 6)), jax.random.key(0)

    @jax.jit
    def expected(actor, observations):
        _, distribution = algorithm.policy(actor, (), observations)
        scale = jax.vmap(partial(to_environment_action, env.action))
        return scale(distribution.mode()), scale(distribution.sample(key))

    assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for index, seed in enumerate(SEEDS):
        policy = trpo_jax.load_policy(path, seed=seed)
        best, drawn = expected(jax.tree.map(lambda x: x[index], actor), observations)  # noqa: B023
        assert_close(policy(observations), best)
        assert_close(policy(observations, key), drawn)
    assert_close(policy(np.asarray(observations)[2]), best[2])
    assert_close(jax.jit(policy)(observations), best)
    assert_same_actor(trpo_jax.load_policy(path), policy)
    save_policy(path, algorithm, Learnt(actor), SEEDS[::-1], [-5.0, np.nan])  # seed 2 stopped early
    assert_same_actor(trpo_jax.load_policy(path), trpo_jax.load_policy(path, seed=SEEDS[1]))


def assert_same_actor(policy, other):
    for a, b in zip(*(jax.tree.leaves(x.actor) for x in (policy, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_policy_with_several_choices_can_be_loaded(tmp_path):
    env = envs.make("CartPole-v1")
    step = env.step
    env = env._replace(
        action=MultiDiscrete((2, 3)), step=lambda key, state, action: step(key, state, action[0])
    )
    _, _, path = saved(tmp_path, env)
    assert trpo_jax.load_policy(path)(np.zeros((5, 4))).shape == (5, 2)


def test_pixels_must_be_uint8_and_float64_becomes_float32(tmp_path):
    env = envs.make("CartPole-v1")
    _, _, path = saved(tmp_path, env)
    policy, observations = trpo_jax.load_policy(path), np.linspace(-1, 1, 20).reshape(5, 4)
    np.testing.assert_array_equal(policy(observations), policy(observations.astype(np.float32)))
    _, _, path = saved(tmp_path, env._replace(observation=ArraySpec((4,), np.dtype(np.uint8))))
    policy = trpo_jax.load_policy(path)
    assert policy(np.ones((5, 4), np.uint8)).shape == (5,)
    with pytest.raises(ValueError, match="promises uint8"):
        policy(np.ones((5, 4)))


def test_errors_name_wrong_observations_and_wrong_files(tmp_path):
    _, _, path = saved(tmp_path, envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        trpo_jax.load_policy(path)(np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"no seed 5. It has \[4, 9\]"):
        trpo_jax.load_policy(path, seed=5)
    with pytest.raises(ConfigurationError, match="no policy file"):
        trpo_jax.load_policy(tmp_path / "missing.msgpack")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="damaged"):
        trpo_jax.load_policy(path)


MAX = np.finfo(np.float32).max
ACTIONS = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.Discrete(4, start=100, dtype=np.uint8),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([2, 4], start=[-1, 7], dtype=np.int16),
    spaces.MultiBinary(3),
    spaces.Box(-2, 3, (2,)),
    spaces.Box(np.array([0.1, -0.3]), np.array([0.7, 1e-3]), dtype=np.float64),
    spaces.Box(-0.3, 0.7, (2, 2), np.float16),
    spaces.Box(0.1, np.inf, (1,), np.float64),
    spaces.Box(-np.inf, 0.3, (2,)),
    spaces.Box(-MAX, MAX, (2,)),
    spaces.Box(np.array([-np.inf, 0, -1]), np.array([np.inf, np.inf, 1]), dtype=np.float64),
]
OBSERVATIONS = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-1, 1, (2, 2), np.float64),
    spaces.Box(0, 255, (3, 9, 8), np.uint8),
    spaces.Discrete(5, start=2),
    spaces.MultiDiscrete([[2, 3], [4, 2]]),
    spaces.MultiBinary((2, 2)),
    spaces.Dict({"speed": spaces.Box(-1, 1, (1,)), "goal": spaces.Box(5, 9, (2,))}),
    spaces.Tuple([spaces.Discrete(3), spaces.Dict({"b": spaces.MultiBinary(2)})]),
]


@pytest.mark.parametrize("index", range(len(ACTIONS)))
def test_a_policy_takes_and_returns_elements_of_the_gymnasium_spaces(index, tmp_path):
    action_space = ACTIONS[index]
    observation_space = OBSERVATIONS[index % len(OBSERVATIONS)]
    kwargs = {"observation_space": observation_space, "action_space": action_space}
    gymnasium.registry.pop("Any-v0", None)
    host_tasks.register("Any-v0", "Shown", kwargs=kwargs)
    env = envs.make("gym/Any-v0")
    algorithm = trpo.make(env, trpo.Config(num_envs=2, num_steps=8, hidden_sizes=(4,)))
    actor = some_actor(algorithm, 1, scale=30)  # the actions are over all bounds
    save_policy(tmp_path / "policy.msgpack", algorithm, Learnt(actor), (0,))
    act = trpo_jax.load_policy(tmp_path)
    observation_space.seed(0)
    shown = [observation_space.sample() for _ in range(5)]
    draws = [act(x, jax.random.key(i)) for x in shown for i in range(20)]
    for action in [*map(act, shown), *draws]:
        assert not isinstance(action, jax.Array)
        assert action_space.contains(action), action
    batch = gymnasium.vector.utils.concatenate(
        observation_space, shown, gymnasium.vector.utils.create_empty_array(observation_space, 5)
    )
    np.testing.assert_allclose(act(batch), [act(x) for x in shown], rtol=1e-4)
    np.testing.assert_allclose(act(batch), act.step((), act.shown(batch))[1], rtol=1e-3)
    for name, spec in (("observation", env.observation), ("action", env.action)):
        assert jax.tree.structure(getattr(act, name)) == jax.tree.structure(spec)


def test_the_origin_is_subtracted_from_large_numbers():
    wide, origin = np.dtype(np.float64), np.array([1e9, 0.0])
    spec = ArraySpec((2,), np.dtype(np.float32), origin=origin, own_dtype=wide)
    actor = Actor((), init_statistics((2,)))
    act = make_act(lambda *_: None, lambda n: (), actor, "own", spec, Discrete(2))
    np.testing.assert_array_equal(act.shown([1e9 + 1, 3.0]), np.array([1, 3], np.float32))


def test_a_policy_takes_one_integer_or_a_batch_of_integers(tmp_path):
    env = envs.make("FrozenLake-misc")
    algorithm, actor, path = saved(tmp_path, env)
    act, (number,) = trpo_jax.load_policy(path), env.observation.num_values
    mode = jax.jit(lambda actor, shown: algorithm.policy(actor, (), shown)[1].mode())
    expected = np.asarray(mode(jax.tree.map(lambda x: x[1], actor), np.arange(number)))
    np.testing.assert_array_equal(act(np.arange(number)), expected)
    assert act(3) == act(np.int32(3)) == act(np.int64(3)) == expected[3]
    for wrong in (number, -1, 2.5, "3", None, np.eye(number)[3]):
        with pytest.raises(ValueError, match="FrozenLake-misc was given"):
            act(wrong)


@pytest.mark.slow
def test_a_policy_can_be_read_from_a_checkpoint_of_a_run_on_the_host(tmp_path):
    algorithm, actor, path = saved(tmp_path, envs.make("CartPole-v1"))
    path.unlink()
    states = [algorithm.init(jax.random.key(i)) for i in SEEDS]
    description = {"policy": describe_policy(algorithm), "seeds": list(SEEDS)}
    write_json(tmp_path / "config.json", description)
    with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(7, HostState(actor, tuple(states)), 1.0, {})
    act = trpo_jax.load_policy(tmp_path, 9, checkpoint="latest")
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    own = jax.tree.map(lambda x: x[1], actor)
    expected = jax.jit(algorithm.policy)(own, (), observations)[1].mode()
    np.testing.assert_array_equal(act(observations), expected)
    with pytest.raises(ConfigurationError, match=r"no checkpoint 'best' in .* There are: 7, lat"):
        trpo_jax.load_policy(tmp_path, checkpoint="best")
    with pytest.raises(ConfigurationError, match="was stopped before it wrote policy"):
        trpo_jax.load_policy(tmp_path)
    for name in NEEDED:
        rest = {key: x for key, x in description["policy"].items() if key != name}
        write_json(tmp_path / "config.json", description | {"policy": rest})
        with pytest.raises(ConfigurationError, match=rf"config\.json is damaged.*'{name}'"):
            trpo_jax.load_policy(tmp_path, checkpoint="latest")


@pytest.mark.slow
def test_a_file_with_a_flipped_bit_is_refused(tmp_path):
    _, _, path = saved(tmp_path, envs.make("CartPole-v1"))
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(8 * len(content), size=300):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ConfigurationError, match=r"policy\.msgpack is damaged or no policy"):
            trpo_jax.load_policy(path)


@functools.cache
def content_of_file():
    """Returns the content of a policy file, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        _, _, path = saved(Path(folder), envs.make("CartPole-v1"))
        return serialization.msgpack_restore(path.read_bytes())["content"]


def changed_file(tmp_path, **changes):
    """Writes a policy file with some entries changed, and returns its path."""
    path, content = tmp_path / "policy.msgpack", content_of_file()
    content = serialization.msgpack_serialize(serialization.msgpack_restore(content) | changes)
    data = {"format": 4, "digest": hashlib.sha256(content).hexdigest(), "content": content}
    path.write_bytes(serialization.msgpack_serialize(data))
    return path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_in_an_older_format_is_refused(tmp_path, number):
    path = tmp_path / "policy.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"format": number, "seeds": [0]}))
    with pytest.raises(ConfigurationError, match=f"format {number}; this version reads format 4"):
        trpo_jax.load_policy(path)


def test_a_file_in_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "policy.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"format": 5}))
    with pytest.raises(ConfigurationError, match="its format is 5, and this version reads 4"):
        trpo_jax.load_policy(path)


MANY = 2_000_000_000
CART = {"hidden_sizes": [8], "activation": "tanh", "state_dependent_std": False}
CART |= {"memory": "none", "memory_size": 8}
KERNEL = "actor/policy_params/layers_0/Dense_0/kernel"


@pytest.mark.xdist_group("policy file")  # one worker, so that the content is shared
@pytest.mark.parametrize(
    "changes",
    [
        {"observation": to_plain(ArraySpec((MANY,), np.dtype(np.float32)))},
        {"observation": to_plain(ArraySpec((), np.dtype(np.int32), (MANY,)))},
        {"observation": {"dict": {"a": to_plain(ArraySpec((4,), np.dtype(np.float32)))}}},
        {"observation": {"kind": "Array"}},
        {"observation": 3},
        {"action": to_plain(Discrete(MANY))},
        {"action": {"tuple": [to_plain(Discrete(2)), to_plain(Discrete(2))]}},
        {"network": CART | {"hidden_sizes": [MANY]}},
        {"network": CART | {"activation": "tan"}},
        {"network": CART | {"memory": "gru"}},
        {"network": CART | {"memory": "elephant"}},
        {"network": {"hidden": 3}},
        {"scores": [1.0]},
        {"seeds": []},
        {"arrays": {}},
        {"arrays": {KERNEL: np.full((2, 4, 8), np.nan)}},
        {"arrays": {"actor/observation_statistics/count": np.ones(2)}},
    ],
)
def test_a_wrong_description_is_refused_before_its_arrays_are_allocated(tmp_path, changes):
    path = changed_file(tmp_path, **changes)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    before = peak()
    with pytest.raises(ConfigurationError, match=r"policy\.msgpack (is damaged|holds)"):
        trpo_jax.load_policy(path)
    assert peak() - before < 1e6


@pytest.mark.slow
def test_a_policy_with_a_memory_acts_like_the_steps_by_hand(tmp_path):
    env = envs.make("Pendulum-v1")
    algorithm, actor, path = saved(tmp_path, env, memory="gru", memory_size=4)
    act, best = trpo_jax.load_policy(path), jax.tree.map(lambda x: x[1], actor)
    assert act.remembers
    policy = jax.jit(algorithm.policy)
    scale = jax.vmap(lambda a: to_environment_action(env.action, a))
    shown = np.random.default_rng(0).normal(size=(3, 6, 3)).astype(np.float32)

    def by_hand(carry, observations):
        carry, distribution = policy(best, carry, observations)
        return carry, scale(distribution.mode())

    for episode in shown:
        act.start()
        carry = algorithm.carry(1)
        for x in episode:
            carry, expected = by_hand(carry, x[None])
            np.testing.assert_allclose(act(x), expected[0], rtol=1e-5)
    assert np.abs(act(x) - by_hand(algorithm.carry(1), x[None])[1][0]).max() > 1e-3
    with pytest.raises(
        ValueError, match="remembers 1 environments, but was given observations of 3"
    ):
        act(shown[:, 0])
    act.start()
    carry = algorithm.carry(3)
    for t in range(6):
        carry, expected = by_hand(carry, shown[:, t])
        np.testing.assert_allclose(act(shown[:, t]), expected, rtol=1e-5)
    act.start([False, True, False])  # the episode of the second of three ended
    carry = carry.at[1].set(0.0)
    np.testing.assert_allclose(act(shown[:, 0]), by_hand(carry, shown[:, 0])[1], rtol=1e-5)
    with pytest.raises(ValueError, match="remembers 3 environments, not 2"):
        act.start([True, False])


@pytest.mark.slow
def test_a_compiled_program_must_pass_the_memory_on(tmp_path):
    _, _, path = saved(tmp_path, envs.make("Pendulum-v1"), memory="lstm", memory_size=4)
    act, shown = trpo_jax.load_policy(path), jnp.linspace(-1, 1, 15).reshape(5, 1, 3)
    with pytest.raises(ValueError, match=r"has a memory.* beginning with act\.carry"):
        jax.jit(act)(shown[0])
    _, actions = jax.jit(lambda shown: jax.lax.scan(act.step, act.carry(1), shown))(shown)
    np.testing.assert_allclose(actions, [act(np.asarray(x)) for x in shown], rtol=1e-5)


TREE = {
    "body": ArraySpec((3,), np.dtype(np.float32)),
    "kind": ArraySpec((), np.dtype(np.int32), (4,)),
    "secret": ArraySpec((2,), np.dtype(np.float32)),
    "action_mask": ArraySpec((3,), np.dtype(bool)),
}
JOINT = {"door": Discrete(3), "force": Box(np.full(2, -2.0), np.full(2, 4.0))}


def of_parts(observation=TREE):
    ones = jax.tree.map(lambda spec: np.ones(spec.shape, spec.dtype), observation)
    step = lambda key, state, action: (
        state,
        StepResult(ones, action["force"].sum(), jnp.zeros((), bool), jnp.zeros((), bool)),
    )
    return Environment("of parts", lambda key: ((), ones), step, observation, JOINT, 5)


@pytest.mark.slow
def test_a_policy_with_several_parts_can_be_loaded(tmp_path):
    env = of_parts()
    algorithm, actor, path = saved(tmp_path, env, critic_observation="secret")
    act, best = trpo_jax.load_policy(path), jax.tree.map(lambda x: x[1], actor)
    random = np.random.default_rng(0)
    legal = np.eye(3, dtype=bool)[random.integers(3, size=50)] | (random.random((50, 3)) < 0.5)
    shown = {
        "body": random.normal(size=(50, 3)).astype(np.float32),
        "kind": random.integers(4, size=50, dtype=np.int32),
        "secret": np.zeros((50, 2), np.float32),
        "action_mask": legal,
    }
    _, distribution = jax.jit(algorithm.policy)(best, (), jax.tree.map(jnp.asarray, shown))
    expected = jax.vmap(lambda a: to_environment_action(env.action, a))(distribution.mode())
    without = {name: x for name, x in shown.items() if name != "secret"}
    for observations in (shown, without):  # only the critic sees the part `secret`
        actions = act(observations)
        np.testing.assert_array_equal(actions["door"], expected["door"])
        np.testing.assert_allclose(actions["force"], expected["force"], rtol=1e-5)
    assert set(actions["door"]) == {0, 1, 2}
    assert (legal.sum(axis=1) < 3).any()
    assert legal[np.arange(50), actions["door"]].all()
    one = act(jax.tree.map(lambda x: x[7], without))
    assert one["door"] == actions["door"][7]
    assert one["force"].shape == (2,)
    drawn = [act(without, jax.random.key(i))["door"] for i in range(5)]
    assert all(legal[np.arange(50), x].all() for x in drawn)
    with pytest.raises(
        ValueError, match=r"secret, action_mask, .* promises a .* of action_mask, body, kind"
    ):
        act({name: x for name, x in shown.items() if name != "kind"})
    with pytest.raises(ValueError, match=r'in its part observation\["kind"\].* from 0 to 3'):
        act(shown | {"kind": 4})


def test_an_environment_with_other_spaces_is_refused(tmp_path):
    _, _, path = saved(tmp_path, of_parts())
    trpo_jax.load_policy(path, env=of_parts())
    shown = (
        "{{action_mask: bool of shape (3,), body: float32 of shape (3,), "
        "kind: int32 of shape () with {} values, secret: float32 of shape (2,)}}"
    )
    joint = (
        "{door: integers with 3 values, from 0 on, force: numbers from [-2.0, -2.0] to [4.0, 4.0]}"
    )
    five = of_parts(TREE | {"kind": ArraySpec((), np.dtype(np.int32), (5,))})
    cart, other = envs.make("CartPole-v1"), of_parts()._replace(action=MultiDiscrete((2, 2)))
    for env, what, theirs, ours in (
        (five, "observations", shown.format(4), shown.format(5)),
        (cart, "observations", shown.format(4), "float32 of shape (4,)"),
        (other, "actions", joint, "integers with 2, 2 values, from 0, 0 on in shape (2,)"),
    ):
        message = f"of parts, whose {what} are {theirs}. The {what} of {env.name} are {ours}. A"
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            trpo_jax.load_policy(path, env=env)
