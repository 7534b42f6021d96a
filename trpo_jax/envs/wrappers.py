"""Wrappers of environments. They work on the device and on the host."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.base import Environment, Pool, StepResult
from trpo_jax.envs.specs import (
    MASK,
    SHOWN,
    Agents,
    ArraySpec,
    Box,
    ObservationSpec,
    split_mask,
    with_parts,
)
from trpo_jax.errors import ConfigurationError


def shown_otherwise(
    env: Environment,
    observation: ObservationSpec,
    start: Callable[[Any, Any, tuple[int, ...]], Any],
    follow: Callable[[StepResult, Any, Any], Any],
) -> Environment:
    """Returns an environment with other observations, on the device or on the host.

    Args:
        env: the environment.
        observation: the spec of the observations to show.
        start: `(first observation, numpy or jax.numpy, sizes of its batch axes) -> observation`.
        follow: `(result of a step, the action, numpy or jax.numpy) -> observation`.
    """

    def reset(key):
        state, shown = env.reset(key)
        return state, start(shown, jnp, ())

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(observation=follow(result, action, jnp))

    def open(*args, **options) -> Pool:
        pool = env.open(*args, **options)

        def step_all(actions):
            result = pool.step(actions)
            return result._replace(observation=follow(result, actions, np))

        reset_some = lambda mask: start(pool.reset(mask), np, (int(mask.sum()),))
        return pool._replace(reset=reset_some, step=step_all)

    return env._replace(observation=observation, reset=reset, step=step, open=env.open and open)


def map_observations(
    env: Environment, observation: ObservationSpec, show: Callable[[Any], Any]
) -> Environment:
    """Returns an environment that shows a function of its observation. See `shown_otherwise`."""
    return shown_otherwise(
        env,
        observation,
        lambda shown, *_: show(shown),
        lambda result, *_: show(result.observation),
    )


def hide(env: Environment, components: Sequence[int]) -> Environment:
    """Returns an environment that hides some components of its observation.

    The function of a `--wrapper` takes only the environment. In gym/, a wrapper gets an environment
    of Gymnasium, unless its argument is annotated as an `Environment`. So this wrapper works in all
    suites:

        def without_velocities(env: Environment) -> Environment:
            return hide(env, [1, 3])

    Args:
        env: an environment that shows a vector.
        components: the indices of the components to hide.

    Raises:
        ConfigurationError: if the observation is not a vector, or has no such components.

    Examples:
        >>> env = hide(trpo_jax.make_env("CartPole-v1"), [1, 3])
        >>> env.observation.shape
        (2,)
    """
    spec = env.observation
    if not isinstance(spec, ArraySpec) or len(spec.shape) != 1 or spec.num_values is not None:
        raise ConfigurationError(
            f"Components of {env.name} cannot be hidden, because its observation is not a vector "
            f"of numbers: {spec}. Use an environment that shows a vector."
        )
    size = spec.shape[0]
    wrong = [index for index in components if not 0 <= index < size]
    if wrong or len(set(components)) >= size:
        raise ConfigurationError(
            f"Components {list(components)} of {env.name} cannot be hidden. Its observation has "
            f"the components 0 to {size - 1}, and at least one of them must be shown."
        )
    kept = np.setdiff1d(np.arange(size), components)
    origin = None if spec.origin is None else spec.origin[kept]
    return map_observations(
        env, replace(spec, shape=(len(kept),), origin=origin), lambda x: x[..., kept]
    )


def without_mask(env: Environment) -> Environment:
    """Returns an environment that does not show the mask of legal actions.

    Raises:
        ConfigurationError: if the environment has no mask.
    """
    others, mask = split_mask(env.observation)
    if mask is None:
        raise ConfigurationError(f"Environment {env.name} has no {MASK} to leave out.")
    alone = len(others) == 1 and SHOWN in others
    show = lambda x: x[SHOWN] if alone else {name: x[name] for name in others}
    return map_observations(env, show(others), show)


def observe_previous(env: Environment) -> Environment:
    """Returns an environment that also shows its previous action and reward.

    They are the parts `previous_action` and `previous_reward` of the observation. A continuous
    action is shown as the environment takes it. A discrete action is counted from 1. Before the
    first step of an episode, both parts are 0.
    """
    team = () if env.num_agents is None else (env.num_agents,)
    parts = {
        "previous_action": jax.tree.map(_previous_spec, env.action),
        "previous_reward": ArraySpec(team, np.dtype(np.float32)),
    }

    def start(shown, numpy, batch):
        zeros = lambda spec: numpy.zeros((*batch, *spec.shape), spec.dtype)
        return with_parts(shown, **jax.tree.map(zeros, parts))

    def follow(result, action, numpy):
        return with_parts(
            result.observation,
            previous_action=jax.tree.map(_from_first, env.action, action),
            previous_reward=_of_each(numpy.asarray(result.reward, numpy.float32), team, numpy),
        )

    return shown_otherwise(env, with_parts(env.observation, **parts), start, follow)


def _of_each(reward: Any, team: tuple[int, ...], numpy: Any) -> Any:
    """Returns the reward of a team, repeated for each of its agents."""
    return numpy.broadcast_to(reward[..., None], (*reward.shape, *team)) if team else reward


def _previous_spec(action: Any) -> ArraySpec:
    """Returns the spec of an action in an observation. The value 0 of a choice means no action."""
    if isinstance(action, Agents):
        own = _previous_spec(action.joint)  # all agents must have the same number of values
        return own if own.num_values is None else replace(own, num_values=(max(own.num_values),))
    if isinstance(action, Box):
        return ArraySpec(action.low.shape, np.dtype(np.float32))
    values = tuple(n + 1 for n in action.choices)
    return ArraySpec(tuple(action.shape), np.dtype(np.int32), values)


def _from_first(spec: Any, action: Any) -> Any:
    """Returns the actions of the environment in the form in which an observation shows them."""
    spec = spec.joint if isinstance(spec, Agents) else spec
    if isinstance(spec, Box):
        return action
    start = np.reshape(spec.start, spec.shape) if np.any(spec.start) else 0
    return (action - start + 1).astype(np.int32)


NO_VELOCITY = {  # the components that are velocities, by the names of the tasks
    "CartPole-v1": (1, 3),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
    "Pendulum-v1": (2,),
    "LunarLander-v3": (2, 3, 5),
}
NO_VELOCITY_SUFFIX = "-NoVel"
