import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.records.files import LOCK, create_run_folder, locked, write_csv, write_json


def test_the_folder_of_a_run_must_be_empty_or_not_exist(tmp_path):
    assert create_run_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        create_run_folder(tmp_path / "a" / "b")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        create_run_folder(tmp_path / "a" / "b" / "notes.txt" / "c")


def test_writing_nan_to_json_is_an_error(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})


def test_if_a_write_fails_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StorageFailure, match=r"a\.json cannot be written: disk full"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_only_one_process_can_lock_a_folder_and_the_lock_is_removed(tmp_path):
    folder = tmp_path / "new"
    with locked(folder):
        assert create_run_folder(folder) == folder
        message = rf"process {os.getpid()} on \S+\) writes to .*new at this moment"
        with pytest.raises(ConfigurationError, match=message), locked(folder):
            pass
        (folder / "mine").touch()
    assert os.listdir(folder) == ["mine"]
    with locked(folder):  # again
        pass


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "new"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_folder_can_be_locked_after_its_process_was_killed(tmp_path):
    code = "import os, sys; from pathlib import Path; from trpo_jax.records.files import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert os.listdir(tmp_path) == [LOCK]
    with locked(tmp_path):
        create_run_folder(tmp_path)


def test_releasing_a_lock_keeps_the_lock_file_of_another_process(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    with locked(folder):
        folder.rename(moved)
        folder.mkdir()
        (folder / LOCK).write_text("of another")
    assert (folder / LOCK).read_text() == "of another"


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def acquire(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with locked(tmp_path):
        pass
    said = f"cannot be locked ([Errno {errno.ENOLCK}] No locks available). Make sure"
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="cannot be used"), locked(Path("/dev/null/x")):
        pass


def test_csv_cells_are_formatted_by_type(tmp_path):
    rows = [[1, 0.1, np.float32(0.1), (64, 8)], [None, float("nan"), True, "tanh"]]
    write_csv(tmp_path / "a.csv", ["a", "b", "c", "d"], rows)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["a,b,c,d", "1,0.1,0.1,64x8", ",,True,tanh"]
