"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, State
from trpo_jax.devices import Placement
from trpo_jax.processes import peer_failures_named, to_host
from trpo_jax.running.host_program import HostState, host_program
from trpo_jax.running.program import Health, Program, device_program


class Chunk(NamedTuple):
    """What one call of the compiled program gave.

    Attributes:
        first_update: number of its first update, counted from 1.
        metrics: each `[num_seeds, updates]`, on the host.
        health: of these updates, on the host.
        state: after its last update; used up by the next chunk.
        actor: what acting needs after its last update, leading axis `[num_seeds]`, on the host.
        seconds: training time until its end, compilation excluded.
    """

    first_update: int
    metrics: dict[str, np.ndarray]
    health: Health
    state: State
    actor: Actor
    seconds: float

    @property
    def last_update(self) -> int:
        """Number of its last update."""
        numbers = next(iter(self.metrics.values())) if self.metrics else self.health.finite
        return self.first_update + numbers.shape[1] - 1


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
        num_done: updates that were done before; `go_on` then gives it their state.
        placement: which devices it is on, where the environment is; the default one if None.

    Returns:
        A program, to be closed in the end.

    Raises:
        EnvironmentFailure: if the environment runs on the host and cannot be started.
    """
    if algorithm.env.open is None:
        return device_program(algorithm, seeds, updates_per_chunk, placement)
    return host_program(algorithm, seeds, updates_per_chunk, num_done)


def go_on(program: Program, state: State) -> Program:
    """Returns a fresh program with the state of an earlier one in place of its own.

    On the device it goes on as if it had never stopped. Environments on the host cannot be stored:
    their episodes begin anew.
    """
    if isinstance(state, HostState):
        seeds = [
            saved._replace(episodes=fresh.episodes)
            for saved, fresh in zip(state.seeds, program.state.seeds, strict=True)
        ]
        return program._replace(state=HostState(state.actor, tuple(seeds)))
    return program._replace(state=state)


def advance_chunks(
    program: Program, num_updates: int, num_done: int = 0, seconds: float = 0.0
) -> Iterator[Chunk]:
    """Runs a program to its end, yielding after each chunk, whatever the numbers are.

    Args:
        program: from `compile_program`; used up by the run.
        num_updates: updates in the whole run, a multiple of those in a chunk.
        num_done: updates that were done before.
        seconds: training time of those.

    Raises:
        PeerFailure: if another process of the run is gone.
    """
    state = program.state
    for done in range(num_done, num_updates, program.updates_per_chunk):
        started = time.perf_counter()
        with peer_failures_named():
            state, outputs = program.advance(state)
        (metrics, health), actor = to_host((outputs, state.actor))
        seconds += time.perf_counter() - started
        yield Chunk(done + 1, metrics, health, state, actor, seconds)


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
            yield chunk._replace(metrics=good)
        index = int(np.argmin(finite[:, num_good]))
        where = f"update {chunk.first_update + num_good} of seed {program.seeds[index]}"
        broken_step = int(chunk.health.broken_step[index, num_good])
        raise NonFiniteError(_reason(program, where, broken_step))


def _reason(program: Program, where: str, broken_step: int) -> str:
    if broken_step >= 0:
        return (
            f"Environment {program.env_name} returned numbers that are not finite, in step "
            f"{broken_step + 1} of {where}."
        )
    return (
        f"{where[0].upper()}{where[1:]} gave numbers that are not finite. A smaller critic_lr or "
        "max_kl, more damping, or scale_rewards often helps."
    )


def choose_chunk(num_updates: int, *intervals: int, num_chunks: int = 50) -> int:
    """Returns how many updates a chunk is to have.

    It is the largest number that divides `num_updates` and every interval, so that chunks end where
    these do, and makes at least `num_chunks` chunks.
    """
    common = math.gcd(num_updates, *intervals)
    most = max(1, num_updates // num_chunks)
    small = (d for d in range(1, math.isqrt(common) + 1) if common % d == 0)
    return max(d for divisor in small for d in (divisor, common // divisor) if d <= most)
