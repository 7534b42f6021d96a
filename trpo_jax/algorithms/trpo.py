"""Trust-region policy optimisation (Schulman et al. 2015, arXiv:1502.05477), single path."""

from typing import Any, no_type_check

from flax import struct

from trpo_jax.advantages import standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import Exploration, OnPolicy, TrustRegion, prepare
from trpo_jax.algorithms.natural_gradient import (
    kl_radius,
    make_solve,
    require_solver,
    step_options,
)
from trpo_jax.envs.base import Environment
from trpo_jax.trust_region import importance_sampled_surrogate, trust_region_step


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(TrustRegion, Exploration, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO on an environment.

    `make` may be called inside a traced function: `jax.vmap` over configs whose real-valued fields
    are arrays runs one program for all of them.

    Args:
        env: the environment, from `trpo_jax.envs.make` or of the caller's own.
        config: hyperparameters; the defaults if None.
        agent: what acts and what judges; what the config describes if None.

    Raises:
        ConfigurationError: if a field's value cannot work.

    Example:
        >>> algorithm = make(envs.make("CartPole-v1"), Config(max_kl=0.02))
        >>> state = algorithm.init(jax.random.key(0))
        >>> state, metrics = jax.jit(algorithm.update)(state)
    """
    config, agent = prepare(env, config or Config(), agent)
    return on_policy.make(env, config, agent=agent, **step_arguments(env, config, agent))


def step_arguments(env: Environment, config: TrustRegion, agent: Agent) -> dict[str, Any]:
    """Returns the arguments of `on_policy.make` for TRPO's step.

    Raises:
        ConfigurationError: if the solver of the config cannot serve the agent's policy.
    """
    require_solver(env, config, agent)
    batch_size = config.num_envs * config.num_steps

    def step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        params, info = trust_region_step(
            params,
            lambda p: agent.distributions(p, batch),
            importance_sampled_surrogate(
                batch.actions,
                standardize(batch.advantages, batch.values),
                config.entropy_coef,
            ),
            make_solve(config, agent, key, params, batch),
            max_kl=kl_radius(env, config, step_input.num_updates, batch_size),
            **step_options(config),
        )
        return params, (), info._asdict()

    return {"policy_step": step}
