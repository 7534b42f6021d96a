"""Specs: the arrays of an observation, and the actions of an environment.

An observation is a tree of `ArraySpec`. An action is a tree of `Discrete`, `MultiDiscrete` and
`Box`, or the `Agents` of a team. `to_environment_action` maps the action of a policy to the action
of the environment.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Shaped

NO_BOUND = 1e18  # a bound from here on means no bound; 32 bits cannot square it
INT32 = np.dtype(np.int32)
MOST_VALUES = 64  # most values of a one-hot integer; more values are probably a measurement
MASK = "action_mask"  # part of an observation: which actions are legal
SHOWN = "observation"  # name of the observation if it is one array and further parts are added


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

    Examples:
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

    Examples:
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

    Examples:
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


class BoxScaling(NamedTuple):
    """The map from the action of a policy to the action of the environment, in float32.

    The environment gets `clip(offset + scale * action, low, high)`. If a component has two bounds,
    the range from -1 to 1 is mapped to the range between them. Otherwise the scale is 1, and
    the action 0 is mapped to the allowed number that is nearest to 0.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


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

    Examples:
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
    def scaling(self) -> BoxScaling:
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

    Examples:
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
