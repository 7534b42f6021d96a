"""The empirical Fisher matrix of the comparison with the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from benchmarks import empirical_fisher
from jax.flatten_util import ravel_pytree
from learning import SMALL

from trpo_jax.algorithms.on_policy import estimate


@pytest.mark.usefixtures("x64")
def test_the_product_is_the_mean_of_the_outer_products_of_the_scores():
    env = probes.action_from_observation(continuous=True)
    config = empirical_fisher.Config(**SMALL)
    algorithm = empirical_fisher.make(env, config)
    agent = algorithm.agent

    @jax.jit
    def run(key):
        state, trajectory = algorithm.collect(algorithm.init(key))
        batch = estimate(algorithm.env, config, agent, state, trajectory)[1].batch
        flat, unravel = ravel_pytree(state.actor.policy_params)
        log_probs = lambda x: agent.distributions(unravel(x), batch).log_prob(batch.actions).ravel()
        vector = jax.random.normal(key, flat.shape, flat.dtype)
        product = empirical_fisher.empirical_product(agent, unravel(flat), batch)
        return jax.jacobian(log_probs)(flat), vector, ravel_pytree(product(unravel(vector)))[0]

    scores, vector, found = map(np.asarray, run(jax.random.key(0)))
    np.testing.assert_allclose(
        found, scores.T @ (scores @ vector) / len(scores), rtol=1e-4, atol=1e-6
    )


def test_an_update_stays_in_the_trust_region():
    env = probes.action_from_observation(continuous=True)
    algorithm = empirical_fisher.make(env, empirical_fisher.Config(**SMALL, max_kl=0.02))
    _, metrics = jax.jit(lambda key: algorithm.update(algorithm.init(key)))(jax.random.key(0))
    assert 0 < metrics["kl"] <= 0.02
    assert jnp.isfinite(metrics["surrogate_gain"])
