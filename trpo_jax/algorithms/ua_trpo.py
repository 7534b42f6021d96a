"""Uncertainty-aware TRPO (Queeney, Paschalidis and Cassandras 2021, arXiv:2012.10791).

With few samples, only a confidence ellipsoid of the surrogate's gradient is known. Its shape is the
covariance Sigma of the gradient estimate. Its size R^2 assumes a normal distribution
(`trpo_jax.confidence`). A step u gains g.u - R sqrt(u^T Sigma u) for the worst gradient in the
ellipsoid: the mean gain minus R standard deviations. The metric M = F + c R^2 Sigma penalises this
deviation, which shortens steps along uncertain directions. With c = 0 the algorithm is TRPO. It
also approaches TRPO as the number of environments grows.

The authors project M onto a random subspace. Here, conjugate gradient uses products with M, which
need no more passes through the network than TRPO. The dimension d in R^2 is the dimension of the
Krylov space. The Krylov space depends on the gradient, so the confidence level 1 - alpha is only
nominal.
"""

import jax
import jax.numpy as jnp
import optax

from trpo_jax.advantages import init_spread
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import (
    advantage_strength,
    fisher_precision,
    kl_radius,
    length_options,
    line_search_options,
    require_every_step,
    require_solver,
    solver_of,
)
from trpo_jax.algorithms.on_policy import reward_surrogate
from trpo_jax.confidence import (
    covariance_product,
    directional_means,
    noise_gradient,
    output_gradient,
    squared_radius,
)
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import gauss_newton_product, mean_fisher_product
from trpo_jax.trust_region import natural_step, search_along, surrogate_gradient

Config = configs.UATRPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns uncertainty-aware TRPO on an environment; see `trpo.make` for the arguments.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> config = trpo_jax.ua_trpo.Config(c=1.0, num_envs=4, num_steps=64)
        >>> algorithm = trpo_jax.ua_trpo.make(env, config)
        >>> state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)))
        >>> bool(metrics["effective_radius"] < 0.01)  # KL radius left after the penalty
        True
    """
    config, agent = prepare(env, config or Config(), agent)
    require_solver(env, config, agent)
    require_every_step(config, "the covariance of the gradient needs every step")
    if config.num_envs < 2:
        raise ConfigurationError(
            f"num_envs = {config.num_envs} gives no spread between environments, but ua_trpo needs "
            "it to measure the uncertainty of the gradient. Choose at least 2."
        )
    batch_size = config.num_envs * config.num_steps
    krylov = min(config.cg_iters, config.num_envs - 1)
    # With c = 0 the term is left out, so the step is TRPO's, bit for bit: adding 0 could round.
    certain = isinstance(config.c, float | int) and config.c == 0

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        spread, strength = advantage_strength(config, step_input)
        max_kl = kl_radius(env, config, step_input.num_updates, batch_size)
        distribution_fn = lambda p: agent.distributions(p, batch)
        surrogate = reward_surrogate(config, batch)
        radius = squared_radius(krylov, config.num_envs, config.alpha)
        radius = radius.astype(batch.advantages.dtype)
        with jax.default_matmul_precision("float32"):
            old = distribution_fn(params)
            gradients = output_gradient(surrogate, old)

        def metric(distribution, tangent):
            fisher = mean_fisher_product(distribution, tangent)
            if certain:
                return fisher
            covariance = covariance_product(gradients, tangent)
            return optax.tree.add_scale(fisher, config.c * radius, covariance)

        with fisher_precision(config):
            product = gauss_newton_product(distribution_fn, params, metric)
        solve = solver_of(env, config, agent, params, batch, product)
        full = natural_step(
            surrogate_gradient(params, distribution_fn, surrogate),
            solve,
            max_kl=max_kl,
            **length_options(env, config, strength),
        )
        with jax.default_matmul_precision("float32"):
            _, tangent = jax.jvp(distribution_fn, (params,), (full.step,))
            fisher_tangent = mean_fisher_product(old, tangent)
            _, pull_back = jax.vjp(distribution_fn, params)
            (noise,) = pull_back(noise_gradient(key, gradients))
        params, info = search_along(
            params,
            distribution_fn,
            surrogate,
            full,
            max_kl=max_kl,
            **line_search_options(config),
        )
        confidence = {
            "confidence_radius": jnp.sqrt(radius),
            "effective_radius": 0.5 * optax.tree.vdot(tangent, fisher_tangent),
            "step_uncertainty": jnp.std(directional_means(gradients, tangent), ddof=1),
            "noise_floor": optax.tree.vdot(noise, solve(noise).x),
        }
        return params, spread, info._asdict() | {"advantage_strength": strength} | confidence

    return on_policy.make(
        env, config, agent=agent, policy_step=policy_step, init_step_state=init_spread
    )
