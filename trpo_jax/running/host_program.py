"""The program for environments that run on the host: the seeds run in parallel threads.

Within a seed, the step of the policy waits for its batch, and the next batch waits for the step of
the policy. The critic is fitted while the next batch is collected. Seeds do not wait for each
other, so the environments of one seed are stepped while the device learns from another.
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
    Choose,
    action_keys,
    failures_named,
    host_rollout,
    make_choose,
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
    # A pool is opened, stepped and closed in the same thread, since some environments need that.
    threads = [OwnThread() for _ in range(min(len(seeds), os.cpu_count() or 1))]
    pools: dict[int, Pool] = {}
    broken_by: dict[int, str] = {}
    stopping = threading.Event()

    in_threads = partial(side_by_side, threads, stopping)

    def open_and_start(index, seed, state):
        with failures_named(env):
            pools[index] = env.open((seed, num_done) if num_done else seed, num_envs)
        return start(algorithm, pools[index], state, warm_up=num_done == 0)

    def close():
        stopping.set()
        for index, pool in pools.items():
            close_in(threads[index % len(threads)], pool, env.name)
        pools.clear()
        for thread in threads:
            thread.end()

    try:
        starting = f"Starting {num_envs} environments per seed"
        told = tell and (lambda words: tell(f"{starting}: {words}"))
        states = in_threads(open_and_start, seeds, states, tell=told)
    except BaseException:
        close()
        raise

    def advance(
        state: HostState, count: int, alive: Sequence[bool] | np.ndarray | None = None
    ) -> tuple[HostState, Any]:
        def advance_one(index, state, living):
            program, broke = programs[index], partial(broken_by.setdefault, index)
            if not living:
                return state, [program.broken] * count
            stoppable = program._replace(choose=partial(_choose_or_stop, program.choose, stopping))
            return advance_seed(env, stoppable, pools[index], state, count, broke)

        all_alive = [True] * len(seeds)
        results = in_threads(advance_one, state.seeds, all_alive if alive is None else alive)
        states, outputs = zip(*results, strict=True)
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


def side_by_side(
    threads: Sequence[OwnThread],
    stopping: threading.Event,
    function: Callable[..., Any],
    *args: Any,
    tell: Callable[[str], None] | None = None,
) -> list[Any]:
    """Calls a function for each seed, each in the thread of the seed, and returns the results.

    Args:
        threads: the threads. Seed k has the thread of number k modulo the number of threads.
        stopping: is set if a call fails, so that the other calls end soon and return None.
        function: `(index of the seed, argument of the seed, ...) -> result`.
        args: sequences with one argument for each seed.
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
        threads[index % len(threads)].submit(call, index, *seed_args)
        for index, seed_args in enumerate(zip(*args, strict=True))
    ]
    began, pending = time.monotonic(), futures
    try:
        while pending:
            done, pending = wait(pending, TELL_EVERY if tell else None, FIRST_EXCEPTION)
            for future in done:
                future.result()
            if tell and pending:
                ready, seconds = len(futures) - len(pending), time.monotonic() - began
                tell(f"{ready} of {len(futures)} seeds after {seconds:.0f} s")
    except BaseException:
        stopping.set()
        wait(futures)
        raise
    return [future.result() for future in futures]


def _choose_or_stop(choose, stopping, *args):
    if stopping.is_set():
        raise Stopping
    return choose(*args)


def start(algorithm: Algorithm, pool: Pool, state: State, warm_up: bool) -> State:
    """Returns the state of a seed with the episodes of a pool.

    Args:
        algorithm: the algorithm.
        pool: copies of its environment.
        state: from `algorithm.init`.
        warm_up: whether to measure the first statistics of observations with random actions, as
            `trpo_jax.algorithms.on_policy.random_statistics` does on the device.
    """
    env, num_envs = algorithm.env, state.rollout.episodes.length.shape[0]
    if warm_up and getattr(algorithm.config, "normalize_observations", False):
        choose = make_choose(
            env,
            lambda actor, key, episodes, _: (
                random_actions(key, env.action, num_envs, split_mask(episodes.observation)[1]),
                (),
                (),
            ),
        )
        episodes, num_steps = start_host_episodes(env, pool, num_envs), algorithm.num_steps
        key = jax.random.fold_in(state.key, NO_UPDATE)
        _, _, trajectory = host_rollout(
            env, pool, choose, (), key, episodes, (), min(num_steps, RANDOM_STEPS)
        )
        statistics = state.actor.observation_statistics
        update = jax.jit(partial(update_observing, env.observation))
        statistics = update(statistics, trajectory.observation)
        state = state._replace(actor=state.actor._replace(observation_statistics=statistics))
    episodes = stagger(env, start_host_episodes(env, pool, num_envs))
    return state._replace(rollout=state.rollout._replace(episodes=episodes))


def advance_seed(
    env: Environment,
    programs: HostPrograms,
    pool: Pool,
    state: State,
    count: int,
    broke: Callable[[str], Any],
) -> tuple[State, list[Any]]:
    """Runs `count` updates of one seed. Stops when its numbers are not finite.

    Args:
        env: the environment.
        programs: the programs of the seed.
        pool: copies of the environment.
        state: the state of the seed.
        count: number of updates.
        broke: is called with the error message if numbers of the environment are not finite.

    Returns:
        The state after the last update whose numbers are finite, and `(metrics, health)` of each
        update. Updates that were not done have `programs.broken`.
    """

    def collect(state):
        rollout = state.rollout
        try:
            episodes, acting, trajectory = host_rollout(
                env,
                pool,
                programs.choose,
                state.actor,
                next_key(state),
                rollout.episodes,
                rollout.acting,
                programs.num_steps,
            )
        except NotFinite as error:
            broke(str(error))
            return None
        return rollout.after(episodes, acting), trajectory

    batch, outputs = collect(state), []
    while batch is not None:
        rollout, trajectory = batch
        collected = state._replace(rollout=rollout)
        improved, *to_fit, health = programs.improve(collected, trajectory)
        critic, output = programs.fit(collected.critic, *to_fit, health)  # the call does not wait
        more = len(outputs) + 1 < count
        # The environment must not see actions of a broken policy.
        batch = collect(improved) if more and health.finite else None
        outputs.append(output)
        if not output[1].finite:
            break
        state = improved._replace(critic=critic)
    return state, outputs + [programs.broken] * (count - len(outputs))


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
