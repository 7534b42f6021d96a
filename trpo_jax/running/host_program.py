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

from trpo_jax.algorithms.base import Actor, Algorithm, State
from trpo_jax.envs.base import Pool
from trpo_jax.envs.episodes import Transition
from trpo_jax.envs.threads import OwnThread, close_in
from trpo_jax.errors import counted
from trpo_jax.host_rollout import action_keys, failures_named, make_choose
from trpo_jax.running.host_groups import (
    HostPrograms,
    Stopping,
    advance_seeds,
    next_key,
    start_group,
)
from trpo_jax.running.memory import SIZES, compiled_bytes, require_room
from trpo_jax.running.program import Program, as_metrics, check, cpu_options

TELL_EVERY = 10.0  # seconds between messages while environments start


class HostState(NamedTuple):
    """The states of all seeds.

    Attributes:
        actor: the actors of all seeds, leading axis `[num_seeds]`.
        seeds: the state of each seed.
    """

    actor: Actor
    seeds: tuple[State, ...]


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
        return start_group(algorithm, pools[number], states, warm_up=num_done == 0)

    def close():
        stopping.set()
        for number, pool in pools.items():
            close_in(threads[number % len(threads)], pool, env.name)
        pools.clear()
        for thread in threads:
            thread.end()

    try:
        starting = f"Starting {counted(num_envs, 'environment')} per seed"
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
