"""The environment protocol: two pure functions, and the facts about them that a learner needs.

An environment never resets itself. `trpo_jax.envs.episodes` does that for all suites. The state of
an environment is a pytree, so a program can store any state and go on from it, as often as it
wants.

A simulator that runs on the host has no such state. Its environment has a function `open` instead,
which starts a `Pool` of copies. `trpo_jax.host_rollout` steps the pool.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from trpo_jax.errors import ConfigurationError

NO_BOUND = 1e18  # a bound from here on means no bound; 32 bits cannot square it
INT32 = np.dtype(np.int32)
MAX_LIMIT = 2**31 - 1  # largest time limit, in steps
WIDE = 1e5  # wider bounds are probably not the range of actions that a policy needs
MOST_VALUES = 64  # most values of a one-hot integer; more values are probably a measurement
MASK = "action_mask"  # part of an observation: which actions are legal
SHOWN = "observation"  # name of the observation if it is one array and further parts are added
LARGEST = 1e15  # bound on observations and rewards, so that 32 bits can sum their squares


@dataclass(frozen=True)
class ArraySpec:
    """The spec of one array of an observation.

    An observation is a tree: an array, or a dictionary or a tuple of trees.

    Attributes:
        shape: the shape of the array.
        dtype: the dtype of the array, of at most 32 bits.
        num_values: for integers, the number of values of each component. It holds one number for
            all components, or one number for each component. The values are 0 to num_values - 1.
            None if the number of values is not known.
        origin: numbers to subtract from the environment's own numbers, in their precision, before
            the cast to `dtype`. None if there is nothing to subtract.
        own_dtype: the dtype of the environment's own numbers. None if it is `dtype`.
        channels_first: whether the environment's own image has its channels first.

    Example:
        >>> trpo_jax.ArraySpec((4,), jnp.dtype("float32"))
        ArraySpec(shape=(4,), dtype=dtype('float32'), num_values=None)
        >>> trpo_jax.ArraySpec((), jnp.dtype("int32"), num_values=(16,))  # an integer from 0 to 15
        ArraySpec(shape=(), dtype=dtype('int32'), num_values=(16,))
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: tuple[int, ...] | None = None
    origin: np.ndarray | None = field(default=None, compare=False, repr=False)
    own_dtype: np.dtype | None = field(default=None, repr=False)
    channels_first: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class Discrete:
    """The spec of an action that is one integer. Policies choose from {0, ..., num_actions - 1}.

    Attributes:
        num_actions: the number of actions.
        start: the environment's own number of the first action.
        dtype: the dtype of the environment's own number.

    Example:
        >>> action = trpo_jax.Discrete(3, start=5)  # the environment takes 5, 6 or 7
        >>> to_environment_action(action, jnp.int32(0))
        Array(5, dtype=int32)
    """

    num_actions: int
    start: int = 0
    dtype: np.dtype = INT32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the environment's own action."""
        return ()

    @property
    def size(self) -> int:
        """The number of components."""
        return 1

    @property
    def choices(self) -> tuple[int, ...]:
        """The number of values of each choice."""
        return (self.num_actions,)


@dataclass(frozen=True)
class MultiDiscrete:
    """The spec of an action that is an array of integers.

    Component k has num_actions[k] values. Policies choose a tuple of K = `size` integers.

    Attributes:
        num_actions: the number of values of each component.
        start: the environment's own number of the first value, for each component. () means that
            all of them are 0.
        dtype: the dtype of the environment's own array.
        shape: the shape of the environment's own array. None means (K,).

    Example:
        >>> action = trpo_jax.MultiDiscrete((3, 2))  # 3 values, and 2 values
        >>> to_environment_action(action, (jnp.int32(2), jnp.int32(0)))
        Array([2, 0], dtype=int32)
    """

    num_actions: tuple[int, ...]
    start: tuple[int, ...] = ()
    dtype: np.dtype = INT32
    shape: tuple[int, ...] | None = None

    def __post_init__(self):
        """Sets the shape if none was given."""
        if self.shape is None:
            object.__setattr__(self, "shape", (len(self.num_actions),))

    @property
    def size(self) -> int:
        """The number of components."""
        return len(self.num_actions)

    @property
    def choices(self) -> tuple[int, ...]:
        """The number of values of each choice."""
        return tuple(self.num_actions)


