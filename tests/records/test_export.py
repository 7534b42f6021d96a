"""An exported policy returns the same actions as the policy, without this library."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

import trpo_jax
from trpo_jax.agent import build_policy
from trpo_jax.algorithms.base import Actor, acting_by
from trpo_jax.envs.base import key_shape
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import ACTIVATIONS
from trpo_jax.observing import init_observing, update_observing
from trpo_jax.records.acting import make_act

VECTOR, BYTES = ArraySpec((3,), np.dtype(np.float32)), ArraySpec((4,), np.dtype(np.uint8))
ONE, SEVERAL = (
    ArraySpec(x, np.dtype(np.int32), n) for x, n in (((), (6,)), ((2, 2), (2, 5, 1, 3)))
)
GRID_OF_KINDS = ArraySpec((3, 4, 2), np.dtype(np.int32), (5,))
SMALL, LARGE = (ArraySpec((n, n + 2, 3), np.dtype(np.uint8)) for n in (8, 40))
FLOW = Box(np.array([0, -2, -np.inf, -np.inf]), np.array([np.inf, 3, 1, np.inf]))
GRID = Box(np.full((2, 2), -3, np.float32), np.full((2, 2), 2, np.float32))
CASES = {
    "discrete": (VECTOR, Discrete(5, -2), {}, True),
    "several choices": (VECTOR, MultiDiscrete((2, 4, 3), (1, 0, -1)), {"activation": "relu"}, True),
    "bounds of all kinds": (VECTOR, FLOW, {"activation": "swish"}, True),
    "an array": (VECTOR, GRID, {"activation": "elu", "state_dependent_std": True}, False),
    "no layers": (VECTOR, Discrete(3), {"hidden_sizes": ()}, True),
    "a number": (ONE, Discrete(3), {}, True),
    "several numbers": (SEVERAL, MultiDiscrete((2, 2, 3, 4), shape=(2, 2)), {}, True),
    "a grid of kinds": (GRID_OF_KINDS, Discrete(3), {}, True),
    "bytes": (BYTES, FLOW, {"activation": "gelu"}, False),
    "small images": (SMALL, Discrete(4), {"activation": "relu"}, False),
    "large images": (LARGE, FLOW, {"activation": "relu"}, True),
}


@functools.cache
def policy_of(case):
    return random_policy(*CASES[case])


def random_policy(observation, action, settings, normalized):
    settings = {
        "hidden_sizes": (8, 8),
        "activation": "tanh",
        "state_dependent_std": False,
    } | settings
    policy = build_policy(observation, action, **settings)
    random = np.random.default_rng(0)
    draw = lambda x: np.float32(random.normal(size=x.shape) * 1.5 / np.sqrt(x.shape[0]))
    params = jax.tree.map(draw, jax.eval_shape(policy.init, key_shape()))
    seen = lambda shown: update_observing(observation, init_observing(observation), shown)
    statistics = jax.jit(seen)(observations_of(observation, 50))
    return make_act(
        acting_by(policy, observation, None, normalized),
        policy.carry,
        Actor(params, statistics),
        "own",
        observation,
        action,
        settings,
        normalized,
    )


def observations_of(spec, number):
    if isinstance(spec, dict):
        return {name: observations_of(part, number) for name, part in spec.items()}
    random = np.random.default_rng(number)
    if spec.num_values is not None:
        counts = np.broadcast_to(spec.num_values, np.prod(spec.shape, dtype=int))
        flat = random.integers(0, counts, (number, len(counts)), spec.dtype)
        return flat.reshape(number, *spec.shape)
    if spec.dtype == np.bool_:
        return random.random((number, *spec.shape)) < 0.5
    if spec.dtype == np.uint8:
        return random.integers(0, 256, (number, *spec.shape), np.uint8)
    return random.normal(5, 3, (number, *spec.shape)).astype(np.float32)


def act_of_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    (code,) = re.findall(r"```python\n(import numpy.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names["act"]


def run_npz(path, observations):
    return act_of_the_documents()(np.load(path), observations)


def run_onnx(path, observations):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    return session.run(["actions"], {"observations": observations})[0]


def run_jax(path, observations):
    return jax.export.deserialize(bytearray(path.read_bytes())).call(observations)


@pytest.mark.parametrize("run", [run_npz, run_onnx, run_jax])
@pytest.mark.parametrize(
    "case",  # one worker, so that the policy is shared
    [pytest.param(case, marks=pytest.mark.xdist_group(f"export {case}")) for case in CASES],
)
def test_an_exported_policy_returns_the_actions_of_the_policy(run, case, tmp_path):
    policy = policy_of(case)
    if run is run_onnx:
        pytest.importorskip("onnx")
    path = tmp_path / f"policy.{run.__name__.removeprefix('run_')}"
    trpo_jax.export(policy, path)
    number = 100 if case == "large images" else 1000
    observations = observations_of(policy.observation, number)
    expected = policy(observations)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(run(path, observations), expected, rtol=1e-5, atol=1e-5)
    assert run(path, observations[:7]).shape == expected[:7].shape


def test_every_activation_can_be_exported(tmp_path):
    runs = {"npz": run_npz, "onnx": run_onnx}
    for activation in ACTIVATIONS:
        policy = random_policy(VECTOR, FLOW, {"activation": activation}, True)
        observations = observations_of(VECTOR, 1000)
        for suffix, run in runs.items():
            trpo_jax.export(policy, tmp_path / f"{activation}.{suffix}")
            found = run(tmp_path / f"{activation}.{suffix}", observations)
            np.testing.assert_allclose(found, policy(observations), rtol=1e-5, atol=1e-5)


def test_an_export_that_is_impossible_is_refused(tmp_path):
    policy = random_policy(VECTOR, Discrete(5), {}, True)
    own = dataclasses.replace(policy, network=None)
    for suffix in ("npz", "onnx"):
        with pytest.raises(ConfigurationError, match=r"of your own.*Export it as \.jax"):
            trpo_jax.export(own, tmp_path / f"policy.{suffix}")
    with pytest.raises(ConfigurationError, match=r"Choose one of \.npz, \.onnx, \.jax"):
        trpo_jax.export(policy, tmp_path / "policy.pt")
    trpo_jax.export(own, tmp_path / "policy.jax")
    with pytest.raises(ConfigurationError, match="will not be overwritten"):
        trpo_jax.export(own, tmp_path / "policy.jax")


TREE = {"body": VECTOR, "kind": ONE, "action_mask": ArraySpec((9,), np.dtype(np.bool_))}
JOINT = {"legs": MultiDiscrete((4, 5)), "arm": GRID}


def test_an_exported_program_takes_and_returns_trees(tmp_path):
    policy = random_policy(TREE, JOINT, {}, True)
    for suffix in ("npz", "onnx"):
        with pytest.raises(ConfigurationError, match=r"several parts\. Only the format \.jax"):
            trpo_jax.export(policy, tmp_path / f"policy.{suffix}")
    trpo_jax.export(policy, tmp_path / "policy.jax")
    observations = observations_of(TREE, 500)
    observations["action_mask"][np.arange(500), np.arange(500) % 4] = True  # one is legal
    observations["action_mask"][np.arange(500), 4 + np.arange(500) % 5] = True
    found, expected = run_jax(tmp_path / "policy.jax", observations), policy(observations)
    assert found.keys() == expected.keys() == JOINT.keys()
    assert len(np.unique(expected["legs"], axis=0)) > 8
    legal = np.take_along_axis(
        observations["action_mask"], found["legs"] + np.array([0, 4]), axis=1
    )
    assert legal.all()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


def test_an_exported_program_with_a_memory_takes_and_returns_a_carry(tmp_path):
    policy = random_policy(VECTOR, Discrete(5), {"memory": "lstm", "memory_size": 4}, True)
    for suffix in ("npz", "onnx"):
        with pytest.raises(ConfigurationError, match=r"a memory\. Only the format \.jax"):
            trpo_jax.export(policy, tmp_path / f"policy.{suffix}")
    trpo_jax.export(policy, tmp_path / "policy.jax")
    program = jax.export.deserialize(bytearray((tmp_path / "policy.jax").read_bytes()))
    zeros, shown = policy.carry(200), observations_of(VECTOR, 600).reshape(3, 200, 3)
    assert all((x == 0).all() for x in jax.tree.leaves(zeros))
    carry, forgetful, found = zeros, [], []
    for x in shown:
        forgetful.append(program.call(zeros, x)[1])
        carry, actions = program.call(carry, x)
        found.append(actions)
    np.testing.assert_array_equal(found, [policy(x) for x in shown])
    assert (np.array(forgetful) != found).any()
