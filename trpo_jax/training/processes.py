"""One run in several processes (`jax.distributed`), each with devices of its own.

All of them run the same lines and hold the same numbers on the host; arrays on devices are global,
each process holding its part. The first one, which files and terminal belong to, decides whatever
depends on clocks, folders or memory, and tells the others.
"""

import ctypes
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from trpo_jax.errors import ConfigurationError, PeerFailure

HEARTBEAT_SECONDS = 30  # a process that was silent for so long counts as dead


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
        ConfigurationError: if that fails.
    """
    # It would take SIGTERM, which is to end a process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The processes of this run cannot find each other: {str(error).splitlines()[0]} "
            "Start it under Slurm, Open MPI or on Cloud TPU, or say --coordinator host:port "
            "--process-id K --num-processes N, with every K from 0 to N - 1 once."
        ) from error


def is_first() -> bool:
    """Says whether this is the process that files and terminal belong to."""
    return jax.process_index() == 0


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """Returns what a function gives in the first process, which alone calls it, in all of them.

    Args:
        decide: gives anything that JSON holds.

    Raises:
        ConfigurationError: in all of them, if it does.
    """
    if jax.process_count() == 1:
        return decide()
    said = {}
    if is_first():
        try:
            said = {"value": decide()}
        except ConfigurationError as error:
            said = {"error": str(error)}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    with peer_failures_named():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
        text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    said = json.loads(bytes(text).decode())
    if "error" in said:
        raise ConfigurationError(said["error"])
    return said["value"]


def to_devices(tree: Any, sharding: Sharding) -> Any:
    """Returns arrays on the host, the same ones in every process, as global arrays."""

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Returns whole arrays on the host, in every process, also those that others hold parts of."""

    def whole(x):
        shared = isinstance(x, jax.Array) and not x.is_fully_addressable
        return multihost_utils.process_allgather(x, tiled=True) if shared else x

    with peer_failures_named():
        return jax.device_get(jax.tree.map(whole, tree))


def sum_over_processes(sums: np.ndarray) -> np.ndarray:
    """Returns the sum, modulo 2^64, of the integers `[n]` that each process calls this with."""
    halves = sums.astype(np.uint64).view(np.uint32)  # jax would cut 64 bits down to 32
    with peer_failures_named():
        of_all = multihost_utils.process_allgather(halves)
    return of_all.view(np.uint64).sum(axis=0, dtype=np.uint64)


@contextmanager
def peer_failures_named() -> Iterator[None]:
    """Turns what is raised where another process is gone into a `PeerFailure`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if jax.process_count() == 1 or isinstance(error, PeerFailure):
            raise
        raise PeerFailure(
            f"Another process of this run ended or cannot be reached "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def end_where_the_first_is_lost(last_words: Callable[[], str]) -> None:
    """Lets this process end with a message and exit code 1 where JAX would abort it.

    That is where the first process is lost: JAX aborts the others from a thread of its own, and
    tells nobody before (its callback for that is broken in jaxlib 0.10).
    """

    def handle(_):
        os.write(2, last_words().encode())
        os._exit(1)

    global _handler  # the process may call it for as long as it lives
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)
