"""Automatic resets, time limits and episode statistics, for every environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from trpo_jax.envs.base import Environment, StepResult, sound
from trpo_jax.envs.specs import to_environment_action


class Episode(NamedTuple):
    """A running episode. A batch of episodes has leading axes.

    Attributes:
        state: the state of the environment.
        observation: the observation before the next action, a tree of arrays.
        first: whether that observation is the first observation of the episode.
        length: the number of steps so far. `stagger` starts some episodes with a larger number.
        total_reward: the sum of the rewards so far, undiscounted.
        whole: whether `length` counts only steps that were taken.
        total_costs: the sums of the costs so far, `[*B, K]`. `()` if the environment has no costs.
    """

    state: Any
    observation: Any
    first: Bool[Array, "*B"]
    length: Int[Array, "*B"]
    total_reward: Float[Array, "*B"]
    whole: Bool[Array, "*B"]
    total_costs: Any = ()


class Transition(NamedTuple):
    """One step of one episode. A trajectory is a `Transition` with leading axes `[T, B]`.

    Transitions from the host have NumPy arrays.

    Attributes:
        observation: s_t, a tree of arrays.
        action: a_t, as the policy chose it, a tree of arrays.
        reward: r_t.
        terminated: whether the episode ended by the rules of the task.
        truncated: whether the episode was cut short.
        next_observation: s'_t, the observation after the action, before any reset.
        first: whether s_t is the first observation of the episode.
        length: the number of steps of the episode, including this step.
        total_reward: the sum of the rewards of the episode, including this step. If the episode
            ended, this is its return.
        whole: whether the episode was seen from its start, and is not broken. If not, its length
            and its return say nothing about the task.
        broken: whether the episode ended with numbers that are not finite, or absurdly large. Such
            numbers are left out: the reward is 0, s'_t is s_t, and the step counts as truncated.
        noise: the noise of the exploration that the action depended on, or `()`.
        costs: the costs of the step, `[*B, K]`. `()` if the environment has no costs.
        total_costs: the sums of the costs of the episode, including this step, `[*B, K]`, or `()`.
    """

    observation: Any
    action: Any
    reward: Float[Array, "*B"]
    terminated: Bool[Array, "*B"]
    truncated: Bool[Array, "*B"]
    next_observation: Any
    first: Bool[Array, "*B"]
    length: Int[Array, "*B"]
    total_reward: Float[Array, "*B"]
    whole: Bool[Array, "*B"]
    broken: Bool[Array, "*B"]
    noise: Any = ()
    costs: Any = ()
    total_costs: Any = ()

    @property
    def done(self) -> Bool[Array | np.ndarray, "*B"]:
        """Whether the episode ended: terminated or truncated."""
        return self.terminated | self.truncated


def start_episode(env: Environment, key: PRNGKeyArray) -> Episode:
    """Returns a new episode of one environment."""
    state, observation = env.reset(key)
    return Episode(
        state=state,
        observation=observation,
        first=jnp.ones((), bool),
        length=jnp.zeros((), jnp.int32),
        total_reward=jnp.zeros((), jnp.float32),
        whole=jnp.ones((), bool),
        total_costs=jnp.zeros(len(env.costs), jnp.float32) if env.costs else (),
    )


def stagger(env: Environment, episodes: Episode) -> Episode:
    """Returns new episodes `[B]` whose lengths are spread evenly over the time limit.

    If all episodes started with length 0, those that last until the time limit would all start and
    end at the same time. A batch would then show only one part of the episodes (Bharthulwar et al.
    2025, arXiv:2511.21011). Without a time limit, the episodes stay as they are.
    """
    if env.time_limit is None:
        return episodes
    num_envs = episodes.length.shape[0]
    length = (np.arange(num_envs) * (env.time_limit / num_envs)).astype(np.int32)
    return episodes._replace(length=length, whole=length == 0)


def advance_episode(
    env: Environment,
    keys: Key[Array, "2"],
    episode: Episode,
    action: Any,
    start: Callable[[PRNGKeyArray], Episode] | None = None,
) -> tuple[Episode, Transition]:
    """Steps one environment, and starts a new episode if the old one ended.

    Args:
        env: the environment.
        keys: consumed by the step and by the new episode.
        episode: the running episode.
        action: one action, as the policy chose it.
        start: `key -> new episode`. If None, a reset of the environment starts the episode.

    Returns:
        The episode after the step, and the transition. The transition has the observation before
        the reset.
    """
    step_key, reset_key = keys
    stepped, transition = step_episode(env, step_key, episode, action)
    fresh = start_episode(env, reset_key) if start is None else start(reset_key)
    return jax.tree.map(lambda a, b: jnp.where(transition.done, a, b), fresh, stepped), transition


def step_episode(
    env: Environment, key: PRNGKeyArray, episode: Episode, action: Any
) -> tuple[Episode, Transition]:
    """Steps one environment, and never starts a new episode. See `advance_episode`."""
    state, result = env.step(key, episode.state, to_environment_action(env.action, action))
    transition = judge(env, episode, action, result)
    return Episode(
        state=state,
        observation=result.observation,
        first=jnp.zeros((), bool),
        length=transition.length,
        total_reward=transition.total_reward,
        whole=episode.whole,
        total_costs=transition.total_costs,
    ), transition


def record(env: Environment, episode: Episode, action: Any, result: StepResult) -> Transition:
    """Returns the transition of a step whose numbers are sound. See `judge` for the arguments."""
    length = episode.length + 1
    truncated = result.truncated
    if env.time_limit is not None:  # a pool counts from its resets, without the stagger
        truncated = truncated | (length >= env.time_limit)
    reward = result.reward.astype(np.float32)
    costs = result.costs.astype(np.float32) if env.costs else ()
    return Transition(
        observation=episode.observation,
        action=action,
        reward=reward,
        terminated=result.terminated,
        truncated=truncated,
        next_observation=result.observation,
        first=episode.first,
        length=length,
        total_reward=episode.total_reward + reward,
        whole=episode.whole,
        broken=truncated & False,
        costs=costs,
        total_costs=episode.total_costs + costs if env.costs else (),
    )


def judge(
    env: Environment,
    episode: Episode,
    action: Any,
    result: StepResult,
    numpy: Any = jnp,
) -> Transition:
    """Returns the transition of a step. If the step broke its episode, bad numbers are left out.

    Args:
        env: the environment.
        episode: the episode before the step. On the host, all B episodes of a pool.
        action: the action, as the policy chose it.
        result: the result of the step.
        numpy: `numpy` for arrays on the host, `jax.numpy` for arrays on the device.
    """
    step = record(env, episode, action, result)
    batch_axes = numpy.ndim(step.length)
    axes = lambda x: tuple(range(batch_axes, x.ndim))
    good = sound(result.reward, numpy)
    for x in jax.tree.leaves((result.observation, result.costs)):
        good = good & sound(x, numpy).all(axis=axes(x))
    broken = ~good & step.done
    kept = lambda old, new: numpy.where(numpy.expand_dims(broken, axes(new)), old, new)
    reward = kept(numpy.float32(0), step.reward)
    step = step._replace(
        reward=reward,
        terminated=step.terminated & ~broken,
        truncated=step.truncated | broken,
        next_observation=jax.tree.map(kept, episode.observation, result.observation),
        total_reward=episode.total_reward + reward,
        whole=episode.whole & ~broken,
        broken=broken,
    )
    if not env.costs:
        return step
    costs = kept(numpy.float32(0), step.costs)
    return step._replace(costs=costs, total_costs=episode.total_costs + costs)
