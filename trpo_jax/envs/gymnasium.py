"""Adapter for Gymnasium 1.x (https://gymnasium.farama.org) and its registered environments."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector.utils import CloudpickleWrapper

from trpo_jax import user_modules
from trpo_jax.envs.base import MAX_LIMIT, Environment, Pool, host_environment
from trpo_jax.envs.costs import NONE, InfoCosts, require_entries
from trpo_jax.envs.observations import array_spec, integer_spec, num_numbers, to_arrays
from trpo_jax.envs.options import parameters_of, require_known_args, wrap
from trpo_jax.envs.pools import Shows, open_pool
from trpo_jax.envs.specs import (
    MASK,
    MOST_VALUES,
    ActionSpec,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    ObservationSpec,
    choices_of,
    path_name,
    split_mask,
    with_parts,
)
from trpo_jax.errors import RAISED, ConfigurationError, unknown_name
from trpo_jax.installing import how_to_install

OF_EVERY = {"max_episode_steps", "disable_env_checker"}  # arguments of `gymnasium.make` itself
# Modules that register environments when they are imported. For each module: the prefixes of the
# names of its environments, and the extra that installs the module.
PLUGINS = {
    "ale_py": (("ALE/",), "atari"),
    "highway_env": (("highway", "parking", "merge", "roundabout", "intersection"), "driving"),
    "minigrid": (("MiniGrid-", "BabyAI-"), "minigrid"),
}
INT8 = np.dtype(np.int8)
MOST_CHOICES = 1_024  # most values of a component in a Box of integer actions
CHANNELS = (1, 3, 4)  # numbers of channels that images with their channels first can have
# A component of the first observation of this size, such as a time, is subtracted from all
# observations, so that 32 bits keep its changes. A larger number is probably a placeholder.
LEAST_ORIGIN, LARGEST_ORIGIN = 2.0**16, 2.0**63


def names() -> list[str]:
    """Returns the names that Gymnasium knows, with the names of the installed plugins."""
    for module in PLUGINS:
        with suppress(ImportError):
            import_module(module)
    return list(gymnasium.registry)


def make(
    name: str,
    args: Mapping[str, Any] = MappingProxyType({}),
    wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] = (),
    processes: bool = False,
    info_costs: InfoCosts = NONE,
) -> Environment:
    """Returns a registered environment, such as "Hopper-v5" or "my_package:MyEnv-v0".

    Args:
        name: a name for `gymnasium.make`.
        args: keyword arguments of `gymnasium.make`.
        wrappers: functions of one copy, applied in this order.
        processes: whether the copies run in processes, one for each core. This is faster if a step
            takes a millisecond or more. If False, the copies are stepped one after the other.
        info_costs: functions of the `info` of a step, by the names of their costs.

    Raises:
        ConfigurationError: if there is no such environment, if its spaces are not supported, or if
            its `info` does not have an entry that a cost needs.
    """
    full_name = f"gym/{name}"
    _check_registered(name)
    if "render_mode" in args:
        raise ConfigurationError(
            f"render_mode is not allowed as an argument of {full_name}. Training draws nothing, "
            "and render.py chooses the mode. Leave it out."
        )
    registered = gymnasium.registry.get(name.rpartition(":")[2])
    if registered and isinstance(registered.max_episode_steps, np.integer):  # Gymnasium needs int
        registered.max_episode_steps = int(registered.max_episode_steps)
    try:
        _hush(name)
        # The pool checks the values that an environment returns, in every step.
        env = gymnasium.make(name, **{"disable_env_checker": True, **args})
    except RAISED as error:  # the constructor can raise any error
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
    observation = observation_spec(full_name, env.observation_space)
    action = action_spec(full_name, env.action_space)
    shows = _after_reset(full_name, env, observation, choices_of(action))
    if info_costs:
        _require_costs(full_name, env, info_costs)
        shows = shows._replace(costs=tuple(info_costs.items()))
    with suppress(*RAISED):  # a pool reports such an error
        env.close()

    def open(seeds: Seeds, num_envs: int, render: bool = False) -> Pool:
        options = {"render_mode": "rgb_array"} if render else {}
        return open_pool(
            full_name,
            CloudpickleWrapper(partial(_make_copy, spec, wrappers, **options)),
            shows,
            action,
            environment_seeds(seeds, num_envs),
            processes,
        )

    # No episode reaches a limit beyond 32 bits.
    time_limit = None if time_limit is None or time_limit > MAX_LIMIT else int(time_limit)
    costs = tuple(info_costs)
    return host_environment(full_name, shows.observation, action, time_limit, open, costs)


def _make_copy(spec: EnvSpec, wrappers: Sequence[Callable[..., Any]], **options) -> gymnasium.Env:
    _hush(spec.id)
    env = gymnasium.make(spec, **options)
    return wrap(spec.id, env, wrappers, gymnasium.Env)


def _hush(name: str) -> None:
    if "ALE/" in name:  # ALE prints a greeting for each copy
        ale = import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)


def _after_reset(
    name: str, env: gymnasium.Env, observation: ObservationSpec, choices: tuple[int, ...]
) -> Shows:
    """Returns what an environment shows. The first reset shows its origins and its mask, if any."""
    try:
        shown, info = env.reset(seed=0)
        arrays = to_arrays(observation, shown)
    except RAISED:  # the first reset of the run reports the error
        return Shows(observation)
    observation = jax.tree.map(_with_origin, observation, arrays)
    mask = info.get(MASK) if isinstance(info, Mapping) else None
    own = split_mask(observation)[1]
    if mask is None or own is not None or not choices:
        return Shows(observation)
    spec = _mask_spec(mask)
    if num_numbers(spec) != sum(choices):
        raise ConfigurationError(
            f"Environment {name!r} has an info[{MASK!r}] of {num_numbers(spec)} numbers, and "
            f"actions with {' + '.join(map(str, choices))} values. A mask must have one "
            "number for each value of each choice. Remove the mask in a wrapper."
        )
    return Shows(with_parts(observation, **{MASK: spec}), mask_in_info=True)


def _require_costs(name: str, env: gymnasium.Env, costs: InfoCosts) -> None:
    """Raises a ConfigurationError if the `info` of a first step lacks an entry for a cost."""
    try:
        info = env.step(env.action_space.sample())[-1]
    except RAISED:  # the first step of the run reports the error
        return
    require_entries(name, costs, info if isinstance(info, Mapping) else {})


def _mask_spec(mask: Any) -> ObservationSpec:
    """Returns the spec of a mask. It has several parts if the action has several parts."""
    if isinstance(mask, Mapping):
        return {name: _mask_spec(x) for name, x in mask.items()}
    if isinstance(mask, tuple | list) and not all(map(np.isscalar, mask)):
        return tuple(map(_mask_spec, mask))
    x = np.asarray(mask)
    is_number = x.dtype.kind in "biuf"
    return ArraySpec(x.shape if is_number else (0,), np.dtype(bool), own_dtype=x.dtype)


def _with_origin(spec: ArraySpec, first: np.ndarray) -> ArraySpec:
    """Returns a spec whose origin is the first observation where it is large, and 0 elsewhere.

    If a small signal is added to a large number, a cast to 32 bits would lose the signal.
    """
    if spec.dtype != np.float32 or first.dtype.itemsize < 8:
        return spec
    size = np.abs(first.astype(np.float64))
    origin = np.where((size >= LEAST_ORIGIN) & (size < LARGEST_ORIGIN), first, 0)
    return replace(spec, origin=origin.astype(first.dtype)) if origin.any() else spec


def _check_registered(name: str) -> None:
    if ":" in name:  # Gymnasium imports this module later, and reports if there is no such module
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


Seeds = int | tuple[int, ...]


def environment_seeds(seeds: Seeds | list[Seeds], num_envs: int) -> list[int]:
    """Returns a seed below 2^31 for each environment of a pool.

    Args:
        seeds: integers that decide the `num_envs` seeds, or a list of such integers.
        num_envs: number of environments for each entry of the list.
    """
    if isinstance(seeds, list):
        return [seed for own in seeds for seed in environment_seeds(own, num_envs)]
    return (np.random.SeedSequence(seeds).generate_state(num_envs) >> 1).tolist()


def observation_spec(name: str, space: gymnasium.Space) -> ObservationSpec:
    """Returns the spec of a space of observations.

    Args:
        name: the name of the environment, for messages.
        space: the space.

    Raises:
        ConfigurationError: if networks cannot see such observations.
    """
    refusal = (
        f"Environment {name!r} has observations of type {{}}, which are not supported. Supported: "
        "Box of real numbers, Discrete, MultiDiscrete, MultiBinary, and a Dict or Tuple of these. "
        "Use a wrapper of Gymnasium, such as FilterObservation or TransformObservation, to leave "
        "that part out or to turn it into numbers."
    )
    return _tree_of(space, _array_of, "observation", refusal)


def action_spec(name: str, space: gymnasium.Space) -> ActionSpec:
    """Returns the spec of a space of actions. See `observation_spec`.

    Raises:
        ConfigurationError: if policies cannot choose such actions.
    """
    refusal = (
        f"Environment {name!r} has actions of type {{}}, which no policy can choose. Supported: "
        "Discrete, MultiDiscrete, MultiBinary, Box of floating-point numbers, Box of integers with "
        f"at most {MOST_CHOICES:,} values in each component, and a Dict or Tuple of these. Use a "
        "wrapper of Gymnasium, such as TransformAction, to change the actions."
    )
    return _tree_of(space, _action_of, "action", refusal)


def _tree_of(
    space: gymnasium.Space,
    spec_of: Callable[[gymnasium.Space], Any],
    what: str,
    refusal: str,
    path: tuple[Any, ...] = (),
) -> Any:
    """Returns the spec of a space. For a Dict or a Tuple, this is a tree of specs.

    Args:
        space: the space.
        spec_of: `space -> spec`. Returns None if the space is not supported.
        what: "observation" or "action", for the name of a part in messages.
        refusal: the message for a space that is not supported, with {} for its type.
        path: the path of the space in the tree.
    """
    inside = lambda key, x: _tree_of(x, spec_of, what, refusal, (*path, key))
    match space:
        case spaces.Dict():
            return {name: inside(jax.tree_util.DictKey(name), x) for name, x in space.items()}
        case spaces.Tuple():
            pairs = enumerate(space)
            return tuple(inside(jax.tree_util.SequenceKey(index), x) for index, x in pairs)
    spec = spec_of(space)
    if spec is None:
        where = f", in their part {path_name(what, path)}" if path else ""
        raise ConfigurationError(refusal.format(f"{type(space).__name__}{where}"))
    return spec


def _array_of(space: gymnasium.Space) -> ArraySpec | None:
    match space:
        case spaces.Box() if space.dtype.kind in "biuf":
            shape = space.shape
            values = _known_range(space)
            if values is not None:
                return integer_spec(shape, space.dtype, values, space.low.min())
            first = len(shape) == 3 and shape[0] in CHANNELS and min(shape[1:]) > max(CHANNELS)
            return array_spec(shape, space.dtype, channels_first=first)
        case spaces.Discrete():
            return integer_spec((), space.dtype, space.n, space.start)
        case spaces.MultiDiscrete():
            return integer_spec(space.shape, space.dtype, space.nvec, space.start)
        case spaces.MultiBinary():
            return ArraySpec(space.shape, np.dtype(bool), (2,), own_dtype=INT8)
    return None


def _known_range(space: spaces.Box) -> int | None:
    """Returns how many values the integers of a Box have. None if they have many, as bytes do."""
    if space.dtype.kind not in "iu":
        return None
    low, high = int(space.low.min()), int(space.high.max())
    alike = (space.low == low).all() and (space.high == high).all()
    return high - low + 1 if alike and high - low < MOST_VALUES else None


def _action_of(space: gymnasium.Space) -> Discrete | MultiDiscrete | Box | None:
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n), int(space.start), space.dtype)
        case spaces.MultiDiscrete():
            return _choices(space.nvec, space.start, space)
        case spaces.MultiBinary():
            return _choices(np.full(space.shape, 2), np.zeros(space.shape, int), space)
        case spaces.Box() if space.dtype.kind == "f":
            return Box(space.low, space.high)
        case spaces.Box() if space.dtype.kind in "iu" and _few_values(space):
            low, high = (np.ravel(x).astype(np.int64) for x in (space.low, space.high))
            return _choices(high - low + 1, low, space)
    return None


def _few_values(space: spaces.Box) -> bool:
    return float(space.high.max()) - float(space.low.min()) < MOST_CHOICES


def _choices(sizes: np.ndarray, starts: np.ndarray, space: gymnasium.Space) -> MultiDiscrete:
    starts = tuple(map(int, np.ravel(starts))) if np.any(starts) else ()
    return MultiDiscrete(tuple(map(int, np.ravel(sizes))), starts, space.dtype, space.shape)
