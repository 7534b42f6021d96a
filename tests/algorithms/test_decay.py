import jax
import jax.numpy as jnp
import learning
import numpy as np
import optax
import probes
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax import algorithms
from trpo_jax.advantages import Spread
from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.base import update_keys
from trpo_jax.algorithms.natural_gradient import kl_radius
from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete

CONSTANT = {"normalize_observations": False}
CASES = {
    "trpo": ({"max_kl": 1e-4}, 0.5),
    "ua_trpo": ({"max_kl": 1e-4}, 0.5),
    "trpo_held_out": ({"max_kl": 1e-4, "alpha": 0.9}, 0.5),
    "trpo_ensemble": ({"max_kl": 1e-4}, 0.5),
    "qprop": ({"max_kl": 1e-4, "q_updates": 1}, 0.5),
    "trpo_vine": ({"max_kl": 1e-4, "num_states": 8}, 0.5),
    "npg": ({"max_kl": 1e-4}, 0.5),
    "npg with a fixed step": ({"normalized_step": False}, 1.0),
    "vpg": ({}, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_decay_steps_lets_the_length_of_the_step_fall_to_zero_and_stay_there(case, monkeypatch):
    """A radius is the square of a length. Every update gets the keys of the first update."""
    first = lambda state: update_keys(state._replace(num_updates=0))
    monkeypatch.setattr("trpo_jax.algorithms.on_policy.update_keys", first)
    settings, exponent = CASES[case]
    module = algorithms.get(case.split()[0])
    env = probes.action_from_observation(continuous=True)
    settings = learning.SMALL | CONSTANT | settings
    per_update = module.make(env, module.Config(**settings)).steps_per_update
    algorithm = module.make(env, module.Config(**settings, decay_steps=4 * per_update))
    collect = jax.jit(lambda key: algorithm.collect(algorithm.init(key)))
    state, trajectory = collect(jax.random.key(0))

    @jax.jit
    @jax.vmap
    def length(num_updates):
        later = state._replace(num_updates=num_updates)
        learnt, _ = algorithm.learn(later, trajectory)
        change = jax.tree.map(jnp.subtract, learnt.actor.policy_params, state.actor.policy_params)
        return optax.tree.norm(change)

    lengths = length(jnp.array([0, 1, 3, 4, 9]))
    assert lengths[0] > 1e-4
    expected = np.array([1, 0.75, 0.25, 0, 0]) ** exponent
    np.testing.assert_allclose(lengths / lengths[0], expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "max_kl" in CASES[case][0]])
def test_a_penalty_shortens_the_step_and_does_not_turn_it(case):
    settings, _ = CASES[case]
    module = algorithms.get(case)
    env = probes.action_from_observation(continuous=True)
    make = lambda x: module.make(
        env, module.Config(**learning.SMALL | CONSTANT | settings, kl_penalty=x)
    )
    algorithm = make(0.0)
    collect = jax.jit(lambda key: algorithm.collect(algorithm.init(key)))
    state, trajectory = collect(jax.random.key(0))

    @jax.jit
    @jax.vmap
    def change(kl_penalty):
        learnt, _ = make(kl_penalty).learn(state, trajectory)
        params = learnt.actor.policy_params, state.actor.policy_params
        return ravel_pytree(jax.tree.map(jnp.subtract, *params))[0]

    free, weak, strong, stronger = np.asarray(change(jnp.array([0.0, 1e-3, 1e3, 2e3])))
    np.testing.assert_array_equal(weak, free)
    np.testing.assert_allclose(strong, 2 * stronger, rtol=0.02, atol=1e-6)
    assert 0 < np.linalg.norm(strong) < 0.5 * np.linalg.norm(free)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "max_kl" in CASES[case][0]])
def test_a_penalty_with_a_memory_grows_as_the_advantages_spread_less(case):
    module = algorithms.get(case)
    env = probes.action_from_observation(continuous=True)
    settings = learning.SMALL | CONSTANT | CASES[case][0]
    make = lambda **numbers: module.make(env, module.Config(**settings | numbers))
    algorithm = make()
    collect = jax.jit(lambda key: algorithm.collect(algorithm.init(key)))
    state, trajectory = collect(jax.random.key(0))

    @jax.jit
    def change(kl_penalty, memory, earlier):
        spread = Spread(earlier, jnp.ones(()))
        own = state.step_state
        own = own._replace(spread=spread) if case == "qprop" else spread
        learner = make(kl_penalty=kl_penalty, penalty_memory=memory)
        learnt, metrics = learner.learn(state._replace(step_state=own), trajectory)
        params = learnt.actor.policy_params, state.actor.policy_params
        return ravel_pytree(jax.tree.map(jnp.subtract, *params))[0], metrics["advantage_strength"]

    found, strength = change(200.0, 0.5, 1e3)
    expected, alone = change(200.0 / strength, 0.0, 1e3)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert strength < 0.5
    assert alone == 1
    assert np.linalg.norm(found) < 0.9 * np.linalg.norm(change(200.0, 0.0, 1e3)[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "max_kl" in CASES[case][0]])
def test_a_step_per_dimension_is_the_step_for_the_sum_over_components(case):
    module = algorithms.get(case)
    box = Box(-np.ones(3, np.float32), np.ones(3, np.float32))
    env = probes.action_from_observation(continuous=True)._replace(action=box)
    settings = learning.SMALL | CONSTANT | CASES[case][0]
    per_dimension = {"max_kl": 1e-3, "kl_penalty": 6.0, "damping": 0.1}
    of_sum = {"max_kl": 3e-3, "kl_penalty": 2.0, "damping": 0.3}
    counted, summed = (
        module.make(env, module.Config(**settings | x, max_kl_per_dimension=flag))
        for x, flag in ((per_dimension, True), (of_sum, False))
    )

    @jax.jit
    def run(key):
        state, trajectory = summed.collect(summed.init(key))
        learnt = [x.learn(state, trajectory)[0] for x in (summed, counted)]
        flat = lambda x: ravel_pytree(x.actor.policy_params)[0]
        return [flat(x) - flat(state) for x in learnt]

    expected, found = run(jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.linalg.norm(expected) > 1e-3


def test_max_kl_per_dimension_multiplies_the_radius_by_the_number_of_components():
    box = Box(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    for action, components in ((Discrete(5), 1), (MultiDiscrete((2, 3, 4)), 3), (box, 6)):
        env = probes.constant_value()._replace(action=action)
        for counted, expected in ((False, 0.01), (True, 0.01 * components)):
            config = trpo.Config(max_kl=0.01, max_kl_per_dimension=counted, decay_steps=400)
            np.testing.assert_allclose(kl_radius(env, config, jnp.array(0), 100), expected)
            np.testing.assert_allclose(kl_radius(env, config, jnp.array(3), 100), expected / 4)
