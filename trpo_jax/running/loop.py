"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, Learnt, State, learnt_of
from trpo_jax.algorithms.schedules import begun_anew
from trpo_jax.devices import Placement
from trpo_jax.envs.base import LARGEST
from trpo_jax.processes import peer_failures_named, to_devices, to_host
from trpo_jax.running.host_program import HostState, host_program, stack_states
from trpo_jax.running.memory import shortage_named
from trpo_jax.running.program import Health, Program, device_program

OF_EPISODES = ("episodic_return", "episode_length")  # metrics that need an episode that ended


class Chunk(NamedTuple):
    """What one call of the compiled program gave.

    Attributes:
        first_update: number of its first update, counted from 1.
        last_update: number of its last update.
        metrics: each `[num_seeds, updates]`, on the host; NaN in `episodic_return` and
            `episode_length` where no episode ended. An algorithm may have none of these.
        health: of these updates, on the host.
        state: after its last update; used up by the next chunk.
        actor: what acting needs after its last update, leading axis `[num_seeds]`, on the host.
        seconds: training time until its end, compilation excluded.
    """

    first_update: int
    last_update: int
    metrics: dict[str, np.ndarray]
    health: Health
    state: State
    actor: Actor
    seconds: float


class NonFiniteError(FloatingPointError):
    """The numbers of a run stopped being finite."""


def compile_program(
    algorithm: Algorithm,
    seeds: Sequence[int],
    updates_per_chunk: int,
    num_done: int = 0,
    placement: Placement | None = None,
) -> Program:
    """Compiles `updates_per_chunk` updates of all seeds as one program, and initialises them.

    Each seed is a run of its own: seed s gives the same run whatever other seeds run beside it, up
    to the rounding of batched matrix products.

    Args:
        algorithm: what to run.
        seeds: one non-negative integer each.
        updates_per_chunk: updates in one call.
        num_done: updates that were done before; `resume_program` then gives it their state.
        placement: which devices it is on, where the environment is; the default one if None.

    Returns:
        A program, to be closed in the end.

    Raises:
        EnvironmentFailure: if the environment runs on the host and cannot be started.
    """
    with shortage_named():
        if algorithm.env.open is None:
            return device_program(algorithm, seeds, updates_per_chunk, placement)
        return host_program(algorithm, seeds, updates_per_chunk, num_done)


def resume_program(program: Program, state: State) -> Program:
    """Returns a fresh program with the state of an earlier one in place of its own.

    On the device it goes on as if it had never stopped. Environments on the host cannot be stored:
    their episodes begin anew, and with them all that belongs to running episodes.
    """
    if isinstance(state, HostState):
        seeds = [
            saved._replace(rollout=begun_anew(fresh.rollout, saved.num_updates))
            for saved, fresh in zip(state.seeds, program.state.seeds, strict=True)
        ]
        return program._replace(state=HostState(state.actor, tuple(seeds)))
    return program._replace(state=state)


def start_from(program: Program, learnt: Learnt) -> Program:
    """Returns a fresh program whose seeds start from what others have learnt.

    Args:
        program: from `compile_program`.
        learnt: for each seed, leading axis `[num_seeds]`.
    """
    own = {name: x for name, x in learnt._asdict().items() if x is not None}
    state = program.state
    if isinstance(state, HostState):
        seeds = [
            seed._replace(**jax.tree.map(lambda x, i=index: x[i], own))
            for index, seed in enumerate(state.seeds)
        ]
        return program._replace(state=stack_states(seeds))
    place = lambda x, old: to_devices(x, old.sharding)
    placed = {name: jax.tree.map(place, x, getattr(state, name)) for name, x in own.items()}
    return program._replace(state=state._replace(**placed))


