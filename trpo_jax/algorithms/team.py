"""Makes the policy step of a team from the step of one agent (Kuba et al. 2022, arXiv:2109.11251).

Put the agents in any order. The advantage of a joint action is then a sum with one term for each
agent: the advantage that the action of this agent adds, given the actions of the agents before it
(lemma 1). So the agents take their steps one after another. Each update draws a random order. The
surrogate of agent i is

    E[ratio_i(a_i | o_i) M A],    M = product of ratio_j over the agents j before i.

A is the advantage of the team. ratio_j is the new probability of the action of agent j, divided by
the old probability. M is 1 for the first agent. A rejected step does not change M. The code uses
M (A - m) + m instead of M A, where m is the mean of A. The expectation is the same, but the noise
of M does not grow with m.

Agents that share their parameters cannot take steps one after another. They take one step together,
in which each agent counts as one more environment.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import on_policy
from trpo_jax.algorithms.base import Algorithm, Metrics
from trpo_jax.algorithms.checks import prepare
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.teams import BESIDE, folded, keys_of, row_policy, team_policy, team_rows

EACH = ("kl", "step_rejected")  # metrics that are also reported for each agent
LARGEST = ("kl_max",)  # metrics of a team that are a maximum over the agents, not a mean


def make_team_algorithm(
    env: Environment, config: Any, agent: Agent | None, step_arguments: Callable[..., Any]
) -> Algorithm:
    """Returns an algorithm for a team, in which every agent takes the step of a given algorithm.

    Args:
        env: an environment with several agents.
        config: the config.
        agent: the policy of one team member (it sees the observations of this member), and the
            critic of the team; made from the config if None.
        step_arguments: `(env, config, agent) -> arguments of on_policy.make` of an algorithm for
            one agent, such as `trpo.step_arguments`.

    Raises:
        ConfigurationError: if the value of a field cannot work, or the environment has one agent.
    """
    config, agent = prepare(env, config, agent)
    require_white(agent)
    rows, count, shared = team_rows(env, config), env.num_agents, config.share_parameters
    policy = row_policy(agent.policy)
    alone = env._replace(observation=rows.observation, action=rows.action, critic_observation=None)
    one = agent._replace(policy=policy, critic_observation=None)
    plain = step_arguments(alone, config, one)
    step, init_one = plain["policy_step"], plain.get("init_step_state", lambda key, params: ())

    def init_step_state(key, params):
        init = init_one if shared else jax.vmap(init_one)
        return init(key if shared else keys_of(key, count), params)

    def policy_step(key, step_input):
        shown, _ = split_part(step_input.batch.observations, env.critic_observation)
        batch = step_input.batch._replace(observations=rows.of(shown, 2))
        step_input = step_input._replace(batch=batch)
        return together(key, step_input) if shared else in_turn(key, step_input)

    def together(key, step_input):
        return step(key, step_input._replace(batch=as_environments(step_input.batch, count)))

    def in_turn(key, step_input):
        order_key = jax.random.fold_in(key, BESIDE + 1)
        order = jax.random.permutation(order_key, count)

        def next_agent(carry, turn):
            params, states, log_ratio = carry
            index, step_key = turn
            own, own_state = of_agent((params, states), index)
            batch = batch_of_agent(step_input.batch, index)
            batch = batch._replace(advantages=compound(batch.advantages, log_ratio))
            actor = step_input.actor._replace(policy_params=own)
            new, new_state, metrics = step(
                step_key, step_input._replace(actor=actor, step_state=own_state, batch=batch)
            )
            put = lambda x, new: x.at[index].set(new)
            params, states = jax.tree.map(put, (params, states), (new, new_state))
            return (params, states, log_ratio + _log_ratio(one, own, new, batch)), metrics

        start = step_input.actor.policy_params, step_input.step_state
        nothing = jnp.zeros_like(step_input.batch.advantages)
        turns = order, keys_of(key, count)
        (params, states, _), metrics = jax.lax.scan(next_agent, (*start, nothing), turns)
        return params, states, team_metrics({k: x[jnp.argsort(order)] for k, x in metrics.items()})

    joint = agent._replace(policy=team_policy(policy, rows, count, shared))
    return on_policy.make(
        env, config, agent=joint, policy_step=policy_step, init_step_state=init_step_state
    )


def require_white(agent: Agent) -> None:
    """Raises a ConfigurationError if the noise of an agent's actions is not independent."""
    if jax.tree.leaves(agent.exploration.init(jax.random.key(0), 1)):
        raise ConfigurationError(
            "The exploration of the agent carries noise from step to step, which a team cannot do. "
            "Choose trpo_jax.exploration.white()."
        )


def compound(
    advantages: Float[Array, "T B"], log_ratio: Float[Array, "T B"]
) -> Float[Array, "T B"]:
    """Returns A + (M - 1) (A - mean A), the advantages after the steps of the earlier agents.

    Args:
        advantages: A.
        log_ratio: logarithm of M.

    Examples:
        >>> compound(jnp.array([[-1.0, 1.0]]), jnp.log(jnp.array([[1.0, 2.0]])))
        Array([[-1.,  2.]], dtype=float32)
    """
    return advantages + jnp.expm1(log_ratio) * (advantages - jnp.mean(advantages))


def of_agent(tree: Any, index: Any, axis: int = 0) -> Any:
    """Returns the part of one agent, from arrays with an axis of agents."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis), tree)


def batch_of_agent(batch: Batch, index: Any) -> Batch:
    """Returns the batch `[T, B]` of one agent: its own observations, actions and memory."""
    observations, actions, carry = of_agent(
        (batch.observations, batch.actions, batch.carry), index, 2
    )
    return batch._replace(observations=observations, actions=actions, carry=carry)


def as_environments(batch: Batch, count: int) -> Batch:
    """Returns the batch `[T, B N]` of a team, in which each of N agents is an environment."""
    of_each = lambda x: jnp.repeat(x, count, axis=1)
    observations, actions, carry = folded((batch.observations, batch.actions, batch.carry))
    return batch._replace(
        observations=observations,
        actions=actions,
        carry=carry,
        first=of_each(batch.first),
        advantages=of_each(batch.advantages),
        values=of_each(batch.values),
        targets=of_each(batch.targets),
    )


def _log_ratio(agent: Agent, old: Any, new: Any, batch: Batch) -> Float[Array, "T B"]:
    """Returns the logarithm of new(a|o) / old(a|o) of one agent's actions."""
    with jax.default_matmul_precision("float32"):
        of = lambda params: agent.distributions(params, batch).log_prob(batch.actions)
        return of(new) - of(old)


def team_metrics(metrics: dict[str, Array]) -> Metrics:
    """Returns the metrics of a team from the metrics of its agents.

    Each metric is the mean over the agents, or the maximum if it is in `LARGEST`. The metrics in
    `EACH` are also reported for each agent, with names such as `kl_agent_0`.

    Args:
        metrics: arrays `[N]`, with one number for each agent.

    Examples:
        >>> {name: float(x) for name, x in team_metrics({"kl": jnp.array([0.25, 0.75])}).items()}
        {'kl': 0.5, 'kl_agent_0': 0.25, 'kl_agent_1': 0.75}
    """
    found = {name: (jnp.max if name in LARGEST else jnp.mean)(x) for name, x in metrics.items()}
    for name in EACH:
        for index, value in enumerate(metrics.get(name, ())):
            found[f"{name}_agent_{index}"] = value
    return found
