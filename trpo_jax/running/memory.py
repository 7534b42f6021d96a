"""Measures the free memory, and raises an error early if a program does not fit into it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from trpo_jax.devices import Placement
from trpo_jax.errors import ConfigurationError, MemoryFailure
from trpo_jax.processes import decided_by_first

CGROUP_FILES = ("memory.max", "memory.current")
SIZES = ("--num-seeds", "--num-envs", "--num-steps", "--hidden-sizes")  # flags that decide memory


def free_bytes(device: jax.Device) -> int:
    """Returns the free memory of a device in bytes."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return min(psutil.virtual_memory().available, *_container_limit(Path("/sys/fs/cgroup")))


def _container_limit(folder: Path) -> Iterator[int]:
    """Yields the free memory of the container that this process runs in, if it has a limit."""
    try:
        limit, used = ((folder / name).read_text() for name in CGROUP_FILES)
        yield int(limit) - int(used)
    except (OSError, ValueError):
        yield np.iinfo(np.int64).max


def compiled_bytes(executable: Any) -> int:
    """Returns the memory that a `jax.stages.Compiled` and its outputs need on each device."""
    memory = executable.memory_analysis()
    inputs = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return inputs + memory.output_size_in_bytes - memory.alias_size_in_bytes


def devices_here(placement: Placement | None) -> list[jax.Device]:
    """Returns the devices of a placement that belong to this process."""
    devices = jax.devices()[:1] if placement is None else placement.devices
    return [device for device in devices if device.process_index == jax.process_index()]


def require_room(
    what: str,
    needed: int,
    device: jax.Device,
    flags: Sequence[str],
    at_least: bool = True,
) -> None:
    """Raises a ConfigurationError if a device has less free memory than needed.

    Args:
        what: the thing that needs the memory, as the subject of a sentence.
        needed: the memory it needs, in bytes.
        device: the device.
        flags: the flags that lower the need.
        at_least: whether the thing may need more.
    """
    free = decided_by_first(lambda: free_bytes(device))
    if needed > free:
        raise ConfigurationError(
            f"{what} needs {'at least ' * at_least}{needed / 1e9:,.1f} GB of memory, but only "
            f"{free / 1e9:,.1f} GB are free on this {device.platform.upper()}. Lower "
            f"{' or '.join(flags)}."
        )


@contextmanager
def shortage_named() -> Iterator[None]:
    """Turns an error about missing memory into a `MemoryFailure`."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
            raise
        raise MemoryFailure(
            f"There is not enough memory ({text.splitlines()[0][:200] if text else 'none is left'})"
            f". Lower {', '.join(SIZES)} or --evaluation-episodes."
        ) from error
