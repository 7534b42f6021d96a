"""The folder of a run and its files. Nothing is overwritten, and any tool can read the files."""

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

LOCK = ".lock"  # this file names the process that writes to the folder


def create_run_folder(path: str | Path) -> Path:
    """Returns the folder of a run that begins. The folder is created if it is not there.

    Raises:
        ConfigurationError: if the folder holds files besides a lock, or cannot be created.
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
            "Choose another folder with --out, or remove this one first."
        )
    return folder


def make_parents(path: Path) -> None:
    """Creates the folder of a file if it is not there.

    Raises:
        ConfigurationError: if the folder cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {path.parent} cannot be created: {error}. Choose another one with --out."
        ) from error


@contextmanager
def causes_kept(folder: Path | None) -> Iterator[None]:
    """Writes the stack trace to `error.txt` in a folder if the code of an environment fails."""
    try:
        yield
    except EnvironmentFailure as error:
        if folder is not None and error.__cause__ is not None:
            lines = traceback.format_exception(error.__cause__)
            with suppress(StorageFailure):  # the error of the environment matters more
                write_whole(folder / "error.txt", "".join(lines))
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder. The folder is created if it is not there.

    The operating system releases the lock of a process that dies. If the disk does not support
    locks, a warning is printed and the folder is used without a lock.

    Raises:
        ConfigurationError: if another process writes to the folder, or if it cannot be used.
    """
    from filelock import FileLock, Timeout  # here, because importing it takes 0.05 s

    path, created, holder = folder / LOCK, not folder.exists(), ""
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        with suppress(OSError):
            holder = f" ({path.read_text().strip()})"
        raise ConfigurationError(
            f"Another process{holder} writes to {folder} at this moment. Wait for its end, "
            "stop it, or choose another folder."
        ) from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(f"The output folder {folder} cannot be used: {error}.") from error
    except (OSError, NotImplementedError) as error:  # some network disks have no locks
        print(
            f"warning: {folder} cannot be locked ({error}). Make sure that no other process "
            "writes to it.",
            file=sys.stderr,
        )
    try:
        own = None
        with suppress(OSError):  # on a full disk the lock still holds, without a name in it
            path.write_text(f"process {os.getpid()} on {platform.node()}\n")
            own = path.stat()
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            if own and os.path.samestat(own, path.stat()):  # not the file of another process
                path.unlink()
            if created:
                folder.rmdir()  # fails if the run wrote files; then the folder stays
        lock.release()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a dictionary as indented JSON. The file is never there in part.

    Raises:
        ValueError: if a number is not finite.
        StorageFailure: if the file cannot be written.
    """
    write_whole(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that it is never there in part.

    Raises:
        StorageFailure: if the file cannot be written, for instance on a full disk.
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
    """Turns any OSError inside its block into a `StorageFailure` that names the file."""
    try:
        yield
    except StorageFailure:
        raise
    except OSError as error:
        raise StorageFailure(f"{path} cannot be written: {error.strerror or error}") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table as a CSV file that is never there in part. `cell` formats the cells."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([cell(value) for value in row] for row in rows)])
    write_whole(path, text.getvalue())


def cell(value: Any) -> str:
    """Returns a value as the text of a table cell: empty for None and NaN, 64x64 for a tuple."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.7g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
