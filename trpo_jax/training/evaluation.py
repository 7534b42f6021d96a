"""Returns of a fixed policy over fresh episodes."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num, PRNGKeyArray

from trpo_jax.algorithms.base import Actor
from trpo_jax.distributions import Distribution
from trpo_jax.envs.base import Environment, to_environment_action
from trpo_jax.envs.episodes import step_episode
from trpo_jax.errors import EnvironmentFailure
from trpo_jax.host_rollout import advance_host_episodes, failures_named, start_host_episodes
from trpo_jax.rollout import start_episodes

EVALUATION = 0xE7A1  # sets the keys of evaluation apart
MAX_STEPS = 100_000  # bound on an episode in an environment without a time limit


def evaluate(
    env: Environment,
    act: Callable[[PRNGKeyArray, Num[Array, "E ..."]], Num[Array, "E ..."]],
    key: PRNGKeyArray,
    num_episodes: int,
) -> Float[Array, " E"]:
    """Returns the undiscounted returns of E = `num_episodes` fresh episodes.

    All episodes run side by side until the last has ended; each counts once, so that short
    episodes are not over-represented. Without a time limit one that has not ended after `MAX_STEPS`
    steps counts with what it has collected.

    Args:
        env: the environment.
        act: `(key, observations [E, ...]) -> actions [E, ...]`.
        key: consumed by resets, actions and steps.
        num_episodes: E.
    """
    reset_key, run_key = jax.random.split(key)
    step_all = jax.vmap(partial(step_episode, env))

    def unfinished(carry):
        step, _, finished, _ = carry
        return ~jnp.all(finished) & (step < (env.time_limit or MAX_STEPS))

    def body(carry):
        step, episodes, finished, returns = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, step))
        actions = act(act_key, episodes.observation)
        env_keys = jax.random.split(env_key, num_episodes)
        episodes, transition = step_all(env_keys, episodes, actions)
        returns = jnp.where(finished, returns, transition.total_reward)
        return step + 1, episodes, finished | transition.done, returns

    start = (
        jnp.zeros((), jnp.int32),
        start_episodes(env, reset_key, num_episodes),
        jnp.zeros(num_episodes, bool),
        jnp.zeros(num_episodes, jnp.float32),
    )
    return jax.lax.while_loop(unfinished, body, start)[-1]


def evaluate_seeds(
    env: Environment,
    policy: Callable[[Actor, Num[Array, "E ..."]], Distribution],
    actor: Actor,
    seeds: Sequence[int],
    num_episodes: int,
) -> np.ndarray:
    """Returns the mean return of each seed's deterministic policy over fresh episodes.

    Args:
        env: the environment.
        policy: of the algorithm.
        actor: of all seeds, leading axis `[num_seeds]`.
        seeds: the seeds; they decide the episodes too, by keys that training does not use.
        num_episodes: episodes a seed.

    Returns:
        `[num_seeds]`, on the host.

    Raises:
        EnvironmentFailure: if the environment fails, or returns numbers that are not finite.
    """
    if env.open is not None:
        actors = [jax.tree.map(lambda x, i=i: x[i], actor) for i in range(len(seeds))]
        act = jax.jit(partial(_act_deterministically, env, policy))
        return np.array(
            [
                evaluate_on_host(env, partial(act, actor), seed, num_episodes).mean()
                for actor, seed in zip(actors, seeds, strict=True)
            ]
        )

    def one_seed(seed: Integer[Array, ""], actor: Actor) -> Float[Array, ""]:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        act = lambda _, observations: policy(actor, observations).mode()
        return jnp.mean(evaluate(env, act, key, num_episodes))

    scores = np.asarray(jax.jit(jax.vmap(one_seed))(jnp.asarray(seeds, jnp.uint32), actor))
    broken = [seed for seed, score in zip(seeds, scores, strict=True) if not np.isfinite(score)]
    if broken:
        raise EnvironmentFailure(
            f"Environment {env.name} returned numbers that are not finite to the trained policy of "
            f"seed {', '.join(map(str, broken))}, in its evaluation."
        )
    return scores


def _act_deterministically(env, policy, actor, observations):
    actions = policy(actor, observations).mode()
    return jax.vmap(partial(to_environment_action, env.action))(actions)


def evaluate_on_host(
    env: Environment,
    act: Callable[[Num[Array, "E ..."]], Num[Array, "E ..."]],
    seed: int,
    num_episodes: int,
) -> np.ndarray:
    """Does what `evaluate` does, for an environment that runs on the host.

    Args:
        env: the environment.
        act: `observations [E, ...] -> actions [E, ...]`, as the environment takes them.
        seed: sets the episodes, which are none of those of training with the same seed.
        num_episodes: E.

    Raises:
        EnvironmentFailure: if the environment fails, or returns numbers that are not finite.
    """
    with failures_named(env):
        opened = env.open((EVALUATION, seed), num_episodes)
    with closing(opened) as pool:
        episodes = start_host_episodes(env, pool, num_episodes)
        finished = np.zeros(num_episodes, bool)
        returns = np.zeros(num_episodes, np.float32)
        for _ in range(env.time_limit or MAX_STEPS):
            episodes, transition = advance_host_episodes(
                env, pool, episodes, act(episodes.observation)
            )
            returns = np.where(finished, returns, transition.total_reward)
            finished |= transition.done
            if finished.all():
                break
    return returns
