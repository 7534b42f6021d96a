"""Trust-region policy optimisation (Schulman et al. 2015, arXiv:1502.05477), single path.

Each update maximises the surrogate under a bound on the mean KL divergence. The step is a natural
gradient with a line search; see `trpo_jax.trust_region`.
"""

from collections.abc import Callable
from typing import Any

from trpo_jax.advantages import init_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import (
    advantage_strength,
    kl_radius,
    make_solve,
    require_solver,
    step_options,
)
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import Solve, trust_region_step

Config = configs.TRPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO on an environment.

    `make` may be called inside a traced function. So `jax.vmap` over a config whose real numbers
    are arrays runs one program for all values.

    Args:
        env: the environment, from `trpo_jax.make_env` or written by the user.
        config: hyperparameters; the defaults if None.
        agent: policy, critic and exploration; made from the config if None.

    Raises:
        ConfigurationError: if the value of a field cannot work.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.trpo.Config(max_kl=0.02, num_envs=4, num_steps=64)
        >>> algorithm = trpo_jax.trpo.make(env, config)
        >>> state = algorithm.init(jax.random.key(0))
        >>> state, metrics = jax.jit(algorithm.update)(state)
        >>> bool(metrics["kl"] <= 0.02), bool(metrics["surrogate_gain"] > 0)
        (True, True)
    """
    config, agent = prepare(env, config or Config(), agent)
    return on_policy.make(env, config, agent=agent, **step_arguments(env, config, agent))


def step_arguments(
    env: Environment,
    config: configs.TrustRegion,
    agent: Agent,
    make_solve: Callable[..., Solve] = make_solve,
) -> dict[str, Any]:
    """Returns the arguments of `on_policy.make` for the step of TRPO.

    Args:
        env: the environment.
        config: a validated config.
        agent: the agent.
        make_solve: makes the solver of the linear system; takes the arguments of
            `natural_gradient.make_solve`.

    Raises:
        ConfigurationError: if the solver of the config cannot work with the agent's policy.
    """
    require_solver(env, config, agent)
    batch_size = config.num_envs * config.num_steps

    def step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        spread, strength = advantage_strength(config, step_input)
        params, info = trust_region_step(
            params,
            lambda p: agent.distributions(p, batch),
            reward_surrogate(config, batch),
            make_solve(env, config, agent, key, params, batch),
            max_kl=kl_radius(env, config, step_input.num_updates, batch_size),
            **step_options(env, config, strength),
        )
        return params, spread, info._asdict() | {"advantage_strength": strength}

    return {"policy_step": step, "init_step_state": init_spread}
