"""Vanilla policy gradient: REINFORCE (Williams 1992) with a critic and Adam.

Each update takes one step of Adam along the plain policy gradient. TRPO uses the same gradient, but
preconditions it with the Fisher matrix.
"""

import optax

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import decay, prepare
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import measure_change, surrogate_gradient

Config = configs.VPG


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns vanilla policy gradient on an environment; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.vpg.Config(policy_lr=0.02, num_envs=4, num_steps=64)
        >>> algorithm = trpo_jax.vpg.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> int(optax.tree.get(state.step_state, "count"))  # steps of Adam
        1
    """
    config, agent = prepare(env, config or Config(), agent)
    batch_size = config.num_envs * config.num_steps
    optimizer = optax.adam(config.policy_lr)

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        distribution_fn = lambda p: agent.distributions(p, batch)
        surrogate = reward_surrogate(config, batch)
        gradient = surrogate_gradient(params, distribution_fn, surrogate)
        updates, moments = optimizer.update(optax.tree.scale(-1.0, gradient), step_input.step_state)
        share = decay(config, step_input.num_updates, batch_size)
        new_params = optax.apply_updates(params, optax.tree.scale(share, updates))
        change = measure_change(distribution_fn, surrogate, params, new_params)
        return new_params, moments, change._asdict()

    return on_policy.make(
        env,
        config,
        agent=agent,
        policy_step=policy_step,
        init_step_state=lambda key, params: optimizer.init(params),
    )
