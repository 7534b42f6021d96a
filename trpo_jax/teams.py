"""Teams: the policies of N agents as one policy, and a critic for all of them.

An observation of a team has an axis of agents behind its batch axes, `[..., N, ...]`, and so has
the distribution of its actions. Each agent has a policy for its rows, with parameters of its own,
or all agents share the parameters of one policy.
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
from trpo_jax.envs.base import (
    MASK,
    Agents,
    ArraySpec,
    Box,
    Environment,
    ObservationSpec,
    split_mask,
    split_part,
    with_parts,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import seen_spec

AGENT = "agent"  # part of a row that says one-hot whose it is
USED = "used_components"  # part of a row that says which components of an action are the agent's
BESIDE = 2**31  # `fold_in(key, i)` is `split(key, n)[i]`, and no split has as many keys


class Rows(NamedTuple):
    """What one agent of a team sees and gives.

    Attributes:
        observation: spec of what its policy sees.
        action: spec of what its policy gives.
        of: `(observations [*batch, N, ...], number of batch axes) -> rows`, the observations with
            what each agent's row has beside.
    """

    observation: ObservationSpec
    action: Any
    of: Callable[[Any, int], Any]


def rows_of(observation: ObservationSpec, action: Agents, numbered: bool) -> Rows:
    """Returns what one agent of a team sees and gives.

    Where the actions of the agents differ, a row also says which part of an action is its agent's.

    Args:
        observation: what the policies see, each array with an axis of agents.
        action: what the team gives.
        numbered: whether a row says whose it is.

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
                f"The observation of a team has a part {name!r}, and the rows of its agents have "
                "a part of that name beside. Give it another name, in a wrapper for instance."
            )

    def of(observations, axes):
        batch = jax.tree.leaves(observations)[0].shape[:axes]
        added = {name: jnp.broadcast_to(x, (*batch, *x.shape)) for name, x in constant.items()}
        if masked:
            added[MASK] = action.legal(split_mask(observations)[1], batch)
        return with_parts(observations, **added) if added else observations

    return Rows(with_parts(row, **parts) if parts or constant else row, padded, of)


def row_policy(policy: Policy) -> Policy:
    """Returns a policy that leaves alone the components of an action that are not its agent's.

    Where a row has the part `used_components`, all others have a standard normal distribution,
    whatever the parameters. They change no probability ratio, no KL divergence and no Fisher
    matrix, and add a constant to the entropy.

    Args:
        policy: a policy that sees rows without that part.
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
    """Returns the policies of N agents as one, whose distributions have an axis of agents.

    Args:
        policy: of one agent, for its rows.
        rows: what each agent sees.
        count: N.
        shared: whether all agents have the same parameters; otherwise these have a leading axis.
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
    """Returns the policy of a team that settings describe; see `build_policy`."""
    rows = rows_of(observation, action, share_parameters)
    policy = row_policy(build_policy(rows.observation, rows.action, **settings))
    return team_policy(policy, rows, action.count, share_parameters)


def make_team(env: Environment, config: Any) -> Agent:
    """Returns the policy of one agent of a team, and the critic of the team, of a config.

    The critic sees the state of the team, if the environment shows one, and otherwise the
    observations of all agents.

    Args:
        env: the environment of a team.
        config: of an algorithm for teams.
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
    """Returns what one agent of a team sees and gives, with a config."""
    shown, _ = split_part(env.observation, env.critic_observation)
    return rows_of(shown, env.action, config.share_parameters)


def _central(env: Environment) -> tuple[ObservationSpec, Callable[[Any, int], Any]]:
    """Returns what the critic of a team sees, and how it comes of what networks see."""
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
    """Returns a key for each of N = `count` agents; the first has the key it would have alone."""
    others = jax.random.split(jax.random.fold_in(key, BESIDE), count)[1:]
    return jnp.concatenate([key[None], others])


def folded(tree: PyTree[Array], axis: int = 1) -> PyTree[Array]:
    """Returns arrays `[.., B, N, ..]` as `[.., B N, ..]`: agents count as environments.

    Args:
        tree: a tree of arrays.
        axis: the axis of environments; that of agents comes next.
    """
    fold = lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.tree.map(fold, tree)


def unfolded(tree: PyTree[Array], count: int, axis: int = 1) -> PyTree[Array]:
    """Returns arrays with an axis of N = `count` agents again; see `folded`."""
    unfold = lambda x: x.reshape(*x.shape[:axis], -1, count, *x.shape[axis + 1 :])
    return jax.tree.map(unfold, tree)
