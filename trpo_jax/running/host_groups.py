"""The updates of the seeds of a group, whose environments on the host are one pool.

On one axis, the arrays of a pool hold the environments of the first seed, then those of the second
seed, and so on. A step of the pool serves all seeds. Each seed chooses its actions and learns by
its own programs, so it learns the same in every group.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.algorithms.base import Algorithm, Metrics, State, update_keys
from trpo_jax.algorithms.on_policy import RANDOM_STEPS
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.envs.episodes import stagger
from trpo_jax.envs.specs import split_mask
from trpo_jax.errors import NotFinite
from trpo_jax.host_rollout import (
    Check,
    Choose,
    host_rollout,
    make_choose,
    require_sound,
    start_host_episodes,
)
from trpo_jax.observing import update_observing
from trpo_jax.rollout import random_actions
from trpo_jax.running.program import Health

NO_UPDATE = 2**31 - 1  # the number of no update, for a key that no update uses


class HostPrograms(NamedTuple):
    """The compiled programs of one seed.

    Attributes:
        choose: chooses the actions of one step; see `make_choose`.
        improve: `(state, trajectory) -> (state, fit_input, metrics, health)`.
        fit: `(state.critic, fit_input, metrics, health) -> (state.critic, (metrics, health))`. The
            next rollout does not wait for it.
        num_steps: steps of each environment in one update.
        broken: `(metrics, health)` for an update that was not done.
    """

    choose: Choose
    improve: Callable[..., Any]
    fit: Callable[..., Any]
    num_steps: int
    broken: tuple[Metrics, Health]


class Stopping(Exception):
    """The program should stop."""


def start_group(
    algorithm: Algorithm, pool: Pool, states: Sequence[State], warm_up: bool
) -> list[State]:
    """Returns the states of the seeds of a group with the episodes of their pool.

    Args:
        algorithm: the algorithm.
        pool: copies of its environment, an equal number for each seed.
        states: the states of the seeds, from `algorithm.init`.
        warm_up: whether to measure the first statistics of observations with random actions, as
            `trpo_jax.algorithms.on_policy.random_statistics` does on the device.
    """
    env, num_envs = algorithm.env, states[0].rollout.episodes.length.shape[0]
    started = partial(start_host_episodes, env, pool, num_envs * len(states))
    if warm_up and getattr(algorithm.config, "normalize_observations", False):
        choose = make_choose(
            env,
            lambda actor, key, episodes, _: (
                random_actions(key, env.action, num_envs, split_mask(episodes.observation)[1]),
                (),
                (),
            ),
        )
        num_steps, nothing = min(algorithm.num_steps, RANDOM_STEPS), [()] * len(states)
        keys = [jax.random.fold_in(state.key, NO_UPDATE) for state in states]
        choose = choose_for_all([choose] * len(states), num_envs)
        _, _, trajectory = host_rollout(
            env, pool, choose, nothing, keys, started(), nothing, num_steps
        )
        update = jax.jit(partial(update_observing, env.observation))
        for index, state in enumerate(states):
            shown = own_part(trajectory.observation, index, num_envs, axis=1)
            statistics = update(state.actor.observation_statistics, shown)
            actor = state.actor._replace(observation_statistics=statistics)
            states[index] = state._replace(actor=actor)
    episodes = started()
    own = [stagger(env, own_part(episodes, index, num_envs)) for index in range(len(states))]
    return [
        state._replace(rollout=state.rollout._replace(episodes=x))
        for state, x in zip(states, own, strict=True)
    ]


def own_part(tree: Any, index: int, num_envs: int, axis: int = 0) -> Any:
    """Returns the part of arrays of a group that belongs to a seed.

    Args:
        tree: arrays, in which the environments of all seeds stand on one axis.
        index: the index of the seed in its group.
        num_envs: number of environments of each seed.
        axis: the axis of the environments.
    """
    part = (slice(None),) * axis + (slice(index * num_envs, (index + 1) * num_envs),)
    return jax.tree.map(lambda x: x[part], tree)


def joined(trees: Sequence[Any]) -> Any:
    """Returns trees of the seeds of a group as one tree. This joins the first axis of arrays."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *trees)


def choose_for_all(
    chooses: Sequence[Choose], num_envs: int, stopping: threading.Event | None = None
) -> Choose:
    """Returns the function that chooses the actions of a group in one step.

    Its actor, keys, acting state, actions and noise have an entry for each seed. The actions of the
    environment are those of all seeds.

    Args:
        chooses: the function of each seed, from `make_choose`.
        num_envs: number of environments of each seed.
        stopping: if it is set, the function raises `Stopping`.
    """

    def choose(actors, keys, t, episodes, acting_states):
        if stopping is not None and stopping.is_set():
            raise Stopping
        parts = [own_part(episodes, index, num_envs) for index in range(len(chooses))]
        each = zip(chooses, actors, keys, parts, acting_states, strict=True)
        chosen = [choose(actor, key, t, part, acting) for choose, actor, key, part, acting in each]
        given, *others = zip(*chosen, strict=True)
        return joined(given), *others

    return choose


