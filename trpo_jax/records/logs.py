"""Logs that the metrics of a run go to: CSV files, TensorBoard, Weights & Biases.

A row is a dictionary of one seed and one update. The entries `seed`, `update`, `env_steps` and
`seconds` give its place. All other entries are metrics. Each seed has its own series in each log;
nothing is averaged over seeds.
"""

import csv
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.errors import ConfigurationError, FileGone
from trpo_jax.installing import how_to_install
from trpo_jax.records.files import cell, failures_of, write_csv
from trpo_jax.records.runs import cost_columns, read_rows

Row = Mapping[str, int | float | np.floating]

PLACE_COLUMNS = ("seed", "update", "env_steps", "seconds")
LEADING_COLUMNS = (*PLACE_COLUMNS, "episodic_return", "episode_length", "num_episodes")
COSTS_BEHIND = {"episodic_return": "episodic_cost", "evaluation_return": "evaluation_cost"}
# The names of CleanRL (https://github.com/vwxyzjn/cleanrl), so that openrlbenchmark can read them.
# A metric without a name there is a diagnostic of the step. It keeps its name, under `losses/`.
TAGS = {
    "episodic_return": "charts/episodic_return",
    "episode_length": "charts/episodic_length",
    "num_episodes": "charts/num_episodes",
    "critic_loss": "losses/value_loss",
    "kl": "losses/approx_kl",
    "evaluation_return": "eval/episodic_return",
    "evaluation_seconds": "eval/seconds",
    "evaluation_episodes_cut": "eval/episodes_cut",
}


class Log(NamedTuple):
    """A place to write rows to.

    Attributes:
        write: `rows -> None`. The rows that were written survive the death of the process.
        close: `() -> None`, called once at the end.
    """

    write: Callable[[Sequence[Row]], None]
    close: Callable[[], None]


def csv_log(path: Path, num_done: int | None = None) -> Log:
    """Returns a log that writes to a CSV file. A cell is empty if a number is NaN.

    Writing to the log raises a StorageFailure if the file cannot grow (for instance on a full
    disk), or if the file is gone.

    Args:
        path: the file.
        num_done: None to create the file. Otherwise the file continues after this update: rows of
            later updates are removed first, because the run repeats these updates.

    Raises:
        FileExistsError: if the file is to be created and exists already.
    """
    columns: list[str] = []
    if num_done is not None and path.is_file():
        columns = keep_updates(path, num_done)
    file = path.open("a" if columns else "x", newline="")
    writer = csv.writer(file)

    def write(rows: Sequence[Row]) -> None:
        if not columns:
            columns.extend(column_order(dict.fromkeys(name for row in rows for name in row)))
            writer.writerow(columns)
        if set(columns) != rows[0].keys():
            names = ", ".join(sorted(set(columns) ^ rows[0].keys()))
            raise ConfigurationError(
                f"The columns of {path} differ from the columns that this run writes in {names}. "
                "Restore the first line of the file."
            )
        with failures_of(path):
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                raise FileGone(
                    f"{path} is gone: it was moved or removed while the run wrote to it. --resume "
                    "continues a run whose folder was moved"
                )
            writer.writerows([cell(row[name]) for name in columns] for row in rows)
            file.flush()

    def close() -> None:
        with suppress(OSError):  # `write` has reported it
            file.close()

    return Log(write, close)


def column_order(names: Collection[str]) -> list[str]:
    """Returns the names of columns in the order of a CSV file. Costs follow their return."""
    costs = {x: list(cost_columns(names, metric).values()) for x, metric in COSTS_BEHIND.items()}
    moved = {name for x in costs for name in costs[x] if x in names}
    own = sorted(set(names) - moved - {*LEADING_COLUMNS})
    order = [*(x for x in LEADING_COLUMNS if x in names), *own]
    return [name for x in order for name in (x, *costs.get(x, ()))]


def keep_updates(path: Path, num_done: int) -> list[str]:
    """Removes the rows after an update from a CSV file, and returns the names of its columns.

    If no row stays, the file itself is removed, and no names are returned.
    """
    columns, rows = read_rows(path)
    kept = [row for row in rows if int(row[columns.index("update")]) <= num_done]
    if not kept:
        path.unlink()
        return []
    write_csv(path, columns, kept)
    return columns


