"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from trpo_jax.algorithms.base import Actor, Algorithm, Metrics, State

NAN_MEANS_NONE = ("episodic_return", "episode_length")  # NaN where no episode ended


class Program(NamedTuple):
    """A training run, compiled and initialised.

    Attributes:
        state: states of all seeds, leading axis `[num_seeds]`.
        advance: `state -> (state, (metrics, finite))`, each `[num_seeds, updates_per_chunk]`;
            donates its argument. A seed stops at its last finite state.
        seeds: the seeds.
        updates_per_chunk: updates in one call of `advance`.
        compile_seconds: time spent compiling.
        close: to be called in the end; it ends what runs beside the program.
    """

    state: State
    advance: Callable[[State], tuple[State, tuple[Metrics, Bool[Array, "S K"]]]]
    seeds: tuple[int, ...]
    updates_per_chunk: int
    compile_seconds: float
    close: Callable[[], None] = lambda: None


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
    """
    update = keep_finite(algorithm.update)

    def advance(state):
        return jax.lax.scan(lambda state, _: update(state), state, length=updates_per_chunk)

    started = time.perf_counter()
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    init = jax.jit(jax.vmap(algorithm.init)).lower(keys).compile()
    state_shapes = jax.eval_shape(jax.vmap(algorithm.init), keys)
    compiled = jax.jit(jax.vmap(advance), donate_argnums=0).lower(state_shapes).compile()
    seconds = time.perf_counter() - started
    return Program(init(keys), compiled, tuple(seeds), updates_per_chunk, seconds)


def keep_finite(update: Callable[..., tuple[State, Metrics]]) -> Callable[..., Any]:
    """Returns `(state, ...) -> (state, (metrics, finite))`, which keeps a state it would spoil."""

    def guarded(state, *inputs):
        new_state, metrics = update(state, *inputs)
        finite = _all_finite(metrics, new_state.actor)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        return state, (metrics, finite)

    return guarded


def run_chunks(program: Program, num_chunks: int) -> Iterator[Chunk]:
    """Runs a program, yielding after each chunk.

    The state lives inside: what survives an interruption is the last chunk's `actor`.

    Args:
        program: from `compile_program`; used up by the run.
        num_chunks: how many calls to make.

    Raises:
        NonFiniteError: naming the first update and seed that gave numbers which are not finite.
            All updates before it were yielded, and their actors are the last good ones.
    """
    state = program.state
    seconds = 0.0
    for index in range(num_chunks):
        started = time.perf_counter()
        state, outputs = program.advance(state)
        (metrics, finite), actor = jax.device_get((outputs, state.actor))
        seconds += time.perf_counter() - started
        first_update = index * program.updates_per_chunk + 1
        num_good = int(np.argmin(finite.all(axis=0))) if not finite.all() else finite.shape[1]
        good = {name: x[:, :num_good] for name, x in metrics.items()}
        if num_good > 0:
            yield Chunk(first_update, good, actor, seconds)
        if num_good < finite.shape[1]:
            seed = program.seeds[int(np.argmin(finite[:, num_good]))]
            raise NonFiniteError(
                f"Update {first_update + num_good} of seed {seed} gave numbers that are not "
                "finite. A smaller critic_lr or max_kl, more damping, or scale_rewards often helps."
            )


def choose_chunk(num_updates: int, num_chunks: int = 50) -> int:
    """Returns the largest divisor of `num_updates` that makes at least `num_chunks` chunks."""
    most = max(1, num_updates // num_chunks)
    small = (d for d in range(1, math.isqrt(num_updates) + 1) if num_updates % d == 0)
    return max(d for divisor in small for d in (divisor, num_updates // divisor) if d <= most)


def _all_finite(metrics: Metrics, actor: Actor) -> Bool[Array, ""]:
    checked = [x for name, x in metrics.items() if name not in NAN_MEANS_NONE]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((checked, actor))]))
