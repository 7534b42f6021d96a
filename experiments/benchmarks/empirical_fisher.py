"""TRPO with the empirical Fisher matrix: the covariance of the gradients of log-probabilities.

The paper compares it with the exact Fisher matrix (Schulman et al. 2015, arXiv:1502.05477,
figure 4). The exact matrix averages over all actions of a state, and the empirical matrix takes the
action that was sampled. `train.py --algorithm benchmarks.empirical_fisher` trains with it.
"""

from typing import Any

from trpo_jax.agent import Agent
from trpo_jax.algorithms import configs, on_policy, trpo
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.natural_gradient import solver_of
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.fisher import MatrixVectorProduct, gauss_newton_product
from trpo_jax.trust_region import Solve

Config = configs.TRPO


def make(
    env: Environment, config: Config | None = None, *, agent: Agent | None = None
) -> Algorithm:
    """Returns TRPO with the empirical Fisher matrix on an environment."""
    config, agent = prepare(env, config or Config(), agent)
    step = trpo.step_arguments(env, config, agent, make_empirical_solve)
    return on_policy.make(env, config, agent=agent, **step)


def make_empirical_solve(
    env: Environment, config: Config, agent: Agent, key: Any, params: Any, batch: Batch
) -> Solve:
    """Returns `gradient -> x`, which solves (F + damping I) x = gradient with the empirical F."""
    return solver_of(env, config, agent, params, batch, empirical_product(agent, params, batch))


def empirical_product(agent: Agent, params: Any, batch: Batch) -> MatrixVectorProduct:
    """Returns `v -> (1/N) sum_n s_n s_n^T v`, with s_n the gradient of a log-probability."""
    log_probs = lambda p: agent.distributions(p, batch).log_prob(batch.actions)
    return gauss_newton_product(log_probs, params, lambda outputs, u: u / outputs.size)