def tagged(row: Row) -> dict[str, float]:
    """Returns the numbers of a row that are not NaN, by their names in CleanRL."""
    tags = TAGS | {x: f"charts/{x}" for x in cost_columns(row).values()}
    for x in cost_columns(row, "evaluation_cost").values():
        tags[x] = f"eval/{x.replace('evaluation_cost', 'episodic_cost', 1)}"
    numbers = {tags.get(x, f"losses/{x}"): float(v) for x, v in row.items() if not np.isnan(v)}
    for name in PLACE_COLUMNS:
        numbers.pop(f"losses/{name}", None)
    if row["seconds"] > 0:
        numbers["charts/SPS"] = row["env_steps"] / float(row["seconds"])
    return numbers


def require_service(name: str) -> None:
    """Raises a ConfigurationError if a service of logs is not installed or has no key."""
    try:
        if name == "tensorboard":
            import tensorboardX  # noqa: F401
        else:
            import wandb
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--log {name} needs the package {error.name}. Install it: {how_to_install(name)}"
        ) from error
    if name == "wandb":
        _hush_wandb()
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigurationError(
                "--log wandb found no key of Weights & Biases. Run `wandb login` once. Or set "
                "WANDB_MODE=offline: W&B then writes into the folder of the run, and `wandb sync` "
                "uploads it when you have a key."
            )


def hyperparameters(description: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the hyperparameters of a seed, with the names that openrlbenchmark expects."""
    task = {"env_id": description["env"], "exp_name": description["algorithm"], "seed": seed}
    return {**description["config"], "total_timesteps": description["total_steps"], **task}


def tensorboard_log(
    folder: Path,
    seeds: Sequence[int],
    description: Mapping[str, Any],
    steps_done: int | None = None,
) -> Log:
    """Returns a log that writes to TensorBoard: one run `seed_<n>` for each seed.

    The horizontal axis is environment steps. When a run begins, its hyperparameters go to the tab
    HPARAMS, beside the return.

    Args:
        folder: the folder for the files of TensorBoard.
        seeds: the seeds.
        description: the content of `config.json`.
        steps_done: environment steps after which a resumed run goes on. TensorBoard then drops the
            numbers of later steps. None for a run that begins.
    """
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    purge = None if steps_done is None else steps_done + 1
    names = {seed: str(folder / f"seed_{seed}") for seed in seeds}
    # A thread of the writer may take rows from its queue after `flush`, so it flushes too.
    options = {"purge_step": purge, "flush_secs": 2}
    writers = {seed: SummaryWriter(name, **options) for seed, name in names.items()}
    for seed, writer in writers.items() if steps_done is None else ():
        numbers = {
            name: x if isinstance(x, bool | int | float) else str(x)
            for name, x in hyperparameters(description, seed).items()
        }
        for summary in hparams(numbers, {TAGS["episodic_return"]: 0.0}):
            writer.file_writer.add_summary(summary)

    def write(rows: Sequence[Row]) -> None:
        with failures_of(folder):
            for row in rows:
                for tag, value in tagged(row).items():
                    writers[row["seed"]].add_scalar(tag, value, row["env_steps"])
            for writer in writers.values():
                writer.flush()

    def close() -> None:
        with suppress(OSError):  # `write` has reported it
            for writer in writers.values():
                writer.close()

    return Log(write, close)


def wandb_log(folder: Path, seeds: Sequence[int], description: Mapping[str, Any]) -> Log:
    """Returns a log that writes to Weights & Biases: one run for each seed, all in one group.

    W&B reads the project, the entity and the mode from its own environment variables
    (`WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`).

    Args:
        folder: the folder of the run. W&B keeps its files in it.
        seeds: the seeds.
        description: the content of `config.json`.
    """
    import wandb

    _hush_wandb()
    group = f"{description['env']}__{description['algorithm']}__{description['started']}"
    identity = "".join(x if x.isalnum() else "-" for x in group)
    options = {"project": os.environ.get("WANDB_PROJECT", "trpo_jax"), "group": group}
    options |= {"dir": str(folder), "reinit": "create_new", "resume": "allow"}
    runs = {
        seed: wandb.init(
            **options,
            id=f"{identity}-{seed}",
            name=f"{description['env']}__{description['algorithm']}__{seed}",
            config=hyperparameters(description, seed),
        )
        for seed in seeds
    }
    for run in runs.values():
        run.define_metric("*", step_metric="global_step")

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            runs[row["seed"]].log({"global_step": row["env_steps"], **tagged(row)})

    def close() -> None:
        for run in runs.values():
            run.finish()

    return Log(write, close)


def _hush_wandb() -> None:
    import wandb

    wandb.setup(wandb.Settings(silent=True))
