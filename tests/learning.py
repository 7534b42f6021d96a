"""Trains any on-policy algorithm on the probes, and computes its policy gradient by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from scipy.special import softmax

from trpo_jax.advantages import generalized_advantages, standardize
from trpo_jax.agent import make_agent
from trpo_jax.networks import make_critic

SMALL = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (8,), "critic_minibatches": 4}
SEEN = np.array([[0.0], [1.0], [-1.0]], np.float32)  # observations of the probes
CHOICES_AND_NUMBERS = pytest.mark.parametrize(
    ("probe", "continuous"), [(probe, kind) for kind in (False, True) for probe in probes.PROBES]
)


def train(module, env, num_updates, compiler_options=None, **settings):
    """Returns a small algorithm, its state after `num_updates` updates, and the metrics of each."""
    algorithm = module.make(env, module.Config(**(SMALL | settings)))

    def run(key):
        scan = lambda s, _: algorithm.update(s)
        return jax.lax.scan(scan, algorithm.init(key), length=num_updates)

    return algorithm, *jax.jit(run, compiler_options=compiler_options)(jax.random.key(0))


@functools.cache
def train_on_probes(module, continuous=False, **settings):
    """Returns an algorithm, and the results of training on each of the five probes.

    They are its states, its metrics, and its values and distributions at the observations `SEEN`.
    One program trains on all probes at once. Discrete actions get 60 updates of 8 steps in each
    environment. Continuous actions get 80 updates of 32 steps.
    """
    num_updates, num_steps = (80, 32) if continuous else (60, 8)
    defaults = {"num_steps": num_steps, "critic_lr": 0.01, "normalize_observations": False}
    config = module.Config(**(SMALL | defaults | settings), gamma=0.7)

    @jax.jit
    @jax.vmap
    def run(index):
        algorithm = module.make(probes.probe_number(index, continuous), config)
        scan = lambda s, _: algorithm.update(s)
        state, metrics = jax.lax.scan(scan, algorithm.init(jax.random.key(0)), length=num_updates)
        critic = make_critic(probes.constant_value().observation, hidden_sizes=(8,))
        seen = jnp.asarray(SEEN)
        values = critic.apply(state.critic.params, seen)
        return state, metrics, values, algorithm.policy(state.actor, (), seen)[1]

    results = jax.device_get(run(np.arange(len(probes.PROBES))))
    return module.make(probes.constant_value(continuous), config), *results


def learnt(module, probe, continuous=False, **settings):
    """Returns an algorithm, and the results of training on one probe; see `train_on_probes`."""
    algorithm, *results = train_on_probes(module, continuous, **settings)
    index = list(probes.PROBES).index(probe)
    return algorithm, *jax.tree.map(lambda x: x[index], results)


def assert_learns(module, probe, continuous=False, tolerance=0.05, **settings):
    """Asserts that an algorithm learns the values or the actions of a probe."""
    _, _, _, values, distribution = learnt(module, probe, continuous, **settings)
    match probe:
        case "constant_value":
            np.testing.assert_allclose(values[0], 1.0, atol=tolerance)
        case "value_of_observation":
            np.testing.assert_allclose(values[1:], [1.0, -1.0], atol=tolerance)
        case "discounting":
            np.testing.assert_allclose(values[:2], [0.7, 1.0], atol=tolerance)
        case "action_choice" if continuous:
            np.testing.assert_allclose(distribution.mean[0], [0.5], atol=0.15)
            assert distribution.log_std[0].max() < -1.0
        case "action_from_observation" if continuous:
            np.testing.assert_allclose(distribution.mean[1:, 0], [0.5, -0.5], atol=0.15)
            assert distribution.log_std[1:].max() < -1.0
        case "action_choice":
            assert softmax(distribution.logits[0])[1] > 0.95
        case "action_from_observation":
            probs = softmax(distribution.logits[1:], axis=-1)
            assert min(probs[0, 1], probs[1, 0]) > 0.9


def policy_gradient(env, config, state, trajectory):
    """Returns grad mean(log pi(a|s) A), for a config without normalised observations."""
    assert not config.normalize_observations
    critic = make_critic(env.observation, hidden_sizes=config.hidden_sizes)
    advantages = generalized_advantages(
        trajectory.reward,
        critic.apply(state.critic.params, trajectory.observation),
        critic.apply(state.critic.params, trajectory.next_observation),
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    policy = make_agent(env, config).policy

    def weighted_log_prob(params):
        _, distribution = policy.step(params, (), trajectory.observation)
        log_probs = distribution.log_prob(trajectory.action)
        return jnp.mean(log_probs * standardize(advantages))

    return jax.grad(weighted_log_prob)(state.actor.policy_params)


def adam_steps(gradients, learning_rate, eps):
    """Returns the change of the parameters by the last of several steps of Adam (ascent)."""
    first = second = jax.tree.map(jnp.zeros_like, gradients[0])
    for gradient in gradients:
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
    count = len(gradients)

    def change(m, v):
        m, v = m / (1 - 0.9**count), v / (1 - 0.999**count)
        return learning_rate * m / (jnp.sqrt(v) + eps)

    return jax.tree.map(change, first, second)
