"""Threads for pools of environments. The process can exit while such a thread still runs."""

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from trpo_jax.envs.base import Environment, Pool
from trpo_jax.errors import ConfigurationError, EnvironmentFailure

GOODBYE = 5.0  # seconds in which a pool must close


class OwnThread:
    """A thread that calls functions one after the other.

    The threads of an executor keep the process alive until their functions return. This thread ends
    with the process, even if a function never returns.
    """

    def __init__(self):
        """Starts the thread."""
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, args = task
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del task, future, function, args  # else they would stay in memory until the next task

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Adds a call to the queue, and returns its future."""
        future: Future = Future()
        self._tasks.put((future, function, args))
        return future

    def end(self) -> None:
        """Ends the thread after the calls in its queue."""
        self._tasks.put(None)


def close_in(thread: OwnThread, pool: Pool, name: str) -> None:
    """Closes a pool in its thread. If this takes too long, kills the pool and prints a warning."""
    closing = thread.submit(pool.close)
    try:
        closing.result(GOODBYE)
    except TimeoutError:
        pool.kill()
        print(
            f"warning: Environment {name} did not close in {GOODBYE:g} s, and was killed.",
            file=sys.stderr,
        )


def with_timeout(env: Environment, seconds: float | int) -> Environment:
    """Returns an environment that fails if a reset or a step of its copies takes too long.

    Args:
        env: an environment on the host.
        seconds: the time that a reset or a step of all copies may take.

    Raises:
        ConfigurationError: if the environment does not run on the host, or if the time is not
            positive.
    """
    if env.open is None:
        raise ConfigurationError(
            f"env_timeout = {seconds:g} does not work with {env.name}, because it does not run on "
            "the host. Only environments on the host can hang. Leave it out."
        )
    if not seconds > 0:
        raise ConfigurationError(
            f"env_timeout = {seconds:g} must be a number of seconds greater than 0."
        )

    def open(*args: Any, **options: Any) -> Pool:
        thread = OwnThread()
        try:
            pool = thread.submit(lambda: env.open(*args, **options)).result()
        except BaseException:
            thread.end()
            raise

        def within(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: np.ndarray) -> Any:
                future = thread.submit(function, *args)
                try:
                    return future.result(seconds)
                except TimeoutError as error:
                    if future.done():  # the environment itself raised a TimeoutError
                        raise
                    pool.kill()
                    raise EnvironmentFailure(
                        f"Environment {env.name} hangs: a {what} took more than {seconds:g} s, its "
                        "timeout. If it needs more time, set a larger timeout."
                    ) from error

            return call

        def close() -> None:
            close_in(thread, pool, env.name)
            thread.end()

        return Pool(
            within("reset", pool.reset),
            within("step", pool.step),
            close,
            pool.render and within("drawing", pool.render),
            pool.kill,
        )

    return env._replace(open=open)
