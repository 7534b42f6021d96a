"""The program of a run on the device: several updates of all seeds, compiled together."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from trpo_jax.algorithms.base import Algorithm, Metrics, State, learnt_of
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment, sound
from trpo_jax.envs.episodes import Transition
from trpo_jax.envs.specs import ActionSpec, choices_of, split_choices, split_mask
from trpo_jax.errors import ConfigurationError
from trpo_jax.processes import to_devices
from trpo_jax.running.memory import SIZES, compiled_bytes, devices_here, require_room

NO_LEGAL_ACTION, OF_COSTS = -2, -3
RUNS_ONCE = {"xla_backend_optimization_level": 0}  # compiles three times as fast
RUNS_OFTEN = {"xla_backend_optimization_level": 2}  # compiles 25 % faster and runs as fast


class Health(NamedTuple):
    """Whether the numbers of an update can be used. The leading axes are those of the metrics.

    Attributes:
        finite: whether all numbers of this update and of all updates before it are finite.
        broken_step: the first step of the rollout in which a number of the environment was not
            sound (see `trpo_jax.envs.base.sound`) or no action was legal; -1 if there is none.
        broken_component: the component of the observation that was not sound in that step, counted
            through all its arrays; -1 for the reward, -2 if no action was legal, -3 for a cost.
        broken_value: the number that was not sound.
    """

    finite: Bool[Array, "*B"]
    broken_step: Int[Array, "*B"]
    broken_component: Int[Array, "*B"]
    broken_value: Float[Array, "*B"]


class Program(NamedTuple):
    """A training run, compiled and initialised.

    Attributes:
        env: the environment.
        state: the states of all seeds. Its field `actor` has the leading axis `[num_seeds]`.
        advance: `(state, count, alive=None) -> (state, (metrics, health))` does `count` updates, at
            most `updates_per_chunk`. It uses up its state. The leading axes of metrics and health
            are `[num_seeds, updates]`. Only the first `count` updates are valid. From the first
            update that is not finite, what a seed has learnt stays the same. It also stays the same
            if the seed is not `alive` `[num_seeds]`.
        seeds: the seeds.
        updates_per_chunk: maximum number of updates in one call of `advance`.
        compile_seconds: time spent compiling.
        close: ends the threads and environments of the program. The owner has to call it.
        broken_by: the messages of environments on the host whose numbers were not finite, by the
            index of the seed.
    """

    env: Environment
    state: State
    advance: Callable[..., tuple[State, tuple[Metrics, Health]]]
    seeds: tuple[int, ...]
    updates_per_chunk: int
    compile_seconds: float
    close: Callable[[], None] = lambda: None
    broken_by: Mapping[int, str] = MappingProxyType({})


class CompiledRuns(NamedTuple):
    """The compiled programs of R parallel runs on the device.

    Attributes:
        init: `(seeds [R], values [R]) -> state [R]`.
        advance: `(state [R], values [R], count, alive [R]) -> (state, (metrics, health))`. It uses
            up its state. Without `alive`, all runs are alive.
        executable: the XLA program of `advance`.
        seconds: time spent compiling.
    """

    init: Callable[[UInt32[np.ndarray, " R"], Any], State]
    advance: Callable[..., tuple[State, tuple[Metrics, Health]]]
    executable: jax.stages.Compiled
    seconds: float

    @property
    def num_bytes(self) -> int:
        """The memory that `advance` needs on each device, including state and outputs."""
        return compiled_bytes(self.executable)


def device_program(
    algorithm: Algorithm,
    seeds: Sequence[int],
    updates_per_chunk: int,
    placement: Placement | None = None,
) -> Program:
    """Returns the program for an environment that runs on the device; see `compile_program`."""
    runs = compile_runs(lambda _: algorithm, len(seeds), (), updates_per_chunk, placement)
    here = devices_here(placement)
    share = len(here) if here[0].platform == "cpu" else 1  # CPU devices share the memory
    require_room("This run", runs.num_bytes * share, here[0], SIZES, at_least=False)
    return Program(
        algorithm.env,
        runs.init(as_seeds(seeds), ()),
        lambda state, count, alive=None: runs.advance(state, (), count, alive),
        tuple(seeds),
        updates_per_chunk,
        runs.seconds,
    )


def as_seeds(seeds: Sequence[int]) -> UInt32[np.ndarray, " R"]:
    """Returns seeds as the array that `CompiledRuns.init` takes."""
    return np.asarray(seeds, np.uint32)


def compile_runs(
    make: Callable[[Any], Algorithm],
    num_runs: int,
    values: Any,
    updates_per_chunk: int,
    placement: Placement | None = None,
) -> CompiledRuns:
    """Compiles `updates_per_chunk` updates of R runs that differ in their seeds and in some values.

    Args:
        make: `values of one run -> algorithm`. JAX traces it.
        num_runs: R.
        values: any pytree with the leading axis `[R]`, or its shapes.
        updates_per_chunk: maximum number of updates in one call.
        placement: the devices of the program; None for the default device.
    """

    def init(seed, values):
        of_key = jax.jit(make(values).init, inline=True)  # traced already, for its shapes
        return of_key(jax.random.key(seed))

    def advance(state, values, alive, count):
        algorithm = make(values)

        @partial(jax.jit, inline=True)  # traced once, for its shapes and for the loop
        def update(state, finite):
            collected, trajectory = algorithm.collect(state)
            learnt, metrics = algorithm.learn(collected, trajectory)
            metrics = as_metrics(metrics)
            health = check(learnt, metrics, trajectory, algorithm.env.action)
            health = health._replace(finite=finite & health.finite)
            kept = jax.tree.map(
                lambda new, old: jnp.where(health.finite, new, old),
                *(learnt_of(x)._asdict() for x in (learnt, state)),
            )
            kept = {name: x for name, x in kept.items() if x is not None}
            return learnt._replace(**kept), (metrics, health)

        def update_and_store(index, carry):
            state, finite, rows = carry
            state, row = update(state, finite)
            rows = jax.tree.map(lambda xs, x: xs.at[index].set(x), rows, row)
            return state, row[1].finite, rows

        # A scan would be compiled again for the last chunk of a run, which may be shorter.
        _, shapes = jax.eval_shape(update, state, jnp.ones((), bool))
        rows = jax.tree.map(lambda x: jnp.zeros((updates_per_chunk, *x.shape), x.dtype), shapes)
        start = state, alive, rows
        state, _, rows = jax.lax.fori_loop(0, count, update_and_store, start)
        return state, rows

    def batched_advance(state, values, alive, count):
        return batched(partial(advance, count=count))(state, values, alive)

    started = time.perf_counter()
    batched = jax.vmap if num_runs > 1 else alone
    of_init, of_advance, place = {}, {}, lambda values: values
    if placement is not None:
        batched, state, rest = placement.batched, placement.state, placement.rest
        of_init = {"in_shardings": rest, "out_shardings": state}
        of_advance = {"in_shardings": (state, rest, rest, None), "out_shardings": (state, rest)}
        place = partial(to_devices, sharding=rest)
    seeds = jax.ShapeDtypeStruct((num_runs,), jnp.uint32)
    lowered_init = jax.jit(batched(init), compiler_options=RUNS_ONCE, **of_init).lower(
        seeds, values
    )
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(lowered_init.compile)
        jit_advance = jax.jit(batched_advance, donate_argnums=0, **of_advance)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        alive = jax.ShapeDtypeStruct((num_runs,), bool)
        lowered = jit_advance.lower(lowered_init.out_info, values, alive, count)
        executable = lowered.compile(cpu_options())
        compiled_init = compiling.result()
    all_alive = np.ones(num_runs, bool)

    def run(state, values, count, alive=None):
        alive = all_alive if alive is None else alive
        return executable(state, *place((values, alive)), np.int32(count))

    return CompiledRuns(
        lambda seeds, values: compiled_init(*place((seeds, values))),
        run,
        executable,
        time.perf_counter() - started,
    )


def alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.vmap(function)` for arguments with a leading axis `[1]`, as a faster program.

    Under `jax.vmap`, a loop that ends early for one run goes on until it ends for all runs.
    """

    def call(*args):
        result = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)

    return call


