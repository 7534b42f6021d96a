"""Statistics over seeds, on one task and on several tasks.

Intervals are Student's t intervals and their generalisations, because bootstrap intervals from few
seeds are too narrow. `experiments/results/coverage.md` has the measured coverage of each interval.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # scipy.stats takes a second to import, and loads when it is first used

Numbers = np.ndarray | np.floating
Ends = tuple[Numbers, Numbers]  # the lower and the upper end of an interval

LEAST_SEEDS = 3  # fewer seeds have no interval
LEAST_WINSORIZED = 10  # with fewer seeds, `iqm_interval` does not winsorise
TRIMMED = 0.25  # share of the seeds at each end that an interquartile mean leaves out
INTERVAL, RANGE = "95 % interval", "range"
INTERVALS = (
    "Intervals are 95 % t intervals over seeds. If all seeds have the same score, the interval has "
    "width 0, although other seeds might differ. Fewer than "
    f"{LEAST_SEEDS} seeds have no interval, but a range from the lowest to the highest score."
)


class ScoreSummary(NamedTuple):
    """Statistics over seeds that have one score each.

    Attributes:
        mean: mean over seeds.
        std: sample standard deviation over seeds (n - 1); None for a single seed.
        iqm: interquartile mean, the mean of the middle half of the seeds.
        ci95: 95 % interval of the mean, from `mean_interval`.
        iqm_ci95: 95 % interval of the interquartile mean, from `iqm_interval`.

    Both intervals are None for fewer than `LEAST_SEEDS` seeds.
    """

    mean: float
    std: float | None
    iqm: float
    ci95: tuple[float, float] | None
    iqm_ci95: tuple[float, float] | None


def summarize(scores: np.ndarray) -> ScoreSummary:
    """Returns the statistics of scores `[num_seeds]`, one score for each seed."""
    scores = np.asarray(scores, np.float64)
    std = float(scores.std(ddof=1)) if len(scores) > 1 else None
    mean, iqm = float(scores.mean()), float(interquartile_mean(scores))
    return ScoreSummary(mean, std, iqm, mean_interval(scores), iqm_interval(scores))


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the mean of the middle half along an axis (Agarwal et al. 2021, arXiv:2108.13264)."""
    return scipy.stats.trim_mean(scores, TRIMMED, axis=axis)


def mean_interval(scores: np.ndarray) -> Ends | None:
    """Returns Student's 95 % interval of the mean over seeds, the first axis.

    It covers the mean of normal scores in 95 % of all cases, for any number of seeds. It covers the
    mean of skewed scores less often (lognormal scores of 5 seeds: 82 %; a bootstrap: 71 %). If all
    seeds have the same score, the interval has width 0, although other seeds might differ.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS` seeds.
    """
    return t_interval(scores.mean(axis=0), scores, 0)


def iqm_interval(scores: np.ndarray) -> Ends | None:
    """Returns a 95 % t interval of the interquartile mean over seeds, the first axis.

    It is the interval of a trimmed mean (Tukey and McLaughlin 1963). For the standard deviation,
    the scores are winsorised: each score that the mean leaves out is replaced by the nearest score
    that the mean keeps. The h seeds that the mean keeps give h - 1 degrees of freedom. For 4 seeds,
    this is one degree of freedom, and the interval is three times too wide. So the scores of fewer
    than `LEAST_WINSORIZED` seeds are not winsorised.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS` seeds.
    """
    trimmed = int(TRIMMED * len(scores)) if len(scores) >= LEAST_WINSORIZED else 0
    return t_interval(interquartile_mean(scores), scores, trimmed)


def t_interval(center: Numbers, scores: np.ndarray, trimmed: int) -> Ends | None:
    """Returns the 95 % t interval of a mean or a trimmed mean over seeds, the first axis.

    Args:
        center: the mean, `[...]`.
        scores: the scores, `[num_seeds, ...]`.
        trimmed: number of seeds at each end that are winsorised for the standard deviation.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS` seeds.
    """
    if len(scores) < LEAST_SEEDS:
        return None
    ordered, middle = np.sort(scores, axis=0), len(scores) - 2 * trimmed
    winsorized = np.clip(scores, ordered[trimmed], ordered[-1 - trimmed])
    variance = len(scores) * winsorized.var(axis=0) / (middle * (middle - 1))
    margin = scipy.stats.t.ppf(0.975, middle - 1) * np.sqrt(variance)
    return center - margin, center + margin


class Spread(NamedTuple):
    """The interval of an interquartile mean, or the range of too few seeds.

    Attributes:
        name: `INTERVAL`, or `RANGE` for fewer than `LEAST_SEEDS` seeds.
        low: the lower end, `[...]`.
        high: the upper end, `[...]`.
    """

    name: str
    low: Numbers
    high: Numbers


def iqm_spread(scores: np.ndarray) -> Spread:
    """Returns the interval of the interquartile mean over seeds, the first axis.

    For fewer than `LEAST_SEEDS` seeds it returns their range, from the lowest to the highest score.
    """
    interval = iqm_interval(scores)
    if interval is None:
        return Spread(RANGE, scores.min(axis=0), scores.max(axis=0))
    return Spread(INTERVAL, *interval)


