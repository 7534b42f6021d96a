import chex
import jax
import jax.numpy as jnp
import learning
import numpy as np
import probes
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax import envs
from trpo_jax.algorithms import npg, trpo
from trpo_jax.algorithms.base import Actor
from trpo_jax.fisher import dense_fisher

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("npg")]


@learning.CHOICES_AND_NUMBERS
def test_probe(probe, continuous):
    learning.assert_learns(npg, probe, continuous, max_kl=0.05)


def test_npg_equals_trpo_if_trpo_takes_the_full_step_and_never_shortens_it():
    """The second radius is so large that the quadratic model is wrong."""
    env = envs.make("Pendulum-v1")
    settings = learning.SMALL | {"damped_scaling": False, "damping": 1e-3}
    algorithm = npg.make(env, npg.Config(**settings))
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(2)))

    def learner(module):
        make = lambda max_kl: module.make(env, module.Config(**settings, max_kl=max_kl))
        return jax.jit(lambda max_kl: make(max_kl).learn(state, trajectory))

    learners = learner(npg), learner(trpo)
    for max_kl, fits in ((0.01, True), (2.0, False)):
        (ours, metrics), (theirs, their_metrics) = (learn(max_kl) for learn in learners)
        assert metrics["step_fraction"] == 1
        assert (their_metrics["step_fraction"] == 1) == fits
        assert their_metrics["kl"] <= max_kl
        if fits:
            chex.assert_trees_all_close(
                ours.actor.policy_params, theirs.actor.policy_params, rtol=1e-6, atol=1e-7
            )
            chex.assert_trees_all_close(metrics, their_metrics, rtol=1e-4, atol=1e-6)
        else:
            assert metrics["kl"] > max_kl


def test_a_step_of_fixed_size_is_a_multiple_of_the_natural_gradient():
    env = probes.action_from_observation()
    config = npg.Config(
        **(learning.SMALL | {"normalize_observations": False}),
        normalized_step=False,
        step_size=0.3,
        damping=0.01,
        cg_iters=50,
    )
    algorithm = npg.make(env, config)
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(1)))
    learnt, metrics = jax.jit(algorithm.learn)(state, trajectory)
    old, _ = ravel_pytree(state.actor.policy_params)
    new, _ = ravel_pytree(learnt.actor.policy_params)
    gradient, _ = ravel_pytree(learning.policy_gradient(env, config, state, trajectory))
    observations = trajectory.observation
    statistics = state.actor.observation_statistics
    fisher = dense_fisher(
        lambda p: algorithm.policy(Actor(p, statistics), (), observations)[1],
        state.actor.policy_params,
    )
    natural = jnp.linalg.solve(fisher + 0.01 * jnp.eye(len(fisher)), gradient)
    np.testing.assert_allclose(new - old, 0.3 * natural, rtol=1e-3, atol=1e-5)
    assert jnp.abs(new - old).max() > 0.01
    np.testing.assert_allclose(metrics["surrogate_gain_predicted"], 0.3 * gradient @ natural, 1e-3)
