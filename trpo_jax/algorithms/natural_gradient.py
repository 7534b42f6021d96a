"""From the fields of a config to the arguments of the natural-gradient step."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trpo_jax.agent import Agent
from trpo_jax.algorithms.groups import NaturalGradient, decay
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import num_components, split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import MatrixVectorProduct, fisher_vector_product
from trpo_jax.kronecker import kronecker_preconditioner, with_layers
from trpo_jax.networks import example_seen
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import Solve


def kl_radius(
    env: Environment, config: NaturalGradient, num_updates: Int[Array, ""], steps_per_update: int
) -> Float[Array, ""] | float:
    """Returns the radius of the trust region after so many updates, in nats.

    SB3-contrib and OmniSafe average the KL divergence of a Gaussian policy over the components of
    the action, where others add them up; `max_kl_per_dimension` gives their regions.
    """
    components = num_components(env.action) if config.max_kl_per_dimension else 1
    return config.max_kl * components * decay(config, num_updates, steps_per_update)


def length_options(config: NaturalGradient) -> dict[str, Any]:
    """Returns the arguments of `natural_step` but its radius."""
    return {"damping": config.damping, "damped_scaling": config.damped_scaling}


def line_search_options(config: Any) -> dict[str, Any]:
    """Returns the arguments of `search_along` but its radius."""
    return {
        "line_search_steps": config.line_search_steps,
        "line_search_shrink": config.line_search_shrink,
        "kl_peak": config.kl_peak,
    }


def step_options(config: Any) -> dict[str, Any]:
    """Returns the arguments of `trust_region_step` but its radius."""
    return length_options(config) | line_search_options(config)


def fisher_precision(config: NaturalGradient) -> AbstractContextManager[None]:
    """Returns the context in which Fisher-vector products are to be built."""
    if config.fisher_precision == "float32":
        return jax.default_matmul_precision("float32")
    return nullcontext()


def thinned(key: PRNGKeyArray, batch: Any, stride: int, axis: int = 0) -> Any:
    """Returns every `stride`-th time step of a batch `[T, B, ...]`, from a random first one on.

    The first one changes from update to update: otherwise a task whose states repeat after as many
    steps would show the metric the same part of them for ever.

    Args:
        key: decides the first one.
        batch: a tree of arrays.
        stride: keep one of so many.
        axis: 0 for time steps, 1 for environments, which leaves sequences whole.
    """
    if stride == 1:
        return batch
    length = jax.tree.leaves(batch)[0].shape[axis]
    count = length // stride
    first = jax.random.randint(key, (), 0, length - stride * (count - 1))
    rows = first + stride * jnp.arange(count)
    return jax.tree.map(lambda x: x[:, rows] if axis else x[rows], batch)


def make_solve(
    config: NaturalGradient, agent: Agent, key: PRNGKeyArray, params: PyTree[Array], batch: Batch
) -> Solve:
    """Returns `gradient -> x` with (F + damping I) x = gradient, F over a part of a batch `[T, B]`.

    Args:
        config: the config.
        agent: the agent.
        key: decides which part of the batch F is over: time steps, or whole sequences where the
            policy has a memory.
        params: of the policy.
        batch: the batch.
    """
    part = thinned(key, batch, config.fisher_subsample, axis=int(agent.policy.remembers))
    with fisher_precision(config):
        product = fisher_vector_product(lambda p: agent.distributions(p, part), params)
    return solver_of(config, agent, params, part, product)


def solver_of(
    config: NaturalGradient,
    agent: Agent,
    params: PyTree[Array],
    batch: Batch,
    product: MatrixVectorProduct,
) -> Solve:
    """Returns the solver that a config names, for a metric that is near the Fisher matrix."""
    return damped_solver(
        product,
        damping=config.damping,
        num_iterations=config.cg_iters,
        precondition=PRECONDITIONERS[config.solver](config, agent, params, batch),
    )


def _kronecker(config, agent, params, batch) -> MatrixVectorProduct:
    def log_probs(offsets):
        distribution, inputs = with_layers(lambda: agent.distributions(params, batch), offsets)
        return distribution.log_prob(batch.actions), inputs

    with jax.default_matmul_precision("float32"):
        return kronecker_preconditioner(log_probs, params, config.damping)


# What the names of solvers stand for: `(config, agent, params, batch) -> preconditioner`.
PRECONDITIONERS = {"cg": lambda config, agent, params, batch: None, "kronecker": _kronecker}


def require_solver(
    env: Environment, config: NaturalGradient, agent: Agent, num_envs: int | None = None
) -> None:
    """Raises a ConfigurationError if the solver of a config cannot serve an agent's policy.

    Args:
        env: the environment.
        config: the config.
        agent: the agent.
        num_envs: how many environments the step is computed from; all if None.
    """
    num_envs = config.num_envs if num_envs is None else num_envs
    if agent.policy.remembers and config.fisher_subsample > num_envs:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th sequence, as the "
            f"policy has a memory, and a step is computed from only {num_envs} environments "
            f"(num_envs = {config.num_envs}). Choose at most {num_envs}."
        )
    if not agent.policy.remembers and config.fisher_subsample > config.num_steps:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} keeps every k-th time step of only "
            f"num_steps = {config.num_steps}. Choose at most num_steps."
        )
    if config.solver != "kronecker":
        return
    if isinstance(config.damping, float | int) and config.damping == 0:
        raise ConfigurationError(
            "damping = 0 leaves the factors of solver = 'kronecker' without an inverse. "
            "Set damping above 0, or solver to cg."
        )
    refused = (
        "solver = 'kronecker' needs a policy of Dense layers of flax linen, each with a bias and "
        "applied once, whose parameters are those of one module. The policy of this agent is "
        "another ({}). Choose solver = 'cg', which serves every network."
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

    reason = "it has none"
    try:
        params = jax.eval_shape(find_layers, jax.random.key(0))
    except ValueError as error:
        paths, reason = set(), str(error)
    flat = flatten_dict(params) if paths and isinstance(params, Mapping) else {}
    if not paths or not all((*x, name) in flat for x in paths for name in ("kernel", "bias")):
        reason = "a layer without its kernel or bias" if paths else reason
        raise ConfigurationError(refused.format(reason))


def require_every_step(config: NaturalGradient, reason: str) -> None:
    """Raises a ConfigurationError if the metric of a config leaves time steps out."""
    if config.fisher_subsample != 1:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} cannot work here: {reason}. Leave it "
            "at 1."
        )
