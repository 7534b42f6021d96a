"""Comparison of labels, on each task and over all tasks that the labels share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trpo_jax.analysis.groups import Group, returns_at
from trpo_jax.analysis.statistics import (
    AGGREGATES,
    Estimate,
    estimate,
    performance_profile,
    probability_of_improvement,
)
from trpo_jax.errors import ConfigurationError

LEVELS = 200  # number of scores at which a performance profile is computed


class Task(NamedTuple):
    """A task, and the scores by which the labels are compared.

    Attributes:
        groups: the group of runs of each label.
        env_steps: number of environment steps of a seed that are compared. Every label has as many.
        scores: the score of each seed by label, `[num_seeds]`.
        low: the score that counts as 0 in aggregates over tasks.
        high: the score that counts as 1 in aggregates over tasks.
        threshold: a running return. The comparison reports when the seeds first reached it.
        notes: remarks for the reader of the numbers.
    """

    groups: dict[str, Group]
    env_steps: int
    scores: dict[str, np.ndarray]
    low: float
    high: float
    threshold: float
    notes: tuple[str, ...]


class Overall(NamedTuple):
    """The comparison of labels over several tasks. Each task has the same weight.

    Attributes:
        tasks: names of the tasks.
        aggregates: aggregates of normalised scores, by name of the aggregate, then by label.
        levels: normalised scores, `[L]`, from below the lowest to above the highest.
        profiles: fraction of seeds above each level, by label, `[L]`.
        improvements: probability that a seed scores higher than a seed of the baseline, by label.
            The baseline itself is left out.
    """

    tasks: list[str]
    aggregates: dict[str, dict[str, Estimate]]
    levels: np.ndarray
    profiles: dict[str, Estimate]
    improvements: dict[str, Estimate]


def common_steps(groups: dict[str, Group]) -> int:
    """Returns the largest number of environment steps that every seed of all groups reached."""
    return int(min(group.env_steps[-1] for group in groups.values()))


def training_scores(groups: dict[str, Group], env_steps: int, window: int) -> dict[str, np.ndarray]:
    """Returns the running return of each seed after `env_steps` steps, by label, `[num_seeds]`.

    Raises:
        ConfigurationError: if a seed has not ended `window` episodes by then.
    """
    scores = {label: returns_at(group, env_steps) for label, group in groups.items()}
    for label, values in scores.items():
        if np.isnan(values).any():
            folder = groups[label].runs[0].folder
            raise ConfigurationError(
                f"Some seeds of {label!r} ({folder}) have not ended {window} episodes after "
                f"{env_steps:,} environment steps, the length of the shortest run of this task. "
                "Leave the shortest run out, or average over fewer episodes with --smooth."
            )
    return scores


def return_range(
    groups: dict[str, Group], scores: dict[str, np.ndarray], env_steps: int
) -> tuple[float, float]:
    """Returns the lowest and the highest number among scores and running returns.

    Running returns after more than `env_steps` steps do not count.
    """
    returns = [group.returns[:, group.env_steps <= env_steps].ravel() for group in groups.values()]
    known = np.concatenate([*returns, *scores.values()])
    return float(np.nanmin(known)), float(np.nanmax(known))


def normalized_scores(task: Task) -> dict[str, np.ndarray]:
    """Returns the scores by label, scaled so that `low` becomes 0 and `high` becomes 1.

    If `low` and `high` are equal, the scores are shifted only.
    """
    width = (task.high - task.low) or 1.0
    return {label: (scores - task.low) / width for label, scores in task.scores.items()}


def over_tasks(tasks: dict[str, Task], labels: Sequence[str], baseline: str) -> Overall | None:
    """Returns the comparison over all tasks that every label has; None if there is no such task.

    Args:
        tasks: the tasks by name.
        labels: all labels.
        baseline: the label that the other labels are compared with.
    """
    common = [name for name, task in tasks.items() if len(task.groups) == len(labels)]
    if not common:
        return None
    by_task = [normalized_scores(tasks[name]) for name in common]
    scores = {label: [by_label[label] for by_label in by_task] for label in labels}
    everything = np.concatenate([x for by_label in by_task for x in by_label.values()])
    lowest, highest = everything.min(), everything.max()
    margin = 0.05 * ((highest - lowest) or 1.0)
    levels = np.linspace(lowest - margin, highest + margin, LEVELS)
    return Overall(
        tasks=common,
        aggregates={
            name: {label: estimate(scores[label], statistic) for label in labels}
            for name, statistic in AGGREGATES.items()
        },
        levels=levels,
        profiles={label: performance_profile(scores[label], levels) for label in labels},
        improvements={
            label: probability_of_improvement(scores[label], scores[baseline])
            for label in labels
            if label != baseline
        },
    )
