"""The folders of runs, read back."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.errors import ConfigurationError

DESCRIPTION, METRICS = "config.json", "metrics.csv"  # what makes a folder a run
EVALUATIONS, SUMMARY = "evaluations.csv", "summary.json"
POLICY, CHECKPOINTS = "policy.msgpack", "checkpoints"
# Of a description: what may differ when a run goes on.
FREE = ("command", "device", "placement", "started", "env_timeout", "origin")


class StoredRun(NamedTuple):
    """A run as its folder holds it, finished or not.

    Attributes:
        folder: the folder.
        description: what `config.json` says: environment, algorithm, seeds, config, versions.
        metrics: columns of `metrics.csv`, each `[num_seeds, U]`, NaN where a cell is empty.
    """

    folder: Path
    description: dict[str, Any]
    metrics: dict[str, np.ndarray]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of all runs in some folders, at any depth, each once and sorted.

    Raises:
        ConfigurationError: if one of the folders is not there, or holds no run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"There is no folder {folder}.")
        inside = sorted(path.parent for path in folder.rglob(METRICS))
        inside = [path for path in inside if (path / DESCRIPTION).is_file()]
        if not inside:
            raise ConfigurationError(
                f"{folder} holds no run: a run's folder has a {DESCRIPTION} and a {METRICS} in it."
            )
        found |= dict.fromkeys(inside)
    return list(found)


def read_run(folder: Path) -> StoredRun:
    """Returns the run in a folder.

    Raises:
        ConfigurationError: if the folder holds no run, or one without a whole update.
    """
    for name in (DESCRIPTION, METRICS):
        if not (folder / name).is_file():
            raise ConfigurationError(f"{folder} is no folder of a run: there is no {name} in it.")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        metrics = read_metrics(folder / METRICS)
    except ValueError as error:
        raise ConfigurationError(f"The run in {folder} cannot be read: {error}.") from error
    if not metrics:
        raise ConfigurationError(f"The run in {folder} has not finished an update yet.")
    return StoredRun(folder, description, metrics)


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the description of the run in a folder.

    Raises:
        ConfigurationError: if there is none.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"There is no run in {folder}: its {DESCRIPTION} cannot be read ({error})."
        ) from error
    if "seed" in description:  # runs of before listed no seeds
        first, count = description["seed"], description["num_seeds"]
        description.setdefault("seeds", list(range(first, first + count)))
    return description


def differing_settings(asked: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns in words which settings of two descriptions differ; nothing if none does."""
    asked, found = (_flat_settings(description) for description in (asked, found))
    names = [name for name in asked | found if asked.get(name) != found.get(name)]
    return ", ".join(f"{x} = {found.get(x)!r}, not {asked.get(x)!r}" for x in names)


def _flat_settings(description: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: x for name, x in description.items() if name not in FREE}
    return {**chosen.pop("config", {}), **chosen.pop("versions", {}), **chosen}


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Returns the columns of a `metrics.csv`, each `[num_seeds, U]`, NaN where a cell is empty.

    What a run that was killed wrote of an update in part, at the end of the file, is left out. An
    file without a row gives no columns.
    """
    columns, rows = read_rows(path)
    if not rows:
        return {}
    table = np.array([[float(cell or "nan") for cell in row] for row in rows])
    num_seeds = len(np.unique(table[:, columns.index("seed")]))
    whole = table[: len(table) // num_seeds * num_seeds]
    by_seed = whole.reshape(-1, num_seeds, len(columns)).transpose(2, 1, 0)
    return dict(zip(columns, by_seed, strict=True))


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns the names of the columns and the rows of a CSV file, without a last half of one."""
    text = path.read_text()
    columns, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    return columns, rows
