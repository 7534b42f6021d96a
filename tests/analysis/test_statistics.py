import numpy as np
import pytest
import scipy

from trpo_jax.analysis.statistics import (
    AGGREGATES,
    INTERVAL,
    LEAST_WINSORIZED,
    RANGE,
    estimate,
    interquartile_mean,
    iqm_interval,
    iqm_spread,
    mean_interval,
    mean_of_means,
    performance_profile,
    pooled_iqm,
    probability_of_improvement,
    summarize,
)

FIVE, THREE = np.array([0.0, 0.2, 0.4, 0.6, 0.8]), np.array([0.5, 1.0, 1.5])


def test_a_summary_matches_numpy_and_scipy():
    scores = np.array([1.0, 2.0, 3.0, 100.0])
    summary = summarize(scores)
    assert summary.mean == 26.5
    assert summary.iqm == 2.5
    np.testing.assert_allclose(summary.std, np.std(scores, ddof=1))
    error = scipy.stats.sem(scores)
    np.testing.assert_allclose(summary.ci95, scipy.stats.t.interval(0.95, 3, 26.5, error))
    np.testing.assert_allclose(summary.iqm_ci95, scipy.stats.t.interval(0.95, 3, 2.5, error))


def test_equal_scores_have_an_interval_of_width_0():
    assert summarize(np.full(5, 500.0)).ci95 == (500.0, 500.0)
    assert estimate([np.full(4, 0.25), np.full(3, 0.75)], mean_of_means).ci95 == (0.5, 0.5)


def test_fewer_than_three_seeds_have_no_interval():
    assert summarize(np.array([7.0])) == (7.0, None, 7.0, None, None)
    assert summarize(np.array([7.0, 9.0])) == (8.0, 2**0.5, 8.0, None, None)
    assert summarize(np.array([7.0, 9.0, 8.0])).ci95 is not None


def test_the_spread_of_fewer_than_three_seeds_is_their_range():
    scores = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 4.0]])
    name, low, high = iqm_spread(scores[:2])
    assert (name, low.tolist(), high.tolist()) == (RANGE, [1, 3], [2, 5])
    name, *ends = iqm_spread(scores)
    assert name == INTERVAL
    np.testing.assert_array_equal(ends, iqm_interval(scores))


# The last number is the least coverage. The mean of skewed scores is harder to cover.
COVERED = [
    (np.mean, mean_interval, 4, "normal", 0.93),
    (np.mean, mean_interval, 4, "exponential", 0.86),
    (np.mean, mean_interval, 10, "normal", 0.93),
    (np.mean, mean_interval, 10, "exponential", 0.88),
    (interquartile_mean, iqm_interval, 4, "normal", 0.92),
    (interquartile_mean, iqm_interval, 4, "exponential", 0.91),
    (interquartile_mean, iqm_interval, 10, "normal", 0.92),
    (interquartile_mean, iqm_interval, 10, "exponential", 0.91),
]


def coverage(statistic, interval, count, distribution):
    rng = np.random.default_rng(0)
    draw = getattr(rng, distribution)
    truth = statistic(draw(size=400_000))
    low, high = interval(draw(size=(count, 4000)))
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(("statistic", "interval", "count", "distribution", "least"), COVERED)
def test_intervals_cover_as_often_as_they_should(statistic, interval, count, distribution, least):
    assert coverage(statistic, interval, count, distribution) > least


@pytest.mark.parametrize(("statistic", "_", "count", "distribution", "least"), COVERED[:6])
def test_a_percentile_bootstrap_would_fail_that_test(statistic, _, count, distribution, least):
    def bootstrap(scores):
        seeds = np.random.default_rng(1).integers(count, size=(500, count))
        return np.quantile([statistic(scores[x], axis=0) for x in seeds], (0.025, 0.975), axis=0)

    assert coverage(statistic, bootstrap, count, distribution) < least - 0.015


def test_the_interval_of_the_interquartile_mean_is_the_trimmed_mean_interval():
    scores = np.append(np.arange(11.0), 1e6)  # a failed seed does not widen it
    assert len(scores) >= LEAST_WINSORIZED
    deviation = np.array([3.0] * 4 + [4, 5, 6, 7] + [8.0] * 4).std(ddof=1)
    margin = scipy.stats.t.ppf(0.975, 5) * deviation * (11 / 6 / 5) ** 0.5
    np.testing.assert_allclose(iqm_interval(scores), [5.5 - margin, 5.5 + margin])


