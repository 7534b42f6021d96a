import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from learning import CHOICES_AND_NUMBERS, SMALL, assert_learns, train

from trpo_jax import envs
from trpo_jax.algorithms import on_policy, trpo, ua_trpo
from trpo_jax.algorithms.critic_ensemble import make_ensemble, member_values, uncertainty_weights
from trpo_jax.errors import ConfigurationError

pytestmark = pytest.mark.xdist_group("ua_trpo")  # one worker, so that what is compiled is shared


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


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_without_weight_on_uncertainty_it_is_trpo_bit_for_bit(name):
    env = envs.make(name)
    # The emitters that the tests do without fuse both programs alike.
    flag = "xla_cpu_use_fusion_emitters"
    options = {flag: True} if flag in os.environ.get("XLA_FLAGS", "") else None
    _, plain, plain_metrics = train(trpo, env, 5, options)
    _, aware, aware_metrics = train(ua_trpo, env, 5, options, c=0.0)
    chex.assert_trees_all_equal(plain.actor, aware.actor)
    chex.assert_trees_all_equal(plain.critic, aware.critic)
    chex.assert_trees_all_equal(
        plain_metrics, {name: aware_metrics[name] for name in plain_metrics}
    )


def test_with_more_environments_it_tends_to_trpo(cartpole):
    """How much shorter the gradient is in the metric with the uncertainty than in the one without.

    Ten times the environments, a tenth of the squared radius.
    """

    def shortfall(num_envs):
        metrics = first_update(cartpole, [0.0, 10.0], num_envs=num_envs, num_steps=8, damping=0.01)
        plain, aware = metrics["gradient_dot_direction"]
        return float(1 - aware / plain)

    few, many = shortfall(16), shortfall(1600)
    assert few > 0.1
    assert 0 < many < 0.1 * few


def test_uncertainty_shortens_the_step_and_the_reported_radius_is_its_kl(cartpole):
    metrics = first_update(cartpole, [0.0, 1.0, 10.0, 1000.0], num_envs=8)
    for name in ("effective_radius", "step_uncertainty"):
        assert jnp.all(jnp.diff(metrics[name]) < 0), name
    assert metrics["effective_radius"][-1] < 0.8 * metrics["effective_radius"][0]
    taken = metrics["step_fraction"] ** 2 * metrics["effective_radius"]
    np.testing.assert_allclose(metrics["kl"], taken, rtol=0.1)


def test_pure_noise_gains_what_the_noise_floor_says(cartpole):
    """Rewards that no action changes: g.x is noise, and the floor predicts it on average."""
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


# --- acceptance by confidence on held-out environments


def test_noise_is_rarely_accepted_and_a_signal_is():
    settings = {"num_envs": 16, "num_steps": 8, "acceptance": "confidence"}
    noisy = probes.probe(
        "noise", lambda s, t: jnp.zeros(1), lambda s, t, a: s
    )  # the hidden sign, whatever the action
    _, _, on_noise = train(ua_trpo, noisy, 60, **settings)
    _, _, on_signal = train(ua_trpo, probes.action_choice(), 6, max_kl=0.05, **settings)
    assert on_noise["step_rejected"].mean() > 0.6
    assert on_signal["step_rejected"].mean() < 0.5


def test_the_step_comes_from_one_half_and_the_test_from_the_other():
    """Advantages of the held-out half decide whether, those of the fitted half decide where."""
    env = probes.action_choice()
    config = ua_trpo.Config(**(SMALL | {"num_envs": 8}), acceptance="confidence", gae_lambda=0.0)
    algorithm = ua_trpo.make(env, config)
    state = algorithm.init(jax.random.key(0))
    state, trajectory = jax.jit(algorithm.collect)(state)
    state = state._replace(critic=jax.tree.map(jnp.zeros_like, state.critic))
    learn = jax.jit(algorithm.learn)
    right = 2.0 * trajectory.action - 1
    fitted = jnp.arange(8) < 4
    outcome = {}
    for first, second in [(1, 1), (1, -1), (-1, -1)]:
        rewards = jnp.where(fitted, first * right, second * right)
        new_state, metrics = learn(state, trajectory._replace(reward=rewards))
        logits = algorithm.policy(new_state.actor, jnp.zeros((1, 1))).logits[0]
        outcome[first, second] = float(logits[1] - logits[0]), bool(metrics["step_rejected"])
    before = algorithm.policy(state.actor, jnp.zeros((1, 1))).logits[0]
    assert outcome[1, 1][0] > before[1] - before[0] > outcome[-1, -1][0]
    assert [rejected for _, rejected in outcome.values()] == [False, True, False]


# --- critic ensemble


def test_members_differ_and_the_value_is_their_mean(cartpole):
    config = ua_trpo.Config(**SMALL, critic_ensemble=3)
    member = on_policy.make_value_function(cartpole, config)
    ensemble = make_ensemble(member, 3)
    params = ensemble.init(jax.random.key(0)).params
    observations = jax.random.normal(jax.random.key(1), (5, 4))
    values = member_values(member, params, observations)
    assert values.shape == (3, 5)
    assert jnp.all(jnp.std(values, axis=0) > 0)
    np.testing.assert_allclose(
        ensemble.values(params, observations), values.mean(axis=0), rtol=1e-6
    )


def test_members_learn_and_come_to_agree_where_they_have_data():
    settings = {"num_steps": 8, "critic_lr": 0.01, "normalize_observations": False}
    _, _, metrics = train(ua_trpo, probes.value_of_observation(), 30, critic_ensemble=3, **settings)
    assert metrics["value_std"][-1] < 0.1 * metrics["value_std"][0]
    assert metrics["critic_loss"][-1] < 0.01
    assert abs(metrics["value_mean"][-1]) < 1


def test_weights_have_mean_one_and_follow_the_disagreement():
    spread = jnp.array([[0.1, 1.0, 1.0], [10.0, 2.0, 0.5]])
    weights = uncertainty_weights(spread, 1.0)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights / weights[0, 1], [[0.5, 1, 1], [2, 2, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(uncertainty_weights(spread, 0.0), 1, rtol=1e-6)
    np.testing.assert_allclose(uncertainty_weights(jnp.zeros((2, 2)), 1.0), 1, rtol=1e-6)


def test_weights_bound_the_weighted_divergence(cartpole):
    """Few steps fit the weighted bound and not the plain one, or the other way round."""

    def run(exponent):
        config = ua_trpo.Config(**SMALL, critic_ensemble=2, uncertainty_exponent=exponent)
        algorithm = ua_trpo.make(cartpole, config)
        return algorithm.update(algorithm.init(jax.random.key(0)))[1]

    metrics = jax.jit(lambda exponents: jax.lax.map(run, exponents))(jnp.array([0.0, 2.0]))
    plain, weighted = metrics["kl"]
    assert not np.allclose(plain, weighted, rtol=1e-3)
    assert weighted <= 0.01 * 2.5


# --- bad input


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"c": -0.1}, "c = -0.1"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"critic_ensemble": 1}, "critic_ensemble = 1"),
        ({"uncertainty_exponent": 1.0}, "uncertainty_exponent = 1.0"),
        ({"num_envs": 1}, "num_envs = 1"),
        ({"num_envs": 3, "num_steps": 16, "acceptance": "confidence"}, "num_envs = 3"),
        ({"fisher_subsample": 2}, "fisher_subsample = 2"),
        ({"acceptance": "hope"}, "acceptance = 'hope'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(cartpole, settings, named):
    with pytest.raises(ConfigurationError, match=named):
        ua_trpo.make(cartpole, ua_trpo.Config(**(SMALL | settings)))
