"""A file that cannot be written gives an error that names it, and leaves no half of a file."""

import errno
import shutil
from pathlib import Path

import pytest

from trpo_jax.cli import compare, diagnose, evaluate, plot, render, sweep, train

pytestmark = [
    pytest.mark.xdist_group("full disk"),  # one worker, so that the run is shared
    pytest.mark.usefixtures("shared_programs"),
]

TINY = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "1"]
TINY += ["--total-steps", "128", "--evaluation-episodes", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "CartPole-v1" / "trpo"
    argv = ["--env", "CartPole-v1", "--num-seeds", "2", *TINY, "--quiet", "--out", str(folder)]
    assert train.main(argv) == 0
    return folder


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that has room for only half of the file with a certain name."""

    def fill(name):
        def write(path, content):
            if path.name != f"{name}.tmp":
                return whole(path, content)
            whole(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        whole = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", write)

    return fill


COMPARE = ["--algorithms", "trpo", "--num-seeds", "2", "--total-steps", "128", "--set"]
COMPARE += ["trpo.num_envs=2", "trpo.num_steps=32", "trpo.hidden_sizes=8", "trpo.critic_epochs=1"]
COMPARE += ["trpo.evaluation_episodes=2"]
SWEEP = [*TINY, "--grid", "max_kl=0.01,0.02", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "words", "name"),
    [
        (plot.main, ["{runs}", "--smooth", "1", "--out", "{new}"], "statistics.json"),
        (plot.main, ["{runs}", "--smooth", "1", "--out", "{new}"], "statistics.md"),
        (plot.main, ["{runs}", "--smooth", "1", "--out", "{new}"], "learning_curves.png"),
        (diagnose.main, ["{run}"], "diagnosis.pdf"),
        (diagnose.main, ["{run}"], "diagnosis.png"),
        (evaluate.main, ["{run}", "--episodes", "4"], "evaluation.json"),
        (render.main, ["{run}", "--steps", "3", "--width", "60"], "episode.gif"),
        (compare.main, [*COMPARE, "--out", "{runs}"], "comparison.md"),
        (compare.main, [*COMPARE, "--out", "{runs}"], "comparison.png"),
        (train.main, ["--env", "CartPole-v1", *TINY, "--out", "{new}"], "config.json"),
        (train.main, ["--env", "CartPole-v1", *TINY, "--out", "{new}"], "policy.msgpack"),
        (train.main, ["--env", "CartPole-v1", *TINY, "--out", "{new}"], "learning_curve.png"),
        (train.main, ["--env", "CartPole-v1", *TINY, "--out", "{new}"], "summary.json"),
        (sweep.main, [*SWEEP, "--out", "{new}"], "results.csv"),
        (sweep.main, [*SWEEP, "--out", "{new}"], "sweep.pdf"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    main, words, name, finished, full_disk, tmp_path, capsys
):
    runs = shutil.copytree(finished.parents[1], tmp_path / "runs")
    places = {"runs": runs, "run": runs / "CartPole-v1" / "trpo", "new": tmp_path / "new"}
    before = sorted(tmp_path.rglob(name))
    full_disk(name)
    try:
        code = main([word.format(**places) for word in words])
    except SystemExit as stop:
        code = stop.code
    assert code == 1
    (error,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert f"{name} cannot be written: No space left on device" in error
    assert not list(tmp_path.rglob("*.tmp"))
    assert sorted(tmp_path.rglob(name)) == before
    assert not list(tmp_path.rglob(".lock"))
