import numpy as np
import pytest

from trpo_jax.analysis.costs import describe_costs, limit_text
from trpo_jax.records.limits import cost_limits
from trpo_jax.records.runs import cost_columns

METRICS = {"update": np.array([[1, 2, 3]] * 2)}


def test_columns_of_costs_are_found_by_name():
    names = ["episodic_return", "episodic_cost_b", "episodic_cost_a", "cost_excess", "kl"]
    assert cost_columns(names) == {"b": "episodic_cost_b", "a": "episodic_cost_a"}
    assert cost_columns(names, "cost_excess") == {"cost": "cost_excess"}
    assert cost_columns(["episodic_costs"]) == {}
    assert list(cost_columns(names, order=("a", "b", "c"))) == ["a", "b"]


def test_there_is_one_limit_for_all_costs_or_one_for_each():
    limits = lambda limit, count, **metrics: cost_limits(
        {"cost_limit": limit}, METRICS | metrics, count
    )
    np.testing.assert_array_equal(limits(5.0, 2), [[5] * 3] * 2)
    np.testing.assert_array_equal(limits([5.0, 2.0], 2), [[5] * 3, [2] * 3])
    scheduled = np.array([[np.nan] * 3, [9, 7, 5]])
    np.testing.assert_array_equal(limits(5.0, 2, cost_limit=scheduled), [[9, 7, 5]] * 2)
    assert limits([5.0, 2.0], 3) is None
    assert cost_limits({}, METRICS, 1) is None


@pytest.mark.parametrize(
    ("limit", "words"), [(4.0, "keep the limit of 4"), (3.5, "exceed the limit of 3.5")]
)
def test_a_limit_is_kept_if_the_mean_cost_is_at_most_the_limit(limit, words):
    per_seed = np.array([[3.0], [5.0], [np.nan]])
    described = describe_costs(["toll"], per_seed, np.array([limit]))["toll"]
    assert described["per_seed"] == [3, 5, None]
    assert described["mean"] == 4
    text = limit_text("toll", described)
    assert words in text
    assert text.endswith("4.00 on average, 1 of 2 seeds above it.")
