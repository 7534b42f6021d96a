"""Statistics over seeds, of one task and of several."""

import math
from collections.abc import Callable, Sequence
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
    return stratified_interval([scores], statistic)


def stratified_interval(
    strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % percentile-bootstrap interval of a statistic of several sets of seeds.

    Seeds are resampled inside each set, the first axis of each array; the sets stay as they are
    (Agarwal et al. 2021, arXiv:2108.13264, section 4.1). The resampling is seeded: the same scores
    always give the same interval.

    Args:
        strata: arrays `[num_seeds, ...]`, alike but for their numbers of seeds, 2 or more each.
        statistic: `(*strata, axis) -> [...]`.
    """
    interval = scipy.stats.bootstrap(
        strata,
        statistic,
        axis=0,
        n_resamples=2000,
        method="percentile",
        batch=max(1, 10_000_000 // sum(scores.size for scores in strata)),  # numbers at a time
        random_state=0,
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


class Estimate(NamedTuple):
    """A statistic of scores on several tasks.

    Attributes:
        value: `[...]`.
        ci95: 95 % stratified-bootstrap interval over seeds, two arrays `[...]`; None where some
            task has a single seed.
    """

    value: np.ndarray
    ci95: tuple[np.ndarray, np.ndarray] | None


def estimate(strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """Returns a statistic with its interval; the arguments are those of `stratified_interval`."""
    several = min(len(scores) for scores in strata) > 1
    interval = stratified_interval(strata, statistic) if several else None
    return Estimate(np.asarray(statistic(*strata, axis=0)), interval)


def pooled_iqm(*tasks: np.ndarray, axis: int = 0) -> np.ndarray | np.floating:
    """Returns the interquartile mean over all seeds of all tasks.

    Each task weighs the same: where numbers of seeds differ, seeds count as often as it takes.
    """
    length = math.lcm(*(scores.shape[axis] for scores in tasks))
    alike = [np.repeat(scores, length // scores.shape[axis], axis) for scores in tasks]
    return interquartile_mean(np.concatenate(alike, axis), axis)


def mean_of_means(*tasks: np.ndarray, axis: int = 0) -> np.ndarray | np.floating:
    """Returns the mean over tasks of the mean over seeds."""
    return np.mean([scores.mean(axis) for scores in tasks], axis=0)


def median_of_means(*tasks: np.ndarray, axis: int = 0) -> np.ndarray | np.floating:
    """Returns the median over tasks of the mean over seeds."""
    return np.median([scores.mean(axis) for scores in tasks], axis=0)


def optimality_gap(*tasks: np.ndarray, axis: int = 0) -> np.ndarray | np.floating:
    """Returns by how much scores are short of 1, those above it counting as 1; lower is better."""
    return 1 - mean_of_means(*(np.minimum(scores, 1) for scores in tasks), axis=axis)


# What Agarwal et al. (2021, section 4.3) say of normalised scores, `(*tasks, axis)` each.
AGGREGATES = {
    "IQM": pooled_iqm,
    "median": median_of_means,
    "mean": mean_of_means,
    "optimality gap": optimality_gap,
}


def performance_profile(tasks: Sequence[np.ndarray], levels: np.ndarray) -> Estimate:
    """Returns the fraction of seeds that score above each level, the mean over tasks.

    This is the run-score distribution of Agarwal et al. (2021, section 4.2); the
    interval is of each level by itself.

    Args:
        tasks: normalised scores of each task, `[num_seeds]` each.
        levels: `[L]`.

    Returns:
        An estimate `[L]`.
    """
    above = [(scores[:, None] > levels).astype(float) for scores in tasks]
    return estimate(above, mean_of_means)


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Estimate:
    """Returns how probable it is that a seed of X scores higher than one of Y, the mean over tasks.

    On each task this is the Mann-Whitney U statistic over the number of pairs, in which a tie
    counts half (Agarwal et al. 2021, section 4.3).

    Args:
        x: scores of X on each task, `[num_seeds]` each.
        y: scores of Y on the same tasks, `[num_seeds]` each.
    """

    def statistic(*strata: np.ndarray, axis: int) -> np.ndarray | np.floating:
        last = [np.moveaxis(scores, axis, -1) for scores in strata]
        pairs = zip(last[: len(x)], last[len(x) :], strict=True)
        signs = [np.sign(a[..., :, None] - b[..., None, :]).mean((-2, -1)) for a, b in pairs]
        return (1 + np.mean(signs, axis=0)) / 2

    return estimate([*x, *y], statistic)
