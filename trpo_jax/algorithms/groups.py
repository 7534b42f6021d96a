"""Groups of hyperparameters that several algorithms share, and the checks that go with them.

A config inherits the groups its algorithm needs, and adds what is its own.
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
    """What every algorithm here needs: rollouts, advantages, critic, networks, normalisation."""

    num_envs: int = fields.integer(8, "environments stepped side by side", 1)
    num_steps: int = fields.integer(256, "steps of each environment in one update", 1)
    gamma: fields.Real = fields.real(0.99, "discount of future rewards", 0.0, 1.0)
    gae_lambda: fields.Real = fields.real(
        0.95, "lambda of generalised advantage estimation", 0.0, 1.0
    )
    decay_steps: int = fields.integer(
        0,
        "environment steps over which what sets the length of the policy's step (max_kl, "
        "policy_lr or step_size) falls linearly to 0; 0 keeps it",
        0,
        10**15,  # as many as `total_steps`
    )
    entropy_coef: fields.Real = fields.real(
        0.0, "weight of the policy's mean entropy beside the standardised advantages", 0.0
    )
    gae_critic: str = fields.choice(
        "adam",
        "how the critic is fitted: epochs of Adam, or one Gauss-Newton step in a trust region",
        tuple(CRITICS),
    )
    critic_lr: fields.Real = fields.real(1e-3, "step size of Adam for the critic", 0.0)
    critic_epochs: int = fields.integer(10, "passes over the batch when fitting the critic", 1)
    critic_minibatches: int = fields.integer(
        16, "parts of each pass; must divide num_envs * num_steps", 1
    )
    critic_max_change: fields.Real = fields.real(
        0.1,
        "trust region of the critic: mean squared change over twice its mean squared error",
        0.0,
        open_low=True,
    )
    hidden_sizes: tuple[int, ...] = fields.integers(
        (64, 64), "width of each hidden layer, policy and critic", 1
    )
    activation: str = fields.choice("tanh", "nonlinearity of the hidden layers", tuple(ACTIVATIONS))
    log_std_init: fields.Real = fields.real(
        0.0, "initial log standard deviation of continuous actions", *LOG_STD_BOUNDS
    )
    state_dependent_std: bool = fields.flag(
        False, "let the standard deviation of continuous actions depend on the state"
    )
    memory: str = fields.choice(
        NO_MEMORY,
        "what the policy and the critic remember earlier observations by, each one of its own",
        (NO_MEMORY, *CELLS),
    )
    memory_size: int = fields.integer(
        64, "width of the memory of the policy, and of that of the critic", 1
    )
    memory_checkpoint: bool = fields.flag(
        False,
        "compute the inside of the memory once more for derivatives, so that they need less space",
    )
    critic_observation: str = fields.name(
        "",
        "name of the part of the observation that only the critic sees, in place of the one that "
        "the environment names",
    )
    normalize_observations: bool = fields.flag(
        True, "standardise observations by running statistics"
    )
    scale_rewards: bool = fields.flag(
        False, "divide rewards by the running deviation of their discounted sum"
    )
    normalize_values: bool = fields.flag(
        False, "fit the critic to targets that running statistics standardise"
    )


@no_type_check
@struct.dataclass
class Team:
    """Several agents that earn one reward together."""

    share_parameters: bool = fields.flag(
        False, "let all agents act by one network, which is shown the number of the agent too"
    )
    normalize_values: bool = fields.flag(
        True, "fit the critic to targets that running statistics standardise"
    )


@no_type_check
@struct.dataclass
class Exploration:
    """How the noise of continuous actions is related over time; see `trpo_jax.exploration`."""

    exploration: str = fields.choice(
        "white",
        "noise of continuous actions over time: independent, Ornstein-Uhlenbeck or coloured",
        tuple(EXPLORATIONS),
    )
    ou_rho: fields.Real = fields.real(
        0.5,
        "correlation of the Ornstein-Uhlenbeck process from one step to the next",
        0.0,
        1.0,
        open_high=True,
    )
    color_beta: fields.Real = fields.real(
        0.5, "coloured noise has a spectrum of 1 / f^beta: 0 white, 1 pink, 2 red", 0.0, 2.0
    )


@no_type_check
@struct.dataclass
class NaturalGradient:
    """The natural-gradient direction and its length."""

    max_kl: fields.Real = fields.real(
        0.01, "radius of the trust region: mean KL(old || new), in nats", 0.0, open_low=True
    )
    max_kl_per_dimension: bool = fields.flag(
        False,
        "bound the mean over the action's components instead of their sum: the radius is max_kl "
        "times their number",
    )
    damping: fields.Real = fields.real(
        0.1, "added to the diagonal of the Fisher matrix in the solve", 0.0
    )
    damped_scaling: bool = fields.flag(
        True, "scale the step by the damped Fisher matrix, which falls somewhat short of max_kl"
    )
    cg_iters: int = fields.integer(10, "conjugate-gradient iterations", 1)
    solver: str = fields.choice(
        "cg",
        "conjugate gradient, plain or preconditioned by a Kronecker product for each layer that "
        "approximates the Fisher matrix",
        ("cg", "kronecker"),
    )
    fisher_subsample: int = fields.integer(
        1, "keep every k-th time step (with a memory: sequence) in Fisher-vector products", 1
    )
    fisher_precision: str = fields.choice(
        "default",
        "of the matrix products in Fisher-vector products: the device's default, which on recent "
        "GPUs is TF32, or float32; everything else in a step is float32",
        ("default", "float32"),
    )


@no_type_check
@struct.dataclass
class TrustRegion(NaturalGradient):
    """The natural-gradient step with a line search."""

    line_search_steps: int = fields.integer(10, "step lengths tried at the most", 1)
    line_search_shrink: fields.Real = fields.real(
        0.8, "factor from one step length to the next", 0.0, 1.0, open_low=True, open_high=True
    )
    kl_peak: fields.Real = fields.real(
        0.0,
        "bound on KL(old || new) at any one state, as a multiple of the radius; 0 bounds the mean "
        "only",
        0.0,
    )


def validate(env: Environment, config: OnPolicy) -> None:
    """Checks the fields of a config one by one, together, and against the environment.

    Raises:
        ConfigurationError: naming the first field that cannot work, its value and what is allowed.
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
        few = "leaves advantages nothing to be compared with, so that nothing is learnt"
        many = "is more than 32 bits count"
        raise ConfigurationError(
            f"A batch of num_envs * num_steps = {config.num_envs} * {config.num_steps} = {batch:,} "
            f"{few if batch == 1 else many}. Choose 2 to {fields.LARGEST_INTEGER:,}."
        )
    if isinstance(config, NaturalGradient):
        require_measurable(config.max_kl)
    if isinstance(config, Exploration) and config.exploration != "white":
        require_continuous(env, f"exploration = {config.exploration!r}")


