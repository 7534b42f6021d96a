"""The driver: a Python loop over one compiled program of several updates, for many seeds at once.

Everything that is not mathematics (progress, files, Ctrl-C) happens on the host, between two calls.
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
from trpo_jax.processes import (
    any_of,
    decided_by_first,
    peer_failures_named,
    to_devices,
    to_host,
)
from trpo_jax.running.host_program import HostState, host_program, stack_states
from trpo_jax.running.memory import shortage_named
from trpo_jax.running.program import NO_LEGAL_ACTION, OF_COSTS, Health, Program, device_program

OF_EPISODES = ("episodic_return", "episode_length")  # metrics that need an episode that ended
EPISODIC_COST = "episodic_cost"  # beginning of names of others
CHUNK_SECONDS = 1.0  # so long the host sees nothing of a run, and Ctrl-C waits
MOST_UPDATES, MOST_ROWS = 1024, 2**16  # that a program has room for: of a seed, of all seeds
LISTED = 8  # seeds in a message
_interrupts: list[KeyboardInterrupt] = []  # Ctrl-C for which the run has not stopped yet


class Pace(NamedTuple):
    """How long chunks are.

    Attributes:
        seconds: that a chunk is to take; if infinite, chunks are as long as the program has room.
        intervals: numbers of updates; chunks end at the multiples of each that is not 0.
    """

    seconds: float = math.inf
    intervals: tuple[int, ...] = ()


LONGEST, USUAL = Pace(), Pace(CHUNK_SECONDS)


class Broken(NamedTuple):
    """Why a seed stopped.

    Attributes:
        update: the first one whose numbers are not finite.
        reason: what was wrong, as a sentence without its end.
    """

    update: int
    reason: str


class Chunk(NamedTuple):
    """What one call of the compiled program gave.

    Attributes:
        first_update: number of its first update, counted from 1.
        last_update: number of its last update.
        metrics: each `[num_seeds, updates]`, on the host; NaN in `episodic_return` and
            `episode_length` where no episode ended. An algorithm may have none of these. All are
            NaN of seeds that have stopped.
        health: of these updates, on the host.
        state: after its last update; used up by the next chunk.
        actor: what acting needs after its last update, leading axis `[num_seeds]`, on the host.
        seconds: training time until its end, compilation excluded.
        broken: the seeds that have stopped so far, since their numbers are not finite.
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
    """The numbers of all seeds of a run stopped being finite."""


class AgreedStop(KeyboardInterrupt):
    """Ctrl-C in one of the processes, after a chunk that all of them have done."""


def compile_program(
    algorithm: Algorithm,
    seeds: Sequence[int],
    updates_per_chunk: int,
    num_done: int = 0,
    placement: Placement | None = None,
    tell: Callable[[str], None] | None = None,
) -> Program:
    """Compiles up to `updates_per_chunk` updates of all seeds as one program; initialises them.

    Each seed is a run of its own: seed s gives the same run whatever other seeds run beside it, up
    to the rounding of batched matrix products.

    Args:
        algorithm: what to run.
        seeds: one non-negative integer each.
        updates_per_chunk: updates that one call has room for.
        num_done: updates that were done before; `resume_program` then gives it their state.
        placement: which devices it is on, where the environment is; the default one if None.
        tell: called with words about environments on the host that take long to start.

    Returns:
        A program, to be closed in the end.

    Raises:
        EnvironmentFailure: if the environment runs on the host and cannot be started.
    """
    with shortage_named():
        if algorithm.env.open is None:
            return device_program(algorithm, seeds, updates_per_chunk, placement)
        return host_program(algorithm, seeds, updates_per_chunk, num_done, tell)


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
        learnt: for each seed, leading axis `[num_seeds]`. Critics of costs that are None stay those
            of the program.
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
    """Returns what all seeds have learnt, leading axis `[num_seeds]`, on the host.

    Raises:
        PeerFailure: if another process of the run is gone.
    """
    if not isinstance(state, HostState):
        return to_host(learnt_of(state))
    seeds = [jax.device_get(learnt_of(seed)) for seed in state.seeds]
    return jax.tree.map(lambda *xs: np.stack(xs), *seeds)


