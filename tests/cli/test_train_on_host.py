"""experiments/train.py on environments that run on the host."""

import csv
import json
import re

import host_speed
import host_tasks
import numpy as np
import pytest

from trpo_jax.cli import train
from trpo_jax.records.policies import load_policy
from trpo_jax.running.defaults import defaults_for

pytestmark = pytest.mark.xdist_group("script on the host")

SMALL = ["--num-envs", "2", "--num-steps", "16", "--hidden-sizes", "8", "--critic-epochs", "1"]
SMALL += ["--critic-minibatches", "2", "--total-steps", "320", "--num-seeds", "3", "--quiet"]
SMALL += ["--evaluation-episodes", "4"]
FILES = {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "policy.msgpack"}
FILES |= {"checkpoints"}


def run(folder, env, *flags):
    return train.main(["--env", env, *SMALL, "--out", str(folder), *flags])


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host") / "run"
    closed = host_tasks.Counter.closed
    assert run(folder, "gym/host_tasks:Counter-v0") == 0
    # One environment shows the spaces. Each seed has others for training and for evaluation.
    assert host_tasks.Counter.closed == closed + 1 + 3 * (2 + 2)
    return folder


@pytest.mark.slow
def test_a_run_on_the_host_has_the_usual_files(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    found = rows(finished)
    assert [(row["seed"], row["update"]) for row in found] == [
        (str(seed), str(update)) for update in range(1, 11) for seed in range(3)
    ]
    assert {row["episode_length"] for row in found} == {"5"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["evaluation"]["episodes_per_seed"] == 4
    assert all(15 <= score <= 20 for score in summary["evaluation"]["per_seed"])
    assert "gymnasium" in json.loads((finished / "config.json").read_text())["versions"]
    act = load_policy(finished / "policy.msgpack")
    assert act(np.zeros((7, 2), np.float32)).shape == (7,)


@pytest.mark.slow
def test_seeds_differ_and_do_not_depend_on_each_other(finished, tmp_path):
    alone = ["--num-seeds", "1", "--seed", "1"]
    assert run(tmp_path / "run", "gym/host_tasks:Counter-v0", *alone) == 0
    column = lambda found, seed: [row["kl"] for row in found if row["seed"] == seed]
    together = rows(finished)
    assert column(rows(tmp_path / "run"), "1") == column(together, "1")
    assert column(together, "0") != column(together, "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"), [("raise", "the floor gave way"), ("nan", "a reward that is not finite")]
)
def test_a_failure_ends_the_run_and_keeps_its_files(how, message, tmp_path, capsys):
    env = f"gym/host_tasks:Late-{how}-v0"
    assert run(tmp_path / "run", env) == 1
    error = capsys.readouterr().err
    assert re.search(f"nvironment {env} .*{message}", error)
    kept = int(re.search(r"holds the run up to update (\d+) of 10", error)[1])
    assert kept == 3 if how == "nan" else 1 <= kept <= 3  # the updates of the failed chunk are lost
    assert len(rows(tmp_path / "run")) == 3 * kept
    assert (tmp_path / "run" / "policy.msgpack").is_file()
    traceback = tmp_path / "run" / "error.txt"
    assert traceback.is_file() == (how == "raise")
    assert how != "raise" or "host_tasks.py" in traceback.read_text()


@pytest.mark.slow
def test_a_failure_before_the_first_update_names_the_command_to_continue(tmp_path, capsys):
    assert run(tmp_path / "run", "gym/host_tasks:Broken-raise-v0", "--env-processes") == 1
    assert "To continue the run from its start" in capsys.readouterr().err


def test_the_suites_have_their_own_defaults():
    defaults = defaults_for("trpo", "envpool/Hopper-v4")
    assert (defaults["num_envs"], defaults["evaluation_episodes"]) == (16, 16)
    assert defaults["scale_rewards"]
    assert defaults_for("trpo", "gym/highway-fast-v0")["env_processes"]
    assert not defaults_for("trpo", "envpool/Breakout-v5")["normalize_observations"]


@pytest.mark.slow
def test_the_time_of_an_environment_is_compared_with_training(capsys):
    small = [*SMALL[: SMALL.index("--total-steps")], "--num-seeds", "1", "--repeats", "1"]
    assert host_speed.main(["--env", "gym/host_tasks:Counter-v0", *small]) == 0
    table = capsys.readouterr().out
    assert "1 seed, medians of 1 turn, steps/s" in table
    row = re.search(r"gym/host_tasks:Counter-v0 +│ +2 +│ +([\d,]+) +│ +([\d,]+) +│ +(\d+)%", table)
    training, bare, share = (float(x.replace(",", "")) for x in row.groups())
    assert share == pytest.approx(100 * training / bare, abs=1)
    assert host_speed.main(["--env", "gym/host_tasks:Broken-raise-v0", *small]) == 1
    assert "error: Environment gym/host_tasks:Broken-raise-v0" in capsys.readouterr().err
    for flags, answer in (
        (["--env", "CartPole-v1"], "does not run on the host"),
        (["--repeats", "0"], "repeats = 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            host_speed.main(["--env", "gym/host_tasks:Counter-v0", *flags])
        assert answer in capsys.readouterr().err
