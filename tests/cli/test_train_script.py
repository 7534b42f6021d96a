"""experiments/train.py, called with the words of a command line."""

import csv
import io
import json
import math
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

import trpo_jax
from trpo_jax import algorithms
from trpo_jax.cli import train
from trpo_jax.cli.command_line import flags_in
from trpo_jax.running.defaults import defaults_for

pytestmark = pytest.mark.xdist_group("script")  # one worker, so that the run is shared

ROOT = Path(__file__).parents[2]
SMALL = ["--num-envs", "2", "--num-steps", "64", "--hidden-sizes", "8", "--critic-epochs", "2"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pendulum"
    words = ["--env", "Pendulum-v1", "--num-seeds", "3", "--seed", "5", "--total-steps", "2000"]
    words += ["--max-kl", "0.02", "--out", str(folder), *SMALL]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert train.main(words) == 0
    return folder, out.getvalue(), err.getvalue()


def test_a_run_writes_all_its_files(finished_run):
    folder, *_ = finished_run
    names = {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "policy.msgpack"}
    assert {path.name for path in folder.iterdir()} == names | {"checkpoints"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["15"]  # at the end


def test_config_json_has_everything_needed_to_repeat_the_run(finished_run):
    config = json.loads((finished_run[0] / "config.json").read_text())
    assert (config["env"], config["algorithm"]) == ("Pendulum-v1", "trpo")
    assert (config["seed"], config["num_seeds"], config["total_steps"]) == (5, 3, 2000)
    assert config["config"]["max_kl"] == 0.02
    assert config["config"]["hidden_sizes"] == [8]
    assert {"jax", "trpo_jax"} <= set(config["versions"])
    assert config["device"]["platform"] == "cpu"


@pytest.mark.slow
def test_the_command_in_the_config_gives_the_same_numbers_again(finished_run, tmp_path):
    folder, *_ = finished_run
    command = json.loads((folder / "config.json").read_text())["command"]
    command[command.index("--out") + 1] = str(tmp_path / "again")
    assert train.main([*flags_in(command), "--quiet"]) == 0
    for ours, theirs in zip(
        csv.DictReader((folder / "metrics.csv").open()),
        csv.DictReader((tmp_path / "again" / "metrics.csv").open()),
        strict=True,
    ):
        assert ours | {"seconds": ""} == theirs | {"seconds": ""}


def test_metrics_hold_one_row_for_each_seed_and_update(finished_run):
    with (finished_run[0] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    leading = [
        "seed",
        "update",
        "env_steps",
        "seconds",
        "episodic_return",
        "episode_length",
        "num_episodes",
    ]
    assert list(rows[0])[:7] == leading
    assert len(rows) == 3 * 15  # 2000 steps are 15 whole updates of 128
    assert [(int(r["seed"]), int(r["update"])) for r in rows[:4]] == [
        (5, 1),
        (6, 1),
        (7, 1),
        (5, 2),
    ]
    assert all(int(r["env_steps"]) == 128 * int(r["update"]) for r in rows)
    seconds = [float(r["seconds"]) for r in rows]
    assert seconds == sorted(seconds)
    diagnostics = {"kl", "kl_max", "surrogate_gain", "surrogate_gain_predicted", "cg_residual"}
    diagnostics |= {"surrogate_gain_ratio", "cg_iterations", "gradient_dot_direction", "entropy"}
    diagnostics |= {"step_fraction", "step_rejected", "explained_variance"}
    for row in rows:
        assert diagnostics <= set(row)
        assert 0 <= float(row["kl"]) <= 0.02 * (1 + 1e-4)
        assert (row["episodic_return"] == "") == (float(row["num_episodes"]) == 0)


def test_the_summary_has_the_scores_of_the_evaluation(finished_run):
    summary = json.loads((finished_run[0] / "summary.json").read_text())
    assert (summary["env"], summary["algorithm"], summary["num_seeds"]) == (
        "Pendulum-v1",
        "trpo",
        3,
    )
    assert summary["total_steps"] == 15 * 128
    assert summary["env_steps_per_second"] > 0
    assert summary["wall_seconds"] > summary["compile_seconds"] > 0
    evaluation = summary["evaluation"]
    assert evaluation["episodes_per_seed"] >= 32
    assert len(evaluation["per_seed"]) == 3
    np.testing.assert_allclose(evaluation["mean"], np.mean(evaluation["per_seed"]))
    low, high = evaluation["ci95"]
    assert low <= evaluation["mean"] <= high
    assert -2000 < evaluation["iqm"] < 0
    assert evaluation["std"] >= 0


def test_the_stored_policy_acts(finished_run):
    policy = trpo_jax.load_policy(finished_run[0] / "policy.msgpack", seed=6)
    action = policy(np.array([1.0, 0.0, 0.0]))
    assert action.shape == (1,)
    assert -2 <= action[0] <= 2


def test_the_figure_is_a_png_file(finished_run):
    picture = (finished_run[0] / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 300_000


def test_the_output_shows_progress_and_the_files(finished_run):
    folder, out, err = finished_run
    assert "TRPO on Pendulum-v1: 1,920 steps in 15 updates for each of the seeds 5 to 7" in out
    assert "update 15/15" in out
    assert "steps/s" in out
    assert str(folder) in out
    assert "\x1b" not in out  # escape codes are only for terminals
    assert err == ""


@pytest.mark.slow
def test_quiet_prints_nothing_and_one_seed_has_no_interval(tmp_path, capsys):
    out = tmp_path / "quiet"
    arguments = ["--quiet", "--num-seeds", "1", "--total-steps", "128", "--out", str(out), *SMALL]
    assert train.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    evaluation = json.loads((out / "summary.json").read_text())["evaluation"]
    assert evaluation["ci95"] is None
    assert math.isfinite(evaluation["mean"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "CartPol-v1"], r"Did you mean CartPole-v1"),
        (["--algorithm", "trp"], r"Unknown algorithm 'trp'. Did you mean trpo"),
        (["--max-kl", "0"], r"max_kl = 0.0 cannot work: it must be a finite number, more than 0"),
        (["--max-kl", "nan"], r"max_kl = nan"),
        (["--max-kl", "small"], r"--max-kl: invalid float value: 'small'"),
        (["--damping", "-1"], r"damping"),
        (["--gae-lambda", "1.5"], r"gae_lambda = 1.5 .* at least 0 and at most 1"),
        (["--num-envs", "0"], r"num_envs = 0 cannot work"),
        (["--num-envs", "2.5"], r"--num-envs: invalid int value: '2.5'"),
        (["--total-steps", "2047"], r"2,047 is less than one batch, .* 2,048 steps"),
        (["--total-steps", "many"], r"--total-steps"),
        (["--critic-minibatches", "7"], r"does not divide"),
        (["--num-seeds", "0"], r"num_seeds = 0"),
        (["--seed", "-1"], r"seed = -1"),
        (["--activation", "sine"], r"invalid choice: 'sine' .choose from 'tanh'"),
        (["--colour", "red"], r"unrecognized arguments: --colour red"),
        (["--out", "{occupied}"], r"not empty"),
    ],
)
def test_bad_input_gives_an_error_of_one_paragraph_and_exit_code_2(
    arguments, message, tmp_path, capsys
):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "metrics.csv").write_text("mine")
    arguments = [argument.format(occupied=occupied) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "new")]
    error = refusal(train.main, arguments, capsys)
    assert re.search(message, error), error
    assert not (tmp_path / "new").exists()
    assert (occupied / "metrics.csv").read_text() == "mine"


