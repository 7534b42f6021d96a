"""The environment protocol: two pure functions and what a learner must know of them.

An environment never resets itself; `trpo_jax.envs.episodes` does that, once for all suites. Its
state is a pytree, so any state can be stored, repeated and restarted from.

Simulators that run on the host have no such state. They have `open` in place of the two functions,
which starts a `Pool` of them; `trpo_jax.host_rollout` steps it.
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

NO_BOUND = 1e18  # a bound as large means that there is none; 32 bits cannot square it
INT32 = np.dtype(np.int32)
MAX_LIMIT = 2**31 - 1  # of steps in an episode
WIDE = 1e5  # bounds that are farther apart are hardly those that a policy is to span
MOST_VALUES = 64  # of integers that are shown one-hot: what has more is a measurement
MASK = "action_mask"  # name of the part of an observation that says which actions are legal
SHOWN = "observation"  # name of an array that other parts are put beside
LARGEST = 1e15  # observations and rewards of which 32 bits can sum the squares are smaller


@dataclass(frozen=True)
class ArraySpec:
    """One array of an observation.

    An observation is a tree: an array, or a dictionary or a tuple of trees.

    Attributes:
        shape: its shape.
        dtype: its dtype, of 32 bits at the most.
        num_values: of integers, how many values each component has: one number for all of them, or
            a number for each. The values are 0 to num_values - 1. None where that is not known.
        origin: what is subtracted from the environment's own numbers, in their precision, before
            they are cast to `dtype`; None for nothing.
        own_dtype: dtype of the environment's own numbers, where it is another one.
        channels_first: whether the environment's own image has its channels first.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: tuple[int, ...] | None = None
    origin: np.ndarray | None = field(default=None, compare=False, repr=False)
    own_dtype: np.dtype | None = field(default=None, repr=False)
    channels_first: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class Discrete:
    """One integer action, which policies see as one of {0, ..., num_actions - 1}.

    Attributes:
        num_actions: how many there are.
        start: the environment's own number of the first.
        dtype: of the environment's own number.
    """

    num_actions: int
    start: int = 0
    dtype: np.dtype = INT32

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the environment's own action."""
        return ()

    @property
    def size(self) -> int:
        """Number of components."""
        return 1

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of values of each choice."""
        return (self.num_actions,)


@dataclass(frozen=True)
class MultiDiscrete:
    """An array of integer actions, component k of which has num_actions[k] values.

    Policies see it as a tuple of K integers, K = `size`.

    Attributes:
        num_actions: how many there are, of each component.
        start: the environment's own number of the first, of each component; () for zeros.
        dtype: of the environment's own numbers.
        shape: of the environment's own array; (K,) if None is given.
    """

    num_actions: tuple[int, ...]
    start: tuple[int, ...] = ()
    dtype: np.dtype = INT32
    shape: tuple[int, ...] | None = None

    def __post_init__(self):
        """Fills in the shape."""
        if self.shape is None:
            object.__setattr__(self, "shape", (len(self.num_actions),))

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.num_actions)

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of values of each choice."""
        return tuple(self.num_actions)


@dataclass(frozen=True, eq=False)
class Box:
    """A real array within bounds; policies see it as a vector of `size` components.

    Attributes:
        low: lower bounds, in the shape and the dtype of the environment's own actions; -inf, or
            anything from -`NO_BOUND` down, for none.
        high: upper bounds, likewise.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """Number of components."""
        return math.prod(self.low.shape)

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of values of each choice: it has none."""
        return ()

    @property
    def scaling(self) -> "BoxScaling":
        """How a policy's action becomes the environment's."""
        low = np.where(self.low > -NO_BOUND, self.low, -np.inf).astype(np.float32)
        high = np.where(self.high < NO_BOUND, self.high, np.inf).astype(np.float32)
        bounded = np.isfinite(low) & np.isfinite(high)
        finite_low, finite_high = np.where(bounded, low, 0), np.where(bounded, high, 0)
        offset = np.where(bounded, 0.5 * (finite_low + finite_high), np.clip(0, low, high))
        scale = np.where(bounded, 0.5 * (finite_high - finite_low), 1)
        return BoxScaling(offset.astype(np.float32), scale.astype(np.float32), low, high)