def cpu_options() -> dict[str, int] | None:
    """Returns the compiler options for a program that runs often; None for those of JAX.

    JAX decides on other devices than a CPU, and if the user has switched optimisations off.
    """
    plain = jax.config.read("jax_disable_most_optimizations") or jax.default_backend() != "cpu"
    return None if plain else RUNS_OFTEN


def as_metrics(metrics: Metrics) -> dict[str, Float[Array, ""]]:
    """Returns the metrics of an algorithm as float32 scalars.

    Raises:
        ConfigurationError: if the metrics are not a flat dictionary of scalars.
    """
    for name, x in metrics.items():
        if not isinstance(name, str) or isinstance(x, dict) or jnp.ndim(x):
            raise ConfigurationError(
                f"The metrics of an algorithm must be a flat dictionary of scalars by name. The "
                f"metric {name!r} is {x!r}. Return its mean, or leave it out."
            )
    return {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


def check(learnt: State, metrics: Metrics, trajectory: Transition, action: ActionSpec) -> Health:
    """Returns the health of an update.

    Args:
        learnt: the state after the update.
        metrics: the metrics of the update.
        trajectory: the trajectory that was collected.
        action: the actions of the environment.
    """
    leaves = jax.tree.leaves((metrics, learnt.actor))
    numbers = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    step, component, value = _broken_number(trajectory, action)
    finite = [step < 0, *(jnp.isfinite(x).all() for x in numbers)]
    return Health(jnp.stack(finite).all(), step, component, value)


def _broken_number(
    trajectory: Transition, action: ActionSpec
) -> tuple[Int[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """Returns the step, the component and the value of the first number that is not sound.

    They are coded as in `Health`.
    """
    num_steps = trajectory.reward.shape[0]
    rows = lambda x: x.reshape(num_steps, -1)
    kinds = [(rows(trajectory.reward), lambda index: -1)]
    kinds += [(rows(x), lambda index: OF_COSTS) for x in jax.tree.leaves(trajectory.costs)]
    for tree in (trajectory.observation, trajectory.next_observation):
        before = 0  # number of components in the arrays before x
        for x in jax.tree.leaves(tree):
            size = x[0, 0].size
            kinds.append((rows(x), lambda index, size=size, before=before: before + index % size))
            before += size
    bad = [~sound(x) for x, _ in kinds]
    mask = split_mask(trajectory.observation)[1]
    if mask is not None:
        parts = split_choices(mask, trajectory.reward.shape, choices_of(action))
        none = jnp.stack([~x.any(axis=-1) for x in parts]).any(axis=0)
        kinds.append((jnp.zeros_like(trajectory.reward), lambda index: NO_LEGAL_ACTION))
        bad.append(none)
    broken = jnp.stack([x.any(axis=1) for x in bad]).any(axis=0)
    first = _first(broken)
    step = jnp.minimum(first, num_steps - 1)
    component, value = jnp.int32(-1), jnp.float32(0)
    for (x, component_of), where in zip(kinds, bad, strict=True):
        index = _first(where[step])
        here = index < x.shape[1]
        component = jnp.where(here, component_of(index), component)
        value = jnp.where(here, x[step, index].astype(jnp.float32), value)
    return jnp.where(first < num_steps, step, -1), component, value


def _first(where: Bool[Array, " N"]) -> Int[Array, ""]:
    """Returns the index of the first True, or N. Devices need not exchange their parts for it."""
    return jnp.min(jnp.where(where, jnp.arange(len(where)), len(where)))
