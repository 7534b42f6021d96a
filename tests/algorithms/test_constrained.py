"""Algorithms with limits, compared with plain algorithms, sums by hand, and a known task."""

import functools
from typing import Any

import chex
import gymnasium
import host_tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest

from trpo_jax import algorithms, envs
from trpo_jax.algorithms import cpo, trpo_lag, trpo_pid
from trpo_jax.algorithms.configs import Constrained
from trpo_jax.algorithms.constrained import episode_costs
from trpo_jax.algorithms.on_policy import estimate
from trpo_jax.constraints import constrained_step, cost_surrogate
from trpo_jax.critics import Sequences
from trpo_jax.envs import native
from trpo_jax.envs.episodes import Transition
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.defaults import defaults
from trpo_jax.running.loop import NonFiniteError, compile_program, run_chunks

pytestmark = pytest.mark.xdist_group("constrained")

SMALL: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,)}
SMALL |= {"critic_minibatches": 2, "critic_epochs": 1}
PPO = {"policy_epochs": 1, "policy_minibatches": 2}
# The plain algorithm of each algorithm with limits.
PLAIN = dict.fromkeys(("cpo", "pcpo", "trpo_lag", "trpo_pid"), "trpo") | {"ppo_lag": "ppo"}
MEMORY = {"memory": "gru", "memory_size": 3}
AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def make(name, env, **settings):
    module = algorithms.get(name)
    own = PPO if name.startswith("ppo") else {}
    return module.make(env, module.Config(**(SMALL | own | settings)))


def updated(algorithm, num_updates, optimized=False):
    """Returns the state and the metrics of `num_updates` updates.

    If `optimized`, XLA uses the optimisations that users have. This compiles more slowly.
    """

    def run(key):
        scan = lambda state, _: algorithm.update(state)
        return jax.lax.scan(scan, algorithm.init(key), length=num_updates)

    return jax.jit(run, compiler_options=AS_USERS if optimized else None)(jax.random.key(0))


@functools.cache
def without_limit(name, memory, optimized):
    algorithm = make(name, native.toll_road(), **(MEMORY if memory else {}))
    return updated(algorithm, 4, optimized)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "memory"),
    [
        *((name, False) for name in PLAIN if name != "ppo_lag"),
        pytest.param("ppo_lag", False, marks=pytest.mark.heavy),
        pytest.param("cpo", True, marks=pytest.mark.heavy),
    ],
)
def test_without_an_active_limit_the_result_is_that_of_the_plain_algorithm(name, memory):
    settings = {"cost_limit": 1e6} | (MEMORY if memory else {})
    # Without optimisations, XLA rounds these two cases differently from the plain algorithm.
    optimized = memory or name == "ppo_lag"
    state, metrics = updated(make(name, native.toll_road(), **settings), 4, optimized)
    plain, plain_metrics = without_limit(PLAIN[name], memory, optimized)
    chex.assert_trees_all_equal(state.actor, plain.actor)
    chex.assert_trees_all_equal(state.critic.reward, plain.critic)
    of_rounding = 1e-6 if name == "ppo_lag" else 0  # the gain is a difference of two means
    assert plain_metrics.keys() - metrics.keys() <= {"advantage_strength"}  # cpo has no penalty
    for metric in plain_metrics.keys() & metrics.keys():
        close = {"rtol": 0, "atol": of_rounding, "err_msg": metric}
        np.testing.assert_allclose(metrics[metric], plain_metrics[metric], **close)
    assert (metrics["kl"] > 0).any()
    assert not metrics.get("cost_active", np.zeros(1)).any()
    assert not metrics.get("cost_multiplier", np.zeros(1)).any()


def with_two_costs():
    """Returns the noise task with two costs. Episodes end at random, or at 5 steps."""
    env = probes.noise()

    def step(key, state, action):
        state, result = env.step(key, state, action)
        shown = result.observation
        return state, result._replace(costs=jnp.stack([jnp.abs(shown[0]), 3 + shown[1]]))

    return env._replace(step=step, costs=("first", "second"))