@dataclass(frozen=True)
class Agents:
    """The actions of N agents, an array or a tuple of arrays `[N, ...]` with a row for each agent.

    All rows have the form of `padded`, the smallest that holds the action of each agent. An agent
    never uses the rest of its row.

    Attributes:
        each: what each agent chooses: all of them `Discrete` or `MultiDiscrete`, or all a `Box`.
    """

    each: tuple[Discrete | MultiDiscrete | Box, ...]

    @property
    def count(self) -> int:
        """Number of agents."""
        return len(self.each)

    @property
    def size(self) -> int:
        """Number of components in all rows."""
        return self.count * self.padded.size

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of values of each choice in all rows."""
        return self.count * self.padded.choices

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the environment's own array."""
        return self.joint.shape if isinstance(self.joint, MultiDiscrete) else self.joint.low.shape

    @property
    def padded(self) -> Discrete | MultiDiscrete | Box:
        """What each row holds."""
        if isinstance(self.each[0], Box):
            wide = np.ones(max(own.size for own in self.each), np.float32)
            return Box(-wide, wide)
        columns = zip_longest(*(own.choices for own in self.each), fillvalue=1)
        choices = tuple(map(max, columns))
        alone = all(isinstance(own, Discrete) for own in self.each)
        return Discrete(choices[0]) if alone else MultiDiscrete(choices)

    @property
    def used(self) -> np.ndarray:
        """Which values of each choice, or which components, are an agent's own, `[N, A]`."""
        if isinstance(self.each[0], Box):
            sizes = np.array([[own.size] for own in self.each])
            return np.arange(self.padded.size) < sizes
        widths = self.padded.choices
        counts = [[*own.choices, *[1] * (len(widths) - own.size)] for own in self.each]
        parts = [np.arange(n) < np.array(counts)[:, k : k + 1] for k, n in enumerate(widths)]
        return np.concatenate(parts, axis=1)

    def legal(self, mask: Any, batch_shape: tuple[int, ...]) -> Bool[Array, "*batch N A"] | None:
        """Returns which values of the choices in each row are legal; None if all of them are.

        Args:
            mask: of a batch of observations; None without one.
            batch_shape: axes that its arrays have before their own.
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
        """What the environment takes, all rows in one array."""
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


# Trees of dictionaries and tuples, whose leaves are specs; or `Agents`.
ActionSpec = PyTree
ObservationSpec = PyTree


def num_components(action: ActionSpec) -> int:
    """Returns the number of components of all parts of an action."""
    return sum(part.size for part in jax.tree.leaves(action))


def choices_of(action: ActionSpec) -> tuple[int, ...]:
    """Returns the number of values of each discrete choice in an action, in order."""
    return tuple(n for part in jax.tree.leaves(action) for n in part.choices)


def split_choices(
    mask: PyTree[Shaped[Array | np.ndarray, "..."]],
    batch_shape: tuple[Any, ...],
    choices: Sequence[int],
    numpy: Any = jnp,
) -> list[Bool[Array | np.ndarray, "*batch A"]]:
    """Returns which values of each choice are legal.

    Args:
        mask: of a batch of observations, a tree of arrays with one number for each value of each
            choice, in order.
        batch_shape: axes that its arrays have before their own; an exported program leaves them
            open.
        choices: number of values of each choice; see `choices_of`.
        numpy: `numpy` for arrays on the host.
    """
    flat = [x.reshape(*batch_shape, -1) for x in jax.tree.leaves(mask)]
    joined = numpy.concatenate(flat, axis=-1) != 0
    return numpy.split(joined, np.cumsum(choices)[:-1], axis=-1)


def with_parts(observation: Any, **parts: Any) -> dict[str, Any]:
    """Returns an observation, or its spec, with other parts beside it, by name."""
    own = observation if isinstance(observation, Mapping) else {SHOWN: observation}
    return {**own, **parts}


def path_name(what: str, path: tuple[Any, ...]) -> str:
    """Returns the name of a part of a tree, such as `observation["camera"]`."""
    return what + "".join(
        f'["{key.key}"]' if isinstance(key, jax.tree_util.DictKey) else f"[{key.idx}]"
        for key in path
    )


def split_mask(observation: Any) -> tuple[Any, Any]:
    """Returns an observation, or its spec, without the mask of legal actions, and the mask or None.

    The mask is the part that is named `action_mask`, of a dictionary.
    """
    return split_part(observation, MASK)


def split_part(observation: Any, name: str | None) -> tuple[Any, Any]:
    """Returns an observation, or its spec, without the part of that name, and that part or None."""
    if not isinstance(observation, Mapping) or name not in observation:
        return observation, None
    return {key: x for key, x in observation.items() if key != name}, observation[name]


class BoxScaling(NamedTuple):
    """The environment is given `clip(offset + scale * action, low, high)`, all of them float32.

    Between two bounds, actions from -1 to 1 span the component. Elsewhere the scale is 1, and an
    action of 0 means 0, or the bound that is next to it.
    """

    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


class StepResult(NamedTuple):
    """What one step of one environment gives.

    Attributes:
        observation: the observation that follows the action, before any reset, a tree as the
            environment's `observation` says.
        reward: float32 scalar.
        terminated: whether the episode ended by the task's own rules.
        truncated: whether it was cut short, by a time limit for instance.
        costs: of the step, `[K]`, in the order of the environment's `costs`; `()` without costs.
    """

    observation: PyTree[Shaped[Array, "..."]]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    costs: Float[Array, " K"] | tuple[()] = ()


class Pool(NamedTuple):
    """Copies of one environment on the host, B of them, stepped together; all arrays are NumPy's.

    Attributes:
        reset: `mask [B] -> observations [k, ...]` of the k environments in the mask, which start
            new episodes. Observations are in the environment's own precision; see
            `trpo_jax.envs.observations.centre`.
        step: `actions [B, ...] -> StepResult` with leading axis `[B]`, for actions from
            `to_environment_action`; a finished environment must be reset before the next one.
        close: ends it, and its processes if it has any; more than once does no harm.
        render: `() -> frames [B, H, W, 3]` of bytes, if it was opened for that.
        kill: ends its processes at once, if it has any, while another thread waits for them. All
            other functions are called in one thread, which is that it was opened in.
    """

    reset: Callable[[np.ndarray], Any]
    step: Callable[[np.ndarray], StepResult]
    close: Callable[[], None]
    render: Callable[[], np.ndarray] | None = None
    kill: Callable[[], None] = lambda: None


class Environment(NamedTuple):
    """A task, for one copy of it; batches are `jax.vmap`s.

    Attributes:
        name: the name that `trpo_jax.envs.make` knows it by.
        reset: `key -> (state, observation)`.
        step: `(key, state, action) -> (state, StepResult)`, without resetting.
        observation: what it shows: an `ArraySpec`, or a tree of them, of dictionaries and tuples.
            A part of a dictionary that is named `action_mask` says which actions are legal: a
            boolean for each value of each discrete choice of the action, in order.
        action: what it accepts: a `Discrete`, `MultiDiscrete` or `Box`, or a tree of them; or the
            `Agents` of a team. Each array in the observation of a team then has an axis `[N]` of
            agents before its own, but for the part that `critic_observation` names: the state of
            the whole team, if it has one. The reward is the team's.
        time_limit: number of steps after which an episode is truncated, any integer, or None.
        expensive_reset: whether a reset costs much more than a step; then the episodes of a rollout
            begin from states made in advance, see `trpo_jax.rollout.rollout`.
        restartable: whether `step` may go on from any state, however old, as often as wanted.
        open: `(seeds, num_envs, render=False) -> Pool` of an environment that runs on the host,
            with one or more integers that decide its randomness; its `reset` only shows zeros and
            its `step` is an error. None of all others.
        render: `[state, ...] -> [frame [H, W, 3] of bytes, ...]`, not compiled; None where it
            cannot be drawn, or draws itself on the host.
        critic_observation: name of the part of an observation that the critic sees and the policy
            does not; None for no part.
        costs: names of the K costs that each step has beside its reward.
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
        """Number of agents in the team; None where one agent acts alone."""
        return self.action.count if isinstance(self.action, Agents) else None


