import json
from pathlib import Path

import numpy as np
import pytest

from trpo_jax.errors import ConfigurationError
from trpo_jax.records.files import create_run_folder, write_csv, write_json


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


def test_cells_of_a_table(tmp_path):
    rows = [[1, 0.1, np.float32(0.1), (64, 8)], [None, float("nan"), True, "tanh"]]
    write_csv(tmp_path / "a.csv", ["a", "b", "c", "d"], rows)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["a,b,c,d", "1,0.1,0.1,64x8", ",,True,tanh"]