def most_updates(num_runs: int) -> int:
    """Returns how many updates of `num_runs` runs side by side a program is to have room for."""
    return max(1, min(MOST_UPDATES, MOST_ROWS // num_runs))


def next_count(done: int, num_updates: int, most: int, intervals: Sequence[int]) -> int:
    """Returns how many updates come next: at most so many, and none beyond a multiple."""
    ends = [num_updates, *(every * (done // every + 1) for every in intervals if every)]
    return min(most, *(end - done for end in ends))


def finish(function: Callable[[], Any]) -> Any:
    """Returns the result of a function, which Ctrl-C does not end before its time.

    The function runs in a thread of its own, which no signal reaches. A first Ctrl-C is kept: for
    `stop_if_interrupted`, or until all processes stop, after their next chunk. A second one is
    raised.
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
        _thread.start_new_thread(run, ())  # it may have come before the first
        _interrupts.append(interrupt)
        return result.result()


def stop_if_interrupted() -> None:
    """Raises the Ctrl-C that `finish` has kept; several processes agree on it in their chunks."""
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
    """Runs a program to its end, yielding after each chunk, whatever the numbers are.

    The numbers do not depend on the chunks. The first one has one update, where chunks are to take
    a certain time; each takes as many as that time allows, going by the one before.

    Args:
        program: from `compile_program`; used up by the run.
        num_updates: updates in the whole run.
        num_done: updates that were done before.
        seconds: training time of those.
        pace: how long chunks are.
        alive: which seeds have not stopped before, `[num_seeds]`; all if None. The others go on,
            but for their actors.

    Raises:
        PeerFailure: if another process of the run is gone.
        AgreedStop: on Ctrl-C during a chunk, after that chunk was yielded.
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
    """Returns the metrics with NaN in those of episodes where no episode ended."""
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
    """Does what `advance_chunks` does; a seed whose numbers are not finite stops, for good.

    Its actor stays at the last one that is finite, and its metrics are NaN from then on.

    All arguments but `broken`, the seeds that stopped before, are those of `advance_chunks`.

    Raises:
        NonFiniteError: when all seeds have stopped, naming them. All updates before the last one
            stopped were yielded.
        PeerFailure: if another process of the run is gone.
        AgreedStop: on Ctrl-C during a chunk, after that chunk was yielded.
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
    """Returns the seeds that are not finite in a chunk, from the first update that is not."""
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
                f"{_number_named(program.env.observation, component, value)}, {when}. Numbers that "
                f"are not finite, or from {LARGEST:g} on, cannot be learnt from"
            )
            if component == NO_LEGAL_ACTION:
                reason = (
                    f"environment {program.env.name} showed an {MASK} without a legal action, "
                    f"{when}. Such a state is the end of an episode"
                )
        elif index in program.broken_by:
            said = program.broken_by[index].rstrip(".")
            reason = f"in update {update:,}, {said[0].lower()}{said[1:]}"
        found[program.seeds[index]] = Broken(update, reason)
    return found


def _number_named(observation: ObservationSpec, component: int, value: float) -> str:
    """Returns the words for a component of an observation, the reward (-1) or a cost (-3).

    Components are counted over all arrays of the observation.
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
    """Returns which seeds have stopped and why, and what often helps where they broke alone."""
    listed = list(broken.items())[:LISTED]
    sentences = [f"Seed {seed} stopped: {reason}." for seed, (_, reason) in listed]
    more = len(broken) - len(listed)
    sentences += [f"So did {more} more seeds."] if more else []
    if any(reason.startswith("update") for _, (_, reason) in listed):
        sentences.append(
            "A smaller critic_lr or max_kl, more damping, or scale_rewards often helps."
        )
    return " ".join(sentences)
