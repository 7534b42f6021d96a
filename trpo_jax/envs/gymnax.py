"""Adapter for gymnax 1.x (https://github.com/RobertTLange/gymnax)."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from trpo_jax.envs.base import Environment
from trpo_jax.envs.deferred import deferred, make_lazy
from trpo_jax.envs.functional import box_of, frames_of, make_environment
from trpo_jax.envs.options import parameters_of, replace_fields, require_known_args
from trpo_jax.envs.specs import Box, Discrete
from trpo_jax.errors import ConfigurationError, unknown_name

FOLDERS = ("bsuite", "classic_control", "minatar", "misc")
make_lazy("gymnax", "gymnax.environments")
make_lazy(*(f"gymnax.environments.{folder}" for folder in FOLDERS))

import gymnax
from gymnax.environments import spaces

CLASSES = {  # of the built-in environments, so that only the module of one class is imported
    "CartPole-v1": "classic_control.cartpole.CartPole",
    "Pendulum-v1": "classic_control.pendulum.Pendulum",
    "Acrobot-v1": "classic_control.acrobot.Acrobot",
    "MountainCar-v0": "classic_control.mountain_car.MountainCar",
    "MountainCarContinuous-v0": "classic_control.continuous_mountain_car.ContinuousMountainCar",
    "Asterix-MinAtar": "minatar.asterix.MinAsterix",
    "Breakout-MinAtar": "minatar.breakout.MinBreakout",
    "Freeway-MinAtar": "minatar.freeway.MinFreeway",
    "Seaquest-MinAtar": "minatar.seaquest.MinSeaquest",
    "SpaceInvaders-MinAtar": "minatar.space_invaders.MinSpaceInvaders",
    "Catch-bsuite": "bsuite.catch.Catch",
    "DeepSea-bsuite": "bsuite.deep_sea.DeepSea",
    "MemoryChain-bsuite": "bsuite.memory_chain.MemoryChain",
    "UmbrellaChain-bsuite": "bsuite.umbrella_chain.UmbrellaChain",
    "DiscountingChain-bsuite": "bsuite.discounting_chain.DiscountingChain",
    "MNISTBandit-bsuite": "bsuite.mnist.MNISTBandit",
    "SimpleBandit-bsuite": "bsuite.bandit.SimpleBandit",
    "FourRooms-misc": "misc.rooms.FourRooms",
    "MetaMaze-misc": "misc.meta_maze.MetaMaze",
    "PointRobot-misc": "misc.point_robot.PointRobot",
    "BernoulliBandit-misc": "misc.bernoulli_bandit.BernoulliBandit",
    "GaussianBandit-misc": "misc.gaussian_bandit.GaussianBandit",
    "Reacher-misc": "misc.reacher.Reacher",
    "Swimmer-misc": "misc.swimmer.Swimmer",
    "Pong-misc": "misc.pong.Pong",
    "FrozenLake-misc": "misc.frozen_lake.FrozenLake",
}


def names() -> list[str]:
    """Returns the names of the environments in this suite."""
    with deferred("matplotlib.pyplot"):  # slow to import, and only for drawing
        return list(gymnax.registered_envs)


def make(name: str, **args: Any) -> Environment:
    """Returns a gymnax environment.

    The function `step` of gymnax always resets an environment whose episode ended. So this adapter
    calls its parts `step_env` and `is_truncated` instead. In gymnax, only DeepSea has its own
    `step`. It keeps some counters after a reset, but observations and rewards do not depend on
    them. Observations keep their dtype.

    Args:
        name: a registered name, such as "CartPole-v1". `gymnax.register` adds names.
        **args: fields of the parameters of the environment, and arguments of its class.

    Raises:
        ConfigurationError: if the name or an argument is unknown, if a download failed, or if the
            spaces of the environment are not supported.
    """
    if name not in CLASSES and name not in names():
        raise unknown_name("environment", name, names())
    try:
        factory = _factory(name)
        env = factory()
        params = env.default_params
        if args:
            fields = {field.name for field in dataclasses.fields(params)}
            own = parameters_of(type(env)) or set()
            require_known_args(name, args, fields | own)
            env = factory(**{x: args[x] for x in args.keys() - fields})
            params = replace_fields(
                name, env.default_params, {x: args[x] for x in args.keys() & fields}
            )
    except OSError as error:
        raise ConfigurationError(
            f"Environment {name!r} must download data, but the download failed: {error}."
        ) from error

    action = _action_spec(name, env.action_space(params))
    observation_space = env.observation_space(params)
    is_integer = isinstance(observation_space, spaces.Discrete)

    def reset(key):
        observation, state = env.reset_env(key, params)
        return state, observation

    def step(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        # In most environments, this is the time limit.
        truncated = env.is_truncated(state, params)
        return state, observation, reward, terminated, truncated

    def render(states):
        with deferred("seaborn"):  # most environments are drawn without it
            from gymnax.visualize import Visualizer

        visualizer = Visualizer(env, params, states)
        visualizer.init()
        if not hasattr(visualizer, "im"):
            raise ConfigurationError(f"gymnax cannot draw environment {name!r}.")
        return frames_of(visualizer.fig, visualizer.update, range(len(states)))

    time_limit = int(params.max_steps_in_episode)
    made = make_environment(name, reset, step, action, time_limit, render=render)
    if not is_integer:
        return made
    num_values = (int(observation_space.n),)
    return made._replace(observation=dataclasses.replace(made.observation, num_values=num_values))


def _factory(name: str) -> Callable[..., Any]:
    """Returns a function that makes an environment of gymnax, such as its class."""
    with deferred("matplotlib.pyplot"), suppress(ImportError, AttributeError):
        if name in CLASSES:
            module, own_name = CLASSES[name].rsplit(".", 1)
            return getattr(import_module(f"gymnax.environments.{module}"), own_name)
    return lambda **args: gymnax.make(name, **args)[0]


def _action_spec(name: str, space: Any) -> Discrete | Box:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and jnp.issubdtype(space.dtype, jnp.floating):
        return box_of(space)
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy can "
        "choose. Supported: Discrete, and Box of floating-point numbers. Wrap it so that it takes "
        "one of these, and register the wrapped environment with gymnax."
    )
