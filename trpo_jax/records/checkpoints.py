"""Checkpoints of a run. A run can go on from its last checkpoint after its process died.

A checkpoint holds the whole state as arrays by name, and a description of the run. Orbax writes
each checkpoint whole or not at all. Importing Orbax takes half a second, so the functions that need
it import it. If a run has several processes, each process writes the parts of the arrays that it
holds. Each process reads whole arrays, so that a run can go on with other devices. A digest of the
files is written last. It shows whether the files have changed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trpo_jax.algorithms.base import State
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.processes import is_first, to_devices
from trpo_jax.records.files import write_whole
from trpo_jax.records.limits import preference

FORMAT = 4
METADATA = "_CHECKPOINT_METADATA"  # the file that Orbax writes first
DIGEST = "digest"  # a file in the folder of each checkpoint
NOT_EVALUATED = float("-inf")  # worse than any evaluation
DAMAGED = "damaged-"  # prefix of the name of a damaged checkpoint that was renamed


class Saved(NamedTuple):
    """A checkpoint, read back.

    Attributes:
        num_updates: number of updates done.
        seconds: training time of these updates, without compilation.
        description: the description of the run.
        arrays: the arrays of the state, by name.
    """

    num_updates: int
    seconds: float
    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints in a folder: the latest few, and the best one by `preference`."""

    def __init__(
        self, folder: Path, keep: int = 3, together: bool = False, read_only: bool = False
    ):
        """Opens the folder, or creates it.

        Args:
            folder: the folder.
            keep: how many of the latest checkpoints the folder keeps.
            together: whether all processes of a run use the folder together. Each process then
                waits for the others.
            read_only: whether the folder stays as it is, because its run may be writing to it.

        Raises:
            ConfigurationError: if the folder is read only, and a damaged checkpoint makes it
                impossible to list the checkpoints.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

        score = lambda metrics: preference(  # files of version 0.6 lack the excess
            metrics["evaluation_return"], metrics.get("evaluation_excess", 0.0)
        )
        best = policies.BestN(get_metric_fn=score, n=1)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,  # so that errors and time belong to `save`
            cleanup_tmp_directories=is_first() and not read_only,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions() if together else _alone(),
            best_fn=score,  # without it Orbax stores no metrics
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._args = ocp.args
        self._folder = folder.absolute()
        self._set_aside: list[StorageFailure] = []
        if is_first() and not read_only:
            self._folder.mkdir(exist_ok=True)
            finish_removals(self._folder)
            for number in unlisted(self._folder):
                self._set_aside.append(self._put_aside(number, "it has no score"))
        elif found := unlisted(self._folder):
            raise ConfigurationError(
                f"The checkpoint {self._folder / str(found[0])} is damaged. Move it out of the "
                "folder to use the other checkpoints."
            )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(
        self,
        num_updates: int,
        state: State,
        seconds: float,
        description: Mapping[str, Any],
        evaluation_return: float = NOT_EVALUATED,
        evaluation_excess: float = 0.0,
    ) -> None:
        """Writes a checkpoint, then removes old checkpoints that need not be kept.

        If there is a checkpoint of this update already, it stays and nothing is written.

        Args:
            num_updates: number of updates done.
            state: the whole state.
            seconds: training time so far.
            description: the description of the run, ready for JSON.
            evaluation_return: return of the evaluation after this update, if there was one. It
                decides which checkpoint is the best.
            evaluation_excess: how far the costs are above their limits in this evaluation. A
                checkpoint above its limits is the best only if all checkpoints are.

        Raises:
            StorageFailure: if the checkpoint cannot be written, for instance on a full disk.
                Earlier checkpoints stay.
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
        }
        items = self._args.Composite(
            state=self._args.StandardSave(arrays), about=self._args.JsonSave(about)
        )
        metrics = {"evaluation_return": evaluation_return, "evaluation_excess": evaluation_excess}
        try:
            self._manager.save(num_updates, args=items, metrics=metrics)
            if is_first():
                written = self._folder / str(num_updates)
                write_whole(written / DIGEST, digest(written))
        except Exception as error:  # each library on the way has its own errors
            others = ", or another process of this run ended" if jax.process_count() > 1 else ""
            raise StorageFailure(
                f"The checkpoint of update {num_updates} cannot be written to "
                f"{self._folder}{others}: {_first_line(error)}"
            ) from error

    def numbers(self) -> list[int]:
        """Returns the number of updates of each checkpoint, in increasing order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Returns the number of updates of the best checkpoint; None if none was evaluated."""
        best = self._manager.best_step()
        if best is None:
            return None
        evaluated = self._manager.metrics(best)["evaluation_return"] > NOT_EVALUATED
        return best if evaluated else None

    def read(self, num_updates: int) -> Saved:
        """Returns the checkpoint after a number of updates.

        Raises:
            StorageFailure: if the checkpoint is damaged.
            ConfigurationError: if another version of the library wrote the checkpoint.
        """
        try:
            about = self._restore(num_updates, about=self._args.JsonRestore()).about
            if about["format"] != FORMAT:
                raise ConfigurationError(
                    f"The checkpoint of update {num_updates} in {self._folder} has format "
                    f"{about['format']}, and this version reads {FORMAT}. Continue with the "
                    "version that wrote it."
                )
            written = self._folder / str(num_updates)
            if (written / DIGEST).read_text() != digest(written):
                raise StorageFailure("its files have changed since they were written.")
            if about["num_updates"] != num_updates:
                raise StorageFailure(f"it holds update {about['num_updates']}.")
            whole = {name: np.empty(*x) for name, x in about["arrays"].items()}
            arrays = self._restore(num_updates, state=self._args.StandardRestore(whole)).state
        except ConfigurationError:
            raise
        except Exception as error:  # damaged files raise errors of many kinds
            raise StorageFailure(_first_line(error)) from error
        return Saved(num_updates, about["seconds"], about["description"], arrays)

    def _restore(self, num_updates, **items):
        return self._manager.restore(num_updates, args=self._args.Composite(**items))

    def newest_first(self) -> Iterator[Saved | StorageFailure]:
        """Yields the checkpoints, the latest first.

        A damaged checkpoint is renamed, and the failure is yielded in its place.
        """
        yield from self._set_aside
        for number in reversed(self.numbers()):
            try:
                yield self.read(number)
            except StorageFailure as failure:
                yield self._put_aside(number, str(failure))
                self._manager.reload()

    def _put_aside(self, number: int, reason: str) -> StorageFailure:
        path = self._folder / str(number)
        aside = path.with_name(f"{DAMAGED}{number}")
        if aside.exists():  # left by an earlier resume
            shutil.rmtree(aside)
        path.rename(aside)
        return StorageFailure(f"The checkpoint {path} is damaged: {reason}")

    def close(self) -> None:
        """Closes the Orbax manager."""
        self._manager.close()


