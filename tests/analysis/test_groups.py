import numpy as np
import pytest
from stored_runs import write_run

from trpo_jax.analysis.groups import (
    Group,
    join_runs,
    median_steps,
    read_evaluations,
    returns_at,
    steps_to,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import find_runs, finished_scores, read_run, read_summary

NAN = np.nan
GROUP = Group(
    runs=(),
    seeds=np.arange(3),
    env_steps=np.array([100, 200, 300, 400]),
    returns=np.array([[NAN, 1.0, 5.0, 9.0], [NAN, 6.0, 2.0, 7.0], [NAN, 1.0, 1.0, 1.0]]),
)


def joined(folder, window=20):
    runs = [read_run(path) for path in find_runs([folder])]
    return join_runs([(run.description["algorithm"], run) for run in runs], window)


def test_runs_of_one_task_and_label_become_one_group(tmp_path):
    write_run(tmp_path / "a", returns=[[1, 2], [3, 4]], seeds=[5, 6], max_kl=0.01)
    write_run(tmp_path / "b", returns=[[5, 6]], seeds=[9], max_kl=0.01)
    write_run(tmp_path / "c", algorithm="ppo", returns=[[7, 8]])
    write_run(tmp_path / "d", env="Acrobot-v1", returns=[[0, 0]])
    groups = joined(tmp_path)
    assert {task: list(by_label) for task, by_label in groups.items()} == {
        "CartPole-v1": ["trpo", "ppo"],
        "Acrobot-v1": ["trpo"],
    }
    group = groups["CartPole-v1"]["trpo"]
    np.testing.assert_array_equal(group.seeds, [5, 6, 9])
    np.testing.assert_array_equal(group.env_steps, [100, 200])
    np.testing.assert_array_equal(group.returns, [[1, 2], [3, 4], [5, 6]])
    assert [run.folder.name for run in group.runs] == ["a", "b"]


def test_the_running_return_is_averaged_over_the_window(tmp_path):
    write_run(tmp_path / "a", returns=[[1, 2, 6]])
    group = joined(tmp_path, window=40)["CartPole-v1"]["trpo"]
    np.testing.assert_array_equal(group.returns, [[NAN, 1.5, 4]])


def test_seeds_are_cut_to_the_shortest_run(tmp_path):
    write_run(tmp_path / "a", returns=[[1, 2, 3, 4]])
    write_run(tmp_path / "b", returns=[[5, 6]], seeds=[1], total_steps=400)
    group = joined(tmp_path)["CartPole-v1"]["trpo"]
    np.testing.assert_array_equal(group.env_steps, [100, 200])
    np.testing.assert_array_equal(group.returns, [[1, 2], [5, 6]])


def test_runs_with_different_settings_are_refused(tmp_path):
    write_run(tmp_path / "a", max_kl=0.01, gamma=0.9)
    write_run(tmp_path / "b", seeds=[1], max_kl=0.02, gamma=0.9, damping=0.1)
    with pytest.raises(ConfigurationError) as error:
        joined(tmp_path)
    message = str(error.value)
    assert f"{tmp_path}/a and {tmp_path}/b are both 'trpo' on CartPole-v1" in message
    assert "differ in max_kl (0.01 and 0.02), damping (None and 0.1). Give each" in message


def test_the_error_lists_only_the_first_of_many_differences(tmp_path):
    write_run(tmp_path / "a", **{f"field{n}": 0 for n in range(9)})
    write_run(tmp_path / "b", seeds=[1], **{f"field{n}": 1 for n in range(9)})
    with pytest.raises(ConfigurationError, match=r"field4 \(0 and 1\) and 4 more\."):
        joined(tmp_path)


def test_runs_with_different_total_steps_are_refused(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seeds=[1], total_steps=1000)
    with pytest.raises(ConfigurationError, match=r"total_steps \(300 and 1000\)"):
        joined(tmp_path)


def test_runs_that_share_a_seed_are_refused(tmp_path):
    write_run(tmp_path / "a", returns=[[1], [2]], seeds=[1, 2])
    write_run(tmp_path / "b", returns=[[1], [2]], seeds=[2, 3])
    with pytest.raises(ConfigurationError, match=r"/a and .*/b .* both have seed 2"):
        joined(tmp_path)


@pytest.mark.parametrize(
    ("env_steps", "by_hand"),
    [(400, [9, 7, 1]), (399, [5, 2, 1]), (200, [1, 6, 1]), (100, [NAN] * 3), (99, [NAN] * 3)],
)
def test_returns_at_a_step_are_those_of_the_last_update_before(env_steps, by_hand):
    np.testing.assert_array_equal(returns_at(GROUP, env_steps), by_hand)


def test_steps_to_a_return_are_nan_beyond_the_last_step():
    np.testing.assert_array_equal(steps_to(GROUP, 5.0, 400), [300, 200, NAN])
    np.testing.assert_array_equal(steps_to(GROUP, 5.0, 299), [NAN, 200, NAN])
    np.testing.assert_array_equal(steps_to(GROUP, 5.0, 1), [NAN] * 3)


@pytest.mark.parametrize(
    ("reached", "median"),
    [([1, 2, 9], 2), ([1, 2, NAN], 2), ([1, 2, 4, NAN], 3), ([1, 2, NAN, NAN], None)],
)
def test_a_seed_that_never_reached_the_return_counts_as_infinite(reached, median):
    assert median_steps(np.array(reached, float)) == median


def test_evaluations_come_in_the_order_of_the_seeds(tmp_path):
    write_run(tmp_path / "a", returns=[[1], [2]], evaluations=[10, 20])
    write_run(tmp_path / "b", returns=[[1]], seeds=[7], evaluations=[70])
    group = joined(tmp_path)["CartPole-v1"]["trpo"]
    np.testing.assert_array_equal(read_evaluations(group), [10, 20, 70])


def test_the_error_names_a_run_without_an_evaluation(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(ConfigurationError, match=r"/a has no evaluation"):
        read_evaluations(joined(tmp_path)["CartPole-v1"]["trpo"])


def test_a_run_with_a_seed_that_stopped_is_refused(tmp_path):
    write_run(tmp_path / "a", returns=[[1], [2]], evaluations=[10, None])
    with pytest.raises(ConfigurationError, match=r"/a has no score: it stopped"):
        read_evaluations(joined(tmp_path)["CartPole-v1"]["trpo"])
    np.testing.assert_array_equal(finished_scores(read_summary(tmp_path / "a")), [10])
