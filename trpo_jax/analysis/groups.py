"""Groups of runs: all seeds of one label on one task."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.analysis.costs import describe_costs
from trpo_jax.analysis.returns import first_reached, running_return
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.limits import cost_limits
from trpo_jax.records.runs import StoredRun, cost_columns, read_summary

LISTED = 5  # most settings that a message lists


class Group(NamedTuple):
    """All seeds of one label on one task.

    Attributes:
        runs: the runs that were joined.
        seeds: numbers of the seeds, `[num_seeds]`.
        env_steps: environment steps of a seed at each update, `[U]`, up to the end of the shortest
            run.
        returns: running return of training episodes, `[num_seeds, U]`; NaN until enough episodes
            have ended.
        costs: running cost of training episodes by the name of the cost, `[num_seeds, U]` each.
        limits: limit of each cost, `[K, U]`; None without limits.
    """

    runs: tuple[StoredRun, ...]
    seeds: np.ndarray
    env_steps: np.ndarray
    returns: np.ndarray
    costs: Mapping[str, np.ndarray] = MappingProxyType({})
    limits: np.ndarray | None = None


def join_runs(
    labelled: Sequence[tuple[str, StoredRun]], window: int
) -> dict[str, dict[str, Group]]:
    """Returns the groups of runs by task, then by label. Both keep the order of the runs.

    Args:
        labelled: pairs of a label and a run.
        window: least number of episodes in a running return.

    Raises:
        ConfigurationError: if runs of one label and task differ in their settings or share a seed.
    """
    gathered: dict[str, dict[str, list[StoredRun]]] = {}
    for label, run in labelled:
        gathered.setdefault(run.description["env"], {}).setdefault(label, []).append(run)
    groups: dict[str, dict[str, Group]] = {}
    for task, by_label in gathered.items():
        for label, runs in by_label.items():
            _refuse_other_settings(f"{label!r} on {task}", runs)
            _refuse_repeated_seeds(f"{label!r} on {task}", runs)
            groups.setdefault(task, {})[label] = join(runs, window)
    return groups


def join(runs: Sequence[StoredRun], window: int) -> Group:
    """Returns the group of the runs of one label on one task; see `join_runs`."""
    shortest = min(run.metrics["env_steps"].shape[1] for run in runs)
    metrics = {
        name: np.concatenate([run.metrics[name][:, :shortest] for run in runs])
        for name in runs[0].metrics
        if all(name in run.metrics for run in runs)
    }
    seeds, env_steps, num_episodes = (metrics[x] for x in ("seed", "env_steps", "num_episodes"))
    returns = running_return(metrics["episodic_return"], num_episodes, window)
    columns = cost_columns(metrics, order=runs[0].description.get("cost_names", ()))
    costs = {
        name: running_return(metrics[column], num_episodes, window)
        for name, column in columns.items()
    }
    limits = cost_limits(runs[0].description["config"], metrics, len(costs)) if costs else None
    return Group(tuple(runs), seeds[:, 0].astype(int), env_steps[0], returns, costs, limits)


def _refuse_other_settings(name: str, runs: Sequence[StoredRun]) -> None:
    first, *others = runs
    expected = _settings(first.description)
    for run in others:
        found = _settings(run.description)
        differing = [key for key in expected | found if expected.get(key) != found.get(key)]
        if differing:
            listed = [f"{x} ({expected.get(x)} and {found.get(x)})" for x in differing[:LISTED]]
            more = f" and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
            raise ConfigurationError(
                f"{first.folder} and {run.folder} are both {name}, and differ in "
                f"{', '.join(listed)}{more}. Give each its own label, as LABEL=FOLDER."
            )


def _settings(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide how a seed trains, from the description of a run."""
    chosen = {name: description[name] for name in ("algorithm", "total_steps")}
    return chosen | description["config"]


def _refuse_repeated_seeds(name: str, runs: Sequence[StoredRun]) -> None:
    owners: dict[int, StoredRun] = {}
    for run in runs:
        for seed in run.metrics["seed"][:, 0].astype(int):
            other = owners.setdefault(seed, run)
            if other is not run:
                raise ConfigurationError(
                    f"{other.folder} and {run.folder} are both {name}, and both have seed {seed}. "
                    "Give only one of them to this command, or give each its own label, as "
                    "LABEL=FOLDER."
                )


def returns_at(group: Group, env_steps: int | float) -> np.ndarray:
    """Returns the running return of each seed at the last update within `env_steps` steps.

    Returns:
        `[num_seeds]`; NaN without such an update or without enough episodes.
    """
    passed = np.searchsorted(group.env_steps, env_steps, side="right")
    return group.returns[:, passed - 1] if passed else np.full(len(group.seeds), np.nan)


def costs_at(group: Group, env_steps: int | float) -> dict[str, dict[str, Any]]:
    """Returns statistics of the running costs at the last update within `env_steps` steps.

    They are by the name of the cost, as from `describe_costs`. There are none without costs or
    without such an update.
    """
    passed = np.searchsorted(group.env_steps, env_steps, side="right")
    if not (group.costs and passed):
        return {}
    per_seed = np.stack([x[:, passed - 1] for x in group.costs.values()], axis=1)
    limits = None if group.limits is None else group.limits[:, passed - 1]
    return describe_costs(list(group.costs), per_seed, limits)


def steps_to(group: Group, threshold: float, env_steps: int) -> np.ndarray:
    """Returns the environment steps until each seed first reached a running return, `[num_seeds]`.

    It is NaN for a seed that did not reach it within `env_steps` steps.
    """
    within = np.where(group.env_steps <= env_steps, group.returns, np.nan)
    return first_reached(within, threshold, np.broadcast_to(group.env_steps, within.shape))


def median_steps(reached: np.ndarray) -> float | None:
    """Returns the median of `steps_to` over seeds.

    A seed that never reached the return counts as infinitely many steps. The median is None if
    half of the seeds or more never reached it.
    """
    median = np.median(np.where(np.isnan(reached), np.inf, reached))
    return float(median) if np.isfinite(median) else None


def read_evaluations(group: Group) -> np.ndarray:
    """Returns the mean return of the final policy of each seed in fresh episodes, `[num_seeds]`.

    Raises:
        ConfigurationError: if a run is unfinished, or if one of its seeds stopped early.
    """
    scores = []
    for run in group.runs:
        of_run = read_summary(run.folder)["evaluation"]["per_seed"]
        if len(of_run) != len(run.metrics["seed"]):
            raise ConfigurationError(
                f"The run in {run.folder} has {len(run.metrics['seed'])} seeds, but its "
                f"summary has {len(of_run)} scores. Leave this run out."
            )
        if None in of_run:
            raise ConfigurationError(
                f"A seed of the run in {run.folder} has no score: it stopped because its numbers "
                "were not finite. Leave this run out."
            )
        scores += of_run
    return np.array(scores, float)
