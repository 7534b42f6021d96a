"""The files of a run: one folder, nothing overwritten, readable with any tool."""

import csv
import io
import json
import os
import platform
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure

LOCK = ".lock"  # in a folder that a process writes to; it names the process


def create_run_folder(path: str | Path) -> Path:
    """Returns the folder of a new run, created if need be.

    Raises:
        ConfigurationError: if it holds anything but a lock already, or cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(inside.name != LOCK for inside in folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"The output folder {folder} cannot be used: {error}.") from error
    if occupied:
        raise ConfigurationError(
            f"The output folder {folder} is not empty, and nothing in it will be overwritten. "
            "Choose another one with --out, or remove it first."
        )
    return folder


def make_parents(path: Path) -> None:
    """Creates the folder that a file is to be in, if need be.

    Raises:
        ConfigurationError: if it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {path.parent} cannot be made: {error}. Choose another one with --out."
        ) from error


@contextmanager
def causes_kept(folder: Path | None) -> Iterator[None]:
    """Writes the stack trace of an environment's own error into a folder, as `error.txt`."""
    try:
        yield
    except EnvironmentFailure as error:
        if folder is not None and error.__cause__ is not None:
            lines = traceback.format_exception(error.__cause__)
            with suppress(StorageFailure):  # the error itself says more
                write_whole(folder / "error.txt", "".join(lines))
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder, which is created if need be.

    The operating system releases the lock of a process that dies. A disk that knows no locks is
    used without one, with a warning.

    Raises:
        ConfigurationError: if another process writes to the folder, or it cannot be used.
    """
    from filelock import FileLock, Timeout  # late: it takes a twentieth of a second

    path, created, holder = folder / LOCK, not folder.exists(), ""
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        with suppress(OSError):
            holder = f" ({path.read_text().strip()})"
        raise ConfigurationError(
            f"Another process{holder} writes to {folder} at this moment. Wait for its end or "
            "stop it, or choose another folder."
        ) from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(f"The output folder {folder} cannot be used: {error}.") from error
    except (OSError, NotImplementedError) as error:  # of network disks
        print(
            f"warning: {folder} cannot be locked ({error}). See to it that no other process writes "
            "to it.",
            file=sys.stderr,
        )
    try:
        own = None
        with suppress(OSError):  # of a full disk: the lock holds without a name in it
            path.write_text(f"process {os.getpid()} on {platform.node()}\n")
            own = path.stat()
        yield
    finally:
        with suppress(OSError):  # where the folder is gone
            if own and os.path.samestat(own, path.stat()):  # it may be of another process by now
                path.unlink()
            if created:
                folder.rmdir()  # of a run that was refused; of others it is not empty
        lock.release()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a dictionary as indented JSON, whole or not at all.

    Numbers that are not finite are an error.
    """
    write_whole(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file in one stroke, so that it is never there in part.

    Raises:
        StorageFailure: if it cannot be written, on a full disk for instance.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with failures_of(path):
        try:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
            unfinished.replace(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise


@contextmanager
def failures_of(path: Path) -> Iterator[None]:
    """Turns what is raised where a file cannot be written into a `StorageFailure` that names it."""
    try:
        yield
    except StorageFailure:
        raise
    except OSError as error:
        raise StorageFailure(f"{path} cannot be written: {error.strerror or error}") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table in one stroke, its cells as `cell` writes them."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([cell(value) for value in row] for row in rows)])
    write_whole(path, text.getvalue())


def cell(value: Any) -> str:
    """Returns a value as a cell of a table, empty for None and NaN; tuples as 64x64."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.7g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
