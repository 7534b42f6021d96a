"""Runs of experiments/train.py that are stopped in several ways and resumed."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refusal

from trpo_jax.cli import train
from trpo_jax.records.checkpoints import DIGEST, digest
from trpo_jax.records.runs import read_rows

pytestmark = [
    pytest.mark.xdist_group("resume"),  # one worker, so that the run is shared
    pytest.mark.usefixtures("shared_programs"),
]

ROOT = Path(__file__).parents[2]
SMALL = ["--num-envs", "2", "--num-steps", "64", "--hidden-sizes", "8", "--critic-epochs", "2"]
FLAGS = ["--num-seeds", "2", "--total-steps", "768", "--evaluation-episodes", "2", *SMALL]
FLAGS += ["--checkpoint-every", "2", "--eval-every", "2", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of six updates."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*FLAGS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run, as if it had been killed during its final evaluation."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    return folder


def numbers(folder, name="metrics.csv"):
    columns, rows = read_rows(folder / name)
    kept = [i for i, column in enumerate(columns) if not column.endswith("seconds")]
    return [[row[i] for i in kept] for row in rows]


def assert_same(folder, finished):
    assert numbers(folder) == numbers(finished)
    assert numbers(folder, "evaluations.csv") == numbers(finished, "evaluations.csv")
    assert (folder / "policy.msgpack").read_bytes() == (finished / "policy.msgpack").read_bytes()
    scores = (json.loads((x / "summary.json").read_text()) for x in (folder, finished))
    assert len({str(x["evaluation"]["per_seed"]) for x in scores}) == 1


@pytest.mark.slow
def test_a_run_keeps_checkpoints_and_evaluations(finished):
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"2", "4", "6"}
    rows = numbers(finished, "evaluations.csv")
    assert [(row[0], row[1]) for row in rows] == [(s, u) for u in "0246" for s in "01"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["later_evaluations_seconds"] > 0
    assert summary["checkpoints_seconds"] > 0


def test_a_run_whose_latest_checkpoint_is_damaged_goes_on_from_the_one_before(
    stopped, finished, capsys
):
    for path in (stopped / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    assert train.main(["--resume", str(stopped)]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: The checkpoint ")
    assert "6 is damaged" in error
    assert_same(stopped, finished)


def test_missing_rows_of_metrics_are_computed_again_from_an_earlier_checkpoint(
    stopped, finished, capsys
):
    lines = (stopped / "metrics.csv").read_bytes().splitlines(keepends=True)
    (stopped / "metrics.csv").write_bytes(b"".join(lines[: 1 + 2 * 5]) + b"0,6,7")
    assert train.main(["--resume", str(stopped)]) == 0
    assert "ends before update 6" in capsys.readouterr().err
    assert_same(stopped, finished)


def test_a_run_without_a_checkpoint_starts_again(stopped, finished):
    shutil.rmtree(stopped / "checkpoints")
    assert train.main(["--resume", str(stopped)]) == 0
    assert_same(stopped, finished)


def test_a_resumed_run_refuses_each_changed_setting(stopped, capsys):
    error = refusal(
        train.main, ["--resume", str(stopped), "--max-kl", "0.5", "--num-envs", "4"], capsys
    )
    assert "num_envs = 2, not 4, max_kl = 0.01, not 0.5." in error
    assert "trpo-jax train --num-seeds 2" in error


def test_a_resumed_run_refuses_another_version(stopped, capsys):
    description = json.loads((stopped / "config.json").read_text())
    description["versions"]["jax"] = "0.4.1"
    (stopped / "config.json").write_text(json.dumps(description))
    assert "jax = '0.4.1', not '" in refusal(train.main, ["--resume", str(stopped)], capsys)


def test_another_patch_of_a_version_gives_a_warning(stopped, finished, capsys):
    for path in (stopped / "config.json", *stopped.glob("checkpoints/*/about/metadata")):
        stored = json.loads(path.read_text())
        versions = stored.get("description", stored)["versions"]
        versions["python"] = f"{versions['python']}.1"
        versions["numpy"] = ".".join([*versions["numpy"].split(".")[:2], "999"])
        path.write_text(json.dumps(stored))
    for path in stopped.glob("checkpoints/*"):
        (path / DIGEST).write_text(digest(path))
    assert train.main(["--resume", str(stopped)]) == 0
    error = capsys.readouterr().err
    assert re.match(r"warning: The run continues with python \S+, not \S+, numpy \S+, not ", error)
    assert "numbers may differ in rounding" in error
    assert error.count("\n") == 1
    assert_same(stopped, finished)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(stopped, tmp_path, capsys):
    other = tmp_path / "other"
    assert train.main([*FLAGS, "--gamma", "0.5", "--out", str(other)]) == 0
    (other / "summary.json").unlink()
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(stopped / "checkpoints", other / "checkpoints")
    error = refusal(train.main, ["--resume", str(other)], capsys)
    assert "The checkpoint of update 6" in error
    assert "gamma = 0.99, not 0.5" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--resume", "{finished}"], "is finished: its 6 updates are done"),
        (["--resume", "{stopped}/no"], "There is no run in"),
        (["--resume", "{stopped}", "--out", "{stopped}/2"], "name two folders"),
        (["--eval-every", "-1"], "eval_every = -1 must be at least 0"),
        (["--keep-checkpoints", "0"], "keep_checkpoints = 0 must be at least 1"),
        (["--log", "tensorbord"], "Unknown log 'tensorbord'. Did you mean tensorboard?"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph(argv, message, finished, stopped, capsys):
    argv = [word.format(finished=finished, stopped=stopped) for word in argv]
    assert message in refusal(train.main, argv, capsys)


@pytest.mark.slow
def test_a_full_disk_gives_an_error_and_keeps_earlier_checkpoints(stopped, finished):
    """A limit on the size of files acts like a full disk: metrics.csv cannot grow."""
    shutil.rmtree(stopped / "checkpoints" / "6")
    size = (stopped / "metrics.csv").stat().st_size
    command = [sys.executable, "experiments/train.py", "--resume", str(stopped)]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 10, size - 10))

    # The limit would also cut shared files: Python does not notice that a .pyc file is cut.
    unshared = {"PYTHONDONTWRITEBYTECODE": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    env = os.environ | unshared
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(command, env=env, preexec_fn=limit, **options)
    assert result.returncode == 1, result.stderr
    assert "metrics.csv cannot be written: File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert "holds the run up to update 5 of 6" in result.stderr
    assert "To continue the run after update 4: " in result.stderr
    assert f" --resume {stopped}\n" in result.stderr
    assert train.main(["--resume", str(stopped)]) == 0
    assert_same(stopped, finished)


@pytest.mark.heavy
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
    """Kills a run three times. `experiments/benchmarks/kill_test.py` does it many times."""
    fast = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    fast["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "experiments/benchmarks/kill_test.py", "--kills", "3", *FLAGS]
    command += ["--total-steps", "12_800", "--checkpoint-every", "1", "--out", str(tmp_path / "k")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | fast, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kill  3 of 3" in result.stdout
    assert "Nothing is lost, and nothing is different" in result.stdout