@dataclass(frozen=True, eq=False)
class Box:
    """The spec of an action that is an array of real numbers within bounds.

    Policies choose a vector of `size` components. `to_environment_action` maps the range from -1 to
    1 to the bounds.

    Attributes:
        low: the lower bounds, in the shape and the dtype of the environment's own actions. -inf, or
            any number up to -`NO_BOUND`, means no bound.
        high: the upper bounds, in the same shape and dtype. inf, or any number from `NO_BOUND` on,
            means no bound.

    Example:
        >>> action = trpo_jax.Box(low=np.array([0.0, -2.0]), high=np.array([10.0, 2.0]))
        >>> to_environment_action(action, jnp.array([0.0, 1.0]))
        Array([5., 2.], dtype=float32)
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """The number of components."""
        return math.prod(self.low.shape)

    @property
    def choices(self) -> tuple[int, ...]:
        """The number of values of each choice. There are no choices."""
        return ()

    @property
    def scaling(self) -> "BoxScaling":
        """The map from the action of a policy to the action of the environment."""
        low = np.where(self.low > -NO_BOUND, self.low, -np.inf).astype(np.float32)
        high = np.where(self.high < NO_BOUND, self.high, np.inf).astype(np.float32)
        bounded = np.isfinite(low) & np.isfinite(high)
        finite_low, finite_high = np.where(bounded, low, 0), np.where(bounded, high, 0)
        offset = np.where(bounded, 0.5 * (finite_low + finite_high), np.clip(0, low, high))
        scale = np.where(bounded, 0.5 * (finite_high - finite_low), 1)
        return BoxScaling(offset.astype(np.float32), scale.astype(np.float32), low, high)


@dataclass(frozen=True)
class Agents:
    """The spec of the actions of N agents, a team.

    Policies choose an array, or a tuple of arrays, `[N, ...]`. It has a row for each agent. All
    rows have the spec `padded`, the smallest spec that can hold the action of each agent. If the
    action of an agent is smaller, the agent never uses the end of its row.

    Attributes:
        each: the spec of each agent. Either each spec is `Discrete` or `MultiDiscrete`, or each
            spec is a `Box`.

    Example:
        >>> action = trpo_jax.Agents((trpo_jax.Discrete(3), trpo_jax.Discrete(2)))
        >>> action.padded
        Discrete(num_actions=3, start=0, dtype=dtype('int32'))
        >>> action.used
        array([[ True,  True,  True],
               [ True,  True, False]])
    """

    each: tuple[Discrete | MultiDiscrete | Box, ...]

    @property
    def count(self) -> int:
        """The number of agents."""
        return len(self.each)

    @property
    def size(self) -> int:
        """The number of components in all rows."""
        return self.count * self.padded.size

    @property
    def choices(self) -> tuple[int, ...]:
        """The number of values of each choice in all rows."""
        return self.count * self.padded.choices

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the environment's own array."""
        return self.joint.shape if isinstance(self.joint, MultiDiscrete) else self.joint.low.shape

    @property
    def padded(self) -> Discrete | MultiDiscrete | Box:
        """The spec of a row."""
        if isinstance(self.each[0], Box):
            wide = np.ones(max(own.size for own in self.each), np.float32)
            return Box(-wide, wide)
        columns = zip_longest(*(own.choices for own in self.each), fillvalue=1)
        choices = tuple(map(max, columns))
        alone = all(isinstance(own, Discrete) for own in self.each)
        return Discrete(choices[0]) if alone else MultiDiscrete(choices)

    @property
    def used(self) -> np.ndarray:
        """Which values of each choice, or which components, each agent uses, `[N, A]`."""
        if isinstance(self.each[0], Box):
            sizes = np.array([[own.size] for own in self.each])
            return np.arange(self.padded.size) < sizes
        widths = self.padded.choices
        counts = [[*own.choices, *[1] * (len(widths) - own.size)] for own in self.each]
        parts = [np.arange(n) < np.array(counts)[:, k : k + 1] for k, n in enumerate(widths)]
        return np.concatenate(parts, axis=1)

    def legal(self, mask: Any, batch_shape: tuple[int, ...]) -> Bool[Array, "*batch N A"] | None:
        """Returns which values of the choices in each row are legal. None if all of them are.

        Args:
            mask: the mask of a batch of observations. None if they have no mask.
            batch_shape: the batch axes of the mask.
        """
        if isinstance(self.padded, Box) or (mask is None and self.used.all()):
            return None
        used = jnp.asarray(self.used)
        if mask is None:
            return jnp.broadcast_to(used, (*batch_shape, *used.shape))
        rows = [x.reshape(*batch_shape, self.count, -1) for x in jax.tree.leaves(mask)]
        return used & (jnp.concatenate(rows, axis=-1) != 0)

    @property
    def joint(self) -> MultiDiscrete | Box:
        """The spec of the action that the environment takes, with all rows in one array."""
        if isinstance(self.each[0], Box):
            width = self.padded.size

            def rows(bounds, rest):
                padded = [
                    np.pad(x.ravel(), (0, width - x.size), constant_values=rest) for x in bounds
                ]
                return np.stack(padded)

            lows, highs = ([getattr(own, end) for own in self.each] for end in ("low", "high"))
            return Box(rows(lows, -1), rows(highs, 1))
        width = self.padded.size
        starts = [np.ravel(own.start if own.start != () else [0] * own.size) for own in self.each]
        flat = np.concatenate([np.pad(x, (0, width - len(x))) for x in starts])
        shape = (self.count,) if isinstance(self.padded, Discrete) else (self.count, width)
        starts = tuple(flat.tolist()) if flat.any() else ()
        return MultiDiscrete(self.choices, starts, shape=shape)


