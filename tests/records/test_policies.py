import resource
from contextlib import closing

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
from trpo_jax.envs.base import ArraySpec, MultiDiscrete, to_environment_action
from trpo_jax.errors import ConfigurationError
from trpo_jax.normalization import init_statistics
from trpo_jax.records.acting import make_act
from trpo_jax.records.checkpoints import Checkpoints
from trpo_jax.records.files import write_json
from trpo_jax.records.policies import describe_policy, save_policy
from trpo_jax.running.host_program import HostState

SEEDS = (4, 9)


def saved(tmp_path, env, **settings):
    config = trpo.Config(num_envs=2, num_steps=8, hidden_sizes=(8,), **settings)
    algorithm = trpo.make(env, config)
    states = jax.vmap(algorithm.init)(jax.vmap(jax.random.key)(jnp.array(SEEDS)))
    # A mean of 0.5 and a deviation of 0.5, so that forgetting to standardise shows.
    statistics = states.actor.observation_statistics
    half = jnp.full_like(statistics.mean, 0.5)
    statistics = statistics._replace(count=statistics.count + 1, mean=half, deviation=half)
    actor = states.actor._replace(observation_statistics=statistics)
    path = tmp_path / "policy.msgpack"
    save_policy(path, algorithm, Learnt(actor), SEEDS, [1.0, 2.0])
    return algorithm, actor, path


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-misc"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_loaded_policy_acts_as_the_trained_one(tmp_path, name, normalize):
    env = envs.make(name)
    algorithm, actor, path = saved(tmp_path, env, normalize_observations=normalize)
    observations = jnp.stack([env.reset(jax.random.key(i))[1] for i in range(6)])
    for index, seed in enumerate(SEEDS):
        policy = trpo_jax.load_policy(path, seed=seed)
        distribution = algorithm.policy(jax.tree.map(lambda x: x[index], actor), observations)  # noqa: B023
        scale = jax.vmap(lambda a: to_environment_action(env.action, a))
        np.testing.assert_allclose(
            policy(observations), scale(distribution.mode()), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            policy(observations[2]), policy(observations)[2], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            policy(observations, jax.random.key(0)),
            scale(distribution.sample(jax.random.key(0))),
            rtol=1e-5,
            atol=1e-6,
        )
    best = trpo_jax.load_policy(path)
    np.testing.assert_array_equal(best(observations), policy(observations))
    compiled = jax.jit(lambda observations: policy(observations))(observations)
    np.testing.assert_allclose(compiled, policy(observations), rtol=1e-5, atol=1e-6)
    save_policy(path, algorithm, Learnt(actor), SEEDS[::-1], [-5.0, np.nan])  # the second broke
    first = trpo_jax.load_policy(path, seed=SEEDS[1])
    np.testing.assert_array_equal(trpo_jax.load_policy(path)(observations), first(observations))


def test_a_policy_of_several_choices_is_kept(tmp_path):
    env = envs.make("CartPole-v1")
    step = env.step
    env = env._replace(
        action=MultiDiscrete((2, 3)), step=lambda key, state, action: step(key, state, action[0])
    )
    _, _, path = saved(tmp_path, env)
    assert trpo_jax.load_policy(path)(jnp.zeros((5, 4))).shape == (5, 2)


def test_pixels_of_another_type_are_refused_and_longer_numbers_shortened(tmp_path):
    env = envs.make("CartPole-v1")
    _, _, path = saved(tmp_path, env)
    policy, observations = trpo_jax.load_policy(path), np.linspace(-1, 1, 20).reshape(5, 4)
    np.testing.assert_array_equal(policy(observations), policy(observations.astype(np.float32)))
    _, _, path = saved(tmp_path, env._replace(observation=ArraySpec((4,), np.dtype(np.uint8))))
    policy = trpo_jax.load_policy(path)
    assert policy(np.ones((5, 4), np.uint8)).shape == (5,)
    with pytest.raises(ValueError, match="promises uint8"):
        policy(np.ones((5, 4)))