def test_help_explains_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--env", "Pendulum-v1", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in algorithms.get("trpo").Config.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
    max_kl = defaults_for("trpo", "Pendulum-v1")["max_kl"]
    assert f"radius of the trust region: mean KL(old || new), in nats (default: {max_kl})" in text


@pytest.mark.slow
def test_numbers_that_are_not_finite_stop_the_run_and_its_files_are_kept(tmp_path, capsys):
    out = tmp_path / "broken"
    settings = ["--critic-lr", "1e38", "--num-seeds", "2", "--total-steps", "4096"]
    assert train.main([*settings, "--out", str(out), *SMALL]) == 1
    error = capsys.readouterr().err
    assert "Seed 0 stopped: update" in error
    assert "Seed 1 stopped: update" in error
    names = {path.name for path in out.iterdir()} - {
        "learning_curve.png"
    }  # drawn only after an update
    assert names == {"config.json", "metrics.csv", "policy.msgpack"}
    assert np.isfinite(trpo_jax.load_policy(out / "policy.msgpack")(jnp.zeros(4)))


@pytest.mark.slow
def test_ctrl_c_keeps_the_files_and_the_message_says_so(tmp_path):
    out = tmp_path / "interrupted"
    command = [sys.executable, "experiments/train.py", "--total-steps", "100_000_000"]
    command += ["--num-seeds", "1", "--out", str(out), *SMALL]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = out / "metrics.csv"
    for _ in range(1200):
        if metrics.exists() and metrics.stat().st_size > 0:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr.decode()
    assert "metrics.csv holds the run up to update" in stderr.decode()
    assert "policy.msgpack" in stdout.decode()
    with metrics.open() as file:
        assert len(list(csv.DictReader(file))) >= 1
    assert trpo_jax.load_policy(out / "policy.msgpack")(jnp.zeros(4)) in (0, 1)
