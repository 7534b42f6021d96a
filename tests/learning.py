"""What any on-policy algorithm has to learn from the probes, and its batch computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import probes

from trpo_jax.advantages import generalized_advantages, standardize
from trpo_jax.algorithms import on_policy
from trpo_jax.networks import make_critic

SMALL = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (8,), "critic_minibatches": 4}
LEARN = {"num_steps": 8, "critic_lr": 0.01, "normalize_observations": False}
VALUE_PROBES = ("constant_value", "value_of_observation", "discounting")
PROBES = (*VALUE_PROBES, "action_choice", "action_from_observation", "continuous_action")
HARDEST = ("discounting", "action_from_observation", "continuous_action")  # and what they imply


def train(module, env, num_updates, **settings):
    """Returns a small algorithm, its state after that many updates, and their metrics."""
    algorithm = module.make(env, module.Config(**(SMALL | settings)))

    @jax.jit
    def run(key):
        scan = lambda s, _: algorithm.update(s)
        return jax.lax.scan(scan, algorithm.init(key), length=num_updates)

    return algorithm, *run(jax.random.key(0))


def assert_learns(module, probe, tolerance=0.05, **settings):
    """Trains on a probe of `PROBES` and asserts that what there is to learn was learnt."""
    settings = LEARN | settings

    def values(env, num_updates, observations, **more):
        _, state, _ = train(module, env, num_updates, **(settings | more))
        critic = make_critic(env.observation, hidden_sizes=SMALL["hidden_sizes"])
        return critic.apply(state.critic.params, jnp.array(observations)[:, None])

    def policy(env, num_updates, observations, **more):
        algorithm, state, _ = train(module, env, num_updates, **(settings | more))
        return algorithm.policy(state.actor, jnp.array(observations)[:, None])

    match probe:
        case "constant_value":
            learnt = values(probes.constant_value(), 30, [0.0])
            np.testing.assert_allclose(learnt, [1.0], atol=tolerance)
        case "value_of_observation":
            learnt = values(probes.value_of_observation(), 30, [1.0, -1.0])
            np.testing.assert_allclose(learnt, [1.0, -1.0], atol=tolerance)
        case "discounting":
            learnt = values(probes.discounting(), 60, [0.0, 1.0], gamma=0.7)
            np.testing.assert_allclose(learnt, [0.7, 1.0], atol=tolerance)
        case "action_choice":
            probs = jax.nn.softmax(policy(probes.action_choice(), 30, [0.0]).logits)
            assert probs[0, 1] > 0.95
        case "action_from_observation":
            env = probes.action_from_observation()
            probs = jax.nn.softmax(policy(env, 40, [1.0, -1.0]).logits)
            assert min(probs[0, 1], probs[1, 0]) > 0.9
        case "continuous_action":
            env = probes.action_from_observation(continuous=True)
            distribution = policy(env, 80, [1.0, -1.0], num_steps=32)
            np.testing.assert_allclose(distribution.mode()[:, 0], [0.5, -0.5], atol=0.15)
            assert distribution.log_std.max() < -1.0


def policy_gradient(env, config, state, trajectory):
    """Returns grad mean(log pi(a|s) A), for a config that takes observations as they are."""
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
    policy = on_policy.policy_network(env, config)

    def weighted_log_prob(params):
        log_probs = policy.apply(params, trajectory.observation).log_prob(trajectory.action)
        return jnp.mean(log_probs * standardize(advantages))

    return jax.grad(weighted_log_prob)(state.actor.policy_params)


def adam_steps(gradients, learning_rate, eps):
    """Returns the change of the parameters by the latest of several ascents by Adam."""
    first = second = jax.tree.map(jnp.zeros_like, gradients[0])
    for gradient in gradients:
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
    count = len(gradients)

    def change(m, v):
        m, v = m / (1 - 0.9**count), v / (1 - 0.999**count)
        return learning_rate * m / (jnp.sqrt(v) + eps)

    return jax.tree.map(change, first, second)
