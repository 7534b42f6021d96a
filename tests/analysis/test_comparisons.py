import numpy as np
import pytest

from trpo_jax.analysis.comparisons import (
    Task,
    common_steps,
    normalized_scores,
    over_tasks,
    return_range,
    training_scores,
)
from trpo_jax.analysis.groups import Group
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import StoredRun

NAN = np.nan


def group(env_steps, *returns):
    runs = (StoredRun("folder", {}, {}),)
    return Group(runs, np.arange(len(returns)), np.array(env_steps), np.array(returns, float))


def task(low, high, **scores):
    arrays = {label: np.array(values, float) for label, values in scores.items()}
    return Task(dict.fromkeys(scores), 0, arrays, low, high, 0.0, ())


GROUPS = {"small": group([100, 200, 300], [1, 2, 9]), "large": group([250], [4.0], [6.0])}


def test_labels_are_compared_at_the_last_step_that_all_reached():
    assert common_steps(GROUPS) == 250
    scores = training_scores(GROUPS, 250, window=20)
    np.testing.assert_array_equal(scores["small"], [2])
    np.testing.assert_array_equal(scores["large"], [4, 6])


@pytest.mark.parametrize("late", [group([100], [NAN]), group([1000], [5.0])])
def test_the_error_names_a_label_without_a_score(late):
    with pytest.raises(ConfigurationError, match=r"'late' \(folder\) have not ended 7 episodes"):
        training_scores(GROUPS | {"late": late}, 250, window=7)


def test_the_range_covers_scores_and_returns_within_the_steps():
    scores = {"small": np.array([2.0]), "large": np.array([4.0, 6.5])}
    assert return_range(GROUPS, scores, 250) == (1, 6.5)


def test_low_and_high_become_scores_of_0_and_1():
    normalized = normalized_scores(task(-500, -100, a=[-500, -100], b=[-300, 300]))
    np.testing.assert_allclose(normalized["a"], [0, 1])
    np.testing.assert_allclose(normalized["b"], [0.5, 2])


def test_all_scores_are_0_if_low_and_high_are_equal():
    np.testing.assert_array_equal(normalized_scores(task(0, 0, a=[0, 0]))["a"], [0, 0])


def test_the_comparison_over_tasks_matches_numbers_by_hand():
    tasks = {
        "T": task(0, 10, a=[1, 3], b=[4, 4]),
        "U": task(0, 100, a=[50, 50], b=[60, 40]),
        "V": task(0, 1, a=[1, 1]),
    }
    overall = over_tasks(tasks, ["a", "b"], baseline="a")
    assert overall.tasks == ["T", "U"]
    np.testing.assert_allclose(overall.aggregates["mean"]["a"].value, (0.2 + 0.5) / 2)
    np.testing.assert_allclose(overall.aggregates["optimality gap"]["b"].value, 1 - 0.45)
    assert list(overall.improvements) == ["b"]
    np.testing.assert_allclose(overall.improvements["b"].value, (1 + 0.5) / 2)
    for profile in overall.profiles.values():
        assert (profile.value[0], profile.value[-1]) == (1, 0)
    assert overall.levels[0] < 0.1 < 0.6 < overall.levels[-1]


def test_labels_without_a_common_task_have_no_comparison_over_tasks():
    tasks = {"T": task(0, 1, a=[1]), "U": task(0, 1, b=[1])}
    assert over_tasks(tasks, ["a", "b"], baseline="a") is None
