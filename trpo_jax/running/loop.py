"""The loop of a run: repeated calls of one compiled program that does several updates of all seeds.

Progress, files and Ctrl-C are handled on the host, between two calls of the program.
"""

import _thread
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.algorithms.base import Actor, Algorithm, Learnt, State, learnt_of
from trpo_jax.algorithms.schedules import begun_anew
from trpo_jax.critics import WithCosts
from trpo_jax.devices import Placement
from trpo_jax.envs.base import LARGEST
from trpo_jax.envs.specs import MASK, ObservationSpec, path_name
from trpo_jax.processes import any_of, decided_by_first, peer_failures_named, to_devices, to_host
from trpo_jax.running.host_program import HostState, host_program, stack_states
from trpo_jax.running.memory import shortage_named
from trpo_jax.running.program import NO_LEGAL_ACTION, OF_COSTS, Health, Program, device_program

OF_EPISODES = ("episodic_return", "episode_length")  # these metrics need an episode that ended
EPISODIC_COST = "episodic_cost"  # metrics whose names begin with this also need one
CHUNK_SECONDS = 1.0  # Ctrl-C waits so long, and progress is shown so often
MOST_UPDATES, MOST_ROWS = 1024, 2**16  # room of a program: updates of a seed, and of all seeds
LISTED = 8  # a message lists so many seeds
_interrupts: list[KeyboardInterrupt] = []  # each Ctrl-C that has not stopped the run yet


class Pace(NamedTuple):
    """How long the chunks of a run are.

    Attributes:
        seconds: time that a chunk should take; if infinite, chunks are as long as the program
            allows.
        intervals: numbers of updates; a chunk ends at every multiple of each number that is not 0.
    """

    seconds: float = math.inf
    intervals: tuple[int, ...] = ()


LONGEST, USUAL = Pace(), Pace(CHUNK_SECONDS)


class Broken(NamedTuple):
    """Why a seed stopped.

    Attributes:
        update: the first update whose numbers are not finite.
        reason: what was wrong, as a sentence without a full stop.
    """

    update: int
    reason: str


class Chunk(NamedTuple):
    """The results of one call of the compiled program.

    Attributes:
        first_update: number of the first update of the chunk, counted from 1.
        last_update: number of the last update of the chunk.
        metrics: the metrics by name, each `[num_seeds, updates]`, on the host. `episodic_return`,
            `episode_length` and costs, if the algorithm has them, are NaN in updates without an end
            of an episode. All metrics of a seed are NaN after it has stopped.
        health: the health of these updates, on the host.
        state: the state after the last update. The next chunk uses it up.
        actor: the actors after the last update, leading axis `[num_seeds]`, on the host.
        seconds: training time until the end of the chunk, without compilation.
        broken: the seeds that have stopped so far because their numbers were not finite.
    """

    first_update: int
    last_update: int
    metrics: dict[str, np.ndarray]
    health: Health
    state: State
    actor: Actor
    seconds: float
    broken: Mapping[int, Broken] = MappingProxyType({})


class NonFiniteError(FloatingPointError):
    """The numbers of all seeds of a run are not finite."""


class AgreedStop(KeyboardInterrupt):
    """Ctrl-C in one of the processes. It is raised in all of them, after the same chunk."""


def compile_program(
    algorithm: Algorithm,
    seeds: Sequence[int],
    updates_per_chunk: int,
    num_done: int = 0,
    placement: Placement | None = None,
    tell: Callable[[str], None] | None = None,
) -> Program:
    """Compiles up to `updates_per_chunk` updates of all seeds as one program, and initialises it.

    The seeds are independent: seed s gives the same numbers whichever seeds run in parallel with
    it, up to the rounding of batched matrix products.

    Args:
        algorithm: the algorithm.
        seeds: non-negative integers.
        updates_per_chunk: maximum number of updates in one call.
        num_done: number of updates that were done earlier. `resume_program` then sets their state.
        placement: the devices of the program, if the environment runs on the device; None for the
            default device.
        tell: is called with messages while environments on the host take long to start.

    Returns:
        The program. The caller has to close it.

    Raises:
        EnvironmentFailure: if the environment runs on the host and cannot be started.
        MemoryFailure: if there is not enough memory.
    """
    with shortage_named():
        if algorithm.env.open is None:
            return device_program(algorithm, seeds, updates_per_chunk, placement)
        return host_program(algorithm, seeds, updates_per_chunk, num_done, tell)


def resume_program(program: Program, state: State) -> Program:
    """Returns a fresh program with its state replaced by the state of an earlier program.

    On the device, the program then continues as if it had never stopped. Environments on the host
    cannot be stored, so their episodes and everything that belongs to running episodes start again.
    """
    if isinstance(state, HostState):
        seeds = [
            saved._replace(rollout=begun_anew(fresh.rollout, saved.num_updates))
            for saved, fresh in zip(state.seeds, program.state.seeds, strict=True)
        ]
        return program._replace(state=HostState(state.actor, tuple(seeds)))
    return program._replace(state=state)


