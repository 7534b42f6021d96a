"""The files of a run: one folder, nothing overwritten, readable with any tool."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo_jax.errors import ConfigurationError
from trpo_jax.training.loop import Chunk

LEADING_COLUMNS = (
    "seed",
    "update",
    "env_steps",
    "seconds",
    "episodic_return",
    "episode_length",
    "num_episodes",
)


def create_run_folder(path: str | Path) -> Path:
    """Returns the folder of a new run, created if need be.

    Raises:
        ConfigurationError: if it holds anything already, or cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"The output folder {folder} cannot be used: {error}.") from error
    if occupied:
        raise ConfigurationError(
            f"The output folder {folder} is not empty, and nothing in it will be overwritten. "
            "Choose another one with --out, or remove it first."
        )
    return folder


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a dictionary as indented JSON, whole or not at all.

    Numbers that are not finite are an error.
    """
    write_whole(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one stroke, so that it is never there in part."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


class MetricsFile:
    """`metrics.csv`: one row for each seed and update, on disk after every chunk.

    `seconds` is the training time at the update, spread evenly over its chunk; a return is empty
    where no episode ended.
    """

    def __init__(self, path: Path, seeds: Sequence[int], steps_per_update: int):
        """Opens a new file, to be written for these seeds."""
        self._file = path.open("x", newline="")
        self._writer = csv.writer(self._file)
        self._seeds = seeds
        self._steps_per_update = steps_per_update
        self._seconds = 0.0
        self._columns: list[str] = []

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: Chunk) -> None:
        """Adds the rows of a chunk."""
        if not self._columns:
            own = [name for name in sorted(chunk.metrics) if name not in LEADING_COLUMNS]
            self._columns = [*LEADING_COLUMNS, *own]
            self._writer.writerow(self._columns)
        num_updates = next(iter(chunk.metrics.values())).shape[1]
        seconds = np.linspace(self._seconds, chunk.seconds, num_updates + 1)[1:]
        for j in range(num_updates):
            update = chunk.first_update + j
            for i, seed in enumerate(self._seeds):
                row = {
                    "seed": seed,
                    "update": update,
                    "env_steps": update * self._steps_per_update,
                    "seconds": seconds[j],
                    **{name: values[i, j] for name, values in chunk.metrics.items()},
                }
                self._writer.writerow([_cell(row[name]) for name in self._columns])
        self._seconds = chunk.seconds
        self._file.flush()


def _cell(value: int | float | np.floating) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if np.isnan(value) else f"{value:.7g}"
