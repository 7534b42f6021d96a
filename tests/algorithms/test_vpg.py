import chex
import jax
import jax.numpy as jnp
import learning
import probes
import pytest

from trpo_jax.algorithms import vpg

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vpg")]


@learning.CHOICES_AND_NUMBERS
def test_probe(probe, continuous):
    learning.assert_learns(vpg, probe, continuous, policy_lr=0.03)


def test_updates_are_steps_of_adam_along_the_policy_gradient():
    env = probes.action_from_observation()
    config = vpg.Config(**(learning.SMALL | {"normalize_observations": False}), policy_lr=0.03)
    algorithm = vpg.make(env, config)
    collect, learn = jax.jit(algorithm.collect), jax.jit(algorithm.learn)
    state, gradients = algorithm.init(jax.random.key(0)), []
    for _ in range(2):
        state, trajectory = collect(state)
        gradients.append(learning.policy_gradient(env, config, state, trajectory))
        new_state, metrics = learn(state, trajectory)
        change = jax.tree.map(
            jnp.subtract, new_state.actor.policy_params, state.actor.policy_params
        )
        expected = learning.adam_steps(gradients, learning_rate=0.03, eps=1e-8)
        chex.assert_trees_all_close(change, expected, rtol=1e-3, atol=1e-5)
        assert metrics["surrogate_gain"] > 0
        assert metrics["kl"] > 0
        state = new_state
