"""The program for environments that run on the host: one thread a seed, side by side.

Within a seed, the policy's step waits for its batch, and the next batch for the policy's step; the
critic is fitted while the next batch is collected. Between seeds nothing waits, so that the
environments of one are stepped while the device learns from another's.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, State
from trpo_jax.envs.episodes import Transition, stagger
from trpo_jax.host_rollout import (
    action_keys,
    failures_named,
    host_rollout,
    make_choose,
    start_host_episodes,
)
from trpo_jax.running.program import Program, check, cpu_options


class HostState(NamedTuple):
    """States of all seeds.

    Attributes:
        actor: what acting needs, leading axis `[num_seeds]`.
        seeds: the state of each.
    """

    actor: Actor
    seeds: tuple[State, ...]


def host_program(
    algorithm: Algorithm, seeds: Sequence[int], updates_per_chunk: int, num_done: int = 0
) -> Program:
    """Returns the program for an environment that runs on the host; see `compile_program`.

    Raises:
        EnvironmentFailure: if the environment cannot be started.
    """
    env = algorithm.env
    started = time.perf_counter()
    init, begin = jax.jit(algorithm.init), jax.jit(algorithm.begin)
    choose = make_choose(env, algorithm.act)
    states = [init(jax.random.key(np.uint32(seed))) for seed in seeds]
    num_envs = states[0].episodes.length.shape[0]
    num_steps = algorithm.steps_per_update // num_envs
    trajectory = trajectory_shapes(algorithm, states[0], num_steps)
    improve, finish = compile_update(algorithm, states[0], trajectory)
    key, memory = begin(states[0])  # what acts is compiled by its first call
    choose(states[0].actor, action_keys(key, num_steps), 0, states[0].episodes, memory)
    seconds = time.perf_counter() - started
    stopping = threading.Event()

    def collect(pool, state):
        key, memory = begin(state)
        episodes, memory, trajectory = host_rollout(
            env, pool, choose, state.actor, key, state.episodes, memory, num_steps
        )
        return state._replace(episodes=episodes, exploration=memory), trajectory

    def advance_seed(pool, state):
        collected, trajectory = collect(pool, state)
        outputs = []
        while True:
            improved, *lesson, health = improve(collected, trajectory)
            critic, output = finish(collected.critic, *lesson, health)  # runs on meanwhile
            more = len(outputs) + 1 < updates_per_chunk and not stopping.is_set()
            if more and health.finite:  # no environment is to see a broken policy
                collected, trajectory = collect(pool, improved)
            outputs.append(output)
            if not output[1].finite:
                return state, outputs + [output] * (updates_per_chunk - len(outputs))
            state = improved._replace(critic=critic)
            if not more:
                return state, outputs
            collected = collected._replace(critic=critic)

    def advance(state):
        def advance_or_stop(pool, state):
            try:
                return advance_seed(pool, state)
            except BaseException:
                stopping.set()  # or the other seeds would go on to the end of the chunk
                raise

        with ThreadPoolExecutor(min(len(seeds), os.cpu_count() or 1)) as threads:
            try:
                results = list(threads.map(advance_or_stop, pools, state.seeds))
            except BaseException:
                stopping.set()
                raise
        states, outputs = zip(*results, strict=True)
        of_seeds = [jax.tree.map(lambda *xs: np.stack(xs), *updates) for updates in outputs]
        return stack(states), jax.tree.map(lambda *xs: np.stack(xs), *of_seeds)

    def close():
        for pool in pools:
            pool.close()

    pools = []
    try:
        for index, seed in enumerate(seeds):
            with failures_named(env):
                pools.append(env.open((seed, num_done) if num_done else seed, num_envs))
            episodes = stagger(env, start_host_episodes(env, pools[-1], num_envs))
            states[index] = states[index]._replace(episodes=episodes)
    except BaseException:
        close()
        raise
    return Program(
        env.name, stack(states), advance, tuple(seeds), updates_per_chunk, seconds, close
    )


def compile_update(
    algorithm: Algorithm, state: State, trajectory: Transition
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the two compiled programs of an update, the second of which no rollout waits for.

    They are `improve`, `(state, trajectory) -> (state, lesson, metrics, health)`, and `finish`,
    `(state.critic, lesson, metrics, health) -> (state.critic, (metrics, health))`.

    Args:
        algorithm: the algorithm.
        state: a state of it, or its shapes.
        trajectory: shapes of a trajectory.
    """

    @jax.jit
    def improve(state, trajectory):
        improved, lesson, metrics = algorithm.improve(state, trajectory)
        return improved, lesson, metrics, check(improved, metrics, trajectory)

    @jax.jit
    def finish(critic, lesson, metrics, health):
        critic, fit_metrics = algorithm.fit(critic, lesson)
        finite = jnp.stack([health.finite, *(jnp.isfinite(x) for x in fit_metrics.values())])
        return critic, (metrics | fit_metrics, health._replace(finite=finite.all()))

    improved, *rest = jax.eval_shape(improve, state, trajectory)
    return (
        improve.lower(state, trajectory).compile(cpu_options()),
        finish.lower(improved.critic, *rest).compile(cpu_options()),
    )


def trajectory_shapes(algorithm: Algorithm, state: State, num_steps: int) -> Transition:
    """Returns shapes and dtypes of what a rollout of `num_steps` steps gives."""
    key, memory = jax.eval_shape(algorithm.begin, state)
    episodes = state.episodes
    actions, context, _ = jax.eval_shape(algorithm.act, state.actor, key, episodes, memory)
    flag = jax.ShapeDtypeStruct(episodes.length.shape, bool)
    step = Transition(
        observation=episodes.observation,
        action=actions,
        reward=episodes.total_reward,
        terminated=flag,
        truncated=flag,
        next_observation=episodes.observation,
        length=episodes.length,
        total_reward=episodes.total_reward,
        context=context,
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_steps, *x.shape), x.dtype), step)


def stack(states: Sequence[State]) -> HostState:
    """Returns the states of all seeds as one."""
    actors = [jax.device_get(state.actor) for state in states]
    return HostState(jax.tree.map(lambda *xs: np.stack(xs), *actors), tuple(states))
