"""TRPO with the empirical Fisher matrix: the covariance of the gradients of log-probabilities.

The paper compares it with the exact Fisher matrix (Schulman et al. 2015, arXiv:1502.05477,
figure 4). The exact matrix averages over all actions of a state, and the empirical matrix takes the
action that was sampled. `train.py --algorithm benchmarks.empirical_fisher` trains with it.
"""

from typing import Any

from trpo_jax.advantages import standardize
from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import (
    kl_radius,
    require_solver,
    solver_of,
    step_options,
)
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.fisher import MatrixVectorProduct, gauss_newton_product
from trpo_jax.trust_region import importance_sampled_surrogate, trust_region_step

Config = configs.TRPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with the empirical Fisher matrix on an environment."""
    config, agent = prepare(env, config or Config(), agent)
    require_solver(env, config, agent)
    batch_size = config.num_envs * config.num_steps

    def policy_step(key, step_input):
        params, batch = step_input.actor.policy_params, step_input.batch
        product = empirical_product(agent, params, batch)
        advantages = standardize(batch.advantages, batch.values)
        params, info = trust_region_step(
            params,
            lambda p: agent.distributions(p, batch),
            importance_sampled_surrogate(batch.actions, advantages, config.entropy_coef),
            solver_of(env, config, agent, params, batch, product),
            max_kl=kl_radius(env, config, step_input.num_updates, batch_size),
            **step_options(env, config),
        )
        return params, (), info._asdict()

    return on_policy.make(env, config, agent=agent, policy_step=policy_step)


def empirical_product(agent: Agent, params: Any, batch: Batch) -> MatrixVectorProduct:
    """Returns `v -> (1/N) sum_n s_n s_n^T v`, with s_n the gradient of a log-probability."""
    log_probs = lambda p: agent.distributions(p, batch).log_prob(batch.actions)
    return gauss_newton_product(log_probs, params, lambda outputs, u: u / outputs.size)
