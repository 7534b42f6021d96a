"""Pools: copies of one environment on the host.

The copies run one after the other, or in several processes. Both ways use the same `Copy`. It
checks that the values that an environment returns match its space. The copies read their actions
from rows of arrays, and write their results into rows. The processes share the memory of these
arrays, so only short commands go through pipes.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.envs.base import Pool, StepResult
from trpo_jax.envs.observations import in_words, require_tuple, to_arrays
from trpo_jax.envs.specs import (
    MASK,
    ActionSpec,
    Agents,
    Box,
    Discrete,
    ObservationSpec,
    to_space_action,
    with_parts,
)
from trpo_jax.errors import RAISED, Unpromised, environment_failure

# Each process needs these modules. They are imported once, in the server that forks the processes.
PRELOADED = ["flax.linen", "optax", "gymnasium", "trpo_jax.envs.pools"]
GOODBYE = 2.0  # seconds in which processes must close their environments
ALIGNED = 64  # bytes; each array begins at a multiple of it


class Shows(NamedTuple):
    """The data that an environment shows.

    Attributes:
        observation: the spec of its observations.
        mask_in_info: whether the mask of legal actions is in `info`.
        costs: the name of each cost, and its function of the `info` of a step.
    """

    observation: ObservationSpec
    mask_in_info: bool = False
    costs: tuple[tuple[str, Callable[[Any], Any]], ...] = ()


class Rows(NamedTuple):
    """Arrays with a row for each copy, `[B, ...]`.

    Attributes:
        mask: the copies to reset.
        actions: the actions, in the dtypes of the environment's own space.
        observation: the observations, as the arrays of their spec.
        reward: the rewards.
        terminated: the flags terminated.
        truncated: the flags truncated.
        costs: the costs, `[B, K]`.
    """

    mask: np.ndarray
    actions: Any
    observation: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    costs: np.ndarray


def shapes_of(shows: Shows, action: ActionSpec, count: int) -> Rows:
    """Returns the shapes and dtypes of the rows of `count` copies."""
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)

    def of_action(spec):
        spec = spec.joint if isinstance(spec, Agents) else spec
        if isinstance(spec, Box):
            return array(spec.low.dtype, *spec.low.shape)
        return array(spec.dtype, *spec.shape)

    return Rows(
        array(bool),
        jax.tree.map(of_action, action),
        jax.tree.map(lambda x: array(x.own_dtype or x.dtype, *x.shape), shows.observation),
        array(np.float64),
        array(bool),
        array(bool),
        array(np.float64, len(shows.costs)),
    )


def num_bytes(x: Any) -> int:
    """Returns the memory that an array needs, as a multiple of `ALIGNED`."""
    return -(-x.size * x.dtype.itemsize // ALIGNED) * ALIGNED


def rows_in(memory: Any, shapes: Rows) -> Rows:
    """Returns arrays of these shapes that lie in a memory, such as a `bytearray`."""
    leaves, structure = jax.tree.flatten(shapes)
    starts = np.cumsum([0, *map(num_bytes, leaves)])
    arrays = [
        np.frombuffer(memory, x.dtype, x.size, start).reshape(x.shape)
        for x, start in zip(leaves, starts, strict=False)
    ]
    return jax.tree.unflatten(structure, arrays)


class CopyError(Exception):
    """A copy raised an error, or the process of some copies died.

    Attributes:
        indices: the indices of the copies.
        error: the error.
    """

    def __init__(self, indices: Sequence[int], error: BaseException):
        """Stores the attributes."""
        super().__init__(indices, error)
        self.indices, self.error = indices, error


class Copy:
    """One copy of an environment with the interface of Gymnasium."""

    def __init__(self, make: Callable[[], Any], shows: Shows):
        """Makes the copy."""
        self.env, self.shows = make(), shows

    def reset(self, seed: int | None) -> Any:
        """Starts an episode, and returns its first observation."""
        returned = self.env.reset() if seed is None else self.env.reset(seed=seed)
        return self.arrays(*require_tuple("reset", returned, "observation", "info"))

    def arrays(self, observation: Any, info: Any) -> Any:
        """Returns an observation as the arrays of its spec."""
        if self.shows.mask_in_info:
            if not isinstance(info, Mapping) or MASK not in info:
                raise Unpromised(f"an info without {MASK!r}, which it had after its first reset")
            observation = with_parts(observation, **{MASK: info[MASK]})
        return to_arrays(self.shows.observation, observation)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, list[float]]:
        """Takes a step. Returns observation, reward, terminated, truncated and costs."""
        names = ("observation", "reward", "terminated", "truncated", "info")
        returned = require_tuple("step", self.env.step(action), *names)
        observation, reward, terminated, truncated, info = returned
        return (
            self.arrays(observation, info),
            float(_number("reward", reward)),
            bool(_number("flag terminated", terminated)),
            bool(_number("flag truncated", truncated)),
            self.costs(info),
        )

    def costs(self, info: Any) -> list[float]:
        """Returns the costs of a step from its info."""
        found = []
        for name, cost in self.shows.costs:
            try:
                found.append(float(_number(f"cost {name}", cost(info))))
            except (KeyError, TypeError) as error:
                raise Unpromised(f"an info without the cost {name} ({error})") from error
        return found

    def render(self) -> np.ndarray:
        """Returns an image of the environment, `[H, W, 3]` bytes."""
        frame = self.env.render()
        image = np.asarray(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise Unpromised(f"{in_words(frame)} from render, not an image of bytes [H, W, 3]")
        return image


class Copies:
    """Some copies of a pool in one process. Their errors become a `CopyError`."""

    def __init__(
        self,
        make: Callable[[], Any],
        shows: Shows,
        action: ActionSpec,
        rows: Rows,
        seeds: Mapping[int, int],
    ):
        """Stores the facts. `seeds` has the seed of each copy by its index in the pool."""
        self.make_one, self.shows, self.action, self.rows = make, shows, action, rows
        self.indices, self.first_seeds = list(seeds), dict(seeds)
        self.copies: dict[int, Copy] = {}

    def ask(self, command: str) -> None:
        """Stores the method to call next."""
        self.asked = command

    def answer(self) -> Any:
        """Calls the stored method, and returns its result."""
        return getattr(self, self.asked)()

    def each(self, function: Callable[[int], Any], indices: Iterable[int]) -> list[Any]:
        """Returns the results of a function of the index of a copy."""
        found = []
        for index in indices:
            try:
                found.append(function(index))
            except RAISED as error:
                raise CopyError([index], error) from error
        return found

    def make(self) -> None:
        """Makes the copies."""

        def one(index):
            self.copies[index] = Copy(self.make_one, self.shows)

        self.each(one, self.indices)

    def show(self, index: int, observation: Any) -> None:
        """Writes the observation of a copy into its row."""

        def write(rows, x):
            rows[index] = x

        jax.tree.map(write, self.rows.observation, observation)

    def reset(self) -> None:
        """Starts episodes in the copies in the mask. Writes their observations."""
        reset = lambda index: self.copies[index].reset(self.first_seeds.pop(index, None))
        self.each(
            lambda index: self.show(index, reset(index)),
            [index for index in self.indices if self.rows.mask[index]],
        )

    def step(self) -> None:
        """Takes a step in all copies, and writes the results."""
        rows = self.rows

        def one(index):
            action = jax.tree.map(partial(_action_of, index), self.action, rows.actions)
            shown, *others = self.copies[index].step(action)
            self.show(index, shown)
            rows.reward[index], rows.terminated[index], rows.truncated[index] = others[:3]
            rows.costs[index] = others[3]

        self.each(one, self.indices)

    def render(self) -> list[np.ndarray]:
        """Returns an image of each copy."""
        return self.each(lambda index: self.copies[index].render(), self.indices)

    def end(self, deadline: float = 0) -> None:
        """Closes all copies, even if one of them raises an error."""
        errors = []
        while self.copies:
            index, copy = self.copies.popitem()
            try:
                copy.env.close()
            except RAISED as error:
                errors.append(CopyError([index], error))
        if errors:
            raise errors[-1]


class Process:
    """Some copies in a process of their own."""

    def __init__(
        self,
        make: Callable[[], Any],
        shows: Shows,
        action: ActionSpec,
        memory: Any,
        num_copies: int,
        seeds: Mapping[int, int],
    ):
        """Starts the process. Its first answer means that its copies are ready."""
        context = process_context()
        self.indices = list(seeds)
        self.pipe, other = context.Pipe()
        args = other, make, shows, action, memory, num_copies, seeds
        self.process = context.Process(target=work, args=args, daemon=True)
        self.process.start()
        other.close()

    def ask(self, command: str) -> None:
        """Tells the process which method of `Copies` to call next."""
        with suppress(ConnectionError):  # if the process died, `answer` reports it
            self.pipe.send(command)

    def answer(self) -> Any:
        """Waits for the result of that method, and returns it."""
        try:
            good, value = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(GOODBYE)
            died = EOFError(f"exit code {self.process.exitcode}")
            raise CopyError(self.indices, died) from error
        return self.value_of(good, value)

    def value_of(self, good: bool, value: Any) -> Any:
        """Returns the value of an answer, or raises its error."""
        if good:
            return value
        indices, error = value
        raise CopyError(indices, pickle.loads(error))

    def end(self, deadline: float) -> None:
        """Waits for the process to close its environments, until the deadline. Then ends it."""
        good, value = True, None
        with suppress(EOFError, ConnectionError):
            while self.pipe.poll(max(0, deadline - time.monotonic())):
                good, value = self.pipe.recv()
        self.process.join(max(0, deadline - time.monotonic()))
        self.process.kill()  # needed if the process is stopped, or if its environment hangs
        self.process.join()
        self.pipe.close()
        self.value_of(good, value)


def process_context() -> Any:
    """Returns the way to start processes. A fork could inherit a lock that XLA's threads hold."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def work(
    pipe: Any,
    make: Callable[[], Any],
    shows: Shows,
    action: ActionSpec,
    memory: Any,
    num_copies: int,
    seeds: Mapping[int, int],
) -> None:
    """Answers the commands of a `Process`, until a command ends the copies or the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C, the parent ends the processes
    rows = rows_in(memory, shapes_of(shows, action, num_copies))
    copies, command = Copies(make, shows, action, rows, seeds), "make"
    with suppress(EOFError, ConnectionError):
        while True:
            try:
                answer = True, getattr(copies, command)()
            except CopyError as failure:
                answer = False, (failure.indices, _pickled(failure.error))
            pipe.send(answer)
            if command == "end":
                return
            command = pipe.recv()


def open_pool(
    name: str,
    make: Callable[[], Any],
    shows: Shows,
    action: ActionSpec,
    seeds: Sequence[int],
    processes: bool = False,
) -> Pool:
    """Returns a pool of copies of an environment with the interface of Gymnasium.

    Args:
        name: the name of the environment, for messages.
        make: makes one copy. If the copies run in processes, it must be possible to pickle `make`.
        shows: the data that the environment shows.
        action: the spec of its actions.
        seeds: the seed of each copy. It decides all episodes of the copy.
        processes: whether the copies run in processes, one for each core.

    Raises:
        EnvironmentFailure: if a copy cannot be made. The functions of the pool can raise it too.
    """
    num_copies, broken = len(seeds), False
    shapes = shapes_of(shows, action, num_copies)
    size = sum(map(num_bytes, jax.tree.leaves(shapes)))
    memory = process_context().RawArray("b", size) if processes else bytearray(size)
    rows = rows_in(memory, shapes)
    copy_rows = partial(jax.tree.map, np.copy)  # the next step overwrites the rows
    workers: list[Copies | Process] = []

    def named(failure: CopyError) -> Exception:
        first, last = failure.indices[0] + 1, failure.indices[-1] + 1
        which = f"copy {first}" if first == last else f"one of the copies {first} to {last}"
        return environment_failure(name, failure.error, f" ({which} of {num_copies})")

    def answers(command: str, ask: bool = True) -> list[Any]:
        nonlocal broken
        for worker in workers if ask else ():
            worker.ask(command)
        try:
            return [worker.answer() for worker in workers]
        except CopyError as failure:
            broken = True
            raise named(failure) from failure.error

    def reset(mask: np.ndarray) -> Any:
        rows.mask[:] = mask
        answers("reset")
        return jax.tree.map(lambda x: x[mask], rows.observation)

    def step(actions: Any) -> StepResult:
        jax.tree.map(np.copyto, rows.actions, to_space_action(action, actions))
        answers("step")
        found = (rows.observation, rows.reward, rows.terminated, rows.truncated)
        return StepResult(*copy_rows(found), copy_rows(rows.costs) if shows.costs else ())

    def render() -> np.ndarray:
        return np.stack([frame for frames in answers("render") for frame in frames])

    def close() -> None:
        deadline = time.monotonic() + GOODBYE
        for worker in workers if processes else ():
            worker.ask("end")
        errors = []
        for worker in workers:
            try:
                worker.end(deadline)
            except CopyError as failure:
                errors.append(named(failure))
        workers.clear()
        if errors and not broken:  # if the pool is broken, its failure was reported before
            print(f"warning: An environment did not close cleanly: {errors[0]}", file=sys.stderr)

    def kill() -> None:
        for worker in workers if processes else ():
            worker.process.kill()

    try:
        if processes:
            for part in np.array_split(np.arange(num_copies), min(num_copies, os.cpu_count() or 1)):
                own = {index: seeds[index] for index in part.tolist()}
                workers.append(Process(make, shows, action, memory, num_copies, own))
        else:
            workers.append(Copies(make, shows, action, rows, dict(enumerate(seeds))))
        answers("make", ask=not processes)  # all processes start at the same time
    except BaseException:
        broken = True
        close()
        raise
    return Pool(reset, step, close, render, kill)


def _action_of(index: int, spec: Any, actions: np.ndarray) -> Any:
    """Returns the action of one copy: a number for a `Discrete`, and else an array of its own."""
    return actions[index] if isinstance(spec, Discrete) else actions[index, ...].copy()


def _number(what: str, value: Any) -> Any:
    if type(value) in (float, bool, np.float64, np.bool_):
        return value
    x = np.asarray(value)
    if x.size != 1 or x.dtype.kind not in "biuf":
        raise Unpromised(f"a {what} of {in_words(value)}, not a number")
    return x.item()


def _pickled(error: BaseException) -> bytes:
    """Returns an error as bytes, with its traceback as a note."""
    lines = "".join(traceback.format_exception(error))
    try:
        error.add_note(lines)
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # pickle cannot make an error of this class from its arguments
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(lines)
        data = pickle.dumps(error)
    return data
