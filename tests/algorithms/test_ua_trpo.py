import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from learning import CHOICES_AND_NUMBERS, SMALL, assert_learns, train

from trpo_jax import envs
from trpo_jax.algorithms import trpo, ua_trpo
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("ua_trpo")  # one worker shares compiled programs


@pytest.mark.slow
@CHOICES_AND_NUMBERS
def test_probe(probe, continuous):
    assert_learns(ua_trpo, probe, continuous, max_kl=0.05)


@pytest.fixture(scope="module")
def cartpole():
    return envs.make("CartPole-v1")


def first_update(env, weights, **settings):
    """Returns the metrics of one update for each weight c, in one program."""

    def run(c):
        algorithm = ua_trpo.make(env, ua_trpo.Config(**(SMALL | settings), c=c))
        return algorithm.update(algorithm.init(jax.random.key(0)))[1]

    return jax.jit(lambda weights: jax.lax.map(run, weights))(jnp.asarray(weights))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.heavy)]
)
def test_with_c_of_zero_it_is_trpo_bit_for_bit(name):
    env = envs.make(name)
    # With the fusion emitters, which the tests switch off, XLA fuses both programs the same way.
    flag = "xla_cpu_use_fusion_emitters"
    options = {flag: True} if flag in os.environ.get("XLA_FLAGS", "") else None
    _, plain, plain_metrics = train(trpo, env, 5, options)
    _, aware, aware_metrics = train(ua_trpo, env, 5, options, c=0.0)
    chex.assert_trees_all_equal(plain.actor, aware.actor)
    chex.assert_trees_all_equal(plain.critic, aware.critic)
    chex.assert_trees_all_equal(
        plain_metrics, {name: aware_metrics[name] for name in plain_metrics}
    )


@pytest.mark.slow
def test_with_more_environments_it_approaches_trpo(cartpole):
    """The uncertainty lowers g.x by a share that falls with the number of environments.

    A hundred times as many environments must lower the share to less than a tenth.
    """

    def shortfall(num_envs):
        metrics = first_update(cartpole, [0.0, 10.0], num_envs=num_envs, num_steps=32, damping=0.01)
        plain, aware = metrics["gradient_dot_direction"]
        return float(1 - aware / plain)

    few, many = shortfall(16), shortfall(1600)
    assert few > 0.1
    assert 0 < many < 0.1 * few


@pytest.mark.slow
def test_uncertainty_shortens_the_step_and_the_reported_radius_is_its_kl(cartpole):
    metrics = first_update(cartpole, [0.0, 1.0, 10.0, 1000.0], num_envs=8)
    for name in ("effective_radius", "step_uncertainty"):
        assert jnp.all(jnp.diff(metrics[name]) < 0), name
    assert metrics["effective_radius"][-1] < 0.8 * metrics["effective_radius"][0]
    taken = metrics["step_fraction"] ** 2 * metrics["effective_radius"]
    np.testing.assert_allclose(metrics["kl"], taken, rtol=0.1)


@pytest.mark.slow
def test_the_noise_floor_predicts_the_gain_of_pure_noise(cartpole):
    """If no action changes the rewards, g.x is noise. The noise floor predicts its mean."""
    algorithm = ua_trpo.make(
        probes.constant_value(), ua_trpo.Config(**(SMALL | {"num_envs": 32}), c=0.0, damping=0.01)
    )
    state = algorithm.init(jax.random.key(0))
    state, trajectory = jax.jit(algorithm.collect)(state)
    learn = jax.jit(lambda s, t: algorithm.learn(s, t)[1])

    def one(key):
        rewards = jax.random.normal(key, trajectory.reward.shape)
        metrics = learn(state._replace(key=key), trajectory._replace(reward=rewards))
        return metrics["gradient_dot_direction"], metrics["noise_floor"]

    gains, floors = jax.vmap(one)(jax.random.split(jax.random.key(1), 300))
    np.testing.assert_allclose(floors.mean(), gains.mean(), rtol=0.25)


# --- wrong settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"c": -0.1}, "c = -0.1"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"num_envs": 1}, "num_envs = 1"),
        ({"fisher_subsample": 2}, "fisher_subsample = 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(cartpole, settings, named):
    with pytest.raises(ConfigurationError, match=named):
        ua_trpo.make(cartpole, ua_trpo.Config(**(SMALL | settings)))
