"""The files of a run: one folder, nothing overwritten, readable with any tool."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo_jax.errors import ConfigurationError


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


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table in one stroke, its cells as `cell` writes them."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([cell(value) for value in row] for row in rows)])
    write_whole(path, text.getvalue().encode())


def cell(value: Any) -> str:
    """Returns a value as a cell of a table, empty for None and NaN; tuples as 64x64."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.7g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