# Trees of dictionaries and tuples whose leaves are specs. An action can also be `Agents`.
ActionSpec = PyTree
ObservationSpec = PyTree


def num_components(action: ActionSpec) -> int:
    """Returns the number of components of all parts of an action."""
    return sum(part.size for part in jax.tree.leaves(action))


def choices_of(action: ActionSpec) -> tuple[int, ...]:
    """Returns the number of values of each discrete choice in an action, in their order."""
    return tuple(n for part in jax.tree.leaves(action) for n in part.choices)


def split_choices(
    mask: PyTree[Shaped[Array | np.ndarray, "..."]],
    batch_shape: tuple[Any, ...],
    choices: Sequence[int],
    numpy: Any = jnp,
) -> list[Bool[Array | np.ndarray, "*batch A"]]:
    """Returns which values of each choice are legal.

    Args:
        mask: the mask of a batch of observations. It is a tree of arrays with one number for each
            value of each choice, in their order.
        batch_shape: the batch axes of the arrays. In an exported program, their sizes are unknown.
        choices: the number of values of each choice. See `choices_of`.
        numpy: `numpy` for arrays on the host, `jax.numpy` for arrays on the device.
    """
    flat = [x.reshape(*batch_shape, -1) for x in jax.tree.leaves(mask)]
    joined = numpy.concatenate(flat, axis=-1) != 0
    return numpy.split(joined, np.cumsum(choices)[:-1], axis=-1)


def with_parts(observation: Any, **parts: Any) -> dict[str, Any]:
    """Returns an observation, or its spec, as a dictionary with further named parts."""
    own = observation if isinstance(observation, Mapping) else {SHOWN: observation}
    return {**own, **parts}


def path_name(what: str, path: tuple[Any, ...]) -> str:
    """Returns the name of a part of a tree, such as `observation["camera"]`."""
    return what + "".join(
        f'["{key.key}"]' if isinstance(key, jax.tree_util.DictKey) else f"[{key.idx}]"
        for key in path
    )


def split_mask(observation: Any) -> tuple[Any, Any]:
    """Splits an observation, or its spec, into the rest and the mask of legal actions.

    The mask is the part `action_mask` of a dictionary. It is None if there is no such part.
    """
    return split_part(observation, MASK)


