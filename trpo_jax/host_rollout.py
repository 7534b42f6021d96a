"""Rollouts in environments that run on the host.

The loop over steps is in Python. At each step, a compiled program chooses the actions of all
environments. The keys, the statistics and the form of the trajectory are the same as in `rollout`.
So an algorithm can learn from both kinds of rollouts in the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, Num, PRNGKeyArray, PyTree

from trpo_jax.envs.base import LARGEST, Environment, Pool, StepResult, sound
from trpo_jax.envs.episodes import Episode, Transition, judge, record
from trpo_jax.envs.observations import centre
from trpo_jax.envs.specs import (
    MASK,
    choices_of,
    path_name,
    split_choices,
    split_mask,
    to_environment_action,
)
from trpo_jax.errors import (
    RAISED,
    ConfigurationError,
    EnvironmentFailure,
    NotFinite,
    environment_failure,
)

Choose = Callable[..., tuple[Any, Any, Any, Any]]
Check = Callable[..., np.ndarray]


def make_choose(env: Environment, act: Callable[..., tuple[Any, Any, Any]]) -> Choose:
    """Returns the compiled program that chooses the actions of one step.

    Args:
        env: the environment.
        act: `(actor, key, episodes [B], acting_state) -> (actions [B, ...], noise,
            acting_state)`.

    Returns:
        `(actor, keys [T], t, episodes, acting_state) -> (actions of the environment, actions,
        noise, acting_state)`. The first output holds the actions from `to_environment_action`, and
        the second holds the actions of the policy.
    """

    @jax.jit
    def choose(actor, keys, t, episodes, acting_state):
        actions, noise, acting_state = act(actor, keys[t], episodes, acting_state)
        given = jax.vmap(lambda action: to_environment_action(env.action, action))(actions)
        return given, actions, noise, acting_state

    return choose


def start_host_episodes(env: Environment, pool: Pool, num_envs: int) -> Episode:
    """Returns new episodes of all B = `num_envs` environments of a pool."""
    everywhere = np.ones(num_envs, bool)
    return Episode(
        state=(),
        observation=reset_pool(env, pool, everywhere),
        first=everywhere,
        length=np.zeros(num_envs, np.int32),
        total_reward=np.zeros(num_envs, np.float32),
        whole=everywhere,
        total_costs=np.zeros((num_envs, len(env.costs)), np.float32) if env.costs else (),
    )


def reset_pool(
    env: Environment, pool: Pool, mask: np.ndarray, check: Check | None = None
) -> PyTree[np.ndarray]:
    """Resets the k environments in a mask. Returns their first observations, `[k, ...]`.

    Args:
        env: the environment.
        pool: copies of the environment.
        mask: the copies to reset, `[B]`.
        check: see `host_rollout`.

    Raises:
        EnvironmentFailure: if the environment fails.
        NotFinite: if one of its numbers is not finite or is absurdly large.
    """
    with failures_named(env):
        observations = centre(env.observation, pool.reset(mask))
    lost = (check or require_sound)(env, {"an observation": observations}, mask, "from a reset")
    observations = _without(lost[mask], observations)
    require_legal_action(env, observations, mask)
    return observations


@partial(jax.jit, static_argnums=1)
def action_keys(key: PRNGKeyArray, num_steps: int) -> Key[Array, " T"]:
    """Returns the keys that `rollout` would use to draw the actions."""
    return jax.random.split(jax.random.split(key, 3)[0], num_steps)


def host_rollout(
    env: Environment,
    pool: Pool,
    choose: Choose,
    actor: Any,
    key: PyTree[PRNGKeyArray],
    episodes: Episode,
    acting_state: Any,
    num_steps: int,
    check: Check | None = None,
) -> tuple[Episode, Any, Transition]:
    """Runs the B environments of a pool for T = `num_steps` steps. See `rollout_with_state`.

    Args:
        env: the environment.
        pool: copies of the environment.
        choose: from `make_choose`.
        actor: the actor that `choose` gets.
        key: consumed to draw the actions, a key or a tree of keys. A pool has its own random
            numbers.
        episodes: running episodes of the pool, leading axis `[B]`.
        acting_state: the state that `choose` carries from step to step, any pytree.
        num_steps: T.
        check: is called with the arguments of `require_sound` if numbers may not be sound. Returns
            the copies whose numbers count as 0, `[B]`. None for `require_sound`.

    Returns:
        The episodes and the acting state after the last step, and a trajectory `[T, B]`.

    Raises:
        EnvironmentFailure: if the environment fails.
        NotFinite: if one of its numbers is not finite or is absurdly large.
    """
    keys = jax.tree.map(lambda key: action_keys(key, num_steps), key)
    episodes = jax.tree.map(np.asarray, episodes)
    steps = []
    for t in range(num_steps):
        given, actions, noise, acting_state = choose(actor, keys, t, episodes, acting_state)
        episodes, transition = advance_host_episodes(env, pool, episodes, given, check)
        steps.append(transition._replace(action=actions, noise=noise))
    return episodes, acting_state, jax.tree.map(lambda *xs: np.stack(xs), *steps)


def advance_host_episodes(
    env: Environment,
    pool: Pool,
    episodes: Episode,
    actions: PyTree[Num[Array | np.ndarray, "B ..."]],
    check: Check | None = None,
) -> tuple[Episode, Transition]:
    """Takes one step in all environments of a pool. See `advance_episode`.

    Args:
        env: the environment.
        pool: copies of the environment.
        episodes: running episodes, leading axis `[B]`.
        actions: actions from `to_environment_action`.
        check: see `host_rollout`.

    Raises:
        EnvironmentFailure: if the environment fails.
        NotFinite: if one of its numbers is not finite or is absurdly large.
    """
    with failures_named(env):
        result = pool.step(jax.tree.map(np.asarray, actions))
        result = result._replace(observation=centre(env.observation, result.observation))
    if all(map(tame, jax.tree.leaves((result.reward, result.observation, result.costs)))):
        transition = record(env, episodes, actions, result)
    else:
        result, transition = _judged(env, episodes, actions, result, check or require_sound)
    done = transition.done
    ongoing = Episode(
        state=(),
        observation=result.observation,
        first=done,
        length=transition.length,
        total_reward=transition.total_reward,
        whole=episodes.whole | done,
        total_costs=transition.total_costs,
    )
    if done.any():
        fresh = reset_pool(env, pool, done, check)
        replaced = partial(_replaced, done)
        ongoing = ongoing._replace(
            observation=jax.tree.map(replaced, ongoing.observation, fresh),
            length=replaced(ongoing.length, 0),
            total_reward=replaced(ongoing.total_reward, 0),
            total_costs=replaced(ongoing.total_costs, 0) if env.costs else (),
        )
    require_legal_action(env, ongoing.observation, ~done)
    return ongoing, transition


def _judged(env, episodes, actions, result, check) -> tuple[StepResult, Transition]:
    """Returns a step without the numbers that `check` leaves out. See `judge`."""
    numbers = {"a reward": result.reward, "an observation": result.observation}
    if env.costs:
        numbers["a cost"] = dict(zip(env.costs, np.moveaxis(result.costs, -1, 0), strict=True))
    with np.errstate(over="ignore"):  # a large number may not fit into 32 bits
        step = judge(env, episodes, actions, result, np)
        when = "in step {:,} of an episode"
        lost = check(env, numbers, ~step.broken, when, step.length)
        names = ("reward", "observation", "costs")
        result = result._replace(**{x: _without(lost, getattr(result, x)) for x in names})
        return result, judge(env, episodes, actions, result, np)


def tame(x: np.ndarray) -> bool:
    """Returns whether one quick look shows that all numbers are sound. See `sound`.

    The sum of squares is at least the largest square. It is not finite if a number is not.
    """
    return x.dtype.kind != "f" or bool(np.vdot(x, x) < LARGEST**2)


def _replaced(mask: np.ndarray, old: np.ndarray, new: Any) -> np.ndarray:
    """Returns a copy of an array `[B, ...]` with new values at the k places of a mask.

    The new values are k rows `[k, ...]`, or a number.
    """
    old = old.copy()
    old[mask] = new
    return old


def _without(lost: np.ndarray, tree: Any) -> Any:
    """Returns a tree of arrays `[B, ...]` whose lost rows are 0."""
    if not lost.any():
        return tree
    return jax.tree.map(lambda x: _replaced(lost, x, np.zeros((), x.dtype)), tree)


@contextmanager
def failures_named(env: Environment) -> Iterator[None]:
    """Turns any error of an environment into an `EnvironmentFailure` that names the environment."""
    try:
        yield
    except (ConfigurationError, EnvironmentFailure):
        raise
    except RAISED as error:
        raise environment_failure(env.name, error) from error


def require_sound(
    env: Environment,
    numbers: dict[str, Any],
    mask: np.ndarray,
    when: str,
    length: np.ndarray | None = None,
) -> np.ndarray:
    """Raises a NotFinite error if numbers of an environment are not finite, or absurdly large.

    Args:
        env: the environment.
        numbers: trees of arrays, by their names in the message. The leading axis of the arrays is
            `[B]`, or `[k]` for the k copies in the mask.
        mask: the copies to check, `[B]`.
        when: when the numbers came, for the message. It can have a place for the length.
        length: number of the current step in each episode, `[B]`.

    Returns:
        The copies whose numbers count as 0, `[B]`: none of them.
    """
    for path, values in jax.tree_util.tree_flatten_with_path(numbers)[0]:
        if sound(values, np).all():
            continue
        what = path[0].key + (f", in its part {path_name('', path[1:])}" if path[1:] else "")
        copies = np.flatnonzero(mask)
        rows = values if len(values) == len(copies) else values[mask]
        bad = np.argwhere(~sound(rows, np))
        if not len(bad):
            continue
        row, *component = bad[0].tolist()
        copy, value = copies[row], rows[tuple(bad[0])]
        of = f", in its component {', '.join(map(str, component))}" if component else ""
        kind = "absurdly large" if np.isfinite(value) else "not finite"
        when = when.format(None if length is None else length[copy])
        raise NotFinite(
            f"Environment {env.name} returned {what} that is {kind}: {value:g}{of}, {when} (copy "
            f"{copy + 1} of {len(mask)}). Learning in 32 bits needs numbers smaller than "
            f"{LARGEST:g}. Replace, clip or scale such numbers in a wrapper of the environment."
        )
    return np.zeros(len(mask), bool)


def require_legal_action(env: Environment, observations: Any, mask: np.ndarray) -> None:
    """Raises an EnvironmentFailure if an environment has no legal action.

    Args:
        env: the environment.
        observations: a tree of arrays. Their leading axis is `[B]`, or `[k]` for the k copies in
            the mask.
        mask: the copies to check, `[B]`.
    """
    legal = split_mask(observations)[1]
    if legal is None:
        return
    copies = np.flatnonzero(mask)
    count = len(jax.tree.leaves(legal)[0])
    parts = split_choices(legal, (count,), choices_of(env.action), np)
    for number, part in enumerate(parts):
        some = part.any(axis=1)
        some = some if count == len(copies) else some[copies]
        if not some.all():
            of = f" for choice {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            raise EnvironmentFailure(
                f"Environment {env.name} showed an {MASK} without a legal action{of} (copy "
                f"{copies[np.argmin(some)] + 1}), but its episode goes on. If no action is legal, "
                "the environment must end the episode."
            )
