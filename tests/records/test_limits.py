import numpy as np
import pytest

from trpo_jax.records.limits import best_of, cost_excess, last_limits, stored_limits

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("scores", "excess", "best"),
    [
        ([1, 3, 2], [0, 0, 0], 1),
        ([1, 3, 2], [0, 0.1, 0], 2),  # one is above its limit
        ([1, 9, 9], [3, 2, 4], 1),  # all are above
        ([1, 2, 2], [3, 3, 3], 1),  # all are above by the same amount
        ([2, 2], [0, 0], 0),
        ([NAN, -INF, -5, 7], [0, 0, 9, NAN], 2),  # a policy without a score comes last
        ([NAN, NAN], [0, 0], 0),
    ],
)
def test_the_best_policy_keeps_its_limits_and_then_has_the_highest_return(scores, excess, best):
    assert best_of(np.array(scores, np.float32), np.array(excess, float)) == best


def test_the_excess_is_summed_over_costs():
    costs = np.array([[1.0, 9.0], [6.0, 8.0], [4.0, 1.0]])
    np.testing.assert_array_equal(cost_excess(costs, np.array([4.0, 7.0])), [2, 3, 0])
    np.testing.assert_array_equal(cost_excess(costs, None), [0, 0, 0])
    assert cost_excess(costs[0], np.array([4.0, 7.0])) == 2


def test_policies_are_judged_by_the_last_limit_of_a_schedule(tmp_path):
    assert last_limits({}, {}, 1) is None
    np.testing.assert_array_equal(last_limits({"cost_limit": 5.0}, {}, 2), [5, 5])
    (tmp_path / "config.json").write_text('{"seeds": [0], "config": {"cost_limit": 9.0}}')
    np.testing.assert_array_equal(stored_limits(tmp_path, 1), [9])
    (tmp_path / "metrics.csv").write_text("seed,update,cost_limit\n0,1,9\n0,2,3\n")
    np.testing.assert_array_equal(stored_limits(tmp_path, 1), [3])