@pytest.mark.slow
def test_advantages_of_costs_are_like_those_of_rewards_with_cost_gamma():
    """A termination adds nothing, and a truncation adds the value of the critic."""
    settings = {"cost_gamma": 0.8, "normalize_observations": False}
    algorithm = make("trpo_lag", with_two_costs(), **settings)
    config, agent = algorithm.config, algorithm.agent

    @jax.jit
    def run(key):
        state, _ = algorithm.update(algorithm.init(key))
        larger = lambda x: x + 0.5 * jax.random.normal(key, x.shape)
        costs = state.critic.costs
        costs = costs._replace(params=jax.tree.map(larger, costs.params))
        state = state._replace(critic=state.critic._replace(costs=costs))
        after, trajectory = algorithm.collect(state)
        _, step_input, targets = estimate(algorithm.env, config, agent, after, trajectory, True)
        carry = state.rollout.critic_carry
        values = [
            agent.critic.values(state.critic.params, Sequences(carry, x, trajectory.first))[0].costs
            for x in (trajectory.observation, trajectory.next_observation)
        ]
        return trajectory, step_input.batch.cost_advantages, targets.costs, *values

    trajectory, found, targets, values, following = jax.device_get(run(jax.random.key(0)))
    assert found.shape == (8, 4, 2)
    assert np.abs(values[..., 0] - values[..., 1]).min() > 1e-4  # the two critics differ
    going_on = 0.8 * ~trajectory.terminated[..., None]
    errors = trajectory.costs + going_on * following - values
    expected = np.zeros_like(found)
    for env in range(4):
        for start in range(8):
            for step in range(start, 8):
                expected[start, env] += (0.8 * 0.95) ** (step - start) * errors[step, env]
                if trajectory.done[step, env]:
                    break
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, expected + values, rtol=1e-4, atol=1e-5)
    assert trajectory.terminated.any()
    assert trajectory.truncated.any()


def batch_of(lengths, costs, whole=True):
    """Returns the steps of one environment, in which episodes of the given lengths end."""
    ends = np.cumsum(lengths) - 1
    steps = len(costs)
    done = np.isin(np.arange(steps), ends)[:, None]
    length = np.concatenate([np.arange(1, x + 1) for x in (*lengths, steps)])[:steps, None]
    no, zero = np.zeros((steps, 1), bool), np.zeros((steps, 1), np.float32)
    return Transition(
        zero, zero, zero, done, no, zero, no, length, zero, np.full((steps, 1), whole), no,
        costs=np.asarray(costs, np.float32).reshape(steps, 1, -1),
    )  # fmt: skip


def test_the_cost_of_an_episode_is_the_mean_cost_of_a_step_times_the_length():
    env, limit = with_two_costs(), Constrained(cost_limit=(10.0, 40.0))
    costs = np.random.default_rng(0).uniform(size=(12, 2))
    measure = jax.jit(lambda length, batch: episode_costs(env, limit, length, batch))
    measured = measure(0.0, batch_of((2, 7, 3), costs))
    assert measured.length == measured.steps == 4
    np.testing.assert_allclose(measured.costs, costs.sum(axis=0) / 3, rtol=1e-6)  # 3 episodes
    np.testing.assert_allclose(measured.excess, measured.costs - np.array([10, 40]), rtol=1e-6)
    # A batch moves the length by a fifth. A batch without the end of a whole episode keeps it.
    np.testing.assert_allclose(measure(9.0, batch_of((2, 7, 3), costs)).length, 8)
    for batch in (batch_of((), costs), batch_of((2, 7, 3), costs, whole=False)):
        assert measure(9.0, batch).steps == 9
        assert measure(0.0, batch).length == 0
        assert measure(0.0, batch).steps == 5  # the time limit
    unlimited = env._replace(time_limit=None)
    measure = jax.jit(lambda batch: episode_costs(unlimited, limit, jnp.zeros(()), batch))
    assert measure(batch_of((), costs)).steps == 12


@pytest.mark.slow
def test_the_cost_surrogate_times_the_length_predicts_the_change_of_an_episode():
    """The changed policy plays again, and its costs are measured."""
    env = native.toll_road()
    settings = {"num_envs": 64, "num_steps": 200, "cost_gamma": 0.0}
    algorithm = make("cpo", env, **settings)
    config, agent = algorithm.config, algorithm.agent

    @jax.jit
    def run(key):
        state, trajectory = algorithm.collect(algorithm.init(key))
        _, step_input, _ = estimate(env, config, agent, state, trajectory, True)
        batch, params = step_input.batch, state.actor.policy_params
        fewer = lambda path, x: x.at[1].add(-0.7) if x.shape == (2,) else x
        changed = jax.tree.map_with_path(fewer, params)  # changes the bias of the last layer
        old, new = (agent.distributions(x, batch) for x in (params, changed))
        of_cost = cost_surrogate(batch.actions, batch.cost_advantages[..., 0])
        actor = state.actor._replace(policy_params=changed)
        _, played = algorithm.collect(state._replace(actor=actor))
        measured = [episode_costs(env, config, jnp.zeros(()), x) for x in (trajectory, played)]
        return of_cost(new, old), *measured

    change, before, after = run(jax.random.key(0))
    assert before.steps == after.steps == 20
    np.testing.assert_allclose(change * before.steps, (after.costs - before.costs)[0], rtol=0.1)
    assert change * before.steps < -2