def split_part(observation: Any, name: str | None) -> tuple[Any, Any]:
    """Splits an observation, or its spec, into the rest and the part with this name, or None."""
    if not isinstance(observation, Mapping) or name not in observation:
        return observation, None
    return {key: x for key, x in observation.items() if key != name}, observation[name]


class BoxScaling(NamedTuple):
    """The map from the action of a policy to the action of the environment, in float32.

    The environment gets `clip(offset + scale * action, low, high)`. If a component has two bounds,
    the range from -1 to 1 is mapped to the range between them. If not, the scale is 1, and an
    action of 0 means 0, or the bound if 0 is outside of it.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


class StepResult(NamedTuple):
    """The result of one step of one environment.

    Attributes:
        observation: the observation after the action, before any reset. A tree of arrays that
            matches the field `observation` of the environment.
        reward: float32 scalar.
        terminated: whether the episode ended by the rules of the task.
        truncated: whether the episode was cut short, for instance by a time limit.
        costs: the costs of the step, `[K]`, in the order of the field `costs` of the environment.
            `()` if there are no costs.

    Example:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> state, observation = env.reset(jax.random.key(0))
        >>> state, result = env.step(jax.random.key(1), state, jnp.array(1))
        >>> result.reward, result.terminated
        (Array(1., dtype=float32), Array(False, dtype=bool))
    """

    observation: PyTree[Shaped[Array, "..."]]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    costs: Float[Array, " K"] | tuple[()] = ()


class Pool(NamedTuple):
    """B copies of one environment on the host, stepped together. All arrays are NumPy arrays.

    Attributes:
        reset: `mask [B] -> observations [k, ...]`. Starts new episodes in the k copies in the mask.
            The observations have the environment's own precision. See
            `trpo_jax.envs.observations.centre`.
        step: `actions [B, ...] -> StepResult`, with the leading axis `[B]`. The actions come from
            `to_environment_action`. If the episode of a copy has ended, the copy must be reset
            before the next step.
        close: closes the copies, and ends their processes if there are any. It can be called again.
        render: `() -> frames [B, H, W, 3]` of bytes. It works if the pool was opened for drawing.
        kill: ends the processes of the copies at once, if there are any, while another thread waits
            for them. All other functions are called in the thread that opened the pool.
    """

    reset: Callable[[np.ndarray], Any]
    step: Callable[[np.ndarray], StepResult]
    close: Callable[[], None]
    render: Callable[[], np.ndarray] | None = None
    kill: Callable[[], None] = lambda: None


class Environment(NamedTuple):
    """An environment. Its functions are for one copy, and `jax.vmap` makes batches of them.

    Attributes:
        name: the name of the environment for `trpo_jax.envs.make`.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, StepResult)`. It never resets the environment.
        observation: the spec of the observations: an `ArraySpec`, or a tree of dictionaries and
            tuples of `ArraySpec`. If a dictionary has a part `action_mask`, this part says which
            actions are legal. It has a boolean for each value of each discrete choice of the
            action, in their order.
        action: the spec of the actions: a `Discrete`, `MultiDiscrete` or `Box`, or a tree of them.
            For a team it is `Agents`. Each array in the observation of a team has a leading axis
            `[N]` of agents, except the part that `critic_observation` names. This part is the state
            of the whole team. The team has one reward.
        time_limit: the number of steps after which an episode is truncated, or None.
        expensive_reset: whether a reset costs much more than a step. If so, the episodes of a
            rollout start from states made in advance. See `trpo_jax.rollout.rollout`.
        restartable: whether `step` can go on from any state, also from an old one, many times.
        open: `(seeds, num_envs, render=False) -> Pool`, for an environment that runs on the host.
            `seeds` is one or more integers that decide its randomness. The `reset` of such an
            environment returns zeros, and its `step` raises an error. None if the environment runs
            on the device.
        render: `[state, ...] -> [frame [H, W, 3] of bytes, ...]`, not compiled. None if the
            environment cannot be drawn, or if its pool draws it.
        critic_observation: name of the part of an observation that only the critic sees. None if
            the policy sees every part.
        costs: the names of the K costs of each step.

    Example:
        >>> def reset(key):
        ...     position = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        ...     return position, position
        >>> def step(key, position, action):
        ...     position = position + jnp.where(action == 1, 0.1, -0.1)
        ...     outside = jnp.abs(position[0]) > 1
        ...     return position, trpo_jax.StepResult(position, 1.0, outside, jnp.array(False))
        >>> env = trpo_jax.Environment(
        ...     name="Stay",
        ...     reset=reset,
        ...     step=step,
        ...     observation=trpo_jax.ArraySpec((1,), jnp.dtype("float32")),
        ...     action=trpo_jax.Discrete(2),
        ...     time_limit=100,
        ... )
        >>> algorithm = trpo_jax.trpo.make(env, trpo_jax.trpo.Config())
    """

    name: str
    reset: Callable[[PRNGKeyArray], tuple[Any, Any]]
    step: Callable[[PRNGKeyArray, Any, Any], tuple[Any, StepResult]]
    observation: ObservationSpec
    action: ActionSpec
    time_limit: int | None
    expensive_reset: bool = False
    restartable: bool = True
    open: Callable[..., Pool] | None = None
    render: Callable[[Sequence[Any]], Sequence[np.ndarray]] | None = None
    critic_observation: str | None = None
    costs: tuple[str, ...] = ()

    @property
    def num_agents(self) -> int | None:
        """The number of agents in the team. None if one agent acts alone."""
        return self.action.count if isinstance(self.action, Agents) else None


def cost_metrics(costs: Sequence[str], metric: str = "episodic_cost") -> tuple[str, ...]:
    """Returns the names of a metric of costs in the files of a run, one name for each cost.

    If there is one cost, the name is `metric`. If there are several costs, the name of each cost is
    added to it.
    """
    return (metric,) if len(costs) == 1 else tuple(f"{metric}_{name}" for name in costs)


def host_environment(
    name: str,
    observation: ObservationSpec,
    action: ActionSpec,
    time_limit: int | None,
    open: Callable[..., Pool],
    costs: tuple[str, ...] = (),
) -> Environment:
    """Returns an environment that runs on the host."""

    def reset(key):
        return (), jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), observation)

    def step(key, state, action):
        raise TypeError(
            f"{name} runs on the host and cannot be part of a compiled program. Use "
            "trpo_jax.host_rollout to collect from it."
        )

    return Environment(
        name,
        reset,
        step,
        observation,
        action,
        time_limit,
        restartable=False,
        open=open,
        costs=costs,
    )


def to_environment_action(spec: ActionSpec, action: Any) -> Any:
    """Returns the action that the environment takes if the policy chooses `action`.

    A discrete action becomes the environment's own number. In a `Box` with two bounds, the action
    of the policy is clipped to [-1, 1], and this range is mapped to the bounds. So one initial
    standard deviation suits every task. A component with one bound is clipped to it. The
    log-probability is that of the action before the clipping, because the clipping is a part of the
    environment.

    Args:
        spec: the spec of the environment's actions.
        action: one action of the policy, without batch axes. It is an integer for a `Discrete`, a
            tuple of integers for a `MultiDiscrete`, and a vector of `size` components for a `Box`.
            For `Agents`, each array has a leading axis `[N]`.
    """
    return jax.tree.map(_to_environment_part, spec, action)


def _to_environment_part(spec: Discrete | MultiDiscrete | Box | Agents, action: Any) -> Any:
    if isinstance(spec, Agents):
        rows = jnp.stack(action, axis=-1) if isinstance(action, tuple) else action
        own = spec.joint
        return _to_environment_part(own, rows if isinstance(own, Box) else rows.ravel())
    if isinstance(spec, Box):
        offset, scale, low, high = spec.scaling
        action = action.reshape(spec.low.shape).astype(jnp.float32)
        return jnp.clip(offset + scale * action, low, high)
    if isinstance(spec, MultiDiscrete) and isinstance(action, tuple):
        action = jnp.stack(action)
    action = action + np.array(spec.start, np.int32) if np.any(spec.start) else action
    return jnp.reshape(action, spec.shape)


def to_space_action(spec: ActionSpec, actions: Any) -> Any:
    """Returns actions from `to_environment_action` in the dtypes of the environment's own space.

    Args:
        spec: the spec of the environment's actions.
        actions: one action or a batch, each array `[*B, ...]`.
    """
    return jax.tree.map(_to_space_part, spec, actions)


def _to_space_part(spec: Discrete | MultiDiscrete | Box | Agents, actions: Any) -> np.ndarray:
    spec = spec.joint if isinstance(spec, Agents) else spec
    if not isinstance(spec, Box):
        return np.asarray(actions, spec.dtype)
    # In 32 bits, a rounded bound can lie outside of the space.
    return np.clip(np.asarray(actions, spec.low.dtype), spec.low, spec.high)


def sound(
    x: Shaped[Array | np.ndarray, "..."], numpy: Any = jnp
) -> Bool[Array | np.ndarray, "..."]:
    """Returns which numbers of an environment are finite, and smaller than `LARGEST` in size.

    Args:
        x: the numbers.
        numpy: `numpy` for arrays on the host, `jax.numpy` for arrays on the device.
    """
    if not numpy.issubdtype(x.dtype, numpy.floating):
        return numpy.ones(x.shape, bool)
    return numpy.abs(x) < numpy.asarray(LARGEST, x.dtype)  # False for NaN


def require_usable(env: Environment) -> None:
    """Raises a ConfigurationError if algorithms cannot use the specs of an environment."""
    limit = env.time_limit
    wrong = _wrong_tree("observation", env.observation, ArraySpec, _wrong_array)
    agents = isinstance(env.action, Agents)
    action = env.action.each if agents else env.action
    wrong = wrong or _wrong_tree("action", action, Discrete | MultiDiscrete | Box, _wrong_action)
    wrong = wrong or (_wrong_team(env) if agents else None) or _wrong_mask(env)
    if limit is not None and not (hasattr(limit, "__index__") and 1 <= limit <= MAX_LIMIT):
        wrong = f"a time limit of {limit!r}, which must be None or an integer from 1 to {MAX_LIMIT}"
    if wrong:
        raise ConfigurationError(
            f"Environment {env.name!r} has {wrong}. Change its spaces, for instance in a wrapper."
        )


def _wrong_tree(what: str, tree: Any, kinds: Any, check: Callable[[Any], str | None]) -> str | None:
    """Returns what is wrong with a tree of specs, with the path of the part, or None."""
    for path, part in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(part, kinds):
            of = getattr(kinds, "__name__", kinds)
            return f"a part {path_name(what, path)} of type {type(part).__name__}, not {of}"
        if wrong := check(part):
            return f"{wrong} ({path_name(what, path)})" if path else wrong
    own = jax.tree.structure(jax.tree.map(lambda _: 0, _plain(tree)))
    if not jax.tree.leaves(tree) or jax.tree.structure(jax.tree.map(lambda _: 0, tree)) != own:
        return (
            f"an {what} that is not a tree of tuples and dictionaries with at least one array. The "
            "keys of the dictionaries must be strings. Named tuples are not allowed: their "
            "_asdict() gives a dictionary"
        )
    return None


def _plain(tree: Any) -> Any:
    """Returns a tree whose mappings are dictionaries and whose sequences are tuples."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(x) for key, x in tree.items()}
    return tuple(map(_plain, tree)) if isinstance(tree, tuple | list) else tree


def _wrong_array(spec: ArraySpec) -> str | None:
    shape, dtype = tuple(spec.shape), spec.dtype
    is_number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    if not is_number or jnp.issubdtype(dtype, jnp.complexfloating):
        return f"observations of dtype {dtype}, but networks take only real numbers"
    if math.prod(shape) == 0:
        return f"observations of shape {shape}, which hold no numbers"
    return None


def _wrong_action(action: Discrete | MultiDiscrete | Box) -> str | None:
    if isinstance(action, Box):
        low, high = np.asarray(action.low), np.asarray(action.high)
        if low.shape != high.shape or low.size == 0 or low.dtype.kind != "f":
            return f"actions {action}, but low and high must be arrays of floats of one shape"
        if not (low <= high).all():
            index = tuple(np.argwhere(~(low <= high))[0].tolist())
            return (
                f"actions whose component {', '.join(map(str, index))} has a lower bound of "
                f"{low[index]:g} and an upper bound of {high[index]:g}"
            )
        return None
    numbers, starts = np.atleast_1d(action.num_actions), np.atleast_1d(action.start)
    if numbers.size == 0 or numbers.min() < 1:
        return f"actions {action}, which leave nothing to choose from"
    if action.start != () and (starts.shape != numbers.shape):
        return f"actions {action}, but start must have one number for each component"
    if starts.size and (starts.min() < -MAX_LIMIT or (starts + numbers).max() > MAX_LIMIT):
        return f"actions {action}, whose numbers need more than 32 bits"
    return None


def _wrong_team(env: Environment) -> str | None:
    """Returns what is wrong with the actions or the observations of a team, or None."""
    if len({isinstance(own, Box) for own in env.action.each}) > 1:
        kinds = ", ".join(type(own).__name__ for own in env.action.each)
        return (
            f"agents whose actions are {kinds}. Either all agents must choose integers, or all "
            "must have a Box"
        )
    count, shown = env.action.count, split_part(env.observation, env.critic_observation)[0]
    for path, spec in jax.tree_util.tree_flatten_with_path(shown)[0]:
        if tuple(spec.shape)[:1] != (count,):
            return (
                f"{count} agents, and {path_name('observation', path)} of shape "
                f"{tuple(spec.shape)}. Its first axis must be the axis of agents. If it is the "
                "state of the whole team, name it in critic_observation"
            )
        if spec.num_values is not None and (len(spec.shape) > 2 or len(spec.num_values) > 1):
            return (
                f"{path_name('observation', path)} of integers with num_values {spec.num_values} "
                f"and shape {tuple(spec.shape)}. In a team, num_values must be one number, and the "
                "array can have at most one axis after the axis of agents"
            )
    return None


def _wrong_mask(env: Environment) -> str | None:
    """Returns what is wrong with the mask of legal actions, or None."""
    others, mask = split_mask(env.observation)
    if mask is not None:
        sizes = [math.prod(spec.shape) for spec in jax.tree.leaves(mask)]
        choices = choices_of(env.action)
        if sum(sizes) != sum(choices):
            return (
                f'a part {path_name("observation", ())}["{MASK}"] of {sum(sizes)} numbers, and '
                f"actions with choices among {' + '.join(map(str, choices)) or 'nothing'}. A mask "
                f"must have one number for each value of each choice, {sum(choices)} in all"
            )
        if not jax.tree.leaves(others):
            return "observations that are only a mask of legal actions"
    return None


def require_part(env: Environment, name: str | None) -> None:
    """Raises a ConfigurationError if this part of the observation cannot be for the critic only."""
    if name is None:
        return
    others, _ = split_mask(env.observation)
    parts = list(others) if isinstance(others, Mapping) else []
    if name not in parts:
        listed = ", ".join(parts) or "none that have a name"
        raise ConfigurationError(
            f"critic_observation = {name!r}, but the observation of environment {env.name!r} has "
            f"no part with that name. Its parts: {listed}. Set critic_observation to one of them, "
            "or leave it out."
        )
    if len(parts) == 1:
        raise ConfigurationError(
            f"critic_observation = {name!r} leaves nothing for the policy to see, because "
            f"{name!r} is the whole observation of environment {env.name!r}. Leave "
            "critic_observation out."
        )


def wide_bounds(env: Environment) -> str | None:
    """Returns a warning if bounds of actions are so far apart that they may mean no bounds."""
    for path, part in jax.tree_util.tree_flatten_with_path(env.action)[0]:
        part = part.joint if isinstance(part, Agents) else part
        if not isinstance(part, Box):
            continue
        scale, (low, high) = part.scaling.scale, part.scaling[2:]
        index = np.unravel_index(np.argmax(scale), scale.shape)
        if scale[index] > WIDE / 2:
            where = ", ".join(map(str, index))
            of = f" in their part {path_name('action', path)}" if path else ""
            return (
                f"Component {where} of the actions of {env.name}{of} goes from {low[index]:g} to "
                f"{high[index]:g}. The first actions of a policy will be spread over this whole "
                "range. If these bounds mean no bounds, set them to infinity, or to the range that "
                "the task needs."
            )
    return None
