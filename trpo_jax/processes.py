"""One run in several processes (`jax.distributed`), each with devices of its own.

All of them run the same lines and hold the same numbers on the host; arrays on devices are global,
each process holding its part. The first one, which files and terminal belong to, decides whatever
depends on clocks, folders or memory, and tells the others.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from trpo_jax.errors import ConfigurationError, PeerFailure, StorageFailure

HEARTBEAT_SECONDS = 30  # a process that was silent for so long counts as dead
# What the libraries that connect processes say of a lost one.
LOST = re.compile("gloo|nccl|connection|socket|coordination|UNAVAILABLE|DEADLINE_EXCEEDED", re.I)


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
    """
    # It would take SIGTERM, which is to end a process.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )


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
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    with peer_failures_named():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
        text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    said = json.loads(bytes(text).decode())
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