@pytest.mark.parametrize(("scores", "expected"), [([0, 1, 2, 3, 4, 5, 6, 100], 3.5), ([5], 5)])
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == expected


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("mean", 0.7),  # the means are 0.4 and 1.0
        ("median", 0.7),
        ("optimality gap", ((1 + 0.8 + 0.6 + 0.4 + 0.2) / 5 + 0.5 / 3) / 2),
    ],
)
def test_aggregates_match_numbers_by_hand(name, by_hand):
    np.testing.assert_allclose(estimate([FIVE, THREE], AGGREGATES[name]).value, by_hand)


def test_the_median_over_tasks_is_a_median():
    tasks = [np.full(2, 0.1), np.full(2, 0.2), np.full(2, 0.9)]
    np.testing.assert_allclose(estimate(tasks, AGGREGATES["median"]).value, 0.2)


def test_each_task_has_the_same_weight_in_the_pooled_interquartile_mean():
    weighted = np.concatenate([np.repeat(FIVE, 3), np.repeat(THREE, 5)])
    np.testing.assert_allclose(pooled_iqm(FIVE, THREE), scipy.stats.trim_mean(weighted, 0.25))
    equal = np.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(pooled_iqm(*equal), 3.5)


def test_the_interval_of_a_mean_over_tasks_is_welchs_interval():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4), rng.normal(3, 2, size=7)
    welch = scipy.stats.ttest_ind(x, -y, equal_var=False).confidence_interval()
    interval = estimate([x, y], mean_of_means).ci95
    np.testing.assert_allclose(interval, np.array([welch.low, welch.high]) / 2)


def test_the_interval_of_a_single_task_is_that_of_its_summary():
    scores = np.random.default_rng(0).normal(size=5)
    summary = summarize(scores)
    np.testing.assert_allclose(estimate([scores], mean_of_means).ci95, summary.ci95)
    assert estimate([scores], pooled_iqm).ci95 == summary.iqm_ci95


@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_of_aggregates_cover_as_often_as_they_should(name):
    rng = np.random.default_rng(0)
    draw = lambda *shape: [rng.normal(0.2 * k, 0.4 / 2**k, size=shape) for k in range(4)]
    truth = AGGREGATES[name](*draw(400_000))
    low, high = estimate(draw(4, 2000), AGGREGATES[name]).ci95
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.98


def test_there_is_no_interval_if_one_task_has_few_seeds():
    assert estimate([FIVE, np.array([1.0, 2.0])], mean_of_means).ci95 is None


def test_a_performance_profile_matches_numbers_by_hand():
    profile = performance_profile([FIVE, THREE], np.array([-1.0, 0.4, 0.5, 2.0]))
    np.testing.assert_allclose(profile.value, [1, (2 / 5 + 1) / 2, (2 / 5 + 2 / 3) / 2, 0])
    low, high = profile.ci95
    assert low[0] == high[0] == 1
    assert low[3] == high[3] == 0
    assert low[1] < profile.value[1] < high[1]


def test_the_probability_of_improvement_is_the_mann_whitney_statistic():
    x = [np.array([1.0, 2.0, 2.0]), FIVE]
    y = [np.array([0.0, 2.0, 2.0]), np.array([0.1, 0.2, 0.9])]
    u = [
        scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
        for a, b in zip(x, y, strict=True)
    ]
    better = probability_of_improvement(x, y)
    np.testing.assert_allclose(better.value, np.mean(u))
    np.testing.assert_allclose(better.value, ((3 + 4 * 0.5) / 9 + (4 + 3.5 + 0) / 15) / 2)
    np.testing.assert_allclose(probability_of_improvement(y, x).value, 1 - better.value)
    low, high = better.ci95
    assert 0 <= low < better.value < high <= 1


@pytest.mark.parametrize("ahead", [True, False])
def test_the_probability_is_1_if_all_seeds_are_better_and_0_if_none_is(ahead):
    tasks = [FIVE, FIVE + 10] if ahead else [FIVE + 10, FIVE]
    assert probability_of_improvement(tasks[1:], tasks[:1]) == (ahead, (ahead, ahead))


# uv run --with rliable --with "pandas<3" pytest tests/analysis/test_statistics.py
def test_estimates_agree_with_rliable():
    rliable = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    x, y = rng.gamma(2.0, 0.3, (10, 4)), rng.gamma(2.0, 0.4, (10, 4))

    theirs = [metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean]
    theirs = [*theirs, metrics.aggregate_optimality_gap]
    for aggregate, of_theirs in zip(AGGREGATES.values(), theirs, strict=True):
        np.testing.assert_allclose(estimate(list(x.T), aggregate).value, of_theirs(x))

    levels = np.linspace(0, 2, 9)
    values, _ = rliable.create_performance_profile({"x": x}, levels, reps=1)
    np.testing.assert_allclose(performance_profile(list(x.T), levels).value, values["x"])
    better = probability_of_improvement(list(x.T), list(y.T))
    np.testing.assert_allclose(better.value, metrics.probability_of_improvement(x, y))
