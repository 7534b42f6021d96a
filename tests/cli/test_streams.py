"""Output that nobody reads: `train.py | head -1`, a closed terminal, a full disk behind `>`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trpo_jax.cli import diagnose, train
from trpo_jax.cli.streams import Lasting, outlive_readers

TINY = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "1"]
TINY += ["--num-seeds", "2", "--total-steps", "768", "--evaluation-episodes", "1"]


@pytest.fixture
def unread(monkeypatch):
    """Streams for a process whose output nobody reads."""
    for name in ("stdout", "stderr"):
        read, write = os.pipe()
        os.close(read)
        monkeypatch.setattr(sys, name, os.fdopen(write, "w"))
    outlive_readers()


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_finishes(unread, tmp_path):
    folder = tmp_path / "run"
    assert train.main([*TINY, "--out", str(folder)]) == 0
    assert (folder / "summary.json").is_file()
    assert diagnose.main([str(folder)]) == 0
    assert (folder / "diagnosis.pdf").is_file()
    with pytest.raises(SystemExit, match="2"):
        train.main(["--resume", str(tmp_path / "absent")])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_a_stream_does_not_fail():
    stream = Lasting(open("/dev/full", "w"))  # noqa: SIM115
    for _ in range(3):
        print("x" * 10_000, file=stream, flush=True)
    stream.close()
    with pytest.raises(OSError), open("/dev/full", "w") as plain:
        print("x", file=plain, flush=True)


def test_a_pipe_to_head_ends_quietly():
    command = f"{sys.executable} -m trpo_jax --help | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "u", "")
