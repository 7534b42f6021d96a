"""Rollouts: runs a policy in an environment and returns the trajectories."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from trpo_jax.distributions import mask_logits
from trpo_jax.envs.base import Environment, cost_metrics
from trpo_jax.envs.episodes import Episode, Transition, advance_episode, start_episode
from trpo_jax.envs.specs import (
    ActionSpec,
    Agents,
    Box,
    Discrete,
    MultiDiscrete,
    choices_of,
    split_choices,
)

Act = Callable[[PRNGKeyArray, Episode, Any], tuple[Any, Any, Any]]


def start_episodes(env: Environment, key: PRNGKeyArray, num_envs: int) -> Episode:
    """Returns `num_envs` new episodes with the leading axis `[B]`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> episodes = start_episodes(env, jax.random.key(0), num_envs=4)
        >>> episodes.observation.shape
        (4, 4)
    """
    return jax.vmap(partial(start_episode, env))(jax.random.split(key, num_envs))


def rollout(
    env: Environment,
    act: Callable[[PRNGKeyArray, Any], Any],
    key: PRNGKeyArray,
    episodes: Episode,
    num_steps: int,
) -> tuple[Episode, Transition]:
    """Runs B environments for T = `num_steps` steps. When an episode ends, another one starts.

    Each episode starts with its own reset. If resets are expensive, B resets are made before the
    first step. Each episode that starts later begins from one of them, drawn at random.

    Args:
        env: the environment.
        act: `(key, observations [B, ...]) -> actions [B, ...]`.
        key: consumed by actions, steps and resets.
        episodes: running episodes with the leading axis `[B]`.
        num_steps: T.

    Returns:
        The episodes to continue with, and a trajectory with leading axes `[T, B]`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> episodes = start_episodes(env, jax.random.key(0), num_envs=4)
        >>> act = lambda key, observations: jax.random.randint(key, (4,), 0, 2)
        >>> episodes, trajectory = rollout(env, act, jax.random.key(1), episodes, num_steps=8)
        >>> trajectory.observation.shape, trajectory.reward.shape
        ((8, 4, 4), (8, 4))
    """
    stateless = lambda key, episodes, state: (act(key, episodes.observation), (), state)
    episodes, _, trajectory = rollout_with_state(env, stateless, key, episodes, (), num_steps)
    return episodes, trajectory


def rollout_with_state(
    env: Environment,
    act: Act,
    key: PRNGKeyArray,
    episodes: Episode,
    acting_state: Any,
    num_steps: int,
) -> tuple[Episode, Any, Transition]:
    """Runs environments as `rollout` does, with an `act` that carries a state from step to step.

    Args:
        env: the environment.
        act: `(key, episodes [B], acting_state) -> (actions [B, ...], noise, acting_state)`. The
            actions depend on `noise` as well as on the observations. The trajectory stores it.
        key: consumed by actions, steps and resets.
        episodes: running episodes with the leading axis `[B]`.
        acting_state: the state that `act` carries from step to step, any pytree.
        num_steps: T.

    Returns:
        The episodes and the acting state to continue with, and a trajectory `[T, B]`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> episodes = start_episodes(env, jax.random.key(0), num_envs=4)
        >>> act = lambda key, episodes, steps: (jnp.full(4, steps % 2), (), steps + 1)
        >>> episodes, steps, trajectory = rollout_with_state(
        ...     env, act, jax.random.key(1), episodes, acting_state=jnp.array(0), num_steps=8
        ... )
        >>> print(trajectory.action[:, 0], steps)
        [0 1 0 1 0 1 0 1] 8
    """
    num_envs = episodes.length.shape[0]
    act_key, env_key, start_key = jax.random.split(key, 3)
    start = partial(start_episode, env)
    if env.expensive_reset:
        # A compiled step computes a reset for each environment, whether its episode ends or not.
        starts = start_episodes(env, start_key, num_envs)
        start = lambda key: jax.tree.map(
            lambda x: x[jax.random.randint(key, (), 0, num_envs)], starts
        )
    advance = jax.vmap(partial(advance_episode, env, start=start))

    def body(carry, keys):
        episodes, acting_state = carry
        act_key, env_keys = keys
        actions, noise, acting_state = act(act_key, episodes, acting_state)
        episodes, transition = advance(env_keys, episodes, actions)
        return (episodes, acting_state), transition._replace(noise=noise)

    env_keys = jax.random.split(env_key, (num_steps, num_envs, 2))
    keys = jax.random.split(act_key, num_steps), env_keys
    (episodes, acting_state), trajectory = jax.lax.scan(body, (episodes, acting_state), keys)
    return episodes, acting_state, trajectory


def random_actions(
    key: PRNGKeyArray, action: ActionSpec, num_envs: int, mask: Any = None
) -> PyTree[Num[Array, "B ..."]]:
    """Returns B = `num_envs` random actions in the form in which a policy chooses them.

    Discrete actions are uniform among the legal ones. The components of a `Box` action are standard
    normal.

    Args:
        key: consumed by the draws.
        action: the actions that the environment accepts.
        num_envs: B.
        mask: which values of each choice are legal, with the leading axis `[B]`. None for all.

    Examples:
        >>> env = trpo_jax.make_env("Pendulum-v1")
        >>> random_actions(jax.random.key(0), env.action, num_envs=4).shape
        (4, 1)
    """
    if isinstance(action, Agents):
        draw_row = lambda key, mask: random_actions(key, action.padded, num_envs, mask)
        keys = jax.random.split(key, action.count)
        return jax.vmap(draw_row, (0, 1), 1)(keys, action.legal(mask, (num_envs,)))
    parts, structure = jax.tree.flatten(action)
    # A single part uses the key as it is.
    keys = jax.random.split(key, len(parts)) if len(parts) > 1 else [key]
    choices = choices_of(action)
    legal = [None] * len(choices)
    if mask is not None:
        legal = split_choices(mask, (num_envs,), choices)

    def draw(part: Discrete | MultiDiscrete | Box, key: PRNGKeyArray) -> Any:
        if isinstance(part, Box):
            return jax.random.normal(key, (num_envs, part.size), jnp.float32)
        allowed = [legal.pop(0) for _ in part.choices]
        if allowed[0] is None:
            shape = (num_envs, part.size)
            drawn = jax.random.randint(key, shape, 0, jnp.array(part.choices))
            columns = [drawn[:, k] for k in range(part.size)]
        else:
            keys = jax.random.split(key, len(allowed))
            logits = [mask_logits(jnp.zeros(x.shape), x) for x in allowed]
            columns = [jax.random.categorical(*pair) for pair in zip(keys, logits, strict=True)]
        return columns[0] if isinstance(part, Discrete) else tuple(columns)

    return structure.unflatten(draw(*pair) for pair in zip(parts, keys, strict=True))


def episode_metrics(
    trajectory: Transition, costs: Sequence[str] = ()
) -> dict[str, Float[Array, ""]]:
    """Returns means over the episodes that ended in a trajectory `[T, B]`, and their number.

    Episodes that were not seen from their start do not count (see
    `trpo_jax.envs.episodes.stagger`).

    Args:
        trajectory: the trajectory.
        costs: names of the costs of its environment.

    Returns:
        `episodic_return` (undiscounted), `episode_length`, `num_episodes`, `broken_episodes` and
        each of `cost_metrics`, as float32 scalars. Return, length and costs are 0 if `num_episodes`
        is 0. Broken episodes count only in `broken_episodes`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> episodes = start_episodes(env, jax.random.key(0), num_envs=4)
        >>> act = lambda key, observations: jnp.zeros(4, jnp.int32)  # always to the left
        >>> _, trajectory = rollout(env, act, jax.random.key(1), episodes, num_steps=16)
        >>> metrics = episode_metrics(trajectory)
        >>> bool(metrics["num_episodes"] >= 4), bool(metrics["episode_length"] < 12)
        (True, True)
    """
    done = trajectory.done & trajectory.whole
    count = jnp.sum(done)

    def mean(x):
        return jnp.sum(jnp.where(done, x, 0)) / jnp.maximum(count, 1)

    cost_means = [mean(trajectory.total_costs[..., k]) for k in range(len(costs))]
    return {
        "episodic_return": mean(trajectory.total_reward),
        **dict(zip(cost_metrics(costs), cost_means, strict=True)),
        "episode_length": mean(trajectory.length),
        "num_episodes": count.astype(jnp.float32),
        "broken_episodes": jnp.sum(trajectory.broken).astype(jnp.float32),
    }
