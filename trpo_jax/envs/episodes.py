"""Auto-reset, time limits and episode statistics, for any environment of the protocol."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from trpo_jax.envs.base import Environment, StepResult, sound, to_environment_action


class Episode(NamedTuple):
    """A running episode; batches have leading axes. Observations and actions are trees of arrays.

    Attributes:
        state: the environment's own state.
        observation: the observation the next action is for.
        first: whether that observation is the first of the episode.
        length: steps counted so far; `stagger` lets a first episode begin with some.
        total_reward: rewards received so far, undiscounted.
        whole: whether every step counted in `length` was taken.
        total_costs: costs so far, `[*B, K]`; `()` in an environment without costs.
    """

    state: Any
    observation: Any
    first: Bool[Array, "*B"]
    length: Int[Array, "*B"]
    total_reward: Float[Array, "*B"]
    whole: Bool[Array, "*B"]
    total_costs: Any = ()


class Transition(NamedTuple):
    """One step of one episode; a trajectory is a Transition with leading axes `[T, B]`.

    Its arrays are NumPy's where they come from the host.

    Attributes:
        observation: s_t.
        action: a_t, as the policy chose it.
        reward: r_t.
        terminated: whether the episode ended by the task's own rules.
        truncated: whether it was cut short.
        next_observation: s'_t, what followed the action before any reset.
        first: whether s_t is the first observation of the episode.
        length: steps of the episode up to and with this one.
        total_reward: its rewards up to and with this one; the episode's return where it ended.
        whole: whether the episode was seen from its start to a sound end; without it, length and
            return say nothing about the task.
        broken: whether the episode ended with numbers that are not finite, or absurdly large.
            They are left out: the reward is 0, s'_t is s_t, and the step counts as cut short.
        noise: what the action depended on besides the observation and the memory, or `()`.
        costs: of the step, `[*B, K]`; `()` in an environment without costs.
        total_costs: of the episode up to and with this step, `[*B, K]`, or `()`.
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
        """Whether the episode ended, either way."""
        return self.terminated | self.truncated


def start_episode(env: Environment, key: PRNGKeyArray) -> Episode:
    """Returns a fresh episode of one environment."""
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
    """Returns fresh episodes `[B]` as if they had been running for some time, each for another.

    The time is spread evenly over the time limit, if there is one. Otherwise episodes that last
    until then would begin and end together in all environments, and a batch would show one part of
    them only (Bharthulwar et al. 2025, arXiv:2511.21011).
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
    """Steps one environment and starts a new episode where the old one ended.

    Args:
        env: the environment.
        keys: consumed by the step and the start.
        episode: the running episode.
        action: as the policy chose it, one action.
        start: `key -> fresh episode`; a reset of the environment if None.

    Returns:
        The episode to go on with, and the transition, with the observation before the reset.
    """
    step_key, reset_key = keys
    stepped, transition = step_episode(env, step_key, episode, action)
    fresh = start_episode(env, reset_key) if start is None else start(reset_key)
    return jax.tree.map(lambda a, b: jnp.where(transition.done, a, b), fresh, stepped), transition


def step_episode(
    env: Environment, key: PRNGKeyArray, episode: Episode, action: Any
) -> tuple[Episode, Transition]:
    """Steps one environment, also over the end of its episode; see `advance_episode`."""
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


def judge(
    env: Environment,
    episode: Episode,
    action: Any,
    result: StepResult,
    numpy: Any = jnp,
) -> Transition:
    """Returns the transition that a step was, with the end of a broken episode left out.

    Args:
        env: the environment.
        episode: before the step; on the host all of a pool, leading axis `[B]`.
        action: as the policy chose it.
        result: of the step.
        numpy: `numpy` on the host.
    """
    length = episode.length + 1
    truncated = result.truncated
    if env.time_limit is not None:  # a pool's own counts from its resets
        truncated = truncated | (length >= env.time_limit)
    batch_axes = numpy.ndim(length)
    axes = lambda x: tuple(range(batch_axes, x.ndim))
    good = sound(result.reward, numpy)
    for x in jax.tree.leaves((result.observation, result.costs)):
        good = good & sound(x, numpy).all(axis=axes(x))
    broken = ~good & (result.terminated | truncated)
    reward = numpy.where(broken, 0, result.reward).astype(numpy.float32)
    costs, total_costs = (), ()
    if env.costs:
        costs = numpy.where(broken[..., None], 0, result.costs).astype(numpy.float32)
        total_costs = episode.total_costs + costs
    kept = lambda old, new: numpy.where(numpy.expand_dims(broken, axes(new)), old, new)
    return Transition(
        observation=episode.observation,
        action=action,
        reward=reward,
        terminated=result.terminated & ~broken,
        truncated=truncated | broken,
        next_observation=jax.tree.map(kept, episode.observation, result.observation),
        first=episode.first,
        length=length,
        total_reward=episode.total_reward + reward,
        whole=episode.whole & ~broken,
        broken=broken,
        costs=costs,
        total_costs=total_costs,
    )
