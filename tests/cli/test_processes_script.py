"""Commands that run in several processes."""

import argparse
import csv
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import jax
import numpy as np
import pytest
import two_processes
from refusals import refusal

from trpo_jax import processes
from trpo_jax.cli import placement, process_flags, sweep, train
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import read_metrics
from trpo_jax.running.folder import open_folder

pytestmark = [
    pytest.mark.xdist_group("processes"),  # one worker: two processes at a time are enough
]

SMALL = ["--num-envs", "4", "--num-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "2"]
SMALL += ["--critic-minibatches", "4", "--evaluation-episodes", "2"]
TRAIN = ["train.py", *SMALL, "--num-seeds", "2", "--checkpoint-every", "5"]
SHARDED = ("--shard", "environments")
UPDATES = ["--total-steps", str(20 * 4 * 32)]


def slurm(k, port):
    """Returns the variables that Slurm sets for a process. The job number decides the port."""
    names = {"JOB_ID": port, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": k, "LOCALID": k}
    variables = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return variables | {"JAX_COORDINATOR_PORT": str(port)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    assert train.main([*TRAIN[1:], *UPDATES, "--quiet", "--out", str(out)]) == 0
    return read_metrics(out / "metrics.csv")


def assert_same(metrics, expected):
    """Compares only ten updates, since differences in rounding show after that."""
    assert set(metrics) == set(expected)
    for name in set(metrics) - {"seconds"}:
        ours, theirs = (x[name][:, :10] for x in (metrics, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.heavy
def test_seeds_in_two_processes_under_slurm(alone, tmp_path):
    out = tmp_path / "out"
    words = [*TRAIN, *UPDATES, "--eval-every", "5", "--out", str(out)]
    codes, printed = two_processes.wait(two_processes.start(words, tmp_path, slurm), tmp_path)
    assert codes == [0, 0], printed
    assert "2 x cpu in 2 processes (split by seeds)" in printed[0]
    assert "Return of the deterministic policy" in printed[0]
    assert "TRPO" not in printed[1]
    assert_same(read_metrics(out / "metrics.csv"), alone)
    names = {"checkpoints", "config.json", "evaluations.csv", "learning_curve.png", "metrics.csv"}
    assert {path.name for path in out.iterdir()} == names | {"policy.msgpack", "summary.json"}
    assert {"10", "15", "20"} <= {path.name for path in (out / "checkpoints").iterdir()}


@pytest.mark.heavy
def test_a_killed_process_ends_the_other_and_the_run_can_be_resumed(alone, tmp_path):
    out = tmp_path / "out"
    words = [*TRAIN, *UPDATES, "--shard", "environments", "--out", str(out)]
    started = two_processes.start(words, tmp_path)
    two_processes.wait_for(out / "checkpoints" / "10", started)
    started[1].kill()
    codes, printed = two_processes.wait(started, tmp_path)
    # The process notices the loss itself, or JAX aborts it (in a barrier of a checkpoint). The
    # command that continues the run was printed at the start, too.
    assert codes[0] in (1, -signal.SIGABRT)
    assert codes[1] == -9
    assert f"train.py --resume {out} --shard environments --distributed" in printed[0]
    if codes[0] == 1:
        assert "another process of this run ended" in printed[0].lower()
        assert re.search(r"To continue the run after update \d+: .* --process-id 0\n", printed[0])
    assert "Traceback" not in printed[0]
    assert not (out / "summary.json").exists()

    plan = plan_of(["--resume", str(out)])  # by one process
    with ExitStack() as stack:
        saved = open_folder(plan, stack)
    assert plan.placement is None
    assert saved.description["placement"] == "2 x cpu in 2 processes (split by environments)"
    assert saved.arrays["rollout/episodes/length"].shape == (2, 4)

    words = ["train.py", "--resume", str(out), "--shard", "environments"]
    codes, printed = two_processes.wait(two_processes.start(words, tmp_path), tmp_path)
    assert codes == [0, 0], printed
    assert f"Continues after update {saved.num_updates}" in printed[0]
    metrics = read_metrics(out / "metrics.csv")
    assert metrics["update"].shape == (2, 20)
    assert_same(metrics, alone)


@pytest.mark.heavy
def test_the_death_of_the_first_process_ends_the_other(tmp_path):
    out = tmp_path / "out"
    words = [*TRAIN, "--total-steps", "1e6", "--eval-every", "0", "--out", str(out)]
    started = two_processes.start(words, tmp_path)
    two_processes.wait_for(out / "checkpoints" / "5", started)
    started[0].kill()
    codes, printed = two_processes.wait(started, tmp_path)
    # JAX aborts it, or it notices the loss. The start printed how to continue the run.
    assert codes[0] == -9
    assert codes[1] in (1, -signal.SIGABRT)
    assert "If another process ends early, JAX may abort" in printed[1]
    assert f"train.py --resume {out} --distributed" in printed[1]
    assert "To continue the run after" in printed[1]


@pytest.mark.heavy
def test_a_sweep_in_two_processes_gives_the_results_of_one_process(tmp_path):
    words = [*SMALL, *UPDATES, "--num-seeds", "3", "--grid", "max_kl=0.003,0.03", "--batch", "4"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert sweep.main([*words, "--quiet", "--out", str(one)]) == 0
    started = two_processes.start(["sweep.py", *words, "--out", str(two)], tmp_path)
    codes, printed = two_processes.wait(started, tmp_path)
    assert codes == [0, 0], printed
    assert printed[0].count("looks better than it is") == 1
    assert "looks better" not in printed[1]
    assert "--distributed" not in printed[0]
    tables = []
    for folder in (one, two):
        with (folder / "results.csv").open() as file:
            tables.append([[float(x or "nan") for x in row] for row in list(csv.reader(file))[1:]])
    np.testing.assert_allclose(tables[1], tables[0], rtol=0.02)


@pytest.mark.heavy
def test_a_folder_that_is_not_empty_ends_both_processes(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    words = [*TRAIN, *UPDATES, "--out", str(tmp_path)]
    codes, printed = two_processes.wait(two_processes.start(words, tmp_path), tmp_path)
    assert codes == [2, 2]
    assert all("is not empty" in text and "Traceback" not in text for text in printed)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("second", "messages"),
    [
        (
            ["--max-kl", "0.5", "--num-seeds", "4", "--num-envs", "8", "--seed", "1"],
            ["process 1 has num_envs = 8, not 4, max_kl = 0.5, not 0.01, seed"] * 2,
        ),
        (["--max-kl", "0"], ["Process 1 of this run cannot work", "max_kl = 0.0 cannot work"]),
    ],
)
def test_processes_with_different_settings_are_refused_before_they_start(
    second, messages, tmp_path
):
    words = [*TRAIN, *UPDATES, "--out", str(tmp_path / "out")]
    started = two_processes.start(words, tmp_path, second=second)
    codes, printed = two_processes.wait(started, tmp_path)
    assert codes == [2, 2], printed
    for text, message in zip(printed, messages, strict=True):
        assert re.search(f"error: .*{message}", text), text
        assert text.count("error: ") == 1
        assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_a_process_id_that_is_taken_ends_the_second_process_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(processes, "_held", [])
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: None)
    processes.join("localhost:7", 0, 2)
    processes.join("localhost:7", 1, 2)
    with pytest.raises(ConfigurationError, match=r"--process-id 1 in the run at localhost:7"):
        processes.join("localhost:7", 1, 2)


@pytest.mark.heavy
def test_a_process_that_never_starts_gives_an_error_of_one_paragraph(tmp_path):
    code = "from trpo_jax import processes; processes.JOINING_SECONDS = 3; "
    code += f"processes.join('localhost:{two_processes.free_port()}', 0, 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: The processes of this run have not found each other in 3")
    assert "process 0 of 2" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "3"], "devices = 3 must be at least 1 and at most 1"),
        (["--devices", "few"], "'few' is not a number of devices"),
        (["--process-id", "0"], "--process-id has no effect without --distributed"),
        (["--distributed", "--process-id", "0"], "without --coordinator, --num-processes"),
        (["--distributed", "--devices=2"], "takes all of its devices"),
    ],
)
@pytest.mark.parametrize("script", [train, sweep])
def test_flags_that_contradict_each_other_are_refused(script, words, message, tmp_path, capsys):
    own = ["--grid", "max_kl=0.1,0.2"] if script is sweep else []
    assert message in refusal(script.main, [*own, *words, "--out", str(tmp_path / "x")], capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("coordinator", "number", "message"),
    [
        ("localhost:1", "2", "process_id = 2 must be at least 0 and less than num_processes = 2"),
        ("localhost", "1", "--coordinator localhost must be a host and a port"),
    ],
)
def test_impossible_addresses_and_process_ids_are_refused(coordinator, number, message, capsys):
    words = ["--distributed", "--coordinator", coordinator, "--num-processes", "2"]
    assert message in refusal(train.main, [*words, "--process-id", number], capsys)


