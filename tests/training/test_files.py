import csv
import json
from pathlib import Path

import numpy as np
import pytest

from trpo_jax.algorithms.base import Actor
from trpo_jax.errors import ConfigurationError
from trpo_jax.training.files import MetricsFile, create_run_folder, write_json
from trpo_jax.training.loop import Chunk


def chunk(first_update, seconds, returns):
    returns = np.array(returns, np.float32)
    metrics = {
        "kl": np.full(returns.shape, 0.01, np.float32),
        "episodic_return": returns,
        "episode_length": returns,
        "num_episodes": np.float32(~np.isnan(returns)),
    }
    return Chunk(first_update, metrics, Actor(None, None), seconds)


def test_metrics_are_tidy_and_on_disk_after_every_chunk(tmp_path):
    path = tmp_path / "metrics.csv"
    with MetricsFile(path, (4, 5), 100) as metrics:
        metrics.write(chunk(1, 2.0, [[1.5, np.nan], [3.0, 4.0]]))
        rows = list(csv.DictReader(path.open()))
        assert len(rows) == 4
        metrics.write(chunk(3, 6.0, [[1.0, 2.0], [3.0, 4.0]]))
    rows = list(csv.DictReader(path.open()))
    assert [row["seed"] for row in rows] == ["4", "5"] * 4
    assert [row["update"] for row in rows[::2]] == ["1", "2", "3", "4"]
    assert [row["env_steps"] for row in rows[::2]] == ["100", "200", "300", "400"]
    assert [float(row["seconds"]) for row in rows[::2]] == [1.0, 2.0, 4.0, 6.0]
    assert [row["episodic_return"] for row in rows[:4]] == ["1.5", "3", "", "4"]


def test_a_metrics_file_is_never_overwritten(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        MetricsFile(path, (0,), 1)
    assert path.read_text() == "mine"


def test_run_folders_are_new_or_empty(tmp_path):
    assert create_run_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        create_run_folder(tmp_path / "a" / "b")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        create_run_folder(tmp_path / "a" / "b" / "notes.txt" / "c")


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
