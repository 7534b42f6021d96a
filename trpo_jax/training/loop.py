"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, State

NAN_MEANS_NONE = ("episodic_return", "episode_length")  # NaN where no episode ended


class Program(NamedTuple):
    """A training run, compiled and initialised.

    Attributes:
        state: states of all seeds, leading axis `[num_seeds]`.
        advance: `state -> (state, metrics [num_seeds, updates_per_chunk])`; donates its argument.
        seeds: the seeds.
        updates_per_chunk: updates in one call of `advance`.
        compile_seconds: time spent compiling.
    """

    state: State
    advance: jax.stages.Compiled
    seeds: tuple[int, ...]
    updates_per_chunk: int
    compile_seconds: float


class Chunk(NamedTuple):
    """What one call of the compiled program gave, on the host.

    Attributes:
        first_update: number of its first update, counted from 1.
        metrics: each `[num_seeds, updates_per_chunk]`.
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
    """

    def advance(state):
        return jax.lax.scan(lambda s, _: algorithm.update(s), state, length=updates_per_chunk)

    started = time.perf_counter()
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    init = jax.jit(jax.vmap(algorithm.init)).lower(keys).compile()
    state_shapes = jax.eval_shape(jax.vmap(algorithm.init), keys)
    compiled = jax.jit(jax.vmap(advance), donate_argnums=0).lower(state_shapes).compile()
    seconds = time.perf_counter() - started
    return Program(init(keys), compiled, tuple(seeds), updates_per_chunk, seconds)


def run_chunks(program: Program, num_chunks: int) -> Iterator[Chunk]:
    """Runs a program, yielding after each chunk.

    The state lives inside: what survives an interruption is the last chunk's `actor`.

    Args:
        program: from `compile_program`; used up by the run.
        num_chunks: how many calls to make.

    Raises:
        NonFiniteError: naming the first update and seed whose metrics are not finite; the chunks
            before were yielded.
    """
    state = program.state
    started = time.perf_counter()
    for index in range(num_chunks):
        state, metrics = program.advance(state)
        metrics, actor = jax.device_get((metrics, state.actor))
        first_update = index * program.updates_per_chunk + 1
        _check_finite(metrics, program.seeds, first_update)
        yield Chunk(first_update, metrics, actor, time.perf_counter() - started)


def choose_chunk(num_updates: int, num_chunks: int = 50) -> int:
    """Returns the largest divisor of `num_updates` that makes at least `num_chunks` chunks."""
    most = max(1, num_updates // num_chunks)
    return max(divisor for divisor in range(1, most + 1) if num_updates % divisor == 0)


def _check_finite(
    metrics: dict[str, np.ndarray], seeds: tuple[int, ...], first_update: int
) -> None:
    checked = {name: x for name, x in metrics.items() if name not in NAN_MEANS_NONE}
    broken = ~np.logical_and.reduce([np.isfinite(x) for x in checked.values()])
    if not broken.any():
        return
    column = int(np.argmax(broken.any(axis=0)))
    row = int(np.argmax(broken[:, column]))
    names = ", ".join(name for name, x in checked.items() if not np.isfinite(x[row, column]))
    raise NonFiniteError(
        f"Update {first_update + column} of seed {seeds[row]} gave numbers that are not finite "
        f"({names}). A smaller critic_lr or max_kl, more damping, or scale_rewards often helps."
    )
