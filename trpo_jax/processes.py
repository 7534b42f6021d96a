"""One run in several processes (`jax.distributed`), each with devices of its own.

All of them run the same lines and hold the same numbers on the host; arrays on devices are global,
each process holding its part. The first one, which files and terminal belong to, decides whatever
depends on clocks, folders or memory, and tells the others. What they tell each other goes through
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

HEARTBEAT_SECONDS = 30  # a process that was silent for so long counts as dead
JOINING_SECONDS = 300  # that processes wait for each other at the start
TELLING_SECONDS = 900  # that they wait for what another one tells, which may read checkpoints
# What the libraries that connect processes say of a lost one.
LOST = re.compile("gloo|nccl|connection|socket|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.I)


_turns = itertools.count()  # of telling each other something, the same ones in every process
_held: list[Any] = []  # what tells other processes of this machine the number of this one


def join(
    coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None
) -> None:
    """Makes this process one of several; to be called before anything is computed.

    Without arguments, Slurm, Open MPI and Cloud TPU tell what to join.

    Args:
        coordinator: `host:port` that the first process listens on.
        process_id: number of this process, from 0.
        num_processes: how many there are.

    Raises:
        ValueError: if nothing tells what to join.
        RuntimeError: if the others cannot be reached.
        ConfigurationError: if another process of this machine has the same number.
    """
    if coordinator is not None:
        _claim_number(coordinator, process_id)
    # It would take SIGTERM, which is to end a process.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX itself would abort with a stack trace of C++.
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
            f"A process with --process-id {process_id} of the run at {coordinator} is there "
            "already. Give each process a number of its own, from 0 to --num-processes less 1."
        ) from None
    except OSError:  # of another user: JAX finds out later
        return
    _held.append(lock)


def _give_up(coordinator: str | None, process_id: int | None, num_processes: int | None) -> None:
    print(
        f"error: The processes of this run have not found each other in {JOINING_SECONDS} seconds "
        f"(coordinator {coordinator}, process {process_id} of {num_processes}). See to it that "
        "all of them were started, each with a --process-id of its own from 0 to --num-processes "
        "less 1, and that all can reach the coordinator, which is the process with the number 0.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # the main thread waits inside JAX


def leave(code: int) -> None:
    """Tells the other processes that this one ends with an exit code other than 0."""
    _store().key_value_set(f"trpo_jax/left/{jax.process_index()}", str(code))


def exchange(value: Any) -> list[Any]:
    """Returns what each process has called this with, in the order of their numbers.

    Args:
        value: anything that JSON holds.

    Raises:
        ConfigurationError: if another process ended for such an error.
        PeerFailure: if another process is gone.
    """
    turn = next(_turns)
    _store().key_value_set(f"trpo_jax/{turn}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_told(turn, k)) for k in range(jax.process_count())]


def _told(turn: int, process: int) -> str:
    """Returns what a process tells in a turn, as soon as it does."""
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
                f"Process {process} of this run cannot work as it was started: see what it says."
            )
        if code is not None:
            break
    raise PeerFailure(f"Process {process} of this run ended or cannot be reached")


def _store() -> Any:
    from jax._src import distributed  # no public name leads to it

    return distributed.global_state.client


def is_first() -> bool:
    """Says whether this is the process that files and terminal belong to."""
    return jax.process_index() == 0


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """Returns what a function gives in the first process, which alone calls it, in all of them.

    Args:
        decide: gives anything that JSON holds.

    Raises:
        ConfigurationError: in all of them, if it does.
        StorageFailure: in all of them, if it raises an OSError.
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
    """Says, in all processes, whether something is so in one of them.

    Raises:
        PeerFailure: if another process is gone.
    """
    if jax.process_count() == 1:
        return here
    with peer_failures_named():
        return bool(multihost_utils.process_allgather(np.bool_(here)).any())


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Returns arrays on the host, the same ones in every process, as global arrays."""

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Returns whole arrays on the host, in every process, also those that others hold parts of.

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
    """Turns what is raised where another process is gone into a `PeerFailure`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        if jax.process_count() == 1 or not LOST.search(text):
            raise
        raise PeerFailure(
            f"Another process of this run ended or cannot be reached ({text.splitlines()[0][:200]})"
        ) from error
