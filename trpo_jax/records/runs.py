"""Reads the folders of runs: description, metrics and summary."""

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np

from trpo_jax.errors import ConfigurationError

DESCRIPTION, METRICS = "config.json", "metrics.csv"  # a folder with both files is a run
EVALUATIONS, SUMMARY = "evaluations.csv", "summary.json"
POLICY, CHECKPOINTS = "policy.msgpack", "checkpoints"
ONLY_COST = "cost"  # name of a cost whose columns have no name of their own
# The type of each value in the JSON files of runs and sweeps. A value may be missing.
KINDS = {
    **dict.fromkeys(("env", "algorithm", "placement", "started"), str),
    **dict.fromkeys(("seed", "num_seeds", "total_steps", "evaluation_episodes"), int),
    **dict.fromkeys(("config", "versions", "device", "evaluation"), dict),
    **{"command": list[str] | NoneType, "seeds": list[int], "env_processes": bool | NoneType},
    **dict.fromkeys(("max_kl", "entropy_coef", "uncertainty_exponent"), float | int),
    "decay_steps": int,
    **{"cost_names": list[str], "cost_limit": float | int | list[float | int]},
    **{"wall_seconds": float | int, "episodes_per_seed": int},
    **{"per_seed": list[float | int | NoneType]},
}


def cost_text(name: str) -> str:
    """Returns "cost" and the name of a cost, for a table or a figure."""
    return "cost" if name == ONLY_COST else f"cost {name}"


class NoUpdateError(ConfigurationError):
    """Raised for a run that has not finished its first update."""


class StoredRun(NamedTuple):
    """A run read from its folder. It may be unfinished.

    Attributes:
        folder: the folder.
        description: content of `config.json`: environment, algorithm, seeds, config, versions.
        metrics: columns of `metrics.csv`, each `[num_seeds, U]`; NaN for an empty cell.
    """

    folder: Path
    description: dict[str, Any]
    metrics: dict[str, np.ndarray]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of all runs inside some folders, at any depth.

    Each run is listed once. The runs inside one folder are sorted.

    Raises:
        ConfigurationError: if one of the folders does not exist or holds no run.
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


def read_run(
    folder: Path, described: Collection[str] = (), measured: Collection[str] = ()
) -> StoredRun:
    """Returns the run in a folder.

    Args:
        folder: the folder.
        described: entries that the description must have.
        measured: columns that the metrics must have.

    Raises:
        NoUpdateError: if the run has not finished its first update.
        ConfigurationError: if the folder holds no run, or if a file is damaged or incomplete.
    """
    for name in (DESCRIPTION, METRICS):
        if not (folder / name).is_file():
            raise ConfigurationError(f"{folder} is not the folder of a run: it has no {name}.")
    description = read_description(folder, *described)
    metrics = read_metrics(folder / METRICS, description.get("seeds"))
    if not metrics:
        raise NoUpdateError(f"The run in {folder} has not finished an update yet.")
    missing = [name for name in measured if name not in metrics]
    if missing:
        raise ConfigurationError(
            f"The run in {folder} cannot be used: its {METRICS} has no column {', '.join(missing)}."
        )
    require_kinds(folder / DESCRIPTION, description.get("config", {}), ())
    return StoredRun(folder, description, metrics)


