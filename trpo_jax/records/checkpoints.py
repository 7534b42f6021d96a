"""Checkpoints of a run: its whole state, found again after the process died at any moment.

A state is stored as its arrays by name, with a description of the run beside them. Orbax writes
each checkpoint whole or not at all; importing it takes half a second, so it is imported late. Each
of several processes writes the parts of arrays that it holds, and reads whole arrays, so that a run
can go on with other devices. A digest of the files, written last, tells whether they changed since.
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
METADATA = "_CHECKPOINT_METADATA"  # of Orbax
DIGEST = "digest"  # a file in the folder of each checkpoint
NOT_EVALUATED = float("-inf")  # worse than any evaluation
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
    """The checkpoints in a folder: the latest few, and the one that `preference` puts first."""

    def __init__(
        self, folder: Path, keep: int = 3, together: bool = False, read_only: bool = False
    ):
        """Opens the folder, or creates it.

        Args:
            folder: the folder.
            keep: how many of the latest ones it is to hold.
            together: whether all processes of a run use it together, each waiting for the others.
            read_only: whether it stays as it is, since its run may be writing to it.

        Raises:
            ConfigurationError: if it is to stay as it is, and one of them is damaged so far that
                they cannot be listed.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

        score = lambda metrics: preference(  # version 0.6 wrote no excess
            metrics["evaluation_return"], metrics.get("evaluation_excess", 0.0)
        )
        best = policies.BestN(get_metric_fn=score, n=1)
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,  # what fails, fails here; and the cost is known
            cleanup_tmp_directories=is_first() and not read_only,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions() if together else _alone(),
            best_fn=score,  # or metrics are not stored
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._args = ocp.args
        self._folder = folder.absolute()
        self._set_aside: list[StorageFailure] = []
        if is_first() and not read_only:
            self._folder.mkdir(exist_ok=True)
            finish_removals(self._folder)
            for number in unlisted(self._folder):
                self._set_aside.append(self._put_aside(number, "it does not say how good it is"))
        elif found := unlisted(self._folder):
            raise ConfigurationError(
                f"The checkpoint {self._folder / str(found[0])} is damaged. Move it out of that "
                "folder to use the others."
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
        """Writes a checkpoint, and removes those that are not to be kept any longer.

        Args:
            num_updates: updates done; one that is there already for this number stays.
            state: the whole state.
            seconds: training time so far.
            description: what the run is; as JSON can hold it.
            evaluation_return: by which the best one is known, where there is one.
            evaluation_excess: how far costs are above their limits; such a one is the best only if
                all are above.

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
        if best is None:
            return None
        evaluated = self._manager.metrics(best)["evaluation_return"] > NOT_EVALUATED
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
            written = self._folder / str(num_updates)
            if (written / DIGEST).read_text() != digest(written):
                raise StorageFailure("its files are not as they were written.")
            if about["num_updates"] != num_updates:
                raise StorageFailure(f"it is that of update {about['num_updates']}.")
            whole = {name: np.empty(*x) for name, x in about["arrays"].items()}
            arrays = self._restore(num_updates, state=self._args.StandardRestore(whole)).state
        except ConfigurationError:
            raise
        except Exception as error:  # of whatever kind damaged files give
            raise StorageFailure(_first_line(error)) from error
        return Saved(num_updates, about["seconds"], about["description"], arrays)

    def _restore(self, num_updates, **items):
        return self._manager.restore(num_updates, args=self._args.Composite(**items))

    def newest_first(self) -> Iterator[Saved | StorageFailure]:
        """Yields the checkpoints, or why one cannot be read; such a one is moved aside."""
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
        if aside.exists():  # of an earlier time
            shutil.rmtree(aside)
        path.rename(aside)
        return StorageFailure(f"The checkpoint {path} is damaged: {reason}")

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


def unlisted(folder: Path) -> list[int]:
    """Returns the numbers of checkpoints that say no score, with which Orbax would list none."""
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


def to_state(
    template: Any,
    arrays: Mapping[str, np.ndarray],
    what: str = "The checkpoint is of another state",
) -> Any:
    """Returns a state of the same structure as another, on the same devices, with stored arrays.

    Args:
        template: a state, or its shapes, for the default device.
        arrays: from `Checkpoints.read`.
        what: begins the message where the arrays are of another structure.

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
        raise ConfigurationError(f"{what} ({listed}).")

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


def digest(folder: Path) -> str:
    """Returns the SHA-256 of all files in a folder and their names but `DIGEST`, in hexadecimal."""
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