def finish_removals(folder: Path) -> None:
    """Removes the leftovers of checkpoints that a process was removing when it died.

    Such a checkpoint lacks the file `METADATA` and is older than a whole checkpoint.
    """
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    whole = [number for number in numbers if (folder / str(number) / METADATA).is_file()]
    for number in set(numbers) - set(whole):
        if number < max(whole, default=0):
            shutil.rmtree(folder / str(number))


def unlisted(folder: Path) -> list[int]:
    """Returns the numbers of the checkpoints whose score or metadata cannot be read.

    One such checkpoint makes Orbax fail to list all others.
    """
    found = []
    for path in folder.glob("[0-9]*/" + METADATA):
        try:
            score = json.loads((path.parent / "metrics" / "metrics").read_text())
            readable = isinstance(score["evaluation_return"], float)
            readable &= isinstance(score.get("evaluation_excess", 0.0), float)
            readable &= isinstance(json.loads(path.read_text()), dict)
        except (OSError, ValueError, TypeError, KeyError):
            readable = False
        if not readable and path.parent.name.isdigit():
            found.append(int(path.parent.name))
    return found


def _alone() -> Any:
    """Returns options with which Orbax does not wait for other processes."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def to_arrays(state: State) -> dict[str, Array | np.ndarray]:
    """Returns the arrays of a state by name. Random keys become arrays of integers.

    An array is moved to the host, unless other processes hold parts of it. Arrays without elements
    are left out.
    """
    arrays = {name: _plain(x) for name, x in named_leaves(state).items()}
    return {name: _on_host(x) for name, x in arrays.items() if x.size}


def _on_host(x):
    shared = isinstance(x, jax.Array) and not x.is_fully_addressable
    return x if shared else np.asarray(x)


def to_state(
    template: Any,
    arrays: Mapping[str, np.ndarray],
    what: str = "The checkpoint is of another state",
) -> Any:
    """Returns a state that has the structure and the devices of a template, with stored arrays.

    Args:
        template: a state; or the shapes of a state, to put it on the default device.
        arrays: the arrays of the state by name, from `Checkpoints.read`.
        what: the start of the error message.

    Raises:
        ConfigurationError: if names, shapes or types of the arrays differ from the template. The
            message lists the differences.
    """
    leaves = named_leaves(template)
    shapes = {name: jax.eval_shape(_plain, x) for name, x in leaves.items()}
    expected = {name: (x.shape, str(x.dtype)) for name, x in shapes.items() if x.size}
    found = {name: (x.shape, str(x.dtype)) for name, x in arrays.items()}
    if expected != found:
        names = [x for x in sorted(expected | found) if expected.get(x) != found.get(x)]
        listed = ", ".join(f"{x}: {found.get(x)}, not {expected.get(x)}" for x in names[:5])
        raise ConfigurationError(f"{what} ({listed}).")

    def restored(name, leaf):
        missing = np.zeros(shapes[name].shape, shapes[name].dtype)
        value = arrays.get(name, missing)
        placed = isinstance(leaf, jax.Array)
        value = to_devices(value, _plain(leaf).sharding) if placed else jnp.asarray(value)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            impl = jax.random.key_impl(jnp.empty((), leaf.dtype))  # a shape has no `key_impl`
            return jax.random.wrap_key_data(value, impl=impl)
        return value

    _, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, [restored(*item) for item in leaves.items()])


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their path, with parts joined by `/`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def digest(folder: Path) -> str:
    """Returns the SHA-256 of the names and contents of all files in a folder except `DIGEST`."""
    result = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / DIGEST)
    for path in sorted(files):
        result.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            result.update(hashlib.file_digest(file, "sha256").digest())
    return result.hexdigest()


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
