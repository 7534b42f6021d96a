"""The environment protocol: two pure functions, and the facts about them that a learner needs.

An environment never resets itself. `trpo_jax.envs.episodes` does that for all suites. The state of
an environment is a pytree, so a program can store any state and go on from it, as often as it
wants.

A simulator that runs on the host has no such state. Its environment has a function `open` instead,
which starts a `Pool` of copies. `trpo_jax.host_rollout` steps the pool.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from trpo_jax.envs.specs import (
    MASK,
    ActionSpec,
    Agents,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    ObservationSpec,
    choices_of,
    path_name,
    split_mask,
    split_part,
)
from trpo_jax.errors import ConfigurationError

MAX_LIMIT = 2**31 - 1  # largest time limit, in steps
WIDE = 1e5  # wider bounds are probably not the range of actions that a policy needs
LARGEST = 1e15  # bound on observations and rewards, so that 32 bits can sum their squares


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

    Examples:
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
        joint: whether `open` takes a list of seeds, too. The pool then has `num_envs` copies for
            each entry, and these copies do not depend on the other entries.

    Examples:
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
    joint: bool = False

    @property
    def num_agents(self) -> int | None:
        """The number of agents in the team. None if one agent acts alone."""
        return self.action.count if isinstance(self.action, Agents) else None


def key_shape() -> jax.ShapeDtypeStruct:
    """Returns the shape and the dtype of a key, for `jax.eval_shape`.

    A key itself would compile a program.
    """
    return jax.eval_shape(jax.random.key, 0)


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
    joint: bool = False,
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
        joint=joint,
    )


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
                f"actions with {' + '.join(map(str, choices)) or 'no'} values. A mask "
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
