"""Teams: the policies of N agents as one policy, and one critic for the whole team.

The observations of a team, and the distributions of its actions, have an axis of agents after
their batch axes, `[..., N, ...]`. The slice of one agent along that axis is called the row of the
agent. Either each agent has its own parameters, or all agents share the parameters of one policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from trpo_jax.agent import Agent, Policy, build_policy, critic_of, make_agent
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import (
    MASK,
    Agents,
    ArraySpec,
    Box,
    ObservationSpec,
    split_mask,
    split_part,
    with_parts,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import seen_spec

AGENT = "agent"  # part of a row: the number of the agent, as a one-hot vector
USED = "used_components"  # part of a row: which components of an action the agent uses
BESIDE = 2**31  # `fold_in(key, i)` is `split(key, n)[i]`, and no split has so many keys


class Rows(NamedTuple):
    """The observations and the actions of one agent of a team.

    Attributes:
        observation: spec of the observations that the policy of the agent sees.
        action: spec of the actions that the policy of the agent chooses.
        of: `(observations [*batch, N, ...], number of batch axes) -> rows`. Adds the further parts
            of each row to the observations.
    """

    observation: ObservationSpec
    action: Any
    of: Callable[[Any, int], Any]


def rows_of(observation: ObservationSpec, action: Agents, numbered: bool) -> Rows:
    """Returns the observations and the actions of one agent of a team.

    If the agents have different actions, a row also shows which part of an action the agent uses.

    Args:
        observation: spec of the observations of the team. Each array has an axis of agents.
        action: the actions of the team.
        numbered: whether a row shows the number of its agent.

    Raises:
        ConfigurationError: if a part of the observation has a name that a row needs.
    """
    padded, uneven = action.padded, not action.used.all()
    constant = {AGENT: np.eye(action.count, dtype=np.float32)} if numbered else {}
    row = jax.tree.map(lambda spec: replace(spec, shape=tuple(spec.shape[1:])), observation)
    parts = {name: ArraySpec(x.shape[1:], x.dtype) for name, x in constant.items()}
    masked = uneven and not isinstance(padded, Box)
    if masked:
        parts[MASK] = ArraySpec(action.used.shape[1:], np.dtype(bool))
    if uneven and not masked:
        constant[USED] = action.used
    for name in constant:
        if isinstance(observation, Mapping) and name in observation:
            raise ConfigurationError(
                f"The observation of a team has a part {name!r}. The library adds a part of that "
                "name for each agent. Give your part another name, for instance in a wrapper."
            )

    def of(observations, axes):
        batch = jax.tree.leaves(observations)[0].shape[:axes]
        added = {name: jnp.broadcast_to(x, (*batch, *x.shape)) for name, x in constant.items()}
        if masked:
            added[MASK] = action.legal(split_mask(observations)[1], batch)
        return with_parts(observations, **added) if added else observations

    return Rows(with_parts(row, **parts) if parts or constant else row, padded, of)


def row_policy(policy: Policy) -> Policy:
    """Returns a policy for rows with the part `used_components`.

    The components of an action that the agent does not use get a standard normal distribution,
    which does not depend on the parameters. So they change no probability ratio, no KL divergence
    and no Fisher matrix. They add a constant to the entropy.

    Args:
        policy: a policy that sees rows without the part `used_components`.
    """

    def within(distribution: Distribution, used: Any) -> Distribution:
        if used is None:
            return distribution
        return jax.tree.map(lambda x: jnp.where(used, x, 0.0), distribution)

    def step(params, carry, observations):
        seen, used = split_part(observations, USED)
        carry, distribution = policy.step(params, carry, seen)
        return carry, within(distribution, used)

    def unroll(params, carry, observations, first):
        seen, used = split_part(observations, USED)
        return within(policy.unroll(params, carry, seen, first), used)

    return policy._replace(step=step, unroll=unroll)


def team_policy(policy: Policy, rows: Rows, count: int, shared: bool) -> Policy:
    """Returns the policies of N agents as one policy. Its distributions have an axis of agents.

    Args:
        policy: the policy of one agent, for its rows.
        rows: the observations and the actions of each agent.
        count: N.
        shared: whether all agents share one set of parameters. If not, the parameters have a
            leading axis `[N]`.
    """
    if shared:

        def step(params, carry, observations):
            given = folded((carry, rows.of(observations, 1)), 0)
            return unfolded(policy.step(params, *given), count, 0)

        def unroll(params, carry, observations, first):
            given = folded(carry, 0), folded(rows.of(observations, 2))
            return unfolded(policy.unroll(params, *given, jnp.repeat(first, count, 1)), count)

        carry = lambda num_envs: unfolded(policy.carry(num_envs * count), count, 0)
        return policy._replace(carry=carry, step=step, unroll=unroll)

    def carry(num_envs):
        return jax.tree.map(lambda x: jnp.stack([x] * count, 1), policy.carry(num_envs))

    step_all = jax.vmap(policy.step, (0, 1, 1), 1)
    unroll_all = jax.vmap(policy.unroll, (0, 1, 2, None), 2)
    return policy._replace(
        init=lambda key: jax.lax.map(policy.init, keys_of(key, count)),
        carry=carry,
        step=lambda params, carry, x: step_all(params, carry, rows.of(x, 1)),
        unroll=lambda params, carry, x, first: unroll_all(params, carry, rows.of(x, 2), first),
    )


def build_team_policy(
    observation: ObservationSpec, action: Agents, *, share_parameters: bool, **settings: Any
) -> Policy:
    """Returns the policy of a team that these settings describe. See `build_policy`."""
    rows = rows_of(observation, action, share_parameters)
    policy = row_policy(build_policy(rows.observation, rows.action, **settings))
    return team_policy(policy, rows, action.count, share_parameters)


def make_team(env: Environment, config: Any) -> Agent:
    """Returns an agent that has the policy of one agent of a team, and the critic of the team.

    If the environment shows the state of the whole team, the critic sees that state. Otherwise the
    critic sees the observations of all agents.

    Args:
        env: the environment of a team.
        config: config of an algorithm for teams. It describes the policy and the critic.

    Examples:
        >>> env = trpo_jax.make_env("native/ClimbingGame")  # 2 agents, 3 actions each
        >>> agent = trpo_jax.make_team(env, trpo_jax.hatrpo.Config())
        >>> params = agent.policy.init(jax.random.key(0))
        >>> carry, distributions = agent.policy.step(params, (), jnp.ones((5, 1)))
        >>> distributions.logits.shape
        (5, 3)
    """
    rows = team_rows(env, config)
    alone = env._replace(observation=rows.observation, action=rows.action, critic_observation=None)
    agent = make_agent(alone, config)
    policy = agent.policy
    settings = {**policy.settings, "share_parameters": config.share_parameters}
    return agent._replace(
        policy=policy._replace(settings=settings),
        critic=critic_of(*_central(env), config),
        critic_observation=env.critic_observation,
    )


def team_rows(env: Environment, config: Any) -> Rows:
    """Returns the observations and the actions of one agent of a team, for a config."""
    shown, _ = split_part(env.observation, env.critic_observation)
    return rows_of(shown, env.action, config.share_parameters)


def _central(env: Environment) -> tuple[ObservationSpec, Callable[[Any, int], Any]]:
    """Returns the spec of the observations of the critic of a team, and the function to get them.

    The function is `(observations as networks see them, number of batch axes) -> observations of
    the critic`.
    """
    if env.critic_observation:
        name = env.critic_observation
        return env.observation[name], lambda observations, axes: observations[name]
    seen = jax.tree.leaves(seen_spec(env.observation))
    size = sum(int(np.prod(spec.shape)) for spec in seen)

    def view(observations, axes):
        leaves = jax.tree.leaves(split_mask(observations)[0])
        return jnp.concatenate([x.reshape(*x.shape[:axes], -1) for x in leaves], axis=-1)

    return ArraySpec((size,), np.dtype(np.float32)), view


def keys_of(key: PRNGKeyArray, count: int) -> Key[Array, " N"]:
    """Returns a key for each of N = `count` agents. The first agent gets `key` itself."""
    others = jax.random.split(jax.random.fold_in(key, BESIDE), count)[1:]
    return jnp.concatenate([key[None], others])


def folded(tree: PyTree[Array], axis: int = 1) -> PyTree[Array]:
    """Returns arrays `[..., B, N, ...]` as arrays `[..., B * N, ...]`.

    Args:
        tree: a tree of arrays.
        axis: the axis of environments. The axis of agents is the next one.
    """
    fold = lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.tree.map(fold, tree)


def unfolded(tree: PyTree[Array], count: int, axis: int = 1) -> PyTree[Array]:
    """Returns arrays `[..., B * N, ...]` as arrays `[..., B, N, ...]`, the inverse of `folded`."""
    unfold = lambda x: x.reshape(*x.shape[:axis], -1, count, *x.shape[axis + 1 :])
    return jax.tree.map(unfold, tree)
