"""Pools: copies of one environment on the host.

The copies run one after the other, or each in its own process. Both ways use the same `Copy`. It
checks that the values that an environment returns match its space.
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

from trpo_jax.envs.base import Pool, StepResult
from trpo_jax.envs.observations import in_words, to_arrays
from trpo_jax.envs.specs import (
    MASK,
    ActionSpec,
    Discrete,
    ObservationSpec,
    to_space_action,
    with_parts,
)
from trpo_jax.errors import RAISED, Unpromised, environment_failure

# Each process needs these modules. They are imported once, in the server that forks the processes.
PRELOADED = ["flax.linen", "optax", "gymnasium", "trpo_jax.envs.pools"]
GOODBYE = 2.0  # seconds in which processes must close their environments


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


class Copy:
    """One copy of an environment with the interface of Gymnasium."""

    def __init__(self, make: Callable[[], Any], shows: Shows):
        """Makes the copy."""
        self.env, self.shows = make(), shows

    def ask(self, command: str, *args: Any) -> None:
        """Stores the method to call next, and its arguments."""
        self.asked = command, args

    def answer(self) -> Any:
        """Calls the stored method, and returns its result."""
        command, args = self.asked
        return getattr(self, command)(*args)

    def reset(self, seed: int | None) -> Any:
        """Starts an episode, and returns its first observation."""
        returned = self.env.reset() if seed is None else self.env.reset(seed=seed)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise Unpromised(f"{in_words(returned)} from reset, not (observation, info)")
        return self.arrays(*returned)

    def arrays(self, observation: Any, info: Any) -> Any:
        """Returns an observation as the arrays of its spec."""
        if self.shows.mask_in_info:
            if not isinstance(info, Mapping) or MASK not in info:
                raise Unpromised(f"an info without {MASK!r}, which it had after its first reset")
            observation = with_parts(observation, **{MASK: info[MASK]})
        return to_arrays(self.shows.observation, observation)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, list[float]]:
        """Takes a step. Returns observation, reward, terminated, truncated and costs."""
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

    def end(self, deadline: float) -> None:
        """Closes the environment."""
        self.env.close()


class Process:
    """A `Copy` in its own process."""

    def __init__(self, make: Callable[[], Any], shows: Shows):
        """Starts the process. Its first answer means that it is ready."""
        # A fork of this process could inherit a lock that XLA's threads hold.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, make, shows), daemon=True)
        self.process.start()
        other.close()

    def ask(self, command: str, *args: Any) -> None:
        """Tells the process which method to call next, and with which arguments."""
        with suppress(ConnectionError):  # if the process died, `answer` reports it
            self.pipe.send((command, args))

    def answer(self) -> Any:
        """Waits for the result of that method, and returns it."""
        try:
            good, value = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(GOODBYE)
            raise EOFError(f"exit code {self.process.exitcode}") from error
        if good:
            return value
        raise pickle.loads(value)

    def end(self, deadline: float) -> None:
        """Waits for the process to close its environment, until the deadline. Then ends it."""
        good, value = True, None
        with suppress(EOFError, ConnectionError):
            while self.pipe.poll(max(0, deadline - time.monotonic())):
                good, value = self.pipe.recv()
        self.process.join(max(0, deadline - time.monotonic()))
        self.process.kill()  # needed if the process is stopped, or if its environment hangs
        self.process.join()
        self.pipe.close()
        if not good:
            raise pickle.loads(value)


def work(pipe: Any, make: Callable[[], Any], shows: Shows) -> None:
    """Answers the commands of a `Process`, until a command ends the copy or the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C, the parent ends the processes
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
        name: the name of the environment, for messages.
        make: makes one copy. If the copies run in processes, it must be possible to pickle `make`.
        shows: the data that the environment shows.
        action: the spec of its actions.
        seeds: the seed of each copy. It decides all episodes of the copy.
        processes: whether each copy runs in its own process.

    Raises:
        EnvironmentFailure: if a copy cannot be made. The functions of the pool can raise it too.
    """
    copies: list[Copy | Process] = []
    first_seeds = dict(enumerate(seeds))  # the seeds of the copies before their first reset
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
        if errors and not broken:  # if the pool is broken, its failure was reported before
            print(f"warning: An environment did not close cleanly: {errors[0]}", file=sys.stderr)

    def kill() -> None:
        for copy in copies if processes else ():
            copy.process.kill()

    try:
        for index in range(len(seeds)):
            try:
                copies.append((Process if processes else Copy)(make, shows))
            except RAISED as error:
                raise named(error, index) from error
        if processes:  # all processes start at the same time
            answers(range(len(seeds)))
    except BaseException:
        broken = True
        close()
        raise
    return Pool(reset, step, close, render, kill)


def _action_of(index: int, spec: Any, actions: np.ndarray) -> Any:
    """Returns the action of one copy: a number for a `Discrete`, and else an array."""
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
    except Exception:  # pickle cannot make an error of this class from its arguments
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(lines)
        data = pickle.dumps(error)
    return data
