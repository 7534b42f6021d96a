"""Turns the fields of a config into the arguments of the natural-gradient step."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trpo_jax.advantages import Spread, update_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs
from trpo_jax.algorithms.checks import decay
from trpo_jax.algorithms.on_policy import Batch, StepInput
from trpo_jax.envs.base import Environment, key_shape
from trpo_jax.envs.specs import num_components, split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import MatrixVectorProduct, fisher_vector_product
from trpo_jax.kronecker import kronecker_preconditioner, with_layers
from trpo_jax.networks import example_seen
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import Solve


def kl_radius(
    env: Environment,
    config: configs.NaturalGradient,
    num_updates: Int[Array, ""],
    steps_per_update: int,
) -> Float[Array, ""] | float:
    """Returns the radius of the trust region after `num_updates` updates, in nats.

    Most implementations add the KL divergences of the components of a Gaussian action. SB3-contrib
    and OmniSafe average them. With `max_kl_per_dimension` the radius is the same as theirs.

    Examples:
        >>> env = trpo_jax.make_env("Pendulum-v1")
        >>> config = trpo_jax.trpo.Config(max_kl=0.02, decay_steps=1_000)
        >>> print(f"{kl_radius(env, config, jnp.int32(5), steps_per_update=100):.3f}")
        0.010
    """
    decayed = config.max_kl * decay(config, num_updates, steps_per_update)
    return decayed * kl_components(env, config)


def kl_components(env: Environment, config: configs.NaturalGradient) -> int:
    """Returns the number of components whose mean KL divergence a config bounds; 1 for the sum."""
    return num_components(env.action) if config.max_kl_per_dimension else 1


def total_damping(env: Environment, config: configs.NaturalGradient) -> Float[Array, ""] | float:
    """Returns the damping of the Fisher matrix, whose KL divergence is the sum of components."""
    return config.damping * kl_components(env, config)


def advantage_strength(
    config: configs.NaturalGradient, step_input: StepInput
) -> tuple[Spread, Float[Array, ""]]:
    """Returns the spread of the advantages after this update, and their strength.

    See `trpo_jax.advantages.update_spread`. The unit is that of the rewards of the environment.

    Args:
        config: the config.
        step_input: the input of the policy step, whose state is the spread so far.
    """
    deviation = step_input.reward_scale * jnp.std(step_input.batch.advantages)
    return update_spread(step_input.step_state, deviation, config.penalty_memory)


def length_options(
    env: Environment, config: configs.NaturalGradient, strength: Float[Array, ""] | float = 1.0
) -> dict[str, Any]:
    """Returns the keyword arguments of `natural_step`, without the radius.

    Args:
        env: the environment.
        config: a validated config.
        strength: from `advantage_strength`. The penalty is divided by it. With 1,
            `penalty_memory` has no effect.
    """
    return {
        "damping": total_damping(env, config),
        "damped_scaling": config.damped_scaling,
        "kl_penalty": config.kl_penalty / (kl_components(env, config) * strength),
    }


def line_search_options(config: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `search_along`, without the radius."""
    return {
        "line_search_steps": config.line_search_steps,
        "line_search_shrink": config.line_search_shrink,
        "kl_peak": config.kl_peak,
    }


def step_options(env: Environment, config: Any, strength: Float[Array, ""]) -> dict[str, Any]:
    """Returns the keyword arguments of `trust_region_step`, without the radius."""
    return length_options(env, config, strength) | line_search_options(config)


def fisher_precision(config: configs.NaturalGradient) -> AbstractContextManager[None]:
    """Returns the context for building Fisher-vector products, with the precision of a config."""
    if config.fisher_precision == "float32":
        return jax.default_matmul_precision("float32")
    return nullcontext()


def thinned(key: PRNGKeyArray, batch: Any, stride: int, axis: int = 0) -> Any:
    """Returns every `stride`-th time step of a batch `[T, B, ...]`, with a random first step.

    Each update draws another first step. With a fixed one, a task whose states repeat every
    `stride` steps would show the Fisher matrix always the same states.

    Args:
        key: draws the first step.
        batch: a tree of arrays.
        stride: one of every `stride` steps is kept.
        axis: 0 keeps every `stride`-th time step; 1 keeps every `stride`-th environment, with its
            whole sequence.

    Examples:
        >>> thinned(jax.random.key(0), jnp.zeros((16, 4)), 8).shape
        (2, 4)
    """
    if stride == 1:
        return batch
    length = jax.tree.leaves(batch)[0].shape[axis]
    count = length // stride
    first = jax.random.randint(key, (), 0, length - stride * (count - 1))
    rows = first + stride * jnp.arange(count)
    return jax.tree.map(lambda x: x[:, rows] if axis else x[rows], batch)


