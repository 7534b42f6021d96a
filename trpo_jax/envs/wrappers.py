"""Wrappers of environments, on the device and on the host alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.base import (
    MASK,
    SHOWN,
    ArraySpec,
    Box,
    Environment,
    ObservationSpec,
    Pool,
    StepResult,
    split_mask,
)
from trpo_jax.errors import ConfigurationError

PREVIOUS = ("previous_action", "previous_reward")


def map_observations(
    env: Environment, observation: ObservationSpec, show: Callable[[Any], Any]
) -> Environment:
    """Returns an environment that shows something else.

    Args:
        env: the environment.
        observation: spec of what it is to show.
        show: `observations -> observations`, of one environment on the device, and of several on
            the host, whose arrays then have a leading axis.
    """

    def reset(key):
        state, shown = env.reset(key)
        return state, show(shown)

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(observation=show(result.observation))

    def open(*args, **options) -> Pool:
        pool = env.open(*args, **options)

        def step_all(actions):
            result = pool.step(actions)
            return result._replace(observation=show(result.observation))

        return pool._replace(reset=lambda mask: show(pool.reset(mask)), step=step_all)

    return env._replace(
        observation=observation, reset=reset, step=step, open=None if env.open is None else open
    )


def hide(env: Environment, components: Sequence[int]) -> Environment:
    """Returns an environment that does not show some components of its observation.

    A wrapper for `--wrapper` is a function of the environment alone:

        def without_velocities(env):
            return hide(env, [1, 3])

    Args:
        env: an environment that shows a vector.
        components: indices of what it hides.

    Raises:
        ConfigurationError: if the observation is no vector, or has no such components.
    """
    spec = env.observation
    if not isinstance(spec, ArraySpec) or len(spec.shape) != 1 or spec.num_values is not None:
        raise ConfigurationError(
            f"Components of {env.name} cannot be hidden: its observation, {spec}, is no vector of "
            "numbers."
        )
    size = spec.shape[0]
    wrong = [index for index in components if not 0 <= index < size]
    if wrong or len(set(components)) >= size:
        raise ConfigurationError(
            f"Components {list(components)} of {env.name} cannot be hidden: its observation has "
            f"{size}, of which at least one is to be shown."
        )
    kept = np.setdiff1d(np.arange(size), components)
    origin = None if spec.origin is None else spec.origin[kept]
    return map_observations(
        env, replace(spec, shape=(len(kept),), origin=origin), lambda x: x[..., kept]
    )


def without_mask(env: Environment) -> Environment:
    """Returns an environment that does not say which actions are legal."""
    others, mask = split_mask(env.observation)
    if mask is None:
        raise ConfigurationError(f"Environment {env.name} has no {MASK} that could be left out.")
    alone = len(others) == 1 and SHOWN in others
    show = lambda x: x[SHOWN] if alone else {name: x[name] for name in others}
    return map_observations(env, show(others), show)


def observe_previous(env: Environment) -> Environment:
    """Returns an environment that shows its previous action and reward too.

    They are the parts `previous_action` and `previous_reward` of the observation. Continuous
    actions are shown as the environment takes them, discrete ones are counted from 1. Before a
    first step, all of them are 0.
    """
    taken = jax.tree.map(_previous_spec, env.action)
    specs = {PREVIOUS[0]: taken, PREVIOUS[1]: ArraySpec((), np.dtype(np.float32))}

    def beside(shown, actions, rewards):
        parts = shown if isinstance(shown, Mapping) else {SHOWN: shown}
        actions = jax.tree.map(_from_first, env.action, actions)
        return {**parts, PREVIOUS[0]: actions, PREVIOUS[1]: rewards}

    observation = env.observation
    observation = observation if isinstance(observation, Mapping) else {SHOWN: observation}
    nothing = lambda numpy, batch: jax.tree.map(
        lambda spec: numpy.zeros((*batch, *spec.shape), spec.dtype), taken
    )

    def start(shown, numpy, batch):
        parts = shown if isinstance(shown, Mapping) else {SHOWN: shown}
        zeros = nothing(numpy, batch), numpy.zeros(batch, numpy.float32)
        return {**parts, **dict(zip(PREVIOUS, zeros, strict=True))}

    def reset(key):
        state, shown = env.reset(key)
        return state, start(shown, jnp, ())

    def step(key, state, action):
        state, result = env.step(key, state, action)
        shown = beside(result.observation, action, result.reward)
        return state, result._replace(observation=shown)

    def open(*args, **options) -> Pool:
        pool = env.open(*args, **options)

        def step_all(actions) -> StepResult:
            result = pool.step(actions)
            rewards = np.asarray(result.reward, np.float32)
            return result._replace(observation=beside(result.observation, actions, rewards))

        return pool._replace(
            reset=lambda mask: start(pool.reset(mask), np, (int(mask.sum()),)), step=step_all
        )

    return env._replace(
        observation={**observation, **specs},
        reset=reset,
        step=step,
        open=None if env.open is None else open,
    )


def _previous_spec(action: Any) -> ArraySpec:
    """Returns the spec of an action in an observation; value 0 of a choice stands for none."""
    if isinstance(action, Box):
        return ArraySpec(action.low.shape, np.dtype(np.float32))
    values = tuple(n + 1 for n in action.choices)
    return ArraySpec(tuple(action.shape), np.dtype(np.int32), values)


def _from_first(spec: Any, action: Any) -> Any:
    """Returns actions as the environment takes them as an observation shows them."""
    if isinstance(spec, Box):
        return action
    start = np.reshape(spec.start, spec.shape) if np.any(spec.start) else 0
    return (action - start + 1).astype(np.int32)


NO_VELOCITY = {  # components that are velocities, by the suite's own names
    "CartPole-v1": (1, 3),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
    "Pendulum-v1": (2,),
    "LunarLander-v3": (2, 3, 5),
}
NO_VELOCITY_SUFFIX = "-NoVel"