def cost_metrics(costs: Sequence[str], metric: str = "episodic_cost") -> tuple[str, ...]:
    """Returns the names under which runs keep a metric of costs, one for each cost.

    The name of the metric stands for the only cost; several have the name of the cost behind it.
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
            f"{name} runs on the host and cannot be part of a compiled program; collect from it "
            "with trpo_jax.host_rollout."
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
    """Returns what the environment is given when the policy chose `action`.

    Discrete actions become the environment's own numbers. A policy over a bounded `Box` works in
    units in which every component spans [-1, 1], so that one initial standard deviation suits every
    task: it is clipped to that range and mapped onto the bounds. A component with one bound is
    clipped there. The log-probability is that of the unclipped action: the clipping belongs to the
    environment.

    Args:
        spec: the environment's actions.
        action: one action (no batch axes): an integer for a `Discrete`, a tuple of integers for a
            `MultiDiscrete`, a vector of `size` components for a `Box`; of `Agents`, each with an
            axis `[N]` before its own.
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
        spec: the environment's actions.
        actions: one or several, each array `[*B, ...]`.
    """
    return jax.tree.map(_to_space_part, spec, actions)


def _to_space_part(spec: Discrete | MultiDiscrete | Box | Agents, actions: Any) -> np.ndarray:
    spec = spec.joint if isinstance(spec, Agents) else spec
    if not isinstance(spec, Box):
        return np.asarray(actions, spec.dtype)
    # 32 bits may have rounded the bounds outwards.
    return np.clip(np.asarray(actions, spec.low.dtype), spec.low, spec.high)


def sound(
    x: Shaped[Array | np.ndarray, "..."], numpy: Any = jnp
) -> Bool[Array | np.ndarray, "..."]:
    """Returns which numbers of an environment are finite, and of a size that can be learnt from.

    Args:
        x: the numbers.
        numpy: `numpy` for arrays on the host.
    """
    if not numpy.issubdtype(x.dtype, numpy.floating):
        return numpy.ones(x.shape, bool)
    return numpy.abs(x) < numpy.asarray(LARGEST, x.dtype)  # NaN is not


def require_usable(env: Environment) -> None:
    """Raises a ConfigurationError if nothing can be learnt in the spaces of an environment."""
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
            f"Environment {env.name!r} has {wrong}. Change its spaces, in a wrapper of it for "
            "instance."
        )


def _wrong_tree(what: str, tree: Any, kinds: Any, check: Callable[[Any], str | None]) -> str | None:
    """Returns what is wrong with a tree of specs, with the path of the part; None if nothing is."""
    for path, part in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(part, kinds):
            of = getattr(kinds, "__name__", kinds)
            return f"a part {path_name(what, path)} of type {type(part).__name__}, not {of}"
        if wrong := check(part):
            return f"{wrong} ({path_name(what, path)})" if path else wrong
    own = jax.tree.structure(jax.tree.map(lambda _: 0, _plain(tree)))
    if not jax.tree.leaves(tree) or jax.tree.structure(jax.tree.map(lambda _: 0, tree)) != own:
        return (
            f"an {what} that is no tree of tuples, and of dictionaries whose keys are text, with "
            "one array or more in it. A named tuple becomes a dictionary by its _asdict()"
        )
    return None


def _plain(tree: Any) -> Any:
    """Returns a tree with dictionaries and tuples in place of their subclasses."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(x) for key, x in tree.items()}
    return tuple(map(_plain, tree)) if isinstance(tree, tuple | list) else tree