def read_description(folder: Path, *needed: str) -> dict[str, Any]:
    """Returns the description of the run in a folder.

    Args:
        folder: the folder.
        *needed: entries that the description must have.

    Raises:
        ConfigurationError: if there is no description, or it is damaged or incomplete.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ConfigurationError(f"There is no run in {folder}: it has no {DESCRIPTION}.")
    description = read_object(path, needed)
    if "seeds" not in description and {"seed", "num_seeds"} <= description.keys():  # older files
        first, count = description["seed"], description["num_seeds"]
        description["seeds"] = list(range(first, first + count))
    return description


def finished_scores(summary: Mapping[str, Any]) -> np.ndarray:
    """Returns the scores in a summary, without the seeds that stopped early."""
    return np.array([x for x in summary["evaluation"]["per_seed"] if x is not None], float)


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns the summary of a finished run.

    Raises:
        ConfigurationError: if there is no summary, or it is damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} has no evaluation: a run writes it to {SUMMARY} at its end. Leave this run "
            "out, or compare by the return of training episodes."
        )
    summary = read_object(path, ("evaluation",))
    require_kinds(path, summary["evaluation"], ("per_seed",))
    return summary


def read_object(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Returns the content of a JSON file of a run or a sweep.

    Args:
        path: the file.
        needed: entries that it must have.

    Raises:
        ConfigurationError: if the file cannot be read, lacks an entry, or has a value of a wrong
            type.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}. Restore the file, for instance from a copy."
        ) from error
    require_kinds(path, found, needed)
    return found


def require_kinds(path: Path, found: Any, needed: Collection[str]) -> None:
    """Raises a ConfigurationError if a JSON file lacks an entry or has a value of a wrong type.

    Args:
        path: the file, for the message.
        found: the content of the file, or a part of it.
        needed: entries that `found` must have.
    """
    wrong = "" if isinstance(found, dict) else f"it has {found!r:.60} in place of names and values"
    if not wrong:
        lacking = [name for name in needed if name not in found]
        others = [name for name in KINDS.keys() & found if not _fits(found[name], KINDS[name])]
        wrong = f"it has no {', '.join(lacking)}" if lacking else ""
        for name in others:
            wrong = f"its {name} is {found[name]!r:.60}"
    if wrong:
        raise ConfigurationError(
            f"{path} is damaged: {wrong}. Restore the file, for instance from a copy."
        )


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, x) for x in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(x, *get_args(kind)) for x in value)
    return isinstance(value, kind)


def read_metrics(path: Path, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Returns the columns of a `metrics.csv`, each `[num_seeds, U]`; NaN for an empty cell.

    If the run was killed, the last update of the file may be incomplete. It is left out. A file
    without rows has no columns.

    Args:
        path: the file, or an `evaluations.csv`.
        seeds: the seeds of the run. Each update has one row for each seed, in this order. None to
            take the seeds from the first update.

    Raises:
        ConfigurationError: if the file is damaged. The message names the line.
    """
    columns, rows = read_rows(path)
    if not rows:
        return {}
    if len(set(columns)) < len(columns) or not {"seed", "update"} <= set(columns):
        raise damaged(path, 1, "a column is there twice, or the column seed or update is missing")
    table = as_numbers(path, columns, rows)
    seed, update = (table[:, columns.index(name)] for name in ("seed", "update"))
    evaluated = path.name == EVALUATIONS
    if seeds is None:
        seeds = seed[: max(1, np.argmin(update == update[0]) or len(update))]
    num_seeds, place = len(seeds), np.arange(len(table))
    every = update[num_seeds] - update[0] if evaluated and len(table) > num_seeds else 1
    expected = {
        "seed": np.resize(np.asarray(seeds, float), len(table)),
        "update": (0 if evaluated else 1) + place // num_seeds * every,
    }
    if "env_steps" in columns:
        steps = table[:, columns.index("env_steps")] / np.where(update > 0, update, np.nan)
        per_update = np.nanmedian(steps) if np.isfinite(steps).any() else 0
        expected["env_steps"] = expected["update"] * per_update
    for name, values in expected.items():
        wrong = np.flatnonzero(table[:, columns.index(name)] != values)
        if len(wrong):
            found = rows[wrong[0]][columns.index(name)]
            what = f"its {name} is {found!r}, and should be {values[wrong[0]]:.0f}"
            raise damaged(path, int(wrong[0]) + 2, what)
    whole = table[: len(table) // num_seeds * num_seeds]
    by_seed = whole.reshape(-1, num_seeds, len(columns)).transpose(2, 1, 0)
    return dict(zip(columns, by_seed, strict=True)) if len(whole) else {}


def cost_columns(
    names: Iterable[str], metric: str = "episodic_cost", order: Sequence[str] = ()
) -> dict[str, str]:
    """Returns the columns that hold a metric of costs, by the name of the cost.

    Args:
        names: the names of all columns.
        metric: the metric.
        order: the names of the costs in the order of the environment, if it is known.

    Examples:
        >>> cost_columns(["kl", "episodic_cost"]), cost_columns(["episodic_cost_toll"])
        ({'cost': 'episodic_cost'}, {'toll': 'episodic_cost_toll'})
    """
    found = [name for name in names if name == metric or name.startswith(f"{metric}_")]
    by_cost = {name.removeprefix(metric).removeprefix("_") or ONLY_COST: name for name in found}
    known = {name: by_cost[name] for name in order if name in by_cost}
    return known | by_cost


def as_numbers(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the cells of a CSV file as numbers, NaN for an empty cell.

    Raises:
        ConfigurationError: if a cell is not a number. The message names the line.
    """
    cell, line, place = "", 0, 0
    try:
        table = np.empty((len(rows), len(columns)))
        for line, row in enumerate(rows):
            for place, cell in enumerate(row):
                table[line, place] = float(cell or "nan")
    except ValueError as error:
        what = f"its {columns[place]} is {cell!r:.40}, which is not a number"
        raise damaged(path, line + 2, what) from error
    return table


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns the names of the columns and the rows of a CSV file.

    An incomplete last row is left out.

    Raises:
        ConfigurationError: if the file is damaged. The message names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    content = content[: content.rfind(b"\n") + 1]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise damaged(
            path, line, f"it has the byte {content[error.start]:#x}, which is not text"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    table: list[list[str]] = []
    try:
        for row in reader:
            table.append(row)
            if len(row) != len(table[0]) or reader.line_num != len(table):
                cells = f"it has {len(row)} cells, and should have {len(table[0])}"
                raise damaged(path, len(table), cells)
    except csv.Error as error:
        raise damaged(path, len(table) + 1, str(error)) from error
    columns, *rows = table or [[]]
    return columns, rows


def damaged(path: Path, line: int, what: str) -> ConfigurationError:
    """Returns the error for a damaged line of a CSV file."""
    return ConfigurationError(
        f"Line {line} of {path} is damaged: {what}. Restore the file, for instance from a copy. Or "
        "delete this line and all lines after it: a run or sweep that is resumed in this folder "
        "repeats their work."
    )
