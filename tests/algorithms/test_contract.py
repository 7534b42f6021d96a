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
TEAMS = [name for name in NAMES if isinstance(algorithms.get(name).Config(), Team)]


def make(name, env=None, **settings):
    module = algorithms.get(name)
    env = probes.fit_for(name, env or probes.action_from_observation(continuous=True))
    return module.make(env, module.Config(**(SMALL | OWN.get(name, {}) | settings)))


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_use_a_replaced_primitive(name):
    """Each replaced primitive returns a dtype or names of its own. The methods are only traced."""
    algorithm, seen = make(name), []
    marked = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    def act(*args):
        action, *rest = algorithm.act(*args)
        return marked(action), *rest

    def improve(state, trajectory):
        seen.append(trajectory)
        return state, "own input", {"own": jnp.ones(())}

    def fit(critic, fit_input):
        assert fit_input == "own input"
        return marked(critic), {"fitted": jnp.zeros(())}

    init = lambda key: algorithm.init(key)._replace(num_updates=jnp.zeros((), jnp.int8))
    other = algorithm._replace(init=init, act=act, improve=improve, fit=fit, num_steps=5)
    updated, metrics = jax.eval_shape(lambda key: other.update(other.init(key)), jax.random.key(0))
    (trajectory,) = seen
    assert updated.num_updates.dtype == jnp.int8
    assert trajectory.action.shape[0] == 5
    assert trajectory.action.dtype == jnp.bfloat16
    assert set(metrics) == {"own", "fitted"}
    assert {x.dtype for x in jax.tree.leaves(updated.critic)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_a_reward_signal_the_policy_stays_the_same(name):
    """All rewards are the same. Without this rule, the policy would follow errors of the critic.

    No update uses a key twice, and no number is NaN.
    """
    box = Box(-np.ones(1, np.float32), np.ones(1, np.float32))
    counter = lambda reward: probes.counter(time_limit=3, reward=reward)._replace(action=box)

    @jax.jit
    def run(rewards):
        def update(state, reward):
            state, metrics = make(name, env=counter(reward)).update(state)
            return state, (state.actor.policy_params, metrics)

        start = make(name, env=counter(0.0)).init(jax.random.key(0))
        return start.actor.policy_params, *jax.lax.scan(update, start, rewards)[1]

    with jax.debug_key_reuse(True), jax.debug_nans(True):
        for constant in (0.0, 1.5):
            start, params, metrics = run(jnp.array([constant, constant]))
            assert metrics["reward_signal"].tolist() == [False, False]
            chex.assert_trees_all_equal(jax.tree.map(lambda x: jnp.stack([x, x]), start), params)
        *_, metrics = run(jnp.array([0.0, -1.5]))  # a termination would escape this reward
    assert metrics["reward_signal"].tolist() == [False, True]
    assert all(np.isfinite(x).all() for x in metrics.values())


def assert_keeps_types(algorithm):
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    learnt, _ = jax.eval_shape(algorithm.update, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(learnt, state)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["trpo", *TEAMS])
def test_an_update_with_numbers_as_actions_keeps_its_types_if_float64_is_enabled(name):
    assert_keeps_types(make(name))


@pytest.mark.usefixtures("x64")
def test_other_solvers_and_explorations_keep_their_types_if_float64_is_enabled():
    settings = {"solver": "kronecker", "exploration": "colored", "gae_critic": "trust_region"}
    assert_keeps_types(make("trpo", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trpo", "qprop"])
def test_correlated_exploration_uses_no_key_twice_and_gives_no_nan(name):
    algorithm = make(name, exploration="ou")
    with jax.debug_key_reuse(True), jax.debug_nans(True):
        _, metrics = jax.jit(lambda key: algorithm.update(algorithm.init(key)))(jax.random.key(0))
    assert all(np.isfinite(x) for x in metrics.values())


def with_trees(name, **settings):
    """Returns an algorithm on trees of observations. If it can, it has masks and joint actions."""
    continuous = name == "qprop"
    joint = name not in TEAMS  # the actions of a team are no trees
    env = probes.noise(parts=True, masked=not continuous, joint=joint)
    if continuous:
        env = env._replace(action=env.action["push"])
    return make(name, env, **settings)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_trees_of_observations_masks_and_joint_actions_keep_types_if_float64_is_enabled(name):
    assert_keeps_types(with_trees(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # One algorithm for each kind of policy step.
        *((name, {}) for name in ("trpo", "ppo", "ua_trpo", "qprop", "trpo_vine", "cpo", "hatrpo")),
        ("trpo", {"solver": "kronecker"}),
    ],
)
def test_algorithms_learn_from_trees_of_observations_masks_and_joint_actions(name, settings):
    algorithm = with_trees(name, **settings)

    @jax.jit
    def run(key):
        state = algorithm.init(key)
        return state, *algorithm.update(state)

    with jax.debug_key_reuse(True), jax.debug_nans(True):
        state, learnt, metrics = run(jax.random.key(0))
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


@pytest.mark.slow
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
