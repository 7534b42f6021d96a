"""Uncertainty-aware TRPO: a trust region from a confidence interval of the gradient.

With few samples, the surrogate's gradient is only known up to a confidence ellipsoid. Its size R^2
follows from a normal assumption and its shape is the covariance Sigma of the estimate
(`trpo_jax.confidence`). Along a step u, the worst gradient in it gains g.u - R sqrt(u^T Sigma u):
the mean minus so many deviations. Penalising that in the metric, M = F + c R^2 Sigma, shortens
steps along uncertain directions (Queeney, Paschalidis and Cassandras 2021, arXiv:2012.10791). With
c = 0 it is TRPO, and it tends to TRPO as the number of environments grows. Their implementation
projects M onto a random subspace; here its products go straight into conjugate gradient, with no
more passes through the network than TRPO's own, and d in R^2 is the dimension of the Krylov space.
That space depends on the gradient, so the level 1 - alpha is nominal.

Two options are this project's own, published nowhere. `acceptance = "confidence"` computes the step
from half of the environments and accepts the longest candidate whose gain on the other half is
positive with confidence 1 - alpha. `critic_ensemble` measures how far several critics disagree
about each state, and `uncertainty_exponent` lets the policy change less where they do.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trpo_jax.advantages import standardize
from trpo_jax.algorithms import fields, on_policy, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.critic_ensemble import make_ensemble, member_values, uncertainty_weights
from trpo_jax.algorithms.groups import (
    kl_radius,
    line_search_options,
    natural_gradient_options,
    validate,
)
from trpo_jax.confidence import (
    covariance_product,
    directional_means,
    noise_gradient,
    output_gradient,
    p_value,
    squared_radius,
)
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import gauss_newton_product, mean_fisher_product
from trpo_jax.solvers import conjugate_gradient
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    natural_step,
    search_along,
    surrogate_gradient,
)


@no_type_check  # `make` checks the values, and leaves may be arrays
@struct.dataclass
class Config(trpo.Config):
    """Hyperparameters. Integers, names and booleans are static; every real number is a leaf."""

    c: float = fields.real(1.0, "weight of the gradient's uncertainty in the metric", 0.0)
    alpha: float = fields.real(
        0.05, "1 - alpha is the level of confidence", 0.0, 1.0, open_low=True, open_high=True
    )
    acceptance: str = fields.choice(
        "gain",
        "what the line search asks for: a gain of the surrogate, or a gain on held-out "
        "environments that is positive with confidence 1 - alpha",
        ("gain", "confidence"),
    )
    critic_ensemble: int = fields.integer(0, "critics in the ensemble; 0 for a single critic", 0)
    uncertainty_exponent: float = fields.real(
        0.0,
        "exponent of a state's weight in the metric by its critics' disagreement; 0 is none",
        0.0,
    )


def make(env: Environment, config: Config | None = None) -> Algorithm:
    """Returns uncertainty-aware TRPO on an environment; see `trpo.make`."""
    config = Config() if config is None else config
    validate(env, config)
    _validate(config)
    behavior = on_policy.make_behavior(env, config)
    member = on_policy.make_value_function(env, config)
    ensemble = make_ensemble(member, config.critic_ensemble) if config.critic_ensemble else member
    held_out = config.num_envs // 2 if config.acceptance == "confidence" else 0
    num_fitted = config.num_envs - held_out
    batch_size = config.num_envs * config.num_steps
    # Adding zero is not free of rounding once compiled: left out, the step is TRPO's to the bit.
    certain = isinstance(config.c, float | int) and config.c == 0

    def policy_step(key, state, trajectory, batch):
        params = state.actor.policy_params
        max_kl = kl_radius(env, config, state.num_updates, batch_size)
        advantages = standardize(batch.advantages)
        metrics, weights = {}, None
        if config.critic_ensemble:
            values = member_values(member, state.critic.params, batch.observations)
            spread = jnp.std(values, axis=0)
            weights = uncertainty_weights(spread, config.uncertainty_exponent)
            metrics = {"value_mean": jnp.mean(values), "value_std": jnp.mean(spread)}

        fitted = jax.tree.map(lambda x: x[:, :num_fitted], batch)
        fitted_weights = None if weights is None else weights[:, :num_fitted]
        fitted_fn = lambda p: behavior.apply(p, fitted)
        surrogate = importance_sampled_surrogate(
            fitted.actions, advantages[:, :num_fitted], config.entropy_coef
        )
        radius = squared_radius(min(config.cg_iters, num_fitted - 1), num_fitted, config.alpha)

        with jax.default_matmul_precision("float32"):
            old = fitted_fn(params)
            gradients = output_gradient(surrogate, old)

            def metric(distribution, tangent):
                fisher = mean_fisher_product(distribution, tangent, fitted_weights)
                if certain:
                    return fisher
                covariance = covariance_product(gradients, tangent)
                return optax.tree.add_scale(fisher, config.c * radius, covariance)

        with trpo.fisher_precision(config):
            product = gauss_newton_product(fitted_fn, params, metric)
        with jax.default_matmul_precision("float32"):
            precondition = trpo.fisher_metric(env, config, params, fitted)["precondition"]
            full = natural_step(
                surrogate_gradient(params, fitted_fn, surrogate),
                product,
                max_kl=max_kl,
                **natural_gradient_options(config),
                precondition=precondition,
            )
            _, tangent = jax.jvp(fitted_fn, (params,), (full.step,))
            fisher_tangent = mean_fisher_product(old, tangent)
            _, pull_back = jax.vjp(fitted_fn, params)
            (noise,) = pull_back(noise_gradient(key, gradients))
            damped = lambda v: optax.tree.add_scale(product(v), config.damping, v)
            noise_solution = conjugate_gradient(
                damped, noise, config.cg_iters, precondition=precondition
            )

        def confident_gain(new, old):
            gains = jnp.exp(new.log_prob(batch.actions) - old.log_prob(batch.actions)) - 1
            per_env = jnp.mean((gains * advantages)[:, num_fitted:], axis=0)
            return config.alpha - p_value(per_env)

        params, info = search_along(
            params,
            lambda p: behavior.apply(p, batch),
            importance_sampled_surrogate(batch.actions, advantages, config.entropy_coef),
            full,
            max_kl=max_kl,
            **line_search_options(config),
            acceptance=confident_gain if held_out else None,
            state_weights=weights,
        )
        metrics |= info._asdict() | {
            "confidence_radius": jnp.sqrt(radius),
            "effective_radius": 0.5 * optax.tree.vdot(tangent, fisher_tangent),
            "step_uncertainty": jnp.std(directional_means(gradients, tangent), ddof=1),
            "noise_floor": optax.tree.vdot(noise, noise_solution.x),
        }
        return params, state.memory, metrics

    return on_policy.make(env, config, policy_step, critic=ensemble)


def _validate(config: Config) -> None:
    needed = 4 if config.acceptance == "confidence" else 2
    if config.num_envs < needed:
        raise ConfigurationError(
            f"num_envs = {config.num_envs} gives no spread between environments: ua_trpo with "
            f"acceptance = {config.acceptance!r} needs at least {needed}."
        )
    if config.fisher_subsample != 1:
        raise ConfigurationError(
            f"fisher_subsample = {config.fisher_subsample} cannot work with ua_trpo: the "
            "covariance of the gradient needs every step, in the same passes. Leave it at 1."
        )
    if config.critic_ensemble == 1:
        raise ConfigurationError(
            "critic_ensemble = 1 has no spread. Choose at least 2 critics, or 0 for a single one."
        )
    exponent = config.uncertainty_exponent
    if not config.critic_ensemble and isinstance(exponent, float | int) and exponent:
        raise ConfigurationError(
            f"uncertainty_exponent = {exponent} weights states by the disagreement of several "
            "critics. Set critic_ensemble to 2 or more."
        )
