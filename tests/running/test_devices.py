import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from collectives import Collective, collectives
from jax.sharding import PartitionSpec

from trpo_jax import algorithms, envs
from trpo_jax.agent import make_agent
from trpo_jax.algorithms import trpo
from trpo_jax.devices import choose_devices, split_environments
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("devices")  # one worker, so that the runs are shared

HERE = Path(__file__).parent
HIDDEN = {"hidden_sizes": (8,)}
SEEDS, POLICY, CRITIC = 4, 58, 49  # runs, and parameters of each network, in sharded.py


def run_sharded(folder, names):
    """Runs sharded.py on four devices, and returns its folder."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    variables = {"XLA_FLAGS": flags}
    root = HERE.parents[1]
    benchmarks = root / "experiments" / "benchmarks"
    paths = root, root / "tests", benchmarks
    variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    result = subprocess.run(
        [sys.executable, str(HERE / "sharded.py"), str(folder), *names],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return run_sharded(tmp_path_factory.mktemp("sharded"), ["trpo"])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return run_sharded(tmp_path_factory.mktemp("others"), ["ppo", "trpo-gru"])


def assert_same(folder, algorithm, split):
    one = np.load(folder / f"{algorithm}-one.npz")
    several = np.load(folder / f"{algorithm}-{split}.npz")
    assert set(several) == set(one)
    assert {"explained_variance", "actor/observation_statistics/mean"} <= set(one)
    assert one["explained_variance"].shape == (SEEDS, 10)
    for name in one:
        np.testing.assert_allclose(
            several[name], one[name], rtol=1e-3, atol=1e-4, err_msg=f"{name} of {split}"
        )


def communicated(folder, name):
    return [Collective(*x) for x in json.loads((folder / "said.json").read_text())[name]]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["runs", "environments"])
def test_several_devices_give_the_numbers_of_one_device(sharded, split):
    assert_same(sharded, "trpo", split)


@pytest.mark.heavy
@pytest.mark.parametrize("split", ["runs", "environments"])
@pytest.mark.parametrize("algorithm", ["ppo", "trpo-gru"])
def test_several_devices_give_the_numbers_of_one_device_with_minibatches_or_a_memory(
    others, algorithm, split
):
    assert_same(others, algorithm, split)


@pytest.mark.heavy
def test_several_devices_give_the_numbers_of_one_device_for_every_algorithm(tmp_path):
    """python3 -m uv run pytest -m heavy tests/running/test_devices.py"""
    names = [name for name in algorithms.ALGORITHMS if name not in ("trpo", "ppo")]
    run_sharded(tmp_path, names)
    for name in names:
        one = np.load(tmp_path / f"{name}-one.npz")
        for split in ("runs", "environments"):
            several = np.load(tmp_path / f"{name}-{split}.npz")
            for metric in (x for x in one if one[x].shape == (SEEDS, 10)):
                ours, theirs = several[metric][:, :4], one[metric][:, :4]  # rounding grows fast
                what = f"{metric} of {name}, by {split}"
                # Rounding decides whether the last iteration of the solver has an effect.
                atol = 1 if metric == "cg_iterations" else 1e-3
                np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=atol, err_msg=what)


@pytest.mark.slow
def test_devices_that_share_seeds_do_not_communicate(sharded):
    assert json.loads((sharded / "said.json").read_text())["devices"] == 4
    for name in ("trpo-one", "trpo-runs"):
        assert communicated(sharded, name) == []


@pytest.mark.slow
def test_devices_that_share_environments_exchange_only_sums(sharded):
    found = communicated(sharded, "trpo-environments")
    assert {x.kind for x in found} == {"all-reduce"}
    sizes = sorted(x.num_bytes / (4 * SEEDS) for x in found)
    # The gradient and the loss of the critic, a Fisher-vector product, the gradient of the policy
    # with two numbers.
    assert sizes[-3:] == [CRITIC + 1, POLICY, POLICY + 2]
    assert all(size <= 13 for size in sizes[:-3])
    assert len(sizes) <= 21  # one of them is for the spread of the advantages
    (product,) = (x for x in found if x.num_bytes == 4 * SEEDS * POLICY)
    assert product.source.count("while") == 2  # the loops of updates and of conjugate gradient


@pytest.mark.heavy
def test_minibatches_do_not_gather_the_batch(others):
    found = communicated(others, "ppo-environments")
    assert {x.kind for x in found} == {"all-reduce"}
    assert max(x.num_bytes for x in found) == 4 * SEEDS * POLICY
    assert communicated(others, "ppo-runs") == []


@pytest.mark.heavy
def test_a_memory_does_not_gather_sequences(others):
    found = communicated(others, "trpo-gru-environments")
    assert {x.kind for x in found} == {"all-reduce"}
    env, config = envs.make("CartPole-v1"), trpo.Config(memory="gru", memory_size=4, **HIDDEN)
    policy = jax.eval_shape(make_agent(env, config).policy.init, jax.random.key(0))
    num_params = sum(x.size for x in jax.tree.leaves(policy))
    # Gradients, in one piece or in several. The observations alone have 8 * 16 * 4 numbers.
    assert max(x.num_bytes for x in found) <= 4 * SEEDS * (num_params + 2) < 4 * SEEDS * 512
    assert communicated(others, "trpo-gru-runs") == []


def test_only_arrays_that_grow_with_the_environments_are_split():
    config = trpo.Config(num_envs=2, num_steps=8, critic_minibatches=2)
    env = envs.make("CartPole-v1")
    placement = split_environments(jax.devices(), trpo.make(env, config))
    specs = jax.tree.map(lambda x: x.spec, placement.state)
    split, whole = PartitionSpec(None, "environments"), PartitionSpec()
    assert {*jax.tree.leaves(specs.rollout)} == {split}
    assert (specs.key, specs.num_updates) == (whole, whole)
    assert not any("environments" in x for x in jax.tree.leaves(specs.actor))
    assert placement.rest.spec == PartitionSpec()
    assert placement.devices == jax.devices()


@pytest.mark.parametrize("wanted", [0, 7])
def test_missing_devices_are_refused(wanted):
    with pytest.raises(ConfigurationError, match=f"devices = {wanted} must be.*at most 1.*cpu"):
        choose_devices(wanted)


def test_collectives_are_found_in_the_text_of_a_program():
    text = """
  %all-reduce.7 = (f32[2,64]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), to_apply=%add
  %start = (f32[16,16,4]{2,0,1}, f32[64,16,4]{2,0,1}) all-gather-start(%c), dimensions={0}
  %done = f32[64,16,4]{2,0,1} all-gather-done(%start), metadata={op_name="jit(f)/x"}
  %p = pred[] collective-permute(%d), source_target_pairs={{0,1}}
  %fusion = f32[8]{0} fusion(%all-reduce.7), kind=kLoop
"""
    assert collectives(text) == [
        Collective("all-reduce", 4 * 128 + 2 * 3, ""),
        Collective("all-gather", 4 * 64 * 16 * 4, "jit(f)/x"),
        Collective("collective-permute", 1, ""),
    ]
