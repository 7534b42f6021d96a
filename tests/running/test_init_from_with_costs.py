"""Runs that start from other runs, if one of the two has limits on costs, and resumed runs."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from trpo_jax.algorithms import cpo, trpo, trpo_lag
from trpo_jax.algorithms.base import learnt_of
from trpo_jax.critics import WithCosts
from trpo_jax.envs.native import toll_road
from trpo_jax.records.policies import learnt_from, read_policies
from trpo_jax.records.policy_files import save_policy
from trpo_jax.running.loop import start_from
from trpo_jax.running.program import Program
from trpo_jax.running.train import train

TINY = {"num_envs": 2, "num_steps": 16, "hidden_sizes": (4,), "critic_epochs": 1}
TINY |= {"critic_minibatches": 2, "normalize_observations": False, "scale_rewards": True}
ENV = toll_road(4)


def two_costs():
    def step(key, state, action):
        state, result = ENV.step(key, state, action)
        return state, result._replace(costs=jnp.tile(result.costs, 2))

    return ENV._replace(step=step, costs=("a", "b"))


def state_of(algorithm, keys=(1, 2)):
    return jax.jit(jax.vmap(lambda seed: algorithm.init(jax.random.key(seed))))(np.array(keys))


def stored(path, algorithm, excess=None):
    """Returns what two seeds have learnt, the second the better one, from its file.

    With an excess, the second is above its limit.
    """
    learnt = learnt_of(jax.device_get(state_of(algorithm, (5, 6))))
    save_policy(path, algorithm, learnt, (0, 1), (0.0, 1.0), excess and (0.0, excess))
    return jax.tree.map(lambda x: x[[0, 0] if excess else [1, 1]], learnt)


def assert_same(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def started(path, algorithm):
    """Returns the first state of two seeds without a file, and with a file to start from."""
    own = state_of(algorithm)
    program = Program(algorithm.env, own, None, (0, 1), 1, 0.0)
    return own, start_from(program, learnt_from(path, algorithm, (0, 1))).state


PLAIN, LIMITED = trpo.make(ENV, trpo.Config(**TINY)), cpo.make(ENV, cpo.Config(**TINY))


def test_critics_of_costs_start_fresh_if_the_other_run_had_none(tmp_path):
    before = stored(tmp_path / "policy.msgpack", PLAIN)
    own, state = started(tmp_path, LIMITED)
    assert_same(state.actor, before.actor)
    assert_same(state.reward_statistics, before.reward_statistics)
    assert_same(state.critic, WithCosts(before.critic, own.critic.costs))


def test_critics_of_costs_are_left_out_without_limits(tmp_path):
    before = stored(tmp_path / "policy.msgpack", LIMITED)
    _, state = started(tmp_path, PLAIN)
    assert_same(state.actor, before.actor)
    assert_same(state.critic, before.critic.reward)


@pytest.mark.slow
def test_critics_of_costs_are_taken_over_only_if_their_number_is_the_same(tmp_path):
    before = stored(tmp_path / "policy.msgpack", LIMITED)
    _, state = started(tmp_path, trpo_lag.make(ENV, trpo_lag.Config(**TINY)))
    assert_same(state.critic, before.critic)
    own, state = started(tmp_path, trpo_lag.make(two_costs(), trpo_lag.Config(**TINY)))
    assert_same(state.critic, WithCosts(before.critic.reward, own.critic.costs))


def test_a_run_starts_from_a_seed_within_its_limits(tmp_path):
    before = stored(tmp_path / "policy.msgpack", LIMITED, excess=0.5)
    learnt = learnt_from(tmp_path, LIMITED, (0, 1))
    assert_same(learnt.actor, before.actor)
    policies = read_policies(tmp_path)
    assert policies.excess == (0, 0.5)
    own = policies.of_seed().actor
    assert_same(own, jax.tree.map(lambda x: x[0], before.actor))


def test_a_file_without_excess_is_judged_by_the_return(tmp_path):
    before = stored(tmp_path / "policy.msgpack", LIMITED)
    data = serialization.msgpack_restore((tmp_path / "policy.msgpack").read_bytes())
    content = serialization.msgpack_restore(data["content"])
    del content["excess"]
    content = serialization.msgpack_serialize(content)
    data |= {"content": content, "digest": hashlib.sha256(content).hexdigest()}
    (tmp_path / "policy.msgpack").write_bytes(serialization.msgpack_serialize(data))
    assert_same(learnt_from(tmp_path, LIMITED, (0, 1)).actor, before.actor)
    assert read_policies(tmp_path).excess == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("module", [cpo, trpo_lag])
def test_a_resumed_run_gives_the_numbers_of_a_run_that_never_stopped(module, tmp_path):
    config = module.Config(**TINY, cost_limit=1.0)
    options = {"seeds": 2, "total_steps": 128, "evaluation_episodes": 2, "progress": False}
    whole = train(ENV, config, **options)
    options |= {"out": tmp_path / "run", "checkpoint_every": 1}
    assert train(ENV, config, **options, callback=lambda chunk: True).num_updates < 4
    resumed = train(ENV, config, **options, resume=True)
    assert resumed.num_updates == 4
    assert_same(resumed.learnt, whole.learnt)
    assert_same(resumed.evaluation.costs, whole.evaluation.costs)
    for name in ("episodic_cost", "cost_excess", "cost_critic_loss"):
        np.testing.assert_allclose(resumed.metrics[name], whole.metrics[name], rtol=1e-6)