@pytest.mark.slow
def test_the_step_of_cpo_gets_the_excess_per_step():
    def told(gradient, plain, cost, max_kl):
        found = constrained_step(gradient, plain, cost, max_kl)
        return found._replace(step=found.step._replace(cg_residual=cost.excess))

    config = cpo.Config(**(SMALL | {"num_steps": 20}), cost_limit=3.0)  # each episode has 20 steps
    _, metrics = updated(cpo.make_limited(native.toll_road(), config, None, told), 2)
    assert (metrics["cost_excess"] > 1).all()
    np.testing.assert_allclose(metrics["cg_residual"], metrics["cost_excess"] / 20, rtol=1e-6)


def test_multipliers_follow_adam_of_optax_and_are_never_negative():
    config = trpo_lag.Config(multiplier_lr=0.1)
    rule, adam = trpo_lag.adam_rule(config), optax.adam(0.1)
    multiplier = expected = np.zeros(2, np.float32)
    start = lambda zero: (rule.init(zero), adam.init(zero))
    state, their_state = jax.jit(start)(multiplier)
    seen = []

    @jax.jit
    def step(excess, state, multiplier, their_state, expected):
        updates, their_state = adam.update(-excess, their_state)
        expected = jnp.maximum(optax.apply_updates(expected, updates), 0)
        return *rule.update(state, multiplier, excess), their_state, expected

    for excess in ([3.0, -1.0], [2.0, 4.0], [-9.0, 1.0], [-1.0, 5.0], [-2.0, -1.0], [1.0, 0.0]):
        excess = np.array(excess, np.float32)
        results = step(excess, state, multiplier, their_state, expected)
        state, multiplier, their_state, expected = results
        np.testing.assert_allclose(multiplier, expected, rtol=1e-6)
        seen.append(np.asarray(multiplier))
    assert min(x.min() for x in seen) == 0
    assert max(x[1] for x in seen) > 0.1


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        # The excesses are 2, 4, 2, -8, 1. Smoothed they are 2, 3, 2.5, -2.75, -0.875.
        ({"pid_p": 1.0}, [2, 3, 2.5, 0, 0]),
        ({"pid_i": 1.0}, [2, 6, 8, 0, 1]),
        ({"pid_d": 1.0}, [0, 1, 0, 0, 1.875]),
        ({"pid_p": 1.0, "pid_i": 0.5, "pid_d": 2.0}, [3, 8, 6.5, 0, 3.375]),
    ],
)
def test_each_gain_of_the_pid_controller(gains, expected):
    none = {"pid_p": 0.0, "pid_i": 0.0, "pid_d": 0.0, "pid_smoothing": 0.5}
    rule = trpo_pid.pid_rule(trpo_pid.Config(**(none | gains)))
    multiplier = jnp.zeros(1)
    state, found = rule.init(multiplier), []
    for excess in (2.0, 4.0, 2.0, -8.0, 1.0):
        state, multiplier = rule.update(state, multiplier, jnp.array([excess]))
        found.append(float(multiplier[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_margin_follows_the_excess_and_lowers_the_limit():
    env = native.toll_road()
    settings = {"cost_limit": 9.5, "num_envs": 16, "num_steps": 20, "max_kl": 0.1}

    @jax.jit
    def run(rate):
        algorithm = make("cpo", env, cost_margin_rate=rate, **settings)
        state = algorithm.init(jax.random.key(0))
        return jax.lax.scan(lambda state, _: algorithm.update(state), state, length=6)

    (with_margin, metrics), (without, _) = run(0.5), run(0.0)
    margin, expected = 0.0, []
    for excess in metrics["cost_excess"]:
        margin = max(margin + 0.5 * float(excess), 0.0)
        expected.append(margin)
    np.testing.assert_allclose(metrics["cost_margin"], expected, rtol=1e-5)
    assert max(expected) > 0
    pairs = zip(
        *(jax.tree.leaves(x.actor.policy_params) for x in (with_margin, without)), strict=True
    )
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("name", PLAIN)
def test_an_environment_without_costs_is_refused(name):
    with pytest.raises(
        ConfigurationError, match=r"action choice has no costs.*--cost.*or choose trpo"
    ):
        make(name, probes.action_choice())


@pytest.mark.parametrize("name", ["cpo", "pcpo"])
def test_an_algorithm_for_one_cost_refuses_two(name):
    with pytest.raises(ConfigurationError, match=r"2 costs \(first, second\).*limits 1.*trpo_lag"):
        make(name, with_two_costs())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trpo_lag", "trpo_pid", "ppo_lag"])
def test_each_of_two_costs_has_its_own_limit_and_multiplier(name):
    algorithm = make(name, with_two_costs(), cost_limit=(0.5, 1e3))
    with jax.debug_nans(True):
        _, metrics = updated(algorithm, 2)
    assert (metrics["cost_excess_first"] > 0).all()
    assert (metrics["cost_excess_second"] < 0).all()
    assert (metrics["cost_multiplier_first"] > 0).all()
    assert not metrics["cost_multiplier_second"].any()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cost_limit": np.inf}, "cost_limit = inf cannot work: it must be a finite number"),
        ({"cost_limit": (1.0, np.nan)}, r"cost_limit = \(1.0, nan\) cannot work"),
        (
            {"cost_limit": (1.0, 2.0, 3.0)},
            r"\(1.0, 2.0, 3.0\) has 3 numbers.*2 costs: first, second",
        ),
        ({"cost_gamma": 1.1}, "cost_gamma = 1.1 cannot work"),
        ({"multiplier_lr": -1.0}, "multiplier_lr = -1.0 cannot work"),
    ],
)
def test_wrong_limits_are_refused(settings, match):
    with pytest.raises(ConfigurationError, match=match):
        make("trpo_lag", with_two_costs(), **settings)


@pytest.mark.parametrize("name", ["cpo", "pcpo"])
def test_a_penalty_is_refused(name):
    with pytest.raises(ConfigurationError, match="kl_penalty cannot work here"):
        make(name, native.toll_road(), kl_penalty=1.0)


@pytest.mark.parametrize("name", ["cpo", "pcpo"])
def test_damped_scaling_false_is_refused(name):
    with pytest.raises(ConfigurationError, match="damped_scaling = False cannot work with a limit"):
        make(name, native.toll_road(), damped_scaling=False)


@pytest.mark.slow
def test_a_cost_that_is_nan_stops_the_seed_and_is_named():
    env = native.toll_road()

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(costs=jnp.where(state[0] == 11, jnp.nan, result.costs))

    algorithm = make("trpo_lag", env._replace(step=step))
    match = r"native/TollRoad returned a cost of nan, in step 3 of update 2\."
    with pytest.raises(NonFiniteError, match=match):
        list(run_chunks(compile_program(algorithm, (0,), 3), 3))


class Costly(host_tasks.Counter):
    """Gives a cost in its infos. One cost is NaN."""

    def step(self, action):
        *result, _ = super().step(action)
        return *result, {"cost": np.nan if self.all_steps == 11 else 1.0}


@pytest.mark.slow
def test_a_cost_that_is_nan_on_the_host_stops_the_seed_and_is_named():
    if "SometimesNaN-v0" not in gymnasium.registry:
        gymnasium.register("SometimesNaN-v0", Costly, disable_env_checker=True)
    env = envs.make("gym/SometimesNaN-v0", costs=["info:cost"])
    program = compile_program(make("trpo_lag", env), (0,), 3)
    try:
        with pytest.raises(NonFiniteError, match=r"in update 1, .*a cost.* nan"):
            list(run_chunks(program, 3))
    finally:
        program.close()


LIMIT = 5.0
HEAVY = [pytest.param(name, marks=pytest.mark.heavy) for name in ("trpo_pid", "ppo_lag", "pcpo")]
TRAINED = ["cpo", "trpo_lag", *HEAVY]


@functools.cache
def on_the_road(name):
    """Returns the metrics of the second half of a run with the settings of `defaults.toml`."""
    tuned = defaults(name, "native/TollRoad")
    algorithm = algorithms.get(name).make(native.toll_road(), tuned.config)
    assert tuned.config.cost_limit == LIMIT
    num_updates = tuned.total_steps // algorithm.steps_per_update
    _, metrics = updated(algorithm, num_updates)
    return {metric: np.asarray(x)[-num_updates // 2 :] for metric, x in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_finds_the_best_policy_within_the_limit(name):
    late = on_the_road(name)
    best = native.best_return(LIMIT)
    assert abs(late["episodic_return"].mean() - best) <= 0.02 * best
    assert late["episodic_cost"].mean() <= 1.02 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED[1:4])
def test_the_multiplier_converges_to_the_value_of_a_toll(name):
    np.testing.assert_allclose(on_the_road(name)["cost_multiplier"].mean(), 0.75, atol=0.03)
