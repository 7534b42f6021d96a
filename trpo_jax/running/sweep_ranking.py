"""Measures the runs of a sweep, and ranks its settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.analysis.statistics import ScoreSummary, summarize
from trpo_jax.envs.base import Environment, cost_metrics
from trpo_jax.records.files import write_csv
from trpo_jax.records.limits import cost_excess, last_limits, preference
from trpo_jax.records.runs import ONLY_COST, cost_columns
from trpo_jax.running.evaluation import Played
from trpo_jax.running.sweep_plan import Setting
from trpo_jax.running.sweep_program import Scores

RETURNS = ("evaluation_return", "training_return")
STEPS = ("kl", "rejected", "broken_update")

Key = tuple[int, int]  # number of the setting, seed


class Ranked(NamedTuple):
    """A setting with its scores and costs.

    Attributes:
        index: the number of the setting.
        setting: the values of the swept hyperparameters.
        scores: the score of each seed, `[num_seeds]`; NaN if its numbers were not finite.
        summary: statistics over seeds; None if a seed has no score.
        costs: for each cost by name, the mean cost of each seed in the episodes of its score,
            `[num_seeds]`.
        limits: the limit of each cost, `[K]`; None without limits.
    """

    index: int
    setting: Setting
    scores: np.ndarray
    summary: ScoreSummary | None
    costs: Mapping[str, np.ndarray] = MappingProxyType({})
    limits: np.ndarray | None = None

    @property
    def mean_costs(self) -> np.ndarray:
        """The mean of each cost over seeds, `[K]`."""
        return np.array([x.mean() for x in self.costs.values()])

    @property
    def excess(self) -> float:
        """How far the mean costs are above their limits, summed over costs."""
        return float(cost_excess(self.mean_costs, self.limits))


def measured_with(costs: Sequence[str]) -> list[str]:
    """Returns the names of the measured columns, in the order of the file of results.

    Args:
        costs: the names of the costs of the environment.
    """
    costs = [cost_metrics(costs, name.replace("return", "cost")) for name in RETURNS]
    return [*RETURNS, *(name for names in costs for name in names), *STEPS]


def measure(env: Environment, played: Played, scores: Scores) -> dict[str, np.ndarray]:
    """Returns the results of the runs of a block by the names of `measured_with`, each `[R]`."""
    costs = [played.costs[..., k].mean(axis=1) for k in range(len(env.costs))]
    values = [played.returns.mean(axis=1), scores.training_return, *costs]
    missing = np.full(len(scores.training_return), np.nan)
    values += [scores.training_costs.get(name, missing) for name in cost_metrics(env.costs)]
    values += [getattr(scores, name) for name in STEPS]
    return dict(zip(measured_with(env.costs), values, strict=True))


def rank(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    results: Mapping[Key, Mapping[str, Any]],
    score: str,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> list[Ranked]:
    """Returns the settings in the order of their scores, the best first.

    The interquartile mean decides, and then the mean. Settings whose mean costs keep their limits
    come before the others. The others are ordered by how far they are above their limits. Settings
    with a seed that has no score come last. Settings with an unfinished run are left out.

    Args:
        settings: for each setting, the values of the swept hyperparameters.
        seeds: the seeds of every setting.
        results: the measured values of each run.
        score: the name of the return that decides.
        config: the fields of the config that every setting changes. They may have limits on costs.
    """
    ranked = []
    for index, setting in enumerate(settings):
        if all((index, seed) in results for seed in seeds):
            scores = np.array([results[index, seed][score] for seed in seeds])
            summary = summarize(scores) if np.isfinite(scores).all() else None
            names = cost_columns(results[index, seeds[0]], f"{score.removesuffix('return')}cost")
            costs = {
                name: np.array([results[index, seed][column] for seed in seeds])
                for name, column in names.items()
            }
            limits = last_limits({**config, **setting}, {}, len(costs))
            ranked.append(Ranked(index, setting, scores, summary, costs, limits))
    place = lambda x: (*preference(x.summary.iqm, x.excess), x.summary.mean)
    order = lambda x: (x.summary is not None, x.summary and place(x))
    return sorted(ranked, key=order, reverse=True)


def write_ranking(path: Path, ranking: Sequence[Ranked]) -> None:
    """Writes the statistics of every setting to a CSV file, the best setting first."""
    fields = list(ranking[0].setting)
    statistics = ["iqm", "iqm_low", "iqm_high", "mean", "mean_low", "mean_high", "std", "worst"]
    rows = []
    limited = ranking[0].limits is not None
    for ranked in ranking:
        index, setting, scores, summary, *_ = ranked
        counts = [len(scores), int(np.isnan(scores).sum())]
        numbers: list[float | None] = [None] * len(statistics)
        if summary is not None:
            iqm_ci95, ci95 = summary.iqm_ci95 or (None, None), summary.ci95 or (None, None)
            numbers = [summary.iqm, *iqm_ci95, summary.mean, *ci95, summary.std, scores.min()]
        above = [ranked.excess] if limited else []
        rows.append(
            [index, *setting.values(), *counts, *numbers, *ranked.mean_costs.tolist(), *above]
        )
    names = ["mean_cost" if name == ONLY_COST else f"mean_cost_{name}" for name in ranking[0].costs]
    names += ["excess"] if limited else []
    write_csv(path, ["setting", *fields, "seeds", "broken_seeds", *statistics, *names], rows)
