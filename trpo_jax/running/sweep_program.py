"""Blocks of runs that differ in their seeds and in real-valued hyperparameters.

A block holds as many runs as fit into memory. All blocks are calls of the same compiled program. A
loop on the host calls them one after the other, not `jax.lax.map` inside the program: so only one
block takes memory, and the results of a block are on disk before the next one begins. If the
environment runs on the host, the runs of a block are threads that share their compiled programs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm
from trpo_jax.devices import Placement
from trpo_jax.processes import decided_by_first
from trpo_jax.records.runs import cost_columns
from trpo_jax.running.host_program import compile_host_runs, start_host_runs
from trpo_jax.running.loop import USUAL, Chunk, Pace, advance_chunks
from trpo_jax.running.memory import SIZES, devices_here, free_bytes, require_room
from trpo_jax.running.program import CompiledRuns, Program, as_seeds, compile_runs

MEMORY_SHARE = 0.5  # a block may take this share of the free memory
CPU_BLOCK = 16  # runs in parallel on a CPU; more are slower, since they do not fit into caches
SCORED = ("num_episodes", "episodic_return", "kl", "step_rejected")  # metrics of some algorithms

Values = Mapping[str, np.ndarray]


class Scores(NamedTuple):
    """The results of training R runs, each `[R]`.

    Attributes:
        training_return: mean return of the episodes that ended in the second half of the run.
        kl: mean over updates of the mean KL divergence; NaN if the algorithm does not measure it.
        rejected: share of updates whose step was rejected; NaN if the algorithm rejects no steps.
        broken_update: the first update whose numbers were not finite; 0 if there is none.
        training_costs: mean costs of the same episodes, by the name of their metric.
    """

    training_return: np.ndarray
    kl: np.ndarray
    rejected: np.ndarray
    broken_update: np.ndarray
    training_costs: Mapping[str, np.ndarray]


class SweepProgram(NamedTuple):
    """The compiled program of a sweep.

    Attributes:
        start: `(seeds [R], values [R]) -> Program` of at most `block_size` runs.
        block_size: number of runs in a block.
        seconds: time spent compiling.
        num_bytes: memory that a block needs on each device; None if the environment runs on the
            host.
    """

    start: Callable[[Sequence[int], Values], Program]
    block_size: int
    seconds: float
    num_bytes: int | None


def compile_sweep(
    make: Callable[[Values], Algorithm],
    fields: Sequence[str],
    num_runs: int,
    updates_per_chunk: int,
    most: int | None = None,
    placement: Placement | None = None,
) -> SweepProgram:
    """Compiles the program of a sweep for blocks that fit into memory.

    A block that is not full is filled up with copies of its last run.

    The compiler tells the memory of a block, which grows linearly with the number of runs. If a
    block needs more than `MEMORY_SHARE` of the free memory, a smaller one is compiled.

    Args:
        make: `values of one run -> algorithm`. JAX traces it.
        fields: the names of these values.
        num_runs: number of runs in all blocks.
        updates_per_chunk: maximum number of updates in one call.
        most: maximum number of runs in a block. None for `CPU_BLOCK` on each CPU device, and for no
            limit on other devices.
        placement: the devices that the runs are split over; None for the default device.
    """
    devices = jax.devices()[:1] if placement is None else placement.devices
    here = devices_here(placement)
    on_cpu = devices[0].platform == "cpu"
    if most is None:
        most = CPU_BLOCK * len(devices) if on_cpu else num_runs
    size = even_share(num_runs, most, len(devices))
    runs = _compile(make, fields, size, updates_per_chunk, placement)
    share = len(here) if on_cpu else 1  # CPU devices share the memory
    needed = runs.num_bytes * share
    room = decided_by_first(lambda: int(free_bytes(here[0]) * MEMORY_SHARE))
    if needed > room:
        size = even_share(num_runs, max(1, size * room // needed), len(devices))
        runs = _compile(make, fields, size, updates_per_chunk, placement)
    require_room("A block of runs", runs.num_bytes * share, here[0], SIZES[1:], at_least=False)

    def start(seeds: Sequence[int], values: Values) -> Program:
        fill = lambda x: np.concatenate([x, np.repeat(x[-1:], size - len(seeds))])
        filled_seeds = tuple(fill(np.asarray(seeds)).tolist())
        columns = {name: fill(x) for name, x in values.items()}
        return Program(
            "",  # only messages about failures need the environment, and a sweep prints none
            runs.init(as_seeds(filled_seeds), columns),
            lambda state, count, alive: runs.advance(state, columns, count, alive),
            filled_seeds,
            updates_per_chunk,
            runs.seconds,
        )

    return SweepProgram(start, size, runs.seconds, runs.num_bytes)


def compile_host_sweep(
    make: Callable[[Values], Algorithm],
    fields: Sequence[str],
    block_size: int,
    updates_per_chunk: int,
) -> SweepProgram:
    """Compiles the programs of a sweep whose environment runs on the host.

    Args:
        make: `values of one run -> algorithm`. JAX traces it.
        fields: the names of these values.
        block_size: maximum number of runs in parallel, each with its own environments.
        updates_per_chunk: maximum number of updates in one call.
    """
    runs = compile_host_runs(make, {name: np.float32(1) for name in fields})

    def start(seeds: Sequence[int], values: Values) -> Program:
        rows = [{name: x[place] for name, x in values.items()} for place in range(len(seeds))]
        return start_host_runs(runs, seeds, rows, updates_per_chunk)

    return SweepProgram(start, block_size, runs.seconds, None)


def _compile(make, fields, size, updates_per_chunk, placement) -> CompiledRuns:
    shapes = {name: jax.ShapeDtypeStruct((size,), jnp.float32) for name in fields}
    return compile_runs(make, size, shapes, updates_per_chunk, placement)


def even_share(num_runs: int, most: int, num_devices: int) -> int:
    """Returns the size of blocks that are about equally full, as a multiple of the devices."""
    num_blocks = -(-num_runs // max(most, num_devices))
    size = -(-num_runs // num_blocks)
    return -(-size // num_devices) * num_devices


def run_block(
    program: SweepProgram,
    seeds: Sequence[int],
    values: Values,
    num_updates: int,
    pace: Pace = USUAL,
) -> Iterator[Chunk]:
    """Does R runs, at most `block_size`, and yields each chunk.

    The chunks may have more than R rows: copies of the last run fill up the block.

    Args:
        program: from `compile_sweep` or `compile_host_sweep`.
        seeds: the seed of each run, `[R]`.
        values: the values of each run, `[R]`.
        num_updates: number of updates of a run.
        pace: how long the chunks are.
    """
    columns = {name: x.astype(np.float32) for name, x in values.items()}
    with closing(program.start(seeds, columns)) as block:
        yield from advance_chunks(block, num_updates, pace=pace)


def score_block(chunks: Iterator[Chunk], num_updates: int) -> tuple[Scores, Actor]:
    """Returns the scores of the runs in a block, and their last actors.

    Args:
        chunks: the chunks of the block.
        num_updates: number of updates of a run.
    """
    totals: dict[str, Any] = {}

    def add(name, x):
        totals[name] = totals.get(name, 0) + x.sum(axis=1, dtype=np.float64)

    broken: np.ndarray | int = 0
    for chunk in chunks:
        updates = np.arange(chunk.first_update, chunk.last_update + 1)
        finite = chunk.health.finite
        metrics = dict.fromkeys(SCORED, np.full(finite.shape, np.nan)) | chunk.metrics
        costs = list(cost_columns(chunk.metrics).values())
        late = np.where(updates > num_updates // 2, np.nan_to_num(metrics["num_episodes"]), 0)
        add("episodes", late)
        for name in ("episodic_return", *costs):
            add(name, np.where(late > 0, metrics[name], 0) * late)
        add("kl", metrics["kl"])
        add("rejected", metrics["step_rejected"])
        now = np.where(finite.all(axis=1), 0, chunk.first_update + finite.argmin(axis=1))
        broken = np.where(broken > 0, broken, now)
    with np.errstate(invalid="ignore"):
        # A run in which no episode ended gets NaN.
        means = {x: totals[x] / totals["episodes"] for x in ("episodic_return", *costs)}
    kl, rejected = (totals[name] / num_updates for name in ("kl", "rejected"))
    return Scores(means.pop("episodic_return"), kl, rejected, broken, means), chunk.actor
