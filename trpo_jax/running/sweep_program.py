"""Many runs that differ in their seeds and in real-valued hyperparameters, block after block.

A block is one compiled program that holds as many runs as memory has room for; all blocks of a
group are calls of the same program. Blocks follow each other on the host rather than inside the
program (`jax.lax.map`), so that only one holds memory, and each is on disk before the next begins.
On the host, runs of a block are threads that share their compiled programs.
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

MEMORY_SHARE = 0.5  # of what is free, that a block may take
CPU_BLOCK = 16  # runs side by side on a CPU: more are slower, since caches no longer hold them
SCORED = ("num_episodes", "episodic_return", "kl", "step_rejected")  # metrics, where they are there

Values = Mapping[str, np.ndarray]


class Scores(NamedTuple):
    """What came of runs, each `[R]`.

    Attributes:
        training_return: mean return of the episodes that ended in the second half of the run.
        kl: mean of the mean KL divergence of an update; NaN for algorithms that measure none.
        rejected: share of updates whose step was rejected; NaN for algorithms that reject none.
        broken_update: the first update whose numbers were not finite; 0 if there was none.
        training_costs: mean costs of the same episodes, by the name of their metric.
    """

    training_return: np.ndarray
    kl: np.ndarray
    rejected: np.ndarray
    broken_update: np.ndarray
    training_costs: Mapping[str, np.ndarray]


class SweepProgram(NamedTuple):
    """Blocks of runs, compiled.

    Attributes:
        start: `(seeds [R], values [R]) -> Program` of at most `block_size` runs.
        block_size: runs in a block.
        seconds: time spent compiling.
        num_bytes: memory that a block needs on each device; None where the environment is on the
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

    XLA says beforehand what a block needs, which grows linearly with its runs: where it is more
    than `MEMORY_SHARE` of what is free, the program is compiled again for a smaller one.

    Args:
        make: `values of one run -> algorithm`, traced.
        fields: names of these values.
        num_runs: runs in all.
        updates_per_chunk: updates in one call.
        most: runs in a block at the most; `CPU_BLOCK` for each CPU device and no limit elsewhere if
            None.
        placement: which devices it is on, by whole runs; the default one if None.
    """
    devices = jax.devices()[:1] if placement is None else placement.devices
    here = devices_here(placement)
    on_cpu = devices[0].platform == "cpu"
    if most is None:
        most = CPU_BLOCK * len(devices) if on_cpu else num_runs
    size = even_share(num_runs, most, len(devices))
    runs = _compile(make, fields, size, updates_per_chunk, placement)
    share = len(here) if on_cpu else 1  # devices of a CPU share its memory
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
            "",  # names failures of one run, which do not stop a sweep
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
    """Compiles the programs of a sweep over an environment that runs on the host.

    Args:
        make: `values of one run -> algorithm`, traced.
        fields: names of these values.
        block_size: runs side by side at the most, each with environments of its own.
        updates_per_chunk: updates in one call.
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
    """Returns the size of blocks that are as alike as can be, a multiple of the devices."""
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
    """Runs at most `block_size` runs to their end, yielding after each chunk.

    The chunks may have copies of the last run behind it.

    Args:
        program: from `compile_sweep` or `compile_host_sweep`.
        seeds: of each run, `[R]`.
        values: of each run, `[R]`.
        num_updates: updates in a run.
        pace: how long chunks are.
    """
    columns = {name: x.astype(np.float32) for name, x in values.items()}
    with closing(program.start(seeds, columns)) as block:
        yield from advance_chunks(block, num_updates, pace=pace)


def score_block(chunks: Iterator[Chunk], num_updates: int) -> tuple[Scores, Actor]:
    """Returns what came of the runs in a block, and their last actors.

    Args:
        chunks: of the block.
        num_updates: updates in a run.
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
        # NaN where no episode ended.
        means = {x: totals[x] / totals["episodes"] for x in ("episodic_return", *costs)}
    kl, rejected = (totals[name] / num_updates for name in ("kl", "rejected"))
    return Scores(means.pop("episodic_return"), kl, rejected, broken, means), chunk.actor
