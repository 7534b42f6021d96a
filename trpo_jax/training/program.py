"""What the driver runs: several updates of all seeds, compiled as one program."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Key

from trpo_jax.algorithms.base import Algorithm, Metrics, State
from trpo_jax.envs.episodes import Transition

RUNS_ONCE = {"xla_backend_optimization_level": 0}  # compiles three times as fast
RUNS_OFTEN = {"xla_backend_optimization_level": 2}  # compiles a fourth faster, and runs as fast
NAN_MEANS_NONE = ("episodic_return", "episode_length")  # NaN where no episode ended


class Health(NamedTuple):
    """Whether an update gave usable numbers; leading axes as the metrics have.

    Attributes:
        finite: whether all numbers of the update are finite, and those before it in the chunk.
        broken_step: the first step of the rollout in which the environment's own were not, or -1.
    """

    finite: Bool[Array, "*B"]
    broken_step: Int[Array, "*B"]


class Program(NamedTuple):
    """A training run, compiled and initialised.

    Attributes:
        env_name: name of the environment.
        state: states of all seeds; its field `actor` has the leading axis `[num_seeds]`.
        advance: `state -> (state, (metrics, health))`, each `[num_seeds, updates_per_chunk]`; uses
            its argument up. A seed's actor stops at its last finite one.
        seeds: the seeds.
        updates_per_chunk: updates in one call of `advance`.
        compile_seconds: time spent compiling.
        close: to be called in the end; it ends what runs beside the program.
    """

    env_name: str
    state: State
    advance: Callable[[State], tuple[State, tuple[Metrics, Health]]]
    seeds: tuple[int, ...]
    updates_per_chunk: int
    compile_seconds: float
    close: Callable[[], None] = lambda: None


class CompiledRuns(NamedTuple):
    """Runs side by side on the device, R of them, as compiled programs.

    Attributes:
        init: `(keys [R], values [R]) -> state [R]`.
        advance: `(state [R], values [R]) -> (state, (metrics, health))`; uses its state up.
        seconds: time spent compiling.
        num_bytes: memory that `advance` needs on each device, state and outputs included.
    """

    init: Callable[[Key[Array, " R"], Any], State]
    advance: Callable[[State, Any], tuple[State, tuple[Metrics, Health]]]
    seconds: float
    num_bytes: int


def device_program(algorithm: Algorithm, seeds: Sequence[int], updates_per_chunk: int) -> Program:
    """Returns the program for an environment that runs on the device; see `compile_program`."""
    keys = seed_keys(seeds)
    runs = compile_runs(lambda _: algorithm, keys, (), updates_per_chunk)
    return Program(
        algorithm.env.name,
        runs.init(keys, ()),
        lambda state: runs.advance(state, ()),
        tuple(seeds),
        updates_per_chunk,
        runs.seconds,
    )


def seed_keys(seeds: Sequence[int]) -> Key[Array, " R"]:
    """Returns the keys that runs of these seeds start from."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def compile_runs(
    make: Callable[[Any], Algorithm],
    keys: Key[Array, " R"],
    values: Any,
    updates_per_chunk: int,
    devices: Sequence[jax.Device] | None = None,
) -> CompiledRuns:
    """Compiles `updates_per_chunk` updates of R runs that differ in their keys and in some values.

    Args:
        make: `values of one run -> algorithm`, traced.
        keys: one for each run, or their shape.
        values: any pytree, leading axis `[R]`, or its shapes.
        updates_per_chunk: updates in one call.
        devices: each takes the same share of the runs, so that their number divides R; nothing is
            communicated between them. The default one if None.
    """

    def init(key, values):
        return make(values).init(key)

    def advance(state, values):
        algorithm = make(values)

        def update(carry, _):
            state, finite = carry
            collected, trajectory = algorithm.collect(state)
            learnt, metrics = algorithm.learn(collected, trajectory)
            health = check(learnt, metrics, trajectory)
            health = health._replace(finite=finite & health.finite)
            actor = jax.tree.map(
                lambda new, old: jnp.where(health.finite, new, old), learnt.actor, state.actor
            )
            return (learnt._replace(actor=actor), health.finite), (metrics, health)

        start = state, jnp.ones((), bool)
        (state, _), outputs = jax.lax.scan(update, start, length=updates_per_chunk)
        return state, outputs

    started = time.perf_counter()
    side_by_side, placement = jax.vmap, {}
    if devices is not None and len(devices) > 1:
        # Not left to the compiler: the condition of a batched loop would be that of all devices.
        mesh, split = Mesh(np.array(devices), ("runs",)), PartitionSpec("runs")
        options = {"mesh": mesh, "in_specs": split, "out_specs": split, "check_vma": False}
        side_by_side = lambda f: jax.shard_map(jax.vmap(f), **options)
        shares = NamedSharding(mesh, split)
        placement = {"in_shardings": shares, "out_shardings": shares}
    jit_init = jax.jit(side_by_side(init), compiler_options=RUNS_ONCE, **placement)
    lowered_init = jit_init.lower(keys, values)
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(lowered_init.compile)
        jit_advance = jax.jit(side_by_side(advance), donate_argnums=0, **placement)
        lowered = jit_advance.lower(lowered_init.out_info, values)
        compiled = lowered.compile(cpu_options())
        compiled_init = compiling.result()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    num_bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    num_bytes += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledRuns(compiled_init, compiled, seconds, num_bytes)


def cpu_options() -> dict[str, int] | None:
    """Returns compiler options of what runs often, where it runs on a CPU."""
    return RUNS_OFTEN if jax.default_backend() == "cpu" else None


def check(learnt: State, metrics: Metrics, trajectory: Transition) -> Health:
    """Returns the health of an update."""
    checked = [x for name, x in metrics.items() if name not in NAN_MEANS_NONE]
    numbers, _ = ravel_pytree((checked, learnt.actor))
    broken_step = _broken_step(trajectory)  # a terminated episode's end is not learnt from
    return Health((broken_step < 0) & jnp.isfinite(numbers).all(), broken_step)


def _broken_step(trajectory: Transition) -> Int[Array, ""]:
    num_steps = trajectory.reward.shape[0]
    numbers = (trajectory.observation, trajectory.next_observation, trajectory.reward)
    finite = [jnp.isfinite(x.reshape(num_steps, -1)).all(axis=1) for x in numbers]
    broken = ~jnp.stack(finite).all(axis=0)
    return jnp.where(broken.any(), jnp.argmax(broken), -1)
