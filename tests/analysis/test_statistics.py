import numpy as np
import pytest
import scipy

from trpo_jax.analysis.statistics import (
    AGGREGATES,
    estimate,
    interquartile_mean,
    mean_of_means,
    performance_profile,
    pooled_iqm,
    probability_of_improvement,
    stratified_interval,
    summarize,
)

FIVE, THREE = np.array([0.0, 0.2, 0.4, 0.6, 0.8]), np.array([0.5, 1.0, 1.5])


def test_summary_of_scores():
    scores = np.array([1.0, 2.0, 3.0, 100.0])
    summary = summarize(scores)
    assert summary.mean == 26.5
    assert summary.iqm == 2.5
    np.testing.assert_allclose(summary.std, np.std(scores, ddof=1))
    low, high = summary.ci95
    assert 1 <= low < 26.5 < high <= 100
    low, high = summary.iqm_ci95
    assert 1 <= low < 2.5 < high <= 100
    assert summarize(scores) == summary  # seeded


def test_seeds_that_agree_have_an_interval_of_no_width_and_one_seed_has_none():
    assert summarize(np.full(5, 500.0)).ci95 == (500.0, 500.0)
    single = summarize(np.array([7.0]))
    assert single == (7.0, None, 7.0, None, None)


@pytest.mark.parametrize(("scores", "expected"), [([0, 1, 2, 3, 4, 5, 6, 100], 3.5), ([5], 5)])
def test_interquartile_mean(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == expected


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("mean", 0.7),  # of 0.4 and 1.0
        ("median", 0.7),
        ("optimality gap", ((1 + 0.8 + 0.6 + 0.4 + 0.2) / 5 + 0.5 / 3) / 2),
    ],
)
def test_aggregates(name, by_hand):
    np.testing.assert_allclose(estimate([FIVE, THREE], AGGREGATES[name]).value, by_hand)


def test_the_median_over_tasks_is_not_their_mean():
    tasks = [np.full(2, 0.1), np.full(2, 0.2), np.full(2, 0.9)]
    np.testing.assert_allclose(estimate(tasks, AGGREGATES["median"]).value, 0.2)


def test_each_task_weighs_the_same_in_a_pooled_interquartile_mean():
    weighted = np.concatenate([np.repeat(FIVE, 3), np.repeat(THREE, 5)])
    np.testing.assert_allclose(pooled_iqm(FIVE, THREE), scipy.stats.trim_mean(weighted, 0.25))
    equal = np.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(pooled_iqm(*equal), 3.5)


def test_seeds_are_resampled_inside_their_task():
    # The spread between tasks would be in the interval otherwise.
    low, high = stratified_interval([np.full(4, 1.0), np.full(3, 9.0)], mean_of_means)
    assert low == high == 5


def test_the_interval_of_a_mean_over_tasks_is_that_of_theory():
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=40), rng.normal(size=60)]
    variance = sum(scores.var() / len(scores) for scores in tasks) / 4
    value, (low, high) = estimate(tasks, mean_of_means)
    np.testing.assert_allclose(
        [low - value, high - value], 1.96 * variance**0.5 * np.array([-1, 1]), rtol=0.1
    )


def test_a_task_with_a_single_seed_leaves_no_interval():
    assert estimate([FIVE, np.array([1.0])], mean_of_means).ci95 is None


def test_a_performance_profile():
    profile = performance_profile([FIVE, THREE], np.array([-1.0, 0.4, 0.5, 2.0]))
    np.testing.assert_allclose(profile.value, [1, (2 / 5 + 1) / 2, (2 / 5 + 2 / 3) / 2, 0])
    low, high = profile.ci95
    assert low[0] == high[0] == 1
    assert low[3] == high[3] == 0
    assert low[1] < profile.value[1] < high[1]


def test_the_probability_of_improvement_is_that_of_mann_and_whitney():
    x = [np.array([1.0, 2.0, 2.0]), FIVE]
    y = [np.array([0.0, 2.0]), np.array([0.1, 0.2, 0.9])]
    u = [
        scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
        for a, b in zip(x, y, strict=True)
    ]
    better = probability_of_improvement(x, y)
    np.testing.assert_allclose(better.value, np.mean(u))
    np.testing.assert_allclose(better.value, ((3 + 2 * 0.5) / 6 + (4 + 3.5 + 0) / 15) / 2)
    np.testing.assert_allclose(probability_of_improvement(y, x).value, 1 - better.value)
    low, high = better.ci95
    assert 0 <= low < better.value < high <= 1


@pytest.mark.parametrize("ahead", [True, False])
def test_seeds_that_are_all_ahead_improve_for_sure(ahead):
    tasks = [FIVE, FIVE + 10] if ahead else [FIVE + 10, FIVE]
    assert probability_of_improvement(tasks[1:], tasks[:1]) == (ahead, (ahead, ahead))


# uv run --with rliable --with "pandas<3" pytest tests/training/test_statistics.py
def test_agreement_with_rliable():
    rliable = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    x, y = rng.gamma(2.0, 0.3, (10, 4)), rng.gamma(2.0, 0.4, (10, 4))
    np.random.seed(0)  # it ignores the state that it can be given

    theirs = [metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean]
    theirs = [*theirs, metrics.aggregate_optimality_gap]
    together = lambda scores: np.array([aggregate(scores) for aggregate in theirs])
    values, intervals = rliable.get_interval_estimates({"x": x}, together, reps=2000)
    ours = [estimate(list(x.T), aggregate) for aggregate in AGGREGATES.values()]
    np.testing.assert_allclose([mine.value for mine in ours], values["x"])
    np.testing.assert_allclose(
        np.transpose([mine.ci95 for mine in ours]), intervals["x"], atol=0.02
    )

    levels = np.linspace(0, 2, 9)
    values, intervals = rliable.create_performance_profile({"x": x}, levels)
    profile = performance_profile(list(x.T), levels)
    np.testing.assert_allclose(profile.value, values["x"])
    np.testing.assert_allclose(profile.ci95, intervals["x"], atol=0.03)

    improvement = lambda a, b: np.array([metrics.probability_of_improvement(a, b)])
    values, intervals = rliable.get_interval_estimates({"x": [x, y]}, improvement, reps=2000)
    better = probability_of_improvement(list(x.T), list(y.T))
    np.testing.assert_allclose(better.value, values["x"][0])
    np.testing.assert_allclose(better.ci95, intervals["x"][:, 0], atol=0.02)