def start_from(program: Program, learnt: Learnt) -> Program:
    """Returns a fresh program whose seeds start from what the seeds of another run have learnt.

    Args:
        program: from `compile_program`.
        learnt: what each seed starts from, leading axis `[num_seeds]`. If its critics of costs are
            None, the program keeps its own.
    """
    own = {name: x for name, x in learnt._asdict().items() if x is not None}
    state = program.state

    def begun(state, own, place):
        critic = own.get("critic")
        if isinstance(critic, WithCosts) and critic.costs is None:
            own = own | {"critic": critic._replace(costs=state.critic.costs)}
        placed = {name: jax.tree.map(place, x, getattr(state, name)) for name, x in own.items()}
        return state._replace(**placed)

    if isinstance(state, HostState):
        seeds = [
            begun(seed, jax.tree.map(lambda x, i=index: x[i], own), lambda x, old: x)
            for index, seed in enumerate(state.seeds)
        ]
        return program._replace(state=stack_states(seeds))
    return program._replace(state=begun(state, own, lambda x, old: to_devices(x, old.sharding)))


def learnt_by(state: State) -> Learnt:
    """Returns everything that the seeds have learnt, leading axis `[num_seeds]`, on the host.

    Raises:
        PeerFailure: if another process of the run is gone.
    """
    if not isinstance(state, HostState):
        return to_host(learnt_of(state))
    seeds = [jax.device_get(learnt_of(seed)) for seed in state.seeds]
    return jax.tree.map(lambda *xs: np.stack(xs), *seeds)


