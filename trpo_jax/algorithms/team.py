"""From the policy's step of one agent to that of a team (Kuba et al. 2022, arXiv:2109.11251).

The advantage of a joint action is a sum over the agents in any order: of what each one's action
adds to those of the agents before it (lemma 1). So the agents take their steps one after another,
in an order that is drawn anew for each update, and each sees

    E[ratio_i(a_i | o_i) M A],    M = product of ratio_j over the agents j before i,

with A the advantages of the team, and ratio_j the new probability of j's action over the old one.
M is 1 for the first agent, and an agent whose step was rejected leaves it alone. The code uses
M (A - m) + m instead of M A, with m the mean of A. The expectation is the same, and the noise of M
does not grow with m.

Agents that share their parameters have no order: the argument does not hold for them. They take
one step together, in which each agent counts as an environment of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.agent import Agent
from trpo_jax.algorithms import on_policy
from trpo_jax.algorithms.base import Algorithm, Metrics
from trpo_jax.algorithms.groups import prepare
from trpo_jax.algorithms.on_policy import Batch
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import split_part
from trpo_jax.errors import ConfigurationError
from trpo_jax.teams import BESIDE, folded, keys_of, row_policy, team_policy, team_rows

EACH = ("kl", "step_rejected")  # metrics that are kept of each agent too
LARGEST = ("kl_max",)  # metrics whose largest counts; of all others the mean


def make_team_algorithm(
    env: Environment, config: Any, agent: Agent | None, step_arguments: Callable[..., Any]
) -> Algorithm:
    """Returns the algorithm whose agents take the policy's steps of an algorithm for one agent.

    Args:
        env: the environment of a team.
        config: the config.
        agent: the policy of one agent, for its rows, and the critic of the team; what the config
            describes if None.
        step_arguments: `(env, config, agent) -> arguments of on_policy.make` of an algorithm for
            one agent, such as `trpo.step_arguments`.

    Raises:
        ConfigurationError: if a field's value cannot work, or the environment has no team.
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
    """Raises a ConfigurationError if the noise of an agent's actions goes on over time."""
    if jax.tree.leaves(agent.exploration.init(jax.random.key(0), 1)):
        raise ConfigurationError(
            "The exploration of the agent carries noise from step to step, which a team cannot. "
            "Choose trpo_jax.exploration.white()."
        )


def compound(
    advantages: Float[Array, "T B"], log_ratio: Float[Array, "T B"]
) -> Float[Array, "T B"]:
    """Returns A + (M - 1) (A - mean A), what the steps of the agents before leave of advantages.

    Args:
        advantages: A.
        log_ratio: the logarithm of M.
    """
    return advantages + jnp.expm1(log_ratio) * (advantages - jnp.mean(advantages))


def of_agent(tree: Any, index: Any, axis: int = 0) -> Any:
    """Returns one agent's part of arrays with an axis of agents."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis), tree)


def batch_of_agent(batch: Batch, index: Any) -> Batch:
    """Returns what one agent saw and did in the batch of a team, `[T, B]`."""
    observations, actions, carry = of_agent(
        (batch.observations, batch.actions, batch.carry), index, 2
    )
    return batch._replace(observations=observations, actions=actions, carry=carry)


def as_environments(batch: Batch, count: int) -> Batch:
    """Returns the batch of a team in which each agent counts as an environment, `[T, B N]`."""
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
    """Returns means over the agents of metrics `[N]`, the largest of some, and some of each agent.

    Those of each agent are named like `kl_agent_0`.
    """
    found = {name: (jnp.max if name in LARGEST else jnp.mean)(x) for name, x in metrics.items()}
    for name in EACH:
        for index, value in enumerate(metrics.get(name, ())):
            found[f"{name}_agent_{index}"] = value
    return found
