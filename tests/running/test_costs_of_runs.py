"""Costs of episodes in evaluations, files and summaries of runs."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

import trpo_jax
from trpo_jax.algorithms import ppo_lag, trpo
from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Categorical
from trpo_jax.envs.base import Pool, StepResult, host_environment
from trpo_jax.envs.native import toll_road
from trpo_jax.envs.specs import Discrete
from trpo_jax.errors import EnvironmentFailure
from trpo_jax.normalization import init_statistics
from trpo_jax.records.policies import read_policies
from trpo_jax.running.evaluation import make_evaluation, require_finite_returns

SMALL = {"num_envs": 4, "num_steps": 20, "hidden_sizes": (4,), "critic_minibatches": 1}
SMALL |= {"critic_epochs": 1, "policy_epochs": 1, "policy_minibatches": 1}


def constant(choice, num_seeds=1):
    statistics = jax.vmap(lambda _: init_statistics((1,)))(jnp.zeros(num_seeds))
    logits = lambda observations: jnp.tile(jax.nn.one_hot(choice, 2), (len(observations), 1))
    policy = lambda actor, carry, observations: (carry, Categorical(logits(observations)))
    return Actor(jnp.zeros(num_seeds), statistics), policy


def costly(env, cost):
    """Returns an environment with two costs: a function of the steps, and 1."""

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(costs=jnp.array([cost(count), 1.0], jnp.float32))

    return env._replace(step=step, costs=("own", "one"))


def on_host(cost):
    """Returns an environment with two copies, which have episodes of 2 and of 3 steps."""

    def open(seeds, num_envs, render=False):
        steps = np.zeros(num_envs, int)

        def step(actions):
            steps[:] += 1
            ended = steps >= 2 + np.arange(num_envs)
            costs = np.stack([cost(steps), np.ones(num_envs)], axis=1)
            steps[ended] = 0
            shown = np.zeros((num_envs, 1), np.float32)
            return StepResult(shown, np.ones(num_envs), ended, np.zeros(num_envs, bool), costs)

        reset = lambda mask: np.zeros((mask.sum(), 1), np.float32)
        return Pool(reset, step, lambda: None)

    shown = counter().observation
    return host_environment("host", shown, Discrete(2), None, open, costs=("own", "one"))


def test_costs_are_summed_until_the_end_of_each_episode():
    actor, policy = constant(1, num_seeds=2)
    env = costly(counter(terminates_at=3), lambda count: count)
    played = make_evaluation(env, policy, 4)(actor, (3, 4))
    np.testing.assert_array_equal(played.costs, np.broadcast_to([1 + 2 + 3, 3], (2, 4, 2)))
    played = make_evaluation(on_host(lambda steps: steps), policy, 3, num_envs=2)(actor, (3, 4))
    np.testing.assert_array_equal(played.costs, [[[3, 2], [6, 3], [3, 2]]] * 2)
    np.testing.assert_array_equal(played.returns, [[2, 3, 2]] * 2)


def test_short_episodes_keep_their_costs_while_long_ones_continue():
    env = toll_road(4)

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(terminated=result.terminated | (result.reward > 0.5))

    actor, policy = constant(1)
    played = make_evaluation(env._replace(step=step), policy, 32)(actor, (0,))
    assert set(played.costs.ravel()) == {1.0, 2.0, 3.0, 4.0}
    assert (played.returns[played.costs[..., 0] == 1] > 0.5).all()


def test_an_environment_without_costs_has_no_costs():
    actor, policy = constant(1)
    assert make_evaluation(counter(terminates_at=3), policy, 4)(actor, (3,)).costs == ()


def test_a_cost_that_is_not_finite_is_reported_like_a_reward():
    actor, policy = constant(1, num_seeds=2)
    env = costly(counter(terminates_at=3), lambda count: jnp.where(count == 2, jnp.nan, 1.0))
    played = make_evaluation(env, policy, 2)(actor, (3, 4))
    assert np.isfinite(played.returns).all()
    with pytest.raises(EnvironmentFailure, match=r"counter returned .* policy of seeds 3, 4"):
        require_finite_returns(env, (3, 4), played.returns, played.costs)
    env = on_host(lambda steps: np.where(steps == 1, np.nan, 1.0))
    with pytest.raises(EnvironmentFailure, match="own"):
        make_evaluation(env, policy, 2)(actor, (3, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cpo"
    options = {"seeds": 3, "total_steps": 240, "evaluation_episodes": 4, "eval_every": 2}
    config = ppo_lag.Config(cost_limit=5.0, **SMALL)
    return trpo_jax.train(toll_road(), config, **options, out=folder, progress=False)


@pytest.mark.slow
def test_files_have_costs_beside_returns(run):
    for name, before, after in (
        ("metrics.csv", "episodic_return", "episodic_cost"),
        ("evaluations.csv", "evaluation_return", "evaluation_cost"),
    ):
        with (run.folder / name).open() as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]).index(after) == list(rows[0]).index(before) + 1
        assert all(0 <= float(row[after]) <= 20 for row in rows if row[after])
    assert run.evaluations["evaluation_cost"].shape == (3, 2)


@pytest.mark.slow
def test_the_summary_says_whether_the_limit_is_kept(run):
    assert run.evaluation.costs.shape == (3, 4, 1)
    found = json.loads((run.folder / "summary.json").read_text())["evaluation"]["costs"]["toll"]
    per_seed = run.evaluation.costs.mean(axis=(1, 2))
    np.testing.assert_allclose(found["per_seed"], per_seed)
    assert found["mean"] == pytest.approx(per_seed.mean())
    assert found["limit"] == 5.0
    assert found["keeps_limit"] == (per_seed.mean() <= 5)
    assert found["seeds_above_limit"] == (per_seed > 5).sum()
    assert f"mean cost toll {found['mean']:.3g}"[:18] in repr(run)


@pytest.mark.slow
def test_a_run_without_a_limit_has_costs_but_no_limit(run):
    run = run._replace(config=trpo.Config())
    assert run.cost_limits is None
    assert "limit" not in run.evaluated_costs["toll"]


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_update_has_its_limit(run):
    run = run._replace(metrics={})
    assert run.cost_limits.shape == (1, 0)
    assert run.evaluated_costs["toll"]["limit"] == 5


@pytest.mark.slow
def test_the_limit_of_the_last_update_counts(run):
    scheduled = {"cost_limit": np.array([[9.0, 6.0, 3.0]] * 3)}
    assert run._replace(metrics=run.metrics | scheduled).evaluated_costs["toll"]["limit"] == 3


@pytest.mark.slow
def test_the_chosen_policy_is_from_a_seed_within_its_limit(run):
    costs = np.array([2.0, 7.0, 4.0])[:, None, None] * np.ones((3, 4, 1))
    evaluation = run.evaluation._replace(per_seed=np.array([1.0, 9.0, 2.0]), costs=costs)
    chosen = lambda run: jax.tree.leaves(run.policy().actor.policy_params)[-1]
    of_seeds = jax.tree.leaves(run.actor.policy_params)[-1]
    assert len(set(map(bytes, np.asarray(of_seeds)))) == 3
    judged = run._replace(evaluation=evaluation)
    np.testing.assert_array_equal(chosen(judged), of_seeds[2])
    free = judged._replace(config=trpo.Config())
    np.testing.assert_array_equal(chosen(free), of_seeds[1])


@pytest.mark.slow
def test_files_say_how_far_costs_are_above_their_limit(run):
    above = lambda costs: np.maximum(costs - 5, 0)
    per_seed = run.evaluation.costs.mean(axis=(1, 2))
    np.testing.assert_allclose(read_policies(run.folder).excess, above(per_seed))
    per_seed = run.evaluations["evaluation_cost"][:, 1]
    checkpoint = read_policies(run.folder, checkpoint="best")
    np.testing.assert_allclose(checkpoint.excess, above(per_seed), rtol=1e-5)
    assert "after update 2" in checkpoint.what
    metrics = json.loads((run.folder / "checkpoints/2/metrics/metrics").read_text())
    assert metrics["evaluation_excess"] == pytest.approx(above(per_seed.mean()))
    assert above(per_seed).any()  # otherwise the test shows nothing