def most_updates(num_runs: int) -> int:
    """Returns how many updates a program for `num_runs` parallel runs should have room for."""
    return max(1, min(MOST_UPDATES, MOST_ROWS // num_runs))


def next_count(done: int, num_updates: int, most: int, intervals: Sequence[int]) -> int:
    """Returns the number of updates in the next chunk.

    Args:
        done: number of updates that are done.
        num_updates: number of updates in the whole run.
        most: maximum number of updates in the chunk.
        intervals: the chunk does not go beyond the next multiple of any of these numbers.
    """
    ends = [num_updates, *(every * (done // every + 1) for every in intervals if every)]
    return min(most, *(end - done for end in ends))


def finish(function: Callable[[], Any]) -> Any:
    """Calls a function that the first Ctrl-C does not interrupt, and returns its result.

    The function runs in its own thread, which signals do not reach. A first Ctrl-C is remembered.
    `stop_if_interrupted` raises it later, or all processes stop together after their next chunk. A
    second Ctrl-C is raised at once.
    """
    result, once = Future(), threading.Lock()

    def run():
        if once.acquire(blocking=False):
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

    try:
        _thread.start_new_thread(run, ())
        return result.result()
    except KeyboardInterrupt as interrupt:
        _thread.start_new_thread(run, ())  # Ctrl-C may have prevented the first start
        _interrupts.append(interrupt)
        return result.result()


def stop_if_interrupted() -> None:
    """Raises the Ctrl-C that `finish` has remembered, if there is one and only one process.

    Several processes stop together at the end of a chunk instead.
    """
    if _interrupts and jax.process_count() == 1:
        raise _interrupts.pop()


def advance_chunks(
    program: Program,
    num_updates: int,
    num_done: int = 0,
    seconds: float = 0.0,
    pace: Pace = LONGEST,
    alive: np.ndarray | None = None,
) -> Iterator[Chunk]:
    """Runs a program to its end and yields each chunk, also if numbers are not finite.

    The length of the chunks does not change the numbers. If chunks should take a certain time, the
    first chunk has one update. The length of each later chunk follows from the time of the chunk
    before it.

    Args:
        program: from `compile_program`. The run uses it up.
        num_updates: number of updates in the whole run.
        num_done: number of updates that were done earlier.
        seconds: training time of these earlier updates.
        pace: how long the chunks are.
        alive: which seeds have not stopped earlier, `[num_seeds]`; None for all seeds. A seed that
            has stopped is still computed, but what it has learnt stays the same.

    Raises:
        PeerFailure: if another process of the run is gone.
        AgreedStop: after Ctrl-C during a chunk. It is raised after that chunk has been yielded.
    """
    state, done = program.state, num_done
    most = 1 if math.isfinite(pace.seconds) else program.updates_per_chunk
    alive = np.ones(len(program.seeds), bool) if alive is None else alive
    _interrupts.clear()
    while done < num_updates:
        decide = partial(next_count, done, num_updates, most, pace.intervals)
        count = finish(partial(decided_by_first, decide))
        started = time.perf_counter()
        state, outputs, actor = finish(partial(_advance, program, state, count, alive))
        taken = time.perf_counter() - started
        metrics, health = jax.tree.map(lambda x, n=count: x[:, :n], outputs)
        seconds, done, alive = seconds + taken, done + count, alive & health.finite.all(axis=1)
        most = int(min(program.updates_per_chunk, max(1, pace.seconds * count / taken)))
        stopping = finish(partial(any_of, bool(_interrupts)))
        yield Chunk(done - count + 1, done, mark_missing(metrics), health, state, actor, seconds)
        if stopping:
            _interrupts.clear()
            raise AgreedStop


def _advance(program, state, count, alive):
    with shortage_named(), peer_failures_named():
        state, outputs = program.advance(state, count, alive)
        return state, *to_host((outputs, state.actor))


def mark_missing(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the metrics, with NaN in metrics of episodes if no episode ended in an update."""
    if "num_episodes" not in metrics:
        return metrics
    of_episodes = {
        name: x
        for name, x in metrics.items()
        if name in OF_EPISODES or name.startswith(EPISODIC_COST)
    }
    none = metrics["num_episodes"] == 0
    return metrics | {name: np.where(none, np.nan, x) for name, x in of_episodes.items()}


def run_chunks(
    program: Program,
    num_updates: int,
    num_done: int = 0,
    seconds: float = 0.0,
    pace: Pace = LONGEST,
    broken: Mapping[int, Broken] = MappingProxyType({}),
) -> Iterator[Chunk]:
    """Does the same as `advance_chunks`, and stops each seed whose numbers are not finite.

    A seed that has stopped keeps its last finite actor. Its metrics are NaN from then on.

    Args:
        program: as in `advance_chunks`, like the next four arguments.
        num_updates: number of updates in the whole run.
        num_done: number of updates that were done earlier.
        seconds: training time of these earlier updates.
        pace: how long the chunks are.
        broken: the seeds that stopped earlier.

    Raises:
        NonFiniteError: when all seeds have stopped; it names them. All updates before the last seed
            stopped have been yielded.
        PeerFailure: if another process of the run is gone.
        AgreedStop: after Ctrl-C during a chunk. It is raised after that chunk has been yielded.
    """
    alive = np.array([seed not in broken for seed in program.seeds])
    for chunk in advance_chunks(program, num_updates, num_done, seconds, pace, alive):
        finite = chunk.health.finite
        broken = _broken(program, chunk) | dict(broken)
        if broken:
            metrics = {name: np.where(finite, x, np.nan) for name, x in chunk.metrics.items()}
            chunk = chunk._replace(metrics=metrics, broken=broken)
        if len(broken) < len(program.seeds):
            yield chunk
            continue
        num_good = int(finite.any(axis=0).sum())
        if num_good > 0:
            good = {name: x[:, :num_good] for name, x in chunk.metrics.items()}
            last_update = chunk.first_update + num_good - 1
            yield chunk._replace(last_update=last_update, metrics=good)
        raise NonFiniteError(broken_text(broken))


def _broken(program: Program, chunk: Chunk) -> dict[int, Broken]:
    """Returns the seeds whose numbers are not finite in a chunk, with the first such update."""
    found = {}
    for index in np.flatnonzero(~chunk.health.finite.all(axis=1)):
        first = int(chunk.health.finite[index].argmin())
        update, step = chunk.first_update + first, int(chunk.health.broken_step[index, first])
        reason = f"update {update:,} gave numbers that are not finite"
        if step >= 0:
            value = float(chunk.health.broken_value[index, first])
            component = int(chunk.health.broken_component[index, first])
            when = f"in step {step + 1:,} of update {update:,}"
            reason = (
                f"environment {program.env.name} returned "
                f"{_number_named(program.env.observation, component, value)}, {when}. An algorithm "
                f"cannot learn from numbers that are not finite, or not below {LARGEST:g}"
            )
            if component == NO_LEGAL_ACTION:
                reason = (
                    f"environment {program.env.name} showed an {MASK} without a legal action, "
                    f"{when}. The episode should have ended there"
                )
        elif index in program.broken_by:
            said = program.broken_by[index].rstrip(".")
            reason = f"in update {update:,}, {said[0].lower()}{said[1:]}"
        found[program.seeds[index]] = Broken(update, reason)
    return found


def _number_named(observation: ObservationSpec, component: int, value: float) -> str:
    """Returns words for a component of an observation, the reward (-1) or a cost (-3).

    The components of all arrays of the observation are counted through.
    """
    if component < 0:
        return f"a {'cost' if component == OF_COSTS else 'reward'} of {value:g}"
    for path, spec in jax.tree_util.tree_flatten_with_path(observation)[0]:
        if component < math.prod(spec.shape):
            part = f" in its part {path_name('observation', path)}" if path else ""
            return f"an observation whose component {component}{part} is {value:g}"
        component -= math.prod(spec.shape)
    raise IndexError(component)


def broken_text(broken: Mapping[int, Broken]) -> str:
    """Returns sentences about the seeds that have stopped, why they stopped, and what may help."""
    listed = list(broken.items())[:LISTED]
    sentences = [f"Seed {seed} stopped: {reason}." for seed, (_, reason) in listed]
    more = len(broken) - len(listed)
    sentences += [f"{more} more seeds stopped too."] if more else []
    if any(reason.startswith("update") for _, (_, reason) in listed):
        sentences.append(
            "A smaller critic_lr or max_kl, more damping, or scale_rewards often helps."
        )
    return " ".join(sentences)
