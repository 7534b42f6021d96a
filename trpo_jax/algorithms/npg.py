"""Natural policy gradient (Kakade 2001): the direction of TRPO, without a line search.

The step has one of two lengths. The normalised step ends where a quadratic model of the KL
divergence is `max_kl` (Rajeswaran et al. 2017, arXiv:1703.02660, equation 5, where delta is
2 max_kl). The other step is a fixed multiple of F^-1 g, as in Kakade's paper.
"""

from trpo_jax.advantages import init_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import decay, prepare
from trpo_jax.algorithms.natural_gradient import (
    advantage_strength,
    kl_radius,
    length_options,
    make_solve,
    require_solver,
)
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import full_step, natural_step, surrogate_gradient

Config = configs.NPG


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns natural policy gradient on an environment; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.npg.Config(step_size=0.05, normalized_step=False)
        >>> algorithm = trpo_jax.npg.make(env, config.replace(num_envs=4, num_steps=64))
        >>> state = algorithm.init(jax.random.key(0))
        >>> state, metrics = jax.jit(algorithm.update)(state)
        >>> float(metrics["step_fraction"])  # no line search shortens the step
        1.0
    """
    config, agent = prepare(env, config or Config(), agent)
    require_solver(env, config, agent)
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        spread, strength = advantage_strength(config, step_input)
        distribution_fn = lambda p: agent.distributions(p, batch)
        surrogate = reward_surrogate(config, batch)
        num_updates = step_input.num_updates
        step = natural_step(
            surrogate_gradient(params, distribution_fn, surrogate),
            make_solve(env, config, agent, key, params, batch),
            max_kl=kl_radius(env, config, num_updates, batch_size),
            **length_options(env, config, strength),
            step_size=None
            if config.normalized_step
            else config.step_size * decay(config, num_updates, batch_size),
        )
        params, info = full_step(params, distribution_fn, surrogate, step)
        return params, spread, info._asdict() | {"advantage_strength": strength}

    return on_policy.make(
        env, config, agent=agent, policy_step=policy_step, init_step_state=init_spread
    )
