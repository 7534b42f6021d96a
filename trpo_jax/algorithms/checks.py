"""Checks of a config, alone and together with its environment, and the agent that it describes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from trpo_jax.agent import NO_MEMORY, Agent, make_agent
from trpo_jax.algorithms import configs, fields
from trpo_jax.envs.base import Environment, require_part, require_usable
from trpo_jax.envs.specs import Box
from trpo_jax.errors import ConfigurationError
from trpo_jax.recurrent import remembers
from trpo_jax.teams import make_team


def validate(env: Environment, config: configs.OnPolicy) -> None:
    """Checks each field of a config, then the fields together, then the config with `env`.

    Raises:
        ConfigurationError: if a field cannot work. The message names the first such field, its
            value and the allowed values.
    """
    fields.validate(config)
    require_usable(env)
    require_team(env, config)
    require_part(env, config.critic_observation or env.critic_observation)
    batch = config.num_envs * config.num_steps
    if batch % config.critic_minibatches:
        raise ConfigurationError(
            f"critic_minibatches = {config.critic_minibatches} does not divide the batch of "
            f"num_envs * num_steps = {config.num_envs} * {config.num_steps} = {batch}. "
            "Choose a divisor of the batch."
        )
    if batch == 1 or batch > fields.LARGEST_INTEGER:
        few = "is a single step, but an advantage needs other steps to be compared with"
        many = "is more than a 32-bit integer can hold"
        raise ConfigurationError(
            f"A batch of num_envs * num_steps = {config.num_envs} * {config.num_steps} = {batch:,} "
            f"{few if batch == 1 else many}. Choose 2 to {fields.LARGEST_INTEGER:,}."
        )
    if isinstance(config, configs.NaturalGradient):
        require_measurable(config.max_kl)
    if isinstance(config, configs.Exploration) and config.exploration != "white":
        require_continuous(env, f"exploration = {config.exploration!r}")


def require_measurable(max_kl: Any) -> None:
    """Raises a ConfigurationError if a radius is less than the rounding of a KL divergence.

    A KL divergence is a mean of differences of log-probabilities. Log-probabilities have size 1,
    and 32 bits round them by 1.2e-7. So a smaller KL divergence may be measured as -1e-8, and the
    line search would accept or reject steps at random.
    """
    least = float(np.finfo(np.float32).eps)
    if not isinstance(max_kl, jax.core.Tracer) and np.min(max_kl) < least:
        raise ConfigurationError(
            f"max_kl = {max_kl!r} is less than the rounding of a KL divergence in 32 bits, so the "
            f"size of a step cannot be measured. Choose at least {least:.1e}; 0.01 is usual."
        )


def prepare(env: Environment, config: Any, agent: Agent | None) -> tuple[Any, Agent]:
    """Checks a config. Returns it with the agent, which is made from the config if None is given.

    If the environment has a team, the agent's policy is the policy of one team member. It acts on
    the observations of that member; see `trpo_jax.teams`.

    Raises:
        ConfigurationError: if the value of a field cannot work.
    """
    validate(env, config)
    if agent is None:
        agent = make_agent(env, config) if env.num_agents is None else make_team(env, config)
    return config, agent


def require_team(env: Environment, config: configs.OnPolicy) -> None:
    """Checks that an algorithm for a team has an environment with a team, and the reverse.

    Raises:
        ConfigurationError: if the algorithm and the environment do not fit.
    """
    if env.num_agents is not None and not isinstance(config, configs.Team):
        raise ConfigurationError(
            f"{env.name} has {env.num_agents} agents, but this algorithm is for one agent. Choose "
            "hatrpo, happo or mappo."
        )
    if env.num_agents is None and isinstance(config, configs.Team):
        raise ConfigurationError(
            f"{env.name} has one agent, but this algorithm is for a team of agents. Choose an "
            "environment with several agents, such as jaxmarl/MPE_simple_spread_v3, or an "
            "algorithm for one agent, such as trpo or ppo."
        )
    if env.num_agents is not None and config.critic_observation:
        raise ConfigurationError(
            f"critic_observation = {config.critic_observation!r} cannot work with several agents: "
            f"the critic of {env.name} sees the state of the team, or all observations if there "
            "is no such state. Leave critic_observation out."
        )
    sizes = {own.size for own in env.action.each} if env.num_agents is not None else set()
    if len(sizes) > 1 and getattr(config, "max_kl_per_dimension", False):
        raise ConfigurationError(
            f"max_kl_per_dimension = True cannot work with {env.name}: the actions of its agents "
            f"have {' or '.join(map(str, sorted(sizes)))} components, and all agents have the same "
            "radius. Leave max_kl_per_dimension at False."
        )


def require_no_memory(agent: Agent, reason: str) -> None:
    """Raises a ConfigurationError if the policy or the critic of an agent has a memory.

    Args:
        agent: the agent.
        reason: a main clause, for the message. It says why a memory cannot work.
    """
    if agent.policy.remembers or remembers(agent.critic.carry):
        raise ConfigurationError(
            f"{reason}, but this agent has a memory of earlier steps. Choose "
            f"memory = {NO_MEMORY}, or trpo, which can use a memory."
        )


def require_continuous(env: Environment, what: str) -> None:
    """Raises a ConfigurationError if the environment's actions are not continuous.

    Args:
        env: the environment.
        what: the name of the algorithm or setting, for the message.
    """
    if not isinstance(env.action, Box):
        joint = isinstance(env.action, dict | tuple)
        kind = "made of several parts" if joint else type(env.action).__name__
        raise ConfigurationError(
            f"{what} needs continuous actions, but the actions of {env.name} are {kind}. Choose an "
            f"environment with continuous actions, such as Pendulum-v1, or leave {what} out."
        )


def decay(
    config: configs.OnPolicy, num_updates: Int[Array, ""], steps_per_update: int
) -> Float[Array, ""] | float:
    """Returns the factor of max_kl, policy_lr or step_size, which falls linearly from 1 to 0.

    Args:
        config: `decay_steps` is the number of environment steps until the factor is 0. If it is 0,
            the factor stays 1.
        num_updates: number of updates done so far.
        steps_per_update: environment steps in one update.

    Examples:
        >>> float(decay(configs.OnPolicy(decay_steps=1_000), jnp.int32(5), steps_per_update=100))
        0.5
    """
    if not config.decay_steps:
        return 1.0
    return jnp.maximum(1 - num_updates * (steps_per_update / config.decay_steps), 0.0)
