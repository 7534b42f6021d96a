"""Threads that own what lives in them, and that no exit of the process waits for."""

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from trpo_jax.envs.base import Environment, Pool
from trpo_jax.errors import ConfigurationError, EnvironmentFailure

GOODBYE = 5.0  # seconds that pools have for closing


class OwnThread:
    """A thread that calls functions one after another.

    Unlike those of an executor, it ends with the process even where a function never returns.
    """

    def __init__(self):
        """Starts it."""
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, args = task
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del task, future, function, args  # or they would live until the next one

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Returns the future of a call."""
        future: Future = Future()
        self._tasks.put((future, function, args))
        return future

    def end(self) -> None:
        """Lets it end after what it was given."""
        self._tasks.put(None)


def close_in(thread: OwnThread, pool: Pool, name: str) -> None:
    """Closes a pool in the thread that it lives in, or gives it up, and says so."""
    closing = thread.submit(pool.close)
    try:
        closing.result(GOODBYE)
    except TimeoutError:
        pool.kill()
        print(f"warning: Environment {name} does not close, and was given up.", file=sys.stderr)


def with_timeout(env: Environment, seconds: float | int) -> Environment:
    """Returns an environment on the host that fails where a step of its copies takes too long.

    Args:
        env: the environment.
        seconds: that a reset or a step of all copies may take.

    Raises:
        ConfigurationError: if the environment does not run on the host.
    """
    if env.open is None or not seconds > 0:
        raise ConfigurationError(
            f"env_timeout = {seconds:g} must be a number of seconds more than 0, for an "
            f"environment on the host, which {env.name} "
            f"{'is not' if env.open is None else 'is'}. Only that can hang; leave it away else."
        )

    def open(*args: Any, **options: Any) -> Pool:
        thread = OwnThread()
        pool = thread.submit(lambda: env.open(*args, **options)).result()

        def within(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: np.ndarray) -> Any:
                future = thread.submit(function, *args)
                try:
                    return future.result(seconds)
                except TimeoutError as error:
                    if future.done():  # an error of the environment's own
                        raise
                    pool.kill()
                    raise EnvironmentFailure(
                        f"Environment {env.name} hangs: a {what} took more than {seconds:g} s, "
                        "which is its timeout. A larger one waits longer."
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