def require_measurable(max_kl: Any) -> None:
    """Raises a ConfigurationError if a radius is less than what a KL divergence is rounded to.

    A KL divergence is a mean of differences of log-probabilities, of size 1, each of which 32 bits
    round by 1.2e-7: a smaller one may be measured as -1e-8, and any step accepted or rejected.
    """
    least = float(np.finfo(np.float32).eps)
    if not isinstance(max_kl, jax.core.Tracer) and np.min(max_kl) < least:
        raise ConfigurationError(
            f"max_kl = {max_kl!r} is less than the rounding of a KL divergence in 32 bits, so that "
            f"no step can be told from none. Choose at least {least:.1e}; 0.01 is usual."
        )


def prepare(env: Environment, config: Any, agent: Agent | None) -> tuple[Any, Agent]:
    """Returns a config that was checked, and the agent: the one given, or the config's own.

    Of a team, the policy is that of one agent, for its rows; see `trpo_jax.teams`.

    Raises:
        ConfigurationError: if a field's value cannot work.
    """
    validate(env, config)
    if agent is None:
        agent = make_agent(env, config) if env.num_agents is None else make_team(env, config)
    return config, agent


def require_team(env: Environment, config: OnPolicy) -> None:
    """Raises a ConfigurationError if an algorithm of one agent is given a team, or the reverse."""
    if env.num_agents is not None and not isinstance(config, Team):
        raise ConfigurationError(
            f"{env.name} has {env.num_agents} agents, and this algorithm learns for one. Choose "
            "hatrpo, happo or mappo."
        )
    if env.num_agents is None and isinstance(config, Team):
        raise ConfigurationError(
            f"{env.name} has no axis of agents, and this algorithm learns for a team. Choose an "
            "environment of several agents, such as jaxmarl/MPE_simple_spread_v3, or an algorithm "
            "of one agent, such as trpo or ppo."
        )
    if env.num_agents is not None and config.critic_observation:
        raise ConfigurationError(
            f"critic_observation = {config.critic_observation!r} cannot work with several agents: "
            f"the critic of {env.name} sees the state of the team, or else all observations. Leave "
            "it out."
        )
    sizes = {own.size for own in env.action.each} if env.num_agents is not None else set()
    if len(sizes) > 1 and getattr(config, "max_kl_per_dimension", False):
        raise ConfigurationError(
            f"max_kl_per_dimension = True cannot work with {env.name}, whose agents choose "
            f"{' or '.join(map(str, sorted(sizes)))} components each: the radius is the same for "
            "all of them. Leave it at False."
        )


def require_no_memory(agent: Agent, reason: str) -> None:
    """Raises a ConfigurationError if the policy of an agent remembers earlier steps."""
    if agent.policy.remembers or remembers(agent.critic.carry):
        raise ConfigurationError(
            f"{reason}, and this agent has a memory of earlier ones. Choose memory = {NO_MEMORY}, "
            "or trpo."
        )


def require_continuous(env: Environment, what: str) -> None:
    """Raises a ConfigurationError if the environment's actions are not continuous."""
    if not isinstance(env.action, Box):
        joint = isinstance(env.action, dict | tuple)
        kind = "of several parts" if joint else type(env.action).__name__
        raise ConfigurationError(
            f"{what} needs continuous actions, and those of {env.name} are "
            f"{kind}. Choose an environment with continuous actions, such as "
            "Pendulum-v1, or leave it out."
        )


def decay(
    config: OnPolicy, num_updates: Int[Array, ""], steps_per_update: int
) -> Float[Array, ""] | float:
    """Returns the share of the policy's step that `decay_steps` leaves after so many updates."""
    if not config.decay_steps:
        return 1.0
    return jnp.maximum(1 - num_updates * (steps_per_update / config.decay_steps), 0.0)
