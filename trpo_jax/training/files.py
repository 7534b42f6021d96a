"""The files of a run: one folder, nothing overwritten, readable with any tool."""

import json
from pathlib import Path
from typing import Any

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