def _wrong_array(spec: ArraySpec) -> str | None:
    shape, dtype = tuple(spec.shape), spec.dtype
    is_number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    if not is_number or jnp.issubdtype(dtype, jnp.complexfloating):
        return f"observations of dtype {dtype}, and networks take real numbers only"
    if math.prod(shape) == 0:
        return f"observations of shape {shape}, which hold no number"
    return None


def _wrong_action(action: Discrete | MultiDiscrete | Box) -> str | None:
    if isinstance(action, Box):
        low, high = np.asarray(action.low), np.asarray(action.high)
        if low.shape != high.shape or low.size == 0 or low.dtype.kind != "f":
            return f"actions {action}, whose bounds must be two arrays of floats, of one shape"
        if not (low <= high).all():
            index = tuple(np.argwhere(~(low <= high))[0].tolist())
            return (
                f"actions whose component {', '.join(map(str, index))} has a lower bound of "
                f"{low[index]:g} and an upper one of {high[index]:g}"
            )
        return None
    numbers, starts = np.atleast_1d(action.num_actions), np.atleast_1d(action.start)
    if numbers.size == 0 or numbers.min() < 1:
        return f"actions {action}, in which there is nothing to choose from"
    if action.start != () and (starts.shape != numbers.shape):
        return f"actions {action}, whose start is not one number for each component"
    if starts.size and (starts.min() < -MAX_LIMIT or (starts + numbers).max() > MAX_LIMIT):
        return f"actions {action}, whose numbers take more than 32 bits"
    return None


