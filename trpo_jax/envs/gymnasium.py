"""Adapter for Gymnasium 1.x (https://gymnasium.farama.org) and all that is registered with it."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from trpo_jax import user_modules
from trpo_jax.envs.base import (
    ArraySpec,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    Pool,
    StepResult,
    host_environment,
)
from trpo_jax.envs.options import parameters_of, require_known_args, wrap
from trpo_jax.errors import ConfigurationError, unknown_name

OF_EVERY = {"max_episode_steps", "disable_env_checker"}  # arguments of `gymnasium.make` itself
PLUGIN = "highway_env"  # registers its environments only once it is imported


def names() -> list[str]:
    """Returns the names that Gymnasium knows, those of its plugins that are installed included."""
    with suppress(ImportError):
        import_module(PLUGIN)
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
    try:
        env = gymnasium.make(name, **args)
    except Exception as error:  # whatever its constructor raises
        if isinstance(error, TypeError):
            _check_args(full_name, name, args)
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, gymnasium.error.DependencyNotInstalled):
            reason += " What MuJoCo's need comes with: uv sync --extra gym"
        elif isinstance(error, ModuleNotFoundError):
            reason += (
                " Put it into the current folder, install it, or name its folder in PYTHONPATH."
            )
        raise ConfigurationError(f"Environment {full_name!r} cannot be made: {reason}") from error
    time_limit = env.spec.max_episode_steps
    env = wrap(full_name, env, wrappers, gymnasium.Env)
    time_limit = env.spec.max_episode_steps if env.spec else time_limit
    space, action_space = env.observation_space, env.action_space
    observation, flatten = observation_spec(full_name, space)
    env.close()

    def open(seeds: int | tuple[int, ...], num_envs: int, render: bool = False) -> Pool:
        # Without Gymnasium's own resets, which cost a step or hide the last observation. A fork of
        # this process could inherit a lock that XLA's threads hold.
        options = {"context": "forkserver"} if processes else {}
        if processes:  # each worker imports the main script, which imports these: once for all
            multiprocessing.set_forkserver_preload(["flax.linen", "optax", "gymnasium"])
        envs = gymnasium.make_vec(
            name,
            num_envs=num_envs,
            vectorization_mode="async" if processes else "sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED, **options},
            wrappers=[*wrappers, _leave_interrupts_to_the_parent],
            **(args | {"render_mode": "rgb_array"} if render else args),
        )
        first_seeds = iter([environment_seeds(seeds, num_envs)])

        def reset(mask: np.ndarray) -> np.ndarray:
            observations, _ = envs.reset(seed=next(first_seeds, None), options={"reset_mask": mask})
            return flatten(observations)[mask]

        return vector_pool(envs, action_space, flatten, reset)

    action = action_spec(full_name, action_space)
    return host_environment(full_name, observation, action, time_limit, open)


def _leave_interrupts_to_the_parent(env: gymnasium.Env) -> gymnasium.Env:
    # Ctrl-C reaches every process of a terminal, and the parent ends its workers in order.
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return env


def _check_registered(name: str) -> None:
    if ":" in name:  # Gymnasium imports the module before the colon, and says if there is none
        user_modules.load(name.partition(":")[0])
        return
    if name not in gymnasium.registry:
        with suppress(ImportError):
            import_module(PLUGIN)
    if name not in gymnasium.registry:
        known = (f"gym/{x}" for x in gymnasium.registry)
        error = unknown_name("environment", f"gym/{name}", known)
        raise ConfigurationError(f"{error} Those of {PLUGIN} come with: uv sync --extra driving")


def _check_args(full_name: str, name: str, args: Mapping[str, Any]) -> None:
    maker = gymnasium.spec(name).entry_point
    known = parameters_of(load_env_creator(maker) if isinstance(maker, str) else maker)
    require_known_args(full_name, args, known and (known | OF_EVERY) - {"render_mode"})


def environment_seeds(seeds: int | tuple[int, ...], num_envs: int) -> list[int]:
    """Returns a seed for each environment of a pool, below 2^31."""
    return (np.random.SeedSequence(seeds).generate_state(num_envs) >> 1).tolist()


def vector_pool(
    envs: VectorEnv,
    action_space: gymnasium.Space,
    show: Callable[..., np.ndarray],
    reset: Callable[[np.ndarray], np.ndarray],
) -> Pool:
    """Returns the pool of a vector environment.

    Args:
        envs: the vector environment, which does not reset by itself.
        action_space: of one environment.
        show: what it calls a batch of observations to the array that networks see.
        reset: `Pool.reset`.
    """

    def step(actions: np.ndarray) -> StepResult:
        actions = np.asarray(actions, action_space.dtype) + getattr(action_space, "start", 0)
        if isinstance(action_space, spaces.Box):  # whose bounds 32 bits may round outwards
            actions = np.clip(actions, action_space.low, action_space.high)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        return StepResult(
            show(observations), np.asarray(rewards, np.float32), terminated, truncated
        )

    def close() -> None:
        try:
            envs.close(timeout=1)  # or it waits for ever for the answer of a process that is gone
        except Exception:  # of an environment that is broken already, which has been reported
            for process in getattr(envs, "processes", ()):
                process.kill()
            envs.closed = True

    return Pool(reset, step, close, lambda: np.stack(envs.render()))


def observation_spec(
    name: str, space: gymnasium.Space
) -> tuple[ArraySpec, Callable[..., np.ndarray]]:
    """Returns the spec of what a network is shown, and the function that makes it of a batch.

    A Box is shown as it is, other spaces flattened into one; 64-bit numbers as 32-bit ones.

    Raises:
        ConfigurationError: if the space cannot be flattened.
    """
    flat = space if isinstance(space, spaces.Box) else spaces.flatten_space(space)
    if not isinstance(flat, spaces.Box):
        raise ConfigurationError(
            f"Environment {name!r} has observations of type {type(space).__name__}, which cannot "
            "be shown to a network here. Supported: Box, and what Gymnasium can flatten into one "
            "(Discrete, MultiDiscrete, MultiBinary, and a Dict or Tuple of these)."
        )
    narrow = {np.dtype("float64"): np.dtype("float32"), np.dtype("int64"): np.dtype("int32")}
    spec = ArraySpec(flat.shape, narrow.get(flat.dtype, flat.dtype))

    def show(observations):
        flattened = observations if flat is space else _flatten(space, observations)
        return np.asarray(flattened, spec.dtype)

    return spec, show


def _flatten(space: gymnasium.Space, batch: Any) -> np.ndarray:
    """Does what Gymnasium's `flatten` does, for a whole batch where that is simple."""
    match space:
        case spaces.Box() | spaces.MultiBinary():
            return batch.reshape(len(batch), -1)
        case spaces.Dict():
            # By name, so that what one suite has trained finds its numbers in another.
            parts = [_flatten(part, batch[name]) for name, part in sorted(space.items())]
            return np.concatenate(parts, axis=1)
        case spaces.Tuple():
            parts = [_flatten(*pair) for pair in zip(space, batch, strict=True)]
            return np.concatenate(parts, axis=1)
    rows = iterate(batch_space(space), batch)
    return np.stack([spaces.flatten(space, row) for row in rows])


def action_spec(name: str, space: gymnasium.Space) -> Discrete | MultiDiscrete | Box:
    """Returns the spec of an action space.

    Raises:
        ConfigurationError: if no policy here can produce such actions.
    """
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return MultiDiscrete(tuple(map(int, space.nvec)))
        case spaces.MultiBinary() if len(space.shape) == 1:
            return MultiDiscrete((2,) * space.shape[0])
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return Box(space.low.astype(np.float32), space.high.astype(np.float32))
    raise ConfigurationError(
        f"Environment {name!r} has actions of type {type(space).__name__}, which no policy here "
        "can produce. Supported: Discrete, MultiDiscrete and MultiBinary of one axis, and Box of "
        "floating-point numbers."
    )