def test_wrong_observations_and_files_are_named(tmp_path):
    _, _, path = saved(tmp_path, envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        trpo_jax.load_policy(path)(jnp.zeros(3))
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
def test_a_policy_takes_what_an_environment_shows_and_gives_what_it_takes(index, tmp_path):
    action_space = ACTIONS[index]
    observation_space = OBSERVATIONS[index % len(OBSERVATIONS)]
    kwargs = {"observation_space": observation_space, "action_space": action_space}
    gymnasium.registry.pop("Any-v0", None)
    host_tasks.register("Any-v0", "Shown", kwargs=kwargs)
    env = envs.make("gym/Any-v0")
    algorithm = trpo.make(env, trpo.Config(num_envs=2, num_steps=8, hidden_sizes=(4,)))
    wide = lambda x: 30 * jax.random.normal(jax.random.key(x.size), x.shape)  # over all bounds
    actor = jax.tree.map(lambda x: x[None], algorithm.init(jax.random.key(0)).actor)
    actor = actor._replace(policy_params=jax.tree.map(wide, actor.policy_params))
    save_policy(tmp_path / "policy.msgpack", algorithm, Learnt(actor), (0,))
    act = trpo_jax.load_policy(tmp_path)
    observation_space.seed(0)
    shown = [observation_space.sample() for _ in range(5)]
    flat = np.stack([act.shown(x) for x in shown])
    assert flat.shape == (5, *env.observation.shape)
    draws = [act(x, jax.random.key(i)) for x in shown for i in range(20)]
    for action in [*map(act, shown), *draws]:
        assert not isinstance(action, jax.Array)
        assert action_space.contains(action), action
    batch = gymnasium.vector.utils.concatenate(
        observation_space, shown, gymnasium.vector.utils.create_empty_array(observation_space, 5)
    )
    np.testing.assert_allclose(act(batch), [act(x) for x in shown], rtol=1e-4)
    if not isinstance(observation_space, spaces.Discrete):  # whose one-hot form is of integers
        np.testing.assert_array_equal(act(batch), act(flat))


def test_large_numbers_are_seen_from_their_origin():
    layout = {"kind": "box", "shape": [2], "dtype": "float64"}
    spec = ArraySpec((2,), np.dtype(np.float32), layout, np.array([1e9, 0.0]))
    act = make_act(
        lambda *_: None, Actor((), init_statistics((2,))), "own", spec, MultiDiscrete((2,))
    )
    np.testing.assert_array_equal(act.shown([1e9 + 1, 3.0]), np.array([1, 3], np.float32))


def test_numbers_are_told_from_their_one_hot_form(tmp_path):
    env = envs.make("FrozenLake-misc")
    _, _, path = saved(tmp_path, env)
    act, number = trpo_jax.load_policy(path), env.observation.shape[0]
    one_hot = jax.nn.one_hot(np.arange(number), number)
    np.testing.assert_array_equal(act(np.arange(number)), act(one_hot))
    assert act(3) == act(np.int32(3)) == act(one_hot[3])
    for wrong in (number, -1, 2.5, "3", None):
        with pytest.raises(ValueError, match="FrozenLake-misc was given"):
            act(wrong)


def test_a_policy_is_read_from_a_checkpoint_of_a_run_on_the_host(tmp_path):
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
    expected = algorithm.policy(own, jnp.asarray(observations)).mode()
    np.testing.assert_array_equal(act(observations), expected)
    with pytest.raises(ConfigurationError, match=r"no checkpoint 'best' in .* There are: 7, lat"):
        trpo_jax.load_policy(tmp_path, checkpoint="best")
    with pytest.raises(ConfigurationError, match="was stopped before it wrote policy"):
        trpo_jax.load_policy(tmp_path)


def test_a_flipped_bit_is_refused(tmp_path):
    _, _, path = saved(tmp_path, envs.make("CartPole-v1"))
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(8 * len(content), size=300):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ConfigurationError, match=r"policy\.msgpack is damaged or no policy"):
            trpo_jax.load_policy(path)


def old_file(tmp_path, **changes):
    """Writes a file as versions before wrote it, and returns its path."""
    algorithm, actor, path = saved(tmp_path, envs.make("CartPole-v1"))
    statistics = actor.observation_statistics
    count = np.asarray(statistics.count, np.float32)
    data = {
        "format": 1,
        "environment": "CartPole-v1",
        "observation": {"shape": [4], "dtype": "float32"},
        "action": {"discrete": 2},
        "network": {"hidden_sizes": [8], "activation": "tanh", "state_dependent_std": False},
        "normalize_observations": True,
        "seeds": [4, 9],
        "scores": [1.0, 2.0],
        "policy_params": jax.tree.map(np.asarray, actor.policy_params),
        "observation_statistics": {
            "count": count,
            "mean": np.asarray(statistics.mean),
            "squared_deviations": np.asarray(statistics.deviation**2 * count[:, None]),
        },
    }
    path.write_bytes(serialization.msgpack_serialize(data | changes))
    return algorithm, actor, path


def test_files_of_before_are_read(tmp_path):
    algorithm, actor, path = old_file(tmp_path)
    best = jax.tree.map(lambda x: x[1], actor)
    env, observations = algorithm.env, np.random.default_rng(0).normal(size=(50, 4))
    expected = make_act(algorithm.policy, best, "", env.observation, env.action)(observations)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(trpo_jax.load_policy(path)(observations), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"observation": {"shape": [2_000_000_000], "dtype": "float32"}},
        {"action": {"discrete": 2_000_000_000}},
        {"network": {"hidden_sizes": [2_000_000_000], "activation": "tanh"}},
        {"network": {"hidden_sizes": [8], "activation": "tan"}},
        {"network": {"hidden": 3}},
        {"scores": [1.0]},
        {"seeds": []},
        {"format": 7},
        {"policy_params": {}},
        {"policy_params": {"layers_0": {"Dense_0": {"kernel": np.full((2, 4, 8), np.nan)}}}},
        {"observation_statistics": {"count": np.ones(2)}},
        {"observation": 3},
    ],
)
def test_what_a_file_describes_wrongly_is_refused_before_it_is_made(tmp_path, changes):
    _, _, path = old_file(tmp_path, **changes)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    before = peak()
    with pytest.raises(ConfigurationError, match=r"policy\.msgpack (is damaged|holds)"):
        trpo_jax.load_policy(path)
    assert peak() - before < 1e6
