"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm
from trpo_jax.training.host_program import host_program
from trpo_jax.training.program import Program, device_program


class Chunk(NamedTuple):
    """What one call of the compiled program gave, on the host.

    Attributes:
        first_update: number of its first update, counted from 1.
        metrics: each `[num_seeds, updates]`.
        actor: what acting needs after its last update, leading axis `[num_seeds]`.
        seconds: training time until its end, compilation excluded.
    """

    first_update: int
    metrics: dict[str, np.ndarray]
    actor: Actor
    seconds: float


class NonFiniteError(FloatingPointError):
    """The numbers of a run stopped being finite."""


def compile_program(algorithm: Algorithm, seeds: Sequence[int], updates_per_chunk: int) -> Program:
    """Compiles `updates_per_chunk` updates of all seeds as one program, and initialises them.

    Each seed is a run of its own: seed s gives the same run whatever other seeds run beside it, up
    to the rounding of batched matrix products.

    Args:
        algorithm: what to run.
        seeds: one non-negative integer each.
        updates_per_chunk: updates in one call.

    Returns:
        A program, to be closed in the end.

    Raises:
        EnvironmentFailure: if the environment runs on the host and cannot be started.
    """
    make = device_program if algorithm.env.open is None else host_program
    return make(algorithm, seeds, updates_per_chunk)


def run_chunks(program: Program, num_chunks: int) -> Iterator[Chunk]:
    """Runs a program, yielding after each chunk.

    The state lives inside: what survives an interruption is the last chunk's `actor`.

    Args:
        program: from `compile_program`; used up by the run.
        num_chunks: how many calls to make.

    Raises:
        NonFiniteError: naming the first update and seed that gave numbers which are not finite.
            All updates before it were yielded. The last actor of each seed is its last good one;
            that of other seeds may be some updates ahead of the metrics.
    """
    state = program.state
    seconds = 0.0
    for index in range(num_chunks):
        started = time.perf_counter()
        state, outputs = program.advance(state)
        (metrics, health), actor = jax.device_get((outputs, state.actor))
        seconds += time.perf_counter() - started
        first_update = index * program.updates_per_chunk + 1
        finite = health.finite
        num_good = int(np.argmin(finite.all(axis=0))) if not finite.all() else finite.shape[1]
        good = {name: x[:, :num_good] for name, x in metrics.items()}
        if num_good > 0:
            yield Chunk(first_update, good, actor, seconds)
        if num_good < finite.shape[1]:
            index = int(np.argmin(finite[:, num_good]))
            where = f"update {first_update + num_good} of seed {program.seeds[index]}"
            raise NonFiniteError(_reason(program, where, int(health.broken_step[index, num_good])))


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


def choose_chunk(num_updates: int, num_chunks: int = 50) -> int:
    """Returns the largest divisor of `num_updates` that makes at least `num_chunks` chunks."""
    most = max(1, num_updates // num_chunks)
    small = (d for d in range(1, math.isqrt(num_updates) + 1) if num_updates % d == 0)
    return max(d for divisor in small for d in (divisor, num_updates // divisor) if d <= most)
