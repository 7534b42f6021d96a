"""Rules for every algorithm: replaceable primitives, fresh keys, no NaN, float32 or float64."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from trpo_jax import algorithms
from trpo_jax.algorithms.configs import Team
from trpo_jax.envs.specs import Box
from trpo_jax.errors import ConfigurationError
from trpo_jax.line_search import backtracking
from trpo_jax.running.loop import compile_program, run_chunks
from trpo_jax.running.program import as_metrics

SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,), "critic_minibatches": 2}
SMALL |= {"critic_epochs": 1}
OWN = {
    "qprop": {"q_updates": 1, "q_minibatch": 4},
    "ppo": {"policy_epochs": 1, "policy_minibatches": 2},
    "ppo_lag": {"policy_epochs": 1, "policy_minibatches": 2},
    "trpo_vine": {"num_states": 4, "branch_steps": 2},
    "happo": {"policy_epochs": 1, "policy_minibatches": 2},
    "mappo": {"policy_epochs": 1, "policy_minibatches": 2},
}
NAMES = list(algorithms.ALGORITHMS)


def make(name, env=None, **settings):
    module = algorithms.get(name)
    env = probes.fit_for(name, env or probes.action_from_observation(continuous=True))
    return module.make(env, module.Config(**(SMALL | OWN.get(name, {}) | settings)))


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_use_a_replaced_primitive(name):
    algorithm = make(name)
    changed = {
        "init": lambda key: algorithm.init(key)._replace(num_updates=jnp.array(7)),
        "act": lambda *args: (algorithm.act(*args)[0] + 100, *algorithm.act(*args)[1:]),
        "improve": lambda *args: (*algorithm.improve(*args)[:2], {"own": jnp.ones(())}),
        "fit": lambda critic, fit_input: (critic, {"fitted": jnp.zeros(())}),
        "num_steps": 5,
    }
    other = algorithm._replace(**changed)

    @jax.jit
    def run(key):
        state = other.init(key)
        _, trajectory = other.collect(state)
        return state, trajectory, *other.update(state)

    state, trajectory, updated, metrics = run(jax.random.key(0))
    assert state.num_updates == 7
    assert trajectory.action.shape[0] == 5
    assert trajectory.action.min() > 50
    assert set(metrics) == {"own", "fitted"}
    for a, b in zip(*map(jax.tree.leaves, (updated.critic, state.critic)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_no_key_is_used_twice_and_no_number_is_nan(name):
    correlated = hasattr(algorithms.get(name).Config(), "exploration")
    algorithm = make(name, **({"exploration": "ou"} if correlated else {}))
    with jax.debug_key_reuse(True), jax.debug_nans(True):
        state = jax.jit(algorithm.init)(jax.random.key(0))
        _, metrics = jax.jit(algorithm.update)(state)
    assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_without_a_reward_signal_the_policy_stays_the_same(name):
    """All rewards are the same. Without this rule, the policy would follow errors of the critic."""
    box = Box(-np.ones(1, np.float32), np.ones(1, np.float32))
    counter = lambda reward: probes.counter(time_limit=3, reward=reward)._replace(action=box)

    @jax.jit
    def run(rewards):
        update = lambda reward, state: make(name, env=counter(reward)).update(state)
        states = [make(name, env=counter(0.0)).init(jax.random.key(0))]
        metrics = []
        for reward in rewards:
            state, metric = update(reward, states[-1])
            states.append(state)
            metrics.append(metric["reward_signal"])
        return [state.actor.policy_params for state in states], metrics

    for constant in (0.0, 1.5):
        (start, *params), metrics = run(jnp.array([constant, constant]))
        assert [bool(x) for x in metrics] == [False, False]
        chex.assert_trees_all_equal(start, *params)
    _, metrics = run(jnp.array([0.0, -1.5]))  # a termination would escape this reward
    assert [bool(x) for x in metrics] == [False, True]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_an_update_keeps_its_types_if_float64_is_enabled(name):
    algorithm = make(name)
    state = algorithm.init(jax.random.key(0))
    learnt, _ = jax.jit(algorithm.update)(state)
    types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    assert types(learnt) == types(state)


@pytest.mark.usefixtures("x64")
def test_other_solvers_and_explorations_keep_their_types_if_float64_is_enabled():
    algorithm = make("trpo", solver="kronecker", exploration="colored", gae_critic="trust_region")
    state = algorithm.init(jax.random.key(0))
    learnt, _ = jax.jit(algorithm.update)(state)
    types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    assert types(learnt) == types(state)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(
            (name, {}) for name in NAMES if name not in ("trpo", "npg", "vpg")
        ),  # they are much like trpo
        ("trpo", {"solver": "kronecker"}),
    ],
)
def test_algorithms_learn_from_trees_of_observations_masks_and_joint_actions(name, settings):
    continuous = name == "qprop"
    team = isinstance(algorithms.get(name).Config(), Team)  # the actions of a team are no trees
    env = probes.noise(parts=True, masked=not continuous, joint=not team)
    if continuous:
        env = env._replace(action=env.action["push"])
    algorithm = make(name, env, **settings)
    with jax.debug_nans(True):
        state = jax.jit(algorithm.init)(jax.random.key(0))
        learnt, metrics = jax.jit(algorithm.update)(state)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["kl"] > 0 or metrics["step_rejected"]
    before, after = (getattr(x.critic, "own", x.critic).params for x in (state, learnt))
    moved = jax.tree.map(jnp.subtract, after, before)
    assert all(x.any() for x in jax.tree.leaves(moved))


def test_the_line_search_works_in_bfloat16():
    params, step = jnp.zeros(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    evaluate = lambda x: (x[0].astype(jnp.float32), x[0].astype(jnp.float32))
    search = jax.jit(lambda shrink: backtracking(evaluate, params, step, 0.5, shrink, 10))
    result = search(jnp.float32(0.8))
    assert result.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.fraction, 0.8**4, rtol=1e-6)


@pytest.mark.parametrize(
    "own", [lambda m: {}, lambda m: {"loss": 1.5, "count": 3}], ids=["none", "numbers"]
)
def test_metrics_may_be_empty_or_plain_numbers(own):
    algorithm = make("vpg")
    quiet = algorithm._replace(
        improve=lambda *args: (*algorithm.improve(*args)[:2], own({})),
        fit=lambda *args: (algorithm.fit(*args)[0], {}),
    )
    chunks = list(run_chunks(compile_program(quiet, (0, 1), 2), 3))
    assert [(x.first_update, x.last_update) for x in chunks] == [(1, 2), (3, 3)]
    for name, value in own({}).items():
        np.testing.assert_array_equal(chunks[0].metrics[name], np.full((2, 2), value))


@pytest.mark.parametrize("metrics", [{"a": jnp.zeros(3)}, {"a": {"b": 1.0}}, {3: 1.0}])
def test_metrics_that_are_not_scalars_are_refused(metrics):
    with pytest.raises(ConfigurationError, match="flat dictionary of scalars"):
        inspect.unwrap(as_metrics)(metrics)  # without the type checks of the tests
