"""Trust-region policy optimisation (Schulman et al. 2015, arXiv:1502.05477), single path."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import jax
from flax import struct
from jaxtyping import Array, PyTree

from trpo_jax.advantages import standardize
from trpo_jax.algorithms import on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.groups import (
    Exploration,
    NaturalGradient,
    OnPolicy,
    TrustRegion,
    kl_radius,
    line_search_options,
    natural_gradient_options,
    validate,
)
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.kronecker import kronecker_preconditioner
from trpo_jax.trust_region import importance_sampled_surrogate, trust_region_step


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(TrustRegion, Exploration, OnPolicy):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns TRPO on an environment.

    `make` may be called inside a traced function: `jax.vmap` over configs whose real-valued fields
    are arrays runs one program for all of them.

    Args:
        env: the environment, from `trpo_jax.envs.make` or of the caller's own.
        config: hyperparameters; the defaults if None.

    Raises:
        ConfigurationError: if a field's value cannot work.
    """
    config = Config() if config is None else config
    validate(env, config)
    behavior = on_policy.make_behavior(env, config)
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, state, trajectory, batch):
        params, info = trust_region_step(
            state.actor.policy_params,
            lambda p: behavior.apply(p, batch),
            importance_sampled_surrogate(
                batch.actions, standardize(batch.advantages), config.entropy_coef
            ),
            **fisher_metric(env, config, state.actor.policy_params, batch),
            max_kl=kl_radius(env, config, state.num_updates, batch_size),
            **natural_gradient_options(config),
            **line_search_options(config),
        )
        return params, state.memory, info._asdict()

    return on_policy.make(env, config, policy_step)


def fisher_precision(config: NaturalGradient) -> AbstractContextManager[None]:
    """Returns the context in which Fisher-vector products are to be built."""
    if config.fisher_precision == "float32":
        return jax.default_matmul_precision("float32")
    return nullcontext()


def fisher_metric(
    env: Environment, config: NaturalGradient, params: PyTree[Array], batch: Batch
) -> dict[str, Any]:
    """Returns `metric_product` and `precondition`, as `natural_step` takes them.

    Both are over every `fisher_subsample`-th time step of a batch.
    """
    thinned = jax.tree.map(lambda x: x[:: config.fisher_subsample], batch)
    behavior = on_policy.make_behavior(env, config)

    def log_probs(offsets):
        distribution, inputs = behavior.apply_layers(params, offsets, thinned)
        return distribution.log_prob(thinned.actions), inputs

    with fisher_precision(config):
        product = fisher_vector_product(lambda p: behavior.apply(p, thinned), params)
    precondition = None
    if config.solver == "kronecker":
        with jax.default_matmul_precision("float32"):
            precondition = kronecker_preconditioner(log_probs, params, config.damping)
    return {"metric_product": product, "precondition": precondition}