def learnt_by(state: State) -> Learnt:
    """Returns what all seeds have learnt, leading axis `[num_seeds]`, on the host.

    Raises:
        PeerFailure: if another process of the run is gone.
    """
    if not isinstance(state, HostState):
        return to_host(learnt_of(state))
    seeds = [jax.device_get(learnt_of(seed)) for seed in state.seeds]
    return jax.tree.map(lambda *xs: np.stack(xs), *seeds)


def advance_chunks(
    program: Program, num_updates: int, num_done: int = 0, seconds: float = 0.0
) -> Iterator[Chunk]:
    """Runs a program to its end, yielding after each chunk, whatever the numbers are.

    Args:
        program: from `compile_program`; used up by the run.
        num_updates: updates in the whole run; the last chunk may be shorter than the others.
        num_done: updates that were done before.
        seconds: training time of those.

    Raises:
        PeerFailure: if another process of the run is gone.
    """
    state = program.state
    for done in range(num_done, num_updates, program.updates_per_chunk):
        count = min(program.updates_per_chunk, num_updates - done)
        started = time.perf_counter()
        with shortage_named(), peer_failures_named():
            state, outputs = program.advance(state, count)
            outputs, actor = to_host((outputs, state.actor))
        seconds += time.perf_counter() - started
        metrics, health = jax.tree.map(lambda x, n=count: x[:, :n], outputs)
        yield Chunk(done + 1, done + count, mark_missing(metrics), health, state, actor, seconds)


def mark_missing(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the metrics with NaN in those of episodes where no episode ended."""
    if "num_episodes" not in metrics:
        return metrics
    of_episodes = {name: metrics[name] for name in OF_EPISODES if name in metrics}
    none = metrics["num_episodes"] == 0
    return metrics | {name: np.where(none, np.nan, x) for name, x in of_episodes.items()}


def run_chunks(
    program: Program, num_updates: int, num_done: int = 0, seconds: float = 0.0
) -> Iterator[Chunk]:
    """Does what `advance_chunks` does, and stops where numbers are not finite.

    Raises:
        NonFiniteError: naming the first update and seed that gave numbers which are not finite.
            All updates before it were yielded. The last actor of each seed is its last good one;
            that of other seeds may be some updates ahead of the metrics.
    """
    for chunk in advance_chunks(program, num_updates, num_done, seconds):
        finite = chunk.health.finite
        if finite.all():
            yield chunk
            continue
        num_good = int(np.argmin(finite.all(axis=0)))
        if num_good > 0:
            good = {name: x[:, :num_good] for name, x in chunk.metrics.items()}
            last_update = chunk.first_update + num_good - 1
            yield chunk._replace(last_update=last_update, metrics=good)
        index = int(np.argmin(finite[:, num_good]))
        where = f"update {chunk.first_update + num_good} of seed {program.seeds[index]}"
        health = jax.tree.map(lambda x, i=index, j=num_good: x[i, j], chunk.health)
        raise NonFiniteError(_reason(program, where, health))


def _reason(program: Program, where: str, health: Health) -> str:
    if health.broken_step >= 0:
        value, component = health.broken_value, health.broken_component
        reward = f"a reward of {value:g}"
        observation = f"an observation whose component {component} is {value:g}"
        return (
            f"Environment {program.env_name} returned {reward if component < 0 else observation}, "
            f"in step {health.broken_step + 1} of {where}. Numbers that are not finite, or from "
            f"{LARGEST:g} on, cannot be learnt from."
        )
    return (
        f"{where[0].upper()}{where[1:]} gave numbers that are not finite. A smaller critic_lr or "
        "max_kl, more damping, or scale_rewards often helps."
    )


def choose_chunk(num_updates: int, *intervals: int, num_chunks: int = 50) -> int:
    """Returns how many updates a chunk is to have.

    It makes at least `num_chunks` chunks, if there are so many updates, and divides every interval,
    so that chunks end where these do. The last chunk may be shorter.
    """
    most = max(1, num_updates // num_chunks)
    common = math.gcd(*intervals)
    if not common:
        return most
    return max(d for d in range(1, min(most, common) + 1) if common % d == 0)