class Estimate(NamedTuple):
    """A statistic of scores on several tasks.

    Attributes:
        value: the statistic, `[...]`.
        ci95: its 95 % interval over seeds, two arrays `[...]`; None if a task has fewer than
            `LEAST_SEEDS` seeds.
    """

    value: np.ndarray
    ci95: Ends | None


def estimate(strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """Returns a statistic of several sets of seeds, with its 95 % t interval.

    The interval is about other seeds on the same sets. The variance is the sum of the jackknife
    variances of the sets. The degrees of freedom are Satterthwaite's. For the mean over tasks, this
    is Welch's interval. For the mean of a single set, it is Student's.

    The interval covers aggregates over four or more tasks in 90 to 97 % of all cases. A stratified
    bootstrap of 3 to 5 seeds covers them in 77 to 91 %. The interval is too narrow for the pooled
    interquartile mean of two tasks with very different scores. It is also too narrow for a share of
    seeds (a profile, a probability) if few seeds differ. If no seed differs, it has width 0.

    Args:
        strata: the sets of seeds, an array `[num_seeds, ...]` each. Only the number of seeds may
            differ between sets.
        statistic: `(*strata, axis) -> [...]`.
    """
    value = np.asarray(statistic(*strata, axis=0))
    if min(map(len, strata)) < LEAST_SEEDS:
        return Estimate(value, None)
    if statistic is pooled_iqm and len(strata) == 1:  # the same interval as in `summarize`
        return Estimate(value, iqm_interval(strata[0]))
    parts = []  # the variance that each set contributes
    for index, scores in enumerate(strata):
        without = [
            statistic(*strata[:index], np.delete(scores, seed, 0), *strata[index + 1 :], axis=0)
            for seed in range(len(scores))
        ]
        parts.append((len(scores) - 1) * np.var(without, axis=0))
    variance = np.sum(parts, axis=0)
    seeds = zip(parts, strata, strict=True)
    of_squares = np.sum([part**2 / (len(scores) - 1) for part, scores in seeds], axis=0)
    freedom = variance**2 / np.where(of_squares > 0, of_squares, 1)
    margin = np.where(of_squares > 0, scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance), 0)
    return Estimate(value, (value - margin, value + margin))


def pooled_iqm(*tasks: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the interquartile mean over all seeds of all tasks.

    Each task has the same weight. If tasks differ in their number of seeds, the seeds are repeated
    until all tasks have as many.
    """
    length = math.lcm(*(scores.shape[axis] for scores in tasks))
    alike = [np.repeat(scores, length // scores.shape[axis], axis) for scores in tasks]
    return interquartile_mean(np.concatenate(alike, axis), axis)


def mean_of_means(*tasks: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the mean over tasks of the mean over seeds."""
    return np.mean([scores.mean(axis) for scores in tasks], axis=0)


def median_of_means(*tasks: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the median over tasks of the mean over seeds."""
    return np.median([scores.mean(axis) for scores in tasks], axis=0)


def optimality_gap(*tasks: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the mean distance of the scores to 1. Scores above 1 count as 1. Lower is better."""
    return 1 - mean_of_means(*(np.minimum(scores, 1) for scores in tasks), axis=axis)


# The aggregates of normalised scores from Agarwal et al. (2021, section 4.3).
AGGREGATES = {
    "IQM": pooled_iqm,
    "median": median_of_means,
    "mean": mean_of_means,
    "optimality gap": optimality_gap,
}


def performance_profile(tasks: Sequence[np.ndarray], levels: np.ndarray) -> Estimate:
    """Returns the fraction of seeds that score above each level, averaged over tasks.

    This is the run-score distribution of Agarwal et al. (2021, section 4.2). The interval is
    pointwise: each level has its own.

    Args:
        tasks: normalised scores of each task, `[num_seeds]` each.
        levels: the scores to compare with, `[L]`.

    Returns:
        The fractions, an estimate of shape `[L]`.
    """
    above = [(scores[:, None] > levels).astype(float) for scores in tasks]
    return _fraction(estimate(above, mean_of_means))


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Estimate:
    """Returns the probability that a seed of X scores higher than a seed of Y, averaged over tasks.

    On each task, this is the Mann-Whitney U statistic divided by the number of pairs (Agarwal et
    al. 2021, section 4.3). A tie counts as one half.

    Args:
        x: scores of X on each task, `[num_seeds]` each.
        y: scores of Y on the same tasks, `[num_seeds]` each.
    """
    return _fraction(estimate([*x, *y], improvement))


def improvement(*strata: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the probability of improvement. The arguments are the tasks of X, then those of Y."""
    last = [np.moveaxis(scores, axis, -1) for scores in strata]
    pairs = zip(last[: len(last) // 2], last[len(last) // 2 :], strict=True)
    signs = [np.sign(a[..., :, None] - b[..., None, :]).mean((-2, -1)) for a, b in pairs]
    return (1 + np.mean(signs, axis=0)) / 2


def _fraction(found: Estimate) -> Estimate:
    """Returns an estimate of a fraction, with its interval cut to the range from 0 to 1."""
    return found._replace(ci95=found.ci95 and tuple(np.clip(found.ci95, 0, 1)))
