import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from learning import SMALL, train

from trpo_jax import envs
from trpo_jax.agent import make_agent
from trpo_jax.algorithms import trpo_ensemble
from trpo_jax.algorithms.trpo_ensemble import make_ensemble, member_values, uncertainty_weights
from trpo_jax.critics import Sequences
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import observe

pytestmark = pytest.mark.xdist_group("trpo_ensemble")


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("CartPole-v1")


def test_members_differ_and_the_value_is_their_mean(cartpole):
    member = make_agent(cartpole, trpo_ensemble.Config(**SMALL)).critic
    ensemble = make_ensemble(member, 3)
    params = ensemble.init(jax.random.key(0)).params
    observations = jax.random.normal(jax.random.key(1), (5, 2, 4))
    sequences = Sequences((), observations, jnp.zeros((5, 2), bool))
    values, _ = member_values(member, params, sequences)
    assert values.shape == (3, 5, 2)
    assert jnp.all(jnp.std(values, axis=0) > 0)
    means, _ = ensemble.values(params, sequences)
    np.testing.assert_allclose(means, values.mean(axis=0), rtol=1e-6)


@pytest.mark.slow
def test_members_learn_and_agree_at_states_with_data():
    settings = {"num_steps": 8, "critic_lr": 0.01, "normalize_observations": False}
    _, _, metrics = train(
        trpo_ensemble, probes.value_of_observation(), 30, num_critics=3, **settings
    )
    assert metrics["value_std"][-1] < 0.1 * metrics["value_std"][0]
    assert metrics["critic_loss"][-1] < 0.01
    assert abs(metrics["value_mean"][-1]) < 1


def test_weights_have_mean_one_and_grow_with_the_disagreement():
    spread = jnp.array([[0.1, 1.0, 1.0], [10.0, 2.0, 0.5]])
    weights = uncertainty_weights(spread, 1.0)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights / weights[0, 1], [[0.5, 1, 1], [2, 2, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(uncertainty_weights(spread, 0.0), 1, rtol=1e-6)
    np.testing.assert_allclose(uncertainty_weights(jnp.zeros((2, 2)), 1.0), 1, rtol=1e-6)


@pytest.mark.slow
def test_max_kl_bounds_the_weighted_kl_and_not_the_plain_kl(cartpole):
    config = trpo_ensemble.Config(
        **(SMALL | {"num_steps": 64}), num_critics=2, uncertainty_exponent=4.0, damping=1e-3
    )
    algorithm = trpo_ensemble.make(cartpole, config)
    state, trajectory = jax.jit(algorithm.collect)(algorithm.init(jax.random.key(0)))
    learnt, _ = jax.jit(algorithm.learn)(state, trajectory)
    frozen = state.actor.observation_statistics
    seen = observe(cartpole.observation, frozen, trajectory.observation, normalized=True)
    sequences = Sequences((), seen, trajectory.first)
    member = make_agent(cartpole, config).critic
    spread = jnp.std(member_values(member, state.critic.params, sequences)[0], axis=0)
    weights = uncertainty_weights(spread, 4.0)
    actors = [x.actor._replace(observation_statistics=frozen) for x in (state, learnt)]
    old, new = (algorithm.policy(x, (), trajectory.observation)[1] for x in actors)
    kl = old.kl(new)
    assert 0.5 * config.max_kl < jnp.mean(weights * kl) <= config.max_kl * 1.0001
    assert abs(jnp.mean(kl) / jnp.mean(weights * kl) - 1) > 0.02


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"num_critics": 1}, "num_critics = 1"), ({"fisher_subsample": 2}, "fisher_subsample = 2")],
)
def test_settings_that_cannot_work_are_refused(cartpole, settings, named):
    with pytest.raises(ConfigurationError, match=named):
        trpo_ensemble.make(cartpole, trpo_ensemble.Config(**(SMALL | settings)))