def make_solve(
    env: Environment,
    config: configs.NaturalGradient,
    agent: Agent,
    key: PRNGKeyArray,
    params: PyTree[Array],
    batch: Batch,
) -> Solve:
    """Returns `gradient -> x`, which solves (F + damping I) x = gradient.

    F is the Fisher matrix over a part of the batch, which `fisher_subsample` and `key` choose.

    Args:
        env: the environment.
        config: the config.
        agent: the agent.
        key: draws the part of the batch: time steps, or whole sequences if the policy has a memory.
        params: parameters of the policy.
        batch: the batch, `[T, B]`.
    """
    part = thinned(key, batch, config.fisher_subsample, axis=int(agent.policy.remembers))
    with fisher_precision(config):
        product = fisher_vector_product(lambda p: agent.distributions(p, part), params)
    return solver_of(env, config, agent, params, part, product)


def solver_of(
    env: Environment,
    config: configs.NaturalGradient,
    agent: Agent,
    params: PyTree[Array],
    batch: Batch,
    product: MatrixVectorProduct,
) -> Solve:
    """Returns the solver that a config names.

    Args:
        env: the environment.
        config: the config.
        agent: the agent.
        params: parameters of the policy.
        batch: the batch of the Fisher matrix, from which the preconditioner is made.
        product: `v -> M v` for a metric M, which is the Fisher matrix or near it.
    """
    damping = total_damping(env, config)
    return damped_solver(
        product,
        damping=damping,
        num_iterations=config.cg_iters,
        precondition=PRECONDITIONERS[config.solver](agent, params, batch, damping),
    )


def _kronecker(agent, params, batch, damping) -> MatrixVectorProduct:
    def log_probs(offsets):
        distribution, inputs = with_layers(lambda: agent.distributions(params, batch), offsets)
        return distribution.log_prob(batch.actions), inputs

    with jax.default_matmul_precision("float32"):
        return kronecker_preconditioner(log_probs, params, damping)


# For each name of a solver: `(agent, params, batch, damping) -> preconditioner`.
PRECONDITIONERS = {"cg": lambda agent, params, batch, damping: None, "kronecker": _kronecker}


def require_solver(
    env: Environment, config: configs.NaturalGradient, agent: Agent, num_envs: int | None = None
) -> None:
    """Raises a ConfigurationError if the solver of a config cannot work with an agent's policy.

    Args:
        env: the environment.
        config: the config.
        agent: the agent.
        num_envs: number of environments from which the step is computed; all if None.
    """
    num_envs = config.num_envs if num_envs is None else num_envs
    if agent.policy.remembers and config.fisher_subsample > num_envs:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th sequence, because the "
            f"policy has a memory, but a step is computed from only {num_envs} environments "
            f"(num_envs = {config.num_envs}). Choose at most {num_envs}."
        )
    if not agent.policy.remembers and config.fisher_subsample > config.num_steps:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th time step, but there "
            f"are only num_steps = {config.num_steps}. Choose at most num_steps."
        )
    if config.solver != "kronecker":
        return
    if isinstance(config.damping, float | int) and config.damping == 0:
        raise ConfigurationError(
            "damping = 0 cannot work with solver = 'kronecker', whose factors may then have no "
            "inverse. Set damping above 0, or solver to cg."
        )
    refused = (
        "solver = 'kronecker' needs a policy that is one flax linen module of Dense layers, each "
        "with a bias and applied once. The policy of this agent does not fit ({}). Choose "
        "solver = 'cg', which works with every network."
    )
    if agent.policy.remembers:
        raise ConfigurationError(refused.format("it has a memory"))
    observations = jax.tree.map(lambda x: x[None], example_seen(env.observation))
    observations, _ = split_part(observations, agent.critic_observation)
    first, carry = jnp.ones((1, 1), bool), agent.policy.carry(1)
    paths: set[tuple[str, ...]] = set()

    def find_layers(key):
        params = agent.policy.init(key)
        call = lambda: agent.policy.unroll(params, carry, observations, first)
        paths.update(with_layers(call, {})[1])
        return params

    reason = "it has no such layer"
    try:
        params = jax.eval_shape(find_layers, key_shape())
    except ValueError as error:
        paths, reason = set(), str(error)
    flat = flatten_dict(params) if paths and isinstance(params, Mapping) else {}
    if not paths or not all((*x, name) in flat for x in paths for name in ("kernel", "bias")):
        reason = "it has a layer without its kernel or bias" if paths else reason
        raise ConfigurationError(refused.format(reason))


def require_every_step(config: configs.NaturalGradient, reason: str) -> None:
    """Raises a ConfigurationError if the Fisher matrix of a config leaves time steps out."""
    if config.fisher_subsample != 1:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} cannot work here: {reason}. Set it to 1."
        )