def _wrong_team(env: Environment) -> str | None:
    """Returns what is wrong with the axis of agents."""
    if len({isinstance(own, Box) for own in env.action.each}) > 1:
        kinds = ", ".join(type(own).__name__ for own in env.action.each)
        return (
            f"agents whose actions are {kinds}: rows of one form cannot hold both choices and real "
            "numbers"
        )
    count, shown = env.action.count, split_part(env.observation, env.critic_observation)[0]
    for path, spec in jax.tree_util.tree_flatten_with_path(shown)[0]:
        if tuple(spec.shape)[:1] != (count,):
            return (
                f"{count} agents, and {path_name('observation', path)} of shape "
                f"{tuple(spec.shape)}, whose first axis must be that of the agents. The state of "
                "the whole team is the part that critic_observation names"
            )
        if spec.num_values is not None and (len(spec.shape) > 2 or len(spec.num_values) > 1):
            return (
                f"{path_name('observation', path)} of integers with {len(spec.num_values)} numbers "
                f"of values and shape {tuple(spec.shape)}: integers of several agents have one "
                "number of values, and one axis at the most beside that of the agents"
            )
    return None


def _wrong_mask(env: Environment) -> str | None:
    """Returns what is wrong with the mask of legal actions."""
    others, mask = split_mask(env.observation)
    if mask is not None:
        sizes = [math.prod(spec.shape) for spec in jax.tree.leaves(mask)]
        choices = choices_of(env.action)
        if sum(sizes) != sum(choices):
            return (
                f'a part {path_name("observation", ())}["{MASK}"] of {sum(sizes)} numbers, and '
                f"actions with choices among {' + '.join(map(str, choices)) or 'nothing'}: a mask "
                f"has one number for each value of each choice, {sum(choices)} in all"
            )
        if not jax.tree.leaves(others):
            return "observations that are nothing but a mask of legal actions"
    return None


def require_part(env: Environment, name: str | None) -> None:
    """Raises a ConfigurationError if the critic alone cannot see the part of that name."""
    if name is None:
        return
    others, _ = split_mask(env.observation)
    parts = list(others) if isinstance(others, Mapping) else []
    if name not in parts:
        listed = ", ".join(parts) or "none that have a name"
        raise ConfigurationError(
            f"Environment {env.name!r} has no part of the observation that is named {name!r}, "
            f"which only the critic is to see. Its parts: {listed}. Set critic_observation to one "
            "of them, or leave it out."
        )
    if len(parts) == 1:
        raise ConfigurationError(
            f"Environment {env.name!r} has an observation of which the policy sees nothing: "
            f"{name!r} is all of it. Leave critic_observation out."
        )


def wide_bounds(env: Environment) -> str | None:
    """Returns a warning about bounds of actions so far apart that they may mean none."""
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
                f"{high[index]:g}. A policy's first actions are spread over all of that. If these "
                "bounds mean that there are none, set them to infinity, or to the range that "
                "matters."
            )
    return None
