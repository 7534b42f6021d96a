"""Groups of hyperparameters that several algorithms share, and checks of their values.

The config of an algorithm inherits the groups that it needs, and adds its own fields. The first
sentence of a group's docstring is a heading of `experiments/train.py --help`.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from trpo_jax.agent import CRITICS, EXPLORATIONS, NO_MEMORY, Agent, make_agent
from trpo_jax.algorithms import fields
from trpo_jax.envs.base import Environment, require_part, require_usable
from trpo_jax.envs.specs import Box
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import ACTIVATIONS, LOG_STD_BOUNDS
from trpo_jax.recurrent import CELLS, remembers
from trpo_jax.teams import make_team


@no_type_check  # `validate` checks the values, and leaves may be arrays
@struct.dataclass
class OnPolicy:
    """Rollouts, advantages, critic, networks and normalisation."""

    num_envs: int = fields.integer(8, "number of environments that run side by side", 1)
    num_steps: int = fields.integer(256, "number of steps of each environment in one update", 1)
    gamma: fields.Real = fields.real(0.99, "discount factor of future rewards", 0.0, 1.0)
    gae_lambda: fields.Real = fields.real(
        0.95,
        "lambda of generalised advantage estimation; larger values rely more on sampled rewards "
        "and less on the critic",
        0.0,
        1.0,
    )
    decay_steps: int = fields.integer(
        0,
        "number of environment steps until max_kl (or policy_lr, or step_size) has fallen linearly "
        "to 0; 0 keeps it constant",
        0,
        10**15,  # as many as `total_steps`
    )
    entropy_coef: fields.Real = fields.real(
        0.0,
        "weight of the policy's mean entropy, which is added to the surrogate; larger values keep "
        "actions more random; 0 adds nothing",
        0.0,
    )
    gae_critic: str = fields.choice(
        "adam",
        "how the critic is fitted: adam runs several epochs of minibatch Adam, trust_region takes "
        "one Gauss-Newton step of bounded size",
        tuple(CRITICS),
    )
    critic_lr: fields.Real = fields.real(1e-3, "learning rate of Adam for the critic", 0.0)
    critic_epochs: int = fields.integer(
        10, "number of passes over the batch in one fit of the critic", 1
    )
    critic_minibatches: int = fields.integer(
        16,
        "number of minibatches in one pass of the critic; must divide num_envs * num_steps",
        1,
    )
    critic_max_change: fields.Real = fields.real(
        0.1,
        "largest step of the critic if gae_critic is trust_region: the mean squared change of its "
        "values, divided by twice its mean squared error",
        0.0,
        open_low=True,
    )
    hidden_sizes: tuple[int, ...] = fields.integers(
        (64, 64), "width of each hidden layer of the policy and of the critic", 1
    )
    activation: str = fields.choice(
        "tanh", "activation function of the hidden layers", tuple(ACTIVATIONS)
    )
    log_std_init: fields.Real = fields.real(
        0.0, "initial logarithm of the standard deviation of continuous actions", *LOG_STD_BOUNDS
    )
    state_dependent_std: bool = fields.flag(
        False,
        "let the policy network compute the standard deviation of continuous actions from the "
        "observation; otherwise it is the same for all observations",
    )
    memory: str = fields.choice(
        NO_MEMORY,
        "recurrent cell that remembers earlier observations; the policy and the critic each have "
        "their own; none is a network without memory",
        (NO_MEMORY, *CELLS),
    )
    memory_size: int = fields.integer(
        64, "number of units in the memory of the policy and in the memory of the critic", 1
    )
    memory_checkpoint: bool = fields.flag(
        False,
        "save device memory: for derivatives, compute the values inside the memory cell again "
        "instead of storing them",
    )
    critic_observation: str = fields.name(
        "",
        "name of the part of the observation that only the critic sees; it replaces the part that "
        "the environment names",
    )
    normalize_observations: bool = fields.flag(
        True, "standardise observations with their running mean and standard deviation"
    )
    scale_rewards: bool = fields.flag(
        False, "divide rewards by the running standard deviation of their discounted sum"
    )
    normalize_values: bool = fields.flag(
        False, "standardise the critic's targets with their running mean and standard deviation"
    )


@no_type_check
@struct.dataclass
class Team:
    """Team of agents that share one reward."""

    share_parameters: bool = fields.flag(
        False, "let all agents use one policy network, which also sees the number of the agent"
    )
    normalize_values: bool = fields.flag(
        True, "standardise the critic's targets with their running mean and standard deviation"
    )


@no_type_check
@struct.dataclass
class Exploration:
    """Correlation over time of the noise in continuous actions; see `trpo_jax.exploration`."""

    exploration: str = fields.choice(
        "white",
        "noise of continuous actions over time: white is independent at each step, ou is an "
        "Ornstein-Uhlenbeck process, colored has a spectrum of 1 / f^color_beta",
        tuple(EXPLORATIONS),
    )
    ou_rho: fields.Real = fields.real(
        0.5,
        "correlation of the Ornstein-Uhlenbeck process between successive steps; 0 is white noise",
        0.0,
        1.0,
        open_high=True,
    )
    color_beta: fields.Real = fields.real(
        0.5, "exponent of colored noise: 0 is white, 1 is pink, 2 is red noise", 0.0, 2.0
    )


@no_type_check
@struct.dataclass
class NaturalGradient:
    """Direction and length of the natural-gradient step."""

    max_kl: fields.Real = fields.real(
        0.01, "radius of the trust region: mean KL(old || new), in nats", 0.0, open_low=True
    )
    max_kl_per_dimension: bool = fields.flag(
        False,
        "let max_kl bound the mean KL divergence of an action's components instead of their sum; "
        "the radius is then max_kl times the number of components",
    )
    damping: fields.Real = fields.real(
        0.1,
        "number added to the diagonal of the Fisher matrix when the direction is computed; larger "
        "values turn the step towards the plain gradient",
        0.0,
    )
    damped_scaling: bool = fields.flag(
        True,
        "compute the length of the step with the damped Fisher matrix; the step then ends a little "
        "before max_kl",
    )
    cg_iters: int = fields.integer(
        10, "number of conjugate-gradient iterations; more give a more exact direction", 1
    )
    solver: str = fields.choice(
        "cg",
        "solver for the direction: cg is conjugate gradient, kronecker preconditions it with a "
        "Kronecker-factored approximation of the Fisher matrix",
        ("cg", "kronecker"),
    )
    fisher_subsample: int = fields.integer(
        1,
        "use every k-th time step for the Fisher matrix, or every k-th sequence if the policy has "
        "a memory; 1 uses all",
        1,
    )
    fisher_precision: str = fields.choice(
        "default",
        "precision of the matrix products in Fisher-vector products: default is the default of "
        "the device (TF32 on recent GPUs); the rest of the step always uses float32",
        ("default", "float32"),
    )


@no_type_check
@struct.dataclass
class TrustRegion(NaturalGradient):
    """Line search along the natural-gradient step."""

    line_search_steps: int = fields.integer(
        10, "largest number of step lengths to try; 1 tries the full step only", 1
    )
    line_search_shrink: fields.Real = fields.real(
        0.8,
        "factor between one step length and the next",
        0.0,
        1.0,
        open_low=True,
        open_high=True,
    )
    kl_peak: fields.Real = fields.real(
        0.0,
        "bound on KL(old || new) at every state of the batch, as a multiple of the radius; 0 "
        "bounds only the mean over the states",
        0.0,
    )


def validate(env: Environment, config: OnPolicy) -> None:
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
    if isinstance(config, NaturalGradient):
        require_measurable(config.max_kl)
    if isinstance(config, Exploration) and config.exploration != "white":
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


def require_team(env: Environment, config: OnPolicy) -> None:
    """Checks that an algorithm for a team has an environment with a team, and the reverse.

    Raises:
        ConfigurationError: if the algorithm and the environment do not fit.
    """
    if env.num_agents is not None and not isinstance(config, Team):
        raise ConfigurationError(
            f"{env.name} has {env.num_agents} agents, but this algorithm is for one agent. Choose "
            "hatrpo, happo or mappo."
        )
    if env.num_agents is None and isinstance(config, Team):
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
    config: OnPolicy, num_updates: Int[Array, ""], steps_per_update: int
) -> Float[Array, ""] | float:
    """Returns the factor of max_kl, policy_lr or step_size, which falls linearly from 1 to 0.

    Args:
        config: `decay_steps` is the number of environment steps until the factor is 0. If it is 0,
            the factor stays 1.
        num_updates: number of updates done so far.
        steps_per_update: environment steps in one update.

    Examples:
        >>> float(decay(OnPolicy(decay_steps=1_000), jnp.int32(5), steps_per_update=100))
        0.5
    """
    if not config.decay_steps:
        return 1.0
    return jnp.maximum(1 - num_updates * (steps_per_update / config.decay_steps), 0.0)