def finding_lost(lost: set[int], broken: dict[int, str], num_envs: int) -> Check:
    """Returns a function that finds the seeds of a group whose environments return bad numbers.

    The function is for `host_rollout`. It raises `NotFinite` if all seeds are lost.

    Args:
        lost: the indices of the seeds that are not trained any longer. The function adds to it.
        broken: gets the error message of each seed that the function adds to `lost`.
        num_envs: number of environments of each seed.
    """

    def check(env, numbers, mask, when, length=None):
        owners = np.repeat(np.arange(len(mask) // num_envs), num_envs)
        for index in set(owners.tolist()) - lost:
            own, rows = owners == index, owners[mask] == index
            of_seed = lambda x, own=own, rows=rows: x[own if len(x) == len(own) else rows]
            own_length = None if length is None else length[own]
            try:
                require_sound(env, jax.tree.map(of_seed, numbers), mask[own], when, own_length)
            except NotFinite as error:
                lost.add(index)
                broken[index] = str(error)
                if lost.issuperset(owners.tolist()):
                    raise
        return np.isin(owners, list(lost))

    return check


def advance_seeds(
    env: Environment,
    programs: Sequence[HostPrograms],
    pool: Pool,
    states: Sequence[State],
    count: int,
    alive: Sequence[bool],
    broken: dict[int, str],
    stopping: threading.Event,
) -> list[tuple[State, list[Any]]]:
    """Runs `count` updates of the seeds of a group. A seed stops when its numbers are not finite.

    The environments of a seed that has stopped go on, because the pool steps all environments.

    Args:
        env: the environment.
        programs: the programs of each seed.
        pool: copies of the environment, an equal number for each seed.
        states: the state of each seed.
        count: number of updates.
        alive: which seeds have not stopped earlier. At least one has not.
        broken: gets the error message of each seed whose environment returns bad numbers.
        stopping: if it is set, the function raises `Stopping`.

    Returns:
        For each seed: the state after the last update whose numbers are finite, and `(metrics,
        health)` of each update. Updates that were not done have `programs.broken`.
    """
    states, outputs = list(states), [[] for _ in states]
    num_envs = states[0].rollout.episodes.length.shape[0]
    lost = {index for index, living in enumerate(alive) if not living}
    choose = choose_for_all([program.choose for program in programs], num_envs, stopping)
    check = finding_lost(lost, broken, num_envs)

    def collect(states):
        rollouts = [state.rollout for state in states]
        try:
            episodes, acting, trajectory = host_rollout(
                env,
                pool,
                choose,
                [state.actor for state in states],
                [next_key(state) for state in states],
                joined([rollout.episodes for rollout in rollouts]),
                [rollout.acting for rollout in rollouts],
                programs[0].num_steps,
                check,
            )
        except NotFinite:  # the last living seed is lost
            return
        for index in set(range(len(states))) - lost:
            rollout = rollouts[index].after(own_part(episodes, index, num_envs), acting[index])
            own = own_part(trajectory._replace(action=(), noise=()), index, num_envs, axis=1)
            chosen = {"action": trajectory.action[index], "noise": trajectory.noise[index]}
            yield index, rollout, own._replace(**chosen)

    batch = list(collect(states))
    for update in range(count):
        improved = {
            index: programs[index].improve(states[index]._replace(rollout=rollout), trajectory)
            for index, rollout, trajectory in batch
        }
        fitted = {  # the calls do not wait
            index: programs[index].fit(states[index].critic, *to_fit)
            for index, (_, *to_fit) in improved.items()
        }
        acting = list(states)  # the environment must not see actions of a broken policy
        for index, (state, *_, health) in improved.items():
            if health.finite:
                acting[index] = state
            else:
                lost.add(index)
        more = update + 1 < count and len(lost) < len(states)
        batch = list(collect(acting)) if more else []
        for index, (critic, output) in fitted.items():
            outputs[index].append(output)
            if output[1].finite:
                states[index] = improved[index][0]._replace(critic=critic)
            else:
                lost.add(index)
        batch = [x for x in batch if x[0] not in lost]
    rest = [[x.broken] * (count - len(done)) for x, done in zip(programs, outputs, strict=True)]
    return [(x, done + own) for x, done, own in zip(states, outputs, rest, strict=True)]


@jax.jit
def next_key(state: State) -> Any:
    """Returns the key of the next rollout."""
    return update_keys(state).collect
