"""Copies of one environment on the host, stepped one by one or each in a process of its own.

Both ways ask the same `Copy`, which checks whatever an environment returns against its space.
"""

import multiprocessing
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

from trpo_jax.envs.base import (
    MASK,
    ActionSpec,
    Discrete,
    ObservationSpec,
    Pool,
    StepResult,
    to_space_action,
    with_parts,
)
from trpo_jax.envs.observations import in_words, to_arrays
from trpo_jax.errors import RAISED, Unpromised, environment_failure

# Each worker imports the main script, which imports these: once for all.
PRELOADED = ["flax.linen", "optax", "gymnasium", "trpo_jax.envs.pools"]
GOODBYE = 2.0  # seconds that processes have for closing their environments


class Shows(NamedTuple):
    """What an environment shows.

    Attributes:
        observation: its spec.
        mask_in_info: whether the mask of legal actions comes with `info`.
        costs: names of costs, each with its function of the `info` of a step.
    """

    observation: ObservationSpec
    mask_in_info: bool = False
    costs: tuple[tuple[str, Callable[[Any], Any]], ...] = ()


class Copy:
    """One copy of an environment with the interface of Gymnasium."""

    def __init__(self, make: Callable[[], Any], shows: Shows):
        """Makes the copy."""
        self.env, self.shows = make(), shows

    def ask(self, command: str, *args: Any) -> None:
        """Says which method is to be called next, and with what."""
        self.asked = command, args

    def answer(self) -> Any:
        """Returns what that method returned."""
        command, args = self.asked
        return getattr(self, command)(*args)

    def reset(self, seed: int | None) -> Any:
        """Returns the first observation of an episode."""
        returned = self.env.reset() if seed is None else self.env.reset(seed=seed)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise Unpromised(f"{in_words(returned)} from reset, not (observation, info)")
        return self.arrays(*returned)

    def arrays(self, observation: Any, info: Any) -> Any:
        """Returns what it shows as the arrays of its spec."""
        if self.shows.mask_in_info:
            if not isinstance(info, Mapping) or MASK not in info:
                raise Unpromised(f"an info without {MASK!r}, which it had after its first reset")
            observation = with_parts(observation, **{MASK: info[MASK]})
        return to_arrays(self.shows.observation, observation)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, list[float]]:
        """Returns observation, reward, whether the episode terminated or truncated, and costs."""
        returned = self.env.step(action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise Unpromised(
                f"{in_words(returned)} from step, not (observation, reward, terminated, "
                "truncated, info)"
            )
        observation, reward, terminated, truncated, info = returned
        return (
            self.arrays(observation, info),
            float(_number("reward", reward)),
            bool(_number("flag terminated", terminated)),
            bool(_number("flag truncated", truncated)),
            self.costs(info),
        )

    def costs(self, info: Any) -> list[float]:
        """Returns the costs that come with an info."""
        found = []
        for name, cost in self.shows.costs:
            try:
                found.append(float(_number(f"cost {name}", cost(info))))
            except (KeyError, TypeError) as error:
                raise Unpromised(f"an info without the cost {name} ({error})") from error
        return found

    def render(self) -> np.ndarray:
        """Returns an image of it, `[H, W, 3]` bytes."""
        frame = self.env.render()
        image = np.asarray(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise Unpromised(f"{in_words(frame)} from render, not an image of bytes [H, W, 3]")
        return image

    def end(self, deadline: float) -> None:
        """Closes it."""
        self.env.close()


class Process:
    """A `Copy` in a process of its own."""

    def __init__(self, make: Callable[[], Any], shows: Shows):
        """Starts the process, whose first answer says that it is ready."""
        # A fork of this process could inherit a lock that XLA's threads hold.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, make, shows), daemon=True)
        self.process.start()
        other.close()

    def ask(self, command: str, *args: Any) -> None:
        """Says which method is to be called next, and with what."""
        with suppress(ConnectionError):  # of a process that died, which its answer says
            self.pipe.send((command, args))

    def answer(self) -> Any:
        """Returns what that method returned."""
        try:
            good, value = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(GOODBYE)
            raise EOFError(f"exit code {self.process.exitcode}") from error
        if good:
            return value
        raise pickle.loads(value)

    def end(self, deadline: float) -> None:
        """Waits until the process, which was asked to close, has done so, and ends it."""
        good, value = True, None
        with suppress(EOFError, ConnectionError):
            while self.pipe.poll(max(0, deadline - time.monotonic())):
                good, value = self.pipe.recv()
        self.process.join(max(0, deadline - time.monotonic()))
        self.process.kill()  # in case that it is stopped, or its environment hangs
        self.process.join()
        self.pipe.close()
        if not good:
            raise pickle.loads(value)


def work(pipe: Any, make: Callable[[], Any], shows: Shows) -> None:
    """Answers what a `Process` asks, until that closes the copy or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers in order
    copy, command = None, "make"
    with suppress(EOFError, ConnectionError):
        while command != "end":
            try:
                if copy is None:
                    copy, value = Copy(make, shows), None
                else:
                    value = copy.answer()
                answer = True, value
            except RAISED as error:
                answer = False, _pickled(error)
            pipe.send(answer)
            if copy is None:
                return
            command, args = pipe.recv()
            copy.ask(command, *args)
        try:
            copy.end(0)
        except RAISED as error:
            pipe.send((False, _pickled(error)))


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
        name: of the environment, for messages.
        make: makes one copy; for processes it can be pickled.
        shows: what it shows.
        action: its actions.
        seeds: of each copy, which decide all of its episodes.
        processes: whether each copy runs in a process of its own.

    Raises:
        EnvironmentFailure: if a copy cannot be made. The pool's functions raise it too.
    """
    copies: list[Copy | Process] = []
    first_seeds = dict(enumerate(seeds))  # of those that were never reset
    broken = False

    def named(error: BaseException, index: int) -> Exception:
        return environment_failure(name, error, f" (copy {index + 1} of {len(seeds)})")

    def answers(indices: Iterable[int]) -> list[Any]:
        nonlocal broken
        found = []
        for index in indices:
            try:
                found.append(copies[index].answer())
            except RAISED as error:
                broken = True
                raise named(error, index) from error
        return found

    def reset(mask: np.ndarray) -> Any:
        indices = np.flatnonzero(mask).tolist()
        for index in indices:
            copies[index].ask("reset", first_seeds.pop(index, None))
        return _stacked(answers(indices))

    def step(actions: Any) -> StepResult:
        given = to_space_action(action, actions)
        for index, copy in enumerate(copies):
            copy.ask("step", jax.tree.map(partial(_action_of, index), action, given))
        columns = zip(*answers(range(len(copies))), strict=True)
        observations, rewards, terminated, truncated, costs = columns
        return StepResult(
            _stacked(observations),
            np.array(rewards, np.float64),
            np.array(terminated, bool),
            np.array(truncated, bool),
            np.array(costs, np.float64) if shows.costs else (),
        )

    def render() -> np.ndarray:
        for copy in copies:
            copy.ask("render")
        return np.stack(answers(range(len(copies))))

    def close() -> None:
        deadline = time.monotonic() + GOODBYE
        if processes:
            for copy in copies:
                copy.ask("end")
        errors = []
        for index, copy in enumerate(copies):
            try:
                copy.end(deadline)
            except RAISED as error:
                errors.append(named(error, index))
        copies.clear()
        if errors and not broken:  # or its failure has been reported
            print(f"warning: While it was closed: {errors[0]}", file=sys.stderr)

    def kill() -> None:
        for copy in copies if processes else ():
            copy.process.kill()

    try:
        for index in range(len(seeds)):
            try:
                copies.append((Process if processes else Copy)(make, shows))
            except RAISED as error:
                raise named(error, index) from error
        if processes:  # which start side by side
            answers(range(len(seeds)))
    except BaseException:
        broken = True
        close()
        raise
    return Pool(reset, step, close, render, kill)


def _action_of(index: int, spec: Any, actions: np.ndarray) -> Any:
    """Returns the action of one copy: a number of a `Discrete`, an array of the others."""
    return actions[index] if isinstance(spec, Discrete) else actions[index, ...]


def _stacked(observations: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *observations)


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
    except Exception:  # an error whose class is made in another way than from its arguments
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(lines)
        data = pickle.dumps(error)
    return data
