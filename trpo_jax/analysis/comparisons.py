"""Labels compared: on each task, and over the tasks that all of them have."""

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

LEVELS = 200  # of a performance profile


class Task(NamedTuple):
    """A task, and what labels are compared by on it.

    Attributes:
        groups: by label.
        env_steps: environment steps of a seed that every label has; numbers are of these.
        scores: by label, `[num_seeds]`.
        low: the score that counts as 0 in aggregates over tasks.
        high: the score that counts as 1.
        threshold: the running return to reach.
        notes: what to know of these numbers.
    """

    groups: dict[str, Group]
    env_steps: int
    scores: dict[str, np.ndarray]
    low: float
    high: float
    threshold: float
    notes: tuple[str, ...]


class Overall(NamedTuple):
    """What several tasks say together, each weighing the same.

    Attributes:
        tasks: their names.
        aggregates: of normalised scores, by name of the aggregate, then by label.
        levels: normalised scores, `[L]`, from below the lowest to above the highest.
        profiles: fraction of seeds above each level, by label, `[L]`.
        improvements: probability that a seed scores higher than one of the baseline, by label, the
            baseline not among them.
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
    """Returns the running return of each seed after some steps, by label, `[num_seeds]`.

    Raises:
        ConfigurationError: if some seed has not ended `window` episodes by then.
    """
    scores = {label: returns_at(group, env_steps) for label, group in groups.items()}
    for label, values in scores.items():
        if np.isnan(values).any():
            folder = groups[label].runs[0].folder
            raise ConfigurationError(
                f"Some seeds of {label!r} ({folder}) have not ended {window} episodes after "
                f"{env_steps:,} environment steps, which is as far as all runs of its task go. "
                "Leave the shortest run out, or average over fewer episodes with --smooth."
            )
    return scores


def return_range(
    groups: dict[str, Group], scores: dict[str, np.ndarray], env_steps: int
) -> tuple[float, float]:
    """Returns the lowest and the highest of all scores, and running returns within some steps."""
    returns = [group.returns[:, group.env_steps <= env_steps].ravel() for group in groups.values()]
    known = np.concatenate([*returns, *scores.values()])
    return float(np.nanmin(known)), float(np.nanmax(known))


def normalized_scores(task: Task) -> dict[str, np.ndarray]:
    """Returns the scores by label, with 0 for `low` and 1 for `high`; all 0 if those are alike."""
    width = (task.high - task.low) or 1.0
    return {label: (scores - task.low) / width for label, scores in task.scores.items()}


def over_tasks(tasks: dict[str, Task], labels: Sequence[str], baseline: str) -> Overall | None:
    """Returns what the tasks that all labels have say together, or None if there is none.

    Args:
        tasks: by name.
        labels: all labels.
        baseline: the one that the others are compared with.
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
