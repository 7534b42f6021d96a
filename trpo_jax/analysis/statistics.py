"""Statistics over seeds, of one task and of several.

Intervals are Student's t and its generalisations. Bootstraps of few seeds are too narrow.
`experiments/results/coverage.md` has how often each of them covers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # scipy.stats, which takes a second, loads where it is used

Numbers = np.ndarray | np.floating
Ends = tuple[Numbers, Numbers]  # of an interval, the lower one first

LEAST_SEEDS = 3  # of an interval
LEAST_WINSORIZED = 10  # seeds, for the interval of an interquartile mean to winsorise
TRIMMED = 0.25  # share of the seeds at each end that an interquartile mean leaves out
INTERVAL, RANGE = "95 % interval", "range"
INTERVALS = (
    "Intervals are 95 % t intervals over seeds. Where all seeds agree an interval has no width, "
    f"which claims too much. Fewer than {LEAST_SEEDS} seeds have no interval, but a range: from "
    "the lowest score to the highest."
)


class ScoreSummary(NamedTuple):
    """One score a seed, summarised over seeds.

    Attributes:
        mean: mean over seeds.
        std: sample standard deviation over seeds (n - 1); None for a single seed.
        iqm: interquartile mean, the mean of the middle half of the seeds.
        ci95: `mean_interval`; None for fewer than `LEAST_SEEDS`.
        iqm_ci95: `iqm_interval`, likewise.
    """

    mean: float
    std: float | None
    iqm: float
    ci95: tuple[float, float] | None
    iqm_ci95: tuple[float, float] | None


def summarize(scores: np.ndarray) -> ScoreSummary:
    """Returns the summary of one score a seed, `[num_seeds]`."""
    scores = np.asarray(scores, np.float64)
    std = float(scores.std(ddof=1)) if len(scores) > 1 else None
    mean, iqm = float(scores.mean()), float(interquartile_mean(scores))
    return ScoreSummary(mean, std, iqm, mean_interval(scores), iqm_interval(scores))


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the mean of the middle half along an axis (Agarwal et al. 2021, arXiv:2108.13264)."""
    return scipy.stats.trim_mean(scores, TRIMMED, axis=axis)


def mean_interval(scores: np.ndarray) -> Ends | None:
    """Returns Student's 95 % interval of the mean over seeds, the first axis.

    It covers the mean of normal scores in 95 % of all cases, whatever the number of seeds, and that
    of skewed scores less often (lognormal ones: 82 % at 5 seeds, where bootstraps have 71 %). Where
    all seeds agree it has no width, though other seeds might not agree.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS`.
    """
    return t_interval(scores.mean(axis=0), scores, 0)


def iqm_interval(scores: np.ndarray) -> Ends | None:
    """Returns a 95 % t interval of the interquartile mean over seeds, the first axis.

    It is the interval of a trimmed mean (Tukey and McLaughlin 1963): each score that the mean
    leaves out counts as the nearest one that it keeps, and h seeds in the middle leave h - 1
    degrees of freedom. Of 4 seeds that is a single one, and the interval three times too wide. So
    below `LEAST_WINSORIZED` seeds the deviation is that of the scores as they are.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS`.
    """
    trimmed = int(TRIMMED * len(scores)) if len(scores) >= LEAST_WINSORIZED else 0
    return t_interval(interquartile_mean(scores), scores, trimmed)


def t_interval(center: Numbers, scores: np.ndarray, trimmed: int) -> Ends | None:
    """Returns the 95 % t interval of a mean over seeds, the first axis, or of a trimmed mean.

    Args:
        center: the mean, `[...]`.
        scores: `[num_seeds, ...]`.
        trimmed: seeds at each end that are winsorised in the deviation.

    Returns:
        The lower and the upper end; None for fewer than `LEAST_SEEDS`.
    """
    if len(scores) < LEAST_SEEDS:
        return None
    ordered, middle = np.sort(scores, axis=0), len(scores) - 2 * trimmed
    winsorized = np.clip(scores, ordered[trimmed], ordered[-1 - trimmed])
    variance = len(scores) * winsorized.var(axis=0) / (middle * (middle - 1))
    margin = scipy.stats.t.ppf(0.975, middle - 1) * np.sqrt(variance)
    return center - margin, center + margin


class Spread(NamedTuple):
    """Where an interquartile mean might be.

    Attributes:
        name: `INTERVAL`; `RANGE`, from the lowest seed to the highest, where those are too few.
        low: `[...]`.
        high: `[...]`.
    """

    name: str
    low: Numbers
    high: Numbers


def iqm_spread(scores: np.ndarray) -> Spread:
    """Returns the interval of the interquartile mean over seeds, the first axis, or their range."""
    interval = iqm_interval(scores)
    if interval is None:
        return Spread(RANGE, scores.min(axis=0), scores.max(axis=0))
    return Spread(INTERVAL, *interval)


class Estimate(NamedTuple):
    """A statistic of scores on several tasks.

    Attributes:
        value: `[...]`.
        ci95: its 95 % interval over seeds, two arrays `[...]`; None where some task has fewer than
            `LEAST_SEEDS`.
    """

    value: np.ndarray
    ci95: Ends | None


def estimate(strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """Returns a statistic of several sets of seeds, with its t interval.

    The sets stay as they are; only their seeds might have been others. The error is the jackknife's
    inside each set, the degrees of freedom are Satterthwaite's. For a mean over tasks this is
    Welch's interval, for the mean of a single set Student's. It covers aggregates over four tasks
    and more in 90 to 97 % of all cases, where the stratified bootstrap of 3 to 5 seeds has 77 to
    91 %. It is too narrow for the pooled interquartile mean of two tasks that lie far apart, and
    for a share of seeds (a profile, a probability) where few of them differ. Where none does, it
    has no width.

    Args:
        strata: arrays `[num_seeds, ...]`, alike but for their numbers of seeds.
        statistic: `(*strata, axis) -> [...]`.
    """
    value = np.asarray(statistic(*strata, axis=0))
    if min(map(len, strata)) < LEAST_SEEDS:
        return Estimate(value, None)
    if statistic is pooled_iqm and len(strata) == 1:  # the one of `summarize`
        return Estimate(value, iqm_interval(strata[0]))
    parts = []  # of the variance, one a set
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

    Each task weighs the same: where numbers of seeds differ, seeds count as often as it takes.
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
    return _fraction(estimate(above, mean_of_means))


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Estimate:
    """Returns how probable it is that a seed of X scores higher than one of Y, the mean over tasks.

    On each task this is the Mann-Whitney U statistic over the number of pairs, in which a tie
    counts half (Agarwal et al. 2021, section 4.3).

    Args:
        x: scores of X on each task, `[num_seeds]` each.
        y: scores of Y on the same tasks, `[num_seeds]` each.
    """
    return _fraction(estimate([*x, *y], improvement))


def improvement(*strata: np.ndarray, axis: int = 0) -> Numbers:
    """Returns the probability of improvement; first all tasks of X are given, then those of Y."""
    last = [np.moveaxis(scores, axis, -1) for scores in strata]
    pairs = zip(last[: len(last) // 2], last[len(last) // 2 :], strict=True)
    signs = [np.sign(a[..., :, None] - b[..., None, :]).mean((-2, -1)) for a, b in pairs]
    return (1 + np.mean(signs, axis=0)) / 2


def _fraction(found: Estimate) -> Estimate:
    """Returns an estimate of what lies between 0 and 1, its interval cut to that."""
    return found._replace(ci95=found.ci95 and tuple(np.clip(found.ci95, 0, 1)))
