"""Adapter for Gymnasium 1.x (https://gymnasium.farama.org) and all that is registered with it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector.utils import CloudpickleWrapper

from trpo_jax import user_modules
from trpo_jax.envs.base import (
    MAX_LIMIT,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    Pool,
    host_environment,
)
from trpo_jax.envs.observations import Layout, flatten, spec_of
from trpo_jax.envs.options import parameters_of, require_known_args, wrap
from trpo_jax.envs.pools import open_pool
from trpo_jax.errors import RAISED, ConfigurationError, unknown_name
from trpo_jax.installing import how_to_install

OF_EVERY = {"max_episode_steps", "disable_env_checker"}  # arguments of `gymnasium.make` itself
# Modules that register environments once they are imported: how names of these begin, and the extra
# that installs the module.
PLUGINS = {
    "ale_py": (("ALE/",), "atari"),
    "highway_env": (("highway", "parking", "merge", "roundabout", "intersection"), "driving"),
    "minigrid": (("MiniGrid-", "BabyAI-"), "minigrid"),
}
CHANNELS = (1, 3, 4)  # of images that have them first
LEAST_ORIGIN, LARGEST_ORIGIN = 2.0**16, 2.0**63  # what is larger stands for something else


def names() -> list[str]:
    """Returns the names that Gymnasium knows, those of its plugins that are installed included."""
    for module in PLUGINS:
        with suppress(ImportError):
            import_module(module)
    return list(gymnasium.registry)


def make(
    name: str,
    args: Mapping[str, Any] = MappingProxyType({}),
    wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] = (),
    processes: bool = False,
) -> Environment:
    """Returns a registered environment, such as "Hopper-v5" or "my_package:MyEnv-v0".

    Args:
        name: as `gymnasium.make` knows it.
        args: keyword arguments of `gymnasium.make`.
        wrappers: functions of one copy, applied in order.
        processes: whether to step each copy in a process of its own, which pays where a step takes
            a millisecond or more; otherwise one after another.

    Raises:
        ConfigurationError: if there is none of that name, or its spaces are not supported.
    """
    full_name = f"gym/{name}"
    _check_registered(name)
    if "render_mode" in args:
        raise ConfigurationError(
            f"render_mode is no argument of {full_name} here: training draws nothing, and "
            "render.py chooses the mode. Leave it away."
        )
    registered = gymnasium.registry.get(name.rpartition(":")[2])
    if registered and isinstance(registered.max_episode_steps, np.integer):  # Gymnasium refuses it
        registered.max_episode_steps = int(registered.max_episode_steps)
    try:
        _hush(name)
        # What an environment returns is checked by its pool, in every step.
        env = gymnasium.make(name, **{"disable_env_checker": True, **args})
    except RAISED as error:  # by its constructor
        if isinstance(error, TypeError):
            _check_args(full_name, name, args)
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, gymnasium.error.DependencyNotInstalled):
            extra = "box2d" if "box2d" in str(gymnasium.spec(name).entry_point) else "gym"
            reason = f"{str(error).split(',')[0]}. Install it with: {how_to_install(extra)}"
        elif isinstance(error, ModuleNotFoundError):
            reason += (
                " Put it into the current folder, install it, or name its folder in PYTHONPATH."
            )
        raise ConfigurationError(f"Environment {full_name!r} cannot be made: {reason}") from error
    spec, time_limit = env.spec, env.spec.max_episode_steps
    env = wrap(full_name, env, wrappers, gymnasium.Env)
    time_limit = env.spec.max_episode_steps if env.spec else time_limit
    layout = layout_of(full_name, env.observation_space)
    observation = spec_of(layout)
    if observation.dtype == np.float32:
        observation = observation._replace(origin=_origin(env, layout))
    action = action_spec(full_name, env.action_space)
    with suppress(*RAISED):  # of which a pool says more
        env.close()

    def open(seeds: int | tuple[int, ...], num_envs: int, render: bool = False) -> Pool:
        options = {"render_mode": "rgb_array"} if render else {}
        return open_pool(
            full_name,
            CloudpickleWrapper(partial(_make_copy, spec, wrappers, **options)),
            layout,
            action,
            environment_seeds(seeds, num_envs),
            processes,
        )

    # A limit beyond 32 bits never comes.
    time_limit = None if time_limit is None or time_limit > MAX_LIMIT else int(time_limit)
    return host_environment(full_name, observation, action, time_limit, open)


def _make_copy(spec: EnvSpec, wrappers: Sequence[Callable[..., Any]], **options) -> gymnasium.Env:
    _hush(spec.id)
    env = gymnasium.make(spec, **options)
    return wrap(spec.id, env, wrappers, gymnasium.Env)


def _hush(name: str) -> None:
    if "ALE/" in name:  # which greets with each copy
        ale = import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)


def _origin(env: gymnasium.Env, layout: Layout) -> np.ndarray | None:
    """Returns the large numbers that an environment shows first, 0 for others; None for none.

    A large offset would hide a signal on top of it as soon as it is cast to 32 bits.
    """
    try:
        flat = flatten(layout, env.reset(seed=0)[0])
    except RAISED:  # which the first reset of the run reports
        return None
    if flat.dtype.itemsize < 8:
        return None
    size = np.abs(flat.astype(np.float64))
    origin = np.where((size >= LEAST_ORIGIN) & (size < LARGEST_ORIGIN), flat, 0).astype(flat.dtype)
    return origin if origin.any() else None


def _check_registered(name: str) -> None:
    if ":" in name:  # Gymnasium imports the module before the colon, and says if there is none
        user_modules.load(name.partition(":")[0])
        return
    if name in gymnasium.registry or name in (known := names()):
        return
    error = unknown_name("environment", f"gym/{name}", (f"gym/{x}" for x in known))
    for module, (beginnings, extra) in PLUGINS.items():
        if name.startswith(beginnings) and find_spec(module) is None:
            raise ConfigurationError(
                f"Environment 'gym/{name}' needs the package {module!r}, which is not installed. "
                f"Install it with: {how_to_install(extra)}"
            )
    raise error


def _check_args(full_name: str, name: str, args: Mapping[str, Any]) -> None:
    maker = gymnasium.spec(name).entry_point
    known = parameters_of(load_env_creator(maker) if isinstance(maker, str) else maker)
    require_known_args(full_name, args, known and (known | OF_EVERY) - {"render_mode"})


def environment_seeds(seeds: int | tuple[int, ...], num_envs: int) -> list[int]:
    """Returns a seed for each environment of a pool, below 2^31."""
    return (np.random.SeedSequence(seeds).generate_state(num_envs) >> 1).tolist()


def layout_of(name: str, space: gymnasium.Space, part: str = "") -> Layout:
    """Returns the layout of a space of observations; see `trpo_jax.envs.observations`.

    Args:
        name: of the environment, for messages.
        space: the space.
        part: which part of the observations it is.

    Raises:
        ConfigurationError: if it cannot be shown to a network.
    """
    match space:
        case spaces.Box() if space.dtype.kind in "biuf":
            layout = {"kind": "box", "shape": list(space.shape), "dtype": space.dtype.name}
            first = len(space.shape) == 3 and space.shape[0] in CHANNELS
            if first and min(space.shape[1:]) > max(CHANNELS) and not part:
                layout["channels_first"] = True
            return layout
        case spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            sizes, starts = space.nvec.ravel().tolist(), space.start.ravel().tolist()
            shape = list(space.shape)
            return {"kind": "multi_discrete", "shape": shape, "n": sizes, "start": starts}
        case spaces.MultiBinary():
            return {"kind": "multi_binary", "shape": list(space.shape)}
        case spaces.Dict():
            parts = {x: layout_of(name, y, f"{part}/{x}") for x, y in space.items()}
            return {"kind": "dict", "parts": parts}
        case spaces.Tuple():
            parts = [layout_of(name, y, f"{part}/{i}") for i, y in enumerate(space)]
            return {"kind": "tuple", "parts": parts}
    where = f", in their part {part.strip('/')!r}" if part else ""
    raise ConfigurationError(
        f"Environment {name!r} has observations of type {type(space).__name__}{where}, which "
        "cannot be shown to a network here. Supported: Box of real numbers, Discrete, "
        "MultiDiscrete, MultiBinary, and a Dict or Tuple of these. A wrapper of Gymnasium, such as "
        "FilterObservation or TransformObservation, leaves that part out or turns it into numbers."
    )


def action_spec(name: str, space: gymnasium.Space) -> Discrete | MultiDiscrete | Box:
    """Returns the spec of an action space.

    Raises:
        ConfigurationError: if no policy here can produce such actions.
    """
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n), int(space.start), space.dtype)
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            starts = tuple(map(int, space.start)) if space.start.any() else ()
            return MultiDiscrete(tuple(map(int, space.nvec)), starts, space.dtype)
        case spaces.MultiBinary() if len(space.shape) == 1:
            return MultiDiscrete((2,) * space.shape[0], (), space.dtype)
        case spaces.Box() if space.dtype.kind == "f":
            return Box(space.low, space.high)
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy here "
        "can produce. Supported: Discrete, MultiDiscrete and MultiBinary of one axis, and Box of "
        "floating-point numbers."
    )
