"""Checkpoints of a run: its whole state, found again after the process died at any moment.

A state is stored as its arrays by name, and beside them what they belong to and a digest that tells
whether they came back as they were. Orbax writes each checkpoint whole or not at all, and loads
(half a second) where the first one is needed. Of several processes each writes the parts of arrays
that it holds, and reads all of them, so that a run can go on on other devices.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt64

from trpo_jax.algorithms.base import State
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.processes import (
    decided_by_first,
    is_first,
    sum_over_processes,
    to_devices,
)
from trpo_jax.running.loop import Chunk

FORMAT = 2
METADATA = "_CHECKPOINT_METADATA"  # of Orbax
NOT_EVALUATED = float("-inf")  # worse than any evaluation
SHARE_OF_TIME = 0.03  # that checkpoints may take where nobody says how many to write
FIRST_SECONDS = 0.7  # what the first is expected to take: Orbax loads for it
DAMAGED = "damaged-"  # leads the name of a checkpoint that was moved out of the way


class Saved(NamedTuple):
    """A checkpoint, read back.

    Attributes:
        num_updates: updates done.
        seconds: training time of these, compilation excluded.
        description: what the run was.
        arrays: of the state, by name.
    """

    num_updates: int
    seconds: float
    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints in a folder: the latest few, and the one with the best evaluation."""

    def __init__(self, folder: Path, keep: int = 3, alone: bool = True):
        """Opens the folder, or creates it.

        Args:
            folder: the folder.
            keep: how many of the latest ones it is to hold.
            alone: whether this process reads or writes by itself, waiting for no other one.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

        score = lambda metrics: metrics["evaluation_return"]
        best = policies.BestN(get_metric_fn=score, n=1)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,  # what fails, fails here; and the cost is known
            cleanup_tmp_directories=is_first(),
            create=False,
            multiprocessing_options=_by_itself() if alone else ocp.options.MultiprocessingOptions(),
            best_fn=score,  # or metrics are not stored
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._args, self._score = ocp.args, score
        self._folder = folder.absolute()
        self._folder.mkdir(exist_ok=True)
        if is_first():
            finish_removals(self._folder)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(
        self,
        num_updates: int,
        state: State,
        seconds: float,
        description: Mapping[str, Any],
        evaluation_return: float = NOT_EVALUATED,
    ) -> None:
        """Writes a checkpoint, and removes those that are not to be kept any longer.

        Args:
            num_updates: updates done; one that is there already for this number stays.
            state: the whole state.
            seconds: training time so far.
            description: what the run is; as JSON can hold it.
            evaluation_return: by which the best one is known, where there is one.

        Raises:
            StorageFailure: if it cannot be written, on a full disk for instance; those before stay.
        """
        if num_updates in self._manager.all_steps():
            return
        arrays = to_arrays(state)
        about = {
            "format": FORMAT,
            "num_updates": num_updates,
            "seconds": seconds,
            "description": dict(description),
            "arrays": {name: [x.shape, str(x.dtype)] for name, x in arrays.items()},
            "digest": digest(arrays),
        }
        items = self._args.Composite(
            state=self._args.StandardSave(arrays), about=self._args.JsonSave(about)
        )
        metrics = {"evaluation_return": evaluation_return}
        try:
            self._manager.save(num_updates, args=items, metrics=metrics)
        except Exception as error:  # of the file system, through several libraries
            others = ", or another process of this run ended" if jax.process_count() > 1 else ""
            raise StorageFailure(
                f"The checkpoint of update {num_updates} cannot be written into "
                f"{self._folder}{others}: {_first_line(error)}"
            ) from error

    def numbers(self) -> list[int]:
        """Returns the numbers of updates that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Returns which of them had the best evaluation, if there was one."""
        best = self._manager.best_step()
        evaluated = best is not None and self._score(self._manager.metrics(best)) > NOT_EVALUATED
        return best if evaluated else None

    def read(self, num_updates: int) -> Saved:
        """Returns a checkpoint.

        Raises:
            StorageFailure: if it is damaged.
            ConfigurationError: if another version wrote it.
        """
        try:
            about = self._restore(num_updates, about=self._args.JsonRestore()).about
            if about["format"] != FORMAT:
                raise ConfigurationError(
                    f"The checkpoint of update {num_updates} in {self._folder} has format "
                    f"{about['format']}, and this version reads {FORMAT}. Go on with the version "
                    "that wrote it."
                )
            whole = {name: np.empty(*x) for name, x in about["arrays"].items()}
            arrays = self._restore(num_updates, state=self._args.StandardRestore(whole)).state
            if about["digest"] != digest(arrays):
                raise StorageFailure("its numbers are not those that were written.")
        except ConfigurationError:
            raise
        except Exception as error:  # of whatever kind damaged files give
            raise StorageFailure(_first_line(error)) from error
        return Saved(num_updates, about["seconds"], about["description"], arrays)

    def _restore(self, num_updates, **items):
        return self._manager.restore(num_updates, args=self._args.Composite(**items))

    def newest_first(self) -> Iterator[Saved | StorageFailure]:
        """Yields the checkpoints, or why one cannot be read; such a one is moved aside."""
        for number in reversed(self.numbers()):
            try:
                yield self.read(number)
            except StorageFailure as failure:
                path = self._folder / str(number)
                path.rename(path.with_name(f"{DAMAGED}{number}"))
                self._manager.reload()
                yield StorageFailure(f"The checkpoint {path} is damaged: {failure}")

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


def finish_removals(folder: Path) -> None:
    """Removes what is left of checkpoints whose removal died with the process.

    They are older than one that is whole, and lack the file that Orbax writes first.
    """
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    whole = [number for number in numbers if (folder / str(number) / METADATA).is_file()]
    for number in set(numbers) - set(whole):
        if number < max(whole, default=0):
            shutil.rmtree(folder / str(number))


class RunCheckpoints:
    """The checkpoints that a run writes, and what they cost.

    Attributes:
        latest: updates done at the latest one; 0 without one.
        cost: seconds spent on them.
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        every: int | None,
        keep: int,
        latest: int,
    ):
        """Opens nothing yet: the first checkpoint does.

        Args:
            folder: where they go.
            description: what the run is.
            every: updates from one to the next, 0 for none; if None as often as costs no more than
                a share `SHARE_OF_TIME` of the time.
            keep: how many of the latest to keep.
            latest: updates done at the one that the run goes on from, or 0.
        """
        self.latest, self.cost = latest, 0.0
        self._description, self._every = description, every
        self._open = lambda: Checkpoints(folder, keep, alone=False)
        self._opened: Checkpoints | None = None
        self._last_seconds: float | None = None
        self._expected = FIRST_SECONDS

    def offer(self, chunk: Chunk, evaluation_return: float = NOT_EVALUATED) -> None:
        """Writes a checkpoint after a chunk if one is due, as it is after every evaluation.

        Raises:
            StorageFailure: if it cannot be written; those before stay.
        """
        if self._last_seconds is None:
            self._last_seconds = chunk.seconds
        if self._every is None:
            passed = chunk.seconds - self._last_seconds
            due = decided_by_first(lambda: passed * SHARE_OF_TIME >= self._expected)
        else:
            due = self._every > 0 and chunk.last_update % self._every == 0
        evaluated = evaluation_return > NOT_EVALUATED and self._every != 0
        if not (due or evaluated):
            return
        started = time.perf_counter()
        self._opened = self._opened or self._open()
        self._opened.save(
            chunk.last_update, chunk.state, chunk.seconds, self._description, evaluation_return
        )
        self._expected = time.perf_counter() - started
        self._last_seconds = chunk.seconds
        self.latest = chunk.last_update
        self.cost += self._expected

    def close(self) -> None:
        """Releases what Orbax holds."""
        if self._opened is not None:
            self._opened.close()


