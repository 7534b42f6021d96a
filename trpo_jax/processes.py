"""One run in several processes (`jax.distributed`), each with devices of its own.

All processes run the same lines of code and hold the same numbers on the host. Arrays on devices
are global, and each process holds a part of them. All processes write checkpoints together. Only
the first process writes other files and prints to the terminal. It also makes each decision that
depends on clocks, folders or memory, and sends it to the other processes. Such messages go through
the store of JAX's coordination service, which needs no device and no compilation.
"""

import itertools
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from trpo_jax.errors import ConfigurationError, PeerFailure, StorageFailure

HEARTBEAT_SECONDS = 30  # a process that is silent for so long counts as dead
JOINING_SECONDS = 300  # how long processes wait for each other at the start
TELLING_SECONDS = 900  # how long a process waits for a message; the sender may read checkpoints
# Words in the errors that JAX and its libraries raise if another process is lost.
LOST = re.compile("gloo|nccl|connection|socket|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.I)


_turns = itertools.count()  # numbers of the messages, the same in every process
_held: list[Any] = []  # the lock that claims the number of this process on this machine


def join(
    coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None
) -> None:
    """Makes this process one of several processes of a run. Call it before any computation.

    Without arguments, JAX gets the values from Slurm, Open MPI or Cloud TPU.

    Args:
        coordinator: `host:port`, the address on which the first process listens.
        process_id: the number of this process, from 0.
        num_processes: the number of processes.

    Raises:
        ValueError: if there are no arguments, and JAX finds no values either.
        RuntimeError: if the other processes cannot be reached.
        ConfigurationError: if another process on this machine has the same number.
    """
    if coordinator is not None:
        _claim_number(coordinator, process_id)
    # The service would catch SIGTERM, but SIGTERM must end the process.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own timeout, JAX would abort with a C++ stack trace.
    watch = threading.Timer(JOINING_SECONDS, _give_up, [coordinator, process_id, num_processes])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=JOINING_SECONDS + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        watch.cancel()


def _claim_number(coordinator: str, process_id: int) -> None:
    from filelock import FileLock, Timeout

    name = f"trpo_jax-{re.sub(r'[^a-zA-Z0-9]', '-', coordinator)}-{process_id}.lock"
    lock = FileLock(Path(tempfile.gettempdir(), name), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"Another process on this machine already has --process-id {process_id} in the run at "
            f"{coordinator}. Give each process a different number, from 0 to --num-processes - 1."
        ) from None
    except OSError:  # the file belongs to another user; JAX finds a wrong number later
        return
    _held.append(lock)


def _give_up(coordinator: str | None, process_id: int | None, num_processes: int | None) -> None:
    print(
        f"error: The processes of this run have not found each other in {JOINING_SECONDS} seconds "
        f"(coordinator {coordinator}, process {process_id} of {num_processes}). Check that all "
        "processes were started, and that each has a different --process-id, from 0 to "
        "--num-processes - 1. Check that all of them can reach the coordinator, process 0.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # the main thread is blocked inside JAX


def leave(code: int) -> None:
    """Tells the other processes that this process ends with an exit code other than 0."""
    _store().key_value_set(f"trpo_jax/left/{jax.process_index()}", str(code))


def exchange(value: Any) -> list[Any]:
    """Returns the values with which all processes called this function, in the order of processes.

    Args:
        value: the value of this process. JSON must be able to hold it.

    Raises:
        ConfigurationError: if another process ended with a ConfigurationError.
        PeerFailure: if another process is gone.
    """
    turn = next(_turns)
    _store().key_value_set(f"trpo_jax/{turn}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_told(turn, k)) for k in range(jax.process_count())]


def _told(turn: int, process: int) -> str:
    """Waits for the message of a process with the number `turn`, and returns it."""
    for _ in range(TELLING_SECONDS):
        with peer_failures_named():
            try:
                return _store().blocking_key_value_get(f"trpo_jax/{turn}/{process}", 1000)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            left = dict(_store().key_value_dir_get("trpo_jax/left/"))
        code = left.get(f"trpo_jax/left/{process}")
        if code == "2":
            raise ConfigurationError(
                f"Process {process} of this run cannot work with its settings. See its own message."
            )
        if code is not None:
            break
    raise PeerFailure(f"Process {process} of this run ended or cannot be reached")


def _store() -> Any:
    from jax._src import distributed  # JAX has no public name for it

    return distributed.global_state.client


def is_first() -> bool:
    """Returns whether this is the first process, which writes files and prints to the terminal."""
    return jax.process_index() == 0


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result in all processes.

    Args:
        decide: the function. JSON must be able to hold its result.

    Raises:
        ConfigurationError: in all processes, if the function raises one.
        StorageFailure: in all processes, if the function raises an OSError.
        PeerFailure: if another process is gone.
    """
    if jax.process_count() == 1:
        return decide()
    said = {}
    if is_first():
        try:
            said = {"value": decide()}
        except ConfigurationError as error:
            said = {"refused": str(error)}
        except OSError as error:
            said = {"failed": str(error)}
    turn = next(_turns)
    if is_first():
        _store().key_value_set(f"trpo_jax/{turn}/0", json.dumps(said))
    said = json.loads(_told(turn, 0))
    if "refused" in said:
        raise ConfigurationError(said["refused"])
    if "failed" in said:
        raise StorageFailure(said["failed"])
    return said["value"]


def any_of(here: bool) -> bool:
    """Returns, in all processes, whether `here` is true in at least one process.

    Raises:
        PeerFailure: if another process is gone.
    """
    if jax.process_count() == 1:
        return here
    with peer_failures_named():
        return bool(multihost_utils.process_allgather(np.bool_(here)).any())


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Returns arrays on the host, which are the same in every process, as global arrays."""

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Returns whole arrays on the host in every process, even if other processes hold parts.

    Raises:
        PeerFailure: if another process is gone.
    """

    def whole(x):
        held = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return x if held else multihost_utils.process_allgather(x, tiled=True)

    with peer_failures_named():
        return jax.device_get(jax.tree.map(whole, tree))


@contextmanager
def peer_failures_named() -> Iterator[None]:
    """Turns an error into a `PeerFailure` if its text says that another process is gone."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if jax.process_count() == 1 or not LOST.search(text):
            raise
        raise PeerFailure(
            f"Another process of this run ended or cannot be reached ({text.splitlines()[0][:200]})"
        ) from error
