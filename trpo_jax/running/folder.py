"""Opens the folder of a run: creates it for a new run, or finds the checkpoint of a resumed run."""

import shutil
import sys
from contextlib import ExitStack, closing

from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.processes import decided_by_first
from trpo_jax.records.checkpoints import Checkpoints, Saved
from trpo_jax.records.files import create_run_folder, locked, write_json
from trpo_jax.records.resuming import differing_settings
from trpo_jax.records.runs import (
    CHECKPOINTS,
    DESCRIPTION,
    EVALUATIONS,
    METRICS,
    POLICY,
    SUMMARY,
    read_description,
    read_metrics,
)
from trpo_jax.running.plan import RunPlan


def open_folder(plan: RunPlan, stack: ExitStack) -> Saved | None:
    """Creates the folder of a new run, or returns the checkpoint that a resumed run continues from.

    The folder is locked until the stack closes.

    Raises:
        ConfigurationError: if the folder cannot be used.
        StorageFailure: if another process cannot read the checkpoint of the first process.
        PeerFailure: if another process is gone.
    """
    if plan.folder is None:
        return None
    found = None

    def decide():
        nonlocal found
        stack.enter_context(locked(plan.folder))
        if plan.resumed:
            found = find_checkpoint(plan)
            lengthen(plan, found)
            return found and found.num_updates
        create_run_folder(plan.folder)
        write_json(plan.folder / DESCRIPTION, plan.description)
        return None

    number = decided_by_first(decide)
    if not (plan.folder / DESCRIPTION).is_file():
        raise ConfigurationError(
            f"The first process has created {plan.folder}, but this process does not see it. All "
            "processes must see the folder. Choose a folder on a shared disk with --out."
        )
    if number is None or found is not None:
        return found
    with closing(Checkpoints(plan.folder / CHECKPOINTS, read_only=True)) as checkpoints:
        return checkpoints.read(number)


def lengthen(plan: RunPlan, saved: Saved | None) -> None:
    """Writes the new number of steps into the folder if a run is made longer.

    The summary and the policies of a finished run are kept in files whose names have its number of
    steps.

    Raises:
        ConfigurationError: if a finished run has no checkpoint to continue from.
    """
    begun, steps = read_description(plan.folder), plan.description["total_steps"]
    if steps <= begun["total_steps"]:
        return
    summary, policy = plan.folder / SUMMARY, plan.folder / POLICY
    if summary.is_file():
        if saved is None:
            raise ConfigurationError(
                f"The run in {plan.folder} is finished and has no checkpoint to continue from. "
                "Start the longer run in another folder."
            )
        beside = lambda path: path.with_stem(f"{path.stem}-{begun['total_steps']}")
        if policy.is_file():
            shutil.copyfile(policy, beside(policy))
        summary.rename(beside(summary))
    changed = {name: plan.description[name] for name in ("total_steps", "command")}
    write_json(plan.folder / DESCRIPTION, begun | changed)


def find_checkpoint(plan: RunPlan) -> Saved | None:
    """Returns the latest checkpoint that a run can continue from, and prints why others cannot.

    Raises:
        ConfigurationError: if that checkpoint is from a run with other settings.
    """
    ends = {METRICS: last_update(plan, METRICS)}
    if plan.eval_every:
        ends[EVALUATIONS] = last_update(plan, EVALUATIONS) + plan.eval_every
    short = min(ends, key=ends.get)
    folder = plan.folder / CHECKPOINTS
    if not folder.is_dir():
        return None
    with closing(Checkpoints(folder)) as checkpoints:
        for found in checkpoints.newest_first():
            if isinstance(found, StorageFailure):
                print(
                    f"warning: {found} It was renamed. The run tries the checkpoint before it.",
                    file=sys.stderr,
                )
                continue
            longer = {"total_steps": plan.description["total_steps"]}
            different = differing_settings(plan.description, found.description | longer)
            if different:
                raise ConfigurationError(
                    f"The checkpoint of update {found.num_updates} in {folder} is from a run with "
                    f"{different}. Move it out of that folder to continue with an earlier one."
                )
            if ends[short] >= found.num_updates:
                return found
            print(
                f"warning: {plan.folder / short} ends before update {found.num_updates}, the "
                "update of the latest checkpoint. The run tries the checkpoint before it.",
                file=sys.stderr,
            )
    return None


def last_update(plan: RunPlan, name: str) -> int:
    """Returns the last update with rows in a CSV file of a run; -1 if the file has no rows.

    Raises:
        ConfigurationError: if the file is damaged.
    """
    path = plan.folder / name
    columns = read_metrics(path, plan.seeds) if path.is_file() else {}
    return int(columns["update"][0, -1]) if columns else -1
