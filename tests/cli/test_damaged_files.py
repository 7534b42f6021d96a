"""Files of a run with bytes changed, cut and put in: a right answer, or one paragraph."""

import shutil
from contextlib import ExitStack

import numpy as np
import pytest

from trpo_jax.algorithms import trpo
from trpo_jax.analysis.diagnosis import find_warnings
from trpo_jax.analysis.groups import join_runs
from trpo_jax.cli import compare, diagnose, plot
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.figures.diagnosis import headline
from trpo_jax.figures.diagnosis_panels import panels
from trpo_jax.records.runs import read_run
from trpo_jax.running.train import open_folder, train

pytestmark = pytest.mark.xdist_group("damage")  # one worker, so that the run is shared

CONFIG = trpo.Config(
    num_envs=2, num_steps=16, hidden_sizes=(8,), critic_epochs=1, critic_minibatches=2
)
TIMES = 40  # each file is damaged


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    options = {"seeds": 2, "total_steps": 192, "eval_every": 2, "checkpoint_every": 2}
    train("CartPole-v1", CONFIG, **options, evaluation_episodes=2, progress=False, out=out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def damages(content, seed):
    """Yields the content of a file with a bit flipped, bytes cut out, and bytes put in."""
    rng = np.random.default_rng(seed)
    for turn in range(TIMES):
        place, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
        match turn % 4:
            case 0:
                flipped = content[place] ^ (1 << int(rng.integers(8)))
                yield content[:place] + bytes([flipped]) + content[place + 1 :]
            case 1:
                yield content[:place]
            case 2:
                yield content[:place] + content[place + length :]
            case 3:
                yield content[:place] + rng.bytes(length) + content[place:]


def resume(folder):
    plan = plan_of(["--resume", str(folder)])
    with ExitStack() as stack:
        open_folder(plan, stack)


def diagnosed(folder):
    found = read_run(folder, diagnose.DESCRIBED, ("env_steps",))
    return headline(found), find_warnings(found), panels(found)


def plotted(folder):
    for name, groups in join_runs(plot.label_runs([str(folder)]), 4).items():
        plot.compare_on(name, groups, "evaluation", 4)


def compared(folder):
    pair = compare.Pair("trpo", "CartPole-v1", folder, (), None)
    return compare.compare([pair], "command"), compare.read_curve(pair)


COMMANDS = (resume, diagnosed, plotted, compared)


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "evaluations.csv", "summary.json"])
def test_a_damaged_file_is_one_paragraph_or_no_harm(name, run):
    content = (run / name).read_bytes()
    summary = (run / "summary.json").read_bytes()
    refused = 0
    for damaged in damages(content, seed=len(name)):
        (run / "summary.json").write_bytes(summary)
        (run / name).write_bytes(damaged)
        for command in COMMANDS:
            if command is resume:
                (run / "summary.json").unlink()
            try:
                command(run)
            except (ConfigurationError, SystemExit) as error:  # SystemExit: of a stored command
                assert "\n" not in str(error)
                assert isinstance(error, ConfigurationError) or error.code == 2
                refused += 1
            if command is resume:
                (run / "summary.json").write_bytes(damaged if name == "summary.json" else summary)
    assert refused > TIMES / 2
    if name.endswith(".csv"):
        assert not list(run.glob("checkpoints/damaged*"))
