"""Statistics over seeds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # scipy.stats, which takes a second, loads where it is used


class ScoreSummary(NamedTuple):
    """One score a seed, summarised over seeds.

    Attributes:
        mean: mean over seeds.
        std: sample standard deviation over seeds (n - 1); None for a single seed.
        iqm: interquartile mean, the mean of the middle half of the seeds.
        ci95: 95 % percentile-bootstrap interval of the mean over seeds; None for a single seed,
            which says nothing about the spread.
        iqm_ci95: the same of the interquartile mean.
    """

    mean: float
    std: float | None
    iqm: float
    ci95: tuple[float, float] | None
    iqm_ci95: tuple[float, float] | None


def summarize(scores: np.ndarray) -> ScoreSummary:
    """Returns the summary of one score a seed, `[num_seeds]`."""
    scores = np.asarray(scores, np.float64)
    mean, iqm = float(scores.mean()), float(interquartile_mean(scores))
    if len(scores) == 1:
        return ScoreSummary(mean, None, iqm, None, None)
    ci95, iqm_ci95 = (
        tuple(float(bound) for bound in bootstrap_interval(scores, statistic))
        for statistic in (np.mean, interquartile_mean)
    )
    return ScoreSummary(mean, float(scores.std(ddof=1)), iqm, ci95, iqm_ci95)


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> np.ndarray | np.floating:
    """Returns the mean of the middle half along an axis (Agarwal et al. 2021, arXiv:2108.13264)."""
    return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def bootstrap_interval(
    scores: np.ndarray, statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % percentile-bootstrap interval of a statistic over seeds, the first axis.

    The resampling is seeded: the same scores always give the same interval.
    """
    interval = scipy.stats.bootstrap(
        (scores,),
        statistic,
        axis=0,
        n_resamples=2000,
        method="percentile",
        batch=max(1, 10_000_000 // scores.size),  # numbers held at a time
        random_state=0,
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)
