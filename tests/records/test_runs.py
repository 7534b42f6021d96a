import json

import numpy as np
import pytest

from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import find_runs, read_metrics, read_run

NAN = np.nan
TABLE = "seed,update,episodic_return\n7,1,1.5\n8,1,\n7,2,2.5\n8,2,3.5\n"


def write_run(folder, metrics=TABLE):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"env": "CartPole-v1"}))
    (folder / "metrics.csv").write_text(metrics)


def test_metrics_are_read_by_seed_and_update(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("seed,update,episodic_return\n7,1,1.5\n8,1,\n7,2,2.5\n8,2,3.5\n7,3,\n8,3,4\n")
    metrics = read_metrics(path)
    np.testing.assert_array_equal(metrics["seed"], [[7, 7, 7], [8, 8, 8]])
    np.testing.assert_array_equal(metrics["update"], [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(metrics["episodic_return"], [[1.5, 2.5, NAN], [NAN, 3.5, 4]])


@pytest.mark.parametrize("torn", ["7,3,9\n", "7,3,9\n8,3,1", "7,3"])
def test_an_incomplete_last_update_is_left_out(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    path.write_text(TABLE + torn)
    np.testing.assert_array_equal(read_metrics(path)["episodic_return"], [[1.5, 2.5], [NAN, 3.5]])


def test_a_run_is_read_with_its_description(tmp_path):
    write_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.description["env"] == "CartPole-v1"
    np.testing.assert_array_equal(run.metrics["seed"], [[7, 7], [8, 8]])


def test_runs_are_found_at_any_depth_and_listed_once(tmp_path):
    write_run(tmp_path / "b")
    write_run(tmp_path / "a" / "deep")
    (tmp_path / "a" / "metrics.csv").write_text("of something else")
    assert find_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "a" / "deep", tmp_path / "b"]


def test_the_error_names_a_folder_without_runs(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no folder .*absent"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(ConfigurationError, match=r"holds no run: a run's folder has"):
        find_runs([tmp_path])
    with pytest.raises(ConfigurationError, match=r"not the folder of a run: it has no config.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("metrics", ["", "seed,update\n", "seed,update\n7,1"])
def test_a_run_without_an_update_says_so(tmp_path, metrics):
    write_run(tmp_path / "run", metrics)
    with pytest.raises(ConfigurationError, match="has not finished an update yet"):
        read_run(tmp_path / "run")


def test_damaged_files_are_named(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_run(tmp_path / "run")