def _by_itself() -> Any:
    """Returns the options by which Orbax waits for no other process."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def to_arrays(state: State) -> dict[str, Array | np.ndarray]:
    """Returns the arrays of a state by name; typed keys as their data.

    They are on the host, but for those that other processes hold parts of. Arrays without an
    element, which hold nothing, are left out.
    """
    arrays = {name: _plain(x) for name, x in named_leaves(state).items()}
    return {name: _on_host(x) for name, x in arrays.items() if x.size}


def _on_host(x):
    shared = isinstance(x, jax.Array) and not x.is_fully_addressable
    return x if shared else np.asarray(x)


def to_state(template: State, arrays: Mapping[str, np.ndarray]) -> State:
    """Returns a state of the same structure as another, on the same devices, with stored arrays.

    Args:
        template: a state, or its shapes, for the default device.
        arrays: from `Checkpoints.read`.

    Raises:
        ConfigurationError: listing what differs, if the arrays are those of another structure.
    """
    leaves = named_leaves(template)
    shapes = {name: jax.eval_shape(_plain, x) for name, x in leaves.items()}
    expected = {name: (x.shape, str(x.dtype)) for name, x in shapes.items() if x.size}
    found = {name: (x.shape, str(x.dtype)) for name, x in arrays.items()}
    if expected != found:
        names = [x for x in sorted(expected | found) if expected.get(x) != found.get(x)]
        listed = ", ".join(f"{x}: {found.get(x)}, not {expected.get(x)}" for x in names[:5])
        raise ConfigurationError(f"The checkpoint is of another state ({listed}).")

    def restored(name, leaf):
        missing = np.zeros(shapes[name].shape, shapes[name].dtype)
        value = arrays.get(name, missing)
        placed = isinstance(leaf, jax.Array)
        value = to_devices(value, _plain(leaf).sharding) if placed else jnp.asarray(value)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            impl = jax.random.key_impl(jnp.empty((), leaf.dtype))  # of a shape it cannot be asked
            return jax.random.wrap_key_data(value, impl=impl)
        return value

    _, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, [restored(*item) for item in leaves.items()])


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their path in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def digest(arrays: Mapping[str, Array | np.ndarray]) -> str:
    """Returns the SHA-256 of arrays' names, shapes, types and checksums, in hexadecimal.

    Where processes hold parts of arrays, all of them have to call it together.
    """
    sums = np.array([checksum(arrays[name]) for name in sorted(arrays)], np.uint64)
    if any(isinstance(x, jax.Array) for x in arrays.values()):
        sums = sum_over_processes(sums)
    result = hashlib.sha256()
    for name, total in zip(sorted(arrays), sums.tolist(), strict=True):
        result.update(f"{name} {arrays[name].shape} {arrays[name].dtype} {total}".encode())
    return result.hexdigest()


def checksum(x: Array | np.ndarray) -> int:
    """Returns the sum, modulo 2^64, of hashes of an array's elements with their places.

    It is over what this process holds, so that those of all processes add up to that of the whole.
    """
    if not isinstance(x, jax.Array):
        return part_checksum(x.shape, (), x)
    held = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    return sum(part_checksum(x.shape, y.index, np.asarray(y.data)) for y in held) % 2**64


def part_checksum(shape: tuple[int, ...], index: Any, part: np.ndarray) -> int:
    """Returns the checksum of `x[index]` within an array x of some shape."""
    places = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)[index]
    hashes = _mixed(_mixed(places.reshape(-1)) ^ _as_integers(part))
    return int(hashes.sum(dtype=np.uint64))


def _as_integers(x: np.ndarray) -> UInt64[np.ndarray, " n"]:
    return np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint64)


def _mixed(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Returns integers whose bits all depend on all bits (splitmix64; Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
