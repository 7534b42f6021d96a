import numpy as np
import pytest

from trpo_jax.training.statistics import interquartile_mean, summarize


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