@pytest.mark.slow
def test_a_process_without_coordinator_explains_what_is_missing(tmp_path):
    script = str(two_processes.EXPERIMENTS / "train.py")
    command = [sys.executable, script, "--distributed", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert "cannot find each other (coordinator_address should be defined.)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_to_resume_has_the_placement_flags():
    words = ["--distributed", "--coordinator", "a:1", "--process-id", "0", "--num-processes", "2"]
    parser = argparse.ArgumentParser()
    process_flags.add_process_flags(parser, devices="1")
    parser.add_argument("--shard", default="seeds")
    for own in ([], words, ["--devices", "all"], ["--shard", "environments", "--devices", "4"]):
        args = parser.parse_args(own)
        again = process_flags.placement_words(args)
        assert parser.parse_args(again) == args
        assert process_flags.without_process_flags(own) == [x for x in own if x in SHARDED]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-seeds", "6"], "num_seeds = 6 cannot be split evenly over 4 devices. .*4 or 8"),
        (["--num-seeds", "3"], "num_seeds = 3 .*such as --num-seeds 4,"),
        (
            ["--shard", "environments", "--num-envs", "6"],
            "num_envs = 6 cannot be split evenly over 4 devices. .* --num-envs 4 or 8",
        ),
        (["--env", "gym/CartPole-v1"], "gym/CartPole-v1 runs on the host"),
    ],
)
def test_a_number_that_devices_do_not_divide_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(placement, "choose_devices", lambda wanted: jax.devices()[:1] * wanted)
    assert re.search(message, refusal(train.main, ["--devices", "4", *words], capsys))


@pytest.mark.heavy
def test_a_signal_to_one_process_stops_both_in_an_orderly_way(tmp_path):
    out = tmp_path / "out"
    words = [*TRAIN, "--total-steps", "1e7", "--out", str(out)]
    started = two_processes.start(words, tmp_path)
    two_processes.wait_for(out / "checkpoints" / "5" / "digest", started)
    time.sleep(0.4)  # until both processes have written the checkpoint
    started[1].terminate()
    codes, printed = two_processes.wait(started, tmp_path)
    assert codes == [130, 143], printed
    updates = re.search(r"up to update (\d+) of", printed[0])[1]
    assert (out / "checkpoints" / updates / "digest").is_file()
    assert f"To continue the run after update {updates}" in printed[0]
