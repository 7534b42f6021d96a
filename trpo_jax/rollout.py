"""Policy and environments to trajectories."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from trpo_jax.envs.base import Environment
from trpo_jax.envs.episodes import Episode, Transition, advance_episode, start_episode


def start_episodes(env: Environment, key: PRNGKeyArray, num_envs: int) -> Episode:
    """Returns `num_envs` fresh episodes, leading axis `[B]`."""
    return jax.vmap(partial(start_episode, env))(jax.random.split(key, num_envs))


def rollout(
    env: Environment,
    act: Callable[[PRNGKeyArray, Num[Array, "B ..."]], Num[Array, "B ..."]],
    key: PRNGKeyArray,
    episodes: Episode,
    num_steps: int,
) -> tuple[Episode, Transition]:
    """Runs B environments for T = `num_steps` steps each; episodes restart where they end.

    Each new episode begins with a reset of its own. Where resets are expensive, B of them are made
    before the first step, and each episode begins from one drawn of these.

    Args:
        env: the environment.
        act: `(key, observations [B, ...]) -> actions [B, ...]`.
        key: consumed by actions, steps and resets.
        episodes: running episodes, leading axis `[B]`.
        num_steps: T.

    Returns:
        The episodes to go on with, and a trajectory with leading axes `[T, B]`.
    """
    remember = lambda key, episodes, memory: (act(key, episodes.observation), (), memory)
    episodes, _, trajectory = rollout_with_memory(env, remember, key, episodes, (), num_steps)
    return episodes, trajectory


def rollout_with_memory(
    env: Environment,
    act: Callable[[PRNGKeyArray, Episode, Any], tuple[Num[Array, "B ..."], Any, Any]],
    key: PRNGKeyArray,
    episodes: Episode,
    memory: Any,
    num_steps: int,
) -> tuple[Episode, Any, Transition]:
    """Does what `rollout` does, for a policy that remembers something from step to step.

    Args:
        env: the environment.
        act: `(key, episodes [B], memory) -> (actions [B, ...], context, memory)`; a context is
            what the actions depended on besides the observations, and is kept in the trajectory.
            Episodes of length 0 have just started.
        key: consumed by actions, steps and resets.
        episodes: running episodes, leading axis `[B]`.
        memory: what the policy remembers, any pytree.
        num_steps: T.

    Returns:
        The episodes and the memory to go on with, and a trajectory with leading axes `[T, B]`.
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
        episodes, memory = carry
        act_key, env_keys = keys
        actions, context, memory = act(act_key, episodes, memory)
        episodes, transition = advance(env_keys, episodes, actions)
        return (episodes, memory), transition._replace(context=context)

    env_keys = jax.random.split(env_key, (num_steps, num_envs, 2))
    keys = jax.random.split(act_key, num_steps), env_keys
    (episodes, memory), trajectory = jax.lax.scan(body, (episodes, memory), keys)
    return episodes, memory, trajectory


def episode_metrics(trajectory: Transition) -> dict[str, Float[Array, ""]]:
    """Returns means over the episodes that ended in a trajectory `[T, B]`, and their number.

    Those of which the beginning is missing (see `stagger`) count for nothing.

    Returns:
        `episodic_return` (undiscounted) and `episode_length`, NaN if none ended, and
        `num_episodes`; float32 scalars.
    """
    done = trajectory.done & ~jnp.isnan(trajectory.total_reward)  # NaN: not all of it was seen
    count = jnp.sum(done)

    def mean(x):
        return jnp.where(count > 0, jnp.sum(jnp.where(done, x, 0)) / jnp.maximum(count, 1), jnp.nan)

    return {
        "episodic_return": mean(trajectory.total_reward),
        "episode_length": mean(trajectory.length),
        "num_episodes": count.astype(jnp.float32),
    }
