"""The program for environments that run on the host: the seeds run in parallel threads.

Within a seed, the step of the policy waits for its batch, and the next batch waits for the step of
the policy. The critic is fitted while the next batch is collected.

If the environment can open one pool for several seeds, the seeds form groups. A group has one pool
and one thread, so a step of Python serves all its seeds. Otherwise each seed is a group of its own.
Groups do not wait for each other, so the environments of one group are stepped while the device
learns from another. A seed learns the same in every group.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, State, update_keys
from trpo_jax.algorithms.on_policy import RANDOM_STEPS
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.envs.episodes import Transition, stagger
from trpo_jax.envs.specs import split_mask
from trpo_jax.envs.threads import OwnThread, close_in
from trpo_jax.errors import NotFinite
from trpo_jax.host_rollout import (
    Check,
    Choose,
    action_keys,
    failures_named,
    host_rollout,
    make_choose,
    require_sound,
    start_host_episodes,
)
from trpo_jax.observing import update_observing
from trpo_jax.rollout import random_actions
from trpo_jax.running.memory import SIZES, compiled_bytes, require_room
from trpo_jax.running.program import Health, Program, as_metrics, check, cpu_options

TELL_EVERY = 10.0  # seconds between messages while environments start
NO_UPDATE = 2**31 - 1  # the number of no update, for a key that no update uses


class HostState(NamedTuple):
    """The states of all seeds.

    Attributes:
        actor: the actors of all seeds, leading axis `[num_seeds]`.
        seeds: the state of each seed.
    """

    actor: Actor
    seeds: tuple[State, ...]


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


class HostRuns(NamedTuple):
    """The compiled programs of runs that differ in their seeds and in some values.

    Attributes:
        algorithm: the algorithm of one of the runs, for everything that is the same in all runs.
        init: `(key, values of one run) -> state`.
        programs: `values of one run -> the programs of its seed`.
        seconds: time spent compiling.
    """

    algorithm: Algorithm
    init: Callable[..., State]
    programs: Callable[[Any], HostPrograms]
    seconds: float


def host_program(
    algorithm: Algorithm,
    seeds: Sequence[int],
    updates_per_chunk: int,
    num_done: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Program:
    """Returns the program for an environment that runs on the host; see `compile_program`.

    Raises:
        EnvironmentFailure: if the environment cannot be started.
    """
    runs = compile_host_runs(lambda _: algorithm, ())
    return start_host_runs(runs, seeds, [()] * len(seeds), updates_per_chunk, num_done, tell)


def start_host_runs(
    runs: HostRuns,
    seeds: Sequence[int],
    values: Sequence[Any],
    updates_per_chunk: int,
    num_done: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Program:
    """Starts the environments of some runs, and returns the program that does the runs in parallel.

    Args:
        runs: from `compile_host_runs`.
        seeds: the seed of each run.
        values: the values of each run.
        updates_per_chunk: maximum number of updates in one call.
        num_done: number of updates that were done earlier.
        tell: is called with messages while environments take long to start.

    Raises:
        EnvironmentFailure: if the environment cannot be started.
    """
    algorithm, env = runs.algorithm, runs.algorithm.env
    keys = [jax.random.key(np.uint32(seed)) for seed in seeds]
    states = [runs.init(*pair) for pair in zip(keys, values, strict=True)]
    programs = [runs.programs(x) for x in values]
    num_envs = states[0].rollout.episodes.length.shape[0]
    groups = groups_of(len(seeds), env.joint)
    # A pool is opened, stepped and closed in the same thread, since some environments need that.
    threads = [OwnThread() for _ in range(min(len(groups), os.cpu_count() or 1))]
    pools: dict[int, Pool] = {}
    broken_by: dict[int, str] = {}
    stopping = threading.Event()

    in_threads = partial(side_by_side, threads, stopping)
    members = lambda xs: [[xs[index] for index in group] for group in groups]
    in_order = lambda of_groups: [x for group in of_groups for x in group]

    def open_and_start(number, seeds, states):
        own = [(seed, num_done) if num_done else seed for seed in seeds]
        with failures_named(env):
            pools[number] = env.open(own if env.joint else own[0], num_envs)
        return start(algorithm, pools[number], states, warm_up=num_done == 0)

    def close():
        stopping.set()
        for number, pool in pools.items():
            close_in(threads[number % len(threads)], pool, env.name)
        pools.clear()
        for thread in threads:
            thread.end()

    try:
        starting = f"Starting {num_envs} environments per seed"
        told = tell and (lambda words: tell(f"{starting}: {words}"))
        states = in_order(in_threads(open_and_start, members(seeds), members(states), tell=told))
    except BaseException:
        close()
        raise

    def advance(
        state: HostState, count: int, alive: Sequence[bool] | np.ndarray | None = None
    ) -> tuple[HostState, Any]:
        def advance_group(number, programs, states, alive):
            if not any(alive):
                return [(x, [programs[0].broken] * count) for x in states]
            pool, broken = pools[number], {}
            results = advance_seeds(env, programs, pool, states, count, alive, broken, stopping)
            for index, message in broken.items():
                broken_by.setdefault(groups[number][index], message)
            return results

        alive = [True] * len(seeds) if alive is None else np.asarray(alive).tolist()
        parts = members(programs), members(state.seeds), members(alive)
        states, outputs = zip(*in_order(in_threads(advance_group, *parts)), strict=True)
        of_seeds = [jax.tree.map(lambda *xs: np.stack(xs), *updates) for updates in outputs]
        return stack_states(states), jax.tree.map(lambda *xs: np.stack(xs), *of_seeds)

    return Program(
        env,
        stack_states(states),
        advance,
        tuple(seeds),
        updates_per_chunk,
        runs.seconds,
        close,
        broken_by,
    )


def groups_of(num_seeds: int, joint: bool) -> list[list[int]]:
    """Returns the seeds of each group. A group has one seed if its environment is not `joint`.

    Otherwise there are at most as many groups as cores.
    """
    number = min(num_seeds, os.cpu_count() or 1) if joint else num_seeds
    return [group.tolist() for group in np.array_split(np.arange(num_seeds), number)]


def side_by_side(
    threads: Sequence[OwnThread],
    stopping: threading.Event,
    function: Callable[..., Any],
    *args: Any,
    tell: Callable[[str], None] | None = None,
) -> list[Any]:
    """Calls a function for each group, each in the thread of the group, and returns the results.

    Args:
        threads: the threads. Group k has the thread of number k modulo the number of threads.
        stopping: is set if a call fails, so that the other calls end soon and return None.
        function: `(number of the group, argument of the group, ...) -> result`.
        args: sequences with one argument for each group. An argument is a sequence, with an entry
            for each seed of the group.
        tell: is called with messages about how many seeds are ready, if they take long.
    """

    def call(*args):
        try:
            return None if stopping.is_set() else function(*args)
        except Stopping:
            return None
        except BaseException:
            stopping.set()  # otherwise the other seeds would run to the end of the chunk
            raise

    futures = [
        threads[index % len(threads)].submit(call, index, *group_args)
        for index, group_args in enumerate(zip(*args, strict=True))
    ]
    sizes = {future: len(own) for future, own in zip(futures, args[0], strict=True)}
    began, pending = time.monotonic(), futures
    try:
        while pending:
            done, pending = wait(pending, TELL_EVERY if tell else None, FIRST_EXCEPTION)
            for future in done:
                future.result()
            if tell and pending:
                ready = sum(size for future, size in sizes.items() if future not in pending)
                seconds = time.monotonic() - began
                tell(f"{ready} of {sum(sizes.values())} seeds after {seconds:.0f} s")
    except BaseException:
        stopping.set()
        wait(futures)
        raise
    return [future.result() for future in futures]


def start(algorithm: Algorithm, pool: Pool, states: Sequence[State], warm_up: bool) -> list[State]:
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


def compile_host_runs(make: Callable[[Any], Algorithm], values: Any) -> HostRuns:
    """Compiles the programs of runs on the host that differ in their seeds and in some values.

    Args:
        make: `values of one run -> algorithm`. JAX traces it.
        values: the values of one of the runs, any pytree.
    """
    started = time.perf_counter()
    algorithm = make(values)
    init = jax.jit(lambda key, values: make(values).init(key))
    state = init(jax.random.key(0), values)
    trajectory = trajectory_shapes(algorithm, state)

    @jax.jit
    def improve(values, state, trajectory):
        improved, fit_input, metrics = make(values).improve(state, trajectory)
        metrics = as_metrics(metrics)
        return (
            improved,
            fit_input,
            metrics,
            check(improved, metrics, trajectory, algorithm.env.action),
        )

    @jax.jit
    def fit(values, critic, fit_input, metrics, health):
        critic, fit_metrics = make(values).fit(critic, fit_input)
        fit_metrics = as_metrics(fit_metrics)
        finite = jnp.stack([health.finite, *(jnp.isfinite(x) for x in fit_metrics.values())])
        return critic, (metrics | fit_metrics, health._replace(finite=finite.all()))

    improved, *to_fit = jax.eval_shape(improve, values, state, trajectory)
    _, (metrics, health) = jax.eval_shape(fit, values, improved.critic, *to_fit)
    broken = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), health)._replace(
        broken_step=np.int32(-1)
    )
    broken_update = {name: np.float32(np.nan) for name in metrics}, broken
    act = lambda given, *acting: make(given[1]).act(given[0], *acting)
    choose, num_steps = make_choose(algorithm.env, act), algorithm.num_steps
    rollout, keys = state.rollout, action_keys(next_key(state), num_steps)
    choose((state.actor, values), keys, 0, rollout.episodes, rollout.acting)  # compiles `choose`
    improve = improve.lower(values, state, trajectory).compile(cpu_options())
    needed = compiled_bytes(improve)
    require_room("An update", needed, jax.devices()[0], SIZES, at_least=False)
    fit = fit.lower(values, improved.critic, *to_fit).compile(cpu_options())

    def programs(values):
        return HostPrograms(
            lambda actor, *others: choose((actor, values), *others),
            partial(improve, values),
            partial(fit, values),
            num_steps,
            broken_update,
        )

    return HostRuns(algorithm, init, programs, time.perf_counter() - started)


def trajectory_shapes(algorithm: Algorithm, state: State) -> Transition:
    """Returns the shapes and dtypes of a trajectory."""
    episodes = state.rollout.episodes
    actions, noise, _ = jax.eval_shape(
        algorithm.act, state.actor, state.key, episodes, state.rollout.acting
    )
    flag = jax.ShapeDtypeStruct(episodes.length.shape, bool)
    step = Transition(
        observation=episodes.observation,
        action=actions,
        reward=episodes.total_reward,
        terminated=flag,
        truncated=flag,
        next_observation=episodes.observation,
        first=flag,
        length=episodes.length,
        total_reward=episodes.total_reward,
        whole=flag,
        broken=flag,
        noise=noise,
        costs=episodes.total_costs,
        total_costs=episodes.total_costs,
    )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((algorithm.num_steps, *x.shape), x.dtype), step
    )


def stack_states(states: Sequence[State]) -> HostState:
    """Returns the states of all seeds as one state."""
    actors = [jax.device_get(state.actor) for state in states]
    return HostState(jax.tree.map(lambda *xs: np.stack(xs), *actors), tuple(states))
